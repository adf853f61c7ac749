"""Distillation of modules and data of one's own, in this process: no job, no file, no Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from agrekd_ray.core.weighting import SampleWeighting, find_strategy
from agrekd_ray.data import SELECT, TEST, TRAIN
from agrekd_ray.data.in_memory import InMemory, Split
from agrekd_ray.distillation import DistillationSpec, competence_of
from agrekd_ray.distillation.cached import FixedLogits
from agrekd_ray.results import EnsembleCheck, Epoch, StudentResult
from agrekd_ray.results.frame import epochs, frame, last_weights
from agrekd_ray.settings import Precision, Training
from agrekd_ray.student.training import StudentTraining
from agrekd_ray.training import Loader, calibration, check_ensemble, predict, score

ONE_HOT = "one_hot"


@dataclass(frozen=True)
class DistilledStudent:
    """What `distill` returns.

    Attributes:
        model: the student, in evaluation mode, on its device.
        outcome: everything measured of it.
        ensemble: whether AGRE-KD can be trusted with the teachers, by what they answer to `val`;
            None where the method needs no biased model.
    """

    model: nn.Module
    outcome: StudentResult
    ensemble: EnsembleCheck | None = None

    @cached_property
    def table(self) -> pd.DataFrame:
        """Everything measured, tidy: a row a split, metric and group."""
        return frame([self.outcome])

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """Its training, tidy: a row an epoch, metric and group."""
        return epochs([self.outcome])

    @property
    def weights(self) -> pd.DataFrame:
        """Who taught whom: mean weight of each teacher in the last epoch, by training group."""
        return last_weights(self.epochs)


def distill(
    student: nn.Module,
    teachers: Sequence[nn.Module] | Mapping[str, nn.Module] = (),
    *,
    train: Split,
    val: Split,
    test: Split | None = None,
    biased: nn.Module | None = None,
    method: str = "agre_kd",
    temperature: float = 4.0,
    alpha: float = 1.0,
    sample_weighting: SampleWeighting | None = None,
    epochs: int = 15,
    batch_size: int = 64,
    learning_rate: float = 0.05,
    seed: int = 0,
    device: torch.device | str = "cpu",
    training: Mapping[str, Any] | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    **options: Any,
) -> DistilledStudent:
    """Trains a student of one's own by teachers of one's own, as a job would.

    The teachers answer to the training samples once, before the first step. All is held in memory;
    for more than that, or for augmentation, write a job.

    Args:
        student: samples -> logits [B, C]; trained in place.
        teachers: samples -> logits [B, C]; in a list, or by name.
        train: see `Split`. Training sees no group; who taught whom is reported by it.
        val: on which the student is evaluated after every epoch, and whose labels tell the
            teachers' competence to methods that need it.
        test: on which it is evaluated in the end.
        biased: the biased model, which may be one of the teachers; for methods that need it.
        method: a strategy, or `one_hot` for the labels alone.
        temperature: τ.
        alpha: share of distillation in the objective; the rest is cross-entropy with the labels.
        sample_weighting: scales samples by how far the teachers answer from the biased model.
        epochs: passes over the training samples.
        batch_size: samples a step.
        learning_rate: at the peak of the schedule.
        seed: of order and dropout.
        device: to train on.
        training: further settings, by their names in a job: `{"optimizer": "adamw"}`.
        on_epoch: hears of every epoch.
        options: of the strategy.

    Raises:
        ValueError: something is missing or does not fit.
        RunError: the training has diverged, or a teacher answers with NaN.
    """
    splits = {TRAIN: train, SELECT: val} | ({TEST: test} if test is not None else {})
    data = InMemory(splits)
    settings = Training(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, **(training or {})
    )
    named = (
        dict(teachers)
        if isinstance(teachers, Mapping)
        else {f"teacher-{number}": model for number, model in enumerate(teachers)}
    )
    spec, source, check = None, None, None
    if method != ONE_HOT:
        members = _members(method, named, biased, weighted=sample_weighting is not None)
        spec = DistillationSpec(
            method,
            tuple(named),
            _name_of(biased, named),
            temperature,
            alpha,
            options,
            sample_weighting,
            seed,
        )
        if spec.biased in members:
            told = _logits(members, data, SELECT, settings.precision, device)
            check = check_ensemble(
                data,
                {name: told[name] for name in named},
                (spec.biased, told[spec.biased]),
                dict.fromkeys(told, "own"),
                temperature,
            )
            if spec.needs_competence:
                labels_N = data.labels(data.splits[SELECT])
                spec = spec.informed(lambda every, one: competence_of(every, one, told, labels_N))
        logits = _logits(members, data, TRAIN, settings.precision, device)
        source = FixedLogits({name: of.numpy() for name, of in logits.items()}, data)
    trained = StudentTraining(
        student,
        data,
        settings,
        spec,
        source,
        seed=seed,
        groups=data.trained_groups,
        device=device,
    )
    while not trained.done:
        trained.epoch()
        on_epoch(trained.history[-1])
    student.eval()
    measured, bins = {SELECT: trained.history[-1].val}, []
    if TEST in splits:
        probabilities_NC = trained.probabilities(TEST)
        measured[TEST] = score(data, TEST, probabilities_NC)
        bins = calibration(data, TEST, probabilities_NC)
    count = str(len(named)) if spec else "-"
    return DistilledStudent(
        student,
        StudentResult(method, seed, count, measured, trained.history, calibration=bins),
        check,
    )


def _logits(
    models: Mapping[str, nn.Module],
    data: InMemory,
    split: str,
    precision: Precision,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """What models answer to the samples of a split, by name."""
    ids, loader = data.splits[split], Loader(data, device)
    return {
        name: predict(model.to(device), data, ids, loader=loader, precision=precision)
        for name, model in models.items()
    }


def _members(
    method: str, teachers: Mapping[str, nn.Module], biased: nn.Module | None, *, weighted: bool
) -> dict[str, nn.Module]:
    """Everybody who must answer, by name.

    Raises:
        ValueError: there is no such method, or somebody whom it needs is missing.
    """
    uses_biased = find_strategy(method).needs_biased or weighted
    if not teachers:
        raise ValueError(f"{method} needs teachers")
    if not uses_biased:
        return dict(teachers)
    if biased is None:
        raise ValueError(f"{method} with these settings needs a biased model")
    return {**teachers, _name_of(biased, teachers): biased}


def _name_of(biased: nn.Module | None, teachers: Mapping[str, nn.Module]) -> str:
    """A teacher's, where it is one of them; else one that no teacher has."""
    for name, model in teachers.items():
        if model is biased:
            return name
    name = "biased"
    while name in teachers:
        name += "-model"
    return name
