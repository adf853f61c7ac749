"""What runs the project on a cluster: KubeRay manifests, the script that they start, the image."""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from agrekd_ray import __version__

from .kuberay import MANIFESTS
from .shared import AGREKD

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "jobs/cluster"
FILES = sorted(CLUSTER.glob("*.yaml"))
JOBS = [path for path in FILES if path.name.startswith("rayjob")]
CLUSTERS = [path for path in FILES if path.name.startswith("ray")]


def content(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def faults(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest, by its path."""
    found = Draft202012Validator(MANIFESTS[manifest["kind"]]).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in found]


def spec_of(path: Path) -> dict[str, Any]:
    """The Ray cluster that a manifest describes."""
    spec = content(path)["spec"]
    return dict(spec.get("rayClusterSpec", spec))


def pods_of(path: Path) -> list[dict[str, Any]]:
    """Head first."""
    spec = spec_of(path)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@dataclass(frozen=True)
class Instruction:
    """One of the Dockerfile, with its arguments put in."""

    name: str
    value: str

    @property
    def words(self) -> list[str]:
        return [word for word in shlex.split(self.value) if not word.startswith("--")]


def dockerfile() -> list[Instruction]:
    """The instructions, as they are without any --build-arg."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    arguments: dict[str, str] = {}
    found = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, value = line.split(maxsplit=1)
        value = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], value)
        if name == "ARG":
            key, _, default = value.partition("=")
            arguments[key] = default
        found.append(Instruction(name, value))
    return found


def image_folder() -> str:
    """Where the image works."""
    return [one.value for one in dockerfile() if one.name == "WORKDIR"][-1]


def constrained(name: str) -> str:
    """The tested version of a package."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.removeprefix(f"{name}==") for line in lines if line.startswith(f"{name}=="))


# --- manifests


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_manifest_is_what_kuberay_takes(path: Path) -> None:
    assert faults(content(path)) == []
    assert path.read_text().startswith(f"# kubectl apply -f jobs/cluster/{path.name}\n")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "activeDeadlineSecond"), 3),
        (("spec", "backoffLimit"), "2"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "groupname"), "x"),
        (
            (
                *("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0),
                *("readinessProbe", "httpGet", "port"),
            ),
            "52365",
        ),
        (("metadata", "name"), "Capital"),
    ],
)
def test_the_check_of_manifests_notices(place: tuple[str | int, ...], value: Any) -> None:
    manifest = copy.deepcopy(content(CLUSTER / "rayjob.yaml"))
    block: Any = manifest
    for part in place[:-1]:
        block = block[part]
    block[place[-1]] = value
    assert len(faults(manifest)) == 1


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_a_cluster_is_of_the_tested_versions_and_asks_for_a_token(path: Path) -> None:
    spec = spec_of(path)
    assert spec["rayVersion"] == constrained("ray")
    assert spec["authOptions"] == {"mode": "token"}
    images = {pod["containers"][0]["image"] for pod in pods_of(path)}
    variant = "-gpu" if path.stem.endswith("-gpu") else ""
    assert images == {f"agrekd_ray:{__version__}{variant}"}


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_every_pod_shares_the_storage_and_only_the_driver_knows_passwords(path: Path) -> None:
    claim = content(CLUSTER / "storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    head, *workers = pods_of(path)
    for pod in (head, *workers):
        assert pod["volumes"] == [
            {
                "name": "shared",
                "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]},
            }
        ]
        assert pod["containers"][0]["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
    environment = {entry["name"]: entry for entry in head["containers"][0]["env"]}
    assert environment["SHARED"]["value"] == "/shared"
    assert "://" in environment["MLFLOW_TRACKING_URI"]["value"]
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        assert environment[name].keys() == {"name", "valueFrom"}  # a reference, no value
    assert all("env" not in worker["containers"][0] for worker in workers)


@pytest.mark.parametrize("kind", ["rayjob", "raycluster"])
def test_the_gpu_variant_is_the_other_with_gpus(kind: str) -> None:
    plain, gpu = (content(CLUSTER / f"{kind}{tail}.yaml") for tail in ("", "-gpu"))
    workers = pods_of(CLUSTER / f"{kind}-gpu.yaml")[1:]
    assert all(
        pod["containers"][0]["resources"][bound]["nvidia.com/gpu"] == 1
        for pod in workers
        for bound in ("requests", "limits")
    )
    text = yaml.safe_dump(gpu)
    for removed in (
        r" *nvidia.com/gpu: 1\n",
        r" *tolerations:\n *- effect: .*\n *key: nvidia.com/gpu\n *operator: Exists\n",
        r"-gpu\b",
    ):
        text = re.sub(removed, "", text)
    text = text.replace("groupName: gpu", "groupName: cpu")
    without = yaml.safe_load(text)
    assert without == plain


# --- what a RayJob starts


@pytest.fixture
def cluster_shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which `agrekd` prints its words, one a line, and all is shared here."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/agrekd"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "shared").mkdir()
    return os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SHARED": str(tmp_path / "shared"),
    }


def start(words: list[str], environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        ["sh", str(CLUSTER / "start.sh"), *words],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_names_files_that_the_image_has_and_changes_that_are_valid(
    path: Path, tmp_path: Path, cluster_shell: dict[str, str]
) -> None:
    shell, script, name, job, *changes = shlex.split(content(path)["spec"]["entrypoint"])
    assert shell == "sh"
    here = [ROOT / Path(file).relative_to(image_folder()) for file in (script, job)]
    assert here[0] == CLUSTER / "start.sh"
    assert here[1].is_file()
    assert yaml.safe_load(content(path)["spec"]["runtimeEnvYAML"])["env_vars"]
    (pod, *_) = pods_of(path)
    uri = next(
        e["value"] for e in pod["containers"][0]["env"] if e["name"] == "MLFLOW_TRACKING_URI"
    )
    environment = cluster_shell | {"MLFLOW_TRACKING_URI": uri}
    verb, *words = start([name, str(here[1]), *changes], environment)
    assert verb == "run"
    shared = tmp_path / "shared"
    assert words[1:] == [
        *changes,
        "ray.address=auto",
        f"runs={shared}/runs/{name}",
        f"teachers.store={shared}/teachers",
        f"outputs.store={shared}/outputs",
        f"tracking.uri={uri}",
    ]
    command = [*AGREKD, "validate", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "valid" in done.stdout


def test_a_second_start_under_the_same_name_resumes(
    tmp_path: Path, cluster_shell: dict[str, str]
) -> None:
    run = tmp_path / "shared/runs/mine/tiny/20260101-000000-abcd"
    run.mkdir(parents=True)
    (run.parent / "latest").symlink_to(run.name)
    assert start(["mine", "job.yaml"], cluster_shell)[0] == "run"  # killed before it began
    (run / "state.json").write_text("{}")
    latest = str(run.parent / "latest")
    assert start(["mine", "job.yaml"], cluster_shell) == ["resume", latest]
    assert start(["other", "job.yaml"], cluster_shell)[0] == "run"
    bad = subprocess.run(
        ["sh", str(CLUSTER / "start.sh"), "mine"], capture_output=True, text=True, check=False
    )
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "usage" in bad.stderr


# --- the image


def copied(folder: Path) -> Iterator[tuple[str, Path]]:
    """Do the COPY instructions into a folder that stands for the image's root."""
    ignored = (ROOT / ".dockerignore").read_text().split()
    at = Path("/")
    for one in dockerfile():
        if one.name == "WORKDIR":
            at = Path(one.value)
        if one.name != "COPY":
            continue
        *sources, target = one.words
        into = folder / (at / target).relative_to("/")
        for source in sources:
            assert source not in ignored
            path = ROOT / source
            if path.is_dir():  # the content of a folder is copied, not the folder
                shutil.copytree(path, into, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, into)
            yield source, into


