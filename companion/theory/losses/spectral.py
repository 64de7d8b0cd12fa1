"""The spectral contrastive loss of a batch of pairs, and its gradient, in the cheaper of two forms."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.losses._shared import Collective, check_pair


def spectral_contrastive(
    z1: Float[Tensor, "n k"],
    z2: Float[Tensor, "n k"],
    mu: float = 1.0,
    form: Literal["auto", "gram", "pairs"] = "auto",
    sum_over_workers: Collective | None = None,
) -> Float[Tensor, ""]:
    r"""Estimate the spectral contrastive loss without bias from one batch of positive pairs.

    $$\hat\ell = -\frac2n\sum_i z_i^\top z_i^+ + \frac{\mu}{n(n-1)}\sum_{i\ne j}(z_i^\top z_j^+)^2 .$$

    The diagonal $i = j$ is left out: its pairs are positive, not independent, and would bias the estimate.
    The second sum has two equal forms. "pairs" takes the $n\times n$ matrix of products; "gram" takes two $k\times k$
    matrices, $\sum_{i,j}(z_i^\top z_j^+)^2 = \mathrm{tr}(Z_1^\top Z_1\,Z_2^\top Z_2)$, and its gradient from the
    formula, with $p_i = z_i^\top z_i^+$ and $c = \mu/(n(n-1))$

    $$\frac{\partial\hat\ell}{\partial Z_1} = 2c\,\bigl(Z_1(Z_2^\top Z_2) - \operatorname{diag}(p)\,Z_2\bigr)
    - \frac2nZ_2 .$$

    Loss and gradient are three products of $2n^2k$ operations as "pairs", four of $2nk^2$ as "gram": fewer from
    $n = \frac43k$ on. "auto" takes moments from $n = \frac32k$ and 256 pairs on; with fewer pairs it is calls that take
    the time, not operations (`benchmarks/RECORDS.md`, spectral_loss, the two forms side by side).

    Args:
        z1, z2: embeddings of first and second views, shape (n, k) each, any float dtype.
        mu: weight $\mu$ of repulsion; $\mu = 1$ is the loss of the theory.
        form: "gram", "pairs", or "auto" for the cheaper of the two.
        sum_over_workers: autograd-aware sum of a vector over workers; the loss is then that of the global batch.

    Returns:
        The loss, a scalar; in float32 where the embeddings are of lower precision.

    Raises:
        ValueError: if shapes differ, the batch has fewer than two pairs, or "pairs" is asked of several workers.

    References:
        HaoChen et al. (2021), section 4; `prop-unbiased`.

    Examples:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> float(spectral_contrastive(z, z))
        -5.0
        >>> float(spectral_contrastive(z, z.flip(0), mu=3.0))
        25.5
    """
    check_pair(z1, z2, "spectral_contrastive")
    n, k = z1.shape
    if form not in ("auto", "gram", "pairs"):
        raise ValueError(f"spectral_contrastive: form must be 'auto', 'gram' or 'pairs', got {form!r}")
    if form == "pairs" and sum_over_workers is not None:
        raise ValueError("spectral_contrastive: form='pairs' sees one worker only; use form='gram'")
    if n < 2 and sum_over_workers is None:
        raise ValueError("spectral_contrastive: needs at least two pairs, since repulsion is between different pairs")
    dtype = torch.promote_types(z1.dtype, torch.float32)
    z1, z2 = z1.to(dtype), z2.to(dtype)
    if sum_over_workers is not None:
        return _of_all_workers(z1, z2, mu, sum_over_workers)
    weight = mu / (n * (n - 1))
    if form == "gram" or (form == "auto" and 2 * n >= 3 * k and n >= 256):
        return _OfMoments.apply(z1, z2, -2 / n, weight)[0]  # type: ignore[index]
    S = z1 @ z2.T
    positive = S.diagonal()
    return weight * (S.square().sum() - torch.dot(positive, positive)) - 2 / n * positive.sum()


def _of_all_workers(z1: Tensor, z2: Tensor, mu: float, sum_over_workers: Collective) -> Tensor:
    """The loss of the global batch from one message: both second moments, both sums over the diagonal, the size."""
    k = z1.shape[1]
    positive = (z1 * z2).sum(1)
    sums = torch.stack([positive.sum(), positive.square().sum(), positive.new_tensor(len(z1))])
    message = sum_over_workers(torch.cat([(z1.T @ z1).flatten(), (z2.T @ z2).flatten(), sums]))
    M1, M2, (attraction, diagonal, n) = message.split([k * k, k * k, 3])
    return -2 / n * attraction + mu / (n * (n - 1)) * (M1 @ M2 - diagonal)  # a trace: M1 and M2 are symmetric


class _OfMoments(torch.autograd.Function):
    """The sum of a p_i + c (z_i^T z_j^+)^2 over pairs i and over i != j, with four products where autograd takes six.

    Moments and p are outputs too, constant ones, for the backward pass to take up. Where that pass is itself
    differentiated, it starts from the views instead.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z1: Tensor, z2: Tensor, a: float, c: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        M1, M2, p = z1.T @ z1, z2.T @ z2, torch.linalg.vecdot(z1, z2)
        return a * p.sum() + c * (torch.dot(M1.flatten(), M2.flatten()) - torch.dot(p, p)), M1, M2, p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, float], output: tuple[Tensor, ...]) -> None:
        z1, z2, ctx.a, ctx.c = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # of the moments they would be matrices of zeros
        ctx.save_for_backward(z1, z2, *output[1:])
        ctx.save_for_forward(z1, z2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        z1, z2, M1, M2, p = ctx.saved_tensors
        g: Tensor | None = gradients[0]
        if g is None:
            return None, None, None, None
        if torch.is_grad_enabled():
            M1, M2, p = z1.T @ z1, z2.T @ z2, torch.linalg.vecdot(z1, z2)
        rows, c = (g * (ctx.a - 2 * ctx.c * p))[:, None], 2 * ctx.c * g
        first = (z1 @ (c * M2)).add_(rows * z2) if ctx.needs_input_grad[0] else None
        second = (z2 @ (c * M1)).add_(rows * z1) if ctx.needs_input_grad[1] else None
        return first, second, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        z1, z2 = ctx.saved_tensors
        rows = (ctx.a - 2 * ctx.c * torch.linalg.vecdot(z1, z2))[:, None]
        change = z1.new_zeros(())
        for z, other, tangent in ((z1, z2, tangents[0]), (z2, z1, tangents[1])):
            if tangent is not None:
                change = change + ((2 * ctx.c * z @ (other.T @ other) + rows * other) * tangent).sum()
        return change, None, None, None
