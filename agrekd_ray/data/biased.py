"""Grey images, and something beside their shape that gives the class away, nearly always.

What that is, is another file's: a colour (`colored.py`), a texture behind them (`textured.py`). An
image is *bias-aligned* where it says its own class, *bias-conflicting* where it says another's.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from agrekd_ray.data.dataset import DFR, SELECT, TEST, TRAIN, Annotations, ArrayDataset, Groups
from agrekd_ray.data.digits import bundled_digits
from agrekd_ray.data.idx import Fetched, fetch_idx, read_split
from agrekd_ray.data.views import Views, augment, draws
from agrekd_ray.errors import DataError
from agrekd_ray.settings import Count, LocalPath, Seed, Settings, Share

ALIGNED, CONFLICTING = 0, 1
DIGITS = tuple("0123456789")
Grey = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]
"""Images [N, H, W] in 0 … 1, class numbers [N], and the ids of train, val and test."""


class Biased(Settings):
    """What the data sets share whose class is given away.

    Attributes:
        seed: draws the splits, what gives the class away, and the views.
        aligned: share of bias-aligned samples in the training split.
        aligned_val: share of bias-aligned samples in validation; half and half gives DFR balanced
            groups.
        aligned_test: share of bias-aligned samples in the test split.
        views: augmentation of the training samples.
    """

    seed: Seed = 0
    aligned: Share = 0.98
    aligned_val: Share = 0.5
    aligned_test: Share = 0.5
    views: Views = Views()

    @abstractmethod
    def grey(self) -> Grey:
        """The images before anything gives their class away.

        Raises:
            DataError: files are missing or damaged, or hold too few images.
        """

    @abstractmethod
    def open(self) -> BiasedImages:
        """The images with what gives their class away."""

    def numbers(self, labels_N: np.ndarray) -> np.ndarray:
        """The class of every image by its label in the files, [N]; -1 leaves the image out."""
        return labels_N


class OfDigits(Biased):
    """scikit-learn's bundled handwritten digits, 1,797 images of 8 x 8.

    Attributes:
        train: samples of the training split.
        val: samples of the validation split, both halves; the rest is the test split.
    """

    comes_with: ClassVar[str] = "scikit-learn"

    train: Count = 1000
    val: Count = 400

    def grey(self) -> Grey:
        """See `Biased.grey`: images of 8 x 8."""
        images, labels = bundled_digits()
        classes = self.numbers(labels)
        images, classes = images[classes >= 0], classes[classes >= 0]
        if self.train + self.val >= len(images):
            raise DataError(
                f"data.train + data.val: {self.train} + {self.val} leave no test sample; the "
                f"digits are {len(images)} in all."
            )
        order = np.random.default_rng((self.seed, 0)).permutation(len(images))
        train, val, test = np.split(order, [self.train, self.train + self.val])
        grey = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
        return grey, classes, {TRAIN: train, "val": val, TEST: test}


class OfIdx(Biased):
    """A folder of MNIST-style IDX files (MNIST, Fashion-MNIST, ...).

    Attributes:
        path: folder with the train and t10k images and labels, plain or gzipped.
        download: `mnist` or `fashion_mnist` fetches what the folder lacks; null fetches nothing.
        train: samples of the training split, drawn from the train files.
        val: samples of the validation split, drawn from the train files too.
        test: samples of the test split, drawn from the t10k files; null takes all.
    """

    path: LocalPath
    download: Fetched | None = None
    train: Count = 12000
    val: Count = 4000
    test: Count | None = None

    def grey(self) -> Grey:
        """See `Biased.grey`."""
        folder = self.path
        if self.download is not None:
            fetch_idx(folder, self.download)
        images, classes = self._read("train")
        test_images, test_classes = self._read("test")
        if images.shape[1:] != test_images.shape[1:]:
            raise DataError(
                f"{folder}: train images are {images.shape[1:]}, test images "
                f"{test_images.shape[1:]}; the files do not belong together."
            )
        test = len(test_images) if self.test is None else self.test
        if self.train + self.val > len(images):
            raise DataError(
                f"data.train + data.val: {self.train} + {self.val} samples are wanted, the train "
                f"files in {folder} hold {len(images)} of the classes."
            )
        if test > len(test_images):
            raise DataError(
                f"data.test: {test} samples are wanted, the t10k files in {folder} hold "
                f"{len(test_images)} of the classes."
            )
        rng = np.random.default_rng((self.seed, 0))
        taken = rng.permutation(len(images))[: self.train + self.val]
        taken_test = rng.permutation(len(test_images))[:test]
        grey = np.concatenate([images[taken], test_images[taken_test]]).astype(np.float32) / 255
        every = np.concatenate([classes[taken], test_classes[taken_test]]).astype(np.int64)
        train, val, test_ids = np.split(np.arange(len(grey)), [self.train, self.train + self.val])
        return grey, every, {TRAIN: train, "val": val, TEST: test_ids}

    def _read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The images of a split that have a class, uint8 [N, H, W], and their class numbers."""
        images, labels = read_split(self.path, split)
        classes = self.numbers(labels)
        return images[classes >= 0], classes[classes >= 0]


