r"""Gradient flow and gradient descent of a linear Siamese network with a predictor (BYOL, SimSiam).

Online network $f(x) = Wx$, predictor $W_p$ and target $W_ax$ under $\frac12\mathbb E\lVert W_pWx-W_ax^+\rVert^2$, with
no gradient through the target. The data enter by two matrices only: the cross-correlation of the two views
$\Gamma = \mathbb E\,xx^{+\top}$, here ``X``, and the mean covariance of the views of one image $\Sigma_{\rm aug}$, here
``X_aug``; $\Sigma_x = \Gamma+\Sigma_{\rm aug} = \mathbb E\,xx^\top$. Time is the learning rate times steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import solve_ivp
from torch import Tensor

from companion.theory.view_moments import Number, moments

Times = Tensor | Sequence[float] | Sequence[int] | np.ndarray


class State(NamedTuple):
    r"""The three networks at one time, or at many on leading axes; also their velocity.

    Attributes:
        W: online network $W$, shape (..., k, m).
        Wp: predictor $W_p$, shape (..., k, k).
        Wa: target $W_a$, shape (..., k, m); None for a multiple of the online network, $W_a = \tau W$ (SimSiam:
            $\tau = 1$).
    """

    W: Tensor
    Wp: Tensor
    Wa: Tensor | None = None


class Law(TypedDict, total=False):
    """The keywords of `velocity`, for `flow` and `descend`, where ``tau`` may be a function of time."""

    alpha_p: Number
    beta: Number
    eta: Number
    eta_p: Number | None
    tau: Number | Callable[[float], float]
    stop_gradient: bool
    symmetric: bool
    fixed_predictor: bool


def velocity(
    state: State,
    X: Float[Tensor, "*b m m"],
    X_aug: Float[Tensor, "*b m m"],
    *,
    alpha_p: Number = 1.0,
    beta: Number = 0.0,
    eta: Number = 0.0,
    eta_p: Number | None = None,
    tau: Number = 1.0,
    stop_gradient: bool = True,
    symmetric: bool = False,
    fixed_predictor: bool = False,
) -> State:
    r"""Return the time derivatives of the three networks under gradient flow with weight decay.

    $$\dot W_p = \alpha_pGW^\top - \eta_pW_p,\qquad \dot W = W_p^\top G - \eta W,\qquad \dot W_a = \beta(W-W_a),$$

    with the drive $G = W_a\Gamma - W_pW\Sigma_x$. Without stop-gradient the target is the online network itself,
    $W_a = W$, and $\dot W$ gains $W_pW\Gamma - W\Sigma_x$.

    Args:
        state: where; any float dtype, computed in float64, without gradient; leading axes are free.
        X: $\Gamma$, symmetric, positive semidefinite, shape (m, m), or with the state's leading axes.
        X_aug: $\Sigma_{\rm aug}$, likewise.
        alpha_p: $\alpha_p$, learning rate of the predictor over that of the online network.
        beta: $\beta$, rate at which the target follows, per unit of time; needs ``Wa``.
        eta: $\eta$, weight decay of the online network per unit of time, and of the predictor unless `eta_p` is given.
        eta_p: $\eta_p$, weight decay of the predictor per unit of time; not multiplied by $\alpha_p$.
        tau: $\tau$, where ``Wa`` is None.
        stop_gradient: False sends the gradient through the target too; needs ``Wa`` None and $\tau = 1$.
        symmetric: take the symmetric part of $\dot W_p$; needs a symmetric $W_p$.
        fixed_predictor: leave the predictor as it is, without decay.

    Returns:
        $(\dot W, \dot W_p, \dot W_a)$ as a `State` of the same shapes, float64.

    Raises:
        ValueError: if shapes do not fit, a matrix is not what it must be, or keywords contradict each other.

    References:
        Tian et al. (2021), Lemma 1 and Theorem 2; `lem-siamese-flow`, `eq-siamese-flow`, `thm-stop-gradient`.

    Examples:
        >>> one, half = torch.ones(1, 1), torch.full((1, 1), 0.5)
        >>> d = velocity(State(one, half), one, one, eta=0.25)  # G = 1 - 1/2 * 2 = 0
        >>> float(d.W), float(d.Wp), d.Wa
        (-0.25, -0.125, None)
        >>> float(velocity(State(one, half), one, one, stop_gradient=False).W)  # 0 + 1/2 - 2
        -1.5
    """
    if callable(tau):
        raise ValueError(
            "velocity: tau is a function; pass its value at this time (flow and descend take the function)"
        )
    law = _Law(alpha_p, beta, eta, eta_p, tau, stop_gradient, symmetric, fixed_predictor)
    parts, Gamma, Sigma = _start(state, X, X_aug, law, "velocity")
    return State(*law.velocity(0.0, parts, Gamma, Sigma))


def flow(
    state: State,
    X: Float[Tensor, "*b m m"],
    X_aug: Float[Tensor, "*b m m"],
    t: Times,
    *,
    rtol: float = 1e-10,
    atol: float = 1e-14,
    **law: Unpack[Law],
) -> State:
    r"""Follow gradient flow from a state at time 0, by an adaptive Runge-Kutta method of order 8.

    Args:
        state: start; systems on leading axes are solved together, with common steps.
        X: $\Gamma$, as in `velocity`.
        X_aug: $\Sigma_{\rm aug}$, as in `velocity`.
        t: times $\ge 0$, increasing, shape (T,); the first need not be 0.
        rtol: error of a step, relative to each entry.
        atol: error of a step in entries near 0; lower it to follow a collapse below $10^{-12}$.
        law: the keywords of `velocity`; ``tau`` may be a function of time.

    Returns:
        The `State` at these times, on a new leading axis (T, ...), float64.

    Raises:
        ValueError: as `velocity`; if the times do not increase from 0.
        RuntimeError: if the solver does not reach the last time.

    References:
        Tian et al. (2021), Lemma 1; `lem-siamese-flow`, `eq-siamese-flow`.

    Examples:
        >>> one = torch.ones(1, 1)
        >>> path = flow(State(one, one), one, one, [0.0, 1.0], fixed_predictor=True)  # dW/dt = -W
        >>> path.W.log().round(decimals=8).flatten().tolist()
        [0.0, -1.0]
    """
    times = torch.as_tensor(t, dtype=torch.float64).numpy()
    forward = times.ndim == 1 and times.size and times[0] >= 0 and times[-1] < np.inf and (np.diff(times) > 0).all()
    if not forward:
        raise ValueError(f"flow: expected times (T,) that increase from 0, the time of the start, on; got {t}")
    how = _Law(**law)
    parts, X, Sigma = _start(state, X, X_aug, how, "flow")
    shapes, cuts = [part.shape for part in parts], np.cumsum([part.numel() for part in parts])[:-1]
    matrices = X.numpy(), Sigma.numpy()

    def unpack(y: np.ndarray, *axes: int) -> list[np.ndarray]:
        return [part.reshape(*axes, *shape) for part, shape in zip(np.split(y, cuts, -1), shapes, strict=True)]

    def slope(time: float, y: np.ndarray) -> np.ndarray:
        return np.concatenate([d.ravel() for d in how.velocity(time, unpack(y), *matrices)])

    y = torch.cat([part.flatten() for part in parts]).numpy()
    if times[-1] > 0:
        solved: Any = solve_ivp(slope, (0.0, times[-1]), y, "DOP853", t_eval=times, rtol=rtol, atol=atol)
        if not solved.success:
            raise RuntimeError(f"flow: no solution up to t = {times[-1]:g}; ask for less time ({solved.message})")
        y = solved.y.T
    return State(*(torch.from_numpy(part.copy()) for part in unpack(y, len(times))))


def descend(
    state: State,
    X: Float[Tensor, "*b m m"],
    X_aug: Float[Tensor, "*b m m"],
    lr: float,
    steps: int,
    *,
    every: int = 1,
    **law: Unpack[Law],
) -> State:
    r"""Run plain gradient descent: the flow in Euler steps.

    Learning rate `lr` for the online network and $\alpha_p$ times that for the predictor; both networks shrink by
    $1-\eta\,$`lr` a step; the target's momentum is $1-\beta\,$`lr`.

    Args:
        state: start.
        X: $\Gamma$, as in `velocity`.
        X_aug: $\Sigma_{\rm aug}$, as in `velocity`.
        lr: learning rate of the online network, the time that a step takes.
        steps: number of steps.
        every: steps from one kept state to the next.
        law: the keywords of `velocity`; ``tau`` may be a function of time, that is of `lr` times steps.

    Returns:
        The `State` at steps 0, `every`, 2 `every`, ... on a new leading axis (steps // every + 1, ...), float64.

    Raises:
        ValueError: as `velocity`; if `lr`, `steps` or `every` is not positive, or the weights overflow.

    References:
        Tian et al. (2021), section 3; `lem-siamese-flow`.

    Examples:
        >>> one = torch.ones(1, 1)
        >>> descend(State(one, one), one, one, 0.5, 4, every=2, fixed_predictor=True).W.flatten().tolist()
        [1.0, 0.25, 0.0625]
    """
    if not (lr > 0 and steps >= 1 and every >= 1):
        raise ValueError(f"descend: lr, steps and every must be positive, got {lr}, {steps} and {every}")
    how = _Law(**law)
    parts, X, Sigma = _start(state, X, X_aug, how, "descend")
    kept = [parts]
    for step in range(1, steps + 1):
        slopes = how.velocity(lr * (step - 1), parts, X, Sigma)
        parts = [part + lr * slope for part, slope in zip(parts, slopes, strict=True)]
        if step % every == 0:
            kept.append(parts)
    if not all(part.isfinite().all() for part in parts):
        raise ValueError(f"descend: the weights overflow within {steps} steps at lr = {lr:g}; take a smaller one")
    return State(*(torch.stack(part) for part in zip(*kept, strict=True)))


@dataclass(frozen=True)
class _Law:
    """The keywords of `velocity`."""

    alpha_p: Number = 1.0
    beta: Number = 0.0
    eta: Number = 0.0
    eta_p: Number | None = None
    tau: Number | Callable[[float], float] = 1.0
    stop_gradient: bool = True
    symmetric: bool = False
    fixed_predictor: bool = False

    def velocity(self, t: float, parts: Sequence[Any], Gamma: Any, Sigma: Any) -> list[Any]:
        """Evaluate the equations on arrays of torch or of NumPy."""
        W, Wp, *own = parts
        tau = float(self.tau(t)) if callable(self.tau) else self.tau
        drive = (own[0] if own else tau * W) @ Gamma - Wp @ W @ Sigma
        dW = Wp.mT @ drive - self.eta * W
        if not self.stop_gradient:
            dW = dW + Wp @ W @ Gamma - W @ Sigma
        dWp = self.alpha_p * drive @ W.mT - (self.eta if self.eta_p is None else self.eta_p) * Wp
        if self.symmetric:
            dWp = (dWp + dWp.mT) / 2
        if self.fixed_predictor:
            dWp = 0 * Wp
        return [dW, dWp, *(self.beta * (W - Wa) for Wa in own)]

    def check(self, parts: Sequence[Tensor], name: str) -> None:
        """Raise where keywords are out of range or do not fit the state."""
        has_target, rates = len(parts) == 3, (self.beta, self.eta, self.eta if self.eta_p is None else self.eta_p)
        if not (self.alpha_p > 0 and all(rate >= 0 for rate in rates)):
            got = f"alpha_p={self.alpha_p}, beta={self.beta}, eta={self.eta}, eta_p={self.eta_p}"
            raise ValueError(f"{name}: alpha_p must be positive, beta, eta and eta_p not negative; got {got}")
        if not callable(self.tau) and not self.tau > 0:
            raise ValueError(f"{name}: tau must be positive, got {self.tau}; for a frozen target give Wa")
        if has_target and self.tau != 1:
            raise ValueError(f"{name}: the state has its own target Wa, so tau has no meaning; drop one of them")
        if self.beta > 0 and not has_target:
            raise ValueError(f"{name}: beta={self.beta} needs a target that can follow: give Wa, e.g. Wa=W.clone()")
        if not self.stop_gradient and (has_target or self.tau != 1):
            raise ValueError(f"{name}: without stop-gradient the target is the online network; leave Wa and tau out")
        Wp = parts[1]
        if self.symmetric and not (Wp - Wp.mT).abs().max() <= 1e-6 * Wp.abs().max():
            raise ValueError(f"{name}: symmetric=True needs a symmetric predictor; take Wp = (Wp + Wp.mT) / 2")


def _start(state: State, X: Tensor, X_aug: Tensor, law: _Law, name: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """Check everything; return the networks, Gamma and Sigma_x in float64."""
    parts = [part.detach().double() for part in state if part is not None]
    W, Wp, *own = parts
    fit = W.ndim >= 2 and Wp.shape == (*W.shape[:-1], W.shape[-2]) and all(Wa.shape == W.shape for Wa in own)
    if not fit:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(f"{name}: W, Wp, Wa have shapes {shapes}; need (..., k, m), (..., k, k), (..., k, m)")
    if not all(part.isfinite().all() for part in parts):
        raise ValueError(f"{name}: the state has entries that are infinite or not numbers")
    law.check(parts, name)
    Gamma, Sigma = moments(X, X_aug, name)
    if X.shape[-1] != W.shape[-1] or X.shape[:-2] not in ((), W.shape[:-2]):
        raise ValueError(f"{name}: W {tuple(W.shape)} and X {tuple(X.shape)} do not fit; need (..., k, m) and (m, m)")
    return parts, Gamma, Sigma
