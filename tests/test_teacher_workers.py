"""Teachers that several workers train together: the same as one's; what befalls a worker."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from agrekd_ray.cluster.events import Event, Notice, TeacherDone, TeacherEpoch
from agrekd_ray.config import Job
from agrekd_ray.config.checks import check_job
from agrekd_ray.data import open_dataset
from agrekd_ray.errors import DataError, RunError
from agrekd_ray.experiment.gpus import check_room_to_begin, cpus_of_workers, training_of_a_teacher
from agrekd_ray.models import load
from agrekd_ray.teachers import Pool, Recipe, draw
from agrekd_ray.training import Trainer

from .conftest import TINY, Run, merged
from .shared import flat_parameters
from .test_placement import node
from .test_run import write_job
from .test_search import leftovers

TWO = {"teachers.workers": 2, "teachers.cpus": 0.5, "data.views": {"flip": True}}


def unreadable() -> None:
    raise DataError("picture 7 cannot be read")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def befalling(work: type[Any], what: Callable[[], None], times: int, mark: Path) -> type[Any]:
    """Work of groups in which something befalls the second worker, once.

    Args:
        work: as it is.
        what: befalls it.
        times: it has come to the seventh step of a teacher by then.
        mark: that it has happened.
    """

    @dataclass(frozen=True)
    class Befallen(work):  # type: ignore[misc]
        def opened(self) -> Callable[[int], None]:
            step, come = Trainer.step, itertools.count(1)

            def befallen(trainer: Trainer, batch: Any, loaded: Any) -> Any:
                is_it = dist.get_rank() == 1 and batch.step == 6 and next(come) == times
                if is_it and not mark.exists():
                    mark.touch()
                    what()
                return step(trainer, batch, loaded)

            Trainer.step = befallen  # type: ignore[method-assign]  # of a process that ends soon
            make: Callable[[int], None] = work.opened(self)
            return make

    return Befallen


def families_of(job: Job) -> list[list[Recipe]]:
    """An ERM model with one that is retrained from it, and another ERM model."""
    recipes = draw(job.ensemble, job.teachers).recipes.values()
    debiased = next(recipe for recipe in recipes if recipe.kind == "dfr")
    other = next(recipe for recipe in recipes if recipe not in (debiased, debiased.parent))
    return [[debiased.parent, debiased], [other]]


def make(job: Job, families: Sequence[Sequence[Recipe]], tmp_path: Path, told: list[Event]) -> None:
    """Makes families as a run does, which hears what is told."""
    from agrekd_ray.experiment.ray_engine import RayEngine

    engine = RayEngine(job, told.append)
    try:
        engine.make_teachers(families, tmp_path / "groups")
    finally:
        engine.close()


def same(job: Job, recipes: Sequence[Recipe], alone: Path) -> None:
    """The pool has these models, and they are those that one worker makes."""
    pool, other = (Pool(store, open_dataset(job.data)) for store in (job.teachers.store, alone))
    assert pool.missing(recipes) == []
    for family in other.missing(recipes):
        other.make(family)
    for recipe in recipes:
        weights, expected = (flat_parameters(load(p.folder(recipe))[0]) for p in (pool, other))
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)


def test_two_workers_make_what_one_makes_and_a_fault_of_one_is_named(
    ray_session: Any, make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One group for two teachers; at the second one's seventh step a worker cannot read a file."""
    from agrekd_ray.experiment import ray_engine, teacher_groups

    work = befalling(teacher_groups.TeacherWork, unreadable, 2, tmp_path / "befallen")
    monkeypatch.setattr(teacher_groups, "TeacherWork", work)
    monkeypatch.setattr(ray_engine, "side_by_side", lambda *given: 1)
    job = make_job(**TWO, **{"teachers.store": str(tmp_path / "pool")})
    families, told = families_of(job), list[Event]()
    with pytest.raises(RunError, match=r"^worker 2 of 2: picture 7 cannot be read$"):
        make(job, families, tmp_path, told)
    (first, debiased), (other,) = families
    epochs = [(event.name, event.epoch) for event in told if isinstance(event, TeacherEpoch)]
    assert epochs == [(first.name, 1), (first.name, 2), (other.name, 1)]
    done = [event.name for event in told if isinstance(event, TeacherDone)]
    assert done == [first.name, debiased.name]
    assert leftovers(ray_session) == {"actors": [], "groups": []}
    same(job, families[0], tmp_path / "alone")
    assert len([*(tmp_path / "pool/training").iterdir()]) == 1  # the state of the other


@pytest.mark.chaos
def test_a_worker_that_dies_costs_the_steps_since_the_last_state(
    ray_session: Any, make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agrekd_ray.experiment import teacher_groups

    work = befalling(teacher_groups.TeacherWork, die, 1, tmp_path / "befallen")
    monkeypatch.setattr(teacher_groups, "TeacherWork", work)
    often = {"teachers.training.save_every_minutes": 1e-9}
    job = make_job(**TWO, **often, **{"teachers.store": str(tmp_path / "pool")})
    families, told = families_of(job), list[Event]()
    make(job, families[:1], tmp_path, told)
    assert (tmp_path / "befallen").exists()
    (text,) = [event.text for event in told if isinstance(event, Notice)]
    begins = f"{families[0][0].name} goes on from "
    assert text in (f"{begins}step 2 of 5 of epoch 2 of 2", f"{begins}epoch 2 of 2")
    same(job, families[0], tmp_path / "alone")
    assert leftovers(ray_session) == {"actors": [], "groups": []}


@pytest.mark.chaos
def test_a_run_whose_teachers_have_two_workers(tmp_path: Path, agrekd: Run) -> None:
    job = write_job(tmp_path, tmp_path / "pool", **TWO, **{"tracking.models": False})
    code, _, err = agrekd("run", job)
    assert code == 0, err
    given = Job.model_validate(merged(TINY, {**TWO, "teachers.store": str(tmp_path / "pool")}))
    recipes = draw(given.ensemble, given.teachers).recipes.values()
    same(given, [*recipes], tmp_path / "alone")
    run = tmp_path / "runs/tiny/latest"
    assert agrekd("resume", run, "teachers.workers=1", "teachers.cpus=1")[0] == 0


# --- without Ray


def test_how_many_workers_there_are_is_no_part_of_a_teacher(make_job: Any) -> None:
    (one, _), (two, _) = (families_of(make_job(**{"teachers.workers": n})) for n in (1, 2))
    pool = Pool(Path("pool"), open_dataset(make_job().data))
    assert [pool.folder(recipe) for recipe in one] == [pool.folder(recipe) for recipe in two]


def test_workers_of_teachers_must_fit_their_batch_gpus_and_cluster(make_job: Any) -> None:
    raw = {"teachers.workers": 3, "teachers.gpus": 0.5}
    _, faults = check_job(merged(TINY, raw))
    assert {fault.key for fault in faults} == {"teachers.training.batch_size", "teachers.gpus"}
    assert "multiple of teachers.workers, 3" in str(faults[0])
    assert "the 3 workers of a teacher need a GPU each" in str(faults[1])
    job = make_job(**{"teachers.workers": 4, "teachers.cpus": 2})
    assert len(training_of_a_teacher(job)) == 4
    assert cpus_of_workers(job) == 8
    check_room_to_begin(job, [node("a", cpus=8)])
    with pytest.raises(RunError, match="teacher's worker"):
        check_room_to_begin(job, [node("a", cpus=7)])
