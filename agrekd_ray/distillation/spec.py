"""What travels between a student and its teachers: ids, logits and gradients, never images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from agrekd_ray.core.competence import competence
from agrekd_ray.core.gradient import DistillationGradient, Evidence, required
from agrekd_ray.core.kd import (
    cross_entropies,
    gradient_from_targets,
    kd_gradient,
    softened,
)
from agrekd_ray.core.weighting import (
    STRATEGIES,
    SampleWeighting,
    combine_members,
    needs_global_batch,
    summarize,
)
from agrekd_ray.data import Samples
from agrekd_ray.errors import RunError
from agrekd_ray.training import DIVERGED, Batch, Column

Competence = tuple[tuple[float, ...], ...]
"""Of teachers by class, [M][C]; see `core.competence`."""


@dataclass(frozen=True)
class DistillationSpec:
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
        competence: of the teachers, in their order, by class, for strategies that need it; see
            `core.competence`. None until it is known.
    """

    strategy: str
    teachers: tuple[str, ...]
    biased: str
    temperature: float
    alpha: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    sample_weighting: SampleWeighting | None = None
    seed: int = 0
    competence: Competence | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Everybody who must answer: the teachers, and the biased model where it is used."""
        if not self.uses_biased or self.biased in self.teachers:
            return self.teachers
        return (*self.teachers, self.biased)

    def asked(self, step: int) -> tuple[str, ...]:
        """Of the members, those without whom a step cannot be weighed; others have no weight."""
        draws = STRATEGIES[self.strategy].draws
        if draws is None or self.uses_biased:
            return self.members
        return (self.teachers[draws(len(self.teachers), self.seed, step)],)

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

    @property
    def needs_labels(self) -> bool:
        """Whether the weights depend on the samples' labels."""
        return STRATEGIES[self.strategy].needs_labels

    @property
    def needs_competence(self) -> bool:
        """Whether the teachers' competence must be known before the first step."""
        return STRATEGIES[self.strategy].needs_competence

    def informed(
        self, competence: Callable[[tuple[str, ...], str], Competence]
    ) -> DistillationSpec:
        """The same, with the teachers' competence where it needs that.

        Args:
            competence: of the named teachers, against the named biased model.
        """
        if not self.needs_competence:
            return self
        return replace(self, competence=competence(self.teachers, self.biased))

    def described(self) -> dict[str, Any]:
        """Its values by name, as students are known by: without what was never asked for."""
        values = asdict(self)
        if self.competence is None:
            del values["competence"]
        return values


def competence_of(
    teachers: Sequence[str], biased: str, logits: Mapping[str, Tensor], labels_N: Tensor
) -> Competence:
    """`core.competence` by name, as plain numbers that travel.

    Args:
        teachers: names, in the order of the weights.
        biased: name of the biased model.
        logits: theirs on samples of validation, [N, C], by name.
        labels_N: classes of the samples.
    """
    logits_MNC = torch.stack([logits[name] for name in teachers])
    found_MC = competence(logits_MNC, logits[biased], labels_N)
    return tuple(tuple(row) for row in found_MC.tolist())


INLINE = 100_000
"""Bytes from which Ray puts an argument into the object store, anew for every call that has it."""
View = tuple[int, np.ndarray]
"""Samples as an epoch shows them: (epoch, ids [B])."""


@dataclass(frozen=True)
class GradientRequest:
    """One step's request.

    Attributes:
        spec: how the answer is to be weighted.
        step: number of the step.
        epoch: the view of the samples.
        ids: of the samples, [B].
        logits_BC: the student's, float32.
        ahead: views that will be asked for next.
        labels_B: of the samples, where the spec needs them.
    """

    spec: DistillationSpec
    step: int
    epoch: int
    ids: np.ndarray
    logits_BC: np.ndarray
    ahead: tuple[View, ...] = ()
    labels_B: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        spec: DistillationSpec,
        batch: Batch,
        ids: np.ndarray,
        logits_BC: Tensor,
        labels_B: Tensor | None = None,
    ) -> GradientRequest:
        """The request of a batch; `ids` are this worker's or, for whole batches, all."""
        whole = len(ids) == len(batch.every)
        ahead = tuple((later.epoch, later.every if whole else later.ids) for later in batch.ahead)
        labels = None if labels_B is None else labels_B.numpy()
        return cls(spec, batch.step, batch.epoch, ids, logits_BC.cpu().numpy(), ahead, labels)

    def views(self) -> Iterator[tuple[tuple[str, ...], View]]:
        """This step's samples and those that follow, each with whom they are asked of."""
        views = ((self.epoch, self.ids), *self.ahead)
        return ((self.spec.asked(step), view) for step, view in enumerate(views, self.step))


