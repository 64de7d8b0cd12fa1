r"""From clusters to eigenvalues: Cheeger's inequality inside clusters, and a nested graph solved in closed form."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from companion.theory.graph import PositivePairGraph

LARGEST = 16  # vertices in a set whose 2^LARGEST subsets are tried


class ClusterBound(NamedTuple):
    r"""What a clustering says about the spectrum.

    Attributes:
        conductance: $h$, least internal conductance over clusters.
        lambda_next: $h^2/2$, lower bound of $\lambda_{m+1}(L)$ for $m$ clusters.
    """

    conductance: float
    lambda_next: float


class NestedClusters(NamedTuple):
    r"""Classes made of clusters made of vertices, with everything the theory asks for.

    Attributes:
        graph: the positive-pair graph, dense.
        labels: class of each vertex, shape (N,), int64.
        clusters: cluster of each vertex, shape (N,), int64.
        values: all eigenvalues of $\bar A$, shape (N,), float64, decreasing.
        phi: cross-edge weight of the classes.
    """

    graph: PositivePairGraph
    labels: Int[Tensor, " N"]
    clusters: Int[Tensor, " N"]
    values: Float[Tensor, " N"]
    phi: float


def inner_conductance(graph: PositivePairGraph, mask: Bool[Tensor, " N"]) -> float:
    r"""Find the sparsest cut inside a set $S$ by trying every subset.

    $$h_S = \min\Bigl\{\frac{w(T, S\setminus T)}{w(T)} : \emptyset\ne T\subsetneq S,\ w(T)\le\tfrac12w(S)\Bigr\}$$

    Args:
        graph: the positive-pair graph.
        mask: membership of $S$, shape (N,), bool, 1 to 16 vertices.

    Returns:
        $h_S$, infinite for a single vertex (nothing to cut).

    Raises:
        ValueError: if $S$ is empty or has more than 16 vertices.

    References:
        The companion's own; `eq-inner-conductance`.

    Examples:
        >>> graph = PositivePairGraph.from_adjacency([[3.0, 1.0], [1.0, 3.0]])
        >>> inner_conductance(graph, torch.tensor([True, True]))
        0.25
    """
    members = torch.as_tensor(mask, dtype=torch.bool).nonzero()[:, 0]
    s = len(members)
    if not 1 <= s <= LARGEST:
        raise ValueError(f"inner_conductance: tries all subsets of 1 to {LARGEST} vertices, got {s}; split the set")
    block = graph.adjacency[members.numpy()][:, members.numpy()]
    inside = block if isinstance(block, Tensor) else torch.from_numpy(block.toarray())
    p = graph.degree[members]
    T = (torch.arange(1, 2**s - 1)[:, None] >> torch.arange(s) & 1).double()
    weight = T @ p
    cut = ((T @ inside) * (1 - T)).sum(1)
    light = weight <= p.sum() / 2 * (1 + 1e-12)  # halves of equal weight both count
    return float((cut / weight)[light].min()) if s > 1 else float("inf")


def cluster_bound(graph: PositivePairGraph, clusters: Int[Tensor, " N"]) -> ClusterBound:
    r"""Bound $\lambda_{m+1}\ge h^2/2$ from the internal conductances of $m$ clusters.

    Args:
        graph: the positive-pair graph.
        clusters: cluster of each vertex, shape (N,), integers; at most 16 vertices a cluster.

    Returns:
        `ClusterBound(conductance, lambda_next)`.

    Raises:
        ValueError: if a cluster has more than 16 vertices.

    References:
        The companion's own, with Cheeger's inequality inside clusters; `thm-clusters`.

    Examples:
        >>> graph = PositivePairGraph.from_adjacency([[3.0, 1.0], [1.0, 3.0]])
        >>> cluster_bound(graph, torch.tensor([0, 0]))
        ClusterBound(conductance=0.25, lambda_next=0.03125)
    """
    h = min(inner_conductance(graph, clusters == c) for c in clusters.unique())
    return ClusterBound(h, h**2 / 2)


def clusters_graph(
    classes: int, per_class: int, size: int, within: float, siblings: float, across: float
) -> NestedClusters:
    r"""Build classes of clusters of vertices, a graph whose spectrum is known.

    With $r$ classes of $q$ clusters of $n$ vertices, weights $a$ (within), $b$ (siblings), $c$ (across) and
    $d = n(a + (q-1)b + q(r-1)c)$, the eigenvalues are $1$; $n(a + (q-1)b - qc)/d$, $r-1$ times; $n(a-b)/d$, $r(q-1)$
    times; and zeros. The classes' cross-edge weight is $\phi = nq(r-1)c/d$.

    Args:
        classes: $r$.
        per_class: $q$, clusters a class.
        size: $n$, vertices a cluster.
        within: $a$, weight between two vertices of a cluster, self-loops included.
        siblings: $b$, other cluster of the same class.
        across: $c$, other class; zero gives a disconnected graph.

    Returns:
        `NestedClusters(graph, labels, clusters, values, phi)`.

    Raises:
        ValueError: if a weight is negative.

    References:
        The companion's own; `ex-nested`.

    Examples:
        >>> nested = clusters_graph(3, 2, 4, within=0.45, siblings=0.05, across=0.0008)
        >>> [round(v, 6) for v in nested.values[:7].tolist()], round(nested.phi, 7)
        ([1.0, 0.990461, 0.990461, 0.794913, 0.794913, 0.794913, 0.0], 0.0063593)
    """
    r, q, n, a, b, c = classes, per_class, size, within, siblings, across
    clusters = torch.arange(r * q).repeat_interleave(n)
    labels = clusters // q
    level = (labels[:, None] == labels).long() + (clusters[:, None] == clusters).long()
    weights = torch.tensor([c, b, a], dtype=torch.float64)[level]
    graph = PositivePairGraph.from_adjacency(weights, allow_disconnected=True)
    d = n * (a + (q - 1) * b + q * (r - 1) * c)
    values = torch.zeros(r * q * n, dtype=torch.float64)
    values[: r * q] = n * (a - b) / d
    values[:r] = n * (a + (q - 1) * b - q * c) / d
    values[0] = 1.0
    return NestedClusters(graph, labels, clusters, values.sort(descending=True)[0], n * q * (r - 1) * c / d)
