r"""The empirical neural tangent kernel from what passes through the layers of a network, forwards and back.

A linear layer or a convolution uses its weights at $L$ places a point. With the input $a_s$ of place $s$ (for a
convolution, the patch under the filter) and the output $p_s$ there, $\nabla_Wf_o=\sum_s(\nabla_{p_s}f_o)\,a_s^\top$.
`companion.theory.ntk.empirical` calls this module's function for its method "layers".
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from companion.theory.ntk_dense import gradients, gram, noted, rounding

_OUTER = (nn.Linear, nn.Conv1d, nn.Conv2d)  # a product of what came in and of what comes back
_SCALE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)  # one factor a channel
_Sizes = tuple[int, int, int]  # D inputs (with one for a bias), C channels, L places
_INSTEAD = 'take "jacobian" or "blocks"'


def from_layers(
    model: nn.Module,
    x: Float[Tensor, "N ..."],
    x_new: Float[Tensor, "q ..."] | None,
    outputs: list[int],
    chunk: int = 32,
    held: int = 2**27,
) -> Float[Tensor, "N n"]:
    r"""Sum inner products of derivatives over layers, each layer's in the way with fewer operations.

    Per point and output, with $a_s\in\mathbb R^D$ and $\delta_s=\nabla_{p_s}f_o\in\mathbb R^C$ at places
    $s=1,\dots,L$, the inner products of the derivatives by a layer's weights are

    $$\Bigl\langle\sum_s\delta_sa_s^\top,\sum_t\delta'_t{a'_t}^\top\Bigr\rangle
    =\sum_{s,t}\bigl(\delta_s^\top\delta'_t\bigr)\bigl(a_s^\top a'_t\bigr):$$

    for all $k$ outputs together one product of length $kCD$ on the left, $L^2$ products of lengths $kC$ and $D$ on the
    right. The right-hand side is taken where it is the shorter, as for every linear layer on one vector a point. On
    the left the derivatives are formed first, by one product of matrices a point. A bias is a weight of an input 1.
    A layer that scales and shifts has $\nabla_\gamma f_o=\sum_s\delta_s\odot\hat a_s$ of its normalised input $\hat a$.

    Args:
        model: network from (n, ...) to (n, k) whose trainable parameters all belong to layers of these kinds, each used
            once, on the batch of points: `nn.Linear`; `nn.Conv1d` and `nn.Conv2d` with one group, padded by zeros in
            numbers; batch norm in evaluation mode; `nn.GroupNorm` and `nn.LayerNorm`.
        x: points, shape (N, ...), in the parameters' dtype.
        x_new: other points, shape (q, ...); None: `x` again.
        outputs: coordinates to sum over.
        chunk: points that pass at once.
        held: numbers of derivatives, or of factors of them, held at once; one output channel's if that is more.

    Returns:
        The sum, shape (N, q), or (N, N) without other points; float64.

    Raises:
        ValueError: if a trainable parameter belongs to no such layer or to several, a layer is used twice, on something
            else than the batch, or a weight also acts outside its layer.

    References:
        Novak et al. (2022) for the two ways; the choice by layers and the bound of memory are the companion's own.

    Examples:
        >>> from_layers(nn.Linear(2, 3), torch.tensor([[1.0, 0.0], [1.0, 2.0]]), None, [0]).tolist()
        [[2.0, 2.0], [2.0, 6.0]]
    """
    layers = _layers(model)
    _check(model, layers, x[:1], outputs)  # with one point, no other axis can be taken for that of the points
    sizes = _check(model, layers, x[:chunk], outputs)
    parts, count = list(x.split(chunk)), len(x)
    own = len(parts)
    if x_new is not None:
        parts, count = [*parts, *x_new.split(chunk)], count + len(x_new)
    K = torch.zeros(len(x), len(x if x_new is None else x_new), dtype=torch.float64, device=x.device)
    for block in _blocks(sizes, len(outputs), count, held):
        kept: list[list[tuple[Tensor, ...]]] = [[] for _ in block]
        for part in parts:
            for piece, rows, found in zip(block, kept, _passed(model, block, part, outputs), strict=True):
                rows.append(piece.factors(*found))
        for piece, rows in zip(block, kept, strict=True):
            left = rows[:own]
            K += piece.products(left, left if x_new is None else rows[own:])
    return K


@dataclass(frozen=True)
class _Piece:
    """Some output channels of a layer, and how their derivatives' inner products are taken.

    Attributes:
        layer: the layer.
        channels: which of its output channels.
        apart: whether factors stay apart, the right-hand side of `from_layers`; else the derivatives are formed.
        numbers: what a point's factors or derivatives count.
    """

    layer: nn.Module
    channels: slice
    apart: bool
    numbers: int

    def factors(self, a: Float[Tensor, "n D L"], delta: Float[Tensor, "n k C L"]) -> tuple[Tensor, ...]:
        """Inputs and derivatives by outputs, a row a place of a point; or the derivatives by weights, a row a point."""
        delta = delta[:, :, self.channels]
        if self.apart:
            return a.mT.flatten(0, 1), delta.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)
        if isinstance(self.layer, _OUTER):
            return ((delta.flatten(1, 2) @ a.mT).flatten(1),)
        return (_scales(self.layer, a[:, None, self.channels], delta).sum(-1).flatten(1),)

    def products(self, left: list[tuple[Tensor, ...]], right: list[tuple[Tensor, ...]]) -> Float[Tensor, "N q"]:
        """Sum over weights of products of derivatives, in float64."""
        if not self.apart:
            rows = [J for (J,) in left]
            return gram(rows, rows if right is left else [J for (J,) in right])
        (a, d), (b, e) = ([torch.cat(kind).double() for kind in zip(*side, strict=True)] for side in (left, right))
        return _products_of_places(a, d, b, e, self.numbers // (a.shape[1] + d.shape[1]))


def _products_of_places(a: Tensor, d: Tensor, b: Tensor, e: Tensor, places: int) -> Float[Tensor, "N q"]:
    """Sum over places of products of inner products, 128 MiB of them at a time."""
    step = places * max(1, 2**24 // (places * len(b)))
    strips = []
    for low in range(0, len(a), step):
        strip = (a[low : low + step] @ b.T).mul_(d[low : low + step] @ e.T)
        strips.append(strip.unflatten(1, (-1, places)).sum(2).unflatten(0, (-1, places)).sum(1))
    return torch.cat(strips)


def _scales(layer: nn.Module, a: Tensor, delta: Tensor) -> Tensor:
    """Derivatives by a layer's factors and shifts at each place, in a new last axis but one."""
    kinds = {"weight": lambda: delta * a, "bias": lambda: delta}
    return torch.stack([kinds[name]() for name in _trained(layer)], -2)


