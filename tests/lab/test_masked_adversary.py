"""Witnesses: the objective written out for one run, finite differences through the head, heads of known worth."""

import pytest
import torch
from torch.nn import functional as F

from companion.lab import train
from companion.lab.languages.grammars import levelled
from companion.lab.languages.hmm import HiddenMarkov
from companion.lab.masked import adversary, training
from companion.lab.masked.adversary import Adversary, unexplained
from companion.lab.masked.sentences import hide
from companion.lab.masked.tasks import Task
from companion.lab.masked.transfer import Draws, extract, few_shot, ridge
from companion.lab.masked.transformer import Shape, Transformers, repeat

CHAIN = HiddenMarkov.random(4, 6, torch.Generator().manual_seed(3), transition=0.05, emission=0.1)
SHAPE = Shape(6, 5, width=8)
TREE = levelled(
    torch.Generator().manual_seed(0), levels=2, symbols=3, words=6, tops=2, rules=4, emitted=3, terminal=0.4
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def start(runs=2, shape=SHAPE):
    return Transformers(shape, runs, generator(), embedding=0.5, init="wide").eval()


def options(**changes):
    return train.Options(**{"steps": 5, "batch_size": 16, "lr": 0.01, "optimizer": "adamw"} | changes)


def distance(a, b):
    return max(float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


class TestHead:
    def test_unexplained_by_hand(self):
        phi = torch.randn(2, 11, 3, generator=generator(), dtype=torch.float64)
        labels = torch.randint(4, (2, 11), generator=generator(1))
        found = unexplained(phi, labels, 4, 0.2)
        for s in range(2):
            Y = F.one_hot(labels[s], 4).double()
            w, b = ridge(phi[s, :5], Y[:5], 0.2)
            left = sum(float((Y[i] - phi[s, i] @ w - b[0]).square().sum()) for i in range(5, 11))
            plain = sum(float((Y[i] - Y[:5].mean(0)).square().sum()) for i in range(5, 11))
            assert float(found[s]) == pytest.approx(left / plain)

    def test_worth(self):
        labels = torch.randint(3, (1, 400), generator=generator())
        known = F.one_hot(labels, 3).double()
        noise = torch.randn(1, 400, 2, generator=generator(1)).double()
        assert float(unexplained(known, labels, 3, 1e-6)) < 1e-6
        assert float(unexplained(noise, labels, 3, 1e-6)) == pytest.approx(1, abs=0.05)

    def test_gradient_goes_through_the_head(self):
        phi = torch.randn(1, 8, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
        labels = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 0]])
        assert torch.autograd.gradcheck(lambda x: unexplained(x, labels, 3, 0.1), phi)
        unexplained(phi, labels, 3, 0.1).sum().backward()
        assert bool(phi.grad[0, :4].any())
        assert bool(phi.grad[0, 4:].any())


