"""Witnesses: the training loop written out with separate networks, autograd, limits of the momentum, a resumed run."""

import copy
import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from companion.lab import steps
from companion.lab.byol import Siamese, objective
from companion.lab.encoders import mlp, small_cnn
from companion.lab.predictors import Identity, Trained
from companion.lab.train import Options, fit
from companion.theory import losses

OPTIONS = Options(steps=12, batch_size=8, lr=0.05, checkpoint_every=5, weight_decay=0.0)


def encoder(generator):
    return mlp((6, 9, 4), generator=generator)


def model(seed=0, hidden=7, **settings):
    generator = torch.Generator().manual_seed(seed)
    predictor = Trained(4, hidden=hidden, bias=True, affine=True, generator=generator)
    return Siamese(encoder(generator), predictor, **settings)


def pairs(n, generator):
    x = torch.rand(n, 6, generator=generator)
    return tuple(x + 0.1 * torch.randn(n, 6, generator=generator) for _ in range(2))


def parameters(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def by_hand(found, momentum, squared=False, through_target=False):
    """Train copies of a model's parts by torch's own SGD; the losses, and the parts as they end."""
    online, predictor, target = (copy.deepcopy(part) for part in (found.encoder, found.predictor, found.target))
    optimizer = torch.optim.SGD([*online.parameters(), *predictor.parameters()], momentum=0.9)
    generator, values = torch.Generator().manual_seed(0), []
    for t in range(12):
        x = torch.cat(pairs(8, generator))
        p, z = predictor(online(x)), (online if through_target else target)(x)
        z = z if through_target else z.detach()
        if not squared:
            p, z = nn.functional.normalize(p, dim=1), nn.functional.normalize(z, dim=1)
        across = (p[:8] - z[8:]).square().sum(1).mean() + (p[8:] - z[:8]).square().sum(1).mean()
        values.append(across.item() / (4 if squared else 2))
        optimizer.param_groups[0]["lr"] = OPTIONS.rate(t)
        optimizer.zero_grad()
        (across / (4 if squared else 2)).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.copy_(momentum * slow + (1 - momentum) * fast)
    return values, online, predictor, target


@pytest.mark.parametrize(
    ("settings", "loss", "witness"),
    [
        ({"momentum": 0.9}, objective, {"momentum": 0.9}),
        ({"momentum": 0.0}, objective, {"momentum": 0.0}),
        ({"momentum": 0.9}, partial(objective, normalize=False), {"momentum": 0.9, "squared": True}),
        ({"momentum": 0.0, "stop_gradient": False}, objective, {"momentum": 0.0, "through_target": True}),
    ],
    ids=["slow target", "the same network", "squared distances", "no stop-gradient"],
)
def test_updates_by_hand(settings, loss, witness):
    found = model(**settings)
    values, online, predictor, target = by_hand(found, **witness)
    history = fit(found, pairs, loss, OPTIONS)
    assert history.losses.tolist() == pytest.approx(values, abs=1e-5)
    for part, expected in ((found.encoder, online), (found.predictor, predictor), (found.target, target)):
        assert torch.allclose(parameters(part), parameters(expected), atol=1e-5)


def test_the_stop_gradient_matters():
    ends = []
    for stop_gradient in (True, False):
        found = model(momentum=0.0, stop_gradient=stop_gradient)
        fit(found, pairs, objective, OPTIONS)
        ends.append(parameters(found))
    assert not torch.allclose(*ends, atol=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_limits_of_the_momentum(momentum):
    found = model(momentum=momentum)
    start = parameters(found.target)
    fit(found, pairs, objective, OPTIONS)
    assert not torch.equal(parameters(found.encoder), start)
    assert torch.equal(parameters(found.target), start if momentum else parameters(found.encoder))


def test_a_target_of_its_own():
    own = encoder(torch.Generator().manual_seed(5))
    expected = parameters(own).clone()
    found = model(momentum=0.9, own_target=own)
    assert torch.equal(parameters(found.target), expected)
    assert not torch.equal(parameters(found.encoder), expected)
    online = parameters(found.encoder).clone()
    found.after_update()
    assert torch.allclose(parameters(found.target), 0.9 * expected + 0.1 * online)
    assert torch.equal(parameters(own), expected)  # the model holds a copy
    assert not any(p.requires_grad for p in found.target.parameters())


def test_no_predictor():
    found = Siamese(encoder(torch.Generator().manual_seed(0)), Identity(), 0.0).train()
    x = torch.cat(pairs(8, torch.Generator().manual_seed(0)))
    prediction, target = found(x).chunk(2, dim=1)
    assert torch.equal(prediction, target)
    one_way = -nn.functional.cosine_similarity(prediction, target.detach().roll(8, 0)).mean()
    expected = torch.autograd.grad(2 * one_way, list(found.encoder.parameters()))
    value = objective(*found(x).chunk(2))
    found_gradients = torch.autograd.grad(value, list(found.encoder.parameters()))
    for a, b in zip(found_gradients, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert float(value.detach()) == pytest.approx(2 + 2 * float(one_way.detach()), abs=1e-6)


class TestLoss:
    """`losses.byol` without its stop-gradient and without its normalisation, against rows written out."""

    def test_squared_distances(self):
        p, t = pairs(5, torch.Generator().manual_seed(0))
        naive = sum(float((a - b) @ (a - b)) / 2 for a, b in zip(p, t, strict=True)) / 5
        assert float(losses.byol(p, t, normalize=False)) == pytest.approx(naive, rel=1e-6)
        u, v = (nn.functional.normalize(z, dim=1) for z in (p, t))
        assert float(losses.byol(u, v)) == pytest.approx(2 * float(losses.byol(u, v, normalize=False)), abs=1e-6)

    @pytest.mark.parametrize("normalize", [True, False])
    def test_the_target_is_held_or_not(self, normalize):
        p, t = (z.double().requires_grad_() for z in pairs(5, torch.Generator().manual_seed(0)))
        losses.byol(p, t, normalize=normalize).backward()
        assert t.grad is None
        assert torch.autograd.gradcheck(
            lambda a, b: losses.byol(a, b, stop_gradient=False, normalize=normalize), (p, t)
        )
        losses.byol(p, t, stop_gradient=False, normalize=normalize).backward()
        assert t.grad is not None


def test_no_gradient_reaches_the_target():
    found = model().train()
    x1, x2 = pairs(8, torch.Generator().manual_seed(0))
    objective(*found(torch.cat([x1, x2])).chunk(2)).backward()
    assert all(p.grad is None for p in found.target.parameters())
    assert all(p.grad is not None for p in (*found.encoder.parameters(), *found.predictor.parameters()))


def test_only_an_update_moves_the_target():
    found = model(momentum=0.5)
    x, start = torch.cat(pairs(8, torch.Generator().manual_seed(0))), parameters(found.target)
    steps.scale_weights(found.encoder, 0.5)
    assert torch.equal(found.eval()(x), found.encoder(x))
    with torch.no_grad():
        assert found.train()(x).shape == (16, 8)
    found(x)
    assert torch.equal(parameters(found.target), start)
    found.after_update()
    assert torch.allclose(parameters(found.target), (start + parameters(found.encoder)) / 2)


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


def test_target_batch_norm_sees_the_batch():
    """Each network normalises by its own moments of the batch: right after the copy both embed alike."""
    generator = torch.Generator().manual_seed(0)
    network = small_cnn(k=4, size=8, generator=generator)
    found = Siamese(network, Trained(4, hidden=5, generator=generator)).train()
    x = torch.rand(16, 1, 8, 8, generator=generator)
    target = found(x)[:, 4:]
    assert torch.allclose(target, found.encoder(x))
    assert torch.allclose(target.mean(0), torch.zeros(4), atol=1e-5)


def test_the_encoder_sees_a_batch_once():
    calls = []
    for momentum in (0.0, 0.5):
        found = model(momentum=momentum).train()
        found.encoder.register_forward_hook(lambda *_: calls.append(1))
        found(torch.cat(pairs(8, torch.Generator().manual_seed(0))))
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": -0.1}, r"momentum of the target: expected a number in \[0, 1\], found -0.1"),
        ({"momentum": 1.1}, r"momentum of the target: expected a number in \[0, 1\], found 1.1"),
        ({"momentum": float("nan")}, r"momentum of the target: expected a number in \[0, 1\], found nan"),
        ({"momentum": 0.9, "stop_gradient": False}, r"stop_gradient=False: expected momentum 0, found 0.9"),
        ({"momentum": 0.0, "own_target": (6, 9, 4)}, r"own_target: expected None at momentum 0"),
        ({"own_target": (6, 8, 4)}, r"own_target: expected parameters of shapes \[\(9, 6\), .* found \[\(8, 6\)"),
    ],
)
def test_errors_teach(settings, message):
    if "own_target" in settings:
        own = mlp(settings["own_target"], generator=torch.Generator().manual_seed(1))
        settings = settings | {"own_target": own}
    with pytest.raises(ValueError, match=message):
        model(**settings)
