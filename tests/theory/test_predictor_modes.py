"""Witnesses: the matrix flow of Lemma 1, other solvers, sympy, bisection by trajectories, autograd, rescalings."""

import math

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq

from companion.theory.predictor_modes import (
    FixedPoints,
    alignment_rate,
    basin_boundary,
    collapse_threshold,
    fixed_points,
    integral_of_motion,
    mode_flow,
    mode_velocity,
    stability,
    target_ratio,
)

P0, S0, TAU0 = (torch.tensor(x, dtype=torch.float64) for x in ([0.3, -0.1, 0.7], [0.2, 0.5, 0.05], [0.2, 1.0, 0.6]))
GAMMA = torch.tensor([2.0, 1.0, 0.4], dtype=torch.float64)
NOISE = torch.tensor([0.5, 0.04, 0.3], dtype=torch.float64)
DATA = {"gamma": GAMMA, "sigma2": NOISE}
CASES = [(0.01, 1.0, 0.04), (0.05, 1.0, 0.04), (0.1, 1.0, 0.04), (0.2, 1.0, 0.04), (0.05, 0.6, 0.25)]
ROOTS = [[0.010106, 0.951432], [0.052912, 0.908627], [0.113366, 0.848173], [0.283712, 0.677826], [0.107335, 0.372665]]


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def orthogonal(n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def survives(p0, s0, tau, eta, sigma2, beta=0.0, alpha_p=1.0, until=4000.0) -> bool:
    """Follow (p, log s, tau) with a solver and equations of its own; has the mode grown at the end?"""

    def velocity(_, y):
        growth = y[0] * (y[2] - (1 + sigma2) * y[0]) - eta
        push = alpha_p * math.exp(y[1]) * (y[2] - (1 + sigma2) * y[0])
        return [push - eta * y[0], 2 * growth, beta * (1 - y[2]) - y[2] * growth if beta else 0.0]

    path = solve_ivp(velocity, (0, until), [p0, math.log(s0), tau], "LSODA", rtol=1e-10, atol=1e-12)
    assert path.success
    return bool(path.y[0, -1] > (tau or 1.0) / (1 + sigma2) / 4 and path.y[1, -1] > -10)


@pytest.mark.parametrize(("beta", "eta", "alpha_p"), [(0.4, 0.04, 3.0), (1.5, 0.0, 1.0), (0.1, 0.2, 0.5)])
def test_modes_are_the_matrix_flow_of_commuting_moments(beta, eta, alpha_p):
    U, V = orthogonal(3, 0), orthogonal(4, 1)[:3]
    Gamma, Sigma = (V.T * GAMMA.numpy()) @ V, (V.T * (GAMMA + NOISE).numpy()) @ V
    W0 = (U * (S0 / GAMMA).sqrt().numpy()) @ V

    def velocity(_, y):
        W, Wa, Wp = y[:12].reshape(3, 4), y[12:24].reshape(3, 4), y[24:].reshape(3, 3)
        G = Wa @ Gamma - Wp @ W @ Sigma
        rates = Wp.T @ G - eta * W, beta * (W - Wa), alpha_p * G @ W.T - eta * Wp
        return np.concatenate([x.ravel() for x in rates])

    start = np.concatenate([W0.ravel(), ((U * TAU0.numpy()) @ U.T @ W0).ravel(), ((U * P0.numpy()) @ U.T).ravel()])
    times = [0.5, 3.0, 20.0]
    path = solve_ivp(velocity, (0, 20), start, "DOP853", times, rtol=1e-12, atol=1e-15)
    p, s, tau = mode_flow(P0, S0, TAU0, f64(*times), alpha_p=alpha_p, beta=beta, eta=eta, **DATA)
    for i, y in enumerate(path.y.T):
        W, Wa, Wp = y[:12].reshape(3, 4), y[12:24].reshape(3, 4), y[24:].reshape(3, 3)
        assert np.allclose(U.T @ Wp @ U, np.diag(p[i]), atol=1e-9)
        assert np.allclose(U.T @ W @ Gamma @ W.T @ U, np.diag(s[i]), atol=1e-9)
        assert np.allclose(np.diag(U.T @ Wa @ V.T), tau[i].numpy() * np.diag(U.T @ W @ V.T), atol=1e-9)


def test_velocity_symbolically():
    p, w, tau, alpha, beta, eta, noise, gamma = sympy.symbols("p w tau alpha beta eta noise gamma", positive=True)
    G = tau * w * gamma - p * w * (gamma + noise)  # the drive of scalars, target tau w
    dp, dw, dwa = alpha * G * w - eta * p, p * G - eta * w, beta * (w - tau * w)
    ds, dtau = gamma * 2 * w * dw, (dwa - tau * dw) / w
    point = dict(
        zip((p, w, tau, alpha, beta, eta, noise, gamma), (0.3, 0.7, 0.8, 3.0, 0.4, 0.05, 0.5, 2.0), strict=True)
    )
    found = mode_velocity(0.3, 2 * 0.49, 0.8, alpha_p=3.0, beta=0.4, eta=0.05, sigma2=0.5, gamma=2.0)
    for symbol, value in zip((dp, ds, dtau), found, strict=True):
        assert float(value) == pytest.approx(float(symbol.subs(point)), rel=1e-14)
    s = sympy.symbols("s", positive=True)  # at gamma = 1 the law of the paper
    paper = alpha * s * (tau - (1 + noise) * p) - eta * p, 2 * p * s * (tau - (1 + noise) * p) - 2 * eta * s
    for ours, theirs in zip((dp, ds), paper, strict=True):
        assert sympy.expand(ours.subs({gamma: 1, w: sympy.sqrt(s)}) - theirs) == 0
    assert sympy.simplify(dtau - (beta * (1 - tau) - tau * ds / (2 * gamma * w**2))) == 0


def test_without_ema_the_ratio_stays():
    assert float(mode_velocity(0.3, 0.5, 0.7)[2]) == 0
    assert torch.equal(mode_flow(P0, S0, 0.7, f64(1.0, 9.0))[2], torch.full((2, 3), 0.7, dtype=torch.float64))


def test_a_small_mode_follows_the_closed_form():
    p0, s0, eta, sigma2, t = 0.4, 1e-30, 0.1, 0.3, torch.linspace(0, 200, 9, dtype=torch.float64)
    p, s, _ = mode_flow(p0, s0, 0.8, t, eta=eta, sigma2=sigma2)
    fade = torch.exp(-eta * t)
    log_s = 2 * (0.8 * p0 * (1 - fade) - (1 + sigma2) * p0**2 * (1 - fade**2) / 2) / eta - 2 * eta * t
    assert torch.allclose(p, p0 * fade, rtol=1e-8, atol=1e-14)
    assert torch.allclose((s / s0).log(), log_s, rtol=0, atol=1e-8)
    assert torch.equal(mode_flow(p0, 0.0, 0.8, t)[1], torch.zeros(9).double())


@pytest.mark.parametrize("p0", [1e-3, 0.2, 2.0])
def test_growth_without_decay_on_the_parabola_is_the_inverse_of_a_closed_form(p0):
    tau, b, alpha_p = 0.8, 1.3, 2.5  # dp / (p^2 (tau - b p)) in partial fractions
    p = mode_flow(p0, p0**2 / alpha_p, tau, f64(0.1, 2.0, 30.0), alpha_p=alpha_p, sigma2=b - 1)[0]

    def clock(p):
        return -1 / (tau * p) + b / tau**2 * (p / (tau - b * p).abs()).log()

    assert torch.allclose(clock(p) - clock(f64(p0)), f64(0.1, 2.0, 30.0), rtol=1e-6)


def test_many_modes_at_once_in_any_order_of_times():
    p0, s0 = torch.linspace(0, 1.5, 5)[:, None], torch.logspace(-12, 1, 4)
    times = f64(7.0, 0.0, 2.0, 7.0)
    together = mode_flow(p0, s0, 0.1, times, eta=0.05, beta=0.5, **{k: v[:1] for k, v in DATA.items()})
    assert all(x.shape == (4, 5, 4) for x in together)
    alone = mode_flow(p0[1, 0], s0[2], 0.1, times, eta=0.05, beta=0.5, gamma=2.0, sigma2=0.5)
    for many, one in zip(together, alone, strict=True):
        assert torch.allclose(many[:, 1, 2], one, rtol=1e-9)
        assert torch.equal(many[0], many[3])
    assert torch.equal(together[0][1], p0.double().expand(5, 4))
    halfway = mode_flow(*(x[2] for x in together), f64(5.0), eta=0.05, beta=0.5, gamma=2.0, sigma2=0.5)
    for late, once in zip(halfway, together, strict=True):  # semigroup
        assert torch.allclose(late[0], once[0], rtol=1e-8, atol=1e-12)


def test_two_exact_rescalings():
    t, law = f64(0.5, 2.0, 9.0), {"beta": 0.3, "eta": 0.06}
    p, s, tau = mode_flow(P0, S0, TAU0, t, alpha_p=4.0, sigma2=0.5, **law)
    p1, s1, tau1 = mode_flow(P0, 4 * S0, TAU0, t, alpha_p=1.0, sigma2=0.5, **law)
    for one, other in ((p, p1), (4 * s, s1), (tau, tau1)):
        assert torch.allclose(one, other, rtol=1e-8)
    q, z, ratio = mode_flow(1.5 * P0, 9 * S0, TAU0, t / 1.5, beta=0.45, eta=0.09)  # 1 + sigma2 = 1.5
    for one, other in ((1.5 * p, q), (9 * s, z), (tau, ratio)):
        assert torch.allclose(one, other, rtol=1e-8)


def test_integral_of_motion_under_any_target_ratio():
    eta, alpha_p, start, times = 0.07, 2.5, np.concatenate([P0.numpy(), S0.numpy()]), np.array([0.0, 1.0, 4.0, 15.0])

    def velocity(t, y):
        tau = 0.5 + 0.9 * math.sin(3 * t)
        rates = mode_velocity(*torch.from_numpy(y).reshape(2, 3), tau, alpha_p=alpha_p, eta=eta, **DATA)
        return torch.cat(rates[:2]).numpy()

    path = solve_ivp(velocity, (0, 15), start, "DOP853", times, rtol=1e-12, atol=1e-15)
    p, s = torch.from_numpy(path.y.T.copy()).reshape(4, 2, 3).unbind(1)
    omega = integral_of_motion(p, s, torch.from_numpy(times)[:, None], alpha_p, eta, GAMMA)
    assert torch.allclose(omega, (S0 / GAMMA - P0.square() / alpha_p).expand(4, 3), rtol=0, atol=1e-10)
    for wrong in ((alpha_p, 0.0, GAMMA), (1.0, eta, GAMMA), (alpha_p, eta, 1.0)):  # control: other constants drift
        assert (integral_of_motion(p, s, torch.from_numpy(times)[:, None], *wrong).diff(dim=0).abs() > 1e-3).any()
    path = mode_flow(P0, S0, 0.0, torch.from_numpy(times), alpha_p=alpha_p, beta=0.4, eta=eta, **DATA)
    omega = integral_of_motion(*path[:2], torch.from_numpy(times)[:, None], alpha_p, eta, GAMMA)
    assert torch.allclose(omega, omega[:1].expand(4, 3), rtol=0, atol=1e-10)


@pytest.mark.parametrize("number", range(5))
def test_fixed_points_are_roots_and_the_border_of_growth_on_the_parabola(number):
    (eta, tau, sigma2), expected = CASES[number], ROOTS[number]
    found = fixed_points(tau, eta, sigma2)
    assert [round(float(x), 6) for x in found] == expected
    assert np.allclose(np.sort(np.roots([1 + sigma2, -tau, eta])), [float(x) for x in found], rtol=1e-12)
    border = brentq(lambda p: survives(p, p * p, tau, eta, sigma2) - 0.5, 1e-4, 0.9 * expected[1], xtol=1e-9)
    assert border == pytest.approx(float(found.saddle), rel=1e-6)
    end = mode_flow(border * 1.1, (border * 1.1) ** 2, tau, f64(2000.0), eta=eta, sigma2=sigma2)[0]
    assert float(end) == pytest.approx(float(found.useful), rel=1e-8)


def test_fixed_points_symbolically():
    p = sympy.symbols("p", real=True)
    alpha, tau, eta, noise, gamma = sympy.symbols("alpha tau eta noise gamma", positive=True)
    b = gamma + noise
    D = tau**2 * gamma**2 - 4 * eta * b
    saddle, useful = 2 * eta / (tau * gamma + sympy.sqrt(D)), (tau * gamma + sympy.sqrt(D)) / (2 * b)
    for root in (saddle, useful):
        assert sympy.simplify(root * (tau * gamma - b * root) - eta) == 0
    point = {tau: 0.8, eta: 0.03, noise: 0.5, gamma: 2.0, alpha: 3.0}
    assert [float(x) for x in fixed_points(0.8, 0.03, 0.5, 2.0)] == pytest.approx(
        [float(x.subs(point)) for x in (saddle, useful)], rel=1e-14
    )
    assert sympy.simplify(sympy.solve(D, eta)[0] - tau**2 * gamma**2 / (4 * b)) == 0
    assert float(collapse_threshold(0.8, 0.5, 2.0)) == pytest.approx(0.8**2 * 4 / 10, rel=1e-15)
    for variable, sign in ((eta, 1), (noise, 1), (tau, -1), (gamma, -1)):  # how the basin of collapse grows
        assert sympy.sign(sympy.diff(saddle, variable).subs(point)) == sign
    s = sympy.symbols("s", positive=True)
    pull = tau * gamma - b * p
    flow = sympy.Matrix([alpha * s / gamma * pull - eta * p, 2 * p * s * pull - 2 * eta * s])
    J = flow.jacobian([p, s]).subs({s: gamma * p**2 / alpha, eta: p * pull})  # at either root
    towards, along = -2 * p * pull, p * pull - b * p**2
    assert sympy.simplify(J.trace() - towards - along) == 0
    assert sympy.simplify(J.det() - towards * along) == 0


def test_saddle_keeps_its_digits_when_decay_is_weak():
    saddle, useful = fixed_points(0.7, 1e-14, 0.2)
    assert float(saddle) == pytest.approx(
        1e-14 / 0.7, rel=1e-13, abs=0
    )  # the difference of tau and sqrt(D) has one digit
    assert abs((0.7 - (0.7**2 - 4e-14 * 1.2) ** 0.5) / 2.4 / float(saddle) - 1) > 1e-4
    assert fixed_points(0.7, 0.0, 0.2) == FixedPoints(f64(0.0)[0], f64(0.7 / 1.2)[0])
    assert float(useful) == pytest.approx(0.7 / 1.2, rel=1e-13)
    at = fixed_points(TAU0, collapse_threshold(TAU0, NOISE, GAMMA), NOISE, GAMMA)
    assert torch.allclose(at.saddle, at.useful, rtol=1e-7)
    assert fixed_points(TAU0[:, None], 1e-3, NOISE).saddle.shape == (3, 3)


@given(st.floats(0.05, 2), st.floats(0.02, 0.999), st.floats(0, 4), st.floats(0.1, 3))
def test_fixed_points_multiply_and_add_up(tau, part, sigma2, gamma):
    eta = part * float(collapse_threshold(tau, sigma2, gamma))
    saddle, useful = (float(x) for x in fixed_points(tau, eta, sigma2, gamma))
    assert saddle + useful == pytest.approx(tau * gamma / (gamma + sigma2), rel=1e-12)
    assert saddle * useful == pytest.approx(eta / (gamma + sigma2), rel=1e-12)
    for sign, p in ((1, saddle), (-1, useful)):
        towards, along = (float(x) for x in stability(p, tau, eta, sigma2, gamma))
        assert towards == -2 * eta
        assert sign * along >= 0
        assert along == pytest.approx(eta - (gamma + sigma2) * p**2, rel=1e-6, abs=1e-12 * tau**2 * gamma)


@pytest.mark.parametrize("alpha_p", [1.0, 5.0])
@pytest.mark.parametrize("which", ["origin", "saddle", "useful"])
def test_stability_is_the_jacobian(alpha_p, which):
    law = {"eta": 0.05, "sigma2": 0.3, "gamma": 1.6}
    p = f64(0.0)[0] if which == "origin" else getattr(fixed_points(0.9, **law), which)

    def velocity(state):
        return torch.stack(mode_velocity(state[0], state[1], 0.9, alpha_p=alpha_p, **law)[:2])

    J = torch.autograd.functional.jacobian(velocity, torch.stack([p, 1.6 * p**2 / alpha_p]))
    found = torch.stack(stability(p, 0.9, **law))
    assert torch.allclose(torch.linalg.eigvals(J).real.sort().values, found.sort().values, rtol=1e-10)
    tangent = torch.stack([f64(1.0)[0], 3.2 * p / alpha_p])  # of the parabola
    assert torch.allclose(J @ tangent, found[1] * tangent, atol=1e-13)
    assert (found[1] > 0) == (which == "saddle")


def test_no_mode_survives_above_the_threshold():
    threshold = float(collapse_threshold(1.0, 0.04))
    p0, s0 = torch.meshgrid(torch.linspace(0.0, 1.5, 6), torch.linspace(0.1, 4, 6), indexing="ij")
    alive = [
        int((mode_flow(p0, s0, 1.0, f64(4000.0), eta=part * threshold, sigma2=0.04)[1] > 1e-3).sum())
        for part in (0.99, 1.01)
    ]
    assert alive[0] > 10
    assert alive[1] == 0


def test_basin_boundary_has_the_expected_values_and_scales():
    p0 = f64(-0.1, 0.0, 0.05, 0.1)
    critical = basin_boundary(p0, 1.0, 0.1, 0.04)
    assert critical.round(decimals=4).tolist() == [0.0554, 0.0293, 0.0206, 0.0142]
    for alpha_p in (4.0, 10.0):
        assert torch.allclose(alpha_p * basin_boundary(p0, 1.0, 0.1, 0.04, alpha_p), critical, rtol=1e-14)
    assert torch.equal(basin_boundary(p0[:, None], 1.0, f64(0.1, 0.2), 0.04)[:, 0], critical)
    saddle = fixed_points(1.0, 0.1, 0.04).saddle
    assert float(basin_boundary(saddle, 1.0, 0.1, 0.04)) == pytest.approx(float(saddle) ** 2, rel=1e-12)
    assert survives(0.0, 0.031, 1.0, 0.1, 0.04)  # left of p_-, above the boundary: the line p = p_- does not decide
    assert not survives(0.0, 0.028, 1.0, 0.1, 0.04)


@pytest.mark.parametrize("case", [*CASES, (0.24, 1.0, 0.04)])
@pytest.mark.parametrize("p0", [-1.0, -0.1, 0.06, 0.5, 1.4])
def test_basin_boundary_is_found_by_bisection_of_trajectories(case, p0):
    eta, tau, sigma2 = case
    critical = float(basin_boundary(p0, tau, eta, sigma2))
    assert survives(p0, critical * (1 + 1e-6), tau, eta, sigma2)
    assert not survives(p0, critical * (1 - 1e-6), tau, eta, sigma2)
    if case == CASES[2]:
        found = brentq(lambda y: survives(p0, math.exp(y), tau, eta, sigma2) - 0.5, -20, 5, xtol=1e-10)
        assert critical == pytest.approx(math.exp(found), rel=1e-7)


def test_basin_boundary_is_invariant_and_enters_the_saddle():
    law = {"eta": 0.06, "sigma2": 0.5, "gamma": 2.0}
    p0 = f64(-0.8, 0.0, 0.3, 0.9, 1.4)
    s0 = basin_boundary(p0, 0.7, alpha_p=3.0, **law)
    p, s, _ = mode_flow(p0, s0, 0.7, f64(0.5, 2.0, 5.0), alpha_p=3.0, **law)
    assert torch.allclose(basin_boundary(p, 0.7, alpha_p=3.0, **law), s, rtol=1e-5)
    saddle, useful = fixed_points(0.7, **law)
    step = f64(-1e-4, 1e-4)
    slope = basin_boundary(saddle + step, 0.7, alpha_p=3.0, **law).diff() / 2e-4
    J = torch.autograd.functional.jacobian(
        lambda state: torch.stack(mode_velocity(state[0], state[1], 0.7, alpha_p=3.0, **law)[:2]),
        torch.stack([saddle, 2 * saddle**2 / 3]),
    )
    direction = torch.stack([f64(1.0)[0], slope[0]])
    assert torch.allclose(J @ direction, -0.12 * direction, rtol=1e-4)
    closer = basin_boundary(saddle * (1 + f64(-1e-7, 1e-7)), 0.7, alpha_p=3.0, **law).diff() / (2e-7 * saddle)
    assert torch.allclose(closer, slope, rtol=1e-4)
    around = basin_boundary(useful + f64(-0.05, 0.0, 0.05), 0.7, **law)
    assert around[1] < around.min() * (1 + 1e-12)  # lowest at p_+, and it rises beyond
    assert (around > 0).all()


def test_basins_without_decay():
    generator = torch.Generator().manual_seed(0)
    p0, tau, alpha_p, sigma2, s0 = torch.rand(5, 400, dtype=torch.float64, generator=generator)
    p0, tau, alpha_p, s0 = 3 * p0 - 1.5, 0.2 + tau, 0.3 + 4 * alpha_p, 1e-3 + s0
    critical = basin_boundary(p0, tau, 0.0, sigma2, alpha_p)
    p, s, _ = (x[0] for x in mode_flow(p0, s0, tau, f64(3000.0), alpha_p=alpha_p, sigma2=sigma2))
    goal, clear = tau / (1 + sigma2), (s0 - critical).abs() > 1e-2
    alive = (s0 > critical) & clear
    assert 50 < int(alive.sum()) < 350
    assert torch.allclose(p[alive], goal[alive], atol=1e-4)
    assert torch.allclose(s[alive], (s0 + (goal**2 - p0**2) / alpha_p)[alive], atol=1e-4)
    assert (s[(s0 < critical) & clear] < 1e-6).all()
    c = s0 - p0**2 / alpha_p  # the same in other words: the parabola meets s = 0 on the way
    dies = (c <= 0) & ((p0 < 0) | (goal <= (alpha_p * c.abs()).sqrt()))
    assert torch.equal(dies, s0 <= critical)


def test_weak_decay_revives_modes_that_none_would_let_die():
    q = torch.linspace(-2, 4, 61, dtype=torch.float64)
    none, weak = (basin_boundary(q / 1.3, 1.0, eta, 0.3, 2.0) * 2 * 1.3**2 for eta in (0.0, 1e-6))
    assert torch.allclose(none, torch.where(q < 0, q**2, (q**2 - 1).clamp(min=0)), atol=1e-12)
    assert torch.allclose(weak, torch.where(q < 0, q**2, (q**2 - 4).clamp(min=0)), atol=1e-4)
    for p0, eta, alive in ((1.5, 0.0, False), (1.5, 0.02, True), (2.1, 0.02, False)):
        assert survives(p0, 0.1, 1.0, eta, 0.0) == alive


def test_target_ratio_solves_its_equation():
    times = f64(0.0, 0.3, 5.0, 60.0)
    for beta, eta, alpha_p, p0, s0, tau0 in (
        (0.4, 0.04, 1.0, 0.5, 0.25, 0.0),
        (2.0, 0.1, 4.0, 0.4, 0.04, 0.3),
        (0.05, 0.0, 1.0, 0.1, 0.01, 1.0),
        (0.4, 0.04, 3.0, -0.3, 0.8, 0.6),  # off the parabola: the root of s for p
    ):

        def velocity(_, y, law=(alpha_p, beta, eta)):  # (p, w, w_a), no ratio in sight
            G = y[2] - 1.04 * y[0] * y[1]
            return [law[0] * G * y[1] - law[2] * y[0], y[0] * G - law[2] * y[1], law[1] * (y[1] - y[2])]

        path = solve_ivp(
            velocity, (0, 60), [p0, s0**0.5, tau0 * s0**0.5], "DOP853", rtol=1e-12, atol=1e-14, dense_output=True
        )
        row = 1 if p0 < 0 else 0

        def p(u, row=row, path=path):
            return torch.from_numpy(path.sol(u.numpy().ravel())[row]).reshape(u.shape)

        expected = torch.from_numpy(path.sol(times.numpy())[2] / path.sol(times.numpy())[1])
        assert torch.allclose(target_ratio(p, times, beta, tau0), expected, rtol=0, atol=1e-8)
        flow = mode_flow(p0, s0, tau0, times, alpha_p=alpha_p, beta=beta, eta=eta, sigma2=0.04)
        assert torch.allclose(flow[2], expected, rtol=0, atol=1e-8)


def test_target_ratio_in_cases_known_by_hand():
    t, beta, c = f64(0.0, 0.5, 3.0, 40.0), f64(0.1, 2.0, 50.0)[:, None], 0.3
    assert torch.allclose(target_ratio(torch.ones_like, t, beta), -torch.expm1(-beta * t), atol=1e-12)
    growing = beta / (beta + c) * -torch.expm1(-(beta + c) * t)
    assert torch.allclose(target_ratio(lambda u: torch.exp(c * u), t, beta), growing, atol=1e-11)
    assert torch.allclose(target_ratio(lambda u: 2 + u, t, 0.0, 0.7), 1.4 / (2 + t), atol=1e-15)
    by_quad = [quad(lambda u: (2 + math.sin(u)) * math.exp(0.7 * (u - 3)), 0, 3)[0] * 0.7 / (2 + math.sin(3))]
    assert target_ratio(lambda u: 2 + u.sin(), 3.0, 0.7).tolist() == pytest.approx(by_quad[0], abs=1e-12)


def test_alignment_rates_are_those_of_small_commutators():
    alpha_p, eta, sigma2, tau = 3.0, 0.02, 0.3, 0.8
    p, s = P0.numpy(), S0.numpy()
    H, M = (x + x.T for x in np.random.default_rng(3).normal(size=(2, 3, 3)))
    C, Wp = np.diag(s) + 1e-7 * H, np.diag(p) + 1e-7 * M
    b = 1 + sigma2
    dWp = -alpha_p / 2 * b * (Wp @ C + C @ Wp) + alpha_p * tau * C - eta * Wp
    dC = -b * (Wp @ Wp @ C + C @ Wp @ Wp) + tau * (Wp @ C + C @ Wp) - 2 * eta * C
    L, dL = C @ Wp - Wp @ C, dC @ Wp - Wp @ dC + C @ dWp - dWp @ C
    xi = alignment_rate(P0, S0, tau, alpha_p=alpha_p, eta=eta, sigma2=sigma2).numpy()
    off = ~np.eye(3, dtype=bool)
    assert np.allclose((dL / np.where(off, L, 1))[off], -(xi[:, None] + xi)[off], rtol=1e-5)


@pytest.mark.parametrize("sigma2", [0.0, 0.5])
def test_alignment_window_on_the_parabola(sigma2):
    p, edge = torch.linspace(-1, 2, 30001), 1 / (9 * (1 + sigma2))
    for part, sign in ((0.999, -1), (1.001, 1)):
        for alpha_p in (1.0, 7.0):  # cancels on the parabola
            rate = alignment_rate(p, p.square() / alpha_p, 1.0, alpha_p=alpha_p, eta=part * edge, sigma2=sigma2)
            assert sign * float(rate.min()) > 0
    assert edge < float(collapse_threshold(1.0, sigma2))
    for eta in (1e-4, 0.03, 0.15):
        useful = fixed_points(1.0, eta, sigma2).useful
        rate = alignment_rate(useful, useful**2, 1.0, eta=eta, sigma2=sigma2)
        assert float(rate) == pytest.approx(float((1 + sigma2) * useful**2 + eta) / 2, rel=1e-12)


def test_ema_is_slow_and_ends_where_a_target_that_keeps_up_does():
    t = torch.linspace(0, 600, 12001, dtype=torch.float64)
    waits = []
    for beta in (0.4, 0.2, 0.1, 0.05, 0.02):
        p, s, tau = mode_flow(0.5, 0.25, 0.0, t, beta=beta, eta=0.04, sigma2=0.04)
        useful = fixed_points(1.0, 0.04, 0.04).useful
        waits.append(float(t[(p > 0.95 * useful).int().argmax()]))
        if beta >= 0.1:
            assert float(tau[-1]) == pytest.approx(1, abs=1e-9)
            assert float(p[-1]) == pytest.approx(float(useful), abs=1e-9)
            assert float(s[-1]) == pytest.approx(float(p[-1]) ** 2, rel=1e-9)
    assert waits == pytest.approx([19.3, 34.9, 66.8, 131.9, 334.7], abs=0.15)
    dead = mode_flow(0.01, 1e-4, 0.0, t[:8001], beta=0.1, eta=0.04, sigma2=0.04)[2]
    assert float(dead[-1]) == pytest.approx(0.1 / 0.06, rel=1e-6)  # the target of a dying mode lags above it


@pytest.mark.parametrize(
    ("beta", "expected"), [(0.4, 0.0460), (0.2, 0.0500), (0.1, 0.0576), (0.05, 0.0720), (0.02, 0.1163)]
)
def test_ema_enlarges_the_basin_of_collapse(beta, expected):
    found = brentq(lambda p: survives(p, p * p, 0.0, 0.04, 0.04, beta) - 0.5, 0.03, 0.3, xtol=1e-7)
    assert found == pytest.approx(expected, abs=6e-5)
    assert found > float(fixed_points(1.0, 0.04, 0.04).saddle)
    for part, grows in ((1.001, True), (0.999, False)):
        start = part * found
        assert (float(mode_flow(start, start**2, 0.0, f64(1500.0), beta=beta, eta=0.04, sigma2=0.04)[0]) > 0.5) == grows


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fixed_points(0.0, 0.1, 0.04),
            "fixed_points: the ratio of target and online network, tau, must be pos",
        ),
        (lambda: fixed_points(1.0, -0.1, 0.04), r"weight decay, eta, must be >= 0, got -0.1"),
        (lambda: fixed_points(1.0, f64(0.1, 0.5), 0.04), r"eta = 0.5 is 2.08 times the threshold .* = 0.240385"),
        (lambda: basin_boundary(0.1, 1.0, 0.3, 0.0), r"basin_boundary: weight decay eta = 0.3 is 1.2 times"),
        (lambda: basin_boundary(0.1, 1.0, 0.1, 0.0, 0.0), "learning rate to the encoder's, alpha_p, must be positive"),
        (lambda: collapse_threshold(-1.0, 0.1), "collapse_threshold: the ratio .* got -1"),
        (lambda: collapse_threshold(1.0, -0.1), "eigenvalue of Sigma_aug, sigma2, must be >= 0"),
        (lambda: stability(0.5, 1.0, 0.1, 0.04), "p = 0.5 is not a fixed point; take 0 or one of fixed_points"),
        (lambda: mode_velocity(0.1, -0.1, 1.0), r"mode_velocity: the eigenvalue of C = W Gamma W\^T, s, must be >= 0"),
        (lambda: mode_velocity(0.1, 0.1, 1.0, beta=-1.0), "rate of the target, beta, must be >= 0"),
        (lambda: mode_velocity(math.nan, 0.1, 1.0), "mode_velocity: an argument is nan or infinite"),
        (lambda: mode_flow(0.1, 0.1, 1.0, f64(-1.0)), "mode_flow: the time, t, must be >= 0, got -1"),
        (lambda: mode_flow(0.1, 0.1, 1.0, torch.tensor(1.0)), r"t must list times, shape \(T,\), got shape \(\)"),
        (lambda: mode_flow(0.1, 0.1, 1.0, f64(1.0), gamma=0.0), "eigenvalue of Gamma, gamma, must be positive, got 0"),
        (
            lambda: mode_flow(0.1, 0.1, 1.0, f64(1e5), beta=0.1, eta=2.0),
            "has no ratio tau up to t = 100000: under a target",
        ),
        (
            lambda: mode_flow(-0.5, 1e-9, 0.1, f64(20.0), beta=0.5),
            r"leave out the modes with p\(0\) < 0",
        ),
        (lambda: integral_of_motion(0.1, 0.1, 1.0, -1.0), "alpha_p, must be positive, got -1"),
        (lambda: target_ratio(torch.ones_like, -1.0, 0.1), "target_ratio: the time, t, must be >= 0"),
        (lambda: alignment_rate(0.1, 0.1, 1.0, eta=-1.0), "alignment_rate: the weight decay, eta, must be >= 0"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call()
