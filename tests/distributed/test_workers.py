"""Witness: one process. Losses, gradients, parameters, spectra of two torchrun workers (gloo) equal its to 1e-10."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from companion.lab import distributed

SCRIPT = Path(__file__).with_name("two_workers.py")

QUANTITIES = ("loss", "gradient", "losses", "parameters", "watched")
LOSSES = ("spectral", "info_nce", "barlow", "barlow, normalized", "barlow, preconditioned", "vicreg")
SIAMESE = ("byol", "byol, symmetric", "byol, direct", "byol, optimal", "byol, no stop")
CONTRAST = ("attention", "attention, shuffled", "stages", "centred")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return runpy.run_path(str(SCRIPT))["run"](tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT)]
    environment = os.environ | {"PYTHONPATH": str(Path(distributed.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir() if "unfinished" in path.name) == []
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("loss", LOSSES + SIAMESE + CONTRAST)
def test_two_workers_are_one_process(one, two, loss, model):
    for quantity in QUANTITIES:
        a, b = (results[f"{loss} {model}"][quantity] for results in (one, two))
        scale = max(1.0, float(a.abs().max()))  # spectra under young batch norms reach millions
        assert torch.allclose(a, b, rtol=0, atol=1e-10 * scale), (quantity, (a - b).abs().max())


def test_control_without_gather_differs(one, two):
    for quantity in QUANTITIES:
        assert (one["local mlp"][quantity] - two["local mlp"][quantity]).abs().max() > 1e-3


def test_global_batch_norm_is_torchs():
    x = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(6, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = (kind(3).double() for kind in (distributed.GlobalBatchNorm, torch.nn.BatchNorm1d))
    gradients = [torch.autograd.grad((weight * norm(x)).sum(), [x, *norm.parameters()]) for norm in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(a, b)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x))
    with pytest.raises(ValueError, match="channels"):
        distributed.GlobalBatchNorm(3)(torch.zeros(3))


def test_one_process_needs_nothing():
    x = torch.ones(2, 3)
    assert distributed.start().type in ("cpu", "cuda")
    assert distributed.workers() == 1
    assert distributed.sum_over_workers(x) is x
    assert distributed.gather(x) is x


def test_uneven_batch(monkeypatch):
    monkeypatch.setattr(distributed, "workers", lambda: 3)
    with pytest.raises(ValueError, match="multiple of the 3 workers"):
        distributed.own_rows(8)
