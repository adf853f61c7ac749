"""Labels beside points, where they cover nothing."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from agrekd_ray.comparison.scales import brief
from agrekd_ray.tracking.plots import FAINT, INK, as_written

_NEAR = 13.0
_OFFSETS = [
    (math.copysign(distance, dx) * abs(dx), math.copysign(distance, dy) * abs(dy))
    for distance in (8, 16, 28, 42, 60, 80)
    for dx, dy in (
        (1, 0),
        (-1, 0),
        (0, 1),
        (0, -1),
        (0.8, 0.8),
        (-0.8, 0.8),
        (0.8, -0.8),
        (-0.8, -0.8),
    )
]


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
    as_written(figure)
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
