"""Hosts of their own: each with its own address and its own disk, in namespaces.

A link is cut and healed; records travel between disks.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from .shared import AGREKD, RAY, under_way, until
from .test_run import agrekd, students, write_job

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need root and the command ip (iproute2)",
    ),
]

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


def call(*words: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def ip(*words: str) -> None:
    """A command of iproute2."""
    call("ip", *words)


@dataclass(frozen=True)
class Wire:
    """Hosts, each a network namespace, on one bridge, which is in a namespace of its own.

    Attributes:
        prefix: of the names of the namespaces.
        spaces: folder of the hosts' mount namespaces.
        disk: folder that is another disk on every host.
    """

    prefix: str
    spaces: Path
    disk: Path

    def space(self, host: str) -> str:
        """Name of its namespace."""
        return f"{self.prefix}-{host}"

    def address(self, host: str) -> str:
        """Of the host on the bridge."""
        return f"{NETWORK}.{1 + list(ROLES).index(host)}"

    def inside(self, host: str) -> list[str]:
        """What begins a command that runs on the host."""
        mounts = f"--mount={self.spaces / host}"
        return ["nsenter", mounts, "ip", "netns", "exec", self.space(host)]

    def on_disk(self, host: str) -> list[str]:
        """Names of the records on the host's own disk."""
        found = call(*self.inside(host), "find", str(self.disk), "-name", "view-*.arrow")
        return sorted(Path(line).name for line in found.splitlines())

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
        call("mount", "--bind", str(self.spaces), str(self.spaces))
        undo.callback(call, "umount", str(self.spaces))
        call("mount", "--make-private", str(self.spaces))
        for host in ROLES:
            own = self.spaces / host
            own.touch()
            call("unshare", f"--mount={own}", "mount", "-t", "tmpfs", "tmpfs", str(self.disk))
            undo.callback(call, "umount", str(own))


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
        shown = (self.screens / host).read_text
        until(lambda: "Ray runtime started" in shown(), self.nodes[host], shown)

    def end(self) -> None:
        """With --block, ending a node ends all that it started."""
        for node in self.nodes.values():
            node.terminate()
        for node in self.nodes.values():
            node.wait()

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
        wire = Wire(
            f"agrekd{os.getpid()}",
            tmp_path_factory.mktemp("spaces"),
            tmp_path_factory.mktemp("disk"),
        )
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


def placed(cluster: Cluster) -> dict[str, Any]:
    """Teachers on two hosts, the student on another, the driver on the head's."""
    return {
        "ray.address": cluster.address,
        "fleet.labels": {"role": "teacher"},
        "fleet.cpus": 0.5,
        "student.labels": {"role": "student"},
    }


def test_records_travel_between_disks(cluster: Cluster, pool: Path, tmp_path: Path) -> None:
    """Made on the teachers' hosts, kept on the driver's, replayed from the student's."""
    changes = {"data.views": {"flip": True, "count": 2}, "student.training.epochs": 6}
    for name in ("alone", "hosts"):
        (tmp_path / name).mkdir()
    alone = write_job(tmp_path / "alone", pool, **{**CHANGES, **changes}, guidance="local")
    agrekd("run", alone)
    places = {**placed(cluster), "outputs.store": str(cluster.wire.disk)}
    job = write_job(tmp_path / "hosts", pool, **{**CHANGES, **changes}, **places)
    with (tmp_path / "screen").open("w") as screen:
        assert cluster.run(job, screen).wait() == 0, (tmp_path / "screen").read_text()
    shown = (tmp_path / "screen").read_text()
    assert "the teachers' outputs are recorded; their actors are released" in shown
    found, expected = (students(tmp_path / n / "runs/tiny/latest") for n in ("hosts", "alone"))
    assert found.keys() == expected.keys()
    for name, weights in found.items():
        torch.testing.assert_close(weights, expected[name], rtol=1e-3, atol=5e-5)
    results = json.loads((tmp_path / "hosts/runs/tiny/latest/results.json").read_text())
    (outcome,) = results["outcomes"]
    replayed = [epoch["replayed_steps"] / epoch["steps"] for epoch in outcome["history"]]
    assert replayed == [0, 0, 1, 1, 1, 1]
    made = cluster.wire.on_disk("one") + cluster.wire.on_disk("two")
    assert made.count("view-00001.arrow") >= 3
    assert cluster.wire.on_disk("head").count("view-00001.arrow") == made.count("view-00001.arrow")
    brought = cluster.wire.on_disk("desk")
    assert brought.count("view-00001.arrow") == made.count("view-00001.arrow")
    assert brought.count("view-00000.arrow") == made.count("view-00001.arrow")


@pytest.mark.parametrize("seconds", [GLIMPSE, LOST])
def test_a_link_that_is_cut_and_healed_costs_time_and_nothing_else(
    cluster: Cluster,
    pool: Path,
    undisturbed: dict[str, torch.Tensor],
    tmp_path: Path,
    seconds: int,
) -> None:
    """A glimpse is bridged; of a host that is given up, the other takes the teachers over."""
    job = write_job(tmp_path, pool, **CHANGES, **placed(cluster), guidance="live")
    run = tmp_path / "runs/tiny/latest"
    with (tmp_path / "screen").open("w") as screen:
        driver = cluster.run(job, screen)
        until(lambda: under_way(run), driver, (tmp_path / "screen").read_text)
        cluster.wire.link("one", "down")
        try:
            time.sleep(seconds)  # the length of the fault
            assert driver.poll() is None or seconds == LOST
        finally:
            cluster.wire.link("one", "up")
        driver.wait()
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
        cluster.nodes["one"].wait()  # it was given up, and learns of it
