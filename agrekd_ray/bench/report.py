"""The benchmark's figures as ratios within one run: a table, and what they come to."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from agrekd_ray.bench.gpu_report import gpu_conclusions, gpu_summary, render_gpu
from agrekd_ray.bench.plan_report import plan_conclusions, render_plan
from agrekd_ray.bench.spread import spread, words
from agrekd_ray.bench.workloads import DATA, GPU, PLAN, SEARCH


def search_summary(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a way: seconds of all trials, and the ratio to `plain`, repeat by repeat.

    Args:
        figures: as `measure_search` returns them.
    """
    plain = next(cell["seconds"] for cell in figures["cells"] if cell["way"] == "plain")
    return [
        {
            "way": cell["way"],
            "seconds": spread(cell["seconds"]),
            "ratio": spread([s / base for s, base in zip(cell["seconds"], plain, strict=True)]),
        }
        for cell in figures["cells"]
    ]


def summary(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a cell: milliseconds a step, and the ratio to `plain`, repeat by repeat.

    Args:
        figures: of one workload, as `measure` writes them.
    """
    plain = next(cell["seconds"] for cell in figures["cells"] if cell["way"] == "plain")
    rows = []
    for cell in figures["cells"]:
        steps = [1000 * seconds / figures["steps"] for seconds in cell["seconds"]]
        ratios = [mine / base for mine, base in zip(cell["seconds"], plain, strict=True)]
        rows.append(
            {
                "way": cell["way"],
                "teachers": cell["teachers"],
                "step_ms": spread(steps),
                "ratio": spread(ratios),
                "anonymous_bytes": cell["anonymous_bytes"],
            }
        )
    return rows


def summaries(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a workload's table."""
    if figures["workload"] == PLAN:
        return figures["fleets"]
    if figures["workload"] == GPU:
        return gpu_summary(figures)
    if figures["workload"] == DATA:
        return data_summary(figures)
    return search_summary(figures) if figures["workload"] == SEARCH else summary(figures)


def conclusions(figures: dict[str, Any]) -> dict[str, float]:
    """What the figures come to, by name; ratios of medians."""
    found: dict[str, float] = {}
    if figures["workload"] == PLAN:
        return plan_conclusions(figures)
    if figures["workload"] == GPU:
        return gpu_conclusions(figures)
    if figures["workload"] == DATA:
        few, many = (row["anonymous_bytes"] - row["idle_bytes"] for row in figures["cells"])
        more = figures["cells"][1]["samples"] / figures["cells"][0]["samples"]
        return {f"memory / memory, {more:.0f} times as many pictures": many / few}
    if figures["workload"] == SEARCH:
        rows = {row["way"]: row["seconds"]["median"] for row in search_summary(figures)}
        return {f"search / plain, {figures['trials']} trials": rows["search"] / rows["plain"]}
    step = {(row["way"], row["teachers"]): row["step_ms"]["median"] for row in summary(figures)}
    plain = step["plain", 0]
    for way, teachers in step:
        if way == "replay":
            found[f"replay / plain, {teachers} teachers"] = step[way, teachers] / plain
        if way == "live" and ("local", teachers) in step:
            found[f"live / local, {teachers} teachers"] = (
                step[way, teachers] / step["local", teachers]
            )
        if way == "record" and ("naive", teachers) in step and ("replay", teachers) in step:
            ten = step[way, teachers] + 9 * step["replay", teachers]
            found[f"10 epochs, the first recorded / naive, {teachers} teachers"] = ten / (
                10 * step["naive", teachers]
            )
    if figures["workload"] == "latency":
        floor = max(figures["teacher_ms"], plain + 5)
        live = {teachers: value for (way, teachers), value in step.items() if way == "live"}
        for teachers, value in live.items():
            found[f"step / max(teacher, student + 5 ms), {teachers} teachers"] = value / floor
        if 4 in live:
            found[f"step at {max(live)} teachers / at 4"] = live[max(live)] / live[4]
    return found


def render(figures: dict[str, Any], console: Console) -> None:
    """The table of one workload."""
    if figures["workload"] == GPU:
        render_gpu(figures, console)
        return
    if figures["workload"] == DATA:
        _render_data(figures, console)
        return
    if figures["workload"] == SEARCH:
        _render_search(figures, console)
        return
    if figures["workload"] == PLAN:
        render_plan(figures, console)
        return
    console.print(
        f"\n{figures['workload']}: batches of {figures['batch_size']}, {figures['steps']} steps an "
        f"epoch, median (smallest … largest) of {len(figures['cells'][0]['seconds'])} epochs",
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Way", "Teachers", "ms a step", "× plain", "Memory, MB"):
        table.add_column(name, justify="left" if name == "Way" else "right", no_wrap=True)
    for row in summary(figures):
        table.add_row(
            row["way"],
            str(row["teachers"] or "-"),
            words(row["step_ms"], 0 if row["step_ms"]["median"] >= 100 else 1),
            words(row["ratio"], 2),
            f"{row['anonymous_bytes'] / 1e6:.0f}",
        )
    console.print(table)
    for name, value in conclusions(figures).items():
        console.print(f"{name}: {value:.3f}")
    if memory := figures.get("replay_memory"):
        sizes = ", ".join(f"{size / 1e6:.0f} MB at {m} teachers" for m, size in memory)
        console.print(f"memory of a process that only replays: {sizes}")
    if "question_bytes" in figures:
        console.print(
            f"bytes of a step: {figures['question_bytes']} a process asked (ids, look-ahead, "
            f"student's logits), {figures['reply_bytes']} a teacher (its gradient)",
        )
    if "record_bytes" in figures:
        console.print(
            f"bytes on disk for a sample, view and teacher: {figures['record_bytes']:.1f} "
            f"({figures['record_bytes_computed']} without the file's head)",
        )


def data_summary(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a set of pictures: how long opening takes, and pictures a second.

    Args:
        figures: as `measure_data` returns them.
    """
    return [
        {
            "samples": cell["samples"],
            "open_seconds": cell["open_seconds"],
            "prepared_a_second": cell["samples"] / cell["prepare_seconds"],
            "read_a_second": spread([cell["read"] / seconds for seconds in cell["read_seconds"]]),
            "bytes": cell["bytes"],
            "anonymous_bytes": cell["anonymous_bytes"],
            "grown_bytes": cell["anonymous_bytes"] - cell["idle_bytes"],
        }
        for cell in figures["cells"]
    ]


def _render_data(figures: dict[str, Any], console: Console) -> None:
    side = figures["side"]
    console.print(
        f"\ndata: JPEGs inside Parquet, {side} × {side} pixels once they are prepared, read in "
        f"random batches of {figures['batch_size']}; memory is the peak of the process, without "
        "mapped files",
        soft_wrap=True,
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    headers = (
        "Pictures",
        "Open, s",
        "Prepared / s",
        "Read / s",
        "Disk, MB",
        "Memory, MB",
        "Growth",
    )
    for name in headers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in data_summary(figures):
        table.add_row(
            f"{row['samples']:,}",
            f"{row['open_seconds']:.2f}",
            f"{row['prepared_a_second']:,.0f}",
            f"{row['read_a_second']['median']:,.0f}",
            f"{row['bytes'] / 1e6:.0f}",
            f"{row['anonymous_bytes'] / 1e6:.0f}",
            f"{row['grown_bytes'] / 1e6:.0f}",
        )
    console.print(table)
    for name, value in conclusions(figures).items():
        console.print(f"{name}: {value:.2f}")


def _render_search(figures: dict[str, Any], console: Console) -> None:
    console.print(
        f"\nsearch: {figures['trials']} trials of {figures['epochs']} epochs, none stopped early, "
        f"{figures['teachers']} recorded teachers, median (smallest … largest) of "
        f"{len(figures['cells'][0]['seconds'])} searches",
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Way", "seconds", "× plain"):
        table.add_column(name, justify="left" if name == "Way" else "right", no_wrap=True)
    for row in search_summary(figures):
        table.add_row(row["way"], words(row["seconds"], 1), words(row["ratio"], 2))
    console.print(table)
