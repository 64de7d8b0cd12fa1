"""What the contrastive messages ask of their input, beyond `companion.theory.alignment_checks`; results in float64."""

import math
from typing import Any

from torch import Tensor

from companion.theory.alignment_checks import ROUNDING, adjacency, marginal, on_graph


def features(U: Tensor, name: str) -> Tensor:
    """Return features in float64, autograd alive, or say why they are none."""
    if U.ndim != 2 or not len(U):
        raise ValueError(f"{name}: features must be a matrix (N, k), one row a view, got shape {tuple(U.shape)}")
    if not U.isfinite().all():
        raise ValueError(f"{name}: features must be finite; after a descent NaN or infinity means too long a step")
    return U.double()


def dense(M: Any, name: str) -> Tensor:
    """Refuse sparse storage, which a graph of many views may have."""
    if not isinstance(M, Tensor):
        raise ValueError(
            f"{name}: the graph must be a dense tensor, got {type(M).__name__}; pass torch.tensor(M.todense())"
        )
    return M


def pair_law(A: Tensor, n: int, name: str) -> tuple[Tensor, Tensor]:
    """Return a positive-pair graph on n views, of total one, and its degrees in float64."""
    A, p = adjacency(dense(A, name), name)
    if len(A) != n:
        raise ValueError(f"{name}: A has shape {tuple(A.shape)}; need ({n}, {n}), one row and column a row of features")
    if not abs(float(A.sum()) - 1) <= ROUNDING:
        raise ValueError(f"{name}: A holds probabilities of pairs but sums to {float(A.sum()):.9g}; pass A / A.sum()")
    return A, p


def repulsion(mu: float, name: str) -> None:
    """Refuse a negative weight of the negatives; zero leaves alignment alone."""
    if not 0 <= mu < math.inf:
        raise ValueError(f"{name}: mu, the weight of the negatives, must be >= 0 and finite, got {mu}")


def balanced(F: Tensor, normalized: Tensor, p: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return features, graph and law in float64 after a check that $\bar A\sqrt p = \sqrt p$."""
    F, normalized = on_graph(features(F, name), dense(normalized, name), name)
    p = marginal(p, len(F), name)
    if not (gap := float((normalized @ p.sqrt() - p.sqrt()).abs().max())) <= 1e-6:
        hint = "pass D^(-1/2) A D^(-1/2) and p = A.sum(1) of one graph"
        raise ValueError(f"{name}: the graph moves sqrt(p) by {gap:.1e}, so its degrees are not p; {hint}")
    return F, normalized, p
