"""How reports name what they show: metrics (unit, better end, over what), methods and teachers.

A metric of a run has the name that MLflow shows: `SPLIT/METRIC`, and for one group
`SPLIT/group/GROUP` (its accuracy) or `SPLIT/MEASURE/group/GROUP` (another measure).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

Coverage = dict[str, tuple[int, int]]
"""How many have a sample, and how many there are: `groups`, `classes`, `overlapping groups`."""

WORST_GROUP, WORST_CLASS = "worst_group_accuracy", "worst_class_accuracy"
WORST_OVERLAPPING = "worst_overlapping_group_accuracy"
ACCURACY, ECE = "accuracy", "ece"
GROUP, CLASS, OVERLAPPING = "group/", "class/", "overlapping/"
"""What stands before the name of a group, of a class of data without groups, and of a group where
a sample may be in several."""
STEPS, TEACHER_STEPS = "cost/steps", "cost/teacher_steps"
"""Training steps of the student; the teachers' forward passes, expressed in them."""
MISSING = "–"
ALL = "all samples"
"""Stands among the groups for all of them."""

_METHODS = {
    "one_hot": "One-hot",
    "one_hot_dfr": "One-hot + DFR",
    "deep_ensemble": "Deep ensemble (ERM)",
    "deep_ensemble_dfr": "Deep ensemble (DFR)",
    "teacher_vote": "Teachers, vote",
    "random": "Random",
    "aver": "AVER",
    "ae_kd": "AE-KD",
    "ca_mkd": "CA-MKD",
    "govern": "Govern",
    "agre_kd": "AGRE-KD",
    "agre_kd_guarded": "AGRE-KD, guarded",
    "winner": "Winner",
    "default": "Default",
}
_REFERENCES = {"one_hot", "one_hot_dfr", "deep_ensemble", "deep_ensemble_dfr", "teacher_vote"}


@dataclass(frozen=True)
class Metric:
    """What reports know about a metric.

    Attributes:
        name: in records and in MLflow.
        label: as people read it.
        unit: `%` for a share in [0, 1], which reports multiply by 100; `steps`, `s` or nothing.
        less_is_better: whether its smallest value is the best.
        over: `groups`, `classes` or `overlapping groups` where it is their smallest or mean.
    """

    name: str
    label: str
    unit: str = "%"
    less_is_better: bool = False
    over: str = ""

    def text(self, value: float | None) -> str:
        """A value without its unit: shares in percent, whole steps, others with four digits."""
        if value is None or not math.isfinite(value):
            return MISSING
        if self.unit == "%":
            return f"{100 * value:.1f}"
        return f"{value:,.0f}" if self.unit == "steps" else f"{value:.4g}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric(WORST_GROUP, "Worst group", over="groups"),
        Metric(WORST_OVERLAPPING, "Worst overlapping", over="overlapping groups"),
        Metric(ACCURACY, "Accuracy"),
        Metric("weighted_accuracy", "Weighted", over="groups"),
        Metric("balanced_accuracy", "Balanced", over="classes"),
        Metric(WORST_CLASS, "Worst class", over="classes"),
        Metric(ECE, "ECE", less_is_better=True),
        Metric("fallback_share", "Fallback", less_is_better=True),
        Metric("loss", "Loss", "", less_is_better=True),
        Metric("seconds", "Seconds", "s", less_is_better=True),
        Metric("learning_rate", "Learning rate", ""),
        Metric("steps", "Steps", "steps", less_is_better=True),
        Metric("teacher_steps", "Teachers' steps", "steps", less_is_better=True),
    )
}
_KIND = r"(?:group|class|overlapping)/"
_OF_A_GROUP = re.compile(
    rf"(?:(?:test|val)/)?(?:(?P<measure>(?!{_KIND})\w+)/)?{_KIND}(?P<group>.+)"
)
_QUANTILE = re.compile(
    r"(?:test|val)/(?:(?P<measure>\w+)/)?"
    r"(?P<of>groups|classes|overlapping_groups)/(?P<quantile>min|max|p\d+)"
)
"""Of many groups, `results.many.QUANTILES` stand for all of them."""
_SHARES = ("select", "weight", "influence", "influence_by_group", "fallback", "agreement")


