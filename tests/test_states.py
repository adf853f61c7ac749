"""A training that is killed within an epoch goes on from its last state, to the same weights."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agrekd_ray import collectives
from agrekd_ray.cluster.events import Event, Notice, OnWay
from agrekd_ray.data import SELECT, TEST, TRAIN
from agrekd_ray.data.in_memory import InMemory
from agrekd_ray.distillation import DistillationSpec, LocalTeachers, TeacherHost
from agrekd_ray.distillation.cached import FixedLogits
from agrekd_ray.errors import RunError
from agrekd_ray.models import Model, load
from agrekd_ray.models.classifier import Classifier, model
from agrekd_ray.results import Epoch
from agrekd_ray.search.trial import Trial, forget_within, last_state, save_state
from agrekd_ray.settings import Training, fingerprint
from agrekd_ray.student import STATES, Student, StudentSpec
from agrekd_ray.student.parallel import data_parallel
from agrekd_ray.teachers import Pool, Recipe
from agrekd_ray.training import under_way
from agrekd_ray.training.states import StateWriter, read_state
from agrekd_ray.training.under_way import LOOK_EVERY, Looks

from .shared import flat_parameters, pool_of
from .test_search_space import planned
from .test_shared_evaluation import one_of

SHAPE, CLASSES, STEPS = (3, 8, 8), 3, 5
EVERY_STEP = 1e-9
"""Minutes that are over after every step."""


def drops_out(shape: tuple[int, ...], classes: int, p: float = 0.5) -> Classifier:
    """With dropout and batch norm."""
    body = nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return Classifier(nn.Sequential(body, nn.Dropout(p)), nn.Linear(4 * 36, classes))


@pytest.fixture(autouse=True)
def known(plugins_forgotten: None) -> None:
    """The model is known while a test lasts."""
    model("drops_out")(drops_out)


def data() -> InMemory:
    numbers = np.random.default_rng(0)
    sizes = {TRAIN: 60, SELECT: 20, TEST: 8}
    return InMemory(
        {
            name: (numbers.random((count, *SHAPE), np.float32), np.arange(count) % CLASSES)
            for name, count in sizes.items()
        }
    )


def student(minutes: float = 10, optimizer: Any = "sgd", **further: Any) -> Student:
    """One whose teachers' answers are known, so that who taught whom is recorded."""
    samples, names = data(), ("a", "b", "c")
    said = np.random.default_rng(1).normal(0, 3, (3, samples.size, CLASSES)).astype(np.float32)
    spec = DistillationSpec("agre_kd", names, "c", 2.0, 0.7)
    training = Training(
        epochs=3,
        batch_size=12,
        learning_rate=0.05,
        optimizer=optimizer,
        warmup_epochs=0.5,
        clip_norm=1.0,
        save_every_minutes=minutes,
    )
    given = StudentSpec("agre_kd", 3, Model(name="drops_out"), training, spec)
    source = FixedLogits(dict(zip(names, said, strict=True)), samples)
    return Student(given, samples, source, **further)


class StoppedError(Exception):
    """The process has died, as far as the training is concerned."""


def train(folder: Path, given: Student, stops: Callable[[Event], object]) -> list[Event]:
    """Trains until an event stops it, or to its end; what was told until then."""
    told: list[Event] = []

    def tell(event: Event) -> None:
        told.append(event)
        if stops(event):
            raise StoppedError

    with contextlib.suppress(StoppedError):
        given.train(folder / "training", folder / "students", lambda epoch: None, tell)
    return told


def timeless(history: list[Epoch]) -> list[Epoch]:
    return [replace(epoch, seconds=0.0, guidance_seconds=0.0) for epoch in history]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_stopped_at_any_step_ends_in_the_same_bits(
    tmp_path: Path, optimizer: Any
) -> None:
    """At every step in turn, so that each step is the first one after a state."""
    whole = student(optimizer=optimizer)
    assert train(tmp_path / "whole", whole, lambda event: False) == []
    for attempt in range(3 * STEPS):
        part = student(EVERY_STEP, optimizer)
        torch.rand(attempt)  # somebody else draws in between
        states = 0

        def second_state(event: Event) -> bool:
            nonlocal states
            states += isinstance(event, OnWay)
            return states == 2

        told = train(tmp_path, part, second_state)
        if part.done:
            break
        first, *_ = [event.text for event in told if isinstance(event, Notice)] or [""]
        assert attempt == 0 or "agre_kd-seed-3 goes on from " in first
    assert attempt > 4
    assert torch.equal(flat_parameters(part.model), flat_parameters(whole.model))
    assert timeless(part.history) == timeless(whole.history)
    assert {epoch.replayed_steps for epoch in part.history} == {STEPS}
    assert not any((tmp_path / "training" / STATES).iterdir())


