r"""Traces of the Gauss-Newton matrix and of the gradient noise, from squared gradients of single samples.

$$\operatorname{tr}G=\E_c\E_{v\sim q}\lVert\nabla_\theta\log q_\theta(v\mid c)\rVert^2 .$$
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from companion.theory.trace_estimates import Params, TraceEstimate, checked, estimate, in_chunks

Logits = Callable[[Params, Any], Tensor]
Labels = Literal["model", "all"] | Int[Tensor, " n"]


def fisher_trace(
    logits: Logits,
    params: Params,
    inputs: Any,
    *,
    labels: Labels = "model",
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> TraceEstimate:
    r"""Estimate the trace of $\E_c\E_v\,gg^\top$, $g=-\nabla\log q_\theta(v\mid c)$: the mean of $\lVert g\rVert^2$.

    With labels from the model this is $\operatorname{tr}G$, from squared gradients alone, one backward pass a context.
    With observed labels it is the trace of the noise of gradient descent about zero. Both are $\operatorname{tr}H$ at
    saturation, and neither is elsewhere.

    Args:
        logits: function from parameters and *one* input to logits, shape (V,).
        params: where, any float dtype; squares are summed in float64.
        inputs: a sample of contexts: tensor, or tuple of tensors, whose first dimension counts the n of them.
        labels: "model" draws one label per context from $q_\theta$; "all" takes the mean over all V of them, at V
            backward passes; a tensor of tokens, shape (n,), holds observed labels.
        generator: source of the labels.
        chunk: contexts that are differentiated at once (vmap); changes memory and time only. None for all.

    Returns:
        The mean over contexts. Its standard error is that of n contexts drawn at random, which is too large for a
        fixed set of contexts, of which only the labels are random.

    Raises:
        ValueError: if a parameter is not of a float dtype, there are fewer than two inputs, labels do not fit, or
            the estimate is not finite.

    References:
        Liu et al. (2023), appendix B.1, for labels of the model; `cor-flat-cheap-trace`, `prop-flat-three-traces`.

    Examples:
        >>> law = lambda p, x: torch.stack([p["a"] * x, 0 * x])  # q = sigmoid(a x), a logistic regression
        >>> estimate = fisher_trace(law, {"a": torch.tensor(0.0)}, torch.tensor([2.0, 2.0]), labels="all")
        >>> estimate.value  # x^2 q (1 - q)
        1.0
    """
    squares = squared_gradients(logits, params, inputs, labels, generator, chunk, "fisher_trace")
    return estimate(torch.stack(list(squares.values())).sum(0), "fisher_trace")


def fisher_traces(
    logits: Logits,
    params: Params,
    inputs: Any,
    *,
    labels: Labels = "model",
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> dict[str, TraceEstimate]:
    """Split `fisher_trace` into the contributions of the parameters, by name; arguments and errors are the same.

    References:
        The companion's own; `prop-flat-layers`, `thm-flat-tiling`.

    Examples:
        >>> law = lambda p, x: torch.stack([p["a"] * x + p["b"], 0 * x])
        >>> at = {"a": torch.tensor(0.0), "b": torch.tensor(0.0)}
        >>> {k: e.value for k, e in fisher_traces(law, at, torch.tensor([2.0, 2.0]), labels="all").items()}
        {'a': 1.0, 'b': 0.25}
    """
    squares = squared_gradients(logits, params, inputs, labels, generator, chunk, "fisher_traces")
    return {name: estimate(values, "fisher_traces") for name, values in squares.items()}


def squared_gradients(
    logits: Logits,
    params: Params,
    inputs: Any,
    labels: Labels,
    generator: torch.Generator | None,
    chunk: int | None,
    name: str,
) -> Params:
    """Squared norm of the gradient by each parameter, one number per context, shape (n,), float64."""
    params = checked(params, name)
    counts = {len(x) if x.ndim else 0 for x in tree_leaves(inputs)}
    n = counts.pop() if len(counts) == 1 else 0
    if n < 2:
        raise ValueError(f"{name}: inputs need one common first dimension, the contexts, of 2 or more")
    observed = _observed(labels, n, name)

    def one_label(params: Params, x: Any, v: Tensor) -> Tensor:
        z = logits(params, x)
        return z.logsumexp(0) - z.gather(0, v[None]).squeeze(0)

    def squares(x: Any, v: Tensor) -> Params:
        return tree_map(lambda g: g.double().square().sum(), grad(one_label)(params, x, v))

    def squares_of_all(x: Any) -> Params:
        q = logits(params, x).double().softmax(0)

        def spread(J: Tensor) -> Tensor:  # E_q ||J_v - E_q J||^2, the gradient of -log q_v being E_q J - J_v
            J = J.double().reshape(len(J), -1)
            return q @ (J - q @ J).square().sum(1)

        return tree_map(spread, jacrev(logits)(params, x))

    found = []
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for rows in torch.arange(n).split(in_chunks(chunk, n, name)):
            some = tree_map(lambda x, rows=rows: x[rows.to(x.device)], inputs)
            if labels == "all":
                found.append(vmap(squares_of_all)(some))
                continue
            z = vmap(lambda x: logits(params, x))(some)
            v = _labels(z, observed, rows, generator, name)
            found.append(vmap(squares)(some, v))
    return {key: torch.cat([part[key] for part in found]) for key in params}


def _observed(labels: Labels, n: int, name: str) -> Tensor | None:
    """Return observed labels, one per context, or None where the model is to draw them."""
    if isinstance(labels, str):
        if labels not in ("model", "all"):
            raise ValueError(f'{name}: labels are "model", "all" or a tensor of tokens, got "{labels}"')
        return None
    if labels.shape != (n,) or labels.is_floating_point():
        found = f"{tuple(labels.shape)} of {labels.dtype}"
        raise ValueError(f"{name}: observed labels are integers, one for each of the {n} contexts; got {found}")
    return labels


def _labels(
    z: Tensor, observed: Tensor | None, rows: Tensor, generator: torch.Generator | None, name: str
) -> Int[Tensor, " n"]:
    """Return the labels of some contexts with logits z, shape (n, V): observed, or drawn one by one."""
    if observed is None:
        device = z.device if generator is None else generator.device
        q = z.double().softmax(1).to(device)
        u = torch.cat([torch.rand(1, generator=generator, dtype=torch.float64, device=device) for _ in rows])
        return torch.searchsorted(q.cumsum(1), u[:, None]).squeeze(1).clamp(max=q.shape[1] - 1).to(z.device)
    v = observed.to(z.device)[rows.to(z.device)]
    if not 0 <= int(v.min()) <= int(v.max()) < z.shape[1]:
        raise ValueError(f"{name}: observed labels must lie in 0 to {z.shape[1] - 1}, the tokens the logits know")
    return v
