"""Witnesses: the Jacobian's own kernel in float64, both contractions of a layer, networks out of reach."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from companion.theory import ntk_layers
from companion.theory.ntk import empirical, empirical_at


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    """Weights, factors and shifts drawn, running statistics of five batches, at rest."""
    model, generator = model.double(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        for seed in range(5):
            model(1 + gaussian(*x.shape, seed=10 + seed))
    return model.eval(), x


class Residual(nn.Module):
    """A block of a ResNet: two branches, one of them a convolution of one pixel; activations in place; mean pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.first, self.norm = nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.second, self.skip = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Conv2d(4, 6, 1, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        branch = self.second(functional.relu(self.norm(self.first(h)), inplace=True))
        return self.head(functional.relu(branch + self.skip(h)).mean((2, 3)))


def images() -> torch.Tensor:
    return gaussian(5, 2, 7, 6)


NETWORKS = {
    "perceptron": lambda: (nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), gaussian(5, 6)),
    "residual": lambda: (Residual(), images()),
    "options of a convolution": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, (3, 2), (2, 1), (1, 2), (1, 2)), nn.Tanh(), nn.Flatten(), nn.Linear(96, 2)),
        images(),
    ),
    "pooling": lambda: (
        nn.Sequential(
            *(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 40, 3), nn.GELU(), nn.AvgPool2d((1, 1)), nn.Flatten(), nn.Linear(40, 2)),
        ),
        images(),
    ),
    "sequences": lambda: (
        nn.Sequential(
            *(nn.Conv1d(3, 4, 3, 2, 1, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Linear(3, 6), nn.LayerNorm((4, 6))),
            *(nn.GELU(), nn.LayerNorm(6), nn.Flatten(), nn.BatchNorm1d(24), nn.Linear(24, 2, bias=False)),
        ),
        gaussian(5, 3, 8),
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_kernel_is_that_of_the_jacobian(network):
    model, x = drawn(*NETWORKS[network]())
    x_new = gaussian(4, *x.shape[1:], seed=5)
    K, cross = empirical(model, x), empirical_at(model, x, x_new)
    for chunk, held in ((32, 2**27), (2, 2**27), (3, 400), (5, 1)):
        found = empirical(model, x, "layers", chunk=chunk, held=held)
        assert torch.allclose(found, K, rtol=1e-12, atol=1e-10)
        found = empirical_at(model, x, x_new, "layers", chunk=chunk, held=held)
        assert torch.allclose(found, cross, rtol=1e-12, atol=1e-10)
    few = empirical(model, x, "layers", outputs=[1])
    assert torch.allclose(few, empirical(model, x, outputs=[1]), rtol=1e-12, atol=1e-10)
    assert not torch.allclose(few, K, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("network", NETWORKS)
def test_each_parameter_counts_for_itself(network):
    """One by one trainable, all others constant; the kernels add up."""
    model, x = drawn(*NETWORKS[network]())
    whole, total = empirical(model, x, "layers"), 0.0
    for parameter in model.parameters():
        model.requires_grad_(False)
        parameter.requires_grad_(True)
        alone = empirical(model, x, "layers")
        assert torch.allclose(alone, empirical(model, x), rtol=1e-12, atol=1e-10)
        total = total + alone
    assert torch.allclose(torch.as_tensor(total), whole, rtol=1e-12, atol=1e-10)


def pieces(model: nn.Module, x: torch.Tensor, k: int, held: int = 2**27) -> list[list[ntk_layers._Piece]]:
    sizes = ntk_layers._check(model, ntk_layers._layers(model), x, list(range(k)))
    return list(ntk_layers._blocks(sizes, k, len(x), held))


def test_both_contractions_are_taken_each_where_it_is_cheaper():
    """Convolutions of 42 places, then of one: 2 * (1 * 80 + 73) < 80 * 73; the last layer is linear."""
    model, x = drawn(*NETWORKS["pooling"]())
    (block,) = pieces(model, x, 2)
    assert [piece.apart for piece in block] == [False, False, True, True]
    one_place = nn.Sequential(nn.Conv2d(2, 30, (7, 5)), nn.Flatten(), nn.Linear(60, 2)).double()
    (block,) = pieces(one_place, images(), 2)
    assert [piece.apart for piece in block] == [True, True]  # two places each way: 4 * (60 + 71) < 2 * 30 * 71


@pytest.mark.parametrize("places", [1, 2, 6])
def test_the_two_contractions_are_equal(places):
    layer, other = nn.Linear(7, 4), (gaussian(3, 8, places, seed=2), gaussian(3, 2, 4, places, seed=3))
    found = [(gaussian(5, 8, places), gaussian(5, 2, 4, places, seed=1)), other]
    kernels = []
    for apart in (False, True):
        piece = ntk_layers._Piece(layer, slice(0, 4), apart, places * (2 * 4 + 8))
        left, right = ([piece.factors(*side)] for side in found)
        kernels.append(piece.products(left, right))
    (a, d), (b, e) = found
    naive = torch.einsum("nds,mdt,nkcs,mkct->nm", a, b, d, e)
    for K in kernels:
        assert torch.allclose(K, naive, rtol=1e-12, atol=1e-12)


def test_blocks_hold_what_they_may():
    """5 points, 3 outputs; one output channel of the largest layer needs 5 * 3 * 54 numbers."""
    model, x = drawn(*NETWORKS["residual"]())
    for held in (900, 2000, 10**4):
        blocks = pieces(model, x, 3, held)
        assert max(sum(len(x) * piece.numbers for piece in block) for block in blocks) <= held
        channels = {}
        for piece in (piece for block in blocks for piece in block):
            channels.setdefault(piece.layer, []).extend(range(piece.channels.start, piece.channels.stop))
        assert all(found == list(range(len(found))) for found in channels.values())
        assert len(channels[model.second]) == 6
    assert len(pieces(model, x, 3, 900)) > len(pieces(model, x, 3, 2000)) > 1
    assert all(len(block) == 1 for block in pieces(model, x, 3, 1))


def test_hooks_go_when_the_model_fails():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(5, 2)).double()
    with pytest.raises(RuntimeError, match="shapes"):
        ntk_layers.from_layers(model, gaussian(4, 3), None, [0])
    assert not any(module._forward_hooks for module in model.modules())


class Tied(nn.Module):
    """Uses a filter where no hook can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(torch.tanh(self.layer(x)), self.layer.weight).flatten(1)


class Twice(Tied):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.tanh(self.layer(x))).flatten(1)


class Turned(nn.Module):
    """Gives its layer another axis first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1, 2).transpose(0, 1)).transpose(0, 1).flatten(1)


