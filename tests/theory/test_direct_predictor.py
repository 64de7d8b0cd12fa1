"""Witnesses: the authors' steps written naively, invariances, matrix flows whose predictor is set at every instant."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from companion.theory.direct_predictor import boosted_end, direct_copy, direct_pred, direct_set_points
from companion.theory.predictor_modes import collapse_threshold, fixed_points


def second_moment(k: int, rows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    f = torch.randn(rows, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    f = (f * torch.logspace(0, -2, k, dtype=torch.float64)).to(dtype)
    return f.T @ f / rows


def grow(set_p, s0: float, eta: float, sigma2: float, until: float = 3000.0) -> float:
    """Integrate log s of one mode under a predictor p(s), target equal to online network; return s at the end."""

    def velocity(_, y):
        p = set_p(math.exp(y[0]))
        return [2 * (p * (1 - (1 + sigma2) * p) - eta)]

    return math.exp(solve_ivp(velocity, (0, until), [math.log(s0)], "LSODA", rtol=1e-10, atol=1e-12).y[0, -1])


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("power", "offset"), [(0.5, 0.0), (1.0, 0.0), (0.5, 0.1), (0.5, -0.1), (2.0, 0.3)])
def test_direct_pred_is_the_authors_steps(epsilon, power, offset):
    F = second_moment(6, 4)  # two eigenvalues are zero
    s, U = np.linalg.eigh(F.numpy())
    W = np.zeros((6, 6))
    for j in range(6):
        d = max(s[j], 0) / s[-1]
        W += max(max(d - offset, 0) ** power + epsilon, 1e-4) * np.outer(U[:, j], U[:, j])
    found = direct_pred(F, epsilon, power=power, offset=offset)
    assert np.allclose(found.numpy(), W, atol=1e-7 if power < 1 else 1e-12)  # the root of a rounded zero
    assert torch.allclose(found, found.T, atol=1e-14)
    assert torch.allclose(found @ F, F @ found, atol=1e-14)
    assert float(torch.linalg.eigvalsh(found)[0]) >= 1e-4 * (1 - 1e-9)


def test_direct_pred_squares_to_its_input():
    F = second_moment(5, 40) + 0.01 * torch.eye(5, dtype=torch.float64)  # clear of the floor
    W = direct_pred(F, 0.0)
    assert torch.allclose(W @ W, F / torch.linalg.eigvalsh(F)[-1], atol=1e-14)
    assert torch.allclose(direct_pred(F, 0.0, power=1.0) @ W, W @ W @ W, atol=1e-14)
    s = torch.linalg.eigvalsh(100 * F)
    printed = s.sqrt() + 0.1 * s[-1]  # control: the formula as printed has another ratio unless s_max = 1
    assert not torch.allclose(torch.linalg.eigvalsh(direct_pred(100 * F, 0.1)) / 1.1, printed / printed[-1], rtol=0.02)
    unit = 100 * F / s[-1]
    s = torch.linalg.eigvalsh(unit)
    assert torch.allclose(torch.linalg.eigvalsh(direct_pred(unit, 0.1)), s.sqrt() + 0.1 * s[-1], rtol=1e-9)


@given(st.floats(1e-12, 1e12), st.floats(0, 2), st.floats(0.2, 3), st.floats(-0.5, 0.9))
def test_direct_pred_ignores_scale_and_turns_with_its_input(scale, epsilon, power, offset):
    F = second_moment(5, 9)
    W = direct_pred(F, epsilon, power=power, offset=offset)
    assert torch.allclose(direct_pred(scale * F, epsilon, power=power, offset=offset), W, rtol=1e-5, atol=1e-6)
    Q = torch.linalg.qr(second_moment(5, 9, seed=1)).Q
    turned = direct_pred(Q @ F @ Q.T, epsilon, power=power, offset=offset)
    assert torch.allclose(turned, Q @ W @ Q.T, rtol=1e-5, atol=1e-6)


def test_direct_pred_keeps_dead_modes_on_the_floor():
    W = direct_pred(torch.diag(torch.tensor([1.0, 0.05, 0.0])), 0.0, offset=0.1)
    assert W.diagonal().tolist() == pytest.approx([0.9**0.5, 1e-4, 1e-4], rel=1e-5)
    lifted = direct_pred(torch.diag(torch.tensor([1.0, 0.05, 0.0])), 0.0, offset=-0.1)
    assert lifted.diagonal().tolist() == pytest.approx([1.1**0.5, 0.15**0.5, 0.1**0.5], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_precision_and_batches(dtype):
    F = torch.stack([second_moment(16, 8, seed, dtype) for seed in range(3)])
    F.requires_grad_()
    for rule in (direct_pred, direct_copy):
        W = rule(F, 0.1)
        assert (W.dtype, W.shape, W.requires_grad) == (dtype, F.shape, False)
        for alone, one in zip(W, F, strict=True):
            assert torch.allclose(
                rule(one, 0.1).double(), alone.double(), atol=1e-2 if dtype == torch.bfloat16 else 1e-6
            )
        if dtype != torch.bfloat16:  # float32 that comes as float64 has the rounding of float32, and may
            assert torch.equal(rule(F.double(), 0.1).to(dtype), W)


def test_a_mode_beyond_the_range_of_float32_rounding_is_not_an_error():
    F = second_moment(128, 64, dtype=torch.float32)  # eigenvalues at zero come out on both sides of it
    assert float(torch.linalg.eigvalsh(F)[0]) < 0
    assert direct_pred(F, 0.1).isfinite().all()


def test_direct_copy_divides_by_what_it_says():
    F = second_moment(5, 30)
    eye = torch.eye(5, dtype=torch.float64)
    assert torch.allclose(direct_copy(F, 0.3), direct_pred(F, 0.3, power=1.0), atol=1e-14)
    assert torch.allclose(direct_copy(F, 0.3), F / np.linalg.norm(F.numpy(), 2) + 0.3 * eye, atol=1e-14)
    assert torch.allclose(direct_copy(F, 0.3, "frobenius"), F / F.square().sum().sqrt() + 0.3 * eye, atol=1e-14)
    assert torch.equal(direct_copy(F, 0.3, None), F + 0.3 * eye)
    for norm in ("spectral", "frobenius", None):
        same = torch.allclose(direct_copy(7 * F, 0.3, norm), direct_copy(F, 0.3, norm), atol=1e-13)
        assert same == (norm is not None)


@pytest.mark.parametrize(
    ("power", "expected"), [(0.5, (0.002872, 0.557128)), (1.0, (0.053590, 0.746410)), (2.0, (0.231495, 0.863950))]
)
def test_set_points_are_the_border_and_the_end(power, expected):
    saddle, useful = (float(x) for x in direct_set_points(power, 0.05, 0.25))
    assert (round(saddle, 6), round(useful, 6)) == expected
    border = brentq(lambda s: grow(lambda s: s**power, s, 0.05, 0.25) - 0.1, 1e-4, 0.5, xtol=1e-10)
    assert saddle == pytest.approx(border, rel=1e-6)
    assert useful == pytest.approx(grow(lambda s: s**power, 1.01 * saddle, 0.05, 0.25), rel=1e-8)
    assert grow(lambda s: s**power, 0.99 * saddle, 0.05, 0.25) < 1e-12
    scaled = direct_set_points(power, 0.05, 0.25, 3.0)
    assert float(scaled.useful) == pytest.approx(grow(lambda s: 3 * s**power, 1.0, 0.05, 0.25), rel=1e-8)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_decay_drops_the_blurred_subspace_at_every_power(power):
    clean, blurred, eta = 3, 2, 0.15  # thresholds 0.25 and 0.25 / 2.5
    Sigma = np.diag([1.0] * clean + [2.5] * blurred)
    start = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]

    def ends(eta):
        def velocity(_, w):
            W = w.reshape(5, 5)
            s, U = np.linalg.eigh(W @ W.T)
            Wp = (U * s.clip(0) ** power) @ U.T
            return (Wp @ (W - Wp @ W @ Sigma) - eta * W).ravel()

        W = solve_ivp(velocity, (0, 400), start.ravel(), "LSODA", rtol=1e-9, atol=1e-12).y[:, -1].reshape(5, 5)
        return W.T @ W

    projection = np.diag([1.0] * clean + [0.0] * blurred)
    assert np.allclose(ends(eta), float(direct_set_points(power, eta, 0.0).useful) * projection, atol=1e-6)
    assert float(collapse_threshold(1.0, 1.5)) < eta < float(collapse_threshold(1.0, 0.0))
    both = np.linalg.eigvalsh(ends(0.05))  # control: weaker decay keeps both
    expected = [float(direct_set_points(power, 0.05, sigma2).useful) for sigma2 in (1.5, 0.0)]
    assert np.allclose(both, [expected[0]] * blurred + [expected[1]] * clean, atol=1e-6)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_second_moments_of_single_views_scale_the_predictor(power):
    sigma2, eta = 0.25, 0.05
    start = np.random.default_rng(1).normal(size=(3, 4))

    def velocity(_, w):
        W = w.reshape(3, 4)
        s, U = np.linalg.eigh((1 + sigma2) * W @ W.T)  # E f f^T = W Sigma_x W^T
        Wp = (U * s.clip(0) ** power) @ U.T
        return (Wp @ (W - (1 + sigma2) * Wp @ W) - eta * W).ravel()

    W = solve_ivp(velocity, (0, 600), start.ravel(), "LSODA", rtol=1e-9, atol=1e-12).y[:, -1].reshape(3, 4)
    end = float(direct_set_points(power, eta, sigma2, (1 + sigma2) ** power).useful)
    assert np.allclose(np.linalg.eigvalsh(W @ W.T), end, atol=1e-6)
    assert end == pytest.approx(float(fixed_points(1.0, eta, sigma2).useful) ** (1 / power) / (1 + sigma2), rel=1e-12)


def test_boost_abolishes_the_basin_and_costs_size():
    eta, sigma2 = 0.05, 0.25
    saddle, useful = (float(x) for x in fixed_points(1.0, eta, sigma2))
    epsilon = [0.0, 0.95 * saddle, 1.05 * saddle, 0.1, 0.3, 0.5, 0.7, 1.05 * useful]
    ends = boosted_end(torch.tensor(epsilon, dtype=torch.float64), eta, sigma2)
    flow = [grow(lambda s, e=e: math.sqrt(s) + e, 1e-8, eta, sigma2) for e in epsilon]
    assert ends.tolist() == pytest.approx(flow, abs=1e-7)
    assert [round(float(x), 3) for x in ends[2:6]] == [0.476, 0.418, 0.199, 0.061]
    assert (ends[[0, 1, -1]] == 0).all()
    assert (ends[2:7].diff() < 0).all()


def test_boosted_end_at_its_edges():
    eta = torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64)
    saddle, useful = fixed_points(1.0, eta[:3], 0.25)
    assert torch.allclose(boosted_end(saddle, eta[:3], 0.25), (useful - saddle).square(), atol=1e-15)
    assert (boosted_end(useful, eta[:3], 0.25) == 0).all()
    assert float(boosted_end(0.0, 0.0, 0.25)) == pytest.approx(0.64)  # no decay, no boost: p_+ = 0.8
    assert boosted_end(torch.linspace(0, 1, 11), 0.2001, 0.25).count_nonzero() == 0  # above the threshold
    assert boosted_end(torch.linspace(0, 1, 11)[:, None], eta, 0.25).shape == (11, 4)


def test_offset_kills_or_saves_small_modes():
    eta, sigma2 = 0.05, 0.25
    useful = float(fixed_points(1.0, eta, sigma2).useful)
    for s0, c, end in ((0.08, 0.1, 0.0), (0.2, 0.1, useful**2 + 0.1), (1e-6, -0.05, useful**2 - 0.05)):
        assert grow(lambda s, c=c: math.sqrt(max(s - c, 0)), s0, eta, sigma2) == pytest.approx(end, abs=1e-6)
    assert useful**2 - 0.05 == pytest.approx(0.507, abs=5e-4)


EYE = torch.eye(2)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: direct_pred(torch.ones(2, 3), 0.1), r"direct_pred: F_hat must be square, .* got \(2, 3\)"),
        (lambda: direct_copy(torch.ones(3), 0.1), r"direct_copy: F_hat must be square, .* got \(3,\)"),
        (lambda: direct_pred(torch.full((2, 2), math.nan), 0.1), "not finite: training diverged"),
        (lambda: direct_pred(torch.full((2, 2), math.inf), 0.1), "not finite: training diverged"),
        (lambda: direct_pred(torch.tensor([[1.0, 0.2], [0.0, 1.0]]), 0.1), r"symmetric, got \|F - F\^T\| up to 0.2"),
        (
            lambda: direct_pred(torch.zeros(2, 2), 0.1),
            "all zero, and so is every embedding: the online network has col",
        ),
        (lambda: direct_copy(torch.stack([EYE, 0 * EYE]), 0.1, "frobenius"), "the online network has collapsed"),
        (lambda: direct_pred(torch.diag(torch.tensor([1.0, -0.1])), 0.1), "semidefinite, got an eigenvalue -0.1"),
        (lambda: direct_pred(-EYE, 0.1), "must be positive semidefinite, got an eigenvalue -1"),
        (lambda: direct_copy(-EYE, 0.1), "direct_copy: F_hat must be positive semidefinite"),
        (lambda: direct_pred(EYE, -0.1), "direct_pred: the boost of the predictor, epsilon, must be >= 0, got -0.1"),
        (lambda: direct_copy(EYE, -0.1), "direct_copy: the boost of the predictor, epsilon, must be >= 0"),
        (lambda: direct_pred(EYE, 0.1, power=0.0), "the power of the set predictor, power, must be positive, got 0"),
        (lambda: direct_pred(EYE, 0.1, offset=1.0), "offset must be below 1, the largest eigenvalue after scaling"),
        (lambda: direct_pred(EYE, math.nan), "nan or infinite"),
        (lambda: direct_copy(EYE, 0.1, "nuclear"), "norm must be 'spectral', 'frobenius' or None, got 'nuclear'"),
        (lambda: direct_set_points(0.0, 0.1, 0.0), "power, must be positive, got 0"),
        (lambda: direct_set_points(0.5, 0.5, 0.0), r"eta = 0.5 is 2 times the threshold"),
        (lambda: direct_set_points(0.5, 0.1, 0.0, 0.0), "factor of the set predictor, scale, must be positive"),
        (lambda: boosted_end(-0.1, 0.1, 0.0), "boosted_end: the boost of the predictor, epsilon, must be >= 0"),
        (lambda: boosted_end(0.1, -0.1, 0.0), "boosted_end: the weight decay, eta, must be >= 0"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call()
