"""Witnesses: sums written out label by label with autograd, a minimiser in closed form, rates measured off it."""

import math
from itertools import pairwise

import mpmath
import pytest
import torch

from companion.theory.curvature import fisher_trace, fisher_traces, hessian, hessian_trace
from companion.theory.flatness import softmax_net
from companion.theory.flatness.saturation import (
    cross_entropy,
    excess,
    floor,
    gauss_newton,
    mismatch,
    noise_covariance,
    traces,
)

LOGITS = softmax_net.logits


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def off(params, distance, seed=9):
    """Parameters at a distance in a random direction."""
    generator = source(seed)
    u = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in params.items()}
    norm = math.sqrt(sum(float(part.square().sum()) for part in u.values()))
    return {name: p + distance / norm * u[name] for name, p in params.items()}


@pytest.fixture(params=[0, 1])
def net(request):
    """A minimiser with 63 parameters, contexts, truth and weights."""
    start, x, p, w = softmax_net.draw(source(request.param))
    return softmax_net.saturated(start, x, p), x, p, w


def loss_hessian(params, x, p, w):
    return hessian(lambda at: cross_entropy(LOGITS, at, x, p, w), params)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def moments(params, x, law, w):
    """Mean and second moment of the gradient, one context and one label after the other."""
    mean = second = 0.0
    for c in range(len(x)):
        for v in range(law.shape[1]):
            alive = {name: part.clone().requires_grad_() for name, part in params.items()}
            value = -LOGITS(alive, x[c]).log_softmax(0)[v]
            g = torch.cat([part.flatten() for part in torch.autograd.grad(value, list(alive.values()))])
            mean = mean + w[c] * law[c, v] * g
            second = second + w[c] * law[c, v] * torch.outer(g, g)
    return mean, second


# at saturation


def test_the_noise_covariance_is_the_hessian_at_saturation(net):
    params, x, p, w = net
    assert sum(part.numel() for part in params.values()) == 63
    H = loss_hessian(*net)
    assert relative(noise_covariance(LOGITS, *net), H) < 1e-12
    assert relative(noise_covariance(LOGITS, *net, centred=False), H) < 1e-12  # the mean vanishes
    assert relative(gauss_newton(LOGITS, params, x, w), H) < 1e-12
    assert int(torch.linalg.matrix_rank(H, rtol=1e-9)) == 6 * (4 - 1)
    assert abs(excess(LOGITS, *net)) < 1e-28
    assert float(cross_entropy(LOGITS, *net)) == pytest.approx(floor(p, w), rel=1e-14)


def test_three_traces_are_one_at_saturation_and_three_elsewhere(net):
    params, x, p, w = net
    at = traces(LOGITS, *net)
    assert at.gauss_newton == pytest.approx(at.hessian, rel=1e-12)
    assert at.observed == pytest.approx(at.hessian, rel=1e-12)
    assert abs(at.logit_curvature) < 1e-12
    away = traces(LOGITS, off(params, 1.0), x, p, w)
    assert away.hessian == pytest.approx(away.gauss_newton + away.logit_curvature, rel=1e-12)
    for one, other in ((away.hessian, away.gauss_newton), (away.gauss_newton, away.observed)):
        assert abs(one / other - 1) > 0.01


def test_every_estimator_finds_the_trace_at_saturation(net):
    params, x, p, w = net
    exact = float(loss_hessian(*net).trace())
    n = 6000
    generator = source(3)
    rows = torch.multinomial(w, n, replacement=True, generator=generator)
    observed = torch.multinomial(p[rows], 1, generator=generator).squeeze(1)
    drawn = fisher_trace(LOGITS, params, x[rows], generator=generator)
    data = fisher_trace(LOGITS, params, x[rows], labels=observed)
    probes = hessian_trace(lambda at: cross_entropy(LOGITS, at, x, p, w), params, samples=500, generator=generator)
    for found in (drawn, data, probes):
        assert abs(found.value - exact) < 3.5 * found.stderr
        assert found.stderr < 0.05 * exact
    assert probes.samples == 500
    wrong = fisher_trace(LOGITS, params, x[rows], labels=torch.zeros(n, dtype=torch.long))  # control: no law's labels
    assert abs(wrong.value - exact) > 5 * wrong.stderr


# off it


