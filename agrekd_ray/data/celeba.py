"""CelebA: blond hair, where hair colour tells men from women (Liu et al., ICCV 2015)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from agrekd_ray.data.dataset import TEST, TRAIN, Groups
from agrekd_ray.data.images import PictureDataset
from agrekd_ray.data.pictures import FolderPictures, Where
from agrekd_ray.data.published import Counts, Published, check_counts, require
from agrekd_ray.data.splits import four_splits
from agrekd_ray.data.table import Table
from agrekd_ray.data.waterbirds import three_splits
from agrekd_ray.errors import DataError

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
_SIGNS, _BITS = {"-1": 0, "1": 1}, {"0": 0, "1": 1}


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
    """What a layout says of every picture."""

    source: Path
    names: list[str]
    labels_N: np.ndarray
    male_N: np.ndarray
    three: dict[str, np.ndarray]
    where: Where


def open_celeba(settings: CelebA) -> PictureDataset:
    """The data set in a folder.

    Raises:
        DataError: files are missing, damaged, contradict each other, or are not those that were
            published.
    """
    folder = settings.path
    faces = _layout(folder)
    require(folder, {PICTURES: "the folder of the aligned pictures"}, ORIGIN)
    groups = Groups.crossed(faces.labels_N, CLASSES, faces.male_N, SEXES)
    check_counts(faces.source, settings.counts, COUNTS, groups, faces.three)
    pictures = folder / PICTURES
    if (pictures / PICTURES).is_dir():  # as some archives unpack
        pictures /= PICTURES
    return PictureDataset(
        settings,
        FolderPictures(pictures, faces.names, faces.where),
        faces.where,
        CLASSES,
        faces.labels_N,
        groups,
        four_splits(faces.three, groups.group_N, settings.seed, str(faces.source)),
    )


def _layout(folder: Path) -> _Faces:
    """What the first layout that is there says."""
    layouts: dict[str, Callable[[Path], _Faces]] = {
        "list_attr_celeba.txt": _original,
        "list_attr_celeba.csv": _tables,
        "celeba_metadata.csv": _metadata,
        "metadata_celeba.csv": _metadata,
        "metadata.csv": _metadata,
    }
    for name, read in layouts.items():
        try:
            there = (folder / name).is_file()
        except OSError:
            there = False
        if there:
            return read(folder / name)
    require(folder, {"list_attr_celeba.txt": "or list_attr_celeba.csv, or a metadata.csv"}, ORIGIN)
    raise DataError(f"{folder / 'list_attr_celeba.txt'}: is no file.")


def _original(attributes: Path) -> _Faces:
    partition = attributes.with_name("list_eval_partition.txt")
    require(attributes.parent, {partition.name: "the evaluation partition"}, ORIGIN)
    lines = _lines(attributes)
    header = lines[1].split() if len(lines) > 1 else []
    for name in (LABEL, ATTRIBUTE):
        if name not in header:
            raise DataError(f"{attributes}: no attribute {name} in the second line.")
    names: list[str] = []
    values: list[list[int]] = []
    columns = [header.index(name) + 1 for name in (LABEL, ATTRIBUTE)]
    for number, line in enumerate(lines[2:], 1):
        cells = line.split()
        if len(cells) != len(header) + 1 or any(cells[c] not in _SIGNS for c in columns):
            raise DataError(
                f"{attributes.name}, row {number}: {len(cells)} values; a name and "
                f"{len(header)} times 1 or -1 were expected."
            )
        names.append(cells[0])
        values.append([_SIGNS[cells[c]] for c in columns])
    if not lines[0].strip().isdecimal() or int(lines[0]) != len(names):
        raise DataError(
            f"{attributes}: the first line says {lines[0].strip()!r} pictures, {len(names):,} rows "
            "follow; copy or download it again."
        )
    parts: dict[str, str] = {}
    for number, line in enumerate(_lines(partition), 1):
        cells = line.split()
        if len(cells) != 2 or cells[1] not in ("0", "1", "2"):
            raise DataError(f"{partition.name}, row {number}: no name followed by 0, 1 or 2.")
        parts[cells[0]] = cells[1]
    labels_N, male_N = np.array(values, dtype=np.int64).reshape(-1, 2).T
    three = _joined(names, parts, attributes, partition)
    return _Faces(
        attributes, names, labels_N, male_N, three, lambda row: f"{attributes.name}, row {row + 1}"
    )


def _tables(attributes: Path) -> _Faces:
    partition = attributes.with_name("list_eval_partition.csv")
    require(attributes.parent, {partition.name: "the evaluation partition"}, ORIGIN)
    table, other = (
        Table(attributes, ["image_id", LABEL, ATTRIBUTE]),
        Table(partition, ["image_id", "partition"]),
    )
    names = table.unique("image_id")
    split_N = other.numbers("partition", {"0": 0, "1": 1, "2": 2}, "train, val and test")
    parts = dict(zip(other.unique("image_id"), map(str, split_N.tolist()), strict=True))
    return _Faces(
        attributes,
        names,
        table.numbers(LABEL, _SIGNS | _BITS, "no and yes"),
        table.numbers(ATTRIBUTE, _SIGNS | _BITS, "no and yes"),
        _joined(names, parts, attributes, partition),
        table.where,
    )


def _metadata(path: Path) -> _Faces:
    spellings = (("img_filename", "filename", "image_id"), ("place", "a"))
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
        path,
        table.unique(found[0]),
        table.numbers("y", _BITS, "not blond and blond"),
        table.numbers(found[1], _BITS, "female and male"),
        three_splits(table, "split"),
        table.where,
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: no UTF-8 text; copy or download it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _joined(
    names: list[str], parts: dict[str, str], attributes: Path, partition: Path
) -> dict[str, np.ndarray]:
    """Rows by split; every picture must be in the partition."""
    for row, name in enumerate(names):
        if name not in parts:
            raise DataError(
                f"{attributes.name}, row {row + 1}: {name} is not in {partition.name}; the files "
                "do not belong together."
            )
    split_N = np.array([int(parts[name]) for name in names], dtype=np.int64)
    return {
        name: np.flatnonzero(split_N == number) for number, name in enumerate((TRAIN, "val", TEST))
    }
