"""Runs out of MLflow, as rows to compare: students that differ in nothing but their seed are one.

Of each run only the last values of its metrics are read, a page of runs at a time, so that some
thousand of them take seconds.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from agrekd_ray.errors import TrackingError
from agrekd_ray.passwords import without_password
from agrekd_ray.tracking.intervals import PairedDifference, paired_difference
from agrekd_ray.tracking.labels import label
from agrekd_ray.tracking.metrics import STEPS, TEACHER_STEPS, less_is_better, short_paths
from agrekd_ray.tracking.mlflow_runs import (
    CHANGED,
    METHOD,
    PARENT,
    ROLE,
    SEED,
    TRIAL,
)
from agrekd_ray.tracking.mlflow_store import explained, open_existing

STATE, SEARCHED = "agrekd.state", "agrekd.searched"
DEFAULT_BASELINES = ("default", "aver")
"""Methods that others are compared with where nobody says which; of two, the first."""

_PARENTS, _CHILDREN = {"job", "search", "study"}, {"student", "trial"}
_STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}
_WORLD = ("data.", "teachers.", "ensemble.")
# The last two follow from others: the weighting from the method, the words from the ensemble.
_NO_SETTINGS = {"method", "seed", "seeds", "distillation.strategy", "teachers"}
_PAGE, _IDS_A_QUERY = 1000, 200
# A database keeps an infinite metric as the largest number that it has.
_INFINITE = 1.7e308
_ACTIVE, _ALL = ViewType.ACTIVE_ONLY, ViewType.ALL


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
        distinct: what tells it from the rows of the same name, by dotted path.
        origin: experiment or job, where nothing else tells it from another row.
        short: the paths of `distinct`, as short as they are unambiguous.
    """

    name: str
    children: tuple[Child, ...]
    distinct: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    short: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name, and what tells it from others of the same name."""
        words = [f"{self.short[path]}={shown(value)}" for path, value in self.distinct.items()]
        return " ".join([self.name, *words, *([f"({self.origin})"] if self.origin else [])])

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

    def values(self, metric: str) -> dict[str, float]:
        """A metric by `Child.pair`; a seed that was trained again has the mean of its runs."""
        found: dict[str, list[float]] = {}
        for child in self.children:
            if math.isfinite(value := child.value(metric)):
                found.setdefault(child.pair, []).append(value)
        return {pair: mean(values) for pair, values in found.items()}

    def mean(self, metric: str) -> float | None:
        """Mean over the seeds that have the metric; None without any."""
        values = self.values(metric)
        return mean(values.values()) if values else None

    def spread(self, metric: str) -> float | None:
        """Sample standard deviation over seeds; None for one seed, and for a trial's mean."""
        values = self.values(metric)
        return stdev(values.values()) if len(values) > 1 else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was found.

    Attributes:
        rows: in the order in which their first runs began.
        metrics: names of all metrics that any run has.
        teacher_steps: the teachers' forward passes of all jobs together, in training steps of the
            student; None where no job says.
    """

    rows: list[Row]
    metrics: set[str]
    teacher_steps: float | None


def read(
    uri: str, ids: Sequence[str] = (), experiments: Sequence[str] = (), filter: str | None = None
) -> Comparison:
    """Finds runs and groups them.

    Args:
        uri: MLflow's tracking URI; the store must be there.
        ids: of students and trials; a job's or a search's stands for all its children. Without
            any, all runs count.
        experiments: names of the experiments to look in; all of them without any.
        filter: what the runs must also meet, in MLflow's search language. One that no student or
            trial meets, but jobs or searches do, chooses their children.

    Raises:
        TrackingError: no store, no such experiment or run, a filter that MLflow does not take, or
            nothing found; it says what there is.
    """
    client = open_existing(uri)
    with explained(uri, "read runs"):
        store = _Store(client, uri)
        places = store.experiments(experiments)
        runs = store.selected(places, ids, filter)
        parents = store.parents(places, runs)
    if not runs:
        raise TrackingError(_nothing(store, uri, bool(filter)))
    children = [
        _child(run, parents.get(run.data.tags.get(PARENT, "")), store.names) for run in runs
    ]
    steps = [
        parent.data.metrics[TEACHER_STEPS]
        for parent in parents.values()
        if TEACHER_STEPS in parent.data.metrics
    ]
    return Comparison(
        rows(children),
        {name for child in children for name in child.metrics},
        sum(steps) if steps else None,
    )


def rows(children: Iterable[Child]) -> list[Row]:
    """Groups runs, and names the groups apart.

    Students are one row where they share experiment, method and every parameter but the seed, the
    data, teachers and ensemble of their jobs among them. A trial is a row; what is trained after a
    search never joins another search's.
    """
    groups: dict[Any, list[Child]] = {}
    for child in children:
        alike = (
            child.experiment,
            child.method,
            child.parent if child.searches or child.number is not None else None,
            frozenset(child.settings.items()),
            frozenset(child.world.items()),
        )
        groups.setdefault(alike, []).append(child)
    named: dict[str, list[list[Child]]] = {}
    for group in groups.values():
        named.setdefault(_name(group[0]), []).append(group)
    trials = [group for group in groups.values() if group[0].number is not None]
    if trials:  # each has a name of its own
        named = {name: g for name, g in named.items() if g[0][0].number is None} | {"": trials}
    distinct: dict[int, dict[str, Any]] = {}
    for several in named.values():
        values = [_settings(group[0]) for group in several]
        varied = _varied(values)
        for group, mine in zip(several, values, strict=True):
            distinct[id(group)] = {path: v for path, v in mine.items() if path in varied}
    short = short_paths({path for found in distinct.values() for path in found})
    found = [
        Row(_name(group[0]), tuple(group), distinct[id(group)], short=short)
        for group in groups.values()
    ]
    return _apart(found)


def settings(found: Sequence[Row]) -> dict[int, dict[str, Any]]:
    """Values of all that varies among rows, by `id` of the row and dotted path.

    Trials have what their search varies, if it has more than one value among them.
    """
    every = {id(row): _settings(row.first) for row in found}
    varied = _varied(every.values())
    return {key: {p: v for p, v in values.items() if p in varied} for key, values in every.items()}


def baselines(found: Sequence[Row], asked: str | None) -> list[Row]:
    """The rows that others are compared with; a method's name may stand for several.

    Args:
        found: the rows.
        asked: a row's label or name, or its method; None for what each job or search has of
            `DEFAULT_BASELINES`, which may be nothing.

    Raises:
        TrackingError: nothing is called so.
    """
    if asked is None:
        chosen: dict[str, str] = {}
        for row in found:
            for child in row.children:
                if child.method in DEFAULT_BASELINES:
                    known_there = (chosen.get(child.parent, child.method), child.method)
                    chosen[child.parent] = min(known_there, key=DEFAULT_BASELINES.index)
        return [r for r in found if any(chosen.get(c.parent) == c.method for c in r.children)]
    name = asked.lower()
    exact = [row for row in found if row.label.lower() == name]
    if matching := exact or [r for r in found if name in (r.name.lower(), r.first.method.lower())]:
        return matching
    known = dict.fromkeys(name for row in found for name in (row.first.method, row.label))
    raise TrackingError(
        f"No row is called {asked!r}, so none is the baseline.{_near(asked, known)}"
    )


def difference(row: Row, baseline: Sequence[Row], metric: str) -> PairedDifference | None:
    """A row's metric minus the baseline's, paired by seed.

    A pair comes from one job or search. Where the job of a run has no baseline, and only one row
    is the baseline, its run of the same seed from a job with the same experiment, data, teachers
    and ensemble is the pair.

    Args:
        row: any row.
        baseline: as `baselines` found it.
        metric: to compare by.

    Returns:
        The difference; None for the baseline itself and where nothing can be paired.
    """
    if any(row is other for other in baseline):
        return None
    there = {
        (child.parent, child.pair): child.value(metric)
        for other in baseline
        for child in other.children
    }
    elsewhere = (
        {(_place(child), child.pair): child.value(metric) for child in baseline[0].children}
        if len(baseline) == 1 and baseline[0].first.number is None
        else {}
    )
    mine: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for child in row.children:
        other = there.get((child.parent, child.pair))
        if other is None:
            other = elsewhere.get((_place(child), child.pair), math.nan)
        if child.pair and math.isfinite(child.value(metric)) and math.isfinite(other):
            mine.setdefault(child.pair, []).append(child.value(metric))
            theirs.setdefault(child.pair, []).append(other)
    return paired_difference(_means(mine), _means(theirs))


def ordered(found: Sequence[Row], metric: str) -> list[Row]:
    """Rows from best to worst; those without the metric last, in the order they were in."""

    def place(row: Row) -> tuple[bool, float]:
        value = row.mean(metric)
        if value is None:
            return True, 0.0
        return False, value if less_is_better(metric) else -value

    return sorted(found, key=place)


def checked_metric(metric: str, known: Iterable[str]) -> str:
    """The metric, if any run has it.

    Raises:
        TrackingError: none has; it names the nearest.
    """
    known = sorted(known)
    if metric in known:
        return metric
    ending = [name for name in known if name.endswith(f"/{metric}")]
    near = f" Did you mean {_preferred(ending)}?" if ending else _near(metric, known)
    raise TrackingError(f"No run found has the metric {metric!r}.{near}")


def shown(value: Any) -> str:
    """A setting's value in few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _Store:
    """The runs of one store, asked for in pages."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client, self._uri = client, uri
        self.names: dict[str, str] = {}

    def experiments(self, wanted: Sequence[str]) -> list[str]:
        """Ids of the experiments, by their names."""
        token = None
        while True:
            page = self._client.search_experiments(max_results=_PAGE, page_token=token)
            self.names |= {str(found.experiment_id): found.name for found in page}
            if not (token := page.token):
                break
        for name in wanted:
            if name not in self.names.values():
                near = _near(name, self.names.values())
                raise TrackingError(
                    f"There is no experiment {name!r} in MLflow at "
                    f"{without_password(self._uri)}.{near}"
                )
        return [key for key, name in self.names.items() if not wanted or name in wanted]

    def selected(self, places: list[str], ids: Sequence[str], filter: str | None) -> list[Run]:
        """Students and trials that are asked for, in the order in which they began."""
        named = self._named(places, ids) if ids else None
        if named is not None and not filter:
            return named
        try:
            found = list(self._pages(places, filter or ""))
        except MlflowException as error:
            if not filter or error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            words = " ".join(str(error).split())
            raise TrackingError(
                f"MLflow does not take the filter {filter!r}: {words[:300]}\n"
                "Write for instance: params.method = 'agre_kd' and "
                "metrics.`test/accuracy` > 0.3 (backquotes around names with a slash or a dot; "
                "values of params and tags in quotes; `and`, but no `or`)."
            ) from None
        runs = [run for run in found if _role(run) in _CHILDREN]
        if filter and not runs:
            runs = self._children(places, [r.info.run_id for r in found if _role(r) in _PARENTS])
        if named is None:
            return runs
        met = {run.info.run_id for run in runs}
        return [run for run in named if run.info.run_id in met]

    def parents(self, places: list[str], runs: Sequence[Run]) -> dict[str, Run]:
        """Jobs and searches of runs, by id."""
        wanted = dict.fromkeys(run.data.tags[PARENT] for run in runs if PARENT in run.data.tags)
        return {run.info.run_id: run for run in self._by_id(places, list(wanted), _ACTIVE)}

    def _named(self, places: list[str], ids: Sequence[str]) -> list[Run]:
        found = {run.info.run_id: run for run in self._by_id(places, ids, _ALL)}
        for run_id in ids:
            if run_id not in found:
                raise TrackingError(self._unknown(places, run_id))
            run = found[run_id]
            if run.info.lifecycle_stage != "active":
                raise TrackingError(
                    f"Run {run_id} was deleted; `mlflow runs restore --run-id {run_id}` takes it "
                    "back."
                )
            if _role(run) not in _PARENTS | _CHILDREN:
                raise TrackingError(
                    f"Run {run_id} ({run.info.run_name}) is no job, study, search, student or "
                    "trial of agrekd, so there is nothing to compare it by."
                )
        parents = [key for key, run in found.items() if _role(run) in _PARENTS]
        students = [run for run in found.values() if _role(run) in _CHILDREN]
        every = [*students, *self._children(places, parents)]
        return list({run.info.run_id: run for run in every}.values())

    def _unknown(self, places: list[str], run_id: str) -> str:
        """What to say of a run that is not there: people mistype ids, and give names."""
        known: dict[str, str] = {}
        for run in self._pages(places, ""):
            known[run.info.run_id] = run.info.run_id
            if _role(run) in _PARENTS:
                known.setdefault(run.info.run_name, run.info.run_id)
        begins = [name for name in known if run_id and name.startswith(run_id)]
        near = [*begins, *difflib.get_close_matches(run_id, known, 1)]
        hint = f" Did you mean {known[near[0]]}?" if near else ""
        return (
            f"There is no run {run_id!r} in the experiments {_listed(map(self.names.get, places))}."
            f"{hint} The pages of MLflow show a run's id."
        )

    def _children(self, places: list[str], parents: Iterable[str]) -> list[Run]:
        # MLflow knows no list of values for a tag, so this is a query for each job.
        found: list[Run] = []
        for parent in parents:
            below = list(self._pages(places, f"tags.`{PARENT}` = '{parent}'"))
            found += [run for run in below if _role(run) in _CHILDREN]
            jobs = [run.info.run_id for run in below if _role(run) in _PARENTS]  # of a study
            found += self._children(places, jobs)
        return found

    def _by_id(self, places: list[str], ids: Sequence[str], view: int) -> Iterator[Run]:
        # A quote cannot be escaped in MLflow's filter, and no id has one.
        plain = [run_id for run_id in ids if run_id.isalnum()]
        for start in range(0, len(plain), _IDS_A_QUERY):
            listed = ", ".join(f"'{run_id}'" for run_id in plain[start : start + _IDS_A_QUERY])
            yield from self._pages(places, f"attributes.run_id IN ({listed})", view)

    def _pages(self, places: list[str], filter: str, view: int = _ACTIVE) -> Iterator[Run]:
        token, seen = None, set()
        while places:
            page = self._client.search_runs(
                places, filter, view, _PAGE, ["attributes.start_time ASC"], token
            )
            for run in page:
                if run.info.run_id not in seen:  # pages shift where runs are deleted meanwhile
                    seen.add(run.info.run_id)
                    yield run
            if not (token := page.token):
                return


def _role(run: Run) -> str:
    return run.data.tags.get(ROLE, "")


def _child(run: Run, parent: Run | None, experiments: Mapping[str, str]) -> Child:
    tags = run.data.tags
    params, above = _params(run), _params(parent) if parent else {}
    number = int(tags[TRIAL]) if _role(run) == "trial" and tags.get(TRIAL, "").isdigit() else None
    seeds = _value(params.get("seeds" if number is not None else "seed", tags.get(SEED, "")))
    return Child(
        run_id=run.info.run_id,
        parent=tags.get(PARENT, ""),
        job=parent.info.run_name if parent else "",
        searches=parent is not None and _role(parent) == "search",
        experiment=experiments.get(run.info.experiment_id, ""),
        method=f"trial-{number:03}"
        if number is not None
        else params.get("method", tags.get(METHOD, run.info.run_name)),
        number=number,
        seeds=tuple(s for s in (seeds if isinstance(seeds, list) else [seeds]) if type(s) is int),
        teachers=params.get("teachers", MISSING_TEACHERS),
        state=tags.get(STATE, _STATUS.get(run.info.status, "running")),
        settings={path: text for path, text in params.items() if path not in _NO_SETTINGS},
        world={path: text for path, text in above.items() if path.startswith(_WORLD)},
        searched=tuple(_listed_tag(tags.get(SEARCHED, ""))),
        metrics=run.data.metrics,
    )


MISSING_TEACHERS = "-"
"""As outcomes have it, where nobody taught."""


def _params(run: Run) -> dict[str, str]:
    """A run's parameters; what another value was resumed with counts, not what it began with."""
    changed = _value(run.data.tags.get(CHANGED, ""))
    later = {k: str(v) for k, v in changed.items()} if isinstance(changed, dict) else {}
    return {**run.data.params, **later}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _listed_tag(text: str) -> list[str]:
    value = _value(text)
    return [str(path) for path in value] if isinstance(value, list) else []


