r"""What one step of SGD does to the minimiser that gradient flow would find: computed without any expansion.

$\varphi(\theta)$ is where gradient flow started at $\theta$ ends. At a minimiser, $\mathbb E[\varphi(\theta-\eta g)]-
\theta$ is the drift of one step, an expectation over finitely many samples. To leading order it is
$-\frac{\eta^2}{4B}\nabla_{\mathcal M}\,\mathrm{tr}\,H$; these are the exact numbers that the formula is held against.
"""

from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import solve_ivp
from torch import Tensor

from companion.theory.flatness.majority_trace import trace
from companion.theory.flatness.soft_majority import Point, SoftMajority, fitting, minimiser

__all__ = ["Noise", "limit_map", "conserved", "step_noise", "expected_drift"]

Noise = Literal["sampled", "soft", "isotropic"]
MOST = 2**17  # end points of gradient flow in one expectation


def limit_map(
    point: Point,
    language: SoftMajority,
    scale: Point | None = None,
    *,
    tolerance: float = 1e-12,
    horizon: float = 1e4,
) -> Point:
    r"""Return $\varphi(\theta)$, the end of $\dot\theta=-P\nabla\mathcal L(\theta)$; without a scale, $P=I$.

    With $b=W^\top a$ and $\mathcal L=\ell(b)$ the flow is $\dot a=-W\nabla\ell(b)$, $\dot W=-a\nabla\ell(b)^\top$. It
    is integrated until $b$ is within $10^{-6}$ of $\beta$. The rest is a projection along $P$ times the normal space,
    which differs from the flow by the square of the distance.

    Args:
        point: where to start; any leading axes and float dtype.
        language: the language.
        scale: a positive diagonal $P$, constant, in the shape of one point; None for gradient flow.
        tolerance: relative tolerance of the integration (DOP853); the absolute one is a tenth of it.
        horizon: time by which the flow must have arrived.

    Returns:
        The end points, float64.

    Raises:
        ValueError: if shapes do not fit.
        RuntimeError: if the flow does not arrive; from $\theta=0$, a saddle, it never leaves.

    References:
        `lem-flat-limit-map`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> start = Point(torch.tensor([1.0]), torch.tensor([[1.0]]))  # a^2 - W^2 = 0 is conserved
        >>> round(float(limit_map(start, soft_majority(torch.tensor([4.0]))).a), 10)
        2.0
    """
    a, W = fitting(point, language, "limit_map")
    state = torch.cat([a[..., None], W], -1)  # (..., h, 1 + d)
    shape = state.shape
    P = torch.ones_like(state[..., :1, :1]) if scale is None else torch.cat([scale.a[..., None], scale.W], -1).to(state)

    def velocity(_: float, y: np.ndarray) -> np.ndarray:
        now = torch.from_numpy(y).reshape(shape)
        slope = _slope(_image(now), language)
        return (
            -(P * torch.cat([now[..., 1:] @ slope[..., None], now[..., :1] * slope[..., None, :]], -1)).numpy().ravel()
        )

    passed, span = 0.0, 16.0
    while float(_gap(state, language)) > 1e-6:
        if not passed < horizon:
            raise RuntimeError(
                f"limit_map: after time {passed:g} W^T a differs from beta by {float(_gap(state, language)):g}; "
                "expected arrival. A start at or near the saddle a = 0, W = 0 needs a larger horizon or another start"
            )
        run: Any = solve_ivp(
            velocity, (0.0, span), state.numpy().ravel(), "DOP853", rtol=tolerance, atol=tolerance / 10
        )
        if not run.success:
            raise RuntimeError(f"limit_map: the integration stopped, {run.message}")
        state, passed, span = torch.from_numpy(run.y[:, -1].copy()).reshape(shape), passed + span, 2 * span
    for _ in range(2):
        state = state - _least_change(state, _image(state) - language.beta, P)
    return Point(state[..., 0], state[..., 1:])


def conserved(point: Point) -> Float[Tensor, "*b h h"]:
    r"""Return $aa^\top-WW^\top$, which gradient flow of any loss of $W^\top a$ keeps.

    Args:
        point: parameters; any leading axes.

    Returns:
        Symmetric matrices, shape (..., h, h).

    References:
        `lem-flat-limit-map`, in the toy.

    Examples:
        >>> conserved(Point(torch.tensor([2.0]), torch.tensor([[1.0, 1.0]]))).tolist()
        [[2.0]]
    """
    a, W = point
    return a[..., :, None] * a[..., None, :] - W @ W.mT


