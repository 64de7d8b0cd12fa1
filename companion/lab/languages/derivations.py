r"""Draw many trees at once: all symbols of all sentences in one row, rewritten level by level."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64
from torch import Tensor

from companion.lab.languages.tokens import PAD, pick, table, uniforms

if TYPE_CHECKING:
    from companion.lab.languages.pcfg import Grammar


@dataclass(frozen=True)
class Sample:
    """Sentences and the symbols behind them.

    Attributes:
        tokens: words, `PAD` after the end, (n, T) int64.
        lengths: number of words, (n,) int64.
        spine: the left spine of each tree, (n, depth) int64: the top symbol, its left child, the left child of that,
            and so on; each generates the beginning of the sentence, a span that shrinks with depth; where the spine
            has come to the first word it stays with the symbol that emits it.
        emitters: the symbol that emits each word, `PAD` after the end, (n, T) int64.
    """

    tokens: Int64[Tensor, "n T"]
    lengths: Int64[Tensor, " n"]
    spine: Int64[Tensor, "n depth"]
    emitters: Int64[Tensor, "n T"]


@dataclass(frozen=True, eq=False)
class Rewriting:
    """The choices of each symbol as one `table`: binary rules, filled up with impossible ones, then words.

    Attributes:
        cells: the table, `columns` cells a symbol.
        columns: number of cells a symbol.
        copies: how many children a choice has, 2 or 1.
        first: what takes the place of the symbol: its left child, or number of symbols + cell where it is a word.
        last: the right child, or the same where it is a word.
        owner: the symbol that a number in the row means or, where it is a word, the symbol that emitted it.
    """

    cells: Tensor
    columns: int
    copies: Tensor
    first: Tensor
    last: Tensor
    owner: Tensor


def rewriting(grammar: Grammar) -> Rewriting:
    """Lay out the choices of each symbol."""
    A, V, device = grammar.symbols, grammar.words, grammar.device
    order = grammar.rules[:, 0].argsort(stable=True)
    rules, weights = grammar.rules[order], grammar.weights[order]
    counts = torch.bincount(rules[:, 0], minlength=A)
    rank = torch.arange(len(rules), device=device) - (counts.cumsum(0) - counts)[rules[:, 0]]
    most = int(counts.max()) if len(rules) else 0
    columns = most + V
    laws = torch.zeros(A, columns, dtype=torch.float64, device=device)
    laws[rules[:, 0], rank] = weights
    laws[:, most:] = grammar.emission
    first = A + torch.arange(A * columns, device=device)
    last, copies = first.clone(), torch.ones_like(first)
    cell = rules[:, 0] * columns + rank
    copies[cell], first[cell], last[cell] = 2, rules[:, 1], rules[:, 2]
    symbols = torch.arange(A, device=device)
    owner = torch.cat([symbols, symbols.repeat_interleave(columns)])
    return Rewriting(table(laws), columns, copies, first, last, owner)


def derive(
    grammar: Grammar, n: int, generator: torch.Generator, shortest: int, longest: int, share: float, depth: int
) -> Sample:
    """Draw n sentences of `shortest` to `longest` words, a share of all; those of other lengths are thrown away."""
    if share >= 1:
        return _trees(grammar, n, generator, longest, depth)
    pieces, missing = [], n
    while missing > 0 or not pieces:
        asked = math.ceil((missing + 4 * math.sqrt(missing) + 4) / share)  # nearly always enough in one round
        piece = _trees(grammar, asked, generator, longest, depth)
        keep = (piece.lengths >= shortest).nonzero()[:missing, 0]
        pieces.append([value[keep] for value in (piece.tokens, piece.lengths, piece.spine, piece.emitters)])
        missing -= len(keep)
    return Sample(*(torch.cat(values) for values in zip(*pieces, strict=True)))


def _trees(grammar: Grammar, n: int, generator: torch.Generator, longest: int, depth: int) -> Sample:
    """Draw n trees and drop those that have outgrown `longest`."""
    A, device, moves = grammar.symbols, grammar.device, grammar.rewriting
    bounded = grammar.longest is not None and grammar.longest <= longest
    code = pick(grammar.tops, torch.zeros(n, dtype=torch.int64, device=device), uniforms((n,), generator))
    begins = torch.arange(n, device=device)  # of each sentence in the row
    spine = torch.full((n, depth), PAD, device=device)
    for level in itertools.count():
        if level < depth:
            spine[:, level:] = moves.owner[code[begins], None]  # deeper too, for who has come to the first word
        unfinished = code < A
        if not unfinished.any():
            break
        picked = pick(moves.cells, code.clamp(max=A - 1), uniforms((len(code),), generator))
        cell = torch.where(unfinished, picked, code - A)
        copies = moves.copies[cell]
        ends = copies.cumsum(0)
        code = moves.first[cell].repeat_interleave(copies)
        code[ends - 1] = moves.last[cell]
        begins = (ends - copies)[begins]
        if not bounded:
            counts = _counts(begins, len(code))
            fits = counts <= longest
            code, spine, counts = code[fits.repeat_interleave(counts)], spine[fits], counts[fits]
            begins = counts.cumsum(0) - counts
    counts = _counts(begins, len(code))
    sentence = torch.arange(len(counts), device=device).repeat_interleave(counts)
    place = sentence * longest + torch.arange(len(code), device=device) - begins[sentence]
    tokens = torch.full((len(counts), longest), PAD, device=device)
    emitters = torch.full_like(tokens, PAD)
    tokens.view(-1)[place] = (code - A) % moves.columns - (moves.columns - grammar.words)
    emitters.view(-1)[place] = moves.owner[code]
    return Sample(tokens, counts, spine, emitters)


def _counts(begins: Int64[Tensor, " n"], end: int) -> Int64[Tensor, " n"]:
    """How much is between one beginning and the next."""
    return torch.diff(begins, append=torch.full((1,), end, device=begins.device))
