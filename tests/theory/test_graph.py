"""Witnesses: double loops over images and pairs, closed-form spectra, and three solvers against each other."""

import numpy as np
import pytest
import scipy.sparse as sp
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.theory.graph import PositivePairGraph, block_spectrum

GRAPHS = st.from_type(PositivePairGraph)


def ring(n: int) -> PositivePairGraph:
    """Eigenvalues cos(2 pi j / n): each but the first doubled, gaps of order 1 / n^2."""
    return PositivePairGraph.from_pairs(np.arange(n), (np.arange(n) + 1) % n, n)


def random_law(images: int, views: int, density: float) -> sp.csr_array:
    rng = np.random.default_rng(3)
    every_view = sp.csr_array((rng.random(views), (np.arange(views) % images, np.arange(views))), shape=(images, views))
    K = sp.csr_array(sp.random_array((images, views), density=density, rng=rng) + every_view)
    return sp.csr_array(sp.diags_array(1 / K.sum(1)) @ K)


def test_adjacency_is_the_chance_of_a_pair():
    K = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.0, 0.9]], dtype=torch.float64)
    prior = [0.25, 0.75]
    graph = PositivePairGraph.from_augmentation(K, prior)
    for x in range(3):
        for y in range(3):
            naive = sum(prior[i] * K[i, x] * K[i, y] for i in range(2))
            assert graph.adjacency[x, y] == pytest.approx(float(naive), abs=1e-15)
            scale = (graph.degree[x] * graph.degree[y]).sqrt()
            assert graph.normalized[x, y] == pytest.approx(float(naive / scale), abs=1e-15)
        assert graph.degree[x] == pytest.approx(sum(prior[i] * float(K[i, x]) for i in range(2)), abs=1e-15)


def test_from_pairs_counts_both_orders():
    i, j = [0, 1, 1, 2, 2], [1, 2, 2, 0, 2]
    naive = torch.zeros(3, 3, dtype=torch.float64)
    for a, b in zip(i, j, strict=True):
        naive[a, b] += 0.1
        naive[b, a] += 0.1
    graph = PositivePairGraph.from_pairs(i, j, 3)
    assert graph.is_sparse
    assert torch.allclose(torch.from_numpy(graph.adjacency.toarray()), naive, atol=1e-15)


@given(GRAPHS)
def test_positive_semidefinite_and_top_eigenvector(graph):
    values, vectors, residuals = graph.eigenpairs(graph.n)
    assert graph.adjacency.sum() == pytest.approx(1, abs=1e-12)
    assert values[0] == pytest.approx(1, abs=1e-12)
    assert values.min() > -1e-12
    assert residuals.max() < 1e-12
    assert torch.allclose(vectors[:, 0], graph.degree.sqrt(), atol=1e-9)


@given(GRAPHS, st.integers(0, 1000))
def test_quadratic_form_is_half_the_sum_over_pairs(graph, seed):
    h = torch.randn(graph.n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    naive = sum(
        0.5 * float(graph.adjacency[x, y]) * float((h[x] - h[y]).square().sum())
        for x in range(graph.n)
        for y in range(graph.n)
    )
    assert graph.quadratic_form(h) == pytest.approx(naive, rel=1e-10)
    u = graph.degree.sqrt()[:, None] * h
    assert graph.quadratic_form(h) == pytest.approx(float((u * (u - graph.normalized @ u)).sum()), rel=1e-10)


@given(GRAPHS, st.integers(0, 1000))
def test_cross_edge_weight_and_conductance_by_double_loop(graph, seed):
    labels = torch.randint(3, (graph.n,), generator=torch.Generator().manual_seed(seed))
    pairs = [(x, y) for x in range(graph.n) for y in range(graph.n)]
    phi = sum(float(graph.adjacency[x, y]) for x, y in pairs if labels[x] != labels[y])
    assert graph.cross_edge_weight(labels) == pytest.approx(phi, abs=1e-12)
    mask = labels == labels[0]
    out = sum(float(graph.adjacency[x, y]) for x, y in pairs if mask[x] and not mask[y])
    assert graph.conductance(mask) == pytest.approx(out / float(graph.degree[mask].sum()), abs=1e-12)


def test_a_singleton_has_conductance_below_one_because_of_self_loops(graph):
    mask = torch.arange(graph.n) == 0
    assert graph.conductance(mask) == pytest.approx(float(1 - graph.adjacency[0, 0] / graph.degree[0]), abs=1e-12)
    assert graph.conductance(torch.ones(graph.n, dtype=torch.bool)) == 0


def test_no_edge_between_labels_weighs_exactly_nothing():
    graph = PositivePairGraph.from_adjacency(sp.block_diag([np.full((3, 3), 0.1)] * 2), allow_disconnected=True)
    assert graph.component_count == 2
    assert graph.cross_edge_weight(torch.tensor([0, 0, 0, 1, 1, 1])) == 0
    assert torch.allclose(graph.eigenpairs(3).values, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), atol=1e-12)


