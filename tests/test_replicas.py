"""Replicas of teachers, without Ray: turns, look-ahead, those that die, come back or never come."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from agrekd_ray.distillation import DistillationSpec, GradientRequest
from agrekd_ray.errors import DataError, RunError
from agrekd_ray.fleet import replicas as module
from agrekd_ray.fleet.replicas import ReplicaGroup

LESSON = DistillationSpec("aver", ("erm-0",), "erm-1", 4.0)


class Method:
    """Looks like an actor's method."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer

    def remote(self, *arguments: Any) -> Any:
        return asyncio.ensure_future(self._answer(*arguments))


class Actor:
    """Looks like the handle of a `TeacherActor`, and notes what it was asked."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.ahead: list[int] = []
        self.completed: list[int] = []
        self.left: list[int] = []
        self.silent = False
        self.here = asyncio.Event()
        self.here.set()
        self.broken: Exception | None = None
        self.died = False
        self.gradients, self.node = Method(self._gradients), Method(self._node)
        self.expect, self.leave = Method(self._expect), Method(self._leave)
        self.complete = Method(self._complete)

    async def _node(self) -> str:
        await self.here.wait()
        if self.broken:
            raise self.broken
        if self.died:
            raise ActorUnavailableError("restarting", None)
        return "10.0.0.7"

    async def _gradients(self, names: Any, request: GradientRequest, ahead: Any = None) -> str:
        if self.died:
            raise ActorDiedError()
        if self.silent:
            await asyncio.Event().wait()
        self.steps.append(request.step)
        self.ahead += [view[0] for view in (request.ahead if ahead is None else ahead)]
        return f"reply {request.step}"

    async def _expect(self, names: Any, views: Any) -> None:
        self.ahead += [view[0] for view in views]

    async def _leave(self, epoch: int) -> None:
        self.left.append(epoch)

    async def _complete(self, epoch: int) -> int:
        if self.died:
            raise ActorDiedError()
        self.completed.append(epoch)
        return 0


def asked(step: int) -> GradientRequest:
    """A step whose coming views are told apart by their epoch."""
    ids = np.arange(2)
    ahead = ((step + 1, ids), (step + 2, ids))
    return GradientRequest(LESSON, step, step, ids, np.zeros((2, 3), np.float32), ahead)


async def there(group: ReplicaGroup, count: int) -> None:
    """Until so many actors have been found."""
    group._start()
    while len(group._there) < count:
        await asyncio.sleep(0)


def home_of(
    actors: dict[str, Actor],
    patience: float | None = None,
    waits: Callable[[Actor], bool] = lambda actor: False,
) -> ReplicaGroup:
    """Of one teacher."""
    return ReplicaGroup(("erm-0",), actors, patience, waits)


def test_replicas_take_turns_and_each_is_told_of_its_own_coming_views() -> None:
    async def run() -> None:
        actors = {"a": Actor(), "b": Actor()}
        group = home_of(actors)
        await there(group, 2)
        for step in range(6):
            assert await group.gradients(["erm-0"], asked(step)) == f"reply {step}"
        await asyncio.sleep(0)
        assert actors["a"].steps == [0, 2, 4]
        assert actors["b"].steps == [1, 3, 5]
        assert {view % 2 for view in actors["a"].ahead} == {0}
        assert {view % 2 for view in actors["b"].ahead} == {1}
        assert {*actors["a"].ahead, *actors["b"].ahead} == set(range(1, 8))

    asyncio.run(run())


def test_a_replica_that_dies_is_left_out_until_it_is_back(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.001)

    async def run() -> None:
        actors = {"a": Actor(), "b": Actor()}
        group = home_of(actors)
        await there(group, 2)
        actors["b"].died = True
        for step in range(4):
            assert await group.gradients(["erm-0"], asked(step)) == f"reply {step}"
        assert actors["a"].steps == [0, 1, 2, 3]
        actors["b"].died = False
        await there(group, 2)
        await group.gradients(["erm-0"], asked(5))
        assert actors["b"].steps == [5]

    asyncio.run(run())


def test_a_replica_that_finds_room_later_joins() -> None:
    async def run() -> None:
        actors = {"a": Actor(), "b": Actor()}
        actors["b"].here.clear()
        group = home_of(actors)
        await there(group, 1)
        await group.gradients(["erm-0"], asked(1))
        assert actors["a"].steps == [1]
        actors["b"].here.set()
        await there(group, 2)
        await group.gradients(["erm-0"], asked(3))
        assert actors["b"].steps == [3]

    asyncio.run(run())


def test_one_that_cannot_start_is_an_error_only_where_no_other_can() -> None:
    async def run() -> None:
        actors = {"a": Actor(), "b": Actor()}
        actors["a"].broken = DataError("node 10.0.0.7: the data there differ")
        group = home_of(actors)
        await there(group, 1)
        await group.gradients(["erm-0"], asked(0))
        assert actors["b"].steps == [0]
        alone = {"a": Actor(), "b": Actor()}
        for actor in alone.values():
            actor.broken = DataError("node 10.0.0.7: the data there differ")
        with pytest.raises(DataError, match=r"10\.0\.0\.7"):
            await home_of(alone).gradients(["erm-0"], asked(0))

    asyncio.run(run())


def test_a_record_is_completed_by_one_after_the_others_left_theirs() -> None:
    async def run() -> None:
        actors = {"a": Actor(), "b": Actor(), "c": Actor()}
        group = home_of(actors)
        await there(group, 3)
        await group.complete(4)
        assert [actor.left for actor in actors.values()] == [[4], [4], [4]]
        assert [actor.completed for actor in actors.values()] == [[4], [], []]
        actors["a"].died = True
        await group.complete(5)
        assert [actor.completed for actor in actors.values()] == [[4], [5], []]

    asyncio.run(run())


def test_patience_does_not_run_while_nobody_has_room() -> None:
    async def run() -> None:
        actors = {"a": Actor(), "b": Actor()}
        for actor in actors.values():
            actor.silent = True
        without_room = {*actors.values()}
        group = home_of(actors, patience=0.02, waits=without_room.__contains__)
        waiting = asyncio.ensure_future(group.gradients(["erm-0"], asked(0)))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        without_room.remove(actors["a"])
        with pytest.raises(RunError, match="no answer to step 0"):
            await waiting

    asyncio.run(run())


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_silent_teacher_is_named_with_its_node_and_given_up_after_a_while(replicas: int) -> None:
    async def run() -> None:
        actors = {f"actor-{n}": Actor() for n in range(replicas)}
        for actor in actors.values():
            actor.silent = True
        patient = home_of(actors)
        await there(patient, replicas)
        waiting = asyncio.ensure_future(patient.gradients(["erm-0"], asked(0)))
        while not (words := patient.awaited()):
            await asyncio.sleep(0)
        assert re.fullmatch(r"teachers erm-0 \(actor actor-0 on node 10.0.0.7\), \d+ s", *words)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert patient.awaited() == []
        group = home_of(actors, patience=0.05)
        await there(group, replicas)
        with pytest.raises(RunError, match=r"node 10\.0\.0\.7.*no answer to step 0.*patience"):
            await group.gradients(["erm-0"], asked(0))
        assert group.awaited() == []

    asyncio.run(run())
