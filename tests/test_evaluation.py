"""Calibration and agreement with the biased model, on a split of a data set."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from agrekd_ray.data import Groups
from agrekd_ray.results import Agreement, Bin, Outcome
from agrekd_ray.training import agreement, calibration, score

LABELS = torch.tensor([0, 1, 1, 0, 1, 0])
GROUPS = Groups(
    attribute_N=np.zeros(6, int),
    attributes=("one",),
    group_N=np.array([0, 0, 1, 1, 1, 0]),
    names=("common", "rare", "absent"),
)
DATA: Any = SimpleNamespace(
    splits={"train": np.array([5]), "test": np.array([0, 1, 2, 3, 4])},
    groups=GROUPS,
    labels=lambda ids: LABELS[torch.from_numpy(ids)],
)


def test_bins_say_where_they_are_and_give_the_ece() -> None:
    sure_N = torch.tensor([0.9, 0.9, 0.7, 0.6, 0.6])
    probabilities_NC = torch.stack([sure_N, 1 - sure_N], dim=1)  # all answer class 0
    bins = calibration(DATA, "test", probabilities_NC)
    assert [(b.count, b.accuracy) for b in bins] == [(2, 0.5), (1, 0.0), (2, 0.5)]
    assert all(b.low < b.confidence <= b.high + 1e-6 for b in bins)
    assert bins[-1].high == pytest.approx(14 / 15)
    gap = sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / 5
    assert score(DATA, "test", probabilities_NC).ece == pytest.approx(gap)


def test_a_vote_is_held_to_what_it_named() -> None:
    probabilities_NC = torch.tensor([[0.8, 0.2]] * 5)
    (found,) = calibration(DATA, "test", probabilities_NC, LABELS[:5])
    assert found.accuracy == 1.0
    assert found.confidence == pytest.approx(0.8)


def test_agreement_by_group_and_overlapping_group() -> None:
    ensemble_N, biased_N = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 0, 1])
    found = agreement(DATA, "test", ensemble_N, biased_N)
    assert found.overall == Agreement(5, 2 / 5, 1 / 5, 1 / 5, 1 / 5)
    assert found.groups == {
        "common": Agreement(2, 0.5, 0.5, 0.0, 0.0),
        "rare": Agreement(3, 1 / 3, 0.0, 1 / 3, 1 / 3),
    }
    assert found.overlapping == {}
    member_NK = np.array([[1, 0], [0, 0], [1, 0], [0, 0], [0, 0], [1, 1]], dtype=bool)
    groups = replace(GROUPS, overlapping_NK=member_NK, overlapping=("some", "none here"))
    data: Any = SimpleNamespace(**{**vars(DATA), "groups": groups})
    again = agreement(data, "test", ensemble_N, biased_N)
    assert again.groups == found.groups
    assert again.overlapping == {"some": Agreement(2, 0.5, 0.0, 0.5, 0.0)}


def test_an_outcome_keeps_its_bins_and_does_without_them() -> None:
    probabilities_NC = torch.tensor([[0.8, 0.2]] * 5)
    metrics = score(DATA, "test", probabilities_NC)
    bins = [Bin(0.0, 0.5, 3, 0.4, 0.25)]
    outcome = Outcome("aver", 0, "5", {"test": metrics}, calibration=bins)
    assert Outcome.from_json(outcome.to_json()) == outcome
    old = {name: value for name, value in asdict(outcome).items() if name != "calibration"}
    assert Outcome.from_json(old).calibration == []
