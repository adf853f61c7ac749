"""Data that are in memory: arrays, tensors, torch or Hugging Face data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from agrekd_ray.data.dataset import (
    TRAIN,
    Annotations,
    ArrayDataset,
    Groups,
    as_inputs,
)
from agrekd_ray.data.splits import USUAL, four_splits
from agrekd_ray.settings import fingerprint

Split = tuple[Any, ...] | TorchDataset[Any]
"""(samples, labels) or (samples, labels, groups), as arrays or tensors.

Or a data set with a length, by number: of such tuples (torch), or of rows with an `image`,
`input_ids` or `samples`, a `label` and perhaps a `group` (Hugging Face).
"""
_COLUMNS = (
    ("image", "img", "pixel_values", "input_ids", "samples"),
    ("label", "labels"),
    ("group", "groups"),
)
"""How columns of samples, labels and groups are called; the last may be missing."""


class InMemory(ArrayDataset):
    """Samples, labels and groups that are in memory (a `Dataset` and `Arrays`).

    Args:
        splits: by name; see `Split`. Groups are of every split or of all but the training split,
            which is trained without them anyway: the groups then count alike in the weighted
            accuracy.
        classes: their names; numbers without.

    Attributes:
        trained_groups: by which the training samples are told apart; their classes, where only
            the others have groups.

    Raises:
        ValueError: parts of different lengths or shapes, labels that are no classes, or groups of
            some evaluated splits alone.
    """

    views_fingerprint = ""

    def __init__(self, splits: Mapping[str, Split], classes: Sequence[str] = ()) -> None:
        parts = {name: _columns(split) for name, split in splits.items()}
        for name, columns in parts.items():
            if len(columns) not in (2, 3) or len({len(column) for column in columns}) != 1:
                raise ValueError(
                    f"{name} must be (samples, labels) or (samples, labels, groups), as many of "
                    f"each, not of {[len(column) for column in columns]}"
                )
        samples = [columns[0] for columns in parts.values()]
        if len({each.shape[1:] for each in samples}) != 1:
            shapes = [list(each.shape[1:]) for each in samples]
            raise ValueError(f"samples of {shapes} in one data set")
        self._samples_N = np.concatenate(samples)
        labels_N = np.concatenate([columns[1] for columns in parts.values()])
        if labels_N.dtype.kind not in "iu" or labels_N.min() < 0:
            raise ValueError("labels must be integers from 0")
        labels_N = labels_N.astype(np.int64)
        classes = tuple(classes) or tuple(str(number) for number in range(labels_N.max() + 1))
        if labels_N.max() >= len(classes):
            raise ValueError(f"a label is {labels_N.max()}, but there are {len(classes)} classes")
        first = as_inputs(torch.from_numpy(self._samples_N[:1]))
        ends = np.cumsum([len(each) for each in samples])
        ids = np.split(np.arange(len(labels_N)), ends[:-1])
        splits_of = dict(zip(parts, ids, strict=True))
        by_class = Groups.unknown(labels_N, classes)
        known = {name: columns[2] for name, columns in parts.items() if len(columns) == 3}
        groups = _groups(known, splits_of) if known else by_class
        annotations = Annotations(classes, labels_N, groups, splits_of)
        super().__init__(annotations, tuple(first.shape[1:]))
        self.trained_groups = by_class if isinstance(groups, _Even) else groups

    @classmethod
    def for_job(cls, given: Mapping[str, Any], seed: int) -> InMemory:
        """The data set of a job, whose validation split has two halves.

        Args:
            given: `train`, `val` and `test`; see `Split`. With names under `classes`, if any.
            seed: draws the halves.

        Raises:
            ValueError: as for the class; also a split that is missing, or another part.
            DataError: a split has too few samples.
        """
        splits = {name: split for name, split in given.items() if name != "classes"}
        if set(splits) != set(USUAL):
            raise ValueError(f"splits must be {', '.join(USUAL)}, not {', '.join(splits)}")
        data = cls(splits, given.get("classes", ()))
        data.splits = four_splits(data.splits, data.groups.group_N, seed, "data.factory")
        return data

    @cached_property
    def fingerprint(self) -> str:
        """See `Samples.fingerprint`; of all values."""
        content = hashlib.sha256()
        for values in (self._samples_N, self._labels_N.numpy(), self.groups.group_N):
            content.update(f"{values.dtype}{values.shape}".encode())
            content.update(np.ascontiguousarray(values).data)
        ids = {name: ids.tolist() for name, ids in self.splits.items()}
        return fingerprint(content.hexdigest(), ids, self.classes, self.groups.names)

    def arrays(self, view: int | None) -> tuple[np.ndarray, ...]:
        """See `Arrays.arrays`."""
        return (self._samples_N,)

    def show(self, rows: Sequence[Tensor], view: int | None) -> Tensor:
        """See `Arrays.show`, and `as_inputs`."""
        return as_inputs(rows[0])


def _groups(known: Mapping[str, np.ndarray], splits: Mapping[str, np.ndarray]) -> Groups:
    """Groups out of those of some splits.

    Raises:
        ValueError: an evaluated split has none.
    """
    if missing := [name for name in splits if name not in known and name != TRAIN]:
        raise ValueError(f"{', '.join(known)} has groups, {', '.join(missing)} has none")
    names, numbers = np.unique(np.concatenate(list(known.values())), return_inverse=True)
    group_N = np.zeros(sum(map(len, splits.values())), np.int64)
    group_N[np.concatenate([splits[name] for name in known])] = numbers
    words = tuple(map(str, names))
    kind = Groups if TRAIN in known else _Even
    return kind(group_N, words, group_N, words)


class _Even(Groups):
    """Groups that nobody has counted in the training split."""

    def shares(self, ids: np.ndarray) -> Tensor:
        """See `Groups.shares`."""
        return torch.full((len(self.names),), 1 / len(self.names))


def _columns(split: Split) -> list[np.ndarray]:
    """Samples, labels and, where they are there, groups, as arrays.

    Raises:
        ValueError: samples of different shapes, or rows without a sample or a label.
    """
    if isinstance(split, tuple):
        return [np.asarray(column) for column in split]
    rows = [split[number] for number in range(len(split))]  # type: ignore[arg-type]
    if rows and isinstance(rows[0], Mapping):
        names = [next((name for name in known if name in rows[0]), None) for known in _COLUMNS]
        if None in names[:2]:
            raise ValueError(f"rows of {', '.join(rows[0])}: an image and a label are missing")
        rows = [tuple(row[name] for name in names if name) for row in rows]
    return [np.stack([np.asarray(value) for value in each]) for each in zip(*rows, strict=True)]
