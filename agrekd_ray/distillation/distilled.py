"""A student's guidance by its teachers: out of their records or from a source, and the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from agrekd_ray.collectives import filled_by_first, from_first, several
from agrekd_ray.core.gradient import DistillationGradient, required
from agrekd_ray.core.weighting import summarize
from agrekd_ray.data import Samples
from agrekd_ray.distillation.host import TeacherHost
from agrekd_ray.distillation.spec import (
    DistillationSpec,
    GradientRequest,
    Known,
    Source,
    combine_gradients,
    combine_recorded,
    known,
    no_longer_finite,
)
from agrekd_ray.errors import RunError
from agrekd_ray.training import Batch, Column, Loaded, label_guidance


class LocalTeachers:
    """All teachers in this process: the reference that the fleet is held to (a `Source`)."""

    def __init__(self, host: TeacherHost) -> None:
        self._host = host

    def columns(self, spec: DistillationSpec, epoch: int) -> Sequence[Column]:
        """See `Source.columns`."""
        return ()

    def fault(self, spec: DistillationSpec, epoch: int) -> str:
        """See `Source.fault`."""
        return ""

    def ask(self, request: GradientRequest) -> DistillationGradient:
        """See `Source.ask`."""
        names = request.spec.asked(request.step)
        if names != request.spec.members:
            for whom, view in request.views():
                self._host.expect(whom, [view])
            request = replace(request, ahead=())
        return combine_gradients(request, [self._host.gradients(names, request)])

    def complete(self, epoch: int) -> None:
        """See `Source.complete`."""
        self._host.complete(epoch)


class Distilled:
    """The gradient of alpha * L_wKD + (1 - alpha) * L_cls (a `Guidance`; paper, equation 5).

    Where the teachers' logits are recorded they come along with the batch, and all is computed on
    its device, which nothing waits for. Else the source is asked.

    Weightings that need the whole batch see it whole: the workers gather their logits. Out of
    records each then computes the whole and takes its part; else the first one asks, and all get
    the answer. So a source keeps nothing between two requests.

    Attributes:
        replayed: steps whose gradients came out of records; whoever counts them begins anew.

    Raises:
        RunError: the spec needs the teachers' competence, and does not have it.
    """

    def __init__(self, spec: DistillationSpec, source: Source, samples: Samples) -> None:
        if spec.needs_competence and spec.competence is None:
            raise RunError(
                f"{spec.strategy} needs the teachers' competence, which labels of validation tell "
                "(DistillationSpec.informed), and nobody has told it."
            )
        self._spec, self._source, self._samples = spec, source, samples
        self._competence: Tensor | None = None
        self._labels = Column(samples.labels(np.arange(samples.size)).numpy())
        self.whole_batch = spec.whole_batch
        self.replayed = 0
        self._replays: dict[int, bool] = {}
        self._deciding = Lock()

    def columns(self, epoch: int, ahead: bool) -> Sequence[Column] | None:
        """See `Guidance.columns`: the members' logits, and labels where weights need them.

        Raises:
            RunError: the first worker finds records that are not to be seen here.
        """
        replays = self._decided(epoch, ahead)
        if not replays:
            return None if replays is None else ()
        logits = self._source.columns(self._spec, epoch)
        if not logits:
            raise RunError(f"the records of epoch {epoch + 1} cannot be seen by all workers.")
        return (*logits, self._labels) if self._spec.needs_labels else logits

    def complete(self, epoch: int) -> None:
        """An epoch is over: see `Source.complete`. Called in the first worker."""
        if not self._replays.get(epoch):
            self._source.complete(epoch)

    def _decided(self, epoch: int, ahead: bool) -> bool | None:
        """Whether an epoch is taught out of records, from its first step to its last.

        Weightings that see the whole batch exchange it in another way then, so the first worker
        decides for all; by `ahead`, None where this is not known yet.
        """
        with self._deciding:
            if epoch not in self._replays:
                together = self.whole_batch and several()
                if ahead and together:
                    return None
                decides = not together or dist.get_rank() == 0
                try:
                    replays = decides and bool(self._source.columns(self._spec, epoch))
                except RunError:  # records are missing that may be made until then
                    if not ahead:
                        raise
                    return None
                if ahead and not replays:
                    return None
                if together:
                    replays = bool(from_first(replays))
                before = {epoch - 1: self._replays.get(epoch - 1, False)}
                self._replays = before | {epoch: replays}
            return self._replays[epoch]

    def fault(self, epoch: int) -> str:
        """See `Guidance.fault`."""
        return self._source.fault(self._spec, epoch)

    def ready(self, further: tuple[Tensor, ...], sizes: Sequence[int]) -> Sequence[Known]:
        """See `Guidance.ready`: what the members' logits say without the student's."""
        if not further:
            return [()] * len(sizes)
        logits_BmC, *labels = further
        whole = known(self._spec, logits_BmC, labels[0] if labels else None)
        return list(zip(*(part.split(sizes, 1) for part in whole), strict=True))

    def gradient(self, batch: Batch, loaded: Loaded, logits_BC: Tensor) -> DistillationGradient:
        """See `Guidance.gradient`.

        Raises:
            RunError: on the CPU, logits of the student or of a teacher's record are not finite.
        """
        whole = self.whole_batch and batch.world > 1
        if loaded.further:
            self.replayed += 1
            student_BC = _gathered(batch, logits_BC) if whole else logits_BC
            try:
                distilled = combine_recorded(
                    self._spec,
                    batch.step,
                    student_BC,
                    loaded.further,
                    self._competence_on(logits_BC.device),
                )
            except FloatingPointError:
                why = self.fault(batch.epoch) or no_longer_finite(batch.step, batch.epoch)
                raise RunError(why) from None
            if whole:
                distilled = _part(summarize([distilled]), batch)
        elif whole:
            distilled = self._ask_whole(batch, logits_BC)
        else:
            distilled = self._ask(batch, batch.ids, logits_BC)
        alpha = self._spec.alpha
        if alpha == 1:
            return distilled
        distilled, labels = summarize([distilled]), label_guidance(logits_BC, loaded.labels_B)
        return replace(
            distilled,
            gradient_BC=alpha * distilled.gradient_BC + (1 - alpha) * labels.gradient_BC,
            loss_B=alpha * required(distilled.loss_B) + (1 - alpha) * required(labels.loss_B),
        )

    def _competence_on(self, device: torch.device) -> Tensor | None:
        """The teachers' competence on a device, where it is brought once, not in each step."""
        if self._competence is None and self._spec.competence is not None:
            self._competence = torch.tensor(
                self._spec.competence, dtype=torch.float64, device=device
            )
        return self._competence

    def _ask(self, batch: Batch, ids: np.ndarray, logits_BC: Tensor) -> DistillationGradient:
        labels_B = self._samples.labels(ids) if self._spec.needs_labels else None
        request = GradientRequest.of(self._spec, batch, ids, logits_BC, labels_B)
        return self._source.ask(request).to(logits_BC.device)

    def _ask_whole(self, batch: Batch, logits_BC: Tensor) -> DistillationGradient:
        every_BC = _gathered(batch, logits_BC)
        M = len(self._spec.teachers)
        widths = (every_BC.shape[1], 1, M, 1, M, M)
        packed = every_BC.new_empty(len(every_BC), sum(widths))
        if batch.rank == 0:
            packed = _packed(self._ask(batch, batch.every, every_BC))
        filled_by_first(packed)  # it may have waited for a teacher
        gradient_BC, loss_B1, weights_BM, fallback_B1, pull_BM, lost_BM = packed.split(widths, 1)
        found = DistillationGradient(
            gradient_BC,
            loss_B1[:, 0],
            weights_BM.T,
            fallback_B1[:, 0] > 0,
            pull_BM.T,
            lost_BM[0] > 0,
        )
        return _part(found, batch)