def _name(child: Child) -> str:
    return child.method if child.number is not None else label(child.method)


def _place(child: Child) -> tuple[str, frozenset[tuple[str, str]]]:
    return child.experiment, frozenset(child.world.items())


def _settings(child: Child) -> dict[str, Any]:
    """All that may tell two runs apart; of a trial, what its search varies."""
    every = {**child.settings, **child.world}
    if child.searched:
        every = {path: every[path] for path in child.searched if path in every}
    return {path: _value(text) for path, text in every.items()}


def _varied(several: Iterable[Mapping[str, Any]]) -> set[str]:
    """Paths with more than one value; to be absent is none."""
    values: dict[str, set[str]] = {}
    for found in several:
        for path, value in found.items():
            values.setdefault(path, set()).add(json.dumps(value, sort_keys=True))
    return {path for path, found in values.items() if len(found) > 1}


def _apart(found: list[Row]) -> list[Row]:
    """Rows with a word on where they are from, where two would have the same label."""
    trials = [row for row in found if row.first.number is not None]
    searches = len({row.first.parent for row in trials})
    # Of two searches, `trial-007` would be a riddle, whatever it was set to.
    origins = _origins(trials, searches) if searches > 1 else {}
    alike: dict[str, list[Row]] = {}
    for row in found:
        if row.first.number is None:
            alike.setdefault(row.label, []).append(row)
    for same in alike.values():
        if len(same) > 1:
            origins |= _origins(same, len(same))
    return [replace(row, origin=origins.get(id(row), "")) for row in found]


