"""Witnesses: eigenvector formula, simulated walks, least-norm heads, and sampled block models with fixed seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.theory.bounds import probe_error
from companion.theory.graph import PositivePairGraph
from companion.theory.spectral import embedding, weighted
from companion.theory.transfer import (
    block_transfer,
    sampled_blocks,
    transfer_bound,
    transfer_scores,
    truncation_bound,
    walk_probabilities,
)

GRAPHS = st.from_type(PositivePairGraph)
ROWS = [  # alpha, beta, gamma (rho = .40), target accuracy with k = 3
    (0.10, 0.15, 0.03, 1.0),
    (0.06, 0.20, 0.03, 1.0),
    (0.04, 0.15, 0.03, 1.0),
    (0.03, 0.15, 0.08, 0.0),
    (0.15, 0.03, 0.08, 1.0),
    (0.03, 0.04, 0.10, 0.0),
]


def sources(n: int) -> torch.Tensor:
    labels = torch.full((n,), -1)
    labels[: n // 2] = torch.arange(n // 2) % 2
    return labels


def least_norm_scores(U: torch.Tensor, source: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Scores of the least-norm head fitted on the source views alone, as the limit of a small ridge."""
    X, Y = U[source], torch.nn.functional.one_hot(labels[source]).double()
    return U @ torch.linalg.solve(X.T @ X + 1e-6 * torch.eye(U.shape[1]), X.T @ Y)


@given(GRAPHS, st.integers(1, 5), st.integers(1, 4))
def test_scores_are_the_walk_cut_off_at_k_eigenvectors(graph, k, t):
    labels = sources(graph.n)
    values, vectors, _ = graph.eigenpairs(k)
    root = graph.degree.sqrt()[:, None]
    S = torch.stack([labels == 0, labels == 1], dim=1).double()
    expected = (vectors * values**t) @ (vectors.T @ (root * S)) / root
    assert torch.allclose(transfer_scores(graph, k, labels, t), expected, atol=1e-11)


@given(GRAPHS, st.integers(1, 4))
def test_full_rank_scores_are_walk_probabilities(graph, t):
    labels = sources(graph.n)
    walk = torch.linalg.matrix_power(graph.adjacency / graph.degree[:, None], t)
    expected = torch.stack([walk[:, labels == c].sum(1) for c in range(2)], dim=1)
    assert torch.allclose(walk_probabilities(graph, labels, t), expected, atol=1e-13)
    assert torch.allclose(transfer_scores(graph, graph.n, labels, t), expected, atol=1e-11)
    everything = walk_probabilities(graph, torch.zeros(graph.n, dtype=torch.long), t)
    assert torch.allclose(everything, torch.ones_like(everything), atol=1e-12)


def test_simulated_walks_end_where_the_scores_say(graph, generator):
    labels, walkers = sources(graph.n), 40_000
    position = torch.zeros(walkers, dtype=torch.long)
    for _ in range(2):
        position = torch.multinomial(graph.adjacency[position], 1, generator=generator)[:, 0]
    for c, q in enumerate(walk_probabilities(graph, labels, 2)[0].tolist()):
        assert abs(float((labels[position] == c).double().mean()) - q) < 4 * (q * (1 - q) / walkers) ** 0.5


@given(GRAPHS, st.integers(1, 5), st.sampled_from([1, 2, 5]))
def test_truncation_never_exceeds_its_bound(graph, k, t):
    labels = sources(graph.n)
    gap = (transfer_scores(graph, k, labels, t) - walk_probabilities(graph, labels, t)).square()
    assert ((graph.degree @ gap) <= truncation_bound(graph, k, labels, t) * (1 + 1e-9) + 1e-20).all()


@given(GRAPHS, st.integers(1, 5), st.sampled_from([1, 2, 3]))
def test_misclassified_weight_never_exceeds_its_bound(graph, k, t):
    # whatever the walk favours is called right, on the views where it is decided by at least the margin
    labels = sources(graph.n)
    walk, scores = walk_probabilities(graph, labels, t), transfer_scores(graph, k, labels, t)
    lead = (walk[:, 0] - walk[:, 1]).abs()
    margin = float(lead.median())
    target = (labels == -1) & (lead >= margin)
    wrong = target & (scores.argmax(1) != walk.argmax(1))
    assert float(graph.degree[wrong].sum()) <= transfer_bound(graph, k, labels, margin, t) + 1e-12


def test_given_features_are_used_and_weights_matter(graph, generator):
    labels = sources(graph.n)
    U = embedding(graph, 4)
    assert torch.equal(transfer_scores(graph, 4, labels, 3, U), transfer_scores(graph, 4, labels, 3))
    rotated = U @ torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
    scores = transfer_scores(graph, 4, labels, 3)
    assert torch.allclose(transfer_scores(graph, 4, labels, 3, rotated), scores, atol=1e-12)
    means = U.T @ torch.nn.functional.one_hot(labels + 1)[:, 1:].double() / graph.n
    careless = U @ torch.linalg.matrix_power(U.T @ U / graph.n, 2) @ means  # control: every view counted alike
    assert not torch.allclose(careless, scores, atol=1e-2)


