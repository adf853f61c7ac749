"""`agrekd export`: a student as a file that runs without this package, or a model with a name."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from agrekd_ray.data import open_dataset
from agrekd_ray.errors import AgrekdError, RunError, near
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import log_model
from agrekd_ray.files import in_a_line, real
from agrekd_ray.search.folder import SearchFolder
from agrekd_ray.student.student import read_outcome
from agrekd_ray.tracking.tracker import open_tracker
from agrekd_ray.trained import TrainedStudent, open_student

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
        The files: the one that was asked for; for safetensors and onnx a JSON file beside it with
        classes, architecture, shape of a sample and the settings of the data, which is the extra
        file `about.json` of a .pt2 file; and a model card, in Markdown.

    Raises:
        AgrekdError: there is no such kind, the model cannot be exported, what that needs is not
            installed, or the file cannot be written.
    """
    if to not in _WRITERS:
        raise AgrekdError(f"--to {to}: no such kind of file.{near(to, _WRITERS)}")
    suffix, write = _WRITERS[to]
    file = output if output.suffix == suffix else output.with_name(output.name + suffix)
    about = json.dumps(_about(student), indent=1) + "\n"
    beside, card = file.with_suffix(".json"), file.with_suffix(".md")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(student, file, about)
        if to != "torch":
            beside.write_text(about, encoding="utf-8")
        card.write_text(student.card(file.stem), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{file}: cannot be written ({error.strerror or error}).") from None
    return [file, card] if to == "torch" else [file, beside, card]


def register(folder: Path, name: str, alias: str | None) -> str:
    """Give a student of a run a name in MLflow's registry of models; its card describes it.

    Args:
        folder: of the student, in its run.
        name: of the registered model, which is made where it is missing.
        alias: that moves to this version, if any.

    Returns:
        The model's address, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        AgrekdError: there is no student, its run is not in MLflow, or MLflow refuses.
    """
    student, run = open_student(folder), real(folder).parent.parent
    kept: RunFolder | SearchFolder
    if SearchFolder.holds(run):
        kept = SearchFolder.open(run)
        job = kept.planned.base
    else:
        kept = RunFolder.open(run)
        job = kept.job
    outcome, tracked = read_outcome(real(folder)), kept.state().tracking_run
    if outcome is None or tracked is None:
        raise RunError(f"{folder}: this student's run is not in MLflow; `agrekd resume {run}`.")
    tracker = open_tracker(job.tracking.uri, job.tracking.experiment or job.name, job.runs)
    tracker.start_job(run.name, {}, {}, tracked)
    child = tracker.student(outcome.method, outcome.seed, {})
    model = log_model(tracker, child, real(folder), open_dataset(job.data))
    version = tracker.register(model, child, name, alias, student.card(name))
    return f"models:/{name}@{alias}" if alias else f"models:/{name}/{version}"


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
