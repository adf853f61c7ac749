"""One trial: the students of one setting, side by side, an epoch at a time. No Ray here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from agrekd_ray.cluster.events import Emit
from agrekd_ray.config import Job
from agrekd_ray.config.search import Planned
from agrekd_ray.config.space import Setting
from agrekd_ray.data import SELECT, TEST, Dataset, Samples
from agrekd_ray.distillation import Competence, Source
from agrekd_ray.errors import AgrekdError
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.files import DamagedError, read_json, replacing
from agrekd_ray.models import build
from agrekd_ray.results import Epoch, Metrics, mean_epoch, mean_metrics
from agrekd_ray.settings import fingerprint
from agrekd_ray.student import Student, StudentSpec
from agrekd_ray.training import Judge, evaluate

if TYPE_CHECKING:
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.search.nested import GroupTrial

WITHIN = "within-"
"""Folder of states within an epoch, followed by the number of finished epochs and the setting."""
TESTED = "test.json"
"""File beside a trial's last state: its students' metrics on the test split."""


@dataclass(frozen=True, eq=False)
class Shared:
    """What all trials of a search share; may travel to any process.

    Attributes:
        planned: the search and its base job.
        data: of the job.
        source: opens in any process where the teachers' answers come from.
        ensemble_N: classes that the teachers vote for, on the selection split.
        biased_N: classes that the biased model names there.
        emit: tells the driver.
        trials: folder of the trials' journals.
        states: folder of the trials' states.
        gpus: share of one that each of a trial's workers has.
        groups: folder for the files of trials with several workers, reachable from every node.
        competence: of the teachers, for the strategies that need it.
        confidence_N: the biased model's probabilities of the true classes there.
    """

    planned: Planned
    data: DriverData
    source: Callable[[Samples], Source]
    ensemble_N: np.ndarray
    biased_N: np.ndarray
    emit: Emit
    trials: Path
    states: Path
    groups: Path
    gpus: float = 0.0
    competence: Competence | None = None
    confidence_N: np.ndarray | None = None

    def judge(self, dataset: Dataset) -> Judge:
        """Scores a student's answers to the selection split."""
        return Judge(dataset, SELECT, self.ensemble_N, self.biased_N, self.confidence_N)


class Trial:
    """The students of one setting, one a seed; they train in step, for their means to compare.

    Args:
        job: the trial's job.
        dataset: of the job.
        source: where the teachers' answers come from.
        judge: scores answers to the selection split.
        make: makes a student, or a worker's part of one.
        competence: of the teachers, for the strategies that need it.
        states: folder of the trial's states, for those within an epoch; None keeps none.
    """

    def __init__(
        self,
        job: Job,
        dataset: Dataset,
        source: Source,
        judge: Callable[[Tensor], dict[str, float]],
        make: Callable[..., Student] = Student,
        competence: Competence | None = None,
        states: Path | None = None,
    ) -> None:
        self._states, self._kept = states, set[Student]()
        ahead = job.fleet.look_ahead
        self._students = [
            make(spec, dataset, source, look_ahead=ahead, judge=judge)
            for spec in student_specs(job, competence)
        ]

    @property
    def done(self) -> bool:
        """Whether all epochs are behind it."""
        return all(student.done for student in self._students)

    @property
    def history(self) -> list[Epoch]:
        """Finished epochs, means over the seeds; empty on all workers but the first."""
        histories = [student.history for student in self._students]
        # Within an epoch some have finished it.
        return [mean_epoch(epochs) for epochs in zip(*histories, strict=False)]

    def train(self) -> None:
        """Train the next epoch of every seed, or what is left of it."""
        epochs, within, self._kept = self._epochs, self._within, set()
        for student in self._students:
            if student.trainer.next_epoch == epochs:
                student.epoch(partial(self._keep, student, within) if within else None)

    def _keep(self, student: Student, folder: Path) -> None:
        """Write a student's state within an epoch, and those of others that have just ended it."""
        folder.mkdir(parents=True, exist_ok=True)
        for one in self._students:
            over = one.trainer.next_epoch > student.trainer.next_epoch
            if one is student or (over and one not in self._kept):
                one.save_state(folder / f"{one.spec.seed}.pt")
            if over:
                self._kept.add(one)

    def take_up(self) -> None:
        """Go on within the epoch that comes next, where students have states there."""
        if self._within is None:
            return
        for student in self._students:
            state = self._within / f"{student.spec.seed}.pt"
            if state.exists():
                student.load_state(state)

    @property
    def _epochs(self) -> int:
        """Finished epochs of every seed, known to all workers."""
        return min(student.trainer.next_epoch for student in self._students)

    @property
    def _within(self) -> Path | None:
        """Folder of states within the next epoch; it goes when a state of the whole comes.

        Population based training changes settings, batch sizes too: each has a folder of its own.
        """
        if self._states is None:
            return None
        spec = self._students[0].spec
        setting = fingerprint(spec.training, spec.spec and spec.spec.described())
        return self._states / f"{WITHIN}{self._epochs:05}-{setting[:8]}"

    def epoch(self) -> Epoch:
        """Train the next epoch of every seed; returns their mean, on the first worker."""
        self.train()
        return mean_epoch([student.history[-1] for student in self._students])

    def save(self, folder: Path) -> None:
        """Write a state a student, on which the rest of the trial depends."""
        for student in self._students:
            student.save_state(folder / f"{student.spec.seed}.pt")

    def moved(self, folder: Path) -> None:
        """What `save` wrote is in another folder now."""
        for student in self._students:
            student.moved(folder)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote, maybe under another setting of the same search."""
        for student in self._students:
            student.load_state(folder / f"{student.spec.seed}.pt", of_any=True)

    def test(self, state: Path) -> Metrics:
        """How good the students that it has saved are on the test split; it ends with that.

        Args:
            state: what `save` wrote.

        Raises:
            AgrekdError: there is nobody left to answer, or the answers are not finite.
        """
        self.load(state)
        return mean_metrics([student.test() for student in self._students])


def student_specs(job: Job, competence: Competence | None = None) -> tuple[StudentSpec, ...]:
    """What a trial's students have to do, one a seed; to train them, with what they need."""
    return tuple(
        student if competence is None else student.informed(lambda *_: competence)
        for student in make_plan(job).specs
    )


