"""Shares of GPUs for the processes of a job that leaves them open (`gpus: auto`). No Ray here.

Worked out by the driver, from the nodes, as each part of a job begins:

- A student's worker and the teachers beside it share the GPUs that their labels and resources let
  them have: a worker has the largest 1/k of one that leaves the teachers room, and they have equal
  shares of the rest. At most `LARGE` processes share a GPU, or `SMALL` where models are small.
- Workers of one student, or of one teacher, have a GPU each: NCCL cannot share one. Where there are
  fewer, they train on CPUs.
- Teachers that find no room beside the students have the GPUs before them, to record what they say.
  With `guidance: live` they find it however many share a GPU, and else on CPUs.
- Models that are made or asked on their own, and a search's trials, have a GPU each where they are
  large; small ones have equal shares.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from agrekd_ray.cluster.fleet_settings import FleetSettings, TeacherPlace
from agrekd_ray.cluster.placement import Node, ResourceRequest, check_room, place, shares_on
from agrekd_ray.config import Job
from agrekd_ray.data import Dataset
from agrekd_ray.models import Model, Shape, check_name, read_manifest
from agrekd_ray.models.checkpoint import WEIGHTS
from agrekd_ray.settings import AUTO
from agrekd_ray.student import StudentSettings

LARGE, SMALL = 8, 16
"""Processes on a GPU, at most: each has a CUDA context of half a gigabyte besides its model."""
CROWDED = 1000
"""The same for teachers that answer live and have nowhere else to go."""
FEW_WEIGHTS, SMALL_SAMPLE = 2_000_000, 3 * 64 * 64
"""A model is small up to so many weights, on samples of up to so many numbers."""
MOST_GROUPS = 1000
"""Of workers, side by side."""


def most_on_a_gpu(weights: int, shape: Shape) -> int:
    """Processes with such a model that share a GPU, at most.

    Args:
        weights: their number.
        shape: of a sample.
    """
    return SMALL if weights <= FEW_WEIGHTS and math.prod(shape) <= SMALL_SAMPLE else LARGE


def most_of(models: Collection[Model], samples: Dataset) -> int:
    """The same for models in training; the largest counts."""
    given = list(models)
    sizes = [
        sum(
            weight.numel()
            for weight in check_name(one, samples.shape, len(samples.classes)).parameters()
        )
        for number, one in enumerate(given)
        if one not in given[:number]
    ]
    return most_on_a_gpu(max(sizes, default=0), samples.shape)


def open_to(nodes: Sequence[Node]) -> list[Node]:
    """The nodes with the GPUs that nobody holds; where others hold them all, with those.

    What `auto` takes then has to wait for nobody, unless there is nothing else to wait for.
    """
    if not any(node.free.get("GPU", 0) for node in nodes):
        return list(nodes)
    return [
        replace(node, total={**node.total, "GPU": node.free.get("GPU", 0)})
        if "GPU" in node.total
        else node
        for node in nodes
    ]


def divided(
    wanted: Callable[[float | None, float | None], Sequence[ResourceRequest]],
    workers: Sequence[float],
    actors: Sequence[float],
    nodes: Sequence[Node],
    in_turns: bool,
) -> tuple[float, float]:
    """Shares of a GPU for a student's worker and for a teachers' actor.

    Args:
        wanted: everybody who must find room, for the shares of a worker and an actor; None where
            the others are not there.
        workers: possible shares, the largest first.
        actors: the same.
        nodes: of the cluster.
        in_turns: whether teachers may record what they say before the students begin.
    """
    if len(workers) == len(actors) == 1:
        return workers[0], actors[0]

    def fits(worker: float | None, actor: float | None) -> bool:
        return not place(wanted(worker, actor), nodes).without_room

    for worker in workers:
        share = _first(actors, lambda actor, worker=worker: fits(worker, actor))  # type: ignore[misc]
        if share is not None:
            return worker, share
    alone = _first(workers, lambda worker: fits(worker, None))
    worker = workers[-1] if alone is None else alone
    if in_turns:
        share = _first(actors, lambda actor: fits(None, actor))
        return worker, actors[-1] if share is None else share
    if len(actors) > 1:
        crowded = [_part(k) for k in range(len(actors) + 1, CROWDED + 1)]
        share = _first(crowded, lambda actor: fits(workers[-1], actor))
        return (worker, 0.0) if share is None else (workers[-1], share)
    return worker, actors[0]


def workers_of(student: StudentSettings) -> list[ResourceRequest]:
    """Room that the workers of a student take."""
    return [worker_request(student.takes, student.labels)] * student.workers


def worker_request(
    resources: Mapping[str, float], labels: Mapping[str, str] | None = None
) -> ResourceRequest:
    """Room that a student's worker takes."""
    kind = "students' workers"
    return ResourceRequest("student's worker", resources, labels or {}, kind, packed=True)


