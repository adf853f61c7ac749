"""What the drivers tell of a run to whatever keeps track of it.

MLflow is the one implementation (`mlflow_runs.MlflowTracker`). Another is a class with these
methods, in a file of its own, and a line in `open_tracker`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agrekd_ray.results import Epoch, Metrics, StudentResult

if TYPE_CHECKING:
    import numpy as np
    import torch

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
"""How a run can end; KILLED is for what was interrupted."""
PARENT = "mlflow.parentRunId"
"""Tag of the run that a run is below."""
NOTE = "mlflow.note.content"
"""Tag: the description of a run."""
WORLD = ("data.", "teachers.", "ensemble.")
"""How the parameters begin that all students of a job share."""
STATE, SEARCHED = "agrekd.state", "agrekd.searched"
"""Tags of a trial: its state, and what the search varies."""
REASON, DEGRADED = "agrekd.reason", "agrekd.degraded"
"""Tags: why a run ended early; which teachers it lost on the way, and when."""
WARNINGS = "agrekd.warnings"
"""Tag: what its ensemble is warned of, a line each."""


class Tracker(Protocol):
    """Keeps track of the runs of one job, study or search. Every method raises `TrackingError`."""

    def ui_command(self) -> str:
        """What a person types, or opens, to see the runs."""

    def start_job(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None = None,
        role: str = "job",
        marks: Mapping[str, str] | None = None,
        opened: Callable[[str], None] = lambda run_id: None,
    ) -> str:
        """Opens the parent run; the students and trials of this tracker become its children.

        The children have its parameters of data, teachers and ensemble (`WORLD`), too.

        Args:
            name: what people call the job.
            params: flat, with dotted keys. One that had another value when the job was first
                started keeps it; the new one stands in a tag.
            tags: more about the job.
            run_id: the run of an earlier attempt, which goes on; a finished one stays finished
                until `reopen`. A new one is made where it is not there any more.
            role: `job`, `study` or `search`.
            marks: further tags of it and of its children: the user's own.
            opened: hears the run's id as soon as there is one, so that it can be ended.
        """

    def reopen(self, run_id: str) -> None:
        """A run of an earlier attempt, finished then, has more to do."""

    def student(self, method: str, seed: int, params: Mapping[str, Any]) -> str:
        """The run of one student under this job: found again on resume, made otherwise.

        One that had failed or was interrupted is running again; a finished one stays finished.
        To the parameters, `method` and `seed` are added, to group and compare by.

        Raises:
            TrackingError: also without `start_job`.
        """

    def trial(self, name: str, number: int, params: Mapping[str, Any], seeds: Sequence[int]) -> str:
        """The run of one trial, the means over the seeds of its students; as `student`."""

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Adds tags to a run, for instance that it is degraded; long values are cut."""

    def log_epochs(self, run_id: str, epochs: Sequence[Epoch]) -> None:
        """Writes finished epochs, step = epoch, in order; those already there are left out."""

    def finish_student(self, run_id: str, outcome: StudentResult) -> None:
        """Writes what a student came to, and ends its run.

        Its `test` metrics are written, and the others where no epoch wrote them.
        """

    def log_final(self, run_id: str, values: Mapping[str, float]) -> None:
        """Writes figures that a run has one of, under names that the store takes."""

    def log_test(self, run_id: str, metrics: Metrics) -> None:
        """Writes test metrics that were measured after a run was over."""

    def end(self, run_id: str, status: str, tags: Mapping[str, str]) -> None:
        """Ends one run as `FINISHED`, `FAILED` or `KILLED`, with tags that say more."""

    def log_model(
        self, run_id: str, model: torch.nn.Module, example: np.ndarray, classes: Sequence[str]
    ) -> str:
        """Stores a student as a model that anybody can load, without this package.

        It maps [-1, ...] as in the example to logits [-1, C], float32. The student's test metrics
        are shown with it, so call `finish_student` first. A run that has a model keeps that one.

        Args:
            run_id: of the student.
            model: the student; not changed.
            example: a few inputs [B, ...]; two are kept, unless they are very large.
            classes: names of the C classes, kept in the model's metadata.

        Returns:
            The model's id.

        Raises:
            TrackingError: also where the model cannot be exported; the run stays as it is.
        """

    def register(
        self, model_id: str, run_id: str, name: str, alias: str | None, description: str = ""
    ) -> str:
        """Puts a logged model into the registry of models, under an alias that moves to it.

        The registered model is made where it is missing. The description is the version's, whose
        number is returned.
        """

    def finish_job(
        self,
        run_id: str,
        folder: Path,
        metrics: Mapping[str, float],
        description: str = "",
    ) -> None:
        """Puts reports and the summary on the parent run, and ends it.

        Args:
            run_id: of the job.
            folder: where the job's reports are. Its PNG, JSON, CSV, YAML and Markdown files, and
                those of its folder `plots`, are kept with the run, and the array files of very many
                groups, its students' too; deeper ones are not.
            metrics: the summary, as `report.job.summary_metrics` makes it.
            description: Markdown that the run's page begins with; see `report.job.description`.
        """

    def fail(self, run_id: str, reason: str, status: str = FAILED) -> None:
        """Ends a run that did not come to its end, and its children that run still."""


def open_tracker(uri: str | None, experiment: str, root: Path) -> Tracker:
    """The tracker of an address, which is opened in a thread: a new store takes seconds.

    The first method that is called waits for it, and raises `TrackingError` where the store cannot
    be created or reached.

    Args:
        uri: any MLflow tracking URI; None for the file `mlflow.db` in `root`.
        experiment: name of the experiment, created where it is missing.
        root: the folder of the runs.
    """
    from agrekd_ray.tracking.mlflow_runs import MlflowTracker  # MLflow takes a second

    return MlflowTracker(uri, experiment, root, wait=False)
