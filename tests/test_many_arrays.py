"""Figures of very many groups are in an array file, read back to the bit, and written once."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from agrekd_ray.data.custom import Custom
from agrekd_ray.errors import RunError
from agrekd_ray.files import DamagedError, checked
from agrekd_ray.models import Model
from agrekd_ray.results import (
    Epoch,
    StudentResult,
)
from agrekd_ray.results.arrays import (
    ARRAYS,
    EpochFiles,
    files_of,
    packed,
    read_arrays,
    remove,
    unpacked,
    write_arrays,
)
from agrekd_ray.results.search import TrialResult
from agrekd_ray.search.folder import TrialStore, read_trial
from agrekd_ray.settings import Training
from agrekd_ray.student import Student, StudentSpec
from agrekd_ray.student.student import OUTCOME, read_outcome, write_outcome

from .many import FEW, MANY, measured, named, student, trained

# --- the array file --------------------------------------------------------------------------


def test_values_of_few_are_left_as_they_are():
    outcome = student(FEW, 20)
    values, arrays = packed(outcome)
    assert arrays == {}
    assert json.dumps(values) == json.dumps(asdict(outcome))


@pytest.mark.parametrize(("classes", "teachers"), [(MANY, 3), (3, MANY), (300, 60)])
def test_many_are_read_back_to_the_bit(tmp_path, classes, teachers):
    outcome = student(classes, teachers)
    outcome.history[1].weights["class 0001"]["erm-1"] = 5e-324
    outcome.history[1].fallback_by_group["class 0002"] = -0.0
    write_outcome(tmp_path / outcome.name, outcome)
    assert (tmp_path / outcome.name / ARRAYS).exists()
    found = read_outcome(tmp_path / outcome.name)
    assert found == outcome
    assert math.copysign(1, found.history[1].fallback_by_group["class 0002"]) == -1
    assert [*found.history[0].weights] == [*outcome.history[0].weights]
    assert all(type(count) is int for count in found.splits["test"].counts.values())


def test_a_number_that_is_none_is_not_a_number_when_read_back(tmp_path):
    outcome = student(MANY, 2)
    outcome.splits["test"].groups["class 0003"] = math.nan
    write_outcome(tmp_path / outcome.name, outcome)
    found = read_outcome(tmp_path / outcome.name)
    assert math.isnan(found.splits["test"].groups["class 0003"])


def test_the_file_is_a_matrix_a_figure_with_names(tmp_path):
    outcome = student(200, 5, 3)
    write_outcome(tmp_path, outcome)
    with np.load(tmp_path / ARRAYS, allow_pickle=False) as arrays:
        weights = arrays["history/weights"]
        assert weights.shape == (3, 200, 5)
        assert weights.dtype == np.float64
        assert arrays["history/weights/rows"].tolist() == named("class", 200)
        assert arrays["history/weights/columns"].tolist() == [f"erm-{n}" for n in range(5)]
        assert weights[2, 17, 4] == outcome.history[2].weights["class 0017"]["erm-4"]
        assert arrays["splits/test/groups"].shape == (1, 200)
    assert len((tmp_path / OUTCOME).read_text()) < 10_000


def test_epochs_with_other_groups_are_arrays_of_their_own(tmp_path):
    outcome = student(60, 3, 3)
    del outcome.history[1].weights["class 0005"]
    values, arrays = packed(outcome)
    assert arrays["history/weights"].shape == (2, 60, 3)
    assert arrays["history/weights-2"].shape == (1, 59, 3)
    write_arrays(tmp_path / ARRAYS, arrays)
    plain = unpacked(json.loads(json.dumps(values)), tmp_path)
    assert checked(StudentResult, plain) == outcome


def test_rows_that_differ_stay_in_json(tmp_path):
    ragged = {"of": {f"g{n}": {"a": 1.0, **({"b": 2.0} if n else {})} for n in range(80)}}
    assert packed(ragged) == (ragged, {})
    settings = {"settings": {"args": {f"k{n}": n for n in range(80)}}}
    assert packed(settings) == (settings, {})


@pytest.mark.parametrize("harm", ["gone", "cut", "empty", "another", "shorter", "outside"])
def test_a_damaged_array_file_is_named(tmp_path, harm):
    outcome = student(MANY, 3)
    folder = tmp_path / outcome.name
    write_outcome(folder, outcome)
    file = folder / ARRAYS
    if harm == "gone":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "another":
        write_arrays(file, packed({"a": {f"x{n}": n for n in range(99)}})[1])
    elif harm == "shorter":
        write_arrays(file, packed(replace(outcome, history=outcome.history[:1]))[1])
    else:
        text = (folder / OUTCOME).read_text()
        (folder / OUTCOME).write_text(text.replace('"at": 0}', '"at": 0, "file": "../x.npz"}', 1))
    with pytest.raises(RunError, match=r"outcome.json: damaged \(its figures by group"):
        read_outcome(folder)


def test_an_array_file_brings_no_pickle(tmp_path):
    np.savez(tmp_path / ARRAYS, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DamagedError, match="damaged"):
        read_arrays(tmp_path / ARRAYS)


# --- states and journals ---------------------------------------------------------------------


def test_a_state_has_the_arrays_of_an_epoch_written_once(tmp_path):
    history = [trained(number, 80, 4) for number in range(3)]
    path, files = tmp_path / "one.pt", EpochFiles()
    before: list[int] = []
    for count in (1, 2, 3):
        values = files.write(history[:count], path)
        made = sorted(file.name for file in files_of(path).iterdir())
        assert made == [f"{n:05}.npz" for n in range(count)]
        inodes = [file.stat().st_ino for file in sorted(files_of(path).iterdir())]
        assert inodes[:-1] == before
        before = inodes
    assert len(json.dumps(values)) < 6000
    other = EpochFiles()
    assert other.read(json.loads(json.dumps(values)), path) == history
    assert other.write([*other.read(values, path), trained(3, 80, 4)], path)[:3] == values
    assert [file.stat().st_ino for file in sorted(files_of(path).iterdir())][:3] == before


def test_a_state_in_another_folder_has_links_to_what_is_written(tmp_path):
    history, files = [trained(number, 80, 4) for number in range(2)], EpochFiles()
    first, draft, second = tmp_path / "1", tmp_path / ".2", tmp_path / "2"
    first.mkdir()
    files.write(history[:1], first / "0.pt")
    draft.mkdir()
    values = files.write(history, draft / "0.pt")
    draft.replace(second)
    files.moved(second)
    inodes = [(folder / "0.epochs" / "00000.npz").stat().st_ino for folder in (first, second)]
    assert inodes[0] == inodes[1]
    remove(first / "0.pt")
    assert not files_of(first / "0.pt").exists()
    assert EpochFiles().read(values, second / "0.pt") == history
    third = [*history, trained(2, 80, 4)]
    assert EpochFiles().read(files.write(third, tmp_path / "3.pt"), tmp_path / "3.pt") == third


def test_a_state_takes_over_another_history(tmp_path):
    """As population based training does: what is written of the trial's own is replaced."""
    files, path = EpochFiles(), tmp_path / "0.pt"
    files.write([trained(0, 80, 4), trained(1, 80, 4)], path)
    theirs = [trained(5, 80, 4)]
    values = files.write(theirs, path)
    assert EpochFiles().read(values, path) == theirs


