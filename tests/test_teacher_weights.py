"""Who taught whom, summed up by group over an epoch, by one worker or several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from agrekd_ray.core.gradient import DistillationGradient
from agrekd_ray.results import Epoch, Metrics, degraded, epochs_from_json, mean_epoch
from agrekd_ray.training import TeacherWeightRecorder, TeacherWeightStats

NAMES = ("aligned", "conflicting", "never seen")
GROUPS: Any = SimpleNamespace(group_N=np.array([0, 0, 1, 1, 2]), names=NAMES)


def taught(
    pull: list[list[float]], weights: list[list[float]], fallback: list[bool]
) -> DistillationGradient:
    B = len(fallback)
    return DistillationGradient(
        torch.zeros(B, 2),
        torch.zeros(B),
        torch.tensor(weights),
        torch.tensor(fallback),
        torch.tensor(pull),
    )


def observe(record: TeacherWeightRecorder, ids: list[int], step: DistillationGradient) -> None:
    record.observe(torch.tensor(ids), step, 1)


STEPS = (
    ([0, 2], taught([[3.0, -0.5], [1.0, 1.5]], [[0.5, 0.25], [0.5, 0.75]], [True, False])),
    ([1, 3], taught([[0.0, 0.0], [2.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [False, False])),
)


def check(found: TeacherWeightStats) -> None:
    """Sums of pulls: aligned 3 and 3, conflicting −0.5 and 2.5, so 2.5 and 5.5 of 8 in all."""
    assert found.weights == {
        "aligned": {"dfr-0": 0.75, "erm-1": 0.25},
        "conflicting": {"dfr-0": 0.125, "erm-1": 0.875},
    }
    assert found.influence_by_group == {
        "aligned": {"dfr-0": 0.5, "erm-1": 0.5},
        "conflicting": {"dfr-0": -0.25, "erm-1": 1.25},
    }
    assert found.influence == {"dfr-0": 0.3125, "erm-1": 0.6875}
    assert found.fallback_by_group == {"aligned": 0.5, "conflicting": 0.0}
    assert found.fallback_share == 0.25


def test_shares_by_group_are_worked_out_from_sums() -> None:
    record = TeacherWeightRecorder(GROUPS, ("dfr-0", "erm-1"))
    for ids, step in STEPS:
        observe(record, ids, step)
    check(record.close(lambda sums: sums))
    assert record.close(lambda sums: sums) == TeacherWeightStats()  # every epoch starts anew


def test_workers_add_up() -> None:
    records = [TeacherWeightRecorder(GROUPS, ("dfr-0", "erm-1")) for _ in STEPS]
    for record, (ids, step) in zip(records, STEPS, strict=True):
        observe(record, ids, step)
    check(records[0].close(adding(records[1])))


def adding(other: TeacherWeightRecorder) -> Callable[[torch.Tensor], torch.Tensor]:
    """Sums over two workers; the other one's in the order that they are asked for."""
    parts = iter([other._sums, other._steps])
    return lambda mine: mine + next(parts)


@pytest.mark.parametrize(("first", "second", "steps"), [(2, 2, 2), (2, 1, 2), (1, 0, 1), (0, 0, 0)])
def test_steps_without_a_lost_teacher_are_counted(first: int, second: int, steps: int) -> None:
    """One of two workers may miss a teacher a step before the other."""
    records = []
    for lost in (first, second):
        record = TeacherWeightRecorder(GROUPS, ("dfr-0", "erm-1"))
        for number, (ids, step) in enumerate(STEPS):
            observe(record, ids, replace(step, lost_M=torch.tensor([False, number < lost])))
        records.append(record)
    found = records[0].close(adding(records[1]))
    assert found.lost_steps == ({"erm-1": steps} if steps else {})


