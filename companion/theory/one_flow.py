r"""The losses of the book as one flow, $\dot F = \bar AF\,\Psi - F\,\mathcal B$: messages times a gain, less a brake.

`laws()` is the table of the closing chapter. The functions here put a row to the test: they build aligned states, run
the flow of the whole loss, and measure what the chapter's theorems say of it.
"""

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import quad, solve_ivp
from torch import Tensor

from companion.theory.one_flow_curves import predictor_curve, stage_curve
from companion.theory.one_flow_laws import Law, laws
from companion.theory.one_flow_losses import Graph, State, gram_power, messages

__all__ = [
    "Law",
    "laws",
    "predictor_curve",
    "stage_curve",
    "aligned_state",
    "balanced_state",
    "integrate",
    "half_time",
    "off_form",
    "leak_rate",
]


def aligned_state(law: Law, parts: State, V: Float[Tensor, "N k"], Q: Float[Tensor, "k k"]) -> State:
    r"""Build a state from its modes: $F = \sum_js_jv_jq_j^\top$, and $W = \sum_jp_jq_jq_j^\top$ for a predictor.

    Args:
        law: a row of the table; `law.parts` says what its state consists of.
        parts: one vector of length $k$ a part.
        V: eigenvectors of $\bar A$ as columns.
        Q: orthogonal; its columns are the $q_j$.

    Returns:
        One matrix a part.

    References:
        `thm-of-modes`, `eq-of-aligned`.

    Examples:
        >>> s = torch.tensor([2.0, 3.0])
        >>> [x.tolist() for x in aligned_state(laws()["trained"], (s, s), torch.eye(3)[:, :2], torch.eye(2))]
        [[[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 3.0]]]
    """
    left = {"F": V, "W": Q}
    return tuple(left[letter] * values @ Q.T for letter, values in zip(law.parts, parts, strict=True))


def balanced_state(law: Law, F: Float[Tensor, "N k"]) -> State:
    r"""Complete features to a state: targets and past stages equal to them, and a predictor $W = (F^\top F)^{1/2}$.

    Args:
        law: a row of the table.
        F: weighted features, aligned or not.

    Returns:
        One matrix a part. A trained predictor stays in balance, $WW^\top = F^\top F$ (`prop-of-predictor-curve`).

    Examples:
        >>> [len(x) for x in balanced_state(laws()["slow"], torch.ones(5, 1))]
        [5, 1, 5]
    """
    return tuple(F if letter == "F" else gram_power(F, 0.5) for letter in law.parts)


def integrate(
    law: Law,
    start: State,
    normalized: Graph,
    degree: Float[Tensor, " N"],
    times: Float[Tensor, " T"],
    rtol: float = 1e-10,
    method: str = "DOP853",
    atol: float | None = None,
) -> Float[Tensor, "T N k"]:
    r"""Run the flow of the whole loss, its velocity by automatic differentiation, and return the features.

    Args:
        law: a row of the table.
        start: the state at time 0.
        normalized: $\bar A$; or its eigenvalues, for features in its eigenbasis, with every loss but InfoNCE.
        degree: $p$.
        times: increasing, $\ge0$; multiples of the step for a recursion.
        rtol: relative tolerance.
        method: of `scipy.integrate.solve_ivp`.
        atol: absolute tolerance; the relative one times the largest entry of the start when None; 0 for purely relative
            errors, where rows fade by hundreds of decades; no entry may then be or become zero.

    Returns:
        $F$ at the times, shape (T, N, k), float64.

    Raises:
        ValueError: if the solver gives up, or a time is no multiple of the step.

    Examples:
        >>> row, gamma, degree = laws()["alignment"], torch.tensor([1.0, 0.5]).double(), torch.ones(2).double() / 2
        >>> F = integrate(row, (torch.ones(2, 1).double(),), gamma, degree, torch.tensor([0.0, 1.0]).double())
        >>> F[1].flatten().round(decimals=6).tolist()  # the constant stays, exp(-1) of the other
        [1.0, 0.367879]
    """
    shapes = [x.shape for x in start]
    sizes = [x.numel() for x in start]

    def unpack(y: np.ndarray) -> State:
        pieces = torch.from_numpy(y).split(sizes)
        return tuple(piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))

    def velocity(_: float, y: np.ndarray) -> np.ndarray:
        return torch.cat([x.flatten() for x in law.flow(unpack(y), normalized, degree)]).numpy()

    y0 = torch.cat([x.double().flatten() for x in start]).numpy()
    if law.step is not None:
        if float((times / law.step - (times / law.step).round()).abs().max()) > 1e-6:
            raise ValueError(
                f"integrate: {law.name} moves in steps of {law.step:g}; round the times to multiples of it"
            )
        path, y, count = [], y0, 0
        for goal in (times / law.step).round().long().tolist():
            for _ in range(goal - count):
                y = y + law.step * velocity(0.0, y)
            path, count = [*path, y], goal
        return torch.stack([unpack(y)[0] for y in path])
    span = (0.0, float(times[-1]))
    floor = rtol * abs(y0).max() if atol is None else atol
    run = solve_ivp(velocity, span, y0, method, t_eval=times.numpy(), rtol=rtol, atol=floor)
    if not run.success:
        raise ValueError(f"integrate: the solver gave up on {law.name}: {run.message}; ask for shorter times")
    return torch.stack([unpack(np.ascontiguousarray(y))[0] for y in run.y.T])


