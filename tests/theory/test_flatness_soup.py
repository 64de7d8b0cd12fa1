"""Witnesses: order of the remainder by regression, a bound computed from derivatives, linear models, sums by hand."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from companion.theory.curvature import hessian, twice_differentiable
from companion.theory.flatness import softmax_net
from companion.theory.flatness.saturation import cross_entropy, gauss_newton
from companion.theory.flatness.soup import SoupGap, ensemble, second_order, second_order_many, soup


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = normal(11, 5)
LABELS = torch.randint(3, (11,), generator=torch.Generator().manual_seed(1))


def network(p):
    """A 5-8-3 network of tanh with biases."""
    return torch.tanh(X @ p["W"].T + p["b"]) @ p["U"].T + p["c"]


def parameters(seed, scale=1.0):
    shapes = {"W": (8, 5), "b": (8,), "U": (3, 8), "c": (3,)}
    return {name: scale * normal(*shape, seed=10 * seed + i) for i, (name, shape) in enumerate(shapes.items())}


def away(start, distance, seed=2):
    v = parameters(seed)
    return {name: start[name] + distance * v[name] for name in start}


def linear(p):
    return X @ p["U"].T + p["c"]


def loss(z, targets=LABELS):
    return functional.cross_entropy(z, targets)


# averages


def test_averages_are_sums_by_hand():
    models = [parameters(i) for i in range(3)]
    for w in (None, [0.5, 0.2, 0.3]):
        v = w or [1 / 3] * 3
        mixed = soup(models, w)
        for name in models[0]:
            assert torch.allclose(mixed[name], sum(vi * m[name] for vi, m in zip(v, models, strict=True)), atol=1e-15)
        z = sum(vi * network(m) for vi, m in zip(v, models, strict=True))
        assert torch.allclose(ensemble(network, models, w), z, atol=1e-14)
    assert torch.equal(soup(models, [0.0, 1.0, 0.0])["W"], models[1]["W"])


def test_an_ensemble_of_logits_is_the_geometric_mean_of_predictions():
    models = [parameters(i) for i in range(2)]
    product = network(models[0]).softmax(1) ** 0.25 * network(models[1]).softmax(1) ** 0.75
    q = ensemble(network, models, [0.25, 0.75]).softmax(1)
    assert torch.allclose(q, product / product.sum(1, keepdim=True), atol=1e-14)


def test_of_linear_models_soup_and_ensemble_are_one():
    models = [{"U": normal(3, 5, seed=i), "c": normal(3, seed=20 + i)} for i in range(4)]
    for w in (None, [0.4, 0.3, 0.2, 0.1]):
        assert torch.allclose(linear(soup(models, w)), ensemble(linear, models, w), atol=1e-14)
        assert abs(second_order_many(linear, models, LABELS, w).predicted) < 1e-14
    for alpha in (0.0, 0.3, 1.0):
        found = second_order(linear, models[0], models[1], alpha, LABELS)
        assert found.gap == pytest.approx(0, abs=1e-14)
        assert found.predicted == pytest.approx(0, abs=1e-14)
        assert found.variance > 0.1
    curved = [parameters(i) for i in range(4)]  # control
    assert (network(soup(curved)) - ensemble(network, curved)).abs().max() > 0.1


# two models


def test_terms_of_the_prediction_are_derivatives_and_sums_by_hand():
    first, second, alpha = parameters(0), parameters(1), 0.3
    found = second_order(network, first, second, alpha, LABELS)
    mix = lambda a: {k: (1 - a) * first[k] + a * second[k] for k in first}  # noqa: E731
    path = lambda a: loss(network(mix(a)))  # noqa: E731
    a = torch.tensor(alpha, dtype=torch.float64)
    assert found.curvature == pytest.approx(float(torch.autograd.functional.hessian(path, a)), rel=1e-10)
    q, difference = network(mix(alpha)).softmax(1), network(second) - network(first)
    variance = 0.0
    for i in range(len(X)):
        mean = sum(q[i, v] * difference[i, v] for v in range(3))
        variance += float(sum(q[i, v] * (difference[i, v] - mean) ** 2 for v in range(3))) / len(X)
    assert found.variance == pytest.approx(variance, rel=1e-10)
    assert found.predicted == pytest.approx(0.3 * 0.7 / 2 * (variance - found.curvature), rel=1e-10)
    assert found.soup == pytest.approx(float(path(alpha)), rel=1e-12)
    assert found.ensemble == pytest.approx(float(loss(0.7 * network(first) + 0.3 * network(second))), rel=1e-12)
    assert found.gap == found.soup - found.ensemble


@pytest.mark.parametrize(("alpha", "order"), [(0.3, 3), (0.8, 3), (0.5, 4)])
@pytest.mark.parametrize("soft", [False, True])
def test_the_remainder_is_of_third_order_and_of_fourth_in_the_middle(alpha, order, soft):
    start = parameters(0, 0.6)
    targets = normal(11, 3, seed=5).softmax(1) if soft else LABELS
    distances = [0.2 / 2**i for i in range(9)]
    found = [second_order(network, start, away(start, d), alpha, targets) for d in distances]
    remainders = [abs(f.gap - f.predicted) for f in found]
    slopes = [math.log2(a / b) for a, b in pairwise(remainders)]
    assert slopes[-1] == pytest.approx(order, abs=0.15)
    gaps = [math.log2(abs(a.gap / b.gap)) for a, b in pairwise(found)]
    assert gaps[-1] == pytest.approx(2, abs=0.1)  # of the difference itself
    ratios = [abs(f.gap / f.predicted - 1) for f in found]
    assert ratios[-1] < 0.01
    assert ratios[-1] < ratios[0]


def test_the_remainder_is_within_its_bound():
    start = parameters(0, 0.6)
    grid = torch.linspace(0, 1, 41, dtype=torch.float64)
    for distance in (0.8, 0.4, 0.1):
        end = away(start, distance)
        path = lambda a, end=end: network({k: (1 - a) * start[k] + a * end[k] for k in start})  # noqa: E731
        sizes, derivative = [], path
        for _ in range(3):
            derivative = torch.func.jacfwd(derivative)
            with twice_differentiable():
                values = torch.func.vmap(derivative)(grid)  # (places, n, V)
            sizes.append(float((values.amax(2) - values.amin(2)).max()))
        one, two, three = sizes
        for alpha in (0.2, 0.5, 0.7):
            found = second_order(network, start, end, alpha, LABELS)
            s = alpha**2 + (1 - alpha) ** 2
            bound = alpha * (1 - alpha) * (s * (three / 6 + one * two / 8) + alpha * (1 - alpha) * two**2 / 32)
            assert abs(found.gap - found.predicted) <= bound


def test_temperature_enters_the_variance_squared():
    start = parameters(0, 0.6)
    end, tau = away(start, 0.02), 3.0
    hot = second_order(lambda p: tau * network(p), start, end, 0.4, LABELS)
    plain = second_order(network, start, end, 0.4, LABELS)
    assert hot.gap / hot.predicted == pytest.approx(1, abs=0.05)
    q = (tau * network(soup([start, end], [0.6, 0.4]))).softmax(1)
    u = network(end) - network(start)
    spread = float(((q * u.square()).sum(1) - (q * u).sum(1).square()).mean())
    assert hot.variance == pytest.approx(tau**2 * spread, rel=1e-10)
    assert hot.variance != pytest.approx(plain.variance, rel=0.1)


def test_each_term_is_needed():
    start = parameters(0, 0.6)
    found = second_order(network, start, away(start, 0.01), 0.3, LABELS)
    half = 0.3 * 0.7 / 2
    assert found.gap == pytest.approx(found.predicted, rel=0.03)
    for wrong in (-half * found.curvature, half * found.variance, 2 * found.predicted):
        assert found.gap != pytest.approx(wrong, rel=0.2)


# many models


def test_many_models_follow_hessian_minus_gauss_newton():
    start, x, p, _ = softmax_net.draw(torch.Generator().manual_seed(0))
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    logits = lambda at: torch.stack([softmax_net.logits(at, c) for c in x])  # noqa: E731
    shares = [0.5, 0.2, 0.3]
    errors = []
    for distance in (0.04, 0.02, 0.01):
        models = [
            {k: part + distance * normal(*part.shape, seed=7 * i + j) for j, (k, part) in enumerate(start.items())}
            for i in range(3)
        ]
        found = second_order_many(logits, models, p, shares)
        middle = soup(models, shares)
        H = hessian(lambda at: cross_entropy(softmax_net.logits, at, x, p, uniform), middle)
        G = gauss_newton(softmax_net.logits, middle, x, uniform)
        d = torch.stack([torch.cat([(m[k] - middle[k]).flatten() for k in m]) for m in models])
        S = torch.einsum("m,mi,mj->ij", torch.tensor(shares, dtype=torch.float64), d, d)
        assert found.curvature == pytest.approx(float((H * S).sum()), rel=1e-9)
        assert found.variance == pytest.approx(float((G * S).sum()), rel=1e-9)
        assert found.predicted == pytest.approx(float(((G - H) * S).sum() / 2), rel=1e-8)
        errors.append(abs(found.gap - found.predicted))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(3, abs=0.3)
    assert abs(found.gap / found.predicted - 1) < 0.05


def test_both_gain_on_the_average_member_by_their_matrix():
    start = parameters(0, 0.6)
    errors = []
    for distance in (0.02, 0.01, 0.005):
        models = [away(start, distance, seed) for seed in (2, 3, 4)]
        found = second_order_many(network, models, LABELS)
        members = sum(float(loss(network(m))) for m in models) / 3
        errors.append((found.soup - members + found.curvature / 2, found.ensemble - members + found.variance / 2))
        assert found.ensemble < members  # the loss is convex in the logits
    for one, two in zip(*errors[1:], strict=True):
        assert math.log2(abs(one / two)) == pytest.approx(3, abs=0.2)


def test_two_of_many_are_two():
    start = parameters(0, 0.6)
    end = away(start, 1e-3)
    pair = second_order(network, start, end, 0.3, LABELS)
    many = second_order_many(network, [start, end], LABELS, [0.7, 0.3])
    assert (many.soup, many.ensemble) == (pair.soup, pair.ensemble)
    assert many.curvature == pytest.approx(0.21 * pair.curvature, rel=1e-9)
    assert many.variance == pytest.approx(0.21 * pair.variance, rel=1e-2)
    assert many.predicted == pytest.approx(pair.predicted, rel=1e-2)


def test_at_saturation_a_soup_is_its_ensemble_to_second_order():
    start, x, p, _ = softmax_net.draw(torch.Generator().manual_seed(1))
    minimiser = softmax_net.saturated(start, x, p)
    logits = lambda at: torch.stack([softmax_net.logits(at, c) for c in x])  # noqa: E731
    gaps = {}
    for name, centre in (("saturated", minimiser), ("elsewhere", start)):
        for distance in (2e-3, 1e-3):
            step = {k: distance * normal(*part.shape, seed=i) for i, (k, part) in enumerate(centre.items())}
            ends = [{k: centre[k] + sign * step[k] for k in step} for sign in (-1, 1)]
            gaps[name, distance] = abs(second_order(logits, ends[0], ends[1], 0.5, p).gap)
    assert math.log2(gaps["elsewhere", 2e-3] / gaps["elsewhere", 1e-3]) == pytest.approx(2, abs=0.05)
    assert math.log2(gaps["saturated", 2e-3] / gaps["saturated", 1e-3]) == pytest.approx(4, abs=0.3)


ONE = {"x": torch.ones(2)}


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soup([]), "soup: there are no models"),
        (lambda: soup([ONE, {"y": torch.ones(2)}]), "soup: model 1 has the parameters.*'y'"),
        (lambda: soup([ONE, {"x": torch.ones(3)}]), r"model 1 .*\(3,\)"),
        (lambda: soup([ONE, ONE], [0.5, 0.6]), "need 2 weights of sum one, got 2 of sum 1.1"),
        (lambda: soup([ONE, ONE], [0.5, 0.4]), "got 2 of sum 0.9"),
        (lambda: ensemble(linear, [ONE, ONE], [1.0]), "ensemble: need 2 weights of sum one, got 1"),
        (lambda: second_order(linear, ONE, ONE, 1.5, LABELS), r"second_order: alpha .* in \[0, 1\], got 1.5"),
        (lambda: second_order(lambda p: p["x"][None], ONE, ONE, 0.5, torch.zeros(2).long()), "soup: need logits"),
        (lambda: second_order(lambda p: p["x"], ONE, ONE, 0.5, torch.zeros(2).long()), r"got logits \(2,\)"),
        (lambda: second_order_many(lambda p: p["x"][None], [ONE], torch.ones(1)), r"targets \(1,\) of torch.float32"),
    ],
)
def test_bad_input_is_named_with_its_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_gap_is_a_difference():
    assert SoupGap(1.5, 1.0, 0.0, 0.0, 0.4).gap == 0.5
