"""The benchmark's figures as ratios within one run: tables, and what they come to."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from agrekd_ray.bench.workloads import BY_HAND, DATA, FORWARD, GPU, PLAN, RECORDING, SEARCH
from agrekd_ray.terminal import say, show_table

Figures = dict[str, Any]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """What is shown of a workload, and what is written beside its figures.

    Attributes:
        title: above the tables.
        columns: their names.
        summary: a row of numbers for each row of the tables, or for each fleet.
        tables: heading, which may be empty, and rows of texts.
        conclusions: what the figures come to, by name; ratios of medians.
        notes: below the tables.
        left: columns that stand on the left.
    """

    title: str
    columns: tuple[str, ...]
    summary: Rows
    tables: Sequence[tuple[str, Sequence[tuple[str, ...]]]]
    conclusions: dict[str, float]
    notes: list[str] = field(default_factory=list)
    left: int = 1

    def show(self, console: Console) -> None:
        """Print it."""
        say(console, f"\n{self.title}")
        for heading, rows in self.tables:
            if heading:
                say(console, f"\n{heading}")
            show_table(console, self.columns, rows, self.left)
        for note in self.notes:
            say(console, note)


def report_on(figures: Figures) -> Report:
    """The report on one workload."""
    return _REPORTS.get(figures["workload"], _on_steps)(figures)


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _words(spread: dict[str, float], digits: int) -> str:
    """`median (smallest … largest)`, with so many digits after the point."""
    low, middle, high = (f"{spread[name]:,.{digits}f}" for name in ("min", "median", "max"))
    return f"{middle} ({low} … {high})"


def _lines(conclusions: dict[str, float]) -> list[str]:
    return [f"{name}: {value:.3f}" for name, value in conclusions.items()]


def _ratios(figures: Figures, cell: dict[str, Any]) -> dict[str, float]:
    """A cell's seconds over those of `plain`, repeat by repeat."""
    plain = next(cell["seconds"] for cell in figures["cells"] if cell["way"] == "plain")
    return _spread([mine / base for mine, base in zip(cell["seconds"], plain, strict=True)])


def _on_steps(figures: Figures) -> Report:
    """Ways of teaching: milliseconds a step, and the ratio to `plain`."""
    summary = [
        {
            "way": cell["way"],
            "teachers": cell["teachers"],
            "step_ms": _spread([1000 * one / figures["steps"] for one in cell["seconds"]]),
            "ratio": _ratios(figures, cell),
            "anonymous_bytes": cell["anonymous_bytes"],
        }
        for cell in figures["cells"]
    ]
    rows = [
        (
            row["way"],
            str(row["teachers"] or "-"),
            _words(row["step_ms"], 0 if row["step_ms"]["median"] >= 100 else 1),
            _words(row["ratio"], 2),
            f"{row['anonymous_bytes'] / 1e6:.0f}",
        )
        for row in summary
    ]
    conclusions = _step_ratios(figures, summary)
    notes = _lines(conclusions)
    if memory := figures.get("replay_memory"):
        sizes = ", ".join(f"{size / 1e6:.0f} MB at {m} teachers" for m, size in memory)
        notes.append(f"memory of a process that only replays: {sizes}")
    if "question_bytes" in figures:
        notes.append(
            f"bytes of a step: {figures['question_bytes']} a process asked (ids, look-ahead, "
            f"student's logits), {figures['reply_bytes']} a teacher (its gradient)"
        )
    if "record_bytes" in figures:
        notes.append(
            f"bytes on disk for a sample, view and teacher: {figures['record_bytes']:.1f} "
            f"({figures['record_bytes_computed']} without the file's head)"
        )
    return Report(
        f"{figures['workload']}: batches of {figures['batch_size']}, {figures['steps']} steps an "
        f"epoch, median (smallest … largest) of {len(figures['cells'][0]['seconds'])} epochs",
        ("Way", "Teachers", "ms a step", "× plain", "Memory, MB"),
        summary,
        [("", rows)],
        conclusions,
        notes,
    )


