"""The ways of weighting teachers, one function each, by name.

A strategy sees the evidence of one batch and returns the weights of the M teachers for each
sample, [M, B]: not negative, of sum 1, or 0 where it skips the sample. A new one is a function
under `@strategy(...)`; its keyword-only arguments become its options, the first line of its
docstring its summary. It computes in float64, so that rounding decides nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from agrekd_ray.core.gradient import Evidence
from agrekd_ray.core.kd import check_labels, cross_entropies, soft_targets
from agrekd_ray.core.parts import at_once
from agrekd_ray.core.quadratic import shortest_mixture
from agrekd_ray.core.registry import Registry

NO_DIRECTION = 1e-6
"""Gradients of this norm over the temperature, or less, are rounding: they point nowhere."""

NO_WEIGHT = 1e-6
"""A disagreement 1 − cos of this or less, an angle of 1.4 milliradians, is rounding."""

Weights = tuple[Tensor, Tensor | None]
"""Weights [M, B] and, for strategies that can run into 0/0, where they did: bool [B]."""


@dataclass(frozen=True)
class Strategy:
    """A way of weighting teachers.

    Attributes:
        name: as jobs write it.
        function: from evidence and options to weights.
        per: whether each sample has weights of its own, or the batch one vector.
        options: defaults by name.
        supplied: options that the training loop fills in on each step; the others are a job's.
        summary: one line, with the source.
        needs_gradients: False where the weights are known without looking at the gradients.
        needs_biased: the biased model's gradients must be given.
        needs_labels: the samples' classes must be known, here or to the teachers.
        needs_cross_entropy: teachers should add their exact cross-entropy with the label.
        needs_competence: the teachers' competence, from labels of validation, must be given.
        draws: from M, seed and step to the number of the one teacher that has a weight; None where
            several may have.
    """

    name: str
    function: Callable[..., Weights]
    per: Literal["sample", "batch"]
    options: dict[str, Any]
    supplied: tuple[str, ...]
    summary: str
    needs_gradients: bool
    needs_biased: bool
    needs_labels: bool
    needs_cross_entropy: bool
    needs_competence: bool = False
    draws: Callable[[int, int, int], int] | None = None

    @property
    def global_batch(self) -> bool:
        """Whether weights depend on the gradients of the whole batch, so workers must gather."""
        return self.per == "batch" and self.needs_gradients


STRATEGIES: Registry[Strategy] = Registry("strategy")


def strategy(
    name: str,
    per: Literal["sample", "batch"],
    *,
    supplied: tuple[str, ...] = (),
    needs_gradients: bool = True,
    needs_biased: bool = False,
    needs_labels: bool = False,
    needs_cross_entropy: bool = False,
    needs_competence: bool = False,
    draws: Callable[[int, int, int], int] | None = None,
) -> Callable[[Callable[..., Weights]], Callable[..., Weights]]:
    """Registers the decorated function under a name; arguments as in `Strategy`.

    Raises:
        ValueError: the name is another's, or an option has no default.
    """

    def register(function: Callable[..., Weights]) -> Callable[..., Weights]:
        parameters = inspect.signature(function).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        if inspect.Parameter.empty in options.values():
            raise ValueError(f"strategy {name!r}: every option needs a default")
        part = Strategy(
            name=name,
            function=function,
            per=per,
            options=options,
            supplied=supplied,
            summary=(inspect.getdoc(function) or "").split("\n", 1)[0],
            needs_gradients=needs_gradients,
            needs_biased=needs_biased,
            needs_labels=needs_labels,
            needs_cross_entropy=needs_cross_entropy,
            needs_competence=needs_competence,
            draws=draws,
        )
        STRATEGIES.add(name, part, function)
        return function

    return register


@strategy("aver", per="sample", needs_gradients=False)
def aver(evidence: Evidence) -> Weights:
    """Mean of the teachers' softened answers: the same weight for all (You et al., KDD 2017)."""
    M, B, _ = evidence.gradients.shape
    return evidence.gradients.new_full((M, B), 1 / M), None


def drawn_teacher(teachers: int, seed: int, step: int) -> int:
    """Number of the teacher, below `teachers`, that `random` draws for a step."""
    generator = torch.Generator().manual_seed(_mix(_mix(seed) + step))
    return int(torch.randint(teachers, (), generator=generator))


