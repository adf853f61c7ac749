"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from agrekd_ray.settings import Training

SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
"""Factor of the learning rate by the share of the steps after the warm-up that is done."""


def make_optimizer(parameters: Iterable[torch.nn.Parameter], training: Training) -> Optimizer:
    """SGD with momentum, or AdamW, as the settings say; on a GPU in one kernel each."""
    parameters = list(parameters)
    fused = all(parameter.device.type == "cuda" for parameter in parameters) or None
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "adamw":
        return AdamW(parameters, lr=rate, weight_decay=decay, fused=fused)
    return SGD(parameters, lr=rate, momentum=training.momentum, weight_decay=decay, fused=fused)


def make_schedule(optimizer: Optimizer, training: Training, steps_per_epoch: int) -> LambdaLR:
    """Linear warm-up, then the shape that the settings name; one `step()` a training step."""
    warmup = round(training.warmup_epochs * steps_per_epoch)
    rest = max(1, training.epochs * steps_per_epoch - warmup)
    shape = SHAPES[training.schedule]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return shape(min(1.0, (step - warmup) / rest))

    return LambdaLR(optimizer, factor)
