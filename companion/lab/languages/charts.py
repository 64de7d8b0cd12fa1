r"""Inside and outside probabilities of every span of a batch of sentences, as products of matrices.

Symbols that can generate the same widths form a class; a chart holds one array a class and width, shape (symbols of the
class, starts, sentences), and nothing for widths that the class cannot have. In a grammar with levels this leaves out
nearly everything.

$$\beta_A(i,j)=\sum_{A\to BC}q_{ABC}\sum_{i<k<j}\beta_B(i,k)\,\beta_C(k,j),\qquad\beta_A(i,i+1)=E_{Ax_i}$$

is `inside`, with words of the span of $A$ from $i$ to $j-1$; `outside` is the probability of everything but the span.
Both divide the probability of each word $v$ by a constant $c_v$ (see `Spans`), which cancels from every ratio.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Chart = dict[tuple[int, int], Tensor]  # (class, width) to (symbols, starts, sentences)


@dataclass(frozen=True, eq=False)
class Block:
    """The rules that lead from one class to two: classes a, b, c and the tensor q, (symbols of a, of b times of c)."""

    a: int
    b: int
    c: int
    q: Float[Tensor, "a bc"]


@dataclass(frozen=True, eq=False)
class Spans:
    r"""A grammar ready for sentences of up to `longest` words.

    Attributes:
        longest: L.
        members: the symbols of each class.
        widths: the widths that each class can have, up to L.
        blocks: the rules by classes.
        start: law of the top symbol, class by class.
        words: $E_{Av}/c_v$, class by class, (symbols, V + 2); column V is a masked word, column V + 1 padding.
        scale: $\log c_v$, (V + 2,); $c_v$ is the mean of $E_{Av}$ over symbols, so that numbers stay near one.
    """

    longest: int
    members: tuple[Int64[Tensor, " a"], ...]
    widths: tuple[frozenset[int], ...]
    blocks: tuple[Block, ...]
    start: tuple[Float[Tensor, " a"], ...]
    words: tuple[Float[Tensor, "a V2"], ...]
    scale: Float[Tensor, " V2"]

    def splits(self, block: Block, width: int) -> Iterator[int]:
        """The widths that the left child may have in a span of this width."""
        b, c = self.widths[block.b], self.widths[block.c]
        return (k for k in range(1, width) if k in b and width - k in c)

    @property
    def largest(self) -> int:
        """Number of pairs of symbols in the largest block."""
        return max((block.q.shape[1] for block in self.blocks), default=1)


def possible_widths(rules: Int64[Tensor, "R 3"], emits: Bool[Tensor, " A"], longest: int) -> Bool[Tensor, "longest A"]:
    """Return which symbols can generate exactly 1, 2, ... words.

    >>> possible_widths(torch.tensor([[0, 1, 1]]), torch.tensor([False, True]), 3).tolist()
    [[False, True], [True, False], [False, False]]
    """
    parent, left, right = rules.cpu().unbind(1)
    possible = torch.zeros(longest + 1, len(emits), dtype=torch.bool)
    possible[1] = emits.cpu()
    for width in range(2, longest + 1):
        found = (possible[1:width, left] & possible[1:width, right].flip(0)).any(0)
        possible[width, parent[found]] = True
    return possible[1:]


def spans(
    start: Float[Tensor, " A"],
    rules: Int64[Tensor, "R 3"],
    weights: Float[Tensor, " R"],
    emission: Float[Tensor, "A V"],
    longest: int,
) -> Spans:
    """Sort symbols into classes and rules into blocks, for sentences of up to `longest` words."""
    possible = possible_widths(rules, emission.sum(1) > 0, longest).T
    kinds, kind = possible.unique(dim=0, return_inverse=True)
    members = [(kind == number).nonzero()[:, 0] for number in range(len(kinds))]
    place = torch.empty_like(kind)  # of a symbol in its class
    for group in members:
        place[group] = torch.arange(len(group))
    ends, places = kind[rules.cpu()], place[rules.cpu()]
    blocks = []
    for a, b, c in ends.unique(dim=0).tolist():
        chosen = (ends == torch.tensor([a, b, c])).all(1)
        sizes = (len(members[a]), len(members[b]), len(members[c]))
        q = torch.zeros(sizes, dtype=weights.dtype)
        q.index_put_(tuple(places[chosen].T), weights.cpu()[chosen], accumulate=True)
        blocks.append(Block(a, b, c, q.flatten(1).to(start.device)))
    c_v = emission.mean(0).clamp(min=torch.finfo(emission.dtype).tiny)
    columns = torch.cat([emission / c_v, emission.sum(1, keepdim=True), torch.zeros_like(emission[:, :1])], 1)
    groups = tuple(group.to(start.device) for group in members)
    return Spans(
        longest=longest,
        members=groups,
        widths=tuple(frozenset((row.nonzero()[:, 0] + 1).tolist()) for row in kinds),
        blocks=tuple(blocks),
        start=tuple(start[group] for group in groups),
        words=tuple(columns[group] for group in groups),
        scale=torch.cat([c_v.log(), c_v.new_zeros(2)]),
    )


def inside(plan: Spans, words: Int64[Tensor, "n T"]) -> Chart:
    r"""Return $\beta$ of every span, by width.

    Args:
        plan: the grammar, with `longest` at least T.
        words: sentences with V for a masked word and V + 1 after the end; spans that reach past the end have 0.

    Returns:
        The chart, differentiable in `plan.words`, `plan.start` and the blocks.

    References:
        The companion's own; `eq-flat-inside`.
    """
    n, T = words.shape
    chart: Chart = {
        (number, 1): columns[:, words.T] for number, columns in enumerate(plan.words) if 1 in plan.widths[number]
    }
    for width in range(2, T + 1):
        starts = T - width + 1
        for block in plan.blocks:
            splits = list(plan.splits(block, width))
            if not splits:
                continue
            sizes = len(plan.members[block.b]), len(plan.members[block.c]), starts, n
            pairs = plan.scale.new_zeros(sizes)
            for k in splits:
                pairs.addcmul_(chart[block.b, k][:, None, :starts], chart[block.c, width - k][None, :, k:])
            total = (block.q @ pairs.view(len(block.q.T), -1)).view(-1, starts, n)
            key = block.a, width
            chart[key] = chart[key] + total if key in chart else total
    return chart


def outside(plan: Spans, chart: Chart, lengths: Int64[Tensor, " n"], words: Int64[Tensor, "n T"]) -> Chart:
    r"""Return the outside probability of every span, widest first.

    $$\alpha_B(i,k)=\pi_B[\,i,k\text{ is the sentence}\,]+\sum_{A\to BC}q_{ABC}\sum_{j>k}\alpha_A(i,j)\beta_C(k,j)
    +\sum_{A\to CB}q_{ACB}\sum_{h<i}\alpha_A(h,k)\beta_C(h,i).$$

    Args:
        plan: the grammar.
        chart: from `inside`.
        lengths: words of each sentence, (n,).
        words: as for `inside`.

    References:
        The companion's own; `eq-flat-outside`.
    """
    T = words.shape[1]
    out = {key: torch.zeros_like(value) for key, value in chart.items()}
    for number, width in out:
        out[number, width][:, 0] += plan.start[number][:, None] * (lengths == width)
    for width in range(T, 1, -1):
        starts = T - width + 1
        for block in plan.blocks:
            splits = list(plan.splits(block, width))
            if not splits:
                continue
            pairs = (block.q.T @ out[block.a, width].view(len(block.q), -1)).view(
                len(plan.members[block.b]), len(plan.members[block.c]), starts, -1
            )
            product = torch.empty_like(pairs)
            for k in splits:
                left, right = chart[block.b, k][:, :starts], chart[block.c, width - k][:, k:]
                out[block.b, k][:, :starts] += torch.mul(pairs, right, out=product).sum(1)
                out[block.c, width - k][:, k:] += torch.mul(pairs, left[:, None], out=product).sum(0)
    return out


def whole(plan: Spans, chart: Chart, lengths: Int64[Tensor, " n"]) -> list[Float[Tensor, "a n"]]:
    """Return for each class the probability of its symbols on top of each sentence, the start law included."""
    tops = []
    for number, start in enumerate(plan.start):
        top = start.new_zeros(len(start), len(lengths))
        for width in plan.widths[number]:
            if (number, width) in chart:
                top = torch.where(lengths == width, chart[number, width][:, 0], top)
        tops.append(start[:, None] * top)
    return tops


def left_spine(
    plan: Spans, chart: Chart, lengths: Int64[Tensor, " n"], depth: int
) -> Iterator[list[Float[Tensor, "a n"]]]:
    r"""Yield for depths 0, 1, ... the joint probability of the sentence and of each symbol on the left spine.

    The spine is the top symbol, its left child, the left child of that, and so on; where it has reached the first word
    it stays. With $\gamma_d(A,w)$ the probability of all words but the first $w$ when $A$ spans those at depth $d$,
    $\gamma_{d+1}(B,k)=\sum_{A\to BC}q_{ABC}\sum_w\gamma_d(A,w)\beta_C(k,w)$.

    Args:
        plan: the grammar.
        chart: from `inside`.
        lengths: words of each sentence, (n,).
        depth: number of depths.

    Yields:
        One array a class, (symbols, n); their sum over symbols is the probability of the sentence.
    """
    gamma = {(number, width): plan.start[number][:, None] * (lengths == width) for number, width in chart}
    ended = [start.new_zeros(len(start), len(lengths)) for start in plan.start]
    for _ in range(depth):
        joint = [value.clone() for value in ended]
        for (number, width), value in gamma.items():
            joint[number] += value * chart[number, width][:, 0]
            if width == 1:
                ended[number] = ended[number] + value * chart[number, 1][:, 0]
        yield joint
        below = {key: torch.zeros_like(value) for key, value in gamma.items()}
        for block in plan.blocks:
            for width in sorted(width for number, width in gamma if number == block.a):
                pairs = (block.q.T @ gamma[block.a, width]).view(
                    len(plan.members[block.b]), len(plan.members[block.c]), -1
                )
                for k in plan.splits(block, width):
                    below[block.b, k] += (pairs * chart[block.c, width - k][:, k]).sum(1)
        gamma = below
