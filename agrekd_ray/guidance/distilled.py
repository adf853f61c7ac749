"""A student's guidance by its teachers: asks a source, and mixes the labels in."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from agrekd_ray.core.kd import label_gradient
from agrekd_ray.data import Samples
from agrekd_ray.guidance.host import TeacherHost
from agrekd_ray.guidance.lesson import Answer, Lesson, Question, Source, weigh_replies
from agrekd_ray.training import Batch, Taught


class LocalTeachers:
    """All teachers in this process: the reference that the fleet is held to (a `Source`)."""

    replayed = 0

    def __init__(self, host: TeacherHost) -> None:
        self._host = host

    def ask(self, question: Question) -> Answer:
        """See `Source.ask`."""
        return weigh_replies(question, [self._host.replies(question.lesson.members, question)])

    def complete(self, epoch: int) -> None:
        """See `Source.complete`."""
        self._host.complete(epoch)


class Distilled:
    """The gradient of alpha * L_wKD + (1 - alpha) * L_cls (a `Guidance`; paper, equation 5).

    Weightings that need the whole batch see it whole: the workers gather their logits, the first
    one asks, and all get the answer. So a source keeps nothing between two questions.
    """

    def __init__(self, lesson: Lesson, source: Source, samples: Samples) -> None:
        self._lesson, self._source, self._samples = lesson, source, samples

    def gradient(self, batch: Batch, logits_BC: Tensor) -> Taught:
        """See `Guidance.gradient`."""
        if self._lesson.whole_batch and batch.world > 1:
            distilled = self._ask_whole(batch, logits_BC)
        else:
            distilled = self._ask(batch, batch.ids, logits_BC)
        gradient_BC, weights_MB, loss_B, fallback_B, pull_MB, lost_M = distilled
        alpha = self._lesson.alpha
        if alpha < 1:
            labels_B = self._samples.labels(batch.ids).to(logits_BC.device)
            gradient_BC = alpha * gradient_BC + (1 - alpha) * label_gradient(logits_BC, labels_B)
            entropy_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
            loss_B = alpha * loss_B + (1 - alpha) * entropy_B
        gradient_BC = gradient_BC / len(batch.ids)
        return Taught(gradient_BC, loss_B, weights_MB, fallback_B, pull_MB, lost_M)

    def _ask(self, batch: Batch, ids: np.ndarray, logits_BC: Tensor) -> tuple[Tensor, ...]:
        answer = self._source.ask(Question.of(self._lesson, batch, ids, logits_BC))
        parts = (
            answer.gradient_BC,
            answer.weights_MB,
            answer.loss_B,
            answer.fallback_B,
            answer.pull_MB,
            answer.lost_M,
        )
        return tuple(torch.from_numpy(np.array(part)).to(logits_BC.device) for part in parts)

    def _ask_whole(self, batch: Batch, logits_BC: Tensor) -> tuple[Tensor, ...]:
        parts = [torch.empty_like(logits_BC) for _ in range(batch.world)]
        dist.all_gather(parts, logits_BC.contiguous())
        classes, teachers = logits_BC.shape[1], len(self._lesson.teachers)
        widths = (classes, teachers, teachers, 1, 1, teachers)
        packed = logits_BC.new_empty(len(batch.every), sum(widths))
        if batch.rank == 0:
            gradient_BC, weights_MB, loss_B, fallback_B, pull_MB, lost_M = self._ask(
                batch, batch.every, torch.cat(parts)
            )
            ends = torch.stack([loss_B, fallback_B.float()], dim=1)
            lost_BM = lost_M.float().expand(len(batch.every), -1)
            packed = torch.cat([gradient_BC, weights_MB.T, pull_MB.T, ends, lost_BM], dim=1)
        dist.broadcast(packed, 0)
        mine = packed[batch.rank * len(batch.ids) : (batch.rank + 1) * len(batch.ids)]
        gradient_BC, weights_BM, pull_BM, loss_B1, fallback_B1, lost_BM = mine.split(widths, dim=1)
        return (
            gradient_BC,
            weights_BM.T,
            loss_B1[:, 0],
            fallback_B1[:, 0] > 0.5,
            pull_BM.T,
            lost_BM[0] > 0.5,
        )
