"""Witnesses: shapes, torchvision's own network, moments of batch norm, counts of parameters by hand."""

import pytest
import torch
from torch import nn
from torchvision import models

from companion.lab.encoders import mlp, projector, resnet, small_cnn


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (8, 1), (32, 3), (33, 1)])
def test_small_cnn(size, channels):
    encoder = small_cnn(channels, k=10, size=size, generator=generator())
    x = torch.rand(4, channels, size, size, generator=generator())
    assert encoder.features(x).shape == (4, 128)
    assert encoder(x).shape == (4, 10)


def test_small_cnn_parameters():
    encoder = small_cnn(k=64, generator=generator())
    convolutions = 9 * (1 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64)
    assert parameters(encoder.backbone) == convolutions + 64 * 4 * 4 * 128 + 2 * 128
    assert parameters(encoder.projector) == 128 * 128 + 2 * 128 + 128 * 64 + 2 * 64


def test_small_cnn_with_a_linear_head():
    encoder = small_cnn(k=6, size=8, hidden=None, generator=generator())
    assert isinstance(encoder.projector, nn.Linear)
    assert parameters(encoder.projector) == 128 * 6 + 6
    x = torch.rand(4, 1, 8, 8, generator=generator())
    W, b = encoder.projector.parameters()
    assert torch.allclose(encoder(x), encoder.features(x) @ W.T + b, atol=1e-6)
    usual = small_cnn(k=6, size=8, generator=generator())  # the same backbone: it is drawn first
    for a, b in zip(encoder.backbone.parameters(), usual.backbone.parameters(), strict=True):
        assert torch.equal(a, b)


def test_projector_ends_in_batch_norm_without_relu():
    head = projector((5, 7, 3))
    assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    z = head(torch.randn(50, 5, generator=generator()))
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(z.var(0, correction=0), torch.ones(3), atol=1e-3)


def test_resnet_cifar():
    encoder = resnet(18, generator=generator())
    x = torch.rand(2, 3, 32, 32, generator=generator())
    assert encoder.features(x).shape == (2, 512)
    assert encoder(x).shape == (2, 1000)
    assert encoder.backbone.relu(encoder.backbone.conv1(x)).shape == (2, 64, 32, 32)
    assert parameters(encoder.backbone) == parameters(models.resnet18()) - (512 * 1000 + 1000) - 64 * 3 * (49 - 9)
    assert parameters(encoder.projector) == 512 * 2048 + 2 * 2048 + 2048 * 1000 + 2 * 1000


def test_resnet_50():
    encoder = resnet(50, k=4, hidden=(8, 8), channels=1, generator=generator())
    x = torch.rand(2, 1, 32, 32, generator=generator())
    assert encoder.features(x).shape == (2, 2048)
    assert encoder(x).shape == (2, 4)
    assert resnet(18, k=4, hidden=(), stem="imagenet", channels=1, generator=generator())(x).shape == (2, 4)


def test_imagenet_stem_is_torchvisions():
    encoder = resnet(18, k=4, hidden=(8,), stem="imagenet", generator=generator()).eval()
    oracle = models.resnet18(weights=None)
    oracle.fc = nn.Identity()
    oracle.load_state_dict(encoder.backbone.state_dict())
    x = torch.rand(2, 3, 64, 64, generator=generator())
    assert torch.equal(encoder.features(x), oracle.eval()(x))


def test_mlp_is_two_matrices_and_a_kink():
    encoder = mlp((6, 5, 2), generator=generator())
    x = torch.randn(3, 1, 2, 3, generator=generator())
    W1, b1, W2, b2 = encoder.parameters()
    h = (x.flatten(1) @ W1.T + b1).clamp_min(0)
    assert torch.allclose(encoder.features(x), h)
    assert torch.allclose(encoder(x), h @ W2.T + b2)


@pytest.mark.parametrize("build", [lambda g: mlp((4, 3, 2), generator=g), lambda g: small_cnn(k=4, generator=g)])
def test_weights_come_from_the_generator_alone(build):
    before = torch.get_rng_state()
    first, second, other = build(generator(1)), build(generator(1)), build(generator(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_unknown_shapes():
    with pytest.raises(ValueError, match="depth 18 or 50"):
        resnet(34, generator=generator())
    with pytest.raises(ValueError, match="stem"):
        resnet(18, stem="mnist", generator=generator())
    with pytest.raises(ValueError, match="hidden layer"):
        mlp((784, 10), generator=generator())
