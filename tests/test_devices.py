"""Where things are computed, told on machines without a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agrekd_ray import devices
from agrekd_ray.cluster.events import Notice
from agrekd_ray.config import Job
from agrekd_ray.data import TEST
from agrekd_ray.devices import device_for, device_of
from agrekd_ray.errors import RunError
from agrekd_ray.experiment import engine as module
from agrekd_ray.experiment.engine import LocalEngine
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.student import StudentSpec
from agrekd_ray.teachers import Asked

from .shared import pool_of


@pytest.mark.parametrize(
    ("gpus", "found", "device"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), (0, True, "cpu"), (0, False, "cpu")],
)
def test_what_a_machine_has_is_used_unless_it_is_declined(
    monkeypatch: pytest.MonkeyPatch, gpus: Any, found: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert device_of(gpus, "student.gpus") == device


def test_nobody_is_given_a_gpu_that_it_was_not_granted() -> None:
    assert device_for("") == "cpu"


def test_a_gpu_that_can_be_used_is_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(torch, "zeros", lambda *size, device: tried.append(device))
    assert device_for("node a: Ray has given a process GPU 1", "cuda:1") == "cuda:1"
    assert tried == ["cuda:1"]


NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch can use a GPU here")


@NO_CUDA
def test_a_gpu_that_pytorch_cannot_use_is_an_error_with_its_cause(
    make_job: Callable[..., Job],
) -> None:
    job = make_job(guidance="local", **{"student.gpus": 0.5})
    with pytest.raises(RunError) as failure:
        LocalEngine(job, lambda event: None)
    text = str(failure.value)
    assert "student.gpus = 0.5 asks for a GPU of this machine" in text
    assert f"PyTorch {torch.__version__} cannot use it (" in text
    assert "gpus: 0" in text
    cause = text.partition("cannot use it (")[2].partition(")")[0]
    assert len(cause) > 10  # PyTorch's own words
    assert "\n" not in text


@pytest.mark.parametrize(
    ("gpus", "device"), [("auto", "cuda"), (None, "cuda"), (0.5, "cuda"), (0, "cpu")]
)
def test_everything_of_a_local_run_is_computed_on_the_device(
    make_job: Callable[..., Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: float | None,
    device: str,
) -> None:
    """Teachers made, teachers that teach, students, and finished models that are asked."""
    used: dict[str, Any] = {}

    class FakePool:
        def __init__(self, store: Path, dataset: Any) -> None: ...

        def folder(self, recipe: Any) -> Path:
            return Path(recipe.name)

        def make(self, family: Any, device: str, *told: Any) -> None:
            used["pool"] = device

    class FakeHost:
        forwards, seconds, spans = 0, 0.0, {}

        def __init__(self, checkpoints: Any, samples: Any, *, device: str, **more: Any) -> None:
            used["host"] = device

    class FakeStudent:
        def __init__(self, *given: Any, device: str) -> None:
            used["student"] = device

        def train(self, *given: Any) -> list[Any]:
            return []

    def fake_answers(asked: Any, samples: Any, device: str) -> dict[str, Any]:
        used["answers"] = device
        return {}

    job = make_job(guidance="local", **{"student.gpus": gpus})
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(devices, "why_unusable", lambda device: None)
        local = LocalEngine(job, lambda event: None)
    assert local.device == device
    fakes = {"Pool": FakePool, "TeacherHost": FakeHost, "Student": FakeStudent}
    for name, fake in {**fakes, "answers": fake_answers}.items():
        monkeypatch.setattr(module, name, fake)
    given = StudentSpec("aver", 0, job.student.model, job.student.training)
    local.make_teachers([[make_plan(job).recipes[0]]], tmp_path)
    local.train_students((given,), {"erm-0": tmp_path}, tmp_path / "students", tmp_path / "state")
    local.ask([Asked("erm-0", tmp_path, ("test",))], lambda asked, said: None)
    assert used == dict.fromkeys(("pool", "host", "student", "answers"), device)


def test_a_local_run_says_what_it_declines(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    LocalEngine(make_job(guidance="local", **{"student.gpus": 0}), told.append)
    LocalEngine(make_job(guidance="local"), told.append)
    assert told == [Notice("2 of 2 GPUs stay idle: student.gpus = 0 declines them")]


@pytest.fixture
def useless_gpus(ray_session: Any, add_node: Callable[..., Any]) -> str:
    """A node of the session whose GPUs PyTorch cannot use; its name."""
    from agrekd_ray.cluster.nodes import cluster_nodes

    add_node(num_cpus=4, num_gpus=2)
    (name,) = [node.name for node in cluster_nodes() if node.total.get("GPU")]
    return name


def ended(work: Callable[[], object], node: str) -> None:
    """The work ends in an error with the node, the cause and the remedy."""
    with pytest.raises(RunError) as failure:
        work()
    text = str(failure.value)
    assert f"node {node}: Ray has given a process GPU " in text
    assert f"PyTorch {torch.__version__} cannot use it (" in text
    assert "gpus: 0" in text


@NO_CUDA
def test_a_granted_gpu_that_is_of_no_use_ends_the_job(
    useless_gpus: str, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """In every kind of process of a job that leaves its GPUs open: no CPU stands in for one."""
    from agrekd_ray.experiment.ray_engine import RayEngine

    _, checkpoints, drawn = pool_of(make_job())
    places = (tmp_path / "students", tmp_path / "state")
    one_hot = make_job(methods=["one_hot"])
    live = make_job(guidance="live", **{"student.gpus": 0, "fleet.cpus": 0.1})
    pairs = make_job(methods=["one_hot"], **{"student.workers": 2})

    def students(job: Job, hosted: Any) -> Callable[[RayEngine], object]:
        given = make_plan(job).specs
        return lambda engine: engine.train_students(given, hosted, *places)

    asked = [Asked(drawn.biased, checkpoints[drawn.biased], (TEST,))]
    recipes = [[make_plan(one_hot).draw.recipes[drawn.biased]]]
    anew = make_job(**{"teachers.store": str(tmp_path / "new")})
    works: list[tuple[Job, Callable[[RayEngine], object]]] = [
        (anew, lambda engine: engine.make_teachers(recipes, tmp_path)),
        (one_hot, lambda engine: engine.ask(asked, lambda one, said: None)),
        (one_hot, students(one_hot, {})),
        (pairs, students(pairs, {})),
        (live, students(live, checkpoints)),
        (make_job(), lambda engine: engine.record(checkpoints, [0])),
    ]
    for job, work in works:
        engine = RayEngine(job, [].append)
        try:
            ended(functools.partial(work, engine), useless_gpus)
        finally:
            engine.close()


@NO_CUDA
def test_trials_say_so_too(useless_gpus: str, tmp_path: Path, store: Path) -> None:
    from .test_search import STUDENT_ONLY, search

    declined = {"teachers.gpus": 0, "fleet.gpus": 0}
    ended(
        lambda: search(tmp_path, store, space=STUDENT_ONLY, trials=2, changes=declined),
        useless_gpus,
    )
