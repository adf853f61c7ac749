"""What the page of a study holds: its figures place by place, and what AGRE-KD gains there."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from agrekd_ray.config.sweep import in_words, key_names
from agrekd_ray.report.archive import read_study
from agrekd_ray.report.facts import Fact, as_yaml, cost_facts, date, split_facts
from agrekd_ray.report.job import JOB
from agrekd_ray.report.tables import Cell, Grid, Line, percent, signed
from agrekd_ray.results import over
from agrekd_ray.study.results import (
    ACCURACY,
    OURS,
    WGA,
    Figure,
    Gain,
    Panel,
    StudyResult,
    heading,
)
from agrekd_ray.tracking.labels import label


def verdict(result: StudyResult) -> str:
    """The study in a sentence: where AGRE-KD gains over AVER, and where it does not."""
    if result.unfinished:
        return f"{result.unfinished.capitalize()}. {_verdict(result)}"
    return _verdict(result)


def _verdict(result: StudyResult) -> str:
    gains = [gain for gain in result.gains if gain.against == "aver"]
    if not gains:
        return "The study does not hold AGRE-KD against AVER."
    best = max(gains, key=lambda gain: gain.difference.mean)
    worst = min(gains, key=lambda gain: gain.difference.mean)
    ahead = sum(1 for gain in gains if gain.difference.low is not None and gain.difference.low > 0)
    text = f"{label(OURS)} against {label('aver')}, {result.worst}: {_points(best)}"
    if len(gains) > 1:
        text += f" at best ({result.place_name(best.at)}), {_points(worst)} at worst"
        text += f" ({result.place_name(worst.at)}); the interval is above 0 at {ahead} of"
        text += f" {len(gains)} places"
    return f"{text}."


def _facts(result: StudyResult, folder: Path) -> list[Fact]:
    names = key_names(result.sweep)
    swept = [
        Fact(f"Sweep: {names[key]}", ", ".join(map(in_words, values)))
        for key, values in result.sweep.items()
    ]
    draws = ", ".join(map(str, result.draws)) or "one"
    seeds = sorted({outcome.seed for point in result.points for outcome in point.outcomes})
    return [
        *swept,
        Fact("Draws of data and teachers", draws),
        *split_facts(result.splits),
        Fact("Seeds", ", ".join(map(str, seeds))),
        Fact("Methods", ", ".join(map(label, result.methods))),
        *([Fact("In brackets", result.published.source)] if result.published else []),
        Fact("Folder", str(folder), code=True),
        Fact("To run it again", f"agrekd run {shlex.quote(str(folder / JOB))}", code=True),
        *cost_facts(result.cost),
    ]


def tables(result: StudyResult, metric: str) -> list[tuple[str, Grid]]:
    """A title and a table for each panel: methods down, places across, then what AGRE-KD gains."""
    found = []
    for panel in result.panels:
        lines = [
            Line(
                [label(method)],
                [_cell(result, result.figure(at, method), metric) for at in panel.places],
                method == OURS,
            )
            for method in panel.methods
        ]
        if metric == WGA:
            lines += _gain_lines(result, panel)
        title = panel.where or heading(result)
        columns = panel.columns if result.sweep else [result.worst.capitalize()]
        found.append((panel.where, Grid(title, ["Method"], columns, lines)))
    return found


def _gain_lines(result: StudyResult, panel: Panel) -> list[Line]:
    """`AGRE-KD − AVER`, with intervals; strong where it is above 0 at every place."""
    lines = []
    for other in panel.methods:
        gains = [result.gain(at, other) for at in panel.places]
        if any(gains):
            sure = all(g and g.difference.low is not None and g.difference.low > 0 for g in gains)
            lines.append(Line([f"{label(OURS)} − {label(other)}"], list(map(_gain, gains)), sure))
    return lines


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
        "over": heading(result),
        "worst": result.worst,
        "panels": tables(result, WGA),
        "accuracies": tables(result, ACCURACY),
        "weights": None,
        "influence": None,
        "agreement": None,
        "teachers": None,
        "configuration": [("The study", as_yaml(result.settings))],
        "versions": result.versions,
    }


def _cell(result: StudyResult, figure: Figure | None, metric: str) -> Cell:
    if figure is None:
        return Cell("–")
    text = percent(figure.mean[metric])
    spread = f"± {percent(figure.std[metric])}" if figure.count > 1 else ""
    if metric in figure.published:
        spread = f"{spread} [{figure.published[metric]:.1f}]".strip()
    return Cell(over(text, result.part(figure, metric)), spread)


def _gain(gain: Gain | None) -> Cell:
    if gain is None:
        return Cell("–")
    d = gain.difference
    reach = ""
    if d.low is not None and d.high is not None:
        reach = f"({signed(100 * d.low, 1)} … {signed(100 * d.high, 1)})"
    return Cell(signed(100 * d.mean, 1), reach)


def _points(gain: Gain) -> str:
    d = gain.difference
    reach = ""
    if d.low is not None and d.high is not None:
        reach = f" (95 % {signed(100 * d.low, 1)} … {signed(100 * d.high, 1)})"
    return f"{signed(100 * d.mean, 1)} points{reach}"
