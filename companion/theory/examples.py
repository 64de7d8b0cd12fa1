r"""Small random instances on which theorems are checked: graphs, pairs drawn from them, point sets.

All are the companion's own. Nothing here is near a real image; real graphs come from `companion.lab.graphs`.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linprog
from torch import Tensor

from companion.theory.graph import PositivePairGraph


def random_graph(images: int, views: int, generator: torch.Generator) -> PositivePairGraph:
    r"""Draw a dense positive-pair graph with unequal degrees.

    Every image spreads its mass over all views with weights $u^4$, $u$ uniform, so that a view is likely for some
    images and rare for others. The rank of $\bar A$ is at most the number of images.

    Args:
        images: $\bar N$.
        views: $N$.
        generator: source of randomness.

    Returns:
        A connected graph of `views` vertices.

    Examples:
        >>> random_graph(3, 5, torch.Generator().manual_seed(0)).n
        5
    """
    K = torch.rand(images, views, generator=generator, dtype=torch.float64) ** 4
    return PositivePairGraph.from_augmentation(K / K.sum(1, keepdim=True))


def line_graph(images: int, views: int, width: float) -> PositivePairGraph:
    r"""Put images and views on a line; a view lies near its image.

    $K_{\bar xx}\propto e^{-(x-\bar x)^2/2w^2}$ for evenly spaced images and views in $[0, 1]$. Eigenvectors are waves,
    and the eigenvalues are well separated, unlike those of `random_graph`.

    Args:
        images: $\bar N$.
        views: $N$.
        width: $w$, as a share of the line.

    Returns:
        A connected graph of `views` vertices.

    Examples:
        >>> [round(v, 1) for v in line_graph(30, 40, 0.2).eigenpairs(4).values.tolist()]
        [1.0, 0.7, 0.2, 0.0]
    """
    natural, view = (torch.linspace(0, 1, count, dtype=torch.float64) for count in (images, views))
    K = (-((natural[:, None] - view) ** 2) / (2 * width**2)).exp()
    return PositivePairGraph.from_augmentation(K / K.sum(1, keepdim=True))


def cluster_augmentation(
    clusters: int, images: int, views: int, leak: float, generator: torch.Generator
) -> tuple[Float[Tensor, "Nbar N"], Int[Tensor, " Nbar"], Int[Tensor, " N"]]:
    r"""Draw an augmentation law with clusters: an image keeps $1-\epsilon$ of its mass on the views of its own cluster.

    With $m$ clusters and leak $\epsilon$, eigenvalues 2 to $m$ of $\bar A$ are near $(1-\frac{m}{m-1}\epsilon)^2$.

    Args:
        clusters: $m\ge2$.
        images: natural images a cluster.
        views: views a cluster.
        leak: $\epsilon$, the mass that every image sends to the views of other clusters; 0 disconnects the clusters.
        generator: source of randomness.

    Returns:
        $K$, shape (m * images, m * views), float64; the cluster of every image; the cluster of every view.

    Raises:
        ValueError: if the leak is not in [0, 1).

    Examples:
        >>> K, natural, view = cluster_augmentation(2, 3, 4, 0.1, torch.Generator().manual_seed(0))
        >>> K.shape, round(float(K[0, view != natural[0]].sum()), 12)
        (torch.Size([6, 8]), 0.1)
    """
    if not 0 <= leak < 1:
        raise ValueError(f"cluster_augmentation: leak is a share of mass in [0, 1), got {leak}")
    natural, view = (torch.arange(clusters).repeat_interleave(count) for count in (images, views))
    K = torch.rand(len(natural), len(view), generator=generator, dtype=torch.float64)
    own = natural[:, None] == view
    inside, outside = K * own, K * ~own
    K = (1 - leak) * inside / inside.sum(1, keepdim=True) + leak * outside / outside.sum(1, keepdim=True)
    return K, natural, view


def sample_pairs(
    graph: PositivePairGraph, n: int, batches: int, generator: torch.Generator
) -> Int[Tensor, "batches n 2"]:
    r"""Draw positive pairs of vertices, $(x, x^+)\sim A$, all independent.

    Args:
        graph: a dense graph.
        n: pairs a batch.
        batches: number of batches.
        generator: source of randomness.

    Returns:
        Vertex numbers, int64.

    Examples:
        >>> graph = PositivePairGraph.from_adjacency([[1.0, 0.0], [0.0, 1.0]], allow_disconnected=True)
        >>> bool((lambda s: s[..., 0] == s[..., 1])(sample_pairs(graph, 3, 2, torch.Generator().manual_seed(0))).all())
        True
    """
    cumulative = torch.as_tensor(graph.adjacency).flatten().cumsum(0)
    u = torch.rand(batches, n, generator=generator, dtype=torch.float64) * cumulative[-1]
    edge = torch.searchsorted(cumulative, u, right=True).clamp_max(len(cumulative) - 1)
    return torch.stack([edge // graph.n, edge % graph.n], dim=-1)


def separable(points: Float[Tensor, "m k"]) -> bool:
    r"""Whether some $b$ has $b^\top x > 0$ for every row $x$: a linear program, feasible or not.

    To ask whether a labelling $y\in\{\pm1\}^m$ is linearly separable without bias, pass the rows $y_ix_i$.

    Args:
        points: the rows $x$, float64.

    Returns:
        True if they lie in an open half-space bounded by a hyperplane through the origin.

    Examples:
        >>> separable(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), separable(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        (True, False)
    """
    x = points.numpy()
    solved = linprog(np.zeros(x.shape[1]), A_ub=-x, b_ub=-np.ones(len(x)), bounds=(None, None))
    return solved.status == 0
