"""The benchmark of many pictures: the real loader on a generated set, and its table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agrekd_ray.bench.data import SIDE, measured
from agrekd_ray.bench.pictures import pictures
from agrekd_ray.bench.report import report_on


def test_the_real_loader_is_measured(tmp_path: Path) -> None:
    found = measured(pictures(tmp_path, 600, SIDE, SIDE), 2)
    assert found["samples"] == 600
    assert found["bytes"] == 600 * 3 * SIDE * SIDE
    assert found["read"] == 300
    assert len(found["read_seconds"]) == 2
    assert min(found["open_seconds"], found["prepare_seconds"], *found["read_seconds"]) > 0
    assert found["anonymous_bytes"] >= found["idle_bytes"] > 0


def _cell(samples: int, grown: int) -> dict[str, Any]:
    return {
        "samples": samples,
        "open_seconds": 0.5,
        "prepare_seconds": samples / 1500,
        "read": samples // 2,
        "read_seconds": [samples / 40_000, samples / 20_000],
        "bytes": samples * 3072,
        "idle_bytes": 300_000_000,
        "anonymous_bytes": 300_000_000 + grown,
    }


def test_the_table_and_what_it_comes_to() -> None:
    cells = [_cell(2_000, 20_000_000), _cell(20_000, 30_000_000)]
    figures = {"workload": "data", "side": 32, "batch_size": 100, "cells": cells}
    report = report_on(figures)
    rows = report.summary
    assert rows[1]["prepared_a_second"] == pytest.approx(1500)
    assert rows[1]["read_a_second"]["median"] == pytest.approx(15_000)
    assert report.conclusions == {"memory / memory, 10 times as many pictures": pytest.approx(1.5)}
    console = Console(file=io.StringIO(), width=120)
    report.show(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "20,000" in text
    assert "1,500" in text
    assert "10 times as many pictures: 1.50" in text
