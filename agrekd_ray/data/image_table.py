"""Pictures of one's own: a folder and a table, or a table with the pictures inside."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pyarrow as pa

from agrekd_ray.data.images import PictureDataset, Pictures
from agrekd_ray.data.names import file_alike, quoted
from agrekd_ray.data.pictures import FolderPictures, ParquetPictures, Source
from agrekd_ray.data.rows import Columns, TableSettings, open_table, read_rows
from agrekd_ray.data.table import column_type, table_files
from agrekd_ray.errors import DataError
from agrekd_ray.settings import LocalPath


class ImageColumns(Columns):
    """Columns of a table of pictures.

    Attributes:
        image: path of the picture in the folder; in Parquet also the picture itself, as bytes or as
            `{bytes, path}`, the way Hugging Face writes it: without bytes, the path counts.
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

    def open(self) -> PictureDataset:
        """The data set of a table of pictures.

        Raises:
            DataError: anything wrong with the table, with the row's number; a picture's file
                missing.
        """
        columns, files = self.columns, table_files(self.table)
        kind = column_type(files[0], columns.image)
        if kind is not None and is_picture(kind):
            table = open_table(self, columns)
            source: Source = ParquetPictures(files, columns.image, self._folder(), table.where)
        else:
            table = open_table(self, columns, columns.image)
            source = FolderPictures(self._folder(), table.unique(columns.image), table.where)
        return PictureDataset(self, source, read_rows(table, self, columns))

    def _folder(self) -> Path:
        """The folder that the table's paths are relative to."""
        folder = self.images or (self.table if self.table.is_dir() else self.table.parent)
        if not folder.is_dir():
            near = file_alike(folder)
            hint = f", but {quoted(str(near))}" if near else ""
            raise DataError(f"data.images: no folder {quoted(str(folder))}{hint}.")
        return folder


def is_picture(kind: pa.DataType) -> bool:
    """Whether a Parquet column of that type holds pictures themselves rather than their paths."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