@strategy(
    "random",
    per="batch",
    supplied=("seed", "step"),
    needs_gradients=False,
    draws=drawn_teacher,
)
def random(evidence: Evidence, *, seed: int = 0, step: int = 0) -> Weights:
    """One teacher, drawn for each mini-batch (the paper's baseline Random).

    A pure function of `seed` and `step`: every worker draws the same teacher without asking.
    """
    M, B, _ = evidence.gradients.shape
    weights_MB = evidence.gradients.new_zeros(M, B)
    weights_MB[drawn_teacher(M, seed, step)] = 1
    return weights_MB, None


@strategy("ae_kd", per="batch")
def ae_kd(evidence: Evidence, *, box: float = 0.6) -> Weights:
    """Shortest mixture of the batch-averaged gradients, shares capped (Du et al., NeurIPS 2020).

    Minimises ½‖Σ a_m ḡ_m‖² with Σ a = 1 and 0 ≤ a_m ≤ `box` (raised to 1/M where smaller). Among
    equally short mixtures the most even one; uniform where no gradient has a direction.
    """
    if not 0 < box <= 1:
        raise ValueError(f"ae_kd: box must lie in (0, 1], not {box}")
    mean_MC = evidence.gradients.double().mean(1)
    shares_M = _shortest(mean_MC @ mean_MC.T, box, NO_DIRECTION * evidence.temperature)
    return shares_M.to(mean_MC.device)[:, None].repeat(1, evidence.gradients.shape[1]), None


def is_looked_at(values: Tensor) -> bool:
    """Whether a look at values makes nobody wait, so that they are checked at once."""
    return values.device.type == "cpu"


def _shortest(gram_MM: Tensor, box: float, negligible: float) -> Tensor:
    """Shares of the shortest mixture, on the CPU, where it is found: a GPU is waited for, once."""
    gram_MM = gram_MM.cpu()
    if not bool(torch.isfinite(gram_MM).all()):  # of a GPU, on which nobody has looked
        raise FloatingPointError("the teachers' gradients hold NaN or infinity")
    if bool((gram_MM.diagonal().sqrt() <= negligible).all()):
        gram_MM = torch.zeros_like(gram_MM)
    return shortest_mixture(gram_MM, box)


@strategy("agre_kd", per="sample", needs_biased=True)
def agre_kd(
    evidence: Evidence,
    *,
    normalize: bool = True,
    fallback: Literal["uniform", "skip"] = "uniform",
) -> Weights:
    """More weight the more a teacher pulls away from the biased model (the paper's).

    W_m = 1 − cos(g_m, g_b), normalised for each sample. A teacher whose gradient has no direction
    takes no part; where the biased model's has none, or all W are 0, the formula is 0/0 and
    `fallback` decides: `uniform` averages the teachers, `skip` gives the sample weight 0. With
    two classes the cosine is ±1, so the weights are a choice and 0/0 is common.

    `normalize=False` is the ablation of the paper's table 6: W_m = 1 − ⟨g_m, g_b⟩, where a
    negative W counts as 0. It has no 0/0 in a gradient without direction (its W is 1), and it
    depends on the gradients' scale: these are per sample, with the factor τ.
    """
    if fallback not in ("uniform", "skip"):
        raise ValueError(f"agre_kd: fallback must be uniform or skip, not {fallback!r}")
    disagreement_MB = _disagreement(evidence, normalize)
    total_B = disagreement_MB.sum(0)
    undefined_B = total_B == 0
    instead = 1 / len(disagreement_MB) if fallback == "uniform" else 0.0
    return torch.where(undefined_B, instead, disagreement_MB / total_B), undefined_B


def _disagreement(evidence: Evidence, normalize: bool = True) -> Tensor:
    """W_m = 1 − cos(g_m, g_b), [M, B] in float64: 0 below rounding and without a direction.

    Of many teachers and classes, some teachers at a time: the others stay in their own precision.
    """
    M, biased, members_mBC = evidence.teachers, evidence.biased, evidence.members_mBC
    assert biased is not None
    smallest = NO_DIRECTION * evidence.temperature if normalize else None
    size = max(1, at_once(members_mBC) - 1)  # and the biased model
    if size >= M:
        return _one_minus_cosine(members_mBC, M, biased, smallest)
    parts = members_mBC[:M].split(size)
    with_biased = (torch.cat([part, members_mBC[biased, None]]) for part in parts)
    return torch.cat([_one_minus_cosine(each, len(each) - 1, -1, smallest) for each in with_biased])


