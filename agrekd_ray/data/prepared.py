"""Rows that are made once, kept on disk, and mapped into the memory of every process.

A set of rows has a key: a fingerprint of all that they are made of. They are filled in chunk by
chunk under a lock, so that a process that is killed leaves whole chunks behind, another goes on
from there, and of several at once one fills and the others wait. Only a set that is whole has its
final name.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from agrekd_ray.data.dataset import Annotations, ArrayDataset, Progress
from agrekd_ray.data.views import ONE_VIEW, Views
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
from agrekd_ray.settings import fingerprint

CHUNK = 256
"""Rows that are made together; part of what the digest is computed from."""
_ROWS, _DIGESTS, _WHOLE = "rows", "digests", "whole.json"
_DIGEST = hashlib.sha256().digest_size
SHOWN = 10
"""Faults that are shown of many."""


class BrokenRowsError(DataError):
    """Rows of a chunk that cannot be made.

    Attributes:
        faults: one a row.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(listed(faults))
        self.faults = tuple(faults)


Made = tuple[np.ndarray, bytes, tuple[int, ...]]
"""The rows of a chunk, a digest of what they were made of, and how many there is each remark on."""
Work = tuple[int, Callable[[], Made]]
"""Number of a chunk, and what makes it: called in a thread, it may raise `BrokenRowsError`."""


def listed(faults: Sequence[str]) -> str:
    """The first ten faults, and how many there are."""
    shown = "; ".join(faults[:SHOWN])
    if len(faults) <= SHOWN:
        return shown
    return f"{shown}; and {len(faults) - SHOWN:,} more ({len(faults):,} in all)"


def chunks(count: int) -> list[range]:
    """Rows by chunk."""
    return [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]


