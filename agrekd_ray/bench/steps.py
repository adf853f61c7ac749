"""Measures the ways of teaching in turn, in one process, so that all share its weather."""

from __future__ import annotations

import os
import pickle
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from agrekd_ray.bench.harness import (
    PREFIX,
    TEMPERATURE,
    agre_kd,
    anonymous_bytes,
    in_own_process,
    progress,
)
from agrekd_ray.bench.naive import NaiveTrainer
from agrekd_ray.bench.workloads import LOOK_AHEAD, Cell, Workload
from agrekd_ray.capacity.measure import make_teachers
from agrekd_ray.cluster.events import Emit, Notice
from agrekd_ray.data import TRAIN, Dataset, DataSettings, open_dataset
from agrekd_ray.distillation import (
    Distilled,
    GradientRequest,
    LocalTeachers,
    Replay,
    Source,
)
from agrekd_ray.distillation.host import TeacherHost
from agrekd_ray.experiment.display import Display
from agrekd_ray.fleet.fleet import Fleet
from agrekd_ray.logits import LogitsCache, OutputSettings
from agrekd_ray.models import build, load
from agrekd_ray.settings import Training
from agrekd_ray.training import Guidance, Labels, Trainer


def measure_steps(workload: Workload, repeats: int, display: Display) -> dict[str, Any]:
    """Measure one epoch of every cell in turn, as often as asked; needs a Ray session.

    Args:
        workload: what is measured.
        repeats: epochs of each cell that count; one more, not counted, warms up.
        display: the progress line.

    Raises:
        AgrekdError: a part of it failed.
    """
    display.stage(workload.name, len(workload.cells) * (repeats + 1), "epochs")
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        place = Path(folder)
        data = workload.data(place / "data")
        dataset, count = open_dataset(data), workload.most
        checkpoints = make_teachers(
            place / "teachers", dataset, workload.teacher, count, workload.backbones
        )
        outputs = OutputSettings(store=place / "outputs")
        ways = Ways(workload, data, checkpoints, outputs, repeats)
        with progress(display) as emit, ExitStack() as stack:
            fleets = {
                way: stack.enter_context(closing(ways.fleet(way, emit)))
                for way in ("live", "record")
                if ways.counts(way)
            }
            with_fleets = replace(
                ways,
                fleets={way: fleet.source() for way, fleet in fleets.items()},
                actors=len(fleets["live"].actors) if "live" in fleets else 1,
            )
            figures = in_own_process(measured, with_fleets, emit, cpus=1)
        replayed = sorted(ways.counts("replay"))
        fewest_and_most = dict.fromkeys((*replayed[:1], *replayed[-1:]))
        memory = [(count, in_own_process(replay_memory, ways, count)) for count in fewest_and_most]
    return {**figures, "replay_memory": memory}


