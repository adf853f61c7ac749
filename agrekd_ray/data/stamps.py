"""What tells that a file was exchanged, without reading it; found out once for many files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

Stamps = tuple[tuple[str, str], ...]
"""Listings of files, and the stamp of each; may travel to processes that need not look at them."""
_HANDED: ContextVar[Stamps] = ContextVar("stamps", default=())


def stamps(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Of each file, what changes when it is exchanged, computed without reading it."""
    stats = [(file.name, file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def listing(folder: Path, paths: Sequence[str]) -> str:
    """A digest of the names of many files."""
    return hashlib.sha256("\0".join([str(folder), *paths]).encode(errors="replace")).hexdigest()


@contextmanager
def handed(known: Stamps) -> Iterator[None]:
    """While the block runs, files of these listings are not looked at: another process has."""
    token = _HANDED.set(known)
    try:
        yield
    finally:
        _HANDED.reset(token)


def stamp_of(files: str) -> str | None:
    """The stamp of a listing where this process was handed it."""
    return dict(_HANDED.get()).get(files)
