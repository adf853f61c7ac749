"""Models of the pool as Ray tasks, side by side: made, and asked when they are finished."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray.exceptions import RayError

from agrekd_ray.cluster.channel import plain_error
from agrekd_ray.cluster.events import Began, Emit
from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.cluster.nodes import DriverData, device_here
from agrekd_ray.cluster.placement import ResourceRequest
from agrekd_ray.experiment.engine import make_family
from agrekd_ray.fleet.actors import host_here
from agrekd_ray.logits import OutputSettings
from agrekd_ray.results import TeacherCost
from agrekd_ray.teachers.answers import Asked, Take, answers
from agrekd_ray.teachers.pool import Pool, Recipe

RETRIES = 3
"""Of a task whose process dies."""
Key = TypeVar("Key")


def ask_all(
    asked: Mapping[Asked, ResourceRequest], data: DriverData, take: Take, emit: Emit
) -> None:
    """Ask finished models, as many at a time as the cluster has room for.

    A task whose process dies is tried again.

    Args:
        asked: them, and the room that each takes.
        data: whose splits they are asked about.
        take: gets what each says, in the order in which they finish.
        emit: tells the driver.

    Raises:
        AgrekdError: what a task raised.
        RunError: a task's process died over and over.
    """
    tasks = {}
    for model, room in asked.items():
        absolute = replace(model, folder=model.folder.resolve())
        tasks[model] = Task(room, (absolute, data, emit), f"evaluating {model.name}")

    def done(model: Asked, logits: dict[str, np.ndarray]) -> None:
        take(model, {split: torch.from_numpy(np.array(l_NC)) for split, l_NC in logits.items()})

    run_tasks(_ask, tasks, done)


def make(family: Sequence[Recipe], store: Path, data: DriverData, emit: Emit) -> None:
    """Make one family of models in this process; what is finished stays in the store.

    Args:
        family: see `Pool.make`.
        store: folder of the pool.
        data: that they are trained on.
        emit: tells the driver.
    """
    device = _begun(emit)
    make_family(Pool(store, data.open()), family, device, emit)


def _ask(asked: Asked, data: DriverData, emit: Emit) -> dict[str, np.ndarray]:
    """Ask one model in this process."""
    device = _begun(emit)
    said = answers(asked, data.open(), device)
    return {split: logits_NC.numpy() for split, logits_NC in said.items()}


def record(
    checkpoints: Mapping[str, Path],
    data: DriverData,
    fleet: FleetSettings,
    outputs: OutputSettings,
    views: Sequence[int],
    emit: Emit,
) -> TeacherCost:
    """Record what teachers say to whole views in this process; rows that are there are kept.

    Args:
        checkpoints: absolute folders by teacher's name.
        data: whose training split is shown.
        fleet: how the teachers compute.
        outputs: where they are recorded, on this node.
        views: their numbers.
        emit: tells the driver.
    """
    host = host_here(checkpoints, data, fleet, _begun(emit), outputs)
    for view in views:
        host.complete(view)
    return TeacherCost(1, host.forwards, seconds=host.seconds, spans=host.spans)


def _begun(emit: Emit) -> str:
    """The device of this process, which has its room now."""
    emit(Began())
    return task_device()


def task_device() -> str:
    """The device of a task, a GPU where Ray gave it one; sets its threads too.

    Raises:
        RunError: PyTorch cannot use the GPU.
    """
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    return device_here()


@dataclass(frozen=True)
class Task:
    """A call of a function in a process of its own.

    Attributes:
        room: that it takes.
        arguments: of the function.
        what: it does, in words.
    """

    room: ResourceRequest
    arguments: tuple[Any, ...]
    what: str


def run_tasks(
    function: Callable[..., Any],
    tasks: Mapping[Key, Task],
    done: Callable[[Key, Any], None] = lambda key, result: None,
) -> None:
    """Run Ray tasks, as many at a time as the cluster has room for; all stop where one fails.

    Args:
        function: that each calls; called again where its process dies.
        tasks: by any key.
        done: gets a key and what its task returned, in the order in which they finish.

    Raises:
        AgrekdError: what a task raised, or its process died over and over.
    """
    keys = {}
    for key, task in tasks.items():
        resources = dict(task.room.resources)
        remote = ray.remote(function).options(
            num_cpus=resources.pop("CPU", 0),
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            label_selector=dict(task.room.labels) or None,
            max_retries=RETRIES,
        )
        keys[remote.remote(*task.arguments)] = key
    pending = list(keys)
    try:
        while pending:
            (finished, *_), pending = ray.wait(pending)
            try:
                result = ray.get(finished)
            except RayError as error:
                raise plain_error(error, tasks[keys[finished]].what) from None
            done(keys[finished], result)
    finally:
        for task_left in pending:
            ray.cancel(task_left, force=True)
