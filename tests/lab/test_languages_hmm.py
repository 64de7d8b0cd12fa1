"""Witnesses: sums over all sentences and all paths of states, a chain of coins in closed form, counts of samples."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from companion.lab.languages.floors import Estimate, entropies, floor, mean
from companion.lab.languages.hmm import HiddenMarkov
from companion.lab.languages.tokens import MASKED, PAD, on_device, pick, table, uniforms

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def generator(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def chain(states=3, words=4, seed=0):
    """A chain whose first state is not uniform, with a word that one state never emits."""
    drawn = HiddenMarkov.random(states, words, generator(seed), transition=0.7, emission=0.7)
    initial = torch.arange(1, states + 1, dtype=torch.float64)
    emission = drawn.emission.clone()
    emission[0, 0] = 0
    return HiddenMarkov(initial / initial.sum(), drawn.transition, emission / emission.sum(1, keepdim=True))


def every(values, length):
    return torch.tensor(list(itertools.product(range(values), repeat=length)))


def joint(model: HiddenMarkov, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probability of each sentence (rows) with each path of states (columns), factor by factor."""
    sentences, paths = every(model.words, length), every(model.states, length)
    p = torch.ones(len(sentences), len(paths), dtype=torch.float64)
    for s, sentence in enumerate(sentences.tolist()):
        for r, path in enumerate(paths.tolist()):
            p[s, r] = model.initial[path[0]] * model.emission[path[0], sentence[0]]
            for t in range(1, length):
                p[s, r] *= model.transition[path[t - 1], path[t]] * model.emission[path[t], sentence[t]]
    return sentences, paths, p


def naive_conditionals(sentences: Tensor, p: Tensor, words: int) -> Tensor:
    """p(v | all other tokens) from the probabilities of all sentences, which are in the order of `every`."""
    length = sentences.shape[1]
    grid = p.reshape((words,) * length)
    out = torch.empty(*sentences.shape, words, dtype=torch.float64)
    for t in range(length):
        others = grid.movedim(t, -1)
        law = others / others.sum(-1, keepdim=True)
        for i, sentence in enumerate(sentences.tolist()):
            out[i, t] = law[tuple(sentence[:t] + sentence[t + 1 :])]
    return out


