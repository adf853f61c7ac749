"""The workload `gpu`: how near students and recording come to what a device can multiply.

Every way is held against a loop written by hand on the same pictures (`bench.resident`), recording
against the teacher's forward passes alone. Without a GPU the same code runs on small pictures.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from agrekd_ray.bench.data import write_pictures
from agrekd_ray.bench.measure import TEMPERATURE, Sampled, anonymous_bytes, progress
from agrekd_ray.bench.resident import ResidentLoop, forward_passes
from agrekd_ray.bench.workloads import (
    ARITHMETIC,
    BY_HAND,
    CACHE,
    FORWARD,
    GPU,
    LABELS,
    LIVE,
    RECORDING,
)
from agrekd_ray.capacity.measure import make_teachers
from agrekd_ray.cluster.events import Emit, Notice
from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.cluster.nodes import device_here
from agrekd_ray.cluster.session import RaySession
from agrekd_ray.data import TRAIN, Arrays, Dataset, open_dataset
from agrekd_ray.data.image_table import ImageTable
from agrekd_ray.data.views import Crop, Views
from agrekd_ray.distillation import DistillationSpec, Replay, Source, TeacherHost
from agrekd_ray.experiment.display import Display
from agrekd_ray.fleet.fleet import Fleet
from agrekd_ray.logits import LogitsCache, OutputSettings
from agrekd_ray.models import Model, build, load
from agrekd_ray.numerics import numbers_on
from agrekd_ray.settings import Compile, Training
from agrekd_ray.student import Student, StudentSpec

VIEWS = 2
"""Views that the students' epochs show in turn."""
SHARE = 0.4
"""Of a GPU, for the student's process, and for that of the teachers who answer live."""


@dataclass(frozen=True)
class Size:
    """What is measured.

    Attributes:
        student: its architecture.
        teacher: that of teachers who answer live, and that are recorded.
        kept: height and width of the pictures in memory, in pixels.
        shown: the same of what models see.
        pictures: of which half are trained on.
        batch_sizes: B, each.
        classes: C, each.
        ensembles: teachers in the cache, each.
        hosted: teachers that answer live.
        forward_batch: pictures of a forward pass that is measured alone.
        graphs: batch sizes at which steps are replayed as CUDA graphs, too.
    """

    student: Model
    teacher: Model
    kept: int
    shown: int
    pictures: int
    batch_sizes: tuple[int, ...]
    classes: tuple[int, ...]
    ensembles: tuple[int, ...] = (10, 50)
    hosted: int = 4
    forward_batch: int = 256
    graphs: tuple[int, ...] = ()


ON_GPU = Size(
    student=Model(name="torchvision/resnet18"),
    teacher=Model(name="torchvision/resnet50"),
    kept=256,
    shown=224,
    pictures=8000,
    batch_sizes=(32, 128),
    classes=(2, 1000),
    graphs=(32,),
)
ON_CPU = Size(
    student=Model(name="cnn", args={"width": 8}),
    teacher=Model(name="cnn_deep", args={"width": 8}),
    kept=20,
    shown=16,
    pictures=400,
    batch_sizes=(8, 32),
    classes=(2, 100),
    forward_batch=64,
)


def measure_gpu(repeats: int, quick: bool, session: RaySession, display: Display) -> dict[str, Any]:
    """Measure every cell of the grid, in a process of its own for each number of classes.

    Args:
        repeats: of each way that count; one more, not counted, warms up.
        quick: the small size, on a GPU too.
        session: the Ray session.
        display: the progress line.

    Returns:
        The figures; a cell for each row that `_Rows` makes.
    """
    gpu = ray.cluster_resources().get("GPU", 0) > 0
    size = ON_GPU if gpu and not quick else ON_CPU
    ways = 4 + len(size.ensembles)
    total = len(size.classes) * (len(size.batch_sizes) * ways + 2 * len(size.graphs) + 2)
    display.stage(GPU, total, "rows")
    # `max_calls`: memory that one leaves behind is not the next one's.
    task = ray.remote(max_calls=1, num_cpus=0, num_gpus=SHARE if gpu else 0)(measured)
    cells: list[dict[str, Any]] = []
    device = ""
    for classes in size.classes:
        with (
            tempfile.TemporaryDirectory(prefix="agrekd-bench-") as folder,
            progress(display) as emit,
        ):
            place = _Place(Path(folder), size, classes)
            place.make()
            with place.fleet(gpu, emit) as fleet:
                device, rows = ray.get(task.remote(place, fleet.source(), repeats, emit))
            cells += rows
    return {
        "workload": GPU,
        "device": device,
        "student": size.student.name,
        "teacher": size.teacher.name,
        "shown": size.shown,
        "kept": size.kept,
        "cells": cells,
    }


