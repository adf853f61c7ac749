"""The driver of a search: teachers' outputs once, the trials, the winner against the default."""

from __future__ import annotations

import functools
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, ResultGrid, RunConfig, TuneConfig, Tuner
from rich.console import Console

from agrekd_ray.cluster.events import Event, GroupPlaced, StudentDone, StudentEpoch
from agrekd_ray.cluster.nodes import DriverData, cluster_nodes, settled_nodes
from agrekd_ray.cluster.placement import ResourceRequest, check_room
from agrekd_ray.data import SELECT, TEST, open_dataset, splits_in_words
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.driver import Driver
from agrekd_ray.experiment.eval_logits import checked_ensemble, members
from agrekd_ray.experiment.gpus import (
    MOST_GROUPS,
    groups_at_once,
    most_of,
    numbered,
    share_of_task,
    what_stays_idle,
    with_share,
    workers_of,
)
from agrekd_ray.experiment.job import cost_metrics, log_model, package_versions
from agrekd_ray.experiment.monitor import Monitor, flat
from agrekd_ray.experiment.plan import make_plan, views_of
from agrekd_ray.experiment.preparing import note_biased_teacher, ready_data
from agrekd_ray.experiment.ray_engine import RayEngine
from agrekd_ray.experiment.settled import settled
from agrekd_ray.experiment.teacher_provider import TeacherProvider
from agrekd_ray.experiment.work import Work
from agrekd_ray.models import Model
from agrekd_ray.report import ensemble as ensemble_report
from agrekd_ray.report.archive import plain, read_result
from agrekd_ray.report.job import summary_metrics
from agrekd_ray.report.search import publish_search, show
from agrekd_ray.results import EnsembleCheck, Metrics, StudentResult
from agrekd_ray.results.search import (
    DEFAULT,
    FAILED,
    RUNNING,
    STOPPED,
    WINNER,
    SearchResult,
    TrialResult,
)
from agrekd_ray.search import trainable
from agrekd_ray.search.callback import Groups, TrialRuns, TuneCallback
from agrekd_ray.search.folder import SearchFolder, TrialStore
from agrekd_ray.search.ranking import best, rule_reports, verdict
from agrekd_ray.search.tasks import test_all
from agrekd_ray.search.trainable import (
    TrialActor,
    in_group,
    metric,
    param_space,
    scheduler,
    searcher,
)
from agrekd_ray.search.trial import Shared, last_state, read_test, student_specs
from agrekd_ray.search.trial_table import TrialTable
from agrekd_ray.student import StudentSpec, read_outcome
from agrekd_ray.terminal import say

TUNE = "trials"
"""Name of the experiment in Tune's storage."""
RETRIES = 3
"""Of a trial whose process dies."""
ALIAS = "winner"


def run_search(folder: SearchFolder, console: Console) -> SearchResult:
    """Do what is left of a search: all of it for a new folder, the rest for one that was stopped.

    Args:
        folder: of the search.
        console: for progress and the tables.

    Returns:
        What came out.

    Raises:
        AgrekdError: the search cannot go on; what is finished stays in the folder.
        KeyboardInterrupt: it was stopped.
    """
    with folder.claimed(lambda text: say(console, text, "yellow")):
        return _SearchDriver(folder, console).run()