def _step_ratios(figures: Figures, summary: Rows) -> dict[str, float]:
    ratios: dict[str, float] = {}
    step = {(row["way"], row["teachers"]): row["step_ms"]["median"] for row in summary}
    plain = step["plain", 0]
    for (way, teachers), ms in step.items():
        local, naive, replay = (step.get((w, teachers)) for w in ("local", "naive", "replay"))
        if way == "replay":
            ratios[f"replay / plain, {teachers} teachers"] = ms / plain
        if way == "live" and local:
            ratios[f"live / local, {teachers} teachers"] = ms / local
        if way == "record" and naive and replay:
            name = f"10 epochs, the first recorded / naive, {teachers} teachers"
            ratios[name] = (ms + 9 * replay) / (10 * naive)
    if figures["workload"] == "latency":
        floor = max(figures["teacher_ms"], plain + 5)
        live = {teachers: ms for (way, teachers), ms in step.items() if way == "live"}
        for teachers, ms in live.items():
            ratios[f"step / max(teacher, student + 5 ms), {teachers} teachers"] = ms / floor
        if 4 in live:
            ratios[f"step at {max(live)} teachers / at 4"] = live[max(live)] / live[4]
    return ratios


def _on_search(figures: Figures) -> Report:
    """Searches: seconds of all trials, and the ratio to `plain`."""
    summary = [
        {"way": cell["way"], "seconds": _spread(cell["seconds"]), "ratio": _ratios(figures, cell)}
        for cell in figures["cells"]
    ]
    median = {row["way"]: row["seconds"]["median"] for row in summary}
    return Report(
        f"search: {figures['trials']} trials of {figures['epochs']} epochs, none stopped early, "
        f"{figures['teachers']} recorded teachers, median (smallest … largest) of "
        f"{len(figures['cells'][0]['seconds'])} searches",
        ("Way", "seconds", "× plain"),
        summary,
        [("", [(r["way"], _words(r["seconds"], 1), _words(r["ratio"], 2)) for r in summary])],
        {f"search / plain, {figures['trials']} trials": median["search"] / median["plain"]},
    )


def _on_data(figures: Figures) -> Report:
    """Sets of pictures: how long opening takes, pictures a second, and memory."""
    summary = [
        {
            "samples": cell["samples"],
            "open_seconds": cell["open_seconds"],
            "prepared_a_second": cell["samples"] / cell["prepare_seconds"],
            "read_a_second": _spread([cell["read"] / seconds for seconds in cell["read_seconds"]]),
            "bytes": cell["bytes"],
            "anonymous_bytes": cell["anonymous_bytes"],
            "grown_bytes": cell["anonymous_bytes"] - cell["idle_bytes"],
        }
        for cell in figures["cells"]
    ]
    rows = [
        (
            f"{row['samples']:,}",
            f"{row['open_seconds']:.2f}",
            f"{row['prepared_a_second']:,.0f}",
            f"{row['read_a_second']['median']:,.0f}",
            *(f"{row[key] / 1e6:.0f}" for key in ("bytes", "anonymous_bytes", "grown_bytes")),
        )
        for row in summary
    ]
    few, many = summary
    name = f"memory / memory, {many['samples'] / few['samples']:.0f} times as many pictures"
    conclusions = {name: many["grown_bytes"] / few["grown_bytes"]}
    side = figures["side"]
    return Report(
        f"data: JPEGs inside Parquet, {side} × {side} pixels once they are prepared, read in "
        f"random batches of {figures['batch_size']}; memory is the peak of the process, without "
        "mapped files",
        ("Pictures", "Open, s", "Prepared / s", "Read / s", "Disk, MB", "Memory, MB", "Growth"),
        summary,
        [("", rows)],
        conclusions,
        _lines(conclusions),
        left=0,
    )


_GPU_KEY = ("way", "batch_size", "classes", "teachers", "compile")


