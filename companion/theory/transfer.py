r"""Linear transfer: a head made from labelled source views, judged on other domains.

On spectral features the head of class means, preconditioned by powers of the feature covariance, is a random walk
along positive pairs that asks where it ends (`thm-walk`). So labels reach the views that positive pairs connect to
the source, although the domains' features stay apart.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.theory.blocks import block_spectrum, block_weights
from companion.theory.graph import PositivePairGraph
from companion.theory.spectral import embedding, weighted
from companion.theory.weights import one_hot


def transfer_scores(
    graph: PositivePairGraph,
    k: int,
    source_labels: Int[Tensor, " N"],
    t: int = 1,
    U: Float[Tensor, "N k"] | None = None,
) -> Float[Tensor, "N r"]:
    r"""Score every view by preconditioned feature averaging.

    $$s_i(x) = \langle f(x), \Sigma^{t-1} b_i\rangle,\qquad \Sigma = \mathbb E f(x)f(x)^\top,\quad
    b_i = \sum_{x\in S_i}p_x f(x).$$

    On $f^\star$ this is $D^{-1/2}V_k\Lambda_k^tV_k^\top D^{1/2}1_{S_i}$, the $t$-step walk cut off at $k$ eigenvectors.

    Args:
        graph: the positive-pair graph.
        k: number of features.
        source_labels: shape (N,), class of each labelled source view, -1 where there is no label.
        t: walk length, an integer $\ge1$; 1 is plain averaging.
        U: raw features, shape (N, k); the minimiser `embedding(graph, k)` when None.

    Returns:
        Scores, shape (N, r), float64; predict the largest in each row.

    Raises:
        ValueError: if `t` is not a positive integer or shapes do not fit.

    References:
        HaoChen et al. (2022), preconditioned feature averaging; `thm-walk`.
    """
    _check_walk(t)
    U = embedding(graph, k) if U is None else U.detach().cpu().double()
    F = weighted(graph, U)
    means = F.T @ weighted(graph, _sources(graph, source_labels))
    return U @ torch.linalg.matrix_power(F.T @ F, t - 1) @ means


def walk_probabilities(graph: PositivePairGraph, source_labels: Int[Tensor, " N"], t: int = 1) -> Float[Tensor, "N r"]:
    r"""Return the chance that $t$ steps from $x$ along positive pairs end in class $i$, $[(D^{-1}A)^t1_{S_i}]_x$.

    Args:
        graph: the positive-pair graph.
        source_labels: shape (N,), classes, -1 where there is no label.
        t: number of steps, an integer $\ge1$.

    Returns:
        Probabilities, shape (N, r), float64, rows sum to at most 1.

    Raises:
        ValueError: if `t` is not a positive integer or the labels do not fit.

    References:
        The companion's own; `thm-walk`.

    Examples:
        >>> graph = PositivePairGraph.from_adjacency([[3.0, 1.0], [1.0, 3.0]])
        >>> walk_probabilities(graph, torch.tensor([0, -1]), t=2).round(decimals=6).tolist()
        [[0.625], [0.375]]
    """
    _check_walk(t)
    walk = weighted(graph, _sources(graph, source_labels))
    for _ in range(t):
        walk = graph.multiply(walk)
    return walk / graph.degree.sqrt()[:, None]


def truncation_bound(
    graph: PositivePairGraph, k: int, source_labels: Int[Tensor, " N"], t: int = 1
) -> Float[Tensor, " r"]:
    r"""Bound what $k$ features miss of the walk, $\sum_xp_x(s_i(x) - q_i(x))^2\le\gamma_{k+1}^{2t}\,w(S_i)$.

    Args:
        graph: the positive-pair graph, $\bar A$ positive semidefinite.
        k: number of features.
        source_labels: shape (N,), classes, -1 where there is no label.
        t: walk length, an integer $\ge1$.

    Returns:
        One bound a class, shape (r,), float64; zeros at $k = N$.

    Raises:
        ValueError: if `t` is not a positive integer or the labels do not fit.

    References:
        The companion's own; `thm-walk`.
    """
    _check_walk(t)
    gamma = graph.eigenpairs(k + 1).values[k] if k < graph.n else graph.degree.new_zeros(())
    return gamma ** (2 * t) * (graph.degree @ _sources(graph, source_labels))


def transfer_bound(
    graph: PositivePairGraph, k: int, source_labels: Int[Tensor, " N"], margin: float, t: int = 1
) -> float:
    r"""Bound the weight of target views that feature averaging gets wrong, $\frac2{\delta^2}\gamma_{k+1}^{2t}\,w(S)$.

    Args:
        graph: the positive-pair graph, $\bar A$ positive semidefinite.
        k: number of features.
        source_labels: shape (N,), classes, -1 where there is no label.
        margin: $\delta > 0$, by which `walk_probabilities` favours the right class at every target view.
        t: walk length, an integer $\ge1$.

    Returns:
        The bound on $\Pr[x\text{ in the target and misclassified}]$.

    Raises:
        ValueError: if the margin is not positive.

    References:
        The companion's own; `thm-walk`.
    """
    if not margin > 0:
        raise ValueError(f"transfer_bound: margin must be positive, got {margin}; without it the walk itself errs")
    return 2 / margin**2 * float(truncation_bound(graph, k, source_labels, t).sum())


def block_transfer(
    classes: int,
    domains: int,
    within: float,
    across_domains: float,
    across_classes: float,
    across_both: float,
    k: int | None = None,
) -> float:
    r"""Predict the margin on other domains, relative to the source domain's, of the least-norm head.

    $$\frac{\lambda_{\rm cls} - \lambda_{\rm int}}{\lambda_{\rm cls} + (m-1)\lambda_{\rm int}},$$

    where a group of eigenvectors that $k$ leaves out, or a negative one, counts as zero. Positive: every target view
    is right; negative: the classes are flipped. With all groups kept the sign is that of $\alpha - \gamma$.

    Args:
        classes: $r\ge2$.
        domains: $m\ge2$.
        within: $\rho$.
        across_domains: $\alpha$, weight between the same class in two domains.
        across_classes: $\beta$.
        across_both: $\gamma$.
        k: number of features; $r + m - 1$ when None.

    Returns:
        The factor in $[-1/(m-1), 1]$; 0 when nothing about classes is kept.

    Raises:
        ValueError: if $k$ cuts through a group of equal eigenvalues, so that the features are not determined.

    References:
        The companion's own, on the graph of Shen et al. (2022), Figure 2; `thm-blocks`.

    Examples:
        >>> block_transfer(2, 2, within=0.40, across_domains=0.10, across_classes=0.15, across_both=0.03)
        1.0
        >>> block_transfer(2, 2, within=0.40, across_domains=0.03, across_classes=0.15, across_both=0.08)
        -1.0
    """
    k = classes + domains - 1 if k is None else k
    spectrum = block_spectrum(classes, domains, within, across_domains, across_classes, across_both)
    class_, interaction = (_kept(group, spectrum.values(), k) for group in (spectrum.class_, spectrum.interaction))
    total = class_ + (domains - 1) * interaction
    return (class_ - interaction) / total if total > 0 else 0.0


def sampled_blocks(
    classes: int,
    domains: int,
    within: float,
    across_domains: float,
    across_classes: float,
    across_both: float,
    size: int,
    generator: torch.Generator,
) -> PositivePairGraph:
    r"""Draw a random graph, every edge present independently with its block's probability, no self-loops.

    Args:
        classes: $r$.
        domains: $m$.
        within: probability of an edge within a block.
        across_domains: same class, other domain.
        across_classes: other class, same domain.
        across_both: both differ.
        size: vertices a block; vertex order as in `PositivePairGraph.blocks`.
        generator: source of randomness.

    Returns:
        A dense graph; $\bar A$ has negative eigenvalues.

    Raises:
        ValueError: if a vertex is left without an edge or the graph is disconnected.

    References:
        The companion's own sampling of the graph of Shen et al. (2022), Figure 2.
    """
    probability = block_weights(classes, domains, within, across_domains, across_classes, across_both, size)
    upper = torch.bernoulli(probability, generator=generator).triu(1)
    return PositivePairGraph.from_adjacency(upper + upper.T)


def _kept(group: tuple[float, int], values: Tensor, k: int) -> float:
    """Eigenvalue of a group if the top k hold all of it, zero if none of it."""
    value, count = group
    above = int((values > value + 1e-12).sum())
    tied = int(((values - value).abs() <= 1e-12).sum())
    if count == 0 or above >= k or value <= 0:
        return 0.0
    if above + tied > k:
        raise ValueError(f"block_transfer: k={k} cuts through {tied} equal eigenvalues; use {above} or {above + tied}")
    return value


def _sources(graph: PositivePairGraph, source_labels: Tensor) -> Tensor:
    """Indicator columns of the labelled classes."""
    return one_hot(source_labels, graph.n, unlabelled=True)


def _check_walk(t: int) -> None:
    if not isinstance(t, int) or t < 1:
        raise ValueError(f"walk length t must be an integer >= 1, got {t!r}")
