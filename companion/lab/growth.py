r"""Recipes for watching an embedding grow: three losses, from a small start and from an ordinary one.

A *small start* is one from which every embedding is (almost) the same point. Barlow Twins and VICReg see the length
of an embedding, so there all weights (or the last layer's) are made small. SimCLR sees directions only and is blind to
a common scale; there the weights are made small beside a bias of length one in the last layer, so that all directions
agree.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from companion.lab import augment, distributed, encoders, steps, train
from companion.lab.data import ImageSet
from companion.theory import losses

#: The three losses of the paper's section 6; coefficients are ours: SimCLR at temperature 1/2, VICReg at 25, 25, 1.
LOSSES: dict[str, train.Loss] = {
    "barlow_twins": lambda z1, z2: losses.barlow_twins(z1, z2, sum_over_workers=_add()),
    "vicreg": lambda z1, z2: losses.vicreg(z1, z2, sum_over_workers=_add()),
    "simclr": lambda z1, z2: losses.info_nce(z1, z2, 0.5, gather=distributed.gather),
}
#: Milder views than chapter 1's, under which more directions keep their sign; moments of Fashion-MNIST's pixels.
MILD = augment.Augmentation(
    area=(0.4, 1.0), flip=0.5, brightness=0.2, contrast=0.2, jitter=0.8, mean=(0.286,), std=(0.353,)
)


def _add() -> Callable[[Tensor], Tensor] | None:
    return distributed.sum_over_workers if distributed.workers() > 1 else None


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run but its data and its seed.

    Attributes:
        loss: "barlow_twins", "vicreg" or "simclr".
        encoder: from a generator of weights to an encoder whose last layer is linear.
        options: of the training loop; its seed is replaced by that of `grow`.
        scale: factor on the weights at the start; 1 for an ordinary start.
        last_only: whether only the last layer is scaled, else all of them.
        objective: another loss function in place of the one that `loss` names (a preconditioned one, say).
    """

    loss: str
    encoder: Callable[[torch.Generator], encoders.Encoder]
    options: train.Options
    scale: float = 1.0
    last_only: bool = False
    objective: train.Loss | None = None

    def __post_init__(self) -> None:
        """Refuse a loss that nobody has written."""
        if self.loss not in LOSSES:
            raise ValueError(f"loss of a recipe: expected one of {', '.join(LOSSES)}, found {self.loss!r}")

    def start(self, seed: int) -> encoders.Encoder:
        """The encoder before training, with its scaled weights; in evaluation mode.

        Raises:
            ValueError: a small start of SimCLR, and no bias in the last linear layer.
        """
        encoder = self.encoder(torch.Generator().manual_seed(seed))
        if self.scale != 1:
            steps.scale_weights(encoder, self.scale, self.last_only)
            if self.loss == "simclr":
                last = [layer for layer in encoder.modules() if isinstance(layer, nn.Linear)][-1]
                if last.bias is None:
                    raise ValueError("simclr: a small start needs a bias in the last linear layer, found none")
                with torch.no_grad():
                    last.bias.zero_()[0] = 1.0
        return encoder.eval()


