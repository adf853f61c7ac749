"""Who moves the student, by hand and for every strategy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agrekd_ray.core.diagnostics import CASES, agreement_cases, pulls, reliability
from agrekd_ray.core.kd import kd_gradient
from agrekd_ray.core.weighting import STRATEGIES, SampleWeighting, combine

EXAMPLES = settings(deadline=None, max_examples=25)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads only get in each other's way on tensors of a hundred numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def guided(strategy, classes=4, seed=0, scale=3.0, **options):
    logits = scale * torch.randn(7, 6, classes, generator=torch.Generator().manual_seed(seed))
    student_BC, gradients = logits[0], kd_gradient(logits[0], logits[1:], 4.0)
    labels_B = torch.arange(6) % classes
    if STRATEGIES[strategy].needs_competence:
        options["competence"] = torch.linspace(0.2, 1, 5 * classes).reshape(5, classes)
    found = combine(
        strategy,
        gradients[1:],
        gradients[0],
        student_logits=student_BC,
        temperature=4.0,
        labels=labels_B,
        **options,
    )
    return found, gradients[1:]


def test_every_case_of_agreement():
    ensemble_N = torch.tensor([0, 1, 2, 0, 0])
    biased_N = torch.tensor([0, 1, 0, 1, 1])
    labels_N = torch.tensor([0, 0, 2, 2, 0])
    # In turn: both right, both wrong alike, right against it, wrong against it, right against it.
    member_NG = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).T.bool()
    found_G4 = agreement_cases(ensemble_N, biased_N, labels_N, member_NG)
    assert found_G4.tolist() == [[1, 1, 2, 1], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert CASES == ("agrees_right", "agrees_wrong", "contradicts_right", "contradicts_wrong")


def test_agreement_is_of_the_same_samples():
    with pytest.raises(ValueError, match="same samples"):
        agreement_cases(torch.zeros(2), torch.zeros(1), torch.zeros(2), torch.ones(2, 1).bool())


def test_reliability_by_hand():
    confidence_N = torch.tensor([0.0, 1 / 15, 0.55, 0.58, 1.0], dtype=torch.float64)
    correct_N = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    count_K, confidence_K, accuracy_K = reliability(confidence_N, correct_N)
    assert count_K.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 1]
    filled = count_K > 0
    assert accuracy_K[filled].tolist() == [0.5, 0.5, 1.0]
    assert confidence_K[filled].tolist() == pytest.approx([1 / 30, 0.565, 1.0])
    assert torch.isnan(accuracy_K[~filled]).all()


def test_hand_worked_pulls():
    gradients_MBC = torch.tensor([[[4.0, -4.0]], [[-1.0, 1.0]], [[0.0, 0.0]]])
    weights_MB = torch.tensor([[0.5], [0.25], [0.25]])
    combined_BC = torch.tensor([[1.75, -1.75]])  # 0.5 · 4 − 0.25 · 1
    found_MB = pulls(weights_MB, gradients_MBC, combined_BC, 1e-6)
    # Of the length 1.75 √2, the first brings 2 √2, the second takes back √2 / 4.
    torch.testing.assert_close(found_MB.flatten(), 2**0.5 * torch.tensor([2.0, -0.25, 0.0]))


def test_across_the_gradient_nobody_pulls():
    gradients_MBC = torch.tensor([[[1.0, -1.0, 0.0]], [[0.5, 0.5, -1.0]]])
    weights_MB = torch.tensor([[1.0], [0.0]])
    found_MB = pulls(weights_MB, gradients_MBC, gradients_MBC[0], 1e-6)
    torch.testing.assert_close(found_MB.flatten(), torch.tensor([2**0.5, 0.0]))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@EXAMPLES
@given(
    classes=st.sampled_from((2, 3, 10)),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from((0.01, 1.0, 20.0)),
    weighted=st.booleans(),
)
def test_pulls_are_the_parts_of_the_gradients_length(strategy, classes, seed, scale, weighted):
    sample_weighting = SampleWeighting() if weighted else None
    found, gradients_MBC = guided(strategy, classes, seed, scale, sample_weighting=sample_weighting)
    norm_B = found.gradient_BC.norm(dim=-1)
    torch.testing.assert_close(found.pull_MB.sum(0), norm_B, rtol=1e-4, atol=2e-5)
    most_MB = found.weights_MB * gradients_MBC.norm(dim=-1)
    if not weighted:
        assert (found.pull_MB.abs() <= most_MB + 1e-5).all()
        assert (found.pull_MB[found.weights_MB == 0] == 0).all()


def test_who_teaches_alone_has_all_the_influence():
    found, gradients_MBC = guided("random", seed=3)
    chosen = int(found.weights_MB[:, 0].argmax())
    torch.testing.assert_close(found.pull_MB[chosen], gradients_MBC[chosen].norm(dim=-1))
    assert (found.pull_MB != 0).any(1).sum() == 1


def test_teachers_that_cancel_out_and_skipped_samples_move_nothing():
    away_MBC = torch.tensor([[[1.0, -1.0]], [[-1.0, 1.0]]])
    given_ = {"student_logits": torch.zeros(1, 2), "temperature": 1.0}
    assert combine("aver", away_MBC, **given_).pull_MB.tolist() == [[0], [0]]
    along_MBC = torch.tensor([[[1.0, -1.0]], [[2.0, -2.0]]])
    skipped = combine("agre_kd", along_MBC, along_MBC[0], fallback="skip", **given_)
    assert skipped.pull_MB.tolist() == [[0], [0]]
