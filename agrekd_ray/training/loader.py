"""Brings samples to a device ahead of the step that asks for them.

What a data set has as arrays (`data.Arrays`) stays on a GPU where it fits into a share of its free
memory. What does not is gathered by a background thread, several batches ahead, into pinned
buffers. The same thread has inputs and views made of them, on a GPU in a stream of its own, so that
gathering and augmentation overlap with the training. Texts are cut to the longest of their batch.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from agrekd_ray.data import Arrays, Samples
from agrekd_ray.data.dataset import Rows
from agrekd_ray.numerics import computes_alone

RESIDENT = 0.5
"""Share of a GPU's free memory that arrays may take to stay there."""
AHEAD, AHEAD_ON_CPU = 8, 2
"""Batches that are on their way at once, at most: to a GPU, and on the CPU."""
AT_ONCE, AT_ONCE_BYTES, AT_ONCE_SHARE = 16, 1 << 21, 1 / 128
"""Batches that are loaded together, at most, and bytes that they may come to: on the CPU, and as a
share of a GPU's free memory. Each operation on them takes as long for one, and holds up the thread
that trains."""
IN_MEMORY = 1 << 28
"""Bytes of arrays that are put together in the host's memory, at most; larger ones are read where
they are, batch by batch."""
_PART = 1 << 26
"""Bytes of an array that are copied to a GPU at a time."""


@dataclass(frozen=True, eq=False)
class Request:
    """A batch that is wanted.

    Attributes:
        ids: of its samples, [B].
        epoch: that shows them; None is the view of evaluation.
        further_ids: of the samples whose further columns are wanted; None for those of `ids`.
    """

    ids: np.ndarray
    epoch: int | None = None
    further_ids: np.ndarray | None = None

    @property
    def whose(self) -> np.ndarray:
        """Ids of the samples whose further columns are wanted."""
        return self.ids if self.further_ids is None else self.further_ids


@dataclass(frozen=True, eq=False)
class Loaded:
    """A batch on the device.

    Attributes:
        inputs: as `Samples.inputs` has them; on a GPU images lie with their channels last.
        ids_B: of the samples, int64.
        labels_B: classes, int64.
        further: rows of the further columns, [B, ...] each, or what was made of them.
    """

    inputs: Tensor
    ids_B: Tensor
    labels_B: Tensor
    further: tuple[Tensor, ...] = ()

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (self.inputs, self.ids_B, self.labels_B, *self.further)


_Loaded = tuple[list[Loaded], int]
"""Batches, and the bytes that they and all that was gathered for them take."""
_T = TypeVar("_T")


