"""Recipes for Siamese networks without negatives: a small one and the authors', watched; their linear evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from companion.lab import augment, distributed, encoders, train
from companion.lab.alignment_watch import AlignmentWatch
from companion.lab.byol import Siamese, objective
from companion.lab.data import ImageSet
from companion.lab.predictors import Predictor, Trained, plain_batch_norm
from companion.lab.probe import standardised

__all__ = ["AlignmentWatch", "Recipe", "small", "authors", "run", "linear_evaluation"]

#: Views of Fashion-MNIST for our small runs.
SMALL = augment.Augmentation(area=(0.55, 1.0), flip=0.5, brightness=0.4, contrast=0.2)
#: The authors' views of CIFAR-10: moments as in their code, no blur.
CIFAR10 = augment.Augmentation(
    area=(0.08, 1.0), flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grey=0.2,
    mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010),
)  # fmt: skip
#: The authors' views of STL-10: stronger colours, always blurred, not normalised.
STL10 = augment.Augmentation(
    area=(0.08, 1.0), flip=0.5, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, jitter=0.8, grey=0.2,
    blur=(0.1, 2.0),
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run but its data and its seed.

    Attributes:
        encoder: from a generator of weights to an encoder.
        predictor: from a generator of weights to a predictor.
        augmentation: the views.
        options: of the training loop; its seed is replaced by that of `run`.
        momentum: of the target; 0 for none.
        stop_gradient: as for `Siamese`.
        own_target: whether a slow target starts from weights of its own, not from the encoder's.
        factor: on the loss, the mean of the two directions; 2 for their sum.
        normalize: whether the loss compares unit vectors; else it is half the squared distance, as in the theory.
    """

    encoder: Callable[[torch.Generator], encoders.Encoder]
    predictor: Callable[[torch.Generator], Predictor]
    augmentation: augment.Augmentation
    options: train.Options
    momentum: float = 0.996
    stop_gradient: bool = True
    own_target: bool = False
    factor: float = 1.0
    normalize: bool = True

    def start(self, seed: int) -> Siamese:
        """The model before training."""
        generator = torch.Generator().manual_seed(seed)
        encoder, predictor = self.encoder(generator), self.predictor(generator)
        own = self.encoder(generator) if self.own_target and self.momentum else None
        return Siamese(encoder, predictor, self.momentum, stop_gradient=self.stop_gradient, own_target=own)

    def objective(self, z1: Float[Tensor, "n width"], z2: Float[Tensor, "n width"]) -> Float[Tensor, ""]:
        """The loss of a batch."""
        return self.factor * objective(z1, z2, normalize=self.normalize)


def small(
    images: ImageSet,
    predictor: Callable[..., Predictor] = Trained,
    *,
    k: int = 32,
    pool: int = 1,
    steps: int = 2000,
    **changes: Any,
) -> Recipe:
    """A perceptron on small grey images: seconds to minutes on two cores.

    Pixels to 256 to 128 units with batch norm and ReLU each; projector 128 to 128, batch norm without scale and shift,
    ReLU, to k. SGD 0.03 without schedule, momentum 0.9, weight decay 4e-4, batch 128; momentum of the target 0.996.

    Args:
        images: the set, for its size and channels.
        predictor: of k and ``generator=``; ``functools.partial(Direct, rule=..., rho=0.3)``, say.
        k: width of the embedding.
        pool: average blocks of pool x pool pixels first.
        steps: updates.
        changes: other attributes of the recipe.

    Returns:
        The recipe.

    References:
        The companion's own sizes; rates, batch and momenta as in `authors`.
    """

    def build() -> encoders.Encoder:
        return encoders.Encoder(perceptron(images, pool), _projector(128, 128, k))

    recipe = Recipe(partial(encoders.seeded, build), partial(_predictor, predictor, k), SMALL, _options(steps, images))
    return replace(recipe, **changes)


def authors(
    images: ImageSet, predictor: Callable[..., Predictor] = Trained, *, epochs: int = 100, **changes: Any
) -> Recipe:
    """The authors' configuration for CIFAR-10 or STL-10: hours on a GPU.

    ResNet-18 (on CIFAR-10 with a 3 x 3 stem), projector 512-512-128, batch norm without scale and shift, ReLU; SGD 0.03
    without schedule, momentum 0.9, weight decay 4e-4 on all parameters, batch 128; momentum of the target 0.996, the
    target's first weights its own; both directions of the loss added up. Other than theirs: both views go through
    batch norm together, batches are drawn with replacement, the forward pass is in bfloat16.

    Args:
        images: the set, for its name and size.
        predictor: of k = 128 and ``generator=``. Theirs are ``Trained`` (in their default, with symmetric=True),
            ``partial(Trained, hidden=512)``, and ``partial(Direct, rule=..., rho=0.3)``.
        epochs: passes over the images.
        changes: other attributes of the recipe; ``momentum=0.0`` for no slow target.

    Returns:
        The recipe.

    Raises:
        ValueError: another set of images.

    References:
        Tian et al. (2021), section 5, and the authors' published configuration.
    """
    views = {"cifar10": CIFAR10, "stl10": STL10}
    if images.name not in views:
        raise ValueError(f"authors: expected images of {' or '.join(views)}, found {images.name!r}; `small` takes any")

    def encoder(generator: torch.Generator) -> encoders.Encoder:
        stem = "cifar" if images.name == "cifar10" else "imagenet"
        body = encoders.resnet(18, 128, (), stem, generator=generator)
        return encoders.Encoder(body.backbone, encoders.seeded(lambda: _projector(512, 512, 128), generator))

    options = _options(epochs * ceil(len(images) / 128), images, bf16=True, channels_last=True)
    recipe = Recipe(
        encoder, partial(_predictor, predictor, 128), views[images.name], options, own_target=True, factor=2.0
    )
    return replace(recipe, **changes)


