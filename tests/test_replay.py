"""A host that records, and students that replay, with the same numbers."""

from __future__ import annotations

import io
import os
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from agrekd_ray.core import strategies, weighting
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.data import SELECT, TEST, TRAIN
from agrekd_ray.distillation import (
    CachedTeachers,
    DistillationSpec,
    Distilled,
    LocalTeachers,
    TeacherHost,
)
from agrekd_ray.distillation import cached as recorded
from agrekd_ray.errors import RunError
from agrekd_ray.logits import (
    EvalLogits,
    listed,
    prune,
    verify,
)
from agrekd_ray.logits import cache as store_module
from agrekd_ray.logits.report import show
from agrekd_ray.models import Model, load
from agrekd_ray.settings import Training
from agrekd_ray.student import Student, StudentSpec
from agrekd_ray.training import predict

from .shared import flat_parameters, pool_of, records, told
from .test_logits import FORMS

STUDENT = Model(name="cnn", args={"width": 4})
VIEWS = {"flip": True, "shift": 1, "count": 2}

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
