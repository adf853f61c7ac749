"""Replay: the ensemble's answers out of records, in the student's own process, without an actor."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock

import numpy as np
import torch

from agrekd_ray.core.gradient import DistillationGradient
from agrekd_ray.core.weighting import summarize
from agrekd_ray.data import Samples
from agrekd_ray.distillation.spec import (
    DistillationSpec,
    GradientRequest,
    Source,
    combine_recorded,
    known,
)
from agrekd_ray.errors import RunError
from agrekd_ray.logits import Logits, LogitsCache, OutputSettings
from agrekd_ray.settings import Numbers
from agrekd_ray.training import Column
from agrekd_ray.training.loader import IN_MEMORY

_LOOKED_AT = 4096
"""Rows of a record that are looked at together."""
READ_AT_ONCE = 4
"""Records that are opened at the same time."""
_Answers = tuple[tuple[str, ...], int]
"""Of some members to a view."""


class CachedTeachers:
    """Records where all who are asked have one, else the fleet (a `Source`).

    A student leaves its teachers alone as soon as what they said to an epoch's view is there whole.
    Where it is, the next epoch's is looked up and put together in a thread of its own meanwhile.
    Where views repeat, what they say stays in memory, as far as it has room there.

    Args:
        outputs: the records.
        samples: the data set.
        fleet: who answers where a record is missing; None where all should be there.
    """

    def __init__(self, outputs: LogitsCache, samples: Samples, fleet: Source | None) -> None:
        self._outputs, self._samples, self._fleet = outputs, samples, fleet
        self._columns: OrderedDict[_Answers, Column] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "records")
        self._coming: dict[_Answers, Future[Column | None]] = {}
        self._looking = RLock()
        self._released = False

    def columns(self, spec: DistillationSpec, epoch: int) -> Sequence[Column]:
        """See `Source.columns`.

        Raises:
            RunError: a record is missing or damaged, and there is no fleet.
        """
        with self._looking:
            if (spec.members, self._samples.view(epoch)) in self._columns:
                self._look_ahead(spec, epoch + 1)  # not before the first batch: somebody waits
            recorded = self._look(spec, epoch)
        if not recorded and self._fleet is None:
            raise self._lost(spec, epoch)
        return recorded

    def fault(self, spec: DistillationSpec, epoch: int) -> str:
        """See `Source.fault`."""
        view, faults = self._samples.view(epoch), []
        for name in spec.members:
            record = self._outputs.read(name, view)
            broken = 0 if record is None else _not_finite(record)
            if broken:
                faults.append(
                    f"teacher {name}'s record of epoch {epoch + 1} holds NaN or infinite logits "
                    f"({broken} of {self._outputs.count} samples); remove it, and `agrekd resume "
                    f"RUN` computes it again: {self._outputs.path(name, view)}."
                )
        return " ".join(faults)

    def ask(self, request: GradientRequest) -> DistillationGradient:
        """See `Source.ask`.

        Raises:
            RunError: a record is missing or damaged, and there is no fleet.
            AgrekdError: what the fleet raised.
        """
        spec = request.spec
        if self._fleet is None:
            raise self._lost(spec, request.epoch)
        recorded = self._look_again(spec, request.epoch) if self._released else ()
        if not recorded:
            try:
                return self._fleet.ask(request)
            except RunError:
                # The fleet is released when the last record is finished, maybe just now.
                if not (recorded := self._look_again(spec, request.epoch)):
                    raise
                self._released = True
        return _answered(request, _rows(recorded[0], request), self._samples)

    def complete(self, epoch: int) -> None:
        """See `Source.complete`."""
        if self._fleet is None:
            return
        try:
            self._fleet.complete(epoch)
        except RunError:
            if self._outputs.missing([self._samples.view(epoch)]):
                raise

    def _look_again(self, spec: DistillationSpec, epoch: int) -> tuple[Column, ...]:
        with self._looking:
            return self._look(spec, epoch)

    def _look(self, spec: DistillationSpec, epoch: int) -> tuple[Column, ...]:
        """What all members say to the epoch's view, if they all have a record of it."""
        view = self._samples.view(epoch)
        answers, columns = (spec.members, view), self._columns
        if answers not in columns:
            coming = self._coming.pop(answers, None)
            column = coming.result() if coming is not None else None
            column = column or self._read(*answers)  # recorded since, maybe
            if column is None:
                return ()
            columns[answers] = column
        columns.move_to_end(answers)
        room = IN_MEMORY if view < epoch else 0  # else no view has been seen twice
        while len(columns) > 1 and sum(column.nbytes for column in columns.values()) > room:
            columns.popitem(last=False)
        return (columns[answers],)

    def _look_ahead(self, spec: DistillationSpec, epoch: int) -> None:
        answers = (spec.members, self._samples.view(epoch))
        if answers not in self._columns and answers not in self._coming:
            self._coming = {answers: self._thread.submit(self._read, *answers)}

    def _read(self, members: tuple[str, ...], view: int) -> Column | None:
        """What all members say to a view, put together; None where a record is missing."""
        if self._outputs.read(members[0], view) is None:
            return None  # the others are most likely in the making, too
        with ThreadPoolExecutor(READ_AT_ONCE) as threads:  # each record's checksum, at first
            records = list(threads.map(lambda name: self._outputs.read(name, view), members))
        known = [record for record in records if record is not None]
        if len(known) < len(members):
            return None
        column = self._outputs.column(members, view, known)
        column.put_together()
        return column

    def _lost(self, spec: DistillationSpec, epoch: int) -> RunError:
        view = self._samples.view(epoch)
        members = [n for n in spec.members if self._outputs.read(n, view) is None]
        return RunError(
            f"the recorded outputs of {', '.join(members)} for view {view} are missing or damaged; "
            "`agrekd resume RUN` computes them again."
        )


