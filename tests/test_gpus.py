"""Which GPUs a job has that leaves them open: placements alone, without Ray and without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from agrekd_ray.capacity.placing import Machines
from agrekd_ray.capacity.placing import with_gpus as gpus_of_a_plan
from agrekd_ray.capacity.size import size_of
from agrekd_ray.cluster.placement import Node, ResourceRequest, place, shares_on
from agrekd_ray.config import Job, JobError, check_job, load_job
from agrekd_ray.data import Dataset, open_dataset
from agrekd_ray.experiment import gpus as module
from agrekd_ray.experiment import settled as preparation
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.gpus import (
    LARGE,
    SMALL,
    groups_at_once,
    most_of,
    most_on_a_gpu,
    numbered,
    open_to,
    share_of_task,
    training_of_a_teacher,
    what_stays_idle,
    with_gpus,
    with_share,
    worker_shares,
    workers_of,
)
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.models import Model

from .conftest import TINY, merged
from .shared import pool_of

TASK = ResourceRequest("the training of a teacher", {"CPU": 1})
BIG = Model(name="torchvision/resnet50")
"""In place of the job's own student: its size alone counts."""


def node(
    name: str = "a", gpus: float = 0, cpus: float = 64, free: float | None = None, **more: Any
):  # type: ignore[no-untyped-def]
    """A node, of whose GPUs so many are free; further resources, and labels."""
    labels = more.pop("labels", {})
    total = {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **more}
    left = {**total, **({"GPU": gpus if free is None else free} if gpus else {})}
    return Node(name, total, left, labels)


@pytest.fixture
def teachers(make_job: Callable[..., Job]) -> tuple[Dataset, dict[str, Path]]:
    """Three teachers and the biased model, all small; three backbones."""
    data, checkpoints, _ = pool_of(make_job())
    return data, checkpoints


def both(job: Job) -> tuple[Any, Any]:
    """Numbers of student and fleet."""
    return job.student.gpus, job.fleet.gpus


def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """All models count as large."""
    monkeypatch.setattr(module, "FEW_WEIGHTS", 0)


# --- what a job says


