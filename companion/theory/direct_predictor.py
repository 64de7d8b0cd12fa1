r"""A predictor that is set and not trained: $W_p$ as a function of the second moment $\hat F$ of its inputs.

Training aligns the predictor's eigenvectors with those of its inputs' second moment, and weight decay ties its
eigenvalues to $p_j\propto\sqrt{s_j}$: so both can be set at once. The network then has one equation a mode,
$\dot s = 2s\,[p(s)(1-(1+\sigma^2)p(s))-\eta]$, here for isotropic data and a target equal to the online network.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.mode_laws import Scalar
from companion.theory.predictor_basins import FixedPoints, checked, collapse_threshold, fixed_points

FLOOR = 1e-4  # the authors' least eigenvalue of a predictor: a mode at zero would never move again


def direct_pred(
    F_hat: Float[Tensor, "*batch k k"], epsilon: float, *, power: float = 0.5, offset: float = 0.0
) -> Float[Tensor, "*batch k k"]:
    r"""Set a linear predictor from the second moment of its inputs (DirectPred; at other powers DirectSet).

    $$W_p = U\,\mathrm{diag}\big(\max(\,\max(d_j-c,0)^a+\epsilon,\ 10^{-4})\big)\,U^\top,\qquad
    d_j = s_j/\max_is_i,\qquad \hat F = U\,\mathrm{diag}(s_j)\,U^\top .$$

    The version of the authors' code: $W_p$ does not change with the scale of $\hat F$. The paper prints
    $\sqrt{s_j}+\epsilon\max_is_i$, which agrees where the largest eigenvalue is 1.

    Args:
        F_hat: $\hat F$, shape (..., k, k), symmetric, positive semidefinite, not centred; any float dtype.
        epsilon: boost $\epsilon \ge 0$, relative to the largest predictor value.
        power: $a > 0$.
        offset: $c < 1$, in units of the largest eigenvalue; the paper's table has it in units of $s$.

    Returns:
        $W_p$, symmetric, shape, dtype and device of `F_hat`; the eigenvalues are found in float64. No gradient flows.

    Raises:
        ValueError: if `F_hat` is not a second moment, or a number is out of its range.

    References:
        Tian et al. (2021), equations 18-19; `def-direct-pred`, `eq-direct-pred`.

    Examples:
        >>> direct_pred(torch.diag(torch.tensor([4.0, 1.0, 0.0])), 0.25).diagonal().tolist()
        [1.25, 0.75, 0.25]
    """
    checked("direct_pred", epsilon=epsilon, power=power)
    if not offset < 1:
        raise ValueError(f"direct_pred: offset must be below 1, the largest eigenvalue after scaling, got {offset:g}")
    s, U = torch.linalg.eigh(_second_moment(F_hat, "direct_pred"))
    largest = _largest(s, F_hat.dtype, "direct_pred")
    p = ((s.clamp(min=0) / largest - offset).clamp(min=0) ** power + epsilon).clamp(min=FLOOR)
    return ((U * p[..., None, :]) @ U.mT).to(F_hat.dtype)


def direct_copy(
    F_hat: Float[Tensor, "*batch k k"], epsilon: float, norm: Literal["spectral", "frobenius"] | None = "spectral"
) -> Float[Tensor, "*batch k k"]:
    r"""Set a linear predictor to the second moment of its inputs, $W_p = \hat F/\lVert\hat F\rVert + \epsilon I$.

    With the spectral norm this is `direct_pred` with power 1, without its floor. Only that norm needs eigenvalues.

    Args:
        F_hat: $\hat F$, shape (..., k, k), as in `direct_pred`.
        epsilon: boost $\epsilon \ge 0$.
        norm: what divides $\hat F$: its largest eigenvalue, the root of the sum of squares, or nothing.

    Returns:
        $W_p$, symmetric, shape, dtype and device of `F_hat`. No gradient flows.

    Raises:
        ValueError: if `F_hat` is not a second moment, or a name or number is out of its range.

    References:
        Wang et al. (2021), DirectCopy; `prop-direct-set`.

    Examples:
        >>> direct_copy(torch.diag(torch.tensor([4.0, 3.0]).double()), 0.5, "frobenius").diagonal().tolist()
        [1.3, 1.1]
    """
    checked("direct_copy", epsilon=epsilon)
    if norm not in ("spectral", "frobenius", None):
        raise ValueError(f"direct_copy: norm must be 'spectral', 'frobenius' or None, got {norm!r}")
    F = _second_moment(F_hat, "direct_copy")
    if norm == "spectral":
        F = F / _largest(torch.linalg.eigvalsh(F), F_hat.dtype, "direct_copy")[..., None]
    elif norm == "frobenius":
        F = F / torch.linalg.matrix_norm(F, keepdim=True)
    return (F + epsilon * torch.eye(F.shape[-1], dtype=F.dtype, device=F.device)).to(F_hat.dtype)


def direct_set_points(power: Scalar, eta: Scalar, sigma2: Scalar, scale: Scalar = 1.0) -> FixedPoints:
    r"""Return where a mode starts to survive and where it ends if the predictor is set to $p = \ell s^a$.

    $$s_\pm = (p_\pm/\ell)^{1/a} :$$

    survival asks for $s(0) > s_-$, and the threshold of weight decay is $1/4(1+\sigma^2)$ for every power.

    Args:
        power: $a > 0$; 1/2 is DirectPred, 1 is DirectCopy; all arguments broadcast.
        eta: weight decay $\ge 0$, at most the threshold.
        sigma2: $\sigma^2\ge0$.
        scale: $\ell > 0$; $(1+\sigma^2)^a$ if $\hat F$ holds the second moment of the embeddings of single views.

    Returns:
        $(s_-, s_+)$ as `FixedPoints(saddle, useful)`, broadcast shape, float64.

    Raises:
        ValueError: if an argument is out of its range or the weight decay is above the threshold.

    References:
        The companion's own; `prop-direct-set`.

    Examples:
        >>> [float(x) for x in direct_set_points(0.5, 0.1875, 0.0)]
        [0.0625, 0.5625]
    """
    power, eta, sigma2, scale = checked("direct_set_points", power=power, eta=eta, sigma2=sigma2, scale=scale)
    saddle, useful = fixed_points(1.0, eta, sigma2)
    return FixedPoints((saddle / scale) ** (1 / power), (useful / scale) ** (1 / power))


def boosted_end(epsilon: Scalar, eta: Scalar, sigma2: Scalar) -> Float[Tensor, "..."]:
    r"""Return where a mode ends from a tiny start if the predictor is set to $p = \sqrt s+\epsilon$.

    $$s_\infty = (p_+-\epsilon)^2\ \text{ for } p_-\le\epsilon<p_+,\qquad 0\ \text{ otherwise:}$$

    a boost of at least $p_-$, about $\eta$, abolishes the basin of collapse, and costs size at the end.

    Args:
        epsilon: boost $\epsilon \ge 0$, in units of $p$ (not relative to the largest); all arguments broadcast.
        eta: weight decay $\ge 0$; above the threshold the mode collapses under every boost.
        sigma2: $\sigma^2\ge0$.

    Returns:
        $s_\infty$, broadcast shape, float64.

    Raises:
        ValueError: if an argument is negative.

    References:
        The companion's own; `prop-boost`.

    Examples:
        >>> boosted_end(torch.tensor([0.0, 0.25, 0.5, 1.0]), 0.1875, 0.0).tolist()
        [0.0, 0.25, 0.0625, 0.0]
    """
    epsilon, eta, sigma2 = checked("boosted_end", epsilon=epsilon, eta=eta, sigma2=sigma2)
    threshold = collapse_threshold(1.0, sigma2)
    saddle, useful = fixed_points(1.0, torch.minimum(eta, threshold), sigma2)
    return torch.where((eta <= threshold) & (saddle <= epsilon) & (epsilon < useful), (useful - epsilon).square(), 0.0)


def _second_moment(F_hat: Tensor, name: str) -> Tensor:
    if F_hat.ndim < 2 or F_hat.shape[-1] != F_hat.shape[-2]:
        raise ValueError(f"{name}: F_hat must be square, shape (..., k, k), got {tuple(F_hat.shape)}")
    F = F_hat.detach().double()
    if not F.isfinite().all():
        raise ValueError(f"{name}: F_hat has entries that are not finite: training diverged; lower the learning rate")
    size = F.abs().amax((-2, -1))
    if (size == 0).any():
        raise ValueError(
            f"{name}: F_hat is all zero, and so is every embedding: the online network has collapsed, and there are no"
            " eigenvectors to set the predictor from; check that F_hat was updated, or start again with less decay"
        )
    skew = ((F - F.mT).abs().amax((-2, -1)) / size).max()
    if skew > _rounding(F_hat.dtype, F.shape[-1]):
        raise ValueError(
            f"{name}: F_hat must be symmetric, got |F - F^T| up to {float(skew):.2g} of its largest entry;"
            " average f f^T of the same rows f, or pass (F_hat + F_hat.mT) / 2"
        )
    return (F + F.mT) / 2


def _largest(s: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    largest, least = s[..., -1:], s[..., :1]
    if (least < -_rounding(dtype, s.shape[-1]) * largest.abs()).any():
        raise ValueError(
            f"{name}: F_hat must be positive semidefinite, got an eigenvalue {float(least.min()):g};"
            " a second moment of embeddings has none below zero: do not subtract anything from it"
        )
    return largest


def _rounding(dtype: torch.dtype, k: int) -> float:
    """Return the rounding of an average of products, relative to its largest entry; float32 may have come before."""
    return 10 * k * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
