"""What a run waits for while something of it has no room on the cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from agrekd_ray.cluster.events import Emit, Notice
from agrekd_ray.cluster.nodes import cluster_nodes
from agrekd_ray.cluster.placement import ResourceRequest, check_room
from agrekd_ray.errors import RunError
from agrekd_ray.fleet.fleet import STALL_SECONDS


@contextmanager
def says_what_waits(
    wanted: Sequence[ResourceRequest], emit: Emit, pending: Callable[[], bool]
) -> Iterator[None]:
    """While the block runs, says every 30 s what waits for room.

    Args:
        wanted: what must have room at the same time.
        emit: tells the driver.
        pending: whether it waits.
    """
    over = threading.Event()

    def say() -> None:
        waited = 0.0
        while not over.wait(STALL_SECONDS):
            if not pending():
                waited = 0.0
                continue
            waited += STALL_SECONDS
            try:
                waits = check_room(wanted, [], cluster_nodes())
            except RunError as error:  # a node has left, and may come back
                waits = str(error)
            if waits:
                emit(Notice(f"for {waited:.0f} s now, {waits}"))

    thread = threading.Thread(target=say, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
