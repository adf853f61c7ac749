"""A table by columns: what the screen has room for, Markdown, and CSV come from the same ones."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from agrekd_ray.tracking.files import replacing

# A bracket makes a link with the one that follows, an underscore emphasis at a word's edge.
_MARKDOWN = re.compile(r"[\\`*|<$]|\](?=[(\[])|(?<![^\W_])_|_(?![^\W_])")
GAP = 2
"""Characters between two columns on the screen."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: what code calls it.
        header: what people call it.
        cells: texts, one a row.
        words: whether it is set to the left in Markdown.
        data: what CSV has for it: values of each of its columns, by header.
    """

    name: str
    header: str
    cells: list[str]
    words: bool = False
    data: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Characters of its longest line."""
        texts = (self.header, *self.cells)
        return max((len(line) for text in texts for line in text.splitlines()), default=0)


def figures(
    name: str, header: str, cells: Sequence[str], data: dict[str, list[Any]] | None = None
) -> Column:
    """A column of figures, set to the right by spaces."""
    width = max(len(text) for text in (header, *cells))
    return Column(name, header.rjust(width), [text.rjust(width) for text in cells], data=data or {})


def fitting(
    blocks: Sequence[Sequence[Column]],
    importance: Callable[[Sequence[Column]], int],
    width: int,
) -> list[Column]:
    """The columns that fit, in their order; the two most important in any case.

    Args:
        blocks: from left to right; the columns of a block are shown together or not at all.
        importance: of a block, different for each; 0 is the most important.
        width: of the screen, in characters.
    """
    kept, free = set(), width
    for block in sorted(blocks, key=importance):
        needs = sum(column.width + GAP for column in block)
        if needs <= free or importance(block) < 2:
            kept.add(importance(block))
            free -= needs
    return [column for block in blocks if importance(block) in kept for column in block]


def screen_table(
    columns: Sequence[Column], title: str | None, bold: tuple[int, str] | None
) -> Table:
    """The columns as a table for the screen.

    Args:
        columns: that are shown.
        title: above the table, folded to its width.
        bold: row and name of the column of the one cell that stands out.
    """
    table = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),  # and the box draws one space
        show_edge=False,
    )
    for column in columns:
        table.add_column(Text(column.header), no_wrap=True)
    for index in range(len(columns[0].cells)):
        table.add_row(
            *(
                Text(column.cells[index], style="bold" if bold == (index, column.name) else "")
                for column in columns
            )
        )
    return table


def markdown_table(columns: Sequence[Column]) -> str:
    """The columns as a table in Markdown."""
    lines = [
        [column.header for column in columns],
        [":---" if column.words else "---:" for column in columns],
        *([column.cells[index] for column in columns] for index in range(len(columns[0].cells))),
    ]
    return "\n".join(f"| {' | '.join(map(_in_markdown, line))} |" for line in lines)


def _in_markdown(text: str) -> str:
    """A cell whose signs mean nothing but themselves."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.strip().splitlines()))


def write_columns(columns: Sequence[Column], path: Path) -> None:
    """Writes the columns' `data` as CSV; what is None stays empty.

    Raises:
        OSError: the file cannot be written.
    """
    data = {header: values for column in columns for header, values in column.data.items()}
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(data)
        writer.writerows(zip(*data.values(), strict=True))
