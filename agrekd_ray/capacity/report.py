"""What `agrekd plan` and `agrekd doctor` say, on the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agrekd_ray.capacity.forecast import PARTS, Forecast, Machines, Times

ERROR, WARNING = "error", "warning"


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is, however wide the console."""
    console.print(Text(text, style), soft_wrap=True)


def table(
    names: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()
) -> Table:
    """A table whose first column is folded where the console is narrow, before any other is cut.

    Args:
        names: of the columns.
        rows: of texts.
        right: numbers of the columns that stand on the right.
    """
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(names):
        made.add_column(
            name,
            justify="right" if number in right else "left",
            no_wrap=number > 0,
            overflow="ellipsis" if number else "fold",
        )
    for row in rows:
        made.add_row(*row)
    return made


def counted(count: int, what: str) -> str:
    """A number of things, as `2 nodes`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a cluster.

    Attributes:
        node: where; `driver`, `cluster`, or a node's name.
        check: what was looked at.
        problem: what is wrong, with the numbers.
        remedy: what to do.
        level: `error` where a run would fail or be wrong, `warning` where it may.
    """

    node: str
    check: str
    problem: str
    remedy: str
    level: str = ERROR


def show_findings(findings: Sequence[Finding], nodes: int, console: Console) -> None:
    """Print what is wrong with so many nodes: a table on a terminal, plain lines elsewhere."""
    if findings and console.is_terminal:
        made = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in ("Node", "Check", "Finding", "Remedy"):
            made.add_column(name, overflow="fold")
        for one in findings:
            cells = (one.node, one.check, one.problem, one.remedy)
            made.add_row(*map(Text, cells), style="red" if one.level == ERROR else "yellow")
        console.print(made)
    for one in findings if not console.is_terminal else ():
        line = f"{one.level}: {one.node}: {one.check}: {one.problem}. Remedy: {one.remedy}."
        say(console, line)
    levels = [one.level for one in findings]
    words = ", ".join(counted(levels.count(level), level) for level in (ERROR, WARNING))
    style = "red" if ERROR in levels else "yellow" if levels else "green"
    say(console, f"{counted(nodes, 'node')}: {words if levels else 'nothing is wrong'}", style)


def show_forecast(
    name: str,
    expected: Forecast,
    advice: Sequence[tuple[str, Forecast]],
    machines: Machines,
    idle: str,
    console: Console,
) -> None:
    """Print a forecast: what is where, the step by its parts, the rest, and what would help."""
    size, step = expected.setup, expected.step
    say(
        console,
        f"\n{name}: {counted(size.teachers, 'teacher')} in {counted(size.actors, 'actor')}, "
        f"{counted(size.workers, 'student worker')}, batches of {size.batch}, {size.classes:,} "
        f"classes, on {counted(machines.nodes, 'node')} of {counted(machines.cpus, 'core')} and "
        f"{counted(machines.gpus, 'GPU')}",
    )
    if idle:
        say(console, idle, "yellow")
    if expected.shortage:
        say(console, f"no room: {expected.shortage}; forecast as if there were", "yellow")
    parts = [(PARTS[k] + " ←" * (k == step.bottleneck), _ms(ms)) for k, ms in step.parts.items()]
    console.print(table(("Part of a live step", "ms"), parts, right=(1,)))
    console.print(table(("What", "Forecast", "Unit"), _rows(expected)))
    say(console, f"Bottleneck of a live step: {PARTS[step.bottleneck]}.")
    if expected.recording_bottleneck:
        say(console, f"Bottleneck of recording: {PARTS[expected.recording_bottleneck]}.")
    say(console, f"Bottleneck of the job: {PARTS[expected.bottleneck]}.")
    if (single := expected.single) is not None:
        say(
            console,
            f"A weighting actor for each of the {size.workers} workers is chosen: with a single "
            f"one a live step takes {_ms(single.ms)} ms, held up by {PARTS[single.bottleneck]}.",
        )
    if advice:
        headers = ("What would help most", "Live step, ms", "Recording, h:min:s", "Job, h:min:s")
        rows = [
            (
                change,
                _ms(one.step.ms),
                _clock(one.recording["seconds"]) if one.recording else "-",
                _clock(one.seconds),
            )
            for change, one in [("as it is", expected), *advice]
        ]
        console.print(table(headers, rows, right=(1, 2, 3)))


def as_json(
    name: str,
    expected: Forecast,
    advice: Sequence[tuple[str, Forecast]],
    machines: Machines,
    times: Times,
) -> dict[str, Any]:
    """All of it, with what it was made from; units are in the names, or bytes and seconds."""
    values = asdict(expected)
    whole = {**expected.whole, "spent": values.pop("spent"), "seconds": expected.seconds}
    if expected.recording:
        values["recording"]["bottleneck"] = expected.recording_bottleneck
    return {
        "job": name,
        "bottleneck": expected.bottleneck,
        "shortage": expected.shortage,
        **values,
        "whole": whole,
        "advice": [
            {
                "change": change,
                "step_ms": one.step.ms,
                "job_seconds": one.seconds,
                "recording_seconds": one.recording["seconds"] if one.recording else None,
            }
            for change, one in advice
        ],
        "machines": machines.model_dump(),
        "times": times.model_dump(),
    }


def _rows(expected: Forecast) -> list[tuple[str, str, str]]:
    step, memory, whole, size = expected.step, expected.memory, expected.whole, expected.setup
    each = " each" if size.weighting_actors > 1 else ""
    rows = [
        (f"live step ({size.strategy})", _ms(step.ms), "ms"),
        ("replayed step", _ms(expected.replay_ms), "ms"),
        ("teachers idle", f"{100 * step.teacher_idle:.0f}", "% of a live step"),
        ("student waits", f"{100 * step.student_waits:.0f}", "% of a live step"),
        ("weighting actors", str(size.weighting_actors), ""),
        (f"into the weighting actor{each}", f"{step.into_weighting / 1e6:,.1f}", "MB/s"),
        (
            "memory of a teachers' actor",
            f"{memory['teacher_actor'] / 1e9:,.2f}",
            "GB + activations",
        ),
        (f"memory of the weighting actor{each}", f"{memory['weighting_actor'] / 1e9:,.2f}", "GB"),
        ("object store beside it", f"{memory['object_store'] / 1e9:,.2f}", "GB"),
    ]
    if recording := expected.recording:
        rows += [
            ("recording all views in one pass", _clock(recording["seconds"]), "h:min:s"),
            ("records on disk", f"{recording['bytes'] / 1e9:,.3f}", "GB"),
            ("disk while recording, at most", f"{recording['peak_bytes'] / 1e9:,.3f}", "GB"),
        ]
    return [
        *rows,
        ("live epochs", _clock(whole["live"]), "h:min:s"),
        ("replayed epochs", _clock(whole["replayed"]), "h:min:s"),
        ("students on labels alone", _clock(whole["plain"]), "h:min:s"),
        ("the whole job, its teachers given", _clock(expected.seconds), "h:min:s"),
    ]


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
