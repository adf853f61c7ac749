"""Recording and replay on a cluster: fleets, tasks, nodes without a common folder."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from agrekd_ray.cluster.events import Notice, StudentEpoch, TeacherCostSoFar
from agrekd_ray.cluster.nodes import DriverData
from agrekd_ray.distillation import (
    CachedTeachers,
    LocalTeachers,
    Replay,
    TeacherHost,
)
from agrekd_ray.errors import RunError
from agrekd_ray.files import Identity
from agrekd_ray.fleet import lending
from agrekd_ray.fleet.logits_server import LogitsServer
from agrekd_ray.logits import LogitsCache, OutputSettings, cache, listed
from agrekd_ray.models import load
from agrekd_ray.settings import Training
from agrekd_ray.student import Student

from .shared import flat_parameters, pool_of, records
from .test_replay import STUDENT, VIEWS, specs, trained


@pytest.mark.parametrize("part", [lending.PART, 100])
def test_packed_records_are_lent(
    ray_session: Any, make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """Whole or in many parts, to a node whose own disk has none or a damaged one."""
    monkeypatch.setattr(lending, "PART", part)
    job = make_job(**{"outputs.dtype": "int8", "outputs.top_k": 2})
    data, checkpoints, _ = pool_of(job)
    own = records(job, data, checkpoints)
    TeacherHost(checkpoints, data, outputs=own).complete(0)
    numbers = job.fleet.computes_in
    server = LogitsServer.start(job.outputs, checkpoints, DriverData.of(job.data), numbers)
    try:
        elsewhere = job.outputs.model_copy(update={"store": tmp_path / "elsewhere"})
        lent = server(elsewhere, checkpoints, data, numbers)
        first, *_ = checkpoints
        lent.path(first, 0).parent.mkdir(parents=True)
        lent.path(first, 0).write_bytes(own.path(first, 0).read_bytes()[:-1])
        assert lent.read(first, 1) is None  # which nobody has
        for name in checkpoints:
            theirs, ours = lent.read(name, 0), own.read(name, 0)
            assert ours is not None
            assert theirs is not None
            np.testing.assert_array_equal(theirs[:], ours[:])
            assert lent.path(name, 0).read_bytes() == own.path(name, 0).read_bytes()
        ray_session.kill(server.actor, no_restart=False)
        lent.path(first, 0).unlink()
        assert server(elsewhere, checkpoints, data, numbers).read(first, 0) is not None
        assert len(listed(tmp_path / "elsewhere")) == len(checkpoints)
        assert not list((tmp_path / "elsewhere").rglob(".*"))
    finally:
        server.close()


def test_a_record_without_room_on_the_borrowers_disk_is_named(
    ray_session: Any, make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    data, checkpoints, _ = pool_of(job)
    TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints)).complete(0)
    numbers = job.fleet.computes_in
    server = LogitsServer.start(job.outputs, checkpoints, DriverData.of(job.data), numbers)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(cache, "bring", Mock(side_effect=full))
    elsewhere = job.outputs.model_copy(update={"store": tmp_path / "elsewhere"})
    try:
        with pytest.raises(RunError, match="No space left"):
            server(elsewhere, checkpoints, data, job.fleet.computes_in).read(
                next(iter(checkpoints)), 0
            )
    finally:
        server.close()


@pytest.mark.chaos
def test_a_teacher_killed_while_it_records_costs_nothing_but_time(
    ray_session: Any, make_job: Any
) -> None:
    """SIGKILL in mid-recording: the restarted actor goes on with the record; replay agrees."""
    from agrekd_ray.cluster.fleet_settings import FleetSettings
    from agrekd_ray.fleet.fleet import Fleet

    job = make_job(**{"data.views": {**VIEWS, "count": 3}})
    data, checkpoints, drawn = pool_of(job)
    given = replace(
        specs(drawn)[-1], training=Training(epochs=4, batch_size=48, learning_rate=0.05)
    )
    settings = FleetSettings(cpus=0.5, gpus=0, backbones_per_actor=2)
    fleet = Fleet(checkpoints, job.data, settings, lambda event: None, outputs=job.outputs)
    try:
        first = ray_session.get(fleet.actors[0].process.remote())
        source = CachedTeachers(records(job, data, checkpoints), data, fleet.source())
        student = Student(given, data, source, look_ahead=2)
        killer = threading.Timer(0.03, os.kill, (first, signal.SIGKILL))
        killer.start()
        while not student.done:
            student.epoch()
        killer.join()
        assert ray_session.get(fleet.actors[0].process.remote()) != first
    finally:
        fleet.close()
    live = flat_parameters(student.model)
    reference = trained(given, data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(live, reference, rtol=1e-3, atol=2e-5)
    assert records(job, data, checkpoints).missing(range(3)) == []
    replay = CachedTeachers(records(job, data, checkpoints), data, None)
    torch.testing.assert_close(trained(given, data, replay), live, rtol=1e-3, atol=2e-5)


@pytest.mark.chaos
def test_a_released_fleet_is_not_missed(
    ray_session: Any, make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, every strategy, augmented: recorded as they train, replayed without an actor."""
    from agrekd_ray.cluster.channel import Channel
    from agrekd_ray.experiment import teacher_provider
    from agrekd_ray.experiment.listener import Listener
    from agrekd_ray.experiment.teacher_provider import TeacherProvider
    from agrekd_ray.student import StudentSettings
    from agrekd_ray.student.group import TrainConfig, train_group

    monkeypatch.setattr(teacher_provider, "FEW", 0)
    workers = {"student.workers": 2, "student.cpus": 0.5, "fleet.cpus": 0.5}
    job = make_job(**workers, **{"data.views": VIEWS})
    data, checkpoints, drawn = pool_of(job)
    given = tuple(specs(drawn))
    channel = Channel()
    told: list[Any] = []
    with TeacherProvider(job, checkpoints, data, [0, 1], channel.emit) as teaching:
        source, shown = teaching.source(), DriverData.of(job.data)
        work = TrainConfig(given, shown, source, tmp_path / "s", tmp_path, channel.emit, 2)
        workers = StudentSettings(
            model=STUDENT, training=given[0].training, workers=2, cpus=0.5, gpus=0
        )
        with Listener(channel, [teaching.watch]):
            train_group(work, workers)
        assert teaching._fleet is None  # released while the students were trained
        assert teaching.effort.forwards > 0
    channel.close()
    for spec in given:
        reference = trained(spec, data, LocalTeachers(TeacherHost(checkpoints, data)))
        worked = flat_parameters(load(tmp_path / "s" / spec.name)[0])
        torch.testing.assert_close(worked, reference, rtol=1e-3, atol=2e-5)
    with TeacherProvider(job, checkpoints, data, [0, 1], told.append) as again:
        assert again.source() is not None
        assert again._fleet is None
    assert again.effort.actors == 0


