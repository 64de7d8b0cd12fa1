"""Witnesses: another library (torch-geometric), autograd, loops, operator norms, rates fitted to trajectories."""

import importlib
import itertools
import math
import warnings
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from companion.theory.graph import PositivePairGraph
from companion.theory.oversmoothing import (
    appnp,
    centre,
    collapse_distance,
    collapse_limit,
    collapse_rate,
    layer_norm,
    momentum_matrix,
    momentum_rate,
    momentum_step,
    multi_stage_rate,
    multi_stage_step,
    node_norm,
    optimal_predictor,
    pair_norm,
    predictor_step,
    predictor_velocity,
    row_normalise,
    stop_gradient_step,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def eigenvalues(graph: PositivePairGraph) -> torch.Tensor:
    return graph.eigenpairs(graph.n).values


def convolve(F: torch.Tensor, normalized: torch.Tensor, alpha: float) -> torch.Tensor:
    """Descend tr F^T L F by step alpha, written out."""
    return F - 2 * alpha * (F - normalized @ F)


def two_blocks() -> tuple[PositivePairGraph, torch.Tensor]:
    """Two components of unequal mass whose vertices are interleaved, and which vertex is in which."""
    blocks = [normal(n, n, seed=n).abs() + 0.1 for n in (5, 8)]
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    A = torch.block_diag(*(block @ block.T for block in blocks))[order][:, order]
    return PositivePairGraph.from_adjacency(A, allow_disconnected=True), (order >= 5).long()


@pytest.fixture
def clustered() -> PositivePairGraph:
    """Forty images and thirty views in two classes: gamma_2 lies well apart from 1 and from gamma_3."""
    same = torch.arange(40)[:, None] % 2 == torch.arange(30) % 2
    K = (normal(40, 30).square() + 0.1) * torch.where(same, 1.0, 0.05)
    return PositivePairGraph.from_augmentation(K / K.sum(1, keepdim=True))


@pytest.fixture(scope="module")
def geometric() -> SimpleNamespace:
    """What this file takes from torch-geometric."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the import only: torch.jit is deprecated
        nn = importlib.import_module("torch_geometric.nn")
        gcn_norm = importlib.import_module("torch_geometric.nn.conv.gcn_conv").gcn_norm
    return SimpleNamespace(SGConv=nn.SGConv, APPNP=nn.APPNP, PairNorm=nn.PairNorm, gcn_norm=gcn_norm)


def edges(A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    index = A.nonzero().T
    return index, A[index[0], index[1]]


def simple_convolution(geometric: SimpleNamespace, F: torch.Tensor, K: int, **options: bool) -> torch.nn.Module:
    layer = geometric.SGConv(F.shape[1], F.shape[1], K=K, bias=False, **options).double()
    with torch.no_grad():
        layer.lin.weight.copy_(torch.eye(F.shape[1]))
    return layer


class TestAgainstTorchGeometric:
    @pytest.mark.parametrize("K", [1, 2, 7])
    def test_alignment_at_one_half_is_the_simple_graph_convolution(self, geometric, graph, K):
        from companion.theory.message_passing import alignment_step

        index, weight = edges(graph.adjacency)
        F = aligned = stopped = normal(graph.n, 4)
        for _ in range(K):
            aligned = alignment_step(aligned, graph.normalized, 0.5)
            stopped = stop_gradient_step(stopped, graph.normalized, 1.0)
        with torch.no_grad():
            theirs = simple_convolution(geometric, F, K, add_self_loops=False)(F, index, weight)
            with_loops = simple_convolution(geometric, F, K)(F, index, graph.n * weight)
        assert relative(aligned, theirs) < 1e-13
        assert relative(stopped, theirs) < 1e-13
        assert relative(convolve(F, graph.normalized, 0.25), theirs) > 0.1  # control: another step size
        if not graph.adjacency.diagonal().all():
            assert relative(with_loops, theirs) > 0.01

    def test_its_normalisation_is_that_of_the_graph_and_added_self_loops_are_another(self, geometric):
        path = torch.tensor([[0.0, 2, 0], [2, 0, 1], [0, 1, 0]], dtype=torch.float64)
        index, weight = edges(path)
        graph = PositivePairGraph.from_adjacency(path)
        for loops, same in ((False, True), (True, False)):
            found_index, found = geometric.gcn_norm(index, weight, 3, False, loops, dtype=torch.float64)
            dense = torch.zeros(3, 3, dtype=torch.float64).index_put(tuple(found_index), found, accumulate=True)
            assert (relative(dense, graph.normalized) < 1e-14) == same

    @pytest.mark.parametrize(("restart", "K"), [(0.1, 1), (0.2, 10), (0.9, 3), (0.1, 400)])
    def test_appnp(self, geometric, graph, restart, K):
        index, weight = edges(graph.adjacency)
        F0 = normal(graph.n, 4)
        theirs = geometric.APPNP(K=K, alpha=restart, add_self_loops=False)(F0, index, weight)
        assert relative(appnp(F0, graph.normalized, restart, K), theirs) < 1e-13
        assert (relative(appnp(F0, graph.normalized, restart), theirs) < 1e-12) == (K == 400)

    @pytest.mark.parametrize("individually", [False, True])
    def test_pair_norm(self, geometric, individually):
        U = normal(9, 4) + 3
        theirs = geometric.PairNorm(scale=2.5, scale_individually=individually, eps=0.0)(U)
        assert relative(pair_norm(U, 2.5, individually), theirs) < 1e-14
        assert relative(pair_norm(U, 2.5, not individually), theirs) > 0.1


class TestCollapse:
    @given(st.from_type(PositivePairGraph), st.floats(0.01, 1.5))
    def test_rate_is_the_norm_of_the_step_off_the_collapsed_features(self, graph, alpha):
        eye, root = torch.eye(graph.n, dtype=torch.float64), graph.degree.sqrt()
        step = convolve(eye - torch.outer(root, root), graph.normalized, alpha)
        found = float(collapse_rate(eigenvalues(graph), alpha))
        assert found == pytest.approx(float(torch.linalg.matrix_norm(step, 2)), rel=1e-9)

    @pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5, 0.7])
    def test_bound_holds_at_every_step_and_is_attained(self, clustered, alpha):
        """The distance, the Dirichlet energy, and the fitted rate; the next eigenvalue's rate is violated."""
        p, normalized, values = clustered.degree, clustered.normalized, eigenvalues(clustered)
        rate = float(collapse_rate(values, alpha))
        F = F0 = normal(30, 4)
        energy = float((F * (F - normalized @ F)).sum())
        distances = [float(collapse_distance(F, p))]
        for step in range(1, 301):
            F = convolve(F, normalized, alpha)
            distances.append(float(collapse_distance(F, p)))
            assert distances[-1] <= rate**step * distances[0] * (1 + 1e-9) + 1e-14
            assert float((F * (F - normalized @ F)).sum()) <= rate ** (2 * step) * energy * (1 + 1e-9) + 1e-14
        last = max(step for step in range(301) if distances[step] > 1e-9 * distances[0])
        assert distances[last] / distances[last - 1] == pytest.approx(rate, rel=1e-6)
        next_rate = sorted((1 - 2 * alpha * (1 - values[1:])).abs().tolist())[-2]
        assert distances[last] > next_rate**last * distances[0]
        assert relative(F0, F) > 0.1

    def test_rate_is_attained_from_the_slowest_eigenvector_at_once(self, graph):
        """The second below a step of about one half; above it the last, which changes sign at every step."""
        vectors = graph.eigenpairs(graph.n).vectors
        for alpha, slowest in ((0.3, 1), (0.9, -1)):
            after = collapse_distance(convolve(vectors[:, [slowest]], graph.normalized, alpha), graph.degree)
            assert float(after) == pytest.approx(float(collapse_rate(eigenvalues(graph), alpha)), rel=1e-10)

    def test_at_one_half_the_rate_is_gamma_2(self, graph):
        values = eigenvalues(graph)
        assert float(collapse_rate(values, 0.5)) == pytest.approx(float(values[1]), rel=1e-12)
        small = torch.tensor([0.1, 0.25, 0.5])
        assert relative(collapse_rate(values[:2], small), 1 - 2 * small * (1 - values[1])) < 1e-7
        assert collapse_rate(values, torch.full((2, 3), 0.5)).shape == (2, 3)

    def test_steps_up_to_one_contract_on_positive_semidefinite_graphs_and_not_on_others(self, graph):
        values = eigenvalues(graph)
        flat = torch.cat([values, torch.zeros(1)])
        assert float(collapse_rate(flat, 0.999)) < 1
        assert float(collapse_rate(flat, 1.0)) == 1
        assert float(collapse_rate(flat, 1.02)) == pytest.approx(1.04)
        assert float(collapse_rate(torch.tensor([1.0, -1.0]), 0.5)) == 1  # an edge without self-loops: it swaps
        assert float(collapse_rate(torch.tensor([1.0, -1.0]), 0.25)) == 0

    def test_every_eigenvalue_one_leaves_nothing_to_shrink(self):
        double = torch.tensor([1.0, 1 - 1e-12], dtype=torch.float64)
        assert collapse_rate(double, torch.tensor([0.1, 0.5])).tolist() == [0.0, 0.0]

    @pytest.mark.parametrize("one", [0.99999994, 1.0, 1.0000001])
    def test_one_in_single_precision(self, one):
        assert float(collapse_rate(torch.tensor([one, 0.5]), 0.5)) == 0.5
        if one != 1:
            fault = "no eigenvalue is 1" if one < 1 else "lie in"
            with pytest.raises(ValueError, match=fault):
                collapse_rate(torch.tensor([one, 0.5], dtype=torch.float64), 0.5)

    def test_two_components_keep_two_means(self):
        graph, component = two_blocks()
        U = normal(13, 4)
        root = graph.degree.sqrt()[:, None]
        F, values = root * U, eigenvalues(graph)
        assert (values[:2] > 1 - 1e-9).all()
        rate, start = float(collapse_rate(values, 0.4)), float(collapse_distance(F, graph.degree, component))
        for step in range(1, 201):
            F = convolve(F, graph.normalized, 0.4)
            now = float(collapse_distance(F, graph.degree, component))
            assert now <= rate**step * start * (1 + 1e-9) + 1e-14
        limit = collapse_limit(U, graph.degree, component)
        assert relative(F / root, limit) < 1e-12
        assert torch.linalg.matrix_rank(F, rtol=1e-10) == 2
        naive = torch.zeros_like(U)
        for x in range(13):
            same = [y for y in range(13) if component[y] == component[x]]
            naive[x] = sum(graph.degree[y] * U[y] for y in same) / sum(graph.degree[y] for y in same)
        assert relative(limit, naive) < 1e-14
        assert float(collapse_distance(F, graph.degree)) > 0.1  # control: taken for connected, it seems not collapsed
        assert relative(collapse_limit(U, graph.degree), limit) > 0.1

    def test_limit_is_the_mean_under_p_and_not_the_plain_mean(self, graph):
        U, root = normal(graph.n, 3), graph.degree.sqrt()[:, None]
        F = root * U
        for _ in range(3000):
            F = convolve(F, graph.normalized, 0.5)
        limit = collapse_limit(U, graph.degree)
        assert relative(F / root, limit) < 1e-11
        assert relative(U.mean(0).expand_as(U), limit) > 0.05
        assert torch.linalg.matrix_rank(limit, rtol=1e-12) == 1

    def test_distance_is_that_to_the_span_of_the_components_vectors(self):
        graph, component = two_blocks()
        F = normal(3, 5, 13, 4)
        v = torch.nn.functional.one_hot(component).double() * graph.degree.sqrt()[:, None]
        v = v / v.norm(dim=0)
        naive = (F - v @ (v.T @ F)).square().sum((-2, -1)).sqrt()
        assert relative(collapse_distance(F, graph.degree, component), naive) < 1e-13
        U = F[0, 0] / graph.degree.sqrt()[:, None]
        spread = (graph.degree[:, None] * (U - collapse_limit(U, graph.degree, component)).square()).sum()
        assert float(naive[0, 0]) ** 2 == pytest.approx(float(spread), rel=1e-12)


def pair_loss(F, T, graph, W=None):
    """Half the mean squared distance between predictions and targets, as a double sum over views."""
    root = graph.degree.sqrt()[:, None]
    prediction = F / root if W is None else F / root @ W
    return (graph.adjacency[:, :, None] * (prediction[:, None] - T / root).square()).sum() / 2


def descent(loss, F, alpha):
    return (F - alpha * torch.autograd.grad(loss, F)[0]).detach()


class TestTargets:
    def test_stop_gradient_halves_the_step_and_nothing_else(self, graph):
        F = normal(graph.n, 3).requires_grad_()
        found = stop_gradient_step(F.detach(), graph.normalized, 0.3)
        assert relative(found, descent(pair_loss(F, F.detach(), graph), F, 0.3)) < 1e-12
        whole = descent(pair_loss(F, F, graph), F, 0.3)
        assert relative(found, convolve(F.detach(), graph.normalized, 0.15)) < 1e-14
        assert relative(found, whole) > 0.01
        assert relative(convolve(F.detach(), graph.normalized, 0.3), whole) < 1e-12

    def test_momentum_step_descends_then_the_target_follows(self, graph):
        F, T = normal(graph.n, 3).requires_grad_(), normal(graph.n, 3, seed=1)
        found_F, found_T = momentum_step(F.detach(), T, graph.normalized, 0.3, 0.9)
        expected = descent(pair_loss(F, T, graph), F, 0.3)
        assert relative(found_F, expected) < 1e-12
        assert relative(found_T, 0.9 * T + 0.1 * expected) < 1e-13
        assert relative(0.9 * T + 0.1 * F.detach(), found_T) > 0.01  # control: the target follows the new features

    @given(st.floats(-1, 1), st.floats(0.01, 1.5), st.floats(0, 1))
    def test_momentum_matrix_is_the_step_on_a_mode(self, gamma, alpha, rho):
        mode = torch.tensor([[gamma]], dtype=torch.float64)
        unit, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        columns = [torch.cat(momentum_step(*start, mode, alpha, rho)) for start in ((unit, zero), (zero, unit))]
        M = momentum_matrix(gamma, alpha, rho)
        assert torch.allclose(M, torch.cat(columns, 1), atol=1e-15)
        assert float(torch.linalg.det(M)) == pytest.approx((1 - alpha) * rho, abs=1e-14)
        trace = float(M.trace())
        assert trace == pytest.approx(1 - alpha + rho + (1 - rho) * alpha * gamma, abs=1e-14)
        half = np.sqrt(complex(trace**2 / 4 - (1 - alpha) * rho))
        expected = max(abs(trace / 2 + half), abs(trace / 2 - half))
        assert float(momentum_rate(gamma, alpha, rho)) == pytest.approx(expected, abs=1e-7)

    @given(st.floats(-0.999, 0.999), st.floats(0.01, 1), st.floats(0, 0.99))
    def test_a_moving_target_delays_collapse_and_does_not_stop_it(self, gamma, alpha, rho):
        assert float(momentum_rate(gamma, alpha, rho)) < 1
        assert float(momentum_rate(abs(gamma), alpha, rho)) >= 1 - alpha * (1 - abs(gamma)) - 1e-12
        assert float(momentum_rate(gamma, alpha, 0.0)) == pytest.approx(abs(1 - alpha * (1 - gamma)), abs=1e-9)

    def test_the_largest_eigenvalue_and_a_frozen_target_do_not_decay(self):
        M = momentum_matrix(1.0, 0.3, 0.9)
        assert sorted(torch.linalg.eigvals(M).real.tolist()) == pytest.approx([0.63, 1.0])
        assert float(momentum_rate(0.2, 0.3, 1.0)) == pytest.approx(1.0)

    @pytest.mark.parametrize(("alpha", "rho"), [(0.3, 0.9), (1.0, 0.5), (0.05, 0.99), (0.5, 0.0)])
    def test_first_order_of_the_momentum_rate(self, alpha, rho):
        """The error is of second order: it falls a hundredfold as the gap falls tenfold."""
        gap = torch.tensor([1e-3, 1e-4], dtype=torch.float64) * (1 - rho)
        first = alpha / (1 + alpha * rho / (1 - rho))
        error = (momentum_rate(1 - gap, alpha, rho) - (1 - first * gap)).abs()
        assert (error <= 5 * gap * 1e-3 * first).all()
        if alpha == 1:
            assert error.max() < 1e-15  # rho + (1 - rho) gamma: no second order
        elif rho > 0:
            assert float(error[0] / error[1]) == pytest.approx(100, rel=0.05)
            assert abs(float(momentum_rate(1 - gap[0], alpha, rho)) - (1 - alpha * float(gap[0]))) > 100 * float(
                error[0]
            )

    def test_known_rates(self):
        assert float(momentum_rate(0.9, 0.3, 0.9)) == pytest.approx(0.991776, abs=5e-7)
        assert float(multi_stage_rate(0.9, 0.3, 3)) == pytest.approx(0.976539, abs=5e-7)
        assert float(multi_stage_rate(0.9, 0.3, 1)) == pytest.approx(0.97, abs=1e-12)

    def test_measured_rate_on_the_graph(self, clustered):
        gamma = eigenvalues(clustered)[1]
        F = T = normal(30, 3)
        trail = []
        for _ in range(300):
            F, T = momentum_step(F, T, clustered.normalized, 0.4, 0.8)
            trail.append(float(collapse_distance(F, clustered.degree)))
        fitted = (trail[-1] / trail[-101]) ** (1 / 100)
        assert trail[-1] > 1e-12
        assert fitted == pytest.approx(float(momentum_rate(gamma, 0.4, 0.8)), rel=1e-6)
        assert fitted - float(1 - 0.4 * (1 - gamma)) > 0.01  # control: without momentum


class TestPredictor:
    def test_steps_descend_the_two_losses(self, graph):
        F, W = normal(graph.n, 3).requires_grad_(), normal(3, 3, seed=1)
        found = predictor_step(F.detach(), graph.normalized, W, 0.3)
        assert relative(found, descent(pair_loss(F, F.detach(), graph, W), F, 0.3)) < 1e-12
        similarity = -((graph.normalized @ F.detach()) * (F @ W)).sum()
        linear = predictor_step(F.detach(), graph.normalized, W, 0.3, inner_product=True)
        assert relative(linear, descent(similarity, F, 0.3)) < 1e-12
        assert relative(predictor_step(F.detach(), graph.normalized, W.T, 0.3), found) > 0.1  # control
        same = predictor_step(F.detach(), graph.normalized, torch.eye(3), 0.3)
        assert relative(same, stop_gradient_step(F.detach(), graph.normalized, 0.3)) < 1e-14

    @given(st.from_type(PositivePairGraph), st.integers(1, 4), st.integers(0, 1000))
    def test_optimal_predictor_projects_the_messages(self, graph, k, seed):
        F, W = normal(graph.n, k, seed=seed), None
        W, message = optimal_predictor(F, graph.normalized), graph.normalized @ F
        Q = torch.linalg.qr(F).Q
        assert relative(F @ W, Q @ (Q.T @ message)) < 1e-9
        best = float(pair_loss(F, F, graph, W))
        for other in (W + 1e-3 * normal(k, k, seed=seed + 1), torch.eye(k, dtype=torch.float64)):
            assert float(pair_loss(F, F, graph, other)) > best

    def test_dependent_columns_have_the_predictor_of_least_norm(self, graph):
        F = normal(graph.n, 2) @ normal(2, 4, seed=1)
        expected = torch.linalg.pinv(F, rtol=1e-10) @ graph.normalized @ F
        assert relative(optimal_predictor(F, graph.normalized), expected) < 1e-9

    @given(st.from_type(PositivePairGraph), st.integers(1, 4), st.integers(0, 1000))
    def test_velocity_is_the_step_and_orthogonal_to_the_features(self, graph, k, seed):
        F = normal(graph.n, k, seed=seed)
        V, W = predictor_velocity(F, graph.normalized), optimal_predictor(F, graph.normalized)
        assert relative(F + 0.25 * V, predictor_step(F, graph.normalized, W, 0.25)) < 1e-12
        assert float((F.T @ V).abs().max()) < 1e-10 * max(1.0, float(W.abs().max()))

    def test_flow_conserves_the_gram_matrix_and_turns_to_the_leading_subspace(self, clustered):
        F0, normalized = normal(30, 2), clustered.normalized

        def captured(F):
            Q = torch.linalg.qr(F).Q
            return float((Q * (normalized @ Q)).sum())

        def slope(_, y):
            return predictor_velocity(torch.from_numpy(y.reshape(30, 2)), normalized).numpy().ravel()

        y = solve_ivp(slope, (0.0, 150.0), F0.numpy().ravel(), "DOP853", rtol=1e-9, atol=1e-12).y[:, -1]
        F, top = torch.from_numpy(y.reshape(30, 2)), float(eigenvalues(clustered)[:2].sum())
        assert relative(F.T @ F, F0.T @ F0) < 1e-6
        assert captured(F) == pytest.approx(top, abs=1e-6)
        assert captured(F0) < 0.5 * top
        assert float(collapse_distance(F, clustered.degree)) > 0.5 * float(collapse_distance(F0, clustered.degree))

    def test_a_finite_step_adds_to_the_gram_matrix_at_second_order_and_no_predictor_loses_it_at_first(self, graph):
        F = normal(graph.n, 3)
        V, W = predictor_velocity(F, graph.normalized), optimal_predictor(F, graph.normalized)
        for alpha in (0.5, 0.01):
            after = predictor_step(F, graph.normalized, W, alpha)
            assert relative(after.T @ after - F.T @ F, alpha**2 * V.T @ V) < 1e-8
            plain = stop_gradient_step(F, graph.normalized, alpha)
            assert float((F.T @ F - plain.T @ plain).trace()) > 0.1 * alpha * float(V.square().sum())  # control


def dominating_root(gamma: float, alpha: float, r: int) -> float:
    """All roots to forty digits."""
    with mpmath.workdps(40):
        g, a = mpmath.mpf(gamma), mpmath.mpf(alpha)
        tail = [-a * g / r] * (r - 1)
        roots = mpmath.polyroots([1, -(1 - a) - a * g / r, *tail], maxsteps=500, extraprec=200)
        return float(max(abs(root) for root in roots))


class TestStages:
    @given(st.floats(-1, 1), st.floats(0.02, 1.8), st.integers(1, 6))
    def test_rate_is_the_largest_root(self, gamma, alpha, r):
        assert float(multi_stage_rate(gamma, alpha, r)) == pytest.approx(dominating_root(gamma, alpha, r), abs=1e-6)

    @pytest.mark.parametrize("gamma", [1.0, 0.999999, 0.9, 0.5, 0.01, 0.0, -0.3, -1.0])
    @pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0])
    @pytest.mark.parametrize("r", [2, 8, 64])
    def test_rate_solves_its_equation(self, gamma, alpha, r):
        """For gamma >= 0 the dominating root is the positive one, by monotonicity; for gamma < 0 compare all roots."""
        found = float(multi_stage_rate(gamma, alpha, r))
        if gamma > 0:
            right = 1 - alpha + alpha * gamma / r * sum(found**-i for i in range(r))
            assert found == pytest.approx(right, abs=1e-11)
        elif gamma == 0:
            assert found == pytest.approx(1 - alpha, abs=1e-12)
        elif r < 64:
            assert found == pytest.approx(dominating_root(gamma, alpha, r), abs=1e-10)
        assert found <= 1 + 1e-12
        assert (found > 1 - 1e-12) == (gamma == 1)

    def test_complex_roots_count(self):
        """At gamma = -1, r = 2 by replacement: 2 z^2 + z + 1 = 0, a complex pair of modulus 2^-1/2."""
        assert float(multi_stage_rate(-1.0, 1.0, 2)) == pytest.approx(2**-0.5, rel=1e-12)

    @given(st.floats(0, 1), st.floats(0.02, 1))
    def test_one_stage_is_stop_gradient(self, gamma, alpha):
        assert float(multi_stage_rate(gamma, alpha, 1)) == pytest.approx(1 - alpha * (1 - gamma), abs=1e-14)

    @given(st.floats(0.01, 1), st.integers(1, 20), st.floats(0.02, 1))
    def test_replacement_is_the_step_of_size_one(self, gamma, r, alpha):
        found = float(multi_stage_rate(gamma, alpha, r, replacement=True))
        assert found == float(multi_stage_rate(gamma, 1.0, r))
        assert gamma / r * sum(found**-i for i in range(1, r + 1)) == pytest.approx(1.0, rel=1e-8)

    def test_two_stages_by_replacement(self):
        gamma = torch.linspace(0, 1, 11, dtype=torch.float64)
        expected = (gamma + (gamma**2 + 8 * gamma).sqrt()) / 4
        assert torch.allclose(multi_stage_rate(gamma, 1.0, 2), expected, atol=1e-12)

    def test_eigenvalues_and_steps_broadcast(self):
        gamma, alpha = torch.rand(3, 1, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.7, 1.0], dtype=torch.float64)
        found = multi_stage_rate(gamma, alpha, 5)
        assert found.shape == (3, 4)
        each = [[float(multi_stage_rate(float(g), float(a), 5)) for a in alpha] for g in gamma]
        assert torch.allclose(found, torch.tensor(each, dtype=torch.float64), atol=1e-13)

    @pytest.mark.parametrize("r", [1, 2, 4, 8, 64])
    @pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
    def test_first_order_of_the_rate(self, r, alpha):
        gap = torch.tensor([1e-3, 1e-4], dtype=torch.float64) / r
        first = alpha / (1 + alpha * (r - 1) / 2)
        if alpha == 1:
            assert first == pytest.approx(2 / (r + 1))
        found = multi_stage_rate(1 - gap, alpha, r)
        error = (found - (1 - first * gap)).abs()
        assert (error < 1e-2 * first * gap).all()
        if r > 1:
            assert float(error[0] / error[1]) == pytest.approx(100, rel=0.05)
            other = 1 - alpha * gap / (1 + alpha * r / 2)  # control: r in place of r - 1
            assert ((found - other).abs() > 3 * error).all()

    def test_more_stages_delay_collapse_and_never_stop_it(self):
        for gamma, alpha in ((0.9, 0.5), (0.3, 1.0), (0.99, 0.1)):
            rates = [float(multi_stage_rate(gamma, alpha, r)) for r in range(1, 33)]
            assert all(a < b for a, b in itertools.pairwise(rates))
            assert rates[-1] < 1

    @pytest.mark.parametrize(("alpha", "r"), [(0.5, 1), (0.5, 4), (1.0, 2), (1.0, 8), (0.3, 3)])
    def test_measured_rate_on_the_graph(self, clustered, alpha, r):
        gamma = eigenvalues(clustered)[1]
        expected = float(multi_stage_rate(gamma, alpha, r))
        steps = int(math.log(1e-9) / math.log(expected))
        window = normal(30, 3).repeat(r, 1, 1)
        trail = []
        for _ in range(steps):
            window = multi_stage_step(window, clustered.normalized, alpha)
            trail.append(float(collapse_distance(window[0], clustered.degree)))
        fitted = (trail[-1] / trail[-9]) ** (1 / 8)
        assert fitted == pytest.approx(expected, abs=1e-7)
        if r > 1:
            assert fitted - float(1 - alpha * (1 - gamma)) > 0.01  # control: one stage

    def test_step_descends_the_loss_through_the_image_nodes(self):
        """Images as middle layer: the stored mean over views and stages of an image, held fixed, is the target."""
        K, prior = normal(7, 10).abs() + 0.05, torch.rand(7, dtype=torch.float64) + 0.1
        K, prior = K / K.sum(1, keepdim=True), prior / prior.sum()
        graph = PositivePairGraph.from_augmentation(K, prior)
        root, window = graph.degree.sqrt()[:, None], normal(3, 10, 2)
        F = window[0].clone().requires_grad_()
        stored = (K @ (window / root)).mean(0)
        distance = (F / root)[None] - stored[:, None]
        loss = ((prior[:, None] * K)[:, :, None] * distance.square()).sum() / 2
        found = multi_stage_step(window, graph.normalized, 0.4)
        assert relative(found[0], descent(loss, F, 0.4)) < 1e-12
        assert (found[1:] == window[:-1]).all()
        assert relative(found[0], stop_gradient_step(window[0], graph.normalized, 0.4)) > 0.1  # control

    def test_one_stage_steps_as_stop_gradient_does(self, graph):
        F = normal(graph.n, 3)
        assert (
            relative(multi_stage_step(F[None], graph.normalized, 0.3)[0], stop_gradient_step(F, graph.normalized, 0.3))
            < 1e-14
        )


