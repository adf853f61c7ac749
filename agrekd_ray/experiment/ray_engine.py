"""The engine on a Ray cluster."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agrekd_ray.cluster.channel import Channel
from agrekd_ray.cluster.events import Awaited, Began, Emit, Event, Notice
from agrekd_ray.cluster.nodes import (
    DriverData,
    cluster_nodes,
    group_waits,
    look_for_room,
    settled_nodes,
)
from agrekd_ray.cluster.placement import Node, ResourceRequest, check_room, place
from agrekd_ray.cluster.session import RaySession
from agrekd_ray.config import Job
from agrekd_ray.data import open_dataset
from agrekd_ray.experiment.engine import Handle
from agrekd_ray.experiment.gpus import (
    check_room_to_begin,
    cpus_of_workers,
    groups_at_once,
    most_of,
    most_of_finished,
    numbered,
    share_of_task,
    side_by_side,
    training_of_a_teacher,
    what_stays_idle,
    with_share,
    worker_shares,
    workers_of,
)
from agrekd_ray.experiment.listener import Listener
from agrekd_ray.experiment.plan import views_of
from agrekd_ray.experiment.teacher_groups import make_in_groups
from agrekd_ray.experiment.teacher_provider import TeacherProvider, cpus_of_finished
from agrekd_ray.experiment.teacher_tasks import Task, ask_all, make, run_tasks
from agrekd_ray.experiment.waiting import says_what_waits
from agrekd_ray.results import TeacherCost
from agrekd_ray.student import StudentSpec
from agrekd_ray.student.group import TrainConfig, train_group
from agrekd_ray.student.shared_work import Pace
from agrekd_ray.teachers import Asked, Recipe, Take


def session_of(jobs: Sequence[Job], handle: Handle) -> RaySession:
    """A session that has room for the students of any of these jobs, which share a cluster.

    Args:
        jobs: them.
        handle: gets what is to be said of it.
    """
    return RaySession(
        jobs[0].ray.address,
        math.ceil(max(map(cpus_of_workers, jobs))) + 1,
        lambda text: handle(Notice(text)),
        jobs[0].plugins,
    )


class RayEngine:
    """Ray tasks make teachers, a fleet records them, a Ray Train worker group trains the students.

    Args:
        job: the job.
        handle: gets every event, in a thread of the driver's.
    """

    def __init__(self, job: Job, handle: Handle) -> None:
        self._job = job
        self._session = session_of([job], handle)
        try:
            check_room_to_begin(job, cluster_nodes())
            self._channel = Channel()
            self._handle = handle
        except BaseException:
            self._session.close()
            raise

    def make_teachers(self, families: Sequence[Sequence[Recipe]], storage: Path) -> None:
        """See `Engine.make_teachers`."""
        job, emit, nodes = self._job, self._channel.emit, settled_nodes()
        models = [family[0].model for family in families]
        workers, gpus = training_of_a_teacher(job), job.teachers.gpus

        def most() -> int:
            return most_of(models, open_dataset(job.data))

        data, store = DriverData.of(job.data), job.teachers.store
        if len(workers) > 1:
            shares = worker_shares(workers, gpus, nodes, most)
            room = [with_share(one, shares[0]) for one in workers]
            groups = side_by_side(workers, shares, nodes, len(families))
            self._say_idle(numbered(job), room * groups, nodes, "teachers")
            look_for_room(room, [], emit)
            emit(Awaited("a worker group is starting"))
            with says_what_waits(room, emit, group_waits), self.listening():
                patience = job.student.timeout_minutes
                make_in_groups(families, store, data, storage, emit, room, patience, groups)
            return
        share = share_of_task(workers[0], gpus, len(families), nodes, most)
        alone = with_share(workers[0], share)
        self._say_idle(numbered(job), [alone] * len(families), nodes, "teachers")
        with self._waiting([alone]):
            what = "training a teacher"
            tasks = [Task(alone, (family, store, data, emit), what) for family in families]
            run_tasks(make, dict(enumerate(tasks)))

    def train_students(
        self,
        specs: Sequence[StudentSpec],
        checkpoints: dict[str, Path],
        students: Path,
        storage: Path,
    ) -> TeacherCost:
        """See `Engine.train_students`."""
        samples = open_dataset(self._job.data)
        taught_epochs = max((spec.training.epochs for spec in specs if spec.spec), default=0)
        emit, nodes = self._channel.emit, settled_nodes()
        models, most = [spec.model for spec in specs], self._job.student.at_once
        pace = Pace(specs)
        side_by_side = groups_at_once(
            self._job,
            nodes,
            samples,
            models=models,
            most=len(specs) if most == "auto" else min(most, len(specs)),
            crowded=most != "auto",
        )
        teaching = TeacherProvider(
            self._job,
            checkpoints,
            samples,
            views_of(samples, taught_epochs),
            emit,
            models=models,
            groups=side_by_side,
        )
        job, workers = teaching.job, workers_of(teaching.job.student)

        def another(groups: int, begun: int) -> bool:
            wanted = (begun == groups and pace.pays(groups)) if most == "auto" else groups < most
            full = job.student.takes["GPU"] > 0 and groups >= side_by_side
            coming = workers * (groups - begun + 1)
            if not wanted or full or place(coming, cluster_nodes(), free=True).without_room:
                return False
            pace.grown()
            return True

        with teaching, self.listening(teaching.watch, pace.watch):
            source = teaching.source()
            if not teaching.hosts:  # else the fleet has looked, for the students too
                look_for_room(workers, [], emit)
            keys = ("student", "fleet") if teaching.hosts else ("student",)
            busy = [*workers * side_by_side, *teaching.hosted]
            self._say_idle(job, busy, nodes, *keys)
            work = TrainConfig(
                tuple(specs),
                DriverData.of(job.data),
                source,
                students,
                storage,
                emit,
                job.fleet.look_ahead,
            )
            emit(Awaited("a worker group is starting"))
            with says_what_waits(workers, emit, group_waits):
                train_group(work, job.student, another)
        return teaching.effort

    def ask(self, asked: Sequence[Asked], take: Take) -> None:
        """See `Engine.ask`."""
        emit, nodes = self._channel.emit, settled_nodes()
        folders = [one.folder for one in asked]
        rooms: dict[Asked, ResourceRequest] = {}
        for one in asked:
            room, gpus = self._asking(one), self._job.fleet.of(one.name).gpus or 0
            share = share_of_task(room, gpus, len(asked), nodes, lambda: most_of_finished(folders))
            rooms[one] = with_share(room, share)
        with self._waiting(list({room.in_words: room for room in rooms.values()}.values())):
            ask_all(rooms, DriverData.of(self._job.data), take, emit)

    @contextmanager
    def _waiting(self, rooms: Sequence[ResourceRequest]) -> Iterator[None]:
        """While the block runs tasks that take such rooms, events are heard, and waits are said.

        What has room when it is asked for does not wait: its process starts, and imports PyTorch.
        """
        emit, begun = self._channel.emit, threading.Event()

        def watch(event: Event) -> None:
            if isinstance(event, Began):
                begun.set()

        with (
            says_what_waits(rooms[:1], emit, lambda: not begun.is_set()),
            self.listening(watch),
        ):
            for room in rooms:
                if not check_room([], [room], look_for_room([], [room], emit)):
                    begun.set()
            emit(Awaited("processes are starting"))
            yield

    def _asking(self, one: Asked) -> ResourceRequest:
        """Room that a finished model takes to answer, besides a GPU: as a teacher in the fleet."""
        job, own = self._job, self._job.fleet.of(one.name)
        resources = {"CPU": cpus_of_finished(job), **own.resources}
        return ResourceRequest(f"the evaluation of {one.name}", resources, own.labels)

    def record(self, checkpoints: dict[str, Path], views: Sequence[int]) -> TeacherCost:
        """See `Engine.record`."""
        samples, emit = open_dataset(self._job.data), self._channel.emit
        with (
            TeacherProvider(self._job, checkpoints, samples, views, emit) as teaching,
            self.listening(teaching.watch),
        ):
            self._say_idle(teaching.job, [], cluster_nodes(), "fleet")
            teaching.record()
        return teaching.effort

    def _say_idle(
        self, given: Job, wanted: Sequence[ResourceRequest], nodes: Sequence[Node], *keys: str
    ) -> None:
        """See `what_stays_idle`."""
        if idle := what_stays_idle(self._job, given, nodes, wanted, *keys):
            self._channel.emit(Notice(idle))

    @property
    def emit(self) -> Emit:
        """Tells the driver, from any process."""
        return self._channel.emit

    def listening(self, *watchers: Handle) -> Listener:
        """While the block runs, events reach the handler, and these."""
        return Listener(self._channel, (self._handle, *watchers))

    def close(self) -> None:
        """See `Engine.close`."""
        self._channel.close()
        self._session.close()
