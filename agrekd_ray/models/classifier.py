"""A backbone and its linear head, and how a library's network is cut into the two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn, tensor

from agrekd_ray.core.registry import Registry
from agrekd_ray.errors import AgrekdError
from agrekd_ray.models.model import Model, Preprocessing, Shape


class Classifier(nn.Module):
    """A backbone and its head.

    Attributes:
        backbone: samples -> features [B, D]. Samples are images [B, channels, height, width] or
            token ids [B, length].
        head: the last linear layer, D -> C. A program that was handed in has none of its own:
            its features are its logits, and the head is an `nn.Identity`.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear | nn.Identity) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, inputs: Tensor) -> Tensor:
        """Samples -> logits [B, C]."""
        return self.head(self.backbone(inputs))


BUILDERS: Registry[Callable[..., nn.Module]] = Registry("model")
"""Builders by name: `(shape, classes, **args) -> Classifier`, ours and those of plugins."""


def model(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Registers the decorated function, a builder of networks.

    It is called as `builder(shape, classes, **args)`, with the shape of one sample, the number of
    classes, and the `args` of a job's model. What it returns is a `Classifier`, or a network whose
    last linear layer has an output for each class.

    Args:
        name: as jobs write it.

    Raises:
        ValueError: the name is another's.
    """

    def register(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        BUILDERS.add(name, builder, builder)
        return builder

    return register


class Preprocessed(nn.Module):
    """A network behind what its images go through first; holds no weights of its own.

    Args:
        network: that sees the result.
        preprocessing: what is done.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.size = network, preprocessing.size
        for name in ("mean", "std"):
            values_C11 = tensor(getattr(preprocessing, name))[:, None, None]
            self.register_buffer(f"{name}_C11", values_C11, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, channels, height, width] in [0, 1] -> what the network makes of them."""
        size = self.size
        if size is not None and images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return self.network((images - self.mean_C11) / self.std_C11)


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
    """A library whose architectures are `PREFIX/NAME`: the functions of a module.

    Attributes:
        PREFIX: with its slash.
    """

    PREFIX: str

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


def seen_shape(model: nn.Module, shape: Shape) -> Shape:
    """What the network behind a model's preprocessing sees of samples of a shape."""
    front = getattr(model, "backbone", model)
    size = front.size if isinstance(front, Preprocessed) else None
    return shape if size is None else (shape[0], size, size)


def last_linear(network: nn.Module, classes: int, name: str) -> str:
    """Path of the network's last linear layer.

    Raises:
        AgrekdError: it has none with as many outputs as classes.
    """
    for path, module in reversed(list(network.named_modules())):
        if isinstance(module, nn.Linear) and module.out_features == classes:
            return path
    raise AgrekdError(
        f"{name} does not end in a linear layer, which DFR and shared backbones need; "
        "choose another architecture"
    )


def cut(parts: Parts) -> Classifier:
    """Take the head out of a network; what is left takes samples and gives features."""
    head = parts.network.get_submodule(parts.head)
    assert isinstance(head, nn.Linear)
    parts.network.set_submodule(parts.head, nn.Identity())
    return Classifier(parts.adapt(parts.network), head)
