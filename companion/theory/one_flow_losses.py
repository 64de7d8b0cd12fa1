r"""Every loss of the book as a function of weighted features, descended by automatic differentiation.

Nothing here knows the laws of the modes: these flows are the independent witness of `companion.theory.one_flow`.
$\bar A$ may be handed over as a matrix, or as the vector of its eigenvalues if the features are written in its
eigenbasis: all losses but InfoNCE take the same values there, by `thm-of-symmetry`.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.message_passing import uniformity_loss

Features = Float[Tensor, "N k"]
Square = Float[Tensor, "k k"]
Graph = Float[Tensor, "N N"] | Float[Tensor, " N"]
State = tuple[Tensor, ...]
Flow = Callable[[State, Graph, Float[Tensor, " N"]], State]  # of a state, the graph and its degrees


def messages(normalized: Graph, F: Features) -> Features:
    r"""Return the messages along the graph, $\bar AF$.

    Args:
        normalized: $\bar A$, shape (N, N); or its eigenvalues, shape (N,), for features in the eigenbasis.
        F: weighted features, shape (N, k).

    Returns:
        Shape (N, k).

    Examples:
        >>> messages(torch.tensor([1.0, 0.5]), torch.ones(2, 1)).tolist()
        [[1.0], [0.5]]
    """
    return normalized[:, None] * F if normalized.ndim == 1 else normalized @ F


def spectral_loss(F: Features, normalized: Graph) -> Float[Tensor, ""]:
    r"""Evaluate $\lVert\bar A-FF^\top\rVert_F^2-\lVert\bar A\rVert_F^2$, see `thm-loss-factorisation`."""
    return -2 * (F * messages(normalized, F)).sum() + (F.T @ F).square().sum()


def barlow_loss(F: Features, normalized: Graph) -> Float[Tensor, ""]:
    r"""Evaluate $\lVert C-I_k\rVert_F^2$ with the correlation of two views' features, $C = F^\top\bar AF$."""
    return (F.T @ messages(normalized, F) - torch.eye(F.shape[1], dtype=F.dtype)).square().sum()


def vicreg_loss(F: Features, normalized: Graph, invariance: float) -> Float[Tensor, ""]:
    r"""Evaluate $2\ell\,\mathrm{tr}F^\top LF+\lVert F^\top F-I_k\rVert_F^2$, $\ell$ times alignment plus whitening."""
    return (
        2 * invariance * alignment_loss(F, normalized) + (F.T @ F - torch.eye(F.shape[1], dtype=F.dtype)).square().sum()
    )


def alignment_loss(F: Features, normalized: Graph) -> Float[Tensor, ""]:
    r"""Evaluate $\mathrm{tr}F^\top LF = \tfrac12\,\mathbb E\lVert f(x)-f(x^+)\rVert^2$."""
    return (F * (F - messages(normalized, F))).sum()


def info_nce_loss(
    F: Features, normalized: Float[Tensor, "N N"], degree: Float[Tensor, " N"], temperature: float
) -> Float[Tensor, ""]:
    r"""Evaluate population InfoNCE, $-\tfrac1\tau\mathrm{tr}F^\top\bar AF+\sum_xp_x\log\sum_{x'}p_{x'}e^{S_{xx'}}$.

    Args:
        F: weighted features $D^{1/2}U$, shape (N, k).
        normalized: $\bar A$ itself: the exponential of a similarity knows single views, not only eigenvectors.
        degree: $p$, shape (N,).
        temperature: $\tau > 0$.

    Returns:
        The loss; `message_passing.contrastive_loss` is the same function of $U$.

    References:
        `prop-of-infonce`.
    """
    pull = (F * messages(normalized, F)).sum() / temperature
    return uniformity_loss(F / degree.sqrt()[:, None], degree, temperature) - pull


def siamese_loss(F: Features, W: Square, T: Features, normalized: Graph) -> Float[Tensor, ""]:
    r"""Evaluate $\tfrac12\,\mathbb E\lVert W^\top f(x)-t(x^+)\rVert^2$, a predictor that chases a target.

    $$\tfrac12\,\mathrm{tr}\,W^\top F^\top FW - \mathrm{tr}\,W^\top F^\top\bar AT + \tfrac12\,\mathrm{tr}\,T^\top T .$$

    Args:
        F: weighted features, shape (N, k).
        W: predictor, acting on rows from the right, shape (k, k).
        T: weighted targets, shape (N, k).
        normalized: $\bar A$, or its eigenvalues.

    Returns:
        The loss.

    References:
        `prop-of-form`.
    """
    FW = F @ W
    return 0.5 * FW.square().sum() - (FW * messages(normalized, T)).sum() + 0.5 * T.square().sum()


