"""The training step, for students and for ERM teachers alike.

One step reads like the paper: inputs, logits, one call for the gradient of the objective with
respect to the logits, `logits.backward(gradient)`, optimiser step. Where that gradient comes from
(labels, teachers in this process, a fleet of Ray actors) is the guidance's matter alone.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agrekd_ray.core.kd import label_gradient
from agrekd_ray.data import TRAIN, Samples
from agrekd_ray.errors import RunError
from agrekd_ray.settings import Training
from agrekd_ray.training.batches import Batch, BatchPlan
from agrekd_ray.training.optimization import make_optimizer, make_schedule


@dataclass(frozen=True)
class Taught:
    """What a guidance says about one worker's part of a batch.

    Attributes:
        gradient_BC: of the objective's mean over the samples, with respect to their logits.
        loss_B: the objective, by sample.
        weights_MB: of each teacher by sample; None without teachers.
        fallback_B: samples whose weights were all zero; None without teachers.
        pull_MB: how far each teacher moves a sample's logits along the teachers' gradient; None
            without teachers.
        lost_M: teachers that are lost, and that the others taught without; None without teachers.
    """

    gradient_BC: Tensor
    loss_B: Tensor
    weights_MB: Tensor | None = None
    fallback_B: Tensor | None = None
    pull_MB: Tensor | None = None
    lost_M: Tensor | None = None


class Guidance(Protocol):
    """Where the gradient of a step comes from."""

    def gradient(self, batch: Batch, logits_BC: Tensor) -> Taught:
        """The gradient for this worker's samples.

        Args:
            batch: the step's samples and what follows them.
            logits_BC: of the student, float32, detached, for `batch.ids`.
        """
        ...


class Labels:
    """Guidance by the labels alone: cross-entropy (one-hot students, ERM teachers)."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def gradient(self, batch: Batch, logits_BC: Tensor) -> Taught:
        """See `Guidance.gradient`."""
        labels_B = self._samples.labels(batch.ids).to(logits_BC.device)
        return Taught(
            label_gradient(logits_BC, labels_B) / len(labels_B),
            F.cross_entropy(logits_BC, labels_B, reduction="none"),
        )


class Observer(Protocol):
    """Somebody who watches the steps (who taught whom); training never asks it anything."""

    def observe(self, batch: Batch, taught: Taught) -> None:
        """One step was made."""
        ...


@dataclass(frozen=True)
class Pass:
    """One finished epoch.

    Attributes:
        epoch: its number.
        loss: mean over its samples.
        learning_rate: at its last step.
        seconds: that its steps took.
        guidance_seconds: of them, what the guidance took.
    """

    epoch: int
    loss: float
    learning_rate: float
    seconds: float
    guidance_seconds: float = 0.0


DIVERGED = "training has diverged. Lower training.learning_rate, or set training.clip_norm."
"""What to do about a loss or answers that are no longer finite."""
LOOK_EVERY = 100
"""Steps between two looks at the loss: each waits for the device."""


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _alone(total: Tensor) -> Tensor:
    return total


