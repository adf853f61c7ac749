"""A record in the making: rows arrive in any order, and none is lost when its writer is killed.

A partial record is a file of N rows and N checksums, mapped into memory. Each row is trusted by
its own checksum alone, so a writer that takes over a partial of a dead one keeps what is whole.
One writer holds a partial at a time (a file lock, which dies with its process); two jobs that
record the same teacher have a partial each.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from agrekd_ray.files import locked
from agrekd_ray.logits.record import Key, cannot_write, write_record

SUFFIX = ".partial"


class LogitsWriter:
    """Rows of one teacher and view, of which some are known.

    Args:
        path: of the finished record; partials are its neighbours.
        key: of the teacher.
        finished: is told when the record is there.

    Raises:
        RunError: the disk is full or cannot be written.
    """

    def __init__(
        self, path: Path, key: Key, finished: Callable[[Path], None] = lambda path: None
    ) -> None:
        self._path, self._key, self._finished = path, key, finished
        self._size = key.rows * (key.form.row_bytes + 4)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            left = [taken for found in partials(path) if (taken := self._take(found))]
            if not left:
                left = [self._new()]
        except OSError as error:
            raise cannot_write(path, error) from None
        (self._own, self._file), *others = left
        self._rows_NR, self._checks_N = self._mapped(self._file)
        self.known_N = self._sound(self._rows_NR, self._checks_N)
        """Which rows are there, [N]."""
        for other, descriptor in others:  # of further writers that died
            rows_NR, checks_N = self._mapped(descriptor)
            more = np.flatnonzero(self._sound(rows_NR, checks_N) & ~self.known_N)
            self._put(more, rows_NR[more])
            other.unlink(missing_ok=True)
            os.close(descriptor)

    def get(self, rows: np.ndarray) -> np.ndarray:
        """Logits [B, C] of rows that are known, float32."""
        return self._key.form.decode(self._rows_NR[rows]).astype(np.float32, copy=False)

    def put(self, rows: np.ndarray, logits_BC: np.ndarray) -> None:
        """Add rows; those that are known already may come again."""
        self._put(rows, self._key.form.encode(logits_BC))

    def _put(self, rows: np.ndarray, stored_BR: np.ndarray) -> None:
        self._rows_NR[rows] = stored_BR
        self._checks_N[rows] = _checksums(stored_BR)
        self.known_N[rows] = True

    def finish(self) -> None:
        """Write the finished record and remove the partial.

        Raises:
            RunError: the disk is full or cannot be written.
        """
        write_record(self._path, self._key, self._key.form.opened(self._rows_NR))
        self._finished(self._path)
        self.discard()

    def discard(self) -> None:
        """Remove the partial: the record is there, from this writer or another."""
        self._own.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave the partial to whoever goes on with it."""
        if self._file >= 0:
            with contextlib.suppress(OSError):  # the map's own copy of the file holds it too
                fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)
            self._file = -1

    def _new(self) -> tuple[Path, int]:
        """An empty partial, locked, with its disk reserved before others can see it.

        A full disk is an error here; later, at a mapped page, it would be a crash.
        """
        path = self._path.with_name(f"{self._path.stem}.{uuid.uuid4().hex[:8]}{SUFFIX}")
        hidden = path.with_name(f".{path.name}")
        descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked(descriptor)
            os.posix_fallocate(descriptor, 0, self._size)
            hidden.rename(path)
        except OSError:
            hidden.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return path, descriptor

    @staticmethod
    def _is_whole(descriptor: int, size: int) -> bool:
        found = os.fstat(descriptor)
        return found.st_nlink > 0 and found.st_size == size

    def _take(self, path: Path) -> tuple[Path, int] | None:
        """A partial that a dead writer left, now this one's; None where it is not to be had."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:  # it was finished meanwhile
            return None
        try:
            # Without locks a writer that lives is not told from a dead one: none is taken.
            if locked(descriptor, wait=False):
                if self._is_whole(descriptor, self._size):
                    return path, descriptor
                path.unlink(missing_ok=True)  # cut short, so nobody knows which row is which
        except BlockingIOError:  # another writer is at it
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _mapped(self, descriptor: int) -> tuple[np.ndarray, np.ndarray]:
        """Stored rows [N, R] and checksums [N] of the open file, whatever happens to its name."""
        count, form, content = self._key.rows, self._key.form, mmap.mmap(descriptor, self._size)
        kind, width = form.stored
        rows = np.frombuffer(content, kind, count * width).reshape(count, width)
        return rows, np.frombuffer(content, np.uint32, count, count * form.row_bytes)

    @staticmethod
    def _sound(rows_NR: np.ndarray, checks_N: np.ndarray) -> np.ndarray:
        sound = checks_N != 0
        sound[sound] = checks_N[sound] == _checksums(rows_NR[sound])
        return np.asarray(sound)


def partials(path: Path) -> list[Path]:
    """Partials of a record, whoever's they are."""
    return sorted(path.parent.glob(f"{path.stem}.*{SUFFIX}"))


def _checksums(rows_BR: np.ndarray) -> np.ndarray:
    """CRC-32 of each row, [B]; never 0, which is a row that was not written."""
    content, size = rows_BR.tobytes(), rows_BR.shape[1] * rows_BR.itemsize
    found = [zlib.crc32(content[start : start + size]) for start in range(0, len(content), size)]
    return np.maximum(np.array(found, dtype=np.uint32), 1)
