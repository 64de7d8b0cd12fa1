"""A loss over a batch that does not fit into memory, with its gradient, from parts of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class _Known(torch.autograd.Function):
    """A number whose gradient was computed before."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(outer[0] * g for g in ctx.gradients)


def in_parts(loss: Callable[[slice], Tensor], size: int, micro: int | None, parameters: Sequence[Tensor]) -> Tensor:
    """Return the mean loss over rows 0, ..., size - 1, differentiable, holding the graph of `micro` rows at a time.

    Args:
        loss: from rows to their mean loss, a scalar.
        size: number of rows.
        micro: rows at a time; None, or `size` and more, for all at once in the ordinary way.
        parameters: leaves by which the result will be differentiated, once.

    Returns:
        The mean; `backward` gives the sum of the parts' gradients, weighted by their rows.

    Examples:
        >>> x, data = torch.tensor(3.0, requires_grad=True), torch.tensor([1.0, 2.0, 6.0])
        >>> value = in_parts(lambda rows: (x * data[rows]).mean(), 3, 2, [x])
        >>> value.backward()
        >>> value.item(), x.grad.item()
        (9.0, 3.0)
    """
    if micro is None or micro >= size:
        return loss(slice(0, size))
    total, sums = parameters[0].new_zeros(()), [torch.zeros_like(p) for p in parameters]
    for start in range(0, size, micro):
        rows = slice(start, min(start + micro, size))
        share = loss(rows) * ((rows.stop - start) / size)
        for g, more in zip(sums, torch.autograd.grad(share, list(parameters)), strict=True):
            g += more
        total += share.detach()
    return _Known.apply(total, sums, *parameters)
