"""Witnesses: an adaptive ODE solver on matrix flows, autograd, sympy, quadrature, numerical minimisation, limits."""

import math

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp
from scipy.optimize import minimize

from companion.theory.stepwise import (
    contrastive_mode,
    plateau_loss,
    preconditioned_modes,
    preconditioned_time,
    singular_values,
    supervised_mode,
    vicreg_drive,
)

GAMMA = torch.tensor([1.5, 0.8, 0.0, -0.6, 0.3], dtype=torch.float64)
SIGMA = torch.tensor([1.8, 1.0, 0.7, 0.9, 0.4], dtype=torch.float64)
START = torch.tensor([0.1, 0.5, 0.4, 0.8, 2.0], dtype=torch.float64)
EYE = torch.eye(5, dtype=torch.float64)
TIMES = [0.0, 0.2, 1.0, 4.0]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def descend(loss, W0: torch.Tensor, times: list[float], rtol: float = 1e-11) -> torch.Tensor:
    """Integrate minus the gradient of a loss, taken by autograd; shape (times, k, m)."""

    def velocity(_, w):
        W = torch.tensor(w.reshape(W0.shape), requires_grad=True)
        return -torch.autograd.grad(loss(W), W)[0].numpy().ravel()

    w = solve_ivp(velocity, (0, times[-1]), W0.numpy().ravel(), "DOP853", t_eval=times, rtol=rtol, atol=1e-13)
    return torch.from_numpy(w.y.T.reshape(-1, *W0.shape))


def rotated(values: torch.Tensor) -> torch.Tensor:
    V = torch.linalg.qr(gaussian(5, 5, seed=7)).Q
    return (V * values) @ V.T


def aligned(s: torch.Tensor) -> torch.Tensor:
    return torch.linalg.qr(gaussian(5, 5, seed=8)).Q * s @ torch.linalg.qr(gaussian(5, 5, seed=7)).Q.T


@pytest.mark.parametrize("mu", [1.0, 0.25])
def test_contrastive_modes_are_the_matrix_flow(mu):
    def loss(W):
        return -2 * (W @ rotated(GAMMA) @ W.T).trace() + mu * (W @ rotated(SIGMA) @ W.T).square().sum()

    for t, W in zip(TIMES, descend(loss, aligned(START), TIMES), strict=True):
        assert torch.allclose(aligned(contrastive_mode(GAMMA, SIGMA, START, t, mu)), W, rtol=0, atol=1e-9)
    end = contrastive_mode(GAMMA, SIGMA, START, math.inf, mu)
    assert torch.allclose(mu * (end * SIGMA).square(), GAMMA.clamp(min=0), atol=1e-14)
    floor = -(GAMMA.clamp(min=0) / SIGMA).square().sum() / mu
    assert float(loss(aligned(end))) == pytest.approx(float(floor), rel=1e-12)


def test_modes_couple_when_the_moments_do_not_commute():
    Sigma = EYE.clone()
    Sigma[0, 1] = Sigma[1, 0] = 0.5  # control: the law holds for commuting matrices only

    def loss(W):
        return -2 * (W @ GAMMA.diag() @ W.T).trace() + (W @ Sigma @ W.T).square().sum()

    W = descend(loss, START.diag(), [0.0, 1.0])[-1]
    assert (W - contrastive_mode(GAMMA, 1.0, START, 1.0).diag()).abs().max() > 0.05


def test_barlow_twins_is_the_case_sigma_equals_modulus_of_gamma():
    for t in TIMES:
        barlow = singular_values(GAMMA, START, t)
        assert torch.allclose(contrastive_mode(GAMMA, GAMMA.abs(), START, t), barlow, rtol=1e-14)
        assert torch.allclose(contrastive_mode(GAMMA, 1.0, START, t), barlow) == (t == 0)


