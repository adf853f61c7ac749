"""The teachers' side of a run: their records, and a fleet for as long as something is missing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from agrekd_ray.cluster.events import (
    Awaited,
    Emit,
    Event,
    Notice,
    OutputsDone,
    StudentEpoch,
    TeacherCostSoFar,
)
from agrekd_ray.cluster.nodes import DriverData, cluster_nodes, settled_nodes
from agrekd_ray.cluster.placement import ResourceRequest, place
from agrekd_ray.config import Job
from agrekd_ray.data import Dataset, Samples
from agrekd_ray.distillation import Replay, Source
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.gpus import with_gpus, workers_of
from agrekd_ray.experiment.teacher_tasks import Task, record, run_tasks
from agrekd_ray.files import exists
from agrekd_ray.fleet.fleet import STALL_SECONDS, Fleet, fits, turns
from agrekd_ray.fleet.lending import borrow
from agrekd_ray.fleet.logits_server import LogitsServer
from agrekd_ray.logits import LogitsCache
from agrekd_ray.models import Model
from agrekd_ray.results import TeacherCost
from agrekd_ray.terminal import counted

SECONDS_BETWEEN_COSTS = 5.0
"""That the teachers are asked what they have cost until now."""
PATIENCE = 1.0
"""Seconds that they have to say it; they may be busy with better things."""

FETCH_SECONDS = 5.0
"""That a student's epoch may wait for records from the disks of other nodes; they come on later."""
BROUGHT_AT_ONCE = 4
"""Records that come from other nodes at the same time."""

FEW = 1 << 23
"""Numbers that all teachers together look at in less time than a fleet takes to start."""
ALONE: dict[str, object] = {
    "replicas": 1,
    "weighting_actors": 1,
    "resources": {},
    "labels": {},
    "teachers": {},
    "on_teacher_loss": "error",
}
"""Settings of a fleet that a single process can do as well."""


@dataclass(frozen=True)
class FixedSource:
    """A source that is the same in every process; may travel."""

    source: Source

    def __call__(self, samples: Samples) -> Source:
        """The source, as it is."""
        return self.source


def cpus_of_finished(job: Job) -> float:
    """Logical CPUs of a task that asks finished teachers: as an actor of theirs has."""
    return job.teachers.cpus if job.fleet.cpus is None else job.fleet.cpus


def logits_server_of(job: Job, checkpoints: Mapping[str, Path]) -> LogitsServer | None:
    """Who lends the driver's records to other nodes; None where all there is is this machine.

    Args:
        job: the job.
        checkpoints: folders of the teachers and the biased model, by name.
    """
    if job.ray.address is None and len(cluster_nodes()) == 1:
        return None
    return LogitsServer.start(
        job.outputs, checkpoints, DriverData.of(job.data), job.fleet.computes_in
    )


