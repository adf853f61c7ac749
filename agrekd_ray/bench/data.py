"""The workload `data`: what it takes to open, prepare and read very many pictures."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from agrekd_ray.bench.harness import PREFIX, Sampled, anonymous_bytes, in_own_process
from agrekd_ray.bench.pictures import pictures
from agrekd_ray.data import TRAIN
from agrekd_ray.data.image_table import ImageTable
from agrekd_ray.experiment.display import Display

SIDE, SMALLER = 32, 10
"""Pixels that models see; the smaller set has so many times fewer pictures."""
BATCH = 100


def measure_data(repeats: int, quick: bool, display: Display) -> dict[str, Any]:
    """Prepare and read a set of pictures inside Parquet, and one a tenth as large.

    Each is measured in a process of its own, with the loader that jobs have.

    Args:
        repeats: epochs that are read.
        quick: a tenth of the pictures.
        display: the progress line.
    """
    most = 20_000 if quick else 200_000
    sizes = (most // SMALLER, most)
    display.stage("data", len(sizes), "sets")
    cells = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
            settings = pictures(Path(folder), size, SIDE, SIDE)
            cells.append(in_own_process(measured, settings, repeats))
        display.advance(f"{size:,} pictures")
    return {"workload": "data", "side": SIDE, "batch_size": BATCH, "cells": cells}


def measured(settings: ImageTable, repeats: int) -> dict[str, Any]:
    """Of a set that nobody has prepared; runs in a process of its own."""
    began = time.perf_counter()
    idle = anonymous_bytes()
    with Sampled(anonymous_bytes, 0.02) as memory:
        data = settings.open()
        opened = time.perf_counter()
        data.prepare()
        prepared = time.perf_counter()
        ids = data.splits[TRAIN]
        seconds = []
        for epoch in range(repeats):
            order = np.random.default_rng(epoch).permutation(ids)
            start = time.perf_counter()
            for batch in np.array_split(order, range(BATCH, len(order), BATCH)):
                data.inputs(batch, epoch)
            seconds.append(time.perf_counter() - start)
    return {
        "samples": data.size,
        "open_seconds": opened - began,
        "prepare_seconds": prepared - opened,
        "read": len(ids),
        "read_seconds": seconds,
        "bytes": data.rows.bytes,
        "idle_bytes": idle,
        "anonymous_bytes": max(idle, *memory.values),
    }
