"""What the driver does with events: the progress line, MLflow, and the list of what is finished."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from agrekd_ray.cluster.events import (
    Event,
    Notice,
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
    """On the progress line, what the teachers did; a note as a line that stays."""
    if isinstance(event, TeacherEpoch):
        display.advance(f"{event.name} epoch {event.epoch}/{event.epochs}")
    elif isinstance(event, TeacherDone):
        display.advance(f"{event.name} finished", 0)
    elif isinstance(event, OutputsDone):
        # Where the line counts students' epochs, their teachers take turns before the first one.
        steps = event.samples if display.unit == RECORDED else 0
        display.advance(f"view {event.view}", steps)
    elif isinstance(event, Notice):
        display.note(event.text, "yellow")


class Monitor:
    """Handles events, one at a time. A repeated event (after a restart) counts once.

    Args:
        display: the progress line.
        tracker: MLflow.
        outbox: through which it is told.
        assignments: the students that are trained.
    """

    def __init__(
        self,
        display: Display,
        tracker: Tracker,
        outbox: Outbox,
        assignments: tuple[StudentSpec, ...],
    ) -> None:
        self._display, self._tracker, self._outbox = display, tracker, outbox
        self._assignments = {assignment.name: assignment for assignment in assignments}
        self._seen: set[tuple[str, int]] = set()
        self._runs: dict[str, str] = {}
        self._unwritten: dict[str, list[Epoch]] = {}
        self._finished: set[str] = set()
        self._written = time.monotonic()

    def handle(self, event: Event) -> None:
        """One event."""
        if isinstance(event, StudentEpoch):
            self._epoch(event)
        elif isinstance(event, StudentDone):
            self.finished(event.outcome)
        else:
            show_progress(self._display, event)

    def finished(self, outcome: StudentResult) -> None:
        """Record a finished method × seed in MLflow; one that is there already stays as it is."""
        if outcome.name in self._finished:
            return
        self._finished.add(outcome.name)
        self._unwritten.pop(outcome.name, None)

        def write() -> None:
            run = self.run(outcome)
            if outcome.history:
                self._tracker.log_epochs(run, outcome.history)
            self._tracker.finish_student(run, outcome)

        self._outbox.put(write)

    def run(self, what: StudentResult | StudentSpec) -> str:
        """The MLflow run of a method × seed."""
        if what.name not in self._runs:
            given = self._assignments.get(what.name)
            params = student_params(given) if given else {"teachers": what.teachers}
            self._runs[what.name] = self._tracker.student(what.method, what.seed, params)
        return self._runs[what.name]

    def _epoch(self, event: StudentEpoch) -> None:
        epoch = event.epoch
        if (event.student, epoch.epoch) in self._seen:
            return
        self._seen.add((event.student, epoch.epoch))
        self._display.advance(
            f"{event.student} epoch {epoch.epoch + 1}/{event.epochs}, val {epoch.val.worst} "
            f"{epoch.val.worst_group_accuracy:.1%}"
        )
        self._unwritten.setdefault(event.student, []).append(epoch)
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self._write_epochs()

    def _write_epochs(self) -> None:
        """Several at once: a write costs the store about the same for one epoch as for many."""
        unwritten, self._unwritten = self._unwritten, {}
        self._written = time.monotonic()

        def write() -> None:
            for student, epochs in unwritten.items():
                self._tracker.log_epochs(self.run(self._assignments[student]), epochs)

        self._outbox.put(write)


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
