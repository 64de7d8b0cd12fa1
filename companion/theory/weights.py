r"""Checks and small linear algebra shared by dense (torch) and sparse (scipy) weights."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import block_array, coo_array, csr_array, issparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

Matrix = Tensor | csr_array
ROUNDING = 1e-8  # how far given probabilities may be from their sum, and a matrix from its transpose


def one_hot(labels: Int[Tensor, " N"], n: int, unlabelled: bool = False) -> Float[Tensor, "N r"]:
    r"""Write labels as indicator columns, $1[\hat y(x) = c]$.

    Args:
        labels: integers from 0, shape (N,).
        n: number of vertices that the labels must fit.
        unlabelled: accept -1, a row of zeros.

    Returns:
        Shape (N, r), float64, $r$ = largest label + 1.

    Raises:
        ValueError: if the labels are not `n` integers from 0 (from -1 with `unlabelled`).
    """
    labels = torch.as_tensor(labels)
    lowest = -1 if unlabelled else 0
    if labels.shape != (n,) or labels.is_floating_point() or labels.min() < lowest or labels.max() < 0:
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"labels: expected {n} integers from {lowest}, not all unlabelled, got {got}")
    return (labels[:, None] == torch.arange(int(labels.max()) + 1)).double()


def checked_weights(M: Any, name: str, ndim: int = 2) -> Any:
    """Bring a matrix or vector to float64 storage, dense or sparse, and refuse what cannot be weights."""
    if issparse(M):
        M = csr_array(M, dtype=np.float64)
        M.sum_duplicates()
        M.eliminate_zeros()
    else:
        M = torch.as_tensor(M).detach().cpu().double()
    if M.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions, got shape {tuple(M.shape)}")
    data = M if isinstance(M, Tensor) else torch.from_numpy(M.data)
    if data.numel() == 0 or not data.isfinite().all():
        raise ValueError(f"{name}: entries must be finite and not all zero (NaN, infinity or nothing found)")
    if data.min() < 0:
        raise ValueError(f"{name}: weights are probabilities, found the negative entry {data.min():g}")
    return M


def checked_symmetric(A: Any) -> Any:
    """Check an adjacency matrix; return it exactly symmetric and of total one."""
    A = checked_weights(A, "adjacency")
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"adjacency: expected a square matrix, got shape {tuple(A.shape)}")
    if (gap := abs(A - A.T).max()) > ROUNDING * A.max():
        raise ValueError(f"adjacency: not symmetric, entries differ by up to {gap:.1e}; pass (A + A.T) / 2")
    A = (A + A.T) / (2 * A.sum())
    return csr_array(A) if issparse(A) else A


def checked_law(K: Any, prior: Any) -> tuple[Any, Float[Tensor, " Nbar"]]:
    """Check an augmentation law and a prior; return the law with rows summing to one to rounding, and the prior."""
    K = checked_weights(K, "K")
    rows = torch.as_tensor(K.sum(1))
    if (rows - 1).abs().max() > ROUNDING:
        raise ValueError(f"K: row {int((rows - 1).abs().argmax())} does not sum to 1; divide each row by its sum")
    n = K.shape[0]
    prior = torch.full((n,), 1 / n, dtype=torch.float64) if prior is None else checked_weights(prior, "prior", ndim=1)
    if len(prior) != n or abs(prior.sum() - 1) > ROUNDING:
        raise ValueError(f"prior: expected {n} probabilities summing to 1, got {len(prior)} with sum {prior.sum():g}")
    return scaled(1 / rows, K, torch.ones(K.shape[1], dtype=torch.float64)), prior / prior.sum()


def checked_degree(degree: Any, name: str) -> Float[Tensor, " N"]:
    """Refuse isolated vertices: they have no sqrt(p) to divide by."""
    degree = torch.as_tensor(degree)
    if not degree.min() > 0:
        raise ValueError(f"{name}: vertex {int(degree.argmin())} is isolated (degree 0); drop it first")
    return degree


def pair_counts(i: Any, j: Any, n: int) -> csr_array:
    """Count index pairs in both orders, shape (n, n)."""
    i, j = np.asarray(i).ravel(), np.asarray(j).ravel()
    if len(i) != len(j) or len(i) == 0:
        raise ValueError(f"pairs: expected two equally long non-empty index lists, got {len(i)} and {len(j)}")
    low, high = min(i.min(), j.min()), max(i.max(), j.max())
    if low < 0 or high >= n:
        raise ValueError(f"pairs: indices must lie in [0, {n}), got {low}..{high}")
    ends = np.concatenate([i, j]), np.concatenate([j, i])
    return csr_array(coo_array((np.ones(2 * len(i)), ends), shape=(n, n)))


def components(adjacency: Any, factor: csr_array | None) -> int:
    """Count connected components, through the bipartite graph of images and views where a factor is given."""
    if factor is not None:
        B = factor[factor.sum(1) > 0]  # an image of prior zero links nothing
        adjacency = block_array([[None, B], [B.T, None]])
    return int(connected_components(csr_array(adjacency), directed=False)[0])


def scaled(left: Tensor, M: Any, right: Tensor) -> Any:
    """Compute diag(left) M diag(right)."""
    if isinstance(M, Tensor):
        return left[:, None] * M * right
    M = csr_array(M, copy=True)
    M.data = M.data * np.repeat(left.numpy(), np.diff(M.indptr))
    M.data *= right.numpy()[M.indices]
    return M


def times(M: Any, X: Tensor) -> Tensor:
    """Compute M X for a tensor X and M of either storage."""
    return M @ X if isinstance(M, Tensor) else torch.from_numpy(M @ X.numpy())