def test_the_image_is_of_the_tested_ray_and_of_no_superuser() -> None:
    first = next(one for one in dockerfile() if one.name != "ARG")
    assert first.name == "FROM"
    assert first.value.startswith(f"rayproject/ray:{constrained('ray')}-py")
    users = [one.value for one in dockerfile() if one.name == "USER"]
    assert users[-1] == "ray"
    last_user = max(n for n, one in enumerate(dockerfile()) if one.name == "USER")
    first_run = min(n for n, one in enumerate(dockerfile()) if one.name in ("RUN", "COPY"))
    assert last_user < first_run  # nothing is made by the superuser
    known = {"ARG", "FROM", "USER", "RUN", "WORKDIR", "COPY", "CMD"}  # what is executed below
    assert {one.name for one in dockerfile()} <= known


def test_the_image_has_what_its_instructions_and_the_manifests_name(tmp_path: Path) -> None:
    sources = [source for source, _ in copied(tmp_path)]
    assert len(sources) == len(set(sources))
    there = tmp_path / Path(image_folder()).relative_to("/")
    for path in JOBS:
        _, script, _, job, *_ = shlex.split(content(path)["spec"]["entrypoint"])
        for file in (script, job):
            assert (tmp_path / Path(file).relative_to("/")).is_file()
    for one in dockerfile():
        if one.name == "RUN" and "constraints.txt" in one.value:
            assert (there / "constraints.txt").is_file()
    package = there / "agrekd_ray"
    mine = {p.relative_to(ROOT / "agrekd_ray") for p in (ROOT / "agrekd_ray").rglob("*.py")}
    assert {p.relative_to(package) for p in package.rglob("*.py")} == mine


@pytest.mark.chaos
def test_the_images_instructions_in_a_fresh_environment(tmp_path: Path) -> None:
    """As far as that goes without a container engine.

    The base image, which has Ray and Python, is stood in for by a new virtual environment that sees
    the packages of this one, so that only what is not there is downloaded; `RUN` is run for real.
    """
    venv.create(tmp_path / "venv", with_pip=True)
    library = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    (library / "image.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    binaries = tmp_path / "venv/bin"
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    } | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    root = tmp_path / "root"
    root.mkdir()
    copies = copied(root)
    at = root
    command: list[str] = []
    for one in dockerfile():
        if one.name == "WORKDIR":
            at = root / Path(one.value).relative_to("/")
            at.mkdir(parents=True, exist_ok=True)
        elif one.name == "COPY":
            for _ in one.words[:-1]:
                next(copies)
        elif one.name == "RUN":
            line = one.value.replace(" /home/", f" {root}/home/")
            done = subprocess.run(
                line,
                shell=True,
                cwd=at,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        elif one.name == "CMD":
            command = yaml.safe_load(one.value)

    def inside(*words: str) -> str:
        done = subprocess.run(
            [str(binaries / words[0]), *words[1:]],
            cwd=at,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "Group-robust distillation" in inside(*command)
    shutil.rmtree(at / "agrekd_ray")  # what was installed must do without its source
    where = inside("python", "-c", "import agrekd_ray; print(agrekd_ray.__file__)")
    assert Path(where.strip()).is_relative_to(library)
    assert "valid" in inside("agrekd", "validate", "jobs/colored_digits.yaml")
