"""Witnesses: a double loop over autograd, finite differences, linear maps by hand, the kernel of an infinite width."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from companion.lab.encoders import Encoder, mlp, small_cnn
from companion.theory import ntk
from companion.theory.ntk import empirical, empirical_at

METHODS = ("jacobian", "dense", "layers", "blocks")


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def perceptron() -> tuple[nn.Module, torch.Tensor]:
    return mlp((6, 5, 4, 3), generator=torch.Generator().manual_seed(1)).double(), gaussian(7, 2, 3)


def convolutional() -> tuple[nn.Module, torch.Tensor]:
    """Batch norm has seen data, so that its two modes differ."""
    model = small_cnn(feature_dim=6, k=3, size=8, width=2, hidden=(5,), generator=torch.Generator().manual_seed(2))
    model = model.double()
    for seed in range(5):
        model(2 + gaussian(16, 1, 8, 8, seed=seed))
    return model.eval(), 2 + gaussian(6, 1, 8, 8, seed=9)


class Residual(nn.Module):
    """Layers out of order, an activation in place, a skip connection: a stack it is not, "dense" it is."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.middle = nn.Linear(4, 2), nn.Linear(3, 4, bias=False), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = functional.relu(self.first(x), inplace=True)
        return self.last(torch.tanh(self.middle(h)) + h)


