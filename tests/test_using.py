"""Finished students in use: predictions for files, and exported programs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mlflow import MlflowClient
from pydantic import TypeAdapter
from safetensors.torch import load_file

import agrekd_ray as ak
from agrekd_ray.commands.export import export
from agrekd_ray.commands.predict import predict
from agrekd_ray.config import Job
from agrekd_ray.data import TEST, DataSettings, open_dataset
from agrekd_ray.data.dataset import Dataset
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import run_job
from agrekd_ray.models import Manifest, Model, build, save
from agrekd_ray.terminal import screen
from agrekd_ray.trained import TrainedStudent, open_student

from .conftest import Run
from .pictures import small, table
from .texts import text_table


@pytest.fixture
def pictures(tmp_path: Path, make_job: Any) -> Job:
    """A job on a table of tiny pictures."""
    data = small(
        "table", tmp_path / "prepared", table=str(table(tmp_path / "animals") / "table.csv")
    )
    small_batches = {f"{who}.training.batch_size": 8 for who in ("teachers", "student")}
    return make_job(data=data, **{"ensemble.debiased": 0, **small_batches})


@pytest.fixture
def mails(tmp_path: Path, make_job: Any) -> tuple[Path, Dataset]:
    """The folder of a student that reads texts, and its data."""
    pytest.importorskip("transformers")
    from .texts import TINY

    data = TypeAdapter(DataSettings).validate_python(text_table(tmp_path))
    model = Model(name="transformers/distilbert", args=TINY["distilbert"])
    return student_of(make_job().model_copy(update={"data": data}), model)


def student_of(job: Job, model: Model | None = None) -> tuple[Path, Dataset]:
    """The folder of a student in a run of the job, and the job's data."""
    data = open_dataset(job.data)
    model = model or Model(name="cnn", args={"width": 4})
    folder = RunFolder.create(job).students / "agre_kd-seed-0"
    manifest = Manifest(model, data.shape, data.classes, "f", data.fingerprint)
    save(folder, build(model, data.shape, len(data.classes), 3), manifest)
    return folder, data


def seen_in_evaluation(folder: Path, data: Dataset, ids: np.ndarray) -> np.ndarray:
    """Probabilities as the run's evaluation finds them, [N, C]."""
    with torch.inference_mode():
        return open_student(folder).model(data.inputs(ids, None)).softmax(1).numpy()


def test_pictures_are_predicted_as_the_run_evaluates_them(
    pictures: Job, tmp_path: Path, agrekd: Run
) -> None:
    folder, data = student_of(pictures)
    ids = data.splits[TEST]
    expected = seen_in_evaluation(folder, data, ids)
    out = tmp_path / "out.csv"
    files = [tmp_path / f"animals/{number}.jpg" for number in ids]
    code, said, _ = agrekd("predict", folder, *files, "-o", out)
    assert (code, said.startswith(f"{out}: {len(ids)} samples: ")) == (0, True)
    found = pd.read_csv(out)
    assert list(found) == ["path", "class", "probability_cat", "probability_dog"]
    assert list(found.path) == list(map(str, files))
    np.testing.assert_allclose(found.iloc[:, 2:], expected, atol=1e-6)
    assert list(found["class"]) == [data.classes[number] for number in expected.argmax(1)]

    code, said, _ = agrekd("predict", folder, tmp_path / "animals")
    rows = {row["path"]: row for row in csv.DictReader(said.splitlines())}
    assert (code, len(rows)) == (0, data.size)
    assert {row["path"] for row in rows.values()} >= set(map(str, files))
    assert rows[str(files[0])]["class"] == found["class"][0]


