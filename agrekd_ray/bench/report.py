"""The benchmark's figures as ratios within one run: a table, and what they come to.

Every workload has three functions: the rows of its table, what its figures come to (`conclusions`,
by name), and how both are shown.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from agrekd_ray.bench.workloads import BY_HAND, DATA, FORWARD, GPU, PLAN, RECORDING, SEARCH
from agrekd_ray.capacity.report import say, show_table

Figures = dict[str, Any]
Rows = list[dict[str, Any]]


def summaries(figures: Figures) -> Rows:
    """The rows of a workload's table."""
    return _parts_of(figures)[0](figures)


def conclusions(figures: Figures) -> dict[str, float]:
    """What the figures come to, by name; ratios of medians."""
    return _parts_of(figures)[1](figures)


def render(figures: Figures, console: Console) -> None:
    """The table of one workload."""
    _parts_of(figures)[2](figures, console)


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _words(spread: dict[str, float], digits: int) -> str:
    """`median (smallest … largest)`, with so many digits after the point."""
    low, middle, high = (f"{spread[name]:,.{digits}f}" for name in ("min", "median", "max"))
    return f"{middle} ({low} … {high})"


def _show_conclusions(figures: Figures, console: Console) -> None:
    for name, value in conclusions(figures).items():
        say(console, f"{name}: {value:.3f}")


def _ratios(figures: Figures, cell: dict[str, Any]) -> dict[str, float]:
    """A cell's seconds over those of `plain`, repeat by repeat."""
    plain = next(cell["seconds"] for cell in figures["cells"] if cell["way"] == "plain")
    return _spread([mine / base for mine, base in zip(cell["seconds"], plain, strict=True)])


# --- ways of teaching, step by step


def _step_rows(figures: Figures) -> Rows:
    """A row a cell: milliseconds a step, and the ratio to `plain`."""
    return [
        {
            "way": cell["way"],
            "teachers": cell["teachers"],
            "step_ms": _spread([1000 * one / figures["steps"] for one in cell["seconds"]]),
            "ratio": _ratios(figures, cell),
            "anonymous_bytes": cell["anonymous_bytes"],
        }
        for cell in figures["cells"]
    ]


def _step_conclusions(figures: Figures) -> dict[str, float]:
    ratios: dict[str, float] = {}
    rows = _step_rows(figures)
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


def _render_steps(figures: Figures, console: Console) -> None:
    say(
        console,
        f"\n{figures['workload']}: batches of {figures['batch_size']}, {figures['steps']} steps an "
        f"epoch, median (smallest … largest) of {len(figures['cells'][0]['seconds'])} epochs",
    )
    rows = [
        (
            row["way"],
            str(row["teachers"] or "-"),
            _words(row["step_ms"], 0 if row["step_ms"]["median"] >= 100 else 1),
            _words(row["ratio"], 2),
            f"{row['anonymous_bytes'] / 1e6:.0f}",
        )
        for row in _step_rows(figures)
    ]
    show_table(console, ("Way", "Teachers", "ms a step", "× plain", "Memory, MB"), rows)
    _show_conclusions(figures, console)
    if memory := figures.get("replay_memory"):
        sizes = ", ".join(f"{size / 1e6:.0f} MB at {m} teachers" for m, size in memory)
        say(console, f"memory of a process that only replays: {sizes}")
    if "question_bytes" in figures:
        say(
            console,
            f"bytes of a step: {figures['question_bytes']} a process asked (ids, look-ahead, "
            f"student's logits), {figures['reply_bytes']} a teacher (its gradient)",
        )
    if "record_bytes" in figures:
        say(
            console,
            f"bytes on disk for a sample, view and teacher: {figures['record_bytes']:.1f} "
            f"({figures['record_bytes_computed']} without the file's head)",
        )


# --- searches


def _search_rows(figures: Figures) -> Rows:
    """A row a way: seconds of all trials, and the ratio to `plain`."""
    return [
        {
            "way": cell["way"],
            "seconds": _spread(cell["seconds"]),
            "ratio": _ratios(figures, cell),
        }
        for cell in figures["cells"]
    ]


