"""The one result of every step: what a student's teachers, or its labels, tell it on a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a weighting looks at, and what is told of it later: one batch, checked by `weighting`.

    Attributes:
        members_mBC: gradients of each member's loss by the student's logits, float32 or float64;
            the first M are the teachers'.
        teachers: M.
        temperature: τ that the gradients were taken at.
        student_logits: [B, C], the logits that the gradients were taken at, where given.
        biased: number of the biased model among the members; None where it is not there.
        labels: [B], the classes, where the caller has them.
        entropy_MB: of the teachers' softened answers in nats, where it is known.
    """

    members_mBC: Tensor
    teachers: int
    temperature: float
    student_logits: Tensor | None = None
    biased: int | None = None
    labels: Tensor | None = None
    entropy_MB: Tensor | None = None

    @property
    def gradients(self) -> Tensor:
        """Of the teachers, [M, B, C]."""
        return self.members_mBC[: self.teachers]

    @property
    def biased_gradient(self) -> Tensor | None:
        """Of the biased model, [B, C]."""
        return None if self.biased is None else self.members_mBC[self.biased]


@dataclass(frozen=True, eq=False)
class DistillationGradient:
    """The gradient of a batch's objective with respect to the student's logits, and its making.

    Between processes it travels as numpy arrays: Ray handles those several times faster.

    Attributes:
        gradient_BC: of each sample's own objective, Σ_m w_m g_m where teachers alone speak, times
            the sample's weight where that is on. Not divided by the batch size.
        loss_B: the objective whose gradient that is, by sample, in nats (times τ² for the
            teachers' part, which is recovered from the gradients: good to about 1e-5 · τ²). None,
            as `pull_MB`, where `weighting.summarize` is still to work it out.
        weights_MB: of the teachers, float32; they sum to 1, or to 0 for a skipped sample. None, as
            all that follows, where there are no teachers.
        fallback_B: True where all weights were 0 (the 0/0 case) and the fallback decided.
        pull_MB: how far each teacher moves the student along the teachers' gradient; see
            `diagnostics.pulls`. They sum to its norm, or all are 0 where that is rounding.
        lost_M: teachers that are lost, and that the others taught without; of several steps
            together, in how many.
        evidence: of what loss and pulls are still to be worked out.
        scale_B: the weights of the samples, where they are on, until then.
    """

    gradient_BC: Tensor
    loss_B: Tensor | None = None
    weights_MB: Tensor | None = None
    fallback_B: Tensor | None = None
    pull_MB: Tensor | None = None
    lost_M: Tensor | None = None
    evidence: Evidence | None = None
    scale_B: Tensor | None = None

    def to(self, device: torch.device) -> DistillationGradient:
        """The same on a device."""
        parts: dict[str, Any] = {
            name: part.to(device) for name, part in vars(self).items() if part is not None
        }
        return DistillationGradient(**parts)

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = {name: part.cpu().numpy() for name, part in vars(self).items() if part is not None}
        return _from_arrays, (arrays,)


def required(part: Tensor | None) -> Tensor:
    """A part that cannot be missing."""
    assert part is not None
    return part


def _from_arrays(arrays: dict[str, Any]) -> DistillationGradient:
    parts: dict[str, Any] = {name: torch.tensor(part) for name, part in arrays.items()}
    return DistillationGradient(**parts)
