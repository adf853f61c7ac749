"""Fleets on several raylets: placed, shared, in turns; nodes that vanish, nodes that join."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agrekd_ray.cluster.events import Notice
from agrekd_ray.cluster.placement import ResourceRequest
from agrekd_ray.data import Dataset
from agrekd_ray.distillation import DistillationSpec, LocalTeachers, TeacherHost
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.gpus import numbered
from agrekd_ray.models import Model, load
from agrekd_ray.settings import Training
from agrekd_ray.student import Student, StudentSpec

from .shared import flat_parameters, pool_of, records

STUDENT = Model(name="cnn", args={"width": 4})
TRAINING = Training(epochs=4, batch_size=32, learning_rate=0.05)
VIEWS = {"flip": True, "shift": 1, "count": 2}


def lesson_of(drawn: Any) -> StudentSpec:
    """A student of all teachers and the biased model."""
    return StudentSpec(
        "agre_kd",
        3,
        STUDENT,
        TRAINING,
        DistillationSpec("agre_kd", drawn.teachers, drawn.biased, 4.0),
    )


def taught(given: StudentSpec, data: Dataset, source: Any, between: Any = None) -> torch.Tensor:
    """Parameters of a student; `between` is called after each epoch, with its number."""
    student = Student(given, data, source, look_ahead=2)
    epoch = 0
    while not student.done:
        student.epoch()
        if between is not None:
            between(epoch)
        epoch += 1
    return flat_parameters(student.model)


@contextmanager
def fleet_of(job: Any, checkpoints: dict[str, Path], told: list[Any], **more: Any) -> Iterator[Any]:
    """A fleet, ended afterwards."""
    from agrekd_ray.fleet.fleet import Fleet

    fleet = Fleet(checkpoints, job.data, numbered(job).fleet, told.append, askers=1, **more)
    try:
        yield fleet
    finally:
        fleet.close()


def where(session: Any, fleet: Any) -> list[str]:
    """The node of every actor that is there."""
    return list(session.get([actor.node.remote() for actor in fleet.actors]))


def in_slots(**changes: Any) -> dict[str, Any]:
    """Settings of a fleet whose actors take a `slot` of their node each."""
    return {"cpus": 0.1, "resources": {"slot": 1}, **changes}


def test_teachers_leave_the_students_their_room(
    ray_session: Any, make_job: Any, add_node: Any
) -> None:
    """Spread over both nodes, they would leave it on neither."""
    for _ in range(2):
        add_node(num_cpus=1, resources={"slot": 1})
    settings = {"cpus": 0.1, "resources": {"slot": 0.3}}
    _, checkpoints, _ = pool_of(job := make_job(fleet=settings))
    student = ResourceRequest("student's worker", {"CPU": 0.1, "slot": 1}, kind="students' workers")
    with fleet_of(job, checkpoints, [], students=[student]) as fleet:
        assert len(fleet.actors) == 3
        (_,) = set(where(ray_session, fleet))
        worker = ray_session.remote(lambda: "room").options(num_cpus=0.1, resources={"slot": 1})
        assert ray_session.get(worker.remote(), timeout=60) == "room"


def test_replicas_on_two_nodes_teach_what_one_process_teaches(
    ray_session: Any, make_job: Any, add_node: Any
) -> None:
    add_node(num_cpus=1, resources={"slot": 1}, labels={"zone": "a"})
    add_node(num_cpus=1, resources={"slot": 1}, labels={"zone": "b"})
    settings = in_slots(backbones_per_actor=8, replicas=2, labels={"zone": "in(a,b)"})
    job = make_job(**{"data.views": {"flip": True}, "fleet": settings})
    data, checkpoints, drawn = pool_of(job)
    told: list[Any] = []
    with fleet_of(job, checkpoints, told) as fleet:
        assert len(set(where(ray_session, fleet))) == 2
        live = taught(lesson_of(drawn), data, fleet.source())
        both = ray_session.get([actor.effort.remote() for actor in fleet.actors])
    reference = taught(lesson_of(drawn), data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(live, reference, rtol=1e-3, atol=2e-5)
    shares = [effort.forwards for effort in both]
    assert min(shares) > 0.3 * max(shares)  # they share the work
    (line,) = [note.text for note in told if isinstance(note, Notice)]
    assert line.startswith("teachers' actors: 2 × (0.1 CPU, 1 slot on zone=in(a,b)) on ")


def test_replicas_record_a_view_in_parts(ray_session: Any, make_job: Any, add_node: Any) -> None:
    add_node(num_cpus=1, resources={"slot": 2})
    settings = in_slots(backbones_per_actor=8, replicas=2)
    job = make_job(**{"data.views": VIEWS, "fleet": settings})
    data, checkpoints, _ = pool_of(job)
    done: list[float] = []
    with fleet_of(job, checkpoints, [], outputs=job.outputs) as fleet:
        where(ray_session, fleet)  # both are there
        fleet.record(1, len(data.splits["train"]), done.append)
        each = ray_session.get([actor.effort.remote() for actor in fleet.actors])
    assert sum(done) == pytest.approx(len(data.splits["train"]))
    assert min(effort.forwards for effort in each) > 0
    outputs = records(job, data, checkpoints)
    assert outputs.missing([1]) == []
    ids = data.splits["train"]
    for name, folder in checkpoints.items():
        record = outputs.read(name, 1)
        assert record is not None
        with torch.inference_mode():
            reference = load(folder)[0].eval()(data.inputs(ids, 1))
        torch.testing.assert_close(torch.from_numpy(record.copy()), reference, rtol=1e-4, atol=1e-4)


def test_teachers_without_room_take_turns_to_be_recorded(
    ray_session: Any, make_job: Any, add_node: Any
) -> None:
    from agrekd_ray.experiment.teacher_provider import TeacherProvider

    add_node(num_cpus=1, resources={"slot": 1})
    job = make_job(**{"data.views": VIEWS, "fleet": in_slots()})
    data, checkpoints, drawn = pool_of(job)
    told: list[Any] = []
    with TeacherProvider(job, checkpoints, data, [0, 1], told.append) as teaching:
        source = teaching.source()
        assert source is not None
        replay = taught(lesson_of(drawn), data, source(data))
    assert teaching.effort.actors == 3  # backbones, one after the other
    assert any("take turns" in note.text for note in told if isinstance(note, Notice))
    assert records(job, data, checkpoints).missing([0, 1]) == []
    reference = taught(lesson_of(drawn), data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(replay, reference, rtol=1e-3, atol=2e-5)


def test_a_fleet_without_room_is_refused_with_numbers(
    ray_session: Any, make_job: Any, add_node: Any
) -> None:
    add_node(num_cpus=1, resources={"slot": 2})
    job = make_job(fleet=in_slots())
    _, checkpoints, _ = pool_of(job)
    with (
        pytest.raises(RunError, match=r"1 of 3 processes find no room.*2 slot.*agrekd record"),
        fleet_of(job, checkpoints, []),
    ):
        pass


@pytest.mark.parametrize("graceful", [False, pytest.param(True, marks=pytest.mark.chaos)])
def test_a_node_that_vanishes_and_one_that_joins_change_nothing_but_the_time(
    ray_session: Any, ray_cluster: Any, make_job: Any, add_node: Any, graceful: bool
) -> None:
    lost = add_node(num_cpus=1, resources={"slot": 3})
    job = make_job(**{"data.views": {"flip": True}, "fleet": in_slots()})
    data, checkpoints, drawn = pool_of(job)
    with fleet_of(job, checkpoints, []) as fleet:
        before = set(where(ray_session, fleet))

        def between(epoch: int) -> None:
            if epoch == 1:
                ray_cluster.remove_node(lost, allow_graceful=graceful)
                add_node(num_cpus=1, resources={"slot": 3})

        live = taught(lesson_of(drawn), data, fleet.source(), between)
        assert not before & set(where(ray_session, fleet))
    reference = taught(lesson_of(drawn), data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(live, reference, rtol=1e-3, atol=2e-5)


@pytest.mark.chaos
def test_a_replica_on_a_new_node_joins_and_one_on_a_lost_node_is_not_missed(
    ray_session: Any, ray_cluster: Any, make_job: Any, add_node: Any
) -> None:
    lost = add_node(num_cpus=1, resources={"slot": 1})
    settings = in_slots(backbones_per_actor=8, replicas=2)
    job = make_job(**{"data.views": {"flip": True}, "fleet": settings})
    data, checkpoints, drawn = pool_of(job)
    given = replace(lesson_of(drawn), training=TRAINING.model_copy(update={"epochs": 12}))
    with fleet_of(job, checkpoints, []) as fleet:
        first = [actor.node.remote() for actor in fleet.actors]
        placed, _ = ray_session.wait(first, num_returns=1)  # there is room for one of them
        joined = [a for a, told in zip(fleet.actors, first, strict=True) if told not in placed]

        def between(epoch: int) -> None:
            if epoch == 2:
                add_node(num_cpus=1, resources={"slot": 1})
                ray_session.get([actor.node.remote() for actor in joined])
            if epoch == 6:
                ray_cluster.remove_node(lost, allow_graceful=False)

        live = taught(given, data, fleet.source(), between)
        (newcomer,) = joined
        assert ray_session.get(newcomer.effort.remote()).forwards > 0
    reference = taught(given, data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(live, reference, rtol=1e-3, atol=2e-5)
