"""Which samples a step sees: a pure function of (seed, step), so anybody can look ahead."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batch:
    """One step's samples.

    Attributes:
        step: number of the step over the whole training, from 0.
        epoch: number of the epoch, which is also the view of the samples.
        every: ids of the global batch, [B].
        rank: which part of it is this worker's.
        world: how many workers share it; B is a multiple of it.
        ahead: the batches that follow, at most as many as the look-ahead.
    """

    step: int
    epoch: int
    every: np.ndarray
    rank: int = 0
    world: int = 1
    ahead: tuple[Batch, ...] = ()

    @property
    def ids(self) -> np.ndarray:
        """Ids of this worker's part, [B / world]."""
        part = len(self.every) // self.world
        return self.every[self.rank * part : (self.rank + 1) * part]


GROUPED = 50
"""Batches whose texts are sorted by length together: a few, so that the order stays one of lot."""


class BatchPlan:
    """All batches of a training, by step. Every epoch is a new order; its rest is left out.

    Texts are put together with others of about their length, `GROUPED` batches at a time.

    Args:
        ids: of the training split.
        batch_size: B, over all workers; at most `len(ids)` and a multiple of `world`.
        epochs: passes over the ids.
        seed: of the order.
        rank: this worker.
        world: number of workers.
        look_ahead: how many following batches a batch names.
        lengths: of the texts of `ids`; None where the samples are no texts.

    Raises:
        ValueError: a batch size that does not fit.
    """

    def __init__(
        self,
        ids: np.ndarray,
        batch_size: int,
        epochs: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        look_ahead: int = 0,
        lengths: np.ndarray | None = None,
    ) -> None:
        if not 0 < batch_size <= len(ids) or batch_size % world:
            raise ValueError(
                f"a batch of {batch_size} does not fit {len(ids)} samples and {world} worker(s)"
            )
        self.steps_per_epoch = len(ids) // batch_size
        self.epochs = epochs
        self.rank, self.world, self.look_ahead = rank, world, look_ahead
        self._batch_size = batch_size

        @functools.lru_cache(maxsize=2)
        def order(epoch: int) -> np.ndarray:
            rng = np.random.default_rng((seed, epoch))
            if lengths is None:
                return rng.permutation(ids)
            return ids[_grouped(rng, lengths, batch_size)]

        self._order = order

    def __len__(self) -> int:
        """Steps in all."""
        return self.steps_per_epoch * self.epochs

    def batch(self, step: int) -> Batch:
        """The batch of a step, and what follows it."""
        last = min(step + self.look_ahead, len(self) - 1)
        ahead = tuple(self._bare(later) for later in range(step + 1, last + 1))
        bare = self._bare(step)
        return Batch(step, bare.epoch, bare.every, self.rank, self.world, ahead)

    def _bare(self, step: int) -> Batch:
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self._batch_size
        every = self._order(epoch)[start : start + self._batch_size]
        return Batch(step, epoch, every, self.rank, self.world)


def _grouped(rng: np.random.Generator, lengths_N: np.ndarray, batch_size: int) -> np.ndarray:
    """Places 0 … N - 1 in an order by lot in which neighbours are of about the same length."""
    order = rng.permutation(len(lengths_N))
    full = len(order) // batch_size * batch_size
    parts = []
    for group in np.split(order[:full], range(GROUPED * batch_size, full, GROUPED * batch_size)):
        by_length = group[np.argsort(lengths_N[group], kind="stable")]
        parts.append(rng.permutation(by_length.reshape(-1, batch_size)).ravel())
    return np.concatenate([*parts, order[full:]])
