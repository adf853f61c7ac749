"""The tables of a report's page, as its template takes them: cells are text, ready to be shown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from agrekd_ray.core.diagnostics import CASES
from agrekd_ray.core.selection import RULES
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.results import (
    Diagnostics,
    Epoch,
    Member,
    Metrics,
    Outcome,
    over,
    part_measured,
)
from agrekd_ray.search.results import FAILED, SearchResult, TrialResult
from agrekd_ray.search.settings import default_strategy
from agrekd_ray.search.space import STRATEGY, Domain, applied, conditions
from agrekd_ray.tracking.labels import ALL, family
from agrekd_ray.tracking.metrics import GROUP, OVERLAPPING, WORST_OVERLAPPING
from agrekd_ray.tracking.tables import Row, by_metric

TEST = "test"
NOTHING = "–"
METRICS = {
    "worst_group_accuracy": "Worst group",
    WORST_OVERLAPPING: "Worst overlapping",
    "accuracy": "Accuracy",
    "weighted_accuracy": "Weighted",
    "balanced_accuracy": "Balanced",
    "worst_class_accuracy": "Worst class",
    "ece": "ECE",
}
"""Columns of every table of models, by metric; overlapping groups where the data have some."""

_MOST_TEACHERS = 10


@dataclass(frozen=True)
class Cell:
    """A figure.

    Attributes:
        text: as it is shown.
        spread: its standard deviation; None where the column has none.
        depth: of its shade, in [0, 1].
    """

    text: str
    spread: str | None = None
    depth: float = 0.0


@dataclass(frozen=True)
class Line:
    """A row of a table.

    Attributes:
        words: its first cells.
        cells: the others.
        strong: whether it stands out.
        note: below the row, in its full width.
    """

    words: list[str]
    cells: list[Cell] = field(default_factory=list)
    strong: bool = False
    note: str = ""


@dataclass(frozen=True)
class Head:
    """Columns of figures under one header of their own.

    Attributes:
        text: the header.
        columns: of each column, a name and a second line, which may be empty.
    """

    text: str
    columns: list[tuple[str, str]]


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        label: what it holds, for those who do not see it.
        words: headers of the columns of words.
        figures: headers of the columns of figures.
        lines: the rows.
        last: the columns at the end, where they have a header together.
    """

    label: str
    words: list[str]
    figures: list[str]
    lines: list[Line]
    last: Head | None = None


def comparison(
    name: str, rows: Sequence[tuple[Row, list[str], bool]], words: list[str]
) -> Grid | None:
    """Models over their seeds.

    Args:
        name: of the table.
        rows: each with its words, and whether it stands out.
        words: headers of the words.
    """
    if not rows:
        return None
    several = any(len(row.seeds) > 1 for row, _, _ in rows)
    metrics, groups = _columns(row.mean for row, _, _ in rows)
    lines = []
    for row, first, strong in rows:
        spreads = row.std if len(row.seeds) > 1 else {}
        cells = []
        for metric in (*metrics, *groups):
            spread = spreads.get(metric, math.nan)
            shown = f"± {percent(spread)}" if math.isfinite(spread) else ""
            cells.append(Cell(percent(row.mean.get(metric, math.nan)), shown if several else None))
        lines.append(Line(first, cells, strong))
    covered = max((row for row, _, _ in rows), key=lambda row: len(row.coverage))
    return _models(name, words, lines, metrics, groups, covered)


def by_seed(outcomes: Sequence[Outcome], name: Callable[[str], str]) -> Grid | None:
    """Every student on the test split."""
    finished = [outcome for outcome in outcomes if TEST in outcome.splits]
    measured = [([name(o.method), str(o.seed)], o.splits[TEST]) for o in finished]
    return _measured("Every student on the test split", ["Method", "Seed"], measured)


def teachers(members: Sequence[Member], biased: Member | None) -> Grid | None:
    """The ensemble and the biased model on the test split."""
    everyone = [(member, family(member.kind)) for member in members]
    if biased:
        everyone.append((biased, "the biased model"))
    measured = [
        ([member.name, role, member.fingerprint[:12]], member.metrics[TEST])
        for member, role in everyone
        if TEST in member.metrics
    ]
    return _measured("Teachers on the test split", ["Teacher", "Role", "Fingerprint"], measured)


def weights(
    outcomes: Sequence[Outcome], members: Sequence[Member], name: Callable[[str], str]
) -> Grid | None:
    """Who taught whom in the last epoch: a line a method and group, means over seeds."""
    head = "Mean weight of a teacher"
    return _taught(outcomes, members, name, lambda epoch: epoch.weights, "Who taught whom", head)


