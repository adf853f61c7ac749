"""Jobs submitted to a cluster that `ray start` started: followed, stopped, resumed, failed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from .conftest import TINY
from .shared import RAY, under_way, until

for _part in ("aiohttp_cors", "grpc"):
    pytest.importorskip(_part, reason="needs pip install 'agrekd_ray[cluster]'")
pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[1]
LONG = "student.training.epochs=400"
ATTEMPTS = 3


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at; Ray's workers take none of them."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


@dataclass(frozen=True)
class Head:
    """A cluster of one node, as a person starts it.

    Attributes:
        dashboard: where jobs are submitted.
        environment: of its processes and of its clients; its token is in it.
        shared: the folder that all nodes share.
        job: a tiny job.
    """

    dashboard: str
    environment: dict[str, str]
    shared: Path
    job: Path

    def ray(self, *words: str, code: int = 0) -> str:
        """What a command of Ray's prints."""
        done = subprocess.run(
            [*RAY, *words],
            env=self.environment,
            cwd=self.shared,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, name: str, *changes: str, wait: bool = True, code: int = 0) -> str:
        """Submit the job under a name, and follow it to its end."""
        start = ["sh", str(ROOT / "jobs/cluster/start.sh"), name, str(self.job), *changes]
        patience = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
        return self.ray(
            *("job", "submit", "--address", self.dashboard, "--runtime-env-json", patience),
            *(() if wait else ("--no-wait", "--submission-id", name)),
            *("--", *start),
            code=code,
        )


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    shared = tmp_path_factory.mktemp("shared")
    (shared / "bin").mkdir()
    program = shared / "bin/agrekd"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m agrekd_ray "$@"\n')
    program.chmod(0o755)
    (shared / "job.yaml").write_text(yaml.safe_dump(TINY))
    environment = os.environ | {
        "PATH": f"{shared / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SHARED": str(shared),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    for _ in range(ATTEMPTS):
        process, dashboard, temporary = start_head(environment, shared)
        found = Head(f"http://127.0.0.1:{dashboard}", environment, shared, shared / "job.yaml")
        if answers(found, process, temporary / "screen"):
            break
        end(process, temporary)
    else:
        pytest.fail("ray start ends before its dashboard answers")
    yield found
    end(process, temporary)


def start_head(
    environment: dict[str, str], folder: Path
) -> tuple[subprocess.Popen[bytes], int, Path]:
    """Its process, the dashboard's port, and the folder of its logs."""
    temporary = Path(tempfile.mkdtemp(prefix="agrekd-", dir="/tmp"))  # sockets have short names
    port, dashboard, agent = free_ports(3)
    command = [
        *(*RAY, "start", "--head", "--block", f"--port={port}", "--num-cpus=2"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--temp-dir={temporary}"),
        "--disable-usage-stats",
    ]
    with (temporary / "screen").open("wb") as screen:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=screen, stderr=subprocess.STDOUT
        )
    return process, dashboard, temporary


def answers(head: Head, process: subprocess.Popen[bytes], screen: Path) -> bool:
    """Waits for node and dashboard; false where the process ends, as on a very busy machine."""
    listing = [*RAY, "job", "list", "--address", head.dashboard]
    while process.poll() is None:
        if b"Ray runtime started" in screen.read_bytes():
            asked = subprocess.run(listing, env=head.environment, capture_output=True, check=False)
            if asked.returncode == 0:
                return True
        time.sleep(0.5)
    return False


def end(process: subprocess.Popen[bytes], temporary: Path) -> None:
    """With --block, ending it ends all that it started."""
    process.terminate()
    process.wait()
    shutil.rmtree(temporary, ignore_errors=True)


def latest(head: Head, name: str) -> Path:
    """The last run of the job submitted under a name."""
    return head.shared / "runs" / name / "tiny/latest"


def test_a_submitted_job_is_followed_to_its_table(head: Head) -> None:
    screen = head.submit("followed")
    assert "AVER" in screen
    assert "finished in" in screen
    assert "Traceback" not in screen
    state = json.loads((latest(head, "followed") / "state.json").read_text())
    assert state["status"] == "finished"


def test_a_failure_is_passed_on(head: Head) -> None:
    screen = head.submit("failing", "student.traning.epochs=1", code=1)
    assert "student.traning: unknown key" in screen
    assert "exit code 2" in screen
    assert not (head.shared / "runs/failing").exists()


def test_a_stranger_without_the_token_is_refused(head: Head) -> None:
    stranger = Head(
        head.dashboard, head.environment | {"RAY_AUTH_TOKEN": "0" * 64}, head.shared, head.job
    )
    assert "uthenticat" in stranger.ray("job", "list", "--address", head.dashboard, code=1)


def test_a_stopped_job_is_interrupted_and_goes_on(head: Head) -> None:
    head.submit("stopped", LONG, wait=False)
    run = latest(head, "stopped")
    until(lambda: under_way(run))
    head.ray("job", "stop", "--address", head.dashboard, "stopped")
    status = head.ray("job", "status", "--address", head.dashboard, "stopped")
    assert "was stopped" in status
    state = json.loads((run / "state.json").read_text())
    assert state["status"] == "interrupted"
    client = MlflowClient(f"sqlite:///{head.shared / 'runs/stopped/mlflow.db'}")
    assert client.get_run(state["tracking_run"]).info.status == "KILLED"
    assert not (run / "results.csv").exists()

    screen = head.submit("stopped", LONG)
    assert "finished in" in screen
    assert json.loads((run / "state.json").read_text())["status"] == "finished"
    assert client.get_run(state["tracking_run"]).info.status == "FINISHED"
    assert len(list((head.shared / "runs/stopped/tiny").glob("2*"))) == 1  # no second run
