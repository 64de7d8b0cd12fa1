"""Small grammars, and the lists of all their trees: what the tests of languages compare with."""

from collections import defaultdict

import torch
from torch import Tensor

from companion.lab.languages.grammars import levelled
from companion.lab.languages.pcfg import Grammar
from companion.lab.languages.tokens import PAD


def generator(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def tiny(seed=0, **options):
    """Sentences of two to four words, 300 trees or so."""
    numbers = {"levels": 2, "symbols": 3, "words": 4, "tops": 3, "rules": 2, "emitted": 2, "terminal": 0.3}
    return levelled(generator(seed), **(numbers | options))


def recursive():
    """Three symbols that contain one another, and a word (the last) that nothing emits."""
    rules = torch.tensor([[0, 1, 0], [0, 2, 1], [0, 1, 1], [1, 0, 2], [1, 2, 2], [2, 2, 0], [0, 1, 1]])
    weights = torch.tensor([0.1, 0.25, 0.15, 0.1, 0.2, 0.3, 0.1])
    emission = torch.tensor([[0.3, 0.1, 0, 0], [0.0, 0.2, 0.5, 0], [0.1, 0.3, 0.3, 0]])
    return Grammar(("A", "B", "C"), torch.tensor([0.6, 0.4, 0.0]), rules, weights, emission)


def one_by_one():
    """A sentence grows on the left or on the right: rules of one symbol that lead to different classes."""
    rules, weights = torch.tensor([[0, 1, 2], [0, 1, 0], [0, 0, 2]]), torch.tensor([0.5, 0.3, 0.2])
    emission = torch.tensor([[0.0, 0.0, 0.0], [0.7, 0.3, 0.0], [0.0, 0.4, 0.6]])
    return Grammar(("S", "L", "R"), torch.tensor([1.0, 0.0, 0.0]), rules, weights, emission)


def trees(grammar: Grammar, longest: int):
    """All trees of up to `longest` words: probability, words, symbols down the left side, symbols above the words."""
    rules = [(*row, q) for row, q in zip(grammar.rules.tolist(), grammar.weights.tolist(), strict=True)]
    known = {}

    def below(symbol: int, n: int):
        """Trees of exactly n words."""
        if (symbol, n) not in known:
            found = []
            if n == 1:
                words = enumerate(grammar.emission[symbol].tolist())
                found = [(e, (v,), (symbol,), (symbol,)) for v, e in words if e]
            for parent, left, right, q in rules:
                if parent == symbol:
                    for k in range(1, n):
                        for p1, w1, s1, e1 in below(left, k):
                            for p2, w2, _, e2 in below(right, n - k):
                                found.append((q * p1 * p2, w1 + w2, (symbol, *s1), e1 + e2))
            known[symbol, n] = found
        return known[symbol, n]

    for top, start in enumerate(grammar.start.tolist()):
        for n in range(1, longest + 1):
            for p, *rest in below(top, n):
                if start:
                    yield start * p, *rest


def language(grammar: Grammar, longest: int) -> tuple[Tensor, Tensor, dict[tuple[int, ...], float]]:
    """All sentences, padded, their probabilities, and both as a dictionary."""
    p = defaultdict(float)
    for mass, words, _, _ in trees(grammar, longest):
        p[words] += mass
    tokens = torch.tensor([words + (PAD,) * (longest - len(words)) for words in p])
    return tokens, torch.tensor(list(p.values()), dtype=torch.float64), p


GRAMMARS = [
    (tiny(0), 4),
    (tiny(1, rules=4, tops=9), 4),
    (tiny(2, levels=3, symbols=2, tops=2), 5),
    (recursive(), 5),
    (one_by_one(), 5),
]
