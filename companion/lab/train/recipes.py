"""The chapters' training runs by name, for the command line: what each trains, with which losses, by which function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from companion.lab import alignment, contrast, growth, pretrain
from companion.lab.data import ImageSet
from companion.lab.train.loop import image_pairs
from companion.lab.train.options import Options

Run = Callable[[Any, ImageSet, int, Path, torch.device], nn.Module]


@dataclass(frozen=True)
class Named:
    """One entry.

    Attributes:
        says: where it comes from and what it trains.
        losses: those it knows, its default first.
        build: (images, loss, epochs or None) to the chapter's recipe, which has `options`.
        run: (recipe, images, seed, checkpoint, device) to the trained model; the function that the notebook calls.
    """

    says: str
    losses: tuple[str, ...]
    build: Callable[[ImageSet, str, int | None], Any]
    run: Run

    def recipe(
        self, images: ImageSet, loss: str, *, steps: int | None = None, epochs: int | None = None, **changes: Any
    ) -> Any:
        """The chapter's recipe with another length and other options.

        Args:
            images: what it is to be trained on.
            loss: one of `losses`.
            steps: number of updates; warm-up and milestones keep their share of it.
            epochs: passes over the images, in place of steps.
            changes: other attributes of `Options`; those that are None stay as the chapter has them.

        Raises:
            ValueError: another loss, or images that the recipe is not for.
        """
        made = self.build(images, loss, epochs)
        options: Options = replace(
            made.options, **{name: value for name, value in changes.items() if value is not None}
        )
        if epochs:
            steps = ceil(epochs * len(images) / options.batch_size)
        if steps:
            share = steps / options.steps
            falls = tuple(round(share * fall) for fall in options.milestones)
            options = replace(options, steps=steps, warmup_steps=round(share * options.warmup_steps), milestones=falls)
        return replace(made, options=options)


def _pretrain(recipe: pretrain.Recipe, images: ImageSet, seed: int, state: Path, device: torch.device) -> nn.Module:
    return pretrain.run(images, recipe, seed, checkpoint=state, device=device)


def _grow(recipe: growth.Recipe, images: ImageSet, seed: int, state: Path, device: torch.device) -> nn.Module:
    pairs = image_pairs(images.images.to(device), growth.MILD)
    watched = growth.MILD(images.images[:500].repeat(2, 1, 1, 1), torch.Generator().manual_seed(0)).chunk(2)
    return growth.grow(recipe, pairs, (watched[0], watched[1]), seed, checkpoint=state, device=device)[0]


def _align(recipe: alignment.Recipe, images: ImageSet, seed: int, state: Path, device: torch.device) -> nn.Module:
    return alignment.run(recipe, images, seed, checkpoint=state, device=device)[0]


def _contrast(recipe: contrast.Recipe, images: ImageSet, seed: int, state: Path, device: torch.device) -> nn.Module:
    return contrast.run(recipe, images, seed, checkpoint=state, device=device)[0]


PRETRAIN = ("spectral", "info_nce")
RECIPES = {
    "small": Named(
        "chapter 1: three convolutions on small images, minutes on two cores",
        PRETRAIN,
        lambda images, loss, _: pretrain.small(images, loss),
        _pretrain,
    ),
    "authors": Named(
        "chapter 1: ResNet-18 as the authors train it on CIFAR, hours on a GPU",
        PRETRAIN,
        lambda images, loss, epochs: pretrain.authors(images, loss, **_given(epochs=epochs)),
        _pretrain,
    ),
    "growth": Named(
        "chapter 2: three convolutions from a small start, minutes on two cores",
        tuple(growth.LOSSES),
        lambda images, loss, _: growth.small_cnn(loss, images),
        _grow,
    ),
    "alignment": Named(
        "chapter 3: BYOL of a perceptron with a trained predictor, minutes on one core",
        ("byol",),
        lambda images, *_: alignment.small(images),
        _align,
    ),
    "alignment-authors": Named(
        "chapter 3: BYOL of a ResNet-18 on CIFAR-10 or STL-10, hours on a GPU",
        ("byol",),
        lambda images, _, epochs: alignment.authors(images, **_given(epochs=epochs)),
        _align,
    ),
    "contrast": Named(
        "chapter 4: SimCLR's and SimSiam's kin, a perceptron, seconds on one core",
        contrast.METHODS,
        lambda images, loss, _: contrast.small(images, loss),
        _contrast,
    ),
    "contrast-authors": Named(
        "chapter 4: the same, ResNets on CIFAR or a folder, hours on a GPU",
        contrast.METHODS,
        lambda images, loss, epochs: contrast.authors(images, loss, **_given(epochs=epochs)),
        _contrast,
    ),
}


def _given(**keywords: Any) -> dict[str, Any]:
    return {name: value for name, value in keywords.items() if value is not None}
