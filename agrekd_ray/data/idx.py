"""MNIST-style IDX files, plain or gzipped (the format of MNIST's and Fashion-MNIST's makers).

torchvision fetches them from where their makers and keepers put them.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from agrekd_ray.errors import DataError

Fetched = Literal["mnist", "fashion_mnist"]
IMAGES, LABELS = 0x00000803, 0x00000801  # magic numbers: unsigned bytes in 3 and in 1 dimensions


def fetch_idx(folder: Path, which: Fetched) -> None:
    """Put the four IDX files into a folder, those that it does not have already.

    Args:
        folder: made where it is missing.
        which: data set.

    Raises:
        DataError: there is no network, or the folder cannot be written.
    """
    import torchvision.datasets as published

    kind = {"mnist": published.MNIST, "fashion_mnist": published.FashionMNIST}[which]

    def is_there(name: str) -> bool:
        return (folder / name).exists() or (folder / f"{name}.gz").exists()

    if all(is_there(Path(name).stem) for name, _ in kind.resources):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # torchvision's own progress is for a terminal.
        shown = sys.stderr if sys.stderr.isatty() else io.StringIO()
        # Beside the files that it is for, so that each can take its place at once.
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(shown),
        ):
            kind(place, download=True)
            for path in sorted(Path(place).glob("*/raw/*-ubyte")):
                if not is_there(path.name):
                    os.replace(path, folder / path.name)
    except (OSError, RuntimeError) as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
        raise DataError(
            f"data.download: {which} cannot be fetched into {folder} ({reason}). Without a "
            "network, put the four IDX files there (plain or .gz) and set data.download=null."
        ) from None


def find_idx(folder: Path, split: str, what: str) -> Path:
    """The file of `split` ("train", "test") and `what` ("images", "labels") in a folder.

    Raises:
        DataError: the folder or the file is missing; names what was looked for.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 (Path.is_dir raises where a name is too long)
        raise DataError(
            f"data.path: no folder {folder}. Put the four IDX files of MNIST or Fashion-MNIST "
            "there (plain or .gz), set data.path to where they are, or let "
            "data.download=mnist or fashion_mnist fetch them."
        )
    start, dimensions = {"train": "train", "test": "t10k"}[split], 3 if what == "images" else 1
    names = [
        f"{start}-{what}{sign}idx{dimensions}-ubyte{end}" for sign in "-." for end in ("", ".gz")
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: the {split} {what} are missing; looked for {', '.join(names)}.")


def read_idx(path: Path, magic: int) -> np.ndarray:
    """Read one IDX file of unsigned bytes.

    Args:
        path: the file; `.gz` is unpacked on the way.
        magic: `IMAGES` (gives [N, H, W] uint8) or `LABELS` ([N] uint8).

    Raises:
        DataError: the file is empty, truncated, damaged, or of another kind.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: truncated or damaged gzip file ({error}); copy or download it again."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
    dimensions = 3 if magic == IMAGES else 1
    header = 4 * (1 + dimensions)
    if not content:
        raise DataError(f"{path}: the file is empty; copy or download it again.")
    if len(content) < header:
        raise DataError(
            f"{path}: {len(content)} bytes are too few for an IDX header of {header}; copy or "
            "download it again."
        )
    numbers = np.frombuffer(content, ">u4", count=1 + dimensions)
    if numbers[0] != magic:
        raise DataError(
            f"{path}: magic number 0x{numbers[0]:08x}, but IDX "
            f"{'images' if magic == IMAGES else 'labels'} have 0x{magic:08x}; "
            "is it the right file?"
        )
    shape = tuple(int(n) for n in numbers[1:])
    expected = math.prod(shape)
    if len(content) - header != expected:
        raise DataError(
            f"{path}: truncated or damaged: the header announces {expected} bytes "
            f"({' x '.join(map(str, shape))}), {len(content) - header} are there; copy "
            "or download it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, H, W] and labels [N], both uint8, of "train" or "test".

    Raises:
        DataError: as `find_idx` and `read_idx`; also where the two files differ in length.
    """
    images_path, labels_path = (find_idx(folder, split, what) for what in ("images", "labels"))
    images, labels = read_idx(images_path, IMAGES), read_idx(labels_path, LABELS)
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: {len(images)} images in {images_path.name} but {len(labels)} labels in "
            f"{labels_path.name}; the files do not belong together."
        )
    if not images.size:
        raise DataError(f"{images_path}: holds no image; copy or download it again.")
    return images, labels
