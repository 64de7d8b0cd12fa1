r"""Predictors of `companion.lab.byol.Siamese`: trained by gradient, set from moments of the embedding, or none.

A predictor maps online embeddings $f$ to what the target should say of the other view. The model calls `observe` in
each forward pass with gradients, and `after_update` after each step of the optimiser. Whatever a predictor remembers
lies in buffers, in float64; under several workers it is averaged over all of them, so that they stay equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.lab import distributed
from companion.lab.encoders import seeded

if TYPE_CHECKING:
    from companion.lab.train import Options

Rule = Callable[[Tensor], Tensor]


class Predictor(nn.Module):
    """What `Siamese` needs of a predictor; on its own, one that observes nothing and is left alone."""

    @property
    def weight(self) -> Float[Tensor, "k k"] | None:
        """The matrix $W_p$ of a linear predictor; None where there is none."""
        return None

    def observe(self, z: Float[Tensor, "n k"], target: Float[Tensor, "n k"]) -> None:
        """See a batch: online embeddings of both views, and beside each the target's embedding of the *other* view."""

    def after_update(self) -> None:
        """Do what follows the optimiser's step."""

    def group(self, options: Options) -> dict[str, Any]:
        """Trained parameters, with their own largest rate and weight decay where these differ from the model's."""
        return {"params": [p for p in self.parameters() if p.requires_grad]}


class Identity(Predictor):
    """No predictor: the embedding itself is compared with the target.

    Args:
        k: ignored; taken so that all predictors are built alike.
        generator: ignored.
    """

    def __init__(self, k: int | None = None, *, generator: torch.Generator | None = None) -> None:
        super().__init__()

    def forward(self, z: Tensor) -> Tensor:
        """The embedding."""
        return z


