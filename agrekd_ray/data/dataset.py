"""What a data set is to everybody else: samples by id, splits, labels, and groups set apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

TRAIN, DFR, SELECT, TEST = "train", "val_dfr", "val", "test"
"""Names of the splits. Validation has two halves: `val_dfr` retrains last layers, `val` selects."""


class Samples(Protocol):
    """All that training may see of a data set: no groups.

    Attributes:
        classes: names, in the order of their numbers.
        shape: channels, height and width of an image.
        fingerprint: of everything that a model can see, the splits included.
        views_fingerprint: of what a view looks like besides its number.
        splits: sorted ids by name of the split.
        size: samples of all splits.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    fingerprint: str
    views_fingerprint: str
    splits: dict[str, np.ndarray]
    size: int

    def view(self, epoch: int) -> int:
        """Number of the view that an epoch shows; epochs with the same one look the same."""
        ...

    def inputs(self, ids: np.ndarray, epoch: int | None) -> Tensor:
        """The samples as the model sees them, float32 [B, channels, height, width].

        What sample i looks like in epoch e is a pure function of (data seed, view(e), i).
        `epoch=None` is the view of evaluation, without augmentation.
        """
        ...

    def labels(self, ids: np.ndarray) -> Tensor:
        """Class numbers, int64 [B]."""
        ...


@dataclass(frozen=True)
class Groups:
    """Group labels: for DFR, evaluation and reports, never for a student's training.

    Attributes:
        attribute_N: spurious attribute of every sample, by id.
        attributes: names of the attribute's values.
        group_N: evaluation group of every sample, by id.
        names: names of the evaluation groups.
    """

    attribute_N: np.ndarray
    attributes: tuple[str, ...]
    group_N: np.ndarray
    names: tuple[str, ...]

    def shares(self, ids: np.ndarray) -> Tensor:
        """Share of each evaluation group among `ids`, float32 [G], summing to 1."""
        counts = np.bincount(self.group_N[ids], minlength=len(self.names))
        return torch.from_numpy((counts / max(1, counts.sum())).astype(np.float32))


class Dataset(Samples, Protocol):
    """A data set with its groups."""

    groups: Groups
