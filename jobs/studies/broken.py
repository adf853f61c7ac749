"""Broken teachers for jobs/studies/guard.yaml, as kinds of teachers: last layers that go wrong.

Each takes an ERM model of the pool, whose features stay, so every draw has broken teachers of its
own.
"""

import numpy as np

import agrekd_ray as ak


@ak.debiased("untrained", "untrained")
def untrained(held_out, *, seed: int):
    """A last layer of the weights that training would begin with: answers of chance."""
    classes, features = held_out.weight_CD.shape
    most = features**-0.5
    rng = np.random.default_rng((seed, 1))
    return rng.uniform(-most, most, (classes, features)), rng.uniform(-most, most, classes)


@ak.debiased("shuffled", "labels shuffled")
def shuffled(held_out, *, seed: int, inverse_penalty: float = 100.0):
    """A last layer fitted to labels in another order: sure of itself, and as good as chance."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.random.default_rng((seed, 2)).permutation(held_out.fit.labels_N)
    scaler, layer = StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=1000)
    make_pipeline(scaler, layer).fit(held_out.fit.features_ND, labels)
    weight, bias = layer.coef_, layer.intercept_
    if len(weight) == 1:  # of two classes it has one row
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    return weight, bias - weight @ scaler.mean_


@ak.debiased("reordered", "classes reordered")
def reordered(held_out, *, seed: int, rotate_by: int = 0):
    """The ERM layer with the first two classes exchanged, or all of them moved on by so many."""
    order = np.arange(held_out.classes)
    order[:2] = order[1::-1]
    if rotate_by:
        order = np.roll(np.arange(held_out.classes), rotate_by)
    return held_out.weight_CD[order], held_out.bias_C[order]
