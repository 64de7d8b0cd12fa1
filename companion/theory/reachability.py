r"""Which graphs features can match exactly: $A' = A$ holds iff $S = \mathrm{PMI}+c\,\mathbf 1\mathbf 1^\top$.

Here $\mathrm{PMI}_{xx'} = \log\frac{A_{xx'}}{p_xp_{x'}}$ and $c$ is one number. One direction starts from the features
and builds their graph, the other starts from a graph and asks for features.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.message_checks import features, pair_law, positive

__all__ = ["pmi", "realisable_graph", "Reachable", "reachable"]


def pmi(A: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    r"""Return the pointwise mutual information of positive pairs, $\log\frac{A_{xx'}}{p_xp_{x'}}$.

    Args:
        A: positive-pair graph, shape (N, N), symmetric, of sum 1.

    Returns:
        Shape (N, N), float64, in nats; $-\infty$ where $A_{xx'} = 0$.

    Raises:
        ValueError: if `A` is no positive-pair graph.

    References:
        The companion's own use; `prop-reachable`.

    Examples:
        >>> pmi(torch.eye(2) / 2).exp().tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    A, p = pair_law(A, len(A), "pmi")
    return A.log() - torch.outer(p, p).log()


def realisable_graph(U: Float[Tensor, "N k"], temperature: float) -> tuple[Float[Tensor, "N N"], Float[Tensor, " N"]]:
    r"""Build the graph that given features match exactly, $A' = A$.

    $$e^{S}p = c\,\mathbf 1,\quad \mathbf 1^\top p = 1,\qquad A_{xx'} = p_xp_{x'}e^{S_{xx'}}/c .$$

    $e^S$ is positive definite when the rows of $U$ differ, so $p$ is unique; it need not be positive. On the unit
    sphere it is once the temperature is low enough, and at every temperature when a group of rotations carries each
    point to each other. Where $e^S$ is singular to rounding (hot, or crowded) many $p$ serve, and this is one of them.

    Args:
        U: raw features, shape (N, k), any float dtype, no two rows equal.
        temperature: $\tau > 0$.

    Returns:
        $A$, shape (N, N), symmetric, positive, of sum 1, and its degree $p$, shape (N,), float64.

    Raises:
        ValueError: if the temperature is not positive, points (almost) coincide, or no positive law exists.

    References:
        The companion's own; `prop-equilibrium`, `fig-mp-equilibrium`.

    Examples:
        >>> A, p = realisable_graph(torch.eye(2), temperature=1.0)
        >>> p.tolist(), round(float(A[0, 0] / A[0, 1]), 6)  # e
        ([0.5, 0.5], 2.718282)
    """
    positive(temperature, "realisable_graph", "temperature")
    U = features(U, "realisable_graph")
    # e^S = diag(s) G diag(s) with a Gaussian kernel of unit diagonal: nothing overflows
    squares = U.square().sum(1) / 2 / temperature
    G = torch.exp(-torch.cdist(U, U, compute_mode="donot_use_mm_for_euclid_dist").square() / 2 / temperature)
    shrink = torch.exp(squares.min() - squares)
    factor, info = torch.linalg.cholesky_ex(G)
    p = shrink * torch.cholesky_solve(shrink[:, None], factor).flatten()
    p = p / p.sum()
    S = U @ U.T / temperature
    spread = torch.logsumexp(S + p.clamp(min=0).log(), dim=1)
    remedy = "spread the points on a sphere or lower the temperature"
    if int(info) or not p.isfinite().all():
        raise ValueError(f"realisable_graph: points coincide to rounding, exp(S) is singular; {remedy}")
    if not (p > 0).all():
        raise ValueError(f"realisable_graph: no positive law, p[{int(p.argmin())}] = {float(p.min()):.2e}; {remedy}")
    if float(spread.max() - spread.min()) > 1e-9:
        raise ValueError(f"realisable_graph: exp(S) is too ill-conditioned to solve for p; {remedy}")
    A = torch.exp(S + p.log()[:, None] + p.log() - spread.mean())
    return (A + A.T) / 2, p


class Reachable(NamedTuple):
    r"""Whether features of dimension $k$ can match a graph, and at which offset.

    Attributes:
        offset: the $c$ for which $\mathrm{PMI}+c\,\mathbf 1\mathbf 1^\top$ has its least rank; nan where $A$ has
            a zero.
        eigenvalues: those of $\mathrm{PMI}+c\,\mathbf 1\mathbf 1^\top$ at the offset, decreasing, shape (N,), float64.
        reachable: whether all are $\ge 0$ and at most $k$ positive, to the tolerance.
    """

    offset: float
    eigenvalues: Float[Tensor, " N"]
    reachable: bool


def reachable(A: Float[Tensor, "N N"], k: int, tolerance: float = 1e-9) -> Reachable:
    r"""Decide whether some features of dimension $k$ have $A' = A$.

    It needs a $c$ with $M + c\,\mathbf 1\mathbf 1^\top\succeq0$ of rank $\le k$, $M = \mathrm{PMI}$. Split $M$ along
    $e = \mathbf 1/\sqrt N$ and its complement, $a = e^\top Me$, $b = HMe$, $B = HMH$, $H = I-ee^\top$. Only
    $a$ feels $c$, and by the Schur complement the sum is positive semidefinite iff $B\succeq0$,
    $b\in\mathrm{range}\,B$ and $c \ge c_0$; its rank is that of $B$ at $c_0$ and one more above:

    $$c_0 = \frac1N\bigl(b^\top B^+b - a\bigr) .$$

    So $c_0$ is the best offset, and no other has to be tried. Every $c\ge c_0$ serves if $k > \mathrm{rank}\,B$.

    Args:
        A: positive-pair graph, shape (N, N), symmetric, of sum 1.
        k: dimension of the features, $\ge 1$.
        tolerance: how large an eigenvalue may be, over the largest, and still count as zero.

    Returns:
        `Reachable(offset, eigenvalues, reachable)`. With $\mathrm{PMI}+c_0\mathbf 1\mathbf 1^\top = VEV^\top$ the
        features are $U = V(\tau E)^{1/2}$. Where $A$ has a zero the similarity would be infinite: not reachable, and
        offset and eigenvalues are nan.

    Raises:
        ValueError: if `A` is no positive-pair graph, $k < 1$, or the tolerance is not positive.

    References:
        The companion's own; `prop-reachable`.

    Examples:
        >>> A = torch.tensor([[0.375, 0.125], [0.125, 0.375]])  # PMI = log 1.5 and log 0.5
        >>> found = reachable(A, 1)
        >>> found.reachable, round(found.offset, 6), found.eigenvalues.round(decimals=6).tolist()
        (True, 0.143841, [1.098612, 0.0])
    """
    if k < 1:
        raise ValueError(f"reachable: k is a number of features, at least 1, got {k}")
    positive(tolerance, "reachable", "tolerance")
    M = pmi(A)
    if M.isinf().any():
        return Reachable(float("nan"), torch.full_like(M[0], torch.nan), False)
    mean = M.mean(1)
    across = mean - mean.mean()  # b / sqrt(N)
    B = M - mean[:, None] - across  # centred on both sides
    beta, V = torch.linalg.eigh((B + B.T) / 2)
    rest = beta.abs() > tolerance * beta.abs().max()
    offset = float(((V.T @ across)[rest].square() / beta[rest]).sum() - mean.mean())
    eigenvalues = torch.linalg.eigvalsh((M + M.T) / 2 + offset).flip(0)
    small = tolerance * eigenvalues.abs().max()
    return Reachable(offset, eigenvalues, bool(eigenvalues[-1] >= -small and (eigenvalues > small).sum() <= k))
