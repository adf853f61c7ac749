"""A job in numbers: what its processes hold, what they send one another, what is not made yet.

`agrekd plan` forecasts from these numbers, and `agrekd doctor` holds a cluster against them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from agrekd_ray.config import Fault, Job, JobError, check_job, read_job
from agrekd_ray.core.weighting import find_strategy, needs_global_batch
from agrekd_ray.data import SELECT, TEST, TRAIN, Dataset, open_dataset
from agrekd_ray.distillation.spec import INLINE
from agrekd_ray.experiment.gpus import SMALL, most_on_a_gpu, numbered
from agrekd_ray.experiment.plan import Plan, make_plan
from agrekd_ray.files import exists, is_file
from agrekd_ray.logits import LogitsCache
from agrekd_ray.models import Model, Shape, check_name, read_manifest
from agrekd_ray.models.checkpoint import WEIGHTS
from agrekd_ray.settings import AUTO, a_number
from agrekd_ray.teachers import Pool

UNKNOWN_SHAPE: Shape = (3, 224, 224)
"""What samples are taken for where the data are not there."""
PROCESS = 380e6
"""Bytes of a Ray process that has imported PyTorch and holds nothing yet, as measured."""
IN_TRAINING = 4
"""What a model in training takes, in its own size: weights, gradients, two states of AdamW."""
COPIES = 5
"""Times the gradients' own bytes that weighing takes at its peak: 3.4 to 4.2 by strategy, and what
the allocator keeps."""
FLOAT, ID = 4, 8
QUESTION, REPLIES, ANSWER = 440, 230, 410
"""Bytes of a message without its numbers and names; a test holds them to the real pickles."""
NAME, VIEW = 3, 30
"""Bytes of a name besides its letters, and of a coming batch besides its ids."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of one question and what follows it.

    Attributes:
        question: to the weighting actor, and from there to each teachers' actor.
        replies: of all actors together.
        reply: of the actor with most teachers.
        answer: back to the student.
        questions: that the workers ask in a step.
        samples: of a question.
    """

    question: int
    replies: int
    reply: int
    answer: int
    questions: int
    samples: int

    @property
    def shared(self) -> bool:
        """Whether a question is one object that all actors read."""
        return self.question > INLINE


def question_bytes(names: Sequence[int], samples: int, classes: int, ahead: int) -> int:
    """Bytes of a question: lesson, ids of this batch and the coming ones, student's logits.

    Args:
        names: lengths of the members' names.
        samples: asked for.
        classes: C.
        ahead: coming batches that are named.
    """
    ids = (1 + ahead) * samples * ID + ahead * VIEW
    return QUESTION + sum(names) + NAME * len(names) + ids + samples * classes * FLOAT


def replies_bytes(names: Sequence[int], samples: int, classes: int, *, entropy: bool) -> int:
    """Bytes of what an actor replies: gradients, and its teachers' cross-entropies if `entropy`."""
    numbers = len(names) * samples * (classes + entropy)
    return REPLIES + sum(names) + NAME * len(names) + numbers * FLOAT


def answer_bytes(teachers: int, samples: int, classes: int) -> int:
    """Bytes of the answer: gradient, loss and fallback by sample; three numbers by teacher."""
    by_sample = classes * FLOAT + FLOAT + 1
    return ANSWER + samples * (by_sample + 2 * teachers * FLOAT) + teachers


@dataclass(frozen=True)
class JobSize:
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
        backbone_bytes: of the parameters of all backbones together.
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
    backbone_bytes: int = 0
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
        """Steps of an epoch."""
        return self.samples // self.batch

    @property
    def view_bytes(self) -> int:
        """Bytes of one view's records, of all teachers."""
        return self.hosted * self.samples * self.classes * self.number_bytes

    @property
    def record_bytes(self) -> int:
        """Bytes of all records."""
        return self.views * self.view_bytes if self.records else 0

    def gathers(self, strategy: str) -> bool:
        """Whether the first worker asks for the whole batch of all, with a strategy."""
        return needs_global_batch(strategy) or self.sample_weighting

    @property
    def may_shard(self) -> bool:
        """Whether every worker could have a weighting actor of its own."""
        return self.workers > 1 and not any(self.gathers(one) for one in set(self.strategies))

    @property
    def traffic(self) -> Traffic:
        """Bytes of a live step's messages."""
        whole = self.gathers(self.strategy)
        samples = self.batch if whole else self.part
        entropy = find_strategy(self.strategy).needs_cross_entropy
        heads = (self.actors - 1) * replies_bytes((), 0, 0, entropy=False)
        shape = samples, self.classes
        return Traffic(
            question=question_bytes(self.names, *shape, self.look_ahead),
            replies=replies_bytes(self.names, *shape, entropy=entropy) + heads,
            reply=replies_bytes(self.fullest_names, *shape, entropy=entropy),
            answer=answer_bytes(self.teachers, *shape),
            questions=1 if whole else self.workers,
            samples=samples,
        )

    def worker_memory(self, process: float = PROCESS) -> float:
        """Bytes of a student's worker, whose process takes so many by itself."""
        return process + IN_TRAINING * self.student_bytes

    def fleet_memory(self, process: float = PROCESS) -> dict[str, float]:
        """Bytes of each kind of process that teaches; of teachers' activations nothing is known.

        Actors keep the logits of `(look_ahead + 2) · (workers + 1)` batches. Messages above 100 kB
        are in the object store too, once more.

        Args:
            process: bytes that a process takes by itself.

        Returns:
            `teacher_actor` of the actor with most teachers, of which `teacher_weights` are weights;
            `weighting_actor` of each of them, and `object_store` beside it.
        """
        sent = self.traffic
        numbers = sent.samples * self.classes * FLOAT
        weights = self.fullest * self.teacher_bytes
        kept = (self.look_ahead + 2) * (self.workers + 1) * len(self.fullest_names) * numbers
        asked = sent.questions / self.weighting_actors
        stored = (
            2 * sent.question * sent.shared  # the worker's, and the one for all actors
            + sent.replies * (sent.reply > INLINE)
            + sent.answer * (sent.answer > INLINE)
        )
        return {
            "teacher_actor": process + weights + kept + sent.question + 2 * sent.reply,
            "teacher_weights": weights,
            "weighting_actor": process
            + asked * (sent.question + sent.replies)
            + COPIES * self.members * numbers,
            "object_store": asked * stored,
        }


