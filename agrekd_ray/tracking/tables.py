"""The comparison of a job's methods: as a table on the screen, as CSV and as JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.text import Text

from agrekd_ray.core.diagnostics import CASES
from agrekd_ray.results import (
    Coverage,
    Diagnostics,
    Member,
    Metrics,
    Outcome,
    over,
    part_measured,
)
from agrekd_ray.tracking.columns import Column, figures, fitting, markdown_table, screen_table
from agrekd_ray.tracking.files import replacing
from agrekd_ray.tracking.labels import family, is_distilled, label
from agrekd_ray.tracking.metrics import GROUP, OVERLAPPING, WORST_OVERLAPPING
from agrekd_ray.tracking.mlflow_values import coverage_metrics

CSV_HEADER = ("method", "teachers", "seed", "split", "accuracy", "worst_group_accuracy", "groups")

_WGA = "worst_group_accuracy"


@dataclass(frozen=True)
class Row:
    """One method on one split, over its seeds.

    Attributes:
        method: name of the method as in the job.
        teachers: who taught, in words.
        split: `val` or `test`.
        seeds: of the students, ascending.
        mean: by metric (`Metrics.scalars`, `group/<name>` and `overlapping/<name>`); over the
            seeds that have it.
        std: sample standard deviation, by metric; 0 for a single seed.
        worst: what the worst-group accuracy is of, in words; see `Metrics.worst`.
        groups_known: false where the data have no group labels.
        coverage: of the split; see `Metrics`.
    """

    method: str
    teachers: str
    split: str
    seeds: list[int]
    mean: dict[str, float]
    std: dict[str, float]
    worst: str = "worst group"
    groups_known: bool = True
    coverage: Coverage = field(default_factory=dict)

    def header(self, metric: str, words: str) -> str:
        """What a column of a metric is called: with the part that it is measured over."""
        return over(words, part_measured(self.coverage, metric))


@dataclass(frozen=True)
class Paired:
    """Difference of two methods' worst-group accuracy, seed by seed, as shares.

    Attributes:
        mean: mean difference.
        low: smallest difference of any seed.
        high: largest difference of any seed.
        seeds: seeds that both methods have.
    """

    mean: float
    low: float
    high: float
    seeds: list[int]


def summary(outcomes: Sequence[Outcome]) -> list[Row]:
    """Mean and sample standard deviation over seeds, by method and split.

    Args:
        outcomes: finished students, one for each method and seed.

    Returns:
        A row for each method and split, methods and splits in the order of their first outcome.
    """
    rows = []
    for method in dict.fromkeys(outcome.method for outcome in outcomes):
        mine = sorted((o for o in outcomes if o.method == method), key=lambda o: o.seed)
        for split in dict.fromkeys(split for outcome in mine for split in outcome.splits):
            having = [outcome for outcome in mine if split in outcome.splits]
            values = [by_metric(outcome.splits[split]) for outcome in having]
            names = list(dict.fromkeys(name for value in values for name in value))
            found = {name: [v[name] for v in values if name in v] for name in names}
            # Of students of an earlier version nobody knows, but all have the same samples.
            first = max((o.splits[split] for o in having), key=lambda m: len(m.coverage))
            rows.append(
                Row(
                    method=method,
                    teachers=having[0].teachers,
                    split=split,
                    seeds=[outcome.seed for outcome in having],
                    mean={name: mean(found[name]) for name in names},
                    std={name: _spread(found[name]) for name in names},
                    worst=first.worst,
                    groups_known=first.groups_known,
                    coverage=first.coverage,
                )
            )
    return rows


def summary_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The summary as MLflow names it: `<method>/test/worst_group_accuracy/mean` and `/std`.

    Args:
        outcomes: finished students.

    Returns:
        Mean and standard deviation of the worst-group accuracy on the test split,
        `agre_kd_minus_aver/test/worst_group_accuracy` where both methods share a seed, and where
        groups or classes have no sample, how many have (`test/groups_with_samples`, ...).
    """
    metrics: dict[str, float] = {}
    for row in summary(outcomes):
        if row.split == "test":
            metrics |= {f"test/{k}": v for k, v in coverage_metrics(row.coverage).items()}
            metrics[f"{row.method}/test/{_WGA}/mean"] = row.mean[_WGA]
            metrics[f"{row.method}/test/{_WGA}/std"] = row.std[_WGA]
    if difference := paired(outcomes, "agre_kd", "aver"):
        metrics[f"agre_kd_minus_aver/test/{_WGA}"] = difference.mean
    return metrics


