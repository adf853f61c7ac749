"""Models by name: small CNNs, and the architectures of torchvision, timm and transformers.

Each is split into a backbone, which gives features [B, D], and a linear head, so that a last
layer can be retrained (DFR) and several heads can share one backbone.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from agrekd_ray.errors import AgrekdError, first_line
from agrekd_ray.models import cnns as cnns  # registers them
from agrekd_ray.models import from_timm, from_torchvision, from_transformers
from agrekd_ray.models.classifier import (
    BUILDERS,
    Classifier,
    Family,
    Parts,
    Preprocessed,
    cut,
    last_linear,
)
from agrekd_ray.models.model import PRETRAINED, Model, Preprocessing, Shape, in_words
from agrekd_ray.models.weights import Fitted, State, fit, read_contents, sha256
from agrekd_ray.plugins import code_of

_FEW_WEIGHTS, _SMALL_SAMPLE = 30_000_000, 3 * 256 * 256

Fill = Callable[[nn.Module, str], None]
"""Puts all weights into a network whose last linear layer has that path."""

MEASURING = {"delayed"}
"""Builders for `agrekd bench` and `agrekd plan`, which nobody would choose."""
FAMILIES: tuple[Family, ...] = (from_torchvision, from_timm, from_transformers)
"""Libraries whose architectures are named `PREFIX/NAME`."""


def build(
    model: Model, shape: Shape, classes: int, seed: int | None = None, fill: Fill | None = None
) -> Classifier:
    """Build a model as training finds it: fresh weights from the seed, or those that it names.

    Args:
        model: which one.
        shape: of a sample.
        classes: C.
        seed: of the fresh weights; the global random state is left as it was. None where all
            weights are loaded afterwards: those that the model names are not looked at.
        fill: puts all weights, head included, into the network as its library has made it.

    Raises:
        AgrekdError: unknown name, arguments that the builder does not take, samples that the
            architecture cannot take, a library that is not installed, or weights that are not
            there or of another architecture.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is None:
            model = model.model_copy(update={"weights": None})
        else:
            torch.manual_seed(seed)
        return _build(model, shape, classes, initial=seed is not None, fill=fill)


def adopt_folder(model: Model, shape: Shape, classes: int, state: State | None) -> Classifier:
    """Build the model of a folder of transformers with all its weights, head included.

    Args:
        model: that names the folder.
        shape: of a sample.
        classes: C.
        state: other weights than those that transformers takes of the folder; None for these.

    Raises:
        AgrekdError: as `build`; also keys that are missing, and a head of another number of
            classes.
    """
    published = model.model_copy(update={"weights": PRETRAINED})
    with torch.random.fork_rng(devices=[]):
        parts = from_transformers.parts(
            published, _inside(model, shape), classes, initial=True, whole=True, state=state
        )
    return behind(cut(parts), model.preprocessing)


def behind(classifier: Classifier, preprocessing: Preprocessing | None) -> Classifier:
    """The classifier, behind its preprocessing where it has one."""
    if preprocessing is not None:
        classifier.backbone = Preprocessed(classifier.backbone, preprocessing)
    return classifier


def check_tokens(model: Model, tokens: tuple[int, int | None]) -> None:
    """Check that a text model reads the tokens of a data set.

    Args:
        model: which one.
        tokens: how many the data's tokenizer knows, and the id of its padding.

    Raises:
        AgrekdError: it knows fewer, or another padding.
    """
    if _family(model.name) is not from_transformers:
        return
    with _known(model):
        known, padding = from_transformers.vocabulary(model)
    if tokens[0] > known:
        raise AgrekdError(
            f"{model.name} knows {known} tokens (vocab_size), the data's tokenizer {tokens[0]}; "
            "they do not belong together"
        )
    if padding != tokens[1]:
        raise AgrekdError(
            f"{model.name} takes token {padding} for padding (pad_token_id), the data's tokenizer "
            f"token {tokens[1]}; they do not belong together"
        )


