"""An ensemble explains itself before the first student: warnings, table, files, page and MLflow."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from rich.console import Console
from torch import Tensor, nn

import agrekd_ray as ak
from agrekd_ray.config import Job
from agrekd_ray.data import SELECT, Dataset, open_dataset
from agrekd_ray.data.in_memory import InMemory
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import run_job
from agrekd_ray.experiment.study import run_study
from agrekd_ray.files import checked
from agrekd_ray.models import build, load, save
from agrekd_ray.report.archive import read_job
from agrekd_ray.report.ensemble import in_words, render
from agrekd_ray.report.page import write_report
from agrekd_ray.results import EnsembleCheck, TeacherCheck
from agrekd_ray.training import check_ensemble, evaluate

from .conftest import Run
from .shared import pool_of

BROKEN = "warning: broken is right on "


@pytest.fixture
def broken(make_job: Callable[..., Job], tmp_path: Path) -> Path:
    """A checkpoint of a teacher that nobody has trained."""
    data, checkpoints, drawn = pool_of(make_job())
    _, manifest = load(checkpoints[drawn.teachers[0]])
    save(tmp_path / "broken", build(manifest.model, data.shape, len(data.classes), 99), manifest)
    return tmp_path / "broken"


def lines_of(folder: RunFolder, tmp_path: Path, run: Callable[..., Any] = run_job) -> list[str]:
    with (tmp_path / "screen.txt").open("w+") as file:
        run(folder, Console(file=file, width=80))
        file.seek(0)
        return file.read().splitlines()


def test_what_there_is_none_of_is_not_said() -> None:
    """A biased model without a mistake, and a vote that is always its own."""
    right = TeacherCheck("erm-0", "erm", 1.0, 1.0, {"a": 1.0})
    check = EnsembleCheck(9, 1.0, [right], right, 0.5, 0, math.nan, differ=0.0)
    assert in_words(check) == [
        "All side with the biased model on 50.0 % of samples.",
        "Their vote never differs from it.",
    ]
    some = replace(check, mistakes=4, sided_wrong=0.25, differ=0.2, vote_right=0.7, biased_right=0)
    assert in_words(some) == [
        "All side with the biased model on 50.0 % of samples, 25.0 % of its mistakes.",
        "Their vote differs on 20.0 %: right there 70.0 %, the biased model 0.0 %.",
    ]


def test_a_broken_teacher_is_warned_of_before_the_first_student(
    make_job: Callable[..., Job], broken: Path, tmp_path: Path, agrekd: Run
) -> None:
    changes = {"guidance": "local", "methods": ["agre_kd"], "tracking.models": False}
    job = make_job(**changes, **{"ensemble.checkpoints": [str(broken)]})
    folder = RunFolder.create(job)
    lines = lines_of(folder, tmp_path)
    begins = next(n for n, line in enumerate(lines) if line[8:].startswith("students"))
    warned = [n for n, line in enumerate(lines) if line.startswith(BROKEN)]
    assert len(warned) == 1
    assert warned[0] < min(10, begins)
    title = lines.index("Teachers on 100 validation samples, in %")
    assert warned[0] < title < begins
    shown = [line.split()[0] for line in lines[title + 3 : title + 8]]
    check = read_job(folder.path).diagnostics.ensemble
    assert check is not None
    assert shown == [*(teacher.name for teacher in check.teachers), check.biased.name]
    assert all(len(line) <= 80 for line in lines[title:begins])

    (warning,) = (text for text in check.warnings if text.startswith("broken"))
    assert f"warning: {warning}" == lines[warned[0]]
    assert [t.name for t in check.teachers if t.warned and t.kind == "own"] == ["broken"]
    for teacher in (*check.teachers, check.biased):
        if teacher.kind != "own":
            continue
        expected = evaluate(load(broken)[0], open_dataset(job.data), SELECT)
        assert teacher.accuracy == pytest.approx(expected.accuracy)
        assert teacher.groups == pytest.approx(expected.groups)
        assert teacher.balanced_accuracy == pytest.approx(expected.balanced_accuracy)

    with (folder.path / "teachers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["teacher"] for row in rows] == [t.name for t in (*check.teachers, check.biased)]
    assert float(rows[0]["class/3"]) == pytest.approx(check.teachers[0].classes["3"], abs=1e-5)
    page = write_report(folder.path).read_text()
    assert page.index(f"Warning: {warning}") < page.index("<main>")
    assert page.index("The ensemble before the first student") < page.index("Methods compared")

    client = MlflowClient(f"sqlite:///{job.runs / 'mlflow.db'}")
    run = client.get_run(str(folder.state().tracking_run))
    assert warning in run.data.tags["agrekd.warnings"].splitlines()
    assert "teachers.csv" in {file.path for file in client.list_artifacts(run.info.run_id)}

    read = ak.load(folder.path)
    assert isinstance(read, ak.Run)
    assert read.warnings == check.warnings
    assert read.ensembles[""] == check

    # A run that was finished shows it again, and asks nobody.
    broken.rename(broken.with_name("gone"))
    again = lines_of(RunFolder(folder.path, job), tmp_path)
    assert lines[warned[0]] in again
    assert not any("answers" in line for line in again[:-8])
    broken.with_name("gone").rename(broken)

    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    code, out, _ = agrekd("teachers", "evaluate", file)
    assert code == 0
    said = " ".join(out.split())
    assert f"warning: {warning}" in said
    assert lines[title] in out
    code, out, _ = agrekd("teachers", "evaluate", file, "broken")
    assert "warning: " not in out


def test_a_study_warns_once_of_each_ensemble(
    make_job: Callable[..., Job], broken: Path, tmp_path: Path
) -> None:
    changes = {"guidance": "local", "methods": ["aver"], "tracking.models": False}
    sweep = {"ensemble.debiased": [0, 1], "distillation.alpha": [0.5, 1.0]}
    job = make_job(**changes, **{"ensemble.checkpoints": [str(broken)], "sweep": sweep})
    folder = RunFolder.create(job)
    lines = lines_of(folder, tmp_path, run_study)
    begins = next(n for n, line in enumerate(lines) if line[8:].startswith("students"))
    warned = [n for n, line in enumerate(lines) if ": broken is right on " in line]
    labels = [lines[n].removeprefix("warning: ").partition(": broken")[0] for n in warned]
    assert labels == ["debiased=0 alpha=0.5", "debiased=1 alpha=0.5"]
    assert max(warned) < begins
    told = json.loads((folder.path / "results.json").read_text())["points"]
    assert [sum(text.startswith("broken") for text in p["warnings"]) for p in told] == [1] * 4
    page = write_report(folder.path).read_text()
    assert page.count("broken is right on") == 2  # of each ensemble


def test_jobs_without_teachers_have_no_check(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job(guidance="local", methods=["one_hot"], **{"tracking.models": False})
    folder = RunFolder.create(job)
    lines = lines_of(folder, tmp_path)
    assert not any(line.startswith(("warning", "Teachers on")) for line in lines)
    assert not (folder.path / "teachers.csv").exists()
    assert read_job(folder.path).diagnostics.ensemble is None
    assert "before the first student" not in write_report(folder.path).read_text()


def test_results_of_an_earlier_version_have_none(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job(guidance="local", **{"tracking.models": False})
    folder = RunFolder.create(job)
    run_job(folder, Console(quiet=True))
    path = folder.path / "results.json"
    values = json.loads(path.read_text())
    check = values["diagnostics"].pop("ensemble")
    path.write_text(json.dumps(values))
    assert read_job(folder.path).diagnostics.ensemble is None
    write_report(folder.path)
    values["diagnostics"]["ensemble"] = check
    assert json.loads(json.dumps(check)) == check
    assert checked(EnsembleCheck, check).count == 100


# --- what is said -----------------------------------------------------------------------------


class Ten:
    """The selection half of the coloured digits, and models of known answers to it."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, ids = dataset, dataset.splits[SELECT]
        self.labels_N = dataset.labels(ids)
        self.aligned_N = torch.from_numpy(dataset.groups.group_N[ids] == 0)

    def model(self, conflicting: int) -> Tensor:
        """Right on the bias-aligned samples, and on every so-manieth of the others."""
        every_N = torch.arange(len(self.labels_N)) % conflicting == 0
        right_N = self.aligned_N | every_N
        return self.logits(torch.where(right_N, self.labels_N, (self.labels_N + 1) % 10))

    def logits(self, named_N: Tensor) -> Tensor:
        noise_NC = torch.rand(len(named_N), 10, generator=torch.Generator().manual_seed(7))
        return noise_NC + 9.0 * nn.functional.one_hot(named_N, 10)

    def check(self, models: dict[str, Tensor], biased: Tensor) -> EnsembleCheck:
        kinds = dict.fromkeys([*models, "erm-9"], "erm")
        return check_ensemble(self.dataset, models, ("erm-9", biased), kinds, 4.0)


