"""Witnesses: scikit-learn, scipy, enumeration, cases worked by hand, and labels that cannot be learned."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from companion.lab import probe
from companion.lab.probe import few_labels, knn, logistic, ridge


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