@dataclass
class Ways:
    """All that students of a workload are taught with; may travel to any process.

    Attributes:
        workload: what is measured.
        data: settings of the data set.
        checkpoints: folders of the teachers, by name.
        outputs: where logits are recorded.
        repeats: epochs of each cell that count.
        fleets: the one that is asked `live`, and the one that does `record`; where cells need them.
        actors: processes of a fleet, which have a core each.
    """

    workload: Workload
    data: DataSettings
    checkpoints: Mapping[str, Path]
    outputs: OutputSettings
    repeats: int
    fleets: Mapping[str, Source] = field(default_factory=dict)
    actors: int = 1

    def counts(self, way: str) -> list[int]:
        """Numbers of teachers in the cells that are taught that way."""
        return [cell.teachers for cell in self.workload.cells if cell.way == way]

    def fleet(self, way: str, emit: Emit) -> Fleet:
        """Start the fleet for the cells that are taught that way, `live` or `record`."""
        records, counts = way == "record", self.counts(way)
        return Fleet(
            self._some(len(self.checkpoints) if records else max(counts)),  # records are of all
            self.data,
            self.workload.fleet.model_copy(update={"cpus": 0.1, "gpus": 0.0}),
            emit,
            outputs=self.outputs if records else None,
            askers=len(counts),  # so many students, in turn
        )

    def threads(self, cell: Cell) -> int:
        """All cores, or what the fleet leaves."""
        if self.workload.threads is not None:
            return self.workload.threads
        cores = os.cpu_count() or 1
        return max(1, cores - self.actors) if cell.way in self.fleets else cores

    def trainer(self, cell: Cell) -> tuple[Trainer, Source | None]:
        """A student, taught as the cell says, and where its answers come from."""
        work, data = self.workload, self._dataset
        torch.set_num_threads(self.threads(cell))
        training = Training(epochs=self.repeats + 2, batch_size=work.batch_size, learning_rate=1e-3)
        model = build(work.student, data.shape, len(data.classes), 0)
        teachers = self._some(cell.teachers)
        if cell.way == "naive":
            naive = NaiveTrainer(model, data, training, Labels(), seed=0)
            naive.teachers = [load(folder)[0] for folder in teachers.values()]
            naive.temperature = TEMPERATURE
            return naive, None
        source = self._source(cell)
        guidance: Guidance = Labels()
        if source is not None:
            guidance = Distilled(agre_kd(tuple(teachers)), source, data)
        ahead = work.look_ahead if cell.way in self.fleets else 0
        return Trainer(model, data, training, guidance, seed=0, look_ahead=ahead), source

    def sizes(self) -> dict[str, Any]:
        """Bytes that travel in a step, and that a record takes."""
        first = next(iter(self.checkpoints))
        ids = self._dataset.splits[TRAIN][: self.workload.batch_size]
        logits = torch.zeros(len(ids), len(self._dataset.classes)).numpy()
        ahead = tuple((0, ids) for _ in range(LOOK_AHEAD))
        request = GradientRequest(agre_kd((first,)), 0, 0, ids, logits, ahead)
        sizes: dict[str, Any] = {
            "question_bytes": len(pickle.dumps(request)),
            "reply_bytes": logits.nbytes,
        }
        if "record" in self.fleets:
            cache = LogitsCache(self.outputs, self.checkpoints, self._dataset, "float32")
            sizes["record_bytes"] = cache.path(first, 0).stat().st_size / cache.count
            sizes["record_bytes_computed"] = cache.keys[first].row_bytes
        return sizes

    def _source(self, cell: Cell) -> Source | None:
        if cell.way == "local":
            return LocalTeachers(self._host)
        if cell.way in ("record", "replay"):
            fleet = self.fleets.get(cell.way)
            return Replay(self.outputs, self.checkpoints, "float32", fleet)(self._dataset)
        return self.fleets.get(cell.way)

    @cached_property
    def _host(self) -> TeacherHost:
        return TeacherHost(self._some(max(self.counts("local"))), self._dataset)

    @property
    def _dataset(self) -> Dataset:
        return open_dataset(self.data)

    def _some(self, count: int) -> dict[str, Path]:
        return dict(list(self.checkpoints.items())[:count])


def measured(ways: Ways, emit: Emit) -> dict[str, Any]:
    """The figures of all cells; runs in a process of its own.

    Args:
        ways: of teaching, with the fleets that they need.
        emit: is told of every epoch.
    """
    work = ways.workload
    trainers = {cell: ways.trainer(cell) for cell in work.cells}
    cells = [{**asdict(cell), "seconds": [], "anonymous_bytes": 0} for cell in work.cells]
    for repeat in range(ways.repeats + 1):
        for cell, figures in zip(work.cells, cells, strict=True):
            torch.set_num_threads(ways.threads(cell))
            start = time.perf_counter()
            _epoch(*trainers[cell], repeat)
            if repeat:
                figures["seconds"].append(time.perf_counter() - start)
            figures["anonymous_bytes"] = anonymous_bytes()
            emit(Notice(f"{cell.way} {cell.teachers}"))
    return {
        "workload": work.name,
        "steps": work.steps,
        "batch_size": work.batch_size,
        "cells": cells,
        "teacher_ms": work.teacher.args.get("milliseconds", 0),
        **ways.sizes(),
    }


def replay_memory(ways: Ways, teachers: int) -> int:
    """Memory, in bytes, of a process that does nothing but train a student from records.

    Args:
        ways: of teaching; all is recorded.
        teachers: whose records are replayed.
    """
    trainer, source = ways.trainer(Cell("replay", teachers))
    for epoch in range(2):
        _epoch(trainer, source, epoch)
    return anonymous_bytes()


def _epoch(trainer: Trainer, source: Source | None, number: int) -> None:
    trainer.epoch()
    if source is not None:  # with the look-ahead of the next epoch, as in a long run
        source.complete(number)
