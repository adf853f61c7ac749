"""What workloads share: time, memory and use of a device, a process of their own."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar

import ray
import torch
from ray.exceptions import RayError

from agrekd_ray.bench.workloads import Cell
from agrekd_ray.cluster.channel import plain_error
from agrekd_ray.experiment.display import Display

PREFIX = "agrekd-bench-"
"""Of the temporary folders."""
VALUE = TypeVar("VALUE")


def in_own_process(measured: Callable[..., VALUE], *arguments: object) -> VALUE:
    """Call a function in a process that ends with it: no memory that it leaves is the next one's.

    Args:
        measured: the function; it and its arguments travel.
        *arguments: that it is called with.

    Raises:
        AgrekdError: it failed.
    """
    task = ray.remote(max_calls=1, max_retries=0, num_cpus=0)(measured)
    try:
        value: VALUE = ray.get(task.remote(*arguments))
    except RayError as error:
        raise plain_error(error, "the benchmark") from None
    return value


def in_turn(
    works: Mapping[Cell, Callable[[], int]], repeats: int, display: Display, device: torch.device
) -> list[dict[str, Any]]:
    """Do what some cells are, one after the other, as often as asked and once before to warm up.

    Args:
        works: each computes some pictures, and says how many.
        repeats: that count.
        display: is told of each.
        device: that is used.

    Returns:
        For each cell what it is; `images` of a repeat; `seconds` of each repeat; `utilisation` of
        the GPU meanwhile, in percent, None where nothing tells; memory afterwards that is not a
        mapped file in `anonymous_bytes`; most of the GPU's in `bytes`, without one the same.
    """
    rows: list[dict[str, Any]] = [{**asdict(cell), "seconds": []} for cell in works]
    percents: list[list[float]] = [[] for _ in works]
    with Utilisation(device) as busy:
        for repeat in range(repeats + 1):
            for (cell, work), row, used in zip(works.items(), rows, percents, strict=True):
                looked, began = len(busy.values), time.perf_counter()
                row["images"] = work()
                took = time.perf_counter() - began
                if repeat:
                    row["seconds"].append(took)
                    used += busy.values[looked:]
                row["utilisation"] = statistics.mean(used) if used else None
                row["bytes"] = row["anonymous_bytes"] = anonymous_bytes()
                if device.type == "cuda":
                    row["bytes"] = torch.cuda.max_memory_allocated(device)
                display.advance(str(cell))
    return rows


def anonymous_bytes() -> int:
    """Memory of this process that is not a mapped file; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


class Sampled:
    """Reads a number again and again in a thread while the block runs, once at least.

    Args:
        read: the number.
        pause: seconds between two readings.

    Attributes:
        values: that were read.
    """

    def __init__(self, read: Callable[[], float], pause: float) -> None:
        self.values: list[float] = []
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
        self.values.append(self._read())
        while not self._over.wait(self._pause):
            self.values.append(self._read())


class Utilisation:
    """Reads how much of the last moment a GPU has computed, ten times a second, in the block.

    The driver's own program prints it all the while: to start one for each look would hold up what
    is measured. Without a GPU or that program nothing is read.

    Args:
        device: the GPU.

    Attributes:
        values: in percent.
    """

    def __init__(self, device: torch.device) -> None:
        self.values: list[float] = []
        self._device = device
        self._program: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            card = f"--id=GPU-{torch.cuda.get_device_properties(self._device).uuid}"
            asked = "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100"
            with contextlib.suppress(OSError):
                self._program = subprocess.Popen(
                    ["nvidia-smi", *asked, card], stdout=subprocess.PIPE, encoding="utf-8"
                )
                self._reader = threading.Thread(target=self._read, daemon=True)
                self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._program is not None:
            self._program.terminate()
            self._program.wait()
            self._reader.join()

    def _read(self) -> None:
        assert self._program is not None
        assert self._program.stdout is not None
        for line in self._program.stdout:
            with contextlib.suppress(ValueError):
                self.values.append(float(line))
