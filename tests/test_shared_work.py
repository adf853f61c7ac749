"""Students that several worker groups share, and when another group pays."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from agrekd_ray.cluster.events import StudentEpoch
from agrekd_ray.models import Model
from agrekd_ray.results import Epoch, Metrics
from agrekd_ray.settings import Training
from agrekd_ray.student import StudentSpec, shared_work
from agrekd_ray.student.shared_work import Pace, SharedWork

GIVEN = tuple(
    StudentSpec(
        "one_hot",
        seed,
        Model(name="cnn"),
        Training(epochs=10, batch_size=32, learning_rate=0.1),
    )
    for seed in range(4)
)


def never(number: int) -> bool:
    return False


def test_every_student_is_taken_by_one_group(tmp_path: Path) -> None:
    shared = SharedWork(tmp_path)
    shared.lay_out(range(200))
    taken: dict[str, list[int]] = {f"group-{n}": [] for n in range(4)}

    def work(group: str) -> None:
        while (number := shared.take(group, lambda n: n in taken[group])) is not None:
            taken[group].append(number)

    threads = [threading.Thread(target=work, args=(group,)) for group in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for numbers in taken.values() for n in numbers) == list(range(200))
    assert all(numbers == sorted(numbers) for numbers in taken.values())
    assert shared.waiting == []


def test_a_group_that_is_restarted_goes_on_with_what_it_has(tmp_path: Path) -> None:
    shared = SharedWork(tmp_path)
    shared.lay_out([3, 5, 8])
    assert [shared.take(group, never) for group in ("group-0", "group-1")] == [3, 5]
    again = SharedWork(tmp_path)
    assert again.take("group-1", never) == 5
    assert again.take("group-0", {3}.__contains__) == 8
    assert again.take("group-1", {3, 5}.__contains__) is None
    assert again.take("group-0", never) == 8


@pytest.mark.parametrize(
    ("start", "epoch", "pays"),
    [
        (5.0, 3.0, True),  # 108 s are left, two groups would take (108 + 5) / 2
        (5.0, 2.0, True),  # 72 s
        (20.0, 2.0, False),  # they would take 46 s, if neither took anything from the other
        (2.0, 0.5, False),  # the pace of 1.5 s is not to be trusted
        (300.0, 4.0, True),  # the first has waited for room: 144 s against 30
        (300.0, 3.0, False),
    ],
)
def test_a_group_more_is_started_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, start: float, epoch: float, pays: bool
) -> None:
    now = 1000.0
    monkeypatch.setattr(shared_work.time, "monotonic", lambda: now)
    pace = Pace(GIVEN)

    def finish(number: int) -> None:
        metrics = Metrics(0.5, 0.5, 0.5, 0.5, 0.5, 0.1, {}, {})
        pace.watch(StudentEpoch(GIVEN[0].name, 10, Epoch(number, 1.0, 0.1, epoch, metrics)))

    assert not pace.pays(1)
    now += start
    finish(0)
    assert not pace.pays(1)  # nothing is known of the pace
    for number in (1, 2, 3):
        now += epoch
        finish(number)
    assert pace.pays(1) is pays
    pace.grown()
    assert not pace.pays(2)