def _one_minus_cosine(
    members_mBC: Tensor, teachers: int, biased: int, smallest: float | None
) -> Tensor:
    """Of the first teachers with the biased member; 1 − dot product where `smallest` is None.

    A row that is shorter than `smallest` has no direction.
    """
    members_mBC = members_mBC.to(torch.float64, copy=True)
    if smallest is not None:
        # Rows sum to 0 in theory; the mean taken off makes it so, and cosines ±1 for two classes.
        members_mBC -= members_mBC.mean(-1, keepdim=True)
        norm_mB = torch.linalg.vector_norm(members_mBC, dim=-1)
        # Without a direction the cosine is NaN, which is above nothing.
        norm_mB = torch.where(norm_mB > smallest, norm_mB, torch.nan)
    agreement_MB = torch.linalg.vecdot(members_mBC[:teachers], members_mBC[biased])
    if smallest is not None:
        agreement_MB /= norm_mB[:teachers] * norm_mB[biased]
    disagreement_MB = 1 - agreement_MB
    return torch.where(disagreement_MB > NO_WEIGHT, disagreement_MB, 0.0)


@strategy(
    "agre_kd_guarded",
    per="sample",
    supplied=("competence",),
    needs_biased=True,
    needs_competence=True,
)
def agre_kd_guarded(
    evidence: Evidence, *, competence: Tensor | Sequence[Any] | None = None
) -> Weights:
    """AGRE-KD of teachers whose contradiction proved right on validation (ours; docs/guard.md).

    W_m = (1 − cos(g_m, g_b)) · Σ_c p_m(c) k_mc, normalised for each sample: p_m is the teacher's
    answer at τ = 1, and k_mc its `competence`, how much more often it is right than the biased
    model where it answers c and the biased model does not (`core.competence`). So a broken teacher
    has no weight, however much it contradicts. Where all W are 0, those teachers are averaged who
    are competent at all, or all if none is.

    `competence` is [M, C], or [M] where classes are not told apart; not negative.
    """
    if competence is None:
        raise ValueError(
            "agre_kd_guarded needs competence: how far each teacher is to be trusted, out of "
            "labels of validation samples (agrekd_ray.competence)"
        )
    M, B, C = evidence.gradients.shape
    trusted = torch.as_tensor(competence, dtype=torch.float64, device=evidence.gradients.device)
    if trusted.shape not in ((M,), (M, C)):
        raise ValueError(f"competence must be [{M}, {C}] or [{M}], not {list(trusted.shape)}")
    if is_looked_at(trusted) and not bool((trusted >= 0).all()):
        raise ValueError("competence must not be negative or NaN")
    if trusted.ndim == 1:
        trusted_MB = trusted[:, None].expand(M, B)
    else:
        trusted_MB = torch.einsum("mbc,mc->mb", _answers(evidence), trusted)
    weights_MB = _disagreement(evidence) * trusted_MB
    total_B = weights_MB.sum(0)
    undefined_B = total_B == 0
    able_M1 = (trusted.reshape(M, -1).sum(1, keepdim=True) > 0).double()
    able_M1 = torch.where(able_M1.sum() > 0, able_M1, 1.0)
    return torch.where(undefined_B, able_M1 / able_M1.sum(), weights_MB / total_B), undefined_B


def _answers(evidence: Evidence) -> Tensor:
    """The teachers' probabilities at τ = 1, [M, B, C], from their gradients."""
    if evidence.student_logits is None:
        raise ValueError("competence by class needs student_logits")
    softened_MBC = soft_targets(
        evidence.student_logits.double(), evidence.gradients.double(), evidence.temperature
    )
    # In proportion to the largest, so that a power of them does not vanish.
    softened_MBC = softened_MBC.clamp_min(0) / softened_MBC.amax(-1, keepdim=True)
    powers_MBC = softened_MBC**evidence.temperature
    return powers_MBC / powers_MBC.sum(-1, keepdim=True)


