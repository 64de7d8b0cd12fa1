r"""What two views of an image say of each other, in second moments: the checks, and two least-squares problems.

``X`` is $\Gamma = \mathbb E\,xx^{+\top}$ and ``X_aug`` is $\Sigma_{\rm aug}$, the mean covariance of the views of one
image; together they are $\Sigma_x = \mathbb E\,xx^\top$.
"""

from typing import Any

import torch
from jaxtyping import Float
from scipy.linalg import eigh
from torch import Tensor

Number = float | int


def moments(X: Tensor, X_aug: Tensor, name: str) -> tuple[Tensor, Tensor]:
    r"""Check the two matrices of the data; return $\Gamma$ and $\Sigma_x$ in float64."""
    if X.ndim < 2 or X.shape[-1] != X.shape[-2] or X.shape != X_aug.shape:
        raise ValueError(f"{name}: X and X_aug must both be (m, m), got {tuple(X.shape)} and {tuple(X_aug.shape)}")
    exact = X.dtype == X_aug.dtype == torch.float64
    X, X_aug = X.detach().double(), X_aug.detach().double()
    rounding = (1e-10 if exact else 1e-5) * float((X + X_aug).abs().amax()) * X.shape[-1]
    for what, matrix in (("X", X), ("X_aug", X_aug)):
        if not (matrix - matrix.mT).abs().max() <= rounding:  # also where it is not a number
            raise ValueError(f"{name}: {what} is not symmetric; average it with its transpose")
        if (least := float(torch.linalg.eigvalsh(matrix).min())) < -rounding:
            hint = "take X over all ordered pairs of views, X_aug = second moment of the views - X"
            raise ValueError(f"{name}: {what} has eigenvalue {least:.3g}, it must be positive semidefinite; {hint}")
    return X, X + X_aug


def optimal_predictor(
    W: Float[Tensor, "*b k m"],
    X: Float[Tensor, "m m"],
    X_aug: Float[Tensor, "m m"],
    *,
    tau: Number = 1.0,
    ridge: Number = 0.0,
) -> Float[Tensor, "*b k k"]:
    r"""Return the predictor that is best for an online network at hand, with target $\tau W$.

    $$W_p = \tau\,W\Gamma W^\top\bigl(W\Sigma_xW^\top + r I_k\bigr)^{-1},$$

    by the pseudoinverse where $r = 0$. Then $GW^\top = 0$: an online network with this predictor does not grow, it
    only decays. With $r = \eta_p/\alpha_p$ it is where the predictor's own flow rests.

    Args:
        W: online network, shape (..., k, m).
        X: $\Gamma$, shape (m, m).
        X_aug: $\Sigma_{\rm aug}$, shape (m, m).
        tau: $\tau > 0$, the target over the online network.
        ridge: $r \ge 0$.

    Returns:
        $W_p$, shape (..., k, k), float64; zero on directions that $W$ does not reach.

    Raises:
        ValueError: if shapes do not fit, a matrix is not what it must be, or a number is out of range.

    References:
        Tian et al. (2021), section 3.2 and Table 1; `prop-symmetric-fixed`, `prop-optimal-predictor`.

    Examples:
        >>> W = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> optimal_predictor(W, torch.eye(2), 0.25 * torch.eye(2), tau=0.5).round(decimals=9).tolist()  # .5 / 1.25
        [[0.4, 0.0], [0.0, 0.0]]
    """
    X, Sigma = moments(X, X_aug, "optimal_predictor")
    if W.ndim < 2 or W.shape[-1] != len(X):
        raise ValueError(f"optimal_predictor: W {tuple(W.shape)} does not fit X {tuple(X.shape)}; need (k, m), (m, m)")
    if not (tau > 0 and ridge >= 0):
        raise ValueError(f"optimal_predictor: tau must be positive and ridge not negative, got {tau} and {ridge}")
    W = W.detach().double()
    inputs = W @ Sigma @ W.mT + ridge * torch.eye(W.shape[-2], dtype=torch.float64)
    return tau * W @ X @ W.mT @ torch.linalg.pinv(inputs, hermitian=True)


def view_correlations(
    X: Float[Tensor, "m m"], X_aug: Float[Tensor, "m m"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
    r"""Return the canonical correlations of two views, and the directions that have them, $\Gamma v = \kappa\Sigma_xv$.

    $\kappa\in[0,1]$ is what two views of an image share in direction $v$: 1 if the augmentation leaves $v^\top x$ as
    it is, 0 if it makes noise of it. The variance of $v^\top x$ does not enter.

    Args:
        X: $\Gamma$, shape (m, m).
        X_aug: $\Sigma_{\rm aug}$, shape (m, m).

    Returns:
        $\kappa$, shape (m,), decreasing, and $V$, shape (m, m), columns $v_j$ with $V^\top\Sigma_xV = I$; float64.

    Raises:
        ValueError: if shapes do not fit, a matrix is not positive semidefinite, or $\Sigma_x$ is singular.

    References:
        Textbook canonical correlations; Tian et al. (2021), appendix D; `prop-which-modes`, `eq-view-correlations`.

    Examples:
        >>> kappa, V = view_correlations(torch.diag(torch.tensor([4.0, 3.0])), torch.diag(torch.tensor([12.0, 1.0])))
        >>> kappa.tolist(), V.abs().tolist()  # not in the order of Gamma; columns of length 1 / sqrt(4), 1 / sqrt(16)
        ([0.75, 0.25], [[0.0, 0.25], [0.5, 0.0]])
    """
    X, Sigma = moments(X, X_aug, "view_correlations")
    if not (spectrum := torch.linalg.eigvalsh(Sigma))[0] > 8 * len(X) * torch.finfo(X.dtype).eps * spectrum[-1]:
        hint = "project the inputs on their leading principal components"
        raise ValueError(f"view_correlations: X + X_aug is singular (least eigenvalue {spectrum[0]:.1e}); {hint}")
    found: Any = eigh(X.numpy(), Sigma.numpy())
    kappa, V = (torch.from_numpy(part).flip(-1) for part in found)
    return kappa, V
