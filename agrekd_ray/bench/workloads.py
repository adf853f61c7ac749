"""The workloads: data, student, teachers, and which ways of teaching are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from agrekd_ray.bench.pictures import pictures
from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.data import DataSettings
from agrekd_ray.data.colored import ColoredDigits
from agrekd_ray.data.views import Crop, Views
from agrekd_ray.models import Model
from agrekd_ray.settings import Compile

TaughtInTurn = Literal["plain", "naive", "local", "live", "record", "replay"]
"""Ways of teaching: labels alone; teachers in this process with autograd, as published code; the
same in closed form; the fleet; the fleet while it records; records."""
OfGpu = Literal[
    "arithmetic alone", "hand-written", "labels", "cache", "teacher's forward", "recording"
]
"""Further ones of `gpu`: a hand-written loop on one batch; that loop, which students are held
against; as `plain`; as `replay`, of views that come again; a teacher's forward passes alone, which
recording is held against; and that."""
Way = TaughtInTurn | OfGpu | Literal["search"]
WAYS: tuple[TaughtInTurn, ...] = get_args(TaughtInTurn)


@dataclass(frozen=True)
class Cell:
    """What is measured.

    Attributes:
        way: of teaching, or of having a teacher answer.
        teachers: that teach, or are recorded.
        batch_size: B.
        compile: how the student's steps are compiled.
    """

    way: Way
    teachers: int = 0
    batch_size: int = 64
    compile: Compile = "off"

    def __str__(self) -> str:
        return f"{self.way}{f', {self.teachers} teachers' * (self.teachers > 1)}"


@dataclass(frozen=True)
class Workload:
    """What is compared.

    Attributes:
        name: of the workload.
        student: its architecture.
        teacher: architecture of the teachers that are asked.
        samples: that are trained on.
        cells: what is compared.
        fleet: how teachers are hosted.
        shown: height and width of the pictures that models see; 0 for 8 x 8 digits in colour.
        kept: the same of the pictures in memory.
        classes: C; digits have ten.
        views: of the training samples; a new one in every epoch, but for their `count`.
        threads: of the student in every cell; None takes all cores, or what the fleet leaves.
        gpus: of the student, and share of one for an actor of the fleet.
        in_turn: whether cells take turns, an epoch each; else one is measured after the other.
    """

    name: str
    student: Model
    teacher: Model
    samples: int
    cells: tuple[Cell, ...]
    fleet: FleetSettings
    shown: int = 0
    kept: int = 0
    classes: int = 10
    views: Views = field(default_factory=lambda: Views(flip=True))
    threads: int | None = None
    gpus: float = 0
    in_turn: bool = True

    @property
    def batch_size(self) -> int:
        """B of the first cell; where cells take turns, of all."""
        return self.cells[0].batch_size

    @property
    def steps(self) -> int:
        """Steps of an epoch, with this batch size."""
        return self.samples // self.batch_size

    def counts(self, way: Way) -> list[int]:
        """Numbers of teachers in the cells of a way."""
        return [cell.teachers for cell in self.cells if cell.way == way]

    def data(self, folder: Path) -> DataSettings:
        """The data set; pictures are written into the folder."""
        if not self.shown:
            about = {"train": self.samples, "val": 100, "views": self.views}
            return ColoredDigits.model_validate({"name": "colored_digits", **about})
        twice = 2 * self.samples
        return pictures(folder, twice, self.shown, self.kept, self.classes, self.views)


def cells_in_turn(
    batch_size: int, teachers: Mapping[TaughtInTurn, tuple[int, ...]]
) -> tuple[Cell, ...]:
    """The student alone, and every way with so many teachers."""
    taught = [Cell(way, m, batch_size) for way, counts in teachers.items() for m in counts]
    return (Cell("plain", 0, batch_size), *taught)


def of_delay(
    name: str, shape: tuple[int, int, int], teachers: tuple[int, ...], quick: bool
) -> Workload:
    """Teachers that sleep, and the student alone.

    Args:
        name: of the workload.
        shape: of the fleet: the teachers' delay in ms, backbones of an actor at most, batches of
            look-ahead.
        teachers: M, each.
        quick: shorter epochs.
    """
    delay, hosted, ahead = shape
    return Workload(
        name=name,
        student=Model(name="cnn"),
        teacher=Model(name="delayed", args={"milliseconds": delay}),
        samples=640 if quick else 1280,
        cells=cells_in_turn(64, {"live": teachers}),
        fleet=FleetSettings(backbones_per_actor=hosted, concurrent=hosted, look_ahead=ahead),
        threads=1,
    )


def workloads(quick: bool) -> dict[str, Workload]:
    """All workloads of ways in turn, by name; the quick ones are smaller, and without ResNets."""
    ten, few = (10,), (1, 4, 10)
    taught: dict[TaughtInTurn, tuple[int, ...]] = {"naive": ten, "local": ten, "live": ten}
    small = Workload(
        name="small",
        student=Model(name="cnn"),
        teacher=Model(name="cnn_deep", args={"width": 16}),
        samples=1000,
        cells=cells_in_turn(100, {**taught, "record": ten, "replay": (4, 10, 50)}),
        fleet=FleetSettings(backbones_per_actor=10),
    )
    latency = of_delay("latency", (50, 8, 2), (1, 4, 8) if quick else (1, 4, 8, 16, 32), quick)
    taught = {"naive": few, "local": few, "live": few}
    resnet = Workload(
        name="resnet",
        student=Model(name="torchvision/resnet18"),
        teacher=Model(name="torchvision/resnet50"),
        samples=256,
        cells=cells_in_turn(64, {**taught, "record": ten, "replay": (*few, 50)}),
        fleet=FleetSettings(backbones_per_actor=5),
        shown=32,
        kept=32,
    )
    chosen = (small, latency) if quick else (small, latency, resnet)
    return {workload.name: workload for workload in chosen}


def cells_of_gpu(
    batch_sizes: tuple[int, ...], forward: int, graphs: tuple[int, ...] = ()
) -> tuple[Cell, ...]:
    """The rows of a number of classes, in order.

    Args:
        batch_sizes: B of students, each.
        forward: B of a teacher's forward passes.
        graphs: batch sizes at which steps are replayed as CUDA graphs, too.
    """
    cells = []
    for size in batch_sizes:
        cells += [Cell("arithmetic alone", 0, size), Cell("hand-written", 0, size)]
        cells += [Cell("labels", 0, size), Cell("cache", 10, size), Cell("cache", 50, size)]
        if size in graphs:
            cells.append(Cell("labels", 0, size, "cuda_graphs"))
            cells.append(Cell("cache", 10, size, "cuda_graphs"))
        cells.append(Cell("live", 4, size))
    return (*cells, Cell("teacher's forward", 0, forward), Cell("recording", 1, forward))


GPU = Workload(
    name="gpu",
    student=Model(name="torchvision/resnet18"),
    teacher=Model(name="torchvision/resnet50"),
    samples=4000,
    cells=cells_of_gpu((32, 128), 256, graphs=(32,)),
    fleet=FleetSettings(backbones_per_actor=4),
    shown=224,
    kept=256,
    classes=1000,
    views=Views(flip=True, crop=Crop(scale=(0.64, 1.0)), count=2),
    threads=1,
    in_turn=False,
)
"""How near students and recording come to what a device can multiply; also with two classes."""
GPU_SMALL = replace(
    GPU,
    student=Model(name="cnn", args={"width": 8}),
    teacher=Model(name="cnn_deep", args={"width": 8}),
    samples=200,
    cells=cells_of_gpu((8, 32), 64),
    shown=16,
    kept=20,
    classes=100,
)
"""The same in a quick benchmark, and where there is no GPU."""
