"""How a run of any kind begins in MLflow, and what it leaves there and in its folder at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from agrekd_ray import __version__
from agrekd_ray.experiment.folder import Folder
from agrekd_ray.tracking.outbox import Outbox
from agrekd_ray.tracking.tracker import FAILED, KILLED, Tracker

PATIENCE_AT_FAILURE = 5.0
"""Seconds that a run which has failed waits for an MLflow that is away."""


@contextmanager
def tracked(
    folder: Folder,
    tracker: Tracker,
    outbox: Outbox,
    name: str,
    params: Mapping[str, Any],
    *,
    tags: Mapping[str, str] | None = None,
    role: str = "job",
) -> Iterator[str]:
    """While the block lasts, the run is running in its folder and in MLflow.

    When the block raises, or MLflow's run cannot be opened, both are left in a state that says
    what happened, and it raises on.

    Args:
        folder: of the run.
        tracker: MLflow.
        outbox: through which it is told; closed in any case.
        name: of the job, study or search.
        params: see `Tracker.start_job`.
        tags: further ones, in MLflow.
        role: see `Tracker.start_job`.

    Yields:
        The id of the run in MLflow.
    """
    try:
        yield tracker.start_job(
            f"{name} {folder.path.name}",
            params,
            {"agrekd.folder": str(folder.path), "agrekd.version": __version__, **(tags or {})},
            folder.state().tracking_run,
            role,
            lambda run_id: folder.update(status="running", tracking_run=run_id, reason=None),
        )
    except BaseException as error:  # nothing here hides the reason
        try:
            state = folder.ended_by(error)
            run_id, reason = state.tracking_run, state.reason or ""
            if run_id is not None and state.status != "finished":
                status = KILLED if state.status == "interrupted" else FAILED
                outbox.put(lambda: tracker.fail(run_id, reason, status))
                outbox.drain(PATIENCE_AT_FAILURE)
        except Exception as second:
            outbox.note(f"could not record that the run ended: {second}")
        raise
    finally:
        outbox.close()
