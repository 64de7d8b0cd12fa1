r"""Contrastive losses as pure functions of two batches of embeddings.

Every function serves one process and many: `sum_over_workers` and `gather` are the only places where workers talk.
Give them autograd-aware collectives (`companion.lab.distributed` has them): each worker then returns
the loss of the *global* batch. Their backward passes add up the gradients of all workers' copies of
that loss, so the mean of gradients over workers, which `DistributedDataParallel` takes, is the gradient of one copy.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Collective = Callable[[Tensor], Tensor]


def spectral_contrastive(
    z1: Float[Tensor, "n k"],
    z2: Float[Tensor, "n k"],
    mu: float = 1.0,
    form: Literal["auto", "gram", "pairs"] = "auto",
    sum_over_workers: Collective | None = None,
) -> Float[Tensor, ""]:
    r"""Estimate the spectral contrastive loss without bias from one batch of positive pairs.

    $$\hat\ell = -\frac2n\sum_i z_i^\top z_i^+ + \frac{\mu}{n(n-1)}\sum_{i\ne j}(z_i^\top z_j^+)^2 .$$

    The diagonal $i = j$ is left out: its pairs are positive, not independent, and would bias the estimate.
    The second sum has two equal forms. "pairs" takes the $n\times n$ matrix of products; "gram" takes two $k\times k$
    matrices, $\sum_{i,j}(z_i^\top z_j^+)^2 = \mathrm{tr}(Z_1^\top Z_1\,Z_2^\top Z_2)$, and is cheaper when $2k < n$.

    Args:
        z1, z2: embeddings of first and second views, shape (n, k) each, any float dtype.
        mu: weight $\mu$ of repulsion; $\mu = 1$ is the loss of the theory.
        form: "gram", "pairs", or "auto" for the cheaper of the two.
        sum_over_workers: autograd-aware sum of a vector over workers; the loss is then that of the global batch.

    Returns:
        The loss, a scalar; in float32 where the embeddings are of lower precision.

    Raises:
        ValueError: if shapes differ, the batch has fewer than two pairs, or "pairs" is asked of several workers.

    References:
        HaoChen et al. (2021), section 4; `prop-unbiased`.

    Examples:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> float(spectral_contrastive(z, z))
        -5.0
        >>> float(spectral_contrastive(z, z.flip(0), mu=3.0))
        25.5
    """
    _check_pair(z1, z2, "spectral_contrastive")
    n, k = z1.shape
    if form not in ("auto", "gram", "pairs"):
        raise ValueError(f"spectral_contrastive: form must be 'auto', 'gram' or 'pairs', got {form!r}")
    if form == "pairs" and sum_over_workers is not None:
        raise ValueError("spectral_contrastive: form='pairs' sees one worker only; use form='gram'")
    if n < 2 and sum_over_workers is None:
        raise ValueError("spectral_contrastive: needs at least two pairs, since repulsion is between different pairs")
    z1, z2 = (z.to(torch.promote_types(z.dtype, torch.float32)) for z in (z1, z2))
    positive = (z1 * z2).sum(1)
    if form == "pairs" or (form == "auto" and sum_over_workers is None and n <= 2 * k):
        products = z1 @ z2.T
        attraction, repulsion = positive.sum(), products.square().sum() - positive.square().sum()
    else:
        # one message: both second moments, both sums over the diagonal, the batch size
        sums = torch.stack([positive.sum(), positive.square().sum(), positive.new_tensor(n)])
        message = torch.cat([(z1.T @ z1).flatten(), (z2.T @ z2).flatten(), sums])
        message = message if sum_over_workers is None else sum_over_workers(message)
        M1, M2, (attraction, diagonal, n) = message.split([k * k, k * k, 3])
        repulsion = M1 @ M2 - diagonal  # the trace, since M1 and M2 are symmetric
    return -2 / n * attraction + mu / (n * (n - 1)) * repulsion


def info_nce(
    z1: Float[Tensor, "n k"], z2: Float[Tensor, "n k"], temperature: float, gather: Collective | None = None
) -> Float[Tensor, ""]:
    r"""Compute the symmetric InfoNCE (NT-Xent) loss over all $2n$ views.

    $$\ell = -\frac1{2n}\sum_{a=1}^{2n}\log\frac{e^{s_{a\,a^+}/\tau}}{\sum_{b\ne a}e^{s_{ab}/\tau}},\qquad
    s_{ab} = \frac{u_a^\top u_b}{\lVert u_a\rVert\,\lVert u_b\rVert},$$

    where $a^+$ is the other view of the same image.

    Args:
        z1, z2: embeddings of first and second views, shape (n, k) each, any float dtype; only directions matter.
        temperature: $\tau > 0$.
        gather: autograd-aware concatenation of rows over workers; the loss is then that of the global batch.

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: if shapes differ or the temperature is not positive.

    References:
        Chen et al. (2020), Eq. (1).

    Examples:
        >>> z = torch.eye(2)  # two images, each in two equal views: one other view, two orthogonal ones
        >>> round(float(info_nce(z, z, temperature=1.0).exp()), 4)  # 1 + 2 / e
        1.7358
    """
    _check_pair(z1, z2, "info_nce")
    if not temperature > 0:
        raise ValueError(f"info_nce: temperature must be positive, got {temperature}")
    if gather is not None:
        z1, z2 = gather(z1), gather(z2)
    n = len(z1)
    u = functional.normalize(torch.cat([z1, z2]), dim=1)
    itself = torch.eye(2 * n, dtype=torch.bool, device=u.device)
    logits = (u @ u.T / temperature).masked_fill(itself, -torch.inf)
    other_view = torch.arange(2 * n, device=u.device).roll(n)
    return functional.cross_entropy(logits, other_view)


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
    _check_pair(z1, z2, "barlow_twins")
    dtype = torch.promote_types(z1.dtype, torch.float32)
    z1, z2 = (z.to(torch.float64 if normalize else dtype) for z in (z1, z2))  # float64: variances cancel digits
    columns = [z1.sum(0), z1.square().sum(0), z2.sum(0), z2.square().sum(0)] if normalize else []
    sums = [z1.new_tensor(len(z1)), z1.T @ z2, *columns]
    n, *moments = _totals(sums, sum_over_workers)
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
    _check_pair(z1, z2, "vicreg")
    if len(z1) < 2 and sum_over_workers is None:
        raise ValueError("vicreg: needs at least two pairs, since one has no variance")
    dtype, k = torch.promote_types(z1.dtype, torch.float32), z1.shape[1]
    z1, z2 = z1.double(), z2.double()  # variances from sums of squares cancel digits
    sums = [z1.new_tensor(len(z1)), (z1 - z2).square().sum(), z1.T @ z1, z1.sum(0), z2.T @ z2, z2.sum(0)]
    n, distance, M1, sum1, M2, sum2 = _totals(sums, sum_over_workers)
    loss = invariance * distance / n
    for M, total in ((M1, sum1), (M2, sum2)):
        Sigma = (M - torch.outer(total, total) / n) / (n - 1)
        deviation = (Sigma.diagonal().clamp(min=0) + eps).sqrt()
        loss = loss + variance / 2 * functional.relu(1 - deviation).sum() + covariance * _off_diagonal(Sigma)
    return (loss / k).to(dtype)


def byol(
    prediction: Float[Tensor, "n k"],
    target: Float[Tensor, "n k"],
    *,
    stop_gradient: bool = True,
    normalize: bool = True,
) -> Float[Tensor, ""]:
    r"""Compute the BYOL loss, the mean of $2 - 2\cos\angle(p_i, t_i)$ over rows.

    Args:
        prediction, target: what the online network expects of the other view, and the target's embedding of it, (n, k).
        stop_gradient: whether the target is taken as constant.
        normalize: False for the loss of the linear theory, the mean of $\frac12\lVert p_i - t_i\rVert^2$.

    Returns:
        The loss, a scalar, in float32 where the embeddings are of lower precision; of several workers take the mean.

    References:
        Grill et al. (2020), one of the two directions; `eq-siamese-loss`.

    Examples:
        >>> p, t = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        >>> float(byol(p, t)), float(byol(p, t, normalize=False))
        (1.0, 2.75)
    """
    _check_pair(prediction, target, "byol")
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    p, t = prediction.to(dtype), (target.detach() if stop_gradient else target).to(dtype)
    if not normalize:
        return (p - t).square().sum(1).mean() / 2
    p, t = (functional.normalize(z, dim=1) for z in (p, t))
    return 2 - 2 * (p * t).sum(1).mean()


def clip_to_ball(z: Float[Tensor, "n k"], radius: float) -> Float[Tensor, "n k"]:
    r"""Shorten rows that are longer than `radius`, $z \mapsto z\,\min(1, \varrho/\lVert z\rVert)$; keep the others.

    Args:
        z: embeddings, shape (n, k).
        radius: $\varrho > 0$; HaoChen et al. take $\varrho = \sqrt\mu$.

    Returns:
        Rows in the ball, shape (n, k).

    Raises:
        ValueError: if the radius is not positive.

    References:
        HaoChen et al. (2021), section 6 (projection of the embedding).

    Examples:
        >>> clip_to_ball(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    if not radius > 0:
        raise ValueError(f"clip_to_ball: radius must be positive, got {radius}")
    return z * (radius / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp(min=radius))


def _check_pair(z1: Tensor, z2: Tensor, name: str) -> None:
    """Both views: one matrix each, same shape."""
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"{name}: expected (n, k) batches of one shape, got {tuple(z1.shape)} and {tuple(z2.shape)}")


def _totals(sums: list[Tensor], sum_over_workers: Collective | None) -> list[Tensor]:
    """Sum each tensor over workers, all in one message."""
    if sum_over_workers is None:
        return sums
    totals = sum_over_workers(torch.cat([part.flatten() for part in sums])).split([part.numel() for part in sums])
    return [total.view_as(part) for total, part in zip(totals, sums, strict=True)]


def _off_diagonal(M: Tensor) -> Tensor:
    """Sum the squares off the diagonal."""
    return (M - torch.diag(M.diagonal())).square().sum()
