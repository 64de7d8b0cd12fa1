r"""Fixed points of one mode of a siamese network with a predictor, and the border of its basin of collapse.

On the parabola $s = \gamma p^2/\alpha_p$ a mode grows at the rate $g(p) = p(\tau\gamma-(\gamma+\sigma^2)p) - \eta$.
Nothing else than its two roots decides: the smaller one is a saddle, and the curve that flows into it separates the
modes that survive from those that collapse.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import solve_ivp
from torch import Tensor

from companion.theory.mode_laws import Scalar

POSITIVE = {
    "tau": "ratio of target and online network",
    "alpha_p": "ratio of the predictor's learning rate to the encoder's",
    "gamma": "eigenvalue of Gamma",
    "power": "power of the set predictor",
    "scale": "factor of the set predictor",
}
NOT_NEGATIVE = {
    "s": "eigenvalue of C = W Gamma W^T",
    "t": "time",
    "beta": "rate of the target",
    "eta": "weight decay",
    "sigma2": "eigenvalue of Sigma_aug",
    "epsilon": "boost of the predictor",
}


class FixedPoints(NamedTuple):
    """The saddle, on the border of collapse, and the useful, stable fixed point."""

    saddle: Float[Tensor, "..."]
    useful: Float[Tensor, "..."]


def fixed_points(tau: Scalar, eta: Scalar, sigma2: Scalar, gamma: Scalar = 1.0) -> FixedPoints:
    r"""Return the two fixed points that are not zero, $g(p_\pm) = p(\tau\gamma-(\gamma+\sigma^2)p)-\eta = 0$.

    $$p_- = \frac{2\eta}{\tau\gamma+\sqrt D},\qquad p_+ = \frac{\tau\gamma+\sqrt D}{2(\gamma+\sigma^2)},\qquad
    D = \tau^2\gamma^2 - 4\eta(\gamma+\sigma^2) .$$

    Both lie on the parabola $s = \gamma p^2/\alpha_p$, which attracts every mode at rate $2\eta$. At $\eta = 0$ the
    saddle is the origin.

    Args:
        tau: ratio $\tau>0$; all arguments broadcast.
        eta: weight decay $\ge 0$, at most `collapse_threshold`.
        sigma2: eigenvalue $\sigma^2\ge0$ of $\Sigma_{\rm aug}$.
        gamma: eigenvalue of $\Gamma$, positive.

    Returns:
        $(p_-, p_+)$ as `FixedPoints(saddle, useful)`, broadcast shape, float64.

    Raises:
        ValueError: if an argument is out of its range or the weight decay is above the threshold.

    References:
        Tian et al. (2021), section 3.2 and equations 104-106; `prop-fixed-points`, `eq-fixed-points`.

    Examples:
        >>> [float(x) for x in fixed_points(1.0, 0.1875, 0.0)]
        [0.25, 0.75]
    """
    tau, eta, sigma2, gamma = checked("fixed_points", tau=tau, eta=eta, sigma2=sigma2, gamma=gamma)
    root = tau * gamma + _root(tau, eta, sigma2, gamma, "fixed_points")
    return FixedPoints(2 * eta / root, root / (2 * (gamma + sigma2)))  # a difference would lose the digits of p_-


def collapse_threshold(tau: Scalar, sigma2: Scalar, gamma: Scalar = 1.0) -> Float[Tensor, "..."]:
    r"""Return the largest weight decay at which a mode can survive, $\eta^* = \tau^2\gamma^2/4(\gamma+\sigma^2)$.

    Args:
        tau: ratio $\tau>0$; all arguments broadcast.
        sigma2: eigenvalue $\sigma^2\ge0$ of $\Sigma_{\rm aug}$.
        gamma: eigenvalue of $\Gamma$, positive.

    Returns:
        $\eta^*$, broadcast shape, float64; there $p_- = p_+$.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Tian et al. (2021), section 3.2; for $\gamma\ne1$ the companion's own; `eq-threshold`.

    Examples:
        >>> float(collapse_threshold(1.0, 0.25)), float(collapse_threshold(1.0, 1.0, 3.0))
        (0.2, 0.5625)
    """
    tau, sigma2, gamma = checked("collapse_threshold", tau=tau, sigma2=sigma2, gamma=gamma)
    return (tau * gamma).square() / (4 * (gamma + sigma2))


def stability(
    p: Scalar, tau: Scalar, eta: Scalar, sigma2: Scalar, gamma: Scalar = 1.0
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""Return the two eigenvalues of the flow of $(p, s)$ at a fixed point on the parabola, $\tau$ held.

    $$-2\eta\ \text{(towards the parabola)},\qquad 2\tau\gamma p - 3(\gamma+\sigma^2)p^2 - \eta\ \text{(along it)}.$$

    The second is $-\eta$ at the origin and $\eta-(\gamma+\sigma^2)p_\pm^2$ elsewhere: positive at the saddle, negative
    at the useful point.

    Args:
        p: a fixed point, from `fixed_points`, or 0; all arguments broadcast.
        tau, eta, sigma2, gamma: as in `fixed_points`; the weight decay may be above the threshold at $p=0$.

    Returns:
        The eigenvalues towards and along the parabola, broadcast shape, float64, per unit of time.

    Raises:
        ValueError: if an argument is out of its range or `p` is not a fixed point.

    References:
        The companion's own; `prop-saddle`.

    Examples:
        >>> [[float(x) for x in stability(p, 1.0, 0.1875, 0.0)] for p in (0.0, 0.25, 0.75)]
        [[-0.375, -0.1875], [-0.375, 0.125], [-0.375, -0.375]]
    """
    p, tau, eta, sigma2, gamma = checked("stability", p, tau=tau, eta=eta, sigma2=sigma2, gamma=gamma)
    drive, brake = tau * gamma * p, (gamma + sigma2) * p.square()
    moving = (p != 0) & ((drive - brake - eta).abs() > 1e-6 * (drive.abs() + brake + eta))
    if moving.any():
        worst = float(p[moving][0])
        raise ValueError(f"stability: p = {worst:g} is not a fixed point; take 0 or one of fixed_points(tau, eta, ...)")
    return -2 * eta, 2 * drive - 3 * brake - eta


