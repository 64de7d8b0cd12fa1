r"""What languages share: sentences as padded rows of integers, draws from tables of laws, checks of both.

A sentence is a row of `tokens`: words 0, ..., V-1, then `PAD` up to the longest sentence. `MASKED` inside a sentence is
a word that nobody has seen; every probability is then the one given the words that are seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

PAD = -1  # after the last word
MASKED = -2  # a word that is not seen
ROUNDING = 1e-6  # how far a law may be from summing to one before it is refused; float32 tables pass


def law(values: Tensor, where: str) -> Float[Tensor, " n"]:
    """Return a probability vector or a matrix of such rows, float64, summing to one; refuse what does not."""
    p = torch.as_tensor(values).double()
    if not (p.isfinite() & (p >= 0)).all():
        raise ValueError(f"{where}: probabilities are finite and not negative, found {float(p.min()):g}")
    gap = (p.sum(-1) - 1).abs()
    if not (gap <= ROUNDING).all():
        row = f" row {int(gap.argmax())}" if p.ndim == 2 else ""
        found = float(p.sum(-1).reshape(-1)[int(gap.argmax())])
        raise ValueError(f"{where}:{row} sums to {found:.9g}, expected 1; divide it by its sum")
    return p / p.sum(-1, keepdim=True)


def table(laws: Float[Tensor, "rows n"]) -> Float[Tensor, " cells"]:
    """The distribution functions of many laws in a row, law r between r and r + 1: one search draws from any of them.

    >>> table(torch.tensor([[0.25, 0.75], [1.0, 0.0]])).tolist()
    [0.25, 1.0, 2.0, 2.0]
    """
    summed = laws.double().cumsum(1)
    return (summed / summed[:, -1:] + torch.arange(len(laws), device=laws.device)[:, None]).flatten()


def uniforms(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Uniform numbers in [0, 1) that stay below the next integer when an integer is added."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).clamp_(max=1 - 2**-32)


def pick(cells: Float[Tensor, " cells"], row: Int64[Tensor, "*n"], u: Float[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    """Draw from law `row` of a `table`; the result counts cells from the start of the whole table.

    >>> cells = table(torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    >>> pick(cells, torch.tensor([0, 0, 1]), torch.tensor([0.2, 0.3, 0.9], dtype=torch.float64)).tolist()
    [0, 1, 2]
    """
    return torch.searchsorted(cells, row + u, right=True)


def numpy_generator(generator: torch.Generator | np.random.Generator) -> np.random.Generator:
    """Return a generator of numpy, which has Dirichlet laws and permutations: the one given, or a new one it seeds."""
    if isinstance(generator, np.random.Generator):
        return generator
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator, device=generator.device)))


def on_device(device: torch.device, generator: torch.Generator, where: str) -> None:
    """Refuse a generator that lives on another device than the language."""
    if generator.device.type != device.type:
        raise ValueError(
            f"{where}: the language is on {device}, the generator on {generator.device}; "
            f"make torch.Generator('{device.type}') or move the language with .to('{generator.device.type}')"
        )


def read_sentences(
    tokens: Int64[Tensor, "n T"], lengths: Int64[Tensor, " n"] | None, words: int, where: str
) -> tuple[Int64[Tensor, "n T"], Int64[Tensor, " n"]]:
    """Check sentences; return them with word V for what is masked and V + 1 for padding, and their lengths.

    Args:
        tokens: words, `MASKED` or `PAD`, shape (n, T), int64.
        lengths: number of words of each, or None to count what comes before the padding.
        words: V.
        where: the caller, for the message.

    Raises:
        ValueError: a token that is no word, a sentence without words or with padding inside, a length out of range.
    """
    if tokens.ndim != 2 or tokens.dtype != torch.int64:
        raise ValueError(f"{where}: expected tokens (n, T) int64, got {tuple(tokens.shape)} {tokens.dtype}")
    n, T = tokens.shape
    if lengths is None:
        lengths = (tokens != PAD).sum(1)
    if lengths.shape != (n,) or lengths.dtype != torch.int64:
        raise ValueError(f"{where}: expected lengths ({n},) int64, got {tuple(lengths.shape)} {lengths.dtype}")
    inside = torch.arange(T, device=tokens.device) < lengths[:, None]
    wrong = inside & ((tokens >= words) | ((tokens < 0) & (tokens != MASKED)))
    if wrong.any():
        i, t = (int(v) for v in wrong.nonzero()[0])
        what = f"token {int(tokens[i, t])} at position {t} of sentence {i}"
        raise ValueError(
            f"{where}: {what} is no word; expected 0 to {words - 1}, {MASKED} for a masked word, {PAD} after the end"
        )
    if n and not (int(lengths.min()) >= 1 and int(lengths.max()) <= T):
        i = int(((lengths < 1) | (lengths > T)).nonzero()[0])
        raise ValueError(f"{where}: sentence {i} has {int(lengths[i])} words, expected 1 to {T}, the width of tokens")
    return torch.where(inside, tokens.masked_fill(tokens == MASKED, words), words + 1), lengths


def slices(n: int, size: int) -> Iterator[slice]:
    """Cut 0, ..., n - 1 into pieces of at most `size`, of 1 where that is less."""
    size = max(size, 1)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