class TestDtypes:
    def test_single_precision_is_taken_and_computed_in_double(self, clustered):
        """Degrees that sum to 1 up to single rounding, and a graph symmetric up to it, are no error."""
        F, p, normalized = normal(30, 3).float(), clustered.degree.float(), clustered.normalized.float()
        skewed = normalized * (1 + 1e-7 * normal(30, 30).float())
        for found in (collapse_distance(F, p), collapse_limit(F, p), centre(F, p), appnp(F, skewed, 0.5)):
            assert found.dtype == torch.float64
        exact = stop_gradient_step(F, clustered.normalized, 0.5)
        assert 0 < relative(stop_gradient_step(F, skewed, 0.5), exact) < 1e-6
        with pytest.raises(ValueError, match="not symmetric"):
            stop_gradient_step(F, skewed.double(), 0.5)


class TestRestart:
    @given(st.from_type(PositivePairGraph), st.floats(0.01, 1))
    def test_limit_is_a_fixed_point_with_the_modes_response(self, graph, restart):
        F0 = normal(graph.n, 2)
        F = appnp(F0, graph.normalized, restart)
        assert relative((1 - restart) * graph.normalized @ F + restart * F0, F) < 1e-12
        values, vectors = torch.linalg.eigh(graph.normalized)
        response = restart / (1 - (1 - restart) * values)
        assert relative(vectors.T @ F, response[:, None] * (vectors.T @ F0)) < 1e-9
        assert relative(appnp(F0, graph.normalized, restart, 0), F0) == 0

    def test_it_keeps_the_rank_that_propagation_loses(self, graph):
        F0 = normal(graph.n, 4)
        for steps in (500, None):
            values = torch.linalg.svdvals(appnp(F0, graph.normalized, 0.1, steps))
            assert float(values[-1] / values[0]) > 0.01
        assert float(collapse_distance(appnp(F0, graph.normalized, 1e-9, 500), graph.degree)) < 1e-6  # control


