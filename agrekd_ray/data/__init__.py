"""Data sets: samples by id, with groups set apart and deterministic views.

To add one: write a block of settings with a `name` and a method `open`, which returns a `Dataset`,
and name it in `DataSettings`.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, get_args

from pydantic import Field

from agrekd_ray.data.celeba import CelebA
from agrekd_ray.data.civilcomments import CivilComments
from agrekd_ray.data.colored import ColoredDigits, ColoredIdx
from agrekd_ray.data.custom import Custom
from agrekd_ray.data.dataset import (
    DFR,
    DRAWN,
    SELECT,
    TEST,
    TRAIN,
    Arrays,
    Dataset,
    Excerpted,
    Groups,
    Prepared,
    Samples,
    Sourced,
    splits_in_words,
)
from agrekd_ray.data.gaps import classes_missing, dfr_groups, remarks_on
from agrekd_ray.data.given import given_samples
from agrekd_ray.data.image_table import ImageTable
from agrekd_ray.data.images import Pictures
from agrekd_ray.data.stamps import Stamps, handed
from agrekd_ray.data.text import TextTable, has_tokenizer, other_tokens, tokens_of
from agrekd_ray.data.textured import TexturedDigits, TexturedIdx
from agrekd_ray.data.waterbirds import Waterbirds
from agrekd_ray.settings import Settings

DataSettings = Annotated[
    ColoredDigits
    | ColoredIdx
    | TexturedDigits
    | TexturedIdx
    | Waterbirds
    | CelebA
    | ImageTable
    | CivilComments
    | TextTable
    | Custom,
    Field(discriminator="name"),
]
DATASETS: tuple[type[Settings], ...] = get_args(get_args(DataSettings)[0])


def of_earlier_version(values: Any) -> None:
    """Add to the values of a resolved data set what was not a key yet when it was resolved."""
    names = [
        get_args(kind.model_fields["name"].annotation)[0]
        for kind in DATASETS
        if issubclass(kind, Pictures)
    ]
    if isinstance(values, dict) and values.get("name") in names:
        values.setdefault("decoding", 1)


def open_dataset(settings: Settings, known: Stamps = ()) -> Dataset:
    """The data set that the settings describe.

    Cheap for those that are `Prepared`: tables are read and files are looked for, but no sample is
    decoded before it is asked for.

    Args:
        settings: of the data set.
        known: stamps of files that another process has looked at, so that this one need not.

    Raises:
        DataError: files missing, damaged or contradicting each other.
    """
    return _opened(type(settings), settings.model_dump_json(), known)


@functools.lru_cache(maxsize=2)  # a process that trains several models reads the files once
def _opened(kind: Any, values: str, known: Stamps) -> Dataset:
    with handed(known):
        return kind.model_validate_json(values).open()


__all__ = [
    "DATASETS",
    "DFR",
    "DRAWN",
    "SELECT",
    "TEST",
    "TRAIN",
    "Arrays",
    "DataSettings",
    "Dataset",
    "Excerpted",
    "Groups",
    "Prepared",
    "Samples",
    "Sourced",
    "classes_missing",
    "dfr_groups",
    "given_samples",
    "has_tokenizer",
    "of_earlier_version",
    "open_dataset",
    "other_tokens",
    "remarks_on",
    "splits_in_words",
    "tokens_of",
]
