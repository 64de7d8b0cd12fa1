r"""Watching an embedding grow: spectra along a run of `companion.lab.train.fit`, the times of its steps, small starts.

Rows are views. The embeddings of n pairs are `z1` and `z2`, (n, k) each; a matrix of all views stacks them, first
views first. Spectra are taken in float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.lab import distributed
from companion.lab.curves import Clusters, separation, step_times, two_clusters
from companion.lab.encoders import Encoder
from companion.lab.train import Loss, Pairs

__all__ = [
    "fixed_pairs",
    "scale_weights",
    "preconditioned",
    "correlation_spectrum",
    "covariance_spectrum",
    "Watch",
    "step_times",
    "separation",
    "Clusters",
    "two_clusters",
]


def fixed_pairs(x1: Tensor, x2: Tensor) -> Pairs:
    """The same full batch at every update: gradient descent on a fixed set of pairs.

    Args:
        x1: first views, n of them.
        x2: second views.

    Returns:
        The sampler that `fit` takes; it refuses another batch size than n.
    """

    def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if n != len(x1):
            raise ValueError(f"fixed_pairs: expected batch_size = {len(x1)}, the number of pairs, found {n}")
        return x1, x2

    return sample


def correlation_spectrum(z1: Float[Tensor, "n k"], z2: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    r"""Eigenvalues, largest first, of $C=\frac1{2n}(Z_1^\top Z_2+Z_2^\top Z_1)$; not centred, some may be negative.

    >>> correlation_spectrum(torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    tensor([ 0.5000, -0.5000], dtype=torch.float64)
    """
    return torch.linalg.eigvalsh(_correlation(z1.double(), z2.double())).flip(0)


def covariance_spectrum(z: Float[Tensor, "N k"], normalise: bool = False) -> Float[Tensor, " k"]:
    """Eigenvalues, largest first, of the covariance matrix of the rows (divisor N).

    Args:
        z: embeddings of all views, (N, k).
        normalise: bring rows to unit length first, for losses that see only directions.

    >>> covariance_spectrum(torch.tensor([[2.0, 1.0], [0.0, 1.0]]))
    tensor([1., 0.], dtype=torch.float64)
    """
    z = z.double()
    z = nn.functional.normalize(z, dim=1) if normalise else z
    z = z - z.mean(0)
    n, k = z.shape
    values = torch.linalg.eigvalsh(z.T @ z if k <= n else z @ z.T).clamp(min=0).flip(0) / n
    return values if k <= n else torch.cat([values, values.new_zeros(k - n)])


class Watch:
    """Observer for `fit`: the spectra of the embeddings of a fixed set of pairs, at each of its calls.

    The model is evaluated in evaluation mode and chunk by chunk, and left in the modes it was found in. A batch norm
    then takes its running averages, which are 0 and 1 before the first update. Several workers each look at all pairs.

    Args:
        x1: first views, on the device of the model.
        x2: second views.
        layers: "embedding", "features" (an Encoder's hidden representation) or both.
        normalise: bring embeddings to unit length before their covariance is taken.
        loss: of (z1, z2), evaluated on all pairs at once, so without sums over workers.
        top: eigenvalues kept of the features' covariance.
        encoder: from the model to the part that is watched.
        keep: numbers of updates after which the embeddings themselves are kept.
        chunk: views evaluated at once.

    Attributes:
        steps: (T,) int64, updates done.
        seconds: (T,) float64, wall time between its calls so far: training without looking; resumed, of all parts.
        losses: (T,), nan without a loss.
        correlation: (T, k), eigenvalues of C.
        covariance: (T, k), eigenvalues of the covariance of the embeddings of all views.
        hidden: (T, top), of the features of all views; (T, 0) if they are not watched.
        embeddings: from a number of updates to (2n, k), first views first, in the precision of the model, on the CPU.

    Raises:
        ValueError: another layer, or features of what is no Encoder.
        FloatingPointError: an embedding is not finite.
    """

    def __init__(
        self,
        x1: Tensor,
        x2: Tensor,
        layers: Collection[str] = ("embedding", "features"),
        normalise: bool = False,
        *,
        loss: Loss | None = None,
        top: int = 20,
        encoder: Callable[[Any], nn.Module] = lambda model: model,
        keep: Collection[int] = (),
        chunk: int = 1000,
    ) -> None:
        if unknown := set(layers) - {"embedding", "features"}:
            raise ValueError(f'layers: expected "embedding", "features" or both, found {sorted(unknown)}')
        self.x = torch.cat([x1, x2])
        self.layers, self.normalise, self.loss, self.top = layers, normalise, loss, top
        self.encoder, self.keep, self.chunk = encoder, keep, chunk
        self.rows: list[dict[str, Tensor]] = []
        self.embeddings: dict[int, Tensor] = {}
        self.spent = 0.0  # seconds between calls
        self.since: float | None = None  # end of the last call

    @torch.no_grad()
    def __call__(self, step: int, model: nn.Module) -> None:
        """Look at the model after `step` updates."""
        spent = self._spent()
        z, h = self._embed(self.encoder(model))
        if not z.isfinite().all():
            raise FloatingPointError(f"Watch: an embedding after {step} updates is not finite. Try a smaller lr.")
        z1, z2 = z.chunk(2)
        nothing = torch.zeros(0, dtype=torch.float64)
        seen = "embedding" in self.layers
        row = {
            "steps": torch.tensor(step),
            "seconds": torch.tensor(spent, dtype=torch.float64),
            "losses": torch.tensor(torch.nan if self.loss is None else float(self.loss(z1, z2)), dtype=torch.float64),
            "correlation": correlation_spectrum(z1, z2) if seen else nothing,
            "covariance": covariance_spectrum(z, self.normalise) if seen else nothing,
            "hidden": nothing if h is None else covariance_spectrum(h)[: self.top],
        }
        self.rows.append({name: value.cpu() for name, value in row.items()})
        if step in self.keep:
            self.embeddings[step] = z.cpu()
        self.spent, self.since = spent, time.perf_counter()

    def _spent(self) -> float:
        return self.spent if self.since is None else self.spent + time.perf_counter() - self.since

    def _embed(self, encoder: Any) -> tuple[Tensor, Tensor | None]:
        hidden = "features" in self.layers
        if hidden and not isinstance(encoder, Encoder):
            raise ValueError(
                f"Watch: features are an Encoder's, found {type(encoder).__name__}; say where the encoder is, "
                'encoder=lambda model: ..., or watch layers=("embedding",)'
            )
        modes = {module: module.training for module in encoder.modules()}
        encoder.eval()
        h = [encoder.features(x) if hidden else x for x in self.x.split(self.chunk)]
        z = torch.cat([encoder.projector(x) if hidden else encoder(x) for x in h])
        for module, training in modes.items():
            module.training = training
        return z, torch.cat(h) if hidden else None

    steps = property(lambda self: self._curve("steps"))
    seconds = property(lambda self: self._curve("seconds"))
    losses = property(lambda self: self._curve("losses"))
    correlation = property(lambda self: self._curve("correlation"))
    covariance = property(lambda self: self._curve("covariance"))
    hidden = property(lambda self: self._curve("hidden"))

    def _curve(self, name: str) -> Tensor:
        return torch.stack([row[name] for row in self.rows])

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, for the checkpoints of `fit`."""
        return {"rows": self.rows, "embeddings": self.embeddings, "seconds": self._spent()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Forget what was seen since the checkpoint and remember what it holds."""
        self.rows = [{name: value.cpu() for name, value in row.items()} for row in state["rows"]]
        self.embeddings = {step: z.cpu() for step, z in state["embeddings"].items()}
        self.spent, self.since = state["seconds"], time.perf_counter()


def scale_weights(model: nn.Module, factor: float, last_only: bool = False) -> nn.Module:
    """Multiply weights and biases of linear and convolutional layers by a factor, in place; norm layers stay.

    Args:
        model: any network with a linear layer.
        factor: positive.
        last_only: only the last linear layer's.

    Returns:
        The model.

    Raises:
        ValueError: the factor is not positive, or the model has no linear layer.
    """
    if not factor > 0:
        raise ValueError(f"factor: expected a positive number, found {factor}; at 0 nothing would ever grow")
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(f"scale_weights: expected a model with a linear layer, found none in {type(model).__name__}")
    with torch.no_grad():
        for layer in linear[-1:] if last_only else layers:
            for parameter in layer.parameters(recurse=False):
                parameter.mul_(factor)
    return model


def preconditioned(loss: Loss, epsilon: float) -> Loss:
    r"""The same loss, with more gradient on the small eigendirections of the embedding.

    Backpropagation multiplies each embedding's gradient from the right by $(C_+ + \epsilon I)^{-1}$, where $C_+$ is the
    positive part of the batch's $C=\frac1{2n}(Z_1^\top Z_2+Z_2^\top Z_1)$, taken as constant. In a linear model the
    gradient of W is multiplied by that matrix from the left.

    Args:
        loss: of (z1, z2).
        epsilon: positive; modes of C far above it are slowed down by their eigenvalue, those below are sped up by
            1 / epsilon.

    Returns:
        The loss that `fit` takes.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon: expected a positive number, found {epsilon}")

    def with_new_gradient(z1: Tensor, z2: Tensor) -> Tensor:
        if not (z1.requires_grad and z2.requires_grad):
            return loss(z1, z2)
        C = distributed.sum_over_workers(_correlation(z1.detach().double(), z2.detach().double()))
        values, Q = torch.linalg.eigh(C / distributed.workers())
        P = (Q / (values.clamp(min=0) + epsilon) @ Q.T).to(z1.dtype)
        u1, u2 = z1.view_as(z1), z2.view_as(z2)
        for u in (u1, u2):
            u.register_hook(lambda gradient: gradient @ P)
        return loss(u1, u2)

    return with_new_gradient


def _correlation(z1: Tensor, z2: Tensor) -> Tensor:
    C = z1.T @ z2 / len(z1)
    return (C + C.T) / 2
