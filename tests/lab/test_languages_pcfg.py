"""Witnesses: lists of all trees, Catalan numbers, a hidden Markov chain written as a grammar, derivatives."""

import math

import pytest
import torch
from torch import Tensor

from companion.lab.languages import charts
from companion.lab.languages.floors import entropies, floor
from companion.lab.languages.hmm import HiddenMarkov
from companion.lab.languages.pcfg import Grammar
from companion.lab.languages.tokens import MASKED, PAD
from tests.lab.all_trees import GRAMMARS, generator, language, recursive, tiny, trees


def naive_conditionals(tokens: Tensor, p: dict[tuple[int, ...], float], words: int) -> Tensor:
    out = torch.zeros(*tokens.shape, words, dtype=torch.float64)
    for i, row in enumerate(tokens.tolist()):
        sentence = tuple(v for v in row if v != PAD)
        for t in range(len(sentence)):
            for v in range(words):
                out[i, t, v] = p.get((*sentence[:t], v, *sentence[t + 1 :]), 0.0)
    return out / out.sum(-1, keepdim=True).clamp(min=1e-300)


@pytest.fixture(params=GRAMMARS, ids=["tiny", "more rules", "three levels", "recursive", "one by one"])
def case(request):
    grammar, longest = request.param
    return grammar, longest, *language(grammar, longest)


class TestExactness:
    def test_sentences_have_the_probability_of_all_their_trees(self, case):
        grammar, longest, tokens, mass, _ = case
        assert torch.allclose(grammar.log_probability(tokens), mass.log(), atol=1e-11)
        law = torch.zeros(longest + 1, dtype=torch.float64).index_add_(0, (tokens != PAD).sum(1), mass)
        assert torch.allclose(grammar.length_law(longest), law, atol=1e-13)

    def test_conditionals_are_those_of_the_list_of_all_sentences(self, case):
        grammar, _, tokens, _, p = case
        law = naive_conditionals(tokens, p, grammar.words)
        assert torch.allclose(grammar.conditionals(tokens), law, atol=1e-12)
        assert torch.allclose(grammar.conditionals(tokens, dtype=torch.float32).double(), law, atol=2e-6)
        alone = torch.stack([grammar.conditionals(row[None])[0] for row in tokens[:40]])
        assert torch.allclose(alone, law[:40], atol=1e-12)

    def test_a_wrong_grammar_and_a_law_that_sees_the_word_fail_the_same_comparison(self, case):
        grammar, _, tokens, _, p = case
        law = naive_conditionals(tokens, p, grammar.words)
        blurred = 0.5 * grammar.emission + 0.5 * grammar.emission.sum(1, keepdim=True) / grammar.words
        wrong = Grammar(grammar.names, grammar.start, grammar.rules, grammar.weights, blurred)
        assert float((wrong.conditionals(tokens) - law).abs().max()) > 0.01
        seen = grammar.emitter_posteriors(tokens) @ (
            grammar.emission / grammar.emission.sum(1, keepdim=True).clamp(min=1e-300)
        )
        assert float((seen - law).abs().max()) > 0.05

    def test_labels_have_the_law_of_the_trees_of_the_sentence(self, case):
        grammar, longest, tokens, mass, _ = case
        row = {tuple(v for v in words if v != PAD): i for i, words in enumerate(tokens.tolist())}
        spine = torch.zeros(len(tokens), 4, grammar.symbols, dtype=torch.float64)
        emitter = torch.zeros(*tokens.shape, grammar.symbols, dtype=torch.float64)
        for p, words, left, above in trees(grammar, longest):
            for d in range(4):
                spine[row[words], d, left[min(d, len(left) - 1)]] += p
            for t, symbol in enumerate(above):
                emitter[row[words], t, symbol] += p
        assert torch.allclose(grammar.spine_posteriors(tokens), spine / mass[:, None, None], atol=1e-12)
        assert torch.allclose(grammar.spine_posteriors(tokens, depth=2), spine[:, :2] / mass[:, None, None], atol=1e-12)
        assert torch.allclose(grammar.emitter_posteriors(tokens), emitter / mass[:, None, None], atol=1e-12)

    def test_words_that_are_masked_are_summed_over(self, case):
        grammar, longest, tokens, _, p = case
        length = int((tokens != PAD).sum(1).max())
        sentence = tokens[(tokens != PAD).sum(1) == length][0, :length].tolist()
        holes = [MASKED if t in (0, length - 1) else v for t, v in enumerate(sentence)]
        law = torch.zeros(grammar.words, dtype=torch.float64)
        for words, mass in p.items():
            if len(words) == length and all(h in (MASKED, v) for h, v in zip(holes, words, strict=True)):
                law[words[0]] += mass
        assert torch.allclose(grammar.conditionals(torch.tensor([holes]))[0, 0], law / law.sum(), atol=1e-12)
        assert float(grammar.log_probability(torch.tensor([holes]))) == pytest.approx(math.log(law.sum()), rel=1e-12)
        every = grammar.log_probability(torch.full((1, longest - 1), MASKED))
        assert float(every.exp()) == pytest.approx(float(grammar.length_law(longest)[longest - 1]), rel=1e-12)

    def test_the_derivative_by_log_emission_is_the_expected_number_of_uses(self, case):
        grammar, longest, tokens, _, _ = case
        logits = grammar.emission.log().clamp(min=-700).requires_grad_()
        tables = grammar.start, grammar.rules, grammar.weights
        plan = charts.spans(*tables, logits.exp(), longest)
        lengths = (tokens != PAD).sum(1)
        words = torch.where(tokens == PAD, grammar.words + 1, tokens)
        top = torch.cat(charts.whole(plan, charts.inside(plan, words), lengths)).sum(0)
        (top.log() + plan.scale[words].sum(1)).sum().backward()
        emitters, counts = grammar.emitter_posteriors(tokens), torch.zeros_like(grammar.emission)
        for v in range(grammar.words):
            counts[:, v] = emitters[tokens == v].sum(0)
        assert logits.grad is not None
        assert torch.allclose(logits.grad, counts, atol=1e-9)

    def test_pieces_of_a_batch_are_the_batch(self, case, monkeypatch):
        grammar, _, tokens, _, _ = case
        mixed = tokens[torch.randperm(len(tokens), generator=generator())]
        methods = ("conditionals", "log_probability", "spine_posteriors", "emitter_posteriors")
        whole = [getattr(grammar, name)(mixed) for name in methods]
        monkeypatch.setattr("companion.lab.languages.pcfg.BUDGET", {"cpu": 1})
        for name, value in zip(methods, whole, strict=True):
            assert torch.allclose(getattr(grammar, name)(mixed), value, atol=1e-12)


