"""Witnesses: scipy, enumeration, coverage on simulated runs."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from companion.lab import intervals, probe
from companion.lab.intervals import mean_interval, median_interval, paired_interval, pairs_needed, pairs_needed_interval


class TestIntervals:
    @pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
    def test_scipy(self, level):
        a, b = np.random.default_rng(0).normal(size=(2, 7))
        found = mean_interval(a.tolist(), level)
        assert (found.low, found.high) == pytest.approx(stats.t.interval(level, 6, a.mean(), stats.sem(a)))
        paired = paired_interval(a.tolist(), b.tolist(), level)
        theirs = stats.ttest_rel(a, b).confidence_interval(level)
        assert (paired.low, paired.high, paired.n) == (pytest.approx(theirs.low), pytest.approx(theirs.high), 7)

    def test_coverage(self):
        runs = np.random.default_rng(1).normal(size=(2000, 5))
        covered = np.mean([(i := mean_interval(run.tolist())).low <= 0 <= i.high for run in runs])
        assert abs(covered - 0.95) < 4 * (0.95 * 0.05 / 2000) ** 0.5

    def test_one_run_has_no_interval(self):
        with pytest.raises(ValueError, match="at least two"):
            mean_interval([0.5])
        with pytest.raises(ValueError, match="expected pairs"):
            paired_interval([0.5, 0.6], [0.5])


class TestMedianInterval:
    @pytest.mark.parametrize(("n", "level"), [(6, 0.95), (9, 0.95), (10, 0.95), (10, 0.5), (13, 0.99), (7, 31 / 32)])
    def test_coverage_by_enumeration(self, n, level):
        """Each of the 2^n ways to lie below or above the median is as likely; a narrower pair covers too little."""
        ranked = median_interval(range(1, n + 1), level)
        rank = int(ranked.low)
        assert ranked.high == n + 1 - rank

        def coverage(r):  # at least r values below the median and r above it
            return sum(r <= sum(below) <= n - r for below in product((0, 1), repeat=n)) / 2**n

        assert coverage(rank) == pytest.approx(1 - 2 * stats.binom.cdf(rank - 1, n, 0.5))
        assert coverage(rank) >= level > coverage(rank + 1)

    @pytest.mark.parametrize("n", [6, 25, 100, 1500])
    def test_ranks_are_scipys(self, n):
        found = median_interval(np.random.default_rng(0).permutation(n) + 1)
        assert found.low == stats.binom.ppf(0.025, n, 0.5)  # the smallest rank with a tail of at least 2.5 % up to it
        theirs = stats.quantile_test(np.arange(1, n + 1)).confidence_interval(0.95)
        assert (theirs.low, theirs.high) == (found.low, found.high)
        assert (found.mean, found.n) == ((n + 1) / 2, n)

    def test_coverage_on_a_heavy_tail(self):
        """Logarithms with deviation 2: exact for the median 1; control: t-intervals miss the mean e^2 too often."""
        runs = np.exp(2 * np.random.default_rng(0).normal(size=(2000, 15)))
        median, mean = ([interval(run) for run in runs] for interval in (median_interval, mean_interval))
        exact = 1 - 2 * stats.binom.cdf(3, 15, 0.5)
        assert abs(np.mean([i.low <= 1 <= i.high for i in median]) - exact) < 4 * (exact * (1 - exact) / 2000) ** 0.5
        assert np.mean([i.low <= np.exp(2) <= i.high for i in mean]) < 0.8

    def test_it_commutes_with_monotone_maps(self):
        """Control: the t-interval does not."""
        x = np.random.default_rng(0).normal(size=11)
        ends = [np.exp([i.low, i.mean, i.high]) for i in (median_interval(x), mean_interval(x))]
        maps = [(i.low, i.mean, i.high) for i in (median_interval(np.exp(x)), mean_interval(np.exp(x)))]
        assert maps[0] == pytest.approx(ends[0])
        assert maps[1] != pytest.approx(ends[1], rel=0.01)

    def test_events_that_never_came(self):
        found = median_interval([1.0, 2, 3, 4, 5, 6, 7, float("inf"), float("inf"), float("inf")])
        assert (found.mean, found.low, found.high) == (5.5, 2.0, float("inf"))

    @pytest.mark.parametrize(("level", "least"), [(0.5, 2), (0.9, 5), (0.95, 6), (0.99, 8)])
    def test_too_few(self, level, least):
        with pytest.raises(ValueError, match=f"at least {least} for a median at level {level}, found {least - 1}"):
            median_interval(range(least - 1), level)
        assert median_interval(range(least), level).low == 0

    def test_errors_teach(self):
        with pytest.raises(ValueError, match=r"event that never came as inf"):
            median_interval([1.0, float("nan")] * 5)
        with pytest.raises(ValueError, match="between 0 and 1, found 95"):
            median_interval(range(9), 95)


class TestPairsNeeded:
    @pytest.mark.parametrize(("ratio", "power", "level"), [(1.0, 0.8, 0.95), (0.5, 0.9, 0.95), (1.5, 0.8, 0.99)])
    def test_simulated_tests(self, ratio, power, level):
        """The t-test sees the effect as often as asked at n pairs, and less often at n - 1."""
        n, runs = pairs_needed(2.0, 2.0 * ratio, power, level), 100_000
        seen = []
        for size in (n, n - 1):
            x = np.random.default_rng(size).normal(ratio, size=(runs, size))
            t = x.mean(1) / (x.std(1, ddof=1) / size**0.5)
            seen.append(np.mean(t > stats.t.ppf((1 + level) / 2, size - 1)))
        error = 3 * (power * (1 - power) / runs) ** 0.5
        assert seen[0] > power - error
        assert seen[1] < power + error
        assert seen[0] > seen[1]

    def test_more_where_it_is_harder(self):
        sizes = [pairs_needed(1.0, effect) for effect in (5.0, 2.0, 1.0, 0.5, 0.1, 0.01)]
        assert sizes == sorted(set(sizes))
        assert sizes[0] >= 2
        assert pairs_needed(2.0, 1.0) == pairs_needed(1.0, 0.5) == 34
        assert pairs_needed(1.0, 1.0, power=0.9) > pairs_needed(1.0, 1.0) > pairs_needed(1.0, 1.0, level=0.9)
        normal = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2  # without the loss of estimating the deviation
        assert 0 < pairs_needed(1.0, 0.05) - normal / 0.05**2 < 4

    def test_coverage_of_the_interval(self):
        draws, truth = np.random.default_rng(0).normal(size=(1000, 8)), pairs_needed(1.0, 0.5)
        found = [pairs_needed_interval(draw.tolist(), 0.5) for draw in draws]
        assert abs(np.mean([i.low <= truth <= i.high for i in found]) - 0.95) < 4 * (0.95 * 0.05 / 1000) ** 0.5
        assert all(i.low <= i.mean <= i.high for i in found)
        assert found[0].mean == pairs_needed(float(draws[0].std(ddof=1)), 0.5)
        assert found[0].n == 8

    def test_errors_teach(self):
        for settings, message in (
            ((0.0, 1.0), "deviation: expected a positive number, found 0.0"),
            ((1.0, -1.0), "effect: expected a positive number, found -1.0"),
            ((1.0, float("nan")), "effect: expected"),
            ((1.0, 1.0, 1.0), "power: expected a positive number below 1, found 1.0"),
            ((1.0, 1.0, 0.8, 95), "level: expected a probability between 0 and 1, found 95"),
            ((1.0, 1e-6), "effect: 1e-06 beside a deviation of 1 needs over a million pairs"),
        ):
            with pytest.raises(ValueError, match=message):
                pairs_needed(*settings)
        for differences in ([0.5], [0.5, 0.5]):
            with pytest.raises(ValueError, match="at least two different numbers, one a seed, found"):
                pairs_needed_interval(differences, 1.0)


def test_probe_offers_the_same_intervals():
    names = ("mean_interval", "paired_interval", "median_interval", "pairs_needed", "pairs_needed_interval")
    for name in ("Interval", *names):
        assert name in probe.__all__
        assert getattr(probe, name) is getattr(intervals, name)