def training_of_a_teacher(job: Job) -> list[ResourceRequest]:
    """Room that the workers of a teacher's training take; no GPU where the job leaves it open."""
    own = job.teachers
    resources = {"CPU": own.cpus, "GPU": 0.0 if own.gpus == AUTO else own.gpus}
    if own.workers == 1:
        return [ResourceRequest("the training of a teacher", resources)]
    kind = "teachers' workers"
    return [ResourceRequest("teacher's worker", resources, {}, kind, packed=True)] * own.workers


def cpus_of_workers(job: Job) -> float:
    """Logical CPUs that the workers of a student, or of a teacher, take together."""
    student, teachers = job.student, job.teachers
    of_teachers = teachers.workers * teachers.cpus if teachers.workers > 1 else 0.0
    return max(student.workers * student.cpus, of_teachers)


def check_room_to_begin(job: Job, nodes: Sequence[Node]) -> None:
    """Refuse a job that has no room for a student, or for the training of a teacher.

    Raises:
        RunError: says what is wanted and what is there.
    """
    check_room(workers_of(numbered(job).student), [], nodes)
    if job.teachers.count:
        check_room([], training_of_a_teacher(job), nodes)


def with_gpus(
    job: Job,
    nodes: Sequence[Node],
    samples: Dataset,
    *,
    models: Collection[Model] = (),
    groups: int = 1,
    checkpoints: Mapping[str, Path] | None = None,
) -> Job:
    """The job with numbers for the GPUs of student and fleet; nothing else of it is changed.

    Args:
        job: the job.
        nodes: of the cluster.
        samples: the data set.
        models: of the students; none where none trains.
        groups: of workers, a student each, that train side by side.
        checkpoints: folders of the teachers that are hosted at the same time, by name.
    """
    nodes, student, fleet = open_to(nodes), job.student, job.fleet
    checkpoints = checkpoints or {}

    def wanted(worker: float | None, actor: float | None) -> list[ResourceRequest]:
        found: list[ResourceRequest] = []
        if worker is not None and models:
            found = workers_of(_filled(student, worker)) * groups
        if actor is not None and checkpoints:
            shares = shares_on(nodes, checkpoints, _filled_fleet(fleet, nodes, actor), found)
            found = found + [one.wanted for one in shares for _ in range(fleet.replicas)]
        return found

    workers = _worker_shares(student, models, samples, nodes)
    actors = _actor_shares(fleet, checkpoints, nodes)
    worker, actor = divided(wanted, workers, actors, nodes, job.guidance == "auto")
    return numbered(job, nodes, student=worker, fleet=actor)


def numbered(
    job: Job, nodes: Sequence[Node] = (), *, student: float = 0.0, fleet: float = 0.0
) -> Job:
    """The job with these numbers where it leaves the GPUs of student or fleet open.

    Args:
        job: the job.
        nodes: of the cluster; teachers that no GPU of theirs is open to have none.
        student: share of a worker.
        fleet: share of a teachers' actor.
    """
    update = {
        "student": _filled(job.student, student),
        "fleet": _filled_fleet(job.fleet, nodes, fleet),
    }
    return job.model_copy(update=update)


def share_of_task(
    wanted: ResourceRequest,
    gpus: float | Literal["auto"],
    count: int,
    nodes: Sequence[Node],
    most: Callable[[], int],
) -> float:
    """Share of a GPU for each of several processes that may take turns.

    Args:
        wanted: room for one, besides a GPU.
        gpus: as the job has it.
        count: how many there are.
        nodes: of the cluster.
        most: how many of them share a GPU at most, as `most_on_a_gpu` has it.
    """
    if gpus != AUTO:
        return gpus
    hosts = [node for node in open_to(nodes) if node.total.get("GPU", 0)]
    count = min(count, math.ceil(sum(node.total["GPU"] for node in hosts)) * SMALL)
    placed = place([with_share(wanted, 0.0)] * count, hosts).placed
    at_once = sum(process.node is not None for process in placed)
    if not at_once:
        return 0.0
    if most() == LARGE:
        return 1.0
    shares = parts(SMALL)
    return (
        _first(
            shares,
            lambda share: not place([with_share(wanted, share)] * at_once, hosts).without_room,
        )
        or shares[-1]
    )


