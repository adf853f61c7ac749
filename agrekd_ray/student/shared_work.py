"""Students that several worker groups share, and when a further group pays. No Ray here.

A student that nobody has taken is a file in a folder which all groups see; to take it is to rename
that file, which one group alone can do. So nobody hands students out who could be lost, and a group
that is restarted finds what it had.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from agrekd_ray.cluster.events import Event, StudentEpoch
from agrekd_ray.student.student import StudentSpec

WAITING = "waiting"
"""Folder of the students that no group has taken, below that of the groups."""
RECENT = 50
"""Epochs from which the pace is taken."""
SHORTEST = 5.0
"""Seconds between the first and the last of them, at least: the first ones are slow."""
WORTH_STARTS = 4
"""Starts of a group that what is left must take, for each group that is at work. One would do if
groups took nothing from each other; on full cores they do, and the start of another even more."""
LONGEST_START = 30.0
"""Seconds that the start of a group is taken to last, at most: it may have waited for room."""


class SharedWork:
    """Numbers of students, each of which one group takes.

    Args:
        folder: that the groups share.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def lay_out(self, numbers: Collection[int]) -> None:
        """Students that are left, for anybody to take."""
        waiting = self._folder / WAITING
        waiting.mkdir()
        for number in numbers:
            (waiting / f"{number:06}").touch()

    @property
    def waiting(self) -> list[int]:
        """Students that nobody has taken, in order."""
        return sorted(int(path.name) for path in (self._folder / WAITING).iterdir())

    def take(self, group: str, finished: Callable[[int], bool]) -> int | None:
        """The next student of a group: what it has and has not finished, else the first that waits.

        Args:
            group: its name, `group-NUMBER`.
            finished: whether a student is finished.
        """
        taken = self._folder / group / "taken"
        taken.mkdir(parents=True, exist_ok=True)
        for path in sorted(taken.iterdir()):
            if not finished(int(path.name)):
                return int(path.name)
            path.unlink()
        for number in self.waiting:
            with suppress(FileNotFoundError):  # another group was faster
                (self._folder / WAITING / f"{number:06}").rename(taken / f"{number:06}")
                if not finished(number):
                    return number
        return None


class Pace:
    """How fast students come on, and whether a further group would make up for its own start.

    Args:
        specs: that are left.
    """

    def __init__(self, specs: Sequence[StudentSpec]) -> None:
        self._left = {given.name: given.training.epochs for given in specs}
        self._began = time.monotonic()
        self._times: deque[float] = deque(maxlen=RECENT)
        self._start: float | None = None

    def watch(self, event: Event) -> None:
        """Hears of every epoch."""
        if isinstance(event, StudentEpoch) and event.student in self._left:
            self._left[event.student] = event.epochs - event.epoch.epoch - 1
            self._times.append(time.monotonic())
            if self._start is None:
                self._start = min(self._times[0] - self._began, LONGEST_START)

    def grown(self) -> None:
        """There is another group: what was measured is of fewer."""
        self._times.clear()

    def pays(self, groups: int) -> bool:
        """Whether what is left takes so long that a group more makes up for its start by far.

        Work of R seconds that n groups share takes R / n. A further group that starts in S seconds
        makes that (R + S) / (n + 1), which is less where R > n * S; see `WORTH_STARTS`.

        Args:
            groups: n, which are at work.
        """
        times = list(self._times)
        if self._start is None or len(times) < 2 or times[-1] - times[0] < SHORTEST:
            return False
        seconds_an_epoch = groups * (times[-1] - times[0]) / (len(times) - 1)
        return sum(self._left.values()) * seconds_an_epoch > WORTH_STARTS * groups * self._start
