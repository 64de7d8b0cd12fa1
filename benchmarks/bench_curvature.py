"""Trace of a Hessian: probes together and one by one, against curvlinops, and how often the 95 % interval is right."""

import math
import statistics
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure import Measurement, floor, flops, paired, summary, versus
from companion.theory.controlled_trace import controlled_hessian_trace
from companion.theory.curvature import TraceEstimate, hessian, hessian_trace, hvp, of_module

PROBES, REPETITIONS = 60, 400
ERRORS = (3, 1)  # per cent of the trace
TOGETHER = 60  # probes differentiated at once
METHODS = ("hutchinson", "hutch++")
AT_ONCE = {"hutchinson": f"{TOGETHER} products at once", "hutch++": "a third of the products at once, as it comes"}
MISSED = (
    "fewer products by a smaller sketch, but each is forward over reverse in both libraries, half of it element-wise "
    "operations on batches of probes; next: the second Taylor coefficient of the loss along a probe, which needs no "
    "backward pass, by a rule for each operation"
)
ALIKE = (
    "with many sentences the products themselves take the time, which a batch of probes does not make fewer; next: as "
    "for the standard error, fewer operations in each product"
)


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
        for name, p in model.named_parameters():
            gain = float("norm" in name and name.endswith("weight"))
            p.copy_(gain + torch.randn(p.shape, generator=generator) / math.sqrt(p.shape[-1]))
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


def coverage(estimate: Callable[..., TraceEstimate], truth: float, probes: str, samples: int) -> float:
    """Share of independent estimates whose interval holds the truth, in per cent."""
    generator, hits = torch.Generator().manual_seed(1), 0
    for _ in range(REPETITIONS):
        low, high = estimate(samples=samples, probes=probes, generator=generator).interval()
        hits += low <= truth <= high
    return 100 * hits / REPETITIONS


def products_for(error: float, method: Callable[[int], TraceEstimate]) -> int:
    """Products, a multiple of three, whose standard error is `error` or less: more until it is, by the root law."""
    m = 300
    while True:
        found = method(m)
        if found.stderr <= error:
            return m
        m = 3 * math.ceil(m * min(4.0, (found.stderr / error) ** 2) / 3)


