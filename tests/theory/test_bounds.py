"""Witnesses: direct minimisation, exhaustive cuts, closed-form graphs, random instances, Cover's count."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import csr_array

from companion.theory.bounds import (
    best_head,
    cluster_bound,
    clusters_graph,
    inner_conductance,
    label_matrix,
    natural_bound,
    near_optimal_bound,
    probe_bound,
    probe_error,
)
from companion.theory.graph import PositivePairGraph
from companion.theory.spectral import (
    embedding,
    laplacian_eigenmap,
    loss_floor,
    population_loss,
    row_normalised,
    weighted,
)

GRAPHS = st.from_type(PositivePairGraph)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_labels(n: int, classes: int, seed: int) -> torch.Tensor:
    return torch.cat([torch.arange(classes), torch.randint(classes, (n - classes,), generator=draw(seed))])


def clustered(leak: float, seed: int, clusters: int = 6, views: int = 30) -> tuple[PositivePairGraph, torch.Tensor]:
    """Thirty images a cluster, each spread over its cluster's views, a share `leak` over all views."""
    owner = torch.arange(clusters).repeat_interleave(views)
    inside = (owner[:, None] == owner).double() * torch.rand(len(owner), len(owner), generator=draw(seed)) ** 4
    K = (1 - leak) * inside / inside.sum(1, keepdim=True) + leak / len(owner)
    return PositivePairGraph.from_augmentation(K, allow_disconnected=True), owner


def test_label_matrix_has_weight_one_and_rayleigh_quotient_phi(graph):
    labels = random_labels(graph.n, 3, 0)
    Y = label_matrix(graph, labels)
    assert Y.square().sum() == pytest.approx(1, abs=1e-14)
    laplacian = torch.eye(graph.n) - graph.normalized
    assert torch.trace(Y.T @ laplacian @ Y) == pytest.approx(graph.cross_edge_weight(labels), abs=1e-14)


def test_best_head_solves_the_normal_equations(graph):
    labels, U = random_labels(graph.n, 3, 0), torch.randn(graph.n, 4, dtype=torch.float64, generator=draw(1))
    B = best_head(graph, U, labels)
    covariance = (U.T * graph.degree) @ U
    means = (U.T * graph.degree) @ torch.nn.functional.one_hot(labels).double()
    assert torch.allclose(B, torch.linalg.solve(covariance, means), atol=1e-12)
    best = probe_error(graph, U, labels)
    naive = sum(
        float(graph.degree[x]) * sum((float(U[x] @ B[:, c]) - (labels[x] == c).item()) ** 2 for c in range(3))
        for x in range(graph.n)
    )
    assert best.squared == pytest.approx(naive, rel=1e-12)
    for seed in range(5):
        other = B + 0.01 * torch.randn(4, 3, dtype=torch.float64, generator=draw(seed))
        assert probe_error(graph, U, labels, other).squared > best.squared
    unweighted = torch.linalg.lstsq(U, torch.nn.functional.one_hot(labels).double()).solution
    assert probe_error(graph, U, labels, unweighted).squared > best.squared + 1e-6  # control: degrees matter


def test_zero_one_error_weighs_the_views(graph):
    U = torch.eye(graph.n, dtype=torch.float64)
    labels = random_labels(graph.n, 2, 0)
    assert probe_error(graph, U, labels) == pytest.approx((0, 0), abs=1e-12)
    flipped = best_head(graph, U, labels).flip(1)
    assert probe_error(graph, U, labels, flipped).zero_one == pytest.approx(1)
    assert probe_error(graph, U, labels, 0 * flipped).zero_one == pytest.approx(float(graph.degree[labels == 1].sum()))


