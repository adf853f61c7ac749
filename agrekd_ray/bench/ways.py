"""Measures the cells of workloads: ways of teaching a student, and of having teachers answer."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agrekd_ray.bench.by_hand import NaiveTrainer, ResidentLoop, forward_passes
from agrekd_ray.bench.harness import PREFIX, anonymous_bytes, in_own_process, in_turn
from agrekd_ray.bench.workloads import Cell, Way, Workload
from agrekd_ray.capacity.measure import CPU, TEMPERATURE, make_teachers
from agrekd_ray.cluster.events import Emit
from agrekd_ray.data import TRAIN, Arrays, Dataset, Prepared, open_dataset
from agrekd_ray.devices import device_of
from agrekd_ray.distillation import (
    DistillationSpec,
    GradientRequest,
    LocalTeachers,
    Replay,
    Source,
    TeacherHost,
)
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.monitor import show_progress
from agrekd_ray.fleet.fleet import Fleet
from agrekd_ray.logits import LogitsCache, OutputSettings
from agrekd_ray.models import Model, build, load
from agrekd_ray.numerics import numbers_on
from agrekd_ray.settings import Training
from agrekd_ray.student import Student, StudentSpec
from agrekd_ray.training import Labels, Trainer

NEVER_ASKED = Model(name="cnn", args={"width": 4})
"""Teachers of whom there are records alone."""


def measure(workloads: Sequence[Workload], repeats: int, display: Display) -> dict[str, Any]:
    """Measure every cell; needs a Ray session.

    Args:
        workloads: that differ in their number of classes.
        repeats: epochs of each cell that count; one more, not counted, warms up.
        display: for progress, and for what a fleet has to say.

    Returns:
        The figures, with those of each cell (see `in_turn`).

    Raises:
        AgrekdError: a part of it failed.
    """
    figures: dict[str, Any] = {}
    cells: list[dict[str, Any]] = []
    emit = partial(show_progress, display)
    for work in workloads:
        display.stage(work.name, len(work.cells) * (repeats + 1), "epochs")
        device = torch.device(device_of(work.gpus, "gpu"))
        with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, ExitStack() as stack:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            ways = Ways(work, Path(folder), repeats)
            fleets = {
                way: stack.enter_context(closing(ways.fleet(way, emit)))
                for way in ("live", "record")
                if work.counts(way)
            }
            for together in [work.cells] if work.in_turn else [(cell,) for cell in work.cells]:
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(device)
                epochs = {c: ways.epoch(c, device, fleets.get(c.way)) for c in together}
                rows = in_turn(epochs, repeats, display, device)
                cells += [{**row, "classes": work.classes} for row in rows]
                del epochs
            figures = ways.figures(device)
    return {**figures, "cells": cells}


class Ways:
    """All that the cells of a workload need, but for fleets; may travel to any process.

    Args:
        workload: what is measured.
        folder: for the data set, the teachers and what they say.
        repeats: epochs of each cell that count.

    Attributes:
        data: settings of the data set.
        checkpoints: folders of the teachers, by name; those who are asked come first.
    """

    def __init__(self, workload: Workload, folder: Path, repeats: int) -> None:
        self.workload, self.folder, self.repeats = workload, folder, repeats
        self.data = workload.data(folder)
        dataset = open_dataset(self.data)
        if isinstance(dataset, Prepared):
            dataset.prepare()
        most = max(cell.teachers for cell in workload.cells)
        asked = max(c.teachers for c in workload.cells if c.way not in ("replay", "cache"))
        self.checkpoints = make_teachers(folder / "recorded", dataset, NEVER_ASKED, most)
        self.checkpoints |= make_teachers(folder / "asked", dataset, workload.teacher, asked)
        self._outputs = OutputSettings(store=folder / "outputs")

    def fleet(self, way: Way, emit: Emit) -> Fleet:
        """Start the fleet for the cells that are taught that way, `live` or `record`."""
        counts = self.workload.counts(way)
        return Fleet(
            self._teachers(max(counts)),
            self.data,
            self.workload.fleet.model_copy(update={"cpus": 0.1, "gpus": self.workload.gpus}),
            emit,
            outputs=self._outputs if way == "record" else None,
            askers=len(counts),  # so many students, in turn
        )

    def epoch(
        self, cell: Cell, device: torch.device = CPU, fleet: Fleet | None = None
    ) -> Callable[[], int]:
        """What is timed: a function that computes some pictures, and says how many."""
        dataset, work = open_dataset(self.data), self.workload
        ids = dataset.splits[TRAIN]
        steps = max(1, len(ids) // cell.batch_size)
        cores = os.cpu_count() or 1
        threads = work.threads or max(1, cores - len(fleet.actors) if fleet else cores)
        torch.set_num_threads(threads)
        if cell.way in ("arithmetic alone", "hand-written"):
            assert isinstance(dataset, Arrays)
            model = build(work.student, dataset.shape, len(dataset.classes), 0)
            rows = dataset.arrays(None)[0][ids], dataset.labels(ids)
            loop = ResidentLoop(model, *rows, work.shown, cell.batch_size, device)
            return loop.epoch if cell.way == "hand-written" else lambda: loop.arithmetic(steps)
        if cell.way == "teacher's forward":
            model = load(self.checkpoints["teacher-0"], device)[0]
            return lambda: forward_passes(model, dataset.shape, cell.batch_size, steps, device)
        if cell.way == "recording":
            return self._recording(cell, device)
        trainer, source = self._taught(cell, dataset, device, fleet)

        def epoch() -> int:
            torch.set_num_threads(threads)
            finished = trainer.epoch()
            if source is not None:  # with the look-ahead of the next epoch, as in a long run
                source.complete(finished.epoch)
            return steps * cell.batch_size

        return epoch

    def _recording(self, cell: Cell, device: torch.device) -> Callable[[], int]:
        """A host that records a new view every time."""
        views = self.workload.views.model_copy(update={"count": None})
        dataset = open_dataset(self.data.model_copy(update={"views": views}))
        teachers = self._teachers(cell.teachers)
        cache = LogitsCache(self._outputs, teachers, dataset, numbers_on("auto", device))
        host = TeacherHost(teachers, dataset, device=device, outputs=cache)
        epochs = itertools.count()
        return lambda: cache.count - host.complete(next(epochs))

    def _taught(
        self, cell: Cell, dataset: Dataset, device: torch.device, fleet: Fleet | None
    ) -> tuple[Trainer, Source | None]:
        """A student that is taught as the cell says, and where its answers come from."""
        student, teachers = self.workload.student, self._teachers(cell.teachers)
        training = Training(
            epochs=self.repeats + 2,
            batch_size=cell.batch_size,
            learning_rate=1e-3,
            compile=cell.compile,
        )
        source: Source | None = fleet.source() if fleet is not None else None
        match cell.way:
            case "naive":
                model = build(student, dataset.shape, len(dataset.classes), 0)
                naive = NaiveTrainer(model, dataset, training, Labels(), seed=0)
                naive.teachers = [load(folder)[0] for folder in teachers.values()]
                naive.temperature = TEMPERATURE
                return naive, None
            case "local":
                source = LocalTeachers(TeacherHost(teachers, dataset))
            case "record":
                source = Replay(self._outputs, teachers, "float32", source)(dataset)
            case "replay" | "cache":
                source = self.random_records(teachers)(dataset)
        taught = Student(
            StudentSpec(cell.way, 0, student, training, _agre_kd(teachers) if source else None),
            dataset,
            source,
            device=device,
            look_ahead=self.workload.fleet.look_ahead if fleet is not None else 0,
        )
        return taught.trainer, source

    def random_records(self, teachers: Mapping[str, Path]) -> Replay:
        """Records of random logits, for costs do not depend on them; written where there are none.

        Args:
            teachers: folders of the teachers, by name.

        Returns:
            What replays them, in all views that epochs show.
        """
        dataset, settings = open_dataset(self.data), OutputSettings(store=self.folder / "random")
        cache = LogitsCache(settings, teachers, dataset, "float32")
        shape = (cache.count, len(dataset.classes))
        views = {dataset.view(epoch) for epoch in range(self.repeats + 2)}
        for number, (name, view) in enumerate(cache.missing(views)):
            cache.write(name, view, np.random.default_rng(number).normal(0, 3, shape).astype("f4"))
        return Replay(settings, teachers, "float32", None)

    def figures(self, device: torch.device) -> dict[str, Any]:
        """What is said of all cells; the batch is that of the first.

        Beside what they have in common these are bytes that travel in a step, bytes that a record
        takes, and memory of processes that only replay.
        """
        work, first = self.workload, self._teachers(1)
        dataset = open_dataset(self.data)
        ids = dataset.splits[TRAIN][: work.batch_size]
        logits = torch.zeros(len(ids), len(dataset.classes)).numpy()
        ahead = ((0, ids),) * work.fleet.look_ahead
        request = GradientRequest(_agre_kd(first), 0, 0, ids, logits, ahead)
        replayed = sorted(work.counts("replay"))
        figures: dict[str, Any] = {
            "workload": work.name,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "student": work.student.name,
            "teacher": work.teacher.name,
            "teacher_ms": work.teacher.args.get("milliseconds", 0),
            "shown": work.shown,
            "kept": work.kept,
            "steps": work.steps,
            "batch_size": work.batch_size,
            "request_bytes": len(pickle.dumps(request)),
            "reply_bytes": logits.nbytes,
            "replay_memory": [
                (teachers, in_own_process(_replay_memory, self, teachers))
                for teachers in dict.fromkeys((*replayed[:1], *replayed[-1:]))
            ],
        }
        if work.counts("record"):
            cache = LogitsCache(self._outputs, first, dataset, "float32")
            ((name, key),) = cache.keys.items()
            figures["record_bytes"] = cache.path(name, 0).stat().st_size / cache.count
            figures["record_bytes_computed"] = key.form.row_bytes
        return figures

    def _teachers(self, count: int) -> dict[str, Path]:
        return dict(list(self.checkpoints.items())[:count])


def _agre_kd(teachers: dict[str, Path]) -> DistillationSpec:
    """How they teach; the first is the biased model."""
    names = tuple(teachers)
    return DistillationSpec("agre_kd", names, names[0], TEMPERATURE)


def _replay_memory(ways: Ways, teachers: int) -> int:
    """Bytes of memory of a process that does nothing but train a student from records."""
    epoch = ways.epoch(Cell("replay", teachers, ways.workload.batch_size))
    for _ in range(2):
        epoch()
    return anonymous_bytes()
