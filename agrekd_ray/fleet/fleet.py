"""The live source: teachers in Ray actors, and a weighting actor beside the driver."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from agrekd_ray.cluster.channel import plain_error
from agrekd_ray.cluster.events import Emit, Notice
from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.cluster.nodes import DriverData, cluster_nodes, look_for_room, waits_for_room
from agrekd_ray.cluster.placement import ActorSpec, ResourceRequest, place, rounds, shares_on
from agrekd_ray.cluster.session import here, preferred
from agrekd_ray.core.gradient import DistillationGradient
from agrekd_ray.data import DataSettings
from agrekd_ray.distillation.host import WHOLE, Part
from agrekd_ray.distillation.spec import DistillationSpec, GradientRequest
from agrekd_ray.errors import RunError
from agrekd_ray.fleet.actors import TeacherActor, WeightingActor
from agrekd_ray.logits import OutputSettings
from agrekd_ray.results import TeacherCost
from agrekd_ray.training import Column

STALL_SECONDS = 30.0
STEPS_HELD = 3
"""Steps whose gradients the weighting actor holds at once; a worker asks its part of a step."""
JOIN_SECONDS = 10.0
"""That a record waits for replicas that are not there yet."""


@dataclass(frozen=True)
class FleetSource:
    """A student's end of the fleet; may travel to any process (a `Source`).

    Attributes:
        actors: that weigh; each of a student's workers asks one of them.
        emit: tells the driver of a stall, and of a loss.
    """

    actors: tuple[Any, ...]
    emit: Emit
    _known: set[str] = field(default_factory=set)

    def columns(self, spec: DistillationSpec, epoch: int) -> Sequence[Column]:
        """See `Source.columns`; what is recorded is others' matter."""
        return ()

    def fault(self, spec: DistillationSpec, epoch: int) -> str:
        """See `Source.fault`."""
        return ""

    def ask(self, request: GradientRequest) -> DistillationGradient:
        """See `Source.ask`.

        Raises:
            RunError: a teacher or the weighting actor is lost for good.
            AgrekdError: what a teacher raised.
        """
        spec = request.spec
        what = f"step {request.step}"
        answer = self._wait(self._actor.ask.remote(request), what, ", ".join(spec.members))
        lost = {name for name, gone in zip(spec.teachers, answer.lost_M, strict=True) if gone}
        if lost - self._known:
            self._tell(lost - self._known, what)
        return answer

    def complete(self, epoch: int) -> None:
        """See `Source.complete`; raises as `ask`."""
        self._wait(self._actor.complete.remote(epoch), f"the record of epoch {epoch}", "all")

    def _tell(self, lost: set[str], what: str) -> None:
        self._known.update(lost)
        reasons = self._wait(self._actor.lost.remote(), what, "all")
        why = " ".join(dict.fromkeys(reasons[name] for name in sorted(lost) if name in reasons))
        self.emit(
            Notice(f"lost: {', '.join(sorted(lost))}; the others teach on from {what} ({why})")
        )

    @property
    def _actor(self) -> Any:
        """This worker's; the first asks for the whole batch, where the weighting needs it."""
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return self.actors[rank % len(self.actors)]

    def _wait(self, reference: Any, what: str, whom: str) -> Any:
        waited = 0.0
        while True:
            try:
                return ray.get(reference, timeout=STALL_SECONDS)
            except GetTimeoutError:
                waited += STALL_SECONDS
                self.emit(Notice(f"{what} has waited {waited:.0f} s for {self._awaited(whom)}"))
            except RayError as error:
                raise plain_error(error, "the fleet of teachers") from None

    def _awaited(self, whom: str) -> str:
        try:
            names = ray.get(self._actor.awaited.remote(), timeout=5)
        except GetTimeoutError:
            return f"the weighting actor, which does not answer (teachers {whom})"
        except RayActorError:
            return f"the weighting actor, which is being restarted (teachers {whom})"
        return "; ".join(names) or f"teachers {whom}"


