"""The live source: teachers in Ray actors, and a weighting actor beside the driver.

The actors hold no mathematics: `TeacherHost` and `weigh_replies` do the work, with Ray or without.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agrekd_ray.channel import plain_error
from agrekd_ray.data import DataSettings, open_dataset
from agrekd_ray.errors import DataError
from agrekd_ray.events import Note, Post
from agrekd_ray.guidance.fleet_settings import FleetSettings
from agrekd_ray.guidance.host import TeacherHost
from agrekd_ray.guidance.lesson import Answer, Question, Replies, weigh_replies
from agrekd_ray.models import read_manifest
from agrekd_ray.outputs import Outputs, OutputSettings

STALL_SECONDS = 30.0
STEPS_HELD = 3
"""Steps whose gradients the weighting actor holds at once; a worker asks its part of a step."""
RECORD_STEP = 1024
"""Samples that an actor records between two signs of life."""


class TeacherActor:
    """Shell of a `TeacherHost` in its own process. Rebuilt by Ray where it dies."""

    def __init__(
        self,
        checkpoints: Mapping[str, Path],
        data: DataSettings,
        fingerprint: str,
        settings: FleetSettings,
        capacity: int,
        outputs: OutputSettings | None = None,
    ) -> None:
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        samples = open_dataset(data)
        node = ray.util.get_node_ip_address()
        if samples.fingerprint != fingerprint:
            raise DataError(
                f"node {node}: the data there differ from the driver's "
                f"({samples.fingerprint[:12]} instead of {fingerprint[:12]}); copy them again."
            )
        # An actor with no GPU assigned still sees all of them: the device is chosen explicitly.
        device = "cuda" if settings.gpus and torch.cuda.is_available() else "cpu"
        self._host = TeacherHost(
            checkpoints,
            samples,
            device=device,
            autocast=settings.autocast,
            capacity=capacity,
            concurrent=settings.concurrent,
            outputs=Outputs(outputs, checkpoints, samples, settings.autocast) if outputs else None,
        )

    def replies(self, names: Sequence[str], question: Question) -> Replies:
        """See `TeacherHost.replies`."""
        return self._host.replies(names, question)

    def complete(self, epoch: int, limit: int | None = None) -> int:
        """See `TeacherHost.complete`."""
        return self._host.complete(epoch, limit)

    def forwards(self) -> int:
        """Forward passes of a backbone so far."""
        return self._host.forwards

    def seconds(self) -> float:
        """That they took."""
        return self._host.seconds

    def process(self) -> int:
        """Id of the process that the actor lives in now."""
        return os.getpid()


class WeightingActor:
    """Gathers the replies to a question from all teachers and weighs them. Keeps nothing.

    Args:
        homes: names of the teachers' actors, by teacher.
        room: questions whose gradients are held at once; further ones wait.
    """

    def __init__(self, homes: Mapping[str, str], room: int) -> None:
        torch.set_num_threads(1)  # small tensors: more threads only wait for each other
        # Actors by name: handles among the arguments would not outlive a restart of this actor.
        actors = {home: ray.get_actor(home) for home in set(homes.values())}
        self._homes = {name: actors[home] for name, home in homes.items()}
        self._room = asyncio.Semaphore(room)

    async def ask(self, question: Question) -> Answer:
        """See `Source.ask`."""
        wanted: dict[Any, list[str]] = {}
        for name in question.lesson.members:
            wanted.setdefault(self._homes[name], []).append(name)
        async with self._room:
            told = await asyncio.gather(
                *(actor.replies.remote(names, question) for actor, names in wanted.items())
            )
            return weigh_replies(question, told)

    async def complete(self, epoch: int) -> None:
        """See `Source.complete`."""
        actors = set(self._homes.values())
        await asyncio.gather(*(actor.complete.remote(epoch) for actor in actors))

    async def process(self) -> int:
        """Id of the process that the actor lives in now."""
        return os.getpid()


@dataclass(frozen=True)
class FleetSource:
    """A student's end of the fleet; may travel to any process (a `Source`).

    Attributes:
        actor: the weighting actor.
        post: tells the driver of a stall.
    """

    actor: Any
    post: Post

    def ask(self, question: Question) -> Answer:
        """See `Source.ask`.

        Raises:
            RunError: a teacher or the weighting actor is lost for good.
            AgrekdError: what a teacher raised.
        """
        members = ", ".join(question.lesson.members)
        return self._wait(self.actor.ask.remote(question), f"step {question.step}", members)

    def complete(self, epoch: int) -> None:
        """See `Source.complete`; raises as `ask`."""
        self._wait(self.actor.complete.remote(epoch), f"the record of epoch {epoch}", "all")

    def _wait(self, reference: Any, what: str, whom: str) -> Any:
        waited = 0.0
        while True:
            try:
                return ray.get(reference, timeout=STALL_SECONDS)
            except GetTimeoutError:
                waited += STALL_SECONDS
                self.post(Note(f"{what} has waited {waited:.0f} s for its teachers ({whom})"))
            except (RayTaskError, RayActorError) as error:
                raise plain_error(error, "the fleet of teachers") from None


class Fleet:
    """All actors of an ensemble. The driver owns them: `close` ends them.

    Args:
        checkpoints: folders by teacher's name, the biased model among them.
        data: settings of the data set; every actor opens it itself.
        settings: how teachers are hosted.
        post: tells the driver of stalls.
        outputs: where answers are recorded; None records nothing.
        workers: of the student, who ask at the same time and need CPUs of their own.
        cpus_taken: logical CPUs that the student's workers take.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Path],
        data: DataSettings,
        settings: FleetSettings,
        post: Post,
        *,
        outputs: OutputSettings | None = None,
        workers: int = 1,
        cpus_taken: float = 1,
    ) -> None:
        shares = placement(checkpoints, settings.backbones_per_actor)
        cpus = settings.cpus
        if cpus is None:
            free = ray.cluster_resources().get("CPU", 1) - cpus_taken
            cpus = max(0.01, min(1.0, 0.9 * free / len(shares)))
        fingerprint = open_dataset(data).fingerprint
        self._post = post
        fleet = f"fleet-{uuid.uuid4().hex[:8]}"
        names = [f"{fleet}-teachers-{number}" for number in range(len(shares))]
        self.actors = [
            ray.remote(TeacherActor)
            .options(
                num_cpus=cpus,
                num_gpus=settings.gpus,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy="SPREAD",
                name=name,
            )
            .remote(
                {name: checkpoints[name].resolve() for name in share},
                data,
                fingerprint,
                settings,
                (settings.look_ahead + 2) * (workers + 1),
                outputs,
            )
            for name, share in zip(names, shares, strict=True)
        ]
        homes = {
            teacher: name for name, share in zip(names, shares, strict=True) for teacher in share
        }
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.weighting = (
            ray.remote(WeightingActor)
            .options(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                max_concurrency=1000,
                scheduling_strategy=here,
            )
            .remote(homes, STEPS_HELD * workers)
        )

    def forwards(self) -> int:
        """Forward passes of a backbone so far, over all actors."""
        return int(self._sum("forwards"))

    def seconds(self) -> float:
        """That they took, over all actors."""
        return self._sum("seconds")

    def _sum(self, figure: str) -> float:
        try:
            return sum(ray.get([getattr(actor, figure).remote() for actor in self.actors]))
        except (RayTaskError, RayActorError) as error:
            raise plain_error(error, "a teacher") from None

    def record(self, view: int, rows: int, step: Callable[[int], None]) -> None:
        """Record a view whole, all actors at once.

        Args:
            view: its number, which is also an epoch that shows it.
            rows: samples of a view.
            step: called with the samples that an actor has done since its last sign of life.

        Raises:
            AgrekdError: what a teacher raised.
        """
        missing = dict.fromkeys(self.actors, rows)
        under_way = {actor.complete.remote(view, RECORD_STEP): actor for actor in self.actors}
        try:
            while under_way:
                (done,), _ = ray.wait(list(under_way), num_returns=1)
                actor, left = under_way.pop(done), ray.get(done)
                if left:
                    under_way[actor.complete.remote(view, RECORD_STEP)] = actor
                step(missing[actor] - left)
                missing[actor] = left
        except (RayTaskError, RayActorError) as error:
            raise plain_error(error, "a teacher") from None

    def source(self) -> FleetSource:
        """A student's end."""
        return FleetSource(self.weighting, self._post)

    def close(self) -> None:
        """End every actor."""
        for actor in (self.weighting, *self.actors):
            ray.kill(actor)


def placement(checkpoints: Mapping[str, Path], backbones_per_actor: int) -> list[tuple[str, ...]]:
    """Which teachers live together: all heads of a backbone, and so many backbones an actor.

    Args:
        checkpoints: folders by teacher's name.
        backbones_per_actor: at most so many different backbones in one actor.

    Returns:
        Names by actor; backbones spread evenly over as few actors as possible.
    """
    heads: dict[str, list[str]] = {}
    for name, folder in checkpoints.items():
        heads.setdefault(read_manifest(folder).backbone, []).append(name)
    backbones = list(heads.values())
    actors = -(-len(backbones) // backbones_per_actor)
    return [tuple(name for some in backbones[n::actors] for name in some) for n in range(actors)]
