r"""SimCLR with attention, SimSiam with a memory, alignment alone: recipes, small ones and the authors', and a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from companion.lab import alignment, augment, distributed, encoders, train
from companion.lab.alignment_watch import AlignmentWatch
from companion.lab.contrast_network import Network
from companion.lab.data import ImageSet
from companion.lab.predictors import Identity, Predictor, Trained, plain_batch_norm
from companion.theory import graph_attention, losses

METHODS = (
    "simclr", "simclr-attn", "simclr-shuffled", "simsiam", "simsiam-multi", "simsiam-average", "alignment",
)  # fmt: skip
#: The views of ImageNet-100 for SimSiam, and with colours changed twice as much for SimCLR.
IMAGENET = replace(augment.cifar(224), area=(0.08, 1.0))
STRONG = replace(IMAGENET, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
#: Updates of SimCLR and epochs of SimSiam in the authors' published configurations.
RELEASED = {"cifar10": (19_200, 1000), "cifar100": (19_200, 1000), "folder": (125_100, 400)}


@dataclass(frozen=True)
class Recipe:
    r"""Everything that decides a run but its data and its seed.

    Attributes:
        method: "simclr"; "simclr-attn", anchors weighted by how alike the encoder's features of both views are;
            "simclr-shuffled", its control, which deals them to other images; "simsiam"; "simsiam-multi", the target is
            the mean of several stages; "simsiam-average", its control, the target is the mean of both present views;
            "alignment", no negatives, no predictor, gradients through both sides.
        encoder: from a generator of weights to an encoder.
        predictor: from a generator of weights to a predictor.
        k: width of the embedding.
        augmentation: the views.
        options: of the training loop; its seed is replaced by that of `run`.
        temperature: $\tau$ of SimCLR.
        beta: $\beta\ge0$, inverse temperature of attention; 0 gives equal weights, which is SimCLR.
        stages: r of "simsiam-multi", the present one included: the other view and the r - 1 latest visits of the image.
        after: updates of plain SimSiam before "simsiam-multi" or "simsiam-average" has a target of its own.
        centre: of "alignment": the target is taken as constant and less a running mean, which keeps this share of
            itself when the batch's own mean comes in; 0 for that of the batch, None for the embedding as it is.
        stop_gradient: of "alignment" without centre: whether each side takes the other as constant.
        normalize: whether "alignment" compares unit vectors (after centring); else squared distances as they are.
        constant: whether the predictor learns at a rate without schedule.
    """

    method: str
    encoder: Callable[[torch.Generator], encoders.Encoder]
    predictor: Callable[[torch.Generator], Predictor]
    k: int
    augmentation: augment.Augmentation
    options: train.Options
    temperature: float = 0.5
    beta: float = 1.0
    stages: int = 2
    after: int = 0
    centre: float | None = None
    stop_gradient: bool = False
    normalize: bool = True
    constant: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.method not in METHODS:
            raise ValueError(f"method of a recipe: expected one of {', '.join(METHODS)}, found {self.method!r}")
        centred = self.centre is None or (self.method == "alignment" and 0 <= self.centre < 1)
        rules = {
            "temperature": (self.temperature > 0, "a positive number"),
            "beta": (0 <= self.beta < torch.inf, "a finite number, 0 or more"),
            "stages": (self.stages >= 2, "at least 2, the present one and one that is remembered"),
            "after": (self.after >= 0, "0 updates or more"),
            "centre": (centred, 'None, or for "alignment" a number in [0, 1)'),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise ValueError(f"{name} of a recipe: expected {expected}, found {getattr(self, name)}")

    def start(self, seed: int, images: int) -> Network:
        """The model before training, for so many images."""
        generator = torch.Generator().manual_seed(seed)
        encoder, predictor = self.encoder(generator), self.predictor(generator)
        remembered = {"images": images, "stages": self.stages - 1} if self.method == "simsiam-multi" else {}
        more = {"centre": self.centre, "constant": self.constant, "seed": seed}
        return Network(encoder, predictor, k=self.k, **remembered, **more)

    def objective(
        self, model: Network, rows1: Float[Tensor, "n width"], rows2: Float[Tensor, "n width"]
    ) -> Float[Tensor, ""]:
        """The loss of a batch; under several workers that of the batch of all."""
        (p1, z1, h1), (p2, z2, h2) = model.parts(rows1), model.parts(rows2)
        if self.method == "simclr":
            return losses.info_nce(z1, z2, self.temperature, distributed.gather)
        if self.method.startswith("simclr"):
            h1, h2 = (distributed.gather(h.detach()) for h in (h1, h2))
            weights = graph_attention.batch_attention(h1, h2, self.beta)
            if self.method == "simclr-shuffled":
                order = model.permutation(len(h1))  # of images: both views of one share their weight, as before
                weights = weights[torch.cat([order, order + len(order)])]
            return losses.attentive_info_nce(z1, z2, self.temperature, weights, distributed.gather)
        if self.method == "alignment":
            value = self._alignment(model, z1, z2)
        elif (multi := self.method == "simsiam-multi") or self.method == "simsiam-average":
            memory, stored = model.recall() if multi else ((z1 + z2)[None] / 2, torch.ones_like(z1[:, 0]).long())
            stored = torch.where(model.updates >= self.after, stored, 0)
            value = losses.multi_stage(p1, p2, z1, z2, memory, stored, current=multi)
        else:
            value = losses.simsiam(p1, p2, z1, z2)
        return cast(Tensor, distributed.sum_over_workers(value) / distributed.workers())

    def _alignment(self, model: Network, z1: Tensor, z2: Tensor) -> Tensor:
        def unit(z: Tensor) -> Tensor:
            return functional.normalize(z, dim=1) if self.normalize else z

        if self.centre is None:
            return losses.alignment(unit(z1), unit(z2), stop_gradient=self.stop_gradient)
        mean = model.moved_mean(torch.cat([z1, z2]))
        one, other = (losses.byol(unit(z), unit(t - mean), normalize=False) for z, t in ((z1, z2), (z2, z1)))
        return (one + other) / 2


def small(
    images: ImageSet,
    method: str = "simclr",
    *,
    k: int = 64,
    pool: int = 1,
    steps: int = 400,
    batch: int = 128,
    lr: float = 0.1,
    batch_norm: bool = True,
    hidden: tuple[int, ...] | None = None,
    **changes: Any,
) -> Recipe:
    """The perceptron of `alignment.small` on small grey images: seconds on one core.

    Pixels to 256 to 128 units; head 128 to 128 to k for SimCLR, one layer of 128 more for SimSiam and alignment, with
    batch norm after every linear layer; predictor k to k / 4 to k. SGD with momentum 0.9, weight decay 5e-4, cosine.

    Args:
        images: the set, for its size and channels.
        method: one of `METHODS`.
        k: width of the embedding.
        pool: average blocks of pool x pool pixels first; 2 for Fashion-MNIST at 14 x 14.
        steps: updates.
        batch: positive pairs in one.
        lr: largest learning rate.
        batch_norm: whether there are batch norms in the head.
        hidden: widths of the head's hidden layers; None for those above.
        changes: other attributes of the recipe.

    Returns:
        The recipe.

    References:
        The companion's own sizes and rates.
    """
    hidden = ((128,) if method.startswith("simclr") else (128, 128)) if hidden is None else hidden

    def build() -> encoders.Encoder:
        return encoders.Encoder(alignment.perceptron(images, pool), _head((128, *hidden, k), method, batch_norm))

    options, predictor = (
        train.Options(steps, min(batch, len(images)), lr),
        partial(_predictor, method, k, max(1, k // 4)),
    )
    recipe = Recipe(method, partial(encoders.seeded, build), predictor, k, alignment.SMALL, options)
    return replace(recipe, **changes)


def authors(
    images: ImageSet,
    method: str = "simclr",
    depth: int = 18,
    *,
    epochs: int | None = None,
    batch_norm: bool = True,
    **changes: Any,
) -> Recipe:
    """The configurations that the authors published, for CIFAR and a folder with ImageNet-100: hours on a GPU.

    SimCLR: LARS 1.0 (CIFAR, 1 % warm-up) or 1.2 (ImageNet-100, 10 %), cosine, weight decay 1e-6, batch 512, temperature
    0.7 or 0.1, head d-d-128. SimSiam: SGD 0.5 x batch / 256, ten epochs of warm-up, cosine, weight decay 1e-5, batch
    256 or 128, projector d-2048-2048-2048, predictor 2048-512-2048 at a constant rate, memory used after 51 epochs
    (after a quarter of a run of fewer than 204). Batch norm after every linear layer of a head, in SimSiam's last one
    without scale and shift. "alignment" is SimSiam without its predictor.

    Other than theirs: both views go through batch norm together; batches are drawn with replacement, so that a stage is
    a visit and not an epoch; one GPU; bfloat16. Images of a folder are resized and centre-cropped when they are loaded,
    and what is cropped at random is that square, where theirs is the whole picture at its own resolution. CIFAR-100 is
    not in their code and gets CIFAR-10's configuration. Not known: how many epochs stand behind the tables (the
    accuracies suggest fewer than here), and whether ImageNet-100 is blurred for SimSiam; here it is, half of the time.

    Args:
        images: the set, for its name ("cifar10", "cifar100" or "folder") and number; of a folder at size 224.
        method: one of `METHODS`.
        depth: 18 or 50, of the ResNet; with a 3 x 3 stem on CIFAR.
        epochs: passes over the images; None for the published length, `RELEASED`.
        batch_norm: whether there are batch norms in the head.
        changes: other attributes of the recipe.

    Returns:
        The recipe.

    Raises:
        ValueError: another set of images.

    References:
        Wang et al. (2023), the authors' published code; Chen et al. (2020) and Chen and He (2021), which it builds on.
    """
    if images.name not in RELEASED:
        raise ValueError(f"authors: expected images of {', '.join(RELEASED)}, found {images.name!r}; `small` takes any")
    folder, simclr, d = images.name == "folder", method.startswith("simclr"), {18: 512, 50: 2048}.get(depth, 0)
    batch = min(512 if simclr else 128 if folder else 256, len(images))
    epoch, (updates, passes) = ceil(len(images) / batch), RELEASED[images.name]
    steps = updates if epochs is None and simclr else (epochs or passes) * epoch
    k, hidden = (128, (d,)) if simclr else (2048, (2048, 2048))
    if simclr:
        rates = {"optimizer": "lars", "lr": 1.2 if folder else 1.0, "weight_decay": 1e-6}
        rates["warmup_steps"] = steps // (10 if folder else 100)
    else:
        rates = {"lr": 0.5 * batch / 256, "weight_decay": 1e-5, "warmup_steps": min(10 * epoch, steps // 2)}

    def encoder(generator: torch.Generator) -> encoders.Encoder:
        backbone = encoders.resnet(depth, k, (), "imagenet" if folder else "cifar", generator=generator).backbone
        head = encoders.seeded(lambda: _head((d, *hidden, k), method, batch_norm), generator)
        return encoders.Encoder(backbone, head)

    views = (STRONG if simclr else IMAGENET) if folder else alignment.CIFAR10
    options = train.Options(steps, batch, **rates, bf16=True, channels_last=True, checkpoint_every=2000)
    recipe = Recipe(method, encoder, partial(_predictor, method, k, 512), k, views, options, constant=True)
    return replace(recipe, **{"temperature": 0.1 if folder else 0.7, "after": min(51 * epoch, steps // 4), **changes})


def _head(sizes: tuple[int, ...], method: str, batch_norm: bool) -> nn.Sequential:
    """Linear layers with batch norms, SimSiam's last one without scale and shift, or with none at all."""
    head = encoders.projector(sizes)
    if not batch_norm:
        linear = [nn.Linear(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)]
        return nn.Sequential(*[part for layer in linear for part in (layer, nn.ReLU())][:-1])
    if not method.startswith("simclr"):
        head[-1] = plain_batch_norm(sizes[-1])
    return head