def test_metrics(
    planned: Planned, setting: Setting, state: Path, dataset: Dataset, device: torch.device | str
) -> Metrics:
    """What `Trial.test` says, in any process: for trials whose own has died.

    Args:
        planned: the search.
        setting: of the trial.
        state: what the trial saved last.
        dataset: of the search.
        device: to compute on.
    """
    metrics = []
    for spec in student_specs(planned.trial(setting)):
        model = build(spec.model, dataset.shape, len(dataset.classes), spec.seed)
        saved = torch.load(state / f"{spec.seed}.pt", map_location="cpu", weights_only=True)
        model.load_state_dict(saved["trainer"]["model"])
        precision = spec.training.precision
        metrics.append(evaluate(model.to(device), dataset, TEST, device, precision))
    return mean_metrics(metrics)


def save_state(trial: Trial | GroupTrial, folder: Path) -> None:
    """Write a trial's state, whole or not at all, in place of what was there.

    A file of ours and not Tune's checkpoint: Tune's snapshots lag behind, and a checkpoint that
    one names may have been removed since.

    Args:
        trial: of which an epoch at least is finished.
        folder: of this trial's states.
    """
    place = folder / f"{len(trial.history):05}"
    draft = folder / f".{place.name}.{os.getpid()}"
    draft.mkdir(parents=True, exist_ok=True)
    trial.save(draft)
    shutil.rmtree(place, ignore_errors=True)
    draft.replace(place)
    trial.moved(place)
    for other in folder.iterdir():
        if other != place:
            shutil.rmtree(other, ignore_errors=True)


def forget_within(folder: Path) -> None:
    """Remove states within an epoch: the trial goes on from another one's.

    Args:
        folder: of this trial's states.
    """
    for within in folder.glob(f"{WITHIN}*"):
        shutil.rmtree(within, ignore_errors=True)


def leave_test(trial: Trial | GroupTrial, folder: Path) -> None:
    """Write beside a trial's last state what its students are worth on the test split.

    It is for the report, so the search hears of it only once all trials are over. What fails here
    leaves nothing, and the driver has it done again (`test_metrics`).

    Args:
        trial: that has come to its end.
        folder: of its states.
    """
    state = last_state(folder)
    if state is None or (state / TESTED).exists():
        return
    with contextlib.suppress(AgrekdError, OSError):
        text = json.dumps(asdict(trial.test(state)))
        with replacing(state / TESTED) as draft:
            draft.write_text(text, encoding="utf-8")


def read_test(state: Path) -> Metrics | None:
    """What `leave_test` wrote beside a state; None where there is nothing whole."""
    try:
        return read_json(state / TESTED, Metrics)
    except (OSError, DamagedError):
        return None


def last_state(folder: Path) -> Path | None:
    """What `save_state` wrote last; None where there is nothing."""
    states = [path for path in folder.glob("[0-9]*") if path.is_dir()]
    return max(states, key=lambda path: path.name, default=None)


def opened(shared: Shared) -> tuple[Dataset, Source, Judge]:
    """A process's own view of what trials share."""
    dataset = shared.data.open()
    return dataset, shared.source(dataset), shared.judge(dataset)
