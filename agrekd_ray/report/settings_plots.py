"""Plots of many settings: how good each is, what each setting does, and how a search went.

They take plain `Point`s, so that runs from MLflow and trials from a search's folder are drawn
alike. Each function leaves out points without the metric (by MLflow's name), lets the chosen point
stand out (or else the best by the metric), and returns a figure, or None where there is nothing to
draw. A note says what data and seeds they show.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from agrekd_ray.report import style
from agrekd_ray.report.style import BLUE, FAINT, INK, ORANGE, brief
from agrekd_ray.report.tables import wrapped
from agrekd_ray.results.metrics import (
    ACCURACY,
    WORST_CLASS,
    WORST_GROUP,
    metric_label,
    setting_text,
    short_paths,
)
from agrekd_ray.results.metrics import metric as metric_of
from agrekd_ray.results.search import FAILED, FINISHED, STOPPED

TEST_WORST = f"test/{WORST_GROUP}"
_BELOW = -0.16
"""Height of what does not apply, below an axis from 0 to 1."""
_MOST_LABELS, _MOST_PANELS, _MOST_AXES = 12, 12, 10
_NEAREST = 0.14
"""Share of an axis that two ticks are apart at least."""
_SHAPES = {FINISHED: "o", STOPPED: "v", FAILED: "X"}
_BEST = {"test": "best on test", "val": "best on validation"}
# Without its palest end, which is lost on white.
_COLORS = LinearSegmentedColormap.from_list(
    "worst_to_best", colormaps["viridis_r"](np.linspace(0.08, 1, 256))
)


@dataclass(frozen=True)
class Point:
    """One setting, and how good it is.

    Attributes:
        label: what people call it.
        number: of the trial; None for what is no trial.
        settings: value by dotted path; a path that does not apply is left out.
        metrics: by MLflow's names (`test/worst_group_accuracy`), shares in [0, 1].
        spread: standard deviations over seeds, where there are some.
        state: `finished`, `stopped early`, `failed`, `running`, ...
        chosen: by what it was, of all points, in words; empty for the others.
        method: of a student; empty for a trial.
    """

    label: str
    number: int | None
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    spread: Mapping[str, float] = field(default_factory=dict)
    state: str = FINISHED
    chosen: str = ""
    method: str = ""

    def value(self, metric: str) -> float:
        """In the unit that plots use: percent for shares; NaN where there is none."""
        value = self.metrics.get(metric, math.nan)
        return _scale(metric) * value if math.isfinite(value) else math.nan

    def deviation(self, metric: str) -> float:
        """As `value`; 0 where there is none."""
        spread = self.spread.get(metric, 0.0)
        return _scale(metric) * spread if math.isfinite(spread) else 0.0


class Scale:
    """Where the values of one setting lie: on a linear or logarithmic axis, or as categories.

    Args:
        values: of the setting. Numbers over more than a decade have a logarithmic axis; what is no
            number makes all of them categories.
        log: whether numbers have a logarithmic axis over less, too.
    """

    def __init__(self, values: Sequence[Any], *, log: bool = False) -> None:
        numbers = all(
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            for value in values
        )
        texts = {setting_text(value, digits=6) for value in values}
        self.categories = [] if numbers else sorted(texts, key=_category_order)
        self._places = sorted({self.place(value) for value in values})
        low, high = self._places[0], self._places[-1]
        self.log = numbers and low > 0 and (log or high / low > 10)
        self._whole = all(isinstance(value, int) for value in values)
        self._ends = (LogNorm if self.log else Normalize)(low, high)

    def place(self, value: Any) -> float:
        """Of a value, on a panel's axis."""
        if self.categories:
            return float(self.categories.index(setting_text(value, digits=6)))
        return float(value)

    def height(self, value: Any) -> float:
        """Of a value, on an axis from 0 to 1."""
        several = len(self._places) > 1
        return float(self._ends(self.place(value))) if several else 0.5

    def ticks(self) -> dict[Any, str]:
        """Values that an axis names, and their texts; the ends are always named."""
        if self.categories:
            return {n: "\n".join(wrapped(brief(n, 40), 14)) for n in self.categories}
        inner, low, high = self._places, self._places[0], self._places[-1]
        if len(inner) > 4:  # a few values of a grid are ticks themselves
            subs = (1.0,) if high > 300 * low else (1.0, 3.0)
            locator = LogLocator(subs=subs) if self.log else MaxNLocator(4, integer=self._whole)
            inner = [place for place in locator.tick_values(low, high) if low < place < high]
        shown = [low, high]
        for place in inner:
            if all(abs(self.height(place) - self.height(p)) > _NEAREST for p in shown):
                shown.append(place)
        return {place: f"{place:.3g}" for place in sorted(shown)}

    def dress(self, axes: Axes) -> None:
        """Gives a panel's horizontal axis its ticks."""
        if self.log:
            axes.set_xscale("log")
        texts = list(self.ticks().values())
        axes.set_xticks([self.place(value) for value in self.ticks()], texts)
        axes.xaxis.set_minor_locator(NullLocator())
        if not self.categories:
            axes.margins(x=0.08)
            return
        axes.set_xlim(-0.6, len(texts) - 0.4)
        if len(texts) * max(map(len, texts)) > 26:  # slanted, a name has one line
            axes.set_xticklabels([text.replace("\n", " ") for text in texts])
            axes.tick_params(axis="x", rotation=40)
            for text in axes.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")


