"""Records in an object store: sent as they are made, fetched where a node has none."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import pytest
import torch
from moto.server import ThreadedMotoServer
from rich.console import Console

from agrekd_ray.capacity.probe import Probe
from agrekd_ray.config import Job, check_job
from agrekd_ray.data import TEST
from agrekd_ray.distillation import TeacherHost
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import run_job
from agrekd_ray.logits import EvalLogits, listed, remote
from agrekd_ray.results import TeacherCost

from .conftest import TINY, merged
from .shared import pool_of, records


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server with an empty bucket."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = pyarrow.fs.S3FileSystem(
        endpoint_override=f"http://{host}:{port}", allow_bucket_creation=True
    )
    client.create_dir("bucket")
    yield f"s3://bucket/%s?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    server.stop()


@pytest.fixture(params=["s3", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty folder, in an object store or on another disk."""
    if request.param == "file":
        return f"file://{tmp_path}/remote"
    return str(request.getfixturevalue("s3") % tmp_path.name)


def objects(address: str) -> dict[str, int]:
    """Sizes of what is at an address, by name."""
    system, root = pyarrow.fs.FileSystem.from_uri(address)
    found = system.get_file_info(
        pyarrow.fs.FileSelector(root, recursive=True, allow_not_found=True)
    )
    return {one.path[len(root) + 1 :]: one.size for one in found if one.is_file}


def test_a_node_fetches_what_another_has_recorded(
    make_job: Callable[..., Job], address: str, tmp_path: Path
) -> None:
    job = make_job(**{"outputs.remote": address})
    data, checkpoints, _ = pool_of(job)
    first = records(job, data, checkpoints)
    assert len(first.missing([0])) == len(checkpoints)  # none is no fault
    assert TeacherHost(checkpoints, data, outputs=first).complete(0) == 0
    first.settle([0])
    sizes = {
        str(path.relative_to(job.outputs.store)): path.stat().st_size
        for one in listed(job.outputs.store)
        for path in one.views
    }
    assert objects(address) == sizes
    assert len(sizes) == len(checkpoints)

    elsewhere = make_job(**{"outputs.remote": address, "outputs.store": str(tmp_path / "other")})
    second = records(elsewhere, data, checkpoints)
    assert second.missing([0]) == []
    for name in checkpoints:
        here, there = first.read(name, 0), second.read(name, 0)
        assert here is not None
        assert there is not None
        np.testing.assert_array_equal(here[:], there[:])
    assert [one.key for one in listed(tmp_path / "other")] != [None] * len(checkpoints)
    assert not [*(tmp_path / "other").rglob(".*")]


def test_what_models_say_to_the_test_split_is_sent_too(
    make_job: Callable[..., Job], address: str, tmp_path: Path
) -> None:
    job = make_job(**{"outputs.remote": address})
    data, checkpoints, _ = pool_of(job)
    folder = next(iter(checkpoints.values()))
    said = torch.randn(len(data.splits[TEST]), 10)
    kept = EvalLogits(job.outputs, data, "float32")
    kept.write(folder, TEST, said)
    kept.settle()
    elsewhere = job.outputs.model_copy(update={"store": tmp_path / "other"})
    there = EvalLogits(elsewhere, data, "float32").read(folder, TEST)
    assert there is not None
    torch.testing.assert_close(there, said, rtol=0, atol=0)


def test_what_was_said_to_test_before_there_was_an_object_store_is_sent_when_it_is_used(
    make_job: Callable[..., Job], address: str
) -> None:
    job = make_job(**{"outputs.remote": address})
    data, checkpoints, _ = pool_of(job)
    folder = next(iter(checkpoints.values()))
    said = torch.randn(len(data.splits[TEST]), 10)
    before = job.outputs.model_copy(update={"remote": None})
    EvalLogits(before, data, "float32").write(folder, TEST, said)
    kept = EvalLogits(job.outputs, data, "float32")
    kept.settle()
    assert objects(address) == {}
    assert kept.read(folder, TEST) is not None
    kept.settle()
    assert len(objects(address)) == 1


def test_a_record_that_is_damaged_there_is_made_and_sent_again(
    make_job: Callable[..., Job], address: str, tmp_path: Path
) -> None:
    job = make_job(**{"outputs.remote": address})
    data, checkpoints, _ = pool_of(job)
    name = next(iter(checkpoints))
    first = records(job, data, checkpoints)
    TeacherHost(checkpoints, data, outputs=first).complete(0)
    first.settle([0])
    path = first.path(name, 0)
    system, root = pyarrow.fs.FileSystem.from_uri(address)
    there = f"{root}/{path.relative_to(job.outputs.store)}"
    with system.open_output_stream(there) as file:
        file.write(b"\0" * path.stat().st_size)

    elsewhere = make_job(**{"outputs.remote": address, "outputs.store": str(tmp_path / "other")})
    second = records(elsewhere, data, checkpoints)
    assert second.missing([0]) == [(name, 0)]
    TeacherHost(checkpoints, data, outputs=second).complete(0)
    second.settle([0])
    with system.open_input_stream(there) as file:
        assert file.read() == path.read_bytes()


