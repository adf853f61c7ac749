"""The comparison of runs: on the screen, as CSV and as Markdown, out of the same columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from agrekd_ray.comparison.rows import SEEDLESS, Row, difference, settings
from agrekd_ray.results import over
from agrekd_ray.tracking.columns import (
    GAP,
    Column,
    figures,
    fitting,
    markdown_table,
    screen_table,
    write_columns,
)
from agrekd_ray.tracking.files import replacing
from agrekd_ray.tracking.intervals import CONFIDENCE, PairedDifference
from agrekd_ray.tracking.labels import label
from agrekd_ray.tracking.metrics import (
    ACCURACY,
    ECE,
    MISSING,
    STEPS,
    figure,
    is_share,
    metric_label,
)

_LABEL, _SEEDS, _TEACHERS, _STATE, _DIFFERENCE = "label", "seeds", "teachers", "state", "difference"
_NARROWEST, _LARGEST_SHARE = 24, 0.45


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
        return [metric for metric in dict.fromkeys(every) if metric != STEPS]

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
    every = _columns(rows, layout)
    ranks = {name: rank for rank, name in enumerate(_importance(layout, rows))}
    every = [_wrapped(c, console.width, every) if c.name == _LABEL else c for c in every]
    columns = fitting([[c] for c in every], lambda block: ranks[block[0].name], console.width)
    best = next((i for i, row in enumerate(rows) if row.mean(layout.sort) is not None), None)
    bold = None if best is None else (best, layout.sort)
    console.print(Text(_heading(rows, layout)))
    console.print(screen_table(columns, None, bold))
    dropped = [c.header.strip() for c in every if c not in columns]
    console.print()
    for line in _notes(rows, layout):
        console.print(Text(line))
    if dropped:
        console.print(
            Text(
                f"No room for: {', '.join(dropped)}; a wider window or a CSV file has them.", "dim"
            )
        )


def markdown(rows: Sequence[Row], layout: Layout) -> str:
    """The table as Markdown, with the same words around it.

    Args:
        rows: in order.
        layout: what to show.
    """
    table = markdown_table(_columns(rows, layout))
    return "\n\n".join([_heading(rows, layout), table, *_notes(rows, layout)]) + "\n"


def write_markdown(rows: Sequence[Row], layout: Layout, path: Path) -> None:
    """Writes `markdown` to a file, which is replaced as a whole.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as draft:
        draft.write_text(markdown(rows, layout), encoding="utf-8")


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
    columns = _columns(rows, layout)
    varying = settings(rows)
    paths = dict.fromkeys(path for values in varying.values() for path in values)
    own = [Column(p, p, [], data={p: [varying[id(r)].get(p) for r in rows]}) for p in paths]
    runs = [" ".join(child.run_id for child in row.children) for row in rows]
    about = {
        "experiment": [row.first.experiment for row in rows],
        "method": [row.first.method for row in rows],
    }
    write_columns(
        [
            columns[0],
            Column("about", "", [], data=about),
            *own,
            *columns[1:],
            Column("runs", "", [], data={"runs": runs}),
        ],
        path,
    )


def _columns(rows: Sequence[Row], layout: Layout) -> list[Column]:
    labels = [row.label for row in rows]
    teachers = [row.first.teachers for row in rows]
    metrics = [_metric(rows, metric, metric_label(metric)) for metric in layout.shown]
    place = 1 if layout.baseline else 0
    states = [row.state for row in rows]
    return [
        Column(_LABEL, "Run", labels, True, {"label": labels}),
        Column(_TEACHERS, "Teachers", teachers, True, {"teachers": teachers}),
        _seeds(rows),
        *metrics[:place],
        *([_differences(rows, layout)] if layout.baseline else []),
        *metrics[place:],
        _metric(rows, STEPS, "Cost (steps)", spread=False),
        Column(_STATE, "State", states, True, {"state": states}),
    ]


def _importance(layout: Layout, rows: Sequence[Row]) -> list[str]:
    """Names of columns, the most important first. A state is worth little where all are done."""
    done = all(row.state == "finished" for row in rows)
    asked = list(layout.metrics)
    states = [_SEEDS, STEPS, _STATE] if done else [_STATE, _SEEDS, STEPS]
    rest = [m for m in layout.shown if m.endswith(f"/{ECE}")]
    first = [_LABEL, layout.sort, layout.worst, *asked, _DIFFERENCE]
    order = [*first, f"{layout.split}/{ACCURACY}", *states, *rest, _TEACHERS]
    return list(dict.fromkeys(order))


