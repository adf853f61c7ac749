"""The comparison of runs: one table, shown on the screen, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from agrekd_ray.report import tables
from agrekd_ray.report.tables import Cell, Column, Table, figure_column, numbers, show, words
from agrekd_ray.report.tables import markdown as table_markdown
from agrekd_ray.results.intervals import INTERVAL, PairedDifference
from agrekd_ray.results.labels import label
from agrekd_ray.results.metrics import (
    ACCURACY,
    ECE,
    MISSING,
    STEPS,
    metric,
    metric_label,
)
from agrekd_ray.results.runs import SEEDLESS, Row, difference, settings
from agrekd_ray.tracking.files import replacing

_ENDS = ("low", "high", "seeds")
_LABEL, _SEEDS, _TEACHERS, _STATE, _DIFFERENCE = "label", "seeds", "teachers", "state", "difference"


@dataclass(frozen=True)
class Layout:
    """What a table shows.

    Attributes:
        split: whose metrics are compared, `test` or `val`.
        worst: the metric that rows are compared with the baseline by: of the worst group, or of
            the worst class where the data have no groups.
        sort: the metric that orders the rows.
        metrics: that were asked for, beside the usual ones.
        baseline: rows that the others are compared with; none for no such column.
        teacher_steps: what the teachers cost, or None.
    """

    split: str
    worst: str
    sort: str
    metrics: tuple[str, ...]
    baseline: tuple[Row, ...]
    teacher_steps: float | None

    @property
    def shown(self) -> list[str]:
        """Metrics from left to right; the cost has its own place."""
        usual = [self.worst, f"{self.split}/{ACCURACY}"]
        every = [*usual, self.sort, *self.metrics, f"{self.split}/{ECE}"]
        return [name for name in dict.fromkeys(every) if name != STEPS]

    @property
    def baseline_name(self) -> str:
        """The baseline, as a header has it."""
        if len(self.baseline) == 1:
            return self.baseline[0].label
        return "/".join(dict.fromkeys(row.name for row in self.baseline))


def render(rows: Sequence[Row], layout: Layout, console: Console) -> None:
    """Prints the table, as wide as the console allows, and what one must know to read it.

    Columns that do not fit are left out, the least important first, and named below. A label that
    would crowd out the figures has several lines.

    Args:
        rows: in order.
        layout: what to show.
        console: where to print.
    """
    best = next((i for i, row in enumerate(rows) if row.mean(layout.sort) is not None), None)
    bold = None if best is None else (best, layout.sort)
    dropped = show(_table(rows, layout), console, _importance(layout, rows), bold)
    console.print()
    for line in _notes(rows, layout):
        console.print(Text(line))
    if dropped:
        told = f"No room for: {', '.join(dropped)}; a wider window or a CSV file has them."
        console.print(Text(told, "dim"))


def write_markdown(rows: Sequence[Row], layout: Layout, path: Path) -> None:
    """Writes `markdown` to a file, which is replaced as a whole.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as draft:
        draft.write_text(markdown(rows, layout), encoding="utf-8")


def markdown(rows: Sequence[Row], layout: Layout) -> str:
    """The table as Markdown, with the same words around it.

    Args:
        rows: in order.
        layout: what to show.
    """
    table = _table(rows, layout)
    return "\n\n".join([table.title, table_markdown(table), *_notes(rows, layout)]) + "\n"


def write_csv(rows: Sequence[Row], layout: Layout, path: Path) -> None:
    """Writes a row for each row, metrics as MLflow has them (shares, not percent).

    A metric has three columns: its mean, `<metric>/sd` and `<metric>/seeds`, which counts the
    seeds that have it; and `<metric>/measured_over` where groups or classes have no sample.
    Whatever varies between rows has a column under its dotted path, and `runs` holds the ids.

    Args:
        rows: in order.
        layout: what to show.
        path: the file, replaced as a whole.

    Raises:
        OSError: it cannot be written.
    """
    varying = settings(rows)
    paths = dict.fromkeys(path for values in varying.values() for path in values)
    place = 1 if layout.baseline else 0
    measured = [f"{name}/measured_over" for name in layout.shown]
    lines = []
    for row in rows:
        mine = varying[id(row)]
        line: dict[str, Any] = {
            "label": row.label,
            "experiment": row.first.experiment,
            "method": row.first.method,
            **{path: "" if (v := mine.get(path)) is None else str(v) for path in paths},
            "teachers": row.first.teachers,
            "seeds": len(row.seeds),
        }
        for name in layout.shown[:place]:
            line |= _values(row, name)
        if layout.baseline:
            gain = difference(row, layout.baseline, layout.worst)
            line["difference"] = gain and gain.mean
            line |= {f"difference/{end}": gain and getattr(gain, end) for end in _ENDS}
        for name in layout.shown[place:]:
            line |= _values(row, name)
        line[STEPS] = row.mean(STEPS)
        line["state"] = row.state
        line["runs"] = " ".join(child.run_id for child in row.children)
        lines.append(line)
    tables.write_csv(lines, path, "label", measured)


