"""Records from the disk of another node, through Ray: their files, a part at a time.

A record may be larger than the memory of a node, so it is never in an object of Ray's as a whole.
What arrives is written to the node's own folder of records, where all its processes map it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from agrekd_ray.cluster.channel import plain_error
from agrekd_ray.files import Identity
from agrekd_ray.logits import LogitsCache

PART = 1 << 25
"""Bytes of a record that travel together."""
UNDER_WAY = 3
"""Parts that are on their way at once."""
ATTEMPTS = 3
"""To get a part; it is gone when the process that lent it died."""


class Lender:
    """What an actor that has records can do for nodes that have not."""

    _lent: LogitsCache | None

    def lends(self, name: str, view: int) -> tuple[str, int]:
        """Folder and bytes of a teacher's record of a view; 0 bytes where there is no sound one."""
        found = self._lent.file(name, view) if self._lent is not None else None
        return ("", 0) if found is None else (found[0], found[1].stat().st_size)

    def part(self, name: str, view: int, first: int, size: int) -> bytes:
        """Some bytes of that file, from the byte `first` on."""
        found = self._lent.file(name, view) if self._lent is not None else None
        assert found is not None
        with found[1].open("rb") as file:
            file.seek(first)
            return file.read(size)


def borrow(
    outputs: LogitsCache, lenders: Sequence[Any], name: str, view: int, seen: Mapping[str, Identity]
) -> bool:
    """Bring a record to this node from the first of some actors that has it; whether one had.

    Args:
        outputs: the records of this node.
        lenders: actors that are a `Lender`.
        name: of the teacher.
        view: number of the view.
        seen: files that are missing or damaged here, by folder of the record.

    Raises:
        RunError: an actor is lost for good, or the disk cannot be written.
    """
    for lender in lenders:
        folder, size = _told(lender.lends, (name, view))
        if size and folder in seen:
            parts = _parts(lender, name, view, size)
            outputs.bring(name, view, folder, seen[folder], parts)
            return True
    return False


def _parts(lender: Any, name: str, view: int, size: int) -> Iterator[bytes]:
    """Parts of a record's file, in order; the next ones come meanwhile."""
    wanted = ((name, view, first, PART) for first in range(0, size, PART))
    coming = deque[tuple[tuple[Any, ...], Any]]()
    while True:
        for arguments in itertools.islice(wanted, UNDER_WAY - len(coming)):
            coming.append((arguments, lender.part.remote(*arguments)))
        if not coming:
            return
        yield _told(lender.part, *coming.popleft())


def _told(method: Any, arguments: tuple[Any, ...], coming: Any = None) -> Any:
    """What an actor answers; it is asked again where its process has died."""
    for attempt in range(ATTEMPTS):
        try:
            return ray.get(method.remote(*arguments) if coming is None else coming)
        except RayError as error:
            coming = None
            if attempt + 1 == ATTEMPTS:
                raise plain_error(error, "a process that has recorded outputs") from None
    raise AssertionError
