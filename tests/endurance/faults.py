"""Every row of the README's fault table, tried at random moments: what survives, what it costs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from agrekd_ray.models import checkpoint

from ..shared import full, own_processes, small_disk
from .cluster import Raylets, Run, differ, strike

EPOCHS = 120
JOB: dict[str, Any] = {
    "methods": ["agre_kd"],
    "seeds": [0],
    "data.views": {"flip": True, "shift": 1},
    "student.training.epochs": EPOCHS,
    "tracking.models": False,
}
"""A new view every epoch: teachers are asked, and recorded, to the end."""
HANG_SECONDS = 5.0
DISK = 12 << 20
MOST_MISSED = 10
ROOM_FOR_ALL = 6 << 30
"""Bytes above what was in use at the start, at which Ray kills for want of memory."""
THRESHOLD = "memory_usage_threshold"
"""Ray's name for that, as a share of the machine's memory."""


class MissedError(Exception):
    """There was nothing to strike any more: the moment was too late."""


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: of the fault.
        strike: does it.
        remedy: what a user does before `agrekd resume`, where the run ends; None where it goes on.
        where: number of raylets besides the head, 0 for a session of the run's own.
        disk: folder of the job that is a small file system.
        memory: whether Ray's memory monitor gets a threshold that can be reached.
        pool: whether the teachers are the run's own, since they are damaged.
    """

    name: str
    strike: Callable[[Run, Raylets | None], None]
    remedy: Callable[[Run], None] | None = None
    where: tuple[int, ...] = (0, 2)
    disk: str = ""
    memory: bool = False
    pool: bool = False


@dataclass(frozen=True)
class Attempt:
    """How one went.

    Attributes:
        wrong: with how it ended; empty if nothing.
        lost: seconds that it took longer than an undisturbed one.
    """

    wrong: str
    lost: float


def kills(name: str, number: int = signal.SIGKILL) -> Callable[[Run, Raylets | None], None]:
    """Strikes one process of that name."""

    def do(run: Run, raylets: Raylets | None) -> None:
        if not strike(name, number):
            raise MissedError(name)

    return do


def hangs(run: Run, raylets: Raylets | None) -> None:
    """A teacher's process stands still for a while."""
    victim = strike("ray::TeacherActor", signal.SIGSTOP)
    if not victim:
        raise MissedError("teacher")
    time.sleep(HANG_SECONDS)
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGCONT)


def node_dies(run: Run, raylets: Raylets | None) -> None:
    """SIGKILL of the raylet with most teachers; a new node joins."""
    assert raylets is not None
    if not own_processes("ray::TeacherActor"):
        raise MissedError("teacher")
    raylets.kill_node()


def driver_gets(number: int) -> Callable[[Run, Raylets | None], None]:
    """A signal for the driver."""

    def do(run: Run, raylets: Raylets | None) -> None:
        assert run.driver is not None
        run.driver.send_signal(number)

    return do


def memory_is_short(run: Run, raylets: Raylets | None) -> None:
    """Something takes so much memory that Ray's monitor kills a process of the run's."""
    hold = (
        "import sys, time; block = bytearray(int(sys.argv[1])); print(1, flush=True); time.sleep(2)"
    )
    before = set(own_processes("ray::"))
    used, total = _memory()
    wanted = float(run.environment[f"RAY_{THRESHOLD}"]) * total - used + (1 << 30)
    subprocess.run([sys.executable, "-c", hold, str(int(wanted))], check=True)
    if before <= set(own_processes("ray::")):
        raise MissedError("nobody was killed")


def disk_fills(folder: str) -> Callable[[Run, Raylets | None], None]:
    """The disk of a folder is full from now on."""

    def do(run: Run, raylets: Raylets | None) -> None:
        full(run.folder / folder)

    return do


def disk_is_freed(folder: str) -> Callable[[Run], None]:
    """Somebody has removed what filled it."""
    return lambda run: (run.folder / folder / "ballast").unlink()


def state_is_cut(run: Run) -> None:
    """Half of the student's last state is lost; the error names it, and it is removed."""
    state = _last_state(run)
    _cut(state)
    _refused(run, str(state.resolve()))
    state.unlink()


def record_is_cut(run: Run) -> None:
    """Half of a record is lost, and so is the student, which would not need it any more."""
    _last_state(run).unlink()
    records = [path for path in (run.folder / "outputs").rglob("*.arrow") if path.is_file()]
    _cut(random.choice(sorted(records)))


