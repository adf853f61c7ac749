"""The doctor: from facts to findings without Ray, and on real clusters of several raylets."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from rich.console import Console

from agrekd_ray import machine
from agrekd_ray.capacity import network
from agrekd_ray.capacity.doctor import requirements, room_faults, tracking_faults
from agrekd_ray.capacity.findings import Finding, Machine, diagnose, of_network, show_findings
from agrekd_ray.capacity.needs import Needs, needs_of
from agrekd_ray.capacity.network import Network, Place, measure_network
from agrekd_ray.capacity.probe import Probe
from agrekd_ray.capacity.size import PROCESS
from agrekd_ray.cluster.placement import Node, check_room
from agrekd_ray.config import Job
from agrekd_ray.config.points import points_of
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.gpus import numbered, workers_of

from .conftest import TINY, merged
from .shared import AGREKD, pool_of, records

GB = 10**9
REQUIREMENTS = ["python>=3.11", "ray[train,tune]<3,>=2.51", "numpy<3,>=1.26", "torch<3,>=2.6"]
VERSIONS = {
    "python": "3.11.7",
    "ray": "2.60.0",
    "torch": "2.14.1",
    "numpy": "2.4.6",
    "agrekd_ray": "0.1.0",
}
FOLDER = {"there": "/shared/runs", "device": 7, "free": 500 * GB, "writable": True, "marked": True}
FOLDERS = {"runs": FOLDER, "outputs.store": FOLDER}
PORTS = {6379: "the GCS", 8265: "the dashboard"}
SOUND = Machine(
    "one 0a0a0a",
    cpus=8,
    object_store=4 * GB,
    skew=(0.1, 0.01),
    data=({"fingerprint": "f" * 64},),
    versions=VERSIONS,
    code="abc",
    memory_free=16 * GB,
    shared_memory=8 * GB,
    open_files=65536,
    temporary={"total": 100 * GB, "free": 50 * GB},
    folders=FOLDERS,
    listeners={6379: ["10.0.0.2"], 8265: ["127.0.0.1"]},
    token=True,
)
NEEDS = Needs(2 * GB, 20 * GB, 10**6, {"runs": GB, "outputs.store": 3 * GB})


def of_runs(**changes: Any) -> dict[str, Any]:
    """Folders of which one is not sound."""
    return {"folders": {**FOLDERS, "runs": {**FOLDER, **changes}}}


def findings(
    bad: dict[str, Any] | None = None, needs: Needs = NEEDS, driver: Machine = SOUND
) -> list[Finding]:
    """What is found of two sound nodes, and of one that is sound but for these values."""
    nodes = [SOUND, replace(SOUND, name="two 0b0b0b")]
    if bad is not None:
        nodes.append(replace(SOUND, name="bad 0c0c0c", **bad))
    return diagnose(driver, nodes, needs, REQUIREMENTS, PORTS)


@pytest.mark.parametrize(
    ("bad", "check", "level", "said"),
    [
        ({"silence": "no answer within 30 s"}, "answer", "error", "within 30 s"),
        (
            {"versions": {**VERSIONS, "torch": "2.13.0"}},
            "versions",
            "error",
            "torch 2.13.0, the driver has 2.14.1",
        ),
        (
            {"versions": {**VERSIONS, "agrekd_ray": "missing (No module)"}, "code": ""},
            "versions",
            "error",
            "agrekd_ray missing",
        ),
        ({"code": "abd"}, "versions", "error", "other code of agrekd_ray"),
        ({"gpus": 4, "torch_gpus": 0}, "GPUs", "error", "Ray counts 4, PyTorch finds 0"),
        ({"gpus": 1, "torch_gpus": 2}, "GPUs", "warning", "PyTorch finds 2, Ray counts 1"),
        ({"gpus": 1, "torch_gpus": "no such library"}, "GPUs", "error", "no such library"),
        ({"object_store": 1000}, "object store", "error", "1.0 MB on its way"),
        ({"shared_memory": 64 * 10**6}, "shared memory", "warning", "/dev/shm has 64.0 MB"),
        ({"open_files": 1024}, "open files", "warning", "1024"),
        ({"temporary": {"total": 100 * GB, "free": 4 * GB}}, "disk", "error", "4.0 GB of 100.0 GB"),
        ({"data": ({"fingerprint": "e" * 64},)}, "data", "error", "eeeeeeeeeeee instead of ffff"),
        ({"data": ({"error": "DataError: no such folder"},)}, "data", "error", "no such folder"),
        ({"data": ({"silence": "no answer within 600 s"},)}, "data", "error", "within 600 s"),
        (
            {
                "remote": (
                    "",
                    "outputs.remote: s3://b cannot be written (403). Is the address right?",
                )
            },
            "outputs.remote",
            "error",
            "s3://b cannot be written (403)",
        ),
        ({"skew": (2.5, 0.1)}, "clock", "warning", "2.5 s ahead of the driver's"),
        ({"skew": (-2.5, 0.1)}, "clock", "warning", "2.5 s behind the driver's"),
        ({"token": False}, "ports", "warning", "the GCS listens at 10.0.0.2, port 6379"),
        ({"token_file": "/home/a/token"}, "token", "warning", "/home/a/token can be read by other"),
        (of_runs(marked=False), "folders", "error", "runs: /shared/runs is not the driver's"),
        (of_runs(writable=False), "folders", "error", "cannot be written"),
        (
            {"folders": {**FOLDERS, "runs": {"error": "Stale file handle"}}},
            "folders",
            "error",
            "cannot be reached (Stale file handle)",
        ),
        (
            {
                "folders": {
                    **FOLDERS,
                    "outputs.store": {**FOLDER, "marked": False, "writable": False},
                }
            },
            "folders",
            "error",
            "outputs.store: ",
        ),
    ],
)
def test_what_is_wrong_with_a_node_is_one_finding_that_names_it(
    bad: dict[str, Any], check: str, level: str, said: str
) -> None:
    (one,) = findings(bad)
    assert (one.node, one.check, one.level) == ("bad 0c0c0c", check, level)
    assert said in one.problem
    assert one.remedy


@pytest.mark.parametrize(
    "bad",
    [
        None,
        {"memory_free": None, "shared_memory": None, "open_files": -1, "skew": None},
        {"skew": (3.0, 2.5)},  # a slow round trip measures no clock
        {"gpus": 2, "torch_gpus": 2},
        {"folders": {**FOLDERS, "outputs.store": {**FOLDER, "marked": False}}},
        {"token": False, "listeners": {6379: ["127.0.0.1", "::1"], 8265: []}},
    ],
)
def test_what_is_sound_or_not_told_is_no_finding(bad: dict[str, Any] | None) -> None:
    assert findings(bad) == []
    assert diagnose(SOUND, [SOUND], Needs(), [], {}) == []


@pytest.mark.parametrize(
    ("driver", "check", "said"),
    [
        ({"versions": {**VERSIONS, "ray": "2.40.0"}}, "versions", "ray 2.40.0, not <3,>=2.51"),
        ({"versions": {**VERSIONS, "numpy": "missing"}}, "versions", "numpy missing"),
        (of_runs(marked=False), "folders", "disk may be full"),
        ({"folders": {"runs": {"error": "Stale file handle"}}}, "folders", "Stale file handle"),
        (
            {"folders": {key: {**FOLDER, "free": int(3.5 * GB)} for key in FOLDERS}},
            "disk",
            "4.0 GB will be written (runs 1.0 GB, outputs.store 3.0 GB), 3.5 GB are free",
        ),
        (
            {
                "folders": {
                    "runs": {**FOLDER, "free": int(3.5 * GB)},
                    "outputs.store": {**FOLDER, "free": int(3.5 * GB), "device": 8},
                }
            },
            "",
            "",
        ),
        ({"folders": {key: {**FOLDER, "free": 4 * GB} for key in FOLDERS}}, "", ""),
    ],
)
def test_the_driver_is_held_to_ranges_and_has_room_on_each_of_its_disks(
    driver: dict[str, Any], check: str, said: str
) -> None:
    mine = replace(SOUND, **driver)
    found = diagnose(mine, [mine], replace(NEEDS, memory=0), REQUIREMENTS, {})
    assert [(one.node, one.check) for one in found] == [("driver", check)] * bool(check)
    assert all(said in one.problem and one.remedy for one in found)
    assert {"python", "ray", "torch", "numpy"} <= {Requirement(one).name for one in requirements()}


def test_memory_is_counted_over_the_nodes_and_for_the_largest_process() -> None:
    for needs, said in (
        (replace(NEEDS, process=17 * GB), "largest process takes about 17.0 GB"),
        (replace(NEEDS, memory=33 * GB), "33.0 GB, free are 32.0 GB"),
    ):
        (one,) = findings(needs=needs)
        assert (one.node, one.check) == ("cluster", "memory")
        assert said in one.problem
    assert findings(needs=replace(NEEDS, memory=32 * GB)) == []


def test_gpus_that_the_job_declines_are_spoken_of(make_job: Any) -> None:
    declined = needs_of([make_job(**{"student.gpus": 0}), make_job(**{"fleet.gpus": 0})]).declined
    assert declined == ("student.gpus", "fleet.gpus")
    assert needs_of([make_job()]).declined == ()
    needs = replace(NEEDS, declined=declined)
    (one,) = findings({"gpus": 2, "torch_gpus": 2}, needs)
    assert (one.node, one.check, one.level) == ("cluster", "GPUs", "warning")
    assert "student.gpus, fleet.gpus = 0" in one.problem
    assert findings(needs=needs) == []


def test_what_a_run_refuses_for_want_of_room_is_found_in_its_words(make_job: Any) -> None:
    room = {"CPU": 4.0, "GPU": 1.0}
    nodes = [Node("10.0.0.1", room, room)]

    def refused(**changes: Any) -> list[Finding]:
        job = make_job(**changes)
        return room_faults([job, job], needs_of([job]), nodes)

    (student,) = refused(**{"student.cpus": 8})
    with pytest.raises(RunError) as of_a_run:
        check_room(workers_of(numbered(make_job(**{"student.cpus": 8})).student), [], nodes)
    assert f"{student.problem}. {student.remedy}." == str(of_a_run.value)
    assert (student.node, student.check, student.level) == ("cluster", "room", "error")
    assert student.problem.startswith("student's worker: no node has room for it: 8 CPU wanted")
    (making,) = refused(**{"teachers.cpus": 8})
    assert making.problem.startswith("the training of a teacher: no node has room for it")
    labels = {"fleet.teachers": {"erm-*": {"labels": {"zone": "b"}}}}
    (apart,) = refused(**labels)
    assert "1 CPU on zone=b wanted; there: 10.0.0.1 4 CPU zone=(none)" in apart.problem
    several = {"fleet.cpus": 3, "teachers.count": 4}
    (live,) = refused(**several, guidance="live")
    assert "processes find no room beside the others" in live.problem
    assert refused(**several) == refused() == []  # they record in turns


@pytest.mark.parametrize(("workers", "level"), [(1, "warning"), (2, "error")])
def test_nodes_that_do_not_find_each_other_stop_several_workers(workers: int, level: str) -> None:
    cut = Network(2, 3, "nccl", None, "Connection reset (one 0a0a0a)")
    (found,) = of_network(cut, replace(NEEDS, workers=workers))
    assert (found.node, found.check, found.level) == ("cluster", "network", level)
    assert found.problem.endswith(
        "3 processes on 2 nodes cannot sum numbers over nccl: " + cut.fault
    )
    assert "NCCL_SOCKET_IFNAME" in found.remedy
    sound = replace(cut, seconds=0.5, fault="")
    assert not [*of_network(sound, NEEDS), *of_network(None, NEEDS)]
    # 64 MiB in a ring of three: each sends four thirds of it.
    assert sound.gbit == pytest.approx(8 * 4 / 3 * 2**26 / 0.5 / 1e9)
    assert "0.50 s (nccl), 1.4 Gbit/s" in sound.in_words


class Deaf(Probe):
    """A process that never comes to the others."""

    def sum(self, *given: Any) -> float | str:
        """Waits."""
        time.sleep(600)
        raise AssertionError


def test_processes_of_all_nodes_sum(ray_session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where one does not come, it is named."""

    def place(name: str, kind: type[Probe] = Probe) -> Place:
        return Place(name, 0, lambda gpus: ray_session.remote(num_cpus=0)(kind).remote())

    assert measure_network([place("alone")]) is None
    found = measure_network([place("one"), place("two"), place("three")])
    assert found is not None
    assert (found.nodes, found.processes, found.backend, found.fault) == (3, 3, "gloo", "")
    assert found.gbit > 0
    monkeypatch.setattr(network, "MEET_SECONDS", 3.0)
    cut = measure_network([place("one"), place("deaf", Deaf), place("three")])
    assert cut is not None
    assert cut.seconds is None
    assert re.search(r"no answer within 3 s \((one, )?deaf", cut.fault)
    assert cut.in_words == ""


