"""Names and paths of a job lead nowhere but to its own folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agrekd_ray.commands.teachers import import_for
from agrekd_ray.config import Job, JobError, check_job
from agrekd_ray.config.points import points_of
from agrekd_ray.config.search import Search
from agrekd_ray.config.sweep import settings_of
from agrekd_ray.logits import Key, listed, prune, write_record
from agrekd_ray.tracking.mlflow_runs import MlflowTracker

from .conftest import TINY, merged

ELSEWHERE = (
    "../x", "/tmp/x", "a/b", "..", ".", "", ".hidden", "~root", "x\n", "x\0y", "-x", "a b",
    "a\\b", "nul/..", "x" * 101,
)  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_is_no_path(name: str) -> None:
    job, faults = check_job(merged(TINY, {"name": name}))
    assert job is None
    assert [fault.key for fault in faults] == ["name"]
    space = {"strategy": {"choice": ["aver"]}}
    with pytest.raises(ValueError, match="name"):
        Search.model_validate({"name": name, "job": "job.yaml", "space": space})


@pytest.mark.parametrize("name", [name for name in ELSEWHERE if "\0" not in name])
def test_the_name_of_an_import_is_no_path(make_job: Callable[..., Job], name: str, tmp_path: Path,
                                          ) -> None:  # fmt: skip
    import yaml

    if name == "x" * 101:
        return  # long, and allowed
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(make_job().model_dump(mode="json")))
    before = sorted(tmp_path.parent.rglob("*"))
    model = {"name": "cnn", "args": [], "small_stem": False, "preprocess": None}
    with pytest.raises(JobError, match="letters, digits"):
        import_for(job, [], tmp_path / "x.pt", name, model, None, False)
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("key", ["teachers.model.name", "student.model.name", "others"])
@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/etc/passwd",
        "torchvision/../../x",
        "timm/../../x",
        "transformers/../../x",
        "/dev/null",
        "transformers/" + "/dev/null",
        "a\0b",
    ],
)
def test_the_name_of_a_model_is_no_path(
    make_job: Callable[..., Job], key: str, name: str, tmp_path: Path
) -> None:
    changes = {"teachers.others": [{"name": name}]} if key == "others" else {key: name}
    job, faults = check_job(merged(make_job().model_dump(mode="json"), changes))
    assert job is None
    assert faults
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["runs", "teachers.store", "outputs.store"])
@pytest.mark.parametrize("path", ["/dev/null", "/dev/null/x", "/proc/x", "a\0b", "x" * 300])
def test_a_folder_that_cannot_be_one_is_refused(
    make_job: Callable[..., Job], key: str, path: str
) -> None:
    job, faults = check_job(merged(make_job().model_dump(mode="json"), {key: path}))
    assert job is None
    assert [fault.key for fault in faults] == [key]


def test_an_experiment_is_no_path(tmp_path: Path) -> None:
    runs = tmp_path / "a" / "b" / "runs"
    for name in ("../../outside", "/outside", "a/../../../b"):
        tracker = MlflowTracker(None, name, runs)
        tracker.start_job(name, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["runs"]
    assert {path.name for path in runs.iterdir()} <= {"mlflow.db", "mlartifacts"}


def test_no_two_points_of_a_study_share_a_folder(make_job: Callable[..., Job]) -> None:
    near = {"distillation.alpha": [0.12345671, 0.12345672]}
    first, second = settings_of(near, [])
    assert first.folder != second.folder
    raw = make_job().model_dump(mode="json")
    names = ["a/b", "a b", "../../c"]
    folders = [s.folder for s in settings_of({"student.model.name": names}, [])]
    assert not any("/" in folder or folder in (".", "..") for folder in folders)
    job, faults = check_job({**raw, "sweep": {"data.views": [{"flip": True}, {"shift": True}]}})
    assert job is None  # another fault; what shares a folder is refused, too:
    sweep = {"student.model.args": [{"width": 4}, {"width": 4.0}]}
    job, faults = check_job({**raw, "sweep": sweep})
    assert job is None
    assert faults


def test_what_would_share_a_folder_is_refused(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = make_job().model_dump(mode="json")
    stores = [str(tmp_path / "a!b"), str(tmp_path / "a?b")]
    job, faults = check_job({**raw, "sweep": {"teachers.store": stores}})
    assert job is None
    assert "would have the same folder" in "\n".join(map(str, faults))
    job, faults = check_job({**raw, "sweep": {"teachers.store": [stores[0]]}})
    assert job is not None, faults
    assert len(points_of(job)) == 1


def test_a_study_has_an_end(make_job: Callable[..., Job]) -> None:
    raw = make_job().model_dump(mode="json")
    sweep: dict[str, Any] = {
        "distillation.temperature": [1 + n / 100 for n in range(200)],
        "distillation.alpha": [n / 200 for n in range(200)],
    }
    job, faults = check_job({**raw, "sweep": sweep})
    assert job is None
    assert "40,000 points" in "\n".join(map(str, faults))


def test_prune_leaves_what_others_keep_in_a_key_json(tmp_path: Path) -> None:
    other = tmp_path / "credentials"
    other.mkdir()
    (other / "key.json").write_text('{"type": "service_account"}')
    (other / "letter.txt").write_text("dear reader")
    key = Key("erm-0", "w", {"name": "cnn"}, "d", "v", "none", "float32", 5, 2)
    mine = tmp_path / key.folder
    mine.mkdir()
    (mine / "key.json").write_text("damaged")
    import numpy as np

    write_record(mine / "view-00000.arrow", key, np.ones((5, 2), np.float32))
    assert [one.folder for one in listed(tmp_path)] == [mine]
    assert [one.folder for one in prune(tmp_path, 0)] == [mine]
    assert (other / "letter.txt").read_text() == "dear reader"
    assert not mine.exists()
