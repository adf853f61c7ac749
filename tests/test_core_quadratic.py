"""The solver behind AE-KD, against scipy and against its own optimality condition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from agrekd_ray.core.quadratic import RIDGE, shortest_mixture

BOXES = (0.05, 0.2, 0.25, 1 / 3, 0.5, 0.6, 0.9, 1.0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads only get in each other's way on tensors of a hundred numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gram(vectors_MC):
    return vectors_MC @ vectors_MC.T


def regularised(gram_MM):
    return gram_MM / gram_MM.trace() + RIDGE * torch.eye(len(gram_MM), dtype=torch.float64)


def optimality_gap(gram_MM, box, shares_M):
    """How far the objective can still fall, at most, relative to the trace (Frank-Wolfe gap)."""
    slope_M = regularised(gram_MM) @ shares_M
    box, left, best = max(box, 1 / len(shares_M)), 1.0, 0.0
    for slope in sorted(slope_M.tolist()):
        best += slope * min(box, left)
        left -= min(box, left)
    return float(slope_M @ shares_M) - best


def vectors(kind, members, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    free_MC = torch.randn(members, classes, generator=generator, dtype=torch.float64)
    common_C = torch.randn(classes, generator=generator, dtype=torch.float64)
    if kind == "free":
        return free_MC
    if kind == "alike":
        return 0.05 * free_MC + common_C
    if kind == "lattice":
        return torch.randint(-2, 3, (members, classes), generator=generator).double()
    if kind == "rank one":
        return free_MC[:, :1] * common_C
    if kind == "one sided":
        return free_MC[:, :1].abs() * common_C
    return free_MC[torch.randint(max(1, members // 2), (members,), generator=generator)]


KINDS = ("free", "alike", "lattice", "rank one", "one sided", "duplicates")


@settings(deadline=None, max_examples=120)
@given(
    kind=st.sampled_from(KINDS),
    members=st.integers(1, 24),
    classes=st.sampled_from((2, 3, 10, 40)),
    box=st.sampled_from(BOXES),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from((1e-6, 1.0, 1e6)),
)
def test_shares_are_feasible_and_optimal(kind, members, classes, box, seed, scale):
    gram_MM = gram(vectors(kind, members, classes, seed) * scale)
    shares_M = shortest_mixture(gram_MM, box)
    assert shares_M.dtype == torch.float64
    assert (shares_M >= 0).all()
    assert (shares_M <= max(box, 1 / members) + 1e-12).all()
    assert float(shares_M.sum()) == pytest.approx(1, abs=1e-10)
    if float(gram_MM.trace()) > 0:
        assert optimality_gap(gram_MM, box, shares_M) <= 1e-12


@pytest.mark.parametrize("box", [0.05, 0.5, 0.6])
@pytest.mark.parametrize("kind", KINDS)
def test_fifty_members(kind, box):
    for seed in range(3):
        gram_MM = gram(vectors(kind, 50, 10, seed))
        shares_M = shortest_mixture(gram_MM, box)
        assert optimality_gap(gram_MM, box, shares_M) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("members", [2, 5, 12, 50])
def test_scipy_finds_nothing_shorter(kind, members):
    for seed in range(1 if members == 50 else 3):
        gram_MM = gram(vectors(kind, members, 10, seed))
        if float(gram_MM.trace()) == 0:
            continue
        hessian = regularised(gram_MM).numpy()
        result = minimize(
            lambda a, h=hessian: a @ h @ a / 2,
            np.full(members, 1 / members),
            jac=lambda a, h=hessian: h @ a,
            bounds=[(0, 0.6)] * members,
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 300},
        )
        ours = shortest_mixture(gram_MM, 0.6).numpy()
        assert result.success
        assert ours @ hessian @ ours / 2 == pytest.approx(result.fun, abs=1e-8)
        if np.linalg.cond(hessian) < 1e3:
            np.testing.assert_allclose(ours, result.x, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    members=st.integers(2, 14),
    box=st.sampled_from(BOXES),
    seed=st.integers(0, 2**31),
)
def test_order_does_not_matter(kind, members, box, seed):
    vectors_MC = vectors(kind, members, 3, seed)
    order_M = torch.randperm(members, generator=torch.Generator().manual_seed(seed))
    shares_M = shortest_mixture(gram(vectors_MC), box)
    permuted_M = shortest_mixture(gram(vectors_MC[order_M]), box)
    torch.testing.assert_close(permuted_M, shares_M[order_M], rtol=0, atol=1e-6)


def test_hand_worked_mixtures():
    # Orthogonal vectors of squared length 1 and 4: shares 4/5 and 1/5, or the box and the rest.
    gram_MM = torch.diag(torch.tensor([1.0, 4.0]))
    for box, expected in ((1.0, [0.8, 0.2]), (0.6, [0.6, 0.4]), (0.5, [0.5, 0.5])):
        shares_M = shortest_mixture(gram_MM, box)
        torch.testing.assert_close(shares_M, torch.tensor(expected).double(), rtol=0, atol=1e-5)


def test_equally_short_mixtures_are_even():
    opposite_MC = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])  # any half-and-half has length 0
    torch.testing.assert_close(
        shortest_mixture(gram(opposite_MC), 0.6), torch.full((4,), 0.25).double()
    )
    twins_MC = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    expected_M = torch.tensor([0.25, 0.25, 0.5]).double()
    torch.testing.assert_close(shortest_mixture(gram(twins_MC), 0.6), expected_M, rtol=0, atol=1e-5)


@pytest.mark.parametrize("members", [1, 2, 7])
def test_nothing_to_decide_is_uniform(members):
    uniform_M = torch.full((members,), 1 / members).double()
    some_MM = gram(vectors("free", members, 4, seed=0))
    torch.testing.assert_close(shortest_mixture(torch.zeros(members, members), 0.6), uniform_M)
    torch.testing.assert_close(shortest_mixture(some_MM, 1 / members), uniform_M)
    torch.testing.assert_close(shortest_mixture(some_MM, 0.1 / members), uniform_M)


@pytest.mark.parametrize(
    "gram_MM",
    [torch.zeros(2, 3), torch.zeros(0, 0), torch.zeros(3), torch.full((2, 2), float("nan"))],
)
def test_only_finite_square_matrices(gram_MM):
    with pytest.raises(ValueError, match="Gram"):
        shortest_mixture(gram_MM, 0.6)


def test_the_matrix_is_left_alone():
    gram_MM = gram(vectors("free", 4, 4, seed=0))
    before_MM = gram_MM.clone()
    shortest_mixture(gram_MM, 0.6)
    torch.testing.assert_close(gram_MM, before_MM, rtol=0, atol=0)
