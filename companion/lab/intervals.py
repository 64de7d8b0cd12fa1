"""How far a mean, a paired difference or a median of independent runs can be trusted: intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """The centre of some values, with its confidence interval.

    Attributes:
        mean: centre, the mean of the n values; for `median_interval` their median.
        low: lower end.
        high: upper end.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    r"""Mean and t-interval of independent runs: $\bar x \pm t_{n-1}\, s/\sqrt n$.

    Args:
        values: one number a run.
        level: probability of coverage.

    Returns:
        The interval.

    Raises:
        ValueError: fewer than two values.

    >>> found = mean_interval([1.0, 2.0, 3.0])  # t = 4.3027 at two degrees of freedom, s / sqrt(n) = 0.5774
    >>> found.mean, round(found.low, 3), round(found.high, 3), found.n
    (2.0, -0.484, 4.484, 3)
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"values: expected at least two numbers, one a run, found shape {x.shape}")
    half = float(stats.t.ppf((1 + level) / 2, len(x) - 1) * stats.sem(x))
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))


def paired_interval(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and t-interval of the differences a - b of runs that share a seed.

    Raises:
        ValueError: the two do not have the same length, or fewer than two values.
    """
    if len(a) != len(b):
        raise ValueError(f"expected pairs, one a seed, found {len(a)} and {len(b)} values")
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], level)


def median_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    r"""Median of independent runs, and an interval that covers the law's median whatever that law is.

    The ends are order statistics, $[x_{(r)}, x_{(n+1-r)}]$ with the largest rank r for which

    $$1 - 2\Pr[\mathrm{Bin}(n,\tfrac12) \le r-1] \ge \text{level} ,$$

    the exact coverage if the law is continuous, and a lower bound if it is not. No moment need exist.

    Args:
        values: one number a run, in any order; $\pm\infty$ is one (an event that never came), nan is none.
        level: probability of coverage, between 0 and 1.

    Returns:
        The interval; its `mean` is the **median** of the values.

    Raises:
        ValueError: fewer values than the widest pair, (1, n), needs: 6 at 95 %; or one of them is nan.

    >>> median_interval([5, 3, 10, 1, 8, 2, 9, 4, 7, 6])  # coverage 1 - 2 (1 + 10) / 2^10 = 0.979; ranks 3, 8: 0.891
    Interval(mean=5.5, low=2.0, high=9.0, n=10)
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a probability between 0 and 1, found {level}")
    x = np.sort(np.asarray(values, dtype=float))
    if x.ndim != 1 or np.isnan(x).any():
        raise ValueError(f"values: expected numbers, one a run, found {values}; write an event that never came as inf")
    n, rank, tail = len(x), 0, 1  # tail: of 2^n equally likely patterns of signs, those with at most `rank` minuses
    while 1 - 2 * tail / 2**n >= level:
        rank += 1
        tail += math.comb(n, rank)
    if rank == 0:
        least = next(size for size in range(n + 1, 2000) if 1 - 2 / 2**size >= level)
        raise ValueError(f"values: expected at least {least} for a median at level {level}, found {n}")
    return Interval(float(np.median(x)), float(x[rank - 1]), float(x[n - rank]), n)
