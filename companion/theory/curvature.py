r"""Curvature of a loss without its Hessian matrix: products with vectors, and unbiased estimates of traces.

A loss is a function of named parameters, $\theta$ in one `Params`; `of_module` makes both from a network. Two traces
measure flatness. That of the Hessian, $\operatorname{tr}H$, needs products $Hv$. That of the Gauss-Newton matrix,
$\operatorname{tr}G=\E_c\E_{v\sim q}\lVert\nabla_\theta\log q_\theta(v\mid c)\rVert^2$, needs gradients only, and the
two are equal where $q_\theta$ is the true law of the labels (`cor-flat-cheap-trace`).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from companion.theory.fisher import fisher_trace, fisher_traces
from companion.theory.trace_estimates import Params, TraceEstimate, checked, estimate, in_chunks, of_module

__all__ = [
    "Params",
    "TraceEstimate",
    "of_module",
    "twice_differentiable",
    "draw_probes",
    "hvp",
    "hessian",
    "hessian_trace",
    "fisher_trace",
    "fisher_traces",
]

Loss = Callable[[Params], Tensor]


def hvp(loss: Loss, params: Params, v: Params) -> Params:
    r"""Return the product $Hv=\frac{d}{ds}\nabla\mathcal L(\theta+sv)\big|_{s=0}$, forward over reverse.

    Attention is computed by its formula (`SDPBackend.MATH`), since fused kernels have no second derivative.

    Args:
        loss: twice differentiable function from parameters to a scalar.
        params: where, any float dtype.
        v: direction, tensors of the names, shapes and dtypes of `params`.

    Returns:
        $Hv$, tensors like `params`, detached.

    Raises:
        ValueError: if a parameter is not of a float dtype, `v` does not fit, or the loss is no scalar.

    References:
        Pearlmutter (1994), Fast exact multiplication by the Hessian; used in `thm-flat-bartlett`.

    Examples:
        >>> loss = lambda p: p["x"][0] ** 2 * p["x"][1]
        >>> hvp(loss, {"x": torch.tensor([3.0, 5.0])}, {"x": torch.tensor([1.0, 0.0])})["x"].tolist()
        [10.0, 6.0]
    """
    params = checked(params, "hvp")
    if list(v) != list(params) and set(v) != set(params):
        raise ValueError(f"hvp: v has the names {list(v)}, the parameters {list(params)}; they must be the same")
    for name, p in params.items():
        if v[name].shape != p.shape or v[name].dtype != p.dtype:
            found = f"{tuple(v[name].shape)}, {v[name].dtype}"
            raise ValueError(f'hvp: v["{name}"] is {found}; the parameter is {tuple(p.shape)}, {p.dtype}')
    with twice_differentiable():
        return jvp(grad(_scalar(loss, "hvp")), (params,), ({name: v[name].detach() for name in params},))[1]


def hessian(loss: Loss, params: Params, *, chunk: int | None = None) -> Float[Tensor, "P P"]:
    r"""Return the Hessian matrix of a function of few parameters, row by row, symmetrised.

    Args:
        loss: as for `hvp`.
        params: where; flattened one after the other in the order of the dictionary.
        chunk: rows computed at once; changes memory and time only.

    Returns:
        $H$, shape (P, P), in the parameters' common dtype.

    Raises:
        ValueError: as `hvp`.

    Examples:
        >>> hessian(lambda p: p["x"] ** 2 * p["y"], {"x": torch.tensor(3.0), "y": torch.tensor(5.0)}).tolist()
        [[10.0, 6.0], [6.0, 0.0]]
    """
    params, count = checked(params, "hessian"), sum(p.numel() for p in params.values())
    like = next(iter(params.values()))
    product, _ = _products(loss, params, "hessian")
    eye = torch.eye(count, dtype=torch.float64, device=like.device)
    rows = torch.cat([product(some) for some in eye.split(in_chunks(chunk, count, "hessian"))])
    return ((rows + rows.T) / 2).to(torch.cat([p.new_zeros(1) for p in params.values()]).dtype)


def hessian_trace(
    loss: Loss,
    params: Params,
    *,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
    samples: int = 100,
    sketch: int | None = None,
    probes: Literal["rademacher", "gaussian"] = "rademacher",
    chunk: int | None = None,
    generator: torch.Generator | None = None,
) -> TraceEstimate:
    r"""Estimate $\operatorname{tr}H$ from products with random probes, $\E zz^\top=I$; both methods are unbiased.

    * "hutchinson": the mean of $z_i^\top Hz_i$, for $\E z^\top Hz=\operatorname{tr}(H\,\E zz^\top)$. The variance of a
      term is $2\lVert H\rVert_F^2$ for Gaussian probes, and less by $2\sum_iH_{ii}^2$ for Rademacher ones.
    * "hutch++": some of the products find an orthonormal basis $Q$ of the range of $HS$, $S$ random; the trace on
      it is exact, for as many products more, and Hutchinson's estimate is left the rest,

      $$\operatorname{tr}(Q^\top HQ)+\frac1n\sum_iz_i^\top(I-QQ^\top)H(I-QQ^\top)z_i .$$

      Given $Q$, which is independent of the $z_i$, only the second sum is random: its spread is the standard error.
      It wins where few eigenvalues carry the trace; it holds the columns of $Q$ in memory at once.

    Args:
        loss: twice differentiable function from parameters to a scalar, the same at every call.
        params: where, any float dtype; sums are taken in float64.
        method: "hutchinson" or "hutch++".
        samples: products with the Hessian in all; at least 2, for "hutch++" at least 6.
        sketch: columns of $S$, for "hutch++" alone; None is the paper's third of the samples, good where the rest is
            small. Where it is not, fewer leave more for the rest (an eighth in `benchmarks/RECORDS.md`, curvature).
        probes: "rademacher", independent signs, or "gaussian".
        chunk: probes that are differentiated at once (vmap); changes memory and time only. None for all.
        generator: source of the probes; they are drawn on its device.

    Returns:
        Estimate, standard error, and the number of terms behind it: all, or what "hutch++" left for its rest.

    Raises:
        ValueError: as `hvp`, or if an option is out of its range or the estimate is not finite.

    References:
        Girard (1989), Hutchinson (1989); Meyer, Musco, Musco and Woodruff (2021), Hutch++, Algorithm 1.

    Examples:
        >>> hessian_trace(lambda p: (p["x"] ** 2).sum(), {"x": torch.zeros(3)}, samples=5)  # signs square to one
        TraceEstimate(value=6.0, stderr=0.0, samples=5)
    """
    name, least = "hessian_trace", 6 if method == "hutch++" else 2
    if method not in ("hutchinson", "hutch++") or probes not in ("rademacher", "gaussian"):
        raise ValueError(
            f'{name}: method is "hutchinson" or "hutch++" and probes are "rademacher" or "gaussian", '
            f'got "{method}" and "{probes}"'
        )
    if samples < least:
        raise ValueError(f'{name}: "{method}" needs {least} samples at least, for a standard error; got {samples}')
    if sketch is not None and (method != "hutch++" or not 1 <= sketch <= samples // 2 - 1):
        raise ValueError(
            f'{name}: sketch is for "hutch++", at least 1 and so that two samples are left besides twice as many; '
            f'got sketch={sketch} with samples={samples} and "{method}"'
        )
    params = checked(params, name)
    chunk = in_chunks(chunk, samples, name)
    count, product, form = sum(p.numel() for p in params.values()), *_products(loss, params, name)
    device = next(iter(params.values())).device

    def draw(n: int) -> Iterator[Tensor]:
        for start in range(0, n, chunk):
            yield draw_probes(min(n - start, chunk), count, probes, generator).to(device)

    exact, basis, rest = 0.0, None, samples
    if method == "hutch++":
        columns = samples // 3 if sketch is None else sketch
        size = min(columns, count)
        basis = torch.linalg.qr(torch.cat([product(some) for some in draw(size)]).T).Q
        exact = sum(float(form(some).sum()) for some in basis.T.split(chunk))
        rest = samples - 2 * columns
    terms = []
    for Z in draw(rest):
        terms.append(form(Z if basis is None else Z.double() - (Z.double() @ basis) @ basis.T))
    return estimate(torch.cat(terms), name, exact)


@cache
def _load_forward_mode() -> None:
    """Let torch compile its forward-mode rules, which it does on first use with a warning about itself."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated", FutureWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Keep no graph of the outer derivative, and compute attention by operations that have a second one."""
    _load_forward_mode()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def _scalar(loss: Loss, name: str) -> Loss:
    """Return the loss, with a clear complaint where it is not one number."""

    def scalar(params: Params) -> Tensor:
        value = loss(params)
        if value.ndim:
            raise ValueError(f"{name}: the loss must be one number, got shape {tuple(value.shape)}; take its mean")
        return value

    return scalar


def _products(loss: Loss, params: Params, name: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return the maps from rows z, shape (k, P), to rows Hz and to forms z'Hz, float64, all rows at once."""
    gradient = grad(_scalar(loss, name))
    sizes = [p.numel() for p in params.values()]

    def pair(z: Tensor) -> tuple[Params, Params]:
        parts = zip(params.items(), z.split(sizes), strict=True)
        v = {key: part.reshape(p.shape).to(p.dtype) for (key, p), part in parts}
        return v, jvp(gradient, (params,), (v,))[1]

    def product(z: Tensor) -> Tensor:
        Hv = pair(z)[1]
        return torch.cat([Hv[key].double().flatten() for key in params])

    def form(z: Tensor) -> Tensor:
        v, Hv = pair(z)  # neither is copied to one long vector of float64
        return torch.stack([(v[key] * Hv[key]).sum(dtype=torch.float64) for key in params]).sum()

    def together(one: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def rows(Z: Tensor) -> Tensor:
            with twice_differentiable():
                return vmap(one)(Z)

        return rows

    return together(product), together(form)


def draw_probes(n: int, count: int, kind: str, generator: torch.Generator | None) -> Tensor:
    """Draw n probes, shape (n, count), so that the stream does not depend on how many are drawn at once."""
    device = "cpu" if generator is None else generator.device
    if kind == "gaussian":  # a call of its own for each: torch fills long tensors block by block
        rows = [torch.randn(count, generator=generator, dtype=torch.float64, device=device) for _ in range(n)]
    else:
        shape = (n, count) if torch.device(device).type == "cpu" else (1, count)  # a CPU draws signs one by one
        calls = n // shape[0]
        rows = [torch.randint(2, shape, generator=generator, dtype=torch.float32, device=device) for _ in range(calls)]
        return torch.cat(rows).mul_(2).sub_(1)  # in the order, and of the values, of one row after the other
    return torch.stack(rows)
