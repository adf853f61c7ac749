"""From every process to the driver: one small actor that carries events."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayTaskError

from agrekd_ray.cluster.events import Emit, Event
from agrekd_ray.cluster.session import here
from agrekd_ray.errors import AgrekdError, RunError


class Mailbox:
    """Keeps events until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        """Add one."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """All since the last call, oldest first."""
        events, self._events = self._events, []
        return events


class Channel:
    """The driver's end of the mailbox actor."""

    def __init__(self) -> None:
        self._actor = (
            ray.remote(Mailbox)
            .options(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,  # an event that comes twice counts once
                scheduling_strategy=here(),
            )
            .remote()
        )

    def take(self) -> list[Event]:
        """All events since the last call."""
        return ray.get(self._actor.take.remote())

    @property
    def emit(self) -> Emit:
        """What others send with; may travel to any process."""
        actor = self._actor

        def emit(event: Event) -> None:
            actor.put.remote(event)

        return emit

    def close(self) -> None:
        """End the actor."""
        ray.kill(self._actor)


def plain_error(error: Exception, who: str) -> AgrekdError:
    """The error that a person should read, out of what Ray wraps around it."""
    cause: Any = error
    while isinstance(cause, RayTaskError):
        cause = cause.cause
    if isinstance(cause, AgrekdError):
        return cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # What was short of memory is told at length, and what to do about it in general.
    short = next((line for line in lines if "low on memory" in line), None)
    if short is not None:
        return RunError(
            f"{who} failed: {short.rstrip('.')}. Run fewer processes at once, or on nodes with "
            "more memory."
        )
    return RunError(f"{who} failed: {lines[-1] if lines else type(error).__name__}")
