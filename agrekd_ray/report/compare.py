"""The comparison of runs: one table, shown on the screen, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from agrekd_ray.report import tables
from agrekd_ray.report.tables import Cell, Column, Table, difference_cell, figure_column, texts
from agrekd_ray.results.intervals import INTERVAL
from agrekd_ray.results.metrics import ACCURACY, ECE, MISSING, STEPS, label, metric, metric_label
from agrekd_ray.results.runs import SEEDLESS, Row, difference, settings

_ENDS = ("low", "high", "seeds")
_LABEL, _SEEDS, _TEACHERS, _STATE, _DIFFERENCE = "label", "seeds", "teachers", "state", "difference"


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        rows: in order.
        split: whose metrics are compared, `test` or `val`.
        worst: the metric that rows are compared with the baseline by: of the worst group, or of
            the worst class where the data have no groups.
        sort: the metric that orders the rows.
        metrics: that were asked for, beside the usual ones.
        baseline: rows that the others are compared with; none for no such column.
        teacher_steps: what the teachers cost, or None.
    """

    rows: Sequence[Row]
    split: str
    worst: str
    sort: str
    metrics: Sequence[str] = ()
    baseline: Sequence[Row] = ()
    teacher_steps: float | None = None

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

    @property
    def table(self) -> Table:
        """A row each; metrics as means over seeds with their standard deviations."""
        rows = self.rows
        metrics = [
            figure_column(name, [row.figures.get(name) for row in rows], metric_label(name))
            for name in self.shown
        ]
        if self.baseline:
            gains = (difference_cell(difference(row, self.baseline, self.worst)) for row in rows)
            marked = zip(rows, gains, strict=True)
            cells = [Cell("baseline") if row in self.baseline else gain for row, gain in marked]
            metrics.insert(1, Column(_DIFFERENCE, f"Δ {self.baseline_name}", cells))
        about = [(r.label, r.first.teachers, str(len(r.seeds) or MISSING)) for r in rows]
        ends = [(metric(STEPS).text(row.mean(STEPS)), row.state) for row in rows]
        columns = [
            *texts({_LABEL: "Run", _TEACHERS: "Teachers", _SEEDS: "Seeds"}, about, [_SEEDS]),
            *metrics,
            *texts({STEPS: "Cost (steps)", _STATE: "State"}, ends, [STEPS]),
        ]
        several = any(row.spread(self.worst) is not None for row in rows)
        over = ", mean ± sd over seeds" if several else ""
        split = {"test": "the test split", "val": "the validation split"}[self.split]
        count = f"{len(rows)} rows" if len(rows) > 1 else "1 row"
        by = metric_label(self.sort).lower()
        return Table(f"Accuracy on {split} in %{over}; {count}, by {by}", columns)

    @property
    def notes(self) -> list[str]:
        """What one must know to read the table."""
        notes = []
        worst = metric_label(f"test/{self.worst.partition('/')[2]}").lower()
        if self.baseline:
            notes.append(
                f"Δ: {worst} minus {self.baseline_name}'s by seed, in points, with a {INTERVAL}, "
                "which is too narrow for few seeds."
            )
            if any(child.method == SEEDLESS for row in self.rows for child in row.children):
                notes.append(
                    f"{label(SEEDLESS)} has no seeds: Δ holds it against every seed of the other."
                )
        if self.teacher_steps is not None:
            notes.append(
                "Cost is training steps of the student, for one seed. The teachers' forward passes "
                f"cost {metric(STEPS).text(self.teacher_steps)} more, for all rows together."
            )
        return notes

    def render(self, console: Console) -> None:
        """Prints the table, as wide as the console allows, and its notes.

        Columns that do not fit are left out, the least important first, and named below. A label
        that would crowd out the figures has several lines.
        """
        # A state is worth little where all are done.
        done = all(row.state == "finished" for row in self.rows)
        states = [_SEEDS, STEPS, _STATE] if done else [_STATE, _SEEDS, STEPS]
        first = [_LABEL, self.sort, self.worst, *self.metrics, _DIFFERENCE]
        last = [f"{self.split}/{ACCURACY}", *states, f"{self.split}/{ECE}", _TEACHERS]
        measured = [n for n, row in enumerate(self.rows) if self.sort in row.figures]
        bold = (measured[0], self.sort) if measured else None
        dropped = tables.show(self.table, console, [*first, *last], bold)
        console.print()
        for line in self.notes:
            console.print(Text(line))
        if dropped:
            text = f"No room for: {', '.join(dropped)}; a wider window or a CSV file has them."
            console.print(Text(text, "dim"))

    def markdown(self) -> str:
        """The table as Markdown, with the same words around it."""
        table = self.table
        return "\n\n".join([table.title, tables.markdown(table), *self.notes]) + "\n"

    def write_csv(self, path: Path) -> None:
        """Writes a row for each row, metrics as MLflow has them (shares, not percent).

        A metric has three columns: its mean, `<metric>/sd` and `<metric>/seeds`, which counts the
        seeds that have it; and `<metric>/measured_over` where groups or classes have no sample.
        Whatever varies between rows has a column under its dotted path, and `runs` holds the ids.

        Raises:
            OSError: it cannot be written.
        """
        varying = settings(self.rows)
        paths = dict.fromkeys(path for values in varying.values() for path in values)
        lines = []
        for row in self.rows:
            line: dict[str, Any] = {"label": row.label, "experiment": row.first.experiment}
            line["method"] = row.first.method
            for setting in paths:
                line[setting] = "" if (v := varying[row].get(setting)) is None else str(v)
            line |= {"teachers": row.first.teachers, "seeds": len(row.seeds)}
            for name in self.shown:
                figure = row.figures.get(name)
                line[name] = row.mean(name)
                line[f"{name}/measured_over"] = figure.part if figure else ""
                line[f"{name}/sd"] = row.spread(name)
                count = figure.count if figure else 0
                # The seeds of a trial are in its mean already.
                trial = count and row.first.number is not None
                line[f"{name}/seeds"] = len(row.seeds) if trial else count
            if self.baseline:
                gain = difference(row, self.baseline, self.worst)
                line["difference"] = gain and gain.mean
                line |= {f"difference/{end}": gain and getattr(gain, end) for end in _ENDS}
            line |= {STEPS: row.mean(STEPS), "state": row.state}
            line["runs"] = " ".join(child.run_id for child in row.children)
            lines.append(line)
        tables.write_csv(lines, path, "label", [f"{name}/measured_over" for name in self.shown])
