"""Pictures of a job: how good the methods are, how they learned, and which teacher taught whom.

Everything goes through matplotlib's object interface and its Agg canvas: no display, no global
state, safe beside other threads. Each function writes one PNG, and says whether there was
anything to draw.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from agrekd_ray.files import exists
from agrekd_ray.results import Epoch, Member, Outcome
from agrekd_ray.tracking.files import replacing
from agrekd_ray.tracking.labels import ALL, accuracy_of, family, is_distilled, label
from agrekd_ray.tracking.tables import summary

INK, FAINT = "#222222", "#8a8a8a"
REFERENCE, BLUE, ORANGE = "#b3b3b3", "#56b4e9", "#d55e00"
# Okabe and Ito's palette without its yellow, which is too pale for lines on white. The method
# of the paper has a colour of its own, whichever others a job compares it with.
_OURS = {"agre_kd": "#d55e00"}
LINES = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#222222")
DASHES = ("-", "--", ":", "-.")
# By place: colours in turn, then the next dash. Distilled students first, then references.
_PLACES = (
    *("aver", "ae_kd", "random", "ca_mkd", "govern", "default"),
    *("one_hot", "one_hot_dfr", "deep_ensemble", "deep_ensemble_dfr", "teacher_vote", "winner"),
)
# From dark to light; one hue a family. Blue against orange survives every colour blindness.
_SHADES = {
    "dfr": ("#08306b", "#2171b5", "#6baed6", "#9ecae1"),
    "erm": ("#8c2d04", "#d94801", "#fd8d3c", "#fdbe85"),
    "own": ("#252525", "#636363", "#969696", "#bdbdbd"),
}
_MOST_LINES, MOST_GROUPS = 8, 8


def draw_plots(
    folder: Path, plots: Mapping[str, Callable[[Path], object]], *, anew: bool = True
) -> None:
    """Draws a run's plots, each into a PNG of its name.

    Args:
        folder: of the PNGs.
        plots: what draws one at a path, or finds nothing to draw, by name.
        anew: false leaves those that are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in plots.items():
        if anew or not exists(folder / f"{name}.png"):
            draw(folder / f"{name}.png")


def worst_group_by_method(outcomes: Sequence[Outcome], path: Path) -> bool:
    """Draws worst-group accuracy (bars) and accuracy (diamonds) on the test split, by method.

    Whiskers are the sample standard deviation over seeds; each seed is a small dot.

    Args:
        outcomes: finished students.
        path: the PNG, replaced as a whole.

    Returns:
        Whether there was anything to draw; without it there is no file.
    """
    rows = [row for row in summary(outcomes) if row.split == "test"]
    if not rows:
        return False
    figure, axes = _sheet(7.2, 1.55 + 0.42 * len(rows))
    several = any(len(row.seeds) > 1 for row in rows)
    worst_words = rows[0].worst
    for place, row in enumerate(rows):
        worst, accuracy = (100 * row.mean[name] for name in ("worst_group_accuracy", "accuracy"))
        spread = 100 * row.std["worst_group_accuracy"], 100 * row.std["accuracy"]
        fill = BLUE if is_distilled(row.method) else REFERENCE
        axes.barh(place, worst, height=0.62, color=fill, zorder=2)
        whiskers: dict[str, Any] = {"capsize": 2.5, "elinewidth": 1.1, "fmt": "none", "zorder": 4}
        if len(row.seeds) > 1:
            axes.errorbar(worst, place, xerr=spread[0], ecolor=INK, **whiskers)
            axes.errorbar(accuracy, place, xerr=spread[1], ecolor=ORANGE, **whiskers)
            seeds = [100 * o.splits["test"].worst_group_accuracy for o in _of(outcomes, row.method)]
            heights = place + np.linspace(-0.17, 0.17, len(seeds))
            axes.scatter(seeds, heights, s=11, c="white", edgecolors=INK, lw=0.7, zorder=5)
        axes.scatter(
            accuracy, place, s=34, marker="D", c="white", edgecolors=ORANGE, lw=1.5, zorder=5
        )
        axes.annotate(
            f"{worst:.1f}", (101, place), ha="left", va="center", size=9, annotation_clip=False
        )
    axes.annotate(
        textwrap.fill(worst_words, 9),
        (101, -0.75),
        ha="left",
        va="bottom",
        size=8,
        color=FAINT,
        annotation_clip=False,
    )
    axes.set_yticks(range(len(rows)), [label(row.method) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy on the test split (%)")
    axes.grid(axis="x", color="#e4e4e4", lw=0.8, zorder=0)
    keys: list[Line2D | Patch] = []
    if any(is_distilled(row.method) for row in rows):
        keys.append(Patch(color=BLUE, label=f"{worst_words}, distilled"))
    if not all(is_distilled(row.method) for row in rows):
        keys.append(Patch(color=REFERENCE, label=f"{worst_words}, reference"))
    keys.append(marker("D", ORANGE, 6, "all samples"))
    if several:
        keys.append(marker("o", INK, 4, "one seed"))
        keys.append(Line2D([], [], color=INK, lw=1.1, label="± sd"))
    headline(figure, f"{accuracy_of(worst_words).capitalize()} by method")
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), **LEGEND)
    save(figure, path)
    return True


