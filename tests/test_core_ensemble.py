"""What an ensemble's answers to validation say of it: figures by hand, and each warning's case."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from agrekd_ray.core.ensemble import Examined, examine
from agrekd_ray.core.kd import kd_gradient
from agrekd_ray.core.weighting import weigh


def named(*classes: Sequence[int], count: int = 3) -> Tensor:
    """Logits of models that name these classes, [M, N, C]."""
    return 5.0 * functional.one_hot(torch.tensor(classes), count).float()


def test_figures_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    groups = torch.tensor([0, 1, 0, 1, 0, 1])
    logits_MNC = named([0, 0, 1, 1, 2, 0], [0, 1, 1, 0, 2, 1], [0, 1, 1, 1, 2, 2])
    biased_NC = named([0, 1, 1, 0, 2, 0])[0]
    found = examine(logits_MNC, biased_NC, labels, groups)
    assert found.accuracy_m.tolist() == pytest.approx([5 / 6, 3 / 6, 5 / 6, 3 / 6])
    assert found.by_class_mC.tolist() == [[1, 1, 0.5], [0.5] * 3, [0.5, 1, 1], [0.5] * 3]
    assert found.by_group_mG is not None
    third = pytest.approx(2 / 3)
    assert found.by_group_mG.tolist() == [[1, third], [1, 0], [1, third], [1, 0]]
    assert found.balanced_m.tolist() == pytest.approx([5 / 6, 1 / 2, 5 / 6, 1 / 2])
    assert found.with_biased_M.tolist() == pytest.approx([4 / 6, 5 / 6, 4 / 6])
    # Of teachers 0 and 1 three answers are the same, of 0 and 2 four, of 1 and 2 four.
    assert found.with_others_M.tolist() == pytest.approx([3.5 / 6, 3.5 / 6, 4 / 6])
    # 0: answers 0 in 3 of 6, 1 in 2, 2 in 1, as the biased model does: by chance 14 of 36.
    assert float(found.kappa_M[0]) == pytest.approx((4 / 6 - 14 / 36) / (1 - 14 / 36))
    assert found.most_frequent == pytest.approx(1 / 3)
    assert (found.sided, found.mistakes) == (pytest.approx(3 / 6), 3)
    assert found.sided_wrong == 0
    assert found.contradiction is None  # three samples of a group say nothing


def test_weights_are_those_of_a_student_that_has_learnt_nothing() -> None:
    torch.manual_seed(0)
    logits_MNC, biased_NC = torch.randn(4, 30, 5), torch.randn(30, 5)
    found = examine(logits_MNC, biased_NC, torch.randint(5, (30,)), temperature=2.0)
    zeros = torch.zeros(30, 5)
    gradients = [kd_gradient(zeros, logits, 2.0) for logits in (logits_MNC, biased_NC)]
    weights_MB = weigh("agre_kd", *gradients, temperature=2.0)
    assert found.weights_M.tolist() == pytest.approx(weights_MB.mean(1).tolist())


def test_a_class_without_a_sample_is_left_out() -> None:
    found = examine(named([0, 1, 1, 0]), named([0, 1, 0, 1])[0], torch.tensor([0, 1, 1, 1]))
    assert found.balanced_m.tolist() == pytest.approx([5 / 6, 5 / 6])
    assert math.isnan(float(found.by_class_mC[0, 2]))
    assert math.isnan(float(found.with_others_M[0]))
    assert found.by_group_mG is None


def test_two_classes_are_sided_where_the_formula_is_undefined() -> None:
    torch.manual_seed(1)
    logits_MNC, biased_NC = torch.randn(3, 200, 2), torch.randn(200, 2)
    zeros = torch.zeros(200, 2)
    gradients = [kd_gradient(zeros, logits, 4.0) for logits in (logits_MNC, biased_NC)]
    weights_MB = weigh("agre_kd", *gradients, temperature=4.0, fallback="skip")
    found = examine(logits_MNC, biased_NC, torch.randint(2, (200,)))
    assert found.sided == pytest.approx(float((weights_MB.sum(0) == 0).double().mean()))


@pytest.mark.parametrize("wrong", ["shape", "labels", "nan"])
def test_what_cannot_be_looked_at_is_refused(wrong: str) -> None:
    logits_MNC, labels_N = torch.zeros(2, 4, 3), torch.zeros(4).long()
    biased_NC = torch.zeros(4, 2) if wrong == "shape" else torch.zeros(4, 3)
    if wrong == "labels":
        labels_N = labels_N + 3
    if wrong == "nan":
        logits_MNC[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"biased_NC|labels|NaN"):
        examine(logits_MNC, biased_NC, labels_N)


# --- validation sets like those of real data --------------------------------------------------


class Split:
    """Samples of (label, group), and models that are right with a probability by group.

    Args:
        counts: samples by group; group g has the label `labels[g]`.
        labels: of the groups.
        spurious: class that the bias names, by group.
    """

    def __init__(self, counts: Sequence[int], labels: Sequence[int], spurious: Sequence[int]):
        self.rng = torch.Generator().manual_seed(0)
        self.groups_N = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        self.labels_N = torch.tensor(labels)[self.groups_N]
        self.spurious_N = torch.tensor(spurious)[self.groups_N]
        self.classes = max(*labels, *spurious) + 1

    def model(self, *accuracy: float) -> Tensor:
        """Logits of a model of these accuracies by group; wrong answers are the bias's.

        Where the bias names the label, they are any other class.
        """
        N, C = len(self.labels_N), self.classes
        accuracy_N = torch.tensor(accuracy)[self.groups_N]
        other_N = (self.labels_N + torch.randint(1, C, (N,), generator=self.rng)) % C
        wrong_N = torch.where(self.spurious_N == self.labels_N, other_N, self.spurious_N)
        right_N = torch.rand(N, generator=self.rng) < accuracy_N
        return self._logits(torch.where(right_N, self.labels_N, wrong_N))

    def untrained(self) -> Tensor:
        """Logits of a model whose answers have nothing to do with the samples."""
        N = len(self.labels_N)
        return self._logits(torch.randint(self.classes, (N,), generator=self.rng))

    def constant(self, answer: int) -> Tensor:
        """Logits of a model that always names the same class."""
        return self._logits(torch.full_like(self.labels_N, answer))

    def look(self, teachers: Sequence[Tensor], biased: Tensor, known: bool = True) -> Examined:
        groups_N = self.groups_N if known else None
        return examine(torch.stack([*teachers]), biased, self.labels_N, groups_N)

    def _logits(self, named_N: Tensor) -> Tensor:
        noise_NC = torch.rand(len(named_N), self.classes, generator=self.rng)
        return noise_NC + 4.0 * functional.one_hot(named_N, self.classes).float()


def two_classes(aligned: int = 250) -> Split:
    """Label × background; as many samples of each, or mostly aligned ones."""
    return Split([aligned, 500 - aligned, 500 - aligned, aligned], [0, 0, 1, 1], [0, 1, 0, 1])


def ten_classes(aligned: int = 25, conflicting: int = 25) -> Split:
    labels = [number for number in range(10) for _ in range(10)]
    colors = [number for _ in range(10) for number in range(10)]
    counts = [
        aligned if label == color else max(1, conflicting // 9)
        for label, color in zip(labels, colors, strict=True)
    ]
    split = Split(counts, labels, colors)
    # Groups as the coloured digits have them: bias-aligned or bias-conflicting.
    split.groups_N = (split.labels_N != split.spurious_N).long()
    return split


def mixed(split: Split, debiased: int, dfr: Sequence[float], erm: Sequence[float]) -> list[Tensor]:
    return [split.model(*(dfr if number < debiased else erm)) for number in range(5)]


def quiet(found: Examined) -> bool:
    misleads = found.contradiction is not None and found.contradiction.misleads
    return not (
        bool(found.constant_M.any()) or found.unopposed or misleads or found.same or found.swapped
    )


SOUND = {
    # Accuracy by group of debiased and of biased teachers.
    "two classes at 95 %, as measured": (two_classes(), (0.75, 0.62) * 2, (0.99, 0.01) * 2, 1),
    "the same, all debiased": (two_classes(), (0.75, 0.62) * 2, (0.99, 0.01) * 2, 5),
    "two classes, validation as biased as training": (
        two_classes(475),
        (0.75, 0.62, 0.62, 0.75),
        (0.99, 0.02, 0.02, 0.99),
        2,
    ),
    "coloured digits": (ten_classes(), (0.97, 0.45), (1.0, 0.12), 2),
    "coloured digits at 99.5 %, a tenth of validation aligned": (
        ten_classes(5, 45),
        (0.9, 0.35),
        (0.99, 0.02),
        2,
    ),
    # Groups as of CelebA and CivilComments: teachers' accuracies are the paper's.
    "CelebA": (
        Split([4300, 4100, 1430, 90], [0, 0, 1, 1], [1, 0, 1, 0]),
        (0.911, 0.929, 0.944, 0.90),
        (0.96, 0.995, 0.85, 0.32),
        5,
    ),
    "CivilComments": (
        Split([5200, 3700, 600, 500], [0, 0, 1, 1], [0, 1, 0, 1]),
        (0.90, 0.82, 0.80, 0.84),
        (0.98, 0.90, 0.50, 0.65),
        5,
    ),
}


@pytest.mark.parametrize("known", [True, False], ids=["groups", "no groups"])
@pytest.mark.parametrize("name", SOUND)
def test_sound_ensembles_are_not_warned_of(name: str, known: bool) -> None:
    split, dfr, erm, debiased = SOUND[name]
    found = split.look(mixed(split, debiased, dfr, erm), split.model(*erm), known)
    assert quiet(found), found


@pytest.mark.parametrize("known", [True, False], ids=["groups", "no groups"])
@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("how", ["untrained", "constant", "rotated"])
def test_a_broken_teacher_among_sound_ones_is_found(name: str, known: bool, how: str) -> None:
    split, dfr, erm, debiased = SOUND[name]
    teachers, biased = mixed(split, debiased, dfr, erm), split.model(*erm)
    broken = {
        "untrained": split.untrained,
        "constant": lambda: split.constant(int(split.labels_N.bincount().argmax())),
        "rotated": lambda: split.model(*erm).roll(1, dims=1),
    }[how]()
    found = split.look([*teachers, broken], biased, known)
    assert found.constant_M.tolist() == [False] * 5 + [True]
    assert float(found.weights_M[5]) == float(found.weights_M.max()) or how == "constant"


def test_biased_teachers_that_are_no_better_than_a_constant_answer_are_not_broken() -> None:
    """Where half of validation conflicts with the bias, all that follow it are right on half."""
    split = two_classes()
    erm = (0.99, 0.01) * 2
    found = split.look([split.model(*erm) for _ in range(3)], split.model(*erm))
    assert float(found.accuracy_m.max()) < 0.52
    assert not found.constant_M.any()


@pytest.mark.parametrize("known", [True, False])
def test_teachers_who_all_side_with_the_biased_model(known: bool) -> None:
    split = two_classes()
    erm = (0.99, 0.02) * 2
    teachers = [split.model(*erm) for _ in range(5)]
    found = split.look(teachers, split.model(*erm), known)
    assert found.unopposed
    assert found.sided_wrong > 0.85
    assert found.mistakes == pytest.approx(495, abs=20)
    debiased = split.model(*(0.75, 0.62) * 2)
    assert not split.look([*teachers[1:], debiased], split.model(*erm), known).unopposed


def test_few_mistakes_of_the_biased_model_say_nothing() -> None:
    split = Split([90, 5], [0, 1], [0, 0])
    teachers = [split.model(1.0, 0.0) for _ in range(3)]
    found = split.look(teachers, split.model(1.0, 0.0), known=False)
    assert (found.mistakes, found.sided_wrong) == (5, 1.0)
    assert not found.unopposed
    assert found.contradiction is None


def test_a_biased_model_that_is_right_where_the_vote_differs() -> None:
    split = ten_classes()
    teachers = [split.model(0.5, 0.4) for _ in range(5)]
    found = split.look(teachers, split.model(0.95, 0.9))
    assert found.contradiction is not None
    assert found.contradiction.misleads
    assert found.contradiction.biased_right > found.contradiction.vote_right
    backwards = split.look([split.model(0.95, 0.9) for _ in range(5)], split.model(0.5, 0.4))
    assert backwards.contradiction is not None
    assert not backwards.contradiction.misleads


def test_without_groups_right_and_wrong_answers_of_the_biased_model_count_alike() -> None:
    split = ten_classes()
    teachers = [split.untrained() for _ in range(5)]
    found = split.look(teachers, split.model(1.0, 0.5), known=False)
    assert found.contradiction is not None
    assert found.contradiction.misleads


def test_contradiction_by_hand() -> None:
    """Two groups of 20 and 10 samples: the shares of each are worked out first, then their mean."""
    labels_N, groups_N = torch.zeros(30).long(), torch.tensor([0] * 20 + [1] * 10)
    vote = [1] * 10 + [0] * 10 + [0] * 8 + [1] * 2
    biased = [0] * 15 + [1] * 5 + [1] * 5 + [2] * 5
    found = examine(named(vote), named(biased)[0], labels_N, groups_N).contradiction
    assert found is not None
    # They differ on 15 of 20 (vote right on 5, biased on 10) and on 10 of 10 (8, and 0).
    assert found.share == pytest.approx((15 / 20 + 10 / 10) / 2)
    assert found.vote_right == pytest.approx((5 / 20 + 8 / 10) / (15 / 20 + 10 / 10))
    assert found.biased_right == pytest.approx((10 / 20) / (15 / 20 + 10 / 10))
    assert not found.misleads


def test_teachers_that_are_the_same() -> None:
    split = ten_classes()
    one, other = (split.model(0.97, 0.45) for _ in range(2))
    rounded = one * (1 + 1e-6)
    like = one + 0.01  # the same classes, other logits
    found = split.look([one, other, rounded, like, one, other], split.model(1.0, 0.1))
    assert found.same == ((0, 2, 4), (1, 5))


@pytest.mark.parametrize("accuracy", [(0.97, 0.45), (1.0, 0.15)], ids=["debiased", "biased"])
def test_a_teacher_that_swaps_two_classes(accuracy: tuple[float, float]) -> None:
    split = ten_classes()
    teachers = [split.model(*accuracy) for _ in range(4)]
    teachers[2][:, [3, 8]] = teachers[2][:, [8, 3]]
    found = split.look(teachers, split.model(1.0, 0.1))
    assert found.swapped == ((2, 3, 8),)
    assert not found.constant_M.any()
