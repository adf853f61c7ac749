"""What Ray's metrics are told: each pass, answer and retry once."""

from __future__ import annotations

from typing import Any

import pytest

from agrekd_ray.cluster import meters
from agrekd_ray.results import Epoch, Metrics, Span


class Meter:
    """Looks like one of Ray's, and keeps what it is told."""

    every: list[Meter]

    def __init__(self, name: str, description: str = "", *args: Any, **kwargs: Any) -> None:
        assert description
        self.name, self.told = name, []  # type: ignore[var-annotated]
        Meter.every.append(self)

    def observe(self, value: float, tags: Any = None) -> None:
        self.told.append((round(value, 6), tags))

    set = inc = observe


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What was told, by name."""
    Meter.every = []
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(meters, kind, Meter)
    return lambda: {meter.name: meter.told for meter in Meter.every}


def test_a_forward_pass_is_told_once(told: Any) -> None:
    meter = meters.TeacherMeter()
    meter.observe({"forward erm-0, dfr-0": Span(2, 0.4)})
    meter.observe({"forward erm-0, dfr-0": Span(2, 0.4)})
    meter.observe({"forward erm-0, dfr-0": Span(3, 0.5), "forward erm-1": Span(1, 0.3)})
    (passes,) = told().values()
    assert passes == [
        (0.2, {"teachers": "erm-0, dfr-0"}),
        (0.2, {"teachers": "erm-0, dfr-0"}),
        (0.1, {"teachers": "erm-0, dfr-0"}),
        (0.3, {"teachers": "erm-1"}),
    ]


def test_questions_that_wait_and_retries(told: Any) -> None:
    meter = meters.WeightingMeter()
    spans = {"gather": Span(1, 0.2), "weigh": Span(1, 0.1)}
    meter.asked()
    meter.asked()
    meter.observe(spans, 0)
    meter.answered()
    meter.observe(spans, 3)
    meter.observe(spans, 3)
    meter.answered()
    found = told()
    assert [value for value, _ in found["agrekd_requests_waiting"]] == [1, 2, 1, 0]
    assert [value for value, _ in found["agrekd_retries"]] == [3]
    assert [value for value, _ in found["agrekd_teacher_wait_seconds"]] == [0.2] * 3
    assert [value for value, _ in found["agrekd_weighting_seconds"]] == [0.1] * 3


def test_a_students_epoch(told: Any) -> None:
    metrics = Metrics(0.5, 0.5, 0.5, 0.5, 0.5, 0.1, {}, {})
    meter = meters.StudentMeter("aver-seed-0")
    meter.observe(
        Epoch(0, 1.0, 0.1, 2.0, metrics, steps=10, guidance_seconds=0.5, replayed_steps=4)
    )
    tags = {"student": "aver-seed-0"}
    assert told() == {
        "agrekd_step_seconds": [(0.2, tags)],
        "agrekd_guidance_seconds": [(0.05, tags)],
        "agrekd_replay_share": [(0.4, tags)],
    }
