"""How far each teacher may be trusted where it contradicts the biased model, by labels alone."""

from __future__ import annotations

import torch
from torch import Tensor

PRIOR = 5.0
"""Samples of which a class counts as if it had so many more, that are as all classes together."""
ERRORS = 2.0
"""Standard errors by which a teacher must be ahead of the biased model to be trusted at all."""


@torch.no_grad()
def competence(teacher_logits: Tensor, biased_logits: Tensor, labels: Tensor) -> Tensor:
    """How much more often each teacher is right than the biased model where the two differ.

    Of the samples to which teacher m answers c and the biased model another class: the share on
    which m is right, less the share on which the biased model is. A class counts as if it had
    `PRIOR` samples more, which are as those of all classes together, and these `PRIOR` more that
    say nothing; so few samples say little. Below 0 it is 0: then contradiction is no virtue. A
    teacher that is not ahead over all classes by `ERRORS` standard errors has 0 in every class,
    for with a hard choice the smallest weight is all of it. Sees no group (ours, not the paper's;
    `docs/guard.md`).

    Args:
        teacher_logits: of the M teachers, [M, N, C], on samples that nobody was trained on.
        biased_logits: of the biased model, [N, C].
        labels: classes, integers [N].

    Returns:
        [M, C], float64, in [0, 1].

    Raises:
        ValueError: for shapes that do not fit, or without samples.
    """
    if teacher_logits.ndim != 3 or not teacher_logits.numel():
        shape = list(teacher_logits.shape)
        raise ValueError(f"teacher_logits must be [M, N, C], not empty, not {shape}")
    if biased_logits.shape != teacher_logits.shape[1:] or labels.shape != biased_logits.shape[:1]:
        raise ValueError("biased_logits must be [N, C] and labels [N], as teacher_logits [M, N, C]")
    C = teacher_logits.shape[2]
    answers_MN, biased_N = teacher_logits.argmax(2), biased_logits.argmax(1)
    differ_MN = answers_MN != biased_N
    gain_MN = ((answers_MN == labels).double() - (biased_N == labels).double()) * differ_MN
    samples_M = differ_MN.sum(1) + PRIOR
    overall_M = gain_MN.sum(1) / samples_M
    variance_M = gain_MN.square().sum(1) / samples_M - overall_M.square()
    ahead_M = overall_M > ERRORS * (variance_M.clamp_min(0) / samples_M).sqrt()
    gain_MC, count_MC = (  # of what a teacher answers where it differs
        torch.zeros(len(answers_MN), C, dtype=torch.float64, device=labels.device).scatter_add_(
            1, answers_MN, of_MN
        )
        for of_MN in (gain_MN, differ_MN.double())
    )
    found_MC = (gain_MC + PRIOR * overall_M[:, None]) / (count_MC + PRIOR)
    return found_MC.clamp_min(0) * ahead_M[:, None]
