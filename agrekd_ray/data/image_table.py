"""Pictures of one's own: a folder and a table, or a table with the pictures inside."""

from __future__ import annotations

import os
from typing import Literal

import pyarrow as pa

from agrekd_ray.data.images import PictureDataset, Pictures
from agrekd_ray.data.names import file_alike, quoted
from agrekd_ray.data.pictures import FolderPictures, ParquetPictures, Source
from agrekd_ray.data.rows import Columns, TableSettings, open_table, read_rows
from agrekd_ray.data.table import Table, column_type, table_files
from agrekd_ray.errors import DataError
from agrekd_ray.settings import LocalPath


class ImageColumns(Columns):
    """Columns of a table of pictures.

    Attributes:
        image: path of the picture in the folder; in Parquet also the picture itself, as bytes or as
            `{bytes, path}`, the way Hugging Face writes it.
    """

    image: str = "path"


class ImageTable(TableSettings, Pictures):
    """A table of pictures.

    Attributes:
        name: `table`.
        images: folder that the table's paths are relative to; null is the table's own.
        columns: which column is what.
    """

    name: Literal["table"]
    images: LocalPath | None = None
    columns: ImageColumns = ImageColumns()


def open_image_table(settings: ImageTable) -> PictureDataset:
    """The data set of a table of pictures.

    Raises:
        DataError: anything wrong with the table, with the row's number; a picture's file missing.
    """
    columns, files = settings.columns, table_files(settings.table)
    kind = column_type(files[0], columns.image)
    if kind is not None and _is_picture(kind):
        table = open_table(settings, columns)
        source: Source = ParquetPictures(files, columns.image)
    else:
        table = open_table(settings, columns, columns.image)
        source = _files_of(table, settings)
    rows = read_rows(table, settings, columns)
    return PictureDataset(
        settings,
        source,
        table.where,
        rows.classes,
        rows.labels_N,
        rows.groups,
        rows.splits,
        rows.splits_from,
    )


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _files_of(table: Table, settings: ImageTable) -> FolderPictures:
    own = table.path if table.path.is_dir() else table.path.parent
    folder = settings.images or own
    if not folder.is_dir():
        near = file_alike(folder)
        hint = f", but {quoted(str(near))}" if near else ""
        raise DataError(f"data.images: no folder {quoted(str(folder))}{hint}.")
    paths = table.unique(settings.columns.image)
    plain: dict[str, int] = {}
    for row, path in enumerate(paths):  # a/../b.png and b.png are one file
        if (first := plain.setdefault(os.path.normpath(path), row)) != row:
            raise DataError(
                f"{table.where(row)}: {quoted(path)} is the file of {table.where(first)} already."
            )
    return FolderPictures(folder, paths, table.where)
