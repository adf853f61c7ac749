"""A job in numbers: what its processes hold, what they send one another, what is not made yet.

`agrekd plan` forecasts from these numbers, and `agrekd doctor` holds a cluster against them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from agrekd_ray.config import Fault, Job, JobError, check_job, read_job
from agrekd_ray.config.checks import outputs_faults
from agrekd_ray.core.weighting import find_strategy, needs_global_batch
from agrekd_ray.data import SELECT, TEST, TRAIN, Dataset, open_dataset
from agrekd_ray.distillation.spec import INLINE
from agrekd_ray.experiment.gpus import SMALL, most_on_a_gpu, numbered
from agrekd_ray.experiment.plan import Plan, make_plan
from agrekd_ray.logits.forms import Dtype, Form
from agrekd_ray.models import Model, Shape, check_name, read_manifest
from agrekd_ray.models.checkpoint import WEIGHTS
from agrekd_ray.settings import AUTO, a_number

UNKNOWN_SHAPE: Shape = (3, 224, 224)
"""What samples are taken for where the data are not there."""
PROCESS = 380e6
"""Bytes of a Ray process that has imported PyTorch and holds nothing yet, as measured."""
IN_TRAINING = 4
"""What a model in training takes, in its own size: weights, gradients, two states of AdamW."""
COPIES = 4
"""Times the gradients' own bytes that weighing takes at its peak: 3.4 to 3.6 by strategy, and what
the allocator keeps. `agre_kd_guarded` takes 7.7."""
FLOAT, ID = 4, 8
REQUEST, REPLIES, ANSWER = 454, 230, 410
"""Bytes of a message without its numbers and names; a test holds them to the real pickles."""
NAME, VIEW = 3, 30
"""Bytes of a name besides its letters, and of a coming batch besides its ids."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of one request and what follows it.

    Attributes:
        request: to the weighting actor, and from there to each teachers' actor.
        replies: of all actors together.
        reply: of the actor with most teachers.
        answer: back to the student.
        requests: that the workers ask in a step.
        samples: of a request.
    """

    request: int
    replies: int
    reply: int
    answer: int
    requests: int
    samples: int

    @property
    def shared(self) -> bool:
        """Whether a request is one object that all actors read."""
        return self.request > INLINE


@dataclass(frozen=True)
class JobSize:
    """A job in numbers.

    Attributes:
        strategies: of the job's students with teachers, one entry a student; the first one's live
            step is forecast.
        plain: students on labels alone.
        members: all who answer: the teachers, and the biased model where the strategy uses it.
        name_bytes: of the members' names in a message.
        teachers: M.
        hosted: teachers in the actors; where outputs are recorded, those of all of them are.
        backbones: different ones, each with a forward pass of its own.
        batch: samples of a step, over all workers.
        workers: of the student.
        classes: C.
        samples: of the training split.
        evaluated: samples on which a student is evaluated, over all epochs and at its end.
        epochs: of every student.
        views: that the teachers are asked for in all.
        look_ahead: batches that the teachers compute ahead.
        backbones_per_actor: as the job says.
        concurrent: backbones of an actor that compute at once.
        sample_weighting: whether samples are weighted, which needs whole batches.
        records: whether the teachers' outputs are recorded and replayed.
        dtype: of recorded logits.
        top_k: of a recorded answer; None for all logits.
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
        weighting_actors: 1, or one for each of the student's workers; None leaves it to the plan.
    """

    strategies: tuple[str, ...]
    plain: int
    members: int
    name_bytes: int
    teachers: int
    hosted: int
    backbones: int
    batch: int
    workers: int
    classes: int
    samples: int
    evaluated: int
    epochs: int
    views: int
    look_ahead: int
    backbones_per_actor: int
    concurrent: int = 1
    sample_weighting: bool = False
    records: bool = True
    dtype: Dtype = "float32"
    top_k: int | None = None
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
    weighting_actors: int | None = None

    @property
    def actors(self) -> int:
        """Processes of the teachers."""
        return -(-self.backbones // self.backbones_per_actor)

    @property
    def fullest(self) -> int:
        """Backbones of the actor that has most."""
        return -(-self.backbones // self.actors)

    @property
    def fullest_members(self) -> int:
        """Members that the actor answers for which has most of them, at least."""
        return -(-self.members // self.actors)

    @property
    def part(self) -> int:
        """Samples of a worker's part of the batch."""
        return self.batch // self.workers

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.samples // self.batch

    @property
    def answer_bytes(self) -> int:
        """Bytes of a recorded row of logits."""
        return Form(self.dtype, self.top_k, self.classes).row_bytes

    @property
    def view_bytes(self) -> int:
        """Bytes of one view's records, of all teachers."""
        return self.hosted * self.samples * self.answer_bytes

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
        return self.workers > 1 and not any(map(self.gathers, set(self.strategies)))

    @property
    def shards(self) -> int:
        """Weighting actors; one where the job leaves their number open."""
        return self.weighting_actors or 1

    @functools.cached_property
    def traffic(self) -> Traffic:
        """Bytes of a live step's messages.

        A request has the names, the teachers' competence where the strategy needs it, ids of this
        batch and of those ahead, and the student's logits; a
        reply has gradients, and cross-entropies where the strategy needs them; the answer has
        gradient, loss and fallback by sample, and three numbers by teacher.
        """
        whole = self.gathers(self.strategies[0])
        samples, classes = self.batch if whole else self.part, self.classes
        strategy = find_strategy(self.strategies[0])
        entropy = strategy.needs_cross_entropy
        competence = strategy.needs_competence * self.teachers * (9 * classes + 3)
        ids = (1 + self.look_ahead) * samples * ID + self.look_ahead * VIEW
        gradients = samples * (classes + entropy) * FLOAT
        by_member = self.name_bytes // self.members + gradients
        by_sample = (classes + 1 + 2 * self.teachers) * FLOAT + 1
        return Traffic(
            request=REQUEST + self.name_bytes + competence + ids + samples * classes * FLOAT,
            replies=self.actors * REPLIES + self.name_bytes + self.members * gradients,
            reply=REPLIES + self.fullest_members * by_member,
            answer=ANSWER + samples * by_sample + self.teachers,
            requests=1 if whole else self.workers,
            samples=samples,
        )

    def memory(self, process: float = PROCESS) -> dict[str, float]:
        """Bytes that each kind of process takes; of activations nothing is known.

        Teachers' actors keep the logits of `(look_ahead + 2) · (workers + 1)` batches. Messages
        above 100 kB are in the object store too, once more.

        Args:
            process: bytes that a process takes by itself.

        Returns:
            `worker` of a student; `teacher_actor` of the actor with most teachers, of which
            `teacher_weights` are weights; `weighting_actor` of each of them, and `object_store`
            beside it.
        """
        sent = self.traffic
        numbers = sent.samples * self.classes * FLOAT
        weights = self.fullest * self.teacher_bytes
        kept = (self.look_ahead + 2) * (self.workers + 1) * self.fullest_members * numbers
        asked = sent.requests / self.shards
        stored = (
            2 * sent.request * sent.shared  # the worker's, and the one for all actors
            + sent.replies * (sent.reply > INLINE)
            + sent.answer * (sent.answer > INLINE)
        )
        held = asked * (sent.request + sent.replies) + COPIES * self.members * numbers
        return {
            "worker": process + IN_TRAINING * self.student_bytes,
            "teacher_actor": process + weights + kept + sent.request + 2 * sent.reply,
            "teacher_weights": weights,
            "weighting_actor": process + held,
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
    if samples is not None:  # which the batches are held against, below, and not the data's
        faults = [fault for fault in faults if not fault.problem.endswith("training samples")]
    absent = [fault for fault in faults if fault.key.split(".")[0] == "data"]
    if absent and (classes is None or samples is None):
        problem = "stand for data that are not here; give both"
        faults.append(Fault("--classes, --samples", "", problem))
    elif job is None and faults == absent:
        with contextlib.suppress(ValidationError):  # the data are not absent, but wrong
            job = Job.model_validate(raw)
    if job is None:
        raise JobError(str(path), faults)
    dataset = None if absent else open_dataset(job.data)
    plan = make_plan(job)
    if plan.strategies and job.guidance != "local":
        size = size_of(job, plan, dataset, classes, samples)
        if unfit := list(outputs_faults(job.outputs, size.classes)):  # `classes` is not the data's
            raise JobError(str(path), unfit)
        if size.steps:
            return job, dataset, size
        problem = f"more than the {size.samples} training samples"
        fault = Fault("student.training.batch_size", str(size.batch), problem)
    elif plan.strategies:
        problem = "has no actors to plan for; set guidance=auto or live"
        fault = Fault("guidance", "local", problem)
    else:
        problem = "no method has teachers that distil; name one, like agre_kd"
        fault = Fault("methods", ", ".join(job.methods), problem)
    raise JobError(str(path), [fault])


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
    specs = [a.spec for a in plan.specs if a.spec is not None]
    members = specs[0].members if specs else ()
    student, training, fleet = job.student, job.student.training, job.fleet
    lengths = {name: len(ids) for name, ids in dataset.splits.items()} if dataset else {}
    select, test = lengths.get(SELECT, 0), lengths.get(TEST, 0)
    shape = dataset.shape if dataset is not None else UNKNOWN_SHAPE
    classes = classes or len(dataset.classes if dataset is not None else ())
    shown = dataset.view if dataset else getattr(getattr(job.data, "views", None), "number", None)
    views = set(map(shown, range(training.epochs))) if shown else {0}
    backbones = backbones_of(job, plan, shape, classes)
    bytes_of = dict(backbones.values())
    teacher_bytes = max((size for _, size in backbones.values()), default=0)
    student_bytes = model_bytes(student.model, shape, classes)
    given = numbered(job)
    return JobSize(
        strategies=tuple(spec.strategy for spec in specs),
        plain=len(plan.specs) - len(specs),
        members=len(members),
        name_bytes=sum(len(name) + NAME for name in members),
        teachers=len(plan.draw.teachers),
        hosted=len(backbones),
        backbones=len(bytes_of),
        batch=training.batch_size,
        workers=student.workers,
        classes=classes,
        samples=samples or lengths[TRAIN],
        evaluated=(training.epochs + 1) * select + test,
        epochs=training.epochs,
        views=len(views),
        look_ahead=fleet.look_ahead,
        backbones_per_actor=fleet.backbones_per_actor,
        concurrent=fleet.concurrent,
        sample_weighting=job.distillation.sample_weighting is not None,
        records=job.guidance == "auto",
        dtype=job.outputs.dtype,
        top_k=job.outputs.top_k,
        student_bytes=student_bytes,
        teacher_bytes=teacher_bytes,
        backbone_bytes=sum(bytes_of.values()),
        at_once=None if student.at_once == AUTO else student.at_once,
        student_cpus=student.cpus,
        student_gpus=given.student.takes["GPU"],
        actor_cpus=fleet.cpus,
        actor_gpus=a_number(given.fleet.gpus),
        gpus_left_open=tuple(key for key in ("student", "fleet") if getattr(job, key).gpus == AUTO),
        students_on_a_gpu=most_on_a_gpu(student_bytes // FLOAT, shape),
        actors_on_a_gpu=most_on_a_gpu(teacher_bytes // FLOAT, shape),
    )


def backbones_of(job: Job, plan: Plan, shape: Shape, classes: int) -> dict[str, tuple[str, int]]:
    """Name and bytes of the backbone of every teacher that is hosted, where any are."""
    specs = [a.spec for a in plan.specs if a.spec is not None]
    hosted = {*plan.draw.recipes, *plan.draw.own} if specs else set()
    if job.guidance == "live":
        hosted = {name for spec in specs for name in spec.members}

    def backbone(name: str) -> tuple[str, int]:
        if (recipe := plan.draw.recipes.get(name)) is not None:
            return recipe.parent.model_dump_json(), model_bytes(recipe.model, shape, classes)
        folder = plan.draw.own[name]
        return read_manifest(folder).backbone, (folder / WEIGHTS).stat().st_size

    return {name: backbone(name) for name in sorted(hosted)}


def model_bytes(model: Model, shape: Shape, classes: int) -> int:
    """Bytes of a model's parameters and buffers, float32."""
    return _built_bytes(model.model_dump_json(), shape, classes)


@functools.cache
def _built_bytes(model: str, shape: Shape, classes: int) -> int:
    tensors = check_name(Model.model_validate_json(model), shape, classes).state_dict().values()
    return sum(tensor.nbytes for tensor in tensors)
