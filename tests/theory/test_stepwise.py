"""Witnesses: double loops, finite differences, an adaptive ODE solver on the matrix flow, sympy, conservation laws."""

import math

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from companion.theory.stepwise import (
    barlow_gradient,
    barlow_loss,
    correlation_eigenvalues,
    critical_times,
    cross_correlation,
    loss_staircase,
    rise_times,
    singular_values,
)
from tests.theory.linear_flow import MIXED, correlation, follow, gaussian, with_spectrum

POSITIVE, SIGNED, TIMES = st.floats(1e-3, 10), st.floats(-10, 10), st.floats(0, 5)


def test_cross_correlation_is_means_minus_half_differences():
    x1, x2 = gaussian(20, 4), gaussian(20, 4, seed=1)
    Gamma, means, halves = cross_correlation(x1, x2), (x1 + x2) / 2, (x1 - x2) / 2
    looped = sum(torch.outer(a, b) + torch.outer(b, a) for a, b in zip(x1, x2, strict=True)) / 40
    assert torch.allclose(Gamma, looped, atol=1e-14)
    assert torch.allclose(Gamma, means.T @ means / 20 - halves.T @ halves / 20, atol=1e-14)
    assert torch.equal(Gamma, Gamma.T)
    assert torch.equal(Gamma, cross_correlation(x2, x1))
    assert torch.linalg.eigvalsh(Gamma)[0] < -0.1  # views that have nothing in common
    assert torch.linalg.eigvalsh(cross_correlation(x1, x1))[0] > 0  # control: views that have everything
    assert not torch.allclose(x1.T @ x2 / 20, Gamma, atol=0.01)  # control: not symmetrised


def test_loss_is_the_one_of_the_embeddings():
    x1, x2, W = gaussian(20, 4), gaussian(20, 4, seed=1), gaussian(3, 4, seed=2)
    f1, f2, total = x1 @ W.T, x2 @ W.T, 0.0
    for i in range(3):
        for j in range(3):
            c = sum(float(a[i] * b[j] + b[i] * a[j]) for a, b in zip(f1, f2, strict=True)) / 40
            total += (c - (i == j)) ** 2
    assert barlow_loss(W, cross_correlation(x1, x2)) == pytest.approx(total, rel=1e-12)


def test_gradient_is_the_finite_difference():
    Gamma, _ = with_spectrum(MIXED)
    W, h = gaussian(3, 7, seed=1), 1e-6
    numeric = torch.zeros_like(W)
    for i in range(3):
        for j in range(7):
            e = torch.zeros_like(W)
            e[i, j] = h
            numeric[i, j] = (barlow_loss(W + e, Gamma) - barlow_loss(W - e, Gamma)) / (2 * h)
    scale = numeric.abs().max()
    assert (barlow_gradient(W, Gamma) - numeric).abs().max() < 1e-8 * scale
    assert (barlow_gradient(W, Gamma) / 2 - numeric).abs().max() > 0.1 * scale  # control: a factor of two


@pytest.mark.parametrize("modes", [[0, 1, 2, 3, 4], [2, 0, 6], [5]])
def test_aligned_trajectory_is_the_matrix_flow_for_every_sign(modes):
    Gamma, V = with_spectrum(MIXED)
    gamma, V, times = MIXED[modes], V[:, modes], [0.0, 0.1, 0.7, 1.5]
    s0 = torch.tensor([0.1, 0.3, 0.02, 0.5, 0.9], dtype=torch.float64)[: len(modes)]
    U = torch.linalg.qr(gaussian(len(modes), len(modes), seed=3)).Q
    path = follow(Gamma, U * s0 @ V.T, times, rtol=1e-12)  # longer, and rounding seeds the modes left out
    for t, W in zip(times, path, strict=True):
        assert torch.allclose(U * singular_values(gamma, s0, t) @ V.T, W, rtol=0, atol=1e-9)
        assert float(loss_staircase(gamma, s0, t)) == pytest.approx(barlow_loss(W, Gamma), abs=1e-10)
        c = torch.linalg.eigvalsh(correlation(W, Gamma))
        assert torch.allclose(correlation_eigenvalues(gamma, s0, t).sort().values, c, rtol=0, atol=1e-9)


