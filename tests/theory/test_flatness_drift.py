"""Witnesses: Jacobians by automatic differentiation, small Euler steps, enumerated samples, orders by regression."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import solve_continuous_lyapunov, solve_discrete_lyapunov
from torch import Tensor

from companion.theory.flatness.drift import conserved, expected_drift, limit_map, step_noise
from companion.theory.flatness.fluctuation import stationary_covariance, stationary_excess
from companion.theory.flatness.majority_heads import one_shot_accuracy
from companion.theory.flatness.majority_trace import (
    diagonal,
    flattest,
    flattest_trace,
    hessian,
    least_root_trace,
    root_trace,
    trace,
)
from companion.theory.flatness.slow_flow import (
    adam_slow_flow,
    adam_velocity,
    log_determinant_velocity,
    relaxation_rates,
    slow_flow,
    slow_velocity,
    tangent,
)
from companion.theory.flatness.soft_majority import (
    Point,
    SoftMajority,
    excess_loss,
    project,
    rescale,
    soft_majority,
    start,
    transverse,
)

LANGUAGE = soft_majority(torch.tensor([0.9, 0.9, 0.5], dtype=torch.float64))
HIDDEN, D = 3, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(seed: int = 1, hidden: int = HIDDEN, language: SoftMajority = LANGUAGE) -> Point:
    return start(language, hidden, torch.Generator().manual_seed(seed))


def flat(point: Point) -> Tensor:
    return torch.cat([point.a, point.W.flatten(-2)], -1)


def as_point(theta: Tensor, hidden: int = HIDDEN) -> Point:
    return Point(theta[..., :hidden], theta[..., hidden:].unflatten(-1, (hidden, -1)))


def jacobian(point: Point) -> Tensor:
    """Of W^T a by all parameters, automatically."""

    def image(theta: Tensor) -> Tensor:
        a, W = as_point(theta, len(point.a))
        return W.T @ a

    J = torch.autograd.functional.jacobian(image, flat(point))
    assert isinstance(J, Tensor)
    return J


def loss_gradient(theta: Tensor, hidden: int = HIDDEN, language: SoftMajority = LANGUAGE) -> Tensor:
    x = theta.clone().requires_grad_()
    a, W = as_point(x, hidden)
    logits = language.contexts @ (W.T @ a)
    loss = -(language.truth * logits.sigmoid().log() + (1 - language.truth) * (-logits).sigmoid().log()).mean()
    return torch.autograd.grad(loss, x)[0]


def slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# gradient flow and its end


@pytest.mark.parametrize("seed", [0, 3])
def test_limit_map_by_small_steps_of_descent(seed):
    theta = flat(drawn(seed)) + 0.3 * normal(12, seed=seed)
    end = flat(limit_map(as_point(theta), LANGUAGE))
    errors, sizes = [], [0.2, 0.1, 0.05]
    for size in sizes:
        x = theta
        while float(loss_gradient(x).norm()) > 1e-7:
            x = x - size * loss_gradient(x)
        errors.append(float((x - end).norm()))
    assert slope(sizes, errors) == pytest.approx(1, abs=0.1)  # Euler's method, of first order
    assert errors[-1] < 0.01 * float((theta - end).norm())


@pytest.mark.parametrize("seed", range(3))
def test_limit_map_keeps_what_the_flow_keeps_and_ends_on_the_manifold(seed):
    point = Point(normal(2, 4, seed=seed), normal(2, 4, 3, seed=seed + 7))  # two points of four neurons at once
    end = limit_map(point, LANGUAGE)
    assert torch.allclose(conserved(end), conserved(point), atol=2e-10)
    assert float(excess_loss(end, LANGUAGE).abs().max()) < 1e-14
    projected = project(point, LANGUAGE)
    assert float((conserved(projected) - conserved(point)).abs().max()) > 0.01  # control: the nearest is another
    alone = limit_map(Point(point.a[1], point.W[1]), LANGUAGE)
    assert torch.allclose(flat(alone), flat(end)[1], atol=1e-10)


def test_limit_map_is_constant_along_the_flow_and_the_identity_on_the_manifold():
    theta = flat(drawn()) + 0.3 * normal(12)
    x = theta
    for _ in range(200):  # classical Runge-Kutta
        k1 = -loss_gradient(x)
        k2 = -loss_gradient(x + 0.005 * k1)
        k3 = -loss_gradient(x + 0.005 * k2)
        k4 = -loss_gradient(x + 0.01 * k3)
        x = x + 0.01 / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    assert float((x - theta).norm()) > 0.05
    assert torch.allclose(
        flat(limit_map(as_point(x), LANGUAGE)), flat(limit_map(as_point(theta), LANGUAGE)), atol=1e-10
    )
    assert torch.allclose(flat(limit_map(drawn(), LANGUAGE)), flat(drawn()), atol=1e-13)


def test_derivative_of_the_limit_map_is_the_tangent_projection_there_and_kills_the_gradient_elsewhere():
    theta, h = flat(drawn()), 1e-4
    probes = torch.cat([theta + h * torch.eye(12), theta - h * torch.eye(12)])
    ends = flat(limit_map(as_point(probes), LANGUAGE))
    J = jacobian(drawn())
    P_T = torch.eye(12) - torch.linalg.pinv(J) @ J
    assert torch.allclose((ends[:12] - ends[12:]).T / (2 * h), P_T, atol=1e-6)
    off = theta + 0.3 * normal(12)
    g = loss_gradient(off)
    step = flat(limit_map(as_point(torch.stack([off + h * g, off - h * g])), LANGUAGE))
    assert float((step[0] - step[1]).norm()) / (2 * h) < 1e-6 * float(g.norm())
    other = normal(12, seed=3)
    step = flat(limit_map(as_point(torch.stack([off + h * other, off - h * other])), LANGUAGE))
    assert float((step[0] - step[1]).norm()) / (2 * h) > 0.1  # control


def test_the_flow_from_the_saddle_does_not_arrive():
    with pytest.raises(RuntimeError, match=r"after time .* saddle"):
        limit_map(Point(torch.zeros(2), torch.zeros(2, 3)), LANGUAGE, horizon=20.0)


# projections and velocities


@pytest.mark.parametrize("oblique", [False, True])
def test_projections_by_the_pseudoinverse(oblique):
    point, P = drawn(), torch.ones(12).double()
    if oblique:
        P = 0.2 + normal(12, seed=5).square()
    J, root = jacobian(point), P.sqrt()
    naive = torch.eye(12) - torch.linalg.pinv(J * root) @ (J * root)  # orthogonal in stretched coordinates
    naive = root[:, None] * naive / root
    columns = [flat(tangent(point, as_point(e), LANGUAGE, as_point(P))) for e in torch.eye(12).double()]
    found = torch.stack(columns, 1)
    assert torch.allclose(found, naive, atol=1e-12)
    assert torch.allclose(found @ found, found, atol=1e-12)
    assert float((J @ found).abs().max()) < 1e-12
    assert float((found @ (P[:, None] * hessian(point, LANGUAGE))).abs().max()) < 1e-12
    assert torch.allclose(found, found.T, atol=1e-8) is not oblique
    if not oblique:
        assert torch.equal(found[:, 0], flat(tangent(point, as_point(torch.eye(12).double()[0]), LANGUAGE)))


def drop(measure, point: Point, scale: Tensor | None = None) -> Tensor:
    """Minus the tangential gradient of a function of the raw Hessian, all by automatic differentiation."""
    x = flat(point).requires_grad_()
    hidden = len(point.a)
    a, W = as_point(x, hidden)
    J = torch.cat([W.T, (a[None, :, None] * torch.eye(W.shape[1])[:, None, :]).flatten(1)], 1)
    g = torch.autograd.grad(measure(J.T @ LANGUAGE.M @ J), x)[0]
    root = torch.ones_like(g) if scale is None else scale.sqrt()
    J = jacobian(point) * root
    return -root * ((torch.eye(len(g)) - torch.linalg.pinv(J) @ J) @ (root * g))


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_velocities_by_automatic_differentiation(seed, hidden):
    point = drawn(seed, hidden)
    assert torch.allclose(flat(slow_velocity(point, LANGUAGE)), drop(torch.trace, point) / 4, atol=1e-9)

    def log_determinant(H: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(H)[-3:].log().sum()

    found = flat(log_determinant_velocity(point, LANGUAGE))
    scale = max(1.0, float(found.abs().max()))
    assert torch.allclose(found, drop(log_determinant, point) / 4, atol=1e-7 * scale)
    for epsilon in (0.5, 1e-2):

        def potential(H: Tensor, epsilon: float = epsilon) -> Tensor:
            roots = H.diagonal().sqrt()
            return (roots - epsilon * torch.log1p(roots / epsilon)).sum()

        P = 1 / (flat(diagonal(point, LANGUAGE)).sqrt() + epsilon)
        found = flat(adam_velocity(point, LANGUAGE, epsilon))
        scale = max(1.0, float(found.abs().max()))
        assert torch.allclose(found, drop(potential, point, P) / 2, atol=1e-8 * scale)


def test_velocities_reduce_leading_axes():
    points = [drawn(seed) for seed in range(4)]
    stacked = Point(*(torch.stack(x).unflatten(0, (2, 2)) for x in zip(*points, strict=True)))
    for velocity in (slow_velocity, log_determinant_velocity, adam_velocity):
        each = torch.stack([flat(velocity(p, LANGUAGE)) for p in points])
        assert torch.allclose(flat(velocity(stacked, LANGUAGE)).flatten(0, 1), each, rtol=1e-10, atol=1e-12)


def test_the_multiplier_in_closed_form():
    a, W = point = drawn()
    M, m = LANGUAGE.M, LANGUAGE.m
    multiplier = 2 * torch.linalg.inv(W.T @ W + (a @ a) * torch.eye(3)) @ (m * torch.eye(3) + M) @ LANGUAGE.beta
    v = slow_velocity(point, LANGUAGE)
    assert torch.allclose(v.a, -(2 * m * a - W @ multiplier) / 4, atol=1e-13)
    assert torch.allclose(v.W, -(2 * W @ M - torch.outer(a, multiplier)) / 4, atol=1e-13)


# one step of SGD


@pytest.mark.parametrize(("noise", "law"), [("sampled", 1.0), ("soft", 0.0), ("isotropic", None)])
def test_noise_has_the_covariance_it_should(noise, law):
    point = drawn()
    g, weights = step_noise(point, LANGUAGE, noise)
    g = flat(g)
    assert float(weights.sum()) == pytest.approx(1, rel=1e-12)
    assert float((weights @ g).abs().max()) < 1e-14
    H, covariance = hessian(point, LANGUAGE), g.T @ (weights[:, None] * g)
    if law is None:
        assert torch.allclose(covariance, H.trace() / 12 * torch.eye(12).double(), atol=1e-12)
    else:
        assert torch.allclose(covariance, law * H, atol=1e-14)


def test_every_sampled_gradient_is_normal_to_the_manifold():
    point = drawn()
    g, _ = step_noise(point, LANGUAGE)
    assert (
        float(flat(tangent(Point(point.a.expand(16, -1), point.W.expand(16, -1, -1)), g, LANGUAGE)).abs().max()) < 1e-14
    )
    spread, _ = step_noise(point, LANGUAGE, "isotropic")  # control
    many = Point(point.a.expand(24, -1), point.W.expand(24, -1, -1))
    assert float(flat(tangent(many, spread, LANGUAGE)).abs().max()) > 0.1


def test_sampled_gradients_are_those_of_the_log_likelihood():
    a, W = point = drawn()
    g, weights = step_noise(point, LANGUAGE)
    for row, (z, token) in enumerate([(z, t) for t in (1.0, -1.0) for z in LANGUAGE.contexts]):
        x = flat(point).requires_grad_()
        xa, xW = as_point(x)
        naive = torch.autograd.grad(-(token * (xa @ xW @ z)).sigmoid().log(), x)[0]
        assert torch.allclose(flat(g)[row], naive, atol=1e-13)
        assert float(weights[row]) == pytest.approx(float((token * (a @ W @ z)).sigmoid()) / 8, rel=1e-10)


@pytest.mark.parametrize("batch", [1, 2])
def test_drift_of_a_step_tends_to_the_slow_velocity_at_first_order(batch):
    point, rates = drawn(), [0.04, 0.02, 0.01, 0.005]
    v = flat(slow_velocity(point, LANGUAGE))
    errors = []
    for rate in rates:
        found = flat(expected_drift(point, LANGUAGE, rate, batch=batch)) * batch / rate**2
        errors.append(float((found - v).norm() / v.norm()))
    assert errors[-1] < 2e-3
    assert slope(rates, errors) == pytest.approx(1, abs=0.15)


def test_batches_are_enumerated_in_any_order():
    point, rate = drawn(), 0.1
    g, weights = step_noise(point, LANGUAGE)
    pairs = (flat(g)[:, None] + flat(g)[None]) / 2
    ends = flat(limit_map(as_point(flat(point) - rate * pairs.flatten(0, 1)), LANGUAGE)) - flat(point)
    naive = torch.outer(weights, weights).flatten() @ ends
    assert torch.allclose(flat(expected_drift(point, LANGUAGE, rate, batch=2)), naive, atol=1e-11)


def test_true_probabilities_as_targets_do_not_drift():
    assert float(flat(expected_drift(drawn(), LANGUAGE, 0.1, noise="soft")).norm()) < 1e-12
    assert float(flat(expected_drift(drawn(), LANGUAGE, 0.1)).norm()) > 1e-3  # control


def test_isotropic_noise_descends_another_function():
    point, rates = drawn(), [0.04, 0.02, 0.01]
    variance = float(trace(point, LANGUAGE)) / 12
    right, wrong = flat(log_determinant_velocity(point, LANGUAGE)), flat(slow_velocity(point, LANGUAGE))
    errors = []
    for rate in rates:
        found = flat(tangent(point, expected_drift(point, LANGUAGE, rate, noise="isotropic"), LANGUAGE)) / rate**2
        errors.append(float((found / variance - right).norm() / right.norm()))
        assert float(torch.nn.functional.cosine_similarity(found, wrong, dim=0)) < 0.7  # another direction
    assert errors[-1] < 1e-3
    assert slope(rates, errors) == pytest.approx(2, abs=0.1)  # a symmetric law has no third moments


def test_isotropic_noise_leaves_the_flattest_points_and_raises_the_trace():
    best = flattest(LANGUAGE, normal(3))
    near = Point(best.a * 0.9, best.W / 0.9)  # nothing transverse, a little too short
    for noise, sign in (("sampled", -1), ("isotropic", 1)):
        step = tangent(near, expected_drift(near, LANGUAGE, 0.01, noise=noise), LANGUAGE)
        uphill = -float(flat(step) @ flat(slow_velocity(near, LANGUAGE)))
        assert math.copysign(1, uphill) == sign
    r, b2 = float(near.a @ near.a), float(LANGUAGE.beta @ LANGUAGE.beta)
    radial = Point(near.a, -near.W)
    assert float(flat(log_determinant_velocity(near, LANGUAGE)) @ flat(radial)) == pytest.approx(
        -(2 * (D - 2) + 4 * r**2 / (r**2 + b2)) / 4, rel=1e-10
    )
    assert float(flat(log_determinant_velocity(best, LANGUAGE)).norm()) > 0.1


def test_isotropic_noise_also_bends_with_the_manifold():
    point, rate, h = drawn(), 0.01, 1e-4
    variance = float(trace(point, LANGUAGE)) / 12
    found = flat(expected_drift(point, LANGUAGE, rate, noise="isotropic")) / rate**2
    across = found - flat(tangent(point, as_point(found), LANGUAGE))
    J = jacobian(point)
    frame = torch.linalg.svd(J).Vh[3:]  # orthonormal tangent vectors
    theta = flat(point)
    probes = torch.cat([theta + h * frame, theta - h * frame])
    bend = (flat(limit_map(as_point(probes), LANGUAGE)) - theta).sum(0) / h**2
    bend = bend - flat(tangent(point, as_point(bend), LANGUAGE))
    assert float(bend.norm()) > 1e-2
    assert torch.allclose(across, variance / 2 * bend, atol=1e-3 * float(bend.norm()))


@pytest.mark.parametrize("epsilon", [0.3, 0.05])
def test_preconditioned_steps_drift_as_the_oblique_projection_says(epsilon):
    point = rescale(drawn(), 0.5)
    P = Point(*(1 / (x.sqrt() + epsilon) for x in diagonal(point, LANGUAGE)))
    v, rates, errors = flat(adam_velocity(point, LANGUAGE, epsilon)), [0.004, 0.002, 0.001], []
    for rate in rates:
        found = flat(expected_drift(point, LANGUAGE, rate, scale=P)) / rate**2
        errors.append(float((found - v).norm() / v.norm()))
    assert errors[-1] < 0.02
    assert slope(rates, errors) == pytest.approx(1, abs=0.25)
    assert torch.allclose(flat(tangent(point, as_point(v), LANGUAGE)), v, atol=1e-11)  # it is tangent
    S0, M = LANGUAGE.S0, LANGUAGE.M
    slopes = Point(S0 * point.a * P.W.sum(1), P.a[:, None] * (point.W @ M))
    straight = tangent(point, Point(-P.a * slopes.a / 2, -P.W * slopes.W / 2), LANGUAGE)
    assert float((found - flat(straight)).norm()) > 5 * errors[-1] * float(v.norm())  # control: projected orthogonally


# the slow flow


@pytest.mark.parametrize("seed", range(3))
def test_slow_flow_ends_at_a_flattest_point_no_slower_than_its_bound(seed):
    times = torch.tensor([0.0, 0.5, 2.0, 8.0, 32.0, 128.0, 512.0], dtype=torch.float64)
    path = slow_flow(rescale(drawn(seed, 4), [0.2, 1.0, 5.0][seed]), LANGUAGE, times)
    excess = trace(path, LANGUAGE) - flattest_trace(LANGUAGE)
    assert (excess.diff() <= 1e-12).all()
    least = float(torch.linalg.eigvalsh(LANGUAGE.M)[0])
    assert (excess <= excess[0] * (-least * times).exp() + 1e-9).all()
    assert float(excess[-1]) < 1e-8
    end = Point(path.a[-1], path.W[-1])
    assert torch.allclose(flat(end), flat(flattest(LANGUAGE, end.a)), atol=1e-4)
    assert float(excess_loss(path, LANGUAGE).abs().max()) < 1e-13


def test_one_label_suffices_from_a_known_slow_time_on():
    point = start(LANGUAGE, 4, torch.Generator().manual_seed(3), 2.0)
    begin, least = float(trace(point, LANGUAGE)), float(torch.linalg.eigvalsh(LANGUAGE.M)[0])
    margin = float((LANGUAGE.contexts @ LANGUAGE.beta).square().min())
    ratio = D * begin * (begin - flattest_trace(LANGUAGE)) / (least * LANGUAGE.m * margin)
    path = slow_flow(point, LANGUAGE, [0.0, math.log(ratio) / least])
    accuracy = one_shot_accuracy(path, LANGUAGE)
    assert float(accuracy[1]) == 1
    assert float(accuracy[0]) < 0.8


def test_slow_flow_by_small_steps_and_as_a_semigroup():
    point, u = drawn(), 1.0
    end = flat(slow_flow(point, LANGUAGE, [u]))[0]
    errors, counts = [], [20, 40, 80]
    for n in counts:
        x = point
        for _ in range(n):  # midpoint rule
            half = as_point(flat(x) + u / n / 2 * flat(slow_velocity(x, LANGUAGE)))
            x = as_point(flat(x) + u / n * flat(slow_velocity(project(half, LANGUAGE), LANGUAGE)))
            x = project(x, LANGUAGE)
        errors.append(float((flat(x) - end).norm()))
    assert errors[-1] < 1e-3
    assert slope([1 / n for n in counts], errors) > 0.8
    middle = slow_flow(point, LANGUAGE, [0.0, 0.4])
    assert torch.allclose(flat(middle)[0], flat(point), atol=1e-12)
    rest = slow_flow(Point(middle.a[1], middle.W[1]), LANGUAGE, [0.6])
    assert torch.allclose(flat(rest)[0], end, atol=1e-8)


def test_trace_falls_at_four_times_the_squared_speed():
    point, h = drawn(), 1e-3
    path = slow_flow(point, LANGUAGE, [0.5 - h, 0.5, 0.5 + h], tolerance=1e-12)
    values = trace(path, LANGUAGE)
    speed = flat(slow_velocity(path, LANGUAGE))[1].square().sum()
    assert float((values[2] - values[0]) / (2 * h)) == pytest.approx(-4 * float(speed), rel=1e-5)


def test_rates_of_relaxation_by_differences_at_a_flattest_point():
    best, h = flattest(LANGUAGE, normal(3)), 1e-5
    frame = torch.linalg.svd(jacobian(best)).Vh[3:]
    moved = [
        flat(slow_velocity(project(as_point(flat(best) + s * h * t), LANGUAGE), LANGUAGE))
        for t in frame
        for s in (1, -1)
    ]
    slopes = torch.stack([(moved[2 * i] - moved[2 * i + 1]) / (2 * h) for i in range(len(frame))])
    found = torch.linalg.eigvalsh(-(slopes @ frame.T + frame @ slopes.T) / 2)
    rates = relaxation_rates(LANGUAGE)
    expected = torch.cat([torch.zeros(2).double(), rates[:-1].repeat(2), rates[-1:]]).sort().values
    assert torch.allclose(found, expected, atol=1e-6)
    assert float(2 * rates.min()) > float(torch.linalg.eigvalsh(LANGUAGE.M)[0])


def test_adams_flow_stays_on_the_manifold_lowers_its_potential_and_not_the_trace():
    times = [0.0, 0.1, 0.5, 2.0, 8.0, 30.0]
    path = adam_slow_flow(drawn(2, 4), LANGUAGE, times, epsilon=0.02)
    assert float(excess_loss(path, LANGUAGE).abs().max()) < 1e-13
    assert (root_trace(path, LANGUAGE, 0.02).diff() < 1e-6).all()
    assert float(root_trace(path, LANGUAGE)[-1]) == pytest.approx(least_root_trace(LANGUAGE), rel=1e-2)
    assert float(trace(path, LANGUAGE)[-1]) > 1.05 * flattest_trace(LANGUAGE)
    assert float(transverse(path).square().sum((1, 2))[-1]) < 1e-3
    sgd = slow_flow(drawn(2, 4), LANGUAGE, [300.0])
    assert float(root_trace(sgd, LANGUAGE)[0]) > 1.2 * least_root_trace(LANGUAGE)  # control


def test_with_a_large_epsilon_adam_is_slow_sgd():
    point, epsilon = drawn(), 1e5
    assert torch.allclose(
        epsilon**2 * flat(adam_velocity(point, LANGUAGE, epsilon)), flat(slow_velocity(point, LANGUAGE)), rtol=1e-4
    )


# hovering above the manifold


@pytest.mark.parametrize(("rate", "batch"), [(0.3, 1), (0.1, 4)])
def test_stationary_laws_by_scipys_lyapunov_solvers(rate, batch):
    H = hessian(drawn(), LANGUAGE)
    values, vectors = torch.linalg.eigh(H)
    N = vectors[:, values > 1e-9]  # the normal space, where H is invertible
    h = N.T @ H @ N
    flowing = torch.from_numpy(solve_continuous_lyapunov(h.numpy(), (rate / batch * h).numpy()))
    step = torch.eye(3).double() - rate * h
    jumping = torch.from_numpy(solve_discrete_lyapunov(step.numpy(), (rate**2 / batch * h).numpy()))
    for law, naive in (("diffusion", flowing), ("discrete", jumping)):
        S = stationary_covariance(H, rate, batch, law)
        assert torch.allclose(S, N @ naive @ N.T, atol=1e-12)
        assert stationary_excess(H, rate, batch, law) == pytest.approx(float((H @ S).trace()) / 2, rel=1e-10)
    assert stationary_excess(H, rate, batch, "diffusion") == pytest.approx(
        rate * float(H.trace()) / 4 / batch, rel=1e-12
    )
    assert stationary_excess(H, rate, batch) > stationary_excess(H, rate, batch, "diffusion")


def test_the_two_laws_agree_for_small_rates_to_first_order():
    H, rates = hessian(drawn(), LANGUAGE), [0.1, 0.05, 0.025]
    gaps = [stationary_excess(H, r) / stationary_excess(H, r, law="diffusion") - 1 for r in rates]
    assert slope(rates, gaps) == pytest.approx(1, abs=0.1)


def test_the_discrete_law_by_repeating_the_recursion():
    H, rate = hessian(drawn(), LANGUAGE), 0.4
    S, step = torch.zeros(12, 12).double(), torch.eye(12).double() - rate * H
    for _ in range(3000):
        S = step @ S @ step + rate**2 * H
    assert torch.allclose(stationary_covariance(H, rate), S, atol=1e-10)


# what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: step_noise(drawn(), LANGUAGE, "loud"), "found 'loud'"),
        (lambda: step_noise(Point(torch.ones(1, 3), torch.ones(1, 3, 3)), LANGUAGE), "expected minimisers"),
        (lambda: expected_drift(drawn(), LANGUAGE, 0.0), "positive rate"),
        (lambda: expected_drift(drawn(), LANGUAGE, 0.1, batch=0), "batch >= 1"),
        (lambda: expected_drift(drawn(), LANGUAGE, 0.1, batch=5), r"16\^5 batches"),
        (lambda: slow_velocity(Point(torch.ones(3), torch.ones(3, 3)), LANGUAGE), "expected minimisers"),
        (lambda: adam_velocity(drawn(), LANGUAGE, 0.0), "epsilon must be positive"),
        (lambda: slow_flow(drawn(), LANGUAGE, [1.0, 0.5]), "increasing"),
        (lambda: slow_flow(drawn(), LANGUAGE, []), "increasing"),
        (lambda: slow_flow(drawn(), LANGUAGE, [-1.0]), "increasing"),
        (lambda: stationary_covariance(torch.eye(2), 2.0), "lower the rate below 2"),
        (lambda: stationary_covariance(torch.eye(2), -1.0), "positive rate"),
        (lambda: stationary_covariance(torch.zeros(2, 2), 0.1), "not zero"),
        (lambda: stationary_covariance(-torch.eye(2), 0.1), "at a minimum"),
        (lambda: stationary_covariance(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), 0.1), "not symmetric"),
        (lambda: stationary_covariance(torch.eye(2), 0.1, law="other"), "found 'other'"),
    ],
)
@pytest.mark.unchecked
def test_errors_say_what_and_where(call, message):
    with pytest.raises(ValueError, match=message):
        call()
