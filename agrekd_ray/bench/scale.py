"""The workload `scale`: replay of many teachers of many classes, and what forms of records lose.

A student replays made-up records from the disk, beside itself on labels alone, step by step in
turn. Records are written here, a form at a time, and removed once they are measured.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agrekd_ray.bench.errors import errors, made_up, of_digits, said
from agrekd_ray.bench.harness import PREFIX, Sampled, anonymous_bytes, in_own_process
from agrekd_ray.capacity.measure import TEMPERATURE, make_teachers
from agrekd_ray.data import SELECT, TEST, TRAIN
from agrekd_ray.data.in_memory import InMemory
from agrekd_ray.distillation import DistillationSpec, Replay, Source
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.display import Display
from agrekd_ray.logits import Form, LogitsCache, OutputSettings
from agrekd_ray.models import Model
from agrekd_ray.settings import Training
from agrekd_ray.student import Student, StudentSpec
from agrekd_ray.training import Trainer

STEPS, PART = 4, 4096
"""Steps of an epoch that is timed; rows of a record that are made at once."""
TEACHER = Model(name="cnn", args={"width": 4})
"""Of whom there are records alone."""
_Kind = tuple[str, int | None]


@dataclass(frozen=True)
class Scale:
    """How much is replayed.

    Attributes:
        teachers: M.
        classes: C.
        rows: N, samples of the training split.
        batch: B.
        pixels: height and width of a picture.
        student: its architecture.
    """

    teachers: int = 50
    classes: int = 1000
    rows: int = 100_000
    batch: int = 256
    pixels: int = 64
    student: str = "torchvision/resnet18"


QUICK = Scale(teachers=6, classes=60, rows=2000, batch=32, pixels=32, student="cnn")


def kinds(classes: int) -> tuple[_Kind, ...]:
    """Forms whose steps are timed: dtype and K."""
    return ("float32", None), ("int8", None), ("float16", min(16, classes // 4))


def forms(classes: int) -> list[Form]:
    """Forms whose errors are measured."""
    few = (4, 3, 2) if classes <= 20 else (8, 16, 32, 64)
    given: list[_Kind] = [("float32", None), ("float16", None), ("int8", None)]
    given += [("float16", k) for k in few if k < classes // 2]
    given += [("int8", few[-1] if classes <= 20 else few[1])]
    return [OutputSettings(dtype=dtype, top_k=k).form(classes) for dtype, k in given]  # type: ignore[arg-type]


def measure_scale(size: Scale, repeats: int, quick: bool, display: Display) -> dict[str, Any]:
    """Time steps at a size in several forms, and at a part of its teachers, classes and rows.

    Args:
        size: the largest.
        repeats: epochs of a few steps that count.
        quick: teachers whose errors are measured learn less.
        display: the progress line.

    Raises:
        RunError: the disk is too small, or a part failed.
    """
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        folder = Path(name)
        _check_room(size, folder)
        display.stage("scale", len(list(_cells(size))) + 2, "cells")
        tables = {
            f"{size.teachers} made-up teachers, {size.classes} classes": errors(
                *made_up(size.teachers, size.classes), forms(size.classes)
            )
        }
        display.advance("errors of made-up teachers")
        tables["teachers of coloured digits, 10 classes"] = errors(
            *of_digits(folder / "digits", quick), forms(10)
        )
        display.advance("errors of coloured digits")
        for written, kind, teachers in _cells(size):
            store = folder / f"{written.classes}-{written.rows}-{kind[0]}-{kind[1]}"
            if not store.exists():
                for other in folder.glob("*-*-*-*"):
                    shutil.rmtree(other)
                write(written, kind, store)
            cell = replace(written, teachers=teachers)
            cells.append(in_own_process(measured, cell, kind, store, repeats))
            display.advance(f"{cells[-1]['form']}, {teachers} teachers")
    return {"workload": "scale", **asdict(size), "steps": STEPS, "cells": cells, "errors": tables}


def _cells(size: Scale) -> Iterator[tuple[Scale, _Kind, int]]:
    """What is written, how, and how many of the teachers replay it; what is the same in a row."""
    exact, *packed = kinds(size.classes)
    yield size, exact, size.teachers
    yield size, exact, max(2, size.teachers // 5)
    for kind in packed:
        yield size, kind, size.teachers
    yield replace(size, classes=max(10, size.classes // 10)), exact, size.teachers
    yield replace(size, rows=max(4 * size.batch, size.rows // 10)), exact, size.teachers


def _check_room(size: Scale, folder: Path) -> None:
    wanted = size.teachers * size.rows * size.classes * 4 + (1 << 30)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise RunError(
            f"{folder.parent}: scale writes {wanted / 1e9:.0f} GB, and {free / 1e9:.0f} GB are "
            "free; set TMPDIR to another folder, or take fewer --rows."
        )


def data_of(size: Scale) -> InMemory:
    """Pictures of noise."""
    rng = np.random.default_rng(0)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        pictures = rng.integers(0, 256, (count, size.pixels, size.pixels, 3), dtype=np.uint8)
        return pictures, np.arange(count) % size.classes

    few = max(10, size.classes)
    return InMemory({TRAIN: split(size.rows), SELECT: split(few), TEST: split(few)})


def _settings(store: Path, kind: _Kind) -> OutputSettings:
    return OutputSettings.model_validate({"store": store, "dtype": kind[0], "top_k": kind[1]})


def write(size: Scale, kind: _Kind, store: Path) -> None:
    """Write made-up records of all teachers, and the teachers' folders beside them."""
    dataset = data_of(size)
    teachers = make_teachers(store / "teachers", dataset, TEACHER, size.teachers, backbones=1)
    cache = LogitsCache(_settings(store / "outputs", kind), teachers, dataset, "float32")
    labels_N = dataset.labels(dataset.splits[TRAIN]).numpy()
    for number, (name, key) in enumerate(cache.keys.items()):
        parts = [
            key.form.encode(said(number, labels_N[first : first + PART], size.classes, first))
            for first in range(0, len(labels_N), PART)
        ]
        cache.write(name, 0, key.form.opened(np.concatenate(parts)))


