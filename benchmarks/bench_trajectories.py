"""Gradient flows in closed form at 100 times, against scipy's solve_ivp (rtol 1e-8); the two have to agree."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from benchmarks.measure import Measurement, floor, paired, summary, versus
from companion.theory import examples, riccati, stepwise
from companion.theory.one_flow_curves import predictor_curve
from companion.theory.one_flow_laws import laws

TIMES, GOAL = 100, 100.0
EXPLICIT, IMPLICIT = ("RK45", "DOP853"), 500  # LSODA's Jacobian is dense: only up to so many unknowns
Velocity = Callable[[float, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Problem:
    """A flow, its closed form, and what the two are compared by.

    Attributes:
        what: which flow.
        setting: sizes, start and last time.
        closed: evaluates the closed form at all times, first axis the times.
        velocity: right-hand side in NumPy, of a flat vector.
        start: flat vector at time 0.
        times: increasing from 0.
        tolerance: largest difference of entries that counts as equal.
        least: seconds that the closed form needs at the machine's rates.
        counts: what those count.
        missed: reason and next idea.
        gram: whether F F^T is compared, for a path that is known up to a rotation.
    """

    what: str
    setting: str
    closed: Callable[[], Tensor]
    velocity: Velocity
    start: Tensor
    times: Tensor
    tolerance: float
    least: float
    counts: str
    missed: str = ""
    gram: bool = False


def rotating(name: str, graph: examples.PositivePairGraph, k: int) -> Problem:
    """Spectral contrastive loss on a graph from a random start, until the top eigenvectors are found to 1e-4."""
    A, n = torch.as_tensor(graph.normalized).double(), graph.n
    gamma = graph.eigenpairs(k + 1).values
    end = math.log(1e4) / (4 * float(gamma[k - 1] - gamma[k]))
    F0 = 0.01 * torch.randn(n, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times, matrix = torch.linspace(0, end, TIMES, dtype=torch.float64), A.numpy()

    def velocity(_: float, y: np.ndarray) -> np.ndarray:
        F = y.reshape(n, k)
        return (4 * (matrix @ F - F @ (F.T @ F))).ravel()

    return Problem(
        f"spectral loss from any start, {name}",
        f"N = {n}, k = {k}, to t = {end:.0f}, eigenvectors included",
        lambda: riccati.flow(A, F0, times),
        velocity,
        F0,
        times,
        1e-5,
        floor(flops=10 / 3 * n**3 + 2 * n**2 * k * TIMES, dtype=torch.float64),
        "eigenvectors, and the product of them with F at each time",
        "the solver's right-hand side is one product with a thin matrix, and where the eigenvalues are well separated "
        "a few hundred of them reach the end: they cost as much as the elimination of k pivots at 100 times; next: "
        "that elimination in one compiled loop, and no return to the vertices where only the loss is asked for",
        gram=True,
    )


def staircase(m: int = 128, k: int = 16) -> Problem:
    """Toy Barlow Twins as a flow of the whole encoder, from a small aligned start."""
    generator = torch.Generator().manual_seed(0)
    V, U = (torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q for d in (m, k))
    gamma = 1.15 ** -torch.arange(m, dtype=torch.float64)
    Gamma, s0 = V * gamma @ V.T, 1e-3
    times = torch.linspace(0, 1.5 * float(stepwise.critical_times(gamma[k - 1], s0)), TIMES, dtype=torch.float64)
    matrix, eye = Gamma.numpy(), np.eye(k)

    def velocity(_: float, y: np.ndarray) -> np.ndarray:
        W = y.reshape(k, m)
        signal = W @ matrix
        return (4 * (eye - signal @ W.T) @ signal).ravel()

    def closed() -> Tensor:
        values, basis = torch.linalg.eigh(Gamma)
        top, right = values.flip(0)[:k], basis.flip(1)[:, :k]
        left = U * (right * V[:, :k]).sum(0).sign()  # the start's signs; its modes are in this order
        return (left * stepwise.singular_values(top, s0, times[:, None])[:, None]) @ right.T

    work = 10 / 3 * m**3 + 2 * k * k * m * TIMES
    return Problem(
        "toy Barlow Twins, the encoder",
        f"W {k} × {m}, aligned start {s0:g}, to t = {float(times[-1]):.0f}, eigenvectors included",
        closed,
        velocity,
        U * s0 @ V[:, :k].T,
        times,
        1e-5,
        floor(flops=work, dtype=torch.float64),
        "eigenvectors, and W at each time",
        "the eigenvectors of the cross-correlation and 100 encoders of k × m are written, for a solver that needs some "
        "hundred cheap steps; next: singular values alone, which the row below has",
    )


def modes(what: str, curve: Callable[[Tensor], Tensor], velocity: Velocity, start: Tensor, end: float) -> Problem:
    """Scalar laws of several modes side by side."""
    times = torch.linspace(0, end, TIMES, dtype=torch.float64)
    return Problem(
        what,
        f"{len(start)} modes, to t = {end:.0f}",
        lambda: curve(times[:, None]),
        velocity,
        start,
        times,
        1e-5,
        floor(bytes=2 * 8 * len(start) * TIMES),
        "the answer, read and written once",
        "a smooth law of few numbers takes a solver some hundred evaluations, 5 to 20 ms; the closed form is two to "
        "three dozen calls of torch on small tensors, of some microseconds each; next: fewer of them",
    )


def fading(graph: examples.PositivePairGraph, k: int) -> Problem:
    """Alignment alone: messages without a push, until the second mode has faded to a tenth."""
    A, n, curve = torch.as_tensor(graph.normalized).double(), graph.n, laws()["alignment"].curve
    end = math.log(10) / (2 * (1 - float(graph.eigenpairs(2).values[1])))
    F0 = torch.randn(n, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times, matrix = torch.linspace(0, end, TIMES, dtype=torch.float64), A.numpy()
    assert curve is not None

    def closed() -> Tensor:
        gamma, V = torch.linalg.eigh(A)
        return V @ curve(gamma[:, None], V.T @ F0, times[:, None, None])

    def velocity(_: float, y: np.ndarray) -> np.ndarray:
        F = y.reshape(n, k)
        return (2 * (matrix @ F - F)).ravel()

    return Problem(
        "alignment alone, line graph",
        f"N = {n}, k = {k}, to t = {end:.0f}, eigenvectors included",
        closed,
        velocity,
        F0,
        times,
        1e-5,
        floor(flops=10 / 3 * n**3 + 2 * n**2 * k * TIMES, dtype=torch.float64),
        "eigenvectors, and the product of them with F at each time",
        "eigenvectors of the whole graph for k columns, and 100 products with them, against a few thousand thin "
        "products of the solver; next: Krylov spaces for the exponential, with no eigenvectors",
    )


def problems() -> list[Problem]:
    """The book's closed forms that a reader would otherwise integrate."""
    gamma = torch.linspace(1.0, 0.1, 32, dtype=torch.float64)
    g, s0 = gamma.numpy(), torch.full((32,), 1e-3, dtype=torch.float64)
    last = 1.5 * float(stepwise.critical_times(gamma[-1], 1e-3))
    chased = torch.full((32,), 0.02, dtype=torch.float64)
    return [
        rotating("line graph", examples.line_graph(500, 500, 0.02), 16),
        rotating("random graph", examples.random_graph(200, 200, torch.Generator().manual_seed(0)), 8),
        fading(examples.line_graph(500, 500, 0.02), 16),
        staircase(),
        modes(
            "toy Barlow Twins, singular values",
            lambda t: stepwise.singular_values(gamma, s0, t),
            lambda _, s: 4 * g * s * (1 - g * s * s),
            s0,
            last,
        ),
        modes(
            "predictor in balance, singular values",
            lambda t: predictor_curve(gamma, chased, t),
            lambda _, s: s * s * (g - s),
            chased,
            2000.0,
        ),
    ]


