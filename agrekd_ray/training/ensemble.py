"""An ensemble that explains itself: what its answers to validation come to, and warnings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from agrekd_ray.core.ensemble import UNOPPOSED, Examined, examine
from agrekd_ray.data import SELECT, Dataset
from agrekd_ray.errors import listed
from agrekd_ray.results import EnsembleCheck, TeacherCheck

ONE_BY_ONE = 3
"""Teachers with the same fault that are warned of one by one; more are in one sentence."""


def check_ensemble(
    dataset: Dataset,
    logits: Mapping[str, Tensor],
    biased: tuple[str, Tensor],
    kinds: Mapping[str, str],
    temperature: float,
) -> EnsembleCheck:
    """Whether AGRE-KD can be trusted with an ensemble, by the selection half of validation alone.

    Args:
        dataset: whose half it is.
        logits: of the teachers to that half, [N, C] by name.
        biased: name and logits of the biased model.
        kinds: as of `TeacherResult`, by name.
        temperature: τ of the distillation.
    """
    ids, groups, names = dataset.splits[SELECT], dataset.groups, [*logits]
    found = examine(
        [*logits.values()],
        biased[1],
        dataset.labels(ids),
        torch.from_numpy(groups.group_N[ids]) if groups.known else None,
        temperature,
    )
    contradiction = found.contradiction
    warned = {*found.constant_M.nonzero().flatten().tolist()}
    warned |= {m for those in found.same for m in those} | {m for m, *_ in found.swapped}

    def model(m: int, name: str) -> TeacherCheck:
        by_group_G = None if found.by_group_mG is None else found.by_group_mG[m]
        return TeacherCheck(
            name,
            kinds[name],
            float(found.accuracy_m[m]),
            float(found.balanced_m[m]),
            _named(dataset.classes, found.by_class_mC[m]),
            {} if by_group_G is None else _named(groups.names, by_group_G),
            warned=m in warned,
            **(
                {}
                if m == len(names)
                else {
                    "with_biased": float(found.with_biased_M[m]),
                    "with_others": _known(found.with_others_M[m]),
                    "weight": float(found.weights_M[m]),
                }
            ),
        )

    return EnsembleCheck(
        count=len(ids),
        most_frequent=found.most_frequent,
        teachers=[model(m, name) for m, name in enumerate(names)],
        biased=model(len(names), biased[0]),
        sided=found.sided,
        mistakes=found.mistakes,
        sided_wrong=found.sided_wrong,
        differ=None if contradiction is None else contradiction.share,
        vote_right=None if contradiction is None else _known(contradiction.vote_right),
        biased_right=None if contradiction is None else _known(contradiction.biased_right),
        warnings=[*_warnings(found, names, dataset.classes)],
    )


def _known(share: float | Tensor) -> float | None:
    """A share; None where it is NaN."""
    return None if math.isnan(share) else float(share)


def _named(names: Sequence[str], share_K: Tensor) -> dict[str, float]:
    """Shares by name; those that are over no sample are left out."""
    # Groups at the end that have no sample are not among the shares.
    shares = zip(names, share_K.tolist(), strict=False)
    return {name: share for name, share in shares if not math.isnan(share)}


def _warnings(found: Examined, names: Sequence[str], classes: Sequence[str]) -> Iterator[str]:
    """A sentence or two each: what was found, its figures, and what to do."""
    constant = found.constant_M.nonzero().flatten().tolist()
    for broken in [[m] for m in constant] if len(constant) <= ONE_BY_ONE else [constant]:
        who, are, contradict, them = names[broken[0]], "is", "contradicts", "it"
        if len(broken) > 1:
            who = f"{len(broken)} teachers ({listed(names[m] for m in broken)})"
            are, contradict, them = "are", "contradict", "them"
        yield (
            f"{who} {are} right on {_range(found.accuracy_m[broken])} of the validation samples, "
            f"no better than a constant answer ({_percent(found.most_frequent)}), yet {contradict} "
            f"the biased model on {_range(1 - found.with_biased_M[broken])}: AGRE-KD would begin "
            f"with {_percent(found.weights_M[broken].sum())} of the weight on {them}. Make {them} "
            f"again, leave {them} out, or take agre_kd_guarded."
        )
    for m, a, b in found.swapped[:ONE_BY_ONE]:
        right = found.by_class_mC[m]
        yield (
            f"{names[m]} takes class {classes[a]} for {classes[b]} and {classes[b]} for "
            f"{classes[a]} ({_percent(right[a])} and {_percent(right[b])} right): are its classes "
            "in another order than the data's? Import it with the names in its own order, or leave "
            "it out."
        )
    if more := [names[m] for m, _, _ in found.swapped[ONE_BY_ONE:]]:
        yield f"So it is with {len(more)} more: {listed(dict.fromkeys(more))}."
    for those in found.same:
        yield (
            f"{', '.join(names[m] for m in those)} give the same answers: they are one teacher, "
            f"counted {len(those)} times. Draw others, or leave all but one out."
        )
    if found.unopposed:
        formula = ", and its formula is 0/0" if len(classes) == 2 else ""
        yield (
            f"On {_percent(found.sided_wrong)} of the {found.mistakes:,} validation samples that "
            f"the biased model gets wrong, every teacher makes the same mistake (more than "
            f"{_percent(UNOPPOSED)}): AGRE-KD has nobody to choose there{formula}. Let debiased "
            "teachers teach (ensemble.debiased)."
        )
    if found.contradiction is not None and found.contradiction.misleads:
        alike = "right and wrong answers of the biased model"
        alike = "groups" if found.by_group_mG is not None else alike
        yield (
            f"Where the teachers' vote differs from the biased model, it is right on "
            f"{_percent(found.contradiction.vote_right)}, and the biased model on "
            f"{_percent(found.contradiction.biased_right)} ({alike} counted alike): contradiction "
            "is no virtue here, and AGRE-KD is likely to do worse than AVER. Take better teachers, "
            "or a biased model that relies more on the bias."
        )


def _range(share_m: Tensor) -> str:
    """`13 %`, or `10 to 13 %`."""
    low, high = (f"{100 * float(end):.3g}" for end in (share_m.min(), share_m.max()))
    return f"{high} %" if low == high else f"{low} to {high} %"


def _percent(share: float | Tensor) -> str:
    return f"{100 * float(share):.3g} %"
