"""Models by name: small CNNs and every torchvision classification architecture.

Each is split into a backbone, which gives features [B, D], and a linear head, so that a last
layer can be retrained (DFR) and several heads can share one backbone.
"""

from __future__ import annotations

import difflib
import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from agrekd_ray.errors import AgrekdError
from agrekd_ray.settings import Settings

TORCHVISION = "torchvision/"


class Model(Settings):
    """Which architecture, and what it is built with.

    Attributes:
        name: a builder's name (`cnn`, `cnn_deep`), or `torchvision/NAME` for any torchvision
            classification architecture (`torchvision/resnet18`).
        args: arguments of the builder (`width` for the CNNs; torchvision's own for the others).
        small_stem: for torchvision models on small images: a first convolution of 3 x 3 with
            stride 1, and no pooling behind it.
    """

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    small_stem: bool = False


class Classifier(nn.Module):
    """A backbone and its linear head.

    Attributes:
        backbone: images [B, channels, height, width] -> features [B, D].
        head: the last linear layer, D -> C.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, channels, height, width] -> logits [B, C]."""
        return self.head(self.backbone(images))


def cnn(shape: tuple[int, int, int], classes: int, width: int = 16) -> Classifier:
    """The student of the paper's Colored MNIST: two convolutional layers.

    Args:
        shape: channels, height and width of an image.
        classes: C.
        width: channels of the first layer; the second has twice as many.
    """
    backbone = nn.Sequential(
        nn.Conv2d(shape[0], width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
    )
    return Classifier(backbone, nn.Linear(8 * width, classes))


def cnn_deep(shape: tuple[int, int, int], classes: int, width: int = 32) -> Classifier:
    """A slightly larger CNN for teachers: three convolutional layers.

    Args:
        shape: channels, height and width of an image.
        classes: C.
        width: channels of the first layer; the others have twice as many.
    """
    backbone = nn.Sequential(
        nn.Conv2d(shape[0], width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
    )
    return Classifier(backbone, nn.Linear(8 * width, classes))


class _Delayed(nn.Module):
    def __init__(self, channels: int, milliseconds: int) -> None:
        super().__init__()
        self.milliseconds = milliseconds
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "meta":
            time.sleep(self.milliseconds / 1000)
        return self.mix(images.mean((2, 3), keepdim=True)).flatten(1)


def delayed(shape: tuple[int, int, int], classes: int, milliseconds: int = 50) -> Classifier:
    """A linear model of the mean colour that takes a set time for a batch, asleep.

    Stands in for a teacher on another device, where what the fleet itself costs is measured.

    Args:
        shape: channels, height and width of an image.
        classes: C.
        milliseconds: that a batch takes.
    """
    return Classifier(_Delayed(shape[0], milliseconds), nn.Linear(shape[0], classes))


BUILDERS: dict[str, Callable[..., Classifier]] = {
    "cnn": cnn,
    "cnn_deep": cnn_deep,
    "delayed": delayed,
}
"""Builders by name: `(shape, classes, **args) -> Classifier`."""


def build(
    model: Model, shape: tuple[int, int, int], classes: int, seed: int | None = None
) -> Classifier:
    """Build a model with fresh weights.

    Args:
        model: which one.
        shape: channels, height and width of an image.
        classes: C.
        seed: of the initial weights; the global random state is left as it was. None where the
            weights are loaded afterwards.

    Raises:
        AgrekdError: unknown name, arguments that the builder does not take, or images of a size
            that the architecture cannot take.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        if model.name.startswith(TORCHVISION):
            return _torchvision(model, shape, classes)
        builder = _builder(model)
        try:
            return builder(shape, classes, **model.args)
        except RuntimeError as error:  # more weights than can be counted, or than memory holds
            raise AgrekdError(f"{model.name}: {_first_line(error)}") from None


def check(model: Model, shape: tuple[int, int, int], classes: int) -> None:
    """Build the model without memory or weights and send one shape through it.

    Raises:
        AgrekdError: as `build`; also where images of this size do not fit.
    """
    built = check_name(model, shape, classes)
    images = torch.empty(2, *shape, device=built.head.weight.device)
    try:
        with torch.inference_mode():
            logits = built.eval()(images)
    except Exception as error:  # whatever an architecture says of a size that it cannot take
        size = " x ".join(map(str, shape))
        raise AgrekdError(
            f"{model.name} cannot take images of {size}: {_first_line(error)}"
        ) from None
    if logits.shape != (2, classes):
        raise AgrekdError(f"{model.name} gives {tuple(logits.shape)}, not [2, {classes}]")


def check_name(
    model: Model, shape: tuple[int, int, int] = (3, 224, 224), classes: int = 10
) -> Classifier:
    """Build the model without weights where its builder allows it.

    Raises:
        AgrekdError: as `build`.
    """
    try:
        with torch.device("meta"):
            return build(model, shape, classes)
    except NotImplementedError:  # builders that compute with tensors (RegNet) need real ones
        return build(model, shape, classes)


def _builder(model: Model) -> Callable[..., Classifier]:
    if model.name not in BUILDERS:
        raise AgrekdError(_unknown(model.name))
    if model.small_stem:
        raise AgrekdError(f"small_stem is for torchvision models, not for {model.name}")
    builder = BUILDERS[model.name]
    known = [name for name in inspect.signature(builder).parameters if name != "shape"]
    for name, value in model.args.items():
        if name not in known[1:]:
            raise AgrekdError(f"{model.name} takes no argument {name!r}; it takes {known[1:]}")
        if type(value) is not int or not 0 < value < 2**31:
            raise AgrekdError(
                f"{model.name}: {name} must be a whole number from 1 to {2**31 - 1}, not {value!r}"
            )
    return builder


def _unknown(name: str) -> str:
    from torchvision.models import get_model_builder, list_models

    classifiers = [
        entry
        for entry in list_models()
        if get_model_builder(entry).__module__.rpartition(".")[0] == "torchvision.models"
    ]
    known = [*BUILDERS, *(TORCHVISION + entry for entry in classifiers)]
    near = difflib.get_close_matches(name, known, 1) or difflib.get_close_matches(
        TORCHVISION + name, known, 1
    )
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"unknown architecture {name!r}{hint} Known: {', '.join(BUILDERS)} and torchvision/NAME "
        "for any torchvision classification model."
    )


def _torchvision(model: Model, shape: tuple[int, int, int], classes: int) -> Classifier:
    from torchvision.models import get_model_builder

    try:
        builder = get_model_builder(model.name.removeprefix(TORCHVISION))
    except ValueError:
        raise AgrekdError(_unknown(model.name)) from None
    if builder.__module__.rpartition(".")[0] != "torchvision.models":
        raise AgrekdError(f"{model.name} is not a classification architecture")
    if given := sorted({"num_classes", "weights", "aux_logits"} & set(model.args)):
        raise AgrekdError(
            f"{model.name}: {', '.join(given)} cannot be set; the data give the number of classes, "
            "and models start with fresh weights"
        )
    args = {"weights": None, "num_classes": classes, **model.args}
    if builder.__name__ in ("googlenet", "inception_v3"):
        args = {"aux_logits": False, "init_weights": True, **args}
    try:
        network = builder(**args)
    except NotImplementedError:  # needs real tensors: see `check_name`
        raise
    except Exception as error:  # whatever an architecture says of arguments that it cannot take
        raise AgrekdError(f"{model.name}: {_first_line(error)}") from None
    name, head = _last_linear(network, classes, model.name)
    _replace(network, name, nn.Identity())
    if model.small_stem:
        _shrink_stem(network, model.name)
    return Classifier(network, head)


def _last_linear(network: nn.Module, classes: int, name: str) -> tuple[str, nn.Linear]:
    for path, module in reversed(list(network.named_modules())):
        if isinstance(module, nn.Linear) and module.out_features == classes:
            return path, module
    raise AgrekdError(
        f"{name} does not end in a linear layer, which DFR and shared backbones need; "
        "choose another architecture"
    )


def _replace(network: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, new)


def _shrink_stem(network: nn.Module, name: str) -> None:
    """First convolution 3 x 3, stride 1; pooling before the second convolution removed."""
    found = next(((p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d)), None)
    if found is None or hasattr(network, "conv_proj"):
        raise AgrekdError(f"{name} has no convolutional stem to shrink; set small_stem: false")
    path, first = found
    _replace(
        network,
        path,
        nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=first.bias is not None),
    )
    layers = [(p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)]
    if isinstance(layers[1][1], nn.MaxPool2d):
        _replace(network, layers[1][0], nn.Identity())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
