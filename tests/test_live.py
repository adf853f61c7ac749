"""The fleet and the worker group on a real Ray: the same numbers as one process, whatever dies."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import RayActorError

from agrekd_ray.cluster.events import Notice, StudentDone, StudentEpoch
from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.core.weighting import STRATEGIES, SampleWeighting
from agrekd_ray.data import TRAIN, Dataset
from agrekd_ray.distillation import DistillationSpec, GradientRequest, LocalTeachers, TeacherHost
from agrekd_ray.distillation.spec import combine_gradients
from agrekd_ray.errors import AgrekdError, DataError, RunError
from agrekd_ray.models import Model, load
from agrekd_ray.settings import Training
from agrekd_ray.student import Student, StudentSettings, StudentSpec, read_outcome

from . import pictures, texts
from .shared import flat_parameters, own_processes, pool_of, told

STUDENT = Model(name="cnn", args={"width": 4})
TRAINING = Training(epochs=2, batch_size=32, learning_rate=0.05)


def specs(drawn: Any) -> tuple[StudentSpec, ...]:
    """A student for every strategy, one with everything that an objective can have, and labels."""
    specs = {
        name: told(DistillationSpec(name, drawn.teachers, drawn.biased, 4.0)) for name in STRATEGIES
    }
    specs["mixed"] = DistillationSpec(
        "agre_kd",
        drawn.teachers,
        drawn.biased,
        2.0,
        alpha=0.6,
        options={"fallback": "skip"},
        sample_weighting=SampleWeighting(),
    )
    taught = [StudentSpec(name, 3, STUDENT, TRAINING, what) for name, what in specs.items()]
    return (*taught, StudentSpec("one_hot", 3, STUDENT, TRAINING))


@contextmanager
def fleet_of(job: Any, checkpoints: dict[str, Path], **settings: Any) -> Iterator[Any]:
    """A fleet, ended afterwards."""
    from agrekd_ray.fleet.fleet import Fleet

    fleet = Fleet(
        checkpoints,
        job.data,
        FleetSettings(cpus=0.5, gpus=0, **settings),
        lambda event: None,
        askers=2,
    )
    try:
        yield fleet
    finally:
        fleet.close()


def reference(
    given: StudentSpec, data: Dataset, checkpoints: dict[str, Path], threads: int = 1
) -> Student:
    """The same student in this process, with as many threads: they decide how sums round."""
    student = Student(given, data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.set_num_threads(threads)
    while not student.done:
        student.epoch()
    torch.set_num_threads(1)
    return student


def taught(given: StudentSpec, data: Dataset, fleet: Any) -> Student:
    """The same student by a fleet, in this process."""
    student = Student(given, data, fleet.source(), look_ahead=2)
    while not student.done:
        student.epoch()
    return student


def killing(name: str, reached: Callable[[], Any]) -> tuple[threading.Thread, list[int]]:
    """Sends SIGKILL to the first process of that name when a state is reached.

    Returns:
        The thread that waits for the state, and the process's id, once it is killed.
    """
    killed: list[int] = []

    def kill() -> None:
        while not reached():
            time.sleep(0.02)  # polls for the moment
        victim = own_processes(name)[0]
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    return killer, killed


def same(one: Any, other: Any) -> None:
    """Two students, to float32 tolerance."""
    torch.testing.assert_close(flat_parameters(one), flat_parameters(other), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(("views", "backbones"), [({"flip": True, "shift": 1}, 1), ({}, 2)])
def test_live_is_local_for_every_strategy(
    ray_session: Any, make_job: Any, views: dict[str, Any], backbones: int
) -> None:
    job = make_job(**{"data.views": views})
    data, checkpoints, drawn = pool_of(job)
    with fleet_of(job, checkpoints, backbones_per_actor=backbones) as fleet:
        assert len(fleet.actors) == -(-3 // backbones)
        for given in specs(drawn):
            live = taught(given, data, fleet)
            local = reference(given, data, checkpoints)
            same(live.model, local.model)
            for mine, theirs in zip(live.history, local.history, strict=True):
                assert mine.loss == pytest.approx(theirs.loss, rel=1e-4)
                assert mine.fallback_share == theirs.fallback_share
                assert mine.fallback_by_group == theirs.fallback_by_group
                assert mine.influence == pytest.approx(theirs.influence, abs=1e-4)
                for group, weights in mine.weights.items():
                    assert weights == pytest.approx(theirs.weights[group], abs=1e-4)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_fleet_asks_those_alone_who_have_a_weight(
    ray_session: Any, make_job: Any, replicas: int
) -> None:
    job = make_job()
    data, checkpoints, drawn = pool_of(job)
    spec = DistillationSpec("random", drawn.teachers, drawn.biased, 4.0)
    given = StudentSpec("random", 1, STUDENT, TRAINING, spec)
    with fleet_of(job, checkpoints, replicas=replicas) as fleet:
        live = taught(given, data, fleet)
        forwards = fleet.effort().forwards
    same(live.model, reference(given, data, checkpoints).model)
    steps = TRAINING.epochs * live.trainer.plan.steps_per_epoch
    # Replicas that were not there yet have not been told of what comes.
    assert forwards == steps if replicas == 1 else steps <= forwards < 2 * steps


def test_those_who_are_left_draw_among_themselves(ray_session: Any, make_job: Any) -> None:
    job = make_job(**{"ensemble.debiased": 2})
    data, checkpoints, drawn = pool_of(job)
    spec = DistillationSpec("random", drawn.teachers, drawn.biased, 4.0)
    ids = data.splits[TRAIN][:8]
    logits_BC = np.zeros((8, 10), np.float32)
    first = GradientRequest(spec, 0, 0, ids, logits_BC)
    with fleet_of(job, checkpoints, on_teacher_loss="drop", patience=60) as fleet:
        (gone,) = spec.asked(0)
        (actor,) = fleet.lenders(gone)
        assert fleet.effort().actors == len(fleet.actors)  # all are there
        ray_session.kill(actor)
        found = fleet.source().ask(first)
    others = tuple(name for name in spec.members if name != gone)
    host = TeacherHost({name: checkpoints[name] for name in others}, data)
    expected = combine_gradients(first, [host.gradients(others, first)], {gone})
    torch.testing.assert_close(found.gradient_BC, expected.gradient_BC)
    torch.testing.assert_close(found.weights_MB, expected.weights_MB)


@pytest.mark.parametrize("kind", ["pictures", "texts"])
def test_prepared_data_are_read_wherever_teachers_are(
    ray_session: Any, make_job: Any, tmp_path: Path, kind: str
) -> None:
    if kind == "pictures":
        settings = {
            "name": "waterbirds",
            "path": str(pictures.waterbirds(tmp_path / "birds", pictures.spread((20, 8, 3)))),
            "prepared": str(tmp_path / "prepared"),
            "counts": "any",
            "size": 8,
            "resize": 10,
            "views": {"flip": True, "crop": {}},
        }
        teacher, learner = Model(name="cnn_deep", args={"width": 2}), STUDENT
    else:
        settings = texts.civilcomments(tmp_path)
        teacher, learner = (
            Model(name=f"transformers/{name}", args=args) for name, args in texts.TINY.items()
        )
    job = make_job(
        **{
            "data": settings,
            "teachers.model": teacher.model_dump(),
            "student.model": learner.model_dump(),
            "teachers.store": str(tmp_path / "pool"),
        }
    )
    data, checkpoints, drawn = pool_of(job)
    spec = DistillationSpec("agre_kd", drawn.teachers, drawn.biased, 4.0)
    given = StudentSpec("agre_kd", 0, learner, TRAINING, spec)
    with fleet_of(job, checkpoints) as fleet:
        live = taught(given, data, fleet)
    same(live.model, reference(given, data, checkpoints).model)


MANY = """
from agrekd_ray.data.colored import ColoredDigits, ColoredImages