def _predictor(method: str, k: int, hidden: int, generator: torch.Generator) -> Predictor:
    if method.startswith("simsiam"):
        return Trained(k, hidden=hidden, bias=True, affine=True, generator=generator)
    return Identity()


def run(
    recipe: Recipe,
    images: ImageSet,
    seed: int,
    *,
    watched: tuple[Tensor, Tensor] | int = 500,
    every: int = 50,
    checkpoint: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Network, AlignmentWatch]:
    """Train one model and watch the spectrum of its embedding.

    Args:
        recipe: the configuration.
        images: what to train on; labels are not looked at.
        seed: of weights, batches, views, and the shuffling of weights.
        watched: as for `alignment.run`.
        every: updates between two looks.
        checkpoint: file that a killed run continues from.
        device: where to train.

    Returns:
        The model, in evaluation mode, and what was seen; ``watch.spread`` is 0 after complete collapse, ``watch.rank``
        is 1 after dimensional collapse to a line.
    """
    model = recipe.start(seed, len(images)).to(device)
    watch = alignment.settled(model, images, recipe.augmentation, watched)
    train.fit(
        model,
        model.pairs(images.images.to(device), recipe.augmentation),
        partial(recipe.objective, model),
        replace(recipe.options, seed=seed),
        what=f"{recipe.method}, seed {seed}",
        checkpoint=checkpoint,
        observe=watch,
        observe_every=every,
    )
    return model, watch
