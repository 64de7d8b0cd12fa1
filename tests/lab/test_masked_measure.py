"""Witnesses: sums over every sentence of a small language, `fisher_trace` run by run, a Hessian, the mean of a root."""

import math

import pytest
import torch
from torch.nn import functional as F

from companion.lab import train
from companion.lab.languages.floors import floor
from companion.lab.languages.grammars import levelled
from companion.lab.languages.hmm import HiddenMarkov
from companion.lab.masked import measure, training
from companion.lab.masked.architecture import logits
from companion.lab.masked.measure import Evaluation, Excess, Watch, block_traces, hessian_trace, root_traces, traces
from companion.lab.masked.sentences import masked
from companion.lab.masked.transformer import Shape, Transformers, enlarge, repeat
from companion.theory import curvature
from companion.theory.flatness.tiling import tiled_trace

CHAIN = HiddenMarkov.random(3, 4, torch.Generator().manual_seed(3))
SHAPE = Shape(4, 3, width=8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def start(runs=3, shape=SHAPE, double=False):
    net = Transformers(shape, runs, generator(), embedding=0.5, init="wide").eval()
    return net.double() if double else net


def held(n=400):
    return Evaluation.draw(CHAIN, SHAPE, n, generator(5))


class TestExcess:
    def test_against_all_sentences(self):
        """The exact excess loss of the language lies within four standard errors."""
        net = start()
        every = torch.cartesian_prod(*[torch.arange(4)] * 3)
        p, law = CHAIN.log_probability(every).exp(), CHAIN.conditionals(every)
        exact, entropy = torch.zeros(3, dtype=torch.float64), 0.0
        for t in range(3):
            at = torch.full((len(every),), t)
            log_q = net(masked(every, at, SHAPE), at).detach().double().log_softmax(-1)
            exact += (p * (law[:, t] * (law[:, t].log() - log_q)).sum(-1)).sum(1) / 3
            entropy += float(-(p * (law[:, t] * law[:, t].log()).sum(-1)).sum()) / 3
        found = held(20_000).compare(net)
        assert bool(((found.value - exact).abs() < 4 * found.stderr).all())
        assert bool((found.stderr < 0.01 * exact).all())
        assert held(20_000).floor == pytest.approx(entropy, abs=0.02)
        assert floor(CHAIN, 20_000, generator(), length=3).value == pytest.approx(entropy, abs=0.01)

    def test_by_hand(self, monkeypatch):
        monkeypatch.setattr("companion.lab.masked.evaluation.WORDS", 70)  # several pieces
        net, some = start(), held(50)
        found = some.compare(net)
        assert found.sentences.dtype == torch.float64
        for s, i in ((0, 0), (2, 49), (1, 17)):
            q = logits(net.run(s), SHAPE, some.tokens[i], some.at[i]).double().softmax(0)
            kl = sum(float(p * (p / x).log()) for p, x in zip(some.truth[i], q, strict=True))
            assert float(found.sentences[s, i]) == pytest.approx(kl, abs=1e-6)
        assert torch.equal(some.excess(net), found.sentences.mean(1))
        assert torch.allclose(found.stderr, found.sentences.std(1) / math.sqrt(50))
        assert bool((found.sentences > -1e-6).all())

    def test_what_is_masked(self):
        some = held(200)
        assert bool((some.tokens.gather(1, some.at[:, None]) == SHAPE.mask).all())
        assert int((some.tokens == SHAPE.mask).sum()) == 200
        words = some.tokens.masked_fill(some.tokens == SHAPE.mask, 0)  # whatever stood there
        law = CHAIN.conditionals(words)[torch.arange(200), some.at]
        assert torch.allclose(law, some.truth)
        assert sorted(set(some.at.tolist())) == [0, 1, 2]

    def test_a_law_with_zeros(self):
        """Words that cannot stand somewhere add nothing."""
        half, same = torch.tensor([0.5, 0.5]), torch.eye(2)
        sure = HiddenMarkov(half, same, same)  # one word, again and again
        some = Evaluation.draw(sure, Shape(2, 3, width=8), 10, generator())
        net = start(1, Shape(2, 3, width=8))
        log_q = some.log_predictions(net)[0]
        assert torch.allclose(some.compare(net).sentences[0], -log_q.gather(1, some.truth.argmax(1)[:, None])[:, 0])

    def test_lengths_mix(self):
        tree = levelled(generator(), levels=2, symbols=3, words=4, tops=2, rules=4, emitted=3, terminal=0.4)
        shape = Shape(4, 4, width=8, padded=True)
        some = Evaluation.draw(tree, shape, 100, generator())
        assert bool(((some.tokens == shape.pad).sum(1) > 0).any())
        assert torch.allclose(some.truth.sum(1), torch.ones(100).double())
        assert bool((some.compare(start(2, shape)).sentences > 0).all())

    def test_differences(self):
        some = Excess(torch.tensor([[1.0, 2.0, 3.0], [0.0, 2.0, 1.0]]).double())
        pair = some.difference(0, 1)
        assert (pair.value, pair.samples) == (1.0, 3)
        assert pair.stderr == pytest.approx(1 / math.sqrt(3))
        apart = some.minus(Excess(some.sentences.flip(0)))
        assert apart.value.tolist() == [1.0, -1.0]
        with pytest.raises(ValueError, match=r"expected the same runs and sentences, found \(2, 3\) and \(1, 3\)"):
            some.minus(Excess(some.sentences[:1]))


class TestTraces:
    def labels(self, n=30):
        return torch.randint(4, (3, n), generator=generator(8))

    @pytest.mark.parametrize("numbers", [2**23, 5000])
    def test_against_fisher_trace(self, monkeypatch, numbers):
        """Run by run, by torch.func, with the same labels; whole and by parameter; in one piece and in several."""
        monkeypatch.setattr(measure, "NUMBERS", numbers)
        net, some, v = start(double=True), held(), self.labels()
        found = traces(net, some, sentences=30, labels=v)
        blocks = block_traces(net, some, sentences=30, labels=v)
        for s in range(3):
            inputs = (some.tokens[:30], some.at[:30])
            expected = curvature.fisher_traces(lambda p, x: logits(p, SHAPE, *x), net.run(s), inputs, labels=v[s])
            assert set(blocks[s]) == set(expected)
            for name, value in expected.items():
                assert blocks[s][name].value == pytest.approx(value.value, rel=1e-9, abs=1e-15)
                assert blocks[s][name].stderr == pytest.approx(value.stderr, rel=1e-9, abs=1e-15)
            whole = curvature.fisher_trace(lambda p, x: logits(p, SHAPE, *x), net.run(s), inputs, labels=v[s])
            assert (found[s].value, found[s].stderr) == pytest.approx((whole.value, whole.stderr), rel=1e-9)
            assert found[s].samples == 30

    def test_labels_of_the_model(self):
        """The exact mean over labels lies within four standard errors, and labels follow the model."""
        net, some = start(), held(2000)
        drawn = measure._labels(net, some, generator(), "here")
        q = some.log_predictions(net).exp()
        for v in range(4):
            gap = ((drawn == v).double() - q[..., v]).mean(1)
            assert bool((gap.abs() < 4 * (q[..., v] * (1 - q[..., v])).mean(1).sqrt() / math.sqrt(2000)).all())
        found = traces(net, some, sentences=2000, generator=generator())
        for s in range(3):
            inputs = (some.tokens, some.at)
            exact = curvature.fisher_trace(lambda p, x: logits(p, SHAPE, *x), net.run(s), inputs, labels="all")
            assert abs(found[s].value - exact.value) < 4 * found[s].stderr
        twice = traces(repeat(net, 2), some, sentences=50, generator=generator())
        assert [e.value for e in twice[:3]] == pytest.approx([e.value for e in twice[3:]])

    def test_tiled(self):
        """Every parameter's contribution changes by the factor of its rule."""
        net, some, v = start(double=True), held(), self.labels()
        small = block_traces(net, some, sentences=30, labels=v)
        wide = block_traces(enlarge(net, 2), some, sentences=30, labels=v)
        rules = SHAPE.tiling()
        for s in range(3):
            for name, rule in rules.items():
                assert wide[s][name].value == pytest.approx(rule.factor(2) * small[s][name].value, rel=1e-8, abs=1e-14)
            total = sum(e.value for e in wide[s].values())
            values = {name: e.value for name, e in small[s].items()}
            assert total == pytest.approx(tiled_trace(values, rules, 2), rel=1e-9)

    def test_errors(self):
        net, some = start(), held(20)
        for estimator in (traces, block_traces, root_traces):
            with pytest.raises(ValueError, match="labels are drawn from the model; pass a generator, or the labels"):
                estimator(net, some, sentences=20)
            with pytest.raises(ValueError, match="expected 2 to 20 sentences, found 600; draw more"):
                estimator(net, some, generator=generator())
        with pytest.raises(ValueError, match="expected 2 groups or more that divide 20 sentences, found 3"):
            root_traces(net, some, sentences=20, groups=3, generator=generator())


class TestRoots:
    def test_by_hand(self):
        """The jackknife written out, from gradients one by one."""
        net, some = start(double=True), held()
        v = torch.randint(4, (3, 12), generator=generator(8))
        found = root_traces(net, some, sentences=12, groups=4, labels=v)
        for s in range(3):
            p = net.run(s)
            rows = []
            for i in range(12):
                leaves = {name: q.clone().requires_grad_() for name, q in p.items()}
                F.cross_entropy(logits(leaves, SHAPE, some.tokens[i], some.at[i]), v[s, i]).backward()
                rows.append(torch.cat([q.grad.flatten() for q in leaves.values()]) ** 2)
            squares = torch.stack(rows)
            whole = float(squares.mean(0).sqrt().sum())
            keep = [[i for i in range(12) if i // 3 != k] for k in range(4)]
            parts = torch.stack([squares[rest].mean(0).sqrt().sum() for rest in keep])
            assert found[s].value == pytest.approx(4 * whole - 3 * float(parts.mean()), rel=1e-8)
            assert found[s].stderr == pytest.approx(math.sqrt(0.75 * float((parts - parts.mean()).square().sum())))
            assert found[s].samples == 4

    def test_bias(self):
        r"""The root of a mean of n squares of normal numbers has mean $\sqrt{2/n}\,\Gamma((n+1)/2)/\Gamma(n/2)$."""
        n, K, P = 20, 5, 200_000
        squares = torch.randn(K, n // K, 1, P, generator=generator(), dtype=torch.float64) ** 2
        whole, without = measure._roots(squares.sum(1), n)

        def mean(n):
            return math.sqrt(2 / n) * math.gamma((n + 1) / 2) / math.gamma(n / 2)

        error = 4 * math.sqrt((1 - mean(n) ** 2) / P)
        assert float(whole) / P == pytest.approx(mean(n), abs=error)
        assert without.shape == (K, 1)
        assert (without / P).flatten().tolist() == pytest.approx([mean(n - n // K)] * K, abs=error)
        assert mean(n) < 0.988
        assert float(K * whole - (K - 1) * without.mean(0)) / P == pytest.approx(1, abs=0.001)


class TestHessian:
    def test_against_the_matrix(self):
        shape = Shape(4, 3, width=2, layers=1, heads=1, hidden=2)
        net, some = start(2, shape, double=True), held(20)
        p = net.run(1)

        def loss(params):
            log_q = logits(params, shape, some.tokens, some.at).log_softmax(-1)
            return -(some.truth * log_q).sum() / 20

        exact = float(curvature.hessian(loss, p).trace())
        found = hessian_trace(net, 1, some, sentences=20, samples=200, generator=generator())
        assert abs(found.value - exact) < 4 * found.stderr
        assert found.stderr < 0.1 * abs(exact)
        assert found.samples == 200
        assert found == curvature.hessian_trace(loss, p, samples=200, chunk=10, generator=generator())


class TestWatch:
    def test_in_a_run(self, tmp_path):
        some = held(50)
        watch = Watch(excess=some.excess, trace=lambda net: torch.tensor(
            [e.value for e in traces(net, some, sentences=10, generator=generator())]))  # fmt: skip
        settings = train.Options(steps=4, batch_size=8, cosine=False, checkpoint_every=2)
        path = tmp_path / "run.pt"
        net, _ = training.go_on(start(), CHAIN, settings, observe=watch, observe_every=2, checkpoint=path)
        assert watch.steps == [0, 2, 4]
        assert torch.equal(watch.seen("excess")[0], some.excess(start()))
        assert torch.equal(watch.seen("excess")[2], some.excess(net))
        assert watch.seen("trace").shape == (3, 3)
        again = Watch(excess=some.excess, trace=lambda net: torch.zeros(3))
        training.go_on(start(), CHAIN, settings, observe=again, observe_every=2, checkpoint=path)
        assert again.steps == watch.steps
        assert torch.equal(again.seen("trace"), watch.seen("trace"))

    def test_keeps_the_mode(self):
        watch, net = Watch(mode=lambda net: torch.tensor(net.training)), start()
        for mode in (True, False):
            watch(0, net.train(mode))
            assert net.training is mode
        assert watch.seen("mode").tolist() == [False, False]


class TestErrors:
    def test_training_mode(self):
        net, some = start().train(), held(20)
        for measured in (some.excess, some.compare, lambda net: hessian_trace(net, 0, some, sentences=20),
                         lambda net: traces(net, some, sentences=20, labels=torch.zeros(3, 20).long())):  # fmt: skip
            with pytest.raises(ValueError, match=r"the model is in training mode; call \.eval\(\) first"):
                measured(net)

    def test_another_vocabulary(self):
        with pytest.raises(ValueError, match="expected sentences and model of one vocabulary, found 4 words and 5"):
            held(20).excess(start(shape=Shape(5, 3, width=8)))