def test_predictions_show_their_progress_on_a_terminal_alone(
    pictures: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = student_of(pictures)

    def shown(output: Path | None, *, terminal: bool) -> str:
        seen = io.StringIO()
        console = screen(file=seen, force_terminal=terminal, width=100)
        predict(folder, [tmp_path / "animals"], output, None, None, None, console)
        return seen.getvalue()

    assert f"{data.size}/{data.size}" in shown(tmp_path / "out.csv", terminal=True)
    assert shown(tmp_path / "out.csv", terminal=False) == ""
    capsys.readouterr()
    assert shown(None, terminal=True) == ""
    assert len(capsys.readouterr().out.splitlines()) == 1 + data.size
    told: list[tuple[int, int]] = []
    files = [tmp_path / "animals/0.jpg", tmp_path / "animals/1.jpg"]
    open_student(folder).predict_files(*files, progress=lambda *counts: told.append(counts))
    assert told[-1] == (2, 2)


def test_a_table_is_predicted_by_row(pictures: Job, tmp_path: Path) -> None:
    folder, data = student_of(pictures)
    expected = seen_in_evaluation(folder, data, np.arange(data.size))
    student = ak.open_student(folder)
    found = student.predict_files(tmp_path / "animals/table.csv")
    assert list(found.path) == [f"{number}.jpg" for number in range(data.size)]
    np.testing.assert_allclose(found.iloc[:, 2:], expected, atol=1e-6)
    held = [(tmp_path / f"animals/{number}.jpg").read_bytes() for number in (3, 1)]
    pq.write_table(pa.table({"seen": held}), tmp_path / "held.parquet")
    found = student.predict_files(tmp_path / "held.parquet", column="seen")
    assert list(found.row) == [1, 2]
    np.testing.assert_allclose(found.iloc[:, 2:], expected[[3, 1]], atol=1e-6)
    (tmp_path / "named.csv").write_text("file\n2.jpg\n")
    found = student.predict_files(
        tmp_path / "named.csv", column="file", images=tmp_path / "animals"
    )
    np.testing.assert_allclose(found.iloc[:, 2:], expected[[2]], atol=1e-6)


def test_texts_are_predicted_with_the_tokenizer_of_the_data(
    mails: tuple[Path, Dataset], tmp_path: Path
) -> None:
    folder, data = mails
    found = open_student(folder).predict_files(tmp_path / "mails.csv")
    expected = seen_in_evaluation(folder, data, np.arange(data.size))
    assert list(found.row) == list(range(1, data.size + 1))
    np.testing.assert_allclose(found.iloc[:, 2:], expected, atol=1e-6)


def test_what_cannot_be_predicted_is_said_in_a_line(
    pictures: Job, tmp_path: Path, agrekd: Run, make_job: Any
) -> None:
    folder, _ = student_of(pictures)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    lone = tmp_path / "lone"
    save(lone, open_student(folder).model, open_student(folder).manifest)
    (tmp_path / "none").mkdir()
    for words, said in [
        ((tmp_path / "nobody", broken), f"{tmp_path / 'nobody'}: no checkpoint there"),
        ((folder.parent.parent, broken), "a run; name one of its students in students/: agre_kd-"),
        ((folder, broken), f"{broken}: broken image"),
        ((folder, tmp_path / "gone.jpg"), f"no file '{tmp_path / 'gone.jpg'}'"),
        ((folder, tmp_path / "none"), "none: no picture in this folder"),
        ((folder, tmp_path / "animals/table.csv", "--column", "file"), "no column 'file'"),
        ((folder, tmp_path / "animals/table.csv", broken), f"{broken}: give one table"),
        ((lone, broken), "name the job that it was made by (--job JOB"),
        ((lone, broken, "--job", tmp_path), f"{tmp_path}: no run there"),
    ]:
        code, out, err = agrekd("predict", *words)
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert said in err
    good = tmp_path / "animals/0.jpg"
    of_run = agrekd("predict", lone, good, "--job", folder.parent.parent)
    assert of_run == agrekd("predict", folder, good)
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(pictures.model_dump(mode="json")))
    assert agrekd("predict", lone, good, "--job", file) == of_run

    grey = Manifest(Model(name="cnn"), (1, 8, 8), ("a", "b"), "f", "d")
    student = TrainedStudent(build(grey.model, grey.shape, 2, 0), grey, make_job().data)
    with pytest.raises(ak.AgrekdError, match=r"samples of \[1, 8, 8\] are not made from files"):
        student.predict_files(good)


def test_an_exported_program_says_what_the_student_says(
    pictures: Job, tmp_path: Path, agrekd: Run
) -> None:
    preprocess = {"size": 12, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}
    model = Model(name="cnn", args={"width": 4}, preprocess=preprocess)
    folder, data = student_of(pictures, model)
    file = tmp_path / "out/student.pt2"
    card = file.with_suffix(".md")
    assert agrekd("export", folder, "--to", "torch", "-o", file) == (0, f"{file}\n{card}\n", "")
    assert "Nothing is known of how well it does" in card.read_text()
    about = {"about.json": ""}
    program = torch.export.load(file, extra_files=about).module()
    student = open_student(folder)
    for count in (1, 5):
        samples = data.inputs(np.arange(count), None)
        with torch.inference_mode():
            torch.testing.assert_close(program(samples), student.model(samples))
    described = json.loads(about["about.json"])
    assert (described["classes"], described["shape"]) == (["cat", "dog"], [3, 8, 8])
    assert described["data"]["resize"] == 10


