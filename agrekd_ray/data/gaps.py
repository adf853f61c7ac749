"""Classes and groups without a sample where one is looked for: known before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from agrekd_ray.data.dataset import DFR, SELECT, TEST, TRAIN, Dataset, Remarked
from agrekd_ray.data.names import quoted
from agrekd_ray.errors import listed

_SHOWN = 6


def classes_missing(dataset: Dataset, split: str) -> list[str]:
    """Classes without a sample in a split."""
    labels_N = dataset.labels(dataset.splits[split]).numpy()
    return _without(labels_N, dataset.classes)


def dfr_groups(dataset: Dataset, split: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """What DFR balances, class x spurious attribute: of every sample of a split, and the names."""
    ids, groups = dataset.splits[split], dataset.groups
    labels_N = dataset.labels(ids).numpy()
    names = tuple(f"{label}, {value}" for label in dataset.classes for value in groups.attributes)
    group_N = labels_N * len(groups.attributes) + groups.attribute_N[ids]
    evaluated = len(groups.names) == len(names) and np.array_equal(group_N, groups.group_N[ids])
    return group_N, groups.names if evaluated else names


def remarks_on(dataset: Dataset, *, dfr: bool) -> list[str]:
    """What somebody should know of a data set before a model is trained on it, a line each.

    Args:
        dataset: whose own remarks are among them.
        dfr: whether last layers will be retrained on `val_dfr`.
    """
    remarks = list(_gaps(dataset, dfr))
    if isinstance(dataset, Remarked):
        remarks += dataset.remarks()
    return remarks


def _gaps(dataset: Dataset, dfr: bool) -> Iterator[str]:
    groups = dataset.groups
    dfr = dfr and groups.known
    splits = {split: dataset.splits[split] for split in (TRAIN, DFR, SELECT, TEST)}
    if not dfr:
        del splits[DFR]
    labels = {split: dataset.labels(ids).numpy() for split, ids in splits.items()}
    yield from _missing("class", "classes", dataset.classes, labels)
    if not groups.known:
        return
    evaluated = {split: groups.group_N[ids] for split, ids in splits.items()}
    if dfr:
        balanced_N, names = dfr_groups(dataset, DFR)
        if names is not groups.names:
            del evaluated[DFR]
            yield from _missing("group", "groups", names, {DFR: balanced_N})
        counts = np.bincount(balanced_N, minlength=len(names))
        if single := [name for name, count in zip(names, counts, strict=True) if count == 1]:
            yield (
                f"a single sample of {_listed(single)} in {DFR}: DFR balances its groups by the "
                "smallest, so it retrains on one sample of each"
            )
    yield from _missing("group", "groups", groups.names, evaluated)


def _without(numbers_N: np.ndarray, names: Sequence[str]) -> list[str]:
    counts = np.bincount(numbers_N, minlength=len(names))
    return [name for name, count in zip(names, counts, strict=True) if not count]


def _missing(
    kind: str, kinds: str, names: Sequence[str], numbers: dict[str, np.ndarray]
) -> Iterator[str]:
    """A line for all names whose number is missing in the same splits."""
    missing = {split: _without(numbers_N, names) for split, numbers_N in numbers.items()}
    by_splits: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        if splits := tuple(split for split, absent in missing.items() if name in absent):
            by_splits.setdefault(splits, []).append(name)
    for splits, absent in by_splits.items():
        yield (
            f"no sample of {kind if len(absent) == 1 else kinds} {_listed(absent)} in "
            f"{', '.join(splits)} ({len(absent)} of {len(names)} {kinds})"
        )


def _listed(names: Sequence[str]) -> str:
    return listed((quoted(name) for name in names), _SHOWN)
