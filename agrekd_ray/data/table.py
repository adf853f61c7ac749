"""A table of samples, CSV or Parquet: its columns, and what is wrong with them by row.

Rows are counted as a reader counts them: row 1 is the first one after the header. The same values
are the same names in every format and dialect, see `names.canonical`.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from agrekd_ray.data.names import (
    NUMBER,
    canonical,
    folded,
    has_blank_end,
    listed,
    nearest,
    quoted,
    visible,
)
from agrekd_ray.data.splits import split_named, split_of_file
from agrekd_ray.errors import DataError

CSV_BLOCK = 1 << 24
"""Bytes that are read at a time; no row may be longer."""
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""Between the values of a text table, in words; the first that gives the columns is taken."""
TEXT, PARQUET = (".csv", ".tsv"), ".parquet"
_MISSING = ("nan", "NaN", "NAN", "NaT", "<NA>")
"""How programs write a missing value where they write text."""


@dataclass(frozen=True)
class Names:
    """A column of names: classes, groups or splits.

    Attributes:
        names: the different ones, in the order in which they come.
        first: row of each one's first.
        number_N: which one every row has.
    """

    names: tuple[str, ...]
    first: tuple[int, ...]
    number_N: np.ndarray


class Table:
    """The columns of a table that are asked for, as text.

    Args:
        path: a text table (`.csv`, `.tsv`), a Parquet file (`.parquet`), or a folder, see
            `table_files`.
        columns: that must be there.
        optional: says of each other column whether it is read too.
        remedy: what to do about a missing column, a sentence.
        cells: of every line, the header's first, where somebody else has read the file.

    Attributes:
        path: as given.
        files: what it is made of.
        names: of all columns of the table.
        counts: rows of every file.
        rows: their number.

    Raises:
        DataError: the table is missing, damaged, empty or of another kind, a column is missing, or
            differs from another in what nobody sees, or a row is not as wide as the header.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        optional: Callable[[str], bool] = lambda name: False,
        remedy: str = "",
        cells: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self.path, self._remedy = path, remedy
        self.files = table_files(path) if cells is None else [path]
        try:
            header = _header(self.files[0], columns)[0] if cells is None else cells[0]
            self.names = list(header)
            for name in columns:
                self.require(name)
            if cells is None:
                further = [name for name in self.names if optional(name)]
                wanted = list(dict.fromkeys([*columns, *further]))
                parts = [_read(file, wanted) for file in self.files]
            else:
                parts = [_of_cells(path.name, cells, columns)]
        except UnicodeDecodeError:
            raise DataError(f"{path}: its header is no UTF-8 text; save it as UTF-8.") from None
        except pa.ArrowException as error:
            raise _no_table(path, error) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
        self._parts, self.counts = parts, [part.num_rows for part in parts]
        self._ends = list(itertools.accumulate(self.counts))
        self.rows = self._ends[-1]
        if not self.rows:
            raise DataError(f"{path}: holds no row besides the header.")

    def where(self, row: int) -> str:
        """A row, counted from 0, as a reader finds it: `birds.csv, row 17`."""
        part = bisect.bisect_right(self._ends, row)
        first = self._ends[part - 1] if part else 0
        file = self.files[part]
        name = file.relative_to(self.path) if file != self.path else file.name
        return f"{name}, row {row - first + 1}"

    def values(self, column: str, given: Collection[str] = (), remedy: str = "") -> Names:
        """The values of a column as names, which are the same in every format.

        Args:
            column: of the table.
            given: names that somebody has spelt out, and that may look alike.
            remedy: what else can be done about names that look alike, a sentence.

        Raises:
            DataError: a value is missing or no UTF-8 text, has a blank at an end, is one number in
                two spellings, or differs from another in case or in what nobody sees.
        """
        spellings, number_N = self._coded(column)
        _, firsts = np.unique(number_N, return_index=True)
        first = firsts.tolist()
        names = [canonical(spelling) for spelling in spellings]
        by_name: dict[str, int] = {}
        by_look: dict[str, int] = {}
        for number, (spelling, name) in enumerate(zip(spellings, names, strict=True)):
            here = f"{self.where(first[number])}: {column} is"
            if not spelling:
                raise DataError(f"{here} empty.")
            if spelling in _MISSING and name not in given:
                raise DataError(f"{here} {quoted(spelling)}, which stands for a missing value.")
            other = by_name.setdefault(name, number)
            if other == number:
                other = by_look.setdefault(folded(name), number)
                if name in given and names[other] in given:
                    continue
            if other != number:
                difference = f"{_difference(name, names[other])}. {remedy}".rstrip()
                raise DataError(
                    f"{here} {quoted(spelling)}, and {quoted(spellings[other])} in "
                    f"{self.where(first[other])}: {difference}"
                )
            if has_blank_end(spelling) and name not in given:
                raise DataError(f"{here} {quoted(spelling)}, with a blank at an end; remove it.")
        return Names(tuple(names), tuple(first), number_N)

    def numbers(
        self, column: str, meanings: Mapping[str, int], what: str, remedy: str = ""
    ) -> np.ndarray:
        """The values of a column as numbers, int64 [N].

        Args:
            column: of the table.
            meanings: number of every value that is allowed.
            what: the values are, in words, for the fault.
            remedy: what else can be done about another value, a sentence.

        Raises:
            DataError: another value; names the row, and the nearest one.
        """
        known = {canonical(name): number for name, number in meanings.items()}
        values = self.values(column, known)
        for name, row in zip(values.names, values.first, strict=True):
            if name not in known:
                raise DataError(
                    f"{self.where(row)}: {column} is {quoted(name)}, none of {what} "
                    f"({listed(meanings)}).{_meant(name, meanings)} {remedy}".rstrip()
                )
        return np.array([known[name] for name in values.names], dtype=np.int64)[values.number_N]

    def require(self, column: str) -> None:
        """Refuse the table if it has no such column.

        Raises:
            DataError: names the nearest one.
        """
        _require(self.path, column, self.names, self._remedy)

    def passages(self, column: str, rows: range) -> list[str]:
        """The values of a column in some rows as text, which may be empty.

        Raises:
            DataError: one is no UTF-8 text.
        """
        texts, first = [], 0
        for part, end in zip(self._parts, self._ends, strict=True):
            inside = range(max(rows.start, first), min(rows.stop, end))
            values = part.column(column).slice(inside.start - first, len(inside)).to_pylist()
            for row, value in zip(inside, values, strict=True):
                try:
                    texts.append(_text(value))
                except UnicodeDecodeError:
                    raise self._no_text(row, column) from None
            first = end
        return texts

    def shares(self, column: str, *, empty: float | None = None) -> np.ndarray:
        """The values of a column as shares, from 0 to 1, float64 [N].

        Args:
            column: of the table.
            empty: what an empty cell stands for; None refuses one.

        Raises:
            DataError: a value that is no such number, with its row.
        """
        shares_N = np.empty(self.rows)
        for row, text in enumerate(self.passages(column, range(self.rows))):
            if not text and empty is not None:
                shares_N[row] = empty
                continue
            shares_N[row] = float(text) if NUMBER.fullmatch(text) else math.nan
            if not 0 <= shares_N[row] <= 1:
                raise DataError(
                    f"{self.where(row)}: {column} is {quoted(text)}, no number from 0 to 1."
                )
        return shares_N

    def unique(self, column: str) -> list[str]:
        """The values of a column as text, each of them once in the table.

        Raises:
            DataError: a value is missing, no UTF-8 text or comes twice, or two differ in what
                nobody sees; names the rows.
        """
        values = self.passages(column, range(self.rows))
        if "" in values:
            raise DataError(f"{self.where(values.index(''))}: {column} is empty.")
        first: dict[str, int] = {}
        for row, value in enumerate(values):
            if (other := first.setdefault(visible(value), row)) == row:
                continue
            if value == values[other]:
                raise DataError(
                    f"{self.where(row)}: {column} {quoted(value)} is in {self.where(other)} "
                    "already."
                )
            raise DataError(
                f"{self.where(row)}: {column} is {quoted(value)}, and {quoted(values[other])} in "
                f"{self.where(other)}: {_difference(value, values[other])}."
            )
        return values

    def _coded(self, column: str) -> tuple[list[str], np.ndarray]:
        """The different spellings of a column, and which one every row has, int64 [N].

        Raises:
            DataError: one is no UTF-8 text.
        """
        import pyarrow.compute as pc

        spellings: dict[str, int] = {}
        parts, before = [], 0
        for part in self._parts:
            cells = part.column(column)
            if pa.types.is_dictionary(cells.type):
                cells = cells.cast(cells.type.value_type)
            if pa.types.is_float16(cells.type):
                cells = cells.cast(pa.float32())
            coded = pc.dictionary_encode(cells.combine_chunks(), null_encoding="encode")
            indices_N = coded.indices.to_numpy()
            numbers = []
            for index, text in enumerate(_spelt(coded.dictionary)):
                if text is None:
                    raise self._no_text(before + int((indices_N == index).argmax()), column)
                numbers.append(spellings.setdefault(text, len(spellings)))
            parts.append(np.array(numbers, dtype=np.int64)[indices_N])
            before += part.num_rows
        return list(spellings), np.concatenate(parts)

    def _no_text(self, row: int, column: str) -> DataError:
        return DataError(f"{self.where(row)}: {column} is no UTF-8 text; save the table as UTF-8.")


def column_type(file: Path, column: str) -> pa.DataType | None:
    """Of a Parquet file's column; None for CSV files, where all is text, and without the column.

    Raises:
        DataError: the file is damaged.
    """
    if file.suffix.lower() in TEXT:
        return None
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise _no_table(file, error) from None
    return schema.field(column).type if schema.names.count(column) == 1 else None


def table_files(path: Path) -> list[Path]:
    """The files of a table.

    Of a folder these are its Parquet files, else its text tables; else those in its folders that
    are called like splits (`train/`, `validation/`, `test/`), all in the order of their names.

    Raises:
        DataError: there are none, of two kinds, or they are no CSV or Parquet files.
    """
    is_file, beside = False, []
    with contextlib.suppress(OSError):  # a name that is too long
        if path.is_dir():
            return _in_folder(path)
        is_file = path.is_file()
    if not is_file:
        with contextlib.suppress(OSError):
            beside = [other.name for other in path.parent.iterdir()]
        near = nearest(path.name, beside)
        raise DataError(
            f"{path}: no such table{f'; did you mean {quoted(near)}?' if near else '.'} Give a CSV "
            "or Parquet file, or a folder of them."
        )
    if path.suffix.lower() not in (*TEXT, PARQUET):
        raise DataError(f"{path}: a table is a .csv or a .parquet file, or a .tsv.")
    return [path]


def _in_folder(path: Path) -> list[Path]:
    folders = [entry for entry in path.iterdir() if entry.is_dir()]
    parts = [entry for entry in folders if split_named(entry.name)]
    columnar, text = _tables([path], (PARQUET,)), _tables([path], TEXT)
    named = [file for file in text if split_of_file(file)]
    by_kind = {
        "Parquet files": columnar,
        # Other text tables may be about the samples; these are samples.
        "text tables": text if named and not columnar else named,
        "Parquet files by split": _tables(parts, (PARQUET,)),
        "text tables by split": _tables(parts, TEXT),
    }
    kinds = [kind for kind, files in by_kind.items() if files]
    if not kinds:
        tables = sorted(entry.name for entry in folders if _tables([entry], (PARQUET,)))
        hint = f" There are some in {listed(tables)}." if tables else ""
        raise DataError(
            f"{path}: the folder holds no .parquet file, nor text tables that are called like "
            f"splits.{hint}"
        )
    if len(kinds) > 1:
        several = " and ".join(f"{kind} ({quoted(by_kind[kind][0].name)})" for kind in kinds)
        raise DataError(f"{path}: the folder holds {several}; keep one kind, or name the table.")
    return by_kind[kinds[0]]


def _tables(folders: Sequence[Path], kinds: Sequence[str]) -> list[Path]:
    return sorted(
        file
        for folder in folders
        for file in folder.iterdir()
        if file.suffix.lower() in kinds and file.is_file()
    )


def _require(path: Path, name: str, names: Sequence[str], remedy: str = "") -> None:
    if name not in names:
        hint = f"{_meant(name, names)} {remedy}".rstrip()
        if len(names) == 1 and path.suffix.lower() in TEXT:
            signs = " or ".join(DELIMITERS.values())
            hint = f" Between values are {signs}; write the table so. {remedy}".rstrip()
        raise DataError(f"{path}: no column {quoted(name)}; there are {listed(names, 24)}.{hint}")
    if names.count(name) > 1:
        raise DataError(
            f"{path}: {names.count(name)} columns are called {quoted(name)}; rename one."
        )
    for other in names:
        if other != name and folded(other) == folded(name):
            raise DataError(
                f"{path}: columns {quoted(name)} and {quoted(other)}: {_difference(name, other)}."
            )


def _meant(name: str, names: Iterable[str]) -> str:
    near = nearest(name, names)
    return f" Did you mean {quoted(near)}?" if near else ""


def _difference(name: str, other: str) -> str:
    """How two names that look alike differ, and what to do."""
    if canonical(name) == canonical(other):
        return "one number or truth value in two spellings; write it the same everywhere"
    how = "case" if visible(name) != visible(other) else "what nobody sees"
    return f"they differ only in {how}; write them the same, or rename one"


def _header(file: Path, columns: Sequence[str]) -> tuple[list[str], str]:
    """The names of a file's columns, and what is between them in a text table."""
    if file.suffix.lower() == PARQUET:
        import pyarrow.parquet as pq

        return list(pq.read_schema(file).names), ""
    import pyarrow.csv as pc

    with file.open("rb") as opened:
        if opened.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{file}: is UTF-16 text; save it as UTF-8.")
    headers: list[tuple[list[str], str]] = []
    for delimiter in DELIMITERS:
        try:
            # What is wrong with rows comes later, with their numbers.
            with pc.open_csv(file, **_text_options(delimiter, lambda row: "skip")) as reader:
                headers.append((list(reader.schema.names), delimiter))
        except pa.ArrowException:
            if delimiter == ",":
                raise
            continue
        if set(columns) <= set(headers[-1][0]):
            return headers[-1]
    return max(headers, key=lambda header: len(header[0]))


