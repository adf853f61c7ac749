"""What finished models say to the splits that nobody trains on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from agrekd_ray.data import Samples
from agrekd_ray.errors import RunError
from agrekd_ray.models import load
from agrekd_ray.settings import Precision
from agrekd_ray.training import predict


@dataclass(frozen=True)
class Asked:
    """A finished model that is asked.

    Attributes:
        name: of the model, for people, and for its place in the fleet.
        folder: its checkpoint.
        splits: names of those that it is asked about.
        precision: of its forward passes.
    """

    name: str
    folder: Path
    splits: tuple[str, ...]
    precision: Precision = "auto"


Take = Callable[[Asked, Mapping[str, Tensor]], None]
"""Gets a model's logits [N, C] by split."""


def answers(
    asked: Asked, samples: Samples, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Logits of a model by split, float32 [N, C], in the order of the split's ids.

    Args:
        asked: the model, and about what.
        samples: the data set.
        device: to compute on.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        RunError: it answers with NaN or infinite logits, or the device has not that precision.
    """
    model, _ = load(asked.folder, device)
    by_split = {}
    for split in asked.splits:
        logits_NC = predict(
            model, samples, samples.splits[split], device=device, precision=asked.precision
        )
        if broken := int((~torch.isfinite(logits_NC)).any(1).sum()):
            raise RunError(
                f"model {asked.name} answers with NaN or infinite logits ({broken} of "
                f"{len(logits_NC)} samples of {split}); make it again: {asked.folder}."
            )
        by_split[split] = logits_NC
    return by_split
