"""What the fuzzer has found, once each by hand: see `tests/fuzz`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from agrekd_ray.config import Job, JobError, check_job, load_job
from agrekd_ray.config.search import load_search
from agrekd_ray.config.space import Domain
from agrekd_ray.data.chunks import Work
from agrekd_ray.data.prepared import PreparedRows
from agrekd_ray.data.table import Table
from agrekd_ray.errors import CheckpointError, DataError, RunError
from agrekd_ray.experiment.folder import Folder, RunFolder, State
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.files import DamagedError, checked, read_json
from agrekd_ray.logits import Key, read_record, write_record
from agrekd_ray.models import Manifest, Model, build, load, read_manifest, save
from agrekd_ray.report.page import write_report
from agrekd_ray.results import Metrics, StudentResult
from agrekd_ray.search.folder import SearchFolder
from agrekd_ray.student import read_outcome, write_outcome
from agrekd_ray.teachers import measured

from .conftest import TINY, merged
from .fuzz.stored_files import _student
from .test_page import OUTCOMES
from .test_search_space import write_search

KEY = Key("erm-0", "w", {"name": "cnn"}, "d", "v", "none", "float32", 20, 10)


# --- jobs and searches


def test_a_few_lines_do_not_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 20)]
    path = tmp_path / "job.yaml"
    path.write_text("\n".join([*lines, yaml.safe_dump(TINY)]))
    with pytest.raises(JobError, match="more than 1,000,000 values"):
        load_job(path)
    path.write_text("a: &a [*a]\n")
    with pytest.raises(JobError, match="no valid YAML"):
        load_job(path)
    (tmp_path / "job.yaml").write_text("\n".join(lines))
    with pytest.raises(RunError, match="damaged"):
        RunFolder.open(tmp_path)


def test_a_null_character_in_the_path_of_a_base_job(tmp_path: Path) -> None:
    path = write_search(tmp_path, job="a\0b.yaml")
    with pytest.raises(JobError, match="null character"):
        load_search(path)


@pytest.mark.parametrize("key", ["changes", "base"])
def test_overrides_of_what_is_no_mapping(tmp_path: Path, key: str) -> None:
    path = write_search(tmp_path, **{key: "nothing"})
    with pytest.raises(JobError, match=key):
        load_search(path, ["data.aligned=0.9"])


@pytest.mark.parametrize(
    "domain",
    [
        {"integer": [0, 10**12]},
        {"integer": [0, 10**400]},
        {"uniform": [0, 10**400]},
        {"loguniform": [1e-3, 1e300]},
    ],
)
def test_a_range_has_an_end(domain: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at most|valid number|finite"):
        Domain.model_validate(domain)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"teachers.seed": 2**31 - 2}, "teachers.seed"),
        ({"teachers.count": 10**9, "ensemble.size": 3}, "teachers.count"),
        ({"student.training.epochs": 10**9}, "student.training.epochs"),
        ({"methods": ["deep_ensemble"], "seeds": [0, 2**31 - 1]}, "seeds.1"),
        ({"data.train": 10**30}, "data.train"),
    ],
)
def test_numbers_that_would_take_for_ever(
    make_job: Callable[..., Job], changes: dict[str, Any], key: str
) -> None:
    job, faults = check_job(merged(make_job().model_dump(mode="json"), changes))
    assert job is None
    assert key in [fault.key for fault in faults]


def test_the_largest_seeds_that_are_taken_have_a_plan(make_job: Callable[..., Job]) -> None:
    largest = 2**31 // 1000 - 101
    job = make_job(
        **{"teachers.seed": 2**31 - 3, "methods": ["deep_ensemble"], "seeds": [0, largest]}
    )
    assert len(make_plan(job).votes) == 2


# --- folders of runs


@pytest.mark.parametrize("what", ["loop", "a" * 300, "nowhere/at/all"])
def test_a_path_that_leads_nowhere(tmp_path: Path, what: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    folder = tmp_path / what
    assert not SearchFolder.holds(folder)
    with pytest.raises(RunError, match="no run there"):
        RunFolder.open(folder)
    with pytest.raises(RunError, match="no run there"):
        write_report(folder)


@pytest.mark.parametrize(
    "state", ['{"status": 3}', '{"tracking_run": ["a"]}', "[" * 100_000, '{"status": null}', "7"]
)
def test_a_damaged_state_is_that_of_a_new_run(tmp_path: Path, state: str) -> None:
    (tmp_path / "state.json").write_text(state)
    assert Folder(tmp_path).state() == State()


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(RunError, match="cannot write"), Folder(tmp_path).claimed():
        pass
    with pytest.raises(RunError, match="cannot write"):
        Folder(tmp_path / "gone").update(status="running")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": "one"}, "seed"),
        ({"splits": {"test": {"accuracy": 0.5}}}, "splits.test"),
        ({"splits": [1]}, "splits"),
        ({"history": None}, "history"),
        ({"calibration": [{"low": "x"}]}, "calibration.0"),
        ({"method": "other"}, "it is of other-seed-0"),
    ],
)
def test_an_outcome_of_other_values(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    outcome = OUTCOMES[3]
    folder = tmp_path / outcome.name
    write_outcome(folder, outcome)
    assert read_outcome(folder) == outcome
    values = json.loads((folder / "outcome.json").read_text())
    (folder / "outcome.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(RunError, match=f"damaged \\(.*{said}.*delete the folder"):
        read_outcome(folder)


def test_what_an_earlier_version_wrote_is_read() -> None:
    values = asdict(OUTCOMES[3])
    del values["calibration"]
    for epoch in values["history"]:
        del epoch["influence"], epoch["influence_by_group"]
    assert checked(StudentResult, values).history[0].influence == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student": None}, "KeyError|student"),
        ({"trainer": {}}, "next_epoch"),
        ({"replayed": [1]}, "list"),
        ({"history": [{"epoch": 0}]}, "history|0"),
    ],
)
def test_a_state_of_something_else(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "state.pt"
    student = _student()
    student.epoch()
    student.save_state(path)
    state = {**torch.load(path, weights_only=True), **change}
    state = {key: value for key, value in state.items() if value is not None}
    torch.save(state, path)
    other = _student()
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    with pytest.raises(RunError, match=f"damaged training state .*({said}).* delete it"):
        other.load_state(path)
    assert all(torch.equal(before[n], value) for n, value in other.model.state_dict().items())


# --- checkpoints and records


def test_a_manifest_that_was_changed_by_accident(tmp_path: Path) -> None:
    folder, model = tmp_path / "erm-0", Model(name="cnn", args={"width": 2})
    metrics = {"test": {"accuracy": 0.5}}
    manifest = Manifest(model, (3, 8, 8), ("a", "b"), "f" * 64, "d" * 64, metrics=metrics)
    save(folder, build(model, (3, 8, 8), 2, 0), manifest)
    whole = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(whole.replace("dddd", "dedd", 1))
    with pytest.raises(CheckpointError, match=r"damaged manifest .*not as it was written"):
        read_manifest(folder)
    values = json.loads(whole)
    del values["sha256"]  # as it was before there was one
    (folder / "manifest.json").write_text(json.dumps(values))
    found = read_manifest(folder)
    assert found.data == "d" * 64
    with pytest.raises(CheckpointError, match=r"damaged manifest \(metrics.test"):
        measured(folder, found)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
@pytest.mark.parametrize("how", ["cut", "gone", "a folder"])
def test_a_damaged_checkpoint_is_made_again(tmp_path: Path, name: str, how: str) -> None:
    folder, model = tmp_path / "erm-0", Model(name="cnn", args={"width": 2})
    manifest = Manifest(model, (3, 8, 8), ("a", "b"), "f" * 64, "d" * 64)
    whole = save(folder, build(model, (3, 8, 8), 2, 0), manifest)
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[:-9])
    elif how == "a folder":
        path.mkdir()
    with pytest.raises(CheckpointError):
        load(folder)
    assert save(folder, build(model, (3, 8, 8), 2, 0), manifest) == whole
    assert load(folder)[1] == whole
    assert [p.name for p in tmp_path.iterdir()] == ["erm-0"]


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    model = Model(name="cnn", args={"width": 2})
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "first.txt").write_text("dear reader")
    manifest = Manifest(model, (3, 8, 8), ("a", "b"), "f" * 64, "d" * 64)
    with pytest.raises(CheckpointError, match="cannot write"):
        save(tmp_path / "letters", build(model, (3, 8, 8), 2, 0), manifest)
    assert (tmp_path / "letters" / "first.txt").read_text() == "dear reader"


def test_the_same_numbers_in_other_rows_are_no_record(tmp_path: Path) -> None:
    path = tmp_path / "view-00000.arrow"
    logits = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)
    write_record(path, KEY, logits)
    assert read_record(path, KEY) is not None
    with pa.ipc.open_file(path) as reader:
        batch = reader.get_batch(0)
    narrow = pa.FixedSizeListArray.from_arrays(batch.column(0).values, 5)
    schema = pa.schema([pa.field("logits", narrow.type)], batch.schema.metadata)
    with path.open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch([narrow], schema=schema))
    assert read_record(path, KEY) is None
    write_record(path, replace(KEY, rows=19), logits[:19])
    assert read_record(path, KEY) is None


# --- data


def test_a_column_that_is_neither_text_nor_numbers(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"label": pa.array([2**62], pa.duration("s"))}), path)
    with pytest.raises(DataError, match="label holds duration"):
        Table(path, ["label"])


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "1e999", "-0.1", "1.5", "1_0", "0,5", "٣", "0x1", "true", " 1"]
)
def test_a_share_is_a_number_from_0_to_1(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.tsv"
    path.write_text(f"toxicity\tother\n0.5\t\n{text}\t\n")
    with pytest.raises(DataError, match=r"row 2: toxicity is .* no number from 0 to 1"):
        Table(path, ["toxicity"]).shares("toxicity")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"digest": 3}', '{"digest": "a", "rows": 4}', "[" * 10**5]
)
def test_the_digest_of_prepared_rows(tmp_path: Path, text: str) -> None:
    rows = PreparedRows(tmp_path, "a" * 64, 4, (2,))
    rows.fill(lambda numbers: iter([Work(0, lambda: (np.zeros((4, 2)), b"x" * 32, ()))]))
    assert len(rows.digest()) == 64
    (rows.place / "whole.json").write_text(text)
    with pytest.raises(DataError, match=r"damaged .* remove the folder"):
        rows.digest()


# --- values


@pytest.mark.parametrize("text", ["", "\xff", "[" * 100_000, '{"status": {}}', "null", "1" * 5000])
def test_json_of_other_values_says_what_is_wrong_in_a_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DamagedError) as caught:
        read_json(path, State)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_keep_their_kinds() -> None:
    metrics = OUTCOMES[0].splits["test"]
    assert checked(Metrics, vars(metrics)) == metrics
    with pytest.raises(DamagedError, match="accuracy"):
        checked(Metrics, {**vars(metrics), "accuracy": [1]})
