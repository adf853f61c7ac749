"""Addresses of MLflow stores: what SQLAlchemy and MLflow take is taken, all else refused early."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from sqlalchemy import create_engine, text

from agrekd_ray.addresses import is_database, sqlite_address, sqlite_file, store_address
from agrekd_ray.config import JobError, check_job, load_job
from agrekd_ray.errors import TrackingError
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.passwords import hidden, revealed
from agrekd_ray.tracking.mlflow_runs import MlflowTracker
from agrekd_ray.tracking.mlflow_store import open_existing

from .conftest import TINY, merged

FILES = {
    "sqlite:///q.db?timeout=30": "q.db",
    "sqlite:///q.db?timeout=30&cached_statements=5": "q.db",
    "sqlite:///a b#1.db": "a b#1.db",
    "sqlite:///a%20b.db": "a b.db",
    "sqlite:///what%3F/x.db": "what?/x.db",
    "sqlite:///100%.db": "100%.db",
    "sqlite+pysqlite:///deep/er/x.db?timeout=5": "deep/er/x.db",
    "sqlite:///file:uri.db?uri=true": "uri.db",
    "sqlite:///file:one%2520two.db?uri=true&mode=rwc": "one two.db",
    "sqlite:///~/home.db": "home/home.db",
    " sqlite:///Vögel.db ": "Vögel.db",
}
REFUSED = {
    "": "no tracking URI",
    "/tmp/mlruns": "sqlite:////absolute",
    "file:///tmp/mlruns": "sqlite:////absolute",
    "runs/mlflow.db": "sqlite:////absolute",
    "127.0.0.1:5000": r"perhaps http://127\.0\.0\.1:5000 is meant",
    "localhost:5000/x": "perhaps http://localhost:5000/x is meant",
    "htp://host:5000": "perhaps http://host:5000 is meant",
    "http://": "http://HOST:PORT",
    "http://host:50x": "50x",
    "http://[::1": "IPv6",
    "http://a b:5000": "http://HOST:PORT",
    "postgres://ann@host/db": "perhaps postgresql://ann@host/db is meant",
    "postgresql://ann@host:12x/db": "USER@HOST:PORT",
    "postgresql://ann:p@w@host/db": "%40",
    "mysql+nonsense://ann@host/db": "knows no 'mysql\\+nonsense'",
    "sqlite:one.db": "sqlite:///PATH",
    "sqlite:/one.db": "sqlite:///PATH",
    "sqlite://one.db": "sqlite:///one.db",
    "SQLITE:///up.db": r"perhaps sqlite:///up\.db is meant",
    "sqlite:///:memory:": "one process alone sees",
    "sqlite://": "one process alone sees",
    "sqlite:///": "one process alone sees",
    "sqlite:///file::memory:?uri=true": "one process alone sees",
    "sqlite:///file:x.db?uri=true&mode=memory": "one process alone sees",
    "sqlite:///file:x.db": "uri=true",
    "sqlite:///x.db?mode=ro": "'mode'",
    "sqlite:///x.db?timeout=long": "'long'",
    "sqlite:////": "is a folder",
    "sqlite+aiosqlite:///x.db": "does not work with",
    "sqlite+nonsense:///x.db": "knows no",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a home in it."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("address", FILES)
def test_the_file_is_the_one_that_sqlalchemy_opens(
    address: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absolute = store_address(address)
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert store_address(absolute) == absolute
    path = sqlite_file(absolute)
    assert path == here / FILES[address]
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(absolute)
    with engine.begin() as connection:
        connection.execute(text("create table mine (x)"))
    engine.dispose()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("select name from sqlite_master").fetchall() == [("mine",)]
    assert list((here / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_none_is_refused_in_one_line(address: str, here: Path) -> None:
    with pytest.raises(ValueError, match=REFUSED[address]) as caught:
        store_address(address)
    assert "\n" not in str(caught.value)
    job, faults = check_job(merged(TINY, {"tracking.uri": address}))
    assert job is None
    assert [fault.key for fault in faults] == ["tracking.uri"]
    with pytest.raises(TrackingError, match="\\."):
        MlflowTracker(address or " ", "x", here)
    assert [path.name for path in here.iterdir()] == ["home"]


@pytest.mark.parametrize(
    "address",
    [
        "http://host:5000",
        "HTTPS://host/mlflow",
        "http://[::1]:5000",
        "databricks",
        "databricks://profile",
        "postgresql://ann:***@host/db",
        "mysql+pymysql://ann@host:3306/db?charset=utf8mb4",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3D1",
    ],
)
def test_other_stores_stay_as_they_are_written(address: str) -> None:
    assert store_address(address) == address
    assert sqlite_file(address) is None
    assert is_database(address) == (address[:2] in ("po", "my", "ms"))


NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))


@given(NAMES, NAMES)
def test_every_path_has_an_address(folder: str, name: str) -> None:
    path = Path("/tmp", folder, name, "mlflow.db")  # blanks around an address are no part of it
    address = sqlite_address(path)
    assert sqlite_file(address) == path
    assert store_address(address) == address
    assert hidden(address) == address
    assert revealed(address) == address


def test_the_store_of_a_folder_with_odd_signs_is_in_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = here / "lr:x:1 what? a#b 100% %3F Vögel [red]"
    tracker = MlflowTracker(None, "x", place / "runs")
    (place / "results.json").write_text("{}")
    run = tracker.start_job("x", {}, {})
    tracker.finish_job(run, place, {})
    assert {path.name for path in here.iterdir()} == {"home", place.name}
    assert {path.name for path in (place / "runs").iterdir()} == {"mlflow.db", "mlartifacts"}
    assert len(list(place.rglob("mlartifacts/**/results.json"))) == 1
    assert open_existing(tracker.uri).get_run(run).info.status == "FINISHED"
    assert [f.path for f in MlflowClient(tracker.uri).list_artifacts(run)] == ["results.json"]


def test_a_job_has_its_store_from_every_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = here / "job.yaml"
    job.write_text(yaml.safe_dump(merged(TINY, {"tracking.uri": "sqlite:///rel.db?timeout=30"})))
    folder = RunFolder.create(load_job(job))
    expected = f"sqlite:///{here}/rel.db?timeout=30"
    assert folder.job.tracking.uri == expected
    monkeypatch.chdir(here / "home")
    assert RunFolder.open(folder.path).job.tracking.uri == expected
    with pytest.raises(JobError, match=r"tracking\.uri"):
        load_job(job, ["tracking.uri=sqlite:one.db"])


def test_a_password_may_have_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    address: Any = "postgresql://ann:a b c@host/db?x=1"
    assert hidden(address) == "postgresql://ann:***@host/db?x=1"
    assert revealed(hidden(address)) == address


@pytest.mark.parametrize("values", [["one", "two"], ["~/one"], ["./one", "/tmp/two"]])
def test_a_path_in_a_sweep_is_absolute(values: list[str], here: Path) -> None:
    job, faults = check_job({**TINY, "sweep": {"teachers.store": values}})
    assert job is None
    relative = [value for value in values if not value.startswith("/")]
    assert [fault.key for fault in faults] == ["sweep.teachers.store"] * len(relative)
    assert all(f"({v} is {here}/" in str(f) for v, f in zip(relative, faults, strict=True))


def test_other_words_and_absolute_paths_are_swept(here: Path) -> None:
    sweep = {
        "teachers.store": [str(here / "one"), str(here / "two")],
        "student.model.name": ["cnn", "cnn_deep"],
        "distillation.temperature": ["2", 4],
    }
    assert check_job({**TINY, "sweep": sweep})[1] == []
