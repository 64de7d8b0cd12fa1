"""What the losses of this package have in common: the check of their views, and sums over workers."""

from collections.abc import Callable

import torch
from torch import Tensor

Collective = Callable[[Tensor], Tensor]


def check_pair(z1: Tensor, z2: Tensor, name: str) -> None:
    """Both views: one matrix each, same shape."""
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"{name}: expected (n, k) batches of one shape, got {tuple(z1.shape)} and {tuple(z2.shape)}")


def check_rows(z: Tensor, name: str) -> Tensor:
    """Return rows that are about to be normalised; on a CPU name a zero one, a GPU is not made to wait."""
    if z.device.type == "cpu" and not (lengths := torch.linalg.vector_norm(z.detach(), dim=1)).all():
        raise ValueError(
            f"{name}: row {int(lengths.argmin())} is zero and has no direction; drop it, or change what made it zero"
        )
    return z


def totals(sums: list[Tensor], sum_over_workers: Collective | None) -> list[Tensor]:
    """Sum each tensor over workers, all in one message."""
    if sum_over_workers is None:
        return sums
    found = sum_over_workers(torch.cat([part.flatten() for part in sums])).split([part.numel() for part in sums])
    return [total.view_as(part) for total, part in zip(found, sums, strict=True)]


def check_temperature(temperature: float, name: str) -> None:
    """A temperature divides."""
    if not temperature > 0:
        raise ValueError(f"{name}: temperature must be positive, got {temperature}")