def naive(model, x, x_new, outputs=None):
    """One point and one output at a time, by torch.autograd.grad; the product of each two gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(point):
        f = model(point[None])[0]
        chosen = range(len(f)) if outputs is None else outputs
        rows = [torch.autograd.grad(f[o], parameters, retain_graph=True, materialize_grads=True) for o in chosen]
        return [torch.cat([g.flatten() for g in row]) for row in rows]

    left, right = [gradients(point) for point in x], [gradients(point) for point in x_new]
    K = torch.zeros(len(x), len(x_new), dtype=torch.float64)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            K[i, j] = sum(g @ h for g, h in zip(a, b, strict=True)) / len(a)
    return K


@pytest.mark.parametrize("method", METHODS)
def test_perceptron_is_the_double_loop(method):
    model, x = perceptron()
    x_new = gaussian(4, 2, 3, seed=5)
    assert torch.allclose(empirical(model, x, method), naive(model, x, x), rtol=0, atol=1e-10)
    assert torch.allclose(empirical_at(model, x, x_new, method), naive(model, x, x_new), rtol=0, atol=1e-10)
    assert torch.allclose(empirical(model, x, method, outputs=[2, 0]), naive(model, x, x, [0, 2]), rtol=0, atol=1e-10)
    assert not torch.allclose(empirical(model, x, method, outputs=[1]), naive(model, x, x), rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["jacobian", "layers", "blocks"])
def test_network_with_batch_norm_at_rest_is_the_double_loop(method):
    model, x = convolutional()
    expected = naive(model, x, x)
    assert torch.allclose(empirical(model, x, method), expected, rtol=1e-12, atol=1e-10)
    assert torch.allclose(
        empirical_at(model, x[:4], x[2:], method, outputs=[1]), naive(model, x[:4], x[2:], [1]), rtol=1e-12, atol=1e-10
    )


@pytest.mark.parametrize("method", METHODS)
def test_order_of_layers_and_activations_do_not_matter(method):
    torch.manual_seed(0)
    nested = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)), nn.Tanh(), nn.Linear(4, 2))
    for model in (Residual(), nested, Encoder(nested, nn.Sequential(nn.Identity(), nn.GELU(), nn.Linear(2, 2)))):
        x = gaussian(5, 3)
        assert torch.allclose(empirical(model.double(), x, method), naive(model, x, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_parameters_are_constants(method):
    x = gaussian(5, 3)
    for frozen in ("first.weight", "middle.weight", "middle.bias", "last.weight"):
        model = Residual().double()
        model.get_parameter(frozen).requires_grad_(False)
        assert torch.allclose(empirical(model, x, method), naive(model, x, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["jacobian", "blocks"])
def test_shared_weights_count_once_with_both_uses(method):
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    x = gaussian(4, 3)
    assert torch.allclose(empirical(model, x, method), naive(model, x, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_linear_map_has_the_linear_kernel(method):
    x, x_new = gaussian(6, 4), gaussian(3, 4, seed=1)
    for bias in (False, True):
        model = nn.Linear(4, 5, bias=bias).double()
        assert torch.allclose(empirical(model, x, method), x @ x.T + bias, rtol=0, atol=1e-13)
        assert torch.allclose(empirical_at(model, x, x_new, method), x @ x_new.T + bias, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_step_moves_outputs_by_the_kernel(method):
    model, x, o, step = Residual().double(), gaussian(5, 3), 1, 1e-5
    v = gaussian(5, seed=3)
    direction = torch.autograd.grad(model(x)[:, o] @ v, list(model.parameters()))

    @torch.no_grad()
    def moved(distance):
        for p, d in zip(model.parameters(), direction, strict=True):
            p.add_(d, alpha=distance)
        f = model(x)[:, o]
        for p, d in zip(model.parameters(), direction, strict=True):
            p.sub_(d, alpha=distance)
        return f

    change = (moved(step) - moved(-step)) / (2 * step)
    assert torch.allclose(empirical(model, x, method, outputs=[o]) @ v, change, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_kernel_is_symmetric_positive_semidefinite_and_its_own_cross_kernel(method):
    model, x = perceptron()
    x = torch.cat([x, x])  # singular
    K = empirical(model, x, method)
    assert torch.equal(K, K.T)
    assert torch.linalg.eigvalsh(K)[0] > -1e-13 * K.trace()
    assert torch.allclose(empirical_at(model, x, x, method), K, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_float32_models_give_float64_kernels_without_negative_eigenvalues(method):
    model, x = perceptron()
    K = empirical(model, x, method)
    single = empirical(model.float(), torch.cat([x, x]).float(), method)
    assert single.dtype == torch.float64
    assert torch.allclose(single[:7, :7], K, rtol=1e-5, atol=1e-6)
    assert torch.linalg.eigvalsh(single)[0] > -1e-13 * single.trace()


def test_chunks_and_blocks_of_any_size_give_one_kernel():
    model, x = perceptron()
    K = empirical(model, x)
    for chunk in (3, 100):
        assert torch.allclose(empirical(model, x, chunk=chunk), K, rtol=0, atol=1e-13)
        for held in (100, 7 * 20, 10**6):
            assert torch.allclose(empirical(model, x, "blocks", chunk=chunk, held=held), K, rtol=0, atol=1e-13)
    assert torch.allclose(empirical(model, x, "blocks", chunk=7, held=1, outputs=[0]), empirical(model, x, outputs=[0]))
    cross = empirical_at(model, x, x[:3])
    assert torch.allclose(empirical_at(model, x, x[:3], "blocks", chunk=2, held=33), cross, rtol=0, atol=1e-13)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
        return out


def test_blocks_never_hold_more_than_they_say(monkeypatch):
    """12 points; the largest of 3 tensors, 40 x 30, alone is more than may be held, its gradients at 2 points too."""
    model = nn.Sequential(nn.Linear(30, 40, bias=False), nn.ReLU(), nn.Linear(40, 3)).double()
    x, held, shapes = gaussian(12, 30), 1500, []
    original = ntk._block_jacobian

    def watched(*args):
        J = original(*args)
        shapes.append(tuple(J.shape))
        return J

    monkeypatch.setattr(ntk, "_block_jacobian", watched)
    K, largest = empirical(model, x), {}
    for method in ("jacobian", "blocks"):
        with Largest() as watch:
            assert torch.allclose(empirical(model, x, method, chunk=1, held=held), K, rtol=0, atol=1e-12)
        largest[method] = watch.numel
    assert {shape[0] for shape in shapes} == {12}
    assert max(math.prod(shape) for shape in shapes) == held
    assert sum(shape[1] for shape in shapes) == 3 * (1200 + 120 + 3)  # each output, each parameter: once
    assert largest["blocks"] == held
    assert largest["jacobian"] > 10 * held


class Scaled(nn.Module):
    """f(x) = (2 / M)^(1/2) a relu(W x), standard normal weights: the NTK parametrisation."""

    def __init__(self, sizes: tuple[int, int, int], generator: torch.Generator) -> None:
        super().__init__()
        self.W, self.a = (nn.Linear(*pair, bias=False) for pair in pairwise(sizes))
        for layer in (self.W, self.a):
            nn.init.normal_(layer.weight, generator=generator)
        self.scale = (2 / sizes[1]) ** 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(torch.relu(self.W(x))) * self.scale


def arc_cosine(x: torch.Tensor) -> torch.Tensor:
    """The limit: |x||x'| (sin t + (pi - t) cos t) / pi from a, x.x' (pi - t) / pi from W, t the angle."""
    norms = x.norm(dim=1)
    cosine = (x @ x.T / norms.outer(norms)).clamp(-1, 1)
    angle = cosine.acos()
    return norms.outer(norms) * (angle.sin() + 2 * (math.pi - angle) * cosine) / math.pi


def test_kernel_at_random_weights_approaches_its_limit_like_one_over_root_width(generator):
    x = gaussian(8, 4)
    widths, draws = [2**p for p in range(5, 13)], 24
    errors = []
    for width in widths:
        models = [Scaled((4, width, 1), generator).double() for _ in range(draws)]
        squares = [(empirical(model, x, "dense") - arc_cosine(x)).square().mean() for model in models]
        errors.append(float(torch.stack(squares).mean().sqrt() / arc_cosine(x).square().mean().sqrt()))
    logs = torch.tensor([widths, errors], dtype=torch.float64).log()
    centred = logs - logs.mean(1, keepdim=True)
    order = float(centred[0] @ centred[1] / centred[0].square().sum())
    assert order == pytest.approx(-0.5, abs=0.05)
    assert errors[-1] < 0.03
    assert all(wide < 0.9 * narrow for narrow, wide in pairwise(errors))


def test_outputs_of_a_wide_network_share_one_kernel(generator):
    x = gaussian(6, 4)
    spread = []
    for width in (32, 8192):
        model = Scaled((4, width, 2), generator).double()
        first, second = (empirical(model, x, "dense", outputs=[o]) for o in (0, 1))
        spread.append(float((first - second).norm() / (first + second).norm()))
    assert spread[1] < 0.02 < 0.05 < spread[0]


def test_model_is_left_as_it_was():
    model, x = perceptron()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        kernels = [empirical(model, x.requires_grad_(), method) for method in METHODS]
    assert not any(K.requires_grad for K in kernels)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


class Centred(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


def infinite() -> nn.Module:
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, math.inf)
    return model


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(3, 2), {"method": "fast"}, "\"fast\" is none of 'jacobian', 'dense'"),
        (nn.Linear(3, 2), {"chunk": 0}, "at least 1"),
        (nn.Linear(3, 2), {"held": 0}, "at least 1"),
        (nn.Linear(3, 2), {"outputs": [2]}, "some of 0 to 1"),
        (nn.Linear(3, 2), {"outputs": []}, "some of 0 to 1"),
        (nn.Linear(3, 2).requires_grad_(False), {}, "no parameter of the model requires a gradient"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), {}, r'"1" \(BatchNorm1d\) normalises by its batch'),
        (nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), {}, r'"1" \(Dropout\) is in training mode'),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), {}, "normalises by its batch"),
        (nn.Sequential(nn.Linear(3, 2), Centred()), {}, "depends on the other points"),
        (nn.Sequential(nn.Linear(3, 2), nn.Flatten(0)), {}, r"outputs of shape \(n, k\)"),
        (infinite(), {}, "outputs are not finite"),
    ],
)
def test_errors_teach(model, options, message):
    with pytest.raises(ValueError, match=message):
        empirical(model, torch.ones(4, 3) * torch.arange(1.0, 5.0)[:, None], **options)


@pytest.mark.unchecked
def test_errors_of_points_teach():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="all of them finite"):
        empirical(model, torch.full((2, 3), math.nan))
    with pytest.raises(ValueError, match="there must be points"):
        empirical(model, torch.ones(0, 3))
    with pytest.raises(ValueError, match="all of them finite"):
        empirical_at(model, torch.ones(2, 3), torch.full((2, 3), math.inf))
    with pytest.raises(ValueError, match=r"points of shape \(3,\), x_new of \(4,\)"):
        empirical_at(model, torch.ones(2, 3), torch.ones(2, 4))
    steep = nn.Sequential(nn.Linear(1, 1, bias=False), Root())
    with pytest.raises(ValueError, match="kernel is not finite"):
        empirical(steep, torch.zeros(2, 1))


class Root(nn.Module):
    """Finite at zero, with a derivative that is not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs().sqrt()
