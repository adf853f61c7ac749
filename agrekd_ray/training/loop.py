"""The training step, for students and for ERM teachers alike.

One step reads like the paper: inputs, logits, one call for the gradient of the objective with
respect to the logits, `logits.backward(gradient)`, optimiser step. Where that gradient comes from
(labels, teachers in this process, a fleet of Ray actors) is the guidance's matter alone.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agrekd_ray.collectives import from_first
from agrekd_ray.core.gradient import DistillationGradient, required
from agrekd_ray.core.weighting import summarize
from agrekd_ray.data import TRAIN, Samples
from agrekd_ray.errors import RunError
from agrekd_ray.numerics import (
    compiled,
    compiling,
    computing_in,
    numbers_on,
    training_kernels,
)
from agrekd_ray.settings import Training
from agrekd_ray.training.batches import Batch, BatchPlan
from agrekd_ray.training.guidance import Guidance, Observer
from agrekd_ray.training.loader import Loaded, Loader, Request, lengths_of
from agrekd_ray.training.optimization import make_optimizer, make_schedule
from agrekd_ray.training.under_way import Looks, UnderWay, own_of_all, take_up


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
SUMMARIZED_AT_ONCE, SUMMARIZED_BYTES = 16, 1 << 20
"""Steps whose losses and pulls are worked out together, at most, and bytes of their evidence: what
a cache holds."""


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _alone(total: Tensor) -> Tensor:
    return total


class Trainer:
    """Trains one model, an epoch at a time.

    The random state of an epoch is derived from (seed, epoch, rank), and a state that is kept
    within one has every worker's, so that a training that resumes from any state ends in the same
    parameters as one that was never stopped.

    Args:
        model: to be trained, on `device`.
        samples: the data set, without its groups.
        training: the settings.
        guidance: where the gradients come from.
        seed: of order and dropout.
        loader: brings the samples to the device of the model; None makes one for the CPU.
        rank: this worker, with `world` workers in all; each trains on its part of every batch.
        wrap: makes the module whose forward pass is called (DDP); the model itself by default.
        total: sums a tensor over the workers.
        observer: watches the steps.
        look_ahead: how many coming batches the guidance is told of.

    Attributes:
        numbers: that forward passes compute in.

    Raises:
        RunError: the device does not compute in the precision of the settings.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        training: Training,
        guidance: Guidance,
        *,
        seed: int,
        loader: Loader | None = None,
        rank: int = 0,
        world: int = 1,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        total: Callable[[Tensor], Tensor] = _alone,
        observer: Observer | None = None,
        look_ahead: int = 0,
    ) -> None:
        self.samples, self.guidance = samples, guidance
        self.training, self.seed, self.observer = training, seed, observer
        self.loader = loader or Loader(samples)
        self.device = self.loader.device
        self.numbers = numbers_on(training.precision, self.device)
        # As a loader lays out pictures there: convolutions in bfloat16 take half the time.
        self.model = model.to(memory_format=torch.channels_last) if self._on_gpu else model
        wrapped = wrap(self.model) if wrap else self.model
        self.network = compiled(wrapped, training.compile, self.device)
        self.plan = BatchPlan(
            samples.splits[TRAIN],
            training.batch_size,
            training.epochs,
            seed,
            rank,
            world,
            look_ahead,
            lengths_of(samples, samples.splits[TRAIN]),
        )
        self.optimizer = make_optimizer(model.parameters(), training)
        self.schedule = make_schedule(self.optimizer, training, self.plan.steps_per_epoch)
        self.next_epoch = 0
        self._total = total
        self._guided = 0.0
        self._under_way: UnderWay | None = None
        self._coming: Generator[tuple[Batch, Loaded], None, None] | None = None

    def loaded(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, Loaded], None, None]:
        """Batches, each when it is on the device; looked at ahead of time."""
        batches, again = itertools.tee(batches)
        whole = self.guidance.whole_batch
        requests = (Request(b.ids, b.epoch, b.every if whole else None) for b in again)
        guidance = self.guidance
        with contextlib.closing(self.loader(requests, guidance.columns, guidance.ready)) as loading:
            yield from zip(batches, loading, strict=True)

    def step(self, batch: Batch, loaded: Loaded) -> DistillationGradient:
        """One step: the student answers, its guidance answers back, the student moves.

        Raises:
            RunError: the student cannot be compiled as its settings say.
        """
        with compiling(self.training.compile):
            return self._step(batch, loaded)

    def _step(self, batch: Batch, loaded: Loaded) -> DistillationGradient:
        with computing_in(self.numbers, self.device):
            logits_BC = self.network(loaded.inputs).float()
        asked = time.perf_counter()
        guided = self.guidance.gradient(batch, loaded, logits_BC.detach())
        self._guided += time.perf_counter() - asked
        logits_BC.backward(gradient=guided.gradient_BC / len(logits_BC))
        if self.training.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return guided

    def await_first(self) -> None:
        """Wait for the first worker, which may still score the epoch before and keep its state.

        Raises:
            RunError: the workers have gone on from other states.
        """
        begins = self.next_epoch * self.plan.steps_per_epoch + self.steps_done
        if from_first(begins) != begins:
            raise RunError(
                "the state of the training changed while the workers read it, so another run does "
                "the same; `agrekd resume RUN` goes on when that is over."
            )

    def epoch(self, keep: Callable[[], None] | None = None) -> Pass:
        """All steps of the next epoch, or those that are left of it.

        Args:
            keep: called on the first worker, between two steps and `training.save_every_minutes`
                after the last state, to keep `state_dict()`. All workers have one, or none has.

        Raises:
            RunError: the loss is no longer finite (of all workers alike), or the model cannot be
                trained as its settings say.
        """
        with training_kernels(self.device, deterministic=self.training.deterministic):
            return self._epoch(keep)

    def _epoch(self, keep: Callable[[], None] | None) -> Pass:
        epoch, steps = self.next_epoch, self.plan.steps_per_epoch
        under_way = self._begin()
        losses, start = under_way.losses, time.perf_counter() - under_way.seconds
        begins = len(losses)
        summing: list[Callable[[], Tensor]] = []  # losses on the device until looked at
        pending: list[tuple[Tensor, DistillationGradient]] = []
        rate = 0.0
        left = map(self.plan.batch, range(epoch * steps + begins, len(self.plan)))
        coming, self._coming = self._coming or self.loaded(left), None
        looks = Looks(self.training.save_every_minutes if keep else math.inf)
        for step, (batch, loaded) in enumerate(itertools.islice(coming, steps - begins), begins):
            rate = float(self.schedule.get_last_lr()[0])
            pending.append((loaded.ids_B, self.step(batch, loaded)))
            last = step + 1 == steps
            look = looks.due() or last
            if look or len(pending) >= self._summarized_at_once(pending[0][1]):
                summing.append(self.loader.aside(self._summarize, pending))
                pending = []
            if look:
                loss_S = torch.cat([loss_S() for loss_S in summing])
                found, word = self._looked_at(loss_S, looks, epoch, step)
                losses += found
                summing.clear()
                if looks.heard(word) and keep and not last:
                    self._put_down(keep, losses, time.perf_counter() - start)
        self._coming = coming  # the first batches of the next epoch are on their way
        self.next_epoch += 1
        mean = math.fsum(losses) / (steps * self.training.batch_size)
        return Pass(epoch, mean, rate, time.perf_counter() - start, self._guided)

    def _begin(self) -> UnderWay:
        """Begin an epoch, or go on with the one under way."""
        under_way, self._under_way = self._under_way or UnderWay(), None
        rank, own_WK = self.plan.rank, under_way.own_WK
        self._guided = under_way.guidance_seconds
        begins = [len(under_way.losses)] if under_way.losses else []
        torch.manual_seed(_mix(self.seed, self.next_epoch, rank, *begins))
        if own_WK is not None and len(own_WK) == self.plan.world:
            observed = take_up(own_WK[rank], self.device, len(self._observed()))
            if observed is not None and self.observer is not None:
                self.observer.take_up(observed)
        self.network.train()
        return under_way

    def _put_down(self, keep: Callable[[], None], losses: list[float], seconds: float) -> None:
        """Have the state kept between two steps of an epoch; called by all workers."""
        plan = self.plan
        own_WK = own_of_all(self._observed(), self.device, plan.rank, plan.world, self._total)
        if plan.rank == 0:
            self._under_way = UnderWay(losses, seconds, self._guided, own_WK)
            keep()
            self._under_way = None
        from_first(0)  # which may take longer for that than workers wait for each other

    def _observed(self) -> Tensor:
        return torch.empty(0) if self.observer is None else self.observer.state()

    @staticmethod
    def _summarized_at_once(guided: DistillationGradient) -> int:
        evidence = guided.evidence
        held = 0 if evidence is None else evidence.members_mBC.nbytes
        return max(1, min(SUMMARIZED_AT_ONCE, SUMMARIZED_BYTES // max(1, held)))

    def _summarize(self, pending: Sequence[tuple[Tensor, DistillationGradient]]) -> Tensor:
        """Losses of some steps, each summed over this worker's part of the batch, float64 [S]."""
        ids, steps = zip(*pending, strict=True)
        whole = summarize(steps)
        if self.observer is not None:
            self.observer.observe(torch.cat(ids), whole, len(steps))
        return required(whole.loss_B).view(len(steps), -1).sum(1, dtype=torch.float64)

    def _looked_at(
        self, loss_S: Tensor, looks: Looks, epoch: int, last: int
    ) -> tuple[list[float], int]:
        """The losses of some steps, over all workers, and the first one's word to all.

        Args:
            loss_S: sums over this worker's part of each batch.
            looks: of this worker.
            epoch: whose steps they are.
            last: number of the last of them in the epoch.

        Raises:
            RunError: one is not finite; names the first.
        """
        own_S = loss_S.cpu()  # waits for the device, so that the clock tells what steps take
        word = looks.word() if self.plan.rank == 0 else 0
        *losses, heard = self._total(torch.cat([own_S, own_S.new_tensor([word])])).tolist()
        for step, loss in enumerate(losses, last + 1 - len(losses)):
            if not math.isfinite(loss):
                raise RunError(
                    f"the loss is {loss} in step {step + 1} of {self.plan.steps_per_epoch} of "
                    f"epoch {epoch + 1}: {self.guidance.fault(epoch) or DIVERGED}"
                )
        return losses, int(heard)

    @property
    def place(self) -> str:
        """Where it goes on, in words: `epoch 3 of 15`, or `step 7 of 90 of epoch 3 of 15`."""
        epoch = f"epoch {self.next_epoch + 1} of {self.training.epochs}"
        if not self.steps_done:
            return epoch
        return f"step {self.steps_done + 1} of {self.plan.steps_per_epoch} of {epoch}"

    @property
    def steps_done(self) -> int:
        """Steps of the next epoch that the state it is put down in, or went on from, has made."""
        return len(self._under_way.losses) if self._under_way else 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on, as tensors and plain values.

        They are the training's own, which go on changing.
        """
        under_way = self._under_way
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "next_epoch": self.next_epoch,
            "under_way": under_way and under_way.state(self.plan.steps_per_epoch),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`, with this trainer's learning rate if it is another one.

        Raises:
            Exception: it is the state of another model or optimiser; torch has many kinds.
        """
        done = state["next_epoch"]
        if type(done) is not int or not done >= 0:
            raise ValueError(f"next_epoch is {done!r}, no number of an epoch")
        begun = state.get("under_way")  # of an earlier version there is none
        under_way = begun and UnderWay.of_state(begun, self.plan.steps_per_epoch)
        for name in ("last_epoch", "base_lrs"):
            if type(state["schedule"][name]) is not type(getattr(self.schedule, name)):
                raise ValueError(f"schedule.{name} is of another kind")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.next_epoch, self._under_way, self._coming = done, under_way, None
        for group, before in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] *= self.training.learning_rate / before
            group["initial_lr"] = self.training.learning_rate
        self.schedule.base_lrs = [self.training.learning_rate] * len(self.schedule.base_lrs)

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"
