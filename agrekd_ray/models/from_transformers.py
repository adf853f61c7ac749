"""Hugging Face transformers for text and images (optional: `pip install agrekd_ray[text]`)."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agrekd_ray.errors import AgrekdError, first_line
from agrekd_ray.files import in_a_line
from agrekd_ray.hub import hub_library, not_there, offline_errors
from agrekd_ray.models.classifier import Parts, last_linear
from agrekd_ray.models.described import is_timm, read_config
from agrekd_ray.models.model import (
    PRETRAINED,
    TRANSFORMERS,
    Model,
    Preprocessing,
    Shape,
    in_words,
)
from agrekd_ray.models.weights import State, sha256
from agrekd_ray.settings import fingerprint

PREFIX = TRANSFORMERS
_library = functools.partial(hub_library, "transformers", "text")
_NOT_ARCHITECTURE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "finetuning_task",
    "id2label",
    "label2id",
    "model_type",
    "num_labels",
    "problem_type",
    "torch_dtype",
    "transformers_version",
}
"""Keys of a configuration that say nothing of the architecture."""
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_BILINEAR = 2
"""Pillow's number of the interpolation that is ours."""


class _Adapted(nn.Module):
    """Images, or token ids [B, length], of which `pad` is padding -> features."""

    def __init__(self, network: nn.Module, pad: int | None) -> None:
        super().__init__()
        self.network, self.pad = network, pad

    def forward(self, samples: Tensor) -> Tensor:
        if self.pad is None:
            return self.network(pixel_values=samples).logits
        return self.network(input_ids=samples, attention_mask=(samples != self.pad).long()).logits


def names() -> list[str]:
    """See `Family.names`: the architectures; none where transformers is not installed."""
    try:
        return list(_library().CONFIG_MAPPING)
    except AgrekdError:
        return []


def identified(model: Model) -> Model:
    """See `Family.identified`: the architecture, with its whole configuration as arguments."""
    name = model.name.removeprefix(PREFIX)
    if name in _library().CONFIG_MAPPING:
        return model
    config = _config(model)
    # Folders also hold what was set elsewhere, and no configuration of this architecture takes.
    taken = _taken(_library().AutoConfig.for_model(config.model_type)) - _NOT_ARCHITECTURE
    args = {key: value for key, value in config.to_diff_dict().items() if key in taken}
    # What transformers takes for its default today it may not take tomorrow.
    if getattr(config, "pad_token_id", None) is not None:
        args["pad_token_id"] = config.pad_token_id
    update: dict[str, Any] = {"name": PREFIX + config.model_type, "args": args}
    if model.weights == PRETRAINED:
        update["weights"] = f"{PRETRAINED}:{_content(name, config)}"
    return model.model_copy(update=update)


def parts(
    model: Model,
    shape: Shape,
    classes: int,
    *,
    initial: bool,
    whole: bool = False,
    state: State | None = None,
) -> Parts:
    """See `Family.parts`.

    Args:
        model: which one.
        shape: of a sample.
        classes: C.
        initial: fill in published weights, where the model names them.
        whole: refuse published weights without a head, or with one of other classes.
        state: other weights than those that transformers takes of the model's folder.

    Raises:
        AgrekdError: see `Family.parts`.
    """
    library = _library()
    config = _config(model, num_labels=classes)
    text = len(shape) == 1
    kind = "SEQUENCE" if text else "IMAGE"
    makers = getattr(library, f"MODEL_FOR_{kind}_CLASSIFICATION_MAPPING")
    if type(config) not in makers:
        raise AgrekdError(
            f"{model.name}: transformers has no {config.model_type} that classifies "
            f"{in_words(shape)}"
        )
    if text:
        _check_text(model.name, config, shape[0])
    published = _begins_published(model)
    try:
        if published and initial:
            network = _pretrained(makers[type(config)], model, config, whole, state)
        else:
            network = makers[type(config)]._from_config(config, dtype=torch.float32)
    except (NotImplementedError, AgrekdError):
        raise
    except Exception as error:  # whatever an architecture says of a configuration
        raise AgrekdError(f"{model.name}: {first_line(error)}") from None
    if text:
        _check_positions(model.name, network, shape[0])
    head = last_linear(network, classes, model.name)
    return Parts(
        network, head, functools.partial(_Adapted, pad=config.pad_token_id if text else None)
    )


