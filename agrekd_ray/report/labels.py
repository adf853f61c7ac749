"""Which labels a run used where, in a line: training, debiasing, weighing, evaluation, ..."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from agrekd_ray.config.job import BASELINES, DFR_METHODS
from agrekd_ray.config.sweep import changed
from agrekd_ray.core.selection import GROUPS, LABELS, RULES
from agrekd_ray.core.strategies import STRATEGIES
from agrekd_ray.results.points import in_words
from agrekd_ray.teachers import KINDS, EnsembleSettings, Kind

_CLASSES = "classes"
_ALONE = {*BASELINES} - {"teacher_vote"}
"""Methods without the ensemble."""


def labels_used(settings: Mapping[str, Any], *, groups_known: bool, rule: str = "") -> str:
    """`labels used: classes for training, debiasing (AFR) and selection; groups for evaluation`.

    Args:
        settings: of a resolved job; blocks that are not there count as their defaults.
        groups_known: whether the data have group labels, which evaluation then uses.
        rule: that chose among students, in a search; empty for a job.
    """
    uses: dict[str, list[str]] = {_CLASSES: [], "groups": []}
    if _trains_on_classes(settings):
        uses[_CLASSES].append("training")
    kinds = _kinds(settings)
    for labels, purposes in uses.items():
        mine = [kind for kind in kinds if kind.labels == labels]
        if mine:
            purposes.append(f"debiasing ({', '.join(kind.label for kind in mine)})")
        if labels == _CLASSES and _weighs(settings):
            purposes.append("weighing the teachers")
        needs = RULES[rule].needs if rule in RULES else ()
        wanted = {"groups": GROUPS in needs, _CLASSES: {GROUPS, LABELS} & {*needs} == {LABELS}}
        if any(_selects(settings, kind.name) for kind in mine) or wanted[labels]:
            purposes.append("selection")
    uses["groups" if groups_known else _CLASSES].append("evaluation")
    said = [f"{labels} for {_and(purposes)}" for labels, purposes in uses.items() if purposes]
    return f"labels used: {'; '.join(said)}"


def of_points(
    settings: Mapping[str, Any],
    points: Iterable[Mapping[str, Any]],
    names: Mapping[str, str],
    *,
    groups_known: bool,
) -> list[str]:
    """The same of a study: a line, or one a value of what makes a difference.

    Args:
        settings: of the resolved study.
        points: value of every swept key.
        names: of these keys, for people.
        groups_known: as `labels_used`.
    """
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for at in points:
        line = labels_used(changed(settings, at), groups_known=groups_known)
        lines.setdefault(line, []).append(at)
    if len(lines) < 2:
        return [*lines]
    # What tells them apart: the keys whose value is another one on every line.
    apart = [
        key
        for key in names
        if sum(len({in_words(at[key]) for at in places}) for places in lines.values())
        == len({in_words(at[key]) for places in lines.values() for at in places})
    ]
    return [
        f"{' '.join(f'{names[k]}={_values(places, k)}' for k in apart[:1])}: {line}".lstrip(": ")
        for line, places in lines.items()
    ]


def _values(places: Iterable[Mapping[str, Any]], key: str) -> str:
    return ", ".join(dict.fromkeys(in_words(at[key]) for at in places))


def _asks_teachers(settings: Mapping[str, Any]) -> bool:
    """Whether any method has teachers; a search names its students by other names than methods."""
    return bool({*settings.get("methods", ["agre_kd"])} - _ALONE)


def _trains_on_classes(settings: Mapping[str, Any]) -> bool:
    """Whether a model of the pool or a student learns from labels."""
    methods = {*settings.get("methods", ())}
    pool = _asks_teachers(settings) and settings.get("ensemble", {}).get("size", 5)
    with_labels = any(STRATEGIES[name].needs_labels for name in methods & {*STRATEGIES})
    mixed = _asks_teachers(settings) and settings.get("distillation", {}).get("alpha", 1) < 1
    return bool(pool or methods & _ALONE or with_labels or mixed)


def _weighs(settings: Mapping[str, Any]) -> bool:
    """Whether labels of validation have a say in the teachers' weights."""
    methods = {*settings.get("methods", ())} & {*STRATEGIES}
    return any(STRATEGIES[name].needs_competence for name in methods)


def _kinds(settings: Mapping[str, Any]) -> list[Kind]:
    """The kinds of debiasing of a job, in the order of the registry."""
    names: set[str] = set()
    given = settings.get("ensemble", {}) if _asks_teachers(settings) else {}
    with suppress(ValidationError):  # of another version
        known = {key: value for key, value in given.items() if key in ("size", "debiased")}
        names |= EnsembleSettings.model_validate(known).by_kind.keys()
    if {*DFR_METHODS} & {*settings.get("methods", ())}:
        names.add("dfr")
    return [kind for name, kind in KINDS.items() if name in names]


def _selects(settings: Mapping[str, Any], kind: str) -> bool:
    """Whether a kind chooses among settings; layers trained on balanced batches do not."""
    block = settings.get("teachers", {}).get(kind, {})
    return not (isinstance(block, Mapping) and block.get("batches") is not None)


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
