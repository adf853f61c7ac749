"""The pool of teachers: what is missing of it, what is damaged, and trainings that were stopped."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agrekd_ray.data import open_dataset
from agrekd_ray.errors import CheckpointError
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import run_job
from agrekd_ray.models import Model, load
from agrekd_ray.models.checkpoint import WEIGHTS
from agrekd_ray.settings import Training
from agrekd_ray.teachers import Pool, Recipe, draw

from .shared import pool_of


def recipe(seed: int = 0, width: int = 4, epochs: int = 1) -> Recipe:
    """An ERM model that is trained in no time."""
    model = Model(name="cnn", args={"width": width})
    return Recipe(kind="erm", model=model, training=Training(epochs=epochs), seed=seed)


def flip(folder: Path) -> None:
    """Another bit in the last of the weights; nothing else changes."""
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def bytes_read() -> int:
    """That this process has asked the system for, so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


# --- what is missing


def test_what_is_missing_is_known_without_the_weights(make_job: Any, tmp_path: Path) -> None:
    pool = Pool(tmp_path, open_dataset(make_job().data))
    recipes = [recipe(seed, width=96) for seed in range(3)]
    for one in recipes:
        pool.make([one])
    size = sum((pool.folder(one) / WEIGHTS).stat().st_size for one in recipes)
    assert pool.missing(recipes) == []
    before = bytes_read()
    assert pool.missing(recipes) == []
    looked = bytes_read() - before
    assert pool.missing(recipes, verify=True) == []
    assert bytes_read() - before - looked > size > 20 * looked


@pytest.mark.parametrize("left", [0, 7, 8, 100, -1])
def test_weights_that_are_cut_are_missing(make_job: Any, tmp_path: Path, left: int) -> None:
    pool = Pool(tmp_path, open_dataset(make_job().data))
    pool.make([recipe()])
    path = pool.folder(recipe()) / WEIGHTS
    path.write_bytes(path.read_bytes()[:left])
    assert pool.missing([recipe()]) == [[recipe()]]
    path.write_bytes(b"\x08" + bytes(7) + b"[[{}, 1]]")
    assert pool.missing([recipe()]) == [[recipe()]]


def test_weights_that_are_others_are_found_where_they_are_loaded(
    make_job: Any, tmp_path: Path
) -> None:
    job = make_job(**{"teachers.store": str(tmp_path / "pool")})
    data, _, drawn = pool_of(job)
    pool = Pool(job.teachers.store, data)
    child = next(r for r in drawn.recipes.values() if r.kind == "dfr")
    pool.make([child.parent])
    kept = {path: (path / WEIGHTS).read_bytes() for path in map(pool.folder, (child, child.parent))}
    for folder in kept:
        flip(folder)
        with pytest.raises(CheckpointError, match=r"not the weights .* delete the folder"):
            load(folder)
    assert pool.missing([child, child.parent]) == []
    (family,) = pool.missing([child, child.parent], verify=True)
    assert family == [child.parent, child]
    epochs: list[int] = []
    pool.make([child], progress=lambda name, epoch, of: epochs.append(epoch))
    assert epochs == [1, 2]  # the parent cannot be used, either
    assert {path: (path / WEIGHTS).read_bytes() for path in kept} == kept


@pytest.mark.parametrize("guidance", ["local", "auto", "live"])
def test_a_run_makes_damaged_teachers_again(
    ray_session: Any, make_job: Any, tmp_path: Path, guidance: str
) -> None:
    """Whoever loads them first: who asks them, records them, or has them teach."""
    changes = {"guidance": guidance, "tracking.models": False, "teachers.store": str(tmp_path)}
    job = make_job(**changes)
    whole = run_job(RunFolder.create(job), Console(quiet=True))
    pool = Pool(job.teachers.store, open_dataset(job.data))
    teachers = [*draw(job.ensemble, job.teachers).recipes.values()][:2]
    kept = [(pool.folder(teacher) / WEIGHTS).read_bytes() for teacher in teachers]
    for teacher in teachers:
        flip(pool.folder(teacher))
    if guidance == "auto":
        for record in job.outputs.store.glob("*/view-*.arrow"):
            record.unlink()
    screen = io.StringIO()
    again = run_job(RunFolder.create(job), Console(file=screen, width=300))
    for teacher in teachers:
        assert f"{pool.folder(teacher)}: damaged, so it is made again" in screen.getvalue()
    assert [(pool.folder(teacher) / WEIGHTS).read_bytes() for teacher in teachers] == kept
    assert [one.splits for one in again] == [one.splits for one in whole]
