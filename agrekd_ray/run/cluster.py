"""The engine on a Ray cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from agrekd_ray.channel import Channel
from agrekd_ray.config import Job
from agrekd_ray.data import open_dataset
from agrekd_ray.events import Note, Post
from agrekd_ray.guidance.nodes import DriverData, cluster_nodes, group_waits, look_for_room
from agrekd_ray.guidance.placement import Wanted, check_room, place
from agrekd_ray.results import Effort
from agrekd_ray.run.engine import Handle
from agrekd_ray.run.listener import Listener
from agrekd_ray.run.session import RaySession
from agrekd_ray.run.teaching import Teaching, workers_of
from agrekd_ray.run.waiting import First, Waiting
from agrekd_ray.student import Assignment, read_outcome
from agrekd_ray.student.group import Schoolwork, train_group
from agrekd_ray.student.shared_work import Pace
from agrekd_ray.teachers import Asked, Recipe, Take
from agrekd_ray.teachers.tasks import ask_all, make_all


def session_of(jobs: Sequence[Job], handle: Handle) -> RaySession:
    """A session that has room for the students of any of these jobs, which share a cluster.

    Args:
        jobs: them.
        handle: gets what is to be said of it.
    """
    taken = max(job.student.workers * job.student.cpus for job in jobs)
    return RaySession(jobs[0].ray.address, math.ceil(taken) + 1, lambda text: handle(Note(text)))


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
            check_room(workers_of(job.student), [], cluster_nodes())
            if job.teachers.count:
                check_room([], [self._training], cluster_nodes())
            self._channel = Channel(self._session.node_id)
            self._handle = handle
        except BaseException:
            self._session.close()
            raise

    def make_teachers(self, families: Sequence[Sequence[Recipe]]) -> None:
        """See `Engine.make_teachers`."""
        job, room, post = self._job, self._training, self._channel.post
        first = First()
        with Waiting([room], post, first.awaited), self.listening(first.watch):
            look_for_room([], [room], post)
            make_all(families, job.teachers.store, DriverData.of(job.data), room, post)

    def train_students(
        self,
        assignments: tuple[Assignment, ...],
        checkpoints: dict[str, Path],
        students: Path,
        storage: Path,
    ) -> Effort:
        """See `Engine.train_students`."""
        job = self._job
        samples = open_dataset(job.data)
        epochs = max((a.training.epochs for a in assignments if a.lesson), default=0)
        views = sorted({samples.view(epoch) for epoch in range(epochs)})
        post, workers = self._channel.post, workers_of(job.student)
        left = [a for a in assignments if read_outcome(students / a.name) is None]
        pace, most = Pace(left), job.student.at_once

        def another(groups: int, begun: int) -> bool:
            wanted = (begun == groups and pace.pays(groups)) if most == "auto" else groups < most
            coming = workers * (groups - begun + 1)
            if not wanted or place(coming, cluster_nodes(), free=True).without_room:
                return False
            pace.grown()
            return True

        with (
            Teaching(job, checkpoints, samples, views, post) as teaching,
            self.listening(teaching.watch, pace.watch),
        ):
            source = teaching.source()
            if not teaching.hosts:  # else the fleet has looked, for the students too
                look_for_room(workers, [], post)
            work = Schoolwork(
                assignments,
                DriverData(job.data, samples.fingerprint),
                source,
                students,
                storage,
                post,
                job.fleet.look_ahead,
            )
            with Waiting(workers, post, group_waits):
                train_group(work, job.student, another)
        return teaching.effort

    def ask(self, asked: Sequence[Asked], take: Take) -> None:
        """See `Engine.ask`."""
        rooms, post = {one: self._asking(one) for one in asked}, self._channel.post
        different = list({room.in_words: room for room in rooms.values()}.values())
        first = First()
        with Waiting(different[:1], post, first.awaited), self.listening(first.watch):
            for room in different:
                look_for_room([], [room], post)
            ask_all(rooms, DriverData.of(self._job.data), take, post)

    @property
    def _training(self) -> Wanted:
        """Room that the training of a teacher takes."""
        teachers = self._job.teachers
        return Wanted("the training of a teacher", {"CPU": teachers.cpus, "GPU": teachers.gpus})

    def _asking(self, one: Asked) -> Wanted:
        """Room that a finished model takes to answer: what a teacher has in the fleet."""
        job, own = self._job, self._job.fleet.of(one.name)
        cpus = job.teachers.cpus if job.fleet.cpus is None else job.fleet.cpus
        resources = {"CPU": cpus, "GPU": own.gpus or 0, **own.resources}
        return Wanted(f"the evaluation of {one.name}", resources, own.labels)

    def record(self, checkpoints: dict[str, Path], views: Sequence[int]) -> Effort:
        """See `Engine.record`."""
        samples, post = open_dataset(self._job.data), self._channel.post
        with (
            Teaching(self._job, checkpoints, samples, views, post) as teaching,
            self.listening(teaching.watch),
        ):
            teaching.record()
        return teaching.effort

    @property
    def post(self) -> Post:
        """Tells the driver, from any process."""
        return self._channel.post

    def listening(self, *watchers: Handle) -> Listener:
        """While the block runs, events reach the handler, and these."""
        return Listener(self._channel, (self._handle, *watchers))

    def close(self) -> None:
        """See `Engine.close`."""
        self._channel.close()
        self._session.close()
