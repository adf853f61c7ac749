"""The workload `plan`: what `agrekd plan` forecasts for live steps, and what they take.

Teachers of a set delay, M = 1 … 32, in fleets of several shapes. What the forecast is made from is
measured apart from the steps that are forecast: a student's step on labels alone, the reading of a
batch, weighing, and requests to a fleet of another shape. The teachers' delay is given.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agrekd_ray.bench.ways import measure
from agrekd_ray.bench.workloads import Workload, of_delay
from agrekd_ray.capacity.costs import Costs, Times
from agrekd_ray.capacity.forecast import forecast
from agrekd_ray.capacity.measure import (
    STRATEGY,
    calibration,
    forward_times,
    reading_ms,
    weighing_costs,
)
from agrekd_ray.capacity.placing import Machines
from agrekd_ray.capacity.size import NAME, JobSize
from agrekd_ray.data import TRAIN, open_dataset
from agrekd_ray.experiment.display import Display

SHAPES = ((50, 8, 2), (5, 8, 2), (5, 4, 0))
"""Fleets: the teachers' delay in ms, backbones of an actor at most, batches of look-ahead."""
COUNTS = (1, 2, 4, 8, 16, 32)


def fleet_workload(delay: int, hosted: int, ahead: int, quick: bool) -> Workload:
    """The live cells of one shape of fleet, and the student alone."""
    name = f"plan: {delay} ms, {hosted} an actor, look-ahead {ahead}"
    teachers = tuple(count for count in COUNTS if count <= 8 or not quick)
    return of_delay(name, (delay, hosted, ahead), teachers, quick)


def measure_plan(repeats: int, quick: bool, display: Display) -> dict[str, Any]:
    """Forecast and measure every cell of the grid; needs a Ray session.

    Args:
        repeats: epochs of each cell that count.
        quick: fewer teachers, shorter epochs.
        display: the progress line.
    """
    fleets = []
    with calibration() as between:
        for shape in SHAPES:
            workload = fleet_workload(*shape, quick)
            before = calibrated(workload, between)
            figures = measure([workload], repeats, display)
            # Before and after, so that both see the same machine.
            around = _mean(before, calibrated(workload, between))
            about = zip(("delay_ms", "backbones_per_actor", "look_ahead"), shape, strict=True)
            fleets.append({**dict(about), **_compared(workload, around, figures)})
    return {"workload": "plan", "fleets": fleets}


def _mean(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Means of two calibrations, number by number."""
    return {
        key: _mean(value, other[key]) if isinstance(value, dict) else (value + other[key]) / 2
        for key, value in one.items()
    }


def calibrated(
    workload: Workload, between: Callable[[Costs, int], dict[str, float]]
) -> dict[str, Any]:
    """What a forecast is made from, but for the student's step; taken here and now."""
    dataset = open_dataset(workload.data(Path()))
    ids = dataset.splits[TRAIN][: workload.batch_size]
    costs = weighing_costs((STRATEGY,))
    costs |= between(Costs.model_validate(costs), workload.batch_size)
    return {
        "forward_ms": workload.teacher.args["milliseconds"],
        "forward_busy": forward_times(workload.teacher, dataset, ids)[1],
        "inputs_ms": reading_ms(dataset, ids),
        "costs": costs,
    }


def size_of(workload: Workload, teachers: int) -> JobSize:
    """A cell as the planner sees it; its teachers are spread over the actors that there are."""
    actors = -(-max(workload.counts("live")) // workload.fleet.backbones_per_actor)
    return JobSize(
        strategies=(STRATEGY,),
        plain=0,
        members=teachers,
        name_bytes=sum(len(f"teacher-{number}") + NAME for number in range(teachers)),
        teachers=teachers,
        hosted=teachers,
        backbones=teachers,
        batch=workload.batch_size,
        workers=1,
        classes=workload.classes,
        samples=workload.samples,
        evaluated=0,
        epochs=1,
        views=1,
        look_ahead=workload.fleet.look_ahead,
        backbones_per_actor=-(-teachers // min(teachers, actors)),
        concurrent=workload.fleet.concurrent,
        records=False,
    )


def _compared(
    workload: Workload, calibration: dict[str, Any], figures: dict[str, Any]
) -> dict[str, Any]:
    """The live cells, each forecast from the calibration and as measured, and the calibration."""
    alone, *live = (
        (cell["teachers"], 1e3 * statistics.median(cell["seconds"]) / workload.steps)
        for cell in figures["cells"]
    )
    times = Times.model_validate({**calibration, "step_ms": alone[1]})
    machines = Machines(cpus=os.cpu_count() or 1)
    cells = []
    for teachers, measured in live:
        size = size_of(workload, teachers)
        expected = forecast(size, machines, times)
        cells.append(
            {
                "teachers": teachers,
                "actors": size.actors,
                "forecast_ms": expected.ms,
                "measured_ms": measured,
                "error": expected.ms / measured - 1,
                "bottleneck": expected.step["bottleneck"],
            }
        )
    return {"times": times.model_dump(), "cells": cells}
