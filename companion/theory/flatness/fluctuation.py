r"""How far SGD hovers above the minimisers: the stationary covariance of a quadratic well whose noise is its curvature.

Near $\mathcal M$ the normal deviation $v$ obeys $v\leftarrow(I-\eta H)v-\eta\xi$ with $\mathrm{Cov}(\xi)=H/B$. Both
laws below are exact for this linear recursion, the first one for its diffusion limit.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["stationary_covariance", "stationary_excess"]

Law = Literal["diffusion", "discrete"]


def stationary_covariance(
    H: Float[Tensor, "P P"], learning_rate: float, batch: int = 1, law: Law = "discrete", null: float = 1e-10
) -> Float[Tensor, "P P"]:
    r"""Return the stationary covariance of the deviation in the normal space, the range of $H$.

    $$S_{\rm diffusion}=\frac\eta{2B}P_N,\qquad S_{\rm discrete}=\frac\eta B(2I-\eta H)^{-1}P_N .$$

    They solve $HS+SH=\frac\eta BH$ and $S=(I-\eta H)S(I-\eta H)+\frac{\eta^2}BH$.

    Args:
        H: Hessian at the minimiser, symmetric, positive semidefinite, shape (P, P).
        learning_rate: $\eta>0$; the discrete law needs $\eta\lambda_{\max}<2$.
        batch: $B\ge1$.
        law: "diffusion" or "discrete".
        null: eigenvalues below this share of the largest count as zero.

    Returns:
        $S$, shape (P, P), float64.

    Raises:
        ValueError: if $H$ is zero, not symmetric or has a negative eigenvalue, an argument is out of its range, or
            $\eta\lambda_{\max}\ge2$, where the discrete recursion has no stationary law.

    References:
        Mandt, Hoffman and Blei (2017) for the diffusion, with noise $H$; the discrete law is the companion's
        own; `prop-flat-fluctuation`.

    Examples:
        >>> H = torch.diag(torch.tensor([1.0, 0.0]))
        >>> [stationary_covariance(H, 1.0, law=law).diagonal().tolist() for law in ("diffusion", "discrete")]
        [[0.5, 0.0], [1.0, 0.0]]
    """
    _, vectors, weights = _modes(H, learning_rate, batch, law, null)
    return (vectors * weights) @ vectors.T


def stationary_excess(H: Float[Tensor, "P P"], learning_rate: float, batch: int = 1, law: Law = "discrete") -> float:
    r"""Return the excess loss $\frac12\mathrm{tr}(HS)$ of the stationary law.

    $$\frac{\eta}{4B}\mathrm{tr}\,H\quad\text{(diffusion)},\qquad
    \frac\eta{2B}\mathrm{tr}\bigl[H(2I-\eta H)^{-1}\bigr]\quad\text{(discrete)} .$$

    Args:
        H: as for `stationary_covariance`.
        learning_rate: $\eta>0$.
        batch: $B\ge1$.
        law: "diffusion" or "discrete".

    Returns:
        Nats above the floor, of the iterate itself.

    Raises:
        ValueError: as `stationary_covariance`.

    References:
        The companion's own; `prop-flat-fluctuation`.

    Examples:
        >>> H = torch.diag(torch.tensor([1.0, 1.0, 0.0]))
        >>> [stationary_excess(H, 1.0, law=law) for law in ("diffusion", "discrete")]
        [0.5, 1.0]
    """
    values, _, weights = _modes(H, learning_rate, batch, law, 1e-10)
    return float((values * weights).sum() / 2)


def _modes(H: Tensor, learning_rate: float, batch: int, law: str, null: float) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, eigenvectors and the variances along them."""
    if law not in ("diffusion", "discrete"):
        raise ValueError(f'stationary law: expected "diffusion" or "discrete", found {law!r}')
    if batch < 1 or not learning_rate > 0:
        raise ValueError(f"stationary law: expected batch >= 1 and a positive rate, got {batch} and {learning_rate}")
    H = H.detach().double()
    if not torch.allclose(H, H.T, rtol=1e-8, atol=1e-12 * float(H.abs().max())):
        raise ValueError("stationary law: H is not symmetric")
    values, vectors = torch.linalg.eigh(H)
    largest = float(values[-1])
    if not largest > 0 or float(values[0]) < -1e-8 * largest:
        raise ValueError(
            f"stationary law: expected a Hessian at a minimum, not zero; found eigenvalues from {float(values[0]):g} "
            f"to {largest:g}"
        )
    if law == "discrete" and learning_rate * largest >= 2:
        raise ValueError(
            f"stationary law: the step diverges, rate times largest eigenvalue is {learning_rate * largest:g}; "
            f"expected below 2, lower the rate below {2 / largest:g}"
        )
    gain = 2 - learning_rate * values if law == "discrete" else torch.full_like(values, 2.0)
    weights = torch.where(values > null * largest, learning_rate / batch / gain, 0.0)
    return values, vectors, weights
