"""The step, its batches, and going on where it stopped."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from agrekd_ray.core.gradient import DistillationGradient
from agrekd_ray.data import TRAIN, open_dataset
from agrekd_ray.errors import RunError
from agrekd_ray.models import Model, build
from agrekd_ray.settings import Precision, Training
from agrekd_ray.student import Assignment, Student
from agrekd_ray.training import Batch, BatchPlan, Labels, Trainer
from agrekd_ray.training.optimization import make_optimizer, make_schedule

from .shared import flat_parameters as parameters

PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16")
SMALL = Training(epochs=3, batch_size=32, learning_rate=0.05)


def test_every_epoch_is_a_new_order_without_repeats() -> None:
    ids = np.arange(100, 170)
    plan = BatchPlan(ids, 16, epochs=3, seed=5)
    assert plan.steps_per_epoch == 4
    assert len(plan) == 12
    epochs = [
        np.concatenate([plan.batch(step).every for step in range(4 * e, 4 * e + 4)])
        for e in range(3)
    ]
    assert all(len(set(epoch.tolist())) == 64 and set(epoch) <= set(ids) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_batch_is_a_function_of_seed_and_step_and_names_what_follows() -> None:
    ids = np.arange(64)
    plan = BatchPlan(ids, 16, epochs=2, seed=1, look_ahead=3)
    again = BatchPlan(ids, 16, epochs=2, seed=1)
    batch = plan.batch(2)  # the look-ahead crosses into the next epoch
    assert [later.epoch for later in batch.ahead] == [0, 1, 1]
    for later in batch.ahead:
        np.testing.assert_array_equal(later.every, again.batch(later.step).every)
    assert plan.batch(7).ahead == ()


def test_workers_share_a_batch_without_overlap() -> None:
    parts = [BatchPlan(np.arange(64), 16, 1, 3, rank, 4).batch(1) for rank in range(4)]
    np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), parts[0].every)


@pytest.mark.parametrize(("size", "world"), [(0, 1), (65, 1), (10, 4)])
def test_a_batch_that_does_not_fit_is_refused(size: int, world: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        BatchPlan(np.arange(64), size, 1, 0, world=world)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_the_learning_rate_warms_up_and_falls(schedule: Any, warmup: float) -> None:
    training = Training(
        epochs=4, batch_size=1, learning_rate=0.1, schedule=schedule, warmup_epochs=warmup
    )
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], training)
    plan = make_schedule(optimizer, training, steps_per_epoch=10)
    rates = []
    for _ in range(40):
        rates.append(plan.get_last_lr()[0])
        optimizer.step()
        plan.step()
    peak = int(np.argmax(rates))
    assert peak == (5 if warmup else 0)
    assert rates[peak] == pytest.approx(0.1)
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0.1) if schedule == "constant" else rates[-1] < 0.006


def test_a_step_on_labels_is_the_usual_autograd_step(make_job: Any) -> None:
    data = open_dataset(make_job().data)
    model, twin = (build(Model(name="cnn"), data.shape, 10, seed=3) for _ in range(2))
    trainer = Trainer(model, data, SMALL, Labels(), seed=7)
    optimizer = make_optimizer(twin.parameters(), SMALL)
    schedule = make_schedule(optimizer, SMALL, trainer.plan.steps_per_epoch)
    for batch, loaded in trainer.loaded(map(trainer.plan.batch, range(4))):
        trainer.step(batch, loaded)
        loss = F.cross_entropy(twin(data.inputs(batch.ids, 0)), data.labels(batch.ids))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(parameters(model), parameters(twin), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resuming_ends_in_the_same_parameters(make_job: Any, tmp_path: Any, optimizer: Any) -> None:
    """With dropout, batch norm, clipping, warm-up, and a put-down after every epoch."""
    job = make_job(**{"data.views": {"flip": True, "shift": 1}})
    data = open_dataset(job.data)
    training = Training(
        epochs=3,
        batch_size=40,
        learning_rate=0.01,
        optimizer=optimizer,
        warmup_epochs=0.5,
        clip_norm=1.0,
    )
    model = Model(name="torchvision/mobilenet_v3_small", args={"dropout": 0.5}, small_stem=True)
    given = Assignment("one_hot", 4, model, training)
    whole = Student(given, data, None)
    while not whole.done:
        whole.epoch()
    path = tmp_path / "state.pt"
    while True:
        part = Student(given, data, None)
        if path.exists():
            assert part.load_state(path)
        if part.done:
            break
        torch.rand(5)  # somebody else draws in between
        part.epoch()
        part.save_state(path)
    torch.testing.assert_close(parameters(part.model), parameters(whole.model), rtol=0, atol=0)
    assert [e.val for e in part.history] == [e.val for e in whole.history]


def test_a_state_of_another_student_is_not_taken(make_job: Any, tmp_path: Any) -> None:
    data = open_dataset(make_job().data)
    one, other = (
        Student(Assignment("one_hot", seed, Model(name="cnn"), SMALL), data, None)
        for seed in (0, 1)
    )
    one.save_state(tmp_path / "state.pt")
    before = parameters(other.model)
    assert not other.load_state(tmp_path / "state.pt")
    torch.testing.assert_close(parameters(other.model), before)
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:500])
    with pytest.raises(RunError, match="damaged training state"):
        one.load_state(tmp_path / "state.pt")


class _GroupBlind:
    """A data set that has no groups to show."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        if name == "groups":
            raise AssertionError("training looked at the groups")
        return getattr(self._data, name)


