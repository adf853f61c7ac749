"""When to use what: a study's gain over AVER as a map, a coloured cell a place of the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from agrekd_ray.report import style
from agrekd_ray.report.style import BLUE, INK, ORANGE
from agrekd_ray.results.intervals import INTERVAL, PairedDifference
from agrekd_ray.results.metrics import accuracy_of, is_distilled, label
from agrekd_ray.results.study import OURS, StudyResult

AGAINST = "aver"
_COLORS = LinearSegmentedColormap.from_list("gain", [BLUE, "#ffffff", ORANGE])


def gain_map(result: StudyResult, axis: str, note: str) -> Figure | None:
    """Colours each place by the worst-group accuracy that AGRE-KD gains over AVER, in points.

    The last swept key goes along, every combination of the others has a row, and every kind of
    AGRE-KD in the study a panel. Figures are bold where the interval leaves 0 out.

    Args:
        result: of the study.
        axis: name of the last swept key.
        note: what data, samples, seeds and draws are shown.
    """
    kinds = [m for m in result.methods if m.startswith(OURS) and is_distilled(m)]
    panels = result.panels
    if (
        sum(len(values) > 1 for values in result.sweep.values()) < 2
        or AGAINST not in result.methods
    ):
        return None
    found = {
        kind: [[result.difference(at, kind, AGAINST) for at in panel.places] for panel in panels]
        for kind in kinds
    }
    means = [d.mean for rows in found.values() for row in rows for d in row if d is not None]
    if not means or len({len(panel.places) for panel in panels}) > 1:  # the study is under way
        return None
    across = len(panels[0].places)
    width = 3.1 + 1.25 * across * len(kinds)
    figure = style.new_figure(max(6.4, width), 1.75 + 0.52 * len(panels))
    grid = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    most = 100 * max(map(abs, means)) or 1.0
    for axes, (kind, rows) in zip(grid, found.items(), strict=True):
        heights = [[np.nan if d is None else 100 * d.mean for d in row] for row in rows]
        image = axes.imshow(heights, cmap=_COLORS, vmin=-most, vmax=most, aspect="auto")
        if len(kinds) > 1:
            axes.set_title(f"{label(kind)} − {label(AGAINST)}", size=10, loc="left")
        axes.set_xticks(range(across), [name.rpartition(" ")[2] for name in panels[0].columns])
        axes.set_yticks(range(len(panels)), [panel.where for panel in panels])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(axis)
        _write(axes, rows)
    bar = figure.colorbar(image, ax=[*grid], shrink=0.9, aspect=12)
    bar.outline.set_visible(False)
    bar.set_label(f"{accuracy_of(result.worst)}, points", size=8)
    title = f"{result.name}: what AGRE-KD gains over {label(AGAINST)}"
    return style.finish(figure, title, f"{note}; below a figure its {INTERVAL}, bold without 0")


def _write(axes: Any, rows: Sequence[Sequence[PairedDifference | None]]) -> None:
    """Puts each difference and its interval into its cell."""
    for y, row in enumerate(rows):
        for x, difference in enumerate(row):
            if difference is None:
                continue
            low, high = difference.low, difference.high
            sure = low is not None and high is not None and not low <= 0 <= high
            look: dict[str, Any] = {"ha": "center", "color": INK}
            weight = "bold" if sure else "normal"
            axes.text(x, y - 0.08, difference.points, va="bottom", size=9, weight=weight, **look)
            axes.text(x, y + 0.02, difference.interval(), va="top", size=6.5, **look)
