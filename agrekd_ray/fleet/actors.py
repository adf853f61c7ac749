"""The processes of a fleet: teachers, and who weighs what they say.

They hold no mathematics: `TeacherHost` and `combine_gradients` do the work, with Ray or without.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch

from agrekd_ray.cluster.channel import plain_error
from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.cluster.meters import TeacherMeter, WeightingMeter
from agrekd_ray.cluster.nodes import DriverData, device_here, this_node
from agrekd_ray.core.gradient import DistillationGradient
from agrekd_ray.distillation.host import WHOLE, Part, TeacherHost
from agrekd_ray.distillation.spec import (
    INLINE,
    GradientRequest,
    TeacherGradients,
    View,
    combine_gradients,
)
from agrekd_ray.errors import RunError
from agrekd_ray.fleet.lending import Lender
from agrekd_ray.fleet.replicas import LOST, ReplicaGroup
from agrekd_ray.logits import LogitsCache, OutputSettings
from agrekd_ray.numerics import numbers_on
from agrekd_ray.results import Span, TeacherCost, added
from agrekd_ray.settings import Numbers


class TeacherActor(Lender):
    """Shell of a `TeacherHost` in its own process. Rebuilt by Ray where it dies."""

    def __init__(
        self,
        checkpoints: Mapping[str, Path],
        data: DriverData,
        settings: FleetSettings,
        capacity: int,
        outputs: OutputSettings | None = None,
    ) -> None:
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        device = device_here()
        self._host = host_here(checkpoints, data, settings, device, outputs, capacity)
        self._lent = self._host.outputs
        self._meter = TeacherMeter()

    def gradients(
        self, names: Sequence[str], request: GradientRequest, ahead: tuple[View, ...] | None = None
    ) -> TeacherGradients:
        """See `TeacherHost.gradients`; with other coming views than the request's, if given."""
        if ahead is not None:
            request = replace(request, ahead=ahead)
        gradients = self._host.gradients(names, request)
        self._meter.observe(self._host.spans)
        return gradients

    def expect(self, names: Sequence[str], views: Sequence[View]) -> None:
        """See `TeacherHost.expect`."""
        self._host.expect(names, views)

    def complete(self, epoch: int) -> int:
        """See `TeacherHost.complete`."""
        return self._complete(epoch, None, WHOLE)

    def record(self, view: int, part: Part) -> int:
        """A stride of what is missing of a view; see `TeacherHost.complete`."""
        return self._complete(view, self._host.stride, part)

    def _complete(self, epoch: int, limit: int | None, part: Part) -> int:
        left = self._host.complete(epoch, limit, part)
        self._meter.observe(self._host.spans)
        return left

    def leave(self, epoch: int) -> None:
        """See `TeacherHost.leave`."""
        self._host.leave(epoch)

    def effort(self) -> TeacherCost:
        """What the teachers here have cost so far."""
        host = self._host
        return TeacherCost(1, host.forwards, seconds=host.seconds, spans=host.spans)

    def process(self) -> int:
        """Id of the process that the actor lives in now."""
        return os.getpid()

    def node(self) -> str:
        """Name of the node that the actor lives on now."""
        return this_node()


def host_here(
    checkpoints: Mapping[str, Path],
    data: DriverData,
    settings: FleetSettings,
    device: str,
    outputs: OutputSettings | None,
    capacity: int = 1,
) -> TeacherHost:
    """Teachers in this process, as a job's settings host them; arguments as `TeacherHost`."""
    samples, numbers = data.open(), numbers_here(settings, device, checkpoints)
    return TeacherHost(
        checkpoints,
        samples,
        device=device,
        precision=numbers,
        capacity=capacity,
        concurrent=settings.concurrent,
        outputs=LogitsCache(outputs, checkpoints, samples, numbers) if outputs else None,
    )


def numbers_here(settings: FleetSettings, device: str, teachers: Iterable[str]) -> Numbers:
    """What teachers compute in on this node, where the device can.

    Raises:
        RunError: it cannot; names teachers and node.
    """
    try:
        return numbers_on(settings.computes_in, device)
    except RunError as error:
        who = ", ".join(teachers)
        raise RunError(f"teachers {who} on node {this_node()}: fleet.{error}") from None


