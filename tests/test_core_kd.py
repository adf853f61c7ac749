"""The distillation loss, its closed-form gradient and what can be read back from it."""

import pytest
import torch
from torch.nn import functional

from agrekd_ray.core.kd import (
    entropy_from_gradients,
    gradient_from_targets,
    kd_gradient,
    kd_loss,
    label_gradient,
    log_softmax,
    mixed_loss,
    soft_targets,
    softened,
)

TEMPERATURES = (0.5, 1.0, 4.0, 14.0)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def logits(*shape, seed=0, scale=3.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_closed_form_is_what_autograd_finds(temperature, classes, dtype):
    student_BC = logits(7, classes, seed=1, dtype=dtype).requires_grad_()
    teacher_BC = logits(7, classes, seed=2, dtype=dtype)
    (expected_BC,) = torch.autograd.grad(
        kd_loss(student_BC, teacher_BC, temperature).sum(), student_BC
    )
    found_BC = kd_gradient(student_BC, teacher_BC, temperature)
    assert found_BC.dtype == dtype
    assert not found_BC.requires_grad
    tolerance = TOLERANCE[dtype] * temperature
    torch.testing.assert_close(found_BC, expected_BC, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(7, 2), (3, 5, 10), (2, 3, 4, 15), (5, 16), (3, 2, 40), (0, 10)])
