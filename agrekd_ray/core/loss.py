"""Ensemble distillation as a loss, for a loop of one's own: pure PyTorch, on any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from agrekd_ray.core.gradient import required
from agrekd_ray.core.kd import cross_entropies, kd_gradient
from agrekd_ray.core.weighting import SampleWeighting, combine, find_strategy


@dataclass(frozen=True, eq=False)
class DistillationLoss:
    """What `Distillation` makes of a batch.

    Attributes:
        loss: mean over the batch, a scalar to call `backward()` on.
        loss_B: of each sample, [B], detached, in nats (times τ² for the teachers' part).
        weights: of the teachers, [M, B]; they sum to 1, or to 0 for a skipped sample.
        fallback: where all weights were 0 (the 0/0 case) and the fallback decided, bool [B].
        pull: how far each teacher moves the student along the teachers' gradient, [M, B]; see
            `core.diagnostics.pulls`.
    """

    loss: Tensor
    loss_B: Tensor
    weights: Tensor
    fallback: Tensor
    pull: Tensor


class Distillation:
    """The paper's loss alpha · L_wKD + (1 - alpha) · L_cls (equation 5), with any strategy.

    The teachers' part has its gradient in closed form, so that a call costs a few operations on
    [M, B, C] however many teachers there are. On a GPU nothing waits for the device, but for
    AE-KD's programme.

    Args:
        strategy: a name in `core.strategies.STRATEGIES`, like `agre_kd`.
        temperature: τ, above 0.
        alpha: share of distillation in [0, 1]; the rest is cross-entropy with the labels.
        sample_weighting: scales samples by how far the teachers answer from the biased model; None
            is off.
        seed: draws the teacher of `random`.
        options: of the strategy, like `fallback="skip"`.

    Attributes:
        step: calls so far, by which `random` draws.

    Raises:
        ValueError: for an unknown strategy or a value out of range.
    """

    def __init__(
        self,
        strategy: str = "agre_kd",
        *,
        temperature: float = 4.0,
        alpha: float = 1.0,
        sample_weighting: SampleWeighting | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self._strategy = find_strategy(strategy)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], not {alpha}")
        self.temperature, self.alpha, self.seed = temperature, alpha, seed
        self.sample_weighting, self.options = sample_weighting, options
        self.step = 0

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        biased_logits: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> DistillationLoss:
        """The loss of a batch.

        Args:
            student_logits: [B, C], with their graph.
            teacher_logits: of the M teachers, [M, B, C].
            biased_logits: of the biased model, [B, C]; for strategies and sample weighting that
                need it.
            labels: classes, integers [B]; for `alpha` below 1 and strategies that need them.

        Raises:
            ValueError: for something that is missing, or shapes that do not fit.
            FloatingPointError: on the CPU, for logits that are not finite, naming whose.
        """
        needs_biased = self._strategy.needs_biased or self.sample_weighting is not None
        for needed, given, name in (
            (needs_biased, biased_logits, "biased_logits"),
            (self._strategy.needs_labels or self.alpha < 1, labels, "labels"),
        ):
            if needed and given is None:
                raise ValueError(f"{self._strategy.name} with these settings needs {name}")
        if teacher_logits.ndim != 3:
            raise ValueError(f"teacher_logits must be [M, B, C], not {list(teacher_logits.shape)}")
        detached_BC = student_logits.detach()
        supplied = {"seed": self.seed, "step": self.step}
        options: dict[str, Any] = {
            name: supplied[name] for name in self._strategy.supplied if name in supplied
        }
        if self._strategy.needs_cross_entropy:
            options["cross_entropy"] = cross_entropies(
                teacher_logits.detach().float(), required(labels)
            )
        biased_BC = None
        if needs_biased:
            biased_BC = kd_gradient(detached_BC, required(biased_logits), self.temperature)
        taught = combine(
            self._strategy.name,
            kd_gradient(detached_BC, teacher_logits, self.temperature),
            biased_BC,
            student_logits=detached_BC,
            temperature=self.temperature,
            labels=labels,
            sample_weighting=self.sample_weighting,
            **options,
            **self.options,
        )
        self.step += 1
        loss_B = self.alpha * _with_gradient(
            student_logits, required(taught.loss_B), taught.gradient_BC
        )
        if self.alpha < 1:
            entropy_B = functional.cross_entropy(
                student_logits.float(), required(labels).long(), reduction="none"
            )
            loss_B = loss_B + (1 - self.alpha) * entropy_B
        return DistillationLoss(
            loss_B.mean(),
            loss_B.detach(),
            required(taught.weights_MB),
            required(taught.fallback_B),
            required(taught.pull_MB),
        )


def _with_gradient(logits_BC: Tensor, loss_B: Tensor, gradient_BC: Tensor) -> Tensor:
    """A loss of this value, whose gradient by the logits is that one."""
    along_B = (logits_BC * gradient_BC).sum(-1)
    return loss_B + (along_B - along_B.detach())