class Trained(Predictor):
    r"""A predictor trained by gradient: linear, or with one hidden layer of ReLU units.

    Args:
        k: width of the embedding.
        hidden: width of the hidden layer; None for a linear predictor, $z \mapsto W_pz$.
        bias: whether the linear layers have biases.
        batch_norm: whether the hidden layer is normalised, before its ReLU.
        affine: whether that batch norm has a trained scale and shift.
        symmetric: whether $W_p$ is replaced by $\frac12(W_p+W_p^\top)$ after each update; with a hidden layer both
            $W_1$ and $W_2^\top$ are replaced by their mean. The first batch still sees what was drawn.
        lr_ratio: $\alpha_p$, learning rate of the predictor over that of the encoder.
        weight_decay: of the predictor, in torch's unit: an update shrinks the predictor by the factor $1-$ **its own**
            rate times this number. The flow of `lem-siamese-flow` shrinks $W_p$ and $W$ alike, at the rate $\eta$;
            where the encoder's weight decay is $\eta$ this takes $\eta/\alpha_p$ here. None: the encoder's number.
        generator: source of the initial weights.

    Raises:
        ValueError: lr_ratio is not positive, or the weight decay is negative.
    """

    def __init__(
        self,
        k: int,
        *,
        hidden: int | None = None,
        bias: bool = False,
        batch_norm: bool = True,
        affine: bool = False,
        symmetric: bool = False,
        lr_ratio: float = 1.0,
        weight_decay: float | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if not lr_ratio > 0:
            raise ValueError(f"lr_ratio of the predictor: expected a positive number, found {lr_ratio}")
        if weight_decay is not None and not weight_decay >= 0:
            raise ValueError(f"weight_decay of the predictor: expected 0 or more, or None, found {weight_decay}")
        self.symmetric, self.lr_ratio, self.weight_decay = symmetric, lr_ratio, weight_decay

        def build() -> nn.Sequential:
            if hidden is None:
                return nn.Sequential(nn.Linear(k, k, bias))
            norm = (nn.BatchNorm1d(hidden) if affine else plain_batch_norm(hidden)) if batch_norm else nn.Identity()
            return nn.Sequential(nn.Linear(k, hidden, bias), norm, nn.ReLU(), nn.Linear(hidden, k, bias))

        self.layers = seeded(build, generator)

    @property
    def weight(self) -> Tensor | None:
        """$W_p$ of a linear predictor; None with a hidden layer."""
        return cast(Tensor, self.layers[0].weight) if len(self.layers) == 1 else None

    def forward(self, z: Tensor) -> Tensor:
        """The prediction, (n, k)."""
        return self.layers(z)

    @torch.no_grad()
    def after_update(self) -> None:
        """Make the predictor symmetric, if that was asked for."""
        if self.symmetric:
            first, last = (cast(Tensor, layer.weight) for layer in (self.layers[0], self.layers[-1]))
            mean = (first + last.T) / 2
            first.copy_(mean)
            last.copy_(mean.T)

    def group(self, options: Options) -> dict[str, Any]:
        """Trained parameters, their rate and weight decay where these differ from the encoder's."""
        found = super().group(options)
        if self.lr_ratio != 1:
            found["lr"] = self.lr_ratio * options.lr
        if self.weight_decay is not None:
            found["weight_decay"] = self.weight_decay
        return found


class _Set(Predictor):
    r"""A linear predictor without bias that is set to a function of running moments after every `every`-th update."""

    F_hat: Tensor
    seen: Tensor
    updates: Tensor

    def __init__(self, k: int, rho: float, every: int, generator: torch.Generator) -> None:
        super().__init__()
        if not 0 <= rho < 1:
            raise ValueError(f"rho of the moving average: expected a number in [0, 1), found {rho}")
        if every < 1:
            raise ValueError(f"every: expected at least 1 update between two settings, found {every}")
        self.k, self.rho, self.every = k, rho, every
        self.linear = seeded(lambda: nn.Linear(k, k, bias=False), generator)
        self.linear.requires_grad_(every > 1)  # set anew after each update, a gradient step would be lost
        self.register_buffer("F_hat", torch.zeros(k, k, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def weight(self) -> Tensor:
        """$W_p$."""
        return self.linear.weight

    def forward(self, z: Tensor) -> Tensor:
        """The prediction, (n, k)."""
        return self.linear(z)

    @torch.no_grad()
    def observe(self, z: Tensor, target: Tensor) -> None:
        """Move the averages towards the moments of this batch; the first batch sets them."""
        for average, moment in zip(self.averages(), self.moments(z.double(), target.double()), strict=True):
            moment = distributed.sum_over_workers(moment) / distributed.workers()
            average.lerp_(moment, torch.where(self.seen == 0, 1.0, 1 - self.rho).to(moment.dtype))
        self.seen += 1

    @torch.no_grad()
    def after_update(self) -> None:
        """Count the update, and set the predictor if it is time."""
        self.updates += 1
        if int(self.updates) % self.every or not int(self.seen):
            return
        if not all(bool(average.isfinite().all()) for average in self.averages()):
            raise FloatingPointError(
                f"{type(self).__name__}: second moments of the embeddings are not finite after {int(self.updates)} "
                "updates. Try a smaller lr or more warmup_steps."
            )
        self.linear.weight.copy_(self.solution())

    def averages(self) -> list[Tensor]:
        """The running moments."""
        return [self.F_hat]

    def moments(self, z: Tensor, target: Tensor) -> list[Tensor]:
        r"""Those of a batch: $\E ff^\top$ over both views, as it stands, nothing centred."""
        return [z.T @ z / len(z)]

    def solution(self) -> Tensor:
        """The matrix that the moments ask for."""
        raise NotImplementedError


class Direct(_Set):
    r"""DirectPred and its kin: $W_p$ is a function of a running estimate of the embedding's correlation.

    $$\hat F \leftarrow \rho\hat F + (1-\rho)\,\tfrac1{2n}\sum_{i,\text{view}} f_if_i^\top,\qquad W_p = g(\hat F),$$

    with $f$ the online embeddings of both views as the projector leaves them, neither centred nor of unit length. The
    average begins at the first batch's. $W_p$ is set after the updates number N, 2N, ...; for N > 1 it takes gradient
    steps in between. Until it is first set it is what torch draws.

    Args:
        k: width of the embedding.
        rule: $g$, from $\hat F$, (k, k) float64, to $W_p$, (k, k);
            ``functools.partial(direct_predictor.direct_pred, epsilon=0.1)``, say.
        rho: $\rho$, share of itself that $\hat F$ keeps in an update, in [0, 1).
        every: N.
        generator: source of the initial weights.

    Raises:
        ValueError: rho or every out of range; the rule returns another shape.
        FloatingPointError: when setting, if $\hat F$ is not finite.

    References:
        Tian et al. (2021), Eqns. (18) and (19); `def-direct-pred`.
    """

    def __init__(self, k: int, rule: Rule, *, rho: float = 0.3, every: int = 1, generator: torch.Generator) -> None:
        super().__init__(k, rho, every, generator)
        found = rule(torch.eye(k, dtype=torch.float64))
        if found.shape != (k, k):
            raise ValueError(f"rule of Direct: expected a matrix of shape {(k, k)}, found {tuple(found.shape)}")
        self.rule = rule

    def solution(self) -> Tensor:
        """The rule's."""
        return self.rule(self.F_hat)


class Optimal(_Set):
    r"""The least-squares predictor, which leaves the online network nothing to learn.

    $$W_p = \tfrac12\bigl(\E f_af^\top + \E ff_a^\top\bigr)\Bigl(\E ff^\top + r\,\tfrac{\tr\E ff^\top}k I\Bigr)^{-1}$$

    from moving averages as in `Direct`, with $f_a$ the target's embedding of the other view.

    Args:
        k: width of the embedding.
        rho: share of themselves that the averages keep in an update, in [0, 1).
        every: updates between two settings.
        ridge: $r\ge0$, as a share of the mean eigenvalue; the authors regularise, their number is not known to us.
        generator: source of the initial weights.

    Raises:
        ValueError: rho, every or ridge out of range.
        FloatingPointError: when setting, if a moment is not finite.

    References:
        Tian et al. (2021), Table 1; `prop-optimal-predictor`.
    """

    cross: Tensor

    def __init__(
        self, k: int, *, rho: float = 0.3, every: int = 1, ridge: float = 1e-3, generator: torch.Generator
    ) -> None:
        super().__init__(k, rho, every, generator)
        if not ridge >= 0:
            raise ValueError(f"ridge of Optimal: expected 0 or more, found {ridge}")
        self.ridge = ridge
        self.register_buffer("cross", torch.zeros(k, k, dtype=torch.float64))

    def averages(self) -> list[Tensor]:
        """The running moments."""
        return [self.F_hat, self.cross]

    def moments(self, z: Tensor, target: Tensor) -> list[Tensor]:
        r"""Those of a batch: $\E ff^\top$ and $\frac12(\E f_af^\top+\E ff_a^\top)$."""
        cross = target.T @ z / len(z)
        return [*super().moments(z, target), (cross + cross.T) / 2]

    def solution(self) -> Tensor:
        """The ridge regression's."""
        shift = self.ridge * self.F_hat.diagonal().mean()
        eye = torch.eye(self.k, dtype=self.F_hat.dtype, device=self.F_hat.device)
        return torch.linalg.solve(self.F_hat + shift * eye, self.cross, left=False)


def plain_batch_norm(width: int) -> nn.BatchNorm1d:
    """Batch norm without a trained scale and shift: theirs are frozen at 1 and 0.

    ``affine=False`` would be the same on one worker; `companion.lab.distributed` asks for the two on several.
    """
    norm = nn.BatchNorm1d(width)
    norm.requires_grad_(False)
    return norm
