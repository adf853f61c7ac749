"""Every strategy by the same contract, and `combine` as their weighted sum."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agrekd_ray.core import weighting
from agrekd_ray.core.gradient import Evidence
from agrekd_ray.core.kd import kd_gradient, kd_loss
from agrekd_ray.core.weighting import (
    STRATEGIES,
    SampleWeighting,
    combine,
    combine_members,
    find_strategy,
    needs_global_batch,
    sample_weights,
    summarize,
    weigh,
)

EXAMPLES = settings(deadline=None, max_examples=40)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads only get in each other's way on tensors of a hundred numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(members=3, samples=4, classes=3, seed=0, scale=3.0, kind="free", temperature=4.0):
    """Student, teachers, biased model and labels of one batch, and their gradients."""
    generator = torch.Generator().manual_seed(seed)
    student_BC = scale * torch.randn(samples, classes, generator=generator)
    teachers_MBC = scale * torch.randn(members, samples, classes, generator=generator)
    biased_BC = scale * torch.randn(samples, classes, generator=generator)
    labels_B = torch.randint(classes, (samples,), generator=generator)
    if kind == "confident":
        teachers_MBC = torch.where(teachers_MBC == teachers_MBC.amax(-1, keepdim=True), 50.0, -50.0)
        student_BC = torch.where(student_BC > 0, 50.0, -50.0)
    if kind == "equal":
        teachers_MBC = teachers_MBC[:1].expand(members, -1, -1)
    if kind == "biased":
        teachers_MBC = biased_BC.expand(members, -1, -1)
    if kind == "arrived":
        student_BC = teachers_MBC[0].clone()
    return SimpleNamespace(
        student_BC=student_BC,
        teachers_MBC=teachers_MBC,
        biased_logits_BC=biased_BC,
        labels_B=labels_B,
        temperature=temperature,
        gradients_MBC=kd_gradient(student_BC, teachers_MBC, temperature),
        biased_BC=kd_gradient(student_BC, biased_BC, temperature),
    )


BATCHES = st.builds(
    batch,
    members=st.integers(1, 7),
    samples=st.integers(1, 5),
    classes=st.sampled_from((2, 3, 10)),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from((0.01, 1.0, 10.0, 50.0)),
    kind=st.sampled_from(("free", "confident", "equal", "biased", "arrived")),
    temperature=st.sampled_from((0.5, 1.0, 4.0, 14.0)),
)
OPTIONS = {"agre_kd": ({}, {"fallback": "skip"}, {"normalize": False}), "ae_kd": ({}, {"box": 1.0})}
VARIANTS = [(name, options) for name in STRATEGIES for options in OPTIONS.get(name, ({},))]
orderless = pytest.mark.parametrize(
    ("name", "options"), [variant for variant in VARIANTS if variant[0] != "random"]
)
every_strategy = pytest.mark.parametrize(("name", "options"), VARIANTS)


def supplied(name, gradients_MBC):
    """What a strategy must be told besides: here no teacher is more competent than another."""
    if name not in STRATEGIES or not STRATEGIES[name].needs_competence:
        return {}
    M, C = len(gradients_MBC), gradients_MBC.shape[-1]
    return {"competence": torch.linspace(0.2, 1, C).expand(M, C)}


def weights_of(name, b, **options):
    options = supplied(name, b.gradients_MBC) | options
    return weigh(
        name, b.gradients_MBC, b.biased_BC, b.labels_B, b.temperature, b.student_BC, **options
    )


def guided(name, b, **options):
    return combine(
        name,
        b.gradients_MBC,
        b.biased_BC,
        student_logits=b.student_BC,
        temperature=b.temperature,
        labels=b.labels_B,
        **(supplied(name, b.gradients_MBC) | options),
    )


# --- the contract of every strategy ---------------------------------------------------------


@every_strategy
@EXAMPLES
@given(b=BATCHES)
def test_weights_are_shares(name, options, b):
    weights_MB = weights_of(name, b, **options)
    assert weights_MB.dtype == torch.float32
    assert weights_MB.shape == b.gradients_MBC.shape[:2]
    assert torch.isfinite(weights_MB).all()
    assert (weights_MB >= 0).all()
    total_B = weights_MB.sum(0)
    assert ((total_B - 1).abs() < 1e-5).logical_or(total_B == 0).all()
    if options.get("fallback") != "skip":
        assert (total_B > 0).all()


@orderless
@EXAMPLES
@given(b=BATCHES)
def test_the_order_of_teachers_does_not_matter(name, options, b):
    order_M = torch.randperm(len(b.gradients_MBC), generator=torch.Generator().manual_seed(1))
    weights_MB = weights_of(name, b, **options)
    b.gradients_MBC = b.gradients_MBC[order_M]
    permuted_MB = weights_of(name, b, **options)
    torch.testing.assert_close(permuted_MB, weights_MB[order_M], rtol=0, atol=1e-5)


@every_strategy
@EXAMPLES
@given(b=BATCHES)
def test_combine_is_the_weighted_sum(name, options, b):
    found = guided(name, b, **options)
    torch.testing.assert_close(found.weights_MB, weights_of(name, b, **options), rtol=0, atol=0)
    expected_BC = torch.einsum("mb,mbc->bc", found.weights_MB, b.gradients_MBC)
    torch.testing.assert_close(found.gradient_BC, expected_BC, rtol=1e-5, atol=1e-5)
    exact_MB = kd_loss(b.student_BC, b.teachers_MBC, b.temperature)
    expected_B = (found.weights_MB * exact_MB).sum(0)
    reach = float(b.student_BC.abs().max()) / b.temperature  # of log-probabilities
    noise = (2e-5 + 1e-6 * reach) * b.temperature**2
    torch.testing.assert_close(found.loss_B, expected_B, rtol=1e-5, atol=noise)
    assert (found.loss_B >= 0).all()
    assert found.fallback_B.dtype == torch.bool
    assert found.fallback_B.shape == found.loss_B.shape


@pytest.mark.parametrize("summarized_before", [(), (1,), (0, 1, 2)])
@pytest.mark.parametrize("weighting", [None, SampleWeighting()], ids=["plain", "weighted"])
@every_strategy
def test_steps_are_summarized_together_as_each_alone(name, options, weighting, summarized_before):
    batches = [batch(samples=samples, seed=samples) for samples in (4, 1, 7)]
    alone = [guided(name, b, sample_weighting=weighting, **options) for b in batches]
    steps = []
    for number, b in enumerate(batches):
        members_mBC = torch.cat([b.gradients_MBC, b.biased_BC[None]])
        evidence = Evidence(members_mBC, 3, b.temperature, b.student_BC, 3, b.labels_B)
        step = combine_members(
            name, evidence, weighting, **supplied(name, b.gradients_MBC), **options
        )
        assert step.loss_B is step.pull_MB is None
        torch.testing.assert_close(step.gradient_BC, alone[number].gradient_BC, rtol=0, atol=0)
        steps.append(summarize([step]) if number in summarized_before else step)
    whole = summarize(steps)
    for part in ("gradient_BC", "loss_B", "weights_MB", "fallback_B", "pull_MB"):
        expected = torch.cat([getattr(step, part) for step in alone], -2 if "BC" in part else -1)
        torch.testing.assert_close(getattr(whole, part), expected, rtol=1e-6, atol=1e-6)
    assert whole.evidence is whole.scale_B is whole.lost_M is None


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("member", range(4))
@pytest.mark.parametrize(
    ("name", "options"), [variant for variant in VARIANTS if variant[0] != "ae_kd"]
)
def test_a_gradient_that_is_not_finite_makes_the_loss_nan(
    name, options, member, broken, monkeypatch
):
    """Where nobody looks at it on each step, as on a GPU; whatever weight its teacher has."""
    monkeypatch.setattr(weighting, "is_looked_at", lambda values: False)
    b, steps = batch(), []
    for number in range(2):
        members_mBC = torch.cat([b.gradients_MBC, b.biased_BC[None]])
        if number:
            members_mBC[member, 2, 1] = broken
        evidence = Evidence(members_mBC, 3, b.temperature, b.student_BC, 3, b.labels_B)
        steps.append(combine_members(name, evidence, **supplied(name, b.gradients_MBC), **options))
    assert summarize(steps).loss_B.isnan().tolist() == [False] * 6 + [True, False]


@every_strategy
def test_one_teacher_has_all_the_weight(name, options):
    if name != "agre_kd":
        assert weights_of(name, batch(members=1), **options).tolist() == [[1.0] * 4]
    weights_MB = weights_of(name, batch(members=1), **options)
    assert set(weights_MB.flatten().tolist()) <= {0.0, 1.0}


@orderless
def test_equal_teachers_have_equal_weights(name, options):
    weights_MB = weights_of(name, batch(members=5, kind="equal"), **options)
    torch.testing.assert_close(weights_MB, weights_MB[:1].expand(5, -1), rtol=0, atol=1e-6)


@every_strategy
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_are_taken(name, options, dtype):
    b = batch()
    exact_MB = weights_of(name, b, **options)
    b.gradients_MBC, b.biased_BC = b.gradients_MBC.to(dtype), b.biased_BC.to(dtype)
    weights_MB = weights_of(name, b, **options)
    assert weights_MB.dtype == torch.float32
    torch.testing.assert_close(weights_MB, exact_MB, rtol=0, atol=2e-2)
    assert guided(name, b, **options).gradient_BC.dtype == torch.promote_types(dtype, torch.float32)


@every_strategy
def test_nothing_is_changed_or_tracked(name, options):
    b = batch()
    b.student_BC.requires_grad_()
    b.gradients_MBC.requires_grad_()
    before_MBC = b.gradients_MBC.detach().clone()
    found = guided(name, b, sample_weighting=SampleWeighting(), **options)
    assert not found.gradient_BC.requires_grad
    assert not found.weights_MB.requires_grad
    torch.testing.assert_close(b.gradients_MBC.detach(), before_MBC, rtol=0, atol=0)


@every_strategy
def test_per_sample_means_that_samples_do_not_meet(name, options):
    b = batch(members=4, samples=6, seed=3)
    weights_MB = weights_of(name, b, **options)
    half = slice(0, 3)
    first = SimpleNamespace(**vars(b))
    first.gradients_MBC, first.biased_BC = b.gradients_MBC[:, half], b.biased_BC[half]
    first.student_BC, first.labels_B = b.student_BC[half], b.labels_B[half]
    alone_MB = weights_of(name, first, **options)
    if STRATEGIES[name].per == "batch":
        torch.testing.assert_close(weights_MB, weights_MB[:, :1].expand(4, 6), rtol=0, atol=0)
    if STRATEGIES[name].global_batch:
        assert not torch.allclose(alone_MB, weights_MB[:, half], atol=1e-3)
    else:
        torch.testing.assert_close(alone_MB, weights_MB[:, half], rtol=0, atol=0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_registry_tells_the_truth(name):
    strategy = find_strategy(name)
    assert strategy.name == name
    assert 20 < len(strategy.summary) <= 100
    assert set(strategy.supplied) <= set(strategy.options)
    b = batch()
    given_ = {"temperature": 4.0, "student_logits": b.student_BC, "labels": b.labels_B}
    if strategy.needs_competence:
        assert "competence" in strategy.supplied
        with pytest.raises(ValueError, match=f"{name} needs competence"):
            weigh(name, b.gradients_MBC, b.biased_BC, **given_)
        given_["competence"] = torch.ones(3)
    if strategy.needs_biased:
        with pytest.raises(ValueError, match=f"{name} needs biased_gradient"):
            weigh(name, b.gradients_MBC, **given_)
    else:
        weigh(name, b.gradients_MBC, **given_)
    if strategy.needs_labels:
        with pytest.raises(ValueError, match=f"{name} needs labels"):
            weigh(name, b.gradients_MBC, b.biased_BC, student_logits=b.student_BC)
    else:
        options = {"competence": torch.ones(3)} if strategy.needs_competence else {}
        weigh(name, b.gradients_MBC, b.biased_BC, **options)
    if strategy.needs_cross_entropy:
        assert "cross_entropy" in strategy.supplied
    changed = weigh(name, -b.gradients_MBC.flip(0), -b.biased_BC.flip(0), **given_)
    if not strategy.needs_gradients:
        assert torch.equal(changed, weigh(name, b.gradients_MBC, b.biased_BC, **given_))


def test_what_the_names_are():
    papers = {"aver", "random", "ae_kd", "agre_kd", "ca_mkd", "govern"}
    assert set(STRATEGIES) == {*papers, "agre_kd_guarded"}
    assert [name for name in STRATEGIES if needs_global_batch(name)] == ["ae_kd"]
    assert needs_global_batch("aver", SampleWeighting())
    assert STRATEGIES["agre_kd"].options == {"normalize": True, "fallback": "uniform"}


# --- sample weighting ------------------------------------------------------------------------


@EXAMPLES
@given(b=BATCHES)
def test_sample_weights_are_those_of_the_answers(b):
    temperature = b.temperature
    ensemble_BC = (b.teachers_MBC.double() / temperature).softmax(-1).mean(0)
    biased_BC = (b.biased_logits_BC.double() / temperature).softmax(-1)
    distance_B = (ensemble_BC - biased_BC).abs().sum(-1) / 2
    for floor, exponent in ((0.02, 0.5), (0.1, 1.0)):
        expected_B = (distance_B + floor) ** exponent
        expected_B = expected_B / expected_B.mean()
        found_B = sample_weights(b.gradients_MBC, b.biased_BC, temperature, floor, exponent)
        torch.testing.assert_close(found_B.double(), expected_B, rtol=1e-4, atol=1e-5)
        assert float(found_B.mean()) == pytest.approx(1, abs=1e-5)


@every_strategy
def test_combine_scales_samples_but_not_teachers(name, options):
    b = batch()
    plain = guided(name, b, **options)
    scaled = guided(name, b, sample_weighting=SampleWeighting(0.1, 1.0), **options)
    scale_B = sample_weights(b.gradients_MBC, b.biased_BC, b.temperature, 0.1, 1.0)
    assert scale_B.max() > 1.05
    torch.testing.assert_close(scaled.gradient_BC, plain.gradient_BC * scale_B[:, None])
    torch.testing.assert_close(scaled.loss_B, plain.loss_B * scale_B)
    torch.testing.assert_close(scaled.weights_MB, plain.weights_MB, rtol=0, atol=0)


def test_sample_weighting_needs_the_biased_model():
    b = batch()
    with pytest.raises(ValueError, match="sample weighting needs biased_gradient"):
        combine(
            "aver",
            b.gradients_MBC,
            student_logits=b.student_BC,
            temperature=4.0,
            sample_weighting=SampleWeighting(),
        )


@pytest.mark.parametrize(
    "values", [{"floor": 0.0}, {"floor": -1.0}, {"floor": float("nan")}, {"exponent": -0.5}]
)
def test_sample_weighting_checks_its_values(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        SampleWeighting(**values)


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("agrekd", {}, r"unknown strategy: agrekd; did you mean agre_kd\? \(known: .*aver"),
        ("zzz", {}, r"unknown strategy: zzz \(known"),
        ("agre_kd", {"normalise": True}, r"option of agre_kd: normalise; did you mean normalize\?"),
        ("aver", {"box": 0.5}, r"option of aver: box \(known: none\)"),
        ("agre_kd", {"fallback": "none"}, "fallback must be uniform or skip"),
        ("ae_kd", {"box": 0.0}, "box"),
        ("ae_kd", {"box": 1.5}, "box"),
        ("ae_kd", {"box": float("nan")}, "box"),
        ("ca_mkd", {"cross_entropy": torch.zeros(3, 3)}, "cross_entropy"),
        ("ca_mkd", {"cross_entropy": torch.full((3, 4), float("inf"))}, "cross_entropy"),
        ("agre_kd_guarded", {"competence": torch.ones(3, 4)}, r"must be \[3, 3\] or \[3\]"),
        ("agre_kd_guarded", {"competence": torch.tensor([1, -0.1, 1])}, "must not be negative"),
        ("agre_kd_guarded", {"competence": [1, float("nan"), 1]}, "must not be negative or NaN"),
    ],
)
def test_wrong_names_and_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        weights_of(name, batch(), **options)


@every_strategy
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradients_MBC": torch.zeros(4, 3)}, "gradients"),
        ({"gradients_MBC": torch.zeros(0, 4, 3)}, "gradients"),
        ({"gradients_MBC": torch.zeros(3, 4, 2)}, "biased_gradient"),
        ({"biased_BC": torch.zeros(3)}, "biased_gradient"),
        ({"biased_BC": torch.zeros(1, 3)}, "biased_gradient"),
        ({"student_BC": torch.zeros(4, 2)}, "student_logits"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_wrong_shapes_are_refused(name, options, change, message):
    b = SimpleNamespace(**{**vars(batch()), **change})
    with pytest.raises(ValueError, match=message):
        weights_of(name, b, **options)
    with pytest.raises(ValueError, match=message):
        guided(name, b, **options)


def test_ca_mkd_checks_labels_and_logits():
    b = batch()
    with pytest.raises(ValueError, match="ca_mkd needs student_logits"):
        weigh("ca_mkd", b.gradients_MBC, labels=b.labels_B)
    with pytest.raises(ValueError, match="labels"):
        weigh("ca_mkd", b.gradients_MBC, labels=b.labels_B + 3, student_logits=b.student_BC)


@every_strategy
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_named(name, options, value):
    b = batch()
    b.gradients_MBC[1, 2, 0] = value
    with pytest.raises(FloatingPointError, match="gradient of teacher 1 holds"):
        guided(name, b, **options)
    b = batch()
    b.biased_BC[0, 0] = value
    with pytest.raises(FloatingPointError, match="gradient of the biased model holds"):
        weights_of(name, b, **options)
