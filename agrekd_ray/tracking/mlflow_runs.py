"""A job's runs in MLflow: one parent, one child a student, written by the driver alone.

Everything goes through `MlflowClient`: no run is ever "active", no global tracking URI is set,
so other threads of the process may use MLflow for themselves.
"""

from __future__ import annotations

import getpass
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from agrekd_ray.errors import TrackingError
from agrekd_ray.passwords import hidden, revealed
from agrekd_ray.results import Epoch, Metrics, Outcome
from agrekd_ray.tracking.metrics import CLASS, GROUP
from agrekd_ray.tracking.mlflow_export import export
from agrekd_ray.tracking.mlflow_store import (
    check_store,
    explained,
    is_database,
    unless_set,
)
from agrekd_ray.tracking.mlflow_values import (
    as_text,
    distinct_names,
    end_times,
    epoch_metrics,
    milliseconds,
    shortened,
    split_metrics,
)

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
"""How a run can end; KILLED is for what was interrupted."""

# Ending a run on a server prints two lines of addresses for each run.
_QUIET = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
# An experiment of models rather than of prompts, and what its charts begin with.
_VIEW = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "test/worst_group_accuracy",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
}
PARENT = "mlflow.parentRunId"
"""Tags by which runs are found again and compared."""
ROLE, METHOD, SEED = "agrekd.role", "agrekd.method", "agrekd.seed"
_REASON, CHANGED, _CHECKPOINT = "agrekd.reason", "agrekd.changed_params", "agrekd.checkpoint"
DEGRADED = "agrekd.degraded"
"""Tag of runs that lost teachers on the way, with when."""
_TEACHERS, TRIAL = "agrekd.teachers", "agrekd.trial"
_LONGEST_PARAM, _LONGEST_TAG = 6000, 8000
_PARAMS_A_BATCH, _METRICS_A_BATCH = 100, 1000
_REPORTS = {".png", ".json", ".csv", ".yaml", ".yml", ".md"}


