"""Witnesses: the training loop written out with two separate networks, limits of the momentum, a resumed run."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from companion.lab import steps
from companion.lab.byol import Byol, objective
from companion.lab.encoders import mlp, small_cnn
from companion.lab.train import Options, fit

OPTIONS = Options(steps=12, batch_size=8, lr=0.05, checkpoint_every=5, weight_decay=0.0)


def model(seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    return Byol(mlp((6, 9, 4), generator=generator), 4, 7, generator=generator, **settings)


def pairs(n, generator):
    x = torch.rand(n, 6, generator=generator)
    return tuple(x + 0.1 * torch.randn(n, 6, generator=generator) for _ in range(2))


def parameters(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_updates_by_hand():
    found = model(momentum=0.9)
    online, predictor, target = (copy.deepcopy(part) for part in (found.encoder, found.predictor, found.target))
    history = fit(found, pairs, objective, OPTIONS)
    learned = [*online.parameters(), *predictor.parameters()]
    optimizer = torch.optim.SGD(learned, momentum=0.9)
    generator, losses = torch.Generator().manual_seed(0), []
    for t in range(12):
        x = torch.cat(pairs(8, generator))
        p = nn.functional.normalize(predictor(online(x)), dim=1)
        z = nn.functional.normalize(target(x), dim=1).detach()
        across = (p[:8] - z[8:]).square().sum(1).mean() + (p[8:] - z[:8]).square().sum(1).mean()
        losses.append(across.item() / 2)
        optimizer.param_groups[0]["lr"] = OPTIONS.rate(t)
        optimizer.zero_grad()
        (across / 2).backward()
        optimizer.step()
        last = parameters(target)
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.copy_(0.9 * slow + 0.1 * fast)
    assert history.losses.tolist() == pytest.approx(losses, abs=1e-5)
    assert torch.allclose(parameters(found.encoder), parameters(online), atol=1e-5)
    assert torch.allclose(parameters(found.target), last, atol=1e-5)  # the last move waits for the next pass
    found.follow()
    assert torch.allclose(parameters(found.target), parameters(target), atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_limits_of_the_momentum(momentum):
    found = model(momentum=momentum)
    start = parameters(found.target)
    fit(found, pairs, objective, OPTIONS)
    found.follow()
    assert not torch.equal(parameters(found.encoder), start)
    assert torch.equal(parameters(found.target), start if momentum else parameters(found.encoder))


def test_no_gradient_reaches_the_target():
    found = model().train()
    x1, x2 = pairs(8, torch.Generator().manual_seed(0))
    objective(*found(torch.cat([x1, x2])).chunk(2)).backward()
    assert all(p.grad is None for p in found.target.parameters())
    assert all(p.grad is not None for p in (*found.encoder.parameters(), *found.predictor.parameters()))


def test_only_training_moves_the_target():
    found = model(momentum=0.0)
    x, start = torch.cat(pairs(8, torch.Generator().manual_seed(0))), parameters(found.target)
    steps.scale_weights(found.encoder, 0.5)
    assert torch.equal(found.eval()(x), found.encoder(x))
    with torch.no_grad():
        assert found.train()(x).shape == (16, 8)
    assert torch.equal(parameters(found.target), start)
    found(x)
    assert torch.equal(parameters(found.target), parameters(found.encoder))


def test_stopped_and_resumed_under_watch(tmp_path):
    """The target is part of the state, and a watch, which looks in between, moves nothing."""
    calls = []

    def stops(n, generator):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return pairs(n, generator)

    x1, x2 = pairs(20, torch.Generator().manual_seed(1))
    whole, resumed = model(), model(1)
    watches = [steps.Watch(x1, x2, encoder=lambda m: m.encoder) for _ in range(2)]
    expected = fit(whole, pairs, objective, OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), stops, objective, OPTIONS, checkpoint=tmp_path / "run.pt", observe=watches[0], observe_every=3)
    found = fit(resumed, pairs, objective, OPTIONS, checkpoint=tmp_path / "run.pt", observe=watches[1], observe_every=3)
    assert torch.equal(found.losses, expected.losses)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert watches[1].steps.tolist() == [0, 3, 6, 9, 12]
    assert watches[1].covariance.shape == (5, 4)


def test_muon_leaves_the_target_alone():
    found = model(momentum=1.0)
    start = parameters(found.target)
    fit(found, pairs, objective, dataclasses.replace(OPTIONS, optimizer="muon", weight_decay=0.5))
    assert torch.equal(parameters(found.target), start)


def test_predictor_and_seeds():
    before = torch.get_rng_state()
    plain, normed, other = model(batch_norm=False), model(), model(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert [type(layer) for layer in normed.predictor] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in plain.modules())
    assert torch.equal(plain.predictor[0].weight, normed.predictor[0].weight)
    assert not torch.equal(parameters(normed.encoder), parameters(other.encoder))


def test_target_batch_norm_sees_the_batch():
    """Each network normalises by its own moments of the batch: right after the copy both embed alike."""
    generator = torch.Generator().manual_seed(0)
    found = Byol(small_cnn(k=4, size=8, generator=generator), 4, generator=generator).train()
    x = torch.rand(16, 1, 8, 8, generator=generator)
    target = found(x)[:, 4:]
    assert torch.allclose(target, found.encoder(x))
    assert torch.allclose(target.mean(0), torch.zeros(4), atol=1e-5)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_errors_teach(momentum):
    with pytest.raises(ValueError, match=r"momentum of the target: expected a number in \[0, 1\]"):
        model(momentum=momentum)
