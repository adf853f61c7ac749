"""Forms of recorded logits: what a row keeps, what rounding costs, and that NaN stays NaN."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from agrekd_ray.config import check_job
from agrekd_ray.errors import RunError
from agrekd_ray.logits import Form, read_record, write_record
from agrekd_ray.logits.forms import Dtype
from agrekd_ray.training import Column
from agrekd_ray.training import loader as loading

from .test_logits import KEY, some_logits

FORMS = [(dtype, k) for dtype in ("float32", "float16", "int8") for k in (None, 1, 3)]
EPS = {"float32": 0.0, "float16": 2**-11, "int8": 2**-22}
"""Relative to the largest logit of a row."""
CLASSES = 24


def rows(most: float = 60000.0) -> Any:
    """Logits [B, C], among them rows of one number."""
    numbers = st.floats(-most, most, width=32)
    shape = st.tuples(st.integers(1, 5), st.just(CLASSES))
    return npst.arrays(np.float32, shape, elements=numbers)


@pytest.mark.parametrize(("dtype", "top_k"), FORMS)
@given(logits_BC=rows())
def test_what_is_kept_is_near_and_in_order(
    dtype: Dtype, top_k: int | None, logits_BC: np.ndarray
) -> None:
    form = Form(dtype, top_k, CLASSES)
    stored = form.encode(logits_BC)
    assert stored.nbytes == len(logits_BC) * form.row_bytes
    read_BC = form.decode(stored).astype(np.float32)
    for given_C, read_C in zip(logits_BC, read_BC, strict=True):
        order = np.lexsort((read_C, given_C))  # which of equals is kept is open
        assert (np.diff(read_C[order]) >= 0).all()
        kept = order[-(top_k or CLASSES) :]
        step = np.ptp(given_C[kept]) / 255 if dtype == "int8" else 0.0
        bound = 0.5001 * step + EPS[dtype] * np.abs(given_C).max() + 1e-7
        assert np.abs(np.sort(read_C)[-len(kept) :] - given_C[kept]).max() <= bound


@pytest.mark.parametrize("top_k", [1, 3, 10])
@given(logits_BC=rows(30))
def test_the_rest_keeps_its_probability(top_k: int, logits_BC: np.ndarray) -> None:
    read_BC = Form("float32", top_k, CLASSES).decode(
        Form("float32", top_k, CLASSES).encode(logits_BC)
    )
    for given_C, read_C in zip(logits_BC, read_BC, strict=True):
        rest = [np.sort(z)[:-top_k] for z in (given_C.astype(float), read_C.astype(float))]
        mass = [np.logaddexp.reduce(each) for each in rest]
        assert mass[1] == pytest.approx(mass[0], abs=1e-4)
        assert len(np.unique(rest[1])) == 1


@pytest.mark.parametrize(("dtype", "top_k"), FORMS)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_stays_so_and_alone(
    dtype: Dtype, top_k: int | None, broken: float
) -> None:
    logits_BC = np.random.default_rng(0).normal(size=(6, CLASSES)).astype(np.float32)
    form = Form(dtype, top_k, CLASSES)
    whole_BC = form.decode(form.encode(logits_BC))
    logits_BC[2, 5] = broken
    read_BC = form.decode(form.encode(logits_BC))
    assert (~np.isfinite(read_BC)).any(1).tolist() == [False, False, True, False, False, False]
    np.testing.assert_array_equal(np.delete(read_BC, 2, 0), np.delete(whole_BC, 2, 0))


@pytest.mark.parametrize(("dtype", "top_k"), FORMS)
def test_a_row_of_one_number_is_kept(dtype: Dtype, top_k: int | None) -> None:
    for number in (0.0, -7.5, 1000.0, 1e-40):
        form = Form(dtype, top_k, CLASSES)
        read_BC = form.decode(form.encode(np.full((2, CLASSES), number, np.float32)))
        np.testing.assert_allclose(read_BC, number, rtol=1e-3, atol=1e-6)


def test_bytes_of_a_row() -> None:
    sizes = [Form(*about, 1000).row_bytes for about in (("float32", None), ("float16", None))]
    assert sizes == [4000, 2000]
    assert Form("int8", None, 1000).row_bytes == 1008
    assert Form("float16", 16, 1000).row_bytes == 4 + 16 * (2 + 2)
    assert Form("int8", 16, 100).row_bytes == 4 + 8 + 16 * (1 + 1)
    assert Form("float32", 16, 100_000).row_bytes == 4 + 16 * (4 + 4)


@pytest.mark.parametrize(
    ("dtype", "top_k", "says"),
    [
        ("float32", 0, "between 1 and 9"),
        ("float32", 10, "between 1 and 9, of 10 classes"),
        ("float32", 8, "takes 44 bytes a sample, and all 10 classes take 40 in float32"),
        ("int8", 3, "takes 18 bytes a sample, and all 10 classes take 18 in int8"),
    ],
)
def test_a_form_that_spares_nothing_is_refused(dtype: Dtype, top_k: int, says: str) -> None:
    with pytest.raises(RunError, match=says):
        Form(dtype, top_k, 10)


@pytest.mark.parametrize(
    ("outputs", "key", "says"),
    [
        ({"top_k": 0}, "outputs.top_k", "1"),
        ({"top_k": 10}, "outputs.top_k", "must lie between 1 and 9, of 10 classes"),
        ({"top_k": 3, "dtype": "int8"}, "outputs.top_k", "keep fewer, or set it to null"),
        ({"dtype": "int4"}, "outputs.dtype", "int8"),
        ({"top_k": "few"}, "outputs.top_k", ""),
    ],
)
def test_a_job_with_such_a_form_is_at_fault(
    make_job: Any, outputs: dict[str, Any], key: str, says: str
) -> None:
    raw = make_job().model_dump(mode="json")
    raw["outputs"] |= outputs
    job, faults = check_job(raw)
    assert job is None
    assert [fault.key for fault in faults] == [key]
    assert says in faults[0].problem


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_column_of_packed_rows_gives_logits(
    monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    """From what is put together in memory, and from the rows of a batch alone."""
    rng = np.random.default_rng(0)
    form = Form("int8", 3, CLASSES)
    given = [rng.normal(size=(40, CLASSES)).astype(np.float32) for _ in range(3)]
    records = [form.opened(form.encode(logits_NC)) for logits_NC in given]
    expected = np.stack([form.decode(form.encode(logits_NC)) for logits_NC in given], 1)
    column = Column(*records, stacked=True)
    assert (column.nbytes, column.row_shape) == (3 * 40 * CLASSES * 4, (3, CLASSES))
    monkeypatch.setattr(loading, "IN_MEMORY", column.nbytes - (not in_memory))
    column.put_together()
    assert (column._whole is not None) is in_memory
    ids = np.array([7, 39, 0, 7])
    torch.testing.assert_close(column.gathered(ids), torch.tensor(expected[ids]), rtol=0, atol=0)
    for part in (slice(10, 20), slice(35, 60)):
        assert column.read(part).numpy().tolist() == expected[part].tolist()


def test_a_packed_record_is_an_ordinary_arrow_file_of_bytes_and_travels(tmp_path: Path) -> None:
    key = replace(KEY, dtype="float16", top_k=4)
    write_record(tmp_path / "one.arrow", key, some_logits())
    table = pa.ipc.open_file(tmp_path / "one.arrow").read_all()
    stored = key.form.encode(some_logits())
    assert table["logits"][7].as_py() == stored[7].tolist()
    read = read_record(tmp_path / "one.arrow", key)
    assert read is not None
    there = pickle.loads(pickle.dumps(read, protocol=5))
    np.testing.assert_array_equal(there[:], key.form.decode(stored))
