"""Witnesses: double loops, gradient descent, an adaptive ODE solver, sympy, limits and convergence order."""

import itertools
import math

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from companion.theory import riccati
from companion.theory.graph import PositivePairGraph
from companion.theory.spectra import principal_angles
from companion.theory.spectral import (
    diffusion_map,
    embedding,
    flow,
    half_time,
    laplacian_eigenmap,
    loss_floor,
    mode_curve,
    population_loss,
    row_normalised,
    weighted,
)

GRAPHS = st.from_type(PositivePairGraph)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_loss(graph, U) -> float:
    total = 0.0
    for x in range(graph.n):
        for y in range(graph.n):
            product = float(U[x] @ U[y])
            total += -2 * float(graph.adjacency[x, y]) * product
            total += float(graph.degree[x] * graph.degree[y]) * product**2
    return total


def spectrum_with(values: list[float], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A symmetric matrix with the given eigenvalues, and its eigenvectors in their order."""
    V = torch.linalg.qr(gaussian(len(values), len(values), seed=seed)).Q
    A = (V * torch.tensor(values, dtype=torch.float64)) @ V.T
    return (A + A.T) / 2, V


def ode_solution(A: torch.Tensor, F0: torch.Tensor, t: float) -> torch.Tensor:
    a = A.numpy()

    def velocity(_, y):
        F = y.reshape(F0.shape)
        return (4 * (a @ F - F @ (F.T @ F))).ravel()

    solution = solve_ivp(velocity, (0, t), F0.numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-14)
    return torch.from_numpy(solution.y[:, -1].reshape(F0.shape))


@given(GRAPHS, st.integers(1, 6), st.integers(0, 1000))
def test_loss_is_a_matrix_factorisation(graph, k, seed):
    U = gaussian(graph.n, k, seed=seed)
    F = graph.degree.sqrt()[:, None] * U
    factorised = float((graph.normalized - F @ F.T).square().sum() - graph.normalized.square().sum())
    assert population_loss(graph, U) == pytest.approx(factorised, rel=1e-12, abs=1e-12)
    assert population_loss(graph, U) == pytest.approx(naive_loss(graph, U), rel=1e-11, abs=1e-12)


def test_forgetting_the_weights_fails_where_degrees_differ(graph):
    U = gaussian(graph.n, 3)
    careless = float((graph.normalized - U @ U.T / graph.n).square().sum() - graph.normalized.square().sum())
    assert abs(careless - population_loss(graph, U)) > 0.1
    regular = PositivePairGraph.blocks(2, 2, 4.0, 2.0, 1.0, 1.0, size=2)
    V = gaussian(regular.n, 3)
    careless = float((regular.normalized - V @ V.T / regular.n).square().sum() - regular.normalized.square().sum())
    assert careless == pytest.approx(population_loss(regular, V), rel=1e-12)


def test_loss_is_alignment_plus_whitening(graph):
    U = gaussian(graph.n, 3)
    F = weighted(graph, U)
    alignment = 2 * graph.quadratic_form(U)
    whitening = float((F.T @ F - torch.eye(3)).square().sum()) - 3
    assert population_loss(graph, U) == pytest.approx(alignment + whitening, rel=1e-12)


@given(GRAPHS, st.integers(1, 5), st.integers(0, 1000))
def test_the_embedding_attains_the_floor_and_nothing_lies_below(graph, k, seed):
    floor = loss_floor(graph, k)
    assert -k - 1e-9 <= floor <= -1 + 1e-9
    assert population_loss(graph, embedding(graph, k)) == pytest.approx(floor, abs=1e-12)
    Q = torch.linalg.qr(gaussian(k, k, seed=seed)).Q
    assert population_loss(graph, embedding(graph, k) @ Q) == pytest.approx(floor, abs=1e-12)
    for scale in (0.01, 0.3, 1.0):
        other = embedding(graph, k) + scale * gaussian(graph.n, k, seed=seed)
        assert population_loss(graph, other) >= floor - 1e-12
        assert population_loss(graph, scale * gaussian(graph.n, k, seed=seed)) >= floor - 1e-12


def test_gradient_descent_finds_the_floor_and_the_subspace(graph):
    F = 0.1 * gaussian(graph.n, 3)
    for _ in range(4000):
        F = F + 0.1 * 4 * (graph.normalized @ F - F @ (F.T @ F))
    U = F / graph.degree.sqrt()[:, None]
    assert population_loss(graph, U) == pytest.approx(loss_floor(graph, 3), abs=1e-10)
    assert principal_angles(F, graph.eigenpairs(3).vectors).max() < 1e-6
    assert principal_angles(U, graph.eigenpairs(3).vectors).max() > 0.01  # unweighted features span something else


def test_full_rank_features_are_the_density_ratio(graph):
    U = embedding(graph, graph.n)
    ratio = graph.adjacency / torch.outer(graph.degree, graph.degree)
    assert torch.allclose(U @ U.T, ratio, atol=1e-10)
    assert not torch.allclose(embedding(graph, 3) @ embedding(graph, 3).T, ratio, atol=0.1)


def test_negative_eigenvalues_are_out_of_reach():
    graph = PositivePairGraph.from_adjacency([[0.0, 1.0], [1.0, 0.0]])  # eigenvalues 1 and -1
    assert loss_floor(graph, 2) == pytest.approx(-1)
    assert population_loss(graph, embedding(graph, 2)) == pytest.approx(-1)


def test_relatives_differ_by_diagonal_factors(graph):
    values, vectors, _ = graph.eigenpairs(4)
    root = graph.degree.sqrt()[:, None]
    assert torch.allclose(laplacian_eigenmap(graph, 4) * root, vectors, atol=1e-14)
    assert torch.allclose(laplacian_eigenmap(graph, 4)[:, 0], root[:, 0] / root[:, 0], atol=1e-10)
    assert torch.allclose(diffusion_map(graph, 4, 2.0) * root, vectors * values**2, atol=1e-14)
    assert torch.equal(diffusion_map(graph, 4, 0.5), embedding(graph, 4))
    assert torch.allclose(row_normalised(graph, 4).norm(dim=1), torch.ones(graph.n, dtype=torch.float64))
    assert torch.allclose(row_normalised(graph, 4) * vectors.norm(dim=1, keepdim=True), vectors, atol=1e-14)


def test_diffusion_distance_compares_two_walks(graph):
    # |row_x - row_y|^2 at time t is the p^-1-weighted distance of the t-step distributions from x and from y
    rows = diffusion_map(graph, graph.n, 3.0)
    walk = torch.linalg.matrix_power(graph.adjacency / graph.degree[:, None], 3)
    distance = ((walk[0] - walk[1]).square() / graph.degree).sum()
    assert (rows[0] - rows[1]).square().sum() == pytest.approx(float(distance), rel=1e-10)


@pytest.mark.parametrize("smallest", [0.0, -0.6])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-5])
@pytest.mark.parametrize("t", [0.1, 1.0, 8.0])
def test_flow_is_the_ode_solution_up_to_a_rotation(smallest, scale, t):
    A, _ = spectrum_with([1.0, 0.8, 0.5, 0.2, 0.0, smallest])
    F0 = scale * gaussian(6, 3, seed=4)
    F, expected = flow(A, F0, t), ode_solution(A, F0, t)
    assert torch.allclose(F @ F.T, expected @ expected.T, rtol=0, atol=1e-10)


def test_flow_with_one_column_or_an_aligned_start_has_no_rotation_to_lose():
    A, V = spectrum_with([1.0, 0.7, 0.4, 0.0, -0.3])
    Q = torch.linalg.qr(gaussian(3, 3)).Q
    aligned = V[:, [0, 2, 4]] * torch.tensor([0.1, 0.02, 0.5], dtype=torch.float64) @ Q
    for F0 in (gaussian(5, 1), aligned):
        assert torch.allclose(flow(A, F0, 1.5), ode_solution(A, F0, 1.5), rtol=0, atol=1e-10)
    F0 = gaussian(5, 3)
    assert (flow(A, F0, 1.5) - ode_solution(A, F0, 1.5)).abs().max() > 1e-3  # control: other starts do rotate


def test_the_rotation_converges_to_second_order_in_the_step():
    A, _ = spectrum_with([1.0, 0.7, 0.4, 0.1, -0.2])
    F0 = 0.5 * gaussian(5, 2)
    expected = ode_solution(A, F0, 1.0)
    steps = np.array([16, 32, 64, 128])
    errors = [float((flow(A, F0, 1.0, steps=int(n)) - expected).abs().max()) for n in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-2, abs=0.05)


def test_flow_from_an_aligned_start_is_logistic_mode_by_mode():
    gammas = [1.0, 0.7, 0.4, 0.0, -0.3]
    A, V = spectrum_with(gammas)
    s0 = torch.tensor([1e-4, 2.0, 1e-2, 0.5, 0.3], dtype=torch.float64)
    for t in (0.0, 0.3, 2.0, 50.0):
        F = flow(A, V * s0.sqrt(), t)
        assert torch.allclose(V.T @ F @ F.T @ V, mode_curve(torch.tensor(gammas), s0, t).diag(), atol=1e-13)
    F0 = gaussian(5, 5)  # control: a misaligned start has off-diagonal modes on its way
    X = V.T @ flow(A, F0, 0.3) @ flow(A, F0, 0.3).T @ V
    assert (X - X.diag().diag()).abs().max() > 1e-2


@pytest.mark.parametrize("k", [1, 2, 4])
@given(seed=st.integers(0, 1000))
def test_flow_has_the_semigroup_property(k, seed):
    A, _ = spectrum_with([1.0, 0.8, 0.3, 0.0, -0.5], seed=seed)
    F0 = gaussian(5, k, seed=seed + 1)
    once, twice = flow(A, F0, 2.5), flow(A, flow(A, F0, 1.8), 0.7)
    assert torch.allclose(once @ once.T, twice @ twice.T, rtol=0, atol=1e-11)


@pytest.mark.parametrize("together", [1, 40, 2**20])
def test_flow_at_many_times_is_the_flow_at_each(together, monkeypatch):
    monkeypatch.setattr(riccati, "TOGETHER", together)
    A, V = spectrum_with([1.0, 0.8, 0.5, 0.2, 0.0, -0.6])
    times = torch.tensor([[0.0, 1e-3, 2.0], [40.0, 0.5, 1e5]], dtype=torch.float64)
    blind = V[:, [1, 4]] @ gaussian(2, 3)  # of rank 2, without the first mode
    for F0, steps in ((0.1 * gaussian(6, 3), 1), (0.1 * gaussian(6, 3), 3), (blind, 1)):
        found = flow(A, F0, times, steps=steps)
        assert found.shape == (2, 3, 6, 3)
        for i, j in itertools.product(range(2), range(3)):
            alone = flow(A, F0, float(times[i, j]), steps=steps)
            assert torch.allclose(found[i, j], alone, rtol=0, atol=1e-13)
        assert torch.equal(found[0, 0], F0)
    assert flow(A, blind, times[:, :0]).shape == (2, 0, 6, 3)


def test_flow_limits(graph):
    F0 = 1e-3 * gaussian(graph.n, 3)
    assert torch.equal(flow(graph.normalized, F0, 0.0), F0)
    near = flow(graph.normalized, F0, 1e-9)
    velocity = 4 * (graph.normalized - F0 @ F0.T) @ F0
    assert torch.allclose((near - F0) / 1e-9, velocity, atol=1e-8)
    star = weighted(graph, embedding(graph, 3))
    for t in (1e4, 1e8):
        F = flow(graph.normalized, F0, t)
        assert torch.allclose(F @ F.T, star @ star.T, atol=1e-12)


def test_flow_keeps_rank_saddles_and_nothing():
    A, V = spectrum_with([1.0, 0.7, 0.4, 0.0, -0.3])
    F0 = gaussian(5, 3)
    F0[:, 1] = 0
    assert flow(A, F0, 3.0)[:, 1].abs().max() == 0
    assert flow(A, torch.zeros(5, 2, dtype=torch.float64), 3.0).abs().max() == 0
    saddle = flow(A, V[:, [1, 3]] @ gaussian(2, 2), 1e3)  # no component in the first mode: it stays away
    X = V.T @ saddle @ saddle.T @ V
    assert X[0, 0] == pytest.approx(0, abs=1e-12)
    assert X[1, 1] == pytest.approx(0.7, abs=1e-3)  # the mode of eigenvalue zero leaves only like 1 / t
    full = flow(A, gaussian(5, 5), 1e4)
    assert torch.allclose(full @ full.T, (V * torch.tensor([1.0, 0.7, 0.4, 0.0, 0.0])) @ V.T, atol=1e-4)


def test_the_riccati_solution_symbolically():
    a, f, t, s = sympy.symbols("a f t s", positive=True)
    M = 1 + f**2 * 8 * sympy.integrate(sympy.exp(8 * a * s), (s, 0, t))
    F = sympy.exp(4 * a * t) * f / sympy.sqrt(M)
    assert sympy.simplify(sympy.diff(F, t) - 4 * (a - F**2) * F) == 0
    assert F.subs(t, 0) == f


def test_mode_curve_and_half_time_symbolically():
    gamma, s0, t = sympy.symbols("gamma s0 t", positive=True)
    s = s0 / (sympy.exp(-8 * gamma * t) + s0 * (1 - sympy.exp(-8 * gamma * t)) / gamma)
    assert sympy.simplify(sympy.diff(s, t) - 8 * s * (gamma - s)) == 0
    for g, start, time in ((0.7, 0.01, 0.4), (0.2, 0.1, 3.0)):
        closed = float(s.subs({gamma: g, s0: start, t: time}))
        assert float(mode_curve(g, start, time)) == pytest.approx(closed, rel=1e-12)
        assert float(mode_curve(g, start, half_time(g, start))) == pytest.approx(g / 2, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1e-12, 0.0, -1e-12, -0.5])
def test_mode_curve_limits(gamma):
    assert float(mode_curve(gamma, 0.3, 0.0)) == pytest.approx(0.3)
    assert float(mode_curve(gamma, 0.0, 1.0)) == 0
    assert float(mode_curve(gamma, 0.0, math.inf if gamma > 0 else 1e9)) == 0
    assert float(mode_curve(gamma, 0.3, 1e15)) == pytest.approx(max(gamma, 0.0), abs=1e-12)
    h = 1e-6
    slope = float(mode_curve(gamma, 0.3, 0.2 + h) - mode_curve(gamma, 0.3, 0.2 - h)) / (2 * h)
    s = float(mode_curve(gamma, 0.3, 0.2))
    assert slope == pytest.approx(8 * s * (gamma - s), rel=1e-6)


def test_slow_modes_wait_in_inverse_proportion():
    gammas = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    times = half_time(gammas, 1e-40 * gammas)
    assert torch.allclose(times * gammas, times[0] * gammas[0], rtol=1e-12)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow(torch.eye(3), torch.ones(2, 1), 1.0), "do not fit"),
        (lambda: flow(torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.ones(2, 1), 1.0), "not symmetric"),
        (lambda: flow(torch.eye(2), torch.ones(2, 1), -1.0), "time must be finite and >= 0"),
        (lambda: flow(torch.eye(2), torch.ones(2, 1), math.inf), "time must be finite"),
        (lambda: half_time(0.5, 0.6), "0 < s0 < gamma"),
        (lambda: population_loss(PositivePairGraph.blocks(2, 2, 4, 1, 1, 1), torch.ones(3, 1)), "each of 4 vertices"),
        (lambda: embedding(PositivePairGraph.blocks(2, 2, 4, 1, 1, 1), 5), r"1\.\.4"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call()
