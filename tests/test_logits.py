"""Recorded outputs: whole or not at all, resumed, verified, replayed with the same numbers."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console

from agrekd_ray.cluster.events import Notice, StudentEpoch, TeacherCostSoFar
from agrekd_ray.core import strategies, weighting
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.data import SELECT, TEST, TRAIN
from agrekd_ray.distillation import (
    CachedTeachers,
    DistillationSpec,
    Distilled,
    LocalTeachers,
    Replay,
    TeacherHost,
)
from agrekd_ray.distillation import cached as recorded
from agrekd_ray.errors import RunError
from agrekd_ray.fleet.logits_server import LogitsServer
from agrekd_ray.logits import (
    EvalLogits,
    Key,
    LogitsWriter,
    OutputSettings,
    listed,
    prune,
    read_record,
    sound,
    verify,
    write_record,
)
from agrekd_ray.logits import cache as store_module
from agrekd_ray.logits.forms import Packed
from agrekd_ray.logits.report import show
from agrekd_ray.models import Model, load
from agrekd_ray.settings import Training
from agrekd_ray.student import Student, StudentSpec
from agrekd_ray.training import predict

from .shared import flat_parameters, pool_of, records, told

KEY = Key("erm-0", "w" * 64, {"name": "cnn"}, "d", "v", "none", "float32", 200, 10)
STUDENT = Model(name="cnn", args={"width": 4})
VIEWS = {"flip": True, "shift": 1, "count": 2}


FORMS: list[dict[str, Any]] = [
    {"dtype": "float32"},
    {"dtype": "float16"},
    {"dtype": "int8"},
    {"dtype": "float32", "top_k": 3},
    {"dtype": "float16", "top_k": 4},
    {"dtype": "int8", "top_k": 2},
]


def some_logits(key: Key = KEY, seed: int = 0) -> np.ndarray:
    """As a record in the key's form gives them back."""
    rows = np.random.default_rng(seed).normal(size=(key.rows, key.classes))
    return key.form.decode(key.form.encode(rows))


# --- one record


@pytest.mark.parametrize("form", FORMS)
def test_a_record_is_read_as_it_was_written_and_costs_its_numbers(
    tmp_path: Path, form: dict[str, Any]
) -> None:
    key = replace(KEY, **form, rows=4000)
    logits = np.random.default_rng(0).normal(size=(4000, 10))
    write_record(tmp_path / "view-00000.arrow", key, logits)
    read = read_record(tmp_path / "view-00000.arrow", key)
    assert read is not None
    np.testing.assert_array_equal(read[:], some_logits(key))
    stored = read.rows_NR if isinstance(read, Packed) else read
    assert not stored.flags.writeable  # the file's own pages
    size = (tmp_path / "view-00000.arrow").stat().st_size
    assert size == pytest.approx(key.rows * key.form.row_bytes, rel=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["view-00000.arrow"]


def test_a_record_is_an_ordinary_arrow_file(tmp_path: Path) -> None:
    write_record(tmp_path / "one.arrow", KEY, some_logits())
    table = pa.ipc.open_file(tmp_path / "one.arrow").read_all()
    assert table.column_names == ["logits"]
    np.testing.assert_allclose(table["logits"][7].as_py(), some_logits()[7])


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "other"},
        {"model": {"name": "cnn_deep"}},
        {"data": "other"},
        {"views": "other"},
        {"autocast": "bfloat16"},
        {"dtype": "float16"},
        {"dtype": "int8"},
        {"top_k": 3},
    ],
)
def test_whatever_changes_the_output_changes_the_key(tmp_path: Path, change: Any) -> None:
    other = replace(KEY, **change)
    assert other.folder != KEY.folder
    write_record(tmp_path / "one.arrow", KEY, some_logits())
    assert read_record(tmp_path / "one.arrow", other) is None
    assert replace(KEY, teacher="renamed").folder == KEY.folder


def test_records_of_before_there_were_packed_forms_are_found() -> None:
    folders = [replace(KEY, dtype=dtype).folder for dtype in ("float32", "float16")]
    assert folders == ["774a08601fe3fe4b24c6", "0dfc64e96988dedf8617"]
    assert "top_k" not in KEY.about


