"""Deep feature reweighting: a debiased teacher is a biased one with its last layer retrained.

Kirichenko, Izmailov, Wilson, "Last Layer Re-Training is Sufficient for Robustness to Spurious
Correlations", ICLR 2023. Groups are class x spurious attribute.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer
from torch import nn
from torch.nn import functional

from agrekd_ray.data import DFR, SELECT, Dataset, classes_missing, dfr_groups
from agrekd_ray.errors import AgrekdError, DataError, listed
from agrekd_ray.models import Classifier
from agrekd_ray.settings import (
    FINGERPRINT,
    Count,
    Momentum,
    NonNegative,
    Positive,
    Precision,
    Settings,
)
from agrekd_ray.training import predict


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


def retrain_head(
    model: Classifier,
    dataset: Dataset,
    settings: DfrSettings,
    seed: int,
    device: torch.device | str = "cpu",
    precision: Precision = "auto",
) -> Classifier:
    """A copy of the model with a last layer trained on the DFR half of validation.

    Features are standardised, and the scaler is folded into the layer. The layer is the average
    of L1-penalised multinomial logistic regressions, each of a group-balanced subsample, or is
    trained from zero on group-balanced batches (`settings.batches`).

    Raises:
        AgrekdError: the model is an exported program, which has no head of its own, or training
            on batches diverged.
        DataError: a class has no sample in the DFR half.
    """
    if not isinstance(model.head, nn.Linear):
        raise AgrekdError(
            "DFR: an exported program has no last layer of its own to retrain; import the model's "
            "state dict instead."
        )
    from sklearn.preprocessing import StandardScaler  # two seconds that few processes need

    if missing := classes_missing(dataset, DFR):
        raise DataError(
            f"DFR: no sample of class {listed(repr(name) for name in missing)} in its half of "
            f"validation ({DFR}); give validation two samples of every class at least."
        )

    def features(split: str) -> tuple[np.ndarray, np.ndarray]:
        ids = dataset.splits[split]
        features_ND = predict(model.backbone, dataset, ids, device=device, precision=precision)
        return features_ND.double().numpy(), dataset.labels(ids).numpy()

    raw_ND, fit_N = features(DFR)
    scaler = StandardScaler().fit(raw_ND)
    fit_ND = scaler.transform(raw_ND)
    balanced_N, _ = dfr_groups(dataset, DFR)
    if settings.batches is not None:
        weight_CD, bias_C = _by_batches(fit_ND, fit_N, balanced_N, settings.batches, seed)
    else:
        raw_ND, select_N = features(SELECT)
        select_ND = scaler.transform(raw_ND)
        evaluated_N = dataset.groups.group_N[dataset.splits[SELECT]]

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
    bias_C = bias_C - weight_CD @ scaler.mean_
    head = nn.Linear(model.head.in_features, len(bias_C), device=model.head.weight.device)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight_CD))
        head.bias.copy_(torch.from_numpy(bias_C))
    return Classifier(copy.deepcopy(model.backbone), head)


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
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [C, D] and intercepts [C] of a layer trained on group-balanced batches."""
    rng = np.random.default_rng(seed)
    features, labels = torch.from_numpy(features_ND).float(), torch.from_numpy(labels_N)
    layer = nn.Linear(features.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(
        layer.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    steps = settings.epochs * -(-len(labels) // settings.batch_size)
    for batch in _balanced_batches(groups_N, settings.batch_size, steps, rng):
        rows = torch.from_numpy(batch)
        optimizer.zero_grad()
        functional.cross_entropy(layer(features[rows]), labels[rows]).backward()
        optimizer.step()
    if not bool(torch.isfinite(layer.weight).all()):
        raise AgrekdError(
            "DFR: a last layer diverged on group-balanced batches; lower "
            f"teachers.dfr.batches.learning_rate (it is {settings.learning_rate:g})."
        )
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
