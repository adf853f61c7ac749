"""The workload `data`: what it takes to open, prepare and read very many pictures."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from agrekd_ray.bench.harness import PREFIX, Sampled, anonymous_bytes, in_own_process
from agrekd_ray.bench.workloads import DATA
from agrekd_ray.data import TRAIN
from agrekd_ray.data.image_table import ImageTable
from agrekd_ray.experiment.display import Display

SIDE, SMALLER = 32, 10
"""Pixels that models see; the smaller set has so many times fewer pictures."""
DIFFERENT = 512
ROW_GROUP = 50_000
"""Rows of a row group, so large that reading one whole would be seen in the memory."""
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
    display.stage(DATA, len(sizes), "sets")
    cells = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
            write_pictures(Path(folder) / "pictures.parquet", size)
            cells.append(in_own_process(measured, Path(folder), repeats))
        display.advance(f"{size:,} pictures")
    return {"workload": DATA, "side": SIDE, "batch_size": BATCH, "cells": cells}


def write_pictures(path: Path, count: int, classes: int = 2) -> None:
    """A Parquet file with so many small JPEGs inside, in three splits.

    Args:
        path: of the file.
        count: pictures.
        classes: C; each is in every split where there are 4 C pictures.
    """
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(DIFFERENT):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "JPEG")
        encoded.append(file.getvalue())
    schema = pa.schema({"image": pa.binary(), "label": pa.int64(), "split": pa.string()})
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for first in range(0, count, ROW_GROUP):
            numbers = range(first, min(first + ROW_GROUP, count))
            columns = {
                "image": [encoded[(7 * n) % DIFFERENT] for n in numbers],
                "label": [n % classes for n in numbers],
                "split": [("train", "train", "val", "test")[n // classes % 4] for n in numbers],
            }
            writer.write_table(pa.table(columns, schema), row_group_size=ROW_GROUP)


def measured(folder: Path, repeats: int) -> dict[str, Any]:
    """Of the set in a folder; runs in a process of its own."""
    began = time.perf_counter()
    idle = anonymous_bytes()
    with Sampled(anonymous_bytes, 0.02) as memory:
        data = ImageTable.model_validate(
            {
                "name": "table",
                "table": folder / "pictures.parquet",
                "columns": {"image": "image"},
                "size": SIDE,
                "resize": SIDE,
                "prepared": folder / "prepared",
            }
        ).open()
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
