"""Recorded outputs: whole or not at all, resumed, verified."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from agrekd_ray.errors import RunError
from agrekd_ray.logits import (
    Key,
    LogitsWriter,
    read_record,
    sound,
    write_record,
)
from agrekd_ray.logits.forms import Packed

KEY = Key("erm-0", "w" * 64, {"name": "cnn"}, "d", "v", "none", "float32", 200, 10)


FORMS: list[dict[str, Any]] = [
    {"dtype": "float32"},
    {"dtype": "float16"},
    {"dtype": "int8"},
    {"dtype": "float32", "top_k": 3},
    {"dtype": "float16", "top_k": 4},
    {"dtype": "int8", "top_k": 2},
]


def some_logits(key: Key = KEY, seed: int = 0) -> np.ndarray:
    """As a record in the key's form gives them back."""
    rows = np.random.default_rng(seed).normal(size=(key.rows, key.classes))
    return key.form.decode(key.form.encode(rows))


# --- one record


@pytest.mark.parametrize("form", FORMS)
def test_a_record_is_read_as_it_was_written_and_costs_its_numbers(
    tmp_path: Path, form: dict[str, Any]
) -> None:
    key = replace(KEY, **form, rows=4000)
    logits = np.random.default_rng(0).normal(size=(4000, 10))
    write_record(tmp_path / "view-00000.arrow", key, logits)
    read = read_record(tmp_path / "view-00000.arrow", key)
    assert read is not None
    np.testing.assert_array_equal(read[:], some_logits(key))
    stored = read.rows_NR if isinstance(read, Packed) else read
    assert not stored.flags.writeable  # the file's own pages
    size = (tmp_path / "view-00000.arrow").stat().st_size
    assert size == pytest.approx(key.rows * key.form.row_bytes, rel=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["view-00000.arrow"]


def test_a_record_is_an_ordinary_arrow_file(tmp_path: Path) -> None:
    write_record(tmp_path / "one.arrow", KEY, some_logits())
    table = pa.ipc.open_file(tmp_path / "one.arrow").read_all()
    assert table.column_names == ["logits"]
    np.testing.assert_allclose(table["logits"][7].as_py(), some_logits()[7])


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "other"},
        {"model": {"name": "cnn_deep"}},
        {"data": "other"},
        {"views": "other"},
        {"autocast": "bfloat16"},
        {"dtype": "float16"},
        {"dtype": "int8"},
        {"top_k": 3},
    ],
)
def test_whatever_changes_the_output_changes_the_key(tmp_path: Path, change: Any) -> None:
    other = replace(KEY, **change)
    assert other.folder != KEY.folder
    write_record(tmp_path / "one.arrow", KEY, some_logits())
    assert read_record(tmp_path / "one.arrow", other) is None
    assert replace(KEY, teacher="renamed").folder == KEY.folder


def test_records_of_before_there_were_packed_forms_are_found() -> None:
    folders = [replace(KEY, dtype=dtype).folder for dtype in ("float32", "float16")]
    assert folders == ["774a08601fe3fe4b24c6", "0dfc64e96988dedf8617"]
    assert "top_k" not in KEY.about


