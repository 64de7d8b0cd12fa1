r"""What a representation is worth for another task: ridge heads on few labels, in closed form, many draws at once.

A head is fitted to one-hot labels with features $\phi$ centred and divided by one number, the root of their mean
square: $\min_w\frac1n\sum_i\lVert y_i-\bar y-w^\top\phi_i\rVert^2+\lambda\lVert w\rVert^2$. The largest entry is the
guess. One common scale keeps what is large in a representation large, and makes the head's accuracy the same after any
rotation, shift or change of unit. With t copies of the features the penalty $t\lambda$ does what $\lambda$ did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from companion.lab.intervals import Interval, paired_interval
from companion.lab.languages.tokens import PAD, slices
from companion.lab.masked.evaluation import WORDS
from companion.lab.masked.sentences import Language
from companion.lab.masked.tasks import Labelled, Task
from companion.lab.masked.transformer import Transformers

__all__ = ["Task", "Labelled", "Draws", "extract", "lookup", "one_hot", "few_shot", "ridge", "paired"]

NUMBERS = 2**25  # entries of the features of all draws that are solved at once


@torch.no_grad()
def extract(
    model: Transformers, data: Labelled, *, projection: Float[Tensor, "D k"] | None = None
) -> Float[Tensor, "S n D"]:
    """Return the features of every run: the last hidden vector at the masked position, or at all positions in a row.

    Args:
        model: in evaluation mode.
        data: sentences; features at padding are set to zero.
        projection: matrix that the features are multiplied by, for very wide ones.

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError("extract: the model is in training mode; call .eval() first")
    tokens, at = data.read(model.shape)
    size = max(1, WORDS // (model.runs * tokens.shape[1]))
    found = []
    for rows in slices(len(tokens), size):
        phi = model.features(tokens[rows], None if at is None else at[rows])
        if at is None:
            phi = (phi * (tokens[rows] != model.shape.pad)[..., None]).flatten(2)
        found.append(phi if projection is None else phi @ projection)
    return torch.cat(found, 1)


def lookup(
    language: Language, data: Labelled, *, projection: Float[Tensor, "D k"] | None = None
) -> Float[Tensor, "1 n D"]:
    r"""Return the true conditional laws as features, the lookup table: $p(\cdot\mid x_{-t})$, of the place or of all.

    It is what a model of least loss must know, and no more.
    """
    tokens, place = data.tokens, data.task.place
    laws = []
    for rows in slices(len(tokens), 2048):
        law = language.conditionals(tokens[rows], data.lengths[rows])
        law = law[:, place] if data.task.view == "masked" else law.flatten(1)
        laws.append(law if projection is None else law @ projection.to(law.dtype))
    return torch.cat(laws)[None]


def one_hot(data: Labelled, words: int) -> Float[Tensor, "1 n D"]:
    """Return the words themselves as features, all positions in a row; the masked word and padding are zeros."""
    hidden = data.tokens == PAD
    if data.task.view == "masked":
        hidden[:, data.task.place] = True
    rows = F.one_hot(data.tokens.masked_fill(hidden, words), words + 1)[..., :words]
    return rows.flatten(1).double()[None]


@dataclass(frozen=True)
class Draws:
    """Which sentences to label: the same for every representation, so that accuracies can be paired.

    Attributes:
        fit: rows of the labelled sentences, (draws, n) int64, by n.
        test: rows to count on, (m,) int64; never among those of `fit`.
    """

    fit: dict[int, Int64[Tensor, "draws n"]]
    test: Int64[Tensor, " m"]

    @classmethod
    def of(cls, pool: int, sizes: Sequence[int], draws: int, generator: torch.Generator, *, test: int = 2500) -> Draws:
        """Set the last `test` of `pool` sentences aside, and draw n of the others without replacement, many times.

        Args:
            pool: number of sentences.
            sizes: numbers of labels n; a size of all that are left has one draw.
            draws: how many times.
            generator: source of the draws.
            test: sentences to count on.

        Raises:
            ValueError: there are not enough sentences.
        """
        rest = pool - test
        if test < 1 or draws < 1 or not sizes or not 1 <= min(sizes) <= max(sizes) <= rest:
            raise ValueError(
                f"Draws: {pool} sentences, {test} of them for the test, leave {rest}; "
                f"expected {draws} draws of {list(sizes)} to be possible, all numbers at least 1"
            )
        fit = {}
        for n in sizes:
            rows = [torch.randperm(rest, generator=generator, device=generator.device)[:n] for _ in range(draws)]
            fit[n] = torch.stack(rows[:1] if n == rest else rows)
        return cls(fit, torch.arange(rest, pool, device=generator.device))


def few_shot(
    features: Float[Tensor, "S n D"], data: Labelled, draws: Draws, *, penalty: float = 0.1
) -> dict[int, Float[Tensor, "S draws"]]:
    r"""Return the accuracy of the ridge head of every run and draw, in [0, 1], by the number of labels.

    Args:
        features: of all sentences of `data`, any float dtype; heads are solved in float64.
        data: labels.
        draws: which labels are seen, and the test.
        penalty: $\lambda$.

    Raises:
        ValueError: the features are not those of the data, or the penalty is not positive.
    """
    if features.shape[1] != len(data) or penalty <= 0:
        raise ValueError(
            f"few_shot: expected features of {len(data)} sentences and a penalty > 0, "
            f"found {tuple(features.shape)} and {penalty}"
        )
    Y, truth = F.one_hot(data.labels, data.classes).double(), data.labels[draws.test]
    found = {n: torch.empty(len(features), len(rows), dtype=torch.float64) for n, rows in draws.fit.items()}
    for s, phi in enumerate(features):
        test = phi[draws.test].double()
        for n, rows in draws.fit.items():
            for some in slices(len(rows), NUMBERS // (n * phi.shape[1])):
                w, b = ridge(phi[rows[some]].double(), Y[rows[some]], penalty)
                scores = (test @ w.transpose(0, 1).flatten(1)).unflatten(1, (len(w), -1)) + b.squeeze(1)
                found[n][s, some] = (scores.argmax(2) == truth[:, None]).double().mean(0).cpu()
    return found


def ridge(
    X: Float[Tensor, "*s n D"], Y: Float[Tensor, "*s n K"], penalty: float
) -> tuple[Float[Tensor, "*s D K"], Float[Tensor, "*s 1 K"]]:
    r"""Return weights and bias of the ridge head, through the smaller of the two systems, n or D; differentiable.

    With $A=(X-\bar x)/r$, $r^2$ the mean square of the entries of $X-\bar x$, and $\tilde Y=Y-\bar y$,
    $$w=A^\top(AA^\top+\lambda nI)^{-1}\tilde Y/r=(A^\top A+\lambda nI)^{-1}A^\top\tilde Y/r,\qquad
    b=\bar y-\bar x^\top w.$$

    Args:
        X: features.
        Y: targets.
        penalty: $\lambda$.

    Examples:
        >>> X, Y = torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0], [1.0]])
        >>> [value.item() for value in ridge(X, Y, 1.0)]  # least squares has slope 1, and lambda = 1 halves it
        [0.5, 2.0]
    """
    x, y = X.mean(-2, keepdim=True), Y.mean(-2, keepdim=True)
    centred = X - x
    tiny = torch.finfo(X.dtype).tiny
    r = centred.square().mean((-2, -1), keepdim=True).clamp(min=tiny).sqrt()
    A, n, D = centred / r, X.shape[-2], X.shape[-1]
    eye = torch.eye(min(n, D), dtype=X.dtype, device=X.device) * (penalty * n)
    if n <= D:
        w = A.mT @ torch.linalg.solve(A @ A.mT + eye, Y - y)
    else:
        w = torch.linalg.solve(A.mT @ A + eye, A.mT @ (Y - y))
    w = w / r
    return w, y - x @ w


def paired(first: Float[Tensor, "seeds draws"], second: Float[Tensor, "seeds draws"], level: float = 0.95) -> Interval:
    """Interval of the difference of two arms whose rows share seeds, averaged over draws: seeds are what is sampled."""
    return paired_interval(first.mean(1).tolist(), second.mean(1).tolist(), level)