def step_noise(point: Point, language: SoftMajority, noise: Noise = "sampled") -> tuple[Point, Float[Tensor, " n"]]:
    r"""Return every gradient that one sample may give, and its probability.

    * "sampled": the gradient of $-\log q_\theta(x\mid z)$, all $2^d$ contexts and both tokens; covariance $H$.
    * "soft": the gradient of the cross-entropy with the true conditional as target. On $\mathcal M$ it vanishes.
    * "isotropic": $\pm\sqrt{\mathrm{tr}H}\,e_i$ along one of the $P$ coordinates, of mean zero and covariance
      $\frac{\mathrm{tr}H}PI$: the same total variance, another shape.

    Args:
        point: one minimiser, no leading axes.
        language: the language.
        noise: which of the three.

    Returns:
        The gradients, leading axis n, float64; and their probabilities, shape (n,), of sum 1.

    Raises:
        ValueError: if the point is not a minimiser or has leading axes, or the noise has no such name.

    References:
        `thm-flat-drift`, `prop-flat-wrong-noise`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> language = soft_majority(torch.tensor([4.0]))
        >>> g, weights = step_noise(Point(torch.tensor([2.0]), torch.tensor([[2.0]])), language)
        >>> torch.allclose(weights @ g.a**2, 4 * language.M[0, 0])  # H_aa = W M W
        True
    """
    a, W = minimiser(point, language, "step_noise")
    if a.ndim != 1:
        raise ValueError(f"step_noise: expected one point, found leading axes {tuple(a.shape[:-1])}")
    if noise == "isotropic":
        h, d = W.shape
        P = h + h * d
        eye = float(trace(point, language)) ** 0.5 * torch.eye(P, dtype=W.dtype, device=W.device)
        g = torch.cat([eye, -eye])
        return Point(g[:, :h], g[:, h:].unflatten(1, (h, d))), torch.full_like(g[:, 0], 0.5 / P)
    z, p = language.contexts, language.truth
    q = (z @ (W.T @ a)).sigmoid()
    if noise == "sampled":
        z, residual = z.repeat(2, 1), torch.cat([q - 1, q])  # minus log q(1) and minus log q(-1), by the logit
        weights = torch.cat([p, 1 - p]) / len(p)
    elif noise == "soft":
        residual, weights = q - p, torch.full_like(p, 1 / len(p))
    else:
        raise ValueError(f'step_noise: expected "sampled", "soft" or "isotropic", found {noise!r}')
    by_a = residual[:, None] * (z @ W.T)
    return Point(by_a, (residual[:, None] * z)[:, None, :] * a[:, None]), weights


def expected_drift(
    point: Point,
    language: SoftMajority,
    learning_rate: float,
    *,
    noise: Noise = "sampled",
    batch: int = 1,
    scale: Point | None = None,
) -> Point:
    r"""Return $\mathbb E[\varphi(\theta-\eta\bar g)]-\theta$ at a minimiser, with $\bar g$ the mean of $B$ samples.

    The expectation enumerates all samples, and all multisets of $B$ of them. With a diagonal $P$ the step is
    $-\eta P\bar g$ and $\varphi$ the end of the flow $\dot\theta=-P\nabla\mathcal L$.

    Args:
        point: one minimiser, no leading axes.
        language: the language.
        learning_rate: $\eta>0$.
        noise: as in `step_noise`.
        batch: $B\ge1$; $2^{d+1}$ samples to the power $B$ have to be few.
        scale: a positive diagonal $P$, constant, in the shape of the point; None for plain steps.

    Returns:
        The drift in the shape of the parameters, float64.

    Raises:
        ValueError: if the point is not a minimiser, an argument is out of its range, or there are too many batches.

    References:
        `thm-flat-drift`, `cor-flat-batch`, `prop-flat-wrong-noise`; with a scale, `prop-flat-adam`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> point = Point(torch.tensor([2.0]), torch.tensor([[2.0]]))
        >>> float(expected_drift(point, soft_majority(torch.tensor([4.0])), 0.1, noise="soft").a.abs()) < 1e-12
        True
    """
    if batch < 1 or not learning_rate > 0:
        raise ValueError(f"expected_drift: expected batch >= 1 and a positive rate, got {batch} and {learning_rate}")
    a, W = minimiser(point, language, "expected_drift")
    g, weights = step_noise(point, language, noise)
    if len(weights) ** batch > MOST:
        raise ValueError(f"expected_drift: {len(weights)}^{batch} batches are more than {MOST}; use a smaller d or B")
    if batch > 1:
        rows = torch.tensor(list(product(range(len(weights)), repeat=batch)))
        rows, copies = rows.sort(1).values.unique(dim=0, return_counts=True)  # the order in a batch does not matter
        g, weights = Point(g.a[rows].mean(1), g.W[rows].mean(1)), weights[rows].prod(1) * copies
    Pa, PW = (1.0, 1.0) if scale is None else scale
    end = limit_map(Point(a - learning_rate * Pa * g.a, W - learning_rate * PW * g.W), language, scale)
    return Point(torch.tensordot(weights, end.a - a, 1), torch.tensordot(weights, end.W - W, 1))


def _image(state: Tensor) -> Tensor:
    """W^T a of stacked (a, W), shape (..., d)."""
    return (state[..., None, :, 0] @ state[..., 1:]).squeeze(-2)


def _slope(b: Tensor, language: SoftMajority) -> Tensor:
    """Gradient of the loss by b = W^T a, shape (..., d)."""
    z = language.contexts
    return ((b @ z.T).sigmoid() - language.truth) @ z / len(z)


def _gap(state: Tensor, language: SoftMajority) -> Tensor:
    return torch.linalg.vector_norm(_image(state) - language.beta, dim=-1).max()


def _least_change(state: Tensor, residual: Tensor, P: Tensor) -> Tensor:
    """The change of (a, W), along P times the normal space, that changes W^T a by the residual to first order."""
    a, W, P = state[..., :1], state[..., 1:], P.expand_as(state)
    kernel = W.mT @ (P[..., :1] * W) + torch.diag_embed((P[..., 1:] * a.square()).sum(-2))
    price = torch.linalg.solve(kernel, residual[..., None])  # (..., d, 1)
    return P * torch.cat([W @ price, a * price.mT], -1)
