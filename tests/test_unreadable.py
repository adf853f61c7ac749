"""A file that the system cannot read is an error that names it, not a file that is missing."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from agrekd_ray.commands.runs import found_runs
from agrekd_ray.data.chunks import Work
from agrekd_ray.data.prepared import PreparedRows
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.folder import STATE, Folder, State
from agrekd_ray.files import exists, is_file, is_folder
from agrekd_ray.logits import Key, LogitsWriter, listed, read_record, verify, write_record
from agrekd_ray.models.checkpoint import MANIFEST, WEIGHTS
from agrekd_ray.search.folder import read_trial
from agrekd_ray.teachers import Pool

from . import pictures
from .conftest import TINY, Run, merged
from .shared import pool_of

KEY = Key("erm-0", "w", {"name": "cnn"}, "d", "v", "none", "float32", 5, 2)
Fail = Callable[[Path], None]


@pytest.fixture(params=["EIO", "EACCES", "ESTALE", "EMFILE"])
def fail(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Makes the system refuse a path, as a broken disk or a lost mount does."""
    number = getattr(errno, request.param)

    def refuse(path: Path) -> None:
        for module, name in ((os, "stat"), (os, "open"), (io, "open"), (pa, "memory_map")):
            before = getattr(module, name)

            def looked(where: Any, *args: Any, before: Any = before, **options: Any) -> Any:
                if not isinstance(where, int) and os.fspath(where) == str(path):
                    raise OSError(number, os.strerror(number), str(path))
                return before(where, *args, **options)

            monkeypatch.setattr(module, name, looked)

    return refuse


def test_a_record(tmp_path: Path, fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / KEY.folder
    folder.mkdir()
    path = folder / "view-00000.arrow"
    assert read_record(path, KEY) is None
    write_record(path, KEY, np.ones((5, 2), np.float32))
    (folder / "key.json").write_text("{}")
    fail(path)
    with pytest.raises(RunError, match=f"{path}: cannot be read"):
        read_record(path, KEY)
    fail(folder / "key.json")
    with pytest.raises(RunError, match=r"key\.json: cannot be read"):
        listed(tmp_path)
    with pytest.raises(RunError, match=r"key\.json: cannot be read"):
        list(verify(tmp_path))
    monkeypatch.undo()
    assert read_record(path, KEY) is not None
    assert read_record(path, replace(KEY, data="other")) is None
    path.write_bytes(path.read_bytes()[:100])
    assert read_record(path, KEY) is None
    path.unlink()
    path.mkdir()
    assert read_record(path, KEY) is None


def test_a_record_in_the_making(tmp_path: Path, fail: Fail) -> None:
    path = tmp_path / "view-00000.arrow"
    begun = LogitsWriter(path, KEY)
    begun.put(np.arange(2), np.ones((2, 2), np.float32))
    begun.close()
    (left,) = tmp_path.iterdir()
    fail(left)
    with pytest.raises(RunError, match="cannot record"):
        LogitsWriter(path, KEY)
    assert list(tmp_path.iterdir()) == [left]


@pytest.mark.parametrize("file", [MANIFEST, WEIGHTS])
def test_a_teacher(make_job: Any, fail: Fail, file: str) -> None:
    job = make_job()
    data, checkpoints, drawn = pool_of(job)
    pool = Pool(job.teachers.store, data)
    recipe = next(iter(drawn.recipes.values()))
    assert pool.find(recipe) is not None
    fail(pool.folder(recipe) / file)
    with pytest.raises(RunError, match=f"{file}: cannot be read"):
        pool.missing([recipe])
    assert set(checkpoints.values()) <= {*job.teachers.store.iterdir()}


def test_prepared_rows(tmp_path: Path, fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(numbers: Any) -> Any:
        for number in numbers:
            yield Work(number, lambda: (np.ones((4, 3), np.uint8), bytes(range(32)), ()))

    rows = PreparedRows(tmp_path, "key", 4, (3,))
    rows.fill(work)
    assert rows.left() == 0
    fail(rows.place / "whole.json")
    for look in (rows.left, rows.digest, lambda: rows.fill(work)):
        with pytest.raises(RunError, match="cannot be read"):
            look()
    monkeypatch.undo()
    assert rows.left() == 0


def test_the_state_of_a_run_and_of_a_trial(
    tmp_path: Path, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    assert folder.state() == State()
    folder.write_state(State("finished", "id"))
    fail(tmp_path / STATE)
    fail(tmp_path / "trial.json")
    with pytest.raises(RunError, match=r"state\.json: cannot be read"):
        folder.update(status="running")
    with pytest.raises(RunError, match=r"trial\.json: cannot be read"):
        read_trial(tmp_path, "trial")
    monkeypatch.undo()
    assert folder.state() == State("finished", "id")


@pytest.mark.parametrize("look", [exists, is_file, is_folder])
def test_whether_there_is_a_file(tmp_path: Path, fail: Fail, look: Any) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for name in ("none", "loop", "file/below", "x" * 300, "a\0b"):
        assert not look(tmp_path / name)
    assert look(tmp_path / "file") == (look is not is_folder)
    assert look(tmp_path) == (look is not is_file)
    fail(tmp_path / "file")
    with pytest.raises(RunError, match="file: cannot be read"):
        look(tmp_path / "file")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_not_taken_for_another_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    agrekd: Run,
    number: int,
) -> None:
    """A store of MLflow, rows of pictures and a run are made there all the same."""

    def without(file: Any, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without)
    folder = pictures.table(tmp_path / "own", pictures.spread((8, 8, 8)))
    data = pictures.small("table", tmp_path / "prepared", table=str(folder / "table.csv"))
    own = {"data": data, "guidance": "local", "methods": ["one_hot"], "ensemble.debiased": 0}
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(merged(TINY, {**own, "runs": str(tmp_path / "runs")})))
    code, out, err = agrekd("run", job)
    assert code == 0, err
    run = (tmp_path / "runs/tiny/latest").resolve()
    assert f"{run}: its file system has no locks (flock)" in out + err
    assert "One-hot" in out
    assert [path.name for path in (tmp_path / "runs").glob("*mlflow.db*")] == ["mlflow.db"]
    assert {found.status for found in found_runs(tmp_path / "runs")} == {"finished"}
    Folder(run).update(status="running")
    assert {found.status for found in found_runs(tmp_path / "runs")} == {"running"}
