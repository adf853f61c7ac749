"""What a folder of records holds, for people: whose records, how large, and when last used."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agrekd_ray.errors import RunError
from agrekd_ray.files import cannot_read, exists, is_folder, read_json, unreadable
from agrekd_ray.logits.cache import MANIFEST
from agrekd_ray.logits.record import Key, read_record

_FOLDER = re.compile(r"[0-9a-f]{20}")
"""Names of the folders that `Key.folder` gives."""


@dataclass(frozen=True)
class Listed:
    """A teacher's records, for people.

    Attributes:
        folder: of the records.
        key: of the teacher; None where its description is damaged.
        views: finished records.
        unfinished: records in the making, or left by a writer that died.
        bytes: on disk, of all of them.
        used: seconds since the epoch when they were last used.
    """

    folder: Path
    key: Key | None
    views: tuple[Path, ...]
    unfinished: tuple[Path, ...]
    bytes: int
    used: float


def listed(store: Path) -> list[Listed]:
    """All records of a store, the one used last first.

    Raises:
        RunError: there is no such folder.
    """
    if not is_folder(store):
        raise RunError(f"{store}: no folder of recorded outputs; name one with --store.")
    try:
        # Other folders with such a file are somebody else's, and not to be pruned.
        folders = [path for path in store.iterdir() if _FOLDER.fullmatch(path.name)]
        found = [_listed(folder) for folder in folders if exists(folder / MANIFEST)]
    except OSError as error:
        raise cannot_read(Path(error.filename or store), error) from None
    return sorted(found, key=lambda one: -one.used)


def _listed(folder: Path) -> Listed:
    about = folder / MANIFEST
    try:
        found = read_json(about, Key)
        key = found if found.folder == folder.name else None  # or it is of others
    except (OSError, ValueError) as error:
        if unreadable(error):
            raise cannot_read(about, error) from None
        key = None
    views = tuple(sorted(folder.glob("view-*.arrow")))
    left = tuple(sorted(folder.glob("view-*.partial")))
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return Listed(folder, key, views, left, size, about.lstat().st_mtime)


def verify(store: Path) -> Iterator[tuple[Path, bool]]:
    """Every finished record of a store, and whether it is sound.

    Raises:
        RunError: there is no such folder.
    """
    for one in listed(store):
        for path in one.views:
            sound = one.key is not None and read_record(path, one.key, anew=True) is not None
            yield path, sound


def prune(store: Path, days: float, *, keep: bool = False) -> list[Listed]:
    """Remove the records of teachers that no run has used for so many days.

    Args:
        store: the folder.
        days: unused for as long, at least.
        keep: only say what would be removed.

    Raises:
        RunError: there is no such folder, or it cannot be written.
    """
    old = [one for one in listed(store) if one.used <= time.time() - days * 86400]
    for one in [] if keep else old:
        try:
            shutil.rmtree(one.folder)
        except OSError as error:
            raise RunError(
                f"{one.folder}: cannot be removed ({error.strerror or error})."
            ) from None
    return old
