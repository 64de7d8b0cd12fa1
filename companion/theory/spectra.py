r"""Comparing subspaces and counting dimensions: principal angles, subspace overlap, effective rank."""

import torch
from jaxtyping import Float
from torch import Tensor


def principal_angles(A: Float[Tensor, "N a"], B: Float[Tensor, "N b"], cosines: bool = False) -> Float[Tensor, " m"]:
    r"""Measure the principal angles between two column spaces.

    With orthonormal bases $Q_A, Q_B$: $\cos\theta_i = \sigma_i(Q_A^\top Q_B)$. Below 45° the angle is taken from
    the sine, $\sigma(Q_B - Q_A Q_A^\top Q_B)$, since the arc cosine cannot resolve angles under $10^{-8}$.

    Args:
        A: columns of full rank, shape (N, a), float64.
        B: columns of full rank, shape (N, b), float64.
        cosines: return $\cos\theta_i$ (decreasing) instead of $\theta_i$.

    Returns:
        $\theta_1 \le \dots \le \theta_m$ in radians, $m = \min(a, b)$, float64.

    Raises:
        ValueError: if the row counts differ or the columns are linearly dependent.

    References:
        Björck and Golub (1973); Knyazev and Argentati (2002).

    Examples:
        >>> import torch
        >>> x, y = torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [1.0]])
        >>> torch.rad2deg(principal_angles(x, y)).round().tolist()
        [45.0]
    """
    QA, QB = _basis(A, "A"), _basis(B, "B")
    if len(QA) != len(QB):
        raise ValueError(f"principal_angles: A has {len(QA)} rows, B has {len(QB)}; both must live in one space")
    if QA.shape[1] < QB.shape[1]:
        QA, QB = QB, QA
    cross = QA.T @ QB
    cosine = torch.linalg.svdvals(cross).clamp(max=1)
    if cosines:
        return cosine
    sine = torch.linalg.svdvals(QB - QA @ cross).flip(0).clamp(max=1)
    return torch.where(cosine**2 > 0.5, sine.asin(), cosine.acos())


def subspace_overlap(A: Float[Tensor, "N a"], B: Float[Tensor, "N b"]) -> float:
    r"""Average the squared cosines of the principal angles, $\frac1m\lVert Q_A^\top Q_B\rVert_F^2$.

    Args:
        A: columns of full rank, shape (N, a), float64.
        B: columns of full rank, shape (N, b), float64.

    Returns:
        1 when the smaller space lies in the larger one, 0 when they are orthogonal; two random spaces have
        $\max(a, b)/N$ on average.

    Raises:
        ValueError: as `principal_angles`.

    Examples:
        >>> import torch
        >>> subspace_overlap(torch.eye(3)[:, :2], torch.eye(3)[:, 1:])
        0.5
    """
    return float(principal_angles(A, B, cosines=True).square().mean())


def effective_rank(values: Float[Tensor, "*shape"]) -> float:
    r"""Count dimensions by entropy, $\exp\bigl(-\sum_i q_i\log q_i\bigr)$ with $q_i = \sigma_i / \sum_j \sigma_j$.

    Args:
        values: singular values, shape (n,), non-negative; or a matrix, shape (N, k), whose singular values are taken.

    Returns:
        A number from 1 (one direction) to $k$ (all directions equally strong).

    Raises:
        ValueError: if no singular value is positive or one is negative.

    References:
        Roy and Vetterli (2007).

    Examples:
        >>> import torch
        >>> round(effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])), 6)
        3.0
    """
    values = values.double()
    sigma = torch.linalg.svdvals(values) if values.ndim == 2 else values
    if sigma.ndim != 1 or not bool((sigma >= 0).all()) or not sigma.sum() > 0:
        raise ValueError("effective_rank: expected non-negative singular values or a matrix, not all zero")
    q = sigma / sigma.sum()
    return float(torch.special.entr(q).sum().exp())


def _basis(A: Tensor, name: str) -> Tensor:
    """Orthonormalise the columns, or say that they are dependent."""
    A = A.double()
    if A.ndim != 2:
        raise ValueError(f"principal_angles: {name} must be a matrix of column vectors, got shape {tuple(A.shape)}")
    U, sigma, _ = torch.linalg.svd(A, full_matrices=False)
    rank = int((sigma > sigma.max() * max(A.shape) * torch.finfo(A.dtype).eps).sum())
    if rank < A.shape[1]:
        raise ValueError(f"principal_angles: {name} has {A.shape[1]} columns of rank {rank}; drop dependent columns")
    return U