def half_time(law: Law, gamma: float, s0: float) -> float:
    r"""Return when a mode in balance has grown to half of its end, by quadrature of its law.

    $$t_{1/2} = \int_{s_0}^{s_\infty/2}\frac{\mathrm ds}{s\,(\gamma\psi-b)} .$$

    Args:
        law: a row with a gain.
        gamma: eigenvalue of $\bar A$.
        s0: start, below half of the end.

    Returns:
        The time.

    Raises:
        ValueError: if the row has no one-number law, or the mode does not grow.

    References:
        `thm-of-waiting`, `eq-of-waiting`.

    Examples:
        >>> round(half_time(laws()["set"], 0.5, 0.125), 6)  # (y0 + log y0 - 1) / gamma^2 with y0 = 3
        12.394449
    """
    if law.gain is None or law.brake is None:
        raise ValueError(f"half_time: {law.name} has no law in one number; read the time off its flow")
    g, start = torch.tensor(gamma, dtype=torch.float64), torch.tensor(s0, dtype=torch.float64)
    end = float(law.ends(g, start))
    if not 0 < s0 < end / 2:
        raise ValueError(f"half_time: needs 0 < s0 < {end / 2:g}, half of where {law.name} ends, got {s0:g}")

    def slowness(x: float) -> float:
        s = torch.tensor(x, dtype=torch.float64).exp()
        return float(s / law.velocity(g, s))

    edges = [*np.arange(np.log(s0), np.log(end / 2), 1.0).tolist(), float(np.log(end / 2))]
    return sum(quad(slowness, a, b, epsabs=0, epsrel=1e-11)[0] for a, b in pairwise(edges))


def off_form(law: Law, state: State, normalized: Float[Tensor, "N N"], degree: Float[Tensor, " N"]) -> float:
    r"""Measure what of $\dot F$ is no combination of the messages' columns and the features' own columns.

    $$\frac{\lVert(I-\Pi)\dot F\rVert}{\lVert\dot F\rVert},\qquad
    \Pi\ \text{the projection on the columns of }\bar AF\text{ and }F .$$

    Args:
        law: a row of the table whose state is the features alone.
        state: the features, aligned or not, with $2k<N$.
        normalized: $\bar A$.
        degree: $p$.

    Returns:
        Zero to rounding if and only if the velocity lies in the columns of $\bar AF$ and $F$. That some $\Psi$ and
        $\mathcal B$ give it, not which.

    Raises:
        ValueError: if the state has several parts, or the columns could span everything.

    References:
        `prop-of-form`, `eq-of-form`.
    """
    if len(state) != 1 or 2 * state[0].shape[1] >= state[0].shape[0]:
        raise ValueError(f"off_form: needs features alone with 2 k < N, got {[tuple(x.shape) for x in state]}")
    columns = torch.cat([messages(normalized, state[0]), state[0]], dim=1)
    U, sigma, _ = torch.linalg.svd(columns, full_matrices=False)
    U = U[:, sigma > 1e-12 * sigma[0]]
    velocity = law.flow(state, normalized, degree)[0]
    return float((velocity - U @ (U.T @ velocity)).norm() / velocity.norm())


def leak_rate(
    law: Law,
    state: State,
    normalized: Float[Tensor, "N N"],
    degree: Float[Tensor, " N"],
    v: Float[Tensor, " N"],
    q: Float[Tensor, " k"],
    epsilon: float = 1e-5,
) -> float:
    r"""Measure at which rate a state of rest lets a new eigenvector in, by a central difference of the flow.

    The features are disturbed by $\pm\epsilon\,vq^\top$, and the velocity is read off along $vq^\top$.

    Args:
        law: a row of the table.
        state: at rest, aligned.
        normalized: $\bar A$.
        degree: $p$.
        v: unit eigenvector of $\bar A$ outside the state.
        q: the coordinate that it enters by, one of the $q_j$.
        epsilon: size of the disturbance.

    Returns:
        The rate; by `thm-of-leak` it is $\psi_j(\gamma_v-\gamma_j)$.

    References:
        `thm-of-leak`, `eq-of-leak`.
    """
    bump = epsilon * torch.outer(v, q)
    up, down = (law.flow((state[0] + sign * bump, *state[1:]), normalized, degree)[0] for sign in (1, -1))
    return float(v @ (up - down) @ q / (2 * epsilon))
