r"""Leading eigenpairs of a normalised adjacency: dense, sparse or matrix-free.

The largest eigenvalues of $\bar A$ sit at the edge of the spectrum, where Lanczos iteration converges
without any factorisation. It stalls when many of them crowd near one (long rings, weakly linked clusters);
there LOBPCG on $L = I - \bar A$ with an algebraic-multigrid preconditioner takes over.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh
from scipy.sparse import csr_array, eye_array
from scipy.sparse.linalg import ArpackError, LinearOperator, aslinearoperator, eigsh, lobpcg
from torch import Tensor

Method = Literal["auto", "dense", "arpack", "lobpcg"]
Operator = csr_array | LinearOperator
SMALL = 500  # vertices up to which a dense solve is quicker than an iteration
MEDIUM = 4000  # vertices up to which a dense solve is the last resort
RESTARTS = 60  # of Lanczos, before the multigrid solver is tried
SWEEPS = 60  # of LOBPCG
ROUGH = 1e-4  # residual of the look for missed eigenvalues
SHIFT = 1e-6  # L + SHIFT is positive definite, as multigrid needs


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
    operator: Operator,
    matrix: Callable[[], csr_array],
    first: Float[Tensor, " N"],
    k: int,
    tolerance: float,
    method: Method = "auto",
) -> Eigenpairs:
    r"""Solve by Lanczos iteration, by LOBPCG where Lanczos stalls, densely where the problem is small.

    The start vector is fixed, so two calls give the same bits.

    Args:
        operator: $\bar A$, sparse or matrix-free, $N \times N$.
        matrix: gives $\bar A$ as a sparse matrix; called only by the solvers that need its entries.
        first: the eigenvector of $\gamma_1 = 1$, $\sqrt{p}$, shape (N,).
        k: number of pairs, $1 \le k \le N$.
        tolerance: largest residual that is accepted.
        method: "auto" tries these in turn, dense first where N is small or k large; the other names force one solver.

    Returns:
        The `Eigenpairs`.

    Raises:
        numpy.linalg.LinAlgError: (a ValueError) if no iteration reaches `tolerance`.
    """
    n = len(first)
    order: tuple[Method, ...] = (method,)
    if method == "auto":
        order = ("dense",) if n <= SMALL or 4 * k >= n else ("arpack", "lobpcg") + ("dense",) * (n <= MEDIUM)
    best = float("inf")
    for name in order:
        if name == "dense":
            return dense_eigenpairs(torch.from_numpy(matrix().toarray()), k)
        if name == "arpack":
            found = _lanczos(operator, k, tolerance)
        else:
            found = _multigrid(matrix(), first.numpy(), k, tolerance)
        if found is not None:
            values, vectors = (torch.from_numpy(np.ascontiguousarray(x)) for x in found)
            pairs = _finish(values, vectors, torch.from_numpy(operator @ vectors.numpy()))
            best = min(best, float(pairs.residuals.max()))
            if best <= tolerance:
                return pairs
    raise np.linalg.LinAlgError(
        f"eigenpairs: best residual {best:.1e} for k={k}, N={n} is above tolerance={tolerance:.1e}; "
        "choose k at a wider gap, raise tolerance, or use method='dense'"
    )


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


def _multigrid(normalized: csr_array, first: np.ndarray, k: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    r"""Run LOBPCG on $L$, preconditioned by smoothed aggregation on $L$ + a small shift."""
    from pyamg import smoothed_aggregation_solver  # 0.3 s to import, seldom needed

    n = len(first)
    laplacian = csr_array(eye_array(n) - normalized)
    guard = max(0, min(max(4, k // 4), n // 5 - k))  # convergence is set by the gap behind the last column
    start = np.random.default_rng(0).standard_normal((n, k + guard))
    start[:, 0] = first
    with _fixed_numpy_seed(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lobpcg's report of residuals; ours decide
        cycle = smoothed_aggregation_solver(laplacian + SHIFT * eye_array(n), B=first[:, None]).aspreconditioner()
        found: Any = lobpcg(laplacian, start, M=cycle, tol=tolerance / 10, maxiter=SWEEPS, largest=False)
    order = np.argsort(found[0])[:k]
    return 1 - found[0][order], found[1][:, order]


@contextmanager
def _fixed_numpy_seed() -> Iterator[None]:
    """Multigrid set-up draws from numpy's global generator: fix it, then put it back."""
    state = np.random.get_state()  # noqa: NPY002 - pyamg knows no other generator
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _finish(values: Tensor, vectors: Tensor, image: Tensor) -> Eigenpairs:
    """Fix the signs and measure the residuals."""
    residuals = torch.linalg.vector_norm(image - vectors * values, dim=0)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return Eigenpairs(values, vectors * largest.sign(), residuals)
