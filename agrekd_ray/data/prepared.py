"""Rows that are made once, kept on disk, and mapped into the memory of every process.

A set of rows has a key: a fingerprint of all that they are made of. They are filled in chunk by
chunk under a lock, so that a process that is killed leaves whole chunks behind, another goes on
from there, and of several at once one fills and the others wait. Only a set that is whole has its
final name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import mmap
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agrekd_ray.data.chunks import CHUNK, BrokenRowsError, Room, Work, chunks, in_threads
from agrekd_ray.data.dataset import Progress
from agrekd_ray.errors import DataError
from agrekd_ray.files import (
    DamagedError,
    cannot_read,
    in_a_line,
    is_file,
    locked,
    read_json,
    unreadable,
)

_ROWS, _DIGESTS, _WHOLE = "rows", "digests", "whole.json"
_DIGEST = hashlib.sha256().digest_size


class Chunk(NamedTuple):
    """A chunk whose rows are on disk, or whose faults are known.

    Attributes:
        number: of the chunk.
        digest: of what its rows were made of; empty where some cannot be made.
        counts: how many rows there is each remark on.
        faults: one for each row that cannot be made.
    """

    number: int
    digest: bytes = b""
    counts: tuple[int, ...] = ()
    faults: tuple[str, ...] = ()


Take = Callable[[Chunk], None]
Make = Callable[[Sequence[int], Take], None]
"""Has the chunks of these numbers written, and hands over each that is on disk."""


@dataclass(frozen=True)
class _Whole:
    """What stands beside a whole set: the digest of all chunks' digests, and how many rows."""

    digest: str
    rows: int