def read_size(
    path: Path, overrides: Sequence[str], classes: int | None, samples: int | None
) -> tuple[Job, Dataset | None, JobSize]:
    """A job that can be planned for, its data where they are there, and its size.

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
    fault = None
    if not plan.strategies:
        problem = "no method has teachers that distil; name one, like agre_kd"
        fault = Fault("methods", ", ".join(job.methods), problem)
    elif job.guidance == "local":
        problem = "has no actors to plan for; set guidance=auto or live"
        fault = Fault("guidance", "local", problem)
    else:
        size = size_of(job, plan, dataset, classes, samples)
        if size.steps:
            return job, dataset, size
        problem = f"more than the {size.samples} training samples"
        fault = Fault("student.training.batch_size", str(size.batch), problem)
    raise JobError(str(path), [fault])


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


def size_of(
    job: Job,
    plan: Plan,
    dataset: Dataset | None,
    classes: int | None = None,
    samples: int | None = None,
) -> JobSize:
    """The numbers of a job.

    Args:
        job: the job.
        plan: what it comes down to.
        dataset: its data; None where they are not here, and both numbers are given.
        classes: C; None asks the data.
        samples: of the training split; None asks the data.

    Raises:
        AgrekdError: a checkpoint that the job names cannot be read.
    """
    specs = [a.spec for a in plan.assignments if a.spec is not None]
    hosted = {*plan.draw.recipes, *plan.draw.own} if specs else set()
    if job.guidance == "live":
        hosted = {name for spec in specs for name in spec.members}
    student, training, fleet = job.student, job.student.training, job.fleet
    splits = dataset.splits if dataset is not None else {}
    shape = dataset.shape if dataset is not None else UNKNOWN_SHAPE
    classes = classes or len(dataset.classes if dataset is not None else ())
    weights = _Weights(shape, classes)
    backbones = {
        name: (
            (recipe.parent.model_dump_json(), weights.of(recipe.model))
            if (recipe := plan.draw.recipes.get(name)) is not None
            else (read_manifest(plan.draw.own[name]).backbone, _stored(plan.draw.own[name]))
        )
        for name in sorted(hosted)
    }
    teacher_bytes = max((size for _, size in backbones.values()), default=0)
    given = numbered(job)
    return JobSize(
        strategy=plan.strategies[0] if plan.strategies else "",
        strategies=tuple(spec.strategy for spec in specs),
        plain=len(plan.assignments) - len(specs),
        names=tuple(len(name) for name in specs[0].members) if specs else (),
        teachers=len(plan.draw.teachers),
        hosted=len(hosted),
        backbones=len({backbone for backbone, _ in backbones.values()}),
        batch=training.batch_size,
        workers=student.workers,
        classes=classes,
        samples=samples or len(splits[TRAIN]),
        evaluated=len(splits.get(SELECT, ())),
        tested=len(splits.get(TEST, ())),
        epochs=training.epochs,
        views=len(_views(job, dataset)),
        look_ahead=fleet.look_ahead,
        backbones_per_actor=fleet.backbones_per_actor,
        concurrent=fleet.concurrent,
        sample_weighting=job.distillation.sample_weighting is not None,
        records=job.guidance == "auto",
        number_bytes=np.dtype(job.outputs.dtype).itemsize,
        student_bytes=weights.of(student.model),
        teacher_bytes=teacher_bytes,
        backbone_bytes=sum(dict(backbones.values()).values()),
        at_once=None if student.at_once == AUTO else student.at_once,
        student_cpus=student.cpus,
        student_gpus=given.student.takes["GPU"],
        actor_cpus=fleet.cpus,
        actor_gpus=a_number(given.fleet.gpus),
        gpus_left_open=tuple(key for key in ("student", "fleet") if getattr(job, key).gpus == AUTO),
        students_on_a_gpu=most_on_a_gpu(weights.of(student.model) // 4, shape),
        actors_on_a_gpu=most_on_a_gpu(teacher_bytes // 4, shape),
    )


def _views(job: Job, dataset: Dataset | None) -> list[int]:
    """Numbers of the views that the epochs show."""
    views = getattr(job.data, "views", None)
    number = dataset.view if dataset else views.number if views else lambda epoch: 0
    return sorted({number(epoch) for epoch in range(job.student.training.epochs)})


class _Weights:
    """Bytes of models' parameters and buffers, float32; each architecture is built once."""

    def __init__(self, shape: Shape, classes: int) -> None:
        self._shape, self._classes = shape, classes
        self._known: dict[str, int] = {}

    def of(self, model: Model) -> int:
        """Bytes of a model."""
        if (key := model.model_dump_json()) not in self._known:
            tensors = check_name(model, self._shape, self._classes).state_dict().values()
            self._known[key] = sum(t.numel() * t.element_size() for t in tensors)
        return self._known[key]


