"""Records that are larger than memory: what the kernel is told of them."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agrekd_ray.distillation import CachedTeachers, TeacherHost
from agrekd_ray.logits import ahead
from agrekd_ray.training import Column

from .shared import pool_of, records, until
from .test_replay import specs

N, PAGES = 512, 2
"""Rows of a file, and pages of a row."""


@pytest.fixture
def mapped(tmp_path: Path) -> np.ndarray:
    """Rows [N, ...] of a file that is not in memory."""
    path, width = tmp_path / "rows", PAGES * mmap.PAGESIZE // 4
    np.arange(N * width, dtype=np.float32).reshape(N, width).tofile(path)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    rows = np.memmap(path, np.float32, mode="r", shape=(N, width))
    if resident(rows).any():
        pytest.skip("this file system keeps files in memory")
    return rows


def resident(rows: np.ndarray) -> np.ndarray:
    """Which rows are in memory, wholly or in part, [N]."""
    pages = (ctypes.c_ubyte * (N * PAGES))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(rows.ctypes.data), rows.nbytes, pages) == 0
    return (np.frombuffer(pages, np.uint8) & 1).reshape(N, PAGES).any(1)


def test_the_kernel_reads_what_is_asked_for_and_no_more(mapped: np.ndarray) -> None:
    wanted = np.array([400, 7, 90, 91])
    expected = np.zeros(N, dtype=bool)
    expected[wanted] = True
    reading = ahead.ReadAhead([mapped])
    reading(wanted)
    until(lambda: resident(mapped)[wanted].all())
    assert mapped[250, 0] == 250 * mapped.shape[1]  # read without having been told
    expected[250] = True
    assert not (resident(mapped) & ~expected).any()


def test_without_it_the_kernel_reads_around_a_row(mapped: np.ndarray) -> None:
    """What makes reading ahead worth its while."""
    assert mapped[250, 0] > 0
    assert resident(mapped).sum() > 1


def test_only_what_does_not_fit_into_memory_is_read_row_by_row(
    mapped: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ahead.read_ahead([mapped, mapped]) is None
    monkeypatch.setattr(ahead, "memory", lambda: mapped.nbytes)
    assert ahead.read_ahead([mapped]) is not None
    monkeypatch.setattr(ahead, "memory", lambda: 4 * mapped.nbytes)
    assert ahead.read_ahead([mapped]) is None


def test_memory_is_that_of_the_machine_or_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ahead.memory.__wrapped__()
    assert whole > 1 << 28
    for limit, expected in (("max\n", whole), ("1000000\n", 1_000_000), (f"{1 << 62}\n", whole)):
        (tmp_path / "memory.max").write_text(limit)
        monkeypatch.setattr(ahead, "LIMITS", [tmp_path / "memory.max", tmp_path / "none"])
        assert ahead.memory.__wrapped__() == min(whole, expected)


def test_rows_are_told_before_they_are_read() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((50, 3)).astype(np.float32) for _ in range(2)]
    told: list[Any] = []
    column = Column(*arrays, stacked=True, row_of=np.arange(50)[::-1], ahead=told.append)
    column.__dict__["_whole"] = None  # too large to be put together
    rows = column.gathered(np.array([1, 4, 4]))
    np.testing.assert_array_equal(rows, np.stack(arrays, 1)[[48, 45, 45]])
    np.testing.assert_array_equal(np.concatenate(told), [48, 45, 45])


@pytest.mark.parametrize("packed", [{}, {"outputs.dtype": "int8"}])
def test_replay_is_the_same_with_and_without(
    make_job: Any, monkeypatch: pytest.MonkeyPatch, packed: dict[str, Any]
) -> None:
    """Records of a run that is told of little memory."""
    job = make_job(**packed)
    data, checkpoints, drawn = pool_of(job)
    spec = specs(drawn)[-1].spec
    assert spec is not None
    TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints)).complete(0)
    ids = data.splits["train"][[5, 0, 17]]
    found = []
    for memory in (1 << 40, 1):
        monkeypatch.setattr(ahead, "memory", lambda memory=memory: memory)
        (column,) = CachedTeachers(records(job, data, checkpoints), data, None).columns(spec, 0)
        assert (column._ahead is not None) is (memory == 1)
        column.__dict__["_whole"] = None
        found.append(column.gathered(ids).numpy())
    np.testing.assert_array_equal(*found)
