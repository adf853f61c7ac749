"""Encoded pictures, in a folder or in Parquet, and what becomes of each of them."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agrekd_ray.data.chunks import CHUNK, SHOWN, BrokenRowsError, Made, Work, listed
from agrekd_ray.data.decode import Decoding, UnfitError, decode, remarks_of
from agrekd_ray.data.names import file_alike, quoted
from agrekd_ray.data.row_groups import RowGroups, bytes_in, opened
from agrekd_ray.data.stamps import Stamps, listing, stamp_of, stamps
from agrekd_ray.errors import DataError
from agrekd_ray.files import is_file
from agrekd_ray.settings import fingerprint

Where = Callable[[int], str]
"""A row of a table, in words."""
Picture = bytes | str | None
"""The content of an encoded picture or the path of its file; None for an empty cell."""


class FolderPictures:
    """Pictures that are files.

    Args:
        folder: that the paths are relative to.
        paths: of all pictures.
        where: of a picture's row, for faults.

    Attributes:
        where: as given.
        count: how many pictures.
        stamp: changes when a file is exchanged; computed without reading the pictures.
        stamps: it, as another process is handed it, which then looks at none of the files.

    Raises:
        DataError: files are missing; names the first ten rows, and how many there are. A file is
            that of two rows.
    """

    def __init__(self, folder: Path, paths: Sequence[str], where: Where) -> None:
        self.where, self.count = where, len(paths)
        self.paths = [os.path.join(folder, path) for path in paths]  # noqa: PTH118 (200,000 of them)
        files = listing(folder, paths)
        self.stamp = stamp_of(files) or self._stamped(paths)
        self.stamps: Stamps = ((files, self.stamp),)

    def _stamped(self, paths: Sequence[str]) -> str:
        """The stamp, found out by a look at every file."""
        where = self.where
        plain: dict[str, int] = {}
        for row, path in enumerate(paths):  # a/../b.png and b.png are one file
            if (first := plain.setdefault(os.path.normpath(path), row)) != row:
                raise DataError(
                    f"{where(row)}: {quoted(path)} is the file of {where(first)} already."
                )
        stamps = hashlib.sha256()
        missing: list[str] = []
        for row, path in enumerate(self.paths):
            try:
                stat = os.stat(path)  # noqa: PTH116
                stamps.update(f"{paths[row]}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
            except (OSError, ValueError):
                near = file_alike(Path(path)) if len(missing) < SHOWN else None
                hint = f", but {quoted(str(near), len(path) + 9)}" if near else ""
                missing.append(f"{where(row)}: no file {quoted(path, len(path))}{hint}")
        if missing:
            raise DataError(listed(missing) + ".")
        return stamps.hexdigest()

    def missing(self) -> str:
        """A file that is not there, of those that are looked at: the first and the last."""
        return _missing(self.paths)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[Picture]]]:
        """The chunks of `chunks.CHUNK` pictures that have these numbers."""
        for number in numbers:
            yield number, [*self.paths[number * CHUNK : (number + 1) * CHUNK]]

    def pick(self, rows: Sequence[int]) -> list[Picture]:
        """The pictures of some rows, in that order."""
        return [self.paths[row] for row in rows]


class ParquetPictures:
    """Pictures that are bytes in a column of Parquet files, or `{bytes, path}` as Hugging Face has.

    Where a cell has a path and no bytes, the picture is that file.

    Args:
        files: in order.
        column: with the pictures.
        folder: that the paths are relative to.
        where: of a picture's row, for faults.

    Attributes:
        where: as given.
        count: how many pictures.
        stamp: see `FolderPictures`.
        stamps: see `FolderPictures`; of the files that cells name.

    Raises:
        DataError: see `FolderPictures`, for the files that cells name; or a file is damaged.
    """

    def __init__(self, files: Sequence[Path], column: str, folder: Path, where: Where) -> None:
        self._files, self._column, self.where, self.count = files, column, where, 0
        named: dict[int, str] = {}
        self._groups = RowGroups(column)
        for path in files:
            with opened(path) as file:
                named.update(_named(file, column, self.count))
                self._groups.add(path, file.metadata)
                self.count += file.metadata.num_rows
        self.stamp = fingerprint(stamps(files), column)
        self.stamps: Stamps = ()
        rows = list(named)
        self._named: dict[int, str] = {}
        if named:
            pictures = FolderPictures(folder, list(named.values()), lambda n: where(rows[n]))
            self._named = dict(zip(rows, pictures.paths, strict=True))
            self.stamp = fingerprint(self.stamp, pictures.stamp)
            self.stamps = pictures.stamps

    def missing(self) -> str:
        """See `FolderPictures.missing`, for the files that cells name."""
        return _missing(list(self._named.values()))

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[Picture]]]:
        """See `FolderPictures.read`."""
        wanted = set(numbers)
        held: list[Picture] = []
        number = 0
        for row, cell in enumerate(self._cells(wanted)):
            held.append(self._named.get(row, cell))
            if len(held) == CHUNK:
                if number in wanted:
                    yield number, held
                held, number = [], number + 1
        if held and number in wanted:
            yield number, held

    def pick(self, rows: Sequence[int]) -> list[Picture]:
        """See `FolderPictures.pick`.

        Raises:
            DataError: a file is damaged.
        """
        cells = self._groups.cells([row for row in rows if row not in self._named])
        return [self._named.get(row) or cells[row] for row in rows]

    def _cells(self, wanted: set[int]) -> Iterator[bytes | None]:
        """All cells; those of chunks that are not wanted may come as None, unread.

        Raises:
            DataError: a file is damaged.
        """
        row = 0
        for path in self._files:
            with opened(path) as file:
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if wanted & set(range(row // CHUNK, (row + rows - 1) // CHUNK + 1)):
                        for batch in file.iter_batches(32, [group], [self._column]):
                            yield from (bytes_in(cell.as_py()) for cell in batch.column(0))
                    else:
                        yield from itertools.repeat(None, rows)
                    row += rows


Source = FolderPictures | ParquetPictures
"""Encoded pictures by number."""


def _missing(paths: Sequence[str]) -> str:
    """The first or the last of them where that is no file; else empty."""
    seen = (paths[0], paths[-1]) if paths else ()
    return next((path for path in seen if not is_file(Path(path))), "")


def _named(file: Any, column: str, row: int) -> Iterator[tuple[int, str]]:
    """Rows whose cell has no picture, but the path of one; the file begins with `row`."""
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        leaves = {leaf.path_in_schema: leaf for leaf in map(group.column, range(group.num_columns))}
        content = leaves.get(f"{column}.bytes")
        if content is None or f"{column}.path" not in leaves:
            return
        known = content.statistics
        if known is None or not known.has_null_count or known.null_count:
            inside = row
            for batch in file.iter_batches(32, [number], [column]):
                cells = batch.column(0)
                fields = dict(zip(cells.type.names, cells.flatten(), strict=True))
                absent, paths = fields["bytes"].is_null().to_pylist(), fields["path"].to_pylist()
                for place, path in enumerate(paths):
                    if absent[place] and isinstance(path, str) and path:
                        yield inside + place, path
                inside += len(paths)
        row += group.num_rows


def decoding(
    source: Source, numbers: Sequence[int], side: int, version: Decoding
) -> Iterator[Work]:
    """Work for `PreparedRows.fill` that decodes pictures, and counts `REMARKS` of them.

    Args:
        source: of the pictures.
        numbers: of the chunks that are wanted.
        side: of the squares that they become.
        version: of what decoding gives.
    """
    names = remarks_of(version)

    def make(number: int, pictures: Sequence[Picture]) -> Made:
        digest = hashlib.sha256()
        squares = np.empty((len(pictures), 3, side, side), np.uint8)
        faults = []
        counted: Counter[str] = Counter()
        for place, picture in enumerate(pictures):
            try:
                content = content_of(picture)
                digest.update(len(content).to_bytes(8) + content)
                squares[place], remarks = decode(content, side, version)
                counted.update(remarks)
            except OSError as error:
                faults.append(f"{source.where(number * CHUNK + place)}: {fault_of(error)}")
        if faults:
            raise BrokenRowsError(faults)
        return squares, digest.digest(), tuple(counted[name] for name in names)

    for number, pictures in source.read(numbers):
        held = sum(len(picture) for picture in pictures if isinstance(picture, bytes))
        yield Work(number, functools.partial(make, number, pictures), held)


def content_of(picture: Picture) -> bytes:
    """An encoded picture.

    Raises:
        OSError: its cell is empty, or its file cannot be read.
    """
    if not picture:
        raise OSError("the cell is empty")
    return Path(picture).read_bytes() if isinstance(picture, str) else picture


def fault_of(error: OSError) -> str:
    """What is wrong with a picture, in words.

    Without the address of a buffer, which says nothing and differs from run to run.
    """
    text = str(error.strerror or error)
    if isinstance(error, UnfitError):
        return f"a picture of {text}"
    return f"broken image ({text})"
