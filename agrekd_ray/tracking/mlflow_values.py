"""What MLflow is told: metrics by name, and names and values in the shape that it takes."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from agrekd_ray.results import Epoch, Metrics
from agrekd_ray.results.frame import coverage_values, is_coverage, key, values_of

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
    values = list(values_of(metrics))
    names = distinct_names({group for _, group, _ in values if group})
    row = {key(name, names[group] if group else ""): value for name, group, value in values}
    told = coverage_values(row)
    return {
        f"{_part(split)}/{name}": value
        for name, value in row.items()
        if name in told or not is_coverage(name)
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
