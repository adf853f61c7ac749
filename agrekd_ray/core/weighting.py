"""Who teaches whom: from the teachers' gradients to the one that the student follows.

`combine` is called on each step, by live actors and by the single-process reference alike; out of
records `combine_members`, and `summarize` once for several steps. The weightings themselves are in
`strategies`, by name.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from agrekd_ray.core.diagnostics import pulls
from agrekd_ray.core.gradient import DistillationGradient, Evidence, required
from agrekd_ray.core.kd import check_temperature, entropy_from_gradients, floating, mixed_loss
from agrekd_ray.core.parts import in_parts
from agrekd_ray.core.strategies import (
    NO_DIRECTION,
    STRATEGIES,
    Strategy,
    is_looked_at,
)

__all__ = [
    "STRATEGIES",
    "DistillationGradient",
    "SampleWeighting",
    "Strategy",
    "combine",
    "combine_members",
    "find_strategy",
    "needs_global_batch",
    "sample_weights",
    "summarize",
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
        sample_weighting: scales samples, or None; needs `biased_gradient`.
        options: of the strategy.

    Returns:
        Gradient, weights, loss, fallback mask and pulls; gradient, loss and pulls in the gradients'
        precision, float32 at least.

    Raises:
        ValueError: as `weigh`, and for sample weighting without the biased model's gradient.
        FloatingPointError: as `weigh`.
    """
    evidence = _evidence(gradients, biased_gradient, labels, temperature, student_logits)
    return summarize([combine_members(strategy, evidence, sample_weighting, **options)])


@torch.no_grad()
def combine_members(
    strategy: str,
    evidence: Evidence,
    sample_weighting: SampleWeighting | None = None,
    **options: Any,
) -> DistillationGradient:
    """`combine`, but for what nobody waits for: `summarize` works out loss and pulls.

    Args:
        strategy: a name in `STRATEGIES`.
        evidence: with the student's logits.
        sample_weighting: as for `combine`.
        options: of the strategy.
    """
    found = _checked(strategy, evidence, options)
    if sample_weighting is not None and evidence.biased is None:
        raise ValueError("sample weighting needs biased_gradient")
    weights_MB, fallback_B = found.function(evidence, **options)
    weights_MB = weights_MB.float()
    gradient_BC = _mixture(weights_MB, evidence.gradients)
    scale_B = None
    if sample_weighting is not None:
        scale_B = _scales(evidence, sample_weighting)
        gradient_BC *= scale_B.unsqueeze(-1)
    if fallback_B is None:
        fallback_B = torch.zeros_like(weights_MB[0], dtype=torch.bool)
    return DistillationGradient(
        gradient_BC,
        weights_MB=weights_MB,
        fallback_B=fallback_B,
        evidence=evidence,
        scale_B=scale_B,
    )


@torch.no_grad()
def summarize(steps: Sequence[DistillationGradient]) -> DistillationGradient:
    """Some steps of one student as one, with their losses and pulls.

    Of several at once, since nothing waits for these and each operation costs a step's time.
    """
    if any(step.loss_B is not None for step in steps):
        steps = [step if step.loss_B is not None else summarize([step]) for step in steps]
    lost = [step.lost_M for step in steps if step.lost_M is not None]
    parts: dict[str, Any] = {
        name: _together(given, -2 if name == "gradient_BC" else -1)
        for name in ("gradient_BC", "loss_B", "weights_MB", "fallback_B", "pull_MB", "scale_B")
        if (given := [part for step in steps if (part := getattr(step, name)) is not None])
    }
    whole = DistillationGradient(**parts, lost_M=torch.stack(lost).sum(0) if lost else None)
    seen = [step.evidence for step in steps if step.evidence is not None]
    if whole.loss_B is not None or not seen:
        return whole
    temperature, gradient_BC = seen[0].temperature, whole.gradient_BC
    if whole.scale_B is not None:
        gradient_BC = gradient_BC / whole.scale_B.unsqueeze(-1)
    student_BC = _together([required(evidence.student_logits) for evidence in seen], 0)
    gradients_MBC = _together([evidence.gradients for evidence in seen], 1)
    exact_MB = required(whole.weights_MB).to(gradients_MBC.dtype)
    pull_MB = pulls(exact_MB, gradients_MBC, gradient_BC, NO_DIRECTION * temperature)
    if seen[0].entropy_MB is None:
        entropy_MB = entropy_from_gradients(student_BC, gradients_MBC, temperature)
    else:
        entropy_MB = _together([required(evidence.entropy_MB) for evidence in seen], 1)
    loss_B = mixed_loss(student_BC, gradient_BC, exact_MB, entropy_MB, temperature)
    loss_B = loss_B + 0 * gradient_BC.sum(1)  # NaN where a gradient is, though its weight be 0
    if seen[0].biased is not None:
        loss_B += 0 * torch.cat([required(e.biased_gradient) for e in seen]).sum(1)
    if whole.scale_B is not None:
        loss_B, pull_MB = loss_B * whole.scale_B, pull_MB * whole.scale_B
    return replace(whole, loss_B=loss_B, pull_MB=pull_MB, scale_B=None)


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
    evidence = _evidence(gradients, biased_gradient, labels, temperature, student_logits)
    return _checked(strategy, evidence, options).function(evidence, **options)[0].float()


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
    evidence = _evidence(gradients, biased_gradient, None, temperature, None)
    return _scales(evidence, SampleWeighting(floor, exponent))


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