@pytest.mark.parametrize(
    ("changes", "few"),
    [
        ({}, True),
        ({"fleet.backbones_per_actor": 3, "fleet.concurrent": 2}, True),
        ({"fleet.weighting_actors": 2}, False),
        ({"fleet.replicas": 2}, False),
        ({"fleet.on_teacher_loss": "drop"}, False),
        ({"fleet.teachers": {"erm-*": {"gpus": 0}}}, False),
        ({"guidance": "live"}, False),
    ],
)
def test_few_records_are_made_without_a_fleet(
    ray_session: Any, make_job: Any, changes: dict[str, Any], few: bool
) -> None:
    """In one task; where a fleet does what a task cannot, or there is much to do, by a fleet."""
    from agrekd_ray.experiment.teacher_provider import TeacherProvider

    job = make_job(**{"data.views": VIEWS, "fleet.cpus": 0.1}, **changes)
    data, checkpoints, drawn = pool_of(job)
    told: list[Any] = []
    with TeacherProvider(job, checkpoints, data, [0, 1], told.append) as teaching:
        source = teaching.source()
        assert source is not None
        assert teaching.hosts is not few
        assert bool(records(job, data, checkpoints).missing([0, 1])) is not few
        if not few:
            return
        given = next(iter(specs(drawn)))
        worked = trained(given, data, source(data))
    reference = trained(given, data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(worked, reference, rtol=1e-3, atol=2e-5)
    host = TeacherHost(checkpoints, data)
    assert teaching.effort.forwards >= 2 * host.backbones
    assert teaching.effort.recorded > 0
    assert [e for e in told if isinstance(e, TeacherCostSoFar)][-1].effort == teaching.effort
    assert any("recorded; no actor is started" in e.text for e in told if isinstance(e, Notice))


def test_few_records_without_room_are_an_error_with_numbers(
    ray_session: Any, make_job: Any
) -> None:
    """And no task that waits for ever."""
    from agrekd_ray.experiment.teacher_provider import TeacherProvider

    job = make_job(**{"fleet.cpus": 1000})
    data, checkpoints, _ = pool_of(job)
    with (
        TeacherProvider(job, checkpoints, data, [0], lambda event: None) as teaching,
        pytest.raises(RunError, match=r"1,?000"),
    ):
        teaching.source()


def test_much_to_record_is_a_fleets_matter(
    ray_session: Any, make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agrekd_ray.experiment import teacher_provider

    job = make_job(**{"data.views": VIEWS, "fleet.cpus": 0.1})
    data, checkpoints, _ = pool_of(job)
    shown = len(checkpoints) * 2 * len(data.splits["train"]) * int(np.prod(data.shape))
    for few, hosts in ((shown, False), (shown - 1, True)):
        monkeypatch.setattr(teacher_provider, "FEW", few)
        again = job.model_copy(
            update={"outputs": job.outputs.model_copy(update={"store": job.runs / str(few)})}
        )
        with teacher_provider.TeacherProvider(
            again, checkpoints, data, [0, 1], lambda event: None
        ) as teaching:
            teaching.source()
            assert teaching.hosts is hosts


def test_without_a_shared_folder_records_go_from_disk_to_disk(
    ray_session: Any, make_job: Any, add_node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's node, the teachers' and the student's have a disk each; the keeper is killed.

    Of the first view nobody answers in time; it is fetched with the second one.
    """
    from agrekd_ray.experiment import teacher_provider as module
    from agrekd_ray.fleet import fleet

    add_node(num_cpus=1)
    theirs, students = (OutputSettings(store=tmp_path / name) for name in ("theirs", "students"))
    fetched: list[int] = []

    class FleetWithADiskOfItsOwn(fleet.Fleet):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **{**more, "outputs": theirs})

    def late(outputs: LogitsCache, lenders: Any, name: str, view: int, seen: Identity) -> bool:
        fetched.append(view)
        if fetched.count(0) <= len(checkpoints):
            return False
        return lending.borrow(outputs, lenders, name, view, seen)

    monkeypatch.setattr(module, "Fleet", FleetWithADiskOfItsOwn)
    monkeypatch.setattr(module, "FETCH_SECONDS", 600)
    monkeypatch.setattr(module, "borrow", late)
    job = make_job(**{"data.views": VIEWS, "fleet.cpus": 0.1})
    data, checkpoints, drawn = pool_of(job)
    given = specs(drawn)[0]
    given = replace(given, training=given.training.model_copy(update={"epochs": 4}))
    with module.TeacherProvider(job, checkpoints, data, [0, 1], lambda event: None) as teaching:
        replay = teaching.source()
        assert isinstance(replay, Replay)
        student = Student(given, data, replace(replay, settings=students)(data), look_ahead=2)
        while not student.done:
            epoch = student.epoch()
            assert epoch is not None
            teaching.watch(StudentEpoch(given.name, 4, epoch))
            if epoch.epoch == 2:
                assert teaching._fleet is None
                ray_session.kill(teaching._logits_server.actor, no_restart=False)
    replayed = [epoch.replayed_steps / epoch.steps for epoch in student.history]
    M = len(checkpoints)
    assert (replayed, sorted(fetched)) == ([0, 0, 1, 1], [0] * 2 * M + [1] * M)
    assert records(job, data, checkpoints).missing([0, 1]) == []
    brought = [path.name for path in students.store.rglob("*.arrow")]
    assert given.spec is not None
    assert Counter(brought) == {f"view-{view:05}.arrow": len(given.spec.members) for view in (0, 1)}
    reference = trained(given, data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(flat_parameters(student.model), reference, rtol=1e-3, atol=2e-5)
