"""Standard output and error that nobody reads any more: the work goes on without them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)
"""The reader has ended, or the terminal has gone."""
NAMES = {1: "The standard output", 2: "The standard error"}
_going_on = ""


def say_when_lost(text: str) -> None:
    """What goes on without a reader; until it is told, a reader who has enough (`| head`) may go.

    Args:
        text: a sentence, said on the stream that is left when the other is lost.
    """
    global _going_on
    _going_on = text


def outlive_readers() -> None:
    """Let this process go on when its standard output or error cannot be written any more."""
    for number in range(3):  # else a file that is opened later would be written to as one of them
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # has the lowest number that is free
    sys.stdout = _outliving(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _outliving(sys.stderr, sys.__stderr__, 2)


def _outliving(stream: TextIO | None, own: TextIO | None, number: int) -> TextIO:
    if stream is not own:  # somebody else's, or done before
        assert stream is not None
        return stream
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(number, "w", closefd=False)),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors=getattr(stream, "errors", "replace"),
        line_buffering=getattr(stream, "line_buffering", True),
    )


def _say(lost: int, text: str) -> None:
    """Say on the other stream that one is lost, past all that writes to either just now.

    A progress bar has what is printed for the standard error go through the standard output; and
    with a terminal both are lost.
    """
    other = sys.stderr if lost == 1 else sys.stdout
    line = f"{text} {_going_on}".rstrip() + "\n"
    with contextlib.suppress(OSError):
        os.write(3 - lost, line.encode(other.encoding or "utf-8", "replace"))


class _Output(io.FileIO):
    """A descriptor that leads to the null device, for all who share it, once it is lost."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except BlockingIOError:
            raise
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if _going_on or error.errno not in GONE:
                _say(self.fileno(), f"{NAMES[self.fileno()]} is lost ({error.strerror}).")
            return memoryview(content).nbytes
