r"""A language with one masked token whose minimisers, their flatness and their transfer are known in closed form.

A context $z\in\{\pm1\}^d$ is uniform, the masked token is $x\in\{\pm1\}$ with $\Pr(x=1\mid z)=\sigma(\beta^\top z)$: a
soft majority of the key tokens, those with $\beta_j\ne0$. The model $\sigma(a^\top Wz)$ has $h$ neurons. It is right on
every context iff $W^\top a=\beta$, and these minimisers form a manifold $\mathcal M$ of codimension $d$, on which

$$H = J^\top MJ,\quad J(\delta a,\delta W)=W^\top\delta a+\delta W^\top a,\quad M=\mathbb E[s(z)zz^\top],\quad
s(z)=\sigma'(\beta^\top z) .$$
"""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

__all__ = [
    "SoftMajority",
    "Point",
    "soft_majority",
    "start",
    "excess_loss",
    "project",
    "transverse",
    "rescale",
]

LARGEST = 16  # tokens of a context; there are 2^d of them


@dataclass(frozen=True)
class SoftMajority:
    r"""The language: all contexts, the law of the masked token, and the moments that flatness depends on.

    Attributes:
        beta: $\beta$, shape (d,).
        contexts: all $z$, shape (n, d), $n = 2^d$, entries $\pm1$.
        truth: $\Pr(x=1\mid z)$, shape (n,).
        M: $\mathbb E[s(z)zz^\top]$, shape (d, d), positive definite.
        labels: the downstream label of each context, $\mathrm{sign}(\beta^\top z)$, shape (n,), 0 for a tie.
        floor: entropy of the masked token given its context, $\mathcal L^*$ in nats.
    """

    beta: Float[Tensor, " d"]
    contexts: Float[Tensor, "n d"]
    truth: Float[Tensor, " n"]
    M: Float[Tensor, "d d"]
    labels: Float[Tensor, " n"]
    floor: float

    @property
    def S0(self) -> float:
        r"""$S_0=\mathbb E\,s(z)$, each diagonal entry of $M$."""
        return float(self.M[0, 0])

    @property
    def m(self) -> float:
        r"""$m=\mathrm{tr}\,M=dS_0$."""
        return float(self.M.trace())

    @property
    def strength(self) -> float:
        r"""$\beta^\top M\beta$."""
        return float(self.beta @ self.M @ self.beta)


class Point(NamedTuple):
    r"""Parameters $\theta=(a,W)$, or anything of their shape (a gradient, the diagonal of $H$); leading axes are free.

    Attributes:
        a: output weights, shape (..., h).
        W: input weights, shape (..., h, d); the representation of a context is $Wz$.
    """

    a: Tensor
    W: Tensor


def soft_majority(beta: Float[Tensor, " d"]) -> SoftMajority:
    r"""Return the language of a vector of weights.

    Args:
        beta: $\beta\ne0$, shape (d,), $d\le16$, any float dtype.

    Returns:
        The language, float64.

    Raises:
        ValueError: if there are no or too many tokens, or $\beta$ is zero or not finite. For $\beta=0$ the minimisers
            are no manifold: $a=0$ with any $W$, and $W^\top a=0$, cross.

    References:
        The companion's own language; `prop-flat-majority-trace`.

    Examples:
        >>> language = soft_majority(torch.tensor([2.0]).log())  # two contexts, probabilities 2/3 and 1/3
        >>> [round(x, 4) for x in (*language.truth.tolist(), language.m * 9)]
        [0.6667, 0.3333, 2.0]
    """
    if beta.ndim != 1 or not 1 <= len(beta) <= LARGEST:
        raise ValueError(f"soft_majority: beta must be a vector of 1 to {LARGEST} weights, got {tuple(beta.shape)}")
    beta = beta.detach().double()
    if not beta.isfinite().all() or not beta.any():
        raise ValueError(f"soft_majority: beta must be finite and not zero, got {beta.tolist()}")
    z = torch.tensor(list(product((1.0, -1.0), repeat=len(beta))), dtype=torch.float64, device=beta.device)
    logits = z @ beta
    p = logits.sigmoid()
    floor = float((functional.softplus(logits) - p * logits).mean())
    spread = logits.abs().max()
    labels = torch.where(logits.abs() > 1e-12 * spread, logits.sign(), 0.0)
    M = (z * (p * (1 - p))[:, None]).T @ z / len(z)
    return SoftMajority(beta, z, p, (M + M.T) / 2, labels, floor)


def start(language: SoftMajority, hidden: int, generator: torch.Generator, spread: float = 1.0) -> Point:
    r"""Draw a minimiser: $a_i\sim N(0,1/h)$, and $W_\perp$ Gaussian of variance ``spread`` $^2/d$, orthogonal to $a$.

    Args:
        language: the language.
        hidden: number of neurons $h\ge1$.
        generator: source of randomness.
        spread: size of the part of $W$ that the prediction does not see.

    Returns:
        A point of $\mathcal M$, shapes (h,) and (h, d), float64.

    Raises:
        ValueError: if there is no neuron.

    References:
        The companion's own choice.

    Examples:
        >>> language = soft_majority(torch.tensor([1.0, 1.0]))
        >>> a, W = start(language, 5, torch.Generator().manual_seed(0))
        >>> torch.allclose(W.T @ a, language.beta)
        True
    """
    if hidden < 1:
        raise ValueError(f"start: there must be at least one neuron, got {hidden}")
    options = {"generator": generator, "dtype": torch.float64, "device": generator.device}
    a = torch.randn(hidden, **options) / hidden**0.5
    W = spread * torch.randn(hidden, len(language.beta), **options) / len(language.beta) ** 0.5
    return Point(a, W + torch.outer(a, language.beta.to(a) - W.T @ a) / a.square().sum())