def test_every_kind_of_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "one.arrow"
    write_record(path, KEY, some_logits())
    whole = path.read_bytes()
    values = whole.index(some_logits()[100].tobytes())
    rng = np.random.default_rng(0)
    flips = {int(place) for place in rng.integers(values - 3000, values + 3000, 40)}
    damaged = [b"", b"ARROW1", whole[: len(whole) // 2], whole[:-1], whole[8:], whole + b"\0"]
    damaged += [whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :] for at in flips]
    found = 0
    for content in damaged:
        path.write_bytes(content)
        read = read_record(path, KEY)
        assert read is None or np.array_equal(read, some_logits())  # padding may be damaged
        found += read is None
    assert found > len(flips) / 2
    path.unlink()
    assert read_record(path, KEY) is None


# --- a record in the making


def test_rows_come_in_any_order_and_the_record_appears_when_all_are_there(tmp_path: Path) -> None:
    path, logits = tmp_path / "k/view-00000.arrow", some_logits()
    partial = LogitsWriter(path, KEY)
    order = np.random.default_rng(1).permutation(200)
    for rows in np.split(order, 8):
        assert not partial.known_N[rows].any()
        partial.put(rows, logits[rows])
        np.testing.assert_array_equal(partial.get(rows), logits[rows])
        assert not path.exists()
    assert partial.known_N.all()
    partial.finish()
    np.testing.assert_array_equal(read_record(path, KEY), logits)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


WRITER = """
import sys, numpy as np
from pathlib import Path
from tests.test_logits import FORMS, KEY, LogitsWriter, replace, some_logits
key = replace(KEY, **FORMS[int(sys.argv[2])])
partial = LogitsWriter(Path(sys.argv[1]), key)
for row in range(200):
    partial.put(np.array([row]), some_logits()[[row]])
    print(row, flush=True)
    if row == 120: sys.stdin.read()
"""


@pytest.mark.parametrize("number", [0, 5])
def test_what_a_killed_writer_left_is_taken_up_and_only_what_is_whole(
    tmp_path: Path, number: int
) -> None:
    path, key = tmp_path / "view-00000.arrow", replace(KEY, **FORMS[number])
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert writer.stdout is not None
    while writer.stdout.readline().strip() != "120":
        assert writer.poll() is None
    beside = LogitsWriter(path, key)  # its writer lives, so it is not taken from it
    assert not beside.known_N.any()
    beside.put(np.array([150]), some_logits()[[150]])
    beside.close()
    writer.kill()
    writer.wait()
    left = sorted(tmp_path.glob("*.partial"))
    assert len(left) == 2
    for one in left:  # a row that was torn
        content = bytearray(one.read_bytes())
        content[5 * key.form.row_bytes + 3] ^= 1
        one.write_bytes(content)
    partial = LogitsWriter(path, key)
    assert np.flatnonzero(~partial.known_N).tolist() == [5, *range(121, 150), *range(151, 200)]
    np.testing.assert_array_equal(partial.get(np.array([7, 150])), some_logits(key)[[7, 150]])
    assert len(list(tmp_path.glob("*.partial"))) == 1  # put together
    rows = np.flatnonzero(~partial.known_N)
    partial.put(rows, some_logits()[rows])
    partial.finish()
    read = read_record(path, key)
    assert read is not None
    np.testing.assert_array_equal(read[:], some_logits(key))


def test_a_partial_that_was_cut_short_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "view-00000.arrow"
    (tmp_path / "view-00000.0000.partial").write_bytes(b"short")
    partial = LogitsWriter(path, KEY)
    assert not partial.known_N.any()
    assert len(list(tmp_path.glob("*.partial"))) == 1


def test_two_writers_of_one_record_do_not_disturb_each_other(tmp_path: Path) -> None:
    path, logits = tmp_path / "view-00000.arrow", some_logits()
    one, two = LogitsWriter(path, KEY), LogitsWriter(path, KEY)
    one.put(np.arange(200), logits)
    two.put(np.arange(100), logits[:100])
    one.finish()
    two.put(np.arange(100, 200), logits[100:])
    read = read_record(path, KEY)
    two.finish()
    np.testing.assert_array_equal(read, logits)
    np.testing.assert_array_equal(read_record(path, KEY), logits)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"No space left on device.*outputs prune"):
        LogitsWriter(tmp_path / "view-00000.arrow", KEY)
    assert list(tmp_path.iterdir()) == []


