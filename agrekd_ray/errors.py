"""Errors that a user can mend: each message says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AgrekdError(Exception):
    """Base of every error that the command line prints as one message, without a traceback.

    Attributes:
        exit_code: of the command that it ends.
    """

    exit_code = 1


class DataError(AgrekdError):
    """A data set's files are missing, damaged or contradict each other."""


class CheckpointError(AgrekdError):
    """A checkpoint cannot be used: missing, damaged, of another format, or of other classes."""


class RunError(AgrekdError):
    """A run cannot start or go on: its folder, its resources, or a part that failed for good."""


class TrackingError(AgrekdError):
    """The MLflow store cannot be created or reached, or refuses something.

    Attributes:
        temporary: whether the same may go well later.
    """

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        super().__init__(message)
        self.temporary = temporary


def listed(words: Iterable[str | None], most: int = 12) -> str:
    """Words with commas, the first few of many."""
    every = [word for word in words if word]
    more = f", and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name that was probably meant; None where none is near.

    Args:
        word: as it was written.
        known: all names that there are.
        cutoff: how alike the two must be, from 0 to 1.
    """
    return next(iter(difflib.get_close_matches(word, list(known), 1, cutoff)), None)


def near(word: str, known: Iterable[str]) -> str:
    """What was probably meant, or else what there is."""
    known = list(dict.fromkeys(known))
    lower = {name.lower(): name for name in known}
    if found := nearest(word.lower(), lower):
        return f" Did you mean {lower[found]}?"
    return f" There are: {listed(known)}." if known else ""


def first_line(error: Exception) -> str:
    """What an error says first, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
