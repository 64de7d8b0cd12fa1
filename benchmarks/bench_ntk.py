"""The empirical tangent kernel: from the whole Jacobian, layer by layer, and block by block; memory of the last."""

import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.measure import Measurement, seconds, summary
from companion.lab.encoders import mlp, small_cnn
from companion.theory.ntk import Method, empirical

ROOT = Path(__file__).resolve().parents[1]
SIZES, MLP_POINTS = (784, 512, 512, 10), 256
CNN_POINTS, K = 400, 10


def perceptron() -> tuple[torch.nn.Module, torch.Tensor]:
    """A network for "dense", and its points."""
    generator = torch.Generator().manual_seed(0)
    return mlp(SIZES, generator=generator), torch.randn(MLP_POINTS, 1, 28, 28, generator=generator)


def convolutional() -> tuple[torch.nn.Module, torch.Tensor]:
    """A network for "blocks", at rest, and its points."""
    generator = torch.Generator().manual_seed(0)
    model = small_cnn(k=K, width=16, generator=generator).eval()
    return model, torch.randn(CNN_POINTS, 1, 28, 28, generator=generator)


def peak(method: Method) -> float:
    """Return the largest memory, in GB, of a fresh interpreter that computes the kernel of the CNN once."""
    work = f"from benchmarks.bench_ntk import convolutional, empirical; empirical(*convolutional(), {method!r})"
    # Linux passes the peak of a process on to what it starts: an interpreter in between, itself small, watches
    watch = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == 'darwin' else 1024))"
    )
    done = subprocess.run([sys.executable, "-c", watch, work], cwd=ROOT, check=True, capture_output=True, text=True)
    return int(done.stdout) / 1e9


def measure() -> list[Measurement]:
    """Random images of 28 × 28; the CNN has batch norm, so that "dense" does not fit it."""
    model, x = perceptron()
    what = f"{'-'.join(map(str, SIZES))}, {MLP_POINTS} points, float32"
    rows = [summary("MLP, jacobian", seconds(lambda: empirical(model, x), n=3), "s", what)]
    dense = seconds(lambda: empirical(model, x, "dense"), n=15, warm=2)
    ratio = rows[0].median / statistics.median(dense)
    rows.append(summary("MLP, dense", dense, "s", f"{ratio:.0f} times faster (budget 20)"))
    network, images = convolutional()
    cnn = f"width 16, k = {K}, {CNN_POINTS} points, float32"
    for method in ("jacobian", "blocks"):
        values = seconds(lambda method=method: empirical(network, images, method), n=3, warm=0)
        rows.append(summary(f"CNN, {method}", values, "s", cnn))
    for method, note in (("jacobian", "whole process"), ("blocks", "whole process; budget 4 GB")):
        rows.append(summary(f"CNN, {method}, peak memory", [peak(method)], "GB", note))
    return rows
