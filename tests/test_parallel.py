"""Workers of a student without Ray: their batch norm, and how they wait for each other."""

from __future__ import annotations

import copy
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d
from torch.nn.parallel import DistributedDataParallel

from agrekd_ray import collectives
from agrekd_ray.student.parallel import _synchronise

WORLD, STEPS = 4, 3


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        nn.Linear(64, 5),
        nn.BatchNorm1d(5, momentum=None, affine=False),
    )


def learn(network: nn.Module, of: nn.Module, rank: int, world: int) -> None:
    """Some steps on one worker's part of each batch."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(of.parameters(), lr=0.5)
    of.train()
    for _ in range(STEPS):
        images = torch.randn(8, 2, 6, 6, generator=generator)
        labels = torch.randint(0, 5, (8,), generator=generator)
        mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[mine]), labels[mine]).backward()
        optimizer.step()


def worker(rank: int, folder: Path, synchronised: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    own = model()
    names = list(own.state_dict())
    if synchronised:
        _synchronise(own)
    assert list(own.state_dict()) == names
    learn(DistributedDataParallel(own, broadcast_buffers=False), own, rank, WORLD)
    own.eval()
    torch.save((own.state_dict(), own(torch.ones(2, 2, 6, 6))), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("synchronised", [True, False])
def test_four_workers_normalise_over_the_whole_batch(tmp_path: Path, synchronised: bool) -> None:
    """They learn what one learns of the whole batch."""
    torch.multiprocessing.spawn(worker, (tmp_path, synchronised), WORLD)
    alone = copy.deepcopy(model())
    learn(alone, alone, 0, 1)
    alone.eval()
    close = []
    for rank in range(WORLD):
        state, answers = torch.load(tmp_path / f"{rank}.pt")
        theirs = [*state.values(), answers]
        ours = [*alone.state_dict().values(), alone(torch.ones(2, 2, 6, 6))]
        close += [torch.allclose(a, b, atol=1e-5) for a, b in zip(theirs, ours, strict=True)]
    assert all(close) == synchronised


def waits(rank: int, folder: Path) -> None:
    """A worker of three: the first is late, and then the second does not come at all."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=3)
    collectives.begin(f"place {rank}")
    dist.barrier()  # all are there, however long that took
    distributed_c10d._set_pg_timeout(timedelta(seconds=2))
    if rank == 0:
        time.sleep(3)
    assert collectives.from_first(7 * (1 - rank)) == 7
    if rank == 1:
        while not (folder / "missing").exists():
            time.sleep(0.1)
        return
    with pytest.raises(RuntimeError) as late:
        dist.all_reduce(torch.ones(1))
    assert collectives.is_of_others(late.value)
    assert collectives.missing() == ["worker 2 of 3 (place 1)"]
    (folder / "missing").touch()


def test_workers_wait_for_the_first_and_name_who_does_not_come(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(waits, (tmp_path,), 3)