def _text_options(
    delimiter: str, on_wrong: Callable[[Any], str], columns: Sequence[str] = ()
) -> dict[str, Any]:
    import pyarrow.csv as pc

    return {
        "read_options": pc.ReadOptions(use_threads=False, block_size=CSV_BLOCK),
        "parse_options": pc.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_wrong
        ),
        "convert_options": pc.ConvertOptions(
            check_utf8=False,  # cell by cell, for the row's number
            column_types={name: pa.binary() for name in columns},
            include_columns=columns,
            strings_can_be_null=False,
        ),
    }


def _read(file: Path, columns: list[str]) -> pa.Table:
    names, delimiter = _header(file, columns)
    for name in columns:
        _require(file, name, names)
    if delimiter:
        return _read_text(file, columns, delimiter)
    import pyarrow.parquet as pq

    # No data frame's index and no other metadata: only what is asked for.
    table = pq.ParquetFile(file).read(columns=columns)
    for name in columns:
        if not _is_plain(kind := table.schema.field(name).type):
            raise DataError(
                f"{file}: {name} holds {kind}, neither text nor numbers; save it as text."
            )
    return table


def _of_cells(name: str, cells: Sequence[Sequence[str]], columns: Sequence[str]) -> pa.Table:
    header, *rows = cells
    for row, values in enumerate(rows, 1):
        if len(values) != len(header):
            raise DataError(f"{name}, row {row}: {len(values)} values, not {len(header)}.")
    places = {column: header.index(column) for column in columns}
    return pa.table({column: [row[at] for row in rows] for column, at in places.items()})


