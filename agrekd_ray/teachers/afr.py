"""Automatic feature reweighting: held-out samples count by how little the ERM model believes them.

Qiu, Potapczynski, Izmailov, Wilson, "Simple and Fast Group Robustness by Automatic Feature
Reweighting", ICML 2023. Labels used: classes.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from agrekd_ray.settings import Count, NonNegative, Settings
from agrekd_ray.teachers.kinds import HeldOut, Layer, best_layer, debiased


class AfrSettings(Settings):
    """How a last layer is trained on reweighted samples.

    Attributes:
        gammas: the values of γ that are tried, by which a sample counts less the more the ERM model
            believes its label; 0 leaves the classes balanced alone. With the penalties they are
            crossed, and the selection half of validation decides, by the worst cell of label x
            whether the ERM model is right: no group label is used.
        penalties: the values of λ that are tried, of the squared distance to the ERM layer.
        iterations: of L-BFGS, at most; the paper goes 500 steps down the gradient.
    """

    gammas: tuple[NonNegative, ...] = Field(default=(1.0, 2.0, 4.0, 8.0, 16.0), min_length=1)
    penalties: tuple[NonNegative, ...] = Field(default=(0.0, 0.1, 0.2, 0.3, 0.4), min_length=1)
    iterations: Count = 500


def afr_weights(confidence_N: np.ndarray, labels_N: np.ndarray, gamma: float) -> np.ndarray:
    """Weights of the samples, of sum 1: proportional to β_y exp(-γ p) (Qiu et al. 2023).

    Args:
        confidence_N: p, the ERM model's probabilities of the true classes.
        labels_N: the true classes; β_y is 1 over the number of samples of class y.
        gamma: γ.
    """
    weights_N = np.exp(-gamma * confidence_N) / np.bincount(labels_N)[labels_N]
    normalised: np.ndarray = weights_N / weights_N.sum()
    return normalised


@debiased("afr", "AFR", AfrSettings)
def afr(held_out: HeldOut, settings: AfrSettings, seed: int) -> Layer:
    """The last layer of the best γ and λ; it does not depend on the seed."""
    from scipy.special import softmax  # a tenth of a second that few processes need

    fit = held_out.fit
    probabilities_NC = softmax(fit.features_ND @ held_out.weight_CD.T + held_out.bias_C, 1)
    confidence_N = probabilities_NC[np.arange(len(fit.labels_N)), fit.labels_N]
    layers = []
    for gamma in settings.gammas:
        weights_N = afr_weights(confidence_N, fit.labels_N, gamma)
        layers += [
            minimum(held_out, weights_N, penalty, settings.iterations)
            for penalty in settings.penalties
        ]
    return best_layer(layers, held_out.select)


def minimum(
    held_out: HeldOut, weights_N: np.ndarray, penalty: float, iterations: int = 500
) -> Layer:
    """The layer of least Σ w_i cross-entropy_i + λ ||layer - ERM layer||².

    Args:
        held_out: samples, and the ERM layer, which it starts from.
        weights_N: w, of sum 1.
        penalty: λ.
        iterations: of L-BFGS, at most.
    """
    from scipy.optimize import minimize  # half a second that few processes need
    from scipy.special import log_softmax

    fit, classes = held_out.fit, held_out.classes
    # The intercept is the coefficient of a feature that is always 1.
    inputs_NE = np.concatenate([fit.features_ND, np.ones((len(fit.labels_N), 1))], axis=1)
    start_CE = np.concatenate([held_out.weight_CD, held_out.bias_C[:, None]], axis=1)
    rows_N = np.arange(len(fit.labels_N))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        layer_CE = flat.reshape(start_CE.shape)
        logs_NC = log_softmax(inputs_NE @ layer_CE.T, 1)
        cross_entropy_N = -logs_NC[rows_N, fit.labels_N]
        apart_CE = layer_CE - start_CE
        errors_NC = np.exp(logs_NC) - np.eye(classes)[fit.labels_N]
        gradient_CE = (weights_N[:, None] * errors_NC).T @ inputs_NE + 2 * penalty * apart_CE
        value = weights_N @ cross_entropy_N + penalty * (apart_CE**2).sum()
        return float(value), gradient_CE.ravel()

    found = minimize(
        loss, start_CE.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": iterations}
    )
    layer_CE = found.x.reshape(start_CE.shape)
    return layer_CE[:, :-1], layer_CE[:, -1]
