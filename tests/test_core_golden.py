"""Every strategy against values worked out by hand or by another route, and two classes in full."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.svm import OneClassSVM
from torch import nn
from torch.nn import functional

from agrekd_ray.core.kd import kd_gradient, kd_loss
from agrekd_ray.core.strategies import _mix
from agrekd_ray.core.weighting import combine, sample_weights, weigh


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads only get in each other's way on tensors of a hundred numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


# --- AVER, Random ----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_aver_is_distillation_from_the_mean_answer(temperature):
    """Autograd through the cross-entropy with the mean of the softened answers, times τ²."""
    student_BC, teachers_MBC = drawn(6, 5).requires_grad_(), drawn(4, 6, 5, seed=1)
    target_BC = (teachers_MBC / temperature).softmax(-1).mean(0)
    loss = -(target_BC * (student_BC / temperature).log_softmax(-1)).sum() * temperature**2
    (expected_BC,) = torch.autograd.grad(loss, student_BC)
    logits_BC = student_BC.detach()
    gradients_MBC = kd_gradient(logits_BC, teachers_MBC, temperature)
    found = combine("aver", gradients_MBC, student_logits=logits_BC, temperature=temperature)
    torch.testing.assert_close(found.gradient_BC, expected_BC, rtol=1e-6, atol=1e-6)
    assert found.weights_MB.unique().tolist() == [0.25]


def test_the_draws_of_random():
    """The generator's published values, and draws that any later version must repeat."""
    gamma, state = 0x9E3779B97F4A7C15, 1234567
    published = (
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    )
    assert tuple(_mix((state + k * gamma) % 2**64) for k in range(5)) == published
    gradients_MBC = drawn(5, 3, 4)
    draws = [
        [int(weigh("random", gradients_MBC, seed=s, step=t)[:, 0].argmax()) for t in range(12)]
        for s in (0, 1)
    ]
    assert draws == DRAWS
    given = {"student_logits": torch.zeros(3, 4).double(), "temperature": 1.0}
    found = combine("random", gradients_MBC, seed=0, step=0, **given)
    assert torch.equal(found.gradient_BC, gradients_MBC[DRAWS[0][0]])


DRAWS = [[1, 2, 3, 3, 1, 4, 2, 2, 4, 3, 0, 4], [0, 2, 1, 1, 2, 2, 0, 1, 1, 1, 4, 1]]


# --- AGRE-KD ---------------------------------------------------------------------------------


def test_agre_kd_by_hand():
    """Cosines 1, −1/2 and 0 with the biased model, so W = 0, 3/2 and 1, of sum 5/2."""
    biased_BC = torch.tensor([[2.0, -1.0, -1.0]])
    gradients_MBC = torch.tensor([[[4.0, -2.0, -2.0]], [[-1.0, 2.0, -1.0]], [[0.0, 1.0, -1.0]]])
    found = combine(
        "agre_kd", gradients_MBC, biased_BC, student_logits=torch.zeros(1, 3), temperature=9.0
    )
    torch.testing.assert_close(found.weights_MB.flatten(), torch.tensor([0.0, 0.6, 0.4]))
    torch.testing.assert_close(found.gradient_BC, torch.tensor([[-0.6, 1.6, -1.0]]))


def head_and_losses(classes, temperature, seed=0):
    """A student of one hidden layer, and its losses [M + 1, B] against the biased model first."""
    torch.manual_seed(seed)
    body, head = nn.Linear(4, 6).double(), nn.Linear(6, classes).double()
    logits_BC = head(torch.tanh(body(drawn(5, 4, seed=seed))))
    others = drawn(5, 5, classes, seed=seed + 1)
    losses = torch.stack([kd_loss(logits_BC, z, temperature) for z in others])
    return body, head, logits_BC, others, losses


