r"""A multigrid cycle for $L = I - \bar A$ that works on blocks of vectors, and an order of vertices near to neighbours.

The hierarchy is pyamg's smoothed aggregation. Its cycle is for one vector; this one takes a block at a time, in
float32, which is all that a preconditioner needs.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array, eye_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

SHIFT = 1e-6  # L + SHIFT is positive definite, as multigrid needs
COARSEST = 400  # unknowns that are solved densely
SMOOTHING = 2  # degree of the smoother before and after
BAND = 8.0  # the smoother damps the upper (1 - 1/BAND) of a level's spectrum
POWER_STEPS = 15


class Level(NamedTuple):
    """One level: its matrix, 1/diagonal, largest eigenvalue of the scaled matrix, and the way to the next."""

    matrix: Tensor
    inverse_diagonal: Tensor
    top: float
    prolong: Tensor
    restrict: Tensor


class Multigrid:
    r"""Approximate $(L + \text{shift})^{-1}$ on blocks of vectors by one symmetric V-cycle.

    Examples:
        >>> ring = csr_array(np.roll(np.eye(600), 1, 0) + np.roll(np.eye(600), -1, 0)) / 2
        >>> cycle = Multigrid(csr_array(ring), torch.full((600,), 600**-0.5, dtype=torch.float64))
        >>> cycle(torch.eye(600)[:, :2]).shape
        torch.Size([600, 2])
    """

    def __init__(self, normalized: csr_array, first: Float[Tensor, " N"]) -> None:
        from pyamg import smoothed_aggregation_solver  # 0.3 s to import, seldom needed

        laplacian = narrow(csr_array((1 + SHIFT) * eye_array(len(first)) - normalized))
        with _fixed_numpy_seed():
            hierarchy: Any = smoothed_aggregation_solver(
                laplacian,
                B=first.numpy()[:, None],
                max_coarse=COARSEST,
                improve_candidates=None,  # sqrt(p) is the near null space to rounding already
                smooth=("jacobi", {"omega": 4 / 3, "weighting": "local"}),
            ).levels
        self.levels = [_level(level.A, level.P) for level in hierarchy[:-1]]
        self.coarsest = torch.from_numpy(np.linalg.inv(hierarchy[-1].A.toarray())).float()

    def __call__(self, R: Float[Tensor, "N c"]) -> Float[Tensor, "N c"]:
        """Run one cycle on the columns of R, whose lengths float32 must hold; float32."""
        return self._cycle(R.float(), 0)

    def _cycle(self, b: Tensor, depth: int) -> Tensor:
        if depth == len(self.levels):
            return self.coarsest @ b
        level = self.levels[depth]
        x = _smoothed(level, b, None)
        x += level.prolong @ self._cycle(level.restrict @ _left(level, b, x), depth + 1)
        return _smoothed(level, b, x)


def _left(level: Level, b: Tensor, x: Tensor) -> Tensor:
    """Compute b - A x, in the memory of the product."""
    product = level.matrix @ x
    return torch.sub(b, product, out=product)


def _smoothed(level: Level, b: Tensor, x: Tensor | None) -> Tensor:
    r"""Run Chebyshev iteration for $D^{-1} A x = D^{-1} b$ on the upper part of the spectrum, from x (None: zero).

    It writes over x.
    """
    centre, half = level.top * (1 + 1 / BAND) / 2, level.top * (1 - 1 / BAND) / 2
    sigma = centre / half
    rho = 1 / sigma
    if x is None:
        d = b * (level.inverse_diagonal / centre)
        x = d.clone()
    else:
        d = _left(level, b, x).mul_(level.inverse_diagonal / centre)
        x += d
    for _ in range(SMOOTHING - 1):
        r = _left(level, b, x).mul_(level.inverse_diagonal)
        new = 1 / (2 * sigma - rho)
        d.mul_(new * rho).add_(r, alpha=2 * new / half)
        rho = new
        x += d
    return x


def _level(matrix: Any, prolong: Any) -> Level:
    """Prepare a level of pyamg's, whose matrices are sparse rows or blocks."""
    matrix = csr_array(matrix)
    inverse = 1 / matrix.diagonal()
    v = np.random.default_rng(0).standard_normal(len(inverse))
    for _ in range(POWER_STEPS):
        v = inverse * (matrix @ (v / np.linalg.norm(v)))
    bound = float((inverse * abs(matrix).sum(1)).max())  # Gershgorin's; power steps come from below
    top = min(bound, 1.1 * float(np.linalg.norm(v)))
    P = csr_array(prolong)
    scale = torch.from_numpy(inverse).float()[:, None]
    return Level(threaded(matrix), scale, top, threaded(P), threaded(csr_array(P.T)))


def threaded(matrix: csr_array, dtype: torch.dtype = torch.float32) -> Tensor:
    """Copy to torch's sparse rows with 32-bit indices: products with blocks use all threads."""
    small = narrow(matrix)
    rows, columns, values = (torch.from_numpy(part) for part in (small.indptr, small.indices, small.data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, once: sparse rows are "in beta state"
        return torch.sparse_csr_tensor(rows, columns, values.to(dtype), size=small.shape, check_invariants=False)


def narrow(matrix: csr_array) -> csr_array:
    """Give a matrix 32-bit indices where they suffice."""
    rows, columns = cast(tuple[int, int], matrix.shape)
    if max(matrix.nnz, rows, columns) >= 2**31:
        return matrix
    parts: Any = (matrix.data, *(np.asarray(part, dtype=np.int32) for part in (matrix.indices, matrix.indptr)))
    return csr_array(parts, shape=matrix.shape)


def nearby_order(matrix: csr_array) -> np.ndarray | None:
    """Order the vertices so that neighbours lie near in memory; None where that does not halve their distance."""
    small = narrow(matrix)
    order = np.array(reverse_cuthill_mckee(small, symmetric_mode=True), dtype=np.int64)  # a copy: it comes backwards
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    rows = np.repeat(np.arange(len(order)), np.diff(small.indptr))
    near = np.abs(place[rows] - place[small.indices]).mean()
    return order if near < np.abs(rows - small.indices).mean() / 2 else None


@contextmanager
def _fixed_numpy_seed() -> Iterator[None]:
    """Multigrid set-up draws from numpy's global generator: fix it, then put it back."""
    state = np.random.get_state()  # noqa: NPY002 - pyamg knows no other generator
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
