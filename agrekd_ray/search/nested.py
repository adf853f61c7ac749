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

from agrekd_ray.cluster.channel import plain_error
from agrekd_ray.cluster.events import GroupPlaced
from agrekd_ray.cluster.session import here
from agrekd_ray.collectives import from_first
from agrekd_ray.config import Job
from agrekd_ray.errors import AgrekdError, RunError
from agrekd_ray.files import checked, replacing
from agrekd_ray.results import Epoch, Metrics
from agrekd_ray.results.arrays import EpochFiles, files_of, linked
from agrekd_ray.search.trial import Shared, Trial, opened
from agrekd_ray.student.faults import worker_failure, worker_faults
from agrekd_ray.student.group import fit, worker_student
from agrekd_ray.student.room import held

WHAT = "a trial's worker group"
POLL_SECONDS = 0.02
SECONDS_TO_END = 60.0
_HISTORY = "history.json"
WORDS = ("wait", "go", "test", "end")
"""What a group is told: nothing yet; train an epoch; test what was saved; it is over."""


class GroupLostError(Exception):
    """A worker group has died, not of a fault that it would meet again: Tune tries once more."""


class EpochGate:
    """What the trial and its group tell each other; an actor of the trial's."""

    def __init__(self) -> None:
        self._word, self._told = "wait", list[str]()

    def say(self, word: str) -> None:
        """The group is told one of `WORDS`."""
        self._word = word

    def next(self) -> str:
        """The word that is new to the group, which asks; "wait" without one."""
        word, self._word = self._word, "wait"
        return word

    def tell(self, text: str) -> None:
        """The group has finished what it was told."""
        self._told.append(text)

    def take(self) -> list[str]:
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
        gate: where the trial is asked how to go on.
    """

    job: Job
    shared: Shared
    trial_id: str
    states: Path
    gate: Any


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
        self._gate = ray.remote(EpochGate).options(num_cpus=0, scheduling_strategy=here()).remote()
        self._work = GroupWork(job, shared, trial_id, self._states, self._gate)
        self._thread: threading.Thread | None = None
        self._failure: AgrekdError | GroupLostError | None = None
        self.history: list[Epoch] = []
        self._epochs = EpochFiles()

    @property
    def done(self) -> bool:
        """See `Trial.done`."""
        return len(self.history) >= self._job.student.training.epochs

    def epoch(self) -> Epoch:
        """See `Trial.epoch`.

        Raises:
            AgrekdError: what a worker raised.
            GroupLostError: the group died.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._train, name="worker-group", daemon=True)
            self._thread.start()
        ray.get(self._gate.say.remote("go"))
        record = checked(Epoch, json.loads(self._answer()))
        self.history.append(record)
        return record

    def test(self, state: Path) -> Metrics:
        """See `Trial.test`: the group does it, and none is started for it."""
        self.load(state)
        ray.get(self._gate.say.remote("test"))
        try:
            return checked(Metrics, json.loads(self._answer()))
        except GroupLostError as error:
            raise RunError(str(error)) from None

    def _answer(self) -> str:
        """What the group says to what it was asked last.

        Raises:
            AgrekdError: what a worker raised, or there is no group.
            GroupLostError: there is none any more.
        """
        while True:
            alive = self._thread is not None and self._thread.is_alive()
            if told := ray.get(self._gate.take.remote()):
                return str(told[0])
            if not alive:
                raise self._failure or RunError("the trial's worker group ended before its work")
            time.sleep(POLL_SECONDS)

    def save(self, folder: Path) -> None:
        """See `Trial.save`."""
        shutil.copytree(self._states, folder, dirs_exist_ok=True, copy_function=_linked_or_copied)
        path = folder / _HISTORY
        path.write_text(json.dumps(self._epochs.write(self.history, path)), encoding="utf-8")

    def moved(self, folder: Path) -> None:
        """See `Trial.moved`."""
        self._epochs.moved(folder)

    def load(self, folder: Path) -> None:
        """See `Trial.load`."""
        for state in folder.glob("*.pt"):
            _linked_or_copied(str(state), str(self._states / state.name))
            if (arrays := files_of(state)).is_dir():
                to = self._states / arrays.name
                shutil.copytree(arrays, to, dirs_exist_ok=True, copy_function=_linked_or_copied)
        path = folder / _HISTORY
        self.history = self._epochs.read(json.loads(path.read_text(encoding="utf-8")), path)

    def close(self) -> None:
        """End the group, and wait until it has given back what it held."""
        if self._thread is not None:
            ray.get(self._gate.say.remote("end"))
            self._thread.join(SECONDS_TO_END)
        ray.kill(self._gate)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _train(self) -> None:
        student = self._job.student.model_copy(update={"gpus": self._work.shared.gpus})
        try:
            # Restarts are Tune's matter, which knows the last checkpoint.
            fit(_work, {"work": self._work}, student, self._folder, restarts=0)
        except Exception as error:
            failure = worker_failure(error) or error
            said = plain_error(failure, WHAT)
            self._failure = said if failure is said else GroupLostError(str(said))


def _work(config: dict[str, Any]) -> None:
    work: GroupWork = config["work"]
    first = ray.train.get_context().get_world_rank() == 0
    if first and (group := held()) is not None:
        work.shared.emit(GroupPlaced(work.trial_id, group))
    with worker_faults(WHAT):
        _keep_step(work, first)


def _keep_step(work: GroupWork, first: bool) -> None:
    """Do what the trial says, until it says that it is over."""
    shared = work.shared
    kept = shared.states / work.trial_id
    trial = Trial(work.job, *opened(shared), worker_student, shared.competence, kept)
    if any(work.states.glob("*.pt")):
        trial.load(work.states)
    trial.take_up()

    def tell(record: Epoch | Metrics) -> None:
        ray.get(work.gate.tell.remote(json.dumps(asdict(record))))

    while (word := _word(work.gate, first)) != "end":
        if word == "test":  # a trial that is stopped in an epoch has saved the one before
            metrics = trial.test(work.states)
            if first:
                tell(metrics)
        elif first:
            record = trial.epoch()
            trial.save(work.states)
            tell(record)
        else:
            trial.train()


def _word(gate: Any, first: bool) -> str:
    """Wait for the trial's word; the first worker asks, all of them hear."""
    word = "wait"
    while first and word == "wait":
        word = ray.get(gate.next.remote())
        if word == "wait":
            time.sleep(POLL_SECONDS)
    return WORDS[from_first(WORDS.index(word))]


def _linked_or_copied(source: str, target: str) -> None:
    """Put a file at another place, in place of what is there; neither is ever written into.

    For the two, or the old one and a third, may be the same file.
    """
    if Path(target).exists() and Path(source).samefile(target):
        return
    if not linked(Path(source), Path(target)):
        with replacing(Path(target)) as draft:
            shutil.copy2(source, draft)
