"""Two classes on two natural textures: Waterbirds in miniature, of data that come along.

As in Waterbirds (Sagawa et al., "Distributionally robust neural networks", ICLR 2020), a class is
seen on its own background nearly always. The textures are photographs of grass and of brick that
scikit-image ships, tinted. Groups are class x background.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from agrekd_ray.data.biased import CONFLICTING, Biased, BiasedImages, OfDigits, OfIdx
from agrekd_ray.data.dataset import Groups, as_inputs
from agrekd_ray.errors import DataError
from agrekd_ray.settings import Count, Share, Whole

TEXTURES = {"grass": (0.45, 0.80, 0.35), "brick": (0.85, 0.45, 0.35)}
"""The background of each class, in the order of the classes, and its tint, RGB in [0, 1]."""
TINT = (0.75, 0.75, 0.80)
"""Of what lies on them."""
_SIDE = 512
"""Of a texture, in pixels."""
LARGEST = _SIDE // 2
"""Of a picture's side, in pixels."""
_REMEDY = "pip install --force-reinstall scikit-image"
_MARGIN = 16
"""A picture's side divided by it is what stays free on each side of the image."""
_AT_ONCE = 2**19
"""Pixels of the pictures that are painted together."""


def _labels(value: Any) -> Any:
    return (value,) if isinstance(value, int) else value


Labels = Annotated[tuple[Whole, ...], BeforeValidator(_labels), Field(min_length=1)]
"""The labels of the files that make a class: a number, or several."""


def _no_label_twice(pair: tuple[Labels, Labels]) -> tuple[Labels, Labels]:
    if len({*pair[0], *pair[1]}) < len(pair[0]) + len(pair[1]):
        raise ValueError("two classes, and no label twice")
    return pair


def _two_names(pair: tuple[str, str]) -> tuple[str, str]:
    if pair[0] == pair[1]:
        raise ValueError("two different names")
    return pair


Pair = Annotated[tuple[str, str], AfterValidator(_two_names)]
LabelsOfPair = Annotated[tuple[Labels, Labels], AfterValidator(_no_label_twice)]
Size = Annotated[Count, Field(le=LARGEST)]


class Textured(Biased):
    """What the textured data sets share.

    Attributes:
        seed: draws the splits, the background and its part of every image, and the views.
        aligned: share of bias-aligned samples in the training split: those on the background of
            their class.
        aligned_test: share of bias-aligned samples in the test split; a half is background at
            random.
        classes: names of the two classes; the first belongs on grass, the second on brick.
        labels: the labels in the files that make each of the two: a number, or several.
        size: height and width of a picture, in pixels.
    """

    aligned: Share = 0.95
    aligned_test: Share = 0.5
    classes: Pair
    labels: LabelsOfPair
    size: Size

    def open(self) -> TexturedImages:
        """The images on their backgrounds; see `TexturedImages`."""
        return TexturedImages(self)

    def numbers(self, labels_N: np.ndarray) -> np.ndarray:
        """See `Biased.numbers`.

        Raises:
            DataError: no image has a label of those that make the classes.
        """
        classes_N = np.full(len(labels_N), -1)
        for number, labels in enumerate(self.labels):
            for label in labels:
                if not (of_label := labels_N == label).any():
                    raise DataError(
                        f"data.labels: no image has the label {label}; the labels are "
                        f"{', '.join(map(str, np.unique(labels_N)))}."
                    )
                classes_N[of_label] = number
        return classes_N


class TexturedDigits(Textured, OfDigits):
    """scikit-learn's bundled handwritten digits, enlarged, on scikit-image's textures.

    Attributes:
        name: `textured_digits`.
    """

    comes_with: ClassVar[str] = "scikit-learn and scikit-image"

    name: Literal["textured_digits"]
    classes: Pair = ("even", "odd")
    labels: LabelsOfPair = ((0, 2, 4, 6, 8), (1, 3, 5, 7, 9))
    size: Size = 16


class TexturedIdx(Textured, OfIdx):
    """Two classes of a folder of MNIST-style IDX files, on scikit-image's textures.

    Attributes:
        name: `textured_idx`.
        labels: the labels in the files that make each of the two: a number, or several; 6 and 0 are
            shirts and T-shirts in Fashion-MNIST.
        train: samples of the training split, drawn from the two classes of the train files.
        val: samples of the validation split, drawn from the same.
        test: samples of the test split, drawn from the two classes of the t10k files; null takes
            all.
    """

    name: Literal["textured_idx"]
    classes: Pair = ("shirt", "T-shirt")
    labels: LabelsOfPair = ((6,), (0,))
    train: Count = 4000
    val: Count = 1000
    size: Size = 32


