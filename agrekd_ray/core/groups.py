"""Accuracy by group, what is derived from it, and the ensemble's vote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agrekd_ray.core.diagnostics import reliability
from agrekd_ray.core.kd import check_labels, floating
from agrekd_ray.core.registry import Registry


@dataclass(frozen=True)
class Measure:
    """What is measured of every group beside its accuracy.

    Attributes:
        label: as people read it.
        of: takes probabilities [n, C] and labels [n] of the samples of one group.
        unit: `%` for a share in [0, 1], else nothing.
        less_is_better: whether its smallest value is the best.
    """

    label: str
    of: Callable[[Tensor, Tensor], Tensor | float]
    unit: str = "%"
    less_is_better: bool = False


MEASURES: Registry[Measure] = Registry("metric")
"""By name. Whatever is in here is in records, tables, files and MLflow, for every group."""


def metric(
    label: str, unit: str = "%", less_is_better: bool = False
) -> Callable[[Callable[[Tensor, Tensor], Tensor | float]], Callable[[Tensor, Tensor], Any]]:
    """Registers a function of probabilities and labels as a measure under its name.

    Args:
        label: as people read it.
        unit: `%` for a share in [0, 1], else nothing.
        less_is_better: whether its smallest value is the best.
    """

    def register(of: Callable[[Tensor, Tensor], Tensor | float]) -> Callable[..., Any]:
        MEASURES.add(of.__name__, Measure(label, of, unit, less_is_better), of)
        return of

    return register


@torch.no_grad()
def group_metrics(
    probabilities_NC: Tensor,
    labels_N: Tensor,
    groups_N: Tensor,
    group_names: Sequence[str],
    train_shares_G: Sequence[float] | Tensor,
    predictions_N: Tensor | None = None,
    overlapping_NK: Tensor | None = None,
    overlapping_names: Sequence[str] = (),
) -> dict[str, Any]:
    """How well predictions do, overall, by group and by class, and how well calibrated they are.

    Groups and classes without a sample are left out of every minimum and mean; `coverage` says how
    many there were to leave out.

    Args:
        probabilities_NC: [N, C], rows of sum 1.
        labels_N: [N], integers in 0 … C − 1.
        groups_N: [N], integers in 0 … G − 1.
        group_names: G names.
        train_shares_G: shares of the groups in the training split, [G]; renormalised over the
            groups that are present.
        predictions_N: [N] classes, where they are not the most probable ones.
        overlapping_NK: membership in further groups, of which a sample may be in several, bool
            [N, K].
        overlapping_names: their K names.

    Returns:
        Shares in [0, 1] by name: `accuracy`, `worst_group_accuracy`, `weighted_accuracy` (mean of
        the groups, weighted by their training shares), `balanced_accuracy` (mean of the classes),
        `worst_class_accuracy`, `ece` (expected calibration error, 15 equal-width bins of the
        largest probability, Guo et al. 2017); then `groups` (accuracy by name), `counts`, and
        `coverage`: of the `groups`, the `classes` and the `overlapping groups`, how many have a
        sample, and how many there are; where there are overlapping groups with a sample, also
        `overlapping` (accuracy by name) and `worst_overlapping_group_accuracy`; and `by_group`:
        of each of `MEASURES`, the value by name of the group.

    Raises:
        ValueError: for no samples, NaN, rows that are not probabilities, shapes that differ,
            labels, groups or predictions out of range, shares that are negative or all 0 for the
            groups present, membership that is no bool [N, K].
    """
    probabilities_NC = _checked_probabilities(probabilities_NC)
    N, C = probabilities_NC.shape
    G = len(group_names)
    check_labels(labels_N, N, C)
    shares_G = torch.as_tensor(train_shares_G, dtype=torch.float64).cpu()
    if shares_G.shape != (G,) or not bool((shares_G >= 0).all()):
        raise ValueError(f"train_shares_G must be {G} numbers, none negative, one for each group")
    check_labels(groups_N, N, G, "groups")
    confidence_N, most_probable_N = probabilities_NC.max(1)
    if predictions_N is None:
        predictions_N = most_probable_N
    else:
        check_labels(predictions_N, N, C, "predictions")
    correct_N = (predictions_N.cpu() == labels_N.cpu()).double()

    groups_N = groups_N.cpu().long()
    accuracy_G, count_G = accuracy_by(groups_N, correct_N, G)
    accuracy_C, count_C = accuracy_by(labels_N.cpu().long(), correct_N, C)
    present_G = count_G > 0
    present_shares_G = shares_G * present_G
    if not float(present_shares_G.sum()) > 0:
        raise ValueError("no group of this split has a share of the training split")
    weights_G = present_shares_G / present_shares_G.sum()
    present = present_G.nonzero().flatten().tolist()
    classes_C = accuracy_C[count_C > 0]
    coverage = {"groups": (len(present), G), "classes": (len(classes_C), C)}
    further: dict[str, Any] = {}
    if overlapping_NK is not None:
        further = _overlapping(overlapping_NK, overlapping_names, correct_N)
        some = further.get("overlapping", {})
        coverage["overlapping groups"] = (len(some), len(overlapping_names))
    return {
        "accuracy": float(correct_N.mean()),
        "worst_group_accuracy": float(accuracy_G[present_G].min()),
        "weighted_accuracy": float((weights_G * accuracy_G)[present_G].sum()),
        "balanced_accuracy": float(classes_C.mean()),
        "worst_class_accuracy": float(classes_C.min()),
        "ece": _calibration_error(confidence_N, correct_N),
        "groups": {group_names[g]: float(accuracy_G[g]) for g in present},
        "counts": {group_names[g]: int(count_G[g]) for g in present},
        "coverage": coverage,
        "by_group": {
            name: {
                group_names[g]: float(measure.of(probabilities_NC[at_N], labels_N.cpu()[at_N]))
                for g in present
                for at_N in (groups_N == g,)
            }
            for name, measure in MEASURES.items()
        },
        **further,
    }


@torch.no_grad()
def majority_vote(members: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The answer of an ensemble that votes (the paper's Deep Ensemble).

    Args:
        members: logits of each, [N, C]; one is looked at at a time, so they need not all be in
            memory.

    Returns:
        Mean softmax of the members, [N, C], in float32 or better; and the class that most members
        name, [N]. Of classes with equally many votes, the one of the largest mean probability.

    Raises:
        ValueError: for another shape, no member, no class, or NaN.
    """
    total_NC = votes_NC = None
    count = 0
    for logits_NC in members:
        if logits_NC.ndim != 2 or not logits_NC.shape[1]:
            raise ValueError(f"logits of a member must be [N, C], not {list(logits_NC.shape)}")
        if torch.isnan(logits_NC).any():
            raise ValueError("the members' logits hold NaN")
        probabilities_NC = floating(logits_NC).softmax(-1)
        if total_NC is None or votes_NC is None:
            total_NC = torch.zeros_like(probabilities_NC)
            votes_NC = torch.zeros_like(probabilities_NC, dtype=torch.int32)
        total_NC += probabilities_NC
        named_N1 = logits_NC.argmax(-1, keepdim=True)
        votes_NC.scatter_add_(1, named_N1, votes_NC.new_ones(named_N1.shape))
        count += 1
    if total_NC is None or votes_NC is None:
        raise ValueError("there are no logits: an ensemble has a member at least")
    mean_NC = total_NC / count
    leading_NC = votes_NC == votes_NC.amax(1, keepdim=True)
    return mean_NC, torch.where(leading_NC, mean_NC, -1.0).argmax(1)