def test_errors_come_before_warnings() -> None:
    assert [one.level for one in findings({"open_files": 1, "code": "x"})] == ["error", "warning"]


def test_the_report_is_a_table_on_a_terminal_and_lines_elsewhere(tmp_path: Path) -> None:
    found = [
        Finding("two [x]", "data", "other data [1]", "copy them"),
        Finding("two [x]", "clock", "slow", "set it", "warning"),
    ]

    def shown(found: list[Finding], *, terminal: bool) -> str:
        with (tmp_path / "text").open("w") as file:
            console = Console(file=file, width=140, force_terminal=terminal, color_system=None)
            show_findings(found, 3, console)
        return (tmp_path / "text").read_text()

    assert shown(found, terminal=False) == (
        "error: two [x]: data: other data [1]. Remedy: copy them.\n"
        "warning: two [x]: clock: slow. Remedy: set it.\n"
        "3 nodes: 1 error, 1 warning\n"
    )
    table = shown(found, terminal=True)
    assert re.search(r"Node +Check +Finding +Remedy", table)
    assert re.search(r"two \[x\] +data +other data \[1\] +copy them", table)
    assert "nothing is wrong" in shown([], terminal=True)
    assert replace(SOUND, silence="x").in_words.endswith("8 CPUs, 0 GPUs; does not answer")


