"""The spectral contrastive loss with its gradient: ours against the n × n formula, and its two forms side by side."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.measure import Measurement, floor, paired, summary, versus
from companion.theory.losses import spectral_contrastive

PAIRS, WIDTHS = (64, 256, 1024, 2048, 8192), (8, 32, 128, 512, 2048)
FORMS = ((64, 32), (128, 32), (256, 32), (512, 512), (683, 512), (768, 512), (1024, 512))  # n, k
NEVER_SLOWER, AIM = 1 / 1.05, {(2048, 128): 8.0}
NOTE = "float32; loss and both views' gradients"
MISSED = (
    "where a call takes less than a millisecond, calls of operations are the time and not the operations themselves; "
    "next: one compiled function of loss and gradient"
)


def formula(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """The loss as it stands on paper, from all n × n products, without a mask; the gradient is autograd's."""
    n, products, positive = len(z1), z1 @ z2.T, (z1 * z2).sum(1)
    repulsion = products.square().sum() - positive.square().sum()
    return -2 / n * positive.sum() + repulsion / (n * (n - 1))


def forward_and_backward(loss: Callable[..., torch.Tensor], z: tuple[torch.Tensor, torch.Tensor]) -> object:
    """One evaluation with gradients by both views."""
    return torch.autograd.grad(loss(*z), z)


def compare(n: int, k: int, ours: Callable, theirs: Callable) -> tuple[list[float], list[float]]:
    """Milliseconds of two losses in turns, fewer turns where one takes long."""
    generator = torch.Generator().manual_seed(0)
    z = tuple(torch.randn(n, k, generator=generator).requires_grad_() for _ in range(2))
    turns = int(min(1001, max(3, 5e11 / (6 * n**2 * k + 2000 * n**2 + 1e8))))
    calls = {name: partial(forward_and_backward, loss, z) for name, loss in (("ours", ours), ("theirs", theirs))}
    times = paired(calls, turns, warm=1 if turns < 20 else 10)
    return [1e3 * v for v in times["ours"]], [1e3 * v for v in times["theirs"]]


def measure() -> list[Measurement]:
    """Gaussian embeddings. The floor: six n k min(n, k), or a copy of both views and of both gradients."""
    rows = []
    for n in PAIRS:
        for k in WIDTHS:
            ours, theirs = compare(n, k, spectral_contrastive, formula)
            rows.append(
                summary(
                    f"n = {n:,}, k = {k:,}",
                    ours,
                    "ms",
                    NOTE,
                    ratio=versus(ours, theirs),
                    peer="the n × n formula",
                    goal=(AIM.get((n, k), NEVER_SLOWER), None),
                    missed=MISSED,
                    floor=1e3 * floor(flops=6 * n * k * min(n, k), bytes=4 * 4 * n * k),
                    floor_says="matrix products or copies",
                )
            )
    gram, pairs = (partial(spectral_contrastive, form=form) for form in ("gram", "pairs"))
    for n, k in FORMS:
        ours, theirs = compare(n, k, gram, pairs)
        what = f"the two forms, n = {n:,}, k = {k:,}: moments"
        rows.append(summary(what, ours, "ms", NOTE, ratio=versus(ours, theirs), peer="all pairs, ours too"))
    return rows