@dataclass(frozen=True)
class _Place:
    """Pictures and teachers of one number of classes, in a folder; may travel."""

    folder: Path
    size: Size
    classes: int

    def make(self) -> None:
        """Write all that is read later. Records hold random logits: costs do not depend on them."""
        write_pictures(self._table, self.size.pictures, self.classes)
        open_dataset(self.data(VIEWS)).prepare()  # type: ignore[attr-defined]
        size, data = self.size, open_dataset(self.data(VIEWS))
        recorded, most = Model(name="cnn", args={"width": 4}), max(size.ensembles)
        make_teachers(self.folder / "recorded", data, recorded, most)
        make_teachers(self.folder / "hosted", data, size.teacher, size.hosted)

    def data(self, views: int | None) -> ImageTable:
        """Settings of the pictures, in so many views; None has a new one for every epoch."""
        return ImageTable.model_validate(
            {
                "name": "table",
                "table": self._table,
                "columns": {"image": "image"},
                "size": self.size.shown,
                "resize": self.size.kept,
                "views": Views(flip=True, crop=Crop(scale=(0.64, 1.0)), count=views).model_dump(),
                "prepared": self.folder / "prepared",
            }
        )

    def checkpoints(self, name: str, teachers: int) -> dict[str, Path]:
        """Folders of some teachers that `make` has left, `recorded` or `hosted`."""
        names = [f"teacher-{number}" for number in range(teachers)]
        return {one: self.folder / name / one for one in names}

    @contextlib.contextmanager
    def fleet(self, gpu: bool, emit: Emit) -> Iterator[Fleet]:
        """The teachers who answer live, in one actor."""
        hosted = self.size.hosted
        settings = FleetSettings(
            backbones_per_actor=hosted, cpus=0.1, gpus=SHARE if gpu else 0, look_ahead=2
        )
        fleet = Fleet(self.checkpoints("hosted", hosted), self.data(VIEWS), settings, emit)
        try:
            yield fleet
        finally:
            fleet.close()

    @property
    def _table(self) -> Path:
        return self.folder / "pictures.parquet"


def measured(
    place: _Place, live: Source, repeats: int, emit: Emit
) -> tuple[str, list[dict[str, Any]]]:
    """All rows of one number of classes; runs in a process of its own.

    Args:
        place: of pictures and teachers.
        live: the teachers who answer live.
        repeats: that count.
        emit: is told of every row.

    Returns:
        Name of the device, and the rows.
    """
    device = torch.device(device_here())
    rows = list(_Rows(place, live, repeats, device, emit))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return name, rows


