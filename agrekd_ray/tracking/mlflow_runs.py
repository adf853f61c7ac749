"""A job's runs in MLflow: one parent, one child a student, written by the driver alone.

Everything goes through `MlflowClient`: no run is ever "active", no global tracking URI is set,
so other threads of the process may use MLflow for themselves.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException

from agrekd_ray.errors import TrackingError
from agrekd_ray.results import Epoch, Metrics, StudentResult
from agrekd_ray.results.arrays import ARRAYS
from agrekd_ray.results.metrics import CLASS, GROUP
from agrekd_ray.tracking.mlflow_experiment import METRICS_A_BATCH, Experiment
from agrekd_ray.tracking.mlflow_export import export
from agrekd_ray.tracking.mlflow_values import (
    distinct_names,
    end_times,
    ends_metrics,
    epoch_metrics,
    milliseconds,
    split_metrics,
)
from agrekd_ray.tracking.tracker import (
    DEGRADED,
    FAILED,
    FINISHED,
    NOTE,
    PARENT,
    REASON,
    WORLD,
    Tracker,
)

ROLE, METHOD, SEED, TRIAL = "agrekd.role", "agrekd.method", "agrekd.seed", "agrekd.trial"
"""Tags by which runs are found again and compared, with `PARENT`."""
_CHECKPOINT, _TEACHERS = "agrekd.checkpoint", "agrekd.teachers"
_REPORTS = {".png", ".pdf", ".svg", ".json", ".csv", ".yaml", ".yml", ".md", ".npz"}


class MlflowTracker(Tracker):
    """The store of one experiment, and the runs of one job in it; see `open_tracker`.

    Models and reports go to `mlartifacts` beside the runs, unless an MLflow server keeps them.
    """

    def __init__(self, uri: str | None, experiment: str, root: Path, *, wait: bool = True) -> None:
        thread = ThreadPoolExecutor(1, "mlflow")
        self._opening = thread.submit(Experiment, uri, experiment, root)
        thread.shutdown(wait=False)
        if wait:
            self._opening.result()
        self._job: str | None = None
        self._marks: dict[str, str] = {}
        self._world: dict[str, Any] = {}
        self._logged: dict[str, dict[int, int]] = {}  # by run: epochs and when they ended

    @property
    def _runs(self) -> Experiment:
        return self._opening.result()

    @property
    def _client(self) -> MlflowClient:
        return self._runs.client

    @property
    def uri(self) -> str:
        """The tracking URI in use, without its password."""
        return self._runs.uri

    @property
    def experiment_id(self) -> str:
        """MLflow's number of the experiment."""
        return self._runs.id

    def ui_command(self) -> str:
        """What a person types to see this store; for a server, the address of the experiment."""
        # Without the last part, a browser's first visit shows the pages made for prompts.
        runs = f"experiments/{self._runs.id}/runs?workflowType=machine_learning"
        if self._runs.served:
            return f"{self.uri.rstrip('/')}/#/{runs}"
        port = "http://127.0.0.1:5000"
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}, then {port}/#/{runs}"

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
        """Opens the parent run; the students and trials of this tracker become its children."""
        self._marks = dict(marks or {})
        self._world = {name: value for name, value in params.items() if name.startswith(WORLD)}
        with self._runs.explained("open the job's run"):
            run = self._runs.lookup(run_id) if run_id else None
            if run is None:
                self._job = self._runs.create(name, {ROLE: role})
                known = {}
            else:
                self._job = str(run.info.run_id)
                known = run.data.params
            opened(self._job)
            if run is not None and run.info.status != FINISHED:
                self._runs.reopen(run)
            self._runs.set_tags(self._job, {**tags, **self._marks})
            self._runs.add_params(self._job, params, known)
        return self._job

    def reopen(self, run_id: str) -> None:
        """A run of an earlier attempt, finished then, has more to do."""
        with self._runs.explained("open the job's run"):
            run = self._runs.lookup(run_id)
            if run is not None and run.info.status == FINISHED:
                self._runs.reopen(run)

    def student(self, method: str, seed: int, params: Mapping[str, Any]) -> str:
        """The run of one student under this job: found again on resume, made otherwise."""
        marks = {METHOD: method, SEED: str(seed)}
        params = {"method": method, "seed": seed, **params}
        return self._child("student", f"{method}-seed-{seed}", marks, params)

    def trial(self, name: str, number: int, params: Mapping[str, Any], seeds: Sequence[int]) -> str:
        """The run of one trial under this search; as `student`."""
        params = {**params, "seeds": list(seeds)}
        return self._child("trial", name, {TRIAL: str(number)}, params)

    def _child(
        self, role: str, name: str, marks: Mapping[str, str], params: Mapping[str, Any]
    ) -> str:
        """The child with these marks: found again, or made."""
        if self._job is None:
            raise TrackingError(f"A {role}'s run needs its parent's: call start_job first.")
        with self._runs.explained(f"open the run of {name}"):
            marks = {PARENT: self._job, **marks}
            # Quotes cannot be escaped in MLflow's filter: such a method is compared here.
            asked = {key: value for key, value in marks.items() if "'" not in value}
            found = [
                run
                for run in self._client.search_runs(
                    [self._runs.id],
                    " and ".join(f"tags.`{key}` = '{value}'" for key, value in asked.items()),
                )
                if all(run.data.tags.get(key) == value for key, value in marks.items())
            ]
            if found:
                run_id, known = str(found[0].info.run_id), found[0].data.params
                if found[0].info.status != FINISHED:
                    self._runs.reopen(found[0])
            else:
                run_id, known = self._runs.create(name, {ROLE: role, **marks}), {}
                self._runs.set_tags(run_id, self._marks)
                self._logged[run_id] = {}
            self._runs.add_params(run_id, {**params, **self._world}, known)
        return run_id

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Adds tags to a run, for instance that it is degraded; long values are cut."""
        with self._runs.explained("tag a run"):
            self._runs.set_tags(run_id, tags)

    def log_epochs(self, run_id: str, epochs: Sequence[Epoch]) -> None:
        """Writes finished epochs of one student, step = epoch; those already there are left out."""
        with self._runs.explained("log epochs"):
            if run_id not in self._logged:
                seen = self._client.get_metric_history(run_id, "train/loss")
                self._logged[run_id] = {metric.step: metric.timestamp for metric in seen}
            known = self._logged[run_id]
            fresh = [epoch for epoch in epochs if epoch.epoch not in known]
            ends = end_times([epoch.seconds for epoch in fresh], max(known.values(), default=0))
            batches: list[list[Metric]] = [[]]
            for epoch, end in zip(fresh, ends, strict=True):
                metrics = [
                    Metric(name, value, end, epoch.epoch)
                    for name, value in epoch_metrics(epoch).items()
                ]
                if len(batches[-1]) + len(metrics) > METRICS_A_BATCH:
                    batches.append([])
                batches[-1] += metrics
            del self._logged[run_id]  # to be read anew where a batch is not written whole
            for batch in batches:
                self._runs.log_metrics(run_id, batch)
            self._logged[run_id] = known
            known |= {epoch.epoch: end for epoch, end in zip(fresh, ends, strict=True)}

    def finish_student(self, run_id: str, outcome: StudentResult) -> None:
        """Writes what a student came to, and ends its run."""
        with self._runs.explained("finish a student"):
            values: dict[str, float] = {}
            for split, metrics in outcome.splits.items():
                if split != "val" or not outcome.history:
                    values |= split_metrics(split, metrics)
            if outcome.history:
                values["cost/steps"] = float(sum(epoch.steps for epoch in outcome.history))
            self._runs.log_final(run_id, values)
            self._log_ends(run_id, outcome)
            tags = {_TEACHERS: outcome.teachers}
            if outcome.checkpoint:
                tags[_CHECKPOINT] = outcome.checkpoint
            if outcome.degraded:
                tags[DEGRADED] = outcome.degraded
            self._runs.set_tags(run_id, tags)
            # The duration that MLflow shows is that of the training.
            self._runs.end(run_id, FINISHED, sum(epoch.seconds for epoch in outcome.history))

    def _log_ends(self, run_id: str, outcome: StudentResult) -> None:
        """Writes the worst and the best of very many groups, each at the end of its epoch."""
        if not (values := ends_metrics(outcome)):
            return
        there = self._client.get_run(run_id).data.metrics
        seen = self._client.get_metric_history(run_id, "train/loss")
        ended = {metric.step: metric.timestamp for metric in seen}
        metrics = [
            Metric(name, value, ended.get(epoch, milliseconds()), epoch)
            for name, value, epoch in values
            if name not in there
        ]
        self._runs.log_metrics(run_id, metrics)

    def log_final(self, run_id: str, values: Mapping[str, float]) -> None:
        """Writes figures that a run has one of, under names that MLflow takes."""
        with self._runs.explained("log results"):
            names = distinct_names(values)
            self._runs.log_final(run_id, {names[name]: value for name, value in values.items()})

    def log_test(self, run_id: str, metrics: Metrics) -> None:
        """Writes test metrics that were measured after a run was over."""
        with self._runs.explained("log test results"):
            self._runs.log_final(run_id, split_metrics("test", metrics))

    def end(self, run_id: str, status: str, tags: Mapping[str, str]) -> None:
        """Ends one run, and tags it."""
        with self._runs.explained("end a run"):
            self._runs.set_tags(run_id, tags)
            self._runs.end(run_id, status)

    def register(
        self, model_id: str, run_id: str, name: str, alias: str | None, description: str = ""
    ) -> str:
        """Puts a model into the registry: `models:/NAME@ALIAS` loads it from now on."""
        with self._runs.explained("register a model"):
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            for version in self._client.search_model_versions(f"name = '{name}'"):
                if version.run_id == run_id:
                    break
            else:
                source = self._client.get_logged_model(model_id).artifact_location
                version = self._client.create_model_version(name, source, run_id, model_id=model_id)
            if description:
                self._client.update_model_version(name, version.version, description)
            if alias:
                self._client.set_registered_model_alias(name, alias, version.version)
        return str(version.version)

    def log_model(
        self, run_id: str, model: torch.nn.Module, example: np.ndarray, classes: Sequence[str]
    ) -> str:
        """Stores a student as an MLflow model that anybody can load, without this package.

        The model is exported (`pt2`: a traced graph, so loading runs no foreign code) in evaluation
        mode; `mlflow.pyfunc.load_model(f"models:/{id}")` loads it. The first export of a process
        costs about four seconds of imports, each further one of a small network a quarter.
        """
        with self._runs.explained("log a model"):
            run = self._client.get_run(run_id)
            for output in run.outputs.model_outputs:
                earlier = self._client.get_logged_model(output.model_id)
                if earlier.status == LoggedModelStatus.READY:
                    return str(earlier.model_id)
            logged = self._client.create_logged_model(
                experiment_id=run.info.experiment_id,
                name=re.sub(r"[/:.%\"']", "_", run.info.run_name),
                source_run_id=run_id,
                params=run.data.params,
                tags={k: v for k, v in run.data.tags.items() if k.startswith("agrekd.")},
            )
            status = LoggedModelStatus.FAILED
            try:
                with tempfile.TemporaryDirectory(prefix="agrekd-model-") as folder:
                    export(model, example, classes, logged, run_id, Path(folder, "model"))
                    self._client.log_model_artifacts(logged.model_id, str(Path(folder, "model")))
                status = LoggedModelStatus.READY
            finally:
                self._client.finalize_logged_model(logged.model_id, status)
            self._link(run, logged.model_id)
        return str(logged.model_id)

    def finish_job(
        self,
        run_id: str,
        folder: Path,
        metrics: Mapping[str, float],
        description: str = "",
    ) -> None:
        """Puts reports and the summary on the parent run, and ends it."""
        with self._runs.explained("finish the job's run"):
            names = distinct_names(metrics)
            self._runs.log_final(run_id, {names[name]: value for name, value in metrics.items()})
            if description:
                self._runs.set_tags(run_id, {NOTE: description})
            for place, inside in ((folder, None), (folder / "plots", "plots")):
                for file in sorted(place.glob("*")):
                    if file.is_file() and file.suffix in _REPORTS and file.name[0] != ".":
                        self._client.log_artifact(run_id, str(file), inside)
            for file in sorted(folder.glob(f"students/*/{ARRAYS}")):  # which results.json names
                self._client.log_artifact(run_id, str(file), f"students/{file.parent.name}")
            self._runs.end(run_id, FINISHED)

    def fail(self, run_id: str, reason: str, status: str = FAILED) -> None:
        """Ends a run that did not come to its end, and its children that are still running."""
        with self._runs.explained("end a run"):
            running = self._client.search_runs(
                [self._runs.id], f"tags.`{PARENT}` = '{run_id}' and status = 'RUNNING'"
            )
            for ended in (*(run.info.run_id for run in running), run_id):
                self._runs.set_tags(ended, {REASON: reason})
                self._runs.end(ended, status)

    def _link(self, run: Any, model_id: str) -> None:
        """Shows the model under its run, and the run's test metrics beside the model."""
        run_id = run.info.run_id
        metrics = []
        for name in run.data.metrics:
            if name.startswith("test/") and not name.startswith((f"test/{GROUP}", f"test/{CLASS}")):
                last = self._client.get_metric_history(run_id, name)[-1]
                # Equal in all else to the run's own point, so that the run does not get another.
                metrics.append(
                    Metric(name, last.value, last.timestamp, last.step, model_id=model_id)
                )
        self._client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
        self._runs.log_metrics(run_id, metrics)
