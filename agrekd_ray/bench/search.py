"""What a search costs: trials taught from records against trials on labels, in the same harness."""

from __future__ import annotations

import io
import logging
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune import CheckpointConfig, RunConfig, TuneConfig, Tuner

from agrekd_ray.bench.harness import PREFIX
from agrekd_ray.bench.workloads import SEARCH, workloads
from agrekd_ray.cluster.nodes import DriverData
from agrekd_ray.config import Job
from agrekd_ray.config.search import Planned, Search
from agrekd_ray.data import SELECT, open_dataset
from agrekd_ray.distillation import Replay
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.experiment.ray_engine import RayEngine
from agrekd_ray.experiment.work import Work
from agrekd_ray.search.trainable import SETTING, TrialActor
from agrekd_ray.search.trial import Shared
from agrekd_ray.terminal import screen

TRIALS, EPOCHS, TEACHERS = 16, 10, 10
WAYS: dict[str, list[dict[str, Any]]] = {
    "plain": [{"strategy": "one_hot"}] * TRIALS,
    "search": [
        {"strategy": "agre_kd", "distillation.temperature": 1.0 + number}
        for number in range(TRIALS)
    ],
}


def measure_search(repeats: int, display: Display) -> dict[str, Any]:
    """Seconds of sixteen trials on labels, and of sixteen taught by ten recorded teachers.

    Args:
        repeats: of both, in turn; one more, not counted, warms up.
        display: the progress line.

    Returns:
        The figures, in the form of `measure`'s.
    """
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    display.stage(SEARCH, len(WAYS) * (repeats + 1), "searches")
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        place = Path(folder)
        job = _job(place)
        with closing(RayEngine(job, lambda event: None)) as engine:
            shared = _shared(job, engine, place)
            for repeat in range(repeats + 1):
                for way, settings in WAYS.items():
                    seconds[way].append(_seconds(shared, settings, place / f"{way}-{repeat}"))
                    display.advance(way)
    return {
        "workload": SEARCH,
        "trials": TRIALS,
        "epochs": EPOCHS,
        "teachers": TEACHERS,
        "cells": [{"way": way, "seconds": taken[1:]} for way, taken in seconds.items()],
    }


def _job(place: Path) -> Job:
    small = workloads(quick=True)["small"]
    data = small.data(place / "data")
    checkpoints = small.make_teachers(place / "teachers", data)
    folders = [str(folder) for folder in checkpoints.values()][:TEACHERS]
    training = {"epochs": EPOCHS, "batch_size": small.batch_size, "learning_rate": 0.01}
    return Job.model_validate(
        {
            "name": "bench",
            "data": data.model_dump() | {"views": {}},
            "teachers": {
                "count": 1,
                "model": small.teacher.model_dump(),
                "training": training,
                "store": place / "pool",
            },
            "ensemble": {"size": 0, "checkpoints": folders, "biased": folders[0]},
            "student": {"model": small.student.model_dump(), "training": training},
            "methods": ["agre_kd"],
            "outputs": {"store": place / "outputs"},
            "fleet": small.fleet.model_dump(),
            "runs": place / "runs",
        }
    )


def _shared(job: Job, engine: RayEngine, place: Path) -> Shared:
    samples, work = open_dataset(job.data), Work.of(job, make_plan(job), place)
    with Display(screen(file=io.StringIO())) as silent:
        work.make_teachers(engine, silent)
        work.record(engine, silent, [0])
    search = {"name": "bench", "job": "-", "space": {"strategy": {"choice": ["agre_kd"]}}}
    planned = Planned(Search.model_validate(search), job.model_dump(mode="json"))
    answers_N = np.zeros(len(samples.splits[SELECT]), dtype=np.int64)  # scored alike by both
    source = Replay(job.outputs, work.checkpoints, job.fleet.computes_in, None)
    folders = (place / "trials", place / "states", place / "groups")
    return Shared(
        planned, DriverData.of(job.data), source, answers_N, answers_N, engine.emit, *folders
    )


def _seconds(shared: Shared, settings: list[dict[str, Any]], place: Path) -> float:
    student = shared.planned.base.student
    tuner = Tuner(
        tune.with_resources(tune.with_parameters(TrialActor, shared=shared), {"CPU": student.cpus}),
        param_space={SETTING: tune.grid_search(settings)},
        tune_config=TuneConfig(reuse_actors=True),
        run_config=RunConfig(
            name="trials",
            storage_path=str(place),
            checkpoint_config=CheckpointConfig(checkpoint_frequency=1),
            verbose=0,
        ),
    )
    began = time.perf_counter()
    grid = tuner.fit()
    took = time.perf_counter() - began
    if grid.errors:
        raise RunError(f"the benchmark's search failed: {grid.errors[0]}")
    return took
