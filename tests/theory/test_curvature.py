"""Witnesses: torch.autograd.functional.hessian, curvlinops, matrices and variances known by hand, loops of autograd."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from companion.theory import curvature
from companion.theory.curvature import (
    TraceEstimate,
    fisher_trace,
    fisher_traces,
    hessian,
    hessian_trace,
    hvp,
    of_module,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of the import only: torch.jit is deprecated
    from curvlinops import FisherMCLinearOperator, GGNLinearOperator, HessianLinearOperator


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(A: torch.Tensor):
    """Half of x^T A x, in two parameters of odd shapes; the Hessian is A."""
    n = len(A)

    def loss(p):
        x = torch.cat([p["head"].flatten(), p["rest"].flatten()])
        return x @ A @ x / 2

    return loss, {"head": torch.ones(2, 2).double(), "rest": torch.ones(n - 4).double()}


class Attends(nn.Module):
    """One block of attention by torch's fused function, a LayerNorm, and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(7, 8), nn.Linear(8, 24)
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 5)
        source = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(generator=source).mul_(0.4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.embed(tokens)
        q, k, v = self.qkv(h).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        h = h + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(self.norm(h)[:, 0])


@pytest.fixture
def attention():
    """Network, its parameters and its loss on nine sentences."""
    tokens = torch.randint(7, (9, 4), generator=source(2))
    labels = torch.randint(5, (9,), generator=source(3))
    model = Attends().double().eval()
    params, call = of_module(model)
    return model, params, lambda p: functional.cross_entropy(call(p, tokens), labels), call, tokens, labels


@pytest.fixture
def perceptron():
    """A network that curvlinops knows, 59 parameters, and its data."""
    model = nn.Sequential(
        nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3, bias=False)
    )
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(gaussian(*p.shape, seed=i).float() * 0.8)
    model = model.double().eval()
    return model, gaussian(11, 4, seed=7), torch.randint(3, (11,), generator=source(8))


def flatten(v):
    return torch.cat([part.flatten() for part in v.values()])


def functional_hessian(loss, params):
    shapes = [p.shape for p in params.values()]

    def flat(theta):
        parts = theta.split([s.numel() for s in shapes])
        return loss({name: part.reshape(s) for name, part, s in zip(params, parts, shapes, strict=True)})

    return torch.autograd.functional.hessian(flat, flatten(params))


# products


def test_products_and_rows_are_those_of_a_matrix_known_by_hand():
    A = gaussian(9, 9)
    A = A + A.T
    loss, params = quadratic(A)
    v = {"head": gaussian(2, 2, seed=1), "rest": gaussian(5, seed=2)}
    assert torch.allclose(flatten(hvp(loss, params, v)), A @ flatten(v), rtol=1e-12)
    assert torch.allclose(hessian(loss, params), A, rtol=1e-12, atol=1e-14)
    assert torch.equal(hessian(loss, params, chunk=4), hessian(loss, params))
    shuffled = {"rest": v["rest"], "head": v["head"]}
    assert torch.allclose(flatten(hvp(loss, params, shuffled)), A @ flatten(v), rtol=1e-12)  # by name


def test_products_are_exact_through_attention(attention):
    _, params, loss, *_ = attention
    with sdpa_kernel(SDPBackend.MATH):
        H = functional_hessian(loss, params)
    found = hessian(loss, params, chunk=50)
    assert torch.allclose(found, H, atol=1e-12)
    assert torch.equal(found, found.T)
    v = {name: gaussian(*p.shape, seed=i) for i, (name, p) in enumerate(params.items())}
    assert torch.allclose(flatten(hvp(loss, params, v)), H @ flatten(v), atol=1e-12)
    assert H.norm() > 0.1


