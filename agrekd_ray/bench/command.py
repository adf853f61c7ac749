"""`agrekd bench`: checks what is asked for, measures, shows, and writes the figures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from agrekd_ray.bench.report import conclusions, render, summaries
from agrekd_ray.bench.workloads import DATA, GPU, PLAN, SEARCH, workloads
from agrekd_ray.cluster.environment import prepare
from agrekd_ray.errors import RunError


def bench(
    names: Sequence[str], repeats: int, quick: bool, json_file: Path | None, console: Console
) -> None:
    """Measure workloads, and show and write what was measured.

    Args:
        names: of the workloads; none for all.
        repeats: epochs of each way that count.
        quick: the smaller workloads.
        json_file: for the figures; None writes none.
        console: for progress and tables.

    Raises:
        RunError: an unknown workload, a file that cannot be written, or a part that failed.
    """
    known = [*workloads(quick), DATA, GPU, PLAN, *([] if quick else [SEARCH])]
    if wrong := [name for name in names if name not in known]:
        slow = [name for name in wrong if quick and name in (SEARCH, "resnet")]
        hint = f" ({slow[0]} is not quick)" if slow else ""
        raise RunError(f"unknown workload {wrong[0]!r}{hint}; known: {', '.join(known)}.")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise RunError(f"{json_file}: its folder does not exist; nothing was measured.")
    prepare(starts_cluster=True)
    from agrekd_ray.bench.run import run_bench  # imports Ray, which reads the environment

    figures = run_bench(list(names) or known, repeats, quick, console)
    for one in figures:
        render(one, console)
    if json_file is not None:
        machine = {"cores": os.cpu_count(), "platform": platform.platform()}
        versions = {name: version(name) for name in ("torch", "ray")}
        content = [
            {**one, "summary": summaries(one), "conclusions": conclusions(one)} for one in figures
        ]
        report = {"machine": machine, "versions": versions, "workloads": content}
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
