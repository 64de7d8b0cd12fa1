"""Masked sentences for many runs at once: from a language's words to the tokens that a transformer reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from companion.lab.languages.hmm import HiddenMarkov
from companion.lab.languages.pcfg import Grammar
from companion.lab.languages.tokens import PAD
from companion.lab.masked.architecture import Shape

Language = HiddenMarkov | Grammar  # or whatever has words, device, to, draw and conditionals as these
Length = int | tuple[int, int] | None
Targets = Literal["sampled", "exact"]


@dataclass(frozen=True)
class Batch:
    """Masked sentences of S runs.

    Attributes:
        tokens: (S, B, T) int64, with the shape's `mask` and `pad`.
        at: the masked position, (S, B) int64.
        words: the word that was there, (S, B) int64.
        law: the target as a law over words, (S, B, V) float32; None where the word itself is the target everywhere.
    """

    tokens: Int64[Tensor, "S B T"]
    at: Int64[Tensor, "S B"]
    words: Int64[Tensor, "S B"]
    law: Float[Tensor, "S B V"] | None = None

    def __getitem__(self, rows: slice) -> Batch:
        """Some sentences of every run."""
        law = None if self.law is None else self.law[:, rows]
        return Batch(self.tokens[:, rows], self.at[:, rows], self.words[:, rows], law)


def sentences(
    language: Language, shape: Shape, n: int, generator: torch.Generator, length: Length = None
) -> tuple[Int64[Tensor, "n T"], Int64[Tensor, " n"]]:
    """Draw sentences that a transformer can read, as the language gives them, and their lengths.

    Args:
        language: where they come from, on the generator's device.
        shape: of the reader.
        n: number of sentences.
        generator: source of the draw.
        length: number of words, or the least and the largest number; None for what the language has, which for a
            hidden Markov chain is `shape.length`.

    Raises:
        ValueError: the language has other words than the shape, longer sentences, or mixed lengths without `padded`.
    """
    if language.words != shape.vocabulary:
        raise ValueError(
            f"sentences: the language has {language.words} words, the shape {shape.vocabulary}; make them equal"
        )
    chain = isinstance(language, HiddenMarkov)
    if isinstance(language, HiddenMarkov):
        if isinstance(length, tuple):
            raise ValueError(f"sentences: a chain has sentences of one length, found {length}; pass a number")
        tokens, lengths = language.draw(n, shape.length if length is None else length, generator)
    else:
        tokens, lengths = language.draw(n, length, generator)
    if tokens.shape[1] > shape.length:
        raise ValueError(
            f"sentences: up to {tokens.shape[1]} words, the shape reads {shape.length}; raise shape.length"
        )
    if not (chain or shape.padded or bool((lengths == tokens.shape[1]).all())):
        raise ValueError("sentences: the language mixes lengths; build the shape with padded=True, or fix length")
    return tokens, lengths


def masked(tokens: Int64[Tensor, "n T"], at: Int64[Tensor, " n"] | None, shape: Shape) -> Int64[Tensor, "n T"]:
    """Write sentences of a language in the tokens of a shape, with the mask at one position of each, or at none."""
    tokens = tokens.masked_fill(tokens == PAD, shape.pad)
    return tokens if at is None else tokens.scatter(1, at[:, None], shape.mask)


def uniform_positions(lengths: Int64[Tensor, " n"], generator: torch.Generator) -> Int64[Tensor, " n"]:
    """Draw one position of each sentence, every word with the same probability."""
    u = torch.rand(len(lengths), generator=generator, device=lengths.device)
    return torch.minimum((u * lengths).long(), lengths - 1)


def hide(
    language: Language,
    shape: Shape,
    targets: Sequence[Targets],
    tokens: Int64[Tensor, "n T"],
    lengths: Int64[Tensor, " n"],
    generator: torch.Generator,
    groups: int = 1,
) -> Batch:
    """Mask one word of each sentence, for S runs of which each has n groups / S sentences.

    Args:
        language: knows the exact laws.
        shape: of the reader.
        targets: "sampled" or "exact" for each of S runs.
        tokens: sentences of one group of runs, run after run.
        lengths: of the sentences.
        generator: source of the positions.
        groups: groups of runs, which all see these sentences.
    """
    own = len(targets) // groups  # runs with sentences of their own
    at = uniform_positions(lengths, generator)
    words, law = tokens.gather(1, at[:, None]).squeeze(1), None
    if "exact" in targets:
        exact = [any(target == "exact" for target in targets[s::own]) for s in range(own)]  # in one of its groups
        rows = torch.tensor(exact, device=tokens.device).repeat_interleave(len(tokens) // own).nonzero()[:, 0]
        law = torch.zeros(len(tokens), shape.vocabulary, device=tokens.device)
        known = language.conditionals(tokens[rows], lengths[rows])
        law[rows] = known[torch.arange(len(rows), device=tokens.device), at[rows]].float()
        law = spread(law, own, groups)
        sampled = torch.tensor([target == "sampled" for target in targets], device=tokens.device)
        one_hot = torch.zeros_like(law).scatter_(2, spread(words, own, groups)[..., None], 1.0)
        law = torch.where(sampled[:, None, None], one_hot, law)
    tokens, at, words = (spread(x, own, groups) for x in (masked(tokens, at, shape), at, words))
    return Batch(tokens, at, words, law)


def spread(x: Tensor, own: int, groups: int) -> Tensor:
    """Hand the rows of one group to every run of all groups: from (own B, ...) to (groups own, B, ...)."""
    return x.reshape(1, own, -1, *x.shape[1:]).expand(groups, *([-1] * (x.ndim + 1))).flatten(0, 1)