def test_without_locks_nobody_takes_a_partial_that_may_be_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(file: Any, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    path, logits = tmp_path / "view-00000.arrow", some_logits()
    one = LogitsWriter(path, KEY)
    one.put(np.arange(100), logits[:100])
    two = LogitsWriter(path, KEY)
    assert not two.known_N.any()
    two.put(np.arange(200), logits)
    two.finish()
    one.close()
    np.testing.assert_array_equal(read_record(path, KEY), logits)


# --- a host that records, a student that replays


def specs(drawn: Any) -> list[StudentSpec]:
    training = Training(epochs=2, batch_size=48, learning_rate=0.05)
    given = [
        StudentSpec(
            name,
            3,
            STUDENT,
            training,
            told(DistillationSpec(name, drawn.teachers, drawn.biased, 4.0)),
        )
        for name in STRATEGIES
    ]
    mixed = DistillationSpec("agre_kd", drawn.teachers, drawn.biased, 2.0, alpha=0.6)
    return [*given, StudentSpec("mixed", 3, STUDENT, training, mixed)]


def trained(given: StudentSpec, data: Any, source: Any) -> torch.Tensor:
    student = Student(given, data, source, look_ahead=2)
    while not student.done:
        student.epoch()
    return flat_parameters(student.model)


@pytest.mark.parametrize("views", [{}, VIEWS])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_recording_and_replay_give_the_numbers_of_the_reference(
    make_job: Any, views: dict[str, Any], dtype: str
) -> None:
    """48 does not divide 160: an epoch leaves samples out, and the record has them all the same."""
    job = make_job(**{"data.views": views, "outputs.dtype": dtype})
    data, checkpoints, drawn = pool_of(job)
    host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    first, *others = specs(drawn)
    recorder = CachedTeachers(records(job, data, checkpoints), data, LocalTeachers(host))
    live = trained(first, data, recorder)
    assert host.computed == host.backbones * 160 * len({data.view(0), data.view(1)})  # all, once
    tolerance = {"rtol": 1e-3, "atol": 2e-5} if dtype == "float32" else {"rtol": 0.02, "atol": 2e-3}
    plain = LocalTeachers(TeacherHost(checkpoints, data))
    torch.testing.assert_close(live, trained(first, data, plain), **tolerance)
    replay = CachedTeachers(records(job, data, checkpoints), data, None)
    torch.testing.assert_close(trained(first, data, replay), live, rtol=0, atol=0)
    for given in others:
        torch.testing.assert_close(
            trained(given, data, replay), trained(given, data, plain), **tolerance
        )


@pytest.mark.parametrize("form", FORMS[2:])
def test_packed_answers_are_the_same_live_here_and_replayed(
    make_job: Any, form: dict[str, Any]
) -> None:
    """The student that records, one whose teachers are asked here, and one that replays."""
    packed = {f"outputs.{key}": value for key, value in form.items()}
    job = make_job(**{"data.views": VIEWS, **packed})
    data, checkpoints, drawn = pool_of(job)
    host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    recorder = CachedTeachers(records(job, data, checkpoints), data, LocalTeachers(host))
    replay = CachedTeachers(records(job, data, checkpoints), data, None)
    first, *others = (g for g in specs(drawn) if g.method in ("agre_kd", "ca_mkd", "mixed"))
    live = trained(first, data, recorder)
    torch.testing.assert_close(trained(first, data, replay), live, rtol=0, atol=0)
    plain = trained(first, data, LocalTeachers(TeacherHost(checkpoints, data)))
    assert not torch.allclose(plain, live, rtol=1e-5, atol=1e-7)  # it is another answer
    here = LocalTeachers(TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints)))
    for given in others:
        local, replayed = trained(given, data, here), trained(given, data, replay)
        torch.testing.assert_close(replayed, local, rtol=1e-3, atol=2e-5)


@pytest.mark.usefixtures("plugins_forgotten")
def test_a_strategy_of_ones_own_sees_labels_live_and_replayed(make_job: Any) -> None:
    """Class c is taught by teacher c mod M alone, whoever answers."""

    @strategies.strategy("by_label", per="sample", needs_labels=True)
    def by_label(evidence: Any) -> Any:
        teachers = torch.arange(evidence.teachers)[:, None]
        return (evidence.labels % evidence.teachers == teachers).double(), None

    job = make_job()
    data, checkpoints, drawn = pool_of(job)
    host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    lesson = DistillationSpec("by_label", drawn.teachers, drawn.biased, 4.0)
    given = replace(specs(drawn)[0], spec=lesson)
    recorder = CachedTeachers(records(job, data, checkpoints), data, LocalTeachers(host))
    replay = CachedTeachers(records(job, data, checkpoints), data, None)
    labels_N = data.labels(np.arange(data.size)).numpy()
    by_class = replace(data.groups, group_N=labels_N, names=data.classes)
    for source in (LocalTeachers(TeacherHost(checkpoints, data)), recorder, replay):
        student = Student(given, data, source, groups=by_class)
        while not student.done:
            student.epoch()
        taught = student.history[-1].weights
        assert [*taught] == [*data.classes]
        for number, shares in enumerate(taught.values()):
            assert shares[drawn.teachers[number % len(drawn.teachers)]] == 1


def test_a_student_switches_to_records_at_the_first_complete_epoch(make_job: Any) -> None:
    job = make_job()
    data, checkpoints, drawn = pool_of(job)
    host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    asked: list[int] = []

    class Counted(LocalTeachers):
        def ask(self, request: Any) -> Any:
            asked.append(request.epoch)
            return super().ask(request)

    source = CachedTeachers(records(job, data, checkpoints), data, Counted(host))
    given = specs(drawn)[0]  # `aver` asks no biased model, which is recorded all the same
    trained(given, data, source)
    assert set(asked) == {0}
    assert records(job, data, checkpoints).missing([0]) == []


