"""The Ray Tune shell of a trial, and how the search's words become Tune's."""

from __future__ import annotations

import functools
import itertools
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from agrekd_ray.config.search import Planned
from agrekd_ray.config.space import Domain, Sampler, Setting, Space
from agrekd_ray.errors import AgrekdError, RunError
from agrekd_ray.experiment.teacher_tasks import task_device
from agrekd_ray.results.search import FINISHED, TrialResult
from agrekd_ray.search.folder import read_trial
from agrekd_ray.search.nested import GroupTrial
from agrekd_ray.search.trial import (
    Shared,
    Trial,
    forget_within,
    last_state,
    leave_test,
    opened,
    save_state,
)
from agrekd_ray.student import Student, StudentSettings

SETTING = "setting"
"""Key of Tune's configuration that holds a setting which was drawn up front."""
EPOCHS = "epochs"
"""Key of a trial's results that counts its epochs."""
HANDED_ON = "state"
"""Folder in a checkpoint that holds a state, for population based training."""
MOST_TRIALS = 1000
"""Of a random search that only time ends."""


def in_group(student: StudentSettings) -> bool:
    """Whether a trial's student needs a worker group; Tune itself places none by label."""
    return student.workers > 1 or bool(student.labels)


class TrialActor(tune.Trainable):
    """Shell of a `Trial` in a process of its own, which serves one trial after another."""

    def setup(self, config: dict[str, Any], shared: Shared) -> None:
        """See `tune.Trainable.setup`."""
        self._shared = shared
        self._trial: Trial | GroupTrial | None = None
        self._over: TrialResult | None = None
        self._whole = self._failed = False
        self._unfit, self._device = "", "cpu"
        try:
            self._device = task_device()
        except RunError as error:  # of every trial here: said by each, since Tune would try again
            self._unfit = str(error)
        self._dataset, self._source, self._judge = opened(shared)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """See `tune.Trainable.reset_config`; goes on where an earlier process left the trial."""
        self.cleanup()
        planned, shared = self._shared.planned, self._shared
        self._states = shared.states / self.trial_id  # until the trial's own end
        self._failed = False
        known = read_trial(shared.trials, self.trial_id)
        self._over = known if known is not None and known.state == FINISHED else None
        job = planned.trial(setting_of(planned, new_config))
        if in_group(job.student):
            self._trial = GroupTrial(job, shared, self.trial_id, shared.groups / self.trial_id)
        else:
            make = functools.partial(Student, device=self._device)
            given = self._dataset, self._source, self._judge
            self._trial = Trial(job, *given, make, shared.competence, self._states)
        self._whole = (state := last_state(self._states)) is not None
        if state is not None and self._over is None:
            self._trial.load(state)
        if isinstance(self._trial, Trial) and self._over is None:
            self._trial.take_up()
        return True

    def cleanup(self) -> None:
        """See `tune.Trainable.cleanup`: a trial's last moment, however it was brought to its end.

        Its students are tested here, where they were trained, and not before: nothing of Tune can
        have seen what the test says. Population based training puts trials down in between.
        """
        if self._trial is None:
            return
        if self._trial.done or self._shared.planned.search.scheduler.name != "pbt":
            leave_test(self._trial, self._states)
        if isinstance(self._trial, GroupTrial):
            self._trial.close()
        self._trial = None

    def step(self) -> dict[str, Any]:
        """See `tune.Trainable.step`: one epoch."""
        assert self._trial is not None
        if self._over is not None:  # finished just before its driver was killed: Tune forgot it
            last = self._over.history[-1]
            return {"select": last.selection, EPOCHS: last.epoch + 1, "done": True}
        try:
            if self._unfit:
                raise RunError(self._unfit)
            news = [self._trial.epoch()] if not self._trial.done else []
        except AgrekdError as error:  # a retry would only repeat it
            self._failed = True
            worst = dict.fromkeys(self._rules(), 0.0)
            epochs = len(self._trial.history)
            return {"select": worst, EPOCHS: epochs, "reason": str(error), "done": True}
        if self._whole:  # the driver may not have heard of all that was there already
            news, self._whole = self._trial.history, False
        return {
            "select": news[-1].selection,
            EPOCHS: news[-1].epoch + 1,
            # As text: Tune would spread every number over keys of its own.
            "news": json.dumps([asdict(epoch) for epoch in news]),
            "done": self._trial.done,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """See `tune.Trainable.save_checkpoint`."""
        assert self._trial is not None
        folder = Path(checkpoint_dir)
        # Of a trial that failed in the middle of an epoch the state before is the last sound one.
        if self._over is None and not self._failed and self._trial.history:
            save_state(self._trial, self._states)
            if self._shared.planned.search.scheduler.name == "pbt":
                (folder / HANDED_ON).mkdir()
                self._trial.save(folder / HANDED_ON)
        (folder / "trial").write_text(self.trial_id, encoding="utf-8")

    def load_checkpoint(self, checkpoint: str) -> None:
        """See `tune.Trainable.load_checkpoint`: of another trial, for pbt; else it is there."""
        assert self._trial is not None
        folder = Path(checkpoint)
        if (folder / HANDED_ON).is_dir() and (folder / "trial").read_text(
            encoding="utf-8"
        ) != self.trial_id:
            self._trial.load(folder / HANDED_ON)
            forget_within(self._states)
            self._whole = True  # it may be several epochs ahead

    def _rules(self) -> list[str]:
        classes = len(self._dataset.classes)
        return list(self._judge(torch.zeros(len(self._shared.biased_N), classes)))


def metric(planned: Planned) -> str:
    """What trials are compared by, as Tune calls it."""
    return f"select/{planned.search.select}"


def setting_of(planned: Planned, config: dict[str, Any]) -> Setting:
    """A setting out of Tune's configuration of a trial."""
    if SETTING in config:
        return dict(config[SETTING])
    space = planned.search.space
    return {
        path: json.loads(config[path]) if isinstance(config[path], str) else config[path]
        for path in space
        if path in config
    }


def param_space(planned: Planned) -> dict[str, Any]:
    """Tune's space: settings drawn up front, or for pbt domains that it may vary."""
    search = planned.search
    if search.scheduler.name == "pbt":
        return {path: _tune_domain(domain) for path, domain in search.space.items()}
    if search.searcher.name == "optuna":
        return {}
    sampler = planned.sampler
    if search.searcher.name == "grid":
        return {SETTING: tune.grid_search(list(itertools.islice(sampler.grid(), search.trials)))}
    first = [planned.first] if planned.first is not None else []
    drawn = itertools.chain(first, sampler.random(search.searcher.seed))
    wanted = search.trials or MOST_TRIALS
    return {SETTING: tune.grid_search(list(itertools.islice(drawn, wanted)))}


def searcher(planned: Planned) -> OptunaSearch | None:
    """Tune's searcher; None where settings are drawn up front."""
    if planned.search.searcher.name != "optuna":
        return None
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        # For spaces with conditions and trials side by side these are what Optuna advises.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=planned.search.searcher.seed, constant_liar=True, group=True, multivariate=True
        )
    return OptunaSearch(
        Proposal(planned.sampler),
        metric=metric(planned),
        mode="max",
        points_to_evaluate=[_as_proposed(planned)] if planned.first is not None else None,
        sampler=sampler,
    )


