r"""Flatness of many transformers at once: traces from squared gradients of single sentences, and of the Hessian.

The gradient in one sentence is that of a run of its own: with n copies of the parameters of each run, stacked, one
backward pass gives the gradients of S runs in n sentences.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from companion.lab.languages.tokens import slices
from companion.lab.masked.architecture import logits
from companion.lab.masked.evaluation import Evaluation, Excess, Watch, ready
from companion.lab.masked.transformer import Transformers
from companion.theory import curvature
from companion.theory.curvature import Params, TraceEstimate
from companion.theory.trace_estimates import estimate

__all__ = ["Evaluation", "Excess", "Watch", "traces", "block_traces", "root_traces", "hessian_trace"]

NUMBERS = 2**23  # entries of all gradients that are in memory at once


def traces(
    model: Transformers,
    evaluation: Evaluation,
    *,
    sentences: int = 600,
    generator: torch.Generator | None = None,
    labels: Int64[Tensor, "S n"] | None = None,
) -> list[TraceEstimate]:
    r"""Estimate $\operatorname{tr}G=\E_c\E_{v\sim q}\lVert\nabla_\theta\log q_\theta(v\mid c)\rVert^2$ of every run.

    As `companion.theory.curvature.fisher_trace`, for all runs together. Their labels come from the same uniform
    numbers, so that similar runs have similar errors.

    Args:
        model: in evaluation mode.
        evaluation: contexts.
        sentences: how many of them, from the first.
        generator: source of the labels, on the evaluation's device; needed where there are no `labels`.
        labels: given labels in place of labels of the model.

    Returns:
        One estimate a run, its standard error that of sentences drawn at random.

    Raises:
        ValueError: the model is in training mode, has another vocabulary, or there is no source of labels.

    References:
        Liu et al. (2023), appendix B.1; `cor-flat-cheap-trace`.
    """
    squares = _squares(model, evaluation.first(sentences), generator, labels)
    total = torch.stack(list(squares.values())).sum(0)
    return [estimate(terms, "traces") for terms in total]


def block_traces(
    model: Transformers,
    evaluation: Evaluation,
    *,
    sentences: int = 600,
    generator: torch.Generator | None = None,
    labels: Int64[Tensor, "S n"] | None = None,
) -> list[dict[str, TraceEstimate]]:
    """Split `traces` into the contributions of the parameters, by name; arguments and errors are the same.

    References:
        The companion's own; `prop-flat-layers`, `thm-flat-tiling`.
    """
    squares = _squares(model, evaluation.first(sentences), generator, labels)
    return [{name: estimate(terms[s], "block_traces") for name, terms in squares.items()} for s in range(model.runs)]


def root_traces(
    model: Transformers,
    evaluation: Evaluation,
    *,
    sentences: int = 600,
    groups: int = 10,
    generator: torch.Generator | None = None,
    labels: Int64[Tensor, "S n"] | None = None,
) -> list[TraceEstimate]:
    r"""Estimate $\sum_i\sqrt{G_{ii}}$ of every run, $G_{ii}$ the mean of $g_i^2$ over sentences.

    The root of a mean of n terms is too small by about $\operatorname{Var}(g_i^2)/(8nG_{ii}^{3/2})$. A jackknife over K
    groups takes out what is proportional to $1/n$: with $\hat r$ from all sentences and $\hat r_{-k}$ from all but a
    group, $K\hat r-(K-1)\overline{\hat r_{-k}}$. What few sentences move, such as the embedding of a rare word, keeps
    some of it.

    Args:
        model, evaluation, sentences, generator, labels: as for `traces`.
        groups: K, which divides the number of sentences; memory is K numbers a parameter.

    Returns:
        One estimate a run; `samples` is K, and the standard error is the jackknife's.

    Raises:
        ValueError: as `traces`, or the groups do not divide the sentences.

    References:
        Quenouille (1956), Notes on bias in estimation; `prop-flat-root-trace`.
    """
    if groups < 2 or sentences % groups:
        raise ValueError(f"root_traces: expected 2 groups or more that divide {sentences} sentences, found {groups}")
    some, size = evaluation.first(sentences), sentences // groups
    labels = _labels(model, some, generator, "root_traces") if labels is None else labels[:, :sentences]
    parts = [_sums(model, some, labels, slice(k * size, (k + 1) * size)) for k in range(groups)]
    whole, without = (torch.zeros(shape, dtype=torch.float64) for shape in ((model.runs,), (groups, model.runs)))
    for name in parts[0]:
        one, left = _roots(torch.stack([part[name].double() for part in parts]).flatten(2), sentences)
        whole, without = whole.to(one) + one, without.to(left) + left
    value = groups * whole - (groups - 1) * without.mean(0)
    spread = ((groups - 1) / groups * (without - without.mean(0)).square().sum(0)).sqrt()
    return [TraceEstimate(float(v), float(e), groups) for v, e in zip(value, spread, strict=True)]


def _roots(sums: Float[Tensor, "K S P"], n: int) -> tuple[Float[Tensor, " S"], Float[Tensor, "K S"]]:
    """Sum of the roots of means over n sentences, of all groups and of all but one."""
    total, rest = sums.sum(0), n - n // len(sums)
    return (total / n).sqrt().sum(1), ((total - sums).clamp(min=0) / rest).sqrt().sum(2)


def hessian_trace(
    model: Transformers,
    run: int,
    evaluation: Evaluation,
    *,
    sentences: int = 200,
    samples: int = 50,
    generator: torch.Generator | None = None,
    chunk: int | None = 10,
    **keywords: Any,
) -> TraceEstimate:
    r"""Estimate $\operatorname{tr}H$ of one run, $H$ the Hessian of its exact loss on the first sentences.

    The loss is $-\sum_vp(v\mid c)\log q_\theta(v\mid c)$, averaged over those sentences: only probes are random.

    Args:
        model: in evaluation mode.
        run: s.
        evaluation: sentences and their laws.
        sentences: how many of them.
        samples, generator, chunk, keywords: as for `curvature.hessian_trace`.
    """
    ready(model, evaluation, "hessian_trace")
    some = evaluation.first(sentences)

    def loss(params: Params) -> Tensor:
        log_q = logits(params, model.shape, some.tokens, some.at).log_softmax(-1)
        return -(some.truth.to(log_q.dtype) * log_q).sum(-1).mean()

    return curvature.hessian_trace(loss, model.run(run), samples=samples, generator=generator, chunk=chunk, **keywords)


def _squares(
    model: Transformers, some: Evaluation, generator: torch.Generator | None, labels: Tensor | None
) -> dict[str, Float[Tensor, "S n"]]:
    """Squared norm of the gradient by each parameter, in each run and sentence, float64."""
    labels = _labels(model, some, generator, "traces") if labels is None else labels[:, : len(some)]
    found: dict[str, list[Tensor]] = {}
    for gradients in _gradients(model, some, labels, slice(0, len(some))):
        for name, g in gradients.items():
            found.setdefault(name, []).append(g.flatten(2).double().square().sum(2))
    return {name: torch.cat(parts, 1) for name, parts in found.items()}


def _sums(model: Transformers, some: Evaluation, labels: Tensor, rows: slice) -> Params:
    """Sum over sentences of the squared gradients, entry by entry, (S, ...)."""
    found: Params = {}
    for gradients in _gradients(model, some, labels, rows):
        for name, g in gradients.items():
            square = g.square().sum(1)
            found[name] = found[name] + square if name in found else square
    return found


def _gradients(model: Transformers, some: Evaluation, labels: Tensor, rows: slice) -> Iterator[Params]:
    """Gradients in single sentences, (S, c, ...) for the next c of them."""
    ready(model, some, "traces")
    params = {name: p.detach() for name, p in model.params().items()}
    S, T = model.runs, some.tokens.shape[1]
    size = max(1, NUMBERS // (S * model.shape.parameters))
    for piece in slices(rows.stop - rows.start, size):
        now = slice(rows.start + piece.start, rows.start + piece.stop)
        c = now.stop - now.start
        copies = {name: p.repeat_interleave(c, 0).requires_grad_() for name, p in params.items()}
        tokens, at = some.tokens[now].expand(S, c, T), some.at[now].expand(S, c)
        with torch.enable_grad():
            z = logits(copies, model.shape, tokens.reshape(S * c, 1, T), at.reshape(S * c, 1))
            loss = F.cross_entropy(z.flatten(0, 1), labels[:, now].reshape(-1), reduction="sum")
            gradients = torch.autograd.grad(loss, list(copies.values()))
        yield {name: g.unflatten(0, (S, c)) for name, g in zip(copies, gradients, strict=True)}


def _labels(
    model: Transformers, some: Evaluation, generator: torch.Generator | None, name: str
) -> Int64[Tensor, "S n"]:
    """One word of every run's own prediction a sentence, by the same uniform numbers for all runs."""
    if generator is None:
        raise ValueError(f"{name}: labels are drawn from the model; pass a generator, or the labels")
    cells = some.log_predictions(model).exp().cumsum(-1)
    u = torch.rand(len(some), 1, generator=generator, device=some.at.device, dtype=torch.float64)
    return (u > cells).sum(-1).clamp(max=cells.shape[-1] - 1)
