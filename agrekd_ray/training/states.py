"""The state of a training under way: written whole or not at all, and taken up by another process.

A file of ours, the same for students and teachers, with Ray and without.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agrekd_ray.errors import RunError
from agrekd_ray.files import DamagedError, cannot_read, in_a_line, replacing, unreadable


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state in place of the one before.

    Args:
        path: of the file; its folder is there.
        state: tensors and plain values.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    try:
        with replacing(path, parents=False) as draft:
            torch.save(dict(state), draft)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
        raise unwritable(path.parent, "the state of the training", error) from None


class StateWriter:
    """Writes states in a thread, one after another, while the training goes on."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "state")
        self._under_way: Future[None] | None = None

    def begin(self, path: Path, state: Mapping[str, Any]) -> None:
        """Copy a state, and begin to write it; arguments and errors as `write_state`.

        Raises:
            RunError: the one before could not be written.
        """
        self.wait()
        self._under_way = self._thread.submit(write_state, path, _copied(state))

    def wait(self) -> None:
        """Until what was begun is written.

        Raises:
            RunError: it could not be.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()


def _copied(value: Any) -> Any:
    """The same on the host, where nobody goes on with it."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value


def make_folder(folder: Path) -> None:
    """Make a folder for states, where there is none.

    Raises:
        RunError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, "the state of the training", error) from None


def read_state(path: Path, device: torch.device | str) -> dict[str, Any]:
    """What `write_state` wrote, with its tensors on a device.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is no state.
        RunError: the system cannot read it.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # bytes at random meet any error within the reader
        if unreadable(error):
            raise cannot_read(path, error) from None
        raise DamagedError(in_a_line(error)) from None
    if not isinstance(state, dict):
        raise DamagedError(f"it holds a {type(state).__name__}")
    return state


def unwritable(folder: Path, what: str, error: Exception) -> RunError:
    """The error of a disk that is full or cannot be written."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return RunError(
        f"{folder}: cannot write {what} ({reason}). Free the disk, then `agrekd resume RUN` goes "
        "on from the last state that was written."
    )