def _begins_published(model: Model) -> bool:
    """Whether the model begins with weights that lie with its configuration."""
    if model.published is None:
        return False
    name = model.name.removeprefix(PREFIX)
    if model.weights != PRETRAINED:
        raise AgrekdError(
            f"{model.name} has no published weights {model.weights!r}; write `weights: "
            f"{PRETRAINED}`, or a file that ends in .safetensors, .pt or .pth"
        )
    if name in _library().CONFIG_MAPPING:
        raise AgrekdError(
            f"{model.name} is an architecture, which has no weights; name a folder or a model "
            "of the Hugging Face hub"
        )
    if _folder(name) and not _weight_files(Path(name)):
        raise AgrekdError(
            f"{name}: no weights there ({' or '.join(_WEIGHTS)}); put them beside its "
            "config.json, or set weights: null to train from fresh ones"
        )
    return True


_AWAY: dict[str, Exception] = {}
"""Models of the hub that it was asked for in vain: it takes a minute to be found away."""


def _published(name: str) -> Any:
    """The configuration of a folder, or of a model of the hub, which is asked for it once."""
    if name in _AWAY:
        raise _AWAY[name]
    try:
        return _library().AutoConfig.from_pretrained(name, trust_remote_code=False)
    except offline_errors() as error:
        if not _folder(name):
            _AWAY[name] = error
        raise


def _folder(name: str) -> bool:
    return name.startswith("/")


def _weight_files(folder: Path) -> list[Path]:
    """What from_pretrained takes: safetensors before pickles."""
    by_pattern = (sorted(folder.glob(pattern)) for pattern in _WEIGHTS)
    return next(filter(None, by_pattern), [])


def _config(model: Model, **more: Any) -> Any:
    """The configuration that the name stands for, with the arguments put in."""
    library = _library()
    name = model.name.removeprefix(PREFIX)
    if given := sorted({"num_labels", "id2label", "label2id"} & set(model.args)):
        raise AgrekdError(
            f"{model.name}: {', '.join(given)} cannot be set; the data give the classes"
        )
    if _folder(name) and not (Path(name) / "config.json").is_file():
        raise AgrekdError(f"{name}: no folder with a config.json of transformers")
    if _folder(name):
        _check_folder(name, read_config(Path(name)))
    if not name:
        raise LookupError(model.name)
    try:
        if name in library.CONFIG_MAPPING:
            plain = library.AutoConfig.for_model(name)
            config = library.AutoConfig.for_model(name, **model.args, **more)
        else:
            plain = _published(name)
            config = library.AutoConfig.from_pretrained(
                name, trust_remote_code=False, **model.args, **more
            )
    except offline_errors() as error:
        near = difflib.get_close_matches(name, library.CONFIG_MAPPING, 1) if "/" not in name else []
        raise not_there(
            model.name,
            "configuration",
            error,
            f" Or an architecture is meant: did you mean {PREFIX}{near[0]}?" if near else "",
        ) from None
    except Exception as error:  # every configuration class has checks of its own
        raise AgrekdError(f"{model.name}: {in_a_line(error)}") from None
    known = _taken(plain)
    for key in model.args:
        if key not in known:
            raise AgrekdError(
                f"{model.name} takes no argument {key!r}; it takes {', '.join(sorted(known))}"
            )
    return config


def _check_folder(name: str, config: Mapping[str, Any]) -> None:
    if is_timm(config):
        raise AgrekdError(
            f"{name}: a folder of timm, not of transformers; write timm/{config['architecture']}, "
            f"with weights: {name}/FILE"
        )
    kind, library = config.get("model_type"), _library()
    if kind is not None and kind not in library.CONFIG_MAPPING:
        raise AgrekdError(
            f"{name}/config.json: this transformers ({library.__version__}) knows no model_type "
            f"{kind!r}"
        )
    for key in ("id2label", "label2id"):
        if not isinstance(config.get(key) or {}, Mapping):
            raise AgrekdError(f"{name}/config.json: {key} must map numbers and names")


def _taken(config: Any) -> set[str]:
    """Arguments that a configuration takes."""
    return {*config.to_dict(), *getattr(config, "attribute_map", {})}


