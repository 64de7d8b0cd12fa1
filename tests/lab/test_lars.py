"""Witnesses: another library (lightly), torch's SGD, lengths of steps known by hand, a run that was resumed."""

import dataclasses
import importlib
import warnings

import pytest
import torch
from torch import nn

from companion.lab.lars import Lars
from companion.lab.train import Options, fit

OPTIONS = Options(steps=8, batch_size=8, lr=0.5, optimizer="lars", weight_decay=0.01, warmup_steps=2)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3), nn.Tanh())


def pairs(n, generator):
    x = torch.rand(n, 5, generator=generator)
    return x, x + 0.1 * torch.randn(n, 5, generator=generator)


def loss(z1, z2):
    return (z1 - z2).square().sum(1).mean() - 0.3 * (z1 * z2).sum(1).mean()


def state(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_lightlys():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the import only
        oracle = importlib.import_module("lightly.utils.lars").LARS
    ours, theirs = network().double(), network().double()
    fit(ours, lambda n, g: tuple(x.double() for x in pairs(n, g)), loss, OPTIONS)
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    rest = {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0}  # which it takes as plain
    optimizer = oracle([{"params": matrices}, rest], lr=0.5, momentum=0.9, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for step in range(8):
        for group in optimizer.param_groups:
            group["lr"] = OPTIONS.rate(step)
        optimizer.zero_grad()
        loss(*theirs(torch.cat(pairs(8, generator)).double()).chunk(2)).backward()
        optimizer.step()
    assert torch.allclose(state(ours), state(theirs), rtol=0, atol=1e-8)
    assert not torch.allclose(state(ours), state(network().double()), atol=1e-4)


def test_a_step_is_a_share_of_the_weights_whatever_the_scale_of_the_loss():
    moves = []
    for scale in (1.0, 1000.0):
        w = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        w.grad = scale * torch.tensor([[0.0, 1.0], [2.0, 0.0]])
        Lars([w], lr=0.5, trust=0.01).step()
        moves.append((w.detach() - torch.diag(torch.tensor([3.0, 4.0]))).norm().item())
    assert moves == pytest.approx([0.5 * 0.01 * 5.0] * 2, rel=1e-4)


def test_vectors_take_the_steps_of_sgd_without_decay():
    ours, theirs = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    optimizers = Lars([ours], 0.1, 0.9, 0.5), torch.optim.SGD([theirs], 0.1, 0.9)
    for step in range(3):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = torch.tensor([1.0, -step])
            optimizer.step()
    assert torch.allclose(ours, theirs)


def test_zero_weights_leave_zero_and_zero_gradients_move_nothing():
    zero, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    Lars([zero, still, nn.Parameter(torch.ones(1, 1))], 0.1, weight_decay=0.5).step()
    assert torch.allclose(zero, torch.full((2, 2), -0.1))
    assert torch.equal(still, torch.ones(2, 2))


def test_resumed(tmp_path):
    calls = []

    def stops(n, generator):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return pairs(n, generator)

    options = dataclasses.replace(OPTIONS, checkpoint_every=3)
    whole, resumed = network(), network(1)
    fit(whole, pairs, loss, options)
    with pytest.raises(KeyboardInterrupt):
        fit(network(), stops, loss, options, checkpoint=tmp_path / "run.pt")
    fit(resumed, pairs, loss, options, checkpoint=tmp_path / "run.pt")
    assert torch.equal(state(whole), state(resumed))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr of LARS: expected 0 or more, found -1"),
        ({"lr": 1.0, "momentum": -1.0}, "momentum of LARS"),
        ({"lr": 1.0, "weight_decay": float("nan")}, "weight_decay of LARS: expected 0 or more, found nan"),
        ({"lr": 1.0, "trust": 0.0}, "trust of LARS: expected a positive number, found 0"),
    ],
)
def test_errors_teach(settings, message):
    with pytest.raises(ValueError, match=message):
        Lars([nn.Parameter(torch.ones(1))], **settings)
    with pytest.raises(ValueError, match="expected no closure"):
        Lars([nn.Parameter(torch.ones(1))], 1.0).step(lambda: 0.0)
