"""Witness: one process. Losses, gradients, spectra, parameters of two and three workers (gloo) equal its to 1e-10."""

import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from companion.lab import distributed, scaling
from companion.lab.encoders import small_cnn
from companion.lab.train import Options, fit
from companion.theory.losses import spectral_contrastive

SCRIPT = Path(__file__).with_name("some_workers.py")

QUANTITIES = ("loss", "gradient", "losses", "parameters", "watched")
LOSSES = ("spectral", "info_nce", "barlow", "barlow, normalized", "barlow, preconditioned", "vicreg")
SIAMESE = ("byol", "byol, symmetric", "byol, direct", "byol, optimal", "byol, no stop")
CONTRAST = ("attention", "attention, shuffled", "stages", "centred")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return runpy.run_path(str(SCRIPT))["run"](tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module", params=[2, 3])
def several(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"of-{request.param}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={request.param}"]
    environment = os.environ | {"PYTHONPATH": str(Path(distributed.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    job = [*command, str(SCRIPT), str(folder)]
    done = subprocess.run(job, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir() if "unfinished" in path.name) == []
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("loss", LOSSES + SIAMESE + CONTRAST)
def test_several_workers_are_one_process(one, several, loss, model):
    """Loss and gradient of the first batch, twenty updates, and what was seen on the way."""
    assert len(one[f"{loss} {model}"]["losses"]) == 20
    for quantity in QUANTITIES:
        a, b = (results[f"{loss} {model}"][quantity] for results in (one, several))
        scale = max(1.0, float(a.abs().max()))  # spectra under young batch norms reach millions
        assert torch.allclose(a, b, rtol=0, atol=1e-10 * scale), (quantity, (a - b).abs().max())


def test_control_without_gather_differs(one, several):
    for quantity in QUANTITIES:
        assert (one["local mlp"][quantity] - several["local mlp"][quantity]).abs().max() > 1e-3


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


@pytest.mark.parametrize("n", [8, 16])
def test_the_model_counts_what_is_exchanged(monkeypatch, n):
    """A process that takes itself for one of two, and all-reduces that only count: the same for every batch."""
    sizes = []
    monkeypatch.setattr(distributed, "workers", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x, *_: sizes.append(x.numel() * x.element_size()))
    model = small_cnn(1, 12, 4, size=8, width=4, hidden=(8,), generator=torch.Generator().manual_seed(0))
    expected = scaling.exchange(model, 2 * 4**2 + 3, 2)

    def pairs(n, generator):
        return torch.rand(n, 1, 8, 8, generator=generator), torch.rand(n, 1, 8, 8, generator=generator)

    loss = partial(spectral_contrastive, sum_over_workers=distributed.sum_over_workers)
    fit(model, pairs, loss, Options(1, n))
    assert scaling.Exchange(sum(sizes), len(sizes)) == expected


def test_uneven_batch(monkeypatch):
    monkeypatch.setattr(distributed, "workers", lambda: 3)
    with pytest.raises(ValueError, match="multiple of the 3 workers"):
        distributed.own_rows(8)
