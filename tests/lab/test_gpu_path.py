"""Witnesses: tensors with a device but without values, on which a look at a value and a stray device are errors."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError, FakeTensorMode

from companion.lab import alignment, alignment_tables, contrast, contrast_tables, data, growth, pretrain, train
from companion.lab.masked import __main__ as command
from companion.lab.masked import tables

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = {"cifar10": 32, "cifar100": 32, "stl10": 96, "folder": 64}
SEED = 3


def images(name, n=6):
    return replace(data.generated(n, (3, NAMES[name], NAMES[name]), classes=2), name=name)


def start_and_loss(family, *arguments):
    """Options of a recipe of the gpu profile, its network, and its loss of the network's rows."""
    if family == "spectral":
        recipe = pretrain.authors(images(arguments[0]), arguments[1], epochs=2)
        return recipe.options, recipe.encoder(torch.Generator().manual_seed(SEED)), recipe.objective
    if family == "stepwise":
        recipe = growth.resnet(arguments[1], depth=arguments[2], epochs=2, n=6)
        return recipe.options, recipe.start(SEED), growth.LOSSES[recipe.loss]
    if family == "alignment":
        row = alignment_tables.Row(*arguments[1:], images=arguments[0], epochs=2)
        recipe = row.recipe(images(arguments[0]))
        return recipe.options, recipe.start(SEED), recipe.objective
    recipe = contrast.authors(images(arguments[0]), *arguments[1:], epochs=2)
    model = recipe.start(SEED, 6)
    return recipe.options, model, partial(recipe.objective, model)


RECIPES = [
    *(("spectral", name, loss) for name, loss in itertools.product(("cifar10", "cifar100"), ("spectral", "info_nce"))),
    *(("stepwise", "stl10", loss, 18) for loss in growth.LOSSES),
    ("stepwise", "stl10", "vicreg", 50),
    *(("alignment", name, kind) for name, kind in itertools.product(("stl10", "cifar10"), ("linear", "direct"))),
    *(("contrast", "cifar10", method) for method in ("simclr", "simclr-attn", "simsiam", "simsiam-multi")),
    ("contrast", "folder", "simclr-attn"),
    ("contrast", "cifar100", "simsiam", 50),
]


