"""Passwords of tracking stores: whoever connects has them, and nothing that is written."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from agrekd_ray import passwords
from agrekd_ray.cli import main
from agrekd_ray.config import JobError, check_job, load_job
from agrekd_ray.config.points import points_of
from agrekd_ray.config.search import load_search
from agrekd_ray.errors import TrackingError
from agrekd_ray.experiment.driver import Driver
from agrekd_ray.experiment.folder import Folder, RunFolder
from agrekd_ray.experiment.job import run_job
from agrekd_ray.passwords import hidden, revealed, without_password
from agrekd_ray.report import job as report
from agrekd_ray.report.page import write_report
from agrekd_ray.search.folder import SearchFolder

from .conftest import TINY, merged
from .test_page import ABOUT, MEMBERS, OUTCOMES, SETTINGS
from .test_search_space import write_search
from .test_tracking_server import Server

SECRET = "s3cr3t-Pa55"


def holders(folder: Path, secret: str = SECRET) -> list[Path]:
    """Files that hold the secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("https://ann:pw@host", "https://ann:***@host"),
        ("https://ann:p@w@host:5000/x?y=1", "https://ann:***@host:5000/x?y=1"),
        ("https://:pw@host/a@b", "https://:***@host/a@b"),
        ("postgresql://ann:p/w@host/db", "postgresql://ann:***@host/db"),
        ("mysql+pymysql://ann:p?w@host/db", "mysql+pymysql://ann:***@host/db"),
        ("postgresql:///db?user=ann&password=pw&x=1", "postgresql:///db?user=ann&password=***&x=1"),
        ("Cannot open https://a:b@c: https://d:e@f.", "Cannot open https://a:***@c: https://d:***@f."),
    ],
)  # fmt: skip
def test_a_password_is_masked(address: str, masked: str) -> None:
    assert without_password(address) == masked
    assert without_password(masked) == masked
    assert revealed(hidden(address)) == address


@pytest.mark.parametrize(
    "address",
    [
        "http://host:5000",
        "http://host:5000/a@b",
        "https://ann@host/x",
        "sqlite:////runs/mlflow.db",
        "databricks",
        "time: 12:30 a@b.org",
    ],
)
def test_an_address_without_a_password_stays(address: str) -> None:
    assert hidden(address) == address
    assert revealed(address) == address


