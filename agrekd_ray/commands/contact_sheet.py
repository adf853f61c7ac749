"""A contact sheet: a row of examples a group, with what the group is and how large it is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.nn import functional

from agrekd_ray.files import replacing
from agrekd_ray.report.style import FAINT, INK

DPI = 100
CELL, GAP = 96, 6
"""Pixels of a picture's side, and between two of them."""
WORDS = 330
"""Pixels for a group's name and counts."""
HEAD = 66
MOST_ROWS = 500
"""As many as an image of 65,535 pixels has room for."""


def draw(
    path: Path,
    title: str,
    names: Sequence[str],
    counts: Sequence[str],
    pictures: Sequence[np.ndarray],
    note: str = "",
) -> None:
    """Draw a contact sheet as a PNG, a row of at least 96 pixels a group.

    Args:
        path: the PNG, replaced as a whole.
        title: above.
        names: of the G groups; of more than 500, the first 500 are drawn.
        counts: how large each is, in words.
        pictures: examples of each, float32 [B, channels, height, width] in [0, 1]; B may differ.
        note: below the title.
    """
    shown = min(len(names), MOST_ROWS)
    columns = max(1, *map(len, pictures))
    row = CELL + GAP
    width, height = max(WORDS + columns * row + GAP, 700), HEAD + shown * row + GAP
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(12, 14, title, size=12, weight="bold", color=INK, va="top", parse_math=False)
    more = f"; the first {shown} of {len(names)}" if shown < len(names) else ""
    axes.text(12, 38, note + more, size=9, color=FAINT, va="top", parse_math=False)
    canvas = np.ones((shown * row, columns * row, 3), dtype=np.float32)
    for place in range(shown):
        for column, picture in enumerate(pictures[place]):
            cell = _cell(picture)
            top = place * row + (CELL - cell.shape[0]) // 2
            left = column * row + (CELL - cell.shape[1]) // 2
            canvas[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
        middle = HEAD + place * row + CELL / 2
        name = textwrap.shorten(names[place], 120, placeholder=" ...")
        lines = textwrap.wrap(name, 38)[:3] or [""]
        axes.text(
            12, middle + 4, "\n".join(lines), size=10, color=INK, va="bottom", parse_math=False
        )
        size = textwrap.fill(counts[place], 52)
        axes.text(12, middle + 9, size, size=8, color=FAINT, va="top", parse_math=False)
        if not len(pictures[place]):
            axes.text(WORDS, middle, "no sample", size=9, color=FAINT, va="center")
        if place:
            line = HEAD + place * row - GAP / 2
            axes.plot([12, width - 12], [line, line], color="#e4e4e4", lw=0.6, zorder=0)
    # A pixel of the canvas is a pixel of the image: nothing is blurred.
    axes.imshow(
        canvas,
        extent=(WORDS, WORDS + columns * row, HEAD + shown * row, HEAD),
        interpolation="nearest",
        aspect="auto",
    )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    with replacing(path) as draft:
        figure.savefig(draft, format=path.suffix[1:] or "png", dpi=DPI)


def _cell(picture: np.ndarray) -> np.ndarray:
    """A picture as large as fits, [height, width, 3]: pixels whole where it is enlarged."""
    pixels = torch.from_numpy(np.ascontiguousarray(picture))[None]
    if pixels.shape[1] != 3:
        pixels = pixels[:, :1].expand(-1, 3, -1, -1)
    height, width = pixels.shape[-2:]
    factor = CELL / max(height, width)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    if factor < 1:
        pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    else:
        pixels = functional.interpolate(pixels, size, mode="nearest-exact")
    return pixels[0].clamp(0, 1).permute(1, 2, 0).numpy()
