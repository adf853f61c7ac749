"""Pictures and texts that are handed in later, made into samples as a data set makes its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from agrekd_ray.data.chunks import chunks
from agrekd_ray.data.civilcomments import TEXT as COMMENT
from agrekd_ray.data.civilcomments import CivilComments
from agrekd_ray.data.decode import FORMATS
from agrekd_ray.data.image_table import ImageColumns, ImageTable, is_picture
from agrekd_ray.data.images import Pictures, as_evaluated
from agrekd_ray.data.pictures import FolderPictures, ParquetPictures, Source, decoding
from agrekd_ray.data.table import PARQUET, TEXT, Table, column_type, table_files
from agrekd_ray.data.text import TextColumns, Texts, TextTable, tokenised
from agrekd_ray.errors import DataError
from agrekd_ray.settings import Settings

_REMEDY = "Name yours with --column."
Name = str | int
"""The path of a picture, or the number of a table's row, from 1."""
Given = tuple[list[Name], Tensor]
"""Some samples: their names, and the inputs as evaluation sees them."""


def given_samples(
    sources: Sequence[Path],
    settings: Settings,
    shape: tuple[int, ...],
    column: str | None = None,
    images: Path | None = None,
) -> tuple[str, int, Iterator[Given]]:
    """Files as samples, with the decoding, sizes and tokenizer of a data set.

    Args:
        sources: pictures, a folder of pictures, or a table.
        settings: of the data set. Pictures for one that has none in files are resized to `shape`.
        shape: of a sample.
        column: of a table, with the path, the picture or the text; None is that of the data set.
        images: the folder that a table's paths are relative to; None is that of the data set, else
            the table's own.

    Returns:
        What the names are, `path` or `row`, how many samples there are, and they, some at a time.

    Raises:
        DataError: a file is missing or broken (names it), or the data set is of another kind. While
            the samples are made, too.
    """
    if isinstance(settings, Texts):
        table, column = _text_table(_only(sources), settings, column)
        return "row", table.rows, _texts(table, settings, column)
    seen = settings if isinstance(settings, Pictures) else None
    if seen is None and len(shape) == 3:
        seen = Pictures(size=shape[-1], resize=shape[-1])
    if seen is None or shape != (3, seen.size, seen.size):
        raise DataError(
            f"samples of {list(shape)} are not made from files: pictures become squares of 3 "
            "channels. From Python, TrainedStudent.predict takes arrays."
        )
    if images is None and isinstance(settings, ImageTable):
        images = settings.images
    if column is None and isinstance(settings, ImageTable):
        column = settings.columns.image
    what, names, source = _pictures(sources, column or ImageColumns().image, images)
    return what, source.count, _decoded(names, source, seen)


def _decoded(names: Sequence[Name], source: Source, seen: Pictures) -> Iterator[Given]:
    every = chunks(source.count)
    numbers = range(len(every))
    for chunk in decoding(source, numbers, seen.side, seen.decoding):
        rows = every[chunk.number]
        pixels = torch.from_numpy(chunk.make()[0])
        yield list(names[rows.start : rows.stop]), as_evaluated(pixels, seen.size)


def _text_table(path: Path, settings: Texts, column: str | None) -> tuple[Table, str]:
    columns = settings.columns if isinstance(settings, TextTable) else TextColumns()
    usual = COMMENT if isinstance(settings, CivilComments) else columns.text
    column = column or usual
    return Table(path, [column], remedy=_REMEDY), column


def _texts(table: Table, settings: Texts, column: str) -> Iterator[Given]:
    for rows in chunks(table.rows):
        ids_BL = tokenised(table.passages(column, rows), settings)
        yield [row + 1 for row in rows], torch.from_numpy(ids_BL).long()


def _pictures(
    sources: Sequence[Path], column: str, images: Path | None
) -> tuple[str, Sequence[Name], Source]:
    """What the names of the pictures are, the names, and the pictures."""
    if not any(source.suffix.lower() in (*TEXT, PARQUET) for source in sources):
        paths = [str(path) for source in sources for path in picture_files(source)]
        source: Source = FolderPictures(Path(), paths, _counted)
        source.where = paths.__getitem__  # a broken one is named by its path
        return "path", paths, source
    path = _only(sources)
    (file,) = table_files(path)
    folder = images or path.parent
    kind = column_type(file, column)
    if kind is not None and is_picture(kind):
        source = ParquetPictures([file], column, folder, _numbered)
        return "row", range(1, source.count + 1), source
    table = Table(path, [column], remedy=_REMEDY)
    names = table.unique(column)
    return "path", names, FolderPictures(folder, names, table.where)


def _numbered(row: int) -> str:
    return f"row {row + 1}"


def _counted(number: int) -> str:
    return f"picture {number + 1}"


def picture_files(source: Path) -> list[Path]:
    """The pictures of a folder and of the folders in it, by name; a file is itself.

    Raises:
        DataError: there is none in the folder.
    """
    if not source.is_dir():
        return [source]
    suffixes = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes)
    if not found:
        raise DataError(f"{source}: no picture in this folder ({', '.join(FORMATS)}).")
    return found


def _only(sources: Sequence[Path]) -> Path:
    if len(sources) > 1:
        raise DataError(f"{sources[1]}: give one table, or pictures alone.")
    return sources[0]
