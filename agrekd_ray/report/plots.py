"""Plots of students: how good methods are, how they learned, who taught whom, whom to believe.

Each function returns a figure, or None where there is nothing to draw.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from agrekd_ray.core.diagnostics import CALIBRATION_BINS
from agrekd_ray.report import style
from agrekd_ray.report.ensemble import agreement_groups
from agrekd_ray.report.models import TEST, kinds_of, tested
from agrekd_ray.report.style import BLUE, EVEN, FAINT, INK, ORANGE, REFERENCE
from agrekd_ray.results import Diagnostics, StudentResult, TeacherResult
from agrekd_ray.results.frame import FALLBACK, INFLUENCE, LOSS, WEIGHT, epochs, worst_words
from agrekd_ray.results.intervals import ONE_DRAW, seeds_of_one_draw
from agrekd_ray.results.metrics import (
    ACCURACY,
    ALL,
    WORST_GROUP,
    accuracy_of,
    is_distilled,
    label,
)
from agrekd_ray.teachers import ERM, KINDS, OWN, family

# From dark to light; one hue a family. Blue against orange survives every colour blindness.
_SHADES = {
    ERM: ("#8c2d04", "#d94801", "#fd8d3c", "#fdbe85"),
    OWN: ("#252525", "#636363", "#969696", "#bdbdbd"),
}
_SHADES_OF_DEBIASED = (
    ("#08306b", "#2171b5", "#6baed6", "#9ecae1"),
    ("#00441b", "#238b45", "#74c476", "#a1d99b"),
    ("#3f007d", "#6a51a3", "#9e9ac8", "#bcbddc"),
    ("#014636", "#02818a", "#67a9cf", "#a6bddb"),
)
"""By the place of a kind in `KINDS`."""
_TITLES = {
    WEIGHT: "Who taught whom: mean weight of a teacher",
    INFLUENCE: "Who moved the student: influence of a teacher",
}
_MOST_LINES, _MOST_GROUPS, _MOST_ACROSS = 8, 8, 4
_CASES = {
    "agrees_right": ("#d9d9d9", "agrees, both right"),
    "agrees_wrong": ("#8a8a8a", "agrees, both wrong"),
    "contradicts_right": (BLUE, "contradicts it, and is right"),
    "contradicts_wrong": (ORANGE, "contradicts it, and is wrong"),
}
_SMALLEST_SHOWN = 6
"""Percent of a bar from which on there is room for its number."""
_FEW = 0.01
"""Bins with less of the samples than this say little and are drawn pale."""


def of_training(
    outcomes: Sequence[StudentResult], members: Sequence[TeacherResult], data: str = ""
) -> dict[str, Callable[[], Figure | None]]:
    """The plots of who taught whom, and of what confidence is worth, by name."""
    return {
        "weights_by_group": lambda: shares_by_group(outcomes, members, WEIGHT, data),
        "influence_by_group": lambda: shares_by_group(outcomes, members, INFLUENCE, data),
        "fallback_by_group": lambda: fallback_by_group(outcomes, data),
        "calibration": lambda: calibration(outcomes, data),
    }


def worst_group_by_method(outcomes: Sequence[StudentResult], data: str = "") -> Figure | None:
    """Draws worst-group accuracy (bars) and accuracy (diamonds) on the test split, by method.

    Whiskers are the sample standard deviation over seeds; each seed is a small dot.
    """
    rows = tested(outcomes)
    if not rows:
        return None
    figure = style.new_figure(7.2, 1.55 + 0.42 * len(rows))
    axes = style.bars(figure.subplots(), [label(method) for method in rows])
    words = worst_words(next(iter(rows.values())))
    worst, accuracy = ([row[name] for row in rows.values()] for name in (WORST_GROUP, ACCURACY))
    places = np.arange(len(rows))
    colors, names = zip(*map(_kind, rows), strict=True)
    names = tuple(f"{words}, {name}" for name in names)
    axes.barh(places, [100 * f.mean for f in worst], 0.62, color=colors, label=names, zorder=2)
    means = [100 * f.mean for f in accuracy]
    diamond: dict[str, Any] = {"s": 34, "marker": "D", "c": "white", "lw": 1.5, "zorder": 5}
    axes.scatter(means, places, edgecolors=ORANGE, label="all samples", **diamond)
    for place, (method, figure_of) in enumerate(zip(rows, worst, strict=True)):
        if figure_of.count > 1:
            mine = [o.splits[TEST] for o in outcomes if o.method == method and TEST in o.splits]
            seeds = [100 * metrics.worst_group_accuracy for metrics in mine]
            dot: dict[str, Any] = {"s": 11, "c": "white", "edgecolors": INK, "lw": 0.7, "zorder": 5}
            heights = place + np.linspace(-0.17, 0.17, len(seeds))
            axes.scatter(seeds, heights, label="one seed", **dot)
        _beside(axes, figure_of.text, place, va="center", size=9)
    for shown, color in ((worst, INK), (accuracy, ORANGE)):
        sds = [100 * f.sd if f.count > 1 else np.nan for f in shown]
        whiskers: dict[str, Any] = {"capsize": 2.5, "elinewidth": 1.1, "fmt": "none", "zorder": 4}
        whiskers["label"] = "± sd over seeds" if np.isfinite(sds).any() else None
        axes.errorbar([100 * f.mean for f in shown], places, xerr=sds, ecolor=color, **whiskers)
    _beside(axes, textwrap.fill(words, 9), -0.75, va="bottom", size=8, color=FAINT)
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy on the test split (%)")
    note = style.about(data, TEST, _counts(outcomes), _seeds(outcomes))
    return style.finish(figure, f"{accuracy_of(words).capitalize()} by method", note)


def training_curves(outcomes: Sequence[StudentResult], data: str = "") -> Figure | None:
    """Draws validation worst-group accuracy and training loss over epochs, a line a method.

    Lines are means over seeds, bands run from the lowest to the highest seed. Students may be
    finished or under way; those without history are left out.
    """
    table = epochs(outcomes, (WORST_GROUP, LOSS))
    styles = style.method_styles(dict.fromkeys(table["method"]))
    if not styles:
        return None
    figure = style.new_figure(9.2, 4.0 + 0.22 * -(-len(styles) // 4))
    left, right = figure.subplots(1, 2)
    worst = next(outcome.history[0].val.worst for outcome in outcomes if outcome.history)
    table = table[np.isfinite(table["value"])]
    of_worst = table[table["metric"] == WORST_GROUP]
    style.curves(left, of_worst.assign(value=100 * of_worst["value"]), "method", styles)
    style.curves(right, table[table["metric"] == LOSS], "method", styles)
    left.set_title(f"{worst.capitalize()}, validation", size=10, loc="left")
    left.set_ylabel(f"{accuracy_of(worst)} (%)")
    left.set_ylim(bottom=0)
    right.set_title("Training loss, each method's own objective", size=10, loc="left")
    right.set_ylabel("mean loss per sample")
    if right.get_ylim()[0] < 0.5 * right.get_ylim()[1] or table["epoch"].nunique() < 2:
        right.set_ylim(bottom=0)
    counts = next(outcome.history[0].val.counts for outcome in outcomes if outcome.history)
    band = "bands: lowest to highest seed" if table["seed"].nunique() > 1 else ""
    note = style.about(data, "validation", counts, _seeds(outcomes), band)
    return style.finish(figure, "Training by epoch", note)


def shares_by_group(
    outcomes: Sequence[StudentResult],
    members: Sequence[TeacherResult],
    name: str,
    data: str = "",
) -> Figure | None:
    """Draws which teacher taught or moved the student, by epoch: a row a method, a column a group.

    Up to eight teachers have a line each; more are shown as one line a family (mean of a teacher)
    with a band from the lowest to the highest teacher. Beyond eight training groups, the eight are
    shown in which the shares are least even. A teacher whose influence is below 0 is overruled by
    the others.

    Args:
        outcomes: students, finished or under way; those without such shares are left out.
        members: the ensemble; tells debiased teachers from biased ones.
        name: `weight`, or `influence`, which has all samples in the first column.
        data: name of the data set.
    """
    table = epochs(outcomes, (name,))
    if table.empty:
        return None
    kinds = kinds_of(table["teacher"], members)
    styles = teacher_styles(kinds)
    means = table.groupby(["method", "group", "teacher", "epoch"])["value"].mean()
    of_teachers = means.groupby(["method", "group", "teacher"]).mean()
    by_both = of_teachers.groupby(["method", "group"])
    uneven = (by_both.max() - by_both.min()).groupby("group").max()
    methods, every = (list(dict.fromkeys(table[column])) for column in ("method", "group"))
    groups = most_important(every, uneven)
    shares = means.reset_index()
    shares["line"] = shares["teacher"].map({t: look["label"] for t, look in styles.items()})
    lines = {look["label"]: look for look in styles.values()}
    wide = max(2.0, min(3.4, 13.0 / len(groups)))
    figure = style.new_figure(1.5 + wide * len(groups), 1.7 + max(1.8, 1.32 * len(methods)))
    panels = figure.subplots(len(methods), len(groups), sharex=True, sharey=True, squeeze=False)
    even: dict[str, Any] = {"color": INK, "lw": 0.8, "ls": EVEN, "zorder": 2}
    for axes, (method, group) in zip(panels.flat, itertools.product(methods, groups), strict=True):
        of_both = (shares["method"] == method) & (shares["group"] == group)
        style.curves(axes, shares[of_both], "line", lines)
        axes.axhline(1 / len(kinds), label=f"even: 1/{len(kinds)}", **even)
        if means.min() < 0:
            axes.axhline(0, color=FAINT, lw=0.8, zorder=1)
        axes.tick_params(labelsize=8)
        axes.set_ylabel(label(method), size=10)
        axes.label_outer()
    for axes, group in zip(panels[0], groups, strict=True):
        axes.set_title(textwrap.fill(group, max(12, int(11 * wide))), size=10)
    if means.min() >= 0:
        panels[0][0].set_ylim(bottom=0)
    panels[0][0].yaxis.set_major_locator(MaxNLocator(3))
    title = f"{_TITLES[name]}, by training group{_of_how_many(groups, every)}"
    many = len(kinds) > _MOST_LINES
    band = "bands: lowest to highest teacher" if many else ""
    note = style.about(data, "training", None, f"means over {_seeds(outcomes)}", band)
    return style.finish(figure, title, note)


def _shades(kind: str) -> tuple[str, ...]:
    if kind in KINDS:
        return _SHADES_OF_DEBIASED[list(KINDS).index(kind) % len(_SHADES_OF_DEBIASED)]
    return _SHADES.get(kind, _SHADES[OWN])


def teacher_styles(kinds: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What the line of each teacher looks like; those of the same label share one.

    Args:
        kinds: of the teachers, by name. Where they are many, a kind has one line.
    """
    styles: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(kinds.values()):
        teachers = [teacher for teacher in kinds if kinds[teacher] == kind]
        together = f"{len(teachers)} {family(kind)}, mean and range"
        above = {"lw": 1.8, "zorder": 5 if kind in KINDS else 4}
        for number, teacher in enumerate(teachers):
            many = len(kinds) > _MOST_LINES
            words = together if many else f"{teacher}, {family(kind)}"
            look = style.turn(1 if many else number, _shades(kind))
            styles[teacher] = {"label": words, **look, **above}
    return styles


