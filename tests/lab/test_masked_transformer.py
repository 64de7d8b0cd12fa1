"""Witnesses: a transformer written with loops and torch's own layers, finite differences, each run by itself."""

import dataclasses
import math

import pytest
import torch
from torch.func import grad, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from companion.lab.masked.architecture import features, logits
from companion.lab.masked.transformer import Shape, Transformers, enlarge, repeat, select
from companion.theory import curvature

SHAPE = Shape(vocabulary=7, length=5, width=12, layers=2, heads=3, padded=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model(shape=SHAPE, runs=3, double=True, **keywords):
    """Transformers with nothing at its initial value of zero or one."""
    made = Transformers(shape, runs, generator(), **{"embedding": 0.5, "init": "wide"} | keywords).eval()
    with torch.no_grad():
        for p in made.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator(1))
    return made.double() if double else made


def sentences(shape=SHAPE, *size, seed=2):
    """Sentences with one mask and, where the shape knows it, padding; and the masked positions."""
    g = generator(seed)
    tokens = torch.randint(shape.vocabulary, (*size, shape.length), generator=g)
    at = torch.randint(2, size, generator=g)
    tokens = tokens.scatter(-1, at[..., None], shape.mask)
    if shape.padded:
        lengths = torch.randint(2, shape.length + 1, size, generator=g)
        tokens[torch.arange(shape.length) >= lengths[..., None]] = shape.pad
    return tokens, at


def by_hand(p, shape, sentence):
    """Features of one sentence without its padding, head by head and position by position."""
    words = sentence[sentence != shape.pad]
    h = p["tokens"][words] + p["positions"][: len(words)]
    d, size = shape.width, shape.width // shape.heads
    for layer in range(shape.layers):
        b = {name.split(".")[-1]: q for name, q in p.items() if name.startswith(f"blocks.{layer}.")}
        x = F.layer_norm(h, (d,), b["attend_gain"], b["attend_bias"], 1e-5)
        q, k, v = ((x @ b["qkv"] + b["qkv_bias"])[:, i * d : (i + 1) * d] for i in range(3))
        out = torch.zeros_like(h)
        for head in range(shape.heads):
            own = slice(head * size, (head + 1) * size)
            for t in range(len(words)):
                scores = torch.stack([q[t, own] @ k[s, own] / math.sqrt(size) for s in range(len(words))])
                out[t, own] = scores.softmax(0) @ v[:, own]
        h = h + out @ b["mix"] + b["mix_bias"]
        x = F.layer_norm(h, (d,), b["expand_gain"], b["expand_bias"], 1e-5)
        z = x @ b["up"] + b["up_bias"]
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        h = h + z @ b["down"] + b["down_bias"]
    return F.layer_norm(h, (d,), p["gain"], p["bias"], 1e-5)


