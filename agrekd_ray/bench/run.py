"""The driver of `agrekd bench`: teachers, fleets and one Ray Train worker for each workload."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.config import LoggingConfig
from rich.console import Console

from agrekd_ray.bench.data import measure_data
from agrekd_ray.bench.gpu import measure_gpu
from agrekd_ray.bench.measure import Setting, measure, progress, replay_memory
from agrekd_ray.bench.plan import measure_plan
from agrekd_ray.bench.search import measure_search
from agrekd_ray.bench.workloads import DATA, GPU, PLAN, SEARCH, Workload, workloads
from agrekd_ray.cluster.channel import plain_error
from agrekd_ray.cluster.events import Emit
from agrekd_ray.cluster.session import RaySession
from agrekd_ray.data import DataSettings
from agrekd_ray.experiment.display import Display
from agrekd_ray.fleet.fleet import Fleet
from agrekd_ray.logits import OutputSettings
from agrekd_ray.student.room import GroupTrainer


def run_bench(
    names: Sequence[str], repeats: int, quick: bool, console: Console
) -> list[dict[str, Any]]:
    """Measure workloads.

    Args:
        names: of the workloads.
        repeats: epochs of each cell that count.
        quick: the smaller workloads.
        console: for progress.

    Returns:
        The figures of each workload, as `measure` writes them.

    Raises:
        AgrekdError: a part of it failed.
    """
    known = workloads(quick)
    with Display(console) as display:
        session = RaySession(None, 2, display.note)
        try:
            others = {
                SEARCH: lambda: measure_search(repeats, display),
                DATA: lambda: measure_data(repeats, quick, display),
                GPU: lambda: measure_gpu(repeats, quick, session, display),
                PLAN: lambda: measure_plan(
                    quick, lambda workload: _measured(workload, repeats, session, display)
                ),
            }
            return [
                others[name]()
                if name in others
                else _measured(known[name], repeats, session, display)
                for name in names
            ]
        finally:
            session.close()


def _measured(
    workload: Workload, repeats: int, session: RaySession, display: Display
) -> dict[str, Any]:
    total = len(workload.cells) * (repeats + 1)
    display.stage(workload.name, total, "epochs")
    with tempfile.TemporaryDirectory(prefix="agrekd-bench-") as folder:
        place = Path(folder)
        data = workload.data(place / "data")
        checkpoints = workload.make_teachers(place / "teachers", data)
        outputs = OutputSettings(store=place / "outputs")
        with progress(display) as emit:
            with (
                _fleet(workload, "live", checkpoints, data, emit) as live,
                _fleet(workload, "record", checkpoints, data, emit, outputs) as recording,
            ):
                setting = Setting(
                    workload,
                    data,
                    checkpoints,
                    live.source() if live else None,
                    recording.source() if recording else None,
                    outputs,
                    repeats,
                    place / "figures.json",
                    emit,
                    len(live.actors) if live else 1,
                )
                _train(setting, place)
            memory = _replay_memory(setting)
        return {**json.loads(setting.result.read_text(encoding="utf-8")), "replay_memory": memory}


def _replay_memory(setting: Setting) -> list[tuple[int, int]]:
    """Teachers, and bytes of a process of its own that replays them, for the smallest and most."""
    counts = sorted(cell.teachers for cell in setting.workload.cells if cell.way == "replay")
    task = ray.remote(max_calls=1, num_cpus=0)(replay_memory)
    alone = replace(setting, live=None, recording=None)
    return [(m, ray.get(task.remote(alone, m))) for m in dict.fromkeys((*counts[:1], *counts[-1:]))]


@contextmanager
def _fleet(
    workload: Workload,
    way: str,
    checkpoints: dict[str, Path],
    data: DataSettings,
    emit: Emit,
    outputs: OutputSettings | None = None,
) -> Iterator[Fleet | None]:
    """A fleet for the cells that are taught that way; None where there are none."""
    counts = [cell.teachers for cell in workload.cells if cell.way == way]
    if not counts:
        yield None
        return
    hosted = len(checkpoints) if outputs else max(counts)  # a record is made of all
    fleet = Fleet(
        {name: checkpoints[name] for name in list(checkpoints)[:hosted]},
        data,
        workload.fleet.model_copy(update={"cpus": 0.1, "gpus": 0.0}),
        emit,
        outputs=outputs,
        askers=len(counts),  # so many students, in turn
    )
    try:
        yield fleet
    finally:
        fleet.close()


def _train(setting: Setting, place: Path) -> None:
    trainer = GroupTrainer(
        measure,
        train_loop_config={"setting": setting},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="bench",
            storage_path=str(place / "train"),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        failures: Sequence[Any] = list(getattr(error, "worker_failures", {}).values())
        raise plain_error(failures[0] if failures else error, "the benchmark") from None
