"""Plots of a study: every method along the swept key, and what AGRE-KD gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agrekd_ray.report.style import (
    FAINT,
    INK,
    bars,
    finish,
    line_keys,
    marker,
    method_styles,
    new_figure,
    panel,
    stroke,
)
from agrekd_ray.results.intervals import INTERVAL
from agrekd_ray.results.labels import label
from agrekd_ray.results.metrics import ACCURACY, WORST_GROUP, accuracy_of, short_paths
from agrekd_ray.results.points import in_words
from agrekd_ray.results.study import Gain, StudyResult

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


def study_plots(result: StudyResult) -> dict[str, Callable[[], Figure | None]]:
    """The plots of a study by name: `sweep_KEY` for each key with several values, and `gains`."""
    names = short_paths(result.sweep)
    swept = [key for key, values in result.sweep.items() if len(values) > 1]
    plots = {f"sweep_{names[k].replace('.', '_')}": partial(sweep_plot, result, k) for k in swept}
    return {**plots, "gains": lambda: gains_plot(result)}


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
    names, values = short_paths(result.sweep), result.sweep[key]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    xs = [float(value) if numbers else float(n) for n, value in enumerate(values)]
    span = max(xs) - min(xs) or 1.0
    methods = [m for m in result.methods if any(result.row(at, m) for at in result.places)]
    styles = method_styles(methods)
    figure = new_figure(9.2, 0.9 + 3.1 * len(rests) + 0.24 * -(-len(methods) // 4))
    grid = figure.subplots(len(rests), 2, squeeze=False, sharex=True)
    published = False
    for row, rest in zip(grid, rests, strict=True):
        where = ", ".join(f"{names[k]} {in_words(v)}" for k, v in rest.items())
        places = [{**rest, key: value} for value in values]
        for axes, metric, words in zip(
            row, (WORST_GROUP, ACCURACY), (result.worst.capitalize(), "All samples"), strict=True
        ):
            panel(axes, "y").set_title(": ".join(filter(None, (words, where))), size=10, loc="left")
            axes.set_ylabel("test accuracy (%)")
            for number, method in enumerate(methods):
                # Aside, so that whiskers do not cover each other.
                aside = (number - (len(methods) - 1) / 2) * 0.006 * span
                at_x = dict(zip((x + aside for x in xs), places, strict=True))
                published |= _line(axes, result, at_x, method, metric, styles[method])
            low, high = axes.get_ylim()
            axes.set_ylim(max(0.0, low if low > 30 else 0.0), min(100.0, max(high, low + 1)))
            _ticks(axes, xs, values)
    for axes in grid[-1]:
        axes.set_xlabel(_AXES.get(key, key))
    keys = line_keys(styles, label)
    if published and result.published:
        keys.append(marker("D", INK, 6, result.published.source, width=1.0))
    return finish(figure, f"{result.name}: by {_AXES.get(key, names[key])}", keys)


def _line(
    axes: Axes,
    result: StudyResult,
    places: Mapping[float, Mapping[str, Any]],
    method: str,
    metric: str,
    style: Mapping[str, Any],
) -> bool:
    """Draws one method's line through places, by where they stand.

    Returns:
        Whether it has published figures.
    """
    shown = {x: row[metric] for x, at in places.items() if (row := result.row(at, method))}
    if not shown:
        return False
    means = [100 * figure.mean for figure in shown.values()]
    several = any(figure.count > 1 for figure in shown.values())
    sds = [100 * figure.sd for figure in shown.values()] if several else None
    whiskers: dict[str, Any] = {"marker": "o", "ms": 4, "capsize": 2.5, "elinewidth": 0.9}
    axes.errorbar(list(shown), means, yerr=sds, **whiskers, **style)
    published = {
        x: value
        for x in shown
        if (value := result.published_at(places[x], method, metric)) is not None
    }
    diamond: dict[str, Any] = {"s": 32, "marker": "D", "c": "white", "lw": 1.2, "zorder": 6}
    axes.scatter(list(published), list(published.values()), edgecolors=style["color"], **diamond)
    return bool(published)


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
    for at in result.places:
        mine = [gain for gain in result.gains if gain.at == at]
        if result.sweep and mine:
            rows.append((result.place_name(at), None))
        rows += [(label(gain.against), gain) for gain in mine]
    colors = method_styles(dict.fromkeys(gain.against for gain in result.gains))
    figure = new_figure(7.6, 1.5 + 0.3 * len(rows))
    axes = bars(figure.subplots(), [text for text, _ in rows])
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
    keys = [
        marker("o", INK, 6, "mean", FAINT, 1.0),
        stroke(INTERVAL, FAINT, 2),
        marker("o", FAINT, 3, f"one {result.unit}", FAINT, 1.0),
    ]
    return finish(figure, f"{result.name}: what AGRE-KD gains", keys)
