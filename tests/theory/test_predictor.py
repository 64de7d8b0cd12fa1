"""Witnesses: autograd on a finite population, SGD of torch, RK4, conservation laws, Hessians, whitening, limits."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from companion.theory.predictor import (
    State,
    alignment_matrix,
    commutator,
    descend,
    flow,
    imbalance,
    no_stop_matrix,
    optimal_predictor,
    scale_free_commutator,
    velocity,
    view_correlations,
)
from tests.theory.linear_flow import gaussian

M, K = 5, 3
LAWS = [
    ({}, False),
    ({"alpha_p": 4.0, "eta": 0.05, "tau": 0.7}, False),
    ({"eta": 0.05, "eta_p": 0.2}, False),
    ({"alpha_p": 3.0, "eta": 0.1, "beta": 0.4}, True),
    ({"symmetric": True, "alpha_p": 2.0, "eta": 0.1}, False),
    ({"stop_gradient": False, "eta": 0.02, "alpha_p": 2.0}, False),
    ({"fixed_predictor": True, "eta": 0.1}, False),
]


def population(images: int = 30, views: int = 6) -> torch.Tensor:
    """Views (images, views, M) of images; neither their means nor their scatter is isotropic."""
    scale = torch.tensor([1.5, 1.0, 0.7, 0.4, 1.2], dtype=torch.float64)
    noise = gaussian(images, views, M, seed=1) @ gaussian(M, M, seed=2) / 4
    return gaussian(images, 1, M) * scale + noise


def pairs(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All ordered pairs of views of one image, a view with itself among them, as two views are drawn apart."""
    views = range(x.shape[1])
    first, second = zip(*product(views, views), strict=True)
    return x[:, first].reshape(-1, M), x[:, second].reshape(-1, M)


def second_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    means = x.mean(1)
    rest = (x - means[:, None]).reshape(-1, M)
    return means.T @ means / len(means), rest.T @ rest / len(rest)


def data(m: int = M, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    A, B = gaussian(m, 2 * m, seed=seed), gaussian(m, 2 * m, seed=seed + 100)
    return A @ A.T / (2 * m), B @ B.T / (8 * m)


def isotropic(m: int, sigma2: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.eye(m, dtype=torch.float64), sigma2 * torch.eye(m, dtype=torch.float64)


def start(*, target: bool = False, symmetric: bool = False, k: int = K, m: int = M, seed: int = 0) -> State:
    W, Wp = gaussian(k, m, seed=seed + 10) / 2, gaussian(k, k, seed=seed + 20) / 2
    Wp = (Wp + Wp.T) / 2 if symmetric else Wp
    return State(W, Wp, gaussian(k, m, seed=seed + 30) / 2 if target else None)


def loss(W, Wp, x: torch.Tensor, target) -> torch.Tensor:
    x1, x2 = pairs(x)
    return (x1 @ W.T @ Wp.T - target(x2)).square().sum(1).mean() / 2


def gradients(state: State, x: torch.Tensor, target) -> tuple[torch.Tensor, torch.Tensor]:
    W, Wp = (part.clone().requires_grad_() for part in state[:2])
    return torch.autograd.grad(loss(W, Wp, x, lambda x2: target(W, x2)), (W, Wp))


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-300))


def close(a: State, b: State, tolerance: float) -> bool:
    return all(far(left, right) < tolerance for left, right in zip(a, b, strict=True) if right is not None)


def runge_kutta(state: State, X, X_aug, times: list[float], h: float, tau=1.0, **law) -> State:
    """The classical method of order four; tau may be a function of time."""
    t, path, at = 0.0, [], tau if callable(tau) else lambda _: tau

    def slope(moved: float, by: State | None = None) -> State:
        there = state if by is None else step(state, by, moved)
        return velocity(there, X, X_aug, tau=at(t + moved), **law)

    def step(a: State, d: State, size: float) -> State:
        return State(*(x if d is None else x + size * d for x, d in zip(a, d, strict=True)))

    for until in times:
        while t < until - h / 2:
            k1 = slope(0.0)
            k2 = slope(h / 2, k1)
            k3 = slope(h / 2, k2)
            k4 = slope(h, k3)
            for d, part in ((k1, 1), (k2, 2), (k3, 2), (k4, 1)):
                state = step(state, d, h * part / 6)
            t += h
        path.append(state)
    return State(*(None if part[0] is None else torch.stack(part) for part in zip(*path, strict=True)))


