"""The yardstick on a device: training as it is written by hand for one model, in plain PyTorch.

Rows lie on the device; crop, flip and scaling are computed there; convolutions are channels-last
and in bfloat16 on a GPU; the optimiser is fused. No loader, trainer or data set of the package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agrekd_ray.numerics import training_kernels

SMALLEST_SIDE = 0.8
"""Of a random crop, as a share of the picture's."""


class ResidentLoop:
    """Trains one model on pictures that lie on the device.

    Args:
        model: to be trained.
        pixels_NCHW: uint8, square.
        labels_N: their classes, int64.
        size: height and width of what the model sees, in pixels.
        batch_size: B.
        device: to train on.
    """

    def __init__(
        self,
        model: nn.Module,
        pixels_NCHW: np.ndarray,
        labels_N: Tensor,
        size: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._device, self._size, self._batch_size = device, size, batch_size
        self._pixels = torch.from_numpy(np.ascontiguousarray(pixels_NCHW)).to(device)
        self._labels_N = labels_N.to(device)
        self._model = model.to(device).to(memory_format=torch.channels_last).train()
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            1e-3,
            momentum=0.9,
            weight_decay=1e-4,
            fused=device.type == "cuda" or None,
        )

    def epoch(self) -> int:
        """One pass in a new order, without what does not fill a batch; the number of pictures."""
        steps, B = len(self._pixels) // self._batch_size, self._batch_size
        order_N = torch.randperm(len(self._pixels), device=self._device)
        with timed_kernels(self._device):
            for ids_B in order_N[: steps * B].view(steps, B):
                self.step(self._shown(self._pixels[ids_B]), self._labels_N[ids_B])
        return steps * B

    def arithmetic(self, steps: int) -> int:
        """So many steps on one batch that is there already; the number of pictures."""
        with timed_kernels(self._device):
            inputs = self._shown(self._pixels[: self._batch_size])
            for _ in range(steps):
                self.step(inputs, self._labels_N[: self._batch_size])
        return steps * self._batch_size

    def step(self, inputs: Tensor, labels_B: Tensor) -> None:
        """Forward pass, cross-entropy, backward pass, optimiser."""
        with bfloat16_on_gpu(self._device):
            logits_BC = self._model(inputs).float()
        F.cross_entropy(logits_BC, labels_B).backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _shown(self, pixels: Tensor) -> Tensor:
        """Random squares of uint8 pictures, half of them mirrored; float32 in [0, 1]."""
        B, device = len(pixels), self._device
        side_B = SMALLEST_SIDE + (1 - SMALLEST_SIDE) * torch.rand(B, device=device)
        mirror_B = torch.randint(0, 2, (B,), device=device) * 2 - 1
        affine_B23 = torch.zeros(B, 2, 3, device=device)
        affine_B23[:, 0, 0], affine_B23[:, 1, 1] = side_B * mirror_B, side_B
        affine_B23[:, :, 2] = (1 - side_B)[:, None] * (2 * torch.rand(B, 2, device=device) - 1)
        shape = [B, pixels.shape[1], self._size, self._size]
        grid = F.affine_grid(affine_B23, shape, align_corners=False)
        views = F.grid_sample(pixels.float() / 255, grid, align_corners=False)
        return views.contiguous(memory_format=torch.channels_last)


def forward_passes(
    model: nn.Module, shape: tuple[int, ...], batch_size: int, steps: int, device: torch.device
) -> int:
    """Forward passes of a frozen model on one batch that is there already; number of pictures.

    Args:
        model: on the device, channels-last.
        shape: of a picture as the model sees it.
        batch_size: B.
        steps: passes.
        device: where the model is.
    """
    inputs = torch.rand(batch_size, *shape, device=device)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    with timed_kernels(device), torch.inference_mode(), bfloat16_on_gpu(device):
        for _ in range(steps):
            model(inputs)
    return steps * batch_size


def bfloat16_on_gpu(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision where the device is a GPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


@contextlib.contextmanager
def timed_kernels(device: torch.device) -> Iterator[None]:
    """On a GPU the fastest kernels; the block ends when the device has done all that it was told.

    They are those that the package's own training takes: cuDNN's fastest convolutions, and TF32
    for what is left in float32.
    """
    with training_kernels(device, deterministic=False):
        yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
