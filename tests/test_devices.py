"""Where things are computed, told on machines without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agrekd_ray.config import Job
from agrekd_ray.devices import device_for
from agrekd_ray.events import Note
from agrekd_ray.run import engine as module
from agrekd_ray.run.engine import LocalEngine
from agrekd_ray.student import Assignment
from agrekd_ray.teachers import Asked


@pytest.mark.parametrize(
    ("gpus", "found", "device"),
    [
        (None, True, "cuda"),
        (1, True, "cuda"),
        (0.25, True, "cuda"),
        (0, True, "cpu"),
        (None, False, "cpu"),
        (1, False, "cpu"),
    ],
)
def test_a_device_is_chosen_by_what_was_given_and_what_is_there(
    monkeypatch: pytest.MonkeyPatch, gpus: float | None, found: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert device_for(gpus) == device


@pytest.mark.parametrize(("gpus", "device"), [(None, "cuda"), (0.5, "cuda"), (0, "cpu")])
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

        def make(self, family: Any, device: str, progress: Any) -> None:
            used["pool"] = device

    class FakeHost:
        forwards, seconds, spans = 0, 0.0, {}

        def __init__(self, checkpoints: Any, samples: Any, *, device: str, **more: Any) -> None:
            used["host"] = device

    class FakeStudent:
        done = True

        def __init__(self, *given: Any, device: str) -> None:
            used["student"] = device

        def finish(self, students: Path) -> list[Any]:
            return []

    def fake_answers(asked: Any, samples: Any, device: str) -> dict[str, Any]:
        used["answers"] = device
        return {}

    job = make_job(guidance="local", **{"student.gpus": gpus})
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        local = LocalEngine(job, lambda event: None)
    assert local.device == device
    fakes = {"Pool": FakePool, "TeacherHost": FakeHost, "Student": FakeStudent}
    for name, fake in {**fakes, "answers": fake_answers}.items():
        monkeypatch.setattr(module, name, fake)
    given = Assignment("aver", 0, job.student.model, job.student.training)
    local.make_teachers([[]])
    local.train_students((given,), {"erm-0": tmp_path}, tmp_path / "students", tmp_path / "state")
    local.ask([Asked("erm-0", tmp_path, ("test",))], lambda asked, said: None)
    assert used == dict.fromkeys(("pool", "host", "student", "answers"), device)


def test_a_gpu_that_is_asked_for_and_not_there_is_said(make_job: Callable[..., Job]) -> None:
    told: list[Any] = []
    LocalEngine(make_job(guidance="local", **{"student.gpus": 1}), told.append)
    LocalEngine(make_job(guidance="local"), told.append)
    if torch.cuda.is_available():
        assert told == []
    else:
        (note,) = told
        assert isinstance(note, Note)
        assert "student.gpus" in note.text


def test_without_a_word_no_ray_worker_takes_a_gpu(make_job: Callable[..., Job]) -> None:
    assert make_job().student.takes["GPU"] == 0
    assert make_job(**{"student.gpus": 0.5}).student.takes["GPU"] == 0.5
