"""A real MLflow server on loopback: used, stopped in the middle of a run, and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from agrekd_ray.results import Epoch, Metrics, StudentResult
from agrekd_ray.tracking.mlflow_runs import MlflowTracker
from agrekd_ray.tracking.outbox import Outbox

from .shared import until
from .test_search import STUDENT_ONLY, search

METRICS = Metrics(0.5, 0.25, 0.6, 0.5, 0.1, 0.3, {"a": 0.25, "b": 0.75}, {"a": 4, "b": 4})
HISTORY = [Epoch(n, 1 / (1 + n), 0.1, 0.2, METRICS, steps=5) for n in range(6)]
OUTCOME = StudentResult("aver", 0, "2", {"val": METRICS, "test": METRICS}, HISTORY)


class Server:
    """`mlflow server`, as often as asked, always with the same store and address."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        quiet = subprocess.DEVNULL
        # Without its runner of jobs, which is four more processes.
        lean = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            command,
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
            cwd=self._folder,
            env=os.environ | lean,
        )
        until(self._answers, self._process)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # its own group: no graceful end
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path)
    found.start()
    yield found
    found.stop()


@pytest.mark.chaos
def test_a_server_that_is_stopped_in_mid_run_gets_everything_in_the_end(
    server: Server, tmp_path: Path
) -> None:
    said: list[str] = []
    tracker = MlflowTracker(server.uri, "served", tmp_path)
    job = tracker.start_job("job", {"data.aligned": 0.9}, {})
    outbox = Outbox(said.append, pause=0.1)
    run = tracker.student("aver", 0, {})
    outbox.put(lambda: tracker.log_epochs(run, HISTORY[:2]))
    assert outbox.drain() == 0
    server.stop()
    outbox.put(lambda: tracker.log_epochs(run, HISTORY[2:5]))
    outbox.put(lambda: tracker.log_epochs(run, HISTORY[4:]))
    outbox.put(lambda: tracker.finish_student(run, OUTCOME))
    outbox.put(lambda: tracker.finish_job(job, tmp_path / "reports", {"x": 1.0}))
    assert outbox.drain(patience=0.5) == 4
    server.start()
    assert outbox.drain() == 0
    outbox.close()
    assert len([text for text in said if "MLflow is away" in text]) == 1
    assert len([text for text in said if "answers again" in text]) == 1
    client = MlflowClient(server.uri)
    for name in ("train/loss", "val/worst_group_accuracy", "val/group/a"):
        points = client.get_metric_history(run, name)
        assert sorted(point.step for point in points) == list(range(6)), name
    found = client.get_run(run)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["test/worst_group_accuracy"] == 0.25
    assert found.data.metrics["cost/steps"] == 30
    assert client.get_run(job).info.status == "FINISHED"


@pytest.mark.chaos
def test_a_search_goes_on_without_its_server_and_sends_everything_later(
    ray_session: Any, server: Server, tmp_path: Path, store: Path
) -> None:
    """The server dies when the first trial is logged, and comes back while the search runs on."""
    client = MlflowClient(server.uri)

    def trials() -> list[Run]:
        places = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(places, "tags.`agrekd.role` = 'trial'", max_results=100))

    def away_for_a_while() -> None:
        until(lambda: any("train/loss" in run.data.metrics for run in trials()))
        server.stop()
        until(lambda: "MLflow is away" in (tmp_path / "screen.txt").read_text())
        server.start()

    outage = threading.Thread(target=away_for_a_while, daemon=True)
    outage.start()
    result = search(
        tmp_path,
        store,
        space=STUDENT_ONLY,
        trials=6,
        scheduler={"name": "none"},
        changes={"student.training.epochs": 6, "tracking.uri": server.uri},
    )
    outage.join()
    assert "MLflow is away" in (tmp_path / "screen.txt").read_text()
    logged = {int(run.data.tags["agrekd.trial"]): run for run in trials()}
    assert sorted(logged) == [trial.number for trial in result.trials]
    for trial in result.trials:
        run = logged[trial.number]
        assert run.info.status == "FINISHED"
        points = client.get_metric_history(run.info.run_id, "val/worst_group_accuracy")
        assert {point.step: point.value for point in points} == {
            epoch.epoch: pytest.approx(epoch.val.worst_group_accuracy) for epoch in trial.history
        }
