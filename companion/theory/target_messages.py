r"""Alignment with a target that is held fixed: stop-gradient, a momentum target, a linear predictor, as messages.

The loss is $\frac12\mathbb E\lVert f_xW-\mathrm{sg}(t_{x^+})\rVert^2$; $F$ and $T$ hold the features and the targets as
weighted rows, and the predictor $W$ acts on rows from the right. Steps of size $\alpha$ descend $F$.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.message_checks import normalized_eigenvalues, on_graph, positive
from companion.theory.mode_laws import Scalar

Features = Float[Tensor, "*b N k"]
Square = Float[Tensor, "N N"]


def stop_gradient_step(F: Features, normalized: Square, alpha: Scalar) -> Features:
    r"""Take one step of alignment with stop-gradient, $F \leftarrow (1-\alpha)F+\alpha\bar AF$.

    The gradient is $LF$, half that of alignment: the same collapse as with half the step, at the rate
    ``collapse_rate(eigenvalues, alpha / 2)``.

    Args:
        F: weighted features, shape (..., N, k).
        normalized: $\bar A$, shape (N, N), symmetric.
        alpha: step size $\alpha > 0$.

    Returns:
        Shape of `F`, float64.

    Raises:
        ValueError: if the shapes do not fit, $\bar A$ is not symmetric, or `alpha` is not positive.

    References:
        The companion's own; `prop-stop-gradient-messages`.

    Examples:
        >>> stop_gradient_step(torch.tensor([[4.0], [0.0]]), torch.full((2, 2), 0.5), 0.5).flatten().tolist()
        [3.0, 1.0]
    """
    return momentum_step(F, F, normalized, alpha, 0.0, name="stop_gradient_step")[0]


def momentum_step(
    F: Features, T: Features, normalized: Square, alpha: Scalar, rho: float, *, name: str = "momentum_step"
) -> tuple[Features, Features]:
    r"""Take one step towards a momentum target, then let the target follow.

    $$F \leftarrow (1-\alpha)F+\alpha\bar AT,\qquad T \leftarrow \rho T+(1-\rho)F .$$

    Exact in feature space; for the weights of a network, whose features are not linear in them, it is an approximation.

    Args:
        F: weighted features, shape (..., N, k).
        T: weighted target features, shape of `F`.
        normalized: $\bar A$, shape (N, N), symmetric.
        alpha: step size $\alpha > 0$.
        rho: momentum $\rho$, share of the past in the target, in [0, 1].
        name: whom an error message names.

    Returns:
        The next $F$ and $T$, float64.

    Raises:
        ValueError: if the shapes do not fit, $\bar A$ is not symmetric, `alpha` is not positive, or `rho` is not in
            [0, 1].

    References:
        The companion's own; `prop-momentum-messages`.

    Examples:
        >>> F, T = momentum_step(torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1, 1), 0.5, 0.75)
        >>> float(F), float(T)  # (1 - 1/2) 1, 1/4 of it
        (0.5, 0.125)
    """
    alpha = positive(alpha, name)
    rho = float(_share(rho, name))
    if F.shape != T.shape:
        raise ValueError(f"{name}: F {tuple(F.shape)} and the target T {tuple(T.shape)} must have one shape (N, k)")
    F, normalized = on_graph(F, normalized, name)
    F = (1 - alpha) * F + alpha * (normalized @ T.double())
    return F, rho * T.double() + (1 - rho) * F


def momentum_matrix(eigenvalue: Scalar, alpha: Scalar, rho: Scalar) -> Float[Tensor, "... 2 2"]:
    r"""Return what one step of `momentum_step` does to the pair $(F, T)$ on a mode $\gamma$ of $\bar A$.

    $$\begin{pmatrix}1-\alpha&\alpha\gamma\\(1-\rho)(1-\alpha)&\rho+(1-\rho)\alpha\gamma\end{pmatrix},\qquad
    \det = (1-\alpha)\rho .$$

    Args:
        eigenvalue: $\gamma$, in [-1, 1]; broadcasts.
        alpha: step size $\alpha > 0$; broadcasts.
        rho: momentum $\rho$ in [0, 1]; broadcasts.

    Returns:
        The matrices, broadcast shape + (2, 2), float64.

    Raises:
        ValueError: if an eigenvalue, `alpha` or `rho` is out of range.

    References:
        The companion's own; `prop-momentum-messages`.

    Examples:
        >>> momentum_matrix(1.0, 0.5, 0.5).tolist()
        [[0.5, 0.5], [0.25, 0.75]]
    """
    name = "momentum_matrix"
    gamma, alpha, rho = torch.broadcast_tensors(
        normalized_eigenvalues(eigenvalue, name), positive(alpha, name), _share(rho, name)
    )
    keep, take = 1 - alpha, alpha * gamma
    rows = [keep, take, (1 - rho) * keep, rho + (1 - rho) * take]
    return torch.stack(rows, -1).reshape(*gamma.shape, 2, 2)


def momentum_rate(eigenvalue: Scalar, alpha: Scalar, rho: Scalar) -> Float[Tensor, "..."]:
    r"""Return the factor by which a mode shrinks a step under a momentum target.

    The larger modulus of the two eigenvalues of `momentum_matrix`. At $\gamma = 1$ they are 1 and $(1-\alpha)\rho$; for
    $|\gamma| < 1$, $0<\alpha\le1$ and $\rho<1$ both lie inside the unit disc: the target delays collapse and does not
    prevent it. Near $\gamma = 1$ the rate is $1-\alpha(1-\gamma)/(1+\alpha\rho/(1-\rho))$.

    Args:
        eigenvalue: $\gamma$ of $\bar A$, in [-1, 1]; broadcasts.
        alpha: step size $\alpha > 0$; broadcasts.
        rho: momentum $\rho$ in [0, 1]; 0 is stop-gradient, 1 a frozen target; broadcasts.

    Returns:
        The rate, broadcast shape, float64.

    Raises:
        ValueError: if an eigenvalue, `alpha` or `rho` is out of range.

    References:
        The companion's own; `prop-momentum-messages`.

    Examples:
        >>> float(momentum_rate(0.5, 0.5, 0.0)), round(float(momentum_rate(0.9, 0.3, 0.9)), 6)
        (0.75, 0.991776)
    """
    return torch.linalg.eigvals(momentum_matrix(eigenvalue, alpha, rho)).abs().amax(-1)


def predictor_step(
    F: Features, normalized: Square, W: Float[Tensor, "k k"], alpha: Scalar, *, inner_product: bool = False
) -> Features:
    r"""Take one step of alignment with a linear predictor and stop-gradient: a linear layer with a skip connection.

    $$F \leftarrow F+\alpha(\bar AF-FW)W^\top,\qquad\text{inner product:}\quad F \leftarrow F+\alpha\bar AFW^\top .$$

    Args:
        F: weighted features, shape (..., N, k).
        normalized: $\bar A$, shape (N, N), symmetric.
        W: predictor, shape (k, k); the prediction of row $f$ is $fW$. The identity gives `stop_gradient_step`.
        alpha: step size $\alpha > 0$.
        inner_product: descend $-\mathbb E\,f_xWf_{x^+}^\top$ in place of the squared distance.

    Returns:
        Shape of `F`, float64.

    Raises:
        ValueError: if the shapes do not fit, $\bar A$ is not symmetric, or `alpha` is not positive.

    References:
        The companion's own; `prop-predictor-messages`.

    Examples:
        >>> F, W = torch.ones(1, 1), torch.full((1, 1), 3.0)
        >>> float(predictor_step(F, F, W, 0.5)), float(predictor_step(F, F, W, 0.5, inner_product=True))
        (-2.0, 2.5)
    """
    alpha = positive(alpha, "predictor_step")
    F, normalized = on_graph(F, normalized, "predictor_step")
    if W.shape != (F.shape[-1], F.shape[-1]):
        raise ValueError(f"predictor_step: W {tuple(W.shape)} does not fit features of dimension {F.shape[-1]}")
    W, message = W.double(), normalized @ F
    return F + alpha * (message if inner_product else message - F @ W) @ W.T


def optimal_predictor(F: Features, normalized: Square) -> Float[Tensor, "*b k k"]:
    r"""Return the least-squares predictor, $W = (F^\top F)^{-1}F^\top\bar AF$.

    Then $FW = \Pi_F\bar AF$ with $\Pi_F$ the projector onto the column space of $F$.

    Args:
        F: weighted features, shape (..., N, k).
        normalized: $\bar A$, shape (N, N), symmetric.

    Returns:
        $W$, shape (..., k, k), float64; the one of least norm where the columns of $F$ are dependent.

    Raises:
        ValueError: if the shapes do not fit or $\bar A$ is not symmetric.

    References:
        The companion's own; `prop-gram-conserved`.

    Examples:
        >>> optimal_predictor(torch.tensor([[2.0], [0.0]]), torch.tensor([[0.25, 0.5], [0.5, 0.25]])).tolist()
        [[0.25]]
    """
    F, normalized = on_graph(F, normalized, "optimal_predictor")
    return torch.linalg.lstsq(F, normalized @ F, driver="gelsd").solution


def predictor_velocity(F: Features, normalized: Square) -> Features:
    r"""Return the gradient flow with the predictor optimal at all times, $\dot F = (I-\Pi_F)\bar AFW^\top$.

    Its columns are orthogonal to those of $F$, so $F^\top F$ is conserved: no feature shrinks and no rank is lost; only
    the column space turns, and rests where $\bar A$ maps it into itself.

    Args:
        F: weighted features, shape (..., N, k).
        normalized: $\bar A$, shape (N, N), symmetric.

    Returns:
        $\dot F$, shape of `F`, float64.

    Raises:
        ValueError: if the shapes do not fit or $\bar A$ is not symmetric.

    References:
        The companion's own; `prop-gram-conserved`.

    Examples:
        >>> predictor_velocity(torch.tensor([[2.0], [0.0]]), torch.tensor([[0.25, 0.5], [0.5, 0.25]])).tolist()
        [[0.0], [0.25]]
    """
    W = optimal_predictor(F, normalized)
    F, normalized = on_graph(F, normalized, "predictor_velocity")
    return (normalized @ F - F @ W) @ W.mT


def _share(rho: Scalar, name: str) -> Tensor:
    rho = torch.as_tensor(rho, dtype=torch.float64)
    if not ((rho >= 0) & (rho <= 1)).all():
        raise ValueError(f"{name}: the momentum rho must lie in [0, 1], got {rho.tolist()}")
    return rho
