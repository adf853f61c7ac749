"""What data sets have in common whose samples are prepared rows."""

from __future__ import annotations

import functools
import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np

from agrekd_ray.data.chunks import Room, Work
from agrekd_ray.data.dataset import Annotations, ArrayDataset, Progress, Samples
from agrekd_ray.data.prepared import PreparedRows
from agrekd_ray.data.stamps import Stamps
from agrekd_ray.data.views import ONE_VIEW, Views
from agrekd_ray.settings import fingerprint


class PreparedSamples(ArrayDataset):
    """What data sets of prepared rows share (`Prepared`).

    Args:
        rows: inputs of the samples.
        annotations: of the samples.
        shape: of one sample's inputs.
        views: how views differ.

    Attributes:
        stamps: of the files that the samples are in, where they are many.
    """

    stamps: Stamps = ()

    def __init__(
        self,
        rows: PreparedRows,
        annotations: Annotations,
        shape: tuple[int, ...],
        views: Views = ONE_VIEW,
    ) -> None:
        super().__init__(annotations, shape, views)
        self.splits_from = annotations.splits_from
        self.rows = rows

    @abstractmethod
    def making(self, numbers: Sequence[int]) -> Iterator[Work]:
        """What makes the chunks of these numbers, as `PreparedRows.fill` wants it."""

    @abstractmethod
    def how(self) -> str:
        """Changes wherever the same sources give other inputs; asked for when all are prepared."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """See `Samples.fingerprint`: of the sources' content, and of what is said about them."""
        self.prepare()
        looks = fingerprint(self.how(), self.rows.digest(), self.classes)
        digest = hashlib.sha256(looks.encode() + self._labels_N.numpy().tobytes())
        for name, ids in self.splits.items():
            digest.update(name.encode() + ids.astype(np.int64).tobytes())
        for kinds_N in (self.groups.attribute_N, self.groups.group_N):
            digest.update(kinds_N.astype(np.int64).tobytes())
        return digest.hexdigest()

    def missing_source(self) -> str:
        """In words, what shows that the sources cannot be read here; empty where nothing does."""
        return ""

    def unprepared(self) -> int:
        """See `Prepared.unprepared`."""
        return self.rows.left()

    def prepare(
        self, progress: Progress = lambda done, total: None, room: Room | None = None
    ) -> None:
        """See `Prepared.prepare`; `room` as `PreparedRows.fill` has it."""
        if not self.rows.whole:
            self.rows.fill(self.making, progress, room)


def stamps_of(dataset: Samples) -> Stamps:
    """What another process is handed, so that it need not look at the files of a data set."""
    return dataset.stamps if isinstance(dataset, PreparedSamples) else ()
