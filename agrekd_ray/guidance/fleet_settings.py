"""How live teachers are hosted. Apart from the fleet, so that a job is read without Ray."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agrekd_ray.settings import Autocast, Count, NonNegative, Positive, Settings, Whole


class FleetSettings(Settings):
    """How teachers are hosted.

    Attributes:
        backbones_per_actor: backbones in one actor, with all their heads. An actor costs about a
            millisecond a step, so small teachers share one and large ones have their own.
        concurrent: backbones of one actor that compute at the same time, each in a thread; of use
            where a backbone leaves its device idle.
        cpus: logical CPUs of an actor; null shares what the student's workers leave.
        gpus: of an actor; fractions share a GPU between actors.
        autocast: precision of the teachers' forward pass.
        look_ahead: batches that teachers compute while the student trains.
    """

    backbones_per_actor: Count = 1
    concurrent: Count = 1
    cpus: Positive | None = None
    gpus: NonNegative = 0
    autocast: Autocast = "none"
    look_ahead: Annotated[Whole, Field(le=64)] = 2
