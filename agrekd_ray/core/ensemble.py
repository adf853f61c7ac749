"""Whether AGRE-KD can be trusted with an ensemble, by what it answers to validation samples.

AGRE-KD trusts whoever contradicts the biased model: a broken teacher most of all, and nobody where
all agree with it. Labels say beforehand which of that is the case. Nothing here takes part in
training, and no figure assumes that validation is distributed like training or like the test
split: classes, and groups or the biased model's right and wrong answers, count alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agrekd_ray.core.groups import accuracy_by, majority_vote
from agrekd_ray.core.kd import check_labels, kd_gradient
from agrekd_ray.core.weighting import weigh

ERRORS = 3.0
"""Standard errors that a figure must be away from what it is held against: chance alone takes it
there once in 740 times. So a teacher at chance is all but never missed, and a sound one, which is
many errors above, not warned of."""
FEW = 10
"""Samples of a class, a group or a case, fewer of which say nothing about it."""
SIDES = 0.5
"""Cohen's kappa with the biased model, from which on a teacher that is no better than a constant
answer counts as biased, not as broken: it contradicts at most half as often as an answer that has
nothing to do with the biased model. Where labels and bias are balanced a biased teacher is no
better than a constant one either, but its kappa is near 1, that of a broken one near 0 or below."""
UNOPPOSED = 0.5
"""Share of the biased model's mistakes that all teachers make with it, above which there is mostly
nobody to learn from. One debiased teacher of five that is right on 60 % of them leaves 40 %."""
DIFFER = 0.05
"""Share of samples on which the vote must differ from the biased model to say anything about
contradiction: where most teachers are biased, the few others contradict and the vote does not."""
SWAPPED = 1 / 3
"""Share of the samples of each of two classes that must be called the other. A bias spreads
mistakes over all classes, and mere likeness leaves the right answer above chance."""
SAME = 1e-4
"""Difference of two teachers' logits, by their size, that is rounding of the same weights."""
_NUMBERS = 1 << 22
"""Of gradients that are looked at at once."""


@dataclass(frozen=True, eq=False)
class Contradiction:
    """Where the teachers' majority vote differs from the biased model, and who is right there.

    Each group counts alike where groups are known, else the samples that the biased model gets
    right count as much as those that it gets wrong: where few samples conflict with the bias, a
    good debiased teacher is right less often than the biased model over all of them. What the
    biased model gets right may be luck, where it is mostly wrong: so without groups `misleads`
    also asks that it is right more often over all samples. And where most teachers are biased their
    vote is more so than any of them: so `misleads` asks the same of the vote of those alone who
    contradict the biased model, to whom AGRE-KD listens.

    Attributes:
        share: of samples on which they differ.
        vote_right: of these, how often the vote is right; NaN where they never differ.
        biased_right: how often the biased model is.
        misleads: whether the biased model is right more often beyond `ERRORS`, than the vote and
            than those who contradict.
    """

    share: float
    vote_right: float
    biased_right: float
    misleads: bool


