"""What numbers a process computes in: the one place that opens mixed precision."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from agrekd_ray.errors import RunError
from agrekd_ray.settings import Numbers, Precision


def numbers_on(precision: Precision, device: torch.device | str) -> Numbers:
    """What a precision comes to on a device.

    Raises:
        RunError: the device is a GPU without bfloat16, and that is asked for.
    """
    if torch.device(device).type == "cpu":
        return "bfloat16" if precision == "bfloat16" else "float32"
    if precision == "float32":
        return precision
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    if precision == "auto":
        return "float32"
    raise RunError(
        f"precision: bfloat16, and {torch.cuda.get_device_name()} does not compute in it; set "
        "precision: float32."
    )


def computing_in(
    numbers: Numbers, device: torch.device | str
) -> contextlib.AbstractContextManager[Any]:
    """Forward passes on a device compute in such numbers while the block runs."""
    if numbers == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
