"""Witnesses: loops over runs and sentences, exact expectations over all words, torch's optimisers with other rates."""

import math

import pytest
import torch
from torch.nn import functional as F

from companion.lab import train
from companion.lab.languages.grammars import levelled
from companion.lab.languages.hmm import HiddenMarkov
from companion.lab.languages.tokens import PAD
from companion.lab.masked import training
from companion.lab.masked.accumulate import in_parts
from companion.lab.masked.sentences import hide, masked, sentences, uniform_positions
from companion.lab.masked.transformer import Shape, Transformers, repeat

CHAIN = HiddenMarkov.random(3, 5, torch.Generator().manual_seed(3))
SHAPE = Shape(5, 4, width=8)
TREE = levelled(
    torch.Generator().manual_seed(0), levels=2, symbols=3, words=5, tops=2, rules=4, emitted=3, terminal=0.45
)
PADDED = Shape(5, 4, width=8, padded=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def start(runs=3, shape=SHAPE):
    return Transformers(shape, runs, generator(), embedding=0.5, init="wide").eval()


def options(**changes):
    usual = {"steps": 6, "batch_size": 8, "lr": 0.05, "momentum": 0.0, "weight_decay": 0.0, "cosine": False}
    return train.Options(**usual | changes)


def distance(a, b):
    return max(float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


class TestSentences:
    def test_a_chain_and_a_grammar(self):
        tokens, lengths = sentences(CHAIN, SHAPE, 10, generator())
        assert tokens.shape == (10, 4)
        assert lengths.tolist() == [4] * 10
        assert sentences(CHAIN, SHAPE, 10, generator(), 3)[0].shape == (10, 3)
        tokens, lengths = sentences(TREE, PADDED, 200, generator())
        assert sorted(set(lengths.tolist())) == [2, 3, 4]
        assert bool(((tokens == PAD) == (torch.arange(4) >= lengths[:, None])).all())
        assert set(sentences(TREE, SHAPE, 50, generator(), 4)[1].tolist()) == {4}

    def test_masks(self):
        tokens = torch.tensor([[1, 2, PAD], [3, 0, 1]])
        assert masked(tokens, torch.tensor([1, 0]), PADDED).tolist() == [[1, 5, 6], [5, 0, 1]]
        assert masked(tokens, None, PADDED).tolist() == [[1, 2, 6], [3, 0, 1]]
        assert tokens[0, 2] == PAD

    def test_positions_are_uniform_over_words(self):
        at = uniform_positions(torch.tensor([1, 2, 5]).repeat_interleave(20_000), generator())
        for n, part in zip((1, 2, 5), at.split(20_000), strict=True):
            counts = torch.bincount(part, minlength=n).double()
            assert len(counts) == n
            assert bool(((counts - 20_000 / n).abs() <= 4 * math.sqrt(20_000 / n)).all())

    def test_hide(self, monkeypatch):
        tokens, lengths = sentences(TREE, PADDED, 6, generator())
        batch = hide(TREE, PADDED, ["sampled", "exact", "exact", "exact"], tokens, lengths, generator(1), groups=2)
        assert batch.tokens.shape == (4, 3, 4)
        laws = TREE.conditionals(tokens, lengths)
        for s in range(4):
            for i in range(3):
                row, t = s % 2 * 3 + i, int(batch.at[s, i])
                assert t < lengths[row]
                assert batch.words[s, i] == tokens[row, t]
                unmasked = batch.tokens[s, i].clone()
                assert unmasked[t] == PADDED.mask
                unmasked[t] = tokens[row, t]
                assert torch.equal(unmasked, tokens[row].masked_fill(tokens[row] == PAD, PADDED.pad))
                one_hot = torch.eye(5)[tokens[row, t]]
                assert torch.allclose(batch.law[s, i], one_hot if s == 0 else laws[row, t].float())
        part = batch[1:3]
        assert torch.equal(part.law, batch.law[:, 1:3])
        assert torch.equal(part.words, batch.words[:, 1:3])
        asked, kinds = [], ["sampled", "sampled", "exact", "sampled"]
        monkeypatch.setattr(type(TREE), "conditionals", lambda self, t, n: asked.append(t) or laws[:3])
        batch = hide(TREE, PADDED, kinds, tokens, lengths, generator(1), groups=2)
        assert torch.equal(asked[0], tokens[:3])  # no work where nobody looks
        assert torch.allclose(batch.law[2], laws[torch.arange(3), batch.at[2]].float())
        assert torch.equal(batch.law[3], F.one_hot(batch.words[3], 5).float())
        assert hide(TREE, PADDED, ["sampled"] * 2, tokens, lengths, generator(1)).law is None


class TestLoss:
    def test_cross_entropy_by_hand(self):
        net = start()
        tokens, lengths = sentences(CHAIN, SHAPE, 12, generator())
        hard = hide(CHAIN, SHAPE, ["sampled"] * 3, tokens, lengths, generator(1))
        mixed = hide(CHAIN, SHAPE, ["exact", "sampled", "exact"], tokens, lengths, generator(1))
        log_q = net(hard.tokens, hard.at).log_softmax(-1)
        found = training.cross_entropy(net.params(), SHAPE, hard)
        for s in range(3):
            by_hand = -sum(log_q[s, i, hard.words[s, i]] for i in range(4)) / 4
            assert torch.allclose(found[s], by_hand)
        exact = training.cross_entropy(net.params(), SHAPE, mixed)
        law = CHAIN.conditionals(tokens).reshape(3, 4, 4, 5)
        for s in (0, 2):
            by_hand = -sum((law[s, i, hard.at[s, i]] * log_q[s, i]).sum() for i in range(4)) / 4
            assert torch.allclose(exact[s].double(), by_hand)
        assert torch.allclose(exact[1], found[1])

    def test_both_targets_have_one_expectation(self):
        """Sum over all sentences of the language, each word weighted by its probability."""
        net, T = start(1, Shape(5, 3, width=8)), 3
        every = torch.cartesian_prod(*[torch.arange(5)] * T)
        p = CHAIN.log_probability(every).exp()
        law = CHAIN.conditionals(every)
        for t in range(T):
            at = torch.full((len(every),), t)
            log_q = net(masked(every, at, net.shape), at)[0].double().log_softmax(-1)
            sampled = -(p * log_q.gather(1, every[:, t, None])[:, 0]).sum()
            exact = -(p * (law[:, t] * log_q).sum(1)).sum()
            assert sampled.item() == pytest.approx(exact.item(), rel=1e-12)

    def test_parts(self):
        net, whole = start(), start()
        batch = 7
        kinds = ["sampled", "exact", "sampled"]
        for model, micro in ((net, 3), (whole, None)):
            lower = training.objective(model, CHAIN, batch, targets=kinds, micro=micro)
            value = lower(generator())
            value.backward()
            model.value = value.item()
        assert net.value == pytest.approx(whole.value, rel=1e-6)
        for a, b in zip(net.parameters(), whole.parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad, atol=1e-6)

    def test_parts_hold_one_graph_at_a_time(self):
        x, alive, most = torch.ones(3, requires_grad=True), 0, 0

        class Watched(torch.autograd.Function):
            @staticmethod
            def forward(ctx, v):
                nonlocal alive, most
                alive += 1
                most = max(most, alive)
                return v * 2

            @staticmethod
            def backward(ctx, g):
                nonlocal alive
                alive -= 1
                return 2 * g

        value = in_parts(lambda rows: Watched.apply(x).sum() * (rows.stop - rows.start), 8, 2, [x])
        assert (alive, most) == (0, 1)
        (3 * value).backward()
        assert value.item() == 12.0
        assert x.grad.tolist() == [12.0] * 3

    def test_weights_are_rates_under_sgd(self):
        weighted = start()
        lower = training.objective(weighted, CHAIN, 8, weights=torch.tensor([1.0, 0.5, 0.0]))
        train.descend(weighted, lower, options())
        paced, _ = training.go_on(start(), CHAIN, options(), rates=torch.tensor([1.0, 0.5, 0.0]))
        assert distance(weighted, paced) < 1e-6
        for p, q in zip(weighted.parameters(), start().parameters(), strict=True):
            assert torch.equal(p[2], q[2])

    def test_bfloat16(self):
        net = start()
        rough, fine = (training.objective(net, CHAIN, 64, bf16=b)(generator()).item() for b in (True, False))
        assert rough == pytest.approx(fine, rel=5e-3)
        assert rough != fine

    def test_fresh_sentences_of_its_own_for_every_run(self, monkeypatch):
        seen = []
        monkeypatch.setattr(
            training, "cross_entropy", lambda params, shape, batch: seen.append(batch) or torch.zeros(6)
        )
        g, net = generator(), repeat(start(), 2)
        for groups in (2, 2, 1):
            training.objective(net, CHAIN, 30, groups=groups)(g)
        first, second, apart = seen
        assert torch.equal(first.tokens[:3], first.tokens[3:])
        assert torch.equal(first.at[:3], first.at[3:])
        assert not torch.equal(first.tokens[0], first.tokens[1])
        assert not torch.equal(first.tokens, second.tokens)
        assert not torch.equal(apart.tokens[:3], apart.tokens[3:])


class TestPaced:
    @pytest.mark.parametrize(
        "changes",
        [{"momentum": 0.9, "weight_decay": 0.1}, {"optimizer": "adamw", "weight_decay": 0.1, "lr": 0.01}],
        ids=["sgd", "adamw"],
    )
    def test_share_of_the_rate(self, changes):
        """Against runs that have the smaller rate from the optimiser itself, in float64."""
        net = start().double()
        rates = torch.tensor([1.0, 0.5, 0.125])
        paced, _ = training.go_on(net, CHAIN, options(**changes), rates=rates)
        lr = changes.get("lr", 0.05)
        for s, rate in enumerate(rates.tolist()):
            alone, _ = training.go_on(net, CHAIN, options(**changes | {"lr": lr * rate}))
            for (name, p), q in zip(alone.named_parameters(), paced.parameters(), strict=True):
                if name.endswith("qkv_bias"):  # a key's bias has no gradient but rounding, which Adam makes large
                    p, q = p[:, :8], q[:, :8]
                assert torch.allclose(p[s], q[s], atol=1e-6), name

    def test_a_killed_run_goes_on(self, tmp_path):
        class KilledError(Exception):
            pass

        def kill(done, model):
            if done == 4:
                raise KilledError

        rates, settings = torch.tensor([1.0, 0.5, 0.25]), options(checkpoint_every=2, optimizer="adamw", lr=0.01)
        whole, _ = training.go_on(start(), CHAIN, settings, rates=rates)
        path = tmp_path / "run.pt"
        with pytest.raises(KilledError):
            training.go_on(start(), CHAIN, settings, rates=rates, checkpoint=path, observe=kill, observe_every=4)
        again, history = training.go_on(start(), CHAIN, settings, rates=rates, checkpoint=path)
        assert distance(whole, again) == 0
        assert len(history.losses) == 6

    def test_bad_rates(self):
        for rates in (torch.ones(2), torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1.0, math.nan, 1.0])):
            with pytest.raises(ValueError, match="expected a factor >= 0 for each of 3 runs"):
                training.Paced.at(start(), rates)