def measured(size: Scale, kind: _Kind, store: Path, repeats: int) -> dict[str, Any]:
    """Steps in turn: labels alone, and replay; in a process of its own.

    Returns:
        Seconds of each repeat of `STEPS` steps, of both; seconds until records
        were verified; bytes on disk; the peak of memory that is not a mapped file, of both.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    dataset = data_of(size)
    names = [f"teacher-{number}" for number in range(size.teachers)]
    teachers = {name: store / "teachers" / name for name in names}
    settings = _settings(store / "outputs", kind)
    form = settings.form(size.classes)
    spec = DistillationSpec("agre_kd", tuple(names), names[0], TEMPERATURE)
    seconds: dict[str, list[float]] = {"plain": [], "replay": []}
    plain = _trainer(size, dataset, repeats, None, None)
    with Sampled(anonymous_bytes, 0.01) as before:
        _timed(plain)
    source = Replay(settings, teachers, "float32", None)(dataset)
    began = time.perf_counter()
    source.columns(spec, 0)
    opened = time.perf_counter() - began
    replay = _trainer(size, dataset, repeats, spec, source)
    _timed(replay)
    with Sampled(anonymous_bytes, 0.01) as after:
        for _ in range(repeats):
            for way, trainer in (("plain", plain), ("replay", replay)):
                seconds[way].append(_timed(trainer))
    return {
        **asdict(size),
        "form": str(form),
        "seconds": seconds,
        "opened_seconds": opened,
        "disk_bytes": form.row_bytes * size.rows * size.teachers,
        "plain_bytes": max(before.values),
        "replay_bytes": max(after.values),
    }


def _trainer(
    size: Scale,
    dataset: InMemory,
    repeats: int,
    spec: DistillationSpec | None,
    source: Source | None,
) -> Trainer:
    training = Training(epochs=repeats + 2, batch_size=size.batch, learning_rate=1e-3)
    given = StudentSpec("scale", 0, Model(name=size.student), training, spec)
    trainer = Student(given, dataset, source).trainer
    # A few steps of each epoch's order: their rows lie all over the records.
    trainer.plan.steps_per_epoch = min(STEPS, trainer.plan.steps_per_epoch)
    return trainer


def _timed(trainer: Trainer) -> float:
    """Seconds of an epoch's step, the mean."""
    began = time.perf_counter()
    trainer.epoch()
    return (time.perf_counter() - began) / trainer.plan.steps_per_epoch
