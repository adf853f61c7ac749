"""What tells a reader why a student became what it is: who moved it, and whom to believe.

Nothing here takes part in training.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    norm_B1 = combined.norm(dim=-1, keepdim=True)
    unit_BC = combined / norm_B1.masked_fill(norm_B1 <= negligible, torch.inf)
    return weights * (gradients * unit_BC).sum(-1)