def training_curves(outcomes: Sequence[Outcome], path: Path) -> bool:
    """Draws validation worst-group accuracy and training loss over epochs, a line a method.

    Lines are means over seeds, bands run from the lowest to the highest seed.

    Args:
        outcomes: students, finished or under way; those without history are left out.
        path: the PNG, replaced as a whole.

    Returns:
        Whether there was anything to draw; without it there is no file.
    """
    methods = list(dict.fromkeys(o.method for o in outcomes if o.history))
    if not methods:
        return False
    columns = min(4, len(methods))
    lines = -(-len(methods) // columns)
    figure = new_figure(9.2, 4.0 + 0.22 * lines)
    left, right = figure.subplots(1, 2)
    keys = []
    worst = next(o.history[0].val.worst for o in outcomes if o.history)
    for method, style in method_styles(methods).items():
        histories = [outcome.history for outcome in _of(outcomes, method)]
        _band(left, histories, lambda epoch: 100 * epoch.val.worst_group_accuracy, style)
        _band(right, histories, lambda epoch: epoch.loss, style)
        keys.append(Line2D([], [], label=label(method), **style))
    left.set_title(f"{worst.capitalize()}, validation", size=10, loc="left")
    left.set_ylabel(f"{accuracy_of(worst)} (%)")
    left.set_ylim(bottom=0)
    right.set_title("Training loss, each method's own objective", size=10, loc="left")
    right.set_ylabel("mean loss per sample")
    if right.get_ylim()[0] < 0.5 * right.get_ylim()[1] or not _several_epochs(outcomes):
        right.set_ylim(bottom=0)
    for axes in (left, right):
        epoch_axis(axes)
        axes.grid(color="#ececec", lw=0.8)
    headline(figure, "Training by epoch")
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, **LEGEND)
    save(figure, path)
    return True


def weights_by_group(outcomes: Sequence[Outcome], members: Sequence[Member], path: Path) -> bool:
    """Draws which teacher taught whom: mean weights over epochs, a panel a method and group.

    Up to eight teachers have a line each; more are shown as one line a family (mean weight of a
    teacher) with a band from the lowest to the highest teacher. Beyond eight training groups,
    the eight are shown in which the weights are least even.

    Args:
        outcomes: students, finished or under way; those without weights are left out.
        members: the ensemble; tells debiased teachers from biased ones.
        path: the PNG, replaced as a whole.

    Returns:
        Whether there was anything to draw; without it there is no file.
    """
    title = "Who taught whom: mean weight of a teacher, by training group"
    return _by_group(outcomes, members, path, lambda epoch: epoch.weights, title)


def influence_by_group(outcomes: Sequence[Outcome], members: Sequence[Member], path: Path) -> bool:
    """Draws which teacher moved the student: influence over epochs, a panel a method and group.

    As `weights_by_group`, with all samples in the first column. A teacher below 0 is overruled by
    the others.

    Args:
        outcomes: students, finished or under way; those without influence are left out.
        members: the ensemble; tells debiased teachers from biased ones.
        path: the PNG, replaced as a whole.

    Returns:
        Whether there was anything to draw; without it there is no file.
    """

    def influence(epoch: Epoch) -> dict[str, dict[str, float]]:
        return {ALL: epoch.influence, **epoch.influence_by_group} if epoch.influence else {}

    title = "Who moved the student: influence of a teacher, by training group"
    return _by_group(outcomes, members, path, influence, title)