def excess_loss(point: Point, language: SoftMajority) -> Float[Tensor, "*b"]:
    r"""Return $\mathcal L-\mathcal L^*=\mathbb E_z\mathrm{KL}$, exactly, a sum over all contexts.

    Args:
        point: parameters, any leading axes and float dtype.
        language: the language.

    Returns:
        Nats, non-negative up to rounding, shape of the leading axes, float64.

    Raises:
        ValueError: if the shapes of the point do not fit each other or the language.

    References:
        `prop-flat-majority-trace`.

    Examples:
        >>> language = soft_majority(torch.tensor([1.0, 1.0]))
        >>> float(excess_loss(Point(torch.tensor([2.0]), torch.tensor([[0.5, 0.5]])), language))
        0.0
    """
    a, W = fitting(point, language, "excess_loss")
    logits, p = _mapped(a, W) @ language.contexts.T, language.truth
    return (functional.softplus(logits) - p * logits).mean(-1) - language.floor


def project(point: Point, language: SoftMajority) -> Point:
    r"""Return the point of $\mathcal M$ with the same $a$ and the nearest $W$, a correction of rank one.

    $$W\leftarrow W+\frac{a(\beta-W^\top a)^\top}{\lVert a\rVert^2} .$$

    Args:
        point: parameters with $a\ne0$, any leading axes and float dtype.
        language: the language.

    Returns:
        The corrected point, float64.

    Raises:
        ValueError: if some $a$ is zero or not finite, or shapes do not fit.

    References:
        `prop-flat-majority-trace`.

    Examples:
        >>> language = soft_majority(torch.tensor([1.0, 0.0]))
        >>> project(Point(torch.tensor([2.0]), torch.tensor([[0.3, 0.1]])), language).W.tolist()
        [[0.5, 0.0]]
    """
    a, W = fitting(point, language, "project")
    square = a.square().sum(-1)[..., None, None]
    if not (square > 0).all():
        raise ValueError("project: no minimiser has a = 0 (or NaN); found one such point, restart it from another a")
    return Point(a, W + a[..., :, None] * (language.beta - _mapped(a, W))[..., None, :] / square)


def transverse(point: Point) -> Float[Tensor, "*b h d"]:
    r"""Return $W_\perp=W-aa^\top W/\lVert a\rVert^2$, what the prediction does not see of the representation.

    Args:
        point: parameters with $a\ne0$; any leading axes.

    Returns:
        $W_\perp$, with $a^\top W_\perp=0$, shape (..., h, d).

    References:
        `thm-flat-majority`.

    Examples:
        >>> transverse(Point(torch.tensor([2.0, 0.0]), torch.tensor([[1.0], [3.0]]))).tolist()
        [[0.0], [3.0]]
    """
    a, W = point
    return W - a[..., :, None] * _mapped(a, W)[..., None, :] / a.square().sum(-1)[..., None, None]


def rescale(point: Point, factor: float) -> Point:
    r"""Return $(a/c,\,cW)$, the same function with another trace: flatness depends on the parametrisation.

    Args:
        point: parameters.
        factor: $c\ne0$.

    Returns:
        The rescaled parameters.

    Raises:
        ValueError: if the factor is zero.

    References:
        `prop-flat-not-invariant`.

    Examples:
        >>> [x.tolist() for x in rescale(Point(torch.tensor([2.0]), torch.tensor([[3.0]])), 2.0)]
        [[1.0], [[6.0]]]
    """
    if factor == 0:
        raise ValueError("rescale: the factor must not be zero")
    return Point(point.a / factor, point.W * factor)


def fitting(point: Point, language: SoftMajority, where: str) -> Point:
    """Return the point in float64 without gradients; complain where shapes do not fit."""
    a, W = point
    if W.ndim < 2 or a.shape != W.shape[:-1] or W.shape[-1] != len(language.beta):
        raise ValueError(
            f"{where}: expected a of shape (..., h) and W of (..., h, {len(language.beta)}), "
            f"found {tuple(a.shape)} and {tuple(W.shape)}"
        )
    return Point(a.detach().to(language.beta), W.detach().to(language.beta))


def minimiser(point: Point, language: SoftMajority, where: str) -> Point:
    """As `fitting`; complain if the point does not lie on the manifold."""
    point = fitting(point, language, where)
    off = (_mapped(*point) - language.beta).abs()
    if not (off <= 1e-6 * (1 + language.beta.abs().max())).all():
        raise ValueError(
            f"{where}: expected minimisers, W^T a = beta, found a difference of {float(off.max()):g}; "
            "pass the point through project first"
        )
    return point


def _mapped(a: Tensor, W: Tensor) -> Tensor:
    """W^T a, shape (..., d)."""
    return (a[..., None, :] @ W).squeeze(-2)
