r"""Fine-tunes of one encoder, and what to make of them: the best one, their soups, their ensemble.

An encoder is trained without labels. A linear probe on its features is the one start, from which fine-tunes of all
weights leave that differ in learning rate, augmentation and seed. A *uniform soup* averages the weights of all, a
*greedy soup* of those that help on images held out from training, and an *ensemble* averages logits.

The network is a perceptron with GELU, a smooth function of its weights as `thm-flat-soup` asks. Batch norm is used in
the training without labels and then folded into the weights, so that there is nothing but weights to average.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int64
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from companion.lab import augment, contrast, encoders, train
from companion.lab.data import ImageSet
from companion.lab.predictors import Identity
from companion.theory.curvature import Params


@dataclass(frozen=True)
class Recipe:
    """How encoders are trained and fine-tuned.

    Attributes:
        views: augmentation of the training without labels; all images are normalised by its mean and std.
        augmentations: of the fine-tunes.
        rates: learning rates of the fine-tunes, SGD with momentum 0.9 and a cosine.
        seeds: fine-tunes of the same rate and augmentation.
        widths: of the hidden layers; a linear map of the last one gives the logits.
        pretraining: updates of SimCLR, 128 pairs in one.
        labelled: images with labels for the probe and the fine-tunes.
        held_out: further images with labels, to choose by.
        steps: updates of a fine-tune.
        batch: images in one.
        penalty: of the linear probe's weights, for features of total variance equal to their number.
    """

    views: augment.Augmentation
    augmentations: tuple[augment.Augmentation, ...]
    rates: tuple[float, ...] = (0.01, 0.02)
    seeds: int = 2
    widths: tuple[int, ...] = (256, 128)
    pretraining: int = 200
    labelled: int = 1000
    held_out: int = 2000
    steps: int = 500
    batch: int = 64
    penalty: float = 1e-2

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("augmentations", "rates", "widths"):
            if not getattr(self, name):
                raise ValueError(f"{name} of a recipe: expected at least one, found none")
        for name in ("seeds", "pretraining", "labelled", "held_out", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a recipe: expected at least 1, found {getattr(self, name)}")

    @property
    def settings(self) -> int:
        """Number of fine-tunes of one start."""
        return len(self.rates) * len(self.augmentations) * self.seeds

    def inputs(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n p"]:
        """What the network reads of images with pixels in [0, 1]."""
        return self.views.clean(x).flatten(1)


@dataclass(frozen=True)
class Draw:
    """One encoder, its labels, and its fine-tunes.

    Attributes:
        start: the encoder with its linear probe.
        labelled, held_out: images with labels, to train on and to choose by.
        models: the fine-tunes: the seed changes first, then the augmentation, then the rate.
    """

    start: Params
    labelled: ImageSet
    held_out: ImageSet
    models: list[Params]


def recipe(images: ImageSet, **changes: Any) -> Recipe:
    """The recipe for Fashion-MNIST at 14 x 14, or for digits: less of everything. Fine-tunes see noise, or do not.

    For Fashion-MNIST the half that sees noise sees mirror images as well. Numbers and sizes are the companion's own.
    """
    if images.name == "digits":
        views = augment.digits()
        less = {"widths": (64, 32), "pretraining": 30, "labelled": 300, "held_out": 400, "steps": 60, "batch": 16}
    else:
        views, less = augment.fashion(), {}
    plain = augment.Augmentation(mean=views.mean, std=views.std)
    noisy = replace(plain, noise=0.1, flip=views.flip)
    return replace(Recipe(views, (plain, noisy)), **{**less, **changes})


def pooled(images: ImageSet, pool: int = 2) -> ImageSet:
    """The images with blocks of pool x pool pixels averaged, rounded to whole grey values."""
    small = functional.avg_pool2d(images.images.float(), pool).round().to(torch.uint8)
    return replace(images, images=small)


def hidden(params: Params, x: Float[Tensor, "*S n p"], layers: int) -> Float[Tensor, "*S n q"]:
    """The hidden layer number `layers` of the network."""
    for layer in range(layers):
        x = functional.gelu(x @ params[f"W{layer}"] + params[f"b{layer}"].unsqueeze(-2))
    return x


def network(params: Params, x: Float[Tensor, "*S n p"]) -> Float[Tensor, "*S n V"]:
    """Logits of the perceptron with weights W0, b0, W1, b1, ..., which may have leading axes, one a network.

    >>> network({"W0": torch.tensor([[2.0], [1.0]]), "b0": torch.tensor([0.5])}, torch.tensor([[1.0, 3.0]]))
    tensor([[5.5000]])
    """
    last = len(params) // 2 - 1
    return hidden(params, x, last) @ params[f"W{last}"] + params[f"b{last}"].unsqueeze(-2)


def pretrained(how: Recipe, images: ImageSet, seed: int) -> Params:
    """The hidden layers of an encoder after SimCLR on all images without their labels, batch norms folded in."""
    sizes = (prod(images.images.shape[1:]), *how.widths)

    def build() -> encoders.Encoder:
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(sizes):
            layers += [nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out), nn.GELU()]
        return encoders.Encoder(nn.Sequential(*layers), encoders.projector((sizes[-1], 128, 64)))

    options = train.Options(how.pretraining, min(128, len(images)), lr=0.1)
    made = contrast.Recipe("simclr", partial(encoders.seeded, build), lambda _: Identity(), 64, how.views, options)
    model, _ = contrast.run(made, images, seed, watched=64, every=how.pretraining)
    layers = [layer for layer in model.encoder.backbone.children() if not isinstance(layer, nn.GELU)][1:]
    return fold(zip(layers[::2], layers[1::2], strict=True))  # type: ignore[arg-type]


@torch.no_grad()
def fold(layers: Iterable[tuple[nn.Linear, nn.BatchNorm1d]]) -> Params:
    """The weights, (in, out), and biases of linear maps that do what a linear map and its batch norm do at rest."""
    params: Params = {}
    for number, (linear, norm) in enumerate(layers):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        params[f"W{number}"] = (linear.weight * factor[:, None]).T.clone()
        params[f"b{number}"] = norm.bias - norm.running_mean * factor
    return params


def with_probe(body: Params, x: Float[Tensor, "n p"], y: Int64[Tensor, " n"], classes: int, penalty: float) -> Params:
    """The hidden layers and a last layer found by logistic regression on what they make of `x`.

    Features are divided by one number, the root of their mean variance: a penalty on each by its own scale would make
    large weights of features that hardly vary.

    Raises:
        ValueError: a class has no label.
    """
    if len(missing := set(range(classes)) - set(y.tolist())):
        raise ValueError(
            f"with_probe: expected labels of {classes} classes, found none of {sorted(missing)}; label more"
        )
    depth = len(body) // 2
    h = hidden(body, x, depth).double()
    mean, scale = h.mean(0), h.var(0, correction=0).mean().sqrt()
    model = LogisticRegression(C=1 / (penalty * len(h)), max_iter=5000, tol=1e-4)
    model.fit(((h - mean) / scale).numpy(), y.numpy())
    W = torch.from_numpy(model.coef_).T / scale
    b = torch.from_numpy(model.intercept_) - mean @ W
    return {**body, f"W{depth}": W.to(x.dtype), f"b{depth}": b.to(x.dtype)}


class FineTunes(nn.Module):
    """Networks that are trained side by side: `each` copies of every start, stacked on a leading axis."""

    def __init__(self, starts: Sequence[Params], each: int) -> None:
        super().__init__()
        stacked = {name: torch.stack([start[name] for start in starts]) for name in starts[0]}
        self.weights = nn.ParameterDict({name: p.repeat_interleave(each, 0) for name, p in stacked.items()})

    def forward(self, x: Float[Tensor, "S n p"]) -> Float[Tensor, "S n V"]:
        """Logits, each network on its own rows."""
        return network(dict(self.weights.items()), x)

    def params(self) -> list[Params]:
        """The networks, one by one."""
        count = len(next(iter(self.weights.values())))
        return [{name: p.detach()[i].clone() for name, p in self.weights.items()} for i in range(count)]


def fine_tune(how: Recipe, starts: Sequence[Params], labelled: Sequence[ImageSet], seed: int) -> list[list[Params]]:
    r"""Train all weights on labels: every start with every rate, augmentation and seed, all at once.

    The rate $\eta_i$ of a network is a factor of its loss: SGD with momentum at rate one on $\sum_i\eta_i\mathcal L_i$
    moves each network as SGD with momentum at its own rate does. Networks of one start and seed see the same images.

    Args:
        how: the recipe.
        starts: where to start, one a draw.
        labelled: images with labels, equally many, one set a draw.
        seed: of batches and augmentations.

    Returns:
        For each start its fine-tunes, in the order of `Draw`.

    Raises:
        FloatingPointError: a rate is too large.
    """
    images, labels = (torch.stack([getattr(s, name) for s in labelled]) for name in ("images", "labels"))
    many, rows = (len(starts), len(how.rates), len(how.augmentations), how.seeds), how.seeds * how.batch
    rate = torch.tensor(how.rates)[:, None, None].expand(many).flatten()
    draw = torch.arange(len(starts))[:, None]
    model = FineTunes(starts, how.settings)

    def objective(generator: torch.Generator) -> Tensor:
        index = torch.randint(images.shape[1], (len(starts), rows), generator=generator)
        x, y = images[draw, index].flatten(0, 1), labels[draw, index].view(-1, 1, 1, how.seeds, how.batch)
        seen = [a(x, generator).view(len(starts), 1, 1, how.seeds, how.batch, -1) for a in how.augmentations]
        views = torch.cat(seen, 2).expand(*many, how.batch, -1).flatten(0, 3)
        z = model(views).flatten(0, 1)
        losses = functional.cross_entropy(z, y.expand(*many, how.batch).flatten(), reduction="none")
        return rate @ losses.view(-1, how.batch).mean(1)

    options = train.Options(how.steps, how.batch, lr=1.0, weight_decay=0.0, log_every=1000, seed=seed)
    train.descend(model, objective, options, what="fine-tuning")
    found = model.params()
    return [found[i : i + how.settings] for i in range(0, len(found), how.settings)]


def draws(how: Recipe, images: ImageSet, repetitions: int, seed: int) -> list[Draw]:
    """Encoders from different random weights, each with labelled and held-out images of its own, and fine-tunes.

    Args:
        how: the recipe.
        images: training images; all serve to train encoders.
        repetitions: number of encoders.
        seed: of the first; the others have the seeds that follow.

    Raises:
        ValueError: there are too few images.
    """
    if len(images) < how.labelled + how.held_out:
        wanted = f"{how.labelled} to train on and {how.held_out} to choose by"
        raise ValueError(f"draws: expected at least {wanted}, found {len(images)} images")
    starts: list[Params] = []
    splits: list[tuple[ImageSet, ImageSet]] = []
    for number in range(seed, seed + repetitions):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(number))
        labelled = images.subset(order[: how.labelled])
        held_out = images.subset(order[how.labelled : how.labelled + how.held_out])
        body = pretrained(how, images, number)
        starts.append(with_probe(body, how.inputs(labelled.float()), labelled.labels, len(images.classes), how.penalty))
        splits.append((labelled, held_out))
    models = fine_tune(how, starts, [labelled for labelled, _ in splits], seed)
    return [Draw(start, *split, found) for start, split, found in zip(starts, splits, models, strict=True)]
