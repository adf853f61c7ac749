"""Signals that end a process: each is an interruption, like Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType

STOPS = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGUSR1", "SIGUSR2")
"""Those that would end it without clean-up; batch systems announce an end with some of them."""
_stopped_by = "the user"


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
    global _stopped_by
    _stopped_by = signal.Signals(number).name
    signal.signal(number, signal.SIG_IGN)  # a closed terminal says so twice: the end is under way
    raise KeyboardInterrupt