def _on_gpu(figures: Figures) -> Report:
    """What a device reaches: pictures a second, with a table for each number of classes.

    Each is held against the loop written by hand, with the same batches and classes; recording
    against the teacher's forward passes.
    """
    rates = {
        tuple(cell[name] for name in _GPU_KEY): _spread(
            [cell["images"] / one for one in cell["seconds"]]
        )
        for cell in figures["cells"]
    }
    summary: Rows = []
    conclusions = {}
    tables: dict[int, list[tuple[str, ...]]] = {}
    for cell, (key, rate) in zip(figures["cells"], rates.items(), strict=True):
        way, batch_size, classes, teachers, how = key
        limit = FORWARD if way in (FORWARD, RECORDING) else BY_HAND
        ratio = rate["median"] / rates[limit, batch_size, classes, 0, "off"]["median"]
        about = dict(zip(_GPU_KEY, key, strict=True))
        reached = {"images_a_second": rate, "against": limit, "ratio": ratio}
        meanwhile = {name: cell[name] for name in ("utilisation", "bytes")}
        summary.append({**about, **reached, **meanwhile})
        compiled = "" if how == "off" else f", {how.replace('cuda_graphs', 'CUDA graphs')}"
        if way != limit:
            of_teachers = f", {teachers} teachers" if teachers > 1 else ""
            setting = f"B {batch_size}, {classes} classes{of_teachers}{compiled}"
            conclusions[f"{way} / {limit}, {setting}"] = ratio
        tables.setdefault(classes, []).append(
            (
                way + compiled,
                str(batch_size),
                str(teachers or "-"),
                _words(rate, 0),
                f"{ratio:.2f}",
                "-" if cell["utilisation"] is None else f"{cell['utilisation']:.0f}",
                f"{cell['bytes'] / 1e6:,.0f}",
            )
        )
    return Report(
        f"gpu: {figures['student']} on {figures['device']}, {figures['shown']} × "
        f"{figures['shown']} pixels out of {figures['kept']} × {figures['kept']}, flip and crop, "
        f"median (smallest … largest) of {len(figures['cells'][0]['seconds'])} epochs; teachers "
        f"who are recorded or answer live are {figures['teacher']}. × is held against the "
        f"hand-written loop, for recording against the teacher's forward passes. B samples a "
        "batch, M teachers, MB of memory at most",
        ("Way", "B", "M", "Images / s", "×", "GPU, %", "MB"),
        summary,
        [(f"{classes:,} classes", rows) for classes, rows in tables.items()],
        conclusions,
    )


def _on_plan(figures: Figures) -> Report:
    """Forecasts beside measurements, and their median errors, without sign."""
    rows, times_of, errors = [], [], {}
    for fleet in figures["fleets"]:
        name = (
            f"{fleet['delay_ms']} ms, {fleet['backbones_per_actor']} an actor, "
            f"look-ahead {fleet['look_ahead']}"
        )
        errors[name] = [abs(cell["error"]) for cell in fleet["cells"]]
        rows += [
            (
                name,
                cell["bottleneck"],
                str(cell["teachers"]),
                str(cell["actors"]),
                f"{cell['forecast_ms']:.1f}",
                f"{cell['measured_ms']:.1f}",
                f"{100 * cell['error']:+.0f}",
            )
            for cell in fleet["cells"]
        ]
        times, costs = fleet["times"], fleet["times"]["costs"]
        times_of.append(
            f"{name}: student {times['step_ms']:.1f} ms, inputs {times['inputs_ms']:.1f}, call "
            f"{costs['call_ms']:.2f}, actor {costs['actor_ms']:.2f}, host {costs['host_ms']:.2f}, "
            f"backbone {costs['backbone_ms']:.2f}, weighing {costs['weigh_ms']:.2f}"
        )
    every = statistics.median(itertools.chain(*errors.values()))
    each = {f"median error, {name}": statistics.median(its) for name, its in errors.items()}
    conclusions = {"median error of the forecast": every, **each}
    return Report(
        "plan: live steps, forecast and measured",
        ("Fleet", "Held up by", "Teachers", "Actors", "Forecast, ms", "Measured, ms", "Error, %"),
        figures["fleets"],
        [("", rows)],
        conclusions,
        [*times_of, *_lines(conclusions)],
        left=2,
    )


_REPORTS: dict[str, Callable[[Figures], Report]] = {
    SEARCH: _on_search,
    DATA: _on_data,
    GPU: _on_gpu,
    PLAN: _on_plan,
}
