"""Checkpoints: a folder with weights in safetensors and a JSON manifest. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agrekd_ray.errors import AgrekdError, CheckpointError, first_line
from agrekd_ray.files import (
    DamagedError,
    cannot_read,
    checked,
    in_a_line,
    is_file,
    is_folder,
    read_json,
    unreadable,
)
from agrekd_ray.models.builders import behind, build, identified
from agrekd_ray.models.classifier import Classifier
from agrekd_ray.models.model import Model
from agrekd_ray.models.program import EXPORTED, Program, from_text, to_text
from agrekd_ray.settings import Count

FORMAT = 1
WEIGHTS, MANIFEST = "model.safetensors", "manifest.json"
_PROGRAM, _SEAL = "program", "sha256"
_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}


def _of_a_sample(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) not in (1, 3):
        raise ValueError("an image has three numbers, a token sequence one")
    return shape


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    Attributes:
        model: architecture and its arguments, complete: no file besides the checkpoint's is needed.
        shape: channels, height and width of an image, or the length of a token sequence.
        classes: names of the classes, in the order of the logits.
        fingerprint: of everything that made the model.
        data: fingerprint of the data that it was trained on.
        weights: SHA-256 of the weights file.
        backbone: SHA-256 of the backbone, its weights and its preprocessing; models that agree in
            it differ in the head alone.
        metrics: by split, as plain numbers; what reads them checks them.
        made_by: how it was made (kind, seed, settings), for people.
        format: version of this format.
    """

    model: Model
    shape: Annotated[tuple[Count, ...], AfterValidator(_of_a_sample)]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    fingerprint: str
    data: str
    weights: str = ""
    backbone: str = ""
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    made_by: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def save(folder: Path, model: Classifier, manifest: Manifest) -> Manifest:
    """Write a checkpoint so that it is there whole or not at all.

    Where another process has finished the same folder meanwhile, that one is kept; one that is
    damaged is replaced.

    Returns:
        The manifest as written, with the fingerprint of the weights.

    Raises:
        AgrekdError: the files of the model's description are gone.
        CheckpointError: the folder cannot be written.
    """
    description = identified(manifest.model)
    program = next((part for part in model.modules() if isinstance(part, Program)), None)
    metadata = None if program is None else {_PROGRAM: to_text(program)}
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        save_file(state, partial / WEIGHTS, metadata)
        digests = {
            "weights": _sha256(partial / WEIGHTS),
            "backbone": _backbone_sha256(description, state, metadata),
        }
        plain = {**vars(manifest), **digests, "model": description.model_dump(mode="json")}
        values = json.loads(json.dumps(plain))
        # With a digest of itself, so that what is changed by accident is found.
        sealed = json.dumps({**values, _SEAL: _digest(values)}, indent=1) + "\n"
        (partial / MANIFEST).write_text(sealed, encoding="utf-8")
        _put(partial, folder, manifest.fingerprint)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{folder}: cannot write the checkpoint ({reason}). Free the disk or choose another "
            "folder."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_manifest(folder)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder.

    Raises:
        CheckpointError: no checkpoint there, a pickle, or a manifest that is damaged or newer.
        RunError: the system cannot read it.
    """
    path = folder / MANIFEST
    if folder.suffix in _PICKLES or (is_file(folder) and not folder.suffix == ".json"):
        raise CheckpointError(
            f"{folder}: not a checkpoint of ours. Pickled files ({', '.join(sorted(_PICKLES))}) "
            f"can run code and are never loaded; a checkpoint is a folder with {WEIGHTS} and "
            f"{MANIFEST}."
        )
    try:
        values = read_json(path, object)
        if not isinstance(values, dict):
            raise DamagedError("it holds no JSON object")
        seal = values.pop(_SEAL, None)
        if values.get("format") != FORMAT:
            raise DamagedError(
                f"its format is {values.get('format')!r}, this version reads {FORMAT}"
            )
        if wrong := values.keys() ^ {entry.name for entry in fields(Manifest)}:
            raise DamagedError(f"unknown or missing: {', '.join(sorted(wrong))}")
        if seal is not None and seal != _digest(values):
            raise DamagedError("not as it was written")
        return checked(Manifest, values)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no checkpoint there; it would be a folder with {WEIGHTS} and {MANIFEST}."
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except (DamagedError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: damaged manifest ({in_a_line(error)}). Make the checkpoint again."
        ) from None


def find(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose weights are there in their full length.

    What they hold is verified where they are loaded: this reads their header alone.

    Raises:
        CheckpointError: as `read_manifest`; also where the weights are missing or cut.
        RunError: the system cannot read them.
    """
    manifest, path = read_manifest(folder), folder / WEIGHTS
    if not is_file(path):
        raise _missing(path)
    try:
        whole = _has_full_length(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        whole = False  # its header is none
    if not whole:
        raise _other_weights(path)
    return manifest


def _has_full_length(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(min(length, size)))
    ends = [about["data_offsets"][1] for name, about in entries.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


def _missing(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: missing. Make the checkpoint again.")


def _other_weights(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: not the weights that the manifest describes (damaged, exchanged or cut); delete "
        "the folder, and make the checkpoint again."
    )


def _put(partial: Path, folder: Path, fingerprint: str) -> None:
    """Give a finished checkpoint its name, unless the same is there already."""
    try:
        os.replace(partial, folder)  # fails where a finished folder is there already
    except OSError:
        if _is_whole(folder, fingerprint):
            return
        if not is_folder(folder) or {p.name for p in folder.iterdir()} - {WEIGHTS, MANIFEST}:
            raise  # it is somebody else's
        shutil.rmtree(folder)
        os.replace(partial, folder)


def _is_whole(folder: Path, fingerprint: str) -> bool:
    try:
        return load(folder)[1].fingerprint == fingerprint
    except CheckpointError:
        return False


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_classes(folder: Path, manifest: Manifest, classes: tuple[str, ...]) -> None:
    """Refuse a checkpoint whose logits mean something else than the data's classes.

    Raises:
        CheckpointError: names both lists of classes.
    """
    if manifest.classes != classes:
        raise CheckpointError(
            f"{folder}: a model of the {len(manifest.classes)} classes "
            f"{', '.join(manifest.classes)}, but the data have {len(classes)}: "
            f"{', '.join(classes)}."
        )


def load(folder: Path, device: torch.device | str = "cpu") -> tuple[Classifier, Manifest]:
    """The model of a checkpoint, in evaluation mode, and its manifest.

    Raises:
        CheckpointError: as `read_manifest`; also where the weights are missing, damaged, not
            those of the manifest, or do not fit the architecture.
    """
    manifest = read_manifest(folder)
    path = folder / WEIGHTS
    if not is_file(path):
        raise _missing(path)
    if _sha256(path) != manifest.weights:
        raise _other_weights(path)
    try:
        state = load_file(path)
        if manifest.model.name == EXPORTED:
            return _exported(path, state, manifest).to(device).eval(), manifest
        model = build(manifest.model, manifest.shape, len(manifest.classes))
        if "head.bias" in state and model.head.bias is None:  # DFR gives every head one
            model.head = nn.Linear(model.head.in_features, model.head.out_features)
        model.load_state_dict(state)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({first_line(error)}).") from None
    except AgrekdError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: the weights do not fit {manifest.model.name} ({first_line(error)})"
        ) from None
    return model.to(device).eval(), manifest


def _exported(path: Path, state: dict[str, Tensor], manifest: Manifest) -> Classifier:
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(_PROGRAM, "")
    tensors = {name.rpartition(".")[2]: value for name, value in state.items()}
    classifier = Classifier(from_text(text, tensors), nn.Identity())
    return behind(classifier, manifest.model.preprocessing)


def _sha256(path: Path) -> str:
    # Not `weights.sha256`, which believes a file that it has read before.
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> AgrekdError:
    """A checkpoint that only cannot be read now is no damaged one, which would be made again."""
    if unreadable(error):
        return cannot_read(path, error)
    return CheckpointError(f"{path}: cannot be read ({error.strerror or error}).")


def _backbone_sha256(
    model: Model, state: dict[str, Tensor], metadata: dict[str, str] | None
) -> str:
    # The same weights mean something else behind other arguments or another preprocessing.
    architecture = model.model_copy(update={"weights": None})
    digest = hashlib.sha256(architecture.model_dump_json().encode())
    digest.update(json.dumps(metadata).encode())
    for name in sorted(state):
        if name.startswith("backbone."):
            digest.update(name.encode() + str(state[name].dtype).encode())
            digest.update(state[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
