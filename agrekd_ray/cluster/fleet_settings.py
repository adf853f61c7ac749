"""How live teachers are hosted. Apart from the fleet, so that a job is read without Ray."""

from __future__ import annotations

import fnmatch
from typing import Annotated, Literal

from pydantic import Field

from agrekd_ray.settings import (
    AUTO,
    Count,
    Gpus,
    GpusIfAny,
    NodeLabels,
    NodeResources,
    Numbers,
    Positive,
    Precise,
    Settings,
    Whole,
)


class TeacherPlace(Settings):
    """Where some teachers are put, where it differs from the others.

    Attributes:
        gpus: of their actor, as the fleet's; null as the fleet.
        resources: custom resources of their actor.
        labels: of their node.
    """

    gpus: GpusIfAny = None
    resources: NodeResources = Field(default_factory=dict)
    labels: NodeLabels = Field(default_factory=dict)


class FleetSettings(Precise):
    """How teachers are hosted.

    Attributes:
        backbones_per_actor: backbones in one actor, with all their heads. An actor costs about a
            millisecond a step, so small teachers share one and large ones have their own.
        concurrent: backbones of one actor that compute at the same time, each in a thread; of use
            where a backbone leaves its device idle.
        replicas: actors with the same teachers, which take turns; those that find no room join
            when a node is added.
        weighting_actors: that weigh side by side; a student's workers are dealt out among them. Of
            use where classes × teachers × workers are more than one process can take in.
        cpus: logical CPUs of an actor; null shares what the student's workers leave.
        gpus: share of a GPU that an actor has; `auto` is what the students leave, 0 none.
        resources: custom resources of an actor.
        labels: of the nodes that host teachers.
        teachers: other places, by teacher's name; `*` and `?` stand for any letters. The first
            that fits counts.
        precision: of the teachers' forward passes; `auto` is bfloat16 where all actors have GPUs.
        look_ahead: batches that teachers compute while the student trains.
        patience: seconds that a teacher may take to answer before the run gives it up; null waits
            for ever. Until it has room on the cluster, it does not run.
        on_teacher_loss: what happens when teachers are lost for good, silent for longer than
            `patience` or unable to start again: `error` ends the run, `drop` goes on with the
            others and marks it as degraded. The biased model cannot be dropped.
    """

    backbones_per_actor: Count = 1
    concurrent: Count = 1
    replicas: Annotated[Count, Field(le=64)] = 1
    weighting_actors: Annotated[Count, Field(le=256)] = 1
    cpus: Positive | None = None
    gpus: Gpus = AUTO
    resources: NodeResources = Field(default_factory=dict)
    labels: NodeLabels = Field(default_factory=dict)
    teachers: dict[str, TeacherPlace] = Field(default_factory=dict)
    look_ahead: Annotated[Whole, Field(le=64)] = 2
    patience: Positive | None = 600
    on_teacher_loss: Literal["error", "drop"] = "error"

    @property
    def computes_in(self) -> Numbers:
        """What all teachers compute in: one for all, since it is part of what records are of.

        With `auto`, that of GPUs where all are known to have some (see `run.settled`).
        """
        if self.precision != "auto":
            return self.precision
        own = [place.gpus for place in self.teachers.values() if place.gpus is not None]
        return "float32" if {0, AUTO} & {self.gpus, *own} else "bfloat16"

    def of(self, teacher: str) -> TeacherPlace:
        """Where a teacher is put."""
        for pattern, own in self.teachers.items():
            if fnmatch.fnmatchcase(teacher, pattern):
                return self.merged(own)
        return self.merged(TeacherPlace())

    def merged(self, own: TeacherPlace) -> TeacherPlace:
        """A place, with what it leaves to the fleet."""
        return TeacherPlace(
            gpus=self.gpus if own.gpus is None else own.gpus,
            resources={**self.resources, **own.resources},
            labels={**self.labels, **own.labels},
        )
