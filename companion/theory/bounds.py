r"""Guarantees for a linear probe on spectral features, every constant written out.

Labels enter through their cross-edge weight $\phi = \Pr[\hat y(x)\ne\hat y(x^+)]$, the graph through
$\lambda_{k+1} = 1 - \gamma_{k+1}$: few edges between classes, and no room in the spectrum for a cut through one.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.theory.clusters import ClusterBound, NestedClusters, cluster_bound, clusters_graph, inner_conductance
from companion.theory.graph import PositivePairGraph
from companion.theory.spectral import weighted
from companion.theory.weights import one_hot

__all__ = [
    "ClusterBound",
    "NestedClusters",
    "ProbeBound",
    "ProbeError",
    "best_head",
    "cluster_bound",
    "clusters_graph",
    "inner_conductance",
    "label_matrix",
    "natural_bound",
    "near_optimal_bound",
    "probe_bound",
    "probe_error",
]

ZERO = 1e-12  # an eigenvalue of L below this is a component of its own


class ProbeError(NamedTuple):
    r"""Error of a linear head on views $x\sim p$.

    Attributes:
        squared: $\sum_x p_x\lVert B^\top f(x) - e_{\hat y(x)}\rVert^2$.
        zero_one: $\Pr[\arg\max_c(B^\top f(x))_c\ne\hat y(x)]$.
    """

    squared: float
    zero_one: float


class ProbeBound(NamedTuple):
    r"""Upper bounds for the minimiser $f^\star$ with $k$ features; infinite where $\lambda_{k+1} = 0$.

    Attributes:
        phi: cross-edge weight of the labels.
        squared: $(\phi - \sum_{i\le k}\lambda_i\lVert Y^\top v_i\rVert^2)/\lambda_{k+1}$.
        squared_simple: $\phi/\lambda_{k+1}$.
        zero_one: $2\phi/\lambda_{k+1}$.
        head_norm: $1/\gamma_k$, bound of $\lVert B\rVert_F^2$.
    """

    phi: float
    squared: float
    squared_simple: float
    zero_one: float
    head_norm: float


def label_matrix(graph: PositivePairGraph, labels: Int[Tensor, " N"]) -> Float[Tensor, "N r"]:
    r"""Write labels as weighted indicators, $Y_{xc} = \sqrt{p_x}\,1[\hat y(x) = c]$; $\lVert Y\rVert_F = 1$.

    Args:
        graph: the positive-pair graph.
        labels: $\hat y$, shape (N,), integers from 0.

    Returns:
        $Y$, shape (N, r), float64.

    Raises:
        ValueError: if the labels do not fit the vertices.

    Examples:
        >>> graph = PositivePairGraph.from_adjacency([[3.0, 1.0], [1.0, 3.0]])
        >>> label_matrix(graph, torch.tensor([1, 0])).square().round(decimals=6).tolist()
        [[0.0, 0.5], [0.5, 0.0]]
    """
    return weighted(graph, one_hot(labels, graph.n))


def best_head(graph: PositivePairGraph, U: Float[Tensor, "N k"], labels: Int[Tensor, " N"]) -> Float[Tensor, "k r"]:
    r"""Fit the least-squares head, $\arg\min_B\sum_xp_x\lVert B^\top f(x) - e_{\hat y(x)}\rVert^2 = F^+Y$.

    Args:
        graph: the positive-pair graph.
        U: raw features, shape (N, k).
        labels: $\hat y$, shape (N,), integers from 0.

    Returns:
        $B$, shape (k, r), float64, of least norm among the minimisers.

    Raises:
        ValueError: if features or labels do not fit the vertices.
    """
    return torch.linalg.lstsq(weighted(graph, U), label_matrix(graph, labels), driver="gelsd").solution


def probe_error(
    graph: PositivePairGraph,
    U: Float[Tensor, "N k"],
    labels: Int[Tensor, " N"],
    B: Float[Tensor, "k r"] | None = None,
) -> ProbeError:
    r"""Measure a linear head on every view, weighted by its probability.

    Args:
        graph: the positive-pair graph.
        U: raw features, shape (N, k).
        labels: $\hat y$, shape (N,), integers from 0.
        B: head, shape (k, r); `best_head` when None.

    Returns:
        `ProbeError(squared, zero_one)`.

    Raises:
        ValueError: if features or labels do not fit the vertices.

    Examples:
        The constant feature alone knows the class frequencies, no more.

        >>> graph = PositivePairGraph.from_adjacency([[3.0, 1.0], [1.0, 3.0]])
        >>> squared, _ = probe_error(graph, torch.ones(2, 1), torch.tensor([0, 1]))
        >>> round(squared, 6)
        0.5
    """
    B = best_head(graph, U, labels) if B is None else B.double()
    squared = (weighted(graph, U) @ B - label_matrix(graph, labels)).square().sum()
    wrong = (U.detach().cpu().double() @ B).argmax(1) != torch.as_tensor(labels)
    return ProbeError(float(squared), float(graph.degree[wrong].sum()))


def probe_bound(graph: PositivePairGraph, labels: Int[Tensor, " N"], k: int) -> ProbeBound:
    r"""Bound the best linear head on the minimiser $f^\star$ with $k$ features.

    $$\sum_xp_x\lVert B^\top f^\star(x) - e_{\hat y(x)}\rVert^2\le
    \frac{\phi - \sum_{i\le k}\lambda_i\lVert Y^\top v_i\rVert^2}{\lambda_{k+1}}\le\frac\phi{\lambda_{k+1}},\qquad
    \Pr[\text{wrong}]\le\frac{2\phi}{\lambda_{k+1}},\qquad\lVert B\rVert_F^2\le\frac1{\gamma_k}.$$

    Args:
        graph: the positive-pair graph.
        labels: $\hat y$, shape (N,), integers from 0.
        k: number of features, $1\le k\le N-1$.

    Returns:
        The `ProbeBound`.

    Raises:
        ValueError: if $k$ is out of range or the labels do not fit.

    References:
        HaoChen et al. (2021), Theorem 3.7 (3.8 in later versions), in an elementary form that is the companion's;
        `thm-probe-bound`, `cor-zero-one`.

    Examples:
        >>> graph = PositivePairGraph.from_adjacency([[3.0, 1.0], [1.0, 3.0]])
        >>> bound = probe_bound(graph, torch.tensor([0, 1]), k=1)
        >>> round(bound.phi, 6), round(bound.squared, 6), round(bound.zero_one, 6)
        (0.25, 0.5, 1.0)
    """
    values, vectors, next_gamma = _cut(graph, k)
    phi, lambda_next = graph.cross_edge_weight(labels), 1 - next_gamma
    seen = (label_matrix(graph, labels).T @ vectors).square().sum(0)
    spent = float(((1 - values).clamp(min=0) * seen).sum())
    squared, simple = ((x / lambda_next if lambda_next > ZERO else float("inf")) for x in (max(phi - spent, 0.0), phi))
    gamma_k = float(values[-1])
    return ProbeBound(phi, squared, simple, 2 * simple, 1 / gamma_k if gamma_k > ZERO else float("inf"))


def natural_bound(alpha: float, lambda_next: float) -> float:
    r"""Bound the majority vote over views of an image, $\mathcal E(f^\star)\le 8\alpha/\lambda_{k+1} + 2\alpha$.

    Args:
        alpha: chance that a labelling of views misses the image's label.
        lambda_next: $\lambda_{k+1}\in[0, 1]$.

    Returns:
        The bound; at most $10\alpha/\lambda_{k+1}$, infinite at $\lambda_{k+1} = 0$.

    Raises:
        ValueError: if an argument is negative.

    References:
        HaoChen et al. (2021), Theorem 3.7 (3.8 in later versions), with the companion's constants; `cor-natural`.

    Examples:
        >>> natural_bound(0.01, 0.5)
        0.18
    """
    if alpha < 0 or lambda_next < 0:
        raise ValueError(f"natural_bound: alpha and lambda_next must be >= 0, got {alpha}, {lambda_next}")
    return 8 * alpha / lambda_next + 2 * alpha if lambda_next > ZERO else float("inf")


def near_optimal_bound(
    graph: PositivePairGraph, labels: Int[Tensor, " N"], k: int, k_prime: int, excess: float
) -> float:
    r"""Bound the best head on any $f$ whose loss is within $\varepsilon$ of the floor.

    $$\min_B\sum_xp_x\lVert B^\top f(x) - e_{\hat y(x)}\rVert^2\le
    \frac{2\phi}{\lambda_{k'+1}} + \frac{2\varepsilon}{\gamma_{k'}^2 - \gamma_{k+1}^2},\qquad k'\le k .$$

    Args:
        graph: the positive-pair graph, $\bar A$ positive semidefinite (as from an augmentation law).
        labels: $\hat y$, shape (N,), integers from 0.
        k: number of features of $f$, $1\le k\le N-1$.
        k_prime: $k'$ with $\gamma_{k'} > \gamma_{k+1}$; the bound holds for each, take the least.
        excess: $\varepsilon = \mathcal L(f) - \min\mathcal L\ge0$.

    Returns:
        The bound on the squared error.

    Raises:
        ValueError: if $k'$ is not in $1..k$, there is no gap, or the excess is negative.

    References:
        HaoChen et al. (2021), Theorem 4.2, in an elementary form that is the companion's; `thm-near-optimal`.

    Examples:
        >>> nested = clusters_graph(2, 1, 2, within=0.4, siblings=0.0, across=0.1)  # eigenvalues 1, 0.6, 0, 0
        >>> round(near_optimal_bound(nested.graph, nested.labels, k=2, k_prime=2, excess=0.036), 6)
        0.6
    """
    if not 1 <= k_prime <= k or excess < 0:
        raise ValueError(f"near_optimal_bound: needs 1 <= k_prime <= k and excess >= 0, got {k_prime}, {k}, {excess}")
    values, _, gamma_next = _cut(graph, k)
    gamma = torch.cat([values, values.new_tensor([gamma_next])])
    gap = float(gamma[k_prime - 1] ** 2 - gamma_next**2)
    if gap <= ZERO:
        raise ValueError(f"near_optimal_bound: no gap between gamma_{k_prime} and gamma_{k + 1}; lower k_prime")
    lambda_next = 1 - float(gamma[k_prime])
    spill = 2 * graph.cross_edge_weight(labels) / lambda_next if lambda_next > ZERO else float("inf")
    return spill + 2 * excess / gap


def _cut(graph: PositivePairGraph, k: int) -> tuple[Tensor, Tensor, float]:
    r"""Return $\gamma_{1..k}$, $v_{1..k}$ and $\gamma_{k+1}$."""
    if not 1 <= k < graph.n:
        raise ValueError(f"bound: k must lie in 1..{graph.n - 1} so that lambda_(k+1) exists, got {k}")
    values, vectors, _ = graph.eigenpairs(k + 1)
    return values[:k], vectors[:, :k], float(values[k])
