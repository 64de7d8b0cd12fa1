r"""One batch of $n = 2B$ views: NT-Xent as messages on a matching, and rows that are normalised.

The first views of $B$ images come first, their partners after them in the same order; $J$ is the swap matrix. In the
batch the positive-pair graph is the matching $J/n$, and the estimated graph is $P'/n$ without self-loops.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.feature_norms import row_normalise
from companion.theory.message_checks import ROUNDING, features, positive

__all__ = ["tangent", "batch_graph", "batch_gradient"]


def tangent(messages: Float[Tensor, "n k"], Z: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    r"""Pull messages at normalised rows back to the rows before normalisation.

    $$\nabla_{z_x}\mathcal L = \frac1{\lVert z_x\rVert}\bigl(I-u_xu_x^\top\bigr)g_x,\qquad u_x = z_x/\lVert z_x\rVert,$$

    where $g_x$ is the gradient with respect to $u_x$ as if it were free. A step thus aggregates messages and drops
    their radial part; on the sphere features are at rest when every message is radial, not when it is zero.

    Args:
        messages: $g$, or minus it, shape (n, k), any float dtype.
        Z: rows before normalisation, shape (n, k); unit rows give the projection alone.

    Returns:
        The projected messages, shape (n, k), float64; each row is orthogonal to its row of `Z`.

    Raises:
        ValueError: if the shapes differ or a row of `Z` is zero.

    References:
        The companion's own derivation; `prop-sphere`.

    Examples:
        >>> tangent(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]])).tolist()
        [[0.0, 2.0]]
    """
    if messages.shape != Z.shape:
        raise ValueError(f"tangent: messages {tuple(messages.shape)} and rows {tuple(Z.shape)} must have one shape")
    G, unit = features(messages, "tangent"), row_normalise(features(Z, "tangent"))
    length = torch.linalg.vector_norm(Z.double(), dim=1, keepdim=True)
    return (G - unit * (unit * G).sum(1, keepdim=True)) / length


def batch_graph(Z: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n n"]:
    r"""Return the walk that a batch estimates, each row a softmax over the other views.

    $$P'_{ij} = \frac{e^{z_i^\top z_j/\tau}}{\sum_{l\ne i}e^{z_i^\top z_l/\tau}}\ (j\ne i),\qquad P'_{ii} = 0 .$$

    Args:
        Z: rows of the batch, shape (n, k), $n\ge2$, any float dtype; NT-Xent has unit rows.
        temperature: $\tau > 0$.

    Returns:
        $P'$, shape (n, n), float64, rows sum to 1; in general not symmetric.

    Raises:
        ValueError: if the temperature is not positive or there are fewer than two rows.

    References:
        Chen et al. (2020), Eq. (1), for the softmax; `prop-batch-messages`.

    Examples:
        >>> batch_graph(torch.zeros(3, 1), 0.5).tolist()
        [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]
    """
    positive(temperature, "batch_graph", "temperature")
    Z = features(Z, "batch_graph")
    if len(Z) < 2:
        raise ValueError("batch_graph: a view is compared with the others, so a batch needs at least two rows")
    itself = torch.eye(len(Z), dtype=torch.bool, device=Z.device)
    return torch.softmax((Z @ Z.T / temperature).masked_fill(itself, -torch.inf), dim=1)


def batch_gradient(
    Z: Float[Tensor, "n k"], temperature: float, weights: Float[Tensor, " n"] | None = None
) -> Float[Tensor, "n k"]:
    r"""Return the gradient of NT-Xent with respect to the rows that enter the similarities.

    $$\mathcal L = -\sum_iw_i\log P'_{ii^+},\qquad
    \nabla_Z\mathcal L = -\frac2\tau\bigl[\mathrm{sym}(WJ) - \mathrm{sym}(WP')\bigr]Z,\qquad W = \mathrm{diag}(w),$$

    with $\mathrm{sym}(M) = \frac12(M+M^\top)$. NT-Xent has $w_i = 1/n$ and then $\mathrm{sym}(WJ) = J/n$. Detached
    attention weights give the loss of the authors' released code: both graphs are reweighted. For rows that are
    normalised inside the loss, follow with `tangent`.

    Args:
        Z: rows of the batch, shape (n, k), $n = 2B$ even, any float dtype; partners are $B$ rows apart.
        temperature: $\tau > 0$.
        weights: $w$, shape (n,), non-negative, of sum 1, taken as constant; $1/n$ when None.

    Returns:
        The gradient, shape (n, k), float64.

    Raises:
        ValueError: if the temperature is not positive, $n$ is odd, or the weights are no law on the rows.

    References:
        The companion's own derivation, from the loss of Chen et al. (2020), Eq. (1); the weighted loss is that of the
        code of Wang et al. (2023); `prop-batch-messages`, `prop-attention`.

    Examples:
        One image: the partner has all of the softmax, so nothing is left to learn.

        >>> batch_gradient(torch.eye(2), 0.5).tolist()
        [[0.0, 0.0], [0.0, 0.0]]
    """
    n = len(Z)
    if Z.ndim != 2 or n % 2:
        raise ValueError(f"batch_gradient: expected (2B, k) rows, first views then partners, got {tuple(Z.shape)}")
    positive(temperature, "batch_gradient", "temperature")
    walk, Z = batch_graph(Z, temperature), Z.double()
    w = torch.full((n,), 1 / n, dtype=Z.dtype, device=Z.device) if weights is None else weights.detach().double()
    if w.shape != (n,) or not (w >= 0).all() or abs(float(w.sum()) - 1) > ROUNDING:
        got = f"shape {tuple(w.shape)}, smallest {float(w.min()):g}, sum {float(w.sum()):.9g}"
        raise ValueError(f"batch_gradient: weights must be {n} numbers >= 0 of sum 1, got {got}; divide by their sum")
    swap = torch.eye(n, dtype=Z.dtype, device=Z.device).roll(n // 2, dims=0)
    excess = w[:, None] * (walk - swap)
    return (excess + excess.T) @ Z / temperature
