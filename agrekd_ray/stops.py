"""Signals that end a process: each is an interruption, like Ctrl-C."""

from __future__ import annotations

import signal
import time
from types import FrameType

STOPS = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGUSR1", "SIGUSR2")
"""Those that would end it without clean-up; batch systems announce an end with some of them."""
TOGETHER_SECONDS = 10.0
"""Signals within so long of the first are one stop: a terminal that closes says so twice."""
_stopped_by = "the user"
_stopped_at = -TOGETHER_SECONDS


def interrupt_on_stops() -> None:
    """Let each of them raise a `KeyboardInterrupt`, unless it is ignored, as nohup leaves it."""
    for name in STOPS:
        number = signal.Signals[name]
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def stopped_by() -> str:
    """Who has stopped this process; what waits in Ray raises an interruption without a text."""
    return _stopped_by


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _stopped_by, _stopped_at
    now = time.monotonic()
    if now - _stopped_at < TOGETHER_SECONDS:
        return  # the end is under way
    _stopped_by, _stopped_at = signal.Signals(number).name, now
    raise KeyboardInterrupt
