r"""Noise and curvature at saturation, $q_\theta=p$, and how fast they part off it: exact sums over contexts.

Contexts $c$ have weights $w_c$, tokens the true law $p(v\mid c)$, and the model predicts
$q_\theta(\cdot\mid c)=\operatorname{softmax}z(c;\theta)$. With $g=-\nabla_\theta\log q_\theta(v\mid c)$,

$$\mathcal L=\E_c\E_{v\sim p}[-\log q_v],\qquad\Sigma_g=\operatorname{Cov}_{c,\,v\sim p}(g),\qquad
H=\nabla^2\mathcal L,\qquad G=\E_c\E_{v\sim q}\,gg^\top .$$

Here the Jacobian (contexts × tokens × parameters) must fit in memory; `companion.theory.curvature` estimates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jacfwd, jacrev, vmap

from companion.theory.curvature import Params, hessian, twice_differentiable

Logits = Callable[[Params, Tensor], Tensor]


@dataclass(frozen=True)
class Traces:
    """Three traces that agree at saturation, and what separates the first two.

    Attributes:
        hessian: of the Hessian of the loss.
        gauss_newton: of the Gauss-Newton matrix: squared gradients with labels of the model.
        observed: of the second moment of the gradients: squared gradients with labels of the data.
        logit_curvature: the sum of (q - p) times the Laplacian of the logits; hessian - gauss_newton.
    """

    hessian: float
    gauss_newton: float
    observed: float
    logit_curvature: float


@dataclass(frozen=True)
class Mismatch:
    """How far Hessian and gradient moment are apart, and the bounds on it.

    Attributes:
        gap: Frobenius norm of H minus the uncentred second moment of the gradients.
        relative: `gap` over the Frobenius norm of H.
        excess: loss above the floor, the mean divergence of q from p, in nats.
        chi_square: mean of the chi-square divergence of p from q.
        slope: the constant K of the bounds.
        bound: K times the root of `chi_square`.
        excess_bound: K times the root of (2 + 2 r / 3) `excess`, r + 1 the largest ratio p / q.
    """

    gap: float
    relative: float
    excess: float
    chi_square: float
    slope: float
    bound: float
    excess_bound: float


def cross_entropy(
    logits: Logits, params: Params, inputs: Tensor, truth: Float[Tensor, "n V"], weights: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    r"""Return $\mathcal L(\theta)=-\sum_cw_c\sum_vp(v\mid c)\log q_\theta(v\mid c)$ in nats, differentiable.

    Args:
        logits: function from parameters and one input to logits, shape (V,).
        params: parameters, float64.
        inputs: contexts, shape (n, ...).
        truth: $p(v\mid c)$, shape (n, V), rows of sum one.
        weights: $w_c$, shape (n,), of sum one.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: if truth or weights are no probabilities, or the shapes do not fit.

    Examples:
        >>> p, w, x = torch.tensor([[0.5, 0.5]]).double(), torch.ones(1).double(), torch.zeros(1).double()
        >>> law = lambda params, x: torch.stack([params["a"], 0 * params["a"]])
        >>> round(float(cross_entropy(law, {"a": torch.tensor(0.0).double()}, x, p, w)), 6)  # log 2
        0.693147
    """
    _check(inputs, truth, weights, "cross_entropy")
    log_q = vmap(lambda x: logits(params, x).log_softmax(0))(inputs)
    return -(weights[:, None] * truth * log_q).sum()


def floor(truth: Float[Tensor, "n V"], weights: Float[Tensor, " n"]) -> float:
    r"""Return $\mathcal L^*=-\sum_cw_c\sum_vp\log p$, the entropy of the tokens given their contexts, in nats.

    Examples:
        >>> round(floor(torch.tensor([[0.5, 0.5], [1.0, 0.0]]).double(), torch.tensor([0.5, 0.5]).double()), 6)
        0.346574
    """
    _check(truth, truth, weights, "floor")
    return float(-(weights[:, None] * torch.xlogy(truth, truth)).sum())


def excess(
    logits: Logits, params: Params, inputs: Tensor, truth: Float[Tensor, "n V"], weights: Float[Tensor, " n"]
) -> float:
    r"""Return $\mathcal L-\mathcal L^*=\E_c\mathrm{KL}(p\Vert q_\theta)$ in nats, without cancellation near zero.

    It is summed as $\sum_v q_v\,\varphi(p_v/q_v-1)$ with $\varphi(r)=(1+r)\log(1+r)-r\ge0$.

    Examples:
        >>> p, w, x = torch.tensor([[0.5, 0.5]]).double(), torch.ones(1).double(), torch.zeros(1).double()
        >>> law = lambda params, x: torch.stack([params["a"], 0 * params["a"]])
        >>> excess(law, {"a": torch.tensor(0.0).double()}, x, p, w)
        0.0
    """
    _check(inputs, truth, weights, "excess")
    q = vmap(lambda x: logits(params, x).softmax(0))(inputs)
    r = truth / q - 1
    phi = torch.special.xlog1py(1 + r, r) - r
    return float((weights[:, None] * q * phi).sum())


def noise_covariance(
    logits: Logits,
    params: Params,
    inputs: Tensor,
    truth: Float[Tensor, "n V"],
    weights: Float[Tensor, " n"],
    *,
    centred: bool = True,
) -> Float[Tensor, "P P"]:
    r"""Return $\Sigma_g=\E gg^\top-\E g\,\E g^\top$, the covariance of one sample's gradient, $c\sim w$ and $v\sim p$.

    Args:
        logits: function from parameters and one input to logits, shape (V,).
        params: parameters, float64; flattened in the order of the dictionary.
        inputs: contexts, shape (n, ...).
        truth: $p(v\mid c)$, shape (n, V).
        weights: $w_c$, shape (n,).
        centred: False for the second moment $\E gg^\top$ itself.

    Returns:
        The matrix, shape (P, P), symmetric, positive semidefinite.

    Raises:
        ValueError: as `cross_entropy`.

    References:
        Liu et al. (2023), lemma 4.2; `thm-flat-bartlett`.

    Examples:
        >>> p, w, x = torch.tensor([[0.5, 0.5]]).double(), torch.ones(1).double(), torch.zeros(1).double()
        >>> law = lambda params, x: torch.stack([params["a"], 0 * params["a"]])
        >>> noise_covariance(law, {"a": torch.tensor(0.0).double()}, x, p, w).tolist()  # q (1 - q)
        [[0.25]]
    """
    _check(inputs, truth, weights, "noise_covariance")
    g, _ = _gradients(logits, params, inputs)
    moment = torch.einsum("cv,cvi,cvj->ij", weights[:, None] * truth, g, g)
    mean = torch.einsum("cv,cvi->i", weights[:, None] * truth, g)
    return moment - torch.outer(mean, mean) if centred else moment


def gauss_newton(logits: Logits, params: Params, inputs: Tensor, weights: Float[Tensor, " n"]) -> Float[Tensor, "P P"]:
    r"""Return $G=\E_c\E_{v\sim q}\,gg^\top=\E_c\,J^\top(\operatorname{diag}q-qq^\top)J$, $J$ Jacobian of the logits.

    Args:
        logits: function from parameters and one input to logits, shape (V,).
        params: parameters, float64.
        inputs: contexts, shape (n, ...).
        weights: $w_c$, shape (n,).

    Returns:
        The matrix, shape (P, P), symmetric, positive semidefinite.

    Raises:
        ValueError: as `cross_entropy`.

    References:
        `cor-flat-cheap-trace`.

    Examples:
        >>> law = lambda params, x: torch.stack([params["a"] * x, 0 * x])
        >>> gauss_newton(law, {"a": torch.tensor(0.0).double()}, torch.tensor([2.0]).double(), torch.ones(1).double())
        tensor([[1.]], dtype=torch.float64)
    """
    g, q = _gradients(logits, params, inputs)
    _check(inputs, q, weights, "gauss_newton")
    return torch.einsum("cv,cvi,cvj->ij", weights[:, None] * q, g, g)


def traces(
    logits: Logits, params: Params, inputs: Tensor, truth: Float[Tensor, "n V"], weights: Float[Tensor, " n"]
) -> Traces:
    r"""Return $\operatorname{tr}H$, $\operatorname{tr}G$, $\E_p\lVert g\rVert^2$ and $\E_c\sum_v(q_v-p_v)\Delta z_v$.

    $$\operatorname{tr}H=\operatorname{tr}G+\E_c\sum_v(q_v-p_v)\,\operatorname{tr}\nabla^2_\theta z_v ,$$

    the last sum from the Hessians of the logits, not a difference. Arguments and errors: those of `cross_entropy`.

    References:
        The companion's own; `prop-flat-three-traces`.

    Examples:
        >>> law = lambda params, x: torch.stack([params["a"] ** 2, 0 * params["a"]])
        >>> p, w, x = torch.tensor([[0.25, 0.75]]).double(), torch.ones(1).double(), torch.zeros(1).double()
        >>> traces(law, {"a": torch.tensor(0.0).double()}, x, p, w)  # a saddle: no gradient, curvature only
        Traces(hessian=0.5, gauss_newton=0.0, observed=0.0, logit_curvature=0.5)
    """
    _check(inputs, truth, weights, "traces")
    g, q = _gradients(logits, params, inputs)
    squares = g.square().sum(2)
    second = _second(logits, params, inputs)
    laplacian = second.diagonal(dim1=2, dim2=3).sum(2)
    H = hessian(lambda p: cross_entropy(logits, p, inputs, truth, weights), params)

    def mean(law: Tensor, values: Tensor) -> float:
        return float((weights[:, None] * law * values).sum())

    return Traces(float(H.trace()), mean(q, squares), mean(truth, squares), mean(q - truth, laplacian))


def mismatch(
    logits: Logits, params: Params, inputs: Tensor, truth: Float[Tensor, "n V"], weights: Float[Tensor, " n"]
) -> Mismatch:
    r"""Return $\lVert H-\E gg^\top\rVert_F$ and its bounds by the distance from saturation.

    $$H-\E gg^\top=-\E_c\sum_v\Bigl(\frac{p_v}{q_v}-1\Bigr)\nabla^2q_v,\qquad
    \lVert H-\E gg^\top\rVert_F\le K\sqrt{\E_c\chi^2(p\Vert q)}\le K\sqrt{(2+\tfrac23r)(\mathcal L-\mathcal L^*)},$$

    $K^2=\E_c\sum_v\lVert\nabla^2q_v\rVert_F^2/q_v$ and $r=\max_{c,v}p_v/q_v-1$. Arguments and errors: those of
    `cross_entropy`; all V Hessians of every context must fit in memory.

    References:
        The companion's own; `prop-flat-off`.

    Examples:
        >>> law = lambda params, x: torch.stack([params["a"], 0 * params["a"]])
        >>> p, w, x = torch.tensor([[0.25, 0.75]]).double(), torch.ones(1).double(), torch.zeros(1).double()
        >>> found = mismatch(law, {"a": torch.tensor(0.0).double()}, x, p, w)
        >>> found.gap, found.chi_square, found.slope  # q'' = 0 at q = 1/2
        (0.0, 0.25, 0.0)
    """
    _check(inputs, truth, weights, "mismatch")
    H = hessian(lambda p: cross_entropy(logits, p, inputs, truth, weights), params)
    gap = float((H - noise_covariance(logits, params, inputs, truth, weights, centred=False)).norm())
    _, q = _gradients(logits, params, inputs)
    second = _second(lambda p, x: logits(p, x).softmax(0), params, inputs)
    w = weights[:, None]
    slope = float((w * second.square().sum((2, 3)) / q).sum().sqrt())
    chi = float((w * (truth - q).square() / q).sum())
    above = excess(logits, params, inputs, truth, weights)
    r = float((truth / q).max()) - 1
    return Mismatch(
        gap, gap / float(H.norm()), above, chi, slope, slope * chi**0.5, slope * ((2 + 2 * r / 3) * above) ** 0.5
    )


def _check(inputs: Tensor, truth: Tensor, weights: Tensor, name: str) -> None:
    """Refuse what is no law."""
    if truth.ndim != 2 or len(inputs) != len(truth) or weights.shape != truth.shape[:1]:
        found = f"{len(inputs)} contexts, truth {tuple(truth.shape)}, weights {tuple(weights.shape)}"
        raise ValueError(f"{name}: need n contexts, truth (n, V) and weights (n,), got {found}")
    for what, law in (("truth", truth), ("weights", weights[None])):
        gap = float((law.sum(1) - 1).abs().max())
        if not (law.min() >= 0 and gap <= 1e-8):
            found = f"smallest {float(law.min()):g}, sum off one by {gap:.1e}"
            raise ValueError(f"{name}: {what} must be probabilities, found {found}; divide by the sum, in float64")


def _flat(logits: Logits, params: Params) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """Return the logits as a function of one vector of parameters, and that vector."""
    sizes = [p.numel() for p in params.values()]

    def flat(theta: Tensor, x: Tensor) -> Tensor:
        parts = zip(params.items(), theta.split(sizes), strict=True)
        return logits({key: part.reshape(p.shape) for (key, p), part in parts}, x)

    return flat, torch.cat([p.detach().flatten() for p in params.values()])


def _gradients(logits: Logits, params: Params, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return g of every context and token, shape (n, V, P), and the predictions, shape (n, V)."""
    flat, theta = _flat(logits, params)
    with torch.no_grad():
        J = vmap(jacrev(flat), (None, 0))(theta, inputs)
        q = vmap(flat, (None, 0))(theta, inputs).softmax(1)
    return torch.einsum("cv,cvi->ci", q, J)[:, None] - J, q


def _second(function: Logits, params: Params, inputs: Tensor) -> Tensor:
    """Return the Hessian of every output at every context, shape (n, V, P, P)."""
    flat, theta = _flat(function, params)
    with twice_differentiable():
        return vmap(jacfwd(jacrev(flat)), (None, 0))(theta, inputs)
