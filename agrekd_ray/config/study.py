"""What a study is made of, and what can be wrong with it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agrekd_ray.config.faults import Fault
from agrekd_ray.config.job import Job, methods
from agrekd_ray.config.sweep import FIXED, Setting, changed, changes, settings_of
from agrekd_ray.errors import nearest
from agrekd_ray.results.points import in_words

MOST_POINTS = 10_000


def raw_points(job: Job) -> list[tuple[Setting, dict[str, Any]]]:
    """Every point of a study with the raw values of its job."""
    whole = job.model_dump(mode="json")
    if "data.name" in job.sweep:  # other data do not know what these leave at its default
        whole["data"] = job.data.model_dump(mode="json", exclude_defaults=True)
    alone = {key: value for key, value in whole.items() if key not in ("sweep", "draws")}
    return [
        (setting, changed({**alone, "published": None}, changes(setting, whole)))
        for setting in settings_of(job.sweep, job.draws)
    ]


def study_faults(
    get: Callable[[str], Any],
    raw: Mapping[str, Any],
    job: Job | None,
    known: Sequence[Fault],
    check: Callable[[Any], tuple[Job | None, list[Fault]]],
) -> list[Fault]:
    """What is wrong with a study, beside what is wrong with its job by itself.

    Args:
        get: the checked value of a key of the job; None where it is faulty.
        raw: the job's raw values.
        job: of the study; None where there is something wrong with it.
        known: what is wrong with the job.
        check: `checks.check_job`, for the jobs of its points.
    """
    sweep, draws, published = get("sweep") or {}, get("draws") or (), get("published")
    found = []
    for key in sweep:
        if key.partition(".")[0] in FIXED:
            found.append(Fault(f"sweep.{key}", "", "is the same at every point of a study"))
    if len(set(draws)) < len(draws):
        found.append(Fault("draws", str(list(draws)), "names the same thing twice"))
    for number, figures in enumerate(published.figures if published else ()):
        key = f"published.figures.{number}"
        for path, value in figures.at.items():
            if path not in sweep:
                problem, near = "is no key of the sweep", nearest(path, sweep)
                found.append(Fault(f"{key}.at.{path}", "", problem, near))
            elif value not in sweep[path]:
                problem = f"is none of the swept values, {list(sweep[path])}"
                found.append(Fault(f"{key}.at.{path}", str(value), problem))
        by_method = {name: getattr(figures, name) for name in ("worst_group_accuracy", "accuracy")}
        by_method |= {f"groups.{group}": values for group, values in figures.groups.items()}
        for metric, values in by_method.items():
            for method in set(values) - set(methods()):
                problem, near = "is no method", nearest(method, methods())
                found.append(Fault(f"{key}.{metric}.{method}", "", problem, near))
    count = math.prod([*map(len, sweep.values()), max(1, len(draws))])
    if count > MOST_POINTS:
        problem = f"{count:,} points; a study has at most {MOST_POINTS:,}"
        return [*found, Fault("sweep", "", problem)]
    sweep = {key: values for key, values in sweep.items() if key.partition(".")[0] not in FIXED}
    draws = tuple(dict.fromkeys(draws))
    if not (sweep or draws):
        return found
    folders: dict[str, str] = {}
    for setting in settings_of(sweep, draws):
        if (other := folders.setdefault(setting.folder, setting.label)) is not setting.label:
            problem = f"{other!r} and {setting.label!r} would have the same folder"
            found.append(Fault("sweep", "", f"{problem}; change one of the values"))
    if job is not None:
        points = raw_points(job.model_copy(update={"sweep": sweep, "draws": draws}))
    else:  # what a draw changes is counted from values that may be faulty
        alone = {key: raw[key] for key in raw if key not in ("sweep", "draws", "published")}
        points = [(setting, changed(alone, setting.at)) for setting in settings_of(sweep, ())]
    of_points: dict[Fault, None] = {}  # each once, in order
    for setting, values in points:
        point, faults = check(values)
        for fault in [*faults, *(_moving(setting, point) if point is not None else ())]:
            if fault in known:
                continue
            swept = next((k for k in sweep if f"{fault.key}.".startswith(f"{k}.")), "")
            where = f"sweep.{swept}" if swept else f"sweep ({setting.label}): {fault.key}"
            shown = in_words(setting.at[swept]) if swept else fault.value
            of_points[Fault(where, shown, fault.problem, fault.nearest)] = None
    return [*found, *of_points]


def _moving(setting: Setting, point: Job) -> list[Fault]:
    """Relative paths: `resume`, in another folder, would take them for other points."""
    read = point.model_dump(mode="json")
    found = []
    for key, value in setting.at.items():
        for given, absolute in _texts(
            value, functools.reduce(lambda v, k: v[k], key.split("."), read)
        ):
            if given != absolute and "/" in absolute:
                problem = f"in a sweep, a path must be absolute ({given} is {absolute} from here)"
                found.append(Fault(key, "", problem))
    return found


def _texts(given: Any, read: Any) -> Iterator[tuple[str, str]]:
    """Every text of a value as it is given, and as it is read."""
    if isinstance(given, str) and isinstance(read, str):
        yield given, read
    elif isinstance(given, Mapping) and isinstance(read, Mapping):
        for key in given.keys() & read.keys():
            yield from _texts(given[key], read[key])
    elif isinstance(given, list | tuple) and isinstance(read, list | tuple):
        for one, other in zip(given, read, strict=False):
            yield from _texts(one, other)
