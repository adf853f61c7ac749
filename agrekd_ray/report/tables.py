"""The one kind of table of all reports: on the screen, as Markdown and in a page."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as ScreenTable
from rich.text import Text

from agrekd_ray.files import replacing
from agrekd_ray.results.frame import Figure
from agrekd_ray.results.intervals import PairedDifference
from agrekd_ray.results.metrics import MISSING, metric, over

# A bracket makes a link with the one that follows, an underscore emphasis at a word's edge.
_MARKDOWN = re.compile(r"[\\`*|<$]|\](?=[(\[])|(?<![^\W_])_|_(?![^\W_])")
_SIGN = re.compile(r"(?<=[._=/,:-])(?=\w)")
_SD = re.compile(r"(?<=^± )\S+")
_GAP = 2
"""Characters between two columns on the screen."""
_NARROWEST, _LARGEST_SHARE = 24, 0.45
_INDENT = "  "
"""Of the further lines of a cell."""


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: as it is shown.
        spread: what stands beside it: a standard deviation, an interval, what it is over.
        depth: of its shade on a page, in [0, 1].
    """

    text: str
    spread: str = ""
    depth: float = 0.0

    @property
    def words(self) -> str:
        """All of it."""
        return f"{self.text} {self.spread}".rstrip()


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: what code calls it.
        header: what people call it.
        cells: one a row.
        words: whether it is set to the left.
        below: second line of the header on a page.
        over: a header that it shares with its neighbours, which are shown together or not at all.
    """

    name: str
    header: str
    cells: list[Cell]
    words: bool = False
    below: str = ""
    over: str = ""

    @property
    def spreads(self) -> bool:
        """Whether any cell has a spread."""
        return any(cell.spread for cell in self.cells)

    @property
    def block(self) -> str:
        """The columns that are shown together have the same."""
        return self.over or self.name

    @cached_property
    def texts(self) -> list[str]:
        """The header and the cells for the screen; figures are set to the right by spaces."""
        if self.words:
            return [self.header, *(cell.words for cell in self.cells)]
        wide = max((len(text) for c in self.cells for text in _SD.findall(c.spread)), default=0)
        spreads = [_SD.sub(lambda sd: sd[0].rjust(wide), cell.spread) for cell in self.cells]
        tail = max(map(len, spreads), default=0)
        figures = [
            f"{cell.text} {spread.ljust(tail)}" if tail else cell.text
            for cell, spread in zip(self.cells, spreads, strict=True)
        ]
        width = max(map(len, (self.header, *figures)))
        return [text.rjust(width) for text in (self.header, *figures)]

    @property
    def width(self) -> int:
        """Characters of its longest line on the screen."""
        return max(len(line) for text in self.texts for line in text.splitlines() or [""])


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what it holds.
        columns: from left to right; those with a header together come last.
        strong: numbers of the rows that stand out.
        notes: below a row, in its full width, by the row's number.
    """

    title: str
    columns: list[Column]
    strong: frozenset[int] = frozenset()
    notes: Mapping[int, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.columns[0].cells)

    @property
    def width(self) -> int:
        """Characters of its lines on the screen."""
        return sum(column.width + _GAP for column in self.columns)

    @property
    def widest(self) -> Column | None:
        """The widest column of words."""
        words = [column for column in self.columns if column.words]
        return max(words, key=lambda column: column.width, default=None)

    @property
    def least(self) -> int:
        """Characters of its lines where its widest column of words has a word a line."""
        if (column := self.widest) is None:
            return self.width
        words = [word for cell in column.cells for word in cell.text.split()]
        longest = max((len(_INDENT + word) for word in words), default=0)
        return self.width - column.width + min(column.width, max(longest, len(column.header)))

    @property
    def blocks(self) -> dict[str, list[Column]]:
        """Columns that are shown together, by the header that they share or the one's name."""
        return {block: list(those) for block, those in groupby(self.columns, lambda c: c.block)}

    @property
    def heads(self) -> list[tuple[str, list[Column]]]:
        """Columns that share a header, by it."""
        return [(block, those) for block, those in self.blocks.items() if those[0].over]

    def named(self, names: Iterable[str], title: str | None = None) -> Table:
        """The table with these columns alone, in this order; those that it does not have are not.

        Args:
            names: of columns, or of what several share as a header.
            title: another one; None for the same.
        """
        kept = [column for name in names for column in self.blocks.get(name, [])]
        return replace(self, columns=kept, title=self.title if title is None else title)


def texts(
    headers: Mapping[str, str], rows: Iterable[Sequence[str]], right: Collection[str] = ()
) -> list[Column]:
    """Columns of texts.

    Args:
        headers: what people call a column, by its name.
        rows: a text for each column.
        right: names of those that hold figures.
    """
    cells = list(zip(*rows, strict=True)) or [()] * len(headers)
    return [
        Column(name, header, [Cell(text) for text in column], words=name not in right)
        for (name, header), column in zip(headers.items(), cells, strict=True)
    ]