def test_log_softmax_is_pytorchs(shape, dtype):
    given = logits(*shape, dtype=dtype).requires_grad_()
    found, expected = log_softmax(given), torch.log_softmax(given, -1)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected)
    towards = logits(*shape, seed=1, dtype=dtype)
    gradients = [torch.autograd.grad(made, given, towards)[0] for made in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_loss_has_the_teacher_as_its_target(temperature):
    student_BC, teacher_BC = logits(6, 5, seed=1), logits(6, 5, seed=2)
    p_BC = (teacher_BC.double() / temperature).softmax(-1)
    q_BC = (student_BC.double() / temperature).softmax(-1)
    expected_B = temperature**2 * (p_BC * (p_BC / q_BC).log()).sum(-1)
    found_B = kd_loss(student_BC, teacher_BC, temperature)
    torch.testing.assert_close(found_B.double(), expected_B, rtol=1e-5, atol=1e-5)


def test_hand_worked_gradient():
    student_BC = torch.tensor([[0.0, 0.0]])
    teacher_BC = torch.tensor([[2.0, -2.0]]) * torch.tensor(3.0).log()  # odds 3^4, at τ = 4: 3
    torch.testing.assert_close(
        kd_gradient(student_BC, teacher_BC, 4.0), torch.tensor([[-1.0, 1.0]])
    )


def test_leading_axes_are_teachers():
    student_BC, teachers_MBC = logits(4, 3, seed=1), logits(5, 4, 3, seed=2)
    loss_MB = kd_loss(student_BC, teachers_MBC, 2.0)
    gradient_MBC = kd_gradient(student_BC, teachers_MBC, 2.0)
    assert loss_MB.shape == (5, 4)
    for m in range(5):
        torch.testing.assert_close(loss_MB[m], kd_loss(student_BC, teachers_MBC[m], 2.0))
        torch.testing.assert_close(gradient_MBC[m], kd_gradient(student_BC, teachers_MBC[m], 2.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_promoted(dtype):
    student_BC, teacher_BC = logits(4, 3, seed=1, dtype=dtype), logits(4, 3, seed=2, dtype=dtype)
    for function in (kd_loss, kd_gradient, soft_targets, entropy_from_gradients):
        found = function(student_BC, teacher_BC, 4.0)
        assert found.dtype == torch.float32
        expected = function(student_BC.float(), teacher_BC.float(), 4.0)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_extreme_logits_stay_finite(temperature):
    corners_BC = torch.tensor([[50.0, -50.0], [-50.0, 50.0], [50.0, 50.0], [0.0, 0.0]])
    for other_BC in (corners_BC, corners_BC.flip(0), -corners_BC):
        loss_B = kd_loss(corners_BC, other_BC, temperature)
        gradient_BC = kd_gradient(corners_BC, other_BC, temperature)
        entropy_B = entropy_from_gradients(corners_BC, gradient_BC, temperature)
        recovered_B = mixed_loss(
            corners_BC, gradient_BC, torch.ones(1, 4), entropy_B[None], temperature
        )
        for values in (loss_B, gradient_BC, recovered_B):
            assert torch.isfinite(values).all()
        assert (gradient_BC.abs() <= temperature * (1 + 1e-6)).all()
        assert gradient_BC.sum(-1).abs().max() <= 1e-6 * temperature


@pytest.mark.parametrize("scale", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradients_give_the_teachers_back(temperature, scale):
    student_BC, teachers_MBC = logits(6, 4, seed=1), logits(3, 6, 4, seed=2, scale=scale)
    gradients_MBC = kd_gradient(student_BC, teachers_MBC, temperature)
    targets_MBC = soft_targets(student_BC, gradients_MBC, temperature)
    expected_MBC = (teachers_MBC.double() / temperature).softmax(-1)
    assert (targets_MBC >= 0).all()
    torch.testing.assert_close(targets_MBC.double(), expected_MBC, rtol=0, atol=3e-7)
    softened_MBC, entropy_MB = softened(teachers_MBC, temperature)
    torch.testing.assert_close(softened_MBC.double(), expected_MBC, rtol=0, atol=3e-7)
    again_MBC = gradient_from_targets(student_BC, softened_MBC, temperature)
    torch.testing.assert_close(again_MBC, gradients_MBC, rtol=0, atol=0)
    exact_MB = torch.special.entr(expected_MBC).sum(-1)
    torch.testing.assert_close(entropy_MB.double(), exact_MB, rtol=0, atol=1e-6)
    recovered_MB = entropy_from_gradients(student_BC, gradients_MBC, temperature)
    torch.testing.assert_close(recovered_MB.double(), exact_MB, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 0, 1), (0.2, 0.3, 0.5), (0, 0, 0)])
@pytest.mark.parametrize("scale", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_combined_gradient_gives_the_loss_back(temperature, scale, weights):
    student_BC, teachers_MBC = logits(6, 4, seed=1), logits(3, 6, 4, seed=2, scale=scale)
    gradients_MBC = kd_gradient(student_BC, teachers_MBC, temperature)
    _, entropy_MB = softened(teachers_MBC, temperature)
    weights_MB = torch.tensor(weights)[:, None].expand(3, 6)
    combined_BC = (weights_MB[..., None] * gradients_MBC).sum(0)
    recovered_MB = entropy_from_gradients(student_BC, gradients_MBC, temperature)
    for found_MB in (entropy_MB, recovered_MB):
        torch.testing.assert_close(
            mixed_loss(student_BC, combined_BC, weights_MB, found_MB, temperature),
            (weights_MB * kd_loss(student_BC, teachers_MBC, temperature)).sum(0),
            rtol=1e-5,
            atol=2e-5 * temperature**2,
        )


@pytest.mark.parametrize("classes", [2, 10])
def test_label_gradient_is_that_of_cross_entropy(classes):
    student_BC = logits(8, classes, seed=1).requires_grad_()
    labels_B = torch.arange(8) % classes
    loss = functional.cross_entropy(student_BC, labels_B, reduction="sum")
    (expected_BC,) = torch.autograd.grad(loss, student_BC)
    found_BC = label_gradient(student_BC, labels_B)
    torch.testing.assert_close(found_BC, expected_BC, rtol=0, atol=1e-6)
    assert not found_BC.requires_grad


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("function", [kd_loss, kd_gradient, soft_targets, entropy_from_gradients])
def test_a_temperature_must_be_finite_and_above_zero(function, temperature):
    with pytest.raises(ValueError, match="temperature"):
        function(logits(2, 3), logits(2, 3), temperature)


@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (5, 2, 4), (5, 1, 3), (3,)])
def test_shapes_must_fit(shape):
    with pytest.raises(ValueError, match=r"like the student's"):
        kd_gradient(logits(2, 3), logits(*shape), 1.0)
    with pytest.raises(ValueError, match=r"student_logits must be \[B, C\]"):
        kd_loss(logits(1, 2, 3), logits(2, 3), 1.0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1], "shape"), ([0, 1, 3], "0 … 2"), ([0, -1, 1], "0 … 2"), ([0.0, 1.0, 2.0], "integers")],
)
def test_labels_must_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        label_gradient(logits(3, 3), torch.tensor(labels))