def test_records_of_before_are_sent_and_what_is_there_is_not_sent_again(
    make_job: Callable[..., Job], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    data, checkpoints, _ = pool_of(job)
    TeacherHost(checkpoints, data, outputs=records(job, data, checkpoints)).complete(0)
    later = make_job(**{"outputs.remote": address})
    records(later, data, checkpoints).settle([0, 1])  # of view 1 there is none
    assert len(objects(address)) == len(checkpoints)

    def copied(*given: Any) -> None:
        raise AssertionError("it is there")

    monkeypatch.setattr(remote.shutil, "copyfileobj", copied)
    records(later, data, checkpoints).settle([0])


def test_one_process_of_a_node_fetches_and_the_others_wait(
    make_job: Callable[..., Job], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(**{"outputs.remote": address})
    data, checkpoints, _ = pool_of(job)
    TeacherHost(checkpoints, data, outputs=(first := records(job, data, checkpoints))).complete(0)
    first.settle([0])
    elsewhere = make_job(**{"outputs.remote": address, "outputs.store": str(tmp_path / "other")})
    name, copies, copy = next(iter(checkpoints)), [], remote.shutil.copyfileobj
    both = threading.Barrier(2)

    def copied(*given: Any) -> None:
        copies.append(given)
        copy(*given)

    def look() -> None:
        cache = records(elsewhere, data, checkpoints)
        both.wait()
        assert cache.read(name, 0) is not None

    monkeypatch.setattr(remote.shutil, "copyfileobj", copied)
    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copies) == 1


def test_a_run_elsewhere_replays_what_one_has_sent(
    ray_session: Any, make_job: Callable[..., Job], s3: str, tmp_path: Path
) -> None:
    """As a cluster that is gone leaves its records to the next one."""
    changes = {"methods": ["teacher_vote", "agre_kd"], "outputs.remote": s3 % tmp_path.name}
    console = Console(quiet=True)

    def run(job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        folder = RunFolder.create(job)
        run_job(folder, console)
        results = json.loads((folder.path / "results.json").read_text())
        return results["job"]["effort"], results["summary"]

    effort, summary = run(make_job(**changes))
    assert effort["forwards"] > 0
    again, same = run(make_job(**changes, **{"outputs.store": str(tmp_path / "other")}))
    assert again == asdict(TeacherCost())
    assert same == summary


def test_an_object_store_that_is_away_is_said_and_costs_no_student(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    job = make_job(**{"outputs.remote": f"file://{tmp_path}/file/records"})
    data, checkpoints, _ = pool_of(job)
    cache = records(job, data, checkpoints)
    TeacherHost(checkpoints, data, outputs=cache).complete(0)
    with pytest.raises(RunError, match=r"outputs.remote: file://.* cannot be written \("):
        cache.settle([0])
    assert cache.missing([0]) == []  # here they are
    with (tmp_path / "screen.txt").open("w+") as file:
        run_job(RunFolder.create(job), Console(file=file, width=1000))
        file.seek(0)
        assert "cannot be written" in file.read()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("bucket/records", "an address such as s3://BUCKET/FOLDER"),
        ("https://host/bucket", "an address such as s3://BUCKET/FOLDER"),
        ("s3://", "an address such as s3://BUCKET/FOLDER"),
        ("s3://me:secret@bucket/records", "an address without keys"),
        ("s3://bucket/records?secret_key=secret", "an address without keys"),
    ],
)
def test_what_is_no_address_is_refused(given: str, problem: str) -> None:
    _, faults = check_job(merged(TINY, {"outputs.remote": given}))
    (fault,) = faults
    assert problem in str(fault)
    assert "secret@" not in str(fault)


def test_a_look_at_an_object_store_leaves_nothing_there(address: str, tmp_path: Path) -> None:
    assert Probe().bucket(address, str(tmp_path / "here")) == ""
    assert objects(address) == {}


def test_a_look_at_an_object_store_that_is_not_there_says_what_it_wanted(s3: str) -> None:
    wrong = (s3 % "x").replace("//bucket/", "//nobody/")
    said = Probe().bucket(wrong, "here")
    assert said.startswith(f"outputs.remote: {wrong} cannot be written (")
    assert "credentials" in said
