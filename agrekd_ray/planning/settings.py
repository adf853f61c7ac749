"""What a forecast is made from: machines, and how long the parts of a step take alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from agrekd_ray.config import Fault, JobError
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.settings import Count, NonNegative, Positive, Settings, Share, Whole


class Machines(Settings):
    """The machines; all alike.

    Attributes:
        nodes: how many.
        gpus: of each.
        cpus: cores of each.
        memory_gb: memory of each, GB (10⁹ bytes).
        gbit: bandwidth of each one's network link, Gbit/s, in both directions at once.
        latency_us: of a message between two of them, one way, microseconds.
        disk_mb: what the folder of records takes in, MB/s, over all nodes.
    """

    nodes: Annotated[Count, Field(le=100_000)] = 1
    gpus: Annotated[Whole, Field(le=1024)] = 0
    cpus: Annotated[Count, Field(le=4096)] = 2
    memory_gb: Positive = 64
    gbit: Positive = 10
    latency_us: NonNegative = 100
    disk_mb: Positive = 500


def _known_strategies(value: Any) -> Any:
    if isinstance(value, Mapping):
        for name in value:
            if name not in STRATEGIES:
                raise ValueError(f"{name} is no strategy; known: {', '.join(STRATEGIES)}")
    return value


ByStrategy = Annotated[dict[str, NonNegative], BeforeValidator(_known_strategies)]


WEIGH_NS: dict[str, float] = {
    "aver": 53,
    "random": 62,
    "ae_kd": 65,
    "ca_mkd": 65,
    "govern": 103,
    "agre_kd": 116,
}
"""Nanoseconds for a number, measured by `measure.weighing_costs` on two busy cores."""
SLOWEST_NS = max(WEIGH_NS.values())
"""Of a strategy that was not measured."""


class Costs(Settings):
    """What the parts between student and teachers take; the defaults are of two slow cores.

    Attributes:
        call_ms: a question to the weighting actor and on to one teachers' actor, and back.
        actor_ms: each further actor that is asked.
        host_ms: a teachers' process at each batch, besides reading and forward passes.
        backbone_ms: of its own time, each further backbone in a process.
        copy_gb: GB/s (10⁹ bytes) at which messages go into and out of a process.
        reply_ms: a teachers' actor works out gradients, besides what grows with them.
        reply_ns: for each number of a teacher's gradient.
        weigh_ms: weighing one question's gradients, besides what grows with them.
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
    weigh_ns: ByStrategy = Field(default_factory=lambda: dict(WEIGH_NS))
    programme_us: NonNegative = 1.0
    seal_gb: Positive = 0.5
    process_mb: NonNegative = 380
    start_s: NonNegative = 15

    def weigh(self, strategy: str, members: int, samples: int, classes: int) -> float:
        """Milliseconds that one question's gradients take to be weighed."""
        numbers = members * samples * classes
        programme = self.programme_us * 1e-3 * members**2 if strategy == "ae_kd" else 0.0
        return self.weigh_ms + 1e-6 * numbers * self.weigh_ns.get(strategy, SLOWEST_NS) + programme

    def reply(self, members: int, samples: int, classes: int) -> float:
        """Milliseconds that an actor's answer to one question takes, its logits being there."""
        return self.reply_ms + 1e-6 * self.reply_ns * members * samples * classes


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


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, where later ones count."""
    found: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            before = found.get(key)
            both = isinstance(before, dict) and isinstance(value, Mapping)
            found[key] = merged(before, value) if both and before else value
    return found


def missing_times(source: str, values: Mapping[str, Any]) -> None:
    """Refuse values without the two that nobody can guess.

    Raises:
        JobError: says how to give or measure them.
    """
    options = {"forward_ms": "--forward-ms", "step_ms": "--step-ms"}
    faults = [
        Fault(key, "", f"is not known; give {option} or a file (--times), or measure (--measure)")
        for key, option in options.items()
        if key not in values
    ]
    if faults:
        raise JobError(source, faults)
