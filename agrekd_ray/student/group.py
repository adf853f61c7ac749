"""The Ray Train shell: one worker group trains a job's students, one after another.

Starting a group costs seconds, so it is started once a job. Every epoch ends in a state that the
first worker writes; after any loss (a worker, the group, the driver) the group goes on with the
student and the epoch where it was. The state is a file of ours, the same as without Ray, and not a
reported checkpoint: Train takes one report each time its controller looks, which would hold up
students whose epochs are shorter than that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.config import LoggingConfig
from torch import Tensor

from agrekd_ray.channel import plain_error
from agrekd_ray.data import Dataset, Samples
from agrekd_ray.errors import AgrekdError, RunError
from agrekd_ray.events import Failed, Note, Post, StudentDone, StudentEpoch
from agrekd_ray.files import exists
from agrekd_ray.guidance import Source
from agrekd_ray.guidance.home import DIED
from agrekd_ray.guidance.nodes import DriverData
from agrekd_ray.meters import StudentMeter
from agrekd_ray.student.room import GroupTrainer, give_back, held
from agrekd_ray.student.student import STATE, Assignment, Student, StudentSettings, read_outcome

GIVEN_UP, ROOM = "given-up", "placement-group"
MAX_FAILURES = 8
"""Restarts of the worker group before a run gives up."""
MAX_CONTROLLERS = 4
"""Controllers of Ray Train that may die before a run gives up."""


@dataclass(frozen=True)
class Schoolwork:
    """What every worker is told.

    Attributes:
        assignments: the students, in order.
        data: settings of the data set, which every worker opens itself.
        source: opens in a worker where answers come from; None where no student has teachers.
        students: folder of finished students, reachable from every worker.
        training: folder of the state of the student under way, reachable from every worker.
        post: tells the driver.
        look_ahead: coming batches that the teachers are told of.
    """

    assignments: tuple[Assignment, ...]
    data: DriverData
    source: Callable[[Samples], Source] | None
    students: Path
    training: Path
    post: Post
    look_ahead: int


def train_group(work: Schoolwork, settings: StudentSettings) -> None:
    """Train all students that are not finished yet; returns when all are.

    The same call again, by another driver too, goes on where the last one was stopped.

    Args:
        work: what to do.
        settings: workers and their resources.

    Raises:
        AgrekdError: what a worker raised, or the group failed over and over.
    """
    work.training.mkdir(parents=True, exist_ok=True)
    (work.training / GIVEN_UP).unlink(missing_ok=True)
    what = "training the students"
    for attempt in range(1, MAX_CONTROLLERS + 1):
        try:
            _fit(work, settings)
        except (ray.train.TrainingFailedError, RayError) as error:
            failures: Sequence[Any] = list(getattr(error, "worker_failures", {}).values())
            fault = failures[0] if failures else getattr(error, "controller_failure", error)
            reason = plain_error(fault, what)
            if failures or not isinstance(fault, DIED) or attempt == MAX_CONTROLLERS:
                raise reason from None
            # Train's controller has died, or somebody without whom it gives up: where memory is
            # short, for instance. Nobody else starts it again, or ends its workers.
            with contextlib.suppress(FileNotFoundError):
                give_back((work.training / ROOM).read_text(encoding="utf-8"))
            work.post(Note(f"{reason} It goes on with the last epoch that was finished."))
        else:
            break
    missing = [a.name for a in work.assignments if read_outcome(work.students / a.name) is None]
    if missing:
        raise RunError(f"{len(missing)} students are not finished, the first is {missing[0]}.")


def _fit(work: Schoolwork, settings: StudentSettings) -> None:
    GroupTrainer(
        _work,
        train_loop_config={"work": work},
        scaling_config=scaling(settings),
        run_config=RunConfig(
            name="train",
            storage_path=str(work.training),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    ).fit()


def scaling(settings: StudentSettings) -> ScalingConfig:
    """Workers of a student, for Ray Train: kept together, where there is room."""
    return ScalingConfig(
        num_workers=settings.workers,
        use_gpu=settings.takes["GPU"] > 0,
        resources_per_worker=settings.takes,
        placement_strategy="PACK",
        label_selector=dict(settings.labels) or None,
    )


def _work(config: dict[str, Any]) -> None:
    work: Schoolwork = config["work"]
    context = ray.train.get_context()
    given_up = work.training / GIVEN_UP
    if given_up.exists():
        return
    if context.get_world_rank() == 0 and (group := held()) is not None:
        with contextlib.suppress(OSError):  # a full disk is said where it costs something
            (work.training / ROOM).write_text(group, encoding="utf-8")
    try:
        dataset = work.data.open()
        source = work.source(dataset) if work.source else None
        for assignment in work.assignments:
            if read_outcome(work.students / assignment.name) is None:
                _train_one(work, assignment, dataset, source)
    except AgrekdError as error:
        # A fault that a restart would only repeat. A lone worker says so and ends in peace; one of
        # several must also free those who wait for it, and tell the restarted group to end.
        work.post(Failed(str(error)))
        if context.get_world_size() > 1:
            with contextlib.suppress(OSError):  # on a full disk, those who wait time out
                given_up.touch()
            raise


def _train_one(
    work: Schoolwork, assignment: Assignment, dataset: Dataset, source: Source | None
) -> None:
    student = worker_student(assignment, dataset, source, work.look_ahead)
    state = work.training / STATE
    if exists(state):
        student.load_state(state)
    meter = StudentMeter(assignment.name)
    while not student.done:
        record = student.epoch()
        if record is not None:
            meter.observe(record)
            student.save_state(state)
            work.post(StudentEpoch(assignment.name, assignment.training.epochs, record))
    context = ray.train.get_context()
    if context.get_world_rank() == 0:
        for outcome in student.finish(work.students):
            work.post(StudentDone(outcome))
    if context.get_world_size() > 1:
        dist.barrier()  # nobody goes on before the student is saved


def worker_student(
    assignment: Assignment,
    dataset: Dataset,
    source: Source | None,
    look_ahead: int,
    judge: Callable[[Tensor], dict[str, float]] | None = None,
) -> Student:
    """This worker's part of a student; called in every worker of a group.

    Args:
        assignment: what to do.
        dataset: opened here.
        source: opened here.
        look_ahead: coming batches that the teachers are told of.
        judge: see `Student`.
    """
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    device = ray.train.torch.get_device()

    def total(tensor: Tensor) -> Tensor:
        if world > 1:
            summed = tensor.to(device, copy=True)
            dist.all_reduce(summed)
            return summed.to(tensor.device)
        return tensor

    return Student(
        assignment,
        dataset,
        source,
        device=device,
        rank=rank,
        world=world,
        wrap=lambda model: ray.train.torch.prepare_model(model, move_to_device=False),
        total=total,
        look_ahead=look_ahead,
        judge=judge,
    )