def test_matrices_are_sums_over_contexts_and_labels(net):
    minimiser, x, p, w = net
    params = off(minimiser, 1.0)
    mean, second = moments(params, x, p, w)
    assert torch.allclose(noise_covariance(LOGITS, params, x, p, w), second - torch.outer(mean, mean), atol=1e-13)
    assert torch.allclose(noise_covariance(LOGITS, params, x, p, w, centred=False), second, atol=1e-13)
    assert mean.norm() > 1e-3
    q = torch.stack([LOGITS(params, c).softmax(0) for c in x])
    assert torch.allclose(gauss_newton(LOGITS, params, x, w), moments(params, x, q, w)[1], atol=1e-13)
    found = traces(LOGITS, params, x, p, w)
    assert found.observed == pytest.approx(float(second.trace()), rel=1e-12)
    assert found.gauss_newton == pytest.approx(float(gauss_newton(LOGITS, params, x, w).trace()), rel=1e-12)
    assert found.hessian == pytest.approx(float(loss_hessian(params, x, p, w).trace()), rel=1e-12)


def test_the_mismatch_grows_like_the_root_of_the_excess(net):
    params, x, p, w = net
    distances = [0.02 / 4**i for i in range(5)]
    found = [mismatch(LOGITS, off(params, d), x, p, w) for d in distances]
    slopes = [math.log(a.relative / b.relative) / math.log(a.excess / b.excess) for a, b in pairwise(found)]
    assert all(abs(slope - 0.5) < 0.05 for slope in slopes[1:])
    assert slopes[-1] == pytest.approx(0.5, abs=0.005)
    assert found[0].relative > 0.01  # there is something to see
    for a in found:
        assert a.gap <= a.bound * (1 + 1e-9)
        assert a.gap <= a.excess_bound * (1 + 1e-9)
        assert a.bound < 10 * a.gap  # and the bound says something
    assert found[-1].chi_square == pytest.approx(2 * found[-1].excess, rel=1e-2)
    assert mismatch(LOGITS, params, x, p, w).relative < 1e-12


def test_the_bound_holds_far_away_and_uses_every_part(net):
    params, x, p, w = net
    for d in (1.0, 3.0, 6.0):
        at = off(params, d, seed=4)
        found = mismatch(LOGITS, at, x, p, w)
        q = torch.stack([LOGITS(at, c).softmax(0) for c in x])
        chi = float((w[:, None] * (p - q).square() / q).sum())
        assert found.chi_square == pytest.approx(chi, rel=1e-12)
        assert found.gap <= found.bound
        assert found.bound <= found.excess_bound * (1 + 1e-12)
        H, second = loss_hessian(at, x, p, w), moments(at, x, p, w)[1]
        assert found.gap == pytest.approx(float((H - second).norm()), rel=1e-9)
        assert found.relative == pytest.approx(found.gap / float(H.norm()), rel=1e-12)
        ratio = float((p / q).max())
        assert found.excess_bound == pytest.approx(
            found.slope * math.sqrt((2 + 2 / 3 * (ratio - 1)) * found.excess), rel=1e-10
        )


def test_the_constant_of_the_bound_is_a_sum_of_hessians(net):
    minimiser, x, p, w = net
    params = off(minimiser, 0.7)
    total = 0.0
    for c in range(len(x)):
        for v in range(p.shape[1]):
            second = hessian(lambda at, c=c, v=v: LOGITS(at, x[c]).softmax(0)[v], params)
            total += float(w[c] * second.square().sum() / LOGITS(params, x[c]).softmax(0)[v])
    assert mismatch(LOGITS, params, x, p, w).slope == pytest.approx(math.sqrt(total), rel=1e-10)


def test_one_weight_known_by_hand():
    law = lambda params, x: torch.stack([params["a"] * x[0], 0 * x[0]])  # noqa: E731
    a, x, w = torch.tensor(0.7, dtype=torch.float64), torch.tensor([[2.0]]).double(), torch.ones(1).double()
    q = float(torch.sigmoid(2 * a))
    p = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    found = traces(law, {"a": a}, x, p, w)
    assert found.hessian == pytest.approx(4 * q * (1 - q), rel=1e-12)
    assert found.gauss_newton == pytest.approx(4 * q * (1 - q), rel=1e-12)
    assert found.observed == pytest.approx(4 * (0.3 * (1 - q) ** 2 + 0.7 * q**2), rel=1e-12)
    variance = found.observed - (2 * (q - 0.3)) ** 2
    assert variance == pytest.approx(4 * 0.3 * 0.7, rel=1e-12)  # of the label, whatever the model
    assert float(noise_covariance(law, {"a": a}, x, p, w)) == pytest.approx(variance, rel=1e-12)
    loss = -0.3 * math.log(q) - 0.7 * math.log(1 - q)
    assert float(cross_entropy(law, {"a": a}, x, p, w)) == pytest.approx(loss, rel=1e-12)
    entropy = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    assert excess(law, {"a": a}, x, p, w) == pytest.approx(loss - entropy, rel=1e-12)


