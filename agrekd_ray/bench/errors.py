"""What forms of records lose: errors in AGRE-KD's weights and gradient, by bytes of a row."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agrekd_ray.core.kd import kd_gradient
from agrekd_ray.core.weighting import combine
from agrekd_ray.data import TRAIN, Dataset
from agrekd_ray.data.colored import ColoredDigits
from agrekd_ray.logits import Form
from agrekd_ray.models import Model, build, load
from agrekd_ray.settings import Training
from agrekd_ray.teachers import EnsembleSettings, TeacherSettings, draw
from agrekd_ray.teachers.pool import Pool
from agrekd_ray.training import Labels, Trainer, predict

TEMPERATURES = (1.0, 4.0)
NOISE = 4096
"""Different rows of a teacher's own noise."""
SAMPLES = 256
"""On which errors are measured."""


def said(teacher: int, labels_N: np.ndarray, classes: int, first: int = 0) -> np.ndarray:
    """Logits of a made-up confident teacher, [N, C] in float32.

    What all see alike in a class, N(0, 1); noise of the teacher's own, of a deviation between 0.5
    and 1.5; and 8 to 16 more for its answer, which is wrong for 10 to 30 % of the samples.

    Args:
        teacher: its number.
        labels_N: of the samples.
        classes: C.
        first: number of the first of them, by which noise is drawn.
    """
    deviation, wrong, confidence = np.random.default_rng((1, teacher)).uniform(
        [0.5, 0.1, 8], [1.5, 0.3, 16]
    )
    numbers_N = np.arange(first, first + len(labels_N))
    logits_NC = _noise(0, classes, classes)[labels_N]
    logits_NC += np.float32(deviation) * _noise(1 + teacher, NOISE, classes)[7 * numbers_N % NOISE]
    rng = np.random.default_rng((2, teacher, first))
    others_N = rng.integers(classes, size=len(labels_N))
    answers_N = np.where(rng.random(len(labels_N)) < wrong, others_N, labels_N)
    logits_NC[np.arange(len(labels_N)), answers_N] += np.float32(confidence)
    return logits_NC


@functools.lru_cache(maxsize=2)
def _noise(seed: int, rows: int, classes: int) -> np.ndarray:
    """N(0, 1), [R, C] in float32."""
    return np.random.default_rng(seed).standard_normal((rows, classes), dtype=np.float32)


def made_up(teachers: int, classes: int) -> tuple[Tensor, Tensor]:
    """Logits of such teachers [M, N, C], the first the biased model, and of a student [N, C].

    The student sees what all see alike and is half as confident.
    """
    labels_N = np.random.default_rng(3).integers(classes, size=SAMPLES)
    members = [torch.from_numpy(said(number, labels_N, classes)) for number in range(teachers + 1)]
    return torch.stack(members[:-1]), members[-1] / 2


def of_digits(folder: Path, quick: bool) -> tuple[Tensor, Tensor]:
    """Logits of teachers of coloured digits, trained here, and of a student in mid-training.

    Args:
        folder: of the teachers.
        quick: two short epochs, and fewer teachers.

    Returns:
        [M, N, C], the biased model first, and [N, C].
    """
    count = 3 if quick else 6
    training = Training(epochs=2 if quick else 12, batch_size=32, learning_rate=0.05)
    data = ColoredDigits.model_validate({"name": "colored_digits", "train": SAMPLES}).open()
    model = Model(name="cnn", args={"width": 8})
    pool = TeacherSettings(model=model, training=training, count=count, store=folder)
    drawn = draw(EnsembleSettings(size=count - 1, debiased=(count - 1) // 2), pool)
    made = Pool(folder, data)
    for family in made.missing(drawn.recipes.values()):
        made.make(family)
    ids = data.splits[TRAIN]
    names = (drawn.biased, *(name for name in drawn.teachers if name != drawn.biased))
    models = [load(made.folder(drawn.recipes[name]))[0] for name in names]
    student = _half_trained(model, data, training)
    return torch.stack([predict(each, data, ids) for each in models]), predict(student, data, ids)


def _half_trained(model: Model, data: Dataset, training: Training) -> torch.nn.Module:
    student = build(model, data.shape, len(data.classes), 1)
    trainer = Trainer(student, data, training, Labels(), seed=1)
    for _ in range(training.epochs // 2):
        trainer.epoch()
    return student.eval()


def errors(logits_MNC: Tensor, student_NC: Tensor, forms: Sequence[Form]) -> list[dict[str, Any]]:
    """What each form loses against float32, a row each.

    Args:
        logits_MNC: of the members; the first is the biased model, the others teach.
        student_NC: the student's.
        forms: that are measured.

    Returns:
        Form and bytes of a row; by temperature the mean and the largest difference of a teacher's
        weight for a sample, and the norm of the gradient's difference over that of the gradient.
    """
    exact = {τ: _weighed(logits_MNC, student_NC, τ) for τ in TEMPERATURES}
    rows = []
    for form in forms:
        read = [form.decode(form.encode(logits_NC.numpy())) for logits_NC in logits_MNC]
        rounded_MNC = torch.from_numpy(np.stack(read).astype(np.float32))
        row: dict[str, Any] = {"form": str(form), "row_bytes": form.row_bytes, "errors": {}}
        for τ, (weights_MN, gradient_NC) in exact.items():
            others_MN, other_NC = _weighed(rounded_MNC, student_NC, τ)
            away_MN = (others_MN - weights_MN).abs()
            row["errors"][f"{τ:g}"] = {
                "mean": float(away_MN.mean()),
                "max": float(away_MN.max()),
                "grad": float((other_NC - gradient_NC).norm() / gradient_NC.norm()),
            }
        rows.append(row)
    return rows


def _weighed(logits_MNC: Tensor, student_NC: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """AGRE-KD's weights [M, N] and gradient [N, C]."""
    gradients = kd_gradient(student_NC, logits_MNC, temperature)
    found = combine(
        "agre_kd",
        gradients[1:],
        gradients[0],
        student_logits=student_NC,
        temperature=temperature,
    )
    assert found.weights_MB is not None
    return found.weights_MB, found.gradient_BC