def _by_group(
    outcomes: Sequence[Outcome],
    members: Sequence[Member],
    path: Path,
    shares: Callable[[Epoch], dict[str, dict[str, float]]],
    title: str,
) -> bool:
    """Shares of the teachers by group, which sum to 1: a row a method, a column a group."""
    means = {
        method: _mean_shares(_of(outcomes, method), shares)
        for method in dict.fromkeys(o.method for o in outcomes)
    }
    means = {method: groups for method, groups in means.items() if groups}
    if not means:
        return False
    present = {t for groups in means.values() for group in groups.values() for t in group}
    kinds = {member.name: member.kind for member in members if member.name in present}
    kinds |= dict.fromkeys(sorted(present - kinds.keys()), "own")
    every_group = list(dict.fromkeys(g for groups in means.values() for g in groups))
    groups = _least_even(every_group, means)
    wide = max(2.0, min(3.4, 13.0 / len(groups)))
    width = 1.5 + wide * len(groups)
    each = len(kinds) <= _MOST_LINES
    handles = _teacher_keys(kinds) if each else _family_keys(kinds)
    handles.append(Line2D([], [], color=INK, lw=0.8, ls=(0, (4, 3)), label=f"even: 1/{len(kinds)}"))
    longest = max(len(str(handle.get_label())) for handle in handles)
    across = max(1, min(len(handles), int(width / (0.55 + 0.075 * longest))))
    below = 0.2 * -(-len(handles) // across)
    figure = new_figure(width, 1.3 + below + max(1.8, 1.32 * len(means)))
    panels = figure.subplots(len(means), len(groups), sharex=True, sharey=True, squeeze=False)
    for row, (method, by_group) in enumerate(means.items()):
        for column, group in enumerate(groups):
            axes = panels[row][column]
            axes.axhline(1 / len(kinds), color=INK, lw=0.8, ls=(0, (4, 3)), zorder=2)
            (_teacher_lines if each else _family_lines)(axes, by_group.get(group, {}), kinds)
            axes.grid(color="#f0f0f0", lw=0.8)
            axes.tick_params(labelsize=8)
            if row == 0:
                axes.set_title(textwrap.fill(group, max(12, int(11 * wide))), size=10)
            if row == len(means) - 1:
                epoch_axis(axes)
        panels[row][0].set_ylabel(label(method), size=10)
    if min(axes.dataLim.y0 for axes in panels.flat) < 0:
        for axes in panels.flat:
            axes.axhline(0, color=FAINT, lw=0.8, zorder=1)
    else:
        panels[0][0].set_ylim(bottom=0)
    panels[0][0].yaxis.set_major_locator(MaxNLocator(3))
    left_out = len(every_group) - len(groups)
    if left_out:
        title += (
            f" ({len(groups) - (ALL in groups)} of {len(every_group) - (ALL in groups)} groups)"
        )
    headline(figure, textwrap.fill(title, int(9 * width)))
    figure.legend(handles=handles, loc="outside lower center", ncols=across, **LEGEND)
    save(figure, path)
    return True


Shares = dict[str, dict[str, dict[int, float]]]
"""Mean share by group, teacher and epoch."""

LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 9,
    "handlelength": 1.8,
    "columnspacing": 1.4,
}


