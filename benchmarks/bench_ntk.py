"""The empirical tangent kernel: ours against the recipe of torch.func, on a perceptron and a CNN; time and memory."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from benchmarks.measure import Measurement, floor, flops, paired, seconds, summary, versus
from companion.lab.encoders import mlp, small_cnn
from companion.theory.ntk import empirical

ROOT = Path(__file__).resolve().parents[1]
SIZES, MLP_POINTS = (784, 512, 512, 10), 128  # the recipe's Jacobian: 3.4 GB
CNN_POINTS, K = 400, 10
FEW = 8  # points for the recipe's other variant, whose memory grows with their square times the parameters
PART = 100  # points whose Jacobian the recipe may hold twice in the memory that "layers" takes for all
RECIPE = "torch.func's Jacobian contraction"
MISSED = (
    "the k backward passes and the inner products of the convolutions' derivatives in float64 are the time; next: all "
    "outputs in one backward pass, and float32 products where the kernel's smallest eigenvalues do not matter"
)


def perceptron(points: int = MLP_POINTS) -> tuple[nn.Module, Tensor]:
    """A stack of linear layers, and its points."""
    generator = torch.Generator().manual_seed(0)
    return mlp(SIZES, generator=generator), torch.randn(points, 1, 28, 28, generator=generator)


def convolutional(points: int = CNN_POINTS) -> tuple[nn.Module, Tensor]:
    """Three convolutions with batch norm, at rest, and its points."""
    generator = torch.Generator().manual_seed(0)
    model = small_cnn(k=K, width=16, generator=generator).eval()
    return model, torch.randn(points, 1, 28, 28, generator=generator)


def single(model: nn.Module) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """The network as a function of weights and one point, and its weights."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return lambda w, point: functional_call(model, w, (point[None],))[0], weights


def jacobian(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Derivatives of all outputs at all points, (N, k, p) of each tensor of weights."""
    f, weights = single(model)
    return [J.flatten(2) for J in vmap(jacrev(f), (None, 0))(weights, x).values()]


def contraction(model: nn.Module, x: Tensor) -> Tensor:
    """PyTorch's recipe of Jacobian contraction, but for its second Jacobian: both arguments are the same points."""
    return torch.stack([torch.einsum("nap,map->nm", J, J) for J in jacobian(model, x)]).sum(0) / K


def contraction_in_parts(model: nn.Module, x: Tensor) -> Tensor:
    """The same with the Jacobians of two parts of the points at a time."""
    parts = x.split(PART)
    kernel = [[torch.zeros(len(a), len(b)) for b in parts] for a in parts]
    for i, a in enumerate(parts):
        left = jacobian(model, a)
        for j in range(i + 1):
            right = left if j == i else jacobian(model, parts[j])
            found = torch.stack([torch.einsum("nap,map->nm", *J) for J in zip(left, right, strict=True)]).sum(0) / K
            kernel[i][j], kernel[j][i] = found, found.T
    return torch.cat([torch.cat(row, 1) for row in kernel])


def vector_products(model: nn.Module, x: Tensor) -> Tensor:
    """PyTorch's recipe of NTK-vector products: a backward and a forward derivative for each pair and output."""
    f, weights = single(model)

    def pair(a: Tensor, b: Tensor) -> Tensor:
        _, back = vjp(lambda w: f(w, a), weights)
        return vmap(lambda v: jvp(lambda w: f(w, b), (weights,), back(v))[1])(torch.eye(K)).trace() / K

    return vmap(vmap(pair, (None, 0)), (0, None))(x, x)


def peak(call: str) -> float:
    """The largest memory, in GB, of a fresh interpreter that computes one kernel of the CNN."""
    work = f"from benchmarks.bench_ntk import *; {call}"
    # Linux passes the peak of a process on to what it starts: an interpreter in between, itself small, watches
    watch = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == 'darwin' else 1024))"
    )
    done = subprocess.run([sys.executable, "-c", watch, work], cwd=ROOT, check=True, capture_output=True, text=True)
    return int(done.stdout) / 1e9


