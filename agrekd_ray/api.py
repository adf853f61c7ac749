"""The door from Python: jobs and searches as calls, and what they leave as tables and students.

Nothing is printed unless asked for. Errors are `agrekd_ray.errors.AgrekdError`, in the words of the
command line.
"""

from __future__ import annotations

import html
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from rich.console import Console

from agrekd_ray.config import load_job
from agrekd_ray.config.points import points_of
from agrekd_ray.config.search import load_search
from agrekd_ray.config.sweep import Setting
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.study import POINTS
from agrekd_ray.files import is_folder, real
from agrekd_ray.report.archive import read_job, read_search, read_study
from agrekd_ray.report.page import write_report
from agrekd_ray.results import EnsembleCheck, StudentResult
from agrekd_ray.results.frame import epochs, frame, last_weights
from agrekd_ray.results.search import SearchResult
from agrekd_ray.search.folder import SearchFolder
from agrekd_ray.terminal import screen
from agrekd_ray.trained import TrainedStudent, open_student

# Of tqdm, which comes with other packages and is not used here, in a notebook without widgets.
warnings.filterwarnings("ignore", "IProgress not found")


@dataclass(frozen=True, repr=False)
class Run:
    """A finished job or study, read from its folder.

    Attributes:
        path: the folder.
        outcomes: every method × seed, by label of its point; a job has one, without a name.
    """

    path: Path
    outcomes: Mapping[tuple[str, int | None], Sequence[StudentResult]]

    @cached_property
    def table(self) -> pd.DataFrame:
        """Everything measured, tidy: a row a point, method, seed, split, metric and group."""
        parts = [frame(outcomes, *place) for place, outcomes in self.outcomes.items()]
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """The training of every student, tidy: a row a method, seed, epoch, metric and group."""
        return epochs(outcome for outcomes in self.outcomes.values() for outcome in outcomes)

    @property
    def weights(self) -> pd.DataFrame:
        """Who taught whom: mean weight of each teacher in the last epoch, by method and group."""
        return last_weights(self.epochs)

    @cached_property
    def ensembles(self) -> Mapping[str, EnsembleCheck]:
        """What was found out about each point's teachers before the first student, by its label.

        A job has one, without a name; of what has no teachers there is none.
        """
        labels = dict.fromkeys(label for label, _ in self.outcomes)
        found = {label: read_job(self._place(label)).diagnostics.ensemble for label in labels}
        return {label: check for label, check in found.items() if check is not None}

    @property
    def warnings(self) -> list[str]:
        """What the teachers are warned of, the same thing once."""
        every = self.ensembles.values()
        return [*dict.fromkeys(warning for check in every for warning in check.warnings)]

    @property
    def plots(self) -> dict[str, Path]:
        """The pictures that it drew, by name."""
        return {path.stem: path for path in sorted((self.path / "plots").glob("*.png"))}

    def plot(self, name: str) -> Image.Image:
        """A picture that it drew, which a notebook shows.

        Args:
            name: its name, or how that begins: `worst_group`.

        Raises:
            KeyError: there is none; names those that there are.
        """
        for known, path in self.plots.items():
            if known.startswith(name):
                return Image.open(path)
        raise KeyError(f"no picture {name}; there are: {', '.join(self.plots)}")

    def summary(self, metric: str = "worst_group_accuracy", split: str = "test") -> pd.DataFrame:
        """Mean, standard deviation and number of seeds by method, and by point of a study.

        Args:
            metric: its name in `table`.
            split: `test`, or the selection half of validation, `val`.
        """
        rows = self.table[(self.table.metric == metric) & (self.table.split == split)]
        rows = rows[rows.group == ""]
        by = [*(["point", "draw"] if len(self.outcomes) > 1 else []), "method"]
        return rows.groupby(by, sort=False, dropna=False).value.agg(["mean", "std", "count"])

    def student(self, method: str, seed: int = 0, point: str = "") -> TrainedStudent:
        """A trained student.

        Args:
            method: its name in the job, like `agre_kd`.
            seed: the student's.
            point: the label of a study's point.

        Raises:
            KeyError: there is none; names those that there are.
        """
        students = {
            (outcome.method, outcome.seed, label): self._place(label) / outcome.checkpoint
            for (label, _), outcomes in self.outcomes.items()
            for outcome in outcomes
            if outcome.checkpoint is not None
        }
        if (method, seed, point) not in students:
            known = ", ".join(f"{one} {number} {label}".strip() for one, number, label in students)
            raise KeyError(f"no student {method} {seed} {point}".strip() + f"; there are: {known}")
        return open_student(students[method, seed, point])

    def report(self, output: str | Path | None = None) -> Path:
        """Writes one HTML page with all that is known of it; `report.html` in its folder."""
        return write_report(self.path, None if output is None else Path(output))

    def _place(self, label: str) -> Path:
        if not label:
            return self.path
        return self.path / POINTS / Setting(label).folder

    def __repr__(self) -> str:
        methods = {outcome.method for each in self.outcomes.values() for outcome in each}
        return f"Run({str(self.path)!r}, {', '.join(sorted(methods))})"

    def _repr_html_(self) -> str:
        return str(self.summary().to_html())


