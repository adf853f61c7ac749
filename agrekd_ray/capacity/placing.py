"""The machines of a plan, and who of a job is where on them: as a run places its processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from agrekd_ray.capacity.size import JobSize
from agrekd_ray.cluster.placement import (
    Node,
    Placed,
    Placement,
    ResourceRequest,
    cpus_of,
    no_room,
    place,
)
from agrekd_ray.experiment.gpus import (
    divided,
    parts,
    side_by_side,
    worker_request,
    worker_shares,
)
from agrekd_ray.settings import AUTO, Count, NonNegative, Positive, Settings, Whole


class Machines(Settings):
    """The machines; all alike.

    Attributes:
        nodes: how many.
        gpus: of each.
        cpus: cores of each.
        memory_gb: memory of each, GB (10⁹ bytes).
        gbit: bandwidth of each one's network link, Gbit/s, in both directions at once.
        latency_us: of a message between two of them, one way, microseconds.
        disk_mb: what the folder of records takes in, MB/s, over all nodes.
    """

    nodes: Annotated[Count, Field(le=100_000)] = 1
    gpus: Annotated[Whole, Field(le=1024)] = 0
    cpus: Annotated[Count, Field(le=4096)] = 2
    memory_gb: Positive = 64
    gbit: Positive = 10
    latency_us: NonNegative = 100
    disk_mb: Positive = 500

    def as_nodes(self, processes: int) -> list[Node]:
        """The machines, as many as so many processes can be placed on."""
        room = {"CPU": float(self.cpus), "GPU": float(self.gpus)}
        return [Node(f"node {n}", room, room) for n in range(min(self.nodes, processes))]


def workers_wanted(size: JobSize) -> list[ResourceRequest]:
    """Room that a student's workers take."""
    room = {"CPU": size.student_cpus, "GPU": size.student_gpus}
    return [worker_request(room)] * size.workers


def actors_wanted(size: JobSize, machines: Machines, students: int) -> list[ResourceRequest]:
    """Room that the teachers' actors take beside so many students."""
    taken = students * size.workers * size.student_cpus
    cpus = cpus_of(size.actor_cpus, size.actors, machines.cpus * machines.nodes, taken)
    return [ResourceRequest("teachers", {"CPU": cpus, "GPU": size.actor_gpus})] * size.actors


def with_gpus(size: JobSize, machines: Machines) -> tuple[JobSize, int]:
    """A job with numbers for the GPUs that it leaves open, as a run has them.

    Returns:
        The job, and how many students have room side by side, at most as many as there are.
    """
    workers, actors = [size.student_gpus], [size.actor_gpus]
    if "student" in size.gpus_left_open:
        nodes = machines.as_nodes(size.workers)
        workers = worker_shares(workers_wanted(size), AUTO, nodes, lambda: size.students_on_a_gpu)
    if "fleet" in size.gpus_left_open and machines.gpus:
        actors = parts(size.actors_on_a_gpu)
    students = len(size.strategies) + size.plain
    most, crowded = min(students, size.at_once or students), size.at_once is not None
    nodes = machines.as_nodes(most * size.workers)
    groups = side_by_side(workers_wanted(size), workers, nodes, most, crowded=crowded)

    def wanted(worker: float | None, actor: float | None) -> list[ResourceRequest]:
        given = replace(size, student_gpus=worker or 0.0, actor_gpus=actor or 0.0)
        beside = 0 if worker is None else groups
        teachers = [] if actor is None else actors_wanted(given, machines, beside)
        return workers_wanted(given) * beside + teachers

    nodes = machines.as_nodes(groups * size.workers + size.actors)
    worker, actor = divided(wanted, workers, actors, nodes, size.records)
    return replace(size, student_gpus=worker, actor_gpus=actor), groups


@dataclass(frozen=True)
class Placing:
    """Who is where in a live step; the driver is on the first node of the student's.

    Attributes:
        student_nodes: that the student's workers take.
        workers_here: on the driver's node.
        actors_here: teachers' actors on the node that has most.
        actors_per_gpu: on the GPU that has most; 0 without GPUs.
        far: share of the teachers' actors that are on other nodes than the driver's.
        loads: numbers of workers and teachers' actors together on a node, each pair once.
    """

    student_nodes: int
    workers_here: int
    actors_here: int
    actors_per_gpu: int
    far: float
    loads: tuple[tuple[int, int], ...]


def who_is_where(size: JobSize, machines: Machines) -> tuple[Placing, str]:
    """Where a run plans a job's processes to be, and what has no room, in words; empty for none."""
    students, teachers = workers_wanted(size), actors_wanted(size, machines, 1)
    nodes = machines.as_nodes(size.workers + size.actors)
    placements = [place([*students, *teachers], nodes)]
    if placements[0].without_room and size.records and "fleet" in size.gpus_left_open:
        # The teachers record what they say before the students begin.
        teachers = actors_wanted(size, machines, 0)
        placements = [place(students, nodes), place(teachers, nodes)]
    shortages = [_shortage(placement, machines, nodes) for placement in placements]
    placed = _crowded([process for each in placements for process in each.placed], nodes)
    workers, actors = placed[: size.workers], placed[size.workers :]
    workers_on = Counter(worker.node for worker in workers)
    actors_on = Counter(actor.node for actor in actors)
    on_gpus = Counter((actor.node, actor.gpu) for actor in actors if actor.gpu is not None)
    pairs = {(workers_on[node], actors_on[node]) for node in workers_on | actors_on}
    here = workers[0].node
    placing = Placing(
        student_nodes=len(workers_on),
        workers_here=workers_on[here],
        actors_here=max(actors_on.values()),
        actors_per_gpu=max(on_gpus.values(), default=0),
        far=1 - actors_on[here] / size.actors,
        loads=tuple(sorted(pairs)),
    )
    return placing, next(filter(None, shortages), "")


def _shortage(placement: Placement, machines: Machines, nodes: Sequence[Node]) -> str:
    """Of what there is too little in all, or else who finds no room; empty where all do."""
    lacking, everybody = placement.without_room, placement.placed
    if not lacking:
        return ""
    for name, each in (("GPU", machines.gpus), ("CPU", machines.cpus)):
        wants = sum(process.wanted.resources[name] for process in everybody)
        if wants > (has := each * machines.nodes) + 1e-9:
            return f"{wants:g} {name}s are wanted, {has:g} are there"
    return no_room(lacking, len(everybody), nodes)[1]


def _crowded(placed: Sequence[Placed], nodes: Sequence[Node]) -> list[Placed]:
    """Everybody, of whom those without room share what there is: they are where fewest are."""
    on_nodes = Counter(process.node for process in placed)
    on_gpus = Counter((process.node, process.gpu) for process in placed)
    gpus = range(max(1, int(nodes[0].total["GPU"])))
    everybody = []
    for wanted, node, gpu in placed:
        if node is None:
            node = min((one.name for one in nodes), key=on_nodes.__getitem__)
            on_nodes[node] += 1
            if wanted.resources["GPU"]:
                _, gpu = min((on_gpus[node, number], number) for number in gpus)
            on_gpus[node, gpu] += 1
        everybody.append(Placed(wanted, node, gpu))
    return everybody