class TestNorms:
    def test_row_norm_is_the_direction(self):
        U = normal(2, 5, 3)
        assert torch.allclose(row_normalise(U), torch.nn.functional.normalize(U, dim=-1), atol=1e-15)

    def test_layer_norm_is_torchs(self):
        U = 3 * normal(6, 5) + 2
        theirs = torch.nn.functional.layer_norm(U, (5,), eps=0.0)
        assert relative(layer_norm(U), theirs) < 1e-14
        centred = U - U.mean(1, keepdim=True)
        assert relative(layer_norm(U), math.sqrt(5) * row_normalise(centred)) < 1e-14

    @pytest.mark.parametrize("root", [1.0, 2.0, 3.0])
    def test_node_norm_divides_by_a_root_of_the_deviation(self, root):
        U = 3 * normal(6, 5) + 2
        deviation = U.std(1, correction=0)
        found = node_norm(U, root)
        assert relative(found, U / deviation[:, None] ** (1 / root)) < 1e-14
        assert relative(found.std(1, correction=0), deviation ** (1 - 1 / root)) < 1e-13
        if root == 1:
            assert relative(node_norm(4 * U), found) < 1e-14
            assert relative(node_norm(U + 1), found) > 0.1  # unlike layer_norm it keeps the mean of a row
            assert relative(layer_norm(U + 1), layer_norm(U)) < 1e-13

    def test_pair_norm_pins_the_total_squared_distance(self):
        found = pair_norm(5 * normal(6, 4) + 1, 1.5)
        total = (found[:, None] - found).square().sum()
        assert float(total) == pytest.approx(2 * 6**2 * 1.5**2, rel=1e-13)
        single = pair_norm(5 * normal(6, 4) + 1, 1.5, individually=True)
        assert torch.allclose(single.norm(dim=1), torch.full((6,), 1.5, dtype=torch.float64))
        assert abs(float((single[:, None] - single).square().sum()) - float(total)) > 1e-3

    def test_individual_pair_norm_centres_and_projects_onto_the_sphere(self):
        U, uniform = normal(6, 4), torch.full((6,), 1 / 6, dtype=torch.float64)
        assert relative(pair_norm(U, individually=True), row_normalise(centre(U, uniform))) < 1e-14

    def test_centring_projects_off_the_first_eigenvector(self, graph):
        U, root = normal(2, graph.n, 3), graph.degree.sqrt()[:, None]
        F = root * centre(U, graph.degree)
        assert relative(F, root * U - root @ (root.T @ (root * U))) < 1e-14
        assert float((graph.degree @ centre(U, graph.degree)).abs().max()) < 1e-15
        assert float((graph.degree @ (U - U.mean(-2, keepdim=True))).abs().max()) > 0.01  # control: the plain mean

    def test_rows_of_length_one_collapse_all_the_same(self, graph):
        U, walk = normal(graph.n, 3), graph.adjacency / graph.degree[:, None]
        for _ in range(2000):
            U = row_normalise(walk @ U)
        assert float((U @ U.T).mean()) == pytest.approx(1.0, abs=1e-9)

    def test_centring_ends_in_one_dimension_and_not_in_one_point(self, graph):
        """Alignment, centring, one scale for all: a power iteration off the first eigenvector leaves the second."""
        U, walk = normal(graph.n, 3), graph.adjacency / graph.degree[:, None]
        for _ in range(2000):
            U = centre(walk @ U, graph.degree)
            U = U / U.norm()
        values = torch.linalg.svdvals(U)
        assert float(values[1] / values[0]) < 1e-9
        assert float(collapse_distance(graph.degree.sqrt()[:, None] * U, graph.degree)) > 0.1
        F, v2 = graph.degree.sqrt()[:, None] * U, graph.eigenpairs(2).vectors[:, 1]
        assert float((v2 @ F).norm() / F.norm()) == pytest.approx(1.0, abs=1e-9)

    def test_centring_with_rows_of_length_one_ends_in_one_dimension_where_two_antipodal_groups_are_stable(
        self, graph, clustered
    ):
        r"""Two groups $s\in\{-1,1\}^N$ are at rest if $s$ is the sign of $Qs$, $Q$ the centred walk.

        Rows turned by $\epsilon$ off the axis become $\mathrm{diag}(|Qs|)^{-1}Q\epsilon$; $s$ itself, a turn, stays.
        """
        for case, stable in ((clustered, True), (graph, False)):
            Q = centre(case.adjacency / case.degree[:, None], case.degree)
            s = case.eigenpairs(2).vectors[:, 1].sign()
            for _ in range(100):
                s = (Q @ s).sign()
            assert ((Q @ s).sign() == s).all()
            turns = torch.linalg.eigvals(Q / (Q @ s).abs()[:, None]).abs().sort(descending=True).values
            assert ((turns[0] - 1).abs() < 1e-9 and turns[1] < 0.9) == stable
            U = normal(case.n, 3)
            for _ in range(2000):
                U = row_normalise(Q @ U)
            values = torch.linalg.svdvals(U)
            assert (float(values[1] / values[0]) < 1e-9) == stable
            assert relative(row_normalise(Q @ U), U) < 1e-12
            assert abs(float(case.degree @ (U @ U.T) @ case.degree)) < 0.05  # no single point: the mean is nearly zero