class TeacherProvider(AbstractContextManager["TeacherProvider"]):
    """Starts teachers where something must be computed, and releases them when nothing is.

    Args:
        job: the job.
        checkpoints: folders of the teachers and the biased model, by name; may be empty.
        samples: the data set.
        views: that will be asked for.
        emit: tells the driver.
        models: of the students that train beside them; none where only records are made.
        groups: of workers that train side by side.
        beside: how many of them must find room beside the teachers; the others may come later.
    """

    def __init__(
        self,
        job: Job,
        checkpoints: Mapping[str, Path],
        samples: Dataset,
        views: Sequence[int],
        emit: Emit,
        models: Collection[Model] = (),
        groups: int = 1,
        beside: int = 1,
    ) -> None:
        self._checkpoints, self._samples = checkpoints, samples
        self._views, self._emit = views, emit
        self._groups, self._beside = groups, beside
        self._fleet: Fleet | None = None
        self._outputs: LogitsCache | None = None
        self._missing: list[tuple[str, int]] = []
        self._shown: set[int] = set()
        self._logits_server: LogitsServer | None = None
        self._bringing = ThreadPoolExecutor(BROUGHT_AT_ONCE, "bring")
        self._coming: dict[tuple[str, int], Future[bool]] = {}
        self._told = time.monotonic()
        self.effort = TeacherCost()
        """What the teachers cost so far."""
        if checkpoints and job.guidance == "auto":
            self._outputs = LogitsCache(job.outputs, checkpoints, samples, job.fleet.computes_in)
            self._missing = self._outputs.missing(views)
            self._say_damaged(self._outputs)
            self._outputs.touch()
        missing = {name for name, _ in self._missing}
        hosted = checkpoints if (missing and models) or self._outputs is None else missing
        self.job = self._job = with_gpus(
            job,
            settled_nodes(),
            samples,
            models=models,
            groups=groups,
            checkpoints={name: checkpoints[name] for name in hosted},
        )
        """With numbers for the GPUs of student and fleet."""

    @property
    def hosts(self) -> bool:
        """Whether there is a fleet now."""
        return self._fleet is not None

    @property
    def hosted(self) -> list[ResourceRequest]:
        """Room that the teachers take now."""
        return self._fleet.wanted if self._fleet is not None else []

    def source(self) -> Callable[[Samples], Source] | None:
        """Opens a student's source in any process; the fleet is started where it is needed."""
        if not self._checkpoints:
            return None
        if self._outputs is None:
            return FixedSource(self._start(self._checkpoints).source())
        if self._missing and self._are_few(self._outputs):
            self._record_in_a_task(self._outputs)
        if self._missing and not fits(
            self._checkpoints, self._job.fleet, workers_of(self._job.student)
        ):
            self._emit(
                Notice(
                    "the cluster has no room for all teachers beside the students: they take "
                    "turns, and what they say is recorded before the first student"
                )
            )
            self.record()
            self._missing = []
        fleet = self._start(self._checkpoints).source() if self._missing else None
        job = self._job
        self._logits_server = logits_server_of(job, self._checkpoints)
        opening = self._logits_server or LogitsCache
        return Replay(job.outputs, self._checkpoints, job.fleet.computes_in, fleet, opening)

    def _are_few(self, outputs: LogitsCache) -> bool:
        """Whether the missing records take less time than the start of a fleet.

        Only where a task can do what the fleet would, and finds room: on this machine, which the
        run has to itself, without a GPU.
        """
        fleet, nodes = self._job.fleet, cluster_nodes()
        if self._job.ray.address is not None or len(nodes) > 1 or nodes[0].total.get("GPU"):
            return False
        if place([self._room], nodes).without_room:
            return False
        if any(getattr(fleet, name) != value for name, value in ALONE.items()):
            return False
        shown = outputs.count * len(self._missing) * math.prod(self._samples.shape)
        return shown <= FEW

    @property
    def _room(self) -> ResourceRequest:
        cpus = cpus_of_finished(self._job)
        return ResourceRequest("the recording of the teachers", {"CPU": cpus})

    def _record_in_a_task(self, outputs: LogitsCache) -> None:
        job, costs = self._job, list[TeacherCost]()
        arguments = (
            {name: folder.resolve() for name, folder in self._checkpoints.items()},
            DriverData.of(job.data),
            job.fleet,
            job.outputs,
            sorted({view for _, view in self._missing}),
            self._emit,
        )
        # Ray gives the task to a process that has made or asked teachers, and has all it needs.
        task = Task(self._room, arguments, "recording the teachers")
        self._emit(Awaited("the teachers' outputs are being recorded"))
        run_tasks(record, {0: task}, lambda _, cost: costs.append(cost))
        self._missing = outputs.missing(self._views)
        self.effort = replace(self.effort + costs[0], recorded=outputs.bytes())
        self._emit(TeacherCostSoFar(self.effort))
        self._emit(Notice("the teachers' outputs are recorded; no actor is started for them"))

    def record(self) -> None:
        """Record every view that is missing; teachers that do not all find room take turns.

        Raises:
            AgrekdError: what a teacher raised, or that one finds no room at all.
        """
        missing = {name for name, _ in self._missing}
        outputs = self._outputs
        if outputs is None or not missing:
            return
        left = {name: path for name, path in self._checkpoints.items() if name in missing}
        for teachers in turns(left, self._job.fleet):
            views = sorted({view for name, view in self._missing if name in teachers})
            fleet = self._start(teachers, alone=True)
            share = len(teachers) / len(left)
            for view in views:

                def step(done: float, view: int = view, share: float = share) -> None:
                    self._emit(OutputsDone(view, done * share))

                fleet.record(view, outputs.count, step)
                self._fetch(view)
            self._all_arrived()
            self._release()
            self._emit(TeacherCostSoFar(self.effort))

    def watch(self, event: Event) -> None:
        """Tell what the teachers cost, and release them when nothing more will be asked of them."""
        if isinstance(event, StudentEpoch | OutputsDone):
            self._tell()
        if isinstance(event, StudentEpoch) and self._fleet and self._outputs:
            self._shown.add(self._samples.view(event.epoch.epoch))
            for view in sorted(self._shown.intersection(view for _, view in self._missing)):
                self._fetch(view)  # an earlier one too, where an actor has not answered in time
            self._missing = [
                (name, view)
                for name, view in self._missing
                if self._outputs.read(name, view) is None
            ]
            if not self._missing:
                self._release()
                self._emit(TeacherCostSoFar(self.effort))
                self._emit(Notice("the teachers' outputs are recorded; their actors are released"))

    def _tell(self) -> None:
        """What the teachers have cost until now, in case that nobody lives to hear the end."""
        fleet = self._fleet
        if fleet is not None and time.monotonic() - self._told >= SECONDS_BETWEEN_COSTS:
            self._told = time.monotonic()
            self._emit(TeacherCostSoFar(self.effort + fleet.effort(PATIENCE)))

    def __exit__(self, *failure: object) -> None:
        if failure[1] is None:
            self._all_arrived()
        self._bringing.shutdown(wait=False, cancel_futures=True)
        self._release(count=failure[1] is None)
        if self._logits_server is not None:
            self._logits_server.close()

    def _fetch(self, view: int) -> None:
        """Have the records of a view brought that teachers have on a disk of their own node."""
        fleet, outputs = self._fleet, self._outputs
        if fleet is None or outputs is None:
            return
        for name in [name for name, missing in self._missing if missing == view]:
            if (name, view) not in self._coming and outputs.read(name, view) is None:
                seen = outputs.seen(name, view)
                self._coming[name, view] = self._bringing.submit(
                    borrow, outputs, fleet.lenders(name), name, view, seen
                )
        self._arrived(FETCH_SECONDS)

    def _arrived(self, patience: float) -> None:
        """Look at the records that are on their way."""
        for failed in wait(self._coming.values(), patience).done:
            if isinstance(error := failed.exception(), RunError):
                self._emit(Notice(str(error)))  # the students are taught all the same
            elif error is not None:
                raise error
        self._coming = {key: coming for key, coming in self._coming.items() if not coming.done()}

    def _all_arrived(self) -> None:
        """Wait for the records that are on their way."""
        self._arrived(FETCH_SECONDS)
        while self._coming:
            left = counted(len(self._coming), "record")
            self._emit(Notice(f"on the way from the disks of other nodes: {left} of the teachers"))
            self._arrived(STALL_SECONDS)

    def _start(self, teachers: Mapping[str, Path], *, alone: bool = False) -> Fleet:
        job = self._job
        self._emit(Awaited("the teachers' processes are starting"))
        self._fleet = Fleet(
            teachers,
            job.data,
            job.fleet,
            self._emit,
            outputs=job.outputs if self._outputs else None,
            askers=job.student.workers * self._groups,
            students=() if alone else workers_of(job.student) * self._beside,
        )
        return self._fleet

    def _release(self, *, count: bool = True) -> None:
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            cost = fleet.effort() if count else TeacherCost(len(fleet.actors))
            fleet.close()
            recorded = self._outputs.bytes() if self._outputs else 0
            self.effort = replace(self.effort + cost, recorded=recorded)

    def _say_damaged(self, outputs: LogitsCache) -> None:
        damaged = [outputs.path(*one) for one in self._missing if exists(outputs.path(*one))]
        if damaged:
            self._emit(
                Notice(
                    f"{len(damaged)} damaged records of teachers' outputs are computed again "
                    f"(the first is {damaged[0]})"
                )
            )
