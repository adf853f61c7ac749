"""Shared by all tests: one Ray session, a tiny job, a pool of tiny teachers."""

from __future__ import annotations

import copy
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from agrekd_ray import plugins
from agrekd_ray.cluster.environment import prepare
from agrekd_ray.config import Job, check_job
from agrekd_ray.core.groups import MEASURES
from agrekd_ray.core.selection import RULES
from agrekd_ray.core.strategies import STRATEGIES
from agrekd_ray.data.custom import FACTORIES
from agrekd_ray.models.classifier import BUILDERS
from agrekd_ray.stops import STOPS
from agrekd_ray.teachers import KINDS

prepare(starts_cluster=True)
# Of the object store that tests/test_remote.py starts: every process of the session has them.
os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
torch.set_num_threads(1)

# The suite tries the same examples whenever it runs, so that a change is judged by what it changed;
# `make fuzz` looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("searching", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("repeatable")

Run = Callable[..., tuple[int, str, str]]
"""The fixture `agrekd`: a command line to its exit code, standard output and standard error."""

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "colored_digits", "train": 160, "val": 200},
    "teachers": {
        "count": 3,
        "model": {"name": "cnn_deep", "args": {"width": 4}},
        "training": {"epochs": 2, "batch_size": 32, "learning_rate": 0.05},
        "dfr": {"inverse_penalties": [0.3, 0.1], "retrainings": 2},
    },
    "ensemble": {"size": 3, "debiased": 1},
    "student": {
        "model": {"name": "cnn", "args": {"width": 4}},
        "training": {"epochs": 2, "batch_size": 32, "learning_rate": 0.05},
    },
    "methods": ["aver"],
    "seeds": [0],
}


HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 3,
}
"""Of Ray's nodes: a lost one is seen within seconds."""


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side, all that share the Ray session stay in one process."""
    for item in items:
        if {"ray_session", "ray_cluster"} & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.xdist_group("ray"))


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested values with dotted keys changed."""
    values = copy.deepcopy(base)
    for key, value in changes.items():
        *path, last = key.split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return values


@pytest.fixture(autouse=True)
def kept_signals() -> Iterator[None]:
    """What a test does to the handlers of signals ends with it."""
    numbers = [signal.SIGINT, *(signal.Signals[name] for name in STOPS)]
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def usual_signals(kept_signals: None) -> None:
    """What is started ignores no signal, also where the suite runs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in STOPS:
        signal.signal(signal.Signals[name], signal.SIG_DFL)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the suite's teachers are kept."""
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture
def make_job(tmp_path: Path, store: Path) -> Callable[..., Job]:
    """Makes tiny jobs: `make_job(**{"distillation.alpha": 0.5})`."""

    def make(**changes: Any) -> Job:
        places = {"runs": "runs", "outputs.store": "outputs"}
        raw = merged(TINY, {key: str(tmp_path / name) for key, name in places.items()})
        raw["teachers"]["store"] = str(store)
        job, faults = check_job(merged(raw, changes))
        assert job is not None, faults
        return job

    return make


@pytest.fixture
def agrekd(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line: exit code, standard output, standard error."""
    from agrekd_ray.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["agrekd", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """The suite's only Ray session; nodes can be added to it, and are lost within seconds."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 6, "include_dashboard": False, "_system_config": HEALTH},
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level="WARNING")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def ray_session(ray_cluster: Any) -> Any:
    """Ray, connected; what is started inside it finds it there."""
    import ray

    return ray


@pytest.fixture
def add_node(ray_cluster: Any) -> Iterator[Callable[..., Any]]:
    """Adds a raylet to the session, for one test: `add_node(num_cpus=1, labels={...})`."""
    added = []

    def add(**settings: Any) -> Any:
        node = ray_cluster.add_node(**settings)
        added.append(node)
        ray_cluster.wait_for_nodes()
        return node

    yield add
    for node in added:
        if node in ray_cluster.list_all_nodes():
            ray_cluster.remove_node(node)


@pytest.fixture
def plugins_forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What plugins have registered and imported is forgotten after the test."""
    registries: list[Any] = [STRATEGIES, MEASURES, RULES, FACTORIES, BUILDERS, KINDS]
    before = [(dict(each), dict(each._makers)) for each in registries]
    known = set(sys.modules)
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in plugins._loaded:
        for module in [m for m in sys.modules if f"{m}.".startswith(f"{name}.")]:
            if module not in known:
                del sys.modules[module]
    for each, (parts, makers) in zip(registries, before, strict=True):
        each.clear()
        each.update(parts)
        each._makers = makers
