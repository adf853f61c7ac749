"""Models of other makers, turned into checkpoints that can teach."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from agrekd_ray.data import TRAIN, Dataset
from agrekd_ray.errors import CheckpointError
from agrekd_ray.models import Classifier, Manifest, Model, adopt, behind, identified, save
from agrekd_ray.models.model import PRETRAINED, TRANSFORMERS, in_words
from agrekd_ray.models.program import EXPORTED, read_program
from agrekd_ray.models.weights import read_state, sha256
from agrekd_ray.settings import fingerprint

IMPORTED = "imported"
"""Folder within the teachers' store."""
_PROGRAM = ".pt2"
_LOOKED_AT = 3
"""Samples that an imported model answers before it is taken."""


@dataclass(frozen=True)
class Source:
    """What is imported.

    Attributes:
        path: a state dict, a folder of transformers, or an exported program.
        model: its architecture and preprocessing; the name may be empty for a folder or a program,
            which bring their own.
        classes: names in the order of its logits; None where they are in the data's.
        trusted: whether the user vouches for a program, whose reading can run code.
    """

    path: Path
    model: Model
    classes: tuple[str, ...] | None = None
    trusted: bool = False


def import_teacher(source: Source, dataset: Dataset, store: Path, name: str) -> Path:
    """Make a checkpoint of a model, if it can teach on these data.

    Args:
        source: what is imported.
        dataset: that it shall teach on.
        store: the teachers' store.
        name: of the checkpoint.

    Returns:
        Its folder.

    Raises:
        AgrekdError: another architecture, other classes, samples that it cannot take, answers that
            are not finite, a pickle, or a name that is taken.
    """
    folder = store / IMPORTED / name
    if folder.exists():
        raise CheckpointError(
            f"{folder}: there is one of this name already; choose another --name."
        )
    classifier, model = _read(source, dataset)
    classifier = _in_order(classifier, source, dataset)
    _look(classifier.eval(), source, dataset)
    content = _content(source.path)
    made_by = {"kind": IMPORTED, "file": source.path.name, "sha256": content}
    manifest = Manifest(
        model=model,
        shape=dataset.shape,
        classes=dataset.classes,
        fingerprint=fingerprint(IMPORTED, identified(model), source.classes, content),
        data="unknown",
        made_by=made_by,
    )
    save(folder, classifier, manifest)
    return folder


def _read(source: Source, dataset: Dataset) -> tuple[Classifier, Model]:
    path, model = source.path, source.model
    if path.suffix == _PROGRAM:
        return _program(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{path}: no config.json there, so no folder of transformers; a folder that agrekd "
                "made needs no import: name it in ensemble.checkpoints."
            )
        _files(path)
        given = {"name": f"{TRANSFORMERS}{path.absolute()}", "weights": PRETRAINED}
        model = Model.model_validate({**model.model_dump(), **given})
        return adopt(model, dataset.shape, len(dataset.classes), None, str(path)), model
    if not model.name:
        raise CheckpointError(
            f"{path}: a state dict does not say what it belongs to; give its architecture, like "
            "--model torchvision/resnet50."
        )
    return adopt(model, dataset.shape, len(dataset.classes), read_state(path), str(path)), model


def _program(source: Source) -> tuple[Classifier, Model]:
    path = source.path
    if source.model.name:
        raise CheckpointError(f"{path}: a program brings its architecture; leave --model out.")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    if not source.trusted:
        raise CheckpointError(
            f"{path}: reading an exported program can run code that is hidden in it (torch.export."
            "load unpickles). If you trust whoever made it, say --trust; what is kept of it here "
            "holds no code."
        )
    model = source.model.model_copy(update={"name": EXPORTED})
    program = Classifier(read_program(path), nn.Identity())
    return behind(program, model.preprocessing), model


def _files(path: Path) -> list[Path]:
    """The file, or those with weights in a folder of transformers: safetensors before pickles."""
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    if not found:
        raise CheckpointError(f"{path}: no weights there (*.safetensors or pytorch_model*.bin).")
    return found


def _content(path: Path) -> str:
    digests = [sha256(file) for file in _files(path)]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def _in_order(classifier: Classifier, source: Source, dataset: Dataset) -> Classifier:
    """The classifier with its logits in the order of the data's classes."""
    given, wanted = source.classes, dataset.classes
    if given is None or given == wanted:
        return classifier
    if sorted(given) != sorted(wanted):
        raise CheckpointError(
            f"{source.path}: its classes are {', '.join(given)}, those of the data "
            f"{', '.join(wanted)}."
        )
    head = classifier.head
    if not isinstance(head, nn.Linear):
        raise CheckpointError(
            f"{source.path}: the classes of a program must be in the order of the data, "
            f"{', '.join(wanted)}."
        )
    rows = [given.index(name) for name in wanted]
    with torch.no_grad():
        head.weight.copy_(head.weight[rows])
        if head.bias is not None:
            head.bias.copy_(head.bias[rows])
    return classifier


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
