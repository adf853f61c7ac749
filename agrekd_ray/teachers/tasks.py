"""The pool's missing models, made side by side as Ray tasks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import ray
import torch
from ray.exceptions import RayError

from agrekd_ray.channel import plain_error
from agrekd_ray.data import DataSettings, open_dataset
from agrekd_ray.events import Post, TeacherDone, TeacherEpoch
from agrekd_ray.teachers.pool import Pool, Recipe


def make_family(
    family: Sequence[Recipe], store: Path, data: DataSettings, gpus: float, post: Post
) -> None:
    """Make one family of models in this process; see `Pool.make`."""
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    device = "cuda" if gpus and torch.cuda.is_available() else "cpu"

    def progress(name: str, epoch: int, epochs: int) -> None:
        post(TeacherEpoch(name, epoch, epochs))

    Pool(store, open_dataset(data)).make(family, device, progress)
    for recipe in family:
        post(TeacherDone(recipe.name))


def make_all(
    families: Sequence[Sequence[Recipe]],
    store: Path,
    data: DataSettings,
    post: Post,
    *,
    cpus: float,
    gpus: float,
) -> None:
    """Make all families, as many at a time as the cluster has room for.

    A task whose process dies is tried again; what is finished stays in the store.

    Raises:
        AgrekdError: what a task raised.
        RunError: a task's process died over and over.
    """
    task = ray.remote(make_family).options(num_cpus=cpus, num_gpus=gpus, max_retries=3)
    pending = [task.remote(family, store, data, gpus, post) for family in families]
    try:
        while pending:
            done, pending = ray.wait(pending)
            ray.get(done)
    except RayError as error:
        raise plain_error(error, "training a teacher") from None
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
