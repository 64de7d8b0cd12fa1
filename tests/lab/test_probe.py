"""Witnesses: scikit-learn, scipy, enumeration, cases worked by hand, and labels that cannot be learned."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from companion.lab import probe
from companion.lab.probe import few_labels, knn, logistic, mean_interval, median_interval, paired_interval, ridge


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(n=60, d=8, classes=3, spread=1.5, seed=0):
    """Gaussian classes, columns of different scale, in two parts."""
    g = generator(seed)
    means = torch.randn(classes, d, generator=g)
    y = torch.arange(2 * n) % classes
    x = (means[y] + spread * torch.randn(2 * n, d, generator=g)) * torch.logspace(-2, 2, d) + 5
    return x[:n], y[:n], x[n:], y[n:]


def reference_ridge(x, y, test_x, penalty):
    scaler = StandardScaler().fit(x.double().numpy())
    model = Ridge(alpha=penalty * len(x)).fit(scaler.transform(x.double().numpy()), np.eye(int(y.max()) + 1)[y.numpy()])
    return model.predict(scaler.transform(test_x.double().numpy()))


class TestRidge:
    @pytest.mark.parametrize("d", [8, 100])
    @pytest.mark.parametrize("penalty", [1e-3, 1.0])
    def test_scikit_learn(self, d, penalty):
        x, y, test_x, test_y = problem(d=d)
        X, X_test = probe.standardised(x.double(), test_x.double())
        (scores,) = probe._ridge_scores(X, y, X_test, [penalty])
        theirs = reference_ridge(x, y, test_x, penalty)
        assert np.allclose(scores.numpy(), theirs, atol=1e-8)
        assert ridge(x, y, test_x, test_y, penalty) == (theirs.argmax(1) == test_y.numpy()).mean()

    def test_by_hand(self):
        # x = -1, 1 standardised, Y centred = +-1/2: W = (2 + 2 penalty)^-1 (-1, 1); with penalty 1, W = (-1/4, 1/4).
        X = torch.tensor([[-1.0], [1.0]])
        (scores,) = probe._ridge_scores(X, torch.tensor([0, 1]), torch.tensor([[2.0]]), [1.0])
        assert torch.allclose(scores, torch.tensor([[0.0, 1.0]]))

    def test_penalty_is_the_best_in_cross_validation(self):
        x, y, test_x, test_y = problem(n=60, d=80, spread=3.0)
        (X,) = probe.standardised(x.double())
        fold = probe._folds(y)
        hits = [0] * len(probe.PENALTIES)
        for i in range(5):
            kept, held = fold != i, fold == i
            for p, penalty in enumerate(probe.PENALTIES):
                model = Ridge(alpha=penalty * int(kept.sum())).fit(X[kept].numpy(), np.eye(3)[y[kept].numpy()])
                hits[p] += (model.predict(X[held].numpy()).argmax(1) == y[held].numpy()).sum()
        best = probe.PENALTIES[max(p for p, h in enumerate(hits) if h == max(hits))]
        assert len(set(hits)) > 1
        assert ridge(x, y, test_x, test_y) == ridge(x, y, test_x, test_y, penalty=best)

    def test_folds_are_stratified(self):
        y = torch.tensor([0] * 10 + [1] * 5)
        assert all(y[probe._folds(y) == i].bincount().tolist() == [2, 1] for i in range(5))

    def test_scale_and_constant_columns_do_not_matter(self):
        x, y, test_x, test_y = problem()
        wide, wide_test = (torch.cat([7 * t, torch.full((len(t), 1), 3.0)], 1) for t in (x, test_x))
        assert ridge(wide, y, wide_test, test_y) == ridge(x, y, test_x, test_y)

    def test_random_labels_are_not_learned(self):
        x, y, test_x, test_y = problem(n=900)
        shuffled = y[torch.randperm(len(y), generator=generator())]
        assert abs(ridge(x, shuffled, test_x, test_y, 1.0) - 1 / 3) < 4 * (2 / 9 / 900) ** 0.5
        assert ridge(x, y, test_x, test_y) > 0.6

    def test_too_few_labels_to_choose(self):
        x, y, test_x, test_y = problem(n=9)
        with pytest.raises(ValueError, match="give penalty="):
            ridge(x, y, test_x, test_y)


class TestOtherProbes:
    def test_logistic(self):
        x, y, test_x, test_y = problem()
        scaler = StandardScaler().fit(x.double().numpy())
        model = LogisticRegression(C=1 / (0.1 * 60), solver="newton-cg", max_iter=500, tol=1e-8)
        model.fit(scaler.transform(x.double().numpy()), y.numpy())
        assert logistic(x, y, test_x, test_y, 0.1) == model.score(
            scaler.transform(test_x.double().numpy()), test_y.numpy()
        )

    def test_knn(self):
        x, y, test_x, test_y = (t - 5 if t.is_floating_point() else t for t in problem())
        model = KNeighborsClassifier(7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1))
        model.fit(x.double().numpy(), y.numpy())
        assert knn(x, y, test_x, test_y, neighbours=7) == pytest.approx(
            model.score(test_x.double().numpy(), test_y.numpy())
        )

    def test_knn_by_hand(self):
        # Cosines with (1, 0): 1, 0, 0; one vote of e^(1/t) against two of 1: the single one wins iff e^(1/t) > 2.
        x, y = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1, 1])
        target, truth = torch.tensor([[5.0, 0.0]]), torch.tensor([0])
        assert knn(x, y, target, truth, neighbours=3, temperature=1.4) == 1
        assert knn(x, y, target, truth, neighbours=3, temperature=1.5) == 0

    @pytest.mark.parametrize("method", [ridge, logistic, knn])
    def test_shapes_are_checked(self, method):
        x, y, test_x, test_y = problem()
        with pytest.raises(ValueError, match="expected"):
            method(x, y, test_x[:, :-1], test_y)
        with pytest.raises(ValueError, match="expected"):
            method(x, y[:-1], test_x, test_y)

    def test_extract_in_batches(self):
        layer = torch.nn.Linear(4, 2)
        x = torch.randn(25, 4, generator=generator())
        found = probe.extract(layer, x, batch_size=7)
        assert torch.allclose(found, layer(x))
        assert not found.requires_grad


class TestFewLabels:
    def test_stratified(self):
        labels = torch.randint(-1, 4, (400,), generator=generator())
        index = few_labels(labels, 10, generator())
        assert labels[index].bincount().tolist() == [10] * 4
        assert len(index.unique()) == 40
        assert torch.equal(index, few_labels(labels, 10, generator()))
        assert not torch.equal(index, few_labels(labels, 10, generator(1)))

    def test_too_few(self):
        with pytest.raises(ValueError, match="class 1: expected at least 2 images, found 1"):
            few_labels(torch.tensor([0, 0, 1]), 2, generator())


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
