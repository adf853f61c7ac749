"""Finished records in an object store, for nodes and clusters that share no folder.

Every node has the records that it reads in its own `outputs.store`, where they are mapped into
memory; what is missing there is fetched from the object store, and what is made there is sent. All
through pyarrow's file systems.
"""

from __future__ import annotations

import errno
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING

from agrekd_ray.errors import RunError, first_line
from agrekd_ray.files import Identity, exists, identity, locked, replacing
from agrekd_ray.logits.record import cannot_write

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SECONDS_ABSENT = 10.0
"""Before the object store is asked again for a record that it did not have."""
SECONDS_TRIED = 30.0
"""That Google's store may be silent; pyarrow would try for a quarter of an hour."""
_PART = 1 << 23
"""Bytes that are on their way at once."""


def bring(path: Path, seen: Identity, write: Callable[[IO[bytes]], None]) -> None:
    """Have a file written that is missing here, or damaged.

    One process of a node does, others that want it meanwhile wait.

    Args:
        path: of the file.
        seen: what was missing or damaged; nothing is written where another file is there since.
        write: its content.

    Raises:
        OSError: it cannot be written; or what `write` raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.fetching")
    with lock.open("wb") as held:
        locked(held)
        if identity(path) == seen:
            with replacing(path) as draft, draft.open("wb") as target:
                write(target)
        lock.unlink(missing_ok=True)


class Remote:
    """The records of an object store, and a node's folder of them.

    Nothing is asked of the object store before the first record is.

    Args:
        address: of the folder there.
        store: the folder here.
    """

    def __init__(self, address: str, store: Path) -> None:
        self.address, self._store = address, store
        self._absent: dict[Path, float] = {}
        self._sending: dict[Path, Future[None]] = {}
        self._thread = ThreadPoolExecutor(1, "records-remote")

    @cached_property
    def _there(self) -> tuple[FileSystem, str]:
        """The file system and the folder in it."""
        from pyarrow.fs import FileSystem

        address = self.address
        if address.startswith(("gs:", "gcs:")) and "retry_limit_seconds=" not in address:
            joined = "&" if "?" in address else "?"
            address += f"{joined}retry_limit_seconds={SECONDS_TRIED:g}"
        try:
            system, root = FileSystem.from_uri(address)
        except (OSError, ValueError) as error:
            raise self._fault("opened", error) from None
        return system, root.rstrip("/")

    def look(self) -> None:
        """Write, read and remove a small object.

        Raises:
            RunError: that cannot be done.
        """
        system, root = self._there
        there = f"{root}/.agrekd-{uuid.uuid4().hex}"
        what = "written"
        try:
            if system.type_name in ("local", "hdfs"):
                system.create_dir(root)
            with system.open_output_stream(there) as target:
                target.write(b"agrekd_ray")
            what = "read"
            with system.open_input_stream(there) as source:
                source.read()
            what = "cleared"
            system.delete_file(there)
        except OSError as error:
            raise self._fault(what, error) from None

    def fetch(self, path: Path, seen: Identity) -> bool:
        """Bring a record here; whether there is one.

        Args:
            path: where it is to be, in the node's folder.
            seen: what was missing or damaged there.

        Raises:
            RunError: the object store cannot be read, or the disk cannot be written.
        """
        if time.monotonic() < self._absent.get(path, 0.0):
            return False
        system, there = self._named(path)

        def copy(target: IO[bytes]) -> None:
            with system.open_input_stream(there) as source:
                shutil.copyfileobj(source, target, _PART)

        try:
            if not system.get_file_info(there).is_file:
                self._absent[path] = time.monotonic() + SECONDS_ABSENT
                return False
            bring(path, seen, copy)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise cannot_write(path, error) from None
            raise self._fault("read", error) from None
        return True

    def send(self, path: Path, *, anew: bool = True) -> None:
        """Have a record brought to the object store, in a thread; `settle` waits for that.

        Args:
            path: of the record here.
            anew: even where there is one, which may be damaged.
        """
        self._sending[path] = self._thread.submit(self._send, path, anew)

    def settle(self, paths: Iterable[Path]) -> None:
        """Send those of some records that are here and not there yet, and wait for all.

        Raises:
            RunError: the object store cannot be written.
        """
        for path in paths:
            under_way = self._sending.get(path)
            failed = under_way is not None and under_way.done() and under_way.exception()
            if (under_way is None or failed) and exists(path):
                self.send(path, anew=False)
        sending, self._sending = self._sending, {}
        for sent in sending.values():
            sent.result()

    def _send(self, path: Path, anew: bool) -> None:
        system, there = self._named(path)
        try:
            if not anew and system.get_file_info(there).size == path.stat().st_size:
                return
            in_place = system.type_name not in ("local", "hdfs")  # there it appears when whole
            draft = there if in_place else f"{there}.draft"
            if not in_place:
                system.create_dir(there.rpartition("/")[0])
            with path.open("rb") as source, system.open_output_stream(draft) as target:
                shutil.copyfileobj(source, target, _PART)
            if not in_place:
                system.move(draft, there)
        except FileNotFoundError:  # made again, or pruned meanwhile
            if exists(path):
                raise
        except OSError as error:
            raise self._fault("written", error) from None
        self._absent.pop(path, None)

    def _named(self, path: Path) -> tuple[FileSystem, str]:
        system, root = self._there
        return system, f"{root}/{path.relative_to(self._store).as_posix()}"

    def _fault(self, what: str, error: Exception) -> RunError:
        return RunError(
            f"outputs.remote: {self.address} cannot be {what} ({first_line(error)}). Is the "
            "address right, and has this node the credentials (AWS_ACCESS_KEY_ID and the like)?"
        )
