"""The folder of one run: its resolved job, its state, what is finished, and its reports."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.config import Fault, Job, JobError, check_job
from agrekd_ray.config.reading import with_overrides, yaml_values
from agrekd_ray.data import of_earlier_version
from agrekd_ray.errors import RunError, listed
from agrekd_ray.files import (
    DamagedError,
    cannot_read,
    is_file,
    locked,
    read_json,
    read_text,
    real,
    replacing,
    unreadable,
)
from agrekd_ray.passwords import without_password
from agrekd_ray.results.state import STATE, State
from agrekd_ray.stops import stopped_by
from agrekd_ray.student import STATES

JOB, LATEST = "job.yaml", "latest"
NO_LOCKS = (
    "its file system has no locks (flock), so nothing here keeps another process from this run:"
)
PLACING = (
    *("ray.address", "data.prepared", "data.keep_decoded"),
    *(f"outputs.{key}" for key in ("store", "remote", "features", "together")),
    *(f"{block}.training.save_every_minutes" for block in ("teachers", "student")),
    *(f"teachers.{key}" for key in ("workers", "cpus", "gpus", "store")),
    *(
        f"student.{key}"
        for key in ("cpus", "gpus", "resources", "labels", "at_once", "timeout_minutes")
    ),
    *(f"fleet.{key}" for key in FleetSettings.model_fields if key != "precision"),
    "concurrency",
)
"""Keys of a job or a search that say where and how its work is done, and change nothing of it."""
_MADE = ("students/*", "training/*", "trials/*")
"""In a run's folder, or in a point's: what it has made."""


@dataclass(frozen=True)
class Folder:
    """Path and state of one run, of whatever kind.

    Attributes:
        path: the folder, `RUNS/NAME/STAMP`.
    """

    path: Path

    @property
    def students(self) -> Path:
        """Finished methods × seeds, a folder each."""
        return self.path / "students"

    @property
    def training(self) -> Path:
        """Checkpoints of the training under way."""
        return self.path / "training"

    @property
    def plots(self) -> Path:
        """Plots, as PNG."""
        return self.path / "plots"

    def state(self) -> State:
        """Where the run stands.

        Raises:
            RunError: the system cannot read it.
        """
        try:
            return read_json(self.path / STATE, State)
        except (OSError, DamagedError) as error:
            if unreadable(error):
                raise cannot_read(self.path / STATE, error) from None
            return State()

    @property
    def has_made(self) -> bool:
        """Whether there is anything in the folder that it has made."""
        kinds = [f"{place}{kind}" for place in ("", "*/*/") for kind in _MADE]
        return any(any(self.path.glob(kind)) for kind in kinds)

    def lead(self) -> None:
        """`latest` leads to the run again, if it was withdrawn and nothing was run since."""
        self._link(self.state().before, self.path.name)

    def withdraw(self) -> None:
        """`latest` leads to the run before: this one was refused before it did anything."""
        self._link(self.path.name, self.state().before)

    def _link(self, now: str | None, to: str | None) -> None:
        """Have `latest` lead from one run to another, where both are known."""
        runs = self.path.parent
        if now is not None and to is not None and _latest(runs) == now:
            with contextlib.suppress(OSError):  # whoever writes there next says so
                _set_latest(runs, to)

    def write_state(self, state: State) -> None:
        """Say where the run stands.

        Raises:
            RunError: the folder cannot be written.
        """
        try:
            with replacing(self.path / STATE, parents=False) as draft:
                draft.write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def update(self, **changes: Any) -> None:
        """Change parts of the state."""
        self.write_state(replace(self.state(), **changes))

    def remark(self, overrides: Iterable[str], tags: Mapping[str, str], note: str) -> None:
        """Keep what the user says of a new run; see `State`."""
        unnamed = (*PLACING, "name", "runs", "tracking")
        changes = (pair for pair in overrides if not _is_of(pair.partition("=")[0], unnamed))
        self.update(overrides=tuple(map(without_password, changes)), tags=dict(tags), note=note)

    def finish(self) -> None:
        """The run is done; states of students are of no more use, nor one that a kill has left."""
        self.update(status="finished")
        shutil.rmtree(self.training / STATES, ignore_errors=True)

    @contextlib.contextmanager
    def claimed(self, warn: Callable[[str], object] = lambda text: None) -> Iterator[None]:
        """While this process works on the run, no other may; what ends it stands in the folder.

        A run that had come to its end stays finished, whatever a later look at it raises.

        Args:
            warn: hears that no other process could be kept from it.

        Raises:
            RunError: another process is at it, or the folder cannot be written.
        """
        try:
            lock = (self.path / ".lock").open("w", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        with lock:
            try:
                if not locked(lock, wait=False):
                    warn(f"{self.path}: {NO_LOCKS} start it once at a time.")
            except BlockingIOError:
                raise RunError(f"{self.path}: another process is running this run.") from None
            except OSError as error:
                raise _cannot_write(self.path, error) from None
            try:
                self.lead()
                yield
            except BaseException as error:
                with contextlib.suppress(RunError):  # nothing hides the reason
                    self.ended_by(error)
                raise

    def ended_by(self, error: BaseException) -> State:
        """Say what has ended the run, without a password; one that is finished stays so.

        Returns:
            Where it stands now.

        Raises:
            RunError: the state cannot be read or written.
        """
        state = self.state()
        if state.status != "finished":
            status, reason = "failed", without_password(str(error)) or type(error).__name__
            if isinstance(error, KeyboardInterrupt):
                status, reason = "interrupted", f"stopped by {stopped_by()}"
            state = replace(state, status=status, reason=reason)
            self.write_state(state)
        return state


@dataclass(frozen=True)
class RunFolder(Folder):
    """The folder of a job's run.

    Attributes:
        job: the resolved job.
    """

    job: Job

    @classmethod
    def create(cls, job: Job) -> RunFolder:
        """A new folder with the resolved job in it; `RUNS/JOB/latest` points to it from now on.

        Raises:
            RunError: it cannot be written.
        """
        return cls(new_folder(job.runs, job.name, JOB, job.model_dump(mode="json")), job)

    @classmethod
    def inside(cls, path: Path, job: Job) -> RunFolder:
        """The folder of one point of a study, made where it is not there yet.

        Raises:
            RunError: it cannot be written.
        """
        try:
            if not is_file(path / STATE):
                _begin(path, JOB, job.model_dump(mode="json"))
        except OSError as error:
            raise _cannot_write(path, error) from None
        return cls(path, job)

    @classmethod
    def open(cls, path: Path, overrides: Sequence[str] = ()) -> RunFolder:
        """The folder of an earlier run.

        Args:
            path: the folder.
            overrides: changes to its job, see `resolved`; it stays changed.

        Raises:
            RunError: there is no run, or its job is damaged.
            JobError: the job is no longer valid, for instance because its data have gone.
        """
        path = real(path)
        job, faults = check_job(resolved(path, JOB, overrides))
        if faults or job is None:
            raise JobError(str(path / JOB), faults)
        folder = cls(path, job)
        if overrides:
            rewrite(folder, JOB, job.model_dump(mode="json"))
        return folder


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path}: cannot write the folder ({error.strerror or error}). Free the disk, or make it "
        "writable, then go on."
    )


def new_folder(runs: Path, name: str, file: str, content: dict[str, Any]) -> Path:
    """A new folder `RUNS/NAME/STAMP`; `RUNS/NAME/latest` points to it from now on.

    Args:
        runs: folder of all runs.
        name: of the job or search.
        file: that holds what is run.
        content: of that file, whole and resolved.

    Raises:
        RunError: it cannot be written.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path = runs / name / f"{stamp}-{uuid.uuid4().hex[:4]}"
    try:
        _begin(path, file, content, _latest(path.parent))
        _set_latest(path.parent, path.name)
    except OSError as error:
        raise RunError(
            f"{path}: cannot write the run's folder ({error.strerror or error}). Set runs= to "
            "a folder that can be written."
        ) from None
    return path


