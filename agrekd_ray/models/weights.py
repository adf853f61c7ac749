"""State dicts of other makers: read without running code, and put into a network."""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from agrekd_ray.errors import AgrekdError, CheckpointError, first_line, listed
from agrekd_ray.models.foreign import kind_of

State = dict[str, Tensor]
_WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put into names, at any depth."""
_COMPANIONS = re.compile(
    r"(^|\.)(criterion|\w*loss\w*|\w*metrics?|total_ops|total_params|position_ids|n_averaged"
    r"|aux\w*|AuxLogits)(\.|$)"
)
"""Names that stand in state dicts beside a network, and do not change its logits in evaluation."""
_AVERAGED = re.compile(r"ema|swa|averaged", re.IGNORECASE)
_OPTIMIZER = re.compile(
    r"(^|[./])(opt|optim|optimizers?)(_states?|_state_dicts?)?[./]", re.IGNORECASE
)
_MEAN = re.compile(r"(?<!running)(^|[./_])(mean|mu)$")
_IN_SEQUENCE = re.compile(r"(.*?)(\d+)\.$")
_MOST_CHANNELS = 16
_DEEPEST = 32
"""Mappings within mappings that are looked into."""
_NAMED = 4
"""Keys that a message names before it counts the rest."""


@dataclass(frozen=True)
class Contents:
    """What a file of weights holds.

    Attributes:
        tensors: by path: the keys of the mappings and lists that they lie in, with slashes.
        beside: everything else, by path; for a safetensors file its metadata.
    """

    tensors: State
    beside: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitted:
    """How a file's weights were put into a network.

    Attributes:
        place: of the set of weights that was taken; `.` where the file is that set.
        others: other sets in the file that would have fitted, with other values.
        partial: other sets that hold all parameters, but lack buffers (batch norm's statistics).
        left_out: names beside the network's that were not needed.
        normalisation: mean and deviation of a normalisation that stands in front of the network;
            None without one.
        preceded: whether a layer without weights stands in front of the network, which may be one.
    """

    place: str
    others: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    normalisation: tuple[Tensor, Tensor] | None = None
    preceded: bool = False


def read_contents(path: Path, device: str = "cpu") -> Contents:
    """What a file of weights holds; only tensors and plain values are ever read.

    Args:
        path: safetensors, or what torch.save wrote.
        device: `meta` reads names and shapes alone, where the format allows it.

    Raises:
        CheckpointError: no file, damaged, no weights, or a pickle of more than tensors.
    """
    kind = kind_of(path)
    if kind == "program":
        raise CheckpointError(
            f"{path}: this is an exported program (torch.export.save), no state dict; agrekd "
            "teachers import takes it, with --trust."
        )
    try:
        if kind == "safetensors":
            # safetensors has no meta device; its files are mapped, so that nothing is read twice.
            tensors = {name: value.to(device) for name, value in load_file(path).items()}
            with safe_open(path, "pt") as header:
                metadata = header.metadata() or {}
            return Contents(
                dict(_cleaned(tensors)), {key: _plain(text) for key, text in metadata.items()}
            )
        with path.open("rb") as file:  # of a path, torch.load believes the name
            content = torch.load(file, map_location=device, weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({first_line(error)}).") from None
    except pickle.UnpicklingError:
        raise _more_than_tensors(path) from None
    except Exception as error:  # bytes at random meet any error within the reader
        raise CheckpointError(
            f"{path}: damaged, or not written by torch.save ({first_line(error)})."
        ) from None
    return _flattened(path, content)


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _more_than_tensors(path: Path) -> CheckpointError:
    try:
        names = sorted(set(get_unsafe_globals_in_checkpoint(path)))
    except Exception:  # bytes at random, as above
        names = []
    if any(name.startswith("torch.nn.modules.") for name in names):
        return CheckpointError(
            f"{path}: a whole pickled model (torch.save(model)), and unpickling {_some(names)} can "
            "run code. Save its state dict: torch.save(model.state_dict(), 'weights.pt')."
        )
    return CheckpointError(
        f"{path}: holds more than tensors, and unpickling that can run code "
        f"({_some(names) or 'a foreign pickle'}). Where it was made, or whoever made it is "
        "trusted, save the state dict alone: safetensors.torch.save_file(model.state_dict(), "
        "'model.safetensors')."
    )


def _flattened(path: Path, content: Any) -> Contents:
    if isinstance(content, Mapping) and {"state", "param_groups"} <= content.keys():
        raise CheckpointError(
            f"{path}: the state of an optimizer, no weights; save model.state_dict()."
        )
    tensors: State = {}
    beside: dict[str, Any] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, Tensor):
            tensors[place] = value
            continue
        beside[place] = value
        if not _holds_more(value) or id(value) in seen or place.count("/") > _DEEPEST:
            continue  # the same mapping again, perhaps within itself
        seen.add(id(value))
        inside = value.items() if isinstance(value, Mapping) else enumerate(value)
        parts = [(f"{place}/{key}" if place else str(key), part) for key, part in inside]
        waiting += reversed(parts)
    # Not every version of torch checks the indices of sparse ones while reading.
    if sparse := [name for name, value in tensors.items() if value.layout != torch.strided]:
        raise CheckpointError(
            f"{path}: {sparse[0]} is a sparse tensor; save the dense one (to_dense())."
        )
    if not tensors:
        raise CheckpointError(f"{path}: holds no state dict; it would map names to tensors.")
    return Contents(dict(_cleaned(tensors)), beside)


def _holds_more(value: Any) -> bool:
    """Whether it is worth looking into; not where it lists a thousand losses."""
    if isinstance(value, list | tuple):
        return any(isinstance(part, Tensor | Mapping | list | tuple) for part in value)
    return isinstance(value, Mapping)


def _cleaned(tensors: State) -> Iterator[tuple[str, Tensor]]:
    for name, value in tensors.items():
        yield functools.reduce(lambda text, part: text.replace(part, ""), _WITHIN, name), value


def fit(
    network: nn.Module,
    contents: Contents,
    head: str,
    source: str,
    *,
    fresh_head: bool,
    which: str | None = None,
    averaged: bool = False,
) -> Fitted:
    """Put the set of weights that covers a network into it, however it is wrapped.

    Args:
        network: that takes them.
        contents: of a file; keys of mappings and prefixes of names may stand before every name.
        head: path of the network's last linear layer.
        source: of the weights, for messages.
        fresh_head: keep the network's own head where the file's has another number of classes.
        which: name of the set, or a part of it, where there are several.
        averaged: of several, take the one that is an average of the others over training.

    Returns:
        What was taken, and what was not.

    Raises:
        AgrekdError: keys that are missing, unknown, or of another shape; several sets and no word
            which; or no such set.
    """
    wanted, tensors = network.state_dict(), contents.tensors
    heads = [name for name in wanted if name.startswith(f"{head}.")]
    needed = {n for n in wanted if not _counter(n) and not (fresh_head and n in heads)}
    sets = _sets(tensors, wanted)
    prefix, others = _chosen(sets, tensors, wanted, needed, source, which, averaged)
    paths = sets.get(prefix, {})
    state = {name: tensors[path] for name, path in paths.items()}
    whole = [paths for paths in sets.values() if needed <= paths.keys()]
    used = {path for paths in whole for path in paths.values()}
    taken, container = set(paths.values()), prefix.rpartition("/")[0]
    beside = [p for p in tensors if p not in taken and p.rpartition("/")[0] == container]
    normalisation = _normalisation(tensors, beside)
    left_out = [path for path in beside if path not in used and path not in (normalisation or ())]
    unknown = [
        name.removeprefix(prefix)
        for name in left_out
        if name.startswith(prefix) and not _COMPANIONS.search(name.rpartition("/")[2])
    ]
    outputs = [state[name].shape[0] for name in heads if name in state and state[name].ndim]
    classes = wanted[heads[0]].shape[0]
    if fresh_head and outputs != [classes] * len(heads):
        state = {**state, **{name: wanted[name] for name in heads}}
    elif outputs and outputs[0] != classes:
        raise AgrekdError(
            f"{source}: a head of {outputs[0]} classes ({head}), but {classes} are wanted."
        )
    missing = [name for name in wanted if name not in state and not _counter(name)]
    faults = [
        f"{what} {_some(names)}"
        for what, names in (
            ("without", missing),
            ("unknown:", unknown),
            ("shapes:", list(_other_shapes(state, wanted))),
            ("types:", list(_other_types(state, wanted))),
        )
        if names
    ]
    if faults:
        raise AgrekdError(f"{source}: weights of another architecture ({'; '.join(faults)}).")
    layers = _layers_beside(beside, prefix)
    if lost := [name for name in layers if name in left_out]:
        raise AgrekdError(
            f"{source}: {_some(lost)} stand beside {_place(prefix)} in a sequence of layers, and "
            "would be lost; save the state dict of the network alone."
        )
    network.load_state_dict(state, strict=False)
    sequence = _IN_SEQUENCE.fullmatch(prefix)
    parameters = needed & {name for name, _ in network.named_parameters()}
    partial = [
        p for p, paths in sets.items() if parameters <= paths.keys() and needed - paths.keys()
    ]
    return Fitted(
        place=_place(prefix),
        others=tuple(map(_place, others)),
        partial=tuple(map(_place, partial)),
        left_out=tuple(left_out),
        normalisation=normalisation and (tensors[normalisation[0]], tensors[normalisation[1]]),
        preceded=bool(sequence and int(sequence[2]) and not layers),
    )


def _sets(tensors: State, wanted: Collection[str]) -> dict[str, dict[str, str]]:
    """Paths of a network's tensors by its names for them, for every beginning of the paths."""
    sets: dict[str, dict[str, str]] = {}
    for path in tensors:
        for start in (0, *(match.end() for match in re.finditer(r"[./]", path))):
            if (name := path[start:].replace("/", ".")) in wanted:
                sets.setdefault(path[:start], {})[name] = path
    return {prefix: paths for prefix, paths in sets.items() if not _OPTIMIZER.search(prefix)}


def _chosen(
    sets: dict[str, dict[str, str]],
    tensors: State,
    wanted: State,
    needed: set[str],
    source: str,
    which: str | None,
    averaged: bool,
) -> tuple[str, list[str]]:
    """The beginning of the paths that are taken, and those of other sets that would do."""
    covered = {p: count for p, paths in sets.items() if (count := len(needed & paths.keys()))}
    states = {
        prefix: {name: tensors[sets[prefix][name]] for name in wanted if name in needed}
        for prefix, count in covered.items()
        if count == len(needed)
    }
    fitting = [p for p, state in states.items() if not any(_other_shapes(state, wanted))]
    distinct: list[str] = []
    for prefix in fitting or states:
        if not any(equal(states[prefix], states[other]) for other in distinct):
            distinct.append(prefix)
    chosen = distinct
    if which is not None:
        word = which.casefold()
        covered = {p: n for p, n in covered.items() if word in _place(p).casefold()}
        chosen = [p for p in distinct if _place(p).casefold() == word]
        chosen = chosen or [p for p in distinct if p in covered]
        if len(chosen) > 1 or not covered:
            raise AgrekdError(
                f"{source}: {len(chosen) or 'no'} sets of weights are called {which!r}; there are "
                f"{listed(map(_place, distinct)) or 'none that fit'}."
            )
    elif len(distinct) > 1:
        chosen = [prefix for prefix in distinct if _AVERAGED.search(prefix)]
        if not averaged or len(chosen) != 1:
            raise AgrekdError(
                f"{source}: several sets of weights fit, {listed(map(_place, distinct))}; say "
                "which: --weights NAME in an import, weights: FILE#NAME in a job."
            )
    # Where nothing covers the network, what comes nearest says best what is missing.
    nearest = min(covered, key=lambda prefix: (-covered[prefix], len(prefix)), default="")
    prefix = chosen[0] if chosen else nearest
    return prefix, [other for other in distinct if other != prefix]


def _normalisation(tensors: State, beside: list[str]) -> tuple[str, str] | None:
    """Paths of a mean and of a deviation that images go through before the network."""
    for path in beside:
        if _MEAN.search(path) and tensors[path].numel() <= _MOST_CHANNELS:
            for word in ("std", "sigma"):
                other = re.sub(r"(mean|mu)$", word, path)
                if other in beside and tensors[other].numel() == tensors[path].numel():
                    return path, other
    return None


def _layers_beside(paths: list[str], prefix: str) -> list[str]:
    """Paths of other layers in the sequence that a network is a layer of; none without one."""
    sequence = _IN_SEQUENCE.fullmatch(prefix)
    if sequence is None:
        return []
    start = sequence[1]
    others = (path for path in paths if path.startswith(start) and not path.startswith(prefix))
    return [path for path in others if path.removeprefix(start)[:1].isdigit()]


def _other_shapes(state: State, wanted: State) -> Iterator[str]:
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            yield f"{name} {list(value.shape)} instead of {list(wanted[name].shape)}"


def _other_types(state: State, wanted: State) -> Iterator[str]:
    for name, value in state.items():
        if value.is_floating_point() != wanted[name].is_floating_point():
            yield f"{name} {value.dtype} instead of {wanted[name].dtype}"


def equal(one: State, other: State) -> bool:
    """Whether the second has all tensors of the first, by name, type and values."""
    if any(value.is_meta for value in one.values()):
        return False  # nobody knows
    return all(
        value.dtype == other[name].dtype and torch.equal(value, other[name])
        for name, value in one.items()
    )


def _place(prefix: str) -> str:
    return prefix.rstrip("./") or "."


def _counter(name: str) -> bool:
    """Batch norm's count of batches, which old files lack and evaluation ignores."""
    return name.endswith("num_batches_tracked")


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
