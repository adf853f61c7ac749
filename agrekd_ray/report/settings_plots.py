"""Pictures of many settings: how good each is, what each setting does, and how a search went.

They take plain `Point`s, so that runs from MLflow and trials from a search's folder are drawn
alike. Each function leaves out points without the metric (by MLflow's name), lets the chosen point
stand out (or else the best by the metric), writes one PNG, which is replaced as a whole, and says
whether there was anything to draw; without it there is no file.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from agrekd_ray.report import style
from agrekd_ray.report.scales import Scale, text_of
from agrekd_ray.report.style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    dress,
    finish,
    marker,
    new_figure,
    panel,
    place_labels,
    stroke,
)
from agrekd_ray.results.metrics import (
    ACCURACY,
    WORST_CLASS,
    WORST_GROUP,
    metric_label,
    short_paths,
)
from agrekd_ray.results.metrics import metric as metric_of

_BELOW = -0.16
"""Height of what does not apply, below an axis from 0 to 1."""
_FINISHED, _STOPPED, _FAILED = "finished", "stopped early", "failed"
_MOST_LABELS, _MOST_PANELS, _MOST_AXES = 12, 12, 10
_GREY = "#c4c4c4"
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
    """

    label: str
    number: int | None
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    spread: Mapping[str, float] = field(default_factory=dict)
    state: str = _FINISHED

    def value(self, metric: str) -> float:
        """In the unit that pictures use: percent for shares; NaN where there is none."""
        value = self.metrics.get(metric, math.nan)
        return _scale(metric) * value if math.isfinite(value) else math.nan

    def deviation(self, metric: str) -> float:
        """As `value`; 0 where there is none."""
        spread = self.spread.get(metric, 0.0)
        return _scale(metric) * spread if math.isfinite(spread) else 0.0


@dataclass(frozen=True)
class Chosen:
    """The point that stands out.

    Attributes:
        point: of those that are drawn.
        words: what it is, and by what.
    """

    point: Point
    words: str


def worst_against_accuracy(
    points: Sequence[Point], path: Path, metric: str = f"test/{WORST_GROUP}"
) -> bool:
    """Draws the worst group's accuracy against that of all samples; whiskers are the spread.

    The best twelve by worst group have their label beside them, where there is room; what is no
    trial is an orange diamond.
    """
    split, _, name = metric.partition("/")
    x, y = f"{split}/{ACCURACY}", metric
    shown = [p for p in points if math.isfinite(p.value(x)) and math.isfinite(p.value(y))]
    if not shown:
        return False
    figure = new_figure(8.2, 5.6)
    axes = panel(figure.subplots())
    for point in shown:
        trial = point.number is not None
        axes.errorbar(
            point.value(x),
            point.value(y),
            xerr=point.deviation(x) or None,
            yerr=point.deviation(y) or None,
            ecolor=FAINT,
            elinewidth=0.9,
            fmt="none",
            zorder=2,
        )
        axes.scatter(
            point.value(x),
            point.value(y),
            s=34 if trial else 44,
            marker="o" if trial else "D",
            c="white" if point.state != _FINISHED else BLUE if trial else ORANGE,
            edgecolors=BLUE if trial and point.state != _FINISHED else INK if trial else ORANGE,
            lw=0.6 if point.state == _FINISHED else 1.4,
            zorder=4 if trial else 5,
        )
    words = metric_label(f"test/{name}")
    what = {"test": "the test split", "val": "the validation split"}.get(split, split)
    axes.set_xlabel("accuracy of all samples (%)")
    axes.set_ylabel(f"{words.replace(' ', '-')} accuracy (%)".lower())
    axes.margins(0.12, 0.12)
    _within(axes, (0, 100))
    keys = []
    if any(p.number is not None for p in shown):
        keys.append(_key(BLUE, INK, "trial"))
        if any(p.number is None for p in shown):
            keys.append(_key(ORANGE, ORANGE, "student", "D"))
    if any(p.state != _FINISHED for p in shown):
        keys.append(_key("white", BLUE if keys else ORANGE, "not trained to its end"))
    if any(p.deviation(x) or p.deviation(y) for p in shown):
        keys.append(stroke("± sd over seeds", FAINT))
    dress(figure, f"{words} against all samples, {what}", keys)
    others = [p for p in shown if p.number is None]
    best = sorted(shown, key=lambda p: -p.value(y))
    chosen = list({id(p): p for p in (*others[:_MOST_LABELS], *best)}.values())[:_MOST_LABELS]
    place_labels(
        figure,
        axes,
        [(p.value(x), p.value(y), p.deviation(x), p.deviation(y)) for p in shown],
        # A trial's settings are in other pictures; here they would cover it.
        [
            (p.value(x), p.value(y), p.label if p.number is None else p.label.split()[0])
            for p in chosen
        ],
    )
    style.save(figure, path)
    return True


