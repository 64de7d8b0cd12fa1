"""Witnesses: dense solves of three kinds of graphs, the filter as a polynomial of eigenvalues, exact inverses."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.spatial import cKDTree

from companion.theory import solvers
from companion.theory.block_solver import Block, block_eigenpairs, filtered, orthonormal, rate, started, step
from companion.theory.graph import PositivePairGraph
from companion.theory.multigrid import Multigrid, narrow, nearby_order, threaded

KINDS = ("blocks", "neighbours", "views")


def example(kind: str, n: int = 800) -> PositivePairGraph:
    rng = np.random.default_rng(0)
    if kind == "blocks":
        i = rng.integers(0, n, 20 * n)
        j = np.where(rng.random(len(i)) < 0.8, i % 8 + 8 * rng.integers(0, n // 8, len(i)), rng.integers(0, n, len(i)))
        return PositivePairGraph.from_pairs(i, j, n)
    if kind == "neighbours":
        near = cKDTree(points := rng.random((n, 2))).query(points, 9)[1][:, 1:]
        return PositivePairGraph.from_pairs(np.repeat(np.arange(n), 8), near.ravel(), n)
    views = np.minimum((n ** rng.random((2 * n, 4))).astype(np.int64), n - 1)
    views[:, 0] = np.arange(2 * n) % n
    law = sp.coo_array((np.full(views.size, 0.25), (np.repeat(np.arange(2 * n), 4), views.ravel())), shape=(2 * n, n))
    return PositivePairGraph.from_augmentation(sp.csr_array(law))


def sine(V: torch.Tensor, W: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(W - V @ (V.T @ W), 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["auto", "lobpcg"])
def test_blocks_of_vectors_find_what_a_dense_solve_finds(kind, method):
    graph, k = example(kind), 9
    values = graph.eigenpairs(k + 1, method="dense").values
    k -= int(values[k - 1] - values[k] < 1e-3)  # compare subspaces at a gap
    dense, found = graph.eigenpairs(k, method="dense"), graph.eigenpairs(k, method=method)
    assert found.residuals.max() < 1e-10
    assert torch.allclose(found.values, dense.values, rtol=0, atol=1e-13)
    assert sine(dense.vectors, found.vectors) < 1e-7
    assert torch.allclose(found.vectors.T @ found.vectors, torch.eye(k, dtype=torch.float64), atol=1e-12)
    assert sine(dense.vectors, graph.eigenpairs(k + 1, method=method).vectors) > 0.9  # control: one too many
    again = example(kind).eigenpairs(k, method=method)
    assert torch.equal(again.vectors, found.vectors)


def test_wide_gaps_need_no_multigrid_and_tiny_gaps_get_it(monkeypatch):
    used = []
    build = solvers.Multigrid
    monkeypatch.setattr(solvers, "Multigrid", lambda *given: used.append(1) or build(*given))
    example("blocks").eigenpairs(8)
    assert not used
    n = 2000
    line = PositivePairGraph.from_pairs(np.arange(n - 1), np.arange(1, n), n)
    closed = torch.cos(torch.pi * torch.arange(5, dtype=torch.float64) / (n - 1))
    assert torch.allclose(line.eigenpairs(5).values, closed, rtol=0, atol=1e-13)
    assert used


def test_nearly_equal_eigenvalues_are_told_apart():
    # forty clusters of twenty, all alike, linked in a ring of weight 1e-4: forty eigenvalues within 1e-5 of one
    n = 800
    whole = sp.block_diag([np.ones((20, 20))] * 40).tolil()
    for c in range(40):
        whole[20 * c, (20 * c + 21) % n] = whole[(20 * c + 21) % n, 20 * c] = 1e-3
    graph = PositivePairGraph.from_adjacency(sp.csr_array(whole))
    dense, found = graph.eigenpairs(40, method="dense"), graph.eigenpairs(40)
    assert 1 - dense.values[-1] < 1e-4
    assert torch.allclose(found.values, dense.values, rtol=0, atol=1e-13)
    assert sine(dense.vectors, found.vectors) < 1e-8


def test_a_graph_of_low_rank_and_a_bipartite_one():
    rng = np.random.default_rng(2)
    few = rng.random((12, 600)) + 0.1
    law = sp.csr_array(few / few.sum(1, keepdims=True))  # rank 12, more eigenpairs asked for
    values = PositivePairGraph.from_augmentation(law).eigenpairs(20).values
    assert values[0] == pytest.approx(1, abs=1e-12)
    assert values[11] > 1e-5
    assert values[12:].abs().max() < 1e-10
    i, j = np.divmod(np.arange(300 * 400), 400)
    keep = rng.random(len(i)) < 0.05
    graph = PositivePairGraph.from_pairs(i[keep], 300 + j[keep], 700)
    assert torch.allclose(graph.eigenpairs(6).values, graph.eigenpairs(6, method="dense").values, atol=1e-12)


def test_an_unreachable_tolerance_is_an_error(monkeypatch):
    monkeypatch.setattr(solvers, "MEDIUM", 0)
    with pytest.raises(np.linalg.LinAlgError, match=r"above tolerance=1\.0e-18"):
        example("blocks").eigenpairs(4, tolerance=1e-18)


@pytest.mark.parametrize("degree", [1, 2, 7])
def test_the_filter_is_the_polynomial_that_it_says(degree):
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64, generator=generator))[0]
    spectrum = torch.linspace(-1, 1, 30, dtype=torch.float64)
    A = Q * spectrum @ Q.T
    X, cut, low = torch.randn(30, 3, dtype=torch.float64, generator=generator), 0.3, -1.0
    theta = torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64)

    def chebyshev(x: torch.Tensor) -> torch.Tensor:
        t = (2 * x - cut - low) / (cut - low)
        return torch.special.chebyshev_polynomial_t(t, degree)

    naive = Q * chebyshev(spectrum) @ Q.T @ X / chebyshev(theta) - X
    found = filtered(lambda V: A @ V, A @ X - X * theta, theta, degree, cut, low)
    assert torch.allclose(found, naive, rtol=1e-11, atol=1e-12)
    assert rate(0.9, cut, low) * 400 == pytest.approx(
        float(torch.special.chebyshev_polynomial_t(torch.tensor((1.8 + 0.7) / 1.3).double(), 400).log()) + np.log(2)
    )


def test_a_step_never_loses_and_keeps_its_invariants():
    graph = example("neighbours")
    A = torch.from_numpy(graph.normalized.toarray())
    X = torch.randn(800, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block, everything = started(lambda V: A @ V, X, X), torch.ones(6, dtype=torch.bool)
    for _ in range(4):
        before = block.values
        block = step(lambda V: A @ V, block, block.residual(everything, block.sizes), block.values < 0.999)
        assert (block.values >= before - 1e-13).all()
        eye = torch.eye(block.basis.shape[1], dtype=torch.float64)
        assert torch.allclose(block.basis.T @ block.basis, eye, atol=1e-12)
        assert torch.allclose(block.image, A @ block.basis, atol=1e-12)
        assert torch.allclose(block.gram, block.basis.T @ block.image, atol=1e-12)
    assert isinstance(block, Block)


def test_dependent_and_zero_columns_are_dropped():
    W = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    Q = torch.linalg.qr(W[:, :1])[0]
    found = orthonormal(torch.cat([W, W[:, 1:] * 7, torch.zeros(50, 1)], 1), Q)
    assert found.shape == (50, 2)
    assert (Q.T @ found).abs().max() < 1e-14


def test_the_cycle_is_symmetric_and_near_to_the_inverse():
    graph = example("neighbours")
    cycle = Multigrid(narrow(graph.normalized), graph.degree.sqrt())
    assert len(cycle.levels) >= 1
    found = cycle(torch.eye(800)).double()
    assert (found - found.T).abs().max() < 1e-4 * found.abs().max()
    L = torch.eye(800, dtype=torch.float64) - torch.from_numpy(graph.normalized.toarray())
    root = graph.degree.sqrt() / graph.degree.sum().sqrt()
    centred = torch.eye(800, dtype=torch.float64) - torch.outer(root, root)
    error = torch.linalg.eigvals(centred @ (torch.eye(800, dtype=torch.float64) - found @ L)).abs().max()
    assert error < 0.7  # one cycle leaves at most this share; without it (0) all of the slowest remains
    assert torch.linalg.eigvals(centred @ (torch.eye(800, dtype=torch.float64) - L)).abs().max() > 0.98  # control


def test_neighbours_are_brought_together_where_that_helps():
    rng = np.random.default_rng(0)
    place = rng.permutation(3000)
    line = PositivePairGraph.from_pairs(place[:-1], place[1:], 3000)
    order = nearby_order(line.normalized)
    assert order is not None
    mixed = line.normalized[order][:, order].tocoo()
    assert np.abs(mixed.row - mixed.col).max() <= 3
    i, j = rng.integers(0, 500, (2, 20_000))
    assert nearby_order(PositivePairGraph.from_pairs(i, j, 500).normalized) is None


def test_torchs_copy_multiplies_like_scipys():
    A = example("views").factor
    X = np.random.default_rng(0).standard_normal((A.shape[1], 5))
    assert np.allclose(threaded(A, torch.float64) @ torch.from_numpy(X), A @ X, atol=1e-14)


def test_the_solver_reports_rather_than_hides_what_it_did_not_reach(monkeypatch):
    monkeypatch.setattr("companion.theory.block_solver.STEPS", 1)
    A = torch.from_numpy(example("neighbours").normalized.toarray())
    rough = A.float()
    first = example("neighbours").degree.sqrt()
    values, vectors = block_eigenpairs(lambda V: A @ V, lambda V: rough @ V, first, 4, 1e-10, -1.0, lambda: None)
    assert torch.linalg.vector_norm(A @ vectors - vectors * values, dim=0).max() > 1e-4
