r"""One mode of a siamese network with a predictor: two eigenvalues and the target's ratio, $(p_j, s_j, \tau)$.

Once the eigenvectors of the predictor and of $C = W\Gamma W^\top$ agree, each eigenvalue $p$ of $W_p$ moves with its
eigenvalue $s$ of $C$ and with no other. Where $\Gamma$ and $\Sigma_{\rm aug}$ commute, `gamma` and `sigma2` are their
eigenvalues in the mode, and $\gamma+\sigma^2$ that of $\Sigma_x$; `gamma` is 1 for whitened images.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import quad_vec, solve_ivp
from torch import Tensor

from companion.theory.mode_laws import Scalar
from companion.theory.predictor_basins import (
    FixedPoints,
    basin_boundary,
    checked,
    collapse_threshold,
    fixed_points,
    stability,
)

__all__ = [
    "mode_velocity",
    "mode_flow",
    "FixedPoints",
    "fixed_points",
    "collapse_threshold",
    "stability",
    "basin_boundary",
    "integral_of_motion",
    "target_ratio",
    "alignment_rate",
]

Three = tuple[Float[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]


def mode_velocity(
    p: Scalar,
    s: Scalar,
    tau: Scalar,
    *,
    alpha_p: Scalar = 1.0,
    beta: Scalar = 0.0,
    eta: Scalar = 0.0,
    sigma2: Scalar = 0.0,
    gamma: Scalar = 1.0,
) -> Three:
    r"""Return the velocity of one mode.

    $$\dot p = \frac{\alpha_p}\gamma s\big[\tau\gamma-(\gamma+\sigma^2)p\big] - \eta p,\quad
    \dot s = 2ps\big[\tau\gamma-(\gamma+\sigma^2)p\big] - 2\eta s,\quad
    \dot\tau = \beta(1-\tau) - \frac{\tau\dot s}{2s} .$$

    This is the flow of scalars $W_p = p$, $W = w$, $W_a = \tau w$ with $s = \gamma w^2$; at $\gamma = 1$ it is the law
    of the paper. With $\beta = 0$ the ratio stays: the target is $\tau W$ by construction ($\tau = 1$: SimSiam).

    Args:
        p: eigenvalue of the predictor, any sign; all arguments broadcast.
        s: eigenvalue of $C = W\Gamma W^\top$, $\ge 0$.
        tau: ratio $\tau$ of target and online network.
        alpha_p: learning rate of the predictor over that of the encoder, positive.
        beta: rate at which the target follows, $\ge 0$, per unit of time.
        eta: weight decay $\eta\ge0$, per unit of time.
        sigma2: eigenvalue $\sigma^2\ge0$ of $\Sigma_{\rm aug}$.
        gamma: eigenvalue of $\Gamma$, positive.

    Returns:
        $\dot p$, $\dot s$, $\dot\tau$, broadcast shape, float64.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Tian et al. (2021), equations 11-13, and 104-106 for $\gamma\ne1$; `prop-modes`, `eq-modes`.

    Examples:
        >>> [float(x) for x in mode_velocity(0.5, 2.0, 1.0, alpha_p=3.0, beta=0.5, eta=0.125, sigma2=0.5)]
        [1.4375, 0.0, 0.0]
    """
    p, tau, s, alpha_p, beta, eta, sigma2, gamma = checked(
        "mode_velocity", p, tau, s=s, alpha_p=alpha_p, beta=beta, eta=eta, sigma2=sigma2, gamma=gamma
    )
    pull = tau * gamma - (gamma + sigma2) * p
    growth = p * pull - eta
    follow = torch.where(beta > 0, beta * (1 - tau) - tau * growth, 0.0)
    return alpha_p * s / gamma * pull - eta * p, 2 * s * growth, follow


def mode_flow(
    p: Scalar,
    s: Scalar,
    tau: Scalar,
    t: Float[Tensor, " T"],
    *,
    alpha_p: Scalar = 1.0,
    beta: Scalar = 0.0,
    eta: Scalar = 0.0,
    sigma2: Scalar = 0.0,
    gamma: Scalar = 1.0,
) -> Three:
    r"""Integrate many modes at once from time 0 (`mode_velocity`; Dormand-Prince of order 8, rtol 1e-11).

    The solver follows $\log s/s(0)$, so that $s$ keeps its relative precision however small it is. With $\beta > 0$
    and $p < 0$ the weight $w$ may pass through zero while that of the target does not: there $\tau$ has no value.

    Args:
        p: $p(0)$; all but `t` broadcast.
        s: $s(0) \ge 0$; zero stays zero.
        tau: $\tau(0)$.
        t: times $\ge 0$, in any order, shape (T,).
        alpha_p, beta, eta, sigma2, gamma: as in `mode_velocity`.

    Returns:
        $p$, $s$, $\tau$ at the times, each of shape (T, broadcast shape), float64.

    Raises:
        ValueError: if an argument is out of its range, or the ratio of a mode diverges.

    References:
        Tian et al. (2021), equations 11-13; `prop-modes`, `eq-modes`.

    Examples:
        >>> p, s, _ = mode_flow(0.0, 1e-30, 1.0, torch.tensor([0.0, 3.0]), eta=0.5)  # a mode that dies
        >>> p[0].item(), s[0].item(), round(float((s[1] / s[0]).log()), 6)
        (0.0, 1e-30, -3.0)
    """
    start = checked("mode_flow", p, tau, s=s, alpha_p=alpha_p, beta=beta, eta=eta, sigma2=sigma2, gamma=gamma)
    t = checked("mode_flow", t=t)[0]
    if t.ndim != 1 or not len(t):
        raise ValueError(
            f"mode_flow: t must list times, shape (T,), got shape {tuple(t.shape)}; put one time in a list"
        )
    shape = start[0].shape
    p0, tau0, s0, alpha, rate, decay, noise, signal = (x.flatten().numpy() for x in start)

    def velocity(_, state):
        p, log_s, tau = state.reshape(3, -1)
        pull = tau * signal - (signal + noise) * p
        growth = p * pull - decay
        follow = np.where(rate > 0, rate * (1 - tau) - tau * growth, 0.0)
        return np.concatenate([alpha / signal * s0 * np.exp(log_s) * pull - decay * p, 2 * growth, follow])

    scale = np.abs(p0) + np.sqrt(alpha * s0 / signal)
    atol = np.concatenate([1e-14 * np.minimum(scale, 1) + 1e-300, np.full(2 * len(p0), 1e-13)])
    y0 = np.concatenate([p0, 0 * p0, tau0])
    times, order = np.unique(t.numpy(), return_inverse=True)
    with np.errstate(over="ignore", invalid="ignore"):
        path = solve_ivp(velocity, (0, max(times[-1], 1e-300)), y0, "DOP853", t_eval=times, rtol=1e-11, atol=atol)
    if not path.success or not np.isfinite(path.y).all():
        raise ValueError(
            f"mode_flow: a mode has no ratio tau up to t = {times[-1]:g}: under a target that follows, the encoder's"
            " weight passes through zero before the target's where p < 0, and dies faster than a slow target where"
            " eta > beta; ask for shorter times, or leave out the modes with p(0) < 0"
        )
    p, log_s, tau = torch.from_numpy(path.y.T[order]).reshape(len(t), 3, *shape).unbind(1)
    return p, start[2] * log_s.exp(), tau


def integral_of_motion(
    p: Scalar, s: Scalar, t: Scalar, alpha_p: Scalar = 1.0, eta: Scalar = 0.0, gamma: Scalar = 1.0
) -> Float[Tensor, "..."]:
    r"""Return what a mode conserves under any $\tau(t)$, $\omega = e^{2\eta t}(s/\gamma - p^2/\alpha_p)$.

    Hence $s = \gamma p^2/\alpha_p + \gamma\omega e^{-2\eta t}$: weight decay forgets $\omega$.

    Args:
        p: $p(t)$; all arguments broadcast.
        s: $s(t) \ge 0$.
        t: time $\ge 0$.
        alpha_p, eta, gamma: as in `mode_velocity`.

    Returns:
        $\omega$, broadcast shape, float64.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Tian et al. (2021), equation 14, with the sign of its appendix; `prop-integral`, `eq-integral`.

    Examples:
        >>> float(integral_of_motion(1.0, 2.0, 0.0, alpha_p=4.0))
        1.75
    """
    p, s, t, alpha_p, eta, gamma = checked("integral_of_motion", p, s=s, t=t, alpha_p=alpha_p, eta=eta, gamma=gamma)
    return torch.exp(2 * eta * t) * (s / gamma - p.square() / alpha_p)


def target_ratio(p: Callable[[Tensor], Tensor], t: Scalar, beta: Scalar, tau0: Scalar = 0.0) -> Float[Tensor, "..."]:
    r"""Return the ratio of target and online network on the parabola, from the history of $p$.

    $$\tau(t) = \frac1{p(t)}\Big[\tau(0)p(0)e^{-\beta t} + \beta\int_0^t p(u)\,e^{-\beta(t-u)}\,\mathrm du\Big] .$$

    It solves $\dot\tau = \beta(1-\tau) - \tau\dot p/p$. Off the parabola it holds with $\sqrt s$ for $p$.

    Args:
        p: a function of time, not zero: takes a float64 tensor of times, returns their $p$, same shape.
        t: times $\ge 0$; broadcasts.
        beta: rate at which the target follows, $\ge 0$; broadcasts.
        tau0: start $\tau(0)$; broadcasts.

    Returns:
        $\tau(t)$, broadcast shape, float64, to 1e-10.

    Raises:
        ValueError: if a time or the rate is negative.

    References:
        Tian et al. (2021), equation 15 ($\tau(0) = 0$); `prop-target-ratio`, `eq-target-ratio`.

    Examples:
        >>> tau = target_ratio(torch.ones_like, torch.tensor([0.0, 2.0]).double().log1p(), 1.0)  # a mode at rest
        >>> tau.round(decimals=9).tolist()
        [0.0, 0.666666667]
    """
    tau0, t, beta = checked("target_ratio", tau0, t=t, beta=beta)
    past, _ = quad_vec(
        lambda x: (beta * t * torch.exp(-beta * t * x) * p(t * (1 - x))).numpy(),
        *(0, 1),
        epsabs=1e-13,
        epsrel=1e-12,
        norm="max",
    )
    return (tau0 * p(torch.zeros_like(t)) * torch.exp(-beta * t) + torch.from_numpy(np.asarray(past))) / p(t)


def alignment_rate(
    p: Scalar, s: Scalar, tau: Scalar, *, alpha_p: Scalar = 1.0, eta: Scalar = 0.0, sigma2: Scalar = 0.0
) -> Float[Tensor, "..."]:
    r"""Return an eigenvalue of $\Xi$: the commutator of $C$ and $W_p$ decays at a rate of at least $2\min_j\xi_j$.

    $$\xi_j = (1+\sigma^2)\Big(\frac{\alpha_p}2s_j + p_j^2\Big) - \tau p_j + \tfrac32\eta .$$

    On the parabola it is positive for every $p$ iff $\eta > \tau^2/9(1+\sigma^2)$. Isotropic data ($\gamma = 1$) only.

    Args:
        p, s, tau, alpha_p, eta, sigma2: as in `mode_velocity`; they broadcast.

    Returns:
        $\xi_j$, broadcast shape, float64, per unit of time.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Tian et al. (2021), theorem 3 and equation 17; `thm-alignment`, `prop-window`.

    Examples:
        >>> float(alignment_rate(0.5, 0.25, 1.0)), float(alignment_rate(0.5, 0.25, 1.0, eta=0.25))
        (-0.125, 0.25)
    """
    p, tau, s, alpha_p, eta, sigma2 = checked("alignment_rate", p, tau, s=s, alpha_p=alpha_p, eta=eta, sigma2=sigma2)
    return (1 + sigma2) * (alpha_p * s / 2 + p.square()) - tau * p + 1.5 * eta