class Trainer:
    """Trains one model, an epoch at a time.

    The random state of an epoch is derived from (seed, epoch, rank), so that a training that
    resumes after any epoch ends in the same parameters as one that was never stopped.

    Args:
        model: to be trained, on `device`.
        samples: the data set, without its groups.
        training: the settings.
        guidance: where the gradients come from.
        seed: of order and dropout.
        device: of the model.
        rank: this worker, with `world` workers in all; each trains on its part of every batch.
        wrap: makes the module whose forward pass is called (DDP); the model itself by default.
        total: sums a tensor over the workers.
        observer: watches the steps.
        look_ahead: how many coming batches the guidance is told of.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        training: Training,
        guidance: Guidance,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        total: Callable[[Tensor], Tensor] = _alone,
        observer: Observer | None = None,
        look_ahead: int = 0,
    ) -> None:
        self.model, self.samples, self.guidance = model, samples, guidance
        self.training, self.seed, self.observer = training, seed, observer
        self.device = torch.device(device)
        self.network = wrap(model) if wrap else model
        self.plan = BatchPlan(
            samples.splits[TRAIN],
            training.batch_size,
            training.epochs,
            seed,
            rank,
            world,
            look_ahead,
        )
        self.optimizer = make_optimizer(model.parameters(), training)
        self.schedule = make_schedule(self.optimizer, training, self.plan.steps_per_epoch)
        self.next_epoch = 0
        self._total = total
        self._guided = 0.0

    def step(self, batch: Batch) -> Taught:
        """One step: the student answers, its guidance answers back, the student moves."""
        inputs = self._to_device(self.samples.inputs(batch.ids, batch.epoch))
        with self._autocast():
            logits_BC = self.network(inputs).float()
        asked = time.perf_counter()
        taught = self.guidance.gradient(batch, logits_BC.detach())
        self._guided += time.perf_counter() - asked
        logits_BC.backward(gradient=taught.gradient_BC)
        if self.training.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return taught

    def epoch(self) -> Pass:
        """All steps of the next epoch.

        Raises:
            RunError: the loss is no longer finite; of all workers alike.
        """
        epoch, start = self.next_epoch, time.perf_counter()
        self._guided = 0.0
        torch.manual_seed(_mix(self.seed, epoch, self.plan.rank))
        self.network.train()
        loss_S: list[Tensor] = []  # sums over a batch, on the device until they are looked at
        summed, rate, steps = 0.0, 0.0, self.plan.steps_per_epoch
        for step in range(steps):
            batch = self.plan.batch(epoch * steps + step)
            rate = float(self.schedule.get_last_lr()[0])
            taught = self.step(batch)
            loss_S.append(taught.loss_B.sum(dtype=torch.float64))
            if self.observer is not None:
                self.observer.observe(batch, taught)
            if len(loss_S) == LOOK_EVERY or step + 1 == steps:
                summed += self._looked_at(loss_S, epoch, step + 1 - len(loss_S))
                loss_S.clear()
        self.next_epoch += 1
        mean = summed / (steps * self.training.batch_size)
        return Pass(epoch, mean, rate, time.perf_counter() - start, self._guided)

    def _looked_at(self, loss_S: Sequence[Tensor], epoch: int, first: int) -> float:
        """The sum of the losses of some steps, over all workers.

        Args:
            loss_S: sums over this worker's part of each batch.
            epoch: whose steps they are.
            first: number of the first of them in the epoch.

        Raises:
            RunError: one is not finite; names the first.
        """
        losses: list[float] = self._total(torch.stack(list(loss_S))).tolist()
        for step, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise RunError(
                    f"the loss is {loss} in step {step + 1} of {self.plan.steps_per_epoch} of "
                    f"epoch {epoch + 1}: {DIVERGED}"
                )
        return math.fsum(losses)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "next_epoch": self.next_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`, with this trainer's learning rate if it is another one.

        Raises:
            Exception: it is the state of another model or optimiser; torch has many kinds.
        """
        done = state["next_epoch"]
        if type(done) is not int or not done >= 0:
            raise ValueError(f"next_epoch is {done!r}, no number of an epoch")
        for name in ("last_epoch", "base_lrs"):
            if type(state["schedule"][name]) is not type(getattr(self.schedule, name)):
                raise ValueError(f"schedule.{name} is of another kind")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.next_epoch = state["next_epoch"]
        for group, before in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] *= self.training.learning_rate / before
            group["initial_lr"] = self.training.learning_rate
        self.schedule.base_lrs = [self.training.learning_rate] * len(self.schedule.base_lrs)

    def _to_device(self, inputs: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return inputs.pin_memory().to(self.device, non_blocking=True)
        return inputs.to(self.device)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.training.autocast == "none":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
