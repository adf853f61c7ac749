"""The terminal: one kind of console, line and table, streams for every text, UTF-8 underneath."""

from __future__ import annotations

import codecs
import io
import locale
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

NEAR = "agrekd_ray.near"
"""Name of the error handler that puts a near sign where an encoding lacks one."""
_SIGNS = {
    **{"×": "x", "±": "+-", "…": "...", "·": "-", "²": "2", "½": "1/2", "←": "<-"},
    **{"≤": "<=", "≥": ">="},
    **{"τ": "tau", "α": "alpha", "Δ": "Delta", "Σ": "Sum", "‖": "||", "⟨": "<", "⟩": ">"},
    **dict.fromkeys("–—−─━", "-"),
    **dict.fromkeys("│┃", "|"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯╷╵╶╴", "+"),
}
"""Signs of ours, and of the libraries that write here; other text is the user's."""


def screen(**options: Any) -> Console:
    """A console that shows texts as they are: no markup, no codes of emoji, nothing highlighted.

    Args:
        options: further ones of `rich.console.Console`.
    """
    return Console(markup=False, emoji=False, highlight=False, **options)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is, however wide the console."""
    console.print(Text(text, style), soft_wrap=True)


def show_table(
    console: Console, names: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1
) -> None:
    """Print a table whose first column is folded where the console is narrow.

    Args:
        console: to print on.
        names: of the columns.
        rows: of texts.
        left: columns that stand on the left; the others, which are numbers, on the right.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(names):
        table.add_column(
            name,
            justify="left" if number < left else "right",
            overflow="ellipsis" if number else "fold",
            no_wrap=number > 0,
        )
    for row in rows:
        table.add_row(*row)
    console.print(table)


def counted(count: int, what: str) -> str:
    """A number of things, as `2 nodes`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def prepare_streams() -> None:
    """What an encoding lacks becomes a near sign on standard output and error, and no failure."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=NEAR)
    # What this process starts writes files, which are UTF-8.
    os.environ.pop("PYTHONIOENCODING", None)


def in_utf8() -> None:
    """Start this program anew in Python's UTF-8 mode where the locale has another encoding.

    Names of files and tables are then read alike on every machine, by libraries and by the
    processes that Ray starts, too. The terminal keeps its encoding.
    """
    encoding = locale.getencoding()
    if sys.flags.utf8_mode or "PYTHONUTF8" in os.environ or _is_utf8(encoding):
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", encoding)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def _near(error: UnicodeError) -> tuple[str | bytes, int]:
    """A sign of ours as near ones, half a character of a file's name as its byte, else an escape.

    An escape says which character it was: `Vögel` as `Vogel` would be another file.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign, after = error.object[error.start], error.start + 1
    if "\udc80" <= sign <= "\udcff":
        return bytes([ord(sign) - 0xDC00]), after
    return _SIGNS.get(sign) or sign.encode("ascii", "backslashreplace").decode("ascii"), after


codecs.register_error(NEAR, _near)
