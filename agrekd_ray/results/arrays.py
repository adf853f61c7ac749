"""Figures of very many groups or teachers: out of JSON into one array file beside it, and back.

What is of few (`results.many`) stays in JSON as it is. A mapping of many numbers, and one of rows
of numbers, becomes a row or a matrix of an array in `by_group.npz`; in the JSON there is a
reference in its place: `{"$array": "history/weights", "at": 3}`. What is at the same place in the
entries of lists, as in the epochs of a history, and has the same names is one array:

    arrays = numpy.load("students/agre_kd-seed-0/by_group.npz")
    arrays["history/weights"]          # [epochs, groups, teachers], float64
    arrays["history/weights/rows"]     # [groups], their names
    arrays["history/weights/columns"]  # [teachers], theirs

The file is read without pickle, and values come back to the bit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from agrekd_ray.files import DamagedError, in_a_line, is_file, replacing
from agrekd_ray.results.many import are_many
from agrekd_ray.results.records import Epoch, epochs_from_json

ARRAYS = "by_group.npz"
"""Name of the array file beside the JSON file of a run or a student."""
_ARRAY, _AT, _FILE = "$array", "at", "file"
_ROWS, _COLUMNS = "rows", "columns"
_AS_IT_IS = ("job", "settings", "setting", "summary")
"""Keys of what a user has set, and of what is bounded, which stays in JSON."""

Arrays = dict[str, np.ndarray]


def packed(values: Any, file: str | None = None) -> tuple[Any, Arrays]:
    """Values as JSON has them, with references in place of what is of many, and the arrays.

    Args:
        values: records, or plain values.
        file: where the arrays will be, relative to the JSON file; None for `ARRAYS` beside it.

    Returns:
        Plain values, which are the same where nothing is of many; and the arrays by name, none
        then.
    """
    packer = _Packer(file)
    plain = packer.taken(values, ())
    return plain, packer.arrays()


def unpacked(values: Any, folder: Path, file: str = ARRAYS) -> Any:
    """The values that `packed` was given, as plain ones; those without references as they are.

    Args:
        values: out of a JSON file.
        folder: of that file.
        file: of the arrays, where references name no other.

    Raises:
        DamagedError: the arrays are missing, damaged or other ones.
        OSError: the file is there and cannot be read.
    """
    try:
        return _Unpacker(folder, file).restored(values)
    except RecursionError as error:
        raise DamagedError(in_a_line(error)) from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an array file, whole or not at all; nothing where there are no arrays.

    Raises:
        OSError: it cannot be written.
    """
    if not arrays:
        return
    with replacing(path) as draft, draft.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> Arrays:
    """The arrays of a file by name.

    Raises:
        DamagedError: it is missing, or does not hold arrays.
        OSError: it is there and cannot be read.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise DamagedError(f"its figures by group, {path.name}, are missing") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(path, error) from None
    except Exception as error:  # whatever a damaged file brings
        raise _damaged(path, error) from None


def _damaged(path: Path, error: BaseException) -> DamagedError:
    return DamagedError(f"its figures by group, {path.name}, are damaged: {in_a_line(error)}")


class _Packer:
    """Takes values apart; those of one place and with the same names become one array."""

    def __init__(self, file: str | None) -> None:
        self._file = file
        # By place and names of rows and columns: the name of the array, and its parts.
        self._parts: dict[tuple[Any, ...], tuple[str, list[np.ndarray]]] = {}
        self._names: set[str] = set()

    def taken(self, value: Any, place: tuple[str, ...]) -> Any:
        if is_dataclass(value):
            value = vars(value)
        if isinstance(value, list | tuple):
            return [self.taken(inner, place) for inner in value]
        if not isinstance(value, dict):
            return value
        if place and place[-1] in _AS_IT_IS:
            return value
        if (found := _matrix(value)) is not None:
            return self._reference(place, *found)
        return {key: self.taken(inner, (*place, str(key))) for key, inner in value.items()}

    def _reference(
        self, place: tuple[str, ...], part: np.ndarray, rows: tuple[str, ...], columns: Any
    ) -> dict[str, Any]:
        key = (place, rows, columns, part.dtype.kind)
        if key not in self._parts:
            name = "/".join(place) or "values"
            free = (f"{name}-{number}" if number > 1 else name for number in count(1))
            name = next(name for name in free if name not in self._names)
            self._names.add(name)
            self._parts[key] = (name, [])
        name, parts = self._parts[key]
        parts.append(part)
        reference = {_ARRAY: name, _AT: len(parts) - 1}
        return reference if self._file is None else {**reference, _FILE: self._file}

    def arrays(self) -> Arrays:
        arrays: Arrays = {}
        for (_, rows, columns, _), (name, parts) in self._parts.items():
            arrays[name] = np.stack(parts)
            if rows:
                arrays[f"{name}/{_ROWS}"] = np.array(rows)
            arrays[f"{name}/{_COLUMNS}"] = np.array(columns)
        return arrays


def _matrix(value: Mapping[Any, Any]) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]] | None:
    """A mapping of many numbers [columns], or of rows of numbers [rows, columns]; None for others.

    With the names of its rows, none for a single one, and columns.
    """
    if not value or not all(isinstance(key, str) and _keeps(key) for key in value):
        return None
    inner = [vars(one) if is_dataclass(one) else one for one in value.values()]
    if all(map(_is_number, inner)):
        return (_array(inner), (), tuple(value)) if are_many(len(value)) else None
    if not all(isinstance(row, dict) and row for row in inner):
        return None
    columns = tuple(inner[0])
    alike = all(tuple(row) == columns for row in inner)
    if not alike or not are_many(len(inner), len(columns)):
        return None
    if not all(isinstance(key, str) and _keeps(key) for key in columns):
        return None
    numbers = [number for row in inner for number in row.values()]
    if not all(map(_is_number, numbers)):
        return None
    return _array(numbers).reshape(len(inner), -1), tuple(value), columns


def _keeps(name: str) -> bool:
    """Whether NumPy gives a text back as it is: it cuts null characters off its end."""
    return not name.endswith("\0")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _array(numbers: Sequence[Any]) -> np.ndarray:
    """Whole numbers as int64, others as float64 with NaN for None."""
    if all(isinstance(number, int) for number in numbers):
        try:
            return np.array(numbers, dtype=np.int64)
        except OverflowError:
            pass
    return np.array([np.nan if n is None else n for n in numbers], dtype=np.float64)


class _Unpacker:
    def __init__(self, folder: Path, file: str) -> None:
        self._folder, self._file = folder, file
        self._known: dict[str, Arrays] = {}

    def restored(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.restored(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        if _ARRAY in value:
            return self._values(value)
        return {key: self.restored(inner) for key, inner in value.items()}

    def _values(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        file = reference.get(_FILE, self._file)
        place = Path(str(file))
        if place.is_absolute() or ".." in place.parts:
            raise DamagedError(f"its figures by group are said to be in {file}, outside of the run")
        if file not in self._known:
            self._known[file] = read_arrays(self._folder / place)
        arrays, name, at = self._known[file], reference[_ARRAY], reference.get(_AT)
        try:
            part = arrays[name][at]
            columns = arrays[f"{name}/{_COLUMNS}"].tolist()
            if part.ndim == 1:
                return dict(zip(columns, part.tolist(), strict=True))
            rows = arrays[f"{name}/{_ROWS}"].tolist()
            return {
                row: dict(zip(columns, values, strict=True))
                for row, values in zip(rows, part.tolist(), strict=True)
            }
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(
                f"its figures by group, {place.name}, are other ones: {name} {at} "
                f"({in_a_line(error)})"
            ) from None


class EpochFiles:
    """The epochs of a student or trial under way: what is of many is written once.

    A state or journal is written again after every epoch. It keeps plain values of its epochs; the
    arrays of each have a file of their own (`files_of`), which is there already when the next epoch
    is over, and is linked where the state goes to another folder.
    """

    def __init__(self) -> None:
        self._written: list[tuple[Epoch, Any, Path | None]] = []

    def write(self, history: Sequence[Epoch], path: Path) -> list[Any]:
        """Write the arrays of epochs, where they are not there yet.

        Args:
            history: all epochs.
            path: of the state or journal.

        Returns:
            What it is to hold of the epochs.

        Raises:
            OSError: a file cannot be written.
        """
        earlier, self._written = self._written, []
        for number, epoch in enumerate(history):
            own = files_of(path) / f"{number:05}.npz"
            known = earlier[number] if number < len(earlier) else None
            if known is not None and known[0] is epoch and self._is_at(known[2], own):
                self._written.append((epoch, known[1], known[2] and own))
                continue
            values, arrays = packed(epoch)
            write_arrays(own, arrays)
            self._written.append((epoch, values, own if arrays else None))
        return [values for _, values, _ in self._written]

    @staticmethod
    def _is_at(file: Path | None, wanted: Path) -> bool:
        return file is None or (file == wanted and is_file(file)) or linked(file, wanted)

    def moved(self, to: Path) -> None:
        """The folder of the state, and with it that of the array files, has another path now."""
        self._written = [
            (epoch, values, file and to / file.parent.name / file.name)
            for epoch, values, file in self._written
        ]

    def read(self, values: Sequence[Any], path: Path) -> list[Epoch]:
        """The epochs of a state or journal; arguments and values as `write` has them.

        Raises:
            DamagedError: they are none, or an array file is missing, damaged or another's.
            OSError: an array file cannot be read.
        """
        files = [files_of(path) / f"{number:05}.npz" for number in range(len(values))]
        pairs = [*zip(values, files, strict=True)]
        whole = [unpacked(epoch, file.parent, file.name) for epoch, file in pairs]
        history = epochs_from_json(whole)
        self._written = [
            (epoch, value, file if is_file(file) else None)
            for epoch, (value, file) in zip(history, pairs, strict=True)
        ]
        return history


def files_of(path: Path) -> Path:
    """The folder of the array files of the epochs that a state or journal holds."""
    return path.with_name(f"{path.stem}.epochs")


def remove(path: Path) -> None:
    """Remove a state or journal, and the array files of its epochs."""
    path.unlink(missing_ok=True)
    shutil.rmtree(files_of(path), ignore_errors=True)


def linked(file: Path, wanted: Path) -> bool:
    """Whether a file is where it is wanted, without a copy; it is not where links are not known."""
    try:
        with replacing(wanted) as draft:
            os.link(file, draft)
    except OSError:  # it is gone, or the two are on different file systems
        return False
    return True