def _stored(folder: Path) -> int:
    """Bytes of a finished model's weights."""
    return (folder / WEIGHTS).stat().st_size


@dataclass(frozen=True)
class Needs:
    """What a job will take, in bytes, besides its data set; nothing where there is no job.

    Attributes:
        process: memory of its largest process, which lives on one node.
        memory: of all that teach and all workers of a student together.
        object_store: of a node, for what is on its way at once.
        disk: that will be written below a folder, by its key in the job.
        declined: keys with which the job declines GPUs.
    """

    process: float = 0
    memory: float = 0
    object_store: float = 0
    disk: Mapping[str, int] = field(default_factory=dict)
    declined: tuple[str, ...] = ()


def needs_of(points: Sequence[Job]) -> Needs:
    """What a job takes; of a study's points the one that takes most, and the disk of all.

    Args:
        points: of the study, or the one job. They share their folders.

    Raises:
        AgrekdError: the data, or a checkpoint that the job names, cannot be read.
    """
    models: dict[Path, int] = {}
    records: dict[tuple[Path, int], int] = {}
    processes, memory, stored, students = [0.0], [0.0], [0.0], 0
    for job in points:
        dataset, plan = open_dataset(job.data), make_plan(job)
        size = size_of(job, plan, dataset)
        missing_models = _missing_models(job, plan, dataset)
        missing_records = _missing_records(job, plan, dataset, size)
        models |= missing_models
        records |= missing_records
        worker = size.worker_memory()
        processes += [worker, *(PROCESS + IN_TRAINING * one for one in missing_models.values())]
        together = size.workers * worker
        if size.strategies and (job.guidance == "live" or missing_records):
            fleet = size.fleet_memory()
            processes += [fleet["teacher_actor"], fleet["weighting_actor"]]
            beside_weights = fleet["teacher_actor"] - fleet["teacher_weights"]
            together += size.actors * beside_weights + size.backbone_bytes
            together += fleet["weighting_actor"]
            stored.append(fleet["object_store"])
        memory.append(together)
        # What finished students leave, and the state of the one under way.
        copies = (2 if job.tracking.models else 1) * len(plan.assignments)
        students += size.student_bytes * (copies + IN_TRAINING)
    keys = ("student.gpus", "teachers.gpus", "fleet.gpus")
    declined = tuple(
        key for key in keys if any(getattr(job, key.split(".")[0]).gpus == 0 for job in points)
    )
    disk = {
        "runs": students,
        "teachers.store": sum(models.values()),
        "outputs.store": sum(records.values()),
    }
    return Needs(max(processes), max(memory), max(stored), disk, declined)


def _missing_models(job: Job, plan: Plan, dataset: Dataset) -> dict[Path, int]:
    """Bytes of the models that the pool does not have yet, by their folder."""
    pool, weights = Pool(job.teachers.store, dataset), _Weights(dataset.shape, len(dataset.classes))
    models = {pool.folder(recipe): recipe.model for recipe in plan.recipes}
    return {
        folder: weights.of(model)
        for folder, model in models.items()
        if not is_file(folder / WEIGHTS)
    }


def _missing_records(
    job: Job, plan: Plan, dataset: Dataset, size: JobSize
) -> dict[tuple[Path, int], int]:
    """Bytes of the teachers' answers that are not recorded yet, by teacher's folder and view."""
    if not (size.records and size.strategies):
        return {}
    ensemble = plan.checkpoints(Pool(job.teachers.store, dataset))
    made = {name: folder for name, folder in ensemble.items() if is_file(folder / WEIGHTS)}
    outputs = LogitsCache(job.outputs, made, dataset, job.fleet.computes_in)
    return {
        (folder, view): size.view_bytes // size.hosted
        for name, folder in ensemble.items()
        for view in _views(job, dataset)
        if name not in made or not exists(outputs.path(name, view))
    }
