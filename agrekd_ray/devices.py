"""Where a process computes: the one place that chooses between its CPU and a GPU."""

from __future__ import annotations

import torch


def device_for(gpus: float | None) -> str:
    """The device of a process.

    It is chosen explicitly, since a process that was given no GPU may see all of them.

    Args:
        gpus: that the process was given; None, in a process that nobody gave anything, for those
            that it sees.

    Returns:
        `cuda` where it was given a share of a GPU and PyTorch finds one, else `cpu`.
    """
    return "cuda" if (gpus is None or gpus > 0) and torch.cuda.is_available() else "cpu"
