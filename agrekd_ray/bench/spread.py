"""Repeated measurements as a median and its range."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def words(spread: dict[str, float], digits: int) -> str:
    """`median (smallest … largest)`, with so many digits after the point."""
    low, middle, high = (f"{spread[name]:,.{digits}f}" for name in ("min", "median", "max"))
    return f"{middle} ({low} … {high})"