def test_products_are_those_of_finite_differences(attention):
    _, params, loss, *_ = attention
    v = {name: gaussian(*p.shape, seed=i) for i, (name, p) in enumerate(params.items())}
    errors = []
    for step in (2e-2, 1e-2):
        ends = []
        for sign in (1, -1):
            at = {name: (p + sign * step * v[name]).requires_grad_() for name, p in params.items()}
            ends.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss(at), list(at.values()))]))
        errors.append(float(((ends[0] - ends[1]) / (2 * step) - flatten(hvp(loss, params, v))).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)  # central differences are of second order


def test_results_carry_no_graph_and_leave_none_behind(attention):
    model, _, _, call, tokens, labels = attention
    alive = dict(model.named_parameters())
    v = {name: torch.ones_like(p) for name, p in alive.items()}
    result = hvp(lambda p: functional.cross_entropy(call(p, tokens), labels), alive, v)
    assert not any(part.requires_grad for part in result.values())
    assert all(p.grad is None for p in alive.values())
    A = torch.eye(5).double().requires_grad_()
    loss, params = quadratic(A)
    assert not hessian(loss, params).requires_grad


# traces of the Hessian


def test_rademacher_probes_are_exact_on_a_diagonal_and_gaussian_ones_are_not():
    loss, params = quadratic(torch.diag(torch.arange(1.0, 8)).double())
    signs = hessian_trace(loss, params, samples=7, generator=source())
    assert signs.value == pytest.approx(28, rel=1e-14)
    assert signs.stderr < 1e-13
    normal = hessian_trace(loss, params, samples=7, probes="gaussian", generator=source())
    assert normal.stderr > 0.5


@pytest.mark.parametrize(("probes", "variance"), [("rademacher", "off"), ("gaussian", "all")])
def test_one_probe_has_the_mean_and_variance_of_theory(probes, variance):
    A = gaussian(8, 8)
    A = A + A.T
    loss, params = quadratic(A)
    n = 20_000
    found = hessian_trace(loss, params, samples=n, probes=probes, generator=source(1))
    assert found.samples == n
    assert abs(found.value - float(A.trace())) < 4 * found.stderr
    squares = A.square().sum() - (A.diagonal().square().sum() if variance == "off" else 0)
    assert n * found.stderr**2 == pytest.approx(2 * float(squares), rel=0.06)


def test_hutch_plus_plus_is_exact_where_a_third_of_the_probes_spans_the_range():
    U, _ = torch.linalg.qr(gaussian(40, 4))
    A = U @ torch.diag(torch.tensor([3.0, -2.0, 1.0, 0.5]).double()) @ U.T
    loss, params = quadratic(A)
    sharp = hessian_trace(loss, params, method="hutch++", samples=12, generator=source())
    assert sharp.value == pytest.approx(2.5, abs=1e-12)
    assert sharp.stderr < 1e-12
    assert sharp.samples == 4
    blunt = hessian_trace(loss, params, method="hutch++", samples=9, generator=source())  # control: rank 3 < 4
    assert blunt.stderr > 1e-2
    small, few = quadratic(gaussian(5, 5) + gaussian(5, 5).T)  # more probes than parameters
    assert hessian_trace(small, few, method="hutch++", samples=30, generator=source()).value == pytest.approx(
        2 * float(gaussian(5, 5).trace()), rel=1e-12
    )


@pytest.mark.parametrize("probes", ["rademacher", "gaussian"])
@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_both_methods_are_unbiased_and_their_errors_honest(method, probes):
    A = gaussian(12, 12)
    A = A @ torch.diag(2.0 ** -torch.arange(12.0).double()) @ A.T
    loss, params = quadratic(A)
    truth, runs, generator = float(A.trace()), 300, source(5)
    found = [
        hessian_trace(loss, params, method=method, samples=18, probes=probes, generator=generator) for _ in range(runs)
    ]
    values = torch.tensor([e.value for e in found]).double()
    assert abs(float(values.mean()) - truth) < 3.5 * float(values.std()) / math.sqrt(runs)
    claimed = math.sqrt(sum(e.stderr**2 for e in found) / runs)
    assert claimed == pytest.approx(float(values.std()), rel=0.2)
    assert found[0].samples == (18 if method == "hutchinson" else 6)


@pytest.mark.parametrize(("samples", "rest"), [(6, 2), (10, 4), (11, 5), (12, 4)])
def test_hutch_plus_plus_spends_the_samples_it_is_given(samples, rest):
    loss, params = quadratic(gaussian(20, 20) + gaussian(20, 20).T)
    assert hessian_trace(loss, params, method="hutch++", samples=samples, generator=source()).samples == rest


def test_a_smaller_sketch_leaves_more_for_the_rest_and_pays_where_the_spectrum_is_flat():
    A = gaussian(60, 60)
    A = A @ A.T  # no few eigenvalues carry its trace
    loss, params = quadratic(A)

    def estimates(sketch: int | None) -> list[TraceEstimate]:
        given = {"method": "hutch++", "samples": 48, "sketch": sketch}
        return [hessian_trace(loss, params, generator=source(seed), **given) for seed in range(60)]

    some, third = estimates(6), estimates(None)
    assert {found.samples for found in some} == {36}
    assert {found.samples for found in third} == {16}
    for found in (some, third):
        values = torch.tensor([estimate.value for estimate in found])
        assert abs(float(values.mean() - A.trace())) < 3 * float(values.std()) / math.sqrt(60)
    U, _ = torch.linalg.qr(gaussian(60, 6))
    few, at = quadratic(U @ U.T)  # control: six directions are all there is
    sharp, blunt = (
        hessian_trace(few, at, method="hutch++", samples=48, sketch=sketch, generator=source()) for sketch in (6, 5)
    )
    assert sharp.stderr < 1e-12 < 1e-3 < blunt.stderr
    assert sharp.value == pytest.approx(6, abs=1e-11)


@pytest.mark.parametrize(("sketch", "method"), [(0, "hutch++"), (24, "hutch++"), (4, "hutchinson")])
def test_a_sketch_that_does_not_fit_is_refused(sketch, method):
    loss, params = quadratic(torch.eye(6).double())
    with pytest.raises(ValueError, match=rf"got sketch={sketch} with samples=48"):
        hessian_trace(loss, params, method=method, samples=48, sketch=sketch)


def test_the_estimate_does_not_depend_on_chunks_and_does_on_the_seed(attention):
    _, params, loss, *_ = attention
    for method in ("hutchinson", "hutch++"):
        one, three, other = (
            hessian_trace(loss, params, method=method, samples=12, chunk=chunk, generator=source(seed))
            for chunk, seed in ((None, 4), (5, 4), (None, 5))
        )
        assert one.value == pytest.approx(three.value, rel=1e-12)
        assert one.stderr == pytest.approx(three.stderr, rel=1e-9)
        assert one.value != pytest.approx(other.value, rel=1e-6)


@pytest.mark.parametrize("probes", ["rademacher", "gaussian"])
def test_probes_are_drawn_one_after_the_other_whatever_the_chunk(probes):
    A = gaussian(9, 9)
    loss, params = quadratic(A + A.T)
    one_by_one, terms = source(6), []
    for _ in range(7):
        if probes == "rademacher":
            z = torch.randint(2, (9,), generator=one_by_one).double() * 2 - 1
        else:
            z = torch.randn(9, generator=one_by_one, dtype=torch.float64)
        terms.append(float(z @ (A + A.T) @ z))
    for chunk in (1, 3, None):
        found = hessian_trace(loss, params, samples=7, probes=probes, chunk=chunk, generator=source(6))
        assert found.value == pytest.approx(sum(terms) / 7, rel=1e-12)
        assert found.stderr == pytest.approx(
            float(torch.tensor(terms, dtype=torch.float64).std()) / math.sqrt(7), rel=1e-12
        )


def test_single_precision_is_summed_in_double():
    loss, params = quadratic(torch.eye(1000).double() / 3)
    low = {name: p.float() for name, p in params.items()}
    single = hessian_trace(lambda p: loss({k: x.double() for k, x in p.items()}), low, samples=3, generator=source())
    assert single.value == pytest.approx(1000 / 3, rel=1e-7)
    assert hvp(lambda p: p["head"].square().sum(), low, low)["head"].dtype == torch.float32
    assert hessian(lambda p: p["head"].square().sum(), {"head": low["head"]}).dtype == torch.float32


def test_the_interval_is_students():
    low, high = TraceEstimate(3.0, 2.0, 5).interval()
    assert (high - low) / 2 == pytest.approx(2 * 2.7764451, rel=1e-7)  # t of four degrees of freedom, 97.5 %
    assert (high + low) / 2 == pytest.approx(3)
    wide = TraceEstimate(0.0, 1.0, 10**9).interval(0.9)
    assert wide[1] == pytest.approx(1.6448536, rel=1e-6)


# another library


def test_hessian_and_traces_are_those_of_curvlinops(perceptron):
    model, x, y = perceptron
    params, call = of_module(model)
    oracle = HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)])
    H = oracle @ torch.eye(sum(p.numel() for p in params.values())).double()
    loss = lambda p: functional.cross_entropy(call(p, x), y)  # noqa: E731
    assert torch.allclose(hessian(loss, params), H, atol=1e-12)
    for method in ("hutchinson", "hutch++"):
        found = hessian_trace(loss, params, method=method, samples=30, generator=source())
        assert abs(found.value - float(H.trace())) < 3 * found.stderr
    ggn = GGNLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)])
    G = ggn @ torch.eye(len(H)).double()
    exact = fisher_trace(call, params, x, labels="all")
    assert exact.value == pytest.approx(float(G.trace()), rel=1e-12)
    assert abs(float(H.trace() / G.trace()) - 1) > 0.01  # control: away from saturation they differ
    drawn = FisherMCLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)], mc_samples=4000)
    theirs = float((drawn @ torch.eye(len(H)).double()).trace())
    ours = sum(fisher_trace(call, params, x, generator=source(i)).value for i in range(300)) / 300
    assert ours == pytest.approx(exact.value, rel=0.02)
    assert theirs == pytest.approx(exact.value, rel=0.02)