def make(seed):
    data = ColoredImages(ColoredDigits(name="colored_digits", train=96, val=200, seed=seed))
    data.classes = tuple(map(str, range(1000)))
    return data
"""
"""Digits among a thousand classes: a request of 32 samples has 128 kB."""


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_large_question_is_one_object_for_all_actors(
    ray_session: Any, make_job: Any, tmp_path: Path, replicas: int
) -> None:
    (tmp_path / "many.py").write_text(MANY)
    settings = {"name": "custom", "factory": "many:make", "folder": str(tmp_path)}
    changes = {"data": settings, "teachers.store": str(tmp_path / "pool")}
    job = make_job(**changes, **{"ensemble.debiased": 0})
    data, checkpoints, drawn = pool_of(job)
    spec = DistillationSpec("agre_kd", drawn.teachers, drawn.biased, 4.0)
    given = StudentSpec("agre_kd", 0, STUDENT, TRAINING, spec)
    with fleet_of(job, checkpoints, replicas=replicas) as fleet:
        live = taught(given, data, fleet)
    same(live.model, reference(given, data, checkpoints).model)


def test_workers_train_what_one_process_trains(
    ray_session: Any, make_job: Any, tmp_path: Path
) -> None:
    """One worker group, every strategy in turn; 2 workers × B/2 = 1 process × B."""
    from agrekd_ray.cluster.channel import Channel
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.experiment.teacher_provider import FixedSource
    from agrekd_ray.student.group import TrainConfig, train_group

    job = make_job()
    data, checkpoints, drawn = pool_of(job)
    channel = Channel()
    given = specs(drawn)
    with fleet_of(job, checkpoints, backbones_per_actor=3, weighting_actors=2) as fleet:
        work = TrainConfig(
            given,
            DriverData.of(job.data),
            FixedSource(fleet.source()),
            tmp_path / "students",
            tmp_path,
            channel.emit,
            2,
        )
        settings = StudentSettings(model=STUDENT, training=TRAINING, workers=2, cpus=0.5, gpus=0)
        on_interrupt = signal.getsignal(signal.SIGINT)
        train_group(work, settings)
        assert signal.getsignal(signal.SIGINT) is on_interrupt
        asked = ray_session.get([actor.effort.remote() for actor in fleet.weighting])
        assert min(effort.spans["gather"].count for effort in asked) > 0  # one a worker
    events = channel.take()
    channel.close()
    assert [e.outcome.method for e in events if isinstance(e, StudentDone)] == [
        a.method for a in given
    ]
    epochs = [(e.student, e.epoch.epoch) for e in events if isinstance(e, StudentEpoch)]
    assert epochs == [(a.name, epoch) for a in given for epoch in range(2)]
    for spec in given:
        local = reference(spec, data, checkpoints)
        folder = tmp_path / "students" / spec.name
        same(load(folder)[0], local.model)
        outcome = read_outcome(folder)
        assert outcome is not None
        weights = [epoch.weights for epoch in outcome.history]
        for mine, theirs in zip(weights, (epoch.weights for epoch in local.history), strict=True):
            assert mine.keys() == theirs.keys()
            for group in mine:
                assert mine[group] == pytest.approx(theirs[group], abs=1e-4)


def test_workers_learn_alike_with_batch_norm_and_parameters_that_nothing_uses(
    ray_session: Any, make_job: Any, tmp_path: Path
) -> None:
    """DINOv2's mask token has no gradient, for which DDP alone would wait."""
    from agrekd_ray.cluster.channel import Channel
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.student.group import TrainConfig, train_group

    job = make_job()
    data, checkpoints, _ = pool_of(job)
    tiny = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1}
    models = [
        Model(name="torchvision/resnet18", small_stem=True),
        Model(name="transformers/dinov2", args={**tiny, "num_attention_heads": 2}),
    ]
    training = Training(epochs=1, batch_size=32, learning_rate=0.01)
    given = tuple(StudentSpec("one_hot", n, model, training) for n, model in enumerate(models))
    channel = Channel()
    work = TrainConfig(
        given, DriverData.of(job.data), None, tmp_path / "students", tmp_path, channel.emit, 0
    )
    settings = StudentSettings(model=STUDENT, training=training, workers=2, cpus=0.5, gpus=0)
    train_group(work, settings)
    channel.close()
    for spec in given:
        ours, alone = load(tmp_path / "students" / spec.name)[0], reference(spec, data, checkpoints)
        same(ours, alone.model)
        for name, values in alone.model.named_buffers():  # batch norm's statistics
            torch.testing.assert_close(ours.get_buffer(name), values, rtol=1e-3, atol=1e-4)