class Offset(nn.Sequential):
    """Adds a parameter of its own."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.offset = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.offset


def shared() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten())
    model[2].weight = model[0].weight
    return model


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Offset(nn.Flatten(), nn.Linear(84, 2)), '"offset" belongs to none of Linear, Conv1d'),
        (nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.Flatten()), r'"0\.weight" belongs to none'),
        (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten()), 'one group.*"0" is Conv2d.*groups=2'),
        (nn.Sequential(nn.Conv2d(2, 4, 3, padding="same"), nn.Flatten()), "padded by zeros in numbers"),
        (nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.Flatten()), "padded by zeros"),
        (shared(), "is shared by several layers"),
        (Twice(), "each layer once"),
        (Turned(), "on a batch of 1 points"),
        (Tied(), "also acts elsewhere"),
    ],
)
def test_errors_teach(model, message):
    with pytest.raises(ValueError, match=f'"layers" needs.*{message}.*take "jacobian" or "blocks"'):
        empirical(model.double(), images(), "layers")


def test_constant_layers_may_be_of_any_kind():
    model = nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.Conv2d(2, 2, 3, groups=2), nn.Flatten(), nn.Linear(84, 2))
    model.double()[:2].requires_grad_(False)
    assert torch.allclose(empirical(model, images(), "layers"), empirical(model, images()), rtol=1e-12, atol=1e-10)
