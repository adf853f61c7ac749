"""What the driver does with Tune's news: the store of trials, the live view, and MLflow."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from ray import tune

from agrekd_ray.cluster.events import GroupPlaced
from agrekd_ray.config.search import Planned
from agrekd_ray.experiment.monitor import EpochWriter, student_params
from agrekd_ray.results import Epoch, degraded, epochs_from_json
from agrekd_ray.results.search import FAILED, FINISHED, RUNNING, STOPPED, TrialResult
from agrekd_ray.search.folder import TrialStore
from agrekd_ray.search.trainable import setting_of
from agrekd_ray.search.trial import student_specs
from agrekd_ray.search.trial_table import TrialTable
from agrekd_ray.student.room import give_back
from agrekd_ray.tracking.outbox import Outbox
from agrekd_ray.tracking.tracker import DEGRADED, KILLED, REASON, SEARCHED, STATE, Tracker
from agrekd_ray.tracking.tracker import FAILED as RUN_FAILED
from agrekd_ray.tracking.tracker import FINISHED as RUN_FINISHED


class TrialRuns:
    """The trials' runs in MLflow, under their search's.

    Args:
        planned: the search.
        tracker: MLflow.
        outbox: through which it is told.
    """

    def __init__(self, planned: Planned, tracker: Tracker, outbox: Outbox) -> None:
        self._planned, self._tracker, self._outbox = planned, tracker, outbox
        self._runs: dict[int, str] = {}
        self._epochs = EpochWriter(tracker, outbox)

    def run(self, trial: TrialResult) -> str:
        """The run of a trial."""
        if trial.number not in self._runs:
            given = student_specs(self._planned.trial(trial.setting))[0]
            params = {**student_params(given), **trial.setting, "method": given.method}
            run = self._tracker.trial(trial.name, trial.number, params, self._planned.search.seeds)
            self._tracker.set_tags(
                run, {STATE: RUNNING, SEARCHED: json.dumps(sorted(self._planned.search.space))}
            )
            self._runs[trial.number] = run
        return self._runs[trial.number]

    def begun(self, trial: TrialResult) -> None:
        """A trial is under way."""
        self._outbox.put(lambda: self.run(trial))

    def epochs(self, trial: TrialResult, news: list[Epoch]) -> None:
        """A trial has finished epochs."""
        self._epochs.add(trial.name, lambda: self.run(trial), news)

    def flush(self) -> None:
        """Write the epochs that are left."""
        self._epochs.flush()

    def ended(self, trial: TrialResult) -> None:
        """A trial has come to its end."""
        self.flush()
        status = {FINISHED: RUN_FINISHED, FAILED: RUN_FAILED}.get(trial.state, KILLED)
        tags = {STATE: trial.state, **({REASON: trial.reason} if trial.reason else {})}
        if lost := degraded(trial.history):
            tags[DEGRADED] = lost
        steps = {"cost/steps": float(sum(epoch.steps for epoch in trial.history))}

        def write() -> None:
            # Whole again: of a trial that another driver began, only the end may be known here.
            self._tracker.log_epochs(self.run(trial), trial.history)
            self._tracker.log_final(self.run(trial), steps)
            self._tracker.end(self.run(trial), status, tags)

        self._outbox.put(write)

    def measured(self, trial: TrialResult) -> None:
        """A trial's test metrics are known."""
        test = trial.test
        if test is not None:
            self._outbox.put(lambda: self._tracker.log_test(self.run(trial), test))

    def chosen(self, trial: TrialResult) -> None:
        """A trial is the winner."""
        tags = {"agrekd.winner": "true", "agrekd.selected_by": self._planned.search.select}
        self._outbox.put(lambda: self._tracker.set_tags(self.run(trial), tags))


class Groups:
    """Placement groups of trials with several workers, in case a trial's process dies with one."""

    def __init__(self) -> None:
        self._held: dict[str, list[str]] = {}

    def placed(self, event: GroupPlaced) -> None:
        """A trial's worker group has one."""
        self._held.setdefault(event.trial_id, []).append(event.placement_group)

    def release(self, trial_id: str | None = None) -> None:
        """Give back what a trial, or any, has left behind."""
        for trial in [trial_id] if trial_id is not None else list(self._held):
            for name in self._held.pop(trial, []):
                give_back(name)


@dataclass(eq=False)
class TuneCallback(tune.Callback):
    """Takes Tune's news.

    Attributes:
        planned: the search.
        store: of the trials.
        table: the live view.
        runs: MLflow.
        groups: placement groups of trials with several workers.
    """

    planned: Planned
    store: TrialStore
    table: TrialTable
    runs: TrialRuns
    groups: Groups

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps its callbacks on disk, and another driver has its own."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `tune.Callback`."""
        self.groups.release(trial.trial_id)  # of an attempt that was killed
        setting = setting_of(self.planned, trial.config)
        known = self.store.get(trial.trial_id)
        if known is None:
            epochs = self.planned.trial(setting).student.training.epochs
            known = TrialResult(self.store.number(trials.index(trial)), setting, RUNNING, epochs)
        if known.state != FINISHED:
            known = replace(known, setting=setting, state=RUNNING, reason=None)
            self._keep(trial, known)
        self.runs.begun(known)
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """See `tune.Callback`."""
        known = self.store.get(trial.trial_id)
        if known is None:
            return
        if "reason" in result:
            self._keep(trial, replace(known, state=FAILED, reason=result["reason"]))
            return
        if known.state == FINISHED:  # before an earlier driver was killed
            return
        news = epochs_from_json(json.loads(result["news"]))
        # After a restart an epoch may come twice.
        history = [epoch for epoch in known.history if epoch.epoch < news[0].epoch]
        kept = replace(
            known,
            setting=setting_of(self.planned, trial.config),
            history=[*history, *news],
            seconds=float(result.get("time_total_s", known.seconds)),
        )
        self._keep(trial, kept)
        self.runs.epochs(kept, news)
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `tune.Callback`: the trial's own end, or the scheduler's."""
        known = self.store.get(trial.trial_id)
        if known is None:
            return
        if known.state == RUNNING:
            done = len(known.history) >= known.epochs
            known = replace(known, state=FINISHED if done else STOPPED)
        self._end(trial, known)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `tune.Callback`: a trial that failed for good."""
        known = self.store.get(trial.trial_id)
        if known is not None:
            self._end(trial, replace(known, state=FAILED, reason=_reason(trial)))

    def _end(self, trial: Any, result: TrialResult) -> None:
        self._keep(trial, result)
        self.runs.ended(result)
        self._show(result)

    def _keep(self, trial: Any, result: TrialResult) -> None:
        self.store.put(trial.trial_id, result)

    def _show(self, ended: TrialResult | None = None) -> None:
        self.table.show(list(self.store.all().values()), ended)


def _reason(trial: Any) -> str:
    """The last line of what Tune wrote about a trial's failure."""
    text = str(trial.get_error() or "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "its process died again and again"
