"""Selection rules: every one by hand, and what all of them keep to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agrekd_ray.core.selection import (
    CONFIDENCE,
    GROUPS,
    LABELS,
    RULES,
    TEACHERS,
    Answers,
    scores,
)

STUDENT = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])
LABELS_N = torch.tensor([0, 1, 1, 1, 2, 0, 0, 2])
GROUPS_N = torch.tensor([0, 1, 0, 0, 0, 1, 0, 1])
ENSEMBLE = torch.tensor([0, 1, 1, 2, 2, 2, 0, 1])
BIASED = torch.tensor([0, 0, 1, 1, 2, 0, 0, 2])
CONFIDENT = torch.tensor([0.2, 0.8, 0.6, 0.2, 0.5, 0.9, 0.6, 0.5])
ALL = Answers(STUDENT, LABELS_N, GROUPS_N, ENSEMBLE, BIASED, CONFIDENT)


def test_every_rule_by_hand() -> None:
    assert scores(ALL) == pytest.approx(
        {
            "worst_group": 0.0,  # samples 1, 5, 7: all wrong
            "worst_class": 0.5,  # class 2: samples 4 and 7
            "accuracy": 5 / 8,
            "worst_label_biased": 0.0,  # label 1 where the biased model says 0: sample 1
            "worst_inferred": 0.5,  # label 0 of low loss: samples 5 and 6
            "contradicted": 0.5,  # samples 1, 3, 5, 7: the student is with the vote in 5 and 7
            "worst_side": 0.5,
            "worst_voted_class": 2 / 3,
        }
    )


def test_environments_are_the_halves_of_a_class_by_the_biased_model_s_loss() -> None:
    """Which label x right would not find, where the biased model is right or wrong throughout."""
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    student = torch.tensor([0, 0, 1, 0, 1, 1, 1, 1])
    # Right throughout in class 0, where it is less sure of the last two; wrong throughout in 1.
    sure = torch.tensor([0.9, 0.8, 0.6, 0.7, 0.1, 0.2, 0.3, 0.4])
    biased = torch.zeros(8, dtype=torch.long)
    found = scores(Answers(student, labels, None, labels, biased, sure))
    assert found["worst_inferred"] == 0.5
    assert found["worst_label_biased"] == 0.75
    same = scores(Answers(student, labels, None, labels, biased, torch.full((8,), 0.5)))
    assert same["worst_inferred"] == same["worst_class"] == 0.75


@pytest.mark.parametrize("missing", [GROUPS, LABELS, TEACHERS, CONFIDENCE])
def test_a_rule_without_what_it_needs_has_no_score(missing: str) -> None:
    parts = {
        GROUPS: {"groups_N": None},
        LABELS: {"labels_N": None},
        TEACHERS: {"ensemble_N": None},
        CONFIDENCE: {"confidence_N": None},
    }[missing]
    found = scores(Answers(**{**vars(ALL), **parts}))
    assert set(found) == {name for name, rule in RULES.items() if missing not in rule.needs}


def test_label_free_rules_see_no_label() -> None:
    free = [name for name, rule in RULES.items() if rule.label_free]
    assert len(free) >= 2
    blind = scores(Answers(STUDENT, None, None, ENSEMBLE, BIASED))
    assert set(blind) == set(free)
    assert blind == {name: scores(ALL)[name] for name in free}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 10_000))
def test_scores_are_shares_and_a_student_that_is_right_has_them_all(
    count: int, classes: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> torch.Tensor:
        return torch.randint(classes, (count,), generator=generator)

    sure = torch.rand(count, generator=generator)
    answers = Answers(drawn(), drawn(), drawn() % 2, drawn(), drawn(), sure)
    assert all(0 <= score <= 1 for score in scores(answers).values())
    right = answers.labels_N
    assert right is not None
    best = scores(Answers(right, right, answers.groups_N, right, answers.biased_N, sure))
    assert set(best.values()) == {1.0}


def test_agreement_counts_everything_where_nothing_is_contradicted() -> None:
    found = scores(Answers(STUDENT, None, None, ENSEMBLE, ENSEMBLE))
    assert found["contradicted"] == pytest.approx(6 / 8)
    assert found["worst_side"] == pytest.approx(6 / 8)


def test_parts_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="same samples"):
        scores(Answers(STUDENT, LABELS_N[:3]))
    with pytest.raises(ValueError, match="one at least"):
        scores(Answers(STUDENT[:0]))


def test_every_rule_says_what_it_is() -> None:
    for name, rule in RULES.items():
        assert rule.name == name
        assert rule.summary.endswith(".")
        assert set(rule.needs) <= {GROUPS, LABELS, TEACHERS, CONFIDENCE}
