"""Records without a shared folder: the driver's node keeps all, students' nodes what they read.

What teachers record stays on the disk of their own node until the driver fetches it. A student on a
node without a record brings it there from the driver's, once for all processes of the node.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from agrekd_ray.cluster.nodes import DriverData
from agrekd_ray.cluster.session import here
from agrekd_ray.files import Identity
from agrekd_ray.fleet.lending import Lender, borrow
from agrekd_ray.logits import LogitsCache, OutputSettings
from agrekd_ray.settings import Numbers

CONCURRENT = 4
"""Requests that it answers at once."""


class LogitsServerActor(Lender):
    """Actor on the driver's node: lends the records there to processes on others."""

    def __init__(
        self,
        settings: OutputSettings,
        checkpoints: Mapping[str, Path],
        data: DriverData,
        numbers: Numbers,
    ) -> None:
        self._lent = LogitsCache(settings, checkpoints, data.open(), numbers)


class LentLogits(LogitsCache):
    """Records on this node's disk, brought there where the driver's node has them."""

    def __init__(self, server: Any, *given: Any) -> None:
        super().__init__(*given)
        self._logits_server = server

    def _brought(self, name: str, view: int, seen: Mapping[str, Identity]) -> bool:
        return borrow(self, [self._logits_server], name, view, seen)


@dataclass(frozen=True)
class LogitsServer:
    """The driver's end of a `LogitsServerActor`, which it owns; may travel."""

    actor: Any

    @classmethod
    def start(
        cls,
        settings: OutputSettings,
        checkpoints: Mapping[str, Path],
        data: DriverData,
        numbers: Numbers,
    ) -> LogitsServer:
        """Starts one on this node; it takes no room that is counted."""
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        options["max_concurrency"] = CONCURRENT
        folders = {name: path.resolve() for name, path in checkpoints.items()}
        return cls(
            ray.remote(LogitsServerActor)
            .options(scheduling_strategy=here(), **options)
            .remote(settings, folders, data, numbers)
        )

    def __call__(self, *given: Any) -> LogitsCache:
        """The records as another process reads them; takes what `LogitsCache` does."""
        return LentLogits(self.actor, *given)

    def close(self) -> None:
        """Ends it, and what it lent."""
        with suppress(RayError):
            ray.kill(self.actor)
