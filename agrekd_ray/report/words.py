"""What a page says of students: which is best, by how much, over how many seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from agrekd_ray.report.tables import TEST, percent, signed
from agrekd_ray.results import Metrics, Outcome
from agrekd_ray.tracking.labels import is_distilled
from agrekd_ray.tracking.tables import Paired, Row, degraded_lines, summary

WGA = "worst_group_accuracy"


def tested(outcomes: Sequence[Outcome]) -> list[Row]:
    """A row a method, of the test split."""
    return [row for row in summary(outcomes) if row.split == TEST]


def test_metrics(outcomes: Sequence[Outcome]) -> list[Metrics]:
    """Metrics of every student on the test split."""
    return [outcome.splits[TEST] for outcome in outcomes if TEST in outcome.splits]


def finite(rows: Iterable[Row]) -> list[Row]:
    """Rows that have an accuracy of the worst group."""
    return [row for row in rows if math.isfinite(row.mean.get(WGA, math.nan))]


def best_of(rows: Iterable[Row]) -> Row | None:
    """The distilled students with the best worst group."""
    taught = [row for row in finite(rows) if is_distilled(row.method)]
    return max(taught, key=lambda row: row.mean[WGA], default=None)


def in_words(row: Row) -> str:
    """`39.0 ± 2.4 % on the worst group`."""
    spread = f" ± {percent(row.std[WGA])}" if len(row.seeds) > 1 else ""
    return f"{percent(row.mean[WGA])}{spread} % on the {row.worst}"


def difference_in_words(found: Paired | None) -> str:
    """`+19.0 points by seed (from +17.6 to +19.9, 3 seeds)`; empty where there is none."""
    if found is None or not math.isfinite(found.mean):
        return ""
    count = len(found.seeds)
    reach = f"from {signed(100 * found.low, 1)} to {signed(100 * found.high, 1)}, {count} seeds"
    return f"{signed(100 * found.mean, 1)} points by seed ({reach if count > 1 else '1 seed'})"


def over(rows: Sequence[Row]) -> str:
    """What figures are means of."""
    counts = {len(row.seeds) for row in rows}
    if counts <= {1}:
        return "one seed"
    many = f"{max(counts)}" if len(counts) == 1 else f"up to {max(counts)}"
    return f"mean ± standard deviation over {many} seeds"


def degraded(outcomes: Sequence[Outcome], name: Callable[[str], str]) -> list[str]:
    """Students that were taught without somebody who was lost."""
    return [f"Degraded: {line}." for line in degraded_lines(outcomes, name)]
