"""Witnesses: the frequencies of all trees, families counted rule by rule, files written by hand, bad input."""

import math
from collections import defaultdict

import pytest
import torch

from companion.lab.languages.grammars import levelled, read_grammar, without_unused
from companion.lab.languages.pcfg import Grammar
from companion.lab.languages.tokens import MASKED, PAD
from tests.lab.all_trees import GRAMMARS, generator, language, recursive, tiny, trees

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


class TestSampling:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("length", [None, (2, 3), 4])
    @pytest.mark.parametrize("number", [0, 2, 3, 4])
    def test_trees_come_as_often_as_they_should(self, number, length, device):
        grammar, longest = GRAMMARS[number]
        n, longest = 60_000, longest if number != 2 else 8
        if grammar.longest is None and length is None:
            length = (1, longest)
        low, high = (1, longest) if length is None else (length, length) if isinstance(length, int) else length
        expected = defaultdict(float)
        for p, words, left, above in trees(grammar, high):
            if low <= len(words):
                expected[(words, tuple(left[min(d, len(left) - 1)] for d in range(3)), above)] += p
        total = sum(expected.values())
        drawn = grammar.to(device).sample(n, generator(7, device), length=length, depth=3)
        assert drawn.tokens.shape == drawn.emitters.shape == (n, high)
        assert torch.equal((drawn.tokens != PAD).sum(1), drawn.lengths)
        assert torch.equal(drawn.tokens == PAD, drawn.emitters == PAD)
        rows = torch.cat([drawn.lengths[:, None], drawn.tokens, drawn.spine, drawn.emitters], 1).cpu()
        found = defaultdict(int)
        for (k, *row), count in zip(*(x.tolist() for x in rows.unique(dim=0, return_counts=True)), strict=True):
            found[(tuple(row[:k]), tuple(row[high : high + 3]), tuple(row[high + 3 : high + 3 + k]))] = count
        assert set(found) <= set(expected)
        cells = [(found[key], n * p / total) for key, p in expected.items() if n * p / total > 5]
        cells.append((n - sum(count for count, _ in cells), n - sum(mean for _, mean in cells) + 1e-9))  # the rare ones
        chi2 = sum((count - mean) ** 2 / max(mean, 5) for count, mean in cells)
        assert len(cells) > 8
        assert abs(chi2 - len(cells)) < 5 * math.sqrt(2 * len(cells))

    def test_a_spine_stays_with_the_symbol_above_the_first_word(self):
        drawn = tiny().sample(200, generator(), depth=6)
        assert torch.equal(drawn.spine[:, 2:], drawn.emitters[:, :1].expand(200, 4))
        assert not torch.equal(drawn.spine[:, 1], drawn.emitters[:, 0])

    def test_the_same_seed_gives_the_same_sentences_and_another_seed_others(self):
        grammar = levelled(generator())
        one, two, other = (grammar.sample(20, generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(one.tokens, two.tokens)
        assert torch.equal(one.spine, two.spine)
        assert not torch.equal(one.tokens, other.tokens)

    def test_sentences_are_padded_to_the_longest_that_there_can_be(self):
        assert tiny().sample(5, generator(), length=(1, 9)).tokens.shape == (5, 4)
        assert tiny().sample(5, generator(), length=(1, 3)).tokens.shape == (5, 3)
        assert tiny().sample(0, generator()).tokens.shape == (0, 4)

    def test_a_grammar_whose_trees_need_not_end_is_drawn_given_that_they_do(self):
        """With q = 0.8 three trees of four never end; sentences of one to four words, q(1-q) = 0.16 a doubling."""
        rules, weights = torch.tensor([[0, 0, 0]]), torch.tensor([0.8])
        grammar = Grammar(("S",), torch.tensor([1.0]), rules, weights, torch.tensor([[0.2]]))
        n = 40_000
        lengths = grammar.sample(n, generator(), length=(1, 4)).lengths
        p = torch.tensor([1, 0.16, 2 * 0.16**2, 5 * 0.16**3])
        p = p / p.sum()
        share = torch.bincount(lengths, minlength=5)[1:] / n
        assert bool(((share - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all())

    def test_the_best_guess_of_a_label_is_right_as_often_as_it_says(self):
        grammar = levelled(generator(), levels=3, symbols=4, words=12, tops=4, rules=5, emitted=5)
        drawn = grammar.sample(8000, generator())
        spine, above = grammar.spine_posteriors(drawn.tokens), grammar.emitter_posteriors(drawn.tokens)
        for d in range(4):
            hits = (spine[:, d].argmax(1) == drawn.spine[:, d]).double().mean()
            claimed = spine[:, d].max(1).values
            assert abs(float(hits - claimed.mean())) < 4 * 0.5 / math.sqrt(8000)
            assert float(claimed.mean()) < 0.99
        seen = drawn.tokens != PAD
        hits = (above.argmax(-1) == drawn.emitters)[seen].double().mean()
        assert abs(float(hits - above.max(-1).values[seen].mean())) < 0.01

    @pytest.mark.parametrize("device", DEVICES)
    def test_every_device_gives_the_same_laws(self, device):
        for grammar, longest in GRAMMARS:
            drawn = grammar.sample(50, generator(), length=(1, longest))
            moved = grammar.to(device)
            assert moved.device.type == device
            for name in ("conditionals", "log_probability", "spine_posteriors", "emitter_posteriors"):
                there = getattr(moved, name)(drawn.tokens.to(device))
                assert torch.allclose(there.cpu(), getattr(grammar, name)(drawn.tokens), atol=1e-12)


class TestFamilies:
    def test_levels_have_the_asked_numbers(self):
        grammar = levelled(generator(5))
        level = torch.tensor([0 if name[0] == "S" else int(name[1]) for name in grammar.names])
        assert level.bincount().tolist() == [9, 10, 10, 10, 10]
        assert grammar.words == 200
        assert grammar.longest == 16
        rules = grammar.rules.unique(dim=0)
        assert len(rules) == len(grammar.rules)
        assert grammar.rules[:, 0].bincount().tolist() == [1] * 9 + [18] * 30
        assert torch.equal(level[rules[:, 1]], level[rules[:, 0]] + 1)
        assert torch.equal(level[rules[:, 2]], level[rules[:, 0]] + 1)
        assert len(rules[rules[:, 0] < 9][:, 1:].unique(dim=0)) == 9
        assert (grammar.emission > 0).sum(1).tolist() == [0] * 9 + [1] * 30 + [81] * 10
        stops = torch.stack([levelled(generator(s)).emission[9:39].sum(1) for s in range(20)])
        assert float(stops.mean()) == pytest.approx(0.17, abs=0.02)
        assert float(stops.max()) <= 0.34
        assert float(grammar.length_law(16).sum()) == pytest.approx(1, rel=1e-12)

    def test_small_ones_use_every_symbol_whatever_the_seed(self):
        for seed in range(40):
            for symbols, tops in ((2, 1), (3, 2), (5, 3)):
                grammar = tiny(seed, symbols=symbols, tops=tops, rules=1)
                assert grammar.symbols == tops + 2 * symbols

    def test_one_level_is_a_bag_of_pairs(self):
        grammar = levelled(generator(), levels=1, symbols=2, words=3, tops=2, rules=1, emitted=2)
        assert grammar.longest == 2
        assert set(grammar.sample(50, generator()).lengths.tolist()) == {2}

    def test_a_file_gives_its_grammar(self, tmp_path):
        text = """S -> S1 [0.75]
        S -> S2 [0.25]

        S1 A B 1.0
        S2 B A 1
        Unused A B 1.0
        A the 0.5
        A A2 B 0.2
        A A2 B 0.3
        A2 the 0.25
        A2 a 0.75
        B dog 0.5
        B dog 0.5
        """
        (tmp_path / "rules.txt").write_text(text)
        grammar = read_grammar(tmp_path / "rules.txt")
        assert grammar.names == ("S1", "S2", "A", "A2", "B")
        assert grammar.lexicon == ("the", "a", "dog")
        assert grammar.start.tolist() == [0.75, 0.25, 0, 0, 0]
        assert grammar.longest == 3
        p = {tuple(grammar.lexicon[v] for v in words): mass for words, mass in language(grammar, 3)[2].items()}
        assert p == pytest.approx(
            {
                ("the", "dog"): 0.375, ("dog", "the"): 0.125,
                ("the", "dog", "dog"): 0.09375, ("a", "dog", "dog"): 0.28125,
                ("dog", "the", "dog"): 0.03125, ("dog", "a", "dog"): 0.09375,
            }
        )  # fmt: skip

    def test_a_file_whose_first_symbol_is_the_top(self, tmp_path):
        (tmp_path / "rules.txt").write_text("S S S 0.25\nS x 0.75\n")
        grammar = read_grammar(tmp_path / "rules.txt")
        assert (grammar.names, grammar.longest) == (("S",), None)
        assert grammar.length_law(2).tolist() == pytest.approx([0, 0.75, 0.25 * 0.75**2])

    def test_tables_in_single_precision_are_made_to_sum_to_one(self):
        rules, third = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 0, 1]]), torch.full((3,), 0.1)
        grammar = Grammar(("S", "A"), torch.tensor([1.0, 0]), rules, third, torch.tensor([[0.7, 0], [0.9, 0.1]]))
        assert float(grammar.weights.sum() + grammar.emission[0].sum()) == pytest.approx(1, abs=1e-15)
        assert float(grammar.emission[1].sum()) == pytest.approx(1, abs=1e-15)

    def test_a_grammar_of_many_levels_knows_its_longest_sentence(self):
        chain = torch.tensor([[i, 40, i + 1] for i in range(39)])  # one word and the next symbol
        emission = torch.zeros(41, 2)
        emission[39:, 0] = 1
        names = tuple(map(str, range(41)))
        start = torch.zeros(41)
        start[0] = 1
        assert Grammar(names, start, chain, torch.ones(39), emission).longest == 40


@pytest.mark.unchecked
class TestErrors:
    def test_a_grammar_that_does_not_sum_to_one(self):
        start, rules, emission = torch.tensor([1.0, 0.0]), torch.tensor([[0, 1, 1]]), torch.tensor([[0.0], [1.0]])
        with pytest.raises(ValueError, match=r"symbol S have probabilities that sum to 0\.75, expected 1; divide"):
            Grammar(("S", "A"), start, rules, torch.tensor([0.75]), emission)
        with pytest.raises(ValueError, match=r"start: sums to 0\.5"):
            Grammar(("S", "A"), start / 2, rules, torch.ones(1), emission)
        with pytest.raises(ValueError, match=r"probabilities of rules.*found -1\.0"):
            Grammar(("S", "A"), start, rules, -torch.ones(1), emission)
        with pytest.raises(ValueError, match=r"probabilities of words"):
            Grammar(("S", "A"), start, rules, torch.ones(1), emission * math.nan)

    def test_tables_that_do_not_fit(self):
        start, rules, emission = torch.tensor([1.0, 0.0]), torch.tensor([[0, 1, 1]]), torch.tensor([[0.0], [1.0]])
        with pytest.raises(ValueError, match=r"for 1 names expected start \(1,\)"):
            Grammar(("S",), start, rules, torch.ones(1), emission)
        with pytest.raises(ValueError, match="rules of symbols 0 to 1, int64"):
            Grammar(("S", "A"), start, rules + 1, torch.ones(1), emission)
        with pytest.raises(ValueError, match="rules of symbols 0 to 1, int64"):
            Grammar(("S", "A"), start, rules - 1, torch.ones(1), emission)
        with pytest.raises(ValueError, match="lexicon of 1 words"):
            Grammar(("S", "A"), start, rules, torch.ones(1), emission, ("a", "b"))

    def test_symbols_that_are_never_used_or_never_end(self):
        start, rules = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([[0, 1, 1], [2, 1, 1]])
        emission = torch.tensor([[0.0], [1.0], [0.0]])
        tables = ("S", "A", "Lost"), start, rules, torch.ones(2), emission
        with pytest.raises(ValueError, match="no sentence contains symbol Lost; leave it out"):
            Grammar(*tables)
        assert without_unused(*tables).names == ("S", "A")
        with pytest.raises(ValueError, match="symbol S, B never comes to an end"):
            Grammar(("S", "A", "B"), start, torch.tensor([[0, 1, 2], [2, 2, 1]]), torch.ones(2), emission)
        never = torch.tensor([0.5, 0.5, 0.0])  # a rule of probability zero reaches nothing
        with pytest.raises(ValueError, match="no sentence contains symbol Lost"):
            Grammar(
                ("S", "A", "Lost"), never, torch.tensor([[0, 1, 1], [0, 2, 2]]), torch.tensor([1.0, 0.0]),
                torch.tensor([[0.0], [1.0], [1.0]]),
            )  # fmt: skip

    def test_sentences_that_are_none(self):
        grammar = tiny()
        for method in (grammar.conditionals, grammar.log_probability, grammar.spine_posteriors):
            with pytest.raises(ValueError, match="token 4 at position 1 of sentence 0 is no word; expected 0 to 3"):
                method(torch.tensor([[0, 4]]))
            with pytest.raises(ValueError, match="sentence 1 has 0 words"):
                method(torch.tensor([[0, 1], [PAD, PAD]]))
        one = tiny(terminal=0.0)
        with pytest.raises(ValueError, match=r"sentence 1, \[0, -2, 2\], has probability 0 in torch.float64: no tree"):
            one.conditionals(torch.tensor([[MASKED] * 4, [0, MASKED, 2, PAD]]))

    def test_lengths(self):
        grammar = recursive()
        with pytest.raises(ValueError, match="can contain itself, its sentences have no longest; pass length"):
            grammar.sample(3, generator())
        with pytest.raises(ValueError, match=r"from 1 on, got \(3, 2\)"):
            grammar.sample(3, generator(), length=(3, 2))
        with pytest.raises(ValueError, match=r"sentences of 9 to 9 words have probability 0\.0e\+00"):
            tiny().sample(3, generator(), length=9)

    def test_families(self, tmp_path):
        with pytest.raises(ValueError, match="expected rules from 1 to 9 for 3 symbols, 4 words; got 10"):
            tiny(rules=10)
        with pytest.raises(ValueError, match="expected tops from 2 to 9"):
            tiny(tops=1)
        with pytest.raises(ValueError, match="expected levels from 1 for"):
            tiny(levels=0)
        file = tmp_path / "rules.txt"
        for text, message in (
            ("S A\n", r"line 1: expected 'A B C 0.3' or 'A word 0.3', found 'S A'"),
            ("S A B C D 1.0\n", "line 1: expected"),
            ("S a nan\n", "line 1: expected"),
            ("\n", "expected one rule a line, found none"),
            ("S A B 1.0\nA a 1.0\n", r"line 1: S -> A B is not in Chomsky normal form"),
            ("S S1 0.5\nS a 0.5\nS1 a 1.0\n", "S has top symbols and other rules"),
            ("S S1 1.0\nS1 A A 1.0\nA B 1.0\nB b 1.0\n", "line 3: A -> B is not in Chomsky normal form"),
            ("S S1 1.0\nS1 S S1 0.5\nS1 b 0.5\n", "line 2: S1 -> S S1 is not in"),
            ("S a 0.5\n", r"symbol S have probabilities that sum to 0\.5"),
        ):
            file.write_text(text)
            with pytest.raises(ValueError, match=message):
                read_grammar(file)
