"""Splits by lot: the same seed gives the same ones everywhere, and every stratum its part."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from agrekd_ray.data.dataset import DFR, SELECT, TEST, TRAIN
from agrekd_ray.data.names import folded
from agrekd_ray.errors import DataError

USUAL = {
    TRAIN: ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "development"),
    TEST: ("test", "testing"),
}
"""What the three splits are usually called, whatever the case."""


def split_named(text: str) -> str | None:
    """The split that goes by this name: `train`, `val`, `test`; None where none does."""
    return next((split for split, names in USUAL.items() if folded(text) in names), None)


def split_of_file(file: Path) -> str | None:
    """The one split that a word of a file's name says, or its folder's: `train-00000-of-00001`."""
    words = [*re.split(r"[^a-z]+", folded(file.stem)), file.parent.name]
    named = {split for word in words[:-1] if (split := split_named(word))}
    if not named:
        return split_named(words[-1])
    return named.pop() if len(named) == 1 else None


def halves(ids: np.ndarray, strata: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut ids into two halves that differ by one at most, in every stratum and in all.

    Args:
        ids: to be cut.
        strata: of every id.
        seed: of the data.

    Returns:
        The halves, sorted.
    """
    shuffled = np.random.default_rng((seed, 11)).permutation(len(ids))
    order = shuffled[np.argsort(strata[shuffled], kind="stable")]
    return np.sort(ids[order[::2]]), np.sort(ids[order[1::2]])


def by_shares(strata: np.ndarray, train: float, val: float, seed: int) -> dict[str, np.ndarray]:
    """Ids of `train`, `val` and `test`, each with its share of every stratum.

    Args:
        strata: of every sample, [N].
        train: share of the training split.
        val: share of the validation split; the rest is the test split.
        seed: of the data.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in USUAL}
    rng = np.random.default_rng((seed, 12))
    for stratum in np.unique(strata):
        ids = rng.permutation(np.flatnonzero(strata == stratum))
        cuts = [round(train * len(ids)), round((train + val) * len(ids))]
        for part, own in zip(parts.values(), np.split(ids, cuts), strict=True):
            part.append(own)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def by_number(split_N: np.ndarray) -> dict[str, np.ndarray]:
    """Ids of `train`, `val` and `test`, whose numbers are 0, 1 and 2."""
    return {name: np.flatnonzero(split_N == number) for number, name in enumerate(USUAL)}


def four_splits(
    three: dict[str, np.ndarray], strata: np.ndarray, seed: int, source: str, remedy: str = ""
) -> dict[str, np.ndarray]:
    """The splits of a data set out of `train`, `val` and `test`: validation in two halves.

    Args:
        three: sorted ids by name.
        strata: evaluation group of every sample, [N].
        seed: of the data.
        source: of the samples, in words.
        remedy: what to do about a split without samples, a sentence.

    Raises:
        DataError: a split is empty, or validation too small to be cut.
    """
    for name, ids in three.items():
        if len(ids) < (2 if name == "val" else 1):
            fault = "is empty; every split needs samples."
            if len(ids):
                fault = "needs two samples at least, a half each for DFR and selection."
            raise DataError(f"{source}: the {name} split {fault} {remedy}".rstrip())
    dfr, select = halves(three["val"], strata[three["val"]], seed)
    return {TRAIN: three[TRAIN], DFR: dfr, SELECT: select, TEST: three[TEST]}
