r"""Probabilistic context-free grammars: sentences, their trees' symbols, and the exact law of a masked word.

A symbol $A$ turns into two symbols or into one word, $A\to BC$ with probability $q_{ABC}$ and $A\to v$ with $E_{Av}$
(Chomsky normal form); the top symbol of a sentence is drawn from $\pi$.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from companion.lab.languages import charts
from companion.lab.languages.derivations import Rewriting, Sample, derive, rewriting
from companion.lab.languages.grammar_checks import check, most_words
from companion.lab.languages.tokens import MASKED, on_device, read_sentences, slices, table

BUDGET = {"cpu": 2**22, "cuda": 2**29}  # bytes of the largest intermediate array: in the cache, or plenty of threads


@dataclass(frozen=True, eq=False)
class Grammar:
    r"""A grammar in Chomsky normal form, its probabilities checked.

    Attributes:
        names: of the A non-terminal symbols.
        start: $\pi$, law of the top symbol, (A,) float64.
        rules: parent, left and right child of each binary rule, (R, 3) int64; a rule given twice counts twice.
        weights: $q$, probability of each rule, (R,) float64.
        emission: $E$, probability of each word, (A, V) float64; what a symbol's rules leave of 1.
        lexicon: the words, for people; may be empty.

    Raises:
        ValueError: shapes that do not fit; a symbol whose probabilities do not sum to one, that no sentence reaches, or
            from which no sentence comes to an end.

    References:
        The companion's own; `prop-flat-conditionals`.

    Examples:
        >>> rules, weights = torch.tensor([[0, 1, 1]]), torch.ones(1)  # S -> N N, N -> 0 (3/4) | 1 (1/4)
        >>> emission = torch.tensor([[0.0, 0.0], [0.75, 0.25]])
        >>> grammar = Grammar(("S", "N"), torch.tensor([1.0, 0.0]), rules, weights, emission)
        >>> grammar.conditionals(torch.tensor([[1, 1]]))[0, 0].tolist(), grammar.longest
        ([0.75, 0.25], 2)
    """

    names: tuple[str, ...]
    start: Float[Tensor, " A"]
    rules: Int64[Tensor, "R 3"]
    weights: Float[Tensor, " R"]
    emission: Float[Tensor, "A V"]
    lexicon: tuple[str, ...] = ()
    _plans: dict[tuple[int, torch.dtype], charts.Spans] = field(init=False, repr=False, default_factory=dict)
    _laws: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        tables = check(self.names, self.start, self.rules, self.weights, self.emission, self.lexicon)
        for name, value in zip(("start", "rules", "weights", "emission"), tables, strict=True):
            object.__setattr__(self, name, value)

    @property
    def symbols(self) -> int:
        """A."""
        return len(self.names)

    @property
    def words(self) -> int:
        """V."""
        return self.emission.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tables are; sentences and generators have to be there too."""
        return self.start.device

    @cached_property
    def longest(self) -> int | None:
        """Number of words in the longest sentence, or None where a symbol can contain itself."""
        most = most_words(self.emission.sum(1) > 0, self.rules)
        return None if most is None else int(most[self.start.cpu() > 0].max())

    @cached_property
    def rewriting(self) -> Rewriting:
        """Tables from which trees are drawn."""
        return rewriting(self)

    @cached_property
    def tops(self) -> Float[Tensor, " A"]:
        """Table from which top symbols are drawn."""
        return table(self.start[None])

    def to(self, device: torch.device | str) -> Grammar:
        """Return the grammar on another device."""
        return replace(
            self, **{name: getattr(self, name).to(device) for name in ("start", "rules", "weights", "emission")}
        )

    def sample(
        self,
        n: int,
        generator: torch.Generator,
        *,
        length: int | tuple[int, int] | None = None,
        depth: int = 4,
    ) -> Sample:
        """Draw sentences and the symbols behind them; with `length`, sentences of other lengths are drawn again.

        Args:
            n: number of sentences.
            generator: source of the draw, on the grammar's device.
            length: number of words, or the smallest and the largest number of words; None for all that there are.
            depth: how many symbols of the left spine to keep, the top symbol included.

        Returns:
            Sentences padded to the longest that there can be, lengths, left spines and emitters.

        Raises:
            ValueError: a grammar without a longest sentence and no `length`, lengths that have (nearly) no probability,
                or a generator on another device.
        """
        on_device(self.device, generator, "Grammar.sample")
        shortest, longest = self._range(length)
        share = 1.0 if length is None else float(self.length_law(longest)[shortest:].sum())
        if not share > 1e-6:
            raise ValueError(
                f"Grammar.sample: sentences of {shortest} to {longest} words have probability {share:.1e}, expected "
                f"more than 1e-6; see length_law, and widen length"
            )
        return derive(self, n, generator, shortest, longest, share, depth)

    def draw(
        self, n: int, length: int | tuple[int, int] | None, generator: torch.Generator
    ) -> tuple[Int64[Tensor, "n T"], Int64[Tensor, " n"]]:
        """Draw sentences and their lengths, what `floor` asks of a language."""
        drawn = self.sample(n, generator, length=length)
        return drawn.tokens, drawn.lengths

    def length_law(self, longest: int) -> Float[Tensor, " longest1"]:
        """Return the probability of sentences of 0, 1, ..., `longest` words, (longest + 1,) float64."""
        if longest not in self._laws:
            words = torch.full((1, longest), self.words, device=self.device)  # all of them masked
            plan, law = self._plan(longest), self.start.new_zeros(longest + 1)
            for (number, width), value in charts.inside(plan, words).items():
                law[width] += plan.start[number] @ value[:, 0, 0]
            self._laws[longest] = law
        return self._laws[longest].clone()

    def conditionals(
        self,
        tokens: Int64[Tensor, "n T"],
        lengths: Int64[Tensor, " n"] | None = None,
        *,
        dtype: torch.dtype = torch.float64,
    ) -> Float[Tensor, "n T V"]:
        r"""Return the law of each word given all the others, $p(v\mid x_{-t})\propto\sum_A\alpha_A(t,t+1)\,E_{Av}$.

        The outside probability of one word does not use that word: one pass serves all positions. Sentences drawn with
        `length` have the same conditionals, for whoever sees the other words sees the length.

        Args:
            tokens: sentences, (n, T) int64; `MASKED` words are summed over.
            lengths: number of words of each; None where padding says it.
            dtype: float64, or float32: sums of positive numbers, relative error about 1e-6, half the memory.

        Returns:
            Shape (n, T, V), of `dtype`; zero after the end of a sentence.

        Raises:
            ValueError: a token that is no word, or a sentence of probability zero.

        References:
            The companion's own; `prop-flat-conditionals`, `eq-flat-outside`.
        """
        words, lengths = read_sentences(tokens, lengths, self.words, "Grammar.conditionals")
        out = torch.zeros(*tokens.shape, self.words, dtype=dtype, device=self.device)
        for rows, plan, chart, part, size in self._charts(words, lengths, dtype):
            outer = charts.outside(plan, chart, size, part)
            emitting = [number for number, widths in enumerate(plan.widths) if 1 in widths]
            alpha = torch.cat([outer[number, 1] for number in emitting]).permute(2, 1, 0)
            law = alpha @ torch.cat([self.emission[plan.members[number]] for number in emitting]).to(dtype)
            total = law.sum(-1, keepdim=True)
            out[rows, : part.shape[1]] = law / total.masked_fill_(total == 0, 1)
        return out

    def log_probability(
        self, tokens: Int64[Tensor, "n T"], lengths: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """Return the logarithm of the probability of each sentence, (n,) float64; arguments as `conditionals`."""
        words, lengths = read_sentences(tokens, lengths, self.words, "Grammar.log_probability")
        out = self.start.new_empty(len(tokens))
        for rows, plan, chart, part, size in self._charts(words, lengths):
            top = torch.cat(charts.whole(plan, chart, size)).sum(0)
            out[rows] = top.log() + plan.scale[part].sum(1)
        return out

    def spine_posteriors(
        self, tokens: Int64[Tensor, "n T"], lengths: Int64[Tensor, " n"] | None = None, *, depth: int = 4
    ) -> Float[Tensor, "n depth A"]:
        r"""Return the law of each symbol on the left spine given the sentence: the best that a probe can know.

        Args, Raises: as `conditionals`; `depth` as in `sample`.

        Returns:
            Shape (n, depth, A), float64.
        """
        words, lengths = read_sentences(tokens, lengths, self.words, "Grammar.spine_posteriors")
        out = self.start.new_zeros(len(tokens), depth, self.symbols)
        for rows, plan, chart, _, size in self._charts(words, lengths):
            for d, joint in enumerate(charts.left_spine(plan, chart, size, depth)):
                law = torch.cat(joint)
                out[rows[:, None], d, torch.cat(plan.members)] = (law / law.sum(0)).T
        return out

    def emitter_posteriors(
        self, tokens: Int64[Tensor, "n T"], lengths: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n T A"]:
        r"""Return the law of the symbol that emits each word given the sentence, $\propto\alpha_A(t,t+1)E_{Ax_t}$.

        Args, Raises: as `conditionals`.

        Returns:
            Shape (n, T, A), float64; zero after the end of a sentence.
        """
        words, lengths = read_sentences(tokens, lengths, self.words, "Grammar.emitter_posteriors")
        out = self.start.new_zeros(*tokens.shape, self.symbols)
        for rows, plan, chart, part, size in self._charts(words, lengths):
            outer = charts.outside(plan, chart, size, part)
            for number in (number for number, widths in enumerate(plan.widths) if 1 in widths):
                joint = (outer[number, 1] * chart[number, 1]).permute(2, 1, 0)
                out[
                    rows[:, None, None], torch.arange(part.shape[1], device=self.device)[:, None], plan.members[number]
                ] = joint
        total = out.sum(-1, keepdim=True)
        return out.div_(total.masked_fill_(total == 0, 1))

    def _range(self, length: int | tuple[int, int] | None) -> tuple[int, int]:
        if length is None:
            if self.longest is None:
                raise ValueError(
                    "Grammar.sample: a symbol of this grammar can contain itself, its sentences have no longest; "
                    "pass length, a number of words or (smallest, largest)"
                )
            return 1, self.longest
        shortest, longest = (length, length) if isinstance(length, int) else length
        if not 1 <= shortest <= longest:
            raise ValueError(f"Grammar.sample: expected length = (smallest, largest) from 1 on, got {length}")
        return shortest, longest if self.longest is None else max(shortest, min(longest, self.longest))

    def _plan(self, longest: int, dtype: torch.dtype = torch.float64) -> charts.Spans:
        if (longest, dtype) not in self._plans:
            tables = (self.weights.to(dtype), self.emission.to(dtype))
            self._plans[longest, dtype] = charts.spans(self.start.to(dtype), self.rules, *tables, longest)
        return self._plans[longest, dtype]

    def _charts(
        self, words: Int64[Tensor, "n T"], lengths: Int64[Tensor, " n"], dtype: torch.dtype = torch.float64
    ) -> Iterator[tuple[Int64[Tensor, " m"], charts.Spans, charts.Chart, Int64[Tensor, "m t"], Int64[Tensor, " m"]]]:
        """Cut a batch into pieces of like lengths: their rows, the plan, the inside chart, words and lengths."""
        largest = self._plan(words.shape[1], dtype).largest
        size = BUDGET[self.device.type] // (largest * words.shape[1] * dtype.itemsize)
        order = lengths.argsort(stable=True)
        for part in slices(len(words), max(size, 16)):
            rows = order[part]
            longest = int(lengths[rows[-1]])
            plan = self._plan(longest, dtype)
            piece = words[rows, :longest]
            chart = charts.inside(plan, piece)
            top = torch.cat(charts.whole(plan, chart, lengths[rows])).sum(0)
            if not ((top > 0) & top.isfinite()).all():
                bad = int((~((top > 0) & top.isfinite())).nonzero()[0, 0])
                i, why = int(rows[bad]), "no tree ends in these words" if top[bad] == 0 else "it is too long"
                sentence = [MASKED if v == self.words else v for v in words[i, : int(lengths[i])].tolist()]
                raise ValueError(
                    f"Grammar: sentence {i}, {sentence}, has probability {float(top[bad]):g} in {dtype}: {why}"
                )
            yield rows, plan, chart, piece, lengths[rows]