class Fleet:
    """All actors of an ensemble. The driver owns them: `close` ends them.

    Args:
        checkpoints: folders by teacher's name, the biased model among them.
        data: settings of the data set; every actor opens it itself.
        settings: how teachers are hosted.
        emit: tells the driver of stalls.
        outputs: where answers are recorded; None records nothing.
        askers: students' workers who ask at the same time.
        students: room that their processes take.

    Raises:
        RunError: the cluster never has room for it.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Path],
        data: DataSettings,
        settings: FleetSettings,
        emit: Emit,
        *,
        outputs: OutputSettings | None = None,
        askers: int = 1,
        students: Sequence[ResourceRequest] = (),
    ) -> None:
        shares, strategies = _placed(checkpoints, settings, emit, students)
        shown = DriverData.of(data)
        self._emit, self._patience = emit, settings.patience
        fleet = f"fleet-{uuid.uuid4().hex[:8]}"
        self._hosts: list[tuple[ActorSpec, list[Any]]] = []
        homes = []
        for number, share in enumerate(shares):
            names = [f"{fleet}-teachers-{number}-{n}" for n in range(settings.replicas)]
            actors = [
                ray.remote(TeacherActor)
                .options(
                    num_cpus=share.wanted.resources["CPU"],
                    num_gpus=share.wanted.resources["GPU"],
                    resources={
                        name: amount
                        for name, amount in share.wanted.resources.items()
                        if name not in ("CPU", "GPU")
                    },
                    label_selector=dict(share.wanted.labels) or None,
                    max_restarts=-1,
                    # Of several with the same teachers, another answers: see `ReplicaGroup`.
                    max_task_retries=-1 if len(names) == 1 else 0,
                    scheduling_strategy=next(strategies),
                    name=name,
                )
                .remote(
                    {name: checkpoints[name].resolve() for name in share.teachers},
                    shown,
                    settings,
                    (settings.look_ahead + 2) * (askers + 1),
                    outputs,
                )
                for name in names
            ]
            self._hosts.append((share, actors))
            homes.append((share.teachers, tuple(names)))
        count = settings.weighting_actors
        self.weighting = [
            ray.remote(WeightingActor)
            .options(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                max_concurrency=1000,
                scheduling_strategy="SPREAD" if number else here(),
            )
            .remote(
                homes,
                STEPS_HELD * -(-askers // count),
                settings.patience,
                settings.on_teacher_loss == "drop",
                outputs is None,
            )
            for number in range(count)
        ]

    @property
    def actors(self) -> list[Any]:
        """Of all teachers, replicas among them."""
        return [actor for _, actors in self._hosts for actor in actors]

    @property
    def wanted(self) -> list[ResourceRequest]:
        """Room that they take."""
        return [share.wanted for share, actors in self._hosts for _ in actors]

    def effort(self, patience: float = STALL_SECONDS) -> TeacherCost:
        """What the teachers have cost so far; what an actor did before it died is lost.

        Args:
            patience: seconds that they have to answer.
        """
        asked = [actor.effort.remote() for actor in (*self.weighting, *self.actors)]
        told, _ = ray.wait(asked, num_returns=len(asked), timeout=patience)
        total = TeacherCost()
        for answer in told:
            with suppress(RayError):
                total += ray.get(answer)
        return replace(total, actors=len(self.actors))

    def record(self, view: int, rows: int, step: Callable[[float], None]) -> None:
        """Record a view whole, all actors at once; replicas have a part each.

        Args:
            view: its number, which is also an epoch that shows it.
            rows: samples of a view.
            step: called with the samples that were done since the last call, in the mean over the
                teachers' homes.

        Raises:
            AgrekdError: what a teacher raised.
            RunError: a teacher is silent for too long.
        """
        parts = {
            actor: (number, len(actors))
            for _, actors in self._hosts
            for number, actor in enumerate(self._ready(actors))
        }
        self._complete(view, parts, rows, step)
        if any(count > 1 for _, count in parts.values()):
            for _, actors in self._hosts:
                ray.get([actor.leave.remote(view) for actor in actors if actor in parts])
            first = {actors[0]: WHOLE for _, actors in self._hosts}
            self._complete(view, first, rows, lambda done: None)

    def lenders(self, name: str) -> list[Any]:
        """Actors that may have a teacher's records on the disk of their node."""
        return [
            actor for share, actors in self._hosts if name in share.teachers for actor in actors
        ]

    def _ready(self, actors: Sequence[Any]) -> list[Any]:
        """Those of the same teachers that are there, the first in any case."""
        if len(actors) == 1:
            return list(actors)
        first, *others = actors
        ray.get(first.process.remote())
        asked = {other.process.remote(): other for other in others}
        there, _ = ray.wait(list(asked), num_returns=len(asked), timeout=JOIN_SECONDS)
        return [first, *(asked[answer] for answer in there)]

    def _complete(
        self, view: int, parts: Mapping[Any, Part], rows: int, step: Callable[[float], None]
    ) -> None:
        missing = {actor: rows / count for actor, (_, count) in parts.items()}
        under_way = {actor.record.remote(view, part): actor for actor, part in parts.items()}
        waited = 0.0
        try:
            while under_way:
                done, _ = ray.wait(list(under_way), num_returns=1, timeout=STALL_SECONDS)
                if not done:
                    waited += STALL_SECONDS
                    self._stalled(view, waited, list(under_way.values()))
                    continue
                waited = 0.0
                actor, left = under_way.pop(done[0]), ray.get(done[0])
                if left:
                    again = actor.record.remote(view, parts[actor])
                    under_way[again] = actor
                step((missing[actor] - left) / len(self._hosts))
                missing[actor] = left
        except RayError as error:
            raise plain_error(error, "a teacher") from None

    def _stalled(self, view: int, waited: float, silent: Sequence[Any]) -> None:
        names = [", ".join(s.teachers) for s, actors in self._hosts if set(actors) & set(silent)]
        whom = f"teachers {'; '.join(names)}"
        patient = self._patience is None or waited < self._patience
        if not patient and not any(waits_for_room(actor) for actor in silent):
            raise RunError(
                f"{whom}: silent for {waited:.0f} s while view {view} is recorded. Look at their "
                "processes and nodes, then start again: what is recorded is kept. A slow teacher "
                "needs a longer fleet.patience."
            )
        self._emit(Notice(f"the record of view {view} has waited {waited:.0f} s for {whom}"))

    def source(self) -> FleetSource:
        """A student's end."""
        return FleetSource(tuple(self.weighting), self._emit)

    def close(self) -> None:
        """End every actor."""
        for actor in (*self.weighting, *self.actors):
            ray.kill(actor)


