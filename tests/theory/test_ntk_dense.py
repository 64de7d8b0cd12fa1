"""Witnesses: the outer products written out, a count of what is held, networks to which the method does not apply."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from companion.theory.ntk import empirical
from companion.theory.ntk_dense import from_layers


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_two_layers_are_their_outer_products():
    """Of f = V tanh(W x + b): a = x, p = W x + b, then a = tanh p, p = f."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()
    x, x_new, V = gaussian(5, 3), gaussian(6, 3, seed=1), model[2].weight.detach()
    with torch.no_grad():
        h, h_new = torch.tanh(model[0](x)), torch.tanh(model[0](x_new))
    expected = torch.zeros(5, 6, dtype=torch.float64)
    for output in (0, 1):
        g, g_new = V[output] * (1 - h**2), V[output] * (1 - h_new**2)
        expected += (x @ x_new.T + 1) * (g @ g_new.T) + h @ h_new.T
    assert torch.allclose(from_layers(model, x, x_new, [0, 1]), expected, rtol=0, atol=1e-13)
    assert not torch.allclose(from_layers(model, x, x_new, [0]), expected, rtol=0, atol=1e-3)
    assert torch.allclose(from_layers(model, x, x, [1]), from_layers(model, x, None, [1]), rtol=0, atol=1e-13)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
        return out


def test_no_derivative_of_a_point_by_a_weight_is_formed():
    """12 points and a layer 40 x 30: one output's derivatives by it would be 12 x 1200 numbers."""
    model = nn.Sequential(nn.Linear(30, 40, bias=False), nn.ReLU(), nn.Linear(40, 3)).double()
    x, largest = gaussian(12, 30), {}
    for method in ("dense", "jacobian"):
        with Largest() as watch:
            empirical(model, x, method)
        largest[method] = watch.numel
    assert largest["dense"] == 30 * 40  # the one gradient of a weight, summed over points, that its check takes
    assert largest["jacobian"] >= 12 * 30 * 40


def test_hooks_go_when_the_model_fails():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(5, 2)).double()
    with pytest.raises(RuntimeError, match="shapes"):
        from_layers(model, gaussian(4, 3), None, [0])
    assert not any(module._forward_hooks for module in model.modules())


class Tied(nn.Module):
    """Uses a weight where no hook can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(torch.tanh(self.layer(x)), self.layer.weight.T)


class Twice(Tied):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.tanh(self.layer(x)))


def shared() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval(), "belongs to no nn.Linear"),
        (shared(), "is shared by several layers"),
        (Twice(), "each linear layer once"),
        (nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Linear(1, 2), nn.Flatten()), r"on an input \(4, width\)"),
        (Tied(), "also acts elsewhere"),
    ],
)
def test_errors_teach(model, message):
    with pytest.raises(ValueError, match=f'"dense" needs.*{message}.*take "jacobian" or "blocks"'):
        empirical(model, torch.ones(4, 3) * torch.arange(1.0, 5.0)[:, None], "dense")
