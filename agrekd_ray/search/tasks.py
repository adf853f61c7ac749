"""Tests of trials as Ray tasks, where the process that trained them has died before its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from agrekd_ray.cluster.nodes import DriverData
from agrekd_ray.cluster.placement import ResourceRequest
from agrekd_ray.config.search import Planned
from agrekd_ray.config.space import Setting
from agrekd_ray.experiment.teacher_tasks import Task, run_tasks, task_device
from agrekd_ray.results import Metrics
from agrekd_ray.results.search import TrialResult
from agrekd_ray.search.trial import last_state, test_metrics


def test_all(
    planned: Planned,
    trials: Mapping[str, TrialResult],
    states: Path,
    data: DriverData,
    room: ResourceRequest,
    take: Callable[[str, Metrics], None],
) -> None:
    """Test the students that trials saved last, as many trials at a time as there is room for.

    Args:
        planned: the search.
        trials: by Tune's id; each has saved a state.
        states: folder of the trials' states.
        data: of the search.
        room: that a trial, or a worker of one, takes.
        take: gets the id of each and how good it is.

    Raises:
        AgrekdError: what a task raised, or its process died over and over.
    """
    tasks = {}
    for trial_id, trial in trials.items():
        arguments = (planned, trial.setting, last_state(states / trial_id), data)
        tasks[trial_id] = Task(room, arguments, f"testing {trial.name}")
    run_tasks(_test, tasks, take)


def _test(planned: Planned, setting: Setting, state: Path, data: DriverData) -> Metrics:
    device = task_device()
    return test_metrics(planned, setting, state, data.open(), device)