@pytest.fixture
def ten(make_job: Callable[..., Job]) -> Ten:
    return Ten(open_dataset(make_job(**{"data.val": 800}).data))


def screen(check: EnsembleCheck, tmp_path: Path, width: int = 80) -> list[str]:
    with (tmp_path / "table.txt").open("w+") as file:
        render(check, Console(file=file, width=width))
        file.seek(0)
        return file.read().splitlines()


def test_sound_teachers_have_a_table_and_no_warning(ten: Ten, tmp_path: Path) -> None:
    models = {f"dfr-{n}": ten.model(n) + n for n in (2, 3)}
    models |= {f"erm-{n}": ten.model(n) + n for n in (7, 8, 11)}
    check = ten.check(models, ten.model(10))
    assert check.warnings == []
    lines = screen(check, tmp_path)
    assert len(lines) <= 11
    assert max(map(len, lines)) <= 80
    first = lines[3].split()
    teacher = check.teachers[0]
    shares = (teacher.accuracy, teacher.groups["bias-conflicting"], teacher.weight)
    shares = (*shares, teacher.with_biased, teacher.with_others)
    assert first == ["dfr-2", *(f"{100 * (share or 0):.1f}" for share in shares)]
    assert teacher.worst_group_accuracy == teacher.groups["bias-conflicting"]
    assert lines[8].split()[:3] == ["erm-9", "(biased)", f"{100 * check.biased.accuracy:.1f}"]
    assert lines[9].startswith("All side with the biased model on ")


