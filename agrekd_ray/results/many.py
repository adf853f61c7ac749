"""What is said of very many groups or teachers: quantiles of all, and both ends by name.

Few are all said by name. Of many, whatever people read (tables, pages, plots) and MLflow is told
stays bounded; the whole is in one array file (`results.arrays`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

MOST_NAMED = 50
"""Groups, classes or teachers that are all said by name."""
ENDS = 10
"""Of more: so many of each end are said by name."""
QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}
"""What is said of all of them, by name: shares of them that lie below."""


def are_many(*counts: int) -> bool:
    """Whether one of these is of too many groups, classes or teachers to say them all by name."""
    return max(counts) > MOST_NAMED


def quantiles(values: Iterable[float]) -> dict[str, float]:
    """The `QUANTILES` of values, by name; those that are not finite are left out.

    Between two values they are interpolated linearly. Nothing is said of no value.
    """
    finite = np.fromiter((value for value in values if math.isfinite(value)), dtype=np.float64)
    if not finite.size:
        return {}
    found = np.quantile(finite, list(QUANTILES.values()))
    return dict(zip(QUANTILES, found.tolist(), strict=True))


def ends(values: Mapping[str, float], few: int = MOST_NAMED) -> list[str]:
    """Of many, the names of the ten lowest values from below, then of the ten highest upwards.

    Args:
        values: by name; those that are not finite count as none. Of equal ones the first counts as
            the lower one.
        few: so many are not many.

    Returns:
        The names; all of them in their own order where they are few.
    """
    if len(values) <= few:
        return list(values)
    finite = [name for name, value in values.items() if math.isfinite(value)]
    ranked = sorted(finite, key=values.__getitem__)
    return ranked if len(ranked) <= 2 * ENDS else ranked[:ENDS] + ranked[-ENDS:]


def mean_of_rows(matrix: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over the rows (groups) by column (teacher), each row counting alike."""
    columns: dict[str, list[float]] = {}
    for row in matrix.values():
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in columns.items()}


def ends_in_words(count: int) -> str:
    """What `ends` has left of so many: `10 worst and 10 best of 1,000`."""
    return f"{ENDS} worst and {ENDS} best of {count:,}"
