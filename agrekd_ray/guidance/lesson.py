"""What travels between a student and its teachers: ids, logits and gradients, never images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from agrekd_ray.core.kd import kd_gradient
from agrekd_ray.core.weighting import (
    STRATEGIES,
    SampleWeighting,
    combine,
    needs_global_batch,
)
from agrekd_ray.data import Samples
from agrekd_ray.errors import RunError
from agrekd_ray.training import DIVERGED, Batch


@dataclass(frozen=True)
class Lesson:
    """How one student is taught, from its first step to its last.

    Attributes:
        strategy: name of the weighting.
        teachers: names of the M teachers, in the order of the weights.
        biased: name of the biased model.
        temperature: tau.
        alpha: share of distillation in the objective; the rest is cross-entropy with the labels.
        options: of the strategy.
        sample_weighting: settings of the sample weighting, or None.
        seed: the student's; draws the teacher of `random`.
    """

    strategy: str
    teachers: tuple[str, ...]
    biased: str
    temperature: float
    alpha: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    sample_weighting: SampleWeighting | None = None
    seed: int = 0

    @property
    def members(self) -> tuple[str, ...]:
        """Everybody who must answer: the teachers, and the biased model where it is used."""
        if not self.uses_biased or self.biased in self.teachers:
            return self.teachers
        return (*self.teachers, self.biased)

    @property
    def uses_biased(self) -> bool:
        """Whether the weights depend on the biased model."""
        return STRATEGIES[self.strategy].needs_biased or self.sample_weighting is not None

    def can_do_without(self, lost: Collection[str]) -> bool:
        """Whether the others can teach: one of them at least, and the biased model if used."""
        if self.uses_biased and self.biased in lost:
            return False
        return any(name not in lost for name in self.teachers)

    @property
    def whole_batch(self) -> bool:
        """Whether the weights depend on the whole global batch, over all workers."""
        return needs_global_batch(self.strategy, self.sample_weighting)

    @property
    def cross_entropy(self) -> bool:
        """Whether teachers add their own cross-entropy with the labels."""
        return STRATEGIES[self.strategy].needs_cross_entropy


INLINE = 100_000
"""Bytes from which Ray puts an argument into the object store, anew for every call that has it."""
View = tuple[int, np.ndarray]
"""Samples as an epoch shows them: (epoch, ids [B])."""


@dataclass(frozen=True)
class Question:
    """One step's request.

    Attributes:
        lesson: how the answer is to be weighted.
        step: number of the step.
        epoch: the view of the samples.
        ids: of the samples, [B].
        logits_BC: the student's, float32.
        ahead: views that will be asked for next.
    """

    lesson: Lesson
    step: int
    epoch: int
    ids: np.ndarray
    logits_BC: np.ndarray
    ahead: tuple[View, ...] = ()

    @classmethod
    def of(cls, lesson: Lesson, batch: Batch, ids: np.ndarray, logits_BC: Tensor) -> Question:
        """The question of a batch; `ids` are this worker's or, for whole batches, all."""
        whole = len(ids) == len(batch.every)
        ahead = tuple((later.epoch, later.every if whole else later.ids) for later in batch.ahead)
        return cls(lesson, batch.step, batch.epoch, ids, logits_BC.cpu().numpy(), ahead)


@dataclass(frozen=True)
class Replies:
    """What some teachers say to a question: one array each, since every array of a message costs.

    Attributes:
        names: of the m teachers.
        gradients_mBC: of each one's distillation loss with respect to the student's logits.
        cross_entropy_mB: of each one's answer with the labels, where the lesson asks for it.
    """

    names: tuple[str, ...]
    gradients_mBC: np.ndarray
    cross_entropy_mB: np.ndarray | None = None


@dataclass(frozen=True)
class Answer:
    """What the ensemble says to a question; see `core.weighting.Guided`.

    `lost_M` says which teachers are lost and were left out; their weights and pulls are 0.
    """

    gradient_BC: np.ndarray
    weights_MB: np.ndarray
    loss_B: np.ndarray
    fallback_B: np.ndarray
    pull_MB: np.ndarray
    lost_M: np.ndarray


