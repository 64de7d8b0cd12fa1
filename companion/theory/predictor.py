r"""Self-supervised learning with a predictor and a stop-gradient, in a linear network: no negatives, no collapse.

Who moves, and how, is in `velocity`, `flow` and `descend`; here is what the flow conserves, what it aligns, and why it
needs the stop-gradient. The letters are those of `companion.theory.siamese_flow`: online network $W$, predictor $W_p$,
``X`` $=\Gamma$, ``X_aug`` $=\Sigma_{\rm aug}$, and $C = W\Gamma W^\top$, the correlation matrix of the embeddings.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.direct_predictor import boosted_end, direct_copy, direct_pred, direct_set_points
from companion.theory.predictor_basins import FixedPoints, basin_boundary, collapse_threshold, fixed_points, stability
from companion.theory.predictor_modes import alignment_rate, integral_of_motion, mode_flow, mode_velocity, target_ratio
from companion.theory.siamese_flow import State, descend, flow, velocity
from companion.theory.siamese_stability import escape_rate, linearised, mixing_margin, resting_state
from companion.theory.view_moments import Number, moments, optimal_predictor, view_correlations

__all__ = [
    "State",
    "velocity",
    "flow",
    "descend",
    "imbalance",
    "no_stop_matrix",
    "optimal_predictor",
    "commutator",
    "alignment_matrix",
    "scale_free_commutator",
    "view_correlations",
    "mode_velocity",
    "mode_flow",
    "FixedPoints",
    "fixed_points",
    "collapse_threshold",
    "basin_boundary",
    "integral_of_motion",
    "target_ratio",
    "stability",
    "alignment_rate",
    "direct_pred",
    "direct_copy",
    "direct_set_points",
    "boosted_end",
    "resting_state",
    "mixing_margin",
    "linearised",
    "escape_rate",
]


def imbalance(state: State, alpha_p: Number = 1.0) -> Float[Tensor, "... k k"]:
    r"""Return by how much the online network outweighs the predictor, $\Omega = WW^\top - W_p^\top W_p/\alpha_p$.

    Along the flow $\Omega(t) = e^{-2\eta t}\,\Omega(0)$, whatever the data, the target and the symmetry of $W_p$. It
    needs one decay $\eta$ for both networks and the gradient of the predictor as it is; of the symmetrised flow only
    the trace keeps the law.

    Args:
        state: where; leading axes, such as those of a path, are kept.
        alpha_p: $\alpha_p > 0$, learning rate of the predictor over that of the online network.

    Returns:
        $\Omega$, shape (..., k, k), float64, symmetric.

    Raises:
        ValueError: if $\alpha_p$ is not positive or $W$ and $W_p$ do not fit.

    References:
        Tian et al. (2021), Theorem 1; `thm-balance`, `eq-balance`; the trace: `prop-balance-symmetrised`.

    Examples:
        >>> imbalance(State(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]])), alpha_p=4.0).tolist()  # 25 - 4 / 4
        [[24.0]]
    """
    W, Wp = state.W.detach().double(), state.Wp.detach().double()
    if not alpha_p > 0:
        raise ValueError(f"imbalance: alpha_p must be positive, got {alpha_p}")
    if W.ndim < 2 or Wp.shape != (*W.shape[:-1], W.shape[-2]):
        raise ValueError(f"imbalance: W {tuple(W.shape)} and Wp {tuple(Wp.shape)} do not fit; need (k, m) and (k, k)")
    return W @ W.mT - Wp.mT @ Wp / alpha_p


def no_stop_matrix(
    Wp: Float[Tensor, "*b k k"], X: Float[Tensor, "m m"], X_aug: Float[Tensor, "m m"], eta: Number = 0.0
) -> Float[Tensor, "*b km km"]:
    r"""Return $H$ of the flow without stop-gradient, $\frac{d}{dt}\mathrm{vec}\,W = -H\,\mathrm{vec}\,W$.

    $$H = \Sigma_{\rm aug}\otimes(W_p^\top W_p+I_k) + \Gamma\otimes(W_p-I_k)^\top(W_p-I_k) + \eta I_{km}\succeq0,$$

    so that $W$ never grows, and dies out if the least eigenvalue of $H$ stays above a positive number.

    Args:
        Wp: predictor, shape (..., k, k).
        X: $\Gamma$, shape (m, m).
        X_aug: $\Sigma_{\rm aug}$, shape (m, m).
        eta: $\eta$, weight decay of the online network.

    Returns:
        $H$, shape (..., km, km), float64; $\mathrm{vec}$ stacks columns: ``W.mT.flatten()``.

    Raises:
        ValueError: if the predictor is not square, or `X` and `X_aug` are not symmetric and positive semidefinite.

    References:
        Tian et al. (2021), Theorem 2; `thm-stop-gradient`, `eq-no-stop`.

    Examples:
        >>> no_stop_matrix(torch.tensor([[3.0]]), torch.eye(1), 0.5 * torch.eye(1), eta=1.0).tolist()  # 5 + 4 + 1
        [[10.0]]
    """
    if Wp.ndim < 2 or Wp.shape[-1] != Wp.shape[-2]:
        raise ValueError(f"no_stop_matrix: the predictor must be (k, k), got {tuple(Wp.shape)}")
    X, Sigma = moments(X, X_aug, "no_stop_matrix")
    one = torch.eye(Wp.shape[-1], dtype=torch.float64)
    Wp, off = Wp.double(), Wp.double() - one
    H = _kron(Sigma - X, Wp.mT @ Wp + one) + _kron(X, off.mT @ off)
    return H + eta * torch.eye(H.shape[-1], dtype=torch.float64)


def commutator(C: Float[Tensor, "*b k k"], Wp: Float[Tensor, "*b k k"]) -> Float[Tensor, "*b k k"]:
    r"""Return $M = [C,W_p] = CW_p - W_pC$; for symmetric $C$, $W_p$ it is zero iff one eigenbasis serves both.

    Args:
        C: correlation matrix $C$ of the embeddings, shape (..., k, k).
        Wp: predictor, same shape.

    Returns:
        $M$, same shape, float64; antisymmetric if $C$ and $W_p$ are symmetric.

    Raises:
        ValueError: if the shapes differ or are not square.

    References:
        Tian et al. (2021), section 3.1; `thm-alignment`, `eq-commutator`.

    Examples:
        >>> commutator(torch.diag(torch.tensor([3.0, 1.0])), torch.ones(2, 2)).tolist()
        [[0.0, 2.0], [-2.0, 0.0]]
    """
    C, Wp = _square(C, Wp, "commutator")
    return C @ Wp - Wp @ C


def alignment_matrix(
    C: Float[Tensor, "*b k k"],
    Wp: Float[Tensor, "*b k k"],
    *,
    tau: Number | Float[Tensor, "..."],
    sigma2: Number,
    alpha_p: Number = 1.0,
    eta: Number = 0.0,
    eta_p: Number | None = None,
) -> Float[Tensor, "*b k k"]:
    r"""Return $\Xi$ of the law of the commutator on isotropic data, $\dot M = -\Xi M - M\Xi$.

    $$\Xi = (1+\sigma^2)\Bigl[\frac{\alpha_p}2C + W_p^2\Bigr] - \tau W_p + \frac{\eta_p+2\eta}2I_k$$

    for $\Gamma = I$, $\Sigma_{\rm aug} = \sigma^2I$, symmetric $W_p$ and the symmetrised flow. Hence
    $\lVert M(t)\rVert_F \le \lVert M(0)\rVert_F\exp(-2\int_0^t\lambda_{\min}(\Xi))$, where $\Xi$ need not be positive.

    Args:
        C: $WW^\top$, shape (..., k, k), symmetric.
        Wp: predictor, same shape, symmetric.
        tau: $\tau$, one number or one for each matrix.
        sigma2: $\sigma^2 \ge 0$.
        alpha_p: $\alpha_p > 0$.
        eta: $\eta \ge 0$, weight decay of the online network, and of the predictor unless `eta_p` is given.
        eta_p: $\eta_p \ge 0$, weight decay of the predictor.

    Returns:
        $\Xi$, shape (..., k, k), float64, symmetric, of any sign.

    Raises:
        ValueError: if shapes do not fit, a matrix is not symmetric, or a number is out of range.

    References:
        Tian et al. (2021), Theorem 3; with two weight decays the companion's own; `thm-alignment`, `eq-commutator`.

    Examples:
        >>> alignment_matrix(torch.eye(1), torch.eye(1), tau=0.5, sigma2=1.0, alpha_p=4.0, eta=0.5).tolist()
        [[6.25]]
    """
    C, Wp = _square(C, Wp, "alignment_matrix")
    decays = eta, eta if eta_p is None else eta_p
    if not (alpha_p > 0 and sigma2 >= 0 and min(decays) >= 0):
        got = f"alpha_p={alpha_p}, sigma2={sigma2}, eta={eta}, eta_p={eta_p}"
        raise ValueError(f"alignment_matrix: alpha_p must be positive, the others not negative; got {got}")
    for what, matrix in (("C", C), ("Wp", Wp)):
        if not (matrix - matrix.mT).abs().max() <= 1e-6 * matrix.abs().max():
            raise ValueError(f"alignment_matrix: {what} is not symmetric; the law holds for the symmetrised flow only")
    tau = torch.as_tensor(tau, dtype=torch.float64)[..., None, None]
    own = (1 + sigma2) * (alpha_p / 2 * C + Wp @ Wp) - tau * Wp
    return own + (decays[0] + decays[1] / 2) * torch.eye(C.shape[-1], dtype=torch.float64)


def scale_free_commutator(C: Float[Tensor, "*b k k"], Wp: Float[Tensor, "*b k k"]) -> Float[Tensor, "*b"]:
    r"""Measure how far predictor and embeddings are from sharing eigenvectors, whatever the size of the embeddings.

    $$N_F = \bigl\lVert C^{-1/2}[C,W_p]\,C^{-1/2}\bigr\rVert_F
    = \Bigl(\sum_{i,j}\frac{(c_i-c_j)^2}{c_ic_j}\,\bigl(u_i^\top W_pu_j\bigr)^2\Bigr)^{1/2}$$

    in the eigenvectors $u_i$ of $C$. On isotropic data the symmetrised flow from $C(0)\succ0$ only lowers it, whatever
    $\tau(t)$ and the signs of $W_p$:
    $N_F(t) \le N_F(0)\exp(-\int_0^t[\alpha_p(1+\sigma^2)\lambda_{\min}(C)+\eta_p])$.

    Args:
        C: correlation matrix of the embeddings, shape (..., k, k), symmetric positive definite.
        Wp: predictor, same shape.

    Returns:
        $N_F$, the leading shape, float64.

    Raises:
        ValueError: if shapes do not fit, or $C$ is singular to rounding.

    References:
        The companion's own; `prop-scale-free`, `eq-scale-free`.

    Examples:
        >>> C, Wp = torch.diag(torch.tensor([4.0, 1.0])), torch.ones(2, 2)
        >>> round(float(scale_free_commutator(1e-9 * C, Wp)) ** 2, 9)  # 2 * 3^2 / 4
        4.5
    """
    C, Wp = _square(C, Wp, "scale_free_commutator")
    c, U = torch.linalg.eigh(C)
    if not (c[..., 0] > 8 * C.shape[-1] * torch.finfo(c.dtype).eps * c[..., -1]).all():
        ratio = float((c[..., 0] / c[..., -1]).min())
        hint = "end the path before a mode has died out, or take fewer dimensions"
        raise ValueError(f"scale_free_commutator: C is singular (least over largest eigenvalue {ratio:.1e}); {hint}")
    rows, columns = c[..., :, None], c[..., None, :]
    return torch.linalg.matrix_norm((rows - columns) / (rows * columns).sqrt() * (U.mT @ Wp @ U))


def _kron(A: Tensor, B: Tensor) -> Tensor:
    """Return the Kronecker product of A with each of B (..., k, k)."""
    n = len(A) * B.shape[-1]
    return torch.einsum("ab,...ij->...aibj", A, B).reshape(*B.shape[:-2], n, n)


def _square(C: Tensor, Wp: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if C.ndim < 2 or C.shape[-1] != C.shape[-2] or C.shape != Wp.shape:
        raise ValueError(f"{name}: C and Wp must both be (k, k), got {tuple(C.shape)} and {tuple(Wp.shape)}")
    return C.detach().double(), Wp.detach().double()