def check(
    model: Model, shape: Shape, classes: int, tokens: tuple[int, int | None] | None = None
) -> None:
    """Build the model, without memory or weights where it allows that, and send a batch through.

    Args:
        model: which one.
        shape: of a sample.
        classes: C.
        tokens: for text, how many tokens the data's tokenizer knows, and the id of its padding.

    Raises:
        AgrekdError: as `build`; also where such samples do not fit.
    """
    if tokens is not None:
        check_tokens(model, tokens)
    built = check_name(model, shape, classes)
    weights = sum(weight.numel() for weight in built.parameters())
    # A batch through few weights is quicker than what torch loads to do without them.
    small = weights <= _FEW_WEIGHTS and math.prod(shape) <= _SMALL_SAMPLE
    logits = None if small else _logits(model, built, shape)
    if logits is None:
        logits = _logits(model, build(model, shape, classes), shape)
    if logits is None or logits.shape != (2, classes):
        gives = None if logits is None else tuple(logits.shape)
        raise AgrekdError(f"{model.name} gives {gives}, not [2, {classes}]")


def _logits(model: Model, built: Classifier, shape: Shape) -> Tensor | None:
    """Of two samples; None where the model is without weights, and looks at values (padding)."""
    kind = torch.int64 if len(shape) == 1 else torch.float32
    inputs = torch.ones(2, *shape, dtype=kind).to(next(built.parameters()).device)
    try:
        with torch.inference_mode():
            return built.eval()(inputs)
    except Exception as error:  # whatever an architecture says of a size that it cannot take
        if isinstance(error, RuntimeError) and "meta tensors" in str(error):
            return None
        raise AgrekdError(
            f"{model.name} cannot take {in_words(shape)}: {first_line(error)}"
        ) from None


def check_name(model: Model, shape: Shape = (3, 224, 224), classes: int = 10) -> Classifier:
    """Build the model without weights where its builder allows it; file and name of weights count.

    Raises:
        AgrekdError: as `build`.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("cpu" if of_plugin(model) else "meta"):
                return _build(model, shape, classes, initial=False)
        except NotImplementedError:  # builders that compute with tensors (RegNet) need real ones
            return _build(model, shape, classes, initial=False)


def of_plugin(model: Model) -> Callable[..., nn.Module] | None:
    """The builder of a plugin that makes the model; None for all others."""
    return BUILDERS.maker(model.name) if model.name in BUILDERS else None


def identified(model: Model) -> Model:
    """The same model, described by what is in it: files and plugins by their content.

    What this gives is the same on every machine, changes with the files, and needs none of them.

    Raises:
        AgrekdError: a file that is not there.
    """
    if (family := _family(model.name)) is not None:
        with _known(model):
            model = family.identified(model)
    if (builder := of_plugin(model)) is not None:
        model = model.model_copy(update={"code": code_of(builder)})
    if model.weights_file is not None:
        path, which = model.weights_file
        named = f"#{which}" if which else ""
        return model.model_copy(update={"weights": f"sha256:{sha256(path)}{named}"})
    return model


def _build(
    model: Model, shape: Shape, classes: int, *, initial: bool, fill: Fill | None = None
) -> Classifier:
    """Fresh weights, or those that the model names; on the meta device files are only compared."""
    fill = fill or functools.partial(_first_weights, model)
    inside = _inside(model, shape)
    family = _family(model.name)
    if family is None and model.name not in BUILDERS:
        lost = " A plugin built it, which the job names in plugins." if model.code else ""
        raise AgrekdError(_unknown(model.name) + lost)
    if model.small_stem and family is not from_torchvision:
        raise AgrekdError(f"small_stem is for torchvision models, not for {model.name}")
    if len(inside) == 1 and family is not from_transformers and of_plugin(model) is None:
        raise AgrekdError(
            f"{model.name} takes images, the data are {in_words(inside)}; choose transformers/NAME"
        )
    if family is None:
        built = _own(model, inside, classes)
        if isinstance(built, Classifier):
            fill(built, "head")
            return behind(built, model.preprocessing)
        parts = Parts(built, last_linear(built, classes, model.name))
    else:
        with _known(model):
            parts = family.parts(model, inside, classes, initial=initial)
    fill(parts.network, parts.head)
    return behind(cut(parts), model.preprocessing)


def _inside(model: Model, shape: Shape) -> Shape:
    """What samples are behind the model's preprocessing."""
    preprocessing = model.preprocessing
    if preprocessing is None:
        return shape
    channels = len(preprocessing.mean)
    if len(shape) == 1 or shape[0] != channels:
        raise AgrekdError(
            f"{model.name}: preprocess is for images of {channels} channels, the data are "
            f"{in_words(shape)}"
        )
    if preprocessing.size is None:
        return shape
    return (channels, preprocessing.size, preprocessing.size)


