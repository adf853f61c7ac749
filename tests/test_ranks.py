"""Several workers of a student: what ends one of them ends all, at once and in its own words."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError

from agrekd_ray import collectives
from agrekd_ray.data import SELECT
from agrekd_ray.distillation import DistillationSpec, LocalTeachers, TeacherHost
from agrekd_ray.errors import AgrekdError, DataError, RunError
from agrekd_ray.models import Model
from agrekd_ray.search.trial import Shared
from agrekd_ray.settings import Training
from agrekd_ray.student import Student, StudentSettings, StudentSpec, read_outcome

from .shared import pool_of
from .test_search import leftovers
from .test_search_space import planned

STUDENT = Model(name="cnn", args={"width": 4})
TRAINING = Training(epochs=2, batch_size=32, learning_rate=0.05)
LATE = 6.0
"""Seconds that the workers of a test wait for each other."""


def lose() -> None:
    raise RunError("teacher erm-0 is lost")


def stumble() -> None:
    raise ValueError("a bug of a plugin's")


def unreadable() -> None:
    raise DataError("picture 7 cannot be read")


def hang() -> None:
    time.sleep(3600)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dawdle() -> None:
    time.sleep(2 * LATE)


@dataclass(frozen=True)
class Befallen:
    """Opens teachers in each worker, and has something befall one of them, once.

    Attributes:
        checkpoints: of the teachers.
        rank: of the worker.
        what: befalls it.
        when: `open`, where its data are opened; `step`, where it asks its teachers for the third
            time; `save`, where it keeps its first state.
        folder: for a mark that it has happened.
    """

    checkpoints: dict[str, Path]
    rank: int
    what: Callable[[], None]
    when: str
    folder: Path

    def __call__(self, samples: Any) -> LocalTeachers:
        if self.when == "open":
            self.befall()
        if self.when == "save":
            save = Student.save_state

            def late(student: Student, path: Path) -> None:
                self.befall()
                save(student, path)

            Student.save_state = late  # type: ignore[method-assign]  # of a process that ends soon
        return _Teachers(self, TeacherHost(self.checkpoints, samples))

    def befall(self) -> None:
        mark = self.folder / "befallen"
        if dist.get_rank() == self.rank and not mark.exists():
            mark.touch()
            self.what()


class _Teachers(LocalTeachers):
    def __init__(self, befallen: Befallen, host: TeacherHost) -> None:
        super().__init__(host)
        self._befallen, self._asked = befallen, 0

    def ask(self, request: Any) -> Any:
        self._asked += 1
        if self._befallen.when == "step" and self._asked == 3:
            self._befallen.befall()
        return super().ask(request)


def run(befallen: Befallen, make_job: Any, workers: int, strategy: str, patience: float) -> Path:
    """Trains a student; returns its folder."""
    from agrekd_ray.cluster.channel import Channel
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.student.group import TrainConfig, train_group

    _, _, drawn = pool_of(make_job())
    spec = DistillationSpec(strategy, drawn.teachers, drawn.biased, 4.0)
    training = TRAINING.model_copy(update={"batch_size": 8 * workers})
    given = StudentSpec(strategy, 3, STUDENT, training, spec)
    students, channel = befallen.folder / "students", Channel()
    data = DriverData.of(make_job().data)
    work = TrainConfig((given,), data, befallen, students, befallen.folder, channel.emit, 2)
    settings = StudentSettings(
        model=STUDENT,
        training=training,
        workers=workers,
        cpus=0.5,
        gpus=0,
        timeout_minutes=patience / 60,
    )
    try:
        train_group(work, settings)
    finally:
        channel.close()
    return students / given.name


def trial(befallen: Befallen, make_job: Any, workers: int, strategy: str, patience: float) -> int:
    """Trains the students of a trial; returns how many epochs they have seen."""
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.search.nested import GroupTrial

    data, _, _ = pool_of(make_job())
    changes = {
        "student.training.epochs": 2,
        "student.training.batch_size": 8 * workers,
        "student.training.save_every_minutes": 1e-9,
        "student.cpus": 0.5,
        "student.timeout_minutes": patience / 60,
        "fleet.patience": patience / 2,
    }
    found = planned(befallen.folder, changes=changes)
    answers_N = data.labels(data.splits[SELECT]).numpy()
    places = (befallen.folder / name for name in ("trials", "states", "groups"))
    shown = DriverData.of(found.base.data)
    shared = Shared(found, shown, befallen, answers_N, answers_N, _deaf, *places)
    job = found.trial({"strategy": strategy, "student.workers": workers})
    group = GroupTrial(job, shared, "one", befallen.folder / "groups/one")
    try:
        while not group.done:
            group.epoch()
    finally:
        group.close()
    return len(group.history)


def _deaf(event: Any) -> None:
    """Tells nobody."""


KINDS: dict[str, Callable[..., Any]] = {"run": run, "trial": trial}


@pytest.fixture
def worked(ray_session: Any, make_job: Any, tmp_path: Path) -> Callable[..., Any]:
    """Trains with several workers, one of whom something befalls; nothing is left of them."""

    def work(
        kind: str,
        what: Callable[[], None],
        *,
        rank: int = 1,
        when: str = "step",
        workers: int = 2,
        strategy: str = "aver",
        patience: float = 600,
    ) -> Any:
        _, checkpoints, _ = pool_of(make_job())
        befallen = Befallen(checkpoints, rank, what, when, tmp_path)
        try:
            return KINDS[kind](befallen, make_job, workers, strategy, patience)
        finally:
            assert (tmp_path / "befallen").exists()
            assert leftovers(ray_session) == {"actors": [], "groups": []}

    return work


LOST = r"^worker 2 of 2: teacher erm-0 is lost$"
BUG = r"^worker {} of {} failed: ValueError: a bug of a plugin's \(test_ranks\.py, line \d+\)$"


@pytest.mark.parametrize(
    ("kind", "said", "given"),
    [
        ("run", BUG.format(3, 3), {"what": stumble, "rank": 2, "workers": 3}),
        ("trial", LOST, {"what": lose}),
        pytest.param(
            *("run", "^worker 2 of 2: picture 7", {"what": unreadable, "when": "open"}),
            marks=pytest.mark.chaos,
        ),
        pytest.param("run", LOST, {"what": lose}, marks=pytest.mark.chaos),
        pytest.param("trial", BUG.format(2, 2), {"what": stumble}, marks=pytest.mark.chaos),
        *(
            pytest.param(
                *(kind, BUG.format(1, 2), {"what": stumble, "rank": 0, "strategy": strategy}),
                marks=pytest.mark.chaos,
            )
            for kind in KINDS
            for strategy in ("aver", "ae_kd")
        ),
    ],
)
def test_a_fault_of_one_worker_ends_all_with_its_message(
    worked: Callable[..., Any], kind: str, said: str, given: dict[str, Any]
) -> None:
    """The others wait in an exchange of gradients, or for the first worker's answer."""
    with pytest.raises(RunError, match=said):
        worked(kind, **given)