class TestExactness:
    @pytest.mark.parametrize("seed", range(3))
    def test_all_laws_are_those_of_the_sum_over_all_sentences_and_paths(self, seed):
        model, length = chain(seed=seed), 4
        sentences, paths, p = joint(model, length)
        assert float(p.sum()) == pytest.approx(1, rel=1e-12)
        assert torch.allclose(model.log_probability(sentences), p.sum(1).log(), atol=1e-12)
        law = naive_conditionals(sentences, p.sum(1), model.words)
        assert torch.allclose(model.conditionals(sentences), law, atol=1e-12)
        posteriors = torch.zeros(len(sentences), length, model.states, dtype=torch.float64)
        for t in range(length):
            posteriors[:, t].index_add_(1, paths[:, t], p / p.sum(1, keepdim=True))
        assert torch.allclose(model.posteriors(sentences), posteriors, atol=1e-12)

    def test_a_wrong_chain_and_a_law_that_sees_the_word_fail_the_same_comparison(self):
        model = chain()
        sentences, _, p = joint(model, 3)
        law = naive_conditionals(sentences, p.sum(1), model.words)
        wrong = HiddenMarkov(model.initial, model.transition.T.softmax(1), model.emission)
        assert float((wrong.conditionals(sentences) - law).abs().max()) > 0.01
        seen = model.posteriors(sentences) @ model.emission  # the state's law given all words, this one included
        assert float((seen - law).abs().max()) > 0.1

    def test_a_coin_of_unknown_side_has_the_closed_form_of_counting(self):
        """All states are equal to the first: p(v | rest) is that of a mixture of two coins."""
        half, coins = torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        tokens = torch.randint(2, (50, 12), generator=generator())
        law = HiddenMarkov(half, torch.eye(2), coins).conditionals(tokens)
        ones = tokens.sum(1, keepdim=True) - tokens
        coins = coins.double()
        weight = coins[:, 1] ** ones[..., None] * coins[:, 0] ** (11 - ones)[..., None]
        assert torch.allclose(law, (weight / weight.sum(-1, keepdim=True)) @ coins, atol=1e-7)

    def test_long_sentences_neither_underflow_nor_drift(self):
        model = chain(5, 7)
        tokens, _ = model.sample(2, 3000, generator())
        law = model.conditionals(tokens)
        assert torch.allclose(law.sum(-1), torch.ones(2, 3000, dtype=torch.float64), atol=1e-12)
        assert float(model.log_probability(tokens).max()) < -3000  # far below the smallest number
        # far from the ends only the neighbourhood counts
        assert torch.allclose(law[:, 1500], model.conditionals(tokens[:, 1300:1700])[:, 200], atol=1e-8)

    def test_words_that_are_masked_are_summed_over(self):
        model = chain()
        sentences, _, p = joint(model, 4)
        holes = torch.tensor([[1, MASKED, 3, MASKED]])
        for t in (1, 3, 0):
            law = torch.zeros(model.words, dtype=torch.float64)
            for sentence, mass in zip(sentences.tolist(), p.sum(1), strict=True):
                if all(
                    s == h for i, (s, h) in enumerate(zip(sentence, [1, -2, 3, -2], strict=True)) if i != t and h >= 0
                ):
                    law[sentence[t]] += mass
            assert torch.allclose(model.conditionals(holes)[0, t], law / law.sum(), atol=1e-12)

    def test_padding_ends_a_sentence(self):
        model = chain()
        padded, short = torch.tensor([[1, 2, PAD, PAD], [3, 1, 2, 1]]), torch.tensor([[1, 2]])
        for method in ("conditionals", "posteriors"):
            value = getattr(model, method)(padded)
            assert torch.allclose(value[:1, :2], getattr(model, method)(short), atol=1e-14)
            assert not value[0, 2:].any()
        both = model.conditionals(torch.tensor([[1, 2, 0, 3]]), torch.tensor([2]))
        assert torch.allclose(both, model.conditionals(padded)[:1], atol=1e-14)
        assert torch.allclose(model.log_probability(padded)[:1], model.log_probability(short))

    def test_pieces_of_a_batch_are_the_batch(self, monkeypatch):
        model = chain()
        tokens, _ = model.sample(37, 5, generator())
        law, posterior = model.conditionals(tokens), model.posteriors(tokens)
        monkeypatch.setattr("companion.lab.languages.hmm.CELLS", 200)
        assert torch.equal(model.conditionals(tokens), law)
        assert torch.equal(model.posteriors(tokens), posterior)


class TestSampling:
    @pytest.mark.parametrize("device", DEVICES)
    def test_sentences_and_paths_come_as_often_as_they_should(self, device):
        model, n = chain(2, 3).to(device), 200_000
        _, _, p = joint(model.to("cpu"), 2)
        tokens, states = (x.cpu() for x in model.sample(n, 2, generator(device=device)))
        row, column = tokens @ torch.tensor([3, 1]), states @ torch.tensor([2, 1])
        counts = torch.bincount(row * p.shape[1] + column, minlength=p.numel())
        expected = n * p.flatten()
        assert not counts[expected == 0].any()
        cells = expected > 0
        chi2 = float(((counts - expected)[cells] ** 2 / expected[cells]).sum())
        degrees = int(cells.sum()) - 1
        assert abs(chi2 - degrees) < 5 * math.sqrt(2 * degrees)

    def test_the_same_seed_gives_the_same_chain_and_sentences_and_another_seed_others(self):
        one, two, other = (HiddenMarkov.random(4, 6, generator(s)) for s in (1, 1, 2))
        assert torch.equal(one.transition, two.transition)
        assert not torch.equal(one.transition, other.transition)
        assert torch.equal(one.sample(5, 6, generator(3))[0], two.sample(5, 6, generator(3))[0])
        assert not torch.equal(one.sample(5, 6, generator(3))[0], two.sample(5, 6, generator(4))[0])

    def test_random_rows_are_dirichlet_draws_smoothed(self):
        rng = np.random.default_rng(4)
        model = HiddenMarkov.random(8, 10, np.random.default_rng(4))
        transition = 0.95 * rng.dirichlet(np.full(8, 0.1), size=8) + 0.05 / 8
        emission = 0.98 * rng.dirichlet(np.full(10, 0.2), size=8) + 0.02 / 10
        assert np.allclose(model.transition.numpy(), transition, atol=1e-15)
        assert np.allclose(model.emission.numpy(), emission, atol=1e-15)
        assert torch.equal(model.initial, torch.full((8,), 0.125, dtype=torch.float64))

    def test_draws_from_a_table_stay_in_their_row(self):
        laws = torch.tensor([[0.0, 1.0, 0.0], [0.3, 0.0, 0.7]], dtype=torch.float64)
        cells = table(laws)
        edges = torch.tensor([0.0, 0.3 - 1e-9, 0.3 + 1e-9, 1 - 2**-32], dtype=torch.float64)
        assert pick(cells, torch.zeros(4, dtype=torch.int64), edges).tolist() == [1, 1, 1, 1]
        assert pick(cells, torch.ones(4, dtype=torch.int64), edges).tolist() == [3, 3, 5, 5]
        tenths = table(torch.full((3, 10), 0.1, dtype=torch.float64))  # ten of them add up to less than one
        assert tenths[9::10].tolist() == [1, 2, 3]

    def test_the_largest_uniform_number_does_not_reach_the_next_row(self, monkeypatch):
        assert 10**5 + (1 - 2**-53) == 10**5 + 1  # what rounding would do to it
        monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, 1 - 2**-53, dtype=torch.float64))
        assert float((uniforms((1,), generator()) + 10**5).max()) < 10**5 + 1

    @pytest.mark.parametrize("device", DEVICES)
    def test_every_device_gives_the_same_laws(self, device):
        model = chain()
        tokens, _ = model.sample(20, 6, generator())
        moved = model.to(device)
        assert moved.device.type == device
        assert torch.allclose(moved.conditionals(tokens.to(device)).cpu(), model.conditionals(tokens), atol=1e-12)


