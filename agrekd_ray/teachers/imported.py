"""Models of other makers, turned into checkpoints that can teach."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from agrekd_ray.data import SELECT, TRAIN, Dataset
from agrekd_ray.data.names import canonical, folded
from agrekd_ray.data.names import listed as quoted
from agrekd_ray.devices import device_of
from agrekd_ray.errors import CheckpointError
from agrekd_ray.models import Classifier, Manifest, identified, in_words, save
from agrekd_ray.results import Metrics
from agrekd_ray.settings import fingerprint
from agrekd_ray.teachers.sources import (
    PROGRAM,
    Read,
    Source,
    content_of,
    read_source,
    with_its_folder,
)
from agrekd_ray.training import predict, score

__all__ = ["IMPORTED", "Imported", "Source", "import_teacher"]

IMPORTED = "imported"
"""Folder within the teachers' store."""
_LOOKED_AT = 3
"""Samples that an imported model answers before it is taken."""


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
    source = with_its_folder(source)
    read = read_source(source, dataset)
    order = _order(source, read, dataset.classes)
    _reorder(read.classifier, order, source.path, dataset.classes)
    _look(read.classifier.eval(), source, dataset)
    metrics, warnings = _judged(read.classifier, dataset, order)
    content = content_of(source.path)
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


def _order(source: Source, read: Read, classes: tuple[str, ...]) -> tuple[str, ...]:
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
    device = device_of()
    ids, classes = dataset.splits[SELECT], dataset.classes
    logits_NC = predict(classifier.to(device), dataset, ids, device=device)
    classifier.to("cpu")
    metrics = score(dataset, SELECT, logits_NC.softmax(1))
    pairs_N = dataset.labels(ids) * len(classes) + logits_NC.argmax(1)
    # Samples by label and answer.
    confusion_CC = torch.bincount(pairs_N, minlength=len(classes) ** 2).reshape(len(classes), -1)
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
            if path.suffix == PROGRAM
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
