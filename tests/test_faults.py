"""Faults done for real: full disks, teachers that hang, raylets that vanish and appear."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agrekd_ray.cluster.events import Notice
from agrekd_ray.data import TRAIN
from agrekd_ray.distillation import DistillationSpec, GradientRequest, LocalTeachers, TeacherHost
from agrekd_ray.errors import AgrekdError, RunError
from agrekd_ray.models import Model, read_manifest, save
from agrekd_ray.settings import Training
from agrekd_ray.student import STATE, Student, StudentSpec

from .shared import flat_parameters, full, pool_of, records, small_disk
from .test_nodes import fleet_of, in_slots, taught

STUDENT = Model(name="cnn", args={"width": 4})
TRAINING = Training(epochs=4, batch_size=32, learning_rate=0.05)


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes file systems of so many bytes."""
    numbers = itertools.count()
    with ExitStack() as mounted:

        def make(size: int) -> Path:
            try:
                place = tmp_path / f"disk-{next(numbers)}"
                return mounted.enter_context(small_disk(place, size))
            except PermissionError as error:
                pytest.skip(str(error))

        yield make


def given_of(drawn: Any) -> StudentSpec:
    """A student of all teachers."""
    spec = DistillationSpec("agre_kd", drawn.teachers, drawn.biased, 4.0)
    return StudentSpec("agre_kd", 3, STUDENT, TRAINING, spec)


def test_a_full_disk_while_recording_is_one_error_and_loses_nothing(
    make_job: Any, disk_of: Any
) -> None:
    disk = disk_of(1 << 20)
    job = make_job(**{"outputs.store": str(disk / "outputs")})
    data, checkpoints, drawn = pool_of(job)
    given = given_of(drawn)
    reference = taught(given, data, LocalTeachers(TeacherHost(checkpoints, data)))
    ballast = full(disk)

    def record() -> Any:
        host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
        return taught(given, data, LocalTeachers(host))

    with pytest.raises(RunError, match=r"cannot record.*No space left.*agrekd outputs prune"):
        record()
    ballast.unlink()
    torch.testing.assert_close(record(), reference, rtol=1e-3, atol=2e-5)
    assert records(job, data, checkpoints).missing([0]) == []