@dataclass(frozen=True, eq=False)
class Examined:
    """What an ensemble's answers come to. Rows of [M + 1] are the teachers, then the biased model.

    Attributes:
        accuracy_m: [M + 1].
        by_class_mC: accuracy by class, NaN where a class has no sample.
        by_group_mG: accuracy by group, NaN where one has no sample; None where none are known.
        balanced_m: mean of the classes; a constant answer has 1 over their number.
        with_biased_M: agreement with the biased model, [M].
        kappa_M: the same beyond chance (Cohen 1960): 1 for the same answers, 0 for unrelated ones.
        with_others_M: mean agreement with the other teachers; NaN for a single one.
        weights_M: mean weights of AGRE-KD for a student that has learnt nothing yet.
        most_frequent: share of the most frequent class.
        constant_M: teachers no better than a constant answer that do not side with the biased
            model, either; bool.
        sided: share of samples on which all teachers name the biased model's class. With two
            classes AGRE-KD's formula is 0/0 there, for a student that is undecided.
        mistakes: samples that the biased model gets wrong.
        sided_wrong: the same share among these; NaN without any.
        unopposed: whether that is above `UNOPPOSED`, beyond `ERRORS`.
        contradiction: of the vote; None where too few samples are of a kind to tell.
        same: numbers of teachers that answer alike, a tuple for each such set.
        swapped: teachers that exchange two classes: its number and theirs.
    """

    accuracy_m: Tensor
    by_class_mC: Tensor
    by_group_mG: Tensor | None
    balanced_m: Tensor
    with_biased_M: Tensor
    kappa_M: Tensor
    with_others_M: Tensor
    weights_M: Tensor
    most_frequent: float
    constant_M: Tensor
    sided: float
    mistakes: int
    sided_wrong: float
    unopposed: bool
    contradiction: Contradiction | None
    same: tuple[tuple[int, ...], ...]
    swapped: tuple[tuple[int, int, int], ...]


@torch.no_grad()
def examine(
    logits_MNC: Sequence[Tensor],
    biased_NC: Tensor,
    labels_N: Tensor,
    groups_N: Tensor | None = None,
    temperature: float = 4.0,
) -> Examined:
    """Look at what teachers and the biased model answer to samples that nobody was trained on.

    Args:
        logits_MNC: of the M teachers, [N, C] each; they are never put together.
        biased_NC: of the biased model, [N, C].
        labels_N: the true classes, [N].
        groups_N: evaluation groups, [N], where they are known.
        temperature: τ, for the weights.

    Raises:
        ValueError: for shapes that do not fit, NaN, or labels out of range.
    """
    probabilities_NC, vote_N = majority_vote(logits_MNC)
    M, (N, C) = len(logits_MNC), probabilities_NC.shape
    if biased_NC.shape != (N, C):
        raise ValueError(f"biased_NC must be {[N, C]}, not {list(biased_NC.shape)}")
    check_labels(labels_N, N, C)
    labels_N = labels_N.long()
    named_mN = torch.stack([of_NC.argmax(-1) for of_NC in (*logits_MNC, biased_NC)])
    right_mN = (named_mN == labels_N).double()
    named_MN, biased_N = named_mN[:M], named_mN[M]
    count_C = torch.bincount(labels_N, minlength=C)
    by_class_mC = _by(labels_N, right_mN, C)
    balanced_m = by_class_mC[:, count_C > 0].mean(1)
    agrees_MN = named_MN == biased_N
    shares_mC = torch.stack([torch.bincount(n_N, minlength=C) for n_N in named_mN]).double() / N
    kappa_M = _kappa(agrees_MN.double().mean(1), shares_mC[:M] @ shares_mC[M])
    most_frequent = float(count_C.max()) / N
    constant_m = _constant(right_mN.mean(1), balanced_m, shares_mC, count_C, most_frequent)
    constant_M = constant_m[:M] & (kappa_M < SIDES)
    wrong_N = biased_N != labels_N
    sided_N = agrees_MN.all(0)
    sided_wrong = float(sided_N[wrong_N].double().mean())
    mistakes = int(wrong_N.sum())
    enough = mistakes >= FEW
    cases_N = wrong_N.long() if groups_N is None else groups_N.long()
    return Examined(
        accuracy_m=right_mN.mean(1),
        by_class_mC=by_class_mC,
        by_group_mG=None if groups_N is None else _by(cases_N, right_mN, int(cases_N.max()) + 1),
        balanced_m=balanced_m,
        with_biased_M=agrees_MN.double().mean(1),
        kappa_M=kappa_M,
        with_others_M=_with_others(named_MN, C),
        weights_M=_weights(logits_MNC, biased_NC, temperature),
        most_frequent=most_frequent,
        constant_M=constant_M,
        sided=float(sided_N.double().mean()),
        mistakes=mistakes,
        sided_wrong=sided_wrong,
        unopposed=enough and sided_wrong - ERRORS * _error(sided_wrong, mistakes) > UNOPPOSED,
        contradiction=_contradiction(
            [vote_N, _contradicting(named_MN, biased_N, probabilities_NC)],
            biased_N,
            labels_N,
            cases_N,
            by_biased=groups_N is None,
        ),
        same=_same(logits_MNC, named_MN),
        swapped=tuple(
            (m, *pair)
            for m in range(M)
            if not constant_M[m]
            for pair in _swapped(named_MN[m], labels_N, count_C)
        ),
    )


