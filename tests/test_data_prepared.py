"""Preparation: whole or not at all, taken up after a kill, once however many ask."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from agrekd_ray.data.chunks import CHUNK, BrokenRowsError, Made, Room, Work
from agrekd_ray.data.prepared import PreparedRows
from agrekd_ray.errors import DataError

from .shared import until

KEY = "ab" * 32
COUNT = 3 * CHUNK + 17


def rows(folder: Path, count: int = COUNT) -> PreparedRows:
    return PreparedRows(folder, KEY, count, (2, 3), np.int32)


def work(
    made: list[int], spoilt: dict[int, list[str]] | None = None
) -> Callable[..., Iterator[Work]]:
    """Chunks whose rows are their numbers; what is made is noted."""

    def make(number: int) -> Made:
        made.append(number)
        if spoilt and number in spoilt:
            raise BrokenRowsError(spoilt[number])
        first = number * CHUNK
        values = np.arange(first, min(first + CHUNK, COUNT), dtype=np.int32)
        return (
            np.broadcast_to(values[:, None, None], (len(values), 2, 3)),
            bytes([number + 1] * 32),
            (),
        )

    def chunks(numbers: Sequence[int]) -> Iterator[Work]:
        for number in numbers:
            yield Work(number, lambda number=number: make(number))

    return chunks


def check(found: PreparedRows) -> None:
    values = found.rows()
    assert values.shape == (COUNT, 2, 3)
    assert (values == np.arange(COUNT)[:, None, None]).all()


def test_rows_are_made_once(tmp_path: Path) -> None:
    one, made, told = rows(tmp_path), [], []
    assert (one.left(), one.whole) == (COUNT, False)
    with pytest.raises(DataError, match="not prepared"):
        one.rows()
    one.fill(work(made), lambda done, total: told.append((done, total)))
    check(one)
    assert sorted(made) == [0, 1, 2, 3]
    assert told[0] == (0, COUNT)
    assert told[-1] == (COUNT, COUNT)
    other = rows(tmp_path)
    assert (other.left(), other.whole) == (0, True)
    other.fill(work(made))
    assert len(made) == 4
    assert other.digest() == one.digest()
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_made_stays_where_the_rest_is_broken(tmp_path: Path) -> None:
    one, made = rows(tmp_path), []
    spoilt = {
        1: [f"row {n}: broken" for n in range(8)],
        2: ["row 600: broken", "row 601: broken", "x"],
    }
    with pytest.raises(BrokenRowsError, match=r"row 0: broken.*and 1 more \(11 in all\)"):
        one.fill(work(made, spoilt))
    assert one.left() == 2 * CHUNK
    assert not one.whole
    again: list[int] = []
    one.fill(work(again))
    assert sorted(again) == [1, 2]
    check(one)
    whole = rows(tmp_path / "at once")
    whole.fill(work([]))
    assert whole.digest() == one.digest()


def test_a_damaged_set_is_made_again(tmp_path: Path) -> None:
    one = rows(tmp_path)
    one.fill(work([]))
    with (one.place / "rows").open("r+b") as file:
        file.truncate(100)
    made: list[int] = []
    other = rows(tmp_path)
    assert other.left() == COUNT
    other.fill(work(made))
    assert len(made) == 4
    check(other)


@pytest.mark.parametrize("name", ["rows", "digests", "whole.json"])
def test_what_is_no_file_any_more_is_made_again_or_one_error(tmp_path: Path, name: str) -> None:
    one = rows(tmp_path)
    one.fill(work([]))
    for kind in ("link to itself", "folder"):
        file = one.place / name
        file.unlink()
        file.symlink_to(name) if kind == "link to itself" else file.mkdir()
        other = rows(tmp_path)
        if name == "digests":
            with pytest.raises(DataError, match="damaged"):
                other.digest()
            shutil.rmtree(one.place)
        other.fill(work([]))
        assert other.digest() == rows(tmp_path).digest()
        check(other)


def test_a_partial_of_another_size_is_not_believed(tmp_path: Path) -> None:
    one = rows(tmp_path)
    with pytest.raises(BrokenRowsError):
        one.fill(work([], {3: ["x"]}))
    (partial,) = tmp_path.glob("*.partial")
    with (partial / "rows").open("r+b") as file:
        file.truncate(100)
    assert one.left() == COUNT


@pytest.mark.parametrize(
    ("threads", "memory", "held", "most"),
    [(2, 1e9, 0, 3), (6, 3.5 * CHUNK * 24, 0, 3), (6, 6 * CHUNK * 24, CHUNK * 24, 3), (3, 0, 0, 1)],
    ids=["threads", "memory", "memory of sources", "less than one"],
)
def test_only_few_chunks_are_under_way(
    tmp_path: Path, threads: int, memory: float, held: int, most: int
) -> None:
    under_way, highest = 0, 0
    one = rows(tmp_path, 40 * CHUNK)

    def chunks(numbers: Sequence[int]) -> Iterator[Work]:
        nonlocal under_way, highest
        for number in numbers:
            under_way += 1
            highest = max(highest, under_way)
            made = (np.zeros((CHUNK, 2, 3)), bytes([1] * 32), ())
            yield Work(number, lambda made=made: made, held)

    def done(rows_done: int, total: int) -> None:
        nonlocal under_way
        under_way -= rows_done > 0

    one.fill(chunks, done, Room(threads, memory))
    assert one.whole
    assert highest == most


def test_threads_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agrekd_ray.data.chunks.usable_cpus", lambda: 8)
    monkeypatch.setattr("agrekd_ray.data.chunks.free_memory", lambda: 1000)
    assert Room.of_process() == Room(8, 250)
    assert Room.of_process(2.5) == Room(2, 62.5)
    assert Room.of_process(0) == Room(1, 31.25)
    assert Room.of_process(64) == Room(8, 250)


def test_spans_of_several_processes_share_no_page_of_memory(tmp_path: Path) -> None:
    for shape in ((3, 4, 4), (3, 224, 224), (3, 73, 73), (2, 3), (1,), (299,)):
        one = PreparedRows(tmp_path, KEY, COUNT, shape, np.uint8)
        for count in (1, 5, 16):
            span = one.aligned(count)
            assert count <= span < count + 16
            assert span * CHUNK * one.bytes // COUNT % mmap.PAGESIZE == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_process_that_is_bound_to_one_processor_uses_one() -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from agrekd_ray.data.chunks import Room; print(Room.of_process().threads)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.prepared: .* GB are needed"):
        rows(tmp_path / "file" / "deeper").fill(work([]))


SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from agrekd_ray.data.chunks import Work
from agrekd_ray.data.prepared import PreparedRows
from tests.test_data_prepared import COUNT, KEY, work
notes, pause, last = Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
made = []
def slowly(numbers):
    for number, make, _ in work(made)(numbers):
        def run(number=number, make=make):
            while number > last:
                time.sleep(1)  # until it is killed
            time.sleep(pause)
            with notes.open("a") as file:
                file.write(f"{number}\\n")
            return make()
        yield Work(number, run)
found = PreparedRows(Path(sys.argv[1]), KEY, COUNT, (2, 3), np.int32)
found.fill(slowly)
print(found.digest())
"""


def start(folder: Path, notes: Path, pause: float, last: int = 99) -> subprocess.Popen[str]:
    """Makes the chunks up to the last, and never comes to an end with those after it."""
    command = [sys.executable, "-c", SLOW, str(folder), str(notes), str(pause), str(last)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )


def test_a_killed_preparation_is_taken_up(tmp_path: Path) -> None:
    """It is killed while it makes the last chunks; those that were whole are not made again."""
    notes, folder = tmp_path / "notes", tmp_path / "p"
    process = start(folder, notes, 0, last=1)
    one = rows(folder)
    until(lambda: one.left() < COUNT, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not one.whole
    left = one.left()
    assert 0 < left < COUNT
    made: list[int] = []
    one.fill(work(made))
    assert sum(CHUNK if number < 3 else 17 for number in made) == left
    check(one)
    other = rows(tmp_path / "at once")
    other.fill(work([]))
    assert other.digest() == one.digest()


def test_two_processes_at_once_make_every_row_once(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    both = [start(tmp_path / "p", notes, 0.2) for _ in range(2)]
    digests = {process.communicate()[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(digests) == 1
    assert sorted(notes.read_text().split()) == ["0", "1", "2", "3"]
    check(rows(tmp_path / "p"))
