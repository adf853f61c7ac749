"""timm's image classifiers and published weights (optional: `pip install agrekd_ray[timm]`)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from agrekd_ray.errors import AgrekdError, first_line
from agrekd_ray.files import in_a_line
from agrekd_ray.hub import hub_library, not_there, offline_errors
from agrekd_ray.models.classifier import Parts, last_linear
from agrekd_ray.models.model import PRETRAINED, Model, Preprocessing, Shape, in_words

PREFIX = "timm/"
_timm = functools.partial(hub_library, "timm", "timm")


def names() -> list[str]:
    """See `Family.names`; none where timm is not installed."""
    try:
        return _timm().list_models()
    except AgrekdError:
        return []


def identified(model: Model) -> Model:
    """See `Family.identified`; published weights get the tag that timm knows them by."""
    if model.weights != PRETRAINED:
        return model
    return model.model_copy(update={"name": PREFIX + _tagged(model)})


def parts(model: Model, shape: Shape, classes: int, *, initial: bool) -> Parts:
    """See `Family.parts`."""
    timm = _timm()
    name = model.name.removeprefix(PREFIX)
    if not timm.is_model(name):
        raise LookupError(model.name)
    if given := sorted({"num_classes", "pretrained", "in_chans"} & set(model.args)):
        raise AgrekdError(
            f"{model.name}: {', '.join(given)} cannot be set here; the data give classes and "
            "channels, and `weights: pretrained` stands beside `args`"
        )
    published = model.published is not None
    name = _tagged(model) if published else name
    try:
        network = timm.create_model(
            name,
            pretrained=published and initial,
            num_classes=classes,
            in_chans=shape[0],
            **model.args,
        )
    except NotImplementedError:
        raise
    except offline_errors() as error:
        raise not_there(model.name, "weights", error) from None
    except Exception as error:  # whatever an architecture says of arguments it cannot take
        raise AgrekdError(f"{model.name}: {first_line(error)}") from None
    return Parts(network, _head(network, classes, model.name))


def _tagged(model: Model) -> str:
    """`NAME.TAG` of published weights."""
    name = model.name.removeprefix(PREFIX)
    if model.weights != PRETRAINED:
        raise AgrekdError(
            f"{model.name} has no published weights {model.weights!r}; write `weights: "
            f"{PRETRAINED}` (a tag belongs to the name, like timm/resnet50.a1_in1k), or a file "
            "that ends in .safetensors, .pt or .pth"
        )
    known = _timm().get_pretrained_cfg(name)
    if known is None or not (known.hf_hub_id or known.url):
        raise AgrekdError(f"{model.name}: timm has no published weights of it")
    return f"{known.architecture}.{known.tag}" if known.tag else name


def described(folder: Path, config: Mapping[str, Any], shape: Shape) -> tuple[Model, list[str]]:
    """What a folder that timm wrote says of its model: architecture, arguments, preprocessing.

    Args:
        folder: for messages.
        config: its config.json.
        shape: of a sample of the data.

    Returns:
        The model, and what of its own preprocessing is not done here.

    Raises:
        AgrekdError: timm is missing, or the folder's words make no sense or are of other images.
    """
    timm, name = _timm(), str(config["architecture"])
    if not timm.is_model(name):
        raise AgrekdError(
            f"{folder}: this timm ({timm.__version__}) knows no architecture {name!r}"
        )
    args = dict(config.get("model_args") or {})
    channels = args.pop("in_chans", shape[0])
    if channels != shape[0]:
        raise AgrekdError(
            f"{folder}: takes images of {channels} channels, the data are {in_words(shape)}"
        )
    for key in ("num_classes", "pretrained"):
        args.pop(key, None)
    pool = config.get("global_pool")
    if pool and "global_pool" not in args:  # before timm wrote the arguments out
        with torch.device("meta"):
            usual = getattr(timm.create_model(name), "global_pool", None)
        if isinstance(usual, str) and usual != pool:
            args["global_pool"] = pool
    said = config.get("pretrained_cfg") or config
    model = Model(name=f"{PREFIX}{name}", args=args)
    if not said.get("mean") or not said.get("std"):
        return model, []
    side = args.get("img_size") or (said.get("input_size") or shape)[1:]
    height, width = (side, side) if isinstance(side, int) else side
    if height != width:
        raise AgrekdError(
            f"{folder}: takes images of {height} x {width}; say its preprocessing with --preprocess"
        )
    size = None if (height, width) == shape[1:] else height
    try:
        taken = Preprocessing(size=size, mean=said["mean"], std=said["std"])
    except ValidationError as error:
        raise AgrekdError(
            f"{folder}: its mean and std are none ({in_a_line(error)}); say them with --preprocess"
        ) from None
    notes = []
    if size and (said.get("crop_pct") or 1) < 1:
        notes.append(f"its own crops to the middle {100 * said['crop_pct']:g} %, which is not done")
    if size and said.get("interpolation", "bilinear") != "bilinear":
        notes.append(f"its own resizing is {said['interpolation']}, here it is bilinear")
    return model.model_copy(update={"preprocess": taken}), notes


def _head(network: Any, classes: int, name: str) -> str:
    layer = network.get_classifier()
    paths = [path for path, module in network.named_modules() if module is layer]
    if isinstance(layer, nn.Linear) and paths:
        return paths[0]
    if isinstance(layer, tuple):
        raise AgrekdError(
            f"{name} has {len(layer)} heads, but DFR and shared backbones need one; choose another "
            "architecture"
        )
    return last_linear(network, classes, name)
