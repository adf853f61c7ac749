"""Pictures that are decoded when they are asked for, in place of rows that are kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch

from agrekd_ray.data.decode import Decoding, decode
from agrekd_ray.data.pictures import Picture, Source, content_of, fault_of
from agrekd_ray.errors import DataError


class DecodedRows:
    """Squares of pictures as rows [N, 3, side, side], uint8; gives some of them as an array does.

    As many are decoded at a time as PyTorch has threads in the process that opens them.

    Args:
        source: of the pictures.
        side: of the squares.
        version: of what decoding gives.
    """

    def __init__(self, source: Source, side: int, version: Decoding) -> None:
        self._source, self._side, self._version = source, side, version
        self._threads = torch.get_num_threads()
        self.shape = (source.count, 3, side, side)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64))

    def __getstate__(self) -> dict[str, Any]:
        """Without the threads."""
        return {name: value for name, value in vars(self).items() if name != "_pool"}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Some rows, by a slice or by numbers.

        Raises:
            DataError: a picture cannot be decoded any more; names it.
        """
        numbers: list[int] = np.arange(len(self))[rows].tolist()
        squares = np.empty((len(numbers), *self.shape[1:]), self.dtype)

        def fill(place: int, picture: Picture) -> None:
            squares[place] = self._decoded(numbers[place], picture)

        pictures = self._source.pick(numbers)
        for _ in self._pool.map(fill, range(len(numbers)), pictures):
            pass
        return squares

    def _decoded(self, number: int, picture: Picture) -> np.ndarray:
        try:
            return decode(content_of(picture), self._side, self._version)[0]
        except OSError as error:
            raise DataError(f"{self._source.where(number)}: {fault_of(error)}") from None

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, "decode")
