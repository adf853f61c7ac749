"""Deterministic views: augmentation as a pure function of (seed, view, sample id)."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
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

    def fingerprint(self, seed: int) -> str:
        """Of what a view's picture depends on besides its number, for a data set's seed."""
        # Without a crop as it was before there were any: teachers made then are found again.
        look = self.model_dump_json(exclude={"count"} if self.crop else {"count", "crop"})
        return hashlib.sha256(f"{seed} {look}".encode()).hexdigest()


ONE_VIEW = Views()
"""Of data that are not augmented."""


@functools.lru_cache(maxsize=8)  # this view's draws, and the next one's for those who look ahead
def _draws(samples: int, *seeds: int) -> np.ndarray:
    """Uniform draws in [0, 1), [samples, 4]: row i belongs to sample i."""
    return np.random.default_rng(seeds).random((samples, 4), dtype=np.float32)


def draws(views: Views, seed: int, view: int | None, samples: int) -> tuple[np.ndarray, ...]:
    """The random numbers of a view, a row a sample: what `augment` needs besides the images.

    Args:
        views: what may vary.
        seed: of the data set.
        view: its number, from 0; None is the image itself, which needs none.
        samples: size of the whole data set; part of what defines the numbers.

    Returns:
        Up to two arrays, float32 [samples, 4] in [0, 1), the same objects for the same view.
    """
    if view is None or not views.augments:
        return ()
    own = _draws(samples, seed, view)
    # Crops have draws apart, so that a crop leaves the other draws as they are.
    return (own,) if views.crop is None else (own, _draws(samples, seed, view, 1))


def augment(
    images: Tensor, draws: Sequence[Tensor], views: Views, size: int | None = None
) -> Tensor:
    """The images as one view shows them; works on their device and waits for nothing.

    Args:
        images: float32 [B, channels, height, width].
        draws: rows of `draws`, float32 [B, 4] each, on the device of the images.
        views: what may vary.
        size: height and width of the views; None for the images' own.

    Returns:
        float32 [B, channels, height, width]; row b depends on image b and its draws alone,
        whatever else is in the batch.
    """
    if not draws:
        return images
    own_B4, (height, width) = draws[0], (size, size) if size else images.shape[-2:]
    angle = (2 * own_B4[:, 0] - 1) * math.radians(views.rotate)
    mirror = torch.where(own_B4[:, 1] < 0.5, -1.0, 1.0) if views.flip else torch.ones_like(angle)
    cos, sin = angle.cos(), angle.sin()
    (wide, high), (right, down) = _part(images, draws[1:], (width, height), views.crop)
    shift_x = (2 * own_B4[:, 2] - 1) * views.shift * 2 / width
    shift_y = (2 * own_B4[:, 3] - 1) * views.shift * 2 / height
    x, y = _centres(width, images)[None, None], _centres(height, images)[None, :, None]

    def across(along_x: Tensor, along_y: Tensor, offset: Tensor) -> Tensor:
        of_x, of_y, offset = (each[:, None, None] for each in (along_x, along_y, offset))
        return (of_x * x + offset) + of_y * y

    # Not by `F.affine_grid`, whose matrix product is of ten bits where a training allows them.
    at_x = across(cos * mirror * wide, -sin * height / width * wide, shift_x * wide + right)
    at_y = across(sin * mirror * width / height * high, cos * high, shift_y * high + down)
    grid = torch.stack([at_x, at_y], -1)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _centres(pixels: int, images: Tensor) -> Tensor:
    """Of a side's pixels, where the side reaches from -1 to 1; on the device of the images."""
    return (2 * torch.arange(pixels, device=images.device) + 1) / pixels - 1


Pair = tuple[Tensor | float, Tensor | float]


def _part(
    images: Tensor, draws: Sequence[Tensor], shown: tuple[int, int], crop: Crop | None
) -> tuple[Pair, Pair]:
    """What part of each image a view is made of: extents and centres, (x, y), [B] each.

    In units in which the image reaches from -1 to 1.
    """
    height, width = images.shape[-2:]
    if crop is None:
        return (shown[0] / width, shown[1] / height), (0.0, 0.0)
    (least, most), (narrow, wide) = crop.scale, crop.ratio
    area, ratio, x, y = draws[0].unbind(1)
    area = (least + (most - least) * area) * height * width
    ratio = (math.log(narrow) + (math.log(wide) - math.log(narrow)) * ratio).exp()
    extent_x = ((area * ratio).sqrt() / width).clamp(max=1)
    extent_y = ((area / ratio).sqrt() / height).clamp(max=1)
    return (extent_x, extent_y), ((1 - extent_x) * (2 * x - 1), (1 - extent_y) * (2 * y - 1))