def test_a_probe_cannot_see_row_scaling_or_mixing(graph):
    labels, k = random_labels(graph.n, 3, 2), 5
    U = embedding(graph, k)
    B = best_head(graph, U, labels)
    predicted = (U @ B).argmax(1)
    mixing = torch.randn(k, k, dtype=torch.float64, generator=draw(3))
    gamma = graph.eigenpairs(k).values
    length = graph.eigenpairs(k).vectors.norm(dim=1, keepdim=True)
    assert torch.equal((U @ mixing @ torch.linalg.solve(mixing, B)).argmax(1), predicted)
    assert torch.equal((laplacian_eigenmap(graph, k) @ (gamma.sqrt()[:, None] * B)).argmax(1), predicted)
    assert torch.equal((row_normalised(graph, k) @ (gamma.sqrt()[:, None] * B)).argmax(1), predicted)
    assert torch.allclose(weighted(graph, U), row_normalised(graph, k) * length * gamma.sqrt(), atol=1e-12)
    assert probe_error(graph, U @ mixing, labels).squared == pytest.approx(probe_error(graph, U, labels).squared)


@given(GRAPHS, st.integers(1, 4), st.integers(2, 4), st.integers(0, 1000))
def test_the_probe_never_exceeds_its_bounds(graph, k, classes, seed):
    labels = random_labels(graph.n, classes, seed)
    measured, bound = probe_error(graph, embedding(graph, k), labels), probe_bound(graph, labels, k)
    head = best_head(graph, embedding(graph, k), labels)
    assert measured.squared <= bound.squared + 1e-10
    assert bound.squared <= bound.squared_simple + 1e-12
    assert measured.zero_one <= bound.zero_one + 1e-10
    assert bound.zero_one == 2 * bound.squared_simple
    assert float(head.square().sum()) <= bound.head_norm * (1 + 1e-9)


@given(GRAPHS, st.integers(1, 3))
def test_other_features_do_exceed_them(graph, k):
    # control: the bound is about the minimiser; one class has phi = 0, but the last eigenvectors miss the constant
    labels = torch.zeros(graph.n, dtype=torch.long)
    last = graph.eigenpairs(graph.n).vectors[:, -k:] / graph.degree.sqrt()[:, None]
    assert probe_bound(graph, labels, k).squared == pytest.approx(0, abs=1e-12)
    assert probe_error(graph, last, labels).squared == pytest.approx(1)


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_majority_votes_never_exceed_the_natural_bound(seed, k):
    K = torch.rand(12, 16, dtype=torch.float64, generator=draw(seed)) ** 6
    K = K / K.sum(1, keepdim=True)
    graph = PositivePairGraph.from_augmentation(K)
    truth = random_labels(12, 3, seed)
    labels = (K.T @ torch.nn.functional.one_hot(truth).double()).argmax(1)
    alpha = float(sum(K[i, labels != truth[i]].sum() for i in range(12)) / 12)
    U = embedding(graph, k)
    predicted = torch.nn.functional.one_hot((U @ best_head(graph, U, labels)).argmax(1), 3).double()
    majority = (K @ predicted).argmax(1)
    lambda_next = 1 - float(graph.eigenpairs(k + 1).values[k])
    assert graph.cross_edge_weight(labels) <= 2 * alpha + 1e-12
    assert float((majority != truth).double().mean()) <= natural_bound(alpha, lambda_next) + 1e-12
    assert natural_bound(alpha, lambda_next) <= 10 * alpha / lambda_next + 1e-12


@given(GRAPHS, st.integers(2, 4), st.floats(0, 0.5), st.integers(0, 1000))
def test_nearly_optimal_features_never_exceed_their_bound(graph, k, noise, seed):
    labels = random_labels(graph.n, 3, seed)
    U = embedding(graph, k) + noise * torch.randn(graph.n, k, dtype=torch.float64, generator=draw(seed))
    excess = max(population_loss(graph, U) - loss_floor(graph, k), 0.0)
    gamma = graph.eigenpairs(k + 1).values
    for k_prime in (i for i in range(1, k + 1) if gamma[i - 1] > gamma[k] + 1e-6):
        assert probe_error(graph, U, labels).squared <= near_optimal_bound(graph, labels, k, k_prime, excess) + 1e-10
        simple = probe_bound(graph, labels, k_prime).squared_simple
        assert near_optimal_bound(graph, labels, k, k_prime, 0.0) == pytest.approx(2 * simple)


