r"""The network behind SimCLR, SimSiam and their variants: its rows show all that a loss may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from companion.lab import augment, distributed
from companion.lab.byol import Siamese
from companion.lab.encoders import Encoder
from companion.lab.predictors import Predictor

if TYPE_CHECKING:
    from companion.lab.train import Options, Pairs


class Network(Siamese):
    r"""An encoder, a predictor, and in buffers, which checkpoints hold, what was said of each image when last visited.

    In training mode a row is the prediction, the embedding and the encoder's features side by side, (n, 2k + d);
    `parts` takes them apart. In evaluation mode the model is its encoder, (n, k).

    A visit is an update whose batch holds the image, once or more often. After it the embedding of the image's second
    view (the last one, if it was drawn more often) becomes $M_1$, what was $M_j$ becomes $M_{j+1}$, and the oldest is
    forgotten. As batches are drawn with replacement, visits come once an epoch on average, and not exactly. Which
    images a batch holds is known from `pairs`.

    Args:
        encoder: becomes part of the model.
        predictor: from its embedding to the other view's; becomes part of the model.
        k: width of the embedding.
        images: how many there are to remember; 0 where nothing is.
        stages: how many embeddings of each are remembered.
        centre: share of itself that the running mean of the embeddings keeps in a batch; None for no such mean.
        constant: whether the predictor learns at a rate without schedule.
        seed: of `permutation`.

    Attributes:
        memory: (stages, images, k), $M_1, M_2, \dots$; zero where nothing was stored.
        visits: (images,) int64.
        updates: () int64.
        mean: (k,), running mean of the embeddings of both views; the first batch sets it.

    References:
        Wang et al. (2023), the authors' published code, with $M_1$ from the epoch before; `def-multi-stage`.
    """

    memory: Tensor
    visits: Tensor
    updates: Tensor
    mean: Tensor

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor,
        *,
        k: int,
        images: int = 0,
        stages: int = 0,
        centre: float | None = None,
        constant: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(encoder, predictor, 0.0)
        self.k, self.centre, self.constant, self.seed = k, centre, constant, seed
        self.register_buffer("memory", torch.zeros(stages, images, k))
        self.register_buffer("visits", torch.zeros(images, dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(k))
        self.drawn: Tensor | None = None  # images of the present batch, of all workers
        self.latest: Tensor | None = None  # embeddings of this worker's rows

    def forward(self, x: Tensor) -> Float[Tensor, "n width"]:
        """Prediction, embedding and features, (n, 2k + d); in evaluation mode the embedding, (n, k)."""
        if not self.training:
            return self.encoder(x)
        h = self.encoder.features(x)
        z = self.encoder.projector(h)
        if torch.is_grad_enabled():  # a look, which takes no gradients, leaves no trace
            self.latest = z.detach().to(self.memory.dtype)
        return torch.cat([self.predictor(z), z, h], 1)

    def parts(self, rows: Float[Tensor, "n width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction (n, k), embedding (n, k) and features (n, d)."""
        prediction, embedding, features = rows.tensor_split((self.k, 2 * self.k), dim=1)
        return prediction, embedding, features

    def pairs(self, images: UInt8[Tensor, "N c h w"], augmentation: augment.Augmentation) -> Pairs:
        """The very pairs of `train.image_pairs`, whose images the model gets to know."""

        def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            self.drawn = torch.randint(len(images), (n,), generator=generator, device=images.device)
            x1, x2 = augmentation(images[self.drawn].repeat(2, 1, 1, 1), generator).chunk(2)
            return x1, x2

        return sample

    def recall(self) -> tuple[Float[Tensor, "stages n k"], Int64[Tensor, " n"]]:
        """What is remembered of the images of this worker's rows, and of each how many stages there are.

        Raises:
            RuntimeError: nobody knows which images these are.
        """
        drawn = self._known()
        own = drawn[distributed.own_rows(len(drawn))]
        return self.memory[:, own], self.visits[own].clamp(max=len(self.memory))

    @torch.no_grad()
    def moved_mean(self, z: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
        """The running mean after this worker's embeddings of a batch, both views, with those of the other workers."""
        batch = distributed.sum_over_workers(z.to(self.mean.dtype).mean(0)) / distributed.workers()
        kept = torch.where(self.updates == 0, 0.0, self.centre or 0.0).to(batch)
        return batch.lerp(self.mean, kept)

    def permutation(self, n: int) -> Int64[Tensor, " n"]:
        """A random order of n rows: another one after each update, the same in a run that was resumed."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + int(self.updates))
        return torch.randperm(n, generator=generator).to(self.updates.device)

    def parameter_groups(self, options: Options) -> list[dict[str, Any]]:
        """Those of `Siamese`, the predictor's with a constant rate where that was asked for."""
        encoder, *predictor = super().parameter_groups(options)
        return [encoder, *(group | {"constant": True} if self.constant else group for group in predictor)]

    @torch.no_grad()
    def after_update(self) -> None:
        """Count the update, and remember what the batch said."""
        super().after_update()
        if self.latest is None:
            return
        if self.centre is not None:
            self.mean.copy_(self.moved_mean(self.latest))
        if len(self.memory):
            self._remember(self._known(), distributed.gather(self.latest.chunk(2)[1]))
        self.updates += 1

    def _known(self) -> Tensor:
        if self.drawn is None:
            raise RuntimeError(
                "memory of a network: expected batches from its own `pairs`; train it with `contrast.run`"
            )
        return self.drawn

    def _remember(self, drawn: Tensor, z: Tensor) -> None:
        # An image that was drawn twice writes the same thing twice, which no order of writing can change.
        row = torch.arange(len(drawn), device=drawn.device)
        last = ((drawn[:, None] == drawn) * row).amax(1)
        self.memory[:, drawn] = torch.cat([z[last][None], self.memory[:-1, drawn]])
        self.visits[drawn] = self.visits[drawn] + 1