class Column:
    """Something of which every sample has a row.

    Args:
        arrays: one, [R, ...], or K of one shape.
        row_of: the row of every id, [N]; None where the id is the row.
        stacked: whether a row is that of all arrays, [K, ...]; else there is one array.
        ahead: is told of rows before they are read.
    """

    def __init__(
        self,
        *arrays: Rows,
        row_of: np.ndarray | None = None,
        stacked: bool = False,
        ahead: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        self.arrays, self._row_of, self._stacked, self._ahead = arrays, row_of, stacked, ahead
        first = arrays[0]
        self.rows, self.nbytes = first.shape[0], sum(array.nbytes for array in arrays)
        self.row_shape = (len(arrays), *first.shape[1:]) if stacked else first.shape[1:]
        self.dtype = torch.from_numpy(np.empty(0, first.dtype)).dtype

    @property
    def key(self) -> tuple[int, ...]:
        """Tells columns of other arrays apart, for as long as this one is there."""
        return tuple(map(id, self.arrays))

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Rows of some samples.

        Raises:
            IndexError: a sample has none.
        """
        rows = np.asarray(ids) if self._row_of is None else self._row_of[ids]
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.rows:
            raise IndexError(f"rows {rows.min()} … {rows.max()} of {self.rows}")
        return rows

    def gathered(self, ids: np.ndarray, *, pinned: bool = False) -> Tensor:
        """Rows of some samples on the host, [B, ...]."""
        rows = self.rows_of(ids)
        gathered = torch.empty(len(rows), *self.row_shape, dtype=self.dtype, pin_memory=pinned)
        if self._whole is not None:
            # What is out of range has been refused; numpy would buffer what it might refuse.
            np.take(self._whole, rows, 0, out=gathered.numpy(), mode="clip")
        else:
            if self._ahead is not None:
                self._ahead(rows)
            self._gather(rows, gathered.numpy())
        return gathered

    def decoded(self, rows: Tensor) -> Tensor:
        """What is to come along with a batch, out of rows [B, ...] on its device: these, here."""
        return rows

    def read(self, rows: slice) -> Tensor:
        """Some rows, in order, as a copy on the host."""
        count = len(range(*rows.indices(self.rows)))
        read = torch.empty(count, *self.row_shape, dtype=self.dtype)
        self._gather(rows, read.numpy())
        return read

    def put_together(self) -> None:
        """Put its arrays together in memory, where they are to be, before a row is asked for."""
        _ = self._whole

    @cached_property
    def _whole(self) -> np.ndarray | None:
        if not self._stacked:
            array = self.arrays[0]
            return array if isinstance(array, np.ndarray) else None
        return self.read(slice(None)).numpy() if self.nbytes <= IN_MEMORY else None

    def _gather(self, rows: np.ndarray | slice, into: np.ndarray) -> None:
        """Copy rows of all arrays, [B, ...]."""
        for number, array in enumerate(self.arrays):
            (into[:, number] if self._stacked else into)[:] = array[rows]


Further = Callable[[int, bool], Sequence[Column] | None]
"""Columns that come along with an epoch's batches; see `loop.Guidance.columns`."""
Ready = Callable[[tuple[Tensor, ...], Sequence[int]], Sequence[tuple[Tensor, ...]]]
"""Makes of rows of further columns, of batches of such sizes, what is wanted of each batch."""


class Loader:
    """Loads batches of one data set onto one device.

    Args:
        samples: the data set.
        device: where they are wanted.
        keeps: whether a GPU keeps what fits, for batches to come.
        ahead: batches that are on their way at once; None for `AHEAD`, or `AHEAD_ON_CPU`.

    Attributes:
        device: as given.
    """

    def __init__(
        self,
        samples: Samples,
        device: torch.device | str = "cpu",
        *,
        keeps: bool = True,
        ahead: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        self._samples = samples
        self._labels = Column(samples.labels(np.arange(samples.size)).numpy())
        self._gpu = _Gpu(self.device, keeps) if self.device.type == "cuda" else None
        self._ahead = ahead if ahead is not None else AHEAD if self._gpu else AHEAD_ON_CPU
        self._room = AT_ONCE_SHARE * self._gpu.free if self._gpu else AT_ONCE_BYTES
        # A text is cut to the longest of all that are loaded with it.
        self._at_once = AT_ONCE if lengths_of(samples, np.arange(0)) is None else 1

    def __call__(
        self,
        requests: Iterable[Request],
        further: Further = lambda epoch, ahead: (),
        ready: Ready | None = None,
    ) -> Generator[Loaded, None, None]:
        """The batches that are asked for, in order.

        Args:
            requests: for them; looked at ahead of time.
            further: columns that come along, such as the teachers' logits.
            ready: makes of their rows what is wanted, on the device and ahead of time. None leaves
                them as they are.
        """
        ready = ready or split_rows
        at_once, ahead = 1, self._ahead  # one at first, for somebody waits

        def groups() -> Iterator[list[Request]]:
            for _, of_epoch in itertools.groupby(requests, lambda request: request.epoch):
                while group := list(itertools.islice(of_epoch, at_once)):
                    yield group

        coming: deque[tuple[int, Future[Callable[[], _Loaded]]]] = deque()
        following = groups()
        try:
            while True:
                while not coming or sum(n for n, _ in coming) < coming[0][0] + ahead:
                    if (group := next(following, None)) is None:
                        break
                    loading = self._thread.submit(self._load, group, further, ready, True)
                    coming.append((len(group), loading))
                if not coming:
                    return
                size, loading = coming.popleft()
                batches, nbytes = loading.result()()
                fit = int(self._room * size / max(1, nbytes))
                at_once = max(1, min(self._at_once, fit, max(at_once, 2 * size)))
                ahead = min(self._ahead, max(2, 2 * fit))
                yield from batches
        finally:
            wait([loading for _, loading in coming if not loading.cancel()])

    def aside(self, function: Callable[..., _T], *args: Any) -> Callable[[], _T]:
        """Has the thread that loads do what nobody waits for yet; what it returns waits for it.

        A GPU does not keep the caller waiting, and has it done in the caller's thread.
        """
        if self._gpu is None:
            return self._thread.submit(function, *args).result
        done = function(*args)
        return lambda: done

    @cached_property
    def _thread(self) -> Executor:
        """One for as long as the loader lives, for starting it takes as long as some batches."""
        thread = ThreadPoolExecutor(1, "loader")
        computes_alone(thread)
        return thread

    def _load(
        self, requests: Sequence[Request], further: Further, ready: Ready, ahead: bool
    ) -> Callable[[], _Loaded]:
        """Gathers batches, in the thread; what it returns hands them over in the caller's."""
        samples, epoch = self._samples, requests[0].epoch
        columns = () if epoch is None else further(epoch, ahead)
        if columns is None:
            return lambda: self._load(requests, further, ready, False)()
        view = None if epoch is None else samples.view(epoch)
        ids = np.concatenate([request.ids for request in requests])
        own: list[Column | _Given]
        if isinstance(samples, Arrays):
            own, show = [Column(array) for array in samples.arrays(view)], samples.show
        else:
            own, show = [_Given(samples.inputs(ids, epoch))], _as_they_are
        longest = _longest(samples, ids)
        own_ids = _Given(torch.from_numpy(ids.astype(np.int64)))
        wanted: list[tuple[Column | _Given, np.ndarray]]
        wanted = [(column, ids) for column in (*own, own_ids, self._labels)]
        if columns:
            others = np.concatenate([request.whose for request in requests])
            wanted += [(column, others) for column in columns]

        def loaded(rows: Sequence[Tensor]) -> _Loaded:
            shown, (ids_B, labels_B, *rest) = list(rows[: len(own)]), rows[len(own) :]
            if longest is not None:
                shown[0] = shown[0][:, :longest]
            inputs = show(shown, view)
            if self._gpu is not None and inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            sizes = [len(request.ids) for request in requests]
            said = tuple(column.decoded(part) for column, part in zip(columns, rest, strict=True))
            made = ready(said, [len(request.whose) for request in requests])
            split = (part.split(sizes) for part in (inputs, ids_B, labels_B))
            batches = [Loaded(*batch) for batch in zip(*split, made, strict=True)]
            return batches, inputs.nbytes + sum(part.nbytes for part in rows)

        if self._gpu is not None:
            return self._gpu.load(wanted, loaded)
        batches = loaded([column.gathered(whose) for column, whose in wanted])
        return lambda: batches


def split_rows(rows: tuple[Tensor, ...], sizes: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """Rows of several batches, by batch."""
    return list(zip(*(part.split(sizes) for part in rows), strict=True)) or [()] * len(sizes)


class _Given:
    """Rows that are there already, in place of a column."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def gathered(self, ids: np.ndarray, *, pinned: bool = False) -> Tensor:
        """See `Column.gathered`."""
        return self._rows.pin_memory() if pinned else self._rows


class _Gpu:
    """The way onto a GPU: columns that stay there, and pinned buffers for rows of the others."""

    def __init__(self, device: torch.device, keeps: bool) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._resident: dict[tuple[int, ...], tuple[Column, Tensor]] = {}
        self.free = torch.cuda.mem_get_info(device)[0]
        """Bytes of its memory that were free at first."""
        self._room = RESIDENT * self.free if keeps else 0.0

    def load(
        self,
        wanted: Sequence[tuple[Column | _Given, np.ndarray]],
        made: Callable[[Sequence[Tensor]], _Loaded],
    ) -> Callable[[], _Loaded]:
        """Sends rows of columns and has batches made of them, in a stream of their own.

        What it returns has the current stream wait for them.
        """
        with torch.cuda.stream(self._stream):
            self._keep([column for column, _ in wanted if isinstance(column, Column)])
            sent: dict[int, tuple[np.ndarray, Tensor]] = {}
            batches, nbytes = made([self._rows(column, ids, sent) for column, ids in wanted])
            done = self._stream.record_event()

        def arrive() -> _Loaded:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(done)
            for tensor in itertools.chain.from_iterable(batch.tensors() for batch in batches):
                tensor.record_stream(stream)
            return batches, nbytes

        return arrive

    def _keep(self, columns: Sequence[Column]) -> None:
        """Brings columns that fit to the GPU, if need be in place of those of other views."""
        wanted = {column.key: column for column in columns}
        for key, column in wanted.items():
            if key in self._resident:
                continue
            for other in self._resident.keys() - wanted.keys():
                if column.nbytes > self._room:
                    self._room += self._resident.pop(other)[0].nbytes
            if column.nbytes <= self._room:
                self._room -= column.nbytes
                self._resident[key] = column, self._copied(column)

    def _copied(self, column: Column) -> Tensor:
        """A column on the GPU, copied in parts: it may be larger than what memory has free."""
        kept = torch.empty(column.rows, *column.row_shape, dtype=column.dtype, device=self._device)
        part = max(1, _PART * column.rows // max(1, column.nbytes))
        for first in range(0, column.rows, part):
            rows = slice(first, first + part)
            kept[rows] = column.read(rows).to(self._device)
        return kept

    def _rows(
        self,
        column: Column | _Given,
        ids: np.ndarray,
        sent: dict[int, tuple[np.ndarray, Tensor]],
    ) -> Tensor:
        """Rows of a column on the GPU; what numbers of rows are there already is in `sent`."""
        if not isinstance(column, Column) or column.key not in self._resident:
            return self._sent(column.gathered(ids, pinned=True))
        rows = column.rows_of(ids)
        if id(rows) not in sent:
            sent[id(rows)] = rows, self._sent(torch.from_numpy(rows).pin_memory())
        return self._resident[column.key][1].index_select(0, sent[id(rows)][1])

    def _sent(self, pinned: Tensor) -> Tensor:
        return pinned.to(self._device, non_blocking=True)


def lengths_of(samples: Samples, ids: np.ndarray) -> np.ndarray | None:
    """Of texts, in tokens, [B]; None where the samples are of one size."""
    return samples.lengths(ids) if isinstance(samples, Arrays) else None


def _longest(samples: Samples, ids: np.ndarray) -> int | None:
    lengths_B = lengths_of(samples, ids)
    return None if lengths_B is None or not len(lengths_B) else int(lengths_B.max())


def _as_they_are(rows: Sequence[Tensor], view: int | None) -> Tensor:
    return rows[0]
