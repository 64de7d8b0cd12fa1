r"""Messages from several depths: multi-stage alignment, and APPNP, which restarts from the first features.

Stages are past features of the same views: $F^{(t-i)}$ is the state $i$ steps ago. A window of them slows collapse
down; an anchor at $F^{(0)}$ prevents it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.message_checks import normalized_eigenvalues, on_graph, positive
from companion.theory.mode_laws import Scalar


def multi_stage_rate(eigenvalue: Scalar, alpha: Scalar, r: int, *, replacement: bool = False) -> Float[Tensor, "..."]:
    r"""Return the factor by which a mode shrinks a step when its target is the mean of $r$ stages.

    The largest modulus among the roots of

    $$\zeta = 1-\alpha+\frac{\alpha\gamma}r\sum_{i=0}^{r-1}\zeta^{-i},\qquad\text{or, by replacement,}\qquad
    1 = \frac\gamma r\sum_{i=1}^r\zeta^{-i},$$

    which is the first at $\alpha = 1$. At $\gamma = 1$ it is 1; near it, $1-\alpha(1-\gamma)/(1+\alpha(r-1)/2)$, by
    replacement $1-2(1-\gamma)/(r+1)$. For $|\gamma| < 1$ and $0 < \alpha\le 1$ it is below 1: more stages delay
    collapse and do not prevent it. The roots are eigenvalues of the companion matrix, so complex ones count too.

    Args:
        eigenvalue: $\gamma$ of $\bar A$, in [-1, 1]; broadcasts.
        alpha: step size $\alpha > 0$ on $F$ under stop-gradient; not in the law by replacement; broadcasts.
        r: number of stages, the current one included, $\ge 1$; $r = 1$ is plain stop-gradient, $1-\alpha(1-\gamma)$.
        replacement: set $F$ to the mean of the messages, without keeping $(1-\alpha)F$.

    Returns:
        The rate, broadcast shape, float64.

    Raises:
        ValueError: if an eigenvalue lies outside [-1, 1], `alpha` is not positive, or `r` is no integer from 1 on.

    References:
        Wang et al. (2023), slides, multi-stage alignment, for the loss; the rate is the companion's own;
        `prop-multi-stage`.

    Examples:
        >>> float(multi_stage_rate(0.5, 0.5, 1)), round(float(multi_stage_rate(0.9, 1.0, 2)), 4)  # (.9 + 8.01^.5) / 4
        (0.75, 0.9325)
    """
    step = positive(alpha, "multi_stage_rate")
    if type(r) is not int or r < 1:  # True is an int too
        raise ValueError(f"multi_stage_rate: r counts stages, an integer from 1 on, got {r!r}")
    gamma = normalized_eigenvalues(eigenvalue, "multi_stage_rate")
    gamma, step = torch.broadcast_tensors(gamma, torch.ones_like(step) if replacement else step)
    companion = torch.diag(torch.ones(r - 1, dtype=torch.float64), -1).repeat(*gamma.shape, 1, 1)
    companion[..., 0, :] = (step * gamma / r)[..., None]
    companion[..., 0, 0] += 1 - step
    return torch.linalg.eigvals(companion).abs().amax(-1)


def multi_stage_step(
    history: Float[Tensor, "r N k"], normalized: Float[Tensor, "N N"], alpha: Scalar
) -> Float[Tensor, "r N k"]:
    r"""Take one gradient step of alignment with the mean of $r$ stages, and shift the window.

    $$F^{(t+1)} = (1-\alpha)F^{(t)} + \frac\alpha r\sum_{i=0}^{r-1}\bar AF^{(t-i)} .$$

    It is descent on $\frac12\mathbb E\lVert f_x-z_{\bar x}\rVert^2$ with the stored mean $z_{\bar x}$ held fixed: in
    expectation the images $\bar x$ are a middle layer between views, and a stage sends $\bar AF^{(t-i)}$.

    Args:
        history: weighted features of the stages, newest first, shape (r, N, k): ``history[i]`` is $F^{(t-i)}$. Start
            with $r$ copies of $F^{(0)}$.
        normalized: $\bar A$, shape (N, N), symmetric.
        alpha: step size $\alpha > 0$; 1 replaces $F$ by the mean of the messages.

    Returns:
        The next window, same shape, float64; ``[0]`` is $F^{(t+1)}$.

    Raises:
        ValueError: if the shapes do not fit, $\bar A$ is not symmetric, or `alpha` is not positive.

    References:
        Wang et al. (2023), slides, multi-stage alignment; the step is the companion's own; `def-multi-stage`.

    Examples:
        >>> window = torch.tensor([1.0, 3.0]).reshape(2, 1, 1)
        >>> multi_stage_step(window, torch.ones(1, 1), 0.5).flatten().tolist()  # 1/2 + (1 + 3) / 4
        [1.5, 1.0]
    """
    if history.ndim != 3 or len(history) < 1:
        raise ValueError(f"multi_stage_step: expected a history (r, N, k), r >= 1, got shape {tuple(history.shape)}")
    alpha = positive(alpha, "multi_stage_step")
    history, normalized = on_graph(history, normalized, "multi_stage_step")
    newest = (1 - alpha) * history[0] + alpha * (normalized @ history.mean(0))
    return torch.cat([newest[None], history[:-1]])


def appnp(
    F0: Float[Tensor, "*b N k"], normalized: Float[Tensor, "N N"], restart: float, steps: int | None = None
) -> Float[Tensor, "*b N k"]:
    r"""Propagate with a restart at the first features, as APPNP does.

    $$F^{(t+1)} = (1-a)\bar AF^{(t)} + aF^{(0)}\ \longrightarrow\ a\bigl(I-(1-a)\bar A\bigr)^{-1}F^{(0)} .$$

    The limit multiplies mode $\gamma$ by $a/(1-(1-a)\gamma) > 0$, so it has the rank of $F^{(0)}$: it never collapses.

    Args:
        F0: weighted features $F^{(0)}$, shape (..., N, k).
        normalized: $\bar A$, shape (N, N), symmetric.
        restart: share $a$ of the first features in each step, in (0, 1].
        steps: number of steps, $\ge 0$; None for the limit, by a linear solve.

    Returns:
        Shape of `F0`, float64.

    Raises:
        ValueError: if the shapes do not fit, $\bar A$ is not symmetric, `restart` is not in (0, 1], or `steps` is
            negative.

    References:
        Gasteiger et al. (2019); beside contrastive learning: the companion's own; `prop-appnp`.

    Examples:
        >>> F0, swap = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> appnp(F0, swap, 0.5, steps=1).flatten().tolist(), appnp(F0, swap, 0.5).flatten().tolist()
        ([0.5, 0.5], [0.6666666666666666, 0.3333333333333333])
    """
    if not 0 < restart <= 1:
        raise ValueError(f"appnp: restart must lie in (0, 1], got {restart}; without restart it is plain propagation")
    if steps is not None and not steps >= 0:
        raise ValueError(f"appnp: steps must be at least 0, or None for the limit, got {steps}")
    F0, normalized = on_graph(F0, normalized, "appnp")
    if steps is None:
        return restart * torch.linalg.solve(torch.eye(len(normalized)).double() - (1 - restart) * normalized, F0)
    F = F0
    for _ in range(steps):
        F = (1 - restart) * (normalized @ F) + restart * F0
    return F
