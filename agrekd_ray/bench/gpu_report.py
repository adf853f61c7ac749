"""The table of the workload `gpu`, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from agrekd_ray.bench.spread import spread, words
from agrekd_ray.bench.workloads import BY_HAND, FORWARD, RECORDING


def gpu_summary(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a cell: pictures a second, and the ratio to what it is held against.

    That is the loop written by hand, with the same batches and classes; for recording, the
    teacher's forward passes.

    Args:
        figures: as `measure_gpu` returns them.
    """
    rows = []
    rates = {_key(cell): _rates(cell)["median"] for cell in figures["cells"]}
    for cell in figures["cells"]:
        limit = FORWARD if cell["way"] in (FORWARD, RECORDING) else BY_HAND
        against = rates[limit, cell["batch_size"], cell["classes"], 0, "off"]
        rows.append(
            {
                **{name: cell[name] for name in _KEY},
                "images_a_second": _rates(cell),
                "against": limit,
                "ratio": _rates(cell)["median"] / against,
                "utilisation": cell["utilisation"],
                "bytes": cell["bytes"],
            }
        )
    return rows


def gpu_conclusions(figures: dict[str, Any]) -> dict[str, float]:
    """The ratios, by name."""
    found = {}
    for row in gpu_summary(figures):
        if row["way"] == row["against"]:
            continue
        parts = [f"B {row['batch_size']}", f"{row['classes']} classes"]
        parts += [f"{row['teachers']} teachers"] if row["teachers"] > 1 else []
        parts += [_compiled(row)] if row["compile"] != "off" else []
        found[f"{row['way']} / {row['against']}, {', '.join(parts)}"] = row["ratio"]
    return found


def render_gpu(figures: dict[str, Any], console: Console) -> None:
    """A table for each number of classes."""
    console.print(
        f"\ngpu: {figures['student']} on {figures['device']}, {figures['shown']} × "
        f"{figures['shown']} pixels out of {figures['kept']} × {figures['kept']}, flip and crop, "
        f"median (smallest … largest) of {len(figures['cells'][0]['seconds'])} epochs; teachers "
        f"who are recorded or answer live are {figures['teacher']}. × is held against the "
        f"hand-written loop, for recording against the teacher's forward passes. B samples a "
        "batch, M teachers, MB of memory at most",
        soft_wrap=True,
    )
    rows = gpu_summary(figures)
    for classes in dict.fromkeys(row["classes"] for row in rows):
        console.print(f"\n{classes:,} classes")
        console.print(_table([row for row in rows if row["classes"] == classes]))


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Way", "B", "M", "Images / s", "×", "GPU, %", "MB"):
        table.add_column(name, justify="left" if name == "Way" else "right", no_wrap=True)
    for row in rows:
        busy = row["utilisation"]
        table.add_row(
            row["way"] + (f", {_compiled(row)}" if row["compile"] != "off" else ""),
            str(row["batch_size"]),
            str(row["teachers"] or "-"),
            words(row["images_a_second"], 0),
            f"{row['ratio']:.2f}",
            "-" if busy is None else f"{busy:.0f}",
            f"{row['bytes'] / 1e6:,.0f}",
        )
    return table


_KEY = ("way", "batch_size", "classes", "teachers", "compile")


def _key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[name] for name in _KEY)


def _rates(cell: dict[str, Any]) -> dict[str, float]:
    return spread([cell["images"] / seconds for seconds in cell["seconds"]])


def _compiled(row: dict[str, Any]) -> str:
    return str(row["compile"]).replace("cuda_graphs", "CUDA graphs")