def test_contrastive_mode_symbolically():
    gamma, t = sympy.symbols("gamma t", real=True, nonzero=True)
    sigma, mu, s0 = sympy.symbols("sigma mu s0", positive=True)
    u = gamma / (gamma / s0**2 * sympy.exp(-8 * gamma * t) + mu * sigma**2 * (1 - sympy.exp(-8 * gamma * t)))
    assert sympy.simplify(sympy.diff(u, t) - 8 * u * (gamma - mu * sigma**2 * u)) == 0
    assert sympy.simplify(u.subs(t, 0) - s0**2) == 0
    flat = s0**2 / (1 + 8 * mu * sigma**2 * s0**2 * t)
    assert sympy.simplify(sympy.limit(u, gamma, 0) - flat) == 0
    for g in (0.7, -0.7, 1e-9):
        point = float(u.subs({gamma: g, sigma: 1.3, mu: 0.5, s0: 0.2, t: 0.6}))
        assert float(contrastive_mode(g, 1.3, 0.2, 0.6, 0.5)) ** 2 == pytest.approx(point, rel=1e-6)


@pytest.mark.parametrize("gamma", [2.0, 1e-13, 0.0, -1e-13, -2.0])
def test_contrastive_limits_never_overflow(gamma):
    assert float(contrastive_mode(gamma, 3.0, 0.3, 0.0)) == pytest.approx(0.3, rel=1e-15)
    assert float(contrastive_mode(gamma, 3.0, 0.0, 1e9)) == 0
    for t in (1e200, math.inf):
        assert float(contrastive_mode(gamma, 3.0, 1e-150, t)) == pytest.approx(
            max(gamma, 0) ** 0.5 / 3, rel=1e-14, abs=1e-90
        )
    near = float(contrastive_mode(gamma, 3.0, 0.3, 1.0))
    assert near == pytest.approx(float(contrastive_mode(gamma * (1 + 1e-9) + 1e-15, 3.0, 0.3, 1.0)), rel=1e-7)


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(1e-6, 5), st.floats(0, 3), st.floats(0, 3))
def test_contrastive_semigroup(gamma, sigma, s0, t1, t2):
    halfway = contrastive_mode(gamma, sigma, s0, t1)
    once = float(contrastive_mode(gamma, sigma, s0, t1 + t2))
    assert float(contrastive_mode(gamma, sigma, halfway, t2)) == pytest.approx(once, rel=1e-9, abs=1e-300)


def test_vicreg_modes_are_the_matrix_flow_and_invariance_changes_their_order():
    weight = 3.0

    def loss(W):
        Sigma = rotated(SIGMA)
        return 2 * weight * (W @ (Sigma - rotated(GAMMA)) @ W.T).trace() + (W @ Sigma @ W.T - EYE).square().sum()

    kappa = vicreg_drive(GAMMA, SIGMA, weight)
    for t, W in zip(TIMES, descend(loss, aligned(START), TIMES), strict=True):
        assert torch.allclose(aligned(contrastive_mode(kappa, SIGMA, START, t)), W, rtol=0, atol=1e-9)
    assert torch.equal(vicreg_drive(GAMMA, SIGMA, 1.0), GAMMA)
    survives = GAMMA / SIGMA
    assert ((kappa > 0) == (survives > 1 - 1 / weight)).all()
    loud, spared = (1.5, 1.8), (0.4, 0.41)  # a loud mode that augmentation blurs, a quiet one that it spares
    assert vicreg_drive(*loud, 4.0) > vicreg_drive(*spared, 4.0)
    assert vicreg_drive(*loud, 6.0) < vicreg_drive(*spared, 6.0)


def test_infonce_of_small_centred_features_is_a_contrastive_mode_to_fifth_order():
    skewed = torch.tensor([2.0, -1.0, -1.0], dtype=torch.float64) / 2**0.5  # a symmetric law has order seven
    keep = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    x = (torch.cartesian_prod(skewed, skewed) * torch.tensor([1.0, 0.8])).repeat_interleave(4, 0)
    x_plus = x * keep.repeat(9, 1)  # the first coordinate flips in every fourth view
    sigma, temperature = torch.tensor([1.0, 0.64], dtype=torch.float64), 0.5
    gamma = sigma * torch.tensor([0.5, 1.0])
    shape, errors, scales = torch.tensor([1.0, 0.7], dtype=torch.float64), [], np.array([0.16, 0.08, 0.04])
    for scale in scales:
        s = (scale * shape).requires_grad_()
        f, f_plus = x * s, x_plus * s
        logits = f @ f.T / temperature
        loss = logits.logsumexp(1).mean() - (f * f_plus).sum(1).mean() / temperature
        velocity = -torch.autograd.grad(loss, s)[0]
        h, clock = 1e-5, torch.tensor([[0.0], [1.0], [2.0]]) / (2 * temperature)
        law = contrastive_mode(gamma, sigma, s.detach(), h * clock.double(), 1 / temperature)
        slope = (-3 * law[0] + 4 * law[1] - law[2]) / (2 * h)
        errors.append(float((velocity - slope).norm()))
    assert np.polyfit(np.log(scales), np.log(errors), 1)[0] == pytest.approx(5, abs=0.3)


