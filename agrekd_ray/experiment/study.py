"""Runs a study: what its points share is made once, then each point is an ordinary run.

All points whose students are placed alike (`placement`) have their teachers made in one go and
their students trained in one worker group; a student that several points need (a one-hot student
at every temperature) is trained once. What that leaves in the points' folders is what `run_job`
would have left there, so that each point ends, resumes and reports like any other job. Its plots
alone are not drawn: they would take longer than its students. `agrekd resume POINT` draws them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from agrekd_ray.cluster.environment import prepare
from agrekd_ray.config import Job
from agrekd_ray.config.points import points_of
from agrekd_ray.data import SELECT, open_dataset, splits_in_words
from agrekd_ray.experiment.account import Account
from agrekd_ray.experiment.driver import Driver, open_engine
from agrekd_ray.experiment.engine import Engine
from agrekd_ray.experiment.eval_logits import checked_ensemble
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import (
    cost_metrics,
    outcomes_of,
    package_versions,
    results_of,
    run_job,
)
from agrekd_ray.experiment.monitor import flat
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.experiment.preparing import note_biased_teacher, prepare_data, ready_data
from agrekd_ray.experiment.settled import settled
from agrekd_ray.experiment.work import Work
from agrekd_ray.report.archive import read_job, read_study
from agrekd_ray.report.ensemble import render_warnings
from agrekd_ray.report.study import markdown, publish_study, show
from agrekd_ray.results import Cost
from agrekd_ray.results.study import PointResult, StudyResult
from agrekd_ray.settings import fingerprint
from agrekd_ray.student import StudentSpec, read_outcome
from agrekd_ray.teachers import KINDS, Pool
from agrekd_ray.terminal import say, screen
from agrekd_ray.tracking.tracker import PARENT

POINTS = "points"


def run_study(folder: RunFolder, console: Console) -> StudyResult:
    """Do what is left of a study.

    Args:
        folder: of the study; its points are folders of their own in it.
        console: for progress and the table.

    Returns:
        Every outcome of every point.

    Raises:
        AgrekdError: it cannot go on; what is finished stays in the folder.
        KeyboardInterrupt: it was stopped.
    """
    with folder.claimed(lambda text: say(console, text, "yellow")):
        return _StudyDriver(folder, console).run()


@dataclass
class _Cohort(Work):
    """Points whose students may train side by side: of the same `placement`.

    Its job is that of the first point; its students are those of all points, each put into its
    point's folder. Where nothing is recorded, each point asks for itself, and none is `answering`.

    Attributes:
        points: their numbers in the study.
    """

    points: list[int] = field(default_factory=list)

    def twins(self) -> list[list[StudentSpec]]:
        """Those that come to the same student together, finished ones first."""
        alike: list[list[StudentSpec]] = []
        for spec in self.specs:
            twins = next((t for t in alike if replace(t[0], folder=spec.folder) == spec), None)
            if twins is None:
                alike.append([spec])
            else:
                twins.append(spec)
        return [
            sorted(twins, key=lambda spec: read_outcome(self.students / spec.name) is None)
            for twins in alike
        ]

    def distinct(self) -> list[StudentSpec]:
        return [twins[0] for twins in self.twins()]


class _StudyDriver(Driver[StudyResult]):
    """The driver of one study."""

    folder: RunFolder
    role = "study"

    def __init__(self, folder: RunFolder, console: Console) -> None:
        self.job = folder.job
        super().__init__(folder, console, self.job, self.job.name)
        self.points = points_of(self.job)
        self.root = folder.path / POINTS
        self.folders: list[RunFolder] = []
        self.results: dict[int, PointResult] = {}
        """Of the points that are finished, by number."""
        self.known: StudyResult | None = None
        """Of a study that had come to its end: only what is missing is added to it."""
        self.splits: list[str] = []
        self._looked_at: set[tuple[Path, ...]] = set()
        """Ensembles whose warnings were shown."""

    def params(self) -> Mapping[str, Any]:
        return flat(self.job.model_dump(mode="json", exclude={"published"}))

    def recall(self) -> None:
        self.known = results_of(read_study, self.folder.path)

    def through(self, run_id: str) -> StudyResult:
        with self.display:
            for _, job in self.points:
                dataset = open_dataset(job.data)
                if (splits := splits_in_words(dataset)) not in self.splits:
                    self.splits.append(splits)
                ready_data(dataset, self.display, job)
                note_biased_teacher(job, self.display)
            self.folders = [
                RunFolder.inside(self.root / setting.folder, job) for setting, job in self.points
            ]
            if self.known is None:
                self.tracker.reopen(run_id)
            self._train(run_id)
            if left := [n for n in range(len(self.points)) if n not in self.results]:
                self._finish(left, run_id)
            if self.known is not None:
                self.account.forget()
            result = self._result(self.known.cost if self.known else self.account.cost)
            publish_study(self.folder.path, result, anew=self.known is None)
            self._publish(run_id, result)
        return result

    def show(self, result: StudyResult) -> None:
        show(result, self.console)
        self.say_end()

    def _train(self, run_id: str) -> None:
        """Everything that needs an engine, cohort by cohort, whose results then stand."""
        cohorts = [c for c in self._cohorts() if self._incomplete(c)]
        if not cohorts:
            return
        self._more_to_do(run_id)
        with self._session(cohorts):
            for number, cohort in enumerate(cohorts):
                part = f"{number + 1}/{len(cohorts)}" if len(cohorts) > 1 else ""
                self._train_cohort(cohort, part)
                self._finish(cohort.points, run_id)

    def _more_to_do(self, run_id: str) -> None:
        """A study that had come to its end has lost something that must be made again."""
        if self.known is not None:
            self.known = None
            self.tracker.reopen(run_id)

    def _train_cohort(self, cohort: _Cohort, part: str) -> None:
        self.display.stage(f"start {part}".strip(), 0, "")
        engine = open_engine(cohort.job, self.handle)
        try:
            self.do(cohort, engine, part)
        finally:
            engine.close()
        for first, *others in cohort.twins():
            for twin in others:
                _share(self.root, first, twin)

    def asked(self, work: Work, engine: Engine) -> None:
        """Show the warnings of every ensemble, once; its table is in the folder of its point."""
        for number in work.points if isinstance(work, _Cohort) else ():
            setting, job = self.points[number]
            plan = make_plan(job)
            if not plan.needs_ensemble or self.folders[number].state().status == "finished":
                continue
            folders = plan.checkpoints(work.pool)
            names = [*plan.draw.teachers, plan.draw.biased]
            if (ensemble := tuple(folders[name] for name in names)) in self._looked_at:
                continue
            self._looked_at.add(ensemble)
            models = {folders[name]: name for name in names}  # not asked yet without records
            work.answers.complete(work.answers.missing(models, [SELECT]), engine, self.display)
            check = checked_ensemble(job, plan, work.pool, work.answers.logits)
            render_warnings(check.warnings, self.display.console, setting.label)

    def _cohorts(self) -> list[_Cohort]:
        cohorts: dict[str, list[_Cohort]] = {}
        for number, (setting, job) in enumerate(self.points):
            plan = make_plan(job)
            dataset = open_dataset(job.data)
            prepare_data(dataset, self.display, job)
            pool = Pool(job.teachers.store, dataset)
            checkpoints = plan.checkpoints(pool) if plan.needs_ensemble else {}
            alike = cohorts.setdefault(placement(job), [])
            fits = (c for c in alike if _agree(c.checkpoints, checkpoints))
            cohort = next(fits, None)
            if cohort is None:
                alike.append(cohort := _Cohort(settled(job), self.root, self.folder.training))
            inside = f"{setting.folder}/students"
            cohort.specs += [replace(spec, folder=inside) for spec in plan.specs]
            cohort.checkpoints |= checkpoints
            cohort.recipes += plan.recipes
            cohort.points.append(number)
            if job.guidance != "local" and self.folders[number].state().status != "finished":
                cohort.answering |= plan.answering(pool)
        every = [cohort for alike in cohorts.values() for cohort in alike]
        for cohort in every:
            key = fingerprint(sorted(spec.name for spec in cohort.specs))[:12]
            cohort.storage = self.folder.training / key
        return every

    def _incomplete(self, cohort: _Cohort) -> bool:
        """Whether there is work for an engine; finished students need no teachers any more."""
        return bool(cohort.left()) if self.known is not None else not cohort.is_done

    @contextmanager
    def _session(self, cohorts: Sequence[_Cohort]) -> Iterator[None]:
        """One Ray session for all cohorts, where they need one."""
        if self.job.guidance == "local":
            yield
            return
        prepare(starts_cluster=self.job.ray.address is None)
        from agrekd_ray.experiment.ray_engine import session_of

        session = session_of([cohort.job for cohort in cohorts], self.handle)
        try:
            yield
        finally:
            session.close()

    def _finish(self, numbers: Sequence[int], run_id: str) -> None:
        """Votes, tables and MLflow of points; with more to come, the files of those so far."""
        self.display.stage("points", len(numbers), "points")
        for number in numbers:
            setting, point = self.points[number][0], self.folders[number]
            if number in self.results:
                outcomes = self.results[number].outcomes
            elif point.state().status == "finished":
                outcomes = outcomes_of(point)
            else:
                tags = {PARENT: run_id, "agrekd.point": setting.label}
                self._more_to_do(run_id)
                outcomes = run_job(point, screen(quiet=True), tags, draw=False)
                self.account.add(Account(point.path).cost.effort)
            archive = results_of(read_job, point.path)
            check = archive.diagnostics.ensemble if archive else None
            self.results[number] = PointResult(
                setting.label,
                setting.at,
                setting.draw,
                outcomes,
                check.warnings if check else [],
            )
            self.display.advance(setting.label)
        if len(self.results) < len(self.points):
            self.display.stage("report", 0, "")
            publish_study(self.folder.path, result := self._result(self.account.cost))
            self.display.note(f"{result.unfinished}; to see them: agrekd report {self.folder.path}")

    def _result(self, cost: Cost) -> StudyResult:
        points = [result for _, result in sorted(self.results.items())]
        return StudyResult(
            name=self.job.name,
            folder=str(self.folder.path),
            sweep={
                key: [value for value in values if any(p.at[key] == value for p in points)]
                for key, values in self.job.sweep.items()
            },
            methods=list(self.job.methods),
            published=self.job.published,
            points=points,
            planned=len(self.points),
            **vars(cost),
            settings=self.job.model_dump(mode="json"),
            versions=package_versions(),
            splits="; ".join(filter(None, self.splits)),
        )

    def _publish(self, run_id: str, result: StudyResult) -> None:
        self.tag_warnings(run_id, result.warnings)
        metrics = result.metrics() | cost_metrics(result.cost, result.outcomes)
        self.publish(run_id, metrics, markdown(result))
        self.unsent = self.outbox.drain()


def placement(job: Job) -> str:
    """A fingerprint of all that places and paces a job's students: points of the same share it.

    Everything counts but what each point brings along: its specs have the student's model,
    training and lesson, its recipes what makes the teachers, and its reports are its own.
    """
    return fingerprint(
        job.model_dump(
            mode="json",
            exclude={
                "student": {"model", "training"},
                "teachers": {"model", "others", "training", "count", "seed", *KINDS},
                **dict.fromkeys(("ensemble", "distillation", "methods", "seeds"), True),
                **dict.fromkeys(("name", "sweep", "draws", "published", "tracking", "runs"), True),
            },
        )
    )


def _agree(some: dict[str, Path], others: dict[str, Path]) -> bool:
    """Whether no name stands for two teachers."""
    return all(some.get(name, path) == path for name, path in others.items())


def _share(students: Path, made: StudentSpec, twin: StudentSpec) -> None:
    """Give a twin what the same student left behind; whole or not at all."""
    for source, target in zip(made.results, twin.results, strict=True):
        place = students / target
        if read_outcome(place) is not None:
            continue
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(students / source, partial, copy_function=_link)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(partial, place)


def _link(source: str, target: str) -> Any:
    """A second name for the file, which nobody changes; a copy where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        return shutil.copy2(source, target)
    return target