def test_many_teachers_with_one_fault_have_one_warning(ten: Ten) -> None:
    """Four that answer with classes of their own order, and five that exchange two classes."""
    good, erm = ten.model(2), ten.model(10)
    broken = {f"r{by}": erm.roll(by, dims=1) + 0.001 * by for by in (3, 4, 5, 6)}
    constant = [w for w in ten.check({"a": good, **broken}, erm).warnings if "constant" in w]
    assert len(constant) == 1
    assert constant[0].startswith("4 teachers (r3, r4, r5, r6) are right on ")
    assert "of the weight on them. Make them again, leave them out" in constant[0]
    few = ten.check({"a": good, **dict([*broken.items()][:3])}, erm).warnings
    assert [w.split(" ")[0] for w in few if "constant" in w] == ["r3", "r4", "r5"]
    swapped = {}
    for number in range(5):
        swapped[f"s{number}"] = ten.model(2 + number).clone()
        swapped[f"s{number}"][:, [3, 8]] = swapped[f"s{number}"][:, [8, 3]]
    said = ten.check({"a": good, **swapped}, erm).warnings
    assert sum("takes class 3 for 8" in w for w in said) == 3
    assert "So it is with 2 more: s3, s4." in said


def test_each_warning_says_what_to_do(ten: Ten) -> None:
    good, erm = ten.model(2), ten.model(10)
    swapped = good.clone()
    swapped[:, [3, 8]] = swapped[:, [8, 3]]
    found = ten.check({"a": good, "b": swapped, "c": erm.roll(5, dims=1), "d": good}, erm).warnings
    assert [text.split(" ")[0].strip(",") for text in found] == ["c", "b", "a"]
    for text, words in zip(
        found,
        [
            ("no better than a constant answer (11.2 %)", "% of the weight on it. Make it again"),
            ("takes class 3 for 8 and 8 for 3 (", "in another order than the data's?"),
            ("a, d give the same answers", "counted 2 times. Draw others"),
        ],
        strict=True,
    ):
        assert all(word in text for word in words), text
    biased_alike = {"e": erm + 0.1, "f": ten.model(20)}
    (unopposed,) = ten.check(biased_alike, erm).warnings
    assert "every teacher makes the same mistake (more than 50 %)" in unopposed
    assert unopposed.endswith("Let debiased teachers teach (ensemble.debiased).")
    assert "0/0" not in unopposed  # of two classes alone
    weak_N = torch.where(ten.labels_N % 2 == 0, ten.labels_N, (ten.labels_N + 5) % 10)
    (misleading,) = ten.check({"g": ten.logits(weak_N)}, ten.model(2)).warnings
    assert "(groups counted alike)" in misleading
    assert "likely to do worse than AVER" in misleading


