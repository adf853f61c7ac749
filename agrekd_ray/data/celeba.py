"""CelebA: blond hair, where hair colour tells men from women (Liu et al., ICCV 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from agrekd_ray.data.dataset import TRAIN, Annotations, Groups
from agrekd_ray.data.images import PictureDataset
from agrekd_ray.data.names import quoted
from agrekd_ray.data.pictures import FolderPictures
from agrekd_ray.data.published import Counts, Published, require, three_splits
from agrekd_ray.data.table import Table
from agrekd_ray.errors import DataError
from agrekd_ray.files import is_file

CLASSES, SEXES = ("not blond", "blond"), ("female", "male")
LABEL, SEX = "Blond_Hair", "Male"
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

    def open(self) -> PictureDataset:
        """The data set in a folder.

        Raises:
            DataError: files are missing, damaged, contradict each other, or are not those that were
                published.
        """
        faces = self._faces()
        table = faces.table
        require(self.path, {PICTURES: "the folder of the aligned pictures"}, ORIGIN)
        labels_N = _yes_or_no(table, faces.label, CLASSES)
        groups = Groups.crossed(labels_N, CLASSES, _yes_or_no(table, faces.sex, SEXES), SEXES)
        splits = self.checked_splits(faces.three, groups, table.path)
        folder = self.path / PICTURES
        if (folder / PICTURES).is_dir():  # as some archives unpack
            folder /= PICTURES
        pictures = FolderPictures(folder, faces.names, table.where)
        source = f"the makers' split, in {faces.splits_from}"
        annotations = Annotations(CLASSES, labels_N, groups, splits, source)
        return PictureDataset(self, pictures, annotations)

    def _faces(self) -> _Faces:
        """What the first layout that is there says."""
        lists = "list_attr_celeba.txt", "list_attr_celeba.csv"
        tables = "celeba_metadata.csv", "metadata_celeba.csv", "metadata.csv"
        for name in (*lists, *tables):
            if is_file(path := self.path / name):
                return _of_lists(path, self.counts == "any") if name in lists else _of_table(path)
        require(self.path, {lists[0]: "or list_attr_celeba.csv, or a metadata.csv"}, ORIGIN)
        raise DataError(f"{self.path / lists[0]}: is no file.")


class _Faces(NamedTuple):
    """What a layout says of the pictures: a row of the table a picture."""

    table: Table
    names: list[str]
    """Of the pictures' files."""
    label: str
    """The column that says whether hair is blond."""
    sex: str
    """The column that says whether the picture is of a man."""
    three: dict[str, np.ndarray]
    """Rows by split."""
    splits_from: str
    """The file that says the splits."""


def _of_lists(path: Path, partly: bool) -> _Faces:
    """What the makers' two files say, as text or as CSV.

    Args:
        path: of the attributes.
        partly: whether the partition may have pictures that have no attributes.
    """
    parts = path.with_name(f"list_eval_partition{path.suffix}")
    require(path.parent, {parts.name: "the evaluation partition"}, ORIGIN)
    as_text = path.suffix == ".txt"
    split = [PICTURE, PARTITION]
    table = Table(path, [PICTURE, LABEL, SEX], cells=_attributes(path) if as_text else None)
    partition = Table(parts, split, cells=[split, *_cells(parts)] if as_text else None)
    names, parted = table.unique(PICTURE), partition.unique(PICTURE)
    three = three_splits(partition, PARTITION)
    row_of = {name: row for row, name in enumerate(names)}
    checks = [(table, names, set(parted), parts), (partition, parted, row_of, path)]
    for lines, pictures, known, other in checks[:1] if partly else checks:
        for row, name in enumerate(pictures):
            if name not in known:
                raise DataError(
                    f"{lines.where(row)}: {quoted(name)} is not in {other.name}; the files do not "
                    "belong together."
                )
    rows = {
        split: np.sort([row_of[parted[row]] for row in ids if parted[row] in row_of]).astype(int)
        for split, ids in three.items()
    }
    return _Faces(table, names, LABEL, SEX, rows, parts.name)


def _of_table(path: Path) -> _Faces:
    """What a table made for group robustness says."""
    spellings = (("img_filename", "filename", PICTURE), ("place", "a"))
    table = Table(path, ["y", "split"], lambda name: name in {*spellings[0], *spellings[1]})
    columns = []
    for names in spellings:
        present = [name for name in names if name in table.names]
        if not present:
            raise DataError(
                f"{path}: no column {' or '.join(names)}; there are {', '.join(table.names)}."
            )
        columns.append(present[0])
    picture, sex = columns
    three = three_splits(table, "split")
    return _Faces(table, table.unique(picture), "y", sex, three, path.name)


def _yes_or_no(table: Table, column: str, meanings: tuple[str, str]) -> np.ndarray:
    """1 and 0 of a column that has 1 and -1, as the makers write it, or 1 and 0."""
    zero = "0" if "0" in table.values(column).names else "-1"
    return table.numbers(column, {zero: 0, "1": 1}, " and ".join(meanings))


def _attributes(path: Path) -> list[list[str]]:
    """The makers' list: how many pictures, the attributes' names, then a line a picture."""
    lines = _cells(path)
    count, header = [*lines, [], []][:2]
    rows = lines[2:]
    if count != [str(len(rows))]:
        raise DataError(
            f"{path}: the first line says {quoted(' '.join(count))} pictures, {len(rows):,} rows "
            "follow; copy or download it again."
        )
    return [[PICTURE, *header], *rows]


def _cells(path: Path) -> list[list[str]]:
    """The words of every line that has any."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: no UTF-8 text; copy or download it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
    return [cells for line in lines if (cells := line.split())]