@strategy(
    "ca_mkd",
    per="sample",
    supplied=("cross_entropy",),
    needs_labels=True,
    needs_cross_entropy=True,
)
def ca_mkd(evidence: Evidence, *, cross_entropy: Tensor | None = None) -> Weights:
    """The logit part of CA-MKD: weight for nearness to the label (Zhang et al., ICASSP 2022).

    w_m = (1 − softmax_m(CE_m)) / (M − 1), with CE_m the teacher's cross-entropy at τ = 1; needs
    labels. CA-MKD's own code divides by M once more, and adds a weighted loss of features (β 50)
    and the cross-entropy with the labels: neither is here, where all strategies share one loss.

    `cross_entropy`, [M, B], are exact values from the teachers. Without them CE is worked out
    from gradients, labels and student logits, which loses softened probabilities below about
    1e-7: a CE beyond 16 · τ is cut off there, and near it has an error of about τ · 1e-7 / p.
    Teachers that are confidently wrong at a low temperature then look equally wrong.
    """
    M, B, _ = evidence.gradients.shape
    if cross_entropy is None:
        cross_entropy = _cross_entropy(evidence)
    elif cross_entropy.shape != (M, B):
        raise ValueError(f"cross_entropy must be [{M}, {B}], not {list(cross_entropy.shape)}")
    elif is_looked_at(cross_entropy) and not bool(torch.isfinite(cross_entropy).all()):
        raise ValueError("cross_entropy holds NaN or infinity")
    if M == 1:
        return torch.ones_like(cross_entropy), None
    return (1 - cross_entropy.double().softmax(0)) / (M - 1), None


@strategy("govern", per="sample")
def govern(evidence: Evidence) -> Weights:
    """Mean of the majority of teachers that share a gradient direction (Zhou et al. 2024).

    Exact for two classes: the majority of signs. For more, our reading: a teacher belongs to the
    majority where its gradient has a positive dot product with the mean of the normalised
    gradients. A teacher without direction is in no majority; where nobody is, all are averaged.
    """
    gradients_MBC = evidence.gradients.double()
    inverse_MB = _norms(gradients_MBC).reciprocal()
    pointless_MB = inverse_MB * NO_DIRECTION * evidence.temperature >= 1
    inverse_MB = inverse_MB.masked_fill(pointless_MB, 0.0)
    mean_BC = torch.einsum("mb,mbc->bc", inverse_MB, gradients_MBC) / len(gradients_MBC)
    mean_BC -= mean_BC.mean(-1, keepdim=True)
    agreement_MB = inverse_MB * torch.einsum("mbc,bc->mb", gradients_MBC, mean_BC)
    member_MB = agreement_MB > NO_DIRECTION
    size_B = member_MB.sum(0)
    member_MB = member_MB | (size_B == 0)
    return member_MB / member_MB.sum(0), None


def _norms(gradients: Tensor) -> Tensor:
    """Norms of float64 gradients with their mean taken off, without a copy of all of them."""
    square = torch.linalg.vector_norm(gradients, dim=-1).square()
    mean = gradients.mean(-1)
    return (square - gradients.shape[-1] * mean.square()).clamp_min(0).sqrt()


def _cross_entropy(evidence: Evidence) -> Tensor:
    """The teachers' cross-entropy with the labels at τ = 1, from their gradients, [M, B]."""
    labels_B, logits_BC = evidence.labels, evidence.student_logits
    if labels_B is None or logits_BC is None:
        missing = "labels" if labels_B is None else "student_logits"
        raise ValueError(f"ca_mkd needs {missing}, or cross_entropy from the teachers")
    check_labels(labels_B, *evidence.gradients.shape[1:])
    softened_MBC = soft_targets(
        logits_BC.double(), evidence.gradients.double(), evidence.temperature
    )
    smallest = torch.finfo(evidence.gradients.dtype).eps
    logits_MBC = evidence.temperature * softened_MBC.clamp_min(smallest).log()
    return cross_entropies(logits_MBC, labels_B)


def _mix(value: int) -> int:
    """SplitMix64's finaliser: neighbouring integers to 64 unrelated bits."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)
