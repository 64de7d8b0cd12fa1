r"""The trace of the Hessian of a cross-entropy, with the Gauss-Newton matrix as a control variate.

$H=G+R$, and $\operatorname{tr}G$ is known without chance, from $V$ backward passes a context (`fisher_trace`). A random
probe that overstates $\operatorname{tr}H$ tends to overstate $\operatorname{tr}G$ too, and there one sees by how much.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn.functional import one_hot

from companion.theory.curvature import draw_probes, twice_differentiable
from companion.theory.fisher import squared_gradients
from companion.theory.trace_estimates import Params, TraceEstimate, checked, estimate, in_chunks

_NAME, _LEAST = "controlled_hessian_trace", 6


def controlled_hessian_trace(
    logits: Callable[[Params, Any], Tensor],
    params: Params,
    inputs: Tensor,
    targets: Int[Tensor, " n"] | Float[Tensor, "n V"],
    *,
    weights: Float[Tensor, " n"] | None = None,
    samples: int = 100,
    probes: Literal["rademacher", "gaussian"] = "rademacher",
    chunk: int | None = None,
    generator: torch.Generator | None = None,
) -> TraceEstimate:
    r"""Estimate $\operatorname{tr}H$ of $\mathcal L=-\sum_cw_c\sum_vp(v\mid c)\log q_\theta(v\mid c)$, unbiased.

    $$\frac1m\sum_i\bigl(z_i^\top Hz_i-b\,(z_i^\top Gz_i-\operatorname{tr}G)\bigr),\qquad
    z^\top Gz=\E_c\operatorname{Var}_{v\sim q}\bigl[(Jz)_v\bigr],\qquad\E zz^\top=I .$$

    Each half of the probes takes the slope $b$ that least squares finds in the other half. The variance is that of
    Hutchinson's estimate times $1-\rho^2$, $\rho$ the correlation of the two forms; at saturation, where $H=G$, it is
    zero. $Jz$, the derivative of the logits along z, appears in computing $Hz$ anyway.

    Args:
        logits: function from parameters and *one* input to logits, shape (V,), differentiable twice.
        params: where, any float dtype; forms are summed in float64.
        inputs: contexts, shape (n, ...), at least two.
        targets: labels, shape (n,), integers; or probabilities $p(v\mid c)$, shape (n, V).
        weights: $w_c$, shape (n,), of sum one; None: all equal.
        samples: products with the Hessian, at least 6.
        probes: "rademacher", independent signs, or "gaussian".
        chunk: probes, and then contexts, that are differentiated at once (vmap); changes memory and time only. None
            for all.
        generator: source of the probes; they are drawn on its device.

    Returns:
        The estimate; its standard error takes the two slopes as given.

    Raises:
        ValueError: if an option is out of its range, shapes do not fit, or the estimate is not finite.

    References:
        The companion's own; `prop-flat-control-variate`.

    Examples:
        >>> law = lambda p, x: torch.stack([p["a"] * x, p["b"] * x])  # affine in the parameters: H = G
        >>> at = {"a": torch.tensor(1.0).double(), "b": torch.tensor(0.0).double()}
        >>> x, y = torch.tensor([1.0, 2.0]).double(), torch.tensor([0, 1])
        >>> found = controlled_hessian_trace(law, at, x, y, samples=20, generator=torch.Generator().manual_seed(0))
        >>> q = torch.sigmoid(x)
        >>> abs(found.value - float((2 * x**2 * q * (1 - q)).mean())) < 1e-12 and found.stderr < 1e-12
        True
    """
    if probes not in ("rademacher", "gaussian"):
        raise ValueError(f'{_NAME}: probes are "rademacher" or "gaussian", got "{probes}"')
    if samples < _LEAST:
        raise ValueError(f"{_NAME}: needs {_LEAST} samples at least, two slopes and an error; got {samples}")
    params, chunk = checked(params, _NAME), in_chunks(chunk, samples, _NAME)
    n = len(inputs)
    with torch.no_grad():
        z = logits(params, inputs[0])
    w = z.new_full((n,), 1 / n) if weights is None else weights.to(z)
    p = _probabilities(targets, n, z)
    if w.shape != (n,):
        raise ValueError(f"{_NAME}: weights of {n} inputs have the shape ({n},), got {tuple(w.shape)}")
    squares = squared_gradients(logits, params, inputs, "all", None, chunk, _NAME)
    trace = float(torch.stack(list(squares.values())).sum(0) @ w.double())
    forms, count = _forms(logits, params, inputs, w, p), sum(parameter.numel() for parameter in params.values())
    found = []
    for start in range(0, samples, chunk):
        Z = draw_probes(min(samples - start, chunk), count, probes, generator)
        found.append(torch.stack(forms(Z.to(z.device))))
    by_hessian, by_gauss_newton = torch.cat(found, 1)
    over = by_gauss_newton - trace
    terms, half = by_hessian.clone(), samples // 2
    for own, other in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        terms[own] -= _slope(over[other], by_hessian[other]) * over[own]
    return estimate(terms, _NAME)


def _probabilities(targets: Tensor, n: int, z: Tensor) -> Float[Tensor, "n V"]:
    """Targets as a distribution over labels for each of n contexts with logits like z."""
    if targets.shape == (n, len(z)) and targets.is_floating_point():
        return targets.to(z)
    if targets.shape != (n,) or targets.is_floating_point():
        raise ValueError(
            f"{_NAME}: targets are {n} integers or a ({n}, {len(z)}) tensor of probabilities, "
            f"got {tuple(targets.shape)} of {targets.dtype}"
        )
    if not 0 <= int(targets.min()) <= int(targets.max()) < len(z):
        raise ValueError(f"{_NAME}: labels must lie in 0 to {len(z) - 1}, the tokens the logits know")
    return one_hot(targets, len(z)).to(z)


def _slope(x: Tensor, y: Tensor) -> float:
    """Least-squares slope of y on x; 0 where x does not vary."""
    x = x - x.mean()
    squares = float(x.square().sum())
    return float(x @ y) / squares if squares else 0.0


def _forms(
    logits: Callable[[Params, Any], Tensor], params: Params, inputs: Tensor, w: Tensor, p: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the map from rows z, shape (k, P), to z'Hz and z'Gz, float64, all rows at once."""
    sizes = [parameter.numel() for parameter in params.values()]

    def loss(at: Params) -> tuple[Tensor, Tensor]:
        z = vmap(lambda x: logits(at, x))(inputs)
        return -(w[:, None] * p * z.log_softmax(1)).sum(), z

    def both(row: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(params.items(), row.split(sizes), strict=True)
        v = {key: part.reshape(like.shape).to(like.dtype) for (key, like), part in parts}
        along = jvp(grad(loss, has_aux=True), (params,), (v,))
        z, (Hv, Jv) = along[0][1], along[1]
        q = z.double().softmax(1)
        Jv = Jv.double()
        spread = (q * (Jv - (q * Jv).sum(1, keepdim=True)).square()).sum(1)
        form = torch.stack([(v[key] * Hv[key]).sum(dtype=torch.float64) for key in params]).sum()
        return form, w.double() @ spread

    def rows(Z: Tensor) -> tuple[Tensor, Tensor]:
        with twice_differentiable():
            return vmap(both)(Z)

    return rows
