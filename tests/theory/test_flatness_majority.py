"""Witnesses: automatic differentiation of the loss as it is defined, scipy's optimisers, heads by least squares."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from companion.theory.flatness.majority_heads import draw_examples, few_shot_accuracy, misleading, one_shot_accuracy
from companion.theory.flatness.majority_trace import (
    diagonal,
    flattest,
    flattest_trace,
    hessian,
    least_root_trace,
    root_trace,
    single_neuron,
    single_neuron_trace,
    trace,
)
from companion.theory.flatness.slow_flow import slow_velocity
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

BETA = torch.tensor([0.9, 0.7, -0.4, 0.0], dtype=torch.float64)
STANDARD = torch.tensor([0.9, 0.9, 0.9] + [0.0] * 7, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(language: SoftMajority, hidden: int = 5, seed: int = 0, spread: float = 1.0) -> Point:
    return start(language, hidden, torch.Generator().manual_seed(seed), spread)


def flat(point: Point) -> Tensor:
    return torch.cat([point.a, point.W.flatten(-2)], -1)


def as_point(theta: Tensor, hidden: int) -> Point:
    return Point(theta[:hidden], theta[hidden:].unflatten(0, (hidden, -1)))


def naive_loss(theta: Tensor, hidden: int, beta: Tensor) -> Tensor:
    """Mean over all contexts and both tokens of minus the log of the predicted probability."""
    a, W = as_point(theta, hidden)
    total = torch.zeros((), dtype=theta.dtype)
    for z in product([1.0, -1.0], repeat=len(beta)):
        z = torch.tensor(z, dtype=theta.dtype)
        for token in (1.0, -1.0):
            chance = torch.sigmoid(token * (beta @ z))
            total = total - chance * torch.log(torch.sigmoid(token * (a @ (W @ z))))
    return total / 2 ** len(beta)


# the language and its loss


def test_truth_floor_and_labels_by_definition():
    language = soft_majority(BETA)
    entropies = []
    for z, p, y in zip(language.contexts, language.truth, language.labels, strict=True):
        assert float(p) == pytest.approx(1 / (1 + math.exp(-float(BETA @ z))), rel=1e-12)
        assert float(y) == math.copysign(1, float(BETA @ z))
        entropies.append(-float(p) * math.log(float(p)) - (1 - float(p)) * math.log(1 - float(p)))
    assert language.floor == pytest.approx(np.mean(entropies), rel=1e-12)
    assert len({tuple(z.tolist()) for z in language.contexts}) == 16
    assert soft_majority(torch.tensor([1.0, -1.0])).labels.tolist() == [0, 1, -1, 0]  # ties


@pytest.mark.parametrize("seed", range(3))
def test_loss_is_the_entropy_on_the_manifold_and_more_off_it(seed):
    language, point = soft_majority(BETA), drawn(soft_majority(BETA), seed=seed)
    assert float(excess_loss(point, language)) == pytest.approx(0, abs=1e-14)
    off = Point(point.a, point.W + 0.3 * normal(5, 4, seed=seed + 10))
    naive = float(naive_loss(flat(off), 5, BETA)) - language.floor
    assert float(excess_loss(off, language)) == pytest.approx(naive, rel=1e-10)
    assert naive > 1e-3


def test_loss_reduces_leading_axes():
    language = soft_majority(BETA)
    points = [Point(normal(3, seed=i), normal(3, 4, seed=i + 9)) for i in range(6)]
    stacked = Point(*(torch.stack(x).unflatten(0, (2, 3)) for x in zip(*points, strict=True)))
    one = torch.tensor([float(excess_loss(p, language)) for p in points], dtype=torch.float64)
    assert torch.allclose(excess_loss(stacked, language).flatten(), one, rtol=1e-12)
    on = project(stacked, language)
    for measure in (trace, root_trace, one_shot_accuracy):
        each = [float(measure(Point(on.a[i, j], on.W[i, j]), language)) for i in range(2) for j in range(3)]
        assert torch.allclose(measure(on, language).flatten(), torch.tensor(each, dtype=torch.float64), rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_projection_is_the_nearest_minimiser_with_the_same_output_weights(seed):
    language, a, W = soft_majority(BETA), normal(5, seed=seed), normal(5, 4, seed=seed + 20)
    found = project(Point(a, W), language)
    change = torch.linalg.lstsq(a[None], (BETA - W.T @ a)[None]).solution  # least norm
    assert torch.equal(found.a, a)
    assert torch.allclose(found.W, W + change, atol=1e-12)
    assert torch.allclose(flat(project(found, language)), flat(found), atol=1e-12)
    across = transverse(found)
    assert torch.allclose(a @ across, torch.zeros(4).double(), atol=1e-12)
    assert torch.allclose(found.W, torch.outer(a, BETA) / (a @ a) + across, atol=1e-12)
    assert torch.allclose(transverse(Point(a, W)), across, atol=1e-12)


def test_start_is_a_minimiser_of_the_sizes_it_says():
    language = soft_majority(STANDARD)
    points = [drawn(language, 20, seed=i, spread=2.0) for i in range(200)]
    assert max(float((p.W.T @ p.a - STANDARD).abs().max()) for p in points) < 1e-12
    squares = torch.tensor([float(p.a @ p.a) for p in points])
    across = torch.tensor([float(transverse(p).square().sum()) for p in points])
    assert abs(float(squares.mean()) - 1) < 4 * float(squares.std()) / 200**0.5
    assert abs(float(across.mean()) - 19 * 10 * 4 / 10) < 4 * float(across.std()) / 200**0.5


# curvature


@pytest.mark.parametrize(("hidden", "seed"), [(1, 0), (3, 1), (5, 2)])
def test_hessian_trace_and_diagonal_by_automatic_differentiation(hidden, seed):
    language = soft_majority(BETA)
    point = drawn(language, hidden, seed)
    H = torch.autograd.functional.hessian(lambda theta: naive_loss(theta, hidden, BETA), flat(point))
    assert isinstance(H, Tensor)
    assert torch.allclose(hessian(point, language), H, atol=1e-12)
    assert float(trace(point, language)) == pytest.approx(float(H.trace()), rel=1e-11)
    assert torch.allclose(flat(diagonal(point, language)), H.diagonal(), atol=1e-12)
    assert float(root_trace(point, language)) == pytest.approx(float(H.diagonal().sqrt().sum()), rel=1e-9)
    values = torch.linalg.eigvalsh(H)
    assert int((values > 1e-8 * values[-1]).sum()) == 4  # rank d, codimension of the manifold
    assert float(values[0]) > -1e-12


def test_moments_of_the_standard_toy():
    language = soft_majority(STANDARD)
    assert language.m == pytest.approx(10 * language.S0, rel=1e-12)
    assert language.strength == pytest.approx(float(STANDARD @ language.M @ STANDARD))
    assert flattest_trace(language) == pytest.approx(1.2529, abs=5e-5)
    assert least_root_trace(language) == pytest.approx(2.8150, abs=5e-5)
    assert single_neuron_trace(language) == pytest.approx(2.1791, abs=5e-5)
    assert float(trace(flattest(language, normal(20)), language)) == pytest.approx(1.2529, abs=5e-5)


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.1, 3))
def test_nothing_is_flatter_than_the_flattest(seed, hidden, size):
    language = soft_majority(BETA)
    point = drawn(language, hidden, seed, size)
    least = float(flattest_trace(language))
    assert float(trace(point, language)) >= least - 1e-12
    best = flattest(language, point.a)
    assert torch.allclose(best.W.T @ best.a, BETA, atol=1e-12)
    assert float(trace(best, language)) == pytest.approx(least, rel=1e-12)
    assert float(transverse(best).abs().max()) < 1e-14
    for factor in (0.9, 1.1):  # only this norm of a
        assert float(trace(rescale(best, factor), language)) > least * (1 + 1e-3)


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0, 3), st.floats(-2, 2))
def test_the_slope_along_the_manifold_vanishes_at_flattest_points_only(seed, hidden, spread, log_factor):
    language = soft_majority(BETA)
    point = rescale(drawn(language, hidden, seed, spread), math.exp(log_factor))
    steep = 16 * float(flat(slow_velocity(point, language)).square().sum())  # of the trace along the manifold
    excess = float(trace(point, language)) - flattest_trace(language)
    least = float(torch.linalg.eigvalsh(language.M)[0])
    assert steep >= 4 * least * excess * (1 - 1e-9) - 1e-18
    assert float(flat(slow_velocity(flattest(language, point.a), language)).abs().max()) < 1e-14


def test_the_constant_of_that_bound_cannot_be_raised():
    language = soft_majority(torch.tensor([0.9, 0.0], dtype=torch.float64))  # M = S_0 I
    best = flattest(language, normal(3))
    near = misleading(best, language, 1, 1e-3)
    steep = 16 * float(flat(slow_velocity(near, language)).square().sum())
    excess = float(trace(near, language)) - flattest_trace(language)
    assert steep / (4 * language.S0 * excess) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_an_optimiser_from_elsewhere_finds_the_flattest_value_from_every_start(seed):
    language = soft_majority(BETA)
    W0 = normal(3, 4, seed=seed + 40)

    def measured(theta: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(theta).requires_grad_()
        a, W = as_point(x, 3)
        W = W + torch.outer(a, BETA - W.T @ a) / (a @ a)  # unconstrained variables
        value = (a @ a) * language.m + ((W @ language.M) * W).sum()
        return value.item(), torch.autograd.grad(value, x)[0].numpy()

    theta = torch.cat([normal(3, seed=seed), W0.flatten()]).numpy()
    found = minimize(measured, theta, jac=True, method="BFGS", options={"gtol": 1e-9})
    assert found.fun == pytest.approx(flattest_trace(language), rel=1e-9)


# the root trace


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0, 2), st.floats(-2, 2))
def test_no_root_trace_is_below_the_single_neuron(seed, hidden, spread, log_factor):
    language = soft_majority(BETA)
    point = rescale(drawn(language, hidden, seed, spread), math.exp(log_factor))
    assert float(root_trace(point, language)) >= least_root_trace(language) - 1e-12
    for sign in (1.0, -1.0):
        best = single_neuron(language, hidden, seed % hidden, sign)
        assert torch.allclose(best.W.T @ best.a, BETA, atol=1e-12)
        assert float(best.a[seed % hidden]) * sign > 0
        assert float(root_trace(best, language)) == pytest.approx(least_root_trace(language), rel=1e-12)
        assert float(trace(best, language)) == pytest.approx(single_neuron_trace(language), rel=1e-12)


def test_it_is_a_strict_local_minimum_and_k_equal_neurons_are_not():
    language, least = soft_majority(BETA), least_root_trace(soft_majority(BETA))
    best = single_neuron(language, 4, 1)
    for seed in range(50):
        near = project(
            Point(best.a + 1e-3 * normal(4, seed=seed), best.W + 1e-3 * normal(4, 4, seed=seed + 99)), language
        )
        assert float(root_trace(near, language)) > least
    for k in (2, 3):
        share = best.a[1] / k**0.5
        a = torch.cat([share.expand(k), torch.zeros(4 - k).double()])
        W = torch.outer(a, BETA) / (a @ a)
        here = float(root_trace(Point(a, W), language))
        assert here == pytest.approx(least * k**0.5, rel=1e-12)  # value sqrt(k) of the minimum
        c = torch.tensor([1.01**0.5, 0.99**0.5] + [1.0] * (k - 2) + [0.0] * (4 - k)).double()
        moved = Point(a * c, W * c[:, None])  # one neuron gives to the other what it does
        assert torch.allclose(moved.W.T @ moved.a, BETA)
        assert float(root_trace(moved, language)) < here - 1e-6


def test_the_two_measures_have_different_minima():
    language = soft_majority(STANDARD)
    sparse, flat_one = single_neuron(language, 20), flattest(language, normal(20))
    assert float(trace(sparse, language)) / flattest_trace(language) == pytest.approx(11 / (2 * 10**0.5), rel=1e-12)
    assert float(root_trace(flat_one, language)) > 2 * least_root_trace(language)


@pytest.mark.parametrize("epsilon", [1e-2, 1.0, 1e4])
def test_the_potential_with_epsilon_by_quadrature(epsilon):
    language = soft_majority(BETA)
    point = drawn(language)
    roots = flat(diagonal(point, language)).sqrt()
    s = torch.linspace(0, 1, 20001).double()[:, None] * roots
    naive = torch.trapezoid(s / (s + epsilon), s, dim=0).sum()
    assert float(root_trace(point, language, epsilon)) == pytest.approx(float(naive), rel=1e-5)
    if epsilon == 1e4:
        assert float(naive) == pytest.approx(float(trace(point, language)) / (2 * epsilon), rel=1e-3)


# what it is worth downstream


@pytest.mark.parametrize("n", [1, 3, 12])
def test_ridge_heads_by_least_squares(n):
    language, point = soft_majority(BETA), drawn(soft_majority(BETA))
    examples = draw_examples(language, n, 20, torch.Generator().manual_seed(0))
    found = few_shot_accuracy(point, language, examples)
    for rows, accuracy in zip(examples, found, strict=True):
        features = language.contexts[rows] @ point.W.T
        left = torch.cat([features, (0.1 * n) ** 0.5 * torch.eye(5).double()])
        right = torch.cat([language.labels[rows], torch.zeros(5).double()])
        head = torch.linalg.lstsq(left, right[:, None]).solution[:, 0]
        predicted = (language.contexts @ point.W.T @ head).sign()
        assert float(accuracy) == pytest.approx(float((predicted == language.labels).double().mean()))
    assert 0.3 < float(found.mean()) < 1


def test_one_shot_enumerates_what_few_shot_samples():
    language, point = soft_majority(BETA), drawn(soft_majority(BETA))
    every = few_shot_accuracy(point, language, torch.arange(16)[:, None])
    assert float(one_shot_accuracy(point, language)) == pytest.approx(float(every.mean()), rel=1e-12)
    assert torch.allclose(few_shot_accuracy(point, language, torch.arange(16)[:, None], penalty=7.0), every)


def test_one_label_suffices_where_nothing_is_transverse():
    language = soft_majority(STANDARD)
    best = flattest(language, normal(20))
    assert float(one_shot_accuracy(best, language)) == 1
    for other in (rescale(best, 3.0), single_neuron(language, 20)):  # not flat, but nothing transverse
        assert float(one_shot_accuracy(other, language)) == 1
    examples = draw_examples(language, 4, 30, torch.Generator().manual_seed(0))
    for rows in examples:  # minimum norm instead of ridge
        features = language.contexts[rows] @ best.W.T
        head = torch.linalg.pinv(features, rtol=1e-8) @ language.labels[rows]
        assert torch.equal((language.contexts @ best.W.T @ head).sign(), language.labels)
    assert float(few_shot_accuracy(best, language, examples).min()) == 1


def test_a_misleading_feature_costs_half_of_the_contexts_at_equal_loss():
    language = soft_majority(STANDARD)
    best = flattest(language, normal(20))
    threshold = float((language.contexts @ STANDARD).abs().max() / torch.linalg.vector_norm(best.a))
    bad = misleading(best, language, 9, 1.001 * threshold)
    assert float(excess_loss(bad, language)) == pytest.approx(0, abs=1e-14)
    every = few_shot_accuracy(bad, language, torch.arange(1024)[:, None])
    assert torch.equal(every, torch.full_like(every, 0.5))
    smallest = float((language.contexts @ STANDARD).abs().min() / torch.linalg.vector_norm(best.a))
    assert float(one_shot_accuracy(misleading(best, language, 9, 0.999 * smallest), language)) == 1  # control
    assert float(trace(bad, language)) > flattest_trace(language)


def test_features_without_a_word_to_say_are_worth_a_coin():
    language, blank = soft_majority(STANDARD[:4]), Point(torch.ones(2).double(), torch.zeros(2, 4).double())
    assert float(one_shot_accuracy(blank, language)) == 0.5
    assert few_shot_accuracy(blank, language, torch.tensor([[0, 5, 9]])).tolist() == [0.5]
    other = Point(blank.a, torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 2).double())  # the token without meaning
    assert float(one_shot_accuracy(other, language)) == 0.5


def test_accuracy_sees_the_gram_matrix_only():
    language, point = soft_majority(BETA), drawn(soft_majority(BETA))
    Q = torch.linalg.qr(normal(5, 5, seed=3)).Q
    turned = Point(Q @ point.a, Q @ point.W)
    examples = draw_examples(language, 3, 20, torch.Generator().manual_seed(0))
    assert torch.equal(few_shot_accuracy(turned, language, examples), few_shot_accuracy(point, language, examples))
    assert torch.allclose(trace(turned, language), trace(point, language))


def test_rescaling_keeps_the_function_and_changes_the_trace():
    language, point = soft_majority(BETA), drawn(soft_majority(BETA))
    a2, rest = float(point.a @ point.a) * language.m, float(((point.W @ language.M) * point.W).sum())
    for c in (0.5, -2.0):
        other = rescale(point, c)
        assert float(excess_loss(other, language)) == pytest.approx(0, abs=1e-14)
        assert float(trace(other, language)) == pytest.approx(a2 / c**2 + rest * c**2, rel=1e-12)


# what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soft_majority(torch.zeros(3)), "finite and not zero"),
        (lambda: soft_majority(torch.ones(17)), "1 to 16"),
        (lambda: soft_majority(torch.ones(0)), "1 to 16"),
        (lambda: soft_majority(torch.tensor([1.0, math.nan])), "finite and not zero"),
        (lambda: start(soft_majority(BETA), 0, torch.Generator()), "at least one neuron"),
        (lambda: trace(Point(torch.ones(2), torch.ones(2, 4)), soft_majority(BETA)), "trace: .*pass the point through"),
        (lambda: hessian(Point(torch.ones(2), torch.full((2, 4), math.nan)), soft_majority(BETA)), "difference of nan"),
        (lambda: excess_loss(Point(torch.ones(2), torch.ones(2, 3)), soft_majority(BETA)), r"\(\.\.\., h, 4\)"),
        (
            lambda: excess_loss(Point(torch.ones(3), torch.ones(2, 4)), soft_majority(BETA)),
            r"found \(3,\) and \(2, 4\)",
        ),
        (lambda: project(Point(torch.zeros(2), torch.ones(2, 4)), soft_majority(BETA)), "no minimiser has a = 0"),
        (lambda: flattest(soft_majority(BETA), torch.zeros(3)), "not zero"),
        (lambda: rescale(Point(torch.ones(1), torch.ones(1, 1)), 0.0), "not be zero"),
        (lambda: draw_examples(soft_majority(BETA), 0, 1, torch.Generator()), "n=0"),
        (
            lambda: one_shot_accuracy(Point(torch.ones(1), torch.ones(1, 2)), soft_majority(torch.ones(2))),
            "no majority",
        ),
        (
            lambda: few_shot_accuracy(drawn(soft_majority(BETA)), soft_majority(BETA), torch.ones(1, 1).long(), 0.0),
            "penalty",
        ),
        (lambda: misleading(drawn(soft_majority(BETA), 1), soft_majority(BETA), 3, 1.0), "at least two"),
    ],
)
@pytest.mark.unchecked
def test_errors_say_what_and_where(call, message):
    with pytest.raises(ValueError, match=message):
        call()
