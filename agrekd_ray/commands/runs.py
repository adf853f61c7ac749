"""`agrekd runs`: what was run in a folder, the newest first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agrekd_ray.errors import AgrekdError, RunError
from agrekd_ray.experiment.folder import JOB, Folder, read_resolved
from agrekd_ray.experiment.monitor import flat
from agrekd_ray.experiment.study import POINTS
from agrekd_ray.files import is_file, is_folder, locked
from agrekd_ray.report.archive import read_job, read_search, read_study
from agrekd_ray.report.job import headline
from agrekd_ray.report.study import verdict
from agrekd_ray.results.metrics import setting_text, short_paths
from agrekd_ray.results.state import STATE, State
from agrekd_ray.search.folder import SEARCH

_STAMP = f"{'[0-9]' * 8}-{'[0-9]' * 6}-*"
_SHOWN = 6
"""Settings that are shown of a run."""


@dataclass(frozen=True)
class Ran:
    """A run.

    Attributes:
        path: its folder, `RUNS/NAME/STAMP`.
        kind: `job`, `study` or `search`.
        status: `running`, `finished`, `failed`, `interrupted`, or `killed`.
        settings: by dotted key.
        remarks: the user's note and tags, in words.
    """

    path: Path
    kind: str
    status: str
    settings: Mapping[str, Any]
    remarks: str = ""

    @property
    def when(self) -> datetime:
        """Its begin, in UTC."""
        return datetime.strptime(self.path.name[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)


def show_runs(folder: Path, console: Console) -> None:
    """All runs in a folder; settings are those that differ between runs of one name.

    Raises:
        RunError: there is no run.
    """
    runs = sorted(found_runs(folder), key=lambda run: run.path.name, reverse=True)
    if not runs:
        raise RunError(f"{folder}: no run there; it would be a job's folder of runs.")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    varied = _varied(runs)
    for run in runs:
        when = run.when.astimezone().strftime("%Y-%m-%d %H:%M")
        place = f"{run.path.relative_to(folder)}  {run.kind}, {run.status}"
        lines = [place, run.remarks, varied[run.path], headline_of(run)]
        table.add_row(when, Text("\n".join(filter(None, lines)), overflow="fold"))
    console.print(table)


def found_runs(folder: Path) -> Iterator[Ran]:
    """The runs in a folder; damaged ones have the status `damaged`."""
    for file_of_state in folder.glob(f"*/{_STAMP}/{STATE}"):
        path = file_of_state.parent
        if path.is_symlink():  # latest
            continue
        file = SEARCH if is_file(path / SEARCH) else JOB
        try:
            settings = flat(read_resolved(path, file))
            status, state = _status(Folder(path)), Folder(path).state()
        except AgrekdError:
            settings, status, state = {}, "damaged", State()
        kind = "search" if file == SEARCH else "study" if is_folder(path / POINTS) else "job"
        tags = (f"{name}={value}" for name, value in state.tags.items())
        yield Ran(path, kind, status, settings, " · ".join(filter(None, (state.note, *tags))))


def folder_of(run: Path, runs: Path) -> Path:
    """The folder of a run that is named by it, or by its id in MLflow.

    Args:
        run: the folder or id.
        runs: the folder of all runs.
    """
    if is_folder(run):
        return run
    ids = ((ran.path, Folder(ran.path).state().tracking_run) for ran in found_runs(runs))
    return next((path for path, known in ids if known == str(run)), run)


def headline_of(run: Ran) -> str:
    """What came out, in the sentence of its page, or why it failed; empty where nothing did."""
    try:
        if run.kind == "search":
            return read_search(run.path).result.verdict
        if run.kind == "study":
            return verdict(read_study(run.path))
        return headline(read_job(run.path).outcomes)
    except RunError:
        return Folder(run.path).state().reason or ""


def _status(folder: Folder) -> str:
    """Where the run stands; `killed` where it says that it is running and no process is at it."""
    status = folder.state().status
    if status != "running":
        return status
    try:
        with (folder.path / ".lock").open() as lock:
            if not locked(lock, wait=False, shared=True):  # nobody knows
                return status
    except BlockingIOError:
        return status
    except OSError:  # no process has begun with it
        pass
    return "killed"


def _varied(runs: list[Ran]) -> dict[Path, str]:
    """By folder: the settings that differ between runs of one name, in words."""
    named: dict[Path, list[Ran]] = defaultdict(list)
    for run in runs:
        named[run.path.parent].append(run)
    words = {}
    for several in named.values():
        every = {key for run in several for key in run.settings}
        varied = [
            key
            for key in sorted(every)
            if len({str(run.settings.get(key)) for run in several if run.settings}) > 1
        ]
        names = short_paths(varied)
        for run in several:
            shown = [
                f"{names[key]}={setting_text(run.settings[key])}"
                for key in varied
                if key in run.settings
            ]
            more = f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
            words[run.path] = ", ".join(shown[:_SHOWN]) + more
    return words