def degraded_lines(outcomes: Sequence[Outcome], name: Callable[[str], str] = label) -> list[str]:
    """Which students lost teachers on the way, a line each (`fleet.on_teacher_loss: drop`).

    Args:
        outcomes: finished students.
        name: what people call a method.
    """
    return [f"{name(o.method)}, seed {o.seed}: {o.degraded}" for o in outcomes if o.degraded]


def render_degraded(lines: Sequence[str], console: Console) -> None:
    """Prints what `degraded_lines` says, if anything."""
    for line in lines:
        console.print(Text(f"degraded    {line}", style="yellow"), soft_wrap=True)


def agreement_metrics(diagnostics: Diagnostics) -> dict[str, float]:
    """Agreement of the ensemble with the biased model as MLflow names it.

    Args:
        diagnostics: of a job.

    Returns:
        Shares, `agreement/<split>/<case>` and `agreement/<split>/group/<group>/<case>`; the cases
        are those of `Agreement`.
    """
    metrics: dict[str, float] = {}
    for split, found in diagnostics.agreement.items():
        parts = {f"{GROUP}{name}/": shares for name, shares in found.groups.items()}
        for part, shares in {"": found.overall, **parts}.items():
            for case in CASES:
                metrics[f"agreement/{split}/{part}{case}"] = getattr(shares, case)
    return metrics


def paired(
    outcomes: Sequence[Outcome], method: str, against: str, split: str = "test"
) -> Paired | None:
    """Worst-group accuracy of one method minus another's, paired by seed.

    Args:
        outcomes: finished students.
        method: the first method's name.
        against: the second's.
        split: where both were measured.

    Returns:
        The difference, or None where the two share no seed.
    """
    by_seed = {
        name: {
            o.seed: o.splits[split].worst_group_accuracy
            for o in outcomes
            if o.method == name and split in o.splits
        }
        for name in (method, against)
    }
    seeds = sorted(by_seed[method].keys() & by_seed[against].keys())
    if not seeds:
        return None
    differences = [by_seed[method][seed] - by_seed[against][seed] for seed in seeds]
    return Paired(mean(differences), min(differences), max(differences), seeds)


def render(
    outcomes: Sequence[Outcome],
    members: Sequence[Member],
    console: Console,
    split: str = "test",
) -> None:
    """Prints the comparison: a table as wide as the console allows, and two lines below it.

    All figures are percent. Columns that do not fit are left out, the least important first;
    accuracies by group stand together or not at all. The best distilled student's worst-group
    accuracy is bold.

    Args:
        outcomes: finished students.
        members: the ensemble, for the line that says how good the teachers are.
        console: where to print.
        split: which split to show.
    """
    rows = [row for row in summary(outcomes) if row.split == split]
    if not rows:
        console.print("No student is finished yet.")
        return
    columns = fitting(_columns(rows), _importance, console.width)
    taught = [row for row in rows if is_distilled(row.method) and math.isfinite(row.mean[_WGA])]
    best = max(taught, key=lambda row: row.mean[_WGA], default=None)
    bold = (rows.index(best), _WGA) if best else None
    console.print(screen_table(columns, _heading(rows), bold))
    console.print()
    for line in _below(outcomes, members, split):
        console.print(Text(line))


def markdown(outcomes: Sequence[Outcome], members: Sequence[Member], split: str = "test") -> str:
    """The comparison as Markdown, for the description of the job's run.

    Args:
        outcomes: finished students.
        members: the ensemble.
        split: which split to show.

    Returns:
        The lines below the table of `render`, then its most important columns; empty without
        students.
    """
    rows = [row for row in summary(outcomes) if row.split == split]
    if not rows:
        return ""
    important = [block[0] for block in _columns(rows)]
    columns = [column for column in important if column.name in _IMPORTANCE[:4]]
    table = markdown_table(columns)
    return "\n\n".join([*reversed(_below(outcomes, members, split)), _heading(rows), table])


