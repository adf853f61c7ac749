"""The one result of every step: what a student's teachers, or its labels, tell it on a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DistillationGradient:
    """The gradient of a batch's objective with respect to the student's logits, and its making.

    Between processes it travels as numpy arrays: Ray handles those several times faster.

    Attributes:
        gradient_BC: of each sample's own objective, Σ_m w_m g_m where teachers alone speak, times
            the sample's weight where that is on. Not divided by the batch size.
        loss_B: the objective whose gradient that is, by sample, in nats (times τ² for the
            teachers' part, which is recovered from the gradients: good to about 1e-5 · τ²).
        weights_MB: of the teachers, float32; they sum to 1, or to 0 for a skipped sample. None, as
            all that follows, where there are no teachers.
        fallback_B: True where all weights were 0 (the 0/0 case) and the fallback decided.
        pull_MB: how far each teacher moves the student along the teachers' gradient; see
            `diagnostics.pulls`. They sum to its norm, or all are 0 where that is rounding.
        lost_M: teachers that are lost, and that the others taught without.
    """

    gradient_BC: Tensor
    loss_B: Tensor
    weights_MB: Tensor | None = None
    fallback_B: Tensor | None = None
    pull_MB: Tensor | None = None
    lost_M: Tensor | None = None

    def to(self, device: torch.device) -> DistillationGradient:
        """The same on a device."""
        parts = {name: part.to(device) for name, part in vars(self).items() if part is not None}
        return DistillationGradient(**parts)

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = {name: part.cpu().numpy() for name, part in vars(self).items() if part is not None}
        return _from_arrays, (arrays,)


def _from_arrays(arrays: dict[str, Any]) -> DistillationGradient:
    return DistillationGradient(**{name: torch.tensor(part) for name, part in arrays.items()})