class TestRuns:
    def test_go_on_leaves_the_model(self):
        net = start()
        trained, history = training.go_on(net, CHAIN, options())
        assert distance(net, start()) == 0
        assert distance(net, trained) > 1e-3
        assert not trained.training
        assert history.losses.shape == (6,)
        assert type(training.go_on(net, CHAIN, options(steps=1), rates=torch.ones(3))[0]) is Transformers

    def test_rates_of_one_change_nothing(self):
        plain, _ = training.go_on(start(), CHAIN, options(optimizer="adamw"))
        paced, _ = training.go_on(start(), CHAIN, options(optimizer="adamw"), rates=torch.ones(3))
        assert distance(plain, paced) == 0

    def test_pretrain(self):
        keywords = {"runs": 2, "generator": generator(), "embedding": 0.5, "init": "wide"}
        made, _ = training.pretrain(SHAPE, CHAIN, options(), **keywords, targets="exact")
        by_hand, _ = training.go_on(start(2), CHAIN, options(), targets="exact")
        assert distance(made, by_hand) == 0

    def test_lowers_the_loss_on_sentences_of_many_lengths(self):
        settings = options(steps=150, batch_size=64, optimizer="adamw", lr=3e-3)
        _, history = training.pretrain(PADDED, TREE, settings, runs=2, generator=generator(), targets="exact")
        assert history.losses[-20:].mean() < history.losses[:5].mean() - 0.1


