"""What a job will take: memory, room in the object store, and on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agrekd_ray.config import Job
from agrekd_ray.data import TRAIN, Dataset, open_dataset
from agrekd_ray.files import exists, is_file
from agrekd_ray.models import Model, check_name, read_manifest
from agrekd_ray.models.checkpoint import WEIGHTS
from agrekd_ray.outputs import Outputs
from agrekd_ray.run.plan import Plan, make_plan
from agrekd_ray.teachers import Pool

PROCESS = 365 * 2**20
"""Bytes of a Ray process that has imported PyTorch and holds nothing yet, as measured."""
IN_TRAINING = 4
"""What a model in training takes, in its own size: weights, gradients, two states of AdamW."""


@dataclass(frozen=True)
class Needs:
    """What a job will take, in bytes, besides its data set; nothing where there is no job.

    Attributes:
        process: memory of its largest process, which lives on one node.
        memory: of its teacher actors and its student's workers together.
        object_store: of a node, for what is on its way at once.
        disk: that will be written below a folder, by its key in the job.
        declined: keys with which the job declines GPUs.
    """

    process: int = 0
    memory: int = 0
    object_store: int = 0
    disk: Mapping[str, int] = field(default_factory=dict)
    declined: tuple[str, ...] = ()


def needs_of(points: Sequence[Job]) -> Needs:
    """What a job takes; of a study's points the one that takes most, and the disk of all.

    Args:
        points: of the study, or the one job. They share their folders.

    Raises:
        AgrekdError: the data, or a checkpoint that the job names, cannot be read.
    """
    teachers: dict[Path, int] = {}
    records: dict[tuple[Path, int], int] = {}
    processes, memory, on_the_way, students = [0], [0], [0], 0
    for job in points:
        one = _Sizes(job)
        teachers |= one.teachers_to_make()
        records |= one.records_to_make()
        processes += one.processes()
        memory.append(sum(one.actors()) + job.student.workers * one.worker())
        on_the_way.append(one.on_the_way())
        students += one.students()
    disk = {
        "runs": students,
        "teachers.store": sum(teachers.values()),
        "outputs.store": sum(records.values()),
    }
    declined = tuple(
        f"{key}.gpus"
        for key in ("student", "teachers", "fleet")
        if any(getattr(job, key).gpus == 0 for job in points)
    )
    return Needs(max(processes), max(memory), max(on_the_way), disk, declined)


class _Sizes:
    """The sizes of one job, in bytes."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._samples: Dataset = open_dataset(job.data)
        self._plan: Plan = make_plan(job)
        self._pool = Pool(job.teachers.store, self._samples)
        self._ensemble = self._plan.checkpoints(self._pool) if self._plan.needs_ensemble else {}
        epochs = job.student.training.epochs
        self._views = sorted({self._samples.view(epoch) for epoch in range(epochs)})
        self._student = self._model(job.student.model)

    def teachers_to_make(self) -> dict[Path, int]:
        """Models that the pool does not have yet, by their folder."""
        wanted = {self._pool.folder(recipe): recipe.model for recipe in self._plan.recipes}
        return {
            folder: self._model(model) for folder, model in wanted.items() if not _is_made(folder)
        }

    def records_to_make(self) -> dict[tuple[Path, int], int]:
        """What of its teachers' answers is not recorded yet, by teacher's folder and view."""
        job, samples = self._job, self._samples
        if job.guidance != "auto" or not self._plan.strategies:
            return {}
        made = {name: folder for name, folder in self._ensemble.items() if _is_made(folder)}
        outputs = Outputs(job.outputs, made, samples, job.fleet.computes_in)
        row = len(samples.classes) * np.dtype(job.outputs.dtype).itemsize
        return {
            (folder, view): len(samples.splits[TRAIN]) * row
            for name, folder in self._ensemble.items()
            for view in self._views
            if name not in made or not exists(outputs.path(name, view))
        }

    def actors(self) -> list[int]:
        """Memory of every teacher actor; none where all that they say is recorded."""
        job = self._job
        if not self._plan.strategies or job.guidance == "local":
            return []
        if job.guidance == "auto" and not self.records_to_make():
            return []
        sizes = sorted(self._backbones().values(), reverse=True)
        room = job.fleet.backbones_per_actor
        return [PROCESS + sum(sizes[at : at + room]) for at in range(0, len(sizes), room)]

    def worker(self) -> int:
        """Memory of a student's worker."""
        return PROCESS + IN_TRAINING * self._student

    def processes(self) -> list[int]:
        """Memory of each kind of process."""
        makers = [PROCESS + IN_TRAINING * size for size in self.teachers_to_make().values()]
        return [*self.actors(), self.worker(), *makers]

    def on_the_way(self) -> int:
        """Logits and gradients between student and teachers, with what teachers compute ahead."""
        batch = self._job.student.training.batch_size * len(self._samples.classes) * 4
        return batch * (len(self._ensemble) + 2) * (self._job.fleet.look_ahead + 2)

    def students(self) -> int:
        """What finished students leave on disk, and the checkpoint of the one under way."""
        copies = 2 if self._job.tracking.models else 1
        return self._student * (copies * len(self._plan.assignments) + IN_TRAINING)

    def _backbones(self) -> dict[str, int]:
        """Sizes of the ensemble's backbones; DFR models share that of the ERM model they are of."""
        found: dict[str, int] = {}
        for name, folder in self._ensemble.items():
            if _is_made(folder):
                found[read_manifest(folder).backbone] = (folder / WEIGHTS).stat().st_size
            else:
                recipe = self._plan.draw.recipes[name]
                found[self._pool.fingerprint(recipe.parent)] = self._model(recipe.model)
        return found

    def _model(self, model: Model) -> int:
        built = check_name(model, self._samples.shape, len(self._samples.classes))
        return sum(
            math.prod(tensor.shape) * tensor.element_size()
            for tensor in built.state_dict().values()
        )


def _is_made(folder: Path) -> bool:
    return is_file(folder / WEIGHTS)
