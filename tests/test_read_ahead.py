"""Records that are larger than memory: what the kernel is told of them."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from agrekd_ray import machine
from agrekd_ray.distillation import CachedTeachers, DistillationSpec, TeacherHost
from agrekd_ray.errors import RunError
from agrekd_ray.logits import ahead, prune, together
from agrekd_ray.logits.features import Headed
from agrekd_ray.training import Column

from .shared import pool_of, records, told, until
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
    whole = machine.memory.__wrapped__()
    physical = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    assert 1 << 28 < whole <= physical
    monkeypatch.setattr(machine, "GROUP", tmp_path)
    for limit, expected in (
        ("max\n", physical),
        ("1000000\n", 1_000_000),
        (f"{1 << 62}\n", physical),
    ):
        (tmp_path / "memory.max").write_text(limit)
        assert machine.memory.__wrapped__() == min(physical, expected)


def test_rows_are_told_before_they_are_read() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((50, 3)).astype(np.float32) for _ in range(2)]
    heard: list[Any] = []
    column = Column(*arrays, stacked=True, row_of=np.arange(50)[::-1], ahead=heard.append)
    column.__dict__["_whole"] = None  # too large to be put together
    rows = column.gathered(np.array([1, 4, 4]))
    np.testing.assert_array_equal(rows, np.stack(arrays, 1)[[48, 45, 45]])
    np.testing.assert_array_equal(np.concatenate(heard), [48, 45, 45])


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


@pytest.fixture
def small(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes teachers' records that no memory holds, to be read out of a copy."""
    monkeypatch.setattr(ahead, "memory", lambda: 1)

    def made(**changes: Any) -> Any:
        job = make_job(**{"outputs.together": True, **changes})
        data, checkpoints, drawn = pool_of(job)
        TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints)).complete(0)
        return (
            job,
            data,
            checkpoints,
            told(DistillationSpec("agre_kd", drawn.teachers, drawn.biased, 4.0)),
        )

    return made


def copies(job: Any) -> list[Path]:
    """Of records, with their rows side by side."""
    return sorted(job.outputs.store.rglob("together-*"))


def rows_of(job: Any, data: Any, checkpoints: Any, spec: Any) -> np.ndarray:
    """Some rows as a batch gets them."""
    (column,) = CachedTeachers(records(job, data, checkpoints), data, None).columns(spec, 0)
    column.__dict__["_whole"] = None
    ids = data.splits["train"][[5, 0, 17]]
    return np.asarray(column.decoded(column.gathered(ids)).numpy())


@pytest.mark.parametrize(
    "changes",
    [{}, {"outputs.dtype": "float16"}, {"outputs.dtype": "int8", "outputs.top_k": 2}],
)
def test_rows_of_a_sample_lie_side_by_side(small: Any, changes: dict[str, Any]) -> None:
    """The copy is made once, goes with its records, and changes no number."""
    job, data, checkpoints, spec = small(**changes)
    apart = job.outputs.model_copy(update={"together": False})
    expected = rows_of(job.model_copy(update={"outputs": apart}), data, checkpoints, spec)
    assert copies(job) == []
    np.testing.assert_array_equal(rows_of(job, data, checkpoints, spec), expected)
    (path,) = copies(job)
    form = job.outputs.form(len(data.classes))
    M, N = len(spec.members), len(data.splits["train"])
    assert path.stat().st_size == M * N * form.row_bytes + 32
    written = path.stat()
    np.testing.assert_array_equal(rows_of(job, data, checkpoints, spec), expected)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    fewer = replace(spec, teachers=spec.teachers[:2])
    rows_of(job, data, checkpoints, fewer)
    assert len(copies(job)) == 2
    prune(job.outputs.store, 0)
    assert copies(job) == []


@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_copy_is_made_again(small: Any, cut: bool) -> None:
    job, data, checkpoints, spec = small()
    expected = rows_of(job, data, checkpoints, spec)
    (path,) = copies(job)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content[:-1] if cut else content)
    np.testing.assert_array_equal(rows_of(job, data, checkpoints, spec), expected)


def test_a_copy_without_room_is_named(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job, data, checkpoints, spec = small()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(together, "bring", Mock(side_effect=full))
    with pytest.raises(RunError, match="No space left"):
        rows_of(job, data, checkpoints, spec)


def test_heads_read_features_out_of_a_copy(small: Any) -> None:
    """Where two heads share a backbone, the copy has its features once."""
    job, data, checkpoints, spec = small(**{"outputs.features": True, "ensemble.debiased": 1})
    outputs = records(job, data, checkpoints)
    logits = [outputs.read(name, 0) for name in spec.members]
    features = np.zeros((len(outputs.ids(np.arange(outputs.count))), 4), np.float32)
    features += np.arange(len(features), dtype=np.float32)[:, None]
    heads = [Headed(features, torch.randn(10, 4), torch.randn(10)) for _ in range(2)]
    together_of = [*heads, logits[0]]
    moved, whole_NW = together.side_by_side(job.outputs.store / "together-x.rows", together_of)
    assert whole_NW.shape == (len(features), 4 * 4 + 10 * 4)
    assert moved[0].features_ND is moved[1].features_ND
    for ours, theirs in zip(moved, together_of, strict=True):
        np.testing.assert_array_equal(ours[3:9], theirs[3:9])