def groups_at_once(
    job: Job,
    nodes: Sequence[Node],
    samples: Dataset,
    *,
    models: Collection[Model],
    most: int,
    beside: Sequence[ResourceRequest] = (),
    crowded: bool = False,
) -> int:
    """Worker groups that find room side by side, one at least.

    Where the job leaves its GPUs open, each has what it can make use of: one GPU for a large
    student, `1 / SMALL` for a small one.

    Args:
        job: the job.
        nodes: of the cluster.
        samples: the data set.
        models: of the students.
        most: groups that have work.
        beside: what must find room at the same time.
        crowded: as many as may share a GPU, large students too.
    """
    if job.student.gpus == AUTO:
        nodes = open_to(nodes)
    shares = _worker_shares(job.student, models, samples, nodes)
    workers = workers_of(_filled(job.student, 0.0))
    return side_by_side(workers, shares, nodes, most, beside=beside, crowded=crowded)


def side_by_side(
    workers: Sequence[ResourceRequest],
    shares: Sequence[float],
    nodes: Sequence[Node],
    most: int,
    *,
    beside: Sequence[ResourceRequest] = (),
    crowded: bool = False,
) -> int:
    """How many groups of workers find room at the same time, one at least; see `groups_at_once`.

    Args:
        workers: of one group.
        shares: of a GPU that a worker may have, the largest first, as `worker_shares` has them.
        nodes: of the cluster.
        most: groups that have work.
        beside: what must find room at the same time.
        crowded: as many as may share a GPU, large students too.
    """
    share = shares[0] if len(shares) == LARGE and not crowded else shares[-1]
    group = [with_share(one, share) for one in workers]

    def too_many(groups: int) -> bool:
        return bool(place([*beside, *group * groups], nodes).without_room)

    return 1 + bisect.bisect_left(range(2, min(most, MOST_GROUPS) + 1), True, key=too_many)


def with_share(wanted: ResourceRequest, gpus: float) -> ResourceRequest:
    """The same process with a share of a GPU."""
    return replace(wanted, resources={**wanted.resources, "GPU": gpus})


