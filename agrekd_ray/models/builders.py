"""Models by name: small CNNs, and the architectures of torchvision, timm and transformers.

Each is split into a backbone, which gives features [B, D], and a linear head, so that a last
layer can be retrained (DFR) and several heads can share one backbone.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from agrekd_ray.errors import AgrekdError
from agrekd_ray.models.classifier import Classifier, Preprocessed, cut, first_line
from agrekd_ray.models.cnns import cnn, cnn_deep, delayed
from agrekd_ray.models.family import Family
from agrekd_ray.models.from_timm import Timm
from agrekd_ray.models.from_torchvision import Torchvision
from agrekd_ray.models.from_transformers import Transformers, vocabulary
from agrekd_ray.models.model import PRETRAINED, Model, Preprocessing, Shape, in_words, is_file
from agrekd_ray.models.weights import State, fit, read_state, sha256

_FEW_WEIGHTS, _SMALL_SAMPLE = 30_000_000, 3 * 256 * 256

Given = tuple[State, str]
"""A state dict that is put in, and where it is from."""

BUILDERS: dict[str, Callable[..., Classifier]] = {
    "cnn": cnn,
    "cnn_deep": cnn_deep,
    "delayed": delayed,
}
"""Builders by name: `(shape, classes, **args) -> Classifier`."""
FAMILIES: tuple[Family, ...] = (Torchvision(), Timm(), Transformers())
"""Libraries whose architectures are named `PREFIX/NAME`."""


def build(model: Model, shape: Shape, classes: int, seed: int | None = None) -> Classifier:
    """Build a model as training finds it: fresh weights from the seed, or those that it names.

    Args:
        model: which one.
        shape: of a sample.
        classes: C.
        seed: of the fresh weights; the global random state is left as it was. None where all
            weights are loaded afterwards: those that the model names are not looked at.

    Raises:
        AgrekdError: unknown name, arguments that the builder does not take, samples that the
            architecture cannot take, a library that is not installed, or weights that are not
            there or of another architecture.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is None:
            return _build(model.model_copy(update={"weights": None}), shape, classes, initial=False)
        torch.manual_seed(seed)
        return _build(model, shape, classes, initial=True)


def adopt(model: Model, shape: Shape, classes: int, state: State | None, source: str) -> Classifier:
    """Build a model with all its weights, head included.

    Args:
        model: which one; weights that it names are not looked at.
        shape: of a sample.
        classes: C.
        state: names and tensors that its library's own network takes; None for a folder of
            transformers, which are in it.
        source: of the state, for messages.

    Raises:
        AgrekdError: as `build`; also keys that are missing, unknown or of another shape, and a
            head of another number of classes.
    """
    with torch.random.fork_rng(devices=[]):
        if state is None:
            published = model.model_copy(update={"weights": PRETRAINED})
            return _build(published, shape, classes, initial=True, given=None, whole=True)
        bare = model.model_copy(update={"weights": None})
        return _build(bare, shape, classes, initial=False, given=(state, source))


def behind(classifier: Classifier, preprocessing: Preprocessing | None) -> Classifier:
    """The classifier, behind its preprocessing where it has one."""
    if preprocessing is not None:
        classifier.backbone = Preprocessed(classifier.backbone, preprocessing)
    return classifier


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
        _check_tokens(model, tokens)
    built = check_name(model, shape, classes)
    if _is_small(built, shape):
        built = build(model, shape, classes)
    device = next(built.parameters()).device
    kind = torch.int64 if len(shape) == 1 else torch.float32
    inputs = torch.ones(2, *shape, dtype=kind).to(device)
    try:
        with torch.inference_mode():
            logits = built.eval()(inputs)
    except RuntimeError as error:
        if "meta tensors" not in str(error):  # text models look at the padding's values
            raise _cannot_take(model, shape, error) from None
        real = build(model, shape, classes)
        logits = _through(model, real, torch.ones(2, *shape, dtype=kind))
    except Exception as error:  # whatever an architecture says of a size that it cannot take
        raise _cannot_take(model, shape, error) from None
    if logits.shape != (2, classes):
        raise AgrekdError(f"{model.name} gives {tuple(logits.shape)}, not [2, {classes}]")


def _is_small(built: Classifier, shape: Shape) -> bool:
    """Whether a batch through real weights is quicker than what torch loads to do without them."""
    weights = sum(weight.numel() for weight in built.parameters())
    return weights <= _FEW_WEIGHTS and math.prod(shape) <= _SMALL_SAMPLE


