"""What the workers of a training wait for together: how long, for whom, and who did not come.

The exchanges of a step, and of an evaluation, end in an error where a worker does not come to them
in time (`student.timeout_minutes`). What the first worker does alone (it keeps states, retrains a
last layer, asks a fleet for all) takes as long as it takes: for that the others wait in a process
group without such an end. Should the first die or fail meanwhile, Ray ends them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store

ROLL_CALL_SECONDS = 10.0
"""In which all whose exchange has failed say so: they were not there at the same moment."""
_FOR_EVER = timedelta(days=365)
_patient: Any = None


def several() -> bool:
    """Whether this process is one of several workers."""
    return dist.is_initialized() and dist.get_world_size() > 1


def begin(place: str) -> None:
    """Called by all workers at once, before anything else here.

    Args:
        place: of this worker, in words: its process and node.
    """
    global _patient
    if several():
        _get_default_store().set(_key("place", dist.get_rank()), place)
        _patient = dist.new_group(timeout=_FOR_EVER)


def from_first(number: int) -> int:
    """A number that the first of several workers knows, heard by all of them, however late."""
    if several():
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        number = int(filled_by_first(torch.tensor([number], device=device)).item())
    return number


def filled_by_first(tensor: Tensor) -> Tensor:
    """The same tensor, with the first worker's values once that has them, however late."""
    dist.broadcast(tensor, 0, _patient)
    return tensor


def as_the_first(tensors: Iterable[Tensor]) -> None:
    """Gives tensors the first worker's values once that is there, however late; by all workers."""
    if several():
        from_first(0)  # there may be no tensor to wait with
        for tensor in tensors:
            tensor.copy_(filled_by_first(tensor.contiguous()))


def summed(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The sum of a tensor over the workers, where it is.

    Args:
        tensor: on any device; stays as it is.
        device: on which this worker trains, and the workers exchange.
    """
    if not several():
        return tensor
    whole = tensor.to(device, copy=True)
    dist.all_reduce(whole)
    return whole.to(tensor.device)


def is_of_others(error: Exception) -> bool:
    """Whether an error only says that other workers did not take part in an exchange."""
    return several() and (isinstance(error, dist.DistError) or "gloo" in str(error))


def is_late(error: Exception) -> bool:
    """Whether such an error says that the time was over, and not that a worker has gone."""
    return "timed out" in str(error).lower()


def missing() -> list[str]:
    """Workers whose exchange has not failed, as it has here: they never came to it.

    Called by every worker whose exchange has failed; takes `ROLL_CALL_SECONDS` where one is not
    there.
    """
    store, world, begun = _get_default_store(), dist.get_world_size(), time.monotonic()
    store.set(_key("waits", dist.get_rank()), "")
    while True:
        absent = [rank for rank in range(world) if not store.check([_key("waits", rank)])]
        if not absent or time.monotonic() - begun > ROLL_CALL_SECONDS:
            return [f"{named(n)} ({store.get(_key('place', n)).decode()})" for n in absent]
        time.sleep(0.2)


def named(rank: int | None = None) -> str:
    """A worker, this one by default, as messages call it: `worker 2 of 3`."""
    return f"worker {(dist.get_rank() if rank is None else rank) + 1} of {dist.get_world_size()}"


def _key(what: str, rank: int) -> str:
    return f"agrekd/{what}/{rank}"