# squared gradients


def looped(params, call, x, v):
    """One context at a time by torch.autograd.grad; squared norms by parameter."""
    rows = []
    for xi, vi in zip(x, v, strict=True):
        alive = {name: p.clone().requires_grad_() for name, p in params.items()}
        value = functional.cross_entropy(call(alive, xi[None]), vi[None])
        rows.append([float(g.square().sum()) for g in torch.autograd.grad(value, list(alive.values()))])
    return torch.tensor(rows, dtype=torch.float64)


def test_observed_labels_give_the_squared_gradients_of_a_loop(attention):
    _, params, _, call, tokens, labels = attention
    one = lambda p, x: call(p, x[None])[0]  # noqa: E731
    rows = looped(params, call, tokens, labels)
    by_name = fisher_traces(one, params, tokens, labels=labels)
    for i, name in enumerate(params):
        assert by_name[name].value == pytest.approx(float(rows[:, i].mean()), rel=1e-10)
        assert by_name[name].stderr == pytest.approx(float(rows[:, i].std() / 3), rel=1e-9)
    total = fisher_trace(one, params, tokens, labels=labels, chunk=4)
    assert total.value == pytest.approx(float(rows.sum(1).mean()), rel=1e-10)
    assert total.stderr == pytest.approx(float(rows.sum(1).std() / 3), rel=1e-9)
    assert total.samples == 9