def test_it_is_said_where_a_training_goes_on_and_is(tmp_path: Path) -> None:
    places = [f"step {step} of 5 of epoch 2 of 3" for step in (2, 3)]
    told = train(tmp_path, student(EVERY_STEP), lambda e: OnWay("agre_kd-seed-3", places[1]) == e)
    assert told[-2:] == [OnWay("agre_kd-seed-3", place) for place in places]
    told = train(tmp_path, student(), lambda event: False)
    assert told == [Notice(f"agre_kd-seed-3 goes on from {places[1]}")]


def test_short_epochs_have_no_state_but_at_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(StateWriter, "begin", lambda self, path, state: written.append(path))
    train(tmp_path, student(), lambda event: False)
    assert written == []
    assert Training().save_every_minutes == 10
    assert fingerprint(Training()) == fingerprint(Training(save_every_minutes=3))


def kept_on_the_way(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A state within an epoch, and its file."""
    given = student(EVERY_STEP)
    train(folder, given, lambda event: isinstance(event, OnWay))
    given._writer.wait()
    (path,) = (folder / "training" / STATES).iterdir()
    return path, read_state(path, "cpu")


def test_a_state_of_an_epoch_of_other_steps_is_refused(tmp_path: Path) -> None:
    path, state = kept_on_the_way(tmp_path)
    for key, value, said in (
        ("steps", 9, "an epoch of 9 steps, not 5"),
        ("losses", torch.zeros(5), "damaged"),
        ("own", None, "NoneType"),
    ):
        begun = {**state["trainer"]["under_way"], key: value}
        torch.save({**state, "trainer": {**state["trainer"], "under_way": begun}}, path)
        with pytest.raises(RunError, match=f"damaged training state .*{said}.*delete it"):
            student().load_state(path)


def test_a_state_of_other_workers_or_of_another_device_is_gone_on_from(tmp_path: Path) -> None:
    """With random numbers of that step's own: theirs are of no use."""
    path, state = kept_on_the_way(tmp_path)
    begun = state["trainer"]["under_way"]
    for own in (begun["own"].repeat(2, 1), begun["own"][:, 1:]):
        trainer = {**state["trainer"], "under_way": {**begun, "own": own}}
        torch.save({**state, "trainer": trainer}, path)
        other, again = student(), student()
        for one in (other, again):
            assert one.load_state(path)
            torch.rand(3 if one is other else 4)
            one.epoch()
        assert torch.equal(flat_parameters(other.model), flat_parameters(again.model))


# --- when


class Clock:
    """Seconds that pass by the step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(under_way.time, "monotonic", lambda: self.now)

    def states(self, minutes: float, seconds: list[float]) -> tuple[list[int], int]:
        """Steps after which states are kept, and looks, where each step takes so long."""
        looks, kept, looked = Looks(minutes), [], 0
        for step, took in enumerate(seconds, 1):
            self.now += took
            if looks.due():
                looked += 1
                if looks.heard(looks.word()):
                    kept.append(step)
        return kept, looked


def test_states_are_as_far_apart_as_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert clock.states(10, [0.1] * 5900)[0] == []
    kept, looks = clock.states(10, [0.1] * 18100)
    assert kept == pytest.approx([6000, 12000, 18000], abs=LOOK_EVERY)
    assert looks < 18100 / LOOK_EVERY + 20
    slow, _ = clock.states(10, [45.0] * 60)  # a look each 100 steps would be one in 75 minutes
    assert np.diff([0, *slow]).max() * 45 <= 600 + 2 * 45
    assert clock.states(math.inf, [45.0] * 200)[0] == []
    first_compiles, _ = clock.states(10, [500.0] + [0.5] * 3000)
    assert np.diff(first_compiles) == pytest.approx(1200, abs=LOOK_EVERY)


# --- several workers


def stopped_at(given: Student, step: int) -> None:
    """Its process dies in a step."""
    make = given.trainer.step

    def dies(batch: Any, loaded: Any) -> Any:
        if batch.step == step:
            raise StoppedError
        return make(batch, loaded)

    given.trainer.step = dies  # type: ignore[method-assign]


def teacher() -> Recipe:
    """With batch norm, which several workers must do together."""
    without_dropout = Model(name="drops_out", args={"p": 0.0})
    training = Training(epochs=3, batch_size=12, learning_rate=0.05)
    return Recipe(kind="erm", model=without_dropout, training=training, seed=1)


def tell(rank: int) -> None:
    assert rank == 0


def works(rank: int, folder: Path) -> None:
    model("drops_out")(drops_out)
    with one_of(2, rank, folder):
        wrap = partial(data_parallel, samples=data(), batch_norm="synchronised")
        total = partial(collectives.summed, device="cpu")
        further: dict[str, Any] = {"rank": rank, "world": 2, "wrap": wrap, "total": total}
        whole = student(**further)
        train(folder / "whole", whole, lambda event: False)
        for dies_in in (2, 3, STEPS + 1, 99):
            part = student(EVERY_STEP, **further)
            stopped_at(part, dies_in)
            train(folder / "part", part, lambda event: False)
        if rank == 1:  # it has read another state than the first one
            part.trainer.next_epoch -= 1
            with pytest.raises(RunError, match="changed while the workers read it"):
                part.trainer.await_first()
        else:
            part.trainer.await_first()
        pool = Pool(folder / "pool", data())
        pool.make([teacher()], progress=lambda *told: tell(rank), **further)
        parameters = [flat_parameters(one.model) for one in (whole, part)]
        records = [timeless(one.history) for one in (whole, part)]
    torch.save(parameters, folder / f"{rank}.pt")
    if rank == 0:
        assert records[0] == records[1]
        assert len(records[0]) == 3


def test_two_workers_go_on_from_the_same_step(tmp_path: Path) -> None:
    """Each with its own dropout, whoever's clock says when; their teacher is that of one."""
    torch.multiprocessing.spawn(works, (tmp_path,), 2)
    (whole, part), others = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(whole, part)
    assert torch.equal(others[0], others[1])
    pools = [Pool(tmp_path / name, data()) for name in ("pool", "alone")]
    assert pools[0].missing([teacher()]) == []
    pools[1].make([teacher()])
    two, one = (flat_parameters(load(pool.folder(teacher()))[0]) for pool in pools)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


# --- writing


def test_what_is_written_is_of_the_moment_when_it_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agrekd_ray.training import states

    weights, write = torch.zeros(3), states.write_state
    changed: list[Tensor] = []

    def late(path: Path, state: Any) -> None:
        while not changed:
            time.sleep(0.001)
        write(path, state)

    monkeypatch.setattr(states, "write_state", late)
    writer = StateWriter()
    writer.begin(tmp_path / "state.pt", {"model": {"weights": weights}, "parts": [(weights, 1)]})
    weights += 1  # the training goes on meanwhile
    changed.append(weights)
    writer.wait()
    state = read_state(tmp_path / "state.pt", "cpu")
    assert torch.equal(state["model"]["weights"], torch.zeros(3))
    assert torch.equal(state["parts"][0][0], torch.zeros(3))


def test_a_state_that_could_not_be_written_ends_the_training(tmp_path: Path) -> None:
    given = student(EVERY_STEP)
    folder = tmp_path / "training" / STATES

    def taken_away(event: Event) -> bool:
        if folder.exists():
            folder.rename(tmp_path / "away")
        return False

    with pytest.raises(RunError, match=r"cannot write the state of the training .*agrekd resume"):
        train(tmp_path, given, taken_away)


# --- trials


def test_a_trial_killed_within_an_epoch_goes_on_from_there(make_job: Any, tmp_path: Path) -> None:
    """In the second epoch of its second seed: the first one's is over, and is not trained again."""
    data_of_job, checkpoints, _ = pool_of(make_job())
    source = LocalTeachers(TeacherHost(checkpoints, data_of_job))
    changes = {"student.training.epochs": 2, "student.training.save_every_minutes": EVERY_STEP}
    found = planned(tmp_path, changes=changes, seeds=[0, 1])
    folder = tmp_path / "states"

    def trial(states: Path | None = None) -> Trial:
        job = found.trial({"strategy": "aver", "distillation.alpha": 0.9})
        return Trial(job, data_of_job, source, lambda answers_NC: {"": 0.0}, states=states)

    whole = trial()
    epochs = [timeless([whole.epoch()]) for _ in range(2)]
    part = trial(folder)
    part.epoch()
    save_state(part, folder)
    assert [path.name for path in folder.iterdir()] == ["00001"]
    first, second = part._students
    stopped_at(second, 5 + 3)
    with pytest.raises(StoppedError):
        part.epoch()
    assert len(part.history) == 1
    part = trial(folder)
    state = last_state(folder)
    assert state is not None
    part.load(state)
    part.take_up()
    first, second = part._students
    assert (first.trainer.next_epoch, second.trainer.next_epoch) == (2, 1), second.trainer.place
    assert second.trainer.place == "step 4 of 5 of epoch 2 of 2"
    assert not part.done
    assert [timeless([part.history[0]]), timeless([part.epoch()])] == epochs
    save_state(part, folder)
    assert [path.name for path in folder.iterdir()] == ["00002"]
    for one, other in zip(whole._students, part._students, strict=True):
        assert torch.equal(flat_parameters(one.model), flat_parameters(other.model))


def test_states_within_an_epoch_of_another_setting_are_not_taken_up(
    make_job: Any, tmp_path: Path
) -> None:
    data_of_job, checkpoints, _ = pool_of(make_job())
    source = LocalTeachers(TeacherHost(checkpoints, data_of_job))
    changes = {"student.training.epochs": 2, "student.training.save_every_minutes": EVERY_STEP}
    found = planned(tmp_path, changes=changes, seeds=[0, 1])
    for size in (32, 16):
        job = found.trial({"strategy": "aver", "student.training.batch_size": size})
        trial = Trial(job, data_of_job, source, lambda answers_NC: {"": 0.0}, states=tmp_path)
        trial.take_up()
        assert [student.trainer.steps_done for student in trial._students] == [0, 0]
        trial.epoch()
    assert len([*tmp_path.glob("within-00000-*")]) == 2
    forget_within(tmp_path)
    assert not [*tmp_path.glob("within-*")]
