"""Where the gradient of a step comes from, by the labels alone or otherwise, and who watches it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from agrekd_ray.core.gradient import DistillationGradient
from agrekd_ray.core.kd import label_gradient
from agrekd_ray.training.batches import Batch
from agrekd_ray.training.loader import Column, Loaded


class Guidance(Protocol):
    """Where the gradient of a step comes from."""

    @property
    def whole_batch(self) -> bool:
        """Whether it looks at the whole global batch, so that its columns must come whole."""
        ...

    def columns(self, epoch: int, ahead: bool) -> Sequence[Column] | None:
        """What it has recorded for an epoch's samples, to come along with each batch.

        Called in the loader's thread, too; the same objects while an epoch lasts.

        Args:
            epoch: its number.
            ahead: whether the epoch may not have begun. Then the answer may be None: not known yet.
        """
        ...

    def fault(self, epoch: int) -> str:
        """What is wrong with the columns of an epoch, and what to do; empty where nothing is."""
        ...

    def ready(
        self, further: tuple[Tensor, ...], sizes: Sequence[int]
    ) -> Sequence[tuple[Tensor, ...]]:
        """Makes of rows of `columns` what `gradient` wants of each batch, ahead of the step.

        Called in the loader's thread, on the rows' device.

        Args:
            further: rows of several batches.
            sizes: of these.
        """
        ...

    def gradient(self, batch: Batch, loaded: Loaded, logits_BC: Tensor) -> DistillationGradient:
        """The gradient for this worker's samples.

        Args:
            batch: the step's samples and what follows them.
            loaded: the same on the device, with what `ready` made of the rows of `columns`.
            logits_BC: of the student, float32, detached.
        """
        ...


class Labels:
    """Guidance by the labels alone: cross-entropy (one-hot students, ERM teachers)."""

    whole_batch = False

    def columns(self, epoch: int, ahead: bool) -> Sequence[Column]:
        """See `Guidance.columns`."""
        return ()

    def fault(self, epoch: int) -> str:
        """See `Guidance.fault`."""
        return ""

    def ready(
        self, further: tuple[Tensor, ...], sizes: Sequence[int]
    ) -> Sequence[tuple[Tensor, ...]]:
        """See `Guidance.ready`."""
        return [()] * len(sizes)

    def gradient(self, batch: Batch, loaded: Loaded, logits_BC: Tensor) -> DistillationGradient:
        """See `Guidance.gradient`."""
        return label_guidance(logits_BC, loaded.labels_B)


def label_guidance(logits_BC: Tensor, labels_B: Tensor) -> DistillationGradient:
    """Cross-entropy with the labels, and its gradient."""
    entropy_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
    return DistillationGradient(label_gradient(logits_BC, labels_B), entropy_B)


class Observer(Protocol):
    """Somebody who watches the steps (who taught whom); training never asks it anything."""

    def observe(self, ids_B: Tensor, guided: DistillationGradient, steps: int) -> None:
        """Some steps were made, with B samples in all."""
        ...

    def state(self) -> Tensor:
        """What it has seen of the epoch under way, float64 [K], to be put down within it."""
        ...

    def take_up(self, state_K: Tensor) -> None:
        """Go on from a `state`."""
        ...
