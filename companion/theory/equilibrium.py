r"""Where alignment and uniformity balance: which graphs can be matched, what starts to grow, and when collapse wins.

The forces vanish when the estimated graph equals the positive-pair graph, $A' = A$. This holds iff the similarities are
$S = \mathrm{PMI} + c\,\mathbf 1\mathbf 1^\top$ for one constant $c$, where $\mathrm{PMI}_{xx'} =
\log\frac{A_{xx'}}{p_xp_{x'}}$. It is sufficient and not necessary: with few features, or with a graph out of reach, the
forces vanish elsewhere.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.feature_norms import row_normalise
from companion.theory.message_checks import balanced, normalized_eigenvalues, positive, repulsion, unit_tolerance
from companion.theory.reachability import Reachable, pmi, reachable, realisable_graph

__all__ = [
    "pmi",
    "realisable_graph",
    "Reachable",
    "reachable",
    "growth_rates",
    "small_growth_rates",
    "collapse_threshold",
    "descend",
]


def growth_rates(eigenvalues: Float[Tensor, " n"], temperature: float, mu: float = 1.0) -> Float[Tensor, " n"]:
    r"""Return the rates at which modes leave collapse on the unit sphere, $\frac2\tau\bigl[\mu-(1-\gamma_i)\bigr]$.

    Features are $f(x) = c + \varepsilon_x$ with small $\varepsilon_x\perp c$, and $\varepsilon$ along $v_i$, $i\ge2$,
    obeys $\dot\varepsilon = \text{rate}\cdot\varepsilon$ under the flow of $F$: alignment contracts at
    $2(1-\gamma_i)/\tau$, uniformity expands every mode at $2\mu/\tau$.

    Args:
        eigenvalues: $\gamma_i$ of $\bar A$, $i \ge 2$, shape (n,); the constant mode is a rotation of all, rate 0.
        temperature: $\tau > 0$.
        mu: weight $\mu\ge0$ of the negatives.

    Returns:
        The rates per unit of time (step size times steps), shape (n,), float64.

    Raises:
        ValueError: if the temperature is not positive, $\mu < 0$, or an eigenvalue lies outside [-1, 1].

    References:
        The companion's own; `thm-collapse-threshold`.

    Examples:
        >>> growth_rates(torch.tensor([0.75, 0.25]), temperature=0.5, mu=0.5).tolist()
        [1.0, -1.0]
    """
    repulsion(mu, "growth_rates")
    positive(temperature, "growth_rates", "temperature")
    return 2 / temperature * (mu - 1 + normalized_eigenvalues(eigenvalues, "growth_rates"))


def small_growth_rates(eigenvalues: Float[Tensor, " n"], temperature: float) -> Float[Tensor, " n"]:
    r"""Return the rates at which small features grow without normalisation, $\frac2\tau\gamma_i$, whatever $\mu$.

    Near $F = 0$ the estimated graph is $pp^\top$, and $\dot F = \frac2\tau(\bar A-\mu\sqrt p\sqrt p^\top)F$: modes
    appear in the order of $\gamma_i$. The constant mode, $i = 1$, is the exception: rate $\frac2\tau(1-\mu)$.

    Args:
        eigenvalues: $\gamma_i$ of $\bar A$, $i \ge 2$, shape (n,).
        temperature: $\tau > 0$.

    Returns:
        The rates per unit of time (step size times steps), shape (n,), float64.

    Raises:
        ValueError: if the temperature is not positive or an eigenvalue lies outside [-1, 1].

    References:
        The companion's own; `prop-small-growth`.

    Examples:
        >>> small_growth_rates(torch.tensor([0.75, 0.25]), temperature=0.5).tolist()
        [3.0, 1.0]
    """
    positive(temperature, "small_growth_rates", "temperature")
    return 2 / temperature * normalized_eigenvalues(eigenvalues, "small_growth_rates")


def collapse_threshold(eigenvalues: Float[Tensor, " n"]) -> float:
    r"""Return the weight of the negatives below which complete collapse on the sphere is stable, $1-\gamma_2$.

    Args:
        eigenvalues: those of $\bar A$, $\gamma_1 = 1$ included, in any order, shape (n,), $n\ge2$.

    Returns:
        The threshold of $\mu$, in [0, 1] for a positive semidefinite $\bar A$; 0 for a disconnected graph.

    Raises:
        ValueError: if there are fewer than two eigenvalues, the largest is not 1, or one lies outside [-1, 1].

    References:
        The companion's own; `thm-collapse-threshold`.

    Examples:
        >>> collapse_threshold(torch.tensor([1.0, 0.75, 0.25]))
        0.25
    """
    if len(eigenvalues) < 2 or float(eigenvalues.max()) < 1 - unit_tolerance(eigenvalues):
        raise ValueError(
            f"collapse_threshold: pass the two or more largest eigenvalues of the normalised graph, the first is 1; "
            f"got {len(eigenvalues)}, the largest {float(eigenvalues.max()) if len(eigenvalues) else float('nan'):g}"
        )
    gamma = normalized_eigenvalues(eigenvalues, "collapse_threshold").sort(descending=True).values
    return float((1 - gamma[1]).clamp(min=0))


def descend(
    F0: Float[Tensor, "N k"],
    normalized: Float[Tensor, "N N"],
    p: Float[Tensor, " N"],
    temperature: float,
    alpha: float,
    steps: int,
    mu: float = 1.0,
    sphere: bool = False,
    every: int | None = None,
) -> Float[Tensor, "*T N k"]:
    r"""Repeat `contrastive_step`; on the sphere drop the radial part of each message and renormalise.

    $$U \leftarrow \mathrm{normalise}\bigl(U + \alpha(I-uu^\top)\,D^{-1/2}\,\text{force}\bigr)\quad\text{row by row.}$$

    Args:
        F0: weighted features at the start, shape (N, k), any float dtype; normalised first when `sphere`.
        normalized: $\bar A$, shape (N, N), symmetric, dense.
        p: probability of each view, shape (N,), positive, of sum 1.
        temperature: $\tau > 0$.
        alpha: step size $\alpha > 0$ on $F$.
        steps: number of steps, $\ge 0$.
        mu: weight $\mu\ge0$ of the negatives.
        sphere: keep $\lVert f(x)\rVert = 1$, rows of $F$ of length $\sqrt{p_x}$.
        every: return the states at steps 0, `every`, 2 `every`, ... too; None for the last state only.

    Returns:
        $F$ at the end, shape (N, k), or the trajectory, shape (1 + steps // every, N, k); float64, detached.

    Raises:
        ValueError: if an argument is out of its range, a row to be normalised is zero, or the descent diverges.

    References:
        The companion's own; `thm-contrastive-step`, `prop-sphere`.

    Examples:
        >>> p, normalized = torch.tensor([0.5, 0.5]), torch.tensor([[0.75, 0.25], [0.25, 0.75]])
        >>> F = descend(torch.tensor([[0.1], [-0.1]]), normalized, p, 1.0, alpha=0.1, steps=1000)
        >>> A = torch.exp(2 * F @ F.T)  # e^S; at the end A' = A, so the ratio of neighbour to self is 1 / 3
        >>> round(float(A[0, 1] / A[0, 0]), 6)
        0.333333
    """
    repulsion(mu, "descend")
    positive(temperature, "descend", "temperature")
    positive(alpha, "descend")
    if steps < 0 or (every is not None and every < 1):
        raise ValueError(f"descend: steps must be >= 0 and every >= 1 or None, got {steps} and {every}")
    F, normalized, p = balanced(F0.detach(), normalized, p, "descend")
    root, log_p, rate = p.sqrt()[:, None], p.log(), 2 * alpha / temperature
    walk = normalized * root.T / root  # D^-1 A
    U = row_normalise(F / root) if sphere else F / root
    states = [U]
    for step in range(1, steps + 1):
        estimate = p[:, None] * torch.softmax(U @ U.T / temperature + log_p, dim=1)
        push = walk @ U - mu / 2 * ((estimate + estimate.T) @ U) / p[:, None]
        if sphere:
            push = push - U * (U * push).sum(1, keepdim=True)
        U = U + rate * push
        if sphere:
            U = U / torch.linalg.vector_norm(U, dim=1, keepdim=True)
        if every is not None and step % every == 0:
            states.append(U)
    if not U.isfinite().all():
        raise ValueError(f"descend: features diverged within {steps} steps; shrink alpha, now {alpha}")
    return U * root if every is None else torch.stack(states) * root