class TestObjective:
    @pytest.mark.parametrize(
        ("task", "language", "shape"),
        [
            (Task("state", 2), CHAIN, SHAPE),
            (Task("state", 2, "masked"), CHAIN, SHAPE),
            (Task("emitter", 1), TREE, Shape(6, 4, width=8, padded=True)),
        ],
    )
    def test_by_hand(self, task, language, shape):
        net = start(2, shape)
        found = adversary.objective(net, language, 400, Adversary(task, (0.0, 0.7), 1.0))(generator()).item()
        g = generator()
        data = task.draw(language, 800, 5 if language is CHAIN else None, g)
        batch = hide(language, shape, ["sampled"] * 2, data.tokens, data.lengths, g)
        expected = float(training.cross_entropy(net.params(), shape, batch).detach().sum())
        phi = extract(net, data)[1, 400:]
        high = unexplained(phi[None], data.labels[None, 400:], data.classes, 1.0)
        assert 0 < float(high) < 1
        assert found == pytest.approx(expected - 0.7 * float(high), abs=1e-5)

    def test_a_head_that_misleads_counts_one(self, monkeypatch):
        net, against = start(1), Adversary(Task("state", 2), 0.5)
        values = {}
        for high in (0.5, 1.0, 3.0):
            monkeypatch.setattr(adversary, "unexplained", lambda *a, high=high: torch.full((1,), high))
            values[high] = adversary.objective(net, CHAIN, 10, against)(generator()).item()
        assert values[0.5] - values[1.0] == pytest.approx(0.25, abs=1e-6)
        assert values[3.0] == values[1.0]

    def test_no_strength_is_plain_training(self):
        """But for the stream of sentences: the gradient is that of the loss alone."""
        net, same = start(1), start(1)
        adversary.objective(net, CHAIN, 10, Adversary(Task("state", 2), 0.0))(generator()).backward()
        training.objective(same, CHAIN, 10)(generator()).backward()
        for p, q in zip(net.parameters(), same.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, atol=1e-7)

    def test_parts_are_batches_of_their_own(self):
        net, against = start(), Adversary(Task("state", 2), 0.5, penalty=10.0)
        whole = adversary.objective(net, CHAIN, 8, against, micro=8)(generator()).item()
        assert whole == adversary.objective(net, CHAIN, 8, against)(generator()).item()
        in_two = adversary.objective(net, CHAIN, 16, against, micro=8)
        value = in_two(generator())
        value.backward()
        assert value.item() != pytest.approx(adversary.objective(net, CHAIN, 16, against)(generator()).item(), abs=1e-6)
        assert all(bool(p.grad.isfinite().all()) for p in net.parameters())

    def test_groups_share_sentences(self):
        net = repeat(start(1), 2)
        lower = adversary.objective(net, CHAIN, 16, Adversary(Task("state", 2), 0.5), groups=2)
        lower(generator()).backward()
        for p in net.parameters():
            assert torch.allclose(p.grad[0], p.grad[1], atol=1e-7)


class TestTraining:
    def test_spoils_the_task_at_little_loss(self):
        """Three groups from one start on the same sentences; the probe is another head, on other sentences."""
        task = Task("state", 2)
        net = repeat(start(2), 2)
        settings = options(steps=400, batch_size=64, lr=3e-3)
        against = Adversary(task, (0.0, 0.0, 1.0, 1.0))
        trained, history = adversary.go_on(net, CHAIN, settings, against, groups=2, targets="exact")
        assert history.losses[-1] < history.losses[0]
        data = task.draw(CHAIN, 3000, 5, generator(9))
        found = few_shot(extract(trained, data), data, Draws.of(3000, (50,), 10, generator(3), test=2000))[50].mean(1)
        assert float(found[:2].min()) - float(found[2:].max()) > 0.03

    def test_paced(self):
        against, rates = Adversary(Task("state", 2)), torch.tensor([1.0, 0.0])
        trained, _ = adversary.go_on(start(), CHAIN, options(), against, rates=rates)
        assert distance(trained, start()) > 1e-3
        assert all(torch.equal(p[1], q[1]) for p, q in zip(trained.parameters(), start().parameters(), strict=True))


class TestErrors:
    def test_adversary(self):
        task = Task("state", 2)
        for strength, penalty in ((-0.1, 0.1), ((0.1, -0.1), 0.1), ((), 0.1), (0.1, 0.0)):
            with pytest.raises(ValueError, match="expected strengths >= 0 and a penalty > 0"):
                Adversary(task, strength, penalty)
        with pytest.raises(ValueError, match="one strength or one for each of 2 runs, found 3"):
            adversary.objective(start(), CHAIN, 8, Adversary(task, (0.1, 0.2, 0.3)))
        for batch, micro, found in ((3, None, 3), (8, 3, 2), (8, 2, 2), (9, 8, 1)):
            with pytest.raises(ValueError, match=f"at least 4 sentences for two halves, found a part of {found}"):
                adversary.objective(start(), CHAIN, batch, Adversary(task), micro=micro)
        with pytest.raises(ValueError, match='expected targets "sampled" or "exact", found'):
            adversary.objective(start(), CHAIN, 8, Adversary(task), targets="soft")
        with pytest.raises(ValueError, match="the language has 6 words, the shape 7"):
            adversary.objective(start(1, Shape(7, 5, width=8)), CHAIN, 8, Adversary(task))