def accuracy_by(key_N: Tensor, correct_N: Tensor, kinds: int) -> tuple[Tensor, Tensor]:
    """Accuracy (NaN where there is no sample) and number of samples by kind."""
    count = torch.bincount(key_N, minlength=kinds)
    return torch.bincount(key_N, weights=correct_N, minlength=kinds) / count, count


def _overlapping(member_NK: Tensor, names: Sequence[str], correct_N: Tensor) -> dict[str, Any]:
    """Accuracy by group where a sample may be in several, and the smallest of them."""
    if member_NK.shape != (len(correct_N), len(names)) or member_NK.dtype != torch.bool:
        raise ValueError(f"overlapping_NK must be bool [{len(correct_N)}, {len(names)}]")
    member_NK = member_NK.cpu().double()
    count_K = member_NK.sum(0)
    accuracy_K = (correct_N @ member_NK) / count_K
    found = {names[k]: float(accuracy_K[k]) for k in count_K.nonzero().flatten().tolist()}
    if not found:
        return {}
    return {"overlapping": found, "worst_overlapping_group_accuracy": min(found.values())}


def _calibration_error(confidence_N: Tensor, correct_N: Tensor) -> float:
    """Mean distance of accuracy and confidence over the bins (lower, upper], by their samples."""
    count_K, confidence_K, accuracy_K = reliability(confidence_N, correct_N)
    gap_K = (accuracy_K - confidence_K).abs()
    return float((count_K * gap_K).nansum() / count_K.sum())


def _checked_probabilities(probabilities_NC: Tensor) -> Tensor:
    if probabilities_NC.ndim != 2 or not probabilities_NC.numel():
        raise ValueError(
            f"probabilities must be [N, C], not empty, not {list(probabilities_NC.shape)}"
        )
    values_NC = probabilities_NC.detach().cpu().double()
    if torch.isnan(values_NC).any():
        raise ValueError("the probabilities hold NaN")
    # Half precision sums to 1 only within a hundredth.
    if bool((values_NC < 0).any()) or bool(((values_NC.sum(1) - 1).abs() > 0.01).any()):
        raise ValueError("rows of probabilities must be 0 or above and sum to 1: are they logits?")
    return values_NC