def test_a_full_disk_while_a_student_is_kept_loses_no_more_than_its_epoch(
    make_job: Any, disk_of: Any
) -> None:
    disk = disk_of(1 << 20)
    data, checkpoints, drawn = pool_of(make_job())
    given = given_of(drawn)

    def student() -> Student:
        return Student(given, data, LocalTeachers(TeacherHost(checkpoints, data)))

    first = student()
    first.epoch()
    first.save_state(disk / STATE)
    ballast = full(disk, leave=2000)
    first.epoch()
    with pytest.raises(RunError, match=r"cannot write the state.*Free the disk.*agrekd resume"):
        first.save_state(disk / STATE)
    with pytest.raises(AgrekdError, match=r"cannot write.*Free the disk"):
        save(disk / "model", first.model, read_manifest(checkpoints[drawn.biased]))
    ballast.unlink()
    assert [path.name for path in disk.iterdir()] == [STATE]  # nothing half-written is left
    again = student()
    assert again.load_state(disk / STATE)
    assert again.trainer.next_epoch == 1
    while not again.done:
        again.epoch()
    reference = taught(given, data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(flat_parameters(again.model), reference)


@contextmanager
def held(process: int) -> Iterator[None]:
    """Stopped, so that it hangs; goes on afterwards."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def warmed(session: Any, fleet: Any, asked: GradientRequest) -> list[str]:
    """The actors' nodes, once each has started and answered; patience runs for none of it."""
    for share, actors in fleet._hosts:
        session.get([actor.gradients.remote(share.teachers, asked) for actor in actors])
    return list(session.get([actor.node.remote() for actor in fleet.actors]))


def test_a_teacher_without_room_is_waited_for_beyond_all_patience(
    ray_session: Any, make_job: Any, add_node: Any, monkeypatch: Any
) -> None:
    """Somebody else's actor holds the only slot."""
    from agrekd_ray.fleet import fleet as module

    monkeypatch.setattr(module, "STALL_SECONDS", 1.0)
    add_node(num_cpus=1, resources={"slot": 1})
    job = make_job(fleet=in_slots(backbones_per_actor=8, patience=0.2))
    data, checkpoints, drawn = pool_of(job)

    class Other:
        pass

    other = ray_session.remote(Other).options(num_cpus=0, resources={"slot": 1}).remote()
    ray_session.get(other.__ray_ready__.remote())
    told: list[Any] = []

    def stalls() -> list[str]:
        texts = [note.text for note in told if isinstance(note, Notice)]
        return [text for text in texts if "has waited" in text and "waiting for room" in text]

    with fleet_of(job, checkpoints, told) as fleet:
        given = given_of(drawn)
        assert given.spec is not None
        ids = data.splits[TRAIN][:16]
        asked = GradientRequest(given.spec, 7, 0, ids, torch.zeros(16, 10).numpy())

        def end() -> None:
            while len(stalls()) < 3:  # each a second after the other
                time.sleep(0.05)  # polls for the moment
            fleet.close()

        threading.Thread(target=end, daemon=True).start()
        with pytest.raises(AgrekdError) as ended:  # by the end of the fleet, and by nothing else
            fleet.source().ask(asked)
    ray_session.kill(other)
    assert "no answer" not in str(ended.value)
    assert any("wait for room that others hold now" in note.text for note in told)


def test_a_teacher_that_hangs_is_named_and_in_the_end_given_up(
    ray_session: Any, make_job: Any, monkeypatch: Any
) -> None:
    from agrekd_ray.fleet import fleet as module

    monkeypatch.setattr(module, "STALL_SECONDS", 1.0)
    job = make_job(fleet={"cpus": 0.1, "patience": 15})
    data, checkpoints, drawn = pool_of(job)
    told: list[Any] = []
    with fleet_of(job, checkpoints, told) as fleet:
        given = given_of(drawn)
        assert given.spec is not None
        ids = data.splits[TRAIN][:16]
        asked = GradientRequest(given.spec, 7, 0, ids, torch.zeros(16, 10).numpy())
        silent = fleet.actors[0]
        node, *_ = warmed(ray_session, fleet, asked)
        fleet.source().ask(asked)
        told.clear()
        with held(ray_session.get(silent.process.remote())):
            other = GradientRequest(given.spec, 8, 0, data.splits[TRAIN][16:32], asked.logits_BC)
            with pytest.raises(
                RunError, match=r"no answer to step 8.*15 s.*fleet\.patience"
            ) as error:
                fleet.source().ask(other)
    assert node in str(error.value)
    stalls = [note.text for note in told if isinstance(note, Notice) and "has waited" in note.text]
    (names,) = [share.teachers for share, actors in fleet._hosts if actors[0] is silent]
    whom = f"teachers {', '.join(names)} (actor "
    named = [text for text in stalls if whom in text]
    assert named
    assert all(f" on node {node}), " in text.partition(whom)[2] for text in named)


def test_a_teacher_that_is_lost_may_be_dropped(ray_session: Any, make_job: Any) -> None:
    """The student is that of the others; without its biased model there is none."""
    changes = {"cpus": 0.1, "patience": 8, "on_teacher_loss": "drop"}
    job = make_job(**{"fleet": changes, "data.views": {"flip": True}})
    data, checkpoints, drawn = pool_of(job)
    lost = next(name for name in drawn.teachers if name.split("-")[1] not in drawn.biased)
    rest = tuple(name for name in drawn.teachers if name != lost)
    told: list[Any] = []
    with fleet_of(job, checkpoints, told) as fleet:
        of = {name: actor for share, (actor,) in fleet._hosts for name in share.teachers}
        given = given_of(drawn)
        assert given.spec is not None
        ids = data.splits[TRAIN][:16]
        warmed(
            ray_session, fleet, GradientRequest(given.spec, 7, 0, ids, torch.zeros(16, 10).numpy())
        )
        with held(ray_session.get(of[lost].process.remote())):
            student = Student(given, data, fleet.source())
            student.epoch()
            assert student.history[0].lost_steps == {lost: student.history[0].steps}
            while not student.done:
                student.epoch()
        with (
            held(ray_session.get(of[drawn.biased].process.remote())),
            pytest.raises(RunError, match=rf"{drawn.biased}.*no answer to step 0"),
        ):
            Student(given, data, fleet.source()).epoch()
    fewer = replace(given, spec=replace(given.spec, teachers=rest))
    reference = taught(fewer, data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(flat_parameters(student.model), reference, rtol=1e-3, atol=2e-5)
    (line,) = [note.text for note in told if isinstance(note, Notice) and note.text[:4] == "lost"]
    assert line.startswith(f"lost: {lost}; the others teach on from step 0 (")
    assert "no answer to step 0 of epoch 0 for 8 s" in line


@pytest.mark.chaos
def test_a_teacher_that_hangs_for_a_while_costs_time_and_nothing_else(
    ray_session: Any, make_job: Any
) -> None:
    job = make_job(**{"fleet": {"cpus": 0.1}, "data.views": {"flip": True}})
    data, checkpoints, drawn = pool_of(job)
    with fleet_of(job, checkpoints, []) as fleet:
        process = ray_session.get(fleet.actors[0].process.remote())

        def between(epoch: int) -> None:
            if epoch == 1:
                os.kill(process, signal.SIGSTOP)
                threading.Timer(3, os.kill, (process, signal.SIGCONT)).start()

        live = taught(given_of(drawn), data, fleet.source(), between)
    reference = taught(given_of(drawn), data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(live, reference, rtol=1e-3, atol=2e-5)


@pytest.mark.chaos
def test_thirty_two_teachers_on_four_raylets_survive_one_that_goes_and_one_that_comes(
    ray_session: Any, ray_cluster: Any, make_job: Any, add_node: Any
) -> None:
    job = make_job(
        **{
            "teachers.count": 32,
            "teachers.training.epochs": 1,
            "ensemble": {"size": 32, "debiased": 0},
            "fleet": in_slots(),
            "data.views": {"flip": True},
        }
    )
    data, checkpoints, drawn = pool_of(job)
    raylets = [add_node(num_cpus=1, resources={"slot": 11}) for _ in range(4)]
    with fleet_of(job, checkpoints, []) as fleet:
        where = set(ray_session.get([actor.node.remote() for actor in fleet.actors]))
        assert len(fleet.actors) == 32
        assert len(where) == 4

        def between(epoch: int) -> None:
            if epoch == 0:
                ray_cluster.remove_node(raylets[1], allow_graceful=False)
                add_node(num_cpus=1, resources={"slot": 11})

        live = taught(given_of(drawn), data, fleet.source(), between)
        after = set(ray_session.get([actor.node.remote() for actor in fleet.actors]))
        assert len(after - where) == 1
        assert len(where - after) == 1
    reference = taught(given_of(drawn), data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(live, reference, rtol=1e-3, atol=2e-5)
