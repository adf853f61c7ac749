"""What the driver makes of events."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from agrekd_ray.cluster.events import Awaited, Began, OutputsDone, StudentDone, StudentEpoch
from agrekd_ray.errors import TrackingError
from agrekd_ray.experiment import display
from agrekd_ray.experiment.display import RECORDED, Display
from agrekd_ray.experiment.monitor import Monitor, show_progress
from agrekd_ray.models import Model
from agrekd_ray.results import Epoch, Metrics, StudentResult
from agrekd_ray.settings import Training
from agrekd_ray.student import StudentSpec
from agrekd_ray.tracking.mlflow_runs import MlflowTracker
from agrekd_ray.tracking.outbox import Outbox

METRICS = Metrics(0.5, 0.25, 0.6, 0.5, 0.1, 0.3, {"a": 0.25, "b": 0.75}, {"a": 4, "b": 4})
GIVEN = StudentSpec(
    "one_hot", 0, Model(name="cnn"), Training(epochs=3, batch_size=8, learning_rate=1)
)
HISTORY = [Epoch(number, 1.0 / (1 + number), 0.1, 0.2, METRICS) for number in range(3)]
OUTCOME = StudentResult("one_hot", 0, "-", {"val": METRICS, "test": METRICS}, HISTORY)


def watched(tracker: Any) -> tuple[Monitor, Outbox, io.StringIO]:
    screen = io.StringIO()
    display = Display(Console(file=screen, width=200))
    display.stage("students", 3, "epochs")
    outbox = Outbox(display.note, pause=0.02)
    return Monitor(display, tracker, outbox, (GIVEN,)), outbox, screen


def test_an_epoch_that_is_told_twice_counts_once(tmp_path: Path) -> None:
    tracker = MlflowTracker(None, "test", tmp_path)
    tracker.start_job("job", {}, {})
    monitor, outbox, screen = watched(tracker)
    for epoch in (HISTORY[0], HISTORY[1], HISTORY[1], HISTORY[2]):  # as after a restart
        monitor.handle(StudentEpoch(GIVEN.name, 3, epoch))
    monitor.handle(StudentDone(OUTCOME))
    assert outbox.drain() == 0
    outbox.close()
    client = MlflowClient(tracker.uri)
    history = client.get_metric_history(monitor.run(GIVEN), "train/loss")
    assert sorted((m.step, round(m.value, 4)) for m in history) == [(0, 1.0), (1, 0.5), (2, 0.3333)]
    assert "students 3/3 epochs" in screen.getvalue()
    assert "4/3" not in screen.getvalue()


class _Flaky:
    """A tracker whose store is away until it is said to be back."""

    def __init__(self, tracker: MlflowTracker) -> None:
        self.tracker, self.away = tracker, True

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            if self.away:
                raise TrackingError("the server is away", temporary=True)
            return getattr(self.tracker, name)(*args)

        return call


def test_a_store_that_goes_away_is_said_once_and_gets_everything_later(tmp_path: Path) -> None:
    tracker = MlflowTracker(None, "test", tmp_path)
    tracker.start_job("job", {}, {})
    flaky = _Flaky(tracker)
    monitor, outbox, screen = watched(flaky)
    for epoch in HISTORY:
        monitor.handle(StudentEpoch(GIVEN.name, 3, epoch))
    monitor.handle(StudentDone(OUTCOME))
    assert outbox.drain(patience=0.2) > 0
    assert screen.getvalue().count("the server is away") == 1
    flaky.away = False
    assert outbox.drain() == 0
    outbox.close()
    assert "answers again" in screen.getvalue()
    run = MlflowClient(tracker.uri).get_run(monitor.run(GIVEN))
    history = MlflowClient(tracker.uri).get_metric_history(run.info.run_id, "train/loss")
    assert [m.step for m in history] == [0, 1, 2]
    assert run.info.status == "FINISHED"


def test_what_the_store_refuses_is_said_and_the_rest_goes_on() -> None:
    sent: list[int] = []
    said: list[str] = []
    outbox = Outbox(said.append, pause=0.02)

    def refused() -> None:
        raise TrackingError("no such thing")

    outbox.put(refused)
    outbox.put(lambda: sent.append(1))
    assert outbox.drain() == 0
    assert (sent, len(said)) == ([1], 1)


def test_a_fault_of_ours_is_not_swallowed() -> None:
    outbox = Outbox(lambda text: None)

    def broken() -> None:
        raise KeyError("a bug")

    outbox.put(broken)
    with pytest.raises(KeyError, match="a bug"):
        outbox.drain()


def test_the_time_left_counts_from_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither how long the processes took to start counts, nor what an earlier run had done."""
    clock = [1000.0]
    monkeypatch.setattr("agrekd_ray.experiment.display.time.monotonic", lambda: clock[0])
    screen = io.StringIO()
    display = Display(Console(file=screen, width=200))
    display.stage("students", 100, "epochs", done=40)
    for now in (1060.0, 1070.0, 1080.0):
        clock[0] = now
        display.advance("", 10)
    _, first, second, third = screen.getvalue().splitlines()
    assert first.endswith("students 50/100 epochs")
    assert second.endswith("60/100 epochs · about 00:40 left")
    assert third.endswith("70/100 epochs · about 00:30 left")


