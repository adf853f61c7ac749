"""The workload `gpu`: how near students and recording come to what a device can multiply.

Every way is held against a loop written by hand on the same pictures (`bench.resident`), recording
against the teacher's forward passes alone. Without a GPU the same code runs on small pictures.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from agrekd_ray.bench.data import write_pictures
from agrekd_ray.bench.harness import (
    PREFIX,
    Sampled,
    agre_kd,
    anonymous_bytes,
    in_own_process,
    progress,
    random_records,
)
from agrekd_ray.bench.resident import ResidentLoop, forward_passes
from agrekd_ray.bench.workloads import BY_HAND, FORWARD, GPU, RECORDING
from agrekd_ray.capacity.measure import make_teachers
from agrekd_ray.cluster.events import Emit, Notice
from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.cluster.nodes import device_here
from agrekd_ray.data import TRAIN, Arrays, Dataset, open_dataset
from agrekd_ray.data.image_table import ImageTable
from agrekd_ray.data.views import Crop, Views
from agrekd_ray.distillation import Source, TeacherHost
from agrekd_ray.experiment.display import Display
from agrekd_ray.fleet.fleet import Fleet
from agrekd_ray.logits import LogitsCache, OutputSettings
from agrekd_ray.models import Model, build, load
from agrekd_ray.numerics import numbers_on
from agrekd_ray.settings import Compile, Training
from agrekd_ray.student import Student, StudentSpec

ARITHMETIC, LABELS, CACHE, LIVE = "arithmetic alone", "labels", "cache", "live"
"""Ways of training a student, beside the one written by hand."""
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


@dataclass(frozen=True)
class Cell:
    """One row.

    Attributes:
        way: of training a student, or of having a teacher answer.
        batch_size: B.
        classes: C.
        teachers: that teach, or are recorded.
        compile: how steps are compiled.
    """

    way: str
    batch_size: int
    classes: int
    teachers: int = 0
    compile: Compile = "off"


def cells_of(size: Size, classes: int) -> list[Cell]:
    """The rows of a number of classes, in order."""
    cells = []
    for batch_size in size.batch_sizes:
        cells += [Cell(way, batch_size, classes) for way in (ARITHMETIC, BY_HAND, LABELS)]
        cells += [Cell(CACHE, batch_size, classes, teachers) for teachers in size.ensembles]
        if batch_size in size.graphs:
            cells.append(Cell(LABELS, batch_size, classes, 0, "cuda_graphs"))
            cells.append(Cell(CACHE, batch_size, classes, size.ensembles[0], "cuda_graphs"))
        cells.append(Cell(LIVE, batch_size, classes, size.hosted))
    forward = Cell(FORWARD, size.forward_batch, classes)
    return [*cells, forward, Cell(RECORDING, size.forward_batch, classes, 1)]


def measure_gpu(repeats: int, quick: bool, display: Display) -> dict[str, Any]:
    """Measure every cell, in a process of its own for each number of classes; needs a Ray session.

    Args:
        repeats: of each way that count; one more, not counted, warms up.
        quick: the small size, on a GPU too.
        display: the progress line.

    Returns:
        The figures, with those of each row that `Grid.measured` makes.
    """
    gpus = SHARE if ray.cluster_resources().get("GPU", 0) > 0 else 0
    size = ON_GPU if gpus and not quick else ON_CPU
    total = sum(len(cells_of(size, classes)) for classes in size.classes)
    display.stage(GPU, total, "rows")
    cells: list[dict[str, Any]] = []
    for classes in size.classes:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, progress(display) as emit:
            grid = Grid(Path(folder), size, classes, repeats)
            grid.make()
            settings = FleetSettings(
                backbones_per_actor=size.hosted, cpus=0.1, gpus=gpus, look_ahead=2
            )
            hosted = grid.checkpoints("hosted", size.hosted)
            with closing(Fleet(hosted, grid.pictures(VIEWS), settings, emit)) as fleet:
                device, rows = in_own_process(Grid.measured, grid, fleet.source(), emit, gpus=gpus)
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


@dataclass
class Grid:
    """Pictures, teachers and rows of one number of classes; may travel to any process.

    Attributes:
        folder: of all that is written.
        size: what is measured.
        classes: C.
        repeats: of each row that count.
    """

    folder: Path
    size: Size
    classes: int
    repeats: int

    def make(self) -> None:
        """Write all that is read later."""
        write_pictures(self.folder / "pictures.parquet", self.size.pictures, self.classes)
        dataset = self.pictures(VIEWS).open()
        dataset.prepare()
        recorded, most = Model(name="cnn", args={"width": 4}), max(self.size.ensembles)
        make_teachers(self.folder / "recorded", dataset, recorded, most)
        make_teachers(self.folder / "hosted", dataset, self.size.teacher, self.size.hosted)

    def pictures(self, views: int | None) -> ImageTable:
        """Settings of the pictures, in so many views; None has a new one for every epoch."""
        return ImageTable.model_validate(
            {
                "name": "table",
                "table": self.folder / "pictures.parquet",
                "columns": {"image": "image"},
                "size": self.size.shown,
                "resize": self.size.kept,
                "views": Views(flip=True, crop=Crop(scale=(0.64, 1.0)), count=views).model_dump(),
                "prepared": self.folder / "prepared",
            }
        )

    def checkpoints(self, kind: str, teachers: int) -> dict[str, Path]:
        """Folders of some teachers that `make` has left, `recorded` or `hosted`."""
        names = [f"teacher-{number}" for number in range(teachers)]
        return {name: self.folder / kind / name for name in names}

    def measured(self, live: Source, emit: Emit) -> tuple[str, list[dict[str, Any]]]:
        """Name of the device, and the figures of all rows; runs in a process of its own.

        Args:
            live: the teachers who answer live.
            emit: is told of every row.
        """
        device = torch.device(device_here())
        rows = []
        for cell in cells_of(self.size, self.classes):
            rows.append(self._row(cell, live, device))
            emit(Notice(f"{cell.way}, B {cell.batch_size}, {cell.classes} classes"))
        return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", rows

    def _row(self, cell: Cell, live: Source, device: torch.device) -> dict[str, Any]:
        """Measure one cell.

        Returns:
            Beside what was done: `images` of a repeat; `seconds` of each repeat; `utilisation` of
            the GPU meanwhile, in percent, None where nothing tells; most memory meanwhile in
            `bytes`, of the GPU by this process, else of the process.
        """
        gc.collect()
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        images, seconds = 0, []
        with Sampled(anonymous_bytes, 0.02) as memory:
            repeat = self._repeat(cell, live, device)
            repeat()
            with Sampled(lambda: _busy(device), 0.1) as busy:
                for _ in range(self.repeats):
                    began = time.perf_counter()
                    images = repeat()
                    seconds.append(time.perf_counter() - began)
        return {
            **asdict(cell),
            "images": images,
            "seconds": seconds,
            "utilisation": statistics.mean(busy.values) if busy.values else None,
            "bytes": torch.cuda.max_memory_allocated(device) if on_gpu else max(memory.values),
        }

    def _repeat(self, cell: Cell, live: Source, device: torch.device) -> Callable[[], int]:
        """What is timed: a function that computes some pictures, and says how many."""
        dataset = open_dataset(self.pictures(VIEWS))
        steps = max(1, len(dataset.splits[TRAIN]) // cell.batch_size)
        if cell.way in (ARITHMETIC, BY_HAND):
            loop = self._by_hand(dataset, cell.batch_size, device)
            return loop.epoch if cell.way == BY_HAND else lambda: loop.arithmetic(steps)
        if cell.way == FORWARD:
            teacher, _ = load(self.checkpoints("hosted", 1)["teacher-0"], device)
            model = teacher.to(memory_format=torch.channels_last)
            return lambda: forward_passes(model, dataset.shape, cell.batch_size, steps, device)
        if cell.way == RECORDING:
            return self._recording(device)
        student = self._student(cell, dataset, live, device)

        def epoch() -> int:
            student.trainer.epoch()
            return student.trainer.plan.steps_per_epoch * cell.batch_size

        return epoch

    def _by_hand(self, dataset: Dataset, batch_size: int, device: torch.device) -> ResidentLoop:
        assert isinstance(dataset, Arrays)
        ids = dataset.splits[TRAIN]
        model = build(self.size.student, dataset.shape, len(dataset.classes), 0)
        pixels_NCHW, labels_N = dataset.arrays(None)[0][ids], dataset.labels(ids)
        return ResidentLoop(model, pixels_NCHW, labels_N, self.size.shown, batch_size, device)

    def _student(self, cell: Cell, dataset: Dataset, live: Source, device: torch.device) -> Student:
        """The package's own."""
        training = Training(
            epochs=self.repeats + 1,
            batch_size=cell.batch_size,
            learning_rate=1e-3,
            compile=cell.compile,
        )
        source, teachers = live, self.checkpoints("recorded", cell.teachers)
        if cell.way == CACHE:
            source = random_records(self.folder / "outputs", teachers, dataset, VIEWS)(dataset)
        spec = agre_kd(tuple(teachers)) if teachers else None
        return Student(
            StudentSpec(cell.way, 0, self.size.student, training, spec),
            dataset,
            source,
            device=device,
            look_ahead=2 if cell.way == LIVE else 0,
        )

    def _recording(self, device: torch.device) -> Callable[[], int]:
        """A host that records a new view every time."""
        dataset: Dataset = open_dataset(self.pictures(None))
        checkpoints = self.checkpoints("hosted", 1)
        settings = OutputSettings(store=self.folder / "recording")
        cache = LogitsCache(settings, checkpoints, dataset, numbers_on("auto", device))
        host = TeacherHost(checkpoints, dataset, device=device, outputs=cache)
        epochs = itertools.count()

        def record() -> int:
            host.complete(next(epochs))
            return cache.count

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