@pytest.mark.parametrize("workers", [1, 2])
def test_sums_hold_beyond_what_float32_counts(workers: int) -> None:
    """More than 2^24 samples of one group: float32 takes no further one."""
    step = taught([[0.5], [-0.25]], [[0.25], [0.75]], [False])
    last = taught([[0.5], [-0.25]], [[0.25], [0.75]], [True])
    records = [TeacherWeightRecorder(GROUPS, ("dfr-0", "erm-1")) for _ in range(workers)]
    for record in records:
        observe(record, [2], step)
        record._sums *= 2**24  # as many such steps
        observe(record, [2], last)
    found = records[0].close(adding(records[1]) if workers > 1 else lambda sums: sums)
    assert found.fallback_by_group == {"conflicting": 1 / (2**24 + 1)}
    assert found.weights["conflicting"] == {"dfr-0": 0.25, "erm-1": 0.75}
    assert found.influence == pytest.approx({"dfr-0": 2.0, "erm-1": -1.0}, abs=1e-12)


def test_weights_over_a_million_samples_of_a_group_add_up_to_one() -> None:
    shares_M = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])
    step = taught(*[shares_M[:, None].expand(-1, 512).tolist()] * 2, [False] * 512)
    record = TeacherWeightRecorder(GROUPS, tuple(f"erm-{n}" for n in range(5)))
    for _ in range(2344):  # 1.2 million
        observe(record, [2] * 512, step)
    found = record.close(lambda sums: sums)
    for shares in (found.weights["conflicting"], found.influence):
        assert sum(shares.values()) == pytest.approx(1, abs=1e-7)
        assert list(shares.values()) == pytest.approx(shares_M.tolist(), abs=1e-7)


def test_a_group_that_nobody_moves_has_no_influence() -> None:
    record = TeacherWeightRecorder(GROUPS, ("dfr-0", "erm-1"))
    observe(record, [2], taught([[0.0], [0.0]], [[0.0], [0.0]], [True]))
    found = record.close(lambda sums: sums)
    assert found.influence == found.influence_by_group == {}
    assert found.fallback_by_group == {"conflicting": 1.0}


def test_a_degraded_student_says_what_it_did_without() -> None:
    def epoch(number: int, lost: dict[str, int]) -> Epoch:
        return Epoch(number, 1.0, 0.1, 1.0, METRICS, steps=10, lost_steps=lost)

    history = [epoch(0, {}), epoch(1, {"erm-1": 4}), epoch(2, {"erm-1": 10, "dfr-0": 3})]
    assert degraded(history) == (
        "without erm-1 for 14 of 30 steps, from epoch 2; without dfr-0 for 3 of 30 steps, "
        "from epoch 3"
    )
    assert degraded(history[:1]) == ""
    both = mean_epoch([epoch(1, {"erm-1": 4}), epoch(1, {"erm-1": 2, "dfr-0": 1})])
    assert (both.steps, both.lost_steps) == (20, {"erm-1": 6, "dfr-0": 1})


METRICS = Metrics(0.5, 0.5, 0.5, 0.5, 0.5, 0.1, {}, {})


def test_means_over_students_take_who_has_a_figure() -> None:
    old = Epoch(0, 1.0, 0.1, 1.0, METRICS, {"a": {"t": 0.2}})
    new = Epoch(
        0,
        1.0,
        0.1,
        1.0,
        METRICS,
        {"a": {"t": 0.4}, "b": {"t": 1.0}},
        fallback_by_group={"a": 0.5},
        influence={"t": 0.3},
        influence_by_group={"a": {"t": 0.3}},
    )
    found = mean_epoch([old, new])
    assert found.weights == {"a": {"t": pytest.approx(0.3)}, "b": {"t": 1.0}}
    assert found.influence == {"t": 0.3}
    assert found.influence_by_group == {"a": {"t": 0.3}}
    assert found.fallback_by_group == {"a": 0.5}


def test_epochs_of_an_earlier_version_are_read() -> None:
    val = {**vars(METRICS)}
    (read,) = epochs_from_json(
        [{"epoch": 3, "loss": 1.0, "learning_rate": 0.1, "seconds": 2.0, "val": val}]
    )
    assert read.influence == {}
    assert read.fallback_by_group == {}
