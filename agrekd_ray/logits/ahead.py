"""Records that are larger than memory: each row is read from the disk by itself, ahead of its use.

The kernel reads 128 KB around every row that it does not have. Where records stay in memory, that
is soon all of them; where they do not, it is thirty times what was asked for.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from functools import cache

import numpy as np

from agrekd_ray.machine import memory

SHARE = 0.5
"""Of the memory that records of a view may take to be left to the kernel."""


class ReadAhead:
    """Has the kernel read the rows that are asked for next, and no others.

    Args:
        mapped: arrays [N, ...] of one length, mapped from files.
    """

    def __init__(self, mapped: Sequence[np.ndarray]) -> None:
        self._mapped, self._scattered = mapped, False

    def __call__(self, rows: np.ndarray) -> None:
        """Start reading some rows of all arrays; nothing waits for them."""
        if not self._scattered:  # until then they may be read from end to end
            for array in self._mapped:
                _advise(array.ctypes.data, array.nbytes, mmap.MADV_RANDOM)
            self._scattered = True
        ordered = np.sort(rows)
        for array in self._mapped:
            size = array.strides[0]
            for address in (array.ctypes.data + ordered * size).tolist():
                _advise(address, size, mmap.MADV_WILLNEED)


def read_ahead(mapped: Sequence[np.ndarray]) -> ReadAhead | None:
    """For arrays that are too large for this machine's memory; None for others."""
    size = sum(array.nbytes for array in mapped)
    return ReadAhead(mapped) if size > SHARE * memory() else None


def _advise(address: int, size: int, advice: int) -> None:
    """Advice that the kernel may leave."""
    within = address % mmap.PAGESIZE
    _libc().madvise(address - within, size + within, advice)


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return library
