"""Measures the ways of teaching in turn, in one Ray Train worker, so that all share its weather."""

from __future__ import annotations

import json
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch

from agrekd_ray.bench.naive import NaiveTrainer
from agrekd_ray.bench.workloads import LOOK_AHEAD, Cell, Workload
from agrekd_ray.cluster.channel import Channel
from agrekd_ray.cluster.events import Emit, Event, Notice
from agrekd_ray.data import TRAIN, Dataset, DataSettings, open_dataset
from agrekd_ray.distillation import (
    DistillationSpec,
    Distilled,
    GradientRequest,
    LocalTeachers,
    Replay,
    Source,
)
from agrekd_ray.distillation.host import TeacherHost
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.listener import Listener
from agrekd_ray.logits import LogitsCache, OutputSettings
from agrekd_ray.models import build, load
from agrekd_ray.settings import Training
from agrekd_ray.training import Guidance, Labels, Trainer

TEMPERATURE = 4.0
VALUE = TypeVar("VALUE")


@dataclass(frozen=True)
class Setting:
    """What the worker is told.

    Attributes:
        workload: what is measured.
        data: settings of the data set.
        checkpoints: folders of the teachers, by name.
        live: the fleet that records nothing, where a cell needs it.
        recording: the fleet that records.
        outputs: where it records.
        repeats: epochs of each cell that count; one more, not counted, warms up.
        result: file for the figures.
        emit: tells the driver.
        actors: processes of a fleet, which have a core each.
    """

    workload: Workload
    data: DataSettings
    checkpoints: Mapping[str, Path]
    live: Source | None
    recording: Source | None
    outputs: OutputSettings
    repeats: int
    result: Path
    emit: Emit
    actors: int


def measure(config: dict[str, Any]) -> None:
    """The worker's loop: one epoch of every cell in turn, as often as asked."""
    setting: Setting = config["setting"]
    work = setting.workload
    room = _Room(setting)
    cells = {cell: room.trainer(cell) for cell in work.cells}
    seconds: dict[Cell, list[float]] = {cell: [] for cell in work.cells}
    memory: dict[Cell, int] = {}
    for repeat in range(setting.repeats + 1):
        for cell, (trainer, source) in cells.items():
            torch.set_num_threads(room.threads(cell))
            start = time.perf_counter()
            trainer.epoch()
            if source is not None:  # with the look-ahead of the next epoch, as in a long run
                source.complete(repeat)
            if repeat:
                seconds[cell].append(time.perf_counter() - start)
            memory[cell] = anonymous_bytes()
            setting.emit(Notice(f"{cell.way} {cell.teachers}"))
    figures = {
        "workload": work.name,
        "steps": work.steps,
        "batch_size": work.batch_size,
        "cells": [
            {**asdict(cell), "seconds": seconds[cell], "anonymous_bytes": memory[cell]}
            for cell in work.cells
        ],
        "teacher_ms": work.teacher.args.get("milliseconds", 0),
        **room.sizes(),
    }
    setting.result.write_text(json.dumps(figures), encoding="utf-8")


def replay_memory(setting: Setting, teachers: int) -> int:
    """Memory, in bytes, of a process that does nothing but train a student from records.

    Args:
        setting: as for `measure`, which has left the records.
        teachers: whose records are replayed.
    """
    room = _Room(setting)
    cell = Cell("replay", teachers)
    torch.set_num_threads(room.threads(cell))
    trainer, source = room.trainer(cell)
    for epoch in range(2):
        trainer.epoch()
        if source is not None:
            source.complete(epoch)
    return anonymous_bytes()


