"""Cells of Parquet files in any order: row groups are read when one of theirs is asked for."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from agrekd_ray.errors import DataError
from agrekd_ray.files import in_a_line

KEPT = 1 << 28
"""Bytes of row groups that stay in memory, at most, besides the one that is read last."""
LARGEST = 1 << 30
"""Bytes of a row group beyond which it is not read for some of its rows."""
_READING = threading.Lock()


class RowGroups:
    """The cells of one column; those of the row groups that were read last stay in memory.

    Args:
        column: their name.
    """

    def __init__(self, column: str) -> None:
        self._column = column
        self._first_rows: list[int] = []
        self._places: list[tuple[Path, int]] = []
        self._rows = 0
        self._largest: tuple[int, Path | None] = (0, None)
        self._read: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Without what is in memory, which another process reads for itself."""
        return {**vars(self), "_read": OrderedDict()}

    def add(self, path: Path, metadata: Any) -> None:
        """The row groups of a file, which follow those so far."""
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            self._first_rows.append(self._rows)
            self._places.append((path, number))
            self._rows += group.num_rows
            columns = map(group.column, range(group.num_columns))
            own = (leaf for leaf in columns if leaf.path_in_schema.split(".")[0] == self._column)
            size = sum(leaf.total_uncompressed_size for leaf in own)
            if size > self._largest[0]:
                self._largest = size, path

    def cells(self, rows: Sequence[int]) -> dict[int, bytes | None]:
        """Cells by row.

        Raises:
            DataError: a file is damaged, or has row groups that are too large for that.
        """
        size, path = self._largest
        if size > LARGEST:
            raise DataError(
                f"{path}: a row group has {size / 1e9:.1f} GB, too much to be read for a few "
                "pictures. Write the file with smaller ones (row_group_size of "
                "pyarrow.parquet.write_table), or set data.keep_decoded=true."
            )
        by_group: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            by_group[bisect.bisect_right(self._first_rows, row) - 1].append(row)
        found = {}
        for group, own in sorted(by_group.items()):
            first, cells = self._first_rows[group], self._group(group)
            found.update({row: bytes_in(cells[row - first].as_py()) for row in own})
        return found

    def _group(self, number: int) -> Any:
        """The cells of a row group."""
        with _READING:
            if number not in self._read:
                path, inside = self._places[number]
                with opened(path) as file:
                    self._read[number] = file.read_row_group(inside, [self._column]).column(0)
            self._read.move_to_end(number)
            while len(self._read) > 1 and sum(c.nbytes for c in self._read.values()) > KEPT:
                self._read.popitem(last=False)
            return self._read[number]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A Parquet file; what damage is met while it is open becomes a `DataError`."""
    import pyarrow.parquet as pq

    try:
        # Unbuffered, so that a row group of any size is read page by page.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: damaged ({in_a_line(error)}); copy or download it again."
        ) from None


def bytes_in(cell: object) -> bytes | None:
    """The picture in a cell, which may be that of a structure; None where there is none."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    return content if isinstance(content, bytes) else None