def _begin(path: Path, file: str, content: dict[str, Any], before: str | None = None) -> None:
    path.mkdir(parents=True, exist_ok=True)
    _write_resolved(path, file, content)
    Folder(path).write_state(State(before=before))


def _write_resolved(path: Path, file: str, content: dict[str, Any]) -> None:
    text = yaml.safe_dump(content, sort_keys=False)
    with replacing(path / file) as draft:
        draft.write_text(f"# agrekd resume {path}\n{text}", encoding="utf-8")


def _latest(runs: Path) -> str:
    """Name of the run that `latest` leads to; empty where there is no such link."""
    link = runs / LATEST
    return str(link.readlink()) if link.is_symlink() else ""


def _set_latest(runs: Path, name: str) -> None:
    """Have `latest` lead to a run; to none, where the name is empty.

    Raises:
        OSError: the folder cannot be written.
    """
    if not name:
        (runs / LATEST).unlink(missing_ok=True)
        return
    link = runs / f".{LATEST}-{uuid.uuid4().hex[:8]}"
    link.symlink_to(name)
    os.replace(link, runs / LATEST)


def resolved(
    path: Path, file: str, overrides: Sequence[str] = (), prefix: Callable[[str], str] = str
) -> dict[str, Any]:
    """What `new_folder` wrote, with changes that change nothing of what the run has made.

    Args:
        path: of the run.
        file: that holds what is run.
        overrides: `key.path=value` changes.
        prefix: of an override as the file has it, where that holds a job in a block.

    Raises:
        JobError: a change is none that can be made any more, or is not written as one.
        RunError: there is no run, or the file is damaged.
    """
    raw = read_resolved(path, file)
    if not overrides:
        return raw
    made = Folder(path).has_made
    values, faults = with_overrides(raw, map(prefix, overrides))
    for key, _, value in (pair.partition("=") for pair in overrides):
        if key in ("name", "runs") or (made and not _is_of(key, PLACING)):
            problem = (
                "would change what this run has made; start another with it. To place its work "
                f"elsewhere, `resume` takes {listed(PLACING, 30)}"
            )
            faults.append(Fault(key, value, problem))
    if faults:
        raise JobError(str(path / file), faults)
    return values


