"""What a forecast is made from: how long the student, its teachers and all between them take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from agrekd_ray.capacity.size import PROCESS
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.settings import NonNegative, Positive, Settings, Share

WEIGH_NS: dict[str, float] = {
    "aver": 53,
    "random": 62,
    "ae_kd": 65,
    "ca_mkd": 65,
    "govern": 103,
    "agre_kd": 116,
}
"""Nanoseconds for a number, measured by `measure.weighing_costs` on two busy cores; a strategy that
was not measured is taken for the slowest."""


def _known_strategies(value: Any) -> Any:
    for name in value if isinstance(value, Mapping) else ():
        if name not in STRATEGIES:
            raise ValueError(f"{name} is no strategy; known: {', '.join(STRATEGIES)}")
    return value


class Costs(Settings):
    """What the parts between student and teachers take; the defaults are of two slow cores.

    Attributes:
        call_ms: a request to the weighting actor and on to one teachers' actor, and back.
        actor_ms: each further actor that is asked.
        host_ms: a teachers' process at each batch, besides reading and forward passes.
        backbone_ms: of its own time, each further backbone in a process.
        copy_gb: GB/s (10⁹ bytes) at which messages go into and out of a process.
        reply_ms: a teachers' actor works out gradients, besides what grows with them.
        reply_ns: for each number of a teacher's gradient.
        weigh_ms: weighing one request's gradients, besides what grows with them.
        weigh_ns: for each number of the gradients [M, B, C], by strategy.
        programme_us: of AE-KD's quadratic programme, for each pair of teachers.
        seal_gb: GB/s at which a record is sealed with its checksum, or verified.
        process_mb: memory of an actor with torch, MB (10⁶ bytes).
        start_s: from the command to the first step: Ray, actors, Train.
    """

    call_ms: NonNegative = 2.0
    actor_ms: NonNegative = 1.0
    host_ms: NonNegative = 0.5
    backbone_ms: NonNegative = 0.5
    copy_gb: Positive = 1.0
    reply_ms: NonNegative = 0.2
    reply_ns: NonNegative = 5.0
    weigh_ms: NonNegative = 1.0
    weigh_ns: Annotated[dict[str, NonNegative], BeforeValidator(_known_strategies)] = WEIGH_NS
    programme_us: NonNegative = 1.0
    seal_gb: Positive = 0.5
    process_mb: NonNegative = PROCESS / 1e6
    start_s: NonNegative = 15

    def weigh(self, strategy: str, members: int, samples: int, classes: int) -> float:
        """Milliseconds that one request's gradients take to be weighed."""
        slope = self.weigh_ns.get(strategy, max(WEIGH_NS.values()))
        programme = self.programme_us * 1e-3 * members**2 if strategy == "ae_kd" else 0.0
        return self.weigh_ms + 1e-6 * members * samples * classes * slope + programme

    def reply(self, members: int, samples: int, classes: int) -> float:
        """Milliseconds that an actor's answer to one request takes, its logits being there."""
        return self.reply_ms + 1e-6 * self.reply_ns * members * samples * classes

    def copy_ms(self, size: float) -> float:
        """Milliseconds in which so many bytes go into or out of a process."""
        return 1e3 * size / (self.copy_gb * 1e9)


class Times(Settings):
    """How long the student and its teachers take, each alone.

    Attributes:
        forward_ms: one teacher's backbone over `student.training.batch_size` samples.
        step_ms: a student's step, by one worker on its part of the batch, on labels alone.
        inputs_ms: a process reads such a batch of samples, as teachers do once a batch.
        forward_busy: share of its device that a forward pass takes: 1 where two at once take
            twice as long, 0 where they do not disturb each other.
        costs: of what is between them.
    """

    forward_ms: NonNegative
    step_ms: Positive
    inputs_ms: NonNegative = 0
    forward_busy: Share = 1
    costs: Costs = Costs()