def _by(kind_N: Tensor, right_mN: Tensor, kinds: int) -> Tensor:
    """Accuracy of each model by kind of sample."""
    return torch.stack([accuracy_by(kind_N, right_N, kinds)[0] for right_N in right_mN])


def _kappa(agreement_M: Tensor, chance_M: Tensor) -> Tensor:
    """Cohen's kappa; where both name one class only, whether that is the same."""
    alike_M = chance_M >= 1
    return torch.where(alike_M, agreement_M, (agreement_M - chance_M) / (1 - chance_M + alike_M))


def _error(share: float, count: int) -> float:
    """Standard error of a share of so many samples."""
    return math.sqrt(share * (1 - share) / count)


def _constant(
    accuracy_m: Tensor,
    balanced_m: Tensor,
    shares_mC: Tensor,
    count_C: Tensor,
    most_frequent: float,
) -> Tensor:
    """Whether models are no better than a constant answer, whichever that is.

    Neither right more often than the most frequent class, nor in the mean of the classes, where
    answers that have nothing to do with the label come to 1 over the number of classes. Where one
    class is rare, a good debiased model is seldom right more often than the most frequent class.
    """
    there_C = count_C > 0
    classes = int(there_C.sum())
    variance_mC = shares_mC * (1 - shares_mC)
    error_m = (variance_mC[:, there_C] / count_C[there_C]).sum(1).sqrt() / classes
    frequent = most_frequent + ERRORS * _error(most_frequent, int(count_C.sum()))
    return (accuracy_m <= frequent) & (balanced_m <= 1 / classes + ERRORS * error_m + 1e-9)


def _votes(named_MN: Tensor, C: int) -> Tensor:
    """How many models name each class, [N, C]."""
    votes_NC = torch.zeros(named_MN.shape[1], C, dtype=torch.int32)
    return votes_NC.scatter_add_(1, named_MN.T, torch.ones_like(named_MN.T, dtype=torch.int32))


def _with_others(named_MN: Tensor, C: int) -> Tensor:
    """Mean agreement of each teacher with the others, out of the votes for each class."""
    M = len(named_MN)
    votes_NC = _votes(named_MN, C)
    others_MN = votes_NC.gather(1, named_MN.T).T.double() - 1
    return others_MN.mean(1) / (M - 1) if M > 1 else torch.full((1,), math.nan).double()