@pytest.mark.chaos
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_hangs_is_named_once_the_others_have_waited_long_enough(
    worked: Callable[..., Any], kind: str, rank: int
) -> None:
    said = rf"^worker {rank + 1} of 3 \(process \d+ on \S+ \(\w+\)\) did not come to the others"
    with pytest.raises(RunError, match=said):
        worked(kind, hang, rank=rank, workers=3, patience=LATE)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("when", "strategy"), [("save", "aver"), ("step", "ae_kd")])
def test_the_others_wait_for_the_first_worker_as_long_as_it_takes(
    worked: Callable[..., Any], kind: str, when: str, strategy: str
) -> None:
    """It keeps a state, or asks the teachers for all; twice as long as an exchange may take."""
    assert worked(kind, dawdle, rank=0, when=when, strategy=strategy, patience=LATE)


@pytest.mark.chaos
def test_a_run_goes_on_after_the_death_of_a_worker(worked: Callable[..., Any]) -> None:
    assert read_outcome(worked("run", die)) is not None


@pytest.mark.chaos
def test_a_trial_whose_worker_dies_is_left_to_tune(
    worked: Callable[..., Any], tmp_path: Path
) -> None:
    """Which tries once more; its students have states of the steps that they have made."""
    from agrekd_ray.search.nested import GroupLostError

    with pytest.raises(GroupLostError, match="a trial's worker group failed"):
        worked("trial", die)
    (state,) = tmp_path.glob("states/one/within-00000-*/*.pt")
    assert len(torch.load(state)["trainer"]["under_way"]["losses"]) in (1, 2)
    assert worked("trial", die) == 2


# --- without Ray


def test_a_fault_is_told_in_plain_words_or_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from agrekd_ray.student.faults import worker_faults

    def told(error: Exception, kind: type[Exception] = RunError) -> str:
        with pytest.raises(kind) as caught, worker_faults("training the students"):
            raise error
        return str(caught.value)

    bug = KeyError("bird")
    assert told(bug).startswith("training the students failed: KeyError: 'bird' (test_ranks.py, ")
    assert told(DataError("no picture"), DataError) == "no picture"
    monkeypatch.setattr(collectives, "several", lambda: True)
    monkeypatch.setattr(collectives, "named", lambda: "worker 2 of 3")
    monkeypatch.setattr(collectives, "ROLL_CALL_SECONDS", 0.0)
    absent = ["worker 1 of 3 (process 7 on b)"]
    monkeypatch.setattr(collectives, "missing", lambda: absent)
    assert told(DataError("no picture")) == "worker 2 of 3: no picture"
    assert told(bug).startswith("worker 2 of 3 failed: KeyError: 'bird'")
    late, gone = (f"[gloo/pair.cc:1] {why}" for why in ("Timed out waiting", "Connection closed"))
    assert told(RuntimeError(late)).startswith("worker 1 of 3 (process 7 on b) did not come to")
    assert told(dist.DistBackendError("NCCL timed out")).startswith("worker 1 of 3 (process 7")
    absent.clear()
    assert "none was missing" in told(RuntimeError(late))
    assert told(RuntimeError(gone), RuntimeError) == gone  # of a worker that died: Ray restarts
    assert told(torch.AcceleratorError("ECC"), torch.AcceleratorError) == "ECC"


def test_a_group_is_not_started_again_to_fail_in_the_same_way() -> None:
    from ray.train import FailureConfig
    from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision

    from agrekd_ray.student.room import _Restarts

    policy = _Restarts(FailureConfig(max_failures=2))
    for failure, restarts in ((ActorDiedError(), True), (DataError("no picture"), False)):
        decision = policy.make_decision(WorkerGroupError("", {1: failure, 0: ValueError()}))
        assert (decision is FailureDecision.RETRY) == restarts
        assert isinstance(failure, AgrekdError) != restarts