def _category_order(text: str) -> tuple[int, float, str]:
    """Numbers first and by size, then words."""
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text


def worst_against_accuracy(
    points: Sequence[Point], metric: str = TEST_WORST, note: str = ""
) -> Figure | None:
    """Draws the worst group's accuracy against that of all samples; whiskers are the spread.

    The best twelve by worst group have their label beside them; what is no trial is a diamond in
    the colour of its method, or orange where all have the same.
    """
    split, _, name = metric.partition("/")
    x, y = f"{split}/{ACCURACY}", metric
    shown = [p for p in points if math.isfinite(p.value(x)) and math.isfinite(p.value(y))]
    if not shown:
        return None
    figure = style.new_figure(8.2, 5.6)
    axes = style.panel(figure.subplots())
    dots = [(p.value(x), p.value(y), p.deviation(x), p.deviation(y)) for p in shown]
    alike = len({point.number is None for point in shown}) == 1
    looks = style.method_styles(dict.fromkeys(p.method for p in shown if p.method))
    for point, (at_x, at_y, sd_x, sd_y) in zip(shown, dots, strict=True):
        trial, done = point.number is not None, point.state == FINISHED
        color, what = (BLUE, "trial") if trial else (ORANGE, "" if alike else "student")
        if len(looks) > 1 and point.method:
            color, what = looks[point.method]["color"], looks[point.method]["label"]
        look: dict[str, Any] = {"s": 34, "zorder": 4} if trial else {"s": 44, "zorder": 5}
        look |= {"marker": "o" if trial else "D", "edgecolors": INK if trial and done else color}
        look["label"] = what if done else "not trained to its end"
        axes.scatter(at_x, at_y, c=color if done else "white", lw=0.6 if done else 1.4, **look)
        if sd_x or sd_y:
            spread: dict[str, Any] = {"xerr": sd_x or None, "yerr": sd_y or None, "zorder": 2}
            spread |= {"fmt": "none", "ecolor": FAINT, "elinewidth": 0.9}
            axes.errorbar(at_x, at_y, label="± sd over seeds", **spread)
    words = metric_label(f"test/{name}")
    axes.set_xlabel("accuracy of all samples (%)")
    axes.set_ylabel(f"{words.replace(' ', '-')} accuracy (%)".lower())
    axes.margins(0.12, 0.12)
    for get, put in ((axes.get_xlim, axes.set_xlim), (axes.get_ylim, axes.set_ylim)):
        low, high = get()
        put(max(low, -0.02 * (high - low)), min(high, 100 + 0.02 * (high - low)))
    of = {"test": "the test split", "val": "the validation split"}.get(split, split)
    named = min(len(shown), _MOST_LABELS)
    some = f"named: {named} of {len(shown)}, the best of each kind" if named < len(shown) else ""
    note = "; ".join(filter(None, (note, some)))
    style.finish(figure, f"{words} against all samples, {of}", note)
    others = [point for point in shown if point.number is None]
    best = sorted(shown, key=lambda p: -p.value(y))
    labelled = list({id(p): p for p in (*others[:_MOST_LABELS], *best)}.values())[:_MOST_LABELS]
    # A trial's settings are in other plots; here they would cover it.
    texts = [p.label if p.number is None else p.label.split()[0] for p in labelled]
    places = [(p.value(x), p.value(y), text) for p, text in zip(labelled, texts, strict=True)]
    style.place_labels(axes, dots, places)
    return figure


