"""What a run waits for while something of it has no room on the cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from agrekd_ray.cluster.events import Began, Emit, Event, Notice
from agrekd_ray.cluster.nodes import cluster_nodes, look_for_room
from agrekd_ray.cluster.placement import ResourceRequest, check_room
from agrekd_ray.errors import RunError
from agrekd_ray.fleet.fleet import STALL_SECONDS


class First:
    """Whether the first of several tasks waits for room, and has not begun.

    What has room when it is asked for does not wait: its process starts, and imports PyTorch.
    """

    def __init__(self) -> None:
        self._begun = threading.Event()

    def look_for_room(self, room: ResourceRequest, emit: Emit) -> None:
        """See `nodes.look_for_room`; called before the task is started."""
        if not check_room([], [room], look_for_room([], [room], emit)):
            self._begun.set()

    def watch(self, event: Event) -> None:
        """Hears of it."""
        if isinstance(event, Began):
            self._begun.set()

    def awaited(self) -> bool:
        """Not yet."""
        return not self._begun.is_set()


class Waiting(AbstractContextManager["Waiting"]):
    """While the block runs, says every 30 s what waits for room.

    Args:
        wanted: what must have room at the same time.
        emit: tells the driver.
        pending: whether it waits.
    """

    def __init__(
        self, wanted: Sequence[ResourceRequest], emit: Emit, pending: Callable[[], bool]
    ) -> None:
        self._wanted, self._emit, self._pending = wanted, emit, pending
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._say, name="waiting", daemon=True)

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        self._thread.join()

    def _say(self) -> None:
        waited = 0.0
        while not self._over.wait(STALL_SECONDS):
            if not self._pending():
                waited = 0.0
                continue
            waited += STALL_SECONDS
            try:
                waits = check_room(self._wanted, [], cluster_nodes())
            except RunError as error:  # a node has left, and may come back
                waits = str(error)
            if waits:
                self._emit(Notice(f"for {waited:.0f} s now, {waits}"))