class TestClosedForms:
    def test_one_symbol_that_doubles_has_catalan_numbers_of_trees(self):
        q, law = 0.4, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        one = torch.tensor([1.0])
        grammar = Grammar(("S",), one, torch.tensor([[0, 0, 0]]), torch.tensor([q]).double(), 0.6 * law[None])
        n = torch.arange(1, 81)
        catalan = [math.comb(2 * k, k) // (k + 1) for k in range(80)]
        expected = torch.tensor([math.log(c) for c in catalan]) + (n - 1) * math.log(q) + n * math.log(0.6)
        assert torch.allclose(grammar.length_law(80)[1:].log(), expected.double(), atol=1e-5)
        tokens = torch.randint(3, (3, 80), generator=generator())
        log_p = expected[-1].double() + law.log()[tokens].sum(1)
        assert torch.allclose(grammar.log_probability(tokens), log_p, atol=1e-4)
        assert float(log_p.max()) < -85  # far below the smallest number of float32
        for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            assert torch.allclose(grammar.conditionals(tokens, dtype=dtype).double(), law.expand(3, 80, 3), atol=atol)

    def test_a_hidden_markov_chain_written_as_a_grammar(self):
        """State z goes on, z -> W_z z', or ends with a word; W_z emits; lengths say nothing about the words."""
        chain, stop = HiddenMarkov.random(3, 5, generator(3), transition=0.7, emission=0.7), 0.2
        rules = torch.tensor([[z, 3 + z, to] for z in range(3) for to in range(3)])
        weights = (1 - stop) * chain.transition.flatten()
        emission = torch.cat([stop * chain.emission, chain.emission])
        names = ("z0", "z1", "z2", "W0", "W1", "W2")
        grammar = Grammar(names, torch.cat([chain.initial, torch.zeros(3)]), rules, weights, emission)
        tokens, states = chain.sample(30, 7, generator())
        assert torch.allclose(grammar.conditionals(tokens), chain.conditionals(tokens), atol=1e-12)
        assert torch.allclose(
            grammar.log_probability(tokens), chain.log_probability(tokens) + math.log(0.8**6 * 0.2), atol=1e-11
        )
        above = grammar.emitter_posteriors(tokens)
        assert torch.allclose(above[..., :3] + above[..., 3:], chain.posteriors(tokens), atol=1e-12)
        assert torch.allclose(grammar.length_law(9)[1:], 0.2 * 0.8 ** torch.arange(9).double(), atol=1e-12)
        assert states.shape == (30, 7)


class TestFloors:
    @pytest.mark.parametrize("per", ["sentence", "token"])
    def test_the_floor_is_the_conditional_entropy_of_all_sentences(self, per):
        grammar = tiny(1)
        tokens, mass, p = language(grammar, 4)
        total, lengths = entropies(naive_conditionals(tokens, p, 4)).sum(1), (tokens != PAD).sum(1)
        exact = {"sentence": (mass * total / lengths).sum(), "token": (mass * total).sum() / (mass * lengths).sum()}
        assert abs(exact["sentence"] - exact["token"]) > 0.01
        estimate = floor(grammar, 20_000, generator(), per=per)
        assert abs(estimate.value - float(exact[per])) < 4 * estimate.stderr < 0.02

    def test_the_length_is_no_news_to_who_sees_the_other_words(self):
        grammar = recursive()
        tokens, mass, p = language(grammar, 5)
        chosen = ((tokens != PAD).sum(1) >= 2) & ((tokens != PAD).sum(1) <= 4)
        law = naive_conditionals(tokens[chosen], p, 4)
        weight = mass[chosen] / mass[chosen].sum()
        exact = float((weight * entropies(law).sum(1) / (tokens[chosen] != PAD).sum(1)).sum())
        estimate = floor(grammar, 20_000, generator(), length=(2, 4))
        assert abs(estimate.value - exact) < 4 * estimate.stderr < 0.02
