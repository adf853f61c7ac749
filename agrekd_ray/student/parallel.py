"""A student on several workers: what they must share so that W workers learn what one learns.

DDP averages gradients. Batch norm sees a part of the batch in each worker unless it is
synchronised, and a parameter that no forward pass uses has DDP wait for its gradient for ever.
"""

from __future__ import annotations

import copy
from typing import Any

import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from agrekd_ray.data import TRAIN, Samples
from agrekd_ray.student.student import BatchNorm


def data_parallel(model: nn.Module, samples: Samples, batch_norm: BatchNorm) -> nn.Module:
    """What each of several workers calls in place of its model; called in all of them.

    The model's own batch norms are replaced where they are to be synchronised, and what none of
    its forward passes uses is frozen: names and values stay.

    Args:
        model: on this worker's device.
        samples: of the student.
        batch_norm: over the whole batch, or over each worker's part of it.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        _freeze_unused(model, samples)
        if batch_norm == "synchronised":
            _synchronise(model)
    wrapped: nn.Module = ray.train.torch.prepare_model(model, move_to_device=False)
    return wrapped


def _freeze_unused(model: nn.Module, samples: Samples) -> None:
    """Freezes parameters that get no gradient, such as the mask token of a vision transformer."""
    device = next(model.parameters()).device
    inputs = samples.inputs(samples.splits[TRAIN][:2], None).to(device)
    devices = [device] if device.type == "cuda" else []
    trial = copy.deepcopy(model).train()
    with torch.random.fork_rng(devices):
        trial(inputs).float().sum().backward()
    for parameter, tried in zip(model.parameters(), trial.parameters(), strict=True):
        if tried.grad is None:
            parameter.requires_grad_(False)


def _synchronise(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _synchronised(child))
        else:
            _synchronise(child)


def _synchronised(norm: _BatchNorm) -> nn.Module:
    """A batch norm over all workers' samples with the same parameters and statistics."""
    if any(tensor.is_cuda for tensor in (*norm.parameters(), *norm.buffers())):
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # on GPUs alone
    own = _SynchronisedBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    own.weight, own.bias = norm.weight, norm.bias
    own.running_mean, own.running_var = norm.running_mean, norm.running_var
    own.num_batches_tracked = norm.num_batches_tracked
    own.training = norm.training
    return own


class _SynchronisedBatchNorm(_BatchNorm):
    """`nn.SyncBatchNorm` for workers on CPUs, all of whom have as many samples."""

    def _check_input_dim(self, inputs: Tensor) -> None:
        """Any number of dimensions, the second one of channels."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalised over samples and places of all workers; in evaluation as `nn.BatchNorm2d`."""
        if not self.training:
            normalised: Tensor = super().forward(inputs)
            return normalised
        others = [0, *range(2, inputs.ndim)]
        shape = [1, -1] + [1] * (inputs.ndim - 2)
        values, world = inputs.float(), dist.get_world_size()
        # Each worker's own first: of a channel that is the same everywhere, that is exact.
        own_variance_C, own_C = torch.var_mean(values, others, correction=0)
        mean_C = _summed(own_C) / world
        variance_C = _summed(own_variance_C + (own_C - mean_C).square()) / world
        if self.running_mean is not None and self.running_var is not None:
            count = world * values.numel() // values.shape[1]
            self._remember(mean_C.detach(), variance_C.detach() * count / max(1, count - 1))
        out = (values - mean_C.view(shape)) * (variance_C + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(inputs.dtype)

    @torch.no_grad()
    def _remember(self, mean_C: Tensor, variance_C: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        new = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C, new)
        self.running_var.lerp_(variance_C, new)


class _Sum(torch.autograd.Function):
    """A sum over the workers that gradients go back through."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed


def _summed(tensor: Tensor) -> Tensor:
    summed: Tensor = _Sum.apply(tensor)
    return summed
