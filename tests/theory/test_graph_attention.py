"""Witnesses: double loops, autograd, another library (torch-geometric), closed forms, and the spectrum of the graph."""

import importlib
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.theory.graph import PositivePairGraph
from companion.theory.graph_attention import (
    attended_graph,
    attention_weights,
    attentive_gradient,
    attentive_loss,
    batch_attention,
    cosines,
    cross_share,
    without_self_loops,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def gamma2(A: torch.Tensor) -> float:
    return float(PositivePairGraph.from_adjacency(A).eigenpairs(2).values[1])


def with_gaps() -> torch.Tensor:
    """A weighted graph with missing edges, missing self-loops and unequal degrees."""
    weights = torch.zeros(6, 6, dtype=torch.float64)
    for i, j, w in [(0, 1, 3), (0, 2, 1), (1, 2, 2), (2, 3, 1), (3, 4, 5), (4, 5, 1), (5, 3, 2), (1, 1, 4), (4, 4, 1)]:
        weights[i, j] = weights[j, i] = w
    return weights / weights.sum()


def naive_weights(s, A, beta):
    p = A.sum(1)
    a = torch.zeros_like(A)
    for x in range(len(A)):
        mean = sum(float(A[x, y] / p[x]) * math.exp(beta * float(s[x, y])) for y in range(len(A)))
        for y in range(len(A)):
            if A[x, y] > 0:
                a[x, y] = math.exp(beta * float(s[x, y])) / mean
    return a


class TestWeights:
    @given(st.from_type(PositivePairGraph), st.floats(0, 6), st.integers(0, 1000))
    def test_softmax_over_the_neighbours_is_the_loop_and_keeps_the_row_sums(self, graph, beta, seed):
        s = cosines(normal(graph.n, 3, seed=seed))
        a = attention_weights(s, graph.adjacency, beta)
        assert relative(a, naive_weights(s, graph.adjacency, beta)) < 1e-12
        assert relative((graph.adjacency * a).sum(1), graph.degree) < 1e-12

    def test_softmax_on_a_graph_with_missing_edges(self):
        A, s = with_gaps(), normal(6, 6)  # any similarity, also one that is not symmetric
        a = attention_weights(s, A, 1.5)
        assert relative(a, naive_weights(s, A, 1.5)) < 1e-13
        assert (a[A == 0] == 0).all()
        assert (a[A > 0] > 0).all()
        assert relative((A * a).sum(1), A.sum(1)) < 1e-13
        assert relative((A * a).sum(0), A.sum(1)) > 0.1  # control: the column sums are not kept

    def test_softmax_is_torch_geometrics(self):
        """With the log probability of the edge as bias; without it only if all edges of a vertex weigh the same."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the import only: torch.jit is deprecated
            softmax = importlib.import_module("torch_geometric.utils").softmax
        A, s, beta = with_gaps(), normal(6, 6), 2.0
        row, column = A.nonzero(as_tuple=True)
        walk = (A / A.sum(1, keepdim=True))[row, column]
        ours = attention_weights(s, A, beta)[row, column] * walk
        assert relative(ours, softmax(beta * s[row, column] + walk.log(), row)) < 1e-13
        assert relative(ours, softmax(beta * s[row, column], row)) > 0.1
        equal = (A > 0).double()
        ours = attention_weights(s, equal, beta)[row, column] / equal.sum(1)[row]
        assert relative(ours, softmax(beta * s[row, column], row)) < 1e-13

    def test_at_beta_zero_every_edge_weighs_one(self):
        for attend_self in (True, False):
            a = attention_weights(normal(6, 6), with_gaps(), 0.0, attend_self=attend_self)
            assert relative(a, (with_gaps() > 0).double()) < 1e-14

    def test_neither_the_scale_of_the_graph_nor_a_constant_in_a_row_matters(self):
        A, s = with_gaps(), normal(6, 6)
        a = attention_weights(s, A, 1.0)
        assert relative(attention_weights(s + normal(6, 1, seed=1), 17 * A, 1.0), a) < 1e-13
        assert relative(attention_weights(s + normal(1, 6, seed=1), A, 1.0), a) > 0.1

    def test_a_large_beta_picks_the_most_similar_neighbour_without_overflow(self):
        A, s = with_gaps(), normal(6, 6)
        left = attended_graph(A, attention_weights(1e4 * s, A, 10.0), symmetric=False)
        best = torch.where(A > 0, s, -torch.inf).argmax(1)
        assert relative(left[torch.arange(6), best], A.sum(1)) < 1e-13
        assert left.count_nonzero() == 6

    def test_cosines_are_the_quotients(self):
        U = normal(5, 3)
        naive = [[float(u @ v / (u.norm() * v.norm())) for v in U] for u in U]
        assert relative(cosines(U), torch.tensor(naive, dtype=torch.float64)) < 1e-14
        assert relative(cosines(U.abs().cumsum(0) * torch.arange(1, 6)[:, None]), cosines(U.abs().cumsum(0))) < 1e-14


class TestGradient:
    @given(st.from_type(PositivePairGraph), st.floats(0.5, 4), st.integers(0, 1000))
    def test_loss_is_the_double_sum_and_its_gradient_a_convolution(self, graph, beta, seed):
        A, U = graph.adjacency, normal(graph.n, 3, seed=seed).requires_grad_()
        a = attention_weights(cosines(U), A, beta)
        loss = attentive_loss(U, A, a)
        naive = ((A * a)[:, :, None] * (U[:, None] - U[None]).square()).sum() / 2
        assert loss.item() == pytest.approx(naive.item(), rel=1e-12)
        (gradient,) = torch.autograd.grad(loss, U, retain_graph=True)
        with torch.no_grad():
            assert relative(attentive_gradient(U, A, a), gradient) < 1e-12

    def test_weights_that_are_not_detached_have_another_gradient(self, graph):
        A, U = graph.adjacency, normal(graph.n, 3).requires_grad_()
        a = attention_weights(cosines(U), A, 2.0)
        losses = [attentive_loss(U, A, a), attentive_loss(U, A, a, detach=False)]
        fixed, free = (torch.autograd.grad(loss, U, retain_graph=True)[0] for loss in losses)
        assert relative(free, fixed) > 0.1
        again = torch.autograd.grad(attentive_loss(U, A, attention_weights(cosines(U), A, 2.0), detach=False), U)[0]
        h = 1e-6 * normal(*U.shape, seed=3)
        with torch.no_grad():
            ends = [attentive_loss(V, A, attention_weights(cosines(V), A, 2.0)) for V in (U + h, U - h)]
        assert float(ends[0] - ends[1]) == pytest.approx(float(2 * (again * h).sum()), rel=1e-5)

    def test_only_the_symmetric_part_carries_messages(self, graph):
        A, U = graph.adjacency, normal(graph.n, 3)
        a = attention_weights(cosines(U), A, 3.0)
        exact, left = attentive_gradient(U, A, a), attended_graph(A, a, symmetric=False)
        one_sided = 2 * (left.sum(1)[:, None] * U - left @ U)
        assert relative(one_sided, exact) > 0.05  # control
        assert relative(attended_graph(A, a), (left + left.T) / 2) < 1e-15
        assert float(attended_graph(A, a).sum()) == pytest.approx(1.0, abs=1e-13)

    def test_at_beta_zero_it_is_the_gradient_of_alignment(self, graph):
        A, U = graph.adjacency, normal(graph.n, 3)
        a = attention_weights(cosines(U), A, 0.0)
        assert relative(attentive_gradient(U, A, a), 2 * (graph.degree[:, None] * U - A @ U)) < 1e-13


def two_classes(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Planted classes of ten views, weak random edges between them; labels -1 and 1."""
    labels = torch.tensor([-1.0] * 10 + [1.0] * 10, dtype=torch.float64)
    weights = normal(20, 20, seed=seed).abs() + 0.2
    weights = (weights + weights.T) * torch.where(labels[:, None] == labels, 1.0, 0.1)
    return weights / weights.sum(), labels


class TestReweighting:
    @given(st.floats(0, 5), st.integers(0, 100))
    def test_cross_share_is_what_attention_leaves_of_each_views_cross_edges(self, beta, seed):
        A, labels = two_classes(seed)
        U = labels[:, None] * torch.tensor([[3.0, 4.0]], dtype=torch.float64)  # cosines 1 and -1: Delta = 2
        across = labels[:, None] != labels
        before = (A * across).sum(1) / A.sum(1)
        left = attended_graph(A, attention_weights(cosines(U), A, beta), symmetric=False)
        after = (left * across).sum(1) / A.sum(1)
        assert torch.allclose(after, cross_share(before, 2.0, beta), rtol=1e-12, atol=0)

    def test_gamma_2_grows_with_beta_on_separated_features(self):
        A, labels = two_classes()
        U = labels[:, None].repeat(1, 2)
        found = [gamma2(attended_graph(A, attention_weights(cosines(U), A, beta))) for beta in (0.0, 1.0, 2.0, 5.0)]
        assert found[0] == pytest.approx(gamma2(A), abs=1e-12)
        assert found == sorted(found)
        assert found[0] < 0.9
        assert found[-1] > 0.999

    def test_features_that_know_nothing_raise_gamma_2_through_self_loops_alone(self):
        """Why a gain in gamma_2 is no evidence for attention before the self-loops are accounted for."""
        A = two_classes()[0] + torch.eye(20, dtype=torch.float64) / 40
        A = A / A.sum()
        gains: dict[str, list[float]] = {"attended": [], "fixed": [], "removed": []}
        bare = without_self_loops(A)
        for seed in range(20):
            s = cosines(normal(20, 20, seed=100 + seed))
            gains["attended"].append(gamma2(attended_graph(A, attention_weights(s, A, 2.0))) - gamma2(A))
            fixed = attention_weights(s, A, 2.0, attend_self=False)
            gains["fixed"].append(gamma2(attended_graph(A, fixed)) - gamma2(A))
            gains["removed"].append(gamma2(attended_graph(bare, attention_weights(s, bare, 2.0))) - gamma2(bare))
        mean = {name: sum(values) / len(values) for name, values in gains.items()}
        assert min(gains["attended"]) > 0
        assert abs(mean["fixed"]) < 0.2 * mean["attended"]
        assert abs(mean["removed"]) < 0.2 * mean["attended"]

    def test_self_loops_that_are_not_attended_keep_their_mass(self):
        A, s = with_gaps(), normal(6, 6)
        a = attention_weights(s, A, 2.0, attend_self=False)
        assert (a.diagonal() == (A.diagonal() > 0)).all()
        assert relative((A * a).sum(1), A.sum(1)) < 1e-13
        others = A - torch.diag(A.diagonal())
        shares, expected = others * a, others * attention_weights(s, others, 2.0)
        assert relative(shares / shares.sum(1, keepdim=True), expected / expected.sum(1, keepdim=True)) < 1e-13
        assert (attention_weights(s, A, 2.0).diagonal()[[1, 4]] - 1).abs().max() > 0.1  # control: attended, they move

    def test_a_vertex_with_nothing_but_its_self_loop_keeps_it(self):
        A = torch.block_diag(with_gaps(), torch.ones(1, 1, dtype=torch.float64))
        for attend_self in (True, False):
            a = attention_weights(normal(7, 7), A, 2.0, attend_self=attend_self)
            assert float(a[6, 6]) == pytest.approx(1.0)
            assert a[6, :6].count_nonzero() == 0
            assert a.isfinite().all()

    def test_without_self_loops_keeps_the_ratios_and_the_total(self):
        A = with_gaps()
        bare = without_self_loops(A)
        assert (bare.diagonal() == 0).all()
        assert float(bare.sum()) == pytest.approx(1.0)
        ratios = bare[A.fill_diagonal_(0) > 0] / A[A > 0]
        assert relative(ratios, ratios[0].expand_as(ratios)) < 1e-14


def naive_batch(h1, h2, beta):
    pairs = [*zip(h1, h2, strict=True), *zip(h2, h1, strict=True)]
    powers = [math.exp(beta * (float(u @ v / (u.norm() * v.norm())) + 1)) for u, v in pairs]
    return torch.tensor(powers, dtype=torch.float64) / sum(powers)


class TestBatch:
    @given(st.integers(1, 9), st.integers(1, 5), st.floats(0, 5), st.integers(0, 1000))
    def test_weights_are_the_loop_over_all_anchors(self, n, k, beta, seed):
        h1, h2 = normal(2, n, k, seed=seed)
        w = batch_attention(h1, h2, beta)
        assert relative(w, naive_batch(h1, h2, beta)) < 1e-12
        assert float(w.sum()) == pytest.approx(1.0, abs=1e-13)
        assert (w[:n] == w[n:]).all()

    def test_beta_is_one_unless_given_and_zero_is_no_attention(self):
        h1, h2 = normal(2, 8, 4)
        assert relative(batch_attention(h1, h2), naive_batch(h1, h2, 1.0)) < 1e-13
        assert relative(batch_attention(h1, h2, 0.0), torch.full((16,), 1 / 16, dtype=torch.float64)) < 1e-15

    def test_weights_carry_no_gradient_and_keep_the_dtype(self):
        h1, h2 = normal(2, 8, 4).float().requires_grad_()
        w = batch_attention(h1, h2)
        assert not w.requires_grad
        assert w.dtype == torch.float32

    def test_after_a_relu_weights_differ_by_at_most_a_factor_e(self):
        h1, h2 = (normal(2, 500, 2) ** 3).relu() + 1e-9
        ratio = float(batch_attention(h1, h2).max() / batch_attention(h1, h2).min())
        assert 0.95 * math.e < ratio <= math.e * (1 + 1e-12)
        h1, h2 = normal(2, 500, 2)
        assert math.e < float(batch_attention(h1, h2).max() / batch_attention(h1, h2).min()) <= math.exp(2)

    def test_lengths_do_not_count(self):
        h1, h2 = normal(2, 4, 3)
        lengths = torch.tensor([[0.1], [2.0], [7.0], [1e3]], dtype=torch.float64)
        assert relative(batch_attention(lengths * h1, h2), batch_attention(h1, h2)) < 1e-14


class TestCrossShare:
    @given(st.floats(1e-6, 1 - 1e-6), st.floats(-3, 3), st.floats(0, 4))
    def test_it_is_the_quotient_and_the_opposite_difference_undoes_it(self, epsilon, delta, beta):
        power = math.exp(-beta * delta)
        found = cross_share(epsilon, delta, beta)
        assert float(found) == pytest.approx(epsilon * power / (1 - epsilon + epsilon * power), rel=1e-9)
        assert float(cross_share(found, -delta, beta)) == pytest.approx(epsilon, rel=1e-8)

    def test_limits_and_broadcasting(self):
        epsilon, beta = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), torch.tensor([[0.0], [1.0], [1e9]])
        found = cross_share(epsilon, 1.0, beta)
        assert found.shape == (3, 3)
        assert found[0].tolist() == epsilon.tolist()
        assert found[:, 0].tolist() == [0.0, 0.0, 0.0]
        assert found[:, 2].tolist() == [1.0, 1.0, 1.0]
        assert found[2, 1] == 0.0
        assert float(found[1, 1]) == pytest.approx(1 / (1 + math.e))


