"""Coloured images: grey-scale pictures whose colour gives the class away, nearly always.

The construction of Colored MNIST by Nam et al. ("Learning from Failure", NeurIPS 2020): ten fixed
mean colours, one per class. Each image gets one colour drawn around a mean, and is multiplied with
it. A *bias-aligned* image has the colour of its class, a *bias-conflicting* one that of another.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from agrekd_ray.data.dataset import DFR, SELECT, TEST, TRAIN, Annotations, ArrayDataset, Groups
from agrekd_ray.data.digits import bundled_digits
from agrekd_ray.data.idx import Fetched, fetch_idx, read_split
from agrekd_ray.data.views import Views, augment, draws
from agrekd_ray.errors import DataError
from agrekd_ray.settings import Count, LocalPath, Seed, Settings, Share

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
ALIGNED, CONFLICTING = 0, 1


class Colored(Settings):
    """What the coloured data sets share.

    Attributes:
        seed: draws the splits, the colours and the views.
        aligned: share of bias-aligned samples in the training split.
        aligned_val: the same in validation; half and half gives DFR balanced groups.
        aligned_test: the same in the test split; a tenth, as in the paper, is colour at random.
        severity: 1 to 4; the higher, the less the colours of a class vary.
        views: augmentation of the training samples.
    """

    seed: Seed = 0
    aligned: Share = 0.98
    aligned_val: Share = 0.5
    aligned_test: Share = 0.1
    severity: Annotated[Count, Field(le=4)] = 4
    views: Views = Views()

    @abstractmethod
    def grey(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Images [N, H, W] in 0 … 1, labels [N], and the ids of train, val and test."""

    def open(self) -> ColoredImages:
        """The images in colour; see `ColoredImages`."""
        return ColoredImages(self)


