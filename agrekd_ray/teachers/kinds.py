"""Kinds of debiased teachers: an ERM model's last layer, trained anew on held-out samples.

A kind is one function under `@debiased(...)`: from features that are computed once to a layer. Its
settings are a block of a job's `teachers` under its name (`TeacherSettings`); reports, plots and
`ensemble.debiased` know it from the registry alone. A plugin's kinds are no different.

Shapes: N samples, D features, C classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from agrekd_ray.core.registry import Registry
from agrekd_ray.settings import Settings, options_of

ERM, OWN = "erm", "own"
"""What is not debiased: models trained on the labels, and checkpoints handed in."""
Layer = tuple[np.ndarray, np.ndarray]
"""Coefficients [C, D] and intercepts [C] of a last layer, float64."""


@dataclass(frozen=True, eq=False)
class Half:
    """What is known of the samples of one half of validation.

    Attributes:
        features_ND: of the ERM model's backbone, float64.
        labels_N: classes.
        biased_N: classes that the biased model names: the ERM model, or its twin.
        groups_N: class x spurious attribute; None for kinds that need no groups.
        evaluated_N: evaluation groups; None for kinds that need no groups.
    """

    features_ND: np.ndarray
    labels_N: np.ndarray
    biased_N: np.ndarray
    groups_N: np.ndarray | None = None
    evaluated_N: np.ndarray | None = None

    @property
    def mistaken(self) -> np.ndarray:
        """Whether the biased model is wrong."""
        return self.biased_N != self.labels_N

    @property
    def cells(self) -> np.ndarray:
        """Pseudo-groups: label x whether the biased model is right."""
        return 2 * self.labels_N + self.mistaken


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a last layer is retrained with.

    Attributes:
        fit: the half that trains it.
        load_select: gives the half that chooses settings, which not every kind looks at.
        weight_CD: coefficients of the ERM model's own layer.
        bias_C: its intercepts.
    """

    fit: Half
    load_select: Callable[[], Half]
    weight_CD: np.ndarray
    bias_C: np.ndarray

    @cached_property
    def select(self) -> Half:
        """The half that chooses settings."""
        return self.load_select()

    @property
    def classes(self) -> int:
        """The number C of classes."""
        return len(self.bias_C)


@dataclass(frozen=True)
class Kind:
    """A way of debiasing a teacher.

    Attributes:
        name: of the kind, as jobs write it, of its block of settings, and of its teachers.
        label: as people read it.
        settings: of the retraining; a block whose keys all have a default.
        function: from held-out samples, settings and a seed to a layer.
        needs_groups: whether it sees group labels; the others see classes alone.
        has_twin: whether the biased model is the ERM model of the pool's next seed, where there is
            one, and not the retrained model itself.
    """

    name: str
    label: str
    settings: type[Settings]
    function: Callable[[HeldOut, Any, int], Layer]
    needs_groups: bool
    has_twin: bool

    @property
    def labels(self) -> str:
        """The labels that it takes, in a word."""
        return "groups" if self.needs_groups else "classes"


KINDS: Registry[Kind] = Registry("kind of debiased teachers")
Function = TypeVar("Function", bound=Callable[..., Layer])


def debiased(
    name: str,
    label: str = "",
    settings: type[Settings] | None = None,
    *,
    needs_groups: bool = False,
    has_twin: bool = False,
) -> Callable[[Function], Function]:
    """Registers the decorated function as a kind; arguments as the attributes of `Kind`.

    With `settings` it is called as `function(held_out, settings, seed)`. Without, as
    `function(held_out, seed=seed, ...)`, and its further keyword-only arguments are the settings.

    Args:
        name: see `Kind`.
        label: see `Kind`; the name where there is none.
        settings: see `Kind`.
        needs_groups: see `Kind`.
        has_twin: see `Kind`.

    Raises:
        ValueError: the name is another's, or a setting has no default.
    """

    def register(function: Function) -> Function:
        called: Callable[..., Layer] = _by_keywords(function) if settings is None else function
        block = settings or _block(name, function)
        KINDS.add(name, Kind(name, label or name, block, called, needs_groups, has_twin), function)
        return function

    return register


def _block(name: str, function: Callable[..., Layer]) -> type[Settings]:
    """The settings of a kind, out of the signature of its function."""
    parameters = inspect.signature(function).parameters.values()
    options = {
        p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "seed"
    }
    if inspect.Parameter.empty in options.values():
        raise ValueError(f"kind {name!r}: every option but seed needs a default")
    return options_of(name, function, options)


def _by_keywords(function: Callable[..., Layer]) -> Callable[[HeldOut, Settings, int], Layer]:
    return lambda held_out, settings, seed: function(held_out, seed=seed, **dict(settings))


def family(kind: str) -> str:
    """What teachers of one kind have in common, in words: `debiased (AFR)`."""
    if kind in KINDS:
        return f"debiased ({KINDS[kind].label})"
    return {ERM: "biased (ERM)", OWN: "own checkpoints"}.get(kind, kind)


def worst_cell(right_N: np.ndarray, cells_N: np.ndarray) -> tuple[float, float]:
    """Smallest and mean accuracy over cells of samples, to choose a setting by.

    With few samples the smallest is often the same for many settings; the mean then decides.

    Args:
        right_N: whether each sample is right.
        cells_N: the cell of each, as whole numbers.
    """
    count_K = np.bincount(cells_N)
    accuracy_K = np.bincount(cells_N, weights=right_N)[count_K > 0] / count_K[count_K > 0]
    return float(accuracy_K.min()), float(accuracy_K.mean())


def best_layer(layers: Sequence[Layer], select: Half) -> Layer:
    """The layer with the best `worst_cell` of label x whether the biased model is right.

    Which labels are used: classes. The first one wins where several are level.
    """

    def score(layer: Layer) -> tuple[float, float]:
        weight_CD, bias_C = layer
        named_N = (select.features_ND @ weight_CD.T + bias_C).argmax(1)
        return worst_cell(named_N == select.labels_N, select.cells)

    return max(layers, key=score)