def test_the_closed_form_solves_the_ode_symbolically():
    gamma, t = sympy.symbols("gamma t", real=True)
    s0 = sympy.symbols("s0", positive=True)
    s = sympy.exp(4 * gamma * t) / sympy.sqrt(s0**-2 + (sympy.exp(8 * gamma * t) - 1) * gamma)
    assert sympy.simplify(sympy.diff(s, t) / s - 4 * gamma * (1 - gamma * s**2)) == 0
    assert sympy.simplify(s.subs(t, 0) - s0) == 0
    for values in ((0.7, 0.01, 0.4), (-1.3, 0.4, 3.0), (0.0, 0.4, 3.0), (2.0, 5.0, 0.1)):
        point = float(s.subs(dict(zip((gamma, s0, t), map(sympy.Float, values), strict=True))))
        assert float(singular_values(*values)) == pytest.approx(point, rel=1e-12)


@pytest.mark.parametrize("gamma", [3.0, 1e-12, 0.0, -1e-12, -3.0])
@pytest.mark.parametrize("s0", [0.4, 1e-200, 5.0, 0.0, -0.4])
def test_limits_never_overflow(gamma, s0):
    end = math.copysign(gamma**-0.5, s0) if gamma > 0 and s0 else s0 if gamma == 0 else 0.0
    assert float(singular_values(gamma, s0, 0.0)) == pytest.approx(s0, rel=1e-14)
    for t in (1e18, 1e300, math.inf):
        assert float(singular_values(gamma, s0, t)) == pytest.approx(end, rel=1e-14)
        assert float(correlation_eigenvalues(gamma, s0, t)) == (gamma > 0 and s0 != 0)


def test_the_printed_formula_overflows():
    gamma, s0, t = np.float64(3.0), np.float64(0.1), np.float64(40.0)
    with np.errstate(all="ignore"):
        printed = np.exp(4 * gamma * t) / np.sqrt(s0**-2 + (np.exp(8 * gamma * t) - 1) * gamma)
    assert not printed > 0.1  # infinite divided by infinite, or zero
    assert float(singular_values(gamma, s0, t)) == pytest.approx(gamma**-0.5, rel=1e-15)


@given(SIGNED, POSITIVE, TIMES, TIMES)
def test_semigroup(gamma, s0, t1, t2):
    once, twice = singular_values(gamma, s0, t1 + t2), singular_values(gamma, singular_values(gamma, s0, t1), t2)
    assert float(twice) == pytest.approx(float(once), rel=1e-9, abs=1e-300)


@given(POSITIVE, st.floats(-60, -0.1), TIMES)
def test_eigenvalues_are_sigmoids_about_their_critical_time(gamma, log_start, t):
    s0 = math.exp(log_start) / math.sqrt(gamma)
    center = float(critical_times(gamma, s0))
    c = float(correlation_eigenvalues(gamma, s0, t))
    assert c == pytest.approx(1 / (1 + math.exp(-8 * gamma * (t - center))), rel=1e-9)
    assert 0 < c <= 1
    assert c == pytest.approx(gamma * float(singular_values(gamma, s0, t)) ** 2, rel=1e-12)


def test_at_the_critical_time_the_slope_is_known():
    gamma, s0, h = torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64), 1e-3, 1e-6
    t = critical_times(gamma, s0)
    assert torch.allclose(correlation_eigenvalues(gamma, s0, t), torch.full_like(t, 0.5), rtol=0, atol=1e-13)
    slope = (singular_values(gamma, s0, t + h) - singular_values(gamma, s0, t - h)) / (2 * h)
    assert torch.allclose(slope, (2 * gamma).sqrt(), rtol=1e-7)
    for g, rise in zip(gamma, rise_times(gamma), strict=True):
        early, late = (
            brentq(lambda u, a=a, g=g: float(correlation_eigenvalues(g, s0, u)) - a, 0, 99) for a in (0.1, 0.9)
        )
        assert late - early == pytest.approx(float(rise), rel=1e-9)
    assert critical_times(torch.tensor([0.0, -1.0]), 0.5).isinf().all()
    assert critical_times(torch.nan, 0.5).isnan()  # not "never"
    assert rise_times(torch.tensor([0.0, -1.0])).isinf().all()


def test_crude_critical_time_is_off_by_the_eigenvalue():
    crude = math.log(1e4) / 4  # log(1 / s0) / 4 gamma forgets gamma inside the logarithm
    assert crude / 12 / float(critical_times(12.0, 1e-4)) == pytest.approx(1.156, abs=1e-3)
    assert crude / 0.1 / float(critical_times(0.1, 1e-4)) == pytest.approx(0.889, abs=1e-3)
    small = [float(critical_times(12.0, a)) * 4 * 12 / math.log(1 / a) for a in (1e-20, 1e-200)]
    assert abs(small[1] - 1) < 0.2 * abs(small[0] - 1)  # the scaling limit; the square of 1e-200 underflows


