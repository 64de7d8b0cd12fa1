r"""Where the flow of a linear Siamese network rests, and whether it stays there.

``X`` is $\Gamma$ and ``X_aug`` is $\Sigma_{\rm aug}$, $\Sigma_x = \Gamma + \Sigma_{\rm aug}$, as in `siamese_flow`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.siamese_flow import State
from companion.theory.view_moments import moments, view_correlations


def resting_state(
    X: Float[Tensor, "m m"],
    X_aug: Float[Tensor, "m m"],
    k: int,
    lengths: Float[Tensor, " k"] | None = None,
    *,
    alpha_p: float = 1.0,
    slow: bool = False,
) -> State:
    r"""Return the state of rest that has learned the k leading directions, without weight decay.

    Row j of $W$ is a multiple of $v_j^\top$ with $\Gamma v_j = \kappa_j\Sigma_xv_j$, and $W_p = \mathrm{diag}(\kappa)$:
    then $W_pW\Sigma_x = W\Gamma$, the drive vanishes.

    Args:
        X: $\Gamma$, shape (m, m).
        X_aug: $\Sigma_{\rm aug}$, shape (m, m).
        k: number of directions.
        lengths: Euclidean length of each row of $W$, positive, shape (k,); by default
            $\kappa_j/\sqrt{\alpha_p}$, at which $(WW^\top)_{jj} = (W_p^\top W_p)_{jj}/\alpha_p$. That is the whole
            balance of `thm-balance` where the rows are orthogonal, as for commuting moments; else its diagonal.
        alpha_p: $\alpha_p > 0$.
        slow: whether the target is a network of its own, which at rest equals $W$.

    Returns:
        The `State`, float64.

    Raises:
        ValueError: if k is not between 1 and m, or a length or alpha_p is not positive; as `view_correlations`.

    References:
        Tian et al. (2021), appendix D; `prop-which-modes`.

    Examples:
        >>> rest = resting_state(torch.diag(torch.tensor([1.0, 3.0])), torch.eye(2), 1)
        >>> rest.W.abs().tolist(), rest.Wp.tolist()
        ([[0.0, 0.75]], [[0.75]])
    """
    kappa, V = view_correlations(X, X_aug)
    if not 1 <= k <= len(kappa) or not alpha_p > 0:
        raise ValueError(f"resting_state: need 1 <= k <= {len(kappa)} and alpha_p > 0, got k={k}, alpha_p={alpha_p}")
    length = kappa[:k] / alpha_p**0.5 if lengths is None else lengths.double()
    if length.shape != (k,) or not bool((length > 0).all()):
        raise ValueError(f"resting_state: need {k} positive lengths, one a row of W, got {length.tolist()}")
    W = (V[:, :k] * (length / torch.linalg.vector_norm(V[:, :k], dim=0))).T.contiguous()
    return State(W, torch.diag(kappa[:k]), W.clone() if slow else None)


def mixing_margin(
    kappa: Float[Tensor, "*b 2"], lengths: Float[Tensor, "*b 2"], alpha_p: float = 1.0, symmetric: bool = True
) -> Float[Tensor, "*b"]:
    r"""Say by its sign whether two resting modes stay unmixed, where $\Gamma$ and $\Sigma_x$ commute.

    With $\kappa_1 > \kappa_2 > 0$ and rows of $W$ of lengths $w_1, w_2$ the state of rest is stable against mixing if

    $$\tfrac{\alpha_p}2(\kappa_1w_1^2-\kappa_2w_2^2)-\kappa_1\kappa_2(\kappa_1-\kappa_2) > 0$$

    for a predictor that is kept symmetric, or, for one that is not, if $\alpha_pw_1^2-\kappa_2(\kappa_1-\kappa_2) > 0$;
    and unstable if that is negative.

    Args:
        kappa: $\kappa_1 > \kappa_2 > 0$, shape (..., 2).
        lengths: $w_1, w_2 > 0$, shape (..., 2).
        alpha_p: $\alpha_p > 0$.
        symmetric: whether the predictor is kept symmetric.

    Returns:
        The left side, shape (...).

    Raises:
        ValueError: if the correlations are not positive and decreasing, or a length or alpha_p is not positive.

    References:
        The companion's own; `prop-mixing`, `eq-mixing`.

    Examples:
        >>> pair = torch.tensor([0.8, 0.4]), torch.tensor([0.8, 0.4])  # balanced: (.512 - .064) / 2 - .128
        >>> round(float(mixing_margin(*pair)), 6), round(float(mixing_margin(*pair, symmetric=False)), 6)
        (0.096, 0.48)
    """
    kappa, w = kappa.double(), lengths.double().square()
    if not bool(((kappa[..., 0] > kappa[..., 1]) & (kappa[..., 1] > 0)).all()):
        raise ValueError(f"mixing_margin: need correlations kappa_1 > kappa_2 > 0, got {kappa.tolist()}")
    if not bool((lengths > 0).all()) or not alpha_p > 0:
        raise ValueError(f"mixing_margin: need positive lengths and alpha_p, got {lengths.tolist()} and {alpha_p}")
    gap = kappa[..., 1] * (kappa[..., 0] - kappa[..., 1])
    if not symmetric:
        return alpha_p * w[..., 0] - gap
    return alpha_p / 2 * (kappa[..., 0] * w[..., 0] - kappa[..., 1] * w[..., 1]) - kappa[..., 0] * gap


def linearised(
    state: State,
    X: Float[Tensor, "m m"],
    X_aug: Float[Tensor, "m m"],
    *,
    alpha_p: float = 1.0,
    beta: float = 0.0,
    eta: float = 0.0,
    symmetric: bool = False,
) -> Float[Tensor, "n n"]:
    r"""Return the matrix of the flow linearised at a state, from displacements to their velocities.

    With the drive $G = W_a\Gamma-W_pW\Sigma_x$ and its displacement
    $\delta G = \delta W_a\Gamma-\delta W_pW\Sigma_x-W_p\,\delta W\,\Sigma_x$:

    $$\delta\dot W = \delta W_p^\top G+W_p^\top\delta G-\eta\,\delta W,\quad
    \delta\dot W_p = \alpha_p(\delta G\,W^\top+G\,\delta W^\top)-\eta\,\delta W_p,\quad
    \delta\dot W_a = \beta(\delta W-\delta W_a).$$

    Args:
        state: where; ``Wa`` None stands for $W_a = W$.
        X: $\Gamma$, shape (m, m).
        X_aug: $\Sigma_{\rm aug}$, shape (m, m).
        alpha_p: $\alpha_p > 0$.
        beta: $\beta$, used where the target is a network of its own.
        eta: $\eta\ge0$, weight decay of both networks.
        symmetric: keep to symmetric $W_p$, and take the symmetric part of their velocity.

    Returns:
        The matrix, float64; coordinates are the entries of $W$, of $W_p$ (only $i\le j$, with unit matrices
        $e_ie_j^\top+e_je_i^\top$ off the diagonal, if symmetric), and of $W_a$ where it is a network of its own.

    Raises:
        ValueError: if shapes do not fit, a matrix of the data is not what it must be, a number is out of range, or
            `symmetric` is asked of a predictor that is not.

    References:
        `eq-siamese-flow`; the companion's own.
    """
    Gamma, Sigma = moments(X, X_aug, "linearised")
    W, Wp = state.W.double(), state.Wp.double()
    k, m = W.shape
    if Wp.shape != (k, k) or m != len(Gamma) or (state.Wa is not None and state.Wa.shape != W.shape):
        raise ValueError(f"linearised: W {tuple(W.shape)}, Wp {tuple(Wp.shape)} and X {tuple(X.shape)} do not fit")
    if not (alpha_p > 0 and beta >= 0 and eta >= 0):
        raise ValueError(f"linearised: need alpha_p > 0, beta, eta >= 0, got {alpha_p}, {beta}, {eta}")
    if beta and state.Wa is None:
        raise ValueError(f"linearised: beta={beta} moves a target of its own, and Wa is None; pass Wa, or beta=0")
    if symmetric and not (Wp - Wp.T).abs().max() <= 1e-9 * Wp.abs().max():
        raise ValueError("linearised: symmetric=True needs a symmetric Wp; average it with its transpose")
    G = (W if state.Wa is None else state.Wa.double()) @ Gamma - Wp @ W @ Sigma

    rows, columns = torch.triu_indices(k, k) if symmetric else torch.cartesian_prod(*2 * [torch.arange(k)]).T
    n = k * m + len(rows) + (0 if state.Wa is None else k * m)
    moves = torch.eye(n, dtype=torch.float64)
    dW = moves[:, : k * m].reshape(n, k, m)
    dWp = torch.zeros(n, k, k, dtype=torch.float64)
    dWp[:, rows, columns] = moves[:, k * m : k * m + len(rows)]
    if symmetric:
        dWp[:, columns, rows] = dWp[:, rows, columns]
    dWa = dW if state.Wa is None else moves[:, -k * m :].reshape(n, k, m)

    dG = dWa @ Gamma - dWp @ W @ Sigma - Wp @ dW @ Sigma
    vW = dWp.mT @ G + Wp.T @ dG - eta * dW
    vWp = alpha_p * (dG @ W.T + G @ dW.mT)
    if symmetric:
        vWp = (vWp + vWp.mT) / 2
    vWp = vWp - eta * dWp
    parts = [vW.flatten(1), vWp[:, rows, columns]]
    if state.Wa is not None:
        parts.append(beta * (dW - dWa).flatten(1))
    return torch.cat(parts, 1).T


def escape_rate(state: State, X: Float[Tensor, "m m"], X_aug: Float[Tensor, "m m"], **law: float | bool) -> float:
    r"""Return the largest real part of an eigenvalue of the flow linearised at a state of rest.

    A small displacement grows like $e^{rt}$ in its worst direction. States of rest come in families (rotations, and
    the lengths of the rows of $W$), so without weight decay the rate $r$ is not below 0 there: 0 up to rounding is
    stable.

    Args:
        state: a state of rest.
        X: $\Gamma$, shape (m, m).
        X_aug: $\Sigma_{\rm aug}$, shape (m, m).
        law: the keywords of `linearised`.

    Returns:
        The rate, per unit of time.

    Raises:
        ValueError: as `linearised`.

    References:
        The companion's own; `prop-mixing`.

    Examples:
        >>> X, X_aug = torch.diag(torch.tensor([1.0, 0.5])), torch.eye(2)
        >>> short = resting_state(X, X_aug, 2, torch.tensor([0.1, 0.1]))
        >>> escape_rate(short, X, X_aug, symmetric=True) > 0.05 > escape_rate(resting_state(X, X_aug, 2), X, X_aug)
        True
    """
    J = linearised(state, X, X_aug, **law)  # type: ignore[arg-type]
    return float(torch.linalg.eigvals(J).real.max())
