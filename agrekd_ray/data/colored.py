"""Coloured images: grey-scale pictures whose colour gives the class away, nearly always.

The construction of Colored MNIST by Nam et al. ("Learning from Failure", NeurIPS 2020): ten fixed
mean colours, one per class. Each image gets one colour drawn around a mean, and is multiplied with
it. A *bias-aligned* image has the colour of its class, a *bias-conflicting* one that of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from agrekd_ray.data.biased import CONFLICTING, DIGITS, Biased, BiasedImages, OfDigits, OfIdx
from agrekd_ray.data.dataset import Groups
from agrekd_ray.errors import DataError
from agrekd_ray.settings import Count, Share

MEANS = np.array(
    [
        [0.90, 0.10, 0.10],  # red
        [0.10, 0.65, 0.15],  # green
        [0.15, 0.25, 0.90],  # blue
        [0.95, 0.85, 0.10],  # yellow
        [0.80, 0.15, 0.80],  # magenta
        [0.10, 0.80, 0.85],  # cyan
        [0.95, 0.50, 0.10],  # orange
        [0.45, 0.15, 0.60],  # violet
        [0.60, 0.40, 0.20],  # brown
        [0.75, 0.75, 0.75],  # grey
    ],
    dtype=np.float32,
)
"""The mean colour of each class, RGB in [0, 1]."""
DEVIATIONS = {1: 0.05, 2: 0.02, 3: 0.01, 4: 0.005}
"""Standard deviation of the colour around its mean, by severity."""


class Colored(Biased):
    """What the coloured data sets share.

    Attributes:
        seed: draws the splits, the colours and the views.
        aligned_test: share of bias-aligned samples in the test split; a tenth, as in the paper, is
            colour at random.
        severity: 1 to 4; the higher, the less the colours of a class vary.
    """

    aligned_test: Share = 0.1
    severity: Annotated[Count, Field(le=4)] = 4

    def open(self) -> ColoredImages:
        """The images in colour; see `ColoredImages`."""
        return ColoredImages(self)


class ColoredDigits(Colored, OfDigits):
    """scikit-learn's bundled handwritten digits (1,797 images of 8 x 8), coloured.

    Attributes:
        name: `colored_digits`.
    """

    name: Literal["colored_digits"]


class ColoredIdx(Colored, OfIdx):
    """A folder of MNIST-style IDX files (MNIST, Fashion-MNIST, ...), coloured.

    Colored MNIST as in the paper: its ratios 0.5, 1, 2 and 5 % of bias-conflicting training samples
    are `aligned` 0.995, 0.99, 0.98 and 0.95; the test split is 10 % aligned (`aligned_test` 0.1).
    `severity` counts as its makers do: 1 varies the colours most, 4 least. The paper retrains last
    layers on a half of the validation split: of `val` samples, drawn from the train files, the
    first half is `val_dfr` and the other one selects; both are `aligned_val` aligned, half and
    half, so that DFR finds conflicting samples of every class.

    Attributes:
        name: `colored_idx`.
        classes: names of the classes, in the order of their numbers.
    """

    name: Literal["colored_idx"]
    classes: tuple[str, ...] = DIGITS


class ColoredImages(BiasedImages):
    """Coloured images in memory (a `Dataset`).

    Raises:
        DataError: labels outside the ten classes, or a split too small to have both groups.
    """

    settings: Colored

    def __init__(self, settings: Colored) -> None:
        self._seed, self._deviation = settings.seed, DEVIATIONS[settings.severity]
        super().__init__(settings, getattr(settings, "classes", DIGITS))

    def _check(self, classes: tuple[str, ...], labels_N: np.ndarray) -> None:
        if len(classes) > len(MEANS) or labels_N.max() >= len(classes):
            raise DataError(
                f"data: labels go up to {labels_N.max()}, but there are {len(classes)} class "
                f"names and {len(MEANS)} colours; data.classes must name every class (at most "
                f"{len(MEANS)})."
            )

    def _grouped(
        self, classes: tuple[str, ...], labels_N: np.ndarray, alignment_N: np.ndarray
    ) -> Groups:
        names = ("bias-aligned", "bias-conflicting")
        return Groups(alignment_N, names, alignment_N, names)

    def _paint(
        self, grey_NHW: np.ndarray, labels_N: np.ndarray, alignment_N: np.ndarray, classes: int
    ) -> tuple[np.ndarray, ...]:
        """Grey images, and one RGB colour a sample, float32 [N, 3] in [0, 1]."""
        count, rng = len(labels_N), np.random.default_rng((self._seed, 2))
        away_N = rng.integers(1, classes, count) if classes > 1 else np.zeros(count, int)
        shown_N = np.where(alignment_N == CONFLICTING, (labels_N + away_N) % classes, labels_N)
        noise_N3 = rng.normal(0, self._deviation, (count, 3))
        colors_N3 = np.clip(MEANS[shown_N] + noise_N3, 0, 1).astype(np.float32)
        return np.ascontiguousarray(grey_NHW), colors_N3

    def _pictures(self, rows: Sequence[Tensor]) -> Tensor:
        grey_BHW, colors_B3 = rows
        return grey_BHW[:, None] * colors_B3[:, :, None, None]