def _is_of(key: str, known: Iterable[str]) -> bool:
    """Whether a key is one of those known, or lies in one."""
    return any(f"{key}.".startswith(f"{each}.") for each in known)


def rewrite(folder: Folder, file: str, content: dict[str, Any]) -> None:
    """Have a run go on as it is resolved now; one that has made nothing begins anew in MLflow.

    Raises:
        RunError: another process is running it, or the folder cannot be written.
    """
    with folder.claimed():
        try:
            _write_resolved(folder.path, file, content)
        except OSError as error:
            raise _cannot_write(folder.path, error) from None
        if not folder.has_made:
            folder.update(tracking_run=None)


def read_resolved(path: Path, file: str) -> dict[str, Any]:
    """What `new_folder` wrote.

    Raises:
        RunError: there is no run, or the file is damaged.
    """
    try:
        raw = yaml_values(read_text(path / file))
    except OSError as error:
        raise RunError(
            f"{path}: no run there ({error.strerror or error}). Name a run's folder, like "
            "runs/JOB/latest."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise RunError(f"{path / file}: damaged; start the job anew.")
    for job in (raw, raw.get("base")):  # of a run; of a search
        if isinstance(job, dict):
            of_earlier_version(job.get("data"))
            _drawn_by_earlier_version(job)
    return raw


def _drawn_by_earlier_version(job: dict[str, Any]) -> None:
    """Say of an ensemble that was resolved before `biased_from` was a key what it was drawn by."""
    sweep = job.get("sweep")
    swept = sweep.get("ensemble") if isinstance(sweep, dict) else None
    for ensemble in (job.get("ensemble"), *(swept if isinstance(swept, list) else ())):
        if isinstance(ensemble, dict):
            ensemble.setdefault("biased_from", "pool")
