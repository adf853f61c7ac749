"""Pictures of a study: every method along the swept key, and what AGRE-KD gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from agrekd_ray.config.sweep import in_words, key_names
from agrekd_ray.files import exists
from agrekd_ray.study.results import ACCURACY, OURS, WGA, Figure, Gain, StudyResult
from agrekd_ray.tracking.labels import accuracy_of, label
from agrekd_ray.tracking.plots import FAINT, INK, LEGEND, headline, method_styles, new_figure, save

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
        if len(rests) > _MOST_PANELS:
            continue
        path = folder / f"sweep_{names[key].replace('.', '_')}.png"
        if anew or not exists(path):
            _sweep_plot(result, key, rests, path)
            written.append(path)
    return written


def _sweep_plot(
    result: StudyResult, key: str, rests: Sequence[Mapping[str, Any]], path: Path
) -> None:
    names = key_names(result.sweep)
    methods = [m for m in result.methods if any(f.method == m for f in result.figures)]
    styles = method_styles(methods)
    columns = min(4, len(methods))
    lines = -(-len(methods) // columns)
    figure = new_figure(9.2, 0.9 + 3.1 * len(rests) + 0.24 * lines)
    grid = figure.subplots(len(rests), 2, squeeze=False, sharex=True)
    published = False
    for row, rest in zip(grid, rests, strict=True):
        for axes, metric, words in (
            (row[0], WGA, result.worst.capitalize()),
            (row[1], ACCURACY, "All samples"),
        ):
            place = ", ".join(f"{names[k]} {in_words(v)}" for k, v in rest.items())
            axes.set_title(f"{words}{': ' if place else ''}{place}", size=10, loc="left")
            axes.set_ylabel("test accuracy (%)")
            axes.grid(axis="y", color="#e4e4e4", lw=0.8, zorder=0)
            axes.spines[["top", "right"]].set_visible(False)
            for number, method in enumerate(methods):
                found = [
                    f
                    for value in result.sweep[key]
                    if (f := result.figure({**rest, key: value}, method)) is not None
                ]
                aside = (number - (len(methods) - 1) / 2) * 0.006 * _span(result.sweep[key])
                published |= _line(axes, result, key, found, metric, styles[method], aside)
            low, high = axes.get_ylim()
            axes.set_ylim(max(0.0, low if low > 30 else 0.0), min(100.0, max(high, low + 1)))
            _ticks(axes, result.sweep[key])
    for axes in grid[-1]:
        axes.set_xlabel(_AXES.get(key, key))
    keys = [Line2D([], [], label=label(method), **styles[method]) for method in methods]
    if published and result.published:
        keys.append(
            Line2D([], [], ls="", marker="D", mfc="white", mec=INK, label=result.published.source)
        )
    headline(figure, f"{result.name}: by {_AXES.get(key, names[key])}")
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, **LEGEND)
    save(figure, path)


def _line(
    axes: Axes,
    result: StudyResult,
    key: str,
    found: Sequence[Figure],
    metric: str,
    style: Mapping[str, Any],
    aside: float,
) -> bool:
    """One method's line, moved aside so that whiskers do not cover each other.

    Returns:
        Whether it has published figures.
    """
    if not found:
        return False
    values = result.sweep[key]
    xs = [_position(values, f.at[key]) + aside for f in found]
    axes.errorbar(
        xs,
        [100 * f.mean[metric] for f in found],
        yerr=[100 * f.std[metric] for f in found] if any(f.count > 1 for f in found) else None,
        marker="o",
        ms=4,
        capsize=2.5,
        elinewidth=0.9,
        **style,
    )
    theirs = [
        (x, f.published[metric]) for x, f in zip(xs, found, strict=True) if metric in f.published
    ]
    if theirs:
        axes.scatter(
            [x for x, _ in theirs],
            [y for _, y in theirs],
            s=32,
            marker="D",
            c="white",
            edgecolors=style["color"],
            lw=1.2,
            zorder=6,
        )
    return bool(theirs)


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _position(values: Sequence[Any], value: Any) -> float:
    """Where a value stands: numbers at their own place, anything else in the order given."""
    return float(value) if _numbers(values) else float(values.index(value))


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
    gains = result.gains
    if not gains:
        return False
    rows: list[tuple[str, Gain | None]] = []
    for at in result.places:
        mine = [gain for gain in gains if gain.at == at]
        if result.sweep and mine:
            rows.append((result.place_name(at), None))
        rows += [(label(gain.against), gain) for gain in mine]
    colors = method_styles([OURS, *dict.fromkeys(gain.against for gain in gains)])
    figure = new_figure(7.6, 1.5 + 0.3 * len(rows))
    axes = figure.subplots()
    for number, (_, gain) in enumerate(rows):
        if gain is None:
            continue
        difference, color = gain.difference, colors[gain.against]["color"]
        if difference.low is not None and difference.high is not None:
            axes.plot(
                [100 * difference.low, 100 * difference.high], [number] * 2, color=color, lw=2
            )
        points = [100 * value for value in gain.by_draw]
        axes.scatter(points, [number] * len(points), s=9, color=FAINT, zorder=3)
        axes.scatter(100 * difference.mean, number, s=42, color=color, edgecolors=INK, zorder=4)
    axes.axvline(0, color=INK, lw=0.9)
    axes.set_yticks(range(len(rows)), [text for text, _ in rows])
    for text, (_, gain) in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontweight("bold" if gain is None else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#e4e4e4", lw=0.8, zorder=0)
    worst = accuracy_of(result.worst)
    axes.set_xlabel(f"AGRE-KD minus the other method, {worst} on test (points)")
    unit = "draw" if len(result.draws) > 1 else "seed"
    keys = [
        Line2D([], [], ls="", marker="o", ms=6, color=FAINT, mec=INK, label="mean"),
        Line2D([], [], color=FAINT, lw=2, label="95 % bootstrap interval"),
        Line2D([], [], ls="", marker="o", ms=3, color=FAINT, label=f"one {unit}"),
    ]
    headline(figure, f"{result.name}: what AGRE-KD gains")
    figure.legend(handles=keys, loc="outside lower center", ncols=3, **LEGEND)
    save(figure, path)
    return True