def most_important(every: Sequence[str], importance: pd.Series[float]) -> list[str]:
    """All samples, and of the groups the most important ones, in their order."""
    ranked = importance.drop(ALL, errors="ignore").sort_values(ascending=False, kind="stable")
    kept = {ALL, *ranked.index[: _MOST_GROUPS - (ALL in every)]}
    return [group for group in every if group in kept or len(every) <= _MOST_GROUPS]


def _of_how_many(groups: Sequence[str], every: Sequence[str]) -> str:
    if len(groups) == len(every):
        return ""
    return f" ({len(groups) - (ALL in groups)} of {len(every) - (ALL in every)} groups)"


def fallback_by_group(outcomes: Sequence[StudentResult], data: str = "") -> Figure | None:
    """Draws the share of samples in the 0/0 case over epochs, a panel a method, a line a group.

    Lines are means over seeds. Methods that never met the case are left out; beyond eight groups,
    the eight are shown that met it most.
    """
    table = epochs(outcomes, (FALLBACK,))
    table = table[table.groupby("method")["value"].transform("max") > 0]
    if table.empty:
        return None
    means = 100 * table.groupby(["method", "group", "epoch"], sort=False)["value"].mean()
    methods, every = (list(dict.fromkeys(table[name])) for name in ("method", "group"))
    importance = means.groupby(["method", "group"]).mean().groupby("group").max()
    most = most_important([group for group in every if group != ALL], importance)
    colors = [color for color in style.LINES if color != INK]
    styles = {ALL: {"label": ALL, "color": INK, "linestyle": "-", "lw": 2.4}}
    for place, group in enumerate(most):
        styles[group] = {"label": group, **style.turn(place, colors), "lw": 1.6}
    shares = means.reset_index()
    shares = shares[shares["group"].isin(styles)]
    figure = style.new_figure(max(4.6, 2.2 + 3.4 * len(methods)), 3.5)
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, methods, strict=True):
        style.curves(axes, shares[shares["method"] == method], "group", styles)
        axes.set_title(label(method), size=10, loc="left")
    top = panels[0].get_ylim()[1]
    panels[0].set_ylim(-0.02 * top, top)  # so that a line at 0 is seen
    panels[0].set_ylabel("samples (%)")
    shown = _of_how_many([*styles], every)
    note = style.about(data, "training", None, f"means over {_seeds(outcomes)}")
    return style.finish(figure, f"Samples in the 0/0 case, by training group{shown}", note)


