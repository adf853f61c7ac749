"""What people see of a study: tables on the screen and in Markdown, files, plots and its page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from agrekd_ray.files import exists
from agrekd_ray.report.archive import RESULTS, read_study, write_results
from agrekd_ray.report.facts import Fact, as_yaml, date, run_facts
from agrekd_ray.report.job import JOB, degraded_lines, render_degraded, write_csv
from agrekd_ray.report.study_plots import study_plots
from agrekd_ray.report.style import draw_plots
from agrekd_ray.report.tables import (
    Cell,
    Table,
    difference_cell,
    figure_column,
    fits,
    words,
)
from agrekd_ray.report.tables import markdown as table_markdown
from agrekd_ray.report.tables import show as show_table
from agrekd_ray.results.intervals import INTERVAL
from agrekd_ray.results.labels import label
from agrekd_ray.results.metrics import ACCURACY, WORST_GROUP, accuracy_of, short_paths
from agrekd_ray.results.points import in_words
from agrekd_ray.results.study import OURS, Gain, Panel, StudyResult, gain_in_words
from agrekd_ray.tracking.files import replacing


def publish_files(result: StudyResult, folder: Path, *, anew: bool = True) -> None:
    """Write results.json, results.csv, results.md and the plots.

    Args:
        result: of the study.
        folder: of it.
        anew: false writes what is missing and leaves the rest as it is.

    Raises:
        OSError: where one cannot be written.
    """
    if anew or not exists(folder / "results.csv"):
        where = [
            {key: in_words(value) for key, value in point.at.items()}
            | ({} if point.draw is None else {"draw": point.draw})
            for point in result.points
            for _ in point.outcomes
        ]
        write_csv(result.outcomes, folder / "results.csv", where)
    if anew:
        write_results(folder / RESULTS, result.to_json())
    if anew or not exists(folder / "results.md"):
        with replacing(folder / "results.md") as draft:
            draft.write_text(f"# {result.name}\n\n{markdown(result)}\n", encoding="utf-8")
    draw_plots(folder / "plots", study_plots(result), anew=anew)


def show(result: StudyResult, console: Console) -> None:
    """Prints worst-group accuracy by method and place, then what AGRE-KD gains and how surely."""
    for panel in result.panels:
        console.print()
        title = _title(result, panel, accuracy_of(result.worst).capitalize())
        table = _pivot(result, panel, WORST_GROUP, title)
        show_table(table if fits(table, console.width) else _long(result, panel, title), console)
    gains = list(_gain_lines(result))
    if gains:
        console.print()
    for place, lines in gains:
        if place:
            console.print(Text(place, style="bold"))
        for line in lines:
            console.print(Text(line))
    for point in result.points:
        lost = degraded_lines(point.outcomes)
        render_degraded([f"{point.label}: {line}" for line in lost], console)
    console.print()


def markdown(result: StudyResult) -> str:
    """Tables of worst-group accuracy and accuracy, and the gains, as Markdown."""
    parts = [f"*{result.unfinished.capitalize()}.*"] if result.unfinished else []
    for metric, what in (
        (WORST_GROUP, accuracy_of(result.worst).capitalize()),
        (ACCURACY, "Accuracy"),
    ):
        for panel in result.panels:
            title = _title(result, panel, what)
            parts += [title, table_markdown(_pivot(result, panel, metric, title))]
    for place, lines in _gain_lines(result):
        parts.append("\n".join([*([f"{place}:", ""] if place else []), *(f"- {x}" for x in lines)]))
    return "\n\n".join(parts)


def _title(result: StudyResult, panel: Panel, what: str) -> str:
    source = f"; in brackets: {result.published.source}" if result.published else ""
    place = f"{panel.where}. " if panel.where else ""
    return f"{place}{result.heading(what)}{source}"


def _pivot(result: StudyResult, panel: Panel, metric: str, title: str) -> Table:
    """A row a method, a column a value of the last swept key."""
    names = panel.columns if result.sweep else [result.worst.capitalize()]
    columns = [words("method", "Method", map(label, panel.methods))]
    # One part for all places stands in the title; those that differ stand in the cells.
    parts = "title" if result.worst not in ("worst group", "worst class") else "cells"
    for number, (at, name) in enumerate(zip(panel.places, names, strict=True)):
        figures = [(result.row(at, method) or {}).get(metric) for method in panel.methods]
        published = [result.published_at(at, method, metric) for method in panel.methods]
        columns.append(figure_column(str(number), figures, name, published, parts))
    return Table(title, columns)


def _long(result: StudyResult, panel: Panel, title: str) -> Table:
    """A row a place and method, for narrow screens."""
    last = next(reversed(list(result.sweep)), "")
    shown = [(at, m) for at in panel.places for m in panel.methods if result.row(at, m)]
    places = [in_words(at[last]) if last else "" for at, _ in shown]
    first = ["" if n and places[n - 1] == text else text for n, text in enumerate(places)]
    columns = [
        words("place", short_paths(result.sweep).get(last, ""), first),
        words("method", "Method", [label(method) for _, method in shown]),
    ]
    rows = [result.row(at, method) or {} for at, method in shown]
    parts = "title" if result.worst not in ("worst group", "worst class") else "cells"
    for metric, header in ((WORST_GROUP, result.worst.capitalize()), (ACCURACY, "Accuracy")):
        published = [result.published_at(at, method, metric) for at, method in shown]
        figures = [row.get(metric) for row in rows]
        columns.append(figure_column(metric, figures, header, published, parts))
    return Table(title, columns if last else columns[1:])


def _gain_lines(result: StudyResult) -> Iterator[tuple[str, Sequence[str]]]:
    for at in result.places:
        lines = [gain_in_words(result, gain) for gain in result.gains if gain.at == at]
        if lines:
            yield (result.place_name(at) if result.sweep else ""), lines


# --- the page --------------------------------------------------------------------------------


def verdict(result: StudyResult) -> str:
    """The study in a sentence: where AGRE-KD gains over AVER, and where it does not."""
    begin = f"{result.unfinished.capitalize()}. " if result.unfinished else ""
    gains = [gain for gain in result.gains if gain.against == "aver"]
    if not gains:
        return f"{begin}The study does not hold AGRE-KD against AVER."
    best = max(gains, key=lambda gain: gain.difference.mean)
    worst = min(gains, key=lambda gain: gain.difference.mean)
    ahead = sum(map(_sure, gains))
    text = f"{label(OURS)} against {label('aver')}, {result.worst}: {_points(best)}"
    if len(gains) > 1:
        text += f" at best ({result.place_name(best.at)}), {_points(worst)} at worst"
        text += f" ({result.place_name(worst.at)}); the interval is above 0 at {ahead} of"
        text += f" {len(gains)} places"
    return f"{begin}{text}."


def content(folder: Path) -> dict[str, Any]:
    """What the template needs of the study in a folder, besides its plots."""
    result = read_study(folder)
    return {
        "kind": "study",
        "name": result.name,
        "date": date(result.folder),
        "headline": verdict(result),
        "remarks": [],
        "facts": _facts(result, folder),
        "over": result.heading(),
        "worst": result.worst,
        "panels": [(panel.where, _with_gains(result, panel)) for panel in result.panels],
        "accuracies": [
            (panel.where, _pivot(result, panel, ACCURACY, panel.where or result.heading()))
            for panel in result.panels
        ],
        **dict.fromkeys(("weights", "influence", "agreement", "teachers")),
        "configuration": [("The study", as_yaml(result.settings))],
        "versions": result.versions,
    }


def _facts(result: StudyResult, folder: Path) -> list[Fact]:
    names = short_paths(result.sweep)
    seeds = sorted({outcome.seed for outcome in result.outcomes})
    return [
        *(Fact(f"Sweep: {names[k]}", ", ".join(map(in_words, v))) for k, v in result.sweep.items()),
        Fact("Draws of data and teachers", ", ".join(map(str, result.draws)) or "one"),
        Fact("Splits", result.splits),
        Fact("Seeds", ", ".join(map(str, seeds))),
        Fact("Methods", ", ".join(map(label, result.methods))),
        Fact("In brackets", result.published.source if result.published else ""),
        *run_facts(folder, result.cost, f"agrekd run {shlex.quote(str(folder / JOB))}"),
    ]


def _with_gains(result: StudyResult, panel: Panel) -> Table:
    """Methods down, places across, then `AGRE-KD − AVER`; strong where it is above 0 everywhere."""
    table = _pivot(result, panel, WORST_GROUP, panel.where or result.heading())
    strong = {number for number, method in enumerate(panel.methods) if method == OURS}
    for other in panel.methods:
        gains = [result.gain(at, other) for at in panel.places]
        if not any(gains):
            continue
        if all(gain and _sure(gain) for gain in gains):
            strong.add(table.size)
        cells = [difference_cell(gain.difference if gain else None) for gain in gains]
        line = [Cell(f"{label(OURS)} − {label(other)}"), *cells]
        for column, cell in zip(table.columns, line, strict=True):
            column.cells.append(cell)
    return replace(table, strong=frozenset(strong))


def _sure(gain: Gain) -> bool:
    """Whether the whole interval is above 0."""
    return gain.difference.low is not None and gain.difference.low > 0


def _points(gain: Gain) -> str:
    interval = gain.difference.interval()
    return f"{gain.difference.points} points" + (f" ({INTERVAL} {interval})" if interval else "")
