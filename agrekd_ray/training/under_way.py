"""An epoch under way: when its state is kept, and what that holds besides model and optimiser."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LOOK_EVERY = 100
"""Steps between two looks at the losses, at most: each waits for the device."""


class Looks:
    """When a training looks at its losses, and when it keeps its state.

    All workers must do so after the same step. So at each look, in which they sum up their losses
    anyhow, they hear from the first one's clock how many steps the next look is away.

    Args:
        minutes: between two states of an epoch; infinite where none is kept.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._kept = self._looked = time.monotonic()
        self._steps, self._next = 0, 1

    def due(self) -> bool:
        """Another step is made: whether it is time to look."""
        self._steps += 1
        return self._steps >= self._next

    def word(self) -> int:
        """What the first worker says at a look: steps to the next, negative to keep the state."""
        now = time.monotonic()
        pace, self._looked = (now - self._looked) / self._steps, now
        keep = now - self._kept >= self._seconds
        if keep:
            self._kept = now
        left = self._kept + self._seconds - now
        coming = max(1, int(min(LOOK_EVERY, left / pace if pace else LOOK_EVERY)))
        return -coming if keep else coming

    def heard(self, word: int) -> bool:
        """All workers have heard the word: whether the state is kept now."""
        self._steps, self._next = 0, abs(word)
        return word < 0


@dataclass
class UnderWay:
    """What there is of an epoch that is not over.

    Attributes:
        losses: of its steps so far, each summed over the samples of all workers.
        seconds: that these steps took.
        guidance_seconds: of them, what the guidance took.
        own_WK: what each worker has of its own, float64: the state of its random numbers, and what
            its observer has seen; None before the first step.
    """

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    guidance_seconds: float = 0.0
    own_WK: Tensor | None = None

    def state(self, steps: int) -> dict[str, Any]:
        """As tensors and plain values.

        Args:
            steps: of the whole epoch.
        """
        return {
            "steps": steps,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "seconds": self.seconds,
            "guidance_seconds": self.guidance_seconds,
            "own": self.own_WK,
        }

    @classmethod
    def of_state(cls, state: dict[str, Any], steps: int) -> UnderWay:
        """What `state` made.

        Raises:
            ValueError: it is of an epoch of another length, or damaged.
        """
        losses_S, own_WK = (state[name].cpu() for name in ("losses", "own"))
        if state["steps"] != steps:
            raise ValueError(f"it is of an epoch of {state['steps']} steps, not {steps}")
        if losses_S.ndim != 1 or not 0 < len(losses_S) < steps or own_WK.ndim != 2:
            raise ValueError("what it holds of the epoch under way is damaged")
        took = float(state["seconds"]), float(state["guidance_seconds"])
        return cls(losses_S.double().tolist(), *took, own_WK.double())


def own_of_all(
    observed: Tensor,
    device: torch.device,
    rank: int,
    world: int,
    total: Callable[[Tensor], Tensor],
) -> Tensor:
    """What each worker has of its own, float64 [W, K], in all of them; called by all.

    Args:
        observed: what this worker's observer has seen, float64.
        device: on which it trains.
        rank: this worker.
        world: W.
        total: sums a tensor over the workers.
    """
    own_K = torch.cat([_random_state(device).double(), observed.double().cpu()])
    own_WK = own_K.new_zeros(world, len(own_K))
    own_WK[rank] = own_K
    return total(own_WK)


def take_up(own_K: Tensor, device: torch.device, observed: int) -> Tensor | None:
    """Go on with the random numbers of a worker where `own_of_all` found them.

    Args:
        own_K: the row of this worker.
        device: on which it trains.
        observed: length of what its observer sees.

    Returns:
        What its observer had seen; None where it is the row of another device or observer.
    """
    random_R = _random_state(device)
    if len(own_K) != len(random_R) + observed:
        return None
    state_R = own_K[: len(random_R)].to(torch.uint8)
    on_host = len(torch.get_rng_state())
    torch.set_rng_state(state_R[:on_host])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state_R[on_host:], device)
    return own_K[len(random_R) :]


def _random_state(device: torch.device) -> Tensor:
    """Of the host's random numbers and, on a GPU, the device's, uint8 [R]."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)
