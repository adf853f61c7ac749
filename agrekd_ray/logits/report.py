"""The store of records on the terminal: what is there, what is damaged, what was removed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from agrekd_ray.data import SELECT, TEST, TRAIN
from agrekd_ray.logits.listing import Listed, listed, prune, verify
from agrekd_ray.terminal import say


def show(store: Path, console: Console) -> None:
    """A table of all records.

    Raises:
        RunError: there is no such folder.
    """
    found = listed(store)
    _table(found, console)
    say(console, f"{decimal(sum(one.bytes for one in found))} in {len(found)} folders of {store}")


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
            say(console, f"damaged: {path}", "red")
    told = f"{damaged} damaged; the next run that needs them makes them again"
    say(console, f"{count} records: {told if damaged else 'all sound'}")
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
    say(console, f"{'would free' if keep else 'freed'} {size}: {len(gone)} folders of {store}")


def _table(found: Sequence[Listed], console: Console) -> None:
    """A row a model, the one used last first."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    # On a narrow screen the teacher's name gives way, of which the first letters tell enough, and
    # what is recorded takes several lines.
    table.add_column("Teacher", no_wrap=True, overflow="ellipsis", min_width=8)
    table.add_column("Recorded")
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Last used", no_wrap=True)
    models: dict[tuple[str, ...], list[Listed]] = {}
    for one in found:
        key = one.key
        who = (key.teacher, key.weights) if key else ("(damaged)", one.folder.name)
        models.setdefault(who, []).append(one)
    for (teacher, _), folders in models.items():
        used = max(one.used for one in folders)
        date = datetime.fromtimestamp(used, UTC)
        table.add_row(
            Text(teacher),
            ", ".join(map(_recorded, sorted(folders, key=_place))),
            decimal(sum(one.bytes for one in folders)),
            f"{date:%Y-%m-%d}" if time.time() - used >= 60 else "just now",
        )
    console.print(table)


def _place(one: Listed) -> int:
    order = (TRAIN, SELECT, TEST)
    return order.index(one.key.split) if one.key and one.key.split in order else len(order)


def _recorded(one: Listed) -> str:
    """`train 10 × 1000`: views and samples of a split; only training has several views."""
    if one.key is None:
        return f"{len(one.views)} views"
    views = f"{len(one.views)} × " if one.key.split == TRAIN else ""
    small = f" {one.key.form}" if str(one.key.form) != "float32" else ""
    small += f" {one.key.autocast}" if one.key.autocast != "none" else ""
    unfinished = f" ({len(one.unfinished)} unfinished)" if one.unfinished else ""
    return f"{one.key.split} {views}{one.key.rows}{small}{unfinished}"
