"""Who finds room where, without Ray: plans, what never fits, turns, labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.cluster.placement import (
    Node,
    Placement,
    ResourceRequest,
    backbones_of,
    check_room,
    cpus_of,
    matches,
    place,
    rounds,
    shares_of,
    unknown_patterns,
)
from agrekd_ray.errors import RunError

from .shared import pool_of


def node(name: str, cpus: float = 0, gpus: float = 0, free: float | None = None, **labels: str):  # type: ignore[no-untyped-def]
    """A node; `free` of its CPUs and GPUs, as a share."""
    total = {"CPU": cpus, "GPU": gpus}
    share = 1.0 if free is None else free
    return Node(name, total, {key: share * value for key, value in total.items()}, labels)


def teacher(gpus: float = 0, cpus: float = 1, **labels: str) -> ResourceRequest:
    """One actor."""
    return ResourceRequest("teachers erm-0", {"CPU": cpus, "GPU": gpus}, labels)


def nodes_of(plan: Placement) -> list[str | None]:
    """Where each was put."""
    return [process.node for process in plan.placed]


def test_actors_of_a_kind_spread_over_the_nodes() -> None:
    nodes = [node("a", 4, 2), node("b", 4, 2), node("c", 4)]
    assert sorted(map(str, nodes_of(place([teacher(0.5)] * 4, nodes)))) == ["a", "a", "b", "b"]
    plain = nodes_of(place([teacher()] * 6, nodes))
    assert [plain.count(name) for name in "abc"] == [2, 2, 2]


def test_workers_of_a_student_fill_a_node_before_the_next() -> None:
    nodes = [node("a", 4, 1), node("b", 4, 1), node("c", 4, 1)]
    worker = ResourceRequest("worker", {"CPU": 1}, packed=True)
    plan = nodes_of(place([worker] * 6 + [teacher()] * 4, nodes))
    assert plan[:6] == ["a"] * 4 + ["b"] * 2
    assert plan[6:] == ["c", "c", "b", "c"]
    assert place([replace(worker, resources={"CPU": 1, "GPU": 1})] * 3, nodes).idle == {
        "a": 0,
        "b": 0,
        "c": 0,
    }


def test_workers_are_not_packed_where_that_leaves_somebody_without_room() -> None:
    slot = Node("a", {"CPU": 4, "slot": 1}, {"CPU": 4, "slot": 1})
    workers = [ResourceRequest("worker", {"CPU": 1}, packed=True)] * 4
    apart = ResourceRequest("teachers erm-0", {"CPU": 1, "slot": 1})
    plan = place([*workers, apart], [slot, node("b", 4)])
    assert nodes_of(plan) == ["a", "b", "a", "b", "a"]


def test_it_is_said_which_gpu_each_is_put_on() -> None:
    plan = place([teacher(0.5)] * 4 + [teacher(1), teacher()], [node("a", 8, 3), node("b", 1)])
    assert [(process.node, process.gpu) for process in plan.placed] == [
        ("a", 1),
        ("a", 1),
        ("a", 2),
        ("a", 2),
        ("a", 0),
        ("b", None),
    ]


def test_a_worker_that_needs_a_gpu_comes_before_actors_that_need_none() -> None:
    nodes = [node("a", 2, 1), node("b", 2)]
    plan = place([teacher(), teacher(), teacher(), teacher(gpus=1)], nodes)
    assert nodes_of(plan)[3] == "a"
    assert not plan.without_room


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 0.25, 0.5, 1, 2])), max_size=12),
)
def test_no_node_is_given_more_than_it_has(
    sizes: list[tuple[int, int]], asked: list[tuple[int, float]]
) -> None:
    nodes = [node(str(number), *size) for number, size in enumerate(sizes)]
    wanted = [teacher(gpus, cpus) for cpus, gpus in asked]
    plan = place(wanted, nodes)
    for one in nodes:
        for name in ("CPU", "GPU"):
            taken = sum(p.wanted.resources[name] for p in plan.placed if p.node == one.name)
            assert taken <= one.total[name] + 1e-6
    for left in plan.without_room:  # nobody is turned away while a node is empty and fits
        empty = [n for n in nodes if n.name not in nodes_of(plan)]
        assert place([left], empty).without_room


@pytest.mark.parametrize(
    ("has", "wanted", "fits"),
    [
        ({"zone": "a"}, {"zone": "a"}, True),
        ({"zone": "a"}, {"zone": "b"}, False),
        ({}, {"zone": "a"}, False),
        ({"zone": "b"}, {"zone": "in(a, b)"}, True),
        ({"zone": "c"}, {"zone": "in(a,b)"}, False),
        ({"zone": "a"}, {"zone": "!a"}, False),
        ({"zone": "b"}, {"zone": "!a"}, True),
        ({}, {"zone": "!a"}, True),
        ({"zone": "a"}, {"zone": "!in(a,b)"}, False),
        ({"zone": "a", "kind": "x"}, {"zone": "a", "kind": "y"}, False),
    ],
)
def test_labels_are_read_as_ray_reads_them(
    has: dict[str, str], wanted: dict[str, str], fits: bool
) -> None:
    assert matches(has, wanted) is fits


def test_what_never_fits_is_refused_with_numbers() -> None:
    nodes = [node("10.0.0.1", 4, 1), node("10.0.0.2", 4, 1)]
    with pytest.raises(RunError) as caught:
        check_room([], [teacher(gpus=2)], nodes)
    text = str(caught.value)
    assert "teachers erm-0: no node has room for it" in text
    assert "2 GPU wanted" in text
    assert "10.0.0.1 4 CPU, 1 GPU" in text
    with pytest.raises(RunError, match="1 of 3 processes find no room beside the others"):
        check_room([teacher(gpus=1)], [teacher(gpus=1)] * 2, nodes)
    with pytest.raises(RunError, match=r"zone=b wanted.*zone=\(none\)"):
        check_room([], [teacher(zone="b")], nodes)


def test_what_waits_for_others_is_said() -> None:
    nodes = [node("a", 4, 2, free=0.5)]
    assert check_room([], [teacher(gpus=1)], nodes) == ""
    assert "1 of 2 processes of this job wait" in check_room([], [teacher(gpus=1)] * 2, nodes)


def test_teachers_take_turns_where_not_all_find_room() -> None:
    nodes = [node("a", 8, 1), node("b", 8, 1)]
    turns = rounds([teacher(gpus=1)] * 5, nodes)
    assert [len(turn) for turn in turns] == [2, 2, 1]
    assert sorted(one for turn in turns for one in turn) == [0, 1, 2, 3, 4]
    with pytest.raises(RunError, match="no node has room"):
        rounds([teacher(gpus=1), teacher(gpus=2)], nodes)


def test_the_plan_is_a_line_a_kind() -> None:
    nodes = [node("a", 4), node("b", 1)]
    worker = ResourceRequest("student's worker", {"CPU": 1, "GPU": 0}, kind="students' workers")
    assert place([worker, *[teacher(cpus=2)] * 3], nodes).lines() == [
        "students' workers: 1 × (1 CPU) on b",
        "teachers' actors: 3 × (2 CPU) on a × 2, no room for 1",
    ]


def test_cpus_are_what_the_students_leave() -> None:
    assert cpus_of(None, 4, cluster=3, taken=1) == pytest.approx(0.45)
    assert cpus_of(None, 4, cluster=64, taken=1) == 1
    assert cpus_of(None, 4, cluster=1, taken=1) == 0.01
    assert cpus_of(2, 4, cluster=1, taken=1) == 2


def test_teachers_that_are_placed_apart_share_no_actor(make_job) -> None:  # type: ignore[no-untyped-def]
    _, checkpoints, drawn = pool_of(make_job())
    together = shares_of(backbones_of(checkpoints), FleetSettings(backbones_per_actor=8, gpus=0))
    assert [set(share.teachers) for share in together] == [set(checkpoints)]
    apart = FleetSettings.model_validate(
        {
            "backbones_per_actor": 8,
            "gpus": 0.5,
            "teachers": {drawn.biased: {"gpus": 1, "labels": {"zone": "b"}}},
        }
    )
    shares = shares_of(backbones_of(checkpoints), apart, 0.5)
    (own,) = [share for share in shares if drawn.biased in share.teachers]
    assert own.wanted.resources == {"CPU": 0.5, "GPU": 1}
    assert own.wanted.labels == {"zone": "b"}
    assert {n for share in shares for n in share.teachers} == set(checkpoints)
    assert all(s.wanted.resources["GPU"] == 0.5 for s in shares if s is not own)
    assert unknown_patterns(apart, list(checkpoints)) == []
    assert unknown_patterns(apart, ["other"]) == [drawn.biased]
