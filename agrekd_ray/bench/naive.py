"""The yardstick: distillation as one process does it that takes the paper's equations literally."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agrekd_ray.core.gradient import DistillationGradient
from agrekd_ray.core.kd import kd_loss
from agrekd_ray.training import Batch, Loaded, Trainer


class NaiveTrainer(Trainer):
    """AGRE-KD with one autograd pass a teacher through the student, and one for the step itself.

    Every teacher is computed on every step. Weights are taken from the cosines of the gradients
    with respect to all parameters; the first teacher is the biased model, so that M + 1 passes
    are made in all.

    Attributes:
        teachers: the M teachers.
        temperature: tau.
    """

    teachers: Sequence[nn.Module] = ()
    temperature: float = 1.0

    def step(self, batch: Batch, loaded: Loaded) -> DistillationGradient:
        """See `Trainer.step`."""
        inputs = loaded.inputs
        logits_BC = self.network(inputs)
        parameters = list(self.model.parameters())
        losses, gradients = [], []
        for teacher in self.teachers:
            with torch.no_grad():
                teacher_BC = teacher(inputs)
            loss_B = kd_loss(logits_BC, teacher_BC, self.temperature)
            parts = torch.autograd.grad(loss_B.mean(), parameters, retain_graph=True)
            gradients.append(torch.cat([part.flatten() for part in parts]))
            losses.append(loss_B)
        weights_M = 1 - F.cosine_similarity(torch.stack(gradients), gradients[0][None])
        weights_M = weights_M / weights_M.sum().clamp_min(1e-6)
        loss_B = (weights_M[:, None] * torch.stack(losses)).sum(0)
        self.optimizer.zero_grad(set_to_none=True)
        loss_B.mean().backward()
        self.optimizer.step()
        self.schedule.step()
        detached: Tensor = loss_B.detach()
        return DistillationGradient(torch.zeros_like(logits_BC), detached)
