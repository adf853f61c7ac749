"""Tables of models: methods over their seeds, students, teachers, and who taught whom."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from agrekd_ray.report.tables import Cell, Column, Table, figure_column, texts
from agrekd_ray.results import StudentResult, TeacherResult
from agrekd_ray.results.frame import (
    INFLUENCE,
    WEIGHT,
    Figure,
    Row,
    epochs,
    figures,
    frame,
    last_epochs,
    worst_words,
)
from agrekd_ray.results.intervals import ONE_DRAW, seeds_of_one_draw
from agrekd_ray.results.many import ends, ends_in_words
from agrekd_ray.results.metrics import (
    ACCURACY,
    ALL,
    CLASS,
    ECE,
    GROUP,
    MISSING,
    OVERLAPPING,
    WORST_CLASS,
    WORST_GROUP,
    WORST_OVERLAPPING,
    label,
)
from agrekd_ray.teachers import ERM, KINDS, OWN, family

TEST = "test"
COLUMNS = (
    *(WORST_GROUP, WORST_OVERLAPPING, ACCURACY, "weighted_accuracy", "balanced_accuracy"),
    *(WORST_CLASS, ECE),
)
"""Metrics of every table of models, from left to right; those by group follow."""
BY_GROUP = "Accuracy by group"
_MOST_TEACHERS = 10


def tested(outcomes: Sequence[StudentResult]) -> dict[str, Row]:
    """Figures of the test split by method, over the seeds."""
    table = frame(outcomes)
    return figures(table[table["split"] == TEST])


def models(
    title: str, about: Iterable[Column], rows: Sequence[Row], strong: Iterable[int] = ()
) -> Table | None:
    """Models with all their figures on a split; None without models.

    Args:
        title: of the table.
        about: the first columns.
        rows: figures by model.
        strong: numbers of the rows that stand out.
    """
    if not rows:
        return None
    order = list(dict.fromkeys(name for row in rows for name in row))
    headers = {WORST_GROUP: worst_words(dict.fromkeys(order)).capitalize()}
    columns = [*about]
    for name in COLUMNS:
        if name in order:
            figures_of = [row.get(name) for row in rows]
            columns.append(figure_column(name, figures_of, headers.get(name, "")))
    # Accuracies first, each measure in the order in which groups occur.
    by_group, among = _shown(rows, [name for name in order if "/" in name])
    for name in sorted(by_group, key=_of_measure):
        *measure, kind, group = name.split("/", 2) if _of_measure(name) else name.split("/", 1)
        figure = figure_column(name, [row.get(name) for row in rows], group)
        below = "overlapping" if f"{kind}/" == OVERLAPPING else ""
        over = f"{_measure_label(measure[0])} by group" if measure else BY_GROUP
        over += among.get(f"{kind}/", "")
        columns.append(replace(figure, over=over, below=below))
    return Table(title, columns, frozenset(strong))


def _shown(rows: Sequence[Row], names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Of figures by group, those that a table has: of many groups the worst and the best ten.

    Returns:
        Their names, those of many groups from the worst to the best; and what that comes to in
        words, by kind of group.
    """
    ranks: dict[str, int] = {}
    left_out: set[str] = set()
    among = {}
    for kind in (GROUP, CLASS, OVERLAPPING):
        groups = [name for name in names if name.startswith(kind)]
        shown = ends({name: _mean(row.get(name) for row in rows) for name in groups})
        if len(shown) < len(groups):
            among[kind] = f", {ends_in_words(len(groups))}"
            ranks |= {name: rank for rank, name in enumerate(shown)}
            left_out |= set(groups) - ranks.keys()
    if not among:
        return names, {}
    group = {name: name.partition("/")[2] if _of_measure(name) else name for name in names}
    measures = list(dict.fromkeys(name.removesuffix(group[name]) for name in names))
    kept = [name for name in names if group[name] not in left_out]
    place = {
        name: (measures.index(name.removesuffix(group[name])), ranks.get(group[name], -1))
        for name in kept
    }
    return sorted(kept, key=place.__getitem__), among


def _mean(figures: Iterable[Figure | None]) -> float:
    means = [f.mean for f in figures if f is not None and math.isfinite(f.mean)]
    return math.fsum(means) / len(means) if means else math.nan


def _of_measure(name: str) -> bool:
    """Whether a figure of one group is of another measure than its accuracy."""
    return not name.startswith(("group/", "class/", "overlapping/"))


def _measure_label(name: str) -> str:
    from agrekd_ray.core.groups import MEASURES

    return MEASURES[name].label if name in MEASURES else name


def compared(
    outcomes: Sequence[StudentResult],
    title: str = "Methods on the test split",
    name: Callable[[str], str] = label,
    strong: str | None = None,
    **columns: str,
) -> Table | None:
    """Methods over their seeds, on the test split; None without students.

    Args:
        outcomes: finished students.
        title: of the table.
        name: what people call a method.
        strong: the method that stands out.
        columns: headers of the columns of words, `method` and `teachers`.
    """
    rows = tested(outcomes)
    taught_by = {outcome.method: outcome.teachers for outcome in reversed(outcomes)}
    cells = {"method": name, "teachers": taught_by.__getitem__}
    about = texts(columns, [[cells[key](method) for key in columns] for method in rows])
    stands_out = [number for number, method in enumerate(rows) if method == strong]
    return models(title, about, list(rows.values()), stands_out)


