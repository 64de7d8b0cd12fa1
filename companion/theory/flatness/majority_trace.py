r"""How flat a minimiser of the soft majority is, and which ones are flattest, by two measures.

On $\mathcal M$ the diagonal of the Hessian is, neuron $i$ with output weight $a_i$ and input weights $w_i$,

$$H_{a_i}=w_i^\top Mw_i,\qquad H_{W_{ij}}=a_i^2S_0 .$$

Its sum is the trace, which the noise of SGD lowers. The sum of its roots is what a heuristic says that Adam lowers.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.flatness.soft_majority import Point, SoftMajority, minimiser

__all__ = [
    "hessian",
    "trace",
    "flattest",
    "flattest_trace",
    "diagonal",
    "root_trace",
    "single_neuron",
    "least_root_trace",
    "single_neuron_trace",
]


def hessian(point: Point, language: SoftMajority) -> Float[Tensor, "*b P P"]:
    r"""Return the Hessian of the loss at a minimiser, $H=J^\top MJ$, of rank $d$; parameters in the order $a$, $W$.

    Args:
        point: a point of $\mathcal M$; any leading axes.
        language: the language.

    Returns:
        $H$, shape (..., P, P), $P=h+hd$, rows of $W$ one after the other, float64.

    Raises:
        ValueError: if the point is not a minimiser, or shapes do not fit.

    References:
        `prop-flat-majority-trace`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> language = soft_majority(torch.tensor([2.0]).log())  # M = 2/9
        >>> H = 9 * hessian(Point(torch.tensor([1.0]).double(), language.beta[None]), language)
        >>> [round(float(x), 4) for x in H[1]]
        [1.3863, 2.0]
    """
    a, W = minimiser(point, language, "hessian")
    d = W.shape[-1]
    eye = torch.eye(d, dtype=W.dtype, device=W.device)
    by_W = (a[..., None, :, None] * eye[:, None, :]).flatten(-2)  # (..., d, h d)
    J = torch.cat([W.mT, by_W], -1)
    return J.mT @ language.M @ J


def trace(point: Point, language: SoftMajority) -> Float[Tensor, "*b"]:
    r"""Return the trace of the Hessian at a minimiser, $\lVert a\rVert^2\,m+\mathrm{tr}(WMW^\top)$.

    Args:
        point: a point of $\mathcal M$; any leading axes.
        language: the language.

    Returns:
        $\mathrm{tr}\,H$, shape of the leading axes, float64.

    Raises:
        ValueError: if the point is not a minimiser (`project` it first), or shapes do not fit.

    References:
        `prop-flat-majority-trace`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> language = soft_majority(torch.tensor([2.0]).log())  # M = 2/9
        >>> point = Point(torch.tensor([1.0, 0.0]).double(), torch.stack([language.beta, torch.tensor([3.0])]))
        >>> round(4.5 * float(trace(point, language)) - 2.0**0 - 9, 4)  # (log 2)^2
        0.4805
    """
    a, W = minimiser(point, language, "trace")
    return a.square().sum(-1) * language.m + ((W @ language.M) * W).sum((-2, -1))


def flattest(language: SoftMajority, direction: Float[Tensor, "*b h"]) -> Point:
    r"""Return the flattest minimiser along a direction of $a$: nothing is transverse, and the norm balances.

    $$W=\frac{a\beta^\top}{\lVert a\rVert^2},\qquad\lVert a\rVert^4=\frac{\beta^\top M\beta}{m} .$$

    Args:
        language: the language.
        direction: of $a$, not zero, shape (..., h), any float dtype.

    Returns:
        The point, float64. These are all flattest minimisers, a sphere $S^{h-1}$.

    Raises:
        ValueError: if a direction is zero or not finite.

    References:
        The companion's own; `thm-flat-majority`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> language = soft_majority(torch.tensor([2.0]))  # one token: ||a||^4 = beta^2
        >>> [x.tolist() for x in flattest(language, torch.tensor([0.0, -3.0]))]
        [[0.0, -1.4142135623730951], [[0.0], [-1.4142135623730951]]]
    """
    length = torch.linalg.vector_norm(direction.double(), dim=-1, keepdim=True)
    if not (length > 0).all() or not length.isfinite().all():
        raise ValueError("flattest: directions must be finite and not zero")
    square = (language.strength / language.m) ** 0.5
    a = direction.double() / length * square**0.5
    return Point(a, a[..., :, None] * language.beta / square + 0.0)


def flattest_trace(language: SoftMajority) -> float:
    r"""Return the least trace of the Hessian among all minimisers, $2\sqrt{m\,\beta^\top M\beta}$.

    Args:
        language: the language.

    Returns:
        The minimum, reached at `flattest` and nowhere else.

    References:
        The companion's own; `thm-flat-majority`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> language = soft_majority(torch.tensor([2.0]).log())  # m = 2/9 and beta = log 2
        >>> round(flattest_trace(language) * 9 / 4, 4)
        0.6931
    """
    return 2 * (language.m * language.strength) ** 0.5


def diagonal(point: Point, language: SoftMajority) -> Point:
    r"""Return the diagonal of the Hessian at a minimiser, $w_i^\top Mw_i$ for $a_i$ and $a_i^2S_0$ for $W_{ij}$.

    Args:
        point: a point of $\mathcal M$; any leading axes.
        language: the language.

    Returns:
        The second derivatives in the shape of the parameters, float64.

    Raises:
        ValueError: if the point is not a minimiser, or shapes do not fit.

    References:
        `prop-flat-root-trace`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> language = soft_majority(torch.tensor([2.0]).log())  # M = 2/9
        >>> round(9 * float(diagonal(Point(torch.tensor([1.0]), language.beta[None]), language).W), 4)
        2.0
    """
    a, W = minimiser(point, language, "diagonal")
    return Point(((W @ language.M) * W).sum(-1), (a.square() * language.S0)[..., None].expand_as(W))


def root_trace(point: Point, language: SoftMajority, epsilon: float = 0.0) -> Float[Tensor, "*b"]:
    r"""Return $\sum_i\sqrt{H_{ii}}$ at a minimiser; with Adam's $\epsilon$, the potential that belongs to it.

    $$R_\epsilon=\sum_i\Bigl[\sqrt{H_{ii}}-\epsilon\log\bigl(1+\sqrt{H_{ii}}/\epsilon\bigr)\Bigr] ,$$

    which is smooth, tends to the root trace as $\epsilon\to0$, and to $\mathrm{tr}\,H/(2\epsilon)$ as it grows.

    Args:
        point: a point of $\mathcal M$; any leading axes.
        language: the language.
        epsilon: $\epsilon\ge0$.

    Returns:
        The value, shape of the leading axes, float64.

    Raises:
        ValueError: if the point is not a minimiser, or shapes do not fit.

    References:
        The companion's own; `prop-flat-root-trace`, and `prop-flat-adam` for $R_\epsilon$.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> language = soft_majority(torch.tensor([2.0]).log())  # M = 2/9, two parameters at a = W = sqrt(beta)
        >>> root = language.beta.sqrt()
        >>> round(float(root_trace(Point(root, root[None]), language) / (2 * root * (2 / 9) ** 0.5)), 6)
        1.0
    """
    total = torch.zeros((), dtype=language.beta.dtype, device=language.beta.device)
    for curvature, axes in zip(diagonal(point, language), ((-1,), (-2, -1)), strict=True):
        roots = curvature.sqrt()
        if epsilon:
            roots = roots - epsilon * torch.log1p(roots / epsilon)
        total = total + roots.sum(axes)
    return total


def single_neuron(language: SoftMajority, hidden: int, neuron: int = 0, sign: float = 1.0) -> Point:
    r"""Return a minimiser of least root trace: one neuron does all, $a_i^2=\sqrt{\beta^\top M\beta}/(d\sqrt{S_0})$.

    Args:
        language: the language.
        hidden: number of neurons $h$.
        neuron: the one that is not zero.
        sign: of its output weight.

    Returns:
        The point, shapes (h,) and (h, d), float64. There are $2h$ of them.

    References:
        The companion's own; `prop-flat-root-trace`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> language = soft_majority(torch.tensor([4.0]))  # one token: a^2 = beta
        >>> [x.tolist() for x in single_neuron(language, 2)]
        [[2.0, 0.0], [[2.0], [0.0]]]
    """
    a = torch.zeros(hidden, dtype=language.beta.dtype, device=language.beta.device)
    W = a[:, None].repeat(1, len(language.beta))
    square = language.strength**0.5 / (len(language.beta) * language.S0**0.5)
    a[neuron] = sign * square**0.5
    W[neuron] = language.beta / a[neuron]
    return Point(a, W)


def least_root_trace(language: SoftMajority) -> float:
    r"""Return the least $\sum_i\sqrt{H_{ii}}$ among all minimisers, $2\sqrt{d\sqrt{S_0}\sqrt{\beta^\top M\beta}}$.

    Args:
        language: the language.

    Returns:
        The minimum, reached at `single_neuron` and nowhere else.

    References:
        The companion's own; `prop-flat-root-trace`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> language = soft_majority(torch.tensor([2.0]).log())  # 2 sqrt(M beta)
        >>> round(least_root_trace(language) ** 2 * 9 / 8, 4)
        0.6931
    """
    return 2 * (len(language.beta) * (language.S0 * language.strength) ** 0.5) ** 0.5


def single_neuron_trace(language: SoftMajority) -> float:
    r"""Return the trace where the root trace is least, $(d+1)\sqrt{S_0\,\beta^\top M\beta}$.

    It is $(d+1)/(2\sqrt d)$ times `flattest_trace`.

    Args:
        language: the language.

    Returns:
        The trace of the Hessian at `single_neuron`.

    References:
        The companion's own; `prop-flat-root-trace`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> language = soft_majority(torch.ones(4))
        >>> single_neuron_trace(language) / flattest_trace(language)
        1.25
    """
    return (len(language.beta) + 1) * (language.S0 * language.strength) ** 0.5