def _first_weights(model: Model, network: nn.Module, head: str) -> None:
    """Where the model's weights are a file, put them in; its head may stay fresh."""
    if model.weights_file is None:
        return
    path, which = model.weights_file
    source, device = f"{path} in {model.name}", next(network.parameters()).device.type
    fitted = fit(network, read_contents(path, device), head, source, fresh_head=True, which=which)
    if model.preprocess is None and (fitted.normalisation or fitted.preceded):
        raise AgrekdError(f"{source}: {unknown_normalisation(fitted)}; say it in preprocess")


def unknown_normalisation(fitted: Fitted) -> str:
    """In words, why weights do not suffice to know what images go through first."""
    if fitted.normalisation:
        return "the network stands behind a normalisation of its inputs"
    return (
        f"the network is {fitted.place} of a sequence, behind a layer without weights, which may "
        "normalise its inputs"
    )


def _own(model: Model, shape: Shape, classes: int) -> nn.Module:
    if model.published is not None:
        raise AgrekdError(
            f"{model.name} has no published weights {model.weights!r}; a file ends in "
            ".safetensors, .pt or .pth"
        )
    builder = BUILDERS[model.name]
    if model.code not in (None, code_of(of_plugin(model))):
        raise AgrekdError(
            f"{model.name} was built by other code of its plugin, {builder.__module__}; put that "
            "back as it was"
        )
    known = [name for name in inspect.signature(builder).parameters if name != "shape"]
    for name, value in model.args.items():
        if name not in known[1:]:
            raise AgrekdError(f"{model.name} takes no argument {name!r}; it takes {known[1:]}")
        if of_plugin(model) is None and (type(value) is not int or not 0 < value < 2**31):
            raise AgrekdError(
                f"{model.name}: {name} must be a whole number from 1 to {2**31 - 1}, not {value!r}"
            )
    try:
        return builder(shape, classes, **model.args)
    except Exception as error:  # a plugin's may raise anything, ours for lack of memory
        raise AgrekdError(f"{model.name}: {first_line(error)}") from error


def _family(name: str) -> Family | None:
    return next((family for family in FAMILIES if name.startswith(family.PREFIX)), None)


@contextlib.contextmanager
def _known(model: Model) -> Iterator[None]:
    """What a library does not know becomes a message with the nearest name."""
    try:
        yield
    except LookupError:
        raise AgrekdError(_unknown(model.name)) from None


def _unknown(name: str) -> str:
    family = _family(name) or from_torchvision
    builders = [builder for builder in BUILDERS if builder not in MEASURING]
    known = [*builders, *(family.PREFIX + entry for entry in family.names())]
    near = difflib.get_close_matches(name, known, 1) or difflib.get_close_matches(
        from_torchvision.PREFIX + name, known, 1
    )
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"unknown architecture {name!r}{hint} Known: {', '.join(builders)}; torchvision/NAME and "
        "timm/NAME for their image classifiers; transformers/NAME for a folder, an architecture "
        "or a model of the Hugging Face hub."
    )
