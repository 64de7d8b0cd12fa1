"""What a representation is worth: ridge, logistic and nearest-neighbour probes.

Every accuracy is that of the representation as it stands, which in this book is always the one after the **last**
epoch; no probe looks at the test labels to choose anything. Intervals over seeds, from `companion.lab.intervals`, can
be had from here as well: a mean of accuracies is rarely wanted without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from companion.lab.intervals import (
    Interval,
    mean_interval,
    median_interval,
    paired_interval,
    pairs_needed,
    pairs_needed_interval,
)

__all__ = [
    "PENALTIES",
    "FOLDS",
    "extract",
    "ridge",
    "logistic",
    "knn",
    "standardised",
    "few_labels",
    "Interval",
    "mean_interval",
    "paired_interval",
    "median_interval",
    "pairs_needed",
    "pairs_needed_interval",
]

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # for standardised features: their total variance is d
FOLDS = 5


def extract(function: Callable[[Tensor], Tensor], inputs: Tensor, batch_size: int = 1000) -> Float[Tensor, "n d"]:
    """Apply `function` (``encoder.features``, say) to all inputs in batches, without gradients; back on the CPU.

    >>> extract(lambda x: 2 * x, torch.tensor([[1.0], [2.0], [3.0]]), batch_size=2).T
    tensor([[2., 4., 6.]])
    """
    with torch.inference_mode():
        return torch.cat([function(batch).float().cpu() for batch in inputs.split(batch_size)])


def ridge(
    train_x: Float[Tensor, "n d"],
    train_y: Int64[Tensor, " n"],
    test_x: Float[Tensor, "m d"],
    test_y: Int64[Tensor, " m"],
    penalty: float | None = None,
) -> float:
    r"""Accuracy of the ridge classifier: the arg max of a least-squares fit to one-hot labels.

    $W = \arg\min_W \frac1n\lVert XW - Y\rVert_F^2 + \lambda\lVert W\rVert_F^2 = (X^\top X + n\lambda I)^{-1}X^\top Y$
    with features standardised on the training set and centred labels, so that the intercept is not penalised.

    Args:
        train_x: features, any scale; float64 inside.
        train_y: labels.
        test_x: features of the test images.
        test_y: their labels.
        penalty: $\lambda$; None: the one of `PENALTIES` with the best accuracy in five-fold cross-validation on the
            training labels (the largest of several).

    Returns:
        Accuracy on the test set, in [0, 1].

    Raises:
        ValueError: shapes do not fit, or a class has too few labels to choose the penalty.

    >>> x, y = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
    >>> ridge(x, y, torch.tensor([[-3.0], [3.0], [4.0]]), torch.tensor([0, 1, 0]), penalty=0.1)
    0.6666666666666666
    """
    _check(train_x, train_y, test_x, test_y)
    X, X_test = standardised(train_x.double(), test_x.double())
    if penalty is None:
        fold = _folds(train_y)
        score = torch.zeros(len(PENALTIES), dtype=torch.float64)
        for held in range(FOLDS):
            kept, out = fold != held, fold == held
            for number, W in enumerate(_ridge_scores(X[kept], train_y[kept], X[out], PENALTIES)):
                score[number] += (W.argmax(1) == train_y[out]).sum()
        penalty = max(zip(score.tolist(), PENALTIES, strict=True))[1]
    (prediction,) = _ridge_scores(X, train_y, X_test, (penalty,))
    return _accuracy(prediction.argmax(1), test_y)


def logistic(
    train_x: Float[Tensor, "n d"],
    train_y: Int64[Tensor, " n"],
    test_x: Float[Tensor, "m d"],
    test_y: Int64[Tensor, " m"],
    penalty: float = 1e-3,
) -> float:
    r"""Accuracy of multinomial logistic regression (scikit-learn, L-BFGS) on standardised features.

    Minimises $\frac1n\sum_i\text{cross-entropy}_i + \frac\lambda2\lVert W\rVert_F^2$.

    Args:
        train_x: features, any scale.
        train_y: labels.
        test_x: features of the test images.
        test_y: their labels.
        penalty: $\lambda$ > 0.

    Returns:
        Accuracy on the test set, in [0, 1].

    Raises:
        ValueError: shapes do not fit.
    """
    _check(train_x, train_y, test_x, test_y)
    X, X_test = standardised(train_x.double(), test_x.double())
    model = LogisticRegression(C=1 / (penalty * len(X)), max_iter=5000, tol=1e-4)
    model.fit(X.numpy(), train_y.numpy())
    return _accuracy(torch.from_numpy(model.predict(X_test.numpy())), test_y)


def knn(
    train_x: Float[Tensor, "n d"],
    train_y: Int64[Tensor, " n"],
    test_x: Float[Tensor, "m d"],
    test_y: Int64[Tensor, " m"],
    neighbours: int = 20,
    temperature: float = 0.1,
) -> float:
    r"""Accuracy of the weighted nearest-neighbour vote with cosine similarity: votes $e^{\cos/\tau}$.

    Args:
        train_x: features.
        train_y: labels.
        test_x: features of the test images.
        test_y: their labels.
        neighbours: how many vote (all, if there are fewer).
        temperature: $\tau$.

    Returns:
        Accuracy on the test set, in [0, 1].

    Raises:
        ValueError: shapes do not fit.

    References:
        Wu et al. 2018, Unsupervised feature learning via non-parametric instance discrimination.
    """
    _check(train_x, train_y, test_x, test_y)
    unit, unit_test = (torch.nn.functional.normalize(x.float(), dim=1) for x in (train_x, test_x))
    predictions = []
    for batch in unit_test.split(1000):
        cosine, index = (batch @ unit.T).topk(min(neighbours, len(unit)))
        votes = torch.zeros(len(batch), int(train_y.max()) + 1)
        votes.scatter_add_(1, train_y[index], (cosine / temperature).exp())
        predictions.append(votes.argmax(1))
    return _accuracy(torch.cat(predictions), test_y)


def standardised(train_x: Tensor, *others: Tensor) -> list[Tensor]:
    """All arguments with the training set's mean removed and its standard deviation divided out, column by column.

    A column that is constant on the training set becomes zero everywhere.
    """
    mean, std = train_x.mean(0), train_x.std(0, correction=0)
    scale = torch.where(std > 1e-8 * std.max().clamp_min(1e-30), 1 / std, 0)
    return [(x - mean) * scale for x in (train_x, *others)]


def few_labels(labels: Int64[Tensor, " n"], per_class: int, generator: torch.Generator) -> Int64[Tensor, " m"]:
    """Positions of `per_class` random images of each class.

    Args:
        labels: of all images; negative ones are no class.
        per_class: number wanted of each.
        generator: source of the choice.

    Returns:
        Positions, class by class.

    Raises:
        ValueError: a class has fewer images.

    >>> few_labels(torch.tensor([0, 1, 0, 1]), 2, torch.Generator().manual_seed(0)).sort().values
    tensor([0, 1, 2, 3])
    """
    chosen = []
    for label in labels[labels >= 0].unique():
        (members,) = torch.nonzero(labels == label, as_tuple=True)
        if len(members) < per_class:
            raise ValueError(f"class {int(label)}: expected at least {per_class} images, found {len(members)}")
        chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return torch.cat(chosen)


def _ridge_scores(X: Tensor, y: Tensor, X_test: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    n, d = X.shape
    Y = torch.nn.functional.one_hot(y).to(X.dtype)
    offset, mean = Y.mean(0), X.mean(0)
    X, X_test, Y = X - mean, X_test - mean, Y - offset
    G, right, left = (X.T @ X, X.T @ Y, X_test) if d <= n else (X @ X.T, Y, X_test @ X.T)  # primal or dual
    eye = torch.eye(len(G), dtype=X.dtype)
    return [left @ torch.linalg.solve(G + n * penalty * eye, right) + offset for penalty in penalties]


def _folds(y: Tensor) -> Tensor:
    fold = torch.empty_like(y)
    for label in y.unique():
        members = y == label
        if (count := int(members.sum())) < FOLDS:
            raise ValueError(
                f"class {int(label)}: expected {FOLDS} labels to choose the penalty, found {count}; give penalty="
            )
        fold[members] = torch.arange(count) % FOLDS
    return fold


def _accuracy(prediction: Tensor, y: Tensor) -> float:
    return float((prediction == y).double().mean())


def _check(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> None:
    fits = train_x.ndim == test_x.ndim == 2 and train_x.shape[1] == test_x.shape[1]
    if not (fits and train_y.shape == train_x.shape[:1] and test_y.shape == test_x.shape[:1]):
        shapes = [tuple(t.shape) for t in (train_x, train_y, test_x, test_y)]
        raise ValueError(f"probe: expected (n, d), (n,), (m, d), (m,), found {shapes}")
