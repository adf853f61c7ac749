"""A trial whose students have several workers: a Ray Train worker group that keeps step with Tune.

A group that is simply abandoned when its trial is stopped keeps its placement group, and with it
the cluster's room. So the group never runs ahead: it trains an epoch when the trial asks for one,
and is told to end. Should the trial's process die instead, the driver knows the placement group.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig
from ray.train.v2.api.config import LoggingConfig

from agrekd_ray.cluster.channel import plain_error
from agrekd_ray.cluster.events import GroupPlaced
from agrekd_ray.cluster.session import here
from agrekd_ray.config import Job
from agrekd_ray.errors import AgrekdError, RunError
from agrekd_ray.files import checked, exists
from agrekd_ray.results import Epoch, Metrics, epochs_from_json, mean_epoch, mean_metrics
from agrekd_ray.search.trial import Shared, assignments, opened
from agrekd_ray.student.group import scaling, worker_student
from agrekd_ray.student.room import GroupTrainer, held

POLL_SECONDS = 0.02
SECONDS_TO_END = 60.0
WORDS = ("wait", "go", "test", "end")
"""What a group is told: nothing yet; train an epoch; test what was saved; it is over."""


class EpochGate:
    """What the trial and its group tell each other; an actor of the trial's."""

    def __init__(self) -> None:
        self._allowed, self._ended, self._tests = 0, False, False
        self._told: list[tuple[str, str]] = []

    def allow(self, epochs: int) -> None:
        """The group may train so many epochs in all."""
        self._allowed = epochs

    def test(self) -> None:
        """The group is to test the students that were saved last."""
        self._tests = True

    def end(self) -> None:
        """The group is to end."""
        self._ended = True

    def next(self, done: int) -> str:
        """One of `WORDS`, to a group that has done so many epochs."""
        if self._ended:
            return "end"
        if self._tests:
            self._tests = False
            return "test"
        return "go" if done < self._allowed else "wait"

    def tell(self, kind: str, text: str) -> None:
        """The group has finished an `epoch` or a `test`, or met a `fault`."""
        self._told.append((kind, text))

    def take(self) -> list[tuple[str, str]]:
        """All since the last call."""
        told, self._told = self._told, []
        return told


@dataclass(frozen=True)
class GroupWork:
    """What every worker is told.

    Attributes:
        job: of the trial.
        shared: what trials share.
        trial_id: Tune's.
        states: folder of the students' states, reachable from every worker.
        baton: where the trial is asked how to go on.
    """

    job: Job
    shared: Shared
    trial_id: str
    states: Path
    baton: Any


