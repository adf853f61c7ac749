"""What a file is that somebody hands in as weights: told by its bytes, never by its name."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from agrekd_ray.errors import CheckpointError

_LEGACY_TORCH = b"l\xfc\x9cF\xf9 j\xa8P\x19"
"""The number that torch.save began every file with before it wrote zip archives."""
_SAVE = "save its state dict: torch.save(model.state_dict(), 'weights.pt')"
_CONVERT = "convert it to PyTorch where it was made, and save the state dict"
_UNPACK = "unpack it, and name the file or folder within"
_AGAIN = "fetch it again"
_BEGINNINGS = (
    (0, b"\x89HDF", "an HDF5 file, as Keras writes it", _CONVERT),
    (0, b"GGUF", "a GGUF file", _CONVERT),
    (4, b"TFL3", "a TensorFlow Lite model", _CONVERT),
    (0, b"\x93NUMPY", "an array of NumPy", _SAVE),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ", "an xz archive", _UNPACK),
    (0, b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "git lfs pull"),
    (0, b"<", "a web page or XML, so that a download seems to have failed", _AGAIN),
    (0, b"{", "JSON", "name the file with the weights, or their folder"),
)
"""Offset, bytes there, what begins so, and what to do."""
_ENDINGS = {
    ".onnx": "an ONNX model",
    ".pb": "a graph of TensorFlow",
    ".index": "a checkpoint of TensorFlow",
    ".msgpack": "a checkpoint of Flax",
    ".mlmodel": "a Core ML model",
}
"""What has no beginning of its own."""


def kind_of(path: Path) -> Literal["safetensors", "torch", "program"]:
    """Which reader a file is for: safetensors, torch.load, or torch.export.load.

    Files of no known kind are left to torch.load, which refuses them.

    Raises:
        CheckpointError: no such file, or of a kind that holds no weights for PyTorch; says which.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights.")
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if not start:
            raise CheckpointError(f"{path}: empty; {_AGAIN}.")
        if zipfile.is_zipfile(path):
            return _kind_of_zip(path)
        header = int.from_bytes(start[:8], "little")
        if start[8:9] == b"{" and header <= path.stat().st_size - 8:
            return "safetensors"
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from None
    for offset, magic, what, remedy in _BEGINNINGS:
        if start[offset : offset + len(magic)] == magic:
            raise _not_weights(path, what, remedy)
    if start[0] == 8 and start[2:3] == b"\x12":  # protobuf: the version, then who produced it
        raise _not_weights(path, "an ONNX model", _CONVERT)
    if path.suffix in _ENDINGS or ".data-0" in path.suffix:
        raise _not_weights(path, _ENDINGS.get(path.suffix, _ENDINGS[".index"]), _CONVERT)
    if start[0] == 0x80 and _LEGACY_TORCH not in start[:32]:
        raise _not_weights(path, "a pickle that torch.save did not write", _SAVE)
    return "torch"


def _kind_of_zip(path: Path) -> Literal["torch", "program"]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return "torch"  # which says that it is damaged
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside:
        raise _not_weights(
            path,
            "TorchScript (torch.jit.save)",
            f"{_SAVE}, or export it: torch.export.save(torch.export.export(model, ...), 'm.pt2')",
        )
    if "archive_format" in inside and not any(name.endswith(".json") for name in inside):
        raise _not_weights(path, "a compiled package of AOTInductor", _SAVE)
    if "archive_format" in inside or "serialized_exported_program.json" in names:
        return "program"
    if "data.pkl" in inside:
        return "torch"
    if "model.weights.h5" in names:
        raise _not_weights(path, "a model of Keras", _CONVERT)
    if names and all(name.endswith(".npy") for name in names):
        raise _not_weights(path, "an archive of NumPy arrays", _SAVE)
    raise _not_weights(path, "a zip archive", _UNPACK)


def _not_weights(path: Path, what: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{path}: this is {what}, no PyTorch weights; {remedy}.")
