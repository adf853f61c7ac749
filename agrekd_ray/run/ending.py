"""How a run of any kind leaves its folder and MLflow when it is stopped or fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agrekd_ray.passwords import without_password
from agrekd_ray.run.folder import Folder
from agrekd_ray.stops import stopped_by
from agrekd_ray.tracking.outbox import Outbox
from agrekd_ray.tracking.tracker import FAILED, KILLED, Tracker

PATIENCE_AT_FAILURE = 5.0
"""Seconds that a run which has failed waits for an MLflow that is away."""


@contextmanager
def ending(
    folder: Folder, tracker: Tracker, outbox: Outbox, run_id: str, say: Callable[[str], None]
) -> Iterator[None]:
    """When the block raises, the run is left in a state that says what happened, and it raises on.

    Args:
        folder: of the run.
        tracker: MLflow.
        outbox: through which it is told; closed in any case.
        run_id: in MLflow.
        say: shows a line, where even that cannot be recorded.
    """

    def end(status: str, reason: str, mlflow_status: str) -> None:
        """Nothing here hides the reason."""
        try:
            folder.update(status=status, reason=reason)
            outbox.put(lambda: tracker.fail(run_id, reason, mlflow_status))
            outbox.drain(PATIENCE_AT_FAILURE)
        except Exception as error:
            say(f"could not record that the run ended: {error}")

    try:
        yield
    except KeyboardInterrupt:
        end("interrupted", f"stopped by {stopped_by()}", KILLED)
        raise
    except BaseException as error:
        reason = without_password(str(error)) or type(error).__name__
        end("failed", reason, FAILED)
        raise
    finally:
        outbox.close()
