"""The benchmark's figures as ratios within one run: tables, and what they come to."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from agrekd_ray.report.tables import Table, show, texts
from agrekd_ray.terminal import say

Figures = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What is shown of a workload, and what is written beside its figures.

    Attributes:
        title: above the tables.
        columns: their headers, and what they show of a row.
        summary: a row for each row of the tables, or for each fleet.
        conclusions: what the figures come to, by name; ratios of medians.
        notes: below the tables.
        tables: headings, which may be empty, and rows; None for one table of the summary.
        left: columns that stand on the left.
        beside: a report that is shown below.
    """

    title: str
    columns: Mapping[str, Callable[[Row], str]]
    summary: Sequence[Row]
    conclusions: Mapping[str, float]
    notes: Sequence[str] = ()
    tables: Mapping[str, Sequence[Row]] | None = None
    left: int = 1
    beside: Report | None = None

    def show(self, console: Console) -> None:
        """Print it."""
        say(console, f"\n{self.title}")
        for heading, rows in (self.tables or {"": self.summary}).items():
            say(console, f"\n{heading}" if heading else "")
            headers = list(self.columns)
            cells = [[text(row) for text in self.columns.values()] for row in rows]
            columns = texts(dict(zip(headers, headers, strict=True)), cells, headers[self.left :])
            show(Table("", columns), console)
        say(console, "\n".join(["", *self.notes]))
        if self.beside is not None:
            self.beside.show(console)


def report_on(figures: Figures) -> Report:
    """The report on one workload."""
    return _REPORTS.get(figures["workload"], _on_steps)(figures)


def _spread(values: np.ndarray) -> dict[str, float]:
    """Median, smallest and largest."""
    return {name: float(getattr(np, name)(values)) for name in ("median", "min", "max")}


def _in_words(spread: Mapping[str, float], digits: int) -> str:
    """`median (smallest … largest)`, with so many digits after the point."""
    low, middle, high = (f"{spread[name]:,.{digits}f}" for name in ("min", "median", "max"))
    return f"{middle} ({low} … {high})"


def _medians(figures: Figures, what: str) -> str:
    repeats = len(figures["cells"][0]["seconds"])
    return f"median (smallest … largest) of {repeats} {what}"


def _lines(conclusions: Mapping[str, float]) -> list[str]:
    return [f"{name}: {value:.3f}" for name, value in conclusions.items()]


def _beside_plain(figures: Figures) -> list[Row]:
    """The cells, each with its seconds over those of `plain`, the first one, repeat by repeat."""
    plain = np.array(figures["cells"][0]["seconds"])
    return [{**cell, "ratio": _spread(cell["seconds"] / plain)} for cell in figures["cells"]]


def _on_steps(figures: Figures) -> Report:
    """Ways of teaching: milliseconds a step, and the ratio to `plain`."""
    rows = _beside_plain(figures)
    for row in rows:
        row["step_ms"] = _spread(1000 * np.array(row["seconds"]) / figures["steps"])
    conclusions = _step_ratios(figures, rows)
    notes = _lines(conclusions)
    if memory := figures.get("replay_memory"):
        sizes = ", ".join(f"{size / 1e6:.0f} MB at {m} teachers" for m, size in memory)
        notes.append(f"memory of a process that only replays: {sizes}")
    if "request_bytes" in figures:
        notes.append(
            f"bytes of a step: {figures['request_bytes']} a process asked (ids, look-ahead, "
            f"student's logits), {figures['reply_bytes']} a teacher (its gradient)"
        )
    if "record_bytes" in figures:
        notes.append(
            f"bytes on disk for a sample, view and teacher: {figures['record_bytes']:.1f} "
            f"({figures['record_bytes_computed']} without the file's head)"
        )
    return Report(
        f"{figures['workload']}: batches of {figures['batch_size']}, {figures['steps']} steps an "
        f"epoch, {_medians(figures, 'epochs')}",
        {
            "Way": lambda row: row["way"],
            "Teachers": lambda row: str(row["teachers"] or "-"),
            "ms a step": lambda row: _in_words(
                row["step_ms"], 1 if row["step_ms"]["median"] < 100 else 0
            ),
            "× plain": lambda row: _in_words(row["ratio"], 2),
            "Memory, MB": lambda row: f"{row['anonymous_bytes'] / 1e6:.0f}",
        },
        rows,
        conclusions,
        notes,
    )


