r"""Collapse by alignment is oversmoothing: how fast, to what, and what slows it down or stops it.

Gradient descent on $\mathrm{tr}\,F^\top LF$, the alignment loss, is $F \leftarrow F-2\alpha LF$: the graph convolution
$\bar AF$ at $\alpha = \frac12$. Here $F = D^{1/2}U$ are weighted features, one row a view, and $\alpha$ is the step
size on $F$. The graph has $c$ connected components; they give the eigenvalues $\gamma_1=\dots=\gamma_c=1$ of $\bar A$.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.theory import weights
from companion.theory.feature_norms import centre, layer_norm, node_norm, pair_norm, row_normalise
from companion.theory.message_checks import marginal, normalized_eigenvalues, positive, unit_tolerance
from companion.theory.mode_laws import Scalar
from companion.theory.stage_laws import appnp, multi_stage_rate, multi_stage_step
from companion.theory.target_messages import (
    momentum_matrix,
    momentum_rate,
    momentum_step,
    optimal_predictor,
    predictor_step,
    predictor_velocity,
    stop_gradient_step,
)

__all__ = [
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
]


def collapse_rate(eigenvalues: Float[Tensor, " n"], alpha: Scalar) -> Float[Tensor, "..."]:
    r"""Return the factor by which one alignment step shrinks the distance to collapse, at the least.

    $$\vartheta(\alpha) = \max_{i>c}|1-2\alpha(1-\gamma_i)| .$$

    On a positive semidefinite $\bar A$ it is below 1 for $0<\alpha<1$. For $\alpha\le\frac12$ it is
    $1-2\alpha(1-\gamma_{c+1})$, and so $\gamma_{c+1}$ at $\alpha=\frac12$. Where $\vartheta>1$ alignment diverges.

    Args:
        eigenvalues: all $\gamma_i$ of $\bar A$, any order, shape (n,); for $\alpha\le\frac12$ and $\bar A\succeq0$ the
            largest ones are enough, one below 1 among them. Those within $10^{-9}$ of 1, in
            single precision $10^{-5}$, belong to components.
        alpha: step size $\alpha>0$ on $F$; any shape.

    Returns:
        $\vartheta$, shape of `alpha`, float64; 0 where every eigenvalue is 1, since nothing is left to shrink.

    Raises:
        ValueError: if `alpha` is not positive, there is no eigenvalue, one lies outside [-1, 1], or none is 1.

    References:
        Wang et al. (2023), slides, collapse as oversmoothing; the rate is the companion's own; `thm-oversmoothing`.

    Examples:
        >>> collapse_rate(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.75])).tolist()
        [0.75, 0.5, 0.5]
    """
    alpha = positive(alpha, "collapse_rate")
    gamma = normalized_eigenvalues(eigenvalues, "collapse_rate").flatten()
    one = 1 - unit_tolerance(eigenvalues)
    if not gamma.max() >= one:
        hint = "pass those of the normalised adjacency matrix (the Laplacian's are 1 - gamma), the top one included"
        raise ValueError(f"collapse_rate: no eigenvalue is 1, the largest is {float(gamma.max()):g}; {hint}")
    rest = gamma[gamma < one]
    return (1 - 2 * alpha[..., None] * (1 - rest)).abs().amax(-1) if len(rest) else torch.zeros_like(alpha)


def collapse_distance(
    F: Float[Tensor, "*b N k"], p: Float[Tensor, " N"], component: Int[Tensor, " N"] | None = None
) -> Float[Tensor, "*b"]:
    r"""Measure how far features are from collapse, $d_{\mathcal M}(F) = \lVert(I-\Pi_{\mathcal M})F\rVert_F$.

    $\mathcal M$ is spanned by $(v_j)_x = \sqrt{p_x/p(C_j)}\,\mathbf 1[x\in C_j]$, one vector a component $C_j$: on it
    every row of $U = D^{-1/2}F$ is its component's mean. So $d_{\mathcal M}^2$ is the mean of
    $\lVert f_x-\bar f_{C(x)}\rVert^2$, and a step of alignment multiplies $d_{\mathcal M}$ by at most `collapse_rate`.

    Args:
        F: weighted features $D^{1/2}U$, shape (..., N, k); a whole trajectory may be given.
        p: degrees, shape (N,), positive, sum to 1.
        component: which component each view is in, integers from 0, shape (N,); None for a connected graph.

    Returns:
        The distance, one number for each (N, k), float64.

    Raises:
        ValueError: if the shapes do not fit or $p$ is no positive probability vector.

    References:
        The companion's own, in the manner of the literature on oversmoothing; `thm-oversmoothing`.

    Examples:
        >>> F = torch.tensor([[1.0], [2.0]])
        >>> round(float(collapse_distance(F, torch.tensor([0.5, 0.5]))) ** 2, 6)  # (1 - 2)^2 / 2
        0.5
    """
    if F.ndim < 2:
        raise ValueError(f"collapse_distance: expected features (..., N, k), got shape {tuple(F.shape)}")
    p = marginal(p, F.shape[-2], "collapse_distance")
    root = p.sqrt()[:, None]
    U = F.double() / root
    return (root * (U - _means(U, p, component))).norm(dim=(-2, -1))


def collapse_limit(
    U: Float[Tensor, "*b N k"], p: Float[Tensor, " N"], component: Int[Tensor, " N"] | None = None
) -> Float[Tensor, "*b N k"]:
    r"""Return where alignment ends, $f_x \to \bar f_{C(x)} = \frac1{p(C(x))}\sum_{y\in C(x)}p_yf_y$.

    Reached from $U$ by any step size with $\vartheta(\alpha)<1$. On a connected graph all rows are the mean under $p$
    and the rank is 1; with $c$ components it is at most $c$.

    Args:
        U: raw features (not weighted) at the start, shape (..., N, k).
        p: degrees, shape (N,), positive, sum to 1.
        component: which component each view is in, integers from 0, shape (N,); None for a connected graph.

    Returns:
        Raw features at the end, shape of `U`, float64.

    Raises:
        ValueError: if the shapes do not fit or $p$ is no positive probability vector.

    References:
        Wang et al. (2023), slides, collapse as oversmoothing; the limit is the companion's own; `thm-oversmoothing`.

    Examples:
        >>> U, p = torch.tensor([[0.0], [4.0], [7.0]]), torch.tensor([0.375, 0.125, 0.5])
        >>> collapse_limit(U, p).flatten().tolist(), collapse_limit(U, p, torch.tensor([0, 0, 1])).flatten().tolist()
        ([4.0, 4.0, 4.0], [1.0, 1.0, 7.0])
    """
    if U.ndim < 2:
        raise ValueError(f"collapse_limit: expected features (..., N, k), got shape {tuple(U.shape)}")
    return _means(U.double(), marginal(p, U.shape[-2], "collapse_limit"), component)


def _means(U: Tensor, p: Tensor, component: Tensor | None) -> Tensor:
    """Replace each row by the mean of its component."""
    component = torch.zeros(len(p), dtype=torch.int64) if component is None else component
    share = p[:, None] * weights.one_hot(component, len(p))
    return ((share / share.sum(0)).T @ U)[..., component, :]
