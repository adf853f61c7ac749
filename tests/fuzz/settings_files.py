"""What is written in YAML and JSON: jobs, searches, and the folders of runs."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import yaml
from rich.console import Console

from agrekd_ray.config import Job, load_job, read_job
from agrekd_ray.config.points import points_of
from agrekd_ray.config.search import Planned, load_search
from agrekd_ray.experiment.folder import Folder, RunFolder, State
from agrekd_ray.experiment.job import outcomes_of
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.report import job as report
from agrekd_ray.report.archive import read_result
from agrekd_ray.report.search import write_trials
from agrekd_ray.results import StudentResult
from agrekd_ray.results.search import TrialResult
from agrekd_ray.search.folder import SearchFolder, TrialStore
from agrekd_ray.student import read_outcome, write_outcome

from ..conftest import TINY, merged
from ..test_jobs import JOBS, SWEPT, stand_in
from ..test_page import OUTCOMES, RESULT, TRIALS
from ..test_search_space import SPACE
from ..texts import TINY as TEXT_MODELS
from .cases import Subject
from .damage import junk

WHOLE = ("colored_digits.yaml", "table1_colored_mnist.yaml")
"""Jobs whose networks stay what they are."""
PLACES = {"runs": "runs", "teachers.store": "pool", "outputs.store": "outputs"}


def _dump(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def _overrides(rng: Random | None, raw: dict[str, Any]) -> list[str]:
    """Changes as a person might type them, wrong ones."""
    if rng is None:
        return []
    keys = [*raw, "distillation.temperature", "data.seed", "seeds.0", "student.model.args.width"]
    pairs = [f"{rng.choice(keys)}={junk(rng)}" for _ in range(rng.choice((0, 0, 1, 2)))]
    return [pair[:3000].replace("\0", "") for pair in pairs]


def _inside(path: Path) -> bool:
    return path.is_relative_to(Path.cwd()) and ".." not in path.parts


def _settled(job: Job) -> None:
    """A job that was found valid goes as far as anything can before something starts."""
    for _, point in points_of(job):
        plan = make_plan(point)
        assert len(plan.draw.teachers) == point.ensemble.size + len(point.ensemble.checkpoints)
    if _inside(job.runs) and not job.is_study:
        folder = RunFolder.create(job)
        assert RunFolder.open(folder.path).job == job
        assert folder.path.parent == job.runs / job.name


# --- jobs


def _make_jobs(*, of_text: bool = False) -> dict[str, Any]:
    shown: dict[str, dict[str, Any]] = {}
    raws = {}
    for path in JOBS:
        raw = read_job(path)
        kind = raw["data"]["name"]
        if (kind == "civilcomments") != of_text:
            continue
        if not kind.endswith("_digits") and kind not in shown:
            shown[kind] = stand_in(kind, Path("data", kind))
        places: dict[str, Any] = {**PLACES, **shown.get(kind, {})}
        if kind == "civilcomments":
            for part, network in (("teachers", "bert"), ("student", "distilbert")):
                places[f"{part}.model"] = {
                    "name": f"transformers/{network}",
                    "args": TEXT_MODELS[network],
                }
        elif path.name not in WHOLE:  # large networks take long to look at
            for part in ("teachers", "student"):
                places[f"{part}.model"] = TINY["student"]["model"]
            places["teachers.others"] = [TINY["teachers"]["model"]]
        for part in ("teachers", "student"):
            places[f"{part}.training.batch_size"] = 8
        if "sweep" in raw:
            key, values = next(iter(raw["sweep"].items()))
            places["sweep"] = {key: SWEPT.get(key, values)[:2]}
            figures = {"at": {key: places["sweep"][key][0]}, "accuracy": {"aver": 80}}
            places["published"] = {"source": "a table", "figures": [figures]}
        raws[path.name] = merged(raw, places)

        _dump(Path("jobs", path.name), raws[path.name])
    return raws


def _use_job(rng: Random | None, raws: dict[str, Any], target: Path) -> None:
    if rng is None and target.name not in ("colored_digits.yaml", "table2_civilcomments.yaml"):
        return  # test_jobs has them all
    _settled(load_job(target, _overrides(rng, raws[target.name])))


# --- searches


def _make_search() -> dict[str, Any]:
    job = merged(TINY, {**PLACES, "methods": ["aver", "agre_kd"]})
    search = {
        "name": "tiny_search",
        "job": "job.yaml",
        "changes": {"data.aligned": 0.9},
        "space": SPACE,
        "searcher": {"name": "random", "seed": 1},
        "scheduler": {"name": "asha", "grace": 2},
        "trials": 4,
        "seeds": [0],
        "final": {"seeds": [7], "default": {"distillation.temperature": 2}},
    }
    _dump(Path("job.yaml"), job)
    _dump(Path("search.yaml"), search)
    return search


def _use_search(rng: Random | None, search: dict[str, Any], target: Path) -> None:
    planned = load_search(Path("search.yaml"), _overrides(rng, search))
    if _inside(planned.base.runs):
        folder = SearchFolder.create(planned)
        assert SearchFolder.open(folder.path).planned.base == planned.base
    _searched(planned)


def _searched(planned: Planned) -> None:
    sampler = planned.sampler
    listed = all(domain.listed is not None for domain in planned.search.space.values())
    settings = [*itertools.islice(sampler.random(0), 3)]
    settings += itertools.islice(sampler.grid(), 3) if listed else []
    settings += [planned.first] if planned.first else []
    for setting in settings:
        for path, value in setting.items():
            assert planned.search.space[path].holds(value)
        assert make_plan(planned.trial(setting)).specs
    assert planned.epochs >= 1
    make_plan(planned.default)


# --- folders of runs


def _make_run() -> list[StudentResult]:
    methods, seeds = ["one_hot_dfr", "aver", "agre_kd"], [0, 1, 2]
    folder = Path("runs/tiny/20261124-083700-ab12")
    _dump(folder / "job.yaml", merged(TINY, {**PLACES, "methods": methods, "seeds": seeds}))
    Folder(folder).write_state(State("failed", "f" * 32, "the disk was full"))
    for outcome in OUTCOMES:
        write_outcome(folder / "students" / outcome.name, outcome)
    (folder.parent / "latest").symlink_to(folder.name)
    return OUTCOMES


def _use_run(rng: Random | None, truth: list[StudentResult], target: Path) -> None:
    path = Path("runs/tiny/20261124-083700-ab12")
    assert not SearchFolder.holds(path)
    folder = RunFolder.open(path)
    with folder.claimed():
        state = folder.state()
        assert state.tracking_run is None or isinstance(state.tracking_run, str)
        folder.update(status="running")
        assert folder.state().status == "running"
        _settled(folder.job)
        told: list[StudentResult | None] = [
            _told(lambda one=one: read_outcome(folder.students / one.name))  # type: ignore[misc]
            for one in truth
        ]
        for one, found in zip(truth, told, strict=True):
            if not target.is_relative_to(folder.students / one.name):
                assert found == one
        outcomes = outcomes_of(folder)
        report.render(outcomes, [], Console(file=io.StringIO()))
        report.summary_metrics(outcomes)
        report.write_csv(outcomes, folder.path / "new.csv")
        report.write_json(folder.path / "new.json", outcomes, [], None, {})


def _told(read: Callable[[], StudentResult | None]) -> StudentResult | None:
    from agrekd_ray.errors import AgrekdError

    try:
        return read()
    except AgrekdError:
        return None


def _make_search_folder() -> list[TrialResult]:
    planned_of = _make_search()
    folder = Path("runs/tiny_search/20261124-083700-ab12")
    base = merged(yaml.safe_load(Path("job.yaml").read_text()), {"data.aligned": 0.9})
    _dump(folder / "search.yaml", {**planned_of, "base": base})
    Folder(folder).write_state(State())
    journal = TrialStore(folder / "trials")
    for number, trial in enumerate(TRIALS):
        journal.put(f"{number:05}", trial)
    (folder / "results.json").write_text(json.dumps(asdict(RESULT)))
    return TRIALS


def _use_search_folder(rng: Random | None, truth: list[TrialResult], target: Path) -> None:
    path = Path("runs/tiny_search/20261124-083700-ab12")
    if not SearchFolder.holds(path):
        RunFolder.open(path)
        raise AssertionError("a folder without search.yaml is no run")
    folder = SearchFolder.open(path)
    with folder.claimed():
        folder.update(status="running", reason=None)
        _searched(folder.planned)
        result = read_result(folder.path)
        journal = TrialStore(folder.trials)
        trials = [*journal.all().values()]
        if target.parent != folder.trials:
            assert trials == truth
        for known in (trials, result.trials if result else []):
            write_trials(folder.path / "new.csv", known)


SUBJECTS = {
    Subject("job", _make_jobs, _use_job, ["jobs/*.yaml"]): (8, 400),
    Subject("text-job", lambda: _make_jobs(of_text=True), _use_job, ["jobs/*.yaml"]): (0, 30),
    Subject("search", _make_search, _use_search, ["*.yaml"]): (5, 300),
    Subject(
        "run",
        _make_run,
        _use_run,
        ["runs/tiny/2*/*.*", "runs/tiny/2*/students/*/*"],
        ["runs/tiny/*/state.json", "runs/tiny/latest", "runs/tiny/*/.lock"],
    ): (8, 250),
    Subject(
        "search-folder",
        _make_search_folder,
        _use_search_folder,
        ["runs/tiny_search/2*/*.*", "runs/tiny_search/2*/trials/*"],
        ["runs/tiny_search/*/state.json"],
    ): (6, 150),
}
"""With how many quick cases, and how many others."""
