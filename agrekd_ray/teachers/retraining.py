"""A debiased teacher is an ERM model with another last layer, whatever the kind."""

from __future__ import annotations

import copy
from functools import cached_property

import numpy as np
import torch
from torch import nn

from agrekd_ray.data import DFR, SELECT, Dataset, classes_missing, dfr_groups
from agrekd_ray.errors import AgrekdError, DataError, listed
from agrekd_ray.models import Classifier
from agrekd_ray.settings import Precision, Settings

# Each import registers a kind; they are listed in this order.
from agrekd_ray.teachers import dfr, afr, disagreement, pseudo  # noqa: F401  # isort: skip
from agrekd_ray.teachers.dfr import DfrSettings
from agrekd_ray.teachers.kinds import KINDS, Half, HeldOut, Kind
from agrekd_ray.training import predict


class Halves:
    """The halves of validation as a model sees them, computed once for all kinds.

    Args:
        model: an ERM model, on the device.
        dataset: whose groups are looked at for kinds that need them, and for no others.
        device: to compute on.
        precision: of the forward passes.
    """

    def __init__(
        self,
        model: Classifier,
        dataset: Dataset,
        device: torch.device | str = "cpu",
        precision: Precision = "auto",
    ) -> None:
        self.model, self._dataset = model, dataset
        self._device, self._precision = device, precision
        self._features: dict[str, np.ndarray] = {}

    @cached_property
    def layer(self) -> tuple[np.ndarray, np.ndarray]:
        """The model's own last layer, float64; only an exported program has none."""
        head = self.model.head
        assert isinstance(head, nn.Linear)
        weight_CD = head.weight.detach().cpu().double().numpy()
        if head.bias is None:
            return weight_CD, np.zeros(len(weight_CD))
        return weight_CD, head.bias.detach().cpu().double().numpy()

    def held_out(self, kind: Kind, twin: Classifier | None = None) -> HeldOut:
        """What a kind sees.

        Args:
            kind: the kind.
            twin: the biased model, on the device; None takes the model itself.

        Raises:
            DataError: a class has no sample in the DFR half.
        """
        if missing := classes_missing(self._dataset, DFR):
            raise DataError(
                f"{kind.label}: no sample of class {listed(repr(name) for name in missing)} in its "
                f"half of validation ({DFR}); give validation two samples of every class at least."
            )
        weight_CD, bias_C = self.layer
        fit = self._half(DFR, kind, twin)
        return HeldOut(fit, lambda: self._half(SELECT, kind, twin), weight_CD, bias_C)

    def _half(self, split: str, kind: Kind, twin: Classifier | None) -> Half:
        data = self._dataset
        ids = data.splits[split]
        if split not in self._features:
            self._features[split] = self._answers(self.model.backbone, ids).double().numpy()
        features_ND = self._features[split]
        if twin is not None:
            biased_N = self._answers(twin, ids).argmax(1).numpy()
        else:
            weight_CD, bias_C = self.layer
            biased_N = (features_ND @ weight_CD.T + bias_C).argmax(1)
        labels_N = data.labels(ids).numpy()
        if not kind.needs_groups:
            return Half(features_ND, labels_N, biased_N)
        evaluated_N = data.groups.group_N[ids]
        return Half(features_ND, labels_N, biased_N, dfr_groups(data, split)[0], evaluated_N)

    def _answers(self, module: nn.Module, ids: np.ndarray) -> torch.Tensor:
        return predict(module, self._dataset, ids, device=self._device, precision=self._precision)


def retrained(
    halves: Halves, kind: Kind, settings: Settings, seed: int, twin: Classifier | None = None
) -> Classifier:
    """A copy of a model with a last layer that a kind of debiasing makes.

    Args:
        halves: of the model.
        kind: of debiasing.
        settings: of that kind.
        seed: of everything random.
        twin: the biased model, for a kind that has one; None takes the model itself.

    Raises:
        AgrekdError: the model is an exported program, which has no head of its own, or training
            diverged.
        DataError: a class has no sample in the DFR half.
    """
    own = halves.model.head
    if not isinstance(own, nn.Linear):
        raise AgrekdError(
            f"{kind.label}: an exported program has no last layer of its own to retrain; import "
            "the model's state dict instead."
        )
    weight_CD, bias_C = kind.function(halves.held_out(kind, twin), settings, seed)
    head = nn.Linear(own.in_features, len(bias_C), device=own.weight.device)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight_CD))
        head.bias.copy_(torch.from_numpy(bias_C))
    return Classifier(copy.deepcopy(halves.model.backbone), head)


def retrain_head(
    model: Classifier,
    dataset: Dataset,
    settings: DfrSettings,
    seed: int,
    device: torch.device | str = "cpu",
    precision: Precision = "auto",
) -> Classifier:
    """A copy of the model with a last layer that DFR makes; errors as `retrained`."""
    halves = Halves(model, dataset, device, precision)
    return retrained(halves, KINDS["dfr"], settings, seed)
