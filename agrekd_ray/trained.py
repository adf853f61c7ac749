"""A finished student or teacher in use: its weights, and how files become its samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from agrekd_ray.config import JobError, load_job
from agrekd_ray.config.checks import with_plugins
from agrekd_ray.data import DataSettings, given_samples
from agrekd_ray.data.dataset import as_inputs
from agrekd_ray.errors import CheckpointError, DataError, RunError, listed
from agrekd_ray.experiment.folder import JOB, read_resolved
from agrekd_ray.files import in_a_line, is_file, is_folder, real
from agrekd_ray.models import Classifier, Manifest, load
from agrekd_ray.models.checkpoint import MANIFEST
from agrekd_ray.report.card import model_card
from agrekd_ray.results import StudentResult
from agrekd_ray.search.folder import SEARCH
from agrekd_ray.settings import Settings
from agrekd_ray.student.student import read_outcome

_AT_ONCE = 512


@dataclass(frozen=True)
class TrainedStudent:
    """A finished student, with its preprocessing.

    Attributes:
        model: in evaluation mode, on the CPU: samples as `inputs` makes them -> logits [N, C].
        manifest: what its checkpoint says of it.
        data: settings of the data that it was trained on, which say how files become samples;
            None where nobody knows them.
        outcome: what was measured of it, where its run is around it.
        settings: of the job that made it; empty where nobody knows them.
    """

    model: Classifier
    manifest: Manifest
    data: Settings | None = None
    outcome: StudentResult | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def card(self, name: str) -> str:
        """A model card as Markdown: data, accuracy by group, teachers, training, limits.

        Args:
            name: of the model, the card's heading.
        """
        data = {} if self.data is None else {"data": self.data.model_dump(mode="json")}
        return model_card(name, self.manifest, self.outcome, {**self.settings, **data})

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the logits."""
        return self.manifest.classes

    def inputs(self, samples: np.ndarray | Tensor) -> Tensor:
        """Samples as the model is given them.

        Args:
            samples: pictures, uint8 [N, height, width, channels] or float [N, channels, height,
                width] in [0, 1]; or texts, int64 [N, length], token ids.

        Raises:
            ValueError: they are of another shape than what the student was trained on.
        """
        given = as_inputs(torch.as_tensor(samples))
        if tuple(given.shape[1:]) != self.manifest.shape:
            raise ValueError(
                f"the student takes samples of {list(self.manifest.shape)}, not "
                f"{list(given.shape[1:])}"
            )
        return given

    @torch.inference_mode()
    def probabilities(self, samples: np.ndarray | Tensor) -> np.ndarray:
        """Of the classes, float32 [N, C]; see `inputs`."""
        parts = [self.model(part).softmax(1) for part in self.inputs(samples).split(_AT_ONCE)]
        return torch.cat(parts).numpy()

    def predict(self, samples: np.ndarray | Tensor) -> np.ndarray:
        """Names of the most probable classes, [N]; see `inputs`."""
        return np.array(self.classes)[self.probabilities(samples).argmax(1)]

    def predict_files(
        self,
        *sources: str | Path,
        column: str | None = None,
        images: str | Path | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> pd.DataFrame:
        """Classes of pictures or texts in files, made into samples as in the run's evaluation.

        Args:
            sources: pictures, a folder of pictures, or a table (CSV, Parquet).
            column: of a table, with the path, the picture or the text; None is that of the job.
            images: the folder that a table's paths are relative to; None is that of the job, else
                the table's own.
            progress: told how many samples are predicted, of how many.

        Returns:
            A row a sample: its `path`, or `row` in the table, its most probable `class`, and
            `probability_CLASS` for each class.

        Raises:
            DataError: a file is missing or broken (names it), or nobody knows how files become
                samples.
        """
        if self.data is None:
            raise DataError(
                "the checkpoint does not say how files become samples; name the job that it was "
                "made by (--job JOB, its file or the folder of its run)."
            )
        folder = None if images is None else Path(images)
        paths = [Path(source) for source in sources]
        what, total, parts = given_samples(paths, self.data, self.manifest.shape, column, folder)
        names: list[str | int] = []
        probabilities = []
        for some, inputs in parts:
            names += some
            probabilities.append(self.probabilities(inputs))
            progress(len(names), total)
        table = pd.DataFrame(
            np.concatenate(probabilities), columns=[f"probability_{name}" for name in self.classes]
        )
        table.insert(0, what, names)
        table.insert(1, "class", np.array(self.classes)[np.concatenate(probabilities).argmax(1)])
        return table


def open_student(folder: str | Path, job: str | Path | None = None) -> TrainedStudent:
    """The student, or teacher, in a folder.

    Args:
        folder: of its checkpoint.
        job: a job's file or the folder of a run, that says how files become samples; None is the
            run that the folder lies in.

    Raises:
        CheckpointError: there is no model, or it is damaged.
        RunError: there is no such run, or its job is damaged.
        JobError: the job is not valid.
    """
    folder = Path(folder)
    students = sorted((folder / "students").glob(f"*/{MANIFEST}"))
    if students and not is_file(folder / MANIFEST):
        names = listed(path.parent.name for path in students)
        raise CheckpointError(f"{folder}: a run; name one of its students in students/: {names}.")
    # and its plugins
    data, settings = _settings_of(real(folder), None if job is None else Path(job))
    return TrainedStudent(*load(folder), data, read_outcome(real(folder)), settings)


def _settings_of(folder: Path, job: Path | None) -> tuple[Settings | None, dict[str, Any]]:
    """Settings of a student's data, and of its whole job; neither where no run is around it."""
    if job is not None and not is_folder(job):
        loaded = load_job(job)
        return loaded.data, loaded.model_dump(mode="json")
    run = folder.parent.parent if job is None else real(job)
    if is_file(run / SEARCH):
        values = read_resolved(run, SEARCH).get("base", {})
    elif is_file(run / JOB) or job is not None:
        values = read_resolved(run, JOB)
    else:
        return None, {}
    values, faults = with_plugins(values)
    if faults:
        raise JobError(str(run), faults)
    try:
        return TypeAdapter(DataSettings).validate_python(values.get("data")), values
    except ValidationError as error:
        raise RunError(f"{run}: its job's data are not valid ({in_a_line(error)}).") from None
