"""Somebody else holds the only room: a run says what it waits for, then goes on."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agrekd_ray.cluster.events import Notice
from agrekd_ray.data import TEST
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.eval_logits import Answers
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.models import Model
from agrekd_ray.settings import Training
from agrekd_ray.student import StudentSpec
from agrekd_ray.teachers import Pool

from .shared import pool_of


@pytest.fixture
def held_slot(ray_session: Any, add_node: Any) -> Callable[[Callable[[], bool]], threading.Thread]:
    """Holds the only `slot` of the cluster until something is so."""
    add_node(num_cpus=2, resources={"slot": 1})

    class Other:
        pass

    def hold(until: Callable[[], bool]) -> threading.Thread:
        other = ray_session.remote(Other).options(num_cpus=0, resources={"slot": 1}).remote()
        ray_session.get(other.__ray_ready__.remote())

        def leave() -> None:
            while not until():
                time.sleep(0.05)  # polls for the moment
            ray_session.kill(other)

        thread = threading.Thread(target=leave, daemon=True)
        thread.start()
        return thread

    return hold


def test_what_waits_for_room_is_said_again_and_again(
    held_slot: Any, make_job: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from agrekd_ray.experiment import waiting
    from agrekd_ray.experiment.ray_engine import RayEngine

    monkeypatch.setattr(waiting, "STALL_SECONDS", 0.5)
    slot = {"resources": {"slot": 1}}
    job = make_job(fleet={"cpus": 0.1, **slot}, **{"student.resources": {"slot": 1}})
    data, _, _ = pool_of(job)
    told: list[Any] = []

    def twice(what: str) -> Callable[[], bool]:
        def said() -> bool:
            texts = [event.text for event in told if isinstance(event, Notice)]
            return sum(text.startswith("for ") and what in text for text in texts) >= 2

        return said

    engine = RayEngine(job, told.append)
    try:
        leaves = held_slot(twice("the evaluation of"))
        answers, models = (
            Answers(job, data),
            make_plan(job).answering(Pool(job.teachers.store, data)),
        )
        asked = answers.missing(models, [TEST])
        silent = Display(Console(file=io.StringIO()))
        assert answers.complete(asked, engine, silent) == len(models)
        leaves.join()

        leaves = held_slot(twice("student's worker"))
        model = Model(name="cnn", args={"width": 4})
        training = Training(epochs=1, batch_size=32, learning_rate=0.05)
        given = StudentSpec("one_hot", 0, model, training)
        engine.train_students((given,), {}, tmp_path / "students", tmp_path / "training")
        leaves.join()
    finally:
        engine.close()
    assert (tmp_path / "students" / given.name / "outcome.json").exists()
    first = next(event.text for event in told if isinstance(event, Notice))
    assert "wait for room that others hold now" in first
    assert "1 slot" in first
