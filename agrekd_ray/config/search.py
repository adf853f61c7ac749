"""The vocabulary of a search, and the check of all of it before anything starts."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, WithJsonSchema

from agrekd_ray.config import (
    Fault,
    Job,
    JobError,
    check_job,
    elsewhere,
    faults_of,
    names_at,
    read_values,
)
from agrekd_ray.config.checks import with_plugins
from agrekd_ray.config.reading import ambiguous
from agrekd_ray.config.space import Domain, Sampler, Setting, applied, conditions
from agrekd_ray.core.selection import GROUPS, RULES
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.data import open_dataset
from agrekd_ray.errors import nearest
from agrekd_ray.passwords import all_hidden
from agrekd_ray.results.search import STRATEGY
from agrekd_ray.settings import Count, Positive, Seed, Settings, one_of

RuleName = Annotated[
    str, BeforeValidator(one_of(lambda: RULES)), WithJsonSchema({"enum": [*RULES]})
]

SEARCHABLE = ("distillation", "student.model", "student.training")
"""Blocks of a job that a search may vary: they change the student, not its data or teachers."""
STUDY = ("sweep", "draws", "published")
"""What makes a job a study."""
MIDWAY = (STRATEGY, "distillation", "student.training.learning_rate")
"""What population based training may vary: what a student can change in mid-training."""


class SearcherSettings(Settings):
    """Who proposes settings.

    Attributes:
        name: `random`, `grid` (every combination, each once) or `optuna` (TPE).
        seed: of the proposals.
    """

    name: Literal["random", "grid", "optuna"] = "random"
    seed: Seed = 0


class SchedulerSettings(Settings):
    """Who stops trials early.

    Attributes:
        name: `none`, `asha`, or `pbt` (population based training: the worst trials go on from the
            state and a varied setting of the best).
        grace: epochs that every trial is left alone; for `pbt`, between two exchanges.
        reduction: of so many trials one goes on at each rung of `asha`.
    """

    name: Literal["none", "asha", "pbt"] = "none"
    grace: Count = 3
    reduction: Annotated[Count, Field(ge=2)] = 3


class FinalSettings(Settings):
    """What is trained after the search, under Ray Train.

    Attributes:
        seeds: of the winner's students and the default's; fresh, so none of the trials' seeds.
            Empty trains none.
        default: the setting that the winner is held against: changes to the base job.
    """

    seeds: tuple[Seed, ...] = (100, 101, 102, 103, 104)
    default: dict[str, Any] = Field(default_factory=dict)


class Search(Settings):
    """A search.

    Attributes:
        name: of the search; its runs are in the job's `RUNS/NAME/`.
        job: the base job's file, relative to the search's.
        changes: to the base job, by dotted path.
        space: what is varied, by dotted path of the job; `strategy` is the weighting.
        searcher: who proposes settings.
        scheduler: who stops trials early.
        trials: budget in trials; null for no limit (all of a grid).
        minutes: budget in time; null for no limit.
        seeds: of the students of each trial, whose mean counts.
        select: name of the selection rule.
        concurrency: trials at once; null computes it from the cluster.
        final: what is trained after the search.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    job: Path
    changes: Annotated[dict[str, Any], AfterValidator(all_hidden)] = Field(default_factory=dict)
    space: Annotated[dict[str, Domain], Field(min_length=1)]
    searcher: SearcherSettings = SearcherSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    trials: Count | None = None
    minutes: Positive | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    select: RuleName = "worst_group"
    concurrency: Count | None = None
    final: FinalSettings = FinalSettings()


