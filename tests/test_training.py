"""The step, its batches, and going on where it stopped."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from agrekd_ray import numerics
from agrekd_ray.core.gradient import DistillationGradient
from agrekd_ray.data import TRAIN, open_dataset
from agrekd_ray.errors import RunError
from agrekd_ray.models import Model, build
from agrekd_ray.settings import Precision, Training
from agrekd_ray.student import Student, StudentSpec
from agrekd_ray.training import Batch, BatchPlan, Labels, Trainer, loop, predict
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
    given = StudentSpec("one_hot", 4, model, training)
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


def test_an_epoch_that_breaks_off_leaves_nothing_behind(
    make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had been loaded ahead of it was for other steps."""
    data = open_dataset(make_job(**{"data.views": {"flip": True}}).data)

    def trainer() -> Trainer:
        torch.manual_seed(0)
        return Trainer(build(Model(name="cnn"), data.shape, 10, 0), data, SMALL, Labels(), seed=0)

    whole, part = trainer(), trainer()
    losses = [whole.epoch().loss for _ in range(3)]
    assert part.epoch().loss == losses[0]
    state = copy.deepcopy(part.state_dict())
    step, made = part.step, itertools.count()

    def failing(batch: Any, loaded: Any) -> Any:
        if next(made) == 2:
            raise OSError("the disk is gone")
        return step(batch, loaded)

    monkeypatch.setattr(part, "step", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        part.epoch()
    part.load_state_dict(state)
    assert [part.epoch().loss for _ in range(2)] == losses[1:]
    torch.testing.assert_close(parameters(part.model), parameters(whole.model), rtol=0, atol=0)


def test_an_epochs_first_batches_are_loaded_in_the_one_before(make_job: Any) -> None:
    data = open_dataset(make_job(**{"data.views": {"flip": True}}).data)
    asked: list[int] = []

    class Watched(Labels):
        def columns(self, epoch: int, ahead: bool) -> Any:
            asked.append(epoch)
            return super().columns(epoch, ahead)

    trainer = Trainer(build(Model(name="cnn"), data.shape, 10, 0), data, SMALL, Watched(), seed=0)
    trainer.epoch()
    assert set(asked) == {0, 1}
    trainer.epoch()
    trainer.epoch()
    assert set(asked) == {0, 1, 2}  # and none beyond the last


def test_a_state_of_another_student_is_not_taken(make_job: Any, tmp_path: Any) -> None:
    data = open_dataset(make_job().data)
    one, other = (
        Student(StudentSpec("one_hot", seed, Model(name="cnn"), SMALL), data, None)
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
    """With a look at the device after the first step, then one in `LOOK_EVERY`."""
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
    assert (asked[-1], looks) == (100, [2, 101])  # and a word of the first worker's each


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
    student = Student(StudentSpec("one_hot", 0, Model(name="cnn"), wild), data, None)
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


def trained(make_job: Any, wrap: Any = None, **settings: Any) -> tuple[Trainer, list[float]]:
    data = open_dataset(make_job().data)
    training = Training(epochs=2, batch_size=32, learning_rate=0.05, **settings)
    model = build(Model(name="cnn", args={"width": 2}), data.shape, 10, seed=0)
    trainer = Trainer(model, data, training, Labels(), seed=0, wrap=wrap)
    return trainer, [trainer.epoch().loss for _ in range(2)]


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_student_learns_the_same(make_job: Any) -> None:
    """From the same parameters under the same names, and it is evaluated as it stands."""
    (plain, losses), (compiled, same) = (
        trained(make_job, compile=how) for how in ("off", "default")
    )
    assert compiled.network is not compiled.model
    assert losses == pytest.approx(same, abs=1e-4)
    assert plain.state_dict()["model"].keys() == compiled.state_dict()["model"].keys()
    for one, other in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    data = plain.samples
    ids = data.splits[TRAIN][:16]
    near = [predict(trainer.model, data, ids) for trainer in (plain, compiled)]
    torch.testing.assert_close(*near, atol=1e-3, rtol=1e-3)


def test_a_failing_compiler_is_one_line(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise TorchDynamoException("no C++ compiler\nhere")

    monkeypatch.setattr(numerics.torch, "compile", lambda network, mode: Failing())
    with pytest.raises(RunError, match=r"compile: default: .*no C\+\+ compiler here.*set off"):
        trained(make_job, wrap=lambda model: model, compile="default")


class Replayed(nn.Module):
    """As a CUDA graph: what it puts out lies where its next output will be."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.put_out: list[torch.Tensor] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for earlier in self.put_out:
            earlier.detach().fill_(math.nan)
        logits: torch.Tensor = self.model(inputs)
        self.put_out = [logits]
        return logits


def test_nothing_that_a_step_keeps_is_overwritten_by_the_next(make_job: Any) -> None:
    _, losses = trained(make_job)
    assert trained(make_job, wrap=Replayed)[1] == losses


def test_kernels_that_repeat_themselves_change_nothing_on_a_cpu(
    make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, losses = trained(make_job)
    strict, same = trained(make_job, deterministic=True)

    def as_on_a_gpu(device: Any, *, deterministic: bool) -> Any:
        return numerics.training_kernels("cuda", deterministic=deterministic)

    monkeypatch.setattr(loop, "training_kernels", as_on_a_gpu)
    switched, again = trained(make_job, deterministic=True)
    assert losses == same == again
    for trainer in (strict, switched):
        assert torch.equal(parameters(trainer.model), parameters(plain.model))