class TexturedImages(BiasedImages):
    """Images on textures, in memory (a `Dataset`); each is painted once.

    Raises:
        DataError: scikit-image's textures are not there, or a split too small to have both groups.
    """

    settings: Textured

    def __init__(self, settings: Textured) -> None:
        self._seed, self._size = settings.seed, settings.size
        super().__init__(settings, settings.classes)

    def _grouped(
        self, classes: tuple[str, ...], labels_N: np.ndarray, alignment_N: np.ndarray
    ) -> Groups:
        on_N = _backgrounds(labels_N, alignment_N)
        return Groups.crossed(labels_N, classes, on_N, tuple(TEXTURES), "{} on {}".format)

    def _paint(
        self, grey_NHW: np.ndarray, labels_N: np.ndarray, alignment_N: np.ndarray, classes: int
    ) -> tuple[np.ndarray, ...]:
        """The pictures, uint8 [N, size, size, 3]."""
        size, names = self._size, list(TEXTURES)
        textures = np.stack([texture(name) for name in names])
        tints = np.array([TEXTURES[name] for name in names])
        windows = np.lib.stride_tricks.sliding_window_view(textures, (size, size), (1, 2))
        on_N = _backgrounds(labels_N, alignment_N)
        rng = np.random.default_rng((self._seed, 3))
        places_N2 = rng.integers(0, windows.shape[1:3], (len(grey_NHW), 2))
        pictures = np.empty((len(grey_NHW), size, size, 3), np.uint8)
        step = max(1, _AT_ONCE // size**2)
        for ids in np.split(np.arange(len(grey_NHW)), range(step, len(grey_NHW), step)):
            behind = windows[on_N[ids], places_N2[ids, 0], places_N2[ids, 1]] / 255
            front = np.stack([_framed(image, size) for image in grey_NHW[ids]])[..., None]
            covered = np.minimum(1, 2.5 * front)
            ground = behind[..., None] * tints[on_N[ids], None, None] * (1 - covered)
            pictures[ids] = np.rint((ground + front * np.array(TINT) * covered) * 255)
        return (pictures,)

    def _pictures(self, rows: Sequence[Tensor]) -> Tensor:
        return as_inputs(rows[0])


def _backgrounds(labels_N: np.ndarray, alignment_N: np.ndarray) -> np.ndarray:
    """Number of the texture behind every image: that of its class, or the other one."""
    return np.where(alignment_N == CONFLICTING, 1 - labels_N, labels_N)


def _framed(grey_HW: np.ndarray, size: int) -> np.ndarray:
    """An image in 0 … 1 as large as a picture has room for, in its middle, on nothing."""
    room = size - 2 * (size // _MARGIN)
    height, width = grey_HW.shape
    factor = room / max(height, width)
    shape = max(1, round(height * factor)), max(1, round(width * factor))
    if shape != (height, width):
        # In whole numbers, which are the same on every machine.
        image = Image.fromarray(np.rint(grey_HW * 255).astype(np.uint8))
        grey_HW = np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR)) / 255
    top, left = (size - shape[0]) // 2, (size - shape[1]) // 2
    framed = np.zeros((size, size))
    framed[top : top + shape[0], left : left + shape[1]] = grey_HW
    return framed


@functools.cache
def texture(name: str) -> np.ndarray:
    """A grey texture of scikit-image's, uint8 [512, 512], out of the folder where it is installed.

    scikit-image itself is not imported: what it does not ship, it would fetch.

    Args:
        name: of the file, without its end.

    Raises:
        DataError: scikit-image is not installed, or lacks the file.
    """
    spec = find_spec("skimage")
    if spec is None:
        raise DataError("scikit-image is not installed; pip install 'agrekd_ray[textures]'")
    for place in spec.submodule_search_locations or ():
        if (file := Path(place) / "data" / f"{name}.png").is_file():
            try:
                with Image.open(file) as image:
                    grey = np.asarray(image.convert("L"))
            except (OSError, SyntaxError) as error:
                raise DataError(f"{file}: cannot be read ({error}); {_REMEDY}") from None
            if grey.shape != (_SIDE, _SIDE):
                found = " × ".join(map(str, grey.shape))
                raise DataError(f"{file}: {found} pixels, not {_SIDE} × {_SIDE}; {_REMEDY}")
            return grey
    raise DataError(f"scikit-image is installed without its texture data/{name}.png; {_REMEDY}")
