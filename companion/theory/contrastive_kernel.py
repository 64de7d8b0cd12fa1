r"""The stepwise theory for kernel machines: the contrastive kernel, its modes and the embedding they give.

A kernel matrix $\mathcal K$ on $2n$ views, all first views before all second ones, and the swap $J$ of partners give
$\mathcal K_\Gamma = \frac1{2n}\mathcal K^{1/2}J\mathcal K^{1/2}$, which has the nonzero eigenvalues of $\Gamma$ in
feature space (`lem-same-spectrum`). Nothing here is inverted, so that $\mathcal K$ may be singular.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class KernelModes(NamedTuple):
    r"""Top modes of the contrastive kernel.

    Attributes:
        gamma: eigenvalues in decreasing signed order, shape (d,), float64.
        vectors: unit eigenvectors $b_j$ as columns, shape (2n, d); the entry of largest modulus is positive.
        root: $\mathcal K^{1/2}$, shape (2n, 2n).
    """

    gamma: Float[Tensor, " d"]
    vectors: Float[Tensor, "N d"]
    root: Float[Tensor, "N N"]


def contrastive_kernel(K: Float[Tensor, "N N"], check_order: bool = True) -> Float[Tensor, "N N"]:
    r"""Return the contrastive kernel matrix, $\mathcal K_\Gamma = \frac1{2n}\mathcal K^{1/2}J\mathcal K^{1/2}$.

    Args:
        K: kernel matrix of $2n$ views, partners $i$ and $n+i$; shape (2n, 2n), any float dtype, symmetric, positive
            semidefinite up to the square root of the precision.
        check_order: refuse a kernel whose views look interleaved, partners $2i$ and $2i+1$. A test on means, from
            $n = 8$; the weaker partners resemble each other, the more pairs it needs to notice.

    Returns:
        $\mathcal K_\Gamma$, shape (2n, 2n), float64, symmetric; $n$ positive and $n$ negative eigenvalues if
        $\mathcal K$ is positive definite.

    Raises:
        ValueError: if the size is odd, $\mathcal K$ is not finite, not symmetric or has a negative eigenvalue, or
            the views look interleaved.

    References:
        Simon et al. (2023), section 5; `eq-contrastive-kernel`, `lem-inertia`.

    Examples:
        >>> contrastive_kernel(torch.eye(2)).tolist()
        [[0.0, 0.5], [0.5, 0.0]]
    """
    return _contrast(_root(K, check_order))


def kernel_modes(K: Float[Tensor, "N N"], d: int, check_order: bool = True) -> KernelModes:
    r"""Return the top $d$ eigenpairs of $\mathcal K_\Gamma$ by signed value, and $\mathcal K^{1/2}$.

    Along the aligned trajectory the embedding is $s_j(t)\,\mathcal K^{1/2}b_j$ in column $j$, with `singular_values`.

    Args:
        K: kernel matrix, as in `contrastive_kernel`.
        d: number of modes, $1 \le d \le 2n$; they may be zero or negative.
        check_order: as in `contrastive_kernel`.

    Returns:
        The modes; a tuple that unpacks into `gamma, vectors, root`.

    Raises:
        ValueError: as `contrastive_kernel`, or if $d$ is not in $1..2n$.

    References:
        Simon et al. (2023), Proposition 5.1; `thm-kernel-flow`.

    Examples:
        >>> kernel_modes(torch.tensor([[5.0, 3.0], [3.0, 5.0]]), 2).gamma.round(decimals=6).tolist()
        [4.0, -1.0]
    """
    root = _root(K, check_order)
    if not 1 <= d <= len(K):
        raise ValueError(f"kernel_modes: d must lie in 1..{len(K)} (the number of views), got {d}")
    gamma, B = torch.linalg.eigh(_contrast(root))
    gamma, B = gamma.flip(0)[:d], B.flip(1)[:, :d]
    return KernelModes(gamma, B * B.gather(0, B.abs().argmax(0)[None]).sign(), root)


def kernel_embedding(K: Float[Tensor, "N N"], d: int, check_order: bool = True) -> Float[Tensor, "N d"]:
    r"""Return the training views' embedding at the end of the kernel flow, $\gamma_j^{-1/2}\,\mathcal K^{1/2}b_j$.

    It is the one of zero loss and least RKHS norm, up to a rotation of the $d$ outputs.

    Args:
        K: kernel matrix, as in `contrastive_kernel`.
        d: embedding dimension.
        check_order: as in `contrastive_kernel`.

    Returns:
        Rows are views, column $j$ is dimension $j$; shape (2n, d), float64.

    Raises:
        ValueError: as `contrastive_kernel`, or if fewer than $d$ modes are positive: above the trace of
            $\mathcal K$ times the precision of its dtype, below which rounding of a singular kernel makes modes.

    References:
        Simon et al. (2023), Proposition 5.1; `thm-kernel-flow`, `eq-kernel-embedding`, `prop-rkhs-norm`.

    Examples:
        >>> kernel_embedding(torch.tensor([[5.0, 3.0], [3.0, 5.0]]), 1).round(decimals=6).tolist()
        [[1.0], [1.0]]
    """
    gamma, B, root = _positive_modes(K, d, check_order)
    return root @ (B * gamma.rsqrt())


def kernel_embedding_at(
    K: Float[Tensor, "N N"], k_new: Float[Tensor, "N q"], d: int, check_order: bool = True
) -> Float[Tensor, "q d"]:
    r"""Return the embedding of new points, $f_j(x) = \frac1{2n}\gamma_j^{-3/2}\,b_j^\top\mathcal K^{1/2}J\,k(x)$.

    No inverse of $\mathcal K$ is taken. On the training views it equals `kernel_embedding`, in the same rotation.

    Args:
        K: kernel matrix of the training views, as in `contrastive_kernel`.
        k_new: kernel of training views and new points, $k(x)$ in columns; shape (2n, q).
        d: embedding dimension.
        check_order: as in `contrastive_kernel`.

    Returns:
        Rows are new points, shape (q, d), float64.

    Raises:
        ValueError: as `kernel_embedding`, or if `k_new` does not have one row a training view.

    References:
        The companion's own form of Simon et al. (2023), Proposition 5.1; `cor-out-of-sample`.

    Examples:
        >>> K = torch.tensor([[5.0, 3.0], [3.0, 5.0]])
        >>> kernel_embedding_at(K, torch.tensor([[1.0], [3.0]]), 1).round(decimals=6).tolist()
        [[0.5]]
    """
    if k_new.ndim != 2 or len(k_new) != len(K):
        raise ValueError(f"kernel_embedding_at: k_new needs a row for each of {len(K)} views, got {tuple(k_new.shape)}")
    gamma, B, root = _positive_modes(K, d, check_order)
    return k_new.double().T @ _swap(root @ B) * gamma**-1.5 / len(K)


def _positive_modes(K: Tensor, d: int, check_order: bool) -> KernelModes:
    modes = kernel_modes(K, len(K), check_order)
    noise = torch.finfo(K.dtype).eps * float(modes.root.square().sum())  # trace of K
    positive = int((modes.gamma > noise).sum())
    if not 1 <= d <= positive:
        allowed = f"d must lie in 1..{positive}" if positive else "there is no embedding"
        raise ValueError(f"kernel embedding: {positive} modes are positive beyond rounding, so {allowed}, got d={d}")
    return KernelModes(modes.gamma[:d], modes.vectors[:, :d], modes.root)


def _contrast(root: Tensor) -> Tensor:
    M = root @ _swap(root) / len(root)
    return (M + M.T) / 2


def _swap(M: Tensor) -> Tensor:
    return M.roll(len(M) // 2, 0)  # J M: the rows of the partners


def _root(K: Tensor, check_order: bool) -> Tensor:
    r"""Return $\mathcal K^{1/2}$ after checking the kernel; eigenvalues below zero by rounding count as zero."""
    if K.ndim != 2 or K.shape[0] != K.shape[1] or len(K) % 2 or len(K) == 0:
        raise ValueError(f"contrastive kernel: expected (2n, 2n), first views then second, got {tuple(K.shape)}")
    if not K.is_floating_point() or not K.isfinite().all():
        what = "inf or nan" if K.is_floating_point() else str(K.dtype)
        raise ValueError(f"contrastive kernel: expected finite numbers of a float dtype, got {what}")
    tolerance = torch.finfo(K.dtype).eps ** 0.5
    K = K.detach().double()
    gap = float((K - K.T).abs().max() / K.abs().max().clamp(min=1e-300))
    if gap > tolerance:
        raise ValueError(f"contrastive kernel: K is not symmetric (relative gap {gap:.1e}); pass (K + K.T) / 2")
    if check_order:
        _check_order(K)
    values, vectors = torch.linalg.eigh((K + K.T) / 2)
    if values[0] < -tolerance * values[-1]:
        raise ValueError(
            f"contrastive kernel: K has eigenvalues from {float(values[0]):.1e} to {float(values[-1]):.1e}; a kernel "
            "matrix is positive semidefinite, so check that rows and columns are the same views"
        )
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _check_order(K: Tensor) -> None:
    """Refuse views that look interleaved: 2i and 2i+1 alike, but i and n+i as unlike as 2i+1 and 2i+2."""
    n = len(K) // 2
    if n < 8:
        return
    norm = K.diagonal().clamp(min=1e-300).sqrt()
    far = 1 - K / torch.outer(norm, norm)  # half the squared distance of normalised features
    step = far.diagonal(1)
    even, odd, partner = step[::2], step[1::2], far.diagonal(n)
    gain = odd - even[: n - 1]
    near, stranger = float(even.mean()), float(odd.mean())
    if near < 0.5 * stranger:
        clear = _above_zero(gain, 4.0)
    else:  # strong augmentation: more evidence, in either half of the views
        clear = _above_zero(gain, 4 + 40 / n) and all(_above_zero(half, 2.0) for half in gain.tensor_split(2))
    if clear and partner.mean() > max(0.8 * stranger, (near + stranger) / 2):
        raise ValueError(
            "contrastive kernel: views look interleaved, 2i and 2i+1 are alike and i and n+i are not; stack all first "
            "views, then all second ones (K[order][:, order], order = 0, 2, .., 1, 3, ..), or pass check_order=False"
        )


def _above_zero(sample: Tensor, errors: float) -> bool:
    """Whether a mean is positive by more than so many standard errors."""
    return bool(sample.mean() > errors * sample.std() / len(sample) ** 0.5)