def test_all_labels_are_the_mean_over_the_models_labels(attention):
    _, params, _, call, tokens, _ = attention
    one = lambda p, x: call(p, x[None])[0]  # noqa: E731
    q = call(params, tokens).softmax(1).detach()
    each = [looped(params, call, tokens, torch.full((9,), v)) for v in range(5)]
    rows = sum(q[:, v : v + 1] * each[v] for v in range(5))
    by_name = fisher_traces(one, params, tokens, labels="all")
    for i, name in enumerate(params):
        assert by_name[name].value == pytest.approx(float(rows[:, i].mean()), rel=1e-10)
    assert fisher_trace(one, params, tokens, labels="all", chunk=2).value == pytest.approx(
        sum(e.value for e in by_name.values()), rel=1e-12
    )


def test_labels_of_the_model_have_the_models_law_and_average_to_all_labels():
    p = {"z": torch.tensor([0.2, -0.5, 1.0]).double()}
    n = 20_000
    contexts = torch.zeros(n, 1).double()
    law = lambda p, x: p["z"] + x  # noqa: E731
    q = p["z"].softmax(0)
    found = fisher_trace(law, p, contexts, generator=source())
    exact = float(1 - q.square().sum())  # E ||q - e_v||^2
    assert fisher_trace(law, p, contexts[:2], labels="all").value == pytest.approx(exact, rel=1e-12)
    assert abs(found.value - exact) < 4 * found.stderr
    squares = torch.stack([(q - torch.eye(3)[v]).square().sum() for v in range(3)])
    spread = float((q @ squares.square() - exact**2).sqrt())
    assert found.stderr == pytest.approx(spread / math.sqrt(n), rel=0.05)
    peaked = {"z": torch.tensor([0.0, 50.0, 0.0]).double()}  # control: the label is always the likely one
    assert fisher_trace(law, peaked, contexts[:500], generator=source()).value < 1e-20


