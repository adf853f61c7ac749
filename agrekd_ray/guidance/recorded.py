"""Replay: the ensemble's answers out of records, in the student's own process, without an actor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from agrekd_ray.data import Samples
from agrekd_ray.errors import RunError
from agrekd_ray.guidance.lesson import Answer, Question, Source, reply, weigh_replies
from agrekd_ray.outputs import Outputs, OutputSettings


class RecordedTeachers:
    """Answers from records where all who are asked have one, else from the fleet (a `Source`).

    Every view is looked up when it is first asked for, and again in the next epoch; so a student
    leaves its teachers alone as soon as what they said is there whole.

    Args:
        outputs: the records.
        samples: the data set.
        fleet: who answers where a record is missing; None where all should be there.
    """

    def __init__(self, outputs: Outputs, samples: Samples, fleet: Source | None) -> None:
        self._outputs, self._samples, self._fleet = outputs, samples, fleet
        self._looked: tuple[int, tuple[str, ...]] | None = None
        self._complete = False
        self.replayed = 0
        """Answers out of records so far."""

    def ask(self, question: Question) -> Answer:
        """See `Source.ask`.

        Raises:
            RunError: a record is missing or damaged, and there is no fleet.
            AgrekdError: what the fleet raised.
        """
        if self._looked != (question.epoch, question.lesson.members):
            self._look(question)
        if not self._complete:
            if self._fleet is None:
                raise self._lost(question)
            try:
                return self._fleet.ask(question)
            except RunError:
                # The fleet is released when the last record is finished, maybe just now.
                if not self._look(question):
                    raise
        return self._replay(question)

    def complete(self, epoch: int) -> None:
        """See `Source.complete`."""
        if self._fleet is not None and not self._complete:
            try:
                self._fleet.complete(epoch)
            except RunError:
                view = self._samples.view(epoch)
                if self._outputs.missing([view]):
                    raise
        self._looked = None

    def _look(self, question: Question) -> bool:
        view = self._samples.view(question.epoch)
        members = question.lesson.members
        self._looked = (question.epoch, members)
        self._complete = all(self._outputs.read(name, view) is not None for name in members)
        return self._complete

    def _replay(self, question: Question) -> Answer:
        self.replayed += 1
        view, members = self._samples.view(question.epoch), question.lesson.members
        rows = self._outputs.rows(question.ids)
        classes = len(self._samples.classes)
        logits_mBC = torch.empty(len(members), len(rows), classes)
        for logits_BC, name in zip(logits_mBC.numpy(), members, strict=True):
            record = self._outputs.read(name, view)
            if record is None:
                raise self._lost(question)
            logits_BC[:] = record[rows]
        return weigh_replies(question, [reply(question, members, logits_mBC, self._samples)])

    def _lost(self, question: Question) -> RunError:
        view = self._samples.view(question.epoch)
        members = [n for n in question.lesson.members if self._outputs.read(n, view) is None]
        return RunError(
            f"the recorded outputs of {', '.join(members)} for view {view} are missing or damaged; "
            "`agrekd resume RUN` computes them again."
        )


Opening = Callable[[OutputSettings, Mapping[str, Path], Samples, str], Outputs]
"""Opens records as `Outputs(...)` does where they lie on this node."""


@dataclass(frozen=True)
class Replay:
    """How any process opens a job's records; may travel, and opens nothing itself.

    Attributes:
        settings: where the records are.
        checkpoints: folders of the teachers, by name.
        autocast: precision of the teachers' forward passes.
        fleet: who answers where a record is missing.
        opening: opens the records, where a node may not have them (`keeper.Keeper`).
    """

    settings: OutputSettings
    checkpoints: Mapping[str, Path]
    autocast: str
    fleet: Source | None
    opening: Opening = Outputs

    def __call__(self, samples: Samples) -> Source:
        """A student's source in this process."""
        outputs = self.opening(self.settings, self.checkpoints, samples, self.autocast)
        return RecordedTeachers(outputs, samples, self.fleet)
