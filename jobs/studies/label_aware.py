"""Weightings that see the training labels, for jobs/studies/label_aware.yaml.

Where no teacher is debiased the paper finds no gain and leaves open whether labels would help: they
say on which samples the biased model is wrong.
"""

import torch

import agrekd_ray as ak
from agrekd_ray.core.kd import soft_targets
from agrekd_ray.core.strategies import STRATEGIES


def _of_agre_kd(evidence, factor_MB):
    """AGRE-KD's weights times a factor; AGRE-KD's own where all products are 0."""
    weights_MB, undefined_B = STRATEGIES["agre_kd"].function(evidence)
    product_MB = weights_MB * factor_MB
    total_B = product_MB.sum(0)
    return torch.where(total_B > 0, product_MB / total_B, weights_MB), undefined_B


def _teachers_answers(evidence):
    """The teachers' softened probabilities of the label, [M, B]."""
    softened_MBC = soft_targets(
        evidence.student_logits.double(), evidence.gradients.double(), evidence.temperature
    )
    rows = evidence.labels.expand(len(softened_MBC), -1)[..., None]
    return softened_MBC.gather(2, rows)[..., 0].clamp_min(0)


@ak.strategy("label_credit", per="sample", needs_biased=True, needs_labels=True)
def label_credit(evidence):
    """AGRE-KD's weight times the teacher's probability of the label."""
    return _of_agre_kd(evidence, _teachers_answers(evidence))


@ak.strategy("label_direction", per="sample", needs_biased=True, needs_labels=True)
def label_direction(evidence):
    """AGRE-KD's weight times how far the teacher points as the label does, 0 at least."""
    tau = evidence.temperature
    to_label_BC = (evidence.student_logits.double() / tau).softmax(1)
    to_label_BC = to_label_BC - torch.nn.functional.one_hot(evidence.labels, to_label_BC.shape[1])
    cosine_MB = torch.cosine_similarity(evidence.gradients.double(), to_label_BC[None], dim=2)
    return _of_agre_kd(evidence, cosine_MB.clamp_min(0))
