"""What people see of a study: tables on the screen and in Markdown, files, plots and its page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from agrekd_ray.files import exists, replacing
from agrekd_ray.report import facts, style, tables
from agrekd_ray.report.archive import RESULTS, read_study, write_results
from agrekd_ray.report.facts import Fact
from agrekd_ray.report.gain_map import gain_map
from agrekd_ray.report.job import JOB, data_of, degraded_lines, render_degraded, write_csv
from agrekd_ray.report.labels import of_points
from agrekd_ray.report.style import FAINT, INK
from agrekd_ray.report.tables import Cell, Column, Table, difference_cell, figure_column, texts
from agrekd_ray.results.intervals import INTERVAL, seeds_of_one_draw
from agrekd_ray.results.metrics import ACCURACY, GROUP, WORST_GROUP, accuracy_of, label
from agrekd_ray.results.points import in_words
from agrekd_ray.results.study import OURS, Gain, Panel, StudyResult

_AXES = {
    "ensemble.debiased": "debiased teachers",
    "ensemble.size": "teachers in the ensemble",
    "ensemble.biased_model": "architecture of the biased model",
    "distillation.temperature": "temperature τ",
    "distillation.alpha": "α, share of distillation in the loss",
    "distillation.agre_kd.normalize": "gradients normalised (cosine)",
    "student.model": "student",
    "teachers.model": "teachers",
    "data.aligned": "share of bias-aligned training samples",
}
_MOST_ROWS = 12
_DIAMOND: dict[str, Any] = {"s": 32, "marker": "D", "c": "white", "lw": 1.2, "zorder": 6}
"""How a published figure is drawn."""


def publish_study(folder: Path, result: StudyResult, *, anew: bool = True) -> None:
    """Write results.json, results.csv, results.md and the plots.

    Args:
        folder: of the study.
        result: what came out.
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
        write_results(folder / RESULTS, {**result.to_json(), "labels_used": _labels(result)})
    if anew or not exists(folder / "results.md"):
        with replacing(folder / "results.md") as draft:
            draft.write_text(f"# {result.name}\n\n{markdown(result)}\n", encoding="utf-8")
    formats = result.settings.get("plots", ("png",))
    style.draw_plots(folder / "plots", study_plots(result), anew=anew, formats=formats)


def show(result: StudyResult, console: Console) -> None:
    """Prints worst-group accuracy by method and place, then what AGRE-KD gains and how surely."""
    for panel in result.panels:
        console.print()
        title = _title(result, panel, accuracy_of(result.worst).capitalize())
        table = _pivot(result, panel, WORST_GROUP, title)
        if table.width > console.width:
            table = _long(result, panel, title)
        tables.show(table, console)
    for table in _group_tables(result, console.width):
        console.print()
        tables.show(table, console)
    if result.gains:
        console.print()
    for place, lines in _gain_lines(result):
        if place:
            console.print(Text(place, "bold"))
        for line in lines:
            console.print(Text(line))
    for point in result.points:
        lost = degraded_lines(point.outcomes)
        render_degraded([f"{point.label}: {line}" for line in lost], console)
    for line in _labels(result):
        console.print(Text(line), soft_wrap=True)
    console.print()


def markdown(result: StudyResult) -> str:
    """Tables of worst-group accuracy and accuracy, and the gains, as Markdown."""
    parts = [f"*{result.unfinished.capitalize()}.*"] if result.unfinished else []
    whats = {WORST_GROUP: accuracy_of(result.worst).capitalize(), ACCURACY: "Accuracy"}
    for metric, what in whats.items():
        for panel in result.panels:
            title = _title(result, panel, what)
            parts += [title, tables.markdown(_pivot(result, panel, metric, title))]
    for table in _group_tables(result):
        parts += [table.title, tables.markdown(table)]
    for place, lines in _gain_lines(result):
        parts.append("\n".join([*([f"{place}:", ""] if place else []), *(f"- {x}" for x in lines)]))
    parts.append("\n".join(f"- {line}" for line in _labels(result)))
    return "\n\n".join(filter(None, parts))


