"""Witnesses: graphs built from features, brute force over offsets, symmetry, rates measured on the descent itself."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from companion.theory.equilibrium import (
    collapse_threshold,
    descend,
    growth_rates,
    pmi,
    reachable,
    realisable_graph,
    small_growth_rates,
)
from companion.theory.graph import PositivePairGraph
from companion.theory.message_passing import (
    contrastive_loss,
    contrastive_step,
    equilibrium_gap,
    estimated_graph,
    force,
    mutual_information,
    tangent,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def circle(n: int, radius: float = 0.9) -> Tensor:
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return radius * torch.stack([angles.cos(), angles.sin()], 1)


def orthoplex(k: int, seed: int) -> Tensor:
    """The 2k unit vectors along the axes, each a little off."""
    axes = torch.cat([torch.eye(k), -torch.eye(k)]).double()
    return functional.normalize(axes + 0.1 * normal(2 * k, k, seed=seed), dim=1)


def dense(graph: PositivePairGraph) -> tuple[Tensor, Tensor, Tensor]:
    A, normalized = graph.adjacency, graph.normalized
    assert isinstance(A, Tensor)
    assert isinstance(normalized, Tensor)
    return A, normalized, graph.degree


def normalise(A: Tensor) -> Tensor:
    root = A.sum(1).sqrt()
    return A / torch.outer(root, root)


def graph_with(M: Tensor) -> Tensor:
    """A graph whose pointwise mutual information is M plus a constant."""
    p = torch.linalg.solve(M.exp(), torch.ones(len(M), dtype=M.dtype))
    assert (p > 0).all()
    A = p[:, None] * p * M.exp()
    A = (A + A.T) / 2
    return A / A.sum()


# graphs that features match


@given(st.integers(0, 10**6), st.integers(2, 5), st.floats(0.15, 0.5), st.floats(0.5, 2.0))
def test_realisable_graphs_are_matched_exactly(seed, k, temperature, radius):
    U, temperature = radius * orthoplex(k, seed), temperature * radius**2
    A, p = realisable_graph(U, temperature)
    assert (p > 0).all()
    assert torch.equal(A, A.T)
    assert torch.allclose(A.sum(1), p, rtol=1e-10)
    assert float(p.sum()) == pytest.approx(1, rel=1e-12)
    assert torch.allclose(estimated_graph(U, p, temperature), A, rtol=1e-9)
    assert float(equilibrium_gap(U, A, temperature)) < 1e-15
    assert float(contrastive_loss(U, A, temperature)) == pytest.approx(-mutual_information(A), rel=1e-9)
    root = p.sqrt()[:, None]
    assert float(force(root * U, normalise(A), p, temperature).abs().max()) < 1e-7
    assert float(equilibrium_gap(1.2 * U, A, temperature)) > 1e-6  # control


@pytest.mark.parametrize("temperature", [0.05, 0.5, 4.0])
def test_points_on_a_circle_have_a_law_at_every_temperature(temperature):
    A, p = realisable_graph(circle(9), temperature)
    assert torch.allclose(p, torch.full((9,), 1 / 9, dtype=torch.float64), rtol=1e-6)
    assert torch.allclose(A, A.roll((1, 1), (0, 1)), rtol=1e-9)
    assert torch.allclose(pmi(A) - pmi(A)[0, 0], (circle(9) @ circle(9).T - 0.81) / temperature, atol=1e-9)


def test_rows_of_unequal_length_may_be_matched_too():
    U = torch.tensor([[1.0, 0.0], [0.0, 0.7], [-1.1, -0.9]], dtype=torch.float64)
    A, p = realisable_graph(U, 0.9)
    assert torch.allclose(estimated_graph(U, p, 0.9), A, rtol=1e-12)
    assert p.max() > 1.2 * p.min()
    far = realisable_graph(torch.tensor([[40.0, 0.0], [-40.0, 0.0]]), 1.0)[0]  # e^S overflows
    assert torch.allclose(far, torch.eye(2).double() / 2)


def test_no_law_where_points_crowd_and_the_remedy_works():
    U = functional.normalize(
        torch.tensor([[1.0, 0.0], [1.0, 0.3], [1.0, -0.5], [-1.0, 0.2]], dtype=torch.float64), dim=1
    )
    with pytest.raises(ValueError, match=r"no positive law, p\[0\].*lower the temperature"):
        realisable_graph(U, 1.0)
    assert (realisable_graph(U, 0.02)[1] > 0).all()


# which graphs features can match


@given(st.integers(0, 10**6), st.integers(2, 4), st.floats(0.15, 0.5))
def test_a_matched_graph_is_reachable_from_its_dimension_on(seed, k, temperature):
    U = orthoplex(k, seed)
    A, p = realisable_graph(U, temperature)
    found = reachable(A, k, 1e-7)
    assert found.reachable
    assert not reachable(A, k - 1, 1e-7).reachable
    E, V = torch.linalg.eigh(pmi(A) + found.offset)
    rebuilt = V * (temperature * E.clamp(min=0)).sqrt()
    assert torch.allclose(estimated_graph(rebuilt, p, temperature), A, rtol=1e-6)
    assert found.offset == pytest.approx(float((U @ U.T / temperature - pmi(A)).mean()), abs=1e-6)


def test_a_constant_feature_is_free():
    U = circle(7)
    A, _ = realisable_graph(U, 0.4)
    B, _ = realisable_graph(torch.cat([U, torch.full((7, 1), 0.8).double()], 1), 0.4)
    assert torch.allclose(A, B, rtol=1e-9)
    assert [reachable(A, k).reachable for k in (1, 2, 3)] == [False, True, True]


@given(st.from_type(PositivePairGraph))
def test_no_offset_serves_where_the_answer_is_no_and_one_serves_where_it_is_yes(graph):
    A, n = dense(graph)[0], graph.n
    M, found = pmi(A), reachable(A, graph.n)
    above = [float(torch.linalg.eigvalsh(M + found.offset + c)[0]) for c in (0.0, 0.1, 3.0, 1e3)]
    below = [float(torch.linalg.eigvalsh(M + found.offset - c)[0]) for c in (0.1, 3.0, 1e3)]
    scale = float(found.eigenvalues.abs().max())
    assert torch.allclose(found.eigenvalues, torch.linalg.eigvalsh(M + found.offset).flip(0), atol=1e-9 * scale)
    assert float(found.eigenvalues.abs().min()) < 1e-9 * scale  # the offset is where the rank drops
    assert all(x < 0 for x in below)
    if found.reachable:
        assert min(above) > -1e-8 * scale
        assert reachable(A, n - 1).reachable
    else:
        assert max(above) < 0


def test_a_random_positive_semidefinite_information_is_reached_at_full_dimension_less_one():
    G = normal(5, 5, seed=4)
    M = 0.2 * G @ G.T + torch.diag(torch.linspace(1, 2, 5).double())
    A = graph_with(M)
    assert [reachable(A, k).reachable for k in range(1, 6)] == [False, False, False, True, True]
    found = reachable(A, 5)
    assert torch.linalg.eigvalsh(pmi(A) + found.offset + 1e-3)[0] > 1e-6  # rank 5 just above
    assert torch.linalg.eigvalsh(pmi(A) + found.offset - 1e-3)[0] < -1e-6


def test_a_kernel_that_meets_the_constant_direction_is_out_of_reach_at_every_offset():
    U = circle(5, 1.0)
    free = torch.linalg.svd(torch.cat([U, torch.ones(5, 1).double()], 1), full_matrices=True).U[:, 3]
    tilt = 0.05 * (free + free[:, None])
    M = U @ U.T / 0.3
    found = reachable(graph_with(M + tilt), 5)  # semidefinite off the constant direction, but b is not in range B
    assert not found.reachable
    assert found.eigenvalues[-1] < -1e-4
    assert max(float(torch.linalg.eigvalsh(M + tilt + c)[0]) for c in (-10.0, 0.0, 1.0, 10.0, 1e3)) < 0
    assert reachable(graph_with(M), 2).reachable  # controls: no tilt, or a kernel that is lifted
    assert reachable(graph_with(M + tilt + 0.1 * torch.outer(free, free)), 3).reachable


def test_a_zero_of_the_graph_is_out_of_reach():
    A = torch.tensor([[0.25, 0.25, 0.0], [0.25, 0.0, 0.05], [0.0, 0.05, 0.15]], dtype=torch.float64)
    assert pmi(A)[0, 2] == -math.inf
    found = reachable(A, 3)
    assert not found.reachable
    assert math.isnan(found.offset)
    assert found.eigenvalues.isnan().all()
    one = reachable(torch.ones(1, 1).double(), 1)
    assert one.reachable
    assert one.offset == 0


# who wins


@pytest.mark.parametrize(("temperature", "mu"), [(0.5, 1.0), (0.5, 0.3), (2.0, 0.6)])
def test_modes_grow_at_the_predicted_rates(graph, temperature, mu):
    _, normalized, p = dense(graph)
    values, vectors = (x.flip(-1) for x in torch.linalg.eigh(normalized))
    root, alpha = p.sqrt()[:, None], 0.01
    pole = torch.tensor([[1.0, 0.0]]).double()
    for i in (1, 2, 7):
        v = vectors[:, i : i + 1]
        start = root * pole + 1e-5 * v * torch.tensor([[0.0, 1.0]])
        F = descend(start, normalized, p, temperature, alpha, 50, mu, sphere=True)
        factor = float((v.T @ F)[0, 1] / (v.T @ start)[0, 1])
        rate = float(growth_rates(values, temperature, mu)[i])
        assert factor == pytest.approx((1 + alpha * rate) ** 50, rel=1e-6)
        F = descend(1e-5 * v, normalized, p, temperature, alpha, 50, mu)
        rate = float(small_growth_rates(values, temperature)[i])
        assert float((v.T @ F).squeeze()) == pytest.approx(1e-5 * (1 + alpha * rate) ** 50, rel=1e-6)
    F = descend(1e-5 * root, normalized, p, temperature, alpha, 50, mu)  # the constant mode
    assert torch.allclose(F, 1e-5 * root * (1 + alpha * 2 / temperature * (1 - mu)) ** 50, rtol=1e-6)


def test_collapse_is_stable_below_the_threshold_only():
    A = PositivePairGraph.blocks(2, 1, 1.0, 0.0, 0.2, 0.0, size=4)
    _, normalized, p = dense(A)
    threshold = collapse_threshold(torch.linalg.eigvalsh(normalized))
    assert threshold == pytest.approx(2 * 0.2 / 1.2, rel=1e-12)
    start = p.sqrt()[:, None] * (torch.tensor([[1.0, 0.0, 0.0]]) + 0.3 * normal(8, 3))
    spread = []
    for mu in (0.9 * threshold, 1.1 * threshold):
        U = descend(start, normalized, p, 0.5, 0.1, 2000, mu, sphere=True) / p.sqrt()[:, None]
        spread.append(float(1 - (p @ U).square().sum()))
    assert spread[0] < 1e-6
    assert spread[1] > 1e-2


def test_threshold_takes_the_second_eigenvalue_in_any_order():
    assert collapse_threshold(torch.tensor([0.25, 1.0, 0.5])) == 0.5
    assert collapse_threshold(torch.tensor([1.0, 1.0, 0.5])) == 0
    for one in (0.99999994, 1.0000001):  # in single precision
        assert collapse_threshold(torch.tensor([one, 0.25])) == 0.75
    assert growth_rates(torch.tensor([0.5]), 2.0, 0.5).tolist() == [0.0]  # the rate vanishes there


# descent


@pytest.mark.parametrize("mu", [1.0, 0.4])
def test_descent_repeats_the_step(graph, mu):
    _, normalized, p = dense(graph)
    F = start = p.sqrt()[:, None] * normal(20, 3)
    path = descend(start, normalized, p, 0.7, 0.05, 7, mu, every=3)
    assert path.shape == (3, 20, 3)
    for step in range(1, 8):
        F = contrastive_step(F, normalized, p, 0.7, 0.05, mu)
        if step in (3, 6):
            assert torch.allclose(path[step // 3], F, rtol=1e-12, atol=1e-14)
    assert torch.allclose(path[0], start, rtol=1e-14)
    assert torch.allclose(descend(start, normalized, p, 0.7, 0.05, 7, mu), F, rtol=1e-12, atol=1e-14)
    assert torch.allclose(descend(start, normalized, p, 0.7, 0.05, 0, mu), start, rtol=1e-14)


def test_descent_on_the_sphere_projects_and_renormalises(graph):
    _, normalized, p = dense(graph)
    root = p.sqrt()[:, None]
    start = root * normal(20, 3).requires_grad_()
    path = descend(start, normalized, p, 0.7, 0.05, 2, 0.8, sphere=True, every=1) / root
    assert torch.allclose(path.norm(dim=2), torch.ones(3, 20).double(), rtol=1e-14)
    assert not path.requires_grad
    U = functional.normalize(start.detach() / root, dim=1)
    for state in path:
        assert torch.allclose(state, U, rtol=1e-12, atol=1e-14)
        push = tangent(force(root * U, normalized, p, 0.7, 0.8) / root, U)
        U = functional.normalize(U + 0.05 * push, dim=1)


@pytest.mark.parametrize("sphere", [False, True])
def test_descent_lowers_the_loss_and_reaches_a_matched_graph(sphere):
    U, tau = circle(8, 1.0), 0.5
    A, p = realisable_graph(U, tau)
    root, normalized = p.sqrt()[:, None], normalise(A)
    start = root * functional.normalize(U + 0.5 * normal(8, 2), dim=1)
    path = descend(start, normalized, p, tau, 0.1, 4000, sphere=sphere, every=200) / root
    gaps = torch.stack([equilibrium_gap(state, A, tau) for state in path])
    assert (gaps.diff() <= 1e-15).all()
    assert gaps[0] > 1e-2
    assert gaps[-1] < 1e-9
    assert torch.allclose(estimated_graph(path[-1], p, tau), A, atol=1e-5)


def test_few_features_come_to_rest_before_the_graph_is_matched(graph):
    A, normalized, p = dense(graph)
    gaps = []
    for k in (1, 2, 4):
        F = descend(0.1 * p.sqrt()[:, None] * normal(20, k), normalized, p, 0.5, 0.2, 6000)
        assert float(force(F, normalized, p, 0.5).abs().max()) < 1e-3
        gaps.append(float(equilibrium_gap(F / p.sqrt()[:, None], A, 0.5)))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] > 1e-3


# bad input

A2 = torch.tensor([[0.375, 0.125], [0.125, 0.375]], dtype=torch.float64)
P2 = torch.tensor([0.5, 0.5], dtype=torch.float64)
U2 = torch.eye(2, dtype=torch.float64)
ZERO_ROW = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pmi(2 * A2), "pmi: .*sums to 2"),
        (lambda: realisable_graph(U2, 0.0), "realisable_graph: temperature must be positive"),
        (lambda: realisable_graph(ZERO_ROW[[0, 0]], 1.0), "points coincide.*spread the points"),
        (lambda: realisable_graph(U2[0], 1.0), "realisable_graph: features must be a matrix"),
        (lambda: reachable(A2, 0), "reachable: k is a number of features, at least 1, got 0"),
        (lambda: reachable(A2, 1, 0.0), "reachable: tolerance must be positive"),
        (lambda: growth_rates(P2, 0.0), "growth_rates: temperature must be positive"),
        (lambda: growth_rates(torch.tensor([3.0]), 1.0), r"growth_rates: .*lie in \[-1, 1\], got 3 to 3"),
        (lambda: small_growth_rates(torch.tensor([-3.0]), 1.0), r"small_growth_rates: .*lie in \[-1, 1\]"),
        (lambda: small_growth_rates(torch.ones(0), 1.0), "small_growth_rates: got no eigenvalues"),
        (lambda: collapse_threshold(torch.tensor([1.5, 1.0])), r"collapse_threshold: .*lie in \[-1, 1\]"),
        (lambda: growth_rates(P2, 1.0, -1.0), "growth_rates: mu, the weight"),
        (lambda: small_growth_rates(P2, -1.0), "small_growth_rates: temperature must be positive"),
        (lambda: collapse_threshold(P2), "collapse_threshold: .*the first is 1; got 2, the largest 0.5"),
        (lambda: collapse_threshold(torch.ones(1)), "collapse_threshold: .*got 1, "),
        (lambda: collapse_threshold(torch.ones(0)), "collapse_threshold: .*got 0, the largest nan"),
        (lambda: descend(U2, 2 * A2, P2, 0.0, 0.1, 1), "descend: temperature must be positive"),
        (lambda: descend(U2, 2 * A2, P2, 1.0, 0.0, 1), "descend: alpha must be positive"),
        (lambda: descend(U2, 2 * A2, P2, 1.0, 0.1, -1), "descend: steps must be >= 0 and every >= 1"),
        (lambda: descend(U2, 2 * A2, P2, 1.0, 0.1, 5, every=0), "descend: steps must be >= 0 and every >= 1"),
        (lambda: descend(U2, 2 * A2, P2, 1.0, 0.1, 5, mu=-1), "descend: mu, the weight"),
        (lambda: descend(U2, A2, P2, 1.0, 0.1, 5), r"descend: the graph moves sqrt\(p\)"),
        (lambda: descend(ZERO_ROW, 2 * A2, P2, 1.0, 0.1, 5, sphere=True), "row 1"),
        (lambda: descend(U2, 2 * A2, P2, 1.0, 1e300, 9, mu=0.0), "descend: features diverged within 9 steps; shrink"),
    ],
)
def test_bad_input_is_named_with_its_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
