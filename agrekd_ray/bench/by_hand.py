"""The yardsticks: distillation as its equations read, and training written for one device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agrekd_ray.core.gradient import DistillationGradient
from agrekd_ray.core.kd import kd_loss
from agrekd_ray.numerics import training_kernels
from agrekd_ray.training import Batch, Loaded, Trainer

SMALLEST_SIDE = 0.8
"""Of a random crop, as a share of the picture's."""


class NaiveTrainer(Trainer):
    """AGRE-KD with one autograd pass a teacher through the student, and one for the step itself.

    Every teacher is computed on every step. Weights are taken from the cosines of the gradients
    with respect to all parameters; the first teacher is the biased model, so that M + 1 passes
    are made in all.

    Attributes:
        teachers: the M teachers.
        temperature: tau.
    """

    teachers: Sequence[nn.Module] = ()
    temperature: float = 1.0

    def step(self, batch: Batch, loaded: Loaded) -> DistillationGradient:
        """See `Trainer.step`."""
        inputs = loaded.inputs
        logits_BC = self.network(inputs)
        parameters = list(self.model.parameters())
        losses, gradients = [], []
        for teacher in self.teachers:
            with torch.no_grad():
                teacher_BC = teacher(inputs)
            loss_B = kd_loss(logits_BC, teacher_BC, self.temperature)
            parts = torch.autograd.grad(loss_B.mean(), parameters, retain_graph=True)
            gradients.append(torch.cat([part.flatten() for part in parts]))
            losses.append(loss_B)
        weights_M = 1 - F.cosine_similarity(torch.stack(gradients), gradients[0][None])
        weights_M = weights_M / weights_M.sum().clamp_min(1e-6)
        loss_B = (weights_M[:, None] * torch.stack(losses)).sum(0)
        self.optimizer.zero_grad(set_to_none=True)
        loss_B.mean().backward()
        self.optimizer.step()
        self.schedule.step()
        return DistillationGradient(torch.zeros_like(logits_BC), loss_B.detach())


class ResidentLoop:
    """Trains one model on pictures that lie on the device, in plain PyTorch.

    Crop, flip and scaling are computed there; convolutions are channels-last and in bfloat16 on a
    GPU; the optimiser is fused. No loader, trainer or data set of the package.

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
        fused = device.type == "cuda" or None
        self._optimizer = torch.optim.SGD(
            model.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4, fused=fused
        )

    def epoch(self) -> int:
        """One pass in a new order, without what does not fill a batch; the number of pictures."""
        steps, B = len(self._pixels) // self._batch_size, self._batch_size
        order_N = torch.randperm(len(self._pixels), device=self._device)
        with _kernels(self._device):
            for ids_B in order_N[: steps * B].view(steps, B):
                self._step(self._shown(self._pixels[ids_B]), self._labels_N[ids_B])
        return steps * B

    def arithmetic(self, steps: int) -> int:
        """So many steps on one batch that is there already; the number of pictures."""
        with _kernels(self._device):
            inputs = self._shown(self._pixels[: self._batch_size])
            for _ in range(steps):
                self._step(inputs, self._labels_N[: self._batch_size])
        return steps * self._batch_size

    def _step(self, inputs: Tensor, labels_B: Tensor) -> None:
        with _bfloat16(self._device):
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
        model: on the device.
        shape: of a picture as the model sees it.
        batch_size: B.
        steps: passes.
        device: where the model is.
    """
    model = model.to(memory_format=torch.channels_last)
    inputs = torch.rand(batch_size, *shape, device=device)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    with _kernels(device), torch.inference_mode(), _bfloat16(device):
        for _ in range(steps):
            model(inputs)
    return steps * batch_size


def _bfloat16(device: torch.device) -> torch.autocast:
    """Mixed precision where the device is a GPU."""
    return torch.autocast(device.type, torch.bfloat16, device.type == "cuda")


@contextlib.contextmanager
def _kernels(device: torch.device) -> Iterator[None]:
    """On a GPU the kernels of the package's own training; the block ends when the device is done.

    They are cuDNN's fastest convolutions, and TF32 for what is left in float32.
    """
    with training_kernels(device, deterministic=False):
        yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
