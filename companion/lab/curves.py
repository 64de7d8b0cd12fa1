"""Reading curves of eigenvalues: when each rises, how far apart, and whether a spectrum falls into two clusters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Real
from torch import Tensor


def step_times(
    clock: Real[Tensor, " T"], curves: Float[Tensor, "T k"], threshold: float | Float[Tensor, " k"], log: bool = False
) -> Float[Tensor, " k"]:
    """When each curve first reaches its threshold.

    Args:
        clock: (T,) times of the samples, increasing.
        curves: (T, k), the j-th largest eigenvalue in column j.
        threshold: one for all, or (k,).
        log: interpolate the logarithm of the curve between two samples, where both are positive, not the curve.

    Returns:
        (k,) times, float64, by interpolation between the last sample below and the first that is not; nan where the
        threshold is never reached.

    >>> clock, curves = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0.0, 0.0], [1.0, 0.1], [1.0, 0.4]])
    >>> step_times(clock, curves, 0.25)
    tensor([0.2500, 1.5000], dtype=torch.float64)
    """
    clock, curves = clock.double(), curves.double()
    level = torch.as_tensor(threshold, dtype=torch.float64).expand(curves.shape[1])
    reached = curves >= level
    after = reached.int().argmax(0)  # the first True; 0 if there is none
    before = (after - 1).clamp(min=0)
    low, high = (curves.gather(0, i[None])[0] for i in (before, after))
    share = (level - low) / (high - low)
    if log:
        share = torch.where((low > 0) & (level > 0), (level / low).log() / (high / low).log(), share)
    times = clock[before] + torch.where(after > 0, share, 0.0) * (clock[after] - clock[before])
    return torch.where(reached.any(0), times, torch.nan)


def separation(curves: Float[Tensor, "T k"], final: Float[Tensor, " k"] | None = None, learned: float = 0.1) -> float:
    r"""How far the next mode is on its way when a mode is halfway: 0 for clean steps, 1 for modes that rise together.

    At the moment when curve j first reaches half of its final value, curve j + 1 stands at some share of *its* half;
    linear between samples, nothing below 0. The result is the mean of these shares over the learned pairs (j, j + 1):
    both final values are at least `learned` times the largest.

    Args:
        curves: (T, k), the j-th largest eigenvalue in column j.
        final: (k,) final values; the last sample, if not given.
        learned: smallest share of the largest final value that makes a mode a learned one.

    Returns:
        The mean, up to 2 where no curve exceeds its final value; nan with fewer than two learned modes.

    >>> curves = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    >>> separation(curves), separation(curves[:, [1, 1]])
    (0.0, 1.0)
    """
    curves = curves.double()
    final = curves[-1] if final is None else final.double()
    clock = torch.arange(len(curves), dtype=torch.float64)
    times = step_times(clock, curves, final / 2)
    shares = []
    for j in range(curves.shape[1] - 1):
        if min(final[j], final[j + 1]) >= learned * final.max() and times[j].isfinite():
            before = int(times[j])
            after = min(before + 1, len(curves) - 1)
            value = torch.lerp(curves[before, j + 1], curves[after, j + 1], times[j] - before)
            shares.append(float(value.clamp(min=0) / (final[j + 1] / 2)))
    return sum(shares) / len(shares) if shares else float("nan")


@dataclass(frozen=True)
class Clusters:
    """The widest gap in a spectrum on a logarithmic axis.

    Attributes:
        threshold: middle of the gap, in the unit of the eigenvalues.
        gap: its width in decades.
        above: number of eigenvalues above it.
        chance: at most so likely is a gap as wide when all but the extreme eigenvalues are log-uniform between them.
    """

    threshold: float
    gap: float
    above: int
    chance: float

    @property
    def separate(self) -> bool:
        """Whether the gap would be a surprise: a chance under 1 %."""
        return self.chance < 0.01


def two_clusters(values: Float[Tensor, " k"], least: int = 2) -> Clusters:
    r"""Split a spectrum where neighbouring eigenvalues are farthest apart on a logarithmic axis.

    Of the m = k - 1 gaps between k points, those inside log-uniform between the extremes, some gap is wider than the
    share g of the whole with probability at most $m(1-g)^{m-1}$. A small `chance` therefore speaks for two clusters,
    and on log-uniform spectra `separate` is wrong once in a hundred times or less.

    Args:
        values: (k,) positive eigenvalues in any order.
        least: eigenvalues that each cluster must have.

    Returns:
        Where the widest gap is, how wide, and how likely without clusters.

    Raises:
        ValueError: an eigenvalue is not positive, or there are fewer than 2 * least.

    >>> found = two_clusters(torch.tensor([1.0, 1.0, 1e-4, 1e-4]))
    >>> round(found.threshold, 6), round(found.gap, 6), found.above, found.separate
    (0.01, 4.0, 2, True)
    """
    if not bool((values > 0).all()) or len(values) < 2 * least:
        raise ValueError(
            f"two_clusters: expected at least {2 * least} positive eigenvalues, found {len(values)} from "
            f"{float(values.min()):.2g}; leave out those that are zero up to rounding"
        )
    logs = values.double().log10().sort().values
    inner = logs.diff()[least - 1 : len(logs) - least]
    below = int(inner.argmax()) + least  # eigenvalues under the gap
    gap, extent = float(logs[below] - logs[below - 1]), float(logs[-1] - logs[0])
    m = len(logs) - 1
    chance = min(1.0, m * (1 - gap / extent) ** (m - 1)) if extent > 0 else 1.0
    return Clusters(10 ** float((logs[below] + logs[below - 1]) / 2), gap, len(logs) - below, chance)
