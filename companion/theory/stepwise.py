r"""A linear encoder under the toy Barlow Twins loss: one dimension at a time, in closed form.

The loss $\mathcal L = \lVert W\Gamma W^\top - I_k\rVert_F^2$ sees the data through the cross-correlation $\Gamma$ of
two views only. Its eigenvalues $\gamma_1\ge\gamma_2\ge\dots$ are sorted by *signed* value throughout: a direction
in which partners are anticorrelated has $\gamma < 0$ and is unlearned, however large $|\gamma|$ is.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.contrastive_kernel import (
    KernelModes,
    contrastive_kernel,
    kernel_embedding,
    kernel_embedding_at,
    kernel_modes,
)
from companion.theory.mode_laws import (
    Scalar,
    contrastive_mode,
    grow,
    plateau_loss,
    preconditioned_modes,
    preconditioned_time,
    supervised_mode,
    vicreg_drive,
)
from companion.theory.small_start import (
    aligned_partner,
    effective_init,
    leak,
    leak_exponent,
    minimum_norm,
    top_spectral,
)

__all__ = [
    "cross_correlation",
    "barlow_loss",
    "barlow_gradient",
    "singular_values",
    "correlation_eigenvalues",
    "critical_times",
    "rise_times",
    "loss_staircase",
    "top_spectral",
    "minimum_norm",
    "effective_init",
    "aligned_partner",
    "leak_exponent",
    "leak",
    "KernelModes",
    "contrastive_kernel",
    "kernel_modes",
    "kernel_embedding",
    "kernel_embedding_at",
    "contrastive_mode",
    "vicreg_drive",
    "supervised_mode",
    "plateau_loss",
    "preconditioned_modes",
    "preconditioned_time",
]


def cross_correlation(x1: Float[Tensor, "n m"], x2: Float[Tensor, "n m"]) -> Float[Tensor, "m m"]:
    r"""Return the cross-correlation of two views, symmetrised, not centred.

    $$\Gamma = \frac1{2n}(X^\top X' + X'^\top X) .$$

    It is indefinite: $\Gamma = \bar\Sigma - \Delta$, second moment of the pairs' means minus that of their half
    differences.

    Args:
        x1: first views $X$, shape (n, m), any float dtype.
        x2: second views $X'$, row $i$ the partner of row $i$ of `x1`.

    Returns:
        $\Gamma$, shape (m, m), float64, symmetric.

    Raises:
        ValueError: if the shapes differ.

    References:
        Simon et al. (2023), section 4; `eq-cross-correlation`, `lem-gamma-split`.

    Examples:
        >>> cross_correlation(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]])).tolist()
        [[1.0, 0.0], [0.0, -1.0]]
    """
    if x1.ndim != 2 or x1.shape != x2.shape:
        raise ValueError(f"cross_correlation: expected two (n, m) views, got {tuple(x1.shape)} and {tuple(x2.shape)}")
    product = x1.double().T @ x2.double()
    return (product + product.T) / (2 * len(x1))


def barlow_loss(W: Float[Tensor, "k m"], Gamma: Float[Tensor, "m m"]) -> float:
    r"""Evaluate the toy Barlow Twins loss of a linear encoder, $\mathcal L = \lVert W\Gamma W^\top - I_k\rVert_F^2$.

    Args:
        W: encoder, shape (k, m), any float dtype; computed in float64, without gradient.
        Gamma: cross-correlation, shape (m, m), symmetric.

    Returns:
        The loss, a sum over all $k^2$ entries.

    Raises:
        ValueError: if the shapes do not fit.

    References:
        Simon et al. (2023), section 4; `eq-bt-loss`.

    Examples:
        >>> barlow_loss(torch.zeros(3, 2), torch.eye(2))
        3.0
    """
    W, Gamma = _fit(W, Gamma, "barlow_loss")
    return float((W @ Gamma @ W.T - torch.eye(len(W), dtype=W.dtype)).square().sum())


def barlow_gradient(W: Float[Tensor, "k m"], Gamma: Float[Tensor, "m m"]) -> Float[Tensor, "k m"]:
    r"""Return the gradient of `barlow_loss`, $4\,(W\Gamma W^\top - I_k)\,W\Gamma$; gradient flow is minus this.

    Args:
        W: encoder, shape (k, m), any float dtype.
        Gamma: cross-correlation, shape (m, m), symmetric.

    Returns:
        The gradient, shape (k, m), float64.

    Raises:
        ValueError: if the shapes do not fit.

    References:
        Simon et al. (2023), section 4; `eq-bt-flow`.

    Examples:
        >>> barlow_gradient(torch.tensor([[2.0]]), torch.tensor([[0.5]])).tolist()  # 4 (2 - 1) 2 / 2
        [[4.0]]
    """
    W, Gamma = _fit(W, Gamma, "barlow_gradient")
    signal = W @ Gamma
    return 4 * (signal @ W.T @ signal - signal)


def singular_values(gamma: Scalar, s0: Scalar, t: Scalar) -> Float[Tensor, "..."]:
    r"""Solve the law of one singular value of $W$, $\dot s = 4\gamma s(1-\gamma s^2)$, $s(0) = s_0$.

    $$s(t) = \frac{e^{4\gamma t}}{\sqrt{s_0^{-2} + (e^{8\gamma t}-1)\,\gamma}} .$$

    Exact for $W(0) = U\mathrm{diag}(s_0)V_k^\top$ with $U$ orthogonal. It grows to $\gamma^{-1/2}$, stays where
    $\gamma = 0$ and decays to 0 where $\gamma < 0$.

    Args:
        gamma: eigenvalue of $\Gamma$, any sign; broadcasts.
        s0: start; of either sign, which is kept; broadcasts.
        t: time $\ge 0$, may be infinite; broadcasts.

    Returns:
        $s(t)$, broadcast shape, float64.

    Raises:
        ValueError: if a time is negative.

    References:
        Simon et al. (2023), Proposition 4.1, Eqs. 9-10; `thm-aligned`, `eq-singular-values`.

    Examples:
        >>> singular_values(torch.tensor([4.0, 0.0, -4.0]), 0.25, 1e6).tolist()
        [0.5, 0.25, 0.0]
    """
    gamma = torch.as_tensor(gamma, dtype=torch.float64)
    return contrastive_mode(gamma, gamma.abs(), s0, t)  # the same saturation with sigma = |gamma|


def correlation_eigenvalues(gamma: Scalar, s0: Scalar, t: Scalar) -> Float[Tensor, "..."]:
    r"""Solve the logistic law of one eigenvalue of $C$, $\dot c = 8\gamma c(1-c)$, $c(0) = \gamma s_0^2$.

    $$c(t) = \frac1{1 + (1/c(0)-1)\,e^{-8\gamma t}},\qquad
    c(t) = \mathrm{sigmoid}\bigl(8\gamma(t-t_j)\bigr)\ \text{ if } 0 < c(0) < 1 .$$

    Args:
        gamma: eigenvalue of $\Gamma$, any sign; broadcasts.
        s0: start of the singular value; broadcasts.
        t: time $\ge 0$, may be infinite; broadcasts.

    Returns:
        $c(t)$, broadcast shape, float64; of the sign of $\gamma$.

    Raises:
        ValueError: if a time is negative.

    References:
        The companion's own; `eq-logistic`.

    Examples:
        >>> float(correlation_eigenvalues(2.0, 0.5, 0.0)), float(correlation_eigenvalues(2.0, 0.5, 1e9))
        (0.5, 1.0)
    """
    c, missing = _along(gamma, s0, t)
    return torch.where(c < 0.5, c, 1 - missing)


def critical_times(gamma: Scalar, s0: Scalar) -> Float[Tensor, "..."]:
    r"""Return when a mode is half learned, $c_j(t_j) = \frac12$.

    $$t_j = \frac1{8\gamma_j}\log\frac{1-\gamma_js_j^2(0)}{\gamma_js_j^2(0)} .$$

    Args:
        gamma: eigenvalue of $\Gamma$, any sign; broadcasts.
        s0: start, $s_0 > 0$ and $\gamma s_0^2 < 1$; broadcasts.

    Returns:
        $t_j$, broadcast shape, float64; infinite where $\gamma \le 0$, negative where the start is past one half.

    Raises:
        ValueError: if a start is not positive or not below $\gamma^{-1/2}$.

    References:
        The companion's own, exact at every start; `cor-critical-times`, `eq-critical-time`.

    Examples:
        >>> float(critical_times(0.5, 1.0)), float(critical_times(-0.5, 1.0))
        (0.0, inf)
    """
    gamma, s0 = (torch.as_tensor(x, dtype=torch.float64) for x in (gamma, s0))
    c0 = gamma * s0.square()
    if not (s0 > 0).all():
        raise ValueError("critical_times: a start s0 is not positive; a mode that starts at zero is never learned")
    if (c0 >= 1).any():
        raise ValueError("critical_times: gamma s0^2 >= 1, this start lies above the mode's end; shrink s0")
    wait = (torch.log1p(-c0) - gamma.log() - 2 * s0.log()) / (8 * gamma)  # in logarithms: s0^2 may underflow
    return torch.where(gamma <= 0, torch.inf, wait)


def rise_times(gamma: Scalar) -> Float[Tensor, "..."]:
    r"""Return how long an eigenvalue of $C$ takes from 10 % to 90 %, $\log 81/(8\gamma)$; no start changes it.

    Args:
        gamma: eigenvalue of $\Gamma$, any sign.

    Returns:
        The times, shape of `gamma`, float64; infinite where $\gamma \le 0$.

    References:
        The companion's own; `cor-critical-times`.

    Examples:
        >>> round(float(rise_times(1.0)), 6)
        0.549306
    """
    gamma = torch.as_tensor(gamma, dtype=torch.float64)
    return torch.where(gamma <= 0, torch.inf, math.log(81) / (8 * gamma))


def loss_staircase(gamma: Scalar, s0: Scalar, t: Scalar) -> Float[Tensor, "..."]:
    r"""Evaluate the loss along the aligned trajectory, a staircase of unit steps.

    $$\mathcal L(t) = \sum_{j\le k}\bigl(1-c_j(t)\bigr)^2,\qquad
    1-c_j(t) = \mathrm{sigmoid}\bigl(-8\gamma_j(t-t_j)\bigr)\ \text{ if } 0 < c_j(0) < 1 .$$

    The residuals $1-c_j$ are not formed by subtraction: the loss keeps its digits far below rounding of 1.

    Args:
        gamma: the $k$ eigenvalues on the last axis, any sign.
        s0: their starts on the last axis, or one for all.
        t: times $\ge 0$, any shape.

    Returns:
        $\mathcal L$, shape of `t`, float64; at the end the number of modes with $\gamma_j \le 0$.

    Raises:
        ValueError: if a time is negative.

    References:
        Simon et al. (2023), section 4.2; the formula is the companion's own; `eq-staircase`.

    Examples:
        >>> gamma = torch.tensor([2.0, 1.0, -1.0])
        >>> loss_staircase(gamma, 1e-9, torch.tensor([0.0, 3.5, 100.0])).round(decimals=4).tolist()
        [3.0, 2.0, 1.0]
    """
    return _along(gamma, s0, torch.as_tensor(t, dtype=torch.float64)[..., None])[1].square().sum(-1)


def _along(gamma: Scalar, s0: Scalar, t: Scalar) -> tuple[Tensor, Tensor]:
    """Return c(t) and 1 - c(t), each to full relative precision."""
    gamma, s0, t = (torch.as_tensor(x, dtype=torch.float64) for x in (gamma, s0, t))
    s, brake = grow(gamma, gamma.abs(), s0, t)
    return gamma * s.square(), (1 - gamma * s0.square()) * brake.square()


def _fit(W: Tensor, Gamma: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if W.ndim != 2 or Gamma.shape != (W.shape[1], W.shape[1]):
        raise ValueError(f"{name}: W {tuple(W.shape)} and Gamma {tuple(Gamma.shape)} do not fit; need (k, m), (m, m)")
    return W.detach().double(), Gamma.double()
