"""An ensemble before the first student: its warnings and its table, on the screen and in files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import fsum
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from agrekd_ray.core.diagnostics import CASES
from agrekd_ray.report import tables
from agrekd_ray.report.tables import Cell, Column, Table, texts
from agrekd_ray.results import Diagnostics, EnsembleCheck, TeacherCheck
from agrekd_ray.results.many import are_many, ends, ends_in_words, quantiles
from agrekd_ray.results.metrics import ACCURACY, ALL, GROUP, MISSING, metric

TEACHERS = "teachers.csv"
_ALL, _SOME = 8, 5
"""Teachers that are all shown on the screen, and so many of more."""
_MOST_CLASSES = 20
"""Columns of a page."""
_SCREEN = ("teacher", "accuracy", "worst", "weight", "with_biased", "with_others")
BIASED = "the biased model"


def render(check: EnsembleCheck, console: Console) -> None:
    """Prints warnings, then the table: all of a small ensemble, the most remarkable of a large one.

    Args:
        check: of an ensemble.
        console: where to print.
    """
    render_warnings(check.warnings, console)
    shown = _remarkable(check.teachers)
    table = _table(check, shown, f"Teachers on {check.count:,} validation samples, in %")
    on_screen = table.named(name for name in _SCREEN if name in table.blocks)
    tables.show(on_screen, console, [*_SCREEN])
    if others := [teacher.accuracy for teacher in check.teachers if teacher not in shown]:
        ends = dict.fromkeys(map(_percent, (min(others), max(others))))
        console.print(Text(f"and {len(others)} others, accuracy {' … '.join(ends)}"))
    for line in in_words(check):
        console.print(Text(line), soft_wrap=True)


def render_warnings(warnings: Sequence[str], console: Console, of: str = "") -> None:
    """Prints warnings, a line each.

    Args:
        warnings: of an ensemble.
        console: where to print.
        of: which ensemble; empty where there is one.
    """
    for warning in warnings:
        about = f"{of}: " if of else ""
        console.print(Text(f"warning: {about}{warning}", style="yellow"), soft_wrap=True)


def in_words(check: EnsembleCheck) -> list[str]:
    """What is to be said of the ensemble as a whole, a line each."""
    sided = f"All side with the biased model on {_percent(check.sided)} % of samples"
    of_mistakes = f", {_percent(check.sided_wrong)} % of its mistakes" if check.mistakes else ""
    lines = [f"{sided}{of_mistakes}."]
    if check.differ:
        right = f"{_percent(check.vote_right)} %, the biased model {_percent(check.biased_right)} %"
        lines.append(f"Their vote differs on {_percent(check.differ)} %: right there {right}.")
    elif check.differ is not None:
        lines.append("Their vote never differs from it.")
    return lines


def content(check: EnsembleCheck | None) -> dict[str, Any]:
    """What the template of a page needs; nothing without a check."""
    if check is None:
        return {"warnings": [], "ensemble": None}
    title = f"Teachers on the selection half of validation, {check.count:,} samples"
    alike = "Groups" if check.biased.groups else "The biased model's right and wrong answers"
    return {
        "warnings": check.warnings,
        "ensemble": _table(check, check.teachers, title),
        "ensemble_over": f"{check.count:,} samples",
        "ensemble_notes": [
            " ".join(in_words(check)),
            f"{alike} count alike in the latter. A constant answer is right on "
            f"{_percent(check.most_frequent)} %.",
        ],
    }


def agreement(diagnostics: Diagnostics) -> Table | None:
    """The teachers' vote against the biased model, a row a split and group."""
    shown = agreement_groups(diagnostics)
    every = len({group for one in diagnostics.agreement.values() for group in one.by_group})
    rows = [
        (split, group, agreement.by_group[group])
        for split, agreement in diagnostics.agreement.items()
        for group in (shown if len(shown) < every else agreement.by_group)
        if group in agreement.by_group
    ]
    headers = {"split": "Split", "group": "Group", "count": "Samples"}
    about = [(split, group, f"{shares.count:,}") for split, group, shares in rows]
    columns = texts(headers, about, right=["count"])
    for case in CASES:
        verb, right = case.split("_")
        who = "both " if verb == "agrees" else "is "
        shares_of = [Cell(metric(ACCURACY).text(getattr(shares, case))) for *_, shares in rows]
        over = "The teachers' vote (%)"
        columns.append(Column(case, verb, shares_of, below=f"{who}{right}", over=over))
    title = "Agreement of the teachers with the biased model"
    if len(shown) < every:
        title += f", all samples and {ends_in_words(every - 1)} groups"
    return Table(title, columns) if rows else None


def agreement_groups(diagnostics: Diagnostics) -> list[str]:
    """All samples and the groups whose agreement with the biased model is shown.

    Of many, the ten in which the teachers' vote contradicts it least often and is right, and the
    ten in which it does most often: there is nothing in the former, much in the latter, that it
    can teach against the bias.
    """
    shares: dict[str, list[float]] = {}
    for split in diagnostics.agreement.values():
        for group, of_group in split.by_group.items():
            shares.setdefault(group, []).append(of_group.contradicts_right)
    means = {group: fsum(values) / len(values) for group, values in shares.items()}
    every = means.pop(ALL, None)
    return [*([] if every is None else [ALL]), *ends(means)]