def fits(
    checkpoints: Mapping[str, Path], settings: FleetSettings, students: Sequence[ResourceRequest]
) -> bool:
    """Whether the cluster has room for all teachers at once, beside the students."""
    nodes = cluster_nodes()
    shares = shares_on(nodes, checkpoints, settings, students)
    return not place([*students, *(share.wanted for share in shares)], nodes).without_room


def turns(checkpoints: Mapping[str, Path], settings: FleetSettings) -> list[dict[str, Path]]:
    """Teachers that are hosted together, where the cluster has no room for all: turn by turn.

    Raises:
        RunError: there is a teacher that no node has room for.
    """
    nodes = cluster_nodes()
    shares = shares_on(nodes, checkpoints, settings, ())
    return [
        {name: checkpoints[name] for one in turn for name in shares[one].teachers}
        for turn in rounds([share.wanted for share in shares], nodes)
    ]


def _placed(
    checkpoints: Mapping[str, Path],
    settings: FleetSettings,
    emit: Emit,
    students: Sequence[ResourceRequest],
) -> tuple[list[ActorSpec], Iterator[Any]]:
    """Which teachers live together, on a cluster that has room for them and the students.

    The plan is told where there is more than one node, and what has to wait for others.

    Returns:
        Teachers of every actor, and where Ray is to put the actors and their replicas, in order: by
        itself it would spread them, and might leave the students' workers no whole CPU anywhere.
    """
    nodes = cluster_nodes()
    shares = shares_on(nodes, checkpoints, settings, students)
    wanted = [share.wanted for share in shares]
    nodes = look_for_room(students, wanted, emit)
    everybody = [*students, *(one for one in wanted for _ in range(settings.replicas))]
    placement = place(everybody, nodes)
    if len(nodes) > 1:
        for line in placement.lines():
            emit(Notice(line))
    ids = {node.name: node.id for node in nodes}
    return shares, (
        "SPREAD" if one.node is None else preferred(ids[one.node])
        for one in placement.placed[len(students) :]
    )