@pytest.mark.chaos
@pytest.mark.parametrize("victim", ["teacher", "weighting"])
def test_a_killed_actor_costs_time_and_nothing_else(
    ray_session: Any, make_job: Any, victim: str
) -> None:
    job = make_job(**{"data.views": {"flip": True}})
    data, checkpoints, drawn = pool_of(job)
    training = Training(epochs=6, batch_size=32, learning_rate=0.05)
    spec = DistillationSpec("agre_kd", drawn.teachers, drawn.biased, 4.0)
    given = StudentSpec("agre_kd", 3, STUDENT, training, spec)
    with fleet_of(job, checkpoints, backbones_per_actor=2) as fleet:
        actor = fleet.actors[0] if victim == "teacher" else fleet.weighting[0]
        first = ray_session.get(actor.process.remote())
        student = Student(given, data, fleet.source(), look_ahead=2)
        student.epoch()
        killer = threading.Timer(0.02, os.kill, (first, signal.SIGKILL))  # within the next epoch
        killer.start()
        while not student.done:
            student.epoch()
        killer.join()
        assert ray_session.get(actor.process.remote()) != first
    same(student.model, reference(given, data, checkpoints).model)


@pytest.mark.chaos
@pytest.mark.parametrize("victim", ["RayTrainWorker", "TrainController"])
def test_a_killed_worker_goes_on_with_its_epoch(
    ray_session: Any, make_job: Any, tmp_path: Path, victim: str
) -> None:
    """SIGKILL of the Train worker, or its controller, in the middle of its second student."""
    from agrekd_ray.cluster.channel import Channel
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.experiment.teacher_provider import FixedSource
    from agrekd_ray.student.group import TrainConfig, train_group

    job = make_job(**{"data.views": {"flip": True}})
    data, checkpoints, drawn = pool_of(job)
    training = Training(epochs=40, batch_size=32, learning_rate=0.05)
    spec = DistillationSpec("agre_kd", drawn.teachers, drawn.biased, 4.0)
    given = tuple(StudentSpec("agre_kd", seed, STUDENT, training, spec) for seed in (0, 1))
    channel = Channel()
    students = tmp_path / "students"
    first = students / given[0].name / "outcome.json"
    killer, killed = killing(f"ray::{victim}", first.exists)
    with fleet_of(job, checkpoints, backbones_per_actor=3) as fleet:
        work = TrainConfig(
            given,
            DriverData.of(job.data),
            FixedSource(fleet.source()),
            students,
            tmp_path,
            channel.emit,
            2,
        )
        # So many that the next group finds no room before the first has given back its own.
        cpus = 4
        train_group(work, StudentSettings(model=STUDENT, training=training, cpus=cpus, gpus=0))
    killer.join()
    events = [event for event in channel.take() if isinstance(event, StudentDone)]
    channel.close()
    assert len(killed) == 1
    # What was said in the moment of the kill may be lost; the driver reads outcomes from files.
    assert [event.outcome.seed for event in events][-1:] == [1]
    for spec in given:
        local = reference(spec, data, checkpoints, threads=cpus)
        same(load(students / spec.name)[0], local.model)


