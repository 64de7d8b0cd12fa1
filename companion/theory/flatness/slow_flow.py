r"""Where SGD drifts along the minimisers of the soft majority, as a flow; and where a heuristic says that Adam does.

SGD moves by $\frac{d\theta}{du}=-\frac14\nabla_{\mathcal M}\,\mathrm{tr}\,H$ in the slow time $u=\eta^2k/B$,
after $k$ steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import solve_ivp
from torch import Tensor

from companion.theory.flatness.majority_trace import diagonal
from companion.theory.flatness.soft_majority import Point, SoftMajority, minimiser, project

__all__ = [
    "tangent",
    "slow_velocity",
    "log_determinant_velocity",
    "adam_velocity",
    "slow_flow",
    "adam_slow_flow",
    "relaxation_rates",
]


def tangent(at: Point, vector: Point, language: SoftMajority, scale: Point | None = None) -> Point:
    r"""Return the component of a vector along $\mathcal M$, $P_Tv=v-J^\top(JJ^\top)^{-1}Jv$.

    With a positive diagonal $P$ the projection is oblique: $\Pi v=v-PJ^\top(JPJ^\top)^{-1}Jv$ removes what lies in $P$
    times the normal space.

    Args:
        at: the minimiser; any leading axes.
        vector: what to project, in the shape of the parameters.
        language: the language.
        scale: the diagonal of $P$ in the shape of the parameters; None for the identity.

    Returns:
        The tangent vector, float64.

    Raises:
        ValueError: if the point is not a minimiser, or shapes do not fit.

    References:
        `lem-flat-limit-map`; the oblique projection, `prop-flat-adam`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> at, ones = Point(torch.tensor([2.0]), torch.tensor([[2.0]])), Point(torch.ones(1), torch.ones(1, 1))
        >>> [x.tolist() for x in tangent(at, ones, soft_majority(torch.tensor([4.0])))]  # normal to W a = 4
        [[0.0], [[0.0]]]
    """
    a, W = minimiser(at, language, "tangent")
    va, vW = vector.a.to(a), vector.W.to(W)
    one = torch.ones((), dtype=a.dtype, device=a.device)
    Pa, PW = (one.expand_as(a), one.expand_as(W)) if scale is None else (scale.a.to(a), scale.W.to(W))
    pushed = (va[..., None, :] @ W + a[..., None, :] @ vW).squeeze(-2)  # J v
    across = (a.square()[..., None] * PW).sum(-2)  # the part of J P J^T from W, a diagonal
    kernel = W.mT @ (Pa[..., None] * W) + torch.diag_embed(across)
    price = torch.linalg.solve(kernel, pushed[..., None])
    return Point(va - Pa * (W @ price).squeeze(-1), vW - PW * a[..., None] * price.mT)


def slow_velocity(point: Point, language: SoftMajority) -> Point:
    r"""Return $-\frac14\nabla_{\mathcal M}\mathrm{tr}H$ at a minimiser, the drift of SGD per unit of slow time.

    $$\dot a=-\tfrac14(2ma-W\lambda),\quad\dot W=-\tfrac14(2WM-a\lambda^\top),\quad
    \lambda=2\bigl(W^\top W+\lVert a\rVert^2I\bigr)^{-1}(mI+M)\beta .$$

    Args:
        point: a point of $\mathcal M$; any leading axes.
        language: the language.

    Returns:
        The velocity per unit of $u=\eta^2k/B$, float64.

    Raises:
        ValueError: if the point is not a minimiser, or shapes do not fit.

    References:
        Liu et al. (2023), Theorem 4.3, for the flow; its closed form here is the companion's own; `thm-flat-drift`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> point = Point(torch.tensor([1.0]), torch.tensor([[4.0]]))  # one token: M = m, |a| and |W| approach
        >>> velocity = slow_velocity(point, soft_majority(torch.tensor([4.0])))
        >>> bool(velocity.a > 0), bool(velocity.W < 0)
        (True, True)
    """
    a, W = minimiser(point, language, "slow_velocity")
    return tangent(Point(a, W), Point(-language.m / 2 * a, -(W @ language.M) / 2), language)


def log_determinant_velocity(point: Point, language: SoftMajority) -> Point:
    r"""Return $-\frac14\nabla_{\mathcal M}\log\det{}_+H$, the tangential drift under isotropic noise of variance one.

    On $\mathcal M$ the product of the non-zero eigenvalues is $\det M\cdot\det(W^\top W+\lVert a\rVert^2I)$.

    Args:
        point: a point of $\mathcal M$; any leading axes.
        language: the language.

    Returns:
        The velocity per step and unit of $\eta^2\sigma^2$, float64.

    Raises:
        ValueError: if the point is not a minimiser, or shapes do not fit.

    References:
        The companion's own; `prop-flat-wrong-noise`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> point = Point(torch.tensor([2.0]), torch.tensor([[2.0]]))  # d = 1: det is a^2 + W^2, least where a = W
        >>> bool(log_determinant_velocity(point, soft_majority(torch.tensor([4.0]))).a.abs() < 1e-12)
        True
    """
    a, W = minimiser(point, language, "log_determinant_velocity")
    eye = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
    inverse = torch.linalg.inv(W.mT @ W + a.square().sum(-1)[..., None, None] * eye)
    by_a = inverse.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None] * a
    return tangent(Point(a, W), Point(-by_a / 2, -(W @ inverse) / 2), language)


def adam_velocity(point: Point, language: SoftMajority, epsilon: float = 1e-3) -> Point:
    r"""Return $-\frac12\Pi P\,\nabla R_\epsilon$, the heuristic drift of Adam per unit of $\eta^2k$.

    $P=\mathrm{diag}(H_{ii}^{1/2}+\epsilon)^{-1}$, $R_\epsilon$ as in `root_trace`, and $\Pi$ the projection on the
    tangent space along $P$ times the normal space, as in `tangent`. The batch size $B$ does not matter, but for Adam's
    own $\epsilon$, which counts $\sqrt B$ times.

    Args:
        point: a point of $\mathcal M$; any leading axes.
        language: the language.
        epsilon: $\epsilon>0$.

    Returns:
        The velocity, float64.

    Raises:
        ValueError: if the point is not a minimiser, $\epsilon$ not positive, or shapes do not fit.

    References:
        The companion's own heuristic; `prop-flat-adam`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> point = Point(torch.tensor([2.0]), torch.tensor([[2.0]]))  # the root trace is least where a = W
        >>> bool(adam_velocity(point, soft_majority(torch.tensor([4.0]))).a.abs() < 1e-12)
        True
    """
    if not epsilon > 0:
        raise ValueError(f"adam_velocity: epsilon must be positive, got {epsilon}")
    a, W = minimiser(point, language, "adam_velocity")
    at = Point(a, W)
    P = Point(*(1 / (x.sqrt() + epsilon) for x in diagonal(at, language)))
    # gradient of R = sum_i P_i dH_ii / 2 with dH_{a_i} = 2 w_i^T M dw_i and dH_{W_ij} = 2 S_0 a_i da_i
    by_a, by_W = language.S0 * a * P.W.sum(-1), P.a[..., None] * (W @ language.M)
    return tangent(at, Point(-P.a * by_a / 2, -P.W * by_W / 2), language, P)


def slow_flow(
    point: Point, language: SoftMajority, times: Sequence[float] | Float[Tensor, " n"], tolerance: float = 1e-10
) -> Point:
    r"""Integrate `slow_velocity` from a minimiser; the answer is projected to $\mathcal M$.

    Args:
        point: one minimiser at $u=0$, no leading axes.
        language: the language.
        times: increasing, $\ge0$, in units of $u=\eta^2k/B$.
        tolerance: relative tolerance of the solver (DOP853), the absolute one is a hundredth of it.

    Returns:
        The points at those times, leading axis n, float64.

    Raises:
        ValueError: if the point is not a minimiser or has leading axes, or times are not increasing from 0 on.

    References:
        `thm-flat-drift`; where it ends, `thm-flat-no-spurious`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> point = Point(torch.tensor([1.0]), torch.tensor([[4.0]]))
        >>> [round(float(a), 6) for a in slow_flow(point, soft_majority(torch.tensor([4.0])), [0.0, 2000.0]).a]
        [1.0, 2.0]
    """
    return _flow(point, language, times, "slow_flow", slow_velocity, "DOP853", tolerance)


def adam_slow_flow(
    point: Point,
    language: SoftMajority,
    times: Sequence[float] | Float[Tensor, " n"],
    epsilon: float = 1e-3,
    tolerance: float = 1e-6,
) -> Point:
    r"""Integrate `adam_velocity` from a minimiser; stiff where a neuron dies, so by an implicit method (BDF).

    Args:
        point: one minimiser at time 0, no leading axes.
        language: the language.
        times: increasing, $\ge0$, in units of $\eta^2k$.
        epsilon: $\epsilon>0$ of the preconditioner.
        tolerance: relative tolerance of the solver, the absolute one is a hundredth of it.

    Returns:
        The points at those times, leading axis n, float64.

    Raises:
        ValueError: as `slow_flow`, or if $\epsilon$ is not positive.

    References:
        The companion's own heuristic; `prop-flat-adam`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> point = Point(torch.tensor([1.0]), torch.tensor([[4.0]]))
        >>> [round(float(a), 4) for a in adam_slow_flow(point, soft_majority(torch.tensor([4.0])), [0.0, 500.0]).a]
        [1.0, 2.0]
    """

    def velocity(at: Point, spoken: SoftMajority) -> Point:
        return adam_velocity(at, spoken, epsilon)

    return _flow(point, language, times, "adam_slow_flow", velocity, "BDF", tolerance)


def relaxation_rates(language: SoftMajority) -> Float[Tensor, " n"]:
    r"""Return the rates at which the slow flow forgets, per unit of $u$, close to the flattest points.

    With $r=\lVert a\rVert^2$ there: the eigenvalues $\rho$ of $\frac12M\bigl(I-\frac{\beta\beta^\top}{r^2+\lVert
    \beta\rVert^2}\bigr)^{-1}$ for $W_\perp$, each $h-1$ times, and $\frac{2mr^2}{r^2+\lVert\beta\rVert^2}$ for the
    norm of $a$. The excess of the trace decays twice as fast; everywhere at least like $e^{-\lambda_{\min}(M)u}$.

    Args:
        language: the language.

    Returns:
        The $d$ rates of $W_\perp$ in increasing order, then that of the norm, shape (d + 1,), float64.

    References:
        The companion's own; `thm-flat-no-spurious`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> language = soft_majority(torch.tensor([1.0]))  # d = 1: M = m, r = beta
        >>> [round(x / language.m, 4) for x in relaxation_rates(language).tolist()]
        [1.0, 1.0]
    """
    beta, r2 = language.beta, language.strength / language.m
    whole = r2 + float(beta @ beta)
    metric = torch.eye(len(beta), dtype=beta.dtype, device=beta.device) - torch.outer(beta, beta) / whole
    inverse_root = torch.linalg.inv(torch.linalg.cholesky(metric))
    across = torch.linalg.eigvalsh(inverse_root @ language.M @ inverse_root.mT) / 2
    return torch.cat([across, across.new_tensor([2 * language.m * r2 / whole])])


def _flow(
    point: Point,
    language: SoftMajority,
    times: Sequence[float] | Tensor,
    where: str,
    velocity: Callable[[Point, SoftMajority], Point],
    method: Any,
    tolerance: float,
) -> Point:
    a, W = minimiser(point, language, where)
    at = np.asarray(times, dtype=float)
    if a.ndim != 1 or not len(at) or at[0] < 0 or not (np.diff(at) > 0).all():
        raise ValueError(f"{where}: expected one point and increasing times >= 0, got {tuple(a.shape)}, {at.tolist()}")

    def slope(_: float, y: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(y).unflatten(-1, (W.shape[0], -1))
        v = velocity(project(Point(state[..., 0], state[..., 1:]), language), language)
        return torch.cat([v.a[..., None], v.W], -1).flatten(-2).numpy()

    def jacobian(_: float, y: np.ndarray) -> np.ndarray:
        h = 1e-7 * max(1.0, float(np.abs(y).max()))
        moves = h * np.eye(len(y))  # all at once; the integrator would go through them one by one
        return (slope(0.0, y + moves) - slope(0.0, y - moves)).T / (2 * h)

    start = torch.cat([a[:, None], W], 1).numpy().ravel()
    span = (0.0, max(float(at[-1]), 1e-12))
    implicit: dict[str, Any] = {"jac": jacobian} if method == "BDF" else {}
    run: Any = solve_ivp(slope, span, start, method, t_eval=at, rtol=tolerance, atol=tolerance / 100, **implicit)
    if not run.success:
        raise RuntimeError(f"{where}: the integration stopped, {run.message}")
    path = torch.from_numpy(run.y.T.copy()).reshape(len(at), *W.shape[:1], -1)
    return project(Point(path[..., 0], path[..., 1:]), language)
