"""The device path without a device: fake tensors on `cuda` mix no devices and wait for none.

A fake tensor has a shape and a device but no values, so whatever would make the host wait for a
value (`.item()`, `bool(t)`, a mask of unknown length) raises.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional

from agrekd_ray.core import strategies
from agrekd_ray.core.gradient import required
from agrekd_ray.core.kd import kd_gradient, label_gradient
from agrekd_ray.core.weighting import STRATEGIES, SampleWeighting, combine, summarize
from agrekd_ray.data import TRAIN, Groups
from agrekd_ray.distillation.distilled import Distilled
from agrekd_ray.distillation.spec import DistillationSpec
from agrekd_ray.models import Model, build
from agrekd_ray.settings import Precision, Training
from agrekd_ray.training import (
    Batch,
    Guidance,
    Labels,
    Loaded,
    TeacherWeightRecorder,
    Trainer,
    guidance,
    label_guidance,
)

from .shared import told

M, B, C = 5, 8, 3


def fake(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="cuda")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is decided on the host: AE-KD's programme, and the teacher that `random` draws."""
    seen: list[str] = []

    def shortest(gram_MM: Tensor, box: float, negligible: float) -> Tensor:
        assert gram_MM.shape == (M, M)
        seen.append("programme")
        return torch.empty(M, dtype=torch.float64)

    monkeypatch.setattr(strategies, "_shortest", shortest)
    monkeypatch.setattr(strategies, "drawn_teacher", lambda teachers, seed, step: 1)
    return seen


@pytest.mark.parametrize("weighting", [None, SampleWeighting()], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_strategy_stays_on_the_device(
    name: str, weighting: SampleWeighting | None, waits: list[str]
) -> None:
    with FakeTensorMode():
        student_BC = fake(B, C)
        supplied: dict[str, Any] = {
            "seed": 0,
            "step": 3,
            "cross_entropy": fake(M, B),
            "competence": fake(M, C),
        }
        found = combine(
            name,
            kd_gradient(student_BC, fake(M, B, C), 4.0),
            kd_gradient(student_BC, fake(B, C), 4.0),
            student_logits=student_BC,
            temperature=4.0,
            sample_weighting=weighting,
            **{option: supplied[option] for option in STRATEGIES[name].supplied},
        )
    parts = {name: part for name, part in vars(found).items() if part is not None}
    assert {part.device.type for part in parts.values()} == {"cuda"}
    assert {"gradient_BC", "loss_B", "weights_MB", "fallback_B", "pull_MB"} == set(parts)
    assert found.gradient_BC.shape == (B, C)
    assert found.weights_MB.shape == (M, B)
    assert waits == (["programme"] if name == "ae_kd" else [])


class Eight:
    """Eight samples that nobody looks at."""

    classes, shape, size = ("a", "b", "c"), (3, 32, 32), B
    splits = {TRAIN: np.arange(B)}  # noqa: RUF012
    groups = Groups.unknown(np.arange(B) % 3, classes)

    def labels(self, ids: np.ndarray) -> Tensor:
        return torch.from_numpy(ids % 3)


TEACHERS = tuple("abcde")


def stepped(
    monkeypatch: pytest.MonkeyPatch,
    spec: DistillationSpec | None,
    model: str,
    precision: Precision = "float32",
) -> None:
    """Two steps of a student, and its record of who taught it; only `backward` wants a GPU."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    data: Any = Eight()
    source: Any = SimpleNamespace(columns=lambda *_: ())
    loader: Any = SimpleNamespace(device=torch.device("cuda"))
    guidance: Guidance = Labels() if spec is None else Distilled(spec, source, data)
    # AdamW, for of SGD's fused kernel there is no fake.
    settings = Training(
        epochs=1,
        batch_size=B,
        learning_rate=0.1,
        clip_norm=1.0,
        optimizer="adamw",
        precision=precision,
    )
    seen: list[torch.dtype] = []
    monkeypatch.setattr(nn.Module, "to", lambda self, **_: self)  # fake parameters stay in place
    with FakeTensorMode():
        further = () if spec is None else (fake(B, len(spec.members), C),)
        if spec is not None and spec.cross_entropy:
            further = (*further, fake(B, dtype=torch.int64))
        (further,) = guidance.ready(further, [B])
        with torch.device("cuda"):
            student = build(Model(name=model), data.shape, C, 0)
        student.register_forward_hook(lambda _, __, logits_BC: seen.append(logits_BC.dtype))
        trainer = Trainer(student, data, settings, guidance, seed=0, loader=loader)

        def backward(self: Tensor, gradient: Tensor) -> None:
            assert gradient.device == self.device
            for parameter in student.parameters():
                parameter.grad = torch.empty_like(parameter)

        monkeypatch.setattr(Tensor, "backward", backward)
        labels_B, ids_B = fake(B, dtype=torch.int64), fake(B, dtype=torch.int64)
        loaded = Loaded(fake(B, *data.shape), ids_B, labels_B, further)
        record = TeacherWeightRecorder(data.groups, TEACHERS, "cuda")
        steps = [trainer.step(Batch(step, 0, np.arange(B)), loaded) for step in range(2)]
        whole = summarize(steps)
        for step in steps:
            assert step.gradient_BC.dtype == required(whole.loss_B).dtype == torch.float32
        record.observe(torch.cat([loaded.ids_B] * 2), whole, 2)
    assert seen == [torch.float32 if precision == "float32" else torch.bfloat16] * 2


@pytest.mark.parametrize(
    ("alpha", "precision"), [(1.0, "float32"), (0.5, "float32"), (1.0, "auto")]
)
@pytest.mark.parametrize("weighting", [None, SampleWeighting()], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_step_stays_on_the_device(
    monkeypatch: pytest.MonkeyPatch,
    waits: list[str],
    name: str,
    weighting: SampleWeighting | None,
    alpha: float,
    precision: Precision,
) -> None:
    spec = told(
        DistillationSpec(name, TEACHERS, "biased", 4.0, alpha, sample_weighting=weighting),
        classes=3,
    )
    stepped(monkeypatch, spec, "cnn", precision)
    assert waits == (["programme"] * 2 if name == "ae_kd" else [])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["cnn_deep", "torchvision/resnet18"])
def test_a_step_on_labels_stays_on_the_device(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: Precision
) -> None:
    stepped(monkeypatch, None, name, precision)


def test_somebody_who_waits_in_a_step_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def waiting(logits_BC: Tensor, labels_B: Tensor) -> Any:
        return label_guidance(logits_BC * logits_BC.max().item(), labels_B)

    monkeypatch.setattr(guidance, "label_guidance", waiting)
    with pytest.raises(DataDependentOutputException):
        stepped(monkeypatch, None, "cnn")


def test_labels_stay_on_the_device() -> None:
    with FakeTensorMode():
        student_BC, labels_B = fake(B, C), fake(B, dtype=torch.int64)
        assert label_gradient(student_BC, labels_B).device.type == "cuda"
        entropy_B = functional.cross_entropy(student_BC, labels_B, reduction="none")
        assert entropy_B.device.type == "cuda"


@pytest.mark.parametrize(
    "waiting", [lambda t: t.sum().item(), lambda t: bool((t > 0).any()), lambda t: t.tolist()]
)
def test_the_check_notices(waiting: Any) -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        waiting(fake(B, C))