class _Room:
    """The worker's data, teachers and students."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._samples: Dataset = open_dataset(setting.data)
        self._names = tuple(setting.checkpoints)
        self._host: TeacherHost | None = None

    def threads(self, cell: Cell) -> int:
        """All cores, or what the fleet leaves."""
        if self._setting.workload.threads is not None:
            return self._setting.workload.threads
        cores = os.cpu_count() or 1
        return max(1, cores - self._setting.actors) if cell.way in ("live", "record") else cores

    def trainer(self, cell: Cell) -> tuple[Trainer, Source | None]:
        """A student, taught as the cell says, and where its answers come from."""
        work, samples = self._setting.workload, self._samples
        torch.set_num_threads(self.threads(cell))
        training = Training(
            epochs=self._setting.repeats + 2, batch_size=work.batch_size, learning_rate=1e-3
        )
        model = build(work.student, samples.shape, len(samples.classes), 0)
        names = self._names[: cell.teachers]
        if cell.way == "naive":
            teachers = [load(self._setting.checkpoints[name])[0] for name in names]
            naive = NaiveTrainer(model, samples, training, Labels(), seed=0)
            naive.teachers, naive.temperature = teachers, TEMPERATURE
            return naive, None
        source = self._source(cell)
        guidance: Guidance = Labels()
        if source is not None:
            guidance = Distilled(self._spec(names), source, samples)
        ahead = work.look_ahead if cell.way in ("live", "record") else 0
        return Trainer(model, samples, training, guidance, seed=0, look_ahead=ahead), source

    def sizes(self) -> dict[str, Any]:
        """Bytes that travel in a step, and that a record takes."""
        setting = self._setting
        if not setting.checkpoints:
            return {}
        ids = self._samples.splits[TRAIN][: setting.workload.batch_size]
        logits = torch.zeros(len(ids), len(self._samples.classes)).numpy()
        ahead = tuple((0, ids) for _ in range(LOOK_AHEAD))
        question = GradientRequest(self._spec(self._names[:1]), 0, 0, ids, logits, ahead)
        found: dict[str, Any] = {
            "question_bytes": len(pickle.dumps(question)),
            "reply_bytes": logits.nbytes,
        }
        if setting.recording is not None:
            outputs = LogitsCache(setting.outputs, setting.checkpoints, self._samples, "float32")
            size = outputs.path(self._names[0], 0).stat().st_size
            found["record_bytes"] = size / outputs.count
            found["record_bytes_computed"] = outputs.keys[self._names[0]].row_bytes
        return found

    def _spec(self, names: tuple[str, ...]) -> DistillationSpec:
        return DistillationSpec("agre_kd", names, names[0], TEMPERATURE)

    def _source(self, cell: Cell) -> Source | None:
        setting = self._setting
        if cell.way == "local":
            if self._host is None:
                most = max(c.teachers for c in setting.workload.cells if c.way == "local")
                checkpoints = {name: setting.checkpoints[name] for name in self._names[:most]}
                self._host = TeacherHost(checkpoints, self._samples)
            return LocalTeachers(self._host)
        if cell.way == "live":
            return setting.live
        if cell.way in ("record", "replay"):
            fleet = setting.recording if cell.way == "record" else None
            return Replay(setting.outputs, setting.checkpoints, "float32", fleet)(self._samples)
        return None


@contextmanager
def progress(display: Display) -> Iterator[Emit]:
    """While the block runs, a notice from any process moves the progress line on."""
    channel = Channel()

    def advance(event: Event) -> None:
        if isinstance(event, Notice):
            display.advance(event.text)

    try:
        with Listener(channel, [advance]):
            yield channel.emit
    finally:
        channel.close()


def anonymous_bytes() -> int:
    """Memory of this process that is not a mapped file; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


class Sampled(Generic[VALUE]):
    """Reads a value again and again in a thread while the block runs, once at least.

    Args:
        read: the value; None, where nothing can be read, ends it.
        pause: seconds between two readings.

    Attributes:
        values: that were read.
    """

    def __init__(self, read: Callable[[], VALUE | None], pause: float) -> None:
        self.values: list[VALUE] = []
        self._read, self._pause = read, pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while (value := self._read()) is not None:
            self.values.append(value)
            if self._over.wait(self._pause):
                return