@given(GRAPHS, st.integers(0, 1000))
def test_clusters_bound_the_next_eigenvalue(graph, seed):
    clusters = random_labels(graph.n, 2, seed)
    bound = cluster_bound(graph, clusters)
    lambda_next = 1 - float(graph.eigenpairs(3).values[2])
    assert bound.lambda_next == bound.conductance**2 / 2
    assert lambda_next >= bound.lambda_next - 1e-12


def test_one_cluster_too_few_breaks_the_cluster_bound():
    # control: with k = m - 1 the same right-hand side is violated, so the index m + 1 is not slack
    nested = clusters_graph(3, 1, 4, within=0.5, siblings=0.0, across=0.001)
    bound = cluster_bound(nested.graph, nested.clusters).lambda_next
    assert 1 - nested.values[3] >= bound
    assert 1 - nested.values[2] < bound


@given(GRAPHS)
def test_good_partitions_make_large_eigenvalues(graph):
    # the easy direction: lambda_m <= 2 max_i conductance of any partition
    clusters = random_labels(graph.n, 3, 0)
    worst = max(graph.conductance(clusters == c) for c in range(3))
    assert 1 - float(graph.eigenpairs(3).values[2]) <= 2 * worst + 1e-12


@given(GRAPHS, st.integers(2, 5))
def test_inner_conductance_is_the_exhaustive_minimum(graph, size):
    mask = torch.arange(graph.n) < size
    A, p = graph.adjacency, graph.degree
    naive = math.inf
    for count in range(1, size):
        for T in itertools.combinations(range(size), count):
            rest = [x for x in range(size) if x not in T]
            if p[list(T)].sum() <= p[:size].sum() / 2:
                naive = min(naive, float(A[list(T)][:, rest].sum() / p[list(T)].sum()))
    assert inner_conductance(graph, mask) == pytest.approx(naive, rel=1e-12)
    sparse = PositivePairGraph.from_adjacency(csr_array(A.numpy()))
    assert inner_conductance(sparse, mask) == pytest.approx(naive, rel=1e-12)
    assert inner_conductance(graph, torch.arange(graph.n) == 0) == math.inf


@pytest.mark.parametrize("shape", [(3, 2, 4), (2, 3, 2), (4, 1, 3), (1, 4, 2)])
@pytest.mark.parametrize("across", [0.0008, 0.02])
def test_nested_clusters_in_closed_form(shape, across):
    nested = clusters_graph(*shape, within=0.45, siblings=0.05, across=across)
    assert torch.allclose(nested.graph.eigenpairs(nested.graph.n).values, nested.values, atol=1e-14)
    assert nested.graph.cross_edge_weight(nested.labels) == pytest.approx(nested.phi, abs=1e-15)


def test_the_nested_graph_of_the_text():
    nested = clusters_graph(3, 2, 4, within=0.45, siblings=0.05, across=0.0008)
    expected = [1.0] + 2 * [0.990461] + 3 * [0.794913] + 18 * [0.0]
    assert nested.values.tolist() == pytest.approx(expected, abs=5e-7)
    assert nested.phi == pytest.approx(0.0063593, abs=5e-8)
    bound = probe_bound(nested.graph, nested.labels, k=3)
    error = probe_error(nested.graph, embedding(nested.graph, 3), nested.labels)
    assert error.zero_one == 0
    assert error.squared <= bound.squared < bound.squared_simple < 0.04


