"""Damage to valid files, drawn from a seeded generator: the same seed damages the same way."""

from __future__ import annotations

import copy
import gzip
import io
import json
import math
import pickle
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

Damage = Callable[[Random, Path], str | None]
"""Damages a file; returns what it did in words, or None where it does not apply to such a file."""
LONG = 200_000
EXECUTED = "executed"
"""A file that appears in the working folder where a pickle was run."""


class _Code:
    def __reduce__(self) -> Any:
        return open, (EXECUTED, "w")


def _foreign() -> dict[str, bytes]:
    """Contents of other kinds of files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Code()))
        archive.writestr("archive/version", "3\n")
    array = io.BytesIO()
    np.save(array, np.eye(3))
    arrow = io.BytesIO()
    table = pa.table({"logits": [[1.0, 2.0], [3.0]], "other": ["a", None]})
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE runs (a)")
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return {
        "a pickle": pickle.dumps(_Code()),
        "an archive": packed.getvalue(),
        "a gzip file": gzip.compress(b"hello" * 50),
        "an array": array.getvalue(),
        "an Arrow file": arrow.getvalue(),
        "a database": database.serialize(),
        "safetensors": len(header).to_bytes(8, "little") + header + bytes(8),
        "a program": b"\x7fELF\x02\x01\x01" + bytes(100),
        "JSON": b'{"name": "x", "space": {"a": 1}, "base": []}',
        "a list": b"[1, 2, {}]",
        "a number": b"7",
        "null": b"null",
        "a text": "Grüße\n- : {a b\n".encode(),
        "UTF-16": "name: x\n".encode("utf-16"),
        "CSV": b"a,b\n1,2\n1\n,,,\n",
        "a page": b"<!doctype html><title>404</title>",
    }


FOREIGN = _foreign()


def _bytes(words: str, change: Callable[[Random, bytes], bytes]) -> Damage:
    def damage(rng: Random, path: Path) -> str:
        path.write_bytes(change(rng, path.read_bytes()))
        return words

    return damage


def _place(rng: Random, content: bytes) -> int:
    """Often near the ends, where headers and footers are."""
    near = min(len(content), 200)
    return rng.choice(
        (
            rng.randint(0, len(content)),
            rng.randint(0, near),
            len(content) - rng.randint(0, near),
        )
    )


def _flip(rng: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 3, 20)) if content else 0):
        changed[min(_place(rng, content), len(content) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: Random, content: bytes) -> bytes:
    return content[: _place(rng, content)]


def _lose(rng: Random, content: bytes) -> bytes:
    at = _place(rng, content)
    return content[:at] + content[at + rng.choice((1, 8, 100)) :]


def _zero(rng: Random, content: bytes) -> bytes:
    at, size = _place(rng, content), rng.choice((1, 16, 512))
    return content[:at] + bytes(len(content[at : at + size])) + content[at + size :]


def _insert(rng: Random, content: bytes) -> bytes:
    at = _place(rng, content)
    more = rng.choice(
        (
            b"\0",
            b"\xff\xfe\x80",
            rng.randbytes(8),
            rng.randbytes(3000),
            b"A" * LONG,
            b"[" * LONG,
            b"\n",
            b"nan",
            b"-1",
            b"1e999",
            b",",
            b'"',
            b"\r",
        )
    )
    return content[:at] + more + content[at:]


def _swap(rng: Random, path: Path) -> str:
    kind = rng.choice(sorted(FOREIGN))
    path.write_bytes(FOREIGN[kind])
    return f"replaced by {kind}"


def _into_folder(rng: Random, path: Path) -> str:
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        (path / "inside").write_text("x")
    return "a folder instead of the file"


def _into_loop(rng: Random, path: Path) -> str:
    path.unlink()
    path.symlink_to(path.name)
    return "a link to itself"


def _into_nowhere(rng: Random, path: Path) -> str:
    path.unlink()
    path.symlink_to("nowhere/at/all")
    return "a link to nowhere"


def _parent_into_loop(rng: Random, path: Path) -> str | None:
    folder = path.parent
    if folder == Path.cwd():
        return None
    shutil.rmtree(folder)
    folder.symlink_to(folder.name)
    return "its folder a link to itself"


def _forbid(rng: Random, path: Path) -> str:
    path.chmod(0)
    return "no rights"


def _remove(rng: Random, path: Path) -> str:
    path.unlink()
    return "removed"


# --- values


def _nested(rng: Random) -> Any:
    value: Any = rng.choice(([], {}, 1))
    for _ in range(rng.choice((10, 60))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def junk(rng: Random) -> Any:
    """A value that is out of place nearly everywhere."""
    number = rng.choice(
        (0, -1, 1, 7, 2**31, 2**63, -(2**63) - 1, 10**12, 10**30, 10**400, 0.0, -0.5, 1e-320, 1e308)
    )
    text = rng.choice(
        (
            "",
            "x",
            " ",
            "nan",
            "1e5",
            "null",
            "\0",
            "a\0b",
            "ä" * 300,
            "x" * LONG,
            "../../outside",
            "/dev/null",
            "/dev/null/x",
            "/proc/self/mem",
            "~nobody-at-all/x",
            "${nothing}",
            "${oc.env:HOME}",
            "???",
            "{",
            "%s %d {0}",
            "[bold]x[/bold]",
            "\ud800",
            "line\nline",
            "loop/loop",
            "' or 1=1 --",
            ".",
            "..",
            "-",
        )
    )
    return rng.choice(
        (
            number,
            number,
            text,
            text,
            rng.choice((None, True, False, math.nan, math.inf, -math.inf)),
            rng.choice(([], {}, [[]], [None], {"name": None}, {"": 1}, ["a", 1, {}])),
            _nested(rng),
        )
    )


def _walk(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    paths = [path] if path else []
    children = (
        value.items()
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else ()
    )
    for key, child in children:
        paths += _walk(child, (*path, key))
    return paths


def _at(values: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        values = values[part]
    return values


def mutated(rng: Random, values: Any) -> tuple[Any, str]:
    """Values with one of them changed, and what was done."""
    values = copy.deepcopy(values)
    paths = _walk(values)
    if not paths or rng.random() < 0.02:
        return junk(rng), "all values replaced"
    path = rng.choice(paths)
    where = ".".join(map(str, path))
    place, key = _at(values, path[:-1]), path[-1]
    old = place[key]
    how = rng.choice(("junk", "junk", "junk", "remove", "add", "rename", "list", "number", "other"))
    if how == "remove":
        del place[key]
    elif how == "add" and isinstance(place, dict):
        place[rng.choice(("surplus", "", "name", "a.b", "x" * 300, "\0"))] = junk(rng)
    elif how == "rename" and isinstance(place, dict):
        place[f"{key}{rng.choice('sx_ ')}"] = place.pop(key)
    elif how == "list" and isinstance(place, list):
        place[:] = rng.choice((place * 2, place[:1], [], [*place, None], [[*place]]))
    elif how == "number" and isinstance(old, int | float) and not isinstance(old, bool):
        place[key] = rng.choice(
            (-old, old * 10**9, old + 0.5, str(old), float(old), [old], not old)
        )
    elif how == "other":
        place[key] = copy.deepcopy(_at(values, rng.choice(paths)))
    else:
        how, place[key] = "junk", junk(rng)
    return values, f"{how} at {where[:200]}"


def _values(rng: Random, path: Path) -> str | None:
    """Valid JSON or YAML of other values."""
    if path.suffix not in (".json", ".yaml"):
        return None
    text = path.read_text()
    values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not isinstance(values, dict | list):
            break
        values, words = mutated(rng, values)
        done.append(words)
    path.write_text(
        json.dumps(values)
        if path.suffix == ".json"
        else yaml.safe_dump(values, sort_keys=False, allow_unicode=False)
    )
    return "; ".join(done)


def _multiplied(rng: Random, path: Path) -> str | None:
    """YAML whose anchors stand for a billion values."""
    if path.suffix != ".yaml":
        return None
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for number in range(1, rng.choice((3, 9, 30))):
        lines.append(f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]")
    path.write_text("\n".join(lines) + "\n" + path.read_text())
    return f"{len(lines)} levels of anchors"


BYTES: tuple[Damage, ...] = (
    _bytes("cut", _cut),
    _bytes("cut", _cut),
    _bytes("bits flipped", _flip),
    _bytes("bits flipped", _flip),
    _bytes("bytes lost", _lose),
    _bytes("bytes zeroed", _zero),
    _bytes("bytes inserted", _insert),
    _bytes("emptied", lambda rng, content: b""),
    _bytes("doubled", lambda rng, content: content * 2),
    _swap,
    _into_folder,
    _into_loop,
    _into_nowhere,
    _parent_into_loop,
    _forbid,
    _remove,
)
VALUES: tuple[Damage, ...] = (*[_values] * 12, _multiplied)
