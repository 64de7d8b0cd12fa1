"""Witnesses: the losses written as plain sums over pairs, autograd, central differences, a linear encoder's weights."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from torch import Tensor

from companion.theory import graph_attention, losses, message_passing, oversmoothing
from companion.theory.graph import PositivePairGraph
from companion.theory.message_passing import (
    alignment_loss,
    alignment_step,
    batch_gradient,
    batch_graph,
    contrastive_loss,
    contrastive_step,
    equilibrium_gap,
    estimated_graph,
    force,
    kernel_step,
    mutual_information,
    tangent,
    uniformity_loss,
    uniformity_step,
)

SCALES = [(0.3, 1.0), (1.7, 1.0), (0.8, 0.4)]  # temperature, weight of the negatives


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def dense(graph: PositivePairGraph) -> tuple[Tensor, Tensor, Tensor]:
    A, normalized = graph.adjacency, graph.normalized
    assert isinstance(A, Tensor)
    assert isinstance(normalized, Tensor)
    return A, normalized, graph.degree


def pairwise_alignment(U: Tensor, A: Tensor) -> Tensor:
    """Half the mean squared distance of positive pairs."""
    return sum(A[x, y] * (U[x] - U[y]).square().sum() / 2 for x in range(len(U)) for y in range(len(U)))


def pairwise_uniformity(U: Tensor, p: Tensor, temperature: float) -> Tensor:
    """The mean over views of the logarithm of the mean exponential similarity."""
    return sum(
        p[x] * sum(p[y] * torch.exp(U[x] @ U[y] / temperature) for y in range(len(U))).log() for x in range(len(U))
    )


def pairwise_contrastive(U: Tensor, A: Tensor, temperature: float, mu: float) -> Tensor:
    inner = sum(A[x, y] * (U[x] @ U[y]) for x in range(len(U)) for y in range(len(U)))
    return -inner / temperature + mu * pairwise_uniformity(U, A.sum(1), temperature)


def gradient(loss, at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    return torch.autograd.grad(loss(at), at)[0]


def central_differences(loss, at: Tensor, h: float = 1e-5) -> Tensor:
    out = torch.zeros_like(at)
    for i in range(at.numel()):
        step = torch.zeros_like(at).flatten()
        step[i] = h
        step = step.view_as(at)
        out.view(-1)[i] = (loss(at + step) - loss(at - step)) / (2 * h)
    return out


@pytest.fixture
def small() -> PositivePairGraph:
    K = normal(9, 8, seed=3).exp()
    return PositivePairGraph.from_augmentation(
        K / K.sum(1, keepdim=True), torch.linspace(1, 3, 9, dtype=torch.float64) / 18
    )


# losses


@pytest.mark.parametrize(("temperature", "mu"), SCALES)
def test_losses_are_their_sums_over_pairs(small, temperature, mu):
    A, normalized, p = dense(small)
    U = normal(8, 3)
    F = p.sqrt()[:, None] * U
    assert float(alignment_loss(F, normalized)) == pytest.approx(float(pairwise_alignment(U, A)), rel=1e-12)
    found = float(uniformity_loss(U, p, temperature))
    assert found == pytest.approx(float(pairwise_uniformity(U, p, temperature)), rel=1e-12)
    found = float(contrastive_loss(U, A, temperature, mu))
    assert found == pytest.approx(float(pairwise_contrastive(U, A, temperature, mu)), rel=1e-12)


def test_on_the_sphere_both_alignment_losses_differ_by_a_constant(small):
    A, normalized, p = dense(small)
    U = torch.nn.functional.normalize(normal(8, 3), dim=1)
    inner = contrastive_loss(U, A, 0.4, mu=0.0)  # -E f f+ / tau
    assert float(alignment_loss(p.sqrt()[:, None] * U, normalized) / 0.4 - inner) == pytest.approx(1 / 0.4, rel=1e-12)


@pytest.mark.parametrize(("temperature", "mu"), SCALES)
def test_central_differences_of_each_loss_are_the_messages(small, temperature, mu):
    A, normalized, p = dense(small)
    root = p.sqrt()[:, None]
    F = normal(8, 3)
    align = central_differences(lambda F: alignment_loss(F, normalized), F)
    assert relative(F - alignment_step(F, normalized, 0.3), 0.3 * align) < 1e-8
    unif = central_differences(lambda F: uniformity_loss(F / root, p, temperature), F)
    assert relative(F - uniformity_step(F, p, temperature, 0.3), 0.3 * unif) < 1e-7
    both = central_differences(lambda F: contrastive_loss(F / root, A, temperature, mu), F)
    assert relative(force(F, normalized, p, temperature, mu), -both) < 1e-7


# one step


@given(st.from_type(PositivePairGraph), st.integers(1, 6), st.floats(0.05, 20.0), st.floats(0.0, 3.0))
def test_steps_descend_the_pairwise_losses_of_any_graph(graph, k, temperature, mu):
    A, normalized, p = dense(graph)
    root, alpha = p.sqrt()[:, None], 0.37
    F = root * normal(graph.n, k, seed=graph.n)

    def uniformity(F):
        S = (F / root) @ (F / root).T / temperature
        return (p * (p * (S - S.max()).exp()).sum(1).log()).sum() + S.max()

    align = gradient(
        lambda F: (A * torch.cdist(F / root, F / root, compute_mode="donot_use_mm_for_euclid_dist").pow(2)).sum() / 2, F
    )
    assert relative(alignment_step(F, normalized, alpha), F - alpha * align) < 1e-10
    unif = gradient(uniformity, F)
    assert relative(uniformity_step(F, p, temperature, alpha), F - alpha * unif) < 1e-10
    inner = gradient(lambda F: -(A * ((F / root) @ (F / root).T)).sum() / temperature, F)
    step = contrastive_step(F, normalized, p, temperature, alpha, mu)
    assert relative(step, F - alpha * (inner + mu * unif)) < 1e-10
    messages = force(F, normalized, p, temperature, mu)
    assert relative(F + alpha * messages, step) < 1e-12


def test_without_symmetrising_or_weighting_the_steps_are_wrong(graph):
    A, normalized, p = dense(graph)
    root = p.sqrt()[:, None]
    F, temperature = root * 1.5 * normal(20, 4), 0.5
    truth = gradient(lambda F: uniformity_loss(F / root, p, temperature), F)
    estimate = estimated_graph(F / root, p, temperature) / root / root.T
    assert relative(2 / temperature * (estimate + estimate.T) / 2 @ F, truth) < 1e-12
    for wrong in (estimate, estimate.T):
        assert relative(2 / temperature * wrong @ F, truth) > 0.1
    plain = estimated_graph(F / root, p, temperature)  # not normalised by D
    assert relative(2 / temperature * (plain + plain.T) / 2 @ F, truth) > 0.1
    align = gradient(lambda F: alignment_loss(F, normalized), F)
    assert relative(2 * (F - A / p[:, None] @ F), align) > 0.05  # the walk instead of the normalised adjacency


def test_half_a_step_is_the_bare_convolution_and_zero_distance_is_rest(graph):
    _, normalized, p = dense(graph)
    F = normal(20, 3)
    assert relative(alignment_step(F, normalized, 0.5), normalized @ F) < 1e-14
    still = p.sqrt()[:, None] * torch.tensor([[1.0, -2.0, 0.5]])
    assert relative(alignment_step(still, normalized, 0.9), still) < 1e-14


def test_a_frozen_graph_gives_the_same_uniformity_gradient(graph):
    _, _, p = dense(graph)
    U = normal(20, 3)
    frozen = estimated_graph(U, p, 0.7)
    surrogate = gradient(lambda U: (frozen * (U @ U.T)).sum() / 0.7, U)
    assert relative(surrogate, gradient(lambda U: uniformity_loss(U, p, 0.7), U)) < 1e-12


def test_which_variable_is_descended(graph):
    A, _, p = dense(graph)
    U, tau = normal(20, 3), 0.6
    slope = gradient(lambda U: pairwise_contrastive(U, A, tau, 1.0), U)
    assert relative(kernel_step(U, torch.eye(20), A, p, tau, 0.2), U - 0.2 * slope) < 1e-12
    root = p.sqrt()[:, None]
    weighted = contrastive_step(root * U, A / root / root.T, p, tau, 0.2) / root
    assert relative(kernel_step(U, torch.diag(1 / p), A, p, tau, 0.2), weighted) < 1e-12
    assert relative(U - 0.2 * 20 * slope, weighted) > 1e-3  # control: degrees differ
    ring = (torch.eye(6) + torch.eye(6).roll(1, 0) / 2 + torch.eye(6).roll(-1, 0) / 2).double() / 12
    U, p = normal(6, 2), torch.full((6,), 1 / 6, dtype=torch.float64)
    slope = gradient(lambda U: contrastive_loss(U, ring, tau), U)
    step = contrastive_step(U / 6**0.5, 6 * ring, p, tau, 0.2) * 6**0.5
    assert relative(U - 0.2 * 6 * slope, step) < 1e-12  # equal degrees: N times the rate


@pytest.mark.parametrize("alpha", [1e-3, 5.0])
def test_a_linear_encoder_steps_through_its_kernel_however_long_the_step(graph, alpha):
    A, _, p = dense(graph)
    X, W, tau = normal(20, 7, seed=1), normal(7, 3, seed=2) / 3, 0.4
    slope = gradient(lambda W: contrastive_loss(X @ W, A, tau), W)
    found = kernel_step(X @ W, X @ X.T, A, p, tau, alpha)
    assert relative(found - X @ W, -alpha * X @ slope) < 1e-11


def test_autograd_is_alive_and_single_precision_is_raised(small):
    A, normalized, p = dense(small)
    F = normal(8, 3).float().requires_grad_()
    root = p.sqrt()[:, None]
    slope = torch.autograd.grad(contrastive_loss(F / root, A, 0.5, mu=0.7), F)[0]
    found = force(F.detach(), normalized, p, 0.5, mu=0.7)
    assert slope.dtype == torch.float32
    assert found.dtype == torch.float64
    assert relative(slope.double(), -found) < 1e-5
    by_loss, by_gap = (
        gradient(partial(f, A=A, temperature=0.5), normal(8, 3)) for f in (contrastive_loss, equilibrium_gap)
    )
    assert relative(by_gap, by_loss) < 1e-12


# the estimated graph and the gap


@given(st.from_type(PositivePairGraph), st.floats(0.05, 20.0))
def test_estimated_graph_is_a_law_of_pairs_with_the_right_first_marginal(graph, temperature):
    _, _, p = dense(graph)
    U = normal(graph.n, 3, seed=graph.n)
    estimate = estimated_graph(U, p, temperature)
    assert (estimate >= 0).all()
    assert torch.allclose(estimate.sum(1), p, rtol=1e-12)
    for x in (0, graph.n - 1):  # by hand, with an offset that no softmax sees
        row = [math.log(float(p[y])) + float(U[x] @ U[y] - U[x] @ U[x]) / temperature for y in range(graph.n)]
        weights = torch.tensor([math.exp(r - max(row)) for r in row], dtype=torch.float64)
        assert torch.allclose(estimate[x], p[x] * weights / weights.sum(), rtol=1e-10, atol=1e-300)


def test_second_marginal_is_another_and_similarities_may_be_huge(graph):
    A, normalized, p = dense(graph)
    U = normal(20, 3)
    assert ((estimated_graph(U, p, 0.5).sum(0) - p).abs() > 0.1 * p).any()
    huge = 1e4 * U
    assert estimated_graph(huge, p, 0.01).isfinite().all()
    for loss in (uniformity_loss(huge, p, 0.01), contrastive_loss(huge, A, 0.01), equilibrium_gap(huge, A, 0.01)):
        assert loss.isfinite()
    assert force(huge, normalized, p, 0.01).isfinite().all()


@given(st.from_type(PositivePairGraph), st.integers(1, 5), st.floats(0.05, 20.0))
def test_gap_is_the_loss_above_its_bound(graph, k, temperature):
    A, _, p = dense(graph)
    U = normal(graph.n, k, seed=graph.n)
    gap = equilibrium_gap(U, A, temperature)
    loss = float(contrastive_loss(U, A, temperature))
    assert float(gap) == pytest.approx(loss + mutual_information(A), abs=1e-12 * (1 + abs(loss)))
    estimate = estimated_graph(U, p, temperature)
    divergence = (A * (A / estimate).log()).sum()
    assert float(gap) == pytest.approx(float(divergence), rel=1e-9, abs=1e-12)
    assert float(gap) > 0
    assert float(equilibrium_gap(0 * U, A, temperature)) == pytest.approx(mutual_information(A), abs=1e-13)


def test_a_small_gap_keeps_its_digits():
    # eight points on a circle match their own estimated graph; moved by h they miss it by order h^2
    angles = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    U = torch.stack([angles.cos(), angles.sin()], 1)
    A = estimated_graph(U, torch.full((8,), 1 / 8, dtype=torch.float64), 0.5)
    A = (A + A.T) / 2
    ratios = [float(equilibrium_gap(U + h * normal(8, 2), A, 0.5)) / h**2 for h in (1e-4, 1e-6, 1e-8)]
    assert ratios[1] == pytest.approx(ratios[0], rel=1e-3)
    assert ratios[2] == pytest.approx(ratios[1], rel=1e-3)
    assert ratios[0] > 1e-2


def test_pairs_that_never_occur_add_nothing_and_keep_gradients_finite():
    A = torch.block_diag(torch.full((3, 3), 1 / 12), torch.full((2, 2), 3 / 16)).double()
    A[0, 1] = A[1, 0] = 0.0
    A[0, 0] = A[1, 1] = 1 / 6  # sparse rows of one degree
    A = A / A.sum()
    p, U = A.sum(1), normal(5, 2)
    edges = [(x, y) for x in range(5) for y in range(5) if A[x, y] > 0]
    information = sum(float(A[x, y] * (A[x, y] / p[x] / p[y]).log()) for x, y in edges)
    assert mutual_information(A) == pytest.approx(information, rel=1e-12)
    estimate = estimated_graph(U, p, 0.5)
    divergence = sum(float(A[x, y] * (A[x, y] / estimate[x, y]).log()) for x, y in edges)
    assert float(equilibrium_gap(U, A, 0.5)) == pytest.approx(divergence, rel=1e-12)
    slope = gradient(lambda U: equilibrium_gap(U, A, 0.5), U)
    assert slope.isfinite().all()
    assert relative(slope, gradient(lambda U: contrastive_loss(U, A, 0.5), U)) < 1e-12
    assert float(equilibrium_gap(1e3 * U, A, 0.5)) > 0
    assert mutual_information(torch.diag(p)) == pytest.approx(-float((p * p.log()).sum()), rel=1e-12)


def test_collapse_and_zero_are_at_rest(graph):
    A, normalized, p = dense(graph)
    U = torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64).expand(20, 3)
    assert float(force(p.sqrt()[:, None] * U, normalized, p, 0.5).abs().max()) < 1e-14
    assert float(force(p.sqrt()[:, None] * U, normalized, p, 0.5, mu=0.5).abs().max()) > 0.1  # control
    assert not force(0 * U, normalized, p, 0.5).any()
    assert torch.allclose(estimated_graph(U, p, 0.5), torch.outer(p, p), rtol=1e-12)
    assert float(equilibrium_gap(U, A, 0.5)) == pytest.approx(mutual_information(A), rel=1e-12)


# rows on a sphere, one batch


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_tangent_messages_are_the_gradient_through_normalisation(graph, temperature):
    A, normalized, p = dense(graph)
    root = p.sqrt()[:, None]
    Z = normal(20, 3) * torch.linspace(0.2, 4, 20)[:, None]
    unit = torch.nn.functional.normalize(Z, dim=1)
    free = -root * force(root * unit, normalized, p, temperature, 0.8)
    found = tangent(free, Z)
    truth = gradient(lambda Z: contrastive_loss(torch.nn.functional.normalize(Z, dim=1), A, temperature, 0.8), Z)
    assert relative(found, truth) < 1e-11
    assert float((found * Z).sum(1).abs().max()) < 1e-13
    assert relative(tangent(free, unit), found * Z.norm(dim=1, keepdim=True)) < 1e-12
    assert relative(free, truth) > 0.1  # control: radial part kept
    assert float(tangent(unit, Z).abs().max()) < 1e-14  # radial messages leave everything at rest


def naive_nt_xent(Z: Tensor, temperature: float, weights: Tensor) -> Tensor:
    n, total = len(Z), 0
    for i in range(n):
        others = torch.stack([Z[i] @ Z[j] / temperature for j in range(n) if j != i])
        total = total - weights[i] * (Z[i] @ Z[(i + n // 2) % n] / temperature - torch.logsumexp(others, 0))
    return total


@pytest.mark.parametrize(("pairs", "temperature"), [(1, 0.5), (2, 0.2), (5, 0.5), (5, 3.0)])
def test_batch_gradient_is_that_of_nt_xent(pairs, temperature):
    n = 2 * pairs
    Z = torch.nn.functional.normalize(normal(n, 4), dim=1)
    uniform = torch.full((n,), 1 / n, dtype=torch.float64)
    truth = gradient(lambda Z: naive_nt_xent(Z, temperature, uniform), Z)
    assert torch.allclose(batch_gradient(Z, temperature), truth, rtol=1e-11, atol=1e-14)
    raw = Z * torch.linspace(0.5, 2, n)[:, None]
    library = gradient(lambda raw: losses.info_nce(*raw.chunk(2), temperature), raw)
    assert torch.allclose(tangent(batch_gradient(Z, temperature), raw), library, rtol=1e-11, atol=1e-14)
    walk = batch_graph(Z, temperature)
    assert torch.allclose(walk.sum(1), torch.ones(n).double())
    assert not walk.diagonal().any()
    J = torch.eye(n).roll(pairs, 0).double()
    assert torch.allclose(-2 / (temperature * n) * (J - (walk + walk.T) / 2) @ Z, truth, rtol=1e-11, atol=1e-14)
    if pairs > 1:
        skew = relative(-2 / (temperature * n) * (J - walk) @ Z, truth)
        assert skew > (0.05 if temperature < 1 else 0.01)  # control: not symmetrised; a hot softmax is nearly uniform


def test_the_released_loss_reweights_both_graphs():
    Z, h, tau = torch.nn.functional.normalize(normal(12, 4), dim=1), normal(12, 6, seed=5), 0.4
    w = torch.softmax(4 * torch.cosine_similarity(h, h.roll(6, 0)) + 0.3 * h[:, 0], 0)  # not the same for both views
    found = batch_gradient(Z, tau, w)
    assert relative(found, gradient(lambda Z: naive_nt_xent(Z, tau, w), Z)) < 1e-12
    assert relative(batch_gradient(Z, tau), found) > 0.1  # control: weights left out
    J, walk = torch.eye(12).roll(6, 0).double(), batch_graph(Z, tau)
    for wrong in (w[:, None] * J - walk / 12, J / 12 - w[:, None] * walk):  # one graph reweighted alone
        assert relative(-(wrong + wrong.T) @ Z / tau, found) > 0.1

    def attended(Z):
        return naive_nt_xent(Z, tau, torch.softmax(torch.cosine_similarity(Z, Z.roll(6, 0)), 0))

    weights = torch.softmax(torch.cosine_similarity(Z, Z.roll(6, 0)), 0)
    assert relative(batch_gradient(Z, tau, weights), gradient(attended, Z)) > 0.05  # control: weights not detached


# names and bad input


def test_all_names_of_the_chapter_are_here():
    names = message_passing.__all__
    assert len(set(names)) == len(names)
    assert {*oversmoothing.__all__, *graph_attention.__all__} <= set(names)
    assert all(callable(getattr(message_passing, name)) for name in names)


A2 = torch.tensor([[0.375, 0.125], [0.125, 0.375]], dtype=torch.float64)
P2 = torch.tensor([0.5, 0.5], dtype=torch.float64)
SKEW = torch.tensor([[0.3, 0.2], [0.1, 0.4]], dtype=torch.float64)
U2 = torch.eye(2, dtype=torch.float64)


@pytest.mark.unchecked
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_every_function_refuses_a_temperature_that_is_not_positive(temperature):
    calls = {
        "uniformity_loss": lambda: uniformity_loss(U2, P2, temperature),
        "contrastive_loss": lambda: contrastive_loss(U2, A2, temperature),
        "estimated_graph": lambda: estimated_graph(U2, P2, temperature),
        "equilibrium_gap": lambda: equilibrium_gap(U2, A2, temperature),
        "uniformity_step": lambda: uniformity_step(U2, P2, temperature, 0.1),
        "contrastive_step": lambda: contrastive_step(U2, 2 * A2, P2, temperature, 0.1),
        "force": lambda: force(U2, 2 * A2, P2, temperature),
        "kernel_step": lambda: kernel_step(U2, U2, A2, P2, temperature, 0.1),
        "batch_graph": lambda: batch_graph(U2, temperature),
        "batch_gradient": lambda: batch_gradient(U2, temperature),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}: temperature must be positive"):
            call()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alignment_step(U2, 2 * A2, 0.0), "alignment_step: alpha must be positive"),
        (lambda: uniformity_step(U2, P2, 1.0, -0.1), "uniformity_step: alpha must be positive"),
        (lambda: contrastive_step(U2, 2 * A2, P2, 1.0, math.nan), "contrastive_step: alpha must be positive"),
        (lambda: kernel_step(U2, U2, A2, P2, 1.0, 0.0), "kernel_step: alpha must be positive"),
        (lambda: alignment_loss(U2, 2 * SKEW), "alignment_loss: normalized is not symmetric.*random walk"),
        (lambda: alignment_step(U2, 2 * SKEW, 0.5), "alignment_step: normalized is not symmetric"),
        (lambda: alignment_loss(U2, csr_array(A2.numpy())), "alignment_loss: .*dense tensor, got csr_array.*todense"),
        (lambda: force(U2, csr_array(A2.numpy()), P2, 1.0), "force: .*dense tensor"),
        (lambda: contrastive_loss(U2, SKEW, 1.0), "contrastive_loss: adjacency is not symmetric.*A.T"),
        (lambda: contrastive_loss(U2, 2 * A2, 1.0), "contrastive_loss: .*sums to 2; pass A / A.sum"),
        (lambda: contrastive_loss(U2[:1], A2, 1.0), r"contrastive_loss: A has shape \(2, 2\); need \(1, 1\)"),
        (lambda: contrastive_loss(U2, A2, 1.0, mu=-0.1), "contrastive_loss: mu, the weight of the negatives"),
        (lambda: force(U2, 2 * A2, P2, 1.0, mu=math.nan), "force: mu, the weight of the negatives"),
        (lambda: mutual_information(-A2), "mutual_information: .*negative entry"),
        (lambda: mutual_information(torch.diag(torch.tensor([1.0, 0.0]))), "vertex 1 is isolated"),
        (lambda: force(U2, A2, P2, 1.0), r"force: the graph moves sqrt\(p\).*degrees are not p; pass D"),
        (
            lambda: kernel_step(U2, U2, A2, P2 + torch.tensor([0.1, -0.1]), 1.0, 1.0),
            "row sums of A differ from p by up to 1.0e-01; pass",
        ),
        (lambda: kernel_step(U2, U2, SKEW, P2, 1.0, 1.0), r"kernel_step: A is not symmetric.*pass \(A \+ A.T\) / 2"),
        (lambda: kernel_step(U2, SKEW, A2, P2, 1.0, 1.0), "kernel_step: kernel is not symmetric"),
        (lambda: uniformity_loss(U2, torch.ones(2), 1.0), "uniformity_loss: p must be positive and sum to 1"),
        (lambda: estimated_graph(U2, torch.tensor([0.0, 1.0]), 1.0), "estimated_graph: p must be positive"),
        (lambda: estimated_graph(U2, torch.ones(3) / 3, 1.0), "estimated_graph: p has shape"),
        (lambda: estimated_graph(U2[0], P2, 1.0), r"estimated_graph: features must be a matrix \(N, k\)"),
        (lambda: estimated_graph(U2 / 0, P2, 1.0), "estimated_graph: features must be finite"),
        (lambda: tangent(U2, U2[:1]), "tangent: .*one shape"),
        (lambda: tangent(U2, torch.tensor([[1.0, 0.0], [0.0, 0.0]])), "row 1"),
        (lambda: batch_graph(U2[:1], 1.0), "batch_graph: .*at least two rows"),
        (lambda: batch_gradient(normal(3, 2), 1.0), "batch_gradient: .*first views then partners"),
        (lambda: batch_gradient(U2, 1.0, torch.tensor([0.5, 0.6])), "batch_gradient: weights must be 2 numbers"),
        (lambda: batch_gradient(U2, 1.0, torch.tensor([1.5, -0.5])), "smallest -0.5.*divide by their sum"),
    ],
)
def test_bad_input_is_named_with_its_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
