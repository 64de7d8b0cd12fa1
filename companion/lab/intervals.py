"""How far a mean, a paired difference or a median of independent runs can be trusted, and how many would be enough."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """The centre of some values, with its confidence interval.

    Attributes:
        mean: centre, the mean of the n values; for `median_interval` their median, for `pairs_needed_interval` the
            number of pairs needed.
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


def pairs_needed(deviation: float, effect: float, power: float = 0.8, level: float = 0.95) -> int:
    r"""Least number of pairs of runs for a paired two-sided t-test to see an effect.

    The least $n\ge2$ with $\Pr[T > t_{n-1,(1+\text{level})/2}]\ge\text{power}$, where T has the noncentral t law with
    n - 1 degrees of freedom and noncentrality $\text{effect}\cdot\sqrt n/\text{deviation}$. Errors of the wrong sign
    are not counted.

    Args:
        deviation: standard deviation of the paired differences, positive.
        effect: size of the true mean difference, positive, same unit.
        power: probability of seeing it, between 0 and 1.
        level: 1 - level is that of the test.

    Returns:
        The number of pairs, one pair a seed.

    Raises:
        ValueError: a number is not positive, or a probability not below 1.

    >>> pairs_needed(1.0, 1.0), pairs_needed(1.0, 0.5)  # the textbook's 10 and 34
    (10, 34)
    """
    for name, value, end in (("deviation", deviation, math.inf), ("effect", effect, math.inf), ("power", power, 1)):
        if not 0 < value < end:
            raise ValueError(f"{name}: expected a positive number{' below 1' * (end == 1)}, found {value}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a probability between 0 and 1, found {level}")

    def seen(n: int) -> bool:
        t = stats.t.ppf((1 + level) / 2, n - 1)
        return bool(stats.nct.sf(t, n - 1, effect * math.sqrt(n) / deviation) >= power)

    high = 2
    while not seen(high):
        high *= 2
        if high > 2**20:  # where scipy's noncentral t begins to lose digits
            raise ValueError(f"effect: {effect:g} beside a deviation of {deviation:g} needs over a million pairs")
    return 2 + bisect_left(range(2, high + 1), True, key=seen)


def pairs_needed_interval(
    differences: Sequence[float], effect: float, power: float = 0.8, level: float = 0.95
) -> Interval:
    r"""`pairs_needed` for a deviation that is itself estimated, from paired differences that were measured.

    The deviation lies in $s\sqrt{(n-1)/\chi^2_{n-1,(1\pm\text{level})/2}}$ if differences are normal, and the number of
    pairs grows with it.

    Args:
        differences: one a seed, at least two.
        effect: as for `pairs_needed`.
        power: as for `pairs_needed`.
        level: of the test, and probability of coverage of the interval.

    Returns:
        The interval: `mean` is the number of pairs for the deviation that was measured, `n` that of the differences.

    Raises:
        ValueError: fewer than two differences, all are equal, or as for `pairs_needed`.

    >>> pairs_needed_interval([1.0, -1.0, 2.0, -2.0], 1.0)
    Interval(mean=29.0, low=11.0, high=366.0, n=4)
    """
    x = np.asarray(differences, dtype=float)
    if x.ndim != 1 or len(x) < 2 or not np.ptp(x) > 0:
        raise ValueError(f"differences: expected at least two different numbers, one a seed, found {differences}")
    s, free = float(x.std(ddof=1)), len(x) - 1
    low, high = (s * math.sqrt(free / stats.chi2.ppf(q, free)) for q in ((1 + level) / 2, (1 - level) / 2))
    mean, low, high = (float(pairs_needed(deviation, effect, power, level)) for deviation in (s, low, high))
    return Interval(mean, low, high, len(x))
