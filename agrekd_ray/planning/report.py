"""A forecast on the terminal and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agrekd_ray.planning.advice import Advice
from agrekd_ray.planning.forecast import Forecast
from agrekd_ray.planning.placing import groups_with_room
from agrekd_ray.planning.settings import Machines, Times
from agrekd_ray.planning.step import PARTS


def render(
    name: str, found: Forecast, advice: Sequence[Advice], machines: Machines, console: Console
) -> None:
    """Print a forecast: what is where, the step by its parts, the rest, and what would help."""
    setup = found.setup
    _say(
        console,
        f"\n{name}: {_many(setup.teachers, 'teacher')} in {_many(setup.actors, 'actor')}, "
        f"{_many(setup.workers, 'student worker')}, batches of {setup.batch}, {setup.classes:,} "
        f"classes, on {_many(machines.nodes, 'node')} of {_many(machines.cpus, 'core')} and "
        f"{_many(machines.gpus, 'GPU')}",
    )
    if idle := _idle(found, machines):
        _say(console, idle, "yellow")
    if found.shortage:
        _say(console, f"no room: {found.shortage}; forecast as if there were", "yellow")
    console.print(_parts(found))
    table = _table("What", "Forecast", "Unit", right=False)
    for row in _rows(found):
        table.add_row(*row)
    console.print(table)
    _say(console, f"Bottleneck of a live step: {PARTS[found.step.bottleneck]}.")
    if found.recording:
        _say(console, f"Bottleneck of recording: {PARTS[found.recording.bottleneck]}.")
    _say(console, f"Bottleneck of the job: {PARTS[found.bottleneck]}.")
    if found.single:
        _say(
            console,
            f"A weighting actor for each of the {setup.workers} workers is chosen: with a single "
            f"one a live step takes {_ms(found.single.ms)} ms, held up by "
            f"{PARTS[found.single.bottleneck]}.",
        )
    if advice:
        console.print(_advice(found, advice))


def _idle(found: Forecast, machines: Machines) -> str:
    """What is left of the GPUs, with the key that would use it; empty where nothing is."""
    setup, (wanted, there) = found.setup, found.placing.gpus
    others = (groups_with_room(setup, machines) - 1) * setup.workers * setup.student_gpus
    idle = there - math.ceil(wanted + others - 1e-6)
    if idle <= 0:
        return ""
    shares = {"student": setup.student_gpus, "fleet": setup.actor_gpus}
    reasons = [
        f"{key}.gpus = 0 declines them"
        for key, share in shares.items()
        if not share and key not in setup.gpus_left_open
    ]
    if not setup.student_gpus and "student" in setup.gpus_left_open:
        reasons.append(f"student.workers = {setup.workers} need a GPU each")
    advice = "more student.workers would train a student on several"
    return f"{idle:g} of {there:g} GPUs stay idle: {'; '.join(reasons) or advice}"


def as_json(
    name: str, found: Forecast, advice: Sequence[Advice], machines: Machines, times: Times
) -> dict[str, Any]:
    """All of it, with what it was made from; units are in the names, or bytes and seconds."""
    values = asdict(found)
    values["whole"]["seconds"] = found.whole.seconds
    return {
        "job": name,
        "bottleneck": found.bottleneck,
        "shortage": found.shortage,
        **values,
        "advice": [asdict(one) for one in advice],
        "machines": machines.model_dump(),
        "times": times.model_dump(),
    }


def _parts(found: Forecast) -> Table:
    table = _table("Part of a live step", "ms")
    for name, ms in found.step.parts.items():
        mark = " ←" if name == found.step.bottleneck else ""
        table.add_row(PARTS[name] + mark, _ms(ms))
    return table


def _rows(found: Forecast) -> list[tuple[str, str, str]]:
    step, memory, setup = found.step, found.memory, found.setup
    each = " each" if setup.weighting_actors > 1 else ""
    rows = [
        (f"live step ({setup.strategy})", _ms(step.ms), "ms"),
        ("replayed step", _ms(found.replay_ms), "ms"),
        ("teachers idle", f"{100 * step.teacher_idle:.0f}", "% of a live step"),
        ("student waits", f"{100 * step.student_waits:.0f}", "% of a live step"),
        ("weighting actors", str(setup.weighting_actors), ""),
        (f"into the weighting actor{each}", f"{step.into_weighting / 1e6:,.1f}", "MB/s"),
        ("memory of a teachers' actor", f"{memory.teacher_actor / 1e9:,.2f}", "GB + activations"),
        (f"memory of the weighting actor{each}", f"{memory.weighting_actor / 1e9:,.2f}", "GB"),
        ("object store beside it", f"{memory.object_store / 1e9:,.2f}", "GB"),
    ]
    if found.recording:
        recording = found.recording
        rows += [
            ("recording all views in one pass", _clock(recording.seconds), "h:min:s"),
            ("records on disk", f"{recording.bytes / 1e9:,.3f}", "GB"),
            ("disk while recording, at most", f"{recording.peak_bytes / 1e9:,.3f}", "GB"),
        ]
    whole = found.whole
    return [
        *rows,
        ("live epochs", _clock(whole.live), "h:min:s"),
        ("replayed epochs", _clock(whole.replayed), "h:min:s"),
        ("students on labels alone", _clock(whole.plain), "h:min:s"),
        ("the whole job, its teachers given", _clock(whole.seconds), "h:min:s"),
    ]


def _advice(found: Forecast, advice: Sequence[Advice]) -> Table:
    headers = ("What would help most", "Live step, ms", "Recording, h:min:s", "Job, h:min:s")
    table, recording = _table(*headers), found.recording
    now = _clock(recording.seconds) if recording else "-"
    table.add_row("as it is", _ms(found.step.ms), now, _clock(found.whole.seconds))
    for one in advice:
        recorded = "-" if one.recording_seconds is None else _clock(one.recording_seconds)
        table.add_row(one.change, _ms(one.step_ms), recorded, _clock(one.job_seconds))
    return table


def _table(*names: str, right: bool = True) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(names):
        justify: Literal["left", "right"] = "right" if right and number else "left"
        overflow: Literal["ellipsis", "fold"] = "ellipsis" if number else "fold"
        table.add_column(name, justify=justify, no_wrap=number > 0, overflow=overflow)
    return table


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style), soft_wrap=True)