SKEW = torch.tensor([[0.25, 0.5], [0.0, 0.25]])
HALF, ONES = torch.full((2, 2), 0.25), torch.ones(2, 2)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: attention_weights(torch.ones(2, 5), HALF, 1.0), r"similarity \(2, 5\) must be \(2, 2\).*cosines\(U\)"),
        (lambda: attention_weights(ONES, SKEW, 1.0), "attention_weights: adjacency is not symmetric.*5.0e-01; pass"),
        (lambda: attention_weights(ONES, torch.ones(2, 3), 1.0), r"shapes \(2, 3\)"),
        (lambda: attention_weights(ONES, torch.ones(2), 1.0), r"expected an adjacency matrix \(N, N\), got .*\(2,\)"),
        (lambda: attention_weights(ONES, HALF - 0.3, 1.0), "negative entry -0.05"),
        (lambda: attention_weights(ONES, torch.diag(torch.tensor([1.0, 0])), 1.0), "vertex 1 is isolated"),
        (lambda: attention_weights(ONES, math.nan * HALF, 1.0), "not symmetric"),
        (lambda: attention_weights(ONES, HALF, -1.0), "beta must be finite and not negative, got -1"),
        (lambda: attention_weights(ONES, HALF, math.nan), "got nan"),
        (lambda: attention_weights(math.nan * ONES, HALF, 1.0), "not a number"),
        (lambda: attention_weights(math.inf * ONES, HALF, 1.0), "infinite"),
        (lambda: attended_graph(HALF, torch.ones(3, 3)), r"weights \(3, 3\) must have the shape \(2, 2\)"),
        (lambda: attended_graph(HALF, -ONES), "attended_graph: attention weights must not be negative.*-1"),
        (lambda: attended_graph(SKEW, ONES), "attended_graph: adjacency is not symmetric"),
        (lambda: attentive_loss(torch.ones(3, 1), HALF, ONES), r"attentive_loss: features \(3, 1\) do not fit"),
        (lambda: attentive_gradient(torch.ones(2), HALF, ONES), r"attentive_gradient: features \(2,\) do not fit"),
        (lambda: attentive_loss(torch.ones(2, 1), HALF, math.nan * ONES), "smallest is nan"),
        (lambda: without_self_loops(torch.eye(2)), "vertex 0 has only its self-loop"),
        (lambda: cosines(torch.tensor([[1.0], [0.0]])), "row 1 is zero"),
        (lambda: batch_attention(torch.ones(2, 1), torch.tensor([[1.0], [0.0]])), "batch_attention: row 1 is zero"),
        (lambda: batch_attention(torch.ones(2, 3), torch.ones(2, 2)), r"two \(B, k\) views, got \(2, 3\) and \(2, 2\)"),
        (lambda: batch_attention(torch.ones(0, 3), torch.ones(0, 3)), r"\(0, 3\)"),
        (lambda: batch_attention(ONES, ONES, -0.5), "batch_attention: beta .*-0.5"),
        (lambda: cross_share(1.5, 1.0, 1.0), "epsilon is a share.*1.5"),
        (lambda: cross_share(math.nan, 1.0, 1.0), "epsilon.*nan"),
        (lambda: cross_share(0.5, 1.0, -1.0), "beta must not be negative.*-1"),
    ],
)
def test_bad_input_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
