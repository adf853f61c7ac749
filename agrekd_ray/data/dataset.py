"""What a data set is to everybody else: samples by id, splits, labels, and groups set apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from agrekd_ray.data.views import ONE_VIEW, Views

TRAIN, DFR, SELECT, TEST = "train", "val_dfr", "val", "test"
"""Names of the splits. Validation has two halves: `val_dfr` retrains last layers, `val` selects."""

DRAWN = "drawn by lot, stratified by group"
"""What says the splits of a data set that comes without them."""


class Samples(Protocol):
    """All that training may see of a data set: no groups.

    Attributes:
        classes: names, in the order of their numbers.
        shape: of one sample's inputs: channels, height and width of an image, or the length of
            a sequence of tokens.
        views_fingerprint: of what a view looks like besides its number.
        splits: sorted ids by name of the split.
        size: samples of all splits.
    """

    classes: tuple[str, ...]
    shape: tuple[int, ...]
    views_fingerprint: str
    splits: dict[str, np.ndarray]
    size: int

    @property
    def fingerprint(self) -> str:
        """Of everything that a model can see, the splits included."""
        ...

    def view(self, epoch: int) -> int:
        """Number of the view that an epoch shows; epochs with the same one look the same."""
        ...

    def inputs(self, ids: np.ndarray, epoch: int | None) -> Tensor:
        """The samples as the model is given them.

        Images are float32 [B, channels, height, width] in [0, 1], never normalised: every model
        brings its own preprocessing. Text is int64 [B, length], token ids.

        What sample i looks like in epoch e is a pure function of (data seed, view(e), i).
        `epoch=None` is the view of evaluation, without augmentation.
        """
        ...

    def labels(self, ids: np.ndarray) -> Tensor:
        """Class numbers, int64 [B]."""
        ...


class Rows(Protocol):
    """An array, or what gives rows as one does."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[R, ...]."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows."""
        ...

    @property
    def nbytes(self) -> int:
        """Of all rows, as they are given."""
        ...

    def __getitem__(self, rows: Any, /) -> Any:
        """Some rows as an array: a slice of them, or numbers."""
        ...


@runtime_checkable
class Arrays(Protocol):
    """A data set that has its samples as arrays, and shows them on any device.

    Loaders keep the arrays on a GPU or gather rows of them ahead of the step; a data set that is
    not of this kind is asked for `inputs`, a batch at a time.
    """

    def arrays(self, view: int | None) -> tuple[Rows, ...]:
        """What a view is made of: arrays with a row a sample, by id, and the same ones each time.

        Raw values (uint8 pictures, token ids) and the view's random numbers, float32. An array that
        does not depend on the view is the same object for all of them.

        Args:
            view: its number; None is the view of evaluation.
        """
        ...

    def show(self, rows: Sequence[Tensor], view: int | None) -> Tensor:
        """The inputs of some samples, out of rows of `arrays(view)`, on the rows' device.

        Row b depends on its own raw values and random numbers alone. Nothing waits for the device.
        """
        ...

    def lengths(self, ids: np.ndarray) -> np.ndarray | None:
        """Tokens of each text up to its last one, [B]: what lies beyond may be cut off.

        None where the samples are no texts.
        """
        return None


def inputs_of(samples: Arrays, ids: np.ndarray, view: int | None) -> Tensor:
    """The inputs of some samples in one view, on the CPU; see `Samples.inputs`."""
    index = np.asarray(ids)
    return samples.show([torch.from_numpy(each[index]) for each in samples.arrays(view)], view)


def as_inputs(samples: Tensor) -> Tensor:
    """Samples that are in memory, as models are given them; see `Samples.inputs`.

    Args:
        samples: pictures, uint8 [N, height, width, channels] or float [N, channels, height, width]
            in [0, 1], other numbers [N, ...], or texts, whole numbers [N, length].
    """
    if samples.dtype == torch.uint8 and samples.ndim == 4:
        return samples.movedim(-1, 1).float() / 255
    return samples.float() if samples.is_floating_point() else samples.long()


@dataclass(frozen=True)
class Groups:
    """Group labels: for DFR, evaluation and reports, never for a student's training.

    Attributes:
        attribute_N: spurious attribute of every sample, by id.
        attributes: names of the attribute's values.
        group_N: evaluation group of every sample, by id.
        names: names of the evaluation groups.
        known: false where the data have no group labels; the evaluation groups are the classes.
        overlapping_NK: membership in further groups that may overlap, bool [N, K]; None without.
        overlapping: their K names.
    """

    attribute_N: np.ndarray
    attributes: tuple[str, ...]
    group_N: np.ndarray
    names: tuple[str, ...]
    known: bool = True
    overlapping_NK: np.ndarray | None = None
    overlapping: tuple[str, ...] = ()

    @classmethod
    def crossed(
        cls,
        labels_N: np.ndarray,
        classes: Sequence[str],
        attribute_N: np.ndarray,
        attributes: Sequence[str],
        name: Callable[[str, str], str] = "{}, {}".format,
    ) -> Groups:
        """Evaluation groups that are class x attribute, in that order.

        Args:
            labels_N: class of every sample.
            classes: names of the C classes.
            attribute_N: spurious attribute of every sample.
            attributes: names of its A values.
            name: of a group, out of its class and its attribute.
        """
        names = tuple(name(label, value) for label in classes for value in attributes)
        group_N = labels_N * len(attributes) + attribute_N
        return cls(attribute_N, tuple(attributes), group_N, names)

    @classmethod
    def unknown(cls, labels_N: np.ndarray, classes: Sequence[str]) -> Groups:
        """What stands for groups where nobody knows them: the classes."""
        return cls(np.zeros_like(labels_N), ("any",), labels_N, tuple(classes), known=False)

    def count(self, ids: np.ndarray) -> dict[str, int]:
        """Samples of each evaluation group among `ids`, by its name."""
        counts = np.bincount(self.group_N[ids], minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    def shares(self, ids: np.ndarray) -> Tensor:
        """Share of each evaluation group among `ids`, float32 [G], summing to 1."""
        counts = np.bincount(self.group_N[ids], minlength=len(self.names))
        return torch.from_numpy((counts / max(1, counts.sum())).astype(np.float32))


class Dataset(Samples, Protocol):
    """A data set with its groups."""

    groups: Groups


@dataclass(frozen=True)
class Annotations:
    """What is known of samples besides what they look like; the id of a sample is its row.

    Attributes:
        classes: names of the classes.
        labels_N: class of every sample.
        groups: of the samples.
        splits: sorted ids by name of the split.
        splits_from: see `Sourced.splits_from`.
    """

    classes: tuple[str, ...]
    labels_N: np.ndarray
    groups: Groups
    splits: dict[str, np.ndarray]
    splits_from: str = "the makers' split"


class ArrayDataset(Arrays):
    """All of `Dataset` and `Arrays` but `arrays`, `show` and the fingerprints.

    Args:
        annotations: of the samples.
        shape: of one sample's inputs.
        views: how views differ; without them every view is the sample itself.
    """

    def __init__(
        self, annotations: Annotations, shape: tuple[int, ...], views: Views = ONE_VIEW
    ) -> None:
        self.classes, self.groups = annotations.classes, annotations.groups
        self.splits, self.shape, self.views = annotations.splits, shape, views
        self.size = len(annotations.labels_N)
        labels_N = np.ascontiguousarray(annotations.labels_N, dtype=np.int64)
        self._labels_N = torch.from_numpy(labels_N)

    def view(self, epoch: int) -> int:
        """See `Samples.view`."""
        return self.views.number(epoch)

    def labels(self, ids: np.ndarray) -> Tensor:
        """See `Samples.labels`."""
        return self._labels_N[torch.from_numpy(np.asarray(ids))]

    def inputs(self, ids: np.ndarray, epoch: int | None) -> Tensor:
        """See `Samples.inputs`."""
        return inputs_of(self, ids, None if epoch is None else self.view(epoch))


Progress = Callable[[int, int], None]
"""Told how many samples are prepared, and of how many."""


@runtime_checkable
class Prepared(Protocol):
    """A data set that makes a copy of its samples once, which all processes then share.

    Opening one is cheap. Its `inputs` and `fingerprint` prepare what is not prepared yet; a driver
    calls `prepare` first, so that workers find the copy.
    """

    def unprepared(self) -> int:
        """Samples that are still to be prepared."""
        ...

    def prepare(self, progress: Progress = lambda done, total: None) -> None:
        """Prepare them. Another process that is at it is waited for.

        Raises:
            DataError: a sample is broken, or the copy cannot be written.
        """
        ...


@runtime_checkable
class Sourced(Protocol):
    """A data set that knows what says its splits.

    Attributes:
        splits_from: in words; `DRAWN` where they were drawn.
    """

    splits_from: str


def splits_in_words(samples: Samples) -> str:
    """What says the splits, and their sizes; empty where the data set does not know."""
    if not isinstance(samples, Sourced):
        return ""
    sizes = ", ".join(f"{name} {len(ids):,}" for name, ids in samples.splits.items())
    return f"{samples.splits_from}: {sizes}"


@runtime_checkable
class Excerpted(Protocol):
    """A data set whose samples are shown as text rather than as pictures."""

    def excerpt(self, sample: int) -> str:
        """A sample in a line of text."""
        ...


@runtime_checkable
class Remarked(Protocol):
    """A data set that has something to say of its samples, and more once they are prepared."""

    def remarks(self) -> list[str]:
        """What holds for some samples, a line each, with their number, or for all of them."""
        ...
