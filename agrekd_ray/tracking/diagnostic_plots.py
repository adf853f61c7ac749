"""Pictures of a job's diagnostics: the 0/0 case, agreement with the biased model, calibration.

Drawn as in `plots`: each function writes one PNG, and says whether there was anything to draw.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from agrekd_ray.core.diagnostics import CALIBRATION_BINS, CASES
from agrekd_ray.results import Agreement, Bin, Diagnostics, Outcome
from agrekd_ray.tracking.labels import ALL, is_distilled, label
from agrekd_ray.tracking.plots import (
    BLUE,
    DASHES,
    FAINT,
    INK,
    LEGEND,
    LINES,
    MOST_GROUPS,
    ORANGE,
    REFERENCE,
    epoch_axis,
    headline,
    new_figure,
    save,
    visible,
)

_CASES = {
    "agrees_right": ("#d9d9d9", "agrees, both right"),
    "agrees_wrong": ("#8a8a8a", "agrees, both wrong"),
    "contradicts_right": (BLUE, "contradicts it, and is right"),
    "contradicts_wrong": (ORANGE, "contradicts it, and is wrong"),
}
_NARROW, _SMALLEST_SHOWN = 4, 0.06
_FEW = 0.01
"""Bins with less of the samples than this say little and are drawn pale."""


def fallback_by_group(outcomes: Sequence[Outcome], path: Path) -> bool:
    """Draws the share of samples in the 0/0 case over epochs, a panel a method, a line a group.

    Lines are means over seeds. Methods that never met the case are left out; beyond eight groups,
    the eight are shown that met it most.

    Args:
        outcomes: students, finished or under way.
        path: the PNG, replaced as a whole.

    Returns:
        Whether there was anything to draw; without it there is no file.
    """
    means = {
        method: _mean_fallback([o for o in outcomes if o.method == method])
        for method in dict.fromkeys(o.method for o in outcomes)
    }
    means = {
        method: groups
        for method, groups in means.items()
        if any(share > 0 for by_epoch in groups.values() for share in by_epoch.values())
    }
    if not means:
        return False
    every = list(dict.fromkeys(group for groups in means.values() for group in groups))
    shown = _most_met(every, means)
    width = 2.2 + 3.4 * len(means)
    longest = max(len(group) for group in shown)
    across = max(1, min(len(shown), int(width / (0.6 + 0.08 * longest))))
    figure = new_figure(max(4.6, width), 3.1 + 0.2 * -(-len(shown) // across))
    panels = figure.subplots(1, len(means), sharey=True, squeeze=False)[0]
    colors = [color for color in LINES if color != INK]
    styles: dict[str, dict[str, Any]] = {
        group: {
            "color": colors[place % len(colors)],
            "linestyle": DASHES[place // len(colors) % len(DASHES)],
            "lw": 1.6,
        }
        for place, group in enumerate(group for group in shown if group != ALL)
    }
    styles[ALL] = {"color": INK, "linestyle": "-", "lw": 2.4}
    for axes, (method, groups) in zip(panels, means.items(), strict=True):
        for group in shown:
            by_epoch = groups.get(group, {})
            shares = [100 * share for share in by_epoch.values()]
            axes.plot(list(by_epoch), shares, **visible(styles[group], len(shares)))
        axes.set_title(label(method), size=10, loc="left")
        axes.grid(color="#ececec", lw=0.8)
        epoch_axis(axes)
    top = panels[0].get_ylim()[1]
    panels[0].set_ylim(-0.02 * top, top)  # so that a line at 0 is seen
    panels[0].set_ylabel("samples (%)")
    title = "Samples in the 0/0 case, by training group"
    if len(shown) < len(every):
        title += f" ({len(shown) - 1} of {len(every) - 1} groups)"
    headline(figure, textwrap.fill(title, int(9 * max(4.6, width))))
    handles = [Line2D([], [], label=group, **styles[group]) for group in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=across, **LEGEND)
    save(figure, path)
    return True


def agreement_by_group(diagnostics: Diagnostics, path: Path) -> bool:
    """Draws where the ensemble's vote follows the biased model, a bar a group, a panel a split.

    Args:
        diagnostics: of a job.
        path: the PNG, replaced as a whole.

    Returns:
        Whether there was anything to draw; without it there is no file.
    """
    if not diagnostics.agreement:
        return False
    bars = {
        split: {ALL: found.overall, **found.groups, **found.overlapping}
        for split, found in diagnostics.agreement.items()
    }
    groups = list(dict.fromkeys(group for found in bars.values() for group in found))
    figure = new_figure(3.2 + 3.9 * len(bars), 1.75 + 0.36 * len(groups))
    panels = figure.subplots(1, len(bars), sharey=True, squeeze=False)[0]
    for axes, (split, found) in zip(panels, bars.items(), strict=True):
        for place, group in enumerate(groups):
            if group in found:
                _stack(axes, place, found[group])
        axes.set_title(f"{split} split", size=10, loc="left")
        axes.set_xlim(0, 100)
        axes.set_xlabel("samples of the group (%)")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.axhline(0.5, color=FAINT, lw=0.8)
    panels[0].set_yticks(range(len(groups)), [textwrap.fill(group, 28) for group in groups])
    panels[0].set_ylim(len(groups) - 0.45, -0.55)
    headline(figure, "The teachers' vote against the biased model")
    handles = [Patch(color=color, label=words) for color, words in _CASES.values()]
    across = 4 if len(bars) > 1 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=across, **LEGEND)
    save(figure, path)
    return True


def calibration(outcomes: Sequence[Outcome], path: Path) -> bool:
    """Draws reliability diagrams on the test split, a panel a method, samples by confidence below.

    The samples of all seeds are pooled; the expected calibration error is the mean over seeds.

    Args:
        outcomes: finished students; those without a diagram are left out.
        path: the PNG, replaced as a whole.

    Returns:
        Whether there was anything to draw; without it there is no file.
    """
    measured = [outcome for outcome in outcomes if outcome.calibration]
    methods = list(dict.fromkeys(outcome.method for outcome in measured))
    if not methods:
        return False
    rows = -(-len(methods) // _NARROW)
    columns = -(-len(methods) // rows)
    figure = new_figure(max(4.8, 1.0 + 2.4 * columns), 1.25 + 2.75 * rows)
    pools = [pooled([o for o in measured if o.method == method]) for method in methods]
    tallest = max(b.count / sum(b.count for b in bins) for bins in pools for b in bins)
    top = 10 * math.ceil(10 * tallest)
    heights = [3.0, 1.0] * rows
    panels = figure.subplots(
        2 * rows, columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights}
    )
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        upper, lower = panels[2 * row][column], panels[2 * row + 1][column]
        if place >= len(methods):
            upper.set_axis_off()
            lower.set_axis_off()
            continue
        mine = [outcome for outcome in measured if outcome.method == methods[place]]
        error = float(np.mean([outcome.splits["test"].ece for outcome in mine]))
        upper.set_title(f"{label(methods[place])}\nECE {100 * error:.1f} %", size=9, loc="left")
        _diagram(upper, lower, pools[place], methods[place])
        for axes in (upper, lower):
            axes.set_xlim(0, 100)
            axes.tick_params(labelsize=8, labelbottom=axes is lower)
            axes.grid(color="#ececec", lw=0.8)
            axes.set_axisbelow(True)
        upper.set_ylim(0, 100)
        lower.set_ylim(0, top)
        lower.set_yticks([0, top])
        if column == 0:
            upper.set_ylabel("accuracy (%)", size=9)
            lower.set_ylabel("samples\n(%)", size=9)
        if place + columns >= len(methods):
            lower.set_xlabel("confidence (%)", size=9)
    headline(figure, "What confidence is worth, test split")
    handles = [
        *([Patch(color=BLUE, label="distilled")] if any(map(is_distilled, methods)) else []),
        *([] if all(map(is_distilled, methods)) else [Patch(color=REFERENCE, label="reference")]),
        Patch(color=FAINT, alpha=0.3, label=f"bins under {_FEW:.0%} of the samples"),
        Line2D([], [], color=INK, lw=0.9, ls=(0, (4, 3)), label="as confident as right"),
    ]
    across = len(handles) if columns > 2 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=across, **LEGEND)
    save(figure, path)
    return True


def pooled(outcomes: Sequence[Outcome]) -> list[Bin]:
    """Reliability diagram of the samples of several students together.

    Args:
        outcomes: of one method.
    """
    bins: dict[int, list[Bin]] = {}
    for outcome in outcomes:
        for found in outcome.calibration:
            bins.setdefault(round(found.low * CALIBRATION_BINS), []).append(found)
    return [
        Bin(
            these[0].low,
            these[0].high,
            count := sum(b.count for b in these),
            sum(b.count * b.confidence for b in these) / count,
            sum(b.count * b.accuracy for b in these) / count,
        )
        for _, these in sorted(bins.items())
    ]


def _diagram(upper: Axes, lower: Axes, bins: list[Bin], method: str) -> None:
    color = BLUE if is_distilled(method) else REFERENCE
    total = sum(found.count for found in bins)
    upper.plot([0, 100], [0, 100], color=INK, lw=0.9, ls=(0, (4, 3)), zorder=4)
    for found in bins:
        low, width = 100 * found.low, 100 * (found.high - found.low)
        few = found.count < _FEW * total
        shape: dict[str, Any] = {
            "width": width,
            "align": "edge",
            "color": color,
            "edgecolor": "white",
            "lw": 0.6,
        }
        upper.bar(low, 100 * found.accuracy, alpha=0.35 if few else 1.0, zorder=3, **shape)
        lower.bar(low, 100 * found.count / total, zorder=3, **shape)


def _stack(axes: Axes, place: int, shares: Agreement) -> None:
    left = 0.0
    for case in CASES:
        share, (color, _) = getattr(shares, case), _CASES[case]
        axes.barh(place, 100 * share, left=left, height=0.72, color=color, zorder=2)
        if share >= _SMALLEST_SHOWN:
            ink = "white" if case == "agrees_wrong" else INK
            center = left + 50 * share
            axes.text(
                center, place, f"{100 * share:.0f}", ha="center", va="center", size=8, color=ink
            )
        left += 100 * share
    axes.annotate(
        f"n = {shares.count:,}",
        (101, place),
        va="center",
        size=8,
        color=FAINT,
        annotation_clip=False,
    )


def _mean_fallback(outcomes: Sequence[Outcome]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, list[float]]] = {}
    for outcome in outcomes:
        for epoch in outcome.history:
            if epoch.fallback_by_group:
                for group, share in {ALL: epoch.fallback_share, **epoch.fallback_by_group}.items():
                    found.setdefault(group, {}).setdefault(epoch.epoch, []).append(share)
    return {
        group: {epoch: float(np.mean(shares)) for epoch, shares in sorted(by_epoch.items())}
        for group, by_epoch in found.items()
    }


def _most_met(every: list[str], means: dict[str, dict[str, dict[int, float]]]) -> list[str]:
    """All samples, and the groups that met the case most."""

    def share(group: str) -> float:
        found = [groups[group] for groups in means.values() if group in groups]
        return max(float(np.mean(list(by_epoch.values()))) for by_epoch in found)

    groups = [group for group in every if group != ALL]
    chosen = sorted(groups, key=share, reverse=True)[:MOST_GROUPS]
    return [ALL, *(group for group in groups if group in chosen)]