def grow(
    recipe: Recipe,
    pairs: train.Pairs,
    watched: tuple[Tensor, Tensor],
    seed: int,
    *,
    every: int = 10,
    keep: Collection[int] = (),
    checkpoint: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> tuple[encoders.Encoder, steps.Watch]:
    """Train one encoder and watch the spectra of its embedding of fixed pairs.

    Args:
        recipe: the configuration.
        pairs: what to train on.
        watched: views of the pairs that are watched, n each; n well above the embedding's dimension.
        seed: of weights, batches and views.
        every: updates between two looks.
        keep: numbers of updates after which the embeddings themselves are kept.
        checkpoint: file that a killed run continues from.
        device: where to train.

    Returns:
        The encoder, in evaluation mode, and what was seen.
    """
    encoder = recipe.start(seed).to(device)
    objective = recipe.objective or LOSSES[recipe.loss]
    x1, x2 = (x.to(device) for x in watched)
    _settle_norms(encoder, torch.cat([x1, x2]))
    watch = steps.Watch(x1, x2, normalise=recipe.loss == "simclr", loss=LOSSES[recipe.loss], keep=keep)
    train.fit(
        encoder,
        pairs,
        objective,
        replace(recipe.options, seed=seed),
        what=f"{recipe.loss}, seed {seed}",
        checkpoint=checkpoint,
        observe=watch,
        observe_every=every,
    )
    return encoder, watch


@torch.no_grad()
def _settle_norms(encoder: encoders.Encoder, x: Tensor) -> None:
    """Give batch norms the moments of `x` as running averages; else the first looks would see those of nothing."""
    norms = [layer for layer in encoder.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    usual = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 1.0
    encoder.train()(x)
    for layer, momentum in zip(norms, usual, strict=True):
        layer.momentum = momentum


def spectrum(recipe: Recipe, watch: steps.Watch) -> Float[Tensor, "T k"]:
    r"""The eigenvalues whose rise is a step of the recipe's loss, each brought to a final height near one.

    Barlow Twins: of $C$. VICReg: of the covariance. SimCLR: of the covariance of normalised embeddings, times k, since
    its trace is at most one.
    """
    if recipe.loss == "barlow_twins":
        return watch.correlation
    return watch.covariance * (watch.covariance.shape[1] if recipe.loss == "simclr" else 1)


def perceptron(loss: str, inputs: int, pairs: int, *, k: int = 8, small: bool = True, updates: int = 2500) -> Recipe:
    """One hidden layer of ReLU units, full-batch gradient descent with momentum 0.9 on a fixed set of crops.

    Rates 0.01, 0.02 and 0.2, small starts of scale 0.2, 0.2 and 0.05 for Barlow Twins, VICReg and SimCLR.

    Args:
        loss: one of `LOSSES`.
        inputs: pixels of a crop.
        pairs: number of pairs, which is the batch.
        k: dimension of the embedding.
        small: a small start, else PyTorch's own.
        updates: number of them.

    Returns:
        The recipe.

    References:
        The companion's own sizes, after the shallow perceptron of Simon et al. (2023).
    """
    rate, scale = {"barlow_twins": (0.01, 0.2), "vicreg": (0.02, 0.2), "simclr": (0.2, 0.05)}[loss]
    options = train.Options(updates, pairs, lr=rate, weight_decay=0.0, cosine=False)
    encoder = partial(_perceptron, (inputs, 256, k))
    return Recipe(loss, encoder, options, scale=scale if small else 1.0)


def _perceptron(sizes: tuple[int, ...], generator: torch.Generator) -> encoders.Encoder:
    return encoders.mlp(sizes, generator=generator)


def small_cnn(loss: str, images: ImageSet, *, k: int = 8, small: bool = True, updates: int = 400) -> Recipe:
    """Three convolutions with batch norm and a linear embedding, on batches of 256 pairs.

    SGD with momentum 0.9 at a constant rate of 0.003, 0.01 and 0.1 for Barlow Twins, VICReg and SimCLR; a small start
    scales the last layer by 0.01.

    Args:
        loss: one of `LOSSES`.
        images: the set, for its size and channels.
        k: dimension of the embedding.
        small: a small start, else PyTorch's own.
        updates: number of them.

    Returns:
        The recipe.
    """
    _, channels, size, _ = images.images.shape
    rate = {"barlow_twins": 0.003, "vicreg": 0.01, "simclr": 0.1}[loss]
    options = train.Options(updates, min(256, len(images)), lr=rate, weight_decay=0.0, cosine=False)

    def encoder(generator: torch.Generator) -> encoders.Encoder:
        return encoders.small_cnn(channels, 64, k, size=size, width=8, hidden=None, generator=generator)

    return Recipe(loss, encoder, options, scale=0.01 if small else 1.0, last_only=True)


def resnet(
    loss: str, *, depth: int = 50, k: int = 50, scale: float = 0.01, epochs: int = 100, n: int = 105_000
) -> Recipe:
    """A deep network at the paper's scale: hours on a GPU.

    ResNet with torchvision's own stem and one linear layer to k = 50 dimensions, plain SGD without momentum at a
    constant rate of 1e-5, 1e-4 and 0.1 for Barlow Twins, VICReg and SimCLR, batch 256. The paper's widths, rates and
    batch sizes are not known to us: these are ours. Barlow Twins needs its small rate, since features of squared length
    5000 that share a mean have a mode of gamma = 5000, and gradient descent diverges above a rate of 1 / (4 gamma).

    A small start scales the last layer only. What batch norm follows hardly feels a factor on its weights (not at all,
    but for batch norm's eps), but learns faster by the inverse square of it, and the running averages fall behind.

    Args:
        loss: one of `LOSSES`.
        depth: 18 or 50.
        k: dimension of the embedding.
        scale: factor on the last layer's weights; 0.01, 0.1 and 1 are worth a look.
        epochs: passes over the images.
        n: number of images.

    Returns:
        The recipe.

    References:
        Simon et al. (2023), section 6, for architecture, data and losses.
    """
    rate = {"barlow_twins": 1e-5, "vicreg": 1e-4, "simclr": 0.1}[loss]
    updates = epochs * max(1, n // 256)
    options = train.Options(
        updates, min(256, n), lr=rate, momentum=0.0, weight_decay=0.0, cosine=False, bf16=True, channels_last=True
    )

    def encoder(generator: torch.Generator) -> encoders.Encoder:
        body = encoders.resnet(depth, k, (), "imagenet", generator=generator)
        features = 2048 if depth == 50 else 512
        head = encoders.seeded(lambda: nn.Linear(features, k), generator)
        return encoders.Encoder(body.backbone, head)

    return Recipe(loss, encoder, options, scale=scale, last_only=True)


def crop_pairs(
    images: UInt8[Tensor, "n 1 h w"], side: int, generator: torch.Generator, pool: int = 1
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """Two crops of each image at random places, as vectors, with the mean of all 2n of them removed.

    Args:
        images: grey images.
        side: of a crop, in pixels after pooling.
        generator: source of the places.
        pool: average blocks of pool x pool pixels first.

    Returns:
        First and second views, float32, m = side^2.

    Raises:
        ValueError: the images are not grey, or the crop is larger than the image.
    """
    if images.ndim != 4 or images.shape[1] != 1:
        raise ValueError(f"crop_pairs: expected grey images (n, 1, h, w), got shape {tuple(images.shape)}")
    x = nn.functional.avg_pool2d(images.float() / 255, pool)
    n, _, h, w = x.shape
    if side > min(h, w):
        raise ValueError(f"crop_pairs: expected a side of at most {min(h, w)} pixels, got {side}")
    views = []
    for _ in range(2):
        top = torch.randint(h - side + 1, (n, 1), generator=generator) + torch.arange(side)
        left = torch.randint(w - side + 1, (n, 1), generator=generator) + torch.arange(side)
        views.append(x[torch.arange(n)[:, None, None], 0, top[:, :, None], left[:, None, :]].flatten(1))
    mean = torch.cat(views).mean(0)
    return views[0] - mean, views[1] - mean