def _as_proposed(planned: Planned) -> dict[str, Any]:
    """The base job's setting, as Optuna writes values."""
    space = planned.search.space
    return {
        path: json.dumps(value) if space[path].kind == "choice" else value
        for path, value in (planned.first or {}).items()
    }


class Proposal:
    """A setting as Optuna proposes it, path by path, so that conditions hold."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def __call__(self, proposed: Any) -> None:
        """Ask Optuna's trial for the value of every path that applies."""

        def value(path: str, domain: Domain) -> Any:
            if domain.kind == "choice":  # Optuna's categories are plain values only
                texts = [json.dumps(choice) for choice in domain.choice or ()]
                return json.loads(proposed.suggest_categorical(path, texts))
            low, high = domain.bounds
            if domain.kind == "integer":
                return proposed.suggest_int(path, int(low), int(high))
            return proposed.suggest_float(path, low, high, log=domain.kind == "loguniform")

        self._sampler.setting(value)


def scheduler(planned: Planned) -> TrialScheduler | None:
    """Tune's scheduler; None where nobody is stopped early."""
    search = planned.search
    if search.scheduler.name == "asha":
        return ASHAScheduler(
            time_attr=EPOCHS,
            max_t=planned.epochs,
            grace_period=min(search.scheduler.grace, planned.epochs),
            reduction_factor=search.scheduler.reduction,
        )
    if search.scheduler.name == "pbt":
        return PopulationBasedTraining(
            time_attr=EPOCHS,
            perturbation_interval=search.scheduler.grace,
            hyperparam_mutations={
                path: _tune_domain(domain) if domain.listed is None else list(_texts(domain))
                for path, domain in search.space.items()
            },
            custom_explore_fn=functools.partial(_inside, search.space),
            quantile_fraction=0.25,
            log_config=False,
        )
    return None


def trials(planned: Planned) -> int | None:
    """How many trials there will be; None where only time says."""
    search = planned.search
    if search.searcher.name == "grid":
        every = sum(1 for _ in planned.sampler.grid())
        return min(every, search.trials or every)
    return search.trials


def _tune_domain(domain: Domain) -> Any:
    if domain.listed is None:
        real = tune.uniform if domain.kind == "uniform" else tune.loguniform
        return real(*domain.bounds)
    return tune.choice(list(_texts(domain)))


def _texts(domain: Domain) -> Iterator[str]:
    """Listed values as text: Tune and Optuna want plain ones."""
    return (json.dumps(value) for value in domain.listed or ())


def _inside(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    """A setting that population based training has varied, back inside its ranges."""
    for path, domain in space.items():
        if domain.listed is None:
            low, high = domain.bounds
            config[path] = min(max(config[path], low), high)
    return config
