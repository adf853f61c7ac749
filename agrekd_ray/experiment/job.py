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
from threading import Thread
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from torch import Tensor

from agrekd_ray import __version__
from agrekd_ray.cluster.events import Event, StudentDone, StudentEpoch
from agrekd_ray.config import Job
from agrekd_ray.data import SELECT, TEST, Dataset, Prepared, open_dataset, splits_in_words
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.driver import Driver, open_engine
from agrekd_ray.experiment.engine import Engine
from agrekd_ray.experiment.eval_logits import checked_ensemble, members
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.monitor import Monitor, flat
from agrekd_ray.experiment.plan import Plan, make_plan
from agrekd_ray.experiment.preparing import note_biased_teacher, ready_data
from agrekd_ray.experiment.settled import settled
from agrekd_ray.experiment.work import Work
from agrekd_ray.files import cannot_read, unreadable
from agrekd_ray.models import load
from agrekd_ray.report import ensemble as ensemble_report
from agrekd_ray.report import job as report
from agrekd_ray.report.archive import RESULTS, JobArchive, read_job
from agrekd_ray.report.labels import labels_used
from agrekd_ray.results import Cost, Diagnostics, StudentResult, TeacherCost, TeacherResult
from agrekd_ray.student import read_outcome, write_outcome
from agrekd_ray.terminal import say
from agrekd_ray.tracking.tracker import DEGRADED, Tracker
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
    with folder.claimed(lambda text: say(console, text, "yellow")):
        return _JobDriver(folder, console, tags or {}, draw).run()


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


def log_model(tracker: Tracker, run: str, checkpoint: Path, dataset: Dataset) -> str:
    """A student as a model in MLflow.

    Args:
        tracker: MLflow.
        run: of the student.
        checkpoint: folder of the student.
        dataset: whose test split says what a student is given.

    Returns:
        The model's id.
    """
    inputs = dataset.inputs(dataset.splits[TEST][:2], None)
    example = np.ascontiguousarray(inputs.numpy())
    return tracker.log_model(run, load(checkpoint)[0], example, dataset.classes)


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


