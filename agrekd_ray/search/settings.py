"""The vocabulary of a search, and the check of all of it before anything starts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError

from agrekd_ray.config import (
    Fault,
    Job,
    JobError,
    check_job,
    faults_of,
    names_at,
    read_job,
)
from agrekd_ray.config.reading import ambiguous
from agrekd_ray.core.selection import GROUPS, RULES
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.data import open_dataset
from agrekd_ray.passwords import all_hidden
from agrekd_ray.search.space import STRATEGY, Domain, Sampler, Setting, applied, conditions
from agrekd_ray.settings import Count, Positive, Seed, Settings

RULE_NAMES = tuple(RULES)
RuleName = Literal[RULE_NAMES]  # type: ignore[valid-type]

SEARCHABLE = ("distillation", "student.model", "student.training")
"""Blocks of a job that a search may vary: they change the student, not its data or teachers."""
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
        """The job of a trial; its plan has an assignment a seed.

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
    named = [method for method in job.get("methods", ()) if method in STRATEGIES]
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
    of_job = [pair for pair in pairs if _is_of_job(pair)]
    raw = read_job(path, [pair for pair in pairs if pair not in of_job], what="search")
    resolved = "base" in raw
    changes = {
        key: _parsed(path, key, value) for key, _, value in (p.partition("=") for p in of_job)
    }
    place = "base" if resolved else "changes"
    before = raw.get(place) or {}
    if changes and isinstance(before, dict):  # what is none is a fault, below
        raw[place] = applied(before, changes) if resolved else {**before, **changes}
    planned, faults = check_resolved(raw) if resolved else check_search(raw, path.parent)
    if faults or planned is None:
        raise JobError(str(path), faults)
    return planned


def _is_of_job(pair: str) -> bool:
    """Whether an override is of a key that a job has and a search has not."""
    block = re.split(r"[.=]", pair, maxsplit=1)[0]
    return "=" in pair and block in Job.model_fields and block not in Search.model_fields


def _parsed(path: Path, key: str, value: str) -> Any:
    try:
        if faults := ambiguous(value, key):
            raise JobError(str(path), faults)
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        problem = f"is no valid YAML ({' '.join(str(error).split())})"
        raise JobError(str(path), [Fault(key, value, problem)]) from None


def check_search(raw: dict[str, Any], folder: Path) -> tuple[Planned | None, list[Fault]]:
    """All faults of a search's raw values; the search where there is none.

    Args:
        raw: the values.
        folder: that the base job's path is relative to.
    """
    try:
        search = Search.model_validate(raw)
    except ValidationError as error:
        return None, faults_of(error, Search)
    try:
        base = read_job(folder / search.job)
    except JobError as error:
        return None, [
            Fault("job", str(search.job), fault.problem, fault.nearest) for fault in error.faults
        ]
    base = applied(base, search.changes)
    job, faults = check_job(base)
    if job is None:
        return None, [_within(fault, search) for fault in faults]
    if job.is_study:
        problem = "is a study (sweep, draws, published); a search needs a job without"
        return None, [Fault("job", str(search.job), problem)]
    planned = Planned(search.model_copy(update={"job": (folder / search.job).resolve()}), base)
    found = [*_paths(planned), *_conditions(planned), *_kinds(planned), *_rule(planned)]
    if not found:
        found = _values(planned)
    return (None if found else planned), found


def check_resolved(raw: dict[str, Any]) -> tuple[Planned | None, list[Fault]]:
    """A search as its folder holds it, with its base job; and what is no longer valid of it.

    Args:
        raw: the values.
    """
    base = raw.get("base") or {}
    if not isinstance(base, dict):
        return None, [Fault("base", "", "must be a mapping (a block of keys)")]
    job, faults = check_job(base)
    if job is None:
        return None, faults
    try:
        search = Search.model_validate({key: raw[key] for key in raw if key != "base"})
    except ValidationError as error:
        return None, faults_of(error, Search)
    return Planned(search, job.model_dump(mode="json")), []


def _within(fault: Fault, search: Search) -> Fault:
    """A fault of the base job, under the search's key where the search brought it in."""
    changed = fault.key in search.changes
    return Fault(
        f"{'changes' if changed else 'job'}: {fault.key}", fault.value, fault.problem, fault.nearest
    )


def _paths(planned: Planned) -> list[Fault]:
    """Keys that do not exist, or that a search cannot vary."""
    found = []
    for path in planned.search.space:
        key = f"space.{path}"
        if path == STRATEGY:
            continue
        if (known := known_paths(path)) is not None:
            near = difflib.get_close_matches(path, [STRATEGY, *known], 1, 0.5)
            found.append(Fault(key, "", "no key of a job", f"space.{near[0]}" if near else None))
        elif not any(path == block or path.startswith(f"{block}.") for block in SEARCHABLE):
            problem = (
                "changes what trials share; a search varies strategy and "
                f"{', '.join(f'{block}.*' for block in SEARCHABLE)}. Make a search for each value"
            )
            found.append(Fault(key, "", problem))
    return found


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


