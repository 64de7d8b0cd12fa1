"""The spectral contrastive loss, forward and backward: Gram form (k × k) against pair form (n × n)."""

import torch

from benchmarks.measure import Measurement, seconds, summary
from companion.theory.losses import spectral_contrastive


def measure() -> list[Measurement]:
    """The Gram form is the cheaper one where n is large against k, the pair form where it is small."""
    rows = []
    for n, k in ((2048, 128), (512, 64), (256, 512)):
        generator = torch.Generator().manual_seed(0)
        z1, z2 = (torch.randn(n, k, generator=generator).requires_grad_() for _ in range(2))
        for form in ("gram", "pairs"):
            values = seconds(
                lambda z1=z1, z2=z2, form=form: spectral_contrastive(z1, z2, form=form).backward(), n=31, warm=5
            )
            rows.append(summary(f"n = {n:,}, k = {k}, {form}", [1e3 * v for v in values], "ms", "float32"))
    return rows