def _labels(result: StudyResult) -> list[str]:
    """Which labels were used where, a line for places that use the same ones."""
    known = any(m.groups_known for o in result.outcomes for m in o.splits.values())
    settings = {"methods": result.methods, **result.settings}
    return of_points(settings, result.places, result.names, groups_known=known)


def _title(result: StudyResult, panel: Panel, what: str) -> str:
    source = f"; in brackets: {result.published.source}" if result.published else ""
    place = f"{panel.where}. " if panel.where else ""
    return f"{place}{result.heading(what)}{source}"


def _pivot(result: StudyResult, panel: Panel, metric: str, title: str) -> Table:
    """A row a method, a column a value of the last swept key."""
    names = panel.columns if result.sweep else [result.worst.capitalize()]
    columns = texts({"method": "Method"}, [[label(method)] for method in panel.methods])
    for at, name in zip(panel.places, names, strict=True):
        shown = [(at, method) for method in panel.methods]
        columns.append(_figures(result, shown, metric, name))
    return Table(title, columns)


def _long(result: StudyResult, panel: Panel, title: str) -> Table:
    """A row a place and method, for narrow screens."""
    last = next(reversed(list(result.sweep)), "")
    shown = [(at, m) for at in panel.places for m in panel.methods if result.row(at, m)]
    places = [in_words(at[last]) if last else "" for at, _ in shown]
    first = ["" if n and places[n - 1] == text else text for n, text in enumerate(places)]
    names = {"place": result.names.get(last, ""), "method": "Method"}
    methods = (label(method) for _, method in shown)
    columns = texts(names, list(zip(first, methods, strict=True)))
    headers = {WORST_GROUP: result.worst.capitalize(), ACCURACY: "Accuracy"}
    columns += [_figures(result, shown, metric, text) for metric, text in headers.items()]
    return Table(title, columns if last else columns[1:])


def _group_tables(result: StudyResult, width: int | None = None) -> Iterator[Table]:
    """A row a method, a column a group, at places of which figures by group are published.

    Where that is wider than a screen, a row a group and method.
    """
    for at in result.places:
        methods = [method for method in result.methods if result.row(at, method)]
        keys = [key for m in methods for key in result.row(at, m) or {} if key.startswith(GROUP)]
        groups = list(dict.fromkeys(keys))
        pairs = [(group, method) for group in groups for method in methods]
        if all(result.published_at(at, method, group) is None for group, method in pairs):
            continue

        def column(header: str, shown: Sequence[tuple[str, str]], at: Mapping[str, Any]) -> Column:
            figures = [(result.row(at, method) or {}).get(group) for group, method in shown]
            published = [result.published_at(at, method, group) for group, method in shown]
            return figure_column(header, figures, header, published)

        names = {group: group.removeprefix(GROUP) for group in groups}
        columns = texts({"method": "Method"}, [[label(method)] for method in methods])
        columns += [column(names[g], [(g, method) for method in methods], at) for g in groups]
        place = result.place_name(at) if result.sweep else ""
        title = _title(result, Panel(place, [at], [], methods), "Accuracy by group")
        table = Table(title, columns)
        if width is not None and table.width > width:
            said = [
                ["" if number % len(methods) else names[group], label(method)]
                for number, (group, method) in enumerate(pairs)
            ]
            first = texts({"group": "Group", "method": "Method"}, said)
            table = Table(title, [*first, column("Accuracy", pairs, at)])
        yield table


def _figures(
    result: StudyResult, shown: Sequence[tuple[dict[str, Any], str]], metric: str, header: str
) -> Column:
    """A column of a metric, with published figures beside it, at places and of methods."""
    figures = [(result.row(at, method) or {}).get(metric) for at, method in shown]
    published = [result.published_at(at, method, metric) for at, method in shown]
    # One part for all places stands in the title; those that differ stand in the cells.
    parts = "cells" if result.worst in ("worst group", "worst class") else "title"
    return figure_column(header, figures, header, published, parts)


