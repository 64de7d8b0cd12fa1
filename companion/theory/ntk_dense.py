r"""The empirical neural tangent kernel of networks of linear layers, without a point's derivatives by weights.

A layer with input $a$ and output $p$ has $\nabla_Wf_o = (\nabla_pf_o)\,a^\top$: an outer product, and the inner product
of two such is a product of two numbers. `companion.theory.ntk.empirical` calls this module's function for its method
"dense".
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

STRIP = 64  # fewest rows that are multiplied at once: products of thin matrices are slow


def rounding(values: Tensor) -> float:
    """What rounding may do to values of this size; far less than a wrong formula does.

    >>> rounding(torch.tensor([-4.0, 1.0], dtype=torch.float64)) == 2.0**-24
    True
    """
    return float(values.abs().max()) * torch.finfo(values.dtype).eps ** 0.5


def gram(left: list[Tensor], right: list[Tensor]) -> Float[Tensor, "N q"]:
    """Inner products of the rows of two matrices cut into row blocks, in float64, a slice of columns at a time.

    Args:
        left: row blocks of a matrix, (n, p) each.
        right: row blocks of another, (m, p) each; the same list: little more than half of the products are taken.

    Returns:
        The products, shape (N, q) for N and q rows in all.

    Examples:
        >>> rows = [torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])]
        >>> gram(rows, rows).tolist()
        [[5.0, 2.0], [2.0, 1.0]]
    """
    N, q = (sum(len(rows) for rows in side) for side in (left, right))
    step = max(1, 2**24 // max(N, q))  # 128 MiB
    strip = max(STRIP, -(-N // 8)) if right is left else N
    K = torch.zeros(N, q, dtype=torch.float64, device=left[0].device)
    for low in range(0, left[0].shape[1], step):
        A = torch.cat([rows[:, low : low + step] for rows in left]).double()
        B = A if right is left else torch.cat([rows[:, low : low + step] for rows in right]).double()
        for top in range(0, N, strip):
            own = slice(top, top + strip)
            known = top if right is left else 0
            K[own, known:] += A[own] @ B[known:].T
    return K.triu() + K.triu(1).T if right is left else K


def noted(
    model: nn.Module, layers: Sequence[nn.Module], x: Tensor
) -> tuple[Tensor, dict[nn.Module, list[tuple[Tensor, Tensor]]]]:
    """Pass points, and note what goes into and out of each of these layers at each use, with the graph to go back."""
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen[layer].append((inputs[0].detach(), output))
        return output.clone()  # an in-place activation must not overwrite what was kept

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        return model(x), seen
    finally:
        for hook in hooks:
            hook.remove()


def gradients(f: Tensor, by: list[Tensor]) -> tuple[Tensor, ...]:
    """Derivatives, zero where nothing depends."""
    return torch.autograd.grad(f, by, retain_graph=True, allow_unused=True, materialize_grads=True)


@torch.enable_grad()
def from_layers(
    model: nn.Module, x: Float[Tensor, "N ..."], x_new: Float[Tensor, "q ..."] | None, outputs: list[int]
) -> Float[Tensor, "N n"]:
    r"""Sum over linear layers of Gram matrices of inputs times Gram matrices of backpropagated outputs.

    $$\sum_{o,\,\text{layers}}\bigl(a^\top a' + 1_{\text{bias}}\bigr)\,
    \bigl(\nabla_pf_o\bigr)^\top\bigl(\nabla_{p}f_o\bigr)' ,$$

    the kernel times the number of outputs, at the cost of one backward pass an output.

    Args:
        model: network from (n, ...) to (n, k) whose trainable parameters all belong to linear layers, each used once,
            on one vector a point.
        x: points, shape (N, ...), in the parameters' dtype.
        x_new: other points, shape (q, ...); None: `x` again.
        outputs: coordinates to sum over.

    Returns:
        The sum, shape (N, q), or (N, N) without other points; float64.

    Raises:
        ValueError: if a trainable parameter belongs to no linear layer or to several, a layer is used twice or on more
            than one vector a point, or a weight also acts outside its layer.

    References:
        The companion's own choice; `companion.theory.ntk.empirical` compares it with the other methods.

    Examples:
        >>> from_layers(nn.Linear(2, 3), torch.tensor([[1.0, 0.0], [1.0, 2.0]]), None, [0]).tolist()
        [[2.0, 2.0], [2.0, 6.0]]
    """
    layers = _linear_layers(model)
    left = _Passed(model, layers, x, outputs)
    right = left if x_new is None else _Passed(model, layers, x_new, outputs)
    backward = [torch.zeros((), dtype=torch.float64, device=x.device)] * len(layers)
    for output in outputs:
        g = left.gradients(output)
        h = g if right is left else right.gradients(output)
        backward = [B + g_l @ h_l.T for B, g_l, h_l in zip(backward, g, h, strict=True)]
    K = torch.zeros(len(x), len(x if x_new is None else x_new), dtype=torch.float64, device=x.device)
    for layer, a, b, B in zip(layers, left.inputs, right.inputs, backward, strict=True):
        forward = a.double() @ b.double().T if layer.weight.requires_grad else torch.zeros_like(K)
        K += (forward + (layer.bias is not None and layer.bias.requires_grad)) * B
    return K


def _linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Return the layers that own the trainable parameters; complain unless they are linear and share none."""
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and any(p.requires_grad for p in module.parameters())
    ]
    owned = [id(p) for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and owned.count(id(parameter)) != 1:
            why = "is shared by several layers" if id(parameter) in owned else "belongs to no nn.Linear"
            raise ValueError(f'ntk: "dense" needs linear layers; "{name}" {why}: take "jacobian" or "blocks"')
    return layers


class _Passed:
    """Points that have passed through a model: what came into its linear layers, and the graph to go back."""

    def __init__(self, model: nn.Module, layers: list[nn.Linear], x: Tensor, outputs: list[int]) -> None:
        self.f, seen = noted(model, layers, x)
        for layer, calls in seen.items():
            shapes = [tuple(a.shape) for a, _ in calls]
            if len(calls) != 1 or len(shapes[0]) != 2 or shapes[0][0] != len(x):
                raise ValueError(
                    f'ntk: "dense" needs each linear layer once, on an input ({len(x)}, width); {layer} '
                    f'had inputs {shapes}: take "jacobian" or "blocks"'
                )
        self.inputs = [seen[layer][0][0] for layer in layers]
        self.sums = [seen[layer][0][1] for layer in layers]
        self._check_weights(layers, outputs)

    def gradients(self, output: int) -> list[Tensor]:
        """Return the derivatives of one output by the outputs of each layer, (n, width), float64."""
        return [g.double() for g in gradients(self.f[:, output].sum(), self.sums)]

    def _check_weights(self, layers: list[nn.Linear], outputs: list[int]) -> None:
        """Compare one gradient by weights with autograd's: a weight may also be used outside its layer."""
        owned = [(i, p) for i, layer in enumerate(layers) for p in layer.parameters() if p.requires_grad]
        found = gradients(self.f[:, outputs].sum(), [*self.sums, *(p for _, p in owned)])
        for (i, p), gradient in zip(owned, found[len(layers) :], strict=True):
            a, g = self.inputs[i], found[i]
            expected, size = (g.T @ a, g.abs().T @ a.abs()) if p.ndim == 2 else (g.sum(0), g.abs().sum(0))
            if (gradient - expected).abs().max() > rounding(size):
                raise ValueError(
                    f'ntk: "dense" needs each weight in its layer only; one of {layers[i]} also acts elsewhere: '
                    'take "jacobian" or "blocks"'
                )
