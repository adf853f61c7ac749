"""Waterbirds: birds of land and water before land and water (Sagawa et al., ICLR 2020)."""

from __future__ import annotations

from typing import ClassVar, Literal

from agrekd_ray.data.dataset import TRAIN, Annotations, Groups
from agrekd_ray.data.images import PictureDataset
from agrekd_ray.data.pictures import FolderPictures
from agrekd_ray.data.published import Counts, Published, require, three_splits
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

    def open(self) -> PictureDataset:
        """The data set in a folder.

        Raises:
            DataError: files are missing, damaged, or not those that were published.
        """
        path = self.path / METADATA
        require(self.path, {METADATA: "the table of all pictures"}, ORIGIN)
        table = Table(path, ["img_filename", "y", "split", "place"])
        labels_N = table.numbers("y", {"0": 0, "1": 1}, "landbird and waterbird")
        place_N = table.numbers("place", {"0": 0, "1": 1}, "land and water")
        groups = Groups.crossed(labels_N, CLASSES, place_N, PLACES, "{} on {}".format)
        splits = self.checked_splits(three_splits(table, "split"), groups, path)
        pictures = FolderPictures(self.path, table.unique("img_filename"), table.where)
        annotations = Annotations(CLASSES, labels_N, groups, splits)
        return PictureDataset(self, pictures, annotations)
