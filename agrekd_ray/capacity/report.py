"""What `agrekd plan` says, on the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agrekd_ray.capacity.forecast import PARTS, Forecast

STEP = "ms", "parts", "teacher_idle", "student_waits", "into_weighting"
"""What a forecast says of a live step."""


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is, however wide the console."""
    console.print(Text(text, style), soft_wrap=True)


def show_table(
    console: Console, names: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1
) -> None:
    """Print a table whose first column is folded where the console is narrow.

    Args:
        console: to print on.
        names: of the columns.
        rows: of texts.
        left: columns that stand on the left; the others, which are numbers, on the right.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(names):
        overflow: Any = "ellipsis" if number else "fold"
        justify: Any = "left" if number < left else "right"
        table.add_column(name, justify=justify, no_wrap=number > 0, overflow=overflow)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def counted(count: int, what: str) -> str:
    """A number of things, as `2 nodes`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def show_forecast(
    name: str,
    expected: Forecast,
    advice: Sequence[tuple[str, Forecast]],
    idle: str,
    console: Console,
) -> None:
    """Print a forecast: what is where, the step by its parts, the rest, and what would help."""
    size, machines, held_up_by = expected.size, expected.machines, expected.step_bottleneck
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
    parts = [(PARTS[k] + " ←" * (k == held_up_by), _ms(ms)) for k, ms in expected.parts.items()]
    show_table(console, ("Part of a live step", "ms"), parts)
    show_table(console, ("What", "Forecast", "Unit"), _rows(expected), left=3)
    say(console, f"Bottleneck of a live step: {PARTS[held_up_by]}.")
    if expected.recording_bottleneck:
        say(console, f"Bottleneck of recording: {PARTS[expected.recording_bottleneck]}.")
    say(console, f"Bottleneck of the job: {PARTS[expected.bottleneck]}.")
    if (single := expected.single) is not None:
        say(
            console,
            f"A weighting actor for each of the {size.workers} workers is chosen: with a single "
            f"one a live step takes {_ms(single.ms)} ms, held up by "
            f"{PARTS[single.step_bottleneck]}.",
        )
    if advice:
        headers = ("What would help most", "Live step, ms", "Recording, h:min:s", "Job, h:min:s")
        rows = [
            (
                change,
                _ms(after.ms),
                _clock(after.recording["seconds"]) if after.recording else "-",
                _clock(after.seconds),
            )
            for change, after in [("as it is", expected), *advice]
        ]
        show_table(console, headers, rows)


def as_json(
    name: str, expected: Forecast, advice: Sequence[tuple[str, Forecast]]
) -> dict[str, Any]:
    """All of it, with what it was made from; units are in the names, or bytes and seconds."""
    recording, machines = expected.recording, expected.machines
    bottleneck = {"bottleneck": expected.recording_bottleneck}
    return {
        "job": name,
        "bottleneck": expected.bottleneck,
        "shortage": expected.shortage,
        "setup": asdict(expected.size),
        "placing": asdict(expected.placing),
        "step": _step_as_json(expected),
        "single": _step_as_json(expected.single) if expected.single else None,
        "replay_ms": expected.replay_ms,
        "memory": {**expected.memory, "there": machines.memory_gb * 1e9},
        "recording": {**recording, **bottleneck} if recording else None,
        "whole": {**expected.whole, "spent": expected.spent, "seconds": expected.seconds},
        "advice": [
            {
                "change": change,
                "step_ms": after.ms,
                "job_seconds": after.seconds,
                "recording_seconds": after.recording["seconds"] if after.recording else None,
            }
            for change, after in advice
        ],
        "machines": machines.model_dump(),
        "times": expected.times.model_dump(),
    }


def _step_as_json(expected: Forecast) -> dict[str, Any]:
    values = {name: getattr(expected, name) for name in STEP}
    traffic = asdict(expected.size.traffic)
    return {**values, "bottleneck": expected.step_bottleneck, "traffic": traffic}


def _rows(expected: Forecast) -> list[tuple[str, str, str]]:
    """Name, forecast and unit of all that is not a part of the live step."""
    whole, size = expected.whole, expected.size
    each = " each" if size.shards > 1 else ""
    gigabytes = {name: f"{held / 1e9:,.2f}" for name, held in expected.memory.items()}
    rows = [
        (f"live step ({size.strategies[0]})", _ms(expected.ms), "ms"),
        ("replayed step", _ms(expected.replay_ms), "ms"),
        ("teachers idle", f"{100 * expected.teacher_idle:.0f}", "% of a live step"),
        ("student waits", f"{100 * expected.student_waits:.0f}", "% of a live step"),
        ("weighting actors", str(size.weighting_actors), ""),
        (f"into the weighting actor{each}", f"{expected.into_weighting / 1e6:,.1f}", "MB/s"),
        ("memory of a teachers' actor", gigabytes["teacher_actor"], "GB + activations"),
        (f"memory of the weighting actor{each}", gigabytes["weighting_actor"], "GB"),
        ("object store beside it", gigabytes["object_store"], "GB"),
    ]
    if recording := expected.recording:
        rows += [
            ("recording all views in one pass", _clock(recording["seconds"]), "h:min:s"),
            ("records on disk", f"{recording['bytes'] / 1e9:,.3f}", "GB"),
            ("disk while recording, at most", f"{recording['peak_bytes'] / 1e9:,.3f}", "GB"),
        ]
    seconds = {
        "live epochs": whole["live"],
        "replayed epochs": whole["replayed"],
        "students on labels alone": whole["plain"],
        "the whole job, its teachers given": expected.seconds,
    }
    return rows + [(name, _clock(value), "h:min:s") for name, value in seconds.items()]


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
