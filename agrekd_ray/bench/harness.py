"""What workloads share: teaching, a process of their own, its progress, and readings meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Self, TypeVar

import numpy as np
import ray
from ray.exceptions import RayError

from agrekd_ray.cluster.channel import Channel, plain_error
from agrekd_ray.cluster.events import Emit, Event, Notice
from agrekd_ray.data import Dataset
from agrekd_ray.distillation import DistillationSpec, Replay
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.listener import Listener
from agrekd_ray.logits import LogitsCache, OutputSettings

PREFIX = "agrekd-bench-"
"""Of the temporary folders."""
TEMPERATURE = 4.0
"""Of every student's distillation."""
VALUE = TypeVar("VALUE")


def in_own_process(
    measured: Callable[..., VALUE], *arguments: object, cpus: float = 0, gpus: float = 0
) -> VALUE:
    """Call a function in a process that ends with it: no memory that it leaves is the next one's.

    Args:
        measured: the function; it and its arguments travel.
        *arguments: that it is called with.
        cpus: logical CPUs that Ray counts for the process.
        gpus: share of a GPU that it has.

    Raises:
        AgrekdError: it failed.
    """
    task = ray.remote(max_calls=1, max_retries=0, num_cpus=cpus, num_gpus=gpus)(measured)
    try:
        value: VALUE = ray.get(task.remote(*arguments))
    except RayError as error:
        raise plain_error(error, "the benchmark") from None
    return value


def agre_kd(names: tuple[str, ...]) -> DistillationSpec:
    """How some teachers teach, of whom the first is the biased model."""
    return DistillationSpec("agre_kd", names, names[0], TEMPERATURE)


def random_records(
    folder: Path, checkpoints: Mapping[str, Path], dataset: Dataset, views: int
) -> Replay:
    """Record random logits: costs do not depend on them.

    Args:
        folder: of the records, among which may be some already.
        checkpoints: folders of the teachers, by name.
        dataset: on which they teach.
        views: as many, from the first.

    Returns:
        What replays them.
    """
    settings = OutputSettings(store=folder)
    cache = LogitsCache(settings, checkpoints, dataset, "float32")
    shape = (cache.count, len(dataset.classes))
    for number, (name, view) in enumerate(cache.missing(range(views))):
        cache.write(name, view, np.random.default_rng(number).normal(0, 3, shape).astype("f4"))
    return Replay(settings, checkpoints, "float32", None)


@contextmanager
def progress(display: Display) -> Iterator[Emit]:
    """While the block runs, a notice from any process moves the progress line on."""
    channel = Channel()

    def advance(event: Event) -> None:
        if isinstance(event, Notice):
            display.advance(event.text)

    try:
        with Listener(channel, [advance]):
            yield channel.emit
    finally:
        channel.close()


def anonymous_bytes() -> int:
    """Memory of this process that is not a mapped file; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


class Sampled(Generic[VALUE]):
    """Reads a value again and again in a thread while the block runs, once at least.

    Args:
        read: the value; None, where nothing can be read, ends it.
        pause: seconds between two readings.

    Attributes:
        values: that were read.
    """

    def __init__(self, read: Callable[[], VALUE | None], pause: float) -> None:
        self.values: list[VALUE] = []
        self._read, self._pause = read, pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while (value := self._read()) is not None:
            self.values.append(value)
            if self._over.wait(self._pause):
                return
