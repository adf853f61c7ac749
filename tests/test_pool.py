"""The pool of teachers: what is missing of it, what is damaged, and trainings that were stopped."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from agrekd_ray.cluster.events import Notice, TeacherEpoch
from agrekd_ray.config import Job
from agrekd_ray.data import open_dataset
from agrekd_ray.errors import CheckpointError, RunError
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import _JobDriver, run_job
from agrekd_ray.experiment.monitor import show_progress
from agrekd_ray.models import Model, load
from agrekd_ray.models.checkpoint import WEIGHTS
from agrekd_ray.settings import Training
from agrekd_ray.teachers import Pool, Recipe

from .conftest import TINY, merged
from .shared import pool_of


def recipe(seed: int = 0, width: int = 4, epochs: int = 1) -> Recipe:
    """An ERM model that is trained in no time."""
    model = Model(name="cnn", args={"width": width})
    return Recipe(kind="erm", model=model, training=Training(epochs=epochs), seed=seed)


def flip(folder: Path) -> None:
    """Another bit in the last of the weights; nothing else changes."""
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def bytes_read() -> int:
    """That this process has asked the system for, so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


# --- what is missing


def test_what_is_missing_is_known_without_the_weights(make_job: Any, tmp_path: Path) -> None:
    pool = Pool(tmp_path, open_dataset(make_job().data))
    recipes = [recipe(seed, width=96) for seed in range(3)]
    for one in recipes:
        pool.make([one])
    size = sum((pool.folder(one) / WEIGHTS).stat().st_size for one in recipes)
    assert pool.missing(recipes) == []
    before = bytes_read()
    assert pool.missing(recipes) == []
    looked = bytes_read() - before
    assert pool.missing(recipes, verify=True) == []
    assert bytes_read() - before - looked > size > 20 * looked


@pytest.mark.parametrize("left", [0, 7, 8, 100, -1])
def test_weights_that_are_cut_are_missing(make_job: Any, tmp_path: Path, left: int) -> None:
    pool = Pool(tmp_path, open_dataset(make_job().data))
    pool.make([recipe()])
    path = pool.folder(recipe()) / WEIGHTS
    path.write_bytes(path.read_bytes()[:left])
    assert pool.missing([recipe()]) == [[recipe()]]
    path.write_bytes(b"\x08" + bytes(7) + b"[[{}, 1]]")
    assert pool.missing([recipe()]) == [[recipe()]]


def test_weights_that_are_others_are_found_where_they_are_loaded(
    make_job: Any, tmp_path: Path
) -> None:
    job = make_job(**{"teachers.store": str(tmp_path / "pool")})
    data, _, drawn = pool_of(job)
    pool = Pool(job.teachers.store, data)
    child = next(r for r in drawn.recipes.values() if r.kind == "dfr")
    pool.make([child.parent])
    kept = {path: (path / WEIGHTS).read_bytes() for path in map(pool.folder, (child, child.parent))}
    for folder in kept:
        flip(folder)
        with pytest.raises(CheckpointError, match=r"not the weights .* delete the folder"):
            load(folder)
    assert pool.missing([child, child.parent]) == []
    (family,) = pool.missing([child, child.parent], verify=True)
    assert family == [child.parent, child]
    epochs: list[int] = []
    pool.make([child], progress=lambda name, epoch, of: epochs.append(epoch))
    assert epochs == [1, 2]  # the parent cannot be used, either
    assert {path: (path / WEIGHTS).read_bytes() for path in kept} == kept


