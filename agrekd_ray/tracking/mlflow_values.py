"""What MLflow is told: metrics by name, and names and values in the shape that it takes."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agrekd_ray.results import Epoch, Metrics, StudentResult
from agrekd_ray.results.frame import coverage_values, is_coverage, key, values_of
from agrekd_ray.results.many import ENDS, are_many, ends, mean_of_rows, quantiles
from agrekd_ray.results.metrics import ACCURACY, CLASS, GROUP, OVERLAPPING

_LONGEST_NAME = 250


_QUANTILES_OF = {GROUP: "groups", CLASS: "classes", OVERLAPPING: "overlapping_groups"}
"""What stands before the quantiles of what has a name after the prefix."""


def epoch_metrics(epoch: Epoch) -> dict[str, float]:
    """What an epoch has a number for, by name; `train/loss` comes last.

    Where groups or teachers are many (`results.many`) their quantiles stand for them, so that the
    numbers of an epoch are bounded: `val/classes/p10`, `weight/groups/p10/TEACHER`,
    `weight/GROUP/teachers/p10`, and where both are, `weight/teachers/p10` of the teachers' means.
    """
    # MLflow's comparison page begins with the first metric that a run got.
    metrics = {
        **split_metrics("val", epoch.val, named=False),
        "train/learning_rate": epoch.learning_rate,
        "train/seconds": epoch.seconds,
        "train/fallback_share": epoch.fallback_share,
        **{f"select/{rule}": score for rule, score in epoch.selection.items()},
    }
    groups = distinct_names(epoch.weights)
    teachers = distinct_names(sorted({t for weights in epoch.weights.values() for t in weights}))
    metrics |= _named_or_quantiles("influence", epoch.influence, teachers, "teachers")
    metrics |= _named_or_quantiles("fallback", epoch.fallback_by_group, groups, "groups")
    by_group = {"weight": epoch.weights, "influence_by_group": epoch.influence_by_group}
    for kind, shares in by_group.items():
        metrics |= _shares_metrics(kind, shares, groups, teachers)
    # Last, because its presence says that the epoch was written whole.
    metrics["train/loss"] = epoch.loss
    return metrics


def _named_or_quantiles(
    kind: str, values: Mapping[str, float], names: Mapping[str, str], many: str
) -> dict[str, float]:
    """Few values by name; of many, the quantiles."""
    if are_many(len(values)):
        return {f"{kind}/{many}/{q}": value for q, value in quantiles(values.values()).items()}
    return {f"{kind}/{names[name]}": value for name, value in values.items()}


def _shares_metrics(
    kind: str,
    shares: Mapping[str, Mapping[str, float]],
    groups: Mapping[str, str],
    teachers: Mapping[str, str],
) -> dict[str, float]:
    """Shares of teachers by group: all of few; else by teacher or by group, or neither."""
    if not are_many(len(shares), len(teachers)):
        return {
            f"{kind}/{groups[group]}/{teachers[teacher]}": share
            for group, taught in shares.items()
            for teacher, share in taught.items()
        }
    if not are_many(len(teachers)):
        by_teacher = {t: [taught[t] for taught in shares.values() if t in taught] for t in teachers}
        return {
            f"{kind}/groups/{q}/{teachers[teacher]}": value
            for teacher, of_groups in by_teacher.items()
            for q, value in quantiles(of_groups).items()
        }
    if not are_many(len(shares)):
        return {
            f"{kind}/{groups[group]}/teachers/{q}": value
            for group, taught in shares.items()
            for q, value in quantiles(taught.values()).items()
        }
    every = quantiles(mean_of_rows(shares).values())
    return {f"{kind}/teachers/{q}": value for q, value in every.items()}


def ends_metrics(outcome: StudentResult) -> list[tuple[str, float, int]]:
    """Of a student with many groups or teachers: the worst and the best ten, by name.

    They are chosen when the student is finished, groups by their accuracy on the test split and
    teachers by their mean weight in the last epoch: chosen anew in every epoch there would be ever
    more of them, the last values of most of them old ones.

    Returns:
        Names, values and epochs: the accuracy of the groups on `val` in every epoch; the weights
        and influences, in these groups, of these teachers in the last epoch. Nothing of a student
        that has few of both.
    """
    if not outcome.history:
        return []
    last = outcome.history[-1]
    accuracies = outcome.splits.get("test", last.val).groups
    values: list[tuple[str, float, int]] = []
    if are_many(len(last.val.groups)):
        kind = GROUP if last.val.groups_known else CLASS
        names = distinct_names(f"{kind}{group}" for group in last.val.groups)
        values += [
            (f"val/{names[f'{kind}{group}']}", epoch.val.groups[group], epoch.epoch)
            for epoch in outcome.history
            for group in ends(accuracies)
            if group in epoch.val.groups
        ]
    means = mean_of_rows(last.weights)
    if not are_many(len(last.weights), len(means)):
        return values
    groups, teachers = distinct_names(last.weights), distinct_names(means)
    taught = ends({g: accuracies.get(g, math.nan) for g in last.weights}, few=2 * ENDS)
    shown = ends(means, few=2 * ENDS)
    for kind, shares in (
        ("weight", last.weights),
        ("influence_by_group", last.influence_by_group),
    ):
        values += [
            (f"{kind}/{groups[group]}/{teachers[teacher]}", shares[group][teacher], last.epoch)
            for group in taught
            for teacher in shown
            if teacher in shares.get(group, {})
        ]
    if are_many(len(last.influence)):
        values += [
            (f"influence/{teachers[teacher]}", last.influence[teacher], last.epoch)
            for teacher in shown
            if teacher in last.influence
        ]
    return values


def split_metrics(split: str, metrics: Metrics, *, named: bool = True) -> dict[str, float]:
    """Metrics on a split, by name; the worst group comes first.

    Where the data have no groups, its classes stand in for them, as `<split>/class/<name>`. Of many
    groups (`results.many`) there are the quantiles, `<split>/classes/p10` and so on.

    Args:
        split: `test` or `val`.
        metrics: of a model on it.
        named: of many groups, also the ten worst and the ten best, by name.
    """
    values = list(values_of(metrics))
    names = distinct_names({group for _, group, _ in values if group})
    shown = set(names)
    further: dict[str, float] = {}
    for kind, many in _QUANTILES_OF.items():
        accuracies = {g: v for name, g, v in values if name == ACCURACY and g.startswith(kind)}
        if not are_many(len(accuracies)):
            continue
        shown -= accuracies.keys() - set(ends(accuracies) if named else ())
        measures: dict[str, list[float]] = {}
        for name, group, value in values:
            if group.startswith(kind):
                measures.setdefault(name, []).append(value)
        for name, of_groups in measures.items():
            every = quantiles(of_groups)
            further |= {key(name, f"{many}/{q}"): value for q, value in every.items()}
    row = {
        key(name, names[group] if group else ""): value
        for name, group, value in values
        if not group or group in shown
    } | further
    told = coverage_values(row)
    return {
        f"{_part(split)}/{name}": value
        for name, value in row.items()
        if name in told or not is_coverage(name)
    }


def distinct_names(names: Iterable[str]) -> dict[str, str]:
    """Names in MLflow's alphabet, by the names they stand for; no two become one."""
    taken: dict[str, str] = {}
    given: set[str] = set()
    for name in sorted(names):
        plain = "/".join(_part(part) for part in name.split("/"))[: _LONGEST_NAME - 100]
        plain = plain.rstrip("/") or "_"
        candidate, number = plain, 2
        while candidate in given:
            candidate, number = f"{plain}-{number}", number + 1
        taken[name] = candidate
        given.add(candidate)
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
