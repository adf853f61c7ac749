"""The store of records on the terminal: what is there, what is damaged, what was removed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from agrekd_ray.outputs.store import Listed, listed, prune, verify


def show(store: Path, console: Console) -> None:
    """A table of all records.

    Raises:
        RunError: there is no such folder.
    """
    found = listed(store)
    _table(found, console)
    _say(console, f"{decimal(sum(one.bytes for one in found))} in {len(found)} folders of {store}")


def check(store: Path, console: Console) -> bool:
    """Verify all records and name the damaged ones; whether all are sound.

    Raises:
        RunError: there is no such folder.
    """
    count, damaged = 0, 0
    for path, sound in verify(store):
        count += 1
        if not sound:
            damaged += 1
            _say(console, f"damaged: {path}", "red")
    told = f"{damaged} damaged; the next run that needs them makes them again"
    _say(console, f"{count} records: {told if damaged else 'all sound'}")
    return not damaged


def remove(store: Path, days: float, console: Console, *, keep: bool) -> None:
    """Remove what has not been used for so many days, and say what.

    Raises:
        RunError: there is no such folder, or it cannot be written.
    """
    gone = prune(store, days, keep=keep)
    if gone:
        _table(gone, console)
    size = decimal(sum(one.bytes for one in gone))
    _say(console, f"{'would free' if keep else 'freed'} {size}: {len(gone)} folders of {store}")


def _table(found: Sequence[Listed], console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Teacher", "Split", "Views", "Samples", "Type", "Size", "Last used"):
        right = name in ("Views", "Samples", "Size")
        # On a narrow screen the teacher's name gives way: its first letters tell enough.
        gives_way = name == "Teacher"
        table.add_column(
            name,
            justify="right" if right else "left",
            no_wrap=not gives_way,
            overflow="ellipsis",
        )
    for one in found:
        key, unfinished = one.key, len(one.unfinished)
        used = datetime.fromtimestamp(one.used, UTC)
        table.add_row(
            escape(key.teacher) if key else "(damaged)",
            key.split if key else "",
            f"{len(one.views)}{f' + {unfinished} unfinished' if unfinished else ''}",
            str(key.rows) if key else "",
            key.dtype if key else "",
            decimal(one.bytes),
            f"{used:%Y-%m-%d %H:%M}" if time.time() - one.used >= 60 else "just now",
        )
    console.print(table)


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(escape(text), style=style, highlight=False, soft_wrap=True)
