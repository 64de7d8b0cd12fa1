r"""Small generic starts: the aligned trajectory that they follow, where it ends, and what stays of the difference.

With $W(0)V = QR$, $R$ upper trapezoidal, the flow from a small $W(0)$ follows the one from
$Q\,\mathrm{diag}(R_{jj})\,V_k^\top$: $I - C$ projects out what is learned, so that column $j$ counts only with its part
outside the span of the columns before it.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def effective_init(W0: Float[Tensor, "k m"], eigenvectors: Float[Tensor, "m q"]) -> Float[Tensor, " k"]:
    r"""Return the effective starts $s_j(0) = |R_{jj}|$ of the QR factorisation $W(0)V_k = QR$.

    Neither the norms of the columns nor the singular values of $W(0)$. For entries $\mathcal N(0,\alpha^2)$:
    $\mathbb E\,s_j(0)^2 = \alpha^2(k-j+1)$.

    Args:
        W0: start, shape (k, m), any float dtype.
        eigenvectors: unit eigenvectors of $\Gamma$ as columns in decreasing signed order of eigenvalue, shape (m, q),
            $q \ge k$; those beyond $k$ are not used.

    Returns:
        $s_1(0), \dots, s_k(0)$, positive, float64.

    Raises:
        ValueError: if shapes do not fit or the columns of $W(0)V_k$ are linearly dependent.

    References:
        Simon et al. (2023), Result 4.6; the QR form is the companion's own; `prop-generic-start`, `eq-effective-start`.

    Examples:
        >>> W0 = torch.tensor([[3.0, 1.0], [4.0, 1.0]])  # columns a_1, a_2 of length 5 and 1.4 that span an area of 1
        >>> effective_init(W0, torch.eye(2)).round(decimals=6).tolist()
        [5.0, 0.2]
    """
    return _factor(W0, eigenvectors, "effective_init")[1]


def aligned_partner(W0: Float[Tensor, "k m"], eigenvectors: Float[Tensor, "m q"]) -> Float[Tensor, "k m"]:
    r"""Return the aligned start whose trajectory a small start follows, $W^*(0) = Q\,\mathrm{diag}(R_{jj})\,V_k^\top$.

    The distance of the two trajectories vanishes with the start scale $\alpha$, uniformly in time, to leading order
    like $\alpha^\kappa$, $\kappa = \min_{i\le k}(1-\gamma_{i+1}/\gamma_i)$.

    Args:
        W0: start, shape (k, m), any float dtype.
        eigenvectors: as in `effective_init`, shape (m, q), $q \ge k$.

    Returns:
        $W^*(0)$, shape (k, m), float64; signs of $Q$ are such that $R_{jj} > 0$.

    Raises:
        ValueError: as `effective_init`.

    References:
        Simon et al. (2023), Result 4.6; the explicit partner is the companion's own; `prop-generic-start`, `eq-rate`.

    Examples:
        >>> aligned_partner(torch.tensor([[2.0, 7.0]]), torch.eye(2)).tolist()
        [[2.0, 0.0]]
    """
    Q, start, V = _factor(W0, eigenvectors, "aligned_partner")
    return Q * start @ V.T


def top_spectral(gamma: Float[Tensor, " q"], eigenvectors: Float[Tensor, "m q"], k: int) -> Float[Tensor, "k m"]:
    r"""Return the end of the flow, $W_\infty = \mathrm{diag}(\gamma_1^{-1/2},\dots,\gamma_k^{-1/2})\,V_k^\top$.

    Every $UW_\infty$ with $U$ orthogonal has zero loss and the least norm among encoders of zero loss; there is no
    other when $\gamma_k > \gamma_{k+1}$.

    Args:
        gamma: eigenvalues of $\Gamma$ in decreasing signed order, $q \ge k$ of them.
        eigenvectors: their unit eigenvectors as columns, shape (m, q).
        k: embedding dimension.

    Returns:
        $W_\infty$, shape (k, m), float64.

    Raises:
        ValueError: if the order is not decreasing or fewer than $k$ eigenvalues are positive.

    References:
        Simon et al. (2023), Proposition 4.3; `def-top-spectral`, `thm-minimum-norm`.

    Examples:
        >>> top_spectral(torch.tensor([4.0, -9.0]), torch.eye(2), 1).tolist()
        [[0.5, 0.0]]
    """
    scale = _top(gamma, k, "top_spectral").rsqrt()
    if eigenvectors.ndim != 2 or eigenvectors.shape[1] != len(gamma):
        shape = tuple(eigenvectors.shape)
        raise ValueError(f"top_spectral: eigenvectors must have a column for each of {len(gamma)} modes, got {shape}")
    return scale[:, None] * eigenvectors[:, :k].double().T


def minimum_norm(gamma: Float[Tensor, " q"], k: int) -> float:
    r"""Return the least squared norm of an encoder with zero loss, $\sum_{j\le k}1/\gamma_j$.

    Args:
        gamma: eigenvalues of $\Gamma$ in decreasing signed order.
        k: embedding dimension.

    Returns:
        The minimum of $\lVert W\rVert_F^2$; of the squared RKHS norm for eigenvalues of a contrastive kernel.

    Raises:
        ValueError: if the order is not decreasing or fewer than $k$ eigenvalues are positive.

    References:
        Simon et al. (2023), Proposition 4.3; the value is the companion's own; `thm-minimum-norm`, `prop-rkhs-norm`.

    Examples:
        >>> minimum_norm(torch.tensor([1.0, 0.5, -3.0]), 2)
        3.0
    """
    return float(_top(gamma, k, "minimum_norm").reciprocal().sum())


def leak_exponent(gamma: Float[Tensor, " m"], k: int) -> float:
    r"""Return the power of the start scale with which unlearned directions stay, $1-\gamma_{k+1}/\gamma_k$.

    Args:
        gamma: eigenvalues of $\Gamma$ in decreasing signed order, more than $k$.
        k: embedding dimension.

    Returns:
        The exponent in [0, 1]; 1 if $\gamma_{k+1}\le0$, since such columns never grow.

    Raises:
        ValueError: if the order is not decreasing, fewer than $k$ eigenvalues are positive, or there is no $k+1$.

    References:
        The companion's own, to leading order; `eq-leak`, `eq-rate`.

    Examples:
        >>> leak_exponent(torch.tensor([2.0, 1.0, 0.25]), 2), leak_exponent(torch.tensor([2.0, -1.0]), 1)
        (0.75, 1.0)
    """
    top = _top(gamma, k, "leak_exponent")
    if k == len(gamma):
        raise ValueError(f"leak_exponent: k={k} takes all eigenvalues, no direction is left to leak into")
    return float(1 - gamma[k].double().clamp(min=0) / top[-1])


def leak(gamma: Float[Tensor, " m"], R0: Float[Tensor, "k m"], k: int) -> Float[Tensor, "k m"]:
    r"""Predict what stays for ever in the directions that are not learned, to leading order in the start scale.

    $$R_{ij}(\infty) = R_{ij}(0)\,\bigl(\sqrt{\gamma_i}\,|R_{ii}(0)|\bigr)^{-\gamma_j/\gamma_i},\qquad i\le k<j .$$

    Row $i$ grows like $e^{4\gamma_jt}$ in direction $j$ until dimension $i$ is learned, and then stays. Row $k$ leaks
    most. Elsewhere the neglected terms fade slowly with the start scale $\alpha$: in rows $i < k$ they may be smaller
    by a mere $\alpha^{(1-\gamma_k/\gamma_i)(1-\gamma_j/\gamma_k)}$, and where $\gamma_j < 0$ they may be larger than
    the little that the formula leaves.

    Args:
        gamma: all eigenvalues of $\Gamma$ in decreasing signed order.
        R0: $R$ of the factorisation $W(0)V = QR$ in all $m$ directions, shape (k, m), upper trapezoidal.
        k: embedding dimension, the number of rows of `R0`.

    Returns:
        $R(\infty)$ in columns $j > k$, zero in columns $j \le k$; shape (k, m), float64.

    Raises:
        ValueError: if shapes do not fit, the order is not decreasing, or fewer than $k$ eigenvalues are positive.

    References:
        The companion's own; `eq-leak`.

    Examples:
        >>> leak(torch.tensor([1.0, 0.5]), torch.tensor([[1e-6, 1e-6]]), 1).round(decimals=6).tolist()
        [[0.0, 0.001]]
    """
    top, R0 = _top(gamma, k, "leak"), R0.double()
    if R0.shape != (k, len(gamma)):
        raise ValueError(f"leak: R0 must have shape {(k, len(gamma))}, from the QR of W0 V, got {tuple(R0.shape)}")
    start = top.sqrt() * R0.diagonal().abs()
    left = R0 * start[:, None] ** (-gamma.double() / top[:, None])
    left[:, :k] = 0
    return left


def _factor(W0: Tensor, eigenvectors: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q, the diagonal of R made positive, and the first k eigenvectors."""
    k = len(W0)
    if W0.ndim != 2 or eigenvectors.ndim != 2 or len(eigenvectors) != W0.shape[1] or eigenvectors.shape[1] < k:
        shapes = f"{tuple(W0.shape)} and {tuple(eigenvectors.shape)}"
        raise ValueError(f"{name}: start and eigenvectors do not fit, got {shapes}; need (k, m) and (m, q >= k)")
    V = eigenvectors[:, :k].double()
    A = W0.detach().double() @ V
    Q, R = torch.linalg.qr(A)
    diagonal = R.diagonal()
    if (dependent := diagonal.abs() <= 8 * k * torch.finfo(A.dtype).eps * A.norm(dim=0)).any():
        j = int(dependent.nonzero()[0]) + 1
        raise ValueError(f"{name}: column {j} of W0 V depends on those before it, so dimension {j} is not seeded")
    return Q * diagonal.sign(), diagonal.abs(), V


def _top(gamma: Tensor, k: int, name: str) -> Tensor:
    if not (gamma.diff() <= 0).all():
        raise ValueError(f"{name}: eigenvalues must decrease by signed value; eigh returns them in increasing order")
    positive = int((gamma > 0).sum())
    if not 1 <= k <= positive:
        raise ValueError(f"{name}: only {positive} of {len(gamma)} eigenvalues are positive, k={k} cannot be learned")
    return gamma[:k].double()