def _values(row: Row, name: str) -> dict[str, Any]:
    """A metric's columns of a CSV file."""
    figure = row.figures.get(name)
    # The seeds of a trial are in its mean already.
    count = len(row.seeds) if row.first.number is not None else figure.count if figure else 0
    return {
        name: row.mean(name),
        f"{name}/measured_over": figure.part if figure else "",
        f"{name}/sd": row.spread(name),
        f"{name}/seeds": count if figure else 0,
    }


def _table(rows: Sequence[Row], layout: Layout) -> Table:
    metrics = [
        figure_column(name, [row.figures.get(name) for row in rows], metric_label(name))
        for name in layout.shown
    ]
    place = 1 if layout.baseline else 0
    counts = [len(row.seeds) for row in rows]
    columns = [
        words(_LABEL, "Run", [row.label for row in rows], folds=True),
        words(_TEACHERS, "Teachers", [row.first.teachers for row in rows]),
        numbers(_SEEDS, "Seeds", [str(count) if count else MISSING for count in counts]),
        *metrics[:place],
        *([_differences(rows, layout)] if layout.baseline else []),
        *metrics[place:],
        numbers(STEPS, "Cost (steps)", [metric(STEPS).text(row.mean(STEPS)) for row in rows]),
        words(_STATE, "State", [row.state for row in rows]),
    ]
    return Table(_title(rows, layout), columns)


def _importance(layout: Layout, rows: Sequence[Row]) -> list[str]:
    """Names of columns, the most important first. A state is worth little where all are done."""
    done = all(row.state == "finished" for row in rows)
    states = [_SEEDS, STEPS, _STATE] if done else [_STATE, _SEEDS, STEPS]
    rest = [name for name in layout.shown if name.endswith(f"/{ECE}")]
    first = [_LABEL, layout.sort, layout.worst, *layout.metrics, _DIFFERENCE]
    return list(dict.fromkeys([*first, f"{layout.split}/{ACCURACY}", *states, *rest, _TEACHERS]))


def _differences(rows: Sequence[Row], layout: Layout) -> Column:
    cells = [
        Cell("baseline")
        if any(row is baseline for baseline in layout.baseline)
        else _difference(difference(row, layout.baseline, layout.worst))
        for row in rows
    ]
    return Column(_DIFFERENCE, f"Δ {layout.baseline_name}", cells)


def _difference(found: PairedDifference | None) -> Cell:
    if found is None:
        return Cell(MISSING)
    interval = found.interval(", ")
    return Cell(found.points, f"[{interval}]" if interval else "")


def _title(rows: Sequence[Row], layout: Layout) -> str:
    several = any(row.spread(layout.worst) is not None for row in rows)
    over = ", mean ± sd over seeds" if several else ""
    split = {"test": "the test split", "val": "the validation split"}[layout.split]
    count = f"{len(rows)} rows" if len(rows) > 1 else "1 row"
    return f"Accuracy on {split} in %{over}; {count}, by {metric_label(layout.sort).lower()}"


def _notes(rows: Sequence[Row], layout: Layout) -> list[str]:
    notes = []
    worst = metric_label(f"test/{layout.worst.partition('/')[2]}").lower()
    if layout.baseline:
        notes.append(
            f"Δ: {worst} minus {layout.baseline_name}'s by seed, in points, with a {INTERVAL}, "
            "which is too narrow for few seeds."
        )
        if any(child.method == SEEDLESS for row in rows for child in row.children):
            notes.append(
                f"{label(SEEDLESS)} has no seeds: Δ holds it against every seed of the other."
            )
    if layout.teacher_steps is not None:
        notes.append(
            "Cost is training steps of the student, for one seed. The teachers' forward passes "
            f"cost {metric(STEPS).text(layout.teacher_steps)} more, for all rows together."
        )
    return notes
