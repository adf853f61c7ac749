"""What the page of a study holds: its figures place by place, and what AGRE-KD gains there."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from agrekd_ray.study.results import OURS, WGA, Figure, Gain, StudyResult, heading
from agrekd_ray.study.settings import in_words, key_names
from agrekd_ray.tracking.labels import label
from agrekd_ray.tracking.page_tables import Cell, Grid, Line, percent, signed

_METRICS = (WGA, "accuracy")


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


def facts(result: StudyResult, folder: Path) -> list[tuple[str, str, bool]]:
    """What was run: a term, what there is to say of it, and whether that is for a terminal."""
    names = key_names(result.sweep)
    swept = [
        (f"Sweep: {names[key]}", ", ".join(map(in_words, values)), False)
        for key, values in result.sweep.items()
    ]
    draws = ", ".join(map(str, result.draws)) or "one"
    seeds = sorted({outcome.seed for point in result.points for outcome in point.outcomes})
    return [
        *swept,
        ("Draws of data and teachers", draws, False),
        ("Seeds", ", ".join(map(str, seeds)), False),
        ("Methods", ", ".join(map(label, result.methods)), False),
        *([("In brackets", result.published.source, False)] if result.published else []),
        ("Folder", str(folder), True),
        ("To run it again", f"agrekd run {shlex.quote(str(folder / 'job.yaml'))}", True),
    ]


def figures(result: StudyResult) -> Grid:
    """Every method at every place."""
    names = key_names(result.sweep)
    lines = []
    for figure in result.figures:
        words = [label(figure.method), *(in_words(figure.at[key]) for key in result.sweep)]
        cells = [_cell(figure, metric) for metric in _METRICS]
        lines.append(Line(words, [*cells, Cell(str(figure.count))], figure.method == OURS))
    return Grid(
        heading(result),
        ["Method", *(names[key] for key in result.sweep)],
        [result.worst.capitalize(), "Accuracy", "Students"],
        lines,
    )


def gains(result: StudyResult) -> Grid | None:
    """What AGRE-KD gains over each other distillation."""
    if not result.gains:
        return None
    names = key_names(result.sweep)
    unit = "Draws" if len(result.draws) > 1 else "Seeds"
    lines = []
    for gain in result.gains:
        d = gain.difference
        interval = "–"
        if d.low is not None and d.high is not None:
            interval = f"{signed(100 * d.low, 1)} … {signed(100 * d.high, 1)}"
        lines.append(
            Line(
                [label(gain.against), *(in_words(gain.at[key]) for key in result.sweep)],
                [Cell(signed(100 * d.mean, 1)), Cell(interval), Cell(str(d.seeds))],
                d.low is not None and d.low > 0,
            )
        )
    return Grid(
        "AGRE-KD minus other methods",
        ["Against", *(names[key] for key in result.sweep)],
        ["Points", "95 % interval", unit],
        lines,
    )


def content(result: StudyResult, folder: Path) -> dict[str, Any]:
    """What the template needs besides facts, plots and the date."""
    return {
        "kind": "study",
        "name": result.name,
        "headline": verdict(result),
        "remarks": [],
        "over": heading(result),
        "figures": figures(result),
        "gains": gains(result),
        "versions": result.versions,
    }


def _cell(figure: Figure, metric: str) -> Cell:
    text = percent(figure.mean[metric])
    spread = f"± {percent(figure.std[metric])}" if figure.count > 1 else ""
    if metric in figure.published:
        spread = f"{spread} [{figure.published[metric]:.1f}]".strip()
    return Cell(text, spread)


def _points(gain: Gain) -> str:
    d = gain.difference
    reach = ""
    if d.low is not None and d.high is not None:
        reach = f" (95 % {signed(100 * d.low, 1)} … {signed(100 * d.high, 1)})"
    return f"{signed(100 * d.mean, 1)} points{reach}"