class TestFunction:
    @pytest.mark.parametrize("shape", [SHAPE, dataclasses.replace(SHAPE, padded=False, layers=1, heads=1, hidden=5)])
    def test_by_hand(self, shape):
        net = model(shape)
        tokens, at = sentences(shape, 3, 6)
        phi, here = net.features(tokens), net.features(tokens, at)
        z, z_here = net(tokens), net(tokens, at)
        for s in range(3):
            p = net.run(s)
            for i in range(6):
                expected = by_hand(p, shape, tokens[s, i])
                assert torch.allclose(phi[s, i, : len(expected)], expected, atol=1e-10)
                assert torch.allclose(here[s, i], expected[at[s, i]], atol=1e-10)
                assert torch.allclose(z_here[s, i], expected[at[s, i]] @ p["output"] + p["output_bias"], atol=1e-10)
        assert torch.allclose(z.gather(2, at[..., None, None].expand(-1, -1, 1, 7)).squeeze(2), z_here, atol=1e-12)

    def test_padding_changes_nothing(self):
        net, (tokens, at) = model(), sentences(SHAPE, 4)
        short = torch.tensor([[1, SHAPE.mask, 2]])
        long = F.pad(short, (0, 2), value=SHAPE.pad)
        assert torch.allclose(net(short), net(long)[:, :, :3], atol=1e-12)
        other = net.state()
        other["tokens"][:, SHAPE.pad] = torch.linspace(-3, 3, 12) ** 2
        changed = Transformers.of(SHAPE, other).eval()
        assert torch.allclose(net(tokens, at), changed(tokens, at), atol=1e-12)
        other["tokens"][:, SHAPE.mask] = torch.linspace(-3, 3, 12) ** 2
        assert not torch.allclose(net(tokens, at), Transformers.of(SHAPE, other).eval()(tokens, at), atol=0.01)

    def test_a_common_batch_and_one_run(self):
        net, (tokens, at) = model(), sentences(SHAPE, 4)
        both = net(tokens, at)
        assert torch.equal(both, net(tokens.expand(3, -1, -1), at.expand(3, -1)))
        for s in range(3):
            p = net.run(s)
            assert torch.allclose(logits(p, SHAPE, tokens, at), both[s], atol=1e-12)
            assert torch.allclose(logits(p, SHAPE, tokens[1], at[1]), both[s, 1], atol=1e-12)
            assert torch.allclose(features(p, SHAPE, tokens), net.features(tokens)[s], atol=1e-12)
            assert torch.allclose(logits(p, SHAPE, tokens), net(tokens)[s], atol=1e-12)

    def test_runs_do_not_see_each_other(self):
        net, (tokens, at) = model(), sentences(SHAPE, 4)
        net(tokens, at)[1].sum().backward()
        for name, p in net.named_parameters():
            assert not p.grad[[0, 2]].any(), name
            assert p.grad[1].abs().max() > 1e-6, name

    def test_derivatives(self):
        shape = Shape(3, 3, width=4, layers=2, heads=2, hidden=3)
        net = model(shape, 1)
        tokens, at = sentences(shape, 2)

        def loss(p):
            return logits(p, shape, tokens, at).log_softmax(-1)[:, 1].mean()

        params = net.run(0)
        with sdpa_kernel(SDPBackend.MATH):
            assert torch.autograd.gradcheck(lambda *p: loss(dict(zip(params, p, strict=True))),
                                            [p.requires_grad_() for p in params.values()])  # fmt: skip
        params = {name: p.detach() for name, p in params.items()}
        v = {name: torch.randn(p.shape, generator=generator(4), dtype=p.dtype) for name, p in params.items()}
        found, step = curvature.hvp(loss, params, v), 1e-5
        ends = [grad(loss)({n: p + sign * step * v[n] for n, p in params.items()}) for sign in (1, -1)]
        for name in params:
            assert torch.allclose(found[name], (ends[0][name] - ends[1][name]) / (2 * step), atol=1e-7), name

    def test_vmap(self):
        net, (tokens, at) = model(), sentences(SHAPE, 4)
        p = net.run(2)

        def loss(p, sentence, t):
            return logits(p, SHAPE, sentence, t).logsumexp(0)

        with sdpa_kernel(SDPBackend.MATH):
            found = vmap(grad(loss), in_dims=(None, 0, 0))(p, tokens, at)
            for i in range(4):
                alone = grad(loss)(p, tokens[i], at[i])
                assert all(torch.allclose(found[name][i], alone[name], atol=1e-12) for name in p)

    def test_of_module(self):
        net, (tokens, at) = model(), sentences(SHAPE, 4)
        params, call = curvature.of_module(net)
        assert {name: tuple(p.shape[1:]) for name, p in params.items()} == SHAPE.sizes
        assert torch.equal(call(params, tokens, at), net(tokens, at))
        assert torch.equal(logits(net.params(), SHAPE, tokens.expand(3, -1, -1), at.expand(3, -1)), net(tokens, at))