class _Rows:
    """The rows of one number of classes, in order.

    Args:
        place: of pictures and teachers.
        live: the teachers who answer live.
        repeats: that count.
        device: to compute on.
        emit: is told of every row.
    """

    def __init__(
        self, place: _Place, live: Source, repeats: int, device: torch.device, emit: Emit
    ) -> None:
        self._place, self._live, self._repeats = place, live, repeats
        self._device, self._emit = device, emit
        self._dataset: Dataset = open_dataset(place.data(VIEWS))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        size = self._place.size
        for batch_size in size.batch_sizes:
            yield self._row(ARITHMETIC, batch_size, self._arithmetic)
            yield self._row(BY_HAND, batch_size, lambda b: self._loop(b).epoch)
            graphs: tuple[Compile, ...] = ()
            if self._device.type == "cuda" and batch_size in size.graphs:
                graphs = ("cuda_graphs",)
            yield self._taught(LABELS, batch_size)
            for teachers in size.ensembles:
                yield self._taught(CACHE, batch_size, teachers)
            for how in graphs:
                yield self._taught(LABELS, batch_size, how=how)
                yield self._taught(CACHE, batch_size, size.ensembles[0], how)
            yield self._taught(LIVE, batch_size, size.hosted)
        yield self._row(FORWARD, size.forward_batch, self._forward)
        yield self._row(RECORDING, size.forward_batch, self._recording, 1)

    def _row(
        self,
        way: str,
        batch_size: int,
        make: Callable[[int], Callable[[], int]],
        teachers: int = 0,
        how: Compile = "off",
    ) -> dict[str, Any]:
        """Measure what `make` makes for a batch size: each call of it computes some pictures.

        Returns:
            Beside what was done: `images` of a repeat; `seconds` of each repeat; `utilisation` of
            the GPU meanwhile, in percent, None where nothing tells; most memory meanwhile in
            `bytes`, of the GPU by this process, else of the process.
        """
        gc.collect()
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        images, seconds = 0, []
        with Sampled(anonymous_bytes, 0.02) as memory:
            repeat = make(batch_size)
            repeat()
            with Sampled(lambda: _busy(self._device), 0.1) as busy:
                for _ in range(self._repeats):
                    began = time.perf_counter()
                    images = repeat()
                    seconds.append(time.perf_counter() - began)
        most = torch.cuda.max_memory_allocated(self._device) if on_gpu else max(memory.values)
        classes = self._place.classes
        self._emit(Notice(f"{way}, B {batch_size}, {classes} classes"))
        return {
            "way": way,
            "batch_size": batch_size,
            "classes": classes,
            "teachers": teachers,
            "compile": how,
            "images": images,
            "seconds": seconds,
            "utilisation": statistics.mean(busy.values) if busy.values else None,
            "bytes": most,
        }

    def _taught(
        self, way: str, batch_size: int, teachers: int = 0, how: Compile = "off"
    ) -> dict[str, Any]:
        """The package's own student."""

        def make(batch_size: int) -> Callable[[], int]:
            training = Training(
                epochs=self._repeats + 1, batch_size=batch_size, learning_rate=1e-3, compile=how
            )
            names = tuple(f"teacher-{number}" for number in range(teachers))
            spec = DistillationSpec("agre_kd", names, names[0], TEMPERATURE) if names else None
            student = Student(
                StudentSpec(way, 0, self._place.size.student, training, spec),
                self._dataset,
                self._source(way, teachers) if names else None,
                device=self._device,
                look_ahead=2 if way == LIVE else 0,
            )

            def epoch() -> int:
                student.trainer.epoch()
                return student.trainer.plan.steps_per_epoch * batch_size

            return epoch

        return self._row(way, batch_size, make, teachers, how)

    def _source(self, way: str, teachers: int) -> Source:
        if way == LIVE:
            return self._live
        settings = OutputSettings(store=self._place.folder / "outputs")
        checkpoints = self._place.checkpoints("recorded", teachers)
        outputs = LogitsCache(settings, checkpoints, self._dataset, "float32")
        shape = (outputs.count, len(self._dataset.classes))
        for number, (name, view) in enumerate(outputs.missing(range(VIEWS))):
            logits_NC = np.random.default_rng(number).normal(0, 3, shape).astype(np.float32)
            outputs.write(name, view, logits_NC)
        return Replay(settings, checkpoints, "float32", None)(self._dataset)

    def _loop(self, batch_size: int) -> ResidentLoop:
        data, ids = self._dataset, self._dataset.splits[TRAIN]
        assert isinstance(data, Arrays)
        model = build(self._place.size.student, data.shape, len(data.classes), 0)
        pixels_NCHW, labels_N = data.arrays(None)[0][ids], data.labels(ids)
        shown = self._place.size.shown
        return ResidentLoop(model, pixels_NCHW, labels_N, shown, batch_size, self._device)

    def _arithmetic(self, batch_size: int) -> Callable[[], int]:
        loop, steps = self._loop(batch_size), len(self._dataset.splits[TRAIN]) // batch_size
        return lambda: loop.arithmetic(steps)

    def _forward(self, batch_size: int) -> Callable[[], int]:
        teacher, _ = load(self._place.checkpoints("hosted", 1)["teacher-0"], self._device)
        model = teacher.to(memory_format=torch.channels_last)
        steps = max(1, len(self._dataset.splits[TRAIN]) // batch_size)
        shape = self._dataset.shape
        return lambda: forward_passes(model, shape, batch_size, steps, self._device)

    def _recording(self, batch_size: int) -> Callable[[], int]:
        """A host that records a new view every time."""
        data: Dataset = open_dataset(self._place.data(None))
        checkpoints = self._place.checkpoints("hosted", 1)
        settings = OutputSettings(store=self._place.folder / "recording")
        outputs = LogitsCache(settings, checkpoints, data, numbers_on("auto", self._device))
        host = TeacherHost(checkpoints, data, device=self._device, outputs=outputs)
        epochs = iter(range(self._repeats + 1))

        def record() -> int:
            host.complete(next(epochs))
            return outputs.count

        return record


def _busy(device: torch.device) -> float | None:
    """Share of the last moment, in percent, in which a GPU computed; None where nobody knows."""
    if device.type != "cuda":
        return None
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # NVIDIA's library for Python is not there, or has errors of its own
        return _asked(str(torch.cuda.get_device_properties(device).uuid))


def _asked(uuid: str) -> float | None:
    """The same, as the driver's own program says it."""
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        command.append(f"--id=GPU-{uuid}")
        printed = subprocess.run(command, capture_output=True, encoding="utf-8")
        return float(printed.stdout)
    except (OSError, ValueError):
        return None
