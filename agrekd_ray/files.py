"""Files that may be missing, damaged or of another kind: read and checked, and written whole."""

from __future__ import annotations

import codecs
import errno
import fcntl
import functools
import json
import os
import stat
import uuid
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from agrekd_ray.errors import RunError

Read = TypeVar("Read")
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR)
"""What the system says of a path that leads to no file."""


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


@contextmanager
def replacing(path: Path, *, parents: bool = True) -> Iterator[Path]:
    """A file appears whole or not at all, with several writers too.

    Nothing waits for the disk: what a power cut leaves damaged, its reader has to find out.

    Args:
        path: the file that a reader sees.
        parents: its folder is made where it is missing.

    Yields:
        A hidden path beside it, which takes its place when the block ends well.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


Identity = tuple[int, ...] | None
"""Of a file; another one when another file takes its place. None where there is none."""


def identity(path: Path) -> Identity:
    """Of the file that is there now."""
    try:
        file = path.stat()
    except FileNotFoundError:
        return None
    return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns


def locked(file: int | IO[Any], *, wait: bool = True, shared: bool = False) -> bool:
    """Lock an open file, for as long as it is open.

    Args:
        file: it, or its descriptor.
        wait: for others that hold the lock.
        shared: with others that only look.

    Returns:
        False where the file system has no such locks (some NFS, Lustre without `flock`): then
        nobody knows who else is at it.

    Raises:
        BlockingIOError: another process holds the lock, and nobody is to wait.
        OSError: the file system cannot be reached.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return False
        raise
    return True


def in_a_line(error: BaseException) -> str:
    """What an error says, in one line, with its kind where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def unreadable(error: Exception) -> bool:
    """Whether a file may be there and whole all the same: a disk or permissions are in the way.

    Such a file is never taken for a missing or damaged one, which would be made again.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return False  # it is about what the file holds
    return error.errno not in _NO_FILE


def cannot_read(path: Path, error: Exception) -> RunError:
    """The error of a file that is `unreadable`."""
    reason = getattr(error, "strerror", None) or error
    return RunError(
        f"{path}: cannot be read ({reason}). Mend the disk, the mount or the permissions, then "
        "try again; it is not taken for missing."
    )


def exists(path: Path) -> bool:
    """Whether there is something; False too where nothing can have this path.

    Raises:
        RunError: the system cannot say; so for `is_file` and `is_folder`.
    """
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether there is such a file."""
    return stat.S_ISREG(_mode(path) or 0)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder."""
    return stat.S_ISDIR(_mode(path) or 0)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except ValueError:  # a null character
        return None
    except OSError as error:
        if unreadable(error):
            raise cannot_read(path, error) from None
        return None


def real(path: Path) -> Path:
    """The absolute path without links; a link that leads to itself stays, and leads nowhere."""
    return Path(os.path.realpath(path))  # Path.resolve raises for such a link


@functools.cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))
