"""The benchmark: every way is measured for real, and its ratios are worked out right."""

from __future__ import annotations

import dataclasses
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from agrekd_ray.bench import command, plan
from agrekd_ray.bench.by_hand import NaiveTrainer
from agrekd_ray.bench.command import bench
from agrekd_ray.bench.report import Report, report_on
from agrekd_ray.bench.workloads import WAYS, Cell, workloads
from agrekd_ray.capacity.costs import Times
from agrekd_ray.core.kd import kd_loss
from agrekd_ray.models import Model, build
from agrekd_ray.settings import Training
from agrekd_ray.training import Labels

from .shared import flat_parameters, pool_of

FIGURES: dict[str, Any] = {
    "workload": "latency",
    "steps": 10,
    "batch_size": 8,
    "teacher_ms": 50,
    "cells": [
        {"way": way, "teachers": teachers, "seconds": seconds, "anonymous_bytes": 2_000_000}
        for way, teachers, seconds in (
            ("plain", 0, [0.1, 0.2, 0.1]),
            ("naive", 4, [2.0, 2.0, 2.0]),
            ("local", 4, [1.0, 1.0, 1.0]),
            ("live", 4, [0.6, 0.5, 0.55]),
            ("live", 32, [0.66, 0.66, 0.66]),
            ("record", 4, [1.1, 1.1, 1.1]),
            ("replay", 4, [0.11, 0.2, 0.11]),
        )
    ],
}


def test_ratios_are_paired_and_conclusions_are_those_of_medians() -> None:
    report = report_on(FIGURES)
    rows = {(row["way"], row["teachers"]): row for row in report.summary}
    assert rows["plain", 0]["step_ms"]["median"] == pytest.approx(10)
    assert rows["replay", 4]["ratio"] == pytest.approx({"median": 1.1, "min": 1.0, "max": 1.1})
    found = report.conclusions
    assert found["replay / plain, 4 teachers"] == pytest.approx(1.1)
    assert found["live / local, 4 teachers"] == pytest.approx(0.55)
    assert found["10 epochs, the first recorded / naive, 4 teachers"] == pytest.approx(
        (1.1 + 9 * 0.11) / 20
    )
    assert found["step / max(teacher, student + 5 ms), 4 teachers"] == pytest.approx(1.1)
    assert found["step at 32 teachers / at 4"] == pytest.approx(66 / 55)
    assert "55.0 (50.0 … 60.0)" in shown(report)


def shown(report: Report) -> str:
    """What a report prints."""
    console = Console(file=StringIO(), width=140)
    report.show(console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("quick", [False, True])
def test_workloads_can_be_made(quick: bool) -> None:
    for name, workload in workloads(quick).items():
        assert workload.name == name
        assert workload.cells[0] == Cell("plain", 0, workload.batch_size)
        assert {cell.way for cell in workload.cells} <= set(WAYS)
        assert {cell.batch_size for cell in workload.cells} == {workload.batch_size}


def test_the_yardstick_follows_the_weighted_loss(make_job: Any) -> None:
    """One step of it moves the student by the gradient of sum_m w_m l_m."""
    data, _, _ = pool_of(make_job())
    training = Training(
        epochs=1, batch_size=32, learning_rate=0.1, momentum=0, weight_decay=0, schedule="constant"
    )
    teachers = [build(Model(name="cnn_deep", args={"width": 4}), data.shape, 10, n) for n in (5, 6)]
    student, twin = (build(Model(name="cnn", args={"width": 4}), data.shape, 10, 0) for _ in "ab")
    naive = NaiveTrainer(student, data, training, Labels(), seed=0)
    naive.teachers, naive.temperature = teachers, 4.0
    ((batch, loaded),) = naive.loaded([naive.plan.batch(0)])
    naive.step(batch, loaded)
    images = data.inputs(batch.ids, 0)
    losses = [kd_loss(twin(images), t(images).detach(), 4.0).mean() for t in teachers]
    flat = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(loss, list(twin.parameters()), retain_graph=True)
            ]
        )
        for loss in losses
    ]
    # The first is the biased model: its own weight is 1 - cos(g, g) = 0.
    weights = torch.stack([1 - torch.cosine_similarity(g, flat[0], 0) for g in flat])
    moved = flat_parameters(twin) - 0.1 * (weights[1] * flat[1] / weights.sum()).double()
    torch.testing.assert_close(flat_parameters(student), moved, rtol=1e-3, atol=1e-5)


