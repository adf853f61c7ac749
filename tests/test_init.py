"""From nothing to a job (`agrekd init`), and the list of what was run (`agrekd runs`)."""

from __future__ import annotations

import csv
import fcntl
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agrekd_ray.cli import app
from agrekd_ray.commands.init import init
from agrekd_ray.commands.runs import found_runs, show_runs
from agrekd_ray.config import load_job
from agrekd_ray.errors import AgrekdError
from agrekd_ray.experiment.folder import RunFolder

from .pictures import picture, spread, table
from .texts import mails, word_tokenizer


def written(source: Path, output: Path, **given: Any) -> tuple[Any, str]:
    """The job that is written, loaded, and what was said."""
    console, groups = Console(file=io.StringIO(), width=200), given.get("groups", ())
    init(source, output, given.get("label"), groups, given.get("tokenizer"), console)
    return load_job(output), console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_table_of_pictures_becomes_a_job(tmp_path: Path) -> None:
    folder = table(tmp_path / "animals", spread((12, 8, 4)), groups=True)
    job, said = written(folder / "table.csv", tmp_path / "job.yaml")
    assert job.name == "table"
    assert (job.data.columns.label, job.data.columns.groups) == ("label", ("sky",))
    assert (job.data.size, job.data.resize) == (16, 16)  # the pictures are 20 × 16
    assert job.student.model.name == "cnn"
    assert (job.ensemble.debiased, "one_hot_dfr" in job.methods) == (2, True)
    assert "'cat', 'dog'" in said
    assert "enlarged" not in said
    text = (tmp_path / "job.yaml").read_text()
    assert text.startswith(f"# agrekd run {tmp_path / 'job.yaml'}\n")
    assert text.count("\n# ") > 6
    with pytest.raises(AgrekdError, match="is there already; choose another file with -o"):
        written(folder / "table.csv", tmp_path / "job.yaml")


def test_a_written_job_passes_validate_and_data_check(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    table(tmp_path / "animals", spread((12, 8, 4)), groups=True)
    for words in (["init", "animals"], ["validate", "job.yaml"], ["data", "check", "job.yaml"]):
        ended = CliRunner().invoke(app, words)
        assert ended.exit_code == 0, (ended.output, ended.exception)
    assert "all sound" in ended.output


@pytest.mark.parametrize("splits", [(), ("Train", "valid", "test")])
def test_a_folder_of_classes_becomes_a_job_and_a_table(
    tmp_path: Path, splits: Sequence[str]
) -> None:
    for number in range(24):
        label = number % 2
        folder = tmp_path / "own" / (splits[number // 2 % 3] if splits else "") / "ab"[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(picture(number, label, 0, (300, 280), "PNG"))
    job, _ = written(tmp_path / "own", tmp_path / "jobs.yaml")
    rows = list(csv.reader((tmp_path / "jobs.csv").open()))
    assert rows[0] == ["path", "label", "split"][: 3 if splits else 2]
    assert len(rows) == 25
    assert {row[1] for row in rows[1:]} == {"a", "b"}
    assert (job.data.size, job.data.resize) == (224, 256)
    assert job.student.model.name == "torchvision/resnet18"
    assert (job.ensemble.by_kind, "one_hot_dfr" in job.methods) == ({"afr": 2}, False)
    assert "# retrained on what the biased models get wrong (AFR);" in Path("jobs.yaml").read_text()


def test_a_table_of_texts_becomes_a_job(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    mails(tmp_path / "mails.csv")
    with pytest.raises(AgrekdError, match="texts in 'text' need a tokenizer"):
        written(tmp_path / "mails.csv", tmp_path / "job.yaml")
    tokenizer = str(word_tokenizer(tmp_path / "tokenizer"))
    job, _ = written(tmp_path / "mails.csv", tmp_path / "job.yaml", tokenizer=tokenizer)
    assert (job.data.name, job.data.columns.text) == ("text_table", "text")
    assert job.student.training.optimizer == "adamw"


def test_pictures_smaller_than_most_are_said(tmp_path: Path) -> None:
    folder = table(tmp_path / "animals", spread((12, 8, 4)))
    (folder / "3.jpg").write_bytes(picture(3, 0, 0, (20, 12)))
    _, said = written(folder / "table.csv", tmp_path / "job.yaml")
    assert "pictures 1 of 96 that were looked at are enlarged to 16 pixels" in said


def test_what_a_column_is_can_be_said(tmp_path: Path) -> None:
    folder = table(tmp_path / "animals", spread((12, 8, 4)), groups=True)
    text = (folder / "table.csv").read_text().replace("path,label,split,sky", "path,one,split,two")
    (folder / "table.csv").write_text(text)
    with pytest.raises(AgrekdError, match=r"which column is the class\? There are 'path', 'one'"):
        written(folder, tmp_path / "job.yaml")
    job, _ = written(folder, tmp_path / "job.yaml", label="two", groups=["one"])
    assert (job.data.columns.label, job.data.columns.groups) == ("two", ("one",))


def test_pictures_without_a_class_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/0.png").write_bytes(picture(0, 0, 0, encoding="PNG"))
    with pytest.raises(AgrekdError, match=r"0\.png: is in no folder of a class"):
        written(tmp_path / "own", tmp_path / "job.yaml")
    assert not list(tmp_path.glob("job.*"))


def test_runs_are_listed_the_newest_first(tmp_path: Path, make_job: Any) -> None:
    folders = []
    for day, alpha in ((1, 1.0), (2, 0.5), (3, 0.5)):
        folder = RunFolder.create(make_job(**{"distillation.alpha": alpha}))
        place = folder.path.with_name(f"2026010{day}-120000-0000")
        folders.append(RunFolder(folder.path.rename(place), folder.job))
    folders[0].finish()
    folders[1].ended_by(ValueError("no room"))
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    with (folders[2].path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        show_runs(tmp_path / "runs", console)
    entries = shown.getvalue().split("\n2026")
    assert ["job, " + entry.partition("job, ")[2].split()[0] for entry in entries] == [
        "job, running",
        "job, failed",
        "job, finished",
    ]
    assert ["alpha=" in entry for entry in entries] == [True] * 3
    assert "alpha=1" in entries[2]
    assert "no room" in entries[1]
    assert {run.status for run in found_runs(tmp_path / "runs")} == {
        "killed",
        "failed",
        "finished",
    }
    with pytest.raises(AgrekdError, match="nowhere: no run there"):
        show_runs(tmp_path / "nowhere", console)
