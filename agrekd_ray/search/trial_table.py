"""The live view of a search: a table that refreshes in place, or quiet lines."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agrekd_ray.experiment.display import clock
from agrekd_ray.results.search import FAILED, FINISHED, RUNNING, STOPPED, TrialResult, in_words
from agrekd_ray.search.ranking import best

SECONDS_BETWEEN_LINES = 5.0
_STYLES = {RUNNING: "cyan", FINISHED: "green", STOPPED: "yellow", FAILED: "red"}


class TrialTable:
    """Shows trials while they run. Used as a context.

    Args:
        console: to draw on.
        rule: that trials are selected by.
        total: trials that there will be; None where only time says.
        at_once: trials that run at the same time.
        deadline: of the search, in seconds from now; None without one.
    """

    def __init__(
        self, console: Console, rule: str, total: int | None, at_once: int, deadline: float | None
    ) -> None:
        self._console, self._rule, self._total, self._at_once = console, rule, total, at_once
        self._began = self._spoken = time.monotonic()
        self._deadline = deadline
        self._trials: Sequence[TrialResult] = ()
        self._earlier: int | None = None  # trials that had ended before
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(
                get_renderable=self._table, console=console, refresh_per_second=2, transient=True
            )

    def __enter__(self) -> TrialTable:
        if self._live:
            self._live.start()
        else:
            self._console.print("[00:00] trials   processes are starting", markup=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, trials: Sequence[TrialResult], ended: TrialResult | None = None) -> None:
        """What is known now.

        Args:
            trials: all that have begun.
            ended: the one that has just come to its end, if any has.
        """
        self._trials = trials
        now = time.monotonic()
        over = sum(trial.state != RUNNING for trial in trials)
        if self._earlier is None:
            self._earlier = over - (ended is not None)
        last = ended is not None and over == self._total
        if self._live or ended is None:
            return
        if now - self._spoken >= SECONDS_BETWEEN_LINES or last:
            self._spoken = now
            self._console.print(Text(self._line(ended, now)), soft_wrap=True)

    def note(self, text: str, style: str = "yellow") -> None:
        """A line that stays."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _line(self, ended: TrialResult, now: float) -> str:
        parts = [f"[{clock(now - self._began)}] trials   {self._progress()}"]
        if left := self._left(now):
            parts.append(f"about {left} left")
        parts.append(
            f"{ended.name} {ended.state}, {self._rule} {_percent(ended.score(self._rule))}"
        )
        if first := self._best():
            parts.append(f"best that has ended {first.name} {_percent(first.score(self._rule))}")
        return " · ".join(parts)

    def _progress(self) -> str:
        over = sum(trial.state != RUNNING for trial in self._trials)
        return f"{over}/{self._total}" if self._total else f"{over}"

    def _left(self, now: float) -> str | None:
        """Time that the rest will take, from what the trials so far have taken."""
        parts = []
        if self._deadline is not None:
            parts.append(max(0.0, self._deadline - (now - self._began)))
        over = [trial for trial in self._trials if trial.state != RUNNING]
        if self._total and (done := len(over) - (self._earlier or 0)) > 0:
            parts.append((now - self._began) / done * (self._total - len(over)))
        return clock(min(parts)) if parts else None

    def _best(self) -> TrialResult | None:
        """Of the trials that have ended: the score of one that runs may fall with every epoch."""
        ended = [trial for trial in self._trials if trial.state != RUNNING]
        return best(ended, self._rule)

    def _table(self) -> Table:
        now = time.monotonic()
        left = self._left(now)
        title = f"trials {self._progress()} · {clock(now - self._began)}"
        title += f" · about {left} left" if left else ""
        title += "" if self._trials else " · processes are starting"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        fixed = ("Trial", "Epoch", self._rule, "State", "Left")
        for name in (fixed[0], "Setting", *fixed[1:]):
            justify: Literal["left", "right"] = "right" if name in fixed[1:3] else "left"
            table.add_column(name, justify=justify, no_wrap=True)
        # Cut here: the table would take its room from all columns alike.
        taken = len("trial-000") + len("00/00") + len(self._rule) + len(STOPPED) + len("00:00")
        room = max(10, self._console.width - taken - 3 * (len(fixed) + 1))
        first = self._best()
        for trial in self._shown():
            running = trial.state == RUNNING
            table.add_row(
                Text(trial.name, style="bold" if trial is first else ""),
                _cut(in_words(trial.setting), room),
                f"{len(trial.history)}/{trial.epochs}",
                _percent(trial.score(self._rule)),
                Text(trial.state, style=_STYLES.get(trial.state, "")),
                clock(_seconds_left(trial)) if running and trial.history else "",
            )
        return table

    def _shown(self) -> list[TrialResult]:
        """As many as the screen has room for: those under way, then the best."""
        room = max(5, self._console.height - 6)
        order = sorted(
            self._trials,
            key=lambda trial: (
                trial.state != RUNNING,
                -(trial.score(self._rule) or -math.inf) if trial.state != RUNNING else 0,
                trial.number,
            ),
        )
        return order[:room]


def _cut(text: str, width: int) -> Text:
    shown = Text(text)
    shown.truncate(width, overflow="ellipsis")
    return shown


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _seconds_left(trial: TrialResult) -> float:
    return trial.seconds / len(trial.history) * (trial.epochs - len(trial.history))
