"""Figures that others compute, too: fairlearn, WILDS' conventions and torchmetrics agree with ours.

They are oracles of these tests, and no dependency of the package.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from fairlearn.metrics import MetricFrame
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from agrekd_ray.core.diagnostics import CALIBRATION_BINS, reliability
from agrekd_ray.core.groups import group_metrics

CLOSE = 1e-6


@st.composite
def answers(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    """Probabilities [N, C], labels and groups [N], and G: some classes and groups have no sample.

    Probabilities are drawn on a coarse grid, so that classes tie and confidences lie on the edges
    of bins.
    """
    classes, groups = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    count = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    grid = draw(st.sampled_from([1, 2, 15, 1000]))
    parts = rng.integers(0, grid + 1, (count, classes)) + (rng.random((count, 1)) < 0.1)
    parts = np.where(parts.sum(1, keepdims=True) == 0, 1, parts)
    probabilities = torch.from_numpy(parts / parts.sum(1, keepdims=True))
    few = draw(st.booleans())
    labels = rng.integers(0, max(1, classes - 1) if few else classes, count)
    members = rng.integers(0, max(1, groups - 2) if few else groups, count)
    return probabilities, torch.from_numpy(labels), torch.from_numpy(members), groups


def ours(probabilities: Tensor, labels: Tensor, members: Tensor, groups: int, shares: Tensor):
    names = [f"group {number}" for number in range(groups)]
    return group_metrics(probabilities, labels, members, names, shares)


ONE_CLASS = (torch.ones(3, 1), torch.zeros(3).long(), torch.tensor([0, 0, 2]), 3)
TIES = (torch.full((4, 2), 0.5), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]), 2)


@given(answers())
@example(ONE_CLASS)
@example(TIES)
def test_accuracy_by_group_is_that_of_fairlearn(given: tuple[Tensor, Tensor, Tensor, int]) -> None:
    probabilities, labels, members, groups = given
    figures = ours(*given, torch.ones(groups))
    frame = MetricFrame(
        metrics={"accuracy": accuracy_score, "count": lambda true, predicted: len(true)},
        y_true=labels.numpy(),
        y_pred=probabilities.argmax(1).numpy(),
        sensitive_features=pd.Series(members.numpy()),  # of one sample, too
    )
    assert figures["accuracy"] == pytest.approx(frame.overall["accuracy"], abs=CLOSE)
    assert figures["worst_group_accuracy"] == pytest.approx(
        frame.group_min()["accuracy"], abs=CLOSE
    )
    by_group = {f"group {number}": row for number, row in frame.by_group.iterrows()}
    assert figures["groups"].keys() == by_group.keys()
    for name, row in by_group.items():
        assert figures["groups"][name] == pytest.approx(row["accuracy"], abs=CLOSE)
        assert figures["counts"][name] == row["count"]


@given(answers(), st.integers(0, 2**32 - 1))
@example(ONE_CLASS, 0)
@example(TIES, 0)
def test_worst_and_adjusted_accuracy_are_as_in_wilds(
    given: tuple[Tensor, Tensor, Tensor, int], seed: int
) -> None:
    """Koh et al. 2021: the worst group is the smallest of those that the split has.

    The adjusted average of Waterbirds weighs the accuracies of the groups by the training split's
    shares. Written down here from the paper.
    """
    probabilities, labels, members, groups = given
    counts_in_train = np.random.default_rng(seed).integers(1, 1000, groups)
    figures = ours(*given, torch.from_numpy(counts_in_train / counts_in_train.sum()))
    right = (probabilities.argmax(1) == labels).numpy()
    of = {g: right[members.numpy() == g].mean() for g in range(groups) if (members == g).any()}
    assert figures["worst_group_accuracy"] == pytest.approx(min(of.values()), abs=CLOSE)
    weights = np.array([counts_in_train[g] for g in of], float)
    adjusted = (np.array([*of.values()]) * weights).sum() / weights.sum()
    assert figures["weighted_accuracy"] == pytest.approx(adjusted, abs=CLOSE)
    assert figures["coverage"]["groups"] == (len(of), groups)


@given(answers())
@example(ONE_CLASS)
@example(TIES)
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_accuracy_by_class_is_that_of_others(given: tuple[Tensor, Tensor, Tensor, int]) -> None:
    probabilities, labels, _, groups = given
    figures = ours(*given, torch.ones(groups))
    predicted = probabilities.argmax(1)
    present = labels.unique().numpy()
    by_class = MetricFrame(
        metrics=accuracy_score,
        y_true=labels.numpy(),
        y_pred=predicted.numpy(),
        sensitive_features=pd.Series(labels.numpy()),
    ).by_group
    assert figures["worst_class_accuracy"] == pytest.approx(by_class.min(), abs=CLOSE)
    assert figures["balanced_accuracy"] == pytest.approx(by_class.mean(), abs=CLOSE)
    if len(present) > 1 and set(predicted.tolist()) <= {*present.tolist()}:
        balanced = balanced_accuracy_score(labels.numpy(), predicted.numpy())
        assert figures["balanced_accuracy"] == pytest.approx(balanced, abs=CLOSE)
    classes = probabilities.shape[1]
    if classes > 1:
        micro = multiclass_accuracy(predicted, labels, classes, average="micro")
        assert figures["accuracy"] == pytest.approx(float(micro), abs=CLOSE)


@given(answers())
@example(TIES)
@example((torch.eye(3), torch.tensor([0, 2, 1]), torch.zeros(3).long(), 1))
def test_calibration_error_is_that_of_torchmetrics(
    given: tuple[Tensor, Tensor, Tensor, int],
) -> None:
    """With 15 bins, of samples whose confidence is not the edge of a bin, which either may have."""
    probabilities, labels, members, groups = given
    if probabilities.shape[1] == 1:
        return  # torchmetrics knows no problem of one class; ours is below
    confidence = probabilities.max(1).values * CALIBRATION_BINS
    inside = ((confidence - confidence.round()).abs() > 1e-4) | (confidence > CALIBRATION_BINS - 1)
    if not inside.any():
        return
    probabilities, labels, members = (part[inside] for part in (probabilities, labels, members))
    theirs = multiclass_calibration_error(
        probabilities.float(), labels, probabilities.shape[1], n_bins=CALIBRATION_BINS, norm="l1"
    )
    figures = ours(probabilities, labels, members, groups, torch.ones(groups))
    assert figures["ece"] == pytest.approx(float(theirs), abs=1e-5)


def test_calibration_of_one_class_and_of_empty_bins() -> None:
    figures = ours(*ONE_CLASS, torch.ones(3))
    assert figures["ece"] == 0
    counts, confidence, accuracy = reliability(torch.tensor([0.5, 0.51]), torch.tensor([1.0, 0.0]))
    assert counts.tolist() == [2 * (number == 7) for number in range(CALIBRATION_BINS)]
    assert float(confidence[7]) == pytest.approx(0.505)
    assert float(accuracy[7]) == 0.5
    assert bool(confidence[0].isnan())
