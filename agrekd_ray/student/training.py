"""The training of a module, with or without teachers: its epochs, their records, its answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from agrekd_ray.collectives import as_the_first
from agrekd_ray.data import SELECT, Dataset, Groups
from agrekd_ray.distillation import DistillationSpec, Distilled, Source
from agrekd_ray.results import Epoch
from agrekd_ray.settings import Training
from agrekd_ray.training import (
    Labels,
    Loader,
    TeacherWeightRecorder,
    TeacherWeightStats,
    Trainer,
    predict,
    score,
)


class StudentTraining:
    """Trains a module by the epoch, evaluates it after each, and records who taught it.

    Of several workers each does its part of both; the first one records.

    Args:
        model: of the student.
        dataset: whose groups evaluation reads, never the training.
        training: the settings.
        spec: how its teachers teach; None for the labels alone.
        source: where their answers come from; None for the labels alone.
        groups: of the training samples, by which the teachers' weights are reported; those of the
            data set by default.
        device: to train on.
        total: sums a tensor over the workers.
        look_ahead: coming batches that the teachers are told of.
        judge: scores its answers to the selection split after every epoch, from probabilities
            [N, C]; None where nothing is selected.
        further: arguments of `Trainer`: `seed`, `rank`, `world`, `wrap`.

    Attributes:
        history: a record of every epoch that is finished.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        training: Training,
        spec: DistillationSpec | None,
        source: Source | None,
        *,
        groups: Groups | None = None,
        device: torch.device | str = "cpu",
        total: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        look_ahead: int = 0,
        judge: Callable[[Tensor], dict[str, float]] | None = None,
        **further: Any,
    ) -> None:
        self._dataset, self._device, self._judge, self._total = dataset, device, judge, total
        self.history: list[Epoch] = []
        self._distilled = Distilled(spec, source, dataset) if spec and source else None
        self._loader = Loader(dataset, device)
        self._weights = (
            TeacherWeightRecorder(groups or dataset.groups, spec.teachers, device) if spec else None
        )
        self.trainer = Trainer(
            model.to(device),
            dataset,
            training,
            self._distilled or Labels(),
            loader=self._loader,
            total=total,
            observer=self._weights,
            look_ahead=look_ahead if spec else 0,
            **further,
        )

    @property
    def done(self) -> bool:
        """Whether all epochs are behind it."""
        return self.trainer.next_epoch >= self.trainer.training.epochs

    def epoch(self, keep: Callable[[], None] | None = None) -> Epoch | None:
        """Train the next epoch, then evaluate; the record is None on all workers but the first.

        Args:
            keep: see `Trainer.epoch`.
        """
        self.trainer.await_first()
        finished = self.trainer.epoch(keep)
        replayed, self.replayed = self.replayed, 0
        weights = self._weights.close(self._total) if self._weights else TeacherWeightStats()
        if self._first and self._distilled is not None:
            self._distilled.complete(finished.epoch)
        probabilities_NC = self.probabilities(SELECT)
        if not self._first:
            return None
        record = Epoch(
            finished.epoch,
            finished.loss,
            finished.learning_rate,
            finished.seconds,
            score(self._dataset, SELECT, probabilities_NC),
            selection=self._judge(probabilities_NC) if self._judge else {},
            steps=self.trainer.plan.steps_per_epoch,
            guidance_seconds=finished.guidance_seconds,
            replayed_steps=replayed,
            **vars(weights),
        )
        self.history.append(record)
        return record

    @property
    def replayed(self) -> int:
        """Steps of the epoch under way whose gradients came out of records."""
        return self._distilled.replayed if self._distilled is not None else 0

    @replayed.setter
    def replayed(self, steps: int) -> None:
        if self._distilled is not None:
            self._distilled.replayed = steps

    def probabilities(self, split: str) -> Tensor:
        """What the student answers to a split [N, C]; all workers share the work, and have it.

        It is the first worker's student that answers: its buffers differ from the others' where
        each has a batch norm of its own.
        """
        model, plan = self.trainer.model, self.trainer.plan
        as_the_first(model.buffers())
        return self._total(self._logits(model, split, plan.rank, plan.world)).softmax(1)

    def _logits(self, model: nn.Module, split: str, rank: int = 0, world: int = 1) -> Tensor:
        return predict(
            model,
            self._dataset,
            self._dataset.splits[split],
            loader=self._loader,
            precision=self.trainer.numbers,
            rank=rank,
            world=world,
        )

    @property
    def _first(self) -> bool:
        return self.trainer.plan.rank == 0
