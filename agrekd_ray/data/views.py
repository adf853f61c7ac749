"""Deterministic views: augmentation as a pure function of (seed, view, sample id)."""

from __future__ import annotations

import functools
import math
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from agrekd_ray.settings import Count, NonNegative, Settings


class Views(Settings):
    """How training views differ from the image itself. Everything off: one view, the image.

    Attributes:
        flip: mirror left and right with probability one half.
        shift: largest translation in either direction, in pixels; what moves in is black.
        rotate: largest rotation in either direction, in degrees.
        count: views of each sample in all: epoch e shows view e mod `count`, so that teachers are
            done once all of them are recorded. Null shows a new one in every epoch.
    """

    flip: bool = False
    shift: NonNegative = 0
    rotate: Annotated[NonNegative, Field(le=180)] = 0
    count: Count | None = None

    @property
    def augments(self) -> bool:
        """Whether any view differs from the image."""
        return self.flip or self.shift > 0 or self.rotate > 0

    def number(self, epoch: int) -> int:
        """Of the view that an epoch shows."""
        if not self.augments:
            return 0
        return epoch % self.count if self.count else epoch

    @property
    def look(self) -> str:
        """What a view's picture depends on besides its number, as text."""
        return self.model_dump_json(exclude={"count"})


@functools.lru_cache(maxsize=4)  # this epoch's draws, and the next one's for those who look ahead
def _draws(seed: int, number: int, samples: int) -> np.ndarray:
    """Uniform draws in [0, 1), [samples, 4]: row i belongs to sample i in this view."""
    return np.random.default_rng((seed, number)).random((samples, 4), dtype=np.float32)


def view(
    images: Tensor, ids: np.ndarray, number: int, *, views: Views, seed: int, samples: int
) -> Tensor:
    """The images as one view shows them.

    Args:
        images: float32 [B, channels, height, width].
        ids: sample ids, [B], below `samples`.
        number: of the view, from 0.
        views: what may vary.
        seed: of the data set.
        samples: size of the whole data set; part of what defines the draws.

    Returns:
        float32 [B, channels, height, width]; row b depends on (seed, number, ids[b]) and the image
        alone, whatever else is in the batch.
    """
    if not views.augments:
        return images
    draws = torch.from_numpy(_draws(seed, number, samples)[ids])
    height, width = images.shape[-2:]
    angle = (2 * draws[:, 0] - 1) * math.radians(views.rotate)
    mirror = torch.where(draws[:, 1] < 0.5, -1.0, 1.0) if views.flip else torch.ones(len(ids))
    cos, sin = angle.cos(), angle.sin()
    affine = torch.zeros(len(ids), 2, 3)
    affine[:, 0, 0], affine[:, 0, 1] = cos * mirror, -sin * height / width
    affine[:, 1, 0], affine[:, 1, 1] = sin * mirror * width / height, cos
    affine[:, 0, 2] = (2 * draws[:, 2] - 1) * views.shift * 2 / width
    affine[:, 1, 2] = (2 * draws[:, 3] - 1) * views.shift * 2 / height
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
