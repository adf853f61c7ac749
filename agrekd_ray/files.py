"""Files that may be missing, damaged or of another kind: read and checked, in one place."""

from __future__ import annotations

import codecs
import functools
import json
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

Read = TypeVar("Read")


class DamagedError(ValueError):
    """A file is there, but does not hold what it should; says what is wrong, in one line."""


def read_text(path: Path) -> str:
    """A text file, which is UTF-8 whatever the locale, with or without a mark that says so.

    Raises:
        DamagedError: it has another encoding.
        OSError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        if error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DamagedError("is UTF-16; save it as UTF-8") from None
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DamagedError(f"is not UTF-8 in line {line}; save it as UTF-8") from None
    if "\0" in text:
        raise DamagedError("holds null characters, as UTF-16 does; save it as UTF-8")
    return text


def read_json(path: Path, kind: type[Read]) -> Read:
    """A JSON file as a value of a kind; text, numbers and lists in it are of the kinds it names.

    Args:
        path: the file.
        kind: a dataclass, or anything else that pydantic knows.

    Raises:
        DamagedError: no JSON, or of other values.
        OSError: it cannot be read.
    """
    try:
        return checked(kind, json.loads(read_text(path)))
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:  # no text, no JSON, nested without end
        raise DamagedError(in_a_line(error)) from None


def checked(kind: type[Read], values: Any) -> Read:
    """Plain values as a value of a kind.

    Raises:
        DamagedError: they are other ones; names the first.
    """
    try:
        return _adapter(cast(Hashable, kind)).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    except RecursionError as error:
        raise DamagedError(in_a_line(error)) from None


def in_a_line(error: BaseException) -> str:
    """What an error says, in one line, with its kind where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def is_file(path: Path) -> bool:
    """Whether there is such a file; False too where no file can have this path."""
    return os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises where a name is too long)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; False too where no folder can have this path."""
    return os.path.isdir(path)  # noqa: PTH112 (as above)


def real(path: Path) -> Path:
    """The absolute path without links; a link that leads to itself stays, and leads nowhere."""
    return Path(os.path.realpath(path))  # Path.resolve raises for such a link


@functools.cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))
