r"""One model from many: the average of their weights (soup) against the average of their predictions (ensemble).

With weights $w_i$, $\bar\theta=\sum_iw_i\theta_i$ and $\delta_i=\theta_i-\bar\theta$, to second order in the distances

$$\mathcal L_{\rm soup}-\mathcal L_{\rm ens}\approx\tfrac12\sum_iw_i\,\delta_i^\top(G-H)\,\delta_i ,$$

$H$ the Hessian of the loss and $G$ its Gauss-Newton part, both at the soup: at saturation, where they are equal, a soup
is as good as its ensemble. For two models it is the identity that `second_order` returns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import jvp

from companion.theory.curvature import Params, hvp, twice_differentiable

Logits = Callable[[Params], Tensor]
Targets = Int[Tensor, " n"] | Float[Tensor, "n V"]


@dataclass(frozen=True)
class SoupGap:
    """Loss of a soup, of its ensemble, and what the second order says of their difference; nats.

    Attributes:
        soup: loss of the averaged weights.
        ensemble: loss of the averaged logits.
        curvature: of the loss of the soup along the models; for two models its second derivative by alpha.
        variance: of the difference of logits under the soup's prediction, mean over inputs.
        predicted: soup - ensemble to second order.
    """

    soup: float
    ensemble: float
    curvature: float
    variance: float
    predicted: float

    @property
    def gap(self) -> float:
        """Soup minus ensemble, as it is."""
        return self.soup - self.ensemble


def soup(models: Sequence[Params], weights: Sequence[float] | None = None) -> Params:
    r"""Return $\bar\theta=\sum_iw_i\theta_i$.

    Args:
        models: parameters of the same names and shapes.
        weights: of sum one; None for equal ones.

    Returns:
        The averaged parameters, detached.

    Raises:
        ValueError: if there is no model, names or shapes differ, or weights do not sum to one.

    References:
        Wortsman et al. (2022).

    Examples:
        >>> soup([{"x": torch.tensor(1.0)}, {"x": torch.tensor(5.0)}], [0.75, 0.25])
        {'x': tensor(2.)}
    """
    w = _weights(models, weights, "soup")
    return {
        name: torch.stack([wi * model[name].detach() for wi, model in zip(w, models, strict=True)]).sum(0)
        for name in models[0]
    }


def ensemble(logits: Logits, models: Sequence[Params], weights: Sequence[float] | None = None) -> Float[Tensor, "n V"]:
    r"""Return the averaged logits $\sum_iw_if(x;\theta_i)$, shape (n, V): the normalised geometric mean of predictions.

    Arguments and errors are those of `soup`; `logits` maps parameters to logits of all inputs.

    Examples:
        >>> ensemble(lambda p: p["x"].reshape(1, 1) ** 2, [{"x": torch.tensor(1.0)}, {"x": torch.tensor(3.0)}])
        tensor([[5.]])
    """
    w = _weights(models, weights, "ensemble")
    return torch.stack([wi * logits(model) for wi, model in zip(w, models, strict=True)]).sum(0)


def second_order(logits: Logits, first: Params, second: Params, alpha: float, targets: Targets) -> SoupGap:
    r"""Compare $\theta_\alpha=(1-\alpha)\theta_0+\alpha\theta_1$ with the ensemble $(1-\alpha)f_0+\alpha f_1$.

    $$\mathcal L_{\rm soup}-\mathcal L_{\rm ens}=\tfrac{\alpha(1-\alpha)}2\Bigl(
    -\tfrac{d^2}{d\alpha^2}\mathcal L(\theta_\alpha)+\E_x\operatorname{Var}_{v\sim q_\alpha}[f_1-f_0]_v\Bigr)
    +O(\lVert\theta_1-\theta_0\rVert^3),$$

    of fourth order for $\alpha=\frac12$. The loss is cross-entropy; pass $\tau f$ for that at temperature $1/\tau$.

    Args:
        logits: function from parameters to the logits of all inputs, shape (n, V), three times differentiable.
        first: $\theta_0$, float64 for small distances.
        second: $\theta_1$.
        alpha: in [0, 1].
        targets: labels, shape (n,), or distributions, shape (n, V).

    Returns:
        Both losses, curvature of the path, variance of $f_1-f_0$, and the prediction.

    Raises:
        ValueError: if alpha is outside [0, 1], or models or targets do not fit.

    References:
        Wortsman et al. (2022), section 4; order of the remainder by the companion: `thm-flat-soup`.

    Examples:
        >>> f = lambda p: torch.stack([p["x"] ** 2, 0 * p["x"]])[None]
        >>> found = second_order(f, {"x": torch.tensor(-1.0)}, {"x": torch.tensor(1.0)}, 0.5, torch.tensor([0]))
        >>> found.curvature, found.variance, found.predicted  # f_1 = f_0; -log q' = (q - 1) 2 x, q = 1/2 at x = 0
        (-4.0, 0.0, 0.5)
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"second_order: alpha is a place between the two models, in [0, 1], got {alpha}")
    models, w = (first, second), (1 - alpha, alpha)
    middle = soup(models, w)
    step = {name: second[name].detach() - first[name].detach() for name in first}
    with torch.no_grad():
        z, mixed = _fit(logits(middle), targets), ensemble(logits, models, w)
        variance = _variance(z, logits(second) - logits(first))
    curvature = _path_curvature(lambda p: _loss(logits(p), targets), middle, step)
    predicted = alpha * (1 - alpha) / 2 * (variance - curvature)
    return SoupGap(float(_loss(z, targets)), float(_loss(mixed, targets)), curvature, variance, predicted)


