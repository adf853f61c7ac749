"""What would help most: every change that a person can make is forecast, and the best are named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from agrekd_ray.planning.forecast import Forecast, forecast
from agrekd_ray.planning.settings import Machines, Times
from agrekd_ray.planning.setup import Setup

WORTH = 0.97
"""A change counts where what is left of the time is less than this share."""


@dataclass(frozen=True)
class Advice:
    """A change, and what it would bring.

    Attributes:
        change: in words.
        step_ms: of a live step afterwards.
        job_seconds: of the whole job afterwards.
        recording_seconds: afterwards; None where nothing is recorded.
    """

    change: str
    step_ms: float
    job_seconds: float
    recording_seconds: float | None


def advise(
    found: Forecast,
    setup: Setup,
    machines: Machines,
    times: Times,
    weighting_actors: int | None,
    most: int = 3,
) -> list[Advice]:
    """The changes that help most, the best first; those of the job come before new machines.

    Args:
        found: the forecast as things are.
        setup: the job.
        machines: that it has.
        times: of student and teachers.
        weighting_actors: as `forecast` was told.
        most: how many, at most.
    """
    tried: list[tuple[float, int, Advice]] = []
    for change, one, two, three, actors in _changes(found, setup, machines, times):
        after = forecast(one, two, three, actors or weighting_actors)
        if found.shortage is None and after.shortage is not None:
            continue
        left = after.whole.seconds / found.whole.seconds
        step = after.step.ms / found.step.ms
        recorded = 1.0
        if found.recording and after.recording:
            recorded = after.recording.seconds / found.recording.seconds
        # What only makes a step or the recording faster must not make the other slower.
        parts = min(step, recorded) < WORTH and max(step, recorded) <= 1.01
        if left < WORTH or (left <= 1.01 and parts):
            seconds = after.recording.seconds if after.recording else None
            advice = Advice(change, after.step.ms, after.whole.seconds, seconds)
            tried.append((left + step + recorded, len(tried), advice))
    return [advice for *_, advice in sorted(tried, key=lambda one: one[:2])][:most]


Change = tuple[str, Setup, Machines, Times, int | None]


def _changes(found: Forecast, setup: Setup, machines: Machines, times: Times) -> Iterator[Change]:
    def of_job(change: str, **values: object) -> Change:
        return change, replace(setup, **values), machines, times, None  # type: ignore[arg-type]

    def of_machines(change: str, **values: object) -> Change:
        return change, setup, machines.model_copy(update=values), times, None

    def of_times(change: str, **values: object) -> Change:
        return change, setup, machines, times.model_copy(update=values), None

    if setup.look_ahead == 0:
        yield of_job("fleet.look_ahead=2", look_ahead=2)
    if not setup.records:
        views = min(setup.views, setup.epochs)
        yield of_job("guidance=auto: record once, then replay", records=True, views=views)
    if found.setup.weighting_actors == 1 and setup.may_shard:
        change = f"fleet.weighting_actors={setup.workers}: one for each of the student's workers"
        yield change, setup, machines, times, setup.workers
    hosted = setup.backbones_per_actor
    if setup.actors > 1:
        more = min(2 * hosted, setup.backbones)
        yield of_job(f"fleet.backbones_per_actor={more}: fewer actors", backbones_per_actor=more)
    if hosted > 1:
        fewer = max(1, min(hosted, setup.backbones) // 2)
        yield of_job(f"fleet.backbones_per_actor={fewer}: more actors", backbones_per_actor=fewer)
    if setup.concurrent < setup.fullest and times.forward_busy < 1:
        concurrent = setup.fullest
        yield of_job(f"fleet.concurrent={concurrent}", concurrent=concurrent)
    if setup.number_bytes == 4 and setup.records:
        yield of_job("outputs.dtype=float16: half the disk", number_bytes=2)
    if setup.part % 2 == 0:
        workers = 2 * setup.workers
        half = times.model_copy(update={"step_ms": times.step_ms / 2})
        change = f"student.workers={workers}, if half of the samples take half the time"
        yield change, replace(setup, workers=workers), machines, half, None
    yield of_machines(
        f"{2 * machines.nodes} nodes instead of {machines.nodes}", nodes=2 * machines.nodes
    )
    if machines.gpus:
        yield of_machines(f"{2 * machines.gpus} GPUs a node", gpus=2 * machines.gpus)
    yield of_machines(f"{2 * machines.cpus} cores a node", cpus=2 * machines.cpus)
    if machines.nodes > 1:
        yield of_machines(f"a network of {2 * machines.gbit:g} Gbit/s", gbit=2 * machines.gbit)
    yield of_machines("a disk twice as fast", disk_mb=2 * machines.disk_mb)
    forward = times.forward_ms / 2
    yield of_times(
        "teachers twice as fast (a faster device, fleet.precision=bfloat16)", forward_ms=forward
    )
    yield of_times("a student's step twice as fast (device, precision)", step_ms=times.step_ms / 2)
