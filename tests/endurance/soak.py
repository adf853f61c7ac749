"""An hour of recording, replay, live guidance and search on three raylets, struck all the time."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from ..shared import own_processes
from .cluster import Raylets, Run, differ, strike

SECONDS_BETWEEN_STRIKES = 30.0
VICTIMS = (
    "ray::TeacherActor",
    "ray::WeightingActor",
    "ray::RayTrainWorker",
    "ray::TrainController",
    "ray::TrialActor",
    "ray::LogitsServerActor",
    "node",
    "driver",
)
JOB: dict[str, Any] = {
    "methods": ["aver", "agre_kd"],
    "data.views": {"flip": True, "shift": 1, "count": 4},
    "student.training.epochs": 60,
    "fleet.cpus": 0.1,
    "fleet.resources": {"seat": 1},
}
SPACE: dict[str, Any] = {
    "name": "soak",
    "space": {"distillation.temperature": {"grid": [2, 4, 8]}},
    "searcher": {"name": "grid"},
    "scheduler": {"name": "none"},
    "seeds": [0],
    "final": {"seeds": [0]},
}


class Striker:
    """Kills somebody now and then, for as long as it is told to.

    Args:
        raylets: one of which may be killed.
        seed: of who is killed.
    """

    def __init__(self, raylets: Raylets, seed: int) -> None:
        self._raylets, self._random = raylets, random.Random(seed)
        self._over = threading.Event()
        self.run: Run | None = None
        """Whose driver may be killed."""
        self.struck: list[str] = []
        self._thread = threading.Thread(target=self._strike, daemon=True)
        self._thread.start()

    def _strike(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_STRIKES):
            for victim in self._random.sample(VICTIMS, len(VICTIMS)):
                if self._hit(victim):
                    self.struck.append(victim)
                    break

    def _hit(self, victim: str) -> bool:
        if victim == "node":
            if not own_processes("ray::TeacherActor"):
                return False
            self._raylets.kill_node()
            return True
        if victim == "driver":
            driver = self.run.driver if self.run else None
            if driver is None or driver.poll() is not None:
                return False
            driver.kill()
            return True
        return bool(strike(victim))

    def close(self) -> None:
        """No more."""
        self._over.set()
        self._thread.join()


@dataclass(frozen=True)
class Sample:
    """What there is when nothing runs.

    Attributes:
        minute: since the beginning.
        processes: that descend from this one.
        resident: their memory, MB.
        largest: who has most of it, and how much.
        objects: bytes in the object stores, MB.
        groups: placement groups that are not removed.
        actors: that are alive.
    """

    minute: float
    processes: int
    resident: float
    largest: str
    objects: float
    groups: int
    actors: int


def soak(folder: Path, console: Console, minutes: float, seed: int) -> bool:
    """Runs it.

    Args:
        folder: for everything.
        console: to print on.
        minutes: until the last round begins.
        seed: of who is killed.

    Returns:
        Whether every result was right and nothing was left behind.
    """
    import ray

    expected = _expected(folder)
    began = time.monotonic()
    raylets = Raylets(2)
    ray.init(address=raylets.address, log_to_driver=False, logging_level="ERROR")
    striker = Striker(raylets, seed)
    wrong: list[str] = []
    samples: list[Sample] = []
    rounds = 0
    try:
        while time.monotonic() - began < minutes * 60:
            place = folder / f"round-{rounds}"
            for kind in ("record", "replay", "live", "search"):
                found = _one(kind, place, folder / "pool", raylets, striker, expected[kind])
                if found:
                    wrong.append(f"round {rounds}, {kind}: {found}")
                    console.print(wrong[-1], style="red")
            shutil.rmtree(place)
            rounds += 1
            samples.append(_sample((time.monotonic() - began) / 60))
            console.print(f"round {rounds}: {samples[-1]}; struck {len(striker.struck)}")
    except KeyboardInterrupt:
        console.print("stopped before its time")
    finally:
        striker.close()
        ray.shutdown()
        raylets.close()
    struck = {victim: striker.struck.count(victim) for victim in VICTIMS}
    console.print(f"{rounds} rounds; struck: {struck}")
    console.print(_table(samples))
    return not wrong and _flat(samples, console)


def _job(place: Path, pool: Path, **changes: Any) -> Run:
    return Run(place, {**JOB, **changes}, pool)


def _expected(folder: Path) -> dict[str, Any]:
    """What every kind comes to when one process does it, undisturbed."""
    alone = _job(folder / "alone", folder / "pool", guidance="local")
    alone.start()
    if alone.wait():
        raise RuntimeError(alone.screen)
    students = alone.students()
    losses = _search(folder / "alone", folder / "pool", None, None)
    return {"record": None, "replay": students, "live": students, "search": losses}


def _one(
    kind: str, place: Path, pool: Path, raylets: Raylets, striker: Striker, expected: Any
) -> str:
    """One job to its end, resumed when its driver is killed; what is wrong with what came out."""
    if kind == "search":
        found = _search(place, pool, raylets, striker)
        for setting, losses in expected.items():
            mine = found.get(setting, [])
            if len(mine) != len(losses) or any(
                abs(one - other) > 2e-3 * abs(other)
                for one, other in zip(mine, losses, strict=True)
            ):
                return f"trial {setting}: {mine} instead of {losses}"
        return ""
    address = {"ray.address": raylets.address}
    run = _job(place, pool, guidance="live" if kind == "live" else "auto", **address)
    striker.run = run
    try:
        if kind == "record":
            for _ in range(10):
                run.start("record", str(place / "job.yaml"))
                if run.wait() == 0:
                    break
            else:
                return f"recording failed:\n{run.screen}"
            return ""
        if (place / "runs/tiny").exists():
            shutil.rmtree(place / "runs/tiny")
        run.start()
        if _to_the_end(run):
            return f"failed:\n{run.screen}"
        if "Traceback" in run.screen:
            return f"a traceback:\n{run.screen}"
        return differ(run.students(), expected)
    finally:
        striker.run = None


def _to_the_end(run: Run) -> int:
    """Resumes a run whose driver was killed; its last exit code."""
    for _ in range(10):
        code = run.wait()
        if code >= 0:
            return code
        if (run.latest / "job.yaml").exists():
            run.resume()
        else:  # killed before it had a folder
            run.start()
    return 1


def _search(
    place: Path, pool: Path, raylets: Raylets | None, striker: Striker | None
) -> dict[str, list[float]]:
    """Losses by epoch of every trial, by temperature."""
    changes = {} if raylets is None else {"ray.address": raylets.address}
    base = _job(place, pool, **changes, **{"student.training.epochs": 20})
    base.folder.mkdir(parents=True, exist_ok=True)
    space = place / "space.yaml"
    space.write_text(yaml.safe_dump({"job": "job.yaml", **SPACE}))
    base.start("tune", str(space))
    if striker is not None:
        striker.run = base
    try:
        for _ in range(10):
            code = base.wait()
            if code >= 0:
                break
            base.start("tune", str(space), "--resume")
        if code:
            return {f"exit code {code}: {base.screen}": []}
    finally:
        if striker is not None:
            striker.run = None
    results = json.loads((place / "runs/soak/latest/results.json").read_text())
    return {
        str(trial["setting"]): [epoch["loss"] for epoch in trial["history"]]
        for trial in results["trials"]
    }


def _sample(minute: float) -> Sample:
    """When what has ended has had a moment to go."""
    import ray
    from ray._private.state import actors

    time.sleep(5)
    processes = own_processes()
    memory: dict[str, float] = {}
    for process in processes:
        with suppress(OSError, IndexError):
            text = Path(f"/proc/{process}/status").read_text()
            told = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            size = int(told["RssAnon"].split()[0]) / 1024
            memory[told["Name"].strip()] = memory.get(told["Name"].strip(), 0) + size
    largest = sorted(memory.items(), key=lambda one: -one[1])[:4]
    groups = [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
    alive = [actor for actor in actors().values() if actor["State"] != "DEAD"]
    kind = "object_store_memory"
    objects = (ray.cluster_resources()[kind] - ray.available_resources()[kind]) / 1e6
    return Sample(
        minute,
        len(processes),
        sum(memory.values()),
        ", ".join(f"{name} {size:.0f}" for name, size in largest),
        objects,
        len(groups),
        len(alive),
    )


def _table(samples: list[Sample]) -> Table:
    headings = ("Minute", "Processes", "Memory, MB", "Objects, MB", "Groups", "Actors", "Largest")
    table = Table(*headings, box=None)
    for one in samples:
        numbers = (one.minute, one.processes, one.resident, one.objects, one.groups, one.actors)
        table.add_row(*(f"{number:.0f}" for number in numbers), one.largest)
    return table


def _flat(samples: list[Sample], console: Console) -> bool:
    """Whether nothing is left, and memory is no more at the end than after the first rounds."""
    if not samples:
        return False
    early, late = samples[: max(1, len(samples) // 4)], samples[-max(1, len(samples) // 4) :]

    def mean(part: list[Sample], what: str) -> float:
        return sum(getattr(one, what) for one in part) / len(part)

    grown = mean(late, "resident") / mean(early, "resident")
    console.print(f"memory at the end: {grown:.2f} of that at the beginning")
    clean = all(one.groups == 0 and one.actors == 0 for one in samples)
    return clean and grown < 1.2 and mean(late, "objects") <= mean(early, "objects") + 1
