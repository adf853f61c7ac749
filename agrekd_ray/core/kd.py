"""The distillation loss and its gradient in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from agrekd_ray.core.parts import in_parts

_FEW_CLASSES = 16


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Distillation loss of each sample, τ² · KL(softmax(z_m/τ) ‖ softmax(z_s/τ)).

    Differentiable in both arguments. The paper's ℓ_m, with the teacher as the target: the order
    that every implementation uses, though the paper writes the arguments the other way round.

    Args:
        student_logits: [B, C].
        teacher_logits: [..., B, C]; leading axes (teachers) are kept.
        temperature: τ, above 0.

    Returns:
        Loss in nats · τ², [..., B], in float32 or better.

    Raises:
        ValueError: for a temperature that is not finite and above 0, or shapes that differ.
    """
    student_BC, teachers = _pair(student_logits, teacher_logits, temperature, "teacher_logits")
    log_student_BC = log_softmax(student_BC / temperature)
    log_teachers = log_softmax(teachers / temperature)
    divergence = (log_teachers.exp() * (log_teachers - log_student_BC)).sum(-1)
    return temperature**2 * divergence


@torch.no_grad()
def kd_gradient(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Gradient of `kd_loss` by the student's logits, τ · (softmax(z_s/τ) − softmax(z_m/τ)).

    Per sample, not divided by the batch size, and without an autograd graph.

    Args:
        student_logits: [B, C].
        teacher_logits: [..., B, C]; leading axes (teachers) are kept.
        temperature: τ, above 0.

    Returns:
        [..., B, C], in float32 or better; rows sum to 0 up to rounding.

    Raises:
        ValueError: for a temperature that is not finite and above 0, or shapes that differ.
    """
    student_BC, teachers = _pair(student_logits, teacher_logits, temperature, "teacher_logits")
    return _gradient(student_BC, log_softmax(teachers / temperature).exp(), temperature)


@torch.no_grad()
def softened(teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The teachers' softened answers softmax(z_m/τ), and their entropies in nats.

    All of `kd_gradient` that can be known before the student has answered.

    Args:
        teacher_logits: [..., B, C].
        temperature: τ, above 0.

    Returns:
        Answers [..., B, C] and entropies [..., B], in float32 or better.

    Raises:
        ValueError: for a temperature that is not finite and above 0.
    """
    check_temperature(temperature)
    kind = torch.promote_types(teacher_logits.dtype, torch.float32)
    targets = teacher_logits.new_empty(teacher_logits.shape, dtype=kind)
    entropies = []
    for part, targets_part in in_parts(teacher_logits, targets):
        log_targets = log_softmax(floating(part).contiguous() / temperature)
        torch.exp(log_targets, out=targets_part)
        entropies.append(-torch.linalg.vecdot(targets_part, log_targets))
    return targets, torch.cat(entropies)


@torch.no_grad()
def gradient_from_targets(student_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """`kd_gradient`, from answers that are `softened` at the same temperature, [..., B, C]."""
    student_BC, given = _pair(student_logits, targets, temperature, "targets")
    return _gradient(student_BC, given, temperature)


def _gradient(student_BC: Tensor, targets: Tensor, temperature: float) -> Tensor:
    answers_BC = temperature * log_softmax(student_BC / temperature).exp()
    return torch.sub(answers_BC, targets, alpha=temperature)


@torch.no_grad()
def label_gradient(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the cross-entropy with the labels, softmax(z_s) − onehot(y), for each sample.

    Args:
        student_logits: [B, C].
        labels: [B], integers in 0 … C − 1.

    Returns:
        [B, C], in float32 or better, not divided by the batch size.

    Raises:
        ValueError: for labels of another length or outside the classes.
    """
    logits_BC = floating(student_logits)
    check_labels(labels, *logits_BC.shape)
    onehot_BC = functional.one_hot(labels.long(), logits_BC.shape[1])
    return log_softmax(logits_BC).exp() - onehot_BC.to(logits_BC.dtype)


@torch.no_grad()
def soft_targets(student_logits: Tensor, gradients: Tensor, temperature: float) -> Tensor:
    """The teachers' softened answers back from their gradients, softmax(z_s/τ) − g/τ.

    Exact up to the rounding of the gradient, about 1e-7 in float32: smaller probabilities are
    lost, and what rounding would make negative is 0.

    Args:
        student_logits: [B, C], the logits that the gradients were taken at.
        gradients: [..., B, C], from `kd_gradient` at the same temperature.
        temperature: τ, above 0.

    Returns:
        softmax(z_m/τ), [..., B, C], in float32 or better.

    Raises:
        ValueError: for a temperature that is not finite and above 0, or shapes that differ.
    """
    student_BC, given = _pair(student_logits, gradients, temperature, "gradients")
    return (log_softmax(student_BC / temperature).exp() - given / temperature).clamp_min(0)


@torch.no_grad()
def entropy_from_gradients(student_logits: Tensor, gradients: Tensor, temperature: float) -> Tensor:
    """Entropies of the teachers' softened answers in nats, [..., B]; arguments as `soft_targets`.

    In float32 good to about 1e-5.
    """
    return torch.special.entr(soft_targets(student_logits, gradients, temperature)).sum(-1)


@torch.no_grad()
def mixed_loss(
    student_logits: Tensor,
    gradient: Tensor,
    weights: Tensor,
    entropy: Tensor,
    temperature: float,
) -> Tensor:
    """Σ_m w_m · `kd_loss`, for reports: in float32 it leaves about 1e-5 · τ².

    Σ_m w_m KL_m is the cross-entropy of the teachers' mixture, which the combined gradient gives
    back, with the student, less the teachers' entropies.

    Args:
        student_logits: [B, C], the logits that the gradients were taken at.
        gradient: [B, C], the combined one, Σ_m w_m g_m.
        weights: [M, B], of the teachers.
        entropy: [M, B], of their softened answers, in nats.
        temperature: τ, above 0.

    Returns:
        [B], not negative, in nats · τ².
    """
    log_student_BC = log_softmax(student_logits.to(gradient.dtype) / temperature)
    answered_BC = weights.sum(0).unsqueeze(-1) * log_student_BC.exp()
    mixture_BC = torch.sub(answered_BC, gradient, alpha=1 / temperature).clamp_min(0)
    negative_B = torch.linalg.vecdot(mixture_BC, log_student_BC) + (weights * entropy).sum(0)
    return (-(temperature**2) * negative_B).clamp_min(0)


@torch.no_grad()
def cross_entropies(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Of each teacher's answers with the labels, at τ = 1.

    Args:
        teacher_logits: [M, B, C].
        labels: [B], integers in 0 … C − 1.

    Returns:
        [M, B], in nats.
    """
    index_MB1 = labels.long().expand(teacher_logits.shape[:2]).unsqueeze(-1)
    return -log_softmax(teacher_logits).gather(-1, index_MB1).squeeze(-1)


def log_softmax(logits: Tensor) -> Tensor:
    """Logarithms of the softmax over the classes, the last axis.

    Of few classes PyTorch's takes eight times as long on a CPU: rows that are shorter than its
    vectors go number by number. So they are computed with the classes as the first axis.
    """
    if logits.device.type != "cpu" or logits.shape[-1] >= _FEW_CLASSES:
        return logits.log_softmax(-1)
    return logits.movedim(-1, 0).contiguous().log_softmax(0).movedim(0, -1).contiguous()


def floating(values: Tensor) -> Tensor:
    """The values in float32, or in float64 where they already are: half is too coarse here."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless the temperature is finite and above 0."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and above 0, not {temperature}")


def check_labels(labels: Tensor, samples: int, classes: int, name: str = "labels") -> None:
    """Raises ValueError unless `labels` is [samples] of integers in 0 … classes − 1.

    Their values are looked at on the CPU only: a GPU would be waited for.
    """
    if labels.shape != (samples,):
        raise ValueError(f"{name} must have shape [{samples}], not {list(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name} must be integers, not {labels.dtype}")
    if not samples or labels.device.type != "cpu":
        return
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"{name} must lie in 0 … {classes - 1}")


def _pair(student: Tensor, other: Tensor, temperature: float, name: str) -> tuple[Tensor, Tensor]:
    check_temperature(temperature)
    if student.ndim != 2:
        raise ValueError(f"student_logits must be [B, C], not {list(student.shape)}")
    if other.shape[-2:] != student.shape:
        raise ValueError(
            f"{name} must be [..., {student.shape[0]}, {student.shape[1]}] like the student's "
            f"logits, not {list(other.shape)}"
        )
    return floating(student), floating(other)
