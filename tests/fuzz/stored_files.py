"""What is kept: checkpoints, records, states of training, weights, and MLflow's file."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from agrekd_ray.commands.compare import compare
from agrekd_ray.commands.teachers import list_teachers
from agrekd_ray.config import Job
from agrekd_ray.data import SELECT, TEST, TRAIN, Dataset, open_dataset
from agrekd_ray.errors import CheckpointError
from agrekd_ray.experiment.eval_logits import Answers, members
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.logits import LogitsCache, OutputSettings, listed
from agrekd_ray.logits.report import check, show
from agrekd_ray.models import Manifest, Model, build, load, read_manifest, save
from agrekd_ray.models.checkpoint import MANIFEST, WEIGHTS
from agrekd_ray.models.weights import read_contents
from agrekd_ray.settings import Training
from agrekd_ray.student import Student, StudentSpec
from agrekd_ray.teachers import Pool, Recipe

from ..conftest import TINY, merged
from ..test_page import OUTCOMES, metrics
from .cases import Subject
from .settings_files import PLACES

SHAPE, CLASSES = (3, 8, 8), tuple("0123456789")
CNN = Model(name="cnn", args={"width": 2})


# --- checkpoints


def _checkpoint(folder: Path, seed: int, **more: Any) -> None:
    found = {split: asdict(metrics(0.3)) for split in (SELECT, TEST)}
    manifest = Manifest(CNN, SHAPE, CLASSES, f"{seed}", "d", metrics=found, **more)
    save(folder, build(CNN, SHAPE, len(CLASSES), seed), manifest)


def _answers(folder: Path) -> torch.Tensor:
    model, manifest = load(folder)
    assert manifest == read_manifest(folder)
    with torch.inference_mode():
        return model(torch.full((2, *SHAPE), 0.5))


def _make_checkpoints() -> dict[str, Any]:
    for number in (0, 1):
        _checkpoint(Path(f"erm-{number}"), number)
    return {
        f"erm-{n}": (read_manifest(Path(f"erm-{n}")), _answers(Path(f"erm-{n}"))) for n in (0, 1)
    }


def _use_checkpoint(rng: Random | None, truth: dict[str, Any], target: Path) -> None:
    damaged, fault = Path(target.parent.name), None
    for folder in map(Path, truth):
        manifest, answers = truth[folder.name]
        try:
            found, known = _answers(folder), read_manifest(folder)
            if '"sha256"' in (folder / MANIFEST).read_text():  # else it was made by hand
                assert torch.equal(found, answers)
                assert known == manifest
            assert found.shape == answers.shape
        except CheckpointError as error:
            assert folder == damaged
            fault = error
    if fault is not None:
        raise fault


def _resealed(rng: Random, path: Path) -> str | None:
    """Weights of another network, under a manifest that knows them."""
    if path.name != WEIGHTS:
        return None
    state = load_file(path)
    name = rng.choice(sorted(state))
    value = state[name]
    how = rng.choice(("lost", "renamed", "wider", "flat", "half", "whole numbers", "none", "more"))
    if how == "lost":
        del state[name]
    elif how == "renamed":
        state[f"{name}x"] = state.pop(name)
    elif how == "more":
        state["surplus"] = torch.ones(3)
    elif how == "none":
        state = {}
    else:
        state[name] = {
            "wider": lambda: torch.cat([value, value]),
            "flat": lambda: value.flatten(),
            "half": lambda: value.half(),
            "whole numbers": lambda: value.long(),
        }[how]()
    save_file(state, path)
    manifest = path.with_name("manifest.json")
    values = json.loads(manifest.read_text())
    values.pop("sha256")  # as if it had been made by hand
    values["weights"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(values))
    return f"{name}: {how}, and the manifest says so"


# --- the pool


def _pool_job() -> Job:
    return Job.model_validate(merged(TINY, {**PLACES, "teachers.model": CNN.model_dump()}))


def _put_teacher(pool: Pool, data: Dataset, recipe: Recipe) -> None:
    """As if it had been trained."""
    manifest = Manifest(
        CNN,
        data.shape,
        data.classes,
        pool.fingerprint(recipe),
        data.fingerprint,
        metrics={split: asdict(metrics(0.3)) for split in (SELECT, TEST)},
        made_by=recipe.model_dump(mode="json"),
    )
    save(pool.folder(recipe), build(CNN, data.shape, len(data.classes), recipe.seed), manifest)


def _make_pool() -> None:
    job = _pool_job()
    data, plan = open_dataset(job.data), make_plan(job)
    for recipe in plan.draw.recipes.values():
        _put_teacher(Pool(job.teachers.store, data), data, recipe)
    _checkpoint(job.teachers.store / "imported" / "mine", 5)


def _use_pool(rng: Random | None, truth: None, target: Path) -> None:
    job = _pool_job()
    data, plan = open_dataset(job.data), make_plan(job)
    pool = Pool(job.teachers.store, data)
    for recipe in plan.draw.recipes.values():
        hit = target.is_relative_to(pool.folder(recipe))
        assert hit or pool.find(recipe) is not None
    screen = io.StringIO()
    list_teachers(job, Console(file=screen, width=200))
    for name in plan.draw.recipes:
        assert name in screen.getvalue()
    missing = [recipe for family in pool.missing(plan.draw.recipes.values()) for recipe in family]
    assert len(missing) <= 1
    for recipe in missing:
        _put_teacher(pool, data, recipe)
        assert pool.find(recipe) is not None
    teachers, biased = members(plan, pool, Answers(job, data))
    assert all(isinstance(one.metrics[TEST].accuracy, float) for one in (*teachers, biased))


# --- records


class _Samples:
    """As much of a data set as records know."""

    classes, shape, size = CLASSES, SHAPE, 40
    fingerprint, views_fingerprint = "data", "views"
    splits = {TRAIN: np.arange(5, 35)}  # noqa: RUF012


def _logits(name: str, view: int) -> np.ndarray:
    seed = 10 * int(name[-1]) + view
    return np.random.default_rng(seed).normal(size=(30, len(CLASSES))).astype(np.float32)


def _outputs() -> LogitsCache:
    folders = {name: Path(name).absolute() for name in ("erm-0", "erm-1")}
    settings = OutputSettings(store=Path("outputs"))
    return LogitsCache(settings, folders, _Samples(), "float32")  # type: ignore[arg-type]


def _make_records() -> None:
    _make_checkpoints()
    outputs = _outputs()
    for name in outputs.keys:
        for view in (0, 1):
            partial = outputs.begin(name, view)
            partial.put(np.arange(30), _logits(name, view))
            partial.finish()
        partial = outputs.begin(name, 2)
        partial.put(np.arange(0, 30, 2), _logits(name, 2)[::2])
        partial.close()


def _use_records(rng: Random | None, truth: None, target: Path) -> None:
    outputs, screen = _outputs(), Console(file=io.StringIO())
    folder = target.parent
    show(Path("outputs"), screen)
    check(Path("outputs"), screen)
    assert len(listed(Path("outputs"))) >= 1
    missing = outputs.missing((0, 1, 2))
    for name in outputs.keys:
        mine = outputs.path(name, 0).parent == folder
        for view in (0, 1):
            assert mine or (name, view) not in missing
    for name, view in [(name, view) for name in outputs.keys for view in (0, 1, 2)]:
        logits = outputs.read(name, view)
        if logits is None:
            partial = outputs.begin(name, view)
            known = np.flatnonzero(partial.known_N)
            assert np.array_equal(partial.get(known), _logits(name, view)[known])
            left = np.flatnonzero(~partial.known_N)
            partial.put(left, _logits(name, view)[left])
            partial.finish()
            logits = outputs.read(name, view)
        assert logits is not None
        assert np.array_equal(logits, _logits(name, view))
    assert outputs.missing((0, 1, 2)) == []
    assert outputs.bytes() > 0
    outputs.touch()


def _rearranged(rng: Random, path: Path) -> str | None:
    """Another Arrow file, with the same words about itself."""
    if path.suffix != ".arrow":
        return None
    with pa.ipc.open_file(path) as reader:
        batch = reader.get_batch(0)
    about, column = batch.schema.metadata, batch.column(0)
    flat = column.values
    ways: dict[str, Callable[[], pa.Array]] = {
        "a list": lambda: pa.array(column.to_pylist()),
        "text": lambda: pa.array([str(row) for row in column.to_pylist()]),
        "float64": lambda: column.cast(pa.list_(pa.float64(), len(CLASSES))),
        "a null": lambda: pa.array([None, *column.to_pylist()[1:]], column.type),
        "a null inside": lambda: pa.FixedSizeListArray.from_arrays(
            pa.array([None, *flat.to_pylist()[1:]], flat.type), len(CLASSES)
        ),
        "fewer rows": lambda: column.slice(3),
        "no row": lambda: column.slice(0, 0),
        "other width": lambda: pa.FixedSizeListArray.from_arrays(flat, 5),
        "flat": lambda: flat,
        "nested": lambda: pa.FixedSizeListArray.from_arrays(column, 2),
        "a dictionary": lambda: flat.dictionary_encode(),
        "unions of nothing": lambda: pa.nulls(len(column)),
    }
    how = rng.choice(sorted(ways))
    found = ways[how]()
    names = rng.choice((["logits"], ["logits"], ["logits"], ["others"]))
    schema = pa.schema([pa.field(name, found.type) for name in names], about)
    batches = rng.choice((1, 1, 0, 2))
    options = pa.ipc.IpcWriteOptions(compression=rng.choice((None, "zstd", "lz4")))
    with path.open("wb") as file, pa.ipc.new_file(file, schema, options=options) as writer:
        for _ in range(batches):
            writer.write_batch(pa.record_batch([found], schema=schema))
    return f"an Arrow file of {how}, column {names}, {batches} batches, {options.compression}"


# --- states of training, and weights of other makers


def _student() -> Student:
    job = _pool_job()
    training = Training(epochs=2, batch_size=32, learning_rate=0.05)
    data = open_dataset(job.data)
    return Student(StudentSpec("one_hot", 0, CNN, training), data, None)


def _make_state() -> list[Any]:
    student = _student()
    student.epoch()
    student.save_state(Path("state.pt"))
    other = torch.load("state.pt", weights_only=True)
    return [other["student"], student.history]


def _use_state(rng: Random | None, truth: list[Any], target: Path) -> None:
    student = _student()
    if not student.load_state(Path("state.pt")):
        assert not student.history
        return
    assert student.history[0].loss == truth[1][0].loss or rng is not None
    student.epoch()
    assert student.done


def _restated(rng: Random, path: Path) -> str | None:
    """A state with something else in it."""
    if path.suffix != ".pt":
        return None
    state = torch.load(path, weights_only=True)
    part = rng.choice(
        (
            *("student", "trainer", "history", "replayed"),
            *("model", "optimizer", "schedule", "next_epoch", "under_way"),
        )
    )
    place = state if part in state else state.get("trainer", {})
    how = rng.choice(("lost", "null", "a number", "a list", "empty", "all"))
    if how == "lost":
        place.pop(part, None)
    elif how == "all":
        state = [1, 2]
    else:
        place[part] = {"null": None, "a number": -7, "a list": [1], "empty": {}}[how]
    torch.save(state, path)
    return f"{part}: {how}"


def _make_weights() -> dict[str, torch.Tensor]:
    state = build(CNN, SHAPE, len(CLASSES), 3).state_dict()
    save_file(state, "mine.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, "mine.pt")
    return dict(state)


def _use_weights(rng: Random | None, truth: dict[str, torch.Tensor], target: Path) -> None:
    contents = read_contents(Path(target.name))
    assert all(isinstance(value, torch.Tensor) for value in contents.tensors.values())
    model = Model(name="cnn", args={"width": 2}, weights=target.name)
    classifier = build(model, SHAPE, len(CLASSES), 0)
    if rng is None:
        found = classifier.state_dict()
        assert all(torch.equal(found[name], value) for name, value in truth.items())


# --- MLflow


def _make_store() -> None:
    from agrekd_ray.tracking.mlflow_runs import MlflowTracker

    tracker = MlflowTracker(None, "digits", Path("runs"))
    tracker.start_job("digits", {"data.name": "digits"}, {})
    for outcome in OUTCOMES[3:]:
        run = tracker.student(outcome.method, outcome.seed, {"teachers": "2"})
        tracker.finish_student(run, outcome)


def _use_store(rng: Random | None, truth: None, target: Path) -> None:
    rows = compare(Console(file=io.StringIO()), runs=Path("runs"), csv=Path("new.csv"))
    assert len(rows) >= 1


SUBJECTS = {
    Subject(
        "checkpoint", _make_checkpoints, _use_checkpoint, ["erm-*/*"], damages=[_resealed]
    ): (12, 250),
    Subject("pool", _make_pool, _use_pool, ["pool/*/*", "pool/imported/*/*"],
            damages=[_resealed], again=True): (3, 120),
    Subject(
        "record",
        _make_records,
        _use_records,
        ["outputs/*/*", "erm-*/*"],
        ["outputs/*/*.partial"],
        [_rearranged],
    ): (14, 350),
    Subject("state", _make_state, _use_state, ["state.pt"], damages=[_restated]): (3, 60),
    Subject("weights", _make_weights, _use_weights, ["mine.*"]): (5, 80),
    Subject("store", _make_store, _use_store, ["runs/mlflow.db"], ["runs/mlflow.db*"]): (0, 40),
}  # fmt: skip
"""With how many quick cases, and how many others."""
