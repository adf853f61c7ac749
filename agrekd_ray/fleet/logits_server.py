"""Records without a shared folder: the driver's node keeps them, others read them through Ray.

What teachers record stays on the disk of their own node until the driver fetches it (`Fleet.
recorded`). A student on a node without a record gets it from the node that has it, as an object of
Ray's store: one copy a node, which all processes there read in place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from agrekd_ray.cluster.channel import plain_error
from agrekd_ray.cluster.nodes import DriverData
from agrekd_ray.cluster.session import here
from agrekd_ray.logits import Logits, LogitsCache, OutputSettings
from agrekd_ray.settings import Numbers

VIEWS_KEPT = 4
"""Views whose records are held in the object store at once: those of students side by side."""
VIEWS_BORROWED = 2
"""Views whose objects a process holds: an epoch's, and the next one's."""
ATTEMPTS = 3
"""To read a record; an object is gone when the process that made it died."""


class LogitsServerActor:
    """Actor on the driver's node: lends the records there to processes on others."""

    def __init__(
        self,
        settings: OutputSettings,
        checkpoints: Mapping[str, Path],
        data: DriverData,
        numbers: Numbers,
    ) -> None:
        self._outputs = LogitsCache(settings, checkpoints, data.open(), numbers)
        self._lent: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def record(self, name: str, view: int) -> list[Any]:
        """A reference to a record's logits [N, C] in a list; an empty one where there is none."""
        lent = self._lent.setdefault(view, {})
        self._lent.move_to_end(view)
        while len(self._lent) > VIEWS_KEPT:
            self._lent.popitem(last=False)
        if name not in lent:
            record = self._outputs.read(name, view)
            if record is None:
                return []
            lent[name] = ray.put(record)
        return [lent[name]]


class LentLogits(LogitsCache):
    """Records on this node's disk or, where it has none, those of the node that has them."""

    def __init__(self, server: Any, *given: Any) -> None:
        super().__init__(*given)
        self._logits_server = server
        self._borrowed: OrderedDict[int, dict[str, Logits]] = OrderedDict()

    def read(self, name: str, view: int) -> Logits | None:
        """See `LogitsCache.read`.

        Raises:
            RunError: the server cannot be reached any more.
        """
        borrowed = self._borrowed.get(view, {}).get(name)
        if borrowed is not None:
            return borrowed
        own = super().read(name, view)
        return own if own is not None else self._borrow(name, view)

    def _borrow(self, name: str, view: int) -> Logits | None:
        for attempt in range(ATTEMPTS):
            try:
                lent = ray.get(self._logits_server.record.remote(name, view))
                if not lent:
                    return None
                record: Logits = ray.get(lent[0])
            except RayError as error:
                if attempt + 1 == ATTEMPTS:
                    raise plain_error(error, "the server of recorded outputs") from None
            else:
                break
        self._borrowed.setdefault(view, {})[name] = record
        while len(self._borrowed) > VIEWS_BORROWED:
            self._borrowed.popitem(last=False)
        return record


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
