"""`agrekd keys`: every key of a job, out of the classes that read it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from agrekd_ray.config import Job
from agrekd_ray.errors import AgrekdError, near
from agrekd_ray.settings import Settings

_REQUIRED = "required"
_LARGEST = 2**31
"""The bound of every whole number, which says nothing to a reader."""


@dataclass(frozen=True)
class Key:
    """A key of a job.

    Attributes:
        path: with dots; NAME stands for any name, N for a place in a list.
        allowed: its values, in words.
        default: as JSON, or `required`.
        meaning: in words.
    """

    path: str
    allowed: str
    default: str
    meaning: str

    def line(self, kinds: list[str]) -> str:
        """As an item of a Markdown list.

        Args:
            kinds: data sets that have it; empty where all jobs do.
        """
        required = self.default == _REQUIRED
        given = "" if required else f" = `{self.default}`"
        notes = [", ".join(kinds), _REQUIRED if required else "", self.allowed]
        said = "; ".join(note for note in notes if note)
        return f"- `{self.path}`{given} ({said}): {self.meaning}"


def reference(pattern: str = "") -> str:
    """The keys whose path holds a pattern, in Markdown, under a heading for each block of a job.

    Args:
        pattern: part of a path, or with `*` and `?` a whole one; all keys without.

    Raises:
        AgrekdError: no key is like that.
    """
    schema = Job.model_json_schema()
    kinds: dict[Key, list[str]] = {}
    for key, kind in _keys(schema, schema["$defs"], Job, "", ""):
        kinds.setdefault(key, []).extend([kind] if kind else [])
    chosen = [key for key in kinds if _fits(key.path, pattern)]
    if not chosen:
        raise AgrekdError(
            f"{pattern}: no key of a job.{near(pattern, (key.path for key in kinds))}"
        )
    lines: list[str] = []
    for key in chosen:
        heading = f"## {key.path.partition('.')[0]}"
        if heading not in lines:
            lines += ["", heading, ""] if lines else [heading, ""]
        lines.append(key.line(kinds[key]))
    return "\n".join(lines)


def _fits(path: str, pattern: str) -> bool:
    return fnmatch(path, pattern) if set("*?") & set(pattern) else pattern in path


def _keys(
    block: dict[str, Any], known: dict[str, Any], kind: type[Settings], path: str, data: str
) -> Iterator[tuple[Key, str]]:
    """The keys of a block and of those in it, and the data set that alone has each."""
    meanings = _meanings(kind)
    for name, values in block["properties"].items():
        place = f"{path}{name}"
        blocks = list(_blocks(values, known, place))
        if "$ref" not in values and "discriminator" not in values:
            needed = name in block.get("required", ())
            default = _REQUIRED if needed else json.dumps(values.get("default", {}))
            yield Key(place, _in_words(values), default, meanings[name]), data
        for inside, title in blocks:
            settings = _class(title, known[title])
            only = data or (known[title]["properties"]["name"]["const"] if name == "data" else "")
            yield from _keys(known[title], known, settings, f"{inside}.", only)


def _blocks(values: dict[str, Any], known: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Path and title of the blocks that a value may be or hold."""
    if "$ref" in values:
        title = values["$ref"].rpartition("/")[2]
        if "properties" in known[title]:
            yield path, title
    for choice in (*values.get("anyOf", ()), *values.get("oneOf", ())):
        yield from _blocks(choice, known, path)
    if isinstance(values.get("items"), dict):
        yield from _blocks(values["items"], known, f"{path}.N")
    if isinstance(values.get("additionalProperties"), dict):
        yield from _blocks(values["additionalProperties"], known, f"{path}.NAME")


def _in_words(values: dict[str, Any]) -> str:
    """What a value may be."""
    if choices := values.get("anyOf") or values.get("oneOf"):
        return " or ".join(dict.fromkeys(map(_in_words, choices)))
    if "const" in values:
        return f"`{values['const']}`"
    if "enum" in values:
        return " or ".join(f"`{value}`" for value in values["enum"])
    kind = values.get("type", "block" if "$ref" in values else "anything")
    if kind in ("integer", "number"):
        return ("whole number" if kind == "integer" else "number") + _bounds(values)
    if kind == "array":
        return f"list of {_in_words(values.get('items', {}))}"
    if kind == "object":
        inside = values.get("additionalProperties")
        return f"{_in_words(inside)} by name" if isinstance(inside, dict) else "anything by name"
    words = {"boolean": "`true` or `false`", "null": "`null`"}
    return words.get(kind) or ("path" if values.get("format") == "path" else kind)


def _bounds(values: dict[str, Any]) -> str:
    """Of a number; pydantic's own names of bounds stand where bounds are before a validator."""
    least = values.get("minimum", values.get("ge"))
    most = values.get("maximum", values.get("le"))
    above = values.get("exclusiveMinimum", values.get("gt"))
    below = values.get("exclusiveMaximum", values.get("lt"))
    below = None if below == _LARGEST else below
    least = None if above is not None else least
    signs = (("≥", least), (">", above), ("≤", most), ("<", below))
    said = " and ".join(f"{sign} {bound:,}" for sign, bound in signs if bound is not None)
    return f" {said}".rstrip()


def _class(title: str, block: dict[str, Any]) -> type[Settings]:
    """The class that a block of the schema is made of."""
    every = [Settings]
    for kind in every:
        every += kind.__subclasses__()
    fields = set(block["properties"])
    fitting = [k for k in every if k.__name__ == title and fields <= set(k.model_fields)]
    return min(fitting, key=lambda kind: len(kind.model_fields))


def _meanings(kind: type[Settings]) -> dict[str, str]:
    """What the docstrings of a class and of its bases say of its keys."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, attributes = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")
        for name, text in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found