F, HALF, P = torch.ones(2, 3), torch.full((2, 2), 0.5), torch.tensor([0.5, 0.5])
WALK = torch.tensor([[0.5, 0.5], [0.25, 0.75]])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: collapse_rate(torch.tensor([1.0, 0.5]), 0.0),
            "collapse_rate: alpha must be positive and finite, got 0",
        ),
        (lambda: collapse_rate(torch.tensor([1.0, 0.5]), math.nan), "got nan"),
        (lambda: collapse_rate(torch.tensor([1.0, 0.5]), torch.tensor([0.5, -1.0])), r"got \[0.5, -1.0\]"),
        (lambda: collapse_rate(torch.tensor([0.7, 0.5]), 0.5), "no eigenvalue is 1, the largest is 0.7.*1 - gamma"),
        (
            lambda: collapse_rate(torch.tensor([1.7, 0.5]), 0.5),
            r"lie in \[-1, 1\], got 0.5 to 1.7; those of the Laplacian",
        ),
        (lambda: collapse_rate(torch.tensor([]), 0.5), "collapse_rate: got no eigenvalues; pass those of"),
        (lambda: collapse_rate(torch.tensor([1.0, math.nan]), 0.5), r"lie in \[-1, 1\]"),
        (lambda: collapse_distance(torch.ones(2), P), r"collapse_distance: expected features .*\(2,\)"),
        (lambda: collapse_distance(torch.ones(3, 1), P), r"p has shape \(2,\); need one .* the 3 rows"),
        (lambda: collapse_distance(F, 2 * P), "sum to 1, got smallest 1, sum 2"),
        (lambda: collapse_distance(F, torch.tensor([1.0, 0.0])), "smallest 0, sum 1; pass the degrees"),
        (lambda: collapse_distance(F, P, torch.tensor([0, 0, 1])), "labels: expected 2 integers"),
        (lambda: collapse_limit(torch.ones(2), P), "collapse_limit: expected features"),
        (lambda: collapse_limit(F, P, torch.tensor([0.0, 1.0])), "labels: expected 2 integers"),
        (lambda: stop_gradient_step(F, HALF, -0.1), "stop_gradient_step: alpha must be positive"),
        (
            lambda: stop_gradient_step(F, WALK, 0.5),
            "stop_gradient_step: normalized is not symmetric.*not the random walk",
        ),
        (lambda: stop_gradient_step(F, math.nan * HALF, 0.5), "not symmetric"),
        (lambda: stop_gradient_step(torch.ones(3, 3), HALF, 0.5), r"shapes \(3, 3\) and \(2, 2\); need"),
        (lambda: stop_gradient_step(torch.ones(2), HALF, 0.5), r"shapes \(2,\) and"),
        (lambda: momentum_step(F, torch.ones(2, 2), HALF, 0.5, 0.5), r"momentum_step: F \(2, 3\) and .* \(2, 2\)"),
        (lambda: momentum_step(F, F, HALF, 0.5, 1.5), r"momentum rho must lie in \[0, 1\], got 1.5"),
        (lambda: momentum_step(F, F, HALF, 0.0, 0.5), "momentum_step: alpha"),
        (lambda: momentum_rate(0.5, 0.5, -0.1), "rho must lie"),
        (lambda: momentum_rate(0.5, 0.5, math.nan), "rho must lie"),
        (lambda: momentum_rate(1.5, 0.5, 0.1), r"lie in \[-1, 1\]"),
        (lambda: momentum_rate(0.5, 0.0, 0.1), "alpha must be positive"),
        (lambda: predictor_step(F, HALF, torch.eye(2), 0.5), r"W \(2, 2\) does not fit features of dimension 3"),
        (lambda: predictor_step(F, WALK, torch.eye(3), 0.5), "predictor_step: normalized is not symmetric"),
        (lambda: predictor_step(F, HALF, torch.eye(3), 0.0), "predictor_step: alpha"),
        (lambda: optimal_predictor(F, WALK), "optimal_predictor: normalized is not symmetric"),
        (lambda: predictor_velocity(torch.ones(3, 1), HALF), "need .*N, k"),
        (lambda: multi_stage_rate(0.5, 0.5, 0), "multi_stage_rate: r counts stages, an integer from 1 on, got 0"),
        (lambda: multi_stage_rate(0.5, 0.5, True), "got True"),
        (lambda: multi_stage_rate(0.5, 0.5, 2.5), "got 2.5"),  # type: ignore[arg-type]
        (lambda: multi_stage_rate(0.5, 0.0, 2), "multi_stage_rate: alpha must be positive"),
        (lambda: multi_stage_rate(-1.5, 0.5, 2), r"lie in \[-1, 1\]"),
        (lambda: multi_stage_step(F, HALF, 0.5), r"expected a history \(r, N, k\), r >= 1, got shape \(2, 3\)"),
        (lambda: multi_stage_step(torch.ones(0, 2, 3), HALF, 0.5), r"\(0, 2, 3\)"),
        (lambda: multi_stage_step(F[None], WALK, 0.5), "multi_stage_step: normalized is not symmetric"),
        (lambda: multi_stage_step(F[None], HALF, 0.0), "multi_stage_step: alpha"),
        (lambda: appnp(F, HALF, 0.0), r"restart must lie in \(0, 1\], got 0.0; without"),
        (lambda: appnp(F, HALF, 1.5), "got 1.5"),
        (lambda: appnp(F, HALF, 0.5, -1), "steps must be at least 0, or None for the limit, got -1"),
        (lambda: appnp(F, WALK, 0.5), "appnp: normalized is not symmetric"),
        (lambda: row_normalise(torch.tensor([[1.0], [0.0], [0.0]])), "row_normalise: row 1 is zero, .* drop the row"),
        (lambda: row_normalise(torch.tensor([[[1.0]], [[0.0]]])), r"row 0 of block \[1\] is zero"),
        (lambda: row_normalise(torch.tensor([[1.0], [math.nan]])), "row 1 is not finite"),
        (lambda: row_normalise(torch.tensor([[math.inf], [1.0]])), "row 0 is not finite"),
        (lambda: row_normalise(torch.ones(3)), r"row_normalise: expected features \(N, k\), one row a view"),
        (lambda: layer_norm(torch.tensor([[1.0, 2.0], [0.1, 0.1]])), "layer_norm: row 1 is constant"),
        (lambda: layer_norm(0.1 * torch.ones(2, 7)), "row 0 is constant"),
        (lambda: node_norm(torch.ones(2, 3)), "node_norm: row 0 is constant"),
        (lambda: node_norm(torch.ones(2, 3), 0.5), "root must be at least 1, got 0.5"),
        (lambda: pair_norm(0.1 * torch.ones(7, 2)), "pair_norm: all rows are equal"),
        (lambda: pair_norm(torch.tensor([[1.0], [3.0], [5.0]]), individually=True), "row 1 equals the mean"),
        (lambda: pair_norm(torch.eye(2), -1.0), "pair_norm: scale must be positive and finite, got -1"),
        (lambda: centre(F, 2 * P), "centre: p must be positive and sum to 1"),
        (lambda: centre(torch.ones(3, 1), P), "centre: p has shape"),
        (lambda: centre(torch.ones(2), P), "centre: expected features"),
    ],
)
def test_bad_input_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
