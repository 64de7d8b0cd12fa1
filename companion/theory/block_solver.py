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


class Block(NamedTuple):
    r"""A subspace between two steps.

    Attributes:
        values: $m$ Ritz values, decreasing, shape (m,).
        gram: $[X\;P]^\top\bar A\,[X\;P]$, shape (m + l, m + l).
        basis: orthonormal $[X\;P]$: Ritz vectors, then the directions of the last step, shape (N, m + l), float64.
        image: $\bar A\,[X\;P]$, the same shape.
    """

    values: Float[Tensor, " m"]
    gram: Float[Tensor, "c c"]
    basis: Float[Tensor, "N c"]
    image: Float[Tensor, "N c"]

    @property
    def residual(self) -> Float[Tensor, "N m"]:
        r"""$R = \bar A X - X\Theta$."""
        m = len(self.values)
        return torch.addcmul(self.image[:, :m], self.basis[:, :m], self.values, value=-1)


def started(multiply: Apply, X: Float[Tensor, "N m"], spare: Float[Tensor, "N m"]) -> Block:
    r"""Take the span of $X$ as the first subspace, filled up from `spare` where $X$ has a lower rank."""
    W = orthonormal(X.double(), spare[:, :0])
    if W.shape[1] < X.shape[1]:
        W = torch.cat([W, orthonormal(spare[:, W.shape[1] :], W)], 1)
    nothing = W[:, :0]
    return _ritz(Block(torch.empty(0), torch.empty(0, 0), nothing, nothing), W, multiply(W), W.shape[1])


def step(multiply: Apply, block: Block, directions: Float[Tensor, "N c"], active: Tensor | None = None) -> Block:
    r"""Replace $X$ by the best of the span of $[X\;P\;W]$ (Rayleigh-Ritz), as LOBPCG does.

    Args:
        multiply: $V \mapsto \bar A V$, float64.
        block: where it stands.
        directions: $W = M R$, any scale, any dtype.
        active: which columns of $X$ have not converged, shape (m,), bool; $P$ is kept for them only. All when None.

    Returns:
        The next block, of the same number $m$ of Ritz vectors.

    References:
        Knyazev (2001), algorithm 5.1; the basis $P$ that is orthogonal to $X$ by its coefficients alone:
        Hetmaniuk and Lehoucq (2006), section 4.2.
    """
    W = orthonormal(directions.double(), block.basis)
    return _ritz(block, W, multiply(W), len(block.values), active)


def _ritz(block: Block, W: Tensor, image: Tensor, m: int, active: Tensor | None = None) -> Block:
    """Rayleigh-Ritz in the orthonormal basis [X P W]; only the columns of W have new products."""
    cross, corner = block.basis.T @ image, W.T @ image
    H = torch.cat([torch.cat([block.gram, cross], 1), torch.cat([cross.T, (corner + corner.T) / 2], 1)])
    values, C = torch.linalg.eigh(H)
    values, C = values.flip(0)[:m], C.flip(1)[:, :m]
    moved = C.clone() if active is None else C[:, active]
    moved[:m] = 0  # the part of the step that is not in the old X
    C = torch.cat([C, orthonormal(moved, C)], 1) if len(block.basis[0]) else C
    old = block.basis.shape[1]
    new = (torch.addmm(W @ C[old:], Q, C[:old]) for Q, W in ((block.basis, W), (block.image, image)))
    return Block(values, C.T @ H @ C, *new)


def orthonormal(W: Float[Tensor, "N c"], Q: Float[Tensor, "N q"]) -> Float[Tensor, "N c2"]:
    r"""Give an orthonormal basis of the part of the span of $W$ that is orthogonal to orthonormal columns $Q$.

    Args:
        W: float64; zero and dependent columns are dropped.
        Q: float64.

    Returns:
        Shape (N, c2), c2 <= c.

    Examples:
        >>> W = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
        >>> orthonormal(W, W[:, :1]).abs().tolist()
        [[0.0], [1.0]]
    """
    for _ in range(2):  # once leaves the rounding of what was removed
        before = torch.linalg.vector_norm(W, dim=0)
        W = W - Q @ (Q.T @ W)
        length = torch.linalg.vector_norm(W, dim=0)
        left = length > DEPENDENT * before
        W = W[:, left] / length[left]
        squares, turn = torch.linalg.eigh(W.T @ W)
        kept = squares > DEPENDENT * len(squares)
        W = W @ (turn[:, kept] * squares[kept].rsqrt())
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
        later = torch.sub(multiply(now), now, alpha=centre).add_(R).mul_(2 * new / half)
        before, now, ratio = now, later.sub_(before.mul_(new * ratio)), new
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
        R = block.residual
        size = torch.linalg.vector_norm(R, dim=0)
        if size[:k].max() <= tolerance / 2:
            break
        cut = float(block.values[-1])
        gain = rate(float(block.values[k - 1]), cut, low)
        active = size > tolerance / 4
        if cycle is None and count > 1 and gain * DEGREES[1] >= GAIN:
            active[k:] = False  # behind a wide gap they have done their part
        R, theta = R[:, active] / size[active], block.values[active]
        if cycle is None and count > 1 and math.log(float(size[:k].max()) / tolerance) > gain * AFFORDABLE:
            cycle = multigrid()
        if cycle is None:
            W = filtered(rough, R.float(), theta, degree_for(gain, EARLY if count < 2 else DEGREES[1]), cut, low)
        else:
            W = cycle(R)
        del R
        block = step(multiply, block, W, active)
    return block.values[:k], block.basis[:, :k]


def degree_for(gain: float, most: int) -> int:
    """Choose the degree that gains e^GAIN if each adds `gain` to the logarithm.

    >>> degree_for(1.0, 24), degree_for(0.0, 24), degree_for(5.0, 24)
    (11, 24, 4)
    """
    return min(most, max(DEGREES[0], math.ceil(GAIN / max(gain, 1e-9))))
