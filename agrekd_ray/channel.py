"""From everywhere to the driver: one small actor that carries progress and results.

Only the driver draws progress lines and writes to MLflow; all others tell it through a `Post`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError

from agrekd_ray.errors import AgrekdError, RunError
from agrekd_ray.results import Epoch, Outcome


@dataclass(frozen=True)
class TeacherEpoch:
    """A teacher finished an epoch."""

    name: str
    epoch: int
    epochs: int


@dataclass(frozen=True)
class TeacherDone:
    """A teacher is in the pool; `trained` is False where it had been there already."""

    name: str
    trained: bool = True


@dataclass(frozen=True)
class StudentEpoch:
    """A student finished an epoch."""

    student: str
    epochs: int
    epoch: Epoch


@dataclass(frozen=True)
class StudentDone:
    """A student is finished."""

    outcome: Outcome


@dataclass(frozen=True)
class Note:
    """Something that the user should read now."""

    text: str


@dataclass(frozen=True)
class Failed:
    """A fault that ends the run; the text says what to do."""

    text: str


Event = TeacherEpoch | TeacherDone | StudentEpoch | StudentDone | Note | Failed
Post = Callable[[Event], None]
"""Tells the driver something; returns at once."""


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

    def __init__(self, node_id: str) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._actor = (
            ray.remote(Mailbox)
            .options(
                num_cpus=0,
                max_restarts=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            )
            .remote()
        )

    def take(self) -> list[Event]:
        """All events since the last call."""
        return ray.get(self._actor.take.remote())

    @property
    def post(self) -> Post:
        """What others send with; may travel to any process."""
        actor = self._actor

        def post(event: Event) -> None:
            actor.put.remote(event)

        return post

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
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return RunError(f"{who} failed: {lines[-1].strip() if lines else type(error).__name__}")
