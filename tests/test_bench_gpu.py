"""The benchmark of a device: the same code on small pictures, each of its rows, and its table."""

from __future__ import annotations

import dataclasses
import json
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from agrekd_ray.bench import command
from agrekd_ray.bench.by_hand import ResidentLoop
from agrekd_ray.bench.command import bench
from agrekd_ray.bench.harness import Sampled, Utilisation
from agrekd_ray.bench.report import report_on
from agrekd_ray.bench.workloads import GPU_SMALL, cells_of_gpu
from agrekd_ray.models import Model, build

from .shared import flat_parameters

TINY = dataclasses.replace(GPU_SMALL, samples=40, classes=5, cells=cells_of_gpu((4, 8), 64))


def test_every_row_is_measured(
    ray_session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "GPU_SMALL", TINY)
    shown = StringIO()
    bench(["gpu"], 2, True, tmp_path / "bench.json", Console(file=shown, width=140))
    (figures,) = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["workloads"]
    rows = figures["summary"]
    taught = {
        (way, batch_size, classes, teachers)
        for classes in (2, 5)
        for batch_size in (4, 8)
        for way, teachers in (
            ("arithmetic alone", 0),
            ("hand-written", 0),
            ("labels", 0),
            ("cache", 10),
            ("cache", 50),
            ("live", 4),
        )
    }
    asked = {
        (way, 64, classes, teachers)
        for classes in (2, 5)
        for way, teachers in (("teacher's forward", 0), ("recording", 1))
    }
    key = ("way", "batch_size", "classes", "teachers")
    assert sorted(tuple(row[name] for name in key) for row in rows) == sorted(taught | asked)
    for row, cell in zip(rows, figures["cells"], strict=True):
        assert len(cell["seconds"]) == 2
        assert row["images_a_second"]["min"] > 0
        assert row["ratio"] > 0
        assert row["utilisation"] is None
        assert row["bytes"] > 0
    images = {(cell["way"], cell["batch_size"]): cell["images"] for cell in figures["cells"]}
    assert {images[way, 8] for way in ("hand-written", "labels", "cache", "live")} == {40}
    assert images["recording", 64] == 40
    for words in ("hand-written", "recording", "live", "GPU, %", "cnn on CPU"):
        assert words in shown.getvalue()
    found = figures["conclusions"]
    assert "cache / hand-written, B 8, 5 classes, 50 teachers" in found
    assert "recording / teacher's forward, B 64, 5 classes" in found
    assert len(found) == len(rows) - 2 * 3  # not what others are held against


def test_ratios_are_those_of_medians_and_graphs_are_named() -> None:
    def cell(way: str, seconds: list[float], compile: str = "off") -> dict[str, Any]:
        return {
            "way": way,
            "batch_size": 32,
            "classes": 1000,
            "teachers": 10 if way == "cache" else 0,
            "compile": compile,
            "images": 4000,
            "seconds": seconds,
            "utilisation": 93.4,
            "bytes": 1_234_000_000,
        }

    cells = [cell("hand-written", [0.4, 0.5, 0.8]), cell("cache", [0.25] * 3, "cuda_graphs")]
    about = {"device": "H100", "student": "r18", "teacher": "r50", "shown": 224, "kept": 256}
    figures = {"workload": "gpu", **about, "cells": cells}
    name = "cache / hand-written, B 32, 1000 classes, 10 teachers, CUDA graphs"
    report = report_on(figures)
    assert report.conclusions == {name: pytest.approx(2.0)}
    shown = StringIO()
    report.show(Console(file=shown, width=140))
    for words in ("8,000 (5,000 … 10,000)", "cache, CUDA graphs", "2.00", "93", "1,234"):
        assert words in shown.getvalue()


def test_the_hand_written_loop_learns() -> None:
    """It is a real training: two classes that differ in brightness."""
    torch.manual_seed(0)
    labels_N = torch.arange(64) % 2
    pixels_NCHW = np.full((64, 3, 12, 12), 40, np.uint8)
    pixels_NCHW[labels_N.numpy() == 1] = 200
    model = build(Model(name="cnn", args={"width": 4}), (3, 8, 8), 2, 0)
    before = flat_parameters(model)
    device = torch.device("cpu")
    loop = ResidentLoop(model, pixels_NCHW, labels_N, 8, 16, device)
    shown = loop._shown(loop._pixels[:16])
    assert shown.shape == (16, 3, 8, 8)
    assert shown.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(shown[0], torch.full((3, 8, 8), 40 / 255))
    torch.testing.assert_close(shown[1], torch.full((3, 8, 8), 200 / 255))
    for group in loop._optimizer.param_groups:
        group["lr"] = 0.05
    assert [loop.epoch() for _ in range(30)] == [64] * 30
    assert not torch.equal(flat_parameters(model), before)
    model.eval()
    answers_N = model(torch.from_numpy(pixels_NCHW[:, :, :8, :8]).float() / 255).argmax(1)
    assert torch.equal(answers_N, labels_N)


def test_pixels_keep_their_place_in_a_crop() -> None:
    """Whole and not mirrored, a picture is shown as it is."""
    pixels_NCHW = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    model = build(Model(name="cnn", args={"width": 4}), (3, 8, 8), 2, 0)
    loop = ResidentLoop(model, pixels_NCHW, torch.arange(2), 8, 2, torch.device("cpu"))
    whole = pytest.MonkeyPatch()
    with whole.context() as patch:
        patch.setattr(torch, "rand", lambda *size, device=None: torch.ones(*size))
        patch.setattr(torch, "randint", lambda low, high, size, device=None: torch.ones(size))
        shown = loop._shown(loop._pixels)
    torch.testing.assert_close(shown, torch.from_numpy(pixels_NCHW).float() / 255)


def test_a_value_is_read_while_a_block_runs() -> None:
    with Sampled(lambda: 7, 0.001) as sampled:
        pass
    assert set(sampled.values) == {7}


@pytest.mark.parametrize(("told", "values"), [("97", [97.0]), ("[N/A]", [])])
def test_the_drivers_program_tells_how_busy_the_card_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, values: list[float]
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\necho '{told}'\nexec sleep 600\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    card = SimpleNamespace(uuid="1-2-3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    with Utilisation(torch.device("cuda")) as busy:
        while len(busy.values) < len(values) or not (tmp_path / "asked").exists():
            time.sleep(0.01)
    assert busy.values == values
    assert "--id=GPU-1-2-3" in (tmp_path / "asked").read_text()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    for device in ("cuda", "cpu"):  # nothing is said of its use
        with Utilisation(torch.device(device)) as busy:
            pass
        assert busy.values == []
