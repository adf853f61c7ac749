"""The guarded strategy in jobs, studies, searches and from Python: competence is known in time."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import agrekd_ray as ak
from agrekd_ray.core.competence import competence
from agrekd_ray.data import SELECT, open_dataset
from agrekd_ray.distillation import DistillationSpec, Distilled, LocalTeachers, TeacherHost
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import run_job
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.experiment.study import run_study
from agrekd_ray.models import load, read_manifest
from agrekd_ray.search.trial import student_specs
from agrekd_ray.settings import fingerprint
from agrekd_ray.student import Student
from agrekd_ray.training import predict

from .shared import flat_parameters, pool_of

GUARDED = "agre_kd_guarded"


def quiet() -> Console:
    return Console(file=io.StringIO())


def by_hand(job: Any) -> tuple[DistillationSpec, Any, dict[str, Any]]:
    """The spec of the job's student with its teachers' competence, worked out here."""
    data, checkpoints, drawn = pool_of(job)
    ids = data.splits[SELECT]
    said = {name: predict(load(place)[0], data, ids) for name, place in checkpoints.items()}
    teachers = torch.stack([said[name] for name in drawn.teachers])
    trusted_MC = competence(teachers, said[drawn.biased], data.labels(ids))
    spec = make_plan(job).specs[0].spec
    assert spec is not None
    return replace(spec, competence=tuple(map(tuple, trusted_MC.tolist()))), data, checkpoints


def test_a_jobs_student_is_taught_by_the_competence_of_its_teachers(make_job: Any) -> None:
    job = make_job(guidance="local", methods=[GUARDED], **{"tracking.models": False})
    spec, data, checkpoints = by_hand(job)
    assert np.ptp(spec.competence) > 0.05
    folder, screen = RunFolder.create(job), Console(file=io.StringIO(), width=200)
    run_job(folder, screen)
    distrusted = [
        name for name, row in zip(spec.teachers, spec.competence, strict=True) if not any(row)
    ]
    assert distrusted
    said = f"{GUARDED} gives {', '.join(distrusted)} no weight: where they"
    assert said in screen.file.getvalue()
    place = folder.students / f"{GUARDED}-seed-0"
    made_by = read_manifest(place).made_by
    np.testing.assert_allclose(made_by["lesson"]["competence"], spec.competence, atol=1e-12)
    student = Student(
        replace(make_plan(job).specs[0], spec=spec),
        data,
        LocalTeachers(TeacherHost(checkpoints, data)),
    )
    while not student.done:
        student.epoch()
    found = flat_parameters(load(place)[0])
    torch.testing.assert_close(found, flat_parameters(student.model), rtol=1e-4, atol=1e-6)


def test_points_of_a_study_have_the_competence_of_their_own_teachers(make_job: Any) -> None:
    """In one process nobody is asked before the points are finished, so these ask themselves."""
    sweep = {"ensemble.debiased": [0, 3]}
    study = make_job(guidance="local", methods=[GUARDED], sweep=sweep, **{"tracking.models": False})
    folder = RunFolder.create(study)
    run_study(folder, quiet())
    found = [
        read_manifest(path.parent).made_by["lesson"]["competence"]
        for path in sorted(folder.path.glob(f"points/*/students/{GUARDED}-seed-0/outcome.json"))
    ]
    expected = [
        by_hand(make_job(methods=[GUARDED], **{"ensemble.debiased": count}))[0].competence
        for count in (0, 3)
    ]
    assert len(found) == 2
    for some, others in zip(found, expected, strict=True):
        np.testing.assert_allclose(some, others, atol=1e-12)
    assert found[0] != found[1]


def test_trials_of_a_search_are_told(make_job: Any) -> None:
    job = make_job(methods=[GUARDED])
    spec = by_hand(job)[0]
    (told,) = student_specs(job, spec.competence)
    assert told.spec == spec
    aver = make_job(methods=["aver"])
    assert student_specs(aver, spec.competence) == make_plan(aver).specs


def test_students_of_other_methods_are_named_as_before() -> None:
    """The fingerprint of a spec as it was before there was a competence."""
    spec = DistillationSpec("agre_kd", ("dfr-0", "erm-1"), "erm-2", 4.0, seed=3)
    before = {
        "strategy": "agre_kd",
        "teachers": ("dfr-0", "erm-1"),
        "biased": "erm-2",
        "temperature": 4.0,
        "alpha": 1.0,
        "options": {},
        "sample_weighting": None,
        "seed": 3,
    }
    assert fingerprint(spec.described()) == fingerprint(before)
    told = replace(spec, strategy=GUARDED, competence=((0.5,), (0.25,)))
    assert told.described()["competence"] == ((0.5,), (0.25,))


def test_a_student_whose_teachers_competence_is_not_known_does_not_begin(make_job: Any) -> None:
    job = make_job(methods=[GUARDED])
    spec = make_plan(job).specs[0].spec
    assert spec is not None
    with pytest.raises(
        RunError, match=r"agre_kd_guarded needs the teachers' competence, which lab"
    ):
        Distilled(spec, LocalTeachers(None), open_dataset(job.data))  # type: ignore[arg-type]


def test_from_python_the_labels_of_validation_tell() -> None:
    """Three teachers, one of which has its classes rotated: it has no weight."""
    rng = np.random.default_rng(0)
    samples, labels = rng.normal(size=(600, 3)).astype("float32"), rng.integers(0, 3, 600)
    samples[np.arange(600), labels] += 3
    train, val = (samples[:400], labels[:400]), (samples[400:], labels[400:])

    def linear(weight: torch.Tensor) -> torch.nn.Module:
        model = torch.nn.Linear(3, 3)
        with torch.no_grad():
            model.weight.copy_(weight)
            model.bias.zero_()
        return model

    eye = torch.eye(3)
    teachers = {"good": linear(eye), "broken": linear(eye.roll(1, 0)), "fair": linear(eye + 0.4)}
    biased = linear(torch.tensor([[1.0, 0, 0], [1, 0.2, 0], [0, 0, 1]]))
    given: dict[str, Any] = {"biased": biased, "train": train, "val": val, "epochs": 2}
    plain = ak.distill(linear(0 * eye), teachers, method="agre_kd", **given)
    guarded = ak.distill(linear(0 * eye), teachers, method=GUARDED, **given)
    weights = [float(result.weights["broken"].mean()) for result in (plain, guarded)]
    assert weights[1] < 0.05 < 0.3 < weights[0]
    accuracies = [result.outcome.splits["val"].accuracy for result in (plain, guarded)]
    assert accuracies[1] > accuracies[0] + 0.05
