"""How sure a mean difference is: paired by seed or draw, with a bootstrap interval.

This is the one kind of interval of all reports, and `PairedDifference.in_words` names it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

CONFIDENCE = 0.95
INTERVAL = f"{100 * CONFIDENCE:.0f} % bootstrap interval"


ONE_DRAW = "one draw of data and teachers"
"""What all students of one job share: no spread over their seeds says how other draws would do."""


def seeds_of_one_draw(count: int) -> str:
    """`3 seeds, one draw of data and teachers`: what a job's figures are over."""
    return f"{count} seed{'s' * (count != 1)}, {ONE_DRAW}"


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of two methods over the seeds that both have, and its interval.

    Attributes:
        mean: mean difference, in the unit of the values.
        low: lower end of the bootstrap interval; None for a single seed.
        high: upper end.
        seeds: number of seeds, or draws, that were paired.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def points(self) -> str:
        """The mean difference of shares in points, with its sign."""
        return signed(100 * self.mean)

    def interval(self) -> str:
        """The ends in points: `+5.1 … +10.2`; empty for a single seed."""
        if self.low is None or self.high is None:
            return ""
        return f"{signed(100 * self.low)} … {signed(100 * self.high)}"

    def in_words(self, unit: str = "seed") -> str:
        """`+8.0 points (95 % bootstrap interval +5.1 … +10.2, 4 seeds)`, `+8.0 points (1 seed)`.

        Args:
            unit: what was paired, `seed` or `draw`; empty leaves out how many there were.
        """
        sure = f"{INTERVAL} {self.interval()}" if self.interval() else ""
        count = f"{self.seeds} {unit}{'s' * (self.seeds != 1)}" if unit else ""
        details = ", ".join(filter(None, (sure, count)))
        return f"{self.points} points" + (f" ({details})" if details else "")


def signed(number: float, places: int = 1) -> str:
    """A number with its sign."""
    # Adding 0 turns a rounded -0.0 into 0.0.
    return f"{round(number, places) + 0.0:+.{places}f}".replace("-", "−")


def paired_difference(
    values_by_seed: Mapping[Any, float], baseline_by_seed: Mapping[Any, float]
) -> PairedDifference | None:
    """The difference to a baseline, seed by seed.

    Args:
        values_by_seed: a metric by seed, or by whatever else makes two students a pair.
        baseline_by_seed: the baseline's.

    Returns:
        The mean difference with the interval of `bootstrap_interval`; None where the two share no
        seed with finite values.
    """
    differences = list(differences_by_seed(values_by_seed, baseline_by_seed).values())
    if not differences:
        return None
    low, high = bootstrap_interval(differences) or (None, None)
    return PairedDifference(mean(differences), low, high, len(differences))


def differences_by_seed(
    values_by_seed: Mapping[Any, float], baseline_by_seed: Mapping[Any, float]
) -> dict[Any, float]:
    """The differences of those that both have, where both are finite."""
    return {
        seed: value - baseline_by_seed[seed]
        for seed, value in values_by_seed.items()
        if math.isfinite(value - baseline_by_seed.get(seed, math.nan))
    }


def bootstrap_interval(
    differences: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean of paired differences.

    With few seeds it is too narrow, and no method mends that without assumptions: it never reaches
    beyond the smallest and the largest difference seen. Where the differences are symmetric about
    their true mean, an interval that is called 95 % holds it in 50 % of cases with two seeds, in
    75 % with three, and in about 83 % with five. Read it as "at least this uncertain".

    Args:
        differences: one a seed, finite.
        confidence: nominal share of cases, in (0, 1).

    Returns:
        The interval's ends, the same for the same differences at every call; the one value twice
        where all are equal; None for fewer than two, of which nothing is known about the spread.
    """
    if len(differences) < 2:
        return None
    low, high = min(differences), max(differences)
    if low == high:  # scipy warns of degenerate data and has no answer
        return low, high
    from scipy.stats import bootstrap  # a second that few processes need

    ends = bootstrap(
        (np.asarray(differences, dtype=float),),
        np.mean,
        confidence_level=confidence,
        method="percentile",
        rng=0,
    ).confidence_interval
    # Means of equal numbers are off by a rounding error.
    return max(float(ends.low), low), min(float(ends.high), high)