def test_exported_weights_are_the_students(pictures: Job, tmp_path: Path, agrekd: Run) -> None:
    folder, _ = student_of(pictures)
    code, said, _ = agrekd("export", folder, "--to", "safetensors", "-o", tmp_path / "student")
    file, beside, _ = map(Path, said.splitlines())
    assert (code, file.name, beside.name) == (0, "student.safetensors", "student.json")
    described, weights = json.loads(beside.read_text()), load_file(file)
    rebuilt = build(Model(**described["model"]), tuple(described["shape"]), 2)
    rebuilt.load_state_dict(weights)
    samples = torch.rand(3, 3, 8, 8)
    with torch.inference_mode():
        expected = open_student(folder).model(samples)
        torch.testing.assert_close(rebuilt.eval()(samples), expected)


def test_an_exported_text_student_reads_token_ids(
    mails: tuple[Path, Dataset], tmp_path: Path
) -> None:
    folder, data = mails
    student = open_student(folder)
    file, _ = export(student, "torch", tmp_path / "mails")
    program, samples = torch.export.load(file).module(), data.inputs(np.arange(7), None)
    with torch.inference_mode():
        torch.testing.assert_close(program(samples), student.model(samples), rtol=1e-4, atol=1e-5)


def test_an_onnx_file_says_what_the_student_says(pictures: Job, tmp_path: Path) -> None:
    for needed in ("onnx", "onnxscript"):
        pytest.importorskip(needed)
    runtime = pytest.importorskip("onnxruntime")
    folder, data = student_of(pictures)
    student = open_student(folder)
    file, *_ = export(student, "onnx", tmp_path / "student")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        samples = data.inputs(np.arange(count), None)
        (logits,) = session.run(None, {"samples": samples.numpy()})
        with torch.inference_mode():
            expected = student.model(samples)
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-4)


def test_a_student_has_a_card_and_a_name_in_mlflow(
    make_job: Any, agrekd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(guidance="local", methods=["agre_kd"], **{"tracking.models": False})
    run_job(RunFolder.create(job), screen(quiet=True))
    run = ak.load(job.runs / "tiny/latest")
    assert isinstance(run, ak.Run)
    folder = run.path / "students/agre_kd-seed-0"
    assert agrekd("export", folder, "--register", "digits") == (0, "models:/digits/1\n", "")
    words = ("export", folder, "--register", "digits", "--alias", "best")
    assert agrekd(*words) == (0, "models:/digits@best\n", "")  # the same version

    uri = f"sqlite:///{job.runs}/mlflow.db"
    card = MlflowClient(uri).get_model_version_by_alias("digits", "best").description
    (tested,) = [o.splits[TEST] for outcomes in run.outcomes.values() for o in outcomes]
    group = min(tested.groups, key=lambda name: tested.groups[name])
    worst = f"but in {100 * tested.groups[group]:.1f} % of the group {group}."
    assert card.startswith("# digits\n")
    for part in (
        "by AGRE-KD, seed 0",
        "- train: 160",
        worst,
        "| bias-aligned |",
        "erm-0",
        "## Limits",
    ):
        assert part in card
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    samples = run.student("agre_kd").inputs(torch.rand(3, 3, 8, 8)).numpy()
    with torch.inference_mode():
        expected = run.student("agre_kd").model(torch.from_numpy(samples)).numpy()
    found = mlflow.pyfunc.load_model("models:/digits@best").predict(samples)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_exported_is_said_in_a_line(
    pictures: Job, tmp_path: Path, agrekd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = student_of(pictures)
    monkeypatch.setattr("agrekd_ray.commands.export._NEEDED", ("no_such_module", "torch"))
    (tmp_path / "file").write_text("")
    for words, said in [
        ((tmp_path, "--to", "torch"), f"{tmp_path}: no checkpoint there"),
        ((folder, "--to", "onxx"), "--to onxx: no such kind of file. Did you mean onnx?"),
        (
            (folder, "--to", "onnx"),
            "--to onnx needs no_such_module: pip install 'agrekd_ray[export]'",
        ),
        ((folder, "--to", "torch", "-o", tmp_path / "file/out.pt2"), "cannot be written"),
        ((folder, "--register", "pets"), "this student's run is not in MLflow"),
    ]:
        code, out, err = agrekd("export", *words)
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert said in err
