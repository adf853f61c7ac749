"""Of many teachers and classes some at a time: what a cache holds is not fetched twice."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

AT_ONCE = {False: 2**19, True: 2**27}
"""Numbers in float64 at once, on a CPU (what its cache holds) and on a GPU (1 GiB of memory)."""


def at_once(members: Tensor) -> int:
    """How many of some members, [m, ...], are worked on together; at least one."""
    return max(1, AT_ONCE[members.is_cuda] // max(1, math.prod(members.shape[1:])))


def in_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Several tensors of m members each, the first the largest, in parts of some members."""
    size = at_once(tensors[0])
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)
