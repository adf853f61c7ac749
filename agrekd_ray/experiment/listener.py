"""The driver's ear: events reach their handlers while it waits for work to be done."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from agrekd_ray.cluster.channel import Channel
from agrekd_ray.cluster.events import Event, Notice
from agrekd_ray.errors import AgrekdError
from agrekd_ray.experiment.engine import Handle

POLL_SECONDS = 0.2
STOPPED = (KeyboardInterrupt, SystemExit)
"""What handlers of signals raise; Ray's own for SIGTERM exits."""


class Listener(AbstractContextManager["Listener"]):
    """Takes events out of the channel while the driver waits for something else.

    An `AgrekdError` of a handler, or of the channel, ends the block at once and is raised out of
    it. Any other exception of a handler is said once and survived: what a run leaves does not
    depend on its progress line.

    Args:
        channel: to listen to.
        handles: each gets every event, one at a time, in a thread of the driver's.
    """

    def __init__(self, channel: Channel, handles: Sequence[Handle]) -> None:
        self._channel, self._handles = channel, handles
        self._failed: set[Handle] = set()

    def __enter__(self) -> Listener:
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._waits_in = threading.current_thread()
        self._thread = threading.Thread(target=self._listen, name="events", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        interrupt = None
        try:
            self._thread.join()
        except STOPPED as error:  # by the user, or by `_end_the_block`, just too late
            interrupt = error
            self._thread.join()
        ended_by = failure[1] or interrupt
        if self._error is not None and isinstance(ended_by, (*STOPPED, type(None))):
            raise self._error from None
        if interrupt is not None:
            raise interrupt

    def _listen(self) -> None:
        try:
            stopped = False
            while not stopped:  # one more look after the stop: nothing is left behind
                stopped = self._stop.wait(POLL_SECONDS)
                for event in self._channel.take():
                    for handle in self._handles:
                        self._tell(handle, event)
        except BaseException as error:
            self._error = error
            if not self._stop.is_set():
                self._end_the_block()

    def _tell(self, handle: Handle, event: Event) -> None:
        try:
            handle(event)
        except AgrekdError:
            raise
        except Exception as error:
            if handle not in self._failed:
                self._failed.add(handle)
                self._say(event, error)

    def _say(self, event: Event, error: Exception) -> None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = (
            f"a fault of the driver at {type(event).__name__}, which costs lines on the screen or "
            f"in MLflow, and no result: {type(error).__name__}: {error} "
            f"({Path(frame.filename).name}:{frame.lineno})"
        )
        try:
            self._handles[0](Notice(text))
        except Exception:  # the very handler that shows notes
            print(text, file=sys.stderr)

    def _end_the_block(self) -> None:
        """Interrupt who waits in it, as Ctrl-C would."""
        if self._waits_in is threading.main_thread():  # only there do signals reach
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(signal.getsignal(number)):  # and not ignored, as in the background
                    signal.pthread_kill(threading.main_thread().ident or 0, number)
                    return
