"""The workers of a student share its evaluation, and say what one says. No Ray here."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from agrekd_ray import collectives
from agrekd_ray.data import DFR, SELECT, TEST, TRAIN
from agrekd_ray.data.in_memory import InMemory
from agrekd_ray.errors import DataError, RunError
from agrekd_ray.models import Model
from agrekd_ray.results import Epoch
from agrekd_ray.settings import Training
from agrekd_ray.student import Student, StudentSpec
from agrekd_ray.student.faults import worker_faults
from agrekd_ray.student.parallel import data_parallel
from agrekd_ray.student.student import BatchNorm
from agrekd_ray.teachers import DfrSettings
from agrekd_ray.training import evaluation, score

SPLITS = {TRAIN: 24, SELECT: 37, DFR: 20, TEST: 2}
"""Samples; those of `test` are fewer than workers."""
SHAPE = (3, 8, 8)
FIVE = 5 * math.prod(SHAPE)
"""Numbers of an evaluation batch of five samples."""


def data() -> InMemory:
    numbers = np.random.default_rng(0)
    return InMemory(
        {
            name: (numbers.random((count, *SHAPE), np.float32), np.arange(count) % 2)
            for name, count in SPLITS.items()
        }
    )


def student(rank: int, world: int, batch_norm: BatchNorm, **further: Any) -> Student:
    """A worker's part of one, with a debiased copy in the end."""
    samples = data()
    given = StudentSpec(
        "one_hot",
        3,
        Model(name="torchvision/resnet18", small_stem=True),
        Training(epochs=2, batch_size=12, learning_rate=0.05),
        dfr=DfrSettings(retrainings=1),
        batch_norm=batch_norm,
    )
    return Student(
        given,
        samples,
        None,
        rank=rank,
        world=world,
        wrap=(lambda model: data_parallel(model, samples, batch_norm)) if world > 1 else None,
        total=partial(collectives.summed, device="cpu"),
        **further,
    )


@contextmanager
def one_of(world: int, rank: int, folder: Path, name: str = "store") -> Iterator[None]:
    """Where a worker of several is, without Ray Train."""
    torch.set_num_threads(1)
    ray.train.torch.prepare_model = lambda model, **_: DistributedDataParallel(model)
    dist.init_process_group("gloo", f"file://{folder}/{name}", rank=rank, world_size=world)
    collectives.begin(f"place {rank}")
    try:
        yield
    finally:
        dist.destroy_process_group()


def evaluates(rank: int, folder: Path, world: int, batch_norm: BatchNorm) -> None:
    """One worker; the first compares with a student of one process."""
    records: list[Epoch] = []
    with one_of(world, rank, folder):
        mine = student(rank, world, batch_norm)
        evaluation._VALUES = FIVE
        results = mine.train(folder / "training", folder / "students", records.append)
        tested = mine.test()
        whole = {split: mine.probabilities(split) for split in (SELECT, TEST)}
        evaluation._VALUES = 1 << 24  # one batch of all, which workers divide
        divided_NC = mine.probabilities(SELECT)
    if rank > 0:
        assert results == records == mine.history == []
    else:
        compare(mine, results, folder)
    assert tested == score(data(), TEST, whole[TEST])
    torch.save((whole, divided_NC), folder / f"{rank}.pt")


def compare(mine: Student, results: Any, folder: Path) -> None:
    """What the first worker's student has come to, with what one worker says of it."""
    alone = student(0, 1, mine.spec.batch_norm)
    alone.model.load_state_dict(mine.model.state_dict())
    evaluation._VALUES = FIVE
    torch.save({split: alone.probabilities(split) for split in (SELECT, TEST)}, folder / "alone.pt")
    assert mine.history[-1].val == score(data(), SELECT, alone.probabilities(SELECT))
    for ours, theirs in zip(results, alone.finish(folder / "alone"), strict=True):
        assert ours.method == theirs.method
        assert ours.splits[SELECT] == theirs.splits[SELECT]
        assert ours.splits[TEST].ece == pytest.approx(theirs.splits[TEST].ece, rel=1e-4)


@pytest.mark.parametrize(("world", "batch_norm"), [(2, "per_worker"), (3, "synchronised")])
def test_workers_share_an_evaluation_and_say_what_one_says(
    tmp_path: Path, world: int, batch_norm: BatchNorm
) -> None:
    """After each epoch and at the end; to the last bit where there are batches for all."""
    torch.multiprocessing.spawn(evaluates, (tmp_path, world, batch_norm), world)
    alone: dict[str, Tensor] = torch.load(tmp_path / "alone.pt")
    for rank in range(world):
        whole, divided_NC = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(whole[SELECT], alone[SELECT])
        torch.testing.assert_close(divided_NC, alone[SELECT])
        torch.testing.assert_close(whole[TEST], alone[TEST])


def train(mine: Student) -> None:
    """As in a worker of Ray Train's."""
    with worker_faults("training the students"):
        while not mine.done:
            mine.epoch()


def befallen(rank: int, folder: Path) -> None:
    """A worker of two; the second cannot read its part of an evaluation, and ends."""
    collectives.ROLL_CALL_SECONDS = 0.1

    def unreadable(model: nn.Module, given: Any) -> None:
        if not model.training:
            raise DataError("picture 7 cannot be read")

    with one_of(2, rank, folder):
        mine = student(rank, 2, "synchronised")
        if rank == 1:
            mine.model.register_forward_pre_hook(unreadable)
            with pytest.raises(RunError, match=r"^worker 2 of 2: picture 7 cannot be read$"):
                train(mine)
            os._exit(0)  # what it holds of the exchange ends with it
        with pytest.raises(RuntimeError, match="gloo"):
            train(mine)


def test_a_fault_in_an_evaluation_ends_all(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(befallen, (tmp_path,), 2)


class Corner(nn.Module):
    """Answers with two numbers of an image."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, 0, 0, :2]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_one_worker_answers_to_each_sample(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """Nobody answers to more than a batch more than others."""
    monkeypatch.setattr(evaluation, "_VALUES", FIVE)
    samples, model = data(), Corner()
    for count in (0, 1, 2, 4, 5, 9, 10, 11, 15, 16, 37):
        ids = samples.splits[SELECT][:count]
        parts = torch.stack(
            [evaluation.predict(model, samples, ids, rank=n, world=world) for n in range(world)]
        )
        answered_WN = (parts != 0).any(2)
        assert answered_WN.sum(0).tolist() == [1] * count
        by_worker = answered_WN.sum(1)
        assert by_worker.max() - by_worker.min() <= 5
        assert torch.equal(parts.sum(0), model(samples.inputs(ids, None)))
