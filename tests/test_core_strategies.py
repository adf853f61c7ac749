"""Each strategy against its own formula; values worked out elsewhere are in test_core_golden."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from agrekd_ray.core import parts as core_parts
from agrekd_ray.core.kd import kd_gradient, softened
from agrekd_ray.core.weighting import combine, weigh


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads only get in each other's way on tensors of a hundred numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(members, samples, classes, seed=0, scale=3.0, temperature=4.0):
    """Student, teachers, biased model and labels of one batch, and their gradients."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(members + 2, samples, classes, generator=generator)
    gradients = kd_gradient(logits[0], logits[1:], temperature)
    return SimpleNamespace(
        student_BC=logits[0],
        biased_logits_BC=logits[1],
        teachers_MBC=logits[2:],
        labels_B=torch.randint(classes, (samples,), generator=generator),
        temperature=temperature,
        biased_BC=gradients[0],
        gradients_MBC=gradients[1:],
    )


def weights_of(name, b, **options):
    return weigh(
        name, b.gradients_MBC, b.biased_BC, b.labels_B, b.temperature, b.student_BC, **options
    )


def guided(name, b):
    given_ = {"student_logits": b.student_BC, "temperature": b.temperature}
    return combine(name, b.gradients_MBC, b.biased_BC, **given_)


def gradients_of_signs(*signs):
    """[M, 1, 2] gradients for two classes, one teacher each, of different lengths."""
    lengths = [0.1 * (m + 1) for m in range(len(signs))]
    return torch.tensor([[[s * x, -s * x]] for s, x in zip(signs, lengths, strict=True)])


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from((0.01, 1.0, 20.0)))
def test_agre_kd_with_two_classes_weighs_all_chosen_alike(seed, scale):
    b = batch(members=5, samples=4, classes=2, seed=seed, scale=scale)
    found = guided("agre_kd", b)
    assume(b.gradients_MBC.abs().amin() > 1e-4)
    assume(b.biased_BC.abs().amin() > 1e-4)
    against_MB = b.gradients_MBC[..., 0].sign() != b.biased_BC[..., 0].sign()
    chosen_B = against_MB.sum(0)
    expected_MB = torch.where(chosen_B == 0, 1 / 5, against_MB / chosen_B.clamp_min(1))
    assert torch.equal(found.weights_MB, expected_MB)
    assert torch.equal(found.fallback_B, chosen_B == 0)


def test_agre_kd_where_all_stand_with_the_biased_model():
    gradients_MBC = torch.cat([gradients_of_signs(1, 1), gradients_of_signs(1, -1)], dim=1)
    biased_BC = torch.tensor([[0.3, -0.3], [0.3, -0.3]])
    given_ = {"student_logits": torch.zeros(2, 2), "temperature": 1.0}
    uniform = combine("agre_kd", gradients_MBC, biased_BC, **given_)
    assert uniform.weights_MB.T.tolist() == [[0.5, 0.5], [0, 1]]
    skipped = combine("agre_kd", gradients_MBC, biased_BC, fallback="skip", **given_)
    assert skipped.weights_MB.T.tolist() == [[0, 0], [0, 1]]
    assert skipped.gradient_BC[0].tolist() == [0, 0]
    assert skipped.loss_B[0] == 0
    assert uniform.fallback_B.tolist() == skipped.fallback_B.tolist() == [True, False]


@pytest.mark.parametrize("temperature", [1.0, 14.0])
def test_agre_kd_takes_no_direction_from_rounding(temperature):
    noise_MBC = 1e-7 * temperature * torch.tensor([[[1.0, -1.0]], [[-1.0, 1.0]]])
    real_MBC = torch.tensor([[[-0.2, 0.2]], [[0.2, -0.2]]])
    biased_BC = torch.tensor([[0.3, -0.3]])
    mixed_MBC = torch.cat([noise_MBC, real_MBC])
    weights_MB = weigh("agre_kd", mixed_MBC, biased_BC, temperature=temperature)
    assert weights_MB.flatten().tolist() == [0, 0, 1, 0]
    given_ = {"student_logits": torch.zeros(1, 2), "temperature": temperature}
    unknown = combine("agre_kd", mixed_MBC, noise_MBC[0], **given_)
    assert unknown.weights_MB.flatten().tolist() == [0.25] * 4
    assert unknown.fallback_B.all()


def test_agre_kd_counts_a_milliradian_as_none():
    biased_BC = torch.tensor([[1.0, -1.0, 0.0]]) / 2**0.5
    across_C = torch.tensor([1.0, 1.0, -2.0]) / 6**0.5
    for angle, fallback in ((1e-3, True), (2e-3, False)):
        turned_MBC = (biased_BC + angle * across_C).expand(2, 1, 3)
        found = combine(
            "agre_kd", turned_MBC, biased_BC, student_logits=torch.zeros(1, 3), temperature=1.0
        )
        assert found.fallback_B.tolist() == [fallback]


def test_agre_kd_without_normalisation_is_the_dot_product():
    gradients_MBC = torch.tensor([[[1.0, -1.0]], [[-0.5, 0.5]], [[0.1, -0.1]], [[0.0, 0.0]]])
    biased_BC = torch.tensor([[1.0, -1.0]])  # dot products 2, -1, .2 and 0: W 0, 2, .8 and 1
    weights_MB = weigh("agre_kd", gradients_MBC, biased_BC, normalize=False)
    expected_M = torch.tensor([0, 2, 0.8, 1]) / 3.8
    torch.testing.assert_close(weights_MB.flatten(), expected_M)


