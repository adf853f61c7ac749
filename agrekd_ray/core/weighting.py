"""Who teaches whom: from the teachers' gradients to the one that the student follows.

`combine` is called on each step, by live actors and by the single-process reference alike. The
weightings themselves are in `strategies`, by name.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agrekd_ray.core.diagnostics import pulls
from agrekd_ray.core.gradient import DistillationGradient
from agrekd_ray.core.kd import check_temperature, entropy_from_gradients, floating, mixed_loss
from agrekd_ray.core.strategies import (
    NO_DIRECTION,
    STRATEGIES,
    Evidence,
    Strategy,
    is_looked_at,
)

__all__ = [
    "STRATEGIES",
    "DistillationGradient",
    "SampleWeighting",
    "Strategy",
    "combine",
    "find_strategy",
    "needs_global_batch",
    "sample_weights",
    "weigh",
]


@dataclass(frozen=True)
class SampleWeighting:
    """Scale each sample by how far the ensemble answers from the biased model; not in the paper.

    Attributes:
        floor: added to the distance, above 0, so that no sample is lost.
        exponent: power of the sum, 0 (off) or above.

    Raises:
        ValueError: for values out of range.
    """

    floor: float = 0.02
    exponent: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.floor) and self.floor > 0):
            raise ValueError(f"floor must be finite and above 0, not {self.floor}")
        if not (math.isfinite(self.exponent) and self.exponent >= 0):
            raise ValueError(f"exponent must be finite and 0 or above, not {self.exponent}")


@torch.no_grad()
def combine(
    strategy: str,
    gradients: Tensor,
    biased_gradient: Tensor | None = None,
    *,
    student_logits: Tensor,
    temperature: float,
    labels: Tensor | None = None,
    entropy: Tensor | None = None,
    sample_weighting: SampleWeighting | None = None,
    **options: Any,
) -> DistillationGradient:
    """One gradient from those of the teachers: that of the paper's weighted loss L_wKD.

    Where `needs_global_batch` holds, the batch must be the whole one, across workers.

    Args:
        strategy: a name in `STRATEGIES`.
        gradients: of the teachers, [M, B, C], from `kd_gradient` at `temperature`.
        biased_gradient: of the biased model, [B, C].
        student_logits: [B, C], the logits that the gradients were taken at.
        temperature: τ, above 0.
        labels: [B], for strategies that need them.
        entropy: [M, B], of the teachers' softened answers in nats, for the loss; None has them
            recovered from the gradients.
        sample_weighting: scales samples, or None; needs `biased_gradient`.
        options: of the strategy.

    Returns:
        Gradient, weights, loss, fallback mask and pulls; gradient, loss and pulls in the gradients'
        precision, float32 at least.

    Raises:
        ValueError: as `weigh`, and for sample weighting without the biased model's gradient.
        FloatingPointError: as `weigh`.
    """
    found, evidence = _checked(
        strategy, gradients, biased_gradient, labels, temperature, student_logits, options
    )
    if sample_weighting is not None and evidence.biased_gradient is None:
        raise ValueError("sample weighting needs biased_gradient")
    weights_MB, fallback_B = found.function(evidence, **options)
    weights_MB = weights_MB.float()
    gradients_MBC = evidence.gradients
    exact_MB = weights_MB.to(gradients_MBC.dtype)
    gradient_BC = (exact_MB.unsqueeze(-1) * gradients_MBC).sum(0)  # a sixth of einsum's time
    pull_MB = pulls(exact_MB, gradients_MBC, gradient_BC, NO_DIRECTION * temperature)
    if entropy is None:
        entropy = entropy_from_gradients(student_logits, gradients_MBC, temperature)
    loss_B = mixed_loss(student_logits, gradient_BC, exact_MB, entropy, temperature)
    if sample_weighting is not None and evidence.biased_gradient is not None:
        scale_B = _scales(gradients_MBC, evidence.biased_gradient, temperature, sample_weighting)
        gradient_BC *= scale_B.unsqueeze(-1)
        loss_B *= scale_B
        pull_MB *= scale_B
    if fallback_B is None:
        fallback_B = torch.zeros_like(loss_B, dtype=torch.bool)
    if not is_looked_at(gradients_MBC):  # by nobody until the loss is read
        for given in (gradients_MBC.sum((0, 2)), biased_gradient):
            if given is not None:
                loss_B = loss_B + 0 * given.reshape(len(loss_B), -1).sum(1)
    lost_M = torch.zeros_like(weights_MB[:, 0], dtype=torch.bool)
    return DistillationGradient(gradient_BC, loss_B, weights_MB, fallback_B, pull_MB, lost_M)


@torch.no_grad()
def weigh(
    strategy: str,
    gradients: Tensor,
    biased_gradient: Tensor | None = None,
    labels: Tensor | None = None,
    temperature: float = 1.0,
    student_logits: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The teachers' weights for each sample.

    Args:
        strategy: a name in `STRATEGIES`.
        gradients: of the teachers, [M, B, C], from `kd_gradient` at `temperature`.
        biased_gradient: of the biased model, [B, C], for strategies that need it.
        labels: [B], for strategies that need them.
        temperature: τ, above 0.
        student_logits: [B, C], the logits that the gradients were taken at, where needed.
        options: of the strategy.

    Returns:
        [M, B], float32, not negative, of sum 1 over M, or 0 for a skipped sample.

    Raises:
        ValueError: for an unknown strategy or option (naming the nearest), an option out of
            range, something that the strategy needs and is missing, or shapes that do not fit.
        FloatingPointError: for gradients with NaN or infinity, naming whose.
    """
    found, evidence = _checked(
        strategy, gradients, biased_gradient, labels, temperature, student_logits, options
    )
    return found.function(evidence, **options)[0].float()


