"""Witnesses: a record of who was called when, torch's own SGD with groups, the same model without wishes."""

import dataclasses

import pytest
import torch
from torch import nn

from companion.lab.train import Options, fit

OPTIONS = Options(steps=6, batch_size=8, lr=0.1, warmup_steps=2, weight_decay=0.01)


def pairs(n, generator):
    x = torch.rand(n, 3, generator=generator)
    return x, x + 0.1 * torch.randn(n, 3, generator=generator)


def loss(z1, z2):
    return (z1 - z2).square().sum(1).mean() - 0.1 * (z1 * z2).sum(1).mean()


class Two(nn.Sequential):
    """Two layers, of which the second learns at a rate and with a decay of its own."""

    def __init__(self, groups=None):
        generator = torch.Generator().manual_seed(0)
        layers = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            for layer in layers:
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        super().__init__(*layers)
        self.groups = groups

    def parameter_groups(self, options):
        both = [{"params": [self[0].weight]}, {"params": [self[1].weight], "lr": 3 * options.lr, "weight_decay": 0.0}]
        return both if self.groups is None else self.groups(self)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class TestGroups:
    @pytest.mark.parametrize("kind", ["sgd", "adam"])
    def test_torchs_own_groups_on_the_same_schedule(self, kind):
        options = dataclasses.replace(OPTIONS, optimizer=kind)
        found, naive = Two(), Two()
        fit(found, pairs, loss, options)
        groups = [{"params": [naive[0].weight], "weight_decay": 0.01}, {"params": [naive[1].weight]}]
        optimizer = torch.optim.SGD(groups, 0.1, 0.9) if kind == "sgd" else torch.optim.Adam(groups, 0.1)
        generator = torch.Generator().manual_seed(0)
        for t in range(6):
            optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = options.rate(t), 3 * options.rate(t)
            optimizer.zero_grad()
            loss(*naive(torch.cat(pairs(8, generator))).chunk(2)).backward()
            optimizer.step()
        assert torch.allclose(weights(found), weights(naive), atol=1e-6)

    def test_groups_without_wishes_change_nothing(self):
        ends = []
        for groups in (lambda model: [{"params": [p]} for p in model.parameters()], None):
            model = Two(groups) if groups else nn.Sequential(*Two())
            fit(model, pairs, loss, OPTIONS)
            ends.append(weights(model))
        assert torch.equal(*ends)

    def test_a_parameter_in_no_group(self):
        with pytest.raises(
            ValueError, match=r"parameter_groups: expected every trained parameter, found none of 1.wei"
        ):
            fit(Two(lambda model: [{"params": [model[0].weight]}]), pairs, loss, OPTIONS)
        frozen = Two(lambda model: [{"params": [model[0].weight]}])
        frozen[1].requires_grad_(False)
        fit(frozen, pairs, loss, OPTIONS)

    def test_muon_has_one_rate(self):
        options = dataclasses.replace(OPTIONS, optimizer="muon")
        with pytest.raises(ValueError, match=r"muon: expected one rate .* found groups with \['lr', 'weight_decay'\]"):
            fit(Two(), pairs, loss, options)
        fit(Two(lambda model: [{"params": list(model.parameters())}]), pairs, loss, options)


class Recorder(nn.Linear):
    """Notes each call of its hook, and freezes its first row there."""

    def __init__(self):
        super().__init__(3, 2, bias=False)
        nn.init.ones_(self.weight)
        self.calls = []

    def after_update(self):
        assert not torch.is_grad_enabled()
        assert self.training
        self.calls.append(self.weight.clone())
        self.weight[0] = 7.0


def test_after_each_update_and_before_a_look(tmp_path):
    model, looks = Recorder(), []
    path = tmp_path / "run.pt"

    def observe(step, model):
        looks.append((step, len(model.calls), float(model.weight[0, 0])))

    options = dataclasses.replace(OPTIONS, checkpoint_every=6)
    fit(model, pairs, loss, options, observe=observe, observe_every=2, checkpoint=path)
    assert looks == [(0, 0, 1.0), (2, 2, 7.0), (4, 4, 7.0), (6, 6, 7.0)]
    assert not torch.equal(model.calls[0], torch.ones(2, 3))  # the optimiser came first
    assert torch.equal(torch.load(path, weights_only=True)["model"]["weight"], model.weight)
