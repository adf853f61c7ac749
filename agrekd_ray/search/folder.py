"""The folder of a search: what is resolved, a journal a trial, its reports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agrekd_ray.config import JobError
from agrekd_ray.config.search import Planned, check_resolved, is_of_job
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.folder import Folder, new_folder, resolved, rewrite
from agrekd_ray.files import (
    DamagedError,
    cannot_read,
    checked,
    in_a_line,
    is_file,
    read_json,
    real,
    replacing,
    unreadable,
)
from agrekd_ray.results.arrays import EpochFiles, remove
from agrekd_ray.results.search import TrialResult

SEARCH = "search.yaml"


@dataclass(frozen=True)
class SearchFolder(Folder):
    """The folder of one search.

    Attributes:
        planned: the resolved search.
    """

    planned: Planned

    @classmethod
    def create(cls, planned: Planned) -> SearchFolder:
        """A new folder with the resolved search in it, its base job included.

        Raises:
            RunError: it cannot be written.
        """
        runs, name = planned.base.runs, planned.search.name
        return cls(new_folder(runs, name, SEARCH, _resolved(planned)), planned)

    @classmethod
    def open(cls, path: Path, overrides: Sequence[str] = ()) -> SearchFolder:
        """The folder of an earlier search; see `RunFolder.open`.

        Raises:
            RunError: there is no search, or its file is damaged.
            JobError: it is no longer valid, for instance because its data have gone.
        """
        path = real(path)
        raw = resolved(
            path, SEARCH, overrides, lambda pair: f"base.{pair}" if is_of_job(pair) else pair
        )
        planned, faults = check_resolved(raw)
        if faults or planned is None:
            raise JobError(str(path / SEARCH), faults)
        folder = cls(path, planned)
        if overrides:
            rewrite(folder, SEARCH, _resolved(planned))
        return folder

    @classmethod
    def last(cls, planned: Planned) -> SearchFolder:
        """The folder of the last run of a search, as it was started.

        Raises:
            RunError: there is none, or the search is not the same any more.
        """
        path = planned.base.runs / planned.search.name / "latest"
        if not cls.holds(path):
            raise RunError(f"{path}: no run of this search to go on with; leave --resume out.")
        found = cls.open(path)
        if _resolved(found.planned) != _resolved(planned):
            raise RunError(
                f"{found.path} was started with other settings than these. To go on with it as it "
                f"was: agrekd resume {found.path}. To search anew, leave --resume out."
            )
        return found

    @classmethod
    def holds(cls, path: Path) -> bool:
        """Whether a folder is that of a search."""
        return is_file(path / SEARCH)

    @property
    def trials(self) -> Path:
        """Journals of the trials."""
        return self.path / "trials"

    @property
    def states(self) -> Path:
        """States of the trials' students, a folder a trial."""
        return self.path / "states"

    @property
    def tune(self) -> Path:
        """Ray Tune's own state."""
        return self.path / "tune"


def _resolved(planned: Planned) -> dict[str, Any]:
    """A search as plain values, with every default in it, and its base job."""
    search, job = planned.search.model_dump(mode="json"), planned.base.model_dump(mode="json")
    return {**search, "base": job}


class TrialStore:
    """What is known of the trials, a file each, by Tune's id. It outlives the driver.

    Args:
        folder: of the files.

    Raises:
        RunError: the folder cannot be made, or a file in it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{folder}: cannot be made ({error.strerror or error}); remove what is there, or "
                "free the disk."
            ) from None
        self._known = dict(self._read())
        self._epochs: dict[str, EpochFiles] = {}

    def get(self, trial_id: str) -> TrialResult | None:
        """A trial; None where it is not known."""
        return self._known.get(trial_id)

    def put(self, trial_id: str, result: TrialResult) -> None:
        """Write a trial; whole or not at all."""
        self._known[trial_id] = result
        path = self._folder / f"{trial_id}.json"
        epochs = self._epochs.setdefault(trial_id, EpochFiles()).write(result.history, path)
        values = {**asdict(replace(result, history=[])), "history": epochs}
        with replacing(path, parents=False) as draft:
            draft.write_text(json.dumps(values), encoding="utf-8")

    def number(self, wanted: int) -> int:
        """Of a new trial: the wanted one, or the next where another trial has it."""
        taken = {trial.number for trial in self._known.values()}
        return wanted if wanted not in taken else max(taken) + 1

    def all(self) -> dict[str, TrialResult]:
        """All trials by Tune's id, in the order of their numbers."""
        return dict(sorted(self._known.items(), key=lambda item: item[1].number))

    def forget(self, trial_ids: set[str]) -> None:
        """Leave out trials that the search does not know any more."""
        for trial_id in trial_ids & self._known.keys():
            del self._known[trial_id]
            self._epochs.pop(trial_id, None)
            remove(self._folder / f"{trial_id}.json")

    def _read(self) -> Iterator[tuple[str, TrialResult]]:
        for path in self._folder.glob("*.json"):
            if (trial := read_trial(self._folder, path.stem)) is not None:
                yield path.stem, trial


def read_trial(folder: Path, trial_id: str) -> TrialResult | None:
    """A trial out of its journal; None where it has none.

    Args:
        folder: of the journals.
        trial_id: Tune's.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / f"{trial_id}.json"
    try:
        values = read_json(path, dict[str, Any])
        if isinstance(epochs := values.get("history"), list):
            values["history"] = EpochFiles().read(epochs, path)
        return checked(TrialResult, values)
    except FileNotFoundError:
        return None
    except (DamagedError, OSError) as error:
        if unreadable(error):
            raise cannot_read(path, error) from None
        raise RunError(
            f"{path}: damaged ({in_a_line(error)}); remove it, and resume again."
        ) from None