def test_another_process_takes_the_password_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(passwords, "_KNOWN", {})
    monkeypatch.delenv(passwords.VARIABLE, raising=False)
    with pytest.raises(TrackingError, match="set MLFLOW_TRACKING_PASSWORD"):
        revealed("https://ann:***@host")
    monkeypatch.setenv(passwords.VARIABLE, "p@w/1")
    assert revealed("https://ann:***@host") == "https://ann:p%40w%2F1@host"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job in this process, of few steps."""
    changes: dict[str, Any] = {
        "data.train": 128,
        "data.val": 160,
        "teachers.count": 2,
        "teachers.training.epochs": 1,
        "ensemble.size": 2,
        "ensemble.debiased": 0,
        "student.training.epochs": 1,
        "methods": ["aver"],
        "guidance": "local",
        "teachers.store": str(tmp_path / "pool"),
        "runs": str(tmp_path / "runs"),
        "outputs.store": str(tmp_path / "outputs"),
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(merged(TINY, changes)))
    return path


def test_a_job_never_holds_the_password(job: Path, tmp_path: Path) -> None:
    address = f"https://ann:{SECRET}@127.0.0.1:9"
    found = load_job(job, [f"tracking.uri={address}"])
    assert SECRET not in repr(found) + found.model_dump_json()
    assert SECRET.encode() not in pickle.dumps(found)
    RunFolder.create(found)
    assert holders(tmp_path) == []
    again, faults = check_job(found.model_dump(mode="json"))
    assert (again, faults) == (found, [])
    assert revealed(str(found.tracking.uri)) == address
    study = load_job(job, [f"tracking.uri={address}", "draws=[0,1]"])
    for _, point in points_of(study):
        assert revealed(str(point.tracking.uri)) == address


def test_a_search_never_holds_the_password(tmp_path: Path) -> None:
    address = f"https://ann:{SECRET}@127.0.0.1:9"
    planned = load_search(write_search(tmp_path), [f"tracking.uri={address}"])
    assert revealed(str(planned.base.tracking.uri)) == address
    folder = SearchFolder.create(planned)
    assert holders(tmp_path) == []
    assert revealed(str(SearchFolder.open(folder.path).planned.base.tracking.uri)) == address


@pytest.mark.parametrize(
    "words",
    [
        ["tracking.uri=[https://ann:{}@host]"],
        ["tracking.url=https://ann:{}@host"],
        ["tracking.uri=https://ann:{}@host", "name=a/b"],
        ["tracking.[uri]=https://ann:{}@host"],
        ["tracking.uri={{https://ann:{}@host"],
    ],
)
def test_faults_do_not_tell_it(job: Path, words: list[str]) -> None:
    with pytest.raises(JobError) as caught:
        load_job(job, [word.format(SECRET) for word in words])
    assert SECRET not in str(caught.value)


def test_a_file_that_is_no_yaml_does_not_tell_it(job: Path) -> None:
    job.write_text(f"tracking:\n  uri: https://ann:{SECRET}@host\n  x: [\n{{")
    with pytest.raises(JobError, match="no valid YAML") as caught:
        load_job(job)
    assert SECRET not in str(caught.value)


def _typed(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(sys, "argv", ["agrekd", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    out, err = capfd.readouterr()
    return out + err


@pytest.mark.parametrize(
    "address",
    [
        "http://ann:{}@127.0.0.1:9",
        "postgresql://ann:{}@127.0.0.1:9/db",
        "ann:{}@host",
        "//a:{}@h/x",
    ],
)
def test_a_store_that_is_not_there_does_not_tell_it(
    job: Path,
    tmp_path: Path,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    uri = address.format(SECRET)
    said = _typed(["compare", "--uri", uri], monkeypatch, capfd)
    assert "error: " in said
    if "://" in uri:
        said += _typed(["run", str(job), f"tracking.uri={uri}"], monkeypatch, capfd)
        assert holders(tmp_path) == []
        assert SECRET not in said


def test_a_report_of_an_earlier_version_does_not_tell_it(tmp_path: Path) -> None:
    about = {**ABOUT, "settings": {**SETTINGS, "tracking": {"uri": f"https://ann:{SECRET}@host"}}}
    (tmp_path / "job.yaml").write_text("name: digits\n")
    report.write_json(tmp_path / "results.json", OUTCOMES, MEMBERS, None, about)
    page = write_report(tmp_path).read_text()
    assert "https://ann:***@host" in page
    assert SECRET not in page


@pytest.mark.parametrize("error", [RuntimeError, TrackingError])
def test_the_reason_of_a_failed_run_does_not_tell_it(
    tmp_path: Path, make_job: Any, error: Any
) -> None:
    class Failing(Driver[None]):
        def params(self) -> dict[str, Any]:
            return {}

        def through(self, run_id: str) -> None:
            raise error(f"no answer from https://ann:{SECRET}@host")

        def show(self, result: None) -> None:
            """Nothing."""

    folder = Folder(tmp_path)
    with pytest.raises(error):
        Failing(folder, Console(quiet=True), make_job(), "digits").run()
    assert "https://ann:***@host" in str(folder.state().reason)
    assert holders(tmp_path) == []


@pytest.mark.chaos
def test_a_whole_run_on_a_server_leaves_it_nowhere(
    job: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = "An0ther-Pa55"
    monkeypatch.setenv(passwords.VARIABLE, other)
    server = Server(tmp_path)
    server.start()
    try:
        address = server.uri.replace("//", f"//ann:{SECRET}@")
        folder = RunFolder.create(load_job(job, [f"tracking.uri={address}"]))
        with (tmp_path / "screen.txt").open("w") as screen:
            run_job(folder, Console(file=screen, width=200))
        write_report(folder.path)
        monkeypatch.setattr(passwords, "_KNOWN", {})  # as in another process
        run_job(RunFolder.open(folder.path), Console(quiet=True))
    finally:
        server.stop()
    told = json.loads((folder.path / "results.json").read_text())
    assert told["job"]["settings"]["tracking"]["uri"] == server.uri.replace("//", "//ann:***@")
    assert "mlflow" not in capfd.readouterr().out
    assert SECRET not in caplog.text + (tmp_path / "screen.txt").read_text()
    for secret in (SECRET, other):
        assert holders(tmp_path, secret) == []