def _step_ratios(figures: Figures, rows: Sequence[Row]) -> dict[str, float]:
    ratios: dict[str, float] = {}
    step = {(row["way"], row["teachers"]): row["step_ms"]["median"] for row in rows}
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
    rows = [{**row, "seconds": _spread(row["seconds"])} for row in _beside_plain(figures)]
    plain, search = (row["seconds"]["median"] for row in rows)
    return Report(
        f"search: {figures['trials']} trials of {figures['epochs']} epochs, none stopped early, "
        f"{figures['teachers']} recorded teachers, {_medians(figures, 'searches')}",
        {
            "Way": lambda row: row["way"],
            "seconds": lambda row: _in_words(row["seconds"], 1),
            "× plain": lambda row: _in_words(row["ratio"], 2),
        },
        rows,
        {f"search / plain, {figures['trials']} trials": search / plain},
    )


def _on_data(figures: Figures) -> Report:
    """Sets of pictures: how long opening takes, pictures a second, and memory."""
    rows = [
        {
            **cell,
            "prepared_a_second": cell["samples"] / cell["prepare_seconds"],
            "read_a_second": _spread(cell["read"] / np.array(cell["read_seconds"])),
            "grown_bytes": cell["anonymous_bytes"] - cell["idle_bytes"],
        }
        for cell in figures["cells"]
    ]
    few, many = rows
    name = f"memory / memory, {many['samples'] / few['samples']:.0f} times as many pictures"
    conclusions = {name: many["grown_bytes"] / few["grown_bytes"]}
    side = figures["side"]
    return Report(
        f"data: JPEGs inside Parquet, {side} × {side} pixels once they are prepared, read in "
        f"random batches of {figures['batch_size']}; memory is the peak of the process, without "
        "mapped files",
        {
            "Pictures": lambda row: f"{row['samples']:,}",
            "Open, s": lambda row: f"{row['open_seconds']:.2f}",
            "Prepared / s": lambda row: f"{row['prepared_a_second']:,.0f}",
            "Read / s": lambda row: f"{row['read_a_second']['median']:,.0f}",
            "Disk, MB": lambda row: f"{row['bytes'] / 1e6:.0f}",
            "Memory, MB": lambda row: f"{row['anonymous_bytes'] / 1e6:.0f}",
            "Growth": lambda row: f"{row['grown_bytes'] / 1e6:.0f}",
        },
        rows,
        conclusions,
        _lines(conclusions),
        left=0,
    )


def _on_gpu(figures: Figures) -> Report:
    """What a device reaches: pictures a second, with a table for each number of classes.

    Each is held against the loop written by hand, with the same batches and classes; recording
    against the teacher's forward passes.
    """
    rows, conclusions = [], {}
    rates = [_spread(cell["images"] / np.array(cell["seconds"])) for cell in figures["cells"]]
    settings = [f"B {cell['batch_size']}, {cell['classes']} classes" for cell in figures["cells"]]
    measured = list(zip(figures["cells"], rates, settings, strict=True))
    medians = {(cell["way"], setting): rate["median"] for cell, rate, setting in measured}
    for cell, rate, setting in measured:
        asked = cell["way"] in ("teacher's forward", "recording")
        limit = "teacher's forward" if asked else "hand-written"
        ratio = rate["median"] / medians[limit, setting]
        rows.append({**cell, "images_a_second": rate, "against": limit, "ratio": ratio})
        if cell["way"] != limit:
            setting += f", {cell['teachers']} teachers" * (cell["teachers"] > 1)
            conclusions[f"{cell['way']} / {limit}, {setting}{_compiled(cell)}"] = ratio
    by_classes = itertools.groupby(rows, lambda row: f"{row['classes']:,} classes")
    return Report(
        f"gpu: {figures['student']} on {figures['device']}, {figures['shown']} × "
        f"{figures['shown']} pixels out of {figures['kept']} × {figures['kept']}, flip and crop, "
        f"{_medians(figures, 'epochs')}; teachers who are recorded or answer live are "
        f"{figures['teacher']}. × is held against the hand-written loop, for recording against "
        "the teacher's forward passes. B samples a batch, M teachers, MB of memory at most",
        {
            "Way": lambda row: row["way"] + _compiled(row),
            "B": lambda row: str(row["batch_size"]),
            "M": lambda row: str(row["teachers"] or "-"),
            "Images / s": lambda row: _in_words(row["images_a_second"], 0),
            "×": lambda row: f"{row['ratio']:.2f}",
            "GPU, %": lambda r: "-" if r["utilisation"] is None else f"{r['utilisation']:.0f}",
            "MB": lambda row: f"{row['bytes'] / 1e6:,.0f}",
        },
        rows,
        conclusions,
        tables={heading: list(those) for heading, those in by_classes},
    )


def _compiled(row: Row) -> str:
    how: str = row["compile"]
    return "" if how == "off" else f", {how.replace('cuda_graphs', 'CUDA graphs')}"