class TestErrors:
    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"targets": "soft"}, 'expected targets "sampled" or "exact", found \'soft\''),
            ({"targets": ["sampled", "hard", "exact"]}, "found 'hard'"),
            ({"targets": ["sampled"]}, "expected one target for each of 3 runs, found 1"),
            ({"weights": torch.ones(2)}, r"expected one weight for each of 3 runs, found \(2,\)"),
            ({"groups": 2}, "a number of groups that divides 3 runs, found 2"),
            ({"micro": 0}, "batch_size and micro of at least 1, found 8 and 0"),
            ({"length": (2, 3)}, r"a chain has sentences of one length, found \(2, 3\)"),
            ({"length": 5}, "up to 5 words, the shape reads 4; raise shape.length"),
        ],
    )
    def test_objective(self, keywords, message):
        with pytest.raises(ValueError, match=message):
            training.objective(start(), CHAIN, 8, **keywords)

    def test_language_and_shape(self):
        with pytest.raises(ValueError, match="the language has 5 words, the shape 6; make them equal"):
            training.objective(start(1, Shape(6, 4, width=8)), CHAIN, 8)
        with pytest.raises(ValueError, match="mixes lengths; build the shape with padded=True, or fix length"):
            sentences(TREE, SHAPE, 100, generator())