@pytest.mark.parametrize(("r", "m", "k"), [(2, 2, None), (3, 2, None), (3, 4, None), (3, 2, 6), (2, 3, 6), (4, 3, 12)])
@pytest.mark.parametrize(("alpha", "beta", "gamma"), [(0.10, 0.15, 0.03), (0.05, 0.12, 0.04)])
def test_block_transfer_is_the_least_norm_heads_margin(r, m, k, alpha, beta, gamma):
    graph = PositivePairGraph.blocks(r, m, 0.40, alpha, beta, gamma)
    classes, domains = torch.arange(r * m) // m, torch.arange(r * m) % m
    scores = least_norm_scores(embedding(graph, k or r + m - 1), domains == 0, classes)
    for d in range(1, m):
        block = scores[domains == d]
        spread = block.diag().mean() - (block.sum() - block.diag().sum()) / (r * (r - 1))
        assert spread == pytest.approx(block_transfer(r, m, 0.40, alpha, beta, gamma, k), abs=1e-4)


@pytest.mark.parametrize(("alpha", "beta", "gamma", "accuracy"), ROWS)
def test_target_accuracy_of_sampled_block_models(alpha, beta, gamma, accuracy, generator):
    size, weights = 150, (0.40, alpha, beta, gamma)
    graph = sampled_blocks(2, 2, *weights, size=size, generator=generator)
    classes = torch.arange(4 * size) // (2 * size)
    target = torch.arange(4 * size) // size % 2 == 1
    U = embedding(graph, 3)
    correct = least_norm_scores(U, ~target, classes).argmax(1) == classes
    assert float(correct[~target].double().mean()) > 0.97
    assert float(correct[target].double().mean()) == pytest.approx(accuracy, abs=0.03)
    assert (block_transfer(2, 2, *weights) > 0) == (accuracy > 0.5)
    if beta > gamma and accuracy == 1:  # transfer, and yet the domains stay apart
        assert probe_error(graph, U, target.long()).zero_one == 0
        means = torch.stack([U[target].mean(0), U[~target].mean(0)])
        assert float((means[0] - means[1]).norm() / U.norm(dim=1).mean()) > 0.9


def test_walks_transfer_in_the_block_model_and_flip_below_the_threshold():
    for alpha, right in ((0.10, True), (0.02, False)):
        graph = PositivePairGraph.blocks(2, 2, 0.40, alpha, 0.15, 0.05, size=2)
        classes, target = torch.arange(8) // 4, torch.arange(8) // 2 % 2 == 1
        labels = torch.where(target, -1, classes)
        for t in (1, 2):
            correct = transfer_scores(graph, 4, labels, t).argmax(1) == classes
            assert correct[target].all() == right
            assert correct[target].any() == right


def test_block_transfer_at_other_cuts():
    flipped = block_transfer(2, 2, 0.40, 0.03, 0.15, 0.08, k=4)
    assert -1 < flipped < 0
    assert block_transfer(2, 2, 0.40, 0.10, 0.15, 0.03, k=1) == 0
    assert block_transfer(2, 2, 0.40, 0.10, 0.15, 0.03, k=4) == pytest.approx((0.32 - 0.18) / (0.32 + 0.18))
    assert block_transfer(2, 2, 0.40, 0.05, 0.15, 0.05, k=4) == pytest.approx(0)


def test_sampled_blocks_have_the_asked_densities(generator):
    graph = sampled_blocks(2, 2, 0.40, 0.10, 0.15, 0.03, size=100, generator=generator)
    edges = (graph.adjacency > 0).double()
    assert edges.diagonal().sum() == 0
    for block, p in ((slice(0, 100), 0.40), (slice(100, 200), 0.10), (slice(200, 300), 0.15), (slice(300, 400), 0.03)):
        assert abs(float(edges[:100, block].mean()) - p) < 4 * (2 * p * (1 - p)) ** 0.5 / 100 + 0.01 * p
    assert weighted(graph, torch.ones(400, 1)).square().sum() == pytest.approx(1)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: transfer_scores(g, 2, torch.tensor([0, 1, -1, -1]), 0), "t must be an integer >= 1, got 0"),
        (lambda g: walk_probabilities(g, torch.tensor([0, 1, -1, -1]), 1.5), "got 1.5"),
        (lambda g: transfer_scores(g, 2, torch.tensor([-1, -1, -1, -1])), "expected 4 integers from -1"),
        (lambda g: walk_probabilities(g, torch.tensor([0, 1, -2, 0])), "integers from -1"),
        (lambda g: transfer_bound(g, 2, torch.tensor([0, 1, -1, -1]), 0.0), "margin must be positive"),
        (lambda g: block_transfer(3, 2, 0.4, 0.15, 0.03, 0.08), "k=4 cuts through 2 equal eigenvalues"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call(PositivePairGraph.blocks(2, 2, 0.4, 0.1, 0.15, 0.03))
