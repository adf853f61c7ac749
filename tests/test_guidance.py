"""Teachers in this process: what they say, what they keep, and what the student makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from agrekd_ray.core.weighting import STRATEGIES, SampleWeighting
from agrekd_ray.data import TRAIN
from agrekd_ray.distillation import (
    DistillationSpec,
    Distilled,
    GradientRequest,
    LocalTeachers,
    TeacherHost,
)
from agrekd_ray.distillation.spec import combine_gradients
from agrekd_ray.errors import CheckpointError, RunError
from agrekd_ray.models import load
from agrekd_ray.training import Batch, BatchPlan, Loader, Request

from .shared import pool_of, records, told


@pytest.fixture
def ensemble(make_job: Any) -> Any:
    """Data, checkpoints and the draw of the tiny job, its teachers made."""
    job = make_job(**{"ensemble.debiased": 2})
    return pool_of(job)


def spec(drawn: Any, strategy: str = "agre_kd", **changes: Any) -> DistillationSpec:
    return told(DistillationSpec(strategy, drawn.teachers, drawn.biased, 4.0, **changes))


def request(drawn: Any, ids: np.ndarray, seed: int = 0, epoch: int = 0, **changes: Any) -> Any:
    logits = np.random.default_rng(seed).normal(size=(len(ids), 10)).astype(np.float32)
    return GradientRequest(spec(drawn, **changes), 0, epoch, ids, logits)


@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.0])
def test_the_gradient_is_that_of_the_papers_loss(ensemble: Any, alpha: float) -> None:
    """Autograd through alpha * sum_m w_m tau² KL(m ‖ s) + (1 - alpha) * cross-entropy."""
    data, checkpoints, drawn = ensemble
    host = TeacherHost(checkpoints, data)
    guidance = Distilled(spec(drawn, alpha=alpha), LocalTeachers(host), data)
    batch = BatchPlan(data.splits[TRAIN], 24, 1, 0).batch(0)
    logits = torch.randn(24, 10, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (loaded,) = Loader(data)([Request(batch.ids, 0)])
    taught = guidance.gradient(batch, loaded, logits.detach())
    images, labels = data.inputs(batch.ids, 0), data.labels(batch.ids)
    loss = (1 - alpha) * F.cross_entropy(logits, labels)
    for name, weight in zip(drawn.teachers, taught.weights_MB, strict=True):
        with torch.no_grad():
            target = F.log_softmax(load(checkpoints[name])[0](images) / 4, 1)
        mine = F.log_softmax(logits / 4, 1)
        divergence = F.kl_div(mine, target, reduction="none", log_target=True).sum(1)
        loss = loss + alpha * (weight * 16 * divergence).mean()
    (expected,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(taught.gradient_BC / 24, expected, rtol=1e-4, atol=1e-6)
    assert taught.loss_B.mean().item() == pytest.approx(loss.item(), rel=1e-3)


def test_heads_of_one_backbone_cost_one_forward(ensemble: Any) -> None:
    data, checkpoints, drawn = ensemble
    host = TeacherHost(checkpoints, data)
    backbones = {name.split("-")[1] for name in checkpoints}
    assert host.backbones == len(backbones)
    host.gradients(drawn.teachers, request(drawn, data.splits[TRAIN][:16]))
    assert host.forwards == len({name.split("-")[1] for name in drawn.teachers})


def test_a_view_is_computed_once_and_another_one_again(make_job: Any) -> None:
    views = {"flip": True, "shift": 1}
    job = make_job(**{"data.views": views})
    data, checkpoints, drawn = pool_of(job)
    host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    ids = data.splits[TRAIN][:32]
    first = host.gradients(drawn.teachers, request(drawn, ids))
    once = host.forwards
    again = host.gradients(drawn.teachers, request(drawn, ids[::-1].copy(), seed=1))
    assert host.forwards == once
    other = host.gradients(drawn.teachers, request(drawn, ids, epoch=1))
    assert host.forwards == 2 * once
    assert not np.allclose(first.gradients_mBC, other.gradients_mBC)
    assert not np.allclose(first.gradients_mBC, again.gradients_mBC)


@pytest.mark.parametrize("recorded", [False, True])
def test_repeated_questions_have_the_same_answer(make_job: Any, recorded: bool) -> None:
    job = make_job(**{"ensemble.debiased": 2})
    data, checkpoints, drawn = pool_of(job)
    ids = data.splits[TRAIN][:32]
    asked = request(drawn, ids)
    host, other = (
        TeacherHost(
            checkpoints, data, outputs=records(job, data, checkpoints) if recorded else None
        )
        for _ in range(2)
    )
    first = LocalTeachers(host).ask(asked)
    LocalTeachers(host).ask(request(drawn, data.splits[TRAIN][32:64], seed=5))
    for again in (LocalTeachers(host).ask(asked), LocalTeachers(other).ask(asked)):
        np.testing.assert_array_equal(first.gradient_BC, again.gradient_BC)
        np.testing.assert_array_equal(first.weights_MB, again.weights_MB)


def test_coming_batches_are_computed_before_they_are_asked_for(ensemble: Any) -> None:
    data, checkpoints, drawn = ensemble
    plan = BatchPlan(data.splits[TRAIN], 32, 1, seed=0, look_ahead=2)
    host = TeacherHost(checkpoints, data, capacity=4)
    batch = plan.batch(0)
    logits = torch.zeros(32, 10)
    host.gradients(drawn.teachers, GradientRequest.of(spec(drawn), batch, batch.ids, logits))
    for kept in list(host._kept.values()):
        kept.result()
    done = host.forwards
    for later in batch.ahead:
        host.gradients(drawn.teachers, GradientRequest.of(spec(drawn), later, later.ids, logits))
    assert done == 3 * len({name.split("-")[1] for name in drawn.teachers})
    assert host.forwards == done
    assert len(host._kept) <= 4


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_biased_model_is_asked_only_where_it_is_used(ensemble: Any, strategy: str) -> None:
    _, _, drawn = ensemble
    outside = next(n for n in ("erm-0", "erm-1", "erm-2") if n not in drawn.teachers)
    plain = told(DistillationSpec(strategy, drawn.teachers, outside, 4.0))
    weighted = DistillationSpec(
        strategy, drawn.teachers, outside, 4.0, sample_weighting=SampleWeighting()
    )
    assert (outside in plain.members) == (strategy in ("agre_kd", "agre_kd_guarded"))
    assert outside in weighted.members
    assert weighted.whole_batch


def test_a_teacher_with_broken_logits_is_named(ensemble: Any) -> None:
    data, checkpoints, drawn = ensemble
    host = TeacherHost(checkpoints, data)
    name = drawn.teachers[-1]
    with torch.no_grad():
        host._heads[name][1].bias[0] = float("nan")
    with pytest.raises(RunError, match=f"teacher {name} answers with NaN"):
        host.gradients(drawn.teachers, request(drawn, data.splits[TRAIN][:16]))


def test_a_teacher_of_other_classes_is_refused(ensemble: Any) -> None:
    data, checkpoints, _ = ensemble

    class Renamed:
        classes = ("cat", "dog")

        def __getattr__(self, name: str) -> Any:
            return getattr(data, name)

    with pytest.raises(CheckpointError, match=r"10 classes.*have 2: cat, dog"):
        TeacherHost(checkpoints, Renamed())


def test_questions_carry_ids_and_logits_and_no_image(ensemble: Any) -> None:
    import pickle

    data, _, drawn = ensemble
    plan = BatchPlan(data.splits[TRAIN], 64, 1, 0, look_ahead=2)
    batch: Batch = plan.batch(0)
    size = len(pickle.dumps(GradientRequest.of(spec(drawn), batch, batch.ids, torch.zeros(64, 10))))
    assert size < 64 * (10 * 4 + 3 * 8) + 1500


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_without_a_lost_teacher_the_others_teach_as_if_it_had_never_been(
    ensemble: Any, strategy: str
) -> None:
    data, checkpoints, drawn = ensemble
    gone, *rest = drawn.teachers
    host = TeacherHost(checkpoints, data)
    ids = data.splits[TRAIN][:24]
    asked = request(drawn, ids, strategy=strategy)
    fewer = replace(asked, spec=told(replace(asked.spec, teachers=tuple(rest))))
    others = [name for name in asked.spec.members if name != gone]
    answer = combine_gradients(asked, [host.gradients(others, asked)], {gone})
    expected = LocalTeachers(host).ask(fewer)
    np.testing.assert_array_equal(answer.gradient_BC, expected.gradient_BC)
    np.testing.assert_array_equal(answer.weights_MB[1:], expected.weights_MB)
    np.testing.assert_array_equal(answer.pull_MB[1:], expected.pull_MB)
    assert not answer.weights_MB[0].any()
    assert not answer.pull_MB[0].any()
    assert answer.lost_M.tolist() == [True, *([False] * len(rest))]
    assert not expected.lost_M.any()


def test_who_can_be_done_without() -> None:
    given = DistillationSpec("agre_kd", ("dfr-0", "erm-1"), "erm-2", 4.0)
    assert given.can_do_without({"dfr-0"})
    assert not given.can_do_without({"dfr-0", "erm-1"})
    assert not given.can_do_without({"erm-2"})
    assert replace(given, strategy="aver").can_do_without({"erm-2"})
    assert not replace(given, biased="erm-1").can_do_without({"erm-1"})


def test_only_the_teacher_that_random_draws_is_asked(ensemble: Any) -> None:
    """Its answer is what it is where all are asked, and the next ones are computed ahead."""
    data, checkpoints, drawn = ensemble
    ids = data.splits[TRAIN]
    given = spec(drawn, "random", seed=5)
    ahead = tuple((0, ids[first : first + 8]) for first in (8, 16, 24))
    asked = replace(request(drawn, ids[:8]), spec=given, step=3, ahead=ahead)
    host = TeacherHost(checkpoints, data)
    whole = TeacherHost(checkpoints, data)
    for step, (_, of_step) in enumerate(((0, ids[:8]), *ahead), 3):
        now = replace(asked, step=step, ids=of_step, ahead=ahead[step - 3 :])
        found = LocalTeachers(host).ask(now)
        everybody = combine_gradients(now, [whole.gradients(given.members, replace(now, ahead=()))])
        for name in ("gradient_BC", "loss_B", "weights_MB", "pull_MB"):
            torch.testing.assert_close(getattr(found, name), getattr(everybody, name))
    assert len({given.asked(step) for step in range(3, 7)}) > 1
    assert host.forwards == 4
    assert whole.forwards == 4 * whole.backbones


def test_whom_a_step_asks(ensemble: Any) -> None:
    _, _, drawn = ensemble
    for name in STRATEGIES:
        given = spec(drawn, name)
        assert given.asked(1) == given.members or name == "random"
    scaled = spec(drawn, "random", sample_weighting=SampleWeighting())
    assert scaled.asked(1) == scaled.members
