"""Evaluation by group, and the record of who taught whom. The only readers of group labels here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agrekd_ray.core.diagnostics import CALIBRATION_BINS, agreement_cases, reliability
from agrekd_ray.core.gradient import DistillationGradient, required
from agrekd_ray.core.groups import group_metrics
from agrekd_ray.core.selection import Answers, scores
from agrekd_ray.data import TRAIN, Dataset, Groups, Samples
from agrekd_ray.errors import RunError
from agrekd_ray.models.classifier import seen_shape
from agrekd_ray.numerics import computing_in, numbers_on
from agrekd_ray.results import Agreement, Bin, Metrics, SplitAgreement
from agrekd_ray.settings import Precision
from agrekd_ray.training.loader import Loader, Request, lengths_of
from agrekd_ray.training.loop import DIVERGED

_VALUES, _VALUES_ON_GPU = 1 << 24, 1 << 26
"""Numbers of a batch's inputs, at most: so that the features of large images fit into memory."""
_NUMBERS_A_TOKEN = 256
"""How a token of a text counts among them."""
_MOST_ON_GPU = 8192
"""Samples that any GPU is full of."""


def filling(shape: tuple[int, ...]) -> int:
    """Samples of a shape that fill a GPU in a forward pass without gradients."""
    numbers = math.prod(shape) * (_NUMBERS_A_TOKEN if len(shape) == 1 else 1)
    return max(1, min(_MOST_ON_GPU, _VALUES_ON_GPU // numbers))


@torch.inference_mode()
def predict(
    model: nn.Module,
    samples: Samples,
    ids: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    loader: Loader | None = None,
    precision: Precision = "auto",
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """Logits of the evaluation view, float32 [N, C] on the CPU. Leaves the model's mode alone.

    Of several workers each computes every `world`-th batch, and has zeros in the others' rows: the
    sum over the workers is the whole. The batches are those of one worker, and so are the logits,
    to the last bit; only where there are fewer batches than workers are they made smaller.

    Args:
        model: on the device.
        samples: the data set.
        ids: of the N samples.
        device: to compute on.
        loader: of these samples to that device; None makes one.
        precision: of the forward passes.
        rank: this worker, of `world` that share the N samples.
        world: how many these are.

    Raises:
        RunError: the device does not compute in that precision.
    """
    loader = loader or Loader(samples, device, keeps=False)
    # Texts in smaller batches: their features are a thousand times larger than their ids.
    seen = seen_shape(model, samples.shape)
    most = 64 if len(seen) == 1 else 512
    batch_size = max(1, min(most, _VALUES // math.prod(seen)))
    if loader.device.type == "cuda":
        batch_size = filling(seen)
    if len(ids) <= batch_size * (world - 1):
        batch_size = max(1, math.ceil(len(ids) / world))
    lengths_N = lengths_of(samples, ids)
    # Texts by length, so that few are padded.
    order = np.arange(len(ids)) if lengths_N is None else np.argsort(lengths_N, kind="stable")
    parts = np.split(order, range(batch_size, len(ids), batch_size))[rank::world]
    was_training = model.training
    model.eval()
    numbers, logits = numbers_on(precision, loader.device), []
    for loaded in loader(Request(ids[part]) for part in parts):
        with computing_in(numbers, loader.device):
            logits.append(model(loaded.inputs).float())
    model.train(was_training)
    logits_NC = torch.zeros(len(ids), logits[0].shape[1] if logits else len(samples.classes))
    if parts:
        logits_NC[np.concatenate(parts)] = torch.cat(logits).cpu()
    return logits_NC


def score(
    dataset: Dataset, split: str, probabilities_NC: Tensor, predictions_N: Tensor | None = None
) -> Metrics:
    """Metrics of predictions for a whole split, in the order of its ids.

    Raises:
        RunError: a probability is NaN, as after a last step that was too long.
    """
    if broken := int(probabilities_NC.isnan().any(1).sum()):
        raise RunError(
            f"the model answers with NaN to {broken} of {len(probabilities_NC)} samples of "
            f"{split}. Where it was trained here, {DIVERGED}"
        )
    ids = dataset.splits[split]
    groups = dataset.groups
    overlapping_NK = groups.overlapping_NK
    figures = group_metrics(
        probabilities_NC,
        dataset.labels(ids),
        torch.from_numpy(groups.group_N[ids]),
        groups.names,
        groups.shares(dataset.splits[TRAIN]),
        predictions_N,
        None if overlapping_NK is None else torch.from_numpy(overlapping_NK[ids]),
        groups.overlapping,
    )
    if not groups.known:
        del figures["coverage"]["groups"]
    return Metrics(groups_known=groups.known, **figures)


def calibration(
    dataset: Dataset, split: str, probabilities_NC: Tensor, predictions_N: Tensor | None = None
) -> list[Bin]:
    """Reliability diagram of predictions for a whole split; arguments as `score`."""
    confidence_N, answers_N = probabilities_NC.double().max(1)
    if predictions_N is not None:
        answers_N = predictions_N
    correct_N = answers_N == dataset.labels(dataset.splits[split])
    found = zip(*(part.tolist() for part in reliability(confidence_N, correct_N)), strict=True)
    return [
        Bin(place / CALIBRATION_BINS, (place + 1) / CALIBRATION_BINS, count, confidence, accuracy)
        for place, (count, confidence, accuracy) in enumerate(found)
        if count
    ]


def agreement(dataset: Dataset, split: str, ensemble_N: Tensor, biased_N: Tensor) -> SplitAgreement:
    """How an ensemble's vote stands to the biased model's answers on a whole split.

    Args:
        dataset: with groups.
        split: whose samples are answered.
        ensemble_N: classes that the teachers vote for, in the order of the split's ids.
        biased_N: classes that the biased model names.
    """
    ids, groups = dataset.splits[split], dataset.groups
    labels_N = dataset.labels(ids)
    group_N = torch.from_numpy(groups.group_N[ids]).long()

    def by_name(names: Sequence[str], member_NG: Tensor) -> dict[str, Agreement]:
        cases_G4 = agreement_cases(ensemble_N, biased_N, labels_N, member_NG)
        return {
            name: Agreement(sum(cases), *(count / sum(cases) for count in cases))
            for name, cases in zip(names, cases_G4.tolist(), strict=True)
            if sum(cases)
        }

    further_NK = groups.overlapping_NK
    return SplitAgreement(
        by_name([split], torch.ones(len(ids), 1, dtype=torch.bool))[split],
        by_name(groups.names, F.one_hot(group_N, len(groups.names)).bool()),
        {}
        if further_NK is None
        else by_name(groups.overlapping, torch.from_numpy(further_NK[ids])),
    )


class Judge:
    """Scores a student's answers by every selection rule whose needs are met.

    Args:
        dataset: with groups.
        split: whose samples are answered.
        ensemble_N: classes that the teachers vote for, in the order of the split's ids.
        biased_N: classes that the biased model names.
        confidence_N: its probabilities of the true classes; None where nobody asked for them.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        ensemble_N: np.ndarray,
        biased_N: np.ndarray,
        confidence_N: np.ndarray | None = None,
    ) -> None:
        ids = dataset.splits[split]
        self._known = {
            "labels_N": dataset.labels(ids),
            "groups_N": torch.from_numpy(dataset.groups.group_N[ids])
            if dataset.groups.known
            else None,
            "ensemble_N": torch.from_numpy(ensemble_N),
            "biased_N": torch.from_numpy(biased_N),
            "confidence_N": None if confidence_N is None else torch.from_numpy(confidence_N),
        }

    def __call__(self, probabilities_NC: Tensor) -> dict[str, float]:
        """The scores, by rule."""
        return scores(Answers(probabilities_NC.argmax(1), **self._known))


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: str,
    device: torch.device | str = "cpu",
    precision: Precision = "auto",
) -> Metrics:
    """Metrics of a model, which is on the device, on a split."""
    ids = dataset.splits[split]
    logits_NC = predict(model, dataset, ids, device=device, precision=precision)
    return score(dataset, split, logits_NC.softmax(1))


@dataclass(frozen=True)
class TeacherWeightStats:
    """Who taught whom over an epoch; the fields are those of `Epoch`, which explains them."""

    weights: dict[str, dict[str, float]] = field(default_factory=dict)
    fallback_share: float = 0.0
    fallback_by_group: dict[str, float] = field(default_factory=dict)
    influence: dict[str, float] = field(default_factory=dict)
    influence_by_group: dict[str, dict[str, float]] = field(default_factory=dict)
    lost_steps: dict[str, int] = field(default_factory=dict)


class TeacherWeightRecorder:
    """Sums up an epoch's teaching by group of the training samples (an `Observer`).

    A teacher's influence is the sum of its pulls (`core.diagnostics.pulls`) over that of all
    teachers. So a sample counts by the length of its gradient: one on which the teachers cancel
    out, or which the student has learned, moves nothing and says nothing.

    Args:
        groups: that are reported, of all samples by id.
        teachers: names, in the order of the weights.
        device: where the steps are made, and added up.
    """

    def __init__(
        self, groups: Groups, teachers: tuple[str, ...], device: torch.device | str = "cpu"
    ) -> None:
        self._group_N = torch.from_numpy(groups.group_N).to(device)
        self._names = groups.names
        self._teachers = teachers
        # Rows: groups. Columns: weights and pulls of each teacher, samples, those in the 0/0 case.
        # float32 does not count beyond 2^24 samples, and adds weights up long before with errors.
        shape = (len(self._names), 2 * len(teachers) + 2)
        self._sums = torch.zeros(shape, dtype=torch.float64, device=device)
        # Steps that each teacher was lost in, and all steps.
        self._steps = torch.zeros(len(teachers) + 1, dtype=torch.float64, device=device)

    def observe(self, ids_B: Tensor, guided: DistillationGradient, steps: int) -> None:
        """Add some steps, on the device where they were made."""
        if guided.weights_MB is None:
            return
        parts_KB = (
            guided.weights_MB,
            required(guided.pull_MB),
            torch.ones_like(required(guided.loss_B))[None],
            required(guided.fallback_B)[None],
        )
        rows_BK = torch.cat([part.double() for part in parts_KB]).T
        self._sums.index_add_(0, self._group_N[ids_B], rows_BK)
        self._steps[-1] += steps
        if guided.lost_M is not None:
            self._steps[:-1] += guided.lost_M

    def state(self) -> Tensor:
        """What was taught since the last time, float64 [K]."""
        return torch.cat([self._sums.flatten(), self._steps])

    def take_up(self, state_K: Tensor) -> None:
        """Go on from a `state`."""
        sums, steps = state_K.to(self._sums.device).split([self._sums.numel(), len(self._steps)])
        self._sums, self._steps = sums.view_as(self._sums).clone(), steps.clone()

    def close(self, total: Callable[[Tensor], Tensor]) -> TeacherWeightStats:
        """What was taught since the last time, over all workers; starts anew.

        Args:
            total: sums a tensor over the workers.
        """
        mine = float(self._steps[-1])
        sums, steps = total(self._sums).cpu(), total(self._steps).cpu()
        self._sums, self._steps = torch.zeros_like(self._sums), torch.zeros_like(self._steps)
        M = len(self._teachers)
        weights_GM, pull_GM, seen_G, fallback_G = (
            sums[:, :M],
            sums[:, M : 2 * M],
            sums[:, -2],
            sums[:, -1],
        )
        if not seen_G.sum():
            return TeacherWeightStats()
        seen = [g for g, count in enumerate(seen_G.tolist()) if count]
        moved = [g for g, length in enumerate(pull_GM.sum(1).tolist()) if length > 0]
        return TeacherWeightStats(
            weights={self._names[g]: self._shares(weights_GM[g] / seen_G[g]) for g in seen},
            fallback_share=float(fallback_G.sum() / seen_G.sum()),
            fallback_by_group={self._names[g]: float(fallback_G[g] / seen_G[g]) for g in seen},
            influence=self._shares(pull_GM.sum(0) / pull_GM.sum()) if moved else {},
            influence_by_group={
                self._names[g]: self._shares(pull_GM[g] / pull_GM[g].sum()) for g in moved
            },
            lost_steps={
                name: math.ceil(lost)  # of two workers, one may have missed it a step earlier
                for name, lost in self._shares(steps[:-1] * mine / steps[-1]).items()
                if lost
            },
        )

    def _shares(self, share_M: Tensor) -> dict[str, float]:
        return dict(zip(self._teachers, share_M.tolist(), strict=True))