def second_order_many(
    logits: Logits, models: Sequence[Params], targets: Targets, weights: Sequence[float] | None = None
) -> SoupGap:
    r"""Compare a soup of any number of models with their ensemble: $\frac12\sum_iw_i\delta_i^\top(G-H)\delta_i$.

    Curvature is $\sum_iw_i\delta_i^\top H\delta_i$ and variance $\sum_iw_i\delta_i^\top G\delta_i$, at the soup. Two
    models have those of `second_order` times $\alpha(1-\alpha)$, to third order.

    Args:
        logits: as for `second_order`.
        models: parameters of the same names and shapes.
        targets: labels, shape (n,), or distributions, shape (n, V).
        weights: of sum one; None for equal ones.

    Returns:
        Both losses, curvature, variance and the prediction.

    Raises:
        ValueError: as `soup`, or if targets do not fit.

    References:
        The companion's own; `thm-flat-soup`.

    Examples:
        >>> f = lambda p: torch.stack([p["x"] ** 2, 0 * p["x"]])[None]
        >>> found = second_order_many(f, [{"x": torch.tensor(-1.0)}, {"x": torch.tensor(1.0)}], torch.tensor([0]))
        >>> found.curvature, found.variance, found.predicted
        (-1.0, 0.0, 0.5)
    """
    w = _weights(models, weights, "second_order_many")
    middle = soup(models, w)
    with torch.no_grad():
        z, mixed = _fit(logits(middle), targets), ensemble(logits, models, w)
    curvature = variance = 0.0
    for wi, model in zip(w, models, strict=True):
        step = {name: model[name].detach() - middle[name].detach() for name in middle}
        curvature += wi * _path_curvature(lambda p: _loss(logits(p), targets), middle, step)
        with twice_differentiable():
            variance += wi * _variance(z, jvp(logits, (middle,), (step,))[1])
    return SoupGap(
        float(_loss(z, targets)), float(_loss(mixed, targets)), curvature, variance, (variance - curvature) / 2
    )


def _weights(models: Sequence[Params], weights: Sequence[float] | None, name: str) -> list[float]:
    """Return weights of sum one after a look at names and shapes."""
    if not models:
        raise ValueError(f"{name}: there are no models to average")
    shapes = [{key: tuple(p.shape) for key, p in model.items()} for model in models]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(f"{name}: model {i} has the parameters {shape}, model 0 has {shapes[0]}; they must agree")
    w = [1 / len(models)] * len(models) if weights is None else [float(wi) for wi in weights]
    if len(w) != len(models) or abs(sum(w) - 1) > 1e-8:
        raise ValueError(f"{name}: need {len(models)} weights of sum one, got {len(w)} of sum {sum(w):g}")
    return w


def _fit(z: Tensor, targets: Tensor) -> Tensor:
    """Return logits after a check that targets are labels or distributions for them."""
    labels = not targets.is_floating_point()
    if z.ndim != 2 or targets.shape != (z.shape[:1] if labels else z.shape):
        found = f"logits {tuple(z.shape)}, targets {tuple(targets.shape)} of {targets.dtype}"
        raise ValueError(f"soup: need logits (n, V) and labels (n,) or distributions (n, V), got {found}")
    return z


def _loss(z: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy."""
    return torch.nn.functional.cross_entropy(z, targets)


def _variance(z: Tensor, u: Tensor) -> float:
    """Mean over inputs of the variance of u_v where v is drawn from the softmax of z."""
    q = z.softmax(1)
    mean = (q * u).sum(1, keepdim=True)
    return float((q * (u - mean).square()).sum(1).mean())


def _path_curvature(loss: Callable[[Params], Tensor], params: Params, step: Params) -> float:
    """Second derivative of the loss along a straight path."""
    Hv = hvp(loss, params, step)
    return float(sum((Hv[name] * step[name]).sum() for name in params))