def method_styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, dash and width of each method's line; a method that we know looks alike everywhere.

    AGRE-KD's line is thick, those of references are dashed.
    """
    places = [*_PLACES, *(m for m in methods if m not in _PLACES and m not in _OURS)]
    styles: dict[str, dict[str, Any]] = {}
    for method in methods:
        if method in _OURS:
            styles[method] = {"color": _OURS[method], "linestyle": "-", "lw": 2.6, "zorder": 5}
        else:
            place = places.index(method)
            color = LINES[place % len(LINES)]
            dash = DASHES[place // len(LINES) % len(DASHES)]
            styles[method] = {"color": color, "linestyle": dash, "lw": 1.5, "zorder": 3}
    return styles


def _several_epochs(outcomes: Sequence[Outcome]) -> bool:
    return any(len(outcome.history) > 1 for outcome in outcomes)


def _mean_shares(
    outcomes: Sequence[Outcome], shares: Callable[[Epoch], dict[str, dict[str, float]]]
) -> Shares:
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for outcome in outcomes:
        for epoch in outcome.history:
            for group, teachers in shares(epoch).items():
                for teacher, share in teachers.items():
                    by_epoch = found.setdefault(group, {}).setdefault(teacher, {})
                    by_epoch.setdefault(epoch.epoch, []).append(share)
    return {
        group: {
            teacher: {epoch: float(np.mean(w)) for epoch, w in sorted(by_epoch.items())}
            for teacher, by_epoch in teachers.items()
        }
        for group, teachers in found.items()
    }


def _least_even(groups: list[str], means: dict[str, Shares]) -> list[str]:
    if len(groups) <= MOST_GROUPS:
        return groups

    def unevenness(group: str) -> float:
        if group == ALL:
            return math.inf
        found = [
            [float(np.mean(list(by_epoch.values()))) for by_epoch in by_group[group].values()]
            for by_group in means.values()
            if group in by_group
        ]
        return max(max(values) - min(values) for values in found)

    chosen = sorted(groups, key=unevenness, reverse=True)[:MOST_GROUPS]
    return [group for group in groups if group in chosen]


def _teacher_lines(axes: Axes, weights: dict[str, dict[int, float]], kinds: dict[str, str]) -> None:
    for teacher, style in _teacher_styles(kinds).items():
        by_epoch = weights.get(teacher, {})
        axes.plot(list(by_epoch), list(by_epoch.values()), **visible(style, len(by_epoch)))


def _family_lines(axes: Axes, weights: dict[str, dict[int, float]], kinds: dict[str, str]) -> None:
    for kind, color in _family_colors(kinds).items():
        mine = [weights[t] for t in kinds if kinds[t] == kind and t in weights]
        epochs = sorted({epoch for by_epoch in mine for epoch in by_epoch})
        values = [[by_epoch[e] for by_epoch in mine if e in by_epoch] for e in epochs]
        low, high = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(epochs, low, high, color=color, alpha=0.22, lw=0, zorder=3)
        style = visible({"color": color, "lw": 2.0, "zorder": 4}, len(epochs))
        axes.plot(epochs, [float(np.mean(v)) for v in values], **style)


def _teacher_styles(kinds: dict[str, str]) -> dict[str, dict[str, Any]]:
    styles: dict[str, dict[str, Any]] = {}
    for kind in _families(kinds):
        mine = [teacher for teacher in kinds if kinds[teacher] == kind]
        shades = _SHADES.get(kind, _SHADES["own"])
        for place, teacher in enumerate(mine):
            styles[teacher] = {
                "color": shades[place % len(shades)],
                "linestyle": DASHES[place // len(shades) % len(DASHES)],
                "lw": 1.8,
                "zorder": 5 if kind == "dfr" else 4,
            }
    return styles


def _family_colors(kinds: dict[str, str]) -> dict[str, str]:
    return {kind: _SHADES.get(kind, _SHADES["own"])[1] for kind in _families(kinds)}


def _families(kinds: dict[str, str]) -> list[str]:
    order = ["dfr", "erm"]
    rest = [kind for kind in dict.fromkeys(kinds.values()) if kind not in order]
    return [kind for kind in (*order, *rest) if kind in kinds.values()]


def _teacher_keys(kinds: dict[str, str]) -> list[Line2D]:
    return [
        Line2D([], [], label=f"{teacher}, {family(kinds[teacher])}", **style)
        for teacher, style in _teacher_styles(kinds).items()
    ]


def _family_keys(kinds: dict[str, str]) -> list[Line2D]:
    counts = {kind: sum(k == kind for k in kinds.values()) for kind in kinds.values()}
    return [
        Line2D([], [], color=color, lw=2, label=f"{counts[kind]} {family(kind)}, mean and range")
        for kind, color in _family_colors(kinds).items()
    ]


def _band(
    axes: Axes,
    histories: list[list[Epoch]],
    value: Callable[[Epoch], float],
    style: dict[str, Any],
) -> None:
    by_epoch: dict[int, list[float]] = {}
    for history in histories:
        for epoch in history:
            if math.isfinite(found := value(epoch)):
                by_epoch.setdefault(epoch.epoch, []).append(found)
    epochs = sorted(by_epoch)
    low, high = [min(by_epoch[e]) for e in epochs], [max(by_epoch[e]) for e in epochs]
    axes.fill_between(epochs, low, high, color=style["color"], alpha=0.12, lw=0, zorder=2)
    means = [float(np.mean(by_epoch[e])) for e in epochs]
    axes.plot(epochs, means, **visible(style, len(epochs)))


def visible(style: dict[str, Any], points: int) -> dict[str, Any]:
    """A line through a single point shows nothing: such a point gets a marker."""
    return style if points != 1 else {**style, "marker": "o", "markersize": 4}


def epoch_axis(axes: Axes) -> None:
    """Whole epochs below a panel."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def _of(outcomes: Sequence[Outcome], method: str) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.method == method]


def marker(shape: str, color: str, size: float, text: str) -> Line2D:
    """A key of the legend: a hollow marker."""
    return Line2D([], [], ls="", marker=shape, mec=color, mfc="white", mew=1.2, ms=size, label=text)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, which no other thread knows."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    figure = new_figure(width, height)
    axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def headline(figure: Figure, text: str) -> None:
    """Sets the one line above all panels."""
    figure.suptitle(text, size=12, weight="bold", x=0.01, ha="left")


def as_written(figure: Figure) -> None:
    """Names with dollars are no formulas; call it before the figure is drawn."""
    for text in figure.findobj(Text):
        if "$" in text.get_text() and r"\mathdefault" not in text.get_text():  # a tick's power
            text.set_parse_math(False)


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG, which is replaced as a whole."""
    as_written(figure)
    with replacing(path) as draft:
        figure.savefig(draft, format="png")
