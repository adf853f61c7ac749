"""Large records that a node has found sound: read whole once, and not by each of its processes."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from agrekd_ray.files import locked

FROM_BYTES = 1 << 26
"""Smaller ones are read whole by every process, in less than a tenth of a second."""
FOR_SECONDS = 86400.0
"""Then a record is looked at again: disks wear."""


def is_sound(file: os.stat_result, values: np.ndarray, digest: str, *, anew: bool = False) -> bool:
    """Whether values are those that were written.

    Of processes that ask at once, one reads; the others wait for it.

    Args:
        file: that they are mapped from. One that was written since is another one.
        values: contiguous.
        digest: their SHA-256, in hexadecimal digits.
        anew: read them whatever is known.
    """
    if anew or values.nbytes < FROM_BYTES or (folder := _folder()) is None:
        return _digest(values) == digest
    about = (file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, digest)
    stamp = folder / hashlib.sha256(repr(about).encode()).hexdigest()
    with stamp.open("ab+") as found:
        locked(found)
        known = os.fstat(found.fileno())
        if known.st_size and 0 <= time.time() - known.st_mtime < FOR_SECONDS:
            return True
        if _digest(values) != digest:
            return False
        found.write(b"sound\n")
        return True


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(values.data).hexdigest()


def _folder() -> Path | None:
    """This user's own folder of the node; None where there is none to be had."""
    folder = Path(tempfile.gettempdir()) / f"agrekd_ray-sound-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        known = folder.lstat()
    except OSError:
        return None
    own = known.st_uid == os.getuid() and not known.st_mode & 0o022
    return folder if own and not folder.is_symlink() else None
