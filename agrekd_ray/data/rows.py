"""What the rows of one's own table say of the samples: class, group and split."""

from __future__ import annotations

import re
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from agrekd_ray.data.dataset import DRAWN, TRAIN, Annotations, Groups
from agrekd_ray.data.names import canonical, folded, in_order, is_number, listed, quoted
from agrekd_ray.data.splits import (
    USUAL,
    by_number,
    by_shares,
    four_splits,
    split_named,
    split_of_file,
)
from agrekd_ray.data.table import Table
from agrekd_ray.errors import DataError
from agrekd_ray.settings import LocalPath, Seed, Settings, Share

SPLIT = "split"
"""The column with the split where the settings name none, and the table has one."""
_NEAR_SPLIT = re.compile(
    r"(.*[\W_])?(split|partition)s?([\W_].*)?|(data)?(splits?|partitions?|folds?|subsets?|sets?)"
    r"|phase|usage|is[\W_]?(train|val|test)|train[\W_]?(val[\W_]?)?test"
)
"""Names of columns that are likely to hold the split, folded."""
_YOURS = "Name yours in data.columns."


class Columns(Settings):
    """Columns of a table that all kinds of samples have.

    Attributes:
        label: the class, by name or number.
        groups: spurious attributes; what counts is their combination. None: no group labels.
        split: `train`, `val` or `test`; null takes the column `split`, or the only one with a name
            like it, or the names of the files, and otherwise draws splits.
    """

    label: str = "label"
    groups: tuple[str, ...] = ()
    split: str | None = None


class SplitNames(Settings):
    """How the table calls the splits.

    Attributes:
        train: the training split; `train` is any usual name of it (`Train`, `training`).
        val: the validation split; `val` is any usual one (`valid`, `validation`, `dev`).
        test: the test split; `test` is any usual one (`Test`, `testing`).
    """

    train: str = "train"
    val: str = "val"
    test: str = "test"

    @field_validator("test")
    @classmethod
    def _three_names(cls, test: str, info: ValidationInfo) -> str:
        others = [canonical(info.data.get(name, name)) for name in ("train", "val")]
        if canonical(test) in others or others[0] == others[1]:
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
    if classes is not None and len(set(map(canonical, classes))) < len(classes):
        raise ValueError("two of them are one number or truth value in a table")
    return classes


class TableSettings(Settings):
    """A table of samples.

    Attributes:
        table: a CSV or Parquet file, or a folder of them, whose names may say the split.
        classes: names of the classes in the order of their numbers; labels are these names, or
            numbers from 0. Null takes what the table says, sorted.
        splits: how the table calls the splits.
        shares: of splits that are drawn, stratified by group. Null draws only where the table has
            no split, and then 0.7 and 0.15.
        seed: draws them, the halves of validation, and the views.
    """

    table: LocalPath
    classes: Annotated[tuple[str, ...] | None, AfterValidator(_at_least_two)] = None
    splits: SplitNames = SplitNames()
    shares: SplitShares | None = None
    seed: Seed = 0


def _may_be_split(name: str) -> bool:
    return bool(_NEAR_SPLIT.fullmatch(folded(name)))


def open_table(settings: TableSettings, columns: Columns, *further: str) -> Table:
    """The table with the columns that samples of all kinds have, and further ones.

    Raises:
        DataError: see `Table`.
    """
    needed = [columns.label, *columns.groups, *further]
    if columns.split is not None:
        needed.append(columns.split)
    return Table(settings.table, needed, _may_be_split, _YOURS)


def read_rows(table: Table, settings: TableSettings, columns: Columns) -> Annotations:
    """Class, group and split of every row.

    Raises:
        DataError: a value that is none of those allowed, or missing, with its row; two that differ
            in what nobody sees; a split without a sample; fewer than two classes; something that
            may be the split, and cannot be read as it.
    """
    classes, labels_N = _labels(table, settings, columns.label)
    if columns.groups:
        attributes, attribute_N = _attribute(table, columns.groups)
        groups = Groups.crossed(labels_N, classes, attribute_N, attributes)
    else:
        groups = Groups.unknown(labels_N, classes)
    if len(set(groups.names)) < len(groups.names):
        raise DataError(f"{table.path}: two groups have the same name; rename a class or value.")
    splits_from, split_N = _split(table, settings, columns)
    if split_N is None:
        shares = settings.shares or SplitShares()
        three = by_shares(groups.group_N, shares.train, shares.val, settings.seed)
    else:
        three = by_number(split_N)
    remedy = "" if split_N is None else "To draw splits from all samples, set data.shares."
    splits = four_splits(three, groups.group_N, settings.seed, str(table.path), remedy)
    if missing := set(range(len(classes))) - set(labels_N[splits[TRAIN]].tolist()):
        names = listed(classes[number] for number in sorted(missing))
        raise DataError(f"{table.path}: no training sample of class {names}.")
    return Annotations(classes, labels_N, groups, splits, splits_from)


