"""What makes a table of rules a grammar: laws that sum to one, symbols that are used and that come to an end."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from companion.lab.languages.tokens import ROUNDING, law


def check(
    names: tuple[str, ...],
    start: Float[Tensor, " A"],
    rules: Int64[Tensor, "R 3"],
    weights: Float[Tensor, " R"],
    emission: Float[Tensor, "A V"],
    lexicon: tuple[str, ...] = (),
) -> tuple[Float[Tensor, " A"], Int64[Tensor, "R 3"], Float[Tensor, " R"], Float[Tensor, "A V"]]:
    """Return start, rules, weights and emission, in float64, summing to one; refuse what is no grammar.

    Raises:
        ValueError: see `Grammar`.
    """
    A, R, V = len(names), len(weights), emission.shape[-1]
    got = [tuple(x.shape) for x in (start, rules, weights, emission)]
    if not A or got != [(A,), (R, 3), (R,), (A, V)]:
        raise ValueError(
            f"Grammar: for {A} names expected start ({A},), rules (R, 3), weights (R,), emission ({A}, V); "
            f"got {', '.join(map(str, got))}"
        )
    if lexicon and len(lexicon) != V:
        raise ValueError(f"Grammar: expected a lexicon of {V} words, one a column of emission, got {len(lexicon)}")
    if R and not (rules.dtype == torch.int64 and int(rules.min()) >= 0 and int(rules.max()) < A):
        raise ValueError(f"Grammar: expected rules of symbols 0 to {A - 1}, int64; got {rules.dtype}, {rules.tolist()}")
    start, weights, emission = law(start, "Grammar: start"), weights.double(), emission.double()
    for what, values in (("rules", weights), ("words", emission)):
        if not (values.isfinite() & (values >= 0)).all():
            raise ValueError(
                f"Grammar: probabilities of {what} are finite and not negative, found {float(values.min())}"
            )
    total = emission.sum(1).index_add(0, rules[:, 0], weights)
    if not ((total - 1).abs() <= ROUNDING).all():
        A_ = int((total - 1).abs().argmax())
        raise ValueError(
            f"Grammar: rules and words of symbol {names[A_]} have probabilities that sum to {float(total[A_]):.9g}, "
            f"expected 1; divide them by their sum"
        )
    rules, weights = rules[weights > 0], weights[weights > 0]
    used, ending = reached(start > 0, rules), terminating(emission.sum(1) > 0, rules)
    if not used.all():
        lost = ", ".join(name for name, kept in zip(names, used.tolist(), strict=True) if not kept)
        raise ValueError(f"Grammar: no sentence contains symbol {lost}; leave it out, or see grammars.without_unused")
    if not ending.all():
        lost = ", ".join(name for name, ends in zip(names, ending.tolist(), strict=True) if not ends)
        raise ValueError(f"Grammar: symbol {lost} never comes to an end; give it, or what is below it, a word")
    return start, rules, weights / total[rules[:, 0]], emission / total[:, None]


def reached(tops: Bool[Tensor, " A"], rules: Int64[Tensor, "R 3"]) -> Bool[Tensor, " A"]:
    """Return which symbols some tree contains.

    >>> reached(torch.tensor([True, False, False]), torch.tensor([[0, 1, 1]])).tolist()
    [True, True, False]
    """
    used = tops.clone()
    for _ in range(len(tops)):
        used[rules[used[rules[:, 0]], 1:].flatten()] = True
    return used


def terminating(emits: Bool[Tensor, " A"], rules: Int64[Tensor, "R 3"]) -> Bool[Tensor, " A"]:
    """Return which symbols generate at least one sentence.

    >>> terminating(torch.tensor([False, True, False]), torch.tensor([[0, 1, 1], [2, 2, 1]])).tolist()
    [True, True, False]
    """
    ending = emits.clone()
    for _ in range(len(emits)):
        ending[rules[ending[rules[:, 1]] & ending[rules[:, 2]], 0]] = True
    return ending


def most_words(emits: Bool[Tensor, " A"], rules: Int64[Tensor, "R 3"]) -> Int64[Tensor, " A"] | None:
    """Return how many words each symbol can generate at most, None where a symbol can contain itself.

    >>> most_words(torch.tensor([False, True, True]), torch.tensor([[0, 1, 1], [1, 2, 2]]))
    tensor([4, 2, 1])
    >>> most_words(torch.tensor([False, True]), torch.tensor([[0, 0, 1]])) is None
    True
    """
    parent, left, right = rules.cpu().unbind(1)
    most = emits.cpu().long()
    for _ in range(len(emits) + 1):
        more = most.scatter_reduce(0, parent, most[left] + most[right], "amax")
        if torch.equal(more, most):
            return most
        most = more
    return None
