"""Metrics by group against values worked out by hand, and the ensemble's vote."""

import weakref

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from agrekd_ray.core.groups import group_metrics, majority_vote
from agrekd_ray.results import Metrics

NAMES = ("land on land", "land on water", "water on land", "water on water")


def certain(*predictions, classes=2):
    return torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()


def example(**changes):
    """Ten samples: groups of 5, 1, 2 and 2, of which 4, 0, 1 and 2 are right."""
    arguments = {
        "probabilities_NC": certain(0, 0, 0, 0, 1, 1, 1, 0, 1, 1),
        "labels_N": torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1]),
        "groups_N": torch.tensor([0, 0, 0, 0, 0, 1, 2, 2, 3, 3]),
        "group_names": NAMES,
        "train_shares_G": [0.7, 0.1, 0.05, 0.15],
    }
    return group_metrics(**{**arguments, **changes})


def test_hand_worked_values():
    metrics = Metrics(**example())
    assert metrics.accuracy == pytest.approx(7 / 10)
    assert metrics.groups == pytest.approx(dict(zip(NAMES, (0.8, 0.0, 0.5, 1.0), strict=True)))
    assert metrics.counts == dict(zip(NAMES, (5, 1, 2, 2), strict=True))
    assert metrics.worst_group_accuracy == 0.0
    assert metrics.weighted_accuracy == pytest.approx(0.7 * 0.8 + 0.05 * 0.5 + 0.15)
    assert metrics.balanced_accuracy == pytest.approx((4 / 6 + 3 / 4) / 2)
    assert metrics.worst_class_accuracy == pytest.approx(4 / 6)
    assert metrics.ece == pytest.approx(0.3)  # certain, and right in 7 of 10


def test_the_values_are_plain_numbers():
    metrics = Metrics(**example())
    for value in [*metrics.scalars().values(), *metrics.groups.values()]:
        assert type(value) is float
    assert all(type(count) is int for count in metrics.counts.values())


def test_absent_groups_are_left_out_and_shares_renormalised():
    keep = torch.tensor([0, 1, 2, 3, 4, 6, 7])  # groups 0 and 2
    metrics = example(
        probabilities_NC=certain(0, 0, 0, 0, 1, 1, 0),
        labels_N=torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])[keep],
        groups_N=torch.tensor([0, 0, 0, 0, 0, 1, 2, 2, 3, 3])[keep],
    )
    assert metrics["groups"] == pytest.approx({NAMES[0]: 0.8, NAMES[2]: 0.5})
    assert metrics["counts"] == {NAMES[0]: 5, NAMES[2]: 2}
    assert metrics["worst_group_accuracy"] == pytest.approx(0.5)
    assert metrics["weighted_accuracy"] == pytest.approx((0.7 * 0.8 + 0.05 * 0.5) / 0.75)


def test_absent_classes_are_left_out():
    metrics = example(
        probabilities_NC=certain(0, 1, 1, classes=5),
        labels_N=torch.tensor([0, 0, 1]),
        groups_N=torch.tensor([0, 1, 2]),
    )
    assert metrics["balanced_accuracy"] == pytest.approx(0.75)
    assert metrics["worst_class_accuracy"] == pytest.approx(0.5)


def test_balanced_accuracy_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.randint(6, (200,), generator=generator)
    probabilities_NC = torch.randn(200, 6, generator=generator).softmax(1)
    groups_N = torch.randint(4, (200,), generator=generator)
    metrics = example(probabilities_NC=probabilities_NC, labels_N=labels_N, groups_N=groups_N)
    expected = balanced_accuracy_score(labels_N, probabilities_NC.argmax(1))
    assert metrics["balanced_accuracy"] == pytest.approx(expected)


def test_calibration_error_by_hand():
    # The bins (8/15, 9/15], (13/15, 14/15] and (14/15, 1] hold two, two and one sample.
    confidence_N = torch.tensor([0.55, 0.58, 0.90, 0.93, 1.0])
    probabilities_NC = torch.stack([confidence_N, 1 - confidence_N], dim=1)
    metrics = example(
        probabilities_NC=probabilities_NC,
        labels_N=torch.tensor([0, 1, 0, 0, 1]),
        groups_N=torch.zeros(5, dtype=torch.long),
    )
    gaps = abs(1 - 1.13), abs(2 - 1.83), abs(0 - 1.0)
    assert metrics["ece"] == pytest.approx(sum(gaps) / 5, abs=1e-6)


def test_the_edge_of_a_bin_belongs_to_the_lower_one():
    probabilities_NC = torch.tensor([[0.6, 0.4], [0.61, 0.39]], dtype=torch.float64)
    metrics = example(
        probabilities_NC=probabilities_NC,
        labels_N=torch.tensor([0, 1]),
        groups_N=torch.zeros(2).long(),
    )  # .6 = 9/15 is below the bin of .61, so the gaps .4 and -.61 do not cancel
    assert metrics["ece"] == pytest.approx((0.4 + 0.61) / 2)