def test_fault_of_a_teacher_is_one_clear_error(
    ray_session: Any, make_job: Any, tmp_path: Path
) -> None:
    """A checkpoint that is damaged when the actors open it, and data that differ on a node."""
    job = make_job()
    data, checkpoints, drawn = pool_of(job)
    spec = DistillationSpec("aver", drawn.teachers, drawn.biased, 4.0)
    ids = data.splits[TRAIN][:16]
    asked = GradientRequest(spec, 0, 0, ids, torch.zeros(16, 10).numpy())
    broken = tmp_path / "broken"
    shutil.copytree(checkpoints[drawn.teachers[0]], broken)
    (broken / "model.safetensors").write_bytes(b"half")
    with (
        fleet_of(job, {**checkpoints, drawn.teachers[0]: broken}) as fleet,
        pytest.raises(AgrekdError, match="the weights that the manifest describes"),
    ):
        fleet.source().ask(asked)
    other = make_job(**{"data.seed": 1})
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.fleet.actors import TeacherActor

    with pytest.raises(DataError, match="data there differ"):
        TeacherActor(checkpoints, DriverData(other.data, data.fingerprint), FleetSettings(), 4)


def test_a_stall_is_said(ray_session: Any, make_job: Any, monkeypatch: Any) -> None:
    from agrekd_ray.fleet import fleet as module

    job = make_job()
    data, checkpoints, drawn = pool_of(job)
    monkeypatch.setattr(module, "STALL_SECONDS", 0.05)
    told: list[Any] = []
    with fleet_of(job, checkpoints) as fleet:
        source = module.FleetSource(tuple(fleet.weighting), told.append)
        spec = DistillationSpec("aver", drawn.teachers, drawn.biased, 4.0)
        ids = data.splits[TRAIN][:16]
        source.ask(GradientRequest(spec, 7, 0, ids, torch.zeros(16, 10).numpy()))
    assert isinstance(told[0], Notice)
    assert "step 7 has waited" in told[0].text
    assert drawn.teachers[0] in told[0].text


