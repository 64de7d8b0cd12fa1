r"""Normalisation layers of graph networks and of contrastive learning, on feature matrices $U$ with one row a view.

Row-wise layers ($\ell_2$, LayerNorm, NodeNorm) fix the scale of each row and leave equal rows equal; layers that
centre over the rows (PairNorm, DINO's centring) remove the direction in which all rows are equal.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.message_checks import marginal, positive

Features = Float[Tensor, "*b N k"]


def row_normalise(U: Features) -> Features:
    r"""Project each row onto the unit sphere, $f_x \mapsto f_x/\lVert f_x\rVert$ (SimCLR).

    Args:
        U: features, shape (..., N, k), any float dtype.

    Returns:
        Rows of length one, shape of `U`, float64.

    Raises:
        ValueError: if a row is zero or not finite; it names the row.

    References:
        Wang et al. (2023), slides, normalisation; `prop-normalisation`.

    Examples:
        >>> row_normalise(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).tolist()
        [[0.6, 0.8], [0.0, 1.0]]
    """
    U = _rows(U, "row_normalise")
    return U / _lengths(U, 0.0, "row_normalise", "is zero")


def layer_norm(U: Features) -> Features:
    r"""Apply LayerNorm without its affine part: row normalisation after the mean over the features is removed.

    $$f \mapsto \sqrt k\,Mf/\lVert Mf\rVert,\qquad M = I_k-\tfrac1k\mathbf 1\mathbf 1^\top .$$

    Args:
        U: features, shape (..., N, k), $k\ge2$, any float dtype.

    Returns:
        Rows of mean 0 and variance 1, shape of `U`, float64; no constant is added to the variance.

    Raises:
        ValueError: if a row is constant (always so at $k = 1$).

    References:
        Ba et al. (2016); beside contrastive learning: Wang et al. (2023), slides, normalisation; `prop-normalisation`.

    Examples:
        >>> layer_norm(torch.tensor([[1.0, 3.0], [5.0, -5.0]])).tolist()
        [[-1.0, 1.0], [1.0, -1.0]]
    """
    U = _rows(U, "layer_norm")
    centred = U - U.mean(-1, keepdim=True)
    return math.sqrt(U.shape[-1]) * centred / _lengths(centred, _floor(U), "layer_norm", "is constant")


def node_norm(U: Features, root: float = 1.0) -> Features:
    r"""Apply NodeNorm: divide each row by a root of its own standard deviation over the features.

    $$f \mapsto f/\sigma(f)^{1/q},\qquad \sigma^2(f) = \tfrac1k\lVert f-\tfrac1k\mathbf 1\mathbf 1^\top f\rVert^2 .$$

    Args:
        U: features, shape (..., N, k), $k\ge2$, any float dtype.
        root: $q\ge1$; 1 gives rows of standard deviation one. The mean of a row is kept, and scaled.

    Returns:
        Shape of `U`, float64.

    Raises:
        ValueError: if a row is constant or `root` is below 1.

    References:
        Zhou et al. (2021); beside contrastive learning: Wang et al. (2023), slides; `prop-normalisation`.

    Examples:
        >>> node_norm(torch.tensor([[2.0, 10.0]])).tolist(), node_norm(torch.tensor([[2.0, 10.0]]), 2.0).tolist()
        ([[0.5, 2.5]], [[1.0, 5.0]])
    """
    if not root >= 1:
        raise ValueError(f"node_norm: root must be at least 1, got {root}")
    U = _rows(U, "node_norm")
    deviation = _lengths(U - U.mean(-1, keepdim=True), _floor(U), "node_norm", "is constant") / math.sqrt(U.shape[-1])
    return U / deviation ** (1 / root)


def pair_norm(U: Features, scale: float = 1.0, individually: bool = False) -> Features:
    r"""Apply PairNorm: centre over the rows, then fix the scale.

    $$\tilde f_x = f_x - \tfrac1N\sum_yf_y,\qquad
    f_x \mapsto s\,\tilde f_x\Big/\sqrt{\tfrac1N\sum_y\lVert\tilde f_y\rVert^2}
    \quad\text{or}\quad s\,\tilde f_x/\lVert\tilde f_x\rVert .$$

    The first form keeps the ratios of distances and pins their total, $\sum_{x,y}\lVert f_x-f_y\rVert^2 = 2N^2s^2$; the
    second, *individually*, is "centre, then project onto the sphere".

    Args:
        U: features, shape (..., N, k), any float dtype; every row counts the same (see `centre` for weights).
        scale: $s > 0$.
        individually: scale each row by its own length.

    Returns:
        Shape of `U`, float64; no constant is added to the denominator.

    Raises:
        ValueError: if `scale` is not positive, all rows are equal, or (individually) a row equals the mean.

    References:
        Zhao and Akoglu (2020); beside contrastive learning: Wang et al. (2023), slides; `prop-normalisation`.

    Examples:
        >>> pair_norm(torch.tensor([[1.0], [2.0], [6.0]]), individually=True).flatten().tolist()
        [-1.0, -1.0, 1.0]
        >>> pair_norm(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), 5.0).tolist()
        [[-5.0, 0.0], [5.0, 0.0]]
    """
    scale = float(positive(scale, "pair_norm", "scale"))
    U = _rows(U, "pair_norm")
    centred = U - U.mean(-2, keepdim=True)
    if individually:
        return scale * centred / _lengths(centred, _floor(U), "pair_norm", "equals the mean of all rows")
    spread = centred.square().sum(-1).mean(-1)[..., None, None].sqrt()
    if not (spread > _floor(U)).all():
        raise ValueError("pair_norm: all rows are equal, the features have collapsed and no scale separates them")
    return scale * centred / spread


def centre(U: Features, p: Float[Tensor, " N"]) -> Features:
    r"""Subtract the mean over the views, $U \mapsto U - \mathbf 1p^\top U$.

    On weighted features $F = D^{1/2}U$ it is the projection $I-v_1v_1^\top$ off $v_1 = \sqrt p$: it removes the limit
    of alignment on a connected graph, and nothing else.

    Args:
        U: raw features, shape (..., N, k), any float dtype.
        p: probabilities of the views, shape (N,), positive, sum to 1.

    Returns:
        Shape of `U`, float64, with $p^\top U = 0$.

    Raises:
        ValueError: if the shapes do not fit or $p$ is no positive probability vector.

    References:
        The companion's own; `prop-centring`.

    Examples:
        >>> centre(torch.tensor([[0.0], [4.0]]), torch.tensor([0.75, 0.25])).flatten().tolist()
        [-1.0, 3.0]
    """
    U = _rows(U, "centre")
    return U - (marginal(p, U.shape[-2], "centre") @ U)[..., None, :]


def _rows(U: Tensor, name: str) -> Tensor:
    if U.ndim < 2:
        raise ValueError(f"{name}: expected features (N, k), one row a view, got shape {tuple(U.shape)}")
    return U.double()


def _floor(U: Tensor) -> float:
    """What is left of a constant by rounding when its mean is subtracted."""
    return 16 * torch.finfo(torch.float64).eps * float(U.detach().abs().max())


def _lengths(U: Tensor, floor: float, name: str, fault: str) -> Tensor:
    """Return the lengths of rows, shape (..., N, 1), and name the first row that has no direction."""
    lengths = U.norm(dim=-1, keepdim=True)
    bad = ~((lengths > floor) & lengths.isfinite()).squeeze(-1)
    if bad.any():
        *_, row = where = bad.nonzero()[0].tolist()
        place = f"row {row}" if len(where) == 1 else f"row {row} of block {where[:-1]}"
        what = fault if lengths[bad].isfinite().all() else "is not finite"
        raise ValueError(f"{name}: {place} {what}, so it has no direction; drop the row or change its features")
    return lengths
