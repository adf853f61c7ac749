"""What a run has cost: seconds, and the effort of its teachers, over all attempts at it."""

from __future__ import annotations

import json
import threading
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path

from agrekd_ray.errors import RunError
from agrekd_ray.files import DamagedError, cannot_read, checked, read_json, replacing, unreadable
from agrekd_ray.results import ATTEMPTS, Attempt, Cost, TeacherCost

SECONDS_BETWEEN_WRITES = 5.0
"""What is not known of an attempt that is killed, at most."""


class Account(AbstractContextManager["Account"]):
    """The attempts at a run: the earlier ones, and this one while the context is open.

    This one is written down every few seconds, so that it counts where it is killed.

    Args:
        folder: of the run; one that was run by an earlier version has its account in its results.

    Raises:
        RunError: the file of the attempts is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / ATTEMPTS
        self._earlier = self._read()
        self._began = time.monotonic()
        self._ended: float | None = None
        self._known: TeacherCost | None = None  # of what is over
        self._under_way: TeacherCost | None = None
        self._counts = True
        self._lock, self._stop = threading.Lock(), threading.Event()

    def __enter__(self) -> Account:
        self._thread = threading.Thread(target=self._write_often, name="account", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        self._thread.join()
        self._ended = time.monotonic()
        self._write()

    def add(self, effort: TeacherCost | None) -> None:
        """Teachers have cost this, if there were any; it replaces what `so_far` has told of it."""
        self._known, self._under_way = _sum(self._known, effort), None

    def so_far(self, effort: TeacherCost) -> None:
        """Teachers that are at work have cost this until now."""
        if self._under_way is None or effort.forwards >= self._under_way.forwards:
            self._under_way = effort

    def forget(self) -> None:
        """Leave this attempt out: there was nothing to do."""
        self._counts = False

    @property
    def attempts(self) -> list[Attempt]:
        """All that count, this one last."""
        if not self._counts:
            return self._earlier
        seconds = round((self._ended or time.monotonic()) - self._began, 1)
        return [*self._earlier, Attempt(seconds, _sum(self._known, self._under_way))]

    @property
    def cost(self) -> Cost:
        """Of all attempts, until now, or until this one ended."""
        attempts = self.attempts
        return Cost(
            round(sum(attempt.seconds for attempt in attempts), 1),
            _sum(*(attempt.effort for attempt in attempts)),
            len(attempts),
        )

    def _write_often(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN_WRITES):
            self._write()

    def _write(self) -> None:
        """A disk that is full is said where it costs something."""
        with self._lock, suppress(OSError), replacing(self._path) as draft:
            text = json.dumps([asdict(attempt) for attempt in self.attempts])
            draft.write_text(text + "\n", encoding="utf-8")

    def _read(self) -> list[Attempt]:
        try:
            return read_json(self._path, list[Attempt])
        except FileNotFoundError:
            return self._of_an_earlier_version()
        except (DamagedError, OSError) as error:
            if unreadable(error):
                raise cannot_read(self._path, error) from None
            raise RunError(
                f"{self._path}: damaged ({error}); remove it to go on. What the attempts so far "
                "took is then not counted."
            ) from None

    def _of_an_earlier_version(self) -> list[Attempt]:
        """What the results of a job, a study or a search say of its last attempt."""
        with suppress(OSError, ValueError, AttributeError, TypeError, RecursionError):
            values = json.loads((self._folder / "results.json").read_text(encoding="utf-8"))
            about = values.get("job") or values.get("about") or values
            told = {key: about[key] for key in ("seconds", "effort") if key in about}
            return [checked(Attempt, told)] if told else []
        return []


def _sum(*efforts: TeacherCost | None) -> TeacherCost | None:
    known = [effort for effort in efforts if effort is not None]
    return sum(known, TeacherCost()) if known else None
