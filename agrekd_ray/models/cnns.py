"""Small CNNs of our own, and a stand-in that only takes time."""

from __future__ import annotations

import time

import torch.nn.functional as F
from torch import Tensor, nn

from agrekd_ray.models.classifier import Classifier, model
from agrekd_ray.models.model import Shape


@model("cnn")
def cnn(shape: Shape, classes: int, width: int = 16) -> Classifier:
    """The student of the paper's Colored MNIST: two convolutional layers.

    Args:
        shape: channels, height and width of an image.
        classes: C.
        width: channels of the first layer; the second has twice as many.
    """
    layers = [*_convolution(shape[0], width), nn.MaxPool2d(2), *_convolution(width, 2 * width)]
    return _pooled(layers, 2 * width, classes)


@model("cnn_deep")
def cnn_deep(shape: Shape, classes: int, width: int = 32) -> Classifier:
    """A slightly larger CNN for teachers: three convolutional layers.

    Args:
        shape: channels, height and width of an image.
        classes: C.
        width: channels of the first layer; the others have twice as many.
    """
    layers = [*_convolution(shape[0], width), *_convolution(width, 2 * width), nn.MaxPool2d(2)]
    return _pooled([*layers, *_convolution(2 * width, 2 * width)], 2 * width, classes)


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()


def _pooled(layers: list[nn.Module], channels: int, classes: int) -> Classifier:
    """Layers whose maps are pooled to 2 x 2, and a head."""
    backbone = nn.Sequential(*layers, _MaxPool2x2(), nn.Flatten())
    return Classifier(backbone, nn.Linear(4 * channels, classes))


class _MaxPool2x2(nn.Module):
    """As `nn.AdaptiveMaxPool2d(2)`, whose gradients on a GPU do not repeat themselves."""

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        if min(height, width) < 2:
            return F.adaptive_max_pool2d(maps, 2)
        # Two windows a side; where it is odd, they share the middle.
        return F.max_pool2d(maps, ((height + 1) // 2, (width + 1) // 2), (height // 2, width // 2))


class _Delayed(nn.Module):
    def __init__(self, channels: int, milliseconds: int) -> None:
        super().__init__()
        self.milliseconds = milliseconds
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "meta":
            time.sleep(self.milliseconds / 1000)
        return self.mix(images.mean((2, 3), keepdim=True)).flatten(1)


@model("delayed")
def delayed(shape: Shape, classes: int, milliseconds: int = 50) -> Classifier:
    """A linear model of the mean colour that takes a set time for a batch, asleep.

    Stands in for a teacher on another device, where what the fleet itself costs is measured.

    Args:
        shape: channels, height and width of an image.
        classes: C.
        milliseconds: that a batch takes.
    """
    return Classifier(_Delayed(shape[0], milliseconds), nn.Linear(shape[0], classes))