def _search_conclusions(figures: Figures) -> dict[str, float]:
    median = {row["way"]: row["seconds"]["median"] for row in _search_rows(figures)}
    return {f"search / plain, {figures['trials']} trials": median["search"] / median["plain"]}


def _render_search(figures: Figures, console: Console) -> None:
    say(
        console,
        f"\nsearch: {figures['trials']} trials of {figures['epochs']} epochs, none stopped early, "
        f"{figures['teachers']} recorded teachers, median (smallest … largest) of "
        f"{len(figures['cells'][0]['seconds'])} searches",
    )
    rows = [
        (row["way"], _words(row["seconds"], 1), _words(row["ratio"], 2))
        for row in _search_rows(figures)
    ]
    show_table(console, ("Way", "seconds", "× plain"), rows)


# --- very many pictures


def _data_rows(figures: Figures) -> Rows:
    """A row a set of pictures: how long opening takes, and pictures a second."""
    return [
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


def _data_conclusions(figures: Figures) -> dict[str, float]:
    few, many = _data_rows(figures)
    more = many["samples"] / few["samples"]
    name = f"memory / memory, {more:.0f} times as many pictures"
    return {name: many["grown_bytes"] / few["grown_bytes"]}


def _render_data(figures: Figures, console: Console) -> None:
    side = figures["side"]
    say(
        console,
        f"\ndata: JPEGs inside Parquet, {side} × {side} pixels once they are prepared, read in "
        f"random batches of {figures['batch_size']}; memory is the peak of the process, without "
        "mapped files",
    )
    names = "Pictures", "Open, s", "Prepared / s", "Read / s", "Disk, MB", "Memory, MB", "Growth"
    rows = [
        (
            f"{row['samples']:,}",
            f"{row['open_seconds']:.2f}",
            f"{row['prepared_a_second']:,.0f}",
            f"{row['read_a_second']['median']:,.0f}",
            *(f"{row[key] / 1e6:.0f}" for key in ("bytes", "anonymous_bytes", "grown_bytes")),
        )
        for row in _data_rows(figures)
    ]
    show_table(console, names, rows, left=0)
    _show_conclusions(figures, console)


# --- what a device reaches

_GPU_KEY = ("way", "batch_size", "classes", "teachers", "compile")


def _gpu_rows(figures: Figures) -> Rows:
    """A row a cell: pictures a second, and the ratio to what it is held against.

    That is the loop written by hand, with the same batches and classes; for recording, the
    teacher's forward passes.
    """
    rates = [
        _spread([cell["images"] / one for one in cell["seconds"]]) for cell in figures["cells"]
    ]
    keys = [tuple(cell[name] for name in _GPU_KEY) for cell in figures["cells"]]
    median = {key: rate["median"] for key, rate in zip(keys, rates, strict=True)}
    rows = []
    for cell, rate in zip(figures["cells"], rates, strict=True):
        limit = FORWARD if cell["way"] in (FORWARD, RECORDING) else BY_HAND
        rows.append(
            {
                **{name: cell[name] for name in _GPU_KEY},
                "images_a_second": rate,
                "against": limit,
                "ratio": rate["median"]
                / median[limit, cell["batch_size"], cell["classes"], 0, "off"],
                "utilisation": cell["utilisation"],
                "bytes": cell["bytes"],
            }
        )
    return rows


def _gpu_conclusions(figures: Figures) -> dict[str, float]:
    ratios = {}
    for row in _gpu_rows(figures):
        if row["way"] == row["against"]:
            continue
        parts = [f"B {row['batch_size']}", f"{row['classes']} classes"]
        parts += [f"{row['teachers']} teachers"] if row["teachers"] > 1 else []
        parts += [_compiled(row)] if row["compile"] != "off" else []
        ratios[f"{row['way']} / {row['against']}, {', '.join(parts)}"] = row["ratio"]
    return ratios


def _render_gpu(figures: Figures, console: Console) -> None:
    """A table for each number of classes."""
    say(
        console,
        f"\ngpu: {figures['student']} on {figures['device']}, {figures['shown']} × "
        f"{figures['shown']} pixels out of {figures['kept']} × {figures['kept']}, flip and crop, "
        f"median (smallest … largest) of {len(figures['cells'][0]['seconds'])} epochs; teachers "
        f"who are recorded or answer live are {figures['teacher']}. × is held against the "
        f"hand-written loop, for recording against the teacher's forward passes. B samples a "
        "batch, M teachers, MB of memory at most",
    )
    rows = _gpu_rows(figures)
    for classes in dict.fromkeys(row["classes"] for row in rows):
        say(console, f"\n{classes:,} classes")
        cells = [
            (
                row["way"] + (f", {_compiled(row)}" if row["compile"] != "off" else ""),
                str(row["batch_size"]),
                str(row["teachers"] or "-"),
                _words(row["images_a_second"], 0),
                f"{row['ratio']:.2f}",
                "-" if row["utilisation"] is None else f"{row['utilisation']:.0f}",
                f"{row['bytes'] / 1e6:,.0f}",
            )
            for row in rows
            if row["classes"] == classes
        ]
        show_table(console, ("Way", "B", "M", "Images / s", "×", "GPU, %", "MB"), cells)


def _compiled(row: dict[str, Any]) -> str:
    return str(row["compile"]).replace("cuda_graphs", "CUDA graphs")


# --- forecasts beside measurements


def _plan_rows(figures: Figures) -> Rows:
    """A row a fleet, with its cells."""
    rows: Rows = figures["fleets"]
    return rows


def _plan_conclusions(figures: Figures) -> dict[str, float]:
    """Median errors, without sign, of all forecasts and of each fleet's."""
    errors = {
        _fleet_name(fleet): [abs(cell["error"]) for cell in fleet["cells"]]
        for fleet in figures["fleets"]
    }
    every = statistics.median(itertools.chain(*errors.values()))
    each = {f"median error, {name}": statistics.median(its) for name, its in errors.items()}
    return {"median error of the forecast": every, **each}


def _render_plan(figures: Figures, console: Console) -> None:
    """A row a cell: forecast, measurement, error."""
    say(console, "\nplan: live steps, forecast and measured")
    names = (
        "Fleet",
        "Held up by",
        "Teachers",
        "Actors",
        "Forecast, ms",
        "Measured, ms",
        "Error, %",
    )
    rows = [
        (
            _fleet_name(fleet),
            cell["bottleneck"],
            str(cell["teachers"]),
            str(cell["actors"]),
            f"{cell['forecast_ms']:.1f}",
            f"{cell['measured_ms']:.1f}",
            f"{100 * cell['error']:+.0f}",
        )
        for fleet in figures["fleets"]
        for cell in fleet["cells"]
    ]
    show_table(console, names, rows, left=2)
    for fleet in figures["fleets"]:
        times, costs = fleet["times"], fleet["times"]["costs"]
        say(
            console,
            f"{_fleet_name(fleet)}: student {times['step_ms']:.1f} ms, inputs "
            f"{times['inputs_ms']:.1f}, call {costs['call_ms']:.2f}, actor "
            f"{costs['actor_ms']:.2f}, host {costs['host_ms']:.2f}, backbone "
            f"{costs['backbone_ms']:.2f}, weighing {costs['weigh_ms']:.2f}",
        )
    _show_conclusions(figures, console)


def _fleet_name(fleet: dict[str, Any]) -> str:
    return (
        f"{fleet['delay_ms']} ms, {fleet['backbones_per_actor']} an actor, "
        f"look-ahead {fleet['look_ahead']}"
    )


Parts = tuple[
    Callable[[Figures], Rows],
    Callable[[Figures], dict[str, float]],
    Callable[[Figures, Console], None],
]
_PARTS: dict[str, Parts] = {
    SEARCH: (_search_rows, _search_conclusions, _render_search),
    DATA: (_data_rows, _data_conclusions, _render_data),
    GPU: (_gpu_rows, _gpu_conclusions, _render_gpu),
    PLAN: (_plan_rows, _plan_conclusions, _render_plan),
}


def _parts_of(figures: Figures) -> Parts:
    steps = (_step_rows, _step_conclusions, _render_steps)
    return _PARTS.get(figures["workload"], steps)