def _metric(rows: Sequence[Row], metric: str, header: str, spread: bool = True) -> Column:
    means = [row.mean(metric) for row in rows]
    spreads = [row.spread(metric) if spread else None for row in rows]
    right = [f" ± {figure(metric, sd):>4}" if sd is not None else "" for sd in spreads]
    width = max(map(len, right), default=0)
    texts = [
        figure(metric, mean) + tail.ljust(width) for mean, tail in zip(means, right, strict=True)
    ]
    parts = [row.part(metric) for row in rows]
    data: dict[str, list[Any]] = {metric: [_rounded(value) for value in means]}
    if any(parts):
        data[f"{metric}/measured_over"] = parts
    if len(set(parts)) == 1:
        header = over(header, parts[0])
    else:
        told = [over(text, part) for text, part in zip(texts, parts, strict=True)]
        texts = [text.ljust(max(map(len, told))) for text in told]
    if spread:
        data[f"{metric}/sd"] = [_rounded(value) for value in spreads]
        data[f"{metric}/seeds"] = [_counted(row, metric) for row in rows]
    return figures(metric, header, texts, data)


def _counted(row: Row, metric: str) -> int:
    """Seeds that a figure is the mean of; those of a trial are in it already."""
    values = row.values(metric)
    return len(row.seeds) if values and row.first.number is not None else len(values)


def _seeds(rows: Sequence[Row]) -> Column:
    counts = [len(row.seeds) for row in rows]
    return figures(_SEEDS, "Seeds", [str(n) if n else MISSING for n in counts], {"seeds": counts})


def _differences(rows: Sequence[Row], layout: Layout) -> Column:
    found = [difference(row, layout.baseline, layout.worst) for row in rows]
    names = ("difference", "difference/low", "difference/high", "difference/seeds")
    parts = [(d.mean, d.low, d.high, d.seeds) if d else (None, None, None, None) for d in found]
    data: Mapping[str, list[Any]] = {
        name: [_rounded(part[place]) for part in parts] for place, name in enumerate(names)
    }
    texts = [
        "baseline" if any(row is b for b in layout.baseline) else _difference(d)
        for row, d in zip(rows, found, strict=True)
    ]
    ends = max((len(text) for text in texts if "[" in text), default=0)
    # Without an interval, the mean still stands below the other means.
    aligned = [text.ljust(ends) if "[" in text or text[:1] in "+-" else text for text in texts]
    return figures(_DIFFERENCE, f"Δ {layout.baseline_name}", aligned, dict(data))


def _difference(found: PairedDifference | None) -> str:
    if found is None:
        return MISSING
    text = f"{100 * found.mean:+.1f}".rjust(5)
    if found.low is None or found.high is None:
        return text.strip()
    return f"{text} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _wrapped(column: Column, width: int, every: Sequence[Column]) -> Column:
    """The label's column, narrow enough for figures beside it."""
    if sum(c.width + GAP for c in every) <= width:
        return column
    most = max(_NARROWEST, int(_LARGEST_SHARE * width))
    cells = [
        "\n".join(textwrap.wrap(text, most, subsequent_indent="  ", break_on_hyphens=False))
        for text in column.cells
    ]
    return replace(column, cells=cells)


def _heading(rows: Sequence[Row], layout: Layout) -> str:
    several = any(row.spread(layout.worst) is not None for row in rows)
    over = ", mean ± sd over seeds" if several else ""
    unit = " in %" if is_share(layout.worst) else ""
    words = {"test": "the test split", "val": "the validation split"}[layout.split]
    count = f"{len(rows)} rows" if len(rows) > 1 else "1 row"
    return f"Accuracy on {words}{unit}{over}; {count}, by {metric_label(layout.sort).lower()}"


def _notes(rows: Sequence[Row], layout: Layout) -> list[str]:
    notes = []
    worst = metric_label(f"test/{layout.worst.partition('/')[2]}").lower()
    if layout.baseline:
        notes.append(
            f"Δ: {worst} minus {layout.baseline_name}'s by seed, in points, with a "
            f"{100 * CONFIDENCE:.0f} % bootstrap interval, which is too narrow for few seeds."
        )
        if any(child.method == SEEDLESS for row in rows for child in row.children):
            notes.append(
                f"{label(SEEDLESS)} has no seeds: Δ holds it against every seed of the other."
            )
    if layout.teacher_steps is not None:
        notes.append(
            "Cost is training steps of the student, for one seed. The teachers' forward passes "
            f"cost {figure(STEPS, layout.teacher_steps)} more, for all rows together."
        )
    return notes


def _rounded(value: float | int | None) -> float | int | None:
    return round(value, 6) if isinstance(value, float) else value
