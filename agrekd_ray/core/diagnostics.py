"""What tells a reader why a student became what it is: who moved it, and whom to believe.

Nothing here takes part in training.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from agrekd_ray.core.parts import in_parts

CALIBRATION_BINS = 15
CASES = ("agrees_right", "agrees_wrong", "contradicts_right", "contradicts_wrong")
"""How an ensemble stands to the biased model on a sample, and whether the ensemble is right."""


@torch.no_grad()
def pulls(weights: Tensor, gradients: Tensor, combined: Tensor, negligible: float) -> Tensor:
    """How far each teacher moves the student along the gradient that it follows.

    p_m = w_m ⟨g_m, g⟩ / ‖g‖ with g = Σ_m w_m g_m, so Σ_m p_m = ‖g‖: Euler's decomposition of a
    function that is homogeneous in the weights, as risk is shared out (Tasche, "Risk contributions
    and performance measurement", 1999). Negative for a teacher that the others overrule.

    Args:
        weights: of the teachers, [M, B].
        gradients: of the teachers, [M, B, C].
        combined: Σ_m w_m g_m, [B, C].
        negligible: a combined gradient of this norm or less has no direction; all pulls are 0.

    Returns:
        [M, B], in the unit of the gradients.
    """
    norm_B1 = torch.linalg.vector_norm(combined, dim=-1, keepdim=True)
    unit_BC = combined / norm_B1.masked_fill(norm_B1 <= negligible, torch.inf)
    return weights * torch.cat([torch.linalg.vecdot(g, unit_BC) for (g,) in in_parts(gradients)])


@torch.no_grad()
def agreement_cases(ensemble: Tensor, biased: Tensor, labels: Tensor, member_NG: Tensor) -> Tensor:
    """Where the ensemble follows the biased model and where it contradicts it, by group.

    What it contradicts and is right about is all that it can teach against the bias. Where it
    agrees and is wrong, nobody in the room knows better.

    Args:
        ensemble: classes that the ensemble votes for, [N].
        biased: classes that the biased model names, [N].
        labels: the true classes, [N].
        member_NG: whether a sample is in a group, bool; it may be in several.

    Returns:
        Samples by group and case, int64 [G, 4], in the order of `CASES`.

    Raises:
        ValueError: for parts of different lengths.
    """
    parts = (ensemble, biased, labels, member_NG)
    if len({len(part) for part in parts}) != 1:
        raise ValueError("votes, answers, labels and groups must be of the same samples")
    case_N = 2 * (ensemble != biased).long() + (ensemble != labels).long()
    return member_NG.long().T @ functional.one_hot(case_N, len(CASES))


@torch.no_grad()
def reliability(confidence_N: Tensor, correct_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A reliability diagram (Guo et al. 2017): what a model's confidence is worth.

    Args:
        confidence_N: probability of the answer, in [0, 1].
        correct_N: 1 where the answer is right, else 0.

    Returns:
        Samples, mean confidence and accuracy by bin, [15] each, NaN where a bin is empty. Bins
        have equal widths and are open below and closed above, but for the first, which holds 0.
    """
    bins_N = (confidence_N * CALIBRATION_BINS).ceil().long().sub(1).clamp(0, CALIBRATION_BINS - 1)
    count_K = torch.bincount(bins_N, minlength=CALIBRATION_BINS)
    confidence_K, correct_K = (
        torch.bincount(bins_N, weights=values_N, minlength=CALIBRATION_BINS) / count_K
        for values_N in (confidence_N.double(), correct_N.double())
    )
    return count_K, confidence_K, correct_K