class Tracker:
    """The store of one experiment, and the runs of one job in it.

    Attributes:
        uri: the tracking URI in use, without its password.
        experiment_id: MLflow's number of the experiment.

    Args:
        uri: any MLflow tracking URI; None for the file `mlflow.db` in `root`.
        experiment: name of the experiment, created where it is missing.
        root: the folder of the runs. Models and reports go to its `mlartifacts`, unless an
            MLflow server keeps them.

    Raises:
        TrackingError: the store cannot be created or reached. Every method raises it too.
    """

    def __init__(self, uri: str | None, experiment: str, root: Path) -> None:
        root = Path(root).absolute()
        self.uri = hidden(uri) if uri else f"sqlite:///{root / 'mlflow.db'}"
        self._job: str | None = None
        self._logged: dict[str, dict[int, int]] = {}  # by run: epochs and when they ended
        # Anything: drivers of databases and plug-ins have exceptions of their own.
        with self._explained("open the store", Exception):
            check_store(self.uri)
            self._client = MlflowClient(tracking_uri=revealed(self.uri))
            location = None if self._served else str(root / "mlartifacts")
            self.experiment_id = self._find_experiment(experiment, location)

    def ui_command(self) -> str:
        """What a person types to see this store; for a server, the address of the experiment."""
        if self._served:
            address = self.uri.rstrip("/")
            # Without the last part, a browser's first visit shows the pages made for prompts.
            runs = f"experiments/{self.experiment_id}/runs?workflowType=machine_learning"
            return f"{address}/#/{runs}"
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}"

    def start_job(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None = None,
        role: str = "job",
    ) -> str:
        """Opens the parent run; the students and trials of this tracker become its children.

        Args:
            name: what people call the job.
            params: flat, with dotted keys. What MLflow does not take is cut or spelt otherwise.
                A parameter that had another value when the job was first started keeps it; the
                new one stands in the tag `agrekd.changed_params`.
            tags: more about the job.
            run_id: the run of an earlier attempt, which goes on. A new one is made where it is
                not in this experiment any more.
            role: `job`, `study` or `search`.

        Returns:
            The run's id.
        """
        with self._explained("open the job's run"):
            run = self._lookup(run_id) if run_id else None
            if run is None:
                self._job = self._create(name, {ROLE: role})
                known = {}
            else:
                self._job = str(run.info.run_id)
                known = run.data.params
                self._reopen(run)
            self._set_tags(self._job, tags)
            self._add_params(self._job, params, known)
        return self._job

    def student(self, method: str, seed: int, params: Mapping[str, Any]) -> str:
        """The run of one student under this job: found again on resume, made otherwise.

        Args:
            method: name of the method.
            seed: the student's seed.
            params: as for `start_job`; `method` and `seed` are added, to group and compare by.

        Returns:
            The run's id. A run that had failed or was interrupted is running again; a finished
            one stays finished.

        Raises:
            TrackingError: also without `start_job`.
        """
        marks = {METHOD: method, SEED: str(seed)}
        params = {"method": method, "seed": seed, **params}
        return self._child("student", f"{method}-seed-{seed}", marks, params)

    def trial(self, name: str, number: int, params: Mapping[str, Any], seeds: Sequence[int]) -> str:
        """The run of one trial under this search; as `student`.

        Args:
            name: of the run.
            number: of the trial.
            params: as for `student`.
            seeds: of the trial's students, whose means are logged.

        Raises:
            TrackingError: also without `start_job`.
        """
        params = {**params, "seeds": list(seeds)}
        return self._child("trial", name, {TRIAL: str(number)}, params)

    def _child(
        self, role: str, name: str, marks: Mapping[str, str], params: Mapping[str, Any]
    ) -> str:
        """The child with these marks: found again, or made."""
        if self._job is None:
            raise TrackingError(f"A {role}'s run needs its parent's: call start_job first.")
        with self._explained(f"open the run of {name}"):
            marks = {PARENT: self._job, **marks}
            # Quotes cannot be escaped in MLflow's filter: such a method is compared here.
            asked = {key: value for key, value in marks.items() if "'" not in value}
            found = [
                run
                for run in self._client.search_runs(
                    [self.experiment_id],
                    " and ".join(f"tags.`{key}` = '{value}'" for key, value in asked.items()),
                )
                if all(run.data.tags.get(key) == value for key, value in marks.items())
            ]
            if found:
                run_id, known = str(found[0].info.run_id), found[0].data.params
                if found[0].info.status != FINISHED:
                    self._reopen(found[0])
            else:
                run_id, known = self._create(name, {ROLE: role, **marks}), {}
                self._logged[run_id] = {}
            self._add_params(run_id, params, known)
        return run_id

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Adds tags to a run, for instance that it is degraded; long values are cut."""
        with self._explained("tag a run"):
            self._set_tags(run_id, tags)

    def log_epochs(self, run_id: str, epochs: Sequence[Epoch]) -> None:
        """Writes finished epochs of one student, step = epoch; those already there are left out.

        Args:
            run_id: of the student.
            epochs: in order.
        """
        with self._explained("log epochs"):
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
                if len(batches[-1]) + len(metrics) > _METRICS_A_BATCH:
                    batches.append([])
                batches[-1] += metrics
            del self._logged[run_id]  # to be read anew where a batch is not written whole
            for batch in batches:
                self._log_metrics(run_id, batch)
            self._logged[run_id] = known
            known |= {epoch.epoch: end for epoch, end in zip(fresh, ends, strict=True)}

    def finish_student(self, run_id: str, outcome: Outcome) -> None:
        """Writes what a student came to, and ends its run.

        Args:
            run_id: of the student.
            outcome: its `test` metrics are written, and the others where no epoch wrote them.
        """
        with self._explained("finish a student"):
            values: dict[str, float] = {}
            for split, metrics in outcome.splits.items():
                if split != "val" or not outcome.history:
                    values |= split_metrics(split, metrics)
            if outcome.history:
                values["cost/steps"] = float(sum(epoch.steps for epoch in outcome.history))
            self._log_final(run_id, values)
            tags = {_TEACHERS: outcome.teachers}
            if outcome.checkpoint:
                tags[_CHECKPOINT] = outcome.checkpoint
            if outcome.degraded:
                tags[DEGRADED] = outcome.degraded
            self._set_tags(run_id, tags)
            self._end(run_id, FINISHED)

    def log_final(self, run_id: str, values: Mapping[str, float]) -> None:
        """Writes figures that a run has one of, under names that MLflow takes."""
        with self._explained("log results"):
            names = distinct_names(values)
            self._log_final(run_id, {names[name]: value for name, value in values.items()})

    def log_test(self, run_id: str, metrics: Metrics) -> None:
        """Writes test metrics that were measured after a run was over."""
        with self._explained("log test results"):
            self._log_final(run_id, split_metrics("test", metrics))

    def end(self, run_id: str, status: str, tags: Mapping[str, str]) -> None:
        """Ends one run, and tags it.

        Args:
            run_id: of a trial.
            status: `FINISHED`, `FAILED` or `KILLED`.
            tags: more about how it ended.
        """
        with self._explained("end a run"):
            self._set_tags(run_id, tags)
            self._end(run_id, status)

    def register(self, model_id: str, run_id: str, name: str, alias: str) -> str:
        """Puts a logged model into the model registry, under an alias that moves to it.

        Args:
            model_id: as `log_model` returned it.
            run_id: of its student.
            name: of the registered model, made where it is missing.
            alias: `models:/NAME@ALIAS` loads it from now on.

        Returns:
            The version's number.
        """
        with self._explained("register a model"):
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
            self._client.set_registered_model_alias(name, alias, version.version)
        return str(version.version)

    def log_model(
        self, run_id: str, model: torch.nn.Module, example: np.ndarray, classes: Sequence[str]
    ) -> str:
        """Stores a student as an MLflow model that anybody can load, without this package.

        The model is exported (`pt2`: a traced graph, so loading runs no foreign code) in
        evaluation mode. It maps [-1, ...] as in the example to logits [-1, C], float32. The
        student's test metrics are shown with it, so call `finish_student` first. A run that has
        a model keeps that one.

        The first export of a process costs about four seconds of imports, each further one of a
        small network a quarter of a second.

        Args:
            run_id: of the student.
            model: the student; not changed.
            example: a few inputs [B, ...]; two are kept, unless they are very large.
            classes: names of the C classes, kept in the model's metadata.

        Returns:
            The model's id: `mlflow.pyfunc.load_model(f"models:/{id}")`.

        Raises:
            TrackingError: also where the model cannot be exported; the run stays as it is.
        """
        with self._explained("log a model"):
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
        status: str,
        metrics: Mapping[str, float],
        description: str = "",
    ) -> None:
        """Puts reports and the summary on the parent run, and ends it.

        Args:
            run_id: of the job.
            folder: where the job's reports are. Its PNG, JSON, CSV, YAML and Markdown files, and
                those of its folder `plots`, become artifacts; deeper ones do not.
            status: `FINISHED`, `FAILED` or `KILLED`.
            metrics: the summary, as `tables.summary_metrics` makes it.
            description: Markdown that the run's page begins with; see `tables.markdown`.
        """
        with self._explained("finish the job's run"):
            names = distinct_names(metrics)
            self._log_final(run_id, {names[name]: value for name, value in metrics.items()})
            if description:
                self._set_tags(run_id, {"mlflow.note.content": description})
            for place, inside in ((folder, None), (folder / "plots", "plots")):
                for file in sorted(place.glob("*")):
                    if file.is_file() and file.suffix in _REPORTS and file.name[0] != ".":
                        self._client.log_artifact(run_id, str(file), inside)
            self._end(run_id, status)

    def fail(self, run_id: str, reason: str, status: str = FAILED) -> None:
        """Ends a run that did not come to its end, and its children that are still running.

        Args:
            run_id: of the job or of a student.
            reason: for people; becomes the tag `agrekd.reason`.
            status: `FAILED`, or `KILLED` for what was interrupted.
        """
        with self._explained("end a run"):
            running = self._client.search_runs(
                [self.experiment_id], f"tags.`{PARENT}` = '{run_id}' and status = 'RUNNING'"
            )
            for ended in (*(run.info.run_id for run in running), run_id):
                self._set_tags(ended, {_REASON: reason})
                self._end(ended, status)

    @property
    def _served(self) -> bool:
        return not is_database(self.uri)

    def _find_experiment(self, name: str, location: str | None) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(name, location, _VIEW))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self._client.get_experiment_by_name(name)
        if experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"The MLflow experiment {name!r} was deleted. Choose another name, or take it "
                f"back: MLFLOW_TRACKING_URI={shlex.quote(self.uri)} "
                f"mlflow experiments restore -x {experiment.experiment_id}"
            )
        return str(experiment.experiment_id)

    def _lookup(self, run_id: str) -> Any | None:
        """The run, or None where this experiment does not have it (any more)."""
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        here = run.info.experiment_id == self.experiment_id
        return run if here and run.info.lifecycle_stage == "active" else None

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        marks = {
            "mlflow.user": _user(),
            "mlflow.source.name": Path(sys.argv[0]).name or "python",
            "mlflow.source.type": "LOCAL",
            **tags,
        }
        run = self._client.create_run(self.experiment_id, run_name=name, tags=marks)
        return str(run.info.run_id)

    def _reopen(self, run: Any) -> None:
        self._client.update_run(run.info.run_id, status="RUNNING")
        if _REASON in run.data.tags:
            self._client.delete_tag(run.info.run_id, _REASON)

    def _end(self, run_id: str, status: str) -> None:
        with unless_set(_QUIET):
            self._client.set_terminated(run_id, status)

    def _add_params(self, run_id: str, params: Mapping[str, Any], known: Mapping[str, str]) -> None:
        names = distinct_names(params)
        texts = {
            names[key]: shortened(as_text(value), _LONGEST_PARAM) for key, value in params.items()
        }
        fresh = [Param(name, text) for name, text in texts.items() if name not in known]
        for start in range(0, len(fresh), _PARAMS_A_BATCH):
            self._client.log_batch(run_id, params=fresh[start : start + _PARAMS_A_BATCH])
        changed = {name: text for name, text in texts.items() if known.get(name, text) != text}
        if changed:
            self._set_tags(run_id, {CHANGED: json.dumps(changed, ensure_ascii=False)})

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        names = distinct_names(tags)
        items = [
            RunTag(names[key], shortened(str(value), _LONGEST_TAG)) for key, value in tags.items()
        ]
        for start in range(0, len(items), _PARAMS_A_BATCH):
            self._client.log_batch(run_id, tags=items[start : start + _PARAMS_A_BATCH])

    def _log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), _METRICS_A_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + _METRICS_A_BATCH])

    def _log_final(self, run_id: str, values: Mapping[str, float]) -> None:
        """At step 0: MLflow compares runs by a metric's only value in bars, not in curves."""
        there = self._client.get_run(run_id).data.metrics
        now = milliseconds()
        self._log_metrics(
            run_id,
            [Metric(key, v, now, 0) for key, v in values.items() if there.get(key) != v],
        )

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
        self._log_metrics(run_id, metrics)

    def _explained(self, doing: str, *also: type[Exception]) -> AbstractContextManager[None]:
        return explained(self.uri, doing, *also)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return "unknown"
