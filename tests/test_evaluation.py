"""Calibration and agreement with the biased model, on a split of a data set."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from agrekd_ray.data import Groups
from agrekd_ray.files import checked
from agrekd_ray.results import Agreement, Bin, StudentResult, mean_metrics, over, part_measured
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
    outcome = StudentResult("aver", 0, "5", {"test": metrics}, calibration=bins)
    assert checked(StudentResult, asdict(outcome)) == outcome
    old = {name: value for name, value in asdict(outcome).items() if name != "calibration"}
    assert checked(StudentResult, old).calibration == []


def test_the_worst_of_some_groups_is_told_from_the_worst_of_all() -> None:
    """Of three groups, one has no test sample; of two, both have."""
    probabilities_NC = torch.tensor([[0.8, 0.2]] * 5)
    found = score(DATA, "test", probabilities_NC)
    assert found.worst == "worst of 2 of 3 groups"
    assert part_measured(found.coverage, "weighted_accuracy") == "2 of 3 groups"
    assert part_measured(found.coverage, "balanced_accuracy") == ""
    assert part_measured(found.coverage, "accuracy") == ""
    whole: Any = SimpleNamespace(
        **{**vars(DATA), "groups": replace(GROUPS, names=GROUPS.names[:2])}
    )
    assert score(whole, "test", probabilities_NC).worst == "worst group"
    assert mean_metrics([found, found]).worst == found.worst


def test_without_groups_it_is_the_worst_of_some_classes() -> None:
    labels_N = np.array([0, 2, 2, 0, 2, 0])
    data: Any = SimpleNamespace(
        splits=DATA.splits,
        groups=Groups.unknown(labels_N, ("a", "b", "c")),
        labels=lambda ids: torch.from_numpy(labels_N[ids]),
    )
    found = score(data, "test", torch.tensor([[0.5, 0.2, 0.3]] * 5))
    assert found.coverage == {"classes": (2, 3)}
    assert found.worst == "worst of 2 of 3 classes"
    assert part_measured(found.coverage, "weighted_accuracy") == "2 of 3 classes"


def test_overlapping_groups_without_a_sample_are_counted_too() -> None:
    member_NK = np.array([[1, 0], [0, 0], [1, 0], [0, 0], [0, 0], [1, 1]], dtype=bool)
    groups = replace(GROUPS, overlapping_NK=member_NK, overlapping=("some", "none here"))
    data: Any = SimpleNamespace(**{**vars(DATA), "groups": groups})
    found = score(data, "test", torch.tensor([[0.8, 0.2]] * 5))
    part = part_measured(found.coverage, "worst_overlapping_group_accuracy")
    assert over("Worst overlapping", part) == "Worst of 1 of 2 overlapping groups"


def test_metrics_of_an_earlier_version_say_nothing_of_their_coverage() -> None:
    outcome = StudentResult(
        "aver", 0, "5", {"test": score(DATA, "test", torch.tensor([[0.8, 0.2]] * 5))}
    )
    values = json.loads(json.dumps(asdict(outcome)))
    assert checked(StudentResult, values) == outcome
    del values["splits"]["test"]["coverage"]
    assert checked(StudentResult, values).splits["test"].worst == "worst group"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("Worst group", "Worst of 1 of 2 groups"),
        ("worst-group", "worst of 1 of 2 groups"),
        ("Worst group (val)", "Worst of 1 of 2 groups (val)"),
        ("Balanced", "Balanced over 1 of 2 groups"),
        ("39.0 ± 2.4", "39.0 ± 2.4 over 1 of 2 groups"),
    ],
)
def test_words_with_the_part_that_they_are_over(words: str, told: str) -> None:
    assert over(words, "1 of 2 groups") == told
    assert over(words, "") == words