def figure_column(
    name: str,
    figures: Sequence[Figure | None],
    header: str = "",
    published: Sequence[float | None] = (),
    parts: str = "",
) -> Column:
    """A column of means with their standard deviations, where they have some.

    Where groups or classes have no sample, the header says so, or the cells where they differ.

    Args:
        name: of the metric, or of the column.
        figures: one a row; None where there is none.
        header: None for the metric's label.
        published: figures of others in percent, which stand in brackets.
        parts: `title` where the title says over what the figures are, `cells` where the cells must.
    """
    measured = {figure.part for figure in figures if figure is not None}
    everywhere = measured.pop() if len(measured) == 1 and parts != "cells" else None
    cells = []
    for figure, other in zip(figures, published or [None] * len(figures), strict=True):
        if figure is None or not math.isfinite(figure.mean):
            cells.append(Cell(MISSING))
            continue
        brackets = "" if other is None else f"[{other:.1f}]"
        part = f"over {figure.part}" if figure.part and everywhere is None else ""
        cells.append(Cell(figure.text, " ".join(filter(None, (figure.spread, brackets, part)))))
    part = "" if parts else everywhere or ""
    return Column(name, over(header or metric(name).label, part), cells)


def difference_cell(difference: PairedDifference | None) -> Cell:
    """A difference in points, and its bootstrap interval."""
    if difference is None:
        return Cell(MISSING)
    interval = difference.interval()
    return Cell(difference.points, f"({interval})" if interval else "")


def show(
    table: Table,
    console: Console,
    importance: Sequence[str] = (),
    bold: tuple[int, str] | None = None,
    spare: Sequence[str] = (),
) -> list[str]:
    """Prints a table, as wide as the console allows.

    Columns that do not fit are left out, the least important first; the two most important are
    shown in any case. What would crowd out the figures has several lines.

    Args:
        table: to print.
        console: where to print.
        importance: blocks of columns, the most important first; none leaves none out.
        bold: row and name of the column of the one cell that stands out.
        spare: blocks that are left out, the first one first, before a word is broken.

    Returns:
        Headers of the columns that were left out.
    """
    fitting = table
    for name in ("", *spare):
        fitting = fitting.named(block for block in fitting.blocks if block != name)
        if fitting.least <= console.width:
            break
    else:
        fitting = table
    folded = _folded(fitting, console.width, bool(importance))
    columns = _fitting(folded, importance, console.width).columns if importance else folded.columns
    shown = ScreenTable(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, _GAP - 1, 0, 0),  # and the box draws one space
        show_edge=False,
    )
    for column in columns:
        shown.add_column(Text(column.texts[0]), no_wrap=True)
    for row in range(table.size):
        styles = ("bold" if bold == (row, column.name) else "" for column in columns)
        texts = (column.texts[row + 1] for column in columns)
        shown.add_row(*map(Text, texts, styles))
    if table.title:
        console.print(Text(table.title))
    console.print(shown)
    return [c.header for c in table.columns if c.name not in {kept.name for kept in columns}]


def markdown(table: Table) -> str:
    """A table as Markdown."""
    lines = [
        [column.header for column in table.columns],
        [":---" if column.words else "---:" for column in table.columns],
        *([column.cells[row].words for column in table.columns] for row in range(table.size)),
    ]
    return "\n".join(f"| {' | '.join(map(_in_markdown, line))} |" for line in lines)


def write_csv(
    rows: Sequence[Mapping[str, Any]], path: Path, first: str, optional: Iterable[str] = ()
) -> None:
    """Writes rows as a CSV file, which is replaced as a whole; numbers have six digits.

    Args:
        rows: values by column.
        path: the file.
        first: column that a file without rows has.
        optional: columns that are left out where nothing is in them.

    Raises:
        OSError: it cannot be written.
    """
    rounded = [
        {name: round(v, 6) if isinstance(v, float) else v for name, v in row.items()}
        for row in rows
    ]
    table = pd.DataFrame(rounded, columns=None if rows else [first], dtype=object)
    nothing: tuple[Any, ...] = (None, "", {})
    empty = [name for name in optional if all(row.get(name) in nothing for row in rows)]
    table = table.drop(columns=empty, errors="ignore")
    with replacing(path) as draft:
        table.to_csv(draft, index=False, lineterminator="\r\n")


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """The lines of a text; a long word breaks after a sign within it, if it can.

    Args:
        text: to be broken.
        width: characters of a line.
        indent: of all lines but the first.
    """
    return _Wrapper(width, subsequent_indent=indent, break_on_hyphens=False).wrap(text)


class _Wrapper(textwrap.TextWrapper):
    def _split(self, text: str) -> list[str]:
        room = self.width - len(self.subsequent_indent)
        words: list[str] = super()._split(text)
        parts = ((_SIGN.split(word) if len(word) > room else [word]) for word in words)
        return [part for those in parts for part in those if part]


def _in_markdown(text: str) -> str:
    """A cell whose signs mean nothing but themselves."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.strip().splitlines()))


def _fitting(table: Table, importance: Sequence[str], width: int) -> Table:
    kept, free = set(), width
    for block in sorted(table.blocks, key=importance.index):
        needs = sum(column.width + _GAP for column in table.blocks[block])
        if needs <= free or block in importance[:2]:
            kept.add(block)
            free -= needs
    return table.named(block for block in table.blocks if block in kept)


def _folded(table: Table, width: int, others_give_way: bool) -> Table:
    """The table with its widest column of words narrow enough for figures beside it."""
    column = table.widest
    if column is None or table.width <= width:
        return table
    others = table.width - column.width
    least = max(_NARROWEST // 2, width - others)
    most = max(_NARROWEST, int(_LARGEST_SHARE * width)) if others_give_way else least
    lines = [wrapped(cell.text, most, _INDENT) for cell in column.cells]
    narrow = replace(column, cells=[Cell("\n".join(line)) for line in lines])
    return replace(table, columns=[narrow if c is column else c for c in table.columns])
