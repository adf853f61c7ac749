"""`agrekd plan`: gathers what is given and measured, forecasts, shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from rich.console import Console

from agrekd_ray.config import Fault, Job, JobError, faults_of, read_job
from agrekd_ray.data import Dataset
from agrekd_ray.errors import RunError
from agrekd_ray.planning.advice import advise
from agrekd_ray.planning.forecast import forecast
from agrekd_ray.planning.report import as_json, render
from agrekd_ray.planning.settings import Costs, Machines, Times, merged, missing_times
from agrekd_ray.planning.setup import Setup, read_setup
from agrekd_ray.run.display import Display, prepare_data
from agrekd_ray.run.environment import prepare
from agrekd_ray.settings import Settings

SETTINGS = TypeVar("SETTINGS", bound=Settings)


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
        machines: values of `Machines`; None is not given.
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
    there = _checked("agrekd plan", Machines, _given(machines))
    options = _given(times)
    told = read_job(times_file, what="file of times") if times_file is not None else {}
    _checked(str(times_file), Times, merged({"forward_ms": 1, "step_ms": 1}, told))
    _checked("agrekd plan", Times, merged({"forward_ms": 1, "step_ms": 1}, options))
    job, dataset, setup = read_setup(path, overrides, classes, samples)
    if weighting_actors not in (None, 1) and (
        weighting_actors != setup.workers or not setup.may_shard
    ):
        allowed = f"1 or {setup.workers}, one a worker" if setup.may_shard else "1"
        why = "" if setup.may_shard else " (one worker, or a strategy that sees the whole batch)"
        problem = f"must be {allowed}{why}"
        fault = Fault("--weighting-actors", str(weighting_actors), problem)
        raise JobError("agrekd plan", [fault])
    measured = _measured(job, dataset, setup, console) if measure else {}
    values = merged(measured, told, options)
    missing_times(str(path), values)
    taken = _checked("agrekd plan", Times, values)
    found = forecast(setup, there, taken, weighting_actors)
    advice = advise(found, setup, there, taken, weighting_actors)
    render(job.name, found, advice, there, console)
    if job.is_study:
        console.print("The job is a study; this is one of its points, as the job itself says.")
    if json_file is not None:
        content = as_json(job.name, found, advice, there, taken)
        try:
            json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunError(f"{json_file}: cannot be written ({error.strerror}).") from None


def _measured(job: Job, dataset: Dataset | None, setup: Setup, console: Console) -> dict[str, Any]:
    """Times of the job's models, weighing and actors here."""
    if dataset is None:
        raise RunError("the job's data are not here, so that nothing can be measured with them.")
    prepare(starts_cluster=True)
    from agrekd_ray.planning.calibration import (
        Calibration,
    )  # imports Ray, which reads the environment
    from agrekd_ray.planning.measure import model_times, weighing_costs
    from agrekd_ray.run.session import RaySession

    with Display(console) as display:
        prepare_data(dataset, display)
        display.stage("measure", 3, "parts")
        found: dict[str, Any] = model_times(job, dataset, setup)
        display.advance("models")
        costs = weighing_costs(tuple(dict.fromkeys(("agre_kd", *setup.strategies))))
        display.advance("weighing")
        session = RaySession(None, 2, display.note)
        try:
            with Calibration() as calibration:
                costs |= calibration.costs(Costs.model_validate(costs), setup.part)
        finally:
            session.close()
        display.advance("actors")
    return {**found, "costs": costs}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _checked(source: str, model: type[SETTINGS], values: Mapping[str, Any]) -> SETTINGS:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise JobError(source, faults_of(error, model)) from None
