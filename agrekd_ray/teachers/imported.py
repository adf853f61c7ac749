"""Models of other makers, turned into checkpoints that can teach."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from pydantic import ValidationError
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from agrekd_ray.data import SELECT, TRAIN, Dataset, other_tokens, tokens_of
from agrekd_ray.data.names import canonical, folded
from agrekd_ray.data.names import listed as quoted
from agrekd_ray.errors import AgrekdError, CheckpointError, DataError, listed
from agrekd_ray.files import in_a_line
from agrekd_ray.models import (
    Classifier,
    Manifest,
    Model,
    Preprocessing,
    adopt,
    adopt_folder,
    behind,
    check_tokens,
    identified,
    save,
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
from agrekd_ray.models.from_timm import Timm
from agrekd_ray.models.from_timm import described as described_by_timm
from agrekd_ray.models.from_transformers import preprocessing_of
from agrekd_ray.models.model import PRETRAINED, TRANSFORMERS, in_words
from agrekd_ray.models.program import EXPORTED, read_program
from agrekd_ray.models.weights import Contents, Fitted, fit, read_contents, sha256
from agrekd_ray.results import Metrics
from agrekd_ray.settings import fingerprint
from agrekd_ray.training import predict, score

IMPORTED = "imported"
"""Folder within the teachers' store."""
_PROGRAM = ".pt2"
_LOOKED_AT = 3
"""Samples that an imported model answers before it is taken."""
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model")
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


@dataclass(frozen=True)
class Imported:
    """A model that can teach now.

    Attributes:
        folder: of its checkpoint.
        manifest: of it.
        metrics: on the selection half of validation.
        notes: what was taken of the source, and what was not, in words.
        warnings: what makes it doubtful as a teacher.
    """

    folder: Path
    manifest: Manifest
    metrics: Metrics
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass
class _Read:
    """A source's model, and what the source says of it.

    Attributes:
        classifier: with its weights, its logits in its own order.
        model: complete.
        names: of its classes, in the order of its logits; empty where nothing names them.
        names_from: where these stand.
        place: of its weights, where the source holds several.
        notes: see `Imported`.
    """

    classifier: Classifier
    model: Model
    names: tuple[str, ...] = ()
    names_from: str = ""
    place: str = ""
    notes: list[str] = field(default_factory=list)


def import_teacher(source: Source, dataset: Dataset, store: Path, name: str) -> Imported:
    """Make a checkpoint of a model, if it can teach on these data.

    Args:
        source: what is imported.
        dataset: that it shall teach on.
        store: the teachers' store.
        name: of the checkpoint.

    Raises:
        AgrekdError: another architecture, other classes or another tokenizer, samples that it
            cannot take, answers that are not finite, a pickle, or a name that is taken.
    """
    folder = store / IMPORTED / name
    if folder.exists():
        raise CheckpointError(
            f"{folder}: there is one of this name already; choose another --name."
        )
    source = _with_its_folder(source)
    read = _read(source, dataset)
    order = _order(source, read, dataset.classes)
    _reorder(read.classifier, order, source.path, dataset.classes)
    _look(read.classifier.eval(), source, dataset)
    metrics, warnings = _judged(read.classifier, dataset, order)
    content = _content(source.path)
    made_by = {"kind": IMPORTED, "file": source.path.name, "sha256": content}
    manifest = Manifest(
        model=read.model,
        shape=dataset.shape,
        classes=dataset.classes,
        fingerprint=fingerprint(IMPORTED, identified(read.model), order, content, read.place),
        data="unknown",
        metrics={SELECT: asdict(metrics)},
        made_by={**made_by, "weights": read.place, "classes": list(order)},
    )
    manifest = save(folder, read.classifier, manifest)
    return Imported(folder, manifest, metrics, tuple(read.notes), warnings)