def _together(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Several as one; a single one as it is, for a copy of all gradients takes its time."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), axis)


def _mixture(weights_MB: Tensor, gradients_MBC: Tensor) -> Tensor:
    """Σ_m w_m g_m, [B, C]; in a sixth of einsum's time."""
    weights_MB1 = weights_MB.to(gradients_MBC.dtype).unsqueeze(-1)
    sums = ((w * g).sum(0) for g, w in in_parts(gradients_MBC, weights_MB1))
    return functools.reduce(torch.Tensor.add_, sums)


def _scales(evidence: Evidence, weighting: SampleWeighting) -> Tensor:
    away_BC = evidence.gradients.mean(0) - required(evidence.biased_gradient)
    distance_B = away_BC.abs().sum(-1) * (0.5 / evidence.temperature)
    scale_B = (distance_B + weighting.floor) ** weighting.exponent
    return scale_B / scale_B.mean()


def _evidence(
    gradients: Tensor,
    biased_gradient: Tensor | None,
    labels: Tensor | None,
    temperature: float,
    student_logits: Tensor | None,
) -> Evidence:
    check_temperature(temperature)
    others = {"biased_gradient": biased_gradient, "student_logits": student_logits}
    _check_shapes(gradients, others)
    M, members = len(gradients), floating(gradients)
    if biased_gradient is not None:
        members = torch.cat([members, floating(biased_gradient)[None]])
    biased = None if biased_gradient is None else M
    return Evidence(members, M, temperature, student_logits, biased, labels)


def _checked(name: str, evidence: Evidence, options: dict[str, Any]) -> Strategy:
    found = find_strategy(name)
    for option in options:
        if option not in found.options:
            raise ValueError(_unknown(f"option of {name}", option, found.options))
    if found.needs_biased and evidence.biased is None:
        raise ValueError(f"{name} needs biased_gradient")
    _check_finite(evidence)
    return found


def _check_shapes(gradients: Tensor, others: dict[str, Tensor | None]) -> None:
    if gradients.ndim != 3 or not gradients.numel():
        raise ValueError(f"gradients must be [M, B, C], not empty, not {list(gradients.shape)}")
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != gradients.shape[1:]:
            wanted, given = list(gradients.shape[1:]), list(tensor.shape)
            raise ValueError(f"{name} must be {wanted} to fit the gradients, not {given}")


def _check_finite(evidence: Evidence) -> None:
    """Raises before NaN can pass for a gradient without direction.

    On a GPU, which would be waited for, nothing is raised: `summarize` makes the loss NaN.
    """
    members_mBC = evidence.members_mBC
    # A sum is finite only if all its terms are, and costs a fifth of looking at each.
    if not is_looked_at(members_mBC) or math.isfinite(float(members_mBC.sum())):
        return
    finite_m = torch.isfinite(members_mBC).flatten(1).all(1)
    if bool(finite_m.all()):
        return
    whose = [
        "the biased model" if m >= evidence.teachers else f"teacher {m}"
        for m in (~finite_m).nonzero().flatten().tolist()
    ]
    raise FloatingPointError(
        f"the gradient of {', '.join(whose)} holds NaN or infinity: either its logits or the "
        "student's are no longer finite"
    )


def _unknown(kind: str, name: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"unknown {kind}: {name}{hint} (known: {', '.join(known) or 'none'})"
