"""Deep feature reweighting: a debiased teacher is a biased one with its last layer retrained.

Kirichenko, Izmailov, Wilson, "Last Layer Re-Training is Sufficient for Robustness to Spurious
Correlations", ICLR 2023. Groups are class x spurious attribute. Labels used: groups.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer
from torch import nn
from torch.nn import functional

from agrekd_ray.errors import AgrekdError
from agrekd_ray.settings import (
    FINGERPRINT,
    Count,
    Momentum,
    NonNegative,
    Positive,
    Settings,
)
from agrekd_ray.teachers.kinds import KINDS, HeldOut, Layer, debiased


class BatchSettings(Settings):
    """Last layers trained by SGD at a constant rate, on batches with as many of every group.

    Attributes:
        epochs: of as many steps as the DFR half of validation has batches.
        batch_size: samples a step, drawn with replacement within each group.
        learning_rate: of all steps.
        momentum: of SGD.
        weight_decay: L2 penalty.
    """

    epochs: Count = 100
    batch_size: Count = 32
    learning_rate: Positive = 1e-3
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 1e-4


class DfrSettings(Settings):
    """How a last layer is retrained.

    Attributes:
        inverse_penalties: the values of C (inverse strength of the L1 penalty) that are tried;
            the selection half of validation decides, by worst-group accuracy.
        retrainings: group-balanced subsamples whose coefficients are averaged.
        batches: `{}` or a block trains the layer on group-balanced batches, as the AGRE-KD paper
            does, and the two keys above do nothing; null averages regressions, as DFR's own code.
    """

    inverse_penalties: tuple[Positive, ...] = Field(
        default=(1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01), min_length=1
    )
    retrainings: Count = 20
    batches: BatchSettings | None = None

    @model_serializer(mode="wrap")
    def _dumped(
        self, dump: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if info.context == FINGERPRINT:  # what does nothing changes no teacher
            batches = values.pop("batches")
            return values if batches is None else {"batches": batches}
        return values


@debiased("dfr", "DFR", DfrSettings, needs_groups=True)
def dfr(held_out: HeldOut, settings: DfrSettings, seed: int, key: str = "dfr") -> Layer:
    """A last layer that weighs all groups alike.

    Features are standardised, and the scaler is folded into the layer. The layer is the average
    of L1-penalised multinomial logistic regressions, each of a group-balanced subsample, or is
    trained from zero on group-balanced batches (`settings.batches`).

    Args:
        held_out: samples with groups.
        settings: of the retraining.
        seed: of subsamples and batches.
        key: of the settings' block, for an error.

    Raises:
        AgrekdError: training on batches diverged.
    """
    from sklearn.preprocessing import StandardScaler  # two seconds that few processes need

    fit_N, balanced_N = held_out.fit.labels_N, held_out.fit.groups_N
    assert balanced_N is not None
    scaler = StandardScaler().fit(held_out.fit.features_ND)
    fit_ND = scaler.transform(held_out.fit.features_ND)
    if settings.batches is not None:
        weight_CD, bias_C = _by_batches(fit_ND, fit_N, balanced_N, settings.batches, seed, key)
    else:
        select_N, evaluated_N = held_out.select.labels_N, held_out.select.evaluated_N
        assert evaluated_N is not None
        select_ND = scaler.transform(held_out.select.features_ND)

        def subsample(number: int) -> tuple[np.ndarray, np.ndarray]:
            rows = _balanced(balanced_N, np.random.default_rng((seed, number)))
            return fit_ND[rows], fit_N[rows]

        def worst(inverse_penalty: float) -> float:
            coefficients_CD, intercepts_C = _Logistic(inverse_penalty, seed).fit(*subsample(0))
            right_N = (select_ND @ coefficients_CD.T + intercepts_C).argmax(1) == select_N
            return min(right_N[evaluated_N == group].mean() for group in np.unique(evaluated_N))

        best = _Logistic(max(settings.inverse_penalties, key=worst), seed)
        fits = [best.fit(*subsample(number)) for number in range(1, settings.retrainings + 1)]
        weight_CD = np.mean([coefficients for coefficients, _ in fits], axis=0)
        bias_C = np.mean([intercepts for _, intercepts in fits], axis=0)
    weight_CD = weight_CD / scaler.scale_
    return weight_CD, bias_C - weight_CD @ scaler.mean_


def _balanced(groups_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows with as many samples of every group as the smallest one has."""
    present, counts = np.unique(groups_N, return_counts=True)
    rows = (np.flatnonzero(groups_N == group) for group in present)
    return np.concatenate([rng.choice(own, counts.min(), replace=False) for own in rows])


