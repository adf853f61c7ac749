"""`agrekd data`, and jobs on pictures from the command line to the report."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from agrekd_ray.commands import data as command
from agrekd_ray.commands.contact_sheet import CELL, GAP, HEAD, WORDS, draw
from agrekd_ray.config import load_job
from agrekd_ray.data import SELECT, TEST, open_dataset
from agrekd_ray.data.colored import ColoredDigits
from agrekd_ray.experiment.folder import RunFolder
from tests import pictures
from tests.conftest import TINY, Run, merged


def write_job(place: Path, data: dict[str, Any], **changes: Any) -> Path:
    """A job that a second or two are enough for."""
    job = merged(
        TINY,
        {
            "runs": str(place / "runs"),
            "teachers.store": str(place / "pool"),
            "teachers.count": 2,
            "teachers.dfr": {"inverse_penalties": [0.1], "retrainings": 1},
            "ensemble.size": 2,
            "ensemble.debiased": 0,
            "guidance": "local",
            "methods": ["one_hot", "deep_ensemble", "teacher_vote", "aver", "agre_kd"],
            **{f"{who}.training.batch_size": 8 for who in ("teachers", "student")},
            **changes,
        },
    )
    path = place / "job.yaml"
    path.write_text(yaml.safe_dump({**job, "data": data}))
    return path


def waterbirds(place: Path, **settings: Any) -> dict[str, Any]:
    folder = pictures.waterbirds(place / "w")
    return pictures.small("waterbirds", place / "prepared", path=str(folder), **settings)


def groupless(place: Path, split: str = "split", **settings: Any) -> dict[str, Any]:
    path = pictures.table(place / "own") / "table.csv"
    path.write_text(path.read_text().replace("label,split", f"label,{split}", 1))
    return pictures.small("table", place / "prepared", table=str(path), **settings)


def test_check_says_what_the_data_are_and_prepares_them(tmp_path: Path, agrekd: Run) -> None:
    job = write_job(tmp_path, waterbirds(tmp_path))
    code, out, _ = agrekd("data", "check", job, "--fast")
    assert code == 0
    assert "0 of 52 samples" in out
    assert "not read" in out
    code, out, _ = agrekd("data", "check", job)
    assert code == 0
    for words in ("waterbirds", str(tmp_path / "w"), "8 × 8 pixels", "4 groups", "52, all sound"):
        assert words in out
    assert "3,498" in out  # as published, beside what is there
    row = next(line for line in out.splitlines() if "waterbird on land" in line)
    assert row.split()[3:] == ["6", "2", "2", "3", "56"]
    _, data, _ = command.read_data(job, [])
    assert data.fingerprint in out
    assert "52 of 52 samples" in agrekd("data", "check", job)[1]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("split", "column 'split': train 24, val_dfr 8, val 8, test 12"),
        ("Split", "column 'Split': train 24, val_dfr 8, val 8, test 12"),
        ("which", "drawn by lot, stratified by group: train 36, val_dfr 4, val 4, test 8"),
    ],
)
def test_check_says_what_the_splits_are_from(
    tmp_path: Path,
    agrekd: Run,
    column: str,
    said: str,
) -> None:
    job = write_job(tmp_path, groupless(tmp_path, column))
    code, out, _ = agrekd("data", "check", job, "--fast")
    assert code == 0
    assert f"splits       {said}" in out


def test_check_says_what_was_changed_of_the_pictures_and_once_it_is_known_validate_too(
    tmp_path: Path,
    agrekd: Run,
) -> None:
    job = write_job(tmp_path, groupless(tmp_path))
    for number in range(3):
        Image.new("RGBA", (20, 20), (200, 0, 0, 99)).save(tmp_path / "own" / f"{number}.jpg", "PNG")
    assert "composed" not in agrekd("validate", job)[1]
    said = "3 with transparency, composed on white"
    for verb in (("data", "check"), ("data", "check"), ("validate",)):
        code, out, _ = agrekd(*verb, job)
        assert code == 0
        assert said in out
    assert said in agrekd("run", job, "methods=[one_hot]", "seeds=[0]")[1]


def test_a_view_of_little_of_a_picture_is_said_by_every_verb(tmp_path: Path, agrekd: Run) -> None:
    job = write_job(tmp_path, groupless(tmp_path))
    said = "models see the middle 8 × 8 of 32 × 32 pixels, 6% of a picture; data.resize: 9 shows"
    small = "52 smaller than what is kept of each (data.resize), so they are enlarged"
    assert said in agrekd("validate", job, "data.resize=32")[1]
    for verb in (("data", "check"), ("run",)):
        out = agrekd(*verb, job, "data.resize=32", *["methods=[one_hot]"] * (verb == ("run",)))[1]
        assert said in out
        assert small in out
    assert "models see" not in agrekd("data", "check", job, "data.resize=null")[1]


def test_a_run_of_an_earlier_version_goes_on_with_the_pictures_that_it_began_with(
    tmp_path: Path,
) -> None:
    job = load_job(write_job(tmp_path, groupless(tmp_path)))
    folder = RunFolder.create(job)
    assert RunFolder.open(folder.path).job.data.decoding == 2
    file = folder.path / "job.yaml"
    file.write_text(file.read_text().replace("  decoding: 2\n", ""))
    assert RunFolder.open(folder.path).job.data.decoding == 1


def test_check_lists_ten_broken_pictures_and_counts_them(tmp_path: Path, agrekd: Run) -> None:
    job = write_job(tmp_path, groupless(tmp_path))
    for number in range(13):
        (tmp_path / "own" / f"{number}.jpg").write_bytes(b"no picture")
    code, out, _ = agrekd("data", "check", job)
    assert code == 1
    assert "13 broken samples" in out
    assert out.count("table.csv, row ") == 10
    assert "and 3 more" in out
    assert agrekd("data", "check", job, "--fast")[0] == 0


def test_check_does_not_mind_what_else_is_wrong_with_a_job(tmp_path: Path, agrekd: Run) -> None:
    job = write_job(tmp_path, groupless(tmp_path), methods=["no_such_method"])
    assert agrekd("validate", job)[0] == 2
    code, out, _ = agrekd("data", "check", job)
    assert code == 0
    assert "no group labels: the classes stand for groups" in out
    code, _, err = agrekd("data", "check", job, "data.columns.label=lable")
    assert code == 2
    assert "no column 'lable'" in err
    assert "no_such_method" not in err


def test_the_sheet_has_a_row_a_group(tmp_path: Path, agrekd: Run) -> None:
    job = write_job(tmp_path, waterbirds(tmp_path))
    target = tmp_path / "deeper" / "sheet.png"
    code, out, _ = agrekd("data", "show", job, "-o", target, "--examples", 3)
    assert code == 0
    assert str(target) in out
    shown = np.asarray(Image.open(target).convert("RGB"))
    assert shown.shape[0] == HEAD + 4 * (CELL + GAP) + GAP
    _, data, _ = command.read_data(job, [])
    # Land is red and water blue, in every picture of a group.
    for row, name in enumerate(data.groups.names):
        top, left = HEAD + row * (CELL + GAP), WORDS
        first, others = shown[top : top + CELL, left : left + CELL].mean((0, 1)), name.split()
        assert (first[0] > first[2]) == (others[2] == "land")
        words = shown[top : top + CELL, 12 : WORDS - 8]
        assert (words < 200).any(), "the group's name"
    again = tmp_path / "again.png"
    agrekd("data", "show", job, "-o", again, "--examples", 3)
    assert again.read_bytes() == target.read_bytes()


def test_a_sheet_of_very_many_groups_stays_a_picture(tmp_path: Path) -> None:
    few = np.zeros((1, 3, 20, 30), np.float32)
    names = [f"group ${n}$" for n in range(600)]
    draw(tmp_path / "many.png", "t", names, ["n"] * 600, [few] * 600)
    with Image.open(tmp_path / "many.png") as shown:
        assert shown.size[1] == HEAD + 500 * (CELL + GAP) + GAP


class _Words:
    """A data set that is shown as text, around another one."""

    def __init__(self) -> None:
        self._data = open_dataset(ColoredDigits(name="colored_digits"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def excerpt(self, sample: int) -> str:
        return f"words of sample {sample}, [in brackets]"


def test_text_is_shown_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "open_dataset", lambda settings: _Words())
    job = write_job(tmp_path, TINY["data"])
    console = Console(record=True, width=100, quiet=False)
    command.show_data(job, [], None, 3, None, console)
    text = console.export_text()
    assert text.count("words of sample") == 6
    assert "[in brackets]" in text
    assert "train 980 · val_dfr 100" in text
    assert not list(tmp_path.glob("*.png"))


def finished(runs: Path) -> Path:
    (folder,) = [path for path in (runs / "tiny").iterdir() if not path.is_symlink()]
    return folder


def test_waterbirds_runs_from_files_to_report(tmp_path: Path, agrekd: Run) -> None:
    views = {"flip": True, "crop": {"scale": [0.5, 1]}, "count": 2}
    job = write_job(
        tmp_path,
        waterbirds(tmp_path, views=views),
        **{"ensemble.debiased": 1, "methods": ["one_hot", "one_hot_dfr", "aver", "agre_kd"]},
    )
    assert agrekd("validate", job)[0] == 0
    assert not (tmp_path / "prepared").exists(), "validation decodes nothing"
    code, out, _ = agrekd("run", job)
    assert code == 0
    assert "52/52 samples" in out
    assert "Worst group" in out
    found = json.loads((finished(tmp_path / "runs") / "results.json").read_text())
    assert found["job"]["groups"] == list(pictures.BIRDS)
    assert {o["method"] for o in found["outcomes"]} == {"one_hot", "one_hot_dfr", "aver", "agre_kd"}
    counts = found["outcomes"][0]["splits"][TEST]["counts"]
    assert counts == dict.fromkeys(pictures.BIRDS, 3)


@pytest.mark.parametrize("layout", pictures.LAYOUTS)
def test_celeba_runs_in_every_layout(tmp_path: Path, agrekd: Run, layout: str) -> None:
    folder = pictures.celeba(tmp_path / "c", layout)
    data = pictures.small("celeba", tmp_path / "prepared", path=str(folder))
    job = write_job(
        tmp_path, data, **{"methods": ["aver", "agre_kd"], "student.training.epochs": 1}
    )
    code, _, _ = agrekd("run", job)
    assert code == 0
    rows = list(csv.DictReader((finished(tmp_path / "runs") / "results.csv").open()))
    assert [row["method"] for row in rows if row["split"] == "test"] == ["aver", "agre_kd"]
    assert list(json.loads(rows[0]["groups"])) == list(pictures.FACES)


def test_data_without_groups_run_from_a_table_to_a_report(tmp_path: Path, agrekd: Run) -> None:
    job = write_job(tmp_path, groupless(tmp_path, "which"))
    code, out, _ = agrekd("run", job)
    assert code == 0
    drawn = "drawn by lot, stratified by group: train 36, val_dfr 4, val 4, test 8"
    assert f"splits: {drawn}" in out
    assert "worst class" in out
    assert "Worst class" in out
    assert "orst group" not in out
    folder = finished(tmp_path / "runs")
    found = json.loads((folder / "results.json").read_text())
    outcomes = {o["method"]: o for o in found["outcomes"]}
    assert set(outcomes) == {"one_hot", "deep_ensemble", "teacher_vote", "aver", "agre_kd"}
    student = outcomes["agre_kd"]["splits"][SELECT]
    assert student["groups_known"] is False
    assert student["worst_group_accuracy"] == student["worst_class_accuracy"]
    code, out, _ = agrekd("report", folder)
    assert code == 0
    page = (folder / "report.html").read_text()
    assert drawn in page
    assert re.search(r"<th[^>]*>\s*Worst class", page)
    assert not re.search(r"<th[^>]*>\s*Worst group", page)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"methods": ["one_hot_dfr"]}, "methods.0 = one_hot_dfr"),
        ({"methods": ["aver", "deep_ensemble_dfr"]}, "methods.1 = deep_ensemble_dfr"),
        ({"ensemble.debiased": 1}, "ensemble.debiased = 1"),
    ],
)
def test_what_needs_group_labels_is_refused_without_them(
    tmp_path: Path,
    agrekd: Run,
    change: dict[str, Any],
    key: str,
) -> None:
    job = write_job(tmp_path, groupless(tmp_path), **change)
    for verb in ("validate", "run"):
        code, _, err = agrekd(verb, job)
        assert code == 2
        assert f"{key}: needs group labels, and the data have none" in err


def test_a_search_by_worst_group_is_refused_without_them(tmp_path: Path, agrekd: Run) -> None:
    write_job(tmp_path, groupless(tmp_path), guidance="auto")
    space = {
        "name": "s",
        "job": "job.yaml",
        "space": {"distillation.temperature": {"uniform": [1, 8]}},
        "trials": 2,
    }
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(space))
    code, _, err = agrekd("validate", path)
    assert code == 2
    assert "select = worst_group: needs group labels" in err
    assert agrekd("validate", path, "select=worst_class")[0] == 0
    code, _, err = agrekd("validate", path, "select=worst_class", "data.size=010")
    assert code == 2
    assert "data.size = 010" in err
    assert "write 10" in err
