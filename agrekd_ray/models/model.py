"""How a model is described: its architecture, its first weights, and what its images go through."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer
from pydantic.json_schema import SkipJsonSchema

from agrekd_ray.files import is_folder
from agrekd_ray.settings import Count, Settings, absolute

Shape = tuple[int, ...]
"""What one sample is: (channels, height, width) of an image, or (length,) of a token sequence."""
TRANSFORMERS = "transformers/"
WEIGHT_FILES = {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar"}
"""Endings of files that hold a state dict."""
PRETRAINED = "pretrained"


class Preprocessing(Settings):
    """What images in [0, 1] go through before the network sees them.

    Attributes:
        size: height and width that they are resized to; null leaves their size.
        mean: of each channel, subtracted.
        std: of each channel, divided by.
    """

    size: Count | None = None
    mean: Annotated[tuple[float, ...], Field(min_length=1)]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]

    @field_validator("std")
    @classmethod
    def _one_each(cls, std: tuple[float, ...], info: Any) -> tuple[float, ...]:
        mean = info.data.get("mean", std)
        if len(mean) != len(std):
            raise ValueError(f"{len(std)} deviations, but {len(mean)} means; one for each channel")
        return std


IMAGENET = Preprocessing(size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What most networks with ImageNet weights were trained on."""


class Model(Settings):
    """Which architecture, what it is built with, and where its weights begin.

    Attributes:
        name: a builder's name (`cnn`, `cnn_deep`); `torchvision/NAME` or `timm/NAME` for their
            image classifiers; or `transformers/NAME` for text and image classifiers, where NAME
            is a folder with a `config.json`, an architecture (`bert`, `vit`), or a name of the
            Hugging Face hub.
        args: arguments of the builder (`width` for the CNNs; the library's own for the others).
        small_stem: for torchvision models on small images: a first convolution of 3 x 3 with
            stride 1, and no pooling behind it.
        weights: where training begins: null for fresh weights from the seed; a name of published
            ones (torchvision's, like `IMAGENET1K_V1`; `pretrained` for timm and transformers); or
            a file with a state dict (safetensors, or torch.save, of which tensors alone are read).
            Where a file holds several sets of weights, `FILE#NAME` says which (`w.pth#model_ema`).
            A head for another number of classes stays fresh.
        preprocess: null shows the images as the data give them, in [0, 1]; `imagenet` resizes
            them to 224 and normalises with ImageNet's mean and deviation; a block says it in full.
    """

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    small_stem: bool = False
    weights: str | None = None
    preprocess: Literal["imagenet"] | Preprocessing | None = None
    code: SkipJsonSchema[str | None] = None
    """Digest of the plugin that builds it, where the model is described by what is in it."""

    @field_validator("name")
    @classmethod
    def _absolute_folder(cls, name: str) -> str:
        folder = name.removeprefix(TRANSFORMERS)
        if name == folder or not folder:
            return name
        if folder.startswith((".", "~", "/")) or is_folder(Path(folder)):
            return f"{TRANSFORMERS}{absolute(Path(folder))}"
        return name

    @field_validator("weights")
    @classmethod
    def _absolute_file(cls, weights: str | None) -> str | None:
        return str(absolute(Path(weights))) if weights and _file_of(weights) else weights

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What was fingerprinted before these existed keeps its fingerprint.
        values = handler(self)
        return {
            key: value
            for key, value in values.items()
            if value is not None or key not in ("weights", "preprocess", "code")
        }

    @property
    def published(self) -> str | None:
        """Name of the published weights where training begins; None for fresh ones or a file."""
        return None if self.weights_file else self.weights

    @property
    def weights_file(self) -> tuple[Path, str | None] | None:
        """The file where training begins, and the set of weights in it that `FILE#NAME` says."""
        return None if self.weights is None else _file_of(self.weights)

    @property
    def preprocessing(self) -> Preprocessing | None:
        """`preprocess` in full."""
        return IMAGENET if self.preprocess == "imagenet" else self.preprocess


def _file_of(weights: str) -> tuple[Path, str | None] | None:
    """See `Model.weights_file`; None for the name of published weights."""
    file, _, name = weights.rpartition("#")
    if Path(file).suffix in WEIGHT_FILES:
        return Path(file), name
    return (Path(weights), None) if Path(weights).suffix in WEIGHT_FILES else None


def in_words(shape: Shape) -> str:
    """`images of 3 x 32 x 32`, `sequences of 300 tokens`."""
    if len(shape) == 1:
        return f"sequences of {shape[0]} tokens"
    return f"images of {' x '.join(map(str, shape))}"
