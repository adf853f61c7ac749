"""What workers tell the driver. Only the driver draws progress lines and writes to MLflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agrekd_ray.results import Epoch, StudentResult, TeacherCost


@dataclass(frozen=True)
class Began:
    """A process has its room on the cluster, and begins."""


@dataclass(frozen=True)
class Awaited:
    """What a stage waits for until its first step is done, in words."""

    text: str


@dataclass(frozen=True)
class TeacherEpoch:
    """A teacher finished an epoch, counted from 1; `key` tells it from others of its name."""

    name: str
    epoch: int
    epochs: int
    key: str


@dataclass(frozen=True)
class TeacherDone:
    """A teacher is in the pool; `trained` is False where it had been there already."""

    name: str
    trained: bool = True


@dataclass(frozen=True)
class StudentEpoch:
    """A student finished an epoch."""

    student: str
    epochs: int
    epoch: Epoch


@dataclass(frozen=True)
class StudentDone:
    """A student is finished."""

    outcome: StudentResult


@dataclass(frozen=True)
class OnWay:
    """A student or teacher is within an epoch; `place` says where, in words."""

    name: str
    place: str


@dataclass(frozen=True)
class OutputsDone:
    """Teachers' outputs were recorded: so many samples of a view, in the mean over the actors."""

    view: int
    samples: float


@dataclass(frozen=True)
class TeacherCostSoFar:
    """What the teachers that are at work have cost until now."""

    effort: TeacherCost


@dataclass(frozen=True)
class GroupPlaced:
    """A trial's worker group holds a placement group, named by its id in hexadecimal."""

    trial_id: str
    placement_group: str


@dataclass(frozen=True)
class Notice:
    """Something that the user should read now."""

    text: str


Event = (
    Began
    | Awaited
    | TeacherEpoch
    | TeacherDone
    | StudentEpoch
    | StudentDone
    | OnWay
    | OutputsDone
    | TeacherCostSoFar
    | GroupPlaced
    | Notice
)
Emit = Callable[[Event], None]
"""Tells the driver something; returns at once."""
