"""State dicts of other makers: read without running code, and put into a network."""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from agrekd_ray.errors import AgrekdError, CheckpointError
from agrekd_ray.models.classifier import first_line

State = dict[str, Tensor]
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
"""Keys under which training scripts keep a state dict beside other things."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
"""What DataParallel, torch.compile, Lightning and others put before every name."""
_NAMED = 4
"""Keys that a message names before it counts the rest."""


def read_state(path: Path, device: str = "cpu") -> State:
    """The state dict in a file; only tensors are ever read.

    Args:
        path: safetensors, or what torch.save wrote.
        device: `meta` reads names and shapes alone, where the format allows it.

    Raises:
        CheckpointError: no file, damaged, no state dict, or a pickle of more than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights.")
    try:
        if path.suffix == ".safetensors":
            # safetensors has no meta device; its files are mapped, so that nothing is read twice.
            return {name: value.to(device) for name, value in load_file(path).items()}
        content = torch.load(path, map_location=device, weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({first_line(error)}).") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, and unpickling that can run code "
            f"({_refused(error)}). Save the state dict alone: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
        ) from None
    except Exception as error:  # bytes at random meet any error within the reader
        raise CheckpointError(
            f"{path}: damaged, or not written by torch.save ({first_line(error)})."
        ) from None
    return _unwrapped(path, content)


def _refused(error: Exception) -> str:
    """The part of torch's long message that names what it met."""
    lines = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line]
    return lines[0].split(". Please")[0] if lines else "a foreign pickle"


def _unwrapped(path: Path, content: Any) -> State:
    for _ in range(2):  # a wrapper within a wrapper is as far as it goes in practice
        inside = [key for key in _WRAPPERS if isinstance(content, Mapping) and key in content]
        if not inside or not isinstance(content[inside[0]], Mapping):
            break
        content = content[inside[0]]
    state = (
        {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    # Not every version of torch checks the indices of sparse ones while reading.
    if sparse := [name for name, value in state.items() if value.layout != torch.strided]:
        raise CheckpointError(
            f"{path}: {sparse[0]} is a sparse tensor; save the dense one (to_dense())."
        )
    if not state:
        raise CheckpointError(
            f"{path}: holds no state dict; it would map names to tensors, alone or under one of "
            f"{', '.join(_WRAPPERS)}."
        )
    return state


def fit(network: nn.Module, state: State, head: str, source: str, *, fresh_head: bool) -> None:
    """Put a state dict into a network.

    Args:
        network: that takes it.
        state: names and tensors; prefixes that wrappers put before every name are dropped.
        head: path of the network's last linear layer.
        source: of the state, for messages.
        fresh_head: keep the network's own head where the state's has another number of classes.

    Raises:
        AgrekdError: keys that are missing, unknown, or of another shape.
    """
    wanted = network.state_dict()
    state = _without_prefix(state, wanted)
    heads = [name for name in wanted if name.startswith(f"{head}.")]
    outputs = [state[name].shape[0] for name in heads if name in state and state[name].ndim]
    classes = wanted[heads[0]].shape[0]
    if fresh_head and outputs != [classes] * len(heads):
        state = {**state, **{name: wanted[name] for name in heads}}
    elif outputs and outputs[0] != classes:
        raise AgrekdError(
            f"{source}: a head of {outputs[0]} classes ({head}), but {classes} are wanted."
        )
    missing = [name for name in wanted if name not in state and not _counter(name)]
    unknown = [name for name in state if name not in wanted]
    shaped = [
        f"{name} {list(state[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    faults = [
        f"{what} {_some(names)}"
        for what, names in (("without", missing), ("unknown:", unknown), ("shapes:", shaped))
        if names
    ]
    if faults:
        raise AgrekdError(f"{source}: weights of another architecture ({'; '.join(faults)}).")
    network.load_state_dict(state, strict=False)


def _counter(name: str) -> bool:
    """Batch norm's count of batches, which old files lack and evaluation ignores."""
    return name.endswith("num_batches_tracked")


def _without_prefix(state: State, wanted: Mapping[str, Tensor]) -> State:
    while not set(state) & set(wanted):
        prefix = next((p for p in _PREFIXES if all(n.startswith(p) for n in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest


def sha256(path: Path) -> str:
    """SHA-256 of a file as hexadecimal; read once a process, as long as the file stays the same.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        stat = path.stat()
        return _sha256(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from None


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
