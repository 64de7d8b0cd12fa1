"""Witness: a small pre-LN transformer written here for any number of heads; traces summed label by label."""

import math

import pytest
import torch
from torch.nn import functional

from companion.theory.curvature import fisher_traces, hessian_trace
from companion.theory.flatness.tiling import (
    BALANCED_GAIN,
    BALANCED_OUTPUT,
    HIDDEN,
    KEEP,
    MATRIX,
    OUTPUT,
    Rule,
    tile,
    tiled_trace,
)

D, HEADS, V, T, LAYERS = 4, 2, 5, 3, 2
FUSED = Rule((-2, -1), 1.0, parts=((-2, 3),))  # queries, keys and values, one below the other

SPEC = {"tokens": HIDDEN, "places": HIDDEN, "gain": HIDDEN, "shift": HIDDEN, "output": OUTPUT, "output_bias": KEEP}
for layer in range(LAYERS):
    SPEC |= {
        f"{layer}.gain1": HIDDEN,
        f"{layer}.shift1": HIDDEN,
        f"{layer}.qkv": FUSED,
        f"{layer}.qkv_bias": Rule((-1,), parts=((-1, 3),)),
        f"{layer}.distance": Rule((-2,)),  # (heads, T * T): one bias of attention per head and pair of places
        f"{layer}.project": MATRIX,
        f"{layer}.project_bias": HIDDEN,
        f"{layer}.gain2": HIDDEN,
        f"{layer}.shift2": HIDDEN,
        f"{layer}.up": MATRIX,
        f"{layer}.up_bias": HIDDEN,
        f"{layer}.down": MATRIX,
    }
BALANCED = SPEC | {"gain": BALANCED_GAIN, "shift": BALANCED_GAIN, "output": BALANCED_OUTPUT}


def draw(scale: float = 0.7) -> dict[str, torch.Tensor]:
    shapes = {"tokens": (V, D), "places": (T, D), "gain": (D,), "shift": (D,), "output": (V, D), "output_bias": (V,)}
    for layer in range(LAYERS):
        shapes |= {f"{layer}.{name}": (D,) for name in ("gain1", "shift1", "gain2", "shift2", "project_bias")}
        shapes |= {f"{layer}.qkv": (3 * D, D), f"{layer}.qkv_bias": (3 * D,), f"{layer}.distance": (HEADS, T * T)}
        shapes |= {f"{layer}.project": (D, D), f"{layer}.up": (3 * D, D), f"{layer}.up_bias": (3 * D,)}
        shapes |= {f"{layer}.down": (D, 3 * D)}
    generator = torch.Generator().manual_seed(3)
    return {k: scale * torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}


def transformer(p, tokens, heads=HEADS, eps=1e-2, head_scale=None):
    """Logits of the first place; a large epsilon, which LayerNorm must survive."""
    wide = (p["gain"].shape[0],)
    h = p["tokens"][tokens] + p["places"]
    for i in range(LAYERS):
        x = functional.layer_norm(h, wide, p[f"{i}.gain1"], p[f"{i}.shift1"], eps)
        q, k, v = (x @ p[f"{i}.qkv"].T + p[f"{i}.qkv_bias"]).unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) * (head_scale or 1.0)
        mixed = (scores + p[f"{i}.distance"].reshape(-1, T, T)[:heads]).softmax(-1) @ v
        h = h + mixed.transpose(0, 1).flatten(1) @ p[f"{i}.project"].T + p[f"{i}.project_bias"]
        x = functional.layer_norm(h, wide, p[f"{i}.gain2"], p[f"{i}.shift2"], eps)
        h = h + functional.gelu(x @ p[f"{i}.up"].T + p[f"{i}.up_bias"]) @ p[f"{i}.down"].T
    return functional.layer_norm(h, wide, p["gain"], p["shift"], eps)[0] @ p["output"].T + p["output_bias"]


TOKENS = torch.randint(V, (7, T), generator=torch.Generator().manual_seed(5))


def contributions(p, heads, labels="all"):
    """Squared gradients by parameter: one sentence and one label after the other."""
    total = dict.fromkeys(p, 0.0)
    for i, tokens in enumerate(TOKENS):
        alive = {name: part.clone().requires_grad_() for name, part in p.items()}
        log_q = transformer(alive, tokens, heads).log_softmax(0)
        for v in range(V) if labels == "all" else [int(labels[i])]:
            g = torch.autograd.grad(log_q[v], list(alive.values()), retain_graph=True)
            weight = float(log_q[v].detach().exp()) if labels == "all" else 1.0
            for name, part in zip(p, g, strict=True):
                total[name] += weight * float(part.square().sum()) / len(TOKENS)
    return total


