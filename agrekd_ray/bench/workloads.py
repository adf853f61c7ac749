"""The workloads: data, student, teachers, and which ways of teaching are compared."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.data import DataSettings
from agrekd_ray.data.colored import ColoredDigits, ColoredIdx
from agrekd_ray.data.digits import bundled_digits
from agrekd_ray.data.views import Views
from agrekd_ray.models import Model

DATA, GPU, PLAN, SEARCH = "data", "gpu", "plan", "search"
"""Workloads that are not ways of teaching, step by step; each has a module of its own."""
BY_HAND, FORWARD, RECORDING = "hand-written", "teacher's forward", "recording"
"""Ways of `gpu`: the first two are what the others are held against, recording the second."""
LOOK_AHEAD = 2
WAYS = ("plain", "naive", "local", "live", "record", "replay")
"""Ways of teaching: labels alone; teachers in this process with autograd, as published code; the
same in closed form; the fleet; the fleet while it records; records."""


@dataclass(frozen=True)
class Cell:
    """One way of teaching by so many teachers."""

    way: str
    teachers: int = 0


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        name: of the workload.
        student: its architecture.
        teacher: architecture of the teachers.
        batch_size: B.
        steps: of an epoch.
        backbones: different teachers' backbones; further teachers are other heads on them.
        cells: what is compared, `plain` first.
        fleet: how teachers are hosted.
        enlarge: factor by which the 8 x 8 digits are enlarged.
        threads: of the student in every cell; None takes all cores, or what the fleet leaves.
        look_ahead: batches that a fleet computes ahead.
    """

    name: str
    student: Model
    teacher: Model
    batch_size: int
    steps: int
    backbones: int
    cells: tuple[Cell, ...]
    fleet: FleetSettings
    enlarge: int = 1
    threads: int | None = None
    look_ahead: int = LOOK_AHEAD

    @property
    def most(self) -> int:
        """Teachers of the largest ensemble."""
        return max(cell.teachers for cell in self.cells)

    def data(self, folder: Path) -> DataSettings:
        """The data set: digits in colour, in an augmented view that changes with the epoch."""
        samples = self.batch_size * self.steps
        views = Views(flip=True)
        if self.enlarge == 1:
            return ColoredDigits(name="colored_digits", train=samples, val=100, views=views)
        _write_digits(folder, self.enlarge)
        return ColoredIdx(
            name="colored_idx", path=folder, train=samples, val=100, test=100, views=views
        )


def _cells(**teachers: tuple[int, ...]) -> tuple[Cell, ...]:
    return (Cell("plain"), *(Cell(way, m) for way, counts in teachers.items() for m in counts))


def workloads(quick: bool) -> dict[str, Workload]:
    """All workloads by name; the quick ones are smaller, and without ResNets."""
    small = Workload(
        name="small",
        student=Model(name="cnn"),
        teacher=Model(name="cnn_deep", args={"width": 16}),
        batch_size=100,
        steps=10,
        backbones=10,
        cells=_cells(naive=(10,), local=(10,), live=(10,), record=(10,), replay=(4, 10, 50)),
        fleet=FleetSettings(backbones_per_actor=10),
    )
    latency = Workload(
        name="latency",
        student=Model(name="cnn"),
        teacher=Model(name="delayed", args={"milliseconds": 50}),
        batch_size=64,
        steps=10 if quick else 20,
        backbones=8 if quick else 32,
        cells=_cells(live=(1, 4, 8) if quick else (1, 4, 8, 16, 32)),
        fleet=FleetSettings(backbones_per_actor=8, concurrent=8),
    )
    resnet = Workload(
        name="resnet",
        student=Model(name="torchvision/resnet18"),
        teacher=Model(name="torchvision/resnet50"),
        batch_size=64,
        steps=4,
        backbones=10,
        cells=_cells(
            naive=(1, 4, 10),
            local=(1, 4, 10),
            live=(1, 4, 10),
            record=(10,),
            replay=(1, 4, 10, 50),
        ),
        fleet=FleetSettings(backbones_per_actor=5),
        enlarge=4,
    )
    chosen = (small, latency) if quick else (small, latency, resnet)
    return {workload.name: workload for workload in chosen}


def _write_digits(folder: Path, factor: int) -> None:
    """scikit-learn's digits, enlarged, as a folder of IDX files."""
    images, labels = bundled_digits()
    grey = (images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    grey = grey.repeat(factor, 1).repeat(factor, 2)
    folder.mkdir(parents=True, exist_ok=True)
    cut = len(grey) - 200
    for prefix, part in (("train", slice(None, cut)), ("t10k", slice(cut, None))):
        for name, array in (("images-idx3", grey[part]), ("labels-idx1", labels[part])):
            sizes = struct.pack(f">{array.ndim}I", *array.shape)
            content = bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()
            (folder / f"{prefix}-{name}-ubyte").write_bytes(content)