def stamps(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Of each file, what changes when it is exchanged, computed without reading it."""
    stats = [(file.name, file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


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

    Attributes:
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
    ) -> None:
        self._folder, self._count, self._dtype = folder, count, np.dtype(dtype)
        self._shape, self._remarks = shape, tuple(remarks)
        self._row_bytes = math.prod(shape) * self._dtype.itemsize
        self.bytes = count * self._row_bytes
        # Of a chunk; a digest of zeros where it is still to be made.
        self._record = _record(len(remarks))
        self.place = folder / key[:24]
        self._partial = folder / f"{key[:24]}.partial"
        self._lock = folder / f"{key[:24]}.lock"
        self._rows: np.ndarray | None = None

    @property
    def whole(self) -> bool:
        """Whether all rows are there.

        Raises:
            RunError: the system cannot say.
        """
        return is_file(self.place / _WHOLE) and _size(self.place / _ROWS) == self.bytes

    def left(self) -> int:
        """Rows that are still to be made."""
        return 0 if self.whole else sum(map(len, self._missing(self._done())))

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
    ) -> None:
        """Make what is missing, in threads; another process that is at it is waited for.

        Args:
            work: the chunks of these numbers, in any order; what it yields is made soon after, so
                that the sources of few chunks are in memory at a time.
            progress: told after every chunk.

        Raises:
            BrokenRowsError: all rows that cannot be made; the others are kept.
            DataError: the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock.open("w", encoding="utf-8") as file:
                locked(file)  # without locks both make the same rows
                if not self.whole:
                    self._fill(work, progress)
        except OSError as error:
            raise DataError(
                f"data.prepared: {self._folder} cannot be written ({error.strerror or error}); "
                f"{self.bytes / 1e9:.1f} GB are needed. Free the disk or choose another folder."
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
            if _size(self._partial / _ROWS) == self.bytes:
                return self._read_records(self._partial)
        except (OSError, DamagedError) as error:
            if unreadable(error):
                raise cannot_read(self._partial, error) from None
        return np.zeros(len(chunks(self._count)), self._record)

    def _missing(self, records: np.ndarray) -> list[range]:
        every = chunks(self._count)
        return [every[number] for number in np.flatnonzero(~records["digest"].any(1))]

    def _fill(self, work: Callable[[Sequence[int]], Iterator[Work]], progress: Progress) -> None:
        shutil.rmtree(self.place, ignore_errors=True)  # damaged, or it would be whole
        self._partial.mkdir(exist_ok=True)
        records = self._done()
        missing = self._missing(records)
        done = self._count - sum(map(len, missing))
        faults: list[str] = []
        progress(done, self._count)
        for name in (_ROWS, _DIGESTS):
            (self._partial / name).touch()
        with (
            (self._partial / _ROWS).open("r+b") as rows_file,
            (self._partial / _DIGESTS).open("r+b") as digests_file,
        ):
            rows_file.truncate(self.bytes)
            digests_file.write(records.tobytes())
            digests_file.flush()
            for number, made in _in_threads(work([rows.start // CHUNK for rows in missing])):
                try:
                    rows, digest, counts = made.result()
                except BrokenRowsError as error:
                    faults += error.faults
                    continue
                rows_file.seek(number * CHUNK * self._row_bytes)
                rows_file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
                # The rows reach the disk before the word that they are there.
                rows_file.flush()
                os.fdatasync(rows_file.fileno())
                records[number] = np.frombuffer(digest, np.uint8), counts
                digests_file.seek(number * self._record.itemsize)
                digests_file.write(records[number].tobytes())
                digests_file.flush()
                done += len(rows)
                progress(done, self._count)
        if faults:
            raise BrokenRowsError(faults)
        whole = _Whole(self._digest(records), self._count)
        (self._partial / _WHOLE).write_text(json.dumps(asdict(whole)), encoding="utf-8")
        os.replace(self._partial, self.place)


class PreparedSamples(ArrayDataset):
    """What data sets of prepared rows share (`Prepared`).

    Args:
        rows: inputs of the samples.
        annotations: of the samples.
        shape: of one sample's inputs.
        views: how views differ.
    """

    def __init__(
        self,
        rows: PreparedRows,
        annotations: Annotations,
        shape: tuple[int, ...],
        views: Views = ONE_VIEW,
    ) -> None:
        super().__init__(annotations, shape, views)
        self.splits_from = annotations.splits_from
        self.rows = rows

    @abstractmethod
    def making(self, numbers: Sequence[int]) -> Iterator[Work]:
        """What makes the chunks of these numbers, as `PreparedRows.fill` wants it."""

    @abstractmethod
    def how(self) -> str:
        """Changes wherever the same sources give other inputs; asked for when all are prepared."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """See `Samples.fingerprint`: of the sources' content, and of what is said about them."""
        self.prepare()
        looks = fingerprint(self.how(), self.rows.digest(), self.classes)
        digest = hashlib.sha256(looks.encode() + self._labels_N.numpy().tobytes())
        for name, ids in self.splits.items():
            digest.update(name.encode() + ids.astype(np.int64).tobytes())
        for kinds_N in (self.groups.attribute_N, self.groups.group_N):
            digest.update(kinds_N.astype(np.int64).tobytes())
        return digest.hexdigest()

    def unprepared(self) -> int:
        """See `Prepared.unprepared`."""
        return self.rows.left()

    def prepare(self, progress: Progress = lambda done, total: None) -> None:
        """See `Prepared.prepare`."""
        if not self.rows.whole:
            self.rows.fill(self.making, progress)


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


def _in_threads(work: Iterator[Work]) -> Iterator[tuple[int, Future[Made]]]:
    """Finished chunks, as they come; only a few are under way, so that memory stays bounded."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads, "prepare") as pool:
        under_way: dict[Future[Made], int] = {}
        try:
            for number, make in work:
                under_way[pool.submit(make)] = number
                if len(under_way) > threads:
                    yield from _finished(under_way)
            while under_way:
                yield from _finished(under_way)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finished(under_way: dict[Future[Made], int]) -> Iterator[tuple[int, Future[Made]]]:
    ready, _ = wait(under_way, return_when=FIRST_COMPLETED)
    for future in ready:
        yield under_way.pop(future), future
