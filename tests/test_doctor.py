"""The doctor: from facts to findings without Ray, and on real clusters of several raylets."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from agrekd_ray.config import Job
from agrekd_ray.config.points import points_of
from agrekd_ray.doctor import findings as checks
from agrekd_ray.doctor.command import _tracking, requirements
from agrekd_ray.doctor.facts import Cluster, Facts, Node
from agrekd_ray.doctor.findings import Finding, diagnose
from agrekd_ray.doctor.needs import PROCESS, Needs, needs_of
from agrekd_ray.doctor.probe import Probe
from agrekd_ray.doctor.report import show

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
FACTS = Facts(
    host="one",
    versions=VERSIONS,
    code="abc",
    accelerators=False,
    memory_free=16 * GB,
    shared_memory=8 * GB,
    open_files=65536,
    temporary={"total": 100 * GB, "free": 50 * GB},
    folders={"runs": FOLDER, "outputs.store": FOLDER},
    listeners={6379: ["10.0.0.2"], 8265: ["127.0.0.1"]},
    token=True,
    token_file="",
)
NODE = Node("one 0a0a0a", 8, 0, 4 * GB, FACTS, skew=(0.1, 0.01), data=({"fingerprint": "f" * 64},))
NEEDS = Needs(2 * GB, 20 * GB, 10**6, {"runs": GB, "outputs.store": 3 * GB})


def cluster(*nodes: Node, driver: Facts = FACTS, **more: Any) -> Cluster:
    """Sound nodes, and those given."""
    sound = (NODE, replace(NODE, name="two 0b0b0b"))
    return Cluster(driver, (*sound, *nodes), ("f" * 64,), **more)


def node(**changes: Any) -> Node:
    """A third node that is sound but for these parts of its facts, or of itself."""
    own = {key: changes.pop(key) for key in list(changes) if key in Node.__dataclass_fields__}
    return replace(NODE, **{"name": "bad 0c0c0c", "facts": replace(FACTS, **changes), **own})


def only(found: list[Finding]) -> Finding:
    """The one finding, which has a remedy."""
    (one,) = found
    assert one.remedy
    return one


def found_on(bad: Node, needs: Needs = NEEDS) -> Finding:
    """The one finding that such a node makes, which names it."""
    one = only(diagnose(cluster(bad), needs, REQUIREMENTS))
    assert one.node in (bad.name, "cluster")
    return one


def test_gpus_that_the_job_declines_are_spoken_of(make_job: Any) -> None:
    declined = needs_of([make_job(**{"student.gpus": 0}), make_job(**{"fleet.gpus": 0})]).declined
    assert declined == ("student.gpus", "fleet.gpus")
    assert needs_of([make_job()]).declined == ()
    needs = replace(NEEDS, declined=declined)
    one = only(diagnose(cluster(node(gpus=2, torch_gpus=2)), needs, REQUIREMENTS))
    assert (one.node, one.check, one.level) == ("cluster", "GPUs", "warning")
    assert "student.gpus, fleet.gpus = 0" in one.problem
    assert diagnose(cluster(), needs, REQUIREMENTS) == []
    assert diagnose(cluster(node(gpus=2, torch_gpus=2)), NEEDS, REQUIREMENTS) == []


def test_a_sound_cluster_has_no_finding() -> None:
    assert diagnose(cluster(), NEEDS, REQUIREMENTS) == []
    assert diagnose(cluster(), Needs(), []) == []


@pytest.mark.parametrize(
    ("changes", "check", "level", "said"),
    [
        ({"facts": None, "silence": "no answer within 30 s"}, "answer", "error", "within 30 s"),
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
        (
            {"data": None, "data_silence": "no answer within 600 s"},
            "data",
            "error",
            "within 600 s",
        ),
        ({"skew": (2.5, 0.1)}, "clock", "warning", "2.5 s ahead of the driver's"),
        ({"skew": (-2.5, 0.1)}, "clock", "warning", "2.5 s behind the driver's"),
    ],
)
def test_what_is_wrong_with_a_node_is_one_finding_that_names_it(
    changes: dict[str, Any], check: str, level: str, said: str
) -> None:
    bad = node(**dict(changes))
    one = found_on(bad)
    assert (one.node, one.check, one.level) == (bad.name, check, level)
    assert said in one.problem


def test_what_a_machine_does_not_tell_is_no_finding() -> None:
    quiet = node(memory_free=None, shared_memory=None, open_files=-1, skew=None)
    assert diagnose(cluster(quiet), NEEDS, REQUIREMENTS) == []
    slow = node(skew=(3.0, 2.5))  # a slow round trip measures no clock
    assert diagnose(cluster(slow), NEEDS, REQUIREMENTS) == []


def test_the_driver_itself_is_held_to_the_packages_ranges() -> None:
    old = replace(FACTS, versions={**VERSIONS, "ray": "2.40.0"})
    both = replace(NODE, facts=old)
    one = only(diagnose(Cluster(old, (both,), ("f" * 64,)), Needs(), REQUIREMENTS))
    assert (one.node, one.check) == ("driver", "versions")
    assert "ray 2.40.0, not <3,>=2.51" in one.problem
    missing = replace(FACTS, versions={**VERSIONS, "numpy": "missing"})
    alone = replace(NODE, facts=missing)
    one = only(diagnose(Cluster(missing, (alone,), ("f" * 64,)), Needs(), REQUIREMENTS))
    assert "numpy missing" in one.problem
    assert {"python", "ray", "torch", "numpy"} <= set(checks._ranges(requirements()))


def test_memory_is_counted_over_the_nodes_and_for_the_largest_process() -> None:
    assert (
        "largest process takes about 17.0 GB"
        in found_on(NODE, replace(NEEDS, process=17 * GB)).problem
    )
    many = only(diagnose(cluster(), replace(NEEDS, memory=33 * GB), REQUIREMENTS))
    assert (many.node, many.check) == ("cluster", "memory")
    assert "33.0 GB, free are 32.0 GB" in many.problem
    assert diagnose(cluster(), replace(NEEDS, memory=32 * GB), REQUIREMENTS) == []


def test_folders_must_be_the_drivers_and_writable() -> None:
    lonely = node(folders={"runs": {**FOLDER, "marked": False}, "outputs.store": FOLDER})
    one = found_on(lonely)
    assert one.check == "folders"
    assert "runs: /shared/runs is not the driver's" in one.problem
    closed = node(folders={"runs": {**FOLDER, "writable": False}, "outputs.store": FOLDER})
    assert "cannot be written" in found_on(closed).problem
    own = {"runs": FOLDER, "outputs.store": {**FOLDER, "marked": False}}
    assert diagnose(cluster(node(folders=own)), NEEDS, REQUIREMENTS) == []
    own["outputs.store"] = {**FOLDER, "marked": False, "writable": False}
    assert "outputs.store: " in found_on(node(folders=own)).problem
    stale = node(folders={"runs": {"error": "Stale file handle"}, "outputs.store": FOLDER})
    assert "cannot be reached (Stale file handle)" in found_on(stale).problem
    full = replace(FACTS, folders={"runs": {**FOLDER, "marked": False}})
    assert "disk may be full" in only(diagnose(cluster(driver=full), NEEDS, REQUIREMENTS)).problem
    away = replace(FACTS, folders={"runs": {"error": "Stale file handle"}})
    one = only(diagnose(cluster(driver=away), NEEDS, REQUIREMENTS))
    assert (one.node, one.check) == ("driver", "folders")
    assert "Stale file handle" in one.problem


def test_folders_on_one_disk_share_its_room() -> None:
    def left(free: int, other: int = 7) -> list[Finding]:
        folders = {
            "runs": {**FOLDER, "free": free},
            "outputs.store": {**FOLDER, "free": free, "device": other},
        }
        return diagnose(cluster(driver=replace(FACTS, folders=folders)), NEEDS, REQUIREMENTS)

    one = only(left(int(3.5 * GB)))
    assert one.check == "disk"
    assert (
        "4.0 GB will be written (runs 1.0 GB, outputs.store 3.0 GB), 3.5 GB are free" in one.problem
    )
    assert left(int(3.5 * GB), other=8) == []
    assert left(4 * GB) == []


def test_a_token_that_others_can_read_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "auth_token"
    file.write_text("secret")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    found = []
    for mode in (0o640, 0o600):
        file.chmod(mode)
        facts = Probe().examine({"folders": {}, "ports": []})
        open_one = replace(FACTS, token_file=facts["token_file"])
        found.append(diagnose(cluster(replace(NODE, facts=open_one)), NEEDS, REQUIREMENTS))
    (one,), nothing = found
    assert (one.check, one.level) == ("token", "warning")
    assert one.remedy.startswith(f"chmod 600 {file}")
    assert nothing == []


def test_open_ports_without_a_token_are_a_warning_that_explains_tokens() -> None:
    bare = node(token=False)
    bare = replace(bare, facts=replace(FACTS, token=False))
    (one,) = diagnose(
        cluster(bare, ports={6379: "the GCS", 8265: "the dashboard"}), NEEDS, REQUIREMENTS
    )
    assert (one.check, one.level) == ("ports", "warning")
    assert "the GCS listens at 10.0.0.2, port 6379" in one.problem
    assert "RAY_AUTH_MODE=token" in one.remedy
    home = node(token=False, listeners={6379: ["127.0.0.1", "::1"], 8265: []})
    assert diagnose(cluster(home), NEEDS, REQUIREMENTS) == []


def test_errors_come_before_warnings_and_are_counted() -> None:
    found = diagnose(cluster(node(open_files=1), node(code="x")), NEEDS, REQUIREMENTS)
    assert [one.level for one in found] == ["error", "warning"]
    assert checks.counted([*found, found[0]]) == "2 errors, 1 warning"


def text_of(found: list[Finding], terminal: bool, path: Path) -> str:
    with path.open("w") as file:
        console = Console(file=file, width=140, force_terminal=terminal, color_system=None)
        show(cluster(node(facts=None)), NEEDS, found, console)
    return path.read_text()


def test_the_report_is_a_table_on_a_terminal_and_lines_elsewhere(tmp_path: Path) -> None:
    found = [
        Finding("two [x]", "data", "other data [1]", "copy them"),
        Finding("two [x]", "clock", "slow", "set it", "warning"),
    ]
    plain = text_of(found, False, tmp_path / "plain")
    assert "error: two [x]: data: other data [1]. Remedy: copy them.\n" in plain
    assert "warning: two [x]: clock: slow. Remedy: set it.\n" in plain
    assert "3 nodes: 1 error, 1 warning" in plain
    assert "the job: 20.0 GB of memory besides its data, 4.0 GB on disk" in plain
    table = text_of(found, True, tmp_path / "table")
    assert re.search(r"Node +Check +Finding +Remedy", table)
    assert re.search(r"two \[x\] +data +other data \[1\] +copy them", table)
    assert "nothing is wrong" in text_of([], True, tmp_path / "sound")


# --- what a machine says of itself, and what a job needs


def test_a_machine_says_what_the_system_says(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mark").touch()
    with (
        socket.create_server(("127.0.0.1", 0)) as here,
        socket.create_server(("0.0.0.0", 0)) as all_,
    ):
        ports = [server.getsockname()[1] for server in (here, all_)]
        asked = {
            "folders": {
                "runs": (str(tmp_path / "runs"), "mark"),
                "outputs.store": (str(tmp_path / "later/outputs"), "mark"),
            },
            "ports": ports,
        }
        facts = Facts(**Probe().examine(asked))
    assert facts.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts.code == Facts(**Probe().examine({"folders": {}, "ports": []})).code != ""
    assert facts.host == socket.gethostname()
    if sys.platform == "linux":
        assert facts.listeners == {ports[0]: ["127.0.0.1"], ports[1]: ["0.0.0.0"]}
        assert facts.memory_free is not None
        assert 0 < facts.memory_free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert facts.folders["runs"]["marked"]
    assert facts.folders["outputs.store"]["there"] == str(tmp_path)
    assert not facts.folders["outputs.store"]["marked"]


def test_the_probe_needs_nothing_of_this_package() -> None:
    """It travels to nodes where the package may be missing."""
    source = Path(sys.modules[Probe.__module__].__file__ or "").read_text()
    top = [line for line in source.splitlines() if re.match(r"(from|import) ", line)]
    modules = {line.split()[1].split(".")[0] for line in top}
    assert modules <= sys.stdlib_module_names
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
    one = only(diagnose(cluster(tracking=_tracking(job)), NEEDS, REQUIREMENTS))
    assert (one.check, one.level) == ("MLflow", "error")
    assert "127.0.0.1:9" in one.problem
    assert "secret" not in one.problem + one.remedy
    assert "curl" in one.remedy
    assert _tracking(make_job()) == ""
    assert _tracking(make_job(**{"tracking.uri": "sqlite:////nowhere/mlflow.db"})) == ""


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
