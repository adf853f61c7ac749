"""What a search costs: trials taught from records against trials on labels, in the same harness."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune import CheckpointConfig, RunConfig, TuneConfig, Tuner

from agrekd_ray.bench.harness import PREFIX, in_turn
from agrekd_ray.bench.ways import Ways
from agrekd_ray.bench.workloads import Cell, workloads
from agrekd_ray.capacity.measure import CPU
from agrekd_ray.cluster.nodes import DriverData
from agrekd_ray.config import Job
from agrekd_ray.config.search import Planned, Search
from agrekd_ray.data import SELECT, open_dataset
from agrekd_ray.data.views import Views
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.search.trainable import SETTING, TrialActor
from agrekd_ray.search.trial import Shared

TRIALS, EPOCHS, TEACHERS = 16, 10, 10


def measure_search(repeats: int, display: Display) -> dict[str, Any]:
    """Seconds of sixteen trials on labels, and of sixteen taught by ten recorded teachers.

    Args:
        repeats: of both, in turn; one more, not counted, warms up.
        display: the progress line.
    """
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    display.stage("search", 2 * (repeats + 1), "searches")
    taught = {"strategy": "agre_kd"}
    hotter = [{**taught, "distillation.temperature": 1.0 + number} for number in range(TRIALS)]
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        shared = _shared(Path(folder))
        works = {
            Cell("plain"): partial(_searched, shared, [{"strategy": "one_hot"}] * TRIALS),
            Cell("search", TEACHERS): partial(_searched, shared, hotter),
        }
        cells = in_turn(works, repeats, display, CPU)
    about = {"trials": TRIALS, "epochs": EPOCHS, "teachers": TEACHERS}
    return {"workload": "search", **about, "cells": cells}


def _shared(place: Path) -> Shared:
    """A search for students of the workload `small`, whose teachers have answered."""
    small = replace(workloads(quick=True)["small"], views=Views())
    ways = Ways(small, place, 0)
    folders = [str(folder) for folder in ways.checkpoints.values()][:TEACHERS]
    training = {"epochs": EPOCHS, "batch_size": small.batch_size, "learning_rate": 0.01}
    values = {
        "name": "bench",
        "data": ways.data.model_dump(mode="json"),
        "teachers": {"count": 1, "model": small.teacher.model_dump(), "training": training},
        "ensemble": {"size": 0, "checkpoints": folders, "biased": folders[0]},
        "student": {"model": small.student.model_dump(), "training": training},
        "methods": ["agre_kd"],
    }
    job = Job.model_validate(values)
    search = {"name": "bench", "job": "-", "space": {"strategy": {"choice": ["agre_kd"]}}}
    count = len(open_dataset(ways.data).splits[SELECT])
    answers_N = np.zeros(count, dtype=np.int64)  # scored alike by both
    return Shared(
        Planned(Search.model_validate(search), job.model_dump(mode="json")),
        DriverData.of(ways.data),
        ways.random_records(make_plan(job).draw.own),
        answers_N,
        answers_N,
        lambda event: None,
        place / "trials",
        place / "states",
        place / "groups",
    )


def _searched(shared: Shared, settings: list[dict[str, Any]]) -> int:
    """Run a trial of each setting; the number of trials."""
    cpus = {"CPU": shared.planned.base.student.cpus}
    tuner = Tuner(
        tune.with_resources(tune.with_parameters(TrialActor, shared=shared), cpus),
        param_space={SETTING: tune.grid_search(settings)},
        tune_config=TuneConfig(reuse_actors=True),
        run_config=RunConfig(
            name="trials",
            storage_path=tempfile.mkdtemp(dir=shared.trials.parent),
            checkpoint_config=CheckpointConfig(checkpoint_frequency=1),
            verbose=0,
        ),
    )
    if errors := tuner.fit().errors:
        raise RunError(f"the benchmark's search failed: {errors[0]}")
    return len(settings)
