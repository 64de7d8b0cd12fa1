r"""Gradient flow mode by mode: what one singular value of a linear encoder does under each loss, in closed form.

The laws of self-supervised losses are $\dot s = 4s(\gamma - \beta^2s^2)$: growth at rate $4\gamma$, then saturation at
$\sqrt\gamma/\beta$, or decay where $\gamma<0$; the losses differ in $\beta$. No exponential of a positive number is
taken, so that no time, eigenvalue or start overflows.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Scalar = float | int | Float[Tensor, "..."]


def contrastive_mode(gamma: Scalar, sigma: Scalar, s0: Scalar, t: Scalar, mu: Scalar = 1.0) -> Float[Tensor, "..."]:
    r"""Solve one mode of the spectral contrastive loss, $\dot s = 4s(\gamma - \mu\sigma^2s^2)$, $s(0) = s_0$.

    $$s^2(t) = \frac{\gamma}{\gamma s_0^{-2}e^{-8\gamma t} + \mu\sigma^2(1-e^{-8\gamma t})},\qquad
    s^2(t) = \frac{s_0^2}{1 + 8\mu\sigma^2s_0^2t}\ \text{ at }\gamma = 0 .$$

    Exact for $-2\,\mathrm{tr}\,W\Gamma W^\top + \mu\lVert W\Sigma_xW^\top\rVert_F^2$ when $\Gamma$ and $\Sigma_x$
    commute and $W(0)$ is aligned with their eigenvectors. Toy Barlow Twins has $\sigma = |\gamma|$; spectral VICReg
    has `vicreg_drive` for $\gamma$; InfoNCE on centred data at temperature $\tau$ has $t/2\tau$ for $t$ and
    $\mu = 1/\tau$, up to terms of sixth order in $W$ in the loss.

    Args:
        gamma: eigenvalue of $\Gamma$, any sign; broadcasts.
        sigma: eigenvalue of $\Sigma_x$, $\ge 0$; broadcasts.
        s0: start; broadcasts.
        t: time $\ge 0$, may be infinite; broadcasts.
        mu: weight of the repulsion, $\ge 0$; broadcasts.

    Returns:
        $s(t)$, broadcast shape, float64.

    Raises:
        ValueError: if a time or the weight of the repulsion is negative.

    References:
        The companion's own; `prop-contrastive-modes`, `prop-vicreg-modes`, `prop-infonce-modes`.

    Examples:
        >>> float(contrastive_mode(1.0, 2.0, 1e-9, 1e6)), float(contrastive_mode(0.0, 2.0, 0.5, 0.375))
        (0.5, 0.25)
    """
    gamma, sigma, s0, t, mu = (torch.as_tensor(x, dtype=torch.float64) for x in (gamma, sigma, s0, t, mu))
    if (mu < 0).any():
        raise ValueError(f"contrastive_mode: the weight mu of the repulsion must be >= 0, got {float(mu.min()):g}")
    return grow(gamma, sigma * mu.sqrt(), s0, t)[0]


def vicreg_drive(gamma: Scalar, sigma: Scalar, invariance: Scalar) -> Float[Tensor, "..."]:
    r"""Return the growth rate of a mode of spectral VICReg, $\kappa = \sigma - \ell(\sigma-\gamma)$.

    The loss $2\ell\,\mathrm{tr}\,W(\Sigma_x-\Gamma)W^\top + \lVert W\Sigma_xW^\top - I_k\rVert_F^2$ has modes
    $\dot s = 4s(\kappa-\sigma^2s^2)$, which `contrastive_mode` solves with $\kappa$ for $\gamma$. A mode with
    $\gamma/\sigma < 1-1/\ell$ is never learned; $\ell = 1$ is the spectral contrastive loss.

    Args:
        gamma: eigenvalue of $\Gamma$; broadcasts.
        sigma: eigenvalue of $\Sigma_x$; broadcasts.
        invariance: weight $\ell$ of the invariance term; broadcasts.

    Returns:
        $\kappa$, broadcast shape, float64.

    References:
        The companion's own; `prop-vicreg-modes`.

    Examples:
        >>> float(vicreg_drive(0.5, 1.0, 1.0)), float(vicreg_drive(0.5, 1.0, 2.0))
        (0.5, 0.0)
    """
    gamma, sigma, invariance = (torch.as_tensor(x, dtype=torch.float64) for x in (gamma, sigma, invariance))
    return sigma - invariance * (sigma - gamma)


def supervised_mode(gamma: Scalar, target: Scalar, s0: Scalar, t: Scalar) -> Float[Tensor, "..."]:
    r"""Solve the law of one mode of least squares, $\dot s = \gamma(s^\star-s)$, $s(0)=s_0$: no plateau at any start.

    $$s(t) = s^\star + (s_0-s^\star)\,e^{-\gamma t} .$$

    Args:
        gamma: eigenvalue of the inputs' second moment, $\ge 0$; broadcasts.
        target: $s^\star$; broadcasts.
        s0: start; broadcasts.
        t: time $\ge 0$; broadcasts.

    Returns:
        $s(t)$, broadcast shape, float64.

    References:
        Textbook least squares; `prop-supervised`.

    Examples:
        >>> float(supervised_mode(torch.tensor(2.0, dtype=torch.float64).log(), 2.0, 0.0, 1.0))
        1.0
    """
    gamma, target, s0, t = (torch.as_tensor(x, dtype=torch.float64) for x in (gamma, target, s0, t))
    return target - (target - s0) * torch.exp(-gamma * t)


def plateau_loss(rank: Scalar, k: int, lam: Scalar = 1.0) -> Float[Tensor, "..."]:
    r"""Return the least Barlow Twins loss at a given rank of $C$.

    $$\mathcal L_r = \frac{k\,\lambda_{BT}(k-r)}{r+\lambda_{BT}(k-r)}\quad(\lambda_{BT}\le1),\qquad
    \mathcal L_r = k-r\quad(\lambda_{BT}\ge1)$$

    is the minimum of $\sum_i(1-C_{ii})^2 + \lambda_{BT}\sum_{i\ne j}C_{ij}^2$ over $C\succeq0$ of rank $r$.

    Args:
        rank: learned dimensions, $0 \le r \le k$; broadcasts.
        k: embedding dimension.
        lam: weight $\lambda_{BT} > 0$ of the entries off the diagonal; broadcasts.

    Returns:
        $\mathcal L_r$, broadcast shape, float64.

    Raises:
        ValueError: if the rank is not in $0..k$ or the weight is not positive.

    References:
        The companion's own; `prop-plateaus`, `eq-plateaus`.

    Examples:
        >>> float(plateau_loss(3, 8)), float(plateau_loss(0, 8, 0.125)), float(plateau_loss(4, 8, 0.5))
        (5.0, 8.0, 2.6666666666666665)
    """
    rank, lam = torch.as_tensor(rank, dtype=torch.float64), torch.as_tensor(lam, dtype=torch.float64)
    if not ((rank >= 0) & (rank <= k)).all():
        raise ValueError(
            f"plateau_loss: the rank of C must lie in 0..{k}, the embedding dimension, got {rank.tolist()}"
        )
    if not (lam > 0).all():
        raise ValueError(f"plateau_loss: the weight lam must be positive, got {lam.tolist()}")
    missed = lam.clamp(max=1) * (k - rank)
    return k * missed / (rank + missed)


def preconditioned_modes(gamma: Scalar, c0: Scalar, epsilon: Scalar, t: Scalar) -> Float[Tensor, "..."]:
    r"""Solve one eigenvalue of $C$ when the gradient is multiplied by $(C+\epsilon I)^{-1}$ from the left.

    $$\dot c = \frac{8\gamma c(1-c)}{c+\epsilon},\qquad
    \epsilon\log\frac{c}{c(0)} - (1+\epsilon)\log\frac{1-c}{1-c(0)} = 8\gamma t .$$

    In $y = \log\frac c{1-c}$ the left side is $g(y)-g(y_0)$ with $g(y) = \epsilon y + \log(1+e^y)$, increasing and
    convex: Newton's method from above comes down to the root without overshoot.

    Args:
        gamma: eigenvalue of $\Gamma$, $\ge 0$; broadcasts.
        c0: start $c(0)$ in (0, 1); broadcasts.
        epsilon: $\epsilon > 0$; large values give plain flow, slowed down by $\epsilon$; broadcasts.
        t: time $\ge 0$; broadcasts.

    Returns:
        $c(t)$, broadcast shape, float64.

    Raises:
        ValueError: if $c(0)$ is not in (0, 1) or $\epsilon$ is not positive.

    References:
        The companion's own; `prop-preconditioned`.

    Examples:
        >>> float(preconditioned_modes(1.0, 0.25, 0.1, 0.0)), float(preconditioned_modes(1.0, 1e-9, 0.1, 1e6))
        (0.25, 1.0)
    """
    gamma, c0, epsilon, t = _start_of_preconditioned(gamma, c0, epsilon, t)
    start = torch.logit(c0)
    goal = (epsilon * start + functional.softplus(start) + 8 * gamma * t).clamp(max=1e300)
    y = goal / (1 + epsilon)  # not below the root, since softplus(y) >= max(y, 0)
    for _ in range(2000):  # converges quadratically, after at most log(1 / epsilon) unit steps
        step = (epsilon * y + functional.softplus(y) - goal) / (epsilon + torch.sigmoid(y))
        y = y - step
        if (step.abs() <= 1e-15 * (1 + y.abs())).all():
            break
    return torch.sigmoid(y)


def preconditioned_time(gamma: Scalar, c0: Scalar, epsilon: Scalar, level: Scalar = 0.5) -> Float[Tensor, "..."]:
    r"""Return when a mode under `preconditioned_modes` reaches a level, $8\gamma t = g(y) - g(y_0)$.

    The wait $\frac1{8\gamma}\log\frac1{c(0)}$ of the plain flow is multiplied by $\epsilon$; the factor
    $1/\gamma$, and with it the order of the modes, stays.

    Args:
        gamma: eigenvalue of $\Gamma$, $\ge 0$; broadcasts.
        c0: start $c(0)$ in (0, 1); broadcasts.
        epsilon: $\epsilon > 0$; broadcasts.
        level: $c$ in (0, 1); broadcasts.

    Returns:
        The time, broadcast shape, float64; infinite at $\gamma = 0$, negative for a level below the start.

    Raises:
        ValueError: if $c(0)$ or the level is not in (0, 1), or $\epsilon$ is not positive.

    References:
        The companion's own; `prop-preconditioned`.

    Examples:
        >>> round(float((8 * preconditioned_time(1.0, 0.25, 1.0)).exp()), 6)  # (c / c0) ((1 - c0) / (1 - c))^2
        4.5
    """
    gamma, c0, epsilon, level = _start_of_preconditioned(gamma, c0, epsilon, level)
    if not ((level > 0) & (level < 1)).all():
        raise ValueError("preconditioned_time: the level must lie in (0, 1); no mode reaches one in finite time")
    late = epsilon * (level / c0).log() - (1 + epsilon) * (torch.log1p(-level) - torch.log1p(-c0))
    return late / (8 * gamma)


def grow(gamma: Tensor, beta: Tensor, s0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    r"""Solve $\dot s = 4s(\gamma-\beta^2s^2)$ in float64; return $s(t)$ and the brake $\exp(-4\int_0^t\beta^2s^2)$."""
    if (t < 0).any():
        raise ValueError(f"time must be >= 0, got {float(t.min()):g}; these closed forms run forward")
    rate = torch.where((gamma == 0) | (s0 == 0), 0.0, 4 * gamma.abs() * t)
    psi = torch.where(gamma == 0, 8 * t, -torch.expm1(-2 * rate) / gamma.abs()).sqrt()
    load = torch.where((beta == 0) | (s0 == 0), 0.0, s0 * beta * psi)
    rising, falling = torch.where(gamma > 0, torch.exp(-rate), 1.0), torch.where(gamma > 0, 1.0, torch.exp(-rate))
    size = torch.hypot(rising, load)  # squares of tiny starts would underflow
    return s0 * falling / size, rising / size


def _start_of_preconditioned(gamma: Scalar, c0: Scalar, epsilon: Scalar, t: Scalar) -> tuple[Tensor, ...]:
    gamma, c0, epsilon, t = (torch.as_tensor(x, dtype=torch.float64) for x in (gamma, c0, epsilon, t))
    if not ((c0 > 0) & (c0 < 1)).all():
        raise ValueError("preconditioned flow: the start c0 must lie in (0, 1); zero never moves, one is the end")
    if not (epsilon > 0).all():
        raise ValueError("preconditioned flow: epsilon must be positive; (C + epsilon I) must be invertible")
    return gamma, c0, epsilon, t
