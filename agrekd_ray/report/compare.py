"""The comparison of runs: one table, shown on the screen, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    def parts(self) -> dict[str, Sequence[Row]]:
        """Students, and the trials of searches, whose figures are means; by what they are."""
        trials = [row for row in self.rows if row.first.number is not None]
        students = [row for row in self.rows if row.first.number is None]
        return {what: rows for what, rows in (("row", students), ("trial", trials)) if rows}

    @property
    def tables(self) -> list[Table]:
        """One of students and one of trials, where they are there."""
        return [self._table(what, rows) for what, rows in self.parts.items()]

    def _table(self, what: str, rows: Sequence[Row]) -> Table:
        """A row each; metrics as means over seeds with their standard deviations."""
        metrics = [
            figure_column(name, [row.figures.get(name) for row in rows], metric_label(name))
            for name in self.shown
        ]
        if self.baseline:
            cells = [Cell("baseline") if r in self.baseline else self._gain(r) for r in rows]
            metrics.insert(1, Column(_DIFFERENCE, f"Δ {self.baseline_name}", cells))
        about = [(row.label, row.first.teachers, self._seeds(row)) for row in rows]
        ends = [(metric(STEPS).text(row.mean(STEPS)), row.state) for row in rows]
        columns = [
            *texts({_LABEL: "Run", _TEACHERS: "Teachers", _SEEDS: "Seeds"}, about, [_SEEDS]),
            *metrics,
            *texts({STEPS: "Cost (steps)", _STATE: "State"}, ends, [STEPS]),
        ]
        several = any(row.spread(self.worst) is not None for row in rows)
        over = ", mean ± sd over seeds" if several else ""
        over = ", each the mean of its seeds" if what == "trial" else over
        split = {"test": "the test split", "val": "the validation split"}[self.split]
        count = f"{len(rows)} {what}{'s' * (len(rows) > 1)}"
        by = metric_label(self.sort).lower()
        return Table(f"Accuracy on {split} in %{over}; {count}, by {by}", columns)

    def _seeds(self, row: Row) -> str:
        """How many seeds a row has, or of how many the figures are: `2 of 3`."""
        every = len(row.seeds)
        figure = row.figures.get(self.worst)
        if row.first.number is None and figure and figure.count < every:
            return f"{figure.count} of {every}"
        return str(every or MISSING)

    def _gain(self, row: Row) -> Cell:
        """The difference to the baseline; over how many seeds, where those are not all shown."""
        gain = difference(row, self.baseline, self.worst)
        cell = difference_cell(gain)
        if gain is None or row.first.number is not None:
            return cell
        jobs = {child.parent for child in row.children}
        beside = [r for r in self.baseline if jobs & {child.parent for child in r.children}]
        shown = [row, *(beside or self.baseline)]
        counts = {r.figures[self.worst].count for r in shown if r.first.method != SEEDLESS}
        if counts <= {gain.seeds}:
            return cell
        seeds = f"{gain.seeds} seed{'s' * (gain.seeds > 1)}"
        return replace(cell, spread=f"({', '.join(filter(None, (gain.interval(), seeds)))})")

    @property
    def notes(self) -> list[str]:
        """What one must know to read the table."""
        notes = []
        worst = metric_label(f"test/{self.worst.partition('/')[2]}").lower()
        if self.baseline:
            notes.append(
                f"Δ: {worst} minus {self.baseline_name}'s by seed, in points, with a {INTERVAL} "
                "over the seeds that both have, which is too narrow for few seeds and holds for "
                "one draw of data and teachers only."
            )
            if any(child.method == SEEDLESS for row in self.rows for child in row.children):
                notes.append(
                    f"{label(SEEDLESS)} has no seeds: Δ holds it against every seed of the other."
                )
        named = [row.label.count("=") for row in self.rows]
        varying = settings(self.rows).values()
        if any(len(values) > count for values, count in zip(varying, named, strict=True)):
            notes.append(
                "A label has what tells the rows of one method apart; a CSV file (--csv) has all "
                "settings that vary."
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
        dropped: dict[str, None] = {}
        for table, rows in zip(self.tables, self.parts.values(), strict=True):
            measured = [n for n, row in enumerate(rows) if self.sort in row.figures]
            bold = (measured[0], self.sort) if measured else None
            dropped |= dict.fromkeys(tables.show(table, console, [*first, *last], bold))
            console.print()
        for line in self.notes:
            console.print(Text(line))
        if dropped:
            text = f"No room for: {', '.join(dropped)}; a wider window or a CSV file has them."
            console.print(Text(text, "dim"))

    def markdown(self) -> str:
        """The tables as Markdown, with the same words around them."""
        shown = [text for table in self.tables for text in (table.title, tables.markdown(table))]
        return "\n\n".join([*shown, *self.notes]) + "\n"

    def write_csv(self, path: Path) -> None:
        """Writes a row for each row, metrics as MLflow has them (shares, not percent).

        A metric has three columns: its mean, `<metric>/sd` and `<metric>/seeds`, which counts the
        seeds that have it; and `<metric>/measured_over` where groups or classes have no sample.
        Whatever varies between rows has a column under its dotted path, `kind` tells students from
        trials, and `runs` holds the ids.

        Raises:
            OSError: it cannot be written.
        """
        varying = settings(self.rows)
        paths = dict.fromkeys(path for values in varying.values() for path in values)
        lines = []
        for row in self.rows:
            line: dict[str, Any] = {"label": row.label, "experiment": row.first.experiment}
            line["kind"] = "student" if row.first.number is None else "trial"
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
                if gain and row.first.number is not None:  # one pair of means over these
                    line["difference/seeds"] = len(row.seeds)
            line |= {STEPS: row.mean(STEPS), "state": row.state}
            line["runs"] = " ".join(child.run_id for child in row.children)
            lines.append(line)
        tables.write_csv(lines, path, "label", [f"{name}/measured_over" for name in self.shown])