def agreement_metrics(diagnostics: Diagnostics) -> dict[str, float]:
    """How the vote stands to the biased model, as MLflow names it: `agreement/<split>/<case>`.

    By group it is `agreement/<split>/group/<name>/<case>`. Where groups are many, these are of the
    ones in which the vote has least and most to teach against the bias, and `groups/p10/<case>` and
    so on are the quantiles of all.
    """
    values: dict[str, float] = {}
    for split, agreement in diagnostics.agreement.items():
        groups = agreement.groups
        shown = ends({name: shares.contradicts_right for name, shares in groups.items()})
        parts = {"": agreement.overall, **{f"{GROUP}{name}/": groups[name] for name in shown}}
        for case in CASES:
            for part, shares in parts.items():
                values[f"agreement/{split}/{part}{case}"] = getattr(shares, case)
            if len(shown) < len(groups):
                every = quantiles(getattr(shares, case) for shares in groups.values())
                values |= {f"agreement/{split}/groups/{q}/{case}": v for q, v in every.items()}
    return values


def write_csv(check: EnsembleCheck, path: Path) -> None:
    """Writes a row a teacher, the biased model last; all figures are shares.

    Of very many classes or groups there is the worst, with its name, in place of a column each.

    Args:
        check: of an ensemble.
        path: the file, replaced as a whole.

    Raises:
        OSError: where it cannot be written.
    """
    rows = [
        {
            "teacher": one.name,
            "kind": one.kind,
            "role": BIASED if one is check.biased else "teacher",
            "samples": check.count,
            "accuracy": one.accuracy,
            "balanced_accuracy": one.balanced_accuracy,
            "worst_group_accuracy": one.worst_group_accuracy,
            "with_biased": one.with_biased,
            "with_others": one.with_others,
            "weight": one.weight,
            "warned": one.warned,
            **_by_name("class", one.classes),
            **_by_name("group", one.groups),
        }
        for one in (*check.teachers, check.biased)
    ]
    tables.write_csv(rows, path, "teacher", ["worst_group_accuracy"])


def _by_name(kind: str, shares: Mapping[str, float]) -> dict[str, Any]:
    if not are_many(len(shares)):
        return {f"{kind}/{name}": share for name, share in shares.items()}
    worst = min(shares, key=lambda name: shares[name])
    return {f"worst_{kind}": worst, f"worst_{kind}_accuracy": shares[worst]}


def _remarkable(teachers: Sequence[TeacherCheck]) -> list[TeacherCheck]:
    """Of many: those that are warned of, the least accurate, and those of most weight."""
    if len(teachers) <= _ALL:
        return [*teachers]
    by_accuracy = sorted(teachers, key=lambda teacher: teacher.accuracy)
    by_weight = sorted(teachers, key=lambda teacher: -(teacher.weight or 0))
    pairs = zip(by_accuracy, by_weight, strict=True)
    wanted = [t for t in by_accuracy if t.warned] + [t for pair in pairs for t in pair]
    names = [*dict.fromkeys(teacher.name for teacher in wanted)][:_SOME]
    return [teacher for teacher in teachers if teacher.name in names]


def _table(check: EnsembleCheck, teachers: Sequence[TeacherCheck], title: str) -> Table:
    """A row a teacher, and the biased model last."""
    rows, everyone = [*teachers, check.biased], [*check.teachers, check.biased]
    named = [f"{one.name} (biased)" if one is check.biased else one.name for one in rows]
    columns = texts({"teacher": "Teacher"}, [[name] for name in named])

    def add(name: str, header: str, shares: Sequence[float | None], over: str = "") -> None:
        cells = [Cell(_percent(share)) for share in shares]
        columns.append(Column(name, header, cells, over=over))

    groups = dict.fromkeys(name for one in everyone for name in one.groups)
    classes = dict.fromkeys(name for one in everyone for name in one.classes)
    add("accuracy", "Accuracy", [one.accuracy for one in rows])
    if groups:
        add("worst", "Worst group", [one.worst_group_accuracy for one in rows])
    else:
        add("worst", "Worst class", [one.classes[one.worst_class] for one in rows])
    add("weight", "First weight", [one.weight for one in rows])
    add("with_biased", "With biased", [one.with_biased for one in rows])
    add("with_others", "With others", [one.with_others for one in rows])
    for name in groups:
        add(name, name, [one.groups.get(name) for one in rows], "Accuracy by group")
    for name in classes if len(classes) <= _MOST_CLASSES else ():
        add(name, name, [one.classes.get(name) for one in rows], "Accuracy by class")
    warned = frozenset(number for number, one in enumerate(rows) if one.warned)
    return Table(title, columns, warned)


def _percent(share: float | None) -> str:
    return MISSING if share is None or math.isnan(share) else metric(ACCURACY).text(share)