def test_dense_sparse_and_factored_graphs_agree():
    K = random_law(30, 50, 0.1)
    factored = PositivePairGraph.from_augmentation(K)
    dense = PositivePairGraph.from_augmentation(K.toarray())
    sparse = PositivePairGraph.from_adjacency(factored.adjacency)
    labels, h = torch.arange(50) % 4, torch.linspace(-1, 1, 50, dtype=torch.float64)
    X = torch.outer(h, h[:3])
    for other in (factored, sparse):
        assert other.is_sparse
        assert not dense.is_sparse
        assert torch.allclose(other.degree, dense.degree, atol=1e-15)
        assert torch.allclose(torch.from_numpy(other.normalized.toarray()), dense.normalized, atol=1e-14)
        assert torch.allclose(other.multiply(X), dense.multiply(X), atol=1e-14)
        assert other.cross_edge_weight(labels) == pytest.approx(dense.cross_edge_weight(labels), abs=1e-14)
        assert other.conductance(labels == 1) == pytest.approx(dense.conductance(labels == 1), abs=1e-14)
        assert other.quadratic_form(h) == pytest.approx(dense.quadratic_form(h), abs=1e-14)
        assert torch.allclose(other.eigenpairs(6).values, dense.eigenpairs(6).values, atol=1e-12)


def test_solvers_agree_matrix_free():
    graph = PositivePairGraph.from_augmentation(random_law(400, 700, 0.01))
    dense = graph.eigenpairs(8, method="dense")
    for method in ("arpack", "lobpcg", "auto"):
        pairs = graph.eigenpairs(8, method=method)
        assert torch.allclose(pairs.values, dense.values, atol=1e-12)
        assert pairs.residuals.max() < 1e-10
        assert torch.linalg.matrix_norm(pairs.vectors.T @ dense.vectors, 2) == pytest.approx(1, abs=1e-9)
    assert graph.eigenpairs(8) is graph.eigenpairs(8)
    again = PositivePairGraph.from_augmentation(random_law(400, 700, 0.01)).eigenpairs(8)
    assert torch.equal(again.vectors, graph.eigenpairs(8).vectors)


def test_tiny_gaps_defeat_lanczos_and_multigrid_takes_over():
    n = 4001
    closed = torch.cos(2 * torch.pi * torch.tensor([0.0, 1, 1, 2, 2, 3], dtype=torch.float64) / n)
    with pytest.raises(np.linalg.LinAlgError, match="above tolerance"):
        ring(n).eigenpairs(6, method="arpack")
    pairs = ring(n).eigenpairs(6)
    assert torch.allclose(pairs.values, closed, rtol=0, atol=1e-14)
    assert pairs.residuals.max() < 1e-10


def test_multigrid_leaves_numpys_generator_alone():
    np.random.seed(5)  # noqa: NPY002 - the global generator is what is watched
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    ring(700).eigenpairs(3, method="lobpcg")
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_every_copy_of_a_multiple_eigenvalue_is_found():
    # one Lanczos run from one start finds far fewer than the twenty copies of the second eigenvalue
    rng = np.random.default_rng(1)
    component = rng.random((40, 40)) * (rng.random((40, 40)) < 0.2) + np.eye(40)
    component = component + component.T
    graph = PositivePairGraph.from_adjacency(sp.block_diag([component] * 20), allow_disconnected=True)
    single = PositivePairGraph.from_adjacency(component).eigenpairs(2).values
    values = graph.eigenpairs(30).values
    assert torch.allclose(values, single.repeat_interleave(torch.tensor([20, 10])), atol=1e-10)
    assert graph.component_count == 20


def test_many_pairs_of_a_small_sparse_graph_are_solved_densely():
    graph = ring(9)
    closed = torch.cos(2 * torch.pi * torch.arange(9, dtype=torch.float64) / 9).sort(descending=True)[0]
    assert torch.allclose(graph.eigenpairs(9).values, closed, atol=1e-14)


def test_large_sparse_block_graph():
    # 10,000 vertices, ten classes, four of five partners in the class: ten eigenvalues stand out near 4/5
    rng = np.random.default_rng(0)
    i = rng.integers(0, 10_000, 300_000)
    j = np.where(rng.random(len(i)) < 0.8, 10 * rng.integers(0, 1000, len(i)) + i % 10, rng.integers(0, 10_000, len(i)))
    values, _, residuals = PositivePairGraph.from_pairs(i, j, 10_000).eigenpairs(11)
    assert residuals.max() < 1e-10
    assert values[0] == pytest.approx(1, abs=1e-12)
    assert values[1:10].min() > 0.79
    assert values[10] < 0.4