def _weights(logits_MNC: Sequence[Tensor], biased_NC: Tensor, temperature: float) -> Tensor:
    """Mean weights of AGRE-KD at logits that are all 0."""
    M, (N, C) = len(logits_MNC), biased_NC.shape
    sums_M = torch.zeros(M, dtype=torch.float64)
    for rows in torch.arange(N).split(max(1, _NUMBERS // (M * C))):
        members_mBC = torch.stack([of_NC[rows] for of_NC in (*logits_MNC, biased_NC)])
        student_BC = torch.zeros_like(biased_NC[rows])
        gradients_mBC = kd_gradient(student_BC, members_mBC, temperature)
        weights_MB = weigh("agre_kd", gradients_mBC[:M], gradients_mBC[M], temperature=temperature)
        sums_M += weights_MB.double().sum(1)
    return sums_M / N


def _contradicting(named_MN: Tensor, biased_N: Tensor, probabilities_NC: Tensor) -> Tensor:
    """What most of those name who do not name the biased model's class; that one, where all do."""
    votes_NC = _votes(named_MN, probabilities_NC.shape[1]).double()
    votes_NC.scatter_(1, biased_N[:, None], 0.0)
    most_N = (votes_NC + 0.5 * probabilities_NC).scatter(1, biased_N[:, None], 0.0).argmax(1)
    return torch.where(votes_NC.any(1), most_N, biased_N)


def _contradiction(
    answers: Sequence[Tensor],
    biased_N: Tensor,
    labels_N: Tensor,
    cases_N: Tensor,
    by_biased: bool,
) -> Contradiction | None:
    """What contradictions are worth, cases counted alike; see `Contradiction`.

    Args:
        answers: of the vote, [N], and of those who contradict.
        biased_N: of the biased model.
        labels_N: the true classes.
        cases_N: groups, or whether the biased model is wrong.
        by_biased: whether they are the latter.
    """
    count_K = torch.bincount(cases_N, minlength=2 if by_biased else 0)
    known_K = count_K >= FEW
    if not bool(known_K.any()) or (by_biased and not bool(known_K.all())):
        return None

    def mean(values_N: Tensor) -> Tensor:
        return accuracy_by(cases_N, values_N.double(), len(count_K))[0][known_K]

    figures, misleads = [], True
    for named_N in answers:
        differ_N = named_N != biased_N
        right_N, biased_right_N = (
            differ_N & (named_N == labels_N),
            differ_N & (biased_N == labels_N),
        )
        shares = [float(mean(v_N).mean()) for v_N in (differ_N, right_N, biased_right_N)]
        gain_N = right_N.double() - biased_right_N.double()
        variance_K = mean(gain_N.square()) - mean(gain_N).square()
        error = float((variance_K / count_K[known_K]).sum().sqrt()) / int(known_K.sum())
        misleads &= shares[0] >= DIFFER and shares[1] - shares[2] < -ERRORS * error
        if by_biased:
            misleads &= float(gain_N.sum()) < -ERRORS * math.sqrt(float(gain_N.square().sum()))
        figures.append(shares)
    share, vote, biased = figures[0]
    often = share or math.nan
    return Contradiction(share, vote / often, biased / often, misleads)


def _same(logits_MNC: Sequence[Tensor], named_MN: Tensor) -> tuple[tuple[int, ...], ...]:
    """Teachers that answer alike, each in one set."""
    sets: list[list[int]] = []
    for m, named_N in enumerate(named_MN):
        for those in sets:
            first = those[0]
            if not torch.equal(named_N, named_MN[first]):
                continue
            size = float(logits_MNC[first].abs().max())
            if float((logits_MNC[m] - logits_MNC[first]).abs().max()) <= SAME * size:
                those.append(m)
                break
        else:
            sets.append([m])
    return tuple(tuple(those) for those in sets if len(those) > 1)


def _swapped(named_N: Tensor, labels_N: Tensor, count_C: Tensor) -> list[tuple[int, int]]:
    """Pairs of three or more classes that are called each other, while the others are known."""
    C = len(count_C)
    enough_C = count_C >= FEW
    called_CC = torch.bincount(labels_N * C + named_N, minlength=C * C).view(C, C)
    share_CC = called_CC / count_C.clamp_min(1)[:, None]
    accuracy_C, most_C = share_CC.diagonal(), share_CC.argmax(1)
    chance_C = 1 / C + ERRORS * ((1 - 1 / C) / C / count_C.clamp_min(1)).sqrt()
    wrong_C = enough_C & (accuracy_C <= chance_C) & (share_CC.amax(1) >= SWAPPED)
    pairs = [
        (a, b)
        for a in wrong_C.nonzero().flatten().tolist()
        for b in [int(most_C[a])]
        if a < b and wrong_C[b] and int(most_C[b]) == a
    ]
    others_C = enough_C.clone()
    others_C[[c for pair in pairs for c in pair]] = False
    fine = bool(others_C.any()) and float(accuracy_C[others_C].median()) > 2 / C
    return pairs if fine else []