def test_given_predictions_count():
    metrics = example(predictions_N=torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1]))
    assert metrics["accuracy"] == 1.0
    assert metrics["worst_group_accuracy"] == 1.0
    assert metrics["ece"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities_NC": torch.zeros(0, 2)}, "not empty"),
        ({"probabilities_NC": torch.full((10, 2), float("nan"))}, "NaN"),
        ({"probabilities_NC": torch.randn(10, 2) * 5}, "logits"),
        ({"labels_N": torch.zeros(9).long()}, "labels"),
        ({"labels_N": torch.full((10,), 2)}, "labels"),
        ({"groups_N": torch.full((10,), 4)}, "groups"),
        ({"groups_N": torch.zeros(10)}, "groups"),
        ({"predictions_N": torch.full((10,), 2)}, "predictions"),
        ({"train_shares_G": [0.5, 0.5]}, "train_shares"),
        ({"train_shares_G": [0.5, 0.7, -0.2, 0.0]}, "train_shares"),
        ({"train_shares_G": [0, 0, 0, 0]}, "share of the training"),
    ],
)
def test_wrong_input_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        example(**changes)


def test_the_majority_wins_against_the_confident():
    logits_MNC = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[-50.0, 50.0]]])
    probabilities_NC, predictions_N = majority_vote(logits_MNC)
    assert predictions_N.tolist() == [0]
    torch.testing.assert_close(probabilities_NC, logits_MNC.softmax(-1).mean(0))
    assert probabilities_NC[0, 1] > 0.5


def test_ties_go_to_the_more_probable_of_the_tied():
    # One vote each for classes 0 and 1; class 2 has the largest mean probability but no vote.
    p_MNC = torch.tensor([[[0.50, 0.02, 0.48]], [[0.02, 0.52, 0.46]]])
    _, predictions_N = majority_vote(p_MNC.log())
    assert predictions_N.tolist() == [1]
    _, swapped_N = majority_vote(p_MNC.flip(0).log())
    assert swapped_N.tolist() == [1]


def test_one_member_votes_alone():
    logits_MNC = torch.randn(1, 20, 5, generator=torch.Generator().manual_seed(0))
    probabilities_NC, predictions_N = majority_vote(logits_MNC)
    torch.testing.assert_close(probabilities_NC, logits_MNC[0].softmax(-1))
    assert torch.equal(predictions_N, logits_MNC[0].argmax(-1))


def test_members_are_looked_at_one_at_a_time() -> None:
    logits_MNC = torch.randn(9, 20, 5, generator=torch.Generator().manual_seed(0))
    alive: list[weakref.ref[torch.Tensor]] = []

    def members():
        for logits_NC in logits_MNC:
            one = logits_NC.clone()
            alive.append(weakref.ref(one))
            yield one
            del one
            assert sum(member() is not None for member in alive) <= 1

    probabilities_NC, predictions_N = majority_vote(members())
    torch.testing.assert_close(probabilities_NC, logits_MNC.softmax(-1).mean(0))
    votes_NC = torch.nn.functional.one_hot(logits_MNC.argmax(-1), 5).sum(0)
    chosen_N = votes_NC.gather(1, predictions_N[:, None])[:, 0]
    assert torch.equal(chosen_N, votes_NC.amax(1))


@pytest.mark.parametrize(
    "logits", [torch.zeros(3, 4), torch.zeros(0, 3, 2), torch.full((1, 2, 2), float("nan"))]
)
def test_only_members_logits_are_taken(logits):
    with pytest.raises(ValueError, match="logits"):
        majority_vote(logits)


def test_overlapping_groups_are_reported_besides() -> None:
    """Sample 1 is in both groups, sample 3 in none, and the last group has nobody."""
    probabilities_NC = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    labels_N = torch.tensor([0, 1, 1, 0])
    member_NK = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    given = (probabilities_NC, labels_N, torch.zeros(4, dtype=torch.long), ["all"], [1.0], None)
    found = group_metrics(*given, member_NK, ["a", "b", "nobody"])
    assert found["overlapping"] == {"a": pytest.approx(2 / 3), "b": 0.0}
    assert found["worst_overlapping_group_accuracy"] == 0.0
    assert found["groups"] == {"all": 0.5}
    assert found["coverage"]["overlapping groups"] == (2, 3)
    assert "overlapping" not in group_metrics(*given)
    assert "overlapping" not in group_metrics(*given, torch.zeros(4, 1).bool(), ["nobody"])
    for wrong in (member_NK[:3], member_NK.long()):
        with pytest.raises(ValueError, match="overlapping_NK"):
            group_metrics(*given, wrong, ["a", "b", "nobody"])


@pytest.mark.parametrize(
    ("labels", "groups", "coverage"),
    [
        ((0, 1), (0, 3), {"groups": (2, 4), "classes": (2, 2)}),  # groups missing, no class
        ((1, 1), (2, 3), {"groups": (2, 4), "classes": (1, 2)}),  # a class and all its groups
        ((0, 0), (0, 0), {"groups": (1, 4), "classes": (1, 2)}),
    ],
)
def test_a_metric_says_how_many_groups_and_classes_it_is_over(labels, groups, coverage):
    found = example(
        probabilities_NC=certain(*labels),
        labels_N=torch.tensor(labels),
        groups_N=torch.tensor(groups),
    )
    assert found["coverage"] == coverage
    assert found["worst_group_accuracy"] == 1.0
    assert example()["coverage"] == {"groups": (4, 4), "classes": (2, 2)}
