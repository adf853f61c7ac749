"""A loader: batches in order, ahead of whoever asks, with the rows of further columns."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agrekd_ray.data import Arrays
from agrekd_ray.training import Column, Loaded, Loader, Request
from agrekd_ray.training import loader as loading


class Digits:
    """Sixteen numbers, as arrays; a view adds its own number."""

    classes, shape, size = ("a", "b"), (1,), 16
    views_fingerprint = fingerprint = "digits"
    splits: dict[str, np.ndarray] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.rows = np.arange(16, dtype=np.uint8)[:, None]
        self.gathered: list[int] = []

    def view(self, epoch: int) -> int:
        return epoch % 3

    def arrays(self, view: int | None) -> tuple[np.ndarray, ...]:
        self.gathered.append(-1 if view is None else view)
        return (self.rows,)

    def show(self, rows: Sequence[Tensor], view: int | None) -> Tensor:
        return rows[0].float() + (0 if view is None else 100 * view)

    def lengths(self, ids: np.ndarray) -> np.ndarray | None:
        return None

    def inputs(self, ids: np.ndarray, epoch: int | None) -> Tensor:
        raise AssertionError("its arrays are asked for")

    def labels(self, ids: np.ndarray) -> Tensor:
        return torch.from_numpy(ids % 2)


class Made:
    """The same, made elsewhere: it has inputs alone."""

    classes, shape, size = ("a", "b"), (1,), 16
    views_fingerprint = fingerprint = "made"
    splits: dict[str, np.ndarray] = {}  # noqa: RUF012

    def view(self, epoch: int) -> int:
        return epoch

    def inputs(self, ids: np.ndarray, epoch: int | None) -> Tensor:
        if epoch == 9:
            raise OSError("the disk is gone")
        return torch.from_numpy(ids).float()[:, None] + 100 * (epoch or 0)

    def labels(self, ids: np.ndarray) -> Tensor:
        return torch.from_numpy(ids % 2)


PARTS = [np.array([3, 1]), np.array([15, 0]), np.array([7])]


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_the_two_kinds_are_told_apart() -> None:
    assert isinstance(Digits(), Arrays)
    assert not isinstance(Made(), Arrays)


@pytest.mark.parametrize("kind", [Digits, Made])
@pytest.mark.parametrize(("epoch", "more"), [(None, 0), (0, 0), (2, 200)])
@pytest.mark.parametrize("ahead", [0, 1, 8])
def test_batches_come_in_the_order_asked_for(
    kind: Callable[[], Any], epoch: int | None, more: int, ahead: int
) -> None:
    found = list(Loader(kind(), ahead=ahead)(Request(ids, epoch) for ids in PARTS))
    assert [loaded.inputs.flatten().tolist() for loaded in found] == [
        [sample + more for sample in ids.tolist()] for ids in PARTS
    ]
    assert [loaded.ids_B.tolist() for loaded in found] == [ids.tolist() for ids in PARTS]
    assert [loaded.labels_B.tolist() for loaded in found] == [[1, 1], [1, 0], [1]]
    assert all(loaded.further == () for loaded in found)


def test_it_loads_ahead_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "AT_ONCE", 1)
    asked: list[int] = []
    gathering = threading.Event()

    class Slow(Digits):
        def arrays(self, view: int | None) -> tuple[np.ndarray, ...]:
            if len(self.gathered) == 2:
                gathering.set()
            return super().arrays(view)

    def requests() -> Iterator[Request]:
        for number in range(10):
            asked.append(number)
            yield Request(np.array([number]), 0)

    with contextlib.closing(Loader(Slow(), ahead=2)(requests())) as coming:
        assert next(coming).ids_B.tolist() == [0]
        assert asked == [0, 1, 2]
        assert gathering.wait(60)  # the third is gathered though nobody asks for the second yet
        assert next(coming).ids_B.tolist() == [1]
        assert asked == [0, 1, 2, 3]


def test_small_batches_of_one_epoch_are_loaded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One, for somebody waits for it; then twice as many each time, as far as they are small."""
    together: list[tuple[int | None, int]] = []

    class Counted(Digits):
        def show(self, rows: Sequence[Tensor], view: int | None) -> Tensor:
            together.append((view, len(rows[0])))
            return super().show(rows, view)

    def loaded(ahead: int) -> list[tuple[int | None, int]]:
        together.clear()
        requests = [Request(np.array([n % 16, n // 16]), n // 20) for n in range(40)]
        brought = list(Loader(Counted(), ahead=ahead)(requests))
        assert [batch.ids_B.tolist() for batch in brought] == [r.ids.tolist() for r in requests]
        for batch, request in zip(brought, requests, strict=True):
            expected = torch.from_numpy(request.ids)[:, None] + 100.0 * (request.epoch or 0)
            assert torch.equal(batch.inputs, expected)
        return together

    assert loaded(0) == [(0, 2), (0, 4), (0, 8), (0, 16), (0, 10), (1, 32), (1, 8)]
    a_batch = 2 * (1 + 8 + 8 + 4)  # bytes of rows, ids, labels and inputs
    monkeypatch.setattr(loading, "AT_ONCE_BYTES", 3 * a_batch)
    assert {size for _, size in loaded(0)} == {2, 4, 6}
    monkeypatch.setattr(loading, "AT_ONCE_BYTES", a_batch - 1)
    assert {size for _, size in loaded(0)} == {2}
    monkeypatch.undo()
    assert sum(size for _, size in loaded(8)) == 80


def test_a_batch_of_nobody_is_one() -> None:
    nobody = np.array([], np.int64)
    parts = [nobody, PARTS[0], nobody, nobody, PARTS[1]]
    brought = list(Loader(Digits())(map(Request, parts)))
    assert [batch.ids_B.tolist() for batch in brought] == [ids.tolist() for ids in parts]
    assert [len(batch.inputs) for batch in brought] == [0, 2, 0, 0, 2]


def test_texts_are_cut_to_the_longest_of_their_own_batch() -> None:
    class Texts(Digits):
        def show(self, rows: Sequence[Tensor], view: int | None) -> Tensor:
            return rows[0]

        def arrays(self, view: int | None) -> tuple[np.ndarray, ...]:
            return (np.tile(self.rows, 16),)

        def lengths(self, ids: np.ndarray) -> np.ndarray | None:
            return ids + 1

    brought = Loader(Texts())(Request(np.array([n, 0])) for n in range(16))
    assert [batch.inputs.shape[1] for batch in brought] == list(range(1, 17))


def test_an_error_reaches_who_asks_and_the_thread_ends_with_its_loader() -> None:
    others, loader = {*loader_threads()}, Loader(Made())
    coming = loader([Request(PARTS[0], 0), Request(PARTS[1], 9)])
    assert isinstance(next(coming), Loaded)
    with pytest.raises(OSError, match="the disk is gone"):
        next(coming)
    assert [loaded.ids_B.tolist() for loaded in loader([Request(PARTS[2], 0)])] == [[7]]
    (thread,) = {*loader_threads()} - others
    del loader, coming
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_what_is_not_known_ahead_is_asked_for_when_it_is_wanted() -> None:
    begun = False
    asked: list[tuple[int, bool]] = []

    def further(epoch: int, ahead: bool) -> tuple[Column] | None:
        asked.append((epoch, ahead))
        return None if ahead and not begun and epoch else (Column(np.arange(16) + epoch),)

    requests = [Request(ids, epoch) for epoch in range(2) for ids in PARTS]
    coming = Loader(Digits(), ahead=8)(requests, further)
    first = [next(coming) for _ in PARTS]
    begun = True
    second = list(coming)
    assert asked[-1] == (1, False)
    for epoch, loaded in enumerate((first, second)):
        rows = [batch.further[0].tolist() for batch in loaded]
        assert rows == [(ids + epoch).tolist() for ids in PARTS]


def test_it_computes_beside_whoever_trains() -> None:
    """One thread of its own, whatever the others have: else all wait for each other's."""
    seen: list[int] = []

    class Watched(Digits):
        def show(self, rows: Sequence[Tensor], view: int | None) -> Tensor:
            seen.append(torch.get_num_threads())
            torch.ones(1 << 16) + 1  # the setting is taken up by the first operation, too
            seen.append(torch.get_num_threads())
            return super().show(rows, view)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        loader = Loader(Watched())
        list(loader(map(Request, PARTS)))
        assert seen[:4] == [1, 1, 1, 1]
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 3
        assert loader.aside(lambda: (threading.current_thread(), 7))()[1] == 7
        assert loader.aside(threading.current_thread)() in loader_threads()
    finally:
        torch.set_num_threads(before)


def test_it_leaves_a_thread_its_setting_that_has_not_computed_yet() -> None:
    """As Ray Train calls a worker's loop: in a thread, whose first operation comes later."""

    def trains() -> int:
        torch.set_num_threads(3)
        list(Loader(Digits())(map(Request, PARTS)))
        return torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(trains).result() == 3
    finally:
        torch.set_num_threads(before)


def test_further_columns_come_along_of_the_samples_wanted() -> None:
    row_of = np.full(16, -1)
    row_of[[0, 1, 3, 15]] = np.arange(4)
    members = [np.arange(8, dtype=np.float32).reshape(4, 2) + 10 * m for m in range(3)]
    logits = Column(*members, row_of=row_of, stacked=True)
    plain = Column(np.arange(16))
    asked: list[int] = []

    def further(epoch: int, ahead: bool) -> tuple[Column, Column]:
        asked.append(epoch)
        return logits, plain

    requests = [Request(PARTS[0], 5), Request(PARTS[0], 5, np.array([15, 0, 1])), Request(PARTS[0])]
    own, whole, evaluated = Loader(Digits())(requests, further)
    assert asked == [5, 5]  # the first alone, since somebody waits for it
    assert own.further[0].shape == (2, 3, 2)
    assert own.further[0].tolist() == [[list(m[row]) for m in members] for row in (2, 1)]
    assert whole.further[0].tolist() == [[list(m[row]) for m in members] for row in (3, 0, 1)]
    assert [column.tolist() for column in (own.further[1], whole.further[1])] == [
        [3, 1],
        [15, 0, 1],
    ]
    assert whole.ids_B.tolist() == [3, 1]
    assert evaluated.further == ()


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
def test_a_column_is_read_alike_in_memory_and_where_it_lies(
    monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(loading, "IN_MEMORY", in_memory)
    members = [np.random.default_rng(m).random((6, 3), dtype=np.float32) for m in range(4)]
    column = Column(*members, stacked=True)
    stacked = torch.from_numpy(np.stack(members, 1))
    assert torch.equal(column.gathered(np.array([5, 0, 5])), stacked[[5, 0, 5]])
    assert torch.equal(column.read(slice(1, 4)), stacked[1:4])
    assert (column.rows, column.row_shape, column.nbytes) == (6, (4, 3), stacked.numel() * 4)


@pytest.mark.parametrize("ids", [[4], [-1], [0, 2]])
def test_a_sample_without_a_row_is_no_other_one(ids: list[int]) -> None:
    column = Column(np.zeros((4, 1)), row_of=np.array([0, 1, -1, 3, 4]))
    with pytest.raises(IndexError, match="of 4"):
        column.rows_of(np.array(ids))


def test_what_fits_stays_on_the_gpu_and_makes_room_for_the_next_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bookkeeping alone, with tensors on the CPU."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 1000, 10_000))
    monkeypatch.setattr(loading, "_PART", 100)
    gpu = loading._Gpu(torch.device("cpu"), keeps=True)

    def column(rows: int) -> Column:
        return Column(np.arange(rows * 10, dtype=np.uint8).reshape(rows, 10))

    pictures, first, second, large = column(60), column(30), column(35), column(50)
    kept = gpu._resident
    gpu._keep([pictures, first])
    assert [one for one, _ in kept.values()] == [pictures, first]
    for one, rows in kept.values():
        assert torch.equal(rows, torch.from_numpy(one.arrays[0]))
    gpu._keep([pictures, second])  # in place of the first
    assert [one for one, _ in kept.values()] == [pictures, second]
    gpu._keep([pictures, large])  # more than the second leaves free
    assert [one for one, _ in kept.values()] == [pictures]
    assert gpu._room == 400
    gpu._keep([first])
    assert {one for one, _ in kept.values()} == {pictures, first}
    without = loading._Gpu(torch.device("cpu"), keeps=False)
    without._keep([first])
    assert without._resident == {}


def test_batches_are_made_whole_on_the_way_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tensors on the CPU: in the loader's stream, and numbers of rows are sent once."""
    calls: list[str] = []
    stream = SimpleNamespace(
        record_event=lambda: calls.append("made") or "made",
        wait_event=lambda event: calls.append(f"waits until {event}"),
    )

    @contextlib.contextmanager
    def current(of: Any) -> Iterator[None]:
        calls.append("begins")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    pinned, used = [], []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, by: used.append(tensor))
    gathered = Column.gathered
    monkeypatch.setattr(Column, "gathered", lambda self, ids, pinned: gathered(self, ids))
    gpu = loading._Gpu(torch.device("cpu"), keeps=True)
    small = [Column(np.arange(8) * tens) for tens in (10, 100)]
    further = Column(np.arange(4) * 1000, row_of=np.array([3, 2, 1, 0]))
    large = Column(np.arange(2000))
    ids = np.array([2, 0, 3])
    shown = [torch.tensor([20, 0, 30]), torch.tensor([200, 0, 300]), torch.tensor([1000, 3000, 0])]

    def made(rows: Sequence[Tensor]) -> Any:
        calls.append("makes")
        for row, expected in zip(rows, [*shown, torch.from_numpy(ids)], strict=True):
            assert torch.equal(row, expected)
        return [loading.Loaded(rows[0], rows[1], rows[2], (rows[3],))], 7

    arrive = gpu.load([(column, ids) for column in (*small, further, large)], made)
    assert calls == ["begins", "makes", "made"]
    (batch,), nbytes = arrive()
    assert calls[3:] == ["waits until made"]
    assert nbytes == 7
    assert [id(tensor) for tensor in used] == [id(tensor) for tensor in batch.tensors()]
    assert [rows.tolist() for rows in pinned] == [[2, 0, 3], [1, 3, 0]]
