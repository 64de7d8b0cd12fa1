"""BYOL, SimSiam and their variants for `companion.lab.train.fit`: a network predicts what its copy says of a view."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.lab import distributed
from companion.lab.encoders import Encoder
from companion.lab.predictors import Predictor
from companion.theory import losses

if TYPE_CHECKING:
    from companion.lab.train import Options


class Siamese(nn.Module):
    """An online encoder, its predictor, and the target: a slow copy of the online encoder, or that encoder itself.

    `fit` knows one model and one loss of two batches of rows. In training mode a row is therefore the prediction and,
    beside it, the target's embedding, (n, 2k); `objective` takes both apart. In evaluation mode the model is its online
    encoder, (n, k). To watch the latter's hidden layer: ``Watch(..., encoder=lambda model: model.encoder)``.

    After each update the target follows, then the predictor does what it does (`companion.lab.predictors`). The batch
    norms of a slow copy take their moments from the batch, as the online encoder's do; their running averages are
    their own.

    Args:
        encoder: the online encoder; becomes part of the model.
        predictor: from its embedding to the target's; becomes part of the model.
        momentum: share of itself that the target keeps in an update, in [0, 1]. At 0 the target is the online encoder
            itself (SimSiam), and nothing is copied.
        stop_gradient: whether the target is taken as constant. Without, the gradient must have a way to go: momentum 0.
        own_target: a network of the same shape to start the target from, in place of the encoder's weights; the
            authors of DirectPred start it from weights of its own.

    Raises:
        ValueError: the momentum is not in [0, 1]; there is a slow target but no stop-gradient; own_target at
            momentum 0, or of another shape.

    References:
        Grill et al. (2020), section 3.1; Chen and He (2021), section 3; Tian et al. (2021), section 2; `def-siamese`.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor,
        momentum: float = 0.99,
        *,
        stop_gradient: bool = True,
        own_target: Encoder | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum of the target: expected a number in [0, 1], found {momentum}")
        if momentum and not stop_gradient:
            raise ValueError(
                f"stop_gradient=False: expected momentum 0, found {momentum}; no gradient is taken of a slow target"
            )
        if own_target is not None:
            if momentum == 0:
                raise ValueError("own_target: expected None at momentum 0, where the target is the encoder itself")
            shapes = [[tuple(p.shape) for p in network.parameters()] for network in (encoder, own_target)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"own_target: expected parameters of shapes {shapes[0]}, found {shapes[1]}")
        self.momentum, self.stop_gradient = momentum, stop_gradient
        self.encoder, self.predictor = encoder, predictor
        start = encoder if own_target is None else own_target
        self.slow = copy.deepcopy(start).requires_grad_(False) if momentum else None

    @property
    def target(self) -> Encoder:
        """The network whose embedding is predicted."""
        return self.encoder if self.slow is None else self.slow

    def forward(self, x: Tensor) -> Float[Tensor, "n width"]:
        """Prediction and target embedding side by side, (n, 2k); in evaluation mode the online embedding, (n, k)."""
        z = self.encoder(x)
        if not self.training:
            return z
        if self.slow is None:
            target = z.detach() if self.stop_gradient else z
        else:
            with torch.no_grad():
                target = self.slow(x)
        if torch.is_grad_enabled():  # a look, which takes no gradients, leaves no trace
            self.predictor.observe(z.detach(), target.detach().roll(len(x) // 2, 0))
        return torch.cat([self.predictor(z), target], 1)

    def parameter_groups(self, options: Options) -> list[dict[str, Any]]:
        """The encoder's parameters, and the predictor's with its own rate and weight decay."""
        groups = [{"params": [p for p in self.encoder.parameters() if p.requires_grad]}, self.predictor.group(options)]
        return [group for group in groups if group["params"]]

    @torch.no_grad()
    def after_update(self) -> None:
        """Let target and predictor follow an update of the online encoder."""
        self.follow()
        self.predictor.after_update()

    @torch.no_grad()
    def follow(self) -> None:
        """Move the target's parameters towards the online encoder's: momentum * target + (1 - momentum) * online."""
        if self.slow is not None:
            for slow, fast in zip(self.slow.parameters(), self.encoder.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.momentum)


def objective(
    z1: Float[Tensor, "n width"], z2: Float[Tensor, "n width"], *, normalize: bool = True
) -> Float[Tensor, ""]:
    """The loss of `Siamese`'s rows: each view's prediction against the other view's target, mean of both directions.

    Whether a gradient flows through the target is the model's to say: `Siamese.stop_gradient`. Under several workers
    the loss is the mean over all of them.

    Args:
        z1: rows of the first views, prediction and target side by side.
        z2: rows of the second views.
        normalize: as for `losses.byol`; False for squared distances.

    Returns:
        The loss, a scalar.
    """
    (p1, t1), (p2, t2) = (z.chunk(2, dim=1) for z in (z1, z2))
    first, second = (losses.byol(p, t, stop_gradient=False, normalize=normalize) for p, t in ((p1, t2), (p2, t1)))
    value = (first + second) / 2
    return cast(Tensor, distributed.sum_over_workers(value) / distributed.workers())