def cosines(losses, parameters):
    """Of every teacher's gradient with the biased model's, by sample, [M, B]."""

    def gradient(loss):
        parts = torch.autograd.grad(loss, parameters, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    return torch.stack(
        [
            torch.stack(
                [
                    functional.cosine_similarity(gradient(one[i]), gradient(losses[0][i]), dim=0)
                    for i in range(losses.shape[1])
                ]
            )
            for one in losses[1:]
        ]
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("classes", [3, 10])
def test_agre_kd_is_the_papers_loss_with_cosines_of_the_last_layer(classes, temperature):
    """Down to the parameters: what is backpropagated is the gradient of the weighted loss."""
    body, head, logits_BC, others, losses = head_and_losses(classes, temperature)
    disagreement_MB = 1 - cosines(losses, list(head.parameters()))
    weighted_B = (disagreement_MB * losses[1:]).sum(0) / disagreement_MB.sum(0)
    everything = [*body.parameters(), *head.parameters()]
    expected = torch.autograd.grad(weighted_B.sum(), everything, retain_graph=True)

    gradients = kd_gradient(logits_BC.detach(), others, temperature)
    found = combine(
        "agre_kd",
        gradients[1:],
        gradients[0],
        student_logits=logits_BC.detach(),
        temperature=temperature,
    )
    got = torch.autograd.grad(logits_BC, everything, grad_outputs=found.gradient_BC)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.loss_B, weighted_B.detach(), rtol=1e-5, atol=1e-5)
    assert not found.fallback_B.any()


@pytest.mark.parametrize("classes", [2, 10])
def test_cosines_of_all_parameters_are_those_of_the_last_layer_for_two_classes_only(classes):
    body, head, _, _, losses = head_and_losses(classes, 4.0)
    last = cosines(losses, list(head.parameters()))
    every = cosines(losses, [*body.parameters(), *head.parameters()])
    if classes == 2:
        torch.testing.assert_close(last.abs(), torch.ones_like(last))
        torch.testing.assert_close(every, last)
    else:
        assert (every - last).abs().max() > 0.01


# --- AE-KD -----------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [0.6, 1.0])
@pytest.mark.parametrize("members", [2, 3, 5, 8])
def test_ae_kd_is_the_one_class_svm_on_the_gradients_of_the_batch_loss(members, box):
    """The route of its makers: ν = 1 / (box · M) caps every share of the dual at the box."""
    for seed in range(3):
        student_BC = drawn(16, 10, seed=seed).requires_grad_()
        teachers_MBC = drawn(members, 16, 10, seed=seed + 9)
        mean_MC = torch.stack(
            [
                torch.autograd.grad(kd_loss(student_BC, z, 4.0).sum(), student_BC)[0].mean(0)
                for z in teachers_MBC
            ]
        )
        gram_MM = (mean_MC @ mean_MC.T).numpy()
        gram_MM = gram_MM / gram_MM.trace()
        nu = min(1.0, 1 / (max(box, 1 / members) * members))
        svm = OneClassSVM(kernel="precomputed", nu=nu, tol=1e-12).fit(gram_MM)
        expected_M = np.zeros(members)
        expected_M[svm.support_] = svm.dual_coef_[0] / svm.dual_coef_.sum()

        gradients_MBC = kd_gradient(student_BC.detach(), teachers_MBC, 4.0)
        shares_M = weigh("ae_kd", gradients_MBC, temperature=4.0, box=box)[:, 0].double().numpy()
        assert shares_M.max() <= box + 1e-6
        np.testing.assert_allclose(shares_M, expected_M, atol=2e-4)


# --- CA-MKD, Govern --------------------------------------------------------------------------


def test_ca_mkd_by_hand():
    """p(label) = 1/2, 1/4, 1/8: softmax of the losses is 2, 4, 8 of 14; w = 12, 10, 6 of 28."""
    right_M = torch.tensor([1 / 2, 1 / 4, 1 / 8])
    teachers_MBC = torch.stack([right_M, 1 - right_M], dim=-1).log().unsqueeze(1)
    student_BC, labels_B = torch.tensor([[0.3, -0.2]]), torch.tensor([0])
    for temperature in (1.0, 4.0):
        gradients_MBC = kd_gradient(student_BC, teachers_MBC, temperature)
        found_MB = weigh("ca_mkd", gradients_MBC, None, labels_B, temperature, student_BC)
        expected_M = torch.tensor([12.0, 10.0, 6.0]) / 28
        torch.testing.assert_close(found_MB.flatten(), expected_M, rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [3, 10])
def test_govern_by_counting(classes):
    """Our reading, one teacher and sample after the other, in Python's own numbers."""
    gradients_MBC = kd_gradient(drawn(8, classes, scale=0.3), drawn(5, 8, classes, seed=2), 4.0)
    found_BM = weigh("govern", gradients_MBC, temperature=4.0).T.tolist()
    sizes = set()
    for b, found_M in enumerate(found_BM):
        vectors = [gradients_MBC[m, b].tolist() for m in range(5)]
        units = [[x / math.hypot(*vector) for x in vector] for vector in vectors]
        mean = [sum(parts) / 5 for parts in zip(*units, strict=True)]
        inside = [sum(x * y for x, y in zip(v, mean, strict=True)) > 0 for v in vectors]
        assert found_M == pytest.approx([one / sum(inside) for one in inside])
        sizes.add(sum(inside))
    assert len(sizes) > 1  # some are left out, and not always as many


# --- sample weighting ------------------------------------------------------------------------


def test_sample_weights_by_hand():
    """Distances 0 and 3/4; with floor 1/4 and exponent 1/2 they become 1/2 and 1, of mean 3/4."""
    biased_BC = torch.tensor([[3.0, 1.0], [1.0, 9999.0]]).log()
    teachers_MBC = torch.tensor([[[3.0, 1.0], [3.0, 1.0]], [[3.0, 1.0], [3.0, 1.0]]]).log()
    student_BC = torch.tensor([[0.1, -0.4], [0.0, 2.0]])
    gradients = kd_gradient(student_BC, torch.cat([biased_BC[None], teachers_MBC]), 1.0)
    found_B = sample_weights(gradients[1:], gradients[0], 1.0, floor=0.25, exponent=0.5)
    torch.testing.assert_close(found_B, torch.tensor([2 / 3, 4 / 3]), rtol=1e-3, atol=0)


# --- two classes, in full --------------------------------------------------------------------

SIGNS = [pattern for M in range(1, 5) for pattern in itertools.product((-1, 0, 1), repeat=M)]
"""Every way in which up to four teachers can stand to the student; 0 has no direction."""


def gradients_of(signs):
    """[M, 1, 2] gradients of different lengths with these signs."""
    lengths = [0.1 * (m + 1) for m in range(len(signs))]
    return torch.tensor([[[s * x, -s * x]] for s, x in zip(signs, lengths, strict=True)])


@pytest.mark.parametrize("fallback", ["uniform", "skip"])
@pytest.mark.parametrize("biased", [-1, 0, 1])
def test_agre_kd_with_two_classes_chooses_who_pulls_away(biased, fallback):
    """W is 2 for a sign against the biased model's and 0 for the same: the chosen share evenly."""
    for signs in SIGNS:
        M, against = len(signs), [s * biased < 0 for s in signs]
        found = combine(
            "agre_kd",
            gradients_of(signs),
            torch.tensor([[0.3 * biased, -0.3 * biased]]),
            student_logits=torch.zeros(1, 2),
            temperature=1.0,
            fallback=fallback,
        )
        nobody = [1 / M if fallback == "uniform" else 0.0] * M
        expected = [one / sum(against) for one in against] if any(against) else nobody
        assert torch.equal(found.weights_MB.flatten(), torch.tensor(expected)), signs
        assert bool(found.fallback_B) == (not any(against)), signs


def test_govern_with_two_classes_is_the_majority_of_signs():
    """The larger side shares evenly; a tie averages all, those without direction too."""
    for signs in SIGNS:
        lead = (sum(signs) > 0) - (sum(signs) < 0)
        inside = [s == lead for s in signs] if lead else [True] * len(signs)
        expected = torch.tensor([one / sum(inside) for one in inside])
        assert torch.equal(weigh("govern", gradients_of(signs)).flatten(), expected), signs


@pytest.mark.parametrize("means", [(0.3, -0.3, 0.2), (1.0, -1.0, 0.5, -0.5), (0.2, 0.1, -0.9, 0.4)])
def test_ae_kd_with_two_classes_takes_the_most_even_of_many_solutions(means):
    """Any mixture of length 0 is a solution: scipy finds the one nearest to even shares."""
    M = len(means)
    nearest = minimize(
        lambda a: ((a - 1 / M) ** 2).sum(),
        np.full(M, 1 / M),
        bounds=[(0, 0.6)] * M,
        constraints=[
            {"type": "eq", "fun": lambda a: a.sum() - 1},
            {"type": "eq", "fun": lambda a: a @ np.array(means)},
        ],
        options={"ftol": 1e-14},
    )
    assert nearest.success
    shares_M = weigh("ae_kd", torch.tensor([[[x, -x], [x, -x]] for x in means]))[:, 0]
    np.testing.assert_allclose(shares_M, nearest.x, atol=1e-3)


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ((0.3, -0.1, 0.2), [0, 0.6, 0.4]),  # −0.06 + 0.08 is as near to 0 as the box lets it
        ((1.0, 0.5, -0.1), [0, 0.4, 0.6]),
        ((0.4, 0.1, 0.2), [0, 0.6, 0.4]),  # all on one side: the shortest, then the next
    ],
)
def test_ae_kd_with_two_classes_goes_as_far_as_the_box(means, expected):
    shares_M = weigh("ae_kd", torch.tensor([[[x, -x]] for x in means]))[:, 0]
    assert shares_M.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("means", [(1.0, -1.0, 0.5, -0.5), (0.5, 0.5, -1.0, 0.2), (1, 1, 1, 1)])
def test_ae_kd_with_two_classes_does_not_see_the_order_of_teachers(means):
    gradients_MBC = torch.tensor([[[float(x), -float(x)]] for x in means])
    shares_M = weigh("ae_kd", gradients_MBC)[:, 0]
    for order in itertools.permutations(range(4)):
        permuted_M = weigh("ae_kd", gradients_MBC[list(order)])[:, 0]
        torch.testing.assert_close(permuted_M, shares_M[list(order)], rtol=0, atol=1e-6)
    for m, k in itertools.combinations(range(4), 2):
        if means[m] == means[k]:
            assert float(shares_M[m]) == pytest.approx(float(shares_M[k]), abs=1e-6)
