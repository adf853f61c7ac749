"""Runs as rows to compare: students that differ in nothing but their seed are one."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd

from agrekd_ray.errors import TrackingError, near
from agrekd_ray.results.frame import Figure, figures
from agrekd_ray.results.intervals import PairedDifference, paired_difference
from agrekd_ray.results.metrics import MISSING, STEPS, label, metric, setting_text, short_paths

DEFAULT_BASELINES = ("default", "aver")
"""Methods that others are compared with where nobody says which; of two, the first."""

SEEDLESS = "teacher_vote"
"""The method that has no students, so that its one run stands for every seed."""

_MOST_SETTINGS = 3
"""Settings that a label names, whether or not they follow from each other."""

# A database keeps an infinite metric as the largest number that it has.
_INFINITE = 1.7e308


@dataclass(frozen=True, eq=False)
class Child:
    """One run: a student, or a trial with the means over its students.

    Attributes:
        run_id: MLflow's.
        parent: run id of its job or search.
        job: name of that run.
        searches: whether it is a search.
        experiment: name of the experiment.
        method: of the student; `trial-007` for a trial.
        number: of the trial; None for a student.
        seeds: a student's one, a trial's several.
        teachers: who taught, in words.
        state: `finished`, `running`, `failed`, `interrupted` or `stopped early`.
        settings: parameters by dotted path, as MLflow has them, without method and seeds.
        world: the job's data, teachers and ensemble, by dotted path.
        searched: paths that the search varies; empty for a student.
        metrics: last values by name; of a trial, `cost/steps` of all its students together.
    """

    run_id: str
    parent: str
    job: str
    searches: bool
    experiment: str
    method: str
    number: int | None
    seeds: tuple[int, ...]
    teachers: str
    state: str
    settings: Mapping[str, str]
    world: Mapping[str, str]
    searched: tuple[str, ...]
    metrics: Mapping[str, float]

    @property
    def pair(self) -> str:
        """What another run must have in common to be its pair: the seed, or a trial's seeds."""
        return json.dumps(self.seeds) if self.seeds else ""

    def value(self, metric: str) -> float:
        """A metric's last value, the cost for one seed; NaN where there is none."""
        value = self.metrics.get(metric, math.nan)
        if metric == STEPS and self.number is not None:
            return value / len(self.seeds) if self.seeds else math.nan
        return value if abs(value) < _INFINITE else math.nan


@dataclass(frozen=True, eq=False)
class Row:
    """Runs that differ in their seed alone, or one trial.

    Attributes:
        name: the method as people read it; `trial-007` for a trial.
        children: the runs.
        figures: over the seeds, by MLflow's name of the metric; a seed that was trained again
            counts once. Values that are not finite are left out.
        label: the name, and what tells it from others of the same name.
    """

    name: str
    children: tuple[Child, ...]
    figures: Mapping[str, Figure]
    label: str = ""

    @property
    def first(self) -> Child:
        """Any of the runs, for what they have in common."""
        return self.children[0]

    @property
    def seeds(self) -> list[int]:
        """Of all its students, ascending; each once."""
        return sorted({seed for child in self.children for seed in child.seeds})

    @property
    def state(self) -> str:
        """Of its runs: the one they share, or how many are in which."""
        states = [child.state for child in self.children]
        if len(set(states)) == 1:
            return states[0]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))

    def mean(self, metric: str) -> float | None:
        """Mean over the seeds that have the metric; None without any."""
        return self.figures[metric].mean if metric in self.figures else None

    def spread(self, metric: str) -> float | None:
        """Sample standard deviation over seeds; None for one seed, and for a trial's mean."""
        figure = self.figures.get(metric)
        return figure.sd if figure and figure.count > 1 else None


def rows(children: Iterable[Child]) -> list[Row]:
    """Groups runs, and names the groups apart.

    Students are one row where they share experiment, method and every parameter but the seed, the
    data, teachers and ensemble of their jobs among them. A trial is a row; what is trained after a
    search never joins another search's.
    """

    def alike(child: Child) -> Hashable:
        apart = child.parent if child.searches or child.number is not None else None
        return child.method, apart, frozenset(child.settings.items()), _place(child)

    def name(child: Child) -> str:
        return child.method if child.number is not None else label(child.method)

    groups = _grouped(children, alike)
    measured = _measured(groups)
    every = [Row(name(g[0]), tuple(g), measured.get(n, {})) for n, g in enumerate(groups)]
    labels = _labels(every)
    return [replace(row, label=labels[row]) for row in every]


