"""The folder of one run: its resolved job, its state, what is finished, and its reports."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from agrekd_ray.config import Job, JobError, check_job
from agrekd_ray.config.reading import yaml_values
from agrekd_ray.data import of_earlier_version
from agrekd_ray.errors import RunError
from agrekd_ray.files import (
    DamagedError,
    cannot_read,
    is_file,
    read_json,
    read_text,
    real,
    unreadable,
)
from agrekd_ray.passwords import without_password
from agrekd_ray.stops import stopped_by
from agrekd_ray.student import STATES

JOB, STATE = "job.yaml", "state.json"


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Attributes:
        status: `running`, `finished`, `failed` or `interrupted`.
        tracking_run: id of its MLflow run; None before there is one.
        reason: why it failed.
    """

    status: str = "running"
    tracking_run: str | None = None
    reason: str | None = None


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

    def write_state(self, state: State) -> None:
        """Say where the run stands.

        Raises:
            RunError: the folder cannot be written.
        """
        partial = self.path / f".{STATE}"
        try:
            partial.write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")
            os.replace(partial, self.path / STATE)
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def update(self, **changes: Any) -> None:
        """Change parts of the state."""
        self.write_state(replace(self.state(), **changes))

    def finish(self) -> None:
        """The run is done; states of students are of no more use, nor one that a kill has left."""
        self.update(status="finished")
        shutil.rmtree(self.training / STATES, ignore_errors=True)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """While this process works on the run, no other may; what ends it stands in the folder.

        A run that had come to its end stays finished, whatever a later look at it raises.

        Raises:
            RunError: another process is at it, or the folder cannot be written.
        """
        try:
            lock = (self.path / ".lock").open("w", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{self.path}: another process is running this run.") from None
            try:
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
    def open(cls, path: Path) -> RunFolder:
        """The folder of an earlier run.

        Raises:
            RunError: there is no run, or its job is damaged.
            JobError: the job is no longer valid, for instance because its data have gone.
        """
        path = real(path)
        job, faults = check_job(read_resolved(path, JOB))
        if faults or job is None:
            raise JobError(str(path / JOB), faults)
        return cls(path, job)


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
        _begin(path, file, content)
        link = path.with_name(f".latest-{uuid.uuid4().hex[:8]}")
        link.symlink_to(path.name)
        os.replace(link, path.with_name("latest"))
    except OSError as error:
        raise RunError(
            f"{path}: cannot write the run's folder ({error.strerror or error}). Set runs= to "
            "a folder that can be written."
        ) from None
    return path


def _begin(path: Path, file: str, content: dict[str, Any]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=False)
    (path / file).write_text(f"# agrekd resume {path}\n{text}", encoding="utf-8")
    Folder(path).write_state(State())


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
