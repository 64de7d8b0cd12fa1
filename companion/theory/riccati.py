r"""Gradient flow on the spectral contrastive loss in closed form, for any start and mode by mode."""

import torch
from jaxtyping import Float
from torch import Tensor

Scalar = float | Float[Tensor, "..."]

TOGETHER = 2**20  # entries of F at all times that are treated together, 8 MB


def flow(
    normalized: Float[Tensor, "N N"], F0: Float[Tensor, "N k"], t: Scalar, steps: int = 1
) -> Float[Tensor, "*t N k"]:
    r"""Solve gradient flow on the loss, $\dot F = 4(\bar A - FF^\top)F$, $F(0) = F_0$, from any start.

    $X = FF^\top$ obeys the Riccati equation $\dot X = 4(\bar AX + X\bar A - 2X^2)$, solved by

    $$X(t) = E F_0\,M^{-1} F_0^\top E,\quad E = e^{4t\bar A},\quad
    M = I_k + F_0^\top\Bigl(8\int_0^t e^{8s\bar A}ds\Bigr)F_0 .$$

    Any $F = EF_0R$ with $RR^\top = M^{-1}$ has this $X$; loss, spans and kernels need no more. The right rotation of
    $F$ itself obeys $\dot R = -\tfrac12M^{-1}\dot MR$, which has no closed form unless the $M(t)$ commute. We return
    the rotation that makes $F_0^\top F(t)$ symmetric positive semidefinite: exact when they commute ($k = 1$, or
    $F_0 = V\mathrm{diag}(s)Q$), else right to second order in the step.

    Args:
        normalized: $\bar A$, shape (N, N), float64, symmetric; eigenvalues of any sign.
        F0: start, shape (N, k), float64, of any rank. Components below rounding count as zero.
        t: time, or a tensor of times, finite, $\ge 0$; large values do not overflow. Times given together share the
            eigenvectors of $\bar A$ (`benchmarks/RECORDS.md`, trajectories).
        steps: equal steps that $t$ is cut into. $X$ does not depend on it; the rotation of $F$ is off by
            $O(1/\text{steps}^2)$.

    Returns:
        $F(t)$, shape (N, k), or of the times and (N, k), float64.

    Raises:
        ValueError: if shapes do not fit, $\bar A$ is not symmetric, or $t$ is negative or infinite.

    References:
        The companion's own (a Riccati equation); `thm-flow`. From an aligned start: `mode_curve`.

    Examples:
        >>> F = flow(torch.tensor([[0.5]]), torch.tensor([[0.5]]), 1e6)
        >>> round(float(F**2), 12)  # the eigenvalue
        0.5
    """
    normalized, F0 = normalized.double(), F0.double()
    if F0.ndim != 2 or normalized.shape != (len(F0), len(F0)):
        raise ValueError(f"flow: {tuple(normalized.shape)} and {tuple(F0.shape)} do not fit; need (N, N) and (N, k)")
    if not torch.allclose(normalized, normalized.T, rtol=0, atol=1e-10):
        raise ValueError("flow: normalized is not symmetric; pass D^-1/2 A D^-1/2, not D^-1 A")
    times = torch.as_tensor(t, dtype=torch.float64)
    if not ((times >= 0) & times.isfinite()).all() or steps < 1:
        raise ValueError(f"flow: time must be finite and >= 0 and steps >= 1, got t={t}, steps={steps}")
    gamma, V = torch.linalg.eigh(normalized)
    W0 = V.T @ F0
    noise = 8 * torch.finfo(W0.dtype).eps * torch.linalg.vector_norm(F0, dim=0)
    W0 = W0.where(W0.abs() > noise, 0.0)  # rounding of a start without some mode must not grow into that mode
    path = []
    for some in times.flatten().split(max(1, TOGETHER // max(1, F0.numel()))):
        W = W0.expand(len(some), *W0.shape)
        for _ in range(steps):
            W = _riccati_step(gamma, W, some / steps)
        path.append(torch.where((some == 0)[:, None, None], F0, V @ W))
    return torch.cat(path).reshape(*times.shape, *F0.shape) if path else F0.new_zeros(*times.shape, *F0.shape)


def _riccati_step(gamma: Tensor, W: Tensor, t: Tensor) -> Tensor:
    r"""Take one step in eigencoordinates, $W = V^\top F$, without overflow at any $t$; times on the first axis.

    $X$ is blind to $G = e^{4t\Gamma}W \mapsto GT$, $M \mapsto T^\top MT$. Column operations $T$ bring $G$ to echelon
    form with its pivots, the fastest growing modes, scaled to one, so that no entry is large: $e^{4t\gamma_i}$
    turns into $e^{4t(\gamma_i-\gamma_j)}$, $j$ the pivot.
    """
    echelon, T, pace = _echelon(gamma, W, t)
    t = t[:, None]
    size, sign = echelon.abs().log(), echelon.sign()

    def scaled(speed: Tensor) -> Tensor:  # in logarithms: a tiny entry may meet a huge power
        return sign * (size + 4 * t[..., None] * (speed[:, None] - pace[:, None])).exp()

    # 8 * integral of e^{8 s gamma} = e^{8 t max(gamma, 0)} psi^2 with psi^2 = (1 - e^{-8t|gamma|}) / |gamma|
    psi = torch.where(gamma == 0, 8 * t, -torch.expm1(-8 * t * gamma.abs()) / gamma.abs()).sqrt()
    stacked = torch.cat([T * (-4 * t * pace).exp()[:, None], psi[..., None] * scaled(gamma.clamp(min=0))], dim=1)
    R = torch.linalg.qr(stacked, mode="r").R  # M = R^T R without squaring the condition number
    F = torch.linalg.solve_triangular(R, scaled(gamma), upper=True, left=False)
    P, _, Qt = torch.linalg.svd(F.mT @ W)
    return F @ (P @ Qt)


def _echelon(gamma: Tensor, W: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the echelon form at each time, the column operations, and how fast the pivots grow, zero at least."""
    count, _, k = W.shape
    every = torch.arange(count)
    echelon, T = W.clone(memory_format=torch.contiguous_format), torch.eye(k, dtype=W.dtype).repeat(count, 1, 1)
    pace, growth = torch.zeros(count, k, dtype=W.dtype), 4 * t[:, None] * gamma
    for j in range(k):
        largest, column = echelon[..., j:].abs().max(-1)
        size, row = (largest.log() + growth).max(-1)
        alive = size > -torch.inf  # elsewhere the start has rank j
        if not alive.any():
            break
        column = j + column[every, row]
        for matrix in (echelon, T):
            taken, left = matrix[every, :, column], matrix[..., j].clone()
            matrix[every, :, column], matrix[..., j] = left, taken
        factors = echelon[every, row].where(alive[:, None], 0.0)
        pivot = factors[:, j].where(alive, 1.0)
        factors[:, j] = 0.0
        for matrix in (echelon, T):
            matrix[..., j] /= pivot[:, None]
            matrix -= matrix[..., j, None] * factors[:, None]
        echelon[every[alive], row[alive]] = torch.eye(k, dtype=W.dtype)[j]
        pace[:, j] = gamma[row].clamp(min=0).where(alive, 0.0)
    return echelon, T, pace


def mode_curve(gamma: Scalar, s0: Scalar, t: Scalar) -> Float[Tensor, "..."]:
    r"""Solve the logistic law of one aligned mode, $\dot s = 8s(\gamma - s)$, $s(0) = s_0$.

    $$s(t) = \frac{s_0}{e^{-8\gamma t} + s_0\,(1 - e^{-8\gamma t})/\gamma},\qquad
    s(t) = \frac{s_0}{1 + 8s_0t}\ \text{ at }\gamma = 0 .$$

    Args:
        gamma: eigenvalue of $\bar A$, any sign; broadcasts.
        s0: start $s_0\ge0$ of the squared singular value of $F$; broadcasts.
        t: time $\ge 0$; broadcasts.

    Returns:
        $s(t)$, broadcast shape, float64.

    References:
        The companion's own; `cor-mode-times`. Valid when the columns of $F_0$ are eigenvectors up to a right rotation.

    Examples:
        >>> float(mode_curve(0.5, 0.25, 0.0)), float(mode_curve(0.0, 1.0, 0.125))
        (0.25, 0.5)
    """
    gamma, s0, t = (torch.as_tensor(x, dtype=torch.float64) for x in (gamma, s0, t))
    decay = torch.exp(-8 * gamma.abs() * t)
    grown = torch.where(gamma == 0, 8 * t, -torch.expm1(-8 * gamma.abs() * t) / gamma.abs())
    up, down = s0 / (decay + s0 * grown), s0 * decay / (1 + s0 * grown)
    return torch.where(gamma > 0, torch.where(s0 > 0, up, 0.0), down)


def half_time(gamma: Scalar, s0: Scalar) -> Float[Tensor, "..."]:
    r"""Return when a mode has grown to half its eigenvalue, $t_{1/2} = \frac1{8\gamma}\log\frac{\gamma - s_0}{s_0}$.

    Args:
        gamma: eigenvalue, positive; broadcasts.
        s0: start, $0 < s_0 < \gamma$; broadcasts.

    Returns:
        The time, float64; negative when $s_0 > \gamma/2$.

    Raises:
        ValueError: if $s_0$ is not between 0 and $\gamma$.

    References:
        The companion's own; `cor-mode-times`, `eq-half-time`.

    Examples:
        >>> float(half_time(0.5, 0.25))
        0.0
    """
    gamma, s0 = torch.as_tensor(gamma, dtype=torch.float64), torch.as_tensor(s0, dtype=torch.float64)
    if not ((s0 > 0) & (s0 < gamma)).all():
        raise ValueError("half_time: needs 0 < s0 < gamma; a mode outside grows to no half")
    return torch.log((gamma - s0) / s0) / (8 * gamma)