def over_seeds(rows: Mapping[str, Row]) -> str:
    """What figures are means of."""
    counts = {row[WORST_GROUP].count for row in rows.values()}
    if counts <= {1}:
        return f"one seed, {ONE_DRAW}"
    many = "" if len(counts) == 1 else "up to "
    return f"mean ± sd over {many}{seeds_of_one_draw(max(counts))}"


def students(
    outcomes: Sequence[StudentResult], members: Sequence[TeacherResult], name: Callable[[str], str]
) -> dict[str, Table | None]:
    """The tables of every student on the test split, and of who taught whom.

    Args:
        outcomes: finished students.
        members: the ensemble; tells debiased teachers from biased ones.
        name: what people call a method.
    """
    table = frame(outcomes)
    rows = figures(table[table["split"] == TEST], ["method", "seed"])
    about = texts(
        {"method": "Method", "seed": "Seed"}, [(name(method), str(seed)) for method, seed in rows]
    )
    training = epochs(replace(outcome, history=outcome.history[-1:]) for outcome in outcomes)
    tested = table[(table["split"] == TEST) & (table["metric"] == ACCURACY)]
    means = tested.groupby("group", sort=False)["value"].mean()
    accuracies = {
        str(group).partition("/")[2]: share
        for group, share in means.items()
        if str(group).startswith((GROUP, CLASS))
    }
    return {
        "seeds": models("Every student on the test split", about, list(rows.values())),
        "weights": _taught(training, members, name, WEIGHT, accuracies),
        "influence": _taught(training, members, name, INFLUENCE, accuracies),
    }


def teachers(members: Sequence[TeacherResult], biased: TeacherResult | None) -> Table | None:
    """The ensemble and the biased model on the test split."""
    everyone = [(member, family(member.kind)) for member in members]
    everyone += [(biased, "the biased model")] if biased else []
    shown = [(member, role) for member, role in everyone if TEST in member.metrics]
    measured = [  # like students
        StudentResult(str(number), 0, "-", {TEST: member.metrics[TEST]})
        for number, (member, _) in enumerate(shown)
    ]
    about = texts(
        {"teacher": "Teacher", "role": "Role", "fingerprint": "Fingerprint"},
        [(member.name, role, member.fingerprint[:12]) for member, role in shown],
    )
    return models("Teachers on the test split", about, list(tested(measured).values()))


def _taught(
    table: pd.DataFrame,
    members: Sequence[TeacherResult],
    name: Callable[[str], str],
    metric: str,
    accuracies: Mapping[str, float],
) -> Table | None:
    """Shares of the teachers in the last epoch: a row a method and group, means over seeds.

    Of many groups, the students' worst and best ten, by their `accuracies`.
    """
    title, over = {
        WEIGHT: ("Who taught whom", "Mean weight of a teacher"),
        INFLUENCE: ("Who moved the student", "Influence of a teacher"),
    }[metric]
    shares = last_epochs(table)
    shares = shares[shares["metric"] == metric]
    if shares.empty:
        return None
    taught = [group for group in dict.fromkeys(shares["group"]) if group != ALL]
    known_accuracy = {group: accuracies.get(group, math.nan) for group in taught}
    if len(shown := ends(known_accuracy)) < len(taught):
        rank = {group: number for number, group in enumerate((ALL, *shown))}
        method = {name: number for number, name in enumerate(dict.fromkeys(shares["method"]))}
        shares = shares[shares["group"].isin(rank)]
        places = [shares["method"].map(method), shares["group"].map(rank)]
        shares = shares.iloc[np.lexsort(places[::-1])]
        title += f", groups: {ends_in_words(len(taught))}"
    kinds = kinds_of(shares["teacher"], members)
    known = {member.name for member in members}
    heads = {t: (t, family(kind) if t in known else "") for t, kind in kinds.items()}
    if len(kinds) > _MOST_TEACHERS:
        counts = pd.Series(kinds).value_counts()
        heads = {t: (family(kind), f"mean of {counts[kind]}") for t, kind in kinds.items()}
    column = shares["teacher"].map(heads)
    means = shares.groupby(["method", "group", column], sort=False)["value"].mean().unstack()
    largest = means.max().max() or 1
    rows = list(dict.fromkeys(zip(shares["method"], shares["group"], strict=True)))
    headers = {"method": "Method", "group": "Taught group"}
    columns = texts(headers, [(name(method), group) for method, group in rows])
    for header, below in dict.fromkeys(heads.values()):
        cells = [_shaded(means[(header, below)][row], largest) for row in rows]
        columns.append(Column(header, header, cells, below=below, over=over))
    return Table(title, columns)


def kinds_of(teachers: Iterable[str], members: Sequence[TeacherResult]) -> dict[str, str]:
    """Kinds of teachers by name, debiased ones first; what is no member is an own checkpoint."""
    present = set(teachers)
    kinds = {member.name: member.kind for member in members if member.name in present}
    kinds |= dict.fromkeys(sorted(present - kinds.keys()), OWN)
    order = [*KINDS, ERM]
    ranks = {kind: order.index(kind) for kind in order}
    return dict(sorted(kinds.items(), key=lambda item: ranks.get(item[1], len(order))))


def _shaded(share: float, largest: float) -> Cell:
    if not math.isfinite(share):
        return Cell(MISSING)
    return Cell(f"{share:.3f}", depth=round(max(share, 0) / largest, 3))