def influence(
    outcomes: Sequence[Outcome], members: Sequence[Member], name: Callable[[str], str]
) -> Grid | None:
    """Who moved the student in the last epoch: a line a method and group, means over seeds."""

    def shares(epoch: Epoch) -> dict[str, dict[str, float]]:
        return {ALL: epoch.influence, **epoch.influence_by_group} if epoch.influence else {}

    head = "Influence of a teacher"
    return _taught(outcomes, members, name, shares, "Who moved the student", head)


def agreement(diagnostics: Diagnostics) -> Grid | None:
    """The teachers' vote against the biased model, a line a split and group."""
    lines = []
    for split, found in diagnostics.agreement.items():
        rows = {ALL: found.overall, **found.groups, **found.overlapping}
        for group, shares in rows.items():
            cells = [Cell(percent(getattr(shares, case))) for case in CASES]
            lines.append(Line([split, group], [Cell(f"{shares.count:,}"), *cells]))
    head = Head(
        "The teachers' vote (%)",
        [
            ("agrees", "both right"),
            ("agrees", "both wrong"),
            ("contradicts", "is right"),
            ("contradicts", "is wrong"),
        ],
    )
    label = "Agreement of the teachers with the biased model"
    return Grid(label, ["Split", "Group"], ["Samples"], lines, head) if lines else None


def _taught(
    outcomes: Sequence[Outcome],
    members: Sequence[Member],
    name: Callable[[str], str],
    shares: Callable[[Epoch], dict[str, dict[str, float]]],
    label: str,
    head: str,
) -> Grid | None:
    """Shares of the teachers in the last epoch, by method and group."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for outcome in outcomes:
        for group, by_name in (shares(outcome.history[-1]) if outcome.history else {}).items():
            mine = found.setdefault((outcome.method, group), {})
            for teacher, weight in by_name.items():
                mine.setdefault(teacher, []).append(weight)
    if not found:
        return None
    columns = _teacher_columns({t for by_name in found.values() for t in by_name}, members)
    means = {
        key: [
            mean([w for t in those for w in by_name.get(t, [])] or [math.nan])
            for those in columns.values()
        ]
        for key, by_name in found.items()
    }
    largest = max((w for row in means.values() for w in row if math.isfinite(w)), default=0) or 1
    lines = [
        Line([name(method), group], [_shaded(weight, largest) for weight in row])
        for (method, group), row in means.items()
    ]
    return Grid(label, ["Method", "Taught group"], [], lines, Head(head, list(columns)))


def trials(result: SearchResult, paths: Sequence[str]) -> Grid | None:
    """The trials, best score of the selecting rule first; without a score by number.

    Args:
        result: of the search.
        paths: of its space.
    """

    def score(trial: TrialResult) -> float:
        found = trial.score(result.select)
        return -math.inf if found is None or math.isnan(found) else found

    lines = []
    for trial in sorted(result.trials, key=lambda trial: (-score(trial), trial.number)):
        values = [plain(trial.setting[p]) if p in trial.setting else NOTHING for p in paths]
        cells = [
            Cell(f"{len(trial.history)} of {trial.epochs}"),
            Cell(percent(score(trial))),
            Cell(percent(trial.test.worst_group_accuracy if trial.test else math.nan)),
            Cell(f"{trial.seconds:.0f}" if math.isfinite(trial.seconds) else NOTHING),
        ]
        note = (trial.reason or "No reason is known.") if trial.state == FAILED else ""
        strong = trial.number == result.winner
        lines.append(Line([str(trial.number), *values, trial.state], cells, strong, note))
    words = ["Trial", *_short(paths), "State"]
    score_header, test_header = f"Score, {result.selected_on}", f"Test {result.worst}"
    figures = ["Epochs", score_header, test_header, "Seconds"]
    return Grid("Trials", words, figures, lines) if lines else None


def rules(result: SearchResult) -> Grid | None:
    """How well each selection rule would have served; the one that chose stands out."""
    lines = [
        Line(
            [rule.rule, ", ".join(rule.needs) or "nothing"],
            [
                Cell(NOTHING if rule.correlation is None else signed(rule.correlation, 2)),
                Cell(str(rule.trials)),
                Cell(str(rule.choice)),
                Cell(percent(rule.test_worst_group_accuracy)),
            ],
            rule.rule == result.select,
            RULES[rule.rule].summary if rule.rule in RULES else "",
        )
        for rule in result.rules
    ]
    figures = ["Rank correlation", "Over trials", "Chooses trial", f"Its test {result.worst}"]
    return Grid("Selection rules", ["Rule", "Needs"], figures, lines) if lines else None


def space(domains: Mapping[str, Domain]) -> Grid:
    """What a search varies."""
    begin = {
        "uniform": "real, ",
        "loguniform": "real, logarithmic, ",
        "integer": "whole, ",
        "choice": "one of ",
        "grid": "each of ",
    }
    lines = []
    for path, domain in domains.items():
        listed = domain.kind in ("choice", "grid")
        values = (domain.listed or ()) if listed else domain.bounds
        when = "; ".join(
            f"{other} = {' or '.join(map(plain, found))}"
            for other, found in conditions(path, domain, STRATEGIES).items()
        )
        told = begin[domain.kind] + (", " if listed else " … ").join(map(plain, values))
        lines.append(Line([path, told, when]))
    return Grid("Search space", ["Parameter", "Values", "Only where"], [], lines)


def setting(winner: TrialResult, job: dict[str, Any], default: dict[str, Any]) -> Grid:
    """The winner's setting beside the default's.

    Args:
        winner: the trial.
        job: the resolved base job.
        default: changes to it that the winner is held against.
    """

    def having(changes: dict[str, Any], path: str) -> Any:
        if path in changes:
            return changes[path]
        return default_strategy(job) if path == STRATEGY else _at(applied(job, changes), path)

    lines = [
        Line([path, plain(having(winner.setting, path)), plain(having(default, path))])
        for path in dict.fromkeys([*winner.setting, *default])
    ]
    words = ["Parameter", f"Winner, trial {winner.number}", "Default"]
    return Grid("The winner's setting", words, [], lines)


def percent(share: float) -> str:
    """A share in percent, without the sign."""
    return f"{100 * share:.1f}" if math.isfinite(share) else NOTHING


def signed(number: float, places: int) -> str:
    """A number with its sign."""
    # Adding 0 turns a rounded -0.0 into 0.0.
    return f"{round(number, places) + 0.0:+.{places}f}".replace("-", "−")


def plain(value: Any) -> str:
    """A setting's value as YAML would have it, real numbers in four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _measured(
    name: str, words: list[str], models: Sequence[tuple[list[str], Metrics]]
) -> Grid | None:
    """Models, each measured once."""
    if not models:
        return None
    found = [by_metric(metrics) for _, metrics in models]
    columns, groups = _columns(found)
    lines = [
        Line(first, [Cell(percent(values.get(m, math.nan))) for m in (*columns, *groups)])
        for (first, _), values in zip(models, found, strict=True)
    ]
    first = max((metrics for _, metrics in models), key=lambda metrics: len(metrics.coverage))
    return _models(name, words, lines, columns, groups, first)


