"""BYOL for `companion.lab.train.fit`: an online network predicts what a slow copy of itself says of the other view."""

from __future__ import annotations

import copy
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.lab import distributed
from companion.lab.encoders import Encoder, seeded
from companion.theory import losses


class Byol(nn.Module):
    """An online encoder, its predictor, and the target, an exponential moving average of the online encoder.

    `fit` knows one model and one loss of two batches of rows. In training mode a row is therefore the prediction and,
    beside it, the target's embedding, (n, 2k); `objective` takes both apart. In evaluation mode the model is its online
    encoder, (n, k). To watch the latter's hidden layer: ``Watch(..., encoder=lambda model: model.encoder)``.

    The target follows at the beginning of each forward pass in training mode with gradients, once an update: after the
    optimiser's step, and before the target is next needed. Its batch norms take their moments from the batch, as the
    online encoder's do; their running averages are its own.

    Args:
        encoder: the online encoder; becomes part of the model.
        k: width of its embedding.
        hidden: width of the predictor's hidden layer.
        momentum: share of itself that the target keeps in an update, in [0, 1].
        batch_norm: whether the predictor's hidden layer is normalised, as the authors' is.
        generator: source of the predictor's initial weights.

    Raises:
        ValueError: the momentum is not in [0, 1].

    References:
        Grill et al. (2020), section 3.1.
    """

    def __init__(
        self,
        encoder: Encoder,
        k: int,
        hidden: int = 128,
        momentum: float = 0.99,
        *,
        batch_norm: bool = True,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum of the target: expected a number in [0, 1], found {momentum}")
        self.momentum = momentum
        self.encoder = encoder
        self.target = copy.deepcopy(encoder).requires_grad_(False)

        def build() -> nn.Sequential:
            norm = nn.BatchNorm1d(hidden) if batch_norm else nn.Identity()
            return nn.Sequential(nn.Linear(k, hidden), norm, nn.ReLU(), nn.Linear(hidden, k))

        self.predictor = seeded(build, generator)

    def forward(self, x: Tensor) -> Float[Tensor, "n width"]:
        """Prediction and target embedding side by side, (n, 2k); in evaluation mode the online embedding, (n, k)."""
        if not self.training:
            return self.encoder(x)
        if torch.is_grad_enabled():
            self.follow()
        with torch.no_grad():
            target = self.target(x)
        return torch.cat([self.predictor(self.encoder(x)), target], 1)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the target's parameters towards the online encoder's: momentum * target + (1 - momentum) * online."""
        for slow, fast in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)


def objective(z1: Float[Tensor, "n width"], z2: Float[Tensor, "n width"]) -> Float[Tensor, ""]:
    """The loss of `Byol`'s rows: each view's prediction against the other view's target, mean of both directions.

    Under several workers it is the mean over all of them.
    """
    (p1, t1), (p2, t2) = (z.chunk(2, dim=1) for z in (z1, z2))
    value = (losses.byol(p1, t2) + losses.byol(p2, t1)) / 2
    return cast(Tensor, distributed.sum_over_workers(value) / distributed.workers())