def test_supervised_mode_solves_its_ode_and_has_no_plateau():
    gamma, target, s0, t = sympy.symbols("gamma target s0 t", real=True)
    s = target + (s0 - target) * sympy.exp(-gamma * t)
    assert sympy.simplify(sympy.diff(s, t) - gamma * (target - s)) == 0
    values = (0.7, 2.0, 0.1, 1.3)
    point = float(s.subs(dict(zip((gamma, target, s0, t), values, strict=True))))
    assert float(supervised_mode(*values)) == pytest.approx(point, rel=1e-14)
    assert float(supervised_mode(0.7, 2.0, 0.1, math.inf)) == 2
    clock, alphas = torch.linspace(0, 40, 400001, dtype=torch.float64), [1e-3, 1e-5, 1e-7]
    waits = [float(clock[(supervised_mode(0.7, 1.0, a, clock) > 0.1).int().argmax()]) for a in alphas]
    stays = [float(clock[(0.7**0.5 * singular_values(0.7, a, clock) > 0.1).int().argmax()]) for a in alphas]
    assert max(waits) - min(waits) < 2e-3
    slope = np.polyfit(np.log(1 / np.array(alphas)), stays, 1)[0]  # control: the self-supervised mode waits
    assert slope == pytest.approx(1 / (4 * 0.7), rel=1e-3)