class PreparedRows:
    """Rows of one shape.

    Args:
        folder: of all sets of rows.
        key: of this one, 64 hexadecimal digits.
        count: number of rows.
        shape: of a row.
        dtype: of its values.
        remarks: names of what is counted while the rows are made.
        kept: false makes all rows once, for what is known of them, and keeps none.

    Attributes:
        kept: as given.
        place: folder of the whole set.
        bytes: that the rows take on disk.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        count: int,
        shape: tuple[int, ...],
        dtype: type[np.generic] = np.uint8,
        remarks: Sequence[str] = (),
        kept: bool = True,
    ) -> None:
        self.kept = kept
        self._folder, self._count, self._dtype = folder, count, np.dtype(dtype)
        self._shape, self._remarks = shape, tuple(remarks)
        self._row_bytes = math.prod(shape) * self._dtype.itemsize
        self.bytes = count * self._row_bytes if kept else 0
        # Of a chunk; a digest of zeros where it is still to be made.
        self._record = _record(len(remarks))
        name = key[:24] if kept else f"{key[:24]}-read"
        self.place = folder / name
        self._partial, self._lock = folder / f"{name}.partial", folder / f"{name}.lock"
        self._rows: np.ndarray | None = None

    @property
    def whole(self) -> bool:
        """Whether all rows are there.

        Raises:
            RunError: the system cannot say.
        """
        return is_file(self.place / _WHOLE) and self._sized(self.place)

    def _sized(self, folder: Path) -> bool:
        """Whether the file of rows has its size, where there is to be one."""
        return not self.kept or _size(folder / _ROWS) == self.bytes

    def left(self) -> int:
        """Rows that are still to be made."""
        return 0 if self.whole else self._rows_of(self._missing(self._done()))

    def left_bytes(self) -> int:
        """Bytes that are still to be written."""
        return self.left() * self._row_bytes if self.kept else 0

    def free(self) -> int:
        """Bytes that are free where they will be.

        Raises:
            OSError: the system cannot say.
        """
        there = (folder for folder in (self._folder, *self._folder.parents) if folder.is_dir())
        return shutil.disk_usage(next(there)).free

    def rows(self) -> np.ndarray:
        """All rows, [N, ...], mapped read-only.

        Raises:
            DataError: they are not all there.
        """
        if self._rows is None:
            if not self.whole:
                raise DataError(f"{self.place}: not prepared yet.")
            shape = (self._count, *self._shape)
            self._rows = np.memmap(self.place / _ROWS, self._dtype, mode="r", shape=shape)
        return self._rows

    def digest(self) -> str:
        """Of all that the rows were made of.

        Raises:
            DataError: they are not all there.
        """
        try:
            digest = read_json(self.place / _WHOLE, _Whole).digest
            if digest != self._digest(self._read_records(self.place)):
                raise DamagedError("its digests are others")
            return digest
        except (OSError, DamagedError) as error:
            if unreadable(error):
                raise cannot_read(self.place, error) from None
            raise DataError(
                f"{self.place}: not prepared, or damaged ({in_a_line(error)}); remove the folder, "
                "it is made again."
            ) from None

    def remarks(self) -> dict[str, int]:
        """On how many rows there is each remark, by name.

        Raises:
            DataError: they are not all there.
        """
        self.digest()  # which finds damage
        counts = self._read_records(self.place)["counts"].sum(0, dtype=np.int64)
        return dict(zip(self._remarks, counts.tolist(), strict=True))

    def fill(
        self,
        work: Callable[[Sequence[int]], Iterator[Work]],
        progress: Progress = lambda done, total: None,
        room: Room | None = None,
    ) -> None:
        """Make what is missing, in threads; another process that is at it is waited for.

        Args:
            work: the chunks of these numbers, in any order; what it yields is made soon after, so
                that the sources of few chunks are in memory at a time.
            progress: told after every chunk.
            room: that the making may take; None is what this process may use.

        Raises:
            BrokenRowsError: all rows that cannot be made; the others are kept.
            DataError: the folder cannot be written.
        """
        self.gather(self.here(work, room), progress)

    def here(
        self, work: Callable[[Sequence[int]], Iterator[Work]], room: Room | None = None
    ) -> Make:
        """What `gather` wants, by threads of this process; arguments as `fill` has them."""

        def make(missing: Sequence[int], take: Take) -> None:
            for chunk in self.write(work(missing), room or Room.of_process()):
                take(chunk)

        return make

    def gather(
        self,
        make: Make,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Have what is missing made, by whomever; another process that is at it is waited for.

        Args:
            make: has what is missing written (`write`), by this process or others that share the
                folder.
            progress: told after every chunk.

        Raises:
            BrokenRowsError: see `fill`.
            DataError: see `fill`.
        """
        with self._writable():
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock.open("w", encoding="utf-8") as file:
                locked(file)  # without locks both make the same rows
                if not self.whole:
                    self._gather(make, progress)

    def write(self, work: Iterator[Work], room: Room) -> Iterator[Chunk]:
        """Make chunks and put their rows at their places, while somebody gathers.

        Args:
            work: the chunks.
            room: that the making may take.

        Raises:
            DataError: the rows cannot be written.
        """
        with self._writable(), contextlib.ExitStack() as closing:
            file = closing.enter_context((self._partial / _ROWS).open("r+b")) if self.kept else None
            for number, made in in_threads(work, self._row_bytes, room):
                try:
                    rows, digest, counts = made.result()
                except BrokenRowsError as error:
                    yield Chunk(number, faults=error.faults)
                    continue
                if file is not None:
                    file.seek(number * CHUNK * self._row_bytes)
                    file.write(np.ascontiguousarray(rows, self._dtype).data)
                    # The rows reach the disk before the word that they are there.
                    file.flush()
                    os.fdatasync(file.fileno())
                yield Chunk(number, digest, counts)
                del made, rows

    @contextmanager
    def marked(self) -> Iterator[str]:
        """While the block runs, and somebody gathers, the folder has a file of this name."""
        mark = self._partial / f"shared-{uuid.uuid4().hex}"
        mark.touch()
        try:
            yield mark.name
        finally:
            mark.unlink(missing_ok=True)

    def has(self, mark: str) -> bool:
        """Whether this process sees the folder of the one that left a mark."""
        return is_file(self._partial / mark)

    def aligned(self, count: int) -> int:
        """The least number of chunks, `count` or more, that ends where a page of memory does.

        Processes on several nodes write such spans of the file at once: on some network file
        systems, one that writes a part of a page writes all of it.
        """
        unit = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, CHUNK * self._row_bytes)
        return -(-count // unit) * unit

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """What the system says of a folder that cannot be written becomes a `DataError`."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"data.prepared: {self._folder} cannot be written ({error.strerror or error}); "
                f"{self.bytes / 1e9:.1f} GB are needed. Free the disk or choose another folder; "
                "pictures need none with data.keep_decoded=false."
            ) from None

    def _read_records(self, folder: Path) -> np.ndarray:
        """What is known of every chunk; 0 for remarks that an earlier version did not count.

        Raises:
            DamagedError: it is of other rows.
            OSError: it cannot be read.
        """
        content = (folder / _DIGESTS).read_bytes()
        records = np.zeros(len(chunks(self._count)), self._record)
        for counted in range(len(self._remarks), -1, -1):
            kind = _record(counted)
            if len(content) == len(records) * kind.itemsize:
                held = np.frombuffer(content, kind)
                records["digest"], records["counts"][:, :counted] = held["digest"], held["counts"]
                return records
        raise DamagedError("its digests are of other rows")

    def _digest(self, records: np.ndarray) -> str:
        return hashlib.sha256(records["digest"].tobytes()).hexdigest()

    def _done(self) -> np.ndarray:
        """What is known of every chunk, whether it is made or not.

        Raises:
            RunError: the system cannot say.
        """
        try:
            if self._sized(self._partial):
                return self._read_records(self._partial)
        except (OSError, DamagedError) as error:
            if unreadable(error):
                raise cannot_read(self._partial, error) from None
        return np.zeros(len(chunks(self._count)), self._record)

    def _missing(self, records: np.ndarray) -> list[int]:
        """Numbers of the chunks that are still to be made."""
        missing: list[int] = np.flatnonzero(~records["digest"].any(1)).tolist()
        return missing

    def _rows_of(self, numbers: Iterable[int]) -> int:
        every = chunks(self._count)
        return sum(len(every[number]) for number in numbers)

    def _gather(self, make: Make, progress: Progress) -> None:
        shutil.rmtree(self.place, ignore_errors=True)  # damaged, or it would be whole
        self._partial.mkdir(exist_ok=True)
        records = self._done()
        missing = self._missing(records)
        done = self._count - self._rows_of(missing)
        faults: list[str] = []
        progress(done, self._count)
        (self._partial / _DIGESTS).touch()
        if self.kept:
            if (free := self.free()) < self.left_bytes():
                raise OSError(errno.ENOSPC, f"{free / 1e9:.1f} GB are free")
            (self._partial / _ROWS).touch()
            os.truncate(self._partial / _ROWS, self.bytes)
        with (self._partial / _DIGESTS).open("r+b") as file:
            file.write(records.tobytes())
            file.flush()

            def take(chunk: Chunk) -> None:
                nonlocal done
                faults.extend(chunk.faults)
                if not chunk.digest:
                    return
                records[chunk.number] = np.frombuffer(chunk.digest, np.uint8), chunk.counts
                file.seek(chunk.number * self._record.itemsize)
                file.write(records[chunk.number].tobytes())
                file.flush()
                done += self._rows_of([chunk.number])
                progress(done, self._count)

            make(missing, take)
        if faults:
            raise BrokenRowsError(faults)
        whole = _Whole(self._digest(records), self._count)
        (self._partial / _WHOLE).write_text(json.dumps(asdict(whole)), encoding="utf-8")
        os.replace(self._partial, self.place)


def _record(remarks: int) -> np.dtype[np.void]:
    """What is kept of a chunk: its digest, and how many there is each of the remarks on."""
    return np.dtype([("digest", "u1", (_DIGEST,)), ("counts", "<u4", (remarks,))])


def _size(path: Path) -> int | None:
    """Bytes of a file; None where it is missing.

    Raises:
        RunError: the system cannot say.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        if unreadable(error):
            raise cannot_read(path, error) from None
        return None