class GroupTrial:
    """As `Trial`, with every student spread over the job's workers.

    Args:
        job: of the trial.
        shared: what trials share.
        trial_id: Tune's.
        folder: for states and Train's own files, reachable from every node.
    """

    def __init__(self, job: Job, shared: Shared, trial_id: str, folder: Path) -> None:
        self._job, self._folder = job, folder
        self._states = folder / "states"
        shutil.rmtree(folder, ignore_errors=True)
        self._states.mkdir(parents=True)
        self._baton = ray.remote(EpochGate).options(num_cpus=0, scheduling_strategy=here()).remote()
        self._work = GroupWork(job, shared, trial_id, self._states, self._baton)
        self._thread: threading.Thread | None = None
        self._failure: AgrekdError | None = None
        self.history: list[Epoch] = []

    @property
    def done(self) -> bool:
        """See `Trial.done`."""
        return len(self.history) >= self._job.student.training.epochs

    def epoch(self) -> Epoch:
        """See `Trial.epoch`.

        Raises:
            AgrekdError: what a worker raised, or the group died.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._train, name="worker-group", daemon=True)
            self._thread.start()
        ray.get(self._baton.allow.remote(len(self.history) + 1))
        (found,) = epochs_from_json([json.loads(self._answer())])
        self.history.append(found)
        return found

    def test(self, state: Path) -> Metrics:
        """See `Savable.test`: the group does it, and none is started for it."""
        self.load(state)
        ray.get(self._baton.test.remote())
        return checked(Metrics, json.loads(self._answer()))

    def _answer(self) -> str:
        """What the group says to what it was asked last.

        Raises:
            AgrekdError: what a worker raised, or there is no group any more.
        """
        while True:
            alive = self._thread is not None and self._thread.is_alive()
            for kind, text in ray.get(self._baton.take.remote()):
                if kind == "fault":
                    raise RunError(text)
                return text
            if not alive:
                raise self._failure or RunError("the trial's worker group ended before its work")
            time.sleep(POLL_SECONDS)

    def save(self, folder: Path) -> None:
        """See `Trial.save`."""
        shutil.copytree(self._states, folder, dirs_exist_ok=True)
        (folder / "history.json").write_text(
            json.dumps([asdict(epoch) for epoch in self.history]), encoding="utf-8"
        )

    def load(self, folder: Path) -> None:
        """See `Trial.load`."""
        for state in folder.glob("*.pt"):
            shutil.copy(state, self._states / state.name)
        self.history = epochs_from_json(
            json.loads((folder / "history.json").read_text(encoding="utf-8"))
        )

    def close(self) -> None:
        """End the group, and wait until it has given back what it held."""
        if self._thread is not None:
            ray.get(self._baton.end.remote())
            self._thread.join(SECONDS_TO_END)
        ray.kill(self._baton)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _train(self) -> None:
        student = self._job.student.model_copy(update={"gpus": self._work.shared.gpus})
        trainer = GroupTrainer(
            _work,
            train_loop_config={"work": self._work},
            scaling_config=scaling(student),
            run_config=RunConfig(
                name="train",
                storage_path=str(self._folder),
                # Restarts are Tune's matter, which knows the last checkpoint.
                failure_config=FailureConfig(max_failures=0),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            failures = list(getattr(error, "worker_failures", {}).values())
            self._failure = plain_error(
                failures[0] if failures else error, "a trial's worker group"
            )


def _work(config: dict[str, Any]) -> None:
    work: GroupWork = config["work"]
    first = ray.train.get_context().get_world_rank() == 0
    if first and (group := held()) is not None:
        work.shared.emit(GroupPlaced(work.trial_id, group))
    dataset, source, judge = opened(work.shared)
    ahead = work.job.fleet.look_ahead
    students = [
        worker_student(given, dataset, source, ahead, judge) for given in assignments(work.job)
    ]

    def load() -> None:
        for student in students:
            state = work.states / f"{student.assignment.seed}.pt"
            if exists(state):
                student.load_state(state, of_any=True)

    def tell(kind: str, text: str) -> None:
        if first:
            ray.get(work.baton.tell.remote(kind, text))

    load()
    try:
        while (word := _word(work.baton, students[0].trainer.next_epoch, first)) != "end":
            if word == "test":
                load()  # a trial that is stopped in an epoch has saved the one before
                if first:
                    metrics = mean_metrics([student.test() for student in students])
                    tell("test", json.dumps(asdict(metrics)))
                continue
            records = [student.epoch() for student in students]
            if first:
                for student in students:
                    student.save_state(work.states / f"{student.assignment.seed}.pt")
                mean = mean_epoch([record for record in records if record is not None])
                tell("epoch", json.dumps(asdict(mean)))
    except AgrekdError as error:  # in an epoch of all workers alike: the loss is summed over them
        tell("fault", str(error))


def _word(baton: Any, done: int, first: bool) -> str:
    """Wait for the trial's word; the first worker asks, all of them hear."""
    word = "wait"
    while first and word == "wait":
        word = ray.get(baton.next.remote(done))
        if word == "wait":
            time.sleep(POLL_SECONDS)
    heard = torch.tensor([WORDS.index(word)])
    if dist.is_initialized():
        device = ray.train.torch.get_device()
        told = heard.to(device)
        dist.broadcast(told, 0)
        heard = told.cpu()
    return WORDS[int(heard)]