@torch.no_grad()
def sample_weights(
    gradients: Tensor,
    biased_gradient: Tensor,
    temperature: float,
    floor: float = 0.02,
    exponent: float = 0.5,
) -> Tensor:
    """Weights of the samples: how far the ensemble's mean answer lies from the biased model's.

    The distance is the total variation of the two softened answers, in [0, 1]; the gradients
    give it exactly, TV = ½ ‖mean_m g_m − g_b‖₁ / τ. Then (TV + floor) ^ exponent, divided by its
    mean over the batch, which therefore must be the whole one. Sees no label and no group.

    Args:
        gradients: of the teachers, [M, B, C], from `kd_gradient` at `temperature`.
        biased_gradient: of the biased model, [B, C].
        temperature: τ, above 0.
        floor: see `SampleWeighting`.
        exponent: see `SampleWeighting`.

    Returns:
        [B], above 0, of mean 1, in the gradients' precision, float32 at least.

    Raises:
        ValueError: for shapes that do not fit or values out of range.
    """
    check_temperature(temperature)
    _check_shapes(gradients, {"biased_gradient": biased_gradient})
    weighting = SampleWeighting(floor, exponent)
    return _scales(floating(gradients), floating(biased_gradient), temperature, weighting)


def needs_global_batch(strategy: str, sample_weighting: SampleWeighting | None = None) -> bool:
    """Whether workers must gather the whole batch before `combine`.

    True for weights that depend on the gradients of the whole batch, and with sample weighting,
    whose mean is taken over the batch.
    """
    return find_strategy(strategy).global_batch or sample_weighting is not None


def find_strategy(name: str) -> Strategy:
    """The strategy of that name; ValueError with the known and the nearest name otherwise."""
    if name not in STRATEGIES:
        raise ValueError(_unknown("strategy", name, STRATEGIES))
    return STRATEGIES[name]


def _scales(
    gradients_MBC: Tensor, biased_BC: Tensor, temperature: float, weighting: SampleWeighting
) -> Tensor:
    distance_B = (gradients_MBC.mean(0) - biased_BC).abs().sum(-1) * (0.5 / temperature)
    scale_B = (distance_B + weighting.floor) ** weighting.exponent
    return scale_B / scale_B.mean()


def _checked(
    name: str,
    gradients: Tensor,
    biased_gradient: Tensor | None,
    labels: Tensor | None,
    temperature: float,
    student_logits: Tensor | None,
    options: dict[str, Any],
) -> tuple[Strategy, Evidence]:
    found = find_strategy(name)
    for option in options:
        if option not in found.options:
            raise ValueError(_unknown(f"option of {name}", option, found.options))
    check_temperature(temperature)
    others = {"biased_gradient": biased_gradient, "student_logits": student_logits}
    _check_shapes(gradients, others)
    if found.needs_biased and biased_gradient is None:
        raise ValueError(f"{name} needs biased_gradient")
    _check_finite(gradients, biased_gradient)
    return found, Evidence(
        gradients=floating(gradients),
        temperature=temperature,
        biased_gradient=None if biased_gradient is None else floating(biased_gradient),
        labels=labels,
        student_logits=student_logits,
    )


def _check_shapes(gradients: Tensor, others: dict[str, Tensor | None]) -> None:
    if gradients.ndim != 3 or not gradients.numel():
        raise ValueError(f"gradients must be [M, B, C], not empty, not {list(gradients.shape)}")
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != gradients.shape[1:]:
            wanted, given = list(gradients.shape[1:]), list(tensor.shape)
            raise ValueError(f"{name} must be {wanted} to fit the gradients, not {given}")


def _check_finite(gradients_MBC: Tensor, biased_BC: Tensor | None) -> None:
    """Raises before NaN can pass for a gradient without direction.

    On a GPU, which would be waited for, nothing is raised: `combine` makes the loss NaN.
    """
    if not is_looked_at(gradients_MBC):
        return
    # A sum is finite only if all its terms are, and costs a fifth of looking at each.
    if all(math.isfinite(float(t.sum())) for t in (gradients_MBC, biased_BC) if t is not None):
        return
    biased_finite = biased_BC is None or bool(torch.isfinite(biased_BC).all())
    if biased_finite and bool(torch.isfinite(gradients_MBC).all()):
        return
    finite_M = torch.isfinite(gradients_MBC).flatten(1).all(1)
    whose = [f"teacher {m}" for m in (~finite_M).nonzero().flatten().tolist()]
    whose += [] if biased_finite else ["the biased model"]
    raise FloatingPointError(
        f"the gradient of {', '.join(whose)} holds NaN or infinity: either its logits or the "
        "student's are no longer finite"
    )


def _unknown(kind: str, name: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"unknown {kind}: {name}{hint} (known: {', '.join(known) or 'none'})"