def test_training_never_looks_at_groups(make_job: Any) -> None:
    data = open_dataset(make_job().data)
    trained = []
    for samples in (data, _GroupBlind(data)):
        model = build(Model(name="cnn"), data.shape, 10, seed=0)
        Trainer(model, samples, SMALL, Labels(), seed=0).epoch()
        trained.append(parameters(model))
    torch.testing.assert_close(trained[0], trained[1], rtol=0, atol=0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_loss_is_named_by_its_step_long_before_the_epoch_ends(
    make_job: Any, broken: float
) -> None:
    """With one look at the device in `LOOK_EVERY` steps, and none in between."""
    data = open_dataset(make_job().data)
    asked: list[int] = []

    class Breaking(Labels):
        def gradient(self, batch: Batch, *given: Any) -> DistillationGradient:
            asked.append(batch.step)
            found = super().gradient(batch, *given)
            return replace(found, loss_B=found.loss_B * (broken if batch.step == 72 else 1.0))

    training = Training(epochs=2, batch_size=1, learning_rate=0.001)
    model = build(Model(name="cnn"), data.shape, 10, seed=0)
    looks: list[int] = []

    def total(loss_S: torch.Tensor) -> torch.Tensor:
        looks.append(len(loss_S))
        return loss_S

    trainer = Trainer(model, data, training, Breaking(), seed=0, total=total)
    assert trainer.plan.steps_per_epoch == 160
    with pytest.raises(RunError, match=rf"loss is {broken} in step 73 of 160 of epoch 1: .*Lower"):
        trainer.epoch()
    assert (asked[-1], looks) == (99, [100])


@pytest.mark.parametrize("world", [1, 2])
def test_the_loss_is_the_mean_over_all_steps_and_workers(make_job: Any, world: int) -> None:
    """In float64: float32 would not count the losses of 1 after the first of 2^24."""
    data = open_dataset(make_job().data)

    class Counting(Labels):
        def gradient(self, batch: Batch, *given: Any) -> DistillationGradient:
            found = super().gradient(batch, *given)
            return replace(found, loss_B=torch.full((1,), 1.0 if batch.step else 2.0**24))

    def total(loss_S: torch.Tensor) -> torch.Tensor:
        assert loss_S.dtype == torch.float64
        return world * loss_S

    model = build(Model(name="cnn"), data.shape, 10, seed=0)
    training = Training(epochs=1, batch_size=world, learning_rate=0.001)
    trainer = Trainer(model, data, training, Counting(), seed=0, world=world, total=total)
    steps = trainer.plan.steps_per_epoch
    assert trainer.epoch().loss == (2**24 + steps - 1) / steps


def test_divergence_is_an_error_that_says_what_to_do(make_job: Any) -> None:
    data = open_dataset(make_job().data)
    wild = Training(epochs=1, batch_size=32, learning_rate=1e30)
    model = build(Model(name="cnn"), data.shape, 10, seed=0)
    with pytest.raises(RunError, match=r"in step 2 of 5 of epoch 1: .*diverged.*learning_rate"):
        Trainer(model, data, wild, Labels(), seed=0).epoch()


def test_a_last_step_that_diverges_is_an_error_too(make_job: Any) -> None:
    """No loss tells of it any more, but the student's answers do."""
    data = open_dataset(make_job().data)
    wild = Training(epochs=1, batch_size=160, learning_rate=1e30)
    student = Student(Assignment("one_hot", 0, Model(name="cnn"), wild), data, None)
    with pytest.raises(RunError, match=r"NaN to \d+ of \d+ samples of val.*diverged"):
        student.epoch()


def test_bfloat16_trains_close_to_float32(make_job: Any) -> None:
    data = open_dataset(make_job().data)
    losses = {}
    for precision in PRECISIONS:
        training = Training(epochs=1, batch_size=32, learning_rate=0.05, precision=precision)
        model = build(Model(name="cnn"), data.shape, 10, seed=0)
        losses[precision] = Trainer(model, data, training, Labels(), seed=0).epoch().loss
    assert losses["auto"] == losses["float32"] != losses["bfloat16"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert len(data.splits[TRAIN]) == 160
