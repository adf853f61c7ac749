"""Names in tables: one spelling of a value, whatever holds it, and what in it nobody sees."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
"""A value that is a number, as JSON writes them: `007` and `+1` are names."""
_DIGITS = re.compile(r"-?[0-9]+")
_TRUTH = re.compile(r"true|True|TRUE|false|False|FALSE")
_EXACT = 1e16
"""From here on whole numbers are not exact as floats, and stay in the notation of floats."""
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]"
)
"""Unicode's default ignorable code points: no width, no ink."""
_LONGEST = 200


def canonical(text: str) -> str:
    """One spelling of a number or truth value, as text tables and typed columns write them.

    `1.0` is `1`, `2.50` is `2.5`, `True` is `true`; all else is as it was written.
    """
    if _TRUTH.fullmatch(text):
        return text.lower()
    if not (match := NUMBER.fullmatch(text)):
        return text
    if match[2] is None and match[3] is None:
        return text if text != "-0" else "0"
    number = float(text)
    if abs(number) < _EXACT and number.is_integer():
        return str(int(number))
    return text if abs(number) == float("inf") else repr(number)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names sorted: as numbers where all of them are, else as text."""
    every = list(names)
    if all(map(is_number, every)):
        return tuple(sorted(every, key=lambda name: (_value(name), name)))
    return tuple(sorted(every))


def _value(number: str) -> int | float:
    return int(number) if _DIGITS.fullmatch(number) and len(number) < 300 else float(number)


def visible(name: str) -> str:
    """A name without what nobody sees: kinds of blanks, signs without width, normal forms."""
    if not (name.isascii() and name.isprintable()):
        name = _UNSEEN.sub("", unicodedata.normalize("NFC", name)).replace("\u2800", " ")
    return " ".join(name.split())


def folded(name: str) -> str:
    """What is left of a name without case, too."""
    return unicodedata.normalize("NFC", visible(name).casefold())


def has_blank_end(name: str) -> bool:
    """Whether a name begins or ends with a blank, of width or without."""
    return name != name.strip() or name != name.strip("\u200b\u2060\u2800\ufeff")


def is_number(name: str) -> bool:
    """Whether a name is a number or digits."""
    return bool(NUMBER.fullmatch(name) or _DIGITS.fullmatch(name))


def quoted(name: str, most: int = _LONGEST) -> str:
    """A name in quotes, on one line, with an escape for what nobody would see."""
    cut = name if len(name) <= most else f"{name[: most - 1]}…"
    plain = unicodedata.is_normalized("NFC", cut) and not _UNSEEN.search(cut)
    return repr(cut) if plain else ascii(cut)


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names in quotes, the first dozen of many."""
    every = list(names)
    return ", ".join(map(quoted, every[:most])) + (", ..." if len(every) > most else "")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant; one that looks the same before all others."""
    by_look: dict[str, str] = {}
    for other in names:
        by_look.setdefault(folded(other), other)
    near = difflib.get_close_matches(folded(name), list(by_look), 1, 0.5)
    return by_look[near[0]] if near else None


def file_alike(path: Path) -> Path | None:
    """A file or folder that is there, and whose path differs in case or in what nobody sees."""
    try:
        if path.exists():
            return path
        if (folder := file_alike(path.parent)) is None:
            return None
        look = folded(path.name)
        return next((entry for entry in folder.iterdir() if folded(entry.name) == look), None)
    except (OSError, ValueError):  # no folder, or no path at all
        return None
