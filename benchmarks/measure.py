"""Time something n times, beside its peer; say the median, the spread, on what machine, and how far from its limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from companion.ledger import stamp


@dataclass(frozen=True)
class Measurement:
    """One row of RECORDS.md.

    Attributes:
        what: what was measured.
        unit: its unit.
        median: median over n runs.
        low: smallest of them.
        high: largest of them.
        n: number of runs.
        note: setting, comparison.
        ratio: how many times better than the peer of the same run; None without one.
        peer: who that is.
        goal: smallest and largest value that meets the goal, of the ratio where there is one, else of the median.
        missed: reason and next idea, printed only where the goal is missed.
        floor: the least it could be at the rates measured on the machine, in the row's unit.
        floor_says: what the floor counts.
    """

    what: str
    unit: str
    median: float
    low: float
    high: float
    n: int
    note: str = ""
    ratio: float | None = None
    peer: str = ""
    goal: tuple[float | None, float | None] = (None, None)
    missed: str = ""
    floor: float | None = None
    floor_says: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        least, most = self.goal
        if least is None and most is None:
            return None
        value = self.median if self.ratio is None else self.ratio
        return (least is None or value >= least) and (most is None or value <= most)


@dataclass(frozen=True)
class Rates:
    """What the machine can do with the present number of threads, the best of several tries.

    Attributes:
        products: operations of a matrix product a second, by dtype.
        copy: bytes read and written by a copy a second.
    """

    products: Mapping[torch.dtype, float]
    copy: float


def summary(what: str, values: list[float], unit: str, note: str = "", **rest: object) -> Measurement:
    """Median, smallest and largest of measured values; `rest` are further attributes of `Measurement`."""
    return Measurement(what, unit, statistics.median(values), min(values), max(values), len(values), note, **rest)  # type: ignore[arg-type]


def seconds(call: Callable[[], object], n: int, warm: int = 1) -> list[float]:
    """Wall seconds of n calls after `warm` unmeasured ones."""
    return paired({"": call}, n, warm)[""]


def paired(calls: Mapping[str, Callable[[], object]], n: int, warm: int = 1) -> dict[str, list[float]]:
    """Wall seconds of n calls of each, in turns, so that a slow minute of the machine hits all of them."""
    values: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm + n):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn >= warm:
                values[name].append(time.perf_counter() - began)
    return values


def versus(ours: list[float], theirs: list[float]) -> float:
    """How many times as long theirs take: the median of the quotients of paired values, else the quotient of medians.

    >>> versus([1.0, 2.0, 4.0], [3.0, 6.0, 4.0]), versus([2.0], [4.0, 6.0])
    (3.0, 2.5)
    """
    if len(ours) == len(theirs):
        return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    return statistics.median(theirs) / statistics.median(ours)


@cache
def rates() -> Rates:
    """Matrix products of 2,048 × 2,048, copies of 256 MB; measured once a process."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(2048, 2048, generator=generator, dtype=torch.float64)
    products = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        factor = square.to(dtype)
        out = torch.empty_like(factor)
        best = min(seconds(lambda factor=factor, out=out: torch.mm(factor, factor, out=out), n=5, warm=2))
        products[dtype] = 2 * 2048**3 / best
    source = torch.zeros(2**26, dtype=torch.float32)
    target = torch.empty_like(source)
    return Rates(products, 2 * source.nbytes / min(seconds(lambda: target.copy_(source), n=5, warm=2)))


def floor(*, flops: float = 0.0, bytes: float = 0.0, dtype: torch.dtype = torch.float32) -> float:
    """Seconds that the work takes at least: operations at the rate of a matrix product, bytes at that of a copy."""
    machine_rates = rates()
    return max(flops / machine_rates.products[dtype], bytes / machine_rates.copy)


def flops(call: Callable[[], object]) -> float:
    """Floating-point operations of one call, backward passes in it included: those of products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def machine() -> dict[str, str]:
    """Where the numbers come from, as the stamp of a run says it, and how fast that is."""
    seal = stamp.collect({}, seed=0, started=stamp.now(), began=time.monotonic())
    kept = {key: str(seal[key]) for key in ("processor", "platform", "device", "threads", "python")}
    found = rates()
    speed = {
        f"{str(dtype).removeprefix('torch.')} product": f"{rate / 1e9:.0f} Gflop/s"
        for dtype, rate in found.products.items()
    }
    return {**kept, **speed, "copy": f"{found.copy / 1e9:.1f} GB/s", **seal["packages"]}
