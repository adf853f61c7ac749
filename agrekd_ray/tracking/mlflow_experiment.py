"""One experiment of an MLflow store: its runs are made, found, written to and ended."""

from __future__ import annotations

import getpass
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from agrekd_ray.addresses import is_database, sqlite_address
from agrekd_ray.errors import TrackingError
from agrekd_ray.passwords import hidden, revealed
from agrekd_ray.tracking.mlflow_store import check_store, checked_address, explained, unless_set
from agrekd_ray.tracking.mlflow_values import as_text, distinct_names, milliseconds, shortened
from agrekd_ray.tracking.tracker import REASON

CHANGED = "agrekd.changed_params"
"""Tag: which parameters are not those of the job's first start."""
METRICS_A_BATCH = 1000
"""That a store takes at once."""

_PARAMS_A_BATCH = 100
_LONGEST_PARAM, _LONGEST_TAG = 6000, 8000
# Ending a run on a server prints two lines of addresses for each run.
_QUIET = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
# An experiment of models rather than of prompts, and what its charts begin with.
_VIEW = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "test/worst_group_accuracy",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
}


class Experiment:
    """An experiment, made where it is missing.

    Its methods raise what MLflow raises: they are called within `explained`.

    Attributes:
        uri: the tracking URI in use, without its password.
        client: MLflow's, of that store.
        id: MLflow's number of the experiment.

    Args:
        uri: any MLflow tracking URI; None for the file `mlflow.db` in `root`.
        name: of the experiment.
        root: the folder of the runs. Models and reports go to its `mlartifacts`, unless an
            MLflow server keeps them.

    Raises:
        TrackingError: the store cannot be created or reached.
    """

    def __init__(self, uri: str | None, name: str, root: Path) -> None:
        root = Path(root).absolute()
        self.uri = hidden(checked_address(uri)) if uri else sqlite_address(root / "mlflow.db")
        # Anything: drivers of databases and plug-ins have exceptions of their own.
        with self.explained("open the store", Exception):
            check_store(self.uri)
            self.client = MlflowClient(tracking_uri=revealed(self.uri))
            location = None if self.served else _location(root / "mlartifacts")
            self.id = self._find(name, location)

    def lookup(self, run_id: str) -> Any | None:
        """The run, or None where this experiment does not have it (any more)."""
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        here = run.info.experiment_id == self.id
        return run if here and run.info.lifecycle_stage == "active" else None

    def create(self, name: str, tags: Mapping[str, str]) -> str:
        """A new run's id."""
        marks = {
            "mlflow.user": _user(),
            "mlflow.source.name": Path(sys.argv[0]).name or "python",
            "mlflow.source.type": "LOCAL",
            **tags,
        }
        run = self.client.create_run(self.id, run_name=name, tags=marks)
        return str(run.info.run_id)

    def reopen(self, run: Any) -> None:
        """The run is running again; why it had ended is no longer true."""
        self.client.update_run(run.info.run_id, status="RUNNING")
        if REASON in run.data.tags:
            self.client.delete_tag(run.info.run_id, REASON)

    def end(self, run_id: str, status: str, seconds: float | None = None) -> None:
        """Ends a run; one that has ended so stays as it is, with the time when it did.

        Args:
            run_id: of the run.
            status: how it ended.
            seconds: that it took; None is until now.
        """
        run = self.client.get_run(run_id)
        if run.info.status == status:
            return
        end = run.info.start_time + round(1000 * seconds) if seconds else None
        with unless_set(_QUIET):
            self.client.set_terminated(run_id, status, end)

    def add_params(self, run_id: str, params: Mapping[str, Any], known: Mapping[str, str]) -> None:
        """Writes what is not `known`; what is, and differs now, goes into the tag `CHANGED`."""
        names = distinct_names(params)
        texts = {
            names[key]: shortened(as_text(value), _LONGEST_PARAM) for key, value in params.items()
        }
        fresh = [Param(name, text) for name, text in texts.items() if name not in known]
        for start in range(0, len(fresh), _PARAMS_A_BATCH):
            self.client.log_batch(run_id, params=fresh[start : start + _PARAMS_A_BATCH])
        changed = {name: text for name, text in texts.items() if known.get(name, text) != text}
        if changed:
            self.set_tags(run_id, {CHANGED: json.dumps(changed, ensure_ascii=False)})

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Under names that MLflow takes; long values are cut."""
        names = distinct_names(tags)
        items = [
            RunTag(names[key], shortened(str(value), _LONGEST_TAG)) for key, value in tags.items()
        ]
        for start in range(0, len(items), _PARAMS_A_BATCH):
            self.client.log_batch(run_id, tags=items[start : start + _PARAMS_A_BATCH])

    def log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        """In as many batches as it takes."""
        for start in range(0, len(metrics), METRICS_A_BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_BATCH])

    def log_final(self, run_id: str, values: Mapping[str, float]) -> None:
        """At step 0: MLflow compares runs by a metric's only value in bars, not in curves."""
        there = self.client.get_run(run_id).data.metrics
        now = milliseconds()
        self.log_metrics(
            run_id,
            [Metric(key, v, now, 0) for key, v in values.items() if there.get(key) != v],
        )

    def explained(self, doing: str, *also: type[Exception]) -> AbstractContextManager[None]:
        """What goes wrong within the block is a `TrackingError` that names this store."""
        return explained(self.uri, doing, *also)

    @property
    def served(self) -> bool:
        """Whether a server keeps it, and its files."""
        return not is_database(self.uri)

    def _find(self, name: str, location: str | None) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self.client.create_experiment(name, location, _VIEW))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self.client.get_experiment_by_name(name)
        if experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"The MLflow experiment {name!r} was deleted. Choose another name, or take it "
                f"back: MLFLOW_TRACKING_URI={shlex.quote(self.uri)} "
                f"mlflow experiments restore -x {experiment.experiment_id}"
            )
        return str(experiment.experiment_id)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return "unknown"


def _location(folder: Path) -> str:
    """As MLflow, which reads it as a URI, finds it: with its odd signs quoted."""
    uri = folder.as_uri()
    return str(folder) if uri == f"file://{folder}" else uri