def agreement_by_group(diagnostics: Diagnostics, data: str = "") -> Figure | None:
    """Draws where the ensemble's vote follows the biased model, a bar a group, a panel a split.

    Of many groups those are shown that `report.ensemble.agreement_groups` names.
    """
    groups = agreement_groups(diagnostics)
    if not groups:
        return None
    every = dict.fromkeys(g for part in diagnostics.agreement.values() for g in part.by_group)
    by_split = {
        split: {group: shares for group, shares in part.by_group.items() if group in groups}
        for split, part in diagnostics.agreement.items()
    }
    figure = style.new_figure(3.2 + 3.9 * len(by_split), 1.75 + 0.36 * len(groups))
    panels = figure.subplots(1, len(by_split), sharey=True, squeeze=False)[0]
    for axes, (split, by_group) in zip(panels, by_split.items(), strict=True):
        style.bars(axes, [textwrap.fill(group, 28) for group in groups]).grid(visible=False)
        places = [groups.index(group) for group in by_group]
        left = np.zeros(len(places))
        for case, (color, words) in _CASES.items():
            shares = np.array([100 * getattr(agreement, case) for agreement in by_group.values()])
            look: dict[str, Any] = {"height": 0.72, "color": color, "label": words, "zorder": 2}
            drawn = axes.barh(places, shares, left=left, **look)
            texts = [f"{share:.0f}" if share >= _SMALLEST_SHOWN else "" for share in shares]
            ink = "white" if case == "agrees_wrong" else INK
            axes.bar_label(drawn, texts, label_type="center", size=8, color=ink)
            left += shares
        for place, agreement in zip(places, by_group.values(), strict=True):
            _beside(axes, f"n = {agreement.count:,}", place, va="center", size=8, color=FAINT)
        axes.set_title(f"{split} split", size=10, loc="left")
        axes.set_xlim(0, 100)
        axes.set_xlabel("samples of the group (%)")
        axes.axhline(0.5, color=FAINT, lw=0.8)
    note = style.about(data, "", None, ONE_DRAW)
    title = f"The teachers' vote against the biased model{_of_how_many(groups, list(every))}"
    return style.finish(figure, title, note)


