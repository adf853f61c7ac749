"""What a run of any kind has an engine do: models of the pool, their logits, and students."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from agrekd_ray.config import Job
from agrekd_ray.data import SELECT, TEST, TRAIN, Dataset, open_dataset
from agrekd_ray.distillation import Competence, competence_of
from agrekd_ray.errors import AgrekdError, listed
from agrekd_ray.experiment.display import RECORDED, Display
from agrekd_ray.experiment.engine import Engine
from agrekd_ray.experiment.eval_logits import Answers, send_records
from agrekd_ray.experiment.plan import Plan, epochs_of, views_of
from agrekd_ray.logits import LogitsCache
from agrekd_ray.results import TeacherCost
from agrekd_ray.student import StudentSpec, read_outcome
from agrekd_ray.teachers import Asked, Pool, Recipe

Result = TypeVar("Result")


@dataclass
class Work:
    """Students that are placed alike, and the models that they and their results need.

    Whatever of it is done already, by an earlier attempt or for another run, is not done again.

    Attributes:
        job: gives data, pool, records and all that places a student.
        students: folder where finished students are put.
        storage: folder for checkpoints of the training under way.
        specs: the students, in order.
        checkpoints: folders of everybody who teaches, by name.
        recipes: of every model that the pool must hold.
        answering: names of the models whose logits the results need, by checkpoint.
    """

    job: Job
    students: Path
    storage: Path
    specs: list[StudentSpec] = field(default_factory=list)
    checkpoints: dict[str, Path] = field(default_factory=dict)
    recipes: list[Recipe] = field(default_factory=list)
    answering: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, plan: Plan, folder: Path) -> Work:
        """Everything of one job.

        Args:
            job: the job.
            plan: of its students; of the default, where a search varies it.
            folder: of the run.
        """
        work = cls(job, folder / "students", folder / "training", list(plan.specs))
        work.recipes = plan.recipes
        work.checkpoints = plan.checkpoints(work.pool) if plan.needs_ensemble else {}
        work.answering = plan.answering(work.pool)
        return work

    @cached_property
    def dataset(self) -> Dataset:
        """The data of the job."""
        return open_dataset(self.job.data)

    @cached_property
    def pool(self) -> Pool:
        """The pool of the job's teachers."""
        return Pool(self.job.teachers.store, self.dataset)

    @cached_property
    def answers(self) -> Answers:
        """What finished models say to the splits that nobody trains on."""
        return Answers(self.job, self.dataset)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left for an engine."""
        return not (self.left() or self.pool.missing(self.recipes) or self.unanswered())

    def distinct(self) -> list[StudentSpec]:
        """The students that must be trained, whoever needs them."""
        return self.specs

    def left(self) -> list[StudentSpec]:
        """Those of them that are not finished."""
        return [spec for spec in self.distinct() if read_outcome(self.students / spec.name) is None]

    def unanswered(self, splits: Sequence[str] = (SELECT, TEST)) -> list[Asked]:
        """Who is still to be asked about which of the splits."""
        return self.answers.missing(self.answering, splits)

    def make_teachers(self, engine: Engine, display: Display, part: str = "") -> None:
        """Make what the pool is missing.

        Args:
            engine: does the work.
            display: the progress line.
            part: of the run, in words; empty where there is one.
        """
        families = self.pool.missing(self.recipes)
        if not families:
            return
        needed = {self.pool.fingerprint(recipe) for recipe in self.recipes}
        absent = {self.pool.fingerprint(recipe) for family in families for recipe in family}
        if have := len(needed - absent):
            display.note(f"{have} models of the pool are there already")
        self._make(families, engine, display, part)

    def _make(
        self, families: list[list[Recipe]], engine: Engine, display: Display, part: str = ""
    ) -> None:
        for folder in self.pool.damaged(families):
            display.note(f"{folder}: damaged, so it is made again")
        for turn in self.pool.in_turn(families):
            display.stage(f"teachers {part}".strip(), epochs_of(turn), "epochs")
            engine.make_teachers(turn, self.storage.with_name("groups"))

    def mended(self, error: AgrekdError, engine: Engine, display: Display) -> bool:
        """Whether a model of the pool that an error names was damaged; such are made again.

        `Pool.missing` looks at no weights: whoever loads them finds it out. Then all are read.

        Args:
            error: of something that loads models.
            engine: does the work.
            display: the progress line.
        """
        named = [recipe for recipe in self.recipes if self.pool.folder(recipe).name in str(error)]
        if not self.pool.missing(named, verify=True):
            return False
        self._make(self.pool.missing(self.recipes, verify=True), engine, display)
        return True

    def _mending(self, load: Callable[[], Result], engine: Engine, display: Display) -> Result:
        """What a function that loads models returns; once more where some were damaged."""
        try:
            return load()
        except AgrekdError as error:
            if not self.mended(error, engine, display):
                raise
        return load()

    def cache(self) -> LogitsCache:
        """The records of what everybody who teaches says."""
        return LogitsCache(
            self.job.outputs, self.checkpoints, self.dataset, self.job.fleet.computes_in
        )

    def record(self, engine: Engine, display: Display, views: Sequence[int]) -> TeacherCost:
        """Record what is missing of what everybody who teaches says to whole views.

        Args:
            engine: does the work.
            display: the progress line.
            views: their numbers.

        Returns:
            What that cost.
        """

        def record() -> TeacherCost:
            missing = self.cache().missing(views)
            if not missing:
                return TeacherCost()
            rows = len({view for _, view in missing}) * len(self.dataset.splits[TRAIN])
            display.stage("outputs", rows, RECORDED)
            cost = engine.record(self.checkpoints, views)
            self._send(views, display)
            return cost

        return self._mending(record, engine, display)

    def ask(
        self, engine: Engine, display: Display, splits: Sequence[str] = (SELECT, TEST)
    ) -> TeacherCost | None:
        """Ask the models whose logits the results need, and that nobody has asked yet.

        Args:
            engine: does the work.
            display: the progress line.
            splits: what they are asked about.

        Returns:
            What that cost of the teachers; None where none of them was asked.
        """

        def ask() -> list[Asked]:
            asked = self.unanswered(splits)
            self.answers.complete(asked, engine, display)
            return asked

        asked = self._mending(ask, engine, display)
        teachers = {*self.checkpoints.values()}
        forwards = sum(len(model.splits) for model in asked if model.folder in teachers)
        return TeacherCost(forwards=forwards) if forwards else None

    def train(
        self, engine: Engine, display: Display, stage: str = "students"
    ) -> TeacherCost | None:
        """Train the students that are not finished.

        Args:
            engine: does the work.
            display: the progress line, which counts what earlier attempts have done.
            stage: what it calls this.

        Returns:
            What their teachers cost; None where nobody was taught.
        """
        left = self.left()
        total, rest = (
            sum(spec.training.epochs for spec in specs) for specs in (self.distinct(), left)
        )
        display.stage(stage, total, "epochs", total - rest)
        if not left:
            return None
        left = self._informed(left, engine, display)
        taught = any(spec.spec for spec in left)
        checkpoints = self.checkpoints if taught else {}
        cost = engine.train_students(left, checkpoints, self.students, self.storage)
        if not taught:
            return None
        self._send(views_of(self.dataset, max(spec.training.epochs for spec in left)), display)
        return cost

    def _send(self, views: Sequence[int], display: Display) -> None:
        """Wait until the object store, if there is one, has the records of some views."""
        if self.job.outputs.remote is not None:
            send_records(lambda: self.cache().settle(views), display)

    def _informed(
        self, specs: Sequence[StudentSpec], engine: Engine, display: Display
    ) -> list[StudentSpec]:
        """Students with the competence of their teachers, where they need it.

        It is what the teachers answer to the selection split, asked where nobody has asked yet.
        """
        members = {
            self.checkpoints[name]: name
            for spec in specs
            if spec.spec is not None and spec.spec.needs_competence
            for name in (*spec.spec.teachers, spec.spec.biased)
        }
        if not members:
            return list(specs)
        self.answers.complete(self.answers.missing(members, (SELECT,)), engine, display)
        informed = [spec.informed(self.competence) for spec in specs]
        for text in filter(None, map(_distrusted, informed)):
            display.remark(text)
        return informed

    def competence(self, teachers: Sequence[str], biased: str) -> Competence:
        """How far teachers may be trusted against the biased model; see `core.competence`.

        Args:
            teachers: names; all of them have been asked about the selection split.
            biased: name of the biased model.
        """
        known = {
            name: self.answers.logits(self.checkpoints[name], SELECT)
            for name in (*teachers, biased)
        }
        labels_N = self.dataset.labels(self.dataset.splits[SELECT])
        return competence_of(teachers, biased, known, labels_N)


def _distrusted(student: StudentSpec) -> str:
    """Which teachers a student's guard gives no weight, in words; empty where it trusts all."""
    spec = student.spec
    if spec is None or spec.competence is None:
        return ""
    trusted = dict(zip(spec.teachers, map(any, spec.competence), strict=True))
    why = "where they contradict the biased model, it is right as often on validation"
    if not any(trusted.values()):
        return f"{spec.strategy} trusts no teacher, so it averages them as aver does: {why}"
    names = [name for name, is_trusted in trusted.items() if not is_trusted]
    return f"{spec.strategy} gives {listed(names)} no weight: {why}" if names else ""