def basin_boundary(
    p0: Scalar, tau: Scalar, eta: Scalar, sigma2: Scalar, alpha_p: Scalar = 1.0, gamma: Scalar = 1.0
) -> Float[Tensor, "..."]:
    r"""Return the critical $s(0)$ for each $p(0)$, $\tau$ held: a mode that starts above it survives.

    For $\eta > 0$ it is the stable manifold of the saddle. With $q = (\gamma+\sigma^2)p/\tau\gamma$,
    $h = \eta(\gamma+\sigma^2)/\tau^2\gamma^2$ and $z = \alpha_p(\gamma+\sigma^2)^2s/\tau^2\gamma^3$ it solves
    $\mathrm d\log z/\mathrm dq = 2(q-q^2-h)/(z(1-q)-hq)$, and leaves the saddle with the eigenvector of $-2\eta$. For
    $\eta = 0$ it is $z = q^2$ for $q<0$ and $z = \max(q^2-1, 0)$ for $q\ge0$. It never reaches zero at $\eta > 0$, is
    lowest at $p_+$ and rises beyond: a predictor that is much too large collapses too. Its limit at $\eta\to0$ is
    $\max(q^2-4, 0)$ for $q\ge0$: what was all but dead may revive once decay has brought $q$ below 1.

    Args:
        p0: $p(0)$, any sign; all arguments broadcast.
        tau, eta, sigma2, gamma: as in `fixed_points`.
        alpha_p: learning rate of the predictor over that of the encoder, positive; the result is in units $1/\alpha_p$.

    Returns:
        The critical $s(0)$, broadcast shape, float64, to a relative 1e-6; 0 where it is below the range of float64.

    Raises:
        ValueError: if an argument is out of its range or the weight decay is above the threshold.

    References:
        The companion's own; `prop-saddle`, `prop-no-decay`.

    Examples:
        >>> basin_boundary(torch.tensor([-0.1, 0.0, 0.05, 0.1]), 1.0, 0.1, 0.04).round(decimals=4).tolist()
        [0.0554, 0.0293, 0.0206, 0.0142]
        >>> basin_boundary(torch.tensor([-0.5, 0.0, 1.0, 1.5]), 1.0, 0.0, 0.0).tolist()
        [0.25, 0.0, 0.0, 1.25]
    """
    p0, tau, eta, sigma2, alpha_p, gamma = checked(
        "basin_boundary", p0, tau=tau, eta=eta, sigma2=sigma2, alpha_p=alpha_p, gamma=gamma
    )
    _root(tau, eta, sigma2, gamma, "basin_boundary")
    goal = tau * gamma / (gamma + sigma2)
    q, h = p0 / goal, (eta / (tau * gamma * goal)).clamp(max=0.25)
    critical = torch.where(q < 0, q.square(), (q.square() - 1).clamp(min=0))
    for value in h[h > 0].unique():
        critical[h == value] = _stable_manifold(q[h == value], float(value))
    return gamma * goal.square() * critical / alpha_p


