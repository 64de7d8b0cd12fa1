r"""Families of grammars: random ones with levels, and those in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from companion.lab.languages.grammar_checks import reached
from companion.lab.languages.pcfg import Grammar
from companion.lab.languages.tokens import numpy_generator


def levelled(
    generator: torch.Generator | np.random.Generator,
    *,
    levels: int = 4,
    symbols: int = 10,
    words: int = 200,
    tops: int = 9,
    rules: int = 18,
    terminal: float = 0.17,
    emitted: int = 81,
) -> Grammar:
    r"""Draw a grammar in which a symbol of one level turns into two of the next, or stops early at one word.

    Top symbols turn into one pair of the first level each, no two into the same. Above the last level a symbol has
    `rules` different pairs of the next level and one word; on the last level it has `emitted` words and nothing else.
    Weights are uniform draws divided by their sum. Every symbol is used. The longest sentence has `2**levels` words.

    Args:
        generator: source of the draw; one of torch's seeds one of numpy's.
        levels: number of levels below the top, at least 1.
        symbols: number of symbols a level.
        words: V.
        tops: number of top symbols, from `symbols / 2` on.
        rules: binary rules a symbol above the last level, at most `symbols**2`.
        terminal: mean probability with which such a symbol stops at its word; uniform between 0 and twice that.
        emitted: words of a symbol on the last level, at most `words`.

    Returns:
        The grammar, on the CPU; names are S1, S2, ... and A1_0, A1_1, ..., A2_0, ....

    Raises:
        ValueError: a number out of its range.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> grammar = levelled(generator, levels=2, symbols=3, words=5, tops=2, rules=4, emitted=3)
        >>> grammar.symbols, len(grammar.rules), grammar.longest
        (8, 14, 4)
    """
    pairs, bounds = symbols**2, {}
    bounds["levels"] = (levels, 1, None)
    bounds["symbols"] = (symbols, 1, None)
    bounds["tops"] = (tops, -(-symbols // 2), pairs)
    bounds["rules"] = (rules, 1, pairs)
    bounds["terminal"] = (terminal, 0, 0.5)
    bounds["emitted"] = (emitted, 1, words)
    for name, (value, low, high) in bounds.items():
        if value < low or (high is not None and value > high):
            to = "" if high is None else f" to {high}"
            raise ValueError(
                f"levelled: expected {name} from {low}{to} for {symbols} symbols, {words} words; got {value}"
            )
    rng = numpy_generator(generator)

    def weights(n: int) -> np.ndarray:
        w = rng.uniform(size=n)
        return w / w.sum()

    def choose(first: np.ndarray, n: int) -> np.ndarray:
        """The pairs that have to be there, and others up to n; a pair (B, C) is the number B * symbols + C."""
        others = rng.permutation(np.setdiff1d(np.arange(pairs), first))
        return np.concatenate([first, others])[:n]

    A = tops + levels * symbols
    binary, chances, emission = [], [], np.zeros((A, words))
    # two by two, the symbols of the first level are all below some top
    once = np.append(rng.permutation(symbols), rng.integers(symbols, size=symbols % 2)).reshape(-1, 2)
    for top, pair in enumerate(rng.permutation(choose(once @ [symbols, 1], tops))):
        binary.append((top, tops + pair // symbols, tops + pair % symbols))
        chances.append(1.0)
    for level in range(levels):
        here, below = tops + level * symbols, tops + (level + 1) * symbols
        left = rng.permutation(symbols)  # of the first rule of each symbol, so that the next level is all used
        for i in range(symbols):
            if level == levels - 1:
                emission[here + i, rng.choice(words, emitted, replace=False)] = weights(emitted)
                continue
            stop = rng.uniform(0, 2 * terminal)
            emission[here + i, rng.integers(words)] = stop
            chosen = choose(np.array([left[i] * symbols + rng.integers(symbols)]), rules)
            binary += [(here + i, below + pair // symbols, below + pair % symbols) for pair in chosen]
            chances += list((1 - stop) * weights(rules))
    start = np.zeros(A)
    start[:tops] = weights(tops)
    names = [f"S{i + 1}" for i in range(tops)]
    names += [f"A{level + 1}_{i}" for level in range(levels) for i in range(symbols)]
    return Grammar(
        tuple(names),
        torch.from_numpy(start),
        torch.from_numpy(np.array(binary, dtype=np.int64)),
        torch.tensor(chances, dtype=torch.float64),
        torch.from_numpy(emission),
    )


def without_unused(
    names: tuple[str, ...],
    start: Float[Tensor, " A"],
    rules: Int64[Tensor, "R 3"],
    weights: Float[Tensor, " R"],
    emission: Float[Tensor, "A V"],
    lexicon: tuple[str, ...] = (),
) -> Grammar:
    """Build a grammar after leaving out symbols that no sentence contains; arguments as `Grammar`.

    >>> start, emission = torch.tensor([1.0, 0.0]), torch.ones(2, 1)
    >>> without_unused(("S", "N"), start, torch.empty(0, 3, dtype=torch.int64), torch.empty(0), emission).names
    ('S',)
    """
    used = reached(start > 0, rules[weights > 0])
    new = used.cumsum(0) - 1
    kept = used[rules[:, 0]]
    chosen = tuple(name for name, keep in zip(names, used.tolist(), strict=True) if keep)
    return Grammar(chosen, start[used], new[rules[kept]], weights[kept], emission[used], lexicon)


def read_grammar(path: Path | str) -> Grammar:
    """Read a grammar from a text file, one rule a line: parent, children, probability.

    `S A 0.3` gives the top symbol A its probability, where S is the parent on the first line; `A B C 0.3` is a binary
    rule; `A word 0.3` emits a word: whatever is no parent anywhere is a word. An arrow after the parent, brackets round
    the probability and empty lines are allowed; rules that occur twice are added; symbols that no sentence contains are
    left out.

    Args:
        path: the file, UTF-8.

    Returns:
        The grammar, on the CPU; words in the order of their first occurrence.

    Raises:
        ValueError: a line of another form, a rule that is not in Chomsky normal form, or what `Grammar` refuses.
    """
    lines = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        parts = line.replace("->", " ").split()
        if not parts:
            continue
        try:
            parent, *children, last = parts
            chance = float(last.strip("[]()"))
        except ValueError:
            chance, parent, children = float("nan"), "", []
        if not (len(children) in (1, 2) and np.isfinite(chance)):
            raise ValueError(
                f"read_grammar: {path}, line {number}: expected 'A B C 0.3' or 'A word 0.3', found {line!r}"
            )
        lines.append((number, parent, children, chance))
    if not lines:
        raise ValueError(f"read_grammar: {path}: expected one rule a line, found none")
    root = lines[0][1]
    parents = dict.fromkeys(parent for _, parent, _, _ in lines)
    tops = [line for line in lines if line[1] == root and len(line[2]) == 1 and line[2][0] in parents]
    if tops and len(tops) < sum(parent == root for _, parent, _, _ in lines):
        raise ValueError(
            f"read_grammar: {path}: {root} has top symbols and other rules; give those a symbol of their own"
        )
    if tops:
        del parents[root]
    symbol = {name: index for index, name in enumerate(parents)}
    word = {
        w: i for i, w in enumerate(dict.fromkeys(c for *_, cs, _ in lines for c in cs if c not in symbol and c != root))
    }
    start, emission = np.zeros(len(symbol)), np.zeros((len(symbol), len(word)))
    binary, chances = [], []
    if not tops:
        start[symbol[root]] = 1
    for number, parent, children, chance in lines:
        known = [child in symbol for child in children]
        if tops and parent == root:
            start[symbol[children[0]]] += chance
        elif known == [True, True]:
            binary.append([symbol[name] for name in (parent, *children)])
            chances.append(chance)
        elif known == [False] and children[0] in word:
            emission[symbol[parent], word[children[0]]] += chance
        else:
            raise ValueError(
                f"read_grammar: {path}, line {number}: {parent} -> {' '.join(children)} is not in Chomsky normal form; "
                f"expected two symbols, or one word"
            )
    return without_unused(
        tuple(symbol),
        torch.from_numpy(start),
        torch.tensor(binary, dtype=torch.int64).reshape(-1, 3),
        torch.tensor(chances, dtype=torch.float64),
        torch.from_numpy(emission),
        tuple(word),
    )