def _beside(axes: Axes, text: str, place: float, **look: Any) -> None:
    """A text to the right of an axis that ends at 100."""
    axes.annotate(text, (101, place), ha="left", annotation_clip=False, **look)


def calibration(outcomes: Sequence[StudentResult], data: str = "") -> Figure | None:
    """Draws reliability diagrams on the test split, a panel a method, samples by confidence below.

    The samples of all seeds are pooled; the expected calibration error is the mean over seeds.
    """
    measured = [outcome for outcome in outcomes if outcome.calibration]
    if not measured:
        return None
    bins = pooled(measured)
    methods = list(dict.fromkeys(outcome.method for outcome in measured))
    rows = -(-len(methods) // _MOST_ACROSS)
    columns = -(-len(methods) // rows)
    figure = style.new_figure(max(4.8, 1.0 + 2.4 * columns), 1.25 + 2.75 * rows)
    shape = {"height_ratios": [3.0, 1.0] * rows}
    panels = figure.subplots(2 * rows, columns, squeeze=False, sharex=True, gridspec_kw=shape)
    uppers, lowers = panels[::2].ravel(), panels[1::2].ravel()
    for axes in (*uppers[len(methods) :], *lowers[len(methods) :]):
        axes.set_axis_off()
    top = 10 * np.ceil(bins["share"].max() / 10)
    for place, (method, upper, lower) in enumerate(zip(methods, uppers, lowers, strict=False)):
        mine = bins.loc[method]
        error = np.mean([o.splits[TEST].ece for o in measured if o.method == method])
        upper.set_title(f"{label(method)}\nECE {100 * error:.1f} %", size=9, loc="left")
        color, words = _kind(method)
        look: dict[str, Any] = {"edgecolor": "white", "lw": 0.6, "zorder": 3, "align": "edge"}
        look["width"] = 100 / CALIBRATION_BINS
        lefts = look["width"] * mine.index
        shades = [(color, 0.35 if share < 100 * _FEW else 1.0) for share in mine["share"]]
        upper.bar(lefts, mine["accuracy"], color=shades, **look)
        lower.bar(lefts, mine["share"], color=color, label=words, **look)
        diagonal: dict[str, Any] = {"color": INK, "lw": 0.9, "ls": EVEN, "zorder": 4}
        upper.plot([0, 100], [0, 100], label="as confident as right", **diagonal)
        for axes, high in ((upper, 100), (lower, top)):
            style.panel(axes).set(xlim=(0, 100), ylim=(0, high))
            axes.tick_params(labelsize=8, labelbottom=axes is lower)
        lower.set_yticks([0, top])
        if place % columns == 0:
            upper.set_ylabel("accuracy (%)", size=9)
            lower.set_ylabel("samples\n(%)", size=9)
        if place + columns >= len(methods):
            lower.set_xlabel("confidence (%)", size=9)
    few = f"bins under {_FEW:.0%} of the samples"
    uppers[0].fill_between([0], [0], color=FAINT, lw=0, alpha=0.3, label=few)
    pooling = f"samples pooled over {_seeds(measured)}"
    note = style.about(data, TEST, _counts(measured), pooling)
    return style.finish(figure, "What confidence is worth, test split", note)


def pooled(outcomes: Sequence[StudentResult]) -> pd.DataFrame:
    """The reliability diagrams of the samples of all seeds together.

    Returns:
        By method and number of the bin: `count` of samples, `accuracy` in percent, and the bin's
        `share` of the method's samples in percent.
    """
    bins = pd.DataFrame(
        (
            (outcome.method, round(b.low * CALIBRATION_BINS), b.count, b.count * b.accuracy)
            for outcome in outcomes
            for b in outcome.calibration
        ),
        columns=["method", "bin", "count", "right"],
    )
    sums = bins.groupby(["method", "bin"])[["count", "right"]].sum()
    of_method = sums.groupby("method")["count"].transform("sum")
    accuracy = 100 * sums["right"] / sums["count"]
    return sums.assign(accuracy=accuracy, share=100 * sums["count"] / of_method)


def _kind(method: str) -> tuple[str, str]:
    """Colour and word of distilled students, and of references."""
    return (BLUE, "distilled") if is_distilled(method) else (REFERENCE, "reference")


def _seeds(outcomes: Sequence[StudentResult]) -> str:
    return seeds_of_one_draw(len({outcome.seed for outcome in outcomes}))


def _counts(outcomes: Sequence[StudentResult]) -> dict[str, int]:
    """Samples of the test split by group."""
    return next((o.splits[TEST].counts for o in outcomes if TEST in o.splits), {})
