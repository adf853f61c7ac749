"""Where the time of a run went."""

from __future__ import annotations

import pytest

from agrekd_ray.results import Effort, Epoch, Metrics, Outcome, Span
from agrekd_ray.tracking.timing import spent

METRICS = Metrics(0.5, 0.5, 0.5, 0.5, 0.5, 0.1, {"a": 0.5}, {"a": 2})


def outcome(method: str, teachers: str, replayed: int = 0, guided: float = 0.0) -> Outcome:
    """A student of one epoch: 10 steps in 2 s."""
    epoch = Epoch(
        0, 1.0, 0.1, 2.0, METRICS, steps=10, guidance_seconds=guided, replayed_steps=replayed
    )
    return Outcome(method, 0, teachers, {"test": METRICS}, [epoch])


def test_students_and_their_guidance() -> None:
    steps, guidance = spent(
        [outcome("one_hot", "-", guided=0.1), outcome("aver", "3", 5, 0.5)], None
    )
    assert steps.span == Span(20, 4.0)
    assert steps.in_words == "20 × 200 ms = 4.0 s"
    assert guidance.span == Span(10, 0.5)  # a student of labels has no teachers to wait for
    assert guidance.in_words == (
        "10 × 50 ms = 0.5 s (25% of the taught students' time; 50% replayed)"
    )


def test_the_slowest_teachers_come_first_and_the_rest_together() -> None:
    forwards = {f"forward erm-{n}": Span(10, float(n)) for n in range(6)}
    effort = Effort(spans={**forwards, "gather": Span(4, 1.0), "weigh": Span(4, 0.4)}, retries=2)
    lines = spent([], effort)
    assert [line.what for line in lines] == [
        "forward erm-5",
        "forward erm-4",
        "forward erm-3",
        "forward of 3 others",
        "waiting for teachers",
        "weighting",
    ]
    assert lines[3].span == Span(30, 3.0)
    assert lines[4].note == "2 asked again"
    assert lines[5].each == pytest.approx(100)


def test_effort_adds_up() -> None:
    one = Effort(1, 2, 30, 4.0, 0, {"gather": Span(1, 1.0)})
    other = Effort(1, 1, 10, 1.0, 1, {"gather": Span(2, 0.5), "weigh": Span(1, 0.1)})
    assert one + other == Effort(2, 3, 30, 5.0, 1, {"gather": Span(3, 1.5), "weigh": Span(1, 0.1)})


def test_nothing_to_say_of_a_run_without_students() -> None:
    assert spent([], None) == []