class BiasedImages(ArrayDataset):
    """Images in memory whose class is given away (a `Dataset`).

    Args:
        settings: which images, and how they are split.
        classes: names of the classes.

    Raises:
        DataError: a split is too small to have both groups.
    """

    def __init__(self, settings: Biased, classes: tuple[str, ...]) -> None:
        grey_NHW, labels_N, ids = settings.grey()
        self._check(classes, labels_N)
        half = len(ids["val"]) // 2
        if not half:
            raise DataError(f"data.val: {len(ids['val'])} samples cannot be cut into two halves.")
        splits = {
            TRAIN: np.sort(ids[TRAIN]),
            DFR: np.sort(ids["val"][:half]),
            SELECT: np.sort(ids["val"][half:]),
            TEST: np.sort(ids[TEST]),
        }
        alignment_N = _alignment(settings, labels_N, splits)
        groups = self._grouped(classes, labels_N, alignment_N)
        self._raw = self._paint(grey_NHW, labels_N, alignment_N, len(classes))
        shape = (3, *self._raw[0].shape[1:3])
        super().__init__(Annotations(classes, labels_N, groups, splits), shape, settings.views)
        self.settings = settings
        self.fingerprint = self._digest()
        self.views_fingerprint = settings.views.fingerprint(settings.seed)

    def _check(self, classes: tuple[str, ...], labels_N: np.ndarray) -> None:
        """Raise `DataError` where the labels are not those of the classes."""

    @abstractmethod
    def _grouped(
        self, classes: tuple[str, ...], labels_N: np.ndarray, alignment_N: np.ndarray
    ) -> Groups:
        """The groups, out of the class and the alignment of every sample."""

    @abstractmethod
    def _paint(
        self, grey_NHW: np.ndarray, labels_N: np.ndarray, alignment_N: np.ndarray, classes: int
    ) -> tuple[np.ndarray, ...]:
        """Arrays with a row a sample, the first one [N, H, W, ...]: what pictures are made of."""

    @abstractmethod
    def _pictures(self, rows: Sequence[Tensor]) -> Tensor:
        """Pictures, float32 [B, 3, H, W], out of rows of those arrays, on the rows' device."""

    def arrays(self, view: int | None) -> tuple[np.ndarray, ...]:
        """See `Arrays.arrays`: what pictures are made of, and what augments them."""
        return (*self._raw, *draws(self.views, self.settings.seed, view, self.size))

    def show(self, rows: Sequence[Tensor], view: int | None) -> Tensor:
        """See `Arrays.show`."""
        raw, random = rows[: len(self._raw)], rows[len(self._raw) :]
        return augment(self._pictures(raw), random, self.views)

    def _digest(self) -> str:
        """SHA-256 of everything that a model can see, the splits included."""
        digest = hashlib.sha256(" ".join(self.classes).encode())
        for array in (self._raw[0], self._labels_N.numpy(), *self._raw[1:]):
            digest.update(str(array.shape).encode())
            digest.update(array.tobytes())
        for name, ids in self.splits.items():
            digest.update(name.encode() + ids.astype(np.int64).tobytes())
        digest.update(self.groups.attribute_N.tobytes())
        return digest.hexdigest()


def _alignment(settings: Biased, labels_N: np.ndarray, splits: dict[str, np.ndarray]) -> np.ndarray:
    """Bias-aligned or bias-conflicting, by id: exact shares in every split and class."""
    validation = settings.aligned_val
    shares = (settings.aligned, validation, validation, settings.aligned_test)
    alignment_N = np.full(len(labels_N), ALIGNED, dtype=np.int64)
    for number, (ids, share) in enumerate(zip(splits.values(), shares, strict=True)):
        rng = np.random.default_rng((settings.seed, 1, number))
        # One pass over the classes in turn, so that rounding spreads over all of them.
        rank = np.empty(len(ids))
        shuffled = rng.permutation(len(ids))
        for label in np.unique(labels_N):
            of_class = shuffled[labels_N[ids[shuffled]] == label]
            rank[of_class] = (np.arange(len(of_class)) + rng.random()) / len(of_class)
        conflicting = np.argsort(rank, kind="stable")[: round((1 - share) * len(ids))]
        alignment_N[ids[conflicting]] = CONFLICTING
    return alignment_N