def test_the_next_view_is_looked_up_and_put_together_while_an_epoch_lasts(
    make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views that come again stay in memory, as far as there is room; others never do."""
    job = make_job(**{"data.views": {"flip": True, "count": 3}})
    data, checkpoints, drawn = pool_of(job)
    host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    for epoch in range(3):
        host.complete(epoch)
    replay = CachedTeachers(records(job, data, checkpoints), data, None)
    spec = DistillationSpec("aver", drawn.teachers, drawn.biased, 4.0)
    seen = []
    for epoch in range(7):
        (column,) = replay.columns(spec, epoch)
        assert replay.columns(spec, epoch)[0] is column
        replay._thread.submit(int).result()  # what was begun is done
        coming = [future.result() for future in replay._coming.values()]
        assert all(one is not None and "_whole" in vars(one) for one in coming)
        assert len(coming) == (1 if epoch < 4 else 0)  # later ones have stayed
        kept = list(replay._columns.values())
        assert len(kept) == (1 if epoch < 3 else min(3, epoch - 1))
        seen.append(column)
        replay.complete(epoch)
    assert seen[3] is not seen[0]  # before it was known that views repeat
    assert (seen[5], seen[6]) == (seen[2], seen[3])
    monkeypatch.setattr(recorded, "IN_MEMORY", 2 * seen[0].nbytes)
    replay.columns(spec, 7)
    assert len(replay._columns) == 2


def test_how_an_epoch_is_taught_is_decided_once_and_for_each_student(make_job: Any) -> None:
    """Though records become whole in between, and though students share what reads them."""
    job = make_job(**{"data.views": {"flip": True, "count": 2}})
    data, checkpoints, drawn = pool_of(job)
    host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    source = CachedTeachers(records(job, data, checkpoints), data, LocalTeachers(host))
    two = DistillationSpec("aver", drawn.teachers[:2], drawn.biased, 4.0)
    first = Distilled(two, source, data)
    second = Distilled(DistillationSpec("ae_kd", drawn.teachers, drawn.biased, 4.0), source, data)
    assert first.columns(0, True) is None  # may be there when the epoch begins
    assert first.columns(0, False) == ()
    host.complete(0)
    assert first.columns(0, True) == ()  # goes on as it began
    (column,) = second.columns(0, True) or ()
    assert column.row_shape[0] == len(drawn.teachers) == 3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_student_that_diverges_on_records_is_one_error(make_job: Any, strategy: str) -> None:
    job = make_job()
    data, checkpoints, drawn = pool_of(job)
    TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints)).complete(0)
    replay = CachedTeachers(records(job, data, checkpoints), data, None)
    training = Training(epochs=2, batch_size=48, learning_rate=0.05)
    spec = told(DistillationSpec(strategy, drawn.teachers, drawn.biased, 4.0))
    student = Student(StudentSpec(strategy, 3, STUDENT, training, spec), data, replay)
    student.epoch()
    for weights in student.model.parameters():
        weights.data.fill_(float("nan"))
    with pytest.raises(RunError, match=r"no longer finite in step 4 .*epoch 2.*diverged"):
        student.epoch()


def test_without_teachers_a_missing_record_is_one_error(make_job: Any) -> None:
    job = make_job()
    data, checkpoints, drawn = pool_of(job)
    source = CachedTeachers(records(job, data, checkpoints), data, None)
    with pytest.raises(RunError, match=r"recorded outputs of .* for view 0 are missing"):
        trained(specs(drawn)[0], data, source)


@pytest.mark.parametrize(
    ("strategy", "form"),
    [*((name, {}) for name in sorted(STRATEGIES)), *(("agre_kd", form) for form in FORMS[2:])],
)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_foreign_record_with_nan_is_named(
    make_job: Any,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    form: dict[str, Any],
    on_gpu: bool,
) -> None:
    """On the CPU at its step; on a GPU, where nobody looks at a step, with the loss."""
    packed = {f"outputs.{key}": value for key, value in form.items()}
    job = make_job(**{"data.views": VIEWS, **packed})
    data, checkpoints, drawn = pool_of(job)
    outputs = records(job, data, checkpoints)
    given = next(one for one in specs(drawn) if one.method == strategy)
    assert given.spec is not None
    others = [name for name in drawn.teachers if name != drawn.biased]
    victim = drawn.biased if given.spec.uses_biased and on_gpu else others[0]
    logits_NC = np.random.default_rng(0).normal(size=(outputs.count, 10)).astype(np.float32)
    for name in checkpoints:
        outputs.write(name, 0, logits_NC)
        outputs.write(name, 1, logits_NC)
    logits_NC[70, 3] = np.nan
    outputs.write(victim, 1, logits_NC)
    for module in (strategies, weighting):
        monkeypatch.setattr(module, "is_looked_at", lambda _: not on_gpu)
    says = rf"teacher {victim}'s record of epoch 2 .*\(1 of 160 .*: {outputs.path(victim, 1)}"
    with pytest.raises(RunError, match=says):
        trained(given, data, CachedTeachers(records(job, data, checkpoints), data, None))


def test_a_damaged_record_is_computed_again(make_job: Any) -> None:
    job = make_job()
    data, checkpoints, _ = pool_of(job)
    host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    assert host.complete(0, 32) == len(data.splits[TRAIN]) - 32
    assert host.complete(0) == 0
    outputs = records(job, data, checkpoints)
    victim = outputs.path(next(iter(checkpoints)), 0)
    sound = victim.read_bytes()
    victim.write_bytes(sound[:900] + b"\xff" + sound[901:])
    store = job.outputs.store
    assert dict(verify(store))[victim] is False
    assert sum(sound for _, sound in verify(store)) == len(checkpoints) - 1
    again = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    assert again.complete(0) == 0
    assert victim.read_bytes() == sound
    assert all(sound for _, sound in verify(store))


def test_two_jobs_record_one_teacher_at_once(make_job: Any) -> None:
    """Two hosts, in threads, over the same view: both end well, and the record is sound."""
    job = make_job(**{"data.views": VIEWS})
    data, checkpoints, _ = pool_of(job)
    hosts = [
        TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints)) for _ in range(2)
    ]
    together = threading.Barrier(2)
    ended: list[int] = []

    def work(host: TeacherHost) -> None:
        together.wait()
        for limit in (64, 64, None):
            left = host.complete(1, limit)
        ended.append(left)

    threads = [threading.Thread(target=work, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [0, 0]
    outputs = records(job, data, checkpoints)
    assert outputs.missing([1]) == []
    ids = data.splits[TRAIN]
    for name, folder in checkpoints.items():
        with torch.inference_mode():
            expected = load(folder)[0](data.inputs(ids, 1))
        torch.testing.assert_close(torch.tensor(outputs.read(name, 1)), expected)
    left = [path.name for path in job.outputs.store.rglob("*") if path.suffix == ".partial"]
    assert left == []


def test_a_record_that_another_job_finished_leaves_nothing_behind(make_job: Any) -> None:
    job = make_job()
    data, checkpoints, _ = pool_of(job)
    slow, fast = (
        TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints)) for _ in range(2)
    )
    assert slow.complete(0, 32) > 0
    assert fast.complete(0) == 0
    assert slow.complete(0) == 0
    assert slow.computed == 32 * slow.backbones
    assert [p for p in job.outputs.store.rglob("*") if "partial" in p.name] == []


def test_a_record_that_another_job_finishes_while_this_one_looks(
    make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    data, checkpoints, _ = pool_of(job)
    outputs = records(job, data, checkpoints)
    slow = TeacherHost(checkpoints, data, outputs=outputs)
    assert slow.complete(0, 32) > 0
    look, looked = outputs.read, []

    def read(name: str, view: int) -> np.ndarray | None:
        found = look(name, view)
        looked.append(name)
        if len(looked) == 1:
            other = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
            assert other.complete(0) == 0
        return found

    monkeypatch.setattr(outputs, "read", read)
    assert slow.complete(0) == 0
    assert [p for p in job.outputs.store.rglob("*") if "partial" in p.name] == []
    assert records(job, data, checkpoints).missing([0]) == []


def test_what_models_say_to_the_test_split_is_recorded_too(make_job: Any) -> None:
    job = make_job()
    data, checkpoints, _ = pool_of(job)
    folder = next(iter(checkpoints.values()))
    kept = EvalLogits(job.outputs, data, "float32")
    assert kept.read(folder, TEST) is None
    said = predict(load(folder)[0], data, data.splits[TEST])
    kept.write(folder, TEST, said)
    again = kept.read(folder, TEST)
    assert again is not None
    torch.testing.assert_close(again, said, rtol=0, atol=0)
    assert kept.read(folder, SELECT) is None  # another split has a record of its own
    kept.write(folder, SELECT, said[: len(data.splits[SELECT])])
    for old in listed(job.outputs.store):
        os.utime(old.folder / store_module.MANIFEST, (0, 0))
    for split in (SELECT, TEST):
        assert kept.read(folder, split) is not None
    assert prune(job.outputs.store, 30) == []  # used today


@pytest.mark.parametrize(("dtype", "beyond"), [("float16", 1e6), ("int8", 2e38)])
def test_what_a_dtype_cannot_hold_is_refused(make_job: Any, dtype: str, beyond: float) -> None:
    job = make_job(**{"outputs.dtype": dtype})
    data, checkpoints, _ = pool_of(job)
    host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    name = host.names[0]
    with torch.no_grad():
        host._heads[name][1].bias[0] = beyond
    with pytest.raises(RunError, match=f"teacher {name} .* beyond what {dtype} holds"):
        host.complete(0)


def test_views_have_a_number_that_comes_again(make_job: Any) -> None:
    data, _, _ = pool_of(make_job(**{"data.views": VIEWS}))
    ids = data.splits[TRAIN][:8]
    assert [data.view(epoch) for epoch in range(5)] == [0, 1, 0, 1, 0]
    torch.testing.assert_close(data.inputs(ids, 0), data.inputs(ids, 4), rtol=0, atol=0)
    assert not torch.equal(data.inputs(ids, 0), data.inputs(ids, 1))
    more, _, _ = pool_of(make_job(**{"data.views": {**VIEWS, "count": 7}}))
    assert more.views_fingerprint == data.views_fingerprint  # view v is the same picture
    torch.testing.assert_close(data.inputs(ids, 1), more.inputs(ids, 1), rtol=0, atol=0)


def test_records_are_listed_and_removed_when_long_unused(make_job: Any) -> None:
    job = make_job()
    data, checkpoints, _ = pool_of(job)
    TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints)).complete(0)
    store = job.outputs.store
    found = listed(store)
    assert {one.key.teacher for one in found if one.key} == {f.name for f in checkpoints.values()}
    assert all(len(one.views) == 1 and not one.unfinished for one in found)
    old = found[0].folder
    os.utime(old / store_module.MANIFEST, (time.time() - 40 * 86400,) * 2)
    assert [one.folder for one in prune(store, 30, keep=True)] == [old]
    assert old.exists()
    prune(store, 30)
    assert not old.exists()
    assert len(listed(store)) == len(found) - 1
    with pytest.raises(RunError, match="no folder of recorded outputs"):
        listed(store / "nowhere")


def test_two_forms_lie_side_by_side_in_a_store(make_job: Any) -> None:
    exact = make_job()
    packed = make_job(**{"outputs.dtype": "int8", "outputs.top_k": 2})
    data, checkpoints, _ = pool_of(exact)
    for job in (exact, packed):
        host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
        assert host.complete(0) == 0
        assert host.computed > 0
    store, name = exact.outputs.store, next(iter(checkpoints))
    one, other = (records(job, data, checkpoints) for job in (exact, packed))
    logits_NC, few_NC = one.read(name, 0), other.read(name, 0)
    assert logits_NC is not None
    assert few_NC is not None
    form = other.keys[name].form
    np.testing.assert_array_equal(few_NC[:], form.decode(form.encode(logits_NC[:])))
    assert one.bytes() > 2 * other.bytes()
    assert all(sound for _, sound in verify(store))
    assert {str(one.key.form) for one in listed(store) if one.key} == {"float32", "int8 top 2"}
    console = Console(width=200, file=io.StringIO())
    show(store, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    counts = [said.count(f"train 1 × 160{form}") for form in (" int8 top 2", "")]
    assert counts == [len(checkpoints), 2 * len(checkpoints)]
    narrow = Console(width=50, file=io.StringIO())
    show(store, narrow)
    assert name[:4] in narrow.file.getvalue()  # type: ignore[attr-defined]


# --- on Ray


def test_packed_records_are_lent(ray_session: Any, make_job: Any, tmp_path: Path) -> None:
    """To a process whose own disk has none."""
    job = make_job(**{"outputs.dtype": "int8", "outputs.top_k": 2})
    data, checkpoints, _ = pool_of(job)
    TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints)).complete(0)
    numbers = job.fleet.computes_in
    server = LogitsServer.start(job.outputs, checkpoints, job.data, numbers)
    try:
        elsewhere = job.outputs.model_copy(update={"store": tmp_path / "elsewhere"})
        lent = server(elsewhere, checkpoints, data, numbers)
        for name in checkpoints:
            own, theirs = records(job, data, checkpoints).read(name, 0), lent.read(name, 0)
            assert own is not None
            assert theirs is not None
            np.testing.assert_array_equal(theirs[:], own[:])
            lent.write(name, 0, theirs)  # as a driver keeps what it fetched
            assert lent.path(name, 0).read_bytes() == (
                records(job, data, checkpoints).path(name, 0).read_bytes()
            )
    finally:
        server.close()


@pytest.mark.chaos
def test_a_teacher_killed_while_it_records_costs_nothing_but_time(
    ray_session: Any, make_job: Any
) -> None:
    """SIGKILL in mid-recording: the restarted actor goes on with the record; replay agrees."""
    from agrekd_ray.cluster.fleet_settings import FleetSettings
    from agrekd_ray.fleet.fleet import Fleet

    job = make_job(**{"data.views": {**VIEWS, "count": 3}})
    data, checkpoints, drawn = pool_of(job)
    given = replace(
        specs(drawn)[-1], training=Training(epochs=4, batch_size=48, learning_rate=0.05)
    )
    settings = FleetSettings(cpus=0.5, gpus=0, backbones_per_actor=2)
    fleet = Fleet(checkpoints, job.data, settings, lambda event: None, outputs=job.outputs)
    try:
        first = ray_session.get(fleet.actors[0].process.remote())
        source = CachedTeachers(records(job, data, checkpoints), data, fleet.source())
        student = Student(given, data, source, look_ahead=2)
        killer = threading.Timer(0.03, os.kill, (first, signal.SIGKILL))
        killer.start()
        while not student.done:
            student.epoch()
        killer.join()
        assert ray_session.get(fleet.actors[0].process.remote()) != first
    finally:
        fleet.close()
    live = flat_parameters(student.model)
    reference = trained(given, data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(live, reference, rtol=1e-3, atol=2e-5)
    assert records(job, data, checkpoints).missing(range(3)) == []
    replay = CachedTeachers(records(job, data, checkpoints), data, None)
    torch.testing.assert_close(trained(given, data, replay), live, rtol=1e-3, atol=2e-5)


@pytest.mark.chaos
def test_a_released_fleet_is_not_missed(
    ray_session: Any, make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, every strategy, augmented: recorded as they train, replayed without an actor."""
    from agrekd_ray.cluster.channel import Channel
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.experiment import teacher_provider
    from agrekd_ray.experiment.listener import Listener
    from agrekd_ray.experiment.teacher_provider import TeacherProvider
    from agrekd_ray.student import StudentSettings
    from agrekd_ray.student.group import TrainConfig, train_group

    monkeypatch.setattr(teacher_provider, "FEW", 0)
    workers = {"student.workers": 2, "student.cpus": 0.5, "fleet.cpus": 0.5}
    job = make_job(**workers, **{"data.views": VIEWS})
    data, checkpoints, drawn = pool_of(job)
    given = tuple(specs(drawn))
    channel = Channel()
    told: list[Any] = []
    with TeacherProvider(job, checkpoints, data, [0, 1], channel.emit) as teaching:
        source, shown = teaching.source(), DriverData.of(job.data)
        work = TrainConfig(given, shown, source, tmp_path / "s", tmp_path, channel.emit, 2)
        workers = StudentSettings(
            model=STUDENT, training=given[0].training, workers=2, cpus=0.5, gpus=0
        )
        with Listener(channel, [teaching.watch]):
            train_group(work, workers)
        assert teaching._fleet is None  # released while the students were trained
        assert teaching.effort.forwards > 0
    channel.close()
    for spec in given:
        reference = trained(spec, data, LocalTeachers(TeacherHost(checkpoints, data)))
        worked = flat_parameters(load(tmp_path / "s" / spec.name)[0])
        torch.testing.assert_close(worked, reference, rtol=1e-3, atol=2e-5)
    with TeacherProvider(job, checkpoints, data, [0, 1], told.append) as again:
        assert again.source() is not None
        assert again._fleet is None
    assert again.effort.actors == 0


@pytest.mark.parametrize(
    ("changes", "few"),
    [
        ({}, True),
        ({"fleet.backbones_per_actor": 3, "fleet.concurrent": 2}, True),
        ({"fleet.weighting_actors": 2}, False),
        ({"fleet.replicas": 2}, False),
        ({"fleet.on_teacher_loss": "drop"}, False),
        ({"fleet.teachers": {"erm-*": {"gpus": 0}}}, False),
        ({"guidance": "live"}, False),
    ],
)
def test_few_records_are_made_without_a_fleet(
    ray_session: Any, make_job: Any, changes: dict[str, Any], few: bool
) -> None:
    """In one task; where a fleet does what a task cannot, or there is much to do, by a fleet."""
    from agrekd_ray.experiment.teacher_provider import TeacherProvider

    job = make_job(**{"data.views": VIEWS, "fleet.cpus": 0.1}, **changes)
    data, checkpoints, drawn = pool_of(job)
    told: list[Any] = []
    with TeacherProvider(job, checkpoints, data, [0, 1], told.append) as teaching:
        source = teaching.source()
        assert source is not None
        assert teaching.hosts is not few
        assert bool(records(job, data, checkpoints).missing([0, 1])) is not few
        if not few:
            return
        given = next(iter(specs(drawn)))
        worked = trained(given, data, source(data))
    reference = trained(given, data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(worked, reference, rtol=1e-3, atol=2e-5)
    host = TeacherHost(checkpoints, data)
    assert teaching.effort.forwards >= 2 * host.backbones
    assert teaching.effort.recorded > 0
    assert [e for e in told if isinstance(e, TeacherCostSoFar)][-1].effort == teaching.effort
    assert any("recorded; no actor is started" in e.text for e in told if isinstance(e, Notice))


def test_few_records_without_room_are_an_error_with_numbers(
    ray_session: Any, make_job: Any
) -> None:
    """And no task that waits for ever."""
    from agrekd_ray.experiment.teacher_provider import TeacherProvider

    job = make_job(**{"fleet.cpus": 1000})
    data, checkpoints, _ = pool_of(job)
    with (
        TeacherProvider(job, checkpoints, data, [0], lambda event: None) as teaching,
        pytest.raises(RunError, match=r"1,?000"),
    ):
        teaching.source()


def test_much_to_record_is_a_fleets_matter(
    ray_session: Any, make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agrekd_ray.experiment import teacher_provider

    job = make_job(**{"data.views": VIEWS, "fleet.cpus": 0.1})
    data, checkpoints, _ = pool_of(job)
    shown = len(checkpoints) * 2 * len(data.splits["train"]) * int(np.prod(data.shape))
    for few, hosts in ((shown, False), (shown - 1, True)):
        monkeypatch.setattr(teacher_provider, "FEW", few)
        again = job.model_copy(
            update={"outputs": job.outputs.model_copy(update={"store": job.runs / str(few)})}
        )
        with teacher_provider.TeacherProvider(
            again, checkpoints, data, [0, 1], lambda event: None
        ) as teaching:
            teaching.source()
            assert teaching.hosts is hosts


def test_without_a_shared_folder_records_go_through_the_object_store(
    ray_session: Any, make_job: Any, add_node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's node, the teachers' and the student's have a disk each; the keeper is killed.

    Of the first view nobody answers in time; it is fetched with the second one.
    """
    from agrekd_ray.experiment import teacher_provider as module
    from agrekd_ray.fleet import fleet

    add_node(num_cpus=1)
    theirs, students = (OutputSettings(store=tmp_path / name) for name in ("theirs", "students"))
    fetched: list[int] = []

    class FleetWithADiskOfItsOwn(fleet.Fleet):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **{**more, "outputs": theirs})

        def recorded(self, names: Any, view: int) -> dict[str, Any]:
            fetched.append(view)
            return super().recorded(names, view) if len(fetched) > 1 else {}

    monkeypatch.setattr(module, "Fleet", FleetWithADiskOfItsOwn)
    monkeypatch.setattr(fleet, "FETCH_SECONDS", 600)
    job = make_job(**{"data.views": VIEWS, "fleet.cpus": 0.1})
    data, checkpoints, drawn = pool_of(job)
    given = specs(drawn)[0]
    given = replace(given, training=given.training.model_copy(update={"epochs": 4}))
    with module.TeacherProvider(job, checkpoints, data, [0, 1], lambda event: None) as teaching:
        replay = teaching.source()
        assert isinstance(replay, Replay)
        student = Student(given, data, replace(replay, settings=students)(data), look_ahead=2)
        while not student.done:
            epoch = student.epoch()
            assert epoch is not None
            teaching.watch(StudentEpoch(given.name, 4, epoch))
            if epoch.epoch == 2:
                assert teaching._fleet is None
                ray_session.kill(teaching._logits_server.actor, no_restart=False)
    replayed = [epoch.replayed_steps / epoch.steps for epoch in student.history]
    assert (replayed, fetched) == ([0, 0, 1, 1], [0, 0, 1])
    assert records(job, data, checkpoints).missing([0, 1]) == []
    assert not list(students.store.rglob("*.arrow"))
    reference = trained(given, data, LocalTeachers(TeacherHost(checkpoints, data)))
    torch.testing.assert_close(flat_parameters(student.model), reference, rtol=1e-3, atol=2e-5)


def test_a_large_record_is_read_whole_once_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[int] = []
    digest = sound._digest

    def counted(values: np.ndarray) -> str:
        whole.append(values.nbytes)
        return digest(values)

    monkeypatch.setattr(sound, "_digest", counted)
    monkeypatch.setattr(sound.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    path = tmp_path / "view-00000.arrow"
    write_record(path, KEY, some_logits())
    assert read_record(path, KEY) is not None
    assert read_record(path, KEY) is not None
    assert len(whole) == 2  # a small one each time
    monkeypatch.setattr(sound, "FROM_BYTES", 1)
    threads = [threading.Thread(target=read_record, args=(path, KEY)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(whole) == 3
    assert read_record(path, KEY, anew=True) is not None
    assert len(whole) == 4

    (stamp,) = (tmp_path / "tmp").rglob("*/*")
    os.utime(stamp, (0, 0))  # long ago
    assert read_record(path, KEY) is not None
    assert len(whole) == 5

    content = bytearray(path.read_bytes())
    content[content.index(some_logits()[100].tobytes())] ^= 1
    path.write_bytes(content)
    assert read_record(path, KEY) is None  # written since, so another file
    assert read_record(path, KEY) is None
    assert len(whole) == 7

    write_record(path, KEY, some_logits())
    (tmp_path / "tmp" / next((tmp_path / "tmp").iterdir()).name).chmod(0o777)
    assert read_record(path, KEY) is not None
    assert read_record(path, KEY) is not None
    assert len(whole) == 9  # in a folder that others can write to nothing is believed