def test_auto_is_what_is_not_said_and_what_older_files_say_with_null(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    keys = ("student.gpus", "teachers.gpus", "fleet.gpus")
    for job in (
        make_job(),
        make_job(**dict.fromkeys(keys)),
        make_job(**dict.fromkeys(keys, "auto")),
    ):
        assert {job.student.gpus, job.teachers.gpus, job.fleet.gpus} == {"auto"}
    (tmp_path / "runs").mkdir()
    earlier = make_job(**dict.fromkeys(keys, 0))
    folder = RunFolder.create(earlier)
    assert RunFolder.open(folder.path).job == earlier  # as it was left: without GPUs
    raw = yaml.safe_load((folder.path / "job.yaml").read_text())
    raw["student"]["gpus"] = None
    (folder.path / "job.yaml").write_text(yaml.safe_dump(raw))
    assert RunFolder.open(folder.path).job.student.gpus == "auto"


def test_null_of_some_teachers_is_the_fleets(make_job: Callable[..., Job]) -> None:
    places = {"erm-*": {"gpus": None}, "dfr-*": {"gpus": "auto"}}
    fleet = make_job(**{"fleet.gpus": 0.25, "fleet.teachers": places}).fleet
    assert fleet.of("erm-0").gpus == 0.25
    assert fleet.of("dfr-0").gpus == "auto"


@pytest.mark.parametrize("key", ["student.gpus", "teachers.gpus", "fleet.gpus"])
@pytest.mark.parametrize("value", [1.5, 2, -1, "some", True, float("nan")])
def test_a_process_has_one_gpu_at_most(key: str, value: Any) -> None:
    job, (fault,) = check_job(merged(TINY, {key: value}))
    assert job is None
    assert fault.key == key
    assert "must be auto, or a share of a GPU, 0 to 1: a process uses one GPU" in str(fault)


def test_so_has_a_teacher_with_a_place_of_its_own() -> None:
    _, (fault,) = check_job(merged(TINY, {"fleet.teachers": {"erm-*": {"gpus": 2}}}))
    assert fault.key == "fleet.teachers.erm-*.gpus"


@pytest.mark.parametrize(("gpus", "sound"), [(0.5, False), (1, True), (0, True), ("auto", True)])
def test_workers_of_a_student_share_no_gpu(gpus: Any, sound: bool) -> None:
    job, faults = check_job(merged(TINY, {"student.workers": 2, "student.gpus": gpus}))
    if sound:
        assert job is not None
    else:
        (fault,) = faults
        assert (fault.key, fault.value) == ("student.gpus", "0.5")
        assert "NCCL cannot share one" in fault.problem


# --- a job on machines with GPUs and without


@pytest.mark.parametrize("guidance", ["auto", "live"])
def test_nothing_but_its_gpus_changes_of_a_job(
    teachers: Any, make_job: Callable[..., Job], guidance: str
) -> None:
    data, checkpoints = teachers
    job = make_job(guidance=guidance, **{"fleet.teachers": {"dfr-*": {"resources": {"slot": 1}}}})
    here = [node(gpus=1, slot=4)]
    models = [job.student.model]
    with_one = with_gpus(job, here, data, models=models, checkpoints=checkpoints)
    without = with_gpus(job, [node(slot=4)], data, models=models, checkpoints=checkpoints)
    assert with_one.student.gpus > 0
    assert with_one.fleet.gpus > 0
    without_gpus = {"student": {"gpus"}, "fleet": {"gpus": True, "teachers": {"dfr-*": {"gpus"}}}}
    for given in (with_one, without):
        assert given.model_dump(exclude=without_gpus) == job.model_dump(exclude=without_gpus)
    assert both(numbered(job)) == both(without) == (0, 0)


@pytest.mark.parametrize(("cpus", "gpus"), [(2, 1), (3, 2), (64, 1), (64, 8), (64, 0)])
@pytest.mark.parametrize("guidance", ["auto", "live"])
def test_a_plan_shares_gpus_as_a_run_does(
    teachers: Any, make_job: Callable[..., Job], guidance: str, cpus: int, gpus: int
) -> None:
    data, checkpoints = teachers
    job = make_job(guidance=guidance)
    size, groups = gpus_of_a_plan(
        size_of(job, make_plan(job), data), Machines(cpus=cpus, gpus=gpus)
    )
    here, models = [node(gpus=gpus, cpus=cpus)], [job.student.model]
    students = len(size.strategies) + size.plain
    assert groups == groups_at_once(job, here, data, models=models, most=students)
    run = with_gpus(job, here, data, models=models, groups=groups, checkpoints=checkpoints)
    assert (size.student_gpus, size.actor_gpus) == both(run)


# --- students and the teachers beside them

LIVE, PAIR = {"guidance": "live"}, {"student.workers": 2}


@pytest.mark.parametrize(
    ("gpus", "groups", "hosted", "changes", "numbers"),
    [
        ([1], 1, True, {}, (0.5, 0.1666)),
        ([1], 1, True, LIVE, (0.5, 0.1666)),
        ([1], 1, False, {}, (1, 0)),  # teachers that are recorded need none
        ([2], 1, True, {}, (1, 0.3333)),
        ([3], 1, True, {}, (1, 0.5)),
        ([4], 1, True, {}, (1, 1)),
        ([8], 1, True, {}, (1, 1)),
        ([1], 4, False, {}, (0.25, 0)),
        ([4], 4, False, {}, (1, 0)),
        ([1], 2, True, {}, (0.3333, 0.1111)),
        ([4], 4, True, {}, (0.5, 0.5)),
        ([2, 4], 1, True, {"student.workers": 4}, (1, 0.5)),
        ([2, 2], 1, False, {"student.workers": 4}, (1, 0)),
        ([3], 1, True, {"student.workers": 4}, (0, 1)),
        ([2], 1, True, PAIR, (1, 0.5)),  # three teachers on two GPUs, then two workers
        ([2], 1, True, {**PAIR, **LIVE}, (1, 0)),
        ([0], 1, True, PAIR, (0, 0)),
        ([0], 1, True, {**PAIR, **LIVE}, (0, 0)),
        ([8], 1, True, {"student.gpus": 0.25, "fleet.gpus": 0}, (0.25, 0)),  # as the job says
        ([1], 1, True, {"student.gpus": 0.5}, (0.5, 0.1666)),
    ],
)
def test_student_and_teachers_share_the_gpus(
    teachers: Any,
    make_job: Callable[..., Job],
    gpus: list[int],
    groups: int,
    hosted: bool,
    changes: dict[str, Any],
    numbers: tuple[float, float],
) -> None:
    data, checkpoints = teachers
    nodes = [node(str(number), count) for number, count in enumerate(gpus)]
    hosting = checkpoints if hosted else None
    job = make_job(**changes)
    given = with_gpus(job, nodes, data, models=[BIG], groups=groups, checkpoints=hosting)
    assert both(given) == numbers


@pytest.mark.parametrize(
    ("gpus", "changes", "line"),
    [
        (
            3,
            {"student.workers": 4},
            "students train on CPUs: student.workers = 4 need a GPU each, and 3 can be had; with "
            "student.workers=3 they would be used",
        ),
        (
            2,
            {**PAIR, **LIVE},
            "teachers answer on CPUs: the students have all GPUs that they could have; fewer "
            "student.workers leave them some",
        ),
        (0, PAIR, ""),
    ],
)
def test_who_is_left_without_a_gpu_is_said(
    teachers: Any, make_job: Callable[..., Job], gpus: int, changes: dict[str, Any], line: str
) -> None:
    data, checkpoints = teachers
    job, nodes = make_job(**changes), [node(gpus=gpus)]
    given = with_gpus(job, nodes, data, models=[BIG], checkpoints=checkpoints)
    busy = workers_of(given.student)
    assert what_stays_idle(job, given, nodes, busy, "student", "fleet") == line


def test_workers_of_a_teacher_have_a_gpu_each_or_none(make_job: Callable[..., Job]) -> None:
    job = make_job(**{"teachers.workers": 2})
    workers = training_of_a_teacher(job)
    for count, share in ((2, 1.0), (1, 0.0)):
        nodes = [node(gpus=count)]
        assert worker_shares(workers, job.teachers.gpus, nodes, lambda: 1) == [share]
        busy = [with_share(worker, share) for worker in workers]
        said = what_stays_idle(job, numbered(job), nodes, busy, "teachers")
        expected = (
            "teachers train on CPUs: teachers.workers = 2 need a GPU each, and 1 can be had; with "
            "teachers.workers=1 they would be used"
        )
        assert said == ("" if share else expected)


def test_teachers_that_have_no_gpu_left_record_before_the_students(
    teachers: Any, make_job: Callable[..., Job]
) -> None:
    data, checkpoints = teachers
    nodes = [node(gpus=2)]
    job = make_job(**{"student.workers": 2})
    given = with_gpus(job, nodes, data, models=[BIG], checkpoints=checkpoints)
    shares = [share.wanted for share in shares_on(nodes, checkpoints, given.fleet, ())]
    assert not place(shares, nodes).without_room
    assert place([*workers_of(given.student), *shares], nodes).without_room


def many(checkpoints: dict[str, Path], count: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """So many teachers, each with a backbone of its own."""
    from agrekd_ray.cluster import placement

    (folder, *_) = checkpoints.values()
    read = placement.read_manifest
    monkeypatch.setattr(
        placement,
        "read_manifest",
        lambda path: replace(read(folder), backbone=str(path)),
    )
    monkeypatch.setattr(module, "most_of_finished", lambda folders: LARGE)
    return {f"own-{number}": Path(f"own-{number}") for number in range(count)}


def test_fifty_large_teachers(
    teachers: Any, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On eight GPUs beside the student; on one in turns, before it; live, all on it."""
    data, checkpoints = teachers
    fifty = many(checkpoints, 50, monkeypatch)

    def given(gpus: int, **changes: Any) -> tuple[Any, Any]:
        nodes = [node(gpus=gpus)]
        return both(with_gpus(make_job(**changes), nodes, data, models=[BIG], checkpoints=fifty))

    assert given(8) == (1, 0.125)
    assert given(1) == (1, 0.125)
    student, teacher = given(1, guidance="live")
    assert 0 < student + 50 * teacher <= 1
    assert teacher > 0.01


def test_gpus_on_some_nodes_alone(teachers: Any, make_job: Callable[..., Job]) -> None:
    data, checkpoints = teachers
    nodes = [node("a", cpus=4), node("b", 1, cpus=4), node("c", cpus=64)]
    given = with_gpus(make_job(), nodes, data, models=[BIG], checkpoints=checkpoints)
    shares = shares_on(nodes, checkpoints, given.fleet, workers_of(given.student))
    plan = place([*workers_of(given.student), *(share.wanted for share in shares)], nodes)
    assert {process.node for process in plan.placed} == {"b"}


def test_labels_and_resources_decide_which_gpus_are_open(
    teachers: Any, make_job: Callable[..., Job]
) -> None:
    data, checkpoints = teachers
    nodes = [node("a", 4, labels={"zone": "a"}), node("b", labels={"zone": "b"}, slot=1)]

    def given(**changes: Any) -> tuple[Job, Job]:
        job = make_job(**changes)
        return job, with_gpus(job, nodes, data, models=[BIG], checkpoints=checkpoints)

    for changes, kept in (
        ({"student.labels": {"zone": "b"}}, "student.labels"),
        ({"student.resources": {"slot": 1}}, "student.resources"),
    ):
        job, found = given(**changes)
        assert both(found) == (0, 1)
        line = what_stays_idle(job, found, nodes, workers_of(found.student), "student")
        assert line == f"4 of 4 GPUs stay idle: {kept} keeps away from them"
    _, found = given(**{"fleet.labels": {"zone": "b"}})
    assert both(found) == (1, 0)
    _, found = given(**{"fleet.teachers": {"dfr-*": {"labels": {"zone": "b"}}}})
    assert both(found) == (1, 1)
    assert found.fleet.of("dfr-0").gpus == 0


# --- processes that may take turns


def test_small_models_share_gpus_and_large_ones_do_not() -> None:
    def share(count: int, *nodes: Node, most: int = SMALL) -> float:
        return share_of_task(TASK, "auto", count, nodes, lambda: most)

    one = node(gpus=1)
    assert share(1, one) == 1
    assert share(5, one) == 0.2
    assert share(50, one) == 1 / 16
    assert share(5, node(gpus=8)) == 1
    assert share(50, node(gpus=8)) == pytest.approx(1 / 7, abs=1e-3)
    assert share(50, node(gpus=1, cpus=2)) == 0.5  # two at once
    assert {share(count, one, most=LARGE) for count in (1, 5, 50)} == {1}
    assert share(5, node("a", cpus=0, gpus=2), node("b")) == 0  # no CPU beside the GPUs
    assert share_of_task(TASK, 0, 5, [one], lambda: SMALL) == 0
    assert share_of_task(TASK, "auto", 5, [node()], lambda: pytest.fail("looked at models")) == 0
    assert share_of_task(TASK, 0.3, 5, [one], lambda: SMALL) == 0.3
    assert with_share(TASK, 0.5).resources == {"CPU": 1, "GPU": 0.5}


def test_how_many_students_find_room_side_by_side(make_job: Callable[..., Job]) -> None:
    job = make_job()
    data = open_dataset(job.data)

    def groups(*nodes: Node, job: Job = job, model: Model = job.student.model, **more: Any) -> int:
        return groups_at_once(job, nodes, data, models=[model], **{"most": 100, **more})

    assert groups(node(cpus=4)) == 4
    assert groups(node(cpus=64, gpus=1)) == 16
    assert groups(node(cpus=4, gpus=1)) == 4
    assert groups(node(cpus=64, gpus=4), model=BIG) == 4
    assert groups(node(cpus=64, gpus=1), model=BIG, crowded=True) == 8
    assert groups(node(cpus=64, gpus=4), most=3) == 3
    assert groups(node(cpus=64, gpus=4, free=2), model=BIG) == 2  # others have two
    pairs = make_job(**{"student.workers": 2})
    assert groups(node(cpus=64, gpus=5), job=pairs) == 2
    assert groups(node(cpus=64, gpus=1), job=pairs) == 32
    assert groups(node(cpus=64, gpus=2), job=make_job(**{"student.gpus": 0.5})) == 4


def test_models_are_small_by_weights_and_samples(make_job: Callable[..., Job]) -> None:
    assert most_on_a_gpu(1_000_000, (3, 32, 32)) == SMALL
    assert most_on_a_gpu(1_000_000, (3, 224, 224)) == LARGE
    assert most_on_a_gpu(11_000_000, (3, 32, 32)) == LARGE
    job = make_job()
    data = open_dataset(job.data)
    assert most_of([job.student.model], data) == SMALL
    assert most_of([job.student.model, BIG], data) == LARGE


# --- a cluster that others use, too


def test_gpus_that_others_hold_are_left_to_them(
    teachers: Any, make_job: Callable[..., Job]
) -> None:
    data, checkpoints = teachers
    shared = [node("a", 4, free=0), node("b", 4, free=1)]
    given = with_gpus(make_job(), shared, data, models=[BIG], checkpoints=checkpoints)
    assert both(given) == (0.5, 0.1666)
    held = [node("a", 4, free=0), node("b", 4, free=0)]
    given = with_gpus(make_job(), held, data, models=[BIG], checkpoints=checkpoints)
    assert both(given) == (1, 1)  # it has to wait in any case
    assert open_to(held) == held
    (part,) = open_to([node(gpus=1, free=0.4)])
    assert part.total["GPU"] == 0.4


# --- what records are of


@pytest.mark.parametrize(
    ("count", "changes", "numbers"),
    [
        (0, {}, "float32"),
        (1, {}, "bfloat16"),
        (1, {"fleet.gpus": 0}, "float32"),
        (1, {"fleet.teachers": {"dfr-*": {"gpus": 0}}}, "float32"),
        (1, {"fleet.precision": "float32"}, "float32"),
        (0, {"fleet.gpus": 0.5}, "bfloat16"),
    ],
)
def test_what_teachers_compute_in_is_known_before_anything_starts(
    make_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    changes: dict[str, Any],
    numbers: str,
) -> None:
    monkeypatch.setattr(preparation, "_nodes", lambda address: [node(gpus=count)])
    job = make_job(**changes)
    assert preparation.settled(job).fleet.computes_in == numbers
    alike = {"fleet": {"precision"}}
    assert preparation.settled(job).model_dump(exclude=alike) == job.model_dump(exclude=alike)
    local = make_job(guidance="local", **changes)
    assert preparation.settled(local) is local


# --- what stays idle


def test_idle_gpus_are_said_with_the_key_that_would_use_them(
    make_job: Callable[..., Job],
) -> None:
    nodes = [node("a", 2), node("b", 2)]

    def line(*keys: str, **changes: Any) -> str:
        job = make_job(**changes)
        given = numbered(job, nodes, student=1.0)
        return what_stays_idle(job, given, nodes, workers_of(given.student), *keys)

    assert line("student") == (
        "3 of 4 GPUs stay idle: more student.workers would train a student on several"
    )
    assert line("student", **{"student.workers": 4}) == ""
    declined = "4 of 4 GPUs stay idle: student.gpus = 0 declines them"
    assert line("student", **{"student.gpus": 0}) == declined
    assert line("student", "fleet", **{"student.gpus": 0, "fleet.gpus": 0}) == (
        f"{declined}; fleet.gpus = 0 declines them"
    )
    job = make_job(**{"teachers.gpus": 0})
    assert what_stays_idle(job, numbered(job), nodes, [TASK], "teachers") == (
        "4 of 4 GPUs stay idle: teachers.gpus = 0 declines them"
    )
    job = make_job()
    assert what_stays_idle(job, numbered(job), nodes, [with_share(TASK, 1)], "teachers") == ""


def test_a_share_is_one_of_a_single_gpu() -> None:
    """As Ray has it: two halves that are left on two cards are no whole one."""
    wanted = [with_share(TASK, 0.6)] * 2 + [with_share(TASK, 0.5)]
    assert len(place(wanted, [node(gpus=2)]).without_room) == 1
    assert place(wanted, [node(gpus=2)]).idle == {"a": 0}
    assert place([with_share(TASK, 0.4)] * 2, [node(gpus=2)]).idle == {"a": 1}


@pytest.mark.parametrize("path", sorted(Path("jobs").rglob("*.yaml")), ids=str)
def test_job_files_leave_their_gpus_open(path: Path) -> None:
    if "cluster" in path.parts:
        assert "gpus=" not in path.read_text()
        return
    assert "gpus:" not in path.read_text()


def test_a_job_file_is_read_with_either(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    for value, found in (("auto", "auto"), ("null", "auto"), ("0.5", 0.5)):
        path.write_text(yaml.safe_dump(TINY))
        assert load_job(path, [f"student.gpus={value}"]).student.gpus == found
    with pytest.raises(JobError, match="a process uses one GPU"):
        load_job(path, ["student.gpus=2"])
