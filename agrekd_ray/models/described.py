"""What folders and files say of the model in them: its classes, and what its images go through."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agrekd_ray.errors import CheckpointError, listed
from agrekd_ray.files import DamagedError, is_file, read_json

_SURE = ("id2label", "label2id", "class_to_idx", "idx_to_class", "idx2label", "class_names")
_NAMES = (*_SURE, "label_names", "classes", "labels", "categories", "class_labels")
"""Keys under which the names of classes are kept, in any case; the first name nothing else."""
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_PLACEHOLDERS = re.compile(r"(label|class)?[_ -]?(\d+)", re.IGNORECASE)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder of transformers or timm.

    Raises:
        CheckpointError: it is not there, or damaged.
    """
    path = folder / "config.json"
    if not is_file(path):
        raise CheckpointError(
            f"{folder}: no config.json there, so no folder of transformers or timm; a folder that "
            "agrekd made needs no import: name it in ensemble.checkpoints."
        )
    try:
        return read_json(path, dict[str, Any])
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except DamagedError as error:
        raise CheckpointError(f"{path}: damaged ({error}).") from None


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is timm's (`save_for_hf`, `push_to_hf_hub`)."""
    return isinstance(config.get("architecture"), str) and "model_type" not in config


def weight_sets(folder: Path) -> dict[str, list[Path]]:
    """Files with weights in a folder of transformers or timm, by name; shards are one set."""
    sets: dict[str, list[Path]] = {}
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        for file in sorted(folder.glob(pattern)):
            sets.setdefault(_SHARD.sub("", file.name), []).append(file)
    return sets


def class_names(
    source: str, values: Mapping[str, Any], classes: int
) -> tuple[tuple[str, ...], str]:
    """Names of the classes in the order of the logits, and the key that they stand under.

    Args:
        source: of the values, for messages.
        values: by path with slashes, the last part of which is a key.
        classes: C; lists of another length are of something else.

    Returns:
        No names and no key where nothing names the classes, or only by their numbers.

    Raises:
        CheckpointError: two keys name them in different orders, or one names more or fewer.
    """
    classes_named: tuple[str, ...] = ()
    where = ""
    for path, value in values.items():
        key = path.rpartition("/")[2].lower()
        if key not in _NAMES:
            continue
        names = _in_order(value)
        if names and key in _SURE and len(names) != classes:
            raise CheckpointError(
                f"{source}: {path} names the classes {listed(map(repr, names))}, {len(names)} in "
                f"all, the data have {classes}; say with --classes which its logits are of."
            )
        if len(names) != classes or all(map(_says_nothing, names, range(classes))):
            continue
        if classes_named and classes_named != names:
            raise CheckpointError(
                f"{source}: {where} says that its classes are {listed(map(repr, classes_named))}, "
                f"{path} {listed(map(repr, names))}; say which order is right with --classes."
            )
        classes_named, where = names, where or path
    return classes_named, where


def mean_and_std(
    values: Mapping[str, Any], channels: int
) -> tuple[list[float], list[float]] | None:
    """A mean and a deviation for each channel that stand among a file's values; None without."""
    for path, mean in values.items():
        std = values.get(f"{path.removesuffix('mean')}std")
        if path.endswith("mean") and all(
            isinstance(numbers, list | tuple)
            and len(numbers) == channels
            and all(isinstance(number, int | float) for number in numbers)
            for numbers in (mean, std)
        ):
            return list(mean), list(std)  # type: ignore[arg-type]
    return None


def _in_order(value: Any) -> tuple[str, ...]:
    """Names by number, whichever way they are written; nothing where they are not."""
    if isinstance(value, Mapping):
        pairs = [(key, name) for key, name in value.items() if isinstance(name, str | int)]
        if all(isinstance(number, int) for _, number in pairs):
            pairs = [(number, name) for name, number in pairs]
        if not all(str(number).isdecimal() for number, _ in pairs):
            return ()
        value = [name for _, name in sorted((int(number), name) for number, name in pairs)]
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    return ()


def _says_nothing(name: str, number: int) -> bool:
    """`LABEL_0` and the like, which libraries put where nobody said a name."""
    match = _PLACEHOLDERS.fullmatch(name)
    return bool(match and int(match[2]) == number)
