"""A table of samples, CSV or Parquet: its columns, and what is wrong with them by row.

Rows are counted as a reader counts them: row 1 is the first one after the header.
"""

from __future__ import annotations

import bisect
import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from agrekd_ray.errors import DataError

CSV_BLOCK = 1 << 24
"""Bytes that are read at a time; no row may be longer."""


class Table:
    """The columns of a table that are asked for, as text.

    Args:
        path: a CSV file (`.csv`), a Parquet file (`.parquet`), or a folder of Parquet files, which
            are read in the order of their names.
        columns: that must be there.
        optional: that are read where they are there.

    Attributes:
        path: as given.
        files: what it is made of.
        names: of all columns of the table.
        rows: their number.

    Raises:
        DataError: the table is missing, damaged, empty or of another kind, a column is missing, or
            a row is not as wide as the header.
    """

    def __init__(self, path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> None:
        self.path = path
        self.files = _files(path)
        try:
            self.names = _names(self.files[0])
            for name in columns:
                _require(path, name, self.names)
            wanted = [*columns, *(name for name in optional if name in self.names)]
            parts = [_read(file, list(dict.fromkeys(wanted))) for file in self.files]
        except UnicodeDecodeError:
            raise DataError(f"{path}: its header is no UTF-8 text; save it as UTF-8.") from None
        except pa.ArrowException as error:
            raise _no_table(path, error) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
        self._ends = list(itertools.accumulate(part.num_rows for part in parts))
        self.rows = self._ends[-1]
        if not self.rows:
            raise DataError(f"{path}: holds no row besides the header.")
        self._parts = parts

    def where(self, row: int) -> str:
        """A row, counted from 0, as a reader finds it: `birds.csv, row 17`."""
        part = bisect.bisect_right(self._ends, row)
        first = self._ends[part - 1] if part else 0
        return f"{self.files[part].name}, row {row - first + 1}"

    def text(self, column: str) -> list[str]:
        """The values of a column as text, one a row.

        Raises:
            DataError: one is missing, or no UTF-8 text.
        """
        found: list[str] = []
        for value in self._values(column):
            try:
                text = _text(value)
            except UnicodeDecodeError:
                raise DataError(
                    f"{self.where(len(found))}: {column} is no UTF-8 text; save the table as UTF-8."
                ) from None
            if not text:
                raise DataError(f"{self.where(len(found))}: {column} is empty.")
            found.append(text)
        return found

    def numbers(self, column: str, meanings: Mapping[str, int], what: str) -> np.ndarray:
        """The values of a column as numbers, int64 [N].

        Args:
            column: of the table.
            meanings: number of every value that is allowed.
            what: the values are, in words, for the fault.

        Raises:
            DataError: another value; names the row, and the nearest one.
        """
        values = self.text(column)
        try:
            return np.array([meanings[value] for value in values], dtype=np.int64)
        except KeyError:
            row = next(row for row, value in enumerate(values) if value not in meanings)
            raise DataError(
                f"{self.where(row)}: {column} is {values[row]!r}, {_not_one_of(meanings, what)}"
                f"{_hint(values[row], meanings)}"
            ) from None

    def require(self, column: str) -> None:
        """Refuse the table if it has no such column.

        Raises:
            DataError: names the nearest one.
        """
        _require(self.path, column, self.names)

    def passages(self, column: str, rows: range) -> list[str]:
        """The values of a column in some rows as text, which may be empty.

        Raises:
            DataError: one is no UTF-8 text.
        """
        found, first = [], 0
        for part, end in zip(self._parts, self._ends, strict=True):
            inside = range(max(rows.start, first), min(rows.stop, end))
            values = part.column(column).slice(inside.start - first, len(inside)).to_pylist()
            for row, value in zip(inside, values, strict=True):
                try:
                    found.append(_text(value))
                except UnicodeDecodeError:
                    raise DataError(
                        f"{self.where(row)}: {column} is no UTF-8 text; save the table as UTF-8."
                    ) from None
            first = end
        return found

    def measures(self, column: str, *, empty: float | None = None) -> np.ndarray:
        """The values of a column as fractions, float64 [N].

        Args:
            column: of the table.
            empty: what an empty cell stands for; None refuses one.

        Raises:
            DataError: a value that is no number, with its row.
        """
        found = np.empty(self.rows)
        for row, text in enumerate(self.passages(column, range(self.rows))):
            try:
                found[row] = empty if not text and empty is not None else float(text)
                if not math.isfinite(found[row]):
                    raise ValueError
            except ValueError:
                raise DataError(f"{self.where(row)}: {column} is {text!r}, no number.") from None
        return found

    def unique(self, column: str) -> list[str]:
        """The values of a column, each of them once in the table.

        Raises:
            DataError: a value comes twice; names both rows.
        """
        values = self.text(column)
        seen: dict[str, int] = {}
        for row, value in enumerate(values):
            if value in seen:
                raise DataError(
                    f"{self.where(row)}: {column} {value} is in {self.where(seen[value])} already."
                )
            seen[value] = row
        return values

    def _values(self, column: str) -> list[Any]:
        return [value for part in self._parts for value in part.column(column).to_pylist()]


def column_type(file: Path, column: str) -> pa.DataType | None:
    """Of a Parquet file's column; None for CSV files, where all is text, and without the column.

    Raises:
        DataError: the file is damaged.
    """
    if file.suffix.lower() == ".csv":
        return None
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise _no_table(file, error) from None
    return schema.field(column).type if schema.names.count(column) == 1 else None


def table_files(path: Path) -> list[Path]:
    """The files of a table.

    Raises:
        DataError: there are none, or they are no CSV or Parquet files.
    """
    return _files(path)


def _files(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            found = sorted(path.glob("*.parquet"))
            if not found:
                raise DataError(f"{path}: the folder holds no .parquet file.")
            return found
        there = path.is_file()
    except OSError:  # a name that is too long
        there = False
    if not there:
        near = difflib.get_close_matches(path.name, _neighbours(path.parent), 1)
        raise DataError(
            f"{path}: no such table{f'; did you mean {near[0]}?' if near else '.'} Give a CSV or "
            "Parquet file, or a folder of Parquet files."
        )
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(f"{path}: a table is a .csv or a .parquet file.")
    return [path]


def _neighbours(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _require(path: Path, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise DataError(
            f"{path}: no column {name}; there are {', '.join(names)}.{_hint(name, names)}"
        )
    if names.count(name) > 1:
        raise DataError(f"{path}: {names.count(name)} columns are called {name}; rename one.")


def _names(file: Path) -> list[str]:
    if file.suffix.lower() == ".csv":
        import pyarrow.csv as pc

        with pc.open_csv(
            file,
            read_options=pc.ReadOptions(use_threads=False, block_size=CSV_BLOCK),
            # What is wrong with rows comes later, with their numbers.
            parse_options=pc.ParseOptions(
                newlines_in_values=True, invalid_row_handler=lambda row: "skip"
            ),
            convert_options=pc.ConvertOptions(check_utf8=False),
        ) as reader:
            return list(reader.schema.names)
    import pyarrow.parquet as pq

    return list(pq.read_schema(file).names)


def _read(file: Path, columns: list[str]) -> pa.Table:
    if file.suffix.lower() == ".csv":
        return _read_csv(file, columns)
    import pyarrow.parquet as pq

    there = list(pq.read_schema(file).names)
    for name in columns:
        _require(file, name, there)
    # No data frame's index and no other metadata: only what is asked for.
    found = pq.ParquetFile(file).read(columns=columns)
    for name in columns:
        if not _is_plain(found.schema.field(name).type):
            kind = found.schema.field(name).type
            raise DataError(f"{file}: {name} holds {kind}, neither text nor numbers.")
    return found


def _is_plain(kind: pa.DataType) -> bool:
    """Whether the values of a column are text, numbers, truths or missing."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_a = pa.types
    return any(
        test(kind)
        for test in (
            *(is_a.is_string, is_a.is_large_string, is_a.is_binary, is_a.is_large_binary),
            *(is_a.is_integer, is_a.is_floating, is_a.is_boolean, is_a.is_decimal, is_a.is_null),
        )
    )


def _read_csv(file: Path, columns: list[str]) -> pa.Table:
    import pyarrow.csv as pc

    wrong: list[Any] = []

    def keep(row: Any) -> str:
        wrong.append(row)
        return "skip"

    found = pc.read_csv(
        file,
        read_options=pc.ReadOptions(use_threads=False, block_size=CSV_BLOCK),
        parse_options=pc.ParseOptions(newlines_in_values=True, invalid_row_handler=keep),
        convert_options=pc.ConvertOptions(
            check_utf8=False,  # cell by cell, for the row's number
            column_types={name: pa.binary() for name in columns},
            include_columns=columns,
            strings_can_be_null=False,
        ),
    )
    if wrong:
        row = wrong[0]
        raise DataError(
            f"{file.name}, row {row.number - 1}: {row.actual_columns} values, but the header names "
            f"{row.expected_columns}; values with commas or quotes need quotes around them."
        )
    return found


def _text(value: Any) -> str:
    """A cell as text: whole numbers without a point, missing ones empty."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _not_one_of(meanings: Mapping[str, int], what: str) -> str:
    names = list(meanings)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"none of {what} ({shown})."


def _hint(value: str, names: Mapping[str, int] | Sequence[str]) -> str:
    near = difflib.get_close_matches(value, list(names), 1, 0.5)
    return f" Did you mean {near[0]}?" if near else ""


def _no_table(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as a table ({' '.join(str(error).split())}).")