class _SearchDriver(Driver[SearchResult]):
    """The driver of one search."""

    folder: SearchFolder
    role = "search"

    def __init__(self, folder: SearchFolder, console: Console) -> None:
        self.planned, self.search = folder.planned, folder.planned.search
        self.job = settled(folder.planned.base)
        super().__init__(folder, console, self.job, self.search.name)
        self.plan = make_plan(self.planned.default)
        self.dataset = open_dataset(self.job.data)
        self.runs = TrialRuns(self.planned, self.tracker, self.outbox)
        self.store = TrialStore(folder.trials)
        self.groups = Groups()
        self.monitor: Monitor | None = None
        self.at_once = 1
        """Trials."""

    @functools.cached_property
    def work(self) -> Work:
        """The teachers, and students of the default; of data that are ready."""
        return Work.of(self.job, self.plan, self.folder.path)

    def params(self) -> Mapping[str, Any]:
        search = {"search": self.search.model_dump(mode="json", exclude_none=True)}
        return flat(search) | flat(self.planned.base.model_dump(mode="json"))

    def through(self, run_id: str) -> SearchResult:
        try:
            finished = read_result(self.folder.path)
            if finished:
                self.account.forget()
            else:
                self.tracker.reopen(run_id)
            result = self._again(run_id, finished) if finished else self._work(run_id)
            self.unsent = self.outbox.drain()
            return result
        except BaseException:
            self.runs.flush()  # what the trials have still to tell MLflow is not lost
            raise

    def show(self, result: SearchResult) -> None:
        show(result, self.console, self.job.model_dump(mode="json"))
        self.say_end(plots=False)

    def _work(self, run_id: str) -> SearchResult:
        with self.display:
            ready_data(self.dataset, self.display, self.job)
            note_biased_teacher(self.planned.default, self.display)
            self.display.stage("start", 0, "")
            engine = RayEngine(self.job, self.handle)
        try:
            self.at_once = self._at_once()  # before anything is trained for trials without room
            with self.display:
                self._teachers(engine)
            with self._shared(engine) as shared:
                self._trials(engine, shared)
            self._tested(engine)
            result = self._result()
            with self.display:
                final = self._final(engine, result)
        finally:
            engine.close()
        result = replace(
            result,
            final=final,
            verdict=verdict(final, result.selected_on),
            about={**result.about, **asdict(self.account.cost)},
        )
        publish_search(self.folder.path, result)
        self._publish(run_id, result)
        return result

    def _again(self, run_id: str, result: SearchResult) -> SearchResult:
        """A search that had come to its end: MLflow gets what it may have missed."""
        for trial in result.trials:
            self.runs.ended(trial)
            self.runs.measured(trial)
            if trial.number == result.winner:
                self.runs.chosen(trial)
        self.monitor = Monitor(self.display, self.tracker, self.outbox, self._final_specs(result))
        for outcome in result.final:
            self.monitor.finished(outcome)
        publish_search(self.folder.path, result, anew=False)
        self._publish(run_id, result)
        return result

    def _teachers(self, engine: RayEngine) -> None:
        """Teachers, and one record of what they say to all views that any trial is shown."""
        self.work.make_teachers(engine, self.display)
        if self.job.guidance == "auto":
            views = views_of(self.dataset, self.planned.epochs)
            self.account.add(self.work.record(engine, self.display, views))
        # Before a fleet takes its room. What the user's own teachers can do, only these data tell.
        splits = (SELECT, TEST) if self.plan.draw.own else (SELECT,)
        self.account.add(self.work.ask(engine, self.display, splits))
        ensemble_report.render(self.ensemble, self.display.console)

    @functools.cached_property
    def ensemble(self) -> EnsembleCheck:
        """Whether AGRE-KD can be trusted with the teachers, who have answered."""
        pool, logits = self.work.pool, self.work.answers.logits
        return checked_ensemble(self.planned.default, self.plan, pool, logits)

    @contextmanager
    def _shared(self, engine: RayEngine) -> Iterator[Shared]:
        """What trials share; without records a fleet is part of it, which ends with the block."""
        checkpoints, answers, drawn = self.work.checkpoints, self.work.answers, self.plan.draw
        nodes = settled_nodes()
        with TeacherProvider(
            self.job,
            checkpoints,
            self.dataset,
            views_of(self.dataset, self.planned.epochs),
            engine.emit,
            models=self._models,
            groups=self.at_once,
            beside=self.at_once,
        ) as teaching:
            job, source = teaching.job, teaching.source()
            assert source is not None  # every trial has teachers
            busy = [*workers_of(job.student) * self.at_once, *teaching.hosted]
            keys = ("student", "fleet") if teaching.hosts else ("student",)
            if idle := what_stays_idle(self.job, job, nodes, busy, *keys):
                self.warn(idle)
            _, ensemble_N = answers.vote([checkpoints[name] for name in drawn.teachers], SELECT)
            biased_NC = answers.logits(checkpoints[drawn.biased], SELECT)
            labels_N = self.dataset.labels(self.dataset.splits[SELECT])
            confidence_N = biased_NC.softmax(1).gather(1, labels_N[:, None])[:, 0]
            yield Shared(
                self.planned,
                DriverData.of(job.data),
                source,
                ensemble_N.numpy(),
                biased_NC.argmax(1).numpy(),
                engine.emit,
                self.folder.trials,
                self.folder.states,
                self.folder.path / "groups",
                job.student.takes["GPU"],
                self.work.competence(drawn.teachers, drawn.biased),
                confidence_N.numpy(),
            )
        if self.job.guidance == "live":
            self.account.add(teaching.effort)

    def _at_once(self) -> int:
        """Trials that the cluster has room for at once.

        Raises:
            RunError: for none, or for fewer than asked for.
        """
        nodes, asked = cluster_nodes(), self.search.concurrency
        # Beside trials that ask it live, something must be left for the fleet.
        fleet = [ResourceRequest("a teacher", {"CPU": 0.1})] if self.job.guidance == "live" else []
        check_room(workers_of(numbered(self.job).student), fleet, nodes)
        room = groups_at_once(
            self.job,
            nodes,
            self.dataset,
            models=self._models,
            most=MOST_GROUPS,
            beside=fleet,
            crowded=asked is not None,
        )
        if asked is not None and asked > room:
            raise RunError(f"concurrency: {asked} trials at once do not fit; {room} would.")
        return asked or room

    @functools.cached_property
    def _models(self) -> list[Model]:
        """Architectures of the trials' students: the base job's, and what the space varies."""
        planned, space = self.planned, self.search.space
        first = {path: domain.probes[0] for path, domain in space.items()}
        varied = [
            planned.trial(planned.sampler.pick({**first, path: probe})).student.model
            for path, domain in space.items()
            if path.startswith("student.model")
            for probe in domain.probes
        ]
        return [self.job.student.model, *varied]

    def _trials(self, engine: RayEngine, shared: Shared) -> None:
        """Run the trials that are left."""
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # trials say what they failed of
        # Of a trial that goes on, Tune tells Optuna once more what it had reported.
        warnings.filterwarnings("ignore", "The reported value is ignored because this 'step")
        at_once, total = self.at_once, trainable.trials(self.planned)
        deadline = self.search.minutes * 60 if self.search.minutes else None
        table = TrialTable(self.console, self.search.select, total, at_once, deadline)
        callback = TuneCallback(self.planned, self.store, table, self.runs, self.groups)
        student = self.job.student.model_copy(update={"gpus": shared.gpus})
        alone = not in_group(student)  # else a worker group of its own has the resources
        actor = tune.with_resources(
            tune.with_parameters(TrialActor, shared=shared),
            # Tune knows no trial without resources: of memory there is always this much.
            student.takes if alone else {"memory": 2**20},
        )
        path = self.folder.tune / TUNE
        if Tuner.can_restore(str(path)):
            tuner = Tuner.restore(
                str(path),
                trainable=actor,
                resume_unfinished=True,
                param_space=param_space(self.planned),
            )
            # This driver's callback instead of the pickled one.
            tuner._local_tuner._run_config.callbacks = [callback]
        else:
            tuner = Tuner(
                actor,
                param_space=param_space(self.planned),
                tune_config=TuneConfig(
                    metric=metric(self.planned),
                    mode="max",
                    search_alg=searcher(self.planned),
                    scheduler=scheduler(self.planned),
                    num_samples=(self.search.trials or -1) if self._proposes else 1,
                    max_concurrent_trials=at_once,
                    time_budget_s=deadline,
                    reuse_actors=alone,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=RunConfig(
                    name=TUNE,
                    storage_path=str(self.folder.tune),
                    failure_config=FailureConfig(max_failures=RETRIES),
                    checkpoint_config=CheckpointConfig(
                        # Others may be about to go on from one.
                        # For all but pbt they are empty.
                        num_to_keep=8 if self.search.scheduler.name == "pbt" else None,
                        checkpoint_frequency=1,
                    ),
                    callbacks=[callback],
                    verbose=0,
                ),
            )
        try:
            with table, engine.listening():
                grid = tuner.fit()
        finally:
            self.groups.release()
        self._settle(grid)

    @property
    def _proposes(self) -> bool:
        """Whether settings are drawn while the search runs, and not up front."""
        return self.search.searcher.name == "optuna" or self.search.scheduler.name == "pbt"

    def _settle(self, grid: ResultGrid) -> None:
        """Bring the journal in line with what Tune knows, after an earlier driver was killed."""
        known = {str(result.metrics["trial_id"]) for result in grid if result.metrics}
        known |= {Path(result.path).name for result in grid}
        self.store.forget(set(self.store.all()) - known)
        for trial_id, trial in self.store.all().items():
            if trial.state == RUNNING:  # time was up
                ended = replace(trial, state=STOPPED)
                self.store.put(trial_id, ended)
                self.runs.ended(ended)

    def _tested(self, engine: RayEngine) -> None:
        """Test metrics of every trial's last students: for the report, never for the choice.

        Trials leave them behind; those whose processes died are tested by tasks.
        """
        untested: dict[str, TrialResult] = {}

        def tested(trial_id: str, test: Metrics) -> None:
            take(trial_id, test)
            self.display.advance(untested[trial_id].name)

        def take(trial_id: str, test: Metrics) -> None:
            known = self.store.get(trial_id)
            assert known is not None
            measured = replace(known, test=test)
            self.store.put(trial_id, measured)
            self.runs.measured(measured)

        for trial_id, trial in self.store.all().items():
            state = last_state(self.folder.states / trial_id)
            if trial.test is not None or state is None or not trial.history:
                continue
            if (test := read_test(state)) is not None:
                take(trial_id, test)
            else:
                untested[trial_id] = trial
        if untested:
            room, *_ = workers_of(numbered(self.job).student)
            gpus = share_of_task(
                room,
                self.job.student.gpus,
                len(untested),
                settled_nodes(),
                lambda: most_of(self._models, self.dataset),
            )
            with self.display, engine.listening():
                self.display.stage("tests", len(untested), "trials")
                test_all(
                    self.planned,
                    untested,
                    self.folder.states,
                    DriverData.of(self.job.data),
                    with_share(room, gpus),
                    tested,
                )

    def _result(self) -> SearchResult:
        trials = list(self.store.all().values())
        chosen = best(trials, self.search.select)
        if chosen is None:
            failed = [trial for trial in trials if trial.state == FAILED]
            why = f"; {failed[0].name} failed: {failed[0].reason}" if failed else ""
            raise RunError(f"no trial of the search has a score{why}.")
        self.runs.chosen(chosen)
        teachers = [asdict(m) for m in members(self.plan, self.work.pool, self.work.answers)[0]]
        about = {
            "settings": self.search.model_dump(mode="json"),
            "job": self.planned.base.model_dump(mode="json"),
            "classes": list(self.dataset.classes),
            "groups": list(self.dataset.groups.names),
            "splits": splits_in_words(self.dataset),
            "data": self.dataset.fingerprint,
            "members": json.loads(json.dumps(teachers)),  # plain, as they are read again
            "ensemble": plain(self.ensemble),
            "versions": package_versions("optuna"),
        }
        return SearchResult(
            self.search.name,
            str(self.folder.path),
            self.search.select,
            chosen.number,
            trials,
            rule_reports(trials),
            about=about,
        )

    def _final(self, engine: RayEngine, result: SearchResult) -> list[StudentResult]:
        """Students of the winner and of the default, with fresh seeds, in one worker group."""
        given = self._final_specs(result)
        if not given:
            return []
        self.monitor = Monitor(self.display, self.tracker, self.outbox, given)
        self.train(replace(self.work, specs=list(given)), engine, "winner")
        read = [read_outcome(self.folder.students / spec.name) for spec in given]
        outcomes = [outcome for outcome in read if outcome is not None]
        for outcome in outcomes:
            self.monitor.finished(outcome)
        return sorted(outcomes, key=lambda outcome: (outcome.method != WINNER, outcome.seed))

    def _final_specs(self, result: SearchResult) -> tuple[StudentSpec, ...]:
        """Seed by seed the winner and the default, once where they are the same; or none."""
        seeds = self.search.final.seeds
        if not seeds:
            return ()
        winner = next(trial for trial in result.trials if trial.number == result.winner)
        jobs = {WINNER: self.planned.trial(winner.setting, seeds), DEFAULT: self.planned.default}
        by_method = {name: student_specs(job) for name, job in jobs.items()}
        pairs = [
            {name: replace(one, method=name) for name, one in zip(by_method, pair, strict=True)}
            for pair in zip(*by_method.values(), strict=True)
        ]
        if all(pair[WINNER] == replace(pair[DEFAULT], method=WINNER) for pair in pairs):
            return tuple(pair[WINNER] for pair in pairs)
        return tuple(one for pair in pairs for one in pair.values())

    def _publish(self, run_id: str, result: SearchResult) -> None:
        """To MLflow: the final students as models, the best of the winner's in the registry."""
        monitor = self.monitor
        winners = [outcome for outcome in result.final if outcome.method == WINNER]
        # By the validation split, as everything here.
        chosen = max(winners, key=lambda o: o.splits["val"].worst_group_accuracy, default=None)

        def model_of(outcome: StudentResult) -> None:
            assert monitor is not None
            run = monitor.run(outcome)
            checkpoint = self.folder.path / str(outcome.checkpoint)
            model_id = log_model(self.tracker, run, checkpoint, self.dataset)
            if outcome is chosen:
                self.tracker.register(model_id, run, self.search.name, ALIAS)

        for outcome in result.final:
            self.outbox.put(lambda outcome=outcome: model_of(outcome))  # type: ignore[misc]
        self.tag_warnings(run_id, (result.about.get("ensemble") or {}).get("warnings", ()))
        metrics = _summary(result) | cost_metrics(result.cost, result.final)
        self.publish(run_id, metrics, result.verdict)

    def handle(self, event: Event) -> None:
        if isinstance(event, GroupPlaced):
            self.groups.placed(event)
        elif self.monitor is not None and isinstance(event, StudentEpoch | StudentDone):
            self.monitor.handle(event)
        else:
            super().handle(event)


def _summary(result: SearchResult) -> dict[str, float]:
    """A search in MLflow's figures."""
    figures = {"trials": float(len(result.trials))} | summary_metrics(result.final)
    for rule in result.rules:
        if rule.correlation is not None:
            figures[f"rank_correlation/{rule.rule}"] = rule.correlation
    return figures
