"""Pictures of students: how good methods are, how they learned, who taught whom, whom to believe.

Each function writes one PNG, which is replaced as a whole, and says whether there was anything to
draw; without it there is no file.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from agrekd_ray.core.diagnostics import CALIBRATION_BINS, CASES
from agrekd_ray.report.models import kinds_of, tested
from agrekd_ray.report.style import (
    BLUE,
    EVEN,
    FAINT,
    INK,
    LINES,
    ORANGE,
    REFERENCE,
    bars,
    epoch_axis,
    finish,
    line,
    marker,
    method_styles,
    new_figure,
    stroke,
    turn,
)
from agrekd_ray.results import Agreement, Bin, Diagnostics, StudentResult, TeacherResult
from agrekd_ray.results.frame import FALLBACK, INFLUENCE, LOSS, WEIGHT, epochs, worst_words
from agrekd_ray.results.labels import ALL, family, is_distilled, label
from agrekd_ray.results.metrics import ACCURACY, WORST_GROUP, accuracy_of

# From dark to light; one hue a family. Blue against orange survives every colour blindness.
_SHADES = {
    "dfr": ("#08306b", "#2171b5", "#6baed6", "#9ecae1"),
    "erm": ("#8c2d04", "#d94801", "#fd8d3c", "#fdbe85"),
    "own": ("#252525", "#636363", "#969696", "#bdbdbd"),
}
_MOST_LINES, _MOST_GROUPS = 8, 8
_CASES = {
    "agrees_right": ("#d9d9d9", "agrees, both right"),
    "agrees_wrong": ("#8a8a8a", "agrees, both wrong"),
    "contradicts_right": (BLUE, "contradicts it, and is right"),
    "contradicts_wrong": (ORANGE, "contradicts it, and is wrong"),
}
_NARROW, _SMALLEST_SHOWN = 4, 0.06
_FEW = 0.01
"""Bins with less of the samples than this say little and are drawn pale."""


def of_training(
    outcomes: Sequence[StudentResult], members: Sequence[TeacherResult]
) -> dict[str, Callable[[Path], bool]]:
    """The plots of who taught whom, and of what confidence is worth, by name."""
    return {
        "weights_by_group": lambda path: weights_by_group(outcomes, members, path),
        "influence_by_group": lambda path: influence_by_group(outcomes, members, path),
        "fallback_by_group": lambda path: fallback_by_group(outcomes, path),
        "calibration": lambda path: calibration(outcomes, path),
    }


def worst_group_by_method(outcomes: Sequence[StudentResult], path: Path) -> bool:
    """Draws worst-group accuracy (bars) and accuracy (diamonds) on the test split, by method.

    Whiskers are the sample standard deviation over seeds; each seed is a small dot.

    Args:
        outcomes: finished students.
        path: the PNG.
    """
    rows = tested(outcomes)
    if not rows:
        return False
    figure = new_figure(7.2, 1.55 + 0.42 * len(rows))
    axes = bars(figure.subplots(), [label(method) for method in rows])
    several = any(row[WORST_GROUP].count > 1 for row in rows.values())
    words = worst_words(next(iter(rows.values())))
    whiskers: dict[str, Any] = {"capsize": 2.5, "elinewidth": 1.1, "fmt": "none", "zorder": 4}
    for place, (method, row) in enumerate(rows.items()):
        worst, accuracy = row[WORST_GROUP], row[ACCURACY]
        fill = BLUE if is_distilled(method) else REFERENCE
        axes.barh(place, 100 * worst.mean, height=0.62, color=fill, zorder=2)
        if worst.count > 1:
            for figure_of, color in ((worst, INK), (accuracy, ORANGE)):
                mean, sd = 100 * figure_of.mean, 100 * figure_of.sd
                axes.errorbar(mean, place, xerr=sd, ecolor=color, **whiskers)
            seeds = [
                100 * o.splits["test"].worst_group_accuracy
                for o in outcomes
                if o.method == method and "test" in o.splits
            ]
            heights = place + np.linspace(-0.17, 0.17, len(seeds))
            axes.scatter(seeds, heights, s=11, c="white", edgecolors=INK, lw=0.7, zorder=5)
        axes.scatter(
            100 * accuracy.mean,
            place,
            s=34,
            marker="D",
            c="white",
            edgecolors=ORANGE,
            lw=1.5,
            zorder=5,
        )
        _beside(axes, worst.text, place, va="center", size=9)
    _beside(axes, textwrap.fill(words, 9), -0.75, va="bottom", size=8, color=FAINT)
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy on the test split (%)")
    axes.grid(axis="x", color="#e4e4e4", lw=0.8, zorder=0)
    keys: list[Line2D | Patch] = [
        *_method_keys(rows, f"{words}, "),
        marker("D", ORANGE, 6, "all samples"),
    ]
    if several:
        keys += [marker("o", INK, 4, "one seed"), stroke("± sd")]
    return finish(figure, path, f"{accuracy_of(words).capitalize()} by method", keys)


def training_curves(outcomes: Sequence[StudentResult], path: Path) -> bool:
    """Draws validation worst-group accuracy and training loss over epochs, a line a method.

    Lines are means over seeds, bands run from the lowest to the highest seed.

    Args:
        outcomes: students, finished or under way; those without history are left out.
        path: the PNG.
    """
    table = epochs(outcomes)
    methods = list(dict.fromkeys(table["method"]))
    if not methods:
        return False
    across = min(4, len(methods))
    figure = new_figure(9.2, 4.0 + 0.22 * -(-len(methods) // across))
    left, right = figure.subplots(1, 2)
    worst = next(o.history[0].val.worst for o in outcomes if o.history)
    styles = method_styles(methods)
    for axes, name, unit in ((left, WORST_GROUP, 100), (right, LOSS, 1)):
        shown = table[(table["metric"] == name) & np.isfinite(table["value"])]
        for method, mine in shown.groupby("method", sort=False):
            by_epoch = unit * mine.groupby("epoch")["value"].agg(["min", "mean", "max"])
            band = {"color": styles[method]["color"], "alpha": 0.12, "lw": 0, "zorder": 2}
            axes.fill_between(by_epoch.index, by_epoch["min"], by_epoch["max"], **band)
            line(axes, by_epoch.index, by_epoch["mean"], styles[method])
        epoch_axis(axes)
        axes.grid(color="#ececec", lw=0.8)
    left.set_title(f"{worst.capitalize()}, validation", size=10, loc="left")
    left.set_ylabel(f"{accuracy_of(worst)} (%)")
    left.set_ylim(bottom=0)
    right.set_title("Training loss, each method's own objective", size=10, loc="left")
    right.set_ylabel("mean loss per sample")
    if right.get_ylim()[0] < 0.5 * right.get_ylim()[1] or table["epoch"].nunique() < 2:
        right.set_ylim(bottom=0)
    keys = [Line2D([], [], label=label(method), **styles[method]) for method in methods]
    return finish(figure, path, "Training by epoch", keys, across)


def weights_by_group(
    outcomes: Sequence[StudentResult], members: Sequence[TeacherResult], path: Path
) -> bool:
    """Draws which teacher taught whom: mean weights over epochs, a panel a method and group.

    Up to eight teachers have a line each; more are shown as one line a family (mean weight of a
    teacher) with a band from the lowest to the highest teacher. Beyond eight training groups,
    the eight are shown in which the weights are least even.

    Args:
        outcomes: students, finished or under way; those without weights are left out.
        members: the ensemble; tells debiased teachers from biased ones.
        path: the PNG.
    """
    title = "Who taught whom: mean weight of a teacher, by training group"
    return _by_group(epochs(outcomes), members, path, WEIGHT, title)


def influence_by_group(
    outcomes: Sequence[StudentResult], members: Sequence[TeacherResult], path: Path
) -> bool:
    """Draws which teacher moved the student: influence over epochs, a panel a method and group.

    As `weights_by_group`, with all samples in the first column. A teacher below 0 is overruled by
    the others.
    """
    title = "Who moved the student: influence of a teacher, by training group"
    return _by_group(epochs(outcomes), members, path, INFLUENCE, title)


def _by_group(
    table: pd.DataFrame, members: Sequence[TeacherResult], path: Path, name: str, title: str
) -> bool:
    """Shares of the teachers by group, which sum to 1: a row a method, a column a group."""
    table = table[table["metric"] == name]
    if table.empty:
        return False
    means = table.groupby(["method", "group", "teacher", "epoch"])["value"].mean()
    methods = list(dict.fromkeys(table["method"]))
    kinds = kinds_of(table["teacher"], members)
    every = list(dict.fromkeys(table["group"]))
    of_teachers = means.groupby(["method", "group", "teacher"]).mean()
    uneven = of_teachers.groupby(["method", "group"]).agg(np.ptp).groupby("group").max()
    groups = _chosen(every, uneven.to_dict())
    wide = max(2.0, min(3.4, 13.0 / len(groups)))
    width = 1.5 + wide * len(groups)
    each = len(kinds) <= _MOST_LINES
    keys = _teacher_keys(kinds) if each else _family_keys(kinds)
    keys.append(stroke(f"even: 1/{len(kinds)}", width=0.8, ls=EVEN))
    longest = max(len(str(handle.get_label())) for handle in keys)
    across = max(1, min(len(keys), int(width / (0.55 + 0.075 * longest))))
    height = 1.3 + 0.2 * -(-len(keys) // across) + max(1.8, 1.32 * len(methods))
    figure = new_figure(width, height)
    panels = figure.subplots(len(methods), len(groups), sharex=True, sharey=True, squeeze=False)
    for row, method in enumerate(methods):
        for axes, group in zip(panels[row], groups, strict=True):
            axes.axhline(1 / len(kinds), color=INK, lw=0.8, ls=EVEN, zorder=2)
            if (method, group) in of_teachers.index.droplevel("teacher"):
                (_teacher_lines if each else _family_lines)(axes, means[method, group], kinds)
            axes.grid(color="#f0f0f0", lw=0.8)
            axes.tick_params(labelsize=8)
            if row == 0:
                axes.set_title(textwrap.fill(group, max(12, int(11 * wide))), size=10)
            if row == len(methods) - 1:
                epoch_axis(axes)
        panels[row][0].set_ylabel(label(method), size=10)
    if min(axes.dataLim.y0 for axes in panels.flat) < 0:
        for axes in panels.flat:
            axes.axhline(0, color=FAINT, lw=0.8, zorder=1)
    else:
        panels[0][0].set_ylim(bottom=0)
    panels[0][0].yaxis.set_major_locator(MaxNLocator(3))
    title = textwrap.fill(title + _of_how_many(groups, every), int(9 * width))
    return finish(figure, path, title, keys, across)


def _chosen(every: Sequence[str], importance: dict[str, float]) -> list[str]:
    """All samples, and of the groups the most important ones, in their order."""
    if len(every) <= _MOST_GROUPS:
        return list(every)
    ranked = sorted(every, key=lambda g: math.inf if g == ALL else importance[g], reverse=True)
    return [group for group in every if group in ranked[:_MOST_GROUPS]]


def _of_how_many(groups: Sequence[str], every: Sequence[str]) -> str:
    if len(groups) == len(every):
        return ""
    return f" ({len(groups) - (ALL in groups)} of {len(every) - (ALL in every)} groups)"


def _teacher_lines(axes: Axes, shares: pd.Series[float], kinds: dict[str, str]) -> None:
    styles = _teacher_styles(kinds)
    for teacher, by_epoch in shares.groupby("teacher"):
        by_epoch = by_epoch.droplevel("teacher").sort_index()
        line(axes, by_epoch.index, by_epoch, styles[teacher])


def _family_lines(axes: Axes, shares: pd.Series[float], kinds: dict[str, str]) -> None:
    for kind, mine in shares.groupby(lambda place: kinds[place[0]]):
        by_epoch = mine.groupby("epoch").agg(["min", "mean", "max"])
        color = _shades(kind)[1]
        span = by_epoch.index, by_epoch["min"], by_epoch["max"]
        axes.fill_between(*span, color=color, alpha=0.22, lw=0, zorder=3)
        line(axes, by_epoch.index, by_epoch["mean"], {"color": color, "lw": 2.0, "zorder": 4})


def _shades(kind: str) -> tuple[str, ...]:
    return _SHADES.get(kind, _SHADES["own"])


def _teacher_styles(kinds: dict[str, str]) -> dict[str, dict[str, Any]]:
    styles: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(kinds.values()):
        for place, teacher in enumerate(t for t in kinds if kinds[t] == kind):
            above = 5 if kind == "dfr" else 4
            styles[teacher] = {**turn(place, _shades(kind)), "lw": 1.8, "zorder": above}
    return styles


def _teacher_keys(kinds: dict[str, str]) -> list[Line2D]:
    return [
        Line2D([], [], label=f"{teacher}, {family(kinds[teacher])}", **style)
        for teacher, style in _teacher_styles(kinds).items()
    ]


def _family_keys(kinds: dict[str, str]) -> list[Line2D]:
    every = list(kinds.values())
    return [
        stroke(f"{every.count(kind)} {family(kind)}, mean and range", _shades(kind)[1], 2)
        for kind in dict.fromkeys(every)
    ]


def fallback_by_group(outcomes: Sequence[StudentResult], path: Path) -> bool:
    """Draws the share of samples in the 0/0 case over epochs, a panel a method, a line a group.

    Lines are means over seeds. Methods that never met the case are left out; beyond eight groups,
    the eight are shown that met it most.

    Args:
        outcomes: students, finished or under way.
        path: the PNG.
    """
    table = epochs(outcomes)
    table = table[table["metric"] == FALLBACK]
    met = set(table[table["value"] > 0]["method"])
    table = table[table["method"].isin(met)]
    if table.empty:
        return False
    means = 100 * table.groupby(["method", "group", "epoch"], sort=False)["value"].mean()
    methods, every = (list(dict.fromkeys(table[name])) for name in ("method", "group"))
    importance = means.groupby(["method", "group"]).mean().groupby("group").max()
    most = _chosen([group for group in every if group != ALL], importance.to_dict())
    shown = [ALL, *most]
    width = max(4.6, 2.2 + 3.4 * len(methods))
    longest = max(map(len, shown))
    across = max(1, min(len(shown), int((2.2 + 3.4 * len(methods)) / (0.6 + 0.08 * longest))))
    figure = new_figure(width, 3.1 + 0.2 * -(-len(shown) // across))
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    colors = [color for color in LINES if color != INK]
    styles = {group: {**turn(place, colors), "lw": 1.6} for place, group in enumerate(most)}
    styles[ALL] = {"color": INK, "linestyle": "-", "lw": 2.4}
    for axes, method in zip(panels, methods, strict=True):
        for group in shown:
            by_epoch = means[method].get(group, pd.Series(dtype=float)).sort_index()
            line(axes, by_epoch.index, by_epoch, styles[group])
        axes.set_title(label(method), size=10, loc="left")
        axes.grid(color="#ececec", lw=0.8)
        epoch_axis(axes)
    top = panels[0].get_ylim()[1]
    panels[0].set_ylim(-0.02 * top, top)  # so that a line at 0 is seen
    panels[0].set_ylabel("samples (%)")
    title = f"Samples in the 0/0 case, by training group{_of_how_many(shown, every)}"
    keys = [Line2D([], [], label=group, **styles[group]) for group in shown]
    return finish(figure, path, textwrap.fill(title, int(9 * width)), keys, across)


def agreement_by_group(diagnostics: Diagnostics, path: Path) -> bool:
    """Draws where the ensemble's vote follows the biased model, a bar a group, a panel a split.

    Args:
        diagnostics: of a job.
        path: the PNG.
    """
    if not diagnostics.agreement:
        return False
    shares = {
        split: {ALL: found.overall, **found.groups, **found.overlapping}
        for split, found in diagnostics.agreement.items()
    }
    groups = list(dict.fromkeys(group for by_group in shares.values() for group in by_group))
    figure = new_figure(3.2 + 3.9 * len(shares), 1.75 + 0.36 * len(groups))
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for axes, (split, by_group) in zip(panels, shares.items(), strict=True):
        bars(axes, [textwrap.fill(group, 28) for group in groups], 0.45)
        for place, group in enumerate(groups):
            if group in by_group:
                _stack(axes, place, by_group[group])
        axes.set_title(f"{split} split", size=10, loc="left")
        axes.set_xlim(0, 100)
        axes.set_xlabel("samples of the group (%)")
        axes.axhline(0.5, color=FAINT, lw=0.8)
    keys = [Patch(color=color, label=words) for color, words in _CASES.values()]
    title = "The teachers' vote against the biased model"
    return finish(figure, path, title, keys, 4 if len(shares) > 1 else 2)


def _stack(axes: Axes, place: int, shares: Agreement) -> None:
    left = 0.0
    for case in CASES:
        share, (color, _) = getattr(shares, case), _CASES[case]
        axes.barh(place, 100 * share, left=left, height=0.72, color=color, zorder=2)
        if share >= _SMALLEST_SHOWN:
            style: dict[str, Any] = {"ha": "center", "va": "center", "size": 8}
            ink = "white" if case == "agrees_wrong" else INK
            axes.text(left + 50 * share, place, f"{100 * share:.0f}", color=ink, **style)
        left += 100 * share
    _beside(axes, f"n = {shares.count:,}", place, va="center", size=8, color=FAINT)


def _beside(axes: Axes, text: str, place: float, **style: Any) -> None:
    """A text to the right of an axis that ends at 100."""
    axes.annotate(text, (101, place), ha="left", annotation_clip=False, **style)


def calibration(outcomes: Sequence[StudentResult], path: Path) -> bool:
    """Draws reliability diagrams on the test split, a panel a method, samples by confidence below.

    The samples of all seeds are pooled; the expected calibration error is the mean over seeds.

    Args:
        outcomes: finished students; those without a diagram are left out.
        path: the PNG.
    """
    measured: dict[str, list[StudentResult]] = {}
    for outcome in outcomes:
        if outcome.calibration:
            measured.setdefault(outcome.method, []).append(outcome)
    if not measured:
        return False
    rows = -(-len(measured) // _NARROW)
    columns = -(-len(measured) // rows)
    figure = new_figure(max(4.8, 1.0 + 2.4 * columns), 1.25 + 2.75 * rows)
    pools = {method: pooled(mine) for method, mine in measured.items()}
    top = 10 * math.ceil(
        10 * max(b.count / _samples(bins) for bins in pools.values() for b in bins)
    )
    shape = {"height_ratios": [3.0, 1.0] * rows}
    panels = figure.subplots(2 * rows, columns, squeeze=False, sharex=True, gridspec_kw=shape)
    for place in range(len(measured), rows * columns):
        for axes in panels[-2:, place % columns]:
            axes.set_axis_off()
    for place, (method, bins) in enumerate(pools.items()):
        row, column = divmod(place, columns)
        upper, lower = panels[2 * row : 2 * row + 2, column]
        error = float(np.mean([outcome.splits["test"].ece for outcome in measured[method]]))
        upper.set_title(f"{label(method)}\nECE {100 * error:.1f} %", size=9, loc="left")
        _diagram(upper, lower, bins, method)
        for axes in (upper, lower):
            axes.set_xlim(0, 100)
            axes.tick_params(labelsize=8, labelbottom=axes is lower)
            axes.grid(color="#ececec", lw=0.8)
            axes.set_axisbelow(True)
        upper.set_ylim(0, 100)
        lower.set_ylim(0, top)
        lower.set_yticks([0, top])
        if column == 0:
            upper.set_ylabel("accuracy (%)", size=9)
            lower.set_ylabel("samples\n(%)", size=9)
        if place + columns >= len(measured):
            lower.set_xlabel("confidence (%)", size=9)
    keys: list[Line2D | Patch] = [
        *_method_keys(measured, ""),
        Patch(color=FAINT, alpha=0.3, label=f"bins under {_FEW:.0%} of the samples"),
        stroke("as confident as right", width=0.9, ls=EVEN),
    ]
    across = len(keys) if columns > 2 else 2
    return finish(figure, path, "What confidence is worth, test split", keys, across)


def _method_keys(methods: Iterable[str], words: str) -> list[Patch]:
    """Keys for the colours of distilled students and references, those that are there."""
    kinds = {is_distilled(method) for method in methods}
    keys = ((True, BLUE, "distilled"), (False, REFERENCE, "reference"))
    return [
        Patch(color=color, label=f"{words}{name}") for kind, color, name in keys if kind in kinds
    ]


def _samples(bins: Iterable[Bin]) -> int:
    return sum(found.count for found in bins)


def pooled(outcomes: Sequence[StudentResult]) -> list[Bin]:
    """Reliability diagram of the samples of several students together.

    Args:
        outcomes: of one method.
    """
    bins: dict[int, list[Bin]] = {}
    for outcome in outcomes:
        for found in outcome.calibration:
            bins.setdefault(round(found.low * CALIBRATION_BINS), []).append(found)
    return [
        Bin(
            these[0].low,
            these[0].high,
            count := _samples(these),
            sum(b.count * b.confidence for b in these) / count,
            sum(b.count * b.accuracy for b in these) / count,
        )
        for _, these in sorted(bins.items())
    ]


def _diagram(upper: Axes, lower: Axes, bins: list[Bin], method: str) -> None:
    total = _samples(bins)
    upper.plot([0, 100], [0, 100], color=INK, lw=0.9, ls=EVEN, zorder=4)
    for found in bins:
        shape: dict[str, Any] = {
            "width": 100 * (found.high - found.low),
            "align": "edge",
            "color": BLUE if is_distilled(method) else REFERENCE,
            "edgecolor": "white",
            "lw": 0.6,
            "zorder": 3,
        }
        pale = 0.35 if found.count < _FEW * total else 1.0
        upper.bar(100 * found.low, 100 * found.accuracy, alpha=pale, **shape)
        lower.bar(100 * found.low, 100 * found.count / total, **shape)