def function(p, heads, **options):
    return torch.stack([transformer(p, tokens, heads, **options) for tokens in TOKENS])


@pytest.mark.parametrize("spec", [SPEC, BALANCED], ids=["tiled", "balanced"])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_wider_transformer_is_the_same_function(times, spec):
    small = draw()
    wide = tile(small, spec, times)
    logits = function(small, HEADS)
    assert logits.std() > 0.5
    assert torch.allclose(function(wide, times * HEADS), logits, atol=1e-12)
    assert wide["tokens"].shape == (V, times * D)
    assert wide["0.qkv"].shape == (3 * times * D, times * D)
    assert wide["0.distance"].shape == (times * HEADS, T * T)
    assert wide["output_bias"] is small["output_bias"] or torch.equal(wide["output_bias"], small["output_bias"])


@pytest.mark.parametrize("labels", ["all", "observed"])
@pytest.mark.parametrize("times", [2, 3])
def test_each_contribution_is_multiplied_by_its_factor(times, labels):
    labels = TOKENS[:, 1] if labels == "observed" else labels
    small = draw()
    before, after = contributions(small, HEADS, labels), contributions(tile(small, SPEC, times), times * HEADS, labels)
    expected = {"output": times, "output_bias": 1}
    for name in small:
        matrix = name.endswith(("qkv", "project", "up", "down"))
        factor = expected.get(name, 1 if matrix else 1 / times)
        assert before[name] > 1e-6
        assert after[name] == pytest.approx(factor * before[name], rel=1e-10), name
        assert SPEC[name].factor(times) == pytest.approx(factor, rel=1e-14)
    assert tiled_trace(before, SPEC, times) == pytest.approx(sum(after.values()), rel=1e-10)


def test_half_of_the_division_in_the_last_gain_makes_nothing_sharper():
    small = draw()
    before = contributions(small, HEADS)
    for times in (2, 3):
        after = contributions(tile(small, BALANCED, times), times * HEADS)
        for name in small:
            assert after[name] == pytest.approx(BALANCED[name].factor(times) * before[name], rel=1e-10)
            assert after[name] <= before[name] * (1 + 1e-10)
        assert sum(after.values()) < 0.995 * sum(before.values())
        assert sum(after.values()) == pytest.approx(tiled_trace(before, BALANCED, times), rel=1e-10)
    plain = contributions(tile(small, SPEC, 2), 2 * HEADS)  # control: without the split the output is sharper
    assert plain["output"] > 1.9 * before["output"]


def test_copies_get_equal_gradients():
    small, times = draw(), 3
    wide = {name: p.requires_grad_() for name, p in tile(small, SPEC, times).items()}
    loss = functional.cross_entropy(function(wide, times * HEADS), TOKENS[:, 1])
    g = dict(zip(wide, torch.autograd.grad(loss, list(wide.values())), strict=True))
    alive = {name: p.requires_grad_() for name, p in small.items()}
    loss = functional.cross_entropy(function(alive, HEADS), TOKENS[:, 1])
    for name, own in zip(small, torch.autograd.grad(loss, list(alive.values())), strict=True):
        rule = SPEC[name]
        copies, s = times ** len(rule.axes), times**-rule.power
        shared = tile({name: own}, {name: Rule(rule.axes, 0.0, rule.parts)}, times)[name]
        assert torch.allclose(g[name], shared / (copies * s), atol=1e-12), name


def test_the_estimators_see_the_same_factors():
    small = draw()
    before = fisher_traces(lambda p, x: transformer(p, x), small, TOKENS, labels="all")
    after = fisher_traces(lambda p, x: transformer(p, x, 2 * HEADS), tile(small, SPEC, 2), TOKENS, labels="all")
    for name in small:
        assert after[name].value == pytest.approx(SPEC[name].factor(2) * before[name].value, rel=1e-10)


# what the conditions are for


def test_wider_heads_need_another_scale():
    small = draw()
    wide, logits = tile(small, SPEC, 2), function(small, HEADS)
    assert not torch.allclose(function(wide, HEADS), logits, atol=1e-3)  # as many heads, of twice the dimension
    one = {**small, **{f"{i}.distance": torch.zeros(HEADS, T * T).double() for i in range(LAYERS)}}
    wide = tile(one, SPEC, 2)
    single = function(wide, 1, head_scale=1 / math.sqrt(2))  # one head: its copies lie side by side
    assert torch.allclose(single, function(one, 1), atol=1e-12)
    assert not torch.allclose(function(wide, 1), function(one, 1), atol=1e-3)