def test_every_kind_of_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "one.arrow"
    write_record(path, KEY, some_logits())
    whole = path.read_bytes()
    values = whole.index(some_logits()[100].tobytes())
    rng = np.random.default_rng(0)
    flips = {int(place) for place in rng.integers(values - 3000, values + 3000, 40)}
    damaged = [b"", b"ARROW1", whole[: len(whole) // 2], whole[:-1], whole[8:], whole + b"\0"]
    damaged += [whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :] for at in flips]
    found = 0
    for content in damaged:
        path.write_bytes(content)
        read = read_record(path, KEY)
        assert read is None or np.array_equal(read, some_logits())  # padding may be damaged
        found += read is None
    assert found > len(flips) / 2
    path.unlink()
    assert read_record(path, KEY) is None


# --- a record in the making


def test_rows_come_in_any_order_and_the_record_appears_when_all_are_there(tmp_path: Path) -> None:
    path, logits = tmp_path / "k/view-00000.arrow", some_logits()
    partial = LogitsWriter(path, KEY)
    order = np.random.default_rng(1).permutation(200)
    for rows in np.split(order, 8):
        assert not partial.known_N[rows].any()
        partial.put(rows, logits[rows])
        np.testing.assert_array_equal(partial.get(rows), logits[rows])
        assert not path.exists()
    assert partial.known_N.all()
    partial.finish()
    np.testing.assert_array_equal(read_record(path, KEY), logits)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


WRITER = """
import sys, numpy as np
from pathlib import Path
from tests.test_logits import FORMS, KEY, LogitsWriter, replace, some_logits
key = replace(KEY, **FORMS[int(sys.argv[2])])
partial = LogitsWriter(Path(sys.argv[1]), key)
for row in range(200):
    partial.put(np.array([row]), some_logits()[[row]])
    print(row, flush=True)
    if row == 120: sys.stdin.read()
"""


@pytest.mark.parametrize("number", [0, 5])
def test_what_a_killed_writer_left_is_taken_up_and_only_what_is_whole(
    tmp_path: Path, number: int
) -> None:
    path, key = tmp_path / "view-00000.arrow", replace(KEY, **FORMS[number])
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert writer.stdout is not None
    while writer.stdout.readline().strip() != "120":
        assert writer.poll() is None
    beside = LogitsWriter(path, key)  # its writer lives, so it is not taken from it
    assert not beside.known_N.any()
    beside.put(np.array([150]), some_logits()[[150]])
    beside.close()
    writer.kill()
    writer.wait()
    left = sorted(tmp_path.glob("*.partial"))
    assert len(left) == 2
    for one in left:  # a row that was torn
        content = bytearray(one.read_bytes())
        content[5 * key.form.row_bytes + 3] ^= 1
        one.write_bytes(content)
    partial = LogitsWriter(path, key)
    assert np.flatnonzero(~partial.known_N).tolist() == [5, *range(121, 150), *range(151, 200)]
    np.testing.assert_array_equal(partial.get(np.array([7, 150])), some_logits(key)[[7, 150]])
    assert len(list(tmp_path.glob("*.partial"))) == 1  # put together
    rows = np.flatnonzero(~partial.known_N)
    partial.put(rows, some_logits()[rows])
    partial.finish()
    read = read_record(path, key)
    assert read is not None
    np.testing.assert_array_equal(read[:], some_logits(key))


def test_a_partial_that_was_cut_short_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "view-00000.arrow"
    (tmp_path / "view-00000.0000.partial").write_bytes(b"short")
    partial = LogitsWriter(path, KEY)
    assert not partial.known_N.any()
    assert len(list(tmp_path.glob("*.partial"))) == 1


def test_two_writers_of_one_record_do_not_disturb_each_other(tmp_path: Path) -> None:
    path, logits = tmp_path / "view-00000.arrow", some_logits()
    one, two = LogitsWriter(path, KEY), LogitsWriter(path, KEY)
    one.put(np.arange(200), logits)
    two.put(np.arange(100), logits[:100])
    one.finish()
    two.put(np.arange(100, 200), logits[100:])
    read = read_record(path, KEY)
    two.finish()
    np.testing.assert_array_equal(read, logits)
    np.testing.assert_array_equal(read_record(path, KEY), logits)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"No space left on device.*outputs prune"):
        LogitsWriter(tmp_path / "view-00000.arrow", KEY)
    assert list(tmp_path.iterdir()) == []


def test_without_locks_nobody_takes_a_partial_that_may_be_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(file: Any, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    path, logits = tmp_path / "view-00000.arrow", some_logits()
    one = LogitsWriter(path, KEY)
    one.put(np.arange(100), logits[:100])
    two = LogitsWriter(path, KEY)
    assert not two.known_N.any()
    two.put(np.arange(200), logits)
    two.finish()
    one.close()
    np.testing.assert_array_equal(read_record(path, KEY), logits)


def test_a_large_record_is_read_whole_once_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[int] = []
    digest = sound._digest

    def counted(values: np.ndarray) -> str:
        whole.append(values.nbytes)
        return digest(values)

    monkeypatch.setattr(sound, "_digest", counted)
    monkeypatch.setattr(sound.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    path = tmp_path / "view-00000.arrow"
    write_record(path, KEY, some_logits())
    assert read_record(path, KEY) is not None
    assert read_record(path, KEY) is not None
    assert len(whole) == 2  # a small one each time
    monkeypatch.setattr(sound, "FROM_BYTES", 1)
    threads = [threading.Thread(target=read_record, args=(path, KEY)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(whole) == 3
    assert read_record(path, KEY, anew=True) is not None
    assert len(whole) == 4

    (stamp,) = (tmp_path / "tmp").rglob("*/*")
    os.utime(stamp, (0, 0))  # long ago
    assert read_record(path, KEY) is not None
    assert len(whole) == 5

    content = bytearray(path.read_bytes())
    content[content.index(some_logits()[100].tobytes())] ^= 1
    path.write_bytes(content)
    assert read_record(path, KEY) is None  # written since, so another file
    assert read_record(path, KEY) is None
    assert len(whole) == 7

    write_record(path, KEY, some_logits())
    (tmp_path / "tmp" / next((tmp_path / "tmp").iterdir()).name).chmod(0o777)
    assert read_record(path, KEY) is not None
    assert read_record(path, KEY) is not None
    assert len(whole) == 9  # in a folder that others can write to nothing is believed
