r"""Leading eigenpairs of a normalised adjacency: dense, sparse or matrix-free.

The largest eigenvalues of $\bar A$ sit at the edge of the spectrum, where blocks of vectors converge without any
factorisation. A Chebyshev filter drives them while the gaps are wide. Where many eigenvalues crowd near one (long
rings, nearest-neighbour graphs) an algebraic-multigrid preconditioner for $L = I - \bar A$ takes over.
"""

from collections.abc import Callable
from itertools import count
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackError, LinearOperator, aslinearoperator, eigsh
from torch import Tensor

from companion.theory.block_solver import block_eigenpairs
from companion.theory.multigrid import Multigrid, nearby_order, threaded

Method = Literal["auto", "dense", "arpack", "lobpcg"]
Operator = csr_array | LinearOperator
SMALL = 500  # vertices up to which the solve is dense
MEDIUM = 4000  # vertices up to which a dense solve is the last resort
RESTARTS = 60  # of Lanczos, before it gives up
ROUGH = 1e-4  # residual of the look for missed eigenvalues
WIDE = 200  # pairs from which Lanczos iteration is tried before blocks: theirs are dense problems of four times as many
BELOW_ZERO = -0.1  # under the spectrum of a product of a matrix and its transpose


class Eigenpairs(NamedTuple):
    r"""The $k$ largest eigenvalues $\gamma_1 \ge \dots \ge \gamma_k$ of $\bar A$, with what they leave unsolved.

    Attributes:
        values: eigenvalues, shape (k,), float64, decreasing.
        vectors: orthonormal columns, shape (N, k), float64; the largest entry of each column is positive.
        residuals: $\lVert\bar A v_i - \gamma_i v_i\rVert_2$, shape (k,), float64.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "N k"]
    residuals: Float[Tensor, " k"]


def dense_eigenpairs(normalized: Float[Tensor, "N N"], k: int) -> Eigenpairs:
    r"""Solve by dense reduction to tridiagonal form, $O(N^3)$.

    Args:
        normalized: $\bar A$, shape (N, N), float64, symmetric.
        k: number of pairs, $1 \le k \le N$.

    Returns:
        The `Eigenpairs`, residuals at rounding level.
    """
    n = len(normalized)
    found: Any = eigh(normalized.numpy(), subset_by_index=cast(Any, [n - k, n - 1]))
    values, vectors = (torch.from_numpy(x).flip(-1) for x in found)
    return _finish(values, vectors, normalized @ vectors)


def sparse_eigenpairs(
    factors: tuple[csr_array, ...],
    matrix: Callable[[], csr_array],
    first: Float[Tensor, " N"],
    k: int,
    tolerance: float,
    method: Method = "auto",
) -> Eigenpairs:
    r"""Solve by blocks of vectors (filtered, then with multigrid), by Lanczos iteration, or densely where N is small.

    The start is fixed, so two calls give the same bits on the same number of threads.

    Args:
        factors: $\bar A$ alone, or $B^\top$ and $B$ with $\bar A = B^\top B$.
        matrix: gives $\bar A$ as a sparse matrix; called only by the solvers that need its entries.
        first: the eigenvector of $\gamma_1 = 1$, $\sqrt{p}$, shape (N,).
        k: number of pairs, $1 \le k \le N$.
        tolerance: largest residual that is accepted.
        method: "auto" picks by N, k and the gaps; the other names force one solver ("lobpcg": multigrid at once).

    Returns:
        The `Eigenpairs`.

    Raises:
        numpy.linalg.LinAlgError: (a ValueError) if no iteration reaches `tolerance`.
    """
    n = len(first)
    order: tuple[Method, ...] = (method,)
    if method == "auto":
        blocks: tuple[Method, ...] = ("auto", "arpack") if k <= WIDE else ("arpack", "lobpcg")
        order = ("dense",) if n <= SMALL or 4 * k >= n else blocks + ("dense",) * (n <= MEDIUM)
    best = float("inf")
    for name in order:
        if name == "dense":
            return dense_eigenpairs(torch.from_numpy(matrix().toarray()), k)
        if name == "arpack":
            found = _lanczos(_operator(factors), k, tolerance)
        else:
            found = _blocks(factors, matrix, first, k, tolerance, at_once=name == "lobpcg")
        if found is not None:
            values, vectors = (torch.from_numpy(np.ascontiguousarray(x)) for x in found)
            pairs = _finish(values, vectors, _product(factors, torch.float64)(vectors))
            best = min(best, float(pairs.residuals.max()))
            if best <= tolerance:
                return pairs
    raise np.linalg.LinAlgError(
        f"eigenpairs: best residual {best:.1e} for k={k}, N={n} is above tolerance={tolerance:.1e}; "
        "choose k at a wider gap, raise tolerance, or use method='dense'"
    )


def _operator(factors: tuple[csr_array, ...]) -> Any:
    return factors[0] if len(factors) == 1 else aslinearoperator(factors[0]) @ aslinearoperator(factors[1])


def _blocks(
    factors: tuple[csr_array, ...],
    matrix: Callable[[], csr_array],
    first: Tensor,
    k: int,
    tolerance: float,
    at_once: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Run the block solver on vertices in an order that keeps neighbours near in memory, where there is one."""
    n = len(first)
    order = nearby_order(factors[0]) if len(factors) == 1 else None
    sequence = np.arange(n) if order is None else order

    def ordered(A: csr_array) -> csr_array:
        return A if order is None else csr_array(A[order][:, order])

    if order is not None:
        factors = (ordered(factors[0]),)
    values, found = block_eigenpairs(
        _product(factors, torch.float64),
        _product(factors, torch.float32),
        first[torch.from_numpy(sequence)],
        k,
        tolerance,
        -1.0 if len(factors) == 1 else BELOW_ZERO,
        lambda: Multigrid(factors[0] if len(factors) == 1 else matrix(), first[torch.from_numpy(sequence)]),
        at_once=at_once,
    )
    vectors = np.empty((n, k))
    vectors[sequence] = found.numpy()
    return values.numpy(), vectors