def test_what_an_earlier_attempt_did_counts_and_says_nothing_of_the_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of three students, one begins, one goes on with its last epochs, one has none left."""
    now = 1000.0
    monkeypatch.setattr("agrekd_ray.experiment.display.time.monotonic", lambda: now)
    screen = io.StringIO()
    line = Display(Console(file=screen, width=200))
    training = Training(epochs=100, batch_size=8, learning_rate=1)
    given = [StudentSpec("one_hot", seed, Model(name="cnn"), training) for seed in (0, 1, 2)]
    outbox = Outbox(line.note, pause=0.02)
    monitor = Monitor(line, None, outbox, tuple(given))  # type: ignore[arg-type]
    line.stage("students", 300, "epochs")
    for student, epoch in ((1, 0), (1, 1), (0, 98), (1, 2)):
        now += 10
        monitor.handle(StudentEpoch(given[student].name, 100, replace(HISTORY[0], epoch=epoch)))
    # Three in 30 s since the first; 98 epochs were there already, 198 are left.
    assert "102/300 epochs · about 33:00 left · one_hot-seed-1 epoch 3/100" in screen.getvalue()
    monkeypatch.setattr(Monitor, "finished", lambda self, outcome: None)
    for event in (
        StudentDone(replace(OUTCOME, seed=2)),  # it had been stopped after its last epoch
        StudentEpoch(given[0].name, 100, replace(HISTORY[0], epoch=99)),
        StudentDone(OUTCOME),
    ):
        now += 10
        monitor.handle(event)
    counts = [line.split(" · ")[0].split()[-2] for line in screen.getvalue().splitlines()]
    assert counts[-3:] == ["102/300", "202/300", "203/300"]
    outbox.close()


def test_a_line_says_what_is_awaited_until_the_first_step() -> None:
    monitor, outbox, screen = watched(None)
    told = (Awaited("a worker group is starting"), Began(), Awaited("the first epoch of a student"))
    for event in (*told, *told):
        monitor.handle(event)
    lines = [line.partition("epochs")[2] for line in screen.getvalue().splitlines()]
    assert lines == [
        "",
        " · a worker group is starting",
        " · a process has started, and opens the data",
        " · the first epoch of a student",
    ]
    monitor.handle(StudentEpoch(GIVEN.name, 3, HISTORY[0]))
    monitor.handle(Awaited("another"))
    assert "another" not in screen.getvalue()
    outbox.close()


def test_a_live_line_has_loss_and_accuracy_beside_the_worst_group() -> None:
    monitor, outbox, screen = watched(None)
    for record in HISTORY:
        monitor.handle(StudentEpoch(GIVEN.name, 3, record))
    words = "one_hot-seed-0 epoch 3/3, loss 0.333, val accuracy 50.0%, worst group 25.0%"
    assert words in screen.getvalue()
    outbox.close()


def test_views_that_are_recorded_before_the_students_are_no_epochs_of_theirs() -> None:
    monitor, outbox, screen = watched(None)
    monitor.handle(OutputsDone(4, 160))
    assert "students 0/3 epochs" in screen.getvalue()
    display = Display(Console(file=screen, width=200))
    display.stage("outputs", 160, RECORDED)
    show_progress(display, OutputsDone(4, 160))
    assert "outputs  160/160 samples · view 4\n" in screen.getvalue()
    outbox.close()


def test_stages_say_how_long_they_took_and_how_long_processes_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    line = display.Display(Console(file=io.StringIO()))

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    line.stage("start", 0, "")
    wait(7)
    line.stage("students", 20, "epochs", 10)
    wait(5)
    line.advance("one_hot-seed-0 epoch 1/10")
    wait(3)
    line.note("a line in between")
    line.stage("answers", 2, "models")
    wait(1)
    line.stage("students", 20, "epochs", 11)
    wait(2)
    line.advance("one_hot-seed-0 epoch 2/10")
    assert line.stages() == [
        "start 7.0 s",
        "students 10.0 s (the first 5.0 s until its first step)",
        "answers 1.0 s",
    ]