def test_students_side_by_side_are_those_of_one_after_another(
    ray_session: Any, make_job: Any, tmp_path: Path
) -> None:
    """Two groups share five students; a worker of one is killed."""
    from agrekd_ray.cluster.channel import Channel
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.experiment.teacher_provider import FixedSource
    from agrekd_ray.student.group import TrainConfig, train_group

    job = make_job(**{"data.views": {"flip": True}})
    data, checkpoints, drawn = pool_of(job)
    spec = DistillationSpec("agre_kd", drawn.teachers, drawn.biased, 4.0)
    given = tuple(StudentSpec("agre_kd", seed, STUDENT, TRAINING, spec) for seed in range(5))
    channel = Channel()
    students = tmp_path / "students"
    killer, killed = killing(
        "ray::RayTrainWorker", lambda: list(tmp_path.glob("groups-*/group-1/taken/*"))
    )
    with fleet_of(job, checkpoints, backbones_per_actor=3) as fleet:
        work = TrainConfig(
            given,
            DriverData.of(job.data),
            FixedSource(fleet.source()),
            students,
            tmp_path,
            channel.emit,
            2,
        )
        settings = StudentSettings(model=STUDENT, training=TRAINING, cpus=0.5, gpus=0)
        train_group(work, settings, lambda groups, begun: groups < 2)
    killer.join()
    channel.close()
    assert len(killed) == 1
    assert list(tmp_path.glob("groups-*/group-1/placement-group"))
    # Of finished students; a worker that is killed at a student's end leaves one to the run's end.
    assert len(list((tmp_path / "states").glob("*.pt"))) <= len(killed)
    for spec in given:
        local = reference(spec, data, checkpoints)
        same(load(students / spec.name)[0], local.model)