def _gathered(batch: Batch, logits_BC: Tensor) -> Tensor:
    """The student's logits for the whole global batch, from all workers."""
    parts = [torch.empty_like(logits_BC) for _ in range(batch.world)]
    dist.all_gather(parts, logits_BC.contiguous())
    return torch.cat(parts)


def _packed(whole: DistillationGradient) -> Tensor:
    """All parts side by side, a row a sample: one message costs less than six."""
    parts_BK = (
        whole.gradient_BC,
        required(whole.loss_B)[:, None],
        required(whole.weights_MB).T,
        required(whole.fallback_B)[:, None],
        required(whole.pull_MB).T,
        required(whole.lost_M).expand(len(whole.gradient_BC), -1),
    )
    return torch.cat([part.to(whole.gradient_BC.dtype) for part in parts_BK], 1)


def _part(whole: DistillationGradient, batch: Batch) -> DistillationGradient:
    """What is for this worker's samples."""
    mine = slice(batch.rank * len(batch.ids), (batch.rank + 1) * len(batch.ids))
    return DistillationGradient(
        whole.gradient_BC[mine],
        required(whole.loss_B)[mine],
        required(whole.weights_MB)[:, mine],
        required(whole.fallback_B)[mine],
        required(whole.pull_MB)[:, mine],
        whole.lost_M,
    )
