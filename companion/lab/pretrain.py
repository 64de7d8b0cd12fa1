r"""Contrastive pre-training of an image encoder: a small recipe, the authors', and their linear evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.lab import augment, distributed, encoders, fetch, train
from companion.lab.data import ImageSet
from companion.theory import direct_predictor, graph_attention, losses


@dataclass(frozen=True)
class Recipe:
    r"""Everything that decides a pre-training run but its seed.

    Attributes:
        loss: "spectral" or "info_nce".
        encoder: from a generator of weights to an encoder.
        augmentation: the views.
        options: of the training loop; its seed is replaced by that of `run`.
        mu: $\mu$, weight of repulsion in the spectral loss; features lie in the unit ball, which is the paper's
            ball of radius $\sqrt\mu$ after scaling by $\sqrt\mu$.
        temperature: of InfoNCE.
    """

    loss: str
    encoder: Callable[[torch.Generator], encoders.Encoder]
    augmentation: augment.Augmentation
    options: train.Options
    mu: float = 1.0
    temperature: float = 0.5

    def objective(self, z1: Float[Tensor, "n k"], z2: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
        r"""Loss of a batch, $-\frac2n\sum g_i^\top g_i^++\frac\mu{n(n-1)}\sum_{i\ne j}(g_i^\top g_j^+)^2$ or NT-Xent.

        Rows of $z$ longer than $\sqrt\mu$ are rescaled to that length, and $g=z/\sqrt\mu$; InfoNCE takes cosines.

        Raises:
            ValueError: `loss` is neither of the two.
        """
        if self.loss == "spectral":
            g1, g2 = (losses.clip_to_ball(z, self.mu**0.5) / self.mu**0.5 for z in (z1, z2))
            # one process may take the cheaper form (`benchmarks/RECORDS.md`, spectral_loss)
            add = distributed.sum_over_workers if distributed.workers() > 1 else None
            return losses.spectral_contrastive(g1, g2, self.mu, sum_over_workers=add)
        if self.loss == "info_nce":
            return losses.info_nce(z1, z2, self.temperature, gather=distributed.gather)
        raise ValueError(f'loss of a recipe: expected "spectral" or "info_nce", found {self.loss!r}')


def small(images: ImageSet, loss: str = "spectral", *, k: int = 64, mu: float = 10.0, steps: int = 400) -> Recipe:
    """A three-layer network on small grey images: minutes on two cores.

    SGD 0.06 with momentum 0.9 and weight decay 5e-4, cosine, batch 256.

    Args:
        images: the set, for its size and channels.
        loss: "spectral" or "info_nce".
        k: dimension of the features.
        mu: weight of repulsion.
        steps: updates.

    Returns:
        The recipe.
    """
    _, channels, size, _ = images.images.shape

    def encoder(generator: torch.Generator) -> encoders.Encoder:
        return encoders.small_cnn(channels, 128, k, size=size, generator=generator)

    views = augment.digits() if images.name == "digits" else augment.fashion()
    return Recipe(loss, encoder, views, train.Options(steps, channels_last=True), mu=mu)


def authors(images: ImageSet, loss: str = "spectral", *, epochs: int = 800) -> Recipe:
    """The authors' configuration for CIFAR: hours on a GPU.

    ResNet-18 with a 3 x 3 stem, projector 512-2048-1000, mu 1, SGD 0.06 with momentum 0.9 and weight decay 5e-4, ten
    epochs of warm-up, cosine, batch 512.

    Args:
        images: the set, for its size.
        loss: "spectral" or "info_nce".
        epochs: passes over the images.

    Returns:
        The recipe.

    References:
        HaoChen et al. (2021), section 6 and Table 1, and the authors' published configuration.
    """
    n, channels, size, _ = images.images.shape
    batch = min(512, n)
    steps = ceil(n / batch)

    def encoder(generator: torch.Generator) -> encoders.Encoder:
        return encoders.resnet(18, 1000, (2048,), "cifar", channels=channels, generator=generator)

    options = train.Options(
        epochs * steps, batch, lr=0.06, warmup_steps=min(10, epochs // 2) * steps, bf16=True, channels_last=True
    )
    return Recipe(loss, encoder, augment.cifar(size), options)


def run(
    images: ImageSet,
    recipe: Recipe,
    seed: int,
    *,
    pairs: train.Pairs | None = None,
    checkpoint: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> encoders.Encoder:
    """Pre-train one encoder.

    Args:
        images: what to train on; labels are not looked at.
        recipe: the configuration.
        seed: of weights, batches and views.
        pairs: another source of positive pairs, for controls.
        checkpoint: file that a killed run continues from.
        device: where to train.

    Returns:
        The encoder, in evaluation mode.
    """
    encoder = recipe.encoder(torch.Generator().manual_seed(seed)).to(device)
    source = pairs or train.image_pairs(images.images.to(device), recipe.augmentation)
    what = f"{recipe.loss}, seed {seed}"
    train.fit(encoder, source, recipe.objective, replace(recipe.options, seed=seed), what=what, checkpoint=checkpoint)
    return encoder


def checkpoint(name: str) -> Path:
    """Where a long run keeps its state, ``checkpoints/<name>-<hash>.pt`` beside the fetched data.

    The hash is that of the code that trains, this package with its sub-packages but those of languages, the losses and
    the rules that set a predictor or weigh a batch, so that a state never outlives a change of it.

    Args:
        name: of the run.

    Returns:
        The file; its folder exists.
    """
    digest = hashlib.sha256()
    here = Path(__file__).parent
    others = {here / "languages", here / "masked"}  # these train no images
    sources = [file for file in sorted(here.rglob("*.py")) if others.isdisjoint(file.parents)]
    sources += sorted(Path(str(losses.__file__)).parent.glob("*.py"))
    for source in (*sources, *(Path(str(module.__file__)) for module in (direct_predictor, graph_attention))):
        digest.update(source.read_bytes())
    path = fetch.store() / "checkpoints" / f"{name}-{digest.hexdigest()[:12]}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class _Frozen(nn.Module):
    """Features of an encoder that stays as it is, whatever mode the model around it is put in."""

    def __init__(self, encoder: encoders.Encoder) -> None:
        super().__init__()
        self.encoder = [encoder.eval()]  # in a list: its parameters are not the model's

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.encoder[0].features(x).float()


def linear_evaluation(
    encoder: encoders.Encoder,
    train_set: ImageSet,
    test_set: ImageSet,
    augmentation: augment.Augmentation,
    *,
    epochs: int = 100,
    seed: int = 0,
) -> float:
    """The authors' linear evaluation: a head trained by SGD on the frozen backbone, accuracy after the last epoch.

    SGD 30 with momentum 0.9 and no weight decay, batch 256, rate x 0.1 at 60 % and 80 % of the epochs, crops and
    flips of the training images, head drawn from a normal distribution of standard deviation 0.01.

    Args:
        encoder: pre-trained.
        train_set: images and labels for the head.
        test_set: images and labels to count on.
        augmentation: that of pre-training; only its crop and flip are used.
        epochs: batches are drawn with replacement; so many times the size of the training set are drawn in all.
        seed: of the head and its batches.

    Returns:
        Accuracy in [0, 1].

    Raises:
        RuntimeError: under several workers.
    """
    if distributed.workers() > 1:
        raise RuntimeError("linear_evaluation: expected one process, found several workers; call it on one, afterwards")
    device = next(encoder.parameters()).device
    batch = min(256, len(train_set)) // 2 * 2
    steps = epochs * ceil(len(train_set) / batch)
    frozen = _Frozen(encoder)
    d = frozen(augmentation.clean(train_set.images[:1].to(device))).shape[1]
    head = nn.Linear(d, len(train_set.classes))
    nn.init.normal_(head.weight, 0.0, 0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(head.bias)
    weak = replace(augmentation, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0, blur=None, noise=0.0)
    images, labels = train_set.images.to(device), train_set.labels.to(device)
    drawn: list[Tensor] = []

    def halves(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # the loop trains on two views; here they are two halves of one batch of labelled images
        index = torch.randint(len(images), (2 * n,), generator=generator, device=device)
        drawn[:] = [labels[index]]
        x1, x2 = weak(images[index], generator).chunk(2)
        return x1, x2

    def cross_entropy(z1: Tensor, z2: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.cat([z1, z2]), drawn[0])

    model = nn.Sequential(frozen, head.to(device))
    falls = (steps * 6 // 10, steps * 8 // 10)
    options = train.Options(steps, batch // 2, lr=30.0, weight_decay=0.0, cosine=False, milestones=falls, seed=seed)
    train.fit(model, halves, cross_entropy, options, what="linear evaluation")
    with torch.inference_mode():
        batches = test_set.images.split(1000)
        scores = torch.cat([model(augmentation.clean(x.to(device))).cpu() for x in batches])
    return float((scores.argmax(1) == test_set.labels).double().mean())