def test_the_excess_keeps_its_digits_near_zero_and_with_impossible_tokens(net):
    params, x, p, w = net
    values = [excess(LOGITS, off(params, d), x, p, w) for d in (1e-3, 1e-5, 1e-7)]
    assert values[0] / values[1] == pytest.approx(1e4, rel=2e-2)
    assert values[1] / values[2] == pytest.approx(1e4, rel=2e-3)
    far = off(params, 1.0)
    assert excess(LOGITS, far, x, p, w) == pytest.approx(
        float(cross_entropy(LOGITS, far, x, p, w)) - floor(p, w), rel=1e-10
    )
    sure = torch.eye(4).double()[[0, 1, 2, 3, 0, 1]]
    assert floor(sure, w) == 0
    q = torch.stack([LOGITS(params, c).softmax(0) for c in x])
    assert excess(LOGITS, params, x, sure, w) == pytest.approx(-float((w * (sure * q.log()).sum(1)).sum()), rel=1e-12)


def test_the_ratio_of_mismatch_and_root_has_the_limit_of_theory(net):
    params, x, p, w = net
    generator = source(2)
    u = {name: torch.randn(part.shape, generator=generator, dtype=part.dtype) for name, part in params.items()}
    direction = torch.cat([part.flatten() for part in u.values()])
    T = 0.0
    for c in range(len(x)):
        for v in range(p.shape[1]):
            q = lambda at, c=c, v=v: LOGITS(at, x[c]).softmax(0)[v]  # noqa: E731
            slope = sum((torch.func.grad(lambda at, q=q: q(at).log())(params)[k] * u[k]).sum() for k in u)
            T = T + w[c] * slope * hessian(q, params)
    limit = float(T.norm() / (direction @ loss_hessian(*net) @ direction / 2).sqrt())
    errors = []
    for s in (1e-3, 5e-4):
        at = {name: part + s * u[name] for name, part in params.items()}
        found = mismatch(LOGITS, at, x, p, w)
        errors.append(abs(found.gap / found.excess**0.5 / limit - 1))
    assert errors[1] < 0.05
    assert errors[1] < 0.6 * errors[0]


def test_traces_part_by_no_more_than_the_root_of_the_divergence(net):
    minimiser, x, p, w = net
    for distance in (0.01, 0.3, 2.0):
        params = off(minimiser, distance)
        found = traces(LOGITS, params, x, p, w)
        chi = mismatch(LOGITS, params, x, p, w).chi_square
        bounds = [0.0, 0.0]
        for c in range(len(x)):
            q = LOGITS(params, x[c]).softmax(0)
            for v in range(p.shape[1]):
                laplacian = hessian(lambda at, c=c, v=v: LOGITS(at, x[c])[v], params).trace()
                alive = {name: part.clone().requires_grad_() for name, part in params.items()}
                g = torch.autograd.grad(LOGITS(alive, x[c]).log_softmax(0)[v], list(alive.values()))
                bounds[0] += float(w[c] * q[v] * laplacian**2)
                bounds[1] += float(w[c] * q[v]) * sum(float(part.square().sum()) for part in g) ** 2
        assert abs(found.hessian - found.gauss_newton) <= math.sqrt(bounds[0] * chi)
        assert abs(found.observed - found.gauss_newton) <= math.sqrt(bounds[1] * chi)