def _is_plain(kind: pa.DataType) -> bool:
    """Whether the values of a column are text, numbers, truths or missing."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_a = pa.types
    return any(
        test(kind)
        for test in (
            *(is_a.is_string, is_a.is_large_string, is_a.is_string_view),
            *(is_a.is_binary, is_a.is_large_binary, is_a.is_binary_view),
            *(is_a.is_integer, is_a.is_floating, is_a.is_boolean, is_a.is_decimal, is_a.is_null),
        )
    )


def _read_text(file: Path, columns: list[str], delimiter: str) -> pa.Table:
    import pyarrow.csv as pc

    wrong: list[Any] = []

    def keep(row: Any) -> str:
        wrong.append(row)
        return "skip"

    table = pc.read_csv(file, **_text_options(delimiter, keep, columns))
    if wrong:
        row = wrong[0]
        raise DataError(
            f"{file.name}, row {row.number - 1}: {row.actual_columns} values, but the header names "
            f"{row.expected_columns}; values with {DELIMITERS[delimiter]} or quotes need quotes "
            "around them."
        )
    return table


def _text(value: Any) -> str:
    """A cell as text; one that is not typed as text is spelt as `names.canonical` spells it."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if value is None or value != value:
        return ""
    return value if isinstance(value, str) else canonical(str(value))


def _spelt(values: pa.Array) -> list[str | None]:
    """Values as text, zero without a sign; None for what is no UTF-8."""
    # A float32 has fewer digits than what Python makes of it.
    plain = (
        list(values.to_numpy(zero_copy_only=False))
        if pa.types.is_float32(values.type)
        else values.to_pylist()
    )
    texts: list[str | None] = []
    for value in plain:
        try:
            text = _text(value)
            texts.append(text.removeprefix("-") if canonical(text) == "0" else text)
        except UnicodeDecodeError:
            texts.append(None)
    return texts


def _no_table(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as a table ({' '.join(str(error).split())}).")