def write_csv(
    outcomes: Sequence[Outcome], path: Path, where: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Writes a row for each method, seed and split; accuracies are shares.

    The column `groups` holds the accuracy by evaluation group, as compact JSON; where the data
    have overlapping groups, two columns more hold the smallest of theirs, and all of them; where
    groups or classes have no sample in a split, a column `measured_over` says how many have.

    Args:
        outcomes: finished students.
        path: the file, replaced as a whole.
        where: further columns in front, by name: the same ones for each outcome.

    Raises:
        OSError: where it cannot be written.
    """
    places: Sequence[Mapping[str, Any]] = where or [{}] * len(outcomes)
    with (
        replacing(path) as draft,
        draft.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        overlapping = any(m.overlapping for o in outcomes for m in o.splits.values())
        partial = any(measured_over(m) for o in outcomes for m in o.splits.values())
        further = (WORST_OVERLAPPING, "overlapping") * overlapping + ("measured_over",) * partial
        writer.writerow((*(places[0] if places else ()), *CSV_HEADER, *further))
        for place, outcome in zip(places, outcomes, strict=True):
            for split, metrics in outcome.splits.items():
                writer.writerow(
                    (
                        *place.values(),
                        outcome.method,
                        outcome.teachers,
                        outcome.seed,
                        split,
                        round(metrics.accuracy, 6),
                        round(metrics.worst_group_accuracy, 6),
                        _compact(metrics.groups),
                        *(_overlapping(metrics) if overlapping else ()),
                        *([measured_over(metrics)] if partial else ()),
                    )
                )


def write_json(
    path: Path,
    outcomes: Sequence[Outcome],
    members: Sequence[Member],
    biased: Member | None,
    job: dict[str, Any],
    diagnostics: Diagnostics | None = None,
) -> None:
    """Writes everything that reports know about a job.

    The object has the keys `job`, `members`, `biased`, `outcomes` (with history), `summary` and
    `diagnostics`.
    A value that is not a finite number becomes null, which every JSON reader understands.

    Args:
        path: the file, replaced as a whole.
        outcomes: finished students.
        members: the ensemble.
        biased: the biased model, where the job has one.
        job: what to say about the job itself; values that JSON does not know become text.
        diagnostics: of the ensemble.

    Raises:
        OSError: where it cannot be written.
    """
    content = {
        "job": job,
        "members": [asdict(member) for member in members],
        "biased": asdict(biased) if biased else None,
        "outcomes": [outcome.to_json() for outcome in outcomes],
        "summary": [asdict(row) for row in summary(outcomes)],
        "diagnostics": asdict(diagnostics or Diagnostics()),
    }
    with replacing(path) as draft:
        text = json.dumps(
            _plain(content), ensure_ascii=False, allow_nan=False, indent=1, default=str
        )
        draft.write_text(text + "\n", encoding="utf-8")


def _columns(rows: list[Row]) -> list[list[Column]]:
    """Columns from left to right, in blocks that are shown together or not at all."""

    def column(name: str, header: str) -> Column:
        told = first.header(name, header)
        return figures(name, told, [_percent(row, name, several) for row in rows])

    first = max(rows, key=lambda row: len(row.coverage))

    several = any(len(row.seeds) > 1 for row in rows)

    groups = dict.fromkeys(name for row in rows for name in row.mean if name.startswith(GROUP))
    blocks = [
        [Column("method", "Method", [label(row.method) for row in rows], words=True)],
        [Column("teachers", "Teachers", [row.teachers for row in rows], words=True)],
        [column(_WGA, "Worst group" if first.groups_known else "Worst class")],
        [column("accuracy", "Accuracy")],
        [column(name, name.removeprefix(GROUP)) for name in groups],
        [column("balanced_accuracy", "Balanced")],
        [column("ece", "ECE")],
    ]
    if first.groups_known:
        blocks.insert(-1, [column("worst_class_accuracy", "Worst class")])
    if any(WORST_OVERLAPPING in row.mean for row in rows):
        blocks.insert(3, [column(WORST_OVERLAPPING, "Worst overlapping")])
    return [block for block in blocks if block]


_IMPORTANCE = (
    "method",
    _WGA,
    "accuracy",
    "teachers",
    GROUP,
    WORST_OVERLAPPING,
    "ece",
    "balanced_accuracy",
    "worst_class_accuracy",
)


def _importance(block: Sequence[Column]) -> int:
    name = block[0].name
    return _IMPORTANCE.index(GROUP if name.startswith(GROUP) else name)


def _percent(row: Row, name: str, several: bool) -> str:
    """A figure; where others have a deviation, one without keeps its place."""
    value = row.mean.get(name, math.nan)
    if math.isnan(value):
        figure = "–"
    else:
        figure = f"{100 * value:.1f}"
        if len(row.seeds) > 1:
            return f"{figure} ± {100 * row.std[name]:4.1f}"
    return f"{figure}       " if several else figure


def _heading(rows: list[Row]) -> str:
    counts = {len(row.seeds) for row in rows}
    many = f"{max(counts)}" if len(counts) == 1 else f"up to {max(counts)}"
    over = "one seed" if counts == {1} else f"mean ± sd over {many} seeds"
    return f"Accuracy on the {rows[0].split} split in %, {over}"


def _below(outcomes: Sequence[Outcome], members: Sequence[Member], split: str) -> list[str]:
    lines = []
    measured = [outcome.splits[split] for outcome in outcomes if split in outcome.splits]
    worst = max(measured, key=lambda metrics: len(metrics.coverage)).worst
    if teachers := _teachers(members, split):
        lines.append(f"Teachers' {worst}: {teachers}")
    if difference := paired(outcomes, "agre_kd", "aver", split):
        count = len(difference.seeds)
        reach = f"from {100 * difference.low:+.1f} to {100 * difference.high:+.1f}, {count} seeds"
        lines.append(
            f"{label('agre_kd')} against {label('aver')}, {worst} by seed: "
            f"{100 * difference.mean:+.1f} points ({reach if count > 1 else '1 seed'})"
        )
    return lines


def _teachers(members: Sequence[Member], split: str) -> str:
    parts = []
    for kind in dict.fromkeys(member.kind for member in members):
        shares = [
            member.metrics[split].worst_group_accuracy
            for member in members
            if member.kind == kind and split in member.metrics
        ]
        if shares:
            low, high = f"{100 * min(shares):.1f}", f"{100 * max(shares):.1f}"
            reach = low if low == high else f"{low} … {high}"
            parts.append(f"{len(shares)} {family(kind)} {reach}")
    return ", ".join(parts)


def _overlapping(metrics: Metrics) -> tuple[float | str, str]:
    worst = metrics.worst_overlapping_group_accuracy
    return "" if worst is None else round(worst, 6), _compact(metrics.overlapping)


def measured_over(metrics: Metrics) -> str:
    """`2 of 4 groups, 1 of 2 classes`; empty where all have samples."""
    counts = metrics.coverage.items()
    return ", ".join(f"{some} of {all_} {kind}" for kind, (some, all_) in counts if some < all_)


def _compact(shares: dict[str, float]) -> str:
    rounded = {name: _plain(round(share, 6)) for name, share in shares.items()}
    return json.dumps(rounded, ensure_ascii=False, separators=(",", ":"))


def by_metric(metrics: Metrics) -> dict[str, float]:
    """All figures of a model on a split, by the names of `Row.mean`."""
    groups = {f"{GROUP}{name}": accuracy for name, accuracy in metrics.groups.items()}
    further = {f"{OVERLAPPING}{name}": accuracy for name, accuracy in metrics.overlapping.items()}
    return {**metrics.scalars(), **groups, **further}


def _spread(values: list[float]) -> float:
    if not all(map(math.isfinite, values)):
        return math.nan
    return stdev(values) if len(values) > 1 else 0.0


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
