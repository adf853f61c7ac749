"""Models of other makers as they are handed in: files and folders, and what these say of them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from torch import nn

from agrekd_ray.data import Dataset, has_tokenizer, other_tokens, tokens_of
from agrekd_ray.errors import AgrekdError, CheckpointError, DataError, listed
from agrekd_ray.files import in_a_line
from agrekd_ray.models import (
    Classifier,
    Model,
    Preprocessing,
    adopt_folder,
    behind,
    build,
    check_tokens,
)
from agrekd_ray.models.builders import unknown_normalisation
from agrekd_ray.models.described import (
    class_names,
    is_timm,
    mean_and_std,
    read_config,
    weight_sets,
)
from agrekd_ray.models.foreign import kind_of
from agrekd_ray.models.from_timm import PREFIX as TIMM
from agrekd_ray.models.from_timm import described as described_by_timm
from agrekd_ray.models.from_torchvision import WITH_AUXILIARY
from agrekd_ray.models.from_transformers import preprocessing_of
from agrekd_ray.models.model import PRETRAINED, TRANSFORMERS
from agrekd_ray.models.program import EXPORTED, read_program
from agrekd_ray.models.weights import Contents, Fitted, equal, fit, read_contents, sha256

PROGRAM = ".pt2"
_USUAL = ("model.safetensors", "pytorch_model.bin")
"""What transformers and timm read of a folder, in this order."""
_UNKNOWN = "preprocessing: none is said, so images are shown in [0, 1] (--preprocess)"


@dataclass(frozen=True)
class Source:
    """What is imported.

    Attributes:
        path: a state dict, a folder of transformers or timm, or an exported program.
        model: its architecture and preprocessing; the name may be empty for a folder or a program,
            which bring their own.
        classes: names in the order of its logits; None where it says them, or they are in the
            data's.
        trusted: whether the user vouches for a program, whose reading can run code.
        weights: name of a set of weights, or a part of it, where there are several.
    """

    path: Path
    model: Model
    classes: tuple[str, ...] | None = None
    trusted: bool = False
    weights: str | None = None


@dataclass
class Read:
    """A source's model, and what the source says of it.

    Attributes:
        classifier: with its weights, its logits in its own order.
        model: complete.
        names: of its classes, in the order of its logits; empty where nothing names them.
        names_from: where these stand.
        place: of its weights, where the source holds several.
        notes: what was taken of the source, and what was not, in words.
    """

    classifier: Classifier
    model: Model
    names: tuple[str, ...] = ()
    names_from: str = ""
    place: str = ""
    notes: list[str] = field(default_factory=list)


def read_source(source: Source, dataset: Dataset) -> Read:
    """The model of a source, and what the source says of it.

    Raises:
        AgrekdError: another architecture or tokenizer, no weights or several, a pickle, or a
            program that nobody vouches for.
    """
    path = source.path
    if path.is_dir():
        return _folder(source, dataset)
    kind = kind_of(path)
    if kind == "program" or (path.suffix == PROGRAM and not zipfile.is_zipfile(path)):
        return _program(source)
    if not source.model.name:
        raise CheckpointError(
            f"{path}: a state dict does not say what it belongs to; give its architecture, like "
            "--model torchvision/resnet50."
        )
    return _state_dict(source, source.model, read_contents(path), source.weights, dataset)


def _program(source: Source) -> Read:
    path = source.path
    if source.model.name:
        raise CheckpointError(f"{path}: a program brings its architecture; leave --model out.")
    if source.weights:
        raise CheckpointError(f"{path}: a program has its weights in it; leave --weights out.")
    if not source.trusted:
        raise CheckpointError(
            f"{path}: reading an exported program can run code that is hidden in it (torch.export."
            "load unpickles). If you trust whoever made it, say --trust; what is kept of it here "
            "holds no code."
        )
    model = source.model.model_copy(update={"name": EXPORTED})
    program = Classifier(read_program(path), nn.Identity())
    return Read(behind(program, model.preprocessing), model)


def _state_dict(
    source: Source, model: Model, contents: Contents, which: str | None, dataset: Dataset
) -> Read:
    """Weights of a file in a network, with what the file says of them."""
    fits: list[Fitted] = []
    name = f"{source.path} in {model.name}"

    def fill(network: nn.Module, head: str) -> None:
        fits.append(
            fit(network, contents, head, name, fresh_head=False, which=which, averaged=True)
        )

    classifier = build(model, dataset.shape, len(dataset.classes), fill=fill)
    (fitted,) = fits
    read = Read(classifier, model, place=fitted.place)
    if fitted.others:
        read.notes.append(
            f"weights: {fitted.place} taken; {listed(fitted.others)} would fit as well (--weights)"
        )
    if fitted.partial:
        read.notes.append(
            f"weights: {fitted.place} taken; {listed(fitted.partial)} lacks batch norm's statistics"
        )
    if model.name in WITH_AUXILIARY and "transform_input" not in model.args:
        read.notes.append(
            "transform_input: false; if its training began with torchvision's own weights, say "
            "--model-args transform_input=true"
        )
    if fitted.left_out:
        read.notes.append(f"left out, no part of {model.name}: {listed(fitted.left_out, 4)}")
    _normalised(source, read, fitted, contents, dataset.shape)
    _name_classes(source, read, contents.beside, len(dataset.classes))
    if tokens := tokens_of(dataset):
        check_tokens(model, tokens)
    return read


def _normalised(
    source: Source, read: Read, fitted: Fitted, contents: Contents, shape: tuple[int, ...]
) -> None:
    """Put a normalisation that a file holds before the network, unless another is said."""
    said, path = None, source.path
    if fitted.normalisation:
        values = [value.flatten().double().tolist() for value in fitted.normalisation]
        said = [of * shape[0] if len(of) == 1 else of for of in values]
    elif len(shape) == 3 and (plain := mean_and_std(contents.beside, shape[0])):
        said = list(plain)
    given = read.model.preprocessing
    if said is None:
        if given is None and fitted.preceded:
            nothing = Preprocessing(mean=(0.0,) * shape[0], std=(1.0,) * shape[0])
            raise CheckpointError(
                f"{path}: {unknown_normalisation(fitted)}; say with --preprocess what images go "
                f"through, '{in_yaml(nothing)}' for nothing."
            )
        if given is None and len(shape) == 3:
            read.notes.append(_UNKNOWN)
        return
    try:
        taken = Preprocessing.model_validate(dict(zip(("mean", "std"), said, strict=True)))
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: its mean and deviation are none ({in_a_line(error)}); say them with "
            "--preprocess."
        ) from None
    if given is None and (len(taken.mean) != shape[0] or max(map(abs, taken.mean)) > 1):
        raise CheckpointError(
            f"{path}: normalises with '{in_yaml(taken)}', which is not for {shape[0]} channels in "
            "[0, 1]; say with --preprocess what images go through."
        )
    read.notes += _of_preprocessing(given, taken, "the file", [])
    if given is None and (kept := _unless_nothing(taken)):
        read.model = read.model.model_copy(update={"preprocess": kept})
        read.classifier = behind(read.classifier, kept)


def _of_preprocessing(
    given: Preprocessing | None, said: Preprocessing, where: str, more: Sequence[str]
) -> list[str]:
    """What is to be noted where a source says what images go through, and perhaps the user too."""
    if given is None:
        return ["; ".join([f"preprocessing: '{in_yaml(said)}', as {where} says", *more])]
    if _alike(given, said):
        return []
    return [f"preprocessing: '{in_yaml(given)}', as is given; {where} says '{in_yaml(said)}'"]


def _unless_nothing(preprocessing: Preprocessing) -> Preprocessing | None:
    nothing = not any(preprocessing.mean) and set(preprocessing.std) == {1.0}
    return None if nothing and preprocessing.size is None else preprocessing


def _alike(one: Preprocessing, other: Preprocessing) -> bool:
    ours, theirs = ((*said.mean, *said.std) for said in (one, other))
    close = len(ours) == len(theirs) and np.allclose(ours, theirs, rtol=0, atol=1e-4)
    return one.size == other.size and close


def in_yaml(preprocessing: Preprocessing) -> str:
    """As `--preprocess` takes it."""
    size = f"size: {preprocessing.size}, " if preprocessing.size else ""
    both = (preprocessing.mean, preprocessing.std)
    mean, std = (", ".join(f"{value:g}" for value in values) for values in both)
    return f"{{{size}mean: [{mean}], std: [{std}]}}"


# --- folders of transformers and timm


def _folder(source: Source, dataset: Dataset) -> Read:
    path = source.path
    config = read_config(path)
    sets = weight_sets(path)
    if not sets:
        raise CheckpointError(f"{path}: no weights there (*.safetensors or pytorch_model*.bin).")
    name, within = _set_of(source, sets)
    of_library = _of_timm if is_timm(config) else _of_transformers
    read = of_library(source, config, sets[name], within, dataset)
    others = [
        other for other in sets if other != name and not _same_weights(sets[name], sets[other])
    ]
    if others:
        read.notes.insert(0, f"weights: {name} taken; there is {listed(others)} too (--weights)")
    read.place = "/".join(part for part in (name, read.place) if part not in ("", "."))
    words = dict(config)
    if isinstance(inner := config.get("pretrained_cfg"), dict):
        words |= {f"pretrained_cfg/{key}": value for key, value in inner.items()}
    _name_classes(source, read, words, len(dataset.classes), " in config.json")
    return read


def _name_classes(
    source: Source, read: Read, words: Mapping[str, object], classes: int, where: str = ""
) -> None:
    try:
        names, key = class_names(str(source.path), words, classes)
    except CheckpointError as error:
        if source.classes is None:
            raise
        read.notes.append(f"classes: as --classes says ({error})")
        return
    if names:
        read.names, read.names_from = names, f"{key}{where}"


def _set_of(source: Source, sets: dict[str, list[Path]]) -> tuple[str, str | None]:
    """The set of files that is read, and what names a set within them."""
    if source.weights:
        word = source.weights.casefold()
        named = [name for name in sets if word in name.casefold()]
        named = [name for name in named if name.casefold() == word] or named
        if len(named) == 1:
            return named[0], None
        if len(named) > 1:
            raise CheckpointError(
                f"{source.path}: several files are called {source.weights!r}: {listed(named)}."
            )
    usual = [name for name in _USUAL if name in sets] or list(sets)
    if usual[0] not in _USUAL and len(usual) > 1:
        raise CheckpointError(
            f"{source.path}: several files with weights, {listed(usual)}; say which with --weights."
        )
    return usual[0], source.weights


def _same_weights(one: list[Path], other: list[Path]) -> bool:
    try:
        ours, theirs = _contents(one).tensors, _contents(other).tensors
    except CheckpointError:
        return False
    return ours.keys() == theirs.keys() and equal(ours, theirs)


def _contents(files: list[Path]) -> Contents:
    parts = [read_contents(file) for file in files]
    return Contents(
        {name: value for part in parts for name, value in part.tensors.items()},
        {name: value for part in parts for name, value in part.beside.items()},
    )


def _of_timm(
    source: Source,
    config: dict[str, object],
    files: list[Path],
    within: str | None,
    dataset: Dataset,
) -> Read:
    theirs, notes = described_by_timm(source.path, config, dataset.shape)
    given = source.model
    if given.name and given.name.partition(".")[0] != theirs.name.partition(".")[0]:
        raise CheckpointError(
            f"{source.path}: the folder is of {theirs.name}, --model says {given.name}; leave it "
            "out."
        )
    said = theirs.preprocessing
    preprocess = given.preprocess or (said and _unless_nothing(said))
    args = {**theirs.args, **given.args}
    model = given.model_copy(update={"name": theirs.name, "args": args, "preprocess": preprocess})
    read = _state_dict(source, model, _contents(files), within, dataset)
    if said is not None:
        read.notes += _of_preprocessing(given.preprocessing, said, "config.json", notes)
    return read


def _of_transformers(
    source: Source,
    config: dict[str, object],
    files: list[Path],
    within: str | None,
    dataset: Dataset,
) -> Read:
    path, given, sets = source.path, source.model, weight_sets(source.path)
    if within:
        raise CheckpointError(
            f"{path}: no file with weights is called {within!r}; there is {listed(sets)}."
        )
    own = f"{TRANSFORMERS}{path.absolute()}"
    if given.name not in ("", own, f"{TRANSFORMERS}{config.get('model_type')}"):
        raise CheckpointError(
            f"{path}: the folder is a {config.get('model_type')} of transformers, --model says "
            f"{given.name}; leave it out."
        )
    notes: list[str] = []
    taken = given.preprocess
    if len(dataset.shape) == 1:
        notes += _of_tokenizer(path, dataset)
    else:
        try:
            said = preprocessing_of(path, dataset.shape)
            if said is None and taken is None:
                notes.append(_UNKNOWN)
            elif said is not None:
                notes += _of_preprocessing(given.preprocessing, said[0], "the folder", said[1])
                taken = taken or _unless_nothing(said[0])
        except AgrekdError as error:
            if taken is None:
                raise
            notes.append(f"preprocessing: as is given ({error})")
    update = {"name": own, "weights": PRETRAINED, "preprocess": taken}
    model = given.model_copy(update=update)
    if tokens := tokens_of(dataset):
        check_tokens(model, tokens)
    chosen = next((sets[usual] for usual in _USUAL if usual in sets), None)
    state = None if files == chosen else _contents(files).tensors
    classifier = adopt_folder(model, dataset.shape, len(dataset.classes), state)
    if config.get("problem_type") not in (None, "single_label_classification"):
        notes.append(f"trained for {config['problem_type']}; its logits are taken for one label")
    return Read(classifier, model, notes=notes)


def _of_tokenizer(path: Path, dataset: Dataset) -> list[str]:
    """Refuse a text model whose own tokenizer is not the data's."""
    if not has_tokenizer(path):
        return ["tokenizer: none there, so that data.tokenizer is taken for its own"]
    try:
        difference = other_tokens(dataset, path)
    except DataError as error:
        return [f"tokenizer: not compared with data.tokenizer ({error})"]
    if difference:
        raise CheckpointError(
            f"{path}: its tokenizer {difference}, and it would read other words; set "
            "data.tokenizer to this folder."
        )
    return []


def with_its_folder(source: Source) -> Source:
    """A file of a folder of transformers or timm stands for the folder, which describes it."""
    path, name = source.path, source.model.name
    try:
        config = {} if path.is_dir() else read_config(path.parent)
        described = is_timm(config) or "model_type" in config
        files = weight_sets(path.parent) if described else {}
    except CheckpointError:
        return source
    of = next((name for name, paths in files.items() if paths == [path]), None)
    prefix = TIMM if is_timm(config) else TRANSFORMERS
    if of is None or source.weights or not (name or prefix).startswith(prefix):
        return source
    return replace(source, path=path.parent, weights=of)


def content_of(path: Path) -> str:
    """SHA-256 of a file, or of all weights of a folder."""
    sets = weight_sets(path).values() if path.is_dir() else [[path]]
    digests = [sha256(file) for files in sets for file in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