def test_drawn_labels_do_not_depend_on_chunks(attention):
    _, params, _, call, tokens, _ = attention
    one = lambda p, x: call(p, x[None])[0]  # noqa: E731
    whole, parts, other = (
        fisher_trace(one, params, tokens, chunk=chunk, generator=source(seed)).value
        for chunk, seed in ((None, 1), (2, 1), (None, 2))
    )
    assert whole == pytest.approx(parts, rel=1e-12)
    assert whole != pytest.approx(other, rel=1e-6)


def test_inputs_may_be_several_tensors():
    law = lambda p, x: torch.stack([p["a"] * x[0], x[1]])  # noqa: E731
    at, x = {"a": torch.tensor(0.5).double()}, gaussian(4)
    q = torch.sigmoid(0.5 * x - 1)
    both = fisher_trace(law, at, (x, torch.ones(4).double()), labels="all")
    assert both.value == pytest.approx(float((x.square() * q * (1 - q)).mean()), rel=1e-12)


# networks


def test_a_network_becomes_a_function_of_the_parameters_one_names(attention):
    model, _, _, _, tokens, labels = attention
    params, call = of_module(model, ["out.weight", "norm.bias"])
    assert list(params) == ["out.weight", "norm.bias"]
    assert torch.equal(call(params, tokens), model(tokens))
    shifted = {**params, "norm.bias": params["norm.bias"] + 1}
    assert not torch.allclose(call(shifted, tokens), model(tokens))
    loss = lambda p: functional.cross_entropy(call(p, tokens), labels)  # noqa: E731
    full, whole = of_module(model)
    H = hessian(lambda p: functional.cross_entropy(whole(p, tokens), labels), full)
    places = torch.cat([torch.full((p.numel(),), i) for i, p in enumerate(full.values())])
    names = list(full)
    block = places == names.index("out.weight")
    assert torch.allclose(hessian(loss, params)[:40, :40], H[block][:, block], atol=1e-12)
    model.embed.weight.requires_grad_(False)
    assert "embed.weight" not in of_module(model, ["out.weight"])[0]  # a constant may be frozen


A4 = {"head": torch.ones(2, 2), "rest": torch.ones(1)}
SQUARE = {"x": torch.ones(3)}


