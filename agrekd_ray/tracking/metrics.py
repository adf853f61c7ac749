"""How reports name and write what is in MLflow: `test/accuracy`, `distillation.temperature`, ..."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from agrekd_ray.results import Coverage

WORST_GROUP, WORST_CLASS = "worst_group_accuracy", "worst_class_accuracy"
ACCURACY, ECE = "accuracy", "ece"
WORST_OVERLAPPING = "worst_overlapping_group_accuracy"
GROUP, CLASS, OVERLAPPING = "group/", "class/", "overlapping/"
"""What the accuracy of one group is under in a split, of one class of data without groups, and of
one of the groups of which a sample may be in several."""
WITH_SAMPLES, IN_ALL = "with_samples", "in_all"
"""Ends of the metrics of a split that say over how many groups, classes and overlapping groups it
is measured: `test/groups_with_samples` of `test/groups_in_all`; there where some have none."""
STEPS, TEACHER_STEPS = "cost/steps", "cost/teacher_steps"
"""Training steps of the student; the teachers' forward passes, expressed in them."""
MISSING = "–"

_WORDS = {
    WORST_GROUP: "Worst group",
    ACCURACY: "Accuracy",
    "weighted_accuracy": "Weighted",
    "balanced_accuracy": "Balanced",
    WORST_CLASS: "Worst class",
    WORST_OVERLAPPING: "Worst overlapping",
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
    words = _WORDS.get(name, name.removeprefix(GROUP).removeprefix(CLASS).replace("_", " "))
    return words if split in ("test", "cost", "train") else f"{words} ({split})"


def coverage_in(split: str, metrics: Mapping[str, float]) -> Coverage:
    """What the metrics of a run say of how much of a split they are measured over.

    Args:
        split: `test` or `val`.
        metrics: last values by name.
    """
    found: Coverage = {}
    for kind in ("groups", "classes", "overlapping groups"):
        name = f"{split}/{kind.replace(' ', '_')}"
        some, every = (metrics.get(f"{name}_{end}") for end in (WITH_SAMPLES, IN_ALL))
        if some is not None and every is not None:
            found[kind] = (round(some), round(every))
    return found


def is_share(metric: str) -> bool:
    """Whether a metric is in [0, 1], and written in percent."""
    split, _, name = metric.partition("/")
    return (
        name in _SHARES
        or name.endswith("_accuracy")
        or name.startswith((GROUP, CLASS, OVERLAPPING))
        or split in ("select", "weight", "influence", "influence_by_group", "fallback", "agreement")
    )


def worst_metric(split: str, metrics: Iterable[str]) -> str:
    """What runs are judged by: their worst group, or worst class where no data have groups.

    Args:
        split: `test` or `val`.
        metrics: names of all that the runs have.
    """
    names = list(metrics)
    grouped, classed = (
        any(name.startswith(f"{split}/{kind}") for name in names) for kind in (GROUP, CLASS)
    )
    return f"{split}/{WORST_CLASS if classed and not grouped else WORST_GROUP}"


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
