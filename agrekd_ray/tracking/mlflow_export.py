"""A student as an MLflow model: a traced graph that anybody can load, without this package."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from agrekd_ray.errors import TrackingError
from agrekd_ray.tracking.mlflow_values import shortened

_LARGEST_EXAMPLE = 50_000


def export(
    model: torch.nn.Module,
    example: np.ndarray,
    classes: Sequence[str],
    logged: Any,
    run_id: str,
    path: Path,
) -> None:
    """Write the model, in evaluation mode and float32, into a folder.

    Args:
        model: the student; not changed.
        example: a few inputs [B, ...].
        classes: names of the C classes.
        logged: MLflow's record of the model.
        run_id: of the student.
        path: the folder.

    Raises:
        TrackingError: the model cannot be exported.
    """
    kind = np.float32 if np.issubdtype(example.dtype, np.floating) else example.dtype
    # Two rows: torch.export takes a dimension of size one for a constant.
    rows = np.ascontiguousarray(np.resize(example, (2, *example.shape[1:])), dtype=kind)
    signature = ModelSignature(
        Schema([TensorSpec(rows.dtype, (-1, *rows.shape[1:]))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, len(classes)))]),
    )
    record = Model(
        artifact_path=logged.artifact_location,
        model_uuid=logged.model_id,
        run_id=run_id,
        model_id=logged.model_id,
    )
    plain = copy.deepcopy(model).to("cpu").float().eval().requires_grad_(False)
    try:
        mlflow.pytorch.save_model(
            plain,
            str(path),
            mlflow_model=record,
            signature=signature,
            # An array is also written as JSON, some twenty bytes a value; a tensor is not.
            input_example=rows if rows.size <= _LARGEST_EXAMPLE else torch.from_numpy(rows),
            pip_requirements=[f"mlflow=={mlflow.__version__}", f"torch=={_torch_release()}"],
            metadata={"classes": list(classes)},
            serialization_format="pt2",
        )
    except (MlflowException, OSError):
        raise
    except Exception as error:  # torch.export raises whatever its tracing meets
        raise TrackingError(
            f"This {type(model).__name__} cannot be exported for MLflow: "
            f"{shortened(' '.join(str(error).split()), 400)}\nIts forward pass must be free of "
            "branches on values; its checkpoint is not concerned."
        ) from error


def _torch_release() -> str:
    return torch.__version__.split("+")[0]
