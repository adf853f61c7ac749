"""What a job will take that is not there yet: memory, disk, room for its teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agrekd_ray.capacity.size import (
    IN_TRAINING,
    PROCESS,
    JobSize,
    backbones_of,
    model_bytes,
    size_of,
)
from agrekd_ray.config import Job
from agrekd_ray.data import Dataset, open_dataset
from agrekd_ray.experiment.plan import Plan, make_plan, views_of
from agrekd_ray.files import exists, is_file
from agrekd_ray.logits import LogitsCache
from agrekd_ray.models.checkpoint import WEIGHTS
from agrekd_ray.teachers import Pool


@dataclass(frozen=True)
class Needs:
    """What a job will take, in bytes, besides its data set; nothing where there is no job.

    Attributes:
        process: memory of its largest process, which lives on one node.
        memory: of all that teach and all workers of a student together.
        object_store: of a node, for what is on its way at once.
        disk: that will be written below a folder, by its key in the job.
        declined: keys with which the job declines GPUs.
        hosting: jobs that host their teachers, with the backbone of each teacher.
        workers: of a student or a teacher, at most.
    """

    process: float = 0
    memory: float = 0
    object_store: float = 0
    disk: Mapping[str, int] = field(default_factory=dict)
    declined: tuple[str, ...] = ()
    hosting: tuple[tuple[Job, Mapping[str, str]], ...] = ()
    workers: int = 1


def needs_of(points: Sequence[Job]) -> Needs:
    """What a job takes; of a study's points the one that takes most, and the disk of all.

    Args:
        points: of the study, or the one job; none for no job. They share their folders.

    Raises:
        AgrekdError: the data, or a checkpoint that the job names, cannot be read.
    """
    models: dict[Path, int] = {}
    records: dict[Path, int] = {}
    hosting: list[tuple[Job, Mapping[str, str]]] = []
    process, memory, stored, students = 0.0, 0.0, 0.0, 0
    for job in points:
        dataset, plan = open_dataset(job.data), make_plan(job)
        size = size_of(job, plan, dataset)
        to_make, to_record = _missing(job, plan, dataset, size)
        models |= to_make
        records |= to_record
        trained = max(size.student_bytes, *to_make.values(), 0)
        process = max(process, PROCESS + IN_TRAINING * trained)
        if to_make:
            memory = max(
                memory, job.teachers.workers * (PROCESS + IN_TRAINING * max(to_make.values()))
            )
        together = size.workers * (PROCESS + IN_TRAINING * size.student_bytes)
        if size.strategies and (job.guidance == "live" or to_record):
            each = size.memory()
            process = max(process, each["teacher_actor"], each["weighting_actor"])
            beside_weights = each["teacher_actor"] - each["teacher_weights"]
            together += size.actors * beside_weights + size.backbone_bytes
            together += each["weighting_actor"]
            stored = max(stored, each["object_store"])
            backbones = backbones_of(job, plan, dataset.shape, size.classes)
            hosting.append((job, {name: body for name, (body, _) in backbones.items()}))
        memory = max(memory, together)
        # What finished students leave, and the state of the one under way.
        copies = (2 if job.tracking.models else 1) * len(plan.specs)
        students += size.student_bytes * (copies + IN_TRAINING)
    blocks = ("student", "teachers", "fleet")
    declined = (b for b in blocks if any(getattr(job, b).gpus == 0 for job in points))
    written = {"teachers.store": sum(models.values()), "outputs.store": sum(records.values())}
    return Needs(
        process,
        memory,
        stored,
        {"runs": students, **written},
        tuple(f"{block}.gpus" for block in declined),
        tuple(hosting),
        max((max(job.student.workers, job.teachers.workers) for job in points), default=1),
    )


def _missing(
    job: Job, plan: Plan, dataset: Dataset, size: JobSize
) -> tuple[dict[Path, int], dict[Path, int]]:
    """Bytes of the models that the pool does not have yet, and of records, each by its place."""
    pool = Pool(job.teachers.store, dataset)
    models = {pool.folder(recipe): recipe.model for recipe in plan.recipes}
    to_make = {
        folder: model_bytes(model, dataset.shape, len(dataset.classes))
        for folder, model in models.items()
        if not is_file(folder / WEIGHTS)
    }
    if not (size.records and size.strategies):
        return to_make, {}
    ensemble = plan.checkpoints(pool)
    made = {name: folder for name, folder in ensemble.items() if is_file(folder / WEIGHTS)}
    outputs = LogitsCache(job.outputs, made, dataset, job.fleet.computes_in)
    each, to_record = size.view_bytes // size.hosted, dict[Path, int]()
    for view in views_of(dataset, size.epochs):
        for name, folder in ensemble.items():
            if name not in made:
                to_record[folder / str(view)] = each
            elif not exists(path := outputs.path(name, view)):  # of several heads, maybe
                to_record[path] = outputs.place(name).key.bytes
    return to_make, to_record