def _labels(several: Sequence[Row]) -> dict[Row, str]:
    """The name, settings, and where it is from if those do not do."""
    trials = [row for row in several if row.first.number is not None]
    students = [row for row in several if row.first.number is None]
    distinct = settings(trials)  # each has a name of its own
    for alike in _grouped(students, lambda row: row.name):
        distinct |= _telling(settings(alike))
    short = short_paths({path for of_row in distinct.values() for path in of_row})
    labels = {
        row: " ".join([row.name, *(f"{short[p]}={setting_text(v)}" for p, v in of_row.items())])
        for row, of_row in distinct.items()
    }
    # Of two searches, `trial-007` would be a riddle, whatever it was set to.
    riddles = [(trials, len({row.first.parent for row in trials}))]
    riddles += [(alike, len(alike)) for alike in _grouped(students, labels.__getitem__)]
    for alike, count in riddles:
        if count > 1:
            labels |= {row: f"{labels[row]} ({of})" for row, of in _origins(alike, count) if of}
    return labels


def _telling(varying: Mapping[Row, Mapping[str, Any]]) -> dict[Row, dict[str, Any]]:
    """Of many settings, those that tell rows apart: none that follows from the others.

    A model's or a data set's name gives way to another name only.
    """
    values = {
        path: [json.dumps(of_row.get(path, MISSING), sort_keys=True) for of_row in varying.values()]
        for path in dict.fromkeys(path for of_row in varying.values() for path in of_row)
    }
    places = {path: place for place, path in enumerate(values)}
    kept = list(values)
    for path in sorted(values, key=lambda path: (_is_name(path), -places[path])):
        others = [other for other in kept if other != path and _is_name(other) >= _is_name(path)]
        together = set(zip(*(values[other] for other in others), strict=True))
        follows = len(together) == len({*zip(*(values[p] for p in (*others, path)), strict=True)})
        if len(values) > _MOST_SETTINGS and together and follows:
            kept.remove(path)
    return {
        row: {path: of_row[path] for path in kept if path in of_row}
        for row, of_row in varying.items()
    }


def _is_name(path: str) -> bool:
    return path.endswith(".name")


def _origins(several: Sequence[Row], count: int) -> Iterable[tuple[Row, str]]:
    """The most telling of the words that are `count` different ones."""
    firsts = [row.first for row in several]
    for words in zip(*((c.experiment, c.job, c.parent[:8]) for c in firsts), strict=True):
        if len(set(words)) == count:
            return zip(several, words, strict=True)
    return zip(several, (child.run_id[:8] for child in firsts), strict=True)


def _measured(groups: Sequence[Sequence[Child]]) -> dict[int, Mapping[str, Figure]]:
    """Figures by number of the group, out of one tidy table of all runs."""
    table = pd.DataFrame(
        (
            (number, child.pair, name, "", child.value(name))
            for number, group in enumerate(groups)
            for child in group
            for name in child.metrics
        ),
        columns=["point", "seed", "metric", "group", "value"],
    )
    table = table[np.isfinite(table["value"].astype(float))]
    by_seed = table.groupby(["point", "seed", "metric", "group"], sort=False, as_index=False)
    return figures(by_seed["value"].mean(), ["point"])


def _grouped(several: Iterable[Any], key: Callable[[Any], Hashable]) -> list[list[Any]]:
    """What has the same key together, in the order of the first ones."""
    groups: dict[Hashable, list[Any]] = {}
    for one in several:
        groups.setdefault(key(one), []).append(one)
    return list(groups.values())


def settings(several: Sequence[Row]) -> dict[Row, dict[str, Any]]:
    """Values of all that varies among rows, by row and dotted path.

    To be absent counts where another row of the same method has a value; and a method's own
    options vary where other methods, which have none of them, are there. Trials have what their
    search varies, if it has more than one value among them.
    """
    every: dict[Row, dict[str, Any]] = {}
    values: dict[str, set[str]] = defaultdict(set)
    methods = {row.first.method for row in several if row.first.number is None}
    for row in several:
        mine = {**row.first.settings, **row.first.world}
        searched = row.first.searched or mine
        every[row] = {path: parsed(mine[path]) for path in searched if path in mine}
        for path, value in every[row].items():
            values[path].add(json.dumps(value, sort_keys=True))
    varying = {path for path, found in values.items() if len(found) > 1}
    for method in methods:
        alike = [every[row] for row in several if row.first.method == method]
        shared = set.intersection(*map(set, alike))
        varying |= {path for of_row in alike for path in of_row if path not in shared}
        if len(methods) > 1:
            varying |= {path for path in shared if path.startswith(f"distillation.{method}.")}
    return {
        row: {path: value for path, value in of_row.items() if path in varying}
        for row, of_row in every.items()
    }


