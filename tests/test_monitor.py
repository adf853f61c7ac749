"""What the driver makes of events."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from rich.console import Console

from agrekd_ray.errors import TrackingError
from agrekd_ray.events import StudentDone, StudentEpoch
from agrekd_ray.models import Model
from agrekd_ray.results import Epoch, Metrics, Outcome
from agrekd_ray.run.display import Display
from agrekd_ray.run.monitor import Monitor
from agrekd_ray.settings import Training
from agrekd_ray.student import Assignment
from agrekd_ray.tracking.mlflow_runs import Tracker

METRICS = Metrics(0.5, 0.25, 0.6, 0.5, 0.1, 0.3, {"a": 0.25, "b": 0.75}, {"a": 4, "b": 4})
GIVEN = Assignment(
    "one_hot", 0, Model(name="cnn"), Training(epochs=3, batch_size=8, learning_rate=1)
)
HISTORY = [Epoch(number, 1.0 / (1 + number), 0.1, 0.2, METRICS) for number in range(3)]
OUTCOME = Outcome("one_hot", 0, "-", {"val": METRICS, "test": METRICS}, HISTORY)


def watched(tracker: Any) -> tuple[Monitor, io.StringIO]:
    screen = io.StringIO()
    display = Display(Console(file=screen, width=200))
    display.stage("students", 3, "epochs")
    return Monitor(display, tracker, (GIVEN,)), screen


def test_an_epoch_that_is_told_twice_counts_once(tmp_path: Path) -> None:
    tracker = Tracker(None, "test", tmp_path)
    tracker.start_job("job", {}, {})
    monitor, screen = watched(tracker)
    for epoch in (HISTORY[0], HISTORY[1], HISTORY[1], HISTORY[2]):  # as after a restart
        monitor.handle(StudentEpoch(GIVEN.name, 3, epoch))
    monitor.handle(StudentDone(OUTCOME))
    client = MlflowClient(tracker.uri)
    history = client.get_metric_history(monitor.run(GIVEN), "train/loss")
    assert sorted((m.step, round(m.value, 4)) for m in history) == [(0, 1.0), (1, 0.5), (2, 0.3333)]
    assert "students 3/3 epochs" in screen.getvalue()
    assert "4/3" not in screen.getvalue()


class _Away:
    """A store that nobody can reach."""

    def __getattr__(self, name: str) -> Any:
        def fail(*args: Any) -> None:
            raise TrackingError("the server is away")

        return fail


def test_a_store_that_goes_away_is_said_once_and_stops_nothing() -> None:
    monitor, screen = watched(_Away())
    for epoch in HISTORY:
        monitor.handle(StudentEpoch(GIVEN.name, 3, epoch))
    monitor.handle(StudentDone(OUTCOME))
    monitor.finished(OUTCOME)
    assert screen.getvalue().count("the server is away") == 1
    assert not monitor.tracking
