"""Pictures that are decoded when they are shown: the same values, and no copy of them on disk."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agrekd_ray.data import row_groups
from agrekd_ray.data.image_table import ImageTable
from agrekd_ray.data.waterbirds import Waterbirds
from agrekd_ray.errors import DataError
from agrekd_ray.training.loader import Loader, Request

from . import pictures

Make = Callable[..., Any]


@pytest.fixture(params=["folder", "Parquet", "Parquet with paths"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes settings of one data set, with these changes."""
    common = {
        "size": 8,
        "resize": 12,
        "prepared": tmp_path / "prepared",
        "views": {"flip": True, "shift": 1},
    }
    birds = pictures.waterbirds(tmp_path / "birds", pictures.spread((80, 8, 8)))
    if request.param == "folder":
        about = {**common, "name": "waterbirds", "path": birds, "counts": "any"}
        return lambda **changes: Waterbirds(**{**about, **changes})
    files = sorted(birds.rglob("*.jpg"))
    cells = [
        {"bytes": None, "path": str(path.relative_to(birds))}
        if request.param == "Parquet with paths" and number % 3
        else {"bytes": path.read_bytes(), "path": None}
        for number, path in enumerate(files)
    ]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    labels = [number % 2 for number in range(len(files))]
    table = pa.table({"image": pa.array(cells, kind), "label": labels})
    for part, first in enumerate(range(0, len(files), 200)):
        rows = table.slice(first, 200)
        pq.write_table(rows, birds / f"{part}.parquet", row_group_size=30)
    for other in birds.glob("*.csv"):
        other.unlink()
    about = {
        **common,
        "name": "table",
        "table": birds,
        "columns": {"image": "image", "label": "label"},
    }
    return lambda **changes: ImageTable(**{**about, **changes})


def test_values_and_fingerprint_are_those_of_kept_pictures(settings: Make, tmp_path: Path) -> None:
    read = settings(keep_decoded=False).open()
    assert read.unprepared() == read.size > 256
    read.prepare()
    assert not list(tmp_path.rglob("prepared/*/rows"))
    again = settings(keep_decoded=False).open()
    assert (again.unprepared(), again.rows.bytes) == (0, 0)
    kept = settings(prepared=tmp_path / "kept").open()
    kept.prepare()
    assert list(tmp_path.rglob("kept/*/rows"))
    assert again.fingerprint == kept.fingerprint
    assert again.remarks() == kept.remarks()
    ids = np.random.default_rng(0).permutation(kept.splits["train"])[:64]
    requests = [Request(part, epoch) for epoch in (0, 1, None) for part in np.split(ids, 4)]
    for one, other in zip(Loader(again)(requests), Loader(kept)(requests), strict=True):
        assert (one.inputs == other.inputs).all()
        assert (one.labels_B == other.labels_B).all()
    for epoch in (None, 0):
        assert (again.inputs(ids, epoch) == kept.inputs(ids, epoch)).all()
    squares = again.arrays(None)[0]
    assert squares is again.arrays(0)[0]
    assert (squares[5:70] == kept.rows.rows()[5:70]).all()
    assert squares[[]].shape == (0, 3, 12, 12)


def test_it_travels_to_another_process(settings: Make) -> None:
    read = settings(keep_decoded=False).open()
    shown = read.inputs(np.arange(40), None)
    there = pickle.loads(pickle.dumps(read))
    assert (there.inputs(np.arange(40), None) == shown).all()


def test_a_copy_that_is_there_is_read(settings: Make) -> None:
    settings().open().prepare()
    read = settings(keep_decoded=False).open()
    assert read.unprepared() == 0
    assert isinstance(read.arrays(None)[0], np.memmap)


def test_a_broken_picture_is_named_before_and_while_it_is_shown(
    settings: Make, tmp_path: Path
) -> None:
    files = sorted((tmp_path / "birds").rglob("*.jpg"))
    read = settings(keep_decoded=False).open()
    read.prepare()
    for path in files:
        path.write_bytes(path.read_bytes()[:200])
    if read._source.stamps:  # pictures that are files
        with pytest.raises(DataError, match=r"(row|line) \d+.*: broken image"):
            read.inputs(np.arange(read.size), None)
        with pytest.raises(DataError, match=r"broken image .* in all"):
            settings(keep_decoded=False).open().prepare()


@pytest.mark.parametrize("settings", ["Parquet"], indirect=True)
def test_row_groups_are_read_by_need_and_few_are_kept(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = settings(keep_decoded=False).open()
    read.prepare()
    squares, opened = read.arrays(None)[0], []
    original = row_groups.opened

    def counted(path: Path) -> Any:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(row_groups, "opened", counted)
    for _ in range(2):
        squares[[31, 3, 35, 200]]
    assert len(opened) == 3  # rows 0 … 29, 30 … 59, and the first of the second file
    monkeypatch.setattr(row_groups, "KEPT", 0)
    for _ in range(2):
        squares[[31, 3]]
    assert len(opened) == 3 + 3  # the last one stays
    monkeypatch.setattr(row_groups, "LARGEST", 100)
    with pytest.raises(DataError, match=r"row_group_size .* data\.keep_decoded=true"):
        squares[[0]]


@pytest.mark.parametrize("settings", ["folder"], indirect=True)
def test_a_disk_without_room_is_said_at_once(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = settings().open()
    usage = shutil.disk_usage("/")._replace(free=full.size * 3 * 12 * 12 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert any("data.keep_decoded: false" in remark for remark in full.remarks())
    monkeypatch.setattr(full, "making", None)
    with pytest.raises(DataError, match=r"0\.0 GB are free.*data\.keep_decoded=false"):
        full.prepare()
    read = settings(keep_decoded=False).open()
    read.prepare()
    assert not any("keep_decoded" in remark for remark in read.remarks())
