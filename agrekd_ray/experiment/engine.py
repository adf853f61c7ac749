"""Who does the work: a Ray cluster, or this process alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from agrekd_ray.cluster.events import (
    Awaited,
    Event,
    Notice,
    OnWay,
    StudentDone,
    StudentEpoch,
    TeacherCostSoFar,
    TeacherDone,
    TeacherEpoch,
)
from agrekd_ray.config import Job
from agrekd_ray.data import open_dataset
from agrekd_ray.devices import device_of
from agrekd_ray.distillation import LocalTeachers, TeacherHost
from agrekd_ray.errors import RunError
from agrekd_ray.results import Epoch, TeacherCost
from agrekd_ray.student import Student, StudentSpec
from agrekd_ray.teachers import Asked, Pool, Recipe, Take, answers

Handle = Callable[[Event], None]


class Engine(Protocol):
    """Makes teachers and trains students; events go to a handler in the driver."""

    def make_teachers(self, families: Sequence[Sequence[Recipe]], storage: Path) -> None:
        """Make what the pool is missing.

        Args:
            families: see `Pool.make`.
            storage: for the files of worker groups.
        """
        ...

    def train_students(
        self,
        specs: Sequence[StudentSpec],
        checkpoints: dict[str, Path],
        students: Path,
        storage: Path,
    ) -> TeacherCost:
        """Train students; returns what their teachers cost.

        Args:
            specs: the students, none of them finished, in order.
            checkpoints: folders of the teachers and the biased model, by name.
            students: where finished ones are put.
            storage: for checkpoints of the training under way.
        """
        ...

    def ask(self, asked: Sequence[Asked], take: Take) -> None:
        """Ask finished models about splits without augmentation.

        Args:
            asked: them.
            take: gets what each says, in the order in which they finish.
        """
        ...

    def record(self, checkpoints: dict[str, Path], views: Sequence[int]) -> TeacherCost:
        """Record what the teachers say to whole views.

        Args:
            checkpoints: folders of the teachers and the biased model, by name.
            views: their numbers.
        """
        ...

    def close(self) -> None:
        """End everything that was started."""
        ...


def make_family(
    pool: Pool, family: Sequence[Recipe], device: str, handle: Handle, **workers: Any
) -> None:
    """Make one family of models, see `Pool.make`; its epochs and ends are told."""
    place = pool.folder(family[0].parent).name

    def progress(name: str, epoch: int, epochs: int) -> None:
        handle(TeacherEpoch(name, epoch, epochs, f"{place}/{name}"))

    handle(Awaited("the first epoch of a teacher"))
    pool.make(
        family,
        device,
        progress,
        lambda text: handle(Notice(text)),
        lambda name, place: handle(OnWay(name, place)),
        **workers,
    )
    for recipe in family:
        handle(TeacherDone(recipe.name))


class LocalEngine:
    """Everything in this process, without Ray: the reference, and the place to debug.

    Students, teachers and their answers are computed on a GPU where there is one and
    `student.gpus` does not decline it.

    Raises:
        RunError: `student.gpus` asks for a GPU that PyTorch cannot use.
    """

    def __init__(self, job: Job, handle: Handle) -> None:
        self._job, self._handle = job, handle
        self.device = device_of(job.student.gpus, "student.gpus")
        if self.device == "cpu" and torch.cuda.is_available():
            idle = torch.cuda.device_count()
            handle(Notice(f"{idle} of {idle} GPUs stay idle: student.gpus = 0 declines them"))
        torch.set_num_threads(max(1, round(job.student.cpus)))

    def make_teachers(self, families: Sequence[Sequence[Recipe]], storage: Path) -> None:
        """See `Engine.make_teachers`."""
        pool = Pool(self._job.teachers.store, open_dataset(self._job.data))
        for family in families:
            make_family(pool, family, self.device, self._handle)

    def train_students(
        self,
        specs: Sequence[StudentSpec],
        checkpoints: dict[str, Path],
        students: Path,
        storage: Path,
    ) -> TeacherCost:
        """See `Engine.train_students`."""
        dataset = open_dataset(self._job.data)
        source, host = None, None
        if checkpoints:
            fleet = self._job.fleet
            host = TeacherHost(
                checkpoints,
                dataset,
                device=self.device,
                precision=fleet.precision,
                capacity=fleet.look_ahead + 2,
            )
            source = LocalTeachers(host)

        def effort() -> TeacherCost:
            if host is None:
                return TeacherCost()
            return TeacherCost(forwards=host.forwards, seconds=host.seconds, spans=host.spans)

        storage.mkdir(parents=True, exist_ok=True)
        for spec in specs:

            def heard(record: Epoch, spec: StudentSpec = spec) -> None:
                self._handle(TeacherCostSoFar(effort()))
                self._handle(StudentEpoch(spec.name, spec.training.epochs, record))

            self._handle(Awaited("the first epoch of a student"))
            student = Student(spec, dataset, source, device=self.device)
            for result in student.train(storage, students, heard, self._handle):
                self._handle(StudentDone(result))
        return effort()

    def ask(self, asked: Sequence[Asked], take: Take) -> None:
        """See `Engine.ask`."""
        dataset = open_dataset(self._job.data)
        for one in asked:
            take(one, answers(one, dataset, self.device))

    def record(self, checkpoints: dict[str, Path], views: Sequence[int]) -> TeacherCost:
        """See `Engine.record`.

        Raises:
            RunError: this engine keeps no records.
        """
        raise RunError("guidance: local keeps no records; set guidance=auto.")

    def close(self) -> None:
        """See `Engine.close`."""
