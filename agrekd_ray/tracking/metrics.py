"""How reports name and write what is in MLflow: `test/accuracy`, `distillation.temperature`, ..."""

from __future__ import annotations

import math
from collections.abc import Iterable

WORST_GROUP, ACCURACY, ECE = "worst_group_accuracy", "accuracy", "ece"
STEPS, TEACHER_STEPS = "cost/steps", "cost/teacher_steps"
"""Training steps of the student; the teachers' forward passes, expressed in them."""
MISSING = "–"

_WORDS = {
    WORST_GROUP: "Worst group",
    ACCURACY: "Accuracy",
    "weighted_accuracy": "Weighted",
    "balanced_accuracy": "Balanced",
    "worst_class_accuracy": "Worst class",
    "worst_overlapping_group_accuracy": "Worst overlapping",
    ECE: "ECE",
    "loss": "Loss",
    "seconds": "Seconds",
    "learning_rate": "Learning rate",
    "fallback_share": "Fallback",
    "steps": "Steps",
    "teacher_steps": "Teachers' steps",
}
_SHARES = {WORST_GROUP, ACCURACY, ECE, "fallback_share"}
_LESS_IS_BETTER = {ECE, "loss", "seconds", "fallback_share", "steps", "teacher_steps"}


def metric_label(metric: str) -> str:
    """A metric as people read it; of the test split, and of what needs no split, the name alone."""
    split, _, name = metric.partition("/")
    if not name:
        return metric
    words = _WORDS.get(name, name.removeprefix("group/").replace("_", " "))
    return words if split in ("test", "cost", "train") else f"{words} ({split})"


def is_share(metric: str) -> bool:
    """Whether a metric is in [0, 1], and written in percent."""
    split, _, name = metric.partition("/")
    return (
        name in _SHARES
        or name.endswith("_accuracy")
        or name.startswith(("group/", "overlapping/"))
        or split in ("select", "weight", "influence", "influence_by_group", "fallback", "agreement")
    )


def less_is_better(metric: str) -> bool:
    """Whether the smallest value of a metric is the best."""
    return metric.rpartition("/")[2] in _LESS_IS_BETTER


def figure(metric: str, value: float | None) -> str:
    """A value of a metric: shares in percent, whole steps, others with four digits."""
    if value is None or not math.isfinite(value):
        return MISSING
    if is_share(metric):
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if metric.endswith("steps") else f"{value:.4g}"


def short_paths(paths: Iterable[str]) -> dict[str, str]:
    """Dotted paths of settings, by as few of their last parts as tell them apart."""
    every = {path: path.split(".") for path in paths}

    def short(path: str) -> str:
        for count in range(1, len(every[path])):
            ending = every[path][-count:]
            if sum(other[-count:] == ending for other in every.values()) == 1:
                return ".".join(ending)
        return path

    return {path: short(path) for path in every}
