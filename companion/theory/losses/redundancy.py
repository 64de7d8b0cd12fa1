"""Losses without negatives that keep coordinates apart: Barlow Twins and VICReg."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from companion.theory.losses._shared import Collective, check_pair, totals


def barlow_twins(
    z1: Float[Tensor, "n k"],
    z2: Float[Tensor, "n k"],
    lam: float = 1.0,
    normalize: bool = False,
    sum_over_workers: Collective | None = None,
) -> Float[Tensor, ""]:
    r"""Compute the Barlow Twins loss from the cross-correlation of two views.

    $$\ell = \sum_i (1 - C_{ii})^2 + \lambda_{BT}\sum_{i\ne j} C_{ij}^2,\qquad
    C = \frac1{2n}\bigl(Z_1^\top Z_2 + Z_2^\top Z_1\bigr);\qquad
    \lambda_{BT} = 1:\ \ell = \lVert C - I\rVert_F^2 .$$

    Args:
        z1, z2: embeddings of first and second views, shape (n, k) each, any float dtype.
        lam: weight $\lambda_{BT}$ of the entries off the diagonal; 0.0051 in the authors' code.
        normalize: standardise the columns of each view over the batch first, as torch's batch norm without weights
            does: $(z - \mathrm{mean}) / \sqrt{\mathrm{Var} + 10^{-5}}$. Otherwise nothing is centred.
        sum_over_workers: as for `spectral_contrastive`.

    Returns:
        The loss, a scalar; in float32 where the embeddings are of lower precision.

    References:
        Zbontar et al. (2021), here with C symmetrised; Simon et al. (2023), section 4; `eq-bt-loss`.

    Examples:
        C = ((1/2, 0), (0, 2)), then C = ((0, 1), (1, 0)).

        >>> z = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> float(barlow_twins(z, z))
        1.25
        >>> float(barlow_twins(z, z.flip(0), lam=0.5))
        3.0
    """
    check_pair(z1, z2, "barlow_twins")
    dtype = torch.promote_types(z1.dtype, torch.float32)
    z1, z2 = (z.to(torch.float64 if normalize else dtype) for z in (z1, z2))  # float64: variances cancel digits
    columns = [z1.sum(0), z1.square().sum(0), z2.sum(0), z2.square().sum(0)] if normalize else []
    sums = [z1.new_tensor(len(z1)), z1.T @ z2, *columns]
    n, *moments = totals(sums, sum_over_workers)
    C, *moments = (moment / n for moment in moments)
    if normalize:
        mean1, square1, mean2, square2 = moments
        scale1, scale2 = ((q - m**2).clamp(min=0).add(1e-5).rsqrt() for q, m in ((square1, mean1), (square2, mean2)))
        C = (C - torch.outer(mean1, mean2)) * torch.outer(scale1, scale2)
    C = (C + C.T) / 2
    return ((1 - C.diagonal()).square().sum() + lam * _off_diagonal(C)).to(dtype)


def vicreg(
    z1: Float[Tensor, "n k"],
    z2: Float[Tensor, "n k"],
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    eps: float = 1e-4,
    sum_over_workers: Collective | None = None,
) -> Float[Tensor, ""]:
    r"""Compute the VICReg loss: views agree, no coordinate collapses, no two coordinates say the same.

    $$\ell = \frac{a}{nk}\sum_i\lVert z_i - z_i^+\rVert^2
    + \frac{b}{2k}\sum_{\text{views}}\sum_j\max\bigl(0, 1 - \sqrt{\Sigma_{jj} + \epsilon}\bigr)
    + \frac{c}{k}\sum_{\text{views}}\sum_{i\ne j}\Sigma_{ij}^2,$$

    where $\Sigma$ is the covariance matrix of one view, with divisor $n - 1$.

    Args:
        z1, z2: embeddings of first and second views, shape (n, k) each, any float dtype.
        invariance: a; `variance` is b, `covariance` is c.
        eps: $\epsilon$, which bounds the slope of the root.
        sum_over_workers: as for `spectral_contrastive`.

    Returns:
        The loss, a scalar; in float32 where the embeddings are of lower precision.

    Raises:
        ValueError: if shapes differ or the batch has fewer than two pairs.

    References:
        Bardes et al. (2022); half the sum of the variance terms, as in the authors' code.

    Examples:
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> float(vicreg(z, z))  # both covariance matrices are ((2, 2), (2, 2))
        8.0
    """
    check_pair(z1, z2, "vicreg")
    if len(z1) < 2 and sum_over_workers is None:
        raise ValueError("vicreg: needs at least two pairs, since one has no variance")
    dtype, k = torch.promote_types(z1.dtype, torch.float32), z1.shape[1]
    z1, z2 = z1.double(), z2.double()  # variances from sums of squares cancel digits
    sums = [z1.new_tensor(len(z1)), (z1 - z2).square().sum(), z1.T @ z1, z1.sum(0), z2.T @ z2, z2.sum(0)]
    n, distance, M1, sum1, M2, sum2 = totals(sums, sum_over_workers)
    loss = invariance * distance / n
    for M, total in ((M1, sum1), (M2, sum2)):
        Sigma = (M - torch.outer(total, total) / n) / (n - 1)
        deviation = (Sigma.diagonal().clamp(min=0) + eps).sqrt()
        loss = loss + variance / 2 * functional.relu(1 - deviation).sum() + covariance * _off_diagonal(Sigma)
    return (loss / k).to(dtype)


def _off_diagonal(M: Tensor) -> Tensor:
    """Sum the squares off the diagonal."""
    return (M - torch.diag(M.diagonal())).square().sum()
