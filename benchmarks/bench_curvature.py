"""Trace of a Hessian: probes together and one by one, against curvlinops, and how often the 95 % interval is right."""

import math
import statistics
import warnings

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure import Measurement, seconds, summary
from companion.theory.curvature import hessian, hessian_trace, hvp, of_module

PROBES, REPETITIONS = 60, 400
METHODS = ("hutchinson", "hutch++")


class Block(nn.Module):
    """A pre-LN transformer of one block on sentences of eight tokens: logits of the first."""

    def __init__(self, tokens: int = 10, d: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.places = nn.Embedding(tokens, d), nn.Parameter(torch.zeros(8, d))
        self.norm1, self.qkv, self.project = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.norm2, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.norm, self.out = nn.LayerNorm(d), nn.Linear(d, tokens)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From tokens (n, 8) to logits (n, V)."""
        h = self.embed(x) + self.places
        q, k, v = self.qkv(self.norm1(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.project(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = h + self.down(functional.gelu(self.up(self.norm2(h))))
        return self.out(self.norm(h)[:, 0])


def transformer() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Network, sentences and labels."""
    generator = torch.Generator().manual_seed(0)
    model = Block().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p + 0.1 * torch.randn(p.shape, generator=generator))
    x = torch.randint(10, (32, 8), generator=generator)
    return model, x, torch.randint(10, (32,), generator=generator)


def perceptron() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network small enough for its Hessian, 20-24-24-6 with tanh, float64."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 6)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / math.sqrt(p.shape[-1]))
    x = torch.randn(64, 20, generator=generator, dtype=torch.float64)
    return model, x, torch.randint(6, (64,), generator=generator)


def looped(loss, params) -> float:
    """Hutchinson's estimate, one product after the other."""
    generator, terms = torch.Generator().manual_seed(0), []
    for _ in range(PROBES):
        z = {k: torch.randint(2, p.shape, generator=generator).to(p) * 2 - 1 for k, p in params.items()}
        Hz = hvp(loss, params, z)
        terms.append(sum(float((z[k] * Hz[k]).sum()) for k in params))
    return statistics.fmean(terms)


def coverage(loss, params, truth: float, method: str, probes: str, samples: int) -> float:
    """Share of independent estimates whose interval holds the truth, in per cent."""
    generator, hits = torch.Generator().manual_seed(1), 0
    for _ in range(REPETITIONS):
        found = hessian_trace(loss, params, method=method, samples=samples, probes=probes, generator=generator)
        low, high = found.interval()
        hits += low <= truth <= high
    return 100 * hits / REPETITIONS


def products_for(error: float, loss, params, method: str) -> int:
    """Smallest number of products, of a geometric grid, whose standard error is `error` or less; a mean of three."""
    for m in (30, 42, 60, 84, 120, 168, 240, 336, 480, 672, 960, 1344, 1920, 2688, 3840, 5376, 7680):
        seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
        found = [hessian_trace(loss, params, method=method, samples=m, chunk=60, generator=g) for g in seeds]
        if statistics.fmean(e.stderr for e in found) <= error:
            return m
    raise RuntimeError(f"no number of products reaches a standard error of {error:g}")


def against_curvlinops() -> list[Measurement]:
    """Time to a standard error of 3 % of the trace, with the same number of products in both libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the import only: torch.jit is deprecated
        from curvlinops import HessianLinearOperator, hutchinson_trace, hutchpp_trace
    theirs = {"hutchinson": hutchinson_trace, "hutch++": hutchpp_trace}
    model, x, y = transformer()
    params, call = of_module(model)

    def loss(p):
        return functional.cross_entropy(call(p, x), y)

    rows, trace = [], hessian_trace(loss, params, samples=2000, chunk=60, generator=torch.Generator().manual_seed(1))
    with sdpa_kernel(SDPBackend.MATH):
        operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)])
        for method in METHODS:
            m = products_for(0.03 * abs(trace.value), loss, params, method)
            note = f"{m} products, transformer of {sum(p.numel() for p in params.values()):,} parameters, 32 sentences"

            def ours(method=method, m=m) -> object:
                generator = torch.Generator().manual_seed(0)
                return hessian_trace(loss, params, method=method, samples=m, chunk=60, generator=generator)

            def other(method=method, m=m) -> object:
                return theirs[method](operator, m)

            rows.append(summary(f"{method}, standard error 3 %", seconds(ours, n=5), "s", note))
            rows.append(summary(f"{method}, curvlinops", seconds(other, n=5), "s", f"{m} products, all at once"))
    return rows


def measure() -> list[Measurement]:
    """Cross-entropy at random weights; loop and vmap on one network, coverage on one whose trace is exact."""
    rows = []
    model, every, labels = transformer()
    params, call = of_module(model)
    for n in (8, 32, 128):
        x, y = every.repeat(4, 1)[:n], labels.repeat(4)[:n]

        def loss(p, x=x, y=y):
            return functional.cross_entropy(call(p, x), y)

        def together(loss=loss) -> object:
            return hessian_trace(loss, params, samples=PROBES, generator=torch.Generator().manual_seed(0))

        loop = seconds(lambda loss=loss: looped(loss, params), n=5)
        rows.append(summary(f"one probe after the other, {n} sentences", loop, "s", f"{PROBES} probes, float32"))
        fast = seconds(together, n=9)
        ratio = statistics.median(loop) / statistics.median(fast)
        budget = " (budget 3)" if n == 32 else ""
        rows.append(summary(f"vmapped probes, {n} sentences", fast, "s", f"{ratio:.1f} times faster{budget}"))
    rows += against_curvlinops()
    model, x, y = perceptron()
    params, call = of_module(model)

    def small(p):
        return functional.cross_entropy(call(p, x), y)

    truth = float(hessian(small, params).trace())
    what = "coverage of the 95 % interval over 400 repetitions"
    for method in METHODS:
        for probes in ("rademacher", "gaussian"):
            share = coverage(small, params, truth, method, probes, 30)
            note = f"30 products, {sum(p.numel() for p in params.values()):,} parameters; budget 92 to 98"
            rows.append(summary(f"{what}, {method}, {probes}", [share], "%", note))
    return rows