def _trained(layer: nn.Module) -> dict[str, Tensor]:
    """Those of a layer's weight and bias that are no constants."""
    parameters = {name: getattr(layer, name) for name in ("weight", "bias")}
    return {name: p for name, p in parameters.items() if p is not None and p.requires_grad}


def _layers(model: nn.Module) -> dict[nn.Module, str]:
    """Return the layers that own the trainable parameters, with names; complain of other owners, and of several."""
    layers, owned = {}, []
    for name, module in model.named_modules():
        if type(module) in (*_OUTER, *_SCALE) and any(p.requires_grad for p in module.parameters()):
            layers[module] = name
            owned += [id(p) for p in module.parameters()]
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                padded = module.padding_mode == "zeros" and not isinstance(module.padding, str)
                if module.groups != 1 or not padded:
                    raise ValueError(
                        f'ntk: "layers" needs convolutions of one group, padded by zeros in numbers; "{name}" is '
                        f"{module}: {_INSTEAD}"
                    )
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and owned.count(id(parameter)) != 1:
            kinds = ", ".join(kind.__name__ for kind in (*_OUTER, *_SCALE))
            why = "is shared by several layers" if id(parameter) in owned else f"belongs to none of {kinds}"
            raise ValueError(
                f'ntk: "layers" needs each parameter in one layer that it knows; "{name}" {why}: {_INSTEAD}'
            )
    return layers