def solved(problem: Problem, method: str) -> np.ndarray:
    """The same path by a solver."""
    y0, times = problem.start.numpy().ravel(), problem.times.numpy()
    run = solve_ivp(problem.velocity, (0, times[-1]), y0, method, t_eval=times, rtol=1e-8, atol=1e-10)
    if not run.success:
        raise RuntimeError(f"{problem.what}: {method} gave up, {run.message}")
    return run.y.T


def difference(problem: Problem, method: str) -> float:
    """Largest difference of the two paths; an error where they are not equal."""
    theirs = torch.from_numpy(solved(problem, method).copy()).reshape(TIMES, *problem.start.shape)
    ours = problem.closed()
    if problem.gram:
        ours, theirs = ours @ ours.mT, theirs @ theirs.mT
    found = float((ours - theirs).abs().max())
    if not found <= problem.tolerance:
        raise RuntimeError(f"{problem.what}: closed form and {method} differ by {found:.1e} > {problem.tolerance:g}")
    return found


def row(problem: Problem) -> list[Measurement]:
    """Closed form and the quickest of the solvers, in turns."""
    methods = [*EXPLICIT, *(["LSODA"] if problem.start.numel() <= IMPLICIT else [])]
    tried = paired({method: lambda method=method: solved(problem, method) for method in methods}, n=1, warm=0)
    best = min(methods, key=lambda method: tried[method][0])
    gap = difference(problem, best)
    found = paired({"ours": problem.closed, best: lambda: solved(problem, best)}, n=5)
    note = f"{problem.setting}; {TIMES} times, float64, equal to {gap:.0e}"
    others = ", ".join(f"{method} {1e3 * tried[method][0]:.3g} ms" for method in methods if method != best)
    return [
        summary(
            problem.what,
            [1e3 * x for x in found["ours"]],
            "ms",
            note,
            ratio=versus(found["ours"], found[best]),
            peer=f"solve_ivp, {best}",
            goal=(GOAL, None),
            missed=problem.missed,
            floor=1e3 * problem.least,
            floor_says=problem.counts,
        ),
        summary(f"{problem.what}, solve_ivp", [1e3 * x for x in found[best]], "ms", f"{best}; {others}"),
    ]


def measure() -> list[Measurement]:
    """Each problem, with the quickest of RK45, DOP853 and, up to 500 unknowns, LSODA."""
    return [found for problem in problems() for found in row(problem)]
