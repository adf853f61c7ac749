"""The driver's ear: events reach their handlers while it waits for work to be done."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager

from agrekd_ray.channel import Channel
from agrekd_ray.run.engine import Handle

POLL_SECONDS = 0.2


class Listener(AbstractContextManager["Listener"]):
    """Takes events out of the channel while the driver waits for something else.

    Args:
        channel: to listen to.
        handles: each gets every event, one at a time, in a thread of the driver's.
    """

    def __init__(self, channel: Channel, handles: Sequence[Handle]) -> None:
        self._channel, self._handles = channel, handles

    def __enter__(self) -> Listener:
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._listen, name="events", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None and failure[1] is None:
            raise self._error

    def _listen(self) -> None:
        try:
            stopped = False
            while not stopped:  # one more look after the stop: nothing is left behind
                stopped = self._stop.wait(POLL_SECONDS)
                for event in self._channel.take():
                    for handle in self._handles:
                        handle(event)
        except BaseException as error:
            self._error = error
