r"""Closed forms of one mode where no negatives act: predictors that chase a target, and recursions over past stages."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import lambertw, wrightomega
from torch import Tensor

from companion.theory.mode_laws import Scalar


def predictor_curve(gamma: Scalar, s0: Scalar, t: Scalar, power: float = 0.5) -> Float[Tensor, "..."]:
    r"""Solve one mode under the predictor $p = s^{2\nu}$, $\dot s = s\,p\,(\gamma-p)$, $s(0) = s_0$.

    $$p(t) = \frac{\gamma}{1+y(t)},\qquad y+\log y = y_0+\log y_0-2\nu\gamma^2t,\qquad y_0 = \gamma/s_0^{2\nu}-1 ;$$

    $y$ is Wright's omega function of the right side; from above $\gamma$, Lambert's $W$ of $y_0e^{y_0-2\nu\gamma^2t}$.

    Args:
        gamma: eigenvalue of $\bar A$, $\ge 0$; broadcasts.
        s0: start, $\ge 0$; broadcasts.
        t: time $\ge 0$; broadcasts.
        power: $\nu > 0$: 1/2 for DirectPred and for a trained predictor in balance, 1 for DirectCopy.

    Returns:
        $s(t)$, broadcast shape, float64.

    Raises:
        ValueError: if an argument is negative or the power is not positive.

    References:
        The companion's own; `prop-of-predictor-curve`, `eq-of-omega`.

    Examples:
        >>> predictor_curve(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 1.0]), torch.tensor([1e9, 1.5])).tolist()
        [1.0, 0.5]
    """
    values, start, time = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.float64) for x in (gamma, s0, t)))
    if min(float(x.min()) for x in (values, start, time)) < 0 or not power > 0:
        raise ValueError("predictor_curve: gamma, s0 and t must be >= 0 and the power positive; gamma belongs to Abar")
    g, clock = values.numpy(), 2 * power * time.numpy()
    p0 = start.numpy() ** (2 * power)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        y0 = g / p0 - 1
        below = wrightomega(y0 + np.log(np.abs(y0)) - g**2 * clock)
        above = lambertw(np.where(y0 < 0, y0 * np.exp(y0 - g**2 * clock), 0.0)).real
        p = g / (1 + np.where(y0 > 0, below, above))
        p = np.where(g > 0, p, p0 / np.sqrt(1 + 2 * p0**2 * clock))  # at gamma = 0: p' = -2 nu p^3
    return torch.from_numpy(np.asarray(np.where(p0 > 0, p, 0.0))) ** (0.5 / power)


def stage_curve(gamma: Scalar, s0: Scalar, t: Scalar, step: float, stages: int) -> Float[Tensor, "..."]:
    r"""Solve one mode of multi-stage aggregation from a history of equal stages, $s^0=s^{-1}=\dots=s_0$.

    $$s^{n+1} = (1-\alpha)s^n+\frac{\alpha\gamma}r\sum_{i<r}s^{n-i},\qquad s^n = \sum_ic_i\,\zeta_i^{\,n},$$

    over the $r$ roots $\zeta_i$ of the stage polynomial, where they differ; here by powers of its companion matrix.

    Args:
        gamma: eigenvalue of $\bar A$ in [0, 1]; broadcasts.
        s0: start; broadcasts.
        t: time, a multiple of the step; broadcasts.
        step: $\alpha$ in (0, 1], the time of one stage.
        stages: $r\ge1$, the current one included.

    Returns:
        $s$ at the time, broadcast shape, float64.

    Raises:
        ValueError: if the step or the number of stages is out of its range.

    References:
        `prop-multi-stage`; `companion.theory.oversmoothing.multi_stage_rate` is the largest root.

    Examples:
        >>> float(stage_curve(0.5, 1.0, 1.0, 1.0, 1)), float(stage_curve(0.5, 1.0, 2.0, 1.0, 2))
        (0.5, 0.375)
    """
    if not 0 < step <= 1 or stages < 1:
        raise ValueError(f"stage_curve: needs a step in (0, 1] and at least one stage, got {step:g} and {stages}")
    values, start, time = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.float64) for x in (gamma, s0, t)))
    M = torch.zeros(*values.shape, stages, stages, dtype=torch.float64)
    M[..., 0, :] = step * values[..., None] / stages
    M[..., 0, 0] += 1 - step
    M[..., range(1, stages), range(stages - 1)] = 1.0
    count = (time / step).round().long()
    found = torch.ones(*values.shape, stages, 1, dtype=torch.float64)
    power = M
    while bool((count > 0).any()):  # by squaring: no eigenvectors, which double roots would lack
        found = torch.where((count % 2 == 1)[..., None, None], power @ found, found)
        power, count = power @ power, count // 2
    return start * found[..., 0, 0]
