"""Who of a job finds room where: a plan, worked out before anything starts. No Ray here."""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.errors import RunError
from agrekd_ray.models import read_manifest
from agrekd_ray.settings import a_number

_ROUNDING = 1e-6
"""Ray counts in ten-thousandths."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        name: its address.
        total: resources by name (`CPU`, `GPU`, custom ones).
        free: of them, what nobody holds now.
        labels: by key.
        id: Ray's; empty where Ray does not know it.
    """

    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True)
class ResourceRequest:
    """What one process asks of the node that it finds room on.

    Attributes:
        what: the process is, in words.
        resources: that it takes, by name.
        labels: that its node must have: a value, `!value`, `in(a,b)` or `!in(a,b)` by key, as
            Ray has them.
        kind: those of one kind are a line of a plan.
        packed: whether such processes fill a node before the next, as Ray packs the workers of a
            student; others spread.
    """

    what: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    kind: str = "teachers' actors"
    packed: bool = False

    @property
    def in_words(self) -> str:
        """The amounts and labels in a line."""
        amounts = [f"{value:g} {name}" for name, value in self.resources.items() if value]
        labels = [f"{key}={value}" for key, value in self.labels.items()]
        return ", ".join(amounts or ["0 CPU"]) + (f" on {' '.join(labels)}" if labels else "")


@dataclass(frozen=True)
class ActorSpec:
    """Teachers that live in one actor, and what it takes.

    Attributes:
        teachers: their names.
        wanted: room for one actor of theirs.
    """

    teachers: tuple[str, ...]
    wanted: ResourceRequest


def backbones_of(checkpoints: Mapping[str, Path]) -> dict[str, str]:
    """Backbones by teacher's name, of their folders."""
    return {name: read_manifest(folder).backbone for name, folder in checkpoints.items()}


