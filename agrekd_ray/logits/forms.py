"""How a record holds logits: all of them as float numbers, or a row of fewer bytes for each sample.

A packed row is a little-endian structure. `int8` keeps a scale and an offset of its own beside one
byte a logit. `top_k` keeps the K largest logits with their classes, and for all others one logit,
so that together they have their probability at temperature 1. A row with NaN or infinity is NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from agrekd_ray.errors import RunError

Dtype = Literal["float32", "float16", "int8"]
LEVELS = 255
"""Steps of a row's scale between its smallest and its largest logit."""
_MOST = {"float32": 3.4028234e38, "float16": 65504.0, "int8": 1e38}


@dataclass(frozen=True)
class Form:
    """What a recorded row of logits is made of.

    Attributes:
        dtype: of the logits that are kept.
        top_k: K, how many of them; None keeps all.
        classes: C.

    Raises:
        RunError: `top_k` spares no disk.
    """

    dtype: Dtype
    top_k: int | None
    classes: int

    def __post_init__(self) -> None:
        if self.top_k is None:
            return
        if not 1 <= self.top_k < self.classes:
            raise RunError(f"must lie between 1 and {self.classes - 1}, of {self.classes} classes")
        whole = replace(self, top_k=None).row_bytes
        if self.row_bytes >= whole:
            raise RunError(
                f"takes {self.row_bytes} bytes a sample, and all {self.classes} classes take "
                f"{whole} in {self.dtype}; keep fewer, or set it to null"
            )

    def __str__(self) -> str:
        return self.dtype if self.top_k is None else f"{self.dtype} top {self.top_k}"

    @property
    def packed(self) -> bool:
        """Whether rows are bytes to be decoded, and not float numbers."""
        return self.dtype == "int8" or self.top_k is not None

    @property
    def most(self) -> float:
        """The largest magnitude of a logit that it holds."""
        return _MOST[self.dtype]

    @property
    def stored(self) -> tuple[str, int]:
        """Type and number of what a row is in a file."""
        return ("uint8", self._row.itemsize) if self.packed else (self.dtype, self.classes)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample's logits."""
        kind, width = self.stored
        return width * np.dtype(kind).itemsize

    @cached_property
    def _row(self) -> np.dtype[np.void]:
        kept = self.top_k or self.classes
        fields: list[tuple[Any, ...]] = []
        if self.top_k is not None:
            fields.append(("rest", "<f4"))
        if self.dtype == "int8":
            fields += [("scale", "<f4"), ("offset", "<f4")]
        fields.append(("values", np.dtype(self.dtype).newbyteorder("<"), (kept,)))
        if self.top_k is not None:
            number = np.min_scalar_type(self.classes - 1).newbyteorder("<")
            fields.append(("classes", number, (kept,)))
        return np.dtype(fields)

    def encode(self, logits_BC: np.ndarray) -> np.ndarray:
        """Rows as they are stored: [B, C] float numbers, or [B, bytes]."""
        if not self.packed:
            return np.ascontiguousarray(logits_BC, dtype=self.dtype)
        logits_BC = np.asarray(logits_BC, dtype=np.float32)
        lost_B = ~(np.abs(logits_BC) <= self.most).all(1)  # NaN is not below anything
        kept_BK = logits_BC = np.where(lost_B[:, None], np.float32(0), logits_BC)
        rows_B = np.zeros(len(logits_BC), self._row)
        if self.top_k is not None:
            classes_BK = np.argpartition(logits_BC, -self.top_k, axis=1)[:, -self.top_k :]
            kept_BK = np.take_along_axis(logits_BC, classes_BK, 1)
            rows_B["classes"] = classes_BK
            rows_B["rest"] = _mean_logit(logits_BC, classes_BK)
        if self.dtype == "int8":
            lowest_B = kept_BK.min(1)
            scale_B = (kept_BK.max(1) - lowest_B) / np.float32(LEVELS)
            steps_BK = (kept_BK - lowest_B[:, None]) / np.where(scale_B > 0, scale_B, 1)[:, None]
            rows_B["scale"], rows_B["offset"] = scale_B, lowest_B + 128 * scale_B
            kept_BK = np.rint(np.minimum(steps_BK, LEVELS)) - 128
        rows_B["values"] = kept_BK
        rows_B["scale" if self.top_k is None else "rest"][lost_B] = np.nan
        return rows_B.view(np.uint8).reshape(len(rows_B), -1)

    def decode(self, rows_BR: np.ndarray) -> np.ndarray:
        """Logits [B, C] of stored rows; of packed ones float32, of others as they are."""
        if not self.packed:
            return rows_BR
        rows_B = np.ascontiguousarray(rows_BR).view(self._row)[:, 0]
        logits_BC = rows_B["values"].astype(np.float32)
        if self.dtype == "int8":
            logits_BC *= rows_B["scale"][:, None]
            logits_BC += rows_B["offset"][:, None]
        if self.top_k is None:
            return logits_BC
        kept_BK, classes_BK = logits_BC, rows_B["classes"]
        # Rounding of what is kept must not bring it below the rest.
        rest_B = np.minimum(rows_B["rest"], kept_BK.min(1))
        logits_BC = np.empty((len(rows_B), self.classes), np.float32)
        logits_BC[:] = rest_B[:, None]
        np.put_along_axis(logits_BC, classes_BK.astype(np.intp), kept_BK, 1)
        return logits_BC

    def opened(self, rows_NR: np.ndarray) -> Recorded:
        """Stored rows as logits [N, C]; packed ones are decoded as they are asked for."""
        return Packed(self, rows_NR) if self.packed else rows_NR


@dataclass(frozen=True, eq=False)
class Packed:
    """Packed rows of a record, read like an array of logits [N, C] in float32.

    Attributes:
        form: of the rows.
        rows_NR: as they are stored, [N, bytes].
    """

    form: Form
    rows_NR: np.ndarray
    dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.rows_NR)

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """Logits of some rows, [B, C]."""
        return self.form.decode(self.rows_NR[rows])

    @property
    def shape(self) -> tuple[int, int]:
        """(N, C)."""
        return len(self), self.form.classes

    @property
    def nbytes(self) -> int:
        """Bytes of all logits once they are decoded."""
        return math.prod(self.shape) * self.dtype.itemsize


Recorded = np.ndarray | Packed
"""Rows of a record, [N, C]."""


def stored(logits_NC: Recorded) -> np.ndarray:
    """Rows as they are stored, [N, ...]."""
    return logits_NC.rows_NR if isinstance(logits_NC, Packed) else logits_NC


def _mean_logit(logits_BC: np.ndarray, without_BK: np.ndarray) -> np.ndarray:
    """The logit of the mean of exp(logit) over all classes but some, [B]."""
    others_BC = logits_BC.copy()
    np.put_along_axis(others_BC, without_BK, -np.inf, 1)
    largest_B = others_BC.max(1)
    others_BC -= largest_B[:, None]
    sum_B = np.exp(others_BC, out=others_BC).sum(1)
    result: np.ndarray = largest_B + np.log(sum_B / (logits_BC.shape[1] - without_BK.shape[1]))
    return result
