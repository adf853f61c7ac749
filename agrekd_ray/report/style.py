"""How all plots look, and what they are drawn from.

Everything goes through matplotlib's object interface and its Agg canvas: no display, no global
state, safe beside other threads. A plot is a function that returns a figure, or None where there
is nothing to draw.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.path import Path as Line
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from agrekd_ray.files import exists, replacing
from agrekd_ray.report.tables import wrapped
from agrekd_ray.results.metrics import label

DPI = 130
INK, FAINT = "#222222", "#8a8a8a"
REFERENCE, BLUE, ORANGE = "#b3b3b3", "#56b4e9", "#d55e00"
# Okabe and Ito's palette without its yellow, which is too pale for lines on white. The method
# of the paper has a colour of its own, whichever others a job compares it with.
_OURS = {"agre_kd": "#d55e00", "agre_kd_guarded": "#7a3300"}
LINES = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#222222")
_MORE = ("#332288", "#999933", "#882255", "#8c564b", "#44aa99", "#7f7f7f")
"""For methods where there are more than these; `_colors` finds any number."""
DASHES = ("-", "--", ":", "-.")
_MOST_COUNTS = 8
"""Groups whose samples are said one by one."""
EVEN = (0, (4, 3))
"""Dashes of lines that say what would be even, or right."""
# By place: colours in turn, then the next dash. Distilled students first, then references.
_PLACES = (
    *("aver", "ae_kd", "random", "ca_mkd", "govern", "default"),
    *("one_hot", "one_hot_dfr", "deep_ensemble", "deep_ensemble_dfr", "teacher_vote", "winner"),
)
_WAYS = [
    distance * np.array([np.cos(angle), np.sin(angle)])
    for distance in (14, 28, 46, 70, 100, 140, 200, 280)
    for angle in np.pi / 8 * np.array([0, 8, 4, 12, 2, 6, 10, 14, 1, 3, 5, 7, 9, 11, 13, 15])
]
"""From a point to the nearest side of its label in pixels, the best first."""
_NEAR = 16
"""Number of the first way that a line goes along."""


def draw_plots(
    folder: Path,
    plots: Mapping[str, Callable[[], Figure | None]],
    *,
    anew: bool = True,
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """Draws a run's plots, each into files of its name, which are replaced as a whole.

    Args:
        folder: of the files.
        plots: what draws one, or finds nothing to draw, by name.
        anew: false leaves those that are there.
        formats: `png`, `pdf` or `svg`, a file each.

    Returns:
        The files that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in plots.items():
        paths = [folder / f"{name}.{format}" for format in formats]
        wanted = [path for path in paths if anew or not exists(path)]
        if wanted and (figure := draw()):
            for path in wanted:
                save(figure, path)
            written += wanted
    return written


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, which no other thread knows."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panel(axes: Axes, grid: str = "both") -> Axes:
    """Axes without a frame, and with a faint grid behind what is drawn.

    Args:
        axes: of the panel.
        grid: `x`, `y` or `both`.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#ececec", lw=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    return axes


def bars(axes: Axes, names: Sequence[str]) -> Axes:
    """Axes with a row for each name, the first above."""
    panel(axes, "x").spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    return axes


def curves(
    axes: Axes, table: pd.DataFrame, by: str, styles: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draws means by epoch, with bands from the lowest to the highest.

    Args:
        axes: to draw on.
        table: with the columns `epoch` and `value`.
        by: column whose values have a line each.
        styles: of the lines, with their labels.
    """
    panel(axes)
    for name, mine in table.groupby(by, sort=False):
        by_epoch = mine.groupby("epoch")["value"].agg(["min", "mean", "max"])
        style = dict(styles[str(name)])
        if len(by_epoch) == 1:  # a line through a single point shows nothing
            style |= {"marker": "o", "markersize": 4}
        band = {"color": style["color"], "alpha": 0.15, "lw": 0, "zorder": 2}
        axes.fill_between(by_epoch.index, by_epoch["min"], by_epoch["max"], **band)
        axes.plot(by_epoch.index, by_epoch["mean"], **style)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def method_styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Label, colour, dash and width of each method's line; a method that we know looks alike.

    No two methods share a colour.

    AGRE-KD's line is thick, those of references are dashed.
    """
    methods = list(methods)
    places = [*_PLACES, *(m for m in methods if m not in _PLACES and m not in _OURS)]
    colors = _colors(len(places))
    return {
        method: {"label": label(method)}
        | (
            {"color": _OURS[method], "linestyle": "-", "lw": 2.6, "zorder": 5}
            if method in _OURS
            else {
                "color": colors[places.index(method)],
                "linestyle": turn(places.index(method))["linestyle"],
                "lw": 1.5,
                "zorder": 3,
            }
        )
        for method in methods
    }


def _colors(count: int) -> list[str]:
    """Colours of so many methods, none twice: the palette, then what is farthest from all before.

    The first ones are the same for every count.
    """
    colors = [*LINES, *_MORE]
    golden, many = 0.618034, max(240, 4 * count)
    hues = [(golden * k % 1, (1.0, 0.6)[k % 2], (0.45, 0.8, 0.62)[k % 3]) for k in range(many)]
    candidates = hsv_to_rgb(hues)
    taken = [to_rgb(color) for color in (*colors, *_OURS.values())]
    while len(colors) < count:
        apart = np.linalg.norm(candidates[:, None] - np.array(taken), axis=2).min(axis=1)
        taken.append(tuple(candidates[apart.argmax()]))
        colors.append(to_hex(taken[-1]))
    return colors


def turn(place: int, colors: Sequence[str] = LINES) -> dict[str, Any]:
    """Colour and dash of the line at a place: colours in turn, then the next dash."""
    dash = DASHES[place // len(colors) % len(DASHES)]
    return {"color": colors[place % len(colors)], "linestyle": dash}


def finish(figure: Figure, title: str, note: str = "") -> Figure:
    """Sets the one line above all panels; below them a note, and all that has a label.

    Args:
        figure: with its panels.
        title: of them all.
        note: what data, samples and seeds they show, and what a band or whisker is.
    """
    width = figure.get_figwidth()
    title = textwrap.fill(title, int(10 * width))
    figure.suptitle(title, size=12, weight="bold", x=0.01, ha="left")
    keys: dict[str, Any] = {}
    for axes in figure.axes:
        for key, text in zip(*axes.get_legend_handles_labels(), strict=True):
            keys.setdefault(text, key)
    note = textwrap.fill(note, int(15 * width))
    small: dict[str, Any] = {"fontsize": 8, "color": "#5f5f5f"}
    if not keys and note:
        figure.supxlabel(note, x=0.01, ha="left", **small)
    if keys:
        widths = [0.5 + 0.065 * len(text) for text in keys]
        figure.legend(
            keys.values(),
            keys,
            loc="outside lower center",
            ncols=len(keys) if sum(widths) <= width else max(1, int(width / max(widths))),
            frameon=False,
            fontsize=9,
            handlelength=1.8,
            columnspacing=1.4,
            title=note or None,
            title_fontproperties={"size": small["fontsize"]},
            alignment="left",
        ).get_title().set_color(small["color"])
    return figure


def about(data: str, split: str = "", counts: Mapping[str, int] | None = None, *more: str) -> str:
    """What a picture shows, in words: `digits, test split: n = 40 (a 30, b 10); 3 seeds, ...`.

    Args:
        data: name of the data set; may be empty.
        split: its name.
        counts: samples of it by group; of more than eight groups, the ends are said.
        more: what else there is to say.
    """
    where = ", ".join(filter(None, (data, f"{split} split" if split else "")))
    if counts:
        few = ", ".join(f"{group} {count:,}" for group, count in counts.items())
        ends = f"{min(counts.values()):,} to {max(counts.values()):,}"
        many = f"{len(counts)} groups of {ends}"
        groups = few if len(counts) <= _MOST_COUNTS else many
        where += f"{': ' * bool(where)}n = {sum(counts.values()):,} ({groups})"
    return "; ".join(filter(None, (where, *more)))


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG, or what else the name ends in, which is replaced as a whole.

    A PNG by its canvas: `savefig` lays everything out a second time.
    """
    _as_written(figure)
    with replacing(path) as draft:
        if path.suffix == ".png":
            FigureCanvasAgg(figure).print_png(draft)
        else:
            figure.savefig(draft, format=path.suffix[1:])