def least(model: nn.Module, x: Tensor, formed: int, factors: int) -> float:
    """Seconds of one pass forwards, k back, k products of patches, and half the products of points, in float64."""
    with torch.no_grad():
        forward = flops(lambda: model(x))
    passes = floor(flops=(1 + K + (K if formed else 0)) * forward)
    return passes + floor(flops=len(x) ** 2 * (K * formed + factors), dtype=torch.float64)


def of_perceptron() -> list[Measurement]:
    """Linear layers only: "dense"."""
    model, x = perceptron()
    what = f"{'-'.join(map(str, SIZES))}, {MLP_POINTS} points, float32"
    theirs = seconds(partial(contraction, model, x), n=1, warm=0)
    ours = seconds(partial(empirical, model, x, "dense"), n=15, warm=2)
    at_least = least(model, x, 0, sum(SIZES[:-1]) + K * sum(SIZES[1:]))
    limit = {"floor": at_least, "floor_says": "matrix products"}
    goal = {"ratio": versus(ours, theirs), "peer": RECIPE, "goal": (20, None), "missed": MISSED}
    rows = [summary("MLP, dense", ours, "s", what, **goal, **limit), summary(f"MLP, {RECIPE}", theirs, "s", what)]
    model, x = perceptron(FEW)
    calls = {"ours": partial(empirical, model, x, "dense"), "theirs": partial(vector_products, model, x)}
    times = paired(calls, n=3)
    peer = "torch.func's NTK-vector products"
    goal = {"ratio": versus(times["ours"], times["theirs"]), "peer": peer, "missed": MISSED}
    note = "the recipe's memory grows with the square of the points"
    return [*rows, summary(f"MLP, dense, {FEW} points", times["ours"], "s", note, goal=(20, None), **goal)]


def of_cnn() -> list[Measurement]:
    """Equal memory: a fresh process's peak is at most that of the recipe; which also runs in parts that fit in it."""
    model, x = convolutional()
    what = f"width 16, k = {K}, {CNN_POINTS} points, float32"
    calls = {
        "layers": partial(empirical, model, x, "layers"),
        "recipe": partial(contraction, model, x),
        "parts": partial(contraction_in_parts, model, x),
        "blocks": partial(empirical, model, x, "blocks"),
    }
    times = paired(calls, n=3, warm=0)
    memory = {
        "layers": peak('empirical(*convolutional(), "layers")'),
        "recipe": peak("contraction(*convolutional())"),
        "parts": peak("contraction_in_parts(*convolutional())"),
    }
    formed = sum(p.numel() for m in model.modules() if isinstance(m, nn.Conv2d) for p in m.parameters())
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    at_least = least(model, x, formed, sum(m.in_features + K * m.out_features for m in linear))
    rows = []
    for name, peer in (("recipe", RECIPE), ("parts", f"{RECIPE}, {PART} points at a time")):
        ratio = versus(times["layers"], times[name])
        goal = {"ratio": ratio, "peer": peer, "goal": (2, None), "missed": MISSED}
        limit = {"floor": at_least, "floor_says": "matrix products"}
        note = f"{what}; peak {memory['layers']:.2f} GB, theirs {memory[name]:.2f} GB"
        rows.append(summary("CNN, layers", times["layers"], "s", note, **goal, **limit))
        rows.append(summary(f"CNN, {peer}", times[name], "s", what))
    more = {
        "ratio": memory["recipe"] / memory["layers"],
        "peer": RECIPE,
        "goal": (1, None),
        "missed": "a smaller `held`",
    }
    rows.append(summary("CNN, layers, peak memory", [memory["layers"]], "GB", "whole process", **more))
    rows.append(summary("CNN, blocks", times["blocks"], "s", what))
    few, points = convolutional(FEW)
    calls = {"ours": partial(empirical, few, points, "layers"), "theirs": partial(vector_products, few, points)}
    times = paired(calls, n=3)
    peer = "torch.func's NTK-vector products"
    goal = {"ratio": versus(times["ours"], times["theirs"]), "peer": peer, "missed": MISSED}
    return [*rows, summary(f"CNN, layers, {FEW} points", times["ours"], "s", goal=(2, None), **goal)]


def measure() -> list[Measurement]:
    """Random images of 28 × 28; means over outputs, all k of them."""
    return [*of_perceptron(), *of_cnn()]
