"""`agrekd bench`: checks what is asked for, measures, shows, and writes the figures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from agrekd_ray.bench.report import report_on
from agrekd_ray.bench.workloads import GPU, GPU_SMALL, workloads
from agrekd_ray.cluster.environment import prepare
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.display import Display


def bench(
    names: Sequence[str],
    repeats: int,
    quick: bool,
    json_file: Path | None,
    console: Console,
    **sizes: int | None,
) -> None:
    """Measure workloads, and show and write what was measured.

    Args:
        names: of the workloads; none for all but `scale`.
        repeats: epochs of each way that count.
        quick: the smaller workloads.
        json_file: for the figures; None writes none.
        console: for progress and tables.
        sizes: of `scale`: `teachers`, `classes` and `rows`; None for its own.

    Raises:
        RunError: an unknown workload, a file that cannot be written, or a part that failed.
    """
    by_steps = workloads(quick)
    usual = [*by_steps, "data", "gpu", "plan", *([] if quick else ["search"])]
    known = [*usual, "scale"]
    if wrong := [name for name in names if name not in known]:
        slow = [name for name in wrong if quick and name in ("search", "resnet")]
        hint = f" ({slow[0]} is not quick)" if slow else ""
        raise RunError(f"unknown workload {wrong[0]!r}{hint}; known: {', '.join(known)}.")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise RunError(f"{json_file}: its folder does not exist; nothing was measured.")
    prepare(starts_cluster=True)
    # These import Ray, which reads the environment.
    import ray

    from agrekd_ray.bench.data import measure_data
    from agrekd_ray.bench.plan import measure_plan
    from agrekd_ray.bench.scale import QUICK, Scale, measure_scale
    from agrekd_ray.bench.search import measure_search
    from agrekd_ray.bench.ways import measure
    from agrekd_ray.cluster.session import RaySession

    def measure_gpu(display: Display) -> dict[str, Any]:
        gpus = 0.4 if ray.cluster_resources().get("GPU", 0) > 0 else 0
        most = replace(GPU if gpus and not quick else GPU_SMALL, gpus=gpus)
        return measure([replace(most, classes=2), most], repeats, display)

    given = {name: count for name, count in sizes.items() if count is not None}
    scale = replace(QUICK if quick else Scale(), **given)  # type: ignore[arg-type]
    measures: dict[str, Callable[[Display], dict[str, Any]]] = {
        **{name: partial(measure, [workload], repeats) for name, workload in by_steps.items()},
        "data": partial(measure_data, repeats, quick),
        "gpu": measure_gpu,
        "plan": partial(measure_plan, repeats, quick),
        "search": partial(measure_search, repeats),
        "scale": partial(measure_scale, scale, repeats, quick),
    }
    with Display(console) as display, closing(RaySession(None, 2, display.note)):
        measured = [measures[name](display) for name in names or usual]
    reports = [report_on(figures) for figures in measured]
    for report in reports:
        report.show(console)
    if json_file is not None:
        content = {
            "machine": {"cores": os.cpu_count(), "platform": platform.platform()},
            "versions": {name: version(name) for name in ("torch", "ray")},
            "workloads": [
                {**figures, "summary": report.summary, "conclusions": report.conclusions}
                for figures, report in zip(measured, reports, strict=True)
            ],
        }
        json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
