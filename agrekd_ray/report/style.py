"""How all pictures look, and what they are drawn from.

Everything goes through matplotlib's object interface and its Agg canvas: no display, no global
state, safe beside other threads.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from agrekd_ray.files import exists
from agrekd_ray.tracking.files import replacing

INK, FAINT = "#222222", "#8a8a8a"
REFERENCE, BLUE, ORANGE = "#b3b3b3", "#56b4e9", "#d55e00"
# Okabe and Ito's palette without its yellow, which is too pale for lines on white. The method
# of the paper has a colour of its own, whichever others a job compares it with.
_OURS = {"agre_kd": "#d55e00"}
LINES = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#222222")
DASHES = ("-", "--", ":", "-.")
EVEN = (0, (4, 3))
"""Dashes of lines that say what would be even, or right."""
# By place: colours in turn, then the next dash. Distilled students first, then references.
_PLACES = (
    *("aver", "ae_kd", "random", "ca_mkd", "govern", "default"),
    *("one_hot", "one_hot_dfr", "deep_ensemble", "deep_ensemble_dfr", "teacher_vote", "winner"),
)
_NEAR = 13.0
_DIAGONAL = [(dx, dy) for dx, dy in ((0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))]
_OFFSETS = [
    (distance * dx, distance * dy)
    for distance in (8, 16, 28, 42, 60, 80)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), *_DIAGONAL)
]


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


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, which no other thread knows."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panel(axes: Axes, grid: str | None = "both", color: str = "#ececec") -> Axes:
    """Axes without a frame, and with a faint grid behind what is drawn.

    Args:
        axes: of the panel.
        grid: `x`, `y` or `both`; None for none.
        color: of the grid.
    """
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(axis=grid, color=color, lw=0.8, zorder=0)  # type: ignore[arg-type]
        axes.set_axisbelow(True)
    return axes


def bars(axes: Axes, names: Sequence[str], margin: float = 0.4) -> Axes:
    """Axes with a row for each name, the first above."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - margin, margin - 1)
    return axes


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
            styles[method] = {**turn(places.index(method)), "lw": 1.5, "zorder": 3}
    return styles


def turn(place: int, colors: Sequence[str] = LINES) -> dict[str, Any]:
    """Colour and dash of the line at a place: colours in turn, then the next dash."""
    dash = DASHES[place // len(colors) % len(DASHES)]
    return {"color": colors[place % len(colors)], "linestyle": dash}


def visible(style: dict[str, Any], points: int) -> dict[str, Any]:
    """A line through a single point shows nothing: such a point gets a marker."""
    return style if points != 1 else {**style, "marker": "o", "markersize": 4}


def line(axes: Axes, xs: Iterable[float], ys: Iterable[float], style: dict[str, Any]) -> None:
    """A line, or the marker of its only point."""
    xs, ys = list(xs), list(ys)
    axes.plot(xs, ys, **visible(style, len(xs)))


def epoch_axis(axes: Axes) -> None:
    """Whole epochs below a panel."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def marker(
    shape: str, edge: str, size: float, text: str, face: str = "white", width: float = 1.2
) -> Line2D:
    """A key of the legend: a marker, hollow unless it has a face."""
    return Line2D([], [], ls="", marker=shape, mec=edge, mfc=face, mew=width, ms=size, label=text)


def stroke(text: str, color: str = INK, width: float = 1.1, **style: Any) -> Line2D:
    """A key of the legend: a line."""
    return Line2D([], [], color=color, lw=width, label=text, **style)


def finish(
    figure: Figure,
    path: Path,
    title: str,
    keys: Sequence[Line2D | Patch] = (),
    across: int | None = None,
) -> bool:
    """Sets the one line above all panels and the legend below, and writes the PNG.

    Args:
        figure: with everything else on it.
        path: the PNG, replaced as a whole.
        title: above the panels.
        keys: of the legend.
        across: keys in a row; None for all.

    Returns:
        True: there was something to draw.
    """
    dress(figure, title, keys, across)
    save(figure, path)
    return True


def dress(
    figure: Figure, title: str, keys: Sequence[Line2D | Patch] = (), across: int | None = None
) -> None:
    """Sets the one line above all panels, and the legend below; arguments as `finish`."""
    figure.suptitle(title, size=12, weight="bold", x=0.01, ha="left")
    if keys:
        figure.legend(
            handles=list(keys),
            loc="outside lower center",
            ncols=across or len(keys),
            frameon=False,
            fontsize=9,
            handlelength=1.8,
            columnspacing=1.4,
        )


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG, which is replaced as a whole."""
    _as_written(figure)
    with replacing(path) as draft:
        figure.savefig(draft, format="png")


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


def place_labels(
    figure: Figure,
    axes: Axes,
    dots: Sequence[tuple[float, float, float, float]],
    labels: Sequence[tuple[float, float, str]],
) -> None:
    """Puts labels where they cover no point and no other label; drops what finds no place.

    Args:
        figure: with everything else on it; its layout is final from here on.
        axes: of the points.
        dots: x, y and their deviations.
        labels: x and y of a point, and its text. Whiskers are covered only where there is no other
            place.
    """
    _as_written(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # places are in pixels
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)

    def box(x: float, y: float, dx: float, dy: float, around: float) -> Bbox:
        ends = axes.transData.transform([(x - dx, y - dy), (x + dx, y + dy)])
        return Bbox(ends).padded(around)

    points = [box(x, y, 0, 0, 6.5) for x, y, _, _ in dots]
    whiskers = [box(x, y, dx, 0, 1) for x, y, dx, _ in dots]
    whiskers += [box(x, y, 0, dy, 1) for x, y, _, dy in dots]
    taken: list[Bbox] = []

    def placed(x: float, y: float, words: str, obstacles: Sequence[Bbox]) -> bool:
        for dx, dy in _OFFSETS:
            note = axes.annotate(
                words,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                size=8,
                color=INK,
                ha="left" if dx > 4 else "right" if dx < -4 else "center",
                va="bottom" if dy > 4 else "top" if dy < -4 else "center",
                linespacing=0.95,
                parse_math=False,
                arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.6}
                if math.hypot(dx, dy) > _NEAR
                else None,
                zorder=7,
            )
            text = _text_box(note, renderer)
            inside = frame.x0 <= text.x0 and text.x1 <= frame.x1
            inside &= frame.y0 <= text.y0 and text.y1 <= frame.y1
            if inside and not any(text.overlaps(other) for other in (*obstacles, *taken)):
                taken.append(text)
                return True
            note.remove()
        return False

    for x, y, text in labels:
        words = textwrap.fill(brief(text, 68), 26, break_on_hyphens=False)
        if not placed(x, y, words, [*points, *whiskers]):
            placed(x, y, words, points)


def _text_box(note: Annotation, renderer: Any) -> Bbox:
    """Of the words alone, without the line that leads to them."""
    note.update_positions(renderer)
    return Text.get_window_extent(note, renderer)