@pytest.mark.parametrize(("r", "m"), [(2, 2), (3, 2), (5, 4), (1, 3)])
def test_block_spectrum_is_the_graphs(r, m):
    weights = {"within": 0.4, "across_domains": 0.1, "across_classes": 0.15, "across_both": 0.03}
    spectrum = block_spectrum(r, m, **weights)
    for size in (1, 3):
        values = PositivePairGraph.blocks(r, m, **weights, size=size).eigenpairs(r * m).values
        assert torch.allclose(values, spectrum.values(), atol=1e-14)


@pytest.mark.parametrize(
    ("alpha", "beta", "gamma", "printed"),
    [
        (0.10, 0.15, 0.03, (0.471, 0.618, 0.265)),
        (0.06, 0.20, 0.03, (0.333, 0.739, 0.246)),
        (0.04, 0.15, 0.03, (0.419, 0.774, 0.387)),
        (0.03, 0.15, 0.08, (0.303, 0.667, 0.455)),
        (0.15, 0.03, 0.08, (0.667, 0.303, 0.455)),
        (0.03, 0.04, 0.10, (0.509, 0.544, 0.754)),
    ],
)
def test_block_spectrum_table(alpha, beta, gamma, printed):
    spectrum = block_spectrum(2, 2, 0.40, alpha, beta, gamma)
    found = (spectrum.class_[0], spectrum.domain[0], spectrum.interaction[0])
    assert found == pytest.approx(printed, abs=5.1e-4)


@pytest.mark.unchecked  # symbols are no floats
def test_block_spectrum_symbolically():
    a, b, c, d = sympy.symbols("rho alpha beta gamma", positive=True)
    blocks = sympy.Matrix([[a, b, c, d], [b, a, d, c], [c, d, a, b], [d, c, b, a]])
    spectrum = block_spectrum(2, 2, a, b, c, d)
    signs = {"class_": (1, 1, -1, -1), "domain": (1, -1, 1, -1), "interaction": (1, -1, -1, 1)}
    for name, sign in signs.items():
        v = sympy.Matrix(sign)
        residual = blocks * v / (a + b + c + d) - getattr(spectrum, name)[0] * v
        assert sympy.simplify(residual) == sympy.zeros(4, 1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[1.0, 2.0], [1.0, 1.0]], "not symmetric"),
        ([[1.0, -0.5], [-0.5, 1.0]], "negative entry -0.5"),
        ([[1.0, float("nan")], [float("nan"), 1.0]], "finite"),
        ([[1.0, 0.0], [0.0, 0.0]], "vertex 1 is isolated"),
        ([[1.0, 0.0], [0.0, 1.0]], "2 connected components.*allow_disconnected"),
        ([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], "square"),
        ([1.0, 2.0], "2 dimensions"),
    ],
)
def test_bad_weights_say_what_is_wrong(weights, message):
    with pytest.raises(ValueError, match=message):
        PositivePairGraph.from_adjacency(weights)
    if np.ndim(weights) == 2:
        with pytest.raises(ValueError, match=message):
            PositivePairGraph.from_adjacency(sp.csr_array(np.array(weights)))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PositivePairGraph.from_augmentation([[0.5, 0.4], [0.5, 0.5]]), "row 0 does not sum to 1"),
        (lambda: PositivePairGraph.from_augmentation([[0.5, 0.5]], [0.9]), "prior: expected 1 probabilities"),
        (lambda: PositivePairGraph.from_augmentation([[1.0, 0.0], [1.0, 0.0]]), "vertex 1 is isolated"),
        (lambda: PositivePairGraph.from_augmentation(sp.eye_array(3).tocsr()), "3 connected components"),
        (lambda: PositivePairGraph.from_pairs([0, 1], [1], 2), "equally long"),
        (lambda: PositivePairGraph.from_pairs([0, 1], [1, 2], 2), r"\[0, 2\), got 0..2"),
        (lambda: PositivePairGraph.from_pairs([0], [1], 3), "vertex 2 is isolated"),
        (lambda: ring(5).eigenpairs(6), r"1\.\.5.*got 6"),
        (lambda: ring(5).eigenpairs(0), r"1\.\.5.*got 0"),
        (lambda: PositivePairGraph.blocks(2, 2, 4, 1, 1, 1).eigenpairs(2, method="arpack"), "for sparse graphs"),
        (lambda: ring(5).conductance(torch.zeros(5, dtype=torch.bool)), "empty"),
        (lambda: ring(5).cross_edge_weight(torch.zeros(4, dtype=torch.long)), "expected 5 integers"),
        (lambda: ring(5).cross_edge_weight(torch.tensor([0, 1, -1, 0, 0])), "integers from 0"),
    ],
)
def test_errors_teach(build, message):
    with pytest.raises(ValueError, match=message):
        build()
