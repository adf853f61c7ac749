"""Pictures of a study: every method along the swept key, and what AGRE-KD gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from agrekd_ray.files import exists
from agrekd_ray.report.style import (
    FAINT,
    INK,
    bars,
    finish,
    marker,
    method_styles,
    new_figure,
    panel,
    stroke,
)
from agrekd_ray.results.intervals import INTERVAL
from agrekd_ray.results.labels import label
from agrekd_ray.results.metrics import ACCURACY, WORST_GROUP, accuracy_of
from agrekd_ray.results.points import in_words, key_names
from agrekd_ray.results.study import OURS, Gain, StudyResult

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
_MOST_PANELS = 12


def sweep_plots(result: StudyResult, folder: Path, *, anew: bool = True) -> list[Path]:
    """Draws worst-group accuracy and accuracy along each swept key with several values.

    Lines are means, whiskers the sample standard deviation over draws and seeds; hollow diamonds
    are the published figures. Where several keys are swept, each combination of the others has a
    row of panels.

    Args:
        result: of the study.
        folder: for a PNG a key, `sweep_KEY.png`.
        anew: false leaves those that are there.

    Returns:
        The files that were written.
    """
    names = key_names(result.sweep)
    written = []
    for key in [key for key, values in result.sweep.items() if len(values) > 1]:
        rests: list[dict[str, Any]] = []
        for at in result.places:
            rest = {other: value for other, value in at.items() if other != key}
            if rest not in rests:
                rests.append(rest)
        path = folder / f"sweep_{names[key].replace('.', '_')}.png"
        if len(rests) <= _MOST_PANELS and (anew or not exists(path)):
            _sweep_plot(result, key, rests, path)
            written.append(path)
    return written


def _sweep_plot(
    result: StudyResult, key: str, rests: Sequence[Mapping[str, Any]], path: Path
) -> None:
    names, values = key_names(result.sweep), result.sweep[key]
    methods = [m for m in result.methods if any(result.row(at, m) for at in result.places)]
    styles = method_styles(methods)
    across = min(4, len(methods))
    figure = new_figure(9.2, 0.9 + 3.1 * len(rests) + 0.24 * -(-len(methods) // across))
    grid = figure.subplots(len(rests), 2, squeeze=False, sharex=True)
    published = False
    for row, rest in zip(grid, rests, strict=True):
        place = ", ".join(f"{names[k]} {in_words(v)}" for k, v in rest.items())
        for axes, metric, words in (
            (row[0], WORST_GROUP, result.worst.capitalize()),
            (row[1], ACCURACY, "All samples"),
        ):
            panel(axes, "y", "#e4e4e4")
            axes.set_title(f"{words}{': ' if place else ''}{place}", size=10, loc="left")
            axes.set_ylabel("test accuracy (%)")
            for number, method in enumerate(methods):
                # Aside, so that whiskers do not cover each other.
                aside = (number - (len(methods) - 1) / 2) * 0.006 * _span(values)
                published |= _line(axes, result, key, rest, method, metric, styles[method], aside)
            low, high = axes.get_ylim()
            axes.set_ylim(max(0.0, low if low > 30 else 0.0), min(100.0, max(high, low + 1)))
            _ticks(axes, values)
    for axes in grid[-1]:
        axes.set_xlabel(_AXES.get(key, key))
    keys = [Line2D([], [], label=label(method), **styles[method]) for method in methods]
    if published and result.published:
        keys.append(marker("D", INK, 6, result.published.source, width=1.0))
    finish(figure, path, f"{result.name}: by {_AXES.get(key, names[key])}", keys, across)


def _line(
    axes: Axes,
    result: StudyResult,
    key: str,
    rest: Mapping[str, Any],
    method: str,
    metric: str,
    style: Mapping[str, Any],
    aside: float,
) -> bool:
    """One method's line.

    Returns:
        Whether it has published figures.
    """
    values = result.sweep[key]
    places = [{**rest, key: value} for value in values if result.row({**rest, key: value}, method)]
    if not places:
        return False
    shown = [row[metric] for at in places if (row := result.row(at, method))]
    xs = [_position(values, at[key]) + aside for at in places]
    sds = [100 * figure.sd for figure in shown] if any(f.count > 1 for f in shown) else None
    whiskers: dict[str, Any] = {"marker": "o", "ms": 4, "capsize": 2.5, "elinewidth": 0.9}
    axes.errorbar(xs, [100 * figure.mean for figure in shown], yerr=sds, **whiskers, **style)
    theirs = {
        x: value
        for x, at in zip(xs, places, strict=True)
        if (value := result.published_at(at, method, metric)) is not None
    }
    diamond: dict[str, Any] = {"s": 32, "marker": "D", "c": "white", "lw": 1.2, "zorder": 6}
    axes.scatter(list(theirs), list(theirs.values()), edgecolors=style["color"], **diamond)
    return bool(theirs)


def _position(values: Sequence[Any], value: Any) -> float:
    """Where a value stands: numbers at their own place, anything else in the order given."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return float(value) if numbers else float(values.index(value))