def shares_of(
    backbones: Mapping[str, str], settings: FleetSettings, cpus: float | None = None
) -> list[ActorSpec]:
    """Which teachers live together, and what they take.

    All heads of a backbone live together, and so many backbones an actor as the settings say;
    backbones spread evenly over as few actors as possible. Only teachers that are placed alike
    share an actor.

    Args:
        backbones: by teacher's name, the biased model among them.
        settings: of the fleet.
        cpus: of an actor, where the settings leave it open.
    """
    heads: dict[str, list[str]] = {}
    for name, backbone in backbones.items():
        heads.setdefault(backbone, []).append(name)
    alike: dict[tuple[object, ...], list[list[str]]] = {}
    for names in heads.values():
        own = settings.of(names[0])
        place = (own.gpus, tuple(own.resources.items()), tuple(own.labels.items()))
        alike.setdefault(place, []).append(names)
    found = []
    for bodies in alike.values():
        actors = -(-len(bodies) // settings.backbones_per_actor)
        for number in range(actors):
            names = [name for some in bodies[number::actors] for name in some]
            own = settings.of(names[0])
            resources = {"CPU": cpus or 0.0, "GPU": a_number(own.gpus), **own.resources}
            wanted = ResourceRequest(f"teachers {', '.join(names)}", resources, own.labels)
            found.append(ActorSpec(tuple(names), wanted))
    return found


def shares_on(
    nodes: Sequence[Node],
    checkpoints: Mapping[str, Path],
    settings: FleetSettings,
    students: Sequence[ResourceRequest],
) -> list[ActorSpec]:
    """As `shares_beside`, of teachers that are made, by the folders of their checkpoints."""
    return shares_beside(students, nodes, backbones_of(checkpoints), settings)


def shares_beside(
    students: Sequence[ResourceRequest],
    nodes: Sequence[Node],
    backbones: Mapping[str, str],
    settings: FleetSettings,
) -> list[ActorSpec]:
    """Which teachers live together, and what they take beside the students.

    Args:
        students: workers.
        nodes: of the cluster.
        backbones: by teacher's name, the biased model among them.
        settings: of the fleet.
    """
    shares = shares_of(backbones, settings)
    # Teachers on GPUs have the CPUs of those nodes alone.
    hosts = [
        node
        for node in nodes
        if not any(share.wanted.resources["GPU"] for share in shares) or node.total.get("GPU", 0)
    ]
    there = sum(node.total.get("CPU", 0) for node in hosts)
    taken = sum(one.resources.get("CPU", 0) for one in students)
    cpus = cpus_of(settings.cpus, len(shares) * settings.replicas, there, taken)
    return shares_of(backbones, settings, cpus)


def cpus_of(cpus: float | None, actors: int, cluster: float, taken: float) -> float:
    """Logical CPUs of a teacher's actor: as set, or a share of what the students leave.

    Args:
        cpus: that are set; None where the job leaves them open.
        actors: that share.
        cluster: CPUs of all nodes.
        taken: of them by the students' workers.
    """
    if cpus is not None:
        return cpus
    return max(0.01, min(1.0, 0.9 * (cluster - taken) / max(actors, 1)))


class Placed(NamedTuple):
    """Where a process was put.

    Attributes:
        wanted: what it asked for.
        node: its node's name; None where it found no room.
        gpu: number of its GPU there, the first where it has several; None where it has none.
    """

    wanted: ResourceRequest
    node: str | None
    gpu: int | None = None


@dataclass(frozen=True)
class Placement:
    """A plan: who finds room on which node.

    Attributes:
        placed: everybody who must find room, in their order.
        idle: GPUs of each node that nobody was put on.
    """

    placed: tuple[Placed, ...]
    idle: Mapping[str, int]

    @property
    def without_room(self) -> list[ResourceRequest]:
        """Who finds none."""
        return [process.wanted for process in self.placed if process.node is None]

    def lines(self) -> list[str]:
        """The plan in words: a line a kind of process."""
        kinds: dict[tuple[str, str], Counter[str | None]] = {}
        for process in self.placed:
            kind = (process.wanted.kind, process.wanted.in_words)
            kinds.setdefault(kind, Counter())[process.node] += 1
        found = []
        for (what, takes), where in kinds.items():
            places = [
                f"{node} × {count}" if count > 1 else f"{node}"
                for node, count in where.items()
                if node is not None
            ]
            if lacking := where.get(None, 0):
                places.append(f"no room for {lacking}")
            found.append(f"{what}: {sum(where.values())} × ({takes}) on {', '.join(places)}")
        return found


def place(
    wanted: Sequence[ResourceRequest], nodes: Sequence[Node], *, free: bool = False
) -> Placement:
    """Work out who finds room where: the largest first, on the emptiest node that has room.

    A share of a GPU is one of a single GPU, the fullest of its node that has it left, as with Ray.

    Args:
        wanted: who must find room; those who ask for the same spread over the nodes, or are packed,
            unless more find room where nobody is.
        nodes: of the cluster.
        free: count the room that is free now, not all that there is.
    """
    placement = _placed(wanted, nodes, free, packing=True)
    if placement.without_room and any(one.packed for one in wanted):
        spread = _placed(wanted, nodes, free, packing=False)
        if len(spread.without_room) < len(placement.without_room):
            return spread
    return placement


def _placed(
    wanted: Sequence[ResourceRequest], nodes: Sequence[Node], free: bool, packing: bool
) -> Placement:
    left = [dict(node.free if free else node.total) for node in nodes]
    gpus = [_Gpus(room.pop("GPU", 0)) for room in left]
    guests = [0] * len(nodes)
    placed = [Placed(one, None) for one in wanted]
    order = sorted(
        range(len(wanted)),
        key=lambda one: [-wanted[one].resources.get(name, 0) for name in ("GPU", "CPU")],
    )
    for _, alike in groupby(order, lambda n: (wanted[n].resources, wanted[n].labels)):
        one, *more = alike
        resources, labels = wanted[one].resources, wanted[one].labels
        emptiest = [(guests[n], n) for n, node in enumerate(nodes) if matches(node.labels, labels)]
        heapify(emptiest)
        for number in (one, *more):
            # A node that has no room for one of several that are alike has none for the next.
            while emptiest and not _has_room(left[emptiest[0][1]], gpus[emptiest[0][1]], resources):
                heappop(emptiest)
            if not emptiest:
                break
            chosen = emptiest[0][1]
            guests[chosen] += 1
            if not (packing and wanted[number].packed):
                heapreplace(emptiest, (guests[chosen], chosen))
            gpu = gpus[chosen].take(resources.get("GPU", 0))
            for name, amount in resources.items():
                if name != "GPU":
                    left[chosen][name] = left[chosen].get(name, 0) - amount
            placed[number] = Placed(wanted[number], nodes[chosen].name, gpu)
    idle = {node.name: own.idle for node, own in zip(nodes, gpus, strict=True)}
    return Placement(tuple(placed), idle)


class _Gpus:
    """A node's GPUs: the numbers of those of which so much is left."""

    def __init__(self, amount: float) -> None:
        whole = int(amount + _ROUNDING)
        self._left = {1.0: list(range(whole))}
        if rest := round(amount - whole, 6):
            self._left[rest] = [whole]

    def _fullest(self, amount: float) -> float | None:
        """What is left of the fullest one that still has room for an amount."""
        return min(
            (left for left, gpus in self._left.items() if gpus and left + _ROUNDING >= amount),
            default=None,
        )

    def have(self, amount: float) -> bool:
        """Whether an amount finds room: a share on one of them, more than one on whole ones."""
        return len(self._left[1.0]) >= amount if amount > 1 else self._fullest(amount) is not None

    def take(self, amount: float) -> int | None:
        """Give an amount to somebody for whom there is room; the number of the first GPU of it."""
        count, share = (math.ceil(amount), 1.0) if amount > 1 else (1, amount)
        if not share or (left := self._fullest(share)) is None:
            return None
        taken, self._left[left] = self._left[left][:count], self._left[left][count:]
        self._left.setdefault(round(left - share, 6), []).extend(taken)
        return taken[0]

    @property
    def idle(self) -> int:
        """How many are untouched."""
        return len(self._left[1.0])


def check_room(
    students: Sequence[ResourceRequest], teachers: Sequence[ResourceRequest], nodes: Sequence[Node]
) -> str:
    """Refuse what will never find room on these nodes, however long one waits.

    Args:
        students: workers.
        teachers: actors that must be there at the same time.
        nodes: of the cluster.

    Returns:
        What has to wait for others to leave, in words; empty where nothing has.

    Raises:
        RunError: says what is wanted and what is there.
    """
    everybody = [*students, *teachers]
    lacking = place(everybody, nodes).without_room
    if lacking:
        raise RunError(_never(lacking, len(everybody), nodes))
    waiting = place(everybody, nodes, free=True).without_room
    if not waiting:
        return ""
    return (
        f"{len(waiting)} of {len(everybody)} processes of this job wait for room that others hold "
        f"now (the first: {waiting[0].what}, {waiting[0].in_words})"
    )


def no_room(
    lacking: Sequence[ResourceRequest], of: int, nodes: Sequence[Node]
) -> tuple[ResourceRequest, str]:
    """The first who finds no room, alone if there is such a one, and a clause that says so.

    Args:
        lacking: who finds none beside the others.
        of: how many there are with the others.
        nodes: of the cluster.
    """
    different: dict[str, ResourceRequest] = {}
    for one in lacking:
        different.setdefault(one.in_words, one)
    for one in different.values():
        if place([one], nodes).without_room:
            return one, f"{one.what}: no node has room for it: {one.in_words} wanted"
    first = lacking[0]
    return first, (
        f"{len(lacking)} of {of} processes find no room beside the others (the first: "
        f"{first.what}, {first.in_words})"
    )


def _never(lacking: Sequence[ResourceRequest], of: int, nodes: Sequence[Node]) -> str:
    first, clause = no_room(lacking, of, nodes)
    there = "; ".join(_in_words(node, first) for node in nodes[:8])
    more = f"; and {len(nodes) - 8} nodes more" if len(nodes) > 8 else ""
    return (
        f"{clause}; there: {there}{more}. Ask for less (cpus, gpus and workers of "
        "student, teachers and fleet), put more teachers in an actor "
        "(fleet.backbones_per_actor), record them in turns first (`agrekd record`, with guidance: "
        "auto), or add nodes."
    )


def _in_words(node: Node, wanted: ResourceRequest) -> str:
    names = [name for name, value in wanted.resources.items() if value] or ["CPU"]
    amounts = ", ".join(f"{node.total.get(name, 0):g} {name}" for name in names)
    labels = " ".join(f"{key}={node.labels.get(key, '(none)')}" for key in wanted.labels)
    return f"{node.name} {amounts}" + (f" {labels}" if labels else "")


def rounds(wanted: Sequence[ResourceRequest], nodes: Sequence[Node]) -> list[list[int]]:
    """Who is hosted together, where not all find room at once: in turns, as few as it takes.

    Args:
        wanted: who must find room, some time.
        nodes: of the cluster.

    Returns:
        Indices by turn.

    Raises:
        RunError: one finds none even alone.
    """
    turns: list[list[int]] = []
    left = list(range(len(wanted)))
    while left:
        placed = place([wanted[one] for one in left], nodes).placed
        turn = [one for one, process in zip(left, placed, strict=True) if process.node is not None]
        if not turn:
            raise RunError(_never([wanted[left[0]]], len(wanted), nodes))
        turns.append(turn)
        left = [one for one in left if one not in set(turn)]
    return turns


_CHOICE = re.compile(r"^(!?)(?:in\((.*)\)|(.*))$")


def matches(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node has labels as wanted, in Ray's notation."""
    for key, value in wanted.items():
        found = _CHOICE.match(value)
        negated, several, single = found.groups() if found else ("", None, value)
        choices = [c.strip() for c in several.split(",")] if several is not None else [single]
        if (labels.get(key) in choices) == bool(negated):
            return False
    return True


def _has_room(left: Mapping[str, float], gpus: _Gpus, resources: Mapping[str, float]) -> bool:
    return all(
        not amount or gpus.have(amount)
        if name == "GPU"
        else left.get(name, 0) + _ROUNDING >= amount
        for name, amount in resources.items()
    )


def unknown_patterns(settings: FleetSettings, names: Sequence[str]) -> list[str]:
    """Patterns of `fleet.teachers` that fit no teacher."""
    return [
        pattern
        for pattern in settings.teachers
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names)
    ]
