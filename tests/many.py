"""Students of very many classes and teachers, and what their job leaves; written by the tests."""

from pathlib import Path

import numpy as np

from agrekd_ray.report import job as report
from agrekd_ray.results import (
    Agreement,
    Diagnostics,
    Epoch,
    Metrics,
    SplitAgreement,
    StudentResult,
    TeacherResult,
)
from agrekd_ray.results.many import MOST_NAMED
from agrekd_ray.student.student import write_outcome

FEW, MANY = MOST_NAMED, MOST_NAMED + 1


def named(kind: str, count: int) -> list[str]:
    return [f"{kind} {number:04}" for number in range(count)]


def measured(classes: int, seed: int = 0, known: bool = False) -> Metrics:
    """Accuracies that are all different, in no order."""
    shares = np.random.default_rng(seed).permutation(classes) / classes
    groups = dict(zip(named("class", classes), shares.tolist(), strict=True))
    worst = float(shares.min())
    coverage = {"classes": (classes, classes)}
    counts = dict.fromkeys(groups, 4)
    return Metrics(0.5, worst, 0.5, 0.5, worst, 0.1, groups, counts, known, coverage=coverage)


def trained(number: int, classes: int, teachers: int) -> Epoch:
    rng = np.random.default_rng(1000 + number)
    groups, names = named("class", classes), [f"erm-{n}" for n in range(teachers)]

    def shares() -> dict[str, dict[str, float]]:
        rows = rng.dirichlet(np.ones(teachers), classes).tolist()
        return {g: dict(zip(names, row, strict=True)) for g, row in zip(groups, rows, strict=True)}

    return Epoch(
        number,
        1 / (1 + number),
        0.1,
        2.0,
        measured(classes, number),
        shares(),
        0.1,
        steps=8,
        fallback_by_group=dict(zip(groups, rng.random(classes).tolist(), strict=True)),
        influence=dict(zip(names, rng.dirichlet(np.ones(teachers)).tolist(), strict=True)),
        influence_by_group=shares(),
    )


def student(classes: int, teachers: int, count: int = 4, method: str = "agre_kd") -> StudentResult:
    history = [trained(number, classes, teachers) for number in range(count)]
    splits = {"val": measured(classes, 7), "test": measured(classes, 8)}
    return StudentResult(method, 0, str(teachers), splits, history)


def agreeing(classes: int) -> Diagnostics:
    """The vote contradicts the biased model and is right ever more often from class to class."""
    groups = {
        name: Agreement(1000, 0.0, 0.0, number / classes, 1 - number / classes)
        for number, name in enumerate(named("class", classes))
    }
    split = SplitAgreement(Agreement(classes, 0.25, 0.25, 0.25, 0.25), groups)
    return Diagnostics({"val": split, "test": split})


def written(
    folder: Path, classes: int, teachers: int, *methods: str, draw: bool = False
) -> list[StudentResult]:
    """A finished job's folder, without MLflow."""
    outcomes = [student(classes, teachers, method=method) for method in methods]
    for outcome in outcomes:
        write_outcome(folder / "students" / outcome.name, outcome)
    members = [
        TeacherResult(f"erm-{n}", "erm", "f" * 12, {"test": measured(classes, n)})
        for n in range(teachers)
    ]
    names = named("class", classes)
    settings = {"data": {"name": "many"}, "student": {}, "distillation": {}, "seeds": [0]}
    about = {"name": "many", "folder": str(folder), "classes": names, "groups": names}
    about |= {"versions": {}, "settings": settings, "seconds": 1.0}
    (folder / "job.yaml").write_text("name: many\n")
    diagnostics = agreeing(classes)
    report.publish_job(folder, outcomes, members, members[0], about, diagnostics, draw=draw)
    return outcomes
