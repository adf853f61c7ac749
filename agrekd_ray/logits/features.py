"""Features of a backbone, recorded once in place of the logits of every head that it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from agrekd_ray.errors import CheckpointError
from agrekd_ray.logits.forms import Recorded, stored
from agrekd_ray.logits.sound import is_sound
from agrekd_ray.models.checkpoint import WEIGHTS
from agrekd_ray.training import Column

_WEIGHT, _BIAS = "head.weight", "head.bias"


@dataclass(frozen=True, eq=False)
class Head:
    """A teacher's last layer.

    Attributes:
        folder: of its checkpoint.
        weights: SHA-256 of the file that it is in.
        features: D.
    """

    folder: Path
    weights: str
    features: int

    @classmethod
    def of(cls, folder: Path, weights: str) -> Head | None:
        """That of a checkpoint; None where it has no linear layer, or cannot be read."""
        try:
            with safe_open(folder / WEIGHTS, "pt") as file:
                return cls(folder, weights, file.get_slice(_WEIGHT).get_shape()[1])
        except (OSError, SafetensorError):
            return None

    def load(self) -> tuple[Tensor, Tensor]:
        """Weight [C, D] and bias [C], float32.

        Raises:
            CheckpointError: the file cannot be read, or is damaged.
        """
        path = self.folder / WEIGHTS
        try:
            content = np.memmap(path, np.uint8, mode="r")
            if not is_sound(path.stat(), content, self.weights):
                raise CheckpointError(f"{path}: damaged; the teacher must be made again.")
            with safe_open(path, "pt") as file:
                weight_CD, names = file.get_tensor(_WEIGHT).float(), set(file.keys())
                bias_C = file.get_tensor(_BIAS).float() if _BIAS in names else None
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}).") from None
        return weight_CD, weight_CD.new_zeros(len(weight_CD)) if bias_C is None else bias_C


class Headed:
    """A teacher's logits [N, C] out of its backbone's features, read like an array in float32.

    Args:
        features_ND: as they are recorded, the same object for all heads.
        weight_CD: of the head.
        bias_C: of the head.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, features_ND: Recorded, weight_CD: Tensor, bias_C: Tensor) -> None:
        self.features_ND, self.weight_CD, self.bias_C = features_ND, weight_CD, bias_C

    def __len__(self) -> int:
        return len(self.features_ND)

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """Logits of some rows, [B, C]."""
        features_BD = torch.from_numpy(np.array(self.features_ND[rows], np.float32))
        return np.asarray(F.linear(features_BD, self.weight_CD, self.bias_C).numpy())

    @property
    def shape(self) -> tuple[int, int]:
        """(N, C)."""
        return len(self), len(self.weight_CD)

    @property
    def nbytes(self) -> int:
        """Bytes of all logits."""
        return math.prod(self.shape) * self.dtype.itemsize


Logits = Recorded | Headed
"""Of N samples, [N, C]."""


class HeadedColumn(Column):
    """Logits of M teachers, of whom some have them out of features: heads work on the device.

    A row has the features of every backbone, once, and the logits that are recorded as such.

    Args:
        logits: of each teacher, [N, C].
        row_of: as `Column` has it.
        ahead: likewise.
    """

    def __init__(
        self,
        logits: Sequence[Logits],
        row_of: np.ndarray,
        ahead: Callable[[np.ndarray], None] | None,
    ) -> None:
        self._classes = logits[0].shape[1]
        members: dict[int, list[int]] = {}
        for number, one in enumerate(logits):
            members.setdefault(id(recorded(one)), []).append(number)
        parts = [(recorded(logits[mine[0]]), mine) for mine in members.values()]
        super().__init__(*(array for array, _ in parts), row_of=row_of, stacked=True, ahead=ahead)
        widths = [array.shape[1] for array, _ in parts]
        self.row_shape, self.dtype = (sum(widths),), torch.float32
        self.nbytes = self.rows * sum(widths) * 4
        self._widths, self._members = widths, [mine for _, mine in parts]
        self._heads: dict[torch.device, list[tuple[Tensor, Tensor] | None]] = {
            torch.device("cpu"): [_together(logits, mine) for _, mine in parts]
        }

    def _gather(self, rows: np.ndarray | slice, into: np.ndarray) -> None:
        starts = np.cumsum([0, *self._widths]).tolist()
        for array, start, width in zip(self.arrays, starts, self._widths, strict=False):
            into[:, start : start + width] = array[rows]

    def decoded(self, rows_BW: Tensor) -> Tensor:
        """See `Column.decoded`: logits [B, M, C], float32."""
        device = rows_BW.device
        if device not in self._heads:
            here = self._heads[torch.device("cpu")]
            self._heads[device] = [
                None if head is None else (head[0].to(device), head[1].to(device)) for head in here
            ]
        M = sum(map(len, self._members))
        logits_BMC = rows_BW.new_empty(len(rows_BW), M, self._classes)
        parts = rows_BW.split(self._widths, 1)
        for part, mine, head in zip(parts, self._members, self._heads[device], strict=True):
            answers = part if head is None else F.linear(part, *head)
            logits_BMC[:, mine] = answers.view(len(part), len(mine), self._classes)
        return logits_BMC


def column_of(
    logits: Sequence[Logits],
    row_of: np.ndarray,
    ahead: Callable[[np.ndarray], None] | None = None,
) -> Column:
    """The logits of M teachers as a column, arguments as `HeadedColumn`."""
    if any(isinstance(one, Headed) for one in logits):
        return HeadedColumn(logits, row_of, ahead)
    return Column(*logits, row_of=row_of, stacked=True, ahead=ahead)


def mapped(logits: Logits) -> np.ndarray:
    """What lies in the file of a record: of logits, or of the features behind them."""
    return stored(recorded(logits))


def recorded(logits: Logits) -> Recorded:
    """What a record holds: logits, or the features behind them."""
    return logits.features_ND if isinstance(logits, Headed) else logits


def _together(logits: Sequence[Logits], members: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """Weight [HC, D] and bias [HC] of the heads of one backbone; None of logits."""
    heads = [one for one in (logits[number] for number in members) if isinstance(one, Headed)]
    if not heads:
        return None
    weights, biases = ([h.weight_CD for h in heads], [h.bias_C for h in heads])
    return torch.cat(weights), torch.cat(biases)