def _conditions(planned: Planned) -> list[Fault]:
    """Conditions that can never hold, and options of strategies that no trial has."""
    search, found = planned.search, []
    earlier: list[str] = []
    strategies = search.space.get(STRATEGY)
    tried = list(strategies.listed or ()) if strategies else [default_strategy(planned.job)]
    for path, domain in search.space.items():
        key = f"space.{path}"
        for other, values in conditions(path, domain, STRATEGIES).items():
            implied = other == STRATEGY and other not in domain.when
            if implied:
                if not set(values) & set(tried):
                    problem = f"an option of {values[0]}; trials have only {', '.join(tried)}"
                    found.append(Fault(key, "", problem))
            elif other in search.space and other not in earlier:
                found.append(
                    Fault(f"{key}.when", other, "must stand before the path that depends on it")
                )
            elif other in search.space:
                there = search.space[other].listed
                if there is None:
                    found.append(
                        Fault(f"{key}.when", other, "is a real range, which no condition can name")
                    )
                elif not any(value in there for value in values):
                    found.append(
                        Fault(
                            f"{key}.when.{other}",
                            str(values),
                            f"never holds; values are {list(there)}",
                        )
                    )
            elif other not in planned.own:
                near = difflib.get_close_matches(other, search.space, 1)
                found.append(
                    Fault(
                        f"{key}.when.{other}",
                        "",
                        "neither in the space nor in the job",
                        near[0] if near else None,
                    )
                )
        earlier.append(path)
    return found


def _kinds(planned: Planned) -> list[Fault]:
    """What does not go together: searchers, schedulers, kinds of domains, budgets."""
    search, found = planned.search, []
    real = [path for path, domain in search.space.items() if domain.listed is None]
    crossed = [path for path, domain in search.space.items() if domain.kind == "grid"]
    if search.searcher.name == "grid":
        problem = (
            "the searcher grid cannot list a real range; give choice or grid, or another searcher"
        )
        found += [Fault(f"space.{path}", "", problem) for path in real]
    elif search.trials is None and search.minutes is None:
        found.append(
            Fault(
                "trials",
                "",
                f"the searcher {search.searcher.name} never ends: give trials or minutes",
            )
        )
    if search.searcher.name == "optuna":
        problem = "the searcher optuna proposes values itself; write choice"
        found += [Fault(f"space.{path}", "", problem) for path in crossed]
    if search.scheduler.name == "pbt":
        if search.searcher.name != "random":
            found.append(
                Fault(
                    "searcher.name",
                    search.searcher.name,
                    "pbt varies settings itself; it begins from random ones",
                )
            )
        for path, domain in search.space.items():
            if not any(path == block or path.startswith(f"{block}.") for block in MIDWAY):
                found.append(
                    Fault(
                        f"space.{path}", "", "cannot change in mid-training, as pbt would have it"
                    )
                )
            elif domain.when:
                found.append(Fault(f"space.{path}.when", "", "pbt takes no conditions"))
        if search.trials is not None and search.trials < 4:
            found.append(
                Fault("trials", str(search.trials), "pbt needs a population of 4 at least")
            )
        if search.trials is None:
            found.append(Fault("trials", "", "pbt needs the size of its population"))
    shared = set(search.seeds) & set(search.final.seeds)
    if shared:
        found.append(
            Fault("final.seeds", str(sorted(shared)), "must be fresh: the trials have them too")
        )
    for key, seeds in (("seeds", search.seeds), ("final.seeds", search.final.seeds)):
        if len(set(seeds)) < len(seeds):
            found.append(Fault(key, str(list(seeds)), "names the same seed twice"))
    if planned.base.guidance == "local":
        found.append(
            Fault(
                "job: guidance", "local", "a search runs under Ray; set changes: {guidance: auto}"
            )
        )
    return found


def _rule(planned: Planned) -> list[Fault]:
    """A selection rule that needs group labels, where the data have none."""
    select = planned.search.select
    if GROUPS not in RULES[select].needs or open_dataset(planned.base.data).groups.known:
        return []
    others = ", ".join(name for name, rule in RULES.items() if GROUPS not in rule.needs)
    problem = f"needs group labels, and the data have none; choose one of {others}"
    return [Fault("select", select, problem)]


def _values(planned: Planned) -> list[Fault]:
    """Values that a job would not take, each tried in a job of its own."""
    found: dict[str, Fault] = {}
    space = planned.search.space
    first = {path: domain.probes[0] for path, domain in space.items()}
    for path, domain in space.items():
        for probe in domain.probes:
            setting = planned.sampler.pick({**first, path: probe})
            if path not in setting:  # its condition does not hold among the first probes
                setting = {**_met(planned, path), path: probe}
            raw = {**applied(planned.job, setting), "seeds": planned.search.seeds}
            for fault in check_job(raw)[1]:
                name = fault.key.replace("methods.0", STRATEGY)
                problem = fault.problem if path in (name, STRATEGY) else str(fault)
                found.setdefault(
                    f"{name}{fault.value}",
                    Fault(f"space.{path}", str(probe), problem, fault.nearest),
                )
    return list(found.values())


def _met(planned: Planned, path: str) -> Setting:
    """A setting under which a path's conditions hold."""
    setting: Setting = {}
    for other, values in conditions(path, planned.search.space[path], STRATEGIES).items():
        if other in planned.search.space:
            listed = planned.search.space[other].listed or ()
            setting |= _met(planned, other)
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