def teacher_is_cut(run: Run) -> None:
    """Half of a teacher's weights is lost; it is made again."""
    _cut(_teacher(run) / checkpoint.WEIGHTS)


def teacher_is_nan(run: Run) -> None:
    """A teacher answers with NaN; the error names it, and the old one is put back."""
    folder = _teacher(run)
    model, manifest = checkpoint.load(folder)
    kept = folder.rename(run.folder / "kept")
    with torch.no_grad():
        next(model.head.parameters()).flatten()[0] = float("nan")
    checkpoint.save(folder, model, manifest)
    name = "-".join(folder.name.split("-")[:2])
    _refused(run, f"{name} answers with NaN")
    shutil.rmtree(folder)
    kept.rename(folder)


def _last_state(run: Run) -> Path:
    """Of the student under way, once the killed driver's workers have learnt of its end.

    Raises:
        MissedError: they have finished it meanwhile.
    """
    state = next((run.latest / "training/states").rglob("*.pt"))
    while time.time() - state.stat().st_mtime < 5:
        time.sleep(0.5)  # polls for the moment
    if list(run.latest.glob("students/*/outcome.json")):
        raise MissedError("the student is finished")
    return state


def _teacher(run: Run) -> Path:
    """One that the run's students have, any."""
    _last_state(run)
    keys = [json.loads(key.read_text()) for key in (run.folder / "outputs").glob("*/key.json")]
    return run.pool / random.choice(sorted({k["teacher"] for k in keys if k["split"] == "train"}))


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _refused(run: Run, named: str) -> None:
    """`agrekd resume` ends with an error that names something.

    Raises:
        RuntimeError: it does not.
    """
    told = len(run.screen)
    run.resume()
    if run.wait() == 0 or named not in " ".join(run.screen[told:].split()):
        raise RuntimeError(f"{named} is not named:\n{run.screen}")


def _nothing(run: Run) -> None:
    """`agrekd resume` is all."""


ROWS = (
    Row("a teacher's process is killed", kills("ray::TeacherActor")),
    Row("a teacher hangs for 5 s", hangs),
    Row("the weighting actor is killed", kills("ray::WeightingActor")),
    Row("a student's worker is killed", kills("ray::RayTrainWorker")),
    Row("a node with teachers is killed, another joins", node_dies, where=(2,)),
    Row("memory runs short, Ray kills", memory_is_short, memory=True),
    Row("Ray Train's controller is killed", kills("ray::TrainController")),
    Row("the driver is killed", driver_gets(signal.SIGKILL), _nothing),
    Row("Ctrl-C", driver_gets(signal.SIGINT), _nothing),
    Row("the driver is killed, its state cut in half", driver_gets(signal.SIGKILL), state_is_cut),
    Row("the driver is killed, a record cut in half", driver_gets(signal.SIGKILL), record_is_cut),
    Row(
        "the driver is killed, a teacher cut in half",
        driver_gets(signal.SIGKILL),
        teacher_is_cut,
        pool=True,
    ),
    Row(
        "the driver is killed, a teacher turns NaN",
        driver_gets(signal.SIGKILL),
        teacher_is_nan,
        pool=True,
    ),
    Row(
        "the disk of the records fills",
        disk_fills("outputs"),
        disk_is_freed("outputs"),
        disk="outputs",
    ),
    Row("the disk of the run fills", disk_fills("runs"), disk_is_freed("runs"), disk="runs"),
)


