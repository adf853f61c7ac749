"""What the rows of one's own table say of the samples: class, group and split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from agrekd_ray.data.dataset import TEST, TRAIN, Groups
from agrekd_ray.data.splits import by_shares, four_splits
from agrekd_ray.data.table import Table
from agrekd_ray.errors import DataError
from agrekd_ray.settings import LocalPath, Seed, Settings, Share

SPLIT = "split"
"""The column with the split where the settings name none, and the table has one."""


class Columns(Settings):
    """Columns of a table that all kinds of samples have.

    Attributes:
        label: the class, by name or number.
        groups: spurious attributes; what counts is their combination. None: no group labels.
        split: `train`, `val` or `test`; null takes the column `split` where there is one, and
            otherwise draws splits by `shares`.
    """

    label: str = "label"
    groups: tuple[str, ...] = ()
    split: str | None = None


class SplitNames(Settings):
    """How the table calls the splits.

    Attributes:
        train: the training split.
        val: the validation split.
        test: the test split.
    """

    train: str = "train"
    val: str = "val"
    test: str = "test"

    @field_validator("test")
    @classmethod
    def _three_names(cls, test: str, info: ValidationInfo) -> str:
        others = [info.data.get("train"), info.data.get("val")]
        if test in others or others[0] == others[1]:
            raise ValueError("two splits cannot have the same name")
        return test


class SplitShares(Settings):
    """How large drawn splits are; the test split gets the rest.

    Attributes:
        train: share of the training split.
        val: share of the validation split.
    """

    train: Annotated[Share, Field(gt=0)] = 0.7
    val: Annotated[Share, Field(gt=0)] = 0.15

    @field_validator("val")
    @classmethod
    def _something_for_test(cls, val: float, info: ValidationInfo) -> float:
        if val + info.data.get("train", 0) >= 1:
            raise ValueError("train and val leave nothing for the test split")
        return val


def _at_least_two(classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if classes is not None and (len(classes) < 2 or len(set(classes)) < len(classes)):
        raise ValueError("two different classes at least, none of them twice")
    return classes


class TableSettings(Settings):
    """A table of samples.

    Attributes:
        table: a CSV or Parquet file, or a folder of Parquet files.
        classes: names of the classes in the order of their numbers; labels are these names, or
            numbers from 0. Null takes what the table says, sorted.
        splits: how the table calls the splits.
        shares: of splits that are drawn, stratified by group, where the table has no split.
        seed: draws them, the halves of validation, and the views.
    """

    table: LocalPath
    classes: Annotated[tuple[str, ...] | None, AfterValidator(_at_least_two)] = None
    splits: SplitNames = SplitNames()
    shares: SplitShares = SplitShares()
    seed: Seed = 0


@dataclass(frozen=True)
class Rows:
    """What a table says of its samples, by row.

    Attributes:
        classes: names of the classes.
        labels_N: class of every row.
        groups: class x combination of the group columns, or unknown.
        splits: sorted rows by name of the split.
        drawn: whether the splits were drawn, for the table has none.
    """

    classes: tuple[str, ...]
    labels_N: np.ndarray
    groups: Groups
    splits: dict[str, np.ndarray]
    drawn: bool


def open_table(settings: TableSettings, columns: Columns, *further: str) -> Table:
    """The table with the columns that samples of all kinds have, and further ones.

    Raises:
        DataError: see `Table`.
    """
    needed = [columns.label, *columns.groups, *further]
    if columns.split is not None:
        needed.append(columns.split)
    return Table(settings.table, needed, [SPLIT])


def read_rows(table: Table, settings: TableSettings, columns: Columns) -> Rows:
    """Class, group and split of every row.

    Raises:
        DataError: a value that is none of those allowed, or missing, with its row; a split without
            a sample; fewer than two classes.
    """
    classes, labels_N = _labels(table, settings, columns.label)
    if columns.groups:
        attributes, attribute_N = _attribute(table, columns.groups)
        groups = Groups.crossed(labels_N, classes, attribute_N, attributes)
    else:
        groups = Groups.unknown(labels_N, classes)
    split = columns.split or (SPLIT if SPLIT in table.names else None)
    if split is None:
        shares = settings.shares
        three = by_shares(groups.group_N, shares.train, shares.val, settings.seed)
    else:
        names = settings.splits
        meanings = {names.train: 0, names.val: 1, names.test: 2}
        split_N = table.numbers(split, meanings, "the splits that data.splits names")
        three = {
            name: np.flatnonzero(split_N == number)
            for number, name in enumerate((TRAIN, "val", TEST))
        }
    splits = four_splits(three, groups.group_N, settings.seed, str(table.path))
    _all_taught(table.path, classes, labels_N[splits[TRAIN]])
    return Rows(classes, labels_N, groups, splits, split is None)


def _labels(
    table: Table, settings: TableSettings, column: str
) -> tuple[tuple[str, ...], np.ndarray]:
    values = table.text(column)
    distinct = set(values)
    if settings.classes is not None:
        classes = settings.classes
        meanings = {name: number for number, name in enumerate(classes)}
        if not distinct & set(classes) and all(value.isdecimal() for value in distinct):
            meanings = {str(number): number for number in range(len(classes))}
        return classes, table.numbers(column, meanings, "the classes that data.classes names")
    whole = all(value.removeprefix("-").isdecimal() for value in distinct)
    classes = tuple(sorted(distinct, key=int) if whole else sorted(distinct))
    if len(classes) < 2:
        raise DataError(
            f"{table.path}: {column} is {classes[0]!r} in every row; two classes at least."
        )
    meanings = {name: number for number, name in enumerate(classes)}
    return classes, np.array([meanings[value] for value in values], dtype=np.int64)


def _attribute(table: Table, columns: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """Combinations that occur, by name, and which one every row has."""
    values = []
    for column in columns:
        text = table.text(column)
        # A number says nothing without its column.
        bare = any(value.removeprefix("-").isdecimal() for value in set(text))
        values.append([f"{column}={value}" if bare else value for value in text])
    combined = [", ".join(row) for row in zip(*values, strict=True)]
    names = tuple(sorted(set(combined)))
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers[name] for name in combined], dtype=np.int64)


def _all_taught(path: Path, classes: tuple[str, ...], labels_N: np.ndarray) -> None:
    missing = set(range(len(classes))) - set(labels_N.tolist())
    if missing:
        names = ", ".join(classes[number] for number in sorted(missing))
        raise DataError(f"{path}: no training sample of class {names}.")