def _models(
    name: str,
    words: list[str],
    lines: list[Line],
    metrics: Sequence[str],
    groups: Sequence[str],
    measured: Row | Metrics,
) -> Grid:
    known = METRICS if measured.groups_known else METRICS | {metrics[0]: "Worst class"}
    figures = [over(known[m], part_measured(measured.coverage, m)) for m in metrics]
    heads = [
        (group.partition("/")[2], "overlapping" if group.startswith(OVERLAPPING) else "")
        for group in groups
    ]
    return Grid(name, words, figures, lines, Head("Accuracy by group", heads) if groups else None)


def _columns(models: Iterable[Mapping[str, float]]) -> tuple[list[str], list[str]]:
    """Metrics and groups that some model has."""
    there = dict.fromkeys(key for figures in models for key in figures)
    groups = [key for key in there if key.startswith((GROUP, OVERLAPPING))]
    several = any(key.startswith(OVERLAPPING) for key in groups)
    return [metric for metric in METRICS if metric != WORST_OVERLAPPING or several], groups


def _shaded(weight: float, largest: float) -> Cell:
    if not math.isfinite(weight):
        return Cell(NOTHING)
    return Cell(f"{weight:.3f}", depth=round(max(weight, 0) / largest, 3))


def _teacher_columns(
    names: set[str], members: Sequence[Member]
) -> dict[tuple[str, str], list[str]]:
    """Teachers by the two lines of their column: one each, or a family each where they are many."""
    kinds = {member.name: member.kind for member in members if member.name in names}
    known = set(kinds)
    kinds |= dict.fromkeys(sorted(names - known), "own")
    order = sorted(dict.fromkeys(kinds.values()), key=lambda kind: (kind != "dfr", kind != "erm"))
    families = {kind: [name for name, own in kinds.items() if own == kind] for kind in order}
    if len(kinds) > _MOST_TEACHERS:
        return {(family(kind), f"mean of {len(those)}"): those for kind, those in families.items()}
    return {
        (name, family(kind) if name in known else ""): [name]
        for kind, those in families.items()
        for name in those
    }


def _at(values: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for part in path.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _short(paths: Sequence[str]) -> list[str]:
    """The shortest ends of dotted paths that tell them apart."""
    ends = []
    for path in paths:
        parts = path.split(".")
        others = [f".{other}" for other in paths if other != path]
        candidates = (".".join(parts[-n:]) for n in range(1, len(parts)))
        ends.append(
            next((c for c in candidates if not any(o.endswith(f".{c}") for o in others)), path)
        )
    return ends
