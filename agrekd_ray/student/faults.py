"""What a worker of several meets: said in its own words, and which of them end its group."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from ray.exceptions import RayError

from agrekd_ray import collectives
from agrekd_ray.errors import AgrekdError, RunError, listed

HEALED_BY_RESTART = (torch.AcceleratorError, RayError)
"""What a worker may meet that another process may not: its GPU, or an actor, has failed."""


def worker_failure(error: Exception) -> Exception | None:
    """What the first worker that failed said, out of Ray Train's error; None where none did."""
    return next(iter(getattr(error, "worker_failures", {}).values()), None)


@contextlib.contextmanager
def worker_faults(what: str) -> Iterator[None]:
    """What a worker raises in here ends the group, and nobody waits for it any more.

    Args:
        what: it does, in words.

    Raises:
        AgrekdError: what is wrong, and with which worker. A restart would only repeat it.
        Exception: a restart may heal it, or another worker says what is wrong.
    """
    try:
        yield
    except HEALED_BY_RESTART:
        raise
    except Exception as error:
        who = collectives.named() if collectives.several() else what
        if collectives.is_of_others(error):
            absent = collectives.missing()
            if not collectives.is_late(error):
                time.sleep(collectives.ROLL_CALL_SECONDS)  # ended by Ray, as a rule
                raise
            raise RunError(_late(absent)) from error
        if not isinstance(error, AgrekdError):
            raise RunError(f"{who} failed: {_plain(error)}") from error
        if collectives.several():
            raise RunError(f"{who}: {error}") from error
        raise


def _late(absent: Sequence[str]) -> str:
    """What is said of workers that did not come to an exchange in time."""
    if not absent:
        return (
            "the workers have waited for each other for student.timeout_minutes, and none was "
            "missing. Look at the network between their nodes."
        )
    return (
        f"{listed(absent)} did not come to the others within student.timeout_minutes. Look at that "
        "process: at its data, at its teachers, and at what a plugin does there. Where a step may "
        "take so long, set student.timeout_minutes higher."
    )


def _plain(error: Exception) -> str:
    """An error of somebody else's code, and where it came from."""
    *_, last = traceback.format_exception_only(error)
    *_, frame = traceback.extract_tb(error.__traceback__)
    return f"{last.strip()} ({Path(frame.filename).name}, line {frame.lineno})"