def test_epochs_of_few_are_written_as_before(tmp_path):
    history = [trained(number, 10, 4) for number in range(2)]
    values = EpochFiles().write(history, tmp_path / "0.pt")
    assert json.dumps(values) == json.dumps([asdict(epoch) for epoch in history])
    assert [*tmp_path.iterdir()] == []
    assert EpochFiles().read([asdict(epoch) for epoch in history], tmp_path / "0.pt") == history


def test_a_trials_journal_has_the_arrays_of_an_epoch_written_once(tmp_path):
    store = TrialStore(tmp_path)
    history = [trained(number, 80, 4) for number in range(3)]
    trial = TrialResult(0, {"distillation.temperature": 2.0}, "running", 3, history[:2])
    store.put("abc", trial)
    first = (tmp_path / "abc.epochs" / "00000.npz").stat().st_ino
    whole = replace(trial, history=history, test=measured(80))
    store.put("abc", whole)
    assert (tmp_path / "abc.epochs" / "00000.npz").stat().st_ino == first
    assert read_trial(tmp_path, "abc") == whole
    assert TrialStore(tmp_path).get("abc") == whole
    (tmp_path / "abc.epochs" / "00001.npz").write_bytes(b"x")
    with pytest.raises(RunError, match=r"abc\.json: damaged"):
        read_trial(tmp_path, "abc")
    store.forget({"abc"})
    assert [*tmp_path.iterdir()] == []


# --- a student -------------------------------------------------------------------------------


def sixty(*, seed: int) -> dict[str, Any]:
    """A data set of sixty classes."""
    rng = np.random.default_rng(seed)
    prototypes = rng.random((60, 1, 4, 4))

    def part(each: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(60), each)
        noise = rng.normal(0, 0.1, (len(labels), 1, 4, 4))
        return (prototypes[labels] + noise).clip(0, 1).astype("float32"), labels

    return {"train": part(4), "val": part(2), "test": part(2)}


def test_a_student_of_many_classes_is_taken_up_again(tmp_path):
    data = Custom(name="custom", factory="tests.test_many_arrays:sixty").open()
    training = Training(epochs=3, batch_size=60, learning_rate=0.1)
    given = StudentSpec("one_hot", 0, Model(name="cnn"), training)
    whole = Student(given, data, None).train(tmp_path / "1", tmp_path / "a", lambda _: None)
    heard: list[int] = []

    def stopping(epoch: Epoch) -> None:
        heard.append(epoch.epoch)
        if epoch.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Student(given, data, None).train(tmp_path / "2", tmp_path / "b", stopping)
    state = tmp_path / "2" / "states" / "one_hot-seed-0.pt"
    assert len([*files_of(state).iterdir()]) == 2
    found = Student(given, data, None).train(tmp_path / "2", tmp_path / "b", stopping)
    assert heard == [0, 1, 2]
    assert [e.val for e in found[0].history] == [e.val for e in whole[0].history]
    assert found[0].splits == whole[0].splits
    assert [*state.parent.iterdir()] == []
    assert read_outcome(tmp_path / "b" / "one_hot-seed-0") == found[0]


def test_a_state_whose_arrays_are_gone_is_damaged(tmp_path):
    data = Custom(name="custom", factory="tests.test_many_arrays:sixty").open()
    training = Training(epochs=2, batch_size=60, learning_rate=0.1)
    one = Student(StudentSpec("one_hot", 0, Model(name="cnn"), training), data, None)
    one.epoch()
    one.save_state(tmp_path / "0.pt")
    (tmp_path / "0.epochs" / "00000.npz").unlink()
    with pytest.raises(RunError, match="damaged training state"):
        one.load_state(tmp_path / "0.pt")
