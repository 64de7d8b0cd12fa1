"""Witnesses: machines that are played by a table of their instructions; the dtype that a product comes out in."""

from types import MappingProxyType

import pytest
import torch
from torch import nn

from companion.lab import precision


def machine(monkeypatch, **units):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(units))


def gpu(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)


class TestProcessors:
    @pytest.mark.parametrize("unit", ["avx512_bf16", "amx_bf16"])
    def test_one_unit_is_enough(self, unit, monkeypatch):
        machine(monkeypatch, architecture="x86_64", avx512_f=True, **{unit: True})
        assert precision.bfloat16_is_fast("cpu")

    def test_wide_vectors_alone_are_not(self, monkeypatch):
        machine(monkeypatch, architecture="x86_64", avx2=True, avx512_f=True, avx512_bf16=False, amx_tile=True)
        assert not precision.bfloat16_is_fast("cpu")

    def test_another_architecture_has_no_such_names(self, monkeypatch):
        machine(monkeypatch, architecture="aarch64", neon=True)
        assert not precision.bfloat16_is_fast(torch.device("cpu"))

    def test_torch_knows_the_names(self):
        found = torch.cpu.get_capabilities()
        if found["architecture"] == "x86_64":
            assert set(precision.CPU_UNITS) <= set(found)
        assert precision.bfloat16_is_fast("cpu") is any(found.get(unit, False) for unit in precision.CPU_UNITS)


class TestGraphicsCards:
    @pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True), (None, False)])
    def test_by_capability(self, capability, fast, monkeypatch):
        gpu(monkeypatch, capability)
        assert precision.bfloat16_is_fast("cuda") is fast
        assert precision.bfloat16_is_fast(torch.device("cuda", 1)) is fast

    def test_the_processors_units_do_not_count(self, monkeypatch):
        machine(monkeypatch, amx_bf16=True)
        gpu(monkeypatch, (7, 0))
        assert not precision.bfloat16_is_fast("cuda")

    def test_other_devices_count_as_slow(self):
        assert not precision.bfloat16_is_fast("mps")


class TestAutocast:
    @pytest.mark.parametrize(("wanted", "unit"), [(True, True), (True, False), (False, True), (False, False)])
    def test_only_where_wanted_and_fast(self, wanted, unit, monkeypatch):
        machine(monkeypatch, amx_bf16=unit)
        layer, x = nn.Linear(3, 2), torch.ones(4, 3)
        with precision.autocast("cpu", wanted):
            z = layer(x)
        assert z.dtype is (torch.bfloat16 if wanted and unit else torch.float32)
        assert layer.weight.dtype is torch.float32
        assert layer(x).dtype is torch.float32
