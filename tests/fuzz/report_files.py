"""What reports are made of: the results of jobs, searches and studies."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from random import Random

from agrekd_ray.report import job as report
from agrekd_ray.report.page import write_report
from agrekd_ray.results.points import Published
from agrekd_ray.results.study import PointResult, StudyResult

from ..test_page import ABOUT, MEMBERS, OUTCOMES, PIXEL, RESULT, Page
from .cases import Subject


def _make_job_report() -> None:
    Path("plots").mkdir()
    Path("plots/training_curves.png").write_bytes(PIXEL)
    Path("job.yaml").write_text("name: digits\n")
    report.write_json(Path("results.json"), OUTCOMES, MEMBERS, MEMBERS[0], ABOUT)


def _make_search_report() -> None:
    Path("search.yaml").write_text("name: temperature\n")
    Path("results.json").write_text(json.dumps(asdict(RESULT)))


def _make_study_report() -> None:
    Path("points").mkdir()
    Path("points/a.json").write_text("{}")
    at = {"distillation.temperature": 2.0}
    published = Published.model_validate(
        {"source": "x", "figures": [{"at": at, "accuracy": {"aver": 80}}]}
    )
    points = [
        PointResult(
            f"temperature={tau} draw={draw}", {"distillation.temperature": tau}, draw, OUTCOMES
        )
        for tau in (2.0, 4.0)
        for draw in (0, 1)
    ]
    study = StudyResult(
        "study", "/runs/study/20261124-083700-ab12", {"distillation.temperature": [2.0, 4.0]},
        ["aver", "agre_kd"], published, points, 10.0, {"name": "study"}, {"torch": "2"},
    )  # fmt: skip
    Path("results.json").write_text(json.dumps(study.to_json()))


def _use_report(rng: Random | None, truth: None, target: Path) -> None:
    page = write_report(Path())
    assert Page(page.read_text()).headline


SUBJECTS = {
    Subject("job-report", _make_job_report, _use_report, ["*.*", "plots/*"]): (6, 150),
    Subject("search-report", _make_search_report, _use_report, ["*.*"]): (5, 150),
    Subject("study-report", _make_study_report, _use_report, ["*.*"]): (5, 120),
}  # fmt: skip
"""With how many quick cases, and how many others."""
