"""Axes for settings: numbers, over decades or not, and categories."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from agrekd_ray.report.style import brief

_DECADE = 10.0


class Scale:
    """Where the values of one setting lie: on a linear or logarithmic axis, or as categories."""

    def __init__(self, values: Sequence[Any]) -> None:
        numbers = all(_is_number(value) for value in values)
        self.categories: list[str] = []
        if numbers:
            self.low, self.high = float(min(values)), float(max(values))
            self.log = self.low > 0 and self.high / self.low > _DECADE
            # A few values of a grid are ticks themselves.
            distinct = sorted({float(value) for value in values})
            self.whole = all(isinstance(value, int) for value in values)
            self.marked = distinct if len(distinct) <= 4 else []
        else:
            self.log, self.marked = False, []
            self.categories = sorted({text_of(value) for value in values}, key=_category_order)

    def places(self, values: Sequence[Any]) -> np.ndarray:
        """Of values, on a panel's axis."""
        if self.categories:
            return np.array([self.categories.index(text_of(v)) for v in values], dtype=float)
        return np.array(values, dtype=float)

    def height(self, value: Any) -> float:
        """Of a value, on an axis from 0 to 1."""
        if self.categories:
            count = len(self.categories)
            return self.categories.index(text_of(value)) / (count - 1) if count > 1 else 0.5
        if self.low == self.high:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Heights that an axis from 0 to 1 names, and their texts."""
        if self.categories:
            return [(self.height(name), brief(name, 14)) for name in self.categories]
        if self.marked:
            found = self.marked
        elif self.log:
            found = [self.low, *self._inner(), self.high]
        else:
            inner = MaxNLocator(4, integer=self.whole).tick_values(self.low, self.high)
            found = [self.low, *(v for v in inner if self.low < v < self.high), self.high]
        ticks = [(self.height(value), f"{value:.3g}") for value in found]
        # The ends are always named; what would touch them is not.
        return [
            tick
            for place, tick in enumerate(ticks)
            if self.marked or place in (0, len(ticks) - 1) or 0.1 < tick[0] < 0.9
        ]

    def _inner(self) -> list[float]:
        several = LogLocator(subs=(1.0, 3.0)).tick_values(self.low, self.high)
        return [float(v) for v in several if self.low < v < self.high]

    def dress(self, axes: Axes) -> None:
        """Gives a panel's horizontal axis its ticks."""
        if self.categories:
            count = len(self.categories)
            longest = max(map(len, self.categories))
            upright = count * longest > 26
            axes.set_xticks(
                range(count),
                [brief(name, 16) for name in self.categories],
                rotation=40 if upright else 0,
                ha="right" if upright else "center",
                rotation_mode="anchor",
            )
            axes.set_xlim(-0.6, count - 0.4)
            return
        if self.log:
            axes.set_xscale("log")
        # A few values of a grid may lie so close together that their texts would touch.
        heights = [self.height(value) for value in self.marked]
        apart = all(b - a > 0.14 for a, b in pairwise(heights))
        if self.marked and apart:
            axes.xaxis.set_major_locator(FixedLocator(self.marked))
        elif self.log:
            many = self.high / self.low > _DECADE**2.5
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if many else (1.0, 3.0)))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=self.whole))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.08)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def text_of(value: Any) -> str:
    """A value as a category's name."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _category_order(text: str) -> tuple[int, float, str]:
    """Numbers first and by size, then words."""
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text
