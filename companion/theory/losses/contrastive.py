"""Losses with negatives: a view is attracted by its partner and repelled by the views of other images."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from companion.theory.losses._shared import Collective, check_pair, check_rows, check_temperature


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
        ValueError: if shapes differ, the temperature is not positive, or (on a CPU) a row is zero.

    References:
        Chen et al. (2020), Eq. (1).

    Examples:
        >>> z = torch.eye(2)  # two images, each in two equal views: one other view, two orthogonal ones
        >>> round(float(info_nce(z, z, temperature=1.0).exp()), 4)  # 1 + 2 / e
        1.7358
    """
    logits, other_view = _similarities(z1, z2, temperature, gather, "info_nce")
    return functional.cross_entropy(logits, other_view)


def attentive_info_nce(
    z1: Float[Tensor, "n k"],
    z2: Float[Tensor, "n k"],
    temperature: float,
    weights: Float[Tensor, " m"],
    gather: Collective | None = None,
) -> Float[Tensor, ""]:
    r"""Compute InfoNCE over all $2n$ views with a weight of its own for each anchor, taken as constant.

    $$\ell = -\sum_{a=1}^{2n} w_a\log\frac{e^{s_{a\,a^+}/\tau}}{\sum_{b\ne a}e^{s_{ab}/\tau}},\qquad \sum_aw_a = 1,$$

    with $s_{ab}$ and $a^+$ as in `info_nce`. A weight multiplies all of its anchor's term, attraction and repulsion.

    Args:
        z1, z2: embeddings of first and second views, shape (n, k) each, any float dtype; only directions matter.
        temperature: $\tau > 0$.
        weights: of the anchors, first views then second, shape (2n,), none negative and not all 0; only their ratios
            count. With `gather` they are those of the global batch, which is to say of gathered features. Equal ones
            give `info_nce`, to the last bit.
        gather: as for `info_nce`.

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: if shapes differ, the temperature is not positive, there is not one weight for each view, or (on a
            CPU) a row is zero, a weight is negative or not finite, or all are 0.

    References:
        Wang et al. (2023), the authors' published code; `def-attention`.

    Examples:
        >>> z = torch.eye(2)
        >>> round(float(attentive_info_nce(z, z, 1.0, torch.ones(4)).exp()), 4)  # as for `info_nce`
        1.7358
    """
    logits, other_view = _similarities(z1, z2, temperature, gather, "attentive_info_nce")
    if weights.shape != other_view.shape:
        expected = f"expected one weight for each of the {len(other_view)} views of the whole batch"
        raise ValueError(f"attentive_info_nce: {expected}, got {tuple(weights.shape)}; see batch_attention")
    if weights.device.type == "cpu" and not (weights.min() >= 0 and 0 < weights.sum() < math.inf):
        got = f"got {float(weights.min()):g} to {float(weights.max()):g}; use graph_attention.batch_attention"
        raise ValueError(f"attentive_info_nce: weights must be finite, none negative and not all 0, {got}")
    shares = (weights / weights.max()).detach().to(logits.dtype)  # of equal weights exactly 1, which keeps the last bit
    # every view is the class of one anchor, its partner; cross_entropy divides by the sum of its classes' weights
    return functional.cross_entropy(logits, other_view, weight=shares[other_view])


def uniformity(
    z1: Float[Tensor, "n k"], z2: Float[Tensor, "n k"], temperature: float, gather: Collective | None = None
) -> Float[Tensor, ""]:
    r"""Estimate the uniformity loss $\E_x\log\E_{x'}e^{s(x,x')/\tau}$ from one batch of positive pairs.

    $$\hat\ell = \frac1{2n}\sum_{a=1}^{2n}\log\frac1{2n-2}\sum_{b\notin\{a,\,a^+\}}e^{s_{ab}/\tau},$$

    with the cosines $s_{ab}$ of `info_nce`. A view and its partner are left out, since they are not independent of $a$:
    the mean inside the logarithm is without bias, the logarithm lies too low by a term of order $1/n$. `info_nce` keeps
    the partner in its sum, and sums where this takes a mean.

    Args:
        z1, z2: embeddings of first and second views, shape (n, k) each, any float dtype; only directions matter.
        temperature: $\tau > 0$.
        gather: as for `info_nce`.

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: if shapes differ, the temperature is not positive, there are fewer than two pairs, or (on a CPU) a
            row is zero.

    References:
        Wang and Isola (2020), section 4; the denominator is that of Yeh et al. (2022), decoupled.

    Examples:
        >>> z = torch.eye(2)  # all views of other images are orthogonal
        >>> float(uniformity(z, z, temperature=0.5))
        0.0
        >>> round(float(uniformity(z, z.flip(0), temperature=0.5).exp()), 4)  # equal and orthogonal: (e^2 + 1) / 2
        4.1945
    """
    logits, other_view = _similarities(z1, z2, temperature, gather, "uniformity")
    if len(logits) < 4:
        raise ValueError("uniformity: needs at least two pairs, since only views of different images repel")
    logits = logits.scatter(1, other_view[:, None], -torch.inf)
    return logits.logsumexp(1).mean() - math.log(len(logits) - 2)


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


def _similarities(
    z1: Tensor, z2: Tensor, temperature: float, gather: Collective | None, name: str
) -> tuple[Tensor, Tensor]:
    """Cosines over the temperature between all views, none with itself, and where each view's partner is."""
    check_pair(z1, z2, name)
    check_temperature(temperature, name)
    z1, z2 = check_rows(z1, f"{name}, first views"), check_rows(z2, f"{name}, second views")
    if gather is not None:
        z1, z2 = gather(z1), gather(z2)
    n = len(z1)
    u = functional.normalize(torch.cat([z1, z2]), dim=1)
    itself = torch.eye(2 * n, dtype=torch.bool, device=u.device)
    logits = (u @ u.T / temperature).masked_fill(itself, -torch.inf)
    return logits, torch.arange(2 * n, device=u.device).roll(n)