def _as_written(figure: Figure) -> None:
    """Names with dollars are no formulas; call it before the figure is drawn."""
    for text in figure.findobj(Text):
        if "$" in text.get_text() and r"\mathdefault" not in text.get_text():  # a tick's power
            text.set_parse_math(False)


def brief(text: str, most: int) -> str:
    """A text cut in its middle: labels differ at their ends."""
    if len(text) <= most:
        return text
    end = most // 2
    return f"{text[: most - end - 1]}…{text[-end:]}"


def _first_words(text: str, most: int) -> str:
    """A label of whole words, and how many settings there is no room for."""
    words = text.split()
    kept = len(words)
    while kept > 1 and len(" ".join(words[:kept])) > most:
        kept -= 1
    more = f" and {len(words) - kept} more" if kept < len(words) else ""
    return f"{brief(' '.join(words[:kept]), most)}{more}"


def place_labels(
    axes: Axes,
    dots: Sequence[tuple[float, float, float, float]],
    labels: Sequence[tuple[float, float, str]],
) -> None:
    """Puts labels where they cover as little as can be: no other label, no point, no whisker.

    Args:
        axes: of the points, on a figure with everything else on it; its layout is final from here.
        dots: x, y and their deviations.
        labels: x and y of a point, and its text.
    """
    figure = axes.figure
    _as_written(figure)  # type: ignore[arg-type]
    figure.draw_without_rendering()  # type: ignore[union-attr]
    figure.set_layout_engine("none")  # type: ignore[union-attr] # places are in pixels
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)

    def box(x: float, y: float, dx: float, dy: float, around: float) -> Bbox:
        ends = axes.transData.transform([(x - dx, y - dy), (x + dx, y + dy)])
        return Bbox(ends).padded(around)

    points = [box(x, y, 0, 0, 6.5) for x, y, _, _ in dots]
    bars = [box(x, y, dx, 0, 1) for x, y, dx, _ in dots]
    bars += [box(x, y, 0, dy, 1) for x, y, _, dy in dots]
    look: dict[str, Any] = {"textcoords": "offset pixels", "ha": "center", "va": "center"}
    look |= {"size": 8, "color": INK, "linespacing": 0.95, "ma": "left", "parse_math": False}
    look |= {"arrowprops": {"arrowstyle": "-", "color": FAINT, "lw": 0.6}, "zorder": 7}
    taken: dict[Annotation, Bbox] = {}
    for x, y, text in labels:
        words = "\n".join(wrapped(_first_words(text, 68), 26))
        taken[axes.annotate(words, (x, y), (0, 0), **look)] = Bbox.null()
    for note in [*taken] * 3:  # each anew, until all have seen where the others are
        size = np.array(Text.get_window_extent(note, renderer).size)
        start = axes.transData.transform(note.xy)
        others = [there for other, there in taken.items() if other is not note]
        best: tuple[Any, ...] = (True, math.inf)
        for place, way in enumerate(_WAYS):
            middle = way + np.clip(way / 6, -1, 1) * size / 2
            there = Bbox([start + middle - size / 2, start + middle + size / 2])
            outside = not all(frame.contains(*corner) for corner in there.corners())
            covered = there.count_overlaps(points + others)
            if (outside, covered) > best[:2]:
                continue
            line = Line([start, start + middle])
            crossed = place >= _NEAR and sum(line.intersects_bbox(other) for other in others)
            cost = (outside, covered, crossed, there.count_overlaps(bars) > 0, place)
            best = min(best, (*cost, there, middle), key=lambda way: way[:5])
        *_, place, taken[note], middle = best
        note.set_position(middle)
        note.arrow_patch.set_visible(place >= _NEAR)  # type: ignore[union-attr]
