"""What several test files do with a tiny job."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agrekd_ray.config import Job
from agrekd_ray.data import Dataset, open_dataset
from agrekd_ray.data.views import Views, augment, draws
from agrekd_ray.distillation import Competence, DistillationSpec
from agrekd_ray.logits import LogitsCache
from agrekd_ray.teachers import Draw, Pool, draw

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
AGREKD = [sys.executable, "-m", "agrekd_ray"]
"""Commands of this environment."""


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes; PermissionError where none may be mounted."""
    place.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise PermissionError("no right to mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def full(disk: Path, leave: int = 0) -> Path:
    """A file that leaves so many bytes of a disk free."""
    ballast = disk / "ballast"
    free = shutil.disk_usage(disk).free - leave
    with ballast.open("wb", buffering=0) as file:
        try:
            file.write(b"x" * max(free, 0))
        except OSError as error:  # others who write meanwhile fill it, too
            if error.errno != errno.ENOSPC:
                raise
    return ballast


def pool_of(job: Job) -> tuple[Dataset, dict[str, Path], Draw]:
    """The job's data, checkpoints by name (all made), and draw."""
    data = open_dataset(job.data)
    pool = Pool(job.teachers.store, data)
    drawn = draw(job.ensemble, job.teachers)
    for family in pool.missing(drawn.recipes.values()):
        pool.make(family)
    return data, {name: pool.folder(recipe) for name, recipe in drawn.recipes.items()}, drawn


def told(spec: DistillationSpec, classes: int = 10) -> DistillationSpec:
    """A spec with a competence of each teacher by class, of its name, where it needs one."""

    def by_name(teachers: tuple[str, ...], biased: str) -> Competence:
        values = [[(sum(map(ord, t)) + c) % 4 / 4 for c in range(classes)] for t in teachers]
        return tuple(map(tuple, values))

    return spec.informed(by_name)


def records(job: Job, data: Dataset, checkpoints: dict[str, Path]) -> LogitsCache:
    """The records of the job's teachers."""
    return LogitsCache(job.outputs, checkpoints, data, job.fleet.computes_in)


def flat_parameters(model: Any) -> torch.Tensor:
    """All weights of a model in one float64 vector."""
    return torch.cat([value.detach().flatten().double() for value in model.state_dict().values()])


def until(
    reached: Callable[[], Any],
    process: subprocess.Popen[Any] | None = None,
    said: Callable[[], object] = str,
) -> None:
    """Waits for a state, as long as a slow machine takes; `make test` ends what hangs.

    Args:
        reached: whether it is.
        process: that brings it about, and must not end before.
        said: what explains its end.
    """
    while not reached():
        assert process is None or process.poll() is None, said()
        time.sleep(0.02)  # polls for the moment


def under_way(run: Path) -> bool:
    """Whether a student of a run has finished an epoch, and has not finished."""
    return any((run / "training/states").rglob("*.pt"))


def own_processes(name: str = "") -> list[int]:
    """Ids of the processes of that name that descend from this one; of all without a name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cmdline").read_text().startswith(name) and _descends(int(folder.name)):
                found.append(int(folder.name))
    return found


def _descends(process: int) -> bool:
    parent = process
    while parent > 1 and parent != os.getpid():
        stat = Path(f"/proc/{parent}/stat").read_text()
        if stat.rpartition(") ")[2].startswith("Z"):
            return False
        parent = int(stat.rpartition(") ")[2].split()[1])
    return parent == os.getpid() and process != parent


def shown_as(
    images: Tensor,
    views: Views,
    *,
    ids: np.ndarray | None = None,
    seed: int = 0,
    samples: int | None = None,
    size: int | None = None,
) -> Tensor:
    """The images of some samples (all of a data set) in its first view."""
    rows = np.arange(len(images)) if ids is None else ids
    random = draws(views, seed, 0, samples or len(images))
    return augment(images, [torch.from_numpy(each[rows]) for each in random], views, size)
