r"""The losses whose gradient steps are messages, over all views at once, and the graph that the features estimate.

Raw features $U$ (row $x$ is $f(x)^\top$), weighted features $F = D^{1/2}U$, similarities $S = UU^\top/\tau$. The losses
keep autograd alive, so that every formula of `companion.theory.message_passing` can be held against them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.message_checks import (
    balanced,
    dense,
    features,
    marginal,
    on_graph,
    pair_law,
    positive,
    repulsion,
)

__all__ = [
    "alignment_loss",
    "uniformity_loss",
    "contrastive_loss",
    "estimated_graph",
    "mutual_information",
    "equilibrium_gap",
]


def alignment_loss(F: Float[Tensor, "N k"], normalized: Float[Tensor, "N N"]) -> Float[Tensor, ""]:
    r"""Evaluate the alignment loss of all positive pairs, a quadratic form of the Laplacian.

    $$\mathcal L_{\rm align} = \tfrac12\,\mathbb E_{x,x^+}\lVert f(x)-f(x^+)\rVert^2
    = \mathrm{tr}\,F^\top(I-\bar A)F,\qquad \nabla_F\mathcal L_{\rm align} = 2(I-\bar A)F .$$

    The half belongs to the loss: without it the gradient is $4(I-\bar A)F$.

    Args:
        F: weighted features $D^{1/2}U$, shape (N, k), any float dtype; computed in float64, with gradient.
        normalized: $\bar A = D^{-1/2}AD^{-1/2}$, shape (N, N), symmetric, dense.

    Returns:
        The loss, a scalar, float64.

    Raises:
        ValueError: if the shapes do not fit or `normalized` is not symmetric.

    References:
        The companion's own derivation; `prop-laplacian-form`.

    Examples:
        >>> A = torch.tensor([[0.375, 0.125], [0.125, 0.375]])  # p = (1/2, 1/2); f = 0 and f = 2
        >>> round(float(alignment_loss(torch.tensor([[0.0], [2.0**0.5]]), 2 * A)), 6)  # 1/2 * 1/4 * 2^2
        0.5
    """
    F, normalized = on_graph(features(F, "alignment_loss"), dense(normalized, "alignment_loss"), "alignment_loss")
    return (F * (F - normalized @ F)).sum()


def uniformity_loss(U: Float[Tensor, "N k"], p: Float[Tensor, " N"], temperature: float) -> Float[Tensor, ""]:
    r"""Evaluate the uniformity loss of all views, the pair $x = x'$ included.

    $$\mathcal L_{\rm unif} = \mathbb E_x\log\mathbb E_{x'}e^{f(x)^\top f(x')/\tau} = \sum_xp_x\log Q_x,\qquad
    Q_x = \sum_{x'}p_{x'}e^{S_{xx'}} .$$

    Args:
        U: raw features, shape (N, k), any float dtype; computed in float64, with gradient.
        p: probability of each view, shape (N,), positive, of sum 1.
        temperature: $\tau > 0$.

    Returns:
        The loss in nats, a scalar, float64.

    Raises:
        ValueError: if the temperature is not positive or `p` is no law on the rows.

    References:
        Wang et al. (2023), slides, uniformity; `def-two-forces`.

    Examples:
        >>> p = torch.tensor([0.5, 0.5])
        >>> round(float(uniformity_loss(torch.eye(2), p, temperature=0.5)), 6)  # log((1 + e^2) / 2)
        1.433781
    """
    U, log_p, p = _views("uniformity_loss", U, p, temperature)
    return p @ torch.logsumexp(U @ U.T / temperature + log_p, dim=1)


def contrastive_loss(
    U: Float[Tensor, "N k"], A: Float[Tensor, "N N"], temperature: float, mu: float = 1.0
) -> Float[Tensor, ""]:
    r"""Evaluate InfoNCE over all pairs, with the weight $\mu$ on its negatives.

    $$\mathcal L = -\frac1\tau\,\mathbb E_{x,x^+}f(x)^\top f(x^+) + \mu\,\mathcal L_{\rm unif} .$$

    Its alignment term is the inner-product form: on the unit sphere $\mathcal L_{\rm align}/\tau$ but for a constant.

    Args:
        U: raw features, shape (N, k), any float dtype; computed in float64, with gradient.
        A: positive-pair graph, shape (N, N), symmetric, of sum 1.
        temperature: $\tau > 0$.
        mu: $\mu \ge 0$; 1 is InfoNCE, 0 leaves alignment alone.

    Returns:
        The loss in nats, a scalar, float64; at $\mu = 1$ at least `-mutual_information(A)`.

    Raises:
        ValueError: if the temperature is not positive, $\mu < 0$, or `A` is no positive-pair graph.

    References:
        Wang et al. (2023), slides, contrastive loss; `def-two-forces`.

    Examples:
        >>> A = torch.tensor([[0.375, 0.125], [0.125, 0.375]])
        >>> round(float(contrastive_loss(torch.eye(2), A, temperature=0.5)), 6)  # log((1 + e^2) / 2) - 0.75 / 0.5
        -0.066219
    """
    repulsion(mu, "contrastive_loss")
    A, p = pair_law(A, len(U), "contrastive_loss")
    positive(temperature, "contrastive_loss", "temperature")
    U = features(U, "contrastive_loss")
    return -(U * (A @ U)).sum() / temperature + mu * uniformity_loss(U, p, temperature)


def estimated_graph(U: Float[Tensor, "N k"], p: Float[Tensor, " N"], temperature: float) -> Float[Tensor, "N N"]:
    r"""Return the graph that the features estimate.

    $$A'_{xx'} = p_x\,P'_{xx'},\qquad P'_{xx'} = p_{x'}e^{S_{xx'}}/Q_x .$$

    The walk $P'$ is `estimated_graph(U, p, temperature) / p[:, None]`. The row sums are $p$; the column sums $p'$ are
    not, so $A'$ is in general not symmetric. Gradients contain $A'_{\rm sym} = \frac12(A'+A'^\top)$.

    Args:
        U: raw features, shape (N, k), any float dtype.
        p: probability of each view, shape (N,), positive, of sum 1.
        temperature: $\tau > 0$.

    Returns:
        $A'$, shape (N, N), float64, non-negative, of sum 1.

    Raises:
        ValueError: if the temperature is not positive or `p` is no law on the rows.

    References:
        Wang et al. (2023), introduction (affinity graph) and slides; `def-estimated-graph`.

    Examples:
        >>> estimated_graph(torch.zeros(2, 3), torch.tensor([0.25, 0.75]), 1.0).round(decimals=6).tolist()  # p p^T
        [[0.0625, 0.1875], [0.1875, 0.5625]]
    """
    U, log_p, p = _views("estimated_graph", U, p, temperature)
    return p[:, None] * torch.softmax(U @ U.T / temperature + log_p, dim=1)


def mutual_information(A: Float[Tensor, "N N"]) -> float:
    r"""Return the information that a view holds on its partner, $\sum_{x,x'}A_{xx'}\log\frac{A_{xx'}}{p_xp_{x'}}$.

    Args:
        A: positive-pair graph, shape (N, N), symmetric, of sum 1; zero entries add nothing.

    Returns:
        The information in nats, $\ge 0$.

    Raises:
        ValueError: if `A` is no positive-pair graph.

    References:
        The companion's own; `thm-kl-identity`.

    Examples:
        >>> round(mutual_information(torch.eye(4) / 4), 6)  # the partner is known: log 4
        1.386294
    """
    A, p = pair_law(A, len(A), "mutual_information")
    return float(torch.xlogy(A, A / torch.outer(p, p)).sum())


def equilibrium_gap(U: Float[Tensor, "N k"], A: Float[Tensor, "N N"], temperature: float) -> Float[Tensor, ""]:
    r"""Measure how far the estimated graph is from the positive-pair graph.

    $$\mathrm{KL}(A\,\Vert\,A') = \sum_{x,x'}A_{xx'}\log\frac{A_{xx'}}{A'_{xx'}}
    = \mathcal L\big|_{\mu=1} + I(x;x^+) .$$

    So `contrastive_loss` is bounded below by minus `mutual_information`, and this is its excess. Both graphs sum to
    one, so $A'-A$ is added to each term: no term is then negative, and a small gap keeps its digits.

    Args:
        U: raw features, shape (N, k), any float dtype; computed in float64, with gradient.
        A: positive-pair graph, shape (N, N), symmetric, of sum 1; zero entries are allowed.
        temperature: $\tau > 0$.

    Returns:
        The gap in nats, a scalar, float64, $\ge 0$; zero iff $A' = A$.

    Raises:
        ValueError: if the temperature is not positive or `A` is no positive-pair graph.

    References:
        The companion's own; `thm-kl-identity`.

    Examples:
        >>> A = torch.tensor([[0.375, 0.125], [0.125, 0.375]])
        >>> round(float(equilibrium_gap(torch.zeros(2, 1), A, 1.0)), 6)  # at collapse all of the information is missed
        0.130812
        >>> round(mutual_information(A), 6)
        0.130812
    """
    A, p = pair_law(A, len(U), "equilibrium_gap")
    U, log_p, p = _views("equilibrium_gap", U, p, temperature)
    log_estimate = log_p[:, None] + torch.log_softmax(U @ U.T / temperature + log_p, dim=1)
    edge = A > 0
    log_ratio = log_estimate - torch.where(edge, A, 1.0).log()
    return torch.where(edge, A * (torch.expm1(log_ratio) - log_ratio), log_estimate.exp()).sum()


def normalized_estimate(F: Tensor, p: Tensor, temperature: float) -> Tensor:
    r"""Return $\bar A'_{\rm sym}$ of weighted features, which the gradients contain."""
    root = p.sqrt()[:, None]
    estimate = estimated_graph(F / root, p, temperature)
    return (estimate + estimate.T) / 2 / root / root.T


def net_message(F: Tensor, normalized: Tensor, p: Tensor, temperature: float, mu: float, name: str) -> Tensor:
    r"""Return $\frac2\tau(\bar A-\mu\bar A'_{\rm sym})F$; errors speak of the caller."""
    positive(temperature, name, "temperature")
    repulsion(mu, name)
    F, normalized, p = balanced(F, normalized, p, name)
    return 2 / temperature * (normalized @ F - mu * (normalized_estimate(F, p, temperature) @ F))


def _views(name: str, U: Tensor, p: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Check features, law and temperature; return features, log p and p in float64."""
    positive(temperature, name, "temperature")
    U = features(U, name)
    p = marginal(p, len(U), name)
    return U, p.log(), p
