"""The quadratic programme of AE-KD: the shortest mixture of vectors, with a cap on each share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

RIDGE = 1e-6
"""Added to the diagonal, relative to the Gram's trace. Among equally short mixtures it picks the
most even one, so the answer is unique, whatever the order of the vectors; and it keeps float32
noise in nearly equal vectors from deciding between them."""

Rows = list[list[float]]  # Python floats: tensors of five numbers cost ten times more per operation
Matrix = Rows | Tensor

_SMALL = 12  # up to this size Python solves a system faster than torch is called
_AT_BOUND = 1e-15  # a share this near to 0 or to the box lies on it; far below what _OPTIMAL moves
_OPTIMAL = 1e-13  # slope, relative to the trace, below which no bound is worth leaving


def shortest_mixture(gram_MM: Tensor, box: float) -> Tensor:
    """Minimises ½ aᵀ(G + ridge)a subject to Σ a = 1 and 0 ≤ a ≤ box, exactly up to rounding.

    A primal active-set method. Every share on a bound is held there, so the free ones are
    strictly inside, every step after a release goes down and no set of held shares comes back:
    the loop ends by itself. Its bound is for rounding; the point is feasible at every step.

    Args:
        gram_MM: Gram matrix of the vectors, [M, M], symmetric, positive semi-definite.
        box: largest share, raised to 1/M where smaller.

    Returns:
        Shares, [M], float64 on the CPU; uniform where all vectors are 0.

    Raises:
        ValueError: if the matrix is not square, is empty or is not finite.
    """
    if gram_MM.ndim != 2 or gram_MM.shape[0] != gram_MM.shape[1] or not gram_MM.numel():
        raise ValueError(f"the Gram matrix must be [M, M], not {list(gram_MM.shape)}")
    gram_MM = gram_MM.detach().to("cpu", torch.float64)
    trace = float(gram_MM.trace())
    if not math.isfinite(trace) or not torch.isfinite(gram_MM).all():
        raise ValueError("the Gram matrix holds NaN or infinity")
    M = gram_MM.shape[0]
    if trace <= 0 or box * M <= 1 + 1e-9:
        return torch.full((M,), 1 / M, dtype=torch.float64)
    hessian_MM = gram_MM / trace
    hessian_MM.diagonal().add_(RIDGE)

    hessian: Matrix = hessian_MM.tolist() if M <= _SMALL else hessian_MM
    shares = _first_guess(hessian, box)
    free = [m for m in range(M) if 0 < shares[m] < box]
    for _ in range(100 + 20 * M):
        target = _free_minimum(hessian, free, shares)
        blocked = _advance(shares, free, target, box)
        free = [m for m in free if 0 < shares[m] < box]
        if not blocked:
            released = _release(hessian, shares, free)
            if not released:
                break
            free = sorted(free + released)
    return torch.tensor(shares, dtype=torch.float64)


def _first_guess(hessian: Matrix, box: float) -> list[float]:
    """A feasible start near the optimum: holds all that violate a bound at once, 0 before box."""
    M = len(hessian)
    shares, free = [0.0] * M, list(range(M))
    while free:
        target = _free_minimum(hessian, free, shares)
        wanted = dict(zip(free, target, strict=True))
        held = {m: 0.0 for m, share in wanted.items() if share <= 0}
        held = held or {m: box for m, share in wanted.items() if share >= box}
        for m, share in (held or wanted).items():
            shares[m] = share
        if not held:
            return shares
        free = [m for m in free if m not in held]
    left = 1.0  # the boxes did not reach 1: fill up with the shortest of the others
    for m in sorted(range(M), key=lambda m: (-shares[m], hessian[m][m])):
        shares[m] = min(box, left) if left > _AT_BOUND else 0.0
        left -= shares[m]
    return shares


def _free_minimum(hessian: Matrix, free: list[int], shares: list[float]) -> list[float]:
    """Best shares for the free ones, their bounds ignored, with the others held where they are."""
    if not free:
        return []
    held = [m for m in set(range(len(shares))).difference(free) if shares[m]]
    pull = [-slope for slope in _slopes(hessian, free, held, shares)]
    if isinstance(hessian, list):
        block: Matrix = [[hessian[m][k] for k in free] for m in free]
    else:
        block = hessian[free][:, free]
    per_slope, offset = _solve(block, [[1.0] * len(free), pull])
    left = 1 - sum(shares[m] for m in held)
    slope = (left - sum(offset)) / sum(per_slope)
    return [slope * a + b for a, b in zip(per_slope, offset, strict=True)]


def _slopes(
    hessian: Matrix, rows: Sequence[int], used: Sequence[int], shares: list[float]
) -> list[float]:
    """How the objective rises in some shares, of what others make it."""
    if isinstance(hessian, list):
        return [sum(hessian[m][k] * shares[k] for k in used) for m in rows]
    used_K = torch.tensor([shares[k] for k in used], dtype=torch.float64)
    slopes: list[float] = (hessian[list(rows)][:, list(used)] @ used_K).tolist()
    return slopes


def _solve(block: Matrix, rights: Rows) -> Rows:
    """Solves a positive definite system for several right-hand sides."""
    size = len(block)
    if not isinstance(block, list):
        factor = torch.linalg.cholesky_ex(block).L
        right = torch.tensor(rights, dtype=torch.float64).T
        return torch.cholesky_solve(right, factor).T.tolist()
    rows = [[*row, *(right[i] for right in rights)] for i, row in enumerate(block)]
    for k in range(size):
        pivot = rows[k][k]
        rows[k] = pivotal = [value / pivot for value in rows[k]]
        for i in range(size):
            if i != k:
                factor_i = rows[i][k]
                rows[i] = [a - factor_i * b for a, b in zip(rows[i], pivotal, strict=True)]
    return [[row[size + r] for row in rows] for r in range(len(rights))]


def _advance(shares: list[float], free: list[int], target: list[float], box: float) -> bool:
    """Moves the free shares towards the target, up to the first bound; True if one was met."""
    ways = [goal - shares[m] for m, goal in zip(free, target, strict=True)]
    reach, first = 1.0, None
    for m, way, goal in zip(free, ways, target, strict=True):
        if goal < -_AT_BOUND or goal > box + _AT_BOUND:
            room = shares[m] if way < 0 else box - shares[m]
            if first is None or room < reach * abs(way):
                reach, first = room / abs(way), m
    for m, way in zip(free, ways, strict=True):
        share = shares[m] + reach * way
        if share <= _AT_BOUND or (m == first and way < 0):
            share = 0.0
        elif share >= box - _AT_BOUND or m == first:
            share = box
        shares[m] = share
    return first is not None


def _release(hessian: Matrix, shares: list[float], free: list[int]) -> list[int]:
    """The held shares whose release helps most; none at the optimum.

    At the optimum no share at 0 slopes less, and none at the box more, than the free ones, which
    all slope alike. Where nothing is free, one share of each kind has to move together.
    """
    used = [m for m in range(len(shares)) if shares[m]]
    slopes = _slopes(hessian, range(len(shares)), used, shares)
    held = set(range(len(shares))).difference(free)
    low = min((m for m in held if shares[m] == 0), key=slopes.__getitem__, default=None)
    high = max((m for m in held if shares[m] > 0), key=slopes.__getitem__, default=None)
    if not free:
        both = [m for m in (low, high) if m is not None]
        return both if len(both) == 2 and slopes[both[1]] - slopes[both[0]] > _OPTIMAL else []
    slope = sum(slopes[m] for m in free) / len(free)
    gain_low = slope - slopes[low] if low is not None else 0.0
    gain_high = slopes[high] - slope if high is not None else 0.0
    if max(gain_low, gain_high) <= _OPTIMAL:
        return []
    return [m for m in (low if gain_low > gain_high else high,) if m is not None]