def _by_batches(
    features_ND: np.ndarray,
    labels_N: np.ndarray,
    groups_N: np.ndarray,
    settings: BatchSettings,
    seed: int,
    key: str = "dfr",
) -> Layer:
    """A layer trained from zero on group-balanced batches."""
    steps = settings.epochs * -(-len(labels_N) // settings.batch_size)
    layer = trained_by_batches(
        features_ND, labels_N, groups_N, settings, settings.learning_rate, steps, seed
    )
    if not np.isfinite(layer[0]).all():
        raise AgrekdError(
            f"{KINDS[key].label}: a last layer diverged on group-balanced batches; lower "
            f"teachers.{key}.batches.learning_rate (it is {settings.learning_rate:g})."
        )
    return layer


class Descent(Protocol):
    """What settings say of SGD on balanced batches."""

    @property
    def batch_size(self) -> int:
        """Samples a step."""
        ...

    @property
    def momentum(self) -> float:
        """Of SGD."""
        ...

    @property
    def weight_decay(self) -> float:
        """L2 penalty."""
        ...


def trained_by_batches(
    features_ND: np.ndarray,
    labels_N: np.ndarray,
    groups_N: np.ndarray,
    settings: Descent,
    learning_rate: float,
    steps: int,
    seed: int,
    start: Layer | None = None,
) -> Layer:
    """A layer trained by SGD on batches with as many samples of every group.

    Args:
        features_ND: of the samples.
        labels_N: their classes.
        groups_N: what is balanced.
        settings: of the batches.
        learning_rate: of all steps.
        steps: of SGD.
        seed: of the batches.
        start: the layer that it goes out from; None for zeros. What has diverged is not finite.
    """
    rng = np.random.default_rng(seed)
    features, labels = torch.from_numpy(features_ND).float(), torch.from_numpy(labels_N)
    classes = int(labels.max()) + 1 if start is None else len(start[1])
    layer = nn.Linear(features.shape[1], classes)
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), start or (None, None), strict=True):
            parameter.copy_(torch.zeros(()) if value is None else torch.from_numpy(value))
    optimizer = torch.optim.SGD(
        layer.parameters(),
        lr=learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    for batch in _balanced_batches(groups_N, settings.batch_size, steps, rng):
        rows = torch.from_numpy(batch)
        optimizer.zero_grad()
        functional.cross_entropy(layer(features[rows]), labels[rows]).backward()
        optimizer.step()
    return layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()


def _balanced_batches(
    groups_N: np.ndarray, size: int, steps: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Rows of each batch, as many of every group; what does not divide goes round by step."""
    present, counts = np.unique(groups_N, return_counts=True)
    by_group, first = np.argsort(groups_N, kind="stable"), np.cumsum(counts) - counts
    for step in range(steps):
        group_B = np.arange(step * size, (step + 1) * size) % len(present)
        yield by_group[first[group_B] + rng.integers(counts[group_B])]


class _Logistic:
    """L1-penalised multinomial logistic regression; each fit starts where the last one ended."""

    def __init__(self, inverse_penalty: float, seed: int) -> None:
        from sklearn.linear_model import LogisticRegression

        self._model = LogisticRegression(
            l1_ratio=1.0,
            C=inverse_penalty,
            solver="saga",
            tol=1e-2,
            max_iter=500,
            random_state=seed,
            warm_start=True,
        )

    def fit(self, features_ND: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients [C, D] and intercepts [C]."""
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            # The average over retrainings forgives a fit that was stopped early.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = self._model.fit(features_ND, labels_N)
        coefficients, intercepts = fitted.coef_.copy(), fitted.intercept_.copy()
        if len(fitted.classes_) == 2:  # one row for two classes: the log-odds of the second
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        return coefficients, intercepts
