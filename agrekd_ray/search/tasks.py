"""Tests of trials as Ray tasks, where the process that trained them has died before its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from agrekd_ray.cluster.nodes import DriverData
from agrekd_ray.cluster.placement import ResourceRequest
from agrekd_ray.config.search import Planned
from agrekd_ray.config.space import Setting
from agrekd_ray.experiment.teacher_tasks import each, placed, task_device
from agrekd_ray.results import Metrics
from agrekd_ray.search.trial import test_metrics


@dataclass(frozen=True)
class Untested:
    """A trial that has left students and no word of how good they are on the test split.

    Attributes:
        name: of the trial.
        setting: of the trial.
        state: what it saved last.
    """

    name: str
    setting: Setting
    state: Path


def test_all(
    planned: Planned,
    trials: Mapping[str, Untested],
    data: DriverData,
    room: ResourceRequest,
    take: Callable[[str, Metrics], None],
) -> None:
    """Test trials, as many at a time as the cluster has room for.

    Args:
        planned: the search.
        trials: by Tune's id.
        data: of the search.
        room: that a trial, or a worker of one, takes.
        take: gets the id of each and how good it is.

    Raises:
        AgrekdError: what a task raised, or its process died over and over.
    """
    task = ray.remote(_test).options(**placed(room))
    ids = {
        task.remote(planned, one.setting, one.state, data): trial_id
        for trial_id, one in trials.items()
    }

    def done(finished: Any, test: Metrics) -> None:
        take(ids[finished], test)

    each({t: f"testing {trials[trial_id].name}" for t, trial_id in ids.items()}, done)


def _test(planned: Planned, setting: Setting, state: Path, data: DriverData) -> Metrics:
    device = task_device()
    return test_metrics(planned, setting, state, data.open(), device)
