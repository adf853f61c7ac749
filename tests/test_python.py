"""The door from Python: the page as it is written, and what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import agrekd_ray as ak
from agrekd_ray.core.kd import cross_entropies, kd_gradient, kd_loss
from agrekd_ray.core.strategies import STRATEGIES
from agrekd_ray.core.weighting import weigh
from agrekd_ray.data import SELECT, TRAIN
from agrekd_ray.data.in_memory import InMemory
from agrekd_ray.distillation import (
    DistillationSpec,
    Distilled,
    GradientRequest,
    LocalTeachers,
    TeacherHost,
)
from agrekd_ray.distillation.cached import FixedLogits
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.study import run_study
from agrekd_ray.models import Model, build, load
from agrekd_ray.settings import Training
from agrekd_ray.student import Student, StudentSpec
from agrekd_ray.training import BatchPlan, Loader, Request
from agrekd_ray.training.optimization import make_optimizer, make_schedule
from tests.shared import flat_parameters, pool_of, told

ROOT = Path(__file__).parent.parent
M, B, C = 4, 6, 3
COMPETENCE = {"agre_kd_guarded": {"competence": torch.linspace(0, 1, M * C).reshape(M, C)}}


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S)
    assert len(snippets) == 7
    checks = """
assert result.weights.shape == (2, 3) and abs(result.weights.sum(1) - 1).max() < 1e-6
assert set(result.table.group) >= {"group/even", "group/odd"}
assert set(run.table.method) == {"aver", "agre_kd"}
assert run.path.joinpath("report.html").stat().st_size > 100_000
assert list(run.plots) == sorted(run.plots) and "worst_group_by_method" in run.plots
assert best.predict(digits).shape == (4,) and set(best.predict(digits)) <= set("0123456789")
assert abs(best.probabilities(digits).sum(1) - 1).max() < 1e-5
weights = ak.Distillation("first_only", share=0.9)(student(samples), teacher_logits).weights
assert torch.allclose(weights[0], torch.tensor(0.9))
print("as written")
"""
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join([*snippets, checks])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (0, "as written\n"), ended.stderr


def test_the_package_imports_nothing_before_it_is_used() -> None:
    code = "import sys, agrekd_ray as ak; dir(ak); print('torch' in sys.modules, len(ak.__all__))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == f"False {len(ak.__all__)}\n"
    assert all(getattr(ak, name) is not None for name in ak.__all__)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = ak.distil


@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("weighting", [None, ak.SampleWeighting()], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_loss_is_that_of_its_weights(name: str, weighting: Any, alpha: float) -> None:
    """Against autograd through alpha * sum_m w_m tau² KL(m ‖ s) + (1 - alpha) * cross-entropy."""
    student_BC = logits(B, C).requires_grad_()
    teachers_MBC, biased_BC = logits(M, B, C, seed=1), logits(B, C, seed=2)
    labels_B = torch.arange(B) % C
    given = {"sample_weighting": weighting, "seed": 3, **COMPETENCE.get(name, {})}
    distil = ak.Distillation(name, temperature=2.0, alpha=alpha, **given)
    out = distil(student_BC, teachers_MBC, biased_BC, labels_B)
    (found_BC,) = torch.autograd.grad(out.loss, student_BC)

    detached_BC = student_BC.detach()
    gradients_MBC = kd_gradient(detached_BC, teachers_MBC, 2.0)
    biased_gradient_BC = kd_gradient(detached_BC, biased_BC, 2.0)
    options: dict[str, Any] = {"random": {"seed": 3, "step": 0}, **COMPETENCE}.get(name, {})
    if name == "ca_mkd":
        options["cross_entropy"] = cross_entropies(teachers_MBC, labels_B)
    weights_MB = weigh(
        name, gradients_MBC, biased_gradient_BC, labels_B, 2.0, detached_BC, **options
    )
    torch.testing.assert_close(out.weights, weights_MB, rtol=0, atol=0)
    loss_B = (weights_MB * kd_loss(student_BC, teachers_MBC, 2.0)).sum(0)
    if weighting is not None:
        from agrekd_ray.core.weighting import sample_weights

        loss_B = loss_B * sample_weights(gradients_MBC, biased_gradient_BC, 2.0)
    entropy_B = functional.cross_entropy(student_BC, labels_B, reduction="none")
    expected = (alpha * loss_B + (1 - alpha) * entropy_B).mean()
    (expected_BC,) = torch.autograd.grad(expected, student_BC)
    torch.testing.assert_close(found_BC, expected_BC, rtol=1e-4, atol=1e-6)
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)
    assert not out.loss_B.requires_grad
    assert out.fallback.shape == (B,)
    assert out.pull.shape == (M, B)


def test_random_draws_another_teacher_in_another_step() -> None:
    distil = ak.Distillation("random", seed=1)
    drawn = [int(distil(logits(B, C), logits(M, B, C)).weights[:, 0].argmax()) for _ in range(20)]
    assert len(set(drawn)) == M
    assert distil.step == 20


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"strategy": "agre"}, {}, "unknown strategy: agre; did you mean agre_kd"),
        ({"alpha": 1.5}, {}, r"alpha must lie in \[0, 1\]"),
        ({"fallbck": "skip"}, {"biased_logits": logits(B, C)}, "did you mean fallback"),
        ({}, {}, "agre_kd with these settings needs biased_logits"),
        ({"strategy": "aver", "alpha": 0.5}, {}, "aver with these settings needs labels"),
        ({"strategy": "aver"}, {"teacher_logits": logits(B, C)}, r"must be \[M, B, C\], not"),
        ({"strategy": "aver", "temperature": 0.0}, {}, "temperature must be finite and above 0"),
    ],
)
def test_what_does_not_fit_is_refused(
    settings: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ak.Distillation(**settings)(logits(B, C), **{"teacher_logits": logits(M, B, C), **given})


def test_a_loop_of_ones_own_ends_with_the_parameters_of_a_job(make_job: Any) -> None:
    job = make_job()
    data, checkpoints, drawn = pool_of(job)
    model, training = Model(name="cnn"), Training(epochs=3, batch_size=32, learning_rate=0.05)
    spec = DistillationSpec("agre_kd", drawn.teachers, drawn.biased, 4.0)
    given = StudentSpec("agre_kd", 5, model, training, spec)
    student = Student(given, data, LocalTeachers(TeacherHost(checkpoints, data)))
    while not student.done:
        student.epoch()

    own = build(model, data.shape, len(data.classes), 5)
    optimizer = make_optimizer(own.parameters(), training)
    plan = BatchPlan(data.splits[TRAIN], training.batch_size, training.epochs, 5)
    schedule = make_schedule(optimizer, training, plan.steps_per_epoch)
    teachers = {name: load(folder)[0] for name, folder in checkpoints.items()}
    distil = ak.Distillation("agre_kd", temperature=4.0)
    for step in range(len(plan)):
        batch = plan.batch(step)
        inputs = data.inputs(batch.ids, batch.epoch)
        with torch.no_grad():
            answers = {name: teacher(inputs) for name, teacher in teachers.items()}
        teaching = torch.stack([answers[name] for name in drawn.teachers])
        distil(own(inputs), teaching, answers[drawn.biased]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    torch.testing.assert_close(
        flat_parameters(own), flat_parameters(student.model), rtol=1e-3, atol=2e-5
    )


# --- modules and data of one's own ------------------------------------------------------------


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, C))


def split(count: int, seed: int, *, groups: bool = True) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(C, size=count)
    samples = rng.normal(size=(count, 3, 2, 2)) + labels_N[:, None, None, None]
    samples = samples.astype(np.float32)
    return (samples, labels_N, rng.integers(2, size=count)) if groups else (samples, labels_N)


TEACHERS = [network(seed) for seed in range(3)]
GIVEN: dict[str, Any] = {"train": split(96, 0), "val": split(30, 1), "batch_size": 16, "epochs": 2}


def test_a_student_of_ones_own_is_that_of_a_hand_written_loop() -> None:
    seen: list[int] = []
    given = {**GIVEN, "training": {"schedule": "constant", "momentum": 0.0, "weight_decay": 0.0}}
    result = ak.distill(
        network(7),
        TEACHERS,
        biased=TEACHERS[0],
        **given,
        learning_rate=0.1,
        seed=3,
        on_epoch=lambda epoch: seen.append(epoch.epoch),
    )
    own, distil = network(7), ak.Distillation("agre_kd")
    optimizer = torch.optim.SGD(own.parameters(), 0.1)
    plan = BatchPlan(np.arange(96), 16, 2, 3)
    for step in range(len(plan)):
        samples = torch.from_numpy(GIVEN["train"][0][plan.batch(step).ids])
        with torch.no_grad():
            answers = torch.stack([teacher(samples) for teacher in TEACHERS])
        distil(own(samples), answers, answers[0]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(flat_parameters(result.model), flat_parameters(own))
    assert seen == [0, 1]
    assert not result.model.training
    assert result.weights.loc[("agre_kd", "0"), "teacher-0"] == 0  # the biased model's own weight


def test_every_way_of_giving_data_is_the_same_data() -> None:
    samples, labels, groups = GIVEN["train"]
    expected = InMemory({TRAIN: GIVEN["train"], SELECT: GIVEN["val"]})
    for train in (
        (torch.from_numpy(samples), labels.tolist(), groups.tolist()),
        TensorDataset(
            torch.from_numpy(samples), torch.from_numpy(labels), torch.from_numpy(groups)
        ),
    ):
        data = InMemory({TRAIN: train, SELECT: GIVEN["val"]})
        ids = data.splits[TRAIN]
        assert torch.equal(data.inputs(ids, 0), expected.inputs(ids, 0))
        assert torch.equal(data.labels(ids), expected.labels(ids))
        assert (data.groups.group_N == expected.groups.group_N).all()
    pictures = np.full((4, 8, 8, 3), 255, np.uint8), [0, 1, 2, 0]
    data = InMemory({TRAIN: pictures, SELECT: pictures})
    assert data.shape == (3, 8, 8)
    assert data.inputs(np.arange(2), None).max() == 1


def test_without_groups_of_the_training_samples_the_others_count_alike() -> None:
    given = {**GIVEN, "train": split(96, 0, groups=False)}
    result = ak.distill(network(7), dict(zip("abc", TEACHERS, strict=True)), method="aver", **given)
    table = result.table.set_index(["metric", "group"]).value
    mean = (table["accuracy", "group/0"] + table["accuracy", "group/1"]) / 2
    assert table["weighted_accuracy", ""] == pytest.approx(mean)
    assert result.weights.index.get_level_values("group").tolist() == ["0", "1", "2"]  # classes
    assert result.weights.columns.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": []}, "agre_kd needs teachers"),
        ({"biased": None}, "agre_kd with these settings needs a biased model"),
        ({"method": "agre"}, "unknown strategy: agre; did you mean agre_kd"),
        ({"val": split(30, 1)[:1]}, r"val must be \(samples, labels\)"),
        ({"val": (split(30, 1)[0], [0])}, "val must be"),
        ({"val": (np.zeros((4, 5)), [0] * 4)}, "samples of"),
        ({"train": (split(96, 0)[0], [-1] * 96)}, "labels must be integers from 0"),
        ({"test": split(9, 2, groups=False)}, "train, val has groups, test has none"),
        ({"batch_size": 200}, "a batch of 200 does not fit 96 samples"),
    ],
)
def test_what_cannot_be_distilled_is_refused(changes: dict[str, Any], message: str) -> None:
    given = {"teachers": TEACHERS, "biased": network(9), **GIVEN, **changes}
    with pytest.raises(ValueError, match=message):
        ak.distill(network(7), **given)


def test_a_teacher_with_nan_is_named() -> None:
    broken = network(1)
    with torch.no_grad():
        broken[3].bias[0] = float("nan")  # type: ignore[index,union-attr]
    with pytest.raises(ak.AgrekdError, match="teacher-1 answers with NaN"):
        ak.distill(network(7), [TEACHERS[0], broken], method="aver", **GIVEN)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_logits_in_memory_answer_a_request_as_they_answer_a_step(name: str) -> None:
    data = InMemory({TRAIN: GIVEN["train"], SELECT: GIVEN["val"]})
    known = {member: logits(96, C, seed=seed).numpy() for seed, member in enumerate("abz")}
    spec = told(DistillationSpec(name, ("a", "b"), "z", 4.0), C)
    source = FixedLogits(known, data)
    (loaded,) = Loader(data)(
        [Request(np.arange(B), 0)], lambda epoch, ahead: source.columns(spec, epoch)
    )
    guidance = Distilled(spec, source, data)
    batch = BatchPlan(np.arange(B), B, 1, 0).batch(0)
    further = loaded.further if not spec.cross_entropy else (*loaded.further, loaded.labels_B)
    step = guidance.gradient(
        batch, replace(loaded, further=guidance.ready(further, [B])[0]), logits(B, C, seed=9)
    )
    asked = GradientRequest(spec, 0, 0, np.arange(B), logits(B, C, seed=9).numpy())
    torch.testing.assert_close(source.ask(asked).gradient_BC, step.gradient_BC, rtol=0, atol=0)


def test_a_study_is_read_with_the_students_of_its_points(make_job: Any) -> None:
    """A job's table has one point, without a name; a study's has a row for each of its own."""
    sweep = {"distillation.temperature": [1, 4]}
    study = make_job(guidance="local", methods=["aver"], sweep=sweep, **{"tracking.models": False})
    folder = RunFolder.create(study)
    run_study(folder, Console(quiet=True))
    run = ak.load(folder.path)
    assert isinstance(run, ak.Run)
    points = list(run.table.point.unique())
    assert points == ["temperature=1", "temperature=4"]
    assert [(point, method) for point, _, method in run.summary().index] == [
        (point, "aver") for point in points
    ]
    worst = run.table[(run.table.metric == "worst_group_accuracy") & (run.table.split == "test")]
    for point in points:
        student = run.student("aver", study.seeds[0], point=point)
        assert student.outcome is not None
        (measured,) = worst[(worst.point == point) & (worst.seed == study.seeds[0])].value
        assert student.outcome.splits["test"].worst_group_accuracy == measured
        assert student.manifest.made_by["lesson"]["temperature"] == int(point[-1])
    with pytest.raises(KeyError, match="no student aver 0; there are: aver 0 temperature=1, aver"):
        run.student("aver")
