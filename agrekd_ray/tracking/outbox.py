"""What MLflow is to be told: sent in order by a thread, and kept while the store is away."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from agrekd_ray.errors import TrackingError

SECONDS_BETWEEN_TRIES = 5.0
PATIENCE = 60.0
"""Seconds without a sign of life of the store, at the end of a run, before it is given up."""


class Outbox:
    """Sends writes one after another. A store that is away costs no write, only time.

    Args:
        note: says something to the user.
        pause: seconds between two tries while the store is away.
    """

    def __init__(self, note: Callable[[str], None], pause: float = SECONDS_BETWEEN_TRIES) -> None:
        self.note, self._pause = note, pause
        self._writes: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._away_since: float | None = None
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, write: Callable[[], object]) -> None:
        """Send this after all that is waiting.

        Args:
            write: raises `TrackingError`, and may be called again after it did.

        Raises:
            BaseException: what an earlier write raised that was no `TrackingError`.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            self._writes.append(write)
            self._changed.notify_all()

    def drain(self, patience: float = PATIENCE) -> int:
        """Wait until everything is sent, or the store has been away for so long.

        Args:
            patience: seconds.

        Returns:
            Writes that could not be sent, and wait on.

        Raises:
            BaseException: as `put`.
        """
        began = time.monotonic()
        with self._changed:
            while self._writes and self._error is None:
                away = self._away_since
                if away is not None and time.monotonic() - max(away, began) > patience:
                    break
                self._changed.wait(0.2)
            if self._error is not None:
                raise self._error
            return len(self._writes)

    def close(self) -> None:
        """Send nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _send(self) -> None:
        while (write := self._next()) is not None:
            try:
                write()
            except TrackingError as error:
                if error.temporary:
                    self._wait(error)
                    continue
                self.note(f"MLflow refuses a part of this run: {error}")
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._writes.popleft()
                if self._away_since is not None:
                    self.note("MLflow answers again; what was kept for it is being sent")
                self._away_since = None
                self._changed.notify_all()

    def _next(self) -> Callable[[], object] | None:
        with self._changed:
            while not self._writes and not self._closed:
                self._changed.wait()
            return None if self._closed else self._writes[0]

    def _wait(self, error: TrackingError) -> None:
        with self._changed:
            if self._away_since is None:
                self._away_since = time.monotonic()
                self.note(
                    f"MLflow is away; the run goes on, and what it is to be told is kept. {error}"
                )
            if not self._closed:
                self._changed.wait_for(lambda: self._closed, self._pause)