class TestVelocity:
    @pytest.mark.parametrize(
        ("alpha_p", "eta", "eta_p"), [(1.0, 0.0, None), (4.0, 0.1, None), (0.5, 0.1, 0.3), (1.0, 0.1, 0.0)]
    )
    @pytest.mark.parametrize("target", [True, False])
    def test_it_is_the_gradient_of_the_population_loss(self, alpha_p, eta, eta_p, target):
        x, state = population(), start(target=target)
        X, X_aug = second_moments(x)
        tau = 1.0 if target else 0.6
        frozen = state.Wa if target else tau * state.W
        gW, gWp = gradients(state, x, lambda _, x2: x2 @ frozen.T)
        d = velocity(state, X, X_aug, alpha_p=alpha_p, eta=eta, eta_p=eta_p, tau=tau, beta=0.3 * target)
        assert far(d.W, -gW - eta * state.W) < 1e-13
        assert far(d.Wp, -alpha_p * gWp - (eta if eta_p is None else eta_p) * state.Wp) < 1e-13
        assert d.Wa is None if not target else torch.equal(d.Wa, 0.3 * (state.W - state.Wa))
        other = velocity(state, X, 0 * X_aug, alpha_p=alpha_p, eta=eta, eta_p=eta_p, tau=tau)
        assert far(other.W, -gW - eta * state.W) > 0.05  # control: the scatter of the views counts

    def test_the_loss_both_ways_has_the_same_gradient(self):
        x, state = population(), start(target=True)
        x1, x2 = pairs(x)
        W, Wp = (part.clone().requires_grad_() for part in state[:2])
        forth, back = ((a @ W.T @ Wp.T - b @ state.Wa.T).square().sum(1).mean() for a, b in ((x1, x2), (x2, x1)))
        gW, gWp = torch.autograd.grad((forth + back) / 4, (W, Wp))
        d = velocity(state, *second_moments(x))
        assert far(d.W, -gW) < 1e-13
        assert far(d.Wp, -gWp) < 1e-13

    def test_it_is_the_finite_difference_of_the_loss_in_second_moments(self):
        state, (X, X_aug), h = start(target=True), data(), 1e-6

        def trace_loss(W, Wp):
            P, Wa = Wp @ W, state.Wa
            return float((P @ (X + X_aug) @ P.T - 2 * P @ X @ Wa.T + Wa @ (X + X_aug) @ Wa.T).trace()) / 2

        d = velocity(state, X, X_aug)
        for seed in range(5):
            E, Ep = gaussian(K, M, seed=seed), gaussian(K, K, seed=seed + 50)
            up, down = (trace_loss(state.W + s * E, state.Wp + s * Ep) for s in (h, -h))
            assert float((d.W * E).sum() + (d.Wp * Ep).sum()) == pytest.approx((down - up) / (2 * h), rel=1e-7)

    def test_without_stop_gradient_the_target_is_followed_too(self):
        x, state = population(), start()
        X, X_aug = second_moments(x)
        gW, gWp = gradients(state, x, lambda W, x2: x2 @ W.T)
        d = velocity(state, X, X_aug, stop_gradient=False, alpha_p=2.0, eta=0.1)
        assert far(d.W, -gW - 0.1 * state.W) < 1e-13
        assert far(d.Wp, -2 * gWp - 0.1 * state.Wp) < 1e-13
        stopped = velocity(state, X, X_aug, alpha_p=2.0, eta=0.1)
        assert far(stopped.W, d.W) > 0.1  # control
        assert torch.equal(stopped.Wp, d.Wp)

    def test_switches_of_the_predictor(self):
        state, (X, X_aug) = start(symmetric=True), data()
        plain, law = velocity(state, X, X_aug, eta=0.1), {"eta": 0.1}
        sym = velocity(state, X, X_aug, symmetric=True, **law)
        assert far(sym.Wp, (plain.Wp + plain.Wp.T) / 2) < 1e-15
        assert far(plain.Wp, plain.Wp.T) > 0.05  # control: the gradient itself is not symmetric
        fixed = velocity(state, X, X_aug, fixed_predictor=True, **law)
        assert not fixed.Wp.any()
        assert torch.equal(sym.W, plain.W)
        assert torch.equal(fixed.W, plain.W)

    def test_leading_axes_and_dtype_are_free(self):
        many = [start(seed=s, target=True) for s in range(4)]
        stacked = State(*(torch.stack(part).reshape(2, 2, *part[0].shape) for part in zip(*many, strict=True)))
        X, X_aug = data()
        d = velocity(stacked, X, X_aug, eta=0.1, alpha_p=2.0, beta=0.3)
        for i, state in enumerate(many):
            alone = velocity(state, X, X_aug, eta=0.1, alpha_p=2.0, beta=0.3)
            assert close(State(*(part[i // 2, i % 2] for part in d)), alone, 1e-14)
        own = velocity(stacked, X.expand(2, 2, M, M), X_aug.expand(2, 2, M, M), eta=0.1, alpha_p=2.0, beta=0.3)
        assert close(own, d, 1e-14)
        single = velocity(State(*(part.float() for part in many[0])), X.float(), X_aug.float())
        assert single.W.dtype == torch.float64
        assert close(single, velocity(many[0], X, X_aug), 1e-5)


class TestFlow:
    @pytest.mark.parametrize(("law", "target"), LAWS)
    def test_it_is_what_runge_kutta_of_order_four_converges_to(self, law, target):
        state = start(target=target, symmetric=bool(law.get("symmetric")))
        X, X_aug = data()
        exact = flow(state, X, X_aug, [0.5, 2.0], **law)
        rough, fine = (runge_kutta(state, X, X_aug, [0.5, 2.0], h, **law) for h in (0.025, 0.0125))
        assert close(fine, exact, 1e-5)
        if not law.get("fixed_predictor"):
            assert 12 < far(rough.W, exact.W) / far(fine.W, exact.W) < 22
        slow, quick = (descend(state, X, X_aug, lr, round(2 / lr), **law) for lr in (0.01, 0.005))
        assert 1.8 < far(slow.W[-1], exact.W[-1]) / far(quick.W[-1], exact.W[-1]) < 2.2

    def test_the_target_may_be_scheduled(self):
        state, (X, X_aug) = start(), data()
        law = {"tau": lambda t: 1 - 0.9 * math.exp(-t), "eta": 0.05}
        exact = flow(state, X, X_aug, torch.tensor([1.0, 3.0]), **law)
        assert close(runge_kutta(state, X, X_aug, [1.0, 3.0], 0.01, **law), exact, 1e-7)
        slow, quick = (descend(state, X, X_aug, lr, round(3 / lr), **law) for lr in (0.01, 0.005))
        assert 1.8 < far(slow.W[-1], exact.W[-1]) / far(quick.W[-1], exact.W[-1]) < 2.2
        assert far(flow(state, X, X_aug, [3.0], tau=1.0, eta=0.05).W[-1], exact.W[-1]) > 0.02  # control

    @pytest.mark.parametrize(("law", "target"), LAWS)
    def test_it_is_a_semigroup_from_time_zero(self, law, target):
        state = start(target=target, symmetric=bool(law.get("symmetric")))
        X, X_aug = data()
        path = flow(state, X, X_aug, [0.0, 1.0, 2.5], **law)
        assert path.W.shape == (3, K, M)
        assert path.Wp.shape == (3, K, K)
        assert close(State(*(None if part is None else part[0] for part in path)), state, 1e-15)
        middle = State(*(None if part is None else part[1] for part in path))
        again = flow(middle, X, X_aug, [1.5], **law)
        assert close(again, State(*(None if part is None else part[2:] for part in path)), 1e-8)
        assert close(flow(state, X, X_aug, [0.0], **law), State(*(p if p is None else p[:1] for p in path)), 1e-15)

    def test_descent_is_the_training_loop_of_torch(self):
        x, state, lr, alpha_p, eta, beta = population(), start(target=True), 0.1, 3.0, 0.2, 0.5
        W, Wp, Wa = state.W.clone().requires_grad_(), state.Wp.clone().requires_grad_(), state.Wa.clone()
        groups = [{"params": [W], "lr": lr, "weight_decay": eta}]
        groups += [{"params": [Wp], "lr": lr * alpha_p, "weight_decay": eta / alpha_p}]
        optimizer = torch.optim.SGD(groups)
        path = descend(state, *second_moments(x), lr, 20, every=4, alpha_p=alpha_p, eta=eta, beta=beta)
        assert path.W.shape == (6, K, M)
        for step in range(21):
            if step % 4 == 0:
                trained = State(W.detach(), Wp.detach(), Wa)
                assert close(State(*(part[step // 4] for part in path)), trained, 1e-11)
            optimizer.zero_grad()
            loss(W, Wp, x, lambda x2, Wa=Wa: x2 @ Wa.T).backward()
            momentum = 1 - lr * beta
            Wa = momentum * Wa + (1 - momentum) * W.detach()
            optimizer.step()

    def test_systems_are_solved_together(self):
        X, X_aug = data()
        many = [start(seed=s, target=True) for s in range(3)]
        stacked = State(*(torch.stack(part) for part in zip(*many, strict=True)))
        law, times = {"eta": 0.1, "beta": 0.4}, np.array([1.0, 2.0])
        path = flow(stacked, X, X_aug, times, **law)
        assert path.Wa.shape == (2, 3, K, M)
        steps = descend(stacked, X, X_aug, 0.05, 40, every=20, **law)
        for i, state in enumerate(many):
            assert close(State(*(part[:, i] for part in path)), flow(state, X, X_aug, times, **law), 1e-8)
            alone = descend(state, X, X_aug, 0.05, 40, every=20, **law)
            assert close(State(*(part[:, i] for part in steps)), alone, 1e-13)

    @pytest.mark.parametrize(("law", "target"), LAWS)
    def test_rotations_of_embeddings_and_of_inputs_do_nothing(self, law, target):
        state = start(target=target, symmetric=bool(law.get("symmetric")))
        X, X_aug = data()
        S, Q = torch.linalg.qr(gaussian(K, K, seed=5)).Q, torch.linalg.qr(gaussian(M, M, seed=6)).Q

        def turn(state: State) -> State:
            Wa = None if state.Wa is None else S @ state.Wa @ Q.T
            return State(S @ state.W @ Q.T, S @ state.Wp @ S.T, Wa)

        turned = flow(turn(state), Q @ X @ Q.T, Q @ X_aug @ Q.T, [2.0], **law)
        assert close(turned, turn(flow(state, X, X_aug, [2.0], **law)), 1e-8)

    def test_the_ratio_of_learning_rates_is_a_change_of_units(self):
        state, (X, X_aug), law = start(target=True), data(), {"eta": 0.1, "beta": 0.4}
        path = flow(state, X, X_aug, [2.0], alpha_p=4.0, **law)
        scaled = flow(State(2 * state.W, state.Wp, 2 * state.Wa), X, X_aug, [2.0], alpha_p=1.0, **law)
        assert close(scaled, State(2 * path.W, path.Wp, 2 * path.Wa), 1e-8)

    def test_long_runs_keep_the_directions_that_views_share_most(self):
        X, X_aug = data(6, seed=3)
        small = State(0.05 * gaussian(2, 6), 0.1 * torch.eye(2, dtype=torch.float64))
        end = flow(small, X, X_aug, [300.0], eta=0.0)
        kappa, V = view_correlations(X, X_aug)
        rows, top = torch.linalg.qr(end.W[0].T).Q, torch.linalg.qr(V[:, :2]).Q
        assert torch.linalg.svdvals(rows.T @ top)[-1] > 0.999
        assert torch.allclose(torch.linalg.eigvals(end.Wp[0]).real.sort(descending=True).values, kappa[:2], atol=1e-3)
        largest = torch.linalg.eigh(X).eigenvectors[:, -2:]
        assert torch.linalg.svdvals(rows.T @ largest)[-1] < 0.9  # control: not the principal components


class TestBalance:
    @pytest.mark.parametrize(("alpha_p", "eta", "beta"), [(1.0, 0.0, 0.4), (1.0, 0.05, 0.4), (4.0, 0.2, 0.1)])
    def test_decay_forgets_the_imbalance_and_nothing_else_does(self, alpha_p, eta, beta):
        state, (X, X_aug) = start(target=True), data()
        times = torch.linspace(0, 10, 11, dtype=torch.float64)
        law = {"alpha_p": alpha_p, "eta": eta, "beta": beta}
        Omega = imbalance(flow(state, X, X_aug, times, **law), alpha_p)
        factor = (-2 * eta * times).exp()[:, None, None]
        assert torch.allclose(Omega, factor * imbalance(state, alpha_p), rtol=0, atol=1e-8)
        naive = state.W @ state.W.T - state.Wp.T @ state.Wp / alpha_p
        assert torch.allclose(Omega[0], naive, atol=1e-14)
        split = imbalance(flow(state, X, X_aug, times, **law, eta_p=eta + 0.1), alpha_p)
        assert (split - factor * naive).abs().max() > 0.01  # control: two weight decays
        transposed = state.W @ state.W.T - state.Wp @ state.Wp.T / alpha_p
        assert (transposed - naive).abs().max() > 0.1  # control: the order of the factors

    @pytest.mark.parametrize("law", [{}, {"tau": lambda t: 1 + math.sin(t) / 2}])
    def test_a_target_without_momentum_changes_nothing(self, law):
        state, (X, X_aug) = start(), data()
        Omega = imbalance(flow(state, X, X_aug, [5.0], eta=0.1, **law), 1.0)[0]
        assert torch.allclose(Omega, math.exp(-1.0) * imbalance(state, 1.0), rtol=0, atol=1e-9)

    def test_descent_keeps_it_to_first_order(self):
        state, (X, X_aug) = start(), data()
        drift = []
        for lr in (0.01, 0.001):
            path = descend(state, X, X_aug, lr, round(3 / lr), every=round(3 / lr), alpha_p=2.0, eta=0.05)
            drift.append(far(imbalance(path, 2.0)[-1], math.exp(-0.3) * imbalance(state, 2.0)))
        assert 8 < drift[0] / drift[1] < 12

    @pytest.mark.parametrize("alpha_p", [1.0, 3.0])
    def test_symmetrised_only_the_trace_is_kept(self, alpha_p):
        sigma2, eta, times = 0.25, 0.05, [1.0, 4.0, 10.0]
        X, X_aug = isotropic(M, sigma2)
        state, law = start(symmetric=True), {"alpha_p": alpha_p, "eta": eta, "symmetric": True}
        factor = torch.tensor(times, dtype=torch.float64).mul(-2 * eta).exp()[:, None, None]
        gap = imbalance(flow(state, X, X_aug, times, **law), alpha_p) - factor * imbalance(state, alpha_p)
        trace = gap.diagonal(dim1=-2, dim2=-1).sum(-1)
        assert trace.abs().max() < 1e-9
        assert gap.abs().max() > 0.01
        d, C = velocity(state, X, X_aug, **law), state.W @ state.W.T
        rate = d.W @ state.W.T + state.W @ d.W.T - (d.Wp @ state.Wp + state.Wp @ d.Wp) / alpha_p
        turn = (1 + sigma2) * commutator(C, state.Wp)
        expected = commutator(state.Wp, turn) / 2 - 2 * eta * imbalance(state, alpha_p)
        assert torch.allclose(rate, expected, atol=1e-13)

    def test_symmetrised_an_aligned_start_keeps_it_all(self):
        X, X_aug = isotropic(M, 0.25)
        U, values = torch.linalg.qr(gaussian(K, K)).Q, torch.tensor([0.3, 0.6, -0.2], dtype=torch.float64)
        aligned = State(U @ gaussian(K, M).svd().S.diag() @ torch.eye(K, M, dtype=torch.float64), (U * values) @ U.T)
        Omega = imbalance(flow(aligned, X, X_aug, [5.0], eta=0.1, symmetric=True))[0]
        assert torch.allclose(Omega, math.exp(-1.0) * imbalance(aligned), rtol=0, atol=1e-9)


class TestStopGradient:
    def test_the_matrix_is_the_hessian_of_the_loss(self):
        x, state = population(), start()
        X, X_aug = second_moments(x)
        H = no_stop_matrix(state.Wp, X, X_aug, eta=0.1)

        def of_columns(w):
            W = w.reshape(M, K).T
            return loss(W, state.Wp, x, lambda x2: x2 @ W.T)

        w = state.W.T.flatten()
        hessian = torch.autograd.functional.hessian(of_columns, w)
        assert far(H, hessian + 0.1 * torch.eye(M * K, dtype=torch.float64)) < 1e-13
        d = velocity(state, X, X_aug, stop_gradient=False, eta=0.1)
        assert far(d.W.T.flatten(), -H @ w) < 1e-13
        assert far(d.W.flatten(), -H @ state.W.flatten()) > 0.1  # control: rows stacked
        stacked = no_stop_matrix(torch.stack([state.Wp, 2 * state.Wp]), X, X_aug, 0.1)
        assert far(stacked[0], H) < 1e-15
        assert far(stacked[1], no_stop_matrix(2 * state.Wp, X, X_aug, 0.1)) < 1e-15
        assert torch.linalg.eigvalsh(H)[0] > 0.1

    @pytest.mark.parametrize("eta", [0.0, 0.1])
    def test_without_it_the_network_dies_at_the_rate_of_the_noise(self, eta):
        sigma2, times = 0.25, torch.linspace(0, 20, 5, dtype=torch.float64)
        X, X_aug = isotropic(M, sigma2)
        size = flow(start(), X, X_aug, times, eta=eta, stop_gradient=False).W.norm(dim=(1, 2))
        assert (size <= size[0] * (-(sigma2 + eta) * times).exp() * (1 + 1e-9)).all()
        assert torch.linalg.eigvalsh(no_stop_matrix(gaussian(K, K), X, X_aug, eta))[0] >= sigma2 + eta
        alive = flow(start(), X, X_aug, times, eta=0.0).W.norm(dim=(1, 2))
        assert alive[-1] > 0.5  # control: with stop-gradient it lives

    @pytest.mark.parametrize("eta", [0.0, 0.1])
    def test_without_a_predictor_it_is_an_exponential(self, eta):
        (X, X_aug), W = data(), start().W
        bare = State(W, torch.eye(K, dtype=torch.float64))
        end = flow(bare, X, X_aug, [3.0], eta=eta, fixed_predictor=True)
        decay = torch.linalg.matrix_exp(-3.0 * (X_aug + eta * torch.eye(M, dtype=torch.float64)))
        assert torch.allclose(end.W[0], W @ decay, rtol=0, atol=1e-10)
        assert torch.equal(end.Wp[0], bare.Wp)

    def test_directions_without_noise_survive_without_stop_gradient(self):
        X, X_aug = isotropic(4, 1.0)
        X_aug[2:] = 0.0
        near = State(gaussian(2, 4), torch.eye(2, dtype=torch.float64))
        end = flow(near, X, X_aug, [100.0], stop_gradient=False)
        assert end.W[0, :, :2].norm() < 1e-6
        assert end.W[0, :, 2:].norm() > 0.5


class TestOptimalPredictor:
    def test_it_is_the_least_squares_fit_and_stops_all_growth(self):
        x, W = population(), start().W
        X, X_aug = second_moments(x)
        Wp = optimal_predictor(W, X, X_aug, tau=0.6)
        x1, x2 = pairs(x)
        fitted = torch.linalg.lstsq(x1 @ W.T, 0.6 * x2 @ W.T).solution.T
        assert far(Wp, fitted) < 1e-11
        d = velocity(State(W, Wp), X, X_aug, tau=0.6, eta=0.1)
        assert far(d.W @ W.T, -0.1 * W @ W.T) < 1e-12
        worse = velocity(State(W, 0.9 * Wp), X, X_aug, tau=0.6, eta=0.1)
        assert far(worse.W @ W.T, -0.1 * W @ W.T) > 0.1  # control: a predictor that lags leaves room to grow

    def test_with_a_ridge_it_is_where_the_predictor_rests(self):
        (X, X_aug), W = data(), start().W
        Wp = optimal_predictor(W, X, X_aug, tau=0.6, ridge=0.2 / 4)
        assert velocity(State(W, Wp), X, X_aug, tau=0.6, alpha_p=4.0, eta_p=0.2).Wp.abs().max() < 1e-13
        assert far(Wp, Wp.T) > 1e-3  # symmetric on isotropic data only:
        same = optimal_predictor(W, *isotropic(M, 0.25), ridge=0.1)
        assert far(same, same.T) < 1e-13

    def test_dead_directions_are_left_alone(self):
        W = start().W.clone()
        W[0] = 0
        Wp = optimal_predictor(torch.stack([W, 2 * W]), *isotropic(M, 0.25))
        assert Wp[0, 0].abs().max() < 1e-12
        assert torch.allclose(Wp[0, 1:, 1:], torch.eye(2, dtype=torch.float64) / 1.25, atol=1e-12)
        assert far(Wp[1], Wp[0]) < 1e-12


class TestAlignment:
    @pytest.mark.parametrize(
        ("alpha_p", "eta", "eta_p"), [(1.0, 0.0, None), (3.0, 0.1, None), (2.0, 0.1, 0.4), (1.0, 0.1, 0.0)]
    )
    @pytest.mark.parametrize("m", [2, 7])
    def test_the_commutator_obeys_its_law(self, alpha_p, eta, eta_p, m):
        sigma2, tau, state = 0.3, 0.7, start(symmetric=True, k=4, m=m)
        law = {"tau": tau, "alpha_p": alpha_p, "eta": eta, "eta_p": eta_p}
        d = velocity(state, *isotropic(m, sigma2), symmetric=True, **law)
        C, dC = state.W @ state.W.T, d.W @ state.W.T + state.W @ d.W.T
        M_, Xi = commutator(C, state.Wp), alignment_matrix(C, state.Wp, sigma2=sigma2, **law)
        rate = commutator(dC, state.Wp) + commutator(C, d.Wp)
        assert torch.allclose(rate, -Xi @ M_ - M_ @ Xi, atol=1e-13)
        assert torch.equal(M_, C @ state.Wp - state.Wp @ C)
        assert torch.allclose(M_, -M_.T, atol=1e-15)
        free = velocity(state, *isotropic(m, sigma2), **law)
        rate = commutator(free.W @ state.W.T + state.W @ free.W.T, state.Wp) + commutator(C, free.Wp)
        assert (rate + Xi @ M_ + M_ @ Xi).abs().max() > 0.01  # control: not of the flow that is not symmetrised

    @pytest.mark.parametrize(("eta", "tau", "positive"), [(0.2, 1.0, True), (0.0, 1.0, False)])
    def test_the_bound_holds_for_either_sign(self, eta, tau, positive):
        sigma2, times = 0.0016, torch.linspace(0, 15, 301, dtype=torch.float64)
        start_ = State(gaussian(4, 6) / 4, (lambda A: A @ A.T / 8)(gaussian(4, 4, seed=1)))
        path = flow(start_, *isotropic(6, sigma2), times, eta=eta, tau=tau, symmetric=True)
        C = path.W @ path.W.mT
        Xi = alignment_matrix(C, path.Wp, tau=torch.full((301,), tau), sigma2=sigma2, eta=eta)
        least = torch.linalg.eigvalsh(Xi)[:, 0].numpy()
        size = commutator(C, path.Wp).norm(dim=(1, 2)).numpy()
        bound = [size[0] * math.exp(-2 * trapezoid(least[: i + 1], times[: i + 1].numpy())) for i in range(301)]
        assert (size <= np.array(bound) * 1.001 + 1e-12).all()
        assert (least.min() > 0) == positive
        assert size[-1] < 0.05 * size[0]

    def test_no_commutator_grows_once_its_scale_is_taken_out(self):
        times, grew = torch.linspace(0, 12, 121, dtype=torch.float64), 0
        for seed in range(12):
            a, b, c, d = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
            sigma2, alpha_p, eta, eta_p = a, 0.3 + 3 * b, 0.2 * c, 0.2 * d
            state = start(symmetric=True, k=3, m=5, seed=seed)
            state = State(state.W * (0.05 + b * b), state.Wp @ state.Wp if seed % 2 else state.Wp)  # of any sign, too
            law = {"alpha_p": alpha_p, "eta": eta, "eta_p": eta_p, "tau": lambda t, a=a: 1 + a * math.sin(t) / 2}
            path = flow(state, *isotropic(5, sigma2), times, symmetric=True, **law)
            alive = torch.linalg.cond(path.W) < 1e4  # beyond, rounding of the large modes hides the small
            C, Wp = (path.W @ path.W.mT)[alive], path.Wp[alive]
            least = alpha_p * (1 + sigma2) * torch.linalg.eigvalsh(C)[:, 0] + eta_p
            spent = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(least, times[alive])])
            size = scale_free_commutator(C, Wp)
            assert (size <= size[0] * (-spent).exp() * (1 + 1e-4) + 1e-11).all()
            assert (size.diff() <= 1e-9 * size[0]).all()
            raw = commutator(C, Wp).norm(dim=(1, 2))
            grew += bool((raw > 1.2 * raw[0]).any())
        assert grew  # control: the norm of the commutator itself does grow in some

    def test_scale_free_is_what_it_says(self):
        A, Wp = gaussian(4, 6), gaussian(4, 4, seed=1)
        C = A @ A.T
        c, U = torch.linalg.eigh(C)
        root = (U * c.rsqrt()) @ U.T
        assert float(scale_free_commutator(C, Wp)) == pytest.approx(float((root @ commutator(C, Wp) @ root).norm()))
        M_, inverse = commutator(C, Wp), torch.linalg.inv(C)
        assert float(scale_free_commutator(C, Wp)) ** 2 == pytest.approx(float((inverse @ M_ @ inverse @ M_.T).trace()))
        assert float(scale_free_commutator(1e-12 * C, Wp)) == pytest.approx(float(scale_free_commutator(C, Wp)))
        both = scale_free_commutator(torch.stack([C, C]), torch.stack([Wp, 2 * Wp]))
        assert both.tolist() == pytest.approx([float(both[0]), 2 * float(both[0])])
        assert float(scale_free_commutator(C, C @ C - 3 * C)) == pytest.approx(0, abs=1e-12)


class TestViewCorrelations:
    def test_they_are_the_singular_values_of_whitened_views(self):
        x = population()
        x1, x2 = pairs(x)
        X, X_aug = second_moments(x)
        kappa, V = view_correlations(X, X_aug)
        roots = [torch.linalg.svd(v, full_matrices=False) for v in (x1, x2)]
        assert torch.allclose(kappa, torch.linalg.svdvals(roots[0].U.T @ roots[1].U), atol=1e-12)
        assert torch.allclose(V.T @ (X + X_aug) @ V, torch.eye(M, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(X @ V, (X + X_aug) @ V * kappa, atol=1e-12)
        for value, v in zip(kappa, V.T, strict=True):
            assert np.corrcoef(x1 @ v, x2 @ v)[0, 1] == pytest.approx(float(value), abs=0.05)  # but for the means

    def test_the_units_of_the_inputs_do_not_enter(self):
        (X, X_aug), A = data(), gaussian(M, M, seed=8)
        kappa, V = view_correlations(X, X_aug)
        same, turned = view_correlations(A @ X @ A.T, A @ X_aug @ A.T)
        assert torch.allclose(same, kappa, atol=1e-10)
        assert torch.allclose((A.T @ turned).abs(), V.abs(), atol=1e-8)
        assert not torch.allclose(torch.linalg.eigvalsh(A @ X @ A.T).flip(0), torch.linalg.eigvalsh(X).flip(0))

    def test_limits(self):
        X, X_aug = isotropic(M, 0.25)
        X = X * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
        assert torch.allclose(view_correlations(X, X_aug)[0], X.diagonal() / (X.diagonal() + 0.25))
        assert torch.allclose(view_correlations(X, 0 * X)[0], torch.ones(M, dtype=torch.float64))
        assert torch.allclose(view_correlations(0 * X, X_aug)[0], torch.zeros(M, dtype=torch.float64), atol=1e-15)
        noisy = X_aug * torch.tensor([100.0, 1, 1, 1, 1], dtype=torch.float64)
        assert view_correlations(X, noisy)[1][0].abs().argmax() == M - 1  # the largest of X comes last


def call(**changes):
    """A velocity with one thing wrong."""
    state = changes.pop("state", State(torch.ones(2, 3), torch.eye(2)))
    return velocity(state, changes.pop("X", torch.eye(3)), changes.pop("X_aug", torch.eye(3)), **changes)


STATE, EYE = State(torch.ones(2, 3), torch.eye(2)), torch.eye(3)
WITH_TARGET = State(torch.ones(2, 3), torch.eye(2), torch.ones(2, 3))
SKEW = torch.tensor([[1.0, 1.0, 0], [0, 1, 0], [0, 0, 1]])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: call(state=State(torch.ones(2, 3), torch.eye(3))), r"velocity: .*shapes \(2, 3\), \(3, 3\); need"),
        (lambda: call(state=State(torch.ones(3), torch.eye(3))), "need .*k, m"),
        (lambda: call(state=State(torch.ones(2, 3), torch.eye(2), torch.ones(2, 2))), "need .*k, m"),
        (lambda: call(state=State(torch.ones(2, 3), torch.full((2, 2), math.nan))), "not numbers"),
        (lambda: call(X=torch.eye(2), X_aug=torch.eye(2)), r"W \(2, 3\) and X \(2, 2\) do not fit"),
        (lambda: call(X=EYE.expand(4, 3, 3), X_aug=EYE.expand(4, 3, 3)), r"X \(4, 3, 3\) do not fit"),
        (lambda: call(X_aug=torch.eye(2)), r"must both be \(m, m\), got \(3, 3\) and \(2, 2\)"),
        (lambda: call(X=SKEW), "X is not symmetric; average it"),
        (lambda: call(X_aug=SKEW), "X_aug is not symmetric"),
        (lambda: call(X=math.nan * EYE), "not symmetric"),
        (lambda: call(X_aug=EYE - 1.5 * torch.diag(torch.tensor([1.0, 0, 0]))), "X_aug has eigenvalue -0.5.*X_aug = "),
        (lambda: call(X=-0.1 * EYE), "X has eigenvalue -0.1"),
        (lambda: call(alpha_p=0.0), "alpha_p must be positive.*alpha_p=0"),
        (lambda: call(eta=-0.1), "not negative; got .*eta=-0.1"),
        (lambda: call(eta_p=-0.1), "eta_p=-0.1"),
        (lambda: call(eta=math.nan), "eta=nan"),
        (lambda: call(state=WITH_TARGET, beta=-1.0), "beta=-1"),
        (lambda: call(beta=0.4), "beta=0.4 needs a target"),
        (lambda: call(tau=0.0), "tau must be positive, got 0"),
        (lambda: call(tau=lambda t: t), "velocity: tau is a function"),
        (lambda: call(state=WITH_TARGET, tau=0.5), "tau has no meaning"),
        (lambda: call(state=WITH_TARGET, stop_gradient=False), "leave Wa and tau out"),
        (lambda: call(tau=0.5, stop_gradient=False), "leave Wa and tau out"),
        (lambda: call(state=State(torch.ones(3, 3), SKEW), symmetric=True), "needs a symmetric predictor; take"),
        (lambda: flow(STATE, EYE, EYE, [0.0, 1.0, 1.0]), "flow: expected times .* increase"),
        (lambda: flow(STATE, EYE, EYE, [-1.0, 1.0]), "increase from 0"),
        (lambda: flow(STATE, EYE, EYE, []), r"got \[\]"),
        (lambda: flow(STATE, EYE, EYE, [1.0, math.nan]), "increase"),
        (lambda: flow(STATE, EYE, EYE, [1.0, math.inf]), "increase"),
        (lambda: flow(STATE, EYE, EYE, torch.ones(2, 2)), "increase"),
        (lambda: flow(STATE, EYE, EYE, [1.0], eta=-1.0), "flow: alpha_p must"),
        (lambda: descend(STATE, EYE, EYE, 0.0, 10), "lr, steps and every must be positive, got 0"),
        (lambda: descend(STATE, EYE, EYE, 0.1, 0), "got 0.1, 0"),
        (lambda: descend(STATE, EYE, EYE, 0.1, 10, every=0), "10 and 0"),
        (lambda: descend(STATE, EYE, EYE, 5.0, 40), "descend: the weights overflow within 40 steps at lr = 5"),
        (lambda: imbalance(STATE, 0.0), "imbalance: alpha_p must be positive"),
        (lambda: imbalance(State(torch.ones(2, 3), torch.eye(3))), r"Wp \(3, 3\) do not fit"),
        (lambda: no_stop_matrix(torch.ones(2, 3), EYE, EYE), r"must be \(k, k\), got \(2, 3\)"),
        (lambda: no_stop_matrix(EYE, SKEW, EYE), "no_stop_matrix: X is not symmetric"),
        (lambda: optimal_predictor(torch.ones(2, 2), EYE, EYE), "optimal_predictor: .* does not fit"),
        (lambda: optimal_predictor(torch.ones(2, 3), EYE, EYE, ridge=-1.0), "ridge not negative, got 1.0 and -1"),
        (lambda: optimal_predictor(torch.ones(2, 3), EYE, EYE, tau=0.0), "tau must be positive"),
        (lambda: commutator(EYE, torch.eye(2)), r"commutator: C and Wp must both be \(k, k\)"),
        (lambda: alignment_matrix(EYE, torch.ones(3, 2), tau=1.0, sigma2=0.1), "must both be"),
        (lambda: alignment_matrix(EYE, SKEW, tau=1.0, sigma2=0.1), "Wp is not symmetric"),
        (lambda: alignment_matrix(SKEW, EYE, tau=1.0, sigma2=0.1), "C is not symmetric"),
        (lambda: alignment_matrix(EYE, EYE, tau=1.0, sigma2=-0.1), "sigma2=-0.1"),
        (lambda: alignment_matrix(EYE, EYE, tau=1.0, sigma2=0.1, alpha_p=0.0), "alpha_p must be positive"),
        (lambda: scale_free_commutator(torch.ones(2, 2), torch.eye(2)), "C is singular"),
        (lambda: scale_free_commutator(0 * EYE, EYE), "C is singular"),
        (lambda: view_correlations(EYE, torch.eye(2)), r"view_correlations: X and X_aug must both be"),
        (lambda: view_correlations(torch.ones(2, 2), torch.ones(2, 2)), "singular .*principal components"),
    ],
)
def test_errors_teach(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_solver_that_stops_says_so():
    with pytest.raises(RuntimeError, match="no solution up to t = 2"):
        flow(start(), *data(), [2.0], tau=lambda t: 1.0 if t < 1 else math.nan)


def test_rounding_is_not_an_error():
    X, _ = data()
    noise = 1e-15 * gaussian(M, M)
    velocity(start(), X + noise, noise)
    velocity(start(), X.float(), (X - X.float()).float())
