"""Hosts of their own: each in a network namespace, with its own address; a link cut and healed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from .test_run import AGREKD, agrekd, students, write_job

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need root and the command ip (iproute2)",
    ),
]

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
NETWORK = "10.213.77"
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
}
"""A node that does not answer for about 20 s is lost."""
GLIMPSE, LOST = 4, 60
ROLES = {"head": "driver", "one": "teacher", "two": "teacher", "desk": "student"}


def ip(*words: str) -> None:
    """A command of iproute2."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@dataclass(frozen=True)
class Wire:
    """Hosts, each a network namespace, on one bridge, which is in a namespace of its own."""

    prefix: str

    def space(self, host: str) -> str:
        """Name of its namespace."""
        return f"{self.prefix}-{host}"

    def address(self, host: str) -> str:
        """Of the host on the bridge."""
        return f"{NETWORK}.{1 + list(ROLES).index(host)}"

    def inside(self, host: str) -> list[str]:
        """What begins a command that runs on the host."""
        return ["ip", "netns", "exec", self.space(host)]

    def link(self, host: str, state: str) -> None:
        """Cuts the host's link (`down`) or heals it (`up`)."""
        ip("-n", self.space("wire"), "link", "set", f"to-{host}", state)

    def build(self, undo: ExitStack) -> None:
        """Makes it; `undo` takes it away."""
        for name in ("wire", *ROLES):
            ip("netns", "add", self.space(name))
            undo.callback(ip, "netns", "del", self.space(name))
            ip("-n", self.space(name), "link", "set", "lo", "up")
        wire = self.space("wire")
        ip("-n", wire, "link", "add", "bridge", "type", "bridge")
        ip("-n", wire, "link", "set", "bridge", "up")
        for host in ROLES:
            space, peer = self.space(host), f"to-{host}"
            pair = ("type", "veth", "peer", "name", peer, "netns", wire)
            ip("link", "add", "eth0", "netns", space, *pair)
            ip("-n", wire, "link", "set", peer, "master", "bridge", "up")
            ip("-n", space, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")


@dataclass(frozen=True)
class Cluster:
    """A node of Ray on every host.

    Attributes:
        wire: the hosts.
        environment: of every process; the token is in it.
        screens: what each node has printed, by host.
        nodes: their processes.
    """

    wire: Wire
    environment: dict[str, str]
    screens: Path
    nodes: dict[str, subprocess.Popen[bytes]]

    @property
    def address(self) -> str:
        """Of the head."""
        return f"{self.wire.address('head')}:6379"

    def start(self, host: str, temporary: Path) -> None:
        """Starts the host's node, and waits for it."""
        role = ROLES[host]
        own = [f"--node-ip-address={self.wire.address(host)}", f"--labels=role={role}"]
        if host == "head":
            own += ["--head", "--port=6379", f"--system-config={json.dumps(HEALTH)}"]
            own += [f"--temp-dir={temporary}", "--include-dashboard=false", "--num-cpus=1"]
        else:
            own += [f"--address={self.address}", "--num-cpus=2"]
        with (self.screens / host).open("wb") as screen:
            self.nodes[host] = subprocess.Popen(
                [*self.wire.inside(host), *RAY, "start", "--block", "--disable-usage-stats", *own],
                env=self.environment,
                stdout=screen,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 180
        while "Ray runtime started" not in (shown := (self.screens / host).read_text()):
            assert self.nodes[host].poll() is None, shown
            assert time.monotonic() < deadline, shown
            time.sleep(0.2)  # polls for the moment

    def end(self) -> None:
        """With --block, ending a node ends all that it started."""
        for node in self.nodes.values():
            node.terminate()
        for node in self.nodes.values():
            node.wait(120)

    def run(self, job: Path, screen: IO[str]) -> subprocess.Popen[str]:
        """Starts `agrekd run` on the head's host."""
        return subprocess.Popen(
            [*self.wire.inside("head"), *AGREKD, "run", str(job)],
            env=self.environment,
            stdout=screen,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as undo:
        wire = Wire(f"agrekd{os.getpid()}")
        wire.build(undo)
        temporary = Path(tempfile.mkdtemp(prefix="agrekd-", dir="/tmp"))  # sockets: short names
        undo.callback(shutil.rmtree, temporary, ignore_errors=True)
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        screens = tmp_path_factory.mktemp("screens")
        found = Cluster(wire, os.environ | secret, screens, {})
        undo.callback(found.end)
        for host in ROLES:
            found.start(host, temporary)
        yield found


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the teachers of all runs here are kept."""
    return tmp_path_factory.mktemp("pool")


CHANGES: dict[str, Any] = {
    "methods": ["agre_kd"],
    "data.views": {"flip": True},
    "student.training.epochs": 60,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pool: Path) -> dict[str, torch.Tensor]:
    """The students that one process makes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    agrekd("run", write_job(folder, pool, **CHANGES, guidance="local"))
    return students(folder / "runs/tiny/latest")


@pytest.mark.parametrize("seconds", [GLIMPSE, LOST])
def test_a_link_that_is_cut_and_healed_costs_time_and_nothing_else(
    cluster: Cluster,
    pool: Path,
    undisturbed: dict[str, torch.Tensor],
    tmp_path: Path,
    seconds: int,
) -> None:
    """A glimpse is bridged; of a host that is given up, the other takes the teachers over."""
    places = {
        "guidance": "live",
        "ray.address": cluster.address,
        "fleet.labels": {"role": "teacher"},
        "fleet.cpus": 0.5,
        "student.labels": {"role": "student"},
    }
    job = write_job(tmp_path, pool, **CHANGES, **places)
    run = tmp_path / "runs/tiny/latest"
    with (tmp_path / "screen").open("w") as screen:
        driver = cluster.run(job, screen)
        deadline = time.monotonic() + 300
        while not (run / "training/state.pt").exists():
            assert driver.poll() is None, (tmp_path / "screen").read_text()
            assert time.monotonic() < deadline, (tmp_path / "screen").read_text()
            time.sleep(0.1)  # polls for the moment
        cluster.wire.link("one", "down")
        try:
            time.sleep(seconds)  # the length of the fault
            assert driver.poll() is None or seconds == LOST
        finally:
            cluster.wire.link("one", "up")
        driver.wait(600)
    shown = (tmp_path / "screen").read_text()
    assert driver.returncode == 0, shown
    assert "Traceback" not in shown
    for host in ("one", "two", "desk"):
        assert f"{cluster.wire.address(host)}" in shown, shown
    found = students(run)
    assert found.keys() == undisturbed.keys()
    for name, weights in found.items():
        torch.testing.assert_close(weights, undisturbed[name], rtol=1e-3, atol=5e-5)
    if seconds == LOST:
        cluster.nodes["one"].wait(120)  # it was given up, and learns of it
