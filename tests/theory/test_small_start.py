"""Witnesses: an adaptive ODE solver on the matrix flow, regression over start scales, least squares, random search."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from companion.theory.stepwise import (
    aligned_partner,
    barlow_loss,
    critical_times,
    effective_init,
    leak,
    leak_exponent,
    minimum_norm,
    singular_values,
    top_spectral,
)
from tests.theory.linear_flow import MIXED, correlation, follow, gaussian, with_spectrum

GAPPED = torch.tensor([2.0, 1.4, 1.0, 0.6, 0.45, 0.2, 0.0, -0.9], dtype=torch.float64)


def trapezoid(W: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
    """R of W V = Q R with a positive diagonal."""
    R = torch.linalg.qr(W @ V).R
    return R * R.diagonal().sign()[:, None]


@given(st.integers(0, 1000), st.floats(0.0, 1.0))
def test_nothing_of_zero_loss_is_shorter_than_the_top_spectral_encoder(seed, spill):
    Gamma, V = with_spectrum(MIXED)
    W = top_spectral(MIXED, V, 2)
    assert barlow_loss(W, Gamma) < 1e-24
    assert float(W.square().sum()) == pytest.approx(minimum_norm(MIXED, 2), rel=1e-12)
    N = spill * gaussian(2, 3, seed=seed)  # weight on negative modes, made up for on positive ones
    left = torch.linalg.cholesky(torch.eye(2) + N @ N.T)
    B = left @ torch.linalg.qr(gaussian(3, 2, seed=seed + 1)).Q.T
    other = (
        torch.cat([B * MIXED[:3].rsqrt(), spill * gaussian(2, 1, seed=seed + 2), N * MIXED[4:].abs().rsqrt()], 1) @ V.T
    )
    assert barlow_loss(other, Gamma) < 1e-20
    assert float(other.square().sum()) >= minimum_norm(MIXED, 2) - 1e-12


def test_order_by_modulus_is_a_bug_that_only_negative_modes_show():
    Gamma, V = with_spectrum(MIXED)
    by_modulus = MIXED.abs().argsort(descending=True)[:2]
    W = MIXED[by_modulus].abs().rsqrt()[:, None] * V[:, by_modulus].T
    assert barlow_loss(W, Gamma) == pytest.approx(4)  # the mode -2.5 comes first and has c = -1
    assert torch.linalg.svdvals(Gamma)[0] == pytest.approx(2.5)


def test_effective_start_is_qr_and_neither_norms_nor_singular_values():
    Gamma, V = with_spectrum(GAPPED)
    W0, times = 1e-2 * gaussian(4, 8, seed=5), np.linspace(0, 6, 6001)
    c = torch.linalg.eigvalsh(correlation(follow(Gamma, W0, times), Gamma)).flip(1)
    measured = torch.from_numpy(times[(c > 0.5).int().argmax(0).numpy()])

    def error(s0: torch.Tensor) -> float:
        return float((critical_times(GAPPED[:4], s0) / measured - 1).abs().max())

    A = W0 @ V[:, :4]
    assert error(effective_init(W0, V)) < 0.02
    assert error(A.norm(dim=0)) > 0.05
    assert error(torch.linalg.svdvals(A)) > 0.05


@given(st.integers(0, 1000))
def test_effective_start_is_the_part_outside_the_span_of_the_columns_before(seed):
    A, rotation = gaussian(3, 5, seed=seed), torch.linalg.qr(gaussian(3, 3, seed=seed + 1)).Q
    for j, r in enumerate(effective_init(A, torch.eye(5, dtype=torch.float64))):
        outside = A[:, j] if j == 0 else A[:, j] - A[:, :j] @ torch.linalg.lstsq(A[:, :j], A[:, [j]]).solution[:, 0]
        assert float(r) == pytest.approx(float(outside.norm()), rel=1e-9)
    _, V = with_spectrum(GAPPED[:5], seed=seed)
    partner = aligned_partner(A, V[:, :3])
    assert torch.allclose(
        aligned_partner(rotation @ A, V), rotation @ partner, atol=1e-12
    )  # outputs have no preferred axes
    assert torch.allclose(aligned_partner(partner, V), partner, atol=1e-12)
    assert torch.allclose((partner @ V[:, :3]).norm(dim=0), effective_init(A, V), atol=1e-12)


def test_small_starts_follow_their_partner_and_leak_by_the_predicted_power():
    Gamma, V = with_spectrum(GAPPED)
    alphas, times = np.logspace(-6, -3, 4), np.linspace(0, 14, 60)
    distances, leaks = [], []
    for alpha in alphas:
        W0 = alpha * gaussian(4, 8, seed=5)
        path, partner = follow(Gamma, W0, times, rtol=1e-10), aligned_partner(W0, V)
        start, Q = effective_init(W0, V), torch.nn.functional.normalize(partner @ V[:, :4], dim=0)
        s = singular_values(GAPPED[:4], start, torch.from_numpy(times)[:, None])
        distances.append(float((path - Q * s[:, None] @ V[:, :4].T).flatten(1).norm(dim=1).max()))
        leaks.append(float((path[-1] @ V[:, 4:]).norm()))
        assert float(path[-1].square().sum()) > minimum_norm(GAPPED, 4)
        expected = leak(GAPPED, trapezoid(W0, V), 4)
        assert expected[:, :4].abs().max() == 0
        if alpha == alphas[0]:
            assert torch.allclose(trapezoid(path[-1], V)[3, 4:7], expected[3, 4:7], rtol=0.01, atol=0)
            assert leaks[0] == pytest.approx(float(expected.norm()), rel=0.01)
            assert float(path[-1].square().sum()) == pytest.approx(minimum_norm(GAPPED, 4), rel=0.02)
    slope = np.polyfit(np.log(alphas), np.log(leaks), 1)[0]
    assert slope == pytest.approx(leak_exponent(GAPPED, 4), abs=0.02)
    assert abs(slope - (1 - 0.2 / 0.6)) > 0.2  # control: another mode's exponent
    assert np.polyfit(np.log(alphas), np.log(distances), 1)[0] == pytest.approx(0.25, abs=0.05)


def test_one_output_has_an_exact_law_that_leak_approaches():
    gamma = torch.tensor([1.0, 0.6, 0.1, 0.0, -0.5], dtype=torch.float64)
    Gamma, V = with_spectrum(gamma)
    errors = []
    for alpha in (1e-2, 1e-4, 1e-6):
        y0 = alpha * torch.tensor([[1.0, -0.7, 0.5, 0.3, 0.2]], dtype=torch.float64)
        sigma = brentq(lambda u, y0=y0: float((gamma * y0.square() * (8 * gamma * u).exp()).sum()) - 1, 0, 99)
        end = y0 * (4 * gamma * sigma).exp()
        assert torch.allclose(follow(Gamma, y0 @ V.T, [0, 30.0])[-1] @ V, end, rtol=0, atol=1e-8)
        errors.append(float((leak(gamma, y0, 1)[:, 1:] / end[:, 1:] - 1).abs().max()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4
    assert leak_exponent(gamma, 1) == pytest.approx(0.4)
    assert leak_exponent(gamma, 3) == leak_exponent(gamma[[0, 4]], 1) == 1


def test_gaussian_starts_have_chi_squared_effective_starts():
    k, draws = 4, 3000
    squares = torch.stack([effective_init(gaussian(k, k, seed=i), torch.eye(k)).square() for i in range(draws)])
    freedom = torch.arange(k, 0, -1, dtype=torch.float64)  # k - j + 1
    errors = (squares.mean(0) - freedom) / (2 * freedom / draws).sqrt()
    assert errors.abs().max() < 4
    assert ((squares.mean(0) - k) / (2 * freedom / draws).sqrt()).abs()[1:].min() > 10  # control: norms of columns


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effective_init(torch.ones(2, 3), torch.eye(2)), "effective_init: start and eigenvectors do not fit"),
        (lambda: aligned_partner(torch.ones(2, 3), torch.eye(3)[:, :1]), r"need \(k, m\) and \(m, q >= k\)"),
        (lambda: effective_init(torch.ones(3), torch.eye(3)), "do not fit"),
        (lambda: effective_init(torch.ones(2, 3), torch.eye(3)), "column 2 of W0 V depends on those before it"),
        (lambda: aligned_partner(torch.zeros(2, 3), torch.eye(3)), "column 1 .* dimension 1 is not seeded"),
        (lambda: top_spectral(MIXED, torch.eye(7), 4), "only 3 of 7 eigenvalues are positive, k=4 cannot be learned"),
        (lambda: top_spectral(MIXED, torch.eye(6), 2), "eigenvectors must have a column for each of 7"),
        (lambda: minimum_norm(MIXED, 0), "minimum_norm: only 3 of 7"),
        (lambda: minimum_norm(MIXED.flip(0), 1), "must decrease by signed value; eigh returns"),
        (lambda: minimum_norm(torch.tensor([torch.nan, 1.0]), 1), "must decrease by signed value"),
        (lambda: leak_exponent(GAPPED[:4], 4), "no direction is left to leak into"),
        (lambda: leak_exponent(MIXED, 4), "leak_exponent: only 3 of 7"),
        (lambda: leak(GAPPED, torch.ones(4, 7), 4), r"R0 must have shape \(4, 8\), .* got \(4, 7\)"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_small_columns_are_not_taken_for_dependent_ones():
    start = torch.diag(torch.tensor([1.0, 1e-20], dtype=torch.float64))
    assert effective_init(start, torch.eye(2)).tolist() == [1.0, 1e-20]