def _span(values: Sequence[Any]) -> float:
    places = [_position(values, value) for value in values]
    return max(places) - min(places) or 1.0


def _ticks(axes: Axes, values: Sequence[Any]) -> None:
    places, span = [_position(values, value) for value in values], _span(values)
    shown = [
        (place, in_words(value).rpartition("/")[2])
        for number, (place, value) in enumerate(zip(places, values, strict=True))
        if number == 0 or min(abs(place - p) for p in places[:number]) > 0.04 * span
    ]
    axes.set_xticks([place for place, _ in shown], [text for _, text in shown])
    axes.set_xlim(min(places) - 0.05 * span, max(places) + 0.05 * span)


def gains_plot(result: StudyResult, path: Path) -> bool:
    """Draws AGRE-KD's worst-group accuracy minus each other distillation's, place by place.

    A large dot is the mean, the line its 95 % bootstrap interval, small dots the draws (or the
    seeds, in a study without draws).

    Args:
        result: of the study.
        path: the PNG.

    Returns:
        Whether there was anything to draw; without it there is no file.
    """
    if not result.gains:
        return False
    rows: list[tuple[str, Gain | None]] = []
    for at in result.places:
        mine = [gain for gain in result.gains if gain.at == at]
        if result.sweep and mine:
            rows.append((result.place_name(at), None))
        rows += [(label(gain.against), gain) for gain in mine]
    colors = method_styles([OURS, *dict.fromkeys(gain.against for gain in result.gains)])
    figure = new_figure(7.6, 1.5 + 0.3 * len(rows))
    axes = bars(figure.subplots(), [text for text, _ in rows])
    for number, (_, gain) in enumerate(rows):
        axes.get_yticklabels()[number].set_fontweight("normal" if gain else "bold")
        if gain is None:
            continue
        difference, color = gain.difference, colors[gain.against]["color"]
        if difference.low is not None and difference.high is not None:
            ends = [100 * difference.low, 100 * difference.high]
            axes.plot(ends, [number] * 2, color=color, lw=2)
        points = [100 * value for value in gain.by_draw]
        axes.scatter(points, [number] * len(points), s=9, color=FAINT, zorder=3)
        axes.scatter(100 * difference.mean, number, s=42, color=color, edgecolors=INK, zorder=4)
    axes.axvline(0, color=INK, lw=0.9)
    axes.grid(axis="x", color="#e4e4e4", lw=0.8, zorder=0)
    worst = accuracy_of(result.worst)
    axes.set_xlabel(f"AGRE-KD minus the other method, {worst} on test (points)")
    keys = [
        marker("o", INK, 6, "mean", FAINT, 1.0),
        stroke(INTERVAL, FAINT, 2),
        marker("o", FAINT, 3, f"one {result.unit}", FAINT, 1.0),
    ]
    return finish(figure, path, f"{result.name}: what AGRE-KD gains", keys)