@dataclass(frozen=True, repr=False)
class Search:
    """A search, read from its folder.

    Attributes:
        path: the folder.
        result: what came out.
    """

    path: Path
    result: SearchResult

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row a trial: its setting, state, epochs, scores by selection rule."""
        rule = self.result.select
        rows = [
            {
                "trial": trial.name,
                "state": trial.state,
                **trial.setting,
                "epochs": len(trial.history),
                rule: trial.score(rule),
                "test": trial.test.worst_group_accuracy if trial.test else None,
            }
            for trial in self.result.trials
        ]
        return pd.DataFrame(rows)

    @property
    def winner(self) -> dict[str, Any]:
        """The chosen setting, by dotted path; `strategy` is the weighting."""
        chosen = [trial for trial in self.result.trials if trial.number == self.result.winner]
        return dict(chosen[0].setting) if chosen else {}

    @property
    def table(self) -> pd.DataFrame:
        """The students trained at the end, `winner` and `default`, as `Run.table`."""
        return frame(self.result.final)

    @property
    def verdict(self) -> str:
        """Whether the winner is better than the base job's setting, with its interval."""
        return self.result.verdict

    def report(self, output: str | Path | None = None) -> Path:
        """Writes one HTML page with all that is known of it; `report.html` in its folder."""
        return write_report(self.path, None if output is None else Path(output))

    def __repr__(self) -> str:
        return f"Search({str(self.path)!r}, {len(self.result.trials)} trials)"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.verdict)}</p>{self.trials.to_html()}"


def run(
    job: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    verbose: bool = False,
    tags: Mapping[str, str] | None = None,
    note: str = "",
) -> Run:
    """Trains the pool of teachers and every method with every seed: `agrekd run`.

    Args:
        job: the YAML file.
        overrides: values by dotted key: `{"data.aligned": 0.95, "seeds": [0, 1]}`.
        verbose: whether progress and table are shown.
        tags: of the run and its students in MLflow, by name.
        note: what the run is for.

    Raises:
        AgrekdError: the job is not valid, or the run cannot go on; `resume` goes on.
    """
    pairs = _as_text(overrides)
    folder = RunFolder.create(load_job(Path(job), pairs))
    folder.remark(pairs, tags or {}, note)
    return _run(folder, verbose)


def tune(
    space: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    verbose: bool = False,
    tags: Mapping[str, str] | None = None,
    note: str = "",
) -> Search:
    """Searches settings of a job: `agrekd tune`; arguments and errors as for `run`."""
    pairs = _as_text(overrides)
    folder = SearchFolder.create(load_search(Path(space), pairs))
    folder.remark(pairs, tags or {}, note)
    return _search(folder, verbose)


def resume(
    folder: str | Path, overrides: Mapping[str, Any] | None = None, *, verbose: bool = False
) -> Run | Search:
    """Goes on with a job, study or search that was stopped: `agrekd resume`.

    Args:
        folder: of the run, like `runs/JOB/latest`.
        overrides: values by dotted key, of what only places its work; any, where it has made
            nothing.
        verbose: whether progress and table are shown.
    """
    place, changes = Path(folder), _as_text(overrides)
    if SearchFolder.holds(place):
        return _search(SearchFolder.open(place, changes), verbose)
    return _run(RunFolder.open(place, changes), verbose)


def record(
    job: str | Path, overrides: Mapping[str, Any] | None = None, *, verbose: bool = False
) -> None:
    """Records what a job's teachers say, in one pass: `agrekd record`; arguments as for `run`."""
    from agrekd_ray.experiment.recording import record_job

    for _, point in points_of(load_job(Path(job), _as_text(overrides))):
        record_job(point, _console(verbose))


def load(folder: str | Path) -> Run | Search:
    """A finished job or study, or a search.

    Args:
        folder: of the run, like `runs/JOB/latest`.

    Raises:
        RunError: there are no results, or they are damaged.
    """
    path = real(Path(folder))
    if SearchFolder.holds(path):
        return Search(path, read_search(path).result)
    if is_folder(path / POINTS):
        points = read_study(path).points
        return Run(path, {(point.label, point.draw): point.outcomes for point in points})
    if not is_folder(path):
        raise RunError(f"{path}: no run there. Name the folder of a run, like runs/JOB/latest.")
    return Run(path, {("", None): read_job(path).outcomes})


def compare(
    ids: Sequence[str] = (),
    *,
    experiments: Sequence[str] = (),
    filter: str | None = None,
    uri: str | None = None,
    runs: str | Path = "runs",
) -> pd.DataFrame:
    """Runs out of MLflow: a row a setting and metric, with mean and deviation over its seeds.

    Args:
        ids: run ids; a job's or a search's stands for its students and trials. All runs without.
        experiments: names of experiments to look in; all without.
        filter: in MLflow's search language.
        uri: tracking URI; None for `mlflow.db` in `runs`.
        runs: the folder of the runs.

    Raises:
        TrackingError: there is no store, or nothing in it that was asked for.
    """
    from agrekd_ray.commands.compare import compare as compared

    rows = compared(
        _console(False),
        ids=ids,
        experiments=experiments,
        filter=filter,
        uri=uri,
        runs=Path(runs),
    )
    return pd.DataFrame(
        {
            "name": row.label,
            "metric": name,
            "mean": figure.mean,
            "sd": figure.sd,
            "count": figure.count,
        }
        for row in rows
        for name, figure in row.figures.items()
    )


def _run(folder: RunFolder, verbose: bool) -> Run:
    if folder.job.is_study:
        from agrekd_ray.experiment.study import run_study

        run_study(folder, _console(verbose))
    else:
        from agrekd_ray.experiment.job import run_job

        run_job(folder, _console(verbose))
    found = load(folder.path)
    assert isinstance(found, Run)
    return found


def _search(folder: SearchFolder, verbose: bool) -> Search:
    from agrekd_ray.cluster.environment import prepare

    prepare(starts_cluster=folder.planned.base.ray.address is None)
    from agrekd_ray.search.driver import run_search  # imports Ray, which reads the environment

    return Search(folder.path, run_search(folder, _console(verbose)))


def _console(verbose: bool) -> Console:
    return screen(quiet=not verbose)


def _as_text(overrides: Mapping[str, Any] | None) -> list[str]:
    """Overrides as the command line has them; JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items()]