def _with_its_folder(source: Source) -> Source:
    """A file of a folder of transformers or timm stands for the folder, which describes it."""
    path, name = source.path, source.model.name
    try:
        config = {} if path.is_dir() else read_config(path.parent)
        described = is_timm(config) or "model_type" in config
        files = weight_sets(path.parent) if described else {}
    except CheckpointError:
        return source
    of = next((name for name, paths in files.items() if paths == [path]), None)
    prefix = Timm.prefix if is_timm(config) else TRANSFORMERS
    if of is None or source.weights or not (name or prefix).startswith(prefix):
        return source
    return replace(source, path=path.parent, weights=of)


def _read(source: Source, dataset: Dataset) -> _Read:
    path = source.path
    if path.is_dir():
        return _folder(source, dataset)
    kind = kind_of(path)
    if kind == "program" or (path.suffix == _PROGRAM and not zipfile.is_zipfile(path)):
        return _program(source)
    if not source.model.name:
        raise CheckpointError(
            f"{path}: a state dict does not say what it belongs to; give its architecture, like "
            "--model torchvision/resnet50."
        )
    return _state_dict(source, source.model, read_contents(path), source.weights, dataset)


def _program(source: Source) -> _Read:
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
    return _Read(behind(program, model.preprocessing), model)


def _state_dict(
    source: Source, model: Model, contents: Contents, which: str | None, dataset: Dataset
) -> _Read:
    """Weights of a file in a network, with what the file says of them."""
    found: list[Fitted] = []
    name = f"{source.path} in {model.name}"

    def fill(network: nn.Module, head: str) -> None:
        found.append(
            fit(network, contents, head, name, fresh_head=False, which=which, averaged=True)
        )

    classifier = adopt(model, dataset.shape, len(dataset.classes), fill)
    (fitted,) = found
    read = _Read(classifier, model, place=fitted.place)
    if fitted.others:
        read.notes.append(
            f"weights: {fitted.place} taken; {listed(fitted.others)} would fit as well (--weights)"
        )
    if fitted.left_out:
        read.notes.append(f"left out, no part of {model.name}: {listed(fitted.left_out, 4)}")
    _normalised(source, read, fitted, contents, dataset.shape)
    read.names, read.names_from = class_names(
        str(source.path), contents.beside, len(dataset.classes)
    )
    if tokens := tokens_of(dataset):
        check_tokens(model, tokens)
    return read


def _normalised(
    source: Source, read: _Read, fitted: Fitted, contents: Contents, shape: tuple[int, ...]
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
                f"through, '{_yaml(nothing)}' for nothing."
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
            f"{path}: normalises with '{_yaml(taken)}', which is not for {shape[0]} channels in "
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
        return ["; ".join([f"preprocessing: '{_yaml(said)}', as {where} says", *more])]
    if _alike(given, said):
        return []
    return [f"preprocessing: '{_yaml(given)}', as is given; {where} says '{_yaml(said)}'"]


def _unless_nothing(preprocessing: Preprocessing) -> Preprocessing | None:
    nothing = not any(preprocessing.mean) and set(preprocessing.std) == {1.0}
    return None if nothing and preprocessing.size is None else preprocessing


def _alike(one: Preprocessing, other: Preprocessing) -> bool:
    values = [(*of.mean, *of.std) for of in (one, other)]
    return (
        one.size == other.size
        and len(values[0]) == len(values[1])
        and all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(*values, strict=True))
    )