class WeightingActor:
    """Gathers the gradients for a request from all teachers and weighs them.

    It keeps nothing but which teachers it has lost; restarted, it loses them again.

    Args:
        groups: teachers that live together, with the names of the actors that host them.
        room: requests whose gradients are held at once; further ones wait.
        patience: seconds that a teacher may take to answer; None for any time.
        drop: go on without teachers that are lost.
        spares: ask those alone who have a weight; else all, whose answers are recorded.
    """

    def __init__(
        self,
        groups: Sequence[tuple[tuple[str, ...], tuple[str, ...]]],
        room: int,
        patience: float | None,
        drop: bool,
        spares: bool = False,
    ) -> None:
        torch.set_num_threads(1)  # small tensors: more threads only wait for each other
        # Actors by name: handles among the arguments would not outlive a restart of this actor.
        self._groups = [
            ReplicaGroup(teachers, {name: ray.get_actor(name) for name in actors}, patience)
            for teachers, actors in groups
        ]
        self._of = {name: group for group in self._groups for name in group.teachers}
        self._room = asyncio.Semaphore(room)
        self._drop, self._spares = drop, spares
        self._lost: dict[ReplicaGroup, str] = {}
        self._spans: dict[str, Span] = {}
        self._meter = WeightingMeter()

    async def ask(self, request: GradientRequest) -> DistillationGradient:
        """See `Source.ask`."""
        self._meter.asked()
        try:
            return await self._ask(request)
        finally:
            self._meter.answered()

    async def _ask(self, request: GradientRequest) -> DistillationGradient:
        spec = request.spec
        spared = self._spares and not self._lost
        names = spec.asked(request.step) if spared else spec.members
        if names == spec.members:
            return await self._asked(request, names)
        _, *coming = request.views()
        for step, (whom, view) in enumerate(coming, request.step + 1):
            for name in whom:
                self._of[name].expect(whom, step, view)
        answer = await self._asked(replace(request, ahead=()), names)
        # Those that are left draw among themselves.
        return await self._asked(request, spec.members) if self._lost else answer

    async def _asked(self, request: GradientRequest, names: Sequence[str]) -> DistillationGradient:
        wanted: dict[ReplicaGroup, list[str]] = {}
        for name in names:
            wanted.setdefault(self._of[name], []).append(name)
        async with self._room:
            asked = time.perf_counter()
            # Many classes: all actors read the same object instead of one of their own each.
            sent = ray.put(request) if request.logits_BC.nbytes > INLINE else None
            told = await asyncio.gather(
                *(self._gradients(group, names, request, sent) for group, names in wanted.items())
            )
            gathered = time.perf_counter()
            lost = {name for group in self._lost for name in group.teachers}
            answer = combine_gradients(request, [some for some in told if some is not None], lost)
            weighed = time.perf_counter()
        spans = {"gather": Span(1, gathered - asked), "weigh": Span(1, weighed - gathered)}
        self._spans = added(self._spans, spans)
        self._meter.observe(spans, self._retries)
        return answer

    async def _gradients(
        self, group: ReplicaGroup, names: Sequence[str], request: GradientRequest, sent: Any
    ) -> TeacherGradients | None:
        """What teachers say; None where they are lost and the others can teach without them."""
        if group not in self._lost:
            try:
                return await group.gradients(names, request, sent)
            except LOST as error:
                lost = {name for other in (*self._lost, group) for name in other.teachers}
                if not self._drop or not request.spec.can_do_without(lost):
                    raise
                self._lost[group] = str(plain_error(error, f"teachers {', '.join(group.teachers)}"))
        return None

    async def lost(self) -> dict[str, str]:
        """Why teachers are lost, by name."""
        return {name: why for group, why in self._lost.items() for name in group.teachers}

    async def complete(self, epoch: int) -> None:
        """See `Source.complete`."""
        await asyncio.gather(
            *(group.complete(epoch) for group in self._groups if group not in self._lost)
        )

    async def awaited(self) -> list[str]:
        """Who has been asked and has not answered yet, in words."""
        return [words for group in self._groups for words in group.awaited()]

    async def effort(self) -> TeacherCost:
        """Where its time has gone so far, and what had to be asked again."""
        return TeacherCost(retries=self._retries, spans=self._spans)

    @property
    def _retries(self) -> int:
        return sum(group.retries for group in self._groups)

    async def process(self) -> int:
        """Id of the process that the actor lives in now."""
        return os.getpid()