def _origins(found: list[Row], count: int) -> dict[int, str]:
    """By `id` of the row, the most telling of the words that are `count` different ones."""
    for origin in (
        lambda row: row.first.experiment,
        lambda row: row.first.job,
        lambda row: row.first.parent[:8],
    ):
        words = {id(row): origin(row) for row in found}
        if len(set(words.values())) == count:
            return words
    return {id(row): row.first.run_id[:8] for row in found}


def _means(values: Mapping[str, list[float]]) -> dict[str, float]:
    return {key: mean(found) for key, found in values.items()}


def _near(word: str, known: Iterable[str]) -> str:
    """What was probably meant, or else what there is."""
    known = list(dict.fromkeys(known))
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, 1)
    if near:
        return f" Did you mean {lower[near[0]]}?"
    return f" There are: {_listed(known)}." if known else ""


def _preferred(names: Sequence[str]) -> str:
    return next((name for name in names if name.startswith("test/")), names[0])


def _listed(words: Iterable[str | None], most: int = 12) -> str:
    every = [word for word in words if word]
    more = f", and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def _nothing(store: _Store, uri: str, filtered: bool) -> str:
    there = _listed(store.names.values())
    what = "meets the filter" if filtered else "is there"
    advice = "Loosen the filter, or look" if filtered else "Run a job first, or look"
    return (
        f"No student and no trial {what} in MLflow at {without_password(uri)}. "
        f"{advice} in another of its experiments: {there}."
    )
