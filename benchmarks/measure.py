"""Time something n times; say the median, the spread, and on what machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

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
        note: budget, comparison, or setting.
    """

    what: str
    unit: str
    median: float
    low: float
    high: float
    n: int
    note: str = ""


def summary(what: str, values: list[float], unit: str, note: str = "") -> Measurement:
    """Median, smallest and largest of measured values."""
    return Measurement(what, unit, statistics.median(values), min(values), max(values), len(values), note)


def seconds(call: Callable[[], object], n: int, warm: int = 1) -> list[float]:
    """Wall seconds of n calls after `warm` unmeasured ones."""
    for _ in range(warm):
        call()
    values = []
    for _ in range(n):
        began = time.perf_counter()
        call()
        values.append(time.perf_counter() - began)
    return values


def machine() -> dict[str, str]:
    """Where the numbers come from, as the stamp of a run says it."""
    seal = stamp.collect({}, seed=0, started=stamp.now(), began=time.monotonic())
    kept = {key: str(seal[key]) for key in ("processor", "platform", "device", "threads", "python")}
    return {**kept, **seal["packages"]}
