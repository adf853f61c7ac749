"""One tidy table of everything measured, of which all tables, files, plots and summaries are views.

A row is one value: of a student (method and seed, at a point and draw of a study) on a split, of a
metric, on all samples or one group. What has no group has an empty text there; groups, classes of
data without groups, and groups of which a sample may be in several begin with `group/`, `class/`
and `overlapping/`. How many groups have a sample is measured like anything else
(`groups_with_samples` of `groups_in_all`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from agrekd_ray.results.intervals import PairedDifference, paired_difference
from agrekd_ray.results.metrics import (
    ACCURACY,
    ALL,
    CLASS,
    GROUP,
    METRICS,
    OVERLAPPING,
    WORST_GROUP,
    Coverage,
    is_distilled,
    metric,
    over,
    part_measured,
)
from agrekd_ray.results.records import Epoch, Metrics, StudentResult

COLUMNS = ["point", "draw", "method", "seed", "split", "metric", "group", "value"]
WITH_SAMPLES, IN_ALL = "with_samples", "in_all"
_KINDS = ("groups", "classes", "overlapping groups")


def frame(
    outcomes: Iterable[StudentResult], point: str = "", draw: int | None = None
) -> pd.DataFrame:
    """The figures of finished students of one job, or of one point of a study.

    Args:
        outcomes: finished students, all measured on the same samples.
        point: what people call the point.
        draw: of data and teachers.
    """
    every = list(outcomes)
    coverage: dict[str, Coverage] = {}
    for outcome in every:  # one that an earlier version measured does not say it
        for split, metrics in outcome.splits.items():
            coverage[split] = max(coverage.get(split, {}), metrics.coverage, key=len)
    rows = (
        (point, draw, outcome.method, outcome.seed, split, *value)
        for outcome in every
        for split, metrics in outcome.splits.items()
        for value in values_of(metrics, coverage[split])
    )
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


def values_of(
    metrics: Metrics, coverage: Coverage | None = None
) -> Iterator[tuple[str, str, float]]:
    """All figures of a model on a split, each with its metric and group; the worst group first.

    Args:
        metrics: of the model.
        coverage: of the split, where the metrics do not say it.
    """
    yield WORST_GROUP, "", metrics.worst_group_accuracy
    for name, value in metrics.scalars().items():
        if name != WORST_GROUP:
            yield name, "", value
    kind = GROUP if metrics.groups_known else CLASS
    for name, value in metrics.groups.items():
        yield ACCURACY, f"{kind}{name}", value
    for name, value in metrics.overlapping.items():
        yield ACCURACY, f"{OVERLAPPING}{name}", value
    for measure, by_group in metrics.by_group.items():
        for name, value in by_group.items():
            yield measure, f"{kind}{name}", value
    for name, counts in (metrics.coverage if coverage is None else coverage).items():
        for end, count in zip((WITH_SAMPLES, IN_ALL), counts, strict=True):
            yield f"{name.replace(' ', '_')}_{end}", "", float(count)


EPOCH_COLUMNS = ["method", "seed", "epoch", "metric", "group", "teacher", "value"]
WEIGHT, INFLUENCE, FALLBACK, LOSS = "weight", "influence", "fallback", "loss"


def epochs(
    outcomes: Iterable[StudentResult], metrics: Collection[str] | None = None
) -> pd.DataFrame:
    """The training of students, tidy: a row an epoch, metric, training group and teacher.

    Metrics are `loss`, the worst group of the validation split, and by group (`ALL` for all
    samples) the teachers' `weight` and `influence` and the samples in the 0/0 case, `fallback`.

    Args:
        outcomes: students, finished or under way.
        metrics: that are wanted; None for all.
    """
    return pd.DataFrame(
        (
            (outcome.method, outcome.seed, epoch.epoch, *value)
            for outcome in outcomes
            for epoch in outcome.history
            for value in _epoch_values(epoch)
            if metrics is None or value[0] in metrics
        ),
        columns=EPOCH_COLUMNS,
    ).astype({"epoch": int, "value": float})


def last_weights(trained: pd.DataFrame) -> pd.DataFrame:
    """Who taught whom: each teacher's mean weight in the last epoch, by method and training group.

    Args:
        trained: as `epochs` returns it.
    """
    last = last_epochs(trained[trained.metric == WEIGHT])
    return last.pivot_table("value", ["method", "group"], "teacher", sort=False)


def _epoch_values(epoch: Epoch) -> Iterator[tuple[str, str, str, float]]:
    yield LOSS, "", "", epoch.loss
    yield WORST_GROUP, "", "", epoch.val.worst_group_accuracy
    # Of an epoch that an earlier version trained nobody knows some of these.
    influence = {ALL: epoch.influence, **epoch.influence_by_group} if epoch.influence else {}
    for name, shares in ((WEIGHT, epoch.weights), (INFLUENCE, influence)):
        for group, by_teacher in shares.items():
            for teacher, share in by_teacher.items():
                yield name, group, teacher, share
    fallback = epoch.fallback_by_group
    for group, share in ({ALL: epoch.fallback_share, **fallback} if fallback else {}).items():
        yield FALLBACK, group, "", share


def last_epochs(table: pd.DataFrame) -> pd.DataFrame:
    """Of the tidy table of training, the last epoch of every student."""
    last = table.groupby(["method", "seed"])["epoch"].transform("max")
    return table[table["epoch"] == last]


def key(metric: str, group: str) -> str:
    """A metric of a group by one name: `accuracy`, `group/NAME`, `MEASURE/group/NAME`."""
    return metric if not group else group if metric == ACCURACY else f"{metric}/{group}"


@dataclass(frozen=True)
class Figure:
    """One number of a report.

    Attributes:
        mean: over seeds, and draws where there are some; NaN where one of them is.
        sd: sample standard deviation; 0 for a single value, NaN where one is not finite.
        count: values that it is over.
        part: `2 of 4 groups`, where the metric is over those alone; else empty.
        metric: its name.
    """

    mean: float
    sd: float = 0.0
    count: int = 1
    part: str = ""
    metric: str = ACCURACY

    @property
    def text(self) -> str:
        """In the unit of the metric."""
        return metric(self.metric).text(self.mean)

    def named(self, name: str, of: str) -> dict[str, float]:
        """Mean and, of several values, deviation: `NAME/OF` and `NAME_sd/OF`."""
        spread = {f"{name}_sd/{of}": self.sd} if self.count > 1 else {}
        return {f"{name}/{of}": self.mean, **spread}

    @property
    def spread(self) -> str:
        """`± 1.0`; empty for a single value."""
        if self.count < 2 or not math.isfinite(self.sd):
            return ""
        return f"± {metric(self.metric).text(self.sd)}"

    @property
    def words(self) -> str:
        """`39.0 ± 2.4`, without a unit."""
        return f"{self.text} {self.spread}".rstrip()


Row = Mapping[str, Figure]
"""The figures of one row of a table, by `key`."""


def figures(table: pd.DataFrame, by: Sequence[str] = ("method",)) -> dict[Any, Row]:
    """Means and standard deviations over all that `by` does not part.

    Args:
        table: values of one split.
        by: columns whose values make a row of a report.

    Returns:
        By value of these columns (a tuple of several), in the order of the table: figures by `key`.
    """
    if table.empty:
        return {}
    grouped = table.groupby([*by, "metric", "group"], sort=False, dropna=False)["value"]
    summed = grouped.agg(["mean", "std", "size", "count"])
    rows: dict[Any, dict[str, Figure]] = {}
    for (*place, name, group), mean, sd, size, count in summed.itertuples(name=None):
        row = rows.setdefault(place[0] if len(by) == 1 else tuple(place), {})
        known = size == count  # pandas leaves out what is not a number
        row[key(name, group)] = Figure(
            mean if known else math.nan,
            0.0 if known and size == 1 and math.isfinite(mean) else sd if known else math.nan,
            int(size),
            metric=name if name in METRICS else key(name, group),
        )
    return {place: _with_parts(row) for place, row in rows.items()}


def _with_parts(row: Row) -> Row:
    """The figures with what each is over, out of those that say it of the same split."""
    means = {name: figure.mean for name, figure in row.items()}
    splits = {split: coverage_of(means, split) for split in ("", "test", "val")}

    def part(name: str) -> str:
        split, _, plain = name.rpartition("/")
        return part_measured(splits.get(split, {}), plain) if plain in METRICS else ""

    return {name: replace(figure, part=part(name)) for name, figure in row.items()}


def coverage_of(values: Mapping[str, float], split: str = "") -> Coverage:
    """What figures say of how much of a split they are measured over.

    Args:
        values: by name.
        split: that stands before each name.
    """
    coverage: Coverage = {}
    for kind in _KINDS:
        name = f"{split}{'/' * bool(split)}{kind.replace(' ', '_')}"
        some, every = (values.get(f"{name}_{end}") for end in (WITH_SAMPLES, IN_ALL))
        if some is not None and every is not None:
            coverage[kind] = (round(some), round(every))
    return coverage


def coverage_values(row: Mapping[str, float]) -> dict[str, float]:
    """Of figures, those that say over how many groups and classes; none where all have samples."""
    coverage = coverage_of(row)
    if all(some == every for some, every in coverage.values()):
        return {}
    return {name: value for name, value in row.items() if is_coverage(name)}


def is_coverage(name: str) -> bool:
    """Whether a metric says over how many groups and classes the others are."""
    return name.endswith((f"_{WITH_SAMPLES}", f"_{IN_ALL}"))


def worst_words(row: Mapping[str, Any]) -> str:
    """What the worst-group accuracy of a row is of: `worst group`, `worst of 2 of 4 groups`."""
    classes = any(name.startswith(CLASS) for name in row)
    words = (
        "worst class" if classes and not any(n.startswith(GROUP) for n in row) else "worst group"
    )
    worst = row.get(WORST_GROUP)
    return over(words, worst.part if isinstance(worst, Figure) else "")


def best_distilled(rows: Mapping[str, Row]) -> str | None:
    """The distilled method with the best worst group; None where none has one."""
    return best_of({name: row for name, row in rows.items() if is_distilled(name)})


def best_of(rows: Mapping[str, Row]) -> str | None:
    """The method with the best worst group; None where none has one."""
    worst = {name: row[WORST_GROUP].mean for name, row in rows.items() if WORST_GROUP in row}
    finite = {name: value for name, value in worst.items() if math.isfinite(value)}
    return max(finite, key=finite.__getitem__, default=None)


def by_pair(table: pd.DataFrame, method: str, pair: str = "seed") -> dict[Any, float]:
    """A method's worst group by what makes two students a pair: the mean of those that share it.

    Args:
        table: values of one split.
        method: its name.
        pair: `seed` or `draw`.
    """
    mine = table[(table["method"] == method) & (table["metric"] == WORST_GROUP)]
    return mine.groupby(pair, sort=False, dropna=False)["value"].mean().to_dict()


def difference(
    outcomes: Iterable[StudentResult], method: str, against: str
) -> PairedDifference | None:
    """Worst-group accuracy of one method minus another's on the test split, paired by seed."""
    table = frame(outcomes)
    table = table[table["split"] == "test"]
    return paired_difference(by_pair(table, method), by_pair(table, against))
