r"""Leading eigenpairs of a symmetric matrix by blocks of vectors: LOBPCG, a polynomial filter, a float32 copy.

A product of a sparse matrix with forty vectors takes a few times as long as with one, so a block method can
afford many more products than Lanczos iteration, and it cannot miss copies of a multiple eigenvalue. What its steps
are made of, $W = M R$ from the residuals $R$, only has to point the right way: it is computed in float32.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Apply = Callable[[Tensor], Tensor]
DEPENDENT = 1e-13  # of the largest: less is rounding
DEGREES = (4, 24)  # of the filter: fewer do not pay for the projections, more outrun float32
GAIN = 11.0  # logarithm of what one use of the filter should gain
EARLY = 10  # highest degree while the Ritz values are still rough
AFFORDABLE = 120  # products still to do with the filter, above which multigrid is set up
STEPS = 80
ROWS = 8192  # of a block, worked on together


class Block(NamedTuple):
    r"""A subspace between two steps, in memory that every step uses again.

    Attributes:
        values: $m$ Ritz values, decreasing, shape (m,).
        gram: $[X\;P]^\top\bar A\,[X\;P]$, shape (c, c).
        room: $[X\;P\;\cdot]$ and its image under $\bar A$, shape (2, N, 3 m), float64; the rest is for new directions.
    """

    values: Float[Tensor, " m"]
    gram: Float[Tensor, "c c"]
    room: Float[Tensor, "2 N w"]

    @property
    def basis(self) -> Float[Tensor, "N c"]:
        r"""Orthonormal $[X\;P]$: Ritz vectors, then the directions of the last step."""
        return self.room[0, :, : len(self.gram)]

    @property
    def image(self) -> Float[Tensor, "N c"]:
        r"""$\bar A\,[X\;P]$."""
        return self.room[1, :, : len(self.gram)]

    @property
    def sizes(self) -> Float[Tensor, " m"]:
        r"""Norms of the columns of $R = \bar A X - X\Theta$."""
        squares = torch.zeros_like(self.values)
        for part in parts(self.basis):
            squares += self._residual(part).square_().sum(0)
        return squares.sqrt_()

    def residual(self, active: Tensor, scale: Float[Tensor, " a"]) -> Float[Tensor, "N a"]:
        r"""Columns of $R$ divided by `scale`, in float32; `active` says which, shape (m,), bool."""
        R = self.basis.new_empty(len(self.basis), len(scale), dtype=torch.float32)
        for part in parts(R):
            R[part] = self._residual(part)[:, active].div_(scale)
        return R

    def _residual(self, part: slice) -> Tensor:
        m = len(self.values)
        return torch.addcmul(self.image[part, :m], self.basis[part, :m], self.values, value=-1)


def parts(X: Tensor) -> list[slice]:
    """Cut the rows so that an element-wise sum over some blocks stays in the cache."""
    return [slice(row, row + ROWS) for row in range(0, len(X), ROWS)]


def started(multiply: Apply, X: Float[Tensor, "N m"], spare: Float[Tensor, "N m"]) -> Block:
    r"""Take the span of $X$ as the first subspace, filled up from `spare` where $X$ has a lower rank."""
    n, m = X.shape
    room = torch.empty(2, n, 3 * m, dtype=torch.float64)
    W = orthonormal(room[0, :, :m].copy_(X), room[0, :, :0])
    rank = W.shape[1]
    if rank < m:
        rank += orthonormal(room[0, :, rank:m].copy_(spare[:, rank:]), W).shape[1]
    room[1, :, :rank] = multiply(room[0, :, :rank])
    return _ritz(Block(torch.empty(0), torch.empty(0, 0, dtype=torch.float64), room), rank, rank)


def step(multiply: Apply, block: Block, directions: Float[Tensor, "N c"], active: Tensor | None = None) -> Block:
    r"""Replace $X$ by the best of the span of $[X\;P\;W]$ (Rayleigh-Ritz), as LOBPCG does.

    Args:
        multiply: $V \mapsto \bar A V$, float64.
        block: where it stands; its memory goes over to the next.
        directions: $W = M R$, any scale, any dtype.
        active: which columns of $X$ have not converged, shape (m,), bool; $P$ is kept for them only. All when None.

    Returns:
        The next block, of the same number $m$ of Ritz vectors.

    References:
        Knyazev (2001), algorithm 5.1; the basis $P$ that is orthogonal to $X$ by its coefficients alone:
        Hetmaniuk and Lehoucq (2006), section 4.2.
    """
    old = len(block.gram)
    W = orthonormal(block.room[0, :, old : old + directions.shape[1]].copy_(directions), block.basis)
    block.room[1, :, old : old + W.shape[1]] = multiply(W)
    return _ritz(block, W.shape[1], len(block.values), active)


def _ritz(block: Block, more: int, m: int, active: Tensor | None = None) -> Block:
    """Rayleigh-Ritz in the orthonormal basis [X P W]; only the `more` columns of W have new products."""
    old = len(block.gram)
    basis, image = block.room[:, :, : old + more]
    H = basis.T @ image[:, old:]
    corner = H[old:]
    H = torch.cat([torch.cat([block.gram, H[:old].T]), torch.cat([H[:old], (corner + corner.T) / 2])], 1)
    values, C = torch.linalg.eigh(H)
    values, C = values.flip(0)[:m], C.flip(1)[:, :m]
    moved = C.clone() if active is None else C[:, active]
    moved[:m] = 0  # the part of the step that is not in the old X
    C = torch.cat([C, orthonormal(moved, C)], 1) if old else C
    turned(basis, C)
    turned(image, C)
    return Block(values, C.T @ H @ C, block.room)


def turned(W: Float[Tensor, "N c"], C: Float[Tensor, "c d"]) -> Float[Tensor, "N d"]:
    r"""Write $WC$, $d \le c$, over the first columns of $W$."""
    into = W[:, : C.shape[1]]
    for part in parts(W):
        into[part] = W[part] @ C
    return into


def orthonormal(W: Float[Tensor, "N c"], Q: Float[Tensor, "N q"]) -> Float[Tensor, "N d"]:
    r"""Make an orthonormal basis of the part of the span of $W$ that is orthogonal to orthonormal columns $Q$.

    Args:
        W: float64, written over; zero and dependent columns are dropped.
        Q: float64.

    Returns:
        The first d <= c columns of `W`.

    Examples:
        >>> W = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
        >>> orthonormal(W, torch.tensor([[1.0], [0.0]], dtype=torch.float64)).abs().tolist()
        [[0.0], [1.0]]
    """
    for _ in range(2):  # once leaves the rounding of what was removed
        C = Q.T @ W
        gram = W.addmm_(Q, C, alpha=-1).T @ W
        after = gram.diagonal()
        left = after > DEPENDENT**2 * (after + C.square().sum(0))
        scale = after[left].rsqrt()
        squares, turn = torch.linalg.eigh(gram[left][:, left] * scale * scale[:, None])
        kept = squares > DEPENDENT * len(squares)
        T = W.new_zeros(W.shape[1], int(kept.sum()))
        T[left] = scale[:, None] * turn[:, kept] * squares[kept].rsqrt()
        W = turned(W, T)
    return W


def rate(value: float, cut: float, low: float) -> float:
    r"""Say by what the logarithm of $T_d$ grows with the degree $d$ at `value`, if $|T_d| \le 1$ on [low, cut]."""
    return math.acosh(max(1.0, (2 * value - cut - low) / (cut - low)))


def filtered(multiply: Apply, R: Tensor, values: Tensor, degree: int, cut: float, low: float) -> Tensor:
    r"""Compute the step $T_d(\bar A)X / T_d(\theta) - X$ from the residuals $R$ alone, one $\theta$ a column.

    $T_d$ is the Chebyshev polynomial that stays in $[-1, 1]$ on [low, cut], so the step removes from $X$ what
    belongs to eigenvalues there. With $Y_j = T_j(\bar A)X - T_j(\theta)X$ and $\tilde A$, $\tilde\theta$, $\tilde R$
    scaled to it, $Y_{j+1} = 2\tilde A Y_j - Y_{j-1} + 2T_j(\tilde\theta)\tilde R$: nothing cancels, and float32 keeps
    seven digits of a small $R$.

    Args:
        multiply: $V \mapsto \bar A V$ in the dtype of $R$.
        R: $\bar A X - X\Theta$, columns of any scale, shape (N, c).
        values: $\theta$, shape (c,), none below `cut`.
        degree: $d \ge 1$.
        cut: where the amplified eigenvalues begin.
        low: smallest eigenvalue, or anything below it.

    Returns:
        The step, shape (N, c).

    References:
        Zhou, Saad, Tiago and Chelikowsky (2006), algorithm 3.1, for the filter of $X$ itself.
    """
    centre, half = (cut + low) / 2, (cut - low) / 2
    theta = ((values - centre) / half).to(R.dtype)
    ratio = 1 / theta  # T_j / T_{j+1} at theta
    before, now = torch.zeros_like(R), R * (ratio / half)
    for _ in range(degree - 1):
        new = 1 / (2 * theta - ratio)
        later = multiply(now)
        for part in parts(R):
            scaled = later[part].sub_(now[part], alpha=centre).add_(R[part]).mul_(2 * new / half)
            scaled.sub_(before[part].mul_(new * ratio))
        before, now, ratio = now, later, new
    return now


def block_eigenpairs(
    multiply: Apply,
    rough: Apply,
    first: Float[Tensor, " N"],
    k: int,
    tolerance: float,
    low: float,
    multigrid: Callable[[], Apply],
    *,
    at_once: bool = False,
) -> tuple[Float[Tensor, " k"], Float[Tensor, "N k"]]:
    r"""Find the $k$ largest eigenvalues of $\bar A$: filter while the gaps allow it, else precondition by multigrid.

    Some more columns than k are carried: the gap behind the last of them sets the pace, and an eigenvalue of any
    multiplicity up to k is found whole. The start is fixed, so two calls give the same bits on equally many threads.

    Args:
        multiply: $V \mapsto \bar A V$, float64.
        rough: the same in float32.
        first: $\sqrt p$, the eigenvector of the largest eigenvalue.
        k: number of pairs, below N / 4.
        tolerance: residual at which to stop.
        low: a bound below the spectrum.
        multigrid: sets up $R \mapsto (I - \bar A)^{-1}R$, roughly.
        at_once: do not try the filter.

    Returns:
        Eigenvalues and eigenvectors; their residuals are above `tolerance` where STEPS did not suffice.
    """
    n = len(first)
    X = torch.randn(n, min(k + max(8, 3 * k // 8), n // 3), generator=torch.Generator().manual_seed(0))
    X[:, 0] = first
    spare = X
    for _ in range(3):
        X = rough(X)
    block, cycle = started(multiply, X, spare.double()), multigrid() if at_once else None
    for count in range(STEPS):
        size = block.sizes
        if size[:k].max() <= tolerance / 2:
            break
        cut = float(block.values[-1])
        gain = rate(float(block.values[k - 1]), cut, low)
        active = size > tolerance / 4
        if cycle is None and count > 1 and gain * DEGREES[1] >= GAIN:
            active[k:] = False  # behind a wide gap they have done their part
        if cycle is None and count > 1 and math.log(float(size[:k].max()) / tolerance) > gain * AFFORDABLE:
            cycle = multigrid()
        R = block.residual(active, size[active])
        if cycle is None:
            degree = degree_for(gain, EARLY if count < 2 else DEGREES[1])
            R = filtered(rough, R, block.values[active], degree, cut, low)
        else:
            R = cycle(R)
        block = step(multiply, block, R, active)
    return block.values[:k], block.basis[:, :k]


def degree_for(gain: float, most: int) -> int:
    """Choose the degree that gains e^GAIN if each adds `gain` to the logarithm.

    >>> degree_for(1.0, 24), degree_for(0.0, 24), degree_for(5.0, 24)
    (11, 24, 4)
    """
    return min(most, max(DEGREES[0], math.ceil(GAIN / max(gain, 1e-9))))