def _check_text(name: str, config: Any, length: int) -> None:
    if getattr(config, "pad_token_id", None) is None:
        raise AgrekdError(
            f"{name}: its configuration has no pad_token_id, which tells padding from text; set it "
            "in `args`"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and 0 <= longest < length:  # XLNet says -1, which is no limit
        raise _too_long(name, longest, length)


def _check_positions(name: str, network: nn.Module, length: int) -> None:
    """RoBERTa and its like count positions from behind their padding's number."""
    for path, module in network.named_modules():
        if isinstance(module, nn.Embedding) and path.endswith("position_embeddings"):
            longest = module.num_embeddings - (
                0 if module.padding_idx is None else module.padding_idx + 1
            )
            if longest < length:
                raise _too_long(name, longest, length)


def _too_long(name: str, longest: int, length: int) -> AgrekdError:
    return AgrekdError(
        f"{name} reads at most {longest} tokens (max_position_embeddings), the data have "
        f"sequences of {length}; lower data.max_length"
    )


def preprocessing_of(folder: Path, shape: Shape) -> tuple[Preprocessing, list[str]] | None:
    """What a folder's image processor does, told by what it makes of pictures of one colour.

    Args:
        folder: of transformers.
        shape: of the data's images.

    Returns:
        The same as ours, and what of it is not done here; None where the folder has no processor.

    Raises:
        AgrekdError: it cannot be read, or does more than resizing and normalising.
    """
    file = next((folder / name for name in _PROCESSORS if (folder / name).is_file()), None)
    if file is None:
        return None
    colours = torch.tensor([0, 255, *range(20, 20 * shape[0] + 1, 20)], dtype=torch.uint8)
    plain_BCHW = torch.stack(
        [colours[n].expand(shape) for n in (0, 1)] + [colours[2:, None, None].expand(shape)]
    )
    how = {"return_tensors": "pt", "input_data_format": "channels_first"}
    try:
        processor = _library().AutoImageProcessor.from_pretrained(
            str(folder), trust_remote_code=False
        )
        made_BCHW = processor(list(plain_BCHW.numpy()), **how)["pixel_values"]
        height, width = made_BCHW.shape[2:]
        framed_CHW = torch.full((shape[0], height, width), 255, dtype=torch.uint8)
        framed_CHW[:, 1:-1, 1:-1] = 0
        corner_C = processor([framed_CHW.numpy()], **how)["pixel_values"][0, :, 0, 0]
        black_C, white_C, colour_C = made_BCHW[:, :, height // 2, width // 2].double()
    except Exception as error:  # whatever a processor, or one of something else, says
        raise AgrekdError(
            f"{file}: cannot be used ({in_a_line(error)}); say with --preprocess what images go "
            "through"
        ) from None
    std_C = 1 / (white_C - black_C)
    mean_C = -black_C * std_C
    ours_C = (colours[2:] / 255 - mean_C) / std_C
    if (
        height != width
        or not torch.allclose(ours_C, colour_C, atol=1e-4)
        or bool((std_C < 0).any())
    ):
        raise AgrekdError(
            f"{file}: {type(processor).__name__} does more than resizing to a square and "
            "normalising; say with --preprocess what images go through"
        )
    mean, std = (tuple(round(value, 6) for value in of.tolist()) for of in (mean_C, std_C))
    size = None if (height, width) == shape[1:] else height
    notes = []
    resizes = getattr(processor, "do_resize", True)
    if (size and not resizes) or bool(((corner_C - black_C) * std_C < 0.8).any()):
        notes.append("its own crops to the middle, which is not done")
    if size and getattr(processor, "resample", _BILINEAR) not in (_BILINEAR, None):
        notes.append("its own resizing is not bilinear, as it is here")
    return Preprocessing(size=size, mean=mean, std=std), notes


def _pretrained(
    maker: Any, model: Model, config: Any, whole: bool, state: State | None
) -> nn.Module:
    """The network with the weights of a folder or of the hub; the head may stay fresh."""
    name = model.name.removeprefix(PREFIX)
    try:
        network, loading = maker.from_pretrained(
            None if state is not None else name,
            state_dict=state,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except offline_errors() as error:
        raise not_there(model.name, "weights", error) from None
    body = f"{network.base_model_prefix}."
    missing, mismatched = loading["missing_keys"], loading["mismatched_keys"]
    absent = [key for key in missing if key.startswith(body) and "pooler" not in key]
    shaped = [key for key, *_ in mismatched if key.startswith(body)]
    if whole and mismatched:
        key, shape = min((key, shape) for key, shape, _ in mismatched)
        raise AgrekdError(
            f"{name}: a head of {shape[0]} classes ({key}), but {config.num_labels} are wanted."
        )
    if whole and missing:
        raise AgrekdError(
            f"{name}: weights without {', '.join(sorted(missing)[:4])}; a model that was never "
            "trained to classify cannot teach."
        )
    if absent or shaped:
        raise AgrekdError(
            f"{model.name}: weights of another architecture (without {len(absent)} tensors, "
            f"{len(shaped)} of another shape, the first is {sorted(absent + shaped)[0]})"
        )
    return network


def _content(name: str, config: Any) -> str:
    """What published weights are known by: their files' content, or the hub's commit."""
    if _folder(name):
        return fingerprint(*(sha256(path) for path in _weight_files(Path(name))))
    return f"{name}@{getattr(config, '_commit_hash', None)}"


def vocabulary(model: Model) -> tuple[int, int | None]:
    """How many tokens a text model knows, and the id of its padding.

    Raises:
        AgrekdError: the configuration is not there.
    """
    config = _config(model)
    return config.vocab_size, config.pad_token_id
