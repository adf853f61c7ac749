"""What the driver does with events: the progress line, MLflow, and the list of what is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from agrekd_ray.cluster.events import (
    Awaited,
    Began,
    Event,
    Notice,
    OnWay,
    OutputsDone,
    StudentDone,
    StudentEpoch,
    TeacherDone,
    TeacherEpoch,
)
from agrekd_ray.experiment.display import RECORDED, Display
from agrekd_ray.results import Epoch, StudentResult
from agrekd_ray.student import StudentSpec
from agrekd_ray.tracking.outbox import Outbox
from agrekd_ray.tracking.tracker import Tracker

SECONDS_BETWEEN_WRITES = 5.0


def show_progress(display: Display, event: Event) -> None:
    """On the progress line, what teachers and students did; a note as a line that stays."""
    if isinstance(event, TeacherEpoch):
        words = f"{event.name} epoch {event.epoch}/{event.epochs}"
        display.reach(words, event.key, event.epoch)
    elif isinstance(event, TeacherDone):
        display.advance(f"{event.name} finished", 0)
    elif isinstance(event, StudentEpoch):
        record, done = event.epoch, event.epoch.epoch + 1
        words = (
            f"{_shown(event.student)} epoch {done}/{event.epochs}, "
            f"loss {record.loss:.3f}, val accuracy {record.val.accuracy:.1%}, "
            f"{record.val.worst} {record.val.worst_group_accuracy:.1%}"
        )
        display.reach(words, event.student, done)
    elif isinstance(event, OnWay):
        display.advance(f"{_shown(event.name)}, {event.place}", 0)
    elif isinstance(event, OutputsDone):
        # Where the line counts students' epochs, their teachers take turns before the first one.
        steps = event.samples if display.unit == RECORDED else 0
        display.advance(f"view {event.view}", steps)
    elif isinstance(event, Began):
        display.awaits("a process has started, and opens the data")
    elif isinstance(event, Awaited):
        display.awaits(event.text)
    elif isinstance(event, Notice):
        display.note(event.text, "yellow")


def _shown(student: str) -> str:
    """A student's name without the folders of a study's point."""
    point, _, name = student.rpartition("/students/")
    return f"{point.replace(',', ' ')} {name}".lstrip()


class EpochWriter:
    """Writes epochs to MLflow, several at once: that costs about the same for one as for many.

    Args:
        tracker: MLflow.
        outbox: through which it is told.
    """

    def __init__(self, tracker: Tracker, outbox: Outbox) -> None:
        self._tracker, self._outbox = tracker, outbox
        self._unwritten: dict[str, tuple[Callable[[], str], list[Epoch]]] = {}
        self._written = time.monotonic()

    def add(self, name: str, run: Callable[[], str], epochs: Sequence[Epoch]) -> None:
        """Epochs of a student or trial of this name, and what gives its run."""
        self._unwritten.setdefault(name, (run, []))[1].extend(epochs)
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self.flush()

    def drop(self, name: str) -> None:
        """Leave out what is unwritten of a student, whose history is written whole."""
        self._unwritten.pop(name, None)

    def flush(self) -> None:
        """Write what is left."""
        unwritten, self._unwritten = self._unwritten, {}
        self._written = time.monotonic()

        def write() -> None:
            for run, epochs in unwritten.values():
                self._tracker.log_epochs(run(), epochs)

        if unwritten:
            self._outbox.put(write)


class Monitor:
    """Handles events, one at a time. A repeated event (after a restart) counts once.

    Args:
        display: the progress line.
        tracker: MLflow.
        outbox: through which it is told.
        specs: the students that are trained.
    """

    def __init__(
        self,
        display: Display,
        tracker: Tracker,
        outbox: Outbox,
        specs: tuple[StudentSpec, ...],
    ) -> None:
        self._display, self._tracker, self._outbox = display, tracker, outbox
        self._specs = {spec.name: spec for spec in specs}
        self._seen: set[tuple[str, int]] = set()
        self._runs: dict[str, str] = {}
        self._epochs = EpochWriter(tracker, outbox)
        self._finished: set[str] = set()

    def handle(self, event: Event) -> None:
        """One event."""
        if isinstance(event, StudentEpoch):
            self._epoch(event)
        elif isinstance(event, StudentDone):
            if given := self._specs.get(event.outcome.name):
                epochs = given.training.epochs
                self._display.reach(f"{given.name} finished", given.name, epochs, 0)
            self.finished(event.outcome)
        else:
            show_progress(self._display, event)

    def finished(self, outcome: StudentResult) -> None:
        """Record a finished method × seed in MLflow; one that is there already stays as it is."""
        if outcome.name in self._finished:
            return
        self._finished.add(outcome.name)
        self._epochs.drop(outcome.name)

        def write() -> None:
            run = self.run(outcome)
            if outcome.history:
                self._tracker.log_epochs(run, outcome.history)
            self._tracker.finish_student(run, outcome)

        self._outbox.put(write)

    def run(self, what: StudentResult | StudentSpec) -> str:
        """The MLflow run of a method × seed."""
        if what.name not in self._runs:
            given = self._specs.get(what.name)
            params = student_params(given) if given else {"teachers": what.teachers}
            self._runs[what.name] = self._tracker.student(what.method, what.seed, params)
        return self._runs[what.name]

    def _epoch(self, event: StudentEpoch) -> None:
        epoch = event.epoch
        if (event.student, epoch.epoch) in self._seen:
            return
        self._seen.add((event.student, epoch.epoch))
        show_progress(self._display, event)
        student = self._specs[event.student]
        self._epochs.add(event.student, lambda: self.run(student), [epoch])


def student_params(student: StudentSpec) -> dict[str, Any]:
    """What a student is made of, flat, under the same names for jobs and searches."""
    params: dict[str, Any] = {
        "teachers": student.teachers,
        **flat(student.model.model_dump(), "student.model."),
        **flat(student.training.model_dump(), "student.training."),
    }
    if (spec := student.spec) is not None:
        weighting = spec.sample_weighting
        params |= {
            "distillation.strategy": spec.strategy,
            "distillation.temperature": spec.temperature,
            "distillation.alpha": spec.alpha,
            **flat(spec.options, f"distillation.{spec.strategy}."),
            **flat(asdict(weighting) if weighting else {}, "distillation.sample_weighting."),
        }
    return params


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under their dotted paths, each with a prefix."""
    by_path: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        by_path |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return by_path
