"""Where a process computes: the one place that chooses between its CPU and a GPU."""

from __future__ import annotations

from typing import Literal

import torch

from agrekd_ray.errors import RunError
from agrekd_ray.files import in_a_line
from agrekd_ray.settings import AUTO


def device_for(granted: str, device: str = "cuda") -> str:
    """The device of a process by what it was given; tried out, since no CPU stands in for a GPU.

    It is chosen explicitly, since a process that was given no GPU may see all of them.

    Args:
        granted: who gave it which GPU, in words; empty where nobody gave it any.
        device: that stands for it.

    Returns:
        `device` where a GPU was given, else `cpu`.

    Raises:
        RunError: PyTorch cannot use the GPU; says why, and what would help.
    """
    if not granted:
        return "cpu"
    why = why_unusable(device)
    if why is not None:
        raise RunError(
            f"{granted}, and PyTorch {torch.__version__} cannot use it ({why}). Install there a "
            "PyTorch with CUDA and the driver that it needs (`agrekd doctor` looks at every node), "
            "or decline GPUs with gpus: 0 (student, teachers, fleet)."
        )
    return device


def device_of(gpus: float | Literal["auto"] = AUTO, key: str = "gpus") -> str:
    """The device of a process that nobody gave anything, and that may take what it sees.

    Args:
        gpus: as a job has it; `auto` takes a GPU where PyTorch finds one.
        key: of the job that says so.

    Raises:
        RunError: a GPU is asked for that PyTorch cannot use.
    """
    if gpus == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device_for(f"{key} = {gpus:g} asks for a GPU of this machine" if gpus else "")


def why_unusable(device: str = "cuda") -> str | None:
    """Why PyTorch cannot compute on a GPU, in a line; None where it can."""
    try:
        torch.zeros(1, device=device)
    except Exception as error:  # of a build without CUDA, of the driver, of the card
        return in_a_line(error)
    return None