def test_a_fault_of_one_group_ends_the_others(
    ray_session: Any, make_job: Any, tmp_path: Path
) -> None:
    from agrekd_ray.cluster.channel import Channel
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.student.group import TrainConfig, train_group

    wild = Training(epochs=1, batch_size=32, learning_rate=1e30)
    long = Training(epochs=10_000, batch_size=32, learning_rate=0.01)
    channel = Channel()
    given = (StudentSpec("one_hot", 0, STUDENT, long), StudentSpec("one_hot", 1, STUDENT, wild))
    data = DriverData.of(make_job().data)
    work = TrainConfig(given, data, None, tmp_path / "students", tmp_path, channel.emit, 0)
    settings = StudentSettings(model=STUDENT, training=long, cpus=0.5, gpus=0)
    with pytest.raises(RunError, match="diverged"):
        train_group(work, settings, lambda groups, begun: groups < 2)
    channel.close()
    while own_processes("ray::RayTrainWorker"):
        time.sleep(0.1)


@pytest.mark.chaos
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_group_stops_at_a_fault_that_would_repeat(
    ray_session: Any, make_job: Any, tmp_path: Path, workers: int
) -> None:
    from agrekd_ray.cluster.channel import Channel
    from agrekd_ray.cluster.events import Awaited
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.student.group import TrainConfig, train_group

    job = make_job()
    wild = Training(epochs=1, batch_size=32, learning_rate=1e30)
    channel = Channel()
    given = (StudentSpec("one_hot", 0, STUDENT, wild),)
    work = TrainConfig(
        given, DriverData.of(job.data), None, tmp_path / "students", tmp_path, channel.emit, 0
    )
    with pytest.raises(RunError, match="diverged"):
        train_group(
            work, StudentSettings(model=STUDENT, training=wild, workers=workers, cpus=0.5, gpus=0)
        )
    assert channel.take().count(Awaited("a worker group has started, and opens the data")) == 1
    channel.close()


