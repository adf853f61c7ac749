"""Deterministic views: augmentation as a pure function of (seed, view, sample id)."""

from __future__ import annotations

import functools
import math
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor

from agrekd_ray.settings import Count, NonNegative, Positive, Settings, Share


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError("two numbers above 0, the smaller one first")
    return pair


class Crop(Settings):
    """A random part of the picture, resized to what models see.

    Attributes:
        scale: smallest and largest share of the picture's area.
        ratio: smallest and largest width divided by height; where the part would reach beyond the
            picture, it is cut there.
    """

    scale: Annotated[tuple[Share, Share], AfterValidator(_ascending)] = (0.08, 1.0)
    ratio: Annotated[tuple[Positive, Positive], AfterValidator(_ascending)] = (3 / 4, 4 / 3)


class Views(Settings):
    """How training views differ from the image itself. Everything off: one view, the image.

    Attributes:
        flip: mirror left and right with probability one half.
        shift: largest translation in either direction, in pixels; what moves in is black.
        rotate: largest rotation in either direction, in degrees.
        crop: a random part of the picture; null shows its middle.
        count: views of each sample in all: epoch e shows view e mod `count`, so that teachers are
            done once all of them are recorded. Null shows a new one in every epoch.
    """

    flip: bool = False
    shift: NonNegative = 0
    rotate: Annotated[NonNegative, Field(le=180)] = 0
    crop: Crop | None = None
    count: Count | None = None

    @property
    def augments(self) -> bool:
        """Whether any view differs from the image."""
        return self.flip or self.shift > 0 or self.rotate > 0 or self.crop is not None

    def number(self, epoch: int) -> int:
        """Of the view that an epoch shows."""
        if not self.augments:
            return 0
        return epoch % self.count if self.count else epoch

    @property
    def look(self) -> str:
        """What a view's picture depends on besides its number, as text."""
        # Without a crop as it was before there were any: teachers made then are found again.
        return self.model_dump_json(exclude={"count"} if self.crop else {"count", "crop"})


@functools.lru_cache(maxsize=4)  # this epoch's draws, and the next one's for those who look ahead
def _draws(seed: int, number: int, samples: int) -> np.ndarray:
    """Uniform draws in [0, 1), [samples, 4]: row i belongs to sample i in this view."""
    return np.random.default_rng((seed, number)).random((samples, 4), dtype=np.float32)


@functools.lru_cache(maxsize=4)
def _crop_draws(seed: int, number: int, samples: int) -> np.ndarray:
    """As `_draws`, for crops; apart, so that a crop leaves the other draws as they are."""
    return np.random.default_rng((seed, number, 1)).random((samples, 4), dtype=np.float32)


def view(
    images: Tensor,
    ids: np.ndarray,
    number: int,
    *,
    views: Views,
    seed: int,
    samples: int,
    size: int | None = None,
) -> Tensor:
    """The images as one view shows them.

    Args:
        images: float32 [B, channels, height, width].
        ids: sample ids, [B], below `samples`.
        number: of the view, from 0.
        views: what may vary.
        seed: of the data set.
        samples: size of the whole data set; part of what defines the draws.
        size: height and width of the views; None for the images' own.

    Returns:
        float32 [B, channels, height, width]; row b depends on (seed, number, ids[b]) and the image
        alone, whatever else is in the batch.
    """
    if not views.augments:
        return images
    draws = torch.from_numpy(_draws(seed, number, samples)[ids])
    height, width = (size, size) if size else images.shape[-2:]
    angle = (2 * draws[:, 0] - 1) * math.radians(views.rotate)
    mirror = torch.where(draws[:, 1] < 0.5, -1.0, 1.0) if views.flip else torch.ones(len(ids))
    cos, sin = angle.cos(), angle.sin()
    affine = torch.zeros(len(ids), 2, 3)
    affine[:, 0, 0], affine[:, 0, 1] = cos * mirror, -sin * height / width
    affine[:, 1, 0], affine[:, 1, 1] = sin * mirror * width / height, cos
    affine[:, 0, 2] = (2 * draws[:, 2] - 1) * views.shift * 2 / width
    affine[:, 1, 2] = (2 * draws[:, 3] - 1) * views.shift * 2 / height
    extent_B2, centre_B2 = _part(images, ids, number, (height, width), views, seed, samples)
    affine *= extent_B2[:, :, None]
    affine[:, :, 2] += centre_B2
    shape = [*images.shape[:2], height, width]
    grid = F.affine_grid(affine, shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _part(
    images: Tensor,
    ids: np.ndarray,
    number: int,
    shown: tuple[int, int],
    views: Views,
    seed: int,
    samples: int,
) -> tuple[Tensor, Tensor]:
    """What part of each image a view is made of: extents and centres, (x, y), [B, 2].

    In units in which the image reaches from -1 to 1.
    """
    height, width = images.shape[-2:]
    if views.crop is None:
        middle_B2 = torch.tensor([shown[1] / width, shown[0] / height]).expand(len(ids), 2)
        return middle_B2, torch.zeros(len(ids), 2)
    draws = torch.from_numpy(_crop_draws(seed, number, samples)[ids])
    (least, most), (narrow, wide) = views.crop.scale, views.crop.ratio
    area = (least + (most - least) * draws[:, 0]) * height * width
    ratio = (math.log(narrow) + (math.log(wide) - math.log(narrow)) * draws[:, 1]).exp()
    sides_B2 = torch.stack([(area * ratio).sqrt() / width, (area / ratio).sqrt() / height], 1)
    sides_B2 = sides_B2.clamp(max=1)
    return sides_B2, (1 - sides_B2) * (2 * draws[:, 2:] - 1)