@pytest.fixture
def with_autocast(monkeypatch):
    """Let autocast take a GPU that is not there."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)


class TestDevice:
    @pytest.mark.parametrize("found", [True, False])
    def test_a_notebook_takes_the_gpu_where_there_is_one(self, monkeypatch, found):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
        seen = []
        for notebook in sorted(NOTEBOOKS.glob("*.py")):
            text = notebook.read_text(encoding="utf-8")
            assert '"cuda:' not in text, "no notebook asks for one GPU in particular"
            for choice in re.findall(r'"cuda" if [^\n]*? else "cpu"', text):
                assert eval(choice, {"torch": torch, "profile": "gpu"}) == ("cuda" if found else "cpu")
                assert eval(choice, {"torch": torch, "profile": "cpu"}) in ("cpu", "cuda" if found else "cpu")
                seen.append(notebook.stem[:2])
        assert seen == ["01", "02", "03", "04", "06"]

    def test_the_transformers_take_it_too(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        asked = {}

        def stop(cell, *, device, **keywords):
            asked["device"] = device
            raise FileNotFoundError("far enough")

        monkeypatch.setattr(tables, "run", stop)
        assert command.main(["pcfg-adamw-9m"]) == 1
        assert asked["device"] == "cuda"

    @pytest.mark.parametrize("device", ["cuda", "cpu"])
    def test_their_forward_pass_is_in_bfloat16_on_a_gpu_only(self, monkeypatch, device, tmp_path):
        asked = []

        def stop(model, language, options, **keywords):
            asked.append((options.bf16, str(keywords["device"])))
            raise InterruptedError

        monkeypatch.setattr(tables.training, "go_on", stop)
        with pytest.raises(InterruptedError):
            tables._trained(tables.cells()["pcfg-adamw-9m"], None, torch.device(device), 0, None, tmp_path)  # pyright: ignore
        assert asked == [(device == "cuda", device)]


class TestPrecisionAndLayout:
    @pytest.mark.parametrize("recipe", RECIPES, ids=str)
    def test_recipes_of_the_gpu_profile_ask_for_bfloat16_and_channels_last(self, recipe):
        options, *_ = start_and_loss(*recipe)
        assert (options.bf16, options.channels_last) == (True, True)

    def test_so_do_the_cells_and_the_small_recipes_do_not(self):
        assert all(cell.options.bf16 for cell in tables.cells().values())
        small = images("cifar10")
        for recipe in (pretrain.small(small), alignment.small(small), contrast.small(small)):
            assert not recipe.options.bf16

    @pytest.mark.parametrize("recipe", RECIPES, ids=str)
    def test_network_and_loss_stay_on_the_gpu_and_their_precision_is_as_said(self, with_autocast, recipe):
        _, model, loss = start_and_loss(*recipe)
        side = NAMES[recipe[1]]
        model.to(memory_format=torch.channels_last).train()
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cuda")
            x = torch.empty(12, 3, side, side, device="cuda").to(memory_format=torch.channels_last)
            if isinstance(model, contrast.Network):
                model.drawn = torch.empty(6, dtype=torch.int64, device="cuda")
            with torch.autocast("cuda", torch.bfloat16):
                z = model(x)
            value = loss(*z.float().chunk(2))
            assert (z.dtype, value.dtype) == (torch.bfloat16, torch.float32)
            assert (z.device.type, value.device.type) == ("cuda", "cuda")
            kernels = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d)]
            assert len(kernels) >= 20
            assert all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)

    def test_a_tensor_left_on_the_host_would_be_found(self):
        class Forgetful(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.shift = nn.Linear(3, 2), torch.ones(2)  # no buffer

            def forward(self, x):
                return self.layer(x) + self.shift

        model = Forgetful()
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cuda")
            with pytest.raises(FakeTensorDeviceMismatchError):
                model(torch.empty(5, 3, device="cuda"))


class Counted(nn.Module):
    """A network that counts its updates."""

    def __init__(self, network):
        super().__init__()
        self.network, self.updates = network, 0

    def forward(self, x):
        return self.network(x)

    def after_update(self):
        self.updates += 1


def updates_on_a_device_without_values(monkeypatch, loss):
    """Updates that the loop makes before it looks at a value; it looks at the loss after the last one."""
    devices = []

    class Generator(torch.Generator):  # torch has none for a device that computes nothing
        def __new__(cls, device="cpu"):
            devices.append(str(device))
            return super().__new__(cls)

    monkeypatch.setattr(torch, "Generator", Generator)
    model = Counted(nn.Linear(3, 2)).to("meta")

    def pairs(n, generator):
        return torch.empty(n, 3, device="meta"), torch.empty(n, 3, device="meta")

    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        train.fit(model, pairs, loss, train.Options(steps=3, batch_size=4, log_every=1000, optimizer="adamw"))
    assert devices == ["meta"], "the generator of batches and views is on the device"
    return model.updates


class TestLoop:
    def test_nothing_waits_for_the_device_between_two_looks(self, monkeypatch):
        assert updates_on_a_device_without_values(monkeypatch, lambda z1, z2: (z1 * z2).sum()) == 3

    def test_a_loss_that_looks_would_be_found(self, monkeypatch):
        assert updates_on_a_device_without_values(monkeypatch, lambda z1, z2: (z1 * z2).sum() * float(z1.sum())) == 0


def trained(family, seed):
    """All parameters and buffers after two updates of a gpu recipe, on the CPU."""
    if family == "stepwise":
        recipe, x = growth.resnet("vicreg", depth=18, epochs=2, n=6), images("cifar10").float()
        sampler = train.image_pairs(images("cifar10").images, pretrain.augment.cifar(32))
        model = growth.grow(recipe, sampler, (x, x), seed, every=1)[0]
    elif family == "spectral":
        model = pretrain.run(images("cifar10"), pretrain.authors(images("cifar10"), epochs=2), seed)
    elif family == "alignment":
        row = alignment_tables.Row("direct", images="cifar10", epochs=2)
        model = alignment.run(row.recipe(images("cifar10")), images("cifar10"), seed, every=1)[0]
    else:
        recipe = contrast_tables.Row("simclr-attn", 18, "cifar10").recipe(images("cifar10"))
        recipe = replace(recipe, options=replace(recipe.options, steps=2, warmup_steps=1))
        model = contrast.run(recipe, images("cifar10"), seed, every=1)[0]
    return torch.cat([x.detach().double().flatten() for x in model.state_dict().values()])


class TestSeeds:
    @pytest.mark.parametrize("family", ["spectral", "stepwise", "alignment", "contrast"])
    def test_the_seed_decides_a_run_and_nothing_else_does(self, family):
        torch.manual_seed(1)
        first = trained(family, SEED)
        torch.manual_seed(2)  # the global state plays no part
        assert torch.equal(first, trained(family, SEED))
        assert not torch.equal(first, trained(family, SEED + 1))