def parameter_effects(
    points: Sequence[Point],
    path: Path,
    metric: str = f"test/{WORST_GROUP}",
    chosen: Chosen | None = None,
) -> bool:
    """Draws a metric against each setting that varies, a panel a setting.

    Values that span more than a decade have a logarithmic axis; what is no number is a category.
    The chosen point is orange. Beyond twelve settings, those with the most values are shown.
    """
    shown = [point for point in points if math.isfinite(point.value(metric))]
    paths = _varying(shown, _MOST_PANELS)
    if not paths:
        return False
    across = min(len(paths), 4 if len(paths) > 6 else 3)
    lines = -(-len(paths) // across)
    figure = new_figure(max(5.4, 3.1 * across), 0.9 + 2.6 * lines)
    panels = figure.subplots(lines, across, sharey=True, squeeze=False)
    best = chosen or _best(shown, metric)
    names = short_paths(paths)
    for place, axes in enumerate(panels.flat):
        if place >= len(paths):
            axes.remove()
            continue
        setting = paths[place]
        having = [point for point in shown if setting in point.settings]
        scale = Scale([point.settings[setting] for point in having])
        xs = scale.places([point.settings[setting] for point in having])
        if scale.categories:
            xs = _jittered(xs)
        panel(axes)
        _states(axes, xs, having, metric, best.point)
        scale.dress(axes)
        axes.set_xlabel(names[setting], size=9)
        axes.tick_params(labelsize=8)
        if place % across == 0:
            axes.set_ylabel(_unit(metric), size=9)
    title = textwrap.fill(f"What each setting does to {_lower(metric)}", 36 + 16 * across)
    return finish(figure, path, title, _state_keys(shown, best))


def parallel_coordinates(
    points: Sequence[Point],
    path: Path,
    metric: str = f"test/{WORST_GROUP}",
    chosen: Chosen | None = None,
) -> bool:
    """Draws each point as a line through its settings to the metric, whose colour it has.

    What does not apply to a point goes through a place of its own below the axis. Beyond ten
    settings, those with the most values are shown.
    """
    shown = [point for point in points if math.isfinite(point.value(metric))]
    paths = _varying(shown, _MOST_AXES)
    if not paths:
        return False
    names = short_paths(paths)
    scales = [Scale([p.settings[s] for p in shown if s in p.settings]) for s in paths]
    values = np.array([point.value(metric) for point in shown])
    heights = np.empty((len(shown), len(paths) + 1))
    absent = np.zeros(len(paths), dtype=bool)
    for column, (setting, scale) in enumerate(zip(paths, scales, strict=True)):
        for row, point in enumerate(shown):
            if setting in point.settings:
                heights[row, column] = scale.height(point.settings[setting])
            else:
                heights[row, column], absent[column] = _BELOW, True
    span = (values.min(), values.max())
    if span[0] == span[1]:
        span = (span[0] - 1, span[1] + 1)
    heights[:, -1] = (values - span[0]) / (span[1] - span[0])
    goodness = 1 - heights[:, -1] if metric_of(metric).less_is_better else heights[:, -1]

    figure = new_figure(max(6.4, 2.0 + 1.65 * len(paths)), 4.6)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(-0.45, len(paths) + 0.35)
    axes.set_ylim(_BELOW - 0.06 if absent.any() else -0.05, 1.16)
    best = chosen or _best(shown, metric)
    # The chosen line last, above the others.
    stands_out = np.array([point is best.point for point in shown])
    order = np.lexsort((goodness, stands_out))
    places = np.arange(len(paths) + 1)
    axes.add_collection(
        LineCollection(
            [np.column_stack([places, heights[row]]) for row in order],
            colors=_COLORS(goodness[order]),
            linewidths=np.where(stands_out[order], 2.8, 1.3),
            alpha=0.9,
            zorder=3,
        )
    )
    for column, (setting, scale) in enumerate(zip(paths, scales, strict=True)):
        axes.plot([column, column], [0, 1], color=INK, lw=1, zorder=2)
        _axis_name(axes, column, names[setting])
        for height, text in scale.ticks():
            _tick(axes, column, height, text)
        if absent[column]:
            _tick(axes, column, _BELOW, "not used", FAINT)
    last = len(paths)
    bar = np.linspace(0, 1, 256)[:, None]
    axes.imshow(
        bar if not metric_of(metric).less_is_better else 1 - bar,
        extent=(last - 0.02, last + 0.02, 0, 1),
        origin="lower",
        aspect="auto",
        cmap=_COLORS,
        norm=Normalize(0, 1),
        zorder=4,
    )
    _axis_name(axes, last, _unit(metric), weight="bold")
    for value in MaxNLocator(5).tick_values(*span):
        if span[0] <= value <= span[1]:
            height = (value - span[0]) / (span[1] - span[0])
            _tick(axes, last + 0.03, height, f"{value:.4g}", left=False)
    thick = f"; the thick line is {best.words}" if stands_out.any() else ""
    return finish(figure, path, textwrap.fill(f"Settings and {_lower(metric)}{thick}", 90))


def trial_history(
    points: Sequence[Point],
    path: Path,
    metric: str = f"test/{WORST_GROUP}",
    chosen: Chosen | None = None,
) -> bool:
    """Draws each trial's last value by the trial's number, and the best so far as a line.

    Trials without the metric are crosses at the bottom.
    """
    trials = sorted((p for p in points if p.number is not None), key=lambda p: p.number or 0)
    shown = [point for point in trials if math.isfinite(point.value(metric))]
    if not shown:
        return False
    figure = new_figure(8.2, 4.2)
    axes = panel(figure.subplots())
    best = chosen or _best(shown, metric)
    numbers = np.array([point.number or 0 for point in shown], dtype=float)
    worst_to_best = np.minimum if metric_of(metric).less_is_better else np.maximum
    so_far = worst_to_best.accumulate([point.value(metric) for point in shown])
    end = max(point.number or 0 for point in trials)
    axes.step(
        [*numbers, float(end)], [*so_far, so_far[-1]], where="post", color=ORANGE, lw=1.8, zorder=3
    )
    _states(axes, numbers, shown, metric, best.point)
    lost = [point for point in trials if not math.isfinite(point.value(metric))]
    axes.margins(0.03, 0.08)
    keys = [
        Line2D([], [], color=ORANGE, lw=1.8, label=f"{_best(shown, metric).words} so far"),
        *_state_keys(shown, best),
    ]
    if lost:
        floor = axes.get_ylim()[0]
        axes.scatter(
            [point.number or 0 for point in lost],
            [floor] * len(lost),
            marker="x",
            c=FAINT,
            s=30,
            clip_on=False,
            zorder=5,
        )
        axes.set_ylim(bottom=floor)
        states = ", ".join(dict.fromkeys(point.state for point in lost))
        key = Line2D([], [], ls="", marker="x", color=FAINT, label=f"without a value ({states})")
        keys.append(key)
    axes.set_xlabel("trial")
    axes.set_ylabel(_unit(metric))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    if end == 0:
        axes.set_xlim(-1, 1)
        axes.set_xticks([0])
    return finish(figure, path, f"Trials of the search, {_lower(metric)}", keys, min(5, len(keys)))


def _varying(points: Sequence[Point], most: int) -> list[str]:
    """Settings with more than one value; those with the most values where there are too many."""
    values: dict[str, set[str]] = {}
    for point in points:
        for path, value in point.settings.items():
            values.setdefault(path, set()).add(text_of(value))
    found = [path for path, several in values.items() if len(several) > 1]
    chosen = sorted(found, key=lambda path: -len(values[path]))[:most]
    return [path for path in found if path in chosen]


def _states(
    axes: Axes,
    xs: np.ndarray,
    points: Sequence[Point],
    metric: str,
    best: Point,
) -> None:
    """Markers by state: filled for what was trained to its end, hollow otherwise."""
    for x, point in zip(xs, points, strict=True):
        done = point.state == _FINISHED
        if deviation := point.deviation(metric):
            axes.errorbar(
                x,
                point.value(metric),
                deviation,
                ecolor=_GREY,
                elinewidth=0.9,
                fmt="none",
                zorder=2,
            )
        axes.scatter(
            x,
            point.value(metric),
            s=46 if point is best else 26,
            marker=_shape(point.state),
            c=(ORANGE if point is best else BLUE) if done else "white",
            edgecolors=ORANGE if point is best else INK if done else FAINT,
            lw=0.6 if done else 1.2,
            zorder=6 if point is best else 4,
        )


def _shape(state: str) -> str:
    return {_FINISHED: "o", _STOPPED: "v", _FAILED: "X"}.get(state, "s")


def _state_keys(points: Sequence[Point], best: Chosen) -> list[Line2D]:
    keys: list[Line2D] = []
    for state in dict.fromkeys(point.state for point in points):
        if state == _FINISHED:
            keys.insert(0, _key(BLUE, INK, state))
        else:
            keys.append(marker(_shape(state), FAINT, 5, state))
    state = best.point.state
    if not any(point is best.point for point in points):
        return keys
    face = ORANGE if state == _FINISHED else "white"
    return [*keys, _key(face, ORANGE, best.words, _shape(state))]


def _key(face: str, edge: str, text: str, shape: str = "o") -> Line2D:
    return marker(shape, edge, 6, text, face, 1.0)


def _best(points: Sequence[Point], metric: str) -> Chosen:
    """The best that was trained to its end, or of all where none was."""
    done = [point for point in points if point.state == _FINISHED] or points
    choose: Callable[..., Point] = min if metric_of(metric).less_is_better else max
    split = metric.partition("/")[0]
    words = {"test": "best on test", "val": "best on validation"}.get(split, "best")
    return Chosen(choose(done, key=lambda point: point.value(metric)), words)


def _within(axes: Axes, span: tuple[float, float]) -> None:
    """Keeps axes from showing shares that cannot be."""
    for get, put in ((axes.get_xlim, axes.set_xlim), (axes.get_ylim, axes.set_ylim)):
        low, high = get()
        pad = 0.02 * (high - low)
        put(max(low, span[0] - pad), min(high, span[1] + pad))


def _axis_name(axes: Axes, place: float, text: str, weight: str = "normal") -> None:
    words = textwrap.fill(text.replace("_", " "), 15)
    axes.text(place, 1.05, words, ha="center", va="bottom", size=9, weight=weight)


def _tick(
    axes: Axes, place: float, height: float, text: str, color: str = INK, left: bool = True
) -> None:
    axes.text(
        place - 0.04 if left else place + 0.03,
        height,
        text,
        ha="right" if left else "left",
        va="center",
        size=8,
        color=color,
        zorder=6,
        bbox={"facecolor": "white", "alpha": 0.9, "edgecolor": "none", "pad": 0.8},
    )


def _jittered(xs: np.ndarray) -> np.ndarray:
    """Points of one category beside each other, the same way at every call."""
    return xs + np.random.default_rng(0).uniform(-0.16, 0.16, len(xs))


def _scale(metric: str) -> int:
    """What pictures multiply a metric by: shares are in percent."""
    return 100 if metric_of(metric).unit == "%" else 1


def _unit(metric: str) -> str:
    return _lower(metric) + (" (%)" if _scale(metric) == 100 else "")


def _lower(metric: str) -> str:
    words = metric_label(metric)
    split, _, name = metric.partition("/")
    if name in (WORST_GROUP, WORST_CLASS):
        worst = metric_label(f"test/{name}").lower().replace(" ", "-")
        words = f"{worst} accuracy" + ("" if split == "test" else f" ({split})")
    return words if words.isupper() else words[:1].lower() + words[1:]
