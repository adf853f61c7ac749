"""CelebA: blond hair, where hair colour tells men from women (Liu et al., ICCV 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from agrekd_ray.data.dataset import TRAIN, Groups
from agrekd_ray.data.images import PictureDataset
from agrekd_ray.data.names import quoted
from agrekd_ray.data.pictures import FolderPictures
from agrekd_ray.data.published import Counts, Published, check_counts, require
from agrekd_ray.data.splits import four_splits
from agrekd_ray.data.table import Table
from agrekd_ray.data.waterbirds import three_splits
from agrekd_ray.errors import DataError
from agrekd_ray.files import is_file

CLASSES, SEXES = ("not blond", "blond"), ("female", "male")
LABEL, ATTRIBUTE = "Blond_Hair", "Male"
COUNTS: Counts = {
    TRAIN: {
        "not blond, female": 71629,
        "not blond, male": 66874,
        "blond, female": 22880,
        "blond, male": 1387,
    }
}
"""As published by Sagawa et al., ICLR 2020."""
PICTURES = "img_align_celeba"
ORIGIN = (
    "CelebA is published by its makers (Liu et al., 'Deep Learning Face Attributes in the Wild', "
    "ICCV 2015; Multimedia Laboratory, The Chinese University of Hong Kong): take the aligned and "
    "cropped pictures, the attributes and the evaluation partition."
)
PICTURE, PARTITION = "image_id", "partition"
"""Columns of the makers' lists as CSV."""


class CelebA(Published):
    """CelebA in any of its three layouts, found out from what the folder holds.

    The layouts are the makers' own (`list_attr_celeba.txt` and `list_eval_partition.txt`), the
    same as CSV (`list_attr_celeba.csv` and `list_eval_partition.csv`), and one table made for
    group robustness (`celeba_metadata.csv`, `metadata_celeba.csv` or `metadata.csv`), which names
    the picture (img_filename, filename or image_id), y (blond), split, and place or a (male).
    The pictures are in `img_align_celeba/`.

    Attributes:
        name: `celeba`.
    """

    published: ClassVar[Counts] = COUNTS
    name: Literal["celeba"]


@dataclass(frozen=True)
class _Faces:
    """What a layout says of every picture.

    Attributes:
        table: a row a picture.
        names: of the pictures' files.
        labels_N: whether hair is blond.
        male_N: whether the picture is of a man.
        three: rows by split.
        splits_from: the file that says it.
    """

    table: Table
    names: list[str]
    labels_N: np.ndarray
    male_N: np.ndarray
    three: dict[str, np.ndarray]
    splits_from: str


def open_celeba(settings: CelebA) -> PictureDataset:
    """The data set in a folder.

    Raises:
        DataError: files are missing, damaged, contradict each other, or are not those that were
            published.
    """
    folder = settings.path
    faces = _layout(settings)
    require(folder, {PICTURES: "the folder of the aligned pictures"}, ORIGIN)
    groups = Groups.crossed(faces.labels_N, CLASSES, faces.male_N, SEXES)
    check_counts(faces.table.path, settings.counts, COUNTS, groups, faces.three)
    pictures = folder / PICTURES
    if (pictures / PICTURES).is_dir():  # as some archives unpack
        pictures /= PICTURES
    return PictureDataset(
        settings,
        FolderPictures(pictures, faces.names, faces.table.where),
        faces.table.where,
        CLASSES,
        faces.labels_N,
        groups,
        four_splits(faces.three, groups.group_N, settings.seed, str(faces.table.path)),
        f"the makers' split, in {faces.splits_from}",
    )


def _layout(settings: CelebA) -> _Faces:
    """What the first layout that is there says."""
    folder = settings.path
    for name in ("list_attr_celeba.txt", "list_attr_celeba.csv"):
        if is_file(folder / name):
            return _attributes(folder / name, settings.counts == "any")
    for name in ("celeba_metadata.csv", "metadata_celeba.csv", "metadata.csv"):
        if is_file(folder / name):
            return _metadata(folder / name)
    require(folder, {"list_attr_celeba.txt": "or list_attr_celeba.csv, or a metadata.csv"}, ORIGIN)
    raise DataError(f"{folder / 'list_attr_celeba.txt'}: is no file.")


def _attributes(path: Path, partly: bool) -> _Faces:
    """What the makers' two files say, as text or as CSV.

    Args:
        path: of the attributes.
        partly: whether the partition may have pictures that have no attributes.
    """
    parts = path.with_name(f"list_eval_partition{path.suffix}")
    require(path.parent, {parts.name: "the evaluation partition"}, ORIGIN)
    faces, split = [PICTURE, LABEL, ATTRIBUTE], [PICTURE, PARTITION]
    if path.suffix == ".txt":
        table = _attribute_text(path, faces)
        partition = Table.of_cells(parts, split, _cells(parts), split)
    else:
        table, partition = Table(path, faces), Table(parts, split)
    names, listed = table.unique(PICTURE), partition.unique(PICTURE)
    three = three_splits(partition, PARTITION)
    rows = {name: row for row, name in enumerate(names)}
    known = set(listed)
    for name, row in rows.items():
        if name not in known:
            raise _strangers(table.where(row), name, parts)
    if not partly:
        for row, name in enumerate(listed):
            if name not in rows:
                raise _strangers(partition.where(row), name, path)
    return _Faces(
        table,
        names,
        _yes_or_no(table, LABEL, CLASSES),
        _yes_or_no(table, ATTRIBUTE, SEXES),
        {
            split: np.sort([rows[listed[row]] for row in ids if listed[row] in rows]).astype(int)
            for split, ids in three.items()
        },
        parts.name,
    )


def _strangers(where: str, name: str, other: Path) -> DataError:
    return DataError(
        f"{where}: {quoted(name)} is not in {other.name}; the files do not belong together."
    )


def _yes_or_no(table: Table, column: str, meanings: tuple[str, str]) -> np.ndarray:
    """1 and 0 of a column that has 1 and -1, as the makers write it, or 1 and 0."""
    zero = "0" if "0" in table.values(column).names else "-1"
    return table.numbers(column, {zero: 0, "1": 1}, " and ".join(meanings))


def _attribute_text(path: Path, columns: Sequence[str]) -> Table:
    """The makers' list: how many pictures, the attributes' names, then a line a picture."""
    lines = _cells(path)
    count, header = [*lines, [], []][:2]
    rows = lines[2:]
    if count != [str(len(rows))]:
        raise DataError(
            f"{path}: the first line says {quoted(' '.join(count))} pictures, {len(rows):,} rows "
            "follow; copy or download it again."
        )
    return Table.of_cells(path, [PICTURE, *header], rows, columns)


def _metadata(path: Path) -> _Faces:
    spellings = (("img_filename", "filename", PICTURE), ("place", "a"))
    table = Table(path, ["y", "split"], [name for names in spellings for name in names])
    found = []
    for names in spellings:
        there = [name for name in names if name in table.names]
        if not there:
            raise DataError(
                f"{path}: no column {' or '.join(names)}; there are {', '.join(table.names)}."
            )
        found.append(there[0])
    return _Faces(
        table,
        table.unique(found[0]),
        _yes_or_no(table, "y", CLASSES),
        _yes_or_no(table, found[1], SEXES),
        three_splits(table, "split"),
        path.name,
    )


def _cells(path: Path) -> list[list[str]]:
    """The words of every line that has any."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: no UTF-8 text; copy or download it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
    return [cells for line in lines if (cells := line.split())]