def parameter_effects(
    points: Sequence[Point],
    metric: str = TEST_WORST,
    logs: Collection[str] = (),
    note: str = "",
) -> Figure | None:
    """Draws a metric against each setting that varies, a panel a setting.

    Values that span more than a decade have a logarithmic axis, and so have settings that were
    searched in logarithms (`logs`, by path); what is no number is a category. The chosen point is
    orange. Beyond twelve settings, those with the most values are shown.
    """
    shown = [point for point in points if math.isfinite(point.value(metric))]
    names = _varying(shown, _MOST_PANELS)
    if not names:
        return None
    across = min(len(names), 4 if len(names) > 6 else 3)
    rows = -(-len(names) // across)
    figure = style.new_figure(max(5.4, 3.1 * across), 1.7 + 2.6 * rows)
    panels = figure.subplots(rows, across, sharey=True, squeeze=False)
    best = _outstanding(points, shown, metric)
    for axes in panels.flat[len(names) :]:
        axes.remove()
    for axes, (setting, name) in zip(panels.flat, names.items(), strict=False):
        having = [point for point in shown if setting in point.settings]
        values = [point.settings[setting] for point in having]
        scale = Scale(values, log=setting in logs)
        xs = np.array([scale.place(value) for value in values])
        if scale.categories:  # beside each other, the same way at every call
            xs += np.random.default_rng(0).uniform(-0.16, 0.16, len(xs))
        _draw_points(axes, xs, having, metric, *best)
        scale.dress(axes)
        axes.set_xlabel(name, size=9)
        axes.tick_params(labelsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel(_unit(metric), size=9)
    return style.finish(figure, f"What each setting does to {_lower(metric)}", note)


def parallel_coordinates(
    points: Sequence[Point],
    metric: str = TEST_WORST,
    logs: Collection[str] = (),
    note: str = "",
) -> Figure | None:
    """Draws each point as a line through its settings to the metric, whose colour it has.

    What does not apply to a point goes through a place of its own below the axis. Beyond ten
    settings, those with the most values are shown. For `logs` see `parameter_effects`.
    """
    shown = [point for point in points if math.isfinite(point.value(metric))]
    names = _varying(shown, _MOST_AXES)
    if not names:
        return None
    values = np.array([point.value(metric) for point in shown])
    low, high = values.min(), values.max()
    span = (low, high) if low < high else (low - 1, high + 1)
    of_metric = Normalize(*span)
    less = metric_of(metric).less_is_better
    good = 1 - of_metric(values).data if less else of_metric(values).data
    best, words = _outstanding(points, shown, metric)
    stands_out = np.array([point is best for point in shown])
    last = len(names)
    figure = style.new_figure(max(6.4, 2.0 + 1.65 * last), 4.6)
    axes = figure.subplots()
    axes.set_axis_off()
    columns = []
    for column, (setting, name) in enumerate(names.items()):
        having = [p.settings[setting] for p in shown if setting in p.settings]
        scale = Scale(having, log=setting in logs)
        ticks = {scale.height(value): text for value, text in scale.ticks().items()}
        columns.append(
            [scale.height(p.settings[setting]) if setting in p.settings else _BELOW for p in shown]
        )
        axes.plot([column, column], [0, 1], color=INK, lw=1, zorder=2)
        _axis_name(axes, column, name)
        for height, text in ticks.items():
            _tick(axes, column - 0.04, height, text)
        if _BELOW in columns[-1]:
            _tick(axes, column - 0.04, _BELOW, "not used", color=FAINT)
    axes.set_xlim(-0.45, last + 0.35)
    axes.set_ylim(np.min(columns) - 0.06, 1.16)
    # The chosen line last, above the others.
    order = np.lexsort((good, stands_out))
    lines = np.stack([*columns, of_metric(values).data], axis=1)[order]
    drawn = LineCollection(
        [np.column_stack([np.arange(last + 1), heights]) for heights in lines],
        colors=_COLORS(good[order]),
        linewidths=np.where(stands_out[order], 2.8, 1.3),
        alpha=0.9,
        zorder=3,
    )
    axes.add_collection(drawn)
    bar: dict[str, Any] = {"origin": "lower", "aspect": "auto", "cmap": _COLORS, "zorder": 4}
    shades = np.linspace(*(1, 0) if less else (0, 1), 256)[:, None]
    axes.imshow(shades, extent=(last - 0.02, last + 0.02, 0, 1), norm=Normalize(0, 1), **bar)
    _axis_name(axes, last, _unit(metric), weight="bold")
    for value in MaxNLocator(5).tick_values(*span):
        if span[0] <= value <= span[1]:
            _tick(axes, last + 0.06, float(of_metric(value)), f"{value:.4g}", ha="left")
    thick = f"; the thick line is {words}" if stands_out.any() else ""
    return style.finish(figure, f"Settings and {_lower(metric)}{thick}", note)


def trial_history(
    points: Sequence[Point], metric: str = TEST_WORST, note: str = ""
) -> Figure | None:
    """Draws each trial's last value by the trial's number, and the best so far as a line.

    Trials without the metric are crosses at the bottom.
    """
    trials = sorted((p for p in points if p.number is not None), key=lambda p: p.number or 0)
    shown = [point for point in trials if math.isfinite(point.value(metric))]
    if not shown:
        return None
    figure = style.new_figure(8.2, 4.2)
    axes = figure.subplots()
    numbers = np.array([point.number for point in shown], dtype=float)
    worst_to_best = np.minimum if metric_of(metric).less_is_better else np.maximum
    so_far = worst_to_best.accumulate([point.value(metric) for point in shown])
    end = trials[-1].number or 0
    steps: dict[str, Any] = {"where": "post", "color": ORANGE, "lw": 1.8, "zorder": 3}
    steps["label"] = f"{_BEST.get(metric.partition('/')[0], 'best')} so far"
    axes.step([*numbers, end], [*so_far, so_far[-1]], **steps)
    _draw_points(axes, numbers, shown, metric, *_outstanding(points, shown, metric))
    axes.margins(0.03, 0.08)
    if lost := [point for point in trials if not math.isfinite(point.value(metric))]:
        floor = axes.get_ylim()[0]
        states = ", ".join(dict.fromkeys(point.state for point in lost))
        cross: dict[str, Any] = {"marker": "x", "c": FAINT, "clip_on": False, "zorder": 5, "s": 30}
        cross["label"] = f"without a value ({states})"
        axes.scatter([point.number or 0 for point in lost], [floor] * len(lost), **cross)
        axes.set_ylim(bottom=floor)
    axes.set_xlabel("trial")
    axes.set_ylabel(_unit(metric))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    if end == 0:
        axes.set_xlim(-1, 1)
        axes.set_xticks([0])
    return style.finish(figure, f"Trials of the search, {_lower(metric)}", note)


def _varying(points: Sequence[Point], most: int) -> dict[str, str]:
    """Settings with more than one value and their names; those with the most where too many."""
    values: dict[str, set[str]] = {}
    for point in points:
        for path, value in point.settings.items():
            values.setdefault(path, set()).add(setting_text(value, digits=6))
    varied = [path for path, several in values.items() if len(several) > 1]
    kept = sorted(varied, key=lambda path: -len(values[path]))[:most]
    return short_paths(path for path in varied if path in kept)


def _outstanding(points: Sequence[Point], shown: Sequence[Point], metric: str) -> tuple[Point, str]:
    """Which point stands out, and what it is: the chosen one, whether or not it can be shown.

    Or else the best that was trained to its end, or of all where none was.
    """
    for point in points:
        if point.chosen:
            return point, point.chosen
    done = [point for point in shown if point.state == FINISHED] or shown
    choose: Callable[..., Point] = min if metric_of(metric).less_is_better else max
    best = choose(done, key=lambda point: point.value(metric))
    return best, _BEST.get(metric.partition("/")[0], "best")


def _draw_points(
    axes: Axes, xs: np.ndarray, points: Sequence[Point], metric: str, best: Point, words: str
) -> None:
    """Markers by state: filled for what was trained to its end, hollow otherwise."""
    style.panel(axes)
    for x, point in zip(xs, points, strict=True):
        y, done, chosen = point.value(metric), point.state == FINISHED, point is best
        if deviation := point.deviation(metric):
            axes.errorbar(x, y, deviation, ecolor="#c4c4c4", elinewidth=0.9, fmt="none", zorder=2)
        look: dict[str, Any] = {"s": 46, "zorder": 6} if chosen else {"s": 26, "zorder": 4}
        look |= {"marker": _SHAPES.get(point.state, "s"), "label": words if chosen else point.state}
        look["edgecolors"] = ORANGE if chosen else INK if done else FAINT
        fill = (ORANGE if chosen else BLUE) if done else "white"
        axes.scatter(x, y, c=fill, lw=0.6 if done else 1.2, **look)


def _axis_name(axes: Axes, place: float, text: str, weight: str = "normal") -> None:
    words = textwrap.fill(text.replace("_", " "), 15)
    axes.text(place, 1.05, words, ha="center", va="bottom", size=9, weight=weight)


def _tick(axes: Axes, place: float, height: float, text: str, **look: Any) -> None:
    box = {"facecolor": "white", "alpha": 0.9, "edgecolor": "none", "pad": 0.8}
    look = {"ha": "right", "color": INK, **look}
    axes.text(place, height, text, va="center", size=8, zorder=6, bbox=box, **look)


def _scale(metric: str) -> int:
    """What plots multiply a metric by: shares are in percent."""
    return 100 if metric_of(metric).unit == "%" else 1


def _unit(metric: str) -> str:
    """For an axis: `worst-group accuracy (test, %)`."""
    return _lower(metric, "%" if _scale(metric) == 100 else "")


def _lower(metric: str, unit: str = "") -> str:
    """For a title: `worst-group accuracy (test)`; of what has a split, which one."""
    split, _, name = metric.partition("/")
    words = metric_label(f"test/{name}" if name else metric)
    if name in (WORST_GROUP, WORST_CLASS):
        words = f"{words.replace(' ', '-')} accuracy"
    words = words if words.isupper() else words[:1].lower() + words[1:]
    of = ", ".join(filter(None, (split if name and split not in ("cost", "train") else "", unit)))
    return f"{words} ({of})" if of else words
