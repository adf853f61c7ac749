"""Data sets: samples by id, with groups set apart and deterministic views.

To add one: write a block of settings with a `name`, a class that satisfies `Dataset`, and an
entry in `DATASETS`; then name the settings in `DataSettings`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from agrekd_ray.data.colored import ColoredDigits, ColoredIdx, ColoredImages
from agrekd_ray.data.dataset import DFR, SELECT, TEST, TRAIN, Dataset, Groups, Samples
from agrekd_ray.settings import Settings

DataSettings = Annotated[ColoredDigits | ColoredIdx, Field(discriminator="name")]
DATASETS: dict[type[Settings], Callable[..., Dataset]] = {
    ColoredDigits: ColoredImages,
    ColoredIdx: ColoredImages,
}


@functools.lru_cache(maxsize=2)  # a process that trains several models reads the files once
def open_dataset(settings: Settings) -> Dataset:
    """The data set that the settings describe.

    Raises:
        DataError: files missing, damaged or contradicting each other.
    """
    return DATASETS[type(settings)](settings)


__all__ = [
    "DATASETS",
    "DFR",
    "SELECT",
    "TEST",
    "TRAIN",
    "DataSettings",
    "Dataset",
    "Groups",
    "Samples",
    "open_dataset",
]