@dataclass(frozen=True)
class Planned:
    """A search, checked, with its base job.

    Attributes:
        search: the settings.
        job: the base job's raw values, the search's changes put in.
    """

    search: Search
    job: dict[str, Any]

    @property
    def base(self) -> Job:
        """The base job: what trials share (data, teachers, resources)."""
        return Job.model_validate(self.job)

    @property
    def default(self) -> Job:
        """The job whose students the winner's are held against."""
        seeds = self.search.final.seeds or self.search.seeds
        raw = applied(self.job, {STRATEGY: default_strategy(self.job), **self.search.final.default})
        return Job.model_validate({**raw, "seeds": seeds})

    @property
    def sampler(self) -> Sampler:
        """Proposes settings."""
        return Sampler(self.search.space, self.own, STRATEGIES)

    @cached_property
    def own(self) -> dict[str, Any]:
        """The base job's values by dotted path, also those that it leaves to their defaults."""
        defaults = _flat(self.base.model_dump(mode="json"))
        return {STRATEGY: default_strategy(self.job), **defaults, **_flat(self.job)}

    @property
    def first(self) -> Setting | None:
        """The base job's own setting as a point of the space; None where it is none.

        A search begins with it, so that what it finds is held against it from the start.
        """
        search = self.search
        setting = self.sampler.setting(lambda path, _: self.own.get(path))
        inside = all(search.space[path].holds(value) for path, value in setting.items())
        return setting if inside else None

    def trial(self, setting: Setting, seeds: Sequence[int] | None = None) -> Job:
        """The job of a trial; its plan has a spec a seed.

        Args:
            setting: of the trial.
            seeds: other ones than the search's.
        """
        raw = applied(self.job, {STRATEGY: default_strategy(self.job), **setting})
        return Job.model_validate({**raw, "seeds": tuple(seeds or self.search.seeds)})

    @property
    def epochs(self) -> int:
        """Most epochs that any trial trains."""
        domain = self.search.space.get("student.training.epochs")
        probes = domain.probes if domain else ()
        return max([self.base.student.training.epochs, *map(int, probes)])


def default_strategy(job: Mapping[str, Any]) -> str:
    """What a search varies where its space has no strategy: the job's only one, or the paper's."""
    methods = job.get("methods", ())
    named = [
        method for method in STRATEGIES if isinstance(methods, list | tuple) and method in methods
    ]
    return named[0] if len(named) == 1 else "agre_kd"


def load_search(path: Path, overrides: Iterable[str] = ()) -> Planned:
    """Read and check a search and its base job whole.

    Args:
        path: the YAML file; a run's own `search.yaml` holds its base job too.
        overrides: `key.path=value` changes to it, and to its base job (`teachers.store=FOLDER`).

    Raises:
        JobError: all faults at once.
    """
    pairs = list(overrides)
    of_job = [pair for pair in pairs if is_of_job(pair)]
    raw, faults = read_values(path, [pair for pair in pairs if pair not in of_job], "search")
    changes: dict[str, Any] = {}
    for key, _, value in (pair.partition("=") for pair in of_job):
        try:
            faults += ambiguous(value, key)
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            problem = f"is no valid YAML ({' '.join(str(error).split())})"
            faults.append(Fault(key, value, problem))
    if raw is None:
        raise JobError(str(path), faults)
    if "methods" in raw and "space" not in raw:
        problem = f"makes this a job, which `agrekd run {path}` runs"
        raise JobError(str(path), [Fault("methods", "", problem)])
    resolved = "base" in raw
    place = "base" if resolved else "changes"
    before = raw.get(place) or {}
    if changes and isinstance(before, dict):  # what is none is a fault, below
        raw[place] = applied(before, changes) if resolved else {**before, **changes}
    planned, found = check_resolved(raw) if resolved else check_search(raw, path.parent)
    faults += elsewhere(found, faults)
    if faults or planned is None:
        raise JobError(str(path), faults)
    return planned


def is_of_job(pair: str) -> bool:
    """Whether an override is of a key that a job has and a search has not."""
    block = re.split(r"[.=]", pair, maxsplit=1)[0]
    return "=" in pair and block in Job.model_fields and block not in Search.model_fields