@pytest.mark.parametrize("loader", ["who asks them", "their student"])
def test_a_run_makes_damaged_teachers_again(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    changes = {"teachers.store": str(tmp_path), "tracking.models": False}
    job = make_job(guidance="local", **changes)
    _, checkpoints, drawn = pool_of(job)
    damaged = [checkpoints[name] for name in drawn.teachers[:2]]
    kept = [(folder / WEIGHTS).read_bytes() for folder in damaged]

    def damage(*given: Any) -> None:
        for folder in damaged:
            flip(folder)

    if loader == "their student":
        monkeypatch.setattr(_JobDriver, "asked", damage)  # all have answered
    else:
        damage()
    screen = io.StringIO()
    run_job(RunFolder.create(job), Console(file=screen, width=300), draw=False)
    for folder in damaged:
        assert f"{folder}: damaged, so it is made again" in screen.getvalue()
    assert [(folder / WEIGHTS).read_bytes() for folder in damaged] == kept


# --- trainings that were stopped

EPOCHS = 10
GOES_ON = "erm-3 goes on from epoch 8 of 10"


def stopped() -> Recipe:
    """An ERM model with batch norm, momentum, a warm-up and a schedule: much that must be kept."""
    training = Training(epochs=EPOCHS, batch_size=32, warmup_epochs=1.5, clip_norm=1.0)
    model = Model(name="cnn_deep", args={"width": 4})
    return Recipe(kind="erm", model=model, training=training, seed=3)


def make(pool: Pool, last: int = EPOCHS, ends_by: type[Exception] = RunError) -> tuple[Any, Any]:
    """Make the model, or end when an epoch is over: which epochs were trained, and what was said.

    Args:
        pool: that it is of.
        last: the epoch after which it ends.
        ends_by: the error that ends it.
    """
    epochs: list[int] = []
    said: list[str] = []

    def progress(name: str, epoch: int, of: int) -> None:
        epochs.append(epoch)
        if epoch == last < EPOCHS:
            raise ends_by

    try:
        pool.make([stopped()], progress=progress, say=said.append)
    except ends_by:
        assert last < EPOCHS
    return epochs, said


def die(store: Path, job: Job, last: int) -> None:
    """In a process of its own: begin with the model, and die of SIGKILL when an epoch is over."""
    torch.set_num_threads(1)

    def progress(name: str, epoch: int, of: int) -> None:
        if epoch == last:
            os.kill(os.getpid(), signal.SIGKILL)

    Pool(store, open_dataset(job.data)).make([stopped()], progress=progress)


def die_within(store: Path, job: Job) -> None:
    """The same in the sixth epoch, after a state of every step; that of the third is there then."""
    torch.set_num_threads(1)
    often = stopped().training.model_copy(update={"save_every_minutes": 1e-9})

    def on_way(name: str, place: str) -> None:
        if place == "step 5 of 5 of epoch 6 of 10":
            os.kill(os.getpid(), signal.SIGKILL)

    recipe = stopped().model_copy(update={"training": often})
    Pool(store, open_dataset(job.data)).make([recipe], on_way=on_way)


def weights_of(pool: Pool) -> str:
    """SHA-256 of the finished model's weights."""
    return load(pool.folder(stopped()))[1].weights


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums in one order, in every process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def job() -> Job:
    """Whose data every epoch shows in another way."""
    return Job.model_validate(merged(TINY, {"data.views": {"flip": True, "shift": 1}}))


@pytest.fixture(scope="module")
def undisturbed(one_thread: None, job: Job, tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the weights of a training that nothing has stopped."""
    pool = Pool(tmp_path_factory.mktemp("undisturbed"), open_dataset(job.data))
    assert make(pool) == ([*range(1, EPOCHS + 1)], [])
    return weights_of(pool)


def test_a_teacher_killed_at_epoch_7_of_10_goes_on_from_there(
    job: Job, undisturbed: str, tmp_path: Path
) -> None:
    pool = Pool(tmp_path / "pool", open_dataset(job.data))
    arguments = tmp_path / "pool", job, 7
    process = multiprocessing.get_context("spawn").Process(target=die, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert pool.missing([stopped()]) == [[stopped()]]
    assert pool.damaged([[stopped()]]) == []
    assert make(pool) == ([8, 9, 10], [GOES_ON])
    assert weights_of(pool) == undisturbed
    assert [*(tmp_path / "pool" / "training").iterdir()] == []
    assert pool.missing([stopped()]) == []


def test_a_teacher_killed_within_an_epoch_goes_on_from_there(
    job: Job, undisturbed: str, tmp_path: Path
) -> None:
    pool = Pool(tmp_path / "pool", open_dataset(job.data))
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=die_within, args=(tmp_path / "pool", job))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    epochs, (said,) = make(pool)
    assert epochs == [6, 7, 8, 9, 10]
    assert said in [f"erm-3 goes on from step {step} of 5 of epoch 6 of 10" for step in (4, 5)]
    assert weights_of(pool) == undisturbed


def test_a_training_stopped_over_and_over_ends_the_same(
    job: Job, undisturbed: str, tmp_path: Path
) -> None:
    pool = Pool(tmp_path / "pool", open_dataset(job.data))
    assert make(pool, 1) == ([1], [])
    assert make(pool, 2) == ([2], ["erm-3 goes on from epoch 2 of 10"])
    assert make(pool, 9)[0] == [*range(3, 10)]
    assert make(pool) == ([10], ["erm-3 goes on from epoch 10 of 10"])
    assert weights_of(pool) == undisturbed


def test_trained_and_not_saved(
    job: Job, undisturbed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(tmp_path / "pool", open_dataset(job.data))

    def fail(*given: Any) -> None:
        raise RunError("no more")

    with monkeypatch.context() as patched:
        patched.setattr(Pool, "_save", fail)
        with pytest.raises(RunError, match="no more"):
            pool.make([stopped()])
    assert make(pool) == ([], ["erm-3 is trained, and is evaluated"])
    assert weights_of(pool) == undisturbed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": "0" * 64}, "its recipe is 0000"),
        ({"version": "0.0.9"}, "its version is 0.0.9, not 0.1.0"),
        ({"torch": "1.0"}, "its torch is 1.0, not 2"),
        ({"numbers": "bfloat16"}, "its numbers is bfloat16, not float32"),
        ({"trainer": None}, "damaged"),
        ({"trainer.optimizer": {}}, "damaged"),
        ({"trainer.next_epoch": -1}, "damaged"),
        (b"", "damaged"),
        (b"PK", "damaged"),
    ],
)
def test_a_state_of_something_else_is_not_used(
    job: Job, undisturbed: str, tmp_path: Path, change: Any, said: str
) -> None:
    pool = Pool(tmp_path / "pool", open_dataset(job.data))
    make(pool, 2)
    path = pool.state(stopped())
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        state = torch.load(path, weights_only=True)
        for key, value in change.items():
            outer, _, inner = key.partition(".")
            (state[outer] if inner else state)[inner or outer] = value
        torch.save(state, path)
    epochs, (text,) = make(pool)
    assert epochs == [*range(1, EPOCHS + 1)]
    assert text.startswith(f"{path}: {said}")
    assert text.endswith(", so erm-3 begins anew")
    assert weights_of(pool) == undisturbed


def test_other_settings_and_data_have_states_of_their_own(make_job: Any, tmp_path: Path) -> None:
    pools = [
        Pool(tmp_path, open_dataset(make_job(**change).data)) for change in ({}, {"data.seed": 1})
    ]
    longer = stopped().training.model_copy(update={"epochs": EPOCHS + 1})
    recipes = [stopped(), stopped().model_copy(update={"training": longer})]
    assert len({pool.state(one) for pool in pools for one in recipes}) == 4


def test_two_at_once(job: Job, undisturbed: str, tmp_path: Path) -> None:
    """Another process makes the same, and is done while this one is at its third epoch."""
    pool = Pool(tmp_path / "pool", open_dataset(job.data))
    other = Pool(tmp_path / "pool", open_dataset(job.data))
    others: list[Any] = []

    def progress(name: str, epoch: int, of: int) -> None:
        if epoch == 3:
            others.append(make(other))

    pool.make([stopped()], progress=progress)
    assert others == [([*range(4, EPOCHS + 1)], ["erm-3 goes on from epoch 4 of 10"])]
    assert weights_of(pool) == undisturbed
    assert not pool.state(stopped()).exists()


def test_a_preempted_task_goes_on(
    ray_session: Any, job: Job, undisturbed: str, tmp_path: Path
) -> None:
    """Ray starts a task again whose process has died."""
    from agrekd_ray.cluster.channel import Channel
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.cluster.placement import ResourceRequest
    from agrekd_ray.experiment import teacher_tasks

    channel, store = Channel(), tmp_path / "pool"
    mark = tmp_path / "died"

    def dies_once(family: Any, store: Path, data: DriverData, emit: Any) -> None:
        def emit_or_die(event: Any) -> None:
            emit(event)
            if isinstance(event, TeacherEpoch) and event.epoch == 7 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        teacher_tasks.make(family, store, data, emit_or_die)

    arguments = [stopped()], store, DriverData.of(job.data), channel.emit
    task = teacher_tasks.Task(ResourceRequest("", {"CPU": 1}), arguments, "training a teacher")
    teacher_tasks.run_tasks(dies_once, {0: task})
    events = channel.take()
    channel.close()
    assert mark.exists()
    said = [event.text for event in events if isinstance(event, Notice)]
    assert said == [GOES_ON]
    epochs = [event.epoch for event in events if isinstance(event, TeacherEpoch)]
    assert epochs[-3:] == [8, 9, 10]
    assert len(epochs) <= EPOCHS
    assert weights_of(Pool(store, open_dataset(job.data))) == undisturbed


def test_epochs_of_an_earlier_attempt_count_on_the_progress_line() -> None:
    screen = io.StringIO()
    display = Display(Console(file=screen, width=200))
    display.stage("teachers", 20, "epochs")
    for epoch in (8, 9, 10):
        show_progress(display, TeacherEpoch("erm-3", epoch, 10, "erm-3-aa/erm-3"))
    for epoch in range(1, 11):  # of the same name, and another architecture
        show_progress(display, TeacherEpoch("erm-3", epoch, 10, "erm-3-bb/erm-3"))
    assert "20/20" in screen.getvalue().splitlines()[-1]