def test_two_classes_are_told_of_the_formula() -> None:
    labels = torch.arange(80) % 2
    data = InMemory({SELECT: (torch.zeros(80, 3), labels)})
    model = 5.0 * nn.functional.one_hot(torch.arange(80) // 2 % 2, 2)
    models = {"a": model, "b": model + torch.rand(80, 2)}
    kinds = dict.fromkeys(["a", "b", "c"], "own")
    (warning,) = check_ensemble(data, models, ("c", model + 1.0), kinds, 4.0).warnings
    assert warning.startswith("On 100 % of the 40 validation samples that the biased model gets")
    assert "nobody to choose there, and its formula is 0/0." in warning


def test_of_many_teachers_the_remarkable_ones_are_shown(ten: Ten, tmp_path: Path) -> None:
    models = {f"erm-{n}": ten.model(n) + n for n in range(3, 50)}
    models |= {"odd": ten.model(10).roll(5, dims=1), "weak": ten.model(1000)}
    check = ten.check(models, ten.model(60))
    lines = screen(check, tmp_path)
    start = next(n for n, line in enumerate(lines) if line.startswith("Teachers on "))
    shown = [line.split()[0] for line in lines[start + 3 : start + 9]]
    assert {"odd", "weak", "erm-3"} <= {*shown}
    assert shown[-1] == "erm-9"
    assert lines[start + 9].startswith("and 44 others, accuracy ")
    assert len(lines) - start <= 12
    few = replace(check, teachers=check.teachers[:8])
    assert not any(line.startswith("and ") for line in screen(few, tmp_path))


def test_a_student_of_ones_own_carries_the_check() -> None:
    torch.manual_seed(0)
    samples, labels = torch.randn(90, 3, 2, 2), torch.arange(90) % 3
    teachers = [nn.Sequential(nn.Flatten(), nn.Linear(12, 3)) for _ in range(3)]
    given = {"train": (samples, labels), "val": (samples, labels), "epochs": 1}
    student = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    check = ak.distill(student, teachers[:2], biased=teachers[2], **given).ensemble
    assert check is not None
    assert [one.name for one in check.teachers] == ["teacher-0", "teacher-1"]
    for one, network in zip((*check.teachers, check.biased), teachers, strict=True):
        right_N = network(samples).argmax(1) == labels
        assert one.accuracy == pytest.approx(float(right_N.float().mean()))
    assert ak.distill(student, teachers, method="aver", **given).ensemble is None
