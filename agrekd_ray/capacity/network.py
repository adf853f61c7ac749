"""Whether processes on all nodes of a cluster can compute together, and how fast their network is.

One process a node, or one for each GPU that is free, sums numbers with all others as the workers of
a student do: over NCCL where every node has a GPU for it, else over Gloo.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.filesize import decimal

from agrekd_ray.terminal import counted

SIZE = 1 << 26
"""Bytes that are summed."""
MEET_SECONDS = 60.0
"""That processes have to start, to find each other, and to sum."""
MOST_GPUS = 8
"""Processes of a node, at most."""


@dataclass(frozen=True)
class Place:
    """A node that takes part.

    Attributes:
        name: of the node, for people.
        gpus: that are free there, and that PyTorch finds.
        start: starts a `Probe` there, with so many GPUs.
    """

    name: str
    gpus: int
    start: Callable[[int], Any]


@dataclass(frozen=True)
class Network:
    """What came of it.

    Attributes:
        nodes: that took part.
        processes: on them.
        backend: `nccl` or `gloo`.
        seconds: of one sum; None where there was none.
        fault: why not, with the names of nodes.
    """

    nodes: int
    processes: int
    backend: str
    seconds: float | None = None
    fault: str = ""

    @property
    def gbit(self) -> float:
        """Gbit/s that each process sent: in a ring, twice all parts but its own."""
        assert self.seconds is not None
        return 16 * SIZE * (self.processes - 1) / self.processes / self.seconds / 1e9

    @property
    def in_words(self) -> str:
        """The measurement in a line; empty where there is none."""
        if self.seconds is None:
            return ""
        who = f"{self.processes} processes on {counted(self.nodes, 'node')}"
        said = f"{who} sum {decimal(SIZE)} in {self.seconds:.2f} s ({self.backend}), "
        return said + f"{self.gbit:.1f} Gbit/s each (`agrekd plan` has --network-gbit)"


def measure_network(places: Sequence[Place]) -> Network | None:
    """Have processes on all nodes sum; None where there is but one.

    Args:
        places: nodes that answer.
    """
    import ray

    nccl = all(place.gpus for place in places)
    asked = [place for place in places for _ in range(min(place.gpus, MOST_GPUS) if nccl else 1)]
    if len(asked) < 2:
        return None
    backend, probes = "nccl" if nccl else "gloo", [place.start(int(nccl)) for place in asked]
    try:
        answers = _sum(probes, backend)
    finally:
        for probe in probes:
            ray.kill(probe)
    faults: dict[str, list[str]] = {}
    for place, answer in zip(asked, answers, strict=True):
        if isinstance(answer, str):
            faults.setdefault(answer, []).append(place.name)
    why = "; ".join(f"{what} ({', '.join(dict.fromkeys(who))})" for what, who in faults.items())
    took = [answer for answer in answers if isinstance(answer, float)]
    return Network(len(places), len(asked), backend, None if why else max(took), why)


def _sum(probes: Sequence[Any], backend: str) -> list[float | str]:
    """Seconds of a sum, as each process has it, or why there was none."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    until = time.monotonic() + MEET_SECONDS
    silence = f"no answer within {MEET_SECONDS:.0f} s"

    def told(reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=max(0.0, until + 5 - time.monotonic()))
        except GetTimeoutError:
            return silence
        except RayError as error:
            return str(error).strip().rpartition("\n")[2].strip() or type(error).__name__

    at = told(probes[0].host.remote())
    if not isinstance(at, tuple):
        return [at] * len(probes)
    left = max(1.0, until - time.monotonic())
    asked = [
        probe.sum.remote(backend, rank, len(probes), at, SIZE, left)
        for rank, probe in enumerate(probes)
    ]
    return [told(reference) for reference in asked]
