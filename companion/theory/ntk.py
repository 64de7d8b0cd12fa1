r"""The empirical neural tangent kernel of a finite network: one quantity, computed in four ways.

The kernel of `thm-kernel-flow` may be any; that of a wide network is its neural tangent kernel,

$$\Theta(x,x') = \frac1k\sum_{o=1}^k\bigl\langle\nabla_\theta f_o(x),\nabla_\theta f_o(x')\bigr\rangle ,$$

averaged over the $k$ outputs. The full kernel has a $k\times k$ block for each pair of points; in the limit of infinite
width it is $\Theta(x,x')\,I_k$, so that the average loses nothing.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from companion.theory import ntk_dense, ntk_layers
from companion.theory.ntk_dense import gram, rounding

Method = Literal["jacobian", "dense", "layers", "blocks"]


def empirical(
    model: nn.Module,
    x: Float[Tensor, "N ..."],
    method: Method = "jacobian",
    *,
    outputs: Sequence[int] | None = None,
    chunk: int = 32,
    held: int = 2**27,
) -> Float[Tensor, "N N"]:
    r"""Return the kernel matrix $\Theta(x_i,x_j)$ of a network at its present weights.

    The four methods agree to rounding; they differ in what they ask and cost. With $P$ parameters:

    * "jacobian", for any network: all $NkP$ derivatives at once, in memory.
    * "dense", for networks whose trainable parameters all belong to linear layers, each used once, on one vector
      a point: the derivatives of a layer with input $a$ and output $p$ are outer products, whose inner products are

      $$\Theta(x,x') = \frac1k\sum_{o,\,\text{layers}}\bigl(a^\top a' + 1_{\text{bias}}\bigr)\,
      \bigl(\nabla_pf_o\bigr)^\top\bigl(\nabla_{p}f_o\bigr)' ,$$

      so that no derivative by a weight is formed: $k$ backward passes, and Gram matrices of activations
      (`benchmarks/RECORDS.md`, ntk: MLP).
    * "layers", for networks whose trainable parameters all belong to linear layers, convolutions and normalisations,
      each used once: the same for linear layers; a convolution's derivatives are formed from its patches, in blocks of
      at most `held`, where that is cheaper (`companion.theory.ntk_layers`; `benchmarks/RECORDS.md`, ntk: CNN).
    * "blocks", for what is too large for "jacobian": $\Theta = \frac1k\sum_o\sum_b J_{o,b}J_{o,b}^\top$ over blocks $b$
      of parameters, one $J_{o,b}$ at a time. In memory are at most `held` derivatives (one parameter's for all
      points if that is more; a tensor is split where it must be), for `chunk` points the gradients of the whole
      tensors that a block touches and their activations, and 256 MiB. Each block takes $k$ backward passes of its
      own: the larger `held`, the fewer passes.

    Args:
        model: network from (n, ...) to (n, k) that treats each point by itself. Parameters without ``requires_grad``
            are constants of it.
        x: points, shape (N, ...), in the parameters' dtype, in which derivatives are taken.
        method: "jacobian", "dense", "layers" or "blocks".
        outputs: coordinates to average over, instead of all.
        chunk: points that all but "dense" pass at once; changes memory and time only.
        held: derivatives that "layers" and "blocks" may hold at once, $2^{27}$ are half a gigabyte in float32.

    Returns:
        $\Theta$, shape (N, N), symmetric, positive semidefinite, float64: sums are taken in float64.

    Raises:
        ValueError: if a point's output depends on the other points or on chance (batch norm or dropout in training
            mode), no parameter requires a gradient, the model is none for "dense" or "layers", an argument is out
            of its range, or points or kernel are not finite.

    References:
        Jacot et al. (2018) for the kernel; the mean over outputs and the choice of ways are the companion's own choice.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> empirical(nn.Linear(2, 3), x).tolist()  # x x^T, and one for the bias
        [[2.0, 2.0], [2.0, 6.0]]
    """
    K = _kernel(model, x, None, method, outputs, chunk, held)
    return (K + K.T) / 2


def empirical_at(
    model: nn.Module,
    x: Float[Tensor, "N ..."],
    x_new: Float[Tensor, "q ..."],
    method: Method = "jacobian",
    *,
    outputs: Sequence[int] | None = None,
    chunk: int = 32,
    held: int = 2**27,
) -> Float[Tensor, "N q"]:
    r"""Return the kernel $\Theta(x_i,x^{\text{new}}_j)$ between points and new points.

    Args:
        model: as for `empirical`.
        x: points, shape (N, ...).
        x_new: new points, shape (q, ...).
        method: as for `empirical`.
        outputs: as for `empirical`.
        chunk: as for `empirical`.
        held: as for `empirical`.

    Returns:
        The kernel, shape (N, q), float64.

    Raises:
        ValueError: as `empirical`, or if points and new points differ in shape.

    References:
        As `empirical`.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> empirical_at(nn.Linear(2, 3, bias=False), x, torch.tensor([[0.0, 1.0]])).tolist()
        [[0.0], [2.0]]
    """
    return _kernel(model, x, x_new, method, outputs, chunk, held)


def _kernel(
    model: nn.Module,
    x: Tensor,
    x_new: Tensor | None,
    method: str,
    outputs: Sequence[int] | None,
    chunk: int,
    held: int,
) -> Tensor:
    """Check, compute and check; without new points the kernel of `x` with itself."""
    if method not in get_args(Method):
        raise ValueError(f'ntk: method "{method}" is none of {", ".join(map(repr, get_args(Method)))}')
    if chunk < 1 or held < 1:
        raise ValueError(f"ntk: chunk and held must be at least 1, got {chunk} and {held}")
    x = x.detach()
    if x_new is not None:
        x_new = x_new.detach()
        if x.shape[1:] != x_new.shape[1:]:
            raise ValueError(f"ntk: x has points of shape {tuple(x.shape[1:])}, x_new of {tuple(x_new.shape[1:])}")
    for points in (x, x_new):
        if points is not None and not (len(points) and points.isfinite().all()):
            raise ValueError("ntk: there must be points, and all of them finite")
    k = _count_outputs(model, x)
    chosen = list(range(k)) if outputs is None else list(outputs)
    if not chosen or not all(0 <= o < k for o in chosen):
        raise ValueError(f"ntk: outputs must be some of 0 to {k - 1}, got {chosen}")
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("ntk: no parameter of the model requires a gradient; its tangent kernel is zero")
    if method == "jacobian":
        K = _from_jacobian(model, parameters, x, x_new, chosen, chunk)
    elif method == "dense":
        K = ntk_dense.from_layers(model, x, x_new, chosen)
    elif method == "layers":
        K = ntk_layers.from_layers(model, x, x_new, chosen, chunk, held)
    else:
        K = _from_blocks(model, parameters, x, x_new, chosen, chunk, held)
    if not K.isfinite().all():
        raise ValueError("ntk: the kernel is not finite; a derivative overflows or does not exist")
    return K / len(chosen)


def _count_outputs(model: nn.Module, x: Tensor) -> int:
    """Return k; complain where the kernel of a single point would not be a function of that point."""
    for name, module in model.named_modules():
        what = f'ntk: "{name}" ({type(module).__name__})'
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(f"{what} normalises by its batch; call model.eval(), with running statistics")
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"{what} is in training mode; call model.eval() first")
    with torch.no_grad():
        alone, beside = model(x[:1]), model(x[:2])
    if alone.ndim != 2:
        raise ValueError(f"ntk: a batch must give outputs of shape (n, k), one point gave {tuple(alone.shape)}")
    if not alone.isfinite().all():
        raise ValueError("ntk: the model's outputs are not finite; are all weights?")
    if (beside[:1] - alone).abs().max() > rounding(alone):
        raise ValueError("ntk: the output of a point depends on the other points of its batch, or on chance")
    return alone.shape[1]


def _from_jacobian(
    model: nn.Module, parameters: dict[str, Tensor], x: Tensor, x_new: Tensor | None, outputs: list[int], chunk: int
) -> Tensor:
    """Sum over outputs and parameters of products of derivatives, all of them stored."""

    def f(weights: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(model, weights, (point[None],))[0, outputs]

    def rows(points: Tensor) -> Iterator[Tensor]:
        for part in points.split(chunk):
            J = vmap(jacrev(f), (None, 0))(parameters, part)
            yield torch.cat([block.flatten(2) for block in J.values()], dim=2).flatten(1)  # (chunk, k P)

    left = list(rows(x))
    return gram(left, left if x_new is None else list(rows(x_new)))


def _from_blocks(
    model: nn.Module,
    parameters: dict[str, Tensor],
    x: Tensor,
    x_new: Tensor | None,
    outputs: list[int],
    chunk: int,
    held: int,
) -> Tensor:
    """Sum over outputs and blocks of parameters, with one block's derivatives of one output at a time."""
    points = x if x_new is None else torch.cat([x, x_new])
    K = torch.zeros(len(x), len(points) - (0 if x_new is None else len(x)), dtype=torch.float64, device=x.device)
    for block in _blocks({name: p.numel() for name, p in parameters.items()}, max(1, held // len(points))):
        for output in outputs:
            J = _block_jacobian(model, parameters, block, points, output, chunk)
            left = [J[: len(x)]]
            K += gram(left, left if x_new is None else [J[len(x) :]])
            del J, left  # before the next block is made
    return K


def _blocks(sizes: dict[str, int], most: int) -> Iterator[dict[str, slice]]:
    """Cut the flat vector of all parameters into pieces of at most `most`; each says what it has of which tensor."""
    total = sum(sizes.values())
    for low in range(0, total, most):
        block, start = {}, 0
        for name, size in sizes.items():
            begin, end = max(low - start, 0), min(low + most - start, size)
            if begin < end:
                block[name] = slice(begin, end)
            start += size
        yield block


def _block_jacobian(
    model: nn.Module,
    parameters: dict[str, Tensor],
    block: dict[str, slice],
    points: Tensor,
    output: int,
    chunk: int,
) -> Float[Tensor, "n p"]:
    """Return the derivatives of one output at each point by the parameters of a block."""

    def f(weights: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(model, {**parameters, **weights}, (point[None],))[0, output]

    weights = {name: parameters[name] for name in block}
    edges = [0]
    for piece in block.values():
        edges.append(edges[-1] + piece.stop - piece.start)
    J = next(iter(weights.values())).new_empty(len(points), edges[-1])
    for low in range(0, len(points), chunk):
        gradients = vmap(grad(f), (None, 0))(weights, points[low : low + chunk])
        for (name, piece), (start, end) in zip(block.items(), pairwise(edges), strict=True):
            J[low : low + chunk, start:end] = gradients[name].flatten(1)[:, piece]
    return J
