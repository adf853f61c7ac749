"""One job from nothing to its table: pool, students, votes, reports."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from torch import Tensor

from agrekd_ray import __version__
from agrekd_ray.cluster.environment import prepare
from agrekd_ray.cluster.events import Event, StudentDone, TeacherCostSoFar
from agrekd_ray.config import Job
from agrekd_ray.data import SELECT, TEST, Dataset, Prepared, open_dataset, splits_in_words
from agrekd_ray.errors import AgrekdError, RunError
from agrekd_ray.experiment.account import Account
from agrekd_ray.experiment.display import Display, ready_data
from agrekd_ray.experiment.ending import tracked
from agrekd_ray.experiment.engine import Engine, Handle, LocalEngine
from agrekd_ray.experiment.eval_logits import Answers, members
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.monitor import Monitor, flat
from agrekd_ray.experiment.plan import Plan, epochs_of, make_plan
from agrekd_ray.experiment.settled import settled
from agrekd_ray.files import cannot_read, unreadable
from agrekd_ray.models import load
from agrekd_ray.report import job as report
from agrekd_ray.report.archive import RESULTS, JobArchive, read_job
from agrekd_ray.results import Cost, Diagnostics, StudentResult, TeacherCost, TeacherResult
from agrekd_ray.student import StudentSpec, read_outcome, write_outcome
from agrekd_ray.teachers import Asked, Pool
from agrekd_ray.tracking.outbox import Outbox
from agrekd_ray.tracking.tracker import DEGRADED, open_tracker
from agrekd_ray.training import agreement, calibration, score


def run_job(
    folder: RunFolder,
    console: Console,
    tags: Mapping[str, str] | None = None,
    *,
    draw: bool = True,
) -> list[StudentResult]:
    """Do what is left of a job: all of it for a new folder, the rest for one that was stopped.

    Args:
        folder: of the run.
        console: for progress and the table.
        tags: further tags of its run in MLflow.
        draw: whether plots are drawn.

    Returns:
        The outcomes of every method × seed, in the order of the job.

    Raises:
        AgrekdError: the run cannot go on; what is finished stays in the folder.
        KeyboardInterrupt: it was stopped.
    """
    with folder.claimed():
        return _Run(folder, console, tags or {}, draw).go()


def open_engine(job: Job, handle: Handle) -> Engine:
    """Who does the work of a job.

    Args:
        job: the job.
        handle: gets every event.
    """
    if job.guidance == "local":
        return LocalEngine(job, handle)
    prepare(starts_cluster=job.ray.address is None)
    from agrekd_ray.experiment.ray_engine import RayEngine

    return RayEngine(job, handle)


def cost_metrics(cost: Cost, outcomes: Sequence[StudentResult]) -> dict[str, float]:
    """What a run and its teachers cost, under MLflow's names.

    Args:
        cost: of all attempts.
        outcomes: students, whose fastest epoch says what a step of theirs takes.
    """
    figures, effort = {"cost/seconds": cost.seconds}, cost.effort
    if effort is None:
        return figures
    figures |= {
        f"teachers/{name}": float(value)
        for name, value in asdict(effort).items()
        if isinstance(value, int | float)
    }
    steps = [e.seconds / e.steps for outcome in outcomes for e in outcome.history if e.steps]
    if steps and min(steps) > 0:
        figures["cost/teacher_steps"] = effort.seconds / min(steps)
    return figures


def outcomes_of(folder: RunFolder) -> list[StudentResult]:
    """Every method × seed of a run that is finished, in the order of the job."""
    found = [
        read_outcome(folder.students / f"{method}-seed-{seed}")
        for method in folder.job.methods
        for seed in folder.job.seeds
    ]
    return [outcome for outcome in found if outcome is not None]


def package_versions(*others: str) -> dict[str, str]:
    """Of this package, of Python, and of the packages that results depend on."""
    packages = ("torch", "ray", "mlflow", "numpy", "scikit-learn", *others)
    ours = {"agrekd_ray": __version__, "python": platform.python_version()}
    return ours | {name: version(name) for name in packages}


Archive = TypeVar("Archive")


def results_of(read: Callable[[Path], Archive], folder: Path) -> Archive | None:
    """The results of a run that had come to its end; None where they are missing or damaged.

    Raises:
        RunError: the system cannot read them.
    """
    try:
        (folder / RESULTS).read_bytes()
        return read(folder)
    except OSError as error:
        if unreadable(error):
            raise cannot_read(folder / RESULTS, error) from None
    except RunError:
        pass
    return None


class _Run:
    """The state that the parts of one run share."""

    def __init__(
        self, folder: RunFolder, console: Console, tags: Mapping[str, str], draw: bool
    ) -> None:
        self.folder, self.console, self.tags, self.draws = folder, console, tags, draw
        self.job: Job = settled(folder.job)
        self.plan: Plan = make_plan(self.job)
        self.dataset: Dataset = open_dataset(self.job.data)
        self.pool = Pool(self.job.teachers.store, self.dataset)
        self.answers = Answers(self.job, self.dataset)
        self.display = Display(console)
        self.tracker = open_tracker(
            self.job.tracking.uri,
            self.job.tracking.experiment or self.job.name,
            self.job.runs,
            wait=False,  # Ray starts meanwhile
        )
        self.outbox = Outbox(lambda text: self.display.note(text, "yellow"))
        self.monitor = Monitor(self.display, self.tracker, self.outbox, self.plan.assignments)
        self.account = Account(folder.path)
        self.known: JobArchive | None = None
        """Of a run that had come to its end: only what is missing is added to it."""
        self._to_log: set[str] = set()
        """Students whose model MLflow gets, or has got."""
        self._logged, self._counts, self._stopped = 0, False, False
        self._engine: Future[Engine] | None = None

    def go(self) -> list[StudentResult]:
        if self.folder.state().status == "finished" and self._whole():
            self.known = results_of(read_job, self.folder.path)
        self.display.stage("start", 0, "")
        with (
            self._engine_opened(),
            tracked(
                self.folder,
                self.tracker,
                self.outbox,
                self.job.name,
                flat(self.folder.job.model_dump(mode="json")),
                tags=self.tags,
            ) as run_id,
            self.display,
            self.account,
        ):
            try:
                outcomes, unsent = self._through(run_id)
            except BaseException:
                self._stopped = True  # models are left to `resume`: they would hold up the end
                raise
        self.folder.finish()
        self._show(outcomes, self.account.cost)
        if unsent:
            self.console.print(
                f"MLflow did not get everything: when it answers again, agrekd resume "
                f"{self.folder.path}",
                style="yellow",
                soft_wrap=True,
            )
        return outcomes

    @contextmanager
    def _engine_opened(self) -> Iterator[None]:
        """Start what trains the students, while MLflow's store is opened: both take seconds.

        Where that fails, it fails again where the engine is used, so that MLflow hears of it.
        """
        opened: Future[Engine] = Future()
        try:
            if self._left() and not (
                isinstance(self.dataset, Prepared) and self.dataset.unprepared()
            ):
                self._engine = opened
                opened.set_result(open_engine(self.job, self._handle))
        except BaseException as error:
            self._engine = opened
            opened.set_exception(error)
        try:
            yield
        finally:  # an engine that nobody has used
            unused, self._engine = self._engine, None
            if unused is not None and unused.exception() is None:
                unused.result().close()

    def _left(self) -> list[StudentSpec]:
        """Students that are not finished."""
        return [
            assignment
            for assignment in self.plan.assignments
            if read_outcome(self.folder.students / assignment.name) is None
        ]

    def _through(self, run_id: str) -> tuple[list[StudentResult], int]:
        """Everything, from data to MLflow; the last number is of writes that it did not get."""
        ready_data(self.dataset, self.display, dfr=self.job.retrains)
        if self.known is None:
            self.tracker.reopen(run_id)
            self._work()
            self._votes()
        else:
            self.account.forget()
        outcomes = self._outcomes()
        for outcome in outcomes:  # of an earlier attempt, too
            self.monitor.finished(outcome)
        cost = self.known.job.cost if self.known else self.account.cost
        self.display.stage("results", 0, "")
        self._reports(outcomes, cost)
        self._publish(run_id, outcomes, cost)
        return outcomes, self.outbox.drain()

    def _whole(self) -> bool:
        """Whether every method × seed is there."""
        voted = [f"{method}-seed-{seed}" for method, seed in self.plan.votes]
        if "teacher_vote" in self.job.methods:
            voted.append(f"teacher_vote-seed-{self.job.seeds[0]}")
        trained = [name for given in self.plan.assignments for name in given.results]
        return all(read_outcome(self.folder.students / name) for name in (*trained, *voted))

    def _work(self) -> None:
        """Teachers and students: what needs an engine."""
        families = self.pool.missing(self.plan.recipes)
        left = self._left()
        if not families and not left and not self._unanswered():
            return
        engine = self._engine.result() if self._engine else open_engine(self.job, self._handle)
        try:
            have = len({self.pool.fingerprint(recipe) for recipe in self.plan.recipes}) - sum(
                map(len, families)
            )
            if families:
                if have:
                    self.display.note(f"{have} models of the pool are there already")
                for folder in self.pool.damaged(families):
                    self.display.note(f"{folder}: damaged, so it is made again")
                self.display.stage("teachers", epochs_of(families), "epochs")
                engine.make_teachers(families)
            took = self._ask(engine)  # of processes that have just trained, for they are warm
            if left:
                self._train(engine, left)
            if took:
                self.account.add(TeacherCost(forwards=took))
        finally:
            self._engine = None
            engine.close()

    def _handle(self, event: Event) -> None:
        if isinstance(event, TeacherCostSoFar):
            self.account.so_far(event.effort)
            return
        self.monitor.handle(event)
        # torch.export sets flags that all threads see: nobody is trained beside it in one process.
        if isinstance(event, StudentDone) and self.job.guidance != "local":
            self._log_model(event.outcome)

    def _train(self, engine: Engine, left: list[StudentSpec]) -> None:
        everything = sum(a.training.epochs for a in self.plan.assignments)
        done = everything - sum(a.training.epochs for a in left)
        self.display.stage("students", everything, "epochs", done)
        taught = any(assignment.spec for assignment in left)
        try:
            effort = engine.train_students(
                self.plan.assignments,
                self.plan.checkpoints(self.pool) if taught else {},
                self.folder.students,
                self.folder.training,
            )
        except AgrekdError:
            if self.monitor.failure:
                raise RunError(self.monitor.failure) from None
            raise
        if taught:
            self.account.add(effort)

    def _unanswered(self) -> list[Asked]:
        return self.answers.missing(self.plan.answering(self.pool))

    def _ask(self, engine: Engine) -> int:
        """What the votes and the diagnostics need to know of finished models.

        Returns:
            Forward passes that it took of teachers.
        """
        asked = self._unanswered()
        self.answers.complete(asked, engine, self.display)
        teachers = {*self.plan.checkpoints(self.pool).values()}
        return sum(len(one.splits) for one in asked if one.folder in teachers)

    def _votes(self) -> None:
        """Outcomes of the ensembles that vote."""
        drawn, checkpoints = self.plan.draw, self.plan.checkpoints(self.pool)
        votes = [
            (method, seed, str(len(members)), [self.pool.folder(member) for member in members])
            for (method, seed), members in self.plan.votes.items()
        ]
        if "teacher_vote" in self.job.methods:
            folders = [checkpoints[name] for name in drawn.teachers]
            votes.append(("teacher_vote", self.job.seeds[0], drawn.in_words, folders))
        for method, seed, teachers, folders in votes:
            place = self.folder.students / f"{method}-seed-{seed}"
            if (outcome := read_outcome(place)) is None:
                told = {split: self.answers.vote(folders, split) for split in (SELECT, TEST)}
                splits = {
                    split: score(self.dataset, split, *found) for split, found in told.items()
                }
                outcome = StudentResult(
                    method,
                    seed,
                    teachers,
                    splits,
                    calibration=calibration(self.dataset, TEST, *told[TEST]),
                )
                write_outcome(place, outcome)
            self.monitor.finished(outcome)

    @functools.cached_property
    def diagnostics(self) -> Diagnostics:
        """What is found out about the ensemble."""
        if self.known is not None:
            return self.known.diagnostics
        if not self.plan.needs_ensemble:
            return Diagnostics()
        checkpoints, drawn = self.plan.checkpoints(self.pool), self.plan.draw

        def answers(names: Sequence[str], split: str) -> Tensor:
            return self.answers.vote([checkpoints[name] for name in names], split)[1]

        return Diagnostics(
            {
                split: agreement(
                    self.dataset,
                    split,
                    answers(drawn.teachers, split),
                    answers([drawn.biased], split),
                )
                for split in (SELECT, TEST)
            }
        )

    def _outcomes(self) -> list[StudentResult]:
        return outcomes_of(self.folder)

    def _members(self) -> tuple[list[TeacherResult], TeacherResult | None]:
        """The teachers, and the biased model, with their metrics."""
        if self.known is not None:
            return self.known.members, self.known.biased
        if not self.plan.needs_ensemble:
            return [], None
        return members(self.plan, self.pool, self.answers)

    def _reports(self, outcomes: list[StudentResult], cost: Cost) -> None:
        """results.json, results.csv and the plots: anew, or what is missing of them."""
        path, anew = self.folder.path, self.known is None
        members, biased = self._members()
        diagnostics = self.diagnostics
        about = {
            "name": self.job.name,
            "folder": str(path),
            "classes": self.dataset.classes,
            "groups": self.dataset.groups.names,
            "splits": splits_in_words(self.dataset),
            "data": self.dataset.fingerprint,
            **asdict(cost),
            "versions": package_versions(),
            "settings": self.folder.job.model_dump(mode="json"),
        }
        report.publish_files(
            path, outcomes, members, biased, about, diagnostics, anew=anew, draw=self.draws
        )

    @functools.cached_property
    def _example(self) -> np.ndarray:
        """Inputs that tell MLflow what a student is given."""
        inputs = self.dataset.inputs(self.dataset.splits[TEST][:2], None)
        return np.ascontiguousarray(inputs.numpy())

    def _log_model(self, outcome: StudentResult) -> None:
        """A student as a model in MLflow, which it becomes while the next ones train."""
        if not self.job.tracking.models or outcome.checkpoint is None:
            return
        if outcome.name in self._to_log:
            return
        self._to_log.add(outcome.name)

        def log() -> None:
            if self._stopped:
                return
            model, _ = load(self.folder.path / str(outcome.checkpoint))
            run = self.monitor.run(outcome)
            self.tracker.log_model(run, model, self._example, self.dataset.classes)
            self._logged += 1
            if self._counts:
                self.display.advance(outcome.name)

        self.outbox.put(log)

    def _publish(self, run_id: str, outcomes: list[StudentResult], cost: Cost) -> None:
        """To MLflow: the students that are no models there yet, the reports, the summary."""
        students = [o for o in outcomes if o.checkpoint is not None and self.job.tracking.models]

        def count() -> None:
            self._counts = True
            self.display.stage("MLflow", len(students), "models", self._logged)

        self.outbox.put(count)
        for outcome in students:
            self._log_model(outcome)
        metrics = {
            **report.summary_metrics(outcomes),
            **report.agreement_metrics(self.diagnostics),
            **cost_metrics(cost, outcomes),
        }
        if degraded := report.degraded_lines(outcomes):
            tags = {DEGRADED: "; ".join(degraded)}
            self.outbox.put(lambda: self.tracker.set_tags(run_id, tags))
        description = report.description(outcomes, self._members()[0])
        self.outbox.put(
            lambda: self.tracker.finish_job(
                run_id, self.folder.path, "FINISHED", metrics, description
            )
        )

    def _show(self, outcomes: list[StudentResult], cost: Cost) -> None:
        members, _ = self._members()
        console = self.console
        console.print()
        report.render(outcomes, members, console)
        console.print()
        report.render_degraded(report.degraded_lines(outcomes), console)
        for name, value in (
            ("finished in", cost.in_words),
            (
                "this time" if self.known or cost.attempts > 1 else "of them",
                ", ".join(self.display.stages()),
            ),
            *([("teachers", cost.effort.in_words)] if cost.effort else []),
            *_spent_lines(outcomes, cost.effort),
            ("results", str(self.folder.path)),
            ("plots", str(self.folder.plots)),
            ("MLflow", self.tracker.ui_command()),
        ):
            console.print(f"{name:<12}{value}", soft_wrap=True)


def _spent_lines(
    outcomes: Sequence[StudentResult], effort: TeacherCost | None
) -> list[tuple[str, str]]:
    """Where the time went, a line each; the first has the heading."""
    lines = report.spent(outcomes, effort)
    width = max((len(what) for what, _ in lines), default=0)
    return [
        ("" if number else "time", f"{what:<{width}}  {told}")
        for number, (what, told) in enumerate(lines)
    ]
