"""Witnesses: ridge by least squares on augmented rows, loops over draws, labels and posteriors of small languages."""

import math

import pytest
import torch
from torch.nn import functional as F

from companion.lab.languages.grammars import levelled
from companion.lab.languages.hmm import HiddenMarkov
from companion.lab.languages.tokens import MASKED, PAD
from companion.lab.masked.tasks import Labelled, Task
from companion.lab.masked.transfer import Draws, extract, few_shot, lookup, one_hot, paired, ridge
from companion.lab.masked.transformer import Shape, Transformers, enlarge

CHAIN = HiddenMarkov.random(3, 4, torch.Generator().manual_seed(3))
TREE = levelled(
    torch.Generator().manual_seed(0), levels=2, symbols=3, words=6, tops=2, rules=4, emitted=3, terminal=0.4
)
SHAPE = Shape(4, 5, width=8)
PADDED = Shape(6, 4, width=8, padded=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def start(runs=2, shape=SHAPE):
    return Transformers(shape, runs, generator(), embedding=0.5, init="wide").eval()


def states(n=60, view="sentence", place=2):
    return Task("state", place, view).draw(CHAIN, n, 5, generator())


class TestTasks:
    def test_labels(self):
        tokens, hidden = CHAIN.sample(60, 5, generator())
        data = states()
        assert torch.equal(data.tokens, tokens)
        assert torch.equal(data.labels, hidden[:, 2])
        assert (data.classes, len(data), len(data.first(7))) == (3, 60, 7)
        drawn = TREE.sample(50, generator(), depth=2)
        spine = Task("spine", 1).draw(TREE, 50, None, generator())
        assert torch.equal(spine.labels, drawn.spine[:, 1])
        emitter = Task("emitter", 1).draw(TREE, 50, None, generator())
        assert torch.equal(emitter.labels, TREE.sample(50, generator()).emitters[:, 1])
        assert emitter.classes == spine.classes == TREE.symbols

    @pytest.mark.parametrize(
        ("task", "language", "length"),
        [
            (Task("state", 1), CHAIN, 3),
            (Task("state", 1, "masked"), CHAIN, 3),
            (Task("spine", 1), TREE, None),
            (Task("emitter", 1), TREE, None),
            (Task("emitter", 0, "masked"), TREE, None),
        ],
    )
    def test_posteriors(self, task, language, length):
        """Among sentences that look the same, labels have the frequencies of the posterior."""
        data = task.draw(language, 40_000, length, generator())
        law = task.posteriors(language, data)
        assert torch.allclose(law.sum(1), torch.ones(len(data)).double())
        shown = data.tokens.clone()
        if task.view == "masked":
            shown[:, task.place] = MASKED
        kinds, kind, counts = shown.unique(dim=0, return_inverse=True, return_counts=True)
        assert len(kinds) > 10
        for number in counts.topk(5).indices.tolist():
            rows = kind == number
            p, n = law[rows][0], int(counts[number])
            assert torch.allclose(law[rows], p.expand(n, -1))
            frequency = torch.bincount(data.labels[rows], minlength=data.classes) / n
            assert bool(((frequency - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt() + 1e-9).all())
        right = float((law.argmax(1) == data.labels).double().mean())
        assert task.bayes(language, data) == pytest.approx(right, abs=0.012)

    def test_what_is_shown(self):
        data = Task("emitter", 0, "masked").draw(TREE, 30, None, generator())
        tokens, at = data.read(PADDED)
        assert at.tolist() == [0] * 30
        assert tokens[:, 0].tolist() == [PADDED.mask] * 30
        assert torch.equal(tokens[:, 1:], data.tokens[:, 1:].masked_fill(data.tokens[:, 1:] == PAD, PADDED.pad))
        tokens, at = states().read(SHAPE)
        assert at is None
        assert torch.equal(tokens, states().tokens)

    def test_errors(self):
        with pytest.raises(ValueError, match=r"expected kind .* found 'word', 0, 'sentence'"):
            Task("word", 0)
        with pytest.raises(ValueError, match=r"place >= 0 .* found 'state', -1"):
            Task("state", -1)
        with pytest.raises(ValueError, match='a symbol on the spine has no word to mask; take view="sentence"'):
            Task("spine", 0, "masked")
        with pytest.raises(ValueError, match='HiddenMarkov has labels "state", found "emitter"'):
            Task("emitter", 0).draw(CHAIN, 5, 3, generator())
        with pytest.raises(ValueError, match='Grammar has labels "emitter" or "spine", found "state"'):
            Task("state", 0).draw(TREE, 5, None, generator())
        with pytest.raises(ValueError, match="a chain needs one length, found None"):
            Task("state", 0).draw(CHAIN, 5, None, generator())
        with pytest.raises(ValueError, match="sentences of 3 words, place counts from 0, found 3"):
            Task("state", 3).draw(CHAIN, 5, 3, generator())
        with pytest.raises(ValueError, match="sentences of 2 words, place counts from 0, found 3"):
            Task("emitter", 3).draw(TREE, 500, None, generator())


class TestFeatures:
    @pytest.mark.parametrize("view", ["sentence", "masked"])
    def test_of_a_model(self, view, monkeypatch):
        monkeypatch.setattr("companion.lab.masked.transfer.WORDS", 80)  # several pieces
        net, data = start(), states(view=view)
        tokens = data.tokens.clone()
        if view == "masked":
            tokens[:, 2] = SHAPE.mask
        every = net.features(tokens).detach()
        found = extract(net, data)
        expected = every[:, :, 2] if view == "masked" else every.flatten(2)
        assert torch.allclose(found, expected, atol=1e-5)
        R = torch.randn(found.shape[2], 3, generator=generator())
        assert torch.allclose(extract(net, data, projection=R), found @ R, atol=1e-5)

    def test_padding_is_zero(self):
        data = Task("spine", 1).draw(TREE, 40, None, generator())
        found = extract(start(2, PADDED), data).unflatten(2, (4, 8))
        empty = torch.arange(4) >= data.lengths[:, None]
        assert bool(empty.any())
        assert not found[:, empty].any()
        assert bool(found[:, ~empty].any(-1).all())

    def test_lookup(self):
        for language, data in ((CHAIN, states()), (TREE, Task("spine", 0).draw(TREE, 40, None, generator()))):
            law = language.conditionals(data.tokens)
            assert torch.equal(lookup(language, data)[0], law.flatten(1))
        masked = states(view="masked")
        law = CHAIN.conditionals(masked.tokens)
        assert torch.equal(lookup(CHAIN, masked)[0], law[:, 2])
        R = torch.randn(4, 2, generator=generator())
        assert torch.allclose(lookup(CHAIN, masked, projection=R)[0], law[:, 2] @ R.double())

    def test_one_hot(self):
        data = Labelled(Task("spine", 0), torch.tensor([[1, 0, PAD]]), torch.tensor([2]), torch.tensor([0]), 2)
        assert one_hot(data, 2)[0].tolist() == [[0, 1, 1, 0, 0, 0]]
        data = Labelled(Task("state", 1, "masked"), torch.tensor([[1, 0, 1]]), torch.tensor([3]), torch.tensor([0]), 2)
        assert one_hot(data, 2)[0].tolist() == [[0, 1, 0, 0, 0, 1]]


class TestRidge:
    @pytest.mark.parametrize(("n", "D"), [(5, 9), (9, 5), (6, 6)])
    def test_least_squares_with_extra_rows(self, n, D):
        """Sum (y - w x - b)^2 + lambda n r^2 |w|^2, the second term as rows of data that ask for w = 0."""
        X = torch.randn(n, D, generator=generator(), dtype=torch.float64) * 3 + 1
        Y = torch.randn(n, 2, generator=generator(1), dtype=torch.float64)
        r = (X - X.mean(0)).square().mean().sqrt()
        asked = math.sqrt(0.3 * n) * r * torch.eye(D).double()
        rows = torch.cat([F.pad(X, (0, 1), value=1.0), F.pad(asked, (0, 1))])
        expected = torch.linalg.lstsq(rows, torch.cat([Y, torch.zeros(D, 2).double()])).solution
        w, b = ridge(X, Y, 0.3)
        assert torch.allclose(w, expected[:D], atol=1e-9)
        assert torch.allclose(b[0], expected[D], atol=1e-9)

    def test_rotation_scale_shift_and_copies(self):
        X, Y = torch.randn(6, 4, generator=generator()).double(), torch.randn(6, 3, generator=generator(1)).double()
        Q = torch.linalg.qr(torch.randn(4, 4, generator=generator(2)).double()).Q
        w, b = ridge(X, Y, 0.1)
        for changed, penalty in ((X @ Q * 7 + 3, 0.1), (X.repeat(1, 3), 0.3)):
            v, c = ridge(changed, Y, penalty)
            assert torch.allclose(changed @ v + c, X @ w + b, atol=1e-9)
        v, c = ridge(X * torch.tensor([1.0, 1, 1, 9]), Y, 0.1)
        assert not torch.allclose(X * torch.tensor([1.0, 1, 1, 9]) @ v + c, X @ w + b, atol=1e-2)

    def test_batches_and_gradients(self):
        X = torch.randn(2, 5, 3, generator=generator(), dtype=torch.float64)
        Y = torch.randn(2, 5, 2, generator=generator(1), dtype=torch.float64)
        w, b = ridge(X, Y, 0.1)
        for s in range(2):
            assert all(torch.allclose(x[s], y) for x, y in zip((w, b), ridge(X[s], Y[s], 0.1), strict=True))
        for some in (X, X[:, :2]):
            leaf = some[0].clone().requires_grad_()
            assert torch.autograd.gradcheck(lambda x: ridge(x, Y[0, : len(x)], 0.1), leaf)

    def test_features_that_do_not_vary(self):
        w, b = ridge(torch.ones(4, 3), torch.tensor([[1.0], [0.0], [1.0], [1.0]]), 0.1)
        assert bool(w.isfinite().all())
        assert b.item() == 0.75


class TestFewShot:
    @pytest.mark.parametrize("numbers", [2**25, 100])
    def test_against_loops(self, monkeypatch, numbers):
        monkeypatch.setattr("companion.lab.masked.transfer.NUMBERS", numbers)
        data = states(300)
        phi, draws = extract(start(), data), Draws.of(300, (3, 20), 4, generator(), test=100)
        found = few_shot(phi, data, draws)
        assert {n: tuple(a.shape) for n, a in found.items()} == {3: (2, 4), 20: (2, 4)}
        for n in (3, 20):
            for s in range(2):
                for k in range(4):
                    rows = draws.fit[n][k]
                    w, b = ridge(phi[s, rows].double(), F.one_hot(data.labels[rows], 3).double(), 0.1)
                    guess = (phi[s, 200:].double() @ w + b).argmax(1)
                    right = float((guess == data.labels[200:]).double().mean())
                    assert float(found[n][s, k]) == pytest.approx(right)

    def test_copies_need_a_larger_penalty(self):
        data, net = states(300), start()
        draws = Draws.of(300, (5, 40), 6, generator(), test=150)
        small = few_shot(extract(net, data), data, draws)
        wide = few_shot(extract(enlarge(net, 2), data), data, draws, penalty=0.2)
        assert all(torch.allclose(small[n], wide[n], atol=0.011) for n in small)

    def test_labels_as_features(self):
        data = states(400)
        perfect = F.one_hot(data.labels, 3).double()[None]
        noise = torch.randn(1, 400, 3, generator=generator()).double()
        draws = Draws.of(400, (30,), 5, generator(), test=200)
        assert float(few_shot(perfect, data, draws)[30].min()) == 1.0
        share = float(torch.bincount(data.labels).max()) / 400
        assert float(few_shot(noise, data, draws)[30].mean()) < share + 0.05

    def test_draws(self):
        draws = Draws.of(50, (4, 40), 30, generator(), test=10)
        assert draws.test.tolist() == list(range(40, 50))
        assert draws.fit[4].shape == (30, 4)
        assert draws.fit[40].shape == (1, 40)
        assert sorted(draws.fit[40][0].tolist()) == list(range(40))
        assert all(len(set(row.tolist())) == 4 and max(row) < 40 for row in draws.fit[4])
        assert len(set(draws.fit[4].flatten().tolist())) > 35

    def test_paired(self):
        a, b = torch.tensor([[0.5, 0.7], [0.8, 0.8], [0.4, 0.6]]), torch.tensor([[0.5, 0.5], [0.6, 0.8], [0.2, 0.4]])
        found = paired(a, b)
        assert (found.mean, found.n) == (pytest.approx(0.4 / 3), 3)
        half = 4.302653 * float(torch.tensor([0.1, 0.1, 0.2]).std()) / math.sqrt(3)
        assert found.high - found.mean == pytest.approx(half, rel=1e-5)

    def test_errors(self):
        data = states(30)
        draws = Draws.of(30, (5,), 2, generator(), test=10)
        with pytest.raises(ValueError, match=r"features of 30 sentences and a penalty > 0, found \(1, 29, 2\) and 0.1"):
            few_shot(torch.ones(1, 29, 2), data, draws)
        with pytest.raises(ValueError, match=r"found \(1, 30, 2\) and 0"):
            few_shot(torch.ones(1, 30, 2), data, draws, penalty=0)
        with pytest.raises(ValueError, match=r"30 sentences, 10 of them for the test, leave 20; .* draws of \[5, 21\]"):
            Draws.of(30, (5, 21), 2, generator(), test=10)
        with pytest.raises(ValueError, match="extract: the model is in training mode"):
            extract(start().train(), data)
