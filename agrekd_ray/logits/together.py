"""A copy of some records in which the rows of a sample lie side by side, to be read at once.

Out of M files a batch of B samples takes M × B small reads; out of the copy, B large ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from agrekd_ray.errors import RunError
from agrekd_ray.files import identity
from agrekd_ray.logits.features import Headed, Logits, mapped, recorded
from agrekd_ray.logits.forms import Packed, Recorded
from agrekd_ray.logits.record import cannot_write
from agrekd_ray.logits.remote import bring
from agrekd_ray.logits.sound import is_sound

_PART = 1 << 26
"""Bytes that are put side by side at a time."""
_DIGEST = hashlib.sha256().digest_size
"""Bytes of the rows' SHA-256, which are the last of the file."""


def side_by_side(path: Path, logits: Sequence[Logits]) -> tuple[list[Logits], np.ndarray]:
    """The same logits, read from a copy in which their rows lie side by side.

    It is made where it is missing: by one process of a node, the others wait.

    Args:
        path: of the copy; another one for other records.
        logits: of one view, [N, C] each.

    Returns:
        The logits, and all rows of the copy as bytes, [N, W].

    Raises:
        RunError: the disk is full or cannot be written.
    """
    records = {id(recorded(one)): recorded(one) for one in logits}
    sources = [mapped(record) for record in records.values()]
    widths = [source.shape[1] * source.itemsize for source in sources]
    whole_NW = _copy(path, sources, sum(widths))
    ends = np.cumsum(widths).tolist()
    moved: dict[int, Recorded] = {}
    for key, source, width, end in zip(records, sources, widths, ends, strict=True):
        rows = whole_NW[:, end - width : end].view(source.dtype)
        record = records[key]
        moved[key] = Packed(record.form, rows) if isinstance(record, Packed) else rows
    return [_moved(one, moved[id(recorded(one))]) for one in logits], whole_NW


def _moved(logits: Logits, rows: Recorded) -> Logits:
    if isinstance(logits, Headed):
        return Headed(rows, logits.weight_CD, logits.bias_C)
    return rows


def _copy(path: Path, sources: Sequence[np.ndarray], width: int) -> np.ndarray:
    """The copy, mapped; made anew where it is missing or damaged."""
    shape, seen = (len(sources[0]), width), identity(path)
    whole_NW = _opened(path, shape)
    if whole_NW is None:
        try:
            bring(path, seen, lambda target: _write(target, sources, shape))
        except OSError as error:
            raise cannot_write(path, error) from None
        whole_NW = _opened(path, shape)
    if whole_NW is None:
        raise RunError(f"{path}: damaged as soon as it was written; look at the disk.")
    return whole_NW


def _opened(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The rows of a copy; None where it is missing or damaged."""
    try:
        file = path.stat()
        if file.st_size != math.prod(shape) + _DIGEST:
            return None
        content = np.memmap(path, np.uint8, mode="r")
    except FileNotFoundError:
        return None
    rows, digest = content[:-_DIGEST], content[-_DIGEST:].tobytes()
    return rows.reshape(shape) if is_sound(file, rows, digest.hex()) else None


def _write(target: IO[bytes], sources: Sequence[np.ndarray], shape: tuple[int, int]) -> None:
    (count, width), digest = shape, hashlib.sha256()
    step = max(1, _PART // width)
    for first in range(0, count, step):
        part = [np.ascontiguousarray(source[first : first + step]) for source in sources]
        rows = np.concatenate([one.view(np.uint8) for one in part], 1)
        digest.update(rows.data)
        target.write(rows.data)
    target.write(digest.digest())