@dataclass(frozen=True)
class TeacherGradients:
    """What some teachers say to a request: one array each, since every array of a message costs.

    Attributes:
        names: of the m teachers.
        gradients_mBC: of each one's distillation loss with respect to the student's logits.
        cross_entropy_mB: of each one's answer with the labels, where the spec asks for it.
    """

    names: tuple[str, ...]
    gradients_mBC: np.ndarray
    cross_entropy_mB: np.ndarray | None = None


class Source(Protocol):
    """Where answers come from."""

    def columns(self, spec: DistillationSpec, epoch: int) -> Sequence[Column]:
        """Recorded logits of all members of a spec, in its order, as one column; else none.

        Called in a loader's thread, too. Whether an epoch has them is decided once for the epoch,
        by `Distilled`.
        """
        ...

    def fault(self, spec: DistillationSpec, epoch: int) -> str:
        """What is wrong with the recorded logits of an epoch; empty where nothing is."""
        ...

    def ask(self, request: GradientRequest) -> DistillationGradient:
        """What the ensemble says, on the CPU; the same whenever the request is repeated."""
        ...

    def complete(self, epoch: int) -> None:
        """An epoch is over: see that its view is recorded whole, where answers are recorded."""
        ...


def teacher_gradients(
    request: GradientRequest, names: Sequence[str], logits_mBC: Tensor, samples: Samples
) -> TeacherGradients:
    """What some teachers say to a request, out of their logits.

    Args:
        request: what was asked.
        names: of the m teachers.
        logits_mBC: theirs for the samples of the request, float32.
        samples: the data set, for strategies that need the teachers' cross-entropy.
    """
    student_BC = torch.from_numpy(np.array(request.logits_BC))
    gradients_mBC = kd_gradient(student_BC, logits_mBC, request.spec.temperature)
    entropy_mB = None
    if request.spec.cross_entropy:
        entropy_mB = cross_entropies(logits_mBC, samples.labels(request.ids)).numpy()
    return TeacherGradients(tuple(names), gradients_mBC.numpy(), entropy_mB)


def combine_gradients(
    request: GradientRequest, answers: Sequence[TeacherGradients], lost: Collection[str] = ()
) -> DistillationGradient:
    """Combine the members' gradients as the spec says.

    Args:
        request: what was asked.
        answers: gradients that together hold at least those that `request.spec` asks for this
            step, without those that are lost.
        lost: teachers that the others teach without.

    Raises:
        RunError: the student's logits are no longer finite.
    """
    spec = request.spec
    teaching = [name for name in spec.teachers if name not in lost]
    members = [name for name in spec.members if name not in lost]
    gradients = {
        name: gradient_BC
        for some in answers
        for name, gradient_BC in zip(some.names, some.gradients_mBC, strict=True)
    }
    entropies = {
        name: entropy_B
        for some in answers
        if some.cross_entropy_mB is not None
        for name, entropy_B in zip(some.names, some.cross_entropy_mB, strict=True)
    }
    nothing_BC = np.zeros_like(request.logits_BC)  # of those who were not asked
    evidence = Evidence(
        _stacked({name: gradients.get(name, nothing_BC) for name in members}, members),
        len(teaching),
        spec.temperature,
        torch.from_numpy(np.array(request.logits_BC)),
        members.index(spec.biased) if spec.uses_biased else None,
        None if request.labels_B is None else torch.from_numpy(np.array(request.labels_B)),
    )
    entropy_MB = _stacked(entropies, teaching) if spec.cross_entropy else None
    if spec.competence is not None and lost:
        by_name = dict(zip(spec.teachers, spec.competence, strict=True))
        spec = replace(spec, competence=tuple(by_name[name] for name in teaching))
    try:
        found = summarize([_combined(spec, request.step, evidence, entropy_MB)])
    except FloatingPointError:  # teachers are checked where they answer
        raise RunError(no_longer_finite(request.step, request.epoch)) from None
    lost_M = torch.tensor([name in lost for name in spec.teachers])
    if not lost:
        return replace(found, lost_M=lost_M)
    weights_MB, pull_MB = (_spread(part, lost_M) for part in (found.weights_MB, found.pull_MB))
    return replace(found, lost_M=lost_M, weights_MB=weights_MB, pull_MB=pull_MB)


