"""What a forecast needs to know of a job: numbers, and nothing that is in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from agrekd_ray.config import Fault, Job, JobError, check_job, read_job
from agrekd_ray.core.weighting import find_strategy, needs_global_batch
from agrekd_ray.data import SELECT, TEST, TRAIN, Dataset, open_dataset
from agrekd_ray.models import Model, Shape, check_name, read_manifest
from agrekd_ray.run.gpus import SMALL, most_on_a_gpu, numbered
from agrekd_ray.run.plan import Plan, make_plan
from agrekd_ray.settings import AUTO, a_number

UNKNOWN_SHAPE: Shape = (3, 224, 224)
"""What samples are taken for where the data are not there."""


@dataclass(frozen=True)
class Setup:
    """A job in numbers.

    Attributes:
        strategy: of the step that is forecast, the job's first with teachers.
        strategies: of all the job's students with teachers, one entry a student.
        plain: students on labels alone.
        names: lengths of the names of all who answer: the teachers, and the biased model where
            the strategy uses it.
        teachers: M.
        hosted: teachers in the actors; where outputs are recorded, those of all of them are.
        backbones: different ones, each with a forward pass of its own.
        batch: samples of a step, over all workers.
        workers: of the student.
        classes: C.
        samples: of the training split.
        evaluated: of the split that every epoch is evaluated on.
        tested: of the test split.
        epochs: of every student.
        views: that the teachers are asked for in all.
        look_ahead: batches that the teachers compute ahead.
        backbones_per_actor: as the job says.
        concurrent: backbones of an actor that compute at once.
        sample_weighting: whether samples are weighted, which needs whole batches.
        records: whether the teachers' outputs are recorded and replayed.
        number_bytes: of a recorded logit.
        student_bytes: of the student's parameters.
        teacher_bytes: of one teacher's parameters, the largest's.
        at_once: students that train side by side, at most; None for as many as that pays for.
        student_cpus: of a worker.
        student_gpus: of a worker.
        actor_cpus: of a teachers' actor; None shares what is left.
        actor_gpus: of a teachers' actor.
        gpus_left_open: whose the job leaves open, `student` or `fleet`: the machines say.
        students_on_a_gpu: that share one then, at most.
        actors_on_a_gpu: the same of teachers' actors.
        weighting_actors: 1, or one for each of the student's workers.
    """

    strategy: str
    strategies: tuple[str, ...]
    plain: int
    names: tuple[int, ...]
    teachers: int
    hosted: int
    backbones: int
    batch: int
    workers: int
    classes: int
    samples: int
    evaluated: int
    tested: int
    epochs: int
    views: int
    look_ahead: int
    backbones_per_actor: int
    concurrent: int = 1
    sample_weighting: bool = False
    records: bool = True
    number_bytes: int = 4
    student_bytes: int = 0
    teacher_bytes: int = 0
    at_once: int | None = None
    student_cpus: float = 1
    student_gpus: float = 0
    actor_cpus: float | None = None
    actor_gpus: float = 0
    gpus_left_open: tuple[str, ...] = ()
    students_on_a_gpu: int = SMALL
    actors_on_a_gpu: int = SMALL
    weighting_actors: int = 1

    @property
    def members(self) -> int:
        """All who answer."""
        return len(self.names)

    @property
    def actors(self) -> int:
        """Processes of the teachers."""
        return -(-self.backbones // self.backbones_per_actor)

    @property
    def fullest(self) -> int:
        """Backbones of the actor that has most."""
        return -(-self.backbones // self.actors)

    @property
    def fullest_names(self) -> tuple[int, ...]:
        """Lengths of the names in the actor that answers for most members, at least."""
        return self.names[: -(-self.members // self.actors)]

    @property
    def part(self) -> int:
        """Samples of a worker's part of the batch."""
        return self.batch // self.workers

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.samples // self.batch

    @property
    def view_bytes(self) -> int:
        """Of one view's records, of all teachers."""
        return self.hosted * self.samples * self.classes * self.number_bytes

    @property
    def record_bytes(self) -> int:
        """Of all records."""
        return self.views * self.view_bytes if self.records else 0

    @property
    def entropy(self) -> bool:
        """Whether teachers add their cross-entropies."""
        return find_strategy(self.strategy).needs_cross_entropy

    @property
    def whole_batch(self) -> bool:
        """Whether the first worker asks for all."""
        return self.gathers(self.strategy)

    def gathers(self, strategy: str) -> bool:
        """Whether the workers gather the whole batch for a strategy."""
        return needs_global_batch(strategy) or self.sample_weighting

    @property
    def may_shard(self) -> bool:
        """Whether every worker could have a weighting actor of its own."""
        return self.workers > 1 and not any(self.gathers(one) for one in set(self.strategies))