def test_disconnected_clusters_need_exactly_as_many_features():
    nested = clusters_graph(1, 6, 3, within=1.0, siblings=0.0, across=0.0)
    tasks = nested.clusters // 2
    assert nested.graph.cross_edge_weight(tasks) == 0
    assert probe_error(nested.graph, embedding(nested.graph, 6), tasks).squared == pytest.approx(0, abs=1e-12)
    assert probe_error(nested.graph, embedding(nested.graph, 5), nested.clusters).squared > 0.05
    assert probe_bound(nested.graph, tasks, 6).squared == pytest.approx(0, abs=1e-12)
    assert probe_bound(nested.graph, tasks, 5).squared == math.inf


def test_error_falls_to_zero_once_k_reaches_the_number_of_clusters():
    measured = []
    for seed in range(10):
        graph, owner = clustered(0.01, seed)
        measured.append([probe_error(graph, embedding(graph, k), owner).zero_one for k in range(1, 8)])
        assert graph.eigenpairs(7).values[5] > 0.9 > 0.4 > graph.eigenpairs(7).values[6]
    mean = torch.tensor(measured).mean(0)
    assert mean[:5].tolist() == sorted(mean[:5].tolist(), reverse=True)
    assert mean[0] > 0.8
    assert mean[4] > 0.1
    assert mean[5:].max() == 0


def test_labels_that_cut_a_cluster_are_not_learned():
    nested = clusters_graph(2, 1, 4, within=1.0, siblings=0.0, across=0.0)
    halves = torch.arange(8) % 2
    assert probe_error(nested.graph, embedding(nested.graph, 2), halves).squared == pytest.approx(0.5)
    assert nested.graph.cross_edge_weight(halves) == pytest.approx(0.5)


@pytest.mark.parametrize(("k", "share"), [(1, 0.03125), (2, 0.1875), (3, 0.5), (4, 0.8125), (5, 0.96875), (6, 1.0)])
def test_cover_counts_the_tasks_that_k_features_solve(k, share):
    # six disconnected equal clusters: the eigenspace of gamma = 1 is six-dimensional, so rotate it generically
    m = 6
    assert share == pytest.approx(2.0 ** (1 - m) * sum(math.comb(m - 1, i) for i in range(k)))
    points = torch.linalg.qr(torch.randn(m, m, dtype=torch.float64, generator=draw(0))).Q[:, :k].numpy()
    solved = 0
    for signs in itertools.product([-1, 1], repeat=m):
        margins = [[-s * x for x in row] for s, row in zip(signs, points, strict=True)]
        solved += linprog([0] * k, A_ub=margins, b_ub=[-1] * m, bounds=[(None, None)] * k).status == 0
    assert solved / 2**m == share


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: probe_bound(g, torch.zeros(4, dtype=torch.long), 4), r"1\.\.3 so that lambda"),
        (lambda g: probe_bound(g, torch.zeros(3, dtype=torch.long), 1), "expected 4 integers"),
        (lambda g: label_matrix(g, torch.zeros(4)), "integers from 0"),
        (lambda g: probe_error(g, torch.ones(3, 1), torch.zeros(4, dtype=torch.long)), "each of 4 vertices"),
        (lambda g: natural_bound(-0.1, 0.5), "must be >= 0"),
        (lambda g: near_optimal_bound(g, torch.arange(4) // 2, 2, 3, 0.0), "1 <= k_prime <= k"),
        (lambda g: near_optimal_bound(g, torch.arange(4) // 2, 2, 1, -1.0), "excess >= 0"),
        (lambda g: near_optimal_bound(g, torch.arange(4) // 2, 2, 2, 0.0), "no gap between gamma_2 and gamma_3"),
        (lambda g: inner_conductance(g, torch.zeros(4, dtype=torch.bool)), "1 to 16 vertices, got 0"),
        (lambda g: inner_conductance(clusters_graph(1, 1, 17, 1, 0, 0).graph, torch.ones(17)), "got 17"),
    ],
)
def test_errors_teach(call, message):
    graph = PositivePairGraph.blocks(2, 2, 4.0, 1.0, 1.0, 1.0)  # eigenvalues 1, 3/7 three times
    with pytest.raises(ValueError, match=message):
        call(graph)