def perceptron(images: ImageSet, pool: int = 1) -> nn.Sequential:
    """Pixels, averaged over blocks of pool x pool, to 256 to 128 units with batch norm and ReLU each."""
    _, channels, size, _ = images.images.shape
    layers: list[nn.Module] = [nn.AvgPool2d(pool), nn.Flatten()]
    for width_in, width_out in ((channels * (size // pool) ** 2, 256), (256, 128)):
        layers += [nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out), nn.ReLU()]
    return nn.Sequential(*layers)


def _predictor(build: Callable[..., Predictor], k: int, generator: torch.Generator) -> Predictor:
    return build(k, generator=generator)


def _projector(d: int, hidden: int, k: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d, hidden), plain_batch_norm(hidden), nn.ReLU(), nn.Linear(hidden, k))


def _options(steps: int, images: ImageSet, **changes: Any) -> train.Options:
    batch = min(128, len(images))
    return train.Options(steps, batch, lr=0.03, momentum=0.9, weight_decay=4e-4, cosine=False, **changes)


def run(
    recipe: Recipe,
    images: ImageSet,
    seed: int,
    *,
    watched: tuple[Tensor, Tensor] | int = 500,
    every: int = 50,
    checkpoint: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Siamese, AlignmentWatch]:
    """Train one model and watch its alignment.

    Args:
        recipe: the configuration.
        images: what to train on; labels are not looked at.
        seed: of weights, batches and views.
        watched: views of the images that are watched, n each; or the number of images of the set, spread evenly, of
            which two views each are drawn, the same for every seed.
        every: updates between two looks.
        checkpoint: file that a killed run continues from.
        device: where to train.

    Returns:
        The model, in evaluation mode, and what was seen. Before training, the running averages of its batch norms are
        set to the moments of the watched views.
    """
    model = recipe.start(seed).to(device)
    watch = settled(model, images, recipe.augmentation, watched)
    train.fit(
        model,
        train.image_pairs(images.images.to(device), recipe.augmentation),
        recipe.objective,
        replace(recipe.options, seed=seed),
        what=f"{type(model.predictor).__name__}, seed {seed}",
        checkpoint=checkpoint,
        observe=watch,
        observe_every=every,
    )
    return model, watch


def settled(
    model: Siamese, images: ImageSet, augmentation: augment.Augmentation, watched: tuple[Tensor, Tensor] | int
) -> AlignmentWatch:
    """A watch on the views that `run` describes, and the batch norms of an untrained model set to their moments."""
    if isinstance(watched, int):
        chosen = images.images[torch.linspace(0, len(images) - 1, min(watched, len(images))).long()]
        x1, x2 = augmentation(chosen.repeat(2, 1, 1, 1), torch.Generator().manual_seed(0)).chunk(2)
    else:
        x1, x2 = watched
    device = next(model.parameters()).device
    watch = AlignmentWatch(x1.to(device), x2.to(device))
    update_bn(watch.x.split(watch.chunk), model.encoder)  # else the first look would see running averages of nothing
    return watch


def linear_evaluation(
    train_x: Float[Tensor, "n d"],
    train_y: Int64[Tensor, " n"],
    test_x: Float[Tensor, "m d"],
    test_y: Int64[Tensor, " m"],
    *,
    epochs: int = 50,
    seed: int = 0,
) -> float:
    """The authors' linear evaluation of frozen features: accuracy after the last epoch (they report the best one).

    Features are standardised; logistic regression by Adam 3e-4 with weight decay 1e-3, batch 128.

    Args:
        train_x: features, as `probe.extract` finds them.
        train_y: labels.
        test_x: features of the test images.
        test_y: their labels.
        epochs: batches are drawn with replacement; so many times the size of the training set are drawn in all.
        seed: of the weights and batches.

    Returns:
        Accuracy in [0, 1].

    Raises:
        RuntimeError: under several workers.
    """
    if distributed.workers() > 1:
        raise RuntimeError("linear_evaluation: expected one process, found several workers; call it on one, afterwards")
    X, X_test = standardised(train_x.float(), test_x.float())
    classes = int(torch.cat([train_y, test_y]).max()) + 1
    half = max(1, min(64, len(X) // 2))
    drawn: list[Tensor] = []

    def halves(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(X), (2 * n,), generator=generator, device=X.device)
        drawn[:] = [train_y[index]]
        x1, x2 = X[index].chunk(2)  # the loop trains on two views; here they are two halves of one batch
        return x1, x2

    def cross_entropy(z1: Tensor, z2: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.cat([z1, z2]), drawn[0])

    head = encoders.seeded(lambda: nn.Linear(X.shape[1], classes), torch.Generator().manual_seed(seed)).to(X.device)
    steps = epochs * ceil(len(X) / (2 * half))
    options = train.Options(steps, half, lr=3e-4, optimizer="adam", weight_decay=1e-3, cosine=False, seed=seed)
    train.fit(head, halves, cross_entropy, options, what="linear evaluation")
    with torch.inference_mode():
        return float((head(X_test).argmax(1) == test_y).double().mean())
