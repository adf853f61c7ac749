"""One's own table: what it may look like, and every mistake with its row."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from agrekd_ray.data import DFR, SELECT, TEST, TRAIN
from agrekd_ray.data.image_table import ImageTable
from agrekd_ray.data.images import PictureDataset
from agrekd_ray.data.names import quoted
from agrekd_ray.data.table import Table
from agrekd_ray.errors import DataError
from tests import pictures


def opened(path: Path, **settings: Any) -> PictureDataset:
    values = pictures.small("table", path.parent / "prepared", table=path, **settings)
    return ImageTable.model_validate(values).open()


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return pictures.table(tmp_path / "own") / "table.csv"


def parquet(folder: Path, style: str, rows: slice = slice(None), **options: Any) -> Path:
    """The pictures inside a Parquet file: `bytes`, or `{bytes, path}`; labels are numbers."""
    places = pictures.spread()
    numbers = range(len(places))[rows]
    content = [pictures.picture(number, *places[number][:2]) for number in numbers]
    cells = (
        content
        if style == "bytes"
        else [{"bytes": c, "path": f"{n}.jpg"} for n, c in zip(numbers, content, strict=True)]
    )
    table = pa.table(
        {
            "image": cells,
            "label": [places[number][0] for number in numbers],
            "split": [pictures.SPLITS[places[number][2]] for number in numbers],
            "sky": [float(places[number][1]) for number in numbers],
        }
    )
    folder.mkdir(exist_ok=True)
    path = folder / f"part-{rows.start or 0:03}.parquet"
    pq.write_table(table, path, **options)
    return path


def test_a_table_without_groups(csv: Path) -> None:
    data = opened(csv)
    assert data.classes == ("cat", "dog")
    assert not data.groups.known
    assert data.groups.names == data.classes
    labels, _, split = np.array(pictures.spread()).T
    assert data.groups.group_N.tolist() == labels.tolist()
    assert data.labels(np.arange(data.size)).tolist() == labels.tolist()
    assert data.splits[TRAIN].tolist() == np.flatnonzero(split == 0).tolist()


def test_group_columns_are_combined(tmp_path: Path) -> None:
    csv = pictures.table(tmp_path / "own", groups=True) / "table.csv"
    data = opened(csv, columns={"groups": ["sky"]})
    assert data.groups.known
    assert data.groups.names == ("cat, clear", "cat, grey", "dog, clear", "dog, grey")
    two = opened(csv, columns={"groups": ["sky", "split"]})
    assert len(two.groups.attributes) == 6
    assert two.groups.attributes[0] == "clear, test"


@pytest.mark.parametrize("style", ["bytes", "struct"])
def test_pictures_inside_parquet_are_the_same_as_files(
    tmp_path: Path, csv: Path, style: str
) -> None:
    path = parquet(tmp_path / "inside", style, row_group_size=7)
    data = opened(path, columns={"image": "image", "groups": ["sky"]}, classes=["cat", "dog"])
    files = opened(csv)
    ids = np.arange(data.size)
    assert torch.equal(data.inputs(ids, None), files.inputs(ids, None))
    assert torch.equal(data.labels(ids), files.labels(ids))
    assert data.groups.names == ("cat, sky=0", "cat, sky=1", "dog, sky=0", "dog, sky=1")


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    whole = opened(parquet(tmp_path / "one", "bytes"), columns={"image": "image"})
    for rows in (slice(0, 20), slice(20, None)):
        parquet(tmp_path / "two", "bytes", rows)
    parts = opened(tmp_path / "two", columns={"image": "image"})
    assert parts.fingerprint == whole.fingerprint
    assert parts.size == 52
    table = Table(tmp_path / "two", ["label"])
    assert table.where(19) == "part-000.parquet, row 20"
    assert table.where(20) == "part-020.parquet, row 1"


def test_without_a_split_it_is_drawn_evenly_and_by_the_seed(tmp_path: Path) -> None:
    csv = pictures.table(tmp_path / "own", groups=True) / "table.csv"
    lines = [line.split(",") for line in csv.read_text().splitlines()]
    csv.write_text("\n".join(",".join([p, y, s]) for p, y, _, s in lines))
    settings = {"columns": {"groups": ["sky"]}, "shares": {"train": 0.5, "val": 0.25}}
    data = opened(csv, **settings)
    for name, share in ((TRAIN, 0.5), (TEST, 0.25)):
        counts = np.bincount(data.groups.group_N[data.splits[name]])
        assert (abs(counts - share * 13) <= 1).all()
    assert len(data.splits[DFR]) + len(data.splits[SELECT]) + len(data.splits[TEST]) < 30
    assert opened(csv, **settings).fingerprint == data.fingerprint
    assert opened(csv, **settings, seed=1).splits[TRAIN].tolist() != data.splits[TRAIN].tolist()


def test_names_of_splits_and_classes_can_be_given(csv: Path) -> None:
    text = csv.read_text().replace(",val", ",1").replace(",train", ",0").replace(",test", ",2")
    csv.write_text(text.replace("dog", "1").replace("cat", "0"))
    numbered = opened(csv, splits={"train": "0", "val": "1", "test": "2"})
    assert numbered.classes == ("0", "1")
    names = {"train": "0", "val": "1", "test": "2"}
    named = opened(csv, splits=names, classes=["cat", "dog"])
    assert named.classes == ("cat", "dog")
    assert torch.equal(named.labels(np.arange(52)), numbered.labels(np.arange(52)))


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    csv = pictures.table(tmp_path / "own") / "table.csv"
    csv.write_text(csv.read_text().replace("dog", "2").replace("cat", "10"))
    assert opened(csv).classes == ("2", "10")


def test_quoted_cells_may_have_commas_lines_and_a_mark_in_front(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffa,b\r\n"x, ""y""\nz",1\r\n\r\nä,2\r\n'.encode())
    table = Table(path, ["a", "b"])
    assert table.unique("a") == ['x, "y"\nz', "ä"]
    assert table.unique("b") == ["1", "2"]


def test_whole_numbers_of_parquet_are_without_a_point(tmp_path: Path) -> None:
    pq.write_table(
        pa.table(
            {"a": [1.0, 2.5], "b": [True, False], "c": pa.array(["x", "y"]).dictionary_encode()}
        ),
        tmp_path / "t.parquet",
    )
    table = Table(tmp_path / "t.parquet", ["a", "b", "c"])
    assert [table.unique(name) for name in "abc"] == [["1", "2.5"], ["true", "false"], ["x", "y"]]


Spoil = Callable[[Path], object]


def _line(row: int, new: str | None) -> Spoil:
    """Replace the line of a row, or take it out."""

    def spoil(path: Path) -> None:
        lines = path.read_text().splitlines()
        lines[row : row + 1] = [] if new is None else [new]
        path.write_text("\n".join(lines) + "\n")

    return spoil


def _bytes(row: int, content: bytes) -> Spoil:
    def spoil(path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        lines[row] = content
        path.write_bytes(b"\n".join(lines))

    return spoil


MISTAKES: dict[str, tuple[Spoil, dict[str, Any], str]] = {
    "missing file": (_line(3, "gone.jpg,cat,train"), {}, r"table.csv, row 3: no file .*gone.jpg"),
    "unknown split": (
        _line(4, "3.jpg,cat,vall"),
        {},
        r"row 4: split is 'vall', none of .*\('train', 'val', 'test'\)\. Did you mean 'val'\?",
    ),
    "label outside": (
        _line(5, "4.jpg,dgo,train"),
        {"classes": ["cat", "dog"]},
        r"row 5: label is 'dgo', none of the classes.*Did you mean 'dog'\?",
    ),
    "number outside": (
        lambda path: path.write_text(path.read_text().replace("cat", "0").replace("dog", "2")),
        {"classes": ["cat", "dog"]},
        r"label is '2', none of the classes that data.classes names \('0', '1'\)",
    ),
    "duplicate path": (
        _line(6, "1.jpg,cat,train"),
        {},
        r"row 6: path '1.jpg' is in table.csv, row 2 already",
    ),
    "duplicate path, spelt differently": (
        _line(6, "./1.jpg,cat,train"),
        {},
        r"row 6: './1.jpg' is the file of table.csv, row 2 already",
    ),
    "non-UTF-8": (
        _bytes(7, b"\xff\xfe.jpg,cat,train"),
        {},
        r"row 7: path is no UTF-8 text",
    ),
    "non-UTF-8 header": (_bytes(0, b"path,label,spl\xff"), {}, "header is no UTF-8 text"),
    "empty label": (_line(8, "7.jpg,,train"), {}, r"row 8: label is empty"),
    "too many values": (_line(9, "8.jpg,cat,train,more"), {}, r"row 9: 4 values, .* names 3"),
    "too few values": (_line(9, "8.jpg,cat"), {}, r"row 9: 2 values"),
    "missing column": (
        _line(0, "path,lable,split"),
        {},
        r"no column 'label'; there are 'path', 'lable', 'split'\. Did you mean 'lable'\?",
    ),
    "missing group column": (
        lambda path: None,
        {"columns": {"groups": ["sky"]}},
        "no column 'sky'",
    ),
    "missing split column": (lambda path: None, {"columns": {"split": "part"}}, "no column 'part'"),
    "column twice": (_line(0, "path,label,label"), {}, "2 columns are called 'label'"),
    "empty split": (
        lambda path: path.write_text(path.read_text().replace(",test", ",train")),
        {},
        "the test split is empty",
    ),
    "validation too small": (
        lambda path: path.write_text(
            "path,label,split\n0.jpg,cat,train\n1.jpg,dog,train\n2.jpg,cat,val\n3.jpg,cat,test\n"
        ),
        {},
        "the val split needs two samples at least",
    ),
    "one class": (
        lambda path: path.write_text(path.read_text().replace("dog", "cat")),
        {},
        "label is 'cat' in every row; two classes at least",
    ),
    "class without training": (
        lambda path: path.write_text(path.read_text().replace(",dog,train", ",cat,train")),
        {},
        "no training sample of class 'dog'",
    ),
    "no rows": (
        lambda path: path.write_text("path,label,split\n"),
        {},
        "no row besides the header",
    ),
    "empty": (lambda path: path.write_text(""), {}, "cannot be read as a table"),
    "no such folder": (lambda path: None, {"images": "/nowhere"}, "data.images: no folder"),
    "a picture as path": (
        _line(1, "own,cat,train"),
        {},
        r"row 1: no file",
    ),
}


@pytest.mark.parametrize(
    ("told", "there"),
    [
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("A/1.jpg", "a/1.jpg"),
        ("1\xa02.jpg", "1 2.jpg"),
        ("1.jpg ", "1.jpg"),
        ("f\u00fcr/1.jpg", "fu\u0308r/1.jpg"),
    ],
)
def test_a_file_whose_path_looks_the_same_is_named(csv: Path, told: str, there: str) -> None:
    target = csv.parent / there
    target.parent.mkdir(exist_ok=True)
    (csv.parent / "7.jpg").rename(target)
    if there != "1.jpg":
        csv.write_text(csv.read_text().replace("7.jpg,", f"{told},", 1))
        words = f"row 8: no file {quoted(str(csv.parent / told))}, but {quoted(str(target))}."
    else:  # which another row has already
        csv.write_text(csv.read_text().replace("\n7.jpg,", f"\n{told},", 1))
        words = "row 8: path is '1.jpg ', and '1.jpg' in table.csv, row 2: they differ only in"
    with pytest.raises(DataError, match=re.escape(words)):
        opened(csv)


def test_paths_that_differ_in_case_are_two_files(csv: Path) -> None:
    (csv.parent / "7.jpg").rename(csv.parent / "1.JPG")
    csv.write_text(csv.read_text().replace("\n7.jpg,", "\n1.JPG,", 1))
    assert opened(csv).size == 52


@pytest.mark.parametrize("how", MISTAKES)
def test_a_mistake_is_one_clear_error(csv: Path, how: str) -> None:
    spoil, settings, words = MISTAKES[how]
    spoil(csv)
    with pytest.raises(DataError, match=words) as caught:
        opened(csv, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tabel.csv", "no such table; did you mean 'table.csv'"),
        ("x" * 300, "no such table"),
        ("0.jpg", "a table is a .csv or a .parquet file"),
        ("", "holds no .parquet file"),
    ],
)
def test_no_table(csv: Path, name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        opened(csv.parent / name)


def test_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as a table"):
        opened(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "broken image"),
        (b"<html>404</html>", "it would be JPEG, PNG"),
        (pictures.picture(0, 0, 0, encoding="TGA"), "it would be JPEG, PNG"),
        (pictures.picture(0, 0, 0)[:300], "broken image"),
    ],
)
def test_a_broken_image_has_its_row(csv: Path, content: bytes, words: str) -> None:
    (csv.parent / "11.jpg").write_bytes(content)
    data = opened(csv)  # opening does not decode
    with pytest.raises(DataError, match=rf"table.csv, row 12: .*{words}"):
        data.inputs(np.array([0]), None)


def test_a_broken_image_inside_parquet_has_its_row(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p", "bytes")
    table = pq.read_table(path).to_pydict()
    table["image"][4], table["image"][9] = b"nothing", None
    pq.write_table(pa.table(table), path)
    data = opened(path, columns={"image": "image"})
    with pytest.raises(DataError, match=r"row 5: broken.*row 10: broken image \(the cell is empty"):
        data.prepare()


def cells(folder: Path, kept: Callable[[int], tuple[bool, str | None]], **options: Any) -> Path:
    """Cells as Hugging Face writes them: whether the picture is inside, and the path."""
    places = pictures.spread()
    pictures.table(folder)
    images = []
    for number, place in enumerate(places):
        inside, path = kept(number)
        content = pictures.picture(number, *place[:2]) if inside else None
        images.append({"bytes": content, "path": path} if inside or path else None)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "image": pa.array(images, kind),
        "label": [("cat", "dog")[label] for label, _, _ in places],
        "split": [pictures.SPLITS[split] for _, _, split in places],
    }
    path = folder / "t.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=10, **options)
    return path


IN_CELLS: dict[str, Callable[[Path, int], tuple[bool, str | None]]] = {
    "relative": lambda folder, number: (False, f"{number}.jpg"),
    "absolute": lambda folder, number: (False, str(folder / f"{number}.jpg")),
    "some inside": lambda folder, number: (number % 3 > 0, f"{number}.jpg"),
    "the first group inside": lambda folder, number: (number < 10, f"{number}.jpg"),
    "inside, with paths of another machine": lambda folder, number: (True, f"/there/{number}.jpg"),
    "inside, without paths": lambda folder, number: (True, None),
}


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("how", IN_CELLS)
def test_cells_that_name_a_file_are_that_file(tmp_path: Path, how: str, statistics: bool) -> None:
    folder = tmp_path / "own"
    table = cells(folder, lambda n: IN_CELLS[how](folder, n), write_statistics=statistics)
    data, files = opened(table, columns={"image": "image"}), opened(folder / "table.csv")
    ids = np.arange(data.size)
    assert torch.equal(data.inputs(ids, None), files.inputs(ids, None))
    assert data.fingerprint == files.fingerprint


def test_paths_in_cells_are_relative_to_the_folder_of_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    table = cells(folder, lambda n: (False, f"{n}.jpg"))
    table = table.rename(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t.parquet, row 1: no file .*and 42 more \(52 in all"):
        opened(table, columns={"image": "image"})
    data = opened(table, columns={"image": "image"}, images=folder)
    data.prepare()
    place = data.rows.place
    (folder / "7.jpg").write_bytes(pictures.picture(99, 0, 0))
    assert opened(table, columns={"image": "image"}, images=folder).rows.place != place


def test_what_is_wrong_with_a_cell_that_names_a_file_has_its_row(tmp_path: Path) -> None:
    twice = cells(tmp_path / "a", lambda n: (False, f"{n % 51}.jpg"))
    with pytest.raises(DataError, match=r"row 52: '0.jpg' is the file of t.parquet, row 1 already"):
        opened(twice, columns={"image": "image"})
    table = cells(tmp_path / "own", lambda n: (n % 2 > 0, f"{n}.jpg"))
    assert opened(table, columns={"image": "image"}).size == 52
    (tmp_path / "own" / "8.jpg").unlink()
    with pytest.raises(DataError, match=r"t.parquet, row 9: no file .*8.jpg'\.$"):
        opened(table, columns={"image": "image"})
    nothing = cells(tmp_path / "b", lambda n: (n != 6, None))
    with pytest.raises(DataError, match=r"row 7: broken image \(the cell is empty"):
        opened(nothing, columns={"image": "image"}).prepare()


@pytest.mark.parametrize("content", [b"pics/0.png", b"version https://git-lfs.github.com/spec/v1"])
def test_text_where_a_picture_should_be_is_quoted(csv: Path, content: bytes) -> None:
    (csv.parent / "3.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"row 4: .*begins with the text '{content.decode()}'"):
        opened(csv).prepare()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_kind_become_rgb(csv: Path, mode: str) -> None:
    from PIL import Image

    file = io.BytesIO()
    kind = "JPEG" if mode == "CMYK" else "PNG"
    Image.new(mode, (30, 20)).save(file, kind)
    (csv.parent / "3.jpg").write_bytes(file.getvalue())
    assert opened(csv).inputs(np.array([3]), None).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"decoding": 3}, "less than or equal to 2"),
        ({"decoding": True}, "a number, not true"),
        ({"size": 11}, "smaller than what models see"),
        ({"classes": ["cat"]}, "two different classes"),
        ({"classes": ["cat", "cat"]}, "two different classes"),
        ({"splits": {"val": "train"}}, "cannot have the same name"),
        ({"shares": {"train": 0.9, "val": 0.1}}, "leave nothing for the test split"),
        ({"views": {"crop": {"scale": [1, 0.5]}}}, "the smaller one first"),
    ],
)
def test_settings_that_contradict_each_other(csv: Path, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        opened(csv, **values)


def test_settings_survive_json(csv: Path) -> None:
    settings = opened(csv, views={"crop": {"scale": [0.5, 1]}}).settings
    assert ImageTable.model_validate(json.loads(settings.model_dump_json())) == settings