class Source(Protocol):
    """Where answers come from."""

    @property
    def replayed(self) -> int:
        """Answers out of records so far."""
        ...

    def ask(self, question: Question) -> Answer:
        """The ensemble's answer; the same whenever the question is repeated."""
        ...

    def complete(self, epoch: int) -> None:
        """An epoch is over: see that its view is recorded whole, where answers are recorded."""
        ...


def reply(
    question: Question, names: Sequence[str], logits_mBC: Tensor, samples: Samples
) -> Replies:
    """What some teachers say to a question, out of their logits.

    Args:
        question: what was asked.
        names: of the m teachers.
        logits_mBC: theirs for the samples of the question, float32.
        samples: the data set, for strategies that need the teachers' cross-entropy.
    """
    student_BC = torch.from_numpy(np.array(question.logits_BC))
    gradients_mBC = kd_gradient(student_BC, logits_mBC, question.lesson.temperature)
    entropy_mB = None
    if question.lesson.cross_entropy:
        labels_B = samples.labels(question.ids)
        entropies = [F.cross_entropy(z, labels_B, reduction="none") for z in logits_mBC]
        entropy_mB = torch.stack(entropies).numpy()
    return Replies(tuple(names), gradients_mBC.numpy(), entropy_mB)


def weigh_replies(
    question: Question, told: Sequence[Replies], lost: Collection[str] = ()
) -> Answer:
    """Combine the members' replies as the lesson says.

    Args:
        question: what was asked.
        told: replies that together hold at least the members of `question.lesson`, without those
            that are lost.
        lost: teachers that the others teach without.

    Raises:
        RunError: the student's logits are no longer finite.
    """
    lesson = question.lesson
    lost_M = np.array([name in lost for name in lesson.teachers])
    there = tuple(name for name in lesson.teachers if name not in lost)
    gradients = {
        name: gradient_BC
        for some in told
        for name, gradient_BC in zip(some.names, some.gradients_mBC, strict=True)
    }
    options = dict(lesson.options)
    if lesson.strategy == "random":
        options |= {"seed": lesson.seed, "step": question.step}
    if lesson.cross_entropy:
        entropies = {
            name: entropy_B
            for some in told
            if some.cross_entropy_mB is not None
            for name, entropy_B in zip(some.names, some.cross_entropy_mB, strict=True)
        }
        options["cross_entropy"] = _stacked(entropies, there)
    biased = _stacked(gradients, (lesson.biased,))[0] if lesson.uses_biased else None
    try:
        guided = combine(
            lesson.strategy,
            _stacked(gradients, there),
            biased,
            student_logits=torch.from_numpy(np.array(question.logits_BC)),
            temperature=lesson.temperature,
            sample_weighting=lesson.sample_weighting,
            **options,
        )
    except FloatingPointError:  # teachers are checked where they answer
        raise RunError(
            f"the student's logits are no longer finite in step {question.step + 1} of its "
            f"training (epoch {question.epoch + 1}): {DIVERGED}"
        ) from None
    return Answer(
        guided.gradient.numpy(),
        _spread(guided.weights.numpy(), lost_M),
        guided.loss.numpy(),
        guided.fallback.numpy(),
        _spread(guided.pull.numpy(), lost_M),
        lost_M,
    )


def _spread(there_mB: np.ndarray, lost_M: np.ndarray) -> np.ndarray:
    """Rows of the teachers that are there, among rows of 0 for those that are lost."""
    if not lost_M.any():
        return there_mB
    all_MB = np.zeros((len(lost_M), there_mB.shape[1]), there_mB.dtype)
    all_MB[~lost_M] = there_mB
    return all_MB


def _stacked(parts: dict[str, np.ndarray], names: tuple[str, ...]) -> Tensor:
    return torch.from_numpy(np.stack([parts[name] for name in names]))