def checked(name: str, *free: Scalar, **ruled: Scalar) -> tuple[Tensor, ...]:
    """Broadcast arguments in float64; all must be finite, and those with a name in its range."""
    values = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.float64) for x in (*free, *ruled.values())))
    if not all(value.isfinite().all() for value in values):
        raise ValueError(f"{name}: an argument is nan or infinite; drop the modes and times that have no value")
    for key, value in zip(ruled, values[len(free) :], strict=True):
        if not (value > 0 if key in POSITIVE else value >= 0).all():
            bound, what = ("positive", POSITIVE[key]) if key in POSITIVE else (">= 0", NOT_NEGATIVE[key])
            raise ValueError(f"{name}: the {what}, {key}, must be {bound}, got {float(value.min()):g}")
    return values


def _root(tau: Tensor, eta: Tensor, sigma2: Tensor, gamma: Tensor, name: str) -> Tensor:
    D = (tau * gamma).square() - 4 * eta * (gamma + sigma2)
    threshold = (tau * gamma).square() / (4 * (gamma + sigma2))
    excess = eta / threshold
    if not (excess <= 1 + 1e-14).all():
        worst = int(excess.argmax())
        raise ValueError(
            f"{name}: weight decay eta = {float(eta.flatten()[worst]):g} is {float(excess.max()):.4g} times the"
            f" threshold tau^2 gamma^2 / 4 (gamma + sigma2) = {float(threshold.flatten()[worst]):g}, above which every"
            " mode collapses and no other fixed point exists; lower eta (see collapse_threshold)"
        )
    return D.clamp(min=0).sqrt()


def _stable_manifold(q: Tensor, h: float) -> Tensor:
    """Follow the stable manifold from the saddle to each q, in x = q / q_saddle - 1 and y = log(z / q_saddle^2)."""
    r = (1 - 4 * h) ** 0.5
    saddle, useful = 2 * h / (1 + r), (1 + r) / 2

    def slope(x, y):
        return 2 * x * (useful - saddle * (1 + x)) / (np.expm1(np.minimum(y, 700)) * (1 - saddle * (1 + x)) - x)

    x, near = (q / saddle - 1).numpy(), 1e-6
    y = -r / useful * x
    for side in (-1, 1):
        far = np.unique(side * x[side * x > near])
        if len(far):
            start = [-side * near * r / useful]
            path = solve_ivp(
                lambda d, y, side=side: side * slope(side * d, y),
                (near, far[-1]),
                start,
                "LSODA",
                far,
                rtol=1e-10,
                atol=1e-12,
            )
            y[side * x > near] = path.y[0][np.searchsorted(far, side * x[side * x > near])]
    return saddle**2 * torch.from_numpy(y).exp()