def _yaml(preprocessing: Preprocessing) -> str:
    """As `--preprocess` takes it."""
    size = f"size: {preprocessing.size}, " if preprocessing.size else ""
    mean, std = (
        ", ".join(f"{value:g}" for value in values)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return f"{{{size}mean: [{mean}], std: [{std}]}}"


# --- folders of transformers and timm


def _folder(source: Source, dataset: Dataset) -> _Read:
    path = source.path
    config = read_config(path)
    sets = weight_sets(path)
    if not sets:
        raise CheckpointError(f"{path}: no weights there (*.safetensors or pytorch_model*.bin).")
    name, within = _set_of(source, sets)
    read = (_of_timm if is_timm(config) else _of_transformers)(
        source, config, name, sets[name], within, dataset
    )
    others = [
        other for other in sets if other != name and not _same_weights(sets[name], sets[other])
    ]
    if others:
        read.notes.insert(0, f"weights: {name} taken; there is {listed(others)} too (--weights)")
    read.place = "/".join(part for part in (name, read.place) if part not in ("", "."))
    words = {**config, **{f"pretrained_cfg/{k}": v for k, v in _inner(config).items()}}
    names, key = class_names(f"{path}/config.json", words, len(dataset.classes))
    if names:
        read.names, read.names_from = names, f"{key} in config.json"
    return read


def _inner(config: dict[str, object]) -> dict[str, object]:
    inner = config.get("pretrained_cfg")
    return inner if isinstance(inner, dict) else {}


def _set_of(source: Source, sets: dict[str, list[Path]]) -> tuple[str, str | None]:
    """The set of files that is read, and what names a set within them."""
    if source.weights:
        word = source.weights.casefold()
        found = [n for n in sets if n.casefold() == word] or [
            n for n in sets if word in n.casefold()
        ]
        if len(found) == 1:
            return found[0], None
        if len(found) > 1:
            raise CheckpointError(
                f"{source.path}: several files are called {source.weights!r}: {listed(found)}."
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
    return ours.keys() == theirs.keys() and all(
        value.dtype == theirs[name].dtype and torch.equal(value, theirs[name])
        for name, value in ours.items()
    )


def _contents(files: list[Path]) -> Contents:
    parts = [read_contents(file) for file in files]
    return Contents(
        {name: value for part in parts for name, value in part.tensors.items()},
        {name: value for part in parts for name, value in part.beside.items()},
    )


def _of_timm(
    source: Source,
    config: dict[str, object],
    name: str,
    files: list[Path],
    within: str | None,
    dataset: Dataset,
) -> _Read:
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
    name: str,
    files: list[Path],
    within: str | None,
    dataset: Dataset,
) -> _Read:
    path, given = source.path, source.model
    if within:
        raise CheckpointError(
            f"{path}: no file with weights is called {within!r}; there is "
            f"{listed(weight_sets(path))}."
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
    state = None if name == _chosen_by_transformers(path) else _contents(files).tensors
    classifier = adopt_folder(model, dataset.shape, len(dataset.classes), state)
    if config.get("problem_type") not in (None, "single_label_classification"):
        notes.append(f"trained for {config['problem_type']}; its logits are taken for one label")
    return _Read(classifier, model, notes=notes)


def _chosen_by_transformers(folder: Path) -> str | None:
    return next((name for name in _USUAL if name in weight_sets(folder)), None)


def _of_tokenizer(path: Path, dataset: Dataset) -> list[str]:
    """Refuse a text model whose own tokenizer is not the data's."""
    if not any((path / name).is_file() for name in _TOKENIZER):
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


# --- whatever the source


def _content(path: Path) -> str:
    files = [path]
    if path.is_dir():
        files = [file for files in weight_sets(path).values() for file in files]
    digests = [sha256(file) for file in files]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def _order(source: Source, read: _Read, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The data's classes in the order of the model's logits."""
    given, path = source.classes, source.path
    names = tuple(map(canonical, read.names))  # as the data's labels are
    ours, theirs = quoted(classes), quoted(names)
    if given is not None:
        if sorted(given) != sorted(classes):
            meant = _near(given, classes)
            hint = f" Did you mean --classes {','.join(meant)}?" if meant else ""
            raise CheckpointError(
                f"{path}: its classes are {quoted(given)}, those of the data {ours}.{hint}"
            )
        if names and (_near(names, classes) or names) != given:
            read.notes.append(
                f"classes: {quoted(given)} as --classes says; {read.names_from} says {theirs}"
            )
        return given
    if not names:
        read.notes.append(f"classes: nothing names them, so they are taken as {ours} (--classes)")
        return classes
    if sorted(names) == sorted(classes):
        if names != classes:
            read.notes.append(f"classes: {theirs} by {read.names_from}, put into the data's order")
        return names
    meant = _near(names, classes)
    hint = (
        f"if they are the same, say --classes {','.join(meant)}"
        if meant
        else "say with --classes, in the order of its logits, which of the data's each stands for"
    )
    raise CheckpointError(
        f"{path}: its classes are {theirs} ({read.names_from}), those of the data {ours}; {hint}."
    )


def _near(names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """The data's classes that names stand for, up to case, blanks, underscores and hyphens.

    Returns:
        Nothing where one of them stands for no class, or several for the same.
    """
    known = {_bare(name): name for name in classes}
    meant = tuple(known.get(_bare(name), "") for name in names)
    return meant if sorted(meant) == sorted(classes) else ()


def _bare(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", folded(name)))


def _reorder(
    classifier: Classifier, order: tuple[str, ...], path: Path, classes: tuple[str, ...]
) -> None:
    """Put the logits into the order of the data's classes."""
    if order == classes:
        return
    head = classifier.head
    if not isinstance(head, nn.Linear):
        raise CheckpointError(
            f"{path}: the classes of a program must be in the order of the data, {quoted(classes)}."
        )
    rows = [order.index(name) for name in classes]
    with torch.no_grad():
        head.weight.copy_(head.weight[rows])
        if head.bias is not None:
            head.bias.copy_(head.bias[rows])


def _judged(
    classifier: Classifier, dataset: Dataset, order: tuple[str, ...]
) -> tuple[Metrics, tuple[str, ...]]:
    """Metrics on the selection half of validation, and what is suspicious about them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids, classes = dataset.splits[SELECT], dataset.classes
    logits_NC = predict(classifier.to(device), dataset, ids, device=device)
    classifier.to("cpu")
    metrics = score(dataset, SELECT, logits_NC.softmax(1))
    confusion_CC = _confusion(dataset.labels(ids), logits_NC.argmax(1), len(classes))
    most = int(confusion_CC.sum(1).argmax())
    constant = float(confusion_CC.sum(1)[most] / confusion_CC.sum())
    if metrics.accuracy > constant:
        return metrics, ()
    warnings = [
        f"no better on {SELECT} than to answer '{classes[most]}' every time "
        f"({100 * constant:.1f} % right)"
    ]
    labels, answers = linear_sum_assignment(-confusion_CC.numpy())
    best = float(confusion_CC[labels, answers].sum() / confusion_CC.sum())
    if best > constant:
        meant = {
            classes[answer]: classes[label] for label, answer in zip(labels, answers, strict=True)
        }
        warnings.append(
            f"with its classes in another order it would be {100 * best:.1f} % right: "
            f"--classes {','.join(meant[name] for name in order)}"
        )
    return metrics, tuple(warnings)


def _confusion(labels_N: Tensor, answers_N: Tensor, classes: int) -> Tensor:
    """Samples by label and answer, int64 [C, C]."""
    pairs = torch.bincount(labels_N * classes + answers_N, minlength=classes**2)
    return pairs.reshape(classes, classes)


@torch.inference_mode()
def _look(classifier: Classifier, source: Source, dataset: Dataset) -> None:
    """Show it a few samples, two numbers of them, for a program may be made for one alone."""
    path, classes = source.path, len(dataset.classes)
    inputs = dataset.inputs(dataset.splits[TRAIN][:_LOOKED_AT], None)
    try:
        logits, again, fewer = classifier(inputs), classifier(inputs), classifier(inputs[:2])
    except Exception as error:  # whatever an architecture says of samples that it cannot take
        hint = (
            " A program must be exported with a dynamic batch dimension and for samples of this "
            "shape."
            if path.suffix == _PROGRAM
            else ""
        )
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: cannot take {in_words(dataset.shape)} ({text}).{hint}"
        ) from None
    if logits.shape != (len(inputs), classes) or fewer.shape != (2, classes):
        raise CheckpointError(
            f"{path}: gives {list(logits.shape)} for {len(inputs)} samples, but the data have "
            f"{classes} classes."
        )
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError(f"{path}: answers with NaN or infinite logits.")
    if not torch.equal(logits, again):
        raise CheckpointError(
            f"{path}: answers the same samples differently; export it after model.eval()."
        )
