"""What a search costs: trials taught from records against trials on labels, in the same harness."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune import CheckpointConfig, RunConfig, TuneConfig, Tuner

from agrekd_ray.bench.harness import PREFIX, random_records
from agrekd_ray.bench.workloads import SEARCH, workloads
from agrekd_ray.capacity.measure import make_teachers
from agrekd_ray.cluster.nodes import DriverData
from agrekd_ray.config import Job
from agrekd_ray.config.search import Planned, Search
from agrekd_ray.data import SELECT, Dataset, open_dataset
from agrekd_ray.data.views import Views
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.search.trainable import SETTING, TrialActor
from agrekd_ray.search.trial import Shared

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
        The figures, in the form of `measure_steps`'s.
    """
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    display.stage(SEARCH, len(WAYS) * (repeats + 1), "searches")
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        place = Path(folder)
        shared = _shared(place)
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


def _shared(place: Path) -> Shared:
    """A search for students of the workload `small`, whose teachers have answered."""
    small = workloads(quick=True)["small"]
    data = small.data(place / "data").model_copy(update={"views": Views()})
    dataset: Dataset = open_dataset(data)
    teachers = make_teachers(place / "teachers", dataset, small.teacher, TEACHERS, small.backbones)
    folders = [str(folder) for folder in teachers.values()]
    training = {"epochs": EPOCHS, "batch_size": small.batch_size, "learning_rate": 0.01}
    values = {
        "name": "bench",
        "data": data.model_dump(mode="json"),
        "teachers": {"count": 1, "model": small.teacher.model_dump(), "training": training},
        "ensemble": {"size": 0, "checkpoints": folders, "biased": folders[0]},
        "student": {"model": small.student.model_dump(), "training": training},
        "methods": ["agre_kd"],
    }
    job = Job.model_validate(values)
    search = {"name": "bench", "job": "-", "space": {"strategy": {"choice": ["agre_kd"]}}}
    answers_N = np.zeros(len(dataset.splits[SELECT]), dtype=np.int64)  # scored alike by both
    return Shared(
        Planned(Search.model_validate(search), job.model_dump(mode="json")),
        DriverData.of(data),
        random_records(place / "outputs", make_plan(job).draw.own, dataset, views=1),
        answers_N,
        answers_N,
        lambda event: None,
        place / "trials",
        place / "states",
        place / "groups",
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
