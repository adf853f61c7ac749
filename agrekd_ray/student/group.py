"""The Ray Train shell: worker groups that train a job's models, each one after another.

Starting a group costs seconds, so the first takes models until there are none, and further ones
are started beside it where there is room for them and work to fill them. Every epoch ends in a
state that the first worker writes, and a long one has others; after any loss (a worker, the group,
the driver) a group goes on with the model and the state where it was. The state is a file of
ours, the same as without Ray, and not a reported checkpoint: Train takes one report each time its
controller looks, which would hold up students whose epochs are shorter than that.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.config import LoggingConfig

from agrekd_ray import collectives
from agrekd_ray.cluster.channel import plain_error
from agrekd_ray.cluster.events import Awaited, Emit, Notice, StudentDone, StudentEpoch
from agrekd_ray.cluster.meters import StudentMeter
from agrekd_ray.cluster.nodes import DriverData
from agrekd_ray.data import Dataset, Samples
from agrekd_ray.distillation import Source
from agrekd_ray.errors import AgrekdError, RunError
from agrekd_ray.files import exists
from agrekd_ray.fleet.replicas import DIED
from agrekd_ray.results import Epoch
from agrekd_ray.student.faults import worker_failure, worker_faults
from agrekd_ray.student.parallel import data_parallel
from agrekd_ray.student.room import GroupTrainer, device_of_worker, give_back, held
from agrekd_ray.student.shared_work import SharedWork
from agrekd_ray.student.student import BatchNorm, Student, StudentSpec, read_outcome

GIVEN_UP, ROOM = "given-up", "placement-group"
MAX_FAILURES = 8
"""Restarts of the worker group before a run gives up."""
MAX_CONTROLLERS = 4
"""Controllers of Ray Train that may die before a run gives up."""
POLL_SECONDS = 1.0
"""Between two looks at whether a group more pays."""
SECONDS_TO_END = 10.0
"""What groups that have nothing left to do may take to end."""
_KEPT: list[BaseException] = []
"""What calls of Ray ended with that were still under way when nobody waited for them any more: in
their frames are handles of actors, and one that is dropped while Ray shuts down ends the process.
"""


class Workers(Protocol):
    """The workers of a group, and what each takes."""

    @property
    def workers(self) -> int:
        """Their number."""
        ...

    @property
    def takes(self) -> dict[str, float]:
        """Of its node, by name."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """Of the nodes that host them."""
        ...

    @property
    def timeout_minutes(self) -> float:
        """That they wait for one that does not come to a step."""
        ...


class GroupWork(ABC):
    """What every worker of some groups is told: trainings, each of which one group takes.

    Attributes:
        training: folder of states, or another one, reachable from every worker.
        emit: tells the driver.
        call: name of one call of `train_group`. What an earlier one may have left at work, after a
            fault, takes nothing of this one.
        what: they do, in words.
    """

    training: Path
    emit: Emit
    call: str
    what: str

    @property
    def groups(self) -> Path:
        """Folder that the worker groups of this call share."""
        return self.training / f"groups-{self.call}"

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """Of what is trained, in order."""

    @abstractmethod
    def finished(self, number: int) -> bool:
        """Whether one of them is finished."""

    @abstractmethod
    def opened(self) -> Callable[[int], None]:
        """Open the data in a worker; what it returns trains one of them, in all workers."""


@dataclass(frozen=True)
class TrainConfig(GroupWork):
    """Students that are trained; see `GroupWork`.

    Attributes:
        specs: the students, in order.
        data: settings of the data set, which every worker opens itself.
        source: opens in a worker where answers come from; None where no student has teachers.
        students: folder of finished students, reachable from every worker.
        training: folder of the states of students under way, reachable from every worker.
        emit: tells the driver.
        look_ahead: coming batches that the teachers are told of.
        call: see `GroupWork`.
    """

    specs: tuple[StudentSpec, ...]
    data: DriverData
    source: Callable[[Samples], Source] | None
    students: Path
    training: Path
    emit: Emit
    look_ahead: int
    call: str = ""
    what = "training the students"

    @property
    def names(self) -> Sequence[str]:
        """See `GroupWork.names`."""
        return [spec.name for spec in self.specs]

    def finished(self, number: int) -> bool:
        """See `GroupWork.finished`."""
        return read_outcome(self.students / self.specs[number].name) is not None

    def opened(self) -> Callable[[int], None]:
        """See `GroupWork.opened`."""
        dataset = self.data.open()
        source = self.source(dataset) if self.source else None
        return lambda number: _train_one(self, self.specs[number], dataset, source)


def train_group(
    work: GroupWork,
    settings: Workers,
    another: Callable[[int, int], bool] = lambda groups, begun: False,
) -> None:
    """Train all that is not finished yet; returns when all is.

    The same call again, by another driver too, goes on where the last one was stopped.

    Args:
        work: what to do.
        settings: workers of a group and their resources.
        another: whether a group more is to be started, while trainings wait, beside so many, so
            many of which have their room.

    Raises:
        AgrekdError: what a worker raised, or a group failed over and over.
    """
    for earlier in work.training.glob("groups-*"):
        (earlier / GIVEN_UP).touch()
    work = replace(work, call=uuid.uuid4().hex[:8])  # type: ignore[type-var]
    work.groups.mkdir(parents=True)
    left = [n for n in range(len(work.names)) if not work.finished(n)]
    shared = SharedWork(work.groups)
    shared.lay_out(left)
    changed, over = threading.Event(), threading.Event()
    groups: list[_Group] = []
    try:
        while True:
            alive = [group for group in groups if group.is_alive()]
            begun = sum(group.begun for group in alive)
            if faults := [group.error for group in groups if group.error is not None]:
                for group in groups:
                    group.give_up()
                raise faults[0] from None
            work_for_more = len(shared.waiting) > len(alive) - begun
            if not groups or (work_for_more and another(len(alive), begun)):
                groups.append(_Group(work, settings, len(groups), changed, over))
            elif not alive or (len(alive) < len(groups) and all(map(work.finished, left))):
                break  # a group that still waits for room will find nothing to do, and end
            else:
                changed.wait(POLL_SECONDS)
                changed.clear()
        for group in alive:
            if group.begun:
                group.join(SECONDS_TO_END)
    finally:
        over.set()
    missing = [work.names[n] for n in left if not work.finished(n)]
    if missing:
        raise RunError(f"{work.what}: {len(missing)} are not finished, the first is {missing[0]}.")


class _Group(threading.Thread):
    """A worker group, and the thread of the driver's that waits for it.

    Args:
        work: what to do.
        settings: its workers and their resources.
        number: among the groups of the training.
        changed: set when it has ended.
        over: set when nobody waits for it any more: Ray may be shut down, and whoever calls it
            then ends the process.

    Attributes:
        error: what it failed of.
    """

    def __init__(
        self,
        work: GroupWork,
        settings: Workers,
        number: int,
        changed: threading.Event,
        over: threading.Event,
    ) -> None:
        super().__init__(name=f"group-{number}", daemon=True)
        self._work, self._settings, self._changed, self._over = work, settings, changed, over
        self._folder = work.groups / self.name
        self.error: AgrekdError | None = None
        self._room.unlink(missing_ok=True)
        self.start()

    @property
    def _room(self) -> Path:
        return self._folder / ROOM

    @property
    def begun(self) -> bool:
        """Whether it has, or has had, its room."""
        return exists(self._room)

    def run(self) -> None:
        """See `threading.Thread.run`."""
        try:
            self._train()
        except AgrekdError as error:
            self.error = error
        except BaseException as error:
            if self._over.is_set() or not isinstance(error, Exception):
                _KEPT.append(error)
            else:
                self.error = plain_error(error, self._work.what)
        finally:
            self._changed.set()

    def give_up(self) -> None:
        """End it and whoever is in it, without waiting for that."""
        with contextlib.suppress(OSError):
            (self._work.groups / GIVEN_UP).touch()
        self._give_back()

    def _give_back(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            give_back(self._room.read_text(encoding="utf-8"))

    def _train(self) -> None:
        for attempt in range(1, MAX_CONTROLLERS + 1):
            try:
                config = {"work": self._work, "folder": self._folder}
                fit(_work, config, self._settings, self._folder, MAX_FAILURES)
            except (ray.train.TrainingFailedError, RayError) as error:
                if self._over.is_set():
                    raise
                failure = worker_failure(error)
                fault = failure or getattr(error, "controller_failure", error)
                reason = plain_error(fault, self._work.what)
                if failure or not isinstance(fault, DIED) or attempt == MAX_CONTROLLERS:
                    raise reason from None
                # Train's controller has died, or somebody without whom it gives up: where memory
                # is short, for instance. Nobody else starts it again, or ends its workers.
                self._give_back()
                text = f"{reason} It goes on from the last state that was kept."
                self._work.emit(Notice(text))
            else:
                break


def fit(
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    settings: Workers,
    folder: Path,
    restarts: int,
) -> None:
    """Run a loop in all workers of a group, kept together where there is room, to its end.

    Args:
        loop: what a worker does.
        config: what it is told.
        settings: workers and their resources, and how long they wait for each other.
        folder: for Train's own files.
        restarts: of the group after the death of a worker.
    """
    GroupTrainer(
        loop,
        timeout_minutes=settings.timeout_minutes,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.takes["GPU"] > 0,
            resources_per_worker=settings.takes,
            placement_strategy="PACK",
            label_selector=dict(settings.labels) or None,
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=restarts),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    ).fit()


def _work(config: dict[str, Any]) -> None:
    work: GroupWork = config["work"]
    folder: Path = config["folder"]
    context = ray.train.get_context()
    if (work.groups / GIVEN_UP).exists():
        return
    if context.get_world_rank() == 0 and (group := held()) is not None:
        with contextlib.suppress(OSError):  # a full disk is said where it costs something
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ROOM).write_text(group, encoding="utf-8")
        work.emit(Awaited("a worker group has started, and opens the data"))
    with worker_faults(work.what):
        device_of_worker()  # before anything is opened for a GPU that is of no use
        train = work.opened()
        while (number := _next(work, folder)) is not None:
            train(number)


def _next(work: GroupWork, folder: Path) -> int | None:
    """What comes next; the first worker takes it, all of them hear."""
    number = None
    if ray.train.get_context().get_world_rank() == 0:
        number = SharedWork(work.groups).take(folder.name, work.finished)
    number = collectives.from_first(-1 if number is None else number)
    return None if number < 0 else number


def _train_one(
    work: TrainConfig, spec: StudentSpec, dataset: Dataset, source: Source | None
) -> None:
    meter = StudentMeter(spec.name)

    def heard(record: Epoch) -> None:
        meter.observe(record)
        work.emit(StudentEpoch(spec.name, spec.training.epochs, record))

    if ray.train.get_context().get_world_rank() == 0:
        work.emit(Awaited("the first epoch of a student"))
    student = worker_student(spec, dataset, source, look_ahead=work.look_ahead)
    for result in student.train(work.training, work.students, heard, work.emit):
        work.emit(StudentDone(result))


def worker_student(
    spec: StudentSpec, dataset: Dataset, source: Source | None, **further: Any
) -> Student:
    """This worker's part of a student; called in every worker of a group.

    Args:
        spec: what to do.
        dataset: opened here.
        source: opened here.
        further: `look_ahead` and `judge`, see `StudentTraining`.
    """
    part = part_of_worker(dataset, spec.batch_norm)
    return Student(spec, dataset, source, **part, **further)


def part_of_worker(samples: Samples, batch_norm: BatchNorm) -> dict[str, Any]:
    """What makes a training this worker's part of it: its `device`, and arguments of `Trainer`.

    Args:
        samples: that are trained on.
        batch_norm: see `StudentSettings`.
    """
    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    device = device_of_worker()
    return {
        "device": device,
        "rank": context.get_world_rank(),
        "world": context.get_world_size(),
        "wrap": lambda model: data_parallel(model, samples, batch_norm),
        "total": partial(collectives.summed, device=device),
    }