def _gain_lines(result: StudyResult) -> Iterator[tuple[str, list[str]]]:
    """Places, and what AGRE-KD gains there."""
    for at, gains in groupby(result.gains, lambda gain: gain.at):
        said = ((label(g.against), g.difference.in_words(result.unit)) for g in gains)
        lines = [f"{label(OURS)} against {against}: {gain}" for against, gain in said]
        yield (result.place_name(at) if result.sweep else ""), lines


# --- plots --------------------------------------------------------------------------------------


def study_plots(result: StudyResult) -> dict[str, Callable[[], Figure | None]]:
    """The plots of a study by name.

    `sweep_KEY` for each key with several values; `gains`; and where two keys have several, `map`.
    """
    swept = {key: name for key, name in result.names.items() if len(result.sweep[key]) > 1}
    plots = {
        f"sweep_{n.replace('.', '_')}": partial(sweep_plot, result, k) for k, n in swept.items()
    }
    last = list(result.sweep)[-1:]
    axis = next((_AXES.get(key, result.names[key]) for key in last), "")
    mapped = partial(gain_map, result, axis, _note(result))
    return {**plots, "gains": partial(gains_plot, result), "map": mapped}


def sweep_plot(result: StudyResult, key: str) -> Figure | None:
    """Draws worst-group accuracy and accuracy along a swept key.

    Lines are means, whiskers the sample standard deviation over draws and seeds; hollow diamonds
    are the published figures. Where several keys are swept, each combination of the others has a
    row of panels.

    Args:
        result: of the study.
        key: of the sweep.
    """
    rests: list[dict[str, Any]] = []
    for at in result.places:
        rest = {other: value for other, value in at.items() if other != key}
        if rest not in rests:
            rests.append(rest)
    if len(rests) > _MOST_ROWS:
        return None
    names, values = result.names, result.sweep[key]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    xs = [float(value) if numbers else float(n) for n, value in enumerate(values)]
    span = max(xs) - min(xs) or 1.0
    methods = [m for m in result.methods if any(result.row(at, m) for at in result.places)]
    styles = style.method_styles(methods)
    figure = style.new_figure(9.2, 0.9 + 3.1 * len(rests) + 0.24 * -(-len(methods) // 4))
    grid = figure.subplots(len(rests), 2, squeeze=False, sharex=True)
    metrics = {WORST_GROUP: result.worst.capitalize(), ACCURACY: "All samples"}
    for row, rest in zip(grid, rests, strict=True):
        where = ", ".join(f"{names[k]} {in_words(v)}" for k, v in rest.items())
        for axes, (metric, shown) in zip(row, metrics.items(), strict=True):
            title = f"{shown}: {where}" if where else shown
            style.panel(axes, "y").set_title(title, size=10, loc="left")
            axes.set_ylabel("test accuracy (%)")
            for number, method in enumerate(methods):
                # Aside, so that whiskers do not cover each other.
                aside = (number - (len(methods) - 1) / 2) * 0.006 * span
                places = {x + aside: {**rest, key: v} for x, v in zip(xs, values, strict=True)}
                _line(axes, result, places, method, metric, styles[method])
            low, high = axes.get_ylim()
            axes.set_ylim(max(0.0, low if low > 30 else 0.0), min(100.0, max(high, low + 1)))
            _ticks(axes, xs, values)
    for axes in grid[-1]:
        axes.set_xlabel(_AXES.get(key, key))
    if result.published:  # a key for all colours
        axes.scatter([], [], edgecolors=INK, label=result.published.source, **_DIAMOND)
    title = f"{result.name}: by {_AXES.get(key, names[key])}"
    return style.finish(figure, title, _note(result, "points: means, whiskers: ± sd"))


def _line(
    axes: Axes,
    result: StudyResult,
    places: Mapping[float, Mapping[str, Any]],
    method: str,
    metric: str,
    look: Mapping[str, Any],
) -> None:
    """Draws one method's line through places, by where they stand."""
    shown = {x: row[metric] for x, at in places.items() if (row := result.row(at, method))}
    means, sds = ([100 * getattr(f, end) for f in shown.values()] for end in ("mean", "sd"))
    axes.plot(list(shown), means, marker="o", ms=4, **look)
    if any(figure.count > 1 for figure in shown.values()):
        whiskers: dict[str, Any] = {"capsize": 2.5, "elinewidth": 0.9, "fmt": "none"}
        axes.errorbar(list(shown), means, yerr=sds, ecolor=look["color"], **whiskers)
    published = [result.published_at(places[x], method, metric) for x in shown]
    heights = [math.nan if height is None else height for height in published]
    axes.scatter(list(shown), heights, edgecolors=look["color"], **_DIAMOND)


def _ticks(axes: Axes, xs: Sequence[float], values: Sequence[Any]) -> None:
    """Names each value; of those that would touch, the first."""
    span = max(xs) - min(xs) or 1.0
    shown: dict[float, str] = {}
    for x, value in zip(xs, values, strict=True):
        if all(abs(x - other) > 0.04 * span for other in shown):
            shown[x] = in_words(value).rpartition("/")[2]
    axes.set_xticks(list(shown), list(shown.values()))
    axes.set_xlim(min(xs) - 0.05 * span, max(xs) + 0.05 * span)


def gains_plot(result: StudyResult) -> Figure | None:
    """Draws AGRE-KD's worst-group accuracy minus each other distillation's, place by place.

    A large dot is the mean, the line its 95 % bootstrap interval, small dots the draws (or the
    seeds, in a study without draws).
    """
    if not result.gains:
        return None
    rows: list[tuple[str, Gain | None]] = []
    for at, gains in groupby(result.gains, lambda gain: gain.at):
        rows += [(result.place_name(at), None)] if result.sweep else []
        rows += [(label(gain.against), gain) for gain in gains]
    colors = style.method_styles(dict.fromkeys(gain.against for gain in result.gains))
    figure = style.new_figure(7.6, 1.5 + 0.3 * len(rows))
    axes = style.bars(figure.subplots(), [text for text, _ in rows])
    for number, (_, gain) in enumerate(rows):
        if gain is None:
            axes.get_yticklabels()[number].set_fontweight("bold")
            continue
        difference, color = gain.difference, colors[gain.against]["color"]
        if difference.low is not None and difference.high is not None:
            axes.hlines(number, 100 * difference.low, 100 * difference.high, color=color, lw=2)
        points = [100 * value for value in gain.by_draw]
        axes.scatter(points, [number] * len(points), s=9, color=FAINT, zorder=3)
        axes.scatter(100 * difference.mean, number, s=42, color=color, edgecolors=INK, zorder=4)
    axes.axvline(0, color=INK, lw=0.9)
    worst = accuracy_of(result.worst)
    axes.set_xlabel(f"AGRE-KD minus the other method, {worst} on test (points)")
    # Of every colour, so that the legend has none.
    axes.scatter([], [], s=42, color=FAINT, edgecolors=INK, label="mean")
    axes.plot([], [], color=FAINT, lw=2, label=INTERVAL)
    axes.scatter([], [], s=9, color=FAINT, label=f"one {result.unit}")
    return style.finish(figure, f"{result.name}: what AGRE-KD gains", _note(result))


def _note(result: StudyResult, *words: str) -> str:
    """What data, samples, seeds and draws a study's pictures show."""
    counts = [o.splits["test"].counts for o in result.outcomes if "test" in o.splits]
    same = counts[0] if counts and all(count == counts[0] for count in counts) else None
    _, _, over = result.heading("").partition("over ")
    over = f"over {over or seeds_of_one_draw(1)}"
    data = ", ".join(map(in_words, result.sweep.get("data.name", [data_of(result.settings)])))
    return style.about(data, "test", same, ", ".join((*words, over)))


# --- the page --------------------------------------------------------------------------------


def verdict(result: StudyResult) -> str:
    """The study in a sentence: where AGRE-KD gains over AVER, and where it does not."""
    begin = f"{result.unfinished.capitalize()}. " if result.unfinished else ""
    gains = [gain for gain in result.gains if gain.against == "aver"]
    if not gains:
        return f"{begin}The study does not hold AGRE-KD against AVER."
    best, worst = (end(gains, key=lambda gain: gain.difference.mean) for end in (max, min))
    at_best, at_worst = best.difference.in_words(""), worst.difference.in_words("")
    text = f"{label(OURS)} against {label('aver')}, {result.worst}: {at_best}"
    if len(gains) > 1:
        text += (
            f" at best ({result.place_name(best.at)}), {at_worst} at worst"
            f" ({result.place_name(worst.at)}); the interval is above 0 at"
            f" {sum(map(_sure, gains))} of {len(gains)} places"
        )
    return f"{begin}{text}; over {result.paired_over}."


def content(folder: Path) -> dict[str, Any]:
    """What the template needs of the study in a folder, besides its plots."""
    result = read_study(folder)
    return {
        "kind": "study",
        "name": result.name,
        "date": facts.date(result.folder),
        "headline": verdict(result),
        "remarks": [],
        "degraded": [],
        "warnings": result.warnings,
        "ensemble": None,
        "facts": _facts(result, folder),
        "over": result.heading(),
        "worst": result.worst,
        "panels": [(panel.where, _with_gains(result, panel)) for panel in result.panels],
        "accuracies": [
            (panel.where, _pivot(result, panel, ACCURACY, panel.where or result.heading()))
            for panel in result.panels
        ],
        "by_group": [*_group_tables(result)],
        **dict.fromkeys(("weights", "influence", "agreement", "teachers")),
        "configuration": [("The study", facts.as_yaml(result.settings))],
        "versions": result.versions,
    }


def _facts(result: StudyResult, folder: Path) -> list[Fact]:
    names, seeds = result.names, sorted({outcome.seed for outcome in result.outcomes})
    return [
        *(Fact(f"Sweep: {names[k]}", ", ".join(map(in_words, v))) for k, v in result.sweep.items()),
        Fact("Draws of data and teachers", ", ".join(map(str, result.draws)) or "one"),
        Fact("Splits", result.splits),
        Fact("Seeds", ", ".join(map(str, seeds))),
        Fact("Methods", ", ".join(map(label, result.methods))),
        Fact("Labels used", "; ".join(_labels(result)).replace("labels used: ", "")),
        Fact("In brackets", result.published.source if result.published else ""),
        *facts.run(folder, result.cost, "run", JOB),
    ]


def _with_gains(result: StudyResult, panel: Panel) -> Table:
    """Methods down, places across, then `AGRE-KD − AVER`; strong where it is above 0 everywhere."""
    table = _pivot(result, panel, WORST_GROUP, panel.where or result.heading())
    strong = {number for number, method in enumerate(panel.methods) if method == OURS}
    rows = [[column.cells[n] for column in table.columns] for n in range(table.size)]
    for other in panel.methods:
        gains = [result.gain(at, other) for at in panel.places]
        if any(gains):
            strong |= {len(rows)} if all(gain and _sure(gain) for gain in gains) else set()
            cells = [difference_cell(gain.difference if gain else None) for gain in gains]
            rows.append([Cell(f"{label(OURS)} − {label(other)}"), *cells])
    below = zip(table.columns, zip(*rows, strict=True), strict=True)
    columns = [replace(column, cells=list(cells)) for column, cells in below]
    return replace(table, columns=columns, strong=frozenset(strong))


def _sure(gain: Gain) -> bool:
    """Whether the whole interval is above 0."""
    return gain.difference.low is not None and gain.difference.low > 0
