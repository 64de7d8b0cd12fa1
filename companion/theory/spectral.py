r"""The spectral contrastive loss on a positive-pair graph: minimisers, floor, gradient flow, relatives.

With weighted features $F = D^{1/2}U$ the population loss is a matrix factorisation,
$\mathcal L = \lVert\bar A - FF^\top\rVert_F^2 - \lVert\bar A\rVert_F^2$ (`thm-loss-factorisation`), so its minimisers
are the top eigenvectors (`thm-minimisers`). Negative eigenvalues, which only a graph that is not
$K^\top\Pi K$ can have, are out of reach of $FF^\top$ and count as zero.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.graph import PositivePairGraph
from companion.theory.riccati import flow, half_time, mode_curve

__all__ = [
    "diffusion_map",
    "embedding",
    "flow",
    "half_time",
    "laplacian_eigenmap",
    "loss_floor",
    "mode_curve",
    "population_loss",
    "row_normalised",
    "weighted",
]


def embedding(graph: PositivePairGraph, k: int) -> Float[Tensor, "N k"]:
    r"""Return the minimiser of the population loss, $f^\star(x) = p_x^{-1/2}\,(V_k\Lambda_k^{1/2})_x$.

    Every $f^\star Q$ with $Q$ orthogonal is a minimiser too, and there is no other when $\gamma_k > \gamma_{k+1}$.

    Args:
        graph: the positive-pair graph.
        k: number of features, $1 \le k \le N$.

    Returns:
        Raw features $U^\star$, rows $f^\star(x)^\top$, shape (N, k), float64.

    Raises:
        ValueError: if $k$ is out of range.

    References:
        HaoChen et al. (2021), section 3.2; `thm-minimisers`.

    Examples:
        >>> graph = PositivePairGraph.from_adjacency([[3.0, 1.0], [1.0, 3.0]])
        >>> U = embedding(graph, 2)
        >>> (U @ U.T).round(decimals=6).tolist()  # the density ratio p(x, x') / p(x) p(x')
        [[1.5, 0.5], [0.5, 1.5]]
    """
    return diffusion_map(graph, k, 0.5)


def loss_floor(graph: PositivePairGraph, k: int) -> float:
    r"""Return the least population loss, $-\sum_{i\le k}\gamma_i^2$.

    Args:
        graph: the positive-pair graph.
        k: number of features.

    Returns:
        A number in $[-k, -1]$.

    Raises:
        ValueError: if $k$ is out of range.

    References:
        Eckart and Young (1936), in the form for $FF^\top$; `thm-minimisers`.

    Examples:
        >>> round(loss_floor(PositivePairGraph.from_adjacency([[3.0, 1.0], [1.0, 3.0]]), 2), 6)
        -1.25
    """
    return -float(graph.eigenpairs(k).values.clamp(min=0).square().sum())


def population_loss(graph: PositivePairGraph, U: Float[Tensor, "N k"]) -> float:
    r"""Evaluate the loss over all pairs, $-2\,\mathrm{tr}(F^\top\bar AF) + \lVert F^\top F\rVert_F^2$, $F = D^{1/2}U$.

    This equals $-2\,\mathbb E f(x)^\top f(x^+) + \mathbb E(f(x)^\top f(x'))^2$ and needs no $N\times N$ matrix.

    Args:
        graph: the positive-pair graph.
        U: raw features, shape (N, k), any float dtype; computed in float64, without gradient.

    Returns:
        The population loss, at least `loss_floor(graph, k)`.

    Raises:
        ValueError: if `U` does not have one row a vertex.

    References:
        HaoChen et al. (2021), Lemma 3.2; `thm-loss-factorisation`.

    Examples:
        >>> graph = PositivePairGraph.from_adjacency([[3.0, 1.0], [1.0, 3.0]])
        >>> round(population_loss(graph, torch.ones(2, 1)), 6)
        -1.0
    """
    F = weighted(graph, U)
    return float(-2 * (F * graph.multiply(F)).sum() + (F.T @ F).square().sum())


def weighted(graph: PositivePairGraph, U: Float[Tensor, "N k"]) -> Float[Tensor, "N k"]:
    r"""Weight raw features by the chance of their view, $F = D^{1/2}U$.

    Args:
        graph: the positive-pair graph.
        U: raw features, shape (N, k), any float dtype.

    Returns:
        $F$, shape (N, k), float64, detached.

    Raises:
        ValueError: if `U` does not have one row a vertex.
    """
    if U.ndim != 2 or len(U) != graph.n:
        raise ValueError(f"features: expected one row for each of {graph.n} vertices, got shape {tuple(U.shape)}")
    return graph.degree.sqrt()[:, None] * U.detach().cpu().double()


def laplacian_eigenmap(graph: PositivePairGraph, k: int) -> Float[Tensor, "N k"]:
    r"""Return the rows of $D^{-1/2}V_k$: `embedding` without the factor $\Lambda_k^{1/2}$.

    Args:
        graph: the positive-pair graph.
        k: number of coordinates; the first is constant.

    Returns:
        Shape (N, k), float64, orthonormal in the $p$-weighted inner product.

    References:
        Belkin and Niyogi (2003); `rem-relatives`.
    """
    return diffusion_map(graph, k, 0.0)


def diffusion_map(graph: PositivePairGraph, k: int, t: float) -> Float[Tensor, "N k"]:
    r"""Return the rows of $D^{-1/2}V_k\Lambda_k^t$, the walk $D^{-1}A$ watched for time $t$; $f^\star$ is $t = 1/2$.

    Args:
        graph: the positive-pair graph.
        k: number of coordinates.
        t: diffusion time $\ge 0$.

    Returns:
        Shape (N, k), float64.

    Raises:
        ValueError: if $k$ is out of range.

    References:
        Coifman and Lafon (2006); `rem-relatives`.
    """
    pairs = graph.eigenpairs(k)
    return graph.degree.rsqrt()[:, None] * pairs.vectors * pairs.values.clamp(min=0) ** t


def row_normalised(graph: PositivePairGraph, k: int) -> Float[Tensor, "N k"]:
    r"""Return the rows of $V_k$ scaled to unit length; a linear probe cannot see the scaling.

    Args:
        graph: the positive-pair graph.
        k: number of coordinates.

    Returns:
        Shape (N, k), float64, rows of norm one.

    References:
        Ng, Jordan and Weiss (2001); `lem-probe-invariance`, `rem-relatives`.
    """
    return torch.nn.functional.normalize(graph.eigenpairs(k).vectors, dim=1)
