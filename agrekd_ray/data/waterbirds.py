"""Waterbirds: birds of land and water before land and water (Sagawa et al., ICLR 2020)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from agrekd_ray.data.dataset import TEST, TRAIN, Groups
from agrekd_ray.data.images import PictureDataset
from agrekd_ray.data.pictures import FolderPictures
from agrekd_ray.data.published import Counts, Published, check_counts, require
from agrekd_ray.data.splits import four_splits
from agrekd_ray.data.table import Table

METADATA = "metadata.csv"
CLASSES, PLACES = ("landbird", "waterbird"), ("land", "water")
COUNTS: Counts = {
    TRAIN: {
        "landbird on land": 3498,
        "landbird on water": 184,
        "waterbird on land": 56,
        "waterbird on water": 1057,
    }
}
"""As published with the data set."""
ORIGIN = (
    "The data set (waterbird_complete95_forest2water2) is published with 'Distributionally Robust "
    "Neural Networks for Group Shifts' by Sagawa et al., ICLR 2020, in the authors' group_DRO "
    "repository and in WILDS."
)


class Waterbirds(Published):
    """Waterbirds as its makers publish it: `metadata.csv`, and the pictures in its folder.

    Attributes:
        name: `waterbirds`.
    """

    published: ClassVar[Counts] = COUNTS
    name: Literal["waterbirds"]


def three_splits(table: Table, column: str) -> dict[str, np.ndarray]:
    """Rows of `train`, `val` and `test` out of the makers' 0, 1 and 2.

    Raises:
        DataError: another value, with its row.
    """
    split_N = table.numbers(column, {"0": 0, "1": 1, "2": 2}, "train, val and test")
    return {
        name: np.flatnonzero(split_N == number) for number, name in enumerate((TRAIN, "val", TEST))
    }


def open_waterbirds(settings: Waterbirds) -> PictureDataset:
    """The data set in a folder.

    Raises:
        DataError: files are missing, damaged, or not those that were published.
    """
    folder = settings.path
    require(folder, {METADATA: "the table of all pictures"}, ORIGIN)
    table = Table(folder / METADATA, ["img_filename", "y", "split", "place"])
    labels_N = table.numbers("y", {"0": 0, "1": 1}, "landbird and waterbird")
    place_N = table.numbers("place", {"0": 0, "1": 1}, "land and water")
    groups = Groups.crossed(labels_N, CLASSES, place_N, PLACES, "{} on {}".format)
    three = three_splits(table, "split")
    check_counts(folder / METADATA, settings.counts, COUNTS, groups, three)
    return PictureDataset(
        settings,
        FolderPictures(folder, table.unique("img_filename"), table.where),
        table.where,
        CLASSES,
        labels_N,
        groups,
        four_splits(three, groups.group_N, settings.seed, str(folder / METADATA)),
    )
