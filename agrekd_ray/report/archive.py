"""A finished run, read from its folder and checked: what a job or a search left in `results.json`.

Of settings, only what reports name one by one is checked: those of an earlier version, which
today's vocabulary would not take, can still be reported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from agrekd_ray.config.space import Domain
from agrekd_ray.errors import RunError
from agrekd_ray.files import DamagedError, checked, exists, read_json, replacing
from agrekd_ray.results import Cost, Diagnostics, EnsembleCheck, StudentResult, TeacherResult
from agrekd_ray.results.arrays import ARRAYS, packed, read_arrays, unpacked, write_arrays
from agrekd_ray.results.search import SearchResult
from agrekd_ray.results.state import STATE, State
from agrekd_ray.results.study import StudyResult

RESULTS, STUDENTS = "results.json", "students"


@dataclass(frozen=True)
class JobSettings:
    """Of a resolved job, what reports name; the blocks are those of `agrekd_ray.config.Job`."""

    data: dict[str, Any]
    student: dict[str, Any]
    distillation: dict[str, Any]
    seeds: list[int]


@dataclass(frozen=True, kw_only=True)
class About(Cost):
    """What results say about a run itself, and what it took.

    Attributes:
        settings: the resolved job or search.
        versions: of packages, by name.
        classes: their names.
        groups: names of the evaluation groups.
        splits: what says them, and their sizes.
    """

    settings: dict[str, Any]
    versions: dict[str, str]
    classes: list[str]
    groups: list[str]
    splits: str = ""


@dataclass(frozen=True, kw_only=True)
class JobAbout(About):
    """What a job's results say about the job: also its name, and the folder where it ran."""

    name: str
    folder: str


@dataclass(frozen=True)
class JobArchive:
    """A finished job.

    Attributes:
        job: about it.
        members: the ensemble.
        biased: the biased model, where the job has one.
        outcomes: its students.
        settings: of the resolved job.
        diagnostics: of the ensemble.
    """

    job: JobAbout
    members: list[TeacherResult]
    biased: TeacherResult | None
    outcomes: list[StudentResult]
    settings: JobSettings
    diagnostics: Diagnostics = field(default_factory=Diagnostics)


@dataclass(frozen=True)
class Final:
    """What is trained after a search: seeds, and changes to the base job for the default."""

    seeds: list[int]
    default: dict[str, Any]


@dataclass(frozen=True)
class SearchSettings:
    """Of a resolved search, what reports name, as in `agrekd_ray.config.search.Search`."""

    job: str
    space: dict[str, Domain]
    searcher: dict[str, Any]
    scheduler: dict[str, Any]
    seeds: list[int]
    final: Final
    trials: int | None = None
    minutes: float | None = None


@dataclass(frozen=True, kw_only=True)
class SearchAbout(About):
    """What a search's results say about it: also its resolved base job, and the ensemble."""

    job: dict[str, Any]
    members: list[TeacherResult] = field(default_factory=list)
    ensemble: EnsembleCheck | None = None


@dataclass(frozen=True)
class SearchArchive:
    """A search, finished or interrupted.

    Attributes:
        result: trials, rules, winner and the students trained afterwards.
        about: the search itself.
        settings: of the resolved search.
        job: of the resolved base job.
    """

    result: SearchResult
    about: SearchAbout
    settings: SearchSettings
    job: JobSettings


Read = TypeVar("Read")


def write_results(path: Path, values: Any) -> None:
    """Writes the results of a run as JSON; the file is replaced as a whole.

    Records become objects; a value that is not a finite number becomes null, which every JSON
    reader understands; what JSON does not know becomes text. Figures of very many groups or
    teachers are in `by_group.npz` beside it (`results.arrays`).

    Raises:
        OSError: it cannot be written.
    """
    values, arrays = packed(values)
    write_arrays(path.with_name(ARRAYS), arrays)
    text = json.dumps(plain(values), ensure_ascii=False, allow_nan=False, indent=1, default=str)
    with replacing(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def kept_apart(outcome: StudentResult, folder: Path) -> Any:
    """An outcome for `write_results`, which refers to the array file that its student has left.

    Args:
        outcome: of a finished method × seed.
        folder: of the job.

    Returns:
        The outcome itself where its student has left none, or another one.
    """
    file = Path(STUDENTS, outcome.name, ARRAYS)
    values, arrays = packed(outcome, str(file))
    try:
        known = read_arrays(folder / file) if arrays else {}
    except (DamagedError, OSError):
        known = {}
    same = known.keys() == arrays.keys() and all(
        np.array_equal(known[name], part, equal_nan=part.dtype.kind == "f")
        for name, part in arrays.items()
    )
    return values if same else outcome


def plain(value: Any) -> Any:
    """A value without records, and without numbers that are not finite."""
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_job(folder: Path) -> JobArchive:
    """The results of a job.

    Raises:
        RunError: there are none yet, or they are damaged.
    """
    return _read(folder, _job)


def read_search(folder: Path) -> SearchArchive:
    """The results of a search.

    Raises:
        RunError: there are none yet, or they are damaged.
    """
    return _read(folder, _search)


def read_result(folder: Path) -> SearchResult | None:
    """The results of a search; None where it has not come to its end.

    Raises:
        RunError: the file is damaged, or cannot be read.
    """
    if not exists(folder / RESULTS):
        return None
    again = "Remove it to finish the search again."
    return _read(folder, lambda values: checked(SearchResult, values), again)


def read_study(folder: Path) -> StudyResult:
    """The results of a study; outcomes come without their histories.

    Raises:
        RunError: there are none yet, or they are damaged.
    """
    return _read(folder, StudyResult.from_json)


def _read(folder: Path, check: Callable[[Any], Read], again: str = "") -> Read:
    path = folder / RESULTS
    try:
        return check(unpacked(read_json(path, dict[str, Any]), folder))
    except FileNotFoundError:
        raise RunError(f"{folder}: {_standing(folder)}: agrekd resume {folder}") from None
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read ({error.strerror or error}). Make it readable, then try again."
        ) from None
    except (DamagedError, KeyError, TypeError) as error:
        what = error if isinstance(error, DamagedError) else f"{type(error).__name__}: {error}"
    again = again or f"It is written anew by: agrekd resume {folder}"
    raise RunError(f"{path}: damaged ({what}). {again}")


def _standing(folder: Path) -> str:
    """Why a run has no results, and when it is gone on with."""
    try:
        state = read_json(folder / STATE, State)
    except (OSError, DamagedError):
        state = State()
    if state.status == "failed":
        return f"failed ({(state.reason or 'unknown').rstrip('.')}). To go on with it"
    if state.status == "interrupted":
        return f"not finished, {state.reason or 'interrupted'}. To go on with it"
    return (
        f"not finished, there is no {RESULTS} yet. Wait for its end; if it was stopped, go on with "
        "it"
    )


def _job(values: Any) -> JobArchive:
    return checked(JobArchive, {**values, "settings": values["job"]["settings"]})


def _search(values: Any) -> SearchArchive:
    result = checked(SearchResult, values)
    about = checked(SearchAbout, result.about)
    return SearchArchive(
        result, about, checked(SearchSettings, about.settings), checked(JobSettings, about.job)
    )
