"""What MLflow is told: metrics by name, and names and values in the shape that it takes."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from agrekd_ray.results import Coverage, Epoch, Metrics
from agrekd_ray.tracking.metrics import (
    CLASS,
    GROUP,
    IN_ALL,
    OVERLAPPING,
    WITH_SAMPLES,
    WORST_GROUP,
)

_LONGEST_NAME = 250


def epoch_metrics(epoch: Epoch) -> dict[str, float]:
    """Everything that an epoch has a number for, by name; `train/loss` comes last."""
    # MLflow's comparison page begins with the first metric that a run got.
    metrics = {
        **split_metrics("val", epoch.val),
        "train/learning_rate": epoch.learning_rate,
        "train/seconds": epoch.seconds,
        "train/fallback_share": epoch.fallback_share,
        **{f"select/{rule}": score for rule, score in epoch.selection.items()},
    }
    groups = distinct_names(epoch.weights)
    teachers = distinct_names(sorted({t for weights in epoch.weights.values() for t in weights}))
    for teacher, share in epoch.influence.items():
        metrics[f"influence/{teachers[teacher]}"] = share
    for group, share in epoch.fallback_by_group.items():
        metrics[f"fallback/{groups[group]}"] = share
    by_group = {"weight": epoch.weights, "influence_by_group": epoch.influence_by_group}
    for kind, shares in by_group.items():
        for group, taught in shares.items():
            for teacher, share in taught.items():
                metrics[f"{kind}/{groups[group]}/{teachers[teacher]}"] = share
    # Last, because its presence says that the epoch was written whole.
    metrics["train/loss"] = epoch.loss
    return metrics


def split_metrics(split: str, metrics: Metrics) -> dict[str, float]:
    """Metrics on a split, by name; the worst group comes first.

    Where the data have no groups, its classes stand in for them, as `<split>/class/<name>`.
    """
    place, groups = _part(split), distinct_names(metrics.groups)
    worst = {WORST_GROUP: metrics.worst_group_accuracy}
    values = {**worst, **metrics.scalars()}
    part = GROUP if metrics.groups_known else CLASS
    values |= {f"{part}{groups[name]}": value for name, value in metrics.groups.items()}
    further = distinct_names(metrics.overlapping)
    values |= {f"{OVERLAPPING}{further[name]}": v for name, v in metrics.overlapping.items()}
    values |= coverage_metrics(metrics.coverage)
    return {f"{place}/{name}": value for name, value in values.items()}


def coverage_metrics(coverage: Coverage) -> dict[str, float]:
    """How many groups and classes have a sample, and how many there are; where all have, nothing.

    Returns:
        `groups_with_samples`, `groups_in_all` and so on, of every kind.
    """
    if all(some == every for some, every in coverage.values()):
        return {}
    return {
        f"{kind.replace(' ', '_')}_{name}": float(count)
        for kind, counts in coverage.items()
        for name, count in zip((WITH_SAMPLES, IN_ALL), counts, strict=True)
    }


def distinct_names(names: Iterable[str]) -> dict[str, str]:
    """Names in MLflow's alphabet, by the names they stand for; no two become one."""
    taken: dict[str, str] = {}
    for name in sorted(names):
        plain = "/".join(_part(part) for part in name.split("/"))[: _LONGEST_NAME - 100]
        plain = plain.rstrip("/") or "_"
        candidate, number = plain, 2
        while candidate in taken.values():
            candidate, number = f"{plain}-{number}", number + 1
        taken[name] = candidate
    return taken


def _part(text: str) -> str:
    """One part of a name: letters, digits, `_ - . :` and spaces; never a step up or nothing."""
    plain = re.sub(r"[^\w.\- :]", "_", text).strip()
    return plain if plain.strip(".") else "_"


def as_text(value: Any) -> str:
    """A parameter's value; JSON where it is no text."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        return str(value)


def shortened(text: str, limit: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def end_times(seconds: Sequence[float], after: int) -> list[int]:
    """When epochs ended that took so long each, the last of them now; in milliseconds.

    MLflow orders a curve by time, so none is earlier than the one before it, or than `after`.
    """
    now, ends = milliseconds(), [after]
    for place in range(len(seconds)):
        later = int(1000 * math.fsum(seconds[place + 1 :]))
        ends.append(max(now - later, ends[-1] + 1))
    return ends[1:]


def milliseconds() -> int:
    """Now, as MLflow counts time."""
    return int(time.time() * 1000)