def _passed(model: nn.Module, block: list[_Piece], x: Tensor, outputs: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what came into each piece's layer, (n, D, L), and outputs' derivatives by what went out, (n, k, C, L)."""
    with torch.enable_grad():
        f, seen = noted(model, [piece.layer for piece in block], x)
        calls = [seen[piece.layer][0] for piece in block]
        back = [gradients(f[:, output].sum(), [p for _, p in calls]) for output in outputs]
    for i, (piece, (a, _)) in enumerate(zip(block, calls, strict=True)):
        yield _inputs(piece.layer, a), torch.stack([_channels_first(piece.layer, g[i]) for g in back], 1)


def _channels_first(layer: nn.Module, p: Tensor) -> Float[Tensor, "n C L"]:
    """What goes into or out of a layer, all axes that are no channels taken for places."""
    if isinstance(layer, nn.Linear):
        return p.flatten(1, -2).mT if p.ndim > 2 else p[:, :, None]
    if isinstance(layer, nn.LayerNorm):
        return p.reshape(len(p), -1, math.prod(layer.normalized_shape)).mT
    return p.flatten(2) if p.ndim > 2 else p[:, :, None]


def _inputs(layer: nn.Module, a: Tensor) -> Float[Tensor, "n D L"]:
    """What a layer's weights are multiplied by, place by place, and a one for a bias."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        options = [(layer.kernel_size, 1), (layer.dilation, 1), (layer.padding, 0), (layer.stride, 1)]
        if isinstance(layer, nn.Conv1d):  # images of one line
            a, options = a[:, :, None], [((missing, *given), 0) for given, missing in options]
        a = functional.unfold(a, *(given for given, _ in options))
    elif isinstance(layer, _BatchNorm):
        a = functional.batch_norm(a, layer.running_mean, layer.running_var, eps=layer.eps)
    elif isinstance(layer, nn.GroupNorm):
        a = functional.group_norm(a, layer.num_groups, eps=layer.eps)
    elif isinstance(layer, nn.LayerNorm):
        a = functional.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        a = _channels_first(layer, a)
    if isinstance(layer, _OUTER):
        kinds = {"weight": a, "bias": torch.ones_like(a[:, :1])}
        a = torch.cat([kinds[name] for name in _trained(layer)], 1)
    return a


@torch.enable_grad()
def _check(model: nn.Module, layers: dict[nn.Module, str], x: Tensor, outputs: list[int]) -> dict[nn.Module, _Sizes]:
    """Return sizes; compare gradients with autograd's: a weight may also be used outside its layer."""
    f, seen = noted(model, list(layers), x)
    for layer, calls in seen.items():
        shapes = [tuple(a.shape) for a, _ in calls]
        if len(calls) != 1 or shapes[0][0] != len(x):
            raise ValueError(
                f'ntk: "layers" needs each layer once, on a batch of {len(x)} points; "{layers[layer]}" had inputs '
                f"{shapes}: {_INSTEAD}"
            )
    total, sizes = f[:, outputs].sum(), {}
    back = gradients(total, [calls[0][1] for calls in seen.values()])
    for (layer, calls), g in zip(seen.items(), back, strict=True):
        a, delta = _inputs(layer, calls[0][0]), _channels_first(layer, g)
        sizes[layer] = (a.shape[1], delta.shape[1], a.shape[2])
        parameters = list(_trained(layer).values())
        expected = torch.cat([g.reshape(delta.shape[1], -1) for g in gradients(total, parameters)], 1)
        found, size = _summed(layer, a, delta), _summed(layer, a.abs(), delta.abs())
        if (found - expected).abs().max() > rounding(size):
            raise ValueError(
                f'ntk: "layers" needs each weight in its layer only; one of "{layers[layer]}" also acts elsewhere: '
                f"{_INSTEAD}"
            )
    return sizes


def _summed(layer: nn.Module, a: Tensor, delta: Float[Tensor, "n C L"]) -> Float[Tensor, "C D"]:
    """The derivatives' sum over points, of one output."""
    if isinstance(layer, _OUTER):
        return delta.transpose(0, 1).flatten(1) @ a.transpose(0, 1).flatten(1).T
    return _scales(layer, a, delta).sum((0, -1))


def _blocks(sizes: dict[nn.Module, _Sizes], k: int, n: int, held: int) -> Iterator[list[_Piece]]:
    """Cut layers into pieces, in the way with fewer operations, and gather as many as `held` allows for n points."""
    block, free = [], held
    for piece in (piece for layer, size in sizes.items() for piece in _pieces(layer, size, k, held // n)):
        if block and n * piece.numbers > free:
            yield block
            block, free = [], held
        block.append(piece)
        free -= n * piece.numbers
    yield block


def _pieces(layer: nn.Module, size: _Sizes, k: int, most: int) -> Iterator[_Piece]:
    """One layer's: all channels where factors stay apart, else so many that a point has at most `most` derivatives."""
    D, C, L = size
    outer = isinstance(layer, _OUTER)
    if outer and L * L * (k * C + D) < k * C * D:
        yield _Piece(layer, slice(0, C), True, L * (k * C + D))
        return
    each = k * (D if outer else len(_trained(layer)))
    step = max(1, most // each)
    for low in range(0, C, step):
        channels = slice(low, min(low + step, C))
        yield _Piece(layer, channels, False, each * (channels.stop - low))