def check_search(raw: dict[str, Any], folder: Path) -> tuple[Planned | None, list[Fault]]:
    """All faults of a search's raw values; the search where there is none.

    Args:
        raw: the values.
        folder: that the base job's path is relative to.
    """
    faults: list[Fault] = []
    search: Search | None = None
    bad: set[str] = set()
    if isinstance(raw.get("job"), str):  # its plugins register what the search may name
        with_plugins(read_values(folder / raw["job"])[0] or {})
    try:
        search = Search.model_validate(raw)
    except ValidationError as error:
        faults = faults_of(error, Search)
        search, bad = _sound_part(raw, error, faults)
    if search is None:
        return None, faults
    base: dict[str, Any] | None = None
    job, of_file, of_job = None, list[Fault](), list[Fault]()
    if "job" not in bad:
        base, of_file = read_values(folder / search.job)
        faults += [
            Fault("job", str(search.job), fault.problem, fault.nearest)
            if base is None
            else _within(fault, search)
            for fault in of_file
        ]
    if base is not None:
        base, _ = with_plugins(applied(base, search.changes))  # faults are the job's, below
        if any(base.get(key) for key in STUDY):
            problem = "is a study (sweep, draws, published); a search needs a job without"
            faults.append(Fault("job", str(search.job), problem))
            base = {key: value for key, value in base.items() if key not in STUDY}
        job, of_job = check_job(base)
        faults += [_within(fault, search) for fault in elsewhere(of_job, of_file)]
    faults += _Whole(search, base, job, of_job, bad).faults()
    if faults or base is None:
        return None, faults
    return Planned(search.model_copy(update={"job": (folder / search.job).resolve()}), base), []


def _sound_part(
    raw: dict[str, Any], error: ValidationError, faults: Sequence[Fault]
) -> tuple[Search | None, set[str]]:
    """A search without its faulty values, and their keys.

    A name that is nearly a known one counts as that. Stand-ins, which are faulty keys too, are
    there for what a search must have; None where even so it is none.
    """
    values, bad = copy.deepcopy(raw), {fault.key for fault in faults}
    for detail in error.errors(include_url=False):
        block, *names = map(str, detail["loc"][:2])
        if names and isinstance(values.get(block), dict):
            values[block].pop(names[0], None)
            bad.add(f"{block}.{names[0]}")
        else:  # also all of a list
            values.pop(block, None)
            bad.add(block)
    for fault in faults:
        block, _, name = fault.key.partition(".")
        if fault.nearest and fault.problem.startswith("unknown key"):
            bad.add(fault.nearest)
        elif fault.nearest and name and isinstance(values.get(block), dict):
            values[block][name] = fault.nearest
            bad.remove(fault.key)
        elif fault.nearest and not name:
            values[block] = fault.nearest
            bad.remove(fault.key)
    if not values.get("space"):
        values["space"] = {"distillation.alpha": {"choice": [1]}}
    try:
        return Search.model_validate({"name": "search", "job": ".", **values}), bad
    except ValidationError:  # a key that is no text
        return None, bad


def check_resolved(raw: dict[str, Any]) -> tuple[Planned | None, list[Fault]]:
    """A search as its folder holds it, with its base job; and what is no longer valid of it.

    Args:
        raw: the values.
    """
    base = raw.get("base") or {}
    job, search = None, None
    if isinstance(base, dict):
        job, faults = check_job(base)
    else:
        faults = [Fault("base", "", "must be a mapping (a block of keys)")]
    try:
        search = Search.model_validate({key: raw[key] for key in raw if key != "base"})
    except ValidationError as error:
        faults += faults_of(error, Search)
    if job is None or search is None or faults:
        return None, faults
    return Planned(search, job.model_dump(mode="json")), []


def _within(fault: Fault, search: Search) -> Fault:
    """A fault of the base job, under the search's key where the search brought it in."""
    changed = fault.key in search.changes
    return Fault(
        f"{'changes' if changed else 'job'}: {fault.key}", fault.value, fault.problem, fault.nearest
    )


def known_paths(path: str) -> list[str] | None:
    """None where a job has such a key; otherwise the keys that it has there."""
    *blocks, _last = path.split(".")
    for depth in range(len(blocks) + 1):
        names = names_at(blocks[:depth], Job)
        part = path.split(".")[depth]
        if blocks[:depth] == ["student", "model", "args"]:
            return None  # an architecture's own arguments, which its builder checks
        if part not in names:
            prefix = ".".join(blocks[:depth])
            deeper = [
                f"{name}.{inner}"
                for name in names
                for inner in names_at([*blocks[:depth], name], Job)
            ]
            everywhere = [*names, *deeper]
            return [f"{prefix}.{name}" if prefix else name for name in everywhere]
    return None


