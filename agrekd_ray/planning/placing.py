"""Where the parts of a job would run, and whether the machines have room for them."""

from __future__ import annotations

from dataclasses import dataclass

from agrekd_ray.planning.settings import Machines
from agrekd_ray.planning.setup import Setup


@dataclass(frozen=True)
class Placing:
    """Actors and workers on machines that are all alike.

    Attributes:
        student_nodes: that the student's workers take, filled one after another.
        workers_here: on the first of them, where the driver and a lone weighting actor are too.
        actors_here: teachers' actors on the node that has most; Ray spreads them.
        actors_per_gpu: on the GPU that has most; 0 without GPUs.
        far: share of the teachers' actors that are on other nodes than the weighting actor.
        gpus: wanted, and there.
        cpus: wanted, and there.
    """

    student_nodes: int
    workers_here: int
    actors_here: int
    actors_per_gpu: int
    far: float
    gpus: tuple[float, float]
    cpus: tuple[float, float]

    @property
    def shortage(self) -> str | None:
        """What is wanted and not there, in words; None where all has room."""
        for name, (wanted, there) in (("GPUs", self.gpus), ("CPUs", self.cpus)):
            if wanted > there + 1e-9:
                return f"{wanted:g} {name} are wanted, {there:g} are there"
        return None


def place(setup: Setup, machines: Machines) -> Placing:
    """Place a job; where there is no room for it, as if its parts shared what there is.

    Ray spreads the actors over the nodes, and fills one GPU with fractions before the next.
    """
    nodes = machines.nodes
    per_node = _workers_a_node(setup, machines)
    student_nodes = min(nodes, -(-setup.workers // per_node))
    actors_here = -(-setup.actors // nodes)
    actors_per_gpu = 0
    if setup.actor_gpus:
        taken = setup.workers * setup.student_gpus
        free = max(1.0, (machines.gpus * nodes - taken) / nodes)
        even = actors_here / free  # where more than fit have to share
        packed = min(actors_here, int(1 / setup.actor_gpus + 1e-9)) if setup.actor_gpus <= 1 else 1
        actors_per_gpu = max(1, packed, -int(-even // 1))
    elsewhere = max(0, setup.actors - actors_here)
    actor_cpus = (setup.actor_cpus or 0) * setup.actors
    return Placing(
        student_nodes=student_nodes,
        workers_here=-(-setup.workers // student_nodes),
        actors_here=actors_here,
        actors_per_gpu=actors_per_gpu,
        far=elsewhere / setup.actors,
        gpus=(
            setup.workers * setup.student_gpus + setup.actors * setup.actor_gpus,
            machines.gpus * nodes,
        ),
        cpus=(setup.workers * setup.student_cpus + actor_cpus, machines.cpus * nodes),
    )


def groups_with_room(setup: Setup, machines: Machines) -> int:
    """Students that have room side by side once the teachers have gone, at most as many as are."""
    room = _workers_a_node(setup, machines) * machines.nodes // setup.workers
    students = len(setup.strategies) + setup.plain
    return max(1, min(room, students, setup.at_once or students))


def _workers_a_node(setup: Setup, machines: Machines) -> int:
    room = machines.cpus / setup.student_cpus
    if setup.student_gpus:
        room = min(room, machines.gpus / setup.student_gpus)
    return max(1, int(room + 1e-9))