@pytest.mark.parametrize("step", [1e-4, 1e-5, 1e-6])
def test_a_small_excess_is_that_of_fifty_digits(step):
    law = lambda params, x: torch.stack([params["a"], 0 * params["a"]])  # noqa: E731
    a, one = torch.tensor(math.log(1 / 3), dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    p = torch.tensor([[0.25 + step, 0.75 - step]], dtype=torch.float64)
    with mpmath.workdps(50):
        q = mpmath.mpf(1) / 4
        t = mpmath.mpf(float(p[0, 0]))
        exact = t * mpmath.log(t / q) + (1 - t) * mpmath.log((1 - t) / (1 - q))
        assert excess(law, {"a": a}, one, p, one) == pytest.approx(float(exact), rel=1e-8)


# what the trace measures


def test_the_output_layer_contributes_what_predictions_leave_open(net):
    params, x, _, _ = net
    found = fisher_traces(LOGITS, params, x, labels="all")
    q = torch.stack([LOGITS(params, c).softmax(0) for c in x])
    h = torch.tanh(x @ params["W"].T)
    assert found["U"].value == pytest.approx(float(((1 - q.square().sum(1)) * h.square().sum(1)).mean()), rel=1e-12)
    total = 0.0  # the first layer, delta by the chain rule
    for c in range(len(x)):
        for v in range(q.shape[1]):
            delta = (1 - h[c].square()) * (params["U"].T @ (q[c] - torch.eye(q.shape[1]).double()[v]))
            total += float(q[c, v] * delta.square().sum() * x[c].square().sum()) / len(x)
    assert found["W"].value == pytest.approx(total, rel=1e-12)


def test_rescaling_two_layers_changes_the_trace_and_not_the_function(net):
    x, generator = net[1], source(4)
    A, B = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 5), (4, 6)))
    linear = lambda at, x: at["B"] @ (at["A"] @ x)  # noqa: E731
    before = fisher_traces(linear, {"A": A, "B": B}, x, labels="all")
    balance = (before["A"].value / before["B"].value) ** 0.25
    values = []
    for c in (0.5, 2.0, balance):
        at = {"A": c * A, "B": B / c}
        assert torch.allclose(linear(at, x[0]), B @ (A @ x[0]), atol=1e-12)
        after = fisher_traces(linear, at, x, labels="all")
        assert after["B"].value == pytest.approx(c**2 * before["B"].value, rel=1e-12)
        assert after["A"].value == pytest.approx(before["A"].value / c**2, rel=1e-12)
        values.append(after["A"].value + after["B"].value)
    assert values[2] == pytest.approx(2 * math.sqrt(before["A"].value * before["B"].value), rel=1e-12)
    assert values[2] < min(values[:2])


def test_two_masked_tokens_need_independent_labels():
    """One context, two binary labels with logits a and b; the loss is the mean of both, the gradient (q - y) / 2."""
    covariances = {}
    for name, joint in (("independent", [0.25] * 4), ("equal", [0.5, 0.0, 0.0, 0.5])):
        g = (0.5 - torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])) / 2
        covariances[name] = torch.einsum("y,yi,yj->ij", torch.tensor(joint), g, g)
    H = torch.eye(2) * 0.25 / 2  # of the mean loss, at a = b = 0, where both marginal laws are met
    assert torch.allclose(covariances["independent"], H / 2)
    assert not torch.allclose(covariances["equal"], H / 2)


# the network


def test_every_first_layer_has_a_minimiser_and_it_is_the_nearest():
    start, x, p, w = softmax_net.draw(source(5))
    found = softmax_net.saturated(start, x, p)
    again = softmax_net.saturated(off(start, 1.0), x, p)
    for minimiser in (found, again):
        assert torch.allclose(torch.stack([LOGITS(minimiser, c) for c in x]).softmax(1), p, rtol=1e-10)
    assert torch.equal(found["W"], start["W"])
    move = found["U"] - start["U"]
    hidden = torch.tanh(x @ start["W"].T)
    free = torch.linalg.svd(hidden).Vh[6:]  # outputs that no context sees, and constants
    assert (move @ free.T).abs().max() < 1e-12
    assert move.sum(0).abs().max() < 1e-12
    twice = softmax_net.saturated(found, x, p)
    assert torch.allclose(twice["U"], found["U"], atol=1e-12)
    assert float(w.sum()) == pytest.approx(1)
    assert w.max() > 1.1 * w.min()


START, X, P, W = softmax_net.draw(torch.Generator().manual_seed(0))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cross_entropy(LOGITS, START, X, 2 * P, W), "cross_entropy: truth must be probabilities.*off one by 1"),
        (lambda: traces(LOGITS, START, X, P, W * 0.5), "traces: weights must be probabilities.*divide by the sum"),
        (
            lambda: mismatch(LOGITS, START, X, P - 0.25, W),
            "mismatch: truth must be probabilities, found smallest -0.2",
        ),
        (lambda: noise_covariance(LOGITS, START, X[:5], P, W), r"noise_covariance: .*5 contexts, truth \(6, 4\)"),
        (lambda: excess(LOGITS, START, X, P, W[:5]), r"excess: .*weights \(5,\)"),
        (lambda: floor(P[0], W), r"floor: need n contexts, truth \(n, V\)"),
        (lambda: gauss_newton(LOGITS, START, X, W[:5]), "gauss_newton: need n contexts"),
        (lambda: softmax_net.draw(torch.Generator(), contexts=8), "8 contexts cannot be fitted by 7 hidden units"),
        (lambda: softmax_net.saturated(START, X, P.round()), "a true probability is zero"),
        (lambda: softmax_net.saturated(START, X[[0, 0, 1]], P[:3]), "3 contexts are linearly dependent"),
    ],
)
def test_bad_input_is_named_with_its_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
