"""Witnesses: variances from entries of exact matrices, Hessians by automatic differentiation, plain Hutchinson."""

import math

import pytest
import torch
from torch.nn import functional

from companion.theory import curvature
from companion.theory.controlled_trace import controlled_hessian_trace
from companion.theory.flatness import saturation, softmax_net


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(d: int = 3, hidden: int = 4, tokens: int = 3, n: int = 5):
    """Parameters, inputs, probabilities that are not the network's, and unequal weights."""
    generator = source(1)
    params = {
        "W": torch.randn(hidden, d, generator=generator, dtype=torch.float64),
        "U": torch.randn(tokens, hidden, generator=generator, dtype=torch.float64),
    }
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    truth = torch.rand(n, tokens, generator=generator, dtype=torch.float64)
    weights = torch.rand(n, generator=generator, dtype=torch.float64)
    return params, x, truth / truth.sum(1, keepdim=True), weights / weights.sum()


def matrices(params, x, truth, weights) -> tuple[torch.Tensor, torch.Tensor]:
    loss = lambda at: saturation.cross_entropy(softmax_net.logits, at, x, truth, weights)  # noqa: E731
    H = curvature.hessian(loss, params)
    return H, saturation.gauss_newton(softmax_net.logits, params, x, weights)


@pytest.mark.parametrize("probes", ["rademacher", "gaussian"])
def test_it_is_unbiased_with_the_variance_that_the_matrices_give_and_an_honest_error(probes):
    params, x, truth, weights = given = network()
    H, G = matrices(*given)
    if probes == "rademacher":  # the diagonal adds no variance
        h, g = (A - A.diag().diag() for A in (H, G))
    else:
        h, g = H, G
    slope = (h * g).sum() / g.square().sum()
    per_term = 2 * float((h - slope * g).square().sum())
    plain = 2 * float(h.square().sum())
    assert per_term < 0.7 * plain  # the network is one for which there is something to see
    runs, m, generator, options = 400, 60, source(2), {"probes": probes, "weights": weights}
    found = [
        controlled_hessian_trace(softmax_net.logits, params, x, truth, samples=m, generator=generator, **options)
        for _ in range(runs)
    ]
    values = torch.tensor([estimate.value for estimate in found], dtype=torch.float64)
    error = float(values.std())
    assert abs(float(values.mean() - H.trace())) < 3 * error / math.sqrt(runs)
    assert error**2 * m / per_term == pytest.approx(1, abs=0.25)  # 400 runs, and slopes from 30 terms each
    assert error**2 * m < 0.8 * plain  # control: it is not Hutchinson's
    inside = sum(low <= float(H.trace()) <= high for low, high in (estimate.interval() for estimate in found))
    assert 0.92 <= inside / runs <= 0.98
    assert abs(float(values.mean() - G.trace())) > 10 * error / math.sqrt(runs)  # control: the other trace


def test_at_saturation_nothing_is_left_to_chance():
    params, x, _, weights = network()
    truth = softmax_net.logits(params, x[0]).new_tensor(
        [softmax_net.logits(params, row).softmax(0).tolist() for row in x]
    )
    H, _ = matrices(params, x, truth, weights)
    found = controlled_hessian_trace(
        softmax_net.logits, params, x, truth, weights=weights, samples=8, generator=source()
    )
    assert found.value == pytest.approx(float(H.trace()), rel=1e-12)
    assert found.stderr < 1e-12 * found.value
    loss = lambda at: saturation.cross_entropy(softmax_net.logits, at, x, truth, weights)  # noqa: E731
    assert curvature.hessian_trace(loss, params, samples=8, generator=source()).stderr > 0.01 * found.value  # control


def test_labels_are_probabilities_of_one_and_weights_are_equal_by_default():
    params, x, _, _ = network()
    labels = torch.tensor([0, 2, 1, 1, 0])
    logits = softmax_net.logits
    one = controlled_hessian_trace(logits, params, x, labels, samples=12, generator=source())
    two = controlled_hessian_trace(
        logits, params, x, functional.one_hot(labels, 3).double(), weights=torch.full((5,), 0.2), samples=12,
        generator=source(),
    )  # fmt: skip
    assert one.value == pytest.approx(two.value, rel=1e-6)  # 0.2 in float32
    loss = lambda at: functional.cross_entropy(torch.stack([logits(at, row) for row in x]), labels)  # noqa: E731
    truth = float(curvature.hessian(loss, params).trace())
    many = controlled_hessian_trace(logits, params, x, labels, samples=4000, chunk=500, generator=source())
    assert abs(many.value - truth) < 3 * many.stderr
    assert many.stderr < 0.05 * abs(truth)
    other = controlled_hessian_trace(logits, params, x, labels.flip(0), samples=4000, chunk=500, generator=source())
    assert abs(other.value - truth) > 5 * many.stderr  # control: other labels


def test_chunks_change_nothing_and_the_seed_does():
    given = network()
    options = {"weights": given[3], "samples": 13}
    one, three, other = (
        controlled_hessian_trace(softmax_net.logits, *given[:3], chunk=chunk, generator=source(seed), **options)
        for chunk, seed in ((None, 4), (5, 4), (None, 5))
    )
    assert one.value == pytest.approx(three.value, rel=1e-12)
    assert one.stderr == pytest.approx(three.stderr, rel=1e-9)
    assert one.samples == 13
    assert one.value != pytest.approx(other.value, rel=1e-6)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samples": 5}, "needs 6 samples at least"),
        ({"probes": "uniform"}, 'got "uniform"'),
        ({"targets": torch.tensor([0, 1])}, r"5 integers or a \(5, 3\) tensor"),
        ({"targets": torch.tensor([0, 1, 2, 3, 0])}, "must lie in 0 to 2"),
        ({"weights": torch.ones(4)}, r"shape \(5,\), got \(4,\)"),
        ({"chunk": 0}, "chunk is a number at least 1"),
        ({"inputs": torch.zeros(1, 3).double(), "targets": torch.tensor([0])}, "2 or more"),
    ],
)
def test_bad_input_is_told_what_is_wrong(change, says):
    params, x, truth, _ = network()
    given = {"inputs": x, "targets": truth, "samples": 12, **change}
    with pytest.raises(ValueError, match=says):
        controlled_hessian_trace(softmax_net.logits, params, given.pop("inputs"), given.pop("targets"), **given)