def test_queries_keys_and_values_are_copied_one_by_one():
    small = draw()
    careless = SPEC | {f"{i}.qkv": MATRIX for i in range(LAYERS)}
    assert not torch.allclose(function(tile(small, careless, 2), 2 * HEADS), function(small, HEADS), atol=1e-3)


def test_a_divided_embedding_is_another_function():
    small = draw()
    # embeddings and what the blocks add to them would have different scales, unless a LayerNorm came in between
    divided = SPEC | {"tokens": Rule((-1,), 1.0), "places": Rule((-1,), 1.0)}
    assert not torch.allclose(function(tile(small, divided, 2), 2 * HEADS), function(small, HEADS), atol=1e-3)


def test_the_hessian_away_from_saturation_has_no_such_factors():
    small, times = draw(), 2
    labels = TOKENS[:, 1]
    found = []
    for p, heads in ((small, HEADS), (tile(small, SPEC, times), times * HEADS)):
        rest = {k: v for k, v in p.items() if k != "0.up"}
        loss = lambda up, rest=rest, heads=heads: functional.cross_entropy(  # noqa: E731
            function({**rest, **up}, heads), labels
        )
        only = {"0.up": p["0.up"]}
        found.append(hessian_trace(loss, only, samples=300, generator=torch.Generator().manual_seed(0)))
    distance = abs(found[0].value - found[1].value)
    assert distance > 5 * math.hypot(found[0].stderr, found[1].stderr)  # the factor of tr G is one


# shapes


def test_copies_lie_where_they_should():
    M = torch.arange(6.0).reshape(2, 3)
    both = tile({"M": M}, {"M": MATRIX}, 2)["M"]
    assert torch.equal(both, M.repeat(2, 2) / 2)
    assert torch.equal(tile({"M": M}, {"M": OUTPUT}, 3)["M"], M.repeat(1, 3) / 3)
    assert torch.equal(tile({"M": M}, {"M": HIDDEN}, 2)["M"], M.repeat(1, 2))
    assert torch.equal(tile({"M": M}, {"M": Rule((-2,), 0.5)}, 4)["M"], M.repeat(4, 1) / 2)
    assert torch.equal(tile({"M": M}, {"M": KEEP}, 4)["M"], M)
    rows = tile({"M": M}, {"M": Rule((-2,), parts=((-2, 2),))}, 2)["M"]
    assert torch.equal(rows, M[[0, 0, 1, 1]])
    stacked = tile({"M": torch.stack([M, -M])}, {"M": MATRIX}, 2)["M"]  # a leading dimension of runs
    assert torch.equal(stacked, torch.stack([both, -both]))
    heads = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))  # (heads, dimension, input)
    assert torch.equal(tile({"W": heads}, {"W": Rule((-3, -1), 1.0)}, 2)["W"], heads.repeat(2, 1, 2) / 2)
    assert tile({"M": M}, {"M": MATRIX}, 2)["M"].dtype == torch.float32


ONE = {"b": torch.ones(3)}


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tile(ONE, {}, 2), r"without one are \['b'\], of no parameter \[\]"),
        (lambda: tile(ONE, {"b": HIDDEN, "c": HIDDEN}, 2), r"of no parameter \['c'\]"),
        (lambda: tile(ONE, {"b": HIDDEN}, 0), "times is the number of copies, at least 1, got 0"),
        (lambda: tile(ONE, {"b": MATRIX}, 2), r'axes of "b" are negative, and of its shape.*got \(-2, -1\)'),
        (lambda: tile(ONE, {"b": Rule((0,))}, 2), r"got \(0,\)"),
        (lambda: tile(ONE, {"b": Rule((-1,), parts=((-1, 2),))}, 2), r'parts of "b".*got \(\(-1, 2\),\)'),
        (lambda: tile(ONE, {"b": Rule((), parts=((-1, 3),))}, 2), "m dividing a tiled axis"),
        (lambda: tile(ONE, {"b": Rule((-1,), parts=((-1, 0),))}, 2), "m dividing a tiled axis"),
        (lambda: tiled_trace({"b": -1.0}, {"b": HIDDEN}, 2), 'found -1.0 for "b"'),
        (lambda: tiled_trace({"b": math.nan}, {"b": HIDDEN}, 2), 'found nan for "b"'),
        (lambda: tiled_trace({"b": 1.0}, {"c": HIDDEN}, 2), r"without one are \['b'\]"),
    ],
)
def test_bad_input_is_named_with_its_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
