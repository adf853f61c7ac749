"""Evaluation by group, and the record of who taught whom. The only readers of group labels here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from agrekd_ray.core.groups import group_metrics
from agrekd_ray.core.selection import Answers, scores
from agrekd_ray.data import TRAIN, Dataset, Samples
from agrekd_ray.results import Metrics
from agrekd_ray.training.batches import Batch
from agrekd_ray.training.loop import Taught


@torch.inference_mode()
def predict(
    model: nn.Module,
    samples: Samples,
    ids: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 512,
) -> Tensor:
    """Logits of the evaluation view, float32 [N, C] on the CPU. Leaves the model's mode alone."""
    was_training = model.training
    model.eval()
    logits = [
        model(samples.inputs(part, None).to(device)).float().cpu()
        for part in np.split(ids, range(batch_size, len(ids), batch_size))
    ]
    model.train(was_training)
    return torch.cat(logits)


def score(
    dataset: Dataset, split: str, probabilities_NC: Tensor, predictions_N: Tensor | None = None
) -> Metrics:
    """Metrics of predictions for a whole split, in the order of its ids."""
    ids = dataset.splits[split]
    groups = dataset.groups
    overlapping_NK = groups.overlapping_NK
    return Metrics(
        groups_known=groups.known,
        **group_metrics(
            probabilities_NC,
            dataset.labels(ids),
            torch.from_numpy(groups.group_N[ids]),
            groups.names,
            groups.shares(dataset.splits[TRAIN]),
            predictions_N,
            None if overlapping_NK is None else torch.from_numpy(overlapping_NK[ids]),
            groups.overlapping,
        ),
    )


class Judge:
    """Scores a student's answers by every selection rule whose needs are met.

    Args:
        dataset: with groups.
        split: whose samples are answered.
        ensemble_N: classes that the teachers vote for, in the order of the split's ids.
        biased_N: classes that the biased model names.
    """

    def __init__(
        self, dataset: Dataset, split: str, ensemble_N: np.ndarray, biased_N: np.ndarray
    ) -> None:
        ids = dataset.splits[split]
        self._known = {
            "labels_N": dataset.labels(ids),
            "groups_N": torch.from_numpy(dataset.groups.group_N[ids])
            if dataset.groups.known
            else None,
            "ensemble_N": torch.from_numpy(ensemble_N),
            "biased_N": torch.from_numpy(biased_N),
        }

    def __call__(self, probabilities_NC: Tensor) -> dict[str, float]:
        """The scores, by rule."""
        return scores(Answers(probabilities_NC.argmax(1), **self._known))


def evaluate(
    model: nn.Module, dataset: Dataset, split: str, device: torch.device | str = "cpu"
) -> Metrics:
    """Metrics of a model on a split."""
    logits_NC = predict(model, dataset, dataset.splits[split], device=device)
    return score(dataset, split, logits_NC.softmax(1))


class TeachingRecord:
    """Mean weight of each teacher by group of the training samples, over an epoch (an `Observer`).

    Args:
        dataset: whose groups are reported.
        teachers: names, in the order of the weights.
    """

    def __init__(self, dataset: Dataset, teachers: tuple[str, ...]) -> None:
        self._group_N = torch.from_numpy(dataset.groups.group_N)
        self._names = dataset.groups.names
        self._teachers = teachers
        # Rows: groups. Columns: sum of each teacher's weights, samples, samples in the 0/0 case.
        self._sums = torch.zeros(len(self._names), len(teachers) + 2)

    def observe(self, batch: Batch, taught: Taught) -> None:
        """Add one step."""
        if taught.weights_MB is None or taught.fallback_B is None:
            return
        columns = torch.cat(
            [
                taught.weights_MB.cpu().T,
                torch.ones(len(batch.ids), 1),
                taught.fallback_B.cpu().float()[:, None],
            ],
            dim=1,
        )
        self._sums.index_add_(0, self._group_N[torch.from_numpy(batch.ids)], columns)

    def close(self, total: Callable[[Tensor], Tensor]) -> tuple[dict[str, dict[str, float]], float]:
        """Weights by group and teacher, and the share of samples in the 0/0 case; starts anew."""
        sums = total(self._sums)
        self._sums = torch.zeros_like(self._sums)
        seen = sums[:, -2]
        if not seen.sum():
            return {}, 0.0
        weights = {
            name: dict(zip(self._teachers, (row[:-2] / row[-2]).tolist(), strict=True))
            for name, row in zip(self._names, sums, strict=True)
            if row[-2]
        }
        return weights, float(sums[:, -1].sum() / seen.sum())