def two(p, x):
    return torch.stack([p["x"].sum() * x, 0 * x])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: of_module(nn.Linear(1, 1)), "of_module: Linear is in training mode.*call .eval"),
        (lambda: of_module(nn.Sequential(nn.Dropout()).eval().append(nn.Dropout())), r'"1" \(Dropout\) is in training'),
        (lambda: of_module(nn.Linear(1, 1).eval().requires_grad_(False)), r"\['weight', 'bias'\] do not require grad"),
        (lambda: of_module(nn.Linear(1, 1).eval(), ["w"]), r"no parameter \['w'\]; there are \['weight', 'bias'\]"),
        (lambda: of_module(nn.ReLU().eval()), "of_module: there are no parameters"),
        (lambda: hvp(lambda p: p["x"].sum(), {"x": torch.ones(2, dtype=torch.long)}, {}), '"x" is torch.int64'),
        (lambda: hvp(lambda p: p["x"].sum(), SQUARE, {"y": torch.ones(3)}), r"names \['y'\].*\['x'\]"),
        (lambda: hvp(lambda p: p["x"].sum(), SQUARE, {"x": torch.ones(4)}), r"is \(4,\), torch.float32; .*\(3,\)"),
        (lambda: hvp(lambda p: p["x"].sum(), SQUARE, {"x": torch.ones(3).double()}), "torch.float64; the parameter"),
        (lambda: hvp(lambda p: p["x"] ** 2, SQUARE, SQUARE), r"hvp: the loss must be one number, got shape \(3,\)"),
        (lambda: hessian(lambda p: p["x"] ** 2, SQUARE), "hessian: the loss must be one number"),
        (lambda: hessian(lambda p: p["x"].sum(), SQUARE, chunk=0), "hessian: chunk is a number at least 1"),
        (lambda: hessian_trace(lambda p: p["x"].sum(), {}), "hessian_trace: there are no parameters"),
        (lambda: hessian_trace(lambda p: p["x"].sum(), SQUARE, samples=1), '"hutchinson" needs 2 samples.*got 1'),
        (lambda: hessian_trace(lambda p: p["x"].sum(), SQUARE, method="hutch++", samples=5), "needs 6 samples"),
        (lambda: hessian_trace(lambda p: p["x"].sum(), SQUARE, method="hutch"), 'got "hutch" and "rademacher"'),
        (lambda: hessian_trace(lambda p: p["x"].sum(), SQUARE, probes="normal"), 'got "hutchinson" and "normal"'),
        (lambda: hessian_trace(lambda p: p["x"].sum(), SQUARE, chunk=0), "hessian_trace: chunk is"),
        (lambda: hessian_trace(lambda p: (1e30 * p["x"].exp() ** 80).sum(), SQUARE), "not finite"),
        (lambda: fisher_trace(two, SQUARE, torch.ones(1)), "fisher_trace: inputs need one common first dimension"),
        (lambda: fisher_trace(two, SQUARE, (torch.ones(3), torch.ones(2))), "one common first dimension"),
        (lambda: fisher_trace(two, SQUARE, torch.ones(3), labels="data"), '"model", "all" or a tensor'),
        (lambda: fisher_trace(two, SQUARE, torch.ones(3), labels=torch.ones(3)), "observed labels are integers"),
        (lambda: fisher_traces(two, SQUARE, torch.ones(3), labels=torch.ones(2).long()), r"3 contexts; got \(2,\)"),
        (lambda: fisher_trace(two, SQUARE, torch.ones(3), labels=torch.full((3,), 2)), "must lie in 0 to 1"),
        (lambda: fisher_trace(two, SQUARE, torch.ones(3), labels=torch.full((3,), -1)), "must lie in 0 to 1"),
        (lambda: fisher_trace(two, SQUARE, torch.full((2,), math.nan), labels="all"), "not finite"),
        (lambda: TraceEstimate(1.0, 1.0, 3).interval(95), "level is a probability.*got 95"),
    ],
)
def test_bad_input_is_named_with_its_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_public_names():
    assert set(curvature.__all__) >= {"hvp", "hessian", "hessian_trace", "fisher_trace", "TraceEstimate", "of_module"}