def test_loss_is_integer_between_steps_and_keeps_its_digits():
    gamma = torch.tensor([4.0, 1.0, 0.2, -0.5], dtype=torch.float64)
    t = critical_times(gamma, 1e-8)[:3]
    between = torch.stack([t[0] / 2, (t[0] + t[1]) / 2, (t[1] + t[2]) / 2, 3 * t[2]])
    assert torch.allclose(loss_staircase(gamma, 1e-8, between), torch.tensor([4.0, 3.0, 2.0, 1.0]).double(), atol=1e-5)
    assert loss_staircase(gamma, 0.1, between.reshape(2, 2)).shape == (2, 2)
    late = loss_staircase(gamma[:1], 1e-8, torch.tensor(5.0))
    assert float(late.log()) == pytest.approx(-16 * 4 * (5 - float(t[0])), rel=1e-12)
    naive = (1 - gamma[0] * singular_values(gamma[0], 1e-8, 5.0) ** 2) ** 2
    assert abs(float(naive) / float(late) - 1) > 0.5  # control: subtraction from one has lost all digits


@pytest.mark.parametrize("scale", [0.05, 0.6])
def test_flow_conserves_the_signature_and_no_column_turns(scale):
    Gamma, V = with_spectrum(MIXED)
    W0 = scale * gaussian(4, 7, seed=2)
    path = follow(Gamma, W0, np.linspace(0, 3, 61))
    above = (torch.linalg.eigvalsh(correlation(path[:18], Gamma)) > 1).sum(1)  # later, 1 - c is rounding
    assert (above == above[0]).all()
    assert (above[0] > 0) == (scale > 0.5)
    growth = (path @ V).norm(dim=1).diff(dim=0)
    monotone = (growth[:, :3] > -1e-9).all() and (growth[:, 4:] < 1e-9).all() and (growth[:, 3].abs() < 1e-9).all()
    assert monotone == (scale < 0.5)  # control: a start above one loses what it has


def test_no_overshoot_is_a_law_of_the_flow_and_not_of_large_steps():
    Gamma, _ = with_spectrum(MIXED)
    W, highest = 0.05 * gaussian(3, 7, seed=2), 0.0
    for _ in range(300):
        W = W - 0.12 * barlow_gradient(W, Gamma)  # just below the limit of stability 1 / (4 gamma_1)
        highest = max(highest, float(torch.linalg.eigvalsh(correlation(W, Gamma))[-1]))
    assert highest > 1.01


def test_every_choice_of_modes_is_critical_with_integer_loss_and_only_the_top_is_stable():
    Gamma, V = with_spectrum(MIXED)
    for chosen in ([0, 1, 2], [0, 2], [1], []):
        W = torch.zeros(3, 7, dtype=torch.float64)
        W[: len(chosen)] = (V[:, chosen] * MIXED[chosen].rsqrt()).T
        assert barlow_gradient(W, Gamma).abs().max() < 1e-13
        assert barlow_loss(W, Gamma) == pytest.approx(3 - len(chosen), abs=1e-12)
        free = [j for j in range(3) if j not in chosen]
        if free:
            escape = W.clone()
            escape[-1] += 1e-3 * V[:, free[0]]
            assert barlow_loss(escape, Gamma) < barlow_loss(W, Gamma) - 1e-6 * float(MIXED[free[0]])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cross_correlation(torch.ones(3, 2), torch.ones(3, 1)), r"two \(n, m\) views, got \(3, 2\)"),
        (lambda: cross_correlation(torch.ones(3), torch.ones(3)), r"got \(3,\)"),
        (lambda: barlow_loss(torch.ones(2, 3), torch.eye(2)), "barlow_loss: .* do not fit"),
        (lambda: barlow_gradient(torch.ones(3), torch.eye(3)), "barlow_gradient: .* do not fit"),
        (lambda: singular_values(1.0, 0.1, -1.0), "time must be >= 0, got -1"),
        (lambda: correlation_eigenvalues(1.0, 0.1, torch.tensor([0.0, -2.0])), "got -2"),
        (lambda: loss_staircase(1.0, 0.1, -1.0), "time must be >= 0"),
        (lambda: critical_times(1.0, torch.tensor([0.1, 0.0])), "never learned"),
        (lambda: critical_times(4.0, 0.5), "gamma s0.2 >= 1"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call()
