"""One progress line: a bar on a terminal, a quiet line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0
RECORDED = "samples"
"""Unit of a stage that records what teachers say."""


class _Count(MofNCompleteColumn):
    """`3/24`; nothing where a stage counts nothing."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total else Text("")


class _Left(ProgressColumn):
    """`about 00:40 left`, as in the quiet lines; nothing while that is not known."""

    def __init__(self, left: Callable[[], str]) -> None:
        super().__init__()
        self._of = left

    def render(self, task: Task) -> Text:
        return Text(self._of())


class _Bar(Progress):
    """A bar, and below it what was done last, which a narrow screen has no room for beside it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.description:
                yield Text(f"  {task.description}", no_wrap=True, overflow="ellipsis")


class Display:
    """Shows where a run is. Used as a context; safe to call from several threads.

    On a terminal the line is gone when the context ends: what stays there is what is noted.

    Args:
        console: to draw on.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = _Bar(
                TextColumn("{task.fields[stage]:<8}", style="bold", markup=False),
                BarColumn(bar_width=24),
                _Count(),
                TimeElapsedColumn(),
                _Left(self._left),
                console=console,
                transient=True,
            )
        self._task: TaskID | None = None
        self._stage, self._total, self._done, self._unit = "", 0, 0.0, ""
        self._begin = self._spoken = self._since = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._reached: dict[str, int] = {}
        self._awaited: set[str] = set()
        self._stages: dict[str, tuple[float, float | None]] = {}
        self._remarked: set[str] = set()
        self.advanced = False
        """Whether a step of any stage is done."""

    def __enter__(self) -> Display:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def stage(self, name: str, total: int, unit: str, done: int = 0) -> None:
        """A new stage of so many steps begins."""
        self._end_stage()
        self._stage, self._total, self._done, self._unit = name, total, done, unit
        self._spoken, self._first = 0.0, None
        self._reached, self._awaited = {}, set()
        if self._bar:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task("", total=total or None, completed=done, stage=name)
        else:
            self.advance("", 0)

    def advance(self, what: str, steps: float = 1) -> None:
        """So many steps more are done; `what` says which was the last."""
        self._done += steps
        self.advanced |= bool(steps)
        now = time.monotonic()
        if steps and self._first is None:  # before it, processes start: that says nothing
            self._first = now, self._done
        if self._bar and self._task is not None:
            self._bar.update(self._task, advance=steps, description=what)
            return
        if now - self._spoken >= SECONDS_BETWEEN_LINES or self._done >= self._total > 0:
            self._spoken = now
            self._console.print(Text(self._line(what, now)), soft_wrap=True)

    def reach(self, what: str, name: str, step: int, now: int = 1) -> None:
        """One of several that work at a stage has come to a step of its own.

        Args:
            what: as of `advance`.
            name: of the one.
            step: how many of its steps are done.
            now: how many of them since it was last heard of. Others that nobody was told of were
                done by an earlier attempt: they count, and say nothing of how fast this one is.
        """
        earlier = step - self._reached.get(name, 0) - now
        self._reached[name] = step
        if not (earlier or now):
            return
        self._done += earlier
        if self._first:
            self._first = self._first[0], self._first[1] + earlier
        if self._bar and self._task is not None:
            self._bar.update(self._task, advance=earlier)
        self.advance(what, now)

    def awaits(self, text: str) -> None:
        """Says what the stage waits for, until its first step is done; the same thing once."""
        if self._first is None and text not in self._awaited:
            self._awaited.add(text)
            self._spoken = 0.0
            self.advance(text, 0)

    def stages(self) -> list[str]:
        """What each stage took so far, in words; processes start until its first step is done."""
        self._end_stage()
        return [
            f"{name} {seconds:.1f} s"
            + (f" (the first {began:.1f} s until its first step)" if (began or 0) >= 1 else "")
            for name, (seconds, began) in self._stages.items()
        ]

    def _end_stage(self) -> None:
        now = time.monotonic()
        if self._stage or self._stages:
            seconds, began = self._stages.get(self._stage, (0.0, None))
            if began is None and self._first is not None:
                began = self._first[0] - self._since
            self._stages[self._stage] = seconds + now - self._since, began
        self._since = now

    @property
    def unit(self) -> str:
        """What the present stage counts."""
        return self._unit

    @property
    def console(self) -> Console:
        """What is printed on it stays, above the bar."""
        return self._bar.console if self._bar else self._console

    def note(self, text: str, style: str = "") -> None:
        """A line that stays."""
        self.console.print(Text(text, style), soft_wrap=True)

    def remark(self, text: str) -> None:
        """A line that stays, however often it is said."""
        if text not in self._remarked:
            self._remarked.add(text)
            self.note(text, "yellow")

    def _line(self, what: str, now: float) -> str:
        count = f"{self._done:.0f}/{self._total} {self._unit}" if self._total else ""
        parts = [f"{self._stage:<8} {count}".rstrip()]
        parts += filter(None, (self._left(), what))
        return f"[{clock(now - self._begin)}] " + " · ".join(parts)

    def _left(self) -> str:
        """What the rest of the stage will take, by what its steps took since the first one."""
        if not self._first or not self._first[1] < self._done < self._total:
            return ""
        since, before = self._first
        took = time.monotonic() - since
        return f"about {clock(took / (self._done - before) * (self._total - self._done))} left"


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
