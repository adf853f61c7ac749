"""Standard output and error that nobody reads any more: the work goes on without them."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)
"""The reader has ended, or the terminal has gone."""
NAMES = {1: "The standard output", 2: "The standard error"}
_going_on = ""
_lost: set[int] = set()
"""Descriptors that have been lost."""


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
            _lost.add(self.fileno())
            other = sys.stderr if self.fileno() == 1 else sys.stdout
            # Both go with a terminal: then the other one is just being written, and says so.
            if other.fileno() not in _lost and (_going_on or error.errno not in GONE):
                name = NAMES[self.fileno()]
                print(f"{name} is lost ({error.strerror}). {_going_on}".rstrip(), file=other)
            return memoryview(content).nbytes
