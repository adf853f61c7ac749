"""What a library of architectures is to the builders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from agrekd_ray.models.model import Model, Shape


@dataclass(frozen=True)
class Parts:
    """A network as its library made it.

    Attributes:
        network: whole, with weights named as its makers name them.
        head: path of its last linear layer.
        adapt: makes it take samples [B, ...] and give one tensor.
    """

    network: nn.Module
    head: str
    adapt: Callable[[nn.Module], nn.Module] = lambda network: network


class Family(Protocol):
    """A library whose architectures are `PREFIX/NAME`.

    Attributes:
        prefix: with its slash.
    """

    prefix: str

    def names(self) -> list[str]:
        """Architectures for a hint where a name is unknown; without the prefix."""
        ...

    def identified(self, model: Model) -> Model:
        """The same model, described by what is in it instead of where it lies.

        Raises:
            AgrekdError: weights or a configuration that are not there.
        """
        ...

    def parts(self, model: Model, shape: Shape, classes: int, *, initial: bool) -> Parts:
        """Build the network, its head for so many classes.

        Args:
            model: which one; the name of published weights is checked in any case.
            shape: of a sample.
            classes: C.
            initial: fill in published weights, where the model names them.

        Raises:
            AgrekdError: the library is missing, or cannot build this.
            LookupError: it knows no such architecture.
            NotImplementedError: the architecture cannot be built on the meta device.
        """
        ...
