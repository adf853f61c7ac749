"""Rows that are made together, in threads: as many at a time as there are processors and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from agrekd_ray.errors import DataError
from agrekd_ray.machine import free_memory, usable_cpus

CHUNK = 256
"""Rows that are made together; part of what the digest is computed from."""
SHOWN = 10
"""Faults that are shown of many."""
MEMORY_SHARE = 0.25
"""Of the free memory, what chunks that are under way may take."""


class BrokenRowsError(DataError):
    """Rows of a chunk that cannot be made.

    Attributes:
        faults: one a row.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(listed(faults))
        self.faults = tuple(faults)

    def __reduce__(self) -> tuple[type[BrokenRowsError], tuple[tuple[str, ...]]]:
        return type(self), (self.faults,)


Made = tuple[np.ndarray, bytes, tuple[int, ...]]
"""The rows of a chunk, a digest of what they were made of, and how many there is each remark on."""


class Work(NamedTuple):
    """A chunk that is to be made.

    Attributes:
        number: of the chunk.
        make: makes it; called in a thread, it may raise `BrokenRowsError`.
        held: bytes of sources that wait in memory for it.
    """

    number: int
    make: Callable[[], Made]
    held: int = 0


@dataclass(frozen=True)
class Room:
    """What the making of rows may take.

    Attributes:
        threads: at once.
        memory: bytes of the chunks that are under way, sources and rows; one is always made.
    """

    threads: int
    memory: float

    @classmethod
    def of_process(cls, granted: float | None = None) -> Room:
        """What this process may use.

        Args:
            granted: processors of its machine that it was granted, with as much of the memory;
                None for all.
        """
        cpus = usable_cpus()
        threads = cpus if granted is None else max(1, min(cpus, int(granted)))
        return cls(threads, MEMORY_SHARE * free_memory() * threads / cpus)


def listed(faults: Sequence[str]) -> str:
    """The first ten faults, and how many there are."""
    shown = "; ".join(faults[:SHOWN])
    if len(faults) <= SHOWN:
        return shown
    return f"{shown}; and {len(faults) - SHOWN:,} more ({len(faults):,} in all)"


def chunks(count: int) -> list[range]:
    """Rows by chunk."""
    return [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]


def in_threads(
    work: Iterator[Work], row_bytes: int, room: Room
) -> Iterator[tuple[int, Future[Made]]]:
    """Finished chunks, as they come.

    Args:
        work: chunks; the next one is looked at when there is room for it.
        row_bytes: of a row that is made.
        room: that the chunks take.
    """
    under_way: dict[Future[Made], tuple[int, int]] = {}
    taken = 0
    with ThreadPoolExecutor(room.threads, "prepare") as pool:
        try:
            for number, make, held in work:
                size = held + CHUNK * row_bytes
                under_way[pool.submit(make)] = number, size
                taken += size
                # The next one will be as large.
                while under_way and (len(under_way) > room.threads or taken + size > room.memory):
                    yield (done := _first_of(under_way))
                    taken -= under_way.pop(done[1])[1]
                    del done  # its rows
            while under_way:
                yield (done := _first_of(under_way))
                del under_way[done[1]], done
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _first_of(under_way: dict[Future[Made], tuple[int, int]]) -> tuple[int, Future[Made]]:
    future = next(iter(wait(under_way, return_when=FIRST_COMPLETED).done))
    return under_way[future][0], future