def read_setup(
    path: Path, overrides: Sequence[str], classes: int | None, samples: int | None
) -> tuple[Job, Dataset | None, Setup]:
    """A job, its data where they are there, and what a forecast needs to know of them.

    Args:
        path: of the job.
        overrides: `key.path=value` changes to it.
        classes: C; None asks the data.
        samples: of the training split; None asks the data.

    Raises:
        JobError: what is wrong with the job. Data that are not there are no fault where both
            numbers are given.
    """
    raw = read_job(path, overrides)
    job, faults = check_job(raw)
    absent = [fault for fault in faults if fault.key.split(".")[0] == "data"]
    if job is None:
        job = _without_data(path, raw, faults, absent, classes, samples)
    dataset = None if absent else open_dataset(job.data)
    plan = make_plan(job)
    if not plan.strategies:
        problem = "no method has teachers that distil; name one, like agre_kd"
        raise JobError(str(path), [Fault("methods", ", ".join(job.methods), problem)])
    if job.guidance == "local":
        problem = "has no actors to plan for; set guidance=auto or live"
        raise JobError(str(path), [Fault("guidance", "local", problem)])
    setup = _setup(job, plan, dataset, classes, samples)
    if setup.steps == 0:
        problem = f"more than the {setup.samples} training samples"
        raise JobError(str(path), [Fault("student.training.batch_size", str(setup.batch), problem)])
    return job, dataset, setup


def _without_data(
    path: Path,
    raw: dict[str, Any],
    faults: list[Fault],
    absent: list[Fault],
    classes: int | None,
    samples: int | None,
) -> Job:
    """A job whose only faults are in data that it is not planned for.

    Raises:
        JobError: where it has others, or where numbers are missing.
    """
    sizes = ("student.training.batch_size", "teachers.training.batch_size")
    small = [f for f in faults if f.key in sizes and f.problem.endswith("training samples")]
    left = [fault for fault in faults if fault not in (*absent, *(small if samples else ()))]
    if not left and absent and (classes is None or samples is None):
        hint = Fault("--classes, --samples", "", "stand for data that are not here; give both")
        left = [*absent, hint]
    try:
        if not left:
            return Job.model_validate(raw)
    except ValidationError:  # not absent, but wrong
        left = faults
    raise JobError(str(path), [*(one for one in absent if one not in left), *left])


def _setup(
    job: Job, plan: Plan, dataset: Dataset | None, classes: int | None, samples: int | None
) -> Setup:
    lessons = [a.lesson for a in plan.assignments if a.lesson is not None]
    hosted = sorted({*plan.draw.recipes, *plan.draw.own})
    if job.guidance == "live":
        hosted = sorted({name for lesson in lessons for name in lesson.members})
    training, epochs = job.student.training, job.student.training.epochs
    splits = dataset.splits if dataset is not None else {}
    trained = samples or len(splits[TRAIN])
    shape = dataset.shape if dataset is not None else UNKNOWN_SHAPE
    classes = classes or len(dataset.classes if dataset is not None else ())
    sizes = [_size(model, shape, classes) for model in _architectures(plan)]
    student_bytes = _size(job.student.model, shape, classes)
    teacher_bytes = max([*sizes, *_own_sizes(plan)])
    given = numbered(job)
    return Setup(
        strategy=plan.strategies[0],
        strategies=tuple(lesson.strategy for lesson in lessons),
        plain=len(plan.assignments) - len(lessons),
        names=tuple(len(name) for name in lessons[0].members),
        teachers=len(plan.draw.teachers),
        hosted=len(hosted),
        backbones=_backbones(plan, hosted),
        batch=training.batch_size,
        workers=job.student.workers,
        classes=classes,
        samples=trained,
        evaluated=len(splits.get(SELECT, ())),
        tested=len(splits.get(TEST, ())),
        epochs=epochs,
        views=len({_view(job, dataset, epoch) for epoch in range(epochs)}),
        look_ahead=job.fleet.look_ahead,
        backbones_per_actor=job.fleet.backbones_per_actor,
        concurrent=job.fleet.concurrent,
        sample_weighting=job.distillation.sample_weighting is not None,
        records=job.guidance == "auto",
        number_bytes=np.dtype(job.outputs.dtype).itemsize,
        student_bytes=student_bytes,
        teacher_bytes=teacher_bytes,
        at_once=None if job.student.at_once == "auto" else job.student.at_once,
        student_cpus=job.student.cpus,
        student_gpus=given.student.takes["GPU"],
        actor_cpus=job.fleet.cpus,
        actor_gpus=a_number(given.fleet.gpus),
        gpus_left_open=tuple(key for key in ("student", "fleet") if getattr(job, key).gpus == AUTO),
        students_on_a_gpu=most_on_a_gpu(student_bytes // 4, shape),
        actors_on_a_gpu=most_on_a_gpu(teacher_bytes // 4, shape),
    )


def _view(job: Job, dataset: Dataset | None, epoch: int) -> int:
    if dataset is not None:
        return dataset.view(epoch)
    views = getattr(job.data, "views", None)
    return views.number(epoch) if views is not None else 0


def _architectures(plan: Plan) -> list[Model]:
    models = [recipe.model for recipe in plan.draw.recipes.values()]
    return [model for number, model in enumerate(models) if model not in models[:number]]


def _backbones(plan: Plan, names: Sequence[str]) -> int:
    """Different backbones; a DFR teacher has that of the ERM model that it comes from."""
    recipes, own = plan.draw.recipes, plan.draw.own
    made = {recipes[name].parent.model_dump_json() for name in names if name in recipes}
    given = {read_manifest(own[name]).backbone for name in names if name in own}
    return len(made) + len(given)


def _size(model: Model, shape: Shape, classes: int) -> int:
    """Bytes of a model's parameters and buffers, float32."""
    built = check_name(model, shape, classes)
    return sum(t.numel() * t.element_size() for t in built.state_dict().values())


def _own_sizes(plan: Plan) -> list[int]:
    return [
        sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        for folder in plan.draw.own.values()
    ]
