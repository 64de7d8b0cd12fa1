r"""Contrastive learning as message passing: what one gradient step does to the features of all views.

The features themselves are the variable; no network. Every step descends the *weighted* features $F = D^{1/2}U$, which
divides the step of view $x$ in $U$ by $p_x$. Each factor belongs to one loss (`companion.theory.message_losses`):

- $\frac12\mathbb E\lVert f-f^+\rVert^2$: factor $2\alpha$ on $L = I-\bar A$ (without the half $4\alpha$);
- $-\frac1\tau\mathbb E f^\top f^+$: factor $2\alpha/\tau$ on $\bar A$, and nothing shrinks;
- $\mu\,\mathbb E_x\log\mathbb E_{x'}e^{f^\top f'/\tau}$: factor $-2\alpha\mu/\tau$ on $\bar A'_{\rm sym}$.

Descending $U$ instead would use the unnormalised $D-A$ and $A-A'_{\rm sym}$ with the same factors.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.batch_messages import batch_gradient, batch_graph, tangent
from companion.theory.graph_attention import (
    attended_graph,
    attention_weights,
    attentive_gradient,
    attentive_loss,
    batch_attention,
    cosines,
    cross_share,
    without_self_loops,
)
from companion.theory.message_checks import dense, features, marginal, on_graph, positive
from companion.theory.message_losses import (
    alignment_loss,
    contrastive_loss,
    equilibrium_gap,
    estimated_graph,
    mutual_information,
    net_message,
    normalized_estimate,
    uniformity_loss,
)
from companion.theory.oversmoothing import (
    appnp,
    centre,
    collapse_distance,
    collapse_limit,
    collapse_rate,
    layer_norm,
    momentum_matrix,
    momentum_rate,
    momentum_step,
    multi_stage_rate,
    multi_stage_step,
    node_norm,
    optimal_predictor,
    pair_norm,
    predictor_step,
    predictor_velocity,
    row_normalise,
    stop_gradient_step,
)

__all__ = [
    "alignment_loss",
    "uniformity_loss",
    "contrastive_loss",
    "estimated_graph",
    "mutual_information",
    "equilibrium_gap",
    "alignment_step",
    "uniformity_step",
    "contrastive_step",
    "force",
    "kernel_step",
    "tangent",
    "batch_graph",
    "batch_gradient",
    "collapse_rate",
    "collapse_distance",
    "collapse_limit",
    "stop_gradient_step",
    "momentum_step",
    "momentum_matrix",
    "momentum_rate",
    "predictor_step",
    "optimal_predictor",
    "predictor_velocity",
    "multi_stage_rate",
    "multi_stage_step",
    "appnp",
    "row_normalise",
    "layer_norm",
    "node_norm",
    "pair_norm",
    "centre",
    "cosines",
    "attention_weights",
    "attended_graph",
    "without_self_loops",
    "attentive_loss",
    "attentive_gradient",
    "batch_attention",
    "cross_share",
]


def alignment_step(F: Float[Tensor, "N k"], normalized: Float[Tensor, "N N"], alpha: float) -> Float[Tensor, "N k"]:
    r"""Take one gradient step on `alignment_loss`: a graph convolution with a skip connection.

    $$F \leftarrow F - 2\alpha(I-\bar A)F = \bigl[(1-2\alpha)I + 2\alpha\bar A\bigr]F ;$$

    $\alpha = \frac12$ is the bare convolution $\bar AF$. On a positive semidefinite $\bar A$ steps contract for
    $\alpha < 1$.

    Args:
        F: weighted features $D^{1/2}U$, shape (N, k), any float dtype.
        normalized: $\bar A$, shape (N, N), symmetric, dense.
        alpha: step size $\alpha > 0$ on $F$.

    Returns:
        The next $F$, shape (N, k), float64.

    Raises:
        ValueError: if the step size is not positive or the graph does not fit.

    References:
        Wang et al. (2023), slides, alignment as graph convolution; factors: the companion's own; `thm-alignment-step`.

    Examples:
        >>> normalized = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
        >>> alignment_step(torch.tensor([[0.0], [4.0]]), normalized, alpha=0.5).tolist()
        [[1.0], [3.0]]
    """
    positive(alpha, "alignment_step")
    F, normalized = on_graph(features(F, "alignment_step"), dense(normalized, "alignment_step"), "alignment_step")
    return (1 - 2 * alpha) * F + 2 * alpha * (normalized @ F)


def uniformity_step(
    F: Float[Tensor, "N k"], p: Float[Tensor, " N"], temperature: float, alpha: float
) -> Float[Tensor, "N k"]:
    r"""Take one gradient step on `uniformity_loss`: a convolution of reversed sign on the estimated graph.

    $$F \leftarrow F - \frac{2\alpha}\tau\,\bar A'_{\rm sym}F,\qquad
    \bar A'_{\rm sym} = D^{-1/2}\,\tfrac12(A'+A'^\top)\,D^{-1/2} .$$

    A feature is anchor of its own softmax and candidate in all others: hence both $A'$ and $A'^\top$.

    Args:
        F: weighted features, shape (N, k), any float dtype.
        p: probability of each view, shape (N,), positive, of sum 1.
        temperature: $\tau > 0$.
        alpha: step size $\alpha > 0$ on $F$.

    Returns:
        The next $F$, shape (N, k), float64.

    Raises:
        ValueError: if temperature or step size is not positive or `p` is no law on the rows.

    References:
        Wang et al. (2023), slides, uniformity as reversed convolution; factors: the companion's own;
        `thm-uniformity-step`.

    Examples:
        >>> p = torch.tensor([0.25, 0.75])
        >>> F = p.sqrt()[:, None]  # collapse, f = 1: A' = p p^T, and sqrt(p) is an eigenvector
        >>> (uniformity_step(F, p, 0.5, alpha=0.125) / F).flatten().round(decimals=6).tolist()
        [0.5, 0.5]
    """
    positive(alpha, "uniformity_step")
    positive(temperature, "uniformity_step", "temperature")
    F = features(F, "uniformity_step")
    p = marginal(p, len(F), "uniformity_step")
    return F - 2 * alpha / temperature * (normalized_estimate(F, p, temperature) @ F)


def contrastive_step(
    F: Float[Tensor, "N k"],
    normalized: Float[Tensor, "N N"],
    p: Float[Tensor, " N"],
    temperature: float,
    alpha: float,
    mu: float = 1.0,
) -> Float[Tensor, "N k"]:
    r"""Take one gradient step on `contrastive_loss`: two convolutions that compete.

    $$F \leftarrow F + \frac{2\alpha}\tau\bigl(\bar A-\mu\bar A'_{\rm sym}\bigr)F .$$

    Args:
        F: weighted features, shape (N, k), any float dtype.
        normalized: $\bar A$, shape (N, N), symmetric, dense, with $\bar A\sqrt p = \sqrt p$.
        p: probability of each view, shape (N,), positive, of sum 1.
        temperature: $\tau > 0$.
        alpha: step size $\alpha > 0$ on $F$.
        mu: weight $\mu\ge0$ of the negatives; 1 is InfoNCE.

    Returns:
        The next $F$, shape (N, k), float64.

    Raises:
        ValueError: if a scalar is out of its range or graph and law do not fit.

    References:
        Wang et al. (2023), slides, the two rules together; factors: the companion's own; `thm-contrastive-step`.

    Examples:
        >>> p = torch.tensor([0.25, 0.75])
        >>> F = p.sqrt()[:, None]  # collapse: at mu = 1 the forces cancel
        >>> normalized = torch.outer(p, p).sqrt()
        >>> [round(float((contrastive_step(F, normalized, p, 0.5, 0.125, mu) / F)[0]), 6) for mu in (0.0, 1.0)]
        [1.5, 1.0]
    """
    positive(alpha, "contrastive_step")
    return F.double() + alpha * net_message(F, normalized, p, temperature, mu, "contrastive_step")


def force(
    F: Float[Tensor, "N k"],
    normalized: Float[Tensor, "N N"],
    p: Float[Tensor, " N"],
    temperature: float,
    mu: float = 1.0,
) -> Float[Tensor, "N k"]:
    r"""Return the net message, minus the gradient of `contrastive_loss` with respect to $F$.

    $$-\nabla_F\mathcal L = \frac2\tau\bigl(\bar A-\mu\bar A'_{\rm sym}\bigr)F .$$

    With respect to $U$ multiply row $x$ by $\sqrt{p_x}$. The force vanishes when $A' = A$, but not only then: it does
    at collapse, and wherever the columns of $F$ lie in the kernel of the difference.

    Args:
        F, normalized, p, temperature, mu: as in `contrastive_step`.

    Returns:
        The force, shape (N, k), float64.

    Raises:
        ValueError: if a scalar is out of its range or graph and law do not fit.

    References:
        The companion's own derivation; `thm-contrastive-step`, `prop-equilibrium`.

    Examples:
        >>> p = torch.tensor([0.5, 0.5])
        >>> normalized = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
        >>> F = torch.tensor([[1e-6], [-1e-6]])  # small features grow at 2 gamma / tau
        >>> (force(F, normalized, p, temperature=0.5) / F).flatten().round(decimals=6).tolist()
        [2.0, 2.0]
    """
    return net_message(F, normalized, p, temperature, mu, "force")


def kernel_step(
    U: Float[Tensor, "N k"],
    kernel: Float[Tensor, "N N"],
    A: Float[Tensor, "N N"],
    p: Float[Tensor, " N"],
    temperature: float,
    alpha: float,
) -> Float[Tensor, "N k"]:
    r"""Take one gradient step of a network's parameters on InfoNCE: its kernel filters the messages.

    $$U \leftarrow U + \frac{2\alpha}\tau\,\mathcal K\,(A-A'_{\rm sym})\,U .$$

    For a linear encoder $U = XW^\top$ with $\mathcal K = XX^\top$ this is exact at every step size; for a network
    whose kernel is the same for each feature it holds to first order in $\alpha$. $\mathcal K = D^{-1}$ is
    `contrastive_step`, and $\mathcal K = I$ descends $U$.

    Args:
        U: raw features, shape (N, k), any float dtype.
        kernel: $\mathcal K$, the neural tangent kernel of one feature on all views, shape (N, N), symmetric.
        A: positive-pair graph, shape (N, N), symmetric, of row sums `p`.
        p: probability of each view, shape (N,), positive, of sum 1.
        temperature: $\tau > 0$.
        alpha: learning rate $\alpha > 0$.

    Returns:
        The next $U$, shape (N, k), float64.

    Raises:
        ValueError: if a scalar is not positive or graph, kernel and law do not fit.

    References:
        The companion's own; `prop-kernel-messages`.

    Examples:
        >>> A, p = torch.tensor([[0.375, 0.125], [0.125, 0.375]]), torch.tensor([0.5, 0.5])
        >>> U = torch.tensor([[1e-6], [-1e-6]])
        >>> (kernel_step(U, 2 * torch.eye(2), A, p, 0.5, alpha=0.125) / U).flatten().round(decimals=6).tolist()
        [1.25, 1.25]
    """
    positive(alpha, "kernel_step")
    U, kernel = on_graph(features(U, "kernel_step"), kernel, "kernel_step", "kernel")
    root = marginal(p, len(U), "kernel_step").sqrt()
    A = on_graph(U, dense(A, "kernel_step"), "kernel_step", "A")[1]
    if not (gap := float((A.sum(1) - root.square()).abs().max())) <= 1e-6:
        raise ValueError(f"kernel_step: the row sums of A differ from p by up to {gap:.1e}; pass p = A.sum(1)")
    normalized = (A + A.T) / 2 / torch.outer(root, root)
    messages = net_message(root[:, None] * U, normalized, p, temperature, 1.0, "kernel_step")
    return U + alpha * kernel @ (root[:, None] * messages)