def metric(name: str) -> Metric:
    """What is known of a metric.

    Args:
        name: `test/accuracy`, `accuracy`, `test/group/GROUP`, `train/loss`, ...
    """
    split, _, rest = name.partition("/")
    if known := METRICS.get(name) or METRICS.get(rest):
        return known
    if quantile := _QUANTILE.fullmatch(name):
        return _of_many(name, quantile)
    if of_a_group := _OF_A_GROUP.fullmatch(name):
        measure, group = of_a_group["measure"], of_a_group["group"].replace("_", " ")
        if measure is None:
            return Metric(name, group)
        from agrekd_ray.core.groups import MEASURES  # imports torch

        if further := MEASURES.get(measure):
            label = f"{further.label}, {group}"
            return Metric(name, label, further.unit, further.less_is_better)
    share = split in _SHARES or name.endswith("_accuracy")
    return Metric(name, (rest or name).replace("_", " "), "%" if share else "")


def _of_many(name: str, quantile: re.Match[str]) -> Metric:
    """A quantile of the groups' accuracies, or of another measure of them."""
    end, of = quantile["quantile"], quantile["of"].replace("_", " ")
    words = {"min": f"Lowest of {of}", "max": f"Highest of {of}", "p50": f"Median of {of}"}
    label = words.get(end, f"{end.removeprefix('p')}th percentile of {of}")
    if quantile["measure"] is None:
        return Metric(name, label)
    from agrekd_ray.core.groups import MEASURES  # imports torch

    further = MEASURES.get(quantile["measure"])
    if further is None:
        return Metric(name, label, "")
    return Metric(name, f"{further.label}, {label.lower()}", further.unit, further.less_is_better)


def metric_label(name: str) -> str:
    """A metric as people read it; of the test split, and of what needs no split, the name alone."""
    split, _, rest = name.partition("/")
    if not rest:
        return name
    words = metric(name).label
    return words if split in ("test", "cost", "train") else f"{words} ({split})"


def worst_metric(split: str, metrics: Iterable[str]) -> str:
    """What runs are judged by: their worst group, or worst class where no data have groups.

    Args:
        split: `test` or `val`.
        metrics: names of all that the runs have.
    """
    names = list(metrics)
    grouped, classed = (
        any(name.startswith((f"{split}/{kind}", f"{split}/{many}/")) for name in names)
        for kind, many in ((GROUP, "groups"), (CLASS, "classes"))
    )
    return f"{split}/{WORST_CLASS if classed and not grouped else WORST_GROUP}"


def part_measured(coverage: Coverage, name: str) -> str:
    """`2 of 4 groups`: what a metric is over; empty where that is all there are, or unknown.

    Args:
        coverage: of a split.
        name: of the metric, without the split.
    """
    kind = METRICS[name].over if name in METRICS else ""
    if kind == "groups" and kind not in coverage:  # the classes stand in for them
        kind = "classes"
    some, every = coverage.get(kind, (0, 0))
    return f"{some} of {every} {kind}" if some < every else ""


def measured_over(coverage: Coverage) -> str:
    """`2 of 4 groups, 1 of 2 classes`; empty where all have samples."""
    counts = coverage.items()
    return ", ".join(f"{some} of {every} {kind}" for kind, (some, every) in counts if some < every)


def over(words: str, part: str) -> str:
    """`worst of 2 of 4 groups`, `Balanced over 1 of 2 classes`; the words alone without a part."""
    if not part:
        return words
    told, worst = re.subn(r"(?i)\b(worst)[ -](group|class|overlapping)", rf"\1 of {part}", words)
    return told if worst else f"{words} over {part}"


def accuracy_of(worst: str) -> str:
    """`worst-group accuracy`, `accuracy of the worst of 2 of 4 groups`; see `Metrics.worst`."""
    if worst in ("worst group", "worst class"):
        return f"{worst.replace(' ', '-')} accuracy"
    return f"accuracy of the {worst}"


def short_paths(paths: Iterable[str]) -> dict[str, str]:
    """Dotted paths of settings, by as few of their last parts as tell them apart.

    A seed and a name are always said to be whose: students have seeds, data and models names.
    """
    every = {path: path.split(".") for path in paths}

    def short(path: str) -> str:
        for count in range(1, len(every[path])):
            ending = every[path][-count:]
            if ending in (["seed"], ["name"]):
                continue
            if sum(other[-count:] == ending for other in every.values()) == 1:
                return ".".join(ending)
        return path

    return {path: short(path) for path in every}


def setting_text(value: object, digits: int = 4) -> str:
    """A setting's value as YAML would have it, real numbers in so many digits."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def label(method: str) -> str:
    """A method as people read it; the name itself, with spaces, where it has no label."""
    return _METHODS.get(method, method.replace("_", " "))


def is_distilled(method: str) -> bool:
    """Whether teachers taught the student; no for references and for votes."""
    return method not in _REFERENCES