class TestFloors:
    def test_the_floor_is_the_conditional_entropy_of_all_sentences(self):
        model, length = chain(), 4
        sentences, _, p = joint(model, length)
        exact = float((p.sum(1) * entropies(naive_conditionals(sentences, p.sum(1), model.words)).mean(1)).sum())
        estimate = floor(model, 20_000, generator(), length=length, batch=3000)
        assert estimate.samples == 20_000
        assert abs(estimate.value - exact) < 4 * estimate.stderr
        assert estimate.stderr < 0.005
        assert abs(estimate.value - exact - 0.05) > 4 * estimate.stderr  # control: it could have failed

    def test_no_prediction_beats_the_floor_and_the_word_itself_would(self):
        model = chain()
        tokens, _ = model.sample(20_000, 5, generator())
        law = model.conditionals(tokens)
        loss = -law.gather(-1, tokens[..., None]).log().mean()
        value = floor(model, 20_000, generator(1), length=5)
        assert abs(float(loss) - value.value) < 0.02
        seen = model.posteriors(tokens) @ model.emission
        assert float(-seen.gather(-1, tokens[..., None]).log().mean()) < value.value - 0.05

    def test_the_stand_in_of_eight_states_and_ten_words(self):
        """Its floor is 1.965, the fifth state is guessed with .777, its most frequent value has .247."""
        model = HiddenMarkov.random(8, 10, np.random.default_rng(4))
        assert floor(model, 4000, generator(), length=8).value == pytest.approx(1.965, abs=0.01)
        assert model.state_accuracy(4, 8, 4000, generator()).value == pytest.approx(0.777, abs=0.015)
        assert float(model.state_law(4).max()) == pytest.approx(0.247, abs=0.005)

    def test_the_accuracy_of_the_best_guess_of_a_state(self):
        model = chain()
        _, paths, p = joint(model, 3)
        for t in range(3):
            mass = torch.zeros(len(p), model.states, dtype=torch.float64).index_add_(1, paths[:, t], p)
            assert torch.allclose(mass.sum(0), model.state_law(t), atol=1e-12)
            estimate = model.state_accuracy(t, 3, 20_000, generator(t))
            assert abs(estimate.value - float(mass.max(1).values.sum())) < 4 * estimate.stderr
        tokens, states = model.sample(20_000, 3, generator())
        hits = (model.posteriors(tokens)[:, t].argmax(1) == states[:, t]).double()
        assert abs(float(hits.mean()) - estimate.value) < 0.02

    def test_means_with_and_without_weights(self):
        y = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
        plain = mean(y)
        assert plain == Estimate(3.0, pytest.approx(float(y.std()) / math.sqrt(3)), 3)
        assert mean(y, torch.full_like(y, 7)) == plain
        w = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)
        assert mean(y, w).value == pytest.approx(15 / 4)
        ratios = []  # the standard error against the spread of the estimate itself
        g = generator()
        for _ in range(2000):
            w = torch.rand(50, generator=g, dtype=torch.float64)
            ratios.append(mean(w + torch.randn(50, generator=g, dtype=torch.float64), w))
        spread = float(torch.tensor([r.value for r in ratios]).std())
        claimed = float(torch.tensor([r.stderr for r in ratios]).mean())
        assert claimed == pytest.approx(spread, rel=0.08)


