"""Waterbirds and CelebA in every layout that is published, whole and spoilt."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agrekd_ray.data import DFR, SELECT, TEST, TRAIN
from agrekd_ray.data.celeba import COUNTS as FACES
from agrekd_ray.data.celeba import CelebA
from agrekd_ray.data.images import PictureDataset
from agrekd_ray.data.published import Published
from agrekd_ray.data.splits import halves
from agrekd_ray.data.waterbirds import COUNTS as BIRDS
from agrekd_ray.data.waterbirds import Waterbirds
from agrekd_ray.errors import DataError
from tests import pictures


def birds(folder: Path, **settings: Any) -> PictureDataset:
    values = pictures.small("waterbirds", folder.parent / "prepared", path=folder, **settings)
    return Waterbirds.model_validate(values).open()


def faces(folder: Path, **settings: Any) -> PictureDataset:
    values = pictures.small("celeba", folder.parent / "prepared", path=folder, **settings)
    return CelebA.model_validate(values).open()


def change(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def test_waterbirds_says_what_the_table_says(tmp_path: Path) -> None:
    places = pictures.spread()
    data = birds(pictures.waterbirds(tmp_path / "w", places))
    assert data.classes == ("landbird", "waterbird")
    assert data.groups.names == tuple(BIRDS[TRAIN])
    labels, attribute, split = np.array(places).T
    assert data.labels(np.arange(data.size)).tolist() == labels.tolist()
    assert data.groups.attribute_N.tolist() == attribute.tolist()
    assert data.groups.group_N.tolist() == (2 * labels + attribute).tolist()
    assert data.splits[TRAIN].tolist() == np.flatnonzero(split == 0).tolist()
    assert data.splits[TEST].tolist() == np.flatnonzero(split == 2).tolist()
    val = np.concatenate([data.splits[DFR], data.splits[SELECT]])
    assert sorted(val) == np.flatnonzero(split == 1).tolist()


def test_the_pictures_are_those_of_the_rows(tmp_path: Path) -> None:
    """Of waterbirds the upper half is bright, and land is red, water blue."""
    places = pictures.spread()
    data = birds(pictures.waterbirds(tmp_path / "w", places))
    images = data.inputs(np.arange(data.size), None)
    assert images.shape == (len(places), 3, 8, 8)
    assert images.dtype == torch.float32
    brighter = images[:, :, :3].mean((1, 2, 3)) > images[:, :, 5:].mean((1, 2, 3))
    bluer = images[:, 2].mean((1, 2)) > images[:, 0].mean((1, 2))
    assert brighter.long().tolist() == [label for label, _, _ in places]
    assert bluer.long().tolist() == [attribute for _, attribute, _ in places]


def test_every_layout_of_celeba_is_the_same_data(tmp_path: Path) -> None:
    places = pictures.spread()
    every = {
        name: faces(pictures.celeba(tmp_path / name, name, places)) for name in pictures.LAYOUTS
    }
    assert len({data.fingerprint for data in every.values()}) == 1
    data = every["txt"]
    assert data.groups.names == tuple(FACES[TRAIN])
    labels, attribute, split = np.array(places).T
    assert data.groups.group_N.tolist() == (2 * labels + attribute).tolist()
    assert data.splits[TRAIN].tolist() == np.flatnonzero(split == 0).tolist()


def test_halves_of_validation_are_even_in_every_group_and_follow_the_seed(tmp_path: Path) -> None:
    data = birds(pictures.waterbirds(tmp_path / "w", pictures.spread((4, 21, 2))))
    one, other = (np.bincount(data.groups.group_N[data.splits[s]]) for s in (DFR, SELECT))
    assert abs(one - other).max() <= 1
    assert abs(one.sum() - other.sum()) <= 1
    again = birds(tmp_path / "w")
    assert all((again.splits[name] == ids).all() for name, ids in data.splits.items())
    drawn_anew = birds(tmp_path / "w", seed=1)
    assert drawn_anew.splits[DFR].tolist() != data.splits[DFR].tolist()
    assert drawn_anew.splits[TEST].tolist() == data.splits[TEST].tolist()
    assert drawn_anew.fingerprint != data.fingerprint


def test_halves_of_anything() -> None:
    ids, strata = np.array([3, 5, 8, 13, 21]), np.array([0, 1, 1, 0, 2])
    one, other = halves(ids, strata, 0)
    assert sorted([*one, *other]) == ids.tolist()
    assert (len(one), len(other)) == (3, 2)


def test_published_counts_are_demanded(tmp_path: Path) -> None:
    folder = pictures.waterbirds(tmp_path / "w")
    with pytest.raises(DataError, match="landbird on land in train: 6 instead of 3,498") as caught:
        birds(folder, counts="published")
    assert "data.counts=any" in str(caught.value)
    with pytest.raises(DataError, match="blond, male in train: 6 instead of 1,387"):
        faces(pictures.celeba(tmp_path / "c", "csv"), counts="published")


@pytest.mark.parametrize(("kind", "counts"), [(Waterbirds, BIRDS), (CelebA, FACES)])
def test_the_published_counts_pass(kind: type[Published], counts: Any) -> None:
    from agrekd_ray.data import Groups

    sizes = list(counts[TRAIN].values())
    group_N = np.repeat(np.arange(4), sizes)
    groups = Groups(group_N % 2, ("a", "b"), group_N, tuple(counts[TRAIN]))
    ids = np.arange(len(group_N))
    settings = kind.model_validate({"name": kind.__name__.lower(), "path": "x"})
    splits = settings.checked_splits({TRAIN: ids, "val": ids, TEST: ids}, groups, Path("x"))
    assert splits[TRAIN] is ids
    with pytest.raises(DataError, match="instead of"):
        settings.checked_splits({TRAIN: ids[:-1], "val": ids, TEST: ids}, groups, Path("x"))


BIRD_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda f: shutil.rmtree(f), "lacks metadata.csv"),
    "no table": (lambda f: (f / "metadata.csv").unlink(), "Sagawa et al., ICLR 2020"),
    "no column": (
        lambda f: change(f / "metadata.csv", ",place,", ",places,"),
        "no column 'place'; there are 'img_id.*Did you mean 'places'",
    ),
    "another class": (
        lambda f: (f / "metadata.csv").write_text(
            "img_filename,y,split,place\n000.Bird/Bird_0000.jpg,2,0,0\n"
        ),
        "metadata.csv, row 1: y is '2', none of landbird and waterbird",
    ),
    "no picture": (
        lambda f: (f / "001.Bird/Bird_0004.jpg").unlink(),
        "metadata.csv, row 5: no file .*Bird_0004.jpg",
    ),
}


@pytest.mark.parametrize("how", BIRD_FAULTS)
def test_a_fault_of_waterbirds_is_one_clear_error(tmp_path: Path, how: str) -> None:
    folder = pictures.waterbirds(tmp_path / "w")
    spoil, words = BIRD_FAULTS[how]
    spoil(folder)
    with pytest.raises(DataError, match=words):
        birds(folder)


def test_many_missing_pictures_are_counted(tmp_path: Path) -> None:
    folder = pictures.waterbirds(tmp_path / "w")
    shutil.rmtree(folder / "001.Bird")
    with pytest.raises(
        DataError, match=r"row 2: no file.*row 29: no file.*and 7 more \(17 in all\)"
    ):
        birds(folder)


FACE_FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "nothing": ("txt", lambda f: (f / "list_attr_celeba.txt").unlink(), "lacks list_attr_celeba"),
    "no partition": (
        "txt",
        lambda f: (f / "list_eval_partition.txt").unlink(),
        "lacks list_eval_partition.txt",
    ),
    "no partition table": (
        "csv",
        lambda f: (f / "list_eval_partition.csv").unlink(),
        "lacks list_eval_partition.csv",
    ),
    "no pictures": (
        "dfr",
        lambda f: shutil.rmtree(f / "img_align_celeba"),
        "lacks img_align_celeba.*ICCV 2015",
    ),
    "a row too short": (
        "txt",
        lambda f: change(f / "list_attr_celeba.txt", "000003.jpg -1", "000003.jpg"),
        "list_attr_celeba.txt, row 3: 5 values",
    ),
    "another count": (
        "txt",
        lambda f: change(f / "list_attr_celeba.txt", "52", "53"),
        "says '53' pictures, 52 rows follow",
    ),
    "no attribute": (
        "txt",
        lambda f: change(f / "list_attr_celeba.txt", "Male", "Mail"),
        "no column 'Male'; there are .* Did you mean 'Mail'",
    ),
    "another partition": (
        "txt",
        lambda f: change(f / "list_eval_partition.txt", "000002.jpg", "900002.jpg"),
        "row 2: '000002.jpg' is not in list_eval_partition.txt",
    ),
    "a fourth split": (
        "txt",
        lambda f: (f / "list_eval_partition.txt").write_text("000001.jpg 3\n"),
        "list_eval_partition.txt, row 1: partition is '3', none of train, val and test",
    ),
    "no text": (
        "txt",
        lambda f: (f / "list_attr_celeba.txt").write_bytes(b"52\n\xff\xfe\n"),
        "no UTF-8 text",
    ),
    "no name of the picture": (
        "dfr",
        lambda f: change(f / "celeba_metadata.csv", "img_filename", "picture"),
        "no column img_filename or filename or image_id; there are",
    ),
    "twice": (
        "csv",
        lambda f: change(f / "list_attr_celeba.csv", "000002.jpg", "000001.jpg"),
        "row 2: image_id '000001.jpg' is in list_attr_celeba.csv, row 1 already",
    ),
}


@pytest.mark.parametrize("how", FACE_FAULTS)
def test_a_fault_of_celeba_is_one_clear_error(tmp_path: Path, how: str) -> None:
    layout, spoil, words = FACE_FAULTS[how]
    folder = pictures.celeba(tmp_path / "c", layout)
    spoil(folder)
    with pytest.raises(DataError, match=words):
        faces(folder)


def test_pictures_one_folder_deeper_are_found(tmp_path: Path) -> None:
    folder = pictures.celeba(tmp_path / "c", "txt")
    before = faces(folder).fingerprint
    (folder / "img_align_celeba").rename(folder / "deeper")
    (folder / "img_align_celeba").mkdir()
    (folder / "deeper").rename(folder / "img_align_celeba" / "img_align_celeba")
    assert faces(folder).fingerprint == before


LISTS = {
    "txt": ("list_attr_celeba.txt", "list_eval_partition.txt", " "),
    "csv": ("list_attr_celeba.csv", "list_eval_partition.csv", ","),
    "dfr": ("celeba_metadata.csv", "celeba_metadata.csv", ","),
    "subpop": ("metadata_celeba.csv", "metadata_celeba.csv", ","),
}
"""The files that say the attributes and the partition, and what is between their values."""


@pytest.mark.parametrize("layout", LISTS)
def test_a_picture_that_is_named_twice_is_refused_in_every_layout(
    tmp_path: Path, layout: str
) -> None:
    for number, name in enumerate(LISTS[layout][:2]):
        folder = pictures.celeba(tmp_path / str(number), layout)
        change(folder / name, "000007.jpg", "000004.jpg")
        with pytest.raises(DataError, match=rf"{name}, row 7: .*'000004.jpg' is in {name}, row 4"):
            faces(folder)


@pytest.mark.parametrize("layout", LISTS)
@pytest.mark.parametrize("zero", ["0", "-1"])
def test_no_is_0_or_minus_1_in_every_layout_but_not_both(
    tmp_path: Path, layout: str, zero: str
) -> None:
    """Both come up where two lists were put together; nobody can tell what they mean."""
    folder = pictures.celeba(tmp_path / "c", layout)
    wanted = faces(folder).groups.group_N.tolist()
    path, between = folder / LISTS[layout][0], LISTS[layout][2]
    lines = [
        line.split(None if between == " " else between) for line in path.read_text().splitlines()
    ]
    header = lines[1] if layout == "txt" else lines[0]
    first = 2 if layout == "txt" else 1
    shift = int(layout == "txt")  # the header does not name the pictures' column
    columns = [
        header.index(name) + shift
        for name in ({"Blond_Hair", "Male", "y", "place", "a"} & set(header))
    ]
    rows = lines[first:]
    for row in rows:
        for column in columns:
            row[column] = "1" if row[column] == "1" else zero

    def write() -> None:
        path.write_text("\n".join(between.join(line) for line in lines[:first] + rows) + "\n")

    write()
    assert faces(folder).groups.group_N.tolist() == wanted
    row = next(number for number, cells in enumerate(rows) if cells[columns[0]] == zero)
    rows[row][columns[0]] = "-1" if zero == "0" else "0"
    write()
    with pytest.raises(DataError, match=rf"{path.name}, row \d+: \w+ is '-1', none of"):
        faces(folder)


@pytest.mark.parametrize("layout", LISTS)
@pytest.mark.parametrize("value", ["3", "-1", "x", ""])
def test_another_split_is_refused_in_every_layout(tmp_path: Path, layout: str, value: str) -> None:
    folder = pictures.celeba(tmp_path / "c", layout)
    _, name, between = LISTS[layout]
    lines = (folder / name).read_text().splitlines()
    cells = lines[5].split(between)
    cells[lines[0].split(between).index("split") if layout in ("dfr", "subpop") else 1] = value
    lines[5] = between.join(cells)
    (folder / name).write_text("\n".join(lines) + "\n")
    row = 6 if layout == "txt" else 5
    words = "partition|split" if value or layout != "txt" else "1 values, not 2"
    with pytest.raises(DataError, match=rf"{name}, row {row}: ({words})"):
        faces(folder)


@pytest.mark.parametrize("layout", ["txt", "csv"])
def test_the_two_lists_have_the_same_pictures(tmp_path: Path, layout: str) -> None:
    folder = pictures.celeba(tmp_path / "c", layout)
    attributes, partition, between = LISTS[layout]
    with (folder / partition).open("a") as file:
        file.write(f"000999.jpg{between}0\n")
    with pytest.raises(
        DataError, match=rf"{partition}, row 53: '000999.jpg' is not in {attributes}"
    ):
        faces(folder, counts="published")
    assert faces(folder).size == 52  # a part of the data
    change(folder / partition, "000003.jpg", "900003.jpg")
    with pytest.raises(
        DataError, match=rf"{attributes}, row 3: '000003.jpg' is not in {partition}"
    ):
        faces(folder)


def test_blank_lines_and_marks_are_no_rows(tmp_path: Path) -> None:
    folder = pictures.celeba(tmp_path / "c", "txt")
    wanted = faces(folder).fingerprint
    for name in LISTS["txt"][:2]:
        text = (folder / name).read_text()
        (folder / name).write_text("\ufeff" + text.replace("\n", "\r\n") + "\r\n  \r\n")
    assert faces(folder).fingerprint == wanted
    assert faces(folder).splits_from == "the makers' split, in list_eval_partition.txt"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("000.Bird/Bird_0003.jpg", "001.Bird/../000.Bird/Bird_0000.jpg", "row 4: .* row 1 already"),
        ("000.Bird/Bird_0003.jpg", "000.Bird/Bird_0000.jpg", "row 4: .* row 1 already"),
        (",0,/o/", ",2,/o/", "place is '2', none of land and water"),
        (",0,/o/", ",,/o/", "place is empty"),
        (",0,/o/", ",0.5,/o/", "place is '0.5', none of"),
    ],
)
def test_what_else_can_be_wrong_with_waterbirds(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    folder = pictures.waterbirds(tmp_path / "w")
    change(folder / "metadata.csv", old, new)
    with pytest.raises(DataError, match=rf"metadata.csv, {words}" if "row" in words else words):
        birds(folder)


def test_numbers_of_splits_may_have_a_point(tmp_path: Path) -> None:
    """As pandas writes whole numbers of a column in which one was missing."""
    folder = pictures.waterbirds(tmp_path / "w")
    wanted = birds(folder).fingerprint
    lines = (folder / "metadata.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    split = rows[0].index("split")
    for row in rows[1:]:
        row[split] += ".0"
    (folder / "metadata.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    assert birds(folder).fingerprint == wanted