# --- what a machine says of itself, and what a job needs


def test_a_machine_says_what_the_system_says(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mark").touch()
    with (
        socket.create_server(("127.0.0.1", 0)) as here,
        socket.create_server(("0.0.0.0", 0)) as all_,
    ):
        ports = [server.getsockname()[1] for server in (here, all_)]
        folders = {
            "runs": (str(tmp_path / "runs"), "mark"),
            "outputs.store": (str(tmp_path / "later/outputs"), "mark"),
        }
        machine = Machine("here", **Probe().examine(folders, ports))
    assert machine.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert machine.code == Machine("here", **Probe().examine({}, [])).code != ""
    if sys.platform == "linux":
        assert machine.listeners == {ports[0]: ["127.0.0.1"], ports[1]: ["0.0.0.0"]}
        assert machine.memory_free is not None
        assert 0 < machine.memory_free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.folders["runs"]["marked"]
    assert machine.folders["outputs.store"]["there"] == str(tmp_path)
    assert not machine.folders["outputs.store"]["marked"]


def test_a_token_that_others_can_read_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "auth_token"
    file.write_text("secret")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    for mode, found in ((0o640, str(file)), (0o600, "")):
        file.chmod(mode)
        assert Probe().examine({}, [])["token_file"] == found


def test_the_probe_needs_nothing_of_this_package() -> None:
    """It travels to nodes where the package may be missing."""
    for module in (sys.modules[Probe.__module__], machine):
        source = Path(module.__file__ or "").read_text()
        top = [line for line in source.splitlines() if re.match(r"(from|import) ", line)]
        modules = {line.split()[1] for line in top} - {machine.__name__}
        assert {name.split(".")[0] for name in modules} <= sys.stdlib_module_names
    assert Probe().data(["{}"])[0].keys() == {"error"}


def test_a_job_needs_the_teachers_and_records_that_are_not_there_yet(make_job: Any) -> None:
    job: Job = make_job(**{"data.views": {"flip": True, "count": 3}, "student.training.epochs": 5})
    before = needs_of([job])
    data, checkpoints, _ = pool_of(job)
    record = 160 * 10 * 4
    assert before.disk["outputs.store"] == 3 * record * len(checkpoints)
    after = needs_of([job])
    assert after.disk["teachers.store"] == 0
    assert after.disk["outputs.store"] == before.disk["outputs.store"]
    weights = {
        folder: (folder / "model.safetensors").stat().st_size for folder in checkpoints.values()
    }
    assert PROCESS < after.process < after.memory
    assert after.memory < 6 * PROCESS
    together = needs_of(
        [job.model_copy(update={"fleet": job.fleet.model_copy(update={"backbones_per_actor": 9})})]
    )
    assert together.memory < after.memory - PROCESS
    outputs = records(job, data, checkpoints)
    name = next(iter(checkpoints))
    path = outputs.path(name, 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"recorded")
    assert needs_of([job]).disk["outputs.store"] == before.disk["outputs.store"] - record
    assert weights
    live = needs_of([job.model_copy(update={"guidance": "live"})])
    assert live.disk["outputs.store"] == 0


def test_teachers_that_are_not_made_yet_count_with_the_size_they_will_have(
    make_job: Any, tmp_path: Path
) -> None:
    job: Job = make_job(**{"teachers.store": str(tmp_path / "pool")})
    wanted = needs_of([job]).disk["teachers.store"]
    _, checkpoints, _ = pool_of(job)
    written = sum((f / "model.safetensors").stat().st_size for f in checkpoints.values())
    assert wanted == pytest.approx(written, rel=0.2)  # files have headers


def test_points_of_a_study_share_records(make_job: Any) -> None:
    study: Job = make_job(sweep={"distillation.temperature": [1, 2, 4]})
    points = [point for _, point in points_of(study)]
    assert len(points) == 3
    whole, one = needs_of(points), needs_of(points[:1])
    assert whole.disk["outputs.store"] == one.disk["outputs.store"] > 0
    assert whole.disk["runs"] == 3 * one.disk["runs"]
    assert whole.memory == one.memory


def test_a_tracking_server_that_is_away_is_a_finding_without_its_password(make_job: Any) -> None:
    job = make_job(**{"tracking.uri": "http://ann:secret@127.0.0.1:9"})
    (one,) = tracking_faults(job)
    assert (one.node, one.check, one.level) == ("driver", "MLflow", "error")
    assert "127.0.0.1:9" in one.problem
    assert "secret" not in one.problem + one.remedy
    assert "curl" in one.remedy
    assert tracking_faults(make_job()) == []
    assert tracking_faults(make_job(**{"tracking.uri": "sqlite:////nowhere/mlflow.db"})) == []


def test_an_address_where_nobody_listens_is_one_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    lines = examined(["--address", f"127.0.0.1:{port}"], dict(os.environ), 1)
    assert lines == []


# --- a real cluster of several raylets

RAYLETS = """
import os, signal, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.add_node(num_cpus=1, env_vars={"COPY_OF_THE_DATA": "1"})
last = cluster.add_node(num_cpus=1, num_gpus=2)
raylet = last.all_processes["raylet"][0].process.pid
print(cluster.address, flush=True)
for line in sys.stdin:
    os.kill(raylet, signal.SIGSTOP)
    print("stopped", flush=True)
os.kill(raylet, signal.SIGCONT)
cluster.shutdown()
"""
DIGITS = """
import os
from agrekd_ray.data import open_dataset
from agrekd_ray.data.colored import ColoredDigits

def make(seed):
    seed = int(os.environ.get("COPY_OF_THE_DATA", seed))
    return open_dataset(ColoredDigits(name="colored_digits", train=160, val=200, seed=seed))
"""


@pytest.fixture
def raylets() -> Iterator[tuple[subprocess.Popen[str], str, dict[str, str]]]:
    """Four nodes with a token of their own; a line on the input stops the last one's raylet."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    process = subprocess.Popen(
        [sys.executable, "-c", RAYLETS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, "no cluster was started"
    yield process, address, environment
    process.communicate()  # ends its input, at which it ends its cluster


def examined(words: list[str], environment: dict[str, str], code: int) -> list[str]:
    """The lines that `agrekd doctor` prints."""
    command = [*AGREKD, "doctor", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout or "no Ray cluster answers there" in done.stderr
    return done.stdout.splitlines()


@pytest.mark.chaos
def test_a_real_cluster_with_other_data_and_a_node_that_is_silent(
    raylets: tuple[subprocess.Popen[str], str, dict[str, str]], tmp_path: Path
) -> None:
    process, address, environment = raylets
    (tmp_path / "digits.py").write_text(DIGITS)
    custom = {"name": "custom", "factory": "digits:make", "folder": str(tmp_path)}
    (tmp_path / "runs").mkdir()
    places = {
        "runs": str(tmp_path / "runs"),
        "teachers.store": str(tmp_path / "runs/teachers"),
        "outputs.store": str(tmp_path / "runs/outputs"),
    }
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(merged(TINY, {"data": custom, **places})))

    lines = examined([str(job), f"ray.address={address}"], environment, 1)
    assert sum("CPUs" in line for line in lines) == 4
    assert sum(line.startswith("4 processes on 4 nodes sum 67.1 MB") for line in lines) == 1
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 2, lines
    (other,) = [line for line in errors if ": data: other data than the driver's (" in line]
    (claimed,) = [line for line in errors if ": GPUs: Ray counts 2, PyTorch finds 0" in line]
    silent = claimed.split(": ")[1]
    assert other.split(": ")[1] != silent
    assert "Remedy: copy them there again" in other
    assert lines[-1].startswith("4 nodes: 2 errors")
    assert list((tmp_path / "runs").iterdir()) == []  # it leaves nothing

    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("stop\n")
    process.stdin.flush()
    assert process.stdout.readline() == "stopped\n"
    lines = examined(["--address", address], environment, 1)
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert f"error: {silent}: answer: " in error
    assert sum(line.startswith("3 processes on 3 nodes sum 67.1 MB") for line in lines) == 1


@pytest.mark.chaos
def test_this_machine_alone_is_sound_for_a_tiny_job(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    places = {"runs": "runs", "teachers.store": "pool", "outputs.store": "outputs"}
    job.write_text(
        yaml.safe_dump(merged(TINY, {key: str(tmp_path / name) for key, name in places.items()}))
    )
    lines = examined([str(job)], dict(os.environ), 0)
    assert not [line for line in lines if line.startswith("error: ")]
    assert "ray 2." in lines[0]
