"""`agrekd plan`: what a job would take on other machines, what holds it up, what would help."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from pydantic import ValidationError
from rich.console import Console

from agrekd_ray.capacity.costs import Costs, Times
from agrekd_ray.capacity.forecast import Forecast, forecast
from agrekd_ray.capacity.placing import Machines, actors_wanted, workers_wanted
from agrekd_ray.capacity.report import as_json, show_forecast
from agrekd_ray.capacity.size import JobSize, read_size
from agrekd_ray.cluster.environment import prepare
from agrekd_ray.config import Fault, Job, JobError, faults_of, read_job
from agrekd_ray.data import Dataset
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.gpus import numbered, what_stays_idle
from agrekd_ray.experiment.preparing import prepare_data
from agrekd_ray.settings import Settings

SETTINGS = TypeVar("SETTINGS", bound=Settings)
GUESSED = {"forward_ms": "--forward-ms", "step_ms": "--step-ms"}
"""Times that nobody can guess, with their options."""
WORTH = 0.97
"""A change counts where what is left of the time is less than this share."""
MOST = 3
"""Changes that are advised."""


def plan(
    path: Path,
    overrides: Sequence[str],
    console: Console,
    *,
    machines: Mapping[str, Any],
    times: Mapping[str, Any],
    times_file: Path | None = None,
    measure: bool = False,
    classes: int | None = None,
    samples: int | None = None,
    weighting_actors: int | None = None,
    json_file: Path | None = None,
) -> None:
    """Forecast a job, and show and write the forecast.

    Args:
        path: of the job.
        overrides: `key.path=value` changes to it.
        console: for the tables.
        machines: values of `Machines`.
        times: values of `Times`, which count before all others; None is not given.
        times_file: YAML with values of `Times`, which count before those measured.
        measure: take the times on this machine.
        classes: C; None asks the data.
        samples: of the training split; None asks the data.
        weighting_actors: 1, or as many as student workers; None lets the plan choose.
        json_file: for the forecast; None writes none.

    Raises:
        JobError: what is wrong with the job, or with what is given.
        RunError: a file that cannot be written, or nothing to measure on.
    """
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise RunError(f"{json_file}: its folder does not exist; nothing was planned.")
    hardware = _checked("agrekd plan", Machines, machines)
    from_file = read_job(times_file, what="file of times") if times_file is not None else {}
    options = {key: value for key, value in times.items() if value is not None}
    for source, values in ((str(times_file), from_file), ("agrekd plan", options)):
        _checked(source, Times, merged(dict.fromkeys(GUESSED, 1), values))
    job, dataset, size = read_size(path, overrides, classes, samples)
    if weighting_actors not in (None, 1, size.workers if size.may_shard else 1):
        why = " (one worker, or a strategy that sees the whole batch)"
        allowed = f"1 or {size.workers}, one a worker" if size.may_shard else f"1{why}"
        fault = Fault("--weighting-actors", str(weighting_actors), f"must be {allowed}")
        raise JobError("agrekd plan", [fault])
    size = replace(size, weighting_actors=weighting_actors)
    values = merged(_measured(job, dataset, size, console) if measure else {}, from_file, options)
    problem = "is not known; give {} or a file (--times), or measure (--measure)"
    unknown = [Fault(k, "", problem.format(o)) for k, o in GUESSED.items() if k not in values]
    if unknown:
        raise JobError(str(path), unknown)
    taken = _checked("agrekd plan", Times, values)
    expected = forecast(size, hardware, taken)
    advice = advise(expected, size)
    idle = _idle_gpus(job, expected)
    show_forecast(job.name, expected, advice, idle, console)
    if job.is_study:
        console.print("The job is a study; this is one of its points, as the job itself says.")
    if json_file is not None:
        content = as_json(job.name, expected, advice)
        try:
            json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunError(f"{json_file}: cannot be written ({error.strerror}).") from None


def _measured(job: Job, dataset: Dataset | None, size: JobSize, console: Console) -> dict[str, Any]:
    """Times of the job's models, weighing and actors here."""
    if dataset is None:
        raise RunError("the job's data are not here, so that nothing can be measured with them.")
    prepare(starts_cluster=True)
    from agrekd_ray.capacity import measure  # imports Ray, which reads the environment
    from agrekd_ray.cluster.session import RaySession

    with Display(console) as display:
        prepare_data(dataset, display)
        display.stage("measure", 3, "parts")
        times: dict[str, Any] = measure.model_times(job, dataset, size)
        display.advance("models")
        costs = measure.weighing_costs({"agre_kd", *size.strategies})
        display.advance("weighing")
        session = closing(RaySession(None, 2, display.note))
        with session, measure.calibration() as between:
            costs |= between(Costs.model_validate(costs), size.part)
        display.advance("actors")
    return {**times, "costs": costs}


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, where later ones count."""
    return dict(OmegaConf.to_container(OmegaConf.merge(*map(dict, parts))))  # type: ignore[arg-type]


def _checked(source: str, model: type[SETTINGS], values: Mapping[str, Any]) -> SETTINGS:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise JobError(source, faults_of(error, model)) from None


def advise(now: Forecast, size: JobSize, most: int = MOST) -> list[tuple[str, Forecast]]:
    """The changes that help most and what each would bring; those of the job before new machines.

    Args:
        now: the forecast as things are.
        size: of the job, with what it leaves open.
        most: changes that are given, at most.
    """
    tried: list[tuple[float, str, Forecast]] = []
    for change, other_size, machines, times in _changes(now, size):
        after = forecast(other_size, machines, times)
        if now.shortage is None and after.shortage is not None:
            continue
        whole, step = after.seconds / now.seconds, after.ms / now.ms
        recorded = 1.0
        if now.recording_seconds and after.recording_seconds:
            recorded = after.recording_seconds / now.recording_seconds
        # What only makes a step or the recording faster must not make the other slower.
        in_part = min(step, recorded) < WORTH and max(step, recorded) <= 1.01
        if whole < WORTH or (whole <= 1.01 and in_part):
            tried.append((whole + step + recorded, change, after))
    return [(change, after) for _, change, after in sorted(tried, key=lambda one: one[0])[:most]]


def _changes(now: Forecast, size: JobSize) -> Iterator[tuple[str, JobSize, Machines, Times]]:
    """Every change that a person can make, in words, and what a forecast is then made of."""
    machines, times = now.machines, now.times
    hosted, workers = size.backbones_per_actor, size.workers
    more, fewer = min(2 * hosted, size.backbones), max(1, min(hosted, size.backbones) // 2)

    def of_job(words: str, **changes: Any) -> tuple[str, JobSize, Machines, Times]:
        return words, replace(size, **changes), machines, times

    if size.look_ahead == 0:
        yield of_job("fleet.look_ahead=2", look_ahead=2)
    if not size.records:
        views = min(size.views, size.epochs)
        yield of_job("guidance=auto: record once, then replay", records=True, views=views)
    if now.size.weighting_actors == 1 and size.may_shard:
        words = f"fleet.weighting_actors={workers}: one for each of the student's workers"
        yield of_job(words, weighting_actors=workers)
    if size.actors > 1:
        yield of_job(f"fleet.backbones_per_actor={more}: fewer actors", backbones_per_actor=more)
    if hosted > 1:
        yield of_job(f"fleet.backbones_per_actor={fewer}: more actors", backbones_per_actor=fewer)
    if size.concurrent < size.fullest and times.forward_busy < 1:
        yield of_job(f"fleet.concurrent={size.fullest}", concurrent=size.fullest)
    if size.dtype == "float32" and size.top_k is None and size.records:
        yield of_job("outputs.dtype=int8: a quarter of the disk", dtype="int8")
    half_step = times.model_copy(update={"step_ms": times.step_ms / 2})
    if size.part % 2 == 0:
        words = f"student.workers={2 * workers}, if half of the samples take half the time"
        yield words, replace(size, workers=2 * workers), machines, half_step
    twice = {
        "nodes": f"{2 * machines.nodes} nodes instead of {machines.nodes}",
        "gpus": f"{2 * machines.gpus} GPUs a node" if machines.gpus else "",
        "cpus": f"{2 * machines.cpus} cores a node",
        "gbit": f"a network of {2 * machines.gbit:g} Gbit/s" if machines.nodes > 1 else "",
        "disk_mb": "a disk twice as fast",
    }
    for key, words in twice.items():
        if words:
            doubled = machines.model_copy(update={key: 2 * getattr(machines, key)})
            yield words, size, doubled, times
    faster = times.model_copy(update={"forward_ms": times.forward_ms / 2})
    words = "teachers twice as fast (a faster device, fleet.precision=bfloat16)"
    yield words, size, machines, faster
    yield "a student's step twice as fast (device, precision)", size, machines, half_step


def _idle_gpus(job: Job, expected: Forecast) -> str:
    """What a job leaves of the GPUs, with the key that would use it; empty where nothing is.

    The machines have all labels and resources that the job asks for.
    """
    size, machines = expected.size, expected.machines
    anywhere: dict[str, Any] = {"labels": {}, "resources": {}}
    blocks = {name: getattr(job, name).model_copy(update=anywhere) for name in ("student", "fleet")}
    busy = workers_wanted(size) * expected.groups + actors_wanted(size, machines, expected.groups)
    job, nodes = job.model_copy(update=blocks), machines.as_nodes(machines.nodes)
    given = numbered(job, nodes, student=size.student_gpus, fleet=size.actor_gpus)
    return what_stays_idle(job, given, nodes, busy, "student", "fleet")