class TestRuns:
    @pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
    def test_each_run_is_the_run_it_would_be_alone(self, optimizer):
        def train(runs):
            net = Transformers.of(SHAPE, {n: p[runs] for n, p in model(double=False).params().items()})
            steps = optimizer(net.parameters(), lr=1e-2, weight_decay=0.1)
            for step in range(20):
                tokens, at = sentences(SHAPE, 3, 8, seed=step)
                words = torch.randint(7, (3, 8), generator=generator(100 + step))[runs]
                log_q = net(tokens[runs], at[runs]).log_softmax(-1)
                steps.zero_grad()
                (-log_q.gather(2, words[..., None]).mean((1, 2))).sum().backward()
                steps.step()
            return net.state()

        together = train([0, 1, 2])
        for s in range(3):
            alone = train([s])
            for name, p in alone.items():
                found, expected = together[name][s], p[0]
                if name.endswith("qkv_bias"):  # keys' biases have no gradient but rounding, which Adam makes large
                    found, expected = found[:12], expected[:12]
                assert torch.allclose(found, expected, atol=1e-6), name

    def test_adam_in_float64(self):
        """Where no gradient is smaller than epsilon but by being rounding, nothing at all is left of the others."""

        def train(runs):
            net = Transformers.of(SHAPE, {n: p[runs] for n, p in model().params().items()})
            steps = torch.optim.AdamW(net.parameters(), lr=1e-2, eps=1e-6)
            for step in range(20):
                tokens, at = sentences(SHAPE, 3, 8, seed=step)
                steps.zero_grad()
                net(tokens[runs], at[runs]).log_softmax(-1)[..., 2].mean(1).sum().backward()
                steps.step()
            return net.state()

        together = train([0, 1, 2])
        for name, p in train([1]).items():
            assert torch.allclose(together[name][1], p[0], atol=1e-9), name

    def test_first_runs_do_not_depend_on_the_others(self):
        few, many = (Transformers(SHAPE, runs, generator()).state() for runs in (2, 5))
        assert all(torch.equal(p, many[name][:2]) for name, p in few.items())
        assert not torch.equal(many["output"][0], many["output"][1])

    @pytest.mark.parametrize(("init", "wide"), [("bert", False), ("wide", True)])
    def test_initial_weights(self, init, wide):
        shape = Shape(300, 40, width=64, heads=2, hidden=100)
        p = Transformers(shape, 2, generator(), embedding=0.3, gain=2.0, init=init).state()
        for name, size in shape.sizes.items():
            if len(size) == 1:
                assert torch.equal(p[name], torch.full_like(p[name], float(name.endswith("gain"))))
                continue
            matrix = 2.0 * (size[0] ** -0.5 if wide else 0.02)
            expected = 0.3 if name in ("tokens", "positions") else matrix
            spread = float(p[name].std())
            assert spread == pytest.approx(expected, rel=4 / math.sqrt(2 * p[name].numel())), name
        plain = Transformers(shape, 1, generator()).state()
        assert float(plain["tokens"].std()) == pytest.approx(0.02, rel=0.03)

    def test_repeat_and_select(self):
        net, (tokens, at) = model(), sentences(SHAPE, 4)
        copies = repeat(net, 2)
        assert (copies.runs, copies.training) == (6, False)
        assert torch.allclose(copies(tokens, at), net(tokens, at).repeat(2, 1, 1), atol=1e-12)
        assert torch.allclose(select(copies, [4, 0])(tokens, at), net(tokens, at)[[1, 0]], atol=1e-12)
        with torch.no_grad():
            copies.output += 1
        assert not torch.equal(copies.output[0], net.output[0])
        assert repeat(net.train(), 1).training

    def test_enlarged(self):
        net, (tokens, at) = model(), sentences(SHAPE, 4)
        wide = enlarge(net, 3)
        assert (wide.shape.width, wide.shape.heads, wide.shape.hidden) == (36, 9, 144)
        assert wide.shape.parameters == sum(p[0].numel() for p in wide.parameters())
        assert torch.allclose(wide(tokens, at), net(tokens, at), atol=1e-10)
        assert torch.allclose(wide.features(tokens), net.features(tokens).repeat(1, 1, 1, 3), atol=1e-10)

    def test_parameters(self):
        assert Shape(10, 8).parameters == sum(
            p.numel() for p in Transformers(Shape(10, 8), 1, generator()).parameters()
        )
        block = 4 * 32**2 + 2 * 32 * 128 + 9 * 32 + 128
        assert Shape(10, 8).parameters == 12 * 32 + 8 * 32 + 2 * block + 64 + 33 * 10


class TestErrors:
    def test_shapes(self):
        with pytest.raises(ValueError, match="expected width a multiple of heads, 3; take 9, found 10"):
            Shape(5, 4, width=10, heads=3)
        with pytest.raises(ValueError, match="expected layers of at least 1, found 0"):
            Shape(5, 4, layers=0)
        with pytest.raises(ValueError, match='expected init "bert" or "wide", found \'xavier\''):
            Transformers(SHAPE, 1, generator(), init="xavier")
        with pytest.raises(ValueError, match="expected at least one run, found 0"):
            Transformers(SHAPE, 0, generator())
        with pytest.raises(ValueError, match="at least one copy, found 0"):
            repeat(model(), 0)

    def test_tokens(self):
        net = model()
        with pytest.raises(ValueError, match="0 to 6, 7 for the mask, 8 after the end, found 9: it is no token"):
            net(torch.tensor([[0, 9]]))
        with pytest.raises(ValueError, match="found -1: it is no token"):
            net(torch.tensor([[0, -1]]))
        plain = model(dataclasses.replace(SHAPE, padded=False))
        with pytest.raises(ValueError, match="found 8: the shape has no padding; build it with padded=True"):
            plain(torch.tensor([[0, 8]]))
        with pytest.raises(ValueError, match=r"expected tokens \(B, T\) or \(3, B, T\), found \(2, 1, 4\)"):
            net(torch.zeros(2, 1, 4, dtype=torch.int64))
        with pytest.raises(ValueError, match="expected 1 to 5 words, found 6"):
            net(torch.zeros(1, 6, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"expected positions \(3, 2\), found \(3,\)"):
            net(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
        with pytest.raises(ValueError, match="expected positions 0 to 3"):
            net(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([4]))

    def test_parameters_of_another_shape(self):
        params = model().state()
        with pytest.raises(ValueError, match=r'expected "tokens" of shape \(3, 9, 16\), found \(3, 9, 12\); 29 param'):
            Transformers.of(dataclasses.replace(SHAPE, width=16, heads=4), params)
        del params["gain"]
        with pytest.raises(ValueError, match=r'expected "gain" of shape \(3, 12\), found None'):
            Transformers.of(SHAPE, params)
        assert Transformers.of(SHAPE, model().run(1)).runs == 1
