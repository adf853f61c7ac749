"""Where the parts of a job would run, and whether the machines have room for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agrekd_ray.planning.settings import Machines
from agrekd_ray.planning.setup import Setup
from agrekd_ray.run.gpus import LARGE, divided, parts


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


def with_gpus(setup: Setup, machines: Machines) -> Setup:
    """A job with numbers for the GPUs that it leaves open, by the rule of `run.gpus`."""
    there = machines.gpus * machines.nodes
    workers, actors, groups = [setup.student_gpus], [setup.actor_gpus], 1
    if "student" in setup.gpus_left_open:
        alone = 1.0 if there >= setup.workers else 0.0
        several = setup.workers > 1 or not there
        workers = [alone] if several else parts(setup.students_on_a_gpu)
        groups = groups_with_room(replace(setup, student_gpus=workers[-1]), machines)
    if "fleet" in setup.gpus_left_open:
        actors = parts(setup.actors_on_a_gpu) if there else [0.0]

    def fits(worker: float | None, actor: float | None) -> bool:
        full, rest = there, 0.0
        if worker:
            used, over = divmod(groups * setup.workers, int(1 / worker + 1e-9))
            full, rest = there - used - (over > 0), 1 - over * worker if over else 0.0
        if full < 0 or not actor:
            return full >= 0
        return full * int(1 / actor + 1e-9) + int(rest / actor + 1e-9) >= setup.actors

    worker, actor = divided(fits, workers, actors, setup.records)
    return replace(setup, student_gpus=worker, actor_gpus=actor)


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
        gpus=(_wanted(setup, machines.gpus * nodes), machines.gpus * nodes),
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
        room = min(room, machines.gpus / _worth(setup))
    return max(1, int(room + 1e-9))


def _worth(setup: Setup) -> float:
    """Share of a GPU that a worker can make use of, where others could share it."""
    large = "student" in setup.gpus_left_open and setup.students_on_a_gpu == LARGE
    return 1.0 if large else setup.student_gpus


def _wanted(setup: Setup, there: float) -> float:
    """GPUs that are wanted at the same time."""
    students, teachers = setup.workers * setup.student_gpus, setup.actors * setup.actor_gpus
    if setup.records and "fleet" in setup.gpus_left_open and students + teachers > there:
        return max(students, min(teachers, there))  # they record before the students begin
    return students + teachers
