"""The command line as a person types it: exit codes, messages, and what a run leaves behind."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

import agrekd_ray as ak
from agrekd_ray import __version__
from agrekd_ray.config import load_job
from agrekd_ray.models import Manifest, Model, build, save

from .conftest import TINY, Run, merged


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The file of a job that a second or two are enough for."""
    changes = {
        "data.train": 128,
        "data.val": 160,
        "teachers.count": 2,
        "teachers.training.epochs": 1,
        "teachers.dfr": {"inverse_penalties": [0.1], "retrainings": 1},
        "teachers.store": str(tmp_path / "pool"),
        "ensemble.size": 2,
        "ensemble.debiased": 1,
        "student.training.epochs": 1,
        "methods": ["one_hot", "aver", "agre_kd"],
        "seeds": [0],
        "guidance": "local",
        "runs": str(tmp_path / "runs"),
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(merged(TINY, changes)))
    return path


def test_a_valid_job(agrekd: Run, job: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, err = agrekd("validate", job)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{job}: valid (3 methods × 1 seeds)",
        "  data: a single sample of '0, bias-conflicting' in val_dfr: DFR balances its groups by "
        "the smallest, so it retrains on one sample of each",
        "  ensemble: the biased model is a teacher, too, whom agre_kd then gives no weight; "
        "teachers.count: 3 would draw another",
    ]
    sound = ("data.val=400", "teachers.count=3")
    assert agrekd("validate", job, *sound)[1] == f"{job}: valid (3 methods × 1 seeds)\n"
    code, out, _ = agrekd("validate", job, "methods=[aver]", "seeds=[1,2]")
    assert (code, "(1 methods × 2 seeds)" in out) == (0, True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", ["validate", "run"])
def test_faults_are_shown_together_and_nothing_starts(
    agrekd: Run, job: Path, tmp_path: Path, verb: str
) -> None:
    words = ("distillation.alpha=2", "methods=[avre]", "nonsens=1", "data.[x]=1")
    code, _, err = agrekd(verb, job, *words[:3])
    assert code == 2
    assert err.startswith(f"error: {job}: 3 faults\n")
    assert "distillation.alpha = 2:" in err
    assert "Did you mean aver?" in err
    assert "nonsens = 1: unknown key" in err
    assert len(err.splitlines()) == 4
    code, _, err = agrekd(verb, job, words[3])
    assert code == 2
    assert "data.[x]=1: an override is written key.path=value" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", ["validate", "run"])
def test_a_missing_job(agrekd: Run, job: Path, verb: str) -> None:
    code, out, err = agrekd(verb, job.with_name("tinny.yaml"))
    assert (code, out) == (2, "")
    assert "No such file" in err
    assert "Did you mean tiny.yaml?" in err


def test_help_and_version(agrekd: Run) -> None:
    code, out, _ = agrekd("--help")
    assert code == 0
    verbs = ("run", "resume", "record", "tune", "compare", "report", "validate", "outputs", "bench")
    verbs += ("init", "runs", "predict", "export", "keys")
    for verb in verbs:
        assert f" {verb} " in out
        assert agrekd(verb, "--help")[0] == 0
    assert agrekd("--version")[:2] == (0, f"agrekd {__version__}\n")


@pytest.mark.parametrize("words", [["bogus"], ["run"], ["resume"], ["validate", "--x", "y"]])
def test_wrong_usage(agrekd: Run, words: list[str]) -> None:
    code, _, err = agrekd(*words)
    assert code == 2
    assert "Usage: " in err


def test_an_override_that_changes_nothing_is_refused(agrekd: Run, job: Path) -> None:
    code, _, err = agrekd("validate", job, "student.training={}")
    assert (code, "student.training = {}: changes nothing, for blocks are merged" in err) == (
        2,
        True,
    )
    assert agrekd("validate", job, "distillation.sample_weighting={}")[0] == 0


def test_a_run_is_found_again_by_its_changes_tags_and_note(
    agrekd: Run, job: Path, tmp_path: Path
) -> None:
    code, _, err = agrekd("run", job, "methods=[aver]", "--tag", "no value")
    assert (code, "a tag is written NAME=VALUE" in err) == (2, True)
    assert not (tmp_path / "runs").exists()
    words = ("methods=[aver]", "student.training.epochs=2", f"runs={tmp_path / 'runs'}")
    words = (*words, "--tag", "team=vision", "--note", "two epochs")
    code, _, err = agrekd("run", job, *words)
    assert code == 0, err
    assert "two epochs · team=vision" in agrekd("runs", tmp_path / "runs")[1]

    store = ("--runs", tmp_path / "runs")
    code, out, err = agrekd("compare", tmp_path / "runs/tiny/latest", *store)
    assert (code, "AVER" in out) == (0, True), err
    assert agrekd("compare", tmp_path / "runs/tiny", *store)[0] == 1  # no run's folder, nor an id

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    student, parent = client.search_runs([experiment.experiment_id])
    assert agrekd("report", parent.info.run_id, *store)[0] == 0
    assert parent.info.run_name.startswith("methods=[aver] epochs=2 tiny 20")
    assert parent.data.tags["mlflow.note.content"].startswith("two epochs\n\n")
    assert {run.data.tags["team"] for run in (student, parent)} == {"vision"}
    assert {"data.aligned", "teachers.count", "ensemble.size"} <= set(student.data.params)
    run = ak.load(tmp_path / "runs/tiny/latest")
    assert isinstance(run, ak.Run)
    (outcome,) = [outcome for outcomes in run.outcomes.values() for outcome in outcomes]
    trained = sum(epoch.seconds for epoch in outcome.history)
    lasted = (student.info.end_time - student.info.start_time) / 1000
    assert lasted == pytest.approx(trained, abs=0.002)


def test_resume_of_a_folder_that_is_no_run(agrekd: Run, job: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", tmp_path, job):
        code, _, err = agrekd("resume", place)
        assert code == 1
        assert err.startswith(f"error: {place}: no run there")
        assert "runs/JOB/latest" in err


def test_report_and_compare_of_nothing_are_one_error(agrekd: Run, tmp_path: Path) -> None:
    code, _, err = agrekd("report", tmp_path)
    assert (code, err.startswith(f"error: {tmp_path}")) == (1, True)
    code, _, err = agrekd("compare", "--runs", tmp_path)
    assert code == 1
    assert "mlflow.db" in err
    assert list(tmp_path.iterdir()) == []


def test_resume_of_a_damaged_job(agrekd: Run, job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "job.yaml").write_text("name: [")
    code, _, err = agrekd("resume", folder)
    assert code == 1
    assert err == f"error: {folder / 'job.yaml'}: damaged; start the job anew.\n"
    (folder / "job.yaml").write_text(job.read_text().replace("colored_digits", "colored_digit"))
    code, _, err = agrekd("resume", folder)
    assert code == 2
    assert "Did you mean colored_digits?" in err
    assert [path.name for path in folder.iterdir()] == ["job.yaml"]


def test_a_teacher_of_other_classes(agrekd: Run, job: Path, tmp_path: Path) -> None:
    model, classes = Model(name="cnn", args={"width": 2}), ("cat", "dog")
    save(
        tmp_path / "mine", build(model, (3, 8, 8), 2), Manifest(model, (3, 8, 8), classes, "f", "d")
    )
    code, _, err = agrekd("run", job, f"ensemble.checkpoints=[{tmp_path / 'mine'}]")
    assert code == 2
    assert "ensemble.checkpoints.0" in err
    assert "cat, dog" in err
    assert not (tmp_path / "runs").exists()


class _Payload:
    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> Any:
        return Path.mkdir, (Path(self.proof),)


def test_a_pickled_teacher_is_never_loaded(agrekd: Run, job: Path, tmp_path: Path) -> None:
    pickled = pickle.dumps(_Payload(tmp_path / "proof"))
    for name in ("teacher.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(pickled)
        for key in ("ensemble.checkpoints=[{}]", "ensemble.biased={}"):
            code, _, err = agrekd("run", job, key.format(tmp_path / name))
            assert code == 2
            assert "never loaded" in err
    assert not (tmp_path / "proof").exists()
    pickle.loads(pickled)  # and the payload would have run
    assert (tmp_path / "proof").exists()


def test_a_folder_that_cannot_be_written(agrekd: Run, job: Path, tmp_path: Path) -> None:
    code, _, err = agrekd("run", job, f"runs={job}/deeper", "teachers.store=/proc/x")
    assert code == 2
    assert f"runs = {job}/deeper: {job} is a file" in err
    assert "teachers.store = /proc/x: /proc cannot be written" in err
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").write_text("in the way")
    code, _, err = agrekd("run", job)
    assert code == 1
    assert "cannot write the run's folder" in err


def _times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_run_from_start_to_finish_and_a_second_one(
    agrekd: Run, job: Path, tmp_path: Path
) -> None:
    code, out, err = agrekd("run", job)
    assert code == 0, err
    for shown in ("One-hot", "AVER", "AGRE-KD", "Worst group", "results", "mlflow ui"):
        assert shown in out
    latest = tmp_path / "runs" / "tiny" / "latest"
    assert latest.is_symlink()
    assert latest.resolve().parent == latest.parent
    with (latest / "results.csv").open() as file:
        rows = list(csv.reader(file))
    assert ",".join(rows[0]) == "method,teachers,seed,split,accuracy,worst_group_accuracy,groups"
    methods = ["one_hot", "aver", "agre_kd"]
    assert [(row[0], row[3]) for row in rows[1:]] == [
        (method, split) for method in methods for split in ("val", "test")
    ]
    for row in rows[1:]:
        groups = json.loads(row[6])
        assert float(row[5]) == pytest.approx(min(groups.values()), abs=1e-5)
    assert isinstance(json.loads((latest / "results.json").read_text()), dict)
    plots = [path for path in (latest / "plots").iterdir() if path.suffix == ".png"]
    assert {path.stem for path in plots} == {
        "worst_group_by_method",
        "training_curves",
        "weights_by_group",
        "influence_by_group",
        "agreement_by_group",
        "calibration",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)
    assert load_job(latest / "job.yaml") == load_job(job)
    assert json.loads((latest / "state.json").read_text())["status"] == "finished"

    pool = tmp_path / "pool"
    before = _times(pool)
    assert len(list(pool.iterdir())) >= 2
    first = latest.resolve()
    kept = _times(first)
    code, out, err = agrekd("run", job, "methods=[aver]", "distillation.temperature=2")
    assert code == 0, err
    assert _times(pool) == before
    assert "teachers" not in "".join(line for line in out.splitlines() if "epochs" in line)
    assert latest.resolve() != first
    assert _times(first) == kept
    code, out, err = agrekd("report", first)
    assert (code, out) == (0, f"{first / 'report.html'}\n"), err
    page = (first / "report.html").read_text()
    for shown in ("AGRE-KD", "data:image/png;base64,", "bias-conflicting"):
        assert shown in page
    table = tmp_path / "table.csv"
    code, out, err = agrekd("compare", "--runs", tmp_path / "runs", "--csv", table)
    assert code == 0, err
    assert "AGRE-KD" in out
    with table.open() as file:  # two temperatures of AVER, which was run twice
        assert len(list(csv.DictReader(file))) == 4
    code, out, err = agrekd("resume", first)  # nothing is left to do: the table again
    assert code == 0, err
    assert "AGRE-KD" in out
    assert _times(first / "students") == {
        path: time for path, time in kept.items() if f"{first}/students/" in path
    }


def test_outputs_are_listed_verified_and_pruned(agrekd: Run, tmp_path: Path) -> None:
    from agrekd_ray.logits import Key, write_record
    from agrekd_ray.logits.cache import MANIFEST

    store = tmp_path / "outputs"
    key = Key("erm-7-abc", "w", {"name": "cnn"}, "d", "v", "none", "float32", 50, 10)
    path = store / key.folder / "view-00000.arrow"
    path.parent.mkdir(parents=True)
    (path.parent / MANIFEST).write_text(json.dumps(vars(key)))
    write_record(path, key, np.ones((50, 10), np.float32))
    code, out, _ = agrekd("outputs", "list", "--store", store)
    assert code == 0
    assert "erm-7-abc" in out
    assert "train 1 × 50" in out
    assert agrekd("outputs", "verify", "--store", store)[:2] == (0, "1 records: all sound\n")
    path.write_bytes(path.read_bytes()[:-100])
    code, out, _ = agrekd("outputs", "verify", "--store", store)
    assert code == 1
    assert f"damaged: {path}" in out
    code, out, _ = agrekd("outputs", "prune", "--store", store, "--days", 0, "--dry-run")
    assert (code, "would free" in out, path.exists()) == (0, True, True)
    code, out, _ = agrekd("outputs", "prune", "--store", store, "--days", 0)
    assert (code, "freed" in out, path.exists()) == (0, True, False)
    for verb in ("list", "verify", "prune"):
        code, _, err = agrekd("outputs", verb, "--store", tmp_path / "nowhere")
        assert (code, "no folder of recorded outputs" in err) == (1, True)


def test_nothing_to_record_is_one_error(agrekd: Run, job: Path) -> None:
    code, _, err = agrekd("record", job, "methods=[one_hot]")
    assert (code, "nothing to record" in err) == (1, True)
    code, _, err = agrekd("record", job)  # this job is local
    assert (code, "set guidance=auto" in err) == (1, True)


def test_bench_names_what_it_does_not_know(agrekd: Run, tmp_path: Path) -> None:
    code, _, err = agrekd("bench", "resnets")
    assert (code, "known: small, latency, resnet, data, gpu, plan, search" in err) == (1, True)
    assert "not quick" in agrekd("bench", "resnet", "--quick")[2]
    code, _, err = agrekd("bench", "--json", tmp_path / "no/file.json")
    assert (code, "nothing was measured" in err) == (1, True)


def test_a_fault_of_rays_is_one_line_and_one_of_ours_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray.exceptions import OutOfMemoryError

    from agrekd_ray import cli

    def short_of_memory() -> None:
        raise OutOfMemoryError("6 worker(s) were killed: low on memory\nEviction stats:\n0")

    monkeypatch.setattr(cli, "app", short_of_memory)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "error: Ray failed: 6 worker(s) were killed: low on memory. "
        "Run fewer processes at once, or on nodes with more memory.\n"
    )
    monkeypatch.setattr(cli, "app", lambda: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        cli.main()