def figures_of(name: str, repeats: int, folder: Path) -> dict[str, Any]:
    """What a quick benchmark of one workload writes."""
    bench([name], repeats, True, folder / "bench.json", Console(file=StringIO()))
    (figures,) = json.loads((folder / "bench.json").read_text(encoding="utf-8"))["workloads"]
    return figures  # type: ignore[no-any-return]


def test_every_way_is_measured(
    ray_session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A tiny workload, with a real process and real fleets."""
    small = workloads(True)["small"]
    cells = tuple(Cell(way, 0 if way == "plain" else 2, 20) for way in WAYS)
    tiny = dataclasses.replace(small, cells=cells, samples=60)
    monkeypatch.setattr(command, "workloads", lambda quick: {"small": tiny})
    figures = figures_of("small", 2, tmp_path)
    assert [cell["way"] for cell in figures["cells"]] == list(WAYS)
    for cell in figures["cells"]:
        assert len(cell["seconds"]) == 2
        assert min(cell["seconds"]) > 0
    assert figures["reply_bytes"] == 20 * 10 * 4
    assert figures["record_bytes_computed"] == 40
    assert figures["conclusions"].keys() == {
        "replay / plain, 2 teachers",
        "live / local, 2 teachers",
        "10 epochs, the first recorded / naive, 2 teachers",
    }
    assert [row["way"] for row in figures["summary"]] == list(WAYS)
    assert [teachers for teachers, _ in figures["replay_memory"]] == [2]


PLANNED: dict[str, Any] = {
    "workload": "plan",
    "fleets": [
        {
            "delay_ms": delay,
            "backbones_per_actor": 8,
            "look_ahead": 2,
            "times": Times(forward_ms=delay, step_ms=5).model_dump(),
            "cells": [
                {
                    "teachers": teachers,
                    "actors": 1,
                    "forecast_ms": 50.0,
                    "measured_ms": 40.0,
                    "error": error,
                    "bottleneck": "teachers",
                }
                for teachers, error in ((1, 0.25), (2, -0.1))
            ],
        }
        for delay in (5, 50)
    ],
}


def test_errors_of_a_forecast_are_medians_without_sign() -> None:
    report = report_on(PLANNED)
    found = report.conclusions
    assert found["median error of the forecast"] == pytest.approx(0.175)
    assert found["median error, 5 ms, 8 an actor, look-ahead 2"] == pytest.approx(0.175)
    assert "+25" in shown(report)
    assert "-10" in shown(report)
    assert report.summary == PLANNED["fleets"]


def test_a_cell_is_planned_as_its_fleet_hosts_it() -> None:
    """32 teachers, eight an actor at most: fewer are spread over the four actors."""
    workload = plan.fleet_workload(5, 8, 2, quick=False)
    shapes = {
        count: (plan.size_of(workload, count).actors, plan.size_of(workload, count).fullest)
        for count in plan.COUNTS
    }
    assert shapes == {1: (1, 1), 2: (2, 1), 4: (4, 1), 8: (4, 2), 16: (4, 4), 32: (4, 8)}


@pytest.mark.chaos
def test_forecasts_are_held_against_measurements(
    ray_session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One tiny fleet, calibrated and measured with real actors."""
    monkeypatch.setattr(plan, "SHAPES", ((20, 2, 0),))
    monkeypatch.setattr(plan, "COUNTS", (1, 4))
    (fleet,) = figures_of("plan", 1, tmp_path)["fleets"]
    assert [cell["teachers"] for cell in fleet["cells"]] == [1, 4]
    for cell in fleet["cells"]:
        assert min(cell["forecast_ms"], cell["measured_ms"]) > 20  # no look-ahead hides the delay
        assert cell["error"] == pytest.approx(cell["forecast_ms"] / cell["measured_ms"] - 1)
    assert fleet["times"]["step_ms"] != 1
    assert fleet["times"]["costs"]["call_ms"] > 0
