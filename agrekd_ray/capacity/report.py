"""What `agrekd plan` says, on the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from agrekd_ray.capacity.forecast import PARTS, Forecast
from agrekd_ray.terminal import counted, say, show_table


def show_forecast(
    name: str,
    expected: Forecast,
    advice: Sequence[tuple[str, Forecast]],
    idle: str,
    console: Console,
) -> None:
    """Print a forecast: what is where, the step by its parts, the rest, and what would help."""
    size, machines, step = expected.size, expected.machines, expected.step
    held_up_by = step["bottleneck"]
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
    parts = [(PARTS[k] + " ←" * (k == held_up_by), _ms(ms)) for k, ms in step["parts"].items()]
    show_table(console, ("Part of a live step", "ms"), parts)
    show_table(console, ("What", "Forecast", "Unit"), _rows(expected), left=3)
    say(console, f"Bottleneck of a live step: {PARTS[held_up_by]}.")
    if expected.recording:
        say(console, f"Bottleneck of recording: {PARTS[expected.recording['bottleneck']]}.")
    say(console, f"Bottleneck of the job: {PARTS[expected.bottleneck]}.")
    if expected.single is not None:
        single = expected.single.step
        say(
            console,
            f"A weighting actor for each of the {size.workers} workers is chosen: with a single "
            f"one a live step takes {_ms(single['ms'])} ms, held up by "
            f"{PARTS[single['bottleneck']]}.",
        )
    if advice:
        headers = ("What would help most", "Live step, ms", "Recording, h:min:s", "Job, h:min:s")
        rows = []
        for change, after in [("as it is", expected), *advice]:
            recording = after.recording_seconds
            recorded = "-" if recording is None else _clock(recording)
            rows.append((change, _ms(after.ms), recorded, _clock(after.seconds)))
        show_table(console, headers, rows)


def as_json(
    name: str, expected: Forecast, advice: Sequence[tuple[str, Forecast]]
) -> dict[str, Any]:
    """All of it, with what it was made from; units are in the names, or bytes and seconds."""
    machines, single = expected.machines, expected.single
    same = ("bottleneck", "shortage", "step", "replay_ms", "recording")
    return {
        "job": name,
        **{key: getattr(expected, key) for key in same},
        "setup": asdict(expected.size),
        "placing": asdict(expected.placing),
        "single": single.step if single else None,
        "memory": {**expected.memory, "there": machines.memory_gb * 1e9},
        "whole": {**expected.whole, "spent": expected.spent, "seconds": expected.seconds},
        "advice": [
            {
                "change": change,
                "step_ms": after.ms,
                "job_seconds": after.seconds,
                "recording_seconds": after.recording_seconds,
            }
            for change, after in advice
        ],
        "machines": machines.model_dump(),
        "times": expected.times.model_dump(),
    }


def _rows(expected: Forecast) -> list[tuple[str, str, str]]:
    """Name, forecast and unit of all that is not a part of the live step."""
    whole, size, step, memory = expected.whole, expected.size, expected.step, expected.memory
    each, recording = " each" if size.shards > 1 else "", expected.recording or {}
    rows: list[tuple[str, float | None, str]] = [
        (f"live step ({size.strategies[0]})", step["ms"], "ms"),
        ("replayed step", expected.replay_ms, "ms"),
        ("teachers idle", step["teacher_idle"], "% of a live step"),
        ("student waits", step["student_waits"], "% of a live step"),
        ("weighting actors", size.shards, ""),
        (f"into the weighting actor{each}", step["into_weighting"], "MB/s"),
        ("memory of a teachers' actor", memory["teacher_actor"], "GB + activations"),
        (f"memory of the weighting actor{each}", memory["weighting_actor"], "GB"),
        ("object store beside it", memory["object_store"], "GB"),
        ("recording all views in one pass", recording.get("seconds"), "h:min:s"),
        ("records on disk", recording.get("bytes"), "GB"),
        ("disk while recording, at most", recording.get("peak_bytes"), "GB"),
        ("live epochs", whole["live"], "h:min:s"),
        ("replayed epochs", whole["replayed"], "h:min:s"),
        ("students on labels alone", whole["plain"], "h:min:s"),
        ("the whole job, its teachers given", expected.seconds, "h:min:s"),
    ]
    return [(what, _IN[unit](value), unit) for what, value, unit in rows if value is not None]


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.3f}"


_IN: dict[str, Callable[[float], str]] = {
    "": str,
    "ms": _ms,
    "% of a live step": lambda share: f"{100 * share:.0f}",
    "MB/s": lambda rate: f"{rate / 1e6:,.1f}",
    "GB": _gigabytes,
    "GB + activations": _gigabytes,
    "h:min:s": _clock,
}
"""A value as a text, by its unit on the screen."""
