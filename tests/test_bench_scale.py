"""The benchmark of many teachers of many classes: a tiny one, and what its tables say."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from agrekd_ray.bench import scale
from agrekd_ray.bench.errors import errors, made_up
from agrekd_ray.bench.report import report_on
from agrekd_ray.bench.scale import Scale
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.display import Display
from agrekd_ray.logits import Form

TINY = Scale(teachers=3, classes=40, rows=128, batch=16, student="cnn")


def test_a_tiny_scale_is_measured_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every form, fewer teachers, classes and rows; here, not in processes of their own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(scale.tempfile, "tempdir", None)
    monkeypatch.setattr(scale, "in_own_process", lambda function, *given: function(*given))
    monkeypatch.setattr(scale, "of_digits", lambda folder, quick: made_up(2, 10))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    with Display(Console(file=io.StringIO())) as display:
        figures = scale.measure_scale(TINY, 1, True, display)
    assert not list(tmp_path.glob(f"{scale.PREFIX}*"))
    shown = [(cell["form"], cell["teachers"], cell["classes"]) for cell in figures["cells"]]
    assert shown == [
        ("float32", 3, 40),
        ("float32", 2, 40),
        ("int8", 3, 40),
        ("float16 top 10", 3, 40),
        ("float32", 3, 10),
        ("float32", 3, 40),
    ]
    sizes = [cell["disk_bytes"] / (128 * 3) for cell in figures["cells"]]
    assert (sizes[0], sizes[2], sizes[3]) == (160, 48, 34)
    report = report_on(figures)
    assert report.summary[0]["ratio"]["median"] > 0
    console = Console(file=io.StringIO(), width=100)
    report.show(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "replay / plain, 3 teachers, 40 classes, 128 rows, int8" in text
    assert "teachers of coloured digits, 10 classes" in text


def test_too_small_a_disk_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"scale writes 40,?001 GB.*--rows"):
        scale._check_room(Scale(rows=200_000_000), tmp_path)


def test_errors_fall_with_bytes_and_are_none_in_float32() -> None:
    given = [Form("float32", None, 100), Form("float16", None, 100), Form("int8", None, 100)]
    given += [Form("float32", 32, 100), Form("float32", 4, 100)]
    exact, half, byte, many, few = errors(*made_up(4, 100), given)
    for τ in ("1", "4"):
        assert set(exact["errors"][τ].values()) == {0}
        for name in ("mean", "grad"):
            sizes = [each["errors"][τ][name] for each in (half, byte, many, few)]
            assert 0 < sizes[0] < sizes[1] < sizes[3]
            assert sizes[2] < sizes[3]
