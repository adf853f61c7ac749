"""torchvision's classification architectures and published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from agrekd_ray.errors import AgrekdError, first_line
from agrekd_ray.models.classifier import Parts, last_linear
from agrekd_ray.models.model import Model, Shape
from agrekd_ray.models.weights import Contents, State, fit

PREFIX = "torchvision/"
WITH_AUXILIARY = ("torchvision/googlenet", "torchvision/inception_v3")
"""With heads for training alone, and published weights that take images normalised anew."""
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def names() -> list[str]:
    """See `Family.names`."""
    from torchvision.models import get_model_builder, list_models

    return [name for name in list_models() if _classifies(get_model_builder(name))]


def identified(model: Model) -> Model:
    """See `Family.identified`; `DEFAULT` becomes the name that it stands for."""
    published = _published(model)
    return model if published is None else model.model_copy(update={"weights": published.name})


def parts(model: Model, shape: Shape, classes: int, *, initial: bool) -> Parts:
    """See `Family.parts`."""
    builder = _builder(model)
    if given := sorted({"num_classes", "weights", "aux_logits"} & set(model.args)):
        raise AgrekdError(
            f"{model.name}: {', '.join(given)} cannot be set here; the data give the number of "
            "classes, and `weights` stands beside `args`"
        )
    args: dict[str, Any] = {"weights": None, "num_classes": classes, **model.args}
    if model.name in WITH_AUXILIARY:
        args = {"aux_logits": False, "init_weights": True, **args}
        if model.weights is not None:  # as they were trained
            args = {"transform_input": True, **args}
    published = _published(model)
    try:
        network = builder(**args)
    except NotImplementedError:  # needs real tensors: see `check_name`
        raise
    except Exception as error:  # whatever an architecture says of arguments it cannot take
        raise AgrekdError(f"{model.name}: {first_line(error)}") from None
    head = last_linear(network, classes, model.name)
    if initial and published is not None:
        source = f"{model.name} {published.name}"
        fit(network, Contents(_download(published)), head, source, fresh_head=True)
    if model.small_stem:
        _shrink_stem(network, model.name)
    return Parts(network, head)


def _builder(model: Model) -> Any:
    from torchvision.models import get_model_builder

    try:
        builder = get_model_builder(model.name.removeprefix(PREFIX))
    except ValueError:
        raise LookupError(model.name) from None
    if not _classifies(builder):
        raise AgrekdError(f"{model.name} is not a classification architecture")
    return builder


def _published(model: Model) -> Any | None:
    """The published weights that the model names; None where it names none."""
    if model.published is None:
        return None
    from torchvision.models import get_model_weights

    _builder(model)
    known = get_model_weights(model.name.removeprefix(PREFIX))
    if model.published == "DEFAULT" or model.published in known.__members__:
        return known[model.published]
    raise AgrekdError(
        f"{model.name} has no published weights {model.weights!r}; it has "
        f"{', '.join(known.__members__) or 'none'}. A file ends in .safetensors, .pt or .pth."
    )


def _classifies(builder: Any) -> bool:
    return builder.__module__.rpartition(".")[0] == "torchvision.models"


def _download(published: Any) -> State:
    place = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rpartition("/")[2]
    try:
        state = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise AgrekdError(
            f"weights {published.name} cannot be downloaded ({first_line(error)}). Without a "
            f"network, get {published.url} elsewhere and put it at {place}, or name the file "
            "itself in `weights`."
        ) from None
    return {name: value for name, value in state.items() if not name.startswith(_AUXILIARY)}


def _shrink_stem(network: nn.Module, name: str) -> None:
    """First convolution 3 x 3, stride 1; pooling before the second convolution removed."""
    convolutions = [(p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    if not convolutions or hasattr(network, "conv_proj"):
        raise AgrekdError(f"{name} has no convolutional stem to shrink; set small_stem: false")
    path, first = convolutions[0]
    bias = first.bias is not None
    small = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=bias)
    network.set_submodule(path, small)
    layers = [(p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)]
    if isinstance(layers[1][1], nn.MaxPool2d):
        network.set_submodule(layers[1][0], nn.Identity())
