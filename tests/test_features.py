"""Features of a backbone in place of the logits of its heads: recorded, live, replayed, lent."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from agrekd_ray.cluster.nodes import DriverData
from agrekd_ray.config import Job
from agrekd_ray.distillation import (
    CachedTeachers,
    DistillationSpec,
    GradientRequest,
    LocalTeachers,
    TeacherHost,
)
from agrekd_ray.errors import CheckpointError, RunError
from agrekd_ray.fleet.logits_server import LogitsServer
from agrekd_ray.logits import listed
from agrekd_ray.models import load
from agrekd_ray.models.checkpoint import WEIGHTS, save

from .shared import pool_of, records
from .test_replay import VIEWS, specs, trained

SHARED = "dfr-2", "head-0", "head-1", "head-2", "head-3"
"""Teachers of one backbone: 5 × 10 logits, out of 32 features."""


@pytest.fixture
def heads(make_job: Callable[..., Job], tmp_path: Path) -> Any:
    """A job that records features, its data, and seven teachers with three backbones."""
    job = make_job(**{"data.views": VIEWS, "outputs.features": True})
    data, checkpoints, drawn = pool_of(job)
    model, manifest = load(checkpoints["dfr-2"])
    for number, name in enumerate(SHARED[1:]):
        torch.manual_seed(number)
        torch.nn.init.normal_(model.head.weight, std=0.3)
        save(tmp_path / name, model, replace(manifest, fingerprint=f"{number:064}"))
        checkpoints = {**checkpoints, name: tmp_path / name}
    spec = DistillationSpec("agre_kd", tuple(checkpoints), drawn.biased, 4.0)
    return job, data, checkpoints, spec


def plain(job: Job) -> Job:
    """The same, with logits of every teacher in a folder of their own."""
    changes = {"features": False, "store": job.outputs.store / "plain"}
    return job.model_copy(update={"outputs": job.outputs.model_copy(update=changes)})


def files(job: Job) -> list[str]:
    """Whose finished records there are."""
    found = listed(job.outputs.store)
    whose = [one.key.teacher for one in found if one.key for _ in one.views]
    return sorted(re.sub("-[0-9a-f]{16,}$", "", name) for name in whose)


def test_features_are_recorded_once_and_make_the_logits_of_every_head(heads: Any) -> None:
    job, data, checkpoints, _ = heads
    host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    host.complete(0)
    assert files(job) == ["erm-0", "erm-1", f"features of {', '.join(SHARED)}"]
    assert host.forwards == 3 * -(-len(data.splits["train"]) // 256)
    TeacherHost(checkpoints, data, outputs=records(plain(job), data, checkpoints)).complete(0)
    ours, theirs = (records(which, data, checkpoints) for which in (job, plain(job)))
    rows = np.array([3, 0, 41])
    for name in checkpoints:
        found, expected = ours.read(name, 0), theirs.read(name, 0)
        assert found is not None
        assert expected is not None
        assert found.shape == expected.shape
        np.testing.assert_allclose(found[:], expected[:], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[rows], expected[rows], rtol=1e-5, atol=1e-5)
    assert ours.bytes() < theirs.bytes()
    assert ours.missing([0]) == []


def test_live_and_replayed_students_are_those_of_recorded_logits(heads: Any) -> None:
    """Of teachers that record features as they teach, and out of these."""
    job, data, checkpoints, spec = heads
    given = replace(specs(spec)[0], spec=spec)
    reference = trained(given, data, LocalTeachers(TeacherHost(checkpoints, data)))
    host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    live = trained(given, data, LocalTeachers(host))
    for view in (0, 1):
        host.complete(view)
    assert len(files(job)) == 6
    source = CachedTeachers(records(job, data, checkpoints), data, None)
    (column,) = source.columns(spec, 0)
    assert column.row_shape == (32 + 2 * 10,)  # of seven teachers
    for found in (live, trained(given, data, source)):
        torch.testing.assert_close(found, reference, rtol=1e-3, atol=2e-5)


def test_heads_compute_where_the_rows_are(heads: Any) -> None:
    """A device that is not the CPU gets the heads once; an answer of any kind is [B, M, C]."""
    job, data, checkpoints, spec = heads
    TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints)).complete(0)
    (column,) = CachedTeachers(records(job, data, checkpoints), data, None).columns(spec, 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        rows_BW = torch.empty(6, *column.row_shape, device="cuda")
        logits_BMC = column.decoded(rows_BW)
        assert logits_BMC.device == rows_BW.device
        assert logits_BMC.shape == (6, 7, 10)
        assert len(column._heads) == 2
        column.decoded(rows_BW)
        assert len(column._heads) == 2


def test_a_new_head_of_a_recorded_backbone_is_recorded_already(heads: Any) -> None:
    job, data, checkpoints, _ = heads
    few = {name: folder for name, folder in checkpoints.items() if name != "head-3"}
    TeacherHost(few, data, outputs=records(job, data, few)).complete(0)
    outputs = records(job, data, checkpoints)
    assert outputs.missing([0]) == []
    answered = outputs.read("head-3", 0)
    assert answered is not None
    model, _ = load(checkpoints["head-3"])
    ids = data.splits["train"][:5]
    with torch.inference_mode():
        expected = model(data.inputs(ids, 0)).numpy()
    np.testing.assert_allclose(answered[:5], expected, rtol=1e-4, atol=1e-5)


def test_logits_that_are_recorded_are_taken_and_only_the_others_made(heads: Any) -> None:
    """Of two heads there are logits of before; the three others are recorded by their features."""
    job, data, checkpoints, spec = heads
    before = {name: checkpoints[name] for name in ("dfr-2", "head-0")}
    TeacherHost(before, data, outputs=records(job, data, before)).complete(0)
    assert files(job) == ["dfr-2", "head-0"]  # 2 × 10 are less than 32
    outputs = records(job, data, checkpoints)
    host = TeacherHost(checkpoints, data, outputs=outputs)
    ids = data.splits["train"][:24]
    logits = np.random.default_rng(0).normal(size=(24, 10)).astype(np.float32)
    request = GradientRequest(spec, 0, 0, ids, logits)
    live = host.gradients(spec.teachers, request)
    alone = TeacherHost(checkpoints, data).gradients(spec.teachers, request)
    np.testing.assert_allclose(live.gradients_mBC, alone.gradients_mBC, rtol=1e-4, atol=1e-6)
    host.complete(0)
    assert files(job) == ["dfr-2", "erm-0", "erm-1", f"features of {', '.join(SHARED)}", "head-0"]
    assert outputs.read("dfr-2", 0) is not None
    assert outputs.file("dfr-2", 0) != outputs.file("head-1", 0)
    assert outputs.file("head-1", 0) == outputs.file("head-2", 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, True), ({"features": False}, False), ({"top_k": 3}, False), ({"dtype": "int8"}, True)],
)
def test_where_features_are_recorded(heads: Any, changes: dict[str, Any], expected: bool) -> None:
    job, data, checkpoints, _ = heads
    outputs = job.outputs.model_copy(update=changes)
    found = records(job.model_copy(update={"outputs": outputs}), data, checkpoints)
    of_features = {name for name in checkpoints if found.place(name).head is not None}
    assert of_features == (set(SHARED) if expected else set())


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_features_take_the_forms_of_logits(heads: Any, dtype: str) -> None:
    job, data, checkpoints, _ = heads
    outputs = job.outputs.model_copy(update={"dtype": dtype, "features": True})
    job = job.model_copy(update={"outputs": outputs})
    host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    host.complete(0)
    exact = TeacherHost(checkpoints, data, outputs=records(plain(job), data, checkpoints))
    exact.complete(0)
    for name in SHARED:
        found = records(job, data, checkpoints).read(name, 0)
        model, _ = load(checkpoints[name])
        with torch.inference_mode():
            expected = model(data.inputs(data.splits["train"], 0)).numpy()
        assert found is not None
        error = np.abs(found[:] - expected).max() / np.abs(expected).max()
        assert 0 < error < (0.002 if dtype == "float16" else 0.03)


def test_a_head_that_is_damaged_is_named(heads: Any) -> None:
    job, data, checkpoints, _ = heads
    TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints)).complete(0)
    weights = checkpoints["head-2"] / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"head-2.*damaged"):
        records(job, data, checkpoints).read("head-2", 0)


def test_a_backbone_that_is_broken_is_named_with_its_heads(heads: Any) -> None:
    job, data, checkpoints, _ = heads
    host = TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints))
    shared = host._heads["dfr-2"][0]
    with torch.no_grad():
        next(iter(host._backbones[shared].parameters())).fill_(torch.nan)
    with pytest.raises(RunError, match=r"backbone of dfr-2, head-0, .* NaN or infinite features"):
        host.complete(0)


def test_features_travel_to_other_nodes_once(ray_session: Any, heads: Any, tmp_path: Path) -> None:
    job, data, checkpoints, _ = heads
    own = records(job, data, checkpoints)
    TeacherHost(checkpoints, data, outputs=own).complete(0)
    server = LogitsServer.start(
        job.outputs, checkpoints, DriverData.of(job.data), job.fleet.computes_in
    )
    elsewhere = job.outputs.model_copy(update={"store": tmp_path / "elsewhere"})
    try:
        lent = server(elsewhere, checkpoints, data, job.fleet.computes_in)
        for name in checkpoints:
            ours, theirs = own.read(name, 0), lent.read(name, 0)
            assert ours is not None
            assert theirs is not None
            np.testing.assert_array_equal(ours[:], theirs[:])
        assert len(listed(tmp_path / "elsewhere")) == 3
    finally:
        server.close()
