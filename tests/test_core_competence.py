"""Competence of teachers by hand, and the guard that it puts on AGRE-KD's weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import agrekd_ray as ak
from agrekd_ray.core.competence import PRIOR, competence
from agrekd_ray.core.kd import kd_gradient
from agrekd_ray.core.weighting import combine, weigh

TEMPERATURE = 4.0


def saying(answers: list[int], classes: int = 3) -> Tensor:
    """Logits [N, C] of a model that answers so."""
    return 10.0 * one_hot(torch.tensor(answers), classes).float()


def test_competence_by_hand() -> None:
    labels_N = torch.tensor([0, 0, 1, 1, 2, 2] * 4)
    biased_NC = saying([0, 0, 0, 0, 2, 2] * 4)
    rights, wrongs = saying([0, 0, 1, 1, 2, 2] * 4), saying([1, 2, 2, 0, 1, 1] * 4)
    found_MC = competence(torch.stack([rights, biased_NC, wrongs]), biased_NC, labels_N)
    # The first differs eight times, each time with 1, and is right where the biased model is not.
    overall = 8 / (8 + PRIOR)
    expected = [PRIOR * overall / PRIOR, (8 + PRIOR * overall) / (8 + PRIOR), overall]
    torch.testing.assert_close(found_MC[0], torch.tensor(expected, dtype=torch.float64))
    assert found_MC[1:].tolist() == [[0] * 3, [0] * 3]  # never differs; is wrong where it does


def test_two_classes_swapped_cost_those_alone() -> None:
    labels_N = torch.arange(10).repeat(30)
    swapped_N = torch.tensor([1, 0, *range(2, 10)])[labels_N]
    biased_NC = saying(torch.roll(labels_N, 5).tolist(), 10)  # wrong on nearly all
    found_C = competence(saying(swapped_N.tolist(), 10)[None], biased_NC, labels_N)[0]
    assert found_C[:2].max() < 0.15 < 0.9 < found_C[2:].min()


def test_a_teacher_that_is_ahead_by_chance_is_not_trusted() -> None:
    """Two classes, where one of the two is right: 55 of 100 may be chance, 70 of 100 is not."""
    labels_N = torch.zeros(100, dtype=torch.int64)
    for right, trusted in ((55, False), (70, True)):
        answers = [0] * right + [1] * (100 - right)
        found_MC = competence(
            saying(answers, 2)[None], saying([1 - a for a in answers], 2), labels_N
        )
        assert bool(found_MC.any()) == trusted


@pytest.mark.parametrize(
    ("teachers", "biased", "labels"),
    [
        (torch.ones(2, 4), torch.ones(4, 3), torch.ones(4)),
        (torch.ones(2, 0, 3), torch.ones(0, 3), torch.ones(0)),
        (torch.ones(2, 4, 3), torch.ones(4, 2), torch.ones(4)),
        (torch.ones(2, 4, 3), torch.ones(4, 3), torch.ones(5)),
    ],
)
def test_competence_refuses_what_does_not_fit(
    teachers: Tensor, biased: Tensor, labels: Tensor
) -> None:
    with pytest.raises(ValueError, match="must be"):
        competence(teachers, biased, labels)


def batch(classes: int = 4, temperature: float = TEMPERATURE) -> SimpleNamespace:
    logits = 3 * torch.randn(5, 6, classes, generator=torch.Generator().manual_seed(0))
    student_BC, biased_BC, teachers_MBC = logits[0], logits[1], logits[2:]
    return SimpleNamespace(
        student_BC=student_BC,
        teachers_MBC=teachers_MBC,
        gradients_MBC=kd_gradient(student_BC, teachers_MBC, temperature),
        biased_BC=kd_gradient(student_BC, biased_BC, temperature),
        biased_logits_BC=biased_BC,
    )


def guarded(b: SimpleNamespace, trusted: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    return weigh(
        "agre_kd_guarded",
        b.gradients_MBC,
        b.biased_BC,
        temperature=temperature,
        student_logits=b.student_BC,
        competence=trusted,
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0, 14.0])
def test_the_guard_by_autograd_free_arithmetic(temperature: float) -> None:
    """(1 − cos) times the mean competence by the teacher's own probabilities at τ = 1."""
    b = batch(temperature=temperature)
    trusted_MC = torch.rand(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    answers_MBC = b.teachers_MBC.double().softmax(-1)
    cosine_MB = torch.cosine_similarity(b.gradients_MBC.double(), b.biased_BC.double()[None], -1)
    expected_MB = (1 - cosine_MB) * (answers_MBC * trusted_MC[:, None]).sum(-1)
    found_MB = guarded(b, trusted_MC, temperature)
    torch.testing.assert_close(
        found_MB.double(), expected_MB / expected_MB.sum(0), rtol=1e-3, atol=1e-4
    )


def test_equal_competence_is_agre_kd() -> None:
    b = batch()
    plain_MB = weigh("agre_kd", b.gradients_MBC, b.biased_BC, temperature=TEMPERATURE)
    torch.testing.assert_close(guarded(b, torch.full((3, 4), 0.3)), plain_MB)
    torch.testing.assert_close(guarded(b, torch.full((3,), 0.3)), plain_MB)


def test_an_incompetent_teacher_has_no_weight_however_it_contradicts() -> None:
    b = batch()
    weights_MB = guarded(b, torch.tensor([0.5, 0.0, 0.25]))
    assert weights_MB[1].tolist() == [0.0] * 6
    torch.testing.assert_close(weights_MB.sum(0), torch.ones(6))


def test_where_all_weights_are_0_the_competent_are_averaged_or_all() -> None:
    """Two classes, all teachers on the biased model's side of the student."""
    student_BC, biased_BC = torch.zeros(2, 2), torch.tensor([[2.0, -2.0]] * 2)
    given = {"student_logits": student_BC, "temperature": 1.0}
    gradients_MBC = kd_gradient(student_BC, torch.stack([biased_BC, 2 * biased_BC, biased_BC]), 1.0)
    of_biased_BC = kd_gradient(student_BC, biased_BC, 1.0)
    for trusted, expected in (([0.5, 0.0, 0.1], [0.5, 0, 0.5]), ([0.0] * 3, [1 / 3] * 3)):
        found = combine("agre_kd_guarded", gradients_MBC, of_biased_BC, competence=trusted, **given)
        assert found.fallback_B.tolist() == [True, True]
        torch.testing.assert_close(found.weights_MB, torch.tensor([expected] * 2).T)


def test_without_the_students_logits_no_class_is_known() -> None:
    b = batch()
    with pytest.raises(ValueError, match="competence by class needs student_logits"):
        weigh("agre_kd_guarded", b.gradients_MBC, b.biased_BC, competence=torch.ones(3, 4))


def test_a_loop_of_ones_own_says_what_is_missing_and_is_held_to_it() -> None:
    b = batch()
    with pytest.raises(ValueError, match=r"needs competence: .* labels of validation"):
        ak.Distillation("agre_kd_guarded")(b.student_BC, b.teachers_MBC, b.biased_logits_BC)
    labels_N = b.teachers_MBC[0].argmax(1)  # the first is always right
    trusted_MC = ak.competence(b.teachers_MBC, b.biased_logits_BC, labels_N)
    distil = ak.Distillation("agre_kd_guarded", competence=trusted_MC)
    weights_MB = distil(b.student_BC, b.teachers_MBC, b.biased_logits_BC).weights
    torch.testing.assert_close(weights_MB, guarded(b, trusted_MC))
    assert weights_MB[0].mean() > 0.8
