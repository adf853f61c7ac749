"""Pictures of noise, for workloads whose models want more than the digits' 8 × 8 pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from agrekd_ray.data.image_table import ImageTable
from agrekd_ray.data.views import Views

DIFFERENT = 512
ROW_GROUP = 50_000
"""Rows of a row group, so large that reading one whole would be seen in the memory."""


def pictures(
    folder: Path, count: int, size: int, resize: int, classes: int = 2, views: Views | None = None
) -> ImageTable:
    """Write so many small JPEGs into a Parquet file, in three splits.

    Args:
        folder: of the file, and of what is prepared.
        count: pictures, of which half are trained on.
        size: height and width of what models see, in pixels.
        resize: the same of the prepared pictures.
        classes: C; each is in every split where there are 4 C pictures.
        views: of the training pictures; None for the pictures themselves.

    Returns:
        Settings of the data set.
    """
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(DIFFERENT):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(file, "JPEG")
        encoded.append(file.getvalue())
    schema = pa.schema({"image": pa.binary(), "label": pa.int64(), "split": pa.string()})
    path = folder / "pictures.parquet"
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for first in range(0, count, ROW_GROUP):
            numbers = range(first, min(first + ROW_GROUP, count))
            columns = {
                "image": [encoded[(7 * n) % DIFFERENT] for n in numbers],
                "label": [n % classes for n in numbers],
                "split": [("train", "train", "val", "test")[n // classes % 4] for n in numbers],
            }
            writer.write_table(pa.table(columns, schema), row_group_size=ROW_GROUP)
    values = {"table": path, "columns": {"image": "image"}, "prepared": folder / "prepared"}
    shown = {"size": size, "resize": resize, "views": (views or Views()).model_dump()}
    return ImageTable.model_validate({"name": "table", **values, **shown})
