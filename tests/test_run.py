"""Whole runs through the command line, as a person types it; killed, and taken up again."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from agrekd_ray.config import Job
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import run_job
from agrekd_ray.experiment.recording import record_job
from agrekd_ray.logits.report import check as check_outputs
from agrekd_ray.models import load
from agrekd_ray.results import TeacherCost

from .conftest import TINY, merged
from .shared import AGREKD, flat_parameters, under_way, until

HEADER = "method,teachers,seed,split,accuracy,worst_group_accuracy,groups"
EVERYTHING = [
    "one_hot",
    "one_hot_dfr",
    "deep_ensemble",
    "deep_ensemble_dfr",
    "teacher_vote",
    "random",
    "aver",
    "ae_kd",
    "ca_mkd",
    "govern",
    "agre_kd",
    "agre_kd_guarded",
]


def write_job(folder: Path, store: Path, **changes: Any) -> Path:
    places = {"runs": folder / "runs", "outputs.store": folder / "outputs", "teachers.store": store}
    values = merged(TINY, {key: str(path) for key, path in places.items()})
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(merged(values, changes)))
    return path


def agrekd(*words: object, code: int = 0) -> str:
    done = subprocess.run([*AGREKD, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open() as file:
        return list(csv.DictReader(file))


def students(run: Path) -> dict[str, torch.Tensor]:
    """Weights of every student that was trained."""
    found = {}
    for folder in sorted((run / "students").iterdir()):
        if (folder / "model.safetensors").exists():
            found[folder.name] = flat_parameters(load(folder)[0])
    return found


def test_a_live_run_from_nothing_to_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(tmp_path, tmp_path / "pool", methods=EVERYTHING)
    screen = agrekd("run", job)
    run = tmp_path / "runs/tiny/latest"
    assert (run / "results.csv").read_text().splitlines()[0] == HEADER
    table = rows(run)
    assert len(table) == 2 * len(EVERYTHING)  # splits
    for row in table:
        groups = json.loads(row["groups"])
        assert float(row["worst_group_accuracy"]) == pytest.approx(min(groups.values()), abs=1e-5)
        assert set(groups) == {"bias-aligned", "bias-conflicting"}
    results = json.loads((run / "results.json").read_text())
    assert len(results["members"]) == 3
    assert results["biased"]["kind"] == "erm"
    taught = next(o for o in results["outcomes"] if o["method"] == "agre_kd")
    assert len(taught["history"]) == 2
    for weights in taught["history"][0]["weights"].values():
        assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    plots = {path.name for path in (run / "plots").iterdir()}
    assert plots - {"fallback_by_group.png"} == {
        "worst_group_by_method.png",
        "training_curves.png",
        "weights_by_group.png",
        "influence_by_group.png",
        "agreement_by_group.png",
        "calibration.png",
    }
    for outcome in results["outcomes"]:
        tested = sum(outcome["splits"]["test"]["counts"].values())
        assert sum(found["count"] for found in outcome["calibration"]) == tested
    for influence in taught["history"][0]["influence_by_group"].values():
        assert sum(influence.values()) == pytest.approx(1, abs=1e-4)
    agreement = results["diagnostics"]["agreement"]["test"]
    assert set(agreement["groups"]) == {"bias-aligned", "bias-conflicting"}
    assert sum(agreement["overall"].values()) - agreement["overall"]["count"] == pytest.approx(1)
    for words in ("AGRE-KD", "Worst group", "mlflow ui", "finished in", "of them     start "):
        assert words in screen
    assert "Warning" not in screen
    assert "WARN" not in screen
    _mlflow_holds_everything(tmp_path / "runs", table, monkeypatch)
    assert "valid" in agrekd("validate", run / "job.yaml")
    before = (run / "results.csv").read_bytes()
    agrekd("resume", run)  # nothing is left to do, and nothing changes
    assert (run / "results.csv").read_bytes() == before


def _mlflow_holds_everything(
    runs: Path, table: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow import MlflowClient

    uri = f"sqlite:///{runs / 'mlflow.db'}"
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert len(children) == len(table) / 2
    assert parent.info.status == "FINISHED"
    assert parent.data.params["distillation.temperature"] == "4.0"
    for child in children:
        assert child.info.status == "FINISHED"
        assert "test/worst_group_accuracy" in child.data.metrics
    student = next(run for run in children if run.data.params["method"] == "agre_kd")
    assert len(client.get_metric_history(student.info.run_id, "val/worst_group_accuracy")) >= 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = mlflow.pyfunc.load_model(f"models:/{student.outputs.model_outputs[0].model_id}")
    logits = model.predict(np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32))
    assert np.asarray(logits).shape == (5, 10)


def test_recorded_up_front_no_run_starts_a_teacher(
    ray_session: Any, tmp_path: Path, make_job: Callable[..., Job]
) -> None:
    """Recording, twice; then runs with nothing to ask of anybody."""
    changes: dict[str, Any] = {
        "methods": ["teacher_vote", "ae_kd", "agre_kd"],
        "data.views": {"flip": True, "count": 2},
        "student.training.epochs": 3,
    }
    with (tmp_path / "screen.txt").open("w+") as file:
        console = Console(file=file, width=160)

        def screen() -> str:
            file.flush()
            text = (tmp_path / "screen.txt").read_text()
            file.truncate(0)
            file.seek(0)
            assert "Warning" not in text
            return text

        def effort(job: Job) -> dict[str, Any]:
            folder = RunFolder.create(job)
            run_job(folder, console)
            found = json.loads((folder.path / "results.json").read_text())["job"]["effort"]
            return dict(found)

        job = make_job(**changes)
        assert record_job(job, console).forwards > 0
        assert "3 teachers, 2 views of 160 samples" in screen()
        assert record_job(job, console).forwards == 0
        assert "no forward pass" in screen()
        assert check_outputs(job.outputs.store, console)
        assert "all sound" in screen()
        first = effort(job)
        assert (first["actors"], first["forwards"]) == (0, 6)  # the vote, on two splits
        assert "recorded" in screen()
        other = {"seeds": [4], "distillation.temperature": 2, "distillation.alpha": 0.9}
        assert effort(make_job(**changes, **other)) == asdict(TeacherCost())
        assert "no forward pass: all that they say had been recorded before" in screen()


@pytest.mark.chaos
@pytest.mark.parametrize("guidance", ["auto", "local"])
def test_a_killed_run_goes_on_to_the_same_students(
    tmp_path: Path, store: Path, guidance: str
) -> None:
    """SIGKILL of the driver in mid-training; `resume`; every parameter as if nothing had been."""
    changes = {
        "methods": ["one_hot", "aver", "agre_kd", "random"],
        "guidance": guidance,
        "student.training.epochs": 12,
        "data.views": {"flip": True},
    }
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    job = write_job(tmp_path / "killed", store, **changes)
    driver = subprocess.Popen([*AGREKD, "run", str(job)], stdout=subprocess.DEVNULL)
    run = tmp_path / "killed/runs/tiny/latest"
    until(lambda: list((run / "students").glob("*/outcome.json")), driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    finished = {path.parent.name for path in (run / "students").glob("*/outcome.json")}
    assert len(finished) < 4
    agrekd("resume", run)
    agrekd("run", write_job(tmp_path / "whole", store, **{**changes, "guidance": "local"}))
    killed, whole = students(run), students(tmp_path / "whole/runs/tiny/latest")
    assert killed.keys() == whole.keys()
    for name, weights in killed.items():
        torch.testing.assert_close(weights, whole[name], rtol=1e-3, atol=5e-5)
    state = json.loads((run / "state.json").read_text())
    assert state["status"] == "finished"


@pytest.mark.chaos
@pytest.mark.parametrize(("guidance", "workers"), [("local", 1), ("auto", 1), ("auto", 2)])
def test_a_run_killed_within_an_epoch_goes_on_from_a_step_of_it(
    tmp_path: Path, store: Path, guidance: str, workers: int
) -> None:
    """Which is its only one: from states after epochs alone it would begin anew."""
    changes = {
        "data.train": 960,
        "student.training": {"epochs": 1, "batch_size": 4, "learning_rate": 0.01},
        "student.workers": workers,
        "data.views": {"flip": True},
    }
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    often = {"guidance": guidance, "student.training.save_every_minutes": 1e-9}
    job = write_job(tmp_path / "killed", store, **changes, **often)
    driver = subprocess.Popen([*AGREKD, "run", str(job)], stdout=subprocess.DEVNULL)
    run = tmp_path / "killed/runs/tiny/latest"
    until(lambda: under_way(run), driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    (said,) = re.findall("aver-seed-0 goes on from (.*) of 1", agrekd("resume", run))
    assert re.fullmatch(r"step \d+ of 240 of epoch 1", said)
    agrekd("run", write_job(tmp_path / "whole", store, **{**changes, "guidance": "local"}))
    killed, whole = students(run), students(tmp_path / "whole/runs/tiny/latest")
    for name, weights in killed.items():
        if guidance == "local":
            assert torch.equal(weights, whole[name])
        torch.testing.assert_close(weights, whole[name], rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize(
    ("number", "guidance"), [(signal.SIGTERM, "local"), (signal.SIGINT, "auto")]
)
def test_an_interrupted_run_says_how_to_go_on(
    usual_signals: None, tmp_path: Path, store: Path, number: int, guidance: str
) -> None:
    fleet = {"fleet.weighting_actors": 2}  # so few samples are recorded without one
    job = write_job(
        tmp_path, store, **{"student.training.epochs": 5000, "guidance": guidance}, **fleet
    )
    driver = subprocess.Popen(
        [*AGREKD, "run", str(job)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    run = tmp_path / "runs/tiny/latest"
    if guidance == "auto":  # what the teachers have cost is known from then on
        assert driver.stdout is not None
        assert any("their actors are released" in line for line in driver.stdout)
    until(lambda: under_way(run), driver)
    driver.send_signal(number)
    screen, _ = driver.communicate()
    assert driver.returncode == 130, screen
    (attempt,) = json.loads((run / "attempts.json").read_text())
    assert attempt["effort"]["forwards"] > 0
    assert f"agrekd resume {run.resolve()}" in screen
    assert "Traceback" not in screen
    assert json.loads((run / "state.json").read_text())["status"] == "interrupted"


def test_a_run_is_not_run_twice_at_once(tmp_path: Path, store: Path) -> None:
    agrekd("run", write_job(tmp_path, store, **{"guidance": "local"}))
    run = tmp_path / "runs/tiny/latest"
    import fcntl

    with (run / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process" in agrekd("resume", run, code=1)


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path, store: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    job = write_job(tmp_path, store)
    screen = agrekd("run", job, f"runs={tmp_path}/file/runs", code=2)
    assert f"{tmp_path}/file is a file, not a folder" in screen
    assert not (tmp_path / "runs").exists()


def test_more_workers_than_the_cluster_has_is_one_error(tmp_path: Path, store: Path) -> None:
    job = write_job(tmp_path, store, **{"student.gpus": 1, "methods": ["one_hot"]})
    assert "no node has room for it: 1 CPU, 1 GPU wanted" in agrekd("run", job, code=1)


def test_a_tracking_server_that_is_away_is_said_at_once(tmp_path: Path, store: Path) -> None:
    job = write_job(tmp_path, store, **{"tracking.uri": "http://127.0.0.1:9"})
    assert "127.0.0.1:9" in agrekd("run", job, code=1)
