"""Preparing on several raylets: the rows of one process, whoever dies, and who cannot help."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agrekd_ray import data as data_room
from agrekd_ray.config import Job
from agrekd_ray.data import open_dataset
from agrekd_ray.data.chunks import CHUNK, BrokenRowsError
from agrekd_ray.data.prepared import PreparedRows
from agrekd_ray.experiment import prepare_tasks
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.preparing import prepare_data

from . import pictures

CHUNKS = 9


@pytest.fixture
def job(
    tmp_path: Path, make_job: Any, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Job]:
    """Makes jobs about nine chunks of pictures, each of which is a task."""
    monkeypatch.setattr(prepare_tasks, "FEW", 0)
    monkeypatch.setattr(PreparedRows, "aligned", lambda rows, count: 1)
    places = pictures.spread((400, 100, 76))
    assert len(places) == CHUNKS * CHUNK
    birds = pictures.waterbirds(tmp_path / "birds", places)

    def make(prepared: str, address: str | None = ray_cluster.address) -> Job:
        data = {"name": "waterbirds", "path": str(birds), "counts": "any", "size": 4, "resize": 4}
        data["prepared"] = str(tmp_path / prepared)
        return make_job(**{"data": data, "ray.address": address})

    return make


def prepared(job: Job) -> tuple[Any, str]:
    """The data set, and what was said while it was prepared."""
    screen = io.StringIO()
    dataset: Any = open_dataset(job.data)
    with Display(Console(file=screen, width=200)) as display:
        prepare_data(dataset, display, job)
    return dataset, screen.getvalue()


def files(dataset: Any) -> list[bytes]:
    place = dataset.rows.place
    return [(place / name).read_bytes() for name in ("rows", "digests", "whole.json")]


def test_nodes_make_the_rows_of_one_process_though_a_task_is_killed(
    job: Callable[..., Job], add_node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_node(num_cpus=6)
    notes = tmp_path / "notes"
    notes.mkdir()

    def noted(given: Any, numbers: list[int]) -> Any:
        """Waits until two nodes are at it; the first to make chunk 3 dies before it can say so."""
        import os
        import signal
        import time

        import ray

        from agrekd_ray.experiment import prepare_tasks

        node = ray.get_runtime_context().get_node_id()
        (notes / f"node-{node}").touch()
        while len(list(notes.glob("node-*"))) < 2:
            time.sleep(0.05)
        with (notes / "chunks").open("a") as file:
            file.write("".join(f"{number}\n" for number in numbers))
        made = prepare_tasks._make(given, numbers)
        if 3 in numbers and not (notes / "killed").exists():
            (notes / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    monkeypatch.setattr(prepare_tasks, "_make", noted)
    dataset, said = prepared(job("together"))
    assert "data: 2 nodes prepare them" in said
    assert len(list(notes.glob("node-*"))) == 2
    made = sorted(map(int, (notes / "chunks").read_text().split()))
    assert made == sorted([*range(CHUNKS), 3])
    alone, _ = prepared(job("alone", None))
    assert files(dataset) == files(alone)
    assert not list(dataset.rows.place.glob("shared-*"))


def test_faults_of_all_tasks_are_gathered_and_what_is_sound_is_kept(
    job: Callable[..., Job], add_node: Any
) -> None:
    add_node(num_cpus=6)
    about = job("together")
    dataset: Any = open_dataset(about.data)
    for number in (3, 5 * CHUNK, 5 * CHUNK + 1):
        path = Path(dataset._source.paths[number])
        path.write_bytes(path.read_bytes()[:300])
    data_room._opened.cache_clear()
    with pytest.raises(BrokenRowsError) as broken:
        prepared(about)
    lines = sorted(fault.partition(":")[0] for fault in broken.value.faults)
    assert len(lines) == 3, lines
    assert open_dataset(about.data).unprepared() == 2 * CHUNK  # type: ignore[attr-defined]


def test_nodes_that_cannot_help_are_named_and_the_driver_does_it(
    job: Callable[..., Job], add_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_node(num_cpus=1)

    @contextmanager
    def elsewhere(rows: PreparedRows) -> Iterator[str]:
        yield "a mark on another disk"

    monkeypatch.setattr(PreparedRows, "marked", elsewhere)
    dataset, said = prepared(job("apart"))
    assert said.count("does not prepare them (it does not share the folder data.prepared)") == 2
    assert "nodes prepare them" not in said
    assert dataset.unprepared() == 0


def test_why_a_node_cannot_help(job: Callable[..., Job]) -> None:
    settings = job("here").data
    dataset: Any = open_dataset(settings)
    given, key = (settings, dataset.stamps), dataset.rows.place.name
    assert "not share" in prepare_tasks._unable(given, key, "a mark")
    assert "not the driver's" in prepare_tasks._unable(given, "another key", "a mark")
    data_room._opened.cache_clear()
    Path(dataset._source.paths[-1]).unlink()
    (dataset.rows._partial).mkdir(parents=True)
    with dataset.rows.marked() as mark:
        assert "no file" in prepare_tasks._unable(given, key, mark)
    table = Path(settings.path) / "metadata.csv"  # type: ignore[union-attr]
    table.unlink()
    data_room._opened.cache_clear()
    assert "metadata.csv" in prepare_tasks._unable(given, key, "a mark")