@pytest.mark.parametrize("lam", [0.05, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("rank", [0, 1, 2, 4, 5])
def test_plateaus_are_the_numerical_minimum_at_fixed_rank(rank, lam):
    k, weights = 5, torch.full((5, 5), lam, dtype=torch.float64).fill_diagonal_(1)

    def loss(a):
        A = torch.tensor(a.reshape(k, rank), requires_grad=True)
        value = (weights * (A @ A.T - EYE).square()).sum()
        value.backward()
        return value.item(), A.grad.numpy().ravel()

    starts = [gaussian(k * rank, seed=seed).numpy() for seed in range(6)] if rank else []
    options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-9}
    found = min((minimize(loss, a, jac=True, method="L-BFGS-B", options=options).fun for a in starts), default=k)
    assert float(plateau_loss(rank, k, lam)) == pytest.approx(found, abs=1e-6)
    assert (abs(found - (k - rank)) < 1e-6) == (lam >= 1 or rank in (0, k))  # control: integers are not the rule


def test_plateaus_come_down_to_zero():
    steps = plateau_loss(torch.arange(9.0), 8, 0.1)
    assert torch.allclose(steps[:5], torch.tensor([8.0, 3.2941, 1.8462, 1.1429, 0.7273]).double(), atol=1e-4)
    assert steps[-1] == 0
    assert (steps.diff() < 0).all()
    assert plateau_loss(torch.arange(3.0)[:, None], 2, torch.tensor([0.1, 1.0])).shape == (3, 2)


@pytest.mark.parametrize("epsilon", [1e-2, 0.3, 5.0])
def test_preconditioned_modes_are_the_matrix_flow(epsilon):
    Gamma, s0 = rotated(torch.tensor([1.5, 0.8, 0.3, -0.2, -1.0])), torch.tensor([0.01, 0.02, 0.3])
    gamma, V = torch.tensor([1.5, 0.8, 0.3], dtype=torch.float64), torch.linalg.qr(gaussian(5, 5, seed=7)).Q[:, :3]

    def velocity(_, w):
        W = torch.from_numpy(w.reshape(3, 5))
        C = W @ Gamma @ W.T
        return (4 * torch.linalg.solve(C + epsilon * EYE[:3, :3], (EYE[:3, :3] - C) @ W @ Gamma)).numpy().ravel()

    W0 = torch.linalg.qr(gaussian(3, 3)).Q * s0 @ V.T
    path = solve_ivp(velocity, (0, 1.2), W0.numpy().ravel(), "DOP853", t_eval=[0.1, 0.5, 1.2], rtol=1e-11, atol=1e-14)
    for t, w in zip(path.t, path.y.T, strict=True):
        c = torch.linalg.eigvalsh(torch.from_numpy(w.reshape(3, 5)) @ Gamma @ torch.from_numpy(w.reshape(3, 5)).T)
        closed = preconditioned_modes(gamma, gamma * s0.double() ** 2, epsilon, float(t)).sort().values
        assert torch.allclose(closed, c, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("c0", "epsilon"), [(0.2, 0.1), (1e-12, 1e-3), (1e-300, 1e-12), (0.9, 1e3), (1e-5, 1e-300)])
def test_preconditioned_time_is_the_integral_and_inverts_the_modes(c0, epsilon):
    level = 0.95
    area = quad(lambda u: (math.exp(u) + epsilon) / (1 - math.exp(u)), math.log(c0), math.log(level), limit=500)[0]
    t = preconditioned_time(0.7, c0, epsilon, level)
    assert float(t) == pytest.approx(area / (8 * 0.7), rel=1e-8)
    assert float(preconditioned_modes(0.7, c0, epsilon, t)) == pytest.approx(level, rel=1e-9)
    assert float(preconditioned_modes(0.7, c0, epsilon, 0.0)) == pytest.approx(c0, rel=1e-9)
    for far in (1e9, 1e300, math.inf):
        assert float(preconditioned_modes(0.7, c0, epsilon, far * max(1, epsilon))) == 1


@given(st.floats(0.01, 5), st.floats(1e-9, 0.999), st.floats(1e-6, 100), st.floats(0, 1), st.floats(0, 1))
def test_preconditioned_semigroup(gamma, c0, epsilon, t1, t2):
    once, halfway = preconditioned_modes(gamma, c0, epsilon, t1 + t2), preconditioned_modes(gamma, c0, epsilon, t1)
    if float(halfway) < 1 - 1e-9:  # beyond, the complement is rounding
        assert float(preconditioned_modes(gamma, halfway, epsilon, t2)) == pytest.approx(float(once), rel=1e-6)


def test_preconditioning_removes_the_wait_and_keeps_the_order():
    gamma, c0 = torch.tensor([2.0, 1.0, 0.4], dtype=torch.float64), torch.tensor([1e-6, 1e-12, 1e-9]).double()
    plain = preconditioned_time(gamma, c0, 1e6) / 1e6  # a large epsilon is the plain flow, slowed down
    assert torch.allclose(plain, ((1 - c0) / c0).log() / (8 * gamma), rtol=1e-4)
    times = preconditioned_time(gamma, c0, 1e-9)
    assert torch.allclose(times * gamma, times[0] * gamma[0], rtol=1e-5)  # 1 / gamma stays, log(1 / c0) is gone
    assert torch.allclose(times, math.log(2) / (8 * gamma), rtol=1e-5)
    assert (preconditioned_time(gamma, c0, 0.01) < plain).all()
    assert preconditioned_modes(0.0, 0.3, 0.1, 1e6) == pytest.approx(0.3, rel=1e-12)
    assert preconditioned_time(0.0, 0.3, 0.1).isinf()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contrastive_mode(1.0, 1.0, 0.1, -0.5), "time must be >= 0, got -0.5"),
        (lambda: contrastive_mode(1.0, 1.0, 0.1, 1.0, -2.0), "mu of the repulsion must be >= 0, got -2"),
        (lambda: plateau_loss(6, 5), "rank of C must lie in 0..5"),
        (lambda: plateau_loss(torch.tensor([0.0, -1.0]), 5), "rank of C must lie in 0..5"),
        (lambda: plateau_loss(1, 5, 0.0), "weight lam must be positive"),
        (lambda: preconditioned_modes(1.0, 0.0, 0.1, 1.0), r"start c0 must lie in \(0, 1\); zero never moves"),
        (lambda: preconditioned_time(1.0, 1.0, 0.1), r"start c0 must lie in \(0, 1\)"),
        (lambda: preconditioned_time(1.0, 0.5, 0.0), "epsilon must be positive"),
        (lambda: preconditioned_time(1.0, 0.5, 0.1, 1.0), r"level must lie in \(0, 1\); no mode reaches one"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call()