def against_curvlinops() -> list[Measurement]:
    """Time to a standard error of 3 % and of 1 % of the trace; each method with as many products as it needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the import only: torch.jit is deprecated
        from curvlinops import HessianLinearOperator, hutchinson_trace, hutchpp_trace
    model, x, y = transformer()
    params, call = of_module(model)
    size = sum(p.numel() for p in params.values())

    def loss(p):
        return functional.cross_entropy(call(p, x), y)

    def seeded() -> dict:
        return {"chunk": TOGETHER, "generator": torch.Generator().manual_seed(0)}

    def one(p, tokens):
        return call(p, tokens[None])[0]

    mine: dict[str, Callable[[int], TraceEstimate]] = {
        "hutchinson": lambda m: hessian_trace(loss, params, samples=m, **seeded()),
        "hutch++": lambda m: hessian_trace(loss, params, method="hutch++", samples=m, **seeded()),
        "hutch++, an eighth for the sketch": lambda m: hessian_trace(
            loss, params, method="hutch++", samples=m, sketch=m // 8, **seeded()
        ),
        "hutchinson with the control variate": lambda m: controlled_hessian_trace(
            one, params, x, y, samples=m, **seeded()
        ),
    }
    generator = torch.Generator().manual_seed(1)
    trace = abs(hessian_trace(loss, params, samples=2000, chunk=TOGETHER, generator=generator).value)
    work = flops(lambda: hessian_trace(loss, params, samples=TOGETHER)) / TOGETHER
    rows = []
    with sdpa_kernel(SDPBackend.MATH):
        operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)])

        def hutchinson(m: int) -> None:
            for _ in range(math.ceil(m / TOGETHER)):  # quicker than all at once, and within memory
                hutchinson_trace(operator, TOGETHER)

        theirs = {"hutchinson": hutchinson, "hutch++": lambda m: hutchpp_trace(operator, m)}
        for percent in ERRORS:
            needed = {name: products_for(percent / 100 * trace, method) for name, method in mine.items()}
            calls = {name: lambda name=name: mine[name](needed[name]) for name in mine}  # noqa: B023 - called here
            calls |= {f"{name}, curvlinops": lambda name=name: theirs[name](needed[name]) for name in theirs}  # noqa: B023
            found = paired(calls, n=5 if percent == 3 else 1, warm=int(percent == 3))
            error = f"standard error {percent} %"

            def row(name: str, peer: str, products=needed, times=found, end=error, **rest: object) -> Measurement:
                note = f"{products[name]} products, transformer of {size:,} parameters, 32 sentences, float32"
                return summary(
                    f"{name}, {end}",
                    times[name],
                    "s",
                    note,
                    ratio=versus(times[name], times[f"{peer}, curvlinops"]),
                    peer=f"{peer}, curvlinops",
                    floor=floor(flops=work * products[name]),
                    floor_says="products with the Hessian, matrix products only",
                    **rest,
                )

            for name in theirs:
                rows.append(row("hutch++, an eighth for the sketch", name, goal=(2.0, None), missed=MISSED))
                rows.append(row(name, name))
                note = f"{needed[name]} products; {AT_ONCE[name]}"
                rows.append(summary(f"{name}, {error}, curvlinops", found[f"{name}, curvlinops"], "s", note))
            rows.append(row("hutchinson with the control variate", "hutchinson"))
    return rows


def one_by_one_and_together() -> list[Measurement]:
    """Probes in a loop and probes in a batch, for 8, 32 and 128 sentences."""
    rows = []
    model, every, labels = transformer()
    params, call = of_module(model)
    for n in (8, 32, 128):
        x, y = every.repeat(4, 1)[:n], labels.repeat(4)[:n]

        def loss(p, x=x, y=y):
            return functional.cross_entropy(call(p, x), y)

        def together(loss=loss) -> object:
            return hessian_trace(loss, params, samples=PROBES, generator=torch.Generator().manual_seed(0))

        found = paired({"loop": lambda loss=loss: looped(loss, params), "together": together}, n=5)
        rows.append(
            summary(
                f"vmapped probes, {n} sentences",
                found["together"],
                "s",
                f"{PROBES} probes, float32",
                ratio=versus(found["together"], found["loop"]),
                peer="one probe after the other",
                goal=(3.0, None),
                missed=ALIKE,
                floor=floor(flops=flops(together)),
                floor_says="matrix products",
            )
        )
        rows.append(
            summary(f"one probe after the other, {n} sentences", found["loop"], "s", f"{PROBES} probes, float32")
        )
    return rows


def measure() -> list[Measurement]:
    """Cross-entropy at random weights; loop and vmap on one network, coverage on one whose trace is exact."""
    rows = one_by_one_and_together()
    rows += against_curvlinops()
    model, x, y = perceptron()
    params, call = of_module(model)

    def small(p):
        return functional.cross_entropy(call(p, x), y)

    truth = float(hessian(small, params).trace())
    what = "coverage of the 95 % interval over 400 repetitions"
    estimates: dict[str, Callable[..., TraceEstimate]] = {
        name: lambda name=name, **rest: hessian_trace(small, params, method=name, **rest) for name in METHODS
    }
    estimates["controlled"] = lambda **rest: controlled_hessian_trace(call, params, x, y, **rest)
    for method, estimate in estimates.items():
        for probes in ("rademacher", "gaussian"):
            share = coverage(estimate, truth, probes, 30)
            note = f"30 products, {sum(p.numel() for p in params.values()):,} parameters"
            why = "the interval is Student's, for normal terms; next: more terms, or quantiles of the terms themselves"
            rows.append(summary(f"{what}, {method}, {probes}", [share], "%", note, goal=(92.0, 98.0), missed=why))
    return rows