def test_training_goes_on_where_the_controller_itself_gives_up(
    ray_session: Any, make_job: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """As where Ray, short of memory, has killed an actor of the controller's own."""
    from ray.exceptions import OutOfMemoryError
    from ray.train import ControllerError

    from agrekd_ray.cluster.channel import Channel
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.student import group as module

    short = ControllerError(OutOfMemoryError("9 worker(s) were killed: low on memory."))
    faults = [short, short]
    fit = module.fit

    def fails_at_first(*given: Any) -> None:
        if faults:
            raise faults.pop()
        fit(*given)

    monkeypatch.setattr(module, "fit", fails_at_first)
    told: list[Any] = []
    given = (StudentSpec("one_hot", 0, STUDENT, TRAINING),)
    data = DriverData.of(make_job().data)
    work = module.TrainConfig(given, data, None, tmp_path / "s", tmp_path, told.append, 0)
    settings = StudentSettings(model=STUDENT, training=TRAINING, cpus=0.5, gpus=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_CONTROLLERS", 2)
        with pytest.raises(RunError, match=r"low on memory\. Run fewer processes"):
            module.train_group(work, settings)
    (note,) = told
    assert note.text.endswith("It goes on from the last state that was kept.")
    faults.append(short)
    channel = Channel()
    module.train_group(dataclasses.replace(work, emit=channel.emit), settings)
    channel.close()
    assert (tmp_path / "s" / given[0].name / "outcome.json").exists()


@pytest.mark.parametrize("ends", [RayActorError, SystemExit, ValueError])
def test_a_handle_of_ray_is_not_dropped_while_ray_shuts_down(
    tmp_path: Path, make_job: Any, monkeypatch: Any, ends: type[BaseException]
) -> None:
    """One that is, in another thread, ends the process with code 1 before it can say anything."""
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.student import group as module

    dropped, threads = list[str](), list[threading.Thread]()
    waits, shut_down = threading.Event(), threading.Event()

    class Handle:
        def __del__(self) -> None:
            dropped.append("handle")

    def fit(*_: Any) -> None:
        handle = Handle()
        threads.append(threading.current_thread())
        waits.set()
        shut_down.wait()
        assert handle
        raise ends

    def interrupted(groups: int, begun: int) -> bool:
        waits.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit", fit)
    given = tuple(StudentSpec("one_hot", seed, STUDENT, TRAINING) for seed in range(2))
    data = DriverData.of(make_job().data)
    work = module.TrainConfig(given, data, None, tmp_path / "s", tmp_path, [].append, 0)
    settings = StudentSettings(model=STUDENT, training=TRAINING, cpus=0.5, gpus=0)
    with pytest.raises(KeyboardInterrupt):
        module.train_group(work, settings, interrupted)
    shut_down.set()
    threads[0].join()
    gc.collect()
    assert dropped == []


def test_what_a_call_left_at_work_takes_no_student_of_the_next(
    tmp_path: Path, make_job: Any, monkeypatch: Any
) -> None:
    """Ray Train starts a group again that has failed, and its room is not given back at once."""
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.student import group as module
    from agrekd_ray.student.shared_work import SharedWork

    left, taken = list[Any](), list[int | None]()

    def fit(loop: Any, config: Any, *others: Any) -> None:
        work = config["work"]
        if not left:
            left.append(work)
            raise RunError("no such GPU")
        assert (left[0].groups / module.GIVEN_UP).exists()
        for groups in (left[0].groups, work.groups):
            taken.append(SharedWork(groups).take("group-0", lambda number: False))

    monkeypatch.setattr(module, "fit", fit)
    given = (StudentSpec("one_hot", 0, STUDENT, TRAINING),)
    data = DriverData.of(make_job().data)
    work = module.TrainConfig(given, data, None, tmp_path / "s", tmp_path / "t", [].append, 0)
    settings = StudentSettings(model=STUDENT, training=TRAINING, cpus=0.5, gpus=0)
    with pytest.raises(RunError, match="no such GPU"):
        module.train_group(work, settings)
    SharedWork(left[0].groups).take("group-0", lambda number: False)  # what it had begun with
    (left[0].groups / "group-0" / "taken" / "000000").unlink()
    with pytest.raises(RunError, match="the students: 1 are not finished"):
        module.train_group(work, settings)
    assert taken == [None, 0]


def test_a_group_with_nothing_left_to_do_is_awaited(
    tmp_path: Path, make_job: Any, monkeypatch: Any
) -> None:
    """What follows may shut Ray down. One that waits for room could keep it waiting for ever."""
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.student import group as module

    ended, finished = list[str](), set[int]()
    all_there, over = threading.Barrier(3), threading.Event()

    def fit(loop: Any, config: Any, settings: Any, folder: Path, restarts: int) -> None:
        if folder.name == "group-2":
            all_there.wait()
            over.wait()
            return
        folder.mkdir()
        (folder / module.ROOM).write_text("00", encoding="utf-8")
        all_there.wait()
        if folder.name == "group-0":
            finished.update(range(3))
        else:
            while ended != ["group-0"]:
                time.sleep(0.01)  # polls for the moment
            time.sleep(2 * module.POLL_SECONDS)  # as its workers take to end
        ended.append(folder.name)

    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.setattr(module.TrainConfig, "finished", lambda self, number: number in finished)
    given = tuple(StudentSpec("one_hot", seed, STUDENT, TRAINING) for seed in range(3))
    data = DriverData.of(make_job().data)
    work = module.TrainConfig(given, data, None, tmp_path / "s", tmp_path, [].append, 0)
    settings = StudentSettings(model=STUDENT, training=TRAINING, cpus=0.5, gpus=0)
    more = iter([True, True])
    module.train_group(work, settings, lambda groups, begun: next(more, False))
    over.set()
    assert ended == ["group-0", "group-1"]