def _split(
    table: Table, settings: TableSettings, columns: Columns
) -> tuple[str, np.ndarray | None]:
    """What says the splits, and the number of every row's; None where they are to be drawn."""
    if settings.shares is not None:
        if columns.split is not None:
            raise DataError(
                f"data.shares: splits are drawn, or taken from the column {quoted(columns.split)}; "
                "leave out data.shares or data.columns.split."
            )
        return DRAWN, None
    if columns.split is not None:
        return _by_column(table, settings, columns.split)
    taken = (columns.label, *columns.groups)
    near = [name for name in table.names if _may_be_split(name) and name not in taken]
    readable, refused = [], []
    for name in [SPLIT] if SPLIT in near else near:
        try:
            readable.append(_by_column(table, settings, name))
        except DataError as error:
            if name == SPLIT:
                raise
            refused.append((name, error))
    choose = "name the right one in data.columns.split, or set data.shares to draw splits"
    if len(readable) > 1:
        sources = " and ".join(source for source, _ in readable)
        raise DataError(f"{table.path}: the split may be the {sources}; {choose}.")
    if refused and not readable:
        name, reason = refused[0]
        raise DataError(
            f"{table.path}: the column {quoted(name)} may be the split, but {reason} If it is not, "
            f"{choose}."
        )
    by_file_N = _by_file(table, bool(readable))
    if not readable:
        return (DRAWN, None) if by_file_N is None else ("names of the files", by_file_N)
    source, split_N = readable[0]
    if by_file_N is not None and (split_N != by_file_N).any():
        row, names = int((split_N != by_file_N).argmax()), list(USUAL)
        raise DataError(
            f"{table.where(row)}: is {names[split_N[row]]} by the {source} and "
            f"{names[by_file_N[row]]} by the file's name; data.columns.split=NAME takes the column."
        )
    return source, split_N


def _by_column(table: Table, settings: TableSettings, column: str) -> tuple[str, np.ndarray]:
    """That the column says the splits, and the number of every row's."""
    given = settings.splits.model_dump()
    meanings = {name: number for number, name in enumerate(given.values())}
    spelt_out = {canonical(name) for name in given.values()}
    values = table.values(column, spelt_out)
    by_split: dict[int, tuple[str, int]] = {}
    for name, row in zip(values.names, values.first, strict=True):
        usual = split_named(name)
        if usual and given[usual] == usual and name not in spelt_out:
            meanings[name] = list(USUAL).index(usual)
        if (number := meanings.get(name)) is None:
            continue
        other, first = by_split.setdefault(number, (name, row))
        if other != name:
            raise DataError(
                f"{table.where(row)}: {column} is {quoted(name)}, and {quoted(other)} in "
                f"{table.where(first)}, usual names of one split; say in data.splits which it is."
            )
    numbers_N = table.numbers(
        column,
        meanings,
        "the splits that data.splits names",
        "Set data.splits to what the table calls train, val and test.",
    )
    return f"column {quoted(column)}", numbers_N


def _by_file(table: Table, has_column: bool) -> np.ndarray | None:
    """The number of every row's split by the names of the files, where these name several."""
    split_of = {file: split_of_file(file) for file in table.files}
    named = [file for file, split in split_of.items() if split]
    if len(set(split_of.values()) - {None}) > 1:
        nameless = [file for file in split_of if file not in named]
        if nameless and not has_column:
            raise DataError(
                f"{nameless[0]}: its name says no split, and that of {quoted(named[0].name)} does; "
                "take it out of the folder, or set data.shares to draw splits from all."
            )
        numbers = [list(USUAL).index(split) for split in split_of.values() if split]
        return None if nameless else np.repeat(numbers, table.counts)
    if table.path in named and not has_column:
        own = split_of[table.path]
        for file in sorted(table.path.parent.iterdir()):
            if file.suffix == table.path.suffix and split_of_file(file) not in (None, own):
                raise DataError(
                    f"{table.path}: is the {own} split by its name, and beside it is "
                    f"{quoted(file.name)}; give the folder as data.table to take them all, or set "
                    "data.shares to draw splits from this file."
                )
    return None


def _labels(
    table: Table, settings: TableSettings, column: str
) -> tuple[tuple[str, ...], np.ndarray]:
    if settings.classes is not None:
        classes = settings.classes
        meanings = {name: number for number, name in enumerate(classes)}
        known = set(map(canonical, classes))
        names = table.values(column, known).names
        if not known & set(names) and all(name.isdecimal() for name in names):
            meanings = {str(number): number for number in range(len(classes))}
        return classes, table.numbers(column, meanings, "the classes that data.classes names")
    values = table.values(column, remedy="Two classes that differ so are named in data.classes.")
    classes = in_order(values.names)
    if len(classes) < 2:
        raise DataError(
            f"{table.path}: {column} is {quoted(classes[0])} in every row; two classes at least."
        )
    meanings = {name: number for number, name in enumerate(classes)}
    return classes, np.array([meanings[name] for name in values.names])[values.number_N]


def _attribute(table: Table, columns: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """Combinations that occur, by name, and which one every row has."""
    words, numbers = [], []
    for column in columns:
        values = table.values(column)
        # A number says nothing without its column.
        bare = any(map(is_number, values.names))
        words.append([f"{column}={name}" if bare else name for name in values.names])
        numbers.append(values.number_N)
    occurring, combined_N = np.unique(np.stack(numbers, 1), axis=0, return_inverse=True)
    parts = [[names[n] for names, n in zip(words, row, strict=True)] for row in occurring.tolist()]
    joined = [", ".join(part) for part in parts]
    if len(set(joined)) < len(joined):  # a value has a comma
        joined = [listed(part, len(part)) for part in parts]
    order = sorted(range(len(joined)), key=joined.__getitem__)
    return tuple(joined[number] for number in order), np.argsort(order)[combined_N.reshape(-1)]
