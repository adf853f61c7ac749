"""Raylets on this machine, jobs on them, and the processes that may be struck."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from agrekd_ray.models import load

from ..conftest import HEALTH, TINY, merged
from ..shared import AGREKD, RAY, flat_parameters, own_processes, under_way

HISTORY = {"task_events_max_num_task_in_gcs": 1000, "maximum_gcs_destroyed_actor_cached_count": 100}
"""That Ray keeps of what has ended; by default its server grows until it has 100,000 of each."""


class Raylets:
    """A cluster of a head, which teaches nobody, and nodes with teachers and students.

    Args:
        nodes: besides the head.
        config: of Ray's system, more of it.
    """

    def __init__(self, nodes: int, config: dict[str, Any] | None = None) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False}
        settings = {"_system_config": HEALTH | HISTORY | (config or {})}
        self._cluster = Cluster(initialize_head=True, head_node_args=head | settings)
        self._nodes: set[subprocess.Popen[bytes]] = set()
        for number in range(nodes):  # two that start at once on one machine may want the same port
            self._nodes.add(self._add())
            deadline = time.monotonic() + 120
            while self._alive() < number + 2:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"raylet {number + 2} of {nodes + 1} has not come up")
                time.sleep(0.2)  # polls for the moment

    @property
    def address(self) -> str:
        """For `ray.address`."""
        return str(self._cluster.address)

    def _alive(self) -> int:
        table: list[dict[str, Any]] = self._cluster.global_state.node_table()
        return sum(bool(node["Alive"]) for node in table)

    def _add(self) -> subprocess.Popen[bytes]:
        """As a user adds one: `Cluster.add_node` wants the main thread."""
        own = [f"--address={self.address}", "--num-cpus=3", '--resources={"seat": 3}']
        return subprocess.Popen(
            [*RAY, "start", "--block", "--disable-usage-stats", *own],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill_node(self) -> None:
        """SIGKILL of the raylet that hosts most teachers, and a new one in its place."""
        teaching = [_parent(process) for process in own_processes("ray::TeacherActor")]
        raylets = {
            process: node
            for process in own_processes()
            for node in self._nodes
            if _parent(process) == node.pid and "/raylet/raylet" in _command(process)
        }
        struck = max(raylets, key=teaching.count)
        with suppress(ProcessLookupError):
            os.kill(struck, signal.SIGKILL)
        raylets[struck].wait(60)  # it ends what the raylet had started
        self._nodes.remove(raylets[struck])
        self._nodes.add(self._add())

    def close(self) -> None:
        """Ends it."""
        for node in self._nodes:
            node.terminate()
        for node in self._nodes:
            node.wait(60)
        self._cluster.shutdown()


def _command(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""


def _parent(process: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[1])
    return 0


@dataclass
class Run:
    """A job that runs as a user's process.

    Attributes:
        folder: of the job, its runs and its records.
        changes: of the tiny job.
        pool: where the teachers are.
        environment: more of it.
    """

    folder: Path
    changes: dict[str, Any]
    pool: Path
    environment: dict[str, str] = field(default_factory=dict)
    driver: subprocess.Popen[str] | None = None

    @property
    def latest(self) -> Path:
        """The run's folder."""
        return self.folder / "runs/tiny/latest"

    @property
    def screen(self) -> str:
        """What it has printed."""
        return (self.folder / "screen.txt").read_text()

    def start(self, *words: str) -> None:
        """`agrekd run` of the job, or another command."""
        self.folder.mkdir(parents=True, exist_ok=True)
        places = {
            "runs": self.folder / "runs",
            "outputs.store": self.folder / "outputs",
            "teachers.store": self.pool,
        }
        values = merged(TINY, {key: str(path) for key, path in places.items()})
        job = self.folder / "job.yaml"
        job.write_text(yaml.safe_dump(merged(values, self.changes)))
        with (self.folder / "screen.txt").open("a") as screen:
            self.driver = subprocess.Popen(
                [*AGREKD, *(words or ("run", str(job)))],
                stdout=screen,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | self.environment,
            )

    def resume(self) -> None:
        """`agrekd resume` of it."""
        self.start("resume", str(self.latest))

    def wait(self, seconds: float = 600) -> int:
        """Its exit code."""
        assert self.driver is not None
        with self._ended_too():
            return self.driver.wait(seconds)

    @contextmanager
    def _ended_too(self) -> Iterator[None]:
        """What ends the waiting ends the run too."""
        assert self.driver is not None
        try:
            yield
        except BaseException:
            self.driver.send_signal(signal.SIGINT)
            self.driver.wait(60)
            raise

    def until_training(self, seconds: float = 300) -> None:
        """Waits until the first student is under way.

        Raises:
            RuntimeError: the run ended, or takes too long.
        """
        assert self.driver is not None
        deadline = time.monotonic() + seconds
        with self._ended_too():
            while not under_way(self.latest):
                if self.driver.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no student is under way:\n{self.screen}")
                time.sleep(0.02)  # polls for the moment

    def students(self) -> dict[str, torch.Tensor]:
        """Weights of every student that was trained."""
        return {
            folder.name: flat_parameters(load(folder)[0])
            for folder in sorted((self.latest / "students").iterdir())
            if (folder / "model.safetensors").exists()
        }


def differ(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> str:
    """In words, how students differ beyond float32's tolerance; empty where they do not."""
    if some.keys() != others.keys():
        return f"students {sorted(some)} instead of {sorted(others)}"
    for name, weights in some.items():
        if not torch.allclose(weights, others[name], rtol=1e-3, atol=5e-5):
            return f"{name} by up to {(weights - others[name]).abs().max():.2g}"
    return ""


def strike(name: str, number: int = signal.SIGKILL) -> int:
    """Sends a signal to one of our processes of that name; its id, or 0 where there is none."""
    import random

    victims = own_processes(name)
    if not victims:
        return 0
    victim = random.choice(victims)
    with suppress(ProcessLookupError):
        os.kill(victim, number)
    return victim
