"""Losses without negatives: a view, or its prediction, against the other view or what is remembered of the image."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from companion.theory.losses._shared import check_pair, check_rows


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
    check_pair(prediction, target, "byol")
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    p, t = prediction.to(dtype), (target.detach() if stop_gradient else target).to(dtype)
    if not normalize:
        return (p - t).square().sum(1).mean() / 2
    p, t = (functional.normalize(z, dim=1) for z in (p, t))
    return 2 - 2 * (p * t).sum(1).mean()


def alignment(z1: Float[Tensor, "n k"], z2: Float[Tensor, "n k"], *, stop_gradient: bool = False) -> Float[Tensor, ""]:
    r"""Compute the alignment loss of a batch, the mean of $\frac12\lVert z_i - z_i^+\rVert^2$ over its pairs.

    Args:
        z1, z2: embeddings of first and second views, shape (n, k) each, any float dtype; of unit length where that is
            wanted.
        stop_gradient: whether each view takes the other as constant, both ways, mean of the two. The loss keeps its
            value, and its gradient is halved.

    Returns:
        The loss, a scalar, in float32 where the embeddings are of lower precision; of several workers take the mean.

    Raises:
        ValueError: if shapes differ.

    References:
        Wang et al. (2023), slides, alignment as graph convolution; `prop-laplacian-form`.

    Examples:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> float(alignment(z, z)), float(alignment(z, z.flip(0)))
        (0.0, 2.5)
    """
    check_pair(z1, z2, "alignment")
    if not stop_gradient:
        return byol(z1, z2, stop_gradient=False, normalize=False)
    return (byol(z1, z2, normalize=False) + byol(z2, z1, normalize=False)) / 2


def simsiam(
    p1: Float[Tensor, "n k"], p2: Float[Tensor, "n k"], z1: Float[Tensor, "n k"], z2: Float[Tensor, "n k"]
) -> Float[Tensor, ""]:
    r"""Compute the SimSiam loss, $-\frac1{2n}\sum_i\bigl[\cos\angle(p_i, z_i^+) + \cos\angle(p_i^+, z_i)\bigr]$.

    Args:
        p1, p2: predictions from the first and from the second views, shape (n, k) each, any float dtype.
        z1, z2: embeddings of the first and of the second views, taken as constant, same shape.

    Returns:
        The loss, a scalar, in float32 where the predictions are of lower precision; of several workers take the mean.

    Raises:
        ValueError: if shapes differ or (on a CPU) a row is zero.

    References:
        Chen and He (2021), Eqns. (1) to (4).

    Examples:
        >>> z1, z2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
        >>> float(simsiam(z2, z1, z1, z2)), float(simsiam(z1, z1, z1, z2))
        (-1.0, -0.5)
    """
    _check_all("simsiam", p1, p2, z1, z2)
    return (_opposite(p1, z2, "simsiam") + _opposite(p2, z1, "simsiam")) / 2


def multi_stage(
    p1: Float[Tensor, "n k"],
    p2: Float[Tensor, "n k"],
    z1: Float[Tensor, "n k"],
    z2: Float[Tensor, "n k"],
    memory: Float[Tensor, "stages n k"],
    stored: Int64[Tensor, " n"] | None = None,
    *,
    current: bool = True,
) -> Float[Tensor, ""]:
    r"""Compute the SimSiam loss against the mean of what several stages of training said of an image.

    $$\ell = -\frac1{2n}\sum_i\bigl[\cos\angle(p_i, t_i^+) + \cos\angle(p_i^+, t_i)\bigr],\qquad
    t_i = \frac1{1+s_i}\Bigl(z_i + \sum_{j=1}^{s_i}M_{ji}\Bigr),$$

    where $M_{ji}$ is the embedding of image i that was stored j visits ago and $s_i$ the number of those. Nothing is
    normalised before the mean. With one stored stage that is the target of the authors' code, half the other view and
    half the memory. Without the current stage it is that of their slides: $t_i$ is the mean of the stored alone.

    Args:
        p1, p2: predictions from the first and from the second views, shape (n, k) each, any float dtype.
        z1, z2: embeddings of the first and of the second views, taken as constant, same shape.
        memory: embeddings of the same n images that earlier stages left, newest first, shape (stages, n, k), constant.
        stored: $s_i$, how many of them, from the first on, are there, (n,); None for all. An image with none has the
            other view for its target, as in `simsiam`.
        current: whether the other view's embedding is one of the stages.

    Returns:
        The loss, a scalar, in float32 where the predictions are of lower precision; of several workers take the mean.

    Raises:
        ValueError: if shapes differ, the memory is not one of these images, or (on a CPU) a row of a prediction or
            a target is zero.

    References:
        Wang et al. (2023), slides, multi-stage aggregation, and the authors' published code; `def-multi-stage`.

    Examples:
        >>> z1, z2, M = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[[2.0, 1.0]]])
        >>> round(float(multi_stage(z1 + z2, z1, z1, z2, M)), 4)  # the targets lie along (1, 1) and (3, 1)
        -0.9743
        >>> round(float(multi_stage(M[0], M[0], z1, z2, M, current=False)), 4)
        -1.0
    """
    _check_all("multi_stage", p1, p2, z1, z2)
    if memory.ndim != 3 or memory.shape[1:] != z1.shape or (stored is not None and stored.shape != z1.shape[:1]):
        expected = f"expected memory (stages, {z1.shape[0]}, {z1.shape[1]}) and one number stored of each image"
        found = f"{tuple(memory.shape)} and {None if stored is None else tuple(stored.shape)}"
        raise ValueError(f"multi_stage: {expected}, got {found}")
    stages = torch.arange(len(memory), device=z1.device)
    there = stages[:, None] < (len(memory) if stored is None else stored)  # (stages, n) or (stages, 1)
    total = torch.where(there[:, :, None], memory.detach(), 0).sum(0)  # (n, k)
    count = there.sum(0)[:, None]  # (n, 1) or (1, 1)
    own = torch.ones_like(count) if current else (count == 0).to(count)
    t1, t2 = ((own * z.detach() + total) / (own + count) for z in (z1, z2))
    return (_opposite(p1, t2, "multi_stage") + _opposite(p2, t1, "multi_stage")) / 2


def _opposite(prediction: Tensor, target: Tensor, name: str) -> Tensor:
    """Minus the mean cosine of rows, the target held."""
    check_rows(prediction, f"{name}, a prediction")
    check_rows(target, f"{name}, a target")
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return -functional.cosine_similarity(prediction.to(dtype), target.detach().to(dtype)).mean()


def _check_all(name: str, p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> None:
    """Predictions and embeddings of both views: all of one shape."""
    for view in (p2, z1, z2):
        check_pair(p1, view, name)
