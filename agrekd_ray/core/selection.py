"""What a setting may be selected on: rules by name, each with what it needs to know.

A rule looks at the student's answers to the selection half of the validation split and gives one
score in [0, 1], more is better. Worst-group accuracy needs group labels, which are rarely there
where they would be needed; two rules infer groups out of labels and the biased model's answers; the
rules at the end need no label at all: they hold the student against its teachers and that model. A
new rule is a function under `@selection_rule(...)`.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agrekd_ray.core.registry import Registry

GROUPS, LABELS, TEACHERS, CONFIDENCE = "groups", "labels", "teachers", "confidence"
"""What a rule can need; `teachers` are the ensemble's votes and the biased model's answers,
`confidence` is that of the biased model in the labels, and with it its loss."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a rule may look at.

    Attributes:
        student_N: classes that the student names.
        labels_N: the true classes, where they are known.
        groups_N: evaluation groups, where they are known.
        ensemble_N: classes that the teachers vote for, where there are teachers.
        biased_N: classes that the biased model names, where there are teachers.
        confidence_N: the biased model's probabilities of the true classes, where both are known.
    """

    student_N: Tensor
    labels_N: Tensor | None = None
    groups_N: Tensor | None = None
    ensemble_N: Tensor | None = None
    biased_N: Tensor | None = None
    confidence_N: Tensor | None = None


@dataclass(frozen=True)
class Rule:
    """A way of scoring a student for selection.

    Attributes:
        name: as searches write it.
        needs: what must be known of the samples; of `groups`, `labels`, `teachers`, `confidence`.
        summary: one line.
        function: from the answers to a score in [0, 1].
    """

    name: str
    needs: tuple[str, ...]
    summary: str
    function: Callable[[Answers], float]

    @property
    def label_free(self) -> bool:
        """Whether neither group labels nor labels are needed."""
        return not {GROUPS, LABELS} & set(self.needs)


RULES: Registry[Rule] = Registry("selection rule")


def selection_rule(
    name: str, *needs: str
) -> Callable[[Callable[[Answers], float]], Callable[..., float]]:
    """Registers the decorated function under a name; the docstring's first line is its summary."""

    def register(function: Callable[[Answers], float]) -> Callable[[Answers], float]:
        summary = (function.__doc__ or "").split("\n")[0]
        RULES.add(name, Rule(name, needs, summary, function), function)
        return function

    return register


def scores(answers: Answers) -> dict[str, float]:
    """The score of every rule whose needs are met, by name.

    Raises:
        ValueError: no sample, or parts of different lengths.
    """
    there = {
        GROUPS: answers.groups_N is not None,
        LABELS: answers.labels_N is not None,
        TEACHERS: answers.ensemble_N is not None and answers.biased_N is not None,
        CONFIDENCE: answers.confidence_N is not None,
    }
    parts = vars(answers).values()
    if len({len(part) for part in parts if part is not None}) != 1 or not len(answers.student_N):
        raise ValueError("the answers must be of the same samples, and of one at least")
    return {
        name: one.function(answers)
        for name, one in RULES.items()
        if all(there[need] for need in one.needs)
    }


@selection_rule("worst_group", GROUPS, LABELS)
def worst_group(answers: Answers) -> float:
    """Smallest accuracy of any group."""
    assert answers.groups_N is not None
    return _worst(_right(answers), answers.groups_N)


@selection_rule("worst_class", LABELS)
def worst_class(answers: Answers) -> float:
    """Smallest accuracy of any class."""
    assert answers.labels_N is not None
    return _worst(_right(answers), answers.labels_N)


@selection_rule("accuracy", LABELS)
def accuracy(answers: Answers) -> float:
    """Plain accuracy: what is selected on where nobody thinks of groups."""
    return float(_right(answers).mean())


@selection_rule("worst_label_biased", LABELS, TEACHERS)
def worst_label_biased(answers: Answers) -> float:
    """Smallest accuracy of any cell of label x what the biased model answers (uLA).

    Tsirigotis, Monteiro, Rodriguez, Vazquez, Courville, "Group Robust Classification Without Any
    Group Information", NeurIPS 2023, select by such cells of a biased model's predictions. Cells
    without a sample are left out; with C classes there are up to C² of them.
    """
    assert answers.labels_N is not None
    assert answers.biased_N is not None
    classes = 1 + int(answers.biased_N.max())
    return _worst(_right(answers), answers.labels_N * classes + answers.biased_N)


@selection_rule("worst_inferred", LABELS, CONFIDENCE)
def worst_inferred(answers: Answers) -> float:
    """Smallest accuracy of any environment inferred from the biased model's loss (EVaLS).

    Ghaznavi et al., "Trained Models Tell Us How to Make Them Robust to Spurious Correlation
    without Group Annotation", 2024, infer environments without a group label. Here a class is cut
    where the biased model's loss is above its median: two environments a class, one where all
    losses are the same.
    """
    assert answers.labels_N is not None
    assert answers.confidence_N is not None
    environment_N = 2 * answers.labels_N
    for label in answers.labels_N.unique():
        of_class_N = answers.labels_N == label
        # The loss is above its median where the confidence is below its own.
        median = answers.confidence_N[of_class_N].double().quantile(0.5)
        environment_N[of_class_N & (answers.confidence_N.double() < median)] += 1
    return _worst(_right(answers), environment_N)


@selection_rule("contradicted", TEACHERS)
def contradicted(answers: Answers) -> float:
    """Agreement with the teachers' vote where it contradicts the biased model.

    Those samples stand for the groups that the bias sacrifices. Where the vote and the biased
    model agree on everything, agreement over all samples.
    """
    assert answers.ensemble_N is not None
    assert answers.biased_N is not None
    agrees_N = _agrees(answers)
    against_N = answers.ensemble_N != answers.biased_N
    return float(agrees_N[against_N].mean() if bool(against_N.any()) else agrees_N.mean())


@selection_rule("worst_side", TEACHERS)
def worst_side(answers: Answers) -> float:
    """Smaller agreement with the vote, of where it contradicts the biased model and where not.

    The two sides are groups guessed without a label.
    """
    assert answers.ensemble_N is not None
    assert answers.biased_N is not None
    return _worst(_agrees(answers), (answers.ensemble_N != answers.biased_N).long())


@selection_rule("worst_voted_class", TEACHERS)
def worst_voted_class(answers: Answers) -> float:
    """Smallest agreement with the teachers' vote over the classes that are voted for."""
    assert answers.ensemble_N is not None
    return _worst(_agrees(answers), answers.ensemble_N)


def _right(answers: Answers) -> Tensor:
    assert answers.labels_N is not None
    return (answers.student_N == answers.labels_N).double()


def _agrees(answers: Answers) -> Tensor:
    assert answers.ensemble_N is not None
    return (answers.student_N == answers.ensemble_N).double()


def _worst(hits_N: Tensor, kinds_N: Tensor) -> float:
    """Smallest mean over any kind that has a sample."""
    count_K = torch.bincount(kinds_N)
    mean_K = torch.bincount(kinds_N, weights=hits_N) / count_K
    return float(mean_K[count_K > 0].min())