def check_name(model: Model, shape: Shape = (3, 224, 224), classes: int = 10) -> Classifier:
    """Build the model without weights where its builder allows it; file and name of weights count.

    Raises:
        AgrekdError: as `build`.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return _build(model, shape, classes, initial=False)
        except NotImplementedError:  # builders that compute with tensors (RegNet) need real ones
            return _build(model, shape, classes, initial=False)


def identified(model: Model) -> Model:
    """The same model, described by what is in it: files by their content, not by their place.

    What this gives is the same on every machine, changes with the files, and needs none of them.

    Raises:
        AgrekdError: a file that is not there.
    """
    family = _family(model)
    if family is not None:
        with _known(model):
            model = family.identified(model)
    if model.weights is not None and is_file(model.weights):
        return model.model_copy(update={"weights": f"sha256:{sha256(Path(model.weights))}"})
    return model


def _build(
    model: Model,
    shape: Shape,
    classes: int,
    *,
    initial: bool,
    given: Given | None = None,
    whole: bool = False,
) -> Classifier:
    """Fresh weights, or those that the model names; on the meta device files are only compared."""
    inside = shape
    preprocessing = model.preprocessing
    if preprocessing is not None:
        channels = len(preprocessing.mean)
        if len(shape) == 1 or shape[0] != channels:
            raise AgrekdError(
                f"{model.name}: preprocess is for images of {channels} channels, the data are "
                f"{in_words(shape)}"
            )
        if preprocessing.size is not None:
            inside = (shape[0], preprocessing.size, preprocessing.size)
    return behind(_classifier(model, inside, classes, initial, given, whole), preprocessing)


def _classifier(
    model: Model, shape: Shape, classes: int, initial: bool, given: Given | None, whole: bool
) -> Classifier:
    family = _family(model)
    if family is None:
        classifier = _own(model, shape, classes)
        _fill(model, classifier, "head", given)
        return classifier
    if len(shape) == 1 and not isinstance(family, Transformers):
        raise _images_only(model, shape)
    with _known(model):
        if whole and isinstance(family, Transformers):
            parts = family.whole(model, shape, classes)
        else:
            parts = family.parts(model, shape, classes, initial=initial)
    _fill(model, parts.network, parts.head, given)
    classifier = cut(parts.network, parts.head)
    classifier.backbone = parts.adapt(classifier.backbone)
    return classifier


def _fill(model: Model, network: torch.nn.Module, head: str, given: Given | None) -> None:
    if given is not None:
        state, source = given
        fit(network, state, head, f"{source} in {model.name}", fresh_head=False)
    elif model.weights is not None and is_file(model.weights):
        path = Path(model.weights)
        device = next(network.parameters()).device.type
        fit(network, read_state(path, device), head, f"{path} in {model.name}", fresh_head=True)


def _own(model: Model, shape: Shape, classes: int) -> Classifier:
    if model.name not in BUILDERS:
        raise AgrekdError(_unknown(model.name))
    if model.small_stem:
        raise AgrekdError(f"small_stem is for torchvision models, not for {model.name}")
    if model.weights is not None and not is_file(model.weights):
        raise AgrekdError(
            f"{model.name} has no published weights {model.weights!r}; a file ends in "
            ".safetensors, .pt or .pth"
        )
    if len(shape) == 1:
        raise _images_only(model, shape)
    builder = BUILDERS[model.name]
    known = [name for name in inspect.signature(builder).parameters if name != "shape"]
    for name, value in model.args.items():
        if name not in known[1:]:
            raise AgrekdError(f"{model.name} takes no argument {name!r}; it takes {known[1:]}")
        if type(value) is not int or not 0 < value < 2**31:
            raise AgrekdError(
                f"{model.name}: {name} must be a whole number from 1 to {2**31 - 1}, not {value!r}"
            )
    try:
        return builder(shape, classes, **model.args)
    except RuntimeError as error:  # more weights than can be counted, or than memory holds
        raise AgrekdError(f"{model.name}: {first_line(error)}") from None


def _family(model: Model) -> Family | None:
    found = next((f for f in FAMILIES if model.name.startswith(f.prefix)), None)
    if found is not None and model.small_stem and not isinstance(found, Torchvision):
        raise AgrekdError(f"small_stem is for torchvision models, not for {model.name}")
    return found


@contextlib.contextmanager
def _known(model: Model) -> Iterator[None]:
    """What a library does not know becomes a message with the nearest name."""
    try:
        yield
    except LookupError:
        raise AgrekdError(_unknown(model.name)) from None


def _through(model: Model, built: Classifier, inputs: torch.Tensor) -> torch.Tensor:
    try:
        with torch.inference_mode():
            return built.eval()(inputs)
    except Exception as error:
        raise _cannot_take(model, tuple(inputs.shape[1:]), error) from None


def _cannot_take(model: Model, shape: Shape, error: Exception) -> AgrekdError:
    return AgrekdError(f"{model.name} cannot take {in_words(shape)}: {first_line(error)}")


def _images_only(model: Model, shape: Shape) -> AgrekdError:
    return AgrekdError(
        f"{model.name} takes images, the data are {in_words(shape)}; choose transformers/NAME"
    )


def _check_tokens(model: Model, tokens: tuple[int, int | None]) -> None:
    if not model.name.startswith(Transformers.prefix):
        return
    with _known(model):
        known, padding = vocabulary(model)
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


def _unknown(name: str) -> str:
    prefix = next((family.prefix for family in FAMILIES if name.startswith(family.prefix)), None)
    families = [f for f in FAMILIES if f.prefix == (prefix or Torchvision.prefix)]
    known = [*BUILDERS, *(f.prefix + entry for f in families for entry in f.names())]
    near = difflib.get_close_matches(name, known, 1) or difflib.get_close_matches(
        Torchvision.prefix + name, known, 1
    )
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"unknown architecture {name!r}{hint} Known: {', '.join(BUILDERS)}; torchvision/NAME and "
        "timm/NAME for their image classifiers; transformers/NAME for a folder, an architecture "
        "or a model of the Hugging Face hub."
    )
