"""What a study leaves for people: tables on the screen and in Markdown, CSV, JSON and plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from agrekd_ray.config.sweep import in_words, key_names
from agrekd_ray.files import exists
from agrekd_ray.results import over
from agrekd_ray.study.plots import gains_plot, sweep_plots
from agrekd_ray.study.results import (
    ACCURACY,
    OURS,
    WGA,
    Figure,
    Panel,
    StudyResult,
    gain_in_words,
    heading,
)
from agrekd_ray.tracking import tables
from agrekd_ray.tracking.columns import Column, figures, markdown_table, screen_table
from agrekd_ray.tracking.files import replacing
from agrekd_ray.tracking.labels import accuracy_of, label


def publish_files(result: StudyResult, folder: Path, *, anew: bool = True) -> None:
    """Write results.json, results.csv, results.md and the plots.

    Args:
        result: of the study.
        folder: of it.
        anew: false writes what is missing and leaves the rest as it is.

    Raises:
        OSError: where one cannot be written.
    """
    where: list[Mapping[str, Any]] = []
    outcomes = []
    for point in result.points:
        place = {key: in_words(value) for key, value in point.at.items()}
        drawn = {} if point.draw is None else {"draw": point.draw}
        where += [{**place, **drawn}] * len(point.outcomes)
        outcomes += point.outcomes
    if anew or not exists(folder / "results.csv"):
        tables.write_csv(outcomes, folder / "results.csv", where)
    if anew:
        with replacing(folder / "results.json") as draft:
            text = json.dumps(result.to_json(), ensure_ascii=False, indent=1)
            draft.write_text(text + "\n", encoding="utf-8")
    if anew or not exists(folder / "results.md"):
        with replacing(folder / "results.md") as draft:
            draft.write_text(f"# {result.name}\n\n{markdown(result)}\n", encoding="utf-8")
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    sweep_plots(result, plots, anew=anew)
    if anew or not exists(plots / "gains.png"):
        gains_plot(result, plots / "gains.png")


def show(result: StudyResult, console: Console) -> None:
    """Prints worst-group accuracy by method and place, then what AGRE-KD gains and how surely."""
    for panel in result.panels:
        console.print()
        columns = _pivot(result, panel, WGA)
        if sum(column.width + 2 for column in columns) > console.width:
            columns = _long(result, panel)
        console.print(Text(_title(result, panel, _worst(result))))
        console.print(screen_table(columns, None, None))
    gains = list(_gain_lines(result))
    if gains:
        console.print()
    for place, lines in gains:
        if place:
            console.print(Text(place, style="bold"))
        for line in lines:
            console.print(Text(line))
    for point in result.points:
        lost = tables.degraded_lines(point.outcomes)
        tables.render_degraded([f"{point.label}: {line}" for line in lost], console)
    console.print()


def markdown(result: StudyResult) -> str:
    """Tables of worst-group accuracy and accuracy, and the gains, as Markdown."""
    parts = [f"*{result.unfinished.capitalize()}.*"] if result.unfinished else []
    for metric, words in ((WGA, _worst(result)), (ACCURACY, "Accuracy")):
        for panel in result.panels:
            parts.append(_title(result, panel, words))
            parts.append(markdown_table(_pivot(result, panel, metric)))
    for place, lines in _gain_lines(result):
        parts.append("\n".join([*([f"{place}:", ""] if place else []), *(f"- {x}" for x in lines)]))
    return "\n\n".join(parts)


def _worst(result: StudyResult) -> str:
    return accuracy_of(result.worst).capitalize()


def _title(result: StudyResult, panel: Panel, what: str) -> str:
    source = f"; in brackets: {result.published.source}" if result.published else ""
    place = f"{panel.where}. " if panel.where else ""
    return f"{place}{heading(result, what)}{source}"


def _pivot(result: StudyResult, panel: Panel, metric: str) -> list[Column]:
    """A row a method, a column a value of the last swept key."""
    names = panel.columns if result.sweep else [result.worst.capitalize()]
    columns = [Column("method", "Method", [label(m) for m in panel.methods], words=True)]
    for number, (at, name) in enumerate(zip(panel.places, names, strict=True)):
        cells = [_cell(result, result.figure(at, method), metric) for method in panel.methods]
        columns.append(figures(str(number), name, cells))
    return columns


def _long(result: StudyResult, panel: Panel) -> list[Column]:
    """A row a place and method, for narrow screens."""
    last = next(reversed(list(result.sweep)), "")
    rows = [f for f in result.figures if f.at in panel.places]
    first = [in_words(f.at[last]) if last else "" for f in rows]
    shown = ["" if n and first[n - 1] == text else text for n, text in enumerate(first)]
    columns = [
        Column("place", key_names(result.sweep).get(last, ""), shown, words=True),
        Column("method", "Method", [label(f.method) for f in rows], words=True),
        figures(WGA, result.worst.capitalize(), [_cell(result, f, WGA) for f in rows]),
        figures(ACCURACY, "Accuracy", [_cell(result, f, ACCURACY) for f in rows]),
    ]
    return columns if last else columns[1:]


def _cell(result: StudyResult, figure: Figure | None, metric: str) -> str:
    """`39.0 ± 2.4 [86.2]`, the last of it the published figure."""
    if figure is None:
        return "–"
    text = f"{100 * figure.mean[metric]:.1f}"
    if figure.count > 1:
        text += f" ± {100 * figure.std[metric]:.1f}"
    if metric in figure.published:
        text += f" [{figure.published[metric]:.1f}]"
    return over(text, result.part(figure, metric))


def _gain_lines(result: StudyResult) -> Iterator[tuple[str, Sequence[str]]]:
    if OURS not in result.methods:
        return
    for at in result.places:
        lines = [gain_in_words(result, gain) for gain in result.gains if gain.at == at]
        if lines:
            yield (result.place_name(at) if result.sweep else ""), lines