class _JobDriver(Driver[list[StudentResult]]):
    """The driver of one job."""

    folder: RunFolder

    def __init__(
        self, folder: RunFolder, console: Console, tags: Mapping[str, str], draw: bool
    ) -> None:
        self.job: Job = settled(folder.job)
        super().__init__(folder, console, self.job, self.job.name, tags)
        self.settings = folder.job.model_dump(mode="json")
        self.draws = draw
        self.plan: Plan = make_plan(self.job)
        self.dataset: Dataset = open_dataset(self.job.data)
        self.monitor = Monitor(self.display, self.tracker, self.outbox, self.plan.specs)
        self.known: JobArchive | None = None
        """Of a run that had come to its end: only what is missing is added to it."""
        self._to_log: set[str] = set()
        """Students whose model MLflow gets, or has got."""
        self._logged, self._counts, self._stopped = 0, False, False
        self._engine: Future[Engine] | None = None
        self._importing: Thread | None = None

    @functools.cached_property
    def work(self) -> Work:
        """What an engine is to do; of data that are ready."""
        return Work.of(self.job, self.plan, self.folder.path)

    def params(self) -> Mapping[str, Any]:
        return flat(self.settings)

    def recall(self) -> None:
        if self._whole():
            self.known = results_of(read_job, self.folder.path)

    @contextmanager
    def started(self) -> Iterator[None]:
        """The engine, opened while MLflow's store is.

        Where that fails, it fails again where the engine is used, so that MLflow hears of it.
        """
        self.display.stage("start", 0, "")
        opened: Future[Engine] = Future()
        try:
            ready = not (isinstance(self.dataset, Prepared) and self.dataset.unprepared())
            if ready and self.work.left():
                self._engine = opened
                opened.set_result(open_engine(self.job, self.handle))
        except BaseException as error:
            self._engine = opened
            opened.set_exception(error)
        try:
            yield
        finally:  # an engine that nobody has used
            unused, self._engine = self._engine, None
            if unused is not None and unused.exception() is None:
                unused.result().close()

    def through(self, run_id: str) -> list[StudentResult]:
        try:
            with self.display:
                ready_data(self.dataset, self.display, self.job)
                note_biased_teacher(self.job, self.display)
                if self.known is None:
                    self.tracker.reopen(run_id)
                    self._work()
                    self._votes()
                else:
                    self.account.forget()
                    self._show_ensemble()
                outcomes = outcomes_of(self.folder)
                for outcome in outcomes:  # of an earlier attempt, too
                    self.monitor.finished(outcome)
                cost = self.known.job if self.known else self.account.cost
                self.display.stage("results", 0, "")
                self._reports(outcomes, cost)
                self._publish(run_id, outcomes, cost)
                self.unsent = self.outbox.drain()
                return outcomes
        except BaseException:
            self._stopped = True  # models are left to `resume`: they would hold up the end
            raise

    def _whole(self) -> bool:
        """Whether every method × seed is there."""
        voted = [f"{method}-seed-{seed}" for method, seed in self.plan.votes]
        if "teacher_vote" in self.job.methods:
            voted.append(f"teacher_vote-seed-{self.job.seeds[0]}")
        trained = [name for spec in self.plan.specs for name in spec.results]
        return all(read_outcome(self.folder.students / name) for name in (*trained, *voted))

    def _work(self) -> None:
        """Teachers and students: what needs an engine."""
        if self.work.is_done:
            self._show_ensemble()
            return
        engine = self._engine.result() if self._engine else open_engine(self.job, self.handle)
        try:
            self.do(self.work, engine)
        finally:
            self._engine = None
            engine.close()

    def asked(self, work: Work, engine: Engine) -> None:
        self._show_ensemble()

    def _show_ensemble(self) -> None:
        """Say whether AGRE-KD can be trusted with the ensemble, on the screen and in MLflow."""
        if (check := self.diagnostics.ensemble) is None:
            return
        ensemble_report.render(check, self.display.console)
        if (run_id := self.folder.state().tracking_run) is not None:
            self.tag_warnings(run_id, check.warnings)

    def handle(self, event: Event) -> None:
        if not isinstance(event, StudentEpoch | StudentDone):
            super().handle(event)
            return
        self.monitor.handle(event)
        if isinstance(event, StudentDone) and self._importing is None:
            self._importing = Thread(target=report.import_what_draws, name="imports", daemon=True)
            self._importing.start()
        # torch.export sets flags that all threads see: nobody is trained beside it in one process.
        if isinstance(event, StudentDone) and self.job.guidance != "local":
            self._log_model(event.outcome)

    def _votes(self) -> None:
        """Outcomes of the ensembles that vote."""
        drawn, pool, answers = self.plan.draw, self.work.pool, self.work.answers
        votes = [
            (method, seed, str(len(members)), [pool.folder(member) for member in members])
            for (method, seed), members in self.plan.votes.items()
        ]
        if "teacher_vote" in self.job.methods:
            folders = [self.work.checkpoints[name] for name in drawn.teachers]
            votes.append(("teacher_vote", self.job.seeds[0], drawn.in_words, folders))
        for method, seed, teachers, folders in votes:
            place = self.folder.students / f"{method}-seed-{seed}"
            if (outcome := read_outcome(place)) is None:
                voted = {split: answers.vote(folders, split) for split in (SELECT, TEST)}
                splits = {split: score(self.dataset, split, *vote) for split, vote in voted.items()}
                outcome = StudentResult(
                    method,
                    seed,
                    teachers,
                    splits,
                    calibration=calibration(self.dataset, TEST, *voted[TEST]),
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
        drawn, work = self.plan.draw, self.work

        def predicted(names: Sequence[str], split: str) -> Tensor:
            return work.answers.vote([work.checkpoints[name] for name in names], split)[1]

        return Diagnostics(
            {
                split: agreement(
                    self.dataset,
                    split,
                    predicted(drawn.teachers, split),
                    predicted([drawn.biased], split),
                )
                for split in (SELECT, TEST)
            },
            checked_ensemble(self.job, self.plan, work.pool, work.answers.logits),
        )

    def _members(self) -> tuple[list[TeacherResult], TeacherResult | None]:
        """The teachers, and the biased model, with their metrics."""
        if self.known is not None:
            return self.known.members, self.known.biased
        if not self.plan.needs_ensemble:
            return [], None
        return members(self.plan, self.work.pool, self.work.answers)

    @property
    def _labels_used(self) -> str:
        return labels_used(self.settings, groups_known=self.dataset.groups.known)

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
            "settings": self.settings,
            "labels_used": self._labels_used,
        }
        report.publish_job(
            path, outcomes, members, biased, about, diagnostics, anew=anew, draw=self.draws
        )

    def _log_model(self, outcome: StudentResult) -> None:
        """A student as a model in MLflow, which it becomes while the next ones train."""
        if not self.job.tracking.models or outcome.checkpoint is None:
            return
        if outcome.name in self._to_log:
            return
        self._to_log.add(outcome.name)
        folder = self.folder.path / outcome.checkpoint

        def log() -> None:
            if self._stopped:
                return
            log_model(self.tracker, self.monitor.run(outcome), folder, self.dataset)
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
            **ensemble_report.agreement_metrics(self.diagnostics),
            **cost_metrics(cost, outcomes),
        }
        if degraded := report.degraded_lines(outcomes):
            tags = {DEGRADED: "; ".join(degraded)}
            self.outbox.put(lambda: self.tracker.set_tags(run_id, tags))
        self.publish(run_id, metrics, report.description(outcomes, self._members()[0]))

    def show(self, outcomes: list[StudentResult]) -> None:
        cost, console = self.account.cost, self.console
        console.print()
        report.render(outcomes, self._members()[0], console, self._labels_used)
        console.print()
        report.render_degraded(report.degraded_lines(outcomes), console)
        again = self.known is not None or cost.attempts > 1
        stages = ("this time" if again else "of them", ", ".join(self.display.stages()))
        self.say_end(stages, _spent_lines(outcomes, cost.effort))


def _spent_lines(
    outcomes: Sequence[StudentResult], effort: TeacherCost | None
) -> list[tuple[str, str]]:
    """Where the time went, a line each; the first has the heading."""
    lines = report.spent(outcomes, effort)
    width = max((len(what) for what, _ in lines), default=0)
    return [
        ("" if number else "time", f"{what:<{width}}  {took}")
        for number, (what, took) in enumerate(lines)
    ]
