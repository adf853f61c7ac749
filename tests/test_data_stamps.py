"""Files of pictures: looked at once, by the driver, which hands on what it found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agrekd_ray import data as data_room
from agrekd_ray.cluster.nodes import DriverData
from agrekd_ray.data import open_dataset
from agrekd_ray.data.image_table import ImageTable
from agrekd_ray.data.prepared_samples import stamps_of
from agrekd_ray.data.waterbirds import Waterbirds
from agrekd_ray.errors import DataError

from . import pictures


@pytest.fixture(params=["folder", "paths in Parquet"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Of a data set of picture files."""
    small = {"size": 8, "resize": 8, "prepared": tmp_path / "prepared"}
    birds = pictures.waterbirds(tmp_path / "birds")
    if request.param == "folder":
        return Waterbirds(name="waterbirds", path=birds, counts="any", **small)
    names = sorted(str(path.relative_to(birds)) for path in birds.rglob("*.jpg"))
    cells = [{"bytes": None, "path": name} for name in names]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    labels = [n % 2 for n in range(len(names))]
    table = pa.table({"image": pa.array(cells, kind), "label": labels})
    pq.write_table(table, birds / "birds.parquet")
    columns = {"image": "image", "label": "label"}
    return ImageTable(name="table", table=birds / "birds.parquet", columns=columns, **small)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pictures whose file was looked at."""
    seen: list[str] = []
    stat = os.stat

    def noted(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if str(path).endswith(".jpg"):
            seen.append(str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", noted)
    return seen


def in_another_process() -> None:
    """What this process has opened is opened anew."""
    data_room._opened.cache_clear()


def remove_pictures(settings: Any) -> None:
    for path in (getattr(settings, "path", None) or settings.table.parent).rglob("*.jpg"):
        path.unlink()


def test_a_process_that_is_handed_the_stamp_looks_at_no_picture(
    settings: Any, looked_at: list[str]
) -> None:
    given = DriverData.of(settings)
    driver = open_dataset(settings)
    assert len(looked_at) == driver.size
    in_another_process()
    looked_at.clear()
    remove_pictures(settings)
    there = given.open()
    assert looked_at == []
    ids = there.splits["train"]
    assert (there.inputs(ids, None) == driver.inputs(ids, None)).all()


def test_the_driver_looks_again(settings: Any) -> None:
    first = stamps_of(open_dataset(settings))
    in_another_process()
    assert stamps_of(open_dataset(settings)) == first
    picture = next((getattr(settings, "path", None) or settings.table.parent).rglob("*.jpg"))
    picture.write_bytes(pictures.picture(99, 1, 1))
    in_another_process()
    again = stamps_of(open_dataset(settings))
    assert [files for files, _ in again] == [files for files, _ in first]
    assert again != first


def test_a_stamp_of_other_files_does_not_count(settings: Any) -> None:
    in_another_process()
    remove_pictures(settings)
    with pytest.raises(DataError, match=r"no file .* more \("):
        open_dataset(settings, (("of other files", "0" * 64),))


def test_a_node_without_the_prepared_samples_looks_at_its_own_files(
    settings: Any, ray_session: Any
) -> None:
    """Files of other times, as a copy has them, and then none."""
    given = DriverData.of(settings)
    prepared = settings.prepared
    prepared.rename(prepared.with_name("elsewhere"))
    for path in (getattr(settings, "path", None) or settings.table.parent).rglob("*.jpg"):
        os.utime(path, ns=(1, 1))
    in_another_process()
    ask = ray_session.remote(lambda: given.open().fingerprint)
    assert ray_session.get(ask.remote()) == given.fingerprint
    remove_pictures(settings)
    in_another_process()
    with pytest.raises(DataError, match="no file"):
        given.open()
