"""What message-passing updates and losses ask of their input: features, a positive-pair graph, its law; in float64."""

import math
from typing import Any

import torch
from torch import Tensor

ROUNDING = 1e-8  # how far a matrix may be from its transpose, probabilities from their sum, an eigenvalue above 1


def on_graph(F: Tensor, matrix: Tensor, name: str, what: str = "normalized") -> tuple[Tensor, Tensor]:
    """Return features (..., N, k) and a symmetric matrix (N, N) in float64, or say why they do not fit."""
    n = F.shape[-2] if F.ndim >= 2 else None
    if n is None or matrix.shape != (n, n):
        got = f"{tuple(F.shape)} and {tuple(matrix.shape)}"
        raise ValueError(f"{name}: features and {what} have shapes {got}; need (N, k) and (N, N)")
    rounding, matrix = _rounding(matrix), matrix.double()
    gap, scale = (matrix - matrix.T).abs().max(), matrix.abs().max()
    if not gap <= rounding * scale:  # also where it is not a number
        hint = "take D^-1/2 A D^-1/2, not the random walk D^-1 A" if what == "normalized" else "pass (A + A.T) / 2"
        raise ValueError(f"{name}: {what} is not symmetric, entries differ by up to {float(gap):.1e}; {hint}")
    return F.double(), matrix


def adjacency(A: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return a symmetric non-negative adjacency matrix and its degrees, all positive, in float64."""
    if A.ndim != 2:
        raise ValueError(f"{name}: expected an adjacency matrix (N, N), got shape {tuple(A.shape)}")
    A = on_graph(A, A, name, "adjacency")[1]
    if not A.min() >= 0:
        raise ValueError(f"{name}: weights are probabilities, found the negative entry {float(A.min()):g}")
    p = A.sum(1)
    if not p.min() > 0:
        raise ValueError(f"{name}: vertex {int(p.argmin())} is isolated (degree 0); drop it first")
    return A, p


def marginal(p: Tensor, n: int, name: str) -> Tensor:
    """Return the probabilities of the n views in float64."""
    rounding, p = _rounding(p), p.double()
    if p.shape != (n,):
        raise ValueError(f"{name}: p has shape {tuple(p.shape)}; need one probability for each of the {n} rows")
    if not (p.min() > 0 and (p.sum() - 1).abs() <= rounding):
        got = f"smallest {float(p.min()):g}, sum {float(p.sum()):g}"
        raise ValueError(f"{name}: p must be positive and sum to 1, got {got}; pass the degrees of the graph")
    return p


def positive(value: Any, name: str, what: str = "alpha") -> Tensor:
    """Return a number or numbers in float64, all positive and finite."""
    value = torch.as_tensor(value, dtype=torch.float64)
    if not ((value > 0) & value.isfinite()).all():
        raise ValueError(f"{name}: {what} must be positive and finite, got {value.tolist()}")
    return value


def normalized_eigenvalues(values: Any, name: str) -> Tensor:
    """Return eigenvalues of the normalised adjacency matrix in float64, all in [-1, 1]."""
    values = values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float64)
    if values.numel() == 0:
        raise ValueError(f"{name}: got no eigenvalues; pass those of the normalised adjacency matrix D^-1/2 A D^-1/2")
    rounding, values = _rounding(values), values.double()
    if not (values.abs() <= 1 + rounding).all():
        got = f"got {float(values.min()):g} to {float(values.max()):g}; those of the Laplacian are 1 - gamma"
        raise ValueError(f"{name}: eigenvalues of the normalised adjacency matrix lie in [-1, 1], {got}")
    return values


def unit_tolerance(eigenvalues: Tensor) -> float:
    """Say how close to 1 an eigenvalue is a component's: above the tolerance of the solvers in that precision."""
    return 1e-9 if eigenvalues.dtype == torch.float64 else 1e-5


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


def _rounding(given: Tensor) -> float:
    """Single precision rounds a sum of many probabilities by more than `ROUNDING`."""
    return ROUNDING if given.dtype == torch.float64 else 1e-5