def _product(factors: tuple[csr_array, ...], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Multiply blocks by the product of the factors, with all threads."""
    copies = [threaded(factor, dtype) for factor in reversed(factors)]

    def apply(X: Tensor) -> Tensor:
        for copy in copies:
            X = copy @ X
        return X

    return apply


def _lanczos(operator: Operator, k: int, tolerance: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Run ARPACK from a fixed start; None when it gives up.

    One Lanczos start can miss copies of a multiple eigenvalue, and no residual tells. So what was found is moved to
    -1 and the rest is searched for something larger. A rough look will do: a Ritz value never exceeds the largest
    eigenvalue, so one above the last found proves a miss, and it errs by the square of its residual only.
    """
    try:
        values, vectors = _arpack(operator, k, tolerance / 100, seed=0)
        for seed in count(1):  # a new start each time: the old ones have nothing left in a found eigenspace
            rest = _deflated(operator, values, vectors)
            if _arpack(rest, 1, ROUGH, seed)[0][0] <= values[-1] + tolerance:
                return values, vectors
            value, vector = _arpack(rest, 1, tolerance / 100, seed)
            order = np.argsort(-np.append(values, value), kind="stable")[:k]
            values, vectors = np.append(values, value)[order], np.hstack([vectors, vector])[:, order]
    except ArpackError:  # ArpackNoConvergence among them
        return None


def _arpack(operator: Operator, k: int, tolerance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest k pairs, decreasing."""
    start = np.random.default_rng(seed).standard_normal(cast(Any, operator.shape)[0])
    n = len(start)
    ncv = min(n, max(2 * k + 1, k + 30))
    found: Any = eigsh(operator, k, which="LA", v0=start, ncv=ncv, tol=cast(Any, tolerance), maxiter=RESTARTS)
    return found[0][::-1], found[1][:, ::-1]


def _deflated(operator: Operator, values: np.ndarray, vectors: np.ndarray) -> LinearOperator:
    """Move known eigenvalues to -1, out of the way."""
    known = aslinearoperator(vectors)
    return aslinearoperator(operator) - known @ aslinearoperator((values + 1)[:, None] * vectors.T)


def _finish(values: Tensor, vectors: Tensor, image: Tensor) -> Eigenpairs:
    """Fix the signs and measure the residuals."""
    residuals = torch.linalg.vector_norm(image - vectors * values, dim=0)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return Eigenpairs(values, vectors * largest.sign(), residuals)
