"""Who does the work: a Ray cluster, or this process alone."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

from agrekd_ray.channel import Channel, Event, StudentDone, StudentEpoch, TeacherDone, TeacherEpoch
from agrekd_ray.config import Job
from agrekd_ray.data import open_dataset
from agrekd_ray.errors import RunError
from agrekd_ray.guidance import LocalTeachers, TeacherHost
from agrekd_ray.guidance.fleet import Fleet, FleetSource
from agrekd_ray.student import Assignment, Student, read_outcome
from agrekd_ray.student.group import STATE, Schoolwork, train_group
from agrekd_ray.teachers import Pool, Recipe
from agrekd_ray.teachers.tasks import make_all

Handle = Callable[[Event], None]
POLL_SECONDS = 0.2


class Engine(Protocol):
    """Makes teachers and trains students; events go to a handler in the driver."""

    def make_teachers(self, families: Sequence[Sequence[Recipe]]) -> None:
        """Make what the pool is missing."""
        ...

    def train_students(
        self,
        assignments: tuple[Assignment, ...],
        checkpoints: dict[str, Path],
        students: Path,
        storage: Path,
    ) -> None:
        """Train the students that are not finished yet.

        Args:
            assignments: the students, in order.
            checkpoints: folders of the teachers and the biased model, by name.
            students: where finished ones are put.
            storage: for checkpoints of the training under way.
        """
        ...

    def close(self) -> None:
        """End everything that was started."""
        ...


class LocalEngine:
    """Everything in this process, without Ray: the reference, and the place to debug."""

    def __init__(self, job: Job, handle: Handle) -> None:
        self._job, self._handle = job, handle
        torch.set_num_threads(max(1, round(job.student.cpus)))

    def make_teachers(self, families: Sequence[Sequence[Recipe]]) -> None:
        """See `Engine.make_teachers`."""
        pool = Pool(self._job.teachers.store, open_dataset(self._job.data))
        for family in families:
            pool.make(
                family,
                progress=lambda name, epoch, epochs: self._handle(
                    TeacherEpoch(name, epoch, epochs)
                ),
            )
            for recipe in family:
                self._handle(TeacherDone(recipe.name))

    def train_students(
        self,
        assignments: tuple[Assignment, ...],
        checkpoints: dict[str, Path],
        students: Path,
        storage: Path,
    ) -> None:
        """See `Engine.train_students`."""
        dataset = open_dataset(self._job.data)
        source = None
        if checkpoints:
            fleet = self._job.fleet
            host = TeacherHost(
                checkpoints,
                dataset,
                autocast=fleet.autocast,
                capacity=fleet.look_ahead + 2,
                memory=fleet.memory,
            )
            source = LocalTeachers(host)
        storage.mkdir(parents=True, exist_ok=True)
        for assignment in assignments:
            if read_outcome(students / assignment.name) is not None:
                continue
            student = Student(assignment, dataset, source)
            if (storage / STATE).exists():
                student.load_state(storage / STATE)
            while not student.done:
                record = student.epoch()
                student.save_state(storage / STATE)
                if record is not None:
                    epochs = assignment.training.epochs
                    self._handle(StudentEpoch(assignment.name, epochs, record))
            for outcome in student.finish(students):
                self._handle(StudentDone(outcome))

    def close(self) -> None:
        """See `Engine.close`."""


class RayEngine:
    """Ray tasks make teachers; a fleet and a Ray Train worker group train the students.

    Args:
        job: the job.
        handle: gets every event, in a thread of the driver's.
    """

    def __init__(self, job: Job, handle: Handle) -> None:
        self._job = job
        student = job.student
        taken = student.workers * student.cpus
        self._session = RaySession(job.ray.address, math.ceil(taken) + 1)
        try:
            self._session.check(taken, student.workers * student.gpus, job.teachers.cpus)
            self._channel = Channel(self._session.node_id)
            self._listener = _Listener(self._channel, handle)
        except BaseException:
            self._session.close()
            raise

    def make_teachers(self, families: Sequence[Sequence[Recipe]]) -> None:
        """See `Engine.make_teachers`."""
        teachers = self._job.teachers
        with self._listener:
            make_all(
                families,
                teachers.store,
                self._job.data,
                self._channel.post,
                cpus=teachers.cpus,
                gpus=teachers.gpus,
            )

    def train_students(
        self,
        assignments: tuple[Assignment, ...],
        checkpoints: dict[str, Path],
        students: Path,
        storage: Path,
    ) -> None:
        """See `Engine.train_students`."""
        job, settings = self._job, self._job.student
        fleet: Fleet | None = None
        source: FleetSource | None = None
        with self._listener:
            try:
                if checkpoints:
                    fleet = Fleet(
                        checkpoints,
                        job.data,
                        job.fleet,
                        self._channel.post,
                        workers=settings.workers,
                        cpus_taken=settings.workers * settings.cpus,
                    )
                    fleet.wait()
                    source = fleet.source()
                work = Schoolwork(
                    assignments,
                    job.data,
                    source,
                    students,
                    self._channel.post,
                    job.fleet.look_ahead,
                )
                train_group(work, settings, storage)
            finally:
                if fleet is not None:
                    fleet.close()

    def close(self) -> None:
        """See `Engine.close`."""
        self._channel.close()
        self._session.close()


class _Listener(AbstractContextManager["_Listener"]):
    """Takes events out of the channel while the driver waits for something else."""

    def __init__(self, channel: Channel, handle: Handle) -> None:
        self._channel, self._handle = channel, handle

    def __enter__(self) -> _Listener:
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._listen, name="events", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None and failure[1] is None:
            raise self._error

    def _listen(self) -> None:
        try:
            stopped = False
            while not stopped:  # one more look after the stop: nothing is left behind
                stopped = self._stop.wait(POLL_SECONDS)
                for event in self._channel.take():
                    self._handle(event)
        except BaseException as error:
            self._error = error


class RaySession:
    """A connection to a running cluster, or a cluster of this machine that ends with the driver.

    Args:
        address: of the cluster; None starts one here.
        cpus: logical CPUs that a cluster started here has at least.

    Raises:
        RunError: no cluster answers at the address.
    """

    def __init__(self, address: str | None, cpus: int) -> None:
        # An authentication token is Ray's default; naming it spares the user Ray's notice of it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        import ray

        self._owner = not ray.is_initialized()
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            if self._owner and address is None:
                ray.init(
                    address="local",
                    num_cpus=max(os.cpu_count() or 1, cpus),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="WARNING",
                )
            elif self._owner:
                ray.init(address=address, log_to_driver=False, logging_level="WARNING")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RunError(
                f"ray.address = {address}: no Ray cluster answers there "
                f"({str(error).strip().splitlines()[0]}). Start one with `ray start --head`, or "
                "leave the address out to start one here."
            ) from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray sets its own, which skips our clean-up
        self.node_id: str = ray.get_runtime_context().get_node_id()

    def check(self, cpus: float, gpus: float, task_cpus: float) -> None:
        """Refuse a job that the cluster never has room for.

        Raises:
            RunError: says what is wanted and what is there.
        """
        import ray

        there = ray.cluster_resources()
        for key, name, wanted in (
            ("student.workers", "CPU", cpus),
            ("student.gpus", "GPU", gpus),
            ("teachers.cpus", "CPU", task_cpus),
        ):
            if wanted > there.get(name, 0):
                self.close()
                raise RunError(
                    f"{key}: {wanted:g} {name}s are wanted, the cluster has "
                    f"{there.get(name, 0):g}."
                )

    def close(self) -> None:
        """Leave the cluster; end it where it was started here."""
        import ray

        if self._owner:
            ray.shutdown()
