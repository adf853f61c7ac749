"""SELF: the last layer is trained on the samples where the ERM model and a twin disagree most.

LaBonte, Muthukumar, Kumar, "Towards Last-Layer Retraining for Group Robustness with Fewer
Annotations", NeurIPS 2023. The twin is the ERM model itself with dropout at its features, so that
nothing is trained a second time. Labels used: classes.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from agrekd_ray.errors import AgrekdError
from agrekd_ray.settings import Count, Momentum, NonNegative, Positive, Settings
from agrekd_ray.teachers.dfr import trained_by_batches
from agrekd_ray.teachers.kinds import HeldOut, Layer, best_layer, debiased


class SelfSettings(Settings):
    """How a last layer is trained on samples of disagreement.

    Attributes:
        samples: the numbers of samples that are tried, taken in equal parts of every class. With
            the two keys below they are crossed, and the selection half of validation decides, by
            the worst cell of label x whether the ERM model is right: no group label is used.
        dropout: the shares of features that are tried, which the twin is without.
        learning_rates: of SGD that are tried, from the ERM layer on.
        steps: of SGD, on batches with as many samples of every class.
        batch_size: samples a step.
        momentum: of SGD.
        weight_decay: L2 penalty.
    """

    samples: tuple[Count, ...] = Field(default=(20, 100, 500), min_length=1)
    dropout: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.5, 0.7, 0.9), min_length=1
    )
    learning_rates: tuple[Positive, ...] = Field(default=(1e-4, 1e-3, 1e-2), min_length=1)
    steps: Count = 250
    batch_size: Count = 32
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 1e-4


@debiased("self", "SELF", SelfSettings)
def disagreement(held_out: HeldOut, settings: SelfSettings, seed: int) -> Layer:
    """The last layer of the best number of samples, dropout and learning rate.

    Raises:
        AgrekdError: every learning rate diverged.
    """
    fit = held_out.fit
    layers = []
    for number, share in enumerate(settings.dropout):
        apart_N = divergence(held_out, share, np.random.default_rng((seed, number)))
        for rows in {len(r): r for r in _most(apart_N, fit.labels_N, settings.samples)}.values():
            for rate in settings.learning_rates:
                layer = trained_by_batches(
                    fit.features_ND[rows],
                    fit.labels_N[rows],
                    fit.labels_N[rows],
                    settings,
                    rate,
                    settings.steps,
                    seed,
                    (held_out.weight_CD, held_out.bias_C),
                )
                if all(np.isfinite(part).all() for part in layer):
                    layers.append(layer)
    if not layers:
        raise AgrekdError(
            "SELF: every last layer diverged; lower teachers.self.learning_rates "
            f"(the least is {min(settings.learning_rates):g})."
        )
    return best_layer(layers, held_out.select)


def divergence(held_out: HeldOut, dropout: float, rng: np.random.Generator) -> np.ndarray:
    """KL divergence [N] of the twin's probabilities from the ERM model's, on the fitted half.

    Args:
        held_out: samples, and the ERM layer.
        dropout: share of the features that the twin is without; the others are scaled up.
        rng: draws them for every sample.
    """
    from scipy.special import rel_entr, softmax  # a tenth of a second that few processes need

    features_ND = held_out.fit.features_ND
    kept_ND = (rng.random(features_ND.shape) >= dropout) / (1 - dropout)
    ours_NC, twins_NC = (
        softmax(shown_ND @ held_out.weight_CD.T + held_out.bias_C, 1)
        for shown_ND in (features_ND, features_ND * kept_ND)
    )
    apart_N: np.ndarray = rel_entr(ours_NC, np.maximum(twins_NC, np.finfo(float).tiny)).sum(1)
    return apart_N


def _most(apart_N: np.ndarray, labels_N: np.ndarray, counts: tuple[int, ...]) -> list[np.ndarray]:
    """Rows of most disagreement, as many of every class, for each number of samples.

    A class that has fewer samples gives all of them; a class gives one at least.
    """
    order_N = np.argsort(-apart_N, kind="stable")
    present = np.unique(labels_N)
    by_class = [order_N[labels_N[order_N] == label] for label in present]
    each = [max(1, count // len(present)) for count in counts]
    return [np.sort(np.concatenate([rows[:most] for rows in by_class])) for most in each]
