r"""What the representation of a minimiser of the soft majority is worth downstream: heads fitted on few labels.

The downstream label of a context is $y=\mathrm{sign}(\beta^\top z)$, its features are $Wz$, and a head predicts
$\mathrm{sign}(w^\top Wz)$, without intercept. All that matters of $\theta$ is the Gram matrix

$$W^\top W=\frac{\beta\beta^\top}{\lVert a\rVert^2}+W_\perp^\top W_\perp ,$$

of which the first part knows the label and the second does not.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.theory.flatness.soft_majority import Point, SoftMajority, fitting

__all__ = ["draw_examples", "few_shot_accuracy", "one_shot_accuracy", "misleading"]


def draw_examples(language: SoftMajority, n: int, sets: int, generator: torch.Generator) -> Int[Tensor, "sets n"]:
    """Draw training sets of contexts, uniform and with replacement.

    Args:
        language: the language, every label decided.
        n: examples in a set, at least 1.
        sets: how many sets, at least 1.
        generator: source of randomness.

    Returns:
        Rows of ``language.contexts``, shape (sets, n), int64.

    Raises:
        ValueError: if there is no example or no set.

    References:
        The companion's own choice.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> draw_examples(soft_majority(torch.ones(1)), 3, 2, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """
    if n < 1 or sets < 1:
        raise ValueError(f"draw_examples: expected at least one example and one set, got n={n} and sets={sets}")
    return torch.randint(len(language.contexts), (sets, n), generator=generator, device=generator.device)


def few_shot_accuracy(
    point: Point, language: SoftMajority, examples: Int[Tensor, "sets n"], penalty: float = 0.1
) -> Float[Tensor, "*b sets"]:
    r"""Return the accuracy, over all contexts, of a ridge head on the features $Wz$ of each set of labelled contexts.

    The head minimises $\sum_i(y_i-w^\top Wz_i)^2+\lambda n\lVert w\rVert^2$; solved in its dual form.

    Args:
        point: parameters; any leading axes.
        language: the language, every label decided.
        examples: rows of ``language.contexts``, shape (sets, n).
        penalty: $\lambda>0$, of one example.

    Returns:
        The share of all $2^d$ contexts labelled rightly (a tie counts half), shape (..., sets), float64.

    Raises:
        ValueError: if the penalty is not positive, some context has no majority, or shapes do not fit.

    References:
        `prop-flat-transfer`; the penalty is the companion's choice.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> language, point = soft_majority(torch.ones(1)), Point(torch.tensor([0.5]), torch.tensor([[2.0]]))
        >>> few_shot_accuracy(point, language, torch.tensor([[0], [1]])).tolist()
        [1.0, 1.0]
    """
    if not penalty > 0:
        raise ValueError(f"few_shot_accuracy: the penalty must be positive, got {penalty}")
    _, W = fitting(point, language, "few_shot_accuracy")
    _decided(language, "few_shot_accuracy")
    n = examples.shape[1]
    z, y = language.contexts[examples], language.labels[examples]  # (sets, n, d), (sets, n)
    features = z @ W.mT[..., None, :, :]  # (..., sets, n, h)
    ridge = penalty * n * torch.eye(n, dtype=W.dtype, device=W.device)
    dual = torch.linalg.solve(features @ features.mT + ridge, y.expand(features.shape[:-1])[..., None])
    direction = (features.mT @ dual).squeeze(-1) @ W  # (..., sets, d): the score of a context is linear in z
    return _right(direction @ language.contexts.T, language)


def one_shot_accuracy(point: Point, language: SoftMajority) -> Float[Tensor, "*b"]:
    r"""Return the expected accuracy after one labelled context, exactly: all pairs of contexts are enumerated.

    Every head without intercept that is minimum-norm, ridge or large-margin points along $y_1Wz_1$, so the penalty
    does not matter.

    Args:
        point: parameters; any leading axes.
        language: the language, every label decided.

    Returns:
        The mean over the labelled context of the accuracy over all contexts, shape of the leading axes, float64.

    Raises:
        ValueError: if some context has no majority, or shapes do not fit.

    References:
        `prop-flat-transfer`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> point = Point(torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))  # second token: no meaning
        >>> float(one_shot_accuracy(point, soft_majority(torch.tensor([1.0, 0.0]))))
        0.5
    """
    _, W = fitting(point, language, "one_shot_accuracy")
    _decided(language, "one_shot_accuracy")
    taught = language.labels[:, None] * language.contexts  # y_1 z_1
    return _right(taught @ (W.mT @ W) @ language.contexts.T, language).mean(-1)


def misleading(point: Point, language: SoftMajority, token: int, size: float) -> Point:
    r"""Return a minimiser that represents, besides what it needs, one token, with equal prediction and loss.

    $W=\frac{a\beta^\top}{\lVert a\rVert^2}+\kappa\,e\,e_j^\top$ with a unit vector $e\perp a$. If $\beta_j=0$ and
    $\kappa^2>\max_z(\beta^\top z)^2/\lVert a\rVert^2$, every one-shot head errs on exactly half of the contexts.

    Args:
        point: a point with $a\ne0$ and at least two neurons; only $a$ is used. No leading axes.
        language: the language.
        token: $j$, from 0.
        size: $\kappa$.

    Returns:
        The minimiser, float64.

    Raises:
        ValueError: if there is one neuron only.

    References:
        The companion's own; `prop-flat-transfer`.

    Examples:
        >>> from companion.theory.flatness.soft_majority import soft_majority
        >>> point = Point(torch.tensor([1.0, 0.0]), torch.zeros(2, 2))
        >>> misleading(point, soft_majority(torch.tensor([1.0, 0.0])), 1, 3.0).W.abs().tolist()
        [[1.0, 0.0], [0.0, 3.0]]
    """
    a, _ = fitting(point, language, "misleading")
    if a.shape[-1] < 2:
        raise ValueError("misleading: one neuron has no direction orthogonal to a; expected at least two")
    square = a.square().sum()
    least = int(a.abs().argmin())
    e = -a * a[least] / square
    e[least] += 1
    W = torch.outer(a, language.beta) / square
    W[:, token] += size * e / torch.linalg.vector_norm(e)
    return Point(a, W)


def _right(scores: Tensor, language: SoftMajority) -> Tensor:
    """Share of contexts whose score has the sign of the label; scores at rounding level are ties and count half."""
    scores = scores * language.labels
    level = 1e-12 * scores.abs().amax(-1, keepdim=True)
    return torch.where(scores.abs() <= level, 0.5, (scores > 0).to(scores)).mean(-1)


def _decided(language: SoftMajority, where: str) -> None:
    if not language.labels.all():
        z = language.contexts[language.labels == 0][0]
        raise ValueError(f"{where}: the context {z.tolist()} has no majority; expected beta^T z != 0 everywhere")