class _Whole:
    """Checks of several keys together; each runs where what it looks at is sound.

    Args:
        search: what is sound of it.
        raw: the base job's raw values; None where they cannot be read.
        job: the base job; None where it has faults.
        known: the base job's faults.
        bad: keys of the search that are faulty.
    """

    def __init__(
        self,
        search: Search,
        raw: dict[str, Any] | None,
        job: Job | None,
        known: Sequence[Fault],
        bad: Collection[str],
    ) -> None:
        self._search, self._raw, self._job = search, raw, job
        self._known, self._bad = known, bad
        self._own: dict[str, Any] | None = None
        if raw is not None:  # a faulty job's defaults are not known
            whole = Planned(search, raw).own if job is not None else _flat(raw)
            self._own = {STRATEGY: default_strategy(raw), **whole}

    def _sound(self, *keys: str) -> bool:
        return not set(keys) & set(self._bad)

    def faults(self) -> list[Fault]:
        found = [*self._paths(), *self._conditions()]
        return [*found, *self._kinds(), *self._rule(), *self._values(found)]

    def _paths(self) -> Iterator[Fault]:
        """Keys that do not exist, or that a search cannot vary."""
        for path in self._search.space:
            if path == STRATEGY:
                continue
            if (known := known_paths(path)) is not None:
                near = nearest(path, [STRATEGY, *known], 0.5)
                yield Fault(f"space.{path}", "", "no key of a job", near and f"space.{near}")
            elif not _is_in(path, SEARCHABLE):
                problem = (
                    "changes what trials share; a search varies strategy and "
                    f"{', '.join(f'{block}.*' for block in SEARCHABLE)}. "
                    "Make a search for each value"
                )
                yield Fault(f"space.{path}", "", problem)

    def _conditions(self) -> Iterator[Fault]:
        """Conditions that can never hold, and options of strategies that no trial has."""
        search, earlier = self._search, list[str]()
        tried: Sequence[Any] | None = None  # not known
        if STRATEGY in search.space:
            tried = search.space[STRATEGY].listed or ()
        elif self._raw is not None and self._sound(f"space.{STRATEGY}"):
            tried = [default_strategy(self._raw)]
        for path, domain in search.space.items():
            key = f"space.{path}"
            for other, values in conditions(path, domain, STRATEGIES).items():
                if other == STRATEGY and other not in domain.when:  # an option implies it
                    if tried is not None and not any(value in tried for value in values):
                        others = ", ".join(map(str, tried))
                        problem = f"an option of {values[0]}; trials have only {others}"
                        yield Fault(key, "", problem)
                elif other in search.space and other not in earlier:
                    problem = "must stand before the path that depends on it"
                    yield Fault(f"{key}.when", other, problem)
                elif other in search.space:
                    listed = search.space[other].listed
                    if listed is None:
                        problem = "is a real range, which no condition can name"
                        yield Fault(f"{key}.when", other, problem)
                    elif not any(value in listed for value in values):
                        problem = f"never holds; values are {list(listed)}"
                        yield Fault(f"{key}.when.{other}", str(values), problem)
                elif (
                    self._job is not None
                    and self._sound(f"space.{other}")
                    and other not in (self._own or {})
                ):
                    problem = "neither in the space nor in the job"
                    near = nearest(other, search.space)
                    yield Fault(f"{key}.when.{other}", "", problem, near)
            earlier.append(path)

    def _kinds(self) -> Iterator[Fault]:
        """What does not go together: searchers, schedulers, kinds of domains, budgets."""
        search = self._search
        searcher, space = search.searcher.name, search.space
        if searcher == "grid":
            problem = (
                "the searcher grid cannot list a real range; "
                "give choice or grid, or another searcher"
            )
            real = [path for path, domain in space.items() if domain.listed is None]
            yield from (Fault(f"space.{path}", "", problem) for path in real)
        elif (
            search.trials is None
            and search.minutes is None
            and self._sound("searcher", "searcher.name", "trials", "minutes")
        ):
            problem = f"the searcher {searcher} never ends: give trials or minutes"
            yield Fault("trials", "", problem)
        if searcher == "optuna":
            problem = "the searcher optuna proposes values itself; write choice"
            crossed = [path for path, domain in space.items() if domain.kind == "grid"]
            yield from (Fault(f"space.{path}", "", problem) for path in crossed)
        if search.scheduler.name == "pbt":
            yield from self._population()
        shared = set(search.seeds) & set(search.final.seeds)
        if shared and self._sound("final", "final.seeds"):
            problem = "must be fresh: the trials have them too"
            yield Fault("final.seeds", str(sorted(shared)), problem)
        for key, seeds in (("seeds", search.seeds), ("final.seeds", search.final.seeds)):
            if len(set(seeds)) < len(seeds):
                yield Fault(key, str(list(seeds)), "names the same seed twice")
        if self._job is not None and self._job.guidance == "local":
            problem = "a search runs under Ray; set changes: {guidance: auto}"
            yield Fault("job: guidance", "local", problem)

    def _population(self) -> Iterator[Fault]:
        """What population based training cannot do."""
        search = self._search
        if (searcher := search.searcher.name) != "random":
            problem = "pbt varies settings itself; it begins from random ones"
            yield Fault("searcher.name", searcher, problem)
        for path, domain in search.space.items():
            if not _is_in(path, MIDWAY):
                problem = "cannot change in mid-training, as pbt would have it"
                yield Fault(f"space.{path}", "", problem)
            elif domain.when:
                yield Fault(f"space.{path}.when", "", "pbt takes no conditions")
        if search.trials is not None and search.trials < 4:
            yield Fault("trials", str(search.trials), "pbt needs a population of 4 at least")
        if search.trials is None and self._sound("trials"):
            yield Fault("trials", "", "pbt needs the size of its population")

    def _rule(self) -> list[Fault]:
        """A selection rule that needs group labels, where the data have none."""
        select = self._search.select
        if self._job is None or GROUPS not in RULES[select].needs or not self._sound("select"):
            return []
        if open_dataset(self._job.data).groups.known:
            return []
        others = ", ".join(name for name, rule in RULES.items() if GROUPS not in rule.needs)
        problem = f"needs group labels, and the data have none; choose one of {others}"
        return [Fault("select", select, problem)]

    def _values(self, found: Sequence[Fault]) -> list[Fault]:
        """Values that a job would not take, each tried in a job of its own.

        Args:
            found: what is wrong with paths and conditions; values of these are not tried.
        """
        if self._raw is None or self._own is None:
            return []
        space: dict[str, Domain] = {}
        for path, domain in self._search.space.items():
            own = f"space.{path}", f"space.{path}.when"
            faulty = any(fault.key == own[0] or fault.key.startswith(own[1]) for fault in found)
            if not faulty and all(
                other in space
                or (other not in self._search.space and self._sound(f"space.{other}"))
                for other in conditions(path, domain, STRATEGIES)
            ):
                space[path] = domain
        sampler = Sampler(space, self._own, STRATEGIES)
        faults: dict[str, Fault] = {}
        first = {path: domain.probes[0] for path, domain in space.items()}
        for path, domain in space.items():
            for probe in domain.probes:
                setting = sampler.pick({**first, path: probe})
                if path not in setting:  # its condition does not hold among the first probes
                    setting = {**_met(space, path), path: probe}
                raw = {**applied(self._raw, setting), "seeds": tuple(set(self._search.seeds))}
                for fault in check_job(raw)[1]:
                    if fault in self._known:
                        continue
                    name = fault.key.replace("methods.0", STRATEGY)
                    problem = fault.problem if path in (name, STRATEGY) else str(fault)
                    faults.setdefault(
                        f"{name}{fault.value}",
                        Fault(f"space.{path}", str(probe), problem, fault.nearest),
                    )
        return list(faults.values())


def _is_in(path: str, blocks: Iterable[str]) -> bool:
    """Whether a path is one of some blocks, or lies in one."""
    return any(f"{path}.".startswith(f"{block}.") for block in blocks)


def _met(space: Mapping[str, Domain], path: str) -> Setting:
    """A setting under which a path's conditions hold."""
    setting: Setting = {}
    for other, values in conditions(path, space[path], STRATEGIES).items():
        if other in space:
            listed = space[other].listed or ()
            setting |= _met(space, other)
            setting[other] = next(value for value in values if value in listed)
    return setting


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted paths, the blocks themselves too."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat[f"{prefix}{key}"] = value
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
    return flat
