"""Where some teachers live: one actor, or several replicas that take turns and may come and go."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
)

from agrekd_ray.cluster.nodes import waits_for_room
from agrekd_ray.distillation.spec import GradientRequest, TeacherGradients, View
from agrekd_ray.errors import RunError

DIED = (RayActorError, OutOfMemoryError, NodeDiedError)
"""What a caller sees where an actor, or the node under it, is gone."""


class SilentError(RunError):
    """Nobody has answered for longer than the fleet's patience."""


LOST = (SilentError, *DIED)
"""What says that teachers will not answer any more; anything else is what one of them raised."""
RETRY_SECONDS = 1.0
"""Between two looks whether an actor that died is back."""


class ReplicaGroup:
    """The actors that host the same teachers; asked by the weighting actor, in its loop.

    A lone actor is asked again by Ray until it answers. Of several, step k goes to the k-th of
    those that are there (round robin), which are told of the coming views that will be theirs; one
    that dies is left out until it is back, and one that finds room later joins.

    Args:
        teachers: their names.
        actors: handles of `TeacherActor` by name.
        patience: seconds that they may take to answer; None for any time. It does not run while
            none of them has been given room on the cluster.
        waits: whether an actor waits for its first room.
    """

    def __init__(
        self,
        teachers: tuple[str, ...],
        actors: Mapping[str, Any],
        patience: float | None,
        waits: Callable[[Any], bool] = waits_for_room,
    ) -> None:
        self.teachers = teachers
        self._actors, self._patience, self._waits = dict(actors), patience, waits
        self._there: list[str] = []
        self._lost: dict[str, BaseException] = {}
        self._nodes: dict[str, str] = {}
        self._looking: set[asyncio.Task[None]] | None = None
        self._changed = asyncio.Event()
        self.retries = 0
        """Requests that were sent again, since an actor had died."""
        self._asked: dict[int, tuple[float, str | None]] = {}
        self._numbers = itertools.count()

    async def gradients(
        self, names: Sequence[str], request: GradientRequest, sent: Any = None
    ) -> TeacherGradients:
        """What the named teachers say; see `TeacherHost.gradients`.

        Args:
            names: of the teachers.
            request: to them.
            sent: where it is in the object store; None where it goes along with each call.

        Raises:
            SilentError: nobody has answered for too long.
            RayError: what an actor raised, or why the last one cannot come back.
        """
        return await self._patient(
            self._gradients(names, request, request if sent is None else sent),
            f"step {request.step} of epoch {request.epoch}",
        )

    def expect(self, names: Sequence[str], step: int, view: View) -> None:
        """Tell who will be asked in a coming step; see `TeacherHost.expect`.

        Args:
            names: of the teachers.
            step: its number.
            view: its samples.
        """
        owners = sorted(self._there) if len(self._actors) > 1 else [*self._actors]
        if owners:
            self._actors[owners[step % len(owners)]].expect.remote(names, [view])

    async def complete(self, epoch: int) -> None:
        """See `TeacherHost.complete`; one actor completes what all have recorded."""
        # What a record has left to compute may take much longer than a step.
        with self._noted(None):
            await self._complete(epoch)

    def awaited(self) -> list[str]:
        """In words, the actors whose answer is awaited now."""
        now = time.monotonic()
        found: dict[str | None, float] = {}
        for began, name in self._asked.values():
            found[name] = max(found.get(name, 0.0), now - began)
        return [f"{self._in_words(name)}, {waited:.0f} s" for name, waited in found.items()]

    async def _gradients(
        self, names: Sequence[str], request: GradientRequest, sent: Any
    ) -> TeacherGradients:
        self._start()
        if len(self._actors) == 1:
            (name,) = self._actors
            with self._noted(name):
                return await self._actors[name].gradients.remote(names, sent)
        while True:
            owners = await self._present()
            mine = owners[request.step % len(owners)]
            coming: dict[str, list[View]] = {}
            for number, view in enumerate(request.ahead, request.step + 1):
                coming.setdefault(owners[number % len(owners)], []).append(view)
            own = tuple(coming.pop(mine, ()))
            for other, views in coming.items():
                self._actors[other].expect.remote(names, views)
            with self._noted(mine):
                try:
                    return await self._actors[mine].gradients.remote(names, sent, own)
                except DIED:
                    self.retries += 1
                    self._leaves(mine)

    async def _complete(self, epoch: int) -> None:
        self._start()
        if len(self._actors) == 1:
            (actor,) = self._actors.values()
            await actor.complete.remote(epoch)
            return
        while True:
            owners = await self._present()
            for name in owners:  # so that the first can take over what the others have recorded
                with suppress(*DIED):
                    await self._actors[name].leave.remote(epoch)
            try:
                await self._actors[owners[0]].complete.remote(epoch)
                return
            except DIED:
                self._leaves(owners[0])

    async def _present(self) -> list[str]:
        """The actors that are there; waits until there is one."""
        while not self._there:
            if len(self._lost) == len(self._actors):
                raise next(iter(self._lost.values()))
            self._changed.clear()
            await self._changed.wait()
        return sorted(self._there)

    def _start(self) -> None:
        if self._looking is None:
            self._looking = set()
            for name in self._actors:
                self._look_for(name)

    def _leaves(self, name: str) -> None:
        if name in self._there:
            self._there.remove(name)
            self._look_for(name)

    def _look_for(self, name: str) -> None:
        assert self._looking is not None
        task = asyncio.get_running_loop().create_task(self._until_there(name))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _until_there(self, name: str) -> None:
        while True:
            try:
                self._nodes[name] = await self._actors[name].node.remote()
            except (ActorUnavailableError, OutOfMemoryError, NodeDiedError):
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as error:  # it could not start, for instance: it will not come back
                self._lost[name] = error
                break
            else:
                self._there.append(name)
                break
        self._changed.set()

    async def _patient(self, answer: Awaitable[TeacherGradients], what: str) -> TeacherGradients:
        task = asyncio.ensure_future(answer)
        try:
            while not (await asyncio.wait({task}, timeout=self._patience))[0]:
                if not await asyncio.to_thread(self._without_room):
                    where = ", ".join(self._in_words(name) for name in self._actors)
                    raise SilentError(
                        f"{where}: no answer to {what} for {self._patience:g} s. Look at the "
                        "process and its node, then `agrekd resume RUN`; a slow teacher needs a "
                        "longer fleet.patience."
                    )
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})  # so that it is awaited no longer

    def _without_room(self) -> bool:
        return all(self._waits(actor) for actor in self._actors.values())

    @contextmanager
    def _noted(self, name: str | None) -> Iterator[None]:
        key = next(self._numbers)
        self._asked[key] = time.monotonic(), name
        try:
            yield
        finally:
            del self._asked[key]

    def _in_words(self, name: str | None) -> str:
        who = f"teachers {', '.join(self.teachers)}"
        if name is None:
            return who
        node = self._nodes.get(name)
        return f"{who} (actor {name} {f'on node {node}' if node else 'waiting for room'})"