@pytest.mark.unchecked
class TestErrors:
    def test_a_chain_that_is_none(self):
        half, same = torch.tensor([0.5, 0.5]), torch.eye(2)
        with pytest.raises(ValueError, match=r"transition: row 1 sums to 1\.5, expected 1; divide"):
            HiddenMarkov(half, torch.tensor([[0.5, 0.5], [0.5, 1.0]]), same)
        with pytest.raises(ValueError, match=r"initial: sums to 0\.9"):
            HiddenMarkov(torch.tensor([0.5, 0.4]), same, same)
        with pytest.raises(ValueError, match=r"emission: probabilities are finite and not negative, found -0\.5"):
            HiddenMarkov(half, same, torch.tensor([[1.5, -0.5], [0.5, 0.5]]))
        with pytest.raises(ValueError, match=r"expected initial \(H,\).*got \(2,\), \(2, 2\), \(3, 2\)"):
            HiddenMarkov(half, same, torch.ones(3, 2) / 2)
        with pytest.raises(ValueError, match="concentrations > 0"):
            HiddenMarkov.random(2, 2, generator(), emission=0)
        with pytest.raises(ValueError, match="weight in"):
            HiddenMarkov.random(2, 2, generator(), smooth_emission=1.2)

    def test_sentences_that_are_none(self):
        model = chain()
        for method in (model.conditionals, model.posteriors, model.log_probability):
            with pytest.raises(ValueError, match="token 4 at position 1 of sentence 0 is no word; expected 0 to 3"):
                method(torch.tensor([[0, 4]]))
            with pytest.raises(ValueError, match="token -1 at position 0 of sentence 1"):
                method(torch.tensor([[0, 1], [PAD, 1]]))
            with pytest.raises(ValueError, match="sentence 0 has 0 words"):
                method(torch.tensor([[PAD, PAD]]))
            with pytest.raises(ValueError, match="sentence 0 has 3 words, expected 1 to 2"):
                method(torch.tensor([[0, 1]]), torch.tensor([3]))
            with pytest.raises(ValueError, match=r"tokens \(n, T\) int64, got \(2,\)"):
                method(torch.tensor([0, 1]))
            with pytest.raises(ValueError, match=r"lengths \(1,\) int64"):
                method(torch.tensor([[0, 1]]), torch.tensor([1, 2]))

    def test_a_sentence_of_probability_zero(self, monkeypatch):
        model = HiddenMarkov(torch.tensor([1.0, 0.0]), torch.eye(2), torch.eye(2))
        monkeypatch.setattr("companion.lab.languages.hmm.CELLS", 1)
        with pytest.raises(ValueError, match="sentence 2 has probability zero: no state emits word 1 at position 1"):
            model.conditionals(torch.tensor([[0, 0], [0, 0], [0, 1]]))

    def test_lengths_positions_and_devices(self):
        model = chain()
        with pytest.raises(ValueError, match="length of at least 1, got 0"):
            model.sample(3, 0, generator())
        with pytest.raises(ValueError, match="pass length"):
            floor(model, 10, generator())
        with pytest.raises(ValueError, match="position from 0 to 4, got 5"):
            model.state_accuracy(5, 5, 10, generator())
        with pytest.raises(ValueError, match="at least 2 draws, got 1"):
            floor(model, 1, generator(), length=3)
        with pytest.raises(ValueError, match=r"language is on meta, the generator on cpu; make torch\.Generator"):
            on_device(torch.device("meta"), generator(), "sample")