def most_of_finished(folders: Collection[Path]) -> int:
    """As `most_of`, of finished models; the largest counts."""
    return min(
        (
            most_on_a_gpu((folder / WEIGHTS).stat().st_size // 4, read_manifest(folder).shape)
            for folder in folders
        ),
        default=SMALL,
    )


def worker_shares(
    workers: Sequence[ResourceRequest],
    gpus: float | Literal["auto"],
    nodes: Sequence[Node],
    most: Callable[[], int],
) -> list[float]:
    """Shares of a GPU that a student's worker may have, the largest first.

    Args:
        workers: of the student, besides their GPUs; none where none trains.
        gpus: as the job has it; a number is the only choice.
        nodes: of the cluster.
        most: how many of them share a GPU at most, as `most_on_a_gpu` has it.
    """
    if gpus != AUTO:
        return [gpus]
    if not workers or not _may_have(workers[0], nodes):
        return [0.0]
    if len(workers) > 1:
        together = [with_share(one, 1.0) for one in workers]
        return [0.0 if place(together, nodes).without_room else 1.0]
    return parts(most())


def _worker_shares(
    student: StudentSettings, models: Collection[Model], samples: Dataset, nodes: Sequence[Node]
) -> list[float]:
    workers = workers_of(_filled(student, 0.0)) if models else []
    return worker_shares(workers, student.gpus, nodes, lambda: most_of(models, samples))


def _actor_shares(
    fleet: FleetSettings, checkpoints: Mapping[str, Path], nodes: Sequence[Node]
) -> list[float]:
    """The same for a teachers' actor."""
    places = [fleet.of(name) for name in checkpoints]
    if not any(own.gpus == AUTO and _open(fleet, own, nodes) for own in places):
        return [0.0]
    return parts(most_of_finished(checkpoints.values()))


def _open(fleet: FleetSettings, own: TeacherPlace, nodes: Sequence[Node]) -> bool:
    """Whether there is a GPU that teachers with a place of their own may have."""
    resources = {"CPU": fleet.cpus or 0.0, **own.resources}
    return _may_have(ResourceRequest("teachers", resources, own.labels), nodes)


def _may_have(wanted: ResourceRequest, nodes: Sequence[Node]) -> bool:
    """Whether a node that suits a process has a GPU."""
    hosts = [node for node in nodes if node.total.get("GPU", 0)]
    return not place([with_share(wanted, 0.0)], hosts).without_room


def _has_gpu(wanted: ResourceRequest) -> bool:
    return wanted.resources.get("GPU", 0) > 0


def _filled(student: StudentSettings, gpus: float) -> StudentSettings:
    return student.model_copy(update={"gpus": gpus}) if student.gpus == AUTO else student


def _filled_fleet(fleet: FleetSettings, nodes: Sequence[Node], gpus: float) -> FleetSettings:
    def number(own: TeacherPlace) -> float:
        if own.gpus is not None and own.gpus != AUTO:
            return own.gpus
        return gpus if gpus and _open(fleet, own, nodes) else 0.0

    teachers = {
        pattern: own.model_copy(update={"gpus": number(fleet.merged(own))})
        for pattern, own in fleet.teachers.items()
    }
    return fleet.model_copy(
        update={"gpus": number(fleet.merged(TeacherPlace())), "teachers": teachers}
    )


def parts(most: int) -> list[float]:
    """Shares of a GPU that so many processes at most share, the largest first."""
    return [_part(k) for k in range(1, most + 1)]


def _part(k: int) -> float:
    """1/k, so rounded that k of them find room: Ray counts in ten-thousandths."""
    return math.floor(10_000 / k) / 10_000


def _first(shares: Sequence[float], holds: Callable[[float], bool]) -> float | None:
    """The largest share that holds; smaller ones hold too."""
    number = bisect.bisect_left(shares, True, key=holds)
    return shares[number] if number < len(shares) else None


def what_stays_idle(
    job: Job, given: Job, nodes: Sequence[Node], wanted: Sequence[ResourceRequest], *keys: str
) -> str:
    """What a part of a job leaves of the cluster's GPUs, in a line, with the key that would use it.

    Args:
        job: as its user has it.
        given: with numbers for GPUs.
        nodes: of the cluster.
        wanted: everybody who computes at the same time.
        keys: of the blocks that place them: `student`, `fleet`, `teachers`.

    Returns:
        The line; empty where nothing is to be said.
    """
    nodes = open_to(nodes)
    there = sum(int(node.total.get("GPU", 0)) for node in nodes)
    groups = (
        ("student", "students", workers_of(given.student), given.student.gpus),
        ("teachers", "teachers", training_of_a_teacher(job), any(map(_has_gpu, wanted))),
    )
    for key, who, workers, have in groups:
        if key not in keys or getattr(job, key).gpus != AUTO or len(workers) == 1 or have:
            continue
        hosts = [node for node in nodes if _may_have(workers[0], [node])]
        if few := sum(int(node.total["GPU"]) for node in hosts):
            return (
                f"{who} train on CPUs: {key}.workers = {len(workers)} need a GPU each, and {few} "
                f"can be had; with {key}.workers={few} they would be used"
            )
    denied = "fleet" in keys and job.fleet.gpus == AUTO and not given.fleet.gpus
    if denied and _open(job.fleet, job.fleet.merged(TeacherPlace()), nodes):
        return (
            "teachers answer on CPUs: the students have all GPUs that they could have; fewer "
            "student.workers leave them some"
        )
    idle = place(wanted, nodes).idle
    left = [node for node in nodes if idle[node.name]]
    reasons = []
    for key in keys:
        own = getattr(job, key)
        labels, resources = getattr(own, "labels", {}), getattr(own, "resources", {})
        if own.gpus == 0:
            reasons.append(f"{key}.gpus = 0 declines them")
        elif (labels or resources) and not _may_have(ResourceRequest("", resources, labels), left):
            kept = "labels" if labels else "resources"
            reasons.append(f"{key}.{kept} keeps away from them")
    if not reasons and "student" in keys:
        reasons = ["more student.workers would train a student on several"]
    return (
        f"{sum(idle.values())} of {there} GPUs stay idle: {'; '.join(reasons)}"
        if left and reasons
        else ""
    )
