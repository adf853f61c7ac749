"""Models of other makers, turned into checkpoints that can teach."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from agrekd_ray.data import SELECT, TRAIN, Dataset
from agrekd_ray.data.names import canonical, folded
from agrekd_ray.data.names import listed as quoted
from agrekd_ray.devices import device_of
from agrekd_ray.errors import CheckpointError
from agrekd_ray.models import Classifier, Manifest, identified, in_words, save
from agrekd_ray.models.classifier import Preprocessed, seen_shape
from agrekd_ray.results import Metrics
from agrekd_ray.settings import fingerprint
from agrekd_ray.teachers.sources import (
    PROGRAM,
    Read,
    Source,
    content_of,
    in_yaml,
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


def import_teacher(
    source: Source, dataset: Dataset, store: Path, name: str, expected: float | None = None
) -> Imported:
    """Make a checkpoint of a model, if it can teach on these data.

    Args:
        source: what is imported.
        dataset: that it shall teach on.
        store: the teachers' store.
        name: of the checkpoint.
        expected: share of samples that it gets right on such data, by its makers; None where
            nobody knows.

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
    read.notes += _shown(read.classifier, dataset)
    judge = _Judge(read, dataset, order)
    metrics = score(dataset, SELECT, judge.logits_NC.softmax(1))
    content = content_of(source.path)
    made_by = {"kind": IMPORTED, "file": source.path.name, "sha256": content}
    manifest = Manifest(
        model=read.model,
        shape=dataset.shape,
        classes=dataset.classes,
        fingerprint=fingerprint(IMPORTED, identified(read.model), order, content, read.place),
        data="unknown",
        metrics={SELECT: asdict(metrics)},
        made_by={
            **made_by,
            "weights": read.place,
            "classes": list(order),
            "measured_on": dataset.fingerprint,
        },
    )
    warnings = tuple(judge.warnings(expected))
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


def _shown(classifier: Classifier, dataset: Dataset) -> list[str]:
    """What images the network sees, in a line; of texts, nothing."""
    if len(dataset.shape) != 3:
        return []
    own, seen = dataset.shape, seen_shape(classifier, dataset.shape)
    images = dataset.inputs(dataset.splits[TRAIN][:_LOOKED_AT], None)
    if isinstance(front := classifier.backbone, Preprocessed):
        images = (images - front.mean_C11) / front.std_C11
    resized = f", out of the data's {own[2]} × {own[1]}" if seen != own else ""
    values = f"values from {float(images.min()):.2f} to {float(images.max()):.2f}"
    return [f"shown: {seen[2]} × {seen[1]} pixels{resized}; {values}"]


class _Judge:
    """What a model is worth on the selection half of validation, and what is suspicious about it.

    Args:
        read: the model.
        dataset: that it shall teach on.
        order: of its classes.

    Attributes:
        logits_NC: what it says.
    """

    def __init__(self, read: Read, dataset: Dataset, order: tuple[str, ...]) -> None:
        self._read, self._dataset, self._order = read, dataset, order
        self._labels_N = dataset.labels(dataset.splits[SELECT])
        self.logits_NC = self._predicted()
        self._right = self._share_right(self.logits_NC)

    def warnings(self, expected: float | None) -> Iterator[str]:
        """What makes it doubtful as a teacher, a line each; see `import_teacher`."""
        if expected is not None and abs(self._right - expected) > max(0.01, self._doubt(expected)):
            yield (
                f"{100 * self._right:.1f} % right on {SELECT}, where {100 * expected:.1f} % was "
                "expected: compare preprocessing and classes with those of its training"
            )
        yield from self._without_resizing()
        yield from self._constant()

    def _constant(self) -> Iterator[str]:
        """Where a constant answer would do as well, perhaps because of the order of classes."""
        classes = self._dataset.classes
        pairs_N = self._labels_N * len(classes) + self.logits_NC.argmax(1)
        # Samples by label and answer.
        counts_CC = torch.bincount(pairs_N, minlength=len(classes) ** 2).reshape(len(classes), -1)
        most = int(counts_CC.sum(1).argmax())
        constant = float(counts_CC.sum(1)[most] / counts_CC.sum())
        if self._right > constant + self._doubt(constant):
            return
        yield (
            f"{'hardly' if self._right > constant else 'no'} better on {SELECT} than to answer "
            f"'{classes[most]}' every time ({100 * constant:.1f} % right)"
        )
        labels, answers = linear_sum_assignment(-counts_CC.numpy())
        best = float(counts_CC[labels, answers].sum() / counts_CC.sum())
        if best > constant + self._doubt(constant):
            pairs = zip(labels, answers, strict=True)
            meant = {classes[answer]: classes[label] for label, answer in pairs}
            yield (
                f"with its classes in another order it would be {100 * best:.1f} % right: "
                f"--classes {','.join(meant[name] for name in self._order)}"
            )

    def _without_resizing(self) -> Iterator[str]:
        """Where it does better on images as large as the data have them."""
        front, shape = self._read.classifier.backbone, self._dataset.shape
        if not isinstance(front, Preprocessed) or seen_shape(front, shape) == shape:
            return
        size, front.size = front.size, None
        try:
            right = self._share_right(self._predicted())
        except Exception:  # an architecture that takes images of one size alone
            return
        finally:
            front.size = size
        preprocessing = self._read.model.preprocessing
        if preprocessing and right > self._right + self._doubt(self._right):
            plain = preprocessing.model_copy(update={"size": None})
            yield (
                f"{100 * self._right:.1f} % right on {SELECT}; without resizing, at {shape[2]} × "
                f"{shape[1]} pixels, it would be {100 * right:.1f} %: "
                f"--preprocess '{in_yaml(plain)}'"
            )

    def _predicted(self) -> Tensor:
        device, classifier = device_of(), self._read.classifier
        ids = self._dataset.splits[SELECT]
        try:
            return predict(classifier.to(device), self._dataset, ids, device=device)
        finally:
            classifier.to("cpu")

    def _share_right(self, logits_NC: Tensor) -> float:
        return float((logits_NC.argmax(1) == self._labels_N).double().mean())

    def _doubt(self, share: float) -> float:
        """Two standard errors of a share of the samples."""
        return 2 * math.sqrt(share * (1 - share) / len(self._labels_N))


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