def descend(loss: Callable[..., Tensor], *variables: Tensor) -> tuple[Tensor, ...]:
    """Return minus the gradient of a loss with respect to each variable, by automatic differentiation.

    Args:
        loss: takes the variables, returns a number.
        variables: where to differentiate; whatever else the loss uses is held fixed.

    Returns:
        One tensor a variable, of its shape.

    Examples:
        >>> descend(lambda x: x.square().sum(), torch.tensor([3.0]))[0].tolist()
        [-6.0]
    """
    leaves = tuple(x.detach().clone().requires_grad_() for x in variables)
    return tuple(-gradient for gradient in torch.autograd.grad(loss(*leaves), leaves))


def gram_power(F: Features, power: float) -> Square:
    r"""Return $(F^\top F)^\nu$, the predictor that DirectPred ($\nu=\tfrac12$) and DirectCopy ($\nu=1$) set.

    Args:
        F: weighted features, shape (N, k).
        power: $\nu > 0$.

    Returns:
        Symmetric, shape (k, k); no boost, no normalisation, no gradient.

    References:
        `prop-of-form`; with boost and normalisation `companion.theory.predictor.direct_pred`.

    Examples:
        >>> gram_power(torch.diag(torch.tensor([2.0, 3.0])), 0.5).diagonal().tolist()
        [2.0, 3.0]
    """
    _, sigma, Qt = torch.linalg.svd(F.detach(), full_matrices=False)
    return (Qt.T * sigma ** (2 * power)) @ Qt


def least_loss_predictor(F: Features, normalized: Graph) -> Square:
    r"""Return the predictor of least loss for the features as they are, $(F^\top F)^{-1}F^\top\bar AF$.

    Args:
        F: weighted features of rank $k$, shape (N, k).
        normalized: $\bar A$, or its eigenvalues.

    Returns:
        Shape (k, k), no gradient. `target_messages.optimal_predictor` is the same for a matrix, with checks of the
        graph that cost more than a velocity; and a flow in the eigenbasis has no matrix.

    References:
        `prop-of-form`.
    """
    Q, R = torch.linalg.qr(F.detach())
    return torch.linalg.solve_triangular(R, Q.T @ messages(normalized, F.detach()), upper=True)


def plain_flow(loss: Callable[[Tensor, Graph], Tensor]) -> Flow:
    """Return the gradient flow of a loss of the features and the graph."""
    return lambda state, normalized, degree: descend(lambda F: loss(F, normalized), *state)


def info_nce_flow(temperature: float) -> Flow:
    """Return the gradient flow of `info_nce_loss`, the only one that asks for the degrees and for a matrix."""
    return lambda state, normalized, degree: descend(
        lambda F: info_nce_loss(F, normalized, degree, temperature), *state
    )


def info_nce_velocity(
    F: Features, normalized: Float[Tensor, "N N"], degree: Float[Tensor, " N"], temperature: float
) -> Features:
    r"""Return minus the gradient of `info_nce_loss` by its formula, for long runs: a sixth of the time of autograd.

    $$\dot F = \tfrac2\tau\bar AF-\tfrac1\tau D^{-1/2}(A'+A'^\top)U,\qquad A'_{xx'} = p_xp_{x'}e^{S_{xx'}}/Q_x .$$

    Args:
        F: weighted features $D^{1/2}U$, shape (N, k).
        normalized: $\bar A$, shape (N, N).
        degree: $p$, shape (N,).
        temperature: $\tau > 0$.

    Returns:
        Shape of `F`.

    References:
        `thm-contrastive-step`.
    """
    p = degree[:, None]
    U = F / p.sqrt()
    E = (U @ U.T / temperature).exp()
    w = p / (E @ p)
    return (2 * (normalized @ F) - (w * (E @ (p * U)) + p * (E @ (w * U))) / p.sqrt()) / temperature


def trained_flow(state: State, normalized: Graph, degree: Tensor) -> State:
    """Move features and predictor, with the features themselves as the target, under stop-gradient."""
    target = state[0]
    return descend(lambda F, W: siamese_loss(F, W, target, normalized), *state)


def slow_flow(rate: float) -> Flow:
    """Return the same with a target that follows the features at a rate."""

    def flow(state: State, normalized: Graph, degree: Tensor) -> State:
        F, W, T = state
        return *descend(lambda G, V: siamese_loss(G, V, T, normalized), F, W), rate * (F - T)

    return flow


def set_flow(power: float | None) -> Flow:
    """Return the flow under stop-gradient with the predictor `gram_power`, or with `least_loss_predictor` for None."""

    def flow(state: State, normalized: Graph, degree: Tensor) -> State:
        F = state[0]
        W = least_loss_predictor(F, normalized) if power is None else gram_power(F, power)
        return descend(lambda G: siamese_loss(G, W, F, normalized), F)

    return flow


def staged_flow(step: float) -> Flow:
    """Return the change over a step of features without predictor; their target is the mean of the past stages."""

    def flow(state: State, normalized: Graph, degree: Tensor) -> State:
        eye = torch.eye(state[0].shape[1], dtype=state[0].dtype)
        target = torch.stack(state).mean(0)
        moved = descend(lambda F: siamese_loss(F, eye, target, normalized), state[0])
        return *moved, *((new - old) / step for new, old in pairwise(state))

    return flow