def no_longer_finite(step: int, epoch: int) -> str:
    """What is said of a student's logits that are not."""
    return (
        f"the student's logits are no longer finite in step {step + 1} of its training (epoch "
        f"{epoch + 1}): {DIVERGED}"
    )


Known = tuple[Tensor, ...]
"""What of a step's weighing is known before the student answers: the members' softened answers
[m, B, C], the teachers' entropies [M, B] and, where the spec asks for them, the labels [1, B] and
the teachers' cross-entropies [M, B]."""


@torch.inference_mode()
def known(spec: DistillationSpec, logits_BmC: Tensor, labels_B: Tensor | None) -> Known:
    """What logits that the members have left behind say without the student's, ahead of a step.

    Args:
        spec: how they teach.
        logits_BmC: of `spec.members`, in that order.
        labels_B: where the spec needs them.
    """
    logits_mBC = logits_BmC.transpose(0, 1)
    targets_mBC, entropy_mB = softened(logits_mBC, spec.temperature)
    M = len(spec.teachers)
    found: Known = (targets_mBC, entropy_mB[:M])
    if labels_B is not None:
        found = *found, labels_B[None]
        if spec.cross_entropy:
            found = *found, cross_entropies(logits_mBC[:M].float(), labels_B)
    return found


@torch.inference_mode()
def combine_recorded(
    spec: DistillationSpec,
    step: int,
    student_BC: Tensor,
    before: Known,
    competence_MC: Tensor | None = None,
) -> DistillationGradient:
    """The same as `combine_gradients` out of what was known before, on its device.

    But for what `summarize` works out later.

    Args:
        spec: how the members teach.
        step: number of the step.
        student_BC: the student's logits, float32.
        before: as `known` returned it.
        competence_MC: that of `spec`, where the caller has it on the student's device.
    """
    targets_mBC, entropy_MB, *further = before
    evidence = Evidence(
        gradient_from_targets(student_BC, targets_mBC, spec.temperature),
        len(spec.teachers),
        spec.temperature,
        # A graph of CUDA's writes its next answer into the same place.
        student_BC.clone() if student_BC.is_cuda else student_BC,
        spec.members.index(spec.biased) if spec.uses_biased else None,
        further[0][0] if further else None,
        entropy_MB,
    )
    entropy = further[1] if spec.cross_entropy else None
    return _combined(spec, step, evidence, entropy, competence_MC)


def _combined(
    spec: DistillationSpec,
    step: int,
    evidence: Evidence,
    cross_entropy_MB: Tensor | None = None,
    competence_MC: Tensor | None = None,
) -> DistillationGradient:
    options = dict(spec.options)
    if spec.strategy == "random":
        options |= {"seed": spec.seed, "step": step}
    if cross_entropy_MB is not None:
        options["cross_entropy"] = cross_entropy_MB
    if spec.needs_competence:
        options["competence"] = spec.competence if competence_MC is None else competence_MC
    return combine_members(spec.strategy, evidence, spec.sample_weighting, **options)


def _spread(part_mB: Tensor | None, lost_M: Tensor) -> Tensor:
    """Rows of the teachers that are there, among rows of 0 for those that are lost."""
    there_mB = required(part_mB)
    all_MB = there_mB.new_zeros(len(lost_M), there_mB.shape[1])
    all_MB[~lost_M] = there_mB
    return all_MB


def _stacked(parts: dict[str, np.ndarray], names: Sequence[str]) -> Tensor:
    return torch.from_numpy(np.stack([parts[name] for name in names]))