class ColoredDigits(Colored):
    """scikit-learn's bundled handwritten digits (1,797 images of 8 x 8), coloured.

    Attributes:
        name: `colored_digits`.
        train: samples of the training split.
        val: samples of the validation split, both halves; the rest is the test split.
    """

    name: Literal["colored_digits"]
    train: Count = 1000
    val: Count = 400

    def grey(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """See `Colored.grey`: images of 8 x 8."""
        images, labels = bundled_digits()
        if self.train + self.val >= len(images):
            raise DataError(
                f"data.train + data.val: {self.train} + {self.val} leave no test sample; the "
                f"digits are {len(images)} in all."
            )
        order = np.random.default_rng((self.seed, 0)).permutation(len(images))
        train, val, test = np.split(order, [self.train, self.train + self.val])
        grey = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
        return grey, labels, {TRAIN: train, "val": val, TEST: test}


class ColoredIdx(Colored):
    """A folder of MNIST-style IDX files (MNIST, Fashion-MNIST, ...), coloured.

    Colored MNIST as in the paper: its ratios 0.5, 1, 2 and 5 % of bias-conflicting training samples
    are `aligned` 0.995, 0.99, 0.98 and 0.95; the test split is 10 % aligned (`aligned_test` 0.1).
    `severity` counts as its makers do: 1 varies the colours most, 4 least. The paper retrains last
    layers on a half of the validation split: of `val` samples, drawn from the train files, the
    first half is `val_dfr` and the other one selects; both are `aligned_val` aligned, half and
    half, so that DFR finds conflicting samples of every class.

    Attributes:
        name: `colored_idx`.
        path: folder with the train and t10k images and labels, plain or gzipped.
        download: `mnist` or `fashion_mnist` fetches what the folder lacks; null fetches nothing.
        classes: names of the classes, in the order of their numbers.
        train: samples of the training split, drawn from the train files.
        val: samples of the validation split, drawn from the train files too.
        test: samples of the test split, drawn from the t10k files; null takes all.
    """

    name: Literal["colored_idx"]
    path: LocalPath
    download: Fetched | None = None
    classes: tuple[str, ...] = tuple("0123456789")
    train: Count = 12000
    val: Count = 4000
    test: Count | None = None

    def grey(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """See `Colored.grey`."""
        folder = self.path
        if self.download is not None:
            fetch_idx(folder, self.download)
        images, labels = read_split(folder, "train")
        test_images, test_labels = read_split(folder, "test")
        if images.shape[1:] != test_images.shape[1:]:
            raise DataError(
                f"{folder}: train images are {images.shape[1:]}, test images "
                f"{test_images.shape[1:]}; the files do not belong together."
            )
        test = len(test_images) if self.test is None else self.test
        if self.train + self.val > len(images):
            raise DataError(
                f"data.train + data.val: {self.train} + {self.val} samples are wanted, the train "
                f"files in {folder} hold {len(images)}."
            )
        if test > len(test_images):
            raise DataError(
                f"data.test: {test} samples are wanted, the t10k files in {folder} hold "
                f"{len(test_images)}."
            )
        rng = np.random.default_rng((self.seed, 0))
        taken = rng.permutation(len(images))[: self.train + self.val]
        taken_test = rng.permutation(len(test_images))[:test]
        grey = np.concatenate([images[taken], test_images[taken_test]]).astype(np.float32) / 255
        every = np.concatenate([labels[taken], test_labels[taken_test]]).astype(np.int64)
        train, val, test_ids = np.split(np.arange(len(grey)), [self.train, self.train + self.val])
        return grey, every, {TRAIN: train, "val": val, TEST: test_ids}


class ColoredImages(ArrayDataset):
    """Coloured images in memory (a `Dataset`).

    Raises:
        DataError: labels outside the ten classes, or a split too small to have both groups.
    """

    def __init__(self, settings: Colored) -> None:
        classes: tuple[str, ...] = getattr(settings, "classes", tuple("0123456789"))
        grey_NHW, labels_N, ids = settings.grey()
        if len(classes) > len(MEANS) or labels_N.max() >= len(classes):
            raise DataError(
                f"data: labels go up to {labels_N.max()}, but there are {len(classes)} class "
                f"names and {len(MEANS)} colours; data.classes must name every class (at most "
                f"{len(MEANS)})."
            )
        half = len(ids["val"]) // 2
        if not half:
            raise DataError(f"data.val: {len(ids['val'])} samples cannot be cut into two halves.")
        splits = {
            TRAIN: np.sort(ids[TRAIN]),
            DFR: np.sort(ids["val"][:half]),
            SELECT: np.sort(ids["val"][half:]),
            TEST: np.sort(ids[TEST]),
        }
        attribute_N = _alignment(settings, labels_N, splits)
        names = ("bias-aligned", "bias-conflicting")
        groups = Groups(attribute_N, names, attribute_N, names)
        annotations = Annotations(classes, labels_N, groups, splits)
        super().__init__(annotations, (3, *grey_NHW.shape[1:]), settings.views)
        self.settings = settings
        self._grey_NHW = np.ascontiguousarray(grey_NHW)
        self._colors_N3 = _colors(settings, len(classes), labels_N, attribute_N)
        self.fingerprint = self._digest()
        self.views_fingerprint = settings.views.fingerprint(settings.seed)

    def arrays(self, view: int | None) -> tuple[np.ndarray, ...]:
        """See `Arrays.arrays`: grey images, colours, and what augments them."""
        random = draws(self.views, self.settings.seed, view, self.size)
        return self._grey_NHW, self._colors_N3, *random

    def show(self, rows: Sequence[Tensor], view: int | None) -> Tensor:
        """See `Arrays.show`."""
        grey_BHW, colors_B3, *random = rows
        return augment(grey_BHW[:, None] * colors_B3[:, :, None, None], random, self.views)

    def _digest(self) -> str:
        """SHA-256 of everything that a model can see, the splits included."""
        digest = hashlib.sha256(" ".join(self.classes).encode())
        for array in (self._grey_NHW, self._labels_N.numpy(), self._colors_N3):
            digest.update(str(array.shape).encode())
            digest.update(array.tobytes())
        for name, ids in self.splits.items():
            digest.update(name.encode() + ids.astype(np.int64).tobytes())
        digest.update(self.groups.attribute_N.tobytes())
        return digest.hexdigest()


def _alignment(
    settings: Colored, labels_N: np.ndarray, splits: dict[str, np.ndarray]
) -> np.ndarray:
    """Bias-aligned or bias-conflicting, by id: exact shares in every split and class."""
    validation = settings.aligned_val
    shares = (settings.aligned, validation, validation, settings.aligned_test)
    attribute_N = np.full(len(labels_N), ALIGNED, dtype=np.int64)
    for number, (ids, share) in enumerate(zip(splits.values(), shares, strict=True)):
        rng = np.random.default_rng((settings.seed, 1, number))
        # One pass over the classes in turn, so that rounding spreads over all of them.
        rank = np.empty(len(ids))
        shuffled = rng.permutation(len(ids))
        for label in np.unique(labels_N):
            of_class = shuffled[labels_N[ids[shuffled]] == label]
            rank[of_class] = (np.arange(len(of_class)) + rng.random()) / len(of_class)
        conflicting = np.argsort(rank, kind="stable")[: round((1 - share) * len(ids))]
        attribute_N[ids[conflicting]] = CONFLICTING
    return attribute_N


def _colors(
    settings: Colored, classes: int, labels_N: np.ndarray, attribute_N: np.ndarray
) -> np.ndarray:
    """One RGB colour a sample, float32 [N, 3] in [0, 1]."""
    count, rng = len(labels_N), np.random.default_rng((settings.seed, 2))
    away_N = rng.integers(1, classes, count) if classes > 1 else np.zeros(count, int)
    shown_N = np.where(attribute_N == CONFLICTING, (labels_N + away_N) % classes, labels_N)
    noise_N3 = rng.normal(0, DEVIATIONS[settings.severity], (count, 3))
    return np.clip(MEANS[shown_N] + noise_N3, 0, 1).astype(np.float32)
