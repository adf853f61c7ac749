"""Runs that are refused, and what `resume` may change of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import agrekd_ray as ak
from agrekd_ray.config import JobError
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.folder import Folder, RunFolder
from agrekd_ray.search.folder import SearchFolder

from .conftest import Run
from .test_run import write_job
from .test_search_space import planned

NOBODY = "127.0.0.1:1"
"""An address where no cluster answers."""


def test_a_run_that_was_refused_is_not_the_latest_and_goes_on_as_is_advised(
    tmp_path: Path, store: Path, agrekd: Run
) -> None:
    few = {"student.training.epochs": 1, "methods": ["one_hot"], "tracking.models": False}
    job = write_job(tmp_path, store, **few)
    runs = tmp_path / "runs" / "tiny"
    code, _, err = agrekd("run", job, f"ray.address={NOBODY}")
    (refused,) = runs.glob("2*")
    assert code == 1
    assert "no Ray cluster answers there" in err
    assert f"agrekd resume {refused}\n" in err
    assert not (runs / "latest").is_symlink()
    code, _, err = agrekd("report", refused)
    assert code == 1
    assert f"{refused}: failed (ray.address = {NOBODY}: no Ray cluster answers there" in err
    # One that comes to its end is the latest, and stays so where another is refused.
    assert agrekd("run", job, "guidance=local")[0] == 0
    latest = (runs / "latest").resolve()
    assert latest != refused
    assert agrekd("run", job, f"ray.address={NOBODY}")[0] == 1
    assert agrekd("resume", refused)[0] == 1
    assert (runs / "latest").resolve() == latest
    (second,) = set(runs.glob("2*")) - {refused, latest}
    # With nothing made, everything may change.
    changes = ("ray.address=null", "guidance=local", "seeds=[1]")
    assert agrekd("resume", second, *changes)[0] == 0
    assert (runs / "latest").resolve() == second
    assert [path.name for path in (second / "students").iterdir()] == ["one_hot-seed-1"]
    assert yaml.safe_load((second / "job.yaml").read_text())["seeds"] == [1]
    run = ak.resume(refused, {"ray.address": None, "guidance": "local"})
    assert set(run.table["method"]) == {"one_hot"}
    assert (runs / "latest").resolve() == second, "one that is newer"


def test_resume_changes_nothing_of_what_a_run_has_made(make_job: Any) -> None:
    folder = RunFolder.create(make_job(seeds=[0, 1]))
    (folder.path / "students" / "aver-seed-0").mkdir(parents=True)
    before = (folder.path / "job.yaml").read_text()
    refused = (
        "seeds=[0]",
        "distillation.alpha=0.5",
        "student.workers=2",
        "fleet.precision=float32",
    )
    for change in (*refused, "name=other", "runs=elsewhere", "fleet=1"):
        with pytest.raises(JobError, match="would change what this run has made") as caught:
            RunFolder.open(folder.path, [change, "student.cpus=2"])
        assert [fault.key for fault in caught.value.faults] == [change.partition("=")[0]]
    with pytest.raises(JobError, match="an override is written key"):
        RunFolder.open(folder.path, ["student.cpus"])
    with pytest.raises(JobError, match=r"student\.cpus = -1"):
        RunFolder.open(folder.path, ["student.cpus=-1"])
    assert (folder.path / "job.yaml").read_text() == before
    places = ["student.cpus=2", "fleet.patience=9", "fleet.labels.zone=b", "ray.address=host:1"]
    places += [f"{block}.training.save_every_minutes=2" for block in ("student", "teachers")]
    job = RunFolder.open(folder.path, places).job
    assert (job.student.cpus, job.fleet.patience, job.fleet.labels) == (2, 9, {"zone": "b"})
    assert RunFolder.open(folder.path).job == job, "it stays changed"
    assert job.seeds == (0, 1)


def test_a_run_under_way_is_not_changed(make_job: Any) -> None:
    folder = RunFolder.create(make_job())
    with folder.claimed(), pytest.raises(RunError, match="another process is running this run"):
        RunFolder.open(folder.path, ["student.cpus=2"])
    assert RunFolder.open(folder.path).job.student.cpus == 1


def test_a_run_that_has_made_nothing_begins_anew_in_mlflow(make_job: Any) -> None:
    folder = RunFolder.create(make_job())
    folder.update(tracking_run="0" * 32, status="failed", reason="no room")
    RunFolder.open(folder.path)
    assert folder.state().tracking_run == "0" * 32
    RunFolder.open(folder.path, ["student.cpus=2"])
    assert folder.state().tracking_run is None


def test_a_search_is_changed_as_its_file_is(tmp_path: Path) -> None:
    folder = SearchFolder.create(planned(tmp_path))
    changes = ["concurrency=2", "student.cpus=2", "trials=3"]
    changed = SearchFolder.open(folder.path, changes).planned
    assert (changed.search.concurrency, changed.search.trials) == (2, 3)
    assert changed.base.student.cpus == 2
    assert SearchFolder.open(folder.path).planned.search == changed.search
    (folder.path / "trials").mkdir()
    (folder.path / "trials" / "0.json").write_text("{}")
    assert SearchFolder.open(folder.path, ["concurrency=1"]).planned.search.concurrency == 1
    with pytest.raises(JobError, match="trials = 4: would change what this run has made"):
        SearchFolder.open(folder.path, ["trials=4"])


def test_latest_leads_to_the_run_before_one_that_is_withdrawn(make_job: Any) -> None:
    one, two = (RunFolder.create(make_job()) for _ in range(2))
    latest = one.path.with_name("latest")
    two.withdraw()
    assert latest.resolve() == one.path
    with two.claimed():  # it is taken up again
        assert latest.resolve() == two.path
    two.withdraw()
    three = RunFolder.create(make_job())
    with two.claimed():  # no longer the newest
        assert latest.resolve() == three.path
    one.withdraw()
    assert latest.resolve() == three.path
    earlier = Folder(three.path)
    earlier.update(before=None)  # of a version that did not know
    earlier.withdraw()
    assert latest.resolve() == three.path


@pytest.mark.parametrize(
    ("status", "reason", "said"),
    [
        ("failed", "no room.", "failed (no room). To go on with it: agrekd resume"),
        ("interrupted", "stopped by Ctrl-C", "not finished, stopped by Ctrl-C. To go on with it"),
        ("running", None, "not finished, there is no results.json yet. Wait for its end"),
    ],
)
def test_a_report_says_how_a_run_without_results_stands(
    make_job: Any, agrekd: Run, status: str, reason: str | None, said: str
) -> None:
    folder = RunFolder.create(make_job())
    (folder.path / "state.json").write_text(json.dumps({"status": status, "reason": reason}))
    code, _, err = agrekd("report", folder.path)
    assert code == 1
    assert f"{folder.path}: {said}" in err
    assert f"agrekd resume {folder.path}" in err