def baselines(several: Sequence[Row], asked: str | None) -> list[Row]:
    """The rows that others are compared with; a method's name may stand for several.

    Args:
        several: the rows.
        asked: a row's label or name, or its method; None for what each job or search has of
            `DEFAULT_BASELINES`, which may be nothing.

    Raises:
        TrackingError: nothing is called so.
    """
    if asked is None:
        there = {(child.parent, child.method) for row in several for child in row.children}
        usual: dict[str, str] = {}
        for method in reversed(DEFAULT_BASELINES):
            usual |= {parent: method for parent, other in there if other == method}
        return [r for r in several if any(usual.get(c.parent) == c.method for c in r.children)]
    name = asked.lower()
    exact = [row for row in several if row.label.lower() == name]
    if matching := exact or [
        r for r in several if name in (r.name.lower(), r.first.method.lower())
    ]:
        return matching
    known = dict.fromkeys(name for row in several for name in (row.first.method, row.label))
    raise TrackingError(f"No row is called {asked!r}, so none is the baseline.{near(asked, known)}")


def difference(row: Row, baseline: Sequence[Row], metric: str) -> PairedDifference | None:
    """A row's metric minus the baseline's, paired by seed.

    A pair comes from one job or search. Where the job of a run has no baseline, and only one row
    is the baseline, its run of the same seed from a job with the same experiment, data, teachers
    and ensemble is the pair. What has no seeds (the teachers' vote) is held against each seed.

    Args:
        row: any row.
        baseline: as `baselines` found it.
        metric: to compare by.

    Returns:
        The difference; None for the baseline itself and where nothing can be paired.
    """
    if any(row is other for other in baseline):
        return None
    others = [child for other in baseline for child in other.children]
    anywhere = len(baseline) == 1 and baseline[0].first.number is None
    mine: dict[str, list[float]] = defaultdict(list)
    theirs: dict[str, list[float]] = defaultdict(list)
    for child in row.children:
        matching = [other for other in others if _is_pair(child, other)]
        here = [other for other in matching if other.parent == child.parent]
        alike = [other for other in matching if anywhere and _place(other) == _place(child)]
        for other in here or alike:
            values = child.value(metric), other.value(metric)
            if all(map(math.isfinite, values)):
                pair = other.pair if child.method == SEEDLESS else child.pair
                mine[pair].append(values[0])
                theirs[pair].append(values[1])
    means = ({pair: mean(values) for pair, values in side.items()} for side in (mine, theirs))
    return paired_difference(*means)


def _is_pair(child: Child, other: Child) -> bool:
    """Whether one run can be held against another: both have seeds, the same or any.

    A trial, whose figures are means, is none of a student's.
    """
    trials = {child.number is None, other.number is None}
    if not child.pair or not other.pair or len(trials) > 1:
        return False
    return child.pair == other.pair or SEEDLESS in (child.method, other.method)


def ordered(several: Sequence[Row], name: str) -> list[Row]:
    """Rows from best to worst; those without the metric last, in the order they were in."""
    sign = 1 if metric(name).less_is_better else -1

    def rank(row: Row) -> float:
        value = row.mean(name)
        return math.inf if value is None else sign * value

    return sorted(several, key=rank)


def check_metric(name: str, known: Iterable[str]) -> None:
    """Whether any run has a metric.

    Raises:
        TrackingError: none has; it names the nearest.
    """
    known = sorted(known)
    ending = [other for other in known if other.endswith(f"/{name}")]
    ending.sort(key=lambda other: not other.startswith("test/"))
    hint = f" Did you mean {ending[0]}?" if ending else near(name, known)
    if name not in known:
        raise TrackingError(f"No run found has the metric {name!r}.{hint}")


def parsed(text: str) -> Any:
    """A parameter's value; text that is no JSON is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _place(child: Child) -> tuple[str, frozenset[tuple[str, str]]]:
    return child.experiment, frozenset(child.world.items())
