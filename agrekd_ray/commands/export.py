"""`agrekd export`: a student as a file that runs without this package."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from agrekd_ray.errors import AgrekdError, RunError, near
from agrekd_ray.files import in_a_line
from agrekd_ray.trained import TrainedStudent

ABOUT = "about.json"
"""Name of what a .pt2 file holds besides the program."""
_NEEDED = ("onnx", "onnxruntime", "onnxscript")
_TOLERANCE = 1e-3
"""Of logits, between PyTorch and ONNX Runtime."""


def export(student: TrainedStudent, to: str, output: Path) -> list[Path]:
    """Write a student; its preprocessing is in it.

    A program takes samples as `TrainedStudent.inputs` gives them, in batches of any size: pictures
    float32 [B, channels, height, width] in [0, 1], or token ids int64 [B, length]. It gives logits
    [B, C].

    Args:
        student: which one.
        to: `torch` (a program of torch.export), `safetensors` (weights without a program) or
            `onnx`.
        output: the file; its suffix may be left out.

    Returns:
        The files: the one that was asked for, and for safetensors and onnx a JSON file beside it
        with classes, architecture, shape of a sample and the settings of the data. In a .pt2 file
        this is the extra file `about.json`.

    Raises:
        AgrekdError: there is no such kind, the model cannot be exported, what that needs is not
            installed, or the file cannot be written.
    """
    if to not in _WRITERS:
        raise AgrekdError(f"--to {to}: no such kind of file.{near(to, _WRITERS)}")
    suffix, write = _WRITERS[to]
    file = output if output.suffix == suffix else output.with_name(output.name + suffix)
    about = json.dumps(_about(student), indent=1) + "\n"
    beside = file.with_suffix(".json")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(student, file, about)
        if to == "torch":
            return [file]
        beside.write_text(about, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{file}: cannot be written ({error.strerror or error}).") from None
    return [file, beside]


def _about(student: TrainedStudent) -> dict[str, Any]:
    """What a user of the file has to know, as plain values."""
    manifest = student.manifest
    return {
        "classes": manifest.classes,
        "shape": manifest.shape,
        "model": manifest.model.model_dump(mode="json"),
        "made_by": manifest.made_by,
        "data": None if student.data is None else student.data.model_dump(mode="json"),
    }


def _torch(student: TrainedStudent, file: Path, about: str) -> None:
    program = _exported(
        lambda: torch.export.export(
            student.model,
            (_example(student),),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    )
    torch.export.save(program, file, extra_files={ABOUT: about})


def _safetensors(student: TrainedStudent, file: Path, about: str) -> None:
    state = student.model.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)


def _onnx(student: TrainedStudent, file: Path, about: str) -> None:
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise AgrekdError(f"--to onnx needs {', '.join(missing)}: pip install 'agrekd_ray[export]'")
    example = _example(student)
    program = _exported(
        lambda: torch.onnx.export(
            student.model,
            (example,),
            dynamo=True,
            input_names=["samples"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    )
    program.save(file)
    _compare(student, file, torch.cat([example, example[:1]]))


def _compare(student: TrainedStudent, file: Path, samples: Tensor) -> None:
    """Refuse a file that ONNX Runtime reads as another model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"samples": samples.numpy()})
    with torch.inference_mode():
        difference = float((student.model(samples) - torch.from_numpy(logits)).abs().max())
    if not difference <= _TOLERANCE:
        raise AgrekdError(
            f"{file}: ONNX Runtime's logits differ by {difference:.2g}; do not use it."
        )


def _example(student: TrainedStudent) -> Tensor:
    """Two samples; torch.export takes a dimension of size one for a constant."""
    shape = (2, *student.manifest.shape)
    if len(shape) == 2:
        return torch.ones(shape, dtype=torch.int64)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _exported(make: Callable[[], Any]) -> Any:
    try:
        with torch.no_grad():
            return make()
    except Exception as error:  # tracing raises whatever it meets
        raise AgrekdError(
            f"This model cannot be exported ({in_a_line(error)[:300]}). Its forward pass must be "
            "free of branches on values; --to safetensors writes its weights."
        ) from error


_WRITERS: dict[str, tuple[str, Callable[[TrainedStudent, Path, str], None]]] = {
    "torch": (".pt2", _torch),
    "safetensors": (".safetensors", _safetensors),
    "onnx": (".onnx", _onnx),
}
"""Suffix and writer of each kind."""