class Trials:
    """Tries rows.

    Args:
        folder: for everything.
        console: to print on.
        seed: of the moments.
    """

    def __init__(self, folder: Path, console: Console, seed: int) -> None:
        self._folder, self._console = folder, console
        self._random = random.Random(seed)
        random.seed(seed)
        self._numbers = iter(range(10_000))
        self._pool = folder / "pool"
        self._expected = self._alone()
        used, total = _memory()
        self._threshold = round((used + ROOM_FOR_ALL) / total, 4)

    def _alone(self) -> dict[str, Any]:
        run = Run(self._folder / "alone", {**JOB, "guidance": "local"}, self._pool)
        run.start()
        if run.wait():
            raise RuntimeError(run.screen)
        return run.students()

    def table(self, rows: list[Row], tries: int, places: list[int]) -> bool:
        """Tries every row on so many raylets; prints the table; whether all came out right."""
        table = Table(
            "Fault", "Raylets", "Tries", "Equal", "Seconds lost, median (range)", box=None
        )
        sound = True
        for nodes in (raylets - 1 for raylets in places):
            here = sorted((row for row in rows if nodes in row.where), key=lambda row: row.memory)
            for short, some in groupby(here, key=lambda row: row.memory):
                config = {THRESHOLD: self._threshold} if short else {}
                with closing(Raylets(nodes, config)) if nodes else nullcontext() as raylets:
                    for row, attempts in self._tried(list(some), tries, raylets):
                        right = sum(not one.wrong for one in attempts)
                        sound = sound and right == tries
                        lost = sorted(one.lost for one in attempts)
                        cost = f"{median(lost):.1f} ({lost[0]:.1f} … {lost[-1]:.1f})"
                        table.add_row(row.name, str(nodes + 1), str(tries), str(right), cost)
        self._console.print(table)
        return sound

    def _tried(
        self, rows: list[Row], tries: int, raylets: Raylets | None
    ) -> Iterator[tuple[Row, list[Attempt]]]:
        undisturbed = [self._undisturbed(raylets) for _ in range(3)]
        whole, training = (median(part) for part in zip(*undisturbed, strict=True))
        place = "a session of its own" if raylets is None else raylets.address
        self._console.print(f"{place}: undisturbed {whole:.1f} s, training {training:.1f} s")
        for row in rows:
            yield row, [self._attempt(row, raylets, whole, training) for _ in range(tries)]

    def _run(self, raylets: Raylets | None, row: Row | None = None) -> Run:
        changes: dict[str, Any] = {**JOB, "fleet.cpus": 0.1}
        if raylets is not None:
            changes |= {"ray.address": raylets.address, "fleet.resources": {"seat": 1}}
        environment = {}
        if row is not None and row.memory:
            environment[f"RAY_{THRESHOLD}"] = str(self._threshold)
        name = f"run-{next(self._numbers)}"
        folder, pool = self._folder / name, self._pool
        if row is not None and row.pool:
            pool = Path(shutil.copytree(pool, folder / "pool"))
        return Run(folder, changes, pool, environment)

    def _undisturbed(self, raylets: Raylets | None) -> tuple[float, float]:
        """Seconds of the whole run, and of the students' training."""
        run = self._run(raylets)
        began = time.monotonic()
        run.start()
        run.until_training()
        training = time.time()
        if run.wait() or (wrong := differ(run.students(), self._expected)):
            raise RuntimeError(f"undisturbed: {wrong}\n{run.screen}")
        ended = max(path.stat().st_mtime for path in run.latest.glob("students/*/outcome.json"))
        return time.monotonic() - began, ended - training

    def _attempt(self, row: Row, raylets: Raylets | None, whole: float, training: float) -> Attempt:
        for _ in range(MOST_MISSED):
            run = self._run(raylets, row)
            with ExitStack() as stack:
                if row.disk:
                    stack.enter_context(small_disk(run.folder / row.disk, DISK))
                began = time.monotonic()
                run.start()
                try:
                    run.until_training()
                except RuntimeError as error:
                    self._console.print(f"{row.name}: {error}", style="red")
                    return Attempt("no student was under way", 0.0)
                moment = self._random.uniform(0, 0.9 * training)
                time.sleep(moment)
                try:
                    if run.driver is None or run.driver.poll() is not None:
                        raise MissedError("the run was over")
                    row.strike(run, raylets)
                    wrong = self._finish(row, run)
                except MissedError:
                    run.wait()
                    continue
                lost = time.monotonic() - began - whole
                if not wrong:
                    wrong = differ(run.students(), self._expected)
            self._console.print(
                f"{row.name}, after {moment:.1f} s of training: {wrong or 'equal'}, {lost:+.1f} s",
                style="red" if wrong else "",
            )
            if wrong:
                self._console.print(run.screen)
            return Attempt(wrong, lost)
        return Attempt(f"missed {MOST_MISSED} times", 0.0)

    def _finish(self, row: Row, run: Run) -> str:
        """Waits for the end, through `agrekd resume` where the fault ends the run."""
        code = run.wait()
        if row.remedy is not None:
            if code == 0:
                raise MissedError("the run had done all that could fail")
            row.remedy(run)
            run.resume()
            code = run.wait()
        if "Traceback" in run.screen:
            return "a traceback"
        return f"exit code {code}" if code else ""


def _memory() -> tuple[int, int]:
    """Bytes of the machine's memory: in use, and all."""
    text = Path("/proc/meminfo").read_text()
    told = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()}
    return told["MemTotal"] - told["MemAvailable"], told["MemTotal"]
