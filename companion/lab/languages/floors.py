r"""The entropy floor of a language: the masked-token loss of the best possible prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from companion.lab.languages.tokens import slices


@dataclass(frozen=True)
class Estimate:
    """A mean over independent draws.

    Attributes:
        value: the mean.
        stderr: its standard error.
        samples: number of draws.
    """

    value: float
    stderr: float
    samples: int


class Language(Protocol):
    """What `floor` asks of a language."""

    def draw(
        self, n: int, length: int | tuple[int, int] | None, generator: torch.Generator
    ) -> tuple[Int64[Tensor, "n T"], Int64[Tensor, " n"]]:
        """Sentences and their lengths."""
        ...

    def conditionals(
        self, tokens: Int64[Tensor, "n T"], lengths: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n T V"]:
        """The law of each word given all the others, zero after the end."""
        ...


def mean(values: Float[Tensor, " n"], weights: Float[Tensor, " n"] | None = None) -> Estimate:
    r"""Average independent draws; with weights, the ratio $\sum w_iy_i/\sum w_i$ and its standard error to first order.

    >>> mean(torch.tensor([1.0, 3.0]))
    Estimate(value=2.0, stderr=1.0, samples=2)
    """
    n, w = len(values), torch.ones_like(values) if weights is None else weights
    if n < 2:
        raise ValueError(f"mean: a standard error needs at least 2 draws, got {n}")
    value = (w * values).sum() / w.sum()
    spread = (w / w.mean() * (values - value)).square().sum() / (n - 1)
    return Estimate(float(value), math.sqrt(float(spread) / n), n)


def entropies(conditionals: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
    """Return the entropy of each law in nats; a row of zeros has none.

    >>> entropies(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]])).tolist()
    [0.6931471824645996, 0.0, 0.0]
    """
    return torch.special.entr(conditionals).sum(-1)


def floor(
    language: Language,
    n: int,
    generator: torch.Generator,
    *,
    length: int | tuple[int, int] | None = None,
    per: Literal["sentence", "token"] = "sentence",
    batch: int = 4096,
) -> Estimate:
    r"""Estimate the smallest masked-token loss, $\mathcal L^*=\mathbb E_{x,t}\,\mathrm H(p(\cdot\mid x_{-t}))$.

    The average is over drawn sentences; the entropy of each position is exact.

    Args:
        language: with `draw` and `conditionals`.
        n: sentences to draw.
        generator: source of the sentences, on the language's device.
        length: words a sentence, or the smallest and the largest number of them (grammars only); None where the
            language says how long its sentences are.
        per: "sentence": one position of each sentence is masked, each with the same probability; "token": every word
            of a large text counts the same, so that a long sentence counts more.
        batch: sentences drawn at a time.

    Returns:
        The floor in nats, with its standard error.

    Raises:
        ValueError: fewer than two sentences, or what `language.draw` refuses.

    References:
        The companion's own; `prop-flat-conditionals`.
    """
    values, weights = [], []
    for part in slices(n, batch):
        tokens, lengths = language.draw(part.stop - part.start, length, generator)
        values.append(entropies(language.conditionals(tokens, lengths)).sum(1) / lengths)
        weights.append(lengths.double() if per == "token" else torch.ones_like(values[-1]))
    return mean(torch.cat(values), torch.cat(weights))