@pytest.mark.parametrize("members", [2, 5])
def test_ca_mkd_is_its_formula(members):
    b = batch(members=members, samples=6, classes=4)
    exact_MB = torch.stack(
        [functional.cross_entropy(t, b.labels_B, reduction="none") for t in b.teachers_MBC]
    )
    expected_MB = (1 - exact_MB.softmax(0)) / (members - 1)
    given_MB = weigh("ca_mkd", b.gradients_MBC, cross_entropy=exact_MB)
    torch.testing.assert_close(given_MB, expected_MB)
    torch.testing.assert_close(weights_of("ca_mkd", b), expected_MB, rtol=0, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_ca_mkd_tells_wrong_from_very_wrong(temperature):
    gaps_MB = torch.tensor([[9.0], [10.0], [11.0]]) * temperature  # p down to 2e-5
    teachers_MBC = torch.stack([gaps_MB, torch.zeros(3, 1)], dim=-1)
    student_BC, labels_B = torch.zeros(1, 2), torch.tensor([1])
    gradients_MBC = kd_gradient(student_BC, teachers_MBC, temperature)
    found_MB = weigh("ca_mkd", gradients_MBC, None, labels_B, temperature, student_BC)
    exact_MB = functional.softplus(gaps_MB)
    expected_MB = weigh("ca_mkd", gradients_MBC, cross_entropy=exact_MB)
    torch.testing.assert_close(found_MB, expected_MB, rtol=0, atol=5e-3)


def test_ca_mkd_loses_only_what_the_gradients_lost():
    b = batch(members=2, samples=1, classes=2, temperature=1.0)
    b.student_BC, b.labels_B = torch.zeros(1, 2), torch.tensor([1])
    b.teachers_MBC = torch.tensor([[[25.0, 0.0]], [[40.0, 0.0]]])  # both wrong, one more so
    b.gradients_MBC = kd_gradient(b.student_BC, b.teachers_MBC, 1.0)
    assert weights_of("ca_mkd", b).flatten().tolist() == [0.5, 0.5]
    exact_MB = torch.tensor([[25.0], [40.0]])
    weights_M = weigh("ca_mkd", b.gradients_MBC, cross_entropy=exact_MB).flatten()
    torch.testing.assert_close(weights_M, torch.tensor([1.0, 0.0]), rtol=0, atol=1e-6)


def test_ae_kd_of_rounding_is_uniform():
    noise_MBC = 1e-8 * torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    assert weigh("ae_kd", noise_MBC).unique().tolist() == [0.25]


def test_govern_with_more_classes_drops_who_points_away():
    gradients_MBC = torch.tensor([[[2.0, -1, -1]], [[0.2, -0.2, 0.0]], [[-9.0, 8, 1]]])
    assert weigh("govern", gradients_MBC).flatten().tolist() == [0.5, 0.5, 0]


def test_random_draws_one_teacher_by_seed_and_step():
    gradients_MBC = batch(members=5, samples=3, classes=3).gradients_MBC

    def drawn(seed, step):
        weights_MB = weigh("random", gradients_MBC, seed=seed, step=step)
        assert weights_MB.sum(0).tolist() == [1, 1, 1]
        assert len(weights_MB.unique(dim=1).T) == 1
        return int(weights_MB[:, 0].argmax())

    torch.manual_seed(1)
    state = torch.get_rng_state()
    draws = [[drawn(seed, step) for step in range(200)] for seed in range(4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert draws == [[drawn(seed, step) for step in range(200)] for seed in range(4)]
    counts = torch.bincount(torch.tensor(draws).flatten(), minlength=5)
    assert counts.min() > 110  # 160 expected
    assert counts.max() < 210
    for a in range(4):
        for b in range(a):
            same = sum(x == y for x, y in zip(draws[a], draws[b], strict=True))
            shifted = sum(x == y for x, y in zip(draws[b][a - b :], draws[a], strict=False))
            assert 15 < same < 70  # 40 expected
            assert 15 < shifted < 70


@pytest.mark.parametrize("at_once", [1, 3 * 8 * 4, 5 * 8 * 4])
@pytest.mark.parametrize("normalize", [True, False])
def test_some_teachers_at_a_time_are_weighed_as_all_together(monkeypatch, at_once, normalize):
    """Seven teachers, 8 samples, 4 classes; of one sample two gradients have no direction."""
    members = torch.randn(8, 8, 4, generator=torch.Generator().manual_seed(0))
    members -= members.mean(-1, keepdim=True)
    members[[2, 7], 3] = 0
    whole = weigh("agre_kd", members[:7], members[7], normalize=normalize)
    monkeypatch.setattr(core_parts, "AT_ONCE", dict.fromkeys((False, True), at_once))
    parts = weigh("agre_kd", members[:7], members[7], normalize=normalize)
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)


@pytest.mark.parametrize("at_once", [1, 3 * 6 * 5, 5 * 6 * 5])
@pytest.mark.parametrize("strategy", ["agre_kd", "aver", "ae_kd", "govern"])
def test_some_teachers_at_a_time_give_the_gradient_of_all_together(monkeypatch, at_once, strategy):
    """What they answer, the gradient, losses and pulls; seven teachers, 6 samples, 5 classes."""
    given = batch(7, 6, 5)

    def worked_out():
        found = combine(
            strategy,
            given.gradients_MBC,
            given.biased_BC,
            student_logits=given.student_BC,
            temperature=4.0,
        )
        answers = softened(given.teachers_MBC.transpose(0, 1).contiguous().transpose(0, 1), 4.0)
        return (found.gradient_BC, found.loss_B, found.weights_MB, found.pull_MB, *answers)

    whole = worked_out()
    monkeypatch.setattr(core_parts, "AT_ONCE", dict.fromkeys((False, True), at_once))
    torch.testing.assert_close(worked_out(), whole)
