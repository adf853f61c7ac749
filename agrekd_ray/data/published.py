"""Data sets of others: where they are, and whether they are what was published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from agrekd_ray.data.dataset import Groups
from agrekd_ray.data.images import Pictures
from agrekd_ray.data.splits import by_number, four_splits
from agrekd_ray.data.table import Table
from agrekd_ray.errors import DataError
from agrekd_ray.settings import LocalPath

Counts = Mapping[str, Mapping[str, int]]
"""Samples by split and by group."""


class Published(Pictures):
    """A data set of pictures that others have published.

    Attributes:
        path: its folder.
        counts: `published` refuses data whose groups are not as large as published, `any` takes
            a part of them, or a stand-in.
    """

    published: ClassVar[Counts] = {}
    """Samples by split and group, as far as they are published."""
    path: LocalPath
    counts: Literal["published", "any"] = "published"

    def checked_splits(
        self, three: dict[str, np.ndarray], groups: Groups, source: Path
    ) -> dict[str, np.ndarray]:
        """The splits out of `train`, `val` and `test`, if they are as large as published.

        Raises:
            DataError: see `four_splits`; also says of all groups that differ how large they are.
        """
        differing = [
            f"{group} in {split}: {counted:,} instead of {wanted:,}"
            for split, by_group in self.published.items()
            for group, wanted in by_group.items()
            if (counted := groups.count(three[split]).get(group, 0)) != wanted
        ]
        if differing and self.counts == "published":
            raise DataError(
                f"{source}: not the published data: {'; '.join(differing)}. Take the makers' "
                "files, or set data.counts=any for a part of them or a stand-in."
            )
        return four_splits(three, groups.group_N, self.seed, str(source))


def three_splits(table: Table, column: str) -> dict[str, np.ndarray]:
    """Rows of `train`, `val` and `test` out of the makers' 0, 1 and 2.

    Raises:
        DataError: another value, with its row.
    """
    return by_number(table.numbers(column, {"0": 0, "1": 1, "2": 2}, "train, val and test"))


def require(folder: Path, files: Mapping[str, str], origin: str) -> None:
    """Refuse a folder in which something is missing.

    Args:
        folder: of the data set.
        files: what must be there, by name, each with what it is.
        origin: of the data, in words.

    Raises:
        DataError: names all that is missing, where to put it, and where it comes from.
    """
    try:
        missing = [name for name in files if not (folder / name).exists()]
    except OSError as error:
        raise DataError(f"data.path: {folder}: {error.strerror or error}.") from None
    if missing:
        lacking = ", ".join(f"{name} ({files[name]})" for name in missing)
        raise DataError(
            f"data.path: {folder} lacks {lacking}. Put what is missing there, or set data.path to "
            f"where it is. {origin}"
        )