class FixedLogits:
    """Logits of the training samples that are in memory, the same in every epoch (a `Source`).

    Args:
        logits: of every member, [N, C], by name; row i is of the sample with id i.
        samples: the data set.
    """

    def __init__(self, logits: Mapping[str, np.ndarray], samples: Samples) -> None:
        self._logits, self._samples = logits, samples
        self._column: tuple[Column, ...] = ()

    def columns(self, spec: DistillationSpec, epoch: int) -> Sequence[Column]:
        """See `Source.columns`."""
        if not self._column:
            self._column = (Column(*(self._logits[name] for name in spec.members), stacked=True),)
        return self._column

    def fault(self, spec: DistillationSpec, epoch: int) -> str:
        """See `Source.fault`."""
        broken = [name for name in spec.members if not np.isfinite(self._logits[name]).all()]
        return f"{', '.join(broken)} answers with NaN or infinity." if broken else ""

    def ask(self, request: GradientRequest) -> DistillationGradient:
        """See `Source.ask`."""
        (column,) = self.columns(request.spec, request.epoch)
        return _answered(request, _rows(column, request), self._samples)

    def complete(self, epoch: int) -> None:
        """See `Source.complete`."""


def _not_finite(logits_NC: Logits) -> int:
    """Samples with NaN or infinity."""
    parts = (
        logits_NC[first : first + _LOOKED_AT] for first in range(0, len(logits_NC), _LOOKED_AT)
    )
    return sum(int((~np.isfinite(part)).any(1).sum()) for part in parts)


def _rows(column: Column, request: GradientRequest) -> torch.Tensor:
    return column.decoded(column.gathered(request.ids))


def _answered(
    request: GradientRequest, logits_BmC: torch.Tensor, samples: Samples
) -> DistillationGradient:
    """What the members' logits, which are here, answer to a request."""
    spec = request.spec
    labels_B = samples.labels(request.ids) if spec.needs_labels else None
    student_BC = torch.from_numpy(np.array(request.logits_BC))
    before = known(spec, logits_BmC, labels_B)
    found = summarize([combine_recorded(spec, request.step, student_BC, before)])
    return replace(found, lost_M=torch.zeros(len(spec.teachers), dtype=torch.bool))


Opening = Callable[[OutputSettings, Mapping[str, Path], Samples, Numbers], LogitsCache]
"""Opens records as `LogitsCache(...)` does where they lie on this node."""


@dataclass(frozen=True)
class Replay:
    """How any process opens a job's records; may travel, and opens nothing itself.

    Attributes:
        settings: where the records are.
        checkpoints: folders of the teachers, by name.
        numbers: that the teachers' forward passes compute in.
        fleet: who answers where a record is missing.
        opening: opens the records, where a node may not have them (`fleet.logits_server`).
    """

    settings: OutputSettings
    checkpoints: Mapping[str, Path]
    numbers: Numbers
    fleet: Source | None
    opening: Opening = LogitsCache

    def __call__(self, samples: Samples) -> Source:
        """A student's source in this process."""
        outputs = self.opening(self.settings, self.checkpoints, samples, self.numbers)
        return CachedTeachers(outputs, samples, self.fleet)