def _on_plan(figures: Figures) -> Report:
    """Forecasts beside measurements, and their median errors, without sign."""
    tables, notes = {}, []
    for fleet in figures["fleets"]:
        name = (
            f"{fleet['delay_ms']} ms, {fleet['backbones_per_actor']} an actor, "
            f"look-ahead {fleet['look_ahead']}"
        )
        tables[name] = fleet["cells"]
        times, costs = fleet["times"], fleet["times"]["costs"]
        notes.append(
            f"{name}: student {times['step_ms']:.1f} ms, inputs {times['inputs_ms']:.1f}, call "
            f"{costs['call_ms']:.2f}, actor {costs['actor_ms']:.2f}, host {costs['host_ms']:.2f}, "
            f"backbone {costs['backbone_ms']:.2f}, weighing {costs['weigh_ms']:.2f}"
        )
    every = {"median error of the forecast": itertools.chain(*tables.values())}
    each = {f"median error, {name}": cells for name, cells in tables.items()}
    conclusions = {
        name: statistics.median(abs(cell["error"]) for cell in cells)
        for name, cells in {**every, **each}.items()
    }
    return Report(
        "plan: live steps, forecast and measured",
        {
            "Held up by": lambda cell: cell["bottleneck"],
            "Teachers": lambda cell: str(cell["teachers"]),
            "Actors": lambda cell: str(cell["actors"]),
            "Forecast, ms": lambda cell: f"{cell['forecast_ms']:.1f}",
            "Measured, ms": lambda cell: f"{cell['measured_ms']:.1f}",
            "Error, %": lambda cell: f"{100 * cell['error']:+.0f}",
        },
        figures["fleets"],
        conclusions,
        [*notes, *_lines(conclusions)],
        tables=tables,
    )


def _on_scale(figures: Figures) -> Report:
    """Steps of replay beside plain ones by form and size, and what each form loses."""
    rows = []
    for cell in figures["cells"]:
        wall = {way: np.array(times) for way, times in cell["seconds"].items()}
        grown = cell["replay_bytes"] - cell["plain_bytes"]
        rows.append(
            {
                **cell,
                **{f"{way}_ms": _spread(1000 * seconds) for way, seconds in wall.items()},
                "ratio": _spread(wall["replay"] / wall["plain"]),
                "grown_bytes": grown,
            }
        )
    conclusions = {
        f"replay / plain, {_size_of(row)}, {row['form']}": row["ratio"]["median"] for row in rows
    }
    return Report(
        f"scale: {figures['student']} on {figures['pixels']} × {figures['pixels']} pixels, batches "
        f"of {figures['batch']}, "
        f"{len(figures['cells'][0]['seconds']['plain'])} repeats of {figures['steps']} steps, "
        "plain and replayed in turn; M teachers, C classes, N thousand samples, GB on disk; "
        "medians of milliseconds a step, and × plain with smallest … largest; MB is the peak of "
        "memory over that of plain steps, without mapped files",
        {
            "Form": lambda row: row["form"],
            "M": lambda row: str(row["teachers"]),
            "C": lambda row: str(row["classes"]),
            "N": lambda row: f"{row['rows'] / 1000:g}",
            "GB": lambda row: f"{row['disk_bytes'] / 1e9:.2f}",
            "Plain": lambda row: f"{row['plain_ms']['median']:.0f}",
            "Replay": lambda row: f"{row['replay_ms']['median']:.0f}",
            "× plain": lambda row: _in_words(row["ratio"], 2),
            "MB": lambda row: f"{row['grown_bytes'] / 1e6:.0f}",
        },
        rows,
        conclusions,
        _lines(conclusions),
        beside=_of_errors(figures["errors"]),
    )


def _size_of(row: Row) -> str:
    return f"{row['teachers']} teachers, {row['classes']} classes, {row['rows']:,} rows"


def _of_errors(tables: Mapping[str, Sequence[Row]]) -> Report:
    """What each form loses, by temperature."""

    def error(temperature: str, name: str) -> Callable[[Row], str]:
        return lambda row: f"{row['errors'][temperature][name]:.1e}"

    columns = {
        f"τ{temperature} {name}": error(temperature, name)
        for temperature in ("1", "4")
        for name in ("mean", "max", "grad")
    }
    return Report(
        "forms: bytes of a row; at temperatures 1 and 4 the mean and the largest error of a "
        "teacher's weight for a sample in AGRE-KD, and of the gradient, relative to its norm",
        {
            "Form": lambda row: row["form"],
            "Bytes": lambda row: f"{row['row_bytes']:,}",
            **columns,
        },
        [row for rows in tables.values() for row in rows],
        {},
        tables=tables,
    )


_REPORTS: dict[str, Callable[[Figures], Report]] = {
    "search": _on_search,
    "data": _on_data,
    "gpu": _on_gpu,
    "plan": _on_plan,
    "scale": _on_scale,
}
